//! x87, SSE and AVX state over exits and interrupts, and the rules of XSETBV.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use guest::apic::register;
use guest::cpu::{self, cpuid, leaf};
use guest::report::{check, equal};
use guest::trap::{self, taken, vector};
use guest::{apic, attempt, ioapic};

guest::guest!("fpu", run);

const VECTOR: u8 = 0x61;
/// Registers that 64-bit code has.
const REGISTERS: usize = 16;

#[repr(C, align(64))]
struct Area([u8; 4096]);
static mut WANTED: Area = Area([0; 4096]);
static mut SEEN: Area = Area([0; 4096]);
static mut X87: Area = Area([0; 4096]);

fn run() {
    apic::enable();
    ioapic::mask_all();
    trap::on(VECTOR, |_| apic::end());
    let has = cpuid(1, 0).ecx;
    let (xsave, avx) = (has >> 26 & 1 != 0, has >> 28 & 1 != 0);
    fill();
    sse_over_exits();
    x87_over_exits();
    if xsave {
        xsetbv(avx);
        if avx {
            avx_over_exits();
        }
        sizes();
    } else {
        // SAFETY: raises #UD, which is caught.
        let caught = unsafe { attempt!("xgetbv", in("ecx") 0, out("eax") _, out("edx") _) };
        equal("no-xgetbv-without-xsave", caught.map(|c| c.vector), Some(vector::UD));
    }
    control_words();
}

/// A pattern in which every byte differs from its neighbours.
fn fill() {
    // SAFETY: nothing else uses the area.
    let wanted = unsafe { &mut (*(&raw mut WANTED)).0 };
    for (index, byte) in wanted.iter_mut().enumerate() {
        *byte = (index * 7 + index / 256) as u8 ^ 0x5c;
    }
}

/// What happens between loading and storing the registers: exits of several kinds and a few timer interrupts. It is one
/// piece of assembly so that no compiled code can use the registers.
macro_rules! around {
    ($load:literal, $store:literal) => {{
        let before = taken(VECTOR);
        // A period in APIC timer counts that is short against the loop below.
        apic::write(register::TIMER_DIVIDE, apic::DIVIDE_BY_1);
        apic::write(register::LVT_TIMER, apic::PERIODIC | u32::from(VECTOR));
        apic::write(register::TIMER_INITIAL, TIMER.load(Ordering::Relaxed));
        // SAFETY: the areas are large enough, and the guest is compiled without vector registers.
        unsafe {
            asm!(
                "push rbx",
                $load,
                "sti",
                "22:",
                "xor eax, eax", "cpuid", "in al, 0x21", "out 0x80, al", "mov ecx, 0x1b", "rdmsr",
                "mov eax, 0xfee00020", "mov eax, [rax]",
                "dec r8d", "jnz 22b",
                "cli",
                $store,
                "pop rbx",
                inout("r8") 400_u64 => _, in("rsi") &raw const WANTED, in("rdi") &raw mut SEEN,
                out("rax") _, out("rcx") _, out("rdx") _,
            );
        }
        apic::write(register::TIMER_INITIAL, 0);
        let came = taken(VECTOR) > before;
        check("interrupts-came-between", came, format_args!("none"));
    }};
}

/// Counts of the APIC timer between two interrupts.
static TIMER: AtomicU32 = AtomicU32::new(20_000);

fn same(what: &str, bytes: usize) {
    // SAFETY: nobody writes the areas now.
    let (wanted, seen) = unsafe { (&(*(&raw const WANTED)).0, &(*(&raw const SEEN)).0) };
    let differ = wanted[..bytes].iter().zip(seen).position(|(a, b)| a != b);
    check(what, differ.is_none(), format_args!("differs at byte {differ:?}"));
}

fn sse_over_exits() {
    around!(
        "movups xmm0, [rsi]\nmovups xmm1, [rsi + 16]\nmovups xmm2, [rsi + 32]\nmovups xmm3, [rsi + 48]\nmovups xmm4, [rsi + 64]\nmovups xmm5, [rsi + 80]\nmovups xmm6, [rsi + 96]\nmovups xmm7, [rsi + 112]\nmovups xmm8, [rsi + 128]\nmovups xmm9, [rsi + 144]\nmovups xmm10, [rsi + 160]\nmovups xmm11, [rsi + 176]\nmovups xmm12, [rsi + 192]\nmovups xmm13, [rsi + 208]\nmovups xmm14, [rsi + 224]\nmovups xmm15, [rsi + 240]",
        "movups [rdi], xmm0\nmovups [rdi + 16], xmm1\nmovups [rdi + 32], xmm2\nmovups [rdi + 48], xmm3\nmovups [rdi + 64], xmm4\nmovups [rdi + 80], xmm5\nmovups [rdi + 96], xmm6\nmovups [rdi + 112], xmm7\nmovups [rdi + 128], xmm8\nmovups [rdi + 144], xmm9\nmovups [rdi + 160], xmm10\nmovups [rdi + 176], xmm11\nmovups [rdi + 192], xmm12\nmovups [rdi + 208], xmm13\nmovups [rdi + 224], xmm14\nmovups [rdi + 240], xmm15"
    );
    same("sse-registers-kept", 16 * REGISTERS);
}

fn avx_over_exits() {
    around!(
        "vmovups ymm0, [rsi]\nvmovups ymm1, [rsi + 32]\nvmovups ymm7, [rsi + 64]\nvmovups ymm8, [rsi + 96]\nvmovups ymm14, [rsi + 128]\nvmovups ymm15, [rsi + 160]",
        "vmovups [rdi], ymm0\nvmovups [rdi + 32], ymm1\nvmovups [rdi + 64], ymm7\nvmovups [rdi + 96], ymm8\nvmovups [rdi + 128], ymm14\nvmovups [rdi + 160], ymm15\nvzeroupper"
    );
    same("avx-registers-kept", 32 * 6);
}

fn x87_over_exits() {
    // SAFETY: the areas are this program's.
    unsafe {
        asm!("fninit", "fldpi", "fld1", "fldl2e", "fxsave64 [{}]", in(reg) &raw mut X87);
    }
    around!("nop", "fxsave64 [rdi]");
    // SAFETY: nobody writes the areas now.
    let (before, after) = unsafe { (&(*(&raw const X87)).0, &(*(&raw const SEEN)).0) };
    equal("x87-control-words-kept", &after[..6], &before[..6]);
    for (what, at) in [("x87-st0-kept", 32), ("x87-st1-kept", 48), ("x87-st2-kept", 64)] {
        equal(what, &after[at..at + 10], &before[at..at + 10]);
    }
    // SAFETY: resets the unit.
    unsafe { asm!("fninit") };
}

fn set_xcr(register: u32, value: u64) -> Option<(u8, u64)> {
    // SAFETY: a refused value is caught, an accepted one is valid.
    unsafe { attempt!("xsetbv", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32) }
        .map(|c| c.kind())
}

fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE is set.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
    u64::from(high) << 32 | u64::from(low)
}

fn xsetbv(avx: bool) {
    equal("xsetbv-without-osxsave", set_xcr(0, 1), Some((vector::UD, 0)));
    cpu::write_cr4(cpu::read_cr4() | cpu::CR4_OSXSAVE);
    equal("xcr0-after-reset", xcr0(), 1);
    let refused = Some((vector::GP, 0));
    equal("xcr0-without-x87", set_xcr(0, 2), refused);
    equal("xcr0-zero", set_xcr(0, 0), refused);
    equal("xcr0-avx-without-sse", set_xcr(0, 5), refused);
    equal("xcr0-reserved-bit", set_xcr(0, 3 | 1 << 62), refused);
    equal("xcr0-unsupported-bit", set_xcr(0, 3 | 1 << 20), refused);
    equal("xcr1", set_xcr(1, 1), refused);
    equal("xcr-huge-number", set_xcr(u32::MAX, 1), refused);
    equal("xcr0-unchanged-by-refusals", xcr0(), 1);
    equal("xcr0-sse", (set_xcr(0, 3), xcr0()), (None, 3));
    if avx {
        // SAFETY: raises #UD while AVX is off.
        let caught = unsafe { attempt!("vxorps ymm0, ymm0, ymm0") };
        equal("avx-off-is-undefined", caught.map(|c| c.vector), Some(vector::UD));
        equal("xcr0-avx", (set_xcr(0, 7), xcr0()), (None, 7));
        // SAFETY: AVX is on.
        equal("avx-on-works", unsafe { attempt!("vxorps ymm0, ymm0, ymm0") }, None);
    }
    let allowed = cpuid(0xd, 0);
    equal("leaf-d-covers-xcr0", xcr0() & !(u64::from(allowed.edx) << 32 | u64::from(allowed.eax)), 0);
}

/// Leaf Dh follows XCR0, and XSAVE stays within the size it names.
fn sizes() {
    let full = xcr0();
    set_xcr(0, 1);
    equal("xsave-size-of-x87", cpuid(0xd, 0).ebx, 576);
    set_xcr(0, full);
    let size = cpuid(0xd, 0).ebx as usize;
    if full & 4 != 0 {
        let component = cpuid(0xd, 2);
        equal("avx-component", (component.eax, component.ebx as usize + 256), (256, size));
    }
    check("xsave-size-fits", (576..=4096).contains(&size), format_args!("{size}"));
    // SAFETY: the area is large enough for what was just checked.
    unsafe {
        let area = &raw mut SEEN;
        (*area).0.fill(0xcc);
        // XSAVE writes the header's first word only; the rest has to be zero to be restored.
        (&mut (*area).0)[512..576].fill(0);
        asm!("xsave64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX);
        let beyond = (&(*area).0)[size.min(4095)..].iter().all(|byte| *byte == 0xcc);
        check("xsave-writes-no-more", beyond, format_args!(""));
        asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX);
    }
    check("xsave-total-at-least-enabled", leaf(0xd, 0).ecx as usize >= size, format_args!("{}", leaf(0xd, 0).ecx));
}

fn control_words() {
    let wanted = 0x9fc0_u32;
    let (mut mxcsr, mut control) = (0_u32, 0_u16);
    // SAFETY: both control words only mask exceptions and set rounding.
    unsafe {
        asm!("ldmxcsr [{}]", "fldcw [{}]", in(reg) &raw const wanted, in(reg) &0x0c7f_u16);
        asm!("push rbx", "cpuid", "pop rbx", "in al, 0x21", inout("eax") 0 => _, out("ecx") _, out("edx") _);
        asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &raw mut mxcsr, in(reg) &raw mut control);
    }
    equal("control-words-kept", (mxcsr, control), (wanted, 0x0c7f));
    // SAFETY: bit 16 is reserved: #GP.
    let caught = unsafe { attempt!("ldmxcsr [{m}]", m = in(reg) &0x1_1f80_u32) };
    equal("mxcsr-reserved-bit", caught.map(|c| c.kind()), Some((vector::GP, 0)));
}
