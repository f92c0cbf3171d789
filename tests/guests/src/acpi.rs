//! Finding ACPI tables. Specification: ACPI 6.5, 5.2 "ACPI System Description Tables".

use crate::entry;

/// Bytes of a table's header.
const HEADER: usize = 36;
/// Where firmware on BIOS machines puts the root pointer.
const ROM: core::ops::Range<u32> = 0xe_0000..0x10_0000;
const SIGNATURE: &[u8; 8] = b"RSD PTR ";

/// Physical memory below 4 GiB as bytes.
///
/// Nothing writes firmware tables while a guest runs.
pub fn memory(at: u64, len: usize) -> &'static [u8] {
    // SAFETY: everything below 4 GiB is mapped, and tables are in RAM that nobody writes.
    unsafe { core::slice::from_raw_parts(at as *const u8, len) }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Whether the bytes of a structure add up to zero.
pub fn sums_up(bytes: &[u8]) -> bool {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// The root pointer: the loader's, or found in the ROM area.
pub fn root_pointer() -> Option<&'static [u8]> {
    let told = entry::rsdp();
    let mut places = core::iter::once(told).filter(|at| *at != 0).chain(ROM.step_by(16));
    let at = places.find(|at| memory(u64::from(*at), 8) == SIGNATURE)?;
    let revision = memory(u64::from(at), 20)[15];
    Some(memory(u64::from(at), if revision >= 2 { 36 } else { 20 }))
}

/// The table at `at`, header included.
pub fn table(at: u64) -> &'static [u8] {
    let length = number(&memory(at, HEADER)[4..8]) as usize;
    memory(at, length.max(HEADER))
}

/// All tables that the root table names.
pub fn tables() -> impl Iterator<Item = &'static [u8]> {
    let root = root_pointer();
    let extended = root.and_then(|root| root.get(24..32)).map_or(0, number);
    let short = root.map_or(0, |root| number(&root[16..20]));
    let (at, width) = if extended != 0 { (extended, 8) } else { (short, 4) };
    let entries = if at == 0 { &[][..] } else { &table(at)[HEADER..] };
    entries.chunks_exact(width).map(|entry| table(number(entry)))
}

/// The table with this signature.
pub fn find(signature: &[u8; 4]) -> Option<&'static [u8]> {
    tables().find(|table| &table[..4] == signature)
}

/// Ids of the usable processors, from the MADT. 5.2.12 "Multiple APIC Description Table (MADT)".
pub fn processors() -> impl Iterator<Item = u32> {
    let mut rest = find(b"APIC").map_or(&[][..], |table| &table[44..]);
    core::iter::from_fn(move || {
        loop {
            let length = usize::from(*rest.get(1)?).max(2);
            let entry = rest.get(..length)?;
            rest = &rest[length..];
            match entry[0] {
                // Processor local APIC: id, then flags; local x2APIC.
                0 if length >= 8 && entry[4] & 1 != 0 => return Some(entry[3].into()),
                9 if length >= 16 && entry[8] & 1 != 0 => return Some(number(&entry[4..8]) as u32),
                _ => {}
            }
        }
    })
}
