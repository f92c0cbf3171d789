//! Intel VT-x: virtual processors on VMX with extended page tables.
//!
//! Manual: Intel SDM 3C (December 2024, 325462-086), chapters 24 "Introduction to Virtual Machine Extensions" to 30 "APIC
//! Virtualization and Virtual Interrupts". Key types: [`Vmx`], the [`Backend`], and [`VmxVcpu`], a [`Vcpu`]. Neighbours:
//! `vcpu` is the contract; `kernel` detects and enables VMX and makes vCPUs; nothing here knows `machine` or the twin for
//! AMD.
//!
//! The files, in the twin's order: `capability` (what the processor has), `controls` (what is asked of it), `decode` (what an
//! exit means), `paging` and `vpid` (extended tables and their tags), `checks` (why an entry was refused), `entry` and
//! `instr` (assembly), `field` and `vmcs` (the control structure) and `region` (the memory). This file runs a vCPU: enter,
//! gather, re-queue, complete.
//!
//! What the kernel guarantees while a vCPU is resident: ring 0, RFLAGS.IF and DR7 clear, a TSS of the CPU's own, handlers for
//! NMI and machine check, no page faults of its own, and no use of vector registers, CR2, DR0-3, DR6, the system-call MSRs,
//! KERNEL_GS_BASE or TSC_AUX. vCPUs are made, visited and dropped on enabled CPUs.
//!
//! Limits: task switches and accesses to the virtualized APIC page that no instruction makes are reported, not executed;
//! posted interrupts are not used; a guest that moves its local APIC away from FEE0_0000h loses the virtualized accesses.

#![no_std]

extern crate alloc;

pub mod capability;
pub mod checks;
pub mod controls;
pub mod decode;
mod entry;
pub mod field;
mod instr;
pub mod paging;
mod region;
pub mod speculation;
mod vmcs;
pub mod vpid;

use crate::capability::{Capability, Features, Refusal};
use crate::checks::{DEBUGCTL_BTF, PENDING_SINGLE_STEP, interruptibility};
use crate::controls::{ApicVirtualization, Controls, MsrAccess, STRAIGHT, Shared as SharedBits, TSC_AUX};
use crate::decode::{ENTRY_FAILURE, EntryEvent, Gathered, Interruption, Needs, Reason, decode};
use crate::entry::{Context, Outcome, arrive, arrive_refilling};
use crate::field::Field;
use crate::paging::{ExtendedTables, extended_tables, root_table};
use crate::region::{Frame, FrameTables, GuestWords, HostCpu, MsrBitmap, Removals, Switched, apic_access_page};
use crate::vmcs::{Addresses, Current, Vmcs};
use crate::vpid::VpidPool;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;
use vcpu::memory::{Gpa, PAGE_SIZE, RegisterPage, Width};
use vcpu::speculation::{PRED_CMD, SPEC_CTRL};
use vcpu::{
    Answer, ApicBinding, ArchState, Backend, CodeSize, CreateError, Defences, DescriptorTable, EntryFailure, Event,
    Exception, Exit, FrameSource, Gpr, GuestFeatures, InterruptDelivery, Length, MemoryType, Merged, Permissions,
    RawExit, Resume, SecondLevel, Segment, SegmentAttributes, SegmentName, SoftwareKind, SystemMsr, SystemMsrs, Vcpu,
    VcpuConfig, Window, cr0, cr4, efer, merge, rflags,
};

/// Offset of TPR in the APIC page.
const TPR: usize = 0x80;
/// Offset of the first ISR register in the APIC page.
const ISR: usize = 0x100;
/// Offset of the first IRR register in the APIC page.
const IRR: usize = 0x200;
/// DR6 bits that the cause of a debug exception sets: B0 to B3.
const DR6_BREAKPOINTS: u64 = 0xf;
/// DR7.GD: an access to a debug register raises #DB; cleared when that is delivered.
const DR7_GD: u64 = 1 << 13;
/// Bits of DR7 that are always one.
const DR7_FIXED: u64 = 1 << 10;
/// CR3 bit 63 of a MOV that keeps translations, under CR4.PCIDE.
const CR3_KEEP: u64 = 1 << 63;
/// IA32_FLUSH_CMD, SDM 4 2.1 "Architectural MSRs".
const FLUSH_CMD: u32 = 0x10b;
/// FLUSH_CMD.L1D_FLUSH.
const L1D_FLUSH: u64 = 1 << 0;
/// The shortest run by the preemption timer, in host TSC ticks.
const LEAST_RUN: u64 = 1024;
/// The type of a busy 64-bit TSS.
const BUSY_TSS: u8 = 11;

/// The EOI-exit bitmap, 64 vectors each.
const EOI_EXITS: [Field<field::U64, field::Guest>; 4] =
    [field::EOI_EXIT_0, field::EOI_EXIT_1, field::EOI_EXIT_2, field::EOI_EXIT_3];

/// What all vCPUs and host CPUs share.
struct Shared {
    capability: Capability,
    controls: Controls,
    cr0: SharedBits,
    cr4: SharedBits,
    vpids: Mutex<VpidPool>,
    /// The CPUs that have been enabled.
    cpus: Mutex<Vec<Arc<HostCpu>>>,
    /// The identity of the vCPU that is made next.
    next_identity: AtomicU64,
}

/// VMX on this host, found usable.
pub struct Vmx {
    shared: Arc<Shared>,
}

impl Vmx {
    /// Looks at the processor that calls, in ring 0.
    ///
    /// # Errors
    /// Guests cannot run here; the refusal is a sentence for the user.
    #[allow(unsafe_code)]
    pub fn detect(apic: ApicVirtualization) -> Result<Vmx, Refusal> {
        // SAFETY: the kernel asks in ring 0.
        Vmx::new(unsafe { region::detect() }?, apic)
    }

    /// On a processor with `capability`. `apic` says whether it delivers interrupts by itself where it can.
    ///
    /// # Errors
    /// A control is missing that the hypervisor cannot do without.
    pub fn new(capability: Capability, apic: ApicVirtualization) -> Result<Vmx, Refusal> {
        let controls = Controls::derive(&capability, apic)?;
        let (cr0, cr4) = (SharedBits::cr0(&capability), SharedBits::cr4(&capability));
        let (vpids, cpus) = (Mutex::new(VpidPool::new()), Mutex::new(Vec::new()));
        let next_identity = AtomicU64::new(1);
        Ok(Vmx { shared: Arc::new(Shared { capability, controls, cr0, cr4, vpids, cpus, next_identity }) })
    }

    /// What the processor has; names for the boot log.
    pub fn capability(&self) -> &Capability {
        &self.shared.capability
    }
}

impl Backend for Vmx {
    type Vcpu = VmxVcpu;
    type SecondLevel = ExtendedTables<FrameTables>;

    const NAME: &'static str = "VMX";

    #[allow(unsafe_code)]
    fn enable(&self, frames: &Arc<dyn FrameSource>) -> Result<(), CreateError> {
        // SAFETY: `enable` is called by the kernel, in ring 0, on a CPU where nobody else uses VMX.
        let cpu = unsafe { HostCpu::enable(&self.shared.capability, frames) }?;
        self.shared.cpus.lock().push(Arc::new(cpu));
        log::debug!("VMX is on");
        Ok(())
    }

    fn guest_features(&self) -> GuestFeatures {
        let capability = &self.shared.capability;
        GuestFeatures {
            rdtscp: capability.has(Features::RDTSCP),
            invpcid: capability.has(Features::INVPCID),
            speculation: capability.speculation.guest,
        }
    }

    fn second_level(&self, frames: &Arc<dyn FrameSource>) -> Result<Self::SecondLevel, CreateError> {
        let (memory, root) = FrameTables::new(frames)?;
        let mut tables = extended_tables(memory, root, &self.shared.capability);
        if self.shared.controls.deliver_interrupts() {
            // Accesses to the local APIC must translate, to the very page that the VMCS names, to be virtualized.
            let access = Permissions::READ | Permissions::WRITE;
            let mapped =
                tables.map(Gpa(decode::APIC_BASE), apic_access_page(root), PAGE_SIZE, access, MemoryType::WriteBack);
            mapped.map_err(|_| vcpu::OutOfFrames)?;
        }
        Ok(tables)
    }

    #[allow(unsafe_code)]
    fn vcpu(&self, config: VcpuConfig<'_>) -> Result<VmxVcpu, CreateError> {
        let shared = self.shared.clone();
        let (capability, controls) = (&shared.capability, &shared.controls);
        let root = root_table(config.second_level_root);
        let bitmap = new_msr_bitmap(config.frames, capability)?;
        let switched = Switched::new(config.frames, capability)?;
        let vpid = OwnedVpid::take(&shared);
        let addresses = Addresses {
            msr_bitmap: bitmap.physical(),
            virtual_apic: config.apic.physical,
            apic_access: apic_access_page(root),
            ept_pointer: config.second_level_root,
            vpid: vpid.as_ref().map(|owned| owned.number),
        };
        let (revision, masks) = (capability.basic.revision(), (shared.cr0.mask(), shared.cr4.mask()));
        let refills = capability.speculation.defences.contains(Defences::RETURN_STACK_REFILL);
        let arrival = if refills { arrive_refilling } else { arrive };
        // SAFETY: the kernel makes vCPUs on enabled CPUs. The controls were settled to keep the guest in; the bitmap lives as
        // long as the VMCS and the APIC page as long as the machine; the tables map what the machine gave the guest.
        let vmcs = unsafe { Vmcs::new(config.frames, revision, controls, masks.0, masks.1, addresses, arrival) }?;
        // SAFETY: the root came from `second_level` over the same frames, and a VM's tables are freed after its vCPUs.
        let removals = unsafe { Removals::of(root, config.frames) };
        // SAFETY: likewise, and guest memory lies in the direct map, where the kernel finds all frames.
        let words = unsafe { GuestWords::of(config.second_level_root, config.frames) };
        let mut vcpu = VmxVcpu {
            context: Context::default(),
            due: Due::standing(capability),
            cpu: None,
            identity: shared.next_identity.fetch_add(1, Ordering::Relaxed),
            seen_removals: removals.count(),
            removals,
            deadline: None,
            reason: Reason::default(),
            rip: 0,
            cache: Cache::default(),
            windows: Windows::default(),
            queued: None,
            efer: 0,
            cr0_shadow: 0,
            cr4_shadow: 0,
            tsc_offset: 0,
            apic: config.apic,
            vmcs,
            switched,
            bitmap,
            words,
            _vpid: vpid,
            shared,
        };
        vcpu.set_state(&ArchState::reset(config.signature));
        Ok(vcpu)
    }
}

/// Everything exits but what is switched with the vCPU.
fn new_msr_bitmap(
    frames: &Arc<dyn FrameSource>,
    capability: &Capability,
) -> Result<Frame<MsrBitmap>, vcpu::OutOfFrames> {
    let mut bitmap = Frame::<MsrBitmap>::new(frames)?;
    bitmap.fill(0xff);
    let tsc_aux = capability.has(Features::RDTSCP).then_some(TSC_AUX);
    for msr in STRAIGHT.into_iter().chain(tsc_aux) {
        let_through(&mut bitmap, msr, MsrAccess::Read, true);
        let_through(&mut bitmap, msr, MsrAccess::Write, true);
    }
    if capability.speculation.passes_spec_ctrl() {
        let_through(&mut bitmap, SPEC_CTRL, MsrAccess::Read, true);
        let_through(&mut bitmap, SPEC_CTRL, MsrAccess::Write, true);
    }
    // A barrier slows down nobody but its CPU. The register cannot be read.
    let_through(&mut bitmap, PRED_CMD, MsrAccess::Write, capability.speculation.guest.barrier);
    Ok(bitmap)
}

fn let_through(bitmap: &mut MsrBitmap, msr: u32, access: MsrAccess, through: bool) {
    let Some(bit) = controls::msr_bit(msr, access) else { return };
    if let Some(byte) = bitmap.get_mut(bit / 8) {
        let mask = 1 << (bit % 8);
        *byte = if through { *byte & !mask } else { *byte | mask };
    }
}

/// A VPID that goes back when its vCPU goes.
struct OwnedVpid {
    number: u16,
    shared: Arc<Shared>,
}

impl OwnedVpid {
    fn take(shared: &Arc<Shared>) -> Option<OwnedVpid> {
        if !shared.capability.has(Features::VPID) {
            return None;
        }
        let number = shared.vpids.lock().take()?;
        Some(OwnedVpid { number, shared: shared.clone() })
    }
}

impl Drop for OwnedVpid {
    fn drop(&mut self) {
        self.shared.vpids.lock().give(self.number);
    }
}

bitflags::bitflags! {
    /// What an entry has to look at beyond the usual. Empty nearly always, so that one comparison is enough.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Due: u32 {
        /// An answer ended in a triple fault.
        const TRIPLE_FAULT = 1 << 0;
        /// An event is queued.
        const EVENT = 1 << 1;
        /// What this CPU holds under the vCPU's VPID must go.
        const FLUSH = 1 << 2;
        /// What this CPU holds under the VM's tables must go.
        const FLUSH_TABLES = 1 << 3;
        /// The entries that PAE paging keeps in registers must be read.
        const PDPTES = 1 << 4;
        /// The TPR threshold is not 0 and has to fit the guest's TPR.
        const THRESHOLD = 1 << 5;
        /// The first-level data cache has to be emptied, with the buffers. Stays.
        const L1D_FLUSH = 1 << 6;
        /// Buffers have to be emptied. Stays.
        const BUFFER_CLEAR = 1 << 7;
    }
}

impl Due {
    /// What is due before every entry on processors that need it.
    fn standing(capability: &Capability) -> Due {
        let defences = capability.speculation.defences;
        let mut due = Due::empty();
        due.set(Due::L1D_FLUSH, defences.contains(Defences::L1D_FLUSH));
        due.set(Due::BUFFER_CLEAR, defences.contains(Defences::BUFFER_CLEAR));
        due
    }
}

bitflags::bitflags! {
    /// Fields that have been read since the last exit.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Known: u32 {
        const RFLAGS = 1 << 0;
        const INTERRUPTIBILITY = 1 << 1;
        const CODE_RIGHTS = 1 << 2;
    }
}

/// Fields that an emulated instruction asks for more than once, read on first use.
#[derive(Default)]
struct Cache {
    known: Cell<Known>,
    rflags: Cell<u64>,
    interruptibility: Cell<u32>,
    code_rights: Cell<u32>,
}

impl Cache {
    #[inline(always)]
    fn get<T: Copy>(&self, which: Known, slot: &Cell<T>, read: impl FnOnce() -> T) -> T {
        if self.known.get().contains(which) {
            return slot.get();
        }
        let value = read();
        self.put(which, slot, value);
        value
    }

    #[inline(always)]
    fn put<T>(&self, which: Known, slot: &Cell<T>, value: T) {
        slot.set(value);
        self.known.set(self.known.get() | which);
    }

    #[inline(always)]
    fn forget(&self) {
        self.known.set(Known::empty());
    }
}

/// Which windows the machine waits for, and what was asked of the processor for it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Windows {
    /// The vector that wants in.
    interrupt: Option<u8>,
    /// The guest exits when it could take an interrupt.
    interrupt_armed: bool,
    /// The guest exits when it could take an NMI.
    nmi_armed: bool,
    /// The guest exits when its TPR falls below this class.
    threshold: u8,
}

impl Windows {
    /// What to ask of the processor for the interrupt that waits, with the guest's `tpr`: the window if TPR lets the
    /// vector's class through, else the threshold at which it will. Where the processor delivers interrupts, TPR is its
    /// business.
    fn armed_for(self, tpr: u8, delivers: bool) -> Windows {
        let class = self.interrupt.map_or(0, |vector| vector >> 4);
        let held = class != 0 && tpr >> 4 >= class && !delivers;
        Windows { interrupt_armed: self.interrupt.is_some() && !held, threshold: if held { class } else { 0 }, ..self }
    }
}

/// A virtual processor on VMX.
pub struct VmxVcpu {
    context: Context,
    vmcs: Vmcs,
    due: Due,
    /// The reason of the last exit.
    reason: Reason,
    /// RIP as the VMCS has it. Every exit is noted with it, so that it is read at every exit.
    rip: u64,
    seen_removals: u64,
    removals: Removals,
    /// Where the host's TSC ends this run.
    deadline: Option<u64>,
    cache: Cache,
    windows: Windows,
    /// With [`Due::EVENT`]: what the next entry delivers.
    queued: Option<Event>,
    /// The guest's. All writes of it exit, so that this is always right.
    efer: u64,
    /// What the guest sees of the bits that it does not own.
    cr0_shadow: u64,
    cr4_shadow: u64,
    tsc_offset: u64,
    apic: ApicBinding,
    switched: Switched,
    bitmap: Frame<MsrBitmap>,
    /// The CPU of the last residency, where barriers count.
    cpu: Option<Arc<HostCpu>>,
    /// Never another vCPU's, even after this one is gone.
    identity: u64,
    words: GuestWords,
    _vpid: Option<OwnedVpid>,
    shared: Arc<Shared>,
}

impl VmxVcpu {
    /// The rare work before an entry. An exit that needs no entry is returned.
    #[cold]
    fn prepare(&mut self) -> Option<Exit> {
        if self.due.contains(Due::TRIPLE_FAULT) {
            self.due.remove(Due::TRIPLE_FAULT);
            return Some(Exit::Shutdown);
        }
        if self.due.intersects(Due::FLUSH | Due::FLUSH_TABLES) {
            self.flush();
        }
        if self.due.contains(Due::PDPTES) {
            self.due.remove(Due::PDPTES);
            self.load_pdptes();
        }
        if self.due.contains(Due::THRESHOLD) {
            self.arm_interrupt_window();
        }
        if let Some(event) = self.queued {
            let vmcs = self.vmcs.current();
            let protected = vmcs.read(field::GUEST_CR0) & cr0::PE != 0;
            let words = EntryEvent::encode(event, protected);
            vmcs.write(field::ENTRY_INTERRUPTION, words.interruption.into_bits());
            vmcs.write(field::ENTRY_ERROR_CODE, words.error_code);
            vmcs.write(field::ENTRY_INSTRUCTION_LENGTH, words.length);
        }
        // Last, for what this function has read is better gone too.
        if self.due.intersects(Due::L1D_FLUSH | Due::BUFFER_CLEAR) {
            self.scrub();
        }
        None
    }

    /// Leaves nothing of the host or of other guests in cache or buffers, as the processor needs it.
    #[allow(unsafe_code)]
    fn scrub(&self) {
        if self.due.contains(Due::L1D_FLUSH) {
            // SAFETY: the register exists where the flush is due; an empty cache harms nobody.
            unsafe { instr::wrmsr(FLUSH_CMD, L1D_FLUSH) };
        }
        if self.due.contains(Due::BUFFER_CLEAR) {
            instr::clear_buffers();
        }
    }

    /// Drops translations. Without VPID every entry and exit does, so that only those of the tables' addresses remain:
    /// SDM 3C 29.4.3.1 "Operations that Invalidate Cached Mappings".
    fn flush(&mut self) {
        let capability = &self.shared.capability;
        let addresses = self.vmcs.addresses();
        if self.due.contains(Due::FLUSH_TABLES) {
            let done = instr::invept(capability.invept_kind() as u64, addresses.ept_pointer);
            assert!(done.is_ok(), "INVEPT of a kind that the processor has");
        } else if let Some(vpid) = addresses.vpid {
            let done = instr::invvpid(capability.invvpid_kind() as u64, vpid);
            assert!(done.is_ok(), "INVVPID of a kind that the processor has");
        }
        self.due.remove(Due::FLUSH | Due::FLUSH_TABLES);
    }

    /// A vCPU comes to a CPU that may hold translations of an earlier stay, or of an earlier owner of its VPID: combined
    /// ones go by INVEPT, linear ones by INVVPID.
    fn flush_all(&self) {
        let capability = &self.shared.capability;
        let addresses = self.vmcs.addresses();
        let done = instr::invept(capability.invept_kind() as u64, addresses.ept_pointer);
        assert!(done.is_ok(), "INVEPT of a kind that the processor has");
        if let Some(vpid) = addresses.vpid {
            let done = instr::invvpid(capability.invvpid_kind() as u64, vpid);
            assert!(done.is_ok(), "INVVPID of a kind that the processor has");
        }
    }

    /// On a CPU that ran another vCPU before, drops its branch predictions.
    #[allow(unsafe_code)]
    fn drop_predictions(&mut self, moved: bool) {
        if moved {
            let here = self.vmcs.host().tr_base;
            self.cpu = self.shared.cpus.lock().iter().find(|cpu| cpu.is_at(here)).cloned();
            assert!(self.cpu.is_some(), "VMX is on on a CPU before a vCPU is loaded there");
        }
        if let Some(cpu) = &self.cpu {
            // SAFETY: this is that CPU: the vCPU has not moved since it was found by its TSS.
            unsafe { cpu.receive(self.identity) };
        }
    }

    /// Under PAE paging the first level of the guest's tables lies in registers, which MOV to CR3 loads, and which an entry
    /// takes from the VMCS: SDM 3C 27.3.2.4 "Loading Page-Directory-Pointer-Table Entries".
    fn load_pdptes(&mut self) {
        let long = self.efer & efer::LMA != 0;
        if !checks::pae_paging(self.cr0(), self.cr4(), long) {
            return;
        }
        let vmcs = self.vmcs.current();
        // SDM 3A 4.4.1 "PDPTE Registers": 32-byte aligned, below 4 GiB.
        let table = vmcs.read(field::GUEST_CR3) & 0xffff_ffe0;
        for (number, entry) in field::PDPTES.into_iter().enumerate() {
            // What is not there is not present. The machine has checked the entries' reserved bits.
            let value = self.words.load(Gpa(table + 8 * number as u64)).unwrap_or(0);
            vmcs.write(entry, value);
        }
    }

    /// Has the preemption timer run out when the host's TSC reaches the deadline.
    #[inline(always)]
    fn set_timer(&self, deadline: u64) {
        let ticks = timer_ticks(deadline, instr::rdtsc(), self.shared.capability.misc.timer_shift());
        self.vmcs.current().write(field::PREEMPTION_TIMER, ticks);
    }

    /// Everything before the entry. An exit that needs no entry is returned.
    #[inline(always)]
    fn before_entry(&mut self) -> Option<Exit> {
        let removals = self.removals.count();
        if removals != self.seen_removals {
            self.seen_removals = removals;
            self.due.insert(Due::FLUSH_TABLES);
        }
        if !self.due.is_empty()
            && let Some(exit) = self.prepare()
        {
            return Some(exit);
        }
        if let Some(deadline) = self.deadline {
            self.set_timer(deadline);
        }
        None
    }

    /// Everything after an exit: gathers only what its reason needs.
    #[inline(always)]
    fn after_exit(&mut self, reason: Reason) -> Exit {
        let vmcs = self.vmcs.current();
        let needs = reason.needs();
        self.reason = reason;
        self.rip = vmcs.read(field::GUEST_RIP);
        let length = if needs.contains(Needs::LENGTH) { vmcs.read(field::EXIT_INSTRUCTION_LENGTH) } else { 0 };
        let qualification = if needs.contains(Needs::QUALIFICATION) { vmcs.read(field::EXIT_QUALIFICATION) } else { 0 };
        let address = if needs.contains(Needs::ADDRESS) { vmcs.read(field::GUEST_PHYSICAL_ADDRESS) } else { 0 };
        let mut gathered = Gathered { reason, length, qualification, address, ..Gathered::default() };
        if needs.intersects(Needs::RARE) {
            return self.after_rare_exit(gathered, needs);
        }
        if needs.contains(Needs::VECTORING) {
            self.settle_delivery(&mut gathered);
        }
        decode(&gathered, &self.context.gprs)
    }

    /// The same for exits that need more, or that the backend has itself to do something about.
    #[cold]
    #[inline(never)]
    fn after_rare_exit(&mut self, mut gathered: Gathered, needs: Needs) -> Exit {
        let vmcs = self.vmcs.current();
        if needs.contains(Needs::INTERRUPTION) {
            gathered.interruption = Interruption::from_bits(vmcs.read(field::EXIT_INTERRUPTION));
            gathered.error_code = vmcs.read(field::EXIT_ERROR_CODE);
        }
        if needs.contains(Needs::OPERANDS) {
            gathered.rsp = vmcs.read(field::GUEST_RSP);
            gathered.cr0 = self.cr0();
            gathered.wide = self.code_size() == CodeSize::Bits64;
        }
        if needs.contains(Needs::VECTORING) {
            self.settle_delivery(&mut gathered);
        }
        let exit = decode(&gathered, &self.context.gprs);
        match exit {
            // Bochs gives no exit for an interrupt where the guest was entered with its own off: what came waits until now.
            Exit::HostInterrupt | Exit::RunLimit => instr::take_interrupts(),
            Exit::HostNmi => instr::deliver_nmi(),
            Exit::HostSignal(_) => instr::deliver_machine_check(),
            Exit::InterruptWindow => self.request_interrupt_window(None),
            Exit::NmiWindow => self.request_nmi_window(false),
            _ => {}
        }
        exit
    }

    /// An event whose delivery the exit interrupted goes back into the queue, and blocking of NMIs that an undone IRET had
    /// ended comes back. SDM 3C 28.2.3 and 28.2.4.
    #[inline(always)]
    fn settle_delivery(&mut self, gathered: &mut Gathered) {
        let vectoring = Interruption::from_bits(self.vmcs.current().read(field::VECTORING));
        if vectoring.valid() {
            gathered.delivering = true;
            self.requeue(vectoring);
        } else if decode::undoes_nmi_unblocking(gathered, vectoring) {
            self.set_interruptibility(self.interruptibility() | interruptibility::NMI);
        }
    }

    #[cold]
    fn requeue(&mut self, vectoring: Interruption) {
        let vmcs = self.vmcs.current();
        let error_code = vmcs.read(field::VECTORING_ERROR_CODE);
        let length = vmcs.read(field::EXIT_INSTRUCTION_LENGTH);
        let Some(event) = decode::event(vectoring, error_code, length) else { return };
        if event == Event::Nmi {
            // Its delivery had blocked NMIs; the entry that delivers it again will.
            self.set_interruptibility(self.interruptibility() & !interruptibility::NMI);
        }
        self.queue(event);
    }

    /// Why the processor refused. `error` is the VM-instruction error or the exit reason.
    #[cold]
    fn refused(&self, error: u32) -> EntryFailure {
        let vmcs = self.vmcs.current();
        let raw = RawExit { code: error.into(), info1: vmcs.read(field::EXIT_QUALIFICATION), info2: 0 };
        let violated = self.violated_check().or(if error & ENTRY_FAILURE == 0 {
            decode::instruction_error(error)
        } else {
            decode::entry_failure(Reason(error as u16))
        });
        EntryFailure { raw, violated }
    }

    fn violated_check(&self) -> Option<&'static str> {
        let tpr = self.apic.page.load(TPR) as u8;
        let state = self.vmcs.current().entry_state(self.vmcs.host(), self.vmcs.addresses(), tpr);
        checks::violated(&state, &self.shared.capability)
    }

    #[inline(always)]
    fn interruptibility(&self) -> u32 {
        let read = || self.vmcs.read(field::GUEST_INTERRUPTIBILITY);
        self.cache.get(Known::INTERRUPTIBILITY, &self.cache.interruptibility, read)
    }

    fn set_interruptibility(&mut self, value: u32) {
        self.vmcs.write(field::GUEST_INTERRUPTIBILITY, value);
        self.cache.put(Known::INTERRUPTIBILITY, &self.cache.interruptibility, value);
    }

    #[inline(always)]
    fn code_rights(&self) -> SegmentAttributes {
        let read = || self.vmcs.read(field::GUEST_CS_RIGHTS);
        SegmentAttributes::from_bits(self.cache.get(Known::CODE_RIGHTS, &self.cache.code_rights, read))
    }

    /// The instruction at RIP is complete.
    #[inline(always)]
    fn advance(&mut self, length: Length) {
        let length = u64::from(length.bytes());
        let next = self.rip.wrapping_add(length);
        // Only an instruction that reaches over a multiple of 4 GiB can wrap.
        let wraps = (self.rip ^ next) >> 32 != 0;
        self.continue_at(if wraps { self.code_size().advance(self.rip, length) } else { next });
    }

    /// The instruction at RIP is complete, and `rip` follows it.
    #[inline(always)]
    fn continue_at(&mut self, rip: u64) {
        self.rip = rip;
        let vmcs = self.vmcs.current();
        vmcs.write(field::GUEST_RIP, rip);
        // Past the cache: to look there first costs more than it saves.
        if vmcs.read(field::GUEST_INTERRUPTIBILITY) & interruptibility::SHADOW != 0 {
            self.end_shadow();
        }
        if self.vmcs.current().read(field::GUEST_RFLAGS) & (rflags::TF | rflags::RF) != 0 {
            self.end_instruction();
        }
    }

    #[cold]
    fn end_shadow(&mut self) {
        self.set_interruptibility(self.interruptibility() & !interruptibility::SHADOW);
    }

    /// What the end of an instruction does to RF, and with TF: a single-step trap becomes due, which the next entry
    /// delivers. SDM 3C 27.7.3 "Delivery of Pending Debug Exceptions after VM Entry".
    #[cold]
    fn end_instruction(&mut self) {
        let flags = self.rflags();
        self.set_rflags(flags & !rflags::RF);
        let vmcs = self.vmcs.current();
        if flags & rflags::TF != 0 && vmcs.read(field::GUEST_DEBUGCTL) & DEBUGCTL_BTF == 0 {
            vmcs.write(field::GUEST_PENDING_DEBUG, vmcs.read(field::GUEST_PENDING_DEBUG) | PENDING_SINGLE_STEP);
        }
    }

    fn queue(&mut self, event: Event) {
        self.queued = Some(event);
        self.due.insert(Due::EVENT);
    }

    /// Queues an exception, merged with an event that is queued already.
    #[cold]
    fn raise(&mut self, exception: Exception) {
        let event = match merge(self.queued.as_ref(), exception) {
            Merged::Deliver(exception) => self.with_its_kind(exception),
            Merged::TripleFault => {
                self.queued = None;
                self.due.remove(Due::EVENT);
                self.due.insert(Due::TRIPLE_FAULT);
                return;
            }
        };
        match exception.vector() {
            Exception::PF => self.switched.set_cr2(exception.payload()),
            Exception::DB if exception.payload() != 0 => self.set_debug_cause(exception.payload()),
            // What hardware does when it raises a fault. INT3, INTO and double faults are none.
            Exception::DB | Exception::BP | Exception::OF | Exception::DF => {}
            _ => self.set_rflags(self.rflags() | rflags::RF),
        }
        // The shadow ends with the delivery.
        if self.interruptibility() & interruptibility::SHADOW != 0 {
            self.end_shadow();
        }
        self.queue(event);
    }

    /// An exception that INT1, INT3 or INTO raised and that was intercepted is raised as that: the frame's RIP lies behind
    /// the instruction then.
    fn with_its_kind(&self, exception: Exception) -> Event {
        if self.reason == Reason::EXCEPTION_OR_NMI {
            let vmcs = self.vmcs.current();
            let information = Interruption::from_bits(vmcs.read(field::EXIT_INTERRUPTION));
            let length = vmcs.read(field::EXIT_INSTRUCTION_LENGTH);
            if let Some(event @ Event::Software { vector, kind, .. }) = decode::event(information, 0, length)
                && vector == exception.vector()
                && kind != SoftwareKind::Interrupt
            {
                return event;
            }
        }
        Event::Exception(exception)
    }

    /// DR6 and DR7 as the delivery of a debug exception leaves them; an injected one changes neither by itself.
    fn set_debug_cause(&mut self, cause: u64) {
        let dr6 = self.switched.dr6() & !DR6_BREAKPOINTS | cause;
        self.switched.set_debug(self.switched.breakpoints(), dr6);
        let vmcs = self.vmcs.current();
        vmcs.write(field::GUEST_DR7, vmcs.read(field::GUEST_DR7) & !DR7_GD);
    }

    fn set_low(&mut self, register: Gpr, value: u32) {
        self.context.gprs.set(register, value.into());
    }

    /// Arms what tells when the interrupt that waits could be taken.
    fn arm_interrupt_window(&mut self) {
        let tpr = self.apic.page.load(TPR) as u8;
        let delivers = self.shared.controls.deliver_interrupts();
        self.write_windows(self.windows.armed_for(tpr, delivers));
    }

    #[inline]
    fn write_windows(&mut self, windows: Windows) {
        if windows != self.windows {
            self.change_windows(windows);
        }
    }

    #[cold]
    fn change_windows(&mut self, windows: Windows) {
        let visit = self.vmcs.visit();
        visit.write(field::TPR_THRESHOLD, windows.threshold.into());
        visit.set_windows(self.shared.controls.primary, windows.interrupt_armed, windows.nmi_armed);
        drop(visit);
        self.due.set(Due::THRESHOLD, windows.threshold != 0);
        self.windows = windows;
    }
}

/// The preemption timer's value for a run that starts `now` and ends at `deadline`, in host TSC ticks. A limit that has passed
/// leaves the guest [`LEAST_RUN`] all the same: one whose timer expires faster than an exit takes would stand still else.
#[inline(always)]
fn timer_ticks(deadline: u64, now: u64, shift: u8) -> u32 {
    let ticks = deadline.saturating_sub(now).max(LEAST_RUN) >> (shift & 31);
    // 0 would be no run at all: SDM 3C 27.7.4 "VMX-Preemption Timer".
    ticks.clamp(1, u32::MAX.into()) as u32
}

/// The highest vector that is set in the 256 bits at `offset` of an APIC page, or 0.
fn highest_vector(page: &RegisterPage, offset: usize) -> u8 {
    (0..8u8)
        .rev()
        .find_map(|word| {
            let bits = page.load(offset + 16 * usize::from(word));
            (bits != 0).then(|| word << 5 | (31 - bits.leading_zeros() as u8))
        })
        .unwrap_or(0)
}

/// Writes EFER and all that hangs on LMA.
fn write_efer(vmcs: Current<'_>, controls: &Controls, value: u64) {
    let long = value & efer::LMA != 0;
    vmcs.write(field::GUEST_EFER, value);
    vmcs.set_long_mode(controls.entry, long);
    if long {
        // The guest may have come here with a 16-bit TSS that it never uses; an entry in IA-32e mode wants a 64-bit one.
        let rights = field::SEGMENTS[SegmentName::Tr as usize].rights;
        let attributes = SegmentAttributes::from_bits(vmcs.read(rights));
        vmcs.write(rights, attributes.with_kind(BUSY_TSS).into_bits());
    }
}

fn gdtr(vmcs: Current<'_>) -> DescriptorTable {
    DescriptorTable { base: vmcs.read(field::GUEST_GDTR_BASE), limit: vmcs.read(field::GUEST_GDTR_LIMIT) as u16 }
}

fn idtr(vmcs: Current<'_>) -> DescriptorTable {
    DescriptorTable { base: vmcs.read(field::GUEST_IDTR_BASE), limit: vmcs.read(field::GUEST_IDTR_LIMIT) as u16 }
}

/// An MSR that the VMCS holds. The others are [`Switched`]'s.
fn vmcs_msr(vmcs: Current<'_>, msr: SystemMsr) -> u64 {
    match msr {
        SystemMsr::SysenterCs => vmcs.read(field::GUEST_SYSENTER_CS).into(),
        SystemMsr::SysenterEsp => vmcs.read(field::GUEST_SYSENTER_ESP),
        SystemMsr::SysenterEip => vmcs.read(field::GUEST_SYSENTER_EIP),
        SystemMsr::Pat => vmcs.read(field::GUEST_PAT),
        SystemMsr::DebugCtl => vmcs.read(field::GUEST_DEBUGCTL),
        SystemMsr::Star
        | SystemMsr::Lstar
        | SystemMsr::Cstar
        | SystemMsr::Sfmask
        | SystemMsr::KernelGsBase
        | SystemMsr::TscAux
        | SystemMsr::SpecCtrl => 0,
    }
}

fn set_vmcs_msr(vmcs: Current<'_>, msr: SystemMsr, value: u64) {
    match msr {
        SystemMsr::SysenterCs => vmcs.write(field::GUEST_SYSENTER_CS, value as u32),
        SystemMsr::SysenterEsp => vmcs.write(field::GUEST_SYSENTER_ESP, value),
        SystemMsr::SysenterEip => vmcs.write(field::GUEST_SYSENTER_EIP, value),
        SystemMsr::Pat => vmcs.write(field::GUEST_PAT, value),
        SystemMsr::DebugCtl => vmcs.write(field::GUEST_DEBUGCTL, value),
        SystemMsr::Star
        | SystemMsr::Lstar
        | SystemMsr::Cstar
        | SystemMsr::Sfmask
        | SystemMsr::KernelGsBase
        | SystemMsr::TscAux
        | SystemMsr::SpecCtrl => {}
    }
}

impl Vcpu for VmxVcpu {
    #[inline]
    fn complete(&mut self, resume: Resume) {
        match *resume.answer() {
            Answer::Enter => {}
            Answer::Advance(length) => self.advance(length),
            Answer::PortValue(length, width, value) => {
                let rax = self.context.gprs.get(Gpr::Rax);
                let merged = match width {
                    Width::Byte | Width::Word => rax & !width.mask() | u64::from(value) & width.mask(),
                    Width::Dword | Width::Qword => value.into(),
                };
                self.context.gprs.set(Gpr::Rax, merged);
                self.advance(length);
            }
            Answer::Cpuid(length, answer) => {
                self.set_low(Gpr::Rax, answer.eax);
                self.set_low(Gpr::Rbx, answer.ebx);
                self.set_low(Gpr::Rcx, answer.ecx);
                self.set_low(Gpr::Rdx, answer.edx);
                self.advance(length);
            }
            Answer::MsrValue(length, value) => {
                self.set_low(Gpr::Rax, value as u32);
                self.set_low(Gpr::Rdx, (value >> 32) as u32);
                self.advance(length);
            }
            Answer::Jump(target) => self.continue_at(target),
            Answer::Inject(exception) => self.raise(exception),
        }
    }

    fn run(&mut self) -> Result<Exit, EntryFailure> {
        if let Some(exit) = self.before_entry() {
            return Ok(exit);
        }
        if cfg!(debug_assertions)
            && let Some(violated) = self.violated_check()
        {
            let raw = RawExit { code: (ENTRY_FAILURE | 33).into(), ..RawExit::default() };
            return Err(EntryFailure { raw, violated: Some(violated) });
        }
        let outcome = self.vmcs.enter(&mut self.context);
        self.cache.forget();
        match outcome {
            Outcome::Exited => {}
            Outcome::FailValid => {
                let error = self.vmcs.current().read(field::INSTRUCTION_ERROR);
                return Err(self.refused(error));
            }
            Outcome::FailInvalid => return Err(self.refused(0)),
        }
        let reason = self.vmcs.current().read(field::EXIT_REASON);
        if reason & ENTRY_FAILURE != 0 {
            return Err(self.refused(reason));
        }
        self.vmcs.entered();
        self.queued = None;
        self.due.remove(Due::EVENT);
        Ok(self.after_exit(Reason(reason as u16)))
    }

    #[allow(unsafe_code)]
    fn load(&mut self) {
        // SAFETY: the kernel's promise in this module's head.
        let moved = unsafe { self.vmcs.load() };
        if moved {
            self.flush_all();
        }
        if self.shared.capability.speculation.defences.contains(Defences::PREDICTOR_BARRIER) {
            self.drop_predictions(moved);
        }
        // SAFETY: the kernel's promise in this module's head.
        unsafe { self.switched.load() };
    }

    #[allow(unsafe_code)]
    fn unload(&mut self) {
        // SAFETY: the kernel unloads where it has loaded.
        unsafe { self.switched.unload() };
        // SAFETY: likewise.
        unsafe { self.vmcs.unload() };
        self.cache.forget();
    }

    #[inline]
    fn gpr(&self, register: Gpr) -> u64 {
        match register {
            Gpr::Rsp => self.vmcs.read(field::GUEST_RSP),
            _ => self.context.gprs.get(register),
        }
    }

    #[inline]
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        match register {
            Gpr::Rsp => self.vmcs.write(field::GUEST_RSP, value),
            _ => self.context.gprs.set(register, value),
        }
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.rip
    }

    #[inline]
    fn rflags(&self) -> u64 {
        self.cache.get(Known::RFLAGS, &self.cache.rflags, || self.vmcs.read(field::GUEST_RFLAGS))
    }

    #[inline]
    fn set_rflags(&mut self, value: u64) {
        let value = value | rflags::FIXED;
        self.vmcs.write(field::GUEST_RFLAGS, value);
        self.cache.put(Known::RFLAGS, &self.cache.rflags, value);
    }

    #[inline]
    fn code_size(&self) -> CodeSize {
        CodeSize::of(self.efer, self.code_rights())
    }

    #[inline]
    fn cpl(&self) -> u8 {
        // SDM 3C 25.4.1: the DPL of SS is the privilege level, in every mode.
        SegmentAttributes::from_bits(self.vmcs.read(field::GUEST_SS_RIGHTS)).dpl()
    }

    fn segment(&self, name: SegmentName) -> Segment {
        self.vmcs.visit().segment(name)
    }

    fn gdtr(&self) -> DescriptorTable {
        gdtr(*self.vmcs.visit())
    }

    fn idtr(&self) -> DescriptorTable {
        idtr(*self.vmcs.visit())
    }

    #[inline]
    fn cr0(&self) -> u64 {
        self.shared.cr0.seen(self.vmcs.read(field::GUEST_CR0), self.cr0_shadow)
    }

    #[inline]
    fn cr2(&self) -> u64 {
        self.switched.cr2()
    }

    #[inline]
    fn cr3(&self) -> u64 {
        self.vmcs.read(field::GUEST_CR3)
    }

    #[inline]
    fn cr4(&self) -> u64 {
        self.shared.cr4.seen(self.vmcs.read(field::GUEST_CR4), self.cr4_shadow)
    }

    #[inline]
    fn efer(&self) -> u64 {
        self.efer
    }

    fn set_cr0(&mut self, value: u64) {
        let before = self.cr0();
        self.vmcs.write(field::GUEST_CR0, self.shared.cr0.real(value));
        self.vmcs.write(field::CR0_SHADOW, value);
        self.cr0_shadow = value;
        if (before ^ value) & cr0::PG != 0 {
            let mut efer_value = self.efer & !efer::LMA;
            if value & cr0::PG != 0 && self.efer & efer::LME != 0 {
                efer_value |= efer::LMA;
            }
            self.set_efer(efer_value);
        }
        // MOV to CR0 drops translations when it changes PG; WP and CD are looked at anew by every walk.
        self.due.insert(Due::FLUSH | Due::PDPTES);
    }

    fn set_cr3(&mut self, value: u64) {
        let keeps = value & CR3_KEEP != 0 && self.cr4() & cr4::PCIDE != 0;
        self.vmcs.write(field::GUEST_CR3, value & !CR3_KEEP);
        self.due.insert(if keeps { Due::PDPTES } else { Due::FLUSH | Due::PDPTES });
    }

    fn set_cr4(&mut self, value: u64) {
        self.vmcs.write(field::GUEST_CR4, self.shared.cr4.real(value));
        self.vmcs.write(field::CR4_SHADOW, value);
        self.cr4_shadow = value;
        self.due.insert(Due::FLUSH | Due::PDPTES);
    }

    fn set_efer(&mut self, value: u64) {
        // NXE changes what cached translations mean, LMA how they are made.
        if (self.efer ^ value) & (efer::NXE | efer::LMA) != 0 {
            self.due.insert(Due::FLUSH | Due::PDPTES);
        }
        write_efer(*self.vmcs.visit(), &self.shared.controls, value);
        self.efer = value;
    }

    #[inline]
    fn xcr0(&self) -> u64 {
        self.switched.xcr0()
    }

    fn set_xcr0(&mut self, value: u64) {
        self.switched.set_xcr0(value);
    }

    fn system_msr(&self, msr: SystemMsr) -> u64 {
        self.switched.msr(msr).unwrap_or_else(|| vmcs_msr(*self.vmcs.visit(), msr))
    }

    fn set_system_msr(&mut self, msr: SystemMsr, value: u64) {
        if !self.switched.set_msr(msr, value) {
            set_vmcs_msr(*self.vmcs.visit(), msr, value);
        }
    }

    fn vector(&self, number: u8) -> [u8; 32] {
        self.switched.vector(number)
    }

    fn set_vector(&mut self, number: u8, value: [u8; 32], bytes: u8) {
        self.switched.set_vector(number, value, bytes);
    }

    #[inline]
    fn tsc(&self) -> u64 {
        instr::rdtsc().wrapping_add(self.tsc_offset)
    }

    fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
        self.vmcs.visit().write(field::TSC_OFFSET, self.tsc_offset);
    }

    fn set_run_limit(&mut self, host_tsc: Option<u64>) {
        if !self.shared.capability.has(Features::PREEMPTION_TIMER) {
            return;
        }
        if host_tsc.is_none() && self.deadline.is_some() {
            self.vmcs.visit().write(field::PREEMPTION_TIMER, u32::MAX);
        }
        self.deadline = host_tsc;
    }

    fn state(&self) -> ArchState {
        let visit = self.vmcs.visit();
        let vmcs = *visit;
        let mut gprs = self.context.gprs;
        gprs.set(Gpr::Rsp, vmcs.read(field::GUEST_RSP));
        let mut msrs = SystemMsrs::default();
        for msr in SystemMsr::ALL {
            msrs.set(msr, self.switched.msr(msr).unwrap_or_else(|| vmcs_msr(vmcs, msr)));
        }
        ArchState {
            gprs,
            rip: self.rip,
            rflags: vmcs.read(field::GUEST_RFLAGS),
            segments: SegmentName::ALL.map(|name| vmcs.segment(name)),
            gdtr: gdtr(vmcs),
            idtr: idtr(vmcs),
            cr0: self.shared.cr0.seen(vmcs.read(field::GUEST_CR0), self.cr0_shadow),
            cr2: self.switched.cr2(),
            cr3: vmcs.read(field::GUEST_CR3),
            cr4: self.shared.cr4.seen(vmcs.read(field::GUEST_CR4), self.cr4_shadow),
            efer: self.efer,
            xcr0: self.switched.xcr0(),
            dr: self.switched.breakpoints(),
            dr6: self.switched.dr6(),
            dr7: vmcs.read(field::GUEST_DR7),
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
            cr4: cr4_value,
            efer: efer_value,
            xcr0,
            dr,
            dr6,
            dr7,
            msrs,
        } = state;
        let visit = self.vmcs.visit();
        let vmcs = *visit;
        vmcs.write(field::GUEST_RSP, gprs.get(Gpr::Rsp));
        vmcs.write(field::GUEST_RIP, *rip);
        vmcs.write(field::GUEST_RFLAGS, flags | rflags::FIXED);
        for (name, segment) in SegmentName::ALL.into_iter().zip(segments) {
            vmcs.set_segment(name, segment);
        }
        vmcs.write(field::GUEST_GDTR_BASE, gdtr.base);
        vmcs.write(field::GUEST_GDTR_LIMIT, gdtr.limit.into());
        vmcs.write(field::GUEST_IDTR_BASE, idtr.base);
        vmcs.write(field::GUEST_IDTR_LIMIT, idtr.limit.into());
        vmcs.write(field::GUEST_CR0, self.shared.cr0.real(*cr0_value));
        vmcs.write(field::CR0_SHADOW, *cr0_value);
        vmcs.write(field::GUEST_CR3, *cr3);
        vmcs.write(field::GUEST_CR4, self.shared.cr4.real(*cr4_value));
        vmcs.write(field::CR4_SHADOW, *cr4_value);
        write_efer(vmcs, &self.shared.controls, *efer_value);
        // SDM 3C 27.3.1.1: bits 63:32 are zero.
        vmcs.write(field::GUEST_DR7, dr7 & 0xffff_ffff | DR7_FIXED);
        for msr in SystemMsr::ALL {
            if !self.switched.set_msr(msr, msrs.get(msr)) {
                set_vmcs_msr(vmcs, msr, msrs.get(msr));
            }
        }
        vmcs.write(field::GUEST_ACTIVITY, 0);
        vmcs.write(field::GUEST_INTERRUPTIBILITY, 0);
        vmcs.write(field::GUEST_PENDING_DEBUG, 0);
        vmcs.write(field::ENTRY_INTERRUPTION, 0);
        vmcs.write(field::TPR_THRESHOLD, 0);
        vmcs.set_windows(self.shared.controls.primary, false, false);
        if self.shared.capability.has(Features::PREEMPTION_TIMER) {
            vmcs.write(field::PREEMPTION_TIMER, u32::MAX);
        }
        if self.shared.controls.deliver_interrupts() {
            vmcs.write(field::GUEST_INTERRUPT_STATUS, 0);
            // Until the machine says which EOIs concern it, all of them do.
            EOI_EXITS.into_iter().for_each(|field| vmcs.write(field, !0));
        }
        self.context.gprs = *gprs;
        self.rip = *rip;
        (self.efer, self.cr0_shadow, self.cr4_shadow) = (*efer_value, *cr0_value, *cr4_value);
        self.switched.set_cr2(*cr2);
        self.switched.set_xcr0(*xcr0);
        self.switched.set_debug(*dr, *dr6);
        drop(visit);
        self.cache.forget();
        self.queued = None;
        self.windows = Windows::default();
        self.due = Due::FLUSH | Due::PDPTES | Due::standing(&self.shared.capability);
    }

    #[inline]
    fn interrupt_window(&self) -> Window {
        let closed = self.rflags() & rflags::IF == 0
            || self.due.intersects(Due::EVENT | Due::TRIPLE_FAULT)
            || self.interruptibility() & interruptibility::SHADOW != 0;
        if closed { Window::Closed } else { Window::Open }
    }

    fn nmi_window(&self) -> Window {
        let blocking = interruptibility::SHADOW | interruptibility::NMI;
        let closed = self.due.intersects(Due::EVENT | Due::TRIPLE_FAULT) || self.interruptibility() & blocking != 0;
        if closed { Window::Closed } else { Window::Open }
    }

    fn inject(&mut self, event: Event) {
        match event {
            Event::Exception(exception) => self.raise(exception),
            Event::Interrupt(_) | Event::Nmi | Event::Software { .. } => self.queue(event),
        }
    }

    #[inline]
    fn request_interrupt_window(&mut self, vector: Option<u8>) {
        if vector.is_none() && self.windows.interrupt.is_none() {
            return;
        }
        self.windows.interrupt = vector;
        self.arm_interrupt_window();
    }

    fn request_nmi_window(&mut self, wanted: bool) {
        self.write_windows(Windows { nmi_armed: wanted, ..self.windows });
    }

    fn interrupt_delivery(&self) -> InterruptDelivery {
        if self.shared.controls.deliver_interrupts() {
            InterruptDelivery::Hardware
        } else {
            InterruptDelivery::Software
        }
    }

    /// Tells the processor what the APIC page holds: the highest vector in service and the highest that is requested. SDM 3C
    /// 25.4.2 "Guest Non-Register State", guest interrupt status.
    fn evaluate_pending(&mut self) {
        if self.shared.controls.deliver_interrupts() {
            let page = &self.apic.page;
            let status = u16::from(highest_vector(page, ISR)) << 8 | u16::from(highest_vector(page, IRR));
            self.vmcs.write(field::GUEST_INTERRUPT_STATUS, status);
        }
    }

    fn set_eoi_exits(&mut self, vectors: [u64; 4]) {
        if self.shared.controls.deliver_interrupts() {
            let vmcs = self.vmcs.visit();
            for (field, bits) in EOI_EXITS.into_iter().zip(vectors) {
                vmcs.write(field, bits);
            }
        }
    }

    #[allow(unsafe_code)]
    fn set_x2apic(&mut self, enabled: bool) {
        let controls = &self.shared.controls;
        if !controls.deliver_interrupts() {
            return;
        }
        let secondary = controls.secondary_for(enabled);
        let through = secondary.contains(controls::Secondary::VIRTUAL_X2APIC);
        for (msr, access) in controls::x2apic_accesses() {
            let_through(&mut self.bitmap, msr, access, through);
        }
        // SAFETY: settled for this processor; the bitmap lets through only what this very setting virtualizes.
        unsafe { self.vmcs.set_secondary(secondary) };
    }
}

#[cfg(test)]
mod tests;
