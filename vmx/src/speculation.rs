//! What an Intel processor reports about speculation, and what follows.
//!
//! Manuals: Intel SDM 2A (December 2024, 325383-086), CPUID leaf 07H; SDM 4 (335592-086), 2.1 "Architectural MSRs",
//! IA32_ARCH_CAPABILITIES. Neighbour: `capability` calls [`derive()`]. Nothing here touches the processor.
//!
//! Stale MMIO data is no leak here: no guest reaches a real device's registers. Without enhanced IBRS nothing keeps guests'
//! predictions from the host's indirect branches, for the host is not compiled with retpolines.

use vcpu::speculation::{arch_capabilities as arch, spec_ctrl};
use vcpu::{Defences, Exposures, GuestSpeculation, Speculation};

/// The words that tell.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// CPUID 7.0 EBX.
    pub structured_ebx: u32,
    /// CPUID 7.0 EDX.
    pub structured_edx: u32,
    /// CPUID 7.2 EDX.
    pub second_edx: u32,
    /// IA32_ARCH_CAPABILITIES, or 0 where CPUID 7.0 EDX bit 29 is clear.
    pub capabilities: u64,
    /// CPUID 0Bh.0 EBX: threads of this core.
    pub threads: u32,
}

/// CPUID 7.0 EDX.
pub mod structured {
    /// VERW empties buffers.
    pub const MD_CLEAR: u32 = 1 << 10;
    /// IBRS and IBPB.
    pub const IBRS_IBPB: u32 = 1 << 26;
    /// STIBP.
    pub const STIBP: u32 = 1 << 27;
    /// IA32_FLUSH_CMD.
    pub const L1D_FLUSH: u32 = 1 << 28;
    /// IA32_ARCH_CAPABILITIES.
    pub const ARCH_CAPABILITIES: u32 = 1 << 29;
    /// SSBD.
    pub const SSBD: u32 = 1 << 31;
}

/// CPUID 7.0 EBX: RTM.
const RTM: u32 = 1 << 11;
/// CPUID 7.2 EDX: BHI_CTRL.
const BHI_CTRL: u32 = 1 << 4;

/// What this processor has and needs. One that reports no control at all (an emulator, or old microcode) is left alone.
pub fn derive(words: Words) -> Speculation {
    const CONTROLS: u32 = structured::MD_CLEAR
        | structured::IBRS_IBPB
        | structured::STIBP
        | structured::L1D_FLUSH
        | structured::ARCH_CAPABILITIES
        | structured::SSBD;
    let has = |bit: u32| words.structured_edx & bit != 0;
    let is = |bit: u64| words.capabilities & bit != 0;
    let mut defences = Defences::empty();
    let mut exposures = Exposures::empty();
    let mut host = 0;

    if has(structured::IBRS_IBPB) {
        defences |= Defences::PREDICTOR_BARRIER | Defences::GUEST_BARRIER;
    } else {
        exposures |= Exposures::NO_BARRIER;
    }
    if has(structured::IBRS_IBPB) && is(arch::IBRS_ALL) {
        defences |= Defences::HOST_IBRS;
        host |= spec_ctrl::IBRS;
    } else {
        exposures |= Exposures::HOST_BRANCHES;
    }
    if words.structured_edx & CONTROLS != 0 && !(is(arch::IBRS_ALL) && is(arch::PBRSB_NO)) {
        defences |= Defences::RETURN_STACK_REFILL;
    }
    if words.second_edx & BHI_CTRL != 0 && !is(arch::BHI_NO) {
        defences |= Defences::HOST_HISTORY;
        host |= spec_ctrl::BHI_DIS_S;
    } else if is(arch::IBRS_ALL) && !is(arch::BHI_NO) {
        exposures |= Exposures::BRANCH_HISTORY;
    }

    let terminal_fault = !is(arch::RDCL_NO);
    let buffers = !is(arch::MDS_NO)
        || words.structured_ebx & RTM != 0 && !is(arch::TAA_NO)
        || is(arch::RFDS_CLEAR) && !is(arch::RFDS_NO);
    let flushes = terminal_fault && !is(arch::SKIP_L1DFL_VMENTRY) && has(structured::L1D_FLUSH);
    if flushes {
        defences = defences.union(Defences::L1D_FLUSH);
    } else if terminal_fault && !is(arch::SKIP_L1DFL_VMENTRY) {
        exposures = exposures.union(Exposures::L1_TERMINAL_FAULT);
    }
    if buffers && has(structured::MD_CLEAR) {
        // Microcode that has both empties the buffers with the cache.
        if !flushes {
            defences |= Defences::BUFFER_CLEAR;
        }
    } else if buffers {
        exposures |= Exposures::BUFFERS;
    }
    if (terminal_fault || !is(arch::MDS_NO)) && words.threads > 1 {
        exposures |= Exposures::SIBLINGS;
    }

    let bits = [
        (structured::IBRS_IBPB, spec_ctrl::IBRS),
        (structured::STIBP, spec_ctrl::STIBP),
        (structured::SSBD, spec_ctrl::SSBD),
    ];
    let guest = bits.into_iter().filter(|(cpuid, _)| has(*cpuid)).fold(0, |all, (_, bit)| all | bit);
    if guest != 0 {
        defences |= Defences::GUEST_SPEC_CTRL;
    }
    let known = words.capabilities & arch::FOR_GUESTS;
    Speculation {
        defences,
        exposures,
        host_spec_ctrl: host,
        guest: GuestSpeculation {
            spec_ctrl: guest,
            barrier: has(structured::IBRS_IBPB),
            arch_capabilities: has(structured::ARCH_CAPABILITIES).then_some(known),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn cpu(ebx: u32, edx: u32, second_edx: u32, capabilities: u64, threads: u32) -> Words {
        Words { structured_ebx: ebx, structured_edx: edx, second_edx, capabilities, threads }
    }

    /// CPUID as these processors report it; IA32_ARCH_CAPABILITIES as Intel enumerates it for them.
    const SKYLAKE_AS_SOLD: Words = cpu(0x029c_6fbb, 0, 0, 0, 1);
    const SKYLAKE: Words = cpu(0x029c_6fbb, 0x9c00_0400, 0, 0, 2);
    const COFFEE_LAKE_2018: Words = cpu(0x029c_6fbf, 0x0c00_0000, 0, 0, 2);
    const CASCADE_LAKE: Words = cpu(0xd39f_f7eb, 0xbc00_0400, 0, 0x2b, 2);
    const ICE_LAKE: Words = cpu(0xf3bf_bfb9, 0xbc00_0410, 0, 0x16b, 2);
    const ALDER_LAKE: Words = cpu(0x239c_27eb, 0xfc1c_c410, 0x11, 0x1000_e16b, 2);
    const GRANITE: Words = cpu(0, 0xbc00_0400, 0x11, 0x0911_e16b, 2);

    #[test]
    fn a_processor_without_microcode_is_left_alone_and_called_open() {
        let found = derive(SKYLAKE_AS_SOLD);
        assert_eq!(found.defences, Defences::empty());
        assert_eq!(found.guest, GuestSpeculation::default());
        let open = Exposures::NO_BARRIER | Exposures::HOST_BRANCHES | Exposures::L1_TERMINAL_FAULT | Exposures::BUFFERS;
        assert_eq!(found.exposures, open);
    }

    #[test]
    fn a_skylake_flushes_and_refills() {
        let found = derive(SKYLAKE);
        let expected = Defences::PREDICTOR_BARRIER
            | Defences::GUEST_BARRIER
            | Defences::GUEST_SPEC_CTRL
            | Defences::RETURN_STACK_REFILL
            | Defences::L1D_FLUSH;
        assert_eq!(found.defences, expected, "the flush empties the buffers too");
        assert_eq!(found.exposures, Exposures::HOST_BRANCHES | Exposures::SIBLINGS);
        assert_eq!((found.host_spec_ctrl, found.guest.spec_ctrl), (0, 7));
        assert_eq!(found.guest.arch_capabilities, None);
        assert!(found.passes_spec_ctrl());
    }

    #[test]
    fn half_way_microcode_has_the_barrier_and_no_flush() {
        let found = derive(COFFEE_LAKE_2018);
        assert!(found.defences.contains(Defences::PREDICTOR_BARRIER | Defences::RETURN_STACK_REFILL));
        assert!(!found.defences.intersects(Defences::L1D_FLUSH | Defences::BUFFER_CLEAR));
        assert!(found.exposures.contains(Exposures::L1_TERMINAL_FAULT | Exposures::BUFFERS));
    }

    #[test]
    fn a_cascade_lake_needs_neither_flush_nor_verw() {
        let found = derive(CASCADE_LAKE);
        assert!(found.defences.contains(Defences::HOST_IBRS | Defences::PREDICTOR_BARRIER));
        assert!(!found.defences.intersects(Defences::L1D_FLUSH | Defences::BUFFER_CLEAR));
        assert_eq!(found.exposures, Exposures::BRANCH_HISTORY);
        assert_eq!(found.host_spec_ctrl, spec_ctrl::IBRS);
        assert!(!found.passes_spec_ctrl(), "a guest must not clear the host's IBRS");
        assert_eq!(found.guest.arch_capabilities, Some(0x2b));
    }

    #[test]
    fn with_tsx_a_cascade_lake_clears_its_buffers() {
        let found = derive(Words { structured_ebx: CASCADE_LAKE.structured_ebx | RTM, ..CASCADE_LAKE });
        assert!(found.defences.contains(Defences::BUFFER_CLEAR));
    }

    #[test]
    fn an_ice_lake_refills_because_of_post_barrier_returns() {
        assert!(derive(ICE_LAKE).defences.contains(Defences::RETURN_STACK_REFILL));
        let fixed = Words { capabilities: ICE_LAKE.capabilities | arch::PBRSB_NO, ..ICE_LAKE };
        assert!(!derive(fixed).defences.contains(Defences::RETURN_STACK_REFILL));
    }

    #[test]
    fn an_alder_lake_confines_history_and_clears_register_files() {
        let found = derive(ALDER_LAKE);
        assert!(found.defences.contains(Defences::HOST_HISTORY | Defences::BUFFER_CLEAR));
        assert_eq!(found.host_spec_ctrl, spec_ctrl::IBRS | spec_ctrl::BHI_DIS_S);
        assert_eq!(found.exposures, Exposures::empty());
    }

    #[test]
    fn a_processor_that_is_fixed_keeps_only_ibrs_and_the_barrier() {
        let found = derive(GRANITE);
        let expected =
            Defences::PREDICTOR_BARRIER | Defences::GUEST_BARRIER | Defences::GUEST_SPEC_CTRL | Defences::HOST_IBRS;
        assert_eq!((found.defences, found.exposures), (expected, Exposures::empty()));
    }

    #[test]
    fn guests_are_not_told_of_registers_that_they_do_not_have() {
        // TSX_CTRL, MISC_PACKAGE_CTLS, FB_CLEAR_CTRL, XAPIC_DISABLE_STATUS.
        let hidden = 1 << 7 | 1 << 10 | 1 << 18 | 1 << 21;
        let found = derive(Words { capabilities: CASCADE_LAKE.capabilities | hidden, ..CASCADE_LAKE });
        assert_eq!(found.guest.arch_capabilities, Some(0x2b));
    }
}
