//! The HPET. Specification: IA-PC HPET 1.0a.

use crate::cpu;

/// Where its registers are on a q35 machine.
pub const BASE: u64 = 0xfed0_0000;
/// General capabilities and id; the period in femtoseconds is in the upper half.
pub const CAPABILITIES: u64 = 0x000;
/// General configuration: bit 0 runs the counter, bit 1 replaces the legacy timers.
pub const CONFIGURATION: u64 = 0x010;
/// General interrupt status.
pub const STATUS: u64 = 0x020;
/// The main counter.
pub const COUNTER: u64 = 0x0f0;

/// Configuration register of timer `number`.
pub const fn timer_configuration(number: u64) -> u64 {
    0x100 + 0x20 * number
}

/// Comparator of timer `number`.
pub const fn comparator(number: u64) -> u64 {
    0x108 + 0x20 * number
}

/// Reads a register.
pub fn read(offset: u64) -> u64 {
    cpu::mmio_read64(BASE + offset)
}

/// Writes a register.
pub fn write(offset: u64, value: u64) {
    cpu::mmio_write64(BASE + offset, value);
}

/// Starts the counter; legacy replacement off.
pub fn run() {
    write(CONFIGURATION, 1);
}

/// Counts per second.
pub fn frequency() -> u64 {
    1_000_000_000_000_000 / (read(CAPABILITIES) >> 32).max(1)
}
