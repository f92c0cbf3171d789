//! The instructions that a backend needs and Rust has no words for, one function each.
//!
//! Manuals: AMD APM volume 3 (24594, revision 3.36) and volume 4 (26568, revision 3.25). Neighbours: `region` and `lib`
//! call them; `entry` has the switch into the guest. Nothing here decides anything.
//!
//! This file may be unsafe because it is made of instructions. They compile on any x86-64 host; most fault outside of ring 0.
#![allow(unsafe_code)]

use core::arch::asm;
use vcpu::Hpa;

/// Reads a model-specific register.
///
/// # Safety
/// Ring 0, and the MSR exists.
pub unsafe fn rdmsr(msr: u32) -> u64 {
    let (high, low): (u32, u32);
    // SAFETY: by the caller's promise it does not fault.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// Ring 0, the MSR exists and takes `value`, and nothing that runs afterwards is broken by it.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

/// The host's time-stamp counter now.
#[inline]
pub fn rdtsc() -> u64 {
    let (high, low): (u32, u32);
    // SAFETY: RDTSC touches nothing but its outputs; CR4.TSD does not bind ring 0.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Stores FS, GS, TR, LDTR, KernelGSbase and the system-call MSRs into the VMCB at `vmcb`.
///
/// # Safety
/// EFER.SVME is set, and `vmcb` is a page that the caller owns.
pub unsafe fn vmsave(vmcb: Hpa) {
    // SAFETY: by the caller's promise it writes to that page alone.
    unsafe { asm!("vmsave rax", in("rax") vmcb.0, options(nostack, preserves_flags)) };
}

/// Lets the interrupts that are pending be taken by the host's own handlers, and closes again.
///
/// # Safety
/// Ring 0, RFLAGS.IF clear, GIF set, and the caller holds no lock that a handler takes.
pub unsafe fn take_interrupts() {
    // SAFETY: by the caller's promise handlers may run here. NOP is the instruction that STI shields.
    unsafe { asm!("sti", "nop", "cli") };
}

/// Runs the host's machine-check handler.
///
/// # Safety
/// Ring 0 with a handler for vector 18 in the IDT.
pub unsafe fn raise_machine_check() {
    // SAFETY: by the caller's promise.
    unsafe { asm!("int 18") };
}

/// Reads CR0.
///
/// # Safety
/// Ring 0.
pub unsafe fn read_cr0() -> u64 {
    let value;
    // SAFETY: by the caller's promise.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes CR0.
///
/// # Safety
/// Ring 0, and the host can go on with that value.
pub unsafe fn write_cr0(value: u64) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Reads CR4.
///
/// # Safety
/// Ring 0.
pub unsafe fn read_cr4() -> u64 {
    let value;
    // SAFETY: by the caller's promise.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes CR4.
///
/// # Safety
/// Ring 0, and the host can go on with that value.
pub unsafe fn write_cr4(value: u64) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Reads DR0 to DR3.
///
/// # Safety
/// Ring 0, DR7.GD clear.
pub unsafe fn read_breakpoints() -> [u64; 4] {
    let (dr0, dr1, dr2, dr3);
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) dr0, out(reg) dr1, out(reg) dr2,
            out(reg) dr3, options(nomem, nostack, preserves_flags));
    }
    [dr0, dr1, dr2, dr3]
}

/// Writes DR0 to DR3.
///
/// # Safety
/// Ring 0, and DR7 enables none of them.
pub unsafe fn write_breakpoints(values: [u64; 4]) {
    let [dr0, dr1, dr2, dr3] = values;
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) dr0, in(reg) dr1, in(reg) dr2,
            in(reg) dr3, options(nomem, nostack, preserves_flags));
    }
}

/// Writes XCR0.
///
/// # Safety
/// Ring 0, CR4.OSXSAVE set, and the processor takes `value`.
pub unsafe fn xsetbv(value: u64) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nomem, nostack, preserves_flags));
    }
}

/// Saves every vector state that XCR0 enables, in the standard form.
///
/// # Safety
/// CR4.OSXSAVE set, CR0.TS and EM clear; `area` is aligned to 64 bytes, as large as CPUID Fn0000_000D says, and the
/// caller's alone.
pub unsafe fn xsave(area: *mut u8) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("xsave64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack, preserves_flags));
    }
}

/// Loads every vector state that XCR0 enables, from the standard form.
///
/// # Safety
/// As for [`xsave`]; the area was written by it, or is zero but for a valid MXCSR. The host keeps nothing in these
/// registers.
pub unsafe fn xrstor(area: *const u8) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack, preserves_flags));
    }
}

/// Saves x87 and SSE state.
///
/// # Safety
/// CR4.OSFXSR set, CR0.TS and EM clear; `area` is 512 bytes, aligned to 16, and the caller's alone.
pub unsafe fn fxsave(area: *mut u8) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags)) };
}

/// Loads x87 and SSE state.
///
/// # Safety
/// As for [`fxsave`]; the area holds a valid MXCSR. The host keeps nothing in these registers.
pub unsafe fn fxrstor(area: *const u8) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("fxrstor64 [{}]", in(reg) area, options(nostack, preserves_flags)) };
}

/// One instruction with the register number in its text, chosen at run time.
macro_rules! by_register {
    ($number:expr, $pointer:expr, $before:literal, $after:literal; $($n:literal)*) => {
        match $number & 15 {
            $($n => asm!(concat!($before, $n, $after), in(reg) $pointer, options(nostack, preserves_flags)),)*
            _ => {}
        }
    };
}

/// Reads XMM register `number`, of which the low four bits count.
///
/// # Safety
/// CR4.OSFXSR set, CR0.TS and EM clear.
pub unsafe fn read_xmm(number: u8) -> [u8; 16] {
    let mut value = [0; 16];
    // SAFETY: by the caller's promise; the 16 bytes are there.
    unsafe {
        by_register!(number, value.as_mut_ptr(), "movups [{}], xmm", ""; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
    value
}

/// Writes XMM register `number`, of which the low four bits count; the upper half of the YMM register stays.
///
/// # Safety
/// CR4.OSFXSR set, CR0.TS and EM clear; the host keeps nothing in the register.
pub unsafe fn write_xmm(number: u8, value: [u8; 16]) {
    // SAFETY: by the caller's promise; the 16 bytes are there.
    unsafe {
        by_register!(number, value.as_ptr(), "movups xmm", ", [{}]"; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
}

/// Reads the upper half of YMM register `number`, of which the low four bits count.
///
/// # Safety
/// CR4.OSXSAVE and XCR0.AVX set, CR0.TS clear.
pub unsafe fn read_ymm_high(number: u8) -> [u8; 16] {
    let mut value = [0; 16];
    // SAFETY: by the caller's promise; the 16 bytes are there.
    unsafe {
        by_register!(number, value.as_mut_ptr(), "vextractf128 [{}], ymm", ", 1"; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
    value
}

/// Writes the upper half of YMM register `number`, of which the low four bits count.
///
/// # Safety
/// CR4.OSXSAVE and XCR0.AVX set, CR0.TS clear; the host keeps nothing in the register.
pub unsafe fn write_ymm_high(number: u8, value: [u8; 16]) {
    /// Names the register twice: as destination and as the source of the half that stays.
    macro_rules! insert {
        ($($n:literal)*) => {
            match number & 15 {
                $($n => asm!(concat!("vinsertf128 ymm", $n, ", ymm", $n, ", [{}], 1"), in(reg) value.as_ptr(),
                    options(nostack, preserves_flags)),)*
                _ => {}
            }
        };
    }
    // SAFETY: by the caller's promise; the 16 bytes are there.
    unsafe { insert!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15) };
}
