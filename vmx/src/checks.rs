//! The checks that the processor makes before it enters a guest, in words.
//!
//! Manual: Intel SDM 3C (December 2024, 325462-086), 27.2 "Checks on VMX Controls and Host-State Area" and 27.3 "Checking
//! and Loading Guest State". Key types: [`EntryState`], everything that they look at, and [`violated`]. Neighbours: `lib`
//! gathers the state after a refused entry, and before every entry in debug builds. Checks of what this backend never
//! uses (SMM, shadowing, posted interrupts, CET, enclaves) are left to the processor. Nothing here touches the processor.

use crate::capability::Capability;
use crate::controls::{Entry, Exit, Pin, Primary, Secondary};
use crate::decode::Interruption;
use vcpu::{Segment, SegmentName, cr0, cr4, efer, rflags};

/// What the VMCS says, as far as the checks look at it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct EntryState {
    pub controls: ControlState,
    pub host: HostState,
    pub guest: GuestState,
}

/// Control fields.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ControlState {
    pub pin: Pin,
    pub primary: Primary,
    pub secondary: Secondary,
    pub exit: Exit,
    pub entry: Entry,
    pub cr3_targets: u32,
    pub msr_bitmap: u64,
    pub virtual_apic: u64,
    pub apic_access: u64,
    pub tpr_threshold: u32,
    /// The task-priority register in the virtual-APIC page.
    pub task_priority: u8,
    pub ept_pointer: u64,
    pub vpid: u16,
    pub interruption: Interruption,
    pub error_code: u32,
    pub instruction_length: u32,
}

/// What the processor loads at an exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct HostState {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub pat: u64,
    pub es: u16,
    pub cs: u16,
    pub ss: u16,
    pub ds: u16,
    pub fs: u16,
    pub gs: u16,
    pub tr: u16,
    pub fs_base: u64,
    pub gs_base: u64,
    pub tr_base: u64,
    pub gdtr_base: u64,
    pub idtr_base: u64,
    pub sysenter_cs: u32,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub rip: u64,
}

/// The guest-state area.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct GuestState {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub pat: u64,
    pub debugctl: u64,
    pub dr7: u64,
    pub rip: u64,
    pub rflags: u64,
    pub segments: [Segment; 8],
    pub gdtr_base: u64,
    pub gdtr_limit: u32,
    pub idtr_base: u64,
    pub idtr_limit: u32,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub activity: u32,
    pub interruptibility: u32,
    pub pending_debug: u64,
    pub link_pointer: u64,
    pub pdptes: [u64; 4],
}

/// Bits of the interruptibility state, SDM 3C table 25-3.
pub mod interruptibility {
    /// The instruction before was an STI that set IF.
    pub const STI: u32 = 1 << 0;
    /// The instruction before loaded SS.
    pub const MOV_SS: u32 = 1 << 1;
    /// System-management interrupts are blocked.
    pub const SMI: u32 = 1 << 2;
    /// NMIs are blocked: one was delivered and no IRET has followed.
    pub const NMI: u32 = 1 << 3;
    /// One or the other of the shadows that last for one instruction.
    pub const SHADOW: u32 = STI | MOV_SS;
}

/// BS in the pending debug exceptions, SDM 3C table 25-4: a single-step trap is due.
pub const PENDING_SINGLE_STEP: u64 = 1 << 14;

/// IA32_DEBUGCTL.BTF: single steps are by branches, SDM 3B 18.4.1.
pub const DEBUGCTL_BTF: u64 = 1 << 1;

/// The activity state of a running guest.
const ACTIVE: u32 = 0;
/// The activity state of HLT.
const HALTED: u32 = 1;

macro_rules! demand {
    ($($condition:expr => $words:literal;)*) => {$(
        if !$condition {
            return Err($words);
        }
    )*};
}

type Checked = Result<(), &'static str>;

/// The first check that the state violates, in words; `None` if the processor should accept it.
pub fn violated(state: &EntryState, capability: &Capability) -> Option<&'static str> {
    let widths =
        Widths { physical: capability.physical_bits, linear: if state.host.cr4 & cr4::LA57 != 0 { 57 } else { 48 } };
    execution_controls(&state.controls, capability, widths)
        .and_then(|()| exit_and_entry_controls(state, capability))
        .and_then(|()| event(state, capability))
        .and_then(|()| host(state, capability, widths))
        .and_then(|()| guest_registers(state, capability, widths))
        .and_then(|()| guest_segments(state, widths))
        .and_then(|()| guest_tables(&state.guest, widths))
        .and_then(|()| guest_rip_and_flags(state, widths))
        .and_then(|()| guest_non_registers(state, capability))
        .and_then(|()| guest_pdptes(state, widths))
        .err()
}

#[derive(Clone, Copy)]
struct Widths {
    physical: u32,
    linear: u32,
}

impl Widths {
    /// A 4 KiB aligned physical address that the processor has.
    const fn page(self, address: u64) -> bool {
        address & 0xfff == 0 && self.physical(address)
    }

    const fn physical(self, address: u64) -> bool {
        address >> self.physical == 0
    }

    const fn canonical(self, address: u64) -> bool {
        let shift = 64 - self.linear;
        ((address << shift) as i64 >> shift) as u64 == address
    }
}

/// Every byte of a PAT names a memory type.
fn pat_types(pat: u64) -> bool {
    pat.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

/// 27.2.1.1 "VM-Execution Control Fields".
fn execution_controls(state: &ControlState, capability: &Capability, widths: Widths) -> Checked {
    let allowed = &capability.controls;
    let (pin, primary, secondary) = (state.pin, state.primary, state.secondary);
    demand! {
        allowed.pin.permits(pin.bits()) => "a pin-based control is not allowed";
        allowed.primary.permits(primary.bits()) => "a primary processor-based control is not allowed";
        allowed.secondary.permits(secondary.bits()) => "a secondary processor-based control is not allowed";
        state.cr3_targets <= u32::from(capability.misc.cr3_targets()) => "there are too many CR3-target values";
        !primary.contains(Primary::MSR_BITMAPS) || widths.page(state.msr_bitmap)
            => "the MSR bitmap's address is not a page";
        pin.contains(Pin::NMI_EXITING) || !pin.contains(Pin::VIRTUAL_NMIS) => "virtual NMIs without NMI exiting";
        pin.contains(Pin::VIRTUAL_NMIS) || !primary.contains(Primary::NMI_WINDOW_EXITING)
            => "NMI-window exiting without virtual NMIs";
        !secondary.contains(Secondary::APIC_ACCESSES) || widths.page(state.apic_access)
            => "the APIC-access address is not a page";
        !secondary.contains(Secondary::VIRTUAL_X2APIC) || !secondary.contains(Secondary::APIC_ACCESSES)
            => "x2APIC mode and APIC accesses are both virtualized";
        !secondary.contains(Secondary::VIRTUAL_INTERRUPTS) || pin.contains(Pin::EXTERNAL_INTERRUPT_EXITING)
            => "virtual-interrupt delivery without external-interrupt exiting";
        !secondary.contains(Secondary::VPID) || state.vpid != 0 => "the VPID is 0";
        !secondary.contains(Secondary::UNRESTRICTED_GUEST) || secondary.contains(Secondary::EPT)
            => "unrestricted guest without EPT";
    }
    if primary.contains(Primary::TPR_SHADOW) {
        let delivers = secondary.contains(Secondary::VIRTUAL_INTERRUPTS);
        demand! {
            widths.page(state.virtual_apic) => "the virtual-APIC address is not a page";
            delivers || state.tpr_threshold >> 4 == 0 => "the TPR threshold is above 15";
            delivers
                || secondary.contains(Secondary::APIC_ACCESSES)
                || state.tpr_threshold <= u32::from(state.task_priority >> 4)
                => "the TPR threshold is above the guest's task priority";
        }
    } else {
        let apic = Secondary::VIRTUAL_X2APIC | Secondary::APIC_REGISTERS | Secondary::VIRTUAL_INTERRUPTS;
        demand! { !secondary.intersects(apic) => "APIC virtualization without the TPR shadow"; }
    }
    if secondary.contains(Secondary::EPT) {
        let pointer = state.ept_pointer;
        let kind = match pointer & 7 {
            0 => capability.ept_vpid.uncacheable(),
            6 => capability.ept_vpid.write_back(),
            _ => false,
        };
        demand! {
            kind => "the EPT pointer's memory type is not supported";
            pointer >> 3 & 7 == 3 => "the EPT pointer's page-walk length is not 4";
            pointer & 1 << 6 == 0 || capability.ept_vpid.accessed_dirty()
                => "the EPT pointer enables accessed and dirty flags that are not there";
            pointer & 0xf80 == 0 && widths.physical(pointer) => "the EPT pointer has reserved bits";
        }
    }
    Ok(())
}

/// 27.2.1.2 "VM-Exit Control Fields" and 27.2.1.3 "VM-Entry Control Fields", but for the event.
fn exit_and_entry_controls(state: &EntryState, capability: &Capability) -> Checked {
    let (exit, entry) = (state.controls.exit, state.controls.entry);
    demand! {
        capability.controls.exit.permits(exit.bits()) => "a VM-exit control is not allowed";
        state.controls.pin.contains(Pin::PREEMPTION_TIMER) || !exit.contains(Exit::SAVE_PREEMPTION_TIMER)
            => "the preemption timer is saved but not active";
        capability.controls.entry.permits(entry.bits()) => "a VM-entry control is not allowed";
        !entry.intersects(Entry::SMM | Entry::DEACTIVATE_DUAL_MONITOR) => "an SMM control outside SMM";
    }
    Ok(())
}

/// 27.2.1.3, the event to inject.
fn event(state: &EntryState, capability: &Capability) -> Checked {
    const NMI: u8 = 2;
    const HARDWARE_EXCEPTION: u8 = 3;
    const OTHER: u8 = 7;
    let information = state.controls.interruption;
    if !information.valid() {
        return Ok(());
    }
    let (kind, vector) = (information.kind(), information.vector());
    let real_mode = state.controls.secondary.contains(Secondary::UNRESTRICTED_GUEST) && state.guest.cr0 & cr0::PE == 0;
    // #DF, #TS, #NP, #SS, #GP, #PF and #AC push an error code.
    let pushes = !real_mode && kind == HARDWARE_EXCEPTION && matches!(vector, 8 | 10..=14 | 17);
    demand! {
        kind != 1 && (kind != OTHER || capability.controls.primary.may_set(Primary::MONITOR_TRAP.bits()))
            => "the injected event's type is reserved";
        kind != NMI || vector == 2 => "an injected NMI does not have vector 2";
        kind != HARDWARE_EXCEPTION || vector < 32 => "an injected exception has a vector above 31";
        kind != OTHER || vector == 0 => "an injected event of type \"other\" does not have vector 0";
        information.has_error_code() == pushes
            || capability.basic.any_error_code() && !real_mode && kind == HARDWARE_EXCEPTION
            => "the injected event's error code does not fit its vector or mode";
        information.into_bits() & 0x7fff_f000 == 0 => "the injected event's information has reserved bits";
        !information.has_error_code() || state.controls.error_code >> 16 == 0
            => "the injected event's error code has reserved bits";
        !matches!(kind, 4..=6)
            || matches!(state.controls.instruction_length, 1..=15)
            || state.controls.instruction_length == 0 && capability.misc.zero_length_events()
            => "the injected software event's instruction length is not 1 to 15";
    }
    Ok(())
}

/// 27.2.2 "Checks on Host Control Registers, MSRs, and SSP" to 27.2.4 "Checks Related to Address-Space Size".
fn host(state: &EntryState, capability: &Capability, widths: Widths) -> Checked {
    let host = &state.host;
    let fixed =
        |value: u64, bits: &crate::capability::FixedBits| value & bits.ones == bits.ones && value & !bits.may == 0;
    let selectors = [host.es, host.cs, host.ss, host.ds, host.fs, host.gs, host.tr];
    let long = state.controls.exit.contains(Exit::HOST_64_BIT);
    demand! {
        fixed(host.cr0, &capability.cr0) => "the host's CR0 has a bit that VMX operation does not allow";
        fixed(host.cr4, &capability.cr4) => "the host's CR4 has a bit that VMX operation does not allow";
        widths.physical(host.cr3) => "the host's CR3 is beyond physical memory";
        widths.canonical(host.sysenter_esp) && widths.canonical(host.sysenter_eip)
            => "a host SYSENTER address is not canonical";
        !state.controls.exit.contains(Exit::LOAD_PAT) || pat_types(host.pat)
            => "the host's PAT has an unknown memory type";
        !state.controls.exit.contains(Exit::LOAD_EFER)
            || host.efer & !EFER_BITS == 0 && (host.efer & efer::LMA != 0) == long && (host.efer & efer::LME != 0) == long
            => "the host's EFER does not fit its address-space size";
        selectors.iter().all(|selector| selector & 7 == 0) => "a host selector has RPL or TI set";
        host.cs != 0 => "the host's CS selector is null";
        host.tr != 0 => "the host's TR selector is null";
        [host.fs_base, host.gs_base, host.tr_base, host.gdtr_base, host.idtr_base].into_iter().all(|base| widths.canonical(base))
            => "a host base address is not canonical";
        long => "the host's address space is not 64 bits wide";
        host.cr4 & cr4::PAE != 0 => "the host's CR4.PAE is clear";
        widths.canonical(host.rip) => "the host's RIP is not canonical";
    }
    Ok(())
}

/// The bits of IA32_EFER on processors with VMX.
const EFER_BITS: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;

/// The bits of IA32_DEBUGCTL that some processor knows: LBR, BTF, bus-lock, TR to BTS_OFF_USR, freeze and RTM.
const DEBUGCTL_BITS: u64 = 0xdfc7;

/// 27.3.1.1 "Checks on Guest Control Registers, Debug Registers, and MSRs".
fn guest_registers(state: &EntryState, capability: &Capability, widths: Widths) -> Checked {
    let guest = &state.guest;
    let unrestricted = state.controls.secondary.contains(Secondary::UNRESTRICTED_GUEST);
    let long = state.controls.entry.contains(Entry::LONG_MODE);
    let cr0_ones = capability.cr0.ones & if unrestricted { !(cr0::PE | cr0::PG) } else { !0 };
    let unchecked = cr0::NW | cr0::CD;
    let debug = state.controls.entry.contains(Entry::LOAD_DEBUG_CONTROLS);
    demand! {
        guest.cr0 & cr0_ones == cr0_ones && guest.cr0 & !capability.cr0.may & !unchecked == 0
            => "the guest's CR0 has a bit that VMX operation does not allow";
        guest.cr0 & cr0::PG == 0 || guest.cr0 & cr0::PE != 0 => "the guest has paging without protection";
        guest.cr4 & capability.cr4.ones == capability.cr4.ones && guest.cr4 & !capability.cr4.may == 0
            => "the guest's CR4 has a bit that VMX operation does not allow";
        !debug || guest.debugctl & !DEBUGCTL_BITS == 0 => "the guest's DEBUGCTL has reserved bits";
        !long || guest.cr0 & cr0::PG != 0 => "the guest is in IA-32e mode without paging";
        !long || guest.cr4 & cr4::PAE != 0 => "the guest is in IA-32e mode without CR4.PAE";
        long || guest.cr4 & cr4::PCIDE == 0 => "the guest has CR4.PCIDE outside IA-32e mode";
        widths.physical(guest.cr3) => "the guest's CR3 is beyond physical memory";
        !debug || guest.dr7 >> 32 == 0 => "the guest's DR7 has bits above 31";
        widths.canonical(guest.sysenter_esp) && widths.canonical(guest.sysenter_eip)
            => "a guest SYSENTER address is not canonical";
        !state.controls.entry.contains(Entry::LOAD_PAT) || pat_types(guest.pat)
            => "the guest's PAT has an unknown memory type";
    }
    if state.controls.entry.contains(Entry::LOAD_EFER) {
        demand! {
            guest.efer & !EFER_BITS == 0 => "the guest's EFER has reserved bits";
            (guest.efer & efer::LMA != 0) == long => "the guest's EFER.LMA differs from \"IA-32e mode guest\"";
            guest.cr0 & cr0::PG == 0 || (guest.efer & efer::LMA != 0) == (guest.efer & efer::LME != 0)
                => "the guest's EFER.LMA differs from LME under paging";
        }
    }
    Ok(())
}

/// 27.3.1.2 "Checks on Guest Segment Registers".
fn guest_segments(state: &EntryState, widths: Widths) -> Checked {
    let guest = &state.guest;
    let segment = |name: SegmentName| guest.segments[name as usize];
    let usable = |name: SegmentName| !segment(name).attributes.unusable();
    let (cs, ss, tr, ldtr) =
        (segment(SegmentName::Cs), segment(SegmentName::Ss), segment(SegmentName::Tr), segment(SegmentName::Ldtr));
    let data = [SegmentName::Ss, SegmentName::Ds, SegmentName::Es, SegmentName::Fs, SegmentName::Gs];
    let long = state.controls.entry.contains(Entry::LONG_MODE);
    let unrestricted = state.controls.secondary.contains(Secondary::UNRESTRICTED_GUEST);
    demand! {
        tr.selector & 4 == 0 => "the guest's TR selector names the LDT";
        ldtr.attributes.unusable() || ldtr.selector & 4 == 0 => "the guest's LDTR selector names the LDT";
    }
    if guest.rflags & rflags::VM != 0 {
        let all = data.into_iter().chain([SegmentName::Cs]).map(segment);
        for register in all {
            demand! {
                register.base == u64::from(register.selector) << 4
                    => "a virtual-8086 segment's base is not 16 times its selector";
                register.limit == 0xffff => "a virtual-8086 segment's limit is not 64 KiB";
                register.attributes.into_bits() == 0xf3 => "a virtual-8086 segment's attributes are not F3h";
            }
        }
    } else {
        let rights = cs.attributes;
        demand! {
            unrestricted || ss.selector & 3 == cs.selector & 3 => "the guest's SS and CS have different RPLs";
            matches!(rights.kind(), 9 | 11 | 13 | 15) || unrestricted && rights.kind() == 3
                => "the guest's CS is not accessed code";
            !usable(SegmentName::Ss) || matches!(ss.attributes.kind(), 3 | 7)
                => "the guest's SS is not accessed, writable data";
            rights.kind() != 3 || rights.dpl() == 0 => "the guest's CS is data of a privilege level other than 0";
            !matches!(rights.kind(), 9 | 11) || rights.dpl() == ss.attributes.dpl()
                => "the guest's non-conforming CS has another DPL than SS";
            !matches!(rights.kind(), 13 | 15) || rights.dpl() <= ss.attributes.dpl()
                => "the guest's conforming CS has a greater DPL than SS";
            unrestricted || ss.attributes.dpl() == (ss.selector & 3) as u8 => "the guest's SS has another DPL than RPL";
            guest.cr0 & cr0::PE != 0 && rights.kind() != 3 || ss.attributes.dpl() == 0
                => "the guest's SS has a DPL other than 0 in real mode";
            !long || !rights.long() || !rights.big() => "the guest's CS has both L and D";
        }
        for name in [SegmentName::Ds, SegmentName::Es, SegmentName::Fs, SegmentName::Gs] {
            let kind = segment(name).attributes.kind();
            demand! {
                !usable(name) || kind & 1 != 0 => "a guest data segment is not marked as accessed";
                !usable(name) || kind & 8 == 0 || kind & 2 != 0 => "a guest data segment is code that cannot be read";
            }
        }
        for name in data.into_iter().chain([SegmentName::Cs]) {
            let register = segment(name);
            if name == SegmentName::Cs || usable(name) {
                demand! {
                    register.attributes.code_or_data() => "a guest segment is a system segment";
                    register.attributes.present() => "a guest segment is not present";
                    reserved_attributes(&register) => "a guest segment's attributes have reserved bits";
                    granularity_fits(&register) => "a guest segment's limit does not fit its granularity";
                }
            }
        }
        demand! { !rights.unusable() => "the guest's CS is unusable"; }
    }
    for name in [SegmentName::Ss, SegmentName::Ds, SegmentName::Es] {
        demand! { !usable(name) || segment(name).base >> 32 == 0 => "a guest segment's base is above 4 GiB"; }
    }
    demand! {
        cs.base >> 32 == 0 => "the guest's CS base is above 4 GiB";
        [SegmentName::Tr, SegmentName::Fs, SegmentName::Gs].into_iter().all(|name| widths.canonical(segment(name).base))
            => "a guest segment's base is not canonical";
        matches!((long, tr.attributes.kind()), (_, 11) | (false, 3)) => "the guest's TR is not a busy TSS of its mode";
        !tr.attributes.code_or_data() => "the guest's TR is not a system segment";
        tr.attributes.present() => "the guest's TR is not present";
        !tr.attributes.unusable() => "the guest's TR is unusable";
        reserved_attributes(&tr) => "the guest's TR attributes have reserved bits";
        granularity_fits(&tr) => "the guest's TR limit does not fit its granularity";
    }
    if !ldtr.attributes.unusable() {
        demand! {
            ldtr.attributes.kind() == 2 => "the guest's LDTR is not an LDT";
            !ldtr.attributes.code_or_data() => "the guest's LDTR is not a system segment";
            ldtr.attributes.present() => "the guest's LDTR is not present";
            reserved_attributes(&ldtr) => "the guest's LDTR attributes have reserved bits";
            granularity_fits(&ldtr) => "the guest's LDTR limit does not fit its granularity";
            widths.canonical(ldtr.base) => "the guest's LDTR base is not canonical";
        }
    }
    Ok(())
}

/// Bits 11:8 and 31:17 of the access rights are zero.
const fn reserved_attributes(segment: &Segment) -> bool {
    segment.attributes.into_bits() & 0xfffe_0f00 == 0
}

/// G is clear if some bit of 11:0 is, and set if some bit of 31:20 is.
const fn granularity_fits(segment: &Segment) -> bool {
    if segment.attributes.granularity() { segment.limit & 0xfff == 0xfff } else { segment.limit >> 20 == 0 }
}

/// 27.3.1.3 "Checks on Guest Descriptor-Table Registers".
fn guest_tables(guest: &GuestState, widths: Widths) -> Checked {
    demand! {
        widths.canonical(guest.gdtr_base) && widths.canonical(guest.idtr_base)
            => "a guest descriptor table's base is not canonical";
        guest.gdtr_limit >> 16 == 0 && guest.idtr_limit >> 16 == 0 => "a guest descriptor table's limit is above 64 KiB";
    }
    Ok(())
}

/// Bits of RFLAGS that are always zero: 3, 5, 15 and from 22 on.
const RFLAGS_ZERO: u64 = !0x3f_ffff | 1 << 15 | 1 << 5 | 1 << 3;

/// 27.3.1.4 "Checks on Guest RIP, RFLAGS, and SSP".
fn guest_rip_and_flags(state: &EntryState, widths: Widths) -> Checked {
    const EXTERNAL_INTERRUPT: u8 = 0;
    let guest = &state.guest;
    let long = state.controls.entry.contains(Entry::LONG_MODE);
    let wide = long && guest.segments[SegmentName::Cs as usize].attributes.long();
    let information = state.controls.interruption;
    demand! {
        wide || guest.rip >> 32 == 0 => "the guest's RIP is above 4 GiB outside 64-bit mode";
        !wide || widths.canonical(guest.rip) => "the guest's RIP is not canonical";
        guest.rflags & RFLAGS_ZERO == 0 && guest.rflags & rflags::FIXED != 0 => "the guest's RFLAGS has wrong fixed bits";
        guest.rflags & rflags::VM == 0 || !long && guest.cr0 & cr0::PE != 0
            => "the guest is in virtual-8086 mode outside legacy protected mode";
        !information.valid() || information.kind() != EXTERNAL_INTERRUPT || guest.rflags & rflags::IF != 0
            => "an interrupt is injected while the guest has interrupts off";
    }
    Ok(())
}

/// 27.3.1.5 "Checks on Guest Non-Register State".
fn guest_non_registers(state: &EntryState, capability: &Capability) -> Checked {
    const EXTERNAL_INTERRUPT: u8 = 0;
    const NMI: u8 = 2;
    let guest = &state.guest;
    let blocking = guest.interruptibility;
    let shadow = blocking & interruptibility::SHADOW;
    let information = state.controls.interruption;
    let injects = |kind| information.valid() && information.kind() == kind;
    let known = guest.activity == ACTIVE
        || guest.activity <= 3 && capability.misc.activity_states() >> (guest.activity - 1) & 1 != 0;
    let steps = guest.rflags & rflags::TF != 0 && guest.debugctl & DEBUGCTL_BTF == 0;
    demand! {
        known => "the guest's activity state is not supported";
        guest.activity != HALTED || guest.segments[SegmentName::Ss as usize].attributes.dpl() == 0
            => "the guest is halted at a privilege level other than 0";
        shadow == 0 || guest.activity == ACTIVE => "the guest is not active in an interrupt shadow";
        blocking >> 5 == 0 => "the guest's interruptibility state has reserved bits";
        shadow != interruptibility::SHADOW => "the guest is in the shadows of both STI and MOV SS";
        blocking & interruptibility::STI == 0 || guest.rflags & rflags::IF != 0
            => "the guest is in the shadow of STI with interrupts off";
        !injects(EXTERNAL_INTERRUPT) || shadow == 0 => "an interrupt is injected in an interrupt shadow";
        !injects(NMI) || shadow == 0 => "an NMI is injected in an interrupt shadow";
        blocking & interruptibility::SMI == 0 => "SMIs are blocked outside SMM";
        !injects(NMI)
            || !state.controls.pin.contains(Pin::VIRTUAL_NMIS)
            || blocking & interruptibility::NMI == 0
            => "an NMI is injected while NMIs are blocked";
        guest.pending_debug & !0x1_500f == 0 => "the guest's pending debug exceptions have reserved bits";
        shadow == 0 && guest.activity != HALTED || (guest.pending_debug & PENDING_SINGLE_STEP != 0) == steps
            => "the guest's pending single step does not fit RFLAGS.TF in an interrupt shadow";
        guest.link_pointer == !0 => "the VMCS link pointer is not all ones";
    }
    Ok(())
}

/// 27.3.1.6 "Checks on Guest Page-Directory-Pointer-Table Entries".
fn guest_pdptes(state: &EntryState, widths: Widths) -> Checked {
    let guest = &state.guest;
    if pae_paging(guest.cr0, guest.cr4, state.controls.entry.contains(Entry::LONG_MODE))
        && state.controls.secondary.contains(Secondary::EPT)
    {
        for entry in guest.pdptes {
            demand! {
                entry & 1 == 0 || entry & 0x1e6 == 0 && widths.physical(entry)
                    => "a guest page-directory-pointer-table entry has reserved bits";
            }
        }
    }
    Ok(())
}

/// Whether the guest translates by PAE paging, whose first level lies in registers.
pub const fn pae_paging(cr0_value: u64, cr4_value: u64, long_mode: bool) -> bool {
    cr0_value & cr0::PG != 0 && cr4_value & cr4::PAE != 0 && !long_mode
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::tests::HASWELL;
    use crate::controls::{ApicVirtualization, Controls, Shared};
    use alloc::vec::Vec;
    use vcpu::{ArchState, SegmentAttributes};

    /// A guest at reset on a host in long mode.
    fn at_reset() -> EntryState {
        let capability = HASWELL.capability().unwrap();
        let controls = Controls::derive(&capability, ApicVirtualization::Off).unwrap();
        let reset = ArchState::reset(0);
        EntryState {
            controls: ControlState {
                pin: controls.pin,
                primary: controls.primary,
                secondary: controls.secondary_for(false),
                exit: controls.exit,
                entry: controls.entry,
                cr3_targets: 0,
                msr_bitmap: 0x1000,
                virtual_apic: 0x2000,
                apic_access: 0,
                tpr_threshold: 0,
                task_priority: 0,
                ept_pointer: 0x301e,
                vpid: 1,
                interruption: Interruption::new(),
                error_code: 0,
                instruction_length: 0,
            },
            host: HostState {
                cr0: 0x8005_0033,
                cr3: 0x10_0000,
                cr4: 0x2668,
                efer: 0xd01,
                pat: 0x0007_0406_0007_0406,
                es: 0,
                cs: 8,
                ss: 16,
                ds: 0,
                fs: 0,
                gs: 0,
                tr: 0x28,
                fs_base: 0,
                gs_base: 0xffff_8000_0000_0000,
                tr_base: 0xffff_8000_0000_1000,
                gdtr_base: 0xffff_8000_0000_2000,
                idtr_base: 0xffff_8000_0000_3000,
                sysenter_cs: 0,
                sysenter_esp: 0,
                sysenter_eip: 0,
                rip: 0xffff_ffff_8000_0000,
            },
            guest: GuestState {
                cr0: Shared::cr0(&capability).real(reset.cr0),
                cr3: 0,
                cr4: Shared::cr4(&capability).real(0),
                efer: 0,
                pat: reset.msrs.get(vcpu::SystemMsr::Pat),
                debugctl: 0,
                dr7: reset.dr7,
                rip: reset.rip,
                rflags: reset.rflags,
                segments: reset.segments,
                gdtr_base: 0,
                gdtr_limit: 0xffff,
                idtr_base: 0,
                idtr_limit: 0xffff,
                sysenter_esp: 0,
                sysenter_eip: 0,
                activity: 0,
                interruptibility: 0,
                pending_debug: 0,
                link_pointer: !0,
                pdptes: [0; 4],
            },
        }
    }

    /// A guest in 64-bit mode.
    fn in_long_mode() -> EntryState {
        let mut state = at_reset();
        state.controls.entry |= Entry::LONG_MODE;
        state.guest.cr0 |= cr0::PE | cr0::PG;
        state.guest.cr4 |= cr4::PAE;
        state.guest.efer = efer::LME | efer::LMA | efer::SCE;
        state.guest.segments[SegmentName::Cs as usize] = Segment::flat_code64(8);
        state.guest.rip = 0xffff_ffff_8100_0000;
        state
    }

    fn check(state: &EntryState) -> Option<&'static str> {
        let mut capability = HASWELL.capability().unwrap();
        capability.ept_vpid.set_accessed_dirty(false);
        violated(state, &capability)
    }

    #[test]
    fn good_states_pass() {
        assert_eq!(check(&at_reset()), None);
        assert_eq!(check(&in_long_mode()), None);
        let mut virtual_8086 = at_reset();
        virtual_8086.guest.cr0 |= cr0::PE;
        virtual_8086.guest.rflags |= rflags::VM;
        for segment in &mut virtual_8086.guest.segments[..6] {
            *segment = Segment { attributes: SegmentAttributes::from_bits(0xf3), ..Segment::real_mode(0x1234) };
        }
        assert_eq!(check(&virtual_8086), None);
        let mut injecting = in_long_mode();
        injecting.controls.interruption = Interruption::from_bits(0x8000_0b0e);
        injecting.controls.error_code = 2;
        assert_eq!(check(&injecting), None);
    }

    type Change = fn(&mut EntryState);

    fn cs(state: &mut EntryState) -> &mut Segment {
        &mut state.guest.segments[SegmentName::Cs as usize]
    }
    fn ss(state: &mut EntryState) -> &mut Segment {
        &mut state.guest.segments[SegmentName::Ss as usize]
    }
    fn ds(state: &mut EntryState) -> &mut Segment {
        &mut state.guest.segments[SegmentName::Ds as usize]
    }
    fn tr(state: &mut EntryState) -> &mut Segment {
        &mut state.guest.segments[SegmentName::Tr as usize]
    }
    fn ldtr(state: &mut EntryState) -> &mut Segment {
        &mut state.guest.segments[SegmentName::Ldtr as usize]
    }
    fn rights(bits: u32) -> SegmentAttributes {
        SegmentAttributes::from_bits(bits)
    }
    fn virtual_8086(state: &mut EntryState) {
        state.guest.cr0 |= cr0::PE;
        state.guest.rflags |= rflags::VM;
        for segment in &mut state.guest.segments[..6] {
            *segment = Segment { attributes: rights(0xf3), ..Segment::real_mode(0x100) };
        }
    }
    const CANONICAL_NOT: u64 = 1 << 48;
    const BEYOND: u64 = 1 << 40;

    /// One violation of each kind: from a good state in real mode, and the words that it must give.
    const VIOLATIONS: &[(Change, &str)] = &[
        (|s| s.controls.pin |= Pin::from_bits_retain(1 << 30), "a pin-based control is not allowed"),
        (|s| s.controls.primary &= Primary::from_bits_retain(!2), "a primary processor-based control is not allowed"),
        (|s| s.controls.secondary |= Secondary::TSC_SCALING, "a secondary processor-based control is not allowed"),
        (|s| s.controls.cr3_targets = 5, "there are too many CR3-target values"),
        (|s| s.controls.msr_bitmap = 0x1800, "the MSR bitmap's address is not a page"),
        (|s| s.controls.pin.remove(Pin::NMI_EXITING), "virtual NMIs without NMI exiting"),
        (
            |s| {
                s.controls.pin.remove(Pin::VIRTUAL_NMIS);
                s.controls.primary |= Primary::NMI_WINDOW_EXITING;
            },
            "NMI-window exiting without virtual NMIs",
        ),
        (
            |s| {
                s.controls.secondary |= Secondary::APIC_ACCESSES;
                s.controls.apic_access = BEYOND;
            },
            "the APIC-access address is not a page",
        ),
        (
            |s| s.controls.secondary |= Secondary::APIC_ACCESSES | Secondary::VIRTUAL_X2APIC,
            "x2APIC mode and APIC accesses are both virtualized",
        ),
        (
            |s| {
                s.controls.secondary |= Secondary::VIRTUAL_INTERRUPTS;
                s.controls.pin.remove(Pin::EXTERNAL_INTERRUPT_EXITING);
            },
            "virtual-interrupt delivery without external-interrupt exiting",
        ),
        (|s| s.controls.vpid = 0, "the VPID is 0"),
        (|s| s.controls.secondary.remove(Secondary::EPT), "unrestricted guest without EPT"),
        (|s| s.controls.virtual_apic = 8, "the virtual-APIC address is not a page"),
        (|s| s.controls.tpr_threshold = 16, "the TPR threshold is above 15"),
        (
            |s| {
                s.controls.tpr_threshold = 5;
                s.controls.task_priority = 0x4f;
            },
            "the TPR threshold is above the guest's task priority",
        ),
        (
            |s| {
                s.controls.primary.remove(Primary::TPR_SHADOW);
                s.controls.secondary |= Secondary::APIC_REGISTERS;
            },
            "APIC virtualization without the TPR shadow",
        ),
        (|s| s.controls.ept_pointer = 0x301c, "the EPT pointer's memory type is not supported"),
        (|s| s.controls.ept_pointer = 0x3016, "the EPT pointer's page-walk length is not 4"),
        (|s| s.controls.ept_pointer |= 0x40, "the EPT pointer enables accessed and dirty flags that are not there"),
        (|s| s.controls.ept_pointer |= 0x80, "the EPT pointer has reserved bits"),
        (|s| s.controls.exit |= Exit::from_bits_retain(1 << 31), "a VM-exit control is not allowed"),
        (
            |s| {
                s.controls.exit |= Exit::SAVE_PREEMPTION_TIMER;
                s.controls.pin.remove(Pin::PREEMPTION_TIMER);
            },
            "the preemption timer is saved but not active",
        ),
        (|s| s.controls.entry |= Entry::from_bits_retain(1 << 31), "a VM-entry control is not allowed"),
        (|s| s.controls.entry |= Entry::SMM, "an SMM control outside SMM"),
        (|s| s.controls.interruption = Interruption::from_bits(0x8000_0120), "the injected event's type is reserved"),
        (|s| s.controls.interruption = Interruption::from_bits(0x8000_0203), "an injected NMI does not have vector 2"),
        (
            |s| s.controls.interruption = Interruption::from_bits(0x8000_0320),
            "an injected exception has a vector above 31",
        ),
        (
            |s| s.controls.interruption = Interruption::from_bits(0x8000_0701),
            "an injected event of type \"other\" does not have vector 0",
        ),
        (
            |s| s.controls.interruption = Interruption::from_bits(0x8000_0b0d),
            "the injected event's error code does not fit its vector or mode",
        ),
        (
            |s| s.controls.interruption = Interruption::from_bits(0x8000_1202),
            "the injected event's information has reserved bits",
        ),
        (
            |s| {
                s.guest.cr0 |= cr0::PE;
                s.controls.interruption = Interruption::from_bits(0x8000_0b0d);
                s.controls.error_code = 1 << 16;
            },
            "the injected event's error code has reserved bits",
        ),
        (
            |s| s.controls.interruption = Interruption::from_bits(0x8000_0480),
            "the injected software event's instruction length is not 1 to 15",
        ),
        (|s| s.host.cr0 = 0x8005_0011, "the host's CR0 has a bit that VMX operation does not allow"),
        (|s| s.host.cr4 = 0x668, "the host's CR4 has a bit that VMX operation does not allow"),
        (|s| s.host.cr3 = BEYOND, "the host's CR3 is beyond physical memory"),
        (|s| s.host.sysenter_eip = CANONICAL_NOT, "a host SYSENTER address is not canonical"),
        (|s| s.host.pat = 2, "the host's PAT has an unknown memory type"),
        (|s| s.host.efer = 0x100, "the host's EFER does not fit its address-space size"),
        (|s| s.host.ss = 0x13, "a host selector has RPL or TI set"),
        (|s| s.host.cs = 0, "the host's CS selector is null"),
        (|s| s.host.tr = 0, "the host's TR selector is null"),
        (|s| s.host.gdtr_base = CANONICAL_NOT, "a host base address is not canonical"),
        (
            |s| {
                s.controls.exit.remove(Exit::HOST_64_BIT);
                s.host.efer = 0;
            },
            "the host's address space is not 64 bits wide",
        ),
        (|s| s.host.cr4 = 0x2648, "the host's CR4.PAE is clear"),
        (|s| s.host.rip = CANONICAL_NOT, "the host's RIP is not canonical"),
        (|s| s.guest.cr0 &= !cr0::NE, "the guest's CR0 has a bit that VMX operation does not allow"),
        (|s| s.guest.cr0 |= cr0::PG, "the guest has paging without protection"),
        (|s| s.guest.cr4 &= !cr4::VMXE, "the guest's CR4 has a bit that VMX operation does not allow"),
        (|s| s.guest.debugctl = 1 << 20, "the guest's DEBUGCTL has reserved bits"),
        (|s| s.controls.entry |= Entry::LONG_MODE, "the guest is in IA-32e mode without paging"),
        (
            |s| {
                s.controls.entry |= Entry::LONG_MODE;
                s.guest.cr0 |= cr0::PE | cr0::PG;
            },
            "the guest is in IA-32e mode without CR4.PAE",
        ),
        (|s| s.guest.cr4 |= cr4::PCIDE, "the guest has CR4.PCIDE outside IA-32e mode"),
        (|s| s.guest.cr3 = BEYOND, "the guest's CR3 is beyond physical memory"),
        (|s| s.guest.dr7 = 1 << 32, "the guest's DR7 has bits above 31"),
        (|s| s.guest.sysenter_esp = CANONICAL_NOT, "a guest SYSENTER address is not canonical"),
        (|s| s.guest.pat = 3, "the guest's PAT has an unknown memory type"),
        (|s| s.guest.efer = efer::SVME, "the guest's EFER has reserved bits"),
        (|s| s.guest.efer = efer::LMA, "the guest's EFER.LMA differs from \"IA-32e mode guest\""),
        (
            |s| {
                s.guest.cr0 |= cr0::PE | cr0::PG;
                s.guest.efer = efer::LME;
            },
            "the guest's EFER.LMA differs from LME under paging",
        ),
        (|s| tr(s).selector = 4, "the guest's TR selector names the LDT"),
        (|s| ldtr(s).selector = 4, "the guest's LDTR selector names the LDT"),
        (
            |s| {
                virtual_8086(s);
                ds(s).base = 0;
            },
            "a virtual-8086 segment's base is not 16 times its selector",
        ),
        (
            |s| {
                virtual_8086(s);
                ds(s).limit = 0xfffff;
            },
            "a virtual-8086 segment's limit is not 64 KiB",
        ),
        (
            |s| {
                virtual_8086(s);
                ds(s).attributes = rights(0x93);
            },
            "a virtual-8086 segment's attributes are not F3h",
        ),
        (
            |s| {
                s.controls.secondary.remove(Secondary::UNRESTRICTED_GUEST);
                s.guest.cr0 |= cr0::PE | cr0::PG;
                ss(s).selector = 3;
            },
            "the guest's SS and CS have different RPLs",
        ),
        (|s| cs(s).attributes = rights(0x91), "the guest's CS is not accessed code"),
        (|s| ss(s).attributes = rights(0x91), "the guest's SS is not accessed, writable data"),
        (|s| cs(s).attributes = rights(0xf3), "the guest's CS is data of a privilege level other than 0"),
        (|s| cs(s).attributes = rights(0xfb), "the guest's non-conforming CS has another DPL than SS"),
        (|s| cs(s).attributes = rights(0xff), "the guest's conforming CS has a greater DPL than SS"),
        (
            |s| {
                s.controls.secondary.remove(Secondary::UNRESTRICTED_GUEST);
                s.guest.cr0 |= cr0::PE | cr0::PG;
                (cs(s).selector, ss(s).selector) = (3, 3);
            },
            "the guest's SS has another DPL than RPL",
        ),
        (
            |s| {
                cs(s).attributes = rights(0xfb);
                ss(s).attributes = rights(0xf3);
            },
            "the guest's SS has a DPL other than 0 in real mode",
        ),
        (
            |s| {
                *s = in_long_mode();
                cs(s).attributes = rights(0xe09b);
            },
            "the guest's CS has both L and D",
        ),
        (|s| ds(s).attributes = rights(0x92), "a guest data segment is not marked as accessed"),
        (|s| ds(s).attributes = rights(0x99), "a guest data segment is code that cannot be read"),
        (|s| ds(s).attributes = rights(0x83), "a guest segment is a system segment"),
        (|s| ds(s).attributes = rights(0x13), "a guest segment is not present"),
        (|s| ds(s).attributes = rights(0x193), "a guest segment's attributes have reserved bits"),
        (|s| ds(s).limit = 1 << 20, "a guest segment's limit does not fit its granularity"),
        (|s| cs(s).attributes = rights(0x1_009b), "the guest's CS is unusable"),
        (|s| ds(s).base = 1 << 32, "a guest segment's base is above 4 GiB"),
        (|s| cs(s).base = 1 << 32, "the guest's CS base is above 4 GiB"),
        (|s| tr(s).base = CANONICAL_NOT, "a guest segment's base is not canonical"),
        (
            |s| {
                *s = in_long_mode();
                tr(s).attributes = rights(0x83);
            },
            "the guest's TR is not a busy TSS of its mode",
        ),
        (|s| tr(s).attributes = rights(0x9b), "the guest's TR is not a system segment"),
        (|s| tr(s).attributes = rights(0x0b), "the guest's TR is not present"),
        (|s| tr(s).attributes = rights(0x1_008b), "the guest's TR is unusable"),
        (|s| tr(s).attributes = rights(0x18b), "the guest's TR attributes have reserved bits"),
        (|s| tr(s).limit = 1 << 20, "the guest's TR limit does not fit its granularity"),
        (|s| ldtr(s).attributes = rights(0x83), "the guest's LDTR is not an LDT"),
        (|s| ldtr(s).attributes = rights(0x92), "the guest's LDTR is not a system segment"),
        (|s| ldtr(s).attributes = rights(0x02), "the guest's LDTR is not present"),
        (|s| ldtr(s).attributes = rights(0x182), "the guest's LDTR attributes have reserved bits"),
        (|s| ldtr(s).limit = 1 << 20, "the guest's LDTR limit does not fit its granularity"),
        (|s| ldtr(s).base = CANONICAL_NOT, "the guest's LDTR base is not canonical"),
        (|s| s.guest.idtr_base = CANONICAL_NOT, "a guest descriptor table's base is not canonical"),
        (|s| s.guest.gdtr_limit = 1 << 16, "a guest descriptor table's limit is above 64 KiB"),
        (|s| s.guest.rip = 1 << 32, "the guest's RIP is above 4 GiB outside 64-bit mode"),
        (
            |s| {
                *s = in_long_mode();
                s.guest.rip = CANONICAL_NOT;
            },
            "the guest's RIP is not canonical",
        ),
        (|s| s.guest.rflags = 0, "the guest's RFLAGS has wrong fixed bits"),
        (
            |s| {
                virtual_8086(s);
                s.guest.cr0 &= !cr0::PE;
            },
            "the guest is in virtual-8086 mode outside legacy protected mode",
        ),
        (
            |s| s.controls.interruption = Interruption::from_bits(0x8000_0020),
            "an interrupt is injected while the guest has interrupts off",
        ),
        (|s| s.guest.activity = 4, "the guest's activity state is not supported"),
        (
            |s| {
                s.guest.cr0 |= cr0::PE;
                s.guest.activity = 1;
                cs(s).attributes = rights(0xfb);
                ss(s).attributes = rights(0xf3);
            },
            "the guest is halted at a privilege level other than 0",
        ),
        (
            |s| {
                s.guest.activity = 1;
                s.guest.interruptibility = 2;
            },
            "the guest is not active in an interrupt shadow",
        ),
        (|s| s.guest.interruptibility = 1 << 5, "the guest's interruptibility state has reserved bits"),
        (|s| s.guest.interruptibility = 3, "the guest is in the shadows of both STI and MOV SS"),
        (|s| s.guest.interruptibility = 1, "the guest is in the shadow of STI with interrupts off"),
        (
            |s| {
                s.guest.rflags |= rflags::IF;
                s.guest.interruptibility = 1;
                s.controls.interruption = Interruption::from_bits(0x8000_0020);
            },
            "an interrupt is injected in an interrupt shadow",
        ),
        (
            |s| {
                s.guest.interruptibility = 2;
                s.controls.interruption = Interruption::from_bits(0x8000_0202);
            },
            "an NMI is injected in an interrupt shadow",
        ),
        (|s| s.guest.interruptibility = 4, "SMIs are blocked outside SMM"),
        (
            |s| {
                s.guest.interruptibility = 8;
                s.controls.interruption = Interruption::from_bits(0x8000_0202);
            },
            "an NMI is injected while NMIs are blocked",
        ),
        (|s| s.guest.pending_debug = 1 << 4, "the guest's pending debug exceptions have reserved bits"),
        (
            |s| {
                s.guest.rflags |= rflags::TF;
                s.guest.interruptibility = 2;
            },
            "the guest's pending single step does not fit RFLAGS.TF in an interrupt shadow",
        ),
        (|s| s.guest.link_pointer = 0, "the VMCS link pointer is not all ones"),
        (
            |s| {
                s.guest.cr0 |= cr0::PE | cr0::PG;
                s.guest.cr4 |= cr4::PAE;
                s.guest.pdptes[2] = 0x1000 | 3;
            },
            "a guest page-directory-pointer-table entry has reserved bits",
        ),
    ];

    #[test]
    fn each_violation_is_named() {
        for (change, words) in VIOLATIONS {
            let mut state = at_reset();
            change(&mut state);
            assert_eq!(check(&state), Some(*words));
        }
    }

    #[test]
    fn no_two_violations_have_the_same_words() {
        let mut words: Vec<_> = VIOLATIONS.iter().map(|(_, words)| *words).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), VIOLATIONS.len());
    }
}
