//! What an AMD processor reports about speculation, and what follows.
//!
//! Manuals: AMD APM volume 3 (24594, revision 3.36), appendix E.4.6 "Function 8000_0008h" and 8000_0021h; APM volume 2 (24593,
//! revision 3.42), 3.2.9 "Speculation Control MSRs", 15.37 "SPEC_CTRL virtualization". Neighbour: `capability` calls
//! [`derive()`]. Nothing here touches the processor.
//!
//! AMD's processors have neither L1TF nor MDS. Without automatic IBRS the return stack is refilled after exits; nothing keeps
//! guests' predictions from the host's indirect branches then, for the host is not compiled with retpolines.

use vcpu::speculation::spec_ctrl;
use vcpu::{Defences, Exposures, GuestSpeculation, Speculation};

/// The CPUID words that tell.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// Fn0000_0001 EAX: the signature.
    pub signature: u32,
    /// Fn8000_0008 EBX.
    pub size_ebx: u32,
    /// Fn8000_0021 EAX.
    pub features_eax: u32,
}

/// Fn8000_0008 EBX.
mod size {
    pub const IBPB: u32 = 1 << 12;
    pub const IBRS: u32 = 1 << 14;
    pub const STIBP: u32 = 1 << 15;
    pub const SSBD: u32 = 1 << 24;
    pub const PSFD: u32 = 1 << 28;
    pub const BTC_NO: u32 = 1 << 29;
}

/// Fn8000_0021 EAX: automatic IBRS.
const AUTOMATIC_IBRS: u32 = 1 << 8;
/// Fn8000_0021 EAX: no speculative return stack overflow.
const SRSO_NO: u32 = 1 << 29;

/// Base and extended family.
const fn family(signature: u32) -> u32 {
    (signature >> 8 & 0xf) + (signature >> 20 & 0xff)
}

/// What this processor has and needs. One that reports no control at all (an emulator, or old microcode) is left alone.
pub fn derive(words: Words) -> Speculation {
    const CONTROLS: u32 = size::IBPB | size::IBRS | size::STIBP | size::SSBD;
    if words.size_ebx & CONTROLS == 0 {
        return Speculation { exposures: Exposures::NO_BARRIER | Exposures::HOST_BRANCHES, ..Speculation::NONE };
    }
    let has = |bit: u32| words.size_ebx & bit != 0;
    let mut defences = Defences::empty();
    let mut exposures = Exposures::empty();
    if has(size::IBPB) {
        defences |= Defences::PREDICTOR_BARRIER | Defences::GUEST_BARRIER;
    } else {
        exposures |= Exposures::NO_BARRIER;
    }
    if words.features_eax & AUTOMATIC_IBRS != 0 {
        defences |= Defences::AUTOMATIC_IBRS;
    } else {
        defences |= Defences::RETURN_STACK_REFILL;
        exposures |= Exposures::HOST_BRANCHES;
    }
    // Branch type confusion ends with family 19h, which says so only since some microcode; SRSO with family 1Ah.
    let confusion = family(words.signature) < 0x19 && !has(size::BTC_NO);
    let overflow = family(words.signature) < 0x1a && words.features_eax & SRSO_NO == 0;
    if confusion || overflow {
        exposures |= Exposures::HOST_RETURNS;
    }
    let bits = [
        (size::IBRS, spec_ctrl::IBRS),
        (size::STIBP, spec_ctrl::STIBP),
        (size::SSBD, spec_ctrl::SSBD),
        (size::PSFD, spec_ctrl::PSFD),
    ];
    let guest = bits.into_iter().filter(|(cpuid, _)| has(*cpuid)).fold(0, |all, (_, bit)| all | bit);
    if guest != 0 {
        defences |= Defences::GUEST_SPEC_CTRL;
    }
    Speculation {
        defences,
        exposures,
        host_spec_ctrl: 0,
        guest: GuestSpeculation { spec_ctrl: guest, barrier: has(size::IBPB), arch_capabilities: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signature, 8000_0008 EBX and 8000_0021 EAX as these processors report them.
    const ZEN_1: Words = Words { signature: 0x0080_0f12, size_ebx: 0x0000_1007, features_eax: 0 };
    const ZEN_2_MATISSE: Words = Words { signature: 0x0087_0f10, size_ebx: 0x010e_b757, features_eax: 0 };
    const ZEN_2_ROME: Words = Words { signature: 0x0083_0f10, size_ebx: 0x018e_f757, features_eax: 0 };
    const ZEN_3_MILAN: Words = Words { signature: 0x00a0_0f11, size_ebx: 0x91be_f75f, features_eax: 0x204d };
    const ZEN_4_GENOA: Words = Words { signature: 0x00a1_0f11, size_ebx: 0x79be_f25f, features_eax: 0x0006_2fcf };
    /// QEMU's TCG, which models no prediction.
    const EMULATED: Words = Words { signature: 0x0080_0f12, size_ebx: 0x200, features_eax: 0 };

    #[test]
    fn an_emulator_gets_no_defence_and_guests_get_nothing() {
        let found = derive(EMULATED);
        assert_eq!(found.defences, Defences::empty());
        assert_eq!(found.guest, GuestSpeculation::default());
        assert!(found.exposures.contains(Exposures::NO_BARRIER));
    }

    #[test]
    fn the_first_zen_has_only_the_barrier() {
        let found = derive(ZEN_1);
        let expected = Defences::PREDICTOR_BARRIER | Defences::GUEST_BARRIER | Defences::RETURN_STACK_REFILL;
        assert_eq!(found.defences, expected);
        assert_eq!(found.exposures, Exposures::HOST_BRANCHES | Exposures::HOST_RETURNS);
        assert_eq!(found.guest, GuestSpeculation { spec_ctrl: 0, barrier: true, arch_capabilities: None });
    }

    #[test]
    fn zen_2_and_3_refill_the_return_stack_and_guests_have_spec_ctrl() {
        for (words, guest) in [(ZEN_2_MATISSE, 0x6), (ZEN_2_ROME, 0x7), (ZEN_3_MILAN, 0x87)] {
            let found = derive(words);
            assert!(found.defences.contains(Defences::RETURN_STACK_REFILL | Defences::PREDICTOR_BARRIER));
            assert!(!found.defences.contains(Defences::AUTOMATIC_IBRS));
            assert_eq!(found.guest.spec_ctrl, guest, "{words:x?}");
            assert!(found.passes_spec_ctrl());
        }
    }

    #[test]
    fn zen_4_needs_no_refill() {
        let found = derive(ZEN_4_GENOA);
        assert!(found.defences.contains(Defences::AUTOMATIC_IBRS));
        assert!(!found.defences.contains(Defences::RETURN_STACK_REFILL));
        assert_eq!(found.exposures, Exposures::HOST_RETURNS, "SRSO");
        assert_eq!(derive(Words { features_eax: 0x2006_2fcf, ..ZEN_4_GENOA }).exposures, Exposures::empty());
    }

    #[test]
    fn branch_type_confusion_is_over_where_the_processor_says_so() {
        let none = Words { size_ebx: ZEN_2_ROME.size_ebx | 1 << 29, features_eax: 1 << 29, ..ZEN_2_ROME };
        assert!(!derive(none).exposures.contains(Exposures::HOST_RETURNS));
        assert_eq!(family(0x00b0_0f00), 0x1a);
    }
}
