//! What a PC BIOS leaves below 1 MiB, where a guest starts without one: its data area, and real-mode services that answer
//! that they are not there.
//!
//! Source: IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference, section 2 "Interrupts" and
//! section 3 "Data areas and ROM tables". Xen takes the place for its start-up code from the data area and goes on to
//! ask for services; Linux takes from it what it reserves below 1 MiB.

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

/// Real-mode interrupt vectors, each an offset and a segment. SDM 3B 21.1.4 "Interrupt and Exception Handling".
const VECTORS: usize = 256;
/// Where every vector points: segment and offset, in the BIOS area.
const SERVICE: (u16, u16) = (0xf000, 0xffd0);
/// `push bp; mov bp, sp; or byte [bp + 6], CF | ZF; pop bp; iret`: carry says that a service failed, zero that no key waits.
const NO_SERVICE: [u8; 9] = [0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x41, 0x5d, 0xcf];

/// Writes services that are not there, and the area of a machine whose first serial port is at `serial` and whose base memory ends at `extended`, where the
/// extended area of 1 KiB begins.
///
/// # Errors
/// When the machine has no RAM there.
pub fn write(ram: &impl GuestMemory, serial: u16, extended: u64) -> Result<(), NotRam> {
    let (segment, offset) = SERVICE;
    let mut vectors = [0; 4 * VECTORS];
    for vector in vectors.chunks_exact_mut(4) {
        let (low, high) = vector.split_at_mut(2);
        low.copy_from_slice(&offset.to_le_bytes());
        high.copy_from_slice(&segment.to_le_bytes());
    }
    ram.write(Gpa(0), &vectors)?;
    ram.write(Gpa((u64::from(segment) << 4) + u64::from(offset)), &NO_SERVICE)?;
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
        let ram = SparseMemory::new(&[(0, 0xa_0000), (0xf_0000, 0x1_0000)]);
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

    #[test]
    fn every_interrupt_has_a_handler_that_returns() {
        let ram = SparseMemory::new(&[(0, 0xa_0000), (0xf_0000, 0x1_0000)]);
        write(&ram, 0x3f8, 0x9_fc00).unwrap();
        for vector in 0..256 {
            let mut pointer = [0; 4];
            ram.read(Gpa(vector * 4), &mut pointer).unwrap();
            let linear = (u64::from(u16::from_le_bytes([pointer[2], pointer[3]])) << 4)
                + u64::from(u16::from_le_bytes([pointer[0], pointer[1]]));
            let mut code = [0; 9];
            ram.read(Gpa(linear), &mut code).unwrap();
            let text: alloc::vec::Vec<alloc::string::String> =
                iced_x86::Decoder::new(16, &code, 0).iter().map(|i| alloc::format!("{:?}", i.mnemonic())).collect();
            assert_eq!(text, ["Push", "Mov", "Or", "Pop", "Iret"]);
        }
    }
}
