//! The host's real-time clock, read when a virtual machine is made.

#![allow(unsafe_code)] // Port access.

use crate::wall::Registers;
use x86_64::instructions::port::Port;

/// Index and data ports. Bit 7 of the index masks NMIs on old chipsets and stays clear.
const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
/// Register A: an update is going on or near.
const UPDATING: u8 = 1 << 7;

/// How often two equal readings are tried for. An update takes 2 ms.
const TRIES: usize = 10;
/// How often an update is waited for.
const PATIENCE: usize = 100_000;

/// Seconds since 1970 as the clock shows them, with its century in register `century` if that is known; `None` without a
/// clock that makes sense.
pub fn seconds_since_1970(century: Option<u8>) -> Option<u64> {
    let mut last = read_once(century);
    for _ in 0..TRIES {
        let again = read_once(century);
        if again == last {
            return again.seconds_since_1970();
        }
        last = again;
    }
    None
}

fn read_once(century: Option<u8>) -> Registers {
    let mut waited = 0;
    while register(STATUS_A) & UPDATING != 0 && waited < PATIENCE {
        waited += 1;
    }
    Registers {
        seconds: register(0),
        minutes: register(2),
        hours: register(4),
        day: register(7),
        month: register(8),
        year: register(9),
        century: century.map(register),
        status_b: register(STATUS_B),
    }
}

fn register(index: u8) -> u8 {
    // SAFETY: the index selects a register and nothing else.
    unsafe { Port::new(INDEX).write(index) };
    // SAFETY: reading these registers has no effect.
    unsafe { Port::new(DATA).read() }
}
