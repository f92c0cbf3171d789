//! What CPUID tells a guest: a table made once from the host's answers and a policy that denies by default.
//!
//! A feature bit reaches the guest only if it is in a mask below and the host has it. Leaves that are not listed read as
//! zero. Bits that follow the guest's own state (OSXSAVE, the APIC's enable bit, XSAVE sizes) are patched per answer.
//! Manuals: SDM 2A "CPUID—CPU Identification"; APM 3 appendix E; Hypervisor Top Level Functional Specification 2.
//!
//! Neighbours: [`crate::hyperv`] gives leaves 4000_0000h and up. Not here: MSRs, which [`crate::msr`] keeps in step.

use alloc::vec::Vec;
use vcpu::speculation::spec_ctrl;
use vcpu::{CpuidAnswer, GuestSpeculation, cr4};

/// A subleaf number that stands for "every subleaf".
const ANY: u32 = u32::MAX;

/// Feature masks: what a guest may have if the host has it. Each bit listed here works: its registers are switched, its
/// MSRs are in [`crate::msr`], its instructions do not exit or are handled.
mod mask {
    /// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES,
    /// XSAVE, AVX, F16C, RDRAND.
    pub const LEAF1_ECX: u32 = 1 << 0
        | 1 << 1
        | 1 << 9
        | 1 << 12
        | 1 << 13
        | 1 << 17
        | 1 << 19
        | 1 << 20
        | 1 << 22
        | 1 << 23
        | 1 << 25
        | 1 << 26
        | 1 << 28
        | 1 << 29
        | 1 << 30;
    /// x2APIC is emulated whatever the host has.
    pub const X2APIC: u32 = 1 << 21;
    /// The TSC-deadline timer is emulated likewise.
    pub const TSC_DEADLINE: u32 = 1 << 24;
    /// A hypervisor is present.
    pub const HYPERVISOR: u32 = 1 << 31;
    /// CR4.OSXSAVE is set.
    pub const OSXSAVE: u32 = 1 << 27;
    /// PCID.
    pub const PCID: u32 = 1 << 17;
    /// Leaf 1 EDX: FPU, VME, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE-36, CLFLUSH,
    /// MMX, FXSR, SSE, SSE2.
    pub const LEAF1_EDX: u32 = 0x078b_fbff & !(1 << 18) & !(1 << 21);
    /// The local APIC is enabled in IA32_APIC_BASE.
    pub const APIC: u32 = 1 << 9;
    /// More than one logical processor in the package.
    pub const HTT: u32 = 1 << 28;
    /// Leaf 7 EBX: FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA.
    pub const LEAF7_EBX: u32 = 1 << 0
        | 1 << 3
        | 1 << 5
        | 1 << 7
        | 1 << 8
        | 1 << 9
        | 1 << 10
        | 1 << 18
        | 1 << 19
        | 1 << 20
        | 1 << 23
        | 1 << 24
        | 1 << 29;
    /// IA32_TSC_ADJUST is emulated whatever the host has.
    pub const TSC_ADJUST: u32 = 1 << 1;
    /// Leaf 6 EAX: the local APIC's timer always runs; it is emulated.
    pub const ARAT: u32 = 1 << 2;
    /// INVPCID.
    pub const INVPCID: u32 = 1 << 10;
    /// Leaf 7 ECX: UMIP, VAES, VPCLMULQDQ, RDPID.
    pub const LEAF7_ECX: u32 = 1 << 2 | 1 << 9 | 1 << 10 | 1 << 22;
    /// RDPID.
    pub const RDPID: u32 = 1 << 22;
    /// Leaf 7 EDX: FSRM, MD_CLEAR.
    pub const LEAF7_EDX: u32 = 1 << 4 | 1 << 10;
    /// Leaf 7 EDX: IBRS and IBPB.
    pub const IBRS_IBPB: u32 = 1 << 26;
    /// Leaf 7 EDX: STIBP.
    pub const STIBP: u32 = 1 << 27;
    /// Leaf 7 EDX: IA32_ARCH_CAPABILITIES.
    pub const ARCH_CAPABILITIES: u32 = 1 << 29;
    /// Leaf 7 EDX: SSBD.
    pub const SSBD: u32 = 1 << 31;
    /// Leaf Dh subleaf 1 EAX: XSAVEOPT, XSAVEC, XGETBV with ECX=1.
    pub const XSAVE_EXTENSIONS: u32 = 1 << 0 | 1 << 1 | 1 << 2;
    /// Leaf 8000_0001h ECX: LAHF, AltMovCr8, ABM, SSE4A, MisAlignSse, 3DNowPrefetch.
    pub const EXTENDED1_ECX: u32 = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8;
    /// Leaf 8000_0001h EDX on AMD, beside the copy of leaf 1: SYSCALL, NX, MMXEXT, 1 GiB pages, RDTSCP, LM.
    pub const EXTENDED1_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 22 | 1 << 26 | 1 << 27 | 1 << 29;
    /// What AMD repeats of leaf 1 EDX in 8000_0001h EDX.
    pub const EXTENDED1_EDX_COPY: u32 = 0x0183_f3ff;
    /// RDTSCP in 8000_0001h EDX.
    pub const RDTSCP: u32 = 1 << 27;
    /// Leaf 8000_0008h EBX: CLZERO, SSBD not required, no branch type confusion, IBPB clears return predictions.
    pub const EXTENDED8_EBX: u32 = 1 << 0 | 1 << 26 | 1 << 29 | 1 << 30;
    /// Leaf 8000_0008h EBX: IBPB.
    pub const AMD_IBPB: u32 = 1 << 12;
    /// Leaf 8000_0008h EBX: IBRS, always on, preferred, for the same mode.
    pub const AMD_IBRS: u32 = 1 << 14 | 1 << 16 | 1 << 18 | 1 << 19;
    /// Leaf 8000_0008h EBX: STIBP, always on.
    pub const AMD_STIBP: u32 = 1 << 15 | 1 << 17;
    /// Leaf 8000_0008h EBX: SSBD.
    pub const AMD_SSBD: u32 = 1 << 24;
    /// Leaf 8000_0008h EBX: PSFD.
    pub const AMD_PSFD: u32 = 1 << 28;
    /// Leaf 8000_0007h EDX: invariant TSC.
    pub const INVARIANT_TSC: u32 = 1 << 8;
}

/// XCR0 bits that the backends switch: x87, SSE, AVX.
pub const XCR0_SUPPORTED: u64 = 0b111;

/// The processor's maker, where CPUID and MSRs differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD, HygonGenuine.
    Amd,
}

/// What the backend's hardware controls allow beside the host's CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// RDTSCP and RDPID run in the guest, with TSC_AUX switched.
    pub rdtscp: bool,
    /// INVPCID runs in the guest, and PCID with it.
    pub invpcid: bool,
    /// The TSC runs at one rate always, so that a guest may be told so.
    pub invariant_tsc: bool,
    /// What guests have against leaks by speculation. Bits that need more are hidden.
    pub speculation: GuestSpeculation,
}

/// Where one vCPU stands in the topology: one package, one thread a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Local APIC id.
    pub apic_id: u32,
    /// vCPUs in the VM.
    pub vcpus: u32,
}

impl Topology {
    /// How many bits of the APIC id count cores.
    fn core_bits(&self) -> u32 {
        self.vcpus.max(1).next_power_of_two().trailing_zeros()
    }
}

/// Guest state that some answers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dynamic {
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_APIC_BASE says that the local APIC is enabled.
    pub apic_enabled: bool,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    leaf: u32,
    subleaf: u32,
    answer: CpuidAnswer,
}

/// In [`CpuidTable::first`]: the leaf has no row.
const NO_ROW: u8 = u8::MAX;

/// Where [`CpuidTable::first`] has a leaf: 64 leaves from 0, 4000_0000h, 8000_0000h and C000_0000h.
#[inline]
const fn place(leaf: u32) -> Option<u8> {
    const RANGE: u32 = 3 << 30;
    const LEAF: u32 = 0x3f;
    if leaf & !(RANGE | LEAF) == 0 { Some((leaf >> 24 | leaf & LEAF) as u8) } else { None }
}

/// The table of one vCPU, sorted by leaf and subleaf.
pub struct CpuidTable {
    rows: Vec<Row>,
    /// Where the rows of a leaf begin, by [`place`].
    first: [u8; 256],
    max_basic: u32,
    max_extended: u32,
    vendor: Vendor,
    speculation: GuestSpeculation,
}

impl CpuidTable {
    /// Makes the table from `host`, which answers as the physical processor does, and from the Hyper-V leaves.
    pub fn new(
        host: &dyn Fn(u32, u32) -> CpuidAnswer,
        allowed: Allowed,
        topology: Topology,
        hypervisor_leaves: &[(u32, CpuidAnswer)],
    ) -> CpuidTable {
        let mut table = Builder { host, allowed, topology, rows: Vec::new() };
        let zero = host(0, 0);
        let vendor = if zero.ebx == u32::from_le_bytes(*b"Genu") { Vendor::Intel } else { Vendor::Amd };
        let max_basic = zero.eax.min(0x16);
        table.add(0, ANY, CpuidAnswer { eax: max_basic, ..zero });
        if vendor == Vendor::Intel {
            table.intel_caches();
        }
        table.features();
        table.leaf_7(vendor);
        table.add(6, ANY, CpuidAnswer { eax: mask::ARAT, ..CpuidAnswer::default() });
        table.topology_leaf(0xb);
        table.xsave();
        for &(leaf, answer) in hypervisor_leaves {
            table.add(leaf, ANY, answer);
        }
        let max_extended = table.extended(vendor);
        let mut rows = table.rows;
        rows.sort_by_key(|row| (row.leaf, row.subleaf));
        assert!(rows.len() <= NO_ROW.into(), "CPUID has at most 255 rows");
        let mut first = [NO_ROW; 256];
        for (row, number) in rows.iter().zip(0..) {
            let place = place(row.leaf);
            assert!(place.is_some(), "CPUID has leaf {:#x}", row.leaf);
            let first = &mut first[usize::from(place.unwrap_or(0))];
            *first = number.min(*first);
        }
        CpuidTable { rows, first, max_basic, max_extended, vendor, speculation: allowed.speculation }
    }

    /// The processor's maker.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// What the guest has against leaks by speculation; as advertised.
    pub fn speculation(&self) -> GuestSpeculation {
        self.speculation
    }

    /// The processor signature, leaf 1 EAX.
    pub fn signature(&self) -> u32 {
        self.row(1, 0).map_or(0, |row| row.answer.eax)
    }

    /// Width of physical addresses in bits.
    pub fn physical_address_bits(&self) -> u32 {
        self.row(0x8000_0008, 0).map_or(36, |row| row.answer.eax & 0xff)
    }

    /// Whether a leaf's register has `bits` all set, dynamic bits aside.
    pub fn has(&self, leaf: u32, register: fn(&CpuidAnswer) -> u32, bits: u32) -> bool {
        self.row(leaf, 0).is_some_and(|row| register(&row.answer) & bits == bits)
    }

    #[inline]
    fn row(&self, leaf: u32, subleaf: u32) -> Option<&Row> {
        let first = self.first[usize::from(place(leaf)?)];
        let rows = self.rows.get(first.into()..)?;
        rows.iter().take_while(|row| row.leaf == leaf).find(|row| row.subleaf == subleaf || row.subleaf == ANY)
    }

    /// What CPUID with EAX=`leaf`, ECX=`subleaf` returns.
    #[inline]
    pub fn answer(&self, leaf: u32, subleaf: u32, dynamic: &Dynamic) -> CpuidAnswer {
        let leaf = self.clamp(leaf);
        let mut answer = match self.row(leaf, subleaf) {
            Some(row) => row.answer,
            None => CpuidAnswer::default(),
        };
        match leaf {
            1 => {
                if dynamic.cr4 & cr4::OSXSAVE != 0 {
                    answer.ecx |= mask::OSXSAVE;
                }
                if !dynamic.apic_enabled {
                    answer.edx &= !mask::APIC;
                }
            }
            // Subleaves past the last level answer zero with the input in ECX; SDM 2A, CPUID leaf 0Bh.
            0xb if answer == CpuidAnswer::default() => answer.ecx = subleaf & 0xff,
            0xd if subleaf <= 1 && answer != CpuidAnswer::default() => {
                answer.ebx = self.xsave_size(dynamic.xcr0);
            }
            0x8000_0001 if !dynamic.apic_enabled && self.vendor == Vendor::Amd => answer.edx &= !mask::APIC,
            _ => {}
        }
        answer
    }

    /// Intel answers an input above the highest leaf as the highest basic leaf, AMD as zero. Both are allowed to see a
    /// hypervisor's range.
    #[inline]
    fn clamp(&self, leaf: u32) -> u32 {
        let known = match leaf >> 28 {
            0 => leaf <= self.max_basic,
            4 => true,
            8 => leaf <= self.max_extended,
            _ => false,
        };
        if known || self.vendor == Vendor::Amd { leaf } else { self.max_basic }
    }

    /// Size of the standard-format XSAVE area for the components in `xcr0`.
    fn xsave_size(&self, xcr0: u64) -> u32 {
        const LEGACY_AND_HEADER: u32 = 512 + 64;
        let mut size = LEGACY_AND_HEADER;
        for component in 2..63 {
            if xcr0 & (1 << component) != 0
                && let Some(row) = self.row(0xd, component)
            {
                size = size.max(row.answer.ebx.saturating_add(row.answer.eax));
            }
        }
        size
    }
}

struct Builder<'a> {
    host: &'a dyn Fn(u32, u32) -> CpuidAnswer,
    allowed: Allowed,
    topology: Topology,
    rows: Vec<Row>,
}

impl Builder<'_> {
    fn add(&mut self, leaf: u32, subleaf: u32, answer: CpuidAnswer) {
        self.rows.push(Row { leaf, subleaf, answer });
    }

    fn features(&mut self) {
        let host = (self.host)(1, 0);
        let mut ecx = host.ecx & mask::LEAF1_ECX | mask::X2APIC | mask::TSC_DEADLINE | mask::HYPERVISOR;
        if !self.allowed.invpcid {
            ecx &= !mask::PCID;
        }
        let mut edx = host.edx & mask::LEAF1_EDX | mask::APIC;
        if self.topology.vcpus > 1 {
            edx |= mask::HTT;
        }
        const CLFLUSH_SIZE: u32 = 0x0000_ff00;
        let ebx = host.ebx & CLFLUSH_SIZE
            | (1 << self.topology.core_bits()).min(0xff) << 16
            | (self.topology.apic_id & 0xff) << 24;
        self.add(1, ANY, CpuidAnswer { eax: host.eax, ebx, ecx, edx });
    }

    /// Leaf 2 as it is, leaf 4 with our topology: one thread a core, caches private but for the last level.
    fn intel_caches(&mut self) {
        let descriptors = (self.host)(2, 0);
        self.add(2, ANY, descriptors);
        for subleaf in 0..8 {
            let mut cache = (self.host)(4, subleaf);
            if cache.eax & 0x1f == 0 {
                break;
            }
            let last_level = cache.eax >> 5 & 7 >= 3;
            let sharing = if last_level { (1 << self.topology.core_bits()) - 1 } else { 0 };
            let cores = (1u32 << self.topology.core_bits()) - 1;
            cache.eax = cache.eax & 0x3fff | (sharing & 0xfff) << 14 | (cores & 0x3f) << 26;
            self.add(4, subleaf, cache);
        }
    }

    fn leaf_7(&mut self, vendor: Vendor) {
        let host = (self.host)(7, 0);
        let mut ebx = host.ebx & mask::LEAF7_EBX | mask::TSC_ADJUST;
        if !self.allowed.invpcid {
            ebx &= !mask::INVPCID;
        }
        let mut ecx = host.ecx & mask::LEAF7_ECX;
        if !self.allowed.rdtscp {
            ecx &= !mask::RDPID;
        }
        let mut edx = host.edx & mask::LEAF7_EDX;
        if vendor == Vendor::Intel {
            edx |= host.edx & self.intel_speculation();
        }
        self.add(7, 0, CpuidAnswer { eax: 0, ebx, ecx, edx });
    }

    /// The bits of leaf 7 EDX whose registers the guest has.
    fn intel_speculation(&self) -> u32 {
        let guest = self.allowed.speculation;
        let switched = |bit: u64| guest.spec_ctrl & bit != 0;
        chosen([
            (switched(spec_ctrl::IBRS) && guest.barrier, mask::IBRS_IBPB),
            (switched(spec_ctrl::STIBP), mask::STIBP),
            (switched(spec_ctrl::SSBD), mask::SSBD),
            (guest.arch_capabilities.is_some(), mask::ARCH_CAPABILITIES),
        ])
    }

    /// The bits of leaf 8000_0008h EBX whose registers the guest has.
    fn amd_speculation(&self) -> u32 {
        let guest = self.allowed.speculation;
        let switched = |bit: u64| guest.spec_ctrl & bit != 0;
        chosen([
            (guest.barrier, mask::AMD_IBPB),
            (switched(spec_ctrl::IBRS), mask::AMD_IBRS),
            (switched(spec_ctrl::STIBP), mask::AMD_STIBP),
            (switched(spec_ctrl::SSBD), mask::AMD_SSBD),
            (switched(spec_ctrl::PSFD), mask::AMD_PSFD),
        ])
    }

    /// Extended topology: a thread level of one and a core level of all vCPUs.
    fn topology_leaf(&mut self, leaf: u32) {
        const SMT: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        let edx = self.topology.apic_id;
        self.add(leaf, 0, CpuidAnswer { eax: 0, ebx: 1, ecx: SMT, edx });
        let cores =
            CpuidAnswer { eax: self.topology.core_bits(), ebx: self.topology.vcpus & 0xffff, ecx: 1 | CORE, edx };
        self.add(leaf, 1, cores);
    }

    fn xsave(&mut self) {
        let host = (self.host)(0xd, 0);
        let features = host.eax & XCR0_SUPPORTED as u32;
        if (self.host)(1, 0).ecx & mask::LEAF1_ECX & 1 << 26 == 0 || features == 0 {
            return;
        }
        let mut largest = 512 + 64;
        for component in 2..32 {
            if features & 1 << component != 0 {
                let row = (self.host)(0xd, component);
                largest = largest.max(row.ebx.saturating_add(row.eax));
                self.add(0xd, component, CpuidAnswer { ecx: 0, edx: 0, ..row });
            }
        }
        self.add(0xd, 0, CpuidAnswer { eax: features, ebx: largest, ecx: largest, edx: 0 });
        let extensions = (self.host)(0xd, 1).eax & mask::XSAVE_EXTENSIONS;
        self.add(0xd, 1, CpuidAnswer { eax: extensions, ..CpuidAnswer::default() });
    }

    fn extended(&mut self, vendor: Vendor) -> u32 {
        let host_max = (self.host)(0x8000_0000, 0);
        let max = host_max.eax.clamp(0x8000_0000, 0x8000_0008);
        self.add(0x8000_0000, ANY, CpuidAnswer { eax: max, ..host_max });
        let one = (self.host)(0x8000_0001, 0);
        let mut edx = one.edx & mask::EXTENDED1_EDX;
        if vendor == Vendor::Amd {
            edx |= one.edx & mask::EXTENDED1_EDX_COPY & mask::LEAF1_EDX | mask::APIC;
        }
        if !self.allowed.rdtscp {
            edx &= !mask::RDTSCP;
        }
        let ecx = one.ecx & mask::EXTENDED1_ECX;
        let eax = one.eax;
        self.add(0x8000_0001, ANY, CpuidAnswer { eax, ebx: one.ebx, ecx, edx });
        for brand in 0x8000_0002..=0x8000_0004 {
            self.add(brand, ANY, (self.host)(brand, 0));
        }
        for caches in [0x8000_0005, 0x8000_0006] {
            if caches <= max {
                self.add(caches, ANY, (self.host)(caches, 0));
            }
        }
        let invariant = if self.allowed.invariant_tsc { mask::INVARIANT_TSC } else { 0 };
        self.add(0x8000_0007, ANY, CpuidAnswer { edx: invariant, ..CpuidAnswer::default() });
        let sizes = (self.host)(0x8000_0008, 0);
        // Guest-physical width as the host's; a separate nested width (bits 23:16) is not offered.
        let mut eight = CpuidAnswer { eax: sizes.eax & 0xffff, ..CpuidAnswer::default() };
        if vendor == Vendor::Amd {
            eight.ebx = sizes.ebx & (mask::EXTENDED8_EBX | self.amd_speculation());
            eight.ecx = self.topology.vcpus.saturating_sub(1) & 0xff | self.topology.core_bits() << 12;
        }
        self.add(0x8000_0008, ANY, eight);
        max
    }
}

/// The bits that are chosen, together.
fn chosen<const N: usize>(choices: [(bool, u32); N]) -> u32 {
    choices.into_iter().filter(|(there, _)| *there).fold(0, |all, (_, bits)| all | bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU 10 `-cpu EPYC,+svm,+x2apic` in the leaves that matter here.
    fn epyc(leaf: u32, subleaf: u32) -> CpuidAnswer {
        let (eax, ebx, ecx, edx) = match (leaf, subleaf) {
            (0, _) => (0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
            (1, _) => (0x0080_0f12, 0x0001_0800, 0xf6f8_3203, 0x078b_fbff),
            (7, 0) => (0, 0x209c_01a9, 0, 0),
            (0xd, 0) => (7, 0x340, 0x340, 0),
            (0xd, 1) => (7, 0x340, 0, 0),
            (0xd, 2) => (0x100, 0x240, 0, 0),
            (0x8000_0000, _) => (0x8000_001f, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
            (0x8000_0001, _) => (0x0080_0f12, 0, 0x0000_01f7, 0x2fd3_fbff),
            (0x8000_0008, _) => (0x3028, 0x1000, 0, 0),
            _ => (0, 0, 0, 0),
        };
        CpuidAnswer { eax, ebx, ecx, edx }
    }

    const NOTHING: GuestSpeculation = GuestSpeculation { spec_ctrl: 0, barrier: false, arch_capabilities: None };
    const ALLOWED: Allowed = Allowed { rdtscp: true, invpcid: false, invariant_tsc: true, speculation: NOTHING };
    const RUNNING: Dynamic = Dynamic { cr4: 0, xcr0: 1, apic_enabled: true };

    fn table(vcpus: u32, apic_id: u32) -> CpuidTable {
        CpuidTable::new(
            &epyc,
            ALLOWED,
            Topology { apic_id, vcpus },
            &[(0x4000_0000, CpuidAnswer { eax: 0x4000_0006, ..Default::default() })],
        )
    }

    #[test]
    fn svm_and_what_is_not_in_a_mask_is_hidden() {
        let table = table(1, 0);
        let answer = table.answer(0x8000_0001, 0, &RUNNING);
        assert_eq!(answer.ecx & 1 << 2, 0, "SVM");
        assert_eq!(answer.ecx & 1, 1, "LAHF");
        assert_ne!(answer.edx & 1 << 29, 0, "long mode");
        let features = table.answer(1, 0, &RUNNING);
        assert_eq!(features.ecx & 1 << 3, 0, "MONITOR");
        assert_eq!(features.ecx & 1 << 5, 0, "VMX");
        assert_ne!(features.ecx & 1 << 31, 0, "hypervisor");
        assert_ne!(features.ecx & 1 << 21, 0, "x2APIC");
    }

    #[test]
    fn osxsave_and_apic_follow_the_guest() {
        let table = table(1, 0);
        assert_eq!(table.answer(1, 0, &RUNNING).ecx & 1 << 27, 0);
        assert_ne!(table.answer(1, 0, &Dynamic { cr4: cr4::OSXSAVE, ..RUNNING }).ecx & 1 << 27, 0);
        assert_ne!(table.answer(1, 0, &RUNNING).edx & 1 << 9, 0);
        assert_eq!(table.answer(1, 0, &Dynamic { apic_enabled: false, ..RUNNING }).edx & 1 << 9, 0);
    }

    #[test]
    fn xsave_size_follows_xcr0() {
        let table = table(1, 0);
        assert_eq!(table.answer(0xd, 0, &RUNNING).ebx, 576);
        assert_eq!(table.answer(0xd, 0, &Dynamic { xcr0: 7, ..RUNNING }).ebx, 0x340);
        assert_eq!(table.answer(0xd, 0, &RUNNING).ecx, 0x340);
        assert_eq!(table.answer(0xd, 2, &RUNNING), CpuidAnswer { eax: 0x100, ebx: 0x240, ecx: 0, edx: 0 });
        assert_eq!(table.answer(0xd, 9, &RUNNING), CpuidAnswer::default());
    }

    #[test]
    fn topology_agrees_everywhere() {
        let table = table(3, 2);
        let one = table.answer(1, 0, &RUNNING);
        assert_eq!(one.ebx >> 24, 2);
        assert_eq!(one.ebx >> 16 & 0xff, 4);
        assert_ne!(one.edx & 1 << 28, 0);
        assert_eq!(table.answer(0xb, 0, &RUNNING).edx, 2);
        assert_eq!(table.answer(0xb, 1, &RUNNING).eax, 2);
        assert_eq!(table.answer(0xb, 1, &RUNNING).ebx, 3);
        assert_eq!(table.answer(0xb, 7, &RUNNING), CpuidAnswer { ecx: 7, ..Default::default() });
        assert_eq!(table.answer(0x8000_0008, 0, &RUNNING).ecx, 2 | 2 << 12);
    }

    #[test]
    fn out_of_range_leaves_answer_as_the_vendor_does() {
        let amd = table(1, 0);
        assert_eq!(amd.answer(0x2000_0000, 0, &RUNNING), CpuidAnswer::default());
        let intel_host = |leaf, subleaf| {
            let mut answer = epyc(leaf, subleaf);
            if leaf == 0 {
                answer = CpuidAnswer { eax: 0xb, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69 };
            }
            answer
        };
        let intel = CpuidTable::new(&intel_host, ALLOWED, Topology { apic_id: 5, vcpus: 8 }, &[]);
        assert_eq!(intel.vendor(), Vendor::Intel);
        assert_eq!(intel.answer(0x77, 0, &RUNNING).edx, 5, "as leaf Bh, the highest basic one");
    }

    #[test]
    fn speculation_control_is_advertised_where_it_is_switched() {
        let host = |leaf, subleaf| match leaf {
            0x8000_0008 => CpuidAnswer { eax: 0x3030, ebx: 0x91be_f75f, ecx: 0, edx: 0 },
            7 if subleaf == 0 => CpuidAnswer { edx: u32::MAX, ..epyc(7, 0) },
            _ => epyc(leaf, subleaf),
        };
        let topology = Topology { apic_id: 0, vcpus: 1 };
        let with = |speculation| CpuidTable::new(&host, Allowed { speculation, ..ALLOWED }, topology, &[]);
        let ebx = |speculation| with(speculation).answer(0x8000_0008, 0, &RUNNING).ebx;
        assert_eq!(ebx(NOTHING), 1, "CLZERO alone");
        let all = GuestSpeculation { spec_ctrl: 0x87, barrier: true, arch_capabilities: None };
        assert_eq!(ebx(all), 0x110e_d001);
        assert_eq!(ebx(GuestSpeculation { spec_ctrl: 4, barrier: false, ..all }), 1 << 24 | 1);
        assert_eq!(with(all).answer(7, 0, &RUNNING).edx, 1 << 4 | 1 << 10, "Intel's bits are not for AMD");
    }

    #[test]
    fn intel_guests_see_the_registers_that_they_have() {
        let host = |leaf, subleaf| match leaf {
            0 => CpuidAnswer { eax: 0x16, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69 },
            7 if subleaf == 0 => CpuidAnswer { edx: 0xbc00_0400, ..epyc(7, 0) },
            _ => epyc(leaf, subleaf),
        };
        let edx = |speculation| {
            let topology = Topology { apic_id: 0, vcpus: 1 };
            let table = CpuidTable::new(&host, Allowed { speculation, ..ALLOWED }, topology, &[]);
            table.answer(7, 0, &RUNNING).edx
        };
        assert_eq!(edx(NOTHING), 1 << 10, "VERW needs no register");
        let all = GuestSpeculation { spec_ctrl: 7, barrier: true, arch_capabilities: Some(0x2b) };
        assert_eq!(edx(all), 0xac00_0400, "all but the flush of the cache");
    }

    #[test]
    fn hypervisor_leaves_are_there() {
        assert_eq!(table(1, 0).answer(0x4000_0000, 0, &RUNNING).eax, 0x4000_0006);
    }
}
