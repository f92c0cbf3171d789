//! SMBIOS: what the guest can read about its machine by name, size and slot.
//!
//! Specification: DMTF DSP0134, SMBIOS Reference Specification 3.0.0. [`build`] turns a [`Description`] into [`Tables`]: the
//! structures of types 0, 1, 3, 4, 16, 17, 19, 32 and 127, and both entry points, of 2.1 (`_SM_`) and of 3.0 (`_SM3_`).
//! [`Tables::place`] says which bytes go where in the BIOS area.
//!
//! Neighbours: `direct_boot` places them; firmware may get the same bytes instead. Does not describe PCI slots or ports.

use alloc::vec::Vec;
use core::fmt;

/// What the tables say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// RAM as `(start, bytes)`, ascending, whole KiB.
    pub memory: Vec<(u64, u64)>,
    /// Number of logical processors, all in one socket.
    pub processors: u32,
    /// CPUID leaf 1, EAX and EDX; 0 where it is not told.
    pub processor_id: u64,
    /// Rate of the processors in MHz; 0 where it is not told.
    pub processor_mhz: u16,
    /// The machine's identity; all zero where it has none.
    pub uuid: [u8; 16],
}

/// The structures and their extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    structures: Vec<u8>,
    count: u16,
    largest: u16,
}

/// Why the tables cannot be put somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacementError {
    /// They do not end below 1 MiB.
    TooHigh,
    /// Not aligned to 16 bytes.
    Unaligned,
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooHigh => "they do not fit below 1 MiB",
            Self::Unaligned => "their place is not aligned to 16 bytes",
        })
    }
}

/// Bytes from a place to the 3.0 entry point, and to the structures; the 2.1 entry point comes first.
const ENTRY_30: u64 = 0x20;
const STRUCTURES: u64 = 0x40;
/// Where the search for entry points ends, and with it the BIOS area.
const AREA_END: u64 = 0x10_0000;

const MANUFACTURER: &str = "Gearshift";
const PRODUCT: &str = "Gearshift PC (Q35)";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Fixed, so that the same machine has the same bytes.
const RELEASE_DATE: &str = "01/01/2026";
/// Segment of the BIOS area that the entry points are in.
const BIOS_SEGMENT: u16 = 0xf000;

/// Types of structures. 7 "Structure definitions".
mod kind {
    pub const BIOS: u8 = 0;
    pub const SYSTEM: u8 = 1;
    pub const CHASSIS: u8 = 3;
    pub const PROCESSOR: u8 = 4;
    pub const MEMORY_ARRAY: u8 = 16;
    pub const MEMORY_DEVICE: u8 = 17;
    pub const MEMORY_MAPPED: u8 = 19;
    pub const SYSTEM_BOOT: u8 = 32;
    pub const END: u8 = 127;
}

/// Handles: unique in the table. Of several structures of a type each has the next one.
mod handle {
    pub const BIOS: u16 = 0x0000;
    pub const SYSTEM: u16 = 0x0100;
    pub const CHASSIS: u16 = 0x0300;
    pub const PROCESSOR: u16 = 0x0400;
    pub const MEMORY_ARRAY: u16 = 0x1000;
    pub const MEMORY_DEVICE: u16 = 0x1100;
    pub const MEMORY_MAPPED: u16 = 0x1300;
    pub const SYSTEM_BOOT: u16 = 0x2000;
    pub const END: u16 = 0x7f00;
    /// There is no such structure.
    pub const NONE: u16 = 0xffff;
    /// Errors are not recorded. 7.17.
    pub const NO_ERRORS: u16 = 0xfffe;
}

/// "Other", in most of the specification's enumerations.
const OTHER: u8 = 1;
/// 7.4.1 "Safe", of states.
const STATE_SAFE: u8 = 3;
/// 7.18.1: a module's size is in MiB; from here on it is in the extended field.
const SIZE_EXTENDED: u16 = 0x7fff;
/// Bytes of RAM that one memory device stands for at most.
const DEVICE_SIZE: u64 = 16 << 30;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A structure under construction: the formatted area, then the strings. 6.1.2 and 6.1.3.
struct Structure {
    bytes: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let mut bytes = alloc::vec![kind, 0];
        bytes.extend(handle.to_le_bytes());
        Self { bytes, strings: Vec::new(), count: 0 }
    }

    fn byte(&mut self, value: u8) -> &mut Self {
        self.bytes.push(value);
        self
    }

    fn word(&mut self, value: u16) -> &mut Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    fn double(&mut self, value: u32) -> &mut Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    fn quad(&mut self, value: u64) -> &mut Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    /// A reference to a string; the empty one has no string, and number 0.
    fn string(&mut self, text: &str) -> &mut Self {
        if text.is_empty() {
            return self.byte(0);
        }
        self.strings.extend(text.bytes());
        self.strings.push(0);
        self.count = self.count.saturating_add(1);
        self.byte(self.count)
    }

    /// The whole structure: its length is that of the formatted area, its end two zeros.
    fn finish(&mut self) -> Vec<u8> {
        let mut whole = core::mem::take(&mut self.bytes);
        whole[1] = whole.len() as u8;
        whole.append(&mut self.strings);
        if self.count == 0 {
            whole.push(0);
        }
        whole.push(0);
        whole
    }
}

/// 7.1 "BIOS Information (Type 0)".
fn bios() -> Vec<u8> {
    /// Characteristics are not told (bit 3).
    const NOT_TOLD: u64 = 1 << 3;
    /// Extension byte 2: the tables describe a virtual machine (bit 4), and enable targeted content distribution (bit 2).
    const VIRTUAL_MACHINE: u8 = 1 << 4 | 1 << 2;
    const NO_CONTROLLER: u8 = 0xff;
    let mut s = Structure::new(kind::BIOS, handle::BIOS);
    s.string(MANUFACTURER).string(VERSION).word(BIOS_SEGMENT).string(RELEASE_DATE).byte(0).quad(NOT_TOLD);
    s.byte(0).byte(VIRTUAL_MACHINE).byte(0).byte(0).byte(NO_CONTROLLER).byte(NO_CONTROLLER);
    s.finish()
}

/// 7.2 "System Information (Type 1)".
fn system(uuid: &[u8; 16]) -> Vec<u8> {
    const WAKE_POWER_SWITCH: u8 = 6;
    let mut s = Structure::new(kind::SYSTEM, handle::SYSTEM);
    s.string(MANUFACTURER).string(PRODUCT).string(VERSION).byte(0);
    s.bytes.extend(uuid);
    s.byte(WAKE_POWER_SWITCH).byte(0).string("Virtual Machine");
    s.finish()
}

/// 7.4 "System Enclosure or Chassis (Type 3)".
fn chassis() -> Vec<u8> {
    const SECURITY_UNKNOWN: u8 = 2;
    let mut s = Structure::new(kind::CHASSIS, handle::CHASSIS);
    s.string(MANUFACTURER).byte(OTHER).string(VERSION).byte(0).byte(0);
    s.byte(STATE_SAFE).byte(STATE_SAFE).byte(STATE_SAFE).byte(SECURITY_UNKNOWN);
    // OEM-defined, height, power cords, contained elements and the length of each, SKU.
    s.double(0).byte(0).byte(0).byte(0).byte(0).byte(0);
    s.finish()
}

/// 7.5 "Processor Information (Type 4)".
fn processor(description: &Description) -> Vec<u8> {
    const CENTRAL: u8 = 3;
    /// Populated, and enabled.
    const STATUS: u8 = 1 << 6 | 1;
    /// 64-bit capable (bit 2), and more than one core (bit 3).
    const CAPABLE_64: u16 = 1 << 2;
    const MULTI_CORE: u16 = 1 << 3;
    /// Counts that do not fit a byte are in the later word.
    const COUNT_IN_WORD: u8 = 0xff;
    let count = u16::try_from(description.processors).unwrap_or(u16::MAX);
    let short = u8::try_from(count).unwrap_or(COUNT_IN_WORD);
    let several = if count > 1 { MULTI_CORE } else { 0 };
    let mut s = Structure::new(kind::PROCESSOR, handle::PROCESSOR);
    s.string("CPU 0").byte(CENTRAL).byte(OTHER).string(MANUFACTURER).quad(description.processor_id).string(VERSION);
    // Voltage and external clock are not told.
    s.byte(0).word(0).word(description.processor_mhz).word(description.processor_mhz).byte(STATUS).byte(OTHER);
    s.word(handle::NONE).word(handle::NONE).word(handle::NONE).byte(0).byte(0).byte(0);
    s.byte(short).byte(short).byte(short).word(CAPABLE_64 | several).word(u16::from(OTHER));
    s.word(count).word(count).word(count);
    s.finish()
}

/// 7.17 "Physical Memory Array (Type 16)".
fn memory_array(bytes: u64, devices: u16) -> Vec<u8> {
    const SYSTEM_MEMORY: u8 = 3;
    const NO_CORRECTION: u8 = 3;
    /// The capacity in KiB does not fit; it is in the extended field, in bytes.
    const CAPACITY_EXTENDED: u32 = 0x8000_0000;
    let short = u32::try_from(bytes / KIB).ok().filter(|&kib| kib < CAPACITY_EXTENDED);
    let mut s = Structure::new(kind::MEMORY_ARRAY, handle::MEMORY_ARRAY);
    s.byte(OTHER).byte(SYSTEM_MEMORY).byte(NO_CORRECTION).double(short.unwrap_or(CAPACITY_EXTENDED));
    s.word(handle::NO_ERRORS).word(devices).quad(if short.is_some() { 0 } else { bytes });
    s.finish()
}

/// 7.18 "Memory Device (Type 17)".
fn memory_device(number: u16, bytes: u64) -> Vec<u8> {
    const WIDTH_UNKNOWN: u16 = 0xffff;
    const FORM_DIMM: u8 = 9;
    const TYPE_RAM: u8 = 7;
    const DETAIL_OTHER: u16 = 1 << 1;
    let mib = u32::try_from(bytes / MIB).unwrap_or(u32::MAX);
    let short = u16::try_from(mib).ok().filter(|&mib| mib < SIZE_EXTENDED);
    let mut s = Structure::new(kind::MEMORY_DEVICE, handle::MEMORY_DEVICE.saturating_add(number));
    s.word(handle::MEMORY_ARRAY).word(handle::NO_ERRORS).word(WIDTH_UNKNOWN).word(WIDTH_UNKNOWN);
    s.word(short.unwrap_or(SIZE_EXTENDED)).byte(FORM_DIMM).byte(0);
    s.string(&alloc::format!("DIMM {number}")).byte(0).byte(TYPE_RAM).word(DETAIL_OTHER).word(0);
    s.string(MANUFACTURER).byte(0).byte(0).byte(0).byte(0);
    s.double(if short.is_some() { 0 } else { mib });
    // Speed and voltages are not told.
    s.word(0).word(0).word(0).word(0);
    s.finish()
}

/// 7.20 "Memory Array Mapped Address (Type 19)".
fn memory_mapped(number: u16, start: u64, bytes: u64) -> Vec<u8> {
    const ADDRESS_EXTENDED: u32 = u32::MAX;
    const ONE_PARTITION: u8 = 1;
    let last = start.saturating_add(bytes).saturating_sub(1);
    let short = u32::try_from(last / KIB).ok().filter(|&kib| kib != ADDRESS_EXTENDED);
    let mut s = Structure::new(kind::MEMORY_MAPPED, handle::MEMORY_MAPPED.saturating_add(number));
    match short {
        Some(last) => s.double((start / KIB) as u32).double(last),
        None => s.double(ADDRESS_EXTENDED).double(ADDRESS_EXTENDED),
    };
    s.word(handle::MEMORY_ARRAY).byte(ONE_PARTITION);
    match short {
        Some(_) => s.quad(0).quad(0),
        None => s.quad(start).quad(last),
    };
    s.finish()
}

/// 7.33 "System Boot Information (Type 32)".
fn system_boot() -> Vec<u8> {
    const NO_ERRORS: u8 = 0;
    let mut s = Structure::new(kind::SYSTEM_BOOT, handle::SYSTEM_BOOT);
    s.bytes.extend([0; 6]);
    s.byte(NO_ERRORS);
    s.finish()
}

/// Builds the tables of a machine.
pub fn build(description: &Description) -> Tables {
    let total: u64 = description.memory.iter().map(|&(_, bytes)| bytes).fold(0, u64::saturating_add);
    let devices = u16::try_from(total.div_ceil(DEVICE_SIZE)).unwrap_or(u16::MAX);
    let mut all =
        alloc::vec![bios(), system(&description.uuid), chassis(), processor(description), memory_array(total, devices)];
    let mut left = total;
    for number in 0..devices {
        all.push(memory_device(number, left.min(DEVICE_SIZE)));
        left = left.saturating_sub(DEVICE_SIZE);
    }
    for (number, &(start, bytes)) in (0..).zip(&description.memory) {
        all.push(memory_mapped(number, start, bytes));
    }
    all.push(system_boot());
    all.push(Structure::new(kind::END, handle::END).finish());
    let largest = all.iter().map(Vec::len).max().unwrap_or(0);
    Tables { count: all.len() as u16, largest: largest as u16, structures: all.concat() }
}

impl Tables {
    /// The bytes to be written from physical address `at` on, which lies in the BIOS area from 0xF0000: both entry points,
    /// then the structures.
    ///
    /// # Errors
    /// When entry points cannot be there, or the whole does not end below 1 MiB.
    pub fn place(&self, at: u64) -> Result<Vec<u8>, PlacementError> {
        if !at.is_multiple_of(16) {
            return Err(PlacementError::Unaligned);
        }
        let structures = at + STRUCTURES;
        if structures + self.structures.len() as u64 > AREA_END {
            return Err(PlacementError::TooHigh);
        }
        let mut bytes = self.entry_21(structures as u32).to_vec();
        bytes.resize(ENTRY_30 as usize, 0);
        bytes.extend(self.entry_30(structures));
        bytes.resize(STRUCTURES as usize, 0);
        bytes.extend(&self.structures);
        Ok(bytes)
    }

    /// 5.2.1 "SMBIOS 2.1 (32-bit) Entry Point".
    fn entry_21(&self, structures: u32) -> [u8; 31] {
        let mut entry = [0; 31];
        entry[..4].copy_from_slice(b"_SM_");
        entry[5] = 31;
        entry[6..8].copy_from_slice(&[2, 8]);
        entry[8..10].copy_from_slice(&self.largest.to_le_bytes());
        entry[16..21].copy_from_slice(b"_DMI_");
        entry[22..24].copy_from_slice(&(self.structures.len() as u16).to_le_bytes());
        entry[24..28].copy_from_slice(&structures.to_le_bytes());
        entry[28..30].copy_from_slice(&self.count.to_le_bytes());
        entry[30] = 0x28;
        entry[21] = checksum(&entry[16..31]);
        entry[4] = checksum(&entry);
        entry
    }

    /// 5.2.2 "SMBIOS 3.0 (64-bit) Entry Point".
    fn entry_30(&self, structures: u64) -> [u8; 24] {
        /// Of the entry point itself.
        const REVISION: u8 = 1;
        let mut entry = [0; 24];
        entry[..5].copy_from_slice(b"_SM3_");
        entry[6] = 24;
        entry[7..10].copy_from_slice(&[3, 0, 0]);
        entry[10] = REVISION;
        entry[12..16].copy_from_slice(&(self.structures.len() as u32).to_le_bytes());
        entry[16..24].copy_from_slice(&structures.to_le_bytes());
        entry[5] = checksum(&entry);
        entry
    }
}

/// What makes the sum of all bytes 0, where the checksum itself still is.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    fn description(memory: &[(u64, u64)], processors: u32) -> Description {
        Description {
            memory: memory.to_vec(),
            processors,
            processor_id: 0x178b_fbff_0080_0f12,
            processor_mhz: 2500,
            uuid: *b"0123456789abcdef",
        }
    }

    fn word(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
    }

    fn double(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn quad(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Walks a table as a guest does: formatted area and strings of each structure, to the end.
    fn walk(mut table: &[u8]) -> Vec<(Vec<u8>, Vec<String>)> {
        let mut found = Vec::new();
        while !table.is_empty() {
            let (area, rest) = table.split_at(table[1] as usize);
            let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap() + 2;
            let strings = rest[..end - 1].split(|&byte| byte == 0).filter(|text| !text.is_empty());
            found.push((area.to_vec(), strings.map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()));
            table = &rest[end..];
        }
        found
    }

    fn structures(memory: &[(u64, u64)], processors: u32) -> Vec<(Vec<u8>, Vec<String>)> {
        let tables = build(&description(memory, processors));
        let found = walk(&tables.structures);
        assert_eq!(found.len(), usize::from(tables.count));
        found
    }

    #[test]
    fn both_entry_points_lead_to_the_structures() {
        let tables = build(&description(&[(0, 512 << 20)], 1));
        let bytes = tables.place(0xf_0040).unwrap();
        let sum = |part: &[u8]| part.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        assert_eq!(&bytes[..4], b"_SM_");
        assert_eq!((sum(&bytes[..31]), sum(&bytes[16..31])), (0, 0));
        assert_eq!(bytes[5], 31);
        assert_eq!(&bytes[0x20..0x25], b"_SM3_");
        assert_eq!(sum(&bytes[0x20..0x20 + 24]), 0);
        assert_eq!(double(&bytes, 24), 0xf_0080);
        assert_eq!(quad(&bytes, 0x30), 0xf_0080);
        let length = usize::from(word(&bytes, 22));
        assert_eq!(double(&bytes, 0x2c) as usize, length);
        assert_eq!(bytes.len(), 0x40 + length);
        let found = walk(&bytes[0x40..]);
        assert_eq!(usize::from(word(&bytes, 28)), found.len());
        let largest = found.iter().map(|(area, strings)| {
            area.len()
                + strings.iter().map(|text| text.len() + 1).sum::<usize>()
                + if strings.is_empty() { 2 } else { 1 }
        });
        assert_eq!(usize::from(word(&bytes, 8)), largest.max().unwrap());
    }

    #[test]
    fn a_place_must_be_aligned_and_below_1_mib() {
        let tables = build(&description(&[(0, 512 << 20)], 1));
        assert_eq!(tables.place(0xf_0048), Err(PlacementError::Unaligned));
        assert_eq!(tables.place(0xf_ffc0), Err(PlacementError::TooHigh));
    }

    #[test]
    fn types_have_the_lengths_of_the_specification_and_their_own_handles() {
        let found = structures(&[(0, 2 << 30), (4 << 30, 30 << 30)], 4);
        let kinds: Vec<(u8, usize)> = found.iter().map(|(area, _)| (area[0], area.len())).collect();
        let wanted =
            [(0, 24), (1, 27), (3, 22), (4, 48), (16, 23), (17, 40), (17, 40), (19, 31), (19, 31), (32, 11), (127, 4)];
        assert_eq!(kinds, wanted);
        let mut handles: Vec<u16> = found.iter().map(|(area, _)| word(area, 2)).collect();
        handles.sort_unstable();
        handles.dedup();
        assert_eq!(handles.len(), found.len());
    }

    #[test]
    fn every_string_number_names_a_string() {
        // The bytes of each type that are string numbers, by their offsets in the specification.
        let places: [(u8, &[usize]); 5] = [
            (0, &[4, 5, 8]),
            (1, &[4, 5, 6, 7, 25, 26]),
            (3, &[4, 6, 7, 8, 21]),
            (4, &[4, 7, 16, 32, 33, 34]),
            (17, &[16, 17, 23, 24, 25, 26]),
        ];
        for (area, strings) in structures(&[(0, 1 << 30)], 2) {
            let numbers = places.iter().find(|(kind, _)| *kind == area[0]).map_or(&[][..], |(_, places)| places);
            let mut named: Vec<u8> = numbers.iter().map(|&at| area[at]).filter(|&number| number != 0).collect();
            named.sort_unstable();
            assert_eq!(named, (1..=strings.len() as u8).collect::<Vec<u8>>(), "type {}", area[0]);
        }
    }

    #[test]
    fn memory_adds_up() {
        for memory in [&[(0, 128 << 20)][..], &[(0, 2 << 30), (4 << 30, 3 << 30)], &[(0, 2 << 30), (4 << 30, 4 << 40)]]
        {
            let total: u64 = memory.iter().map(|&(_, bytes)| bytes).sum();
            let found = structures(memory, 1);
            let of = |kind: u8| found.iter().filter(move |(area, _)| area[0] == kind).map(|(area, _)| area);
            let array = of(16).next().unwrap();
            let capacity = match double(array, 7) {
                0x8000_0000 => quad(array, 15),
                kib => u64::from(kib) << 10,
            };
            assert_eq!(capacity, total);
            assert_eq!(usize::from(word(array, 13)), of(17).count());
            let devices: u64 = of(17)
                .map(|area| match word(area, 12) {
                    0x7fff => u64::from(double(area, 28)) << 20,
                    mib => u64::from(mib) << 20,
                })
                .sum();
            assert_eq!(devices, total);
            let mapped: Vec<(u64, u64)> = of(19)
                .map(|area| match double(area, 4) {
                    u32::MAX => (quad(area, 15), quad(area, 23) + 1 - quad(area, 15)),
                    start => (u64::from(start) << 10, (u64::from(double(area, 8)) + 1 - u64::from(start)) << 10),
                })
                .collect();
            assert_eq!(mapped, memory);
        }
    }

    #[test]
    fn processors_are_counted() {
        for (processors, short, several) in [(1, 1, 0), (4, 4, 8), (300, 0xff, 8)] {
            let found = structures(&[(0, 1 << 30)], processors);
            let area = &found.iter().find(|(area, _)| area[0] == 4).unwrap().0;
            assert_eq!(&area[35..38], [short; 3]);
            assert_eq!(word(area, 42), processors as u16);
            assert_eq!(word(area, 38), 4 | several);
            assert_eq!((quad(area, 8), word(area, 20)), (0x178b_fbff_0080_0f12, 2500));
        }
    }
}
