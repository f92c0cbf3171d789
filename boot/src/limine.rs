//! The Limine handover: the responses to our requests.
//!
//! Pins The Limine Boot Protocol, base revision 2, "Feature List". Pure: the requests and the 64-bit entry are in
//! `limine_entry`.
//!
//! Limine's pointers are virtual, in its direct map of all RAM; whatever is not in that is refused. Its structures lie in
//! memory that it calls reclaimable and that is never reclaimed here, so nothing has to be noted as occupied but modules.

use crate::{BootError, BootInfo, MemoryKind, PhysicalMemory, PhysicalRange, Protocol, cpio, info};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Most modules and regions that are walked; beyond is nonsense.
const MAX_ENTRIES: u64 = 4096;

/// Longest path and string of a file, in bytes.
const MAX_TEXT: u64 = info::MAX_COMMAND_LINE as u64;

/// Where Limine put its responses: virtual addresses, `None` where it gave none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handover {
    /// Virtual address at which Limine maps physical address 0.
    pub direct_map: u64,
    /// "Memory Map Feature".
    pub memory_map: Option<u64>,
    /// "Module Feature".
    pub modules: Option<u64>,
    /// "Executable File Feature", for the command line.
    pub file: Option<u64>,
    /// "RSDP Feature".
    pub rsdp: Option<u64>,
}

/// The responses to the memory map and module requests: a count and an array of pointers.
#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct List {
    _revision: u64,
    count: u64,
    entries: u64,
}

const _: () = assert!(size_of::<List>() == 24);

/// An entry of the memory map.
#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Region {
    base: u64,
    length: u64,
    kind: u64,
}

const _: () = assert!(size_of::<Region>() == size_of::<limine::memory_map::Entry>());

/// The responses to the executable file and RSDP requests: one pointer.
#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Pointer {
    _revision: u64,
    address: u64,
}

/// The start of "File Structure".
#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct File {
    _revision: u64,
    address: u64,
    size: u64,
    path: u64,
    string: u64,
}

const _: () = assert!(core::mem::offset_of!(File, string) == 32);

/// What a type of "Memory Map Feature" means.
const fn memory_kind(code: u64) -> MemoryKind {
    match code {
        0 => MemoryKind::Usable,
        // The framebuffer is memory of a device.
        1 | 7 => MemoryKind::Reserved,
        2 => MemoryKind::AcpiTables,
        3 => MemoryKind::AcpiNonVolatile,
        4 => MemoryKind::Defective,
        // Limine's own, and the image with the modules.
        5 | 6 => MemoryKind::Loader,
        other => MemoryKind::Unknown(if other > u32::MAX as u64 { u32::MAX } else { other as u32 }),
    }
}

/// Limine's memory by its virtual addresses.
struct Virtual<'m, M> {
    memory: &'m M,
    direct_map: u64,
}

impl<'a, M: PhysicalMemory<'a>> Virtual<'_, M> {
    /// The physical address behind a pointer.
    fn physical(&self, pointer: u64) -> Result<u64, BootError> {
        pointer.checked_sub(self.direct_map).ok_or(BootError::InfoOutOfReach(pointer))
    }

    /// The structure behind a pointer.
    fn read<T: FromBytes + KnownLayout + Immutable>(&self, pointer: u64) -> Result<T, BootError> {
        let bytes = self.memory.bytes(self.physical(pointer)?, size_of::<T>() as u64);
        let bytes = bytes.ok_or(BootError::InfoOutOfReach(pointer))?;
        T::read_from_bytes(bytes).map_err(|_| BootError::InfoOutOfReach(pointer))
    }

    /// The structure behind pointer `index` of a list.
    fn element<T: FromBytes + KnownLayout + Immutable>(&self, list: &List, index: u64) -> Result<T, BootError> {
        let place = list.entries.checked_add(index * 8).ok_or(BootError::InfoOutOfReach(list.entries))?;
        self.read(self.read::<u64>(place)?)
    }

    /// The string behind a pointer; empty where there is none.
    fn string(&self, pointer: u64) -> Result<&'a [u8], BootError> {
        if pointer == 0 {
            return Ok(&[]);
        }
        self.memory.string(self.physical(pointer)?, MAX_TEXT).ok_or(BootError::CommandLineTooLong)
    }
}

/// Reads the responses. `low` reaches what is always mapped, the first 4 GiB, where Limine keeps its structures; `whole`
/// reaches all RAM of Limine's memory map, and is asked only for what that map says is there.
///
/// A module's name is the first word of its string, without one the last part of its path; a module without a string that
/// is a newc archive becomes one module per file.
///
/// # Errors
/// Whatever is missing, out of reach or contradicts itself.
pub fn parse<'a, M: PhysicalMemory<'a>>(
    low: &M,
    whole: &M,
    handover: &Handover,
    image: PhysicalRange,
) -> Result<BootInfo<'a>, BootError> {
    let memory = Virtual { memory: low, direct_map: handover.direct_map };
    let mut info = BootInfo::new(Protocol::Limine, image);
    let list: List = memory.read(handover.memory_map.ok_or(BootError::NoMemoryMap)?)?;
    if list.count > MAX_ENTRIES {
        return Err(BootError::TooManyRegions);
    }
    for index in 0..list.count {
        let region: Region = memory.element(&list, index)?;
        info.add_region(region.base, region.length, memory_kind(region.kind))?;
    }
    if info.memory.is_empty() {
        return Err(BootError::NoMemoryMap);
    }
    if let Some(pointer) = handover.file {
        let file: File = memory.read(memory.read::<Pointer>(pointer)?.address)?;
        info.set_command_line(memory.string(file.string)?)?;
    }
    if let Some(pointer) = handover.rsdp {
        let address = memory.read::<Pointer>(pointer)?.address;
        // Virtual up to base revision 2, physical in the next one.
        info.rsdp = Some(address.checked_sub(handover.direct_map).unwrap_or(address));
    }
    if let Some(pointer) = handover.modules {
        let list: List = memory.read(pointer)?;
        if list.count > info::MAX_MODULES as u64 {
            return Err(BootError::TooManyModules);
        }
        for index in 0..list.count {
            let file: File = memory.element(&list, index)?;
            add_module(&mut info, &memory, whole, &file)?;
        }
    }
    Ok(info)
}

/// One file that Limine loaded.
fn add_module<'a, M: PhysicalMemory<'a>>(
    info: &mut BootInfo<'a>,
    memory: &Virtual<'_, M>,
    whole: &M,
    file: &File,
) -> Result<(), BootError> {
    let start = memory.physical(file.address)?;
    let out_of_reach = BootError::ModuleOutOfReach(start);
    let range = PhysicalRange::new(start, file.size).ok_or(out_of_reach)?;
    let holds = |region: &crate::MemoryRegion| region.kind == MemoryKind::Loader && region.range.contains(range);
    let place = if info.memory.iter().any(holds) { whole } else { memory.memory };
    let bytes = place.bytes(start, file.size).ok_or(out_of_reach)?;
    let string = memory.string(file.string)?;
    let name = match string.split(|&byte| byte == b' ').next().unwrap_or(&[]) {
        [] if cpio::is_archive(bytes) => &[],
        [] => memory.string(file.path)?.rsplit(|&byte| byte == b'/').next().unwrap_or(&[]),
        word => word,
    };
    info.add_file(name, start, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::fake::FakeMemory;

    const MAP: u64 = 0xffff_8000_0000_0000;
    const LISTS: u64 = 0x1000;
    const REGIONS: u64 = 0x2000;
    const FILES: u64 = 0x3000;
    const TEXTS: u64 = 0x4000;
    const KERNEL: u64 = 0x20_0000;
    const ARCHIVE: u64 = 0x1_4000_0000;
    const IMAGE: PhysicalRange = PhysicalRange { start: 0x70_0000, end: 0x80_0000 };

    fn longs(values: &[u64]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    /// The responses: memory map at 0x1000, modules at 0x1100, file at 0x1200, RSDP at 0x1300.
    fn lists() -> Vec<u8> {
        let mut bytes = longs(&[0, 3, MAP + LISTS + 0x20, 0, MAP + REGIONS, MAP + REGIONS + 24, MAP + REGIONS + 48]);
        bytes.resize(0x100, 0);
        bytes.extend(longs(&[0, 2, MAP + LISTS + 0x120, 0, MAP + FILES, MAP + FILES + 40]));
        bytes.resize(0x200, 0);
        bytes.extend(longs(&[0, MAP + FILES + 80]));
        bytes.resize(0x300, 0);
        bytes.extend(longs(&[0, MAP + 0xf_5a00]));
        bytes
    }

    fn regions() -> Vec<u8> {
        longs(&[0, 0x9_f000, 0, 0x10_0000, 0x700_0000, 6, 0x1_4000_0000, 0x10_0000, 6])
    }

    fn files(archive_size: u64) -> Vec<u8> {
        longs(
            &[
                [0, MAP + KERNEL, 6, MAP + TEXTS, MAP + TEXTS + 0x20],
                [0, MAP + ARCHIVE, archive_size, MAP + TEXTS + 0x40, MAP + TEXTS + 0x60],
                [0, MAP + IMAGE.start, 0x1000, MAP + TEXTS + 0x40, MAP + TEXTS + 0x80],
            ]
            .concat(),
        )
    }

    fn texts() -> Vec<u8> {
        let mut bytes = Vec::new();
        for text in ["/modules/vmlinuz", "kernel with words", "/boot/parts", "", "vm.memory=1G"] {
            let end = bytes.len() + 0x20;
            bytes.extend(text.bytes());
            bytes.resize(end, 0);
        }
        bytes
    }

    fn archive() -> Vec<u8> {
        crate::cpio::tests::archive(&[("initrd", b"disk"), ("vm.cmdline", b"quiet")])
    }

    fn handover() -> Handover {
        Handover {
            direct_map: MAP,
            memory_map: Some(MAP + LISTS),
            modules: Some(MAP + LISTS + 0x100),
            file: Some(MAP + LISTS + 0x200),
            rsdp: Some(MAP + LISTS + 0x300),
        }
    }

    /// Low memory, with `changed` in the place of what lies at the same address.
    fn low(changed: Option<(u64, Vec<u8>)>) -> FakeMemory {
        let mut memory = FakeMemory::default();
        if let Some((at, bytes)) = changed {
            memory = memory.with(at, bytes);
        }
        memory
            .with(LISTS, lists())
            .with(REGIONS, regions())
            .with(FILES, files(archive().len() as u64))
            .with(TEXTS, texts())
            .with(KERNEL, *b"kernel")
    }

    fn parse_with(changed: Option<(u64, Vec<u8>)>) -> Result<Vec<String>, BootError> {
        let low = low(changed);
        let whole = FakeMemory::default().with(KERNEL, *b"kernel").with(ARCHIVE, archive());
        let info = parse(&&low, &&whole, &handover(), IMAGE)?;
        Ok(info.modules.iter().map(|module| module.name.to_string()).collect())
    }

    #[test]
    fn all_of_it_is_read() {
        let low = low(None);
        let whole = FakeMemory::default().with(KERNEL, *b"kernel").with(ARCHIVE, archive());
        let info = parse(&&low, &&whole, &handover(), IMAGE).ok().unwrap();
        assert_eq!(info.protocol, Protocol::Limine);
        assert_eq!(info.memory.len(), 3);
        assert_eq!(info.memory[0].kind, MemoryKind::Usable);
        assert_eq!(info.memory[1].kind, MemoryKind::Loader);
        assert_eq!(info.command_line.as_str(), "vm.memory=1G");
        assert_eq!(info.rsdp, Some(0xf_5a00));
        assert_eq!(info.module("kernel").unwrap().range, PhysicalRange { start: KERNEL, end: KERNEL + 6 });
        assert_eq!(info.module("initrd").unwrap().bytes, b"disk", "an archive above 4 GiB is unpacked");
        assert_eq!(info.module("vm.cmdline").unwrap().bytes, b"quiet");
        assert_eq!(info.occupied.len(), 2);
    }

    #[test]
    fn a_physical_rsdp_is_taken_as_it_is() {
        let mut changed = lists();
        changed[0x308..0x310].copy_from_slice(&0xf_5a00u64.to_le_bytes());
        let low = low(Some((LISTS, changed)));
        let handover = Handover { modules: None, file: None, ..handover() };
        assert_eq!(parse(&&low, &&low, &handover, IMAGE).ok().unwrap().rsdp, Some(0xf_5a00));
    }

    #[test]
    fn a_file_without_a_string_is_known_by_its_path() {
        let mut changed = texts();
        changed[0x20] = 0;
        assert_eq!(parse_with(Some((TEXTS, changed))).unwrap()[0], "vmlinuz");
    }

    #[test]
    fn memory_kinds_are_those_of_the_protocol() {
        let kinds = [
            (0, MemoryKind::Usable),
            (1, MemoryKind::Reserved),
            (2, MemoryKind::AcpiTables),
            (3, MemoryKind::AcpiNonVolatile),
            (4, MemoryKind::Defective),
            (5, MemoryKind::Loader),
            (6, MemoryKind::Loader),
            (7, MemoryKind::Reserved),
            (8, MemoryKind::Unknown(8)),
            (u64::MAX, MemoryKind::Unknown(u32::MAX)),
        ];
        for (code, kind) in kinds {
            assert_eq!(memory_kind(code), kind);
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let low = low(None);
        let error = |handover| parse(&&low, &&low, &handover, IMAGE).err();
        assert_eq!(error(Handover { memory_map: None, ..handover() }), Some(BootError::NoMemoryMap));
        assert_eq!(error(Handover { modules: None, ..handover() }), None);
        assert_eq!(error(Handover { modules: None, file: None, rsdp: None, ..handover() }), None);
        assert_eq!(error(handover()), Some(BootError::ModuleOutOfReach(ARCHIVE)), "nothing is there");
    }

    #[test]
    fn hostile_lists_are_refused() {
        let with = |at: usize, value: u64| {
            let mut changed = lists();
            changed[at..at + 8].copy_from_slice(&value.to_le_bytes());
            parse_with(Some((LISTS, changed))).err()
        };
        assert_eq!(with(8, 0), Some(BootError::NoMemoryMap));
        assert_eq!(with(8, u64::MAX), Some(BootError::TooManyRegions));
        assert_eq!(with(8, MAX_ENTRIES), Some(BootError::InfoOutOfReach(0)), "a null entry");
        assert_eq!(with(16, u64::MAX - 7), Some(BootError::InfoOutOfReach(u64::MAX - 7)));
        assert_eq!(with(16, 0x20), Some(BootError::InfoOutOfReach(0x20)), "not in the direct map");
        assert_eq!(with(0x108, 65), Some(BootError::TooManyModules));
        assert_eq!(with(0x120, 7), Some(BootError::InfoOutOfReach(7)));
        assert_eq!(with(0x208, MAP), Some(BootError::InfoOutOfReach(MAP)));
    }

    #[test]
    fn hostile_files_are_refused() {
        let with = |at: usize, value: u64| {
            let mut changed = files(archive().len() as u64);
            changed[at..at + 8].copy_from_slice(&value.to_le_bytes());
            parse_with(Some((FILES, changed))).err()
        };
        assert_eq!(with(8, 5), Some(BootError::InfoOutOfReach(5)));
        assert_eq!(with(16, u64::MAX), Some(BootError::ModuleOutOfReach(KERNEL)));
        assert_eq!(with(8, MAP + IMAGE.start), Some(BootError::ModuleOutOfReach(IMAGE.start)));
        assert_eq!(with(32, MAP + 0x9999_0000), Some(BootError::CommandLineTooLong));
        assert_eq!(with(48, MAP + ARCHIVE + 4), Some(BootError::ModuleOutOfReach(ARCHIVE + 4)));
        let mut over = files(0);
        over[8..16].copy_from_slice(&(MAP + IMAGE.start).to_le_bytes());
        let low = low(Some((FILES, over))).with(IMAGE.start, vec![0; 0x1000]);
        assert_eq!(parse(&&low, &&low, &handover(), IMAGE).err(), Some(BootError::LoadedOverImage(IMAGE.start)));
    }

    #[test]
    fn every_truncation_and_change_ends_in_a_value() {
        let whole = FakeMemory::default().with(KERNEL, *b"kernel").with(ARCHIVE, archive());
        let pieces = [(LISTS, lists()), (REGIONS, regions()), (FILES, files(8)), (TEXTS, texts())];
        for (at, bytes) in &pieces {
            for length in 0..bytes.len() {
                let rest = pieces.iter().filter(|(other, _)| other != at);
                let memory = rest
                    .fold(FakeMemory::default().with(*at, bytes[..length].to_vec()), |memory, (at, bytes)| {
                        memory.with(*at, bytes.clone())
                    });
                let _ = parse(&&memory, &&whole, &handover(), IMAGE).map(|info| assert!(info.modules.len() <= 3));
            }
            for position in 0..bytes.len() {
                for value in [0, 1, 8, 0x7f, 0x80, 0xff] {
                    let mut changed = bytes.clone();
                    changed[position] = value;
                    let memory = low(Some((*at, changed)));
                    let _ = parse(&&memory, &&whole, &handover(), IMAGE).map(|info| assert!(info.modules.len() <= 64));
                }
            }
        }
    }
}
