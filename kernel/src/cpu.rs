//! The host CPU's registers that no other file owns: control registers as the host wants them, MSRs, TSC.

#![allow(unsafe_code)] // Privileged instructions and model-specific registers.

use core::arch::asm;
use raw_cpuid::CpuId;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

/// Model-specific registers by number. SDM 4, chapter 2.
pub mod msr {
    /// IA32_APIC_BASE.
    pub const APIC_BASE: u32 = 0x1b;
    /// IA32_TSC_DEADLINE.
    pub const TSC_DEADLINE: u32 = 0x6e0;
    /// First of the x2APIC registers.
    pub const X2APIC: u32 = 0x800;
    /// IA32_PAT.
    pub const PAT: u32 = 0x277;
    /// VM_CR, on CPUs with SVM. APM 2 15.30.1.
    pub const VM_CR: u32 = 0xc001_0114;
}

/// IA32_PAT as a reset leaves it, which `paging` counts on. SDM 3A table 13-12.
const PAT_AFTER_RESET: u64 = 0x0007_0406_0007_0406;

/// What the host cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(pub &'static str);

/// Sets the control registers of this CPU as all host code expects them: no-execute and write protection on, x87/SSE
/// usable for saving a guest's registers (the host itself uses none), XSAVE where there, machine checks on.
///
/// # Errors
/// What this CPU lacks.
pub fn prepare() -> Result<(), Missing> {
    let cpuid = CpuId::new();
    let features = cpuid.get_feature_info().ok_or(Missing("CPUID leaf 1"))?;
    let extended = cpuid.get_extended_processor_and_feature_identifiers().ok_or(Missing("CPUID leaf 8000_0001"))?;
    if !extended.has_execute_disable() {
        return Err(Missing("no-execute pages (NX); switch them on in the firmware's set-up"));
    }
    if !features.has_apic() {
        return Err(Missing("a local APIC"));
    }
    // SAFETY: NX exists, and no page table in use has the bit set before this.
    unsafe { Efer::update(|efer| *efer |= EferFlags::NO_EXECUTE_ENABLE) };
    let mut cr0 = Cr0::read() | Cr0Flags::WRITE_PROTECT | Cr0Flags::MONITOR_COPROCESSOR | Cr0Flags::NUMERIC_ERROR;
    cr0.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED);
    cr0.remove(Cr0Flags::CACHE_DISABLE | Cr0Flags::NOT_WRITE_THROUGH);
    // SAFETY: paging and protection stay on; the image is mapped writable where it is written.
    unsafe { Cr0::write(cr0) };
    let mut cr4 = Cr4::read() | Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE;
    if features.has_mce() {
        cr4 |= Cr4Flags::MACHINE_CHECK_EXCEPTION;
    }
    if features.has_xsave() {
        cr4 |= Cr4Flags::OSXSAVE;
    }
    // SAFETY: only bits whose features CPUID has are added.
    unsafe { Cr4::write(cr4) };
    if features.has_pat() {
        // SAFETY: CPUID has the register; nothing uses another memory type than write-back yet.
        unsafe { wrmsr(msr::PAT, PAT_AFTER_RESET) };
    }
    Ok(())
}

/// Reads a model-specific register.
///
/// # Safety
/// The register exists on this CPU and reading it has no effect that breaks the host.
pub unsafe fn rdmsr(number: u32) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { Msr::new(number).read() }
}

/// Writes a model-specific register.
///
/// # Safety
/// The register exists on this CPU, takes the value, and the host goes on working with it.
pub unsafe fn wrmsr(number: u32, value: u64) {
    let mut register = Msr::new(number);
    // SAFETY: the caller's promise.
    unsafe { register.write(value) };
}

/// The time-stamp counter.
#[inline]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC reads a counter; CR4.TSD does not matter in ring 0.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Waits for an interrupt and takes it. Whatever became due since interrupts were switched off ends the wait at once:
/// STI takes effect only after HLT has begun.
pub fn halt_until_interrupt() {
    // SAFETY: every vector has a handler, and they run on this stack like a call.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Takes whatever interrupts are pending.
pub fn take_interrupts() {
    // NOP is the instruction that STI shields.
    // SAFETY: every vector has a handler, and they run on this stack like a call.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) };
}

/// The time-stamp counter, read neither before what precedes it in the program has been done nor after what follows.
pub fn rdtsc_in_order() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: fences and a read of a counter; SSE2 is part of every 64-bit CPU.
    unsafe {
        asm!("mfence", "lfence", "rdtsc", "lfence", out("eax") low, out("edx") high, options(nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Halts this CPU for good.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: nothing is to happen on this CPU any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Where the caller's frame begins; frame pointers are kept (`.cargo/config.toml`).
#[inline(always)]
pub fn frame_pointer() -> u64 {
    let value: u64;
    // SAFETY: a register is read.
    unsafe { asm!("mov {}, rbp", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
