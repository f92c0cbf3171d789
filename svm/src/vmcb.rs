//! The virtual machine control block as the processor lays it out.
//!
//! Manual: AMD APM volume 2 (24593, revision 3.42), appendix B "VMCB Layout", appendix C "SVM Intercept Exit Codes" and
//! 15.20 "Event Injection". Key types: [`Vmcb`] with its [`ControlArea`] and [`SaveArea`], the words inside them as
//! bitfields, and [`ExitCode`], which keeps values that nobody has named. Neighbours: `region` owns the page, `controls`
//! fills it, `decode` and `checks` read it. Nothing here knows what a value is good for.

use bitfield_struct::bitfield;
use core::mem::offset_of;
use vcpu::memory::Width;
use vcpu::{Segment, SegmentAttributes};

/// A whole VMCB: one page.
#[repr(C, align(4096))]
#[derive(Clone)]
pub struct Vmcb {
    /// What the hypervisor asks for, and what the exit reports.
    pub control: ControlArea,
    /// The guest's state.
    pub save: SaveArea,
}

/// APM 2 table B-1 "VMCB Layout, Control Area".
#[repr(C)]
#[derive(Clone)]
#[allow(missing_docs)]
pub struct ControlArea {
    pub intercept_cr_reads: u16,
    pub intercept_cr_writes: u16,
    pub intercept_dr_reads: u16,
    pub intercept_dr_writes: u16,
    /// One bit for each exception vector.
    pub intercept_exceptions: u32,
    pub intercept_3: Intercept3,
    pub intercept_4: Intercept4,
    pub intercept_5: Intercept5,
    reserved_018: [u8; 0x24],
    /// In TSC ticks between two PAUSE instructions that belong to one loop.
    pub pause_filter_threshold: u16,
    /// How many PAUSE instructions run before one exits.
    pub pause_filter_count: u16,
    pub iopm_base: u64,
    pub msrpm_base: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: TlbControl,
    reserved_05d: [u8; 3],
    pub interrupt_control: InterruptControl,
    pub interrupt_state: InterruptState,
    /// Read through [`ControlArea::exit`].
    pub exit_code: u64,
    pub exit_info_1: u64,
    pub exit_info_2: u64,
    /// The event whose delivery the exit interrupted.
    pub exit_interrupt_info: EventWord,
    pub nested_control: NestedControl,
    pub avic_apic_bar: u64,
    pub ghcb: u64,
    /// The event to deliver at the next VMRUN.
    pub event_injection: EventWord,
    pub nested_cr3: u64,
    pub virtualization_extensions: u64,
    pub clean: CleanBits,
    reserved_0c4: u32,
    /// Of the instruction after the one that exited, on processors that save it.
    pub next_rip: u64,
    /// How many of `instruction_bytes` count, 0 to 15.
    pub instruction_length: u8,
    pub instruction_bytes: [u8; 15],
    pub avic_backing_page: u64,
    reserved_0e8: u64,
    pub avic_logical_table: u64,
    pub avic_physical_table: u64,
    reserved_100: [u8; 0x300],
}

/// APM 2 table B-2 "VMCB Layout, State Save Area".
#[repr(C)]
#[derive(Clone)]
#[allow(missing_docs)]
pub struct SaveArea {
    pub es: VmcbSegment,
    pub cs: VmcbSegment,
    pub ss: VmcbSegment,
    pub ds: VmcbSegment,
    pub fs: VmcbSegment,
    pub gs: VmcbSegment,
    pub gdtr: VmcbSegment,
    pub ldtr: VmcbSegment,
    pub idtr: VmcbSegment,
    pub tr: VmcbSegment,
    reserved_0a0: [u8; 0x2b],
    pub cpl: u8,
    reserved_0cc: u32,
    pub efer: u64,
    reserved_0d8: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_180: [u8; 0x58],
    pub rsp: u64,
    pub s_cet: u64,
    pub ssp: u64,
    pub isst_address: u64,
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_248: [u8; 0x20],
    /// The guest's PAT under nested paging.
    pub guest_pat: u64,
    /// Loaded only where LBR virtualization is on; else storage.
    pub debug_control: u64,
    reserved_278: [u8; 0x68],
    /// The guest's SPEC_CTRL, on processors that virtualize it.
    pub spec_ctrl: u64,
    reserved_2e8: [u8; 0x918],
}

macro_rules! offsets {
    ($type:ty: $($field:ident = $offset:literal),* $(,)?) => {
        const _: () = { $(assert!(offset_of!($type, $field) == $offset);)* };
    };
}

const _: () = assert!(size_of::<Vmcb>() == 4096);
offsets!(Vmcb: control = 0, save = 0x400);
offsets!(ControlArea:
    intercept_cr_reads = 0x000, intercept_cr_writes = 0x002, intercept_dr_reads = 0x004, intercept_dr_writes = 0x006,
    intercept_exceptions = 0x008, intercept_3 = 0x00c, intercept_4 = 0x010, intercept_5 = 0x014,
    pause_filter_threshold = 0x03c, pause_filter_count = 0x03e, iopm_base = 0x040, msrpm_base = 0x048,
    tsc_offset = 0x050, asid = 0x058, tlb_control = 0x05c, interrupt_control = 0x060, interrupt_state = 0x068,
    exit_code = 0x070, exit_info_1 = 0x078, exit_info_2 = 0x080, exit_interrupt_info = 0x088, nested_control = 0x090,
    avic_apic_bar = 0x098, ghcb = 0x0a0, event_injection = 0x0a8, nested_cr3 = 0x0b0,
    virtualization_extensions = 0x0b8, clean = 0x0c0, next_rip = 0x0c8, instruction_length = 0x0d0,
    instruction_bytes = 0x0d1, avic_backing_page = 0x0e0, avic_logical_table = 0x0f0, avic_physical_table = 0x0f8,
);
offsets!(SaveArea:
    es = 0x000, cs = 0x010, ss = 0x020, ds = 0x030, fs = 0x040, gs = 0x050, gdtr = 0x060, ldtr = 0x070, idtr = 0x080,
    tr = 0x090, cpl = 0x0cb, efer = 0x0d0, cr4 = 0x148, cr3 = 0x150, cr0 = 0x158, dr7 = 0x160, dr6 = 0x168,
    rflags = 0x170, rip = 0x178, rsp = 0x1d8, s_cet = 0x1e0, ssp = 0x1e8, isst_address = 0x1f0, rax = 0x1f8,
    star = 0x200, lstar = 0x208, cstar = 0x210, sfmask = 0x218, kernel_gs_base = 0x220, sysenter_cs = 0x228,
    sysenter_esp = 0x230, sysenter_eip = 0x238, cr2 = 0x240, guest_pat = 0x268, debug_control = 0x270,
    spec_ctrl = 0x2e0,
);

impl ControlArea {
    /// Why the guest stopped. Only the low 32 bits of EXITCODE are looked at: QEMU before 10.0.13 writes no more, and no
    /// code needs more.
    #[inline]
    pub const fn exit(&self) -> ExitCode {
        ExitCode(self.exit_code as u32)
    }
}

/// The segment format of the VMCB; GDTR and IDTR use only limit and base.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct VmcbSegment {
    pub selector: u16,
    /// Bits 0-7 of [`SegmentAttributes`] in 0-7, its bits 12-15 in 8-11; APM 2 15.5.1 "Basic Operation".
    pub attributes: u16,
    /// Already scaled.
    pub limit: u32,
    pub base: u64,
}

const _: () = assert!(size_of::<VmcbSegment>() == 16);
offsets!(VmcbSegment: selector = 0, attributes = 2, limit = 4, base = 8);

/// The present bit, in either format.
const PRESENT: u32 = 1 << 7;
/// The granularity bit of [`SegmentAttributes`].
const GRANULARITY: u32 = 1 << 15;
/// [`SegmentAttributes::unusable`].
const UNUSABLE: u32 = 1 << 16;

impl VmcbSegment {
    /// The code segment's attributes as the contract has them; no more than [`vcpu::CodeSize::of`] needs.
    #[inline]
    pub const fn packed_to_attributes(packed: u16) -> SegmentAttributes {
        SegmentAttributes::from_bits((packed & 0xff) as u32 | ((packed & 0xf00) as u32) << 4)
    }

    /// As the contract has it. A segment that is not present is unusable, and G follows from the limit: some processors
    /// drop it, and none of them looks at it.
    pub const fn to_segment(self) -> Segment {
        let mut bits = Self::packed_to_attributes(self.attributes).into_bits() & !GRANULARITY;
        if self.limit > 0xf_ffff {
            bits |= GRANULARITY;
        }
        if bits & PRESENT == 0 {
            bits |= UNUSABLE;
        }
        Segment {
            selector: self.selector,
            attributes: SegmentAttributes::from_bits(bits),
            limit: self.limit,
            base: self.base,
        }
    }

    /// From the contract's form. An unusable segment becomes one that is not present.
    pub const fn from_segment(segment: &Segment) -> VmcbSegment {
        let mut bits = segment.attributes.into_bits();
        if bits & UNUSABLE != 0 {
            bits &= !PRESENT;
        }
        VmcbSegment {
            selector: segment.selector,
            attributes: (bits & 0xff | bits >> 4 & 0xf00) as u16,
            limit: segment.limit,
            base: segment.base,
        }
    }
}

/// Intercepts at offset 00Ch.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Intercept3 {
    pub intr: bool,
    pub nmi: bool,
    pub smi: bool,
    pub init: bool,
    pub vintr: bool,
    pub cr0_selective_write: bool,
    pub idtr_read: bool,
    pub gdtr_read: bool,
    pub ldtr_read: bool,
    pub tr_read: bool,
    pub idtr_write: bool,
    pub gdtr_write: bool,
    pub ldtr_write: bool,
    pub tr_write: bool,
    pub rdtsc: bool,
    pub rdpmc: bool,
    pub pushf: bool,
    pub popf: bool,
    pub cpuid: bool,
    pub rsm: bool,
    pub iret: bool,
    pub int_n: bool,
    pub invd: bool,
    pub pause: bool,
    pub hlt: bool,
    pub invlpg: bool,
    pub invlpga: bool,
    pub ioio: bool,
    pub msr: bool,
    pub task_switch: bool,
    pub ferr_freeze: bool,
    pub shutdown: bool,
}

/// Intercepts at offset 010h.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Intercept4 {
    pub vmrun: bool,
    pub vmmcall: bool,
    pub vmload: bool,
    pub vmsave: bool,
    pub stgi: bool,
    pub clgi: bool,
    pub skinit: bool,
    pub rdtscp: bool,
    pub icebp: bool,
    pub wbinvd: bool,
    pub monitor: bool,
    pub mwait: bool,
    pub mwait_armed: bool,
    pub xsetbv: bool,
    pub rdpru: bool,
    pub efer_write_trap: bool,
    pub cr_write_traps: u16,
}

/// Intercepts at offset 014h.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Intercept5 {
    pub invlpgb: bool,
    pub invlpgb_illegal: bool,
    pub invpcid: bool,
    pub mcommit: bool,
    pub tlbsync: bool,
    pub bus_lock: bool,
    pub idle_hlt: bool,
    #[bits(25)]
    __: u32,
}

/// Virtual interrupt control, offset 060h; APM 2 15.21 "Interrupt and Local APIC Support".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[allow(missing_docs)]
pub struct InterruptControl {
    /// V_TPR: the guest's CR8, in the low 4 bits.
    pub tpr: u8,
    /// V_IRQ: a virtual interrupt is pending.
    pub irq: bool,
    pub gif: bool,
    __: bool,
    /// V_NMI: a virtual NMI is pending.
    pub nmi_pending: bool,
    /// V_NMI_MASK: the guest is between an NMI and its IRET.
    pub nmi_masked: bool,
    #[bits(3)]
    __: u8,
    /// V_INTR_PRIO.
    #[bits(4)]
    pub priority: u8,
    /// V_IGN_TPR.
    pub ignore_tpr: bool,
    #[bits(3)]
    __: u8,
    /// V_INTR_MASKING: RFLAGS.IF and CR8 of the guest concern virtual interrupts only.
    pub masking: bool,
    pub gif_enable: bool,
    pub nmi_enable: bool,
    #[bits(3)]
    __: u8,
    pub x2avic_enable: bool,
    pub avic_enable: bool,
    /// V_INTR_VECTOR.
    pub vector: u8,
    #[bits(24)]
    __: u32,
}

/// Offset 068h.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InterruptState {
    /// The guest is right behind STI, MOV SS or POP SS; APM 2 15.21.5 "Interrupt Shadows".
    pub shadow: bool,
    /// RFLAGS.IF of an encrypted guest; never set here.
    pub guest_interrupt_mask: bool,
    #[bits(62)]
    __: u64,
}

/// Offset 090h.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NestedControl {
    pub nested_paging: bool,
    #[bits(63)]
    __: u64,
}

/// TLB_CONTROL, APM 2 15.16.2 "TLB Flush".
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlbControl(pub u8);

#[allow(missing_docs)]
impl TlbControl {
    pub const NOTHING: TlbControl = TlbControl(0);
    /// All entries of all ASIDs.
    pub const FLUSH_ALL: TlbControl = TlbControl(1);
    /// All entries of this guest's ASID; needs the flush-by-ASID feature.
    pub const FLUSH_ASID: TlbControl = TlbControl(3);
}

/// The format of EVENTINJ and EXITINTINFO, APM 2 15.20 "Event Injection".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EventWord {
    /// Vector.
    pub vector: u8,
    /// One of [`EventKind`].
    #[bits(3)]
    pub kind: EventKind,
    /// Whether `error_code` is pushed.
    pub has_error_code: bool,
    #[bits(19)]
    __: u32,
    /// Whether there is an event.
    pub valid: bool,
    /// The error code.
    pub error_code: u32,
}

/// TYPE of an [`EventWord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventKind(u8);

#[allow(missing_docs)]
impl EventKind {
    pub const INTERRUPT: EventKind = EventKind(0);
    pub const NMI: EventKind = EventKind(2);
    pub const EXCEPTION: EventKind = EventKind(3);
    pub const SOFTWARE: EventKind = EventKind(4);

    const fn into_bits(self) -> u8 {
        self.0
    }

    const fn from_bits(bits: u8) -> Self {
        EventKind(bits & 7)
    }
}

bitflags::bitflags! {
    /// VMCB clean bits, offset 0C0h: which groups of fields the hypervisor has not changed since the last exit of this VMCB on
    /// this processor. APM 2 15.15 "VMCB State Caching". Processors without the feature ignore the field.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CleanBits: u32 {
        /// Intercept vectors, TSC offset, pause filter.
        const INTERCEPTS = 1 << 0;
        /// Addresses of the permission maps.
        const PERMISSION_MAPS = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// Virtual interrupt control.
        const INTERRUPT = 1 << 3;
        /// Nested paging: nCR3, guest PAT.
        const NESTED_PAGING = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CONTROL_REGISTERS = 1 << 5;
        /// DR6, DR7.
        const DEBUG_REGISTERS = 1 << 6;
        /// GDTR, IDTR.
        const TABLES = 1 << 7;
        /// CS, DS, SS, ES, CPL.
        const SEGMENTS = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// DEBUGCTL and the last-branch records.
        const LAST_BRANCH = 1 << 10;
        /// AVIC pointers.
        const AVIC = 1 << 11;
    }
}

impl CleanBits {
    /// What may be called clean after an exit if no setter ran. The virtual interrupt control changes with nearly every
    /// entry (V_TPR), so it is never called clean.
    pub const AFTER_EXIT: CleanBits = CleanBits::all().difference(CleanBits::INTERRUPT);
}

/// EXITCODE, APM 2 appendix C "SVM Intercept Exit Codes".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExitCode(pub u32);

#[allow(missing_docs)]
impl ExitCode {
    pub const CR8_WRITE: ExitCode = ExitCode(0x018);
    /// Exception 0; the others follow by vector.
    pub const EXCEPTION: ExitCode = ExitCode(0x040);
    pub const DEBUG_EXCEPTION: ExitCode = ExitCode(0x041);
    pub const ALIGNMENT_CHECK: ExitCode = ExitCode(0x051);
    pub const MACHINE_CHECK: ExitCode = ExitCode(0x052);
    /// Exception 31.
    pub const LAST_EXCEPTION: ExitCode = ExitCode(0x05f);
    pub const INTR: ExitCode = ExitCode(0x060);
    pub const NMI: ExitCode = ExitCode(0x061);
    pub const SMI: ExitCode = ExitCode(0x062);
    pub const INIT: ExitCode = ExitCode(0x063);
    pub const VINTR: ExitCode = ExitCode(0x064);
    pub const RDPMC: ExitCode = ExitCode(0x06f);
    pub const CPUID: ExitCode = ExitCode(0x072);
    pub const RSM: ExitCode = ExitCode(0x073);
    pub const IRET: ExitCode = ExitCode(0x074);
    pub const INVD: ExitCode = ExitCode(0x076);
    pub const PAUSE: ExitCode = ExitCode(0x077);
    pub const HLT: ExitCode = ExitCode(0x078);
    pub const INVLPGA: ExitCode = ExitCode(0x07a);
    pub const IOIO: ExitCode = ExitCode(0x07b);
    pub const MSR: ExitCode = ExitCode(0x07c);
    pub const TASK_SWITCH: ExitCode = ExitCode(0x07d);
    pub const FERR_FREEZE: ExitCode = ExitCode(0x07e);
    pub const SHUTDOWN: ExitCode = ExitCode(0x07f);
    pub const VMRUN: ExitCode = ExitCode(0x080);
    pub const VMMCALL: ExitCode = ExitCode(0x081);
    pub const VMLOAD: ExitCode = ExitCode(0x082);
    pub const VMSAVE: ExitCode = ExitCode(0x083);
    pub const STGI: ExitCode = ExitCode(0x084);
    pub const CLGI: ExitCode = ExitCode(0x085);
    pub const SKINIT: ExitCode = ExitCode(0x086);
    pub const RDTSCP: ExitCode = ExitCode(0x087);
    pub const WBINVD: ExitCode = ExitCode(0x089);
    pub const MONITOR: ExitCode = ExitCode(0x08a);
    pub const MWAIT: ExitCode = ExitCode(0x08b);
    pub const MWAIT_ARMED: ExitCode = ExitCode(0x08c);
    pub const XSETBV: ExitCode = ExitCode(0x08d);
    pub const RDPRU: ExitCode = ExitCode(0x08e);
    pub const INVLPGB: ExitCode = ExitCode(0x0a0);
    pub const INVLPGB_ILLEGAL: ExitCode = ExitCode(0x0a1);
    pub const INVPCID: ExitCode = ExitCode(0x0a2);
    pub const MCOMMIT: ExitCode = ExitCode(0x0a3);
    pub const TLBSYNC: ExitCode = ExitCode(0x0a4);
    pub const NESTED_PAGE_FAULT: ExitCode = ExitCode(0x400);
    /// VMEXIT_INVALID, -1: the guest has not run.
    pub const INVALID: ExitCode = ExitCode(u32::MAX);
}

/// EXITINFO1 of an IOIO intercept, APM 2 15.10.2 "IN and OUT Behavior".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
#[allow(missing_docs)]
pub struct IoInfo {
    /// IN, else OUT.
    pub input: bool,
    __: bool,
    pub string: bool,
    pub repeat: bool,
    /// SZ8, SZ16 and SZ32, of which one is set: the bytes of an element.
    #[bits(3)]
    pub size: u8,
    #[bits(9)]
    __: u16,
    pub port: u16,
}

impl IoInfo {
    /// The width of an element, if there is exactly one.
    #[inline]
    pub const fn width(self) -> Option<Width> {
        match self.size() {
            1 => Some(Width::Byte),
            2 => Some(Width::Word),
            4 => Some(Width::Dword),
            _ => None,
        }
    }
}

/// EXITINFO1 of a nested page fault, APM 2 15.25.6 "Nested versus Guest Page Faults, Fault Ordering".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NestedFaultInfo {
    pub present: bool,
    pub write: bool,
    pub user: bool,
    pub reserved_bit: bool,
    pub fetch: bool,
    #[bits(27)]
    __: u32,
    /// While the final guest-physical address was translated.
    pub final_translation: bool,
    /// While the guest's own page tables were walked.
    pub table_walk: bool,
    #[bits(30)]
    __: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_keep_their_meaning_in_both_directions() {
        for (segment, packed) in [
            (Segment::flat_code64(8), 0xa9b),
            (Segment::flat_code32(8), 0xc9b),
            (Segment::flat_data(16), 0xc93),
            (Segment::real_mode(0xf000), 0x093),
            (Segment::busy_tss(0x1000), 0x08b),
        ] {
            let vmcb = VmcbSegment::from_segment(&segment);
            assert_eq!(vmcb.attributes, packed);
            assert_eq!(vmcb.to_segment(), segment);
        }
    }

    #[test]
    fn an_unusable_segment_is_not_present() {
        let null = Segment { selector: 0, attributes: SegmentAttributes::from_bits(0x1_0093), limit: 0, base: 0 };
        let vmcb = VmcbSegment::from_segment(&null);
        assert_eq!(vmcb.attributes, 0x013);
        assert!(vmcb.to_segment().attributes.unusable());
    }

    #[test]
    fn granularity_follows_the_limit() {
        let dropped = VmcbSegment { selector: 8, attributes: 0x29b, limit: u32::MAX, base: 0 };
        assert!(dropped.to_segment().attributes.granularity());
        let small = VmcbSegment { selector: 8, attributes: 0x8 << 8 | 0x9b, limit: 0xffff, base: 0 };
        assert!(!small.to_segment().attributes.granularity());
    }

    #[test]
    fn bits_stand_where_the_manual_has_them() {
        assert_eq!(InterruptControl::new().with_irq(true).into_bits(), 1 << 8);
        assert_eq!(InterruptControl::new().with_nmi_pending(true).into_bits(), 1 << 11);
        assert_eq!(InterruptControl::new().with_nmi_masked(true).into_bits(), 1 << 12);
        assert_eq!(InterruptControl::new().with_priority(0xf).into_bits(), 0xf << 16);
        assert_eq!(InterruptControl::new().with_ignore_tpr(true).into_bits(), 1 << 20);
        assert_eq!(InterruptControl::new().with_masking(true).into_bits(), 1 << 24);
        assert_eq!(InterruptControl::new().with_nmi_enable(true).into_bits(), 1 << 26);
        assert_eq!(InterruptControl::new().with_avic_enable(true).into_bits(), 1 << 31);
        assert_eq!(InterruptControl::new().with_vector(0xff).into_bits(), 0xff << 32);
        assert_eq!(Intercept3::new().with_cpuid(true).into_bits(), 1 << 18);
        assert_eq!(Intercept3::new().with_shutdown(true).into_bits(), 1 << 31);
        assert_eq!(Intercept4::new().with_xsetbv(true).into_bits(), 1 << 13);
        assert_eq!(Intercept5::new().with_tlbsync(true).into_bits(), 1 << 4);
        assert_eq!(IoInfo::new().with_size(4).with_port(0x3f8).into_bits(), 0x03f8_0040);
        assert_eq!(NestedFaultInfo::new().with_table_walk(true).into_bits(), 1 << 33);
    }

    #[test]
    fn an_event_word_is_what_the_manual_draws() {
        let page_fault = EventWord::new()
            .with_vector(14)
            .with_kind(EventKind::EXCEPTION)
            .with_has_error_code(true)
            .with_valid(true)
            .with_error_code(2);
        assert_eq!(page_fault.into_bits(), 0x0000_0002_8000_0b0e);
    }
}
