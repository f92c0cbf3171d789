//! The ACPI PM timer as the reference clock, and waiting by a TSC that was calibrated against it.
//!
//! Waiting reads no device: on an emulator that counts instructions as time, each port access costs far more than it takes.

use crate::{cpu, port};
use core::sync::atomic::{AtomicU64, Ordering};

/// PM_TMR of a q35 machine: PMBASE 0x600 plus 8.
pub const PORT: u16 = 0x608;
/// Counts per second. ACPI 6.5, 4.8.3.3 "Power Management Timer (PM_TMR)".
pub const FREQUENCY: u64 = 3_579_545;
/// The timer is at least this wide.
const MASK: u32 = 0xff_ffff;
/// Length of the calibration in microseconds.
const CALIBRATION: u64 = 20_000;
/// Turns of an empty loop between two looks at a device.
const TURNS: u32 = 500;

/// TSC counts in 1024 microseconds; 0 before the calibration.
static TSC_RATE: AtomicU64 = AtomicU64::new(0);

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

fn idle() {
    for turn in 0..TURNS {
        core::hint::black_box(turn);
    }
}

/// TSC counts in a number of microseconds.
pub fn tsc_of_micros(micros: u64) -> u64 {
    if TSC_RATE.load(Ordering::Relaxed) == 0 {
        let (start, from) = (now(), cpu::tsc());
        while since(start) < of_micros(CALIBRATION) {
            idle();
        }
        let (ticks, passed) = (u64::from(since(start)), cpu::tsc() - from);
        TSC_RATE.store((passed * FREQUENCY / ticks.max(1) * 1024 / 1_000_000).max(1), Ordering::Relaxed);
    }
    micros * TSC_RATE.load(Ordering::Relaxed) / 1024
}

/// Waits with interrupts as they are.
pub fn wait_micros(micros: u64) {
    let length = tsc_of_micros(micros);
    let start = cpu::tsc();
    while cpu::tsc().wrapping_sub(start) < length {
        core::hint::black_box(start);
    }
}

/// Waits until `done` or until the time is over; whether it was done. Looks all the time, so `done` should touch memory only.
pub fn wait_for(micros: u64, done: impl Fn() -> bool) -> bool {
    let length = tsc_of_micros(micros);
    let start = cpu::tsc();
    loop {
        if done() {
            return true;
        }
        if cpu::tsc().wrapping_sub(start) >= length {
            return done();
        }
    }
}

/// As [`wait_for`], for a `done` that reads a device: it looks every few hundred instructions.
pub fn wait_for_device(micros: u64, done: impl Fn() -> bool) -> bool {
    wait_for(micros, || {
        idle();
        done()
    })
}
