//! CPUID: leaves that agree with each other and with the machine, and every advertised feature executed.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use guest::attempt;
use guest::cpu::{self, Leaf, cpuid, leaf};
use guest::report::{check, equal};
use guest::trap::Caught;
use guest::{apic, report};

guest::guest!("cpuid", run);

const OSXSAVE: u32 = 1 << 27;
const XSAVE: u32 = 1 << 26;

#[repr(C, align(64))]
struct Area([u8; 4096]);
static mut AREA: Area = Area([0; 4096]);

fn run() {
    registers();
    leaves();
    identity();
    features();
}

/// The whole of RAX to RDX is written, upper halves cleared.
fn registers() {
    let (mut rax, mut rcx, rdx, rbx) = (u64::MAX << 32, u64::MAX << 32, u64::MAX, u64::MAX);
    let (rdx_after, rbx_after): (u64, u64);
    // SAFETY: RBX is kept around CPUID, as the compiler wants.
    unsafe {
        asm!("xchg r8, rbx", "cpuid", "xchg r8, rbx", inout("rax") rax, inout("rcx") rcx, inout("rdx") rdx => rdx_after, inout("r8") rbx => rbx_after);
    }
    equal("upper-halves-cleared", (rax | rbx_after | rcx | rdx_after) >> 32, 0);
}

fn leaves() {
    let basic = cpuid(0, 0).eax;
    check("basic-leaves-reach-7", basic >= 7, format_args!("{basic:#x}"));
    let extended = cpuid(0x8000_0000, 0).eax;
    check("extended-leaves-reach-8", extended >= 0x8000_0008, format_args!("{extended:#x}"));
    if cpu::is_amd() {
        let nothing = Leaf { eax: 0, ebx: 0, ecx: 0, edx: 0 };
        equal("leaf-above-the-last-is-zero", cpuid(basic + 0x1000, 0), nothing);
    }
    equal("same-answer-twice", cpuid(1, 0).edx, cpuid(1, 0).edx);
    let hypervisor = cpuid(1, 0).ecx >> 31 & 1 != 0;
    if hypervisor {
        let top = cpuid(0x4000_0000, 0).eax;
        check("hypervisor-leaves", (0x4000_0000..0x4001_0000).contains(&top) || top == 0, format_args!("{top:#x}"));
    }
    let address_bits = leaf(0x8000_0008, 0).eax & 0xff;
    check("physical-address-width", (36..=52).contains(&address_bits), format_args!("{address_bits}"));
    let linear_bits = leaf(0x8000_0008, 0).eax >> 8 & 0xff;
    check("linear-address-width", linear_bits == 48 || linear_bits == 57, format_args!("{linear_bits}"));
}

/// Topology and dynamic bits.
fn identity() {
    equal("apic-id-in-leaf-1", (cpuid(1, 0).ebx >> 24) as u8, apic::id());
    if leaf(0xb, 0).ebx != 0 {
        equal("apic-id-in-leaf-b", cpuid(0xb, 0).edx, apic::id().into());
        equal("apic-id-in-every-subleaf-of-b", cpuid(0xb, 2).edx, apic::id().into());
        equal("leaf-b-level-types", (cpuid(0xb, 0).ecx >> 8 & 0xff, cpuid(0xb, 1).ecx >> 8 & 0xff), (1, 2));
    }
    equal("apic-bit-follows-apic-base", cpuid(1, 0).edx >> 9 & 1, 1);
    if cpuid(1, 0).ecx & XSAVE != 0 {
        equal("osxsave-off", cpuid(1, 0).ecx & OSXSAVE, 0);
        cpu::write_cr4(cpu::read_cr4() | cpu::CR4_OSXSAVE);
        equal("osxsave-on", cpuid(1, 0).ecx & OSXSAVE, OSXSAVE);
        let sizes = cpuid(0xd, 0);
        check(
            "xsave-size-of-enabled",
            sizes.ebx >= 576 && sizes.ebx <= sizes.ecx,
            format_args!("{} of {}", sizes.ebx, sizes.ecx),
        );
    }
    equal("no-vmx", cpuid(1, 0).ecx >> 5 & 1, 0);
    equal("no-svm", leaf(0x8000_0001, 0).ecx >> 2 & 1, 0);
    equal("no-smx", cpuid(1, 0).ecx >> 6 & 1, 0);
}

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

struct Feature {
    name: &'static str,
    leaf: u32,
    subleaf: u32,
    register: Register,
    bit: u32,
    /// Uses it; `None` for a feature that changes no instruction.
    execute: Option<fn() -> Option<Caught>>,
}

const fn feature(
    name: &'static str,
    (leaf, subleaf): (u32, u32),
    register: Register,
    bit: u32,
    execute: fn() -> Option<Caught>,
) -> Feature {
    Feature { name, leaf, subleaf, register, bit, execute: Some(execute) }
}

/// A feature that adds a leaf, an optimisation or a promise, and no instruction.
const fn property(name: &'static str, (leaf, subleaf): (u32, u32), register: Register, bit: u32) -> Feature {
    Feature { name, leaf, subleaf, register, bit, execute: None }
}

/// Sets a CR4 bit and clears it again.
macro_rules! cr4 {
    ($bit:expr) => {
        || {
            let before = cpu::read_cr4();
            // SAFETY: the bit changes nothing that this program depends on, and goes back.
            let caught = unsafe { attempt!("mov cr4, {value}", value = in(reg) before | 1 << $bit) };
            let kept = cpu::read_cr4() >> $bit & 1 != 0;
            cpu::write_cr4(before);
            check_kept(caught, kept)
        }
    };
}

/// A bit that was accepted has to read back.
fn check_kept(caught: Option<Caught>, kept: bool) -> Option<Caught> {
    if caught.is_none() && !kept { Some(Caught { vector: 0xff, error: 0, rip: 0, address: 0 }) } else { caught }
}

macro_rules! code {
    ($text:literal) => {
        // SAFETY: touches AREA and registers named as changed; an exception is caught.
        || unsafe {
            attempt!($text, inout("rax") 0_u64 => _, inout("rcx") 0_u64 => _, inout("rdx") 0_u64 => _,
                inout("rdi") &raw mut AREA => _, inout("rsi") &raw mut AREA => _, inout("r8") 0_u64 => _)
        }
    };
}

fn msr(number: u32) -> Option<Caught> {
    cpu::read_msr(number).err()
}

const L1: (u32, u32) = (1, 0);
const L7: (u32, u32) = (7, 0);
const X1: (u32, u32) = (0x8000_0001, 0);

static FEATURES: &[Feature] = &[
    feature("fpu", L1, Edx, 0, code!("fld1\nfstp st(0)")),
    feature("vme", L1, Edx, 1, cr4!(1)),
    feature("de", L1, Edx, 2, cr4!(3)),
    feature("pse", L1, Edx, 3, cr4!(4)),
    feature("tsc", L1, Edx, 4, code!("rdtsc")),
    feature("msr", L1, Edx, 5, || msr(0x1b)),
    property("pae", L1, Edx, 6),
    feature("mce", L1, Edx, 7, cr4!(6)),
    feature("cx8", L1, Edx, 8, code!("cmpxchg8b qword ptr [rdi]")),
    feature("apic", L1, Edx, 9, || msr(apic::BASE_MSR)),
    feature("sep", L1, Edx, 11, || msr(0x174)),
    feature("mtrr", L1, Edx, 12, || msr(0xfe).or_else(|| msr(0x2ff)).or_else(|| msr(0x200)).or_else(|| msr(0x250))),
    feature("pge", L1, Edx, 13, cr4!(7)),
    feature("mca", L1, Edx, 14, || msr(0x179).or_else(|| msr(0x17a))),
    feature("cmov", L1, Edx, 15, code!("cmove eax, ecx")),
    feature("pat", L1, Edx, 16, || msr(0x277)),
    property("pse36", L1, Edx, 17),
    feature("clflush", L1, Edx, 19, code!("clflush [rdi]")),
    feature("mmx", L1, Edx, 23, code!("paddb mm0, mm1\nemms")),
    feature("fxsr", L1, Edx, 24, code!("fxsave [rdi]\nfxrstor [rdi]")),
    feature("sse", L1, Edx, 25, code!("xorps xmm0, xmm0")),
    feature("sse2", L1, Edx, 26, code!("xorpd xmm0, xmm0")),
    property("self-snoop", L1, Edx, 27),
    property("htt", L1, Edx, 28),
    feature("sse3", L1, Ecx, 0, code!("haddps xmm0, xmm0")),
    feature("pclmulqdq", L1, Ecx, 1, code!("pclmulqdq xmm0, xmm0, 0")),
    feature("monitor", L1, Ecx, 3, code!("mov rax, rdi\nmonitor")),
    feature("ssse3", L1, Ecx, 9, code!("pshufb xmm0, xmm0")),
    feature("fma", L1, Ecx, 12, code!("vfmadd132ps ymm0, ymm0, ymm0")),
    feature("cx16", L1, Ecx, 13, code!("cmpxchg16b xmmword ptr [rdi]")),
    feature("pcid", L1, Ecx, 17, cr4!(17)),
    feature("sse41", L1, Ecx, 19, code!("pmulld xmm0, xmm0")),
    feature("sse42", L1, Ecx, 20, code!("crc32 eax, cl")),
    feature("x2apic", L1, Ecx, 21, || msr(apic::BASE_MSR)),
    feature("movbe", L1, Ecx, 22, code!("movbe eax, [rdi]")),
    feature("popcnt", L1, Ecx, 23, code!("popcnt eax, ecx")),
    feature("tsc-deadline", L1, Ecx, 24, || msr(0x6e0)),
    feature("aes", L1, Ecx, 25, code!("aesenc xmm0, xmm0")),
    feature("xsave", L1, Ecx, 26, code!("mov eax, 3\nxsave [rdi]\nxrstor [rdi]")),
    feature("osxsave", L1, Ecx, 27, code!("xgetbv")),
    feature("avx", L1, Ecx, 28, code!("vaddps ymm0, ymm0, ymm0")),
    feature("f16c", L1, Ecx, 29, code!("vcvtph2ps ymm0, xmm0")),
    feature("rdrand", L1, Ecx, 30, code!("rdrand rax")),
    property("hypervisor", L1, Ecx, 31),
    feature("fsgsbase", L7, Ebx, 0, || {
        cpu::write_cr4(cpu::read_cr4() | cpu::CR4_FSGSBASE);
        // SAFETY: nothing uses FS.
        let caught = unsafe { attempt!("rdfsbase rax\nwrfsbase rax", out("rax") _) };
        cpu::write_cr4(cpu::read_cr4() & !cpu::CR4_FSGSBASE);
        caught
    }),
    feature("tsc-adjust", L7, Ebx, 1, || msr(0x3b)),
    feature("bmi1", L7, Ebx, 3, code!("andn eax, ecx, edx")),
    feature("avx2", L7, Ebx, 5, code!("vpaddb ymm0, ymm0, ymm0")),
    feature("smep", L7, Ebx, 7, || None),
    feature("bmi2", L7, Ebx, 8, code!("rorx eax, ecx, 3")),
    property("erms", L7, Ebx, 9),
    feature("invpcid", L7, Ebx, 10, code!("mov eax, 2\ninvpcid rax, [rdi]")),
    feature("rdseed", L7, Ebx, 18, code!("rdseed rax")),
    feature("adx", L7, Ebx, 19, code!("adcx eax, ecx")),
    feature("smap", L7, Ebx, 20, code!("clac\nstac\nclac")),
    feature("clflushopt", L7, Ebx, 23, code!("clflushopt [rdi]")),
    feature("clwb", L7, Ebx, 24, code!("clwb [rdi]")),
    feature("sha", L7, Ebx, 29, code!("sha1msg1 xmm0, xmm0")),
    feature("umip", L7, Ecx, 2, cr4!(11)),
    feature("vaes", L7, Ecx, 9, code!("vaesenc ymm0, ymm0, ymm0")),
    feature("vpclmulqdq", L7, Ecx, 10, code!("vpclmulqdq ymm0, ymm0, ymm0, 0")),
    feature("rdpid", L7, Ecx, 22, code!("rdpid rax")),
    property("fsrm", L7, Edx, 4),
    feature("xsaveopt", (0xd, 1), Eax, 0, code!("mov eax, 3\nxsaveopt [rdi]")),
    feature("xsavec", (0xd, 1), Eax, 1, code!("mov eax, 3\nxsavec [rdi]\nxrstor [rdi]")),
    feature("xgetbv-1", (0xd, 1), Eax, 2, code!("mov ecx, 1\nxgetbv")),
    feature("lahf", X1, Ecx, 0, code!("lahf\nsahf")),
    property("cmp-legacy", X1, Ecx, 1),
    feature("altmovcr8", X1, Ecx, 4, code!("mov rax, cr8")),
    feature("lzcnt", X1, Ecx, 5, code!("lzcnt eax, ecx")),
    feature("sse4a", X1, Ecx, 6, code!("extrq xmm0, 1, 1")),
    property("misalignsse", X1, Ecx, 7),
    feature("prefetchw", X1, Ecx, 8, code!("prefetchw [rdi]")),
    feature("syscall", X1, Edx, 11, || msr(0xc000_0081)),
    property("nx", X1, Edx, 20),
    property("mmxext", X1, Edx, 22),
    property("ffxsr", X1, Edx, 25),
    property("pdpe1gb", X1, Edx, 26),
    feature("rdtscp", X1, Edx, 27, code!("rdtscp")),
    property("long-mode", X1, Edx, 29),
    feature("clzero", (0x8000_0008, 0), Ebx, 0, code!("mov rax, rdi\nclzero")),
];

/// 8000_0001h EDX of AMD repeats these bits of leaf 1.
const REPEATED: u32 = 0x0183_f3ff;

static SEEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn features() {
    let avx = cpuid(1, 0).ecx & (1 << 28) != 0;
    if cpuid(1, 0).ecx & XSAVE != 0 {
        let wanted = if avx { 7 } else { 3 };
        // SAFETY: OSXSAVE is set and these states are there.
        let caught = unsafe { attempt!("xsetbv", in("ecx") 0, in("eax") wanted, in("edx") 0) };
        equal("xsetbv-of-advertised", caught, None);
    }
    for feature in FEATURES {
        let answer = leaf(feature.leaf, feature.subleaf);
        let register = match feature.register {
            Eax => answer.eax,
            Ebx => answer.ebx,
            Ecx => answer.ecx,
            Edx => answer.edx,
        };
        if register >> feature.bit & 1 == 0 {
            continue;
        }
        SEEN[0].fetch_add(1, Ordering::Relaxed);
        if let Some(caught) = feature.execute.and_then(|execute| execute()) {
            SEEN[1].fetch_add(1, Ordering::Relaxed);
            report::failed("advertised-feature-works", format_args!("{}: {caught:x?}", feature.name));
        }
    }
    let [seen, broken] = [0, 1].map(|index: usize| SEEN[index].load(Ordering::Relaxed));
    check("advertised-features-work", seen > 20 && broken == 0, format_args!("{broken} of {seen} do not"));
    for (name, number, subleaf, pick) in [
        ("leaf-1-ecx", 1, 0, Ecx),
        ("leaf-1-edx", 1, 0, Edx),
        ("leaf-7-ebx", 7, 0, Ebx),
        ("leaf-7-ecx", 7, 0, Ecx),
        ("leaf-7-edx", 7, 0, Edx),
        ("leaf-d-1-eax", 0xd, 1, Eax),
        ("leaf-80000001-ecx", 0x8000_0001, 0, Ecx),
        ("leaf-80000001-edx", 0x8000_0001, 0, Edx),
    ] {
        let of = |answer: Leaf| match pick {
            Eax => answer.eax,
            Ebx => answer.ebx,
            Ecx => answer.ecx,
            Edx => answer.edx,
        };
        let known = FEATURES
            .iter()
            .filter(|feature| {
                (feature.leaf, feature.subleaf) == (number, subleaf) && feature.register as u8 == pick as u8
            })
            .fold(if (number, pick as u8) == (0x8000_0001, Edx as u8) { REPEATED } else { 0 }, |bits, feature| {
                bits | 1 << feature.bit
            });
        let unknown = of(leaf(number, subleaf)) & !known;
        check("only-executed-features-advertised", unknown == 0, format_args!("{name}: {unknown:#x}"));
    }
}
