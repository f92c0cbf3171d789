//! What one program can learn of another through speculation on a processor, and what is done about it: names and data.
//!
//! Key types: [`Speculation`], which each backend derives in its own `speculation` module from what its processors report;
//! [`Defences`] and [`Exposures`], with their names for the boot log; [`GuestSpeculation`], what guests are given.
//! Neighbours: the backends carry the defences out, `machine` advertises to guests no more than [`GuestSpeculation`] says.
//!
//! Manuals: Intel SDM 4 (December 2024, 335592-086), 2.1 "Architectural MSRs"; AMD APM 2 (24593, revision 3.42), 3.2.9
//! "Speculation Control MSRs".

/// IA32_SPEC_CTRL.
pub const SPEC_CTRL: u32 = 0x48;
/// IA32_PRED_CMD.
pub const PRED_CMD: u32 = 0x49;
/// IA32_ARCH_CAPABILITIES.
pub const ARCH_CAPABILITIES: u32 = 0x10a;
/// PRED_CMD.IBPB: forget all indirect branch predictions.
pub const IBPB: u64 = 1 << 0;

/// Bits of SPEC_CTRL.
pub mod spec_ctrl {
    /// Predictions of less privileged code do not reach more privileged code.
    pub const IBRS: u64 = 1 << 0;
    /// Nor do those of the core's other thread.
    pub const STIBP: u64 = 1 << 1;
    /// Loads do not pass older stores whose address is unknown.
    pub const SSBD: u64 = 1 << 2;
    /// Store data is not forwarded by prediction. AMD.
    pub const PSFD: u64 = 1 << 7;
    /// Branch history of less privileged code does not reach more privileged code. Intel.
    pub const BHI_DIS_S: u64 = 1 << 10;
}

/// Bits of IA32_ARCH_CAPABILITIES.
#[allow(missing_docs)]
pub mod arch_capabilities {
    pub const RDCL_NO: u64 = 1 << 0;
    pub const IBRS_ALL: u64 = 1 << 1;
    pub const RSBA: u64 = 1 << 2;
    pub const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    pub const SSB_NO: u64 = 1 << 4;
    pub const MDS_NO: u64 = 1 << 5;
    pub const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
    pub const TAA_NO: u64 = 1 << 8;
    pub const SBDR_SSDP_NO: u64 = 1 << 13;
    pub const FBSDP_NO: u64 = 1 << 14;
    pub const PSDP_NO: u64 = 1 << 15;
    pub const FB_CLEAR: u64 = 1 << 17;
    pub const RRSBA: u64 = 1 << 19;
    pub const BHI_NO: u64 = 1 << 20;
    pub const PBRSB_NO: u64 = 1 << 24;
    pub const GDS_NO: u64 = 1 << 26;
    pub const RFDS_NO: u64 = 1 << 27;
    pub const RFDS_CLEAR: u64 = 1 << 28;
    /// What a guest may know: what is true of the processor for it too, and enumerates no register that it does not have.
    pub const FOR_GUESTS: u64 = RDCL_NO
        | IBRS_ALL
        | RSBA
        | SKIP_L1DFL_VMENTRY
        | SSB_NO
        | MDS_NO
        | IF_PSCHANGE_MC_NO
        | TAA_NO
        | SBDR_SSDP_NO
        | FBSDP_NO
        | PSDP_NO
        | FB_CLEAR
        | RRSBA
        | BHI_NO
        | PBRSB_NO
        | GDS_NO
        | RFDS_NO
        | RFDS_CLEAR;
}

bitflags::bitflags! {
    /// What the hypervisor does against leaks.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Defences: u32 {
        /// Branch predictions are dropped when a CPU gets another vCPU than it had.
        const PREDICTOR_BARRIER = 1 << 0;
        /// The return stack is filled with harmless targets after each exit.
        const RETURN_STACK_REFILL = 1 << 1;
        /// Guests' predictions do not reach the host: IBRS stays on.
        const HOST_IBRS = 1 << 2;
        /// Guests' branch history does not reach the host.
        const HOST_HISTORY = 1 << 3;
        /// The processor separates predictions and clears the return stack at exits by itself (AMD).
        const AUTOMATIC_IBRS = 1 << 4;
        /// The first-level data cache is emptied before each entry, and the buffers with it.
        const L1D_FLUSH = 1 << 5;
        /// VERW empties the buffers before each entry.
        const BUFFER_CLEAR = 1 << 6;
        /// SPEC_CTRL is switched with the vCPU and guests have it.
        const GUEST_SPEC_CTRL = 1 << 7;
        /// Guests have PRED_CMD.
        const GUEST_BARRIER = 1 << 8;
    }
}

bitflags::bitflags! {
    /// What stays open: the processor has it and nothing here closes it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Exposures: u32 {
        /// No barrier: microcode is missing.
        const NO_BARRIER = 1 << 0;
        /// The host's indirect branches may take guests' predictions.
        const HOST_BRANCHES = 1 << 1;
        /// The host's returns may (Retbleed, SRSO).
        const HOST_RETURNS = 1 << 2;
        /// Branch history injection.
        const BRANCH_HISTORY = 1 << 3;
        /// L1 terminal fault, without a way to flush.
        const L1_TERMINAL_FAULT = 1 << 4;
        /// Microarchitectural buffers, without a way to clear them.
        const BUFFERS = 1 << 5;
        /// Other threads of a core see its cache or buffers while it runs.
        const SIBLINGS = 1 << 6;
    }
}

/// Names for the boot log.
const DEFENCES: [(Defences, &str); 9] = [
    (Defences::PREDICTOR_BARRIER, "IBPB between vCPUs"),
    (Defences::RETURN_STACK_REFILL, "return stack refill after exits"),
    (Defences::HOST_IBRS, "IBRS in the host"),
    (Defences::HOST_HISTORY, "BHI_DIS_S in the host"),
    (Defences::AUTOMATIC_IBRS, "automatic IBRS"),
    (Defences::L1D_FLUSH, "L1D flush before entries"),
    (Defences::BUFFER_CLEAR, "VERW before entries"),
    (Defences::GUEST_SPEC_CTRL, "SPEC_CTRL for guests"),
    (Defences::GUEST_BARRIER, "PRED_CMD for guests"),
];

const EXPOSURES: [(Exposures, &str); 7] = [
    (Exposures::NO_BARRIER, "branch targets between guests (no IBPB; update the microcode)"),
    (Exposures::HOST_BRANCHES, "branch targets of the host (no enhanced or automatic IBRS)"),
    (Exposures::HOST_RETURNS, "return targets of the host (Retbleed, SRSO)"),
    (Exposures::BRANCH_HISTORY, "branch history (BHI)"),
    (Exposures::L1_TERMINAL_FAULT, "L1TF (no L1D_FLUSH; update the microcode)"),
    (Exposures::BUFFERS, "MDS, TAA or RFDS (no MD_CLEAR; update the microcode)"),
    (Exposures::SIBLINGS, "threads of one core (L1TF, MDS; switch hyper-threading off in the firmware)"),
];

impl Defences {
    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        DEFENCES.iter().filter(move |(defence, _)| self.contains(*defence)).map(|(_, name)| *name)
    }
}

impl Exposures {
    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        EXPOSURES.iter().filter(move |(exposure, _)| self.contains(*exposure)).map(|(_, name)| *name)
    }
}

/// What guests have to defend themselves with. All of it is switched with the vCPU, or has an effect on its CPU alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestSpeculation {
    /// The bits of SPEC_CTRL that they may set; 0 if they do not have the register.
    pub spec_ctrl: u64,
    /// They can write IBPB to PRED_CMD.
    pub barrier: bool,
    /// What they read from IA32_ARCH_CAPABILITIES, if they have it.
    pub arch_capabilities: Option<u64>,
}

/// A processor's case, as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speculation {
    /// What is done.
    pub defences: Defences,
    /// What stays open.
    pub exposures: Exposures,
    /// What SPEC_CTRL always holds while the host runs: a guest's own bits are added while its vCPU is resident.
    pub host_spec_ctrl: u64,
    /// For guests.
    pub guest: GuestSpeculation,
}

impl Speculation {
    /// Of a processor that knows of none of it: nothing is done and nothing is claimed.
    pub const NONE: Speculation = Speculation {
        defences: Defences::empty(),
        exposures: Exposures::empty(),
        host_spec_ctrl: 0,
        guest: GuestSpeculation { spec_ctrl: 0, barrier: false, arch_capabilities: None },
    };

    /// Whether guests read and write SPEC_CTRL without an exit: where the host needs none of its bits, so that it does not
    /// matter what it holds.
    pub const fn passes_spec_ctrl(&self) -> bool {
        self.guest.spec_ctrl != 0 && self.host_spec_ctrl == 0
    }
}

/// Which vCPU a CPU ran last, and whether another one needs a barrier there.
#[derive(Debug, Default)]
pub struct LastResident(core::sync::atomic::AtomicU64);

impl LastResident {
    /// Of a CPU that has run none.
    pub const fn new() -> LastResident {
        LastResident(core::sync::atomic::AtomicU64::new(0))
    }

    /// The vCPU with this identity (not 0, never given twice) comes. True if another one was here before.
    pub fn changes_to(&self, identity: u64) -> bool {
        let before = self.0.swap(identity, core::sync::atomic::Ordering::Relaxed);
        before != 0 && before != identity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_one_name() {
        for defence in Defences::all().iter() {
            assert_eq!(defence.names().count(), 1, "{defence:?}");
        }
        for exposure in Exposures::all().iter() {
            assert_eq!(exposure.names().count(), 1, "{exposure:?}");
        }
        assert_eq!(Defences::empty().names().count(), 0);
    }

    #[test]
    fn a_barrier_is_for_another_vcpu_and_not_for_the_first() {
        let last = LastResident::new();
        let changes: [bool; 6] = [7, 7, 8, 8, 7, 9].map(|identity| last.changes_to(identity));
        assert_eq!(changes, [false, false, true, false, true, true]);
    }

    #[test]
    fn spec_ctrl_passes_only_where_the_host_needs_none_of_it() {
        let guest = GuestSpeculation { spec_ctrl: spec_ctrl::IBRS | spec_ctrl::SSBD, ..GuestSpeculation::default() };
        let plain = Speculation { guest, ..Speculation::NONE };
        assert!(plain.passes_spec_ctrl());
        assert!(!Speculation { host_spec_ctrl: spec_ctrl::IBRS, ..plain }.passes_spec_ctrl());
        assert!(!Speculation::NONE.passes_spec_ctrl());
    }
}
