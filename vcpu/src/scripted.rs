//! A vCPU for host tests: it plays back exits and remembers what it was told.

use crate::exit::Answer;
use crate::{
    ArchState, CodeSize, DescriptorTable, EntryFailure, Event, Exit, Gpr, InterruptDelivery, Resume, Segment,
    SegmentName, SystemMsr, Vcpu, Window,
};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use memory::Width;

/// Plays back the exits that a test queued; keeps registers as the real ones would.
pub struct ScriptedVcpu {
    /// What the next runs return, in order. An empty queue is a mistake of the test.
    pub exits: VecDeque<Result<Exit, EntryFailure>>,
    /// Every answer, in order.
    pub resumes: Vec<Resume>,
    /// Every injected event, in order.
    pub injected: Vec<Event>,
    /// The architectural state; answers change it as a backend would.
    pub state: ArchState,
    /// What [`Vcpu::interrupt_window`] says.
    pub interrupts: Window,
    /// What [`Vcpu::nmi_window`] says.
    pub nmis: Window,
    /// The last [`Vcpu::request_interrupt_window`].
    pub requested_window: Option<u8>,
    /// The last [`Vcpu::request_nmi_window`].
    pub requested_nmi_window: bool,
    /// What [`Vcpu::interrupt_delivery`] says.
    pub delivery: InterruptDelivery,
    /// The host's TSC.
    pub host_tsc: u64,
    /// The last [`Vcpu::set_tsc_offset`].
    pub tsc_offset: u64,
    /// The last run limit.
    pub run_limit: Option<u64>,
    /// Vector registers.
    pub vectors: [[u8; 32]; 16],
    /// The last EOI-exit bitmap.
    pub eoi_exits: [u64; 4],
    /// How often [`Vcpu::evaluate_pending`] was called.
    pub evaluations: usize,
    /// The last [`Vcpu::set_x2apic`].
    pub x2apic: bool,
}

impl ScriptedVcpu {
    /// A vCPU in `state` that will return `exits` in order. Both windows are open.
    pub fn new(state: ArchState, exits: impl IntoIterator<Item = Exit>) -> Self {
        Self {
            exits: exits.into_iter().map(Ok).collect(),
            resumes: Vec::new(),
            injected: Vec::new(),
            state,
            interrupts: Window::Open,
            nmis: Window::Open,
            requested_window: None,
            requested_nmi_window: false,
            delivery: InterruptDelivery::Software,
            host_tsc: 0,
            tsc_offset: 0,
            run_limit: None,
            vectors: [[0; 32]; 16],
            eoi_exits: [0; 4],
            evaluations: 0,
            x2apic: false,
        }
    }

    fn advance(&mut self, length: crate::Length) {
        self.state.rip = self.code_size().advance(self.state.rip, length.bytes().into());
    }

    fn set_pair(&mut self, high_low: u64) {
        self.state.gprs.set(Gpr::Rax, high_low & 0xffff_ffff);
        self.state.gprs.set(Gpr::Rdx, high_low >> 32);
    }
}

impl Vcpu for ScriptedVcpu {
    fn complete(&mut self, resume: Resume) {
        self.resumes.push(resume);
        match *resume.answer() {
            Answer::Enter | Answer::Inject(_) => {}
            Answer::Advance(length) => self.advance(length),
            Answer::Jump(target) => self.state.rip = target,
            Answer::PortValue(length, width, value) => {
                let rax = self.state.gprs.get(Gpr::Rax);
                let merged = match width {
                    Width::Byte | Width::Word => rax & !width.mask() | u64::from(value) & width.mask(),
                    Width::Dword | Width::Qword => value.into(),
                };
                self.state.gprs.set(Gpr::Rax, merged);
                self.advance(length);
            }
            Answer::Cpuid(length, answer) => {
                self.state.gprs.set(Gpr::Rax, answer.eax.into());
                self.state.gprs.set(Gpr::Rbx, answer.ebx.into());
                self.state.gprs.set(Gpr::Rcx, answer.ecx.into());
                self.state.gprs.set(Gpr::Rdx, answer.edx.into());
                self.advance(length);
            }
            Answer::MsrValue(length, value) => {
                self.set_pair(value);
                self.advance(length);
            }
        }
    }

    fn run(&mut self) -> Result<Exit, EntryFailure> {
        // A test that runs past its script has a wrong script; Shutdown ends any loop.
        self.exits.pop_front().unwrap_or(Ok(Exit::Shutdown))
    }

    fn load(&mut self) {}
    fn unload(&mut self) {}

    fn gpr(&self, register: Gpr) -> u64 {
        self.state.gprs.get(register)
    }
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.state.gprs.set(register, value);
    }
    fn rip(&self) -> u64 {
        self.state.rip
    }
    fn rflags(&self) -> u64 {
        self.state.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.state.rflags = value;
    }
    fn code_size(&self) -> CodeSize {
        CodeSize::of(self.state.efer, self.state.segment(SegmentName::Cs).attributes)
    }
    fn cpl(&self) -> u8 {
        self.state.segment(SegmentName::Ss).attributes.dpl()
    }
    fn segment(&self, name: SegmentName) -> Segment {
        *self.state.segment(name)
    }
    fn gdtr(&self) -> DescriptorTable {
        self.state.gdtr
    }
    fn idtr(&self) -> DescriptorTable {
        self.state.idtr
    }
    fn cr0(&self) -> u64 {
        self.state.cr0
    }
    fn cr2(&self) -> u64 {
        self.state.cr2
    }
    fn cr3(&self) -> u64 {
        self.state.cr3
    }
    fn cr4(&self) -> u64 {
        self.state.cr4
    }
    fn efer(&self) -> u64 {
        self.state.efer
    }
    fn set_cr0(&mut self, value: u64) {
        self.state.cr0 = value;
    }
    fn set_cr3(&mut self, value: u64) {
        self.state.cr3 = value;
    }
    fn set_cr4(&mut self, value: u64) {
        self.state.cr4 = value;
    }
    fn set_efer(&mut self, value: u64) {
        self.state.efer = value;
    }
    fn xcr0(&self) -> u64 {
        self.state.xcr0
    }
    fn set_xcr0(&mut self, value: u64) {
        self.state.xcr0 = value;
    }
    fn system_msr(&self, msr: SystemMsr) -> u64 {
        self.state.msrs.get(msr)
    }
    fn set_system_msr(&mut self, msr: SystemMsr, value: u64) {
        self.state.msrs.set(msr, value);
    }
    fn vector(&self, number: u8) -> [u8; 32] {
        self.vectors[usize::from(number & 15)]
    }
    fn set_vector(&mut self, number: u8, value: [u8; 32], bytes: u8) {
        let count = usize::from(bytes.min(32));
        self.vectors[usize::from(number & 15)][..count].copy_from_slice(&value[..count]);
    }
    fn tsc(&self) -> u64 {
        self.host_tsc.wrapping_add(self.tsc_offset)
    }
    fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }
    fn set_run_limit(&mut self, host_tsc: Option<u64>) {
        self.run_limit = host_tsc;
    }
    fn state(&self) -> ArchState {
        self.state.clone()
    }
    fn set_state(&mut self, state: &ArchState) {
        self.state = state.clone();
    }
    fn interrupt_window(&self) -> Window {
        self.interrupts
    }
    fn nmi_window(&self) -> Window {
        self.nmis
    }
    fn inject(&mut self, event: Event) {
        self.injected.push(event);
    }
    fn request_interrupt_window(&mut self, vector: Option<u8>) {
        self.requested_window = vector;
    }
    fn request_nmi_window(&mut self, wanted: bool) {
        self.requested_nmi_window = wanted;
    }
    fn interrupt_delivery(&self) -> InterruptDelivery {
        self.delivery
    }
    fn evaluate_pending(&mut self) {
        self.evaluations += 1;
    }
    fn set_eoi_exits(&mut self, vectors: [u64; 4]) {
        self.eoi_exits = vectors;
    }
    fn set_x2apic(&mut self, enabled: bool) {
        self.x2apic = enabled;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Length, PortRead};

    #[test]
    fn answers_change_registers_as_hardware_would() {
        let mut vcpu = ScriptedVcpu::new(ArchState::reset(0), []);
        vcpu.set_gpr(Gpr::Rax, 0x1122_3344_5566_7788);
        let two = Length::new(2).unwrap();
        vcpu.complete(PortRead::new(1, Width::Byte, two).complete(0xff));
        assert_eq!(vcpu.gpr(Gpr::Rax), 0x1122_3344_5566_77ff);
        vcpu.complete(PortRead::new(1, Width::Dword, two).complete(0x99));
        assert_eq!(vcpu.gpr(Gpr::Rax), 0x99, "a doubleword clears the upper half");
        assert_eq!(vcpu.rip(), 0xfff4);
    }
}
