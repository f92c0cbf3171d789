//! The BIOS data area: what a PC BIOS leaves below 1 MiB for programs that ask it nothing more.
//!
//! Source: IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference, section 3 "Data areas and ROM
//! tables". Xen takes the place for its start-up code from here, Linux what it reserves below 1 MiB.

use memory::{Gpa, GuestMemory, NotRam};

/// Where the area begins, 40:0.
const START: u64 = 0x400;
/// Offsets in the area.
const SERIAL_PORTS: u64 = 0x00;
const EXTENDED_SEGMENT: u64 = 0x0e;
const EQUIPMENT: u64 = 0x10;
const BASE_MEMORY: u64 = 0x13;

/// Equipment: a coprocessor (bit 1), a pointing device (bit 2), one serial port (bits 11:9).
const EQUIPMENT_FOUND: u16 = 1 << 1 | 1 << 2 | 1 << 9;

/// Writes the area of a machine whose first serial port is at `serial` and whose base memory ends at `extended`, where the
/// extended area of 1 KiB begins.
///
/// # Errors
/// When the machine has no RAM there.
pub fn write(ram: &impl GuestMemory, serial: u16, extended: u64) -> Result<(), NotRam> {
    let word = |offset: u64, value: u16| ram.write(Gpa(START + offset), &value.to_le_bytes());
    word(SERIAL_PORTS, serial)?;
    word(EXTENDED_SEGMENT, (extended >> 4) as u16)?;
    word(EQUIPMENT, EQUIPMENT_FOUND)?;
    word(BASE_MEMORY, (extended >> 10) as u16)?;
    // The extended area begins with its own size in KiB.
    ram.write(Gpa(extended), &[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::SparseMemory;

    #[test]
    fn programs_find_the_end_of_base_memory() {
        let ram = SparseMemory::new(&[(0, 0xa_0000)]);
        write(&ram, 0x3f8, 0x9_fc00).unwrap();
        let word = |at: u64| {
            let mut bytes = [0; 2];
            ram.read(Gpa(at), &mut bytes).unwrap();
            u16::from_le_bytes(bytes)
        };
        assert_eq!(word(0x400), 0x3f8);
        assert_eq!(word(0x40e), 0x9fc0);
        assert_eq!(word(0x410) & 0xe06, 0x206);
        assert_eq!(word(0x413), 639);
        assert_eq!(word(0x9_fc00) & 0xff, 1);
    }
}
