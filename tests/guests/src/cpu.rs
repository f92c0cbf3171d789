//! Instructions of the processor as functions, and the bits that tests use.
//!
//! Manual: Intel SDM (December 2024, 325462-086) volumes 2 and 3A.

use crate::attempt;
use crate::trap::Caught;
use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

/// CR0 bits.
#[allow(missing_docs)]
mod cr0 {
    pub const CR0_MP: u64 = 1 << 1;
    pub const CR0_EM: u64 = 1 << 2;
    pub const CR0_TS: u64 = 1 << 3;
    pub const CR0_AM: u64 = 1 << 18;
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_NW: u64 = 1 << 29;
    pub const CR0_CD: u64 = 1 << 30;
}
/// CR4 bits.
#[allow(missing_docs)]
mod cr4 {
    pub const CR4_TSD: u64 = 1 << 2;
    pub const CR4_DE: u64 = 1 << 3;
    pub const CR4_PGE: u64 = 1 << 7;
    pub const CR4_UMIP: u64 = 1 << 11;
    pub const CR4_VMXE: u64 = 1 << 13;
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    pub const CR4_SMEP: u64 = 1 << 20;
    pub const CR4_SMAP: u64 = 1 << 21;
}
pub use cr0::*;
pub use cr4::*;

/// IA32_EFER.
pub const EFER: u32 = 0xc000_0080;
/// EFER.NXE.
pub const EFER_NXE: u64 = 1 << 11;
/// EFER.SCE.
pub const EFER_SCE: u64 = 1;

/// EAX, EBX, ECX and EDX of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Leaf {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let result = __cpuid_count(leaf, subleaf);
    Leaf { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
}

/// CPUID, with zeroes for a basic or extended leaf above the highest one.
pub fn leaf(leaf: u32, subleaf: u32) -> Leaf {
    if cpuid(leaf & 0x8000_0000, 0).eax >= leaf {
        cpuid(leaf, subleaf)
    } else {
        Leaf { eax: 0, ebx: 0, ecx: 0, edx: 0 }
    }
}

/// Whether the processor calls itself one of AMD's.
pub fn is_amd() -> bool {
    // "Auth" and "Hygo".
    matches!(cpuid(0, 0).ebx, 0x6874_7541 | 0x6f67_7948)
}

/// RDMSR; the exception if it raises one.
pub fn read_msr(msr: u32) -> Result<u64, Caught> {
    let (low, high): (u32, u32);
    // SAFETY: reading has no effect on memory; an exception is caught.
    let caught = unsafe { attempt!("rdmsr", in("ecx") msr, lateout("eax") low, lateout("edx") high) };
    match caught {
        None => Ok(u64::from(high) << 32 | u64::from(low)),
        Some(caught) => Err(caught),
    }
}

/// WRMSR; the exception if it raises one.
pub fn write_msr(msr: u32, value: u64) -> Result<(), Caught> {
    // SAFETY: tests know what they write; an exception is caught.
    let caught = unsafe { attempt!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32) };
    caught.map_or(Ok(()), Err)
}

/// RDTSC.
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: it only reads a counter.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

macro_rules! control_registers {
    ($($read:ident $write:ident $name:literal),*) => {$(
        #[doc = concat!("Reads ", $name, ".")]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reading has no effect.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nostack)) };
            value
        }

        #[doc = concat!("Writes ", $name, ", which must be a valid value that keeps the program mapped.")]
        pub fn $write(value: u64) {
            // SAFETY: tests know what they write.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack)) };
        }
    )*};
}

control_registers!(read_cr0 write_cr0 "cr0", read_cr2 write_cr2 "cr2", read_cr3 write_cr3 "cr3", read_cr4 write_cr4 "cr4",
    read_cr8 write_cr8 "cr8", read_dr0 write_dr0 "dr0", read_dr3 write_dr3 "dr3", read_dr6 write_dr6 "dr6", read_dr7 write_dr7 "dr7");

/// RFLAGS.
pub fn flags() -> u64 {
    let value;
    // SAFETY: it only reads.
    unsafe { asm!("pushfq", "pop {}", out(reg) value) };
    value
}

/// CLI.
pub fn disable_interrupts() {
    // SAFETY: a guest owns its interrupt flag.
    unsafe { asm!("cli") };
}

/// STI, and one instruction for its shadow to end.
pub fn enable_interrupts() {
    // SAFETY: handlers are installed by whoever calls this.
    unsafe { asm!("sti", "nop") };
}

/// HLT.
pub fn halt() {
    // SAFETY: waiting harms nothing.
    unsafe { asm!("hlt") };
}

/// STI and HLT with nothing between them, then CLI: sleeps until an interrupt, however early it comes.
pub fn sleep() {
    // SAFETY: as above.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// PAUSE.
pub fn pause() {
    core::hint::spin_loop();
}

/// Drops the translation of one linear address.
pub fn invalidate(address: u64) {
    // SAFETY: it affects nothing but the translation cache.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}

/// A 32-bit device register.
pub fn mmio_read32(address: u64) -> u32 {
    let value;
    // SAFETY: device registers are mapped and belong to the guest. The instruction is fixed so that every machine sees the same.
    unsafe { asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// Writes a 32-bit device register.
pub fn mmio_write32(address: u64, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("mov dword ptr [{}], {:e}", in(reg) address, in(reg) value, options(nostack)) };
}

/// A 64-bit device register.
pub fn mmio_read64(address: u64) -> u64 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value
}

/// Writes a 64-bit device register.
pub fn mmio_write64(address: u64, value: u64) {
    // SAFETY: as above.
    unsafe { asm!("mov qword ptr [{}], {}", in(reg) address, in(reg) value, options(nostack)) };
}
