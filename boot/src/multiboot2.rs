//! The Multiboot2 handover: GRUB's boot information.
//!
//! Pins the Multiboot2 Specification version 2.0, 3.6 "Boot information format". Pure: the header that makes GRUB load
//! us and the 32-bit entry are in `entry`.
//!
//! The RSDP comes as a copy inside the information, so the information itself is marked as occupied.

use crate::{BootError, BootInfo, MemoryKind, PhysicalMemory, PhysicalRange, Protocol};

/// What EAX holds at the entry. 3.3 "I386 machine state".
pub const MAGIC: u32 = 0x36d7_6289;

/// Largest boot information that is read; GRUB's is a few KiB.
const MAX_LENGTH: u32 = 1 << 20;

/// Bytes of the fixed part, and of each tag's head.
const HEAD: usize = 8;

/// Tag types, 3.6.
mod tag {
    pub const END: u32 = 0;
    pub const COMMAND_LINE: u32 = 1;
    pub const MODULE: u32 = 3;
    pub const MEMORY_MAP: u32 = 6;
    pub const OLD_RSDP: u32 = 14;
    pub const NEW_RSDP: u32 = 15;
}

/// Reads the information at physical `address`.
///
/// A module's name is the first word of its string. A nameless newc archive becomes one module per file.
///
/// # Errors
/// Whatever is cut short, out of reach or contradicts itself.
pub fn parse<'a>(
    memory: &impl PhysicalMemory<'a>,
    address: u64,
    image: PhysicalRange,
) -> Result<BootInfo<'a>, BootError> {
    let out_of_reach = BootError::InfoOutOfReach(address);
    let head = memory.bytes(address, HEAD as u64).ok_or(out_of_reach)?;
    let length = word(head, 0).ok_or(out_of_reach)?;
    if length > MAX_LENGTH || (length as usize) < 2 * HEAD {
        return Err(BootError::Malformed("its total size"));
    }
    let bytes = memory.bytes(address, u64::from(length)).ok_or(out_of_reach)?;
    let mut info = BootInfo::new(Protocol::Multiboot2, image);
    info.occupy(PhysicalRange::new(address, u64::from(length)).ok_or(out_of_reach)?)?;

    let mut at = HEAD;
    loop {
        let tag = bytes.get(at..).ok_or(BootError::Malformed("the tags' end"))?;
        let kind = word(tag, 0).ok_or(BootError::Malformed("the tags' end"))?;
        let size = word(tag, 4).ok_or(BootError::Malformed("the tags' end"))? as usize;
        let body = tag.get(HEAD..size).ok_or(BootError::Malformed("a tag's size"))?;
        match kind {
            tag::END => break,
            tag::COMMAND_LINE => info.set_command_line(string(body).ok_or(BootError::CommandLineTooLong)?)?,
            tag::MODULE => add_module(&mut info, memory, body)?,
            tag::MEMORY_MAP => add_memory_map(&mut info, body)?,
            // The newer copy wins, whatever the order.
            tag::OLD_RSDP => info.rsdp = info.rsdp.or(Some(address + (at + HEAD) as u64)),
            tag::NEW_RSDP => info.rsdp = Some(address + (at + HEAD) as u64),
            _ => {}
        }
        // Tags are padded to 8 bytes; the size does not count the padding.
        at += size.next_multiple_of(8);
    }
    if info.memory.is_empty() {
        return Err(BootError::NoMemoryMap);
    }
    Ok(info)
}

/// 3.6.6 "Modules": start, end, string.
fn add_module<'a>(info: &mut BootInfo<'a>, memory: &impl PhysicalMemory<'a>, body: &'a [u8]) -> Result<(), BootError> {
    let damaged = BootError::Malformed("a module");
    let start = word(body, 0).ok_or(damaged)?;
    let end = word(body, 4).ok_or(damaged)?;
    let length = end.checked_sub(start).ok_or(damaged)?;
    let text = string(body.get(8..).ok_or(damaged)?).ok_or(damaged)?;
    let name = text.split(|&byte| byte == b' ').next().unwrap_or(&[]);
    let start = u64::from(start);
    // GRUB puts an empty file at 0.
    let bytes = if length == 0 { Some(&[][..]) } else { memory.bytes(start, u64::from(length)) };
    let bytes = bytes.ok_or(BootError::ModuleOutOfReach(start))?;
    info.add_file(name, start, bytes)
}

/// 3.6.8 "Memory map": entry size, entry version, entries of base, length, type.
fn add_memory_map(info: &mut BootInfo<'_>, body: &[u8]) -> Result<(), BootError> {
    let damaged = BootError::Malformed("the memory map");
    let entry_size = word(body, 0).ok_or(damaged)? as usize;
    if entry_size < 20 {
        return Err(damaged);
    }
    for entry in body.get(8..).ok_or(damaged)?.chunks_exact(entry_size) {
        let base = long(entry, 0).ok_or(damaged)?;
        let length = long(entry, 8).ok_or(damaged)?;
        let kind = word(entry, 16).ok_or(damaged)?;
        info.add_region(base, length, MemoryKind::from_acpi(kind))?;
    }
    Ok(())
}

/// The 32-bit value at `offset`.
fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The 64-bit value at `offset`.
fn long(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// The bytes before the first NUL.
fn string(bytes: &[u8]) -> Option<&[u8]> {
    bytes.split(|&byte| byte == 0).next().filter(|text| text.len() < bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::fake::FakeMemory;

    const INFO: u64 = 0x1000;
    const FILE: u64 = 0x20_0000;
    const IMAGE: PhysicalRange = PhysicalRange { start: 0x100_0000, end: 0x110_0000 };

    fn tag(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((8 + body.len() as u32).to_le_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0xaa);
        bytes
    }

    fn map(entries: &[(u64, u64, u32)]) -> Vec<u8> {
        let mut body = [24u32.to_le_bytes(), 0u32.to_le_bytes()].concat();
        for &(base, length, kind) in entries {
            body.extend(base.to_le_bytes());
            body.extend(length.to_le_bytes());
            body.extend(u64::from(kind).to_le_bytes());
        }
        tag(6, &body)
    }

    fn module(start: u32, end: u32, text: &[u8]) -> Vec<u8> {
        tag(3, &[&start.to_le_bytes()[..], &end.to_le_bytes(), text].concat())
    }

    fn information(tags: &[Vec<u8>]) -> Vec<u8> {
        let tags = tags.concat();
        let mut bytes = (8 + tags.len() as u32).to_le_bytes().to_vec();
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(tags);
        bytes
    }

    fn parse_tags(tags: &[Vec<u8>]) -> Result<(usize, Option<u64>, String, Vec<String>), BootError> {
        let memory = FakeMemory::default().with(INFO, information(tags)).with(FILE, *b"file of sixteen.");
        let info = parse(&&memory, INFO, IMAGE)?;
        let modules = info.modules.iter().map(|m| format!("{}={}", m.name, String::from_utf8_lossy(m.bytes))).collect();
        Ok((info.memory.len(), info.rsdp, info.command_line.to_string(), modules))
    }

    #[test]
    fn all_of_it_is_read() {
        let tags = [
            tag(1, b"vm.vcpus=1\0"),
            tag(2, b"GRUB\0"),
            module(FILE as u32, FILE as u32 + 4, b"kernel extra words\0"),
            module(0, 0, b"empty\0"),
            map(&[(0, 0x9f000, 1), (0x10_0000, 0x100_0000, 1)]),
            tag(15, &[0; 36]),
            tag(14, &[0; 20]),
            tag(0, b""),
        ];
        let (regions, rsdp, line, modules) = parse_tags(&tags).unwrap();
        assert_eq!(regions, 2);
        let before: usize = 8 + tags[..5].iter().map(Vec::len).sum::<usize>();
        assert_eq!(rsdp, Some(INFO + before as u64 + 8), "the newer copy, where it lies");
        assert_eq!(line, "vm.vcpus=1");
        assert_eq!(modules, ["kernel=file", "empty="]);
    }

    #[test]
    fn contradictions_are_refused() {
        let end = || tag(0, b"");
        let good_map = || map(&[(0, 0x1000, 1)]);
        assert_eq!(parse_tags(&[good_map(), end()]).map(|read| read.0), Ok(1));
        assert_eq!(parse_tags(&[tag(1, b"x\0"), end()]).err(), Some(BootError::NoMemoryMap));
        assert_eq!(parse_tags(&[good_map()]).err(), Some(BootError::Malformed("the tags' end")));
        assert_eq!(parse_tags(&[tag(1, b"unended"), end()]).err(), Some(BootError::CommandLineTooLong));
        let backwards = module(8, 4, b"x\0");
        assert_eq!(parse_tags(&[backwards, end()]).err(), Some(BootError::Malformed("a module")));
        let far = module(0x7000_0000, 0x7000_0001, b"x\0");
        assert_eq!(parse_tags(&[far, end()]).err(), Some(BootError::ModuleOutOfReach(0x7000_0000)));
        for size in [0u32, 7, 0xffff_ffff] {
            let mut broken = good_map();
            broken[4..8].copy_from_slice(&size.to_le_bytes());
            assert_eq!(parse_tags(&[broken, end()]).err(), Some(BootError::Malformed("a tag's size")), "{size}");
        }
        for entry_size in [0u32, 19] {
            let mut broken = good_map();
            broken[8..12].copy_from_slice(&entry_size.to_le_bytes());
            assert_eq!(parse_tags(&[broken, end()]).err(), Some(BootError::Malformed("the memory map")));
        }
        assert_eq!(parse_tags(&[map(&[(u64::MAX, 5, 1)]), end()]).err(), Some(BootError::RegionWraps(u64::MAX)));
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = information(&[tag(1, b"line\0"), map(&[(0, 0x1000, 1)]), tag(0, b"")]);
        for length in 0..whole.len() {
            // Cut in memory, and cut with a total size that admits it.
            let memory = FakeMemory::default().with(INFO, whole[..length].to_vec());
            assert_eq!(parse(&&memory, INFO, IMAGE).err(), Some(BootError::InfoOutOfReach(INFO)), "cut to {length}");
            let mut admitted = whole.clone();
            admitted[..4].copy_from_slice(&(length as u32).to_le_bytes());
            let memory = FakeMemory::default().with(INFO, admitted);
            assert!(matches!(parse(&&memory, INFO, IMAGE).err(), Some(BootError::Malformed(_))), "says {length}");
        }
    }

    #[test]
    fn arbitrary_changes_never_panic() {
        let whole = information(&[
            tag(1, b"line\0"),
            module(FILE as u32, FILE as u32 + 16, b"m\0"),
            map(&[(0, 0x1000, 1), (0x1000, 0x1000, 2)]),
            tag(0, b""),
        ]);
        for position in 0..whole.len() {
            for value in [0, 1, 3, 6, 8, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[position] = value;
                let memory = FakeMemory::default().with(INFO, changed).with(FILE, *b"file of sixteen.");
                if let Ok(info) = parse(&&memory, INFO, IMAGE) {
                    assert!(info.modules.len() <= 2);
                }
            }
        }
    }
}
