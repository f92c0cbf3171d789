//! Every form of instruction that reaches a device's registers: LAPIC, IOAPIC and HPET.

#![no_std]
#![no_main]
// The instruction under test decides which registers are written, whether anybody reads them or not.
#![allow(unused_assignments)]

use core::arch::asm;
use guest::apic::{self, register};
use guest::report::equal;
use guest::{attempt, cpu, hpet, ioapic, paging};

guest::guest!("mmio", run);

/// A register of 32 bits that keeps what is written: LDR keeps its upper byte, so the initial count is used; the timer is masked.
const SCRATCH: u64 = apic::BASE + register::TIMER_INITIAL;
/// 64 bits that keep what is written: the stopped HPET counter.
const WIDE: u64 = hpet::BASE + hpet::COUNTER;
/// The LPC bridge's configuration in ECAM, which takes accesses of every width: it begins with 8086:2918.
const NARROW: u64 = 0xb000_0000 + (0x1f << 15);
/// Its interrupt-line register, a byte that keeps what is written.
const LINE: u64 = NARROW + 0x3c;
const SEED: u32 = 0x8123_4567;

const ARITHMETIC: u64 = 0x8d5;

fn run() {
    apic::enable();
    apic::write(register::LVT_TIMER, apic::MASKED | 0x61);
    hpet::write(hpet::CONFIGURATION, 0);
    moves();
    extended_moves();
    arithmetic();
    single_operand();
    exchanges();
    bits();
    strings();
    vectors();
    stack();
    addressing();
    widths();
    crossing();
}

fn set(value: u32) {
    cpu::mmio_write32(SCRATCH, value);
}

fn get() -> u32 {
    cpu::mmio_read32(SCRATCH)
}

fn line() -> u8 {
    let value;
    // SAFETY: reads a configuration register.
    unsafe { asm!("mov al, [rdi]", in("rdi") LINE, out("al") value) };
    value
}

fn set_wide(value: u64) {
    cpu::mmio_write64(WIDE, value);
}

fn get_wide() -> u64 {
    cpu::mmio_read64(WIDE)
}

fn moves() {
    set(SEED);
    let mut rax = u64::MAX;
    // SAFETY: here and below, the addresses are registers of devices that this program owns.
    unsafe { asm!("mov eax, [rdi]", in("rdi") SCRATCH, inout("rax") rax) };
    equal("mov-r32-m", rax, SEED.into());
    unsafe { asm!("mov dword ptr [rdi], 0x1234567", in("rdi") SCRATCH) };
    equal("mov-m-imm32", get(), 0x123_4567);
    unsafe { asm!("mov [rdi], r15d", in("rdi") SCRATCH, in("r15") 0xdead_beef_u64) };
    equal("mov-m-r15d", get(), 0xdead_beef);
    set_wide(0x1122_3344_5566_7788);
    let value: u64;
    unsafe { asm!("mov r12, [rdi]", in("rdi") WIDE, out("r12") value) };
    equal("mov-r64-m", value, 0x1122_3344_5566_7788);
    unsafe { asm!("mov qword ptr [rdi], -2", in("rdi") WIDE) };
    equal("mov-m64-imm32-sign-extended", get_wide(), u64::MAX - 1);
    set(SEED);
    let value: u64;
    unsafe { asm!("movabs eax, ds:[0xfee00380]", out("rax") value) };
    equal("mov-eax-moffs", value, SEED.into());
    unsafe { asm!("movabs ds:[0xfee00380], eax", in("eax") 0x7777_u32) };
    equal("mov-moffs-eax", get(), 0x7777);
}

fn extended_moves() {
    let (a, b, c, d): (u64, u64, u64, u64);
    unsafe {
        asm!("movzx eax, byte ptr [rdi]", "movzx ecx, word ptr [rdi]", "movsx rdx, byte ptr [rdi]", "movsx r8d, word ptr [rdi]",
            in("rdi") NARROW, out("rax") a, out("rcx") b, out("rdx") c, out("r8") d);
    }
    equal("movzx-byte", a, 0x86);
    equal("movzx-word", b, 0x8086);
    equal("movsx-byte-to-64", c, 0xffff_ffff_ffff_ff86);
    equal("movsx-word-to-32", d, 0xffff_8086);
    set(SEED);
    let wide: u64;
    unsafe { asm!("movsxd rax, dword ptr [rdi]", in("rdi") SCRATCH, out("rax") wide) };
    equal("movsxd", wide, 0xffff_ffff_8123_4567);
    let mut kept = 0x1111_2222_3333_4444_u64;
    unsafe { asm!("mov al, [rdi]", in("rdi") NARROW, inout("rax") kept) };
    equal("mov-al-keeps-the-rest", kept, 0x1111_2222_3333_4486);
    let mut kept = 0x1111_2222_3333_4444_u64;
    unsafe { asm!("mov ax, [rdi + 2]", in("rdi") NARROW, inout("rax") kept) };
    equal("mov-ax-keeps-the-rest", kept, 0x1111_2222_3333_2918);
    let mut kept = 0x1111_2222_3333_4444_u64;
    unsafe { asm!("mov ah, [rdi + 1]", in("rdi") NARROW, inout("rax") kept) };
    equal("mov-ah", kept, 0x1111_2222_3333_8044);
    unsafe { asm!("mov byte ptr [rdi], 0xab", "mov [rdi], ch", in("rdi") LINE, in("rcx") 0x1234_u64) };
    equal("mov-m-ch", line(), 0x12);
    let mut value = 0x5555_u64;
    unsafe { asm!("cmp eax, eax", "cmovne eax, [rdi]", in("rdi") SCRATCH, inout("rax") value) };
    equal("cmov-not-taken", value, 0x5555);
    unsafe { asm!("cmp eax, eax", "cmove eax, [rdi]", in("rdi") SCRATCH, inout("rax") value) };
    equal("cmov-taken", value, SEED.into());
}

/// Destination in memory, then flags; each against the same instruction on a register.
macro_rules! against_register {
    ($($what:literal $instruction:literal $carry:literal),* $(,)?) => {$({
        let (mut by_register, mut flags_register): (u32, u64);
        let flags_memory: u64;
        let operand = 0x7edc_ba98_u32;
        set(SEED);
        unsafe {
            asm!($carry, concat!($instruction, " {v:e}, {o:e}"), "pushfq", "pop {f}", v = inout(reg) SEED => by_register,
                o = in(reg) operand, f = out(reg) flags_register);
            asm!($carry, concat!($instruction, " dword ptr [rdi], {o:e}"), "pushfq", "pop {f}", in("rdi") SCRATCH,
                o = in(reg) operand, f = out(reg) flags_memory);
        }
        equal(concat!($what, "-to-memory"), (get(), flags_memory & ARITHMETIC), (by_register, flags_register & ARITHMETIC));
        // Memory as the source.
        set(SEED);
        let (from_memory, flags_memory): (u32, u64);
        unsafe {
            asm!($carry, concat!($instruction, " {v:e}, {o:e}"), "pushfq", "pop {f}", v = inout(reg) operand => by_register,
                o = in(reg) SEED, f = out(reg) flags_register);
            asm!($carry, concat!($instruction, " {v:e}, dword ptr [rdi]"), "pushfq", "pop {f}", in("rdi") SCRATCH,
                v = inout(reg) operand => from_memory, f = out(reg) flags_memory);
        }
        equal(concat!($what, "-from-memory"), (from_memory, flags_memory & ARITHMETIC), (by_register, flags_register & ARITHMETIC));
    })*};
}

fn arithmetic() {
    against_register!(
        "add" "add" "clc", "adc" "adc" "stc", "sub" "sub" "clc", "sbb" "sbb" "stc", "and" "and" "clc", "or" "or" "clc",
        "xor" "xor" "clc", "cmp" "cmp" "clc",
    );
    let flags: u64;
    set(SEED);
    unsafe {
        asm!("test dword ptr [rdi], {o:e}", "pushfq", "pop {f}", in("rdi") SCRATCH, o = in(reg) 0x8000_0000_u32, f = out(reg) flags)
    };
    equal("test", flags & 0x8c5, 0x84);
    unsafe { asm!("add dword ptr [rdi], 1", "or dword ptr [rdi], 0x10000000", in("rdi") SCRATCH) };
    equal("immediate-operands", get(), SEED + 1 | 0x1000_0000);
    let product: u64;
    unsafe { asm!("imul eax, [rdi], 3", in("rdi") SCRATCH, out("rax") product) };
    equal("imul", product, u64::from((SEED + 1 | 0x1000_0000).wrapping_mul(3)));
    set(1000);
    let (quotient, rest): (u32, u32);
    unsafe { asm!("div dword ptr [rdi]", in("rdi") SCRATCH, inout("eax") 123_456 => quotient, inout("edx") 0 => rest) };
    equal("div", (quotient, rest), (123, 456));
}

fn single_operand() {
    macro_rules! single {
        ($($what:literal $wanted:expr),*) => {$({
            set(SEED);
            unsafe { asm!(concat!($what, " dword ptr [rdi]"), in("rdi") SCRATCH) };
            equal($what, get(), $wanted);
        })*};
    }
    single!("inc" SEED + 1, "dec" SEED - 1, "not" !SEED, "neg" SEED.wrapping_neg());
    macro_rules! shift {
        ($($what:literal $wanted:expr),*) => {$({
            set(SEED);
            unsafe { asm!(concat!($what, " dword ptr [rdi], 4"), in("rdi") SCRATCH) };
            equal($what, get(), $wanted);
        })*};
    }
    shift!("shl" SEED << 4, "shr" SEED >> 4, "sar" (SEED as i32 >> 4) as u32, "rol" SEED.rotate_left(4), "ror" SEED.rotate_right(4));
    set(SEED);
    unsafe { asm!("shl dword ptr [rdi], cl", in("rdi") SCRATCH, in("cl") 8_u8) };
    equal("shl-by-cl", get(), SEED << 8);
    set(SEED);
    unsafe { asm!("shld dword ptr [rdi], eax, 8", in("rdi") SCRATCH, in("eax") 0xaa00_0000_u32) };
    equal("shld", get(), SEED << 8 | 0xaa);
    unsafe { asm!("cmp eax, eax", "sete byte ptr [rdi]", in("rdi") LINE) };
    equal("setcc", line(), 1);
    unsafe { asm!("xor byte ptr [rdi], 0x81", in("rdi") LINE) };
    equal("xor-byte", line(), 0x80);
}

fn exchanges() {
    set(SEED);
    let value: u32;
    unsafe { asm!("xchg [rdi], eax", in("rdi") SCRATCH, inout("eax") 0x1357 => value) };
    equal("xchg", (value, get()), (SEED, 0x1357));
    let value: u32;
    unsafe { asm!("lock xadd [rdi], eax", in("rdi") SCRATCH, inout("eax") 0x10 => value) };
    equal("xadd", (value, get()), (0x1357, 0x1367));
    let (value, zero): (u32, u64);
    unsafe {
        asm!("lock cmpxchg [rdi], ecx", "pushfq", "pop rdx", in("rdi") SCRATCH, inout("eax") 0x1367 => value, in("ecx") 0x99, out("rdx") zero)
    };
    equal("cmpxchg-equal", (value, get(), zero & 0x40), (0x1367, 0x99, 0x40));
    let (value, zero): (u32, u64);
    unsafe {
        asm!("cmpxchg [rdi], ecx", "pushfq", "pop rdx", in("rdi") SCRATCH, inout("eax") 5 => value, in("ecx") 0x77, out("rdx") zero)
    };
    equal("cmpxchg-different", (value, get(), zero & 0x40), (0x99, 0x99, 0));
    set_wide(0x1111_2222_3333_4444);
    let zero: u64;
    unsafe {
        asm!("xchg rbx, r8", "cmpxchg8b [rdi]", "xchg rbx, r8", "pushfq", "pop r9", in("rdi") WIDE, inout("eax") 0x3333_4444 => _, inout("edx") 0x1111_2222 => _,
            in("r8") 0x5555_u64, in("ecx") 0x6666, out("r9") zero);
    }
    equal("cmpxchg8b", (get_wide(), zero & 0x40), (0x6666_0000_5555, 0x40));
}

fn bits() {
    set(0x10);
    let (a, b, c, d): (u8, u8, u8, u8);
    unsafe {
        asm!("bt dword ptr [rdi], 4", "setc al", "bts dword ptr [rdi], 8", "setc cl", "btr dword ptr [rdi], 4", "setc dl", "btc dword ptr [rdi], 0", "setc sil",
            in("rdi") SCRATCH, out("al") a, out("cl") b, out("dl") c, out("sil") d);
    }
    equal("bt-family", (a, b, c, d, get()), (1, 0, 1, 0, 0x101));
    // A register bit offset reaches beyond the operand: bit 128 of the IRR's first word is the second word's first.
    let carry: u8;
    unsafe {
        asm!("bt dword ptr [rdi], eax", "setc cl", in("rdi") apic::BASE + register::SVR - 0x10, in("eax") 128 + 8, out("cl") carry)
    };
    equal("bt-with-register-offset", carry, 1);
    set(0x40);
    let (first, last): (u32, u32);
    unsafe { asm!("bsf eax, [rdi]", "bsr ecx, [rdi]", in("rdi") SCRATCH, out("eax") first, out("ecx") last) };
    equal("bit-scans", (first, last), (6, 6));
}

fn strings() {
    let mut memory = [0x0a0a_0a0a_u32, 0x0b0b_0b0b, 0x0c0c_0c0c, 0];
    let (mut rsi, mut rdi, mut rcx): (u64, u64, u64);
    unsafe { asm!("movsd", inout("rsi") memory.as_ptr() => rsi, inout("rdi") SCRATCH => rdi) };
    equal("movs-to-device", (get(), rsi - memory.as_ptr() as u64, rdi - SCRATCH), (0x0a0a_0a0a, 4, 4));
    set(SEED);
    unsafe { asm!("movsd", inout("rsi") SCRATCH => rsi, inout("rdi") memory.as_mut_ptr() => rdi) };
    equal("movs-from-device", (memory[0], rsi - SCRATCH, rdi - memory.as_ptr() as u64), (SEED, 4, 4));
    unsafe { asm!("stosd", in("eax") 0x4242_u32, inout("rdi") SCRATCH => rdi) };
    equal("stos", (get(), rdi - SCRATCH), (0x4242, 4));
    let value: u32;
    unsafe { asm!("lodsd", out("eax") value, inout("rsi") SCRATCH => rsi) };
    equal("lods", (value, rsi - SCRATCH), (0x4242, 4));
    let mut equal_flag: u64;
    unsafe { asm!("scasd", "pushfq", "pop rdx", in("eax") 0x4242, inout("rdi") SCRATCH => rdi, out("rdx") equal_flag) };
    equal("scas", equal_flag & 0x40, 0x40);
    memory[1] = 0x4242;
    unsafe {
        asm!("cmpsd", "pushfq", "pop rdx", inout("rsi") &raw const memory[1] => rsi, inout("rdi") SCRATCH => rdi, out("rdx") equal_flag)
    };
    equal("cmps", equal_flag & 0x40, 0x40);
    // Repeated: two HPET registers, 64 bits each, forwards and backwards.
    let mut pair = [0_u64; 2];
    set_wide(0x1234);
    unsafe {
        asm!("rep movsq", inout("rsi") hpet::BASE + 0x0e8 => rsi, inout("rdi") pair.as_mut_ptr() => rdi, inout("rcx") 2_u64 => rcx)
    };
    equal("rep-movs-from-device", (pair[1], rcx, rsi - hpet::BASE), (0x1234, 0, 0xf8));
    unsafe {
        asm!("std", "rep movsq", "cld", inout("rsi") WIDE => rsi, inout("rdi") &raw mut pair[1] => rdi, inout("rcx") 2_u64 => rcx)
    };
    equal("rep-movs-backwards", (pair[1], rcx, rsi - hpet::BASE), (0x1234, 0, 0xe0));
    unsafe { asm!("rep stosd", in("eax") 0x99_u32, inout("rdi") SCRATCH => rdi, inout("rcx") 1_u64 => rcx) };
    equal("rep-stos", (get(), rcx), (0x99, 0));
}

fn vectors() {
    set_wide(0x0102_0304_0506_0708);
    let (low, both): (u64, u64);
    unsafe {
        asm!("movq xmm0, qword ptr [rdi]", "movq {}, xmm0", "movd xmm1, dword ptr [rdi]", "movq {}, xmm1", out(reg) low, out(reg) both, in("rdi") WIDE)
    };
    equal("movq-movd-load", (low, both), (0x0102_0304_0506_0708, 0x0506_0708));
    unsafe { asm!("movq xmm0, {}", "movq qword ptr [rdi], xmm0", in(reg) 0xa1a2_a3a4_a5a6_a7a8_u64, in("rdi") WIDE) };
    equal("movq-store", get_wide(), 0xa1a2_a3a4_a5a6_a7a8);
    unsafe { asm!("movd xmm0, {:e}", "movss dword ptr [rdi], xmm0", in(reg) 0x4242_4242_u32, in("rdi") SCRATCH) };
    equal("movss-store", get(), 0x4242_4242);
    let mut out = [0_u8; 16];
    unsafe { asm!("movups xmm0, xmmword ptr [rdi]", "movups [{}], xmm0", in(reg) out.as_mut_ptr(), in("rdi") WIDE) };
    equal("movups-load", &out[..8], &0xa1a2_a3a4_a5a6_a7a8_u64.to_le_bytes()[..]);
}

fn stack() {
    set_wide(0x7777_8888);
    let popped: u64;
    unsafe { asm!("push qword ptr [rdi]", "pop {}", out(reg) popped, in("rdi") WIDE) };
    equal("push-from-device", popped, 0x7777_8888);
    unsafe { asm!("push 0x3456", "pop qword ptr [rdi]", in("rdi") WIDE) };
    equal("pop-to-device", get_wide(), 0x3456);
}

fn addressing() {
    set(SEED);
    let (a, b, c): (u32, u32, u32);
    unsafe {
        asm!("mov eax, [rdi + rsi * 8 - 0x40]", "mov ecx, [r8 * 4 + 0x380]", "mov edx, [edi + 0x40]",
            in("rdi") SCRATCH - 0x40, in("rsi") 16_u64, in("r8") apic::BASE / 4, out("eax") a, out("ecx") b, out("edx") c);
    }
    equal("scaled-index", a, SEED);
    equal("index-without-base", b, SEED);
    equal("address-size-prefix", c, SEED);
    guest::cpu::write_msr(0xc000_0100, apic::BASE).unwrap_or(());
    let value: u32;
    unsafe { asm!("mov eax, fs:[rdi]", in("rdi") register::TIMER_INITIAL, out("eax") value) };
    equal("fs-segment", value, SEED);
    paging::set(7, apic::BASE | paging::PRESENT | paging::WRITABLE);
    let value: u32;
    unsafe { asm!("mov eax, [rdi]", in("rdi") paging::window(7) + register::TIMER_INITIAL, out("eax") value) };
    equal("through-another-mapping", value, SEED);
    // The page is read-only: the write faults before the device sees it.
    paging::set(7, apic::BASE | paging::PRESENT);
    let caught = unsafe { attempt!("mov dword ptr [rdi], 1", in("rdi") paging::window(7) + register::TIMER_INITIAL) };
    equal("write-to-read-only-mapping", (caught.map(|c| (c.vector, c.error)), get()), (Some((14, 3)), SEED));
}

fn widths() {
    hpet::write(hpet::COUNTER, 0x1122_3344_5566_7788);
    equal("hpet-low-half", cpu::mmio_read32(WIDE), 0x5566_7788);
    equal("hpet-high-half", cpu::mmio_read32(WIDE + 4), 0x1122_3344);
    cpu::mmio_write32(WIDE + 4, 0x99);
    equal("hpet-high-half-write", get_wide(), 0x99_5566_7788);
    equal("ioapic-version", ioapic::read(ioapic::VERSION) & 0xff, 0x20);
    equal("nothing-there", cpu::mmio_read32(0xfe00_0000), u32::MAX);
    cpu::mmio_write32(0xfe00_0000, 0);
    equal("write-to-nothing-is-lost", cpu::mmio_read32(0xfe00_0000), u32::MAX);
}

/// An instruction whose bytes lie in two pages.
fn crossing() {
    static mut CODE: paging::Page = paging::Page([0x90; 4096]);
    // mov eax, [rdi]; ret. It runs from the last byte of one mapping to the first bytes of the next one of the same page.
    unsafe {
        let code = &raw mut CODE.0 as *mut u8;
        code.add(4095).write_volatile(0x8b);
        code.write_volatile(0x07);
        code.add(1).write_volatile(0xc3);
    }
    let physical = &raw const CODE as u64;
    for index in [10, 11] {
        paging::set(index, physical | paging::PRESENT | paging::WRITABLE);
    }
    set(SEED);
    let value: u32;
    unsafe { asm!("call {}", in(reg) paging::window(11) - 1, in("rdi") SCRATCH, out("eax") value) };
    equal("instruction-across-pages", value, SEED);
}
