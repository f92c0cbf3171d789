//! IN and OUT of all widths, string I/O with REP in both directions, and ports that nobody answers.

#![no_std]
#![no_main]

use core::arch::asm;
use guest::report::equal;
use guest::{cpu, pic, port, rtc};

guest::guest!("ports", run);

/// A port that no device of a q35 machine answers.
const NOBODY: u16 = 0x2e0;
/// PCI configuration address: keeps 32 bits, but only in 32-bit accesses.
const CONFIG_ADDRESS: u16 = 0xcf8;
/// Scratch register of COM1.
const SCRATCH: u16 = 0x3ff;
/// A free byte of CMOS RAM.
const CMOS_FREE: u8 = 0x70;

fn run() {
    equal("read8-of-nobody", port::read8(NOBODY), 0xff);
    equal("read16-of-nobody", port::read16(NOBODY), 0xffff);
    equal("read32-of-nobody", port::read32(NOBODY), 0xffff_ffff);
    port::write8(NOBODY, 1);
    port::write16(NOBODY, 1);
    port::write32(NOBODY, 1);
    equal("write-to-nobody-is-lost", port::read8(NOBODY), 0xff);

    port::write8(SCRATCH, 0xa5);
    equal("byte-register-holds", port::read8(SCRATCH), 0xa5);
    port::write32(CONFIG_ADDRESS, 0x8000_0000);
    equal("dword-register-holds", port::read32(CONFIG_ADDRESS), 0x8000_0000);
    equal("host-bridge-by-dword", port::read32(0xcfc), 0x29c0_8086);
    equal("host-bridge-by-word", port::read16(0xcfe), 0x29c0);
    equal("host-bridge-by-byte", port::read8(0xcfd), 0x80);
    upper_bits();
    immediate_ports();
    strings();
    for (index, value) in [(0, 0x5a), (1, 0xa5), (2, 0)] {
        rtc::write(CMOS_FREE + index, value);
    }
    equal("index-and-data", (rtc::read(CMOS_FREE), rtc::read(CMOS_FREE + 1)), (0x5a, 0xa5));
    wide_access_to_narrow_device();
}

/// What a narrow IN leaves of RAX, and that a 32-bit one clears the upper half.
fn upper_bits() {
    let mut value: u64 = 0x1122_3344_5566_7788;
    // SAFETY: reads a scratch register.
    unsafe { asm!("in al, dx", in("dx") SCRATCH, inout("rax") value) };
    equal("byte-read-keeps-the-rest-of-rax", value, 0x1122_3344_5566_77a5);
    let mut value: u64 = 0x1122_3344_5566_7788;
    // SAFETY: reads a port of nobody.
    unsafe { asm!("in ax, dx", in("dx") NOBODY, inout("rax") value) };
    equal("word-read-keeps-the-rest-of-rax", value, 0x1122_3344_5566_ffff);
    let mut value: u64 = 0x1122_3344_5566_7788;
    // SAFETY: as above.
    unsafe { asm!("in eax, dx", in("dx") NOBODY, inout("rax") value) };
    equal("dword-read-clears-the-upper-half", value, 0xffff_ffff);
}

/// The forms with the port in the instruction.
fn immediate_ports() {
    pic::mask(0xffff);
    let mut read: u8;
    // SAFETY: writes and reads the interrupt mask while interrupts are off.
    unsafe {
        asm!("mov al, 0xfb", "out 0x21, al", "xor eax, eax", "in al, 0x21", out("al") read);
        asm!("mov al, 0x12", "out 0x80, al", out("al") _);
    }
    equal("immediate-port", read, 0xfb);
    pic::mask(0xffff);
}

/// INS and OUTS, single and repeated, forwards and backwards, and with an address-size prefix.
fn strings() {
    let source = *b"ABCDEFGH";
    let mut target = [0_u8; 8];
    let (mut rsi, mut rcx): (u64, u64);
    // SAFETY: OUTS reads inside `source`; every byte lands in the scratch register.
    unsafe { asm!("rep outsb", in("dx") SCRATCH, inout("rsi") source.as_ptr() => rsi, inout("rcx") 8_u64 => rcx) };
    equal("rep-outsb-registers", (rsi - source.as_ptr() as u64, rcx), (8, 0));
    equal("rep-outsb-last-byte", port::read8(SCRATCH), b'H');
    let mut rdi: u64;
    // SAFETY: INS writes inside `target`.
    unsafe { asm!("rep insb", in("dx") SCRATCH, inout("rdi") target.as_mut_ptr() => rdi, inout("rcx") 5_u64 => rcx) };
    equal("rep-insb-registers", (rdi - target.as_ptr() as u64, rcx), (5, 0));
    equal("rep-insb-bytes", target, *b"HHHHH\0\0\0");

    // SAFETY: as above, from the last byte downwards.
    unsafe {
        asm!("std", "rep outsb", "cld", in("dx") SCRATCH, inout("rsi") source.as_ptr().add(3) => rsi, inout("rcx") 4_u64 => _);
    }
    equal("backwards-outsb", (rsi.wrapping_sub(source.as_ptr() as u64) as i64, port::read8(SCRATCH)), (-1, b'A'));

    // SAFETY: no element is moved.
    unsafe { asm!("rep insb", in("dx") SCRATCH, inout("rdi") target.as_mut_ptr() => rdi, inout("rcx") 0_u64 => _) };
    equal("rep-of-nothing", (rdi - target.as_ptr() as u64, target[0]), (0, b'H'));

    let mut words = [0_u16; 4];
    // SAFETY: three words fit.
    unsafe { asm!("rep insw", in("dx") NOBODY, inout("rdi") words.as_mut_ptr() => rdi, inout("rcx") 3_u64 => _) };
    equal("rep-insw", (words, rdi - words.as_ptr() as u64), ([0xffff, 0xffff, 0xffff, 0], 6));
    let mut dwords = [0_u32; 4];
    // SAFETY: one doubleword fits.
    unsafe { asm!("insd", in("dx") CONFIG_ADDRESS, inout("rdi") dwords.as_mut_ptr() => rdi) };
    equal("insd", (dwords, rdi - dwords.as_ptr() as u64), ([0x8000_0000, 0, 0, 0], 4));
    let address = 0x8000_0008_u32;
    // SAFETY: reads `address`.
    unsafe { asm!("outsd", in("dx") CONFIG_ADDRESS, inout("rsi") &raw const address => _) };
    equal("outsd", port::read32(CONFIG_ADDRESS), address);

    let mut rdi = target.as_mut_ptr() as u64 | 0x7_0000_0000;
    // SAFETY: the address-size prefix makes EDI count, which lies in `target`; the guest lies below 4 GiB.
    unsafe { asm!(".byte 0x67, 0x6c", in("dx") NOBODY, inout("rdi") rdi) };
    equal("insb-with-32-bit-address", (target[0], rdi), (0xff, target.as_ptr() as u64 + 1));
    let long = [0x55_u8; 3000];
    // SAFETY: reads `long`.
    unsafe { asm!("rep outsb", in("dx") SCRATCH, inout("rsi") long.as_ptr() => rsi, inout("rcx") 3000_u64 => rcx) };
    equal("long-rep-outsb", (rsi - long.as_ptr() as u64, rcx, port::read8(SCRATCH)), (3000, 0, 0x55));
    let _ = cpu::flags();
}

/// A 16-bit write to two byte registers writes both, as an ISA bus splits it.
fn wide_access_to_narrow_device() {
    pic::mask(0xffff);
    port::write16(0x70, 0x3c00 | u16::from(CMOS_FREE + 2));
    equal("word-write-reaches-both-bytes", rtc::read(CMOS_FREE + 2), 0x3c);
}
