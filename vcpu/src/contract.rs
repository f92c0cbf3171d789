//! What a virtual processor can do: the one trait that both backends implement.

use crate::{
    ArchState, CodeSize, DescriptorTable, EntryFailure, Event, Exit, Gpr, Resume, Segment, SegmentName, SystemMsr,
};

/// Whether the guest would take an event if it were injected now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// It would.
    Open,
    /// RFLAGS.IF, an interrupt shadow, NMI blocking or an event that is already queued prevents it.
    Closed,
}

/// Who moves interrupts from the local APIC page into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptDelivery {
    /// The machine: it injects the highest vector when the window is open, and asks for a window when it is not.
    Software,
    /// The processor (virtual-interrupt delivery or AVIC), out of the APIC page; the machine only says when IRR changed.
    Hardware,
}

/// A virtual processor, resident on the host CPU that calls these methods.
///
/// The loop is: [`Vcpu::complete`] the answer to the last exit, inject what is pending, [`Vcpu::run`] until the next exit.
/// `complete` is apart from `run` because whether an interrupt can be injected depends on the answer: an instruction
/// that completes ends the interrupt shadow.
///
/// Getters read what the exit left; a backend may fetch it from hardware on first use and keep it until the next entry.
/// Setters take effect with the next entry. Values are the guest's view: what a backend needs beside it (SVME, VMXE,
/// shadow bits) it adds and hides itself. Setters do not check values against the architecture: the machine does, before.
pub trait Vcpu: Send {
    /// Ends the last exit as `resume` says: registers, RIP, interrupt shadow, single step, injected exception. An exception
    /// that meets an event whose delivery was interrupted merges with it; a triple fault is reported by the next `run`
    /// as [`Exit::Shutdown`] without entry.
    fn complete(&mut self, resume: Resume);

    /// Enters the guest and returns with the next exit.
    ///
    /// # Errors
    /// The processor refused the state; the guest has not run and the same state stays.
    fn run(&mut self) -> Result<Exit, EntryFailure>;

    /// Makes this vCPU the resident one of this host CPU: vector registers, XCR0, debug registers, TSC_AUX, and on VMX the
    /// current VMCS. Everything but `set_state`, `state` and constructors needs residency.
    fn load(&mut self);

    /// Ends residency, so that any host CPU may `load` it.
    fn unload(&mut self);

    /// A general-purpose register.
    fn gpr(&self, register: Gpr) -> u64;
    /// Writes all 64 bits of a general-purpose register.
    fn set_gpr(&mut self, register: Gpr, value: u64);
    /// Instruction pointer: of the instruction that exited, or of the next one after an exit that interrupted none.
    fn rip(&self) -> u64;
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Writes RFLAGS; for emulated instructions, which change the arithmetic flags, and for RF.
    fn set_rflags(&mut self, value: u64);

    /// How the instruction at RIP decodes.
    fn code_size(&self) -> CodeSize;
    /// Current privilege level, 0 to 3.
    fn cpl(&self) -> u8;
    /// A segment register.
    fn segment(&self, name: SegmentName) -> Segment;
    /// GDTR.
    fn gdtr(&self) -> DescriptorTable;
    /// IDTR.
    fn idtr(&self) -> DescriptorTable;
    /// CR0.
    fn cr0(&self) -> u64;
    /// CR2.
    fn cr2(&self) -> u64;
    /// CR3.
    fn cr3(&self) -> u64;
    /// CR4.
    fn cr4(&self) -> u64;
    /// EFER as the guest sees it.
    fn efer(&self) -> u64;
    /// Writes CR0, with what follows from it: EFER.LMA when paging changes under LME.
    fn set_cr0(&mut self, value: u64);
    /// Writes CR3 and drops what translations that implies.
    fn set_cr3(&mut self, value: u64);
    /// Writes CR4 and drops what translations that implies.
    fn set_cr4(&mut self, value: u64);
    /// Writes EFER. LMA in `value` counts.
    fn set_efer(&mut self, value: u64);
    /// XCR0.
    fn xcr0(&self) -> u64;
    /// Writes XCR0, already checked to be valid on this processor.
    fn set_xcr0(&mut self, value: u64);
    /// One of the MSRs that are switched with the vCPU.
    fn system_msr(&self, msr: SystemMsr) -> u64;
    /// Writes one of the MSRs that are switched with the vCPU.
    fn set_system_msr(&mut self, msr: SystemMsr, value: u64);

    /// Bytes 0 to 31 of YMM register `number` (XMM in the low half), for the emulator's vector loads and stores.
    fn vector(&self, number: u8) -> [u8; 32];
    /// Writes YMM register `number`; `bytes` is how much of it counts: 16 leaves the upper half, 32 writes it.
    fn set_vector(&mut self, number: u8, value: [u8; 32], bytes: u8);

    /// The guest's time-stamp counter now.
    fn tsc(&self) -> u64;
    /// What the guest's time-stamp counter is ahead of the host's, modulo 2^64.
    fn tsc_offset(&self) -> u64;
    /// Sets what the guest's time-stamp counter is ahead of the host's. Works without residency.
    fn set_tsc_offset(&mut self, offset: u64);
    /// Bounds the next runs: [`Exit::RunLimit`] comes at or soon after the host's TSC reaches `host_tsc`, on processors with a
    /// preemption timer. Elsewhere the host's alarm interrupt bounds runs and this does nothing.
    fn set_run_limit(&mut self, host_tsc: Option<u64>);

    /// All architectural state, for reports and snapshots. Works without residency.
    fn state(&self) -> ArchState;
    /// Replaces all architectural state and forgets queued events, shadows and windows: reset, INIT, loaders. Works without
    /// residency.
    fn set_state(&mut self, state: &ArchState);

    /// Whether an external interrupt could be injected now.
    fn interrupt_window(&self) -> Window;
    /// Whether an NMI could be injected now.
    fn nmi_window(&self) -> Window;
    /// Queues an event for the next entry. Its window must be open; exceptions come by [`Vcpu::complete`] instead.
    fn inject(&mut self, event: Event);
    /// Asks for [`Exit::InterruptWindow`] as soon as an interrupt of priority class `vector >> 4` could be injected, CR8
    /// included; `None` withdraws.
    fn request_interrupt_window(&mut self, vector: Option<u8>);
    /// Asks for [`Exit::NmiWindow`] as soon as an NMI could be injected.
    fn request_nmi_window(&mut self, wanted: bool);

    /// Who delivers interrupts.
    fn interrupt_delivery(&self) -> InterruptDelivery;
    /// With [`InterruptDelivery::Hardware`]: IRR in the APIC page may hold more than before.
    fn evaluate_pending(&mut self);
    /// With [`InterruptDelivery::Hardware`]: the vectors whose EOI must exit, one bit each.
    fn set_eoi_exits(&mut self, vectors: [u64; 4]);
    /// With [`InterruptDelivery::Hardware`]: how the guest reaches its APIC now.
    fn set_x2apic(&mut self, enabled: bool);
}
