//! The MC146818 clock and its RAM. Datasheet: Motorola MC146818A.

use crate::port;

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
/// Register A: update in progress, divider, periodic rate.
pub const A: u8 = 0x0a;
/// Register B: interrupt enables, format.
pub const B: u8 = 0x0b;
/// Register C: interrupt flags, cleared by reading.
pub const C: u8 = 0x0c;
/// Register D: RAM and time are valid.
pub const D: u8 = 0x0d;

/// Reads a register or a byte of RAM.
pub fn read(index: u8) -> u8 {
    port::write8(INDEX, index);
    port::read8(DATA)
}

/// Writes a register or a byte of RAM.
pub fn write(index: u8, value: u8) {
    port::write8(INDEX, index);
    port::write8(DATA, value);
}
