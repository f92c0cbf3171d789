//! The host's 8259 pair: moved out of the exceptions' way and masked for good; IOAPICs carry the interrupts.
//!
//! Pins Intel 8259A datasheet (231468-003), "Initialization Command Words".

#![allow(unsafe_code)] // Port access.

use crate::idt::vector;
use x86_64::instructions::port::Port;

const COMMANDS: [u16; 2] = [0x20, 0xa0];
const DATA: [u16; 2] = [0x21, 0xa1];
/// ICW1: edge triggered, cascaded, ICW4 follows.
const ICW1: u8 = 0x11;
/// ICW3: the second one hangs on input 2 of the first.
const CASCADE: [u8; 2] = [1 << 2, 2];
/// ICW4: 8086 mode.
const ICW4: u8 = 0x01;
const ALL_MASKED: u8 = 0xff;

/// Moves both to [`vector::LEGACY`] and masks all their inputs.
pub fn silence() {
    for chip in 0..2 {
        write(COMMANDS[chip], ICW1);
        write(DATA[chip], vector::LEGACY + 8 * chip as u8);
        write(DATA[chip], CASCADE[chip]);
        write(DATA[chip], ICW4);
        write(DATA[chip], ALL_MASKED);
    }
}

fn write(port: u16, value: u8) {
    // SAFETY: the ports belong to the 8259 pair on every PC; masking it has no effect on memory.
    unsafe { Port::new(port).write(value) };
}
