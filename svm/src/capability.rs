//! What the processor offers to a hypervisor, read once into plain data.
//!
//! Manuals: AMD APM volume 2 (24593, revision 3.42), 15.4 "Enabling SVM"; APM volume 3 (24594, revision 3.36), appendix E
//! "Obtaining Processor Information Via the CPUID Instruction". Key types: [`Capability`], its [`Features`], and
//! [`Refusal`], the sentence for the user when SVM cannot be used. Neighbours: `controls` derives the VMCB's settings
//! from it, `paging` its page sizes; `kernel` feeds it the real CPUID. Nothing here touches the processor.

use crate::speculation;
use core::fmt;
use raw_cpuid::{CpuIdReader, CpuIdResult};
use vcpu::Speculation;
use vcpu::vector_area::VectorArea;

bitflags::bitflags! {
    /// Features that matter here, in our own numbering.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u32 {
        /// Nested paging. Required.
        const NESTED_PAGING = 1 << 0;
        /// 1 GiB pages.
        const GIANT_PAGES = 1 << 1;
        /// The exit gives the address of the next instruction.
        const NEXT_RIP = 1 << 2;
        /// The exit gives instruction bytes and operands.
        const DECODE_ASSISTS = 1 << 3;
        /// Unchanged parts of the VMCB need not be read again.
        const CLEAN_BITS = 1 << 4;
        /// One guest's translations can be dropped alone.
        const FLUSH_BY_ASID = 1 << 5;
        /// PAUSE exits only after a number of them.
        const PAUSE_FILTER = 1 << 6;
        /// That number counts only PAUSEs close together.
        const PAUSE_FILTER_THRESHOLD = 1 << 7;
        /// The processor blocks NMIs from NMI to IRET by itself.
        const VIRTUAL_NMI = 1 << 8;
        /// XSAVE and XCR0.
        const XSAVE = 1 << 9;
        /// RDTSCP and TSC_AUX.
        const RDTSCP = 1 << 10;
        /// INVLPGB and TLBSYNC exist, so they must be intercepted.
        const INVLPGB = 1 << 11;
        /// MCOMMIT exists, so it must be intercepted.
        const MCOMMIT = 1 << 12;
        /// RDPRU exists, so it must be intercepted.
        const RDPRU = 1 << 13;
        /// Virtual GIF.
        const VIRTUAL_GIF = 1 << 14;
        /// VMLOAD and VMSAVE on guest addresses.
        const VIRTUAL_VMLOAD = 1 << 15;
        /// Last-branch records are switched with the guest.
        const LBR_VIRTUALIZATION = 1 << 16;
        /// The guest's TSC can run at another rate.
        const TSC_RATIO = 1 << 17;
        /// Interrupts delivered by the processor, xAPIC mode.
        const AVIC = 1 << 18;
        /// Interrupts delivered by the processor, x2APIC mode.
        const X2AVIC = 1 << 19;
        /// Encrypted guests.
        const SEV = 1 << 20;
        /// SPEC_CTRL is switched with the guest.
        const SPEC_CTRL_VIRTUALIZATION = 1 << 21;
    }
}

impl Features {
    /// What the hypervisor makes use of where it is there.
    pub const USED: Features = Features::NESTED_PAGING
        .union(Features::GIANT_PAGES)
        .union(Features::NEXT_RIP)
        .union(Features::DECODE_ASSISTS)
        .union(Features::CLEAN_BITS)
        .union(Features::FLUSH_BY_ASID)
        .union(Features::PAUSE_FILTER)
        .union(Features::PAUSE_FILTER_THRESHOLD)
        .union(Features::VIRTUAL_NMI)
        .union(Features::XSAVE)
        .union(Features::RDTSCP)
        .union(Features::SPEC_CTRL_VIRTUALIZATION);
}

/// The CPUID words that hold feature bits.
struct Words {
    /// Fn0000_0001 ECX.
    standard_ecx: u32,
    /// Fn8000_0001 EDX.
    extended_edx: u32,
    /// Fn8000_0008 EBX.
    size_ebx: u32,
    /// Fn8000_000A EDX.
    svm_edx: u32,
    /// Fn8000_001F EAX.
    encryption_eax: u32,
}

/// One row: the feature, its name in the boot log, its word and its bit there.
type Row = (Features, &'static str, fn(&Words) -> u32, u32);

/// APM 3 appendix E.4 "Extended Feature Function Numbers".
const ROWS: [Row; 22] = [
    (Features::NESTED_PAGING, "nested paging", |w| w.svm_edx, 0),
    (Features::GIANT_PAGES, "1 GiB pages", |w| w.extended_edx, 26),
    (Features::NEXT_RIP, "next-RIP save", |w| w.svm_edx, 3),
    (Features::DECODE_ASSISTS, "decode assists", |w| w.svm_edx, 7),
    (Features::CLEAN_BITS, "VMCB clean bits", |w| w.svm_edx, 5),
    (Features::FLUSH_BY_ASID, "flush by ASID", |w| w.svm_edx, 6),
    (Features::PAUSE_FILTER, "pause filter", |w| w.svm_edx, 10),
    (Features::PAUSE_FILTER_THRESHOLD, "pause filter threshold", |w| w.svm_edx, 12),
    (Features::VIRTUAL_NMI, "virtual NMI", |w| w.svm_edx, 25),
    (Features::XSAVE, "XSAVE", |w| w.standard_ecx, 26),
    (Features::RDTSCP, "RDTSCP", |w| w.extended_edx, 27),
    (Features::INVLPGB, "INVLPGB", |w| w.size_ebx, 3),
    (Features::MCOMMIT, "MCOMMIT", |w| w.size_ebx, 8),
    (Features::RDPRU, "RDPRU", |w| w.size_ebx, 4),
    (Features::VIRTUAL_GIF, "virtual GIF", |w| w.svm_edx, 16),
    (Features::VIRTUAL_VMLOAD, "virtual VMLOAD and VMSAVE", |w| w.svm_edx, 15),
    (Features::LBR_VIRTUALIZATION, "LBR virtualization", |w| w.svm_edx, 1),
    (Features::TSC_RATIO, "TSC ratio", |w| w.svm_edx, 4),
    (Features::AVIC, "AVIC", |w| w.svm_edx, 13),
    (Features::X2AVIC, "x2AVIC", |w| w.svm_edx, 18),
    (Features::SEV, "SEV", |w| w.encryption_eax, 1),
    (Features::SPEC_CTRL_VIRTUALIZATION, "SPEC_CTRL virtualization", |w| w.svm_edx, 20),
];

/// Fn8000_0001 ECX: SVM.
const SVM: u32 = 1 << 2;
/// Fn8000_000A EDX: SVM lock.
const SVM_LOCK: u32 = 1 << 2;
/// VM_CR.LOCK: SVMDIS cannot be changed. APM 2 15.30.1 "VM_CR MSR (C001_0114h)".
const VM_CR_LOCK: u64 = 1 << 3;
/// VM_CR.SVMDIS: EFER.SVME cannot be set.
const VM_CR_SVMDIS: u64 = 1 << 4;

/// A processor that can run guests, and how well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it has.
    pub features: Features,
    /// Address-space identifiers; the usable ones are `1..asids`. At least 2.
    pub asids: u32,
    /// Width of host-physical addresses in bits, 32 to 52.
    pub physical_bits: u32,
    /// The memory for vector registers.
    pub vector: VectorArea,
    /// VM_CR.SVMDIS is set but not locked: it must be cleared before EFER.SVME is set.
    pub clear_svmdis: bool,
    /// What it leaks by speculation, and what is done about it.
    pub speculation: Speculation,
}

/// Why guests cannot run on this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// CPUID shows no SVM.
    NoSvm,
    /// SVMDIS is set and locked.
    DisabledByFirmware,
    /// SVMDIS is set and locked by a key that only firmware knows.
    LockedByKey,
    /// No nested paging.
    NoNestedPaging,
    /// Fewer than 2 address-space identifiers.
    NoAsids,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::NoSvm => {
                "this processor has no AMD-V (SVM); use one that has, or give the virtual machine its `svm` CPU flag"
            }
            Refusal::DisabledByFirmware => {
                "AMD-V (SVM) is disabled and locked by firmware; enable \"SVM mode\" in the firmware set-up"
            }
            Refusal::LockedByKey => {
                "AMD-V (SVM) is locked with a firmware key; enable \"SVM mode\" in the firmware set-up"
            }
            Refusal::NoNestedPaging => "this processor's AMD-V has no nested paging, which Gearshift needs",
            Refusal::NoAsids => "this processor's AMD-V offers no address-space identifier for guests",
        })
    }
}

/// Reads a leaf, or zeroes where the processor does not go that far.
fn leaf(cpuid: &impl CpuIdReader, eax: u32) -> CpuIdResult {
    let highest = cpuid.cpuid2(eax & 0x8000_0000, 0).eax;
    if eax > highest { CpuIdResult { eax: 0, ebx: 0, ecx: 0, edx: 0 } } else { cpuid.cpuid2(eax, 0) }
}

impl Capability {
    /// Judges a processor by its CPUID, and by VM_CR (C001_0114h), which is read only where SVM exists.
    ///
    /// # Errors
    /// Guests cannot run; the refusal says why and what to do.
    pub fn detect(cpuid: &impl CpuIdReader, vm_cr: impl FnOnce() -> u64) -> Result<Capability, Refusal> {
        let extended = leaf(cpuid, 0x8000_0001);
        if extended.ecx & SVM == 0 {
            return Err(Refusal::NoSvm);
        }
        let svm = leaf(cpuid, 0x8000_000a);
        let vm_cr = vm_cr();
        let disabled = vm_cr & VM_CR_SVMDIS != 0;
        if disabled && vm_cr & VM_CR_LOCK != 0 {
            return Err(if svm.edx & SVM_LOCK != 0 { Refusal::LockedByKey } else { Refusal::DisabledByFirmware });
        }
        let size = leaf(cpuid, 0x8000_0008);
        let standard = leaf(cpuid, 1);
        let words = Words {
            standard_ecx: standard.ecx,
            extended_edx: extended.edx,
            size_ebx: size.ebx,
            svm_edx: svm.edx,
            encryption_eax: leaf(cpuid, 0x8000_001f).eax,
        };
        let mut features = Features::empty();
        for (feature, _, word, bit) in ROWS {
            features.set(feature, word(&words) >> bit & 1 != 0);
        }
        if !features.contains(Features::NESTED_PAGING) {
            return Err(Refusal::NoNestedPaging);
        }
        if svm.ebx < 2 {
            return Err(Refusal::NoAsids);
        }
        let vector = if features.contains(Features::XSAVE) {
            let state = leaf(cpuid, 0xd);
            VectorArea::of(state.eax, state.ecx, state.edx)
        } else {
            VectorArea::LEGACY
        };
        Ok(Capability {
            features,
            asids: svm.ebx,
            physical_bits: (size.eax & 0xff).clamp(32, 52),
            vector,
            clear_svmdis: disabled,
            speculation: speculation::derive(speculation::Words {
                signature: standard.eax,
                size_ebx: size.ebx,
                features_eax: leaf(cpuid, 0x8000_0021).eax,
            }),
        })
    }

    /// Whether it has all of `features`.
    #[inline]
    pub const fn has(&self, features: Features) -> bool {
        self.features.contains(features)
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

    /// Recorded on an AMD Ryzen of the "Matisse" family (Zen 2).
    pub(crate) fn matisse(eax: u32, _ecx: u32) -> CpuIdResult {
        match eax {
            0 => reading(0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
            1 => reading(0x0087_0f10, 0x000c_0800, 0x7ed8_320b, 0x178b_fbff),
            0xd => reading(0x207, 0x340, 0x380, 0),
            0x8000_0000 => reading(0x8000_0020, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
            0x8000_0001 => reading(0x0087_0f10, 0x2000_0000, 0x75c2_37ff, 0x2fd3_fbff),
            0x8000_0008 => reading(0x3030, 0x010e_b757, 0x700b, 0x1_0000),
            0x8000_000a => reading(1, 0x8000, 0, 0x0013_bcff),
            0x8000_001f => reading(0x1_000f, 0x16f, 0x1fd, 1),
            _ => reading(0, 0, 0, 0),
        }
    }

    /// What QEMU 10.0 TCG with `-cpu EPYC,+svm` says, in the words that are read here.
    pub(crate) fn qemu(eax: u32, _ecx: u32) -> CpuIdResult {
        match eax {
            0 => reading(0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
            1 => reading(0x0080_0f12, 0x0000_0800, 0xf6d8_3203, 0x0789_fbff),
            0xd => reading(7, 0x340, 0x340, 0),
            0x8000_0000 => reading(0x8000_000a, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
            0x8000_0001 => reading(0x0080_0f12, 0, 0x0040_01f7, 0x2c10_0800),
            0x8000_0008 => reading(0x3028, 0, 0, 0),
            0x8000_000a => reading(1, 16, 0, 1),
            _ => reading(0, 0, 0, 0),
        }
    }

    #[test]
    fn a_zen_2_has_everything_that_is_used_but_virtual_nmi() {
        let capability = Capability::detect(&matisse, || 0).unwrap();
        assert_eq!(capability.missing().collect::<Vec<_>>(), ["virtual NMI"]);
        assert_eq!(capability.asids, 0x8000);
        assert_eq!(capability.physical_bits, 48);
        assert_eq!((capability.vector.xcr0, capability.vector.bytes), (0x207, 0x380));
        let unused: Vec<_> = capability.unused().collect();
        assert!(unused.contains(&"AVIC") && unused.contains(&"RDPRU") && !unused.contains(&"x2AVIC"));
        assert!(!capability.clear_svmdis);
    }

    #[test]
    fn qemu_has_nested_paging_and_little_else() {
        let capability = Capability::detect(&qemu, || 0).unwrap();
        assert_eq!(
            capability.features,
            Features::NESTED_PAGING | Features::GIANT_PAGES | Features::XSAVE | Features::RDTSCP
        );
        assert_eq!((capability.asids, capability.physical_bits), (16, 40));
        assert!(capability.missing().any(|name| name == "next-RIP save"));
    }

    #[test]
    fn refusals_say_which_obstacle_it_is() {
        let mask = |target: u32, and: [u32; 4]| {
            move |eax: u32, ecx: u32| {
                let r = matisse(eax, ecx);
                if eax == target { reading(r.eax & and[0], r.ebx & and[1], r.ecx & and[2], r.edx & and[3]) } else { r }
            }
        };
        const ALL: u32 = u32::MAX;
        let refusal = |cpu: &dyn Fn(u32, u32) -> CpuIdResult, vm_cr: u64| {
            let cpu = |a, c| cpu(a, c);
            Capability::detect(&cpu, || vm_cr).err()
        };
        assert_eq!(refusal(&mask(0x8000_0001, [ALL, ALL, !4, ALL]), 0), Some(Refusal::NoSvm));
        assert_eq!(refusal(&mask(0x8000_0000, [0x8000_0000, ALL, ALL, ALL]), 0), Some(Refusal::NoSvm));
        assert_eq!(refusal(&mask(0x8000_000a, [ALL, ALL, ALL, !1]), 0), Some(Refusal::NoNestedPaging));
        assert_eq!(refusal(&mask(0x8000_000a, [ALL, 1, ALL, ALL]), 0), Some(Refusal::NoAsids));
        assert_eq!(refusal(&matisse, 0x18), Some(Refusal::LockedByKey));
        assert_eq!(refusal(&mask(0x8000_000a, [ALL, ALL, ALL, !4]), 0x18), Some(Refusal::DisabledByFirmware));
        for refusal in [Refusal::NoSvm, Refusal::DisabledByFirmware, Refusal::LockedByKey] {
            assert!(alloc::format!("{refusal}").contains("AMD-V"));
        }
    }

    #[test]
    fn svm_that_is_disabled_but_not_locked_is_switched_on() {
        let capability = Capability::detect(&matisse, || 0x10).unwrap();
        assert!(capability.clear_svmdis);
    }

    #[test]
    fn vm_cr_is_not_read_where_svm_is_absent() {
        let none = |_: u32, _: u32| reading(0, 0, 0, 0);
        assert_eq!(Capability::detect(&none, || panic!("the MSR does not exist here")).err(), Some(Refusal::NoSvm));
    }

    #[test]
    fn every_feature_has_one_row() {
        for feature in Features::all().iter() {
            assert_eq!(ROWS.iter().filter(|(row, ..)| *row == feature).count(), 1, "{feature:?}");
        }
        assert_eq!(ROWS.len(), Features::all().iter().count());
    }
}
