//! The PVH handover: `hvm_start_info`, as `qemu -kernel` gives it.
//!
//! Pins Xen `docs/misc/pvh.pandoc` and the public header `arch-x86/hvm/start_info.h` (version 1 of the structure, which
//! brought the memory map; version 0 is refused). Pure: the hardware part is the 32-bit entry in `entry`.

use crate::{BootError, BootInfo, MemoryKind, PhysicalMemory, PhysicalRange, Protocol, info};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// `XEN_HVM_START_MAGIC_VALUE`.
pub const MAGIC: u32 = 0x336e_c578;

/// The first version with a memory map.
const VERSION_WITH_MEMORY_MAP: u32 = 1;

/// Most entries of the structure's tables that are walked; beyond is nonsense.
const MAX_ENTRIES: u32 = 4096;

/// `struct hvm_start_info`.
#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    _flags: u32,
    module_count: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    _reserved: u32,
}

const _: () = assert!(size_of::<StartInfo>() == 56);
const _: () = assert!(core::mem::offset_of!(StartInfo, memory_map) == 40);

/// `struct hvm_modlist_entry`.
#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct ModuleEntry {
    address: u64,
    size: u64,
    command_line: u64,
    _reserved: u64,
}

const _: () = assert!(size_of::<ModuleEntry>() == 32);

/// `struct hvm_memmap_table_entry`.
#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct MemoryMapEntry {
    address: u64,
    size: u64,
    kind: u32,
    _reserved: u32,
}

const _: () = assert!(size_of::<MemoryMapEntry>() == 24);

/// Reads the structure at physical `address` and what it points to.
///
/// A nameless module that is a newc archive becomes one module per file; any other module keeps the name that its own
/// command line gives.
///
/// # Errors
/// Whatever is cut short, out of reach or contradicts itself.
pub fn parse<'a>(
    memory: &impl PhysicalMemory<'a>,
    address: u64,
    image: PhysicalRange,
) -> Result<BootInfo<'a>, BootError> {
    let start: StartInfo = read(memory, address)?;
    if start.magic != MAGIC {
        return Err(BootError::BadMagic(start.magic));
    }
    if start.version < VERSION_WITH_MEMORY_MAP || start.memory_map == 0 || start.memory_map_entries == 0 {
        return Err(BootError::NoMemoryMap);
    }
    let mut info = BootInfo::new(Protocol::Pvh, image);
    info.rsdp = (start.rsdp != 0).then_some(start.rsdp);
    if start.command_line != 0 {
        let line = memory.string(start.command_line, info::MAX_COMMAND_LINE as u64);
        info.set_command_line(line.ok_or(BootError::CommandLineTooLong)?)?;
    }
    if start.memory_map_entries > MAX_ENTRIES {
        return Err(BootError::TooManyRegions);
    }
    for index in 0..start.memory_map_entries {
        let entry: MemoryMapEntry = element(memory, start.memory_map, index)?;
        info.add_region(entry.address, entry.size, MemoryKind::from_acpi(entry.kind))?;
    }
    if info.memory.is_empty() {
        return Err(BootError::NoMemoryMap);
    }
    if start.module_count > info::MAX_MODULES as u32 {
        return Err(BootError::TooManyModules);
    }
    for index in 0..start.module_count {
        let entry: ModuleEntry = element(memory, start.module_list, index)?;
        let bytes = memory.bytes(entry.address, entry.size).ok_or(BootError::ModuleOutOfReach(entry.address))?;
        let name = match entry.command_line {
            0 => &[],
            at => memory.string(at, info::MAX_COMMAND_LINE as u64).ok_or(BootError::ModuleNameNotText)?,
        };
        info.add_file(name, entry.address, bytes)?;
    }
    Ok(info)
}

/// The structure at `address`.
fn read<'a, T: FromBytes + KnownLayout + Immutable>(
    memory: &impl PhysicalMemory<'a>,
    address: u64,
) -> Result<T, BootError> {
    let bytes = memory.bytes(address, size_of::<T>() as u64).ok_or(BootError::InfoOutOfReach(address))?;
    T::read_from_bytes(bytes).map_err(|_| BootError::InfoOutOfReach(address))
}

/// Element `index` of the table at `table`.
fn element<'a, T: FromBytes + KnownLayout + Immutable>(
    memory: &impl PhysicalMemory<'a>,
    table: u64,
    index: u32,
) -> Result<T, BootError> {
    let offset = u64::from(index) * size_of::<T>() as u64;
    read(memory, table.checked_add(offset).ok_or(BootError::InfoOutOfReach(table))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::fake::FakeMemory;

    const INFO: u64 = 0x1000;
    const MAP: u64 = 0x2000;
    const LIST: u64 = 0x3000;
    const LINE: u64 = 0x4000;
    const ARCHIVE: u64 = 0x10_0000;
    const IMAGE: PhysicalRange = PhysicalRange { start: 0x100_0000, end: 0x110_0000 };

    /// The bytes of a start info.
    fn start(version: u32, modules: u32, entries: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [MAGIC, version, 0, modules] {
            bytes.extend(word.to_le_bytes());
        }
        for long in [LIST, LINE, 0xf_0000, MAP] {
            bytes.extend(long.to_le_bytes());
        }
        bytes.extend(entries.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes
    }

    fn map(entries: &[(u64, u64, u32)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(at, size, kind) in entries {
            bytes.extend(at.to_le_bytes());
            bytes.extend(size.to_le_bytes());
            bytes.extend(u64::from(kind).to_le_bytes());
        }
        bytes
    }

    fn list(entries: &[(u64, u64, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(at, size, line) in entries {
            for long in [at, size, line, 0] {
                bytes.extend(long.to_le_bytes());
            }
        }
        bytes
    }

    fn machine(info: Vec<u8>) -> FakeMemory {
        let archive = crate::cpio::tests::archive(&[("vmlinuz", b"kernel"), ("vm.cmdline", b"quiet")]);
        FakeMemory::default()
            .with(INFO, info)
            .with(MAP, map(&[(0, 0x9fc00, 1), (0x9fc00, 0x400, 2), (0x10_0000, 0x3ff0_0000, 1), (0xf000, 1, 77)]))
            .with(LIST, list(&[(ARCHIVE, archive.len() as u64, 0)]))
            .with(LINE, *b"vm.memory=1\0")
            .with(ARCHIVE, archive)
    }

    #[test]
    fn all_of_it_is_read() {
        let memory = machine(start(1, 1, 4));
        let info = parse(&&memory, INFO, IMAGE).ok().unwrap();
        assert_eq!(info.memory.len(), 4);
        assert_eq!(info.memory[0].kind, MemoryKind::Usable);
        assert_eq!(info.memory[1].range, PhysicalRange { start: 0x9fc00, end: 0xa0000 });
        assert_eq!(info.memory[3].kind, MemoryKind::Unknown(77));
        assert_eq!(info.command_line.as_str(), "vm.memory=1");
        assert_eq!(info.rsdp, Some(0xf_0000));
        assert_eq!(info.image, IMAGE);
        assert_eq!(info.occupied.len(), 1);
        let kernel = info.module("vmlinuz").unwrap();
        assert_eq!(kernel.bytes, b"kernel");
        assert_eq!((&memory).bytes(kernel.range.start, 6), Some(&b"kernel"[..]), "the range says where it is");
        assert_eq!(info.module("vm.cmdline").unwrap().bytes, b"quiet");
        assert!(info.module("other").is_none());
    }

    #[test]
    fn a_memory_map_of_empty_regions_is_none() {
        let regions = map(&[(0x1000, 0, 1)]);
        let memory = FakeMemory::default().with(INFO, start(1, 0, 1)).with(MAP, regions).with(LINE, *b"\0");
        assert_eq!(parse(&&memory, INFO, IMAGE).err(), Some(BootError::NoMemoryMap));
    }

    #[test]
    fn a_named_module_is_not_unpacked() {
        let archive = crate::cpio::tests::archive(&[("inner", b"x")]);
        let memory = FakeMemory::default()
            .with(INFO, start(1, 1, 1))
            .with(MAP, map(&[(0, 0x1000, 1)]))
            .with(LIST, list(&[(ARCHIVE, archive.len() as u64, LINE + 20)]))
            .with(LINE, *b"line\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0initrd\0")
            .with(ARCHIVE, archive.clone());
        let info = parse(&&memory, INFO, IMAGE).ok().unwrap();
        assert_eq!(info.modules.len(), 1);
        assert_eq!(info.module("initrd").unwrap().bytes, archive);
    }

    #[test]
    fn the_wrong_structure_is_refused() {
        let error = |bytes| parse(&&machine(bytes), INFO, IMAGE).err();
        assert_eq!(error(vec![0; 56]), Some(BootError::BadMagic(0)));
        assert_eq!(error(start(0, 1, 4)), Some(BootError::NoMemoryMap));
        assert_eq!(error(start(1, 1, 0)), Some(BootError::NoMemoryMap));
        assert_eq!(error(start(1, 1, 5)), Some(BootError::InfoOutOfReach(MAP + 4 * 24)));
        assert_eq!(error(start(1, 1, u32::MAX)), Some(BootError::TooManyRegions));
        assert_eq!(error(start(1, 2, 4)), Some(BootError::InfoOutOfReach(LIST + 32)));
        assert_eq!(error(start(1, u32::MAX, 4)), Some(BootError::TooManyModules));
        for length in 0..56 {
            assert_eq!(error(start(1, 1, 4)[..length].to_vec()), Some(BootError::InfoOutOfReach(INFO)));
        }
        assert_eq!(
            parse(&&machine(start(1, 1, 4)), u64::MAX - 8, IMAGE).err(),
            Some(BootError::InfoOutOfReach(u64::MAX - 8))
        );
    }

    #[test]
    fn hostile_pointers_are_refused() {
        let with = |address: u64, bytes: Vec<u8>| {
            // Later pieces lose: the hostile one comes first.
            let mut memory = FakeMemory::default().with(address, bytes);
            for (at, piece) in [
                (INFO, start(1, 1, 1)),
                (MAP, map(&[(0, 0x1000, 1)])),
                (LIST, list(&[(ARCHIVE, 4, 0)])),
                (LINE, b"x\0".to_vec()),
                (ARCHIVE, vec![1, 2, 3, 4]),
            ] {
                memory = memory.with(at, piece);
            }
            parse(&&memory, INFO, IMAGE).err()
        };
        assert_eq!(with(0, vec![]), None);
        assert_eq!(with(MAP, map(&[(u64::MAX, 2, 1)])), Some(BootError::RegionWraps(u64::MAX)));
        assert_eq!(with(LIST, list(&[(ARCHIVE, 5, 0)])), Some(BootError::ModuleOutOfReach(ARCHIVE)));
        assert_eq!(with(LIST, list(&[(u64::MAX, u64::MAX, 0)])), Some(BootError::ModuleOutOfReach(u64::MAX)));
        assert_eq!(with(LINE, vec![b'x'; 5000]), Some(BootError::CommandLineTooLong));
        assert_eq!(with(LINE, vec![0xff, 0]), Some(BootError::CommandLineNotText));
        assert_eq!(with(LIST, list(&[(ARCHIVE, 4, 0x77)])), Some(BootError::ModuleNameNotText));
        assert_eq!(with(ARCHIVE, b"070701".to_vec()), None, "four bytes of it are no archive");
        assert_eq!(with(IMAGE.start, vec![0; 8]), None);
        let over = FakeMemory::default()
            .with(INFO, start(1, 1, 1))
            .with(MAP, map(&[(0, 0x1000, 1)]))
            .with(LINE, *b"\0")
            .with(LIST, list(&[(IMAGE.start + 1, 4, 0)]))
            .with(IMAGE.start, vec![0; 16]);
        assert_eq!(parse(&&over, INFO, IMAGE).err(), Some(BootError::LoadedOverImage(IMAGE.start + 1)));
    }

    #[test]
    fn a_damaged_archive_is_refused() {
        let memory = FakeMemory::default()
            .with(INFO, start(1, 1, 1))
            .with(MAP, map(&[(0, 0x1000, 1)]))
            .with(LINE, *b"\0")
            .with(LIST, list(&[(ARCHIVE, 8, 0)]))
            .with(ARCHIVE, *b"07070100");
        assert_eq!(parse(&&memory, INFO, IMAGE).err(), Some(BootError::DamagedArchive(0)));
    }
}
