//! The checks that VMRUN makes, by name.
//!
//! Manual: AMD APM volume 2 (24593, revision 3.42), 15.5.1 "Basic Operation", "Canonicalization and Consistency Checks", and
//! the pages that it refers to. Key type: [`Limits`]. Neighbours: `lib` asks after a refused entry, before an entry with state that the host has changed, and
//! before every entry in debug builds; `vmcb` has the fields. It repairs nothing.

use crate::capability::Capability;
use crate::controls::{IO_MAP_BYTES, MSR_MAP_BYTES};
use crate::vmcb::{EventKind, EventWord, SaveArea, Vmcb, VmcbSegment};
use vcpu::{Exception, cr0, cr4, efer};

/// What depends on the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Width of physical addresses in bits.
    pub physical_bits: u32,
    /// ASIDs are below this.
    pub asids: u32,
}

impl From<&Capability> for Limits {
    fn from(capability: &Capability) -> Limits {
        Limits { physical_bits: capability.physical_bits, asids: capability.asids }
    }
}

const UPPER_HALF: u64 = 0xffff_ffff_0000_0000;
/// CR4 bits that no revision of the manual defines.
const CR4_RESERVED: u64 = !(cr4::VME
    | cr4::PVI
    | cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::UMIP
    | cr4::LA57
    | cr4::FSGSBASE
    | cr4::PCIDE
    | cr4::OSXSAVE
    | cr4::SMEP
    | cr4::SMAP
    | cr4::PKE
    | cr4::CET);
/// EFER bits that the manual defines: SCE, LME, LMA, NXE, SVME, LMSLE, FFXSR, TCE, MCOMMIT (17), INTWB (18), UAIE (20) and
/// AIBRSE (21).
const EFER_DEFINED: u64 = efer::SCE
    | efer::LME
    | efer::LMA
    | efer::NXE
    | efer::SVME
    | efer::LMSLE
    | efer::FFXSR
    | efer::TCE
    | 1 << 17
    | 1 << 18
    | 1 << 20
    | 1 << 21;

/// The first check that `vmcb` fails, in words; `None` if it passes all that are known.
pub fn violated(vmcb: &Vmcb, limits: Limits) -> Option<&'static str> {
    let control = &vmcb.control;
    let save = &vmcb.save;
    let first = |checks: &[(bool, &'static str)]| checks.iter().find(|(bad, _)| *bad).map(|(_, name)| *name);
    let physical = |address: u64, bytes: usize| {
        address.checked_add(bytes as u64).is_none_or(|end| end > 1 << limits.physical_bits)
    };
    first(&[
        (!control.intercept_4.vmrun(), "the VMRUN intercept is clear"),
        (control.asid == 0, "the ASID is 0"),
        (control.asid >= limits.asids, "the ASID is not below the number that CPUID gives"),
        (physical(control.msrpm_base, MSR_MAP_BYTES), "the MSR permission map lies outside of physical memory"),
        (physical(control.iopm_base, IO_MAP_BYTES), "the I/O permission map lies outside of physical memory"),
        (
            control.nested_control.nested_paging() && physical(control.nested_cr3 & !0xfff, 4096),
            "nCR3 lies outside of physical memory",
        ),
        (
            control.nested_control.nested_paging() && !pat_is_valid(save.guest_pat),
            "the guest's PAT has an invalid type",
        ),
        (save.efer & efer::SVME == 0, "EFER.SVME is clear"),
        (save.efer & !EFER_DEFINED != 0, "EFER has a reserved bit set"),
        (save.cr0 & cr0::CD == 0 && save.cr0 & cr0::NW != 0, "CR0.NW is set with CR0.CD clear"),
        (save.cr0 & UPPER_HALF != 0, "the upper half of CR0 is not zero"),
        (save.efer & efer::LMA != 0 && save.cr3 >> limits.physical_bits != 0, "CR3 has a bit set that must be zero"),
        (save.cr4 & CR4_RESERVED != 0, "CR4 has a reserved bit set"),
        (save.dr6 & UPPER_HALF != 0, "the upper half of DR6 is not zero"),
        (save.dr7 & UPPER_HALF != 0, "the upper half of DR7 is not zero"),
    ])
    .or_else(|| long_mode(save))
    .or_else(|| event(control.event_injection, save))
}

/// Combinations around EFER.LME.
fn long_mode(save: &SaveArea) -> Option<&'static str> {
    if save.efer & efer::LME == 0 || save.cr0 & cr0::PG == 0 {
        return None;
    }
    if save.cr4 & cr4::PAE == 0 {
        return Some("EFER.LME and CR0.PG are set with CR4.PAE clear");
    }
    if save.cr0 & cr0::PE == 0 {
        return Some("EFER.LME and CR0.PG are set with CR0.PE clear");
    }
    let code = VmcbSegment::packed_to_attributes(save.cs.attributes);
    (code.long() && code.big()).then_some("CS.L and CS.D are both set in long mode")
}

/// APM 2 15.20 "Event Injection": what makes an event illegal.
fn event(word: EventWord, save: &SaveArea) -> Option<&'static str> {
    if !word.valid() {
        return None;
    }
    match word.kind() {
        EventKind::INTERRUPT | EventKind::NMI | EventKind::SOFTWARE => None,
        EventKind::EXCEPTION => {
            let code = VmcbSegment::packed_to_attributes(save.cs.attributes);
            let long = save.efer & efer::LMA != 0 && code.long();
            match word.vector() {
                Exception::NMI => Some("an exception with vector 2 is to be injected"),
                32.. => Some("an exception with a vector above 31 is to be injected"),
                Exception::OF | Exception::BR if long => Some("#OF or #BR is to be injected in 64-bit mode"),
                _ => None,
            }
        }
        _ => Some("the event to be injected has a reserved type"),
    }
}

/// Eight bytes, each 0, 1, 4, 5, 6 or 7; APM 2 7.8.1 "PAT Register".
fn pat_is_valid(pat: u64) -> bool {
    pat.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::tests::qemu;
    use crate::controls::Controls;
    use crate::region::Frame;
    use crate::region::tests::HeapFrames;
    use alloc::sync::Arc;
    use vcpu::FrameSource;

    const LIMITS: Limits = Limits { physical_bits: 48, asids: 16 };
    const PAT_AFTER_RESET: u64 = 0x0007_0406_0007_0406;

    /// 64-bit mode with paging, as VMRUN takes it.
    fn good() -> Vmcb {
        let frames: Arc<dyn FrameSource> = Arc::new(HeapFrames::default());
        let mut vmcb = (*Frame::<Vmcb>::new(&frames).unwrap()).clone();
        Controls::derive(&Capability::detect(&qemu, || 0).unwrap()).apply(&mut vmcb.control);
        vmcb.control.asid = 1;
        vmcb.control.msrpm_base = 0x10_0000;
        vmcb.control.iopm_base = 0x20_0000;
        vmcb.control.nested_cr3 = 0x30_0000;
        vmcb.save.guest_pat = PAT_AFTER_RESET;
        vmcb.save.cr0 = 0x8000_0011;
        vmcb.save.cr3 = 0x1000;
        vmcb.save.cr4 = 0x20;
        vmcb.save.efer = 0x1500;
        vmcb.save.dr6 = 0xffff_0ff0;
        vmcb.save.dr7 = 0x400;
        vmcb.save.cs.attributes = 0xa9b;
        vmcb
    }

    #[test]
    fn a_good_state_violates_nothing() {
        assert_eq!(violated(&good(), LIMITS), None);
        let mut real_mode = good();
        (real_mode.save.cr0, real_mode.save.efer, real_mode.save.cr4) = (0x6000_0010, 0x1000, 0);
        real_mode.save.cs.attributes = 0x9b;
        assert_eq!(violated(&real_mode, LIMITS), None);
    }

    #[test]
    fn each_violation_is_named() {
        let exception = |vector: u64| EventWord::from_bits(0x8000_0300 | vector);
        type Violate<'a> = &'a dyn Fn(&mut Vmcb);
        let cases: [(&str, Violate); 24] = [
            ("VMRUN intercept", &|v| v.control.intercept_4.set_vmrun(false)),
            ("ASID is 0", &|v| v.control.asid = 0),
            ("ASID is not below", &|v| v.control.asid = 16),
            ("MSR permission map", &|v| v.control.msrpm_base = (1 << 48) - 0x1000),
            ("I/O permission map", &|v| v.control.iopm_base = (1 << 48) - 0x2000),
            ("nCR3", &|v| v.control.nested_cr3 = 1 << 48),
            ("PAT", &|v| v.save.guest_pat = 2),
            ("EFER.SVME", &|v| v.save.efer &= !0x1000),
            ("EFER has a reserved", &|v| v.save.efer |= 1 << 9),
            ("CR0.NW", &|v| v.save.cr0 |= 1 << 29),
            ("upper half of CR0", &|v| v.save.cr0 |= 1 << 32),
            ("CR3", &|v| v.save.cr3 |= 1 << 52),
            ("CR4 has a reserved", &|v| v.save.cr4 |= 1 << 13),
            ("CR4 has a reserved", &|v| v.save.cr4 |= 1 << 63),
            ("upper half of DR6", &|v| v.save.dr6 |= 1 << 40),
            ("upper half of DR7", &|v| v.save.dr7 |= 1 << 63),
            ("CR4.PAE clear", &|v| v.save.cr4 &= !0x20),
            ("CR0.PE clear", &|v| v.save.cr0 &= !1),
            ("CS.L and CS.D", &|v| v.save.cs.attributes |= 0x400),
            ("vector 2", &|v| v.control.event_injection = exception(2)),
            ("above 31", &|v| v.control.event_injection = exception(32)),
            ("#OF or #BR", &|v| v.control.event_injection = exception(5)),
            ("reserved type", &|v| v.control.event_injection = EventWord::from_bits(0x8000_0100)),
            ("reserved type", &|v| v.control.event_injection = EventWord::from_bits(0x8000_0700)),
        ];
        for (name, violate) in cases {
            let mut vmcb = good();
            violate(&mut vmcb);
            let found = violated(&vmcb, LIMITS).unwrap_or("nothing");
            assert!(found.contains(name), "{name}: found {found}");
        }
    }

    #[test]
    fn an_event_that_is_not_valid_is_not_looked_at() {
        let mut vmcb = good();
        vmcb.control.event_injection = EventWord::from_bits(0x302);
        assert_eq!(violated(&vmcb, LIMITS), None);
    }
}
