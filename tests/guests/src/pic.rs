//! The 8259 pair. Datasheet: Intel 8259A (231468).

use crate::port;

/// Command port of the first controller.
pub const MASTER: u16 = 0x20;
/// Mask of the first controller.
pub const MASTER_DATA: u16 = 0x21;
/// Command port of the second controller.
pub const SLAVE: u16 = 0xa0;
/// Mask of the second controller.
pub const SLAVE_DATA: u16 = 0xa1;
/// OCW2: non-specific end of interrupt.
const END: u8 = 0x20;
/// OCW3: the next read returns the request register, or the in-service register.
const READ_REQUESTS: u8 = 0x0a;
const READ_IN_SERVICE: u8 = 0x0b;

/// Initialises both controllers: the first at `vector`, the second at `vector + 8`; all lines masked.
pub fn initialise(vector: u8) {
    for (command, data, base, wiring) in [(MASTER, MASTER_DATA, vector, 4), (SLAVE, SLAVE_DATA, vector + 8, 2)] {
        port::write8(command, 0x11); // ICW1: edge, cascade, ICW4 follows
        port::write8(data, base);
        port::write8(data, wiring);
        port::write8(data, 0x01); // ICW4: 8086 mode
        port::write8(data, 0xff);
    }
}

/// Sets both masks; bit n is line n, one masks it.
pub fn mask(lines: u16) {
    port::write8(MASTER_DATA, lines as u8);
    port::write8(SLAVE_DATA, (lines >> 8) as u8);
}

/// Both masks.
pub fn masks() -> u16 {
    u16::from(port::read8(MASTER_DATA)) | u16::from(port::read8(SLAVE_DATA)) << 8
}

/// Ends the interrupt of `line`.
pub fn end(line: u8) {
    if line >= 8 {
        port::write8(SLAVE, END);
    }
    port::write8(MASTER, END);
}

/// Requests waiting in both controllers.
pub fn requests() -> u16 {
    port::write8(MASTER, READ_REQUESTS);
    port::write8(SLAVE, READ_REQUESTS);
    u16::from(port::read8(MASTER)) | u16::from(port::read8(SLAVE)) << 8
}

/// Interrupts in service in both controllers.
pub fn in_service() -> u16 {
    port::write8(MASTER, READ_IN_SERVICE);
    port::write8(SLAVE, READ_IN_SERVICE);
    u16::from(port::read8(MASTER)) | u16::from(port::read8(SLAVE)) << 8
}
