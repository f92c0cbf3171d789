//! The I/O APIC. Datasheet: Intel 82093AA (290566); ICH9 (316972) 13.5 "I/O Advanced Programmable Interrupt Controller".

use crate::cpu;

/// Where its registers are.
pub const BASE: u64 = 0xfec0_0000;
const WINDOW: u64 = 0x10;
/// Identification.
pub const ID: u32 = 0;
/// Version and number of entries.
pub const VERSION: u32 = 1;
/// Redirection entry: masked.
pub const MASKED: u64 = 1 << 16;
/// Redirection entry: level-triggered.
pub const LEVEL: u64 = 1 << 15;
/// Redirection entry: active low.
pub const LOW: u64 = 1 << 13;
/// Redirection entry: waiting for an EOI.
pub const REMOTE_IRR: u64 = 1 << 14;

/// Reads a register by index.
pub fn read(index: u32) -> u32 {
    cpu::mmio_write32(BASE, index);
    cpu::mmio_read32(BASE + WINDOW)
}

/// Writes a register by index.
pub fn write(index: u32, value: u32) {
    cpu::mmio_write32(BASE, index);
    cpu::mmio_write32(BASE + WINDOW, value);
}

/// Reads the redirection entry of `pin`.
pub fn entry(pin: u32) -> u64 {
    u64::from(read(0x11 + 2 * pin)) << 32 | u64::from(read(0x10 + 2 * pin))
}

/// Writes the redirection entry of `pin`, masked while it is incomplete.
pub fn set_entry(pin: u32, entry: u64) {
    write(0x10 + 2 * pin, MASKED as u32);
    write(0x11 + 2 * pin, (entry >> 32) as u32);
    write(0x10 + 2 * pin, entry as u32);
}

/// Number of pins.
pub fn pins() -> u32 {
    (read(VERSION) >> 16 & 0xff) + 1
}

/// Masks every pin.
pub fn mask_all() {
    for pin in 0..pins() {
        set_entry(pin, MASKED);
    }
}
