//! What a processor offers for virtualization, as data.
//!
//! Manual: Intel SDM 3C and 3D (December 2024, 325462-086), 24.7 "Enabling and Entering VMX Operation" and appendix A "VMX
//! Capability Reporting Facility". Key types: [`Capability`], its [`Features`] and the words of its MSRs, and [`Refusal`],
//! the sentence for the user when VMX cannot be used. Neighbours: `controls` derives the VMCS controls from it, `paging`
//! its page sizes; `lib` feeds it the real CPUID and MSRs. Nothing here touches the processor.

use crate::controls::{Allowed, Pin, Primary, Secondary};
use crate::speculation::{self, structured};
use bitfield_struct::bitfield;
use core::fmt;
use raw_cpuid::{CpuIdReader, CpuIdResult};
use vcpu::Speculation;
use vcpu::speculation::ARCH_CAPABILITIES;
use vcpu::vector_area::VectorArea;
use x86::msr::{
    IA32_FEATURE_CONTROL, IA32_VMX_BASIC, IA32_VMX_CR0_FIXED0, IA32_VMX_CR0_FIXED1, IA32_VMX_CR4_FIXED0,
    IA32_VMX_CR4_FIXED1, IA32_VMX_ENTRY_CTLS, IA32_VMX_EPT_VPID_CAP, IA32_VMX_EXIT_CTLS, IA32_VMX_MISC,
    IA32_VMX_PINBASED_CTLS, IA32_VMX_PROCBASED_CTLS, IA32_VMX_PROCBASED_CTLS2, IA32_VMX_TRUE_ENTRY_CTLS,
    IA32_VMX_TRUE_EXIT_CTLS, IA32_VMX_TRUE_PINBASED_CTLS, IA32_VMX_TRUE_PROCBASED_CTLS,
};

/// IA32_FEATURE_CONTROL, SDM 3C 24.7 "Enabling and Entering VMX Operation".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FeatureControl {
    /// Firmware has fixed the rest until reset.
    pub locked: bool,
    /// VMXON works in SMX operation.
    pub vmx_inside_smx: bool,
    /// VMXON works outside SMX operation.
    pub vmx_outside_smx: bool,
    #[bits(61)]
    __: u64,
}

/// IA32_VMX_BASIC, SDM 3D A.1 "Basic VMX Information".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Basic {
    /// The revision identifier that starts VMXON regions and VMCSs.
    #[bits(31)]
    pub revision: u32,
    __: bool,
    /// Bytes in a VMXON region or VMCS, up to 4096.
    #[bits(13)]
    pub region_bytes: u16,
    #[bits(3)]
    __: u8,
    /// The structures must lie below 4 GiB.
    pub below_4g: bool,
    /// Dual-monitor treatment of SMM.
    pub dual_monitor: bool,
    /// The memory type for the structures: 6 is write-back.
    #[bits(4)]
    pub memory_type: u8,
    /// Exits by INS and OUTS report the instruction.
    pub string_io_information: bool,
    /// The TRUE capability MSRs exist.
    pub true_controls: bool,
    /// Hardware exceptions can be injected with or without an error code.
    pub any_error_code: bool,
    #[bits(7)]
    __: u8,
}

/// IA32_VMX_MISC, SDM 3D A.6 "Miscellaneous Data".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Misc {
    /// The preemption timer counts when this bit of the TSC changes.
    #[bits(5)]
    pub timer_shift: u8,
    /// Exits store EFER.LMA into "IA-32e mode guest".
    pub stores_lma: bool,
    /// Activity states: HLT, shutdown, wait-for-SIPI.
    #[bits(3)]
    pub activity_states: u8,
    #[bits(5)]
    __: u8,
    /// Processor trace works in VMX operation.
    pub processor_trace: bool,
    /// RDMSR of IA32_SMBASE in SMM.
    pub smbase: bool,
    /// How many CR3-target values there are.
    #[bits(9)]
    pub cr3_targets: u16,
    #[bits(4)]
    __: u8,
    /// VMWRITE can write exit-information fields.
    pub writes_information: bool,
    /// Software events can be injected with an instruction length of 0.
    pub zero_length_events: bool,
    __: bool,
    /// The MSEG revision identifier.
    pub mseg_revision: u32,
}

/// IA32_VMX_EPT_VPID_CAP, SDM 3D A.10 "VPID and EPT Capabilities".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EptVpid {
    /// Pages can be executable and not readable.
    pub execute_only: bool,
    #[bits(5)]
    __: u8,
    /// Walks of four levels.
    pub four_levels: bool,
    /// Walks of five levels.
    pub five_levels: bool,
    /// The tables may be uncacheable.
    pub uncacheable: bool,
    #[bits(5)]
    __: u8,
    /// The tables may be write-back.
    pub write_back: bool,
    __: bool,
    /// 2 MiB pages.
    pub pages_2m: bool,
    /// 1 GiB pages.
    pub pages_1g: bool,
    #[bits(2)]
    __: u8,
    /// INVEPT exists.
    pub invept: bool,
    /// Accessed and dirty flags.
    pub accessed_dirty: bool,
    /// EPT violations say more.
    pub advanced_information: bool,
    #[bits(2)]
    __: u8,
    /// INVEPT of one context.
    pub invept_single: bool,
    /// INVEPT of all contexts.
    pub invept_all: bool,
    #[bits(5)]
    __: u8,
    /// INVVPID exists.
    pub invvpid: bool,
    #[bits(7)]
    __: u8,
    /// INVVPID of one address.
    pub invvpid_address: bool,
    /// INVVPID of one context.
    pub invvpid_single: bool,
    /// INVVPID of all contexts.
    pub invvpid_all: bool,
    /// INVVPID of one context but for its global translations.
    pub invvpid_single_non_global: bool,
    #[bits(20)]
    __: u32,
}

/// INVEPT and INVVPID types, SDM 3C 31.3: one context, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Invalidation {
    /// The context that is named.
    Single = 1,
    /// Every context.
    All = 2,
}

/// The control bits that each capability MSR allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ControlWords {
    pub pin: Allowed,
    pub primary: Allowed,
    pub secondary: Allowed,
    pub exit: Allowed,
    pub entry: Allowed,
}

/// The bits of CR0 or CR4 that VMX operation fixes, SDM 3D A.7 and A.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedBits {
    /// Bits that must be one.
    pub ones: u64,
    /// Bits that may be one.
    pub may: u64,
}

bitflags::bitflags! {
    /// Features that matter here, in our own numbering.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u32 {
        /// Extended page tables. Required.
        const EPT = 1 << 0;
        /// Guests without paging or protection. Required.
        const UNRESTRICTED_GUEST = 1 << 1;
        /// 2 MiB pages in EPT.
        const LARGE_PAGES = 1 << 2;
        /// 1 GiB pages in EPT.
        const GIANT_PAGES = 1 << 3;
        /// Accessed and dirty flags in EPT.
        const ACCESSED_DIRTY = 1 << 4;
        /// Pages that can be executed and not read.
        const EXECUTE_ONLY = 1 << 5;
        /// Translations are tagged by vCPU, and those of one vCPU can be dropped.
        const VPID = 1 << 6;
        /// A timer that ends a run.
        const PREEMPTION_TIMER = 1 << 7;
        /// WBINVD can exit.
        const WBINVD_EXITING = 1 << 8;
        /// PAUSE exits only in a loop.
        const PAUSE_LOOP_EXITING = 1 << 9;
        /// RDTSCP and IA32_TSC_AUX, in guests too.
        const RDTSCP = 1 << 10;
        /// INVPCID, in guests too.
        const INVPCID = 1 << 11;
        /// XSAVE and XCR0.
        const XSAVE = 1 << 12;
        /// XSAVES and XRSTORS, in guests too.
        const XSAVES = 1 << 13;
        /// Accesses to the APIC page can be virtualized.
        const APIC_ACCESSES = 1 << 14;
        /// Reads of the APIC page need no exit.
        const APIC_REGISTERS = 1 << 15;
        /// The processor delivers interrupts out of the APIC page.
        const VIRTUAL_INTERRUPTS = 1 << 16;
        /// The same by the MSRs of x2APIC mode.
        const VIRTUAL_X2APIC = 1 << 17;
        /// Interrupts can be posted to a running vCPU.
        const POSTED_INTERRUPTS = 1 << 18;
        /// ENCLS can exit.
        const ENCLS_EXITING = 1 << 19;
        /// VMREAD and VMWRITE of guests need no exit.
        const VMCS_SHADOWING = 1 << 20;
        /// Writes by guests are logged.
        const PAGE_MODIFICATION_LOG = 1 << 21;
        /// The guest's TSC can run at another rate.
        const TSC_SCALING = 1 << 22;
    }
}

impl Features {
    /// What the hypervisor makes use of where it is there.
    pub const USED: Features = Features::EPT
        .union(Features::UNRESTRICTED_GUEST)
        .union(Features::LARGE_PAGES)
        .union(Features::GIANT_PAGES)
        .union(Features::ACCESSED_DIRTY)
        .union(Features::EXECUTE_ONLY)
        .union(Features::VPID)
        .union(Features::PREEMPTION_TIMER)
        .union(Features::WBINVD_EXITING)
        .union(Features::PAUSE_LOOP_EXITING)
        .union(Features::RDTSCP)
        .union(Features::INVPCID)
        .union(Features::XSAVE)
        .union(Features::XSAVES)
        .union(Features::APIC_ACCESSES)
        .union(Features::APIC_REGISTERS)
        .union(Features::VIRTUAL_INTERRUPTS)
        .union(Features::VIRTUAL_X2APIC)
        .union(Features::ENCLS_EXITING);

    /// What virtual-interrupt delivery in xAPIC mode is made of.
    pub const INTERRUPT_DELIVERY: Features =
        Features::APIC_ACCESSES.union(Features::APIC_REGISTERS).union(Features::VIRTUAL_INTERRUPTS);
}

/// The words that hold feature bits.
struct Words {
    pin: Allowed,
    secondary: Allowed,
    ept_vpid: EptVpid,
    /// CPUID 1 ECX.
    standard_ecx: u32,
    /// CPUID 7.0 EBX.
    structured_ebx: u32,
    /// CPUID 0Dh.1 EAX.
    state_eax: u32,
    /// CPUID 8000_0001h EDX.
    extended_edx: u32,
}

impl Words {
    fn secondary(&self, control: Secondary) -> bool {
        self.secondary.may_set(control.bits())
    }
}

/// One row: the feature, its name in the boot log, and where it shows.
type Row = (Features, &'static str, fn(&Words) -> bool);

const ROWS: [Row; 23] = [
    (Features::EPT, "EPT", |w| w.secondary(Secondary::EPT)),
    (Features::UNRESTRICTED_GUEST, "unrestricted guest", |w| w.secondary(Secondary::UNRESTRICTED_GUEST)),
    (Features::LARGE_PAGES, "EPT 2 MiB pages", |w| w.ept_vpid.pages_2m()),
    (Features::GIANT_PAGES, "EPT 1 GiB pages", |w| w.ept_vpid.pages_1g()),
    (Features::ACCESSED_DIRTY, "EPT accessed and dirty flags", |w| w.ept_vpid.accessed_dirty()),
    (Features::EXECUTE_ONLY, "EPT execute-only pages", |w| w.ept_vpid.execute_only()),
    (Features::VPID, "VPID", |w| {
        w.secondary(Secondary::VPID)
            && w.ept_vpid.invvpid()
            && (w.ept_vpid.invvpid_single() || w.ept_vpid.invvpid_all())
    }),
    (Features::PREEMPTION_TIMER, "preemption timer", |w| w.pin.may_set(Pin::PREEMPTION_TIMER.bits())),
    (Features::WBINVD_EXITING, "WBINVD exiting", |w| w.secondary(Secondary::WBINVD_EXITING)),
    (Features::PAUSE_LOOP_EXITING, "PAUSE-loop exiting", |w| w.secondary(Secondary::PAUSE_LOOP_EXITING)),
    (Features::RDTSCP, "RDTSCP", |w| w.extended_edx >> 27 & 1 != 0 && w.secondary(Secondary::RDTSCP)),
    (Features::INVPCID, "INVPCID", |w| w.structured_ebx >> 10 & 1 != 0 && w.secondary(Secondary::INVPCID)),
    (Features::XSAVE, "XSAVE", |w| w.standard_ecx >> 26 & 1 != 0),
    (Features::XSAVES, "XSAVES", |w| w.state_eax >> 3 & 1 != 0 && w.secondary(Secondary::XSAVES)),
    (Features::APIC_ACCESSES, "virtualized APIC accesses", |w| w.secondary(Secondary::APIC_ACCESSES)),
    (Features::APIC_REGISTERS, "APIC-register virtualization", |w| w.secondary(Secondary::APIC_REGISTERS)),
    (Features::VIRTUAL_INTERRUPTS, "virtual-interrupt delivery", |w| w.secondary(Secondary::VIRTUAL_INTERRUPTS)),
    (Features::VIRTUAL_X2APIC, "virtualized x2APIC mode", |w| w.secondary(Secondary::VIRTUAL_X2APIC)),
    (Features::POSTED_INTERRUPTS, "posted interrupts", |w| w.pin.may_set(Pin::POSTED_INTERRUPTS.bits())),
    (Features::ENCLS_EXITING, "ENCLS exiting", |w| w.secondary(Secondary::ENCLS_EXITING)),
    (Features::VMCS_SHADOWING, "VMCS shadowing", |w| w.secondary(Secondary::VMCS_SHADOWING)),
    (Features::PAGE_MODIFICATION_LOG, "page-modification logging", |w| w.secondary(Secondary::PAGE_MODIFICATION_LOG)),
    (Features::TSC_SCALING, "TSC scaling", |w| w.secondary(Secondary::TSC_SCALING)),
];

/// CPUID 1 ECX: VMX.
const VMX: u32 = 1 << 5;

/// A processor that can run guests, and how well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it has.
    pub features: Features,
    /// What firmware allowed; where it is not locked, VMX has to be switched on and locked.
    pub feature_control: FeatureControl,
    /// Revision, region size and memory type.
    pub basic: Basic,
    /// Allowed controls, out of the TRUE MSRs where they exist.
    pub controls: ControlWords,
    /// The preemption timer's rate, among others.
    pub misc: Misc,
    /// Fixed bits of CR0 for the host; a guest may also clear PE and PG.
    pub cr0: FixedBits,
    /// Fixed bits of CR4.
    pub cr4: FixedBits,
    /// EPT and VPID.
    pub ept_vpid: EptVpid,
    /// Width of host-physical addresses in bits, 32 to 52.
    pub physical_bits: u32,
    /// The memory for vector registers.
    pub vector: VectorArea,
    /// What it leaks by speculation, and what is done about it.
    pub speculation: Speculation,
}

/// Why guests cannot run on this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// CPUID shows no VMX.
    NoVmx,
    /// IA32_FEATURE_CONTROL is locked without VMX.
    DisabledByFirmware,
    /// No extended page tables.
    NoEpt,
    /// No unrestricted guest.
    NoUnrestrictedGuest,
    /// Something that every processor with unrestricted guest has; by its name in the SDM.
    Missing(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoVmx => f.write_str(
                "this processor has no Intel VT-x; use one that has, or give the virtual machine its `vmx` CPU flag",
            ),
            Refusal::DisabledByFirmware => f.write_str(
                "Intel VT-x is disabled and locked by firmware (IA32_FEATURE_CONTROL); enable it in the firmware set-up",
            ),
            Refusal::NoEpt => f.write_str(
                "this processor's VT-x has no extended page tables (EPT), which Gearshift needs; use a newer one",
            ),
            Refusal::NoUnrestrictedGuest => f.write_str(
                "this processor's VT-x has no unrestricted guest, which Gearshift needs; use Westmere or newer",
            ),
            Refusal::Missing(what) => {
                write!(f, "this processor's VT-x lacks \"{what}\", which Gearshift needs; use a newer one")
            }
        }
    }
}

/// Reads a leaf, or zeroes where the processor does not go that far.
fn leaf(cpuid: &impl CpuIdReader, eax: u32, ecx: u32) -> CpuIdResult {
    let highest = cpuid.cpuid2(eax & 0x8000_0000, 0).eax;
    if eax > highest { CpuIdResult { eax: 0, ebx: 0, ecx: 0, edx: 0 } } else { cpuid.cpuid2(eax, ecx) }
}

impl Capability {
    /// Judges a processor by its CPUID and by its MSRs, which are read only where they exist.
    ///
    /// # Errors
    /// Guests cannot run; the refusal says why and what to do.
    pub fn detect(cpuid: &impl CpuIdReader, rdmsr: impl Fn(u32) -> u64) -> Result<Capability, Refusal> {
        let standard_ecx = leaf(cpuid, 1, 0).ecx;
        if standard_ecx & VMX == 0 {
            return Err(Refusal::NoVmx);
        }
        let feature_control = FeatureControl::from_bits(rdmsr(IA32_FEATURE_CONTROL));
        if feature_control.locked() && !feature_control.vmx_outside_smx() {
            return Err(Refusal::DisabledByFirmware);
        }
        let basic = Basic::from_bits(rdmsr(IA32_VMX_BASIC));
        let [pin, primary, exit, entry] = if basic.true_controls() {
            [
                IA32_VMX_TRUE_PINBASED_CTLS,
                IA32_VMX_TRUE_PROCBASED_CTLS,
                IA32_VMX_TRUE_EXIT_CTLS,
                IA32_VMX_TRUE_ENTRY_CTLS,
            ]
        } else {
            [IA32_VMX_PINBASED_CTLS, IA32_VMX_PROCBASED_CTLS, IA32_VMX_EXIT_CTLS, IA32_VMX_ENTRY_CTLS]
        }
        .map(|msr| Allowed::from_msr(rdmsr(msr)));
        if !primary.may_set(Primary::SECONDARY.bits()) {
            return Err(Refusal::NoEpt);
        }
        let secondary = Allowed::from_msr(rdmsr(IA32_VMX_PROCBASED_CTLS2));
        if !secondary.may_set(Secondary::EPT.bits()) {
            return Err(Refusal::NoEpt);
        }
        if !secondary.may_set(Secondary::UNRESTRICTED_GUEST.bits()) {
            return Err(Refusal::NoUnrestrictedGuest);
        }
        let ept_vpid = EptVpid::from_bits(rdmsr(IA32_VMX_EPT_VPID_CAP));
        for (present, name) in [
            (ept_vpid.four_levels(), "EPT page-walk length 4"),
            (ept_vpid.write_back(), "write-back EPT paging structures"),
            (ept_vpid.invept() && (ept_vpid.invept_single() || ept_vpid.invept_all()), "INVEPT"),
        ] {
            if !present {
                return Err(Refusal::Missing(name));
            }
        }
        let structured = leaf(cpuid, 7, 0);
        let words = Words {
            pin,
            secondary,
            ept_vpid,
            standard_ecx,
            structured_ebx: structured.ebx,
            state_eax: leaf(cpuid, 0xd, 1).eax,
            extended_edx: leaf(cpuid, 0x8000_0001, 0).edx,
        };
        let mut features = Features::empty();
        for (feature, _, shows) in ROWS {
            features.set(feature, shows(&words));
        }
        let vector = if features.contains(Features::XSAVE) {
            let state = leaf(cpuid, 0xd, 0);
            VectorArea::of(state.eax, state.ecx, state.edx)
        } else {
            VectorArea::LEGACY
        };
        Ok(Capability {
            features,
            feature_control,
            basic,
            controls: ControlWords { pin, primary, secondary, exit, entry },
            misc: Misc::from_bits(rdmsr(IA32_VMX_MISC)),
            cr0: FixedBits { ones: rdmsr(IA32_VMX_CR0_FIXED0), may: rdmsr(IA32_VMX_CR0_FIXED1) },
            cr4: FixedBits { ones: rdmsr(IA32_VMX_CR4_FIXED0), may: rdmsr(IA32_VMX_CR4_FIXED1) },
            ept_vpid,
            physical_bits: (leaf(cpuid, 0x8000_0008, 0).eax & 0xff).clamp(32, 52),
            vector,
            speculation: speculation::derive(speculation_words(cpuid, structured, rdmsr)),
        })
    }

    /// Whether it has all of `features`.
    #[inline]
    pub const fn has(&self, features: Features) -> bool {
        self.features.contains(features)
    }

    /// How INVVPID drops the translations of one vCPU, with [`Features::VPID`].
    pub const fn invvpid_kind(&self) -> Invalidation {
        if self.ept_vpid.invvpid_single() { Invalidation::Single } else { Invalidation::All }
    }

    /// How INVEPT drops the translations of one VM.
    pub const fn invept_kind(&self) -> Invalidation {
        if self.ept_vpid.invept_single() { Invalidation::Single } else { Invalidation::All }
    }

    /// Names of what is there and used.
    pub fn used(&self) -> impl Iterator<Item = &'static str> {
        names(self.features & Features::USED)
    }

    /// Names of what is there and not used.
    pub fn unused(&self) -> impl Iterator<Item = &'static str> {
        names(self.features - Features::USED)
    }

    /// Names of what would be used and is missing.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> {
        names(Features::USED - self.features)
    }
}

/// What tells about speculation. `structured` is CPUID 7.0.
fn speculation_words(
    cpuid: &impl CpuIdReader,
    structured: CpuIdResult,
    rdmsr: impl Fn(u32) -> u64,
) -> speculation::Words {
    let capabilities = structured.edx & structured::ARCH_CAPABILITIES != 0;
    speculation::Words {
        structured_ebx: structured.ebx,
        structured_edx: structured.edx,
        second_edx: if structured.eax >= 2 { leaf(cpuid, 7, 2).edx } else { 0 },
        capabilities: if capabilities { rdmsr(ARCH_CAPABILITIES) } else { 0 },
        threads: leaf(cpuid, 0xb, 0).ebx & 0xffff,
    }
}

fn names(of: Features) -> impl Iterator<Item = &'static str> {
    ROWS.iter().filter(move |(feature, ..)| of.contains(*feature)).map(|(_, name, ..)| *name)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::vec::Vec;

    const fn reading(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuIdResult {
        CpuIdResult { eax, ebx, ecx, edx }
    }

    /// A processor as CPUID and the capability MSRs describe it.
    pub(crate) struct Recorded {
        cpuid: fn(u32, u32) -> CpuIdResult,
        msrs: &'static [(u32, u64)],
    }

    impl Recorded {
        fn rdmsr(&self, msr: u32) -> u64 {
            self.msrs.iter().find(|(known, _)| *known == msr).expect("an MSR that this processor does not have").1
        }

        pub(crate) fn capability(&self) -> Result<Capability, Refusal> {
            Capability::detect(&self.cpuid, |msr| self.rdmsr(msr))
        }

        /// The same with one MSR changed.
        fn with(&self, msr: u32, change: impl Fn(u64) -> u64) -> Result<Capability, Refusal> {
            let read = |asked| if asked == msr { change(self.rdmsr(asked)) } else { self.rdmsr(asked) };
            Capability::detect(&self.cpuid, read)
        }
    }

    fn arrandale_cpuid(eax: u32, ecx: u32) -> CpuIdResult {
        match (eax, ecx) {
            (0, _) => reading(0xb, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
            (1, _) => reading(0x20652, 0x0001_0800, 0x0298_e3bf, 0xbfeb_fbff),
            (0x8000_0000, _) => reading(0x8000_0008, 0, 0, 0),
            (0x8000_0001, _) => reading(0, 0, 1, 0x2810_0800),
            (0x8000_0008, _) => reading(0x3028, 0x200, 0, 0),
            _ => reading(0, 0, 0, 0),
        }
    }

    /// Recorded on Bochs 3.0, `corei5_arrandale_m520`: the oldest kind that can be used.
    pub(crate) const ARRANDALE: Recorded = Recorded {
        cpuid: arrandale_cpuid,
        msrs: &[
            (IA32_FEATURE_CONTROL, 0x5),
            (IA32_VMX_BASIC, 0xd8_1000_0000_002b),
            (IA32_VMX_TRUE_PINBASED_CTLS, 0x7f_0000_0016),
            (IA32_VMX_TRUE_PROCBASED_CTLS, 0xfff9_fffe_0400_6172),
            (IA32_VMX_TRUE_EXIT_CTLS, 0x407f_ffff_0003_6dfb),
            (IA32_VMX_TRUE_ENTRY_CTLS, 0xffff_0000_11fb),
            (IA32_VMX_PROCBASED_CTLS2, 0xff_0000_0000),
            (IA32_VMX_MISC, 0x4_01e0),
            (IA32_VMX_CR0_FIXED0, 0x8000_0021),
            (IA32_VMX_CR0_FIXED1, 0xffff_ffff),
            (IA32_VMX_CR4_FIXED0, 0x2000),
            (IA32_VMX_CR4_FIXED1, 0x67ff),
            (IA32_VMX_EPT_VPID_CAP, 0xf01_0611_4141),
        ],
    };

    fn haswell_cpuid(eax: u32, ecx: u32) -> CpuIdResult {
        match (eax, ecx) {
            (0, _) => reading(0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
            (1, _) => reading(0x306c3, 0x0001_0800, 0x7ffa_f3bf, 0xbfeb_fbff),
            (7, 0) => reading(0, 0x27ab, 0, 0),
            (0xd, 0) => reading(7, 0x240, 0x340, 0),
            (0xd, 1) => reading(1, 0, 0, 0),
            (0x8000_0000, _) => reading(0x8000_0008, 0, 0, 0),
            (0x8000_0001, _) => reading(0, 0, 0x121, 0x2c10_0800),
            (0x8000_0008, _) => reading(0x3028, 0x200, 0, 0),
            _ => reading(0, 0, 0, 0),
        }
    }

    /// Recorded on Bochs 3.0, `corei7_haswell_4770`.
    pub(crate) const HASWELL: Recorded = Recorded {
        cpuid: haswell_cpuid,
        msrs: &[
            (IA32_FEATURE_CONTROL, 0x5),
            (IA32_VMX_BASIC, 0xd8_1000_0000_002b),
            (IA32_VMX_TRUE_PINBASED_CTLS, 0x7f_0000_0016),
            (IA32_VMX_TRUE_PROCBASED_CTLS, 0xfff9_fffe_0400_6172),
            (IA32_VMX_TRUE_EXIT_CTLS, 0x407f_ffff_0003_6dfb),
            (IA32_VMX_TRUE_ENTRY_CTLS, 0xffff_0000_11fb),
            (IA32_VMX_PROCBASED_CTLS2, 0x4_7fff_0000_0000),
            (IA32_VMX_MISC, 0x2004_01e0),
            (IA32_VMX_CR0_FIXED0, 0x8000_0021),
            (IA32_VMX_CR0_FIXED1, 0xffff_ffff),
            (IA32_VMX_CR4_FIXED0, 0x2000),
            (IA32_VMX_CR4_FIXED1, 0x17_27ff),
            (IA32_VMX_EPT_VPID_CAP, 0xf01_0633_4141),
        ],
    };

    fn skylake_cpuid(eax: u32, ecx: u32) -> CpuIdResult {
        match (eax, ecx) {
            (0, _) => reading(0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
            (1, _) => reading(0x50654, 0x0001_0800, 0x7ffa_f3bf, 0xbfeb_fbff),
            (7, 0) => reading(0, 0xd19f_27eb, 0, 0),
            (0xd, 0) => reading(0xe7, 0x240, 0xa80, 0),
            (0xd, 1) => reading(0xf, 0x240, 0, 0),
            (0x8000_0000, _) => reading(0x8000_0008, 0, 0, 0),
            (0x8000_0001, _) => reading(0, 0, 0x121, 0x2c10_0800),
            (0x8000_0008, _) => reading(0x3028, 0x200, 0, 0),
            _ => reading(0, 0, 0, 0),
        }
    }

    /// Recorded on Bochs 3.0, `corei7_skylake_x`.
    pub(crate) const SKYLAKE: Recorded = Recorded {
        cpuid: skylake_cpuid,
        msrs: &[
            (IA32_FEATURE_CONTROL, 0x5),
            (IA32_VMX_BASIC, 0xd8_1000_0000_002b),
            (IA32_VMX_TRUE_PINBASED_CTLS, 0xff_0000_0016),
            (IA32_VMX_TRUE_PROCBASED_CTLS, 0xfff9_fffe_0400_6172),
            (IA32_VMX_TRUE_EXIT_CTLS, 0x407f_ffff_0003_6dfb),
            (IA32_VMX_TRUE_ENTRY_CTLS, 0xffff_0000_11fb),
            (IA32_VMX_PROCBASED_CTLS2, 0x257_7fff_0000_0000),
            (IA32_VMX_MISC, 0x6004_01e0),
            (IA32_VMX_CR0_FIXED0, 0x8000_0021),
            (IA32_VMX_CR0_FIXED1, 0xffff_ffff),
            (IA32_VMX_CR4_FIXED0, 0x2000),
            (IA32_VMX_CR4_FIXED1, 0x37_27ff),
            (IA32_VMX_EPT_VPID_CAP, 0xf01_0673_4141),
        ],
    };

    #[test]
    fn the_processors_differ_as_their_makers_say() {
        let haswell = HASWELL.capability().unwrap();
        assert!(haswell.has(Features::INTERRUPT_DELIVERY | Features::VIRTUAL_X2APIC | Features::GIANT_PAGES));
        assert!(!haswell.features.intersects(Features::XSAVES | Features::POSTED_INTERRUPTS | Features::TSC_SCALING));
        assert_eq!((haswell.physical_bits, haswell.vector.xcr0, haswell.vector.bytes), (40, 7, 0x340));
        assert_eq!((haswell.basic.revision(), haswell.basic.region_bytes()), (0x2b, 4096));
        assert_eq!((haswell.misc.timer_shift(), haswell.misc.cr3_targets()), (0, 4));
        let arrandale = ARRANDALE.capability().unwrap();
        assert!(arrandale.has(Features::VPID | Features::PREEMPTION_TIMER | Features::LARGE_PAGES | Features::RDTSCP));
        assert!(!arrandale.features.intersects(
            Features::VIRTUAL_INTERRUPTS | Features::APIC_REGISTERS | Features::GIANT_PAGES | Features::XSAVE
        ));
        assert_eq!((arrandale.vector.xcr0, arrandale.vector.bytes), (1, 512));
        let skylake = SKYLAKE.capability().unwrap();
        assert!(skylake.has(Features::XSAVES | Features::POSTED_INTERRUPTS | Features::TSC_SCALING));
        assert_eq!((skylake.vector.xcr0, skylake.vector.bytes), (0xe7, 0xa80));
    }

    #[test]
    fn the_report_names_what_is_used_unused_and_missing() {
        let haswell = HASWELL.capability().unwrap();
        assert!(haswell.used().any(|name| name == "virtual-interrupt delivery"));
        assert!(haswell.unused().any(|name| name == "VMCS shadowing"));
        assert!(haswell.missing().any(|name| name == "XSAVES"));
        let arrandale: Vec<_> = ARRANDALE.capability().unwrap().missing().collect();
        assert!(arrandale.contains(&"EPT 1 GiB pages") && arrandale.contains(&"INVPCID"));
    }

    #[test]
    fn refusals_say_which_obstacle_it_is() {
        let none = |_: u32, _: u32| reading(0, 0, 0, 0);
        let refused = Capability::detect(&none, |_| panic!("the MSR does not exist here")).err();
        assert_eq!(refused, Some(Refusal::NoVmx));
        assert_eq!(HASWELL.with(IA32_FEATURE_CONTROL, |_| 1).err(), Some(Refusal::DisabledByFirmware));
        assert_eq!(HASWELL.with(IA32_FEATURE_CONTROL, |_| 3).err(), Some(Refusal::DisabledByFirmware));
        assert_eq!(HASWELL.with(IA32_FEATURE_CONTROL, |_| 0).err(), None);
        let without = |bit: u32| move |value: u64| value & !(1 << (32 + bit));
        assert_eq!(HASWELL.with(IA32_VMX_PROCBASED_CTLS2, without(1)).err(), Some(Refusal::NoEpt));
        assert_eq!(HASWELL.with(IA32_VMX_TRUE_PROCBASED_CTLS, without(31)).err(), Some(Refusal::NoEpt));
        assert_eq!(HASWELL.with(IA32_VMX_PROCBASED_CTLS2, without(7)).err(), Some(Refusal::NoUnrestrictedGuest));
        assert_eq!(
            HASWELL.with(IA32_VMX_EPT_VPID_CAP, |value| value & !(1 << 20)).err(),
            Some(Refusal::Missing("INVEPT"))
        );
        for refusal in [Refusal::NoVmx, Refusal::DisabledByFirmware, Refusal::NoEpt, Refusal::NoUnrestrictedGuest] {
            assert!(alloc::format!("{refusal}").contains("VT-x"));
        }
    }

    #[test]
    fn processors_without_the_true_msrs_are_asked_for_the_others() {
        let seen = core::cell::RefCell::new(Vec::new());
        let old = Capability::detect(&HASWELL.cpuid, |msr| {
            seen.borrow_mut().push(msr);
            match msr {
                IA32_VMX_BASIC => HASWELL.rdmsr(msr) & !(1 << 55),
                IA32_VMX_PINBASED_CTLS => HASWELL.rdmsr(IA32_VMX_TRUE_PINBASED_CTLS),
                IA32_VMX_PROCBASED_CTLS => 0xfff9_fffe_0401_e172,
                IA32_VMX_EXIT_CTLS => 0x007f_ffff_0003_6dff,
                IA32_VMX_ENTRY_CTLS => 0x0000_ffff_0000_11ff,
                _ => HASWELL.rdmsr(msr),
            }
        });
        assert!(old.is_ok());
        assert!(!seen.borrow().contains(&IA32_VMX_TRUE_PROCBASED_CTLS));
    }

    #[test]
    fn every_feature_has_one_row() {
        for feature in Features::all().iter() {
            assert_eq!(ROWS.iter().filter(|(row, ..)| *row == feature).count(), 1, "{feature:?}");
        }
        assert_eq!(ROWS.len(), Features::all().iter().count());
    }
}
