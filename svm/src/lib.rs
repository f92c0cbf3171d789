//! AMD-V: virtual processors on SVM with nested paging.
//!
//! Manual: AMD APM volume 2 (24593, revision 3.42), chapter 15 "Secure Virtual Machine". Key types: [`Svm`], the
//! [`Backend`], and [`SvmVcpu`], a [`Vcpu`]. Neighbours: `vcpu` is the contract; `kernel` detects and enables SVM and makes
//! vCPUs; nothing here knows `machine` or the twin for Intel.
//!
//! The files, in the twin's order: `capability` (what the processor has), `controls` (what is asked of it), `decode` (what an
//! exit means), `paging` and `asid` (nested tables and their tags), `checks` (why an entry was refused), `entry` and `instr`
//! (assembly), `vmcb` (the layout) and `region` (the memory). This file runs a vCPU: enter, re-queue, decode, complete.
//!
//! What the kernel guarantees while a vCPU is resident: ring 0, RFLAGS.IF and DR7 clear, four-level paging, handlers for NMI
//! and machine check, and no use of vector registers, DR0-3 or TSC_AUX of its own.
//!
//! Limits: an NMI that meets NMI blocking is delivered right after the guest's IRET by a single step (unless the processor
//! virtualizes NMIs); if that IRET faults, the fault's frame shows TF set. Processors without decode assists are taken for
//! QEMU, which dies of a CR8 write that lets a pending virtual interrupt through: there such writes exit while an interrupt
//! window is asked for, and are stepped over without it. DEBUGCTL is kept but not loaded. Decoding
//! instructions is the machine's work wherever the processor gives no length.

#![no_std]

extern crate alloc;

pub mod asid;
pub mod capability;
pub mod checks;
pub mod controls;
pub mod decode;
mod entry;
mod instr;
pub mod paging;
mod region;
pub mod speculation;
pub mod vmcb;

use crate::asid::{Asid, Flush};
use crate::capability::{Capability, Features};
use crate::checks::Limits;
use crate::controls::{Controls, IO_MAP_BYTES, MSR_MAP_BYTES};
use crate::decode::{DEBUG_REASONS, decode};
use crate::entry::Enter;
use crate::paging::{NestedTables, nested_tables};
use crate::region::{Frame, FrameTables, HostCpu, Removals, Switched};
use crate::vmcb::{CleanBits, EventKind, EventWord, ExitCode, InterruptState, TlbControl, Vmcb, VmcbSegment};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;
use vcpu::memory::Width;
use vcpu::{
    Answer, ApicBinding, ArchState, Backend, CodeSize, CreateError, Defences, DescriptorTable, EntryFailure, Event,
    Exception, Exit, FrameSource, Gpr, Gprs, GuestFeatures, Hpa, InterruptDelivery, Length, Merged, RawExit, Resume,
    Segment, SegmentName, SoftwareKind, SystemMsr, SystemMsrs, Vcpu, VcpuConfig, Window, cr0, efer, merge, rflags,
};

/// Offset of TPR in the APIC page.
const TPR: usize = 0x80;
/// DR6.BS: a single step.
const DR6_BS: u64 = 1 << 14;
/// DR7.GD: an access to a debug register raises #DB; cleared when that is delivered.
const DR7_GD: u64 = 1 << 13;
/// CR8 in the intercept word of control-register writes.
const CR8_BIT: u16 = 1 << 8;
/// Bits of DR7 that are always one.
const DR7_FIXED: u64 = 1 << 10;

/// What all vCPUs and host CPUs share.
struct Shared {
    capability: Capability,
    controls: Controls,
    /// The CPUs that have been enabled.
    cpus: Mutex<Vec<Arc<HostCpu>>>,
    /// The identity of the vCPU that is made next.
    next_identity: AtomicU64,
}

/// SVM on this host, found usable.
pub struct Svm {
    shared: Arc<Shared>,
}

impl Svm {
    /// On processors that all have `capability`.
    pub fn new(capability: Capability) -> Svm {
        let controls = Controls::derive(&capability);
        let (cpus, next_identity) = (Mutex::new(Vec::new()), AtomicU64::new(1));
        Svm { shared: Arc::new(Shared { capability, controls, cpus, next_identity }) }
    }
}

impl Backend for Svm {
    type Vcpu = SvmVcpu;
    type SecondLevel = NestedTables<FrameTables>;

    const NAME: &'static str = "SVM";

    #[allow(unsafe_code)]
    fn enable(&self, frames: &Arc<dyn FrameSource>) -> Result<(), CreateError> {
        // SAFETY: `enable` is called by the kernel, in ring 0, on a CPU like the one that `detect` saw.
        let cpu = unsafe { HostCpu::enable(&self.shared.capability, frames) }?;
        self.shared.cpus.lock().push(Arc::new(cpu));
        log::debug!("SVM is on");
        Ok(())
    }

    fn guest_features(&self) -> GuestFeatures {
        // INVPCID is not intercepted; nested paging makes it the guest's own affair.
        GuestFeatures {
            rdtscp: self.shared.capability.has(Features::RDTSCP),
            invpcid: true,
            speculation: self.shared.capability.speculation.guest,
        }
    }

    fn second_level(&self, frames: &Arc<dyn FrameSource>) -> Result<Self::SecondLevel, CreateError> {
        let capability = &self.shared.capability;
        let (memory, root) = FrameTables::new(frames)?;
        Ok(nested_tables(memory, root, capability.has(Features::GIANT_PAGES), capability.physical_bits))
    }

    #[allow(unsafe_code)]
    fn vcpu(&self, config: VcpuConfig<'_>) -> Result<SvmVcpu, CreateError> {
        let frames = config.frames;
        let capability = &self.shared.capability;
        let mut vmcb = Frame::<Vmcb>::new(frames)?;
        let mut msr_map = Frame::<[u8; MSR_MAP_BYTES]>::new(frames)?;
        let mut io_map = Frame::<[u8; IO_MAP_BYTES]>::new(frames)?;
        controls::fill_msr_map(&mut msr_map, capability);
        io_map.fill(0xff);
        vmcb.control.msrpm_base = msr_map.physical().0;
        vmcb.control.iopm_base = io_map.physical().0;
        vmcb.control.nested_cr3 = config.second_level_root;
        // SAFETY: the root came from `second_level` over the same frames, and a VM's tables are freed after its vCPUs.
        let removals = unsafe { Removals::of(Hpa(config.second_level_root), frames) };
        let refills = capability.speculation.defences.contains(Defences::RETURN_STACK_REFILL);
        let mut vcpu = SvmVcpu {
            gprs: Gprs::default(),
            seen_removals: removals.count(),
            removals,
            attention: Attention::empty(),
            enter: if refills { entry::enter_refilling } else { entry::enter },
            identity: self.shared.next_identity.fetch_add(1, Ordering::Relaxed),
            apic: config.apic,
            host_physical: 0,
            asid: None,
            cpu: None,
            nmi_masked: false,
            iret_rip: 0,
            step: Step::default(),
            window: None,
            inclusive_priority: false,
            software_rip: 0,
            switched: Switched::new(frames, capability)?,
            vmcb,
            _msr_map: msr_map,
            _io_map: io_map,
            shared: self.shared.clone(),
        };
        vcpu.set_state(&ArchState::reset(config.signature));
        Ok(vcpu)
    }
}

bitflags::bitflags! {
    /// What an entry or exit has to look at beyond the usual. Empty nearly always, so that one comparison is enough.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Attention: u32 {
        /// An answer ended in a triple fault.
        const TRIPLE_FAULT = 1 << 0;
        /// The guest's translations must be dropped before the next entry.
        const FLUSH = 1 << 1;
        /// The CPU may owe a flush of all ASIDs.
        const FLUSH_ALL = 1 << 2;
        /// TLB_CONTROL asks for a flush; to be withdrawn after the entry.
        const FLUSH_ARMED = 1 << 3;
        /// The machine waits for the NMI window.
        const NMI_WANTED = 1 << 4;
        /// The guest was about to execute the IRET that ends its NMI handler.
        const NMI_IRET = 1 << 5;
        /// RFLAGS.TF is borrowed for one step.
        const STEP = 1 << 6;
        /// A software event was injected with RIP moved past its instruction, for want of next-RIP save.
        const SOFTWARE = 1 << 7;
        /// CR8 writes exit, because of an interrupt window.
        const CR8_GUARD = 1 << 8;
        /// The guest stands at a CR8 write, which has to be stepped over.
        const CR8_STEP = 1 << 9;
        /// The host has changed state that VMRUN checks.
        const CHECK = 1 << 10;
    }
}

/// What a borrowed single step must give back.
#[derive(Clone, Copy, Default)]
struct Step {
    /// The guest's RFLAGS.TF.
    trap_flag: u64,
    /// The reasons in the guest's DR6.
    reasons: u64,
}

/// A virtual processor on SVM.
pub struct SvmVcpu {
    /// All but RAX and RSP, which the VMCB holds; their places here mean nothing.
    gprs: Gprs,
    vmcb: Frame<Vmcb>,
    attention: Attention,
    /// The switch into the guest that this processor needs.
    enter: Enter,
    /// The VMCB that brings the host's segments back; of the CPU where this vCPU is resident.
    host_physical: u64,
    seen_removals: u64,
    removals: Removals,
    apic: ApicBinding,
    /// The number held on `cpu`.
    asid: Option<Asid>,
    /// The CPU of the last residency.
    cpu: Option<Arc<HostCpu>>,
    /// Between NMI and IRET, where the processor does not know by itself.
    nmi_masked: bool,
    /// With [`Attention::NMI_IRET`]: where the IRET stands.
    iret_rip: u64,
    step: Step,
    /// The vector that the interrupt window was asked for.
    window: Option<u8>,
    /// This processor lets V_INTR_PRIO equal to V_TPR through. QEMU does; the manual says greater.
    inclusive_priority: bool,
    /// With [`Attention::SOFTWARE`]: where RIP was.
    software_rip: u64,
    switched: Switched,
    _msr_map: Frame<[u8; MSR_MAP_BYTES]>,
    _io_map: Frame<[u8; IO_MAP_BYTES]>,
    /// Never another vCPU's, even after this one is gone.
    identity: u64,
    shared: Arc<Shared>,
}

/// Whether [`SvmVcpu::handle`] has to look at an exit. One bit test.
#[inline(always)]
const fn is_ours(code: ExitCode) -> bool {
    matches!(code, ExitCode::MACHINE_CHECK | ExitCode::INTR | ExitCode::VINTR | ExitCode::IRET)
}

impl SvmVcpu {
    fn changed(&mut self, what: CleanBits) {
        self.vmcb.control.clean.remove(what);
    }

    fn has(&self, features: Features) -> bool {
        self.shared.capability.has(features)
    }

    /// The rare work before an entry. What needs no entry is returned.
    #[cold]
    fn prepare(&mut self) -> Option<Result<Exit, EntryFailure>> {
        if self.attention.contains(Attention::TRIPLE_FAULT) {
            self.attention.remove(Attention::TRIPLE_FAULT);
            return Some(Ok(Exit::Shutdown));
        }
        // Before and not only after: QEMU leaves its own state in the VMCB that it refuses. The guest cannot bring about what
        // is checked here.
        if self.attention.contains(Attention::CHECK) {
            if self.violated().is_some() {
                return Some(Err(self.refused()));
            }
            self.attention.remove(Attention::CHECK);
        }
        if self.attention.contains(Attention::NMI_WANTED) && self.nmi_window() == Window::Open {
            self.attention.remove(Attention::NMI_WANTED);
            return Some(Ok(Exit::NmiWindow));
        }
        if self.attention.intersects(Attention::NMI_WANTED | Attention::CR8_STEP) {
            self.arm_step();
        }
        self.arm_flush();
        None
    }

    /// Asks for a step over what blocks NMIs, an interrupt shadow or the IRET, or over a CR8 write. An event that is still to be delivered would
    /// push the borrowed TF, so the step waits for the exit after it.
    fn arm_step(&mut self) {
        let instruction = self.attention.intersects(Attention::NMI_IRET | Attention::CR8_STEP);
        let shadow = !self.nmi_masked && self.vmcb.control.interrupt_state.shadow();
        if self.vmcb.control.event_injection.valid() || !(instruction || shadow) {
            return;
        }
        let save = &mut self.vmcb.save;
        self.step = Step { trap_flag: save.rflags & rflags::TF, reasons: save.dr6 & DEBUG_REASONS };
        save.rflags |= rflags::TF;
        save.dr6 &= !DEBUG_REASONS;
        self.changed(CleanBits::DEBUG_REGISTERS);
        self.attention.insert(Attention::STEP);
    }

    /// Has the next VMRUN drop translations, by the cheapest way that the processor has.
    fn arm_flush(&mut self) {
        let Some(cpu) = &self.cpu else { return };
        let mut asids = cpu.asids.lock();
        if self.attention.contains(Attention::FLUSH) {
            self.attention.remove(Attention::FLUSH);
            if self.shared.capability.has(Features::FLUSH_BY_ASID) {
                self.vmcb.control.tlb_control = TlbControl::FLUSH_ASID;
            } else {
                let asid = asids.renew();
                self.asid = Some(asid);
                self.vmcb.control.asid = asid.number;
                self.vmcb.control.clean.remove(CleanBits::ASID);
            }
            self.attention.insert(Attention::FLUSH_ALL | Attention::FLUSH_ARMED);
        }
        if self.attention.contains(Attention::FLUSH_ALL) {
            self.attention.remove(Attention::FLUSH_ALL);
            if asids.due() == Flush::All {
                self.vmcb.control.tlb_control = TlbControl::FLUSH_ALL;
                self.attention.insert(Attention::FLUSH_ARMED);
            }
        }
    }

    /// Everything before VMRUN. The V_TPR that it begins with, or what needs no entry.
    #[inline(always)]
    fn before_entry(&mut self) -> Result<u8, Result<Exit, EntryFailure>> {
        let removals = self.removals.count();
        if removals != self.seen_removals {
            self.seen_removals = removals;
            self.attention.insert(Attention::FLUSH);
        }
        if !self.attention.is_empty()
            && let Some(result) = self.prepare()
        {
            return Err(result);
        }
        let tpr = self.apic.page.load(TPR) as u8 >> 4;
        self.vmcb.control.interrupt_control.set_tpr(tpr);
        Ok(tpr)
    }

    /// What every exit needs. `tpr` is V_TPR as it was before. True if the exit was the backend's alone and the guest goes on.
    #[inline(always)]
    fn after_exit(&mut self, code: ExitCode, tpr: u8) -> bool {
        let control = &mut self.vmcb.control;
        control.clean = CleanBits::AFTER_EXIT;
        // Only a TPR that the guest has changed by CR8 goes back: one that it wrote by MMIO has low bits.
        if control.interrupt_control.tpr() != tpr {
            self.apic.page.store(TPR, u32::from(control.interrupt_control.tpr() & 0xf) << 4);
        }
        let interrupted = control.exit_interrupt_info;
        if interrupted.valid() {
            self.requeue(interrupted);
        } else {
            control.event_injection = EventWord::new();
        }
        !self.attention.is_empty() && self.settle(code)
    }

    /// Exits that are the backend's, in part or as a whole. `None` if the guest goes on.
    #[cold]
    #[allow(unsafe_code)]
    fn handle(&mut self, code: ExitCode) -> Option<Exit> {
        match code {
            ExitCode::VINTR => return self.window_opened(),
            ExitCode::IRET => {
                self.iret();
                return None;
            }
            // SAFETY: the kernel calls `run` with IF = 0 and without locks; STGI has set GIF.
            ExitCode::INTR => unsafe { instr::take_interrupts() },
            // SAFETY: the kernel has a machine-check handler.
            ExitCode::MACHINE_CHECK => unsafe { instr::raise_machine_check() },
            _ => {}
        }
        Some(decode(&self.vmcb, &self.gprs))
    }

    /// An event whose delivery the exit interrupted goes back into the queue. INT n, INT3 and INTO are executed again
    /// instead: RIP still stands at them. APM 2 15.7.2 "State Saved on Exit", EXITINTINFO.
    #[cold]
    fn requeue(&mut self, interrupted: EventWord) {
        let control = &mut self.vmcb.control;
        let executes_again = match interrupted.kind() {
            EventKind::SOFTWARE => true,
            EventKind::EXCEPTION => matches!(interrupted.vector(), Exception::BP | Exception::OF),
            _ => false,
        };
        control.event_injection = if executes_again { EventWord::new() } else { interrupted };
        if executes_again && self.attention.contains(Attention::SOFTWARE) {
            self.vmcb.save.rip = self.software_rip;
        }
    }

    /// The rare work after an exit. True if the exit was the backend's alone and the guest goes on.
    #[cold]
    fn settle(&mut self, code: ExitCode) -> bool {
        if self.attention.contains(Attention::FLUSH_ARMED) {
            if self.vmcb.control.tlb_control == TlbControl::FLUSH_ALL
                && let Some(cpu) = &self.cpu
            {
                cpu.asids.lock().flushed();
            }
            self.vmcb.control.tlb_control = TlbControl::NOTHING;
        }
        self.attention.remove(Attention::FLUSH_ARMED | Attention::SOFTWARE);
        let over_iret = self.attention.contains(Attention::NMI_IRET) && self.vmcb.save.rip != self.iret_rip;
        let stepped = self.attention.contains(Attention::STEP) && self.end_step(code, over_iret);
        if over_iret {
            self.nmi_masked = false;
            self.attention.remove(Attention::NMI_IRET);
        }
        if self.attention.contains(Attention::CR8_STEP) {
            self.attention.remove(Attention::CR8_STEP);
            self.request_interrupt_window(self.window);
        } else if code == ExitCode::CR8_WRITE && self.attention.contains(Attention::CR8_GUARD) {
            self.attention.remove(Attention::CR8_GUARD);
            self.attention.insert(Attention::CR8_STEP);
            self.vmcb.control.intercept_cr_writes = 0;
            self.vmcb.control.interrupt_control.set_irq(false);
            self.changed(CleanBits::INTERCEPTS);
            return true;
        }
        stepped
    }

    /// Gives TF and DR6 back. True if the #DB was for the step alone.
    fn end_step(&mut self, code: ExitCode, over_iret: bool) -> bool {
        self.attention.remove(Attention::STEP);
        let Step { trap_flag, reasons } = self.step;
        let save = &mut self.vmcb.save;
        // Behind IRET the guest's TF is what it popped.
        if !over_iret {
            save.rflags = save.rflags & !rflags::TF | trap_flag;
        }
        let ours = code == ExitCode::DEBUG_EXCEPTION && save.dr6 & DR6_BS != 0 && trap_flag == 0;
        if ours {
            save.dr6 &= !DR6_BS;
        }
        let alone = ours && save.dr6 & DEBUG_REASONS == 0;
        save.dr6 |= reasons;
        self.changed(CleanBits::DEBUG_REGISTERS);
        alone
    }

    /// The virtual interrupt that stands for the window would be taken now.
    fn window_opened(&mut self) -> Option<Exit> {
        let tpr = self.vmcb.control.interrupt_control.tpr() & 0xf;
        if let Some(vector) = self.window
            && vector >> 4 != 0
            && vector >> 4 <= tpr
            && !self.inclusive_priority
        {
            self.inclusive_priority = true;
            self.request_interrupt_window(Some(vector));
            return None;
        }
        self.request_interrupt_window(None);
        Some(Exit::InterruptWindow)
    }

    /// The guest's NMI handler returns; blocking ends behind the IRET.
    fn iret(&mut self) {
        self.vmcb.control.intercept_3.set_iret(false);
        self.changed(CleanBits::INTERCEPTS);
        self.iret_rip = self.vmcb.save.rip;
        self.attention.insert(Attention::NMI_IRET);
    }

    #[cold]
    fn refused(&self) -> EntryFailure {
        let control = &self.vmcb.control;
        EntryFailure {
            raw: RawExit { code: ExitCode::INVALID.0.into(), info1: control.exit_info_1, info2: control.exit_info_2 },
            violated: self.violated(),
        }
    }

    /// The check of VMRUN that the state fails.
    fn violated(&self) -> Option<&'static str> {
        checks::violated(&self.vmcb, Limits::from(&self.shared.capability))
    }

    /// The instruction at RIP is complete.
    #[inline]
    fn advance(&mut self, length: Length) {
        let (rip, bytes) = (self.vmcb.save.rip, length.bytes());
        // Without a carry out of the low half the next RIP is the same in code of every size.
        let next = match (rip as u32).checked_add(bytes.into()) {
            Some(_) => rip.wrapping_add(bytes.into()),
            None => self.code_size().advance(rip, bytes.into()),
        };
        self.continue_at(next);
    }

    /// The instruction at RIP is complete, and `rip` follows it.
    #[inline]
    fn continue_at(&mut self, rip: u64) {
        let vmcb = &mut *self.vmcb;
        vmcb.save.rip = rip;
        vmcb.control.interrupt_state = InterruptState::new();
        if vmcb.save.rflags & (rflags::TF | rflags::RF) != 0 {
            self.end_instruction();
        }
    }

    /// What the end of an instruction does to RF, and with TF.
    #[cold]
    fn end_instruction(&mut self) {
        self.vmcb.save.rflags &= !rflags::RF;
        if self.vmcb.save.rflags & rflags::TF != 0 {
            self.raise(Exception::debug(DR6_BS));
        }
    }

    /// Queues an exception, merged with an event that is queued already.
    #[cold]
    fn raise(&mut self, exception: Exception) {
        let save = &mut self.vmcb.save;
        match exception.vector() {
            Exception::PF => {
                save.cr2 = exception.payload();
                self.changed(CleanBits::CR2);
            }
            Exception::DB => {
                save.dr6 |= exception.payload() & DEBUG_REASONS;
                save.dr7 &= !DR7_GD;
                self.changed(CleanBits::DEBUG_REGISTERS);
            }
            _ => {}
        }
        let first = queued_exception(self.vmcb.control.event_injection).map(Event::Exception);
        match merge(first.as_ref(), exception) {
            Merged::Deliver(exception) => {
                let protected = self.vmcb.save.cr0 & cr0::PE != 0;
                self.vmcb.control.event_injection = exception_word(exception, protected);
                self.vmcb.control.interrupt_state = InterruptState::new();
            }
            Merged::TripleFault => {
                self.vmcb.control.event_injection = EventWord::new();
                self.attention.insert(Attention::TRIPLE_FAULT);
            }
        }
    }

    /// Injects INT n and its kin. With next-RIP save the processor pushes nRIP, else RIP as it stands; APM 2 15.20.
    fn inject_software(&mut self, vector: u8, length: u8, kind: SoftwareKind) {
        let behind = self.code_size().advance(self.vmcb.save.rip, length.into());
        self.software_rip = self.vmcb.save.rip;
        // INT1 is a trap: its #DB pushes RIP as it stands, on all processors.
        if self.has(Features::NEXT_RIP) && kind != SoftwareKind::Privileged {
            self.vmcb.control.next_rip = behind;
        } else {
            self.vmcb.save.rip = behind;
        }
        self.attention.insert(Attention::SOFTWARE);
        let kind = match kind {
            SoftwareKind::Interrupt => EventKind::SOFTWARE,
            SoftwareKind::Exception | SoftwareKind::Privileged => EventKind::EXCEPTION,
        };
        self.vmcb.control.event_injection = EventWord::new().with_vector(vector).with_kind(kind).with_valid(true);
    }

    fn inject_nmi(&mut self) {
        if self.has(Features::VIRTUAL_NMI) {
            self.vmcb.control.interrupt_control.set_nmi_pending(true);
            return;
        }
        self.vmcb.control.event_injection =
            EventWord::new().with_vector(Exception::NMI).with_kind(EventKind::NMI).with_valid(true);
        self.nmi_masked = true;
        self.attention.remove(Attention::NMI_IRET);
        self.vmcb.control.intercept_3.set_iret(true);
        self.changed(CleanBits::INTERCEPTS);
    }

    fn segment_slot(&mut self, name: SegmentName) -> &mut VmcbSegment {
        let save = &mut self.vmcb.save;
        match name {
            SegmentName::Es => &mut save.es,
            SegmentName::Cs => &mut save.cs,
            SegmentName::Ss => &mut save.ss,
            SegmentName::Ds => &mut save.ds,
            SegmentName::Fs => &mut save.fs,
            SegmentName::Gs => &mut save.gs,
            SegmentName::Ldtr => &mut save.ldtr,
            SegmentName::Tr => &mut save.tr,
        }
    }
}

/// The exception in an event word, if it is a valid one.
fn queued_exception(word: EventWord) -> Option<Exception> {
    let code = word.has_error_code().then_some(word.error_code());
    (word.valid() && word.kind() == EventKind::EXCEPTION)
        .then(|| Exception::from_vector(word.vector(), code, 0))
        .flatten()
}

/// Real mode pushes no error codes.
fn exception_word(exception: Exception, protected: bool) -> EventWord {
    let code = exception.error_code().filter(|_| protected);
    EventWord::new()
        .with_vector(exception.vector())
        .with_kind(EventKind::EXCEPTION)
        .with_has_error_code(code.is_some())
        .with_error_code(code.unwrap_or(0))
        .with_valid(true)
}

/// Where an MSR lies in the VMCB; `None` for those that lie elsewhere, always or on some processors.
macro_rules! msr_field {
    ($save:expr, $msr:expr) => {
        match $msr {
            SystemMsr::Star => Some(&mut $save.star),
            SystemMsr::Lstar => Some(&mut $save.lstar),
            SystemMsr::Cstar => Some(&mut $save.cstar),
            SystemMsr::Sfmask => Some(&mut $save.sfmask),
            SystemMsr::KernelGsBase => Some(&mut $save.kernel_gs_base),
            SystemMsr::SysenterCs => Some(&mut $save.sysenter_cs),
            SystemMsr::SysenterEsp => Some(&mut $save.sysenter_esp),
            SystemMsr::SysenterEip => Some(&mut $save.sysenter_eip),
            SystemMsr::Pat => Some(&mut $save.guest_pat),
            SystemMsr::DebugCtl => Some(&mut $save.debug_control),
            SystemMsr::TscAux | SystemMsr::SpecCtrl => None,
        }
    };
}

impl Vcpu for SvmVcpu {
    #[inline(always)]
    fn complete(&mut self, resume: Resume) {
        match *resume.answer() {
            Answer::Enter => {}
            Answer::Advance(length) => self.advance(length),
            Answer::PortValue(length, width, value) => {
                let rax = &mut self.vmcb.save.rax;
                *rax = match width {
                    Width::Byte => *rax & !0xff | u64::from(value) & 0xff,
                    Width::Word => *rax & !0xffff | u64::from(value) & 0xffff,
                    Width::Dword | Width::Qword => value.into(),
                };
                self.advance(length);
            }
            Answer::Cpuid(length, answer) => {
                self.vmcb.save.rax = answer.eax.into();
                self.gprs.set(Gpr::Rbx, answer.ebx.into());
                self.gprs.set(Gpr::Rcx, answer.ecx.into());
                self.gprs.set(Gpr::Rdx, answer.edx.into());
                self.advance(length);
            }
            Answer::MsrValue(length, value) => {
                self.vmcb.save.rax = value & 0xffff_ffff;
                self.gprs.set(Gpr::Rdx, value >> 32);
                self.advance(length);
            }
            Answer::Jump(target) => self.continue_at(target),
            Answer::Inject(exception) => self.raise(exception),
        }
    }

    // Not inlined: an exit passes through memory, where it is read once, instead of being taken apart and put together byte by
    // byte.
    #[inline(never)]
    #[allow(unsafe_code)]
    fn run(&mut self) -> Result<Exit, EntryFailure> {
        loop {
            let tpr = match self.before_entry() {
                Ok(tpr) => tpr,
                Err(result) => return result,
            };
            if cfg!(debug_assertions) && self.violated().is_some() {
                return Err(self.refused());
            }
            let (physical, vmcb) = (self.vmcb.physical().0, self.vmcb.pointer());
            // SAFETY: the kernel runs a vCPU only where it is resident: ring 0, IF = 0, SVM enabled by `HostCpu::enable`, the
            // host's VMCB saved by `load`. `controls` intercepts what keeps the guest in, nested paging is on, and the
            // machine maps only the guest's memory.
            unsafe { (self.enter)(&mut self.gprs, physical, self.host_physical, vmcb) };
            let code = self.vmcb.control.exit();
            if code == ExitCode::INVALID {
                return Err(self.refused());
            }
            if self.after_exit(code, tpr) {
                continue;
            }
            if !is_ours(code) {
                return Ok(decode(&self.vmcb, &self.gprs));
            }
            if let Some(exit) = self.handle(code) {
                return Ok(exit);
            }
        }
    }

    #[allow(unsafe_code)]
    fn load(&mut self) {
        // SAFETY: the kernel loads vCPUs in ring 0 on CPUs that it has enabled.
        let is_here = |cpu: &Arc<HostCpu>| unsafe { cpu.is_current() };
        if !self.cpu.as_ref().is_some_and(is_here) {
            let here = self.shared.cpus.lock().iter().find(|cpu| is_here(cpu)).cloned();
            assert!(here.is_some(), "SVM is enabled on a CPU before a vCPU is loaded there");
            self.cpu = here;
            self.asid = None;
        }
        if let Some(cpu) = &self.cpu {
            let mut asids = cpu.asids.lock();
            let asid = asids.assign(self.asid);
            self.asid = Some(asid);
            self.vmcb.control.asid = asid.number;
            if asids.due() == Flush::All {
                self.attention.insert(Attention::FLUSH_ALL);
            }
            self.host_physical = cpu.host_physical();
            // SAFETY: this is that CPU, enabled.
            unsafe { cpu.save_host() };
            // SAFETY: likewise.
            unsafe { cpu.receive(self.identity) };
        }
        self.vmcb.control.clean = CleanBits::empty();
        // SAFETY: the kernel's promise in this module's head.
        unsafe { self.switched.load() };
    }

    #[allow(unsafe_code)]
    fn unload(&mut self) {
        // SAFETY: the kernel unloads where it has loaded.
        unsafe { self.switched.unload() };
    }

    #[inline]
    fn gpr(&self, register: Gpr) -> u64 {
        match register {
            Gpr::Rax => self.vmcb.save.rax,
            Gpr::Rsp => self.vmcb.save.rsp,
            _ => self.gprs.get(register),
        }
    }

    #[inline]
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        match register {
            Gpr::Rax => self.vmcb.save.rax = value,
            Gpr::Rsp => self.vmcb.save.rsp = value,
            _ => self.gprs.set(register, value),
        }
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.vmcb.save.rip
    }

    #[inline]
    fn rflags(&self) -> u64 {
        self.vmcb.save.rflags
    }

    #[inline]
    fn set_rflags(&mut self, value: u64) {
        self.vmcb.save.rflags = value | rflags::FIXED;
    }

    #[inline]
    fn code_size(&self) -> CodeSize {
        let save = &self.vmcb.save;
        CodeSize::of(save.efer, VmcbSegment::packed_to_attributes(save.cs.attributes))
    }

    #[inline]
    fn cpl(&self) -> u8 {
        self.vmcb.save.cpl & 3
    }

    fn segment(&self, name: SegmentName) -> Segment {
        let save = &self.vmcb.save;
        match name {
            SegmentName::Es => save.es,
            SegmentName::Cs => save.cs,
            SegmentName::Ss => save.ss,
            SegmentName::Ds => save.ds,
            SegmentName::Fs => save.fs,
            SegmentName::Gs => save.gs,
            SegmentName::Ldtr => save.ldtr,
            SegmentName::Tr => save.tr,
        }
        .to_segment()
    }

    fn gdtr(&self) -> DescriptorTable {
        let table = self.vmcb.save.gdtr;
        DescriptorTable { base: table.base, limit: table.limit as u16 }
    }

    fn idtr(&self) -> DescriptorTable {
        let table = self.vmcb.save.idtr;
        DescriptorTable { base: table.base, limit: table.limit as u16 }
    }

    #[inline]
    fn cr0(&self) -> u64 {
        self.vmcb.save.cr0
    }

    #[inline]
    fn cr2(&self) -> u64 {
        self.vmcb.save.cr2
    }

    #[inline]
    fn cr3(&self) -> u64 {
        self.vmcb.save.cr3
    }

    #[inline]
    fn cr4(&self) -> u64 {
        self.vmcb.save.cr4
    }

    #[inline]
    fn efer(&self) -> u64 {
        self.vmcb.save.efer & !efer::SVME
    }

    fn set_cr0(&mut self, value: u64) {
        let save = &mut self.vmcb.save;
        if (save.cr0 ^ value) & cr0::PG != 0 && save.efer & efer::LME != 0 {
            save.efer &= !efer::LMA;
            if value & cr0::PG != 0 {
                save.efer |= efer::LMA;
            }
        }
        save.cr0 = value;
        self.changed(CleanBits::CONTROL_REGISTERS);
        self.attention.insert(Attention::FLUSH | Attention::CHECK);
    }

    fn set_cr3(&mut self, value: u64) {
        self.vmcb.save.cr3 = value;
        self.changed(CleanBits::CONTROL_REGISTERS);
        self.attention.insert(Attention::FLUSH | Attention::CHECK);
    }

    fn set_cr4(&mut self, value: u64) {
        self.vmcb.save.cr4 = value;
        self.changed(CleanBits::CONTROL_REGISTERS);
        self.attention.insert(Attention::FLUSH | Attention::CHECK);
    }

    fn set_efer(&mut self, value: u64) {
        // NXE changes what cached translations mean.
        if (self.vmcb.save.efer ^ value) & efer::NXE != 0 {
            self.attention.insert(Attention::FLUSH);
        }
        self.vmcb.save.efer = value | efer::SVME;
        self.changed(CleanBits::CONTROL_REGISTERS);
        self.attention.insert(Attention::CHECK);
    }

    #[inline]
    fn xcr0(&self) -> u64 {
        self.switched.xcr0()
    }

    fn set_xcr0(&mut self, value: u64) {
        self.switched.set_xcr0(value);
    }

    fn system_msr(&self, msr: SystemMsr) -> u64 {
        let save = &self.vmcb.save;
        match msr {
            SystemMsr::Star => save.star,
            SystemMsr::Lstar => save.lstar,
            SystemMsr::Cstar => save.cstar,
            SystemMsr::Sfmask => save.sfmask,
            SystemMsr::KernelGsBase => save.kernel_gs_base,
            SystemMsr::SysenterCs => save.sysenter_cs,
            SystemMsr::SysenterEsp => save.sysenter_esp,
            SystemMsr::SysenterEip => save.sysenter_eip,
            SystemMsr::Pat => save.guest_pat,
            SystemMsr::DebugCtl => save.debug_control,
            SystemMsr::TscAux => self.switched.tsc_aux(),
            SystemMsr::SpecCtrl if self.has(Features::SPEC_CTRL_VIRTUALIZATION) => save.spec_ctrl,
            SystemMsr::SpecCtrl => self.switched.spec_ctrl(),
        }
    }

    fn set_system_msr(&mut self, msr: SystemMsr, value: u64) {
        let save = &mut self.vmcb.save;
        match msr_field!(save, msr) {
            Some(field) => *field = value,
            None if msr == SystemMsr::TscAux => self.switched.set_tsc_aux(value),
            None if self.shared.capability.has(Features::SPEC_CTRL_VIRTUALIZATION) => save.spec_ctrl = value,
            None => self.switched.set_spec_ctrl(value),
        }
        self.changed(CleanBits::NESTED_PAGING | CleanBits::LAST_BRANCH);
        self.attention.insert(Attention::CHECK);
    }

    fn vector(&self, number: u8) -> [u8; 32] {
        self.switched.vector(number)
    }

    fn set_vector(&mut self, number: u8, value: [u8; 32], bytes: u8) {
        self.switched.set_vector(number, value, bytes);
    }

    fn tsc(&self) -> u64 {
        instr::rdtsc().wrapping_add(self.vmcb.control.tsc_offset)
    }

    fn tsc_offset(&self) -> u64 {
        self.vmcb.control.tsc_offset
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.control.tsc_offset = offset;
        self.changed(CleanBits::INTERCEPTS);
    }

    /// SVM has no preemption timer: the host's alarm interrupt bounds runs.
    fn set_run_limit(&mut self, _host_tsc: Option<u64>) {}

    fn state(&self) -> ArchState {
        let save = &self.vmcb.save;
        let mut gprs = self.gprs;
        gprs.set(Gpr::Rax, save.rax);
        gprs.set(Gpr::Rsp, save.rsp);
        let mut msrs = SystemMsrs::default();
        for msr in SystemMsr::ALL {
            msrs.set(msr, self.system_msr(msr));
        }
        ArchState {
            gprs,
            rip: save.rip,
            rflags: save.rflags,
            segments: SegmentName::ALL.map(|name| self.segment(name)),
            gdtr: self.gdtr(),
            idtr: self.idtr(),
            cr0: save.cr0,
            cr2: save.cr2,
            cr3: save.cr3,
            cr4: save.cr4,
            efer: self.efer(),
            xcr0: self.xcr0(),
            dr: self.switched.breakpoints(),
            dr6: save.dr6,
            dr7: save.dr7,
            msrs,
        }
    }

    fn set_state(&mut self, state: &ArchState) {
        // Taken apart, so that a new field cannot be forgotten.
        let ArchState {
            gprs,
            rip,
            rflags: flags,
            segments,
            gdtr,
            idtr,
            cr0: cr0_value,
            cr2,
            cr3,
            cr4,
            efer: efer_value,
            xcr0,
            dr,
            dr6,
            dr7,
            msrs,
        } = state;
        self.gprs = *gprs;
        for (name, segment) in SegmentName::ALL.into_iter().zip(segments) {
            *self.segment_slot(name) = VmcbSegment::from_segment(segment);
        }
        let table = |table: &DescriptorTable| VmcbSegment {
            base: table.base,
            limit: table.limit.into(),
            ..VmcbSegment::default()
        };
        let save = &mut self.vmcb.save;
        save.gdtr = table(gdtr);
        save.idtr = table(idtr);
        save.rax = gprs.get(Gpr::Rax);
        save.rsp = gprs.get(Gpr::Rsp);
        save.rip = *rip;
        save.rflags = flags | rflags::FIXED;
        save.cr0 = *cr0_value;
        save.cr2 = *cr2;
        save.cr3 = *cr3;
        save.cr4 = *cr4;
        save.efer = efer_value | efer::SVME;
        save.dr6 = *dr6;
        save.dr7 = dr7 | DR7_FIXED;
        save.cpl = if cr0_value & cr0::PE == 0 {
            0
        } else if flags & rflags::VM != 0 {
            3
        } else {
            state.segment(SegmentName::Ss).attributes.dpl()
        };
        for msr in SystemMsr::ALL {
            self.set_system_msr(msr, msrs.get(msr));
        }
        self.switched.set_xcr0(*xcr0);
        self.switched.set_breakpoints(*dr);
        let control = &mut self.vmcb.control;
        self.shared.controls.apply(control);
        control.event_injection = EventWord::new();
        control.interrupt_state = InterruptState::new();
        control.clean = CleanBits::empty();
        self.nmi_masked = false;
        self.window = None;
        // A flush that is due because of the tables stays due.
        self.attention =
            self.attention & (Attention::FLUSH_ALL | Attention::FLUSH_ARMED) | Attention::FLUSH | Attention::CHECK;
    }

    #[inline]
    fn interrupt_window(&self) -> Window {
        let vmcb = &*self.vmcb;
        if vmcb.save.rflags & rflags::IF == 0
            || vmcb.control.event_injection.valid()
            || vmcb.control.interrupt_state.shadow()
            || self.attention.contains(Attention::TRIPLE_FAULT)
        {
            Window::Closed
        } else {
            Window::Open
        }
    }

    fn nmi_window(&self) -> Window {
        let control = &self.vmcb.control;
        let closed = if self.has(Features::VIRTUAL_NMI) {
            control.interrupt_control.nmi_pending()
        } else {
            self.nmi_masked || control.event_injection.valid() || control.interrupt_state.shadow()
        };
        if closed || self.attention.contains(Attention::TRIPLE_FAULT) { Window::Closed } else { Window::Open }
    }

    fn inject(&mut self, event: Event) {
        match event {
            Event::Interrupt(vector) => {
                self.vmcb.control.event_injection =
                    EventWord::new().with_vector(vector).with_kind(EventKind::INTERRUPT).with_valid(true);
            }
            Event::Nmi => self.inject_nmi(),
            Event::Exception(exception) => self.raise(exception),
            Event::Software { vector, length, kind } => self.inject_software(vector, length, kind),
        }
    }

    fn request_interrupt_window(&mut self, vector: Option<u8>) {
        self.window = vector;
        let class = vector.map_or(0, |vector| vector >> 4);
        let priority = if self.inclusive_priority { class.saturating_sub(1) } else { class };
        let control = &mut self.vmcb.control;
        control.interrupt_control =
            control.interrupt_control.with_irq(vector.is_some()).with_priority(priority).with_vector(0);
        control.intercept_3.set_vintr(vector.is_some());
        let guard = vector.is_some() && !self.shared.capability.has(Features::DECODE_ASSISTS);
        control.intercept_cr_writes = if guard { CR8_BIT } else { 0 };
        self.attention.set(Attention::CR8_GUARD, guard);
        self.changed(CleanBits::INTERCEPTS);
    }

    fn request_nmi_window(&mut self, wanted: bool) {
        self.attention.set(Attention::NMI_WANTED, wanted);
    }

    fn interrupt_delivery(&self) -> InterruptDelivery {
        InterruptDelivery::Software
    }

    /// Interrupts are delivered by the machine.
    fn evaluate_pending(&mut self) {}

    /// Interrupts are delivered by the machine.
    fn set_eoi_exits(&mut self, _vectors: [u64; 4]) {}

    /// Interrupts are delivered by the machine.
    fn set_x2apic(&mut self, _enabled: bool) {}
}

#[cfg(test)]
mod tests;
