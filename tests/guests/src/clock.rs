//! The ACPI PM timer as the reference clock, and waiting by it.

use crate::{cpu, port};

/// PM_TMR of a q35 machine: PMBASE 0x600 plus 8.
pub const PORT: u16 = 0x608;
/// Counts per second. ACPI 6.5, 4.8.3.3 "Power Management Timer (PM_TMR)".
pub const FREQUENCY: u64 = 3_579_545;
/// The timer is at least this wide.
const MASK: u32 = 0xff_ffff;

/// The count, modulo 2^24.
pub fn now() -> u32 {
    port::read32(PORT) & MASK
}

/// Counts since `start`, modulo 2^24 (4.6 s).
pub fn since(start: u32) -> u32 {
    now().wrapping_sub(start) & MASK
}

/// Counts in a number of microseconds.
pub const fn of_micros(micros: u64) -> u32 {
    (micros * FREQUENCY / 1_000_000) as u32
}

/// Waits with interrupts as they are.
pub fn wait_micros(micros: u64) {
    let start = now();
    while since(start) < of_micros(micros) {
        cpu::pause();
    }
}

/// Waits until `done` or until the time is over; whether it was done.
pub fn wait_for(micros: u64, done: impl Fn() -> bool) -> bool {
    let start = now();
    loop {
        if done() {
            return true;
        }
        if since(start) >= of_micros(micros) {
            return done();
        }
        cpu::pause();
    }
}
