//! Multiboot 1 kernels: 32-bit ELF files, and any image by the addresses in its header (the a.out kludge).
//!
//! Manual: Multiboot Specification 0.6.96. A kernel that would like a video mode gets none. A 64-bit ELF file is loaded only
//! by the addresses in its header, as QEMU does.

use super::bytes::{Record, Source};
use super::elf::{self, Class, Elf};
use super::placement::{
    COMMAND_LINE, COMMAND_LINE_SIZE, FOUR_GIB, ONE_MIB, Room, START_INFO, START_INFO_SIZE, write_command_line,
};
use super::{LoadError, MemoryLayout, Payload, Region, RegionKind, start};
use memory::{Gpa, GuestMemory, PAGE_SIZE};
use vcpu::{ArchState, Gpr};

/// The header is in the first 8192 bytes, 32-bit aligned. 3.1.1 "The layout of Multiboot header".
const SEARCHED: u64 = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX tells the kernel. 3.2 "Machine state".
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// Header flags, 3.1.2 "The magic fields of Multiboot header".
const WANTS_ADDRESSES: u32 = 1 << 16;
const DEMANDS: u32 = 0xffff;
/// Page-aligned modules, memory information, video mode: those that are known.
const KNOWN_DEMANDS: u32 = 0b111;

/// Flags of the information structure, 3.3 "Boot information format".
const INFO_MEMORY: u32 = 1 << 0;
const INFO_COMMAND_LINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;
/// Its size up to `vbe_interface_len`, and the places of what is filled.
const INFO_SIZE: usize = 88;
const INFO_LOADER_NAME_AT: usize = 64;
const MODULE_SIZE: usize = 16;
/// A memory map entry, its size field (which does not count itself) included.
const MAP_ENTRY_SIZE: usize = 24;

const LOADER_NAME: &[u8] = b"Gearshift\0";
/// The command line begins with the kernel's name, as all loaders before GRUB 2 have it; kernels skip one word.
const KERNEL_NAME: &[u8] = b"kernel ";

/// The address fields of a header. 3.1.3 "The address fields of Multiboot header".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
    entry: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// Where in the file.
    offset: u64,
    flags: u32,
}

/// The header, if there is one with a right checksum.
fn find(source: Source<'_>) -> Option<Header> {
    (0..SEARCHED - 12).step_by(4).find_map(|offset| {
        if source.dword(offset)? != HEADER_MAGIC {
            return None;
        }
        let (flags, checksum) = (source.dword(offset + 4)?, source.dword(offset + 8)?);
        let sum = HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum);
        (sum == 0).then_some(Header { offset, flags })
    })
}

/// Whether the image has a Multiboot 1 header and is not a 64-bit ELF file, which has another way in.
pub fn recognises(image: &[u8]) -> bool {
    find(Source(image)).is_some_and(|header| {
        header.flags & WANTS_ADDRESSES != 0 || !Elf::parse(image).is_ok_and(|elf| elf.class == Class::Bits64)
    })
}

/// Loads a Multiboot 1 kernel. See [`super::load`].
///
/// # Errors
/// See [`LoadError`].
pub fn load(
    payload: &Payload<'_>,
    layout: &MemoryLayout<'_>,
    memory: &impl GuestMemory,
) -> Result<ArchState, LoadError> {
    let source = Source(payload.image);
    let header = find(source).ok_or(LoadError::Unrecognised)?;
    let unknown = header.flags & DEMANDS & !KNOWN_DEMANDS;
    if unknown != 0 {
        return Err(LoadError::UnknownFeatures(unknown));
    }
    let mut room = Room::new(layout)?;
    let entry = if header.flags & WANTS_ADDRESSES != 0 {
        load_by_addresses(source, header, &mut room, memory)?
    } else if elf::recognises(payload.image) {
        let elf = Elf::parse(payload.image)?;
        if elf.class == Class::Bits64 {
            return Err(LoadError::Unsupported("the Multiboot kernel is a 64-bit ELF file: use one of 32 bits"));
        }
        elf.load(&mut room, memory)?;
        elf.entry as u32
    } else {
        return Err(LoadError::Malformed("its Multiboot header gives no addresses and it is no ELF file"));
    };
    write_info(payload, layout, &mut room, memory)?;
    let state = start::flat32(entry, memory)?;
    Ok(start::with(start::with(state, Gpr::Rax, LOADER_MAGIC), Gpr::Rbx, START_INFO))
}

/// Loads by the header's own address fields and returns the entry.
fn load_by_addresses(
    source: Source<'_>,
    header: Header,
    room: &mut Room<'_>,
    memory: &impl GuestMemory,
) -> Result<u32, LoadError> {
    let field =
        |index: u64| source.dword(header.offset + 12 + index * 4).ok_or(LoadError::Truncated("Multiboot header"));
    let addresses =
        Addresses { header: field(0)?, load: field(1)?, load_end: field(2)?, bss_end: field(3)?, entry: field(4)? };
    let before = addresses.header.checked_sub(addresses.load).map(u64::from);
    let start = before
        .and_then(|before| header.offset.checked_sub(before))
        .ok_or(LoadError::Malformed("its Multiboot header loads from before the file's start"))?;
    // A zero load_end_addr means all of the file, a zero bss_end_addr means no bss.
    let size = match addresses.load_end {
        0 => (source.0.len() as u64).saturating_sub(start),
        end => {
            let size = end
                .checked_sub(addresses.load)
                .ok_or(LoadError::Malformed("its Multiboot load_end_addr is before load_addr"))?;
            u64::from(size)
        }
    };
    let content = source.bytes(start, size).ok_or(LoadError::Truncated("Multiboot load area"))?;
    let load = u64::from(addresses.load);
    let bss = match addresses.bss_end {
        0 => 0,
        end => u64::from(end)
            .checked_sub(load + size)
            .ok_or(LoadError::Malformed("its Multiboot bss_end_addr is before the end of its data"))?,
    };
    room.take(load, size + bss)?;
    memory.write(Gpa(load), content)?;
    memory.fill(Gpa(load + size), 0, bss)?;
    Ok(addresses.entry)
}

/// KiB of usable memory that begin at `start`; 0 where none do.
fn kib_from(regions: &[Region], start: u64) -> u32 {
    let here = regions.iter().find(|region| region.kind == RegionKind::Usable && region.start.0 == start);
    here.map_or(0, |region| (region.len >> 10).min(u32::MAX.into()) as u32)
}

/// Places the modules and writes the information structure with everything that it points to.
fn write_info(
    payload: &Payload<'_>,
    layout: &MemoryLayout<'_>,
    room: &mut Room<'_>,
    memory: &impl GuestMemory,
) -> Result<(), LoadError> {
    let mut line = KERNEL_NAME.to_vec();
    line.extend_from_slice(payload.command_line);
    write_command_line(&line, COMMAND_LINE_SIZE, memory)?;

    let modules_at = INFO_SIZE;
    let map_at = modules_at + payload.modules.len() * MODULE_SIZE;
    let map_size = layout.regions.len() * MAP_ENTRY_SIZE;
    let name_at = map_at + map_size;
    let mut line_at = name_at + LOADER_NAME.len();
    let lines: usize = payload.modules.iter().map(|module| module.command_line.len() + 1).sum();
    if line_at + lines > START_INFO_SIZE {
        return Err(LoadError::Unsupported(
            "the modules, their command lines and the memory map do not fit into 32 KiB",
        ));
    }
    let address = |offset: usize| START_INFO as u32 + offset as u32;

    let mut info = Record::default();
    let flags = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    info.dword(flags).dword(kib_from(layout.regions, 0)).dword(kib_from(layout.regions, ONE_MIB)).dword(0);
    info.dword(COMMAND_LINE as u32).dword(payload.modules.len() as u32).dword(address(modules_at));
    info.put(44, &(map_size as u32).to_le_bytes());
    info.put(48, &address(map_at).to_le_bytes());
    info.put(INFO_LOADER_NAME_AT, &address(name_at).to_le_bytes());
    info.put(INFO_SIZE, &[]);
    for module in payload.modules {
        // Right above the kernel, page-aligned: simple kernels map no more than their surroundings.
        let bytes = module.bytes.len() as u64;
        let place = room.take_lowest("modules", bytes, ONE_MIB, FOUR_GIB, PAGE_SIZE)?;
        memory.write(place, module.bytes)?;
        info.dword(place.0 as u32).dword((place.0 + bytes) as u32).dword(address(line_at)).dword(0);
        line_at += module.command_line.len() + 1;
    }
    for region in layout.regions {
        info.dword(MAP_ENTRY_SIZE as u32 - 4).qword(region.start.0).qword(region.len).dword(region.kind as u32);
    }
    info.put(name_at, LOADER_NAME);
    for module in payload.modules {
        info.0.extend_from_slice(module.command_line);
        info.0.push(0);
    }
    Ok(memory.write(Gpa(START_INFO), &info.0)?)
}

#[cfg(test)]
mod tests {
    use super::super::Module;
    use super::super::elf::tests as elf_files;
    use super::super::tests::{MIB, bytes_at, dword_at, qword_at, ram, regions};
    use super::*;
    use alloc::{vec, vec::Vec};

    const TOP: u64 = 16 * MIB;

    fn header(flags: u32, addresses: &[u32]) -> Vec<u8> {
        let checksum = 0_u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
        [0x1bad_b002, flags, checksum].iter().chain(addresses).flat_map(|field| field.to_le_bytes()).collect()
    }

    fn load(image: &[u8], modules: &[Module<'_>]) -> Result<(ArchState, memory::SparseMemory), LoadError> {
        let memory = ram(TOP);
        let regions = regions(TOP);
        let layout = MemoryLayout { regions: &regions, rsdp: None };
        let payload = Payload { image, modules, command_line: b"-v" };
        super::super::load(&payload, &layout, &memory).map(|state| (state, memory))
    }

    /// 64 bytes, then a header that loads the file from its byte 32 to 0x200000.
    fn kludge(load_end: u32, bss_end: u32) -> Vec<u8> {
        let mut image = vec![0xee; 64];
        image.extend(header(0x1_0003, &[0x20_0020, 0x20_0000, load_end, bss_end, 0x20_0040]));
        image.extend([0x77; 100]);
        image
    }

    #[test]
    fn the_header_may_give_the_addresses_itself() {
        let (state, memory) = load(&kludge(0, 0), &[]).unwrap();
        assert_eq!((state.rip, state.gprs.get(Gpr::Rax)), (0x20_0040, 0x2bad_b002));
        assert_eq!(bytes_at(&memory, 0x20_0000, 32), [0xee; 32]);
        assert_eq!(dword_at(&memory, 0x20_0020), 0x1bad_b002);
        assert_eq!(bytes_at(&memory, 0x20_0040 + 99, 2), [0x77, 0]);
        let (_, memory) = load(&kludge(0x20_0044, 0x20_1000), &[]).unwrap();
        assert_eq!(bytes_at(&memory, 0x20_0043, 2), [0x77, 0], "only up to load_end_addr");
    }

    #[test]
    fn an_elf_file_of_32_bits_loads_by_its_segments() {
        let content = header(3, &[]);
        let image = elf_files::file(Class::Bits32, 0x30_0010, 0x30_0000, &content, 0, b"");
        let (state, memory) = load(&image, &[]).unwrap();
        assert_eq!(state.rip, 0x30_0010);
        assert_eq!(dword_at(&memory, 0x30_0000), 0x1bad_b002);
    }

    #[test]
    fn a_64_bit_elf_file_goes_by_its_pvh_note_instead() {
        let note = elf_files::note(b"Xen\0", 18, &0x30_0020_u32.to_le_bytes());
        let image = elf_files::file(Class::Bits64, 0, 0x30_0000, &header(3, &[]), 0, &note);
        assert_eq!(load(&image, &[]).unwrap().0.rip, 0x30_0020);
    }

    #[test]
    fn the_information_structure_tells_memory_modules_and_names() {
        let modules = [Module { bytes: &[5; 4097], command_line: b"one" }, Module { bytes: &[6], command_line: b"" }];
        let (state, memory) = load(&kludge(0, 0), &modules).unwrap();
        let info = state.gprs.get(Gpr::Rbx);
        let pointer = |at| u64::from(dword_at(&memory, info + at));
        assert_eq!(pointer(0), 0x24d);
        assert_eq!((pointer(4), pointer(8)), (0x9_fc00 >> 10, (TOP - MIB) >> 10));
        assert_eq!(bytes_at(&memory, pointer(16), 10), b"kernel -v\0");
        assert_eq!(bytes_at(&memory, pointer(64), 10), b"Gearshift\0");
        assert_eq!(pointer(20), 2);
        let list = pointer(24);
        assert_eq!((dword_at(&memory, list), dword_at(&memory, list + 4)), (0x10_0000, 0x10_1001));
        assert_eq!(bytes_at(&memory, dword_at(&memory, list + 8).into(), 4), b"one\0");
        assert_eq!(dword_at(&memory, list + 16), 0x10_2000, "modules are page-aligned");
        let (map_size, map) = (pointer(44), pointer(48));
        assert_eq!(map_size, 3 * 24);
        assert_eq!(dword_at(&memory, map + 48), 20);
        assert_eq!((qword_at(&memory, map + 52), qword_at(&memory, map + 60)), (MIB, TOP - MIB));
        assert_eq!(dword_at(&memory, map + 24 + 20), 2);
    }

    #[test]
    fn lying_headers_are_refused() {
        assert_eq!(load(&header(0x10, &[]), &[]).err(), Some(LoadError::UnknownFeatures(0x10)));
        assert!(matches!(load(&header(3, &[]), &[]), Err(LoadError::Malformed(_))), "neither addresses nor ELF");
        assert!(matches!(load(&header(0x1_0000, &[1, 2]), &[]), Err(LoadError::Truncated(_))));
        let with = |addresses: [u32; 5]| load(&header(0x1_0000, &addresses), &[]).err().unwrap();
        assert!(matches!(with([0x10_0000, 0x20_0000, 0, 0, 0]), LoadError::Malformed(_)));
        assert!(matches!(with([0x20_0000, 0x10_0000, 0, 0, 0]), LoadError::Malformed(_)));
        assert!(matches!(with([0x20_0000, 0x20_0000, 0x1f_0000, 0, 0]), LoadError::Malformed(_)));
        assert!(matches!(with([0x20_0000, 0x20_0000, 0xffff_ffff, 0, 0]), LoadError::Truncated(_)));
        assert!(matches!(with([0x20_0000, 0x20_0000, 0, 0x10_0000, 0]), LoadError::Malformed(_)));
        assert!(matches!(with([0x20_0000, 0x20_0000, 0, 0xffff_ffff, 0]), LoadError::NotFree { .. }));
        assert!(matches!(with([0xffff_fff0, 0xffff_fff0, 0, 0, 0]), LoadError::NotFree { .. }));
        assert!(matches!(with([0x9_0000, 0x9_0000, 0, 0, 0]), LoadError::NotFree { .. }));
    }

    #[test]
    fn a_header_with_a_wrong_checksum_or_too_late_is_none() {
        let mut wrong = header(3, &[]);
        wrong[8] ^= 1;
        assert!(!recognises(&wrong));
        let mut late = vec![0; 8192];
        late.extend(header(3, &[]));
        assert!(!recognises(&late));
        let mut second = wrong.clone();
        second.extend(header(3, &[]));
        assert!(recognises(&second), "a wrong one does not hide a right one");
    }
}
