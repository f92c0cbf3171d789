//! Which values of control registers the guest may write: the architecture's rules over what CPUID advertises.
//!
//! Manuals: SDM 3A 2.5 "Control Registers", 2.2.1 "Extended Feature Enable Register", 13.3 "Enabling the XSAVE Feature
//! Set"; APM 2 3.1.

use crate::cpuid::{CpuidTable, XCR0_SUPPORTED};
use vcpu::{cr0, cr4, efer};

/// The write raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The bits that this guest may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlPolicy {
    /// CR4.
    pub cr4_allowed: u64,
    /// EFER.
    pub efer_allowed: u64,
    /// XCR0.
    pub xcr0_allowed: u64,
    /// Physical address bits above which CR3 and page-table entries are reserved.
    pub physical_address_bits: u32,
}

impl ControlPolicy {
    /// What the advertised features allow.
    pub fn new(cpuid: &CpuidTable) -> ControlPolicy {
        let ecx = |leaf, bit: u32| cpuid.has(leaf, |answer| answer.ecx, 1 << bit);
        let edx = |leaf, bit: u32| cpuid.has(leaf, |answer| answer.edx, 1 << bit);
        let ebx = |leaf, bit: u32| cpuid.has(leaf, |answer| answer.ebx, 1 << bit);
        let mut cr4_allowed = cr4::VME
            | cr4::PVI
            | cr4::TSD
            | cr4::DE
            | cr4::PSE
            | cr4::PAE
            | cr4::MCE
            | cr4::PGE
            | cr4::PCE
            | cr4::OSFXSR
            | cr4::OSXMMEXCPT;
        for (there, bit) in [
            (ecx(1, 17), cr4::PCIDE),
            (ecx(1, 26), cr4::OSXSAVE),
            (ebx(7, 0), cr4::FSGSBASE),
            (ebx(7, 7), cr4::SMEP),
            (ebx(7, 20), cr4::SMAP),
            (ecx(7, 2), cr4::UMIP),
        ] {
            if there {
                cr4_allowed |= bit;
            }
        }
        let mut efer_allowed = 0;
        for (there, bits) in [
            (edx(0x8000_0001, 11), efer::SCE),
            (edx(0x8000_0001, 29), efer::LME | efer::LMA),
            (edx(0x8000_0001, 20), efer::NXE),
        ] {
            if there {
                efer_allowed |= bits;
            }
        }
        let xcr0_allowed = if ecx(1, 26) { u64::from(cpuid.answer(0xd, 0, &IDLE).eax) & XCR0_SUPPORTED } else { 0 };
        ControlPolicy { cr4_allowed, efer_allowed, xcr0_allowed, physical_address_bits: cpuid.physical_address_bits() }
    }

    /// CR0 as it will be after a write of `value` while the other registers are as given.
    pub fn cr0(&self, value: u64, current: &Current) -> Result<u64, Refused> {
        const DEFINED: u64 =
            cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
        let value = value | cr0::ET;
        let paging = value & cr0::PG != 0;
        if value >> 32 != 0 || paging && value & cr0::PE == 0 || value & cr0::NW != 0 && value & cr0::CD == 0 {
            return Err(Refused);
        }
        let starts = paging && current.cr0 & cr0::PG == 0;
        let ends = !paging && current.cr0 & cr0::PG != 0;
        if starts && current.efer & efer::LME != 0 && (current.cr4 & cr4::PAE == 0 || current.code_is_long) {
            return Err(Refused);
        }
        if ends && (current.code_is_long && current.efer & efer::LMA != 0 || current.cr4 & cr4::PCIDE != 0) {
            return Err(Refused);
        }
        Ok(value & DEFINED)
    }

    /// CR3 as it will be after a write of `value`: the no-flush bit of PCID is an order, not a value.
    pub fn cr3(&self, value: u64, current: &Current) -> Result<u64, Refused> {
        const NO_FLUSH: u64 = 1 << 63;
        if current.efer & efer::LMA == 0 {
            return Ok(value & 0xffff_ffff);
        }
        let value = if current.cr4 & cr4::PCIDE != 0 { value & !NO_FLUSH } else { value };
        if value >> self.physical_address_bits.min(63) != 0 { Err(Refused) } else { Ok(value) }
    }

    /// CR4 as it will be after a write of `value`.
    pub fn cr4(&self, value: u64, current: &Current) -> Result<u64, Refused> {
        let long = current.efer & efer::LMA != 0;
        let sets_pcide = value & cr4::PCIDE != 0 && current.cr4 & cr4::PCIDE == 0;
        if value & !self.cr4_allowed != 0
            || long && value & cr4::PAE == 0
            || sets_pcide && (!long || current.cr3 & 0xfff != 0)
        {
            return Err(Refused);
        }
        Ok(value)
    }

    /// EFER as it will be after a write of `value`. LMA is the processor's; a write does not change it.
    pub fn efer(&self, value: u64, current: &Current) -> Result<u64, Refused> {
        let changes_lme = (value ^ current.efer) & efer::LME != 0;
        if value & !self.efer_allowed != 0 || changes_lme && current.cr0 & cr0::PG != 0 {
            return Err(Refused);
        }
        Ok(value & !efer::LMA | current.efer & efer::LMA)
    }

    /// XCR`register` after XSETBV.
    pub fn xcr(&self, register: u32, value: u64) -> Result<u64, Refused> {
        const X87: u64 = 1 << 0;
        const SSE: u64 = 1 << 1;
        const AVX: u64 = 1 << 2;
        if register != 0 || value & X87 == 0 || value & !self.xcr0_allowed != 0 || value & AVX != 0 && value & SSE == 0
        {
            return Err(Refused);
        }
        Ok(value)
    }
}

/// The guest's state that a check looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Current {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// CS.L is set.
    pub code_is_long: bool,
}

const IDLE: crate::cpuid::Dynamic = crate::cpuid::Dynamic { cr4: 0, xcr0: 1, apic_enabled: true };

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: ControlPolicy = ControlPolicy {
        cr4_allowed: cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::OSXSAVE,
        efer_allowed: efer::SCE | efer::LME | efer::LMA | efer::NXE,
        xcr0_allowed: 7,
        physical_address_bits: 40,
    };
    const REAL: Current = Current { cr0: cr0::ET, cr3: 0, cr4: 0, efer: 0, code_is_long: false };
    const LONG: Current = Current {
        cr0: cr0::ET | cr0::PE | cr0::PG,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        code_is_long: true,
    };

    #[test]
    fn cr0_rules() {
        assert_eq!(POLICY.cr0(cr0::PE, &REAL), Ok(cr0::PE | cr0::ET));
        assert_eq!(POLICY.cr0(cr0::PG, &REAL), Err(Refused), "paging without protection");
        assert_eq!(POLICY.cr0(cr0::NW, &REAL), Err(Refused), "NW without CD");
        assert_eq!(POLICY.cr0(1 << 32, &REAL), Err(Refused));
        assert_eq!(POLICY.cr0(1 << 6 | cr0::PE, &REAL), Ok(cr0::PE | cr0::ET), "reserved low bits are ignored");
        let ready = Current { efer: efer::LME, ..REAL };
        assert_eq!(POLICY.cr0(cr0::PE | cr0::PG, &ready), Err(Refused), "long mode without PAE");
        assert!(POLICY.cr0(cr0::PE | cr0::PG, &Current { cr4: cr4::PAE, ..ready }).is_ok());
        assert_eq!(POLICY.cr0(cr0::PE, &LONG), Err(Refused), "paging off in 64-bit code");
    }

    #[test]
    fn cr3_rules() {
        assert_eq!(POLICY.cr3(0x1_0000_1000, &REAL), Ok(0x1000));
        assert_eq!(POLICY.cr3(1 << 40, &LONG), Err(Refused));
        assert_eq!(POLICY.cr3(1 << 63, &LONG), Err(Refused));
        assert_eq!(POLICY.cr3(1 << 63 | 0x1005, &Current { cr4: cr4::PCIDE | cr4::PAE, ..LONG }), Ok(0x1005));
    }

    #[test]
    fn cr4_rules() {
        assert_eq!(POLICY.cr4(cr4::VMXE, &REAL), Err(Refused));
        assert_eq!(POLICY.cr4(1 << 40, &REAL), Err(Refused));
        assert_eq!(POLICY.cr4(0, &LONG), Err(Refused), "PAE off in long mode");
        assert_eq!(POLICY.cr4(cr4::PCIDE, &REAL), Err(Refused));
        assert!(POLICY.cr4(cr4::PCIDE | cr4::PAE, &LONG).is_ok());
        assert_eq!(POLICY.cr4(cr4::PCIDE | cr4::PAE, &Current { cr3: 0x1001, ..LONG }), Err(Refused));
    }

    #[test]
    fn efer_rules() {
        assert_eq!(POLICY.efer(efer::SVME, &REAL), Err(Refused));
        assert_eq!(POLICY.efer(efer::SCE, &LONG), Err(Refused), "LME changes under paging");
        assert_eq!(POLICY.efer(efer::LME | efer::SCE, &LONG), Ok(efer::LME | efer::LMA | efer::SCE));
        assert_eq!(POLICY.efer(efer::LME | efer::LMA, &REAL), Ok(efer::LME), "LMA is not the guest's to set");
    }

    #[test]
    fn xcr0_rules() {
        assert_eq!(POLICY.xcr(0, 7), Ok(7));
        for (register, value) in [(1, 1), (0, 0), (0, 6), (0, 5), (0, 15), (0, 1 << 63 | 1)] {
            assert_eq!(POLICY.xcr(register, value), Err(Refused), "XCR{register} = {value:#x}");
        }
    }
}
