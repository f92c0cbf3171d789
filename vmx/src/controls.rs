//! Controls of the VMCS, derived from what the processor allows.
//!
//! Manual: Intel SDM 3C (December 2024, 325462-086), 25.6 "VM-Execution Control Fields" to 25.8 "VM-Entry Control Fields",
//! and 3D A.3 "VM-Execution Controls" to A.5 "VM-Entry Controls". Key types: the control words [`Pin`], [`Primary`],
//! [`Secondary`], [`Exit`] and [`Entry`]; [`Allowed`], what a capability MSR says of one of them; [`Controls`], the words
//! that were settled; [`Shared`], who owns which bit of CR0 or CR4; [`msr_bit`], the layout of the MSR bitmap. Neighbours: `capability` before it,
//! `vmcs` and `lib` after it. Nothing here touches the processor.

use crate::capability::{Capability, Features, Refusal};
use vcpu::{cr0, cr4};

macro_rules! words {
    ($($(#[$doc:meta])* $word:ident { $($(#[$bit_doc:meta])* $name:ident = $bit:literal, $title:literal;)* })*) => {$(
        bitflags::bitflags! {
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $word: u32 {
                $($(#[$bit_doc])* #[doc = concat!("\"", $title, "\".")] const $name = 1 << $bit;)*
                // Reserved bits that the processor wants set stay in the word.
                const _ = !0;
            }
        }

        impl $word {
            /// The SDM's name of each bit that is named here.
            const TITLES: &[($word, &str)] = &[$(($word::$name, $title)),*];
        }
    )*};
}

words! {
    /// SDM 3C 25.6.1 "Pin-Based VM-Execution Controls".
    Pin {
        EXTERNAL_INTERRUPT_EXITING = 0, "external-interrupt exiting";
        NMI_EXITING = 3, "NMI exiting";
        VIRTUAL_NMIS = 5, "virtual NMIs";
        PREEMPTION_TIMER = 6, "activate VMX-preemption timer";
        POSTED_INTERRUPTS = 7, "process posted interrupts";
    }
    /// SDM 3C 25.6.2 "Processor-Based VM-Execution Controls", primary.
    Primary {
        INTERRUPT_WINDOW_EXITING = 2, "interrupt-window exiting";
        TSC_OFFSETTING = 3, "use TSC offsetting";
        HLT_EXITING = 7, "HLT exiting";
        INVLPG_EXITING = 9, "INVLPG exiting";
        MWAIT_EXITING = 10, "MWAIT exiting";
        RDPMC_EXITING = 11, "RDPMC exiting";
        RDTSC_EXITING = 12, "RDTSC exiting";
        CR3_LOAD_EXITING = 15, "CR3-load exiting";
        CR3_STORE_EXITING = 16, "CR3-store exiting";
        CR8_LOAD_EXITING = 19, "CR8-load exiting";
        CR8_STORE_EXITING = 20, "CR8-store exiting";
        TPR_SHADOW = 21, "use TPR shadow";
        NMI_WINDOW_EXITING = 22, "NMI-window exiting";
        MOV_DR_EXITING = 23, "MOV-DR exiting";
        UNCONDITIONAL_IO_EXITING = 24, "unconditional I/O exiting";
        IO_BITMAPS = 25, "use I/O bitmaps";
        MONITOR_TRAP = 27, "monitor trap flag";
        MSR_BITMAPS = 28, "use MSR bitmaps";
        MONITOR_EXITING = 29, "MONITOR exiting";
        PAUSE_EXITING = 30, "PAUSE exiting";
        SECONDARY = 31, "activate secondary controls";
    }
    /// SDM 3C 25.6.2, secondary.
    Secondary {
        APIC_ACCESSES = 0, "virtualize APIC accesses";
        EPT = 1, "enable EPT";
        DESCRIPTOR_TABLE_EXITING = 2, "descriptor-table exiting";
        RDTSCP = 3, "enable RDTSCP";
        VIRTUAL_X2APIC = 4, "virtualize x2APIC mode";
        VPID = 5, "enable VPID";
        WBINVD_EXITING = 6, "WBINVD exiting";
        UNRESTRICTED_GUEST = 7, "unrestricted guest";
        APIC_REGISTERS = 8, "APIC-register virtualization";
        VIRTUAL_INTERRUPTS = 9, "virtual-interrupt delivery";
        PAUSE_LOOP_EXITING = 10, "PAUSE-loop exiting";
        RDRAND_EXITING = 11, "RDRAND exiting";
        INVPCID = 12, "enable INVPCID";
        VM_FUNCTIONS = 13, "enable VM functions";
        VMCS_SHADOWING = 14, "VMCS shadowing";
        ENCLS_EXITING = 15, "enable ENCLS exiting";
        RDSEED_EXITING = 16, "RDSEED exiting";
        PAGE_MODIFICATION_LOG = 17, "enable PML";
        EPT_VIOLATION_VE = 18, "EPT-violation #VE";
        XSAVES = 20, "enable XSAVES/XRSTORS";
        MODE_BASED_EXECUTE = 22, "mode-based execute control for EPT";
        SUBPAGE_WRITES = 23, "sub-page write permissions for EPT";
        TSC_SCALING = 25, "use TSC scaling";
        USER_WAIT = 26, "enable user wait and pause";
        PCONFIG = 27, "enable PCONFIG";
    }
    /// SDM 3C 25.7.1 "VM-Exit Controls".
    Exit {
        SAVE_DEBUG_CONTROLS = 2, "save debug controls";
        HOST_64_BIT = 9, "host address-space size";
        ACKNOWLEDGE_INTERRUPT = 15, "acknowledge interrupt on exit";
        LOAD_PAT = 19, "load IA32_PAT on exit";
        LOAD_EFER = 21, "load IA32_EFER on exit";
        SAVE_PREEMPTION_TIMER = 22, "save VMX-preemption timer value";
    }
    /// SDM 3C 25.8.1 "VM-Entry Controls".
    Entry {
        LOAD_DEBUG_CONTROLS = 2, "load debug controls";
        LONG_MODE = 9, "IA-32e mode guest";
        SMM = 10, "entry to SMM";
        DEACTIVATE_DUAL_MONITOR = 11, "deactivate dual-monitor treatment";
        LOAD_PAT = 14, "load IA32_PAT on entry";
        LOAD_EFER = 15, "load IA32_EFER on entry";
    }
}

/// Which settings of a control word the processor allows: the low half of a capability MSR are bits that must be one, the
/// high half bits that may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    must: u32,
    may: u32,
}

impl Allowed {
    /// As SDM 3D A.3.1 lays it out.
    pub const fn from_msr(value: u64) -> Allowed {
        Allowed { must: value as u32, may: (value >> 32) as u32 }
    }

    /// Whether all of `bits` may be one.
    pub const fn may_set(self, bits: u32) -> bool {
        self.may & bits == bits
    }

    /// Whether a word keeps to it.
    pub const fn permits(self, word: u32) -> bool {
        word & self.must == self.must && word & !self.may == 0
    }

    /// The word with all of `required`, as much of `desired` as there is, and none of the other bits that can be zero.
    ///
    /// # Errors
    /// The first bit of `required` that cannot be one, or of `forbidden` that cannot be zero.
    const fn settle(self, required: u32, desired: u32, forbidden: u32) -> Result<u32, u32> {
        let lacking = required & !self.may | forbidden & self.must;
        if lacking != 0 {
            return Err(1 << lacking.trailing_zeros());
        }
        Ok(self.must | required | desired & self.may)
    }
}

macro_rules! settle {
    ($word:ident, $allowed:expr, $required:expr, $desired:expr, $forbidden:expr) => {
        match $allowed.settle($required.bits(), $desired.bits(), $forbidden.bits()) {
            Ok(bits) => $word::from_bits_retain(bits),
            Err(bit) => {
                let title = $word::TITLES.iter().find(|(known, _)| known.bits() == bit);
                return Err(Refusal::Missing(title.map_or("a required control", |(_, title)| *title)));
            }
        }
    };
}

/// Whether the processor or the machine delivers interrupts out of the APIC page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicVirtualization {
    /// The machine injects them.
    Off,
    /// Virtual-interrupt delivery, where the processor has it.
    WhereThere,
}

/// The control words of every vCPU on this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Controls {
    pub pin: Pin,
    pub primary: Primary,
    /// In xAPIC mode; [`Controls::secondary_for`] has the other.
    pub secondary: Secondary,
    pub exit: Exit,
    pub entry: Entry,
    /// Whether guests in x2APIC mode have their interrupts delivered too.
    x2apic: bool,
}

impl Controls {
    /// Settles every word by what the processor allows.
    ///
    /// # Errors
    /// A control that the hypervisor cannot do without is missing, or one that it cannot bear cannot be switched off.
    pub fn derive(capability: &Capability, apic: ApicVirtualization) -> Result<Controls, Refusal> {
        let allowed = &capability.controls;
        let delivers = apic == ApicVirtualization::WhereThere && capability.has(Features::INTERRUPT_DELIVERY);
        let pin = settle!(
            Pin,
            allowed.pin,
            Pin::EXTERNAL_INTERRUPT_EXITING | Pin::NMI_EXITING | Pin::VIRTUAL_NMIS,
            Pin::PREEMPTION_TIMER,
            Pin::POSTED_INTERRUPTS
        );
        let primary = settle!(
            Primary,
            allowed.primary,
            Primary::TSC_OFFSETTING
                | Primary::HLT_EXITING
                | Primary::MWAIT_EXITING
                | Primary::RDPMC_EXITING
                | Primary::TPR_SHADOW
                | Primary::UNCONDITIONAL_IO_EXITING
                | Primary::MSR_BITMAPS
                | Primary::MONITOR_EXITING
                | Primary::SECONDARY,
            Primary::empty(),
            Primary::INTERRUPT_WINDOW_EXITING
                | Primary::INVLPG_EXITING
                | Primary::RDTSC_EXITING
                | Primary::CR3_LOAD_EXITING
                | Primary::CR3_STORE_EXITING
                | Primary::CR8_LOAD_EXITING
                | Primary::CR8_STORE_EXITING
                | Primary::NMI_WINDOW_EXITING
                | Primary::MOV_DR_EXITING
                | Primary::IO_BITMAPS
                | Primary::MONITOR_TRAP
                | Primary::PAUSE_EXITING
        );
        let mut desired = Secondary::WBINVD_EXITING | Secondary::PAUSE_LOOP_EXITING | Secondary::ENCLS_EXITING;
        desired.set(Secondary::VPID, capability.has(Features::VPID));
        desired.set(Secondary::RDTSCP, capability.has(Features::RDTSCP));
        desired.set(Secondary::INVPCID, capability.has(Features::INVPCID));
        desired.set(Secondary::XSAVES, capability.has(Features::XSAVES));
        if delivers {
            desired |= Secondary::APIC_ACCESSES | Secondary::APIC_REGISTERS | Secondary::VIRTUAL_INTERRUPTS;
        }
        let secondary = settle!(
            Secondary,
            allowed.secondary,
            Secondary::EPT | Secondary::UNRESTRICTED_GUEST,
            desired,
            Secondary::DESCRIPTOR_TABLE_EXITING
                | Secondary::VIRTUAL_X2APIC
                | Secondary::RDRAND_EXITING
                | Secondary::VM_FUNCTIONS
                | Secondary::VMCS_SHADOWING
                | Secondary::RDSEED_EXITING
                | Secondary::PAGE_MODIFICATION_LOG
                | Secondary::EPT_VIOLATION_VE
                | Secondary::MODE_BASED_EXECUTE
                | Secondary::SUBPAGE_WRITES
                | Secondary::TSC_SCALING
                | Secondary::USER_WAIT
                | Secondary::PCONFIG
        );
        let exit = settle!(
            Exit,
            allowed.exit,
            Exit::SAVE_DEBUG_CONTROLS | Exit::HOST_64_BIT | Exit::LOAD_PAT | Exit::LOAD_EFER,
            Exit::empty(),
            Exit::ACKNOWLEDGE_INTERRUPT | Exit::SAVE_PREEMPTION_TIMER
        );
        let entry = settle!(
            Entry,
            allowed.entry,
            Entry::LOAD_DEBUG_CONTROLS | Entry::LOAD_PAT | Entry::LOAD_EFER,
            Entry::empty(),
            Entry::LONG_MODE | Entry::SMM | Entry::DEACTIVATE_DUAL_MONITOR
        );
        if !allowed.entry.may_set(Entry::LONG_MODE.bits()) {
            return Err(Refusal::Missing("IA-32e mode guest"));
        }
        for (window, name) in [
            (Primary::INTERRUPT_WINDOW_EXITING, "interrupt-window exiting"),
            (Primary::NMI_WINDOW_EXITING, "NMI-window exiting"),
        ] {
            if !allowed.primary.may_set(window.bits()) {
                return Err(Refusal::Missing(name));
            }
        }
        let x2apic = delivers && capability.has(Features::VIRTUAL_X2APIC);
        Ok(Controls { pin, primary, secondary, exit, entry, x2apic })
    }

    /// Whether the processor delivers interrupts, in xAPIC mode at least.
    pub const fn deliver_interrupts(&self) -> bool {
        self.secondary.contains(Secondary::VIRTUAL_INTERRUPTS)
    }

    /// The secondary controls for a guest in xAPIC (`false`) or x2APIC mode. Where the processor cannot virtualize x2APIC mode,
    /// a guest in that mode has its registers virtualized by the machine, and its interrupts delivered all the same.
    pub fn secondary_for(&self, x2apic: bool) -> Secondary {
        let mut secondary = self.secondary;
        if x2apic && self.deliver_interrupts() {
            secondary.remove(Secondary::APIC_ACCESSES);
            secondary.set(Secondary::VIRTUAL_X2APIC, self.x2apic);
        }
        secondary
    }
}

/// Who owns which bits of a control register. The guest changes its own without an exit; of the others it sees a shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Bits that the guest reads and writes straight.
    pub owned: u64,
    /// Bits that are one in the real register whatever the guest asks for.
    ones: u64,
    /// Bits that may be one in the real register.
    may: u64,
}

impl Shared {
    /// CR0 under unrestricted guest: PE and PG are the guest's choice, but it has to ask; NE is fixed. CD and NW are kept
    /// from the processor's caches: VM entry does not load them, a straight write would. WP, AM, TS, EM and MP are the
    /// guest's own. SDM 3C 24.8 "Restrictions on VMX Operation", 27.3.2.1.
    pub fn cr0(capability: &Capability) -> Shared {
        Shared {
            owned: cr0::MP | cr0::EM | cr0::TS | cr0::WP | cr0::AM,
            ones: (capability.cr0.ones & !(cr0::PE | cr0::PG)) | cr0::NE | cr0::ET,
            may: capability.cr0.may & !(cr0::CD | cr0::NW),
        }
    }

    /// CR4: the guest owns what every processor here has and nothing else depends on. VMXE is one and hidden; MCE is one,
    /// because a machine check with MCE clear would shut the host down.
    pub fn cr4(capability: &Capability) -> Shared {
        Shared {
            owned: cr4::VME
                | cr4::PVI
                | cr4::TSD
                | cr4::DE
                | cr4::PSE
                | cr4::PGE
                | cr4::PCE
                | cr4::OSFXSR
                | cr4::OSXMMEXCPT,
            ones: capability.cr4.ones | cr4::MCE,
            may: capability.cr4.may,
        }
    }

    /// The guest/host mask: the bits that are not the guest's.
    pub const fn mask(&self) -> u64 {
        !self.owned
    }

    /// What the real register holds when the guest wants `value`.
    pub const fn real(&self, value: u64) -> u64 {
        (value | self.ones) & self.may
    }

    /// What the guest sees of the real register and its shadow.
    pub const fn seen(&self, real: u64, shadow: u64) -> u64 {
        real & self.owned | shadow & !self.owned
    }
}

/// Whether an access to an MSR exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAccess {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

/// The bit of an MSR in the 4 KiB bitmap, SDM 3C 25.6.9 "MSR-Bitmap Address"; `None` for MSRs that always exit.
pub const fn msr_bit(msr: u32, access: MsrAccess) -> Option<usize> {
    let write = match access {
        MsrAccess::Read => 0,
        MsrAccess::Write => 2048 * 8,
    };
    match msr {
        0..=0x1fff => Some(write + msr as usize),
        0xc000_0000..=0xc000_1fff => Some(write + 1024 * 8 + (msr - 0xc000_0000) as usize),
        _ => None,
    }
}

/// MSRs that the guest reads and writes without an exit: what is switched with the vCPU or lies in the VMCS, and has no
/// value that the hardware does not check itself. EFER, PAT and DEBUGCTL are checked by the machine.
pub const STRAIGHT: [u32; 10] = [
    x86::msr::IA32_SYSENTER_CS,
    x86::msr::IA32_SYSENTER_ESP,
    x86::msr::IA32_SYSENTER_EIP,
    x86::msr::IA32_STAR,
    x86::msr::IA32_LSTAR,
    x86::msr::IA32_CSTAR,
    x86::msr::IA32_FMASK,
    x86::msr::IA32_FS_BASE,
    x86::msr::IA32_GS_BASE,
    x86::msr::IA32_KERNEL_GSBASE,
];

/// IA32_TSC_AUX, straight only where RDTSCP is there.
pub const TSC_AUX: u32 = 0xc000_0103;

/// x2APIC registers that the processor reads by itself in virtualized x2APIC mode: TPR, PPR, ISR, TMR and IRR. SDM 3C 30.5
/// "Virtualizing MSR-Based APIC Accesses".
pub const X2APIC_READS: [core::ops::RangeInclusive<u32>; 3] = [0x808..=0x808, 0x80a..=0x80a, 0x810..=0x827];

/// Those that it writes by itself: TPR, EOI and self-IPI.
pub const X2APIC_WRITES: [u32; 3] = [0x808, 0x80b, 0x83f];

/// All accesses to x2APIC registers that need no exit in virtualized x2APIC mode.
pub fn x2apic_accesses() -> impl Iterator<Item = (u32, MsrAccess)> {
    X2APIC_READS
        .into_iter()
        .flatten()
        .map(|msr| (msr, MsrAccess::Read))
        .chain(X2APIC_WRITES.into_iter().map(|msr| (msr, MsrAccess::Write)))
}

/// Vectors of exceptions that exit: #DB and #AC, by which a guest could otherwise keep the processor delivering for ever
/// (CVE-2015-8104, CVE-2015-5307), and #MC, which is the host's.
pub const EXCEPTIONS: u32 = 1 << vcpu::Exception::DB | 1 << vcpu::Exception::AC | 1 << vcpu::Exception::MC;

/// PAUSE instructions at most this many TSC ticks apart belong to one loop, SDM 3C 25.6.13.
pub const PAUSE_GAP: u32 = 128;
/// A loop of PAUSE exits when it has lasted this many TSC ticks.
pub const PAUSE_WINDOW: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::tests::{ARRANDALE, HASWELL, Recorded, SKYLAKE};

    fn derive(cpu: &Recorded, apic: ApicVirtualization) -> Controls {
        Controls::derive(&cpu.capability().unwrap(), apic).unwrap()
    }

    #[test]
    fn settled_words_keep_to_what_the_processor_allows() {
        for cpu in [&SKYLAKE, &HASWELL, &ARRANDALE] {
            for apic in [ApicVirtualization::Off, ApicVirtualization::WhereThere] {
                let capability = cpu.capability().unwrap();
                let controls = derive(cpu, apic);
                assert!(capability.controls.pin.permits(controls.pin.bits()));
                assert!(capability.controls.primary.permits(controls.primary.bits()));
                assert!(capability.controls.secondary.permits(controls.secondary_for(false).bits()));
                assert!(capability.controls.secondary.permits(controls.secondary_for(true).bits()));
                assert!(capability.controls.exit.permits(controls.exit.bits()));
                assert!(capability.controls.entry.permits(controls.entry.bits()));
            }
        }
    }

    #[test]
    fn interrupts_are_delivered_by_the_processor_only_where_asked_for_and_there() {
        assert!(derive(&HASWELL, ApicVirtualization::WhereThere).deliver_interrupts());
        assert!(!derive(&HASWELL, ApicVirtualization::Off).deliver_interrupts());
        assert!(!derive(&ARRANDALE, ApicVirtualization::WhereThere).deliver_interrupts());
        let controls = derive(&HASWELL, ApicVirtualization::WhereThere);
        assert!(controls.secondary_for(false).contains(Secondary::APIC_ACCESSES));
        let x2apic = controls.secondary_for(true);
        assert!(!x2apic.contains(Secondary::APIC_ACCESSES) && x2apic.contains(Secondary::VIRTUAL_X2APIC));
    }

    #[test]
    fn a_missing_or_stuck_control_is_refused_by_its_name() {
        let allowed = Allowed::from_msr(0x0000_000f_0000_0004);
        assert_eq!(allowed.settle(0b1001, 0b11_0010, 0), Ok(0b1111));
        assert_eq!(allowed.settle(0b1_0001, 0, 0), Err(0b1_0000));
        assert_eq!(allowed.settle(0, 0, 0b100), Err(0b100));

        let mut capability = HASWELL.capability().unwrap();
        capability.controls.primary.may &= !Primary::TPR_SHADOW.bits();
        let refusal = Controls::derive(&capability, ApicVirtualization::Off).unwrap_err();
        assert_eq!(refusal, Refusal::Missing("use TPR shadow"));
        let mut capability = HASWELL.capability().unwrap();
        capability.controls.primary.must |= Primary::CR3_LOAD_EXITING.bits();
        let refusal = Controls::derive(&capability, ApicVirtualization::Off).unwrap_err();
        assert_eq!(refusal, Refusal::Missing("CR3-load exiting"));
    }

    #[test]
    fn what_is_not_there_is_not_switched_on() {
        let arrandale = derive(&ARRANDALE, ApicVirtualization::WhereThere).secondary;
        assert!(arrandale.contains(Secondary::EPT | Secondary::UNRESTRICTED_GUEST | Secondary::VPID));
        assert!(!arrandale.intersects(Secondary::INVPCID | Secondary::XSAVES | Secondary::VIRTUAL_INTERRUPTS));
        assert!(derive(&HASWELL, ApicVirtualization::Off).secondary.contains(Secondary::INVPCID));
    }

    #[test]
    fn the_guest_sees_its_own_control_registers() {
        let capability = HASWELL.capability().unwrap();
        let shared = Shared::cr0(&capability);
        let wanted = cr0::ET | cr0::CD | cr0::NW;
        let real = shared.real(wanted);
        assert_eq!(real, cr0::ET | cr0::NE, "caches stay on, PE and PG stay off");
        assert_eq!(shared.seen(real | cr0::TS, wanted), wanted | cr0::TS);

        let shared = Shared::cr4(&capability);
        let real = shared.real(cr4::PAE);
        assert_eq!(real, cr4::PAE | cr4::VMXE | cr4::MCE);
        assert_eq!(shared.seen(real, cr4::PAE), cr4::PAE);
        assert_ne!(shared.mask() & cr4::VMXE, 0);
    }

    #[test]
    fn msr_bits_stand_in_four_quarters() {
        assert_eq!(msr_bit(0, MsrAccess::Read), Some(0));
        assert_eq!(msr_bit(0x1fff, MsrAccess::Read), Some(8191));
        assert_eq!(msr_bit(0xc000_0081, MsrAccess::Read), Some(8192 + 0x81));
        assert_eq!(msr_bit(0x174, MsrAccess::Write), Some(16384 + 0x174));
        assert_eq!(msr_bit(0xc000_1fff, MsrAccess::Write), Some(32767));
        assert_eq!(msr_bit(0x2000, MsrAccess::Read), None);
        assert_eq!(msr_bit(0x4000_0000, MsrAccess::Write), None);
    }

    #[test]
    fn the_task_priority_is_read_and_written_straight_and_the_timer_is_not() {
        let accesses = || x2apic_accesses();
        assert!(accesses().any(|access| access == (0x808, MsrAccess::Read)));
        assert!(accesses().any(|access| access == (0x80b, MsrAccess::Write)));
        assert!(!accesses().any(|(msr, _)| msr == 0x839 || msr == 0x838 || msr == 0x830));
    }
}
