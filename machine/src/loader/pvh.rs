//! ELF kernels that start by Xen's PVH protocol: Linux's `vmlinux`, FreeBSD, Xen, the tiny guests, and Gearshift itself.
//!
//! Manual: Xen 4.19 `docs/misc/pvh.pandoc` and `xen/include/public/arch-x86/hvm/start_info.h`.

use super::bytes::Record;
use super::elf::Elf;
use super::placement::{
    COMMAND_LINE, COMMAND_LINE_SIZE, FOUR_GIB, Room, START_INFO, START_INFO_SIZE, write_command_line,
};
use super::{LoadError, MemoryLayout, Payload, start};
use memory::{Gpa, GuestMemory};
use vcpu::{ArchState, Gpr};

const OWNER: &[u8] = b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u32 = 18;
/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;
/// The version that brought the memory map.
const START_VERSION: u32 = 1;
/// Sizes of `hvm_start_info`, `hvm_modlist_entry` and `hvm_memmap_table_entry`.
const START_SIZE: usize = 56;
const MODULE_SIZE: usize = 32;
const MAP_ENTRY_SIZE: usize = 24;

/// Loads an ELF kernel by its PVH note. See [`super::load`].
///
/// # Errors
/// See [`LoadError`].
pub fn load(
    payload: &Payload<'_>,
    layout: &MemoryLayout<'_>,
    memory: &impl GuestMemory,
) -> Result<ArchState, LoadError> {
    let elf = Elf::parse(payload.image)?;
    let entry = match elf.note(OWNER, PHYS32_ENTRY)? {
        // The descriptor is as long as a pointer of the file's class, or as a 32-bit one.
        Some(&[a, b, c, d]) | Some(&[a, b, c, d, 0, 0, 0, 0]) => u32::from_le_bytes([a, b, c, d]),
        Some(_) => return Err(LoadError::Malformed("its PVH note holds no 32-bit address")),
        None => {
            return Err(LoadError::Unsupported(
                "the kernel is an ELF file without a PVH entry: build Linux with CONFIG_PVH, or use its bzImage",
            ));
        }
    };
    let mut room = Room::new(layout)?;
    elf.load(&mut room, memory)?;
    write_command_line(payload.command_line, COMMAND_LINE_SIZE, memory)?;
    write_start_info(payload, layout, &mut room, memory)?;
    Ok(start::with(start::flat32(entry, memory)?, Gpr::Rbx, START_INFO))
}

/// Places the modules and writes `hvm_start_info` with its lists and the modules' command lines behind it.
fn write_start_info(
    payload: &Payload<'_>,
    layout: &MemoryLayout<'_>,
    room: &mut Room<'_>,
    memory: &impl GuestMemory,
) -> Result<(), LoadError> {
    let modules_at = START_INFO as usize + START_SIZE;
    let map_at = modules_at + payload.modules.len() * MODULE_SIZE;
    let lines_at = map_at + layout.regions.len() * MAP_ENTRY_SIZE;
    let lines: usize = payload.modules.iter().map(|module| module.command_line.len() + 1).sum();
    if lines_at + lines > START_INFO as usize + START_INFO_SIZE {
        return Err(LoadError::Unsupported(
            "the modules, their command lines and the memory map do not fit into 32 KiB",
        ));
    }
    let mut info = Record::default();
    info.dword(START_MAGIC).dword(START_VERSION).dword(0).dword(payload.modules.len() as u32);
    info.qword(if payload.modules.is_empty() { 0 } else { modules_at as u64 });
    info.qword(COMMAND_LINE).qword(layout.rsdp.map_or(0, |rsdp| rsdp.0));
    info.qword(map_at as u64).dword(layout.regions.len() as u32).dword(0);
    let mut line_at = lines_at;
    for module in payload.modules {
        let place = room.take_highest("modules", module.bytes.len() as u64, FOUR_GIB)?;
        memory.write(place, module.bytes)?;
        let line = if module.command_line.is_empty() { 0 } else { line_at as u64 };
        info.qword(place.0).qword(module.bytes.len() as u64).qword(line).qword(0);
        line_at += module.command_line.len() + 1;
    }
    for region in layout.regions {
        info.qword(region.start.0).qword(region.len).dword(region.kind as u32).dword(0);
    }
    for module in payload.modules {
        info.0.extend_from_slice(module.command_line);
        info.0.push(0);
    }
    Ok(memory.write(Gpa(START_INFO), &info.0)?)
}

#[cfg(test)]
mod tests {
    use super::super::Module;
    use super::super::elf::{Class, tests as elf};
    use super::super::tests::{MIB, RSDP, bytes_at, dword_at, qword_at, ram, regions};
    use super::*;
    use alloc::vec;
    use vcpu::SegmentName;

    const TOP: u64 = 16 * MIB;

    fn load(image: &[u8], modules: &[Module<'_>]) -> Result<(ArchState, memory::SparseMemory), LoadError> {
        let memory = ram(TOP);
        let regions = regions(TOP);
        let layout = MemoryLayout { regions: &regions, rsdp: Some(RSDP) };
        let payload = Payload { image, modules, command_line: b"a=b" };
        super::super::load(&payload, &layout, &memory).map(|state| (state, memory))
    }

    fn image(class: Class, entry: &[u8]) -> vec::Vec<u8> {
        elf::file(class, 0xdead_beef, 2 * MIB, b"kernel", 8, &elf::note(b"Xen\0", 18, entry))
    }

    #[test]
    fn both_classes_start_at_the_notes_address_in_flat_32_bit_mode() {
        for (class, note) in [
            (Class::Bits32, &0x20_0004_u32.to_le_bytes()[..]),
            (Class::Bits64, &0x20_0004_u64.to_le_bytes()),
            (Class::Bits64, &0x20_0004_u32.to_le_bytes()),
        ] {
            let (state, memory) = load(&image(class, note), &[]).unwrap();
            assert_eq!(state.rip, 0x20_0004);
            assert_eq!((state.cr0, state.cr4, state.efer), (0x11, 0, 0));
            assert_eq!(state.segment(SegmentName::Cs).attributes.into_bits(), 0xc09b);
            assert_eq!(state.segment(SegmentName::Tr).limit, 0x67);
            assert_eq!(bytes_at(&memory, 2 * MIB, 7), b"kernel\0");
        }
    }

    #[test]
    fn start_info_leads_to_map_modules_and_command_lines() {
        let modules =
            [Module { bytes: &[5; 4097], command_line: b"first" }, Module { bytes: &[6; 10], command_line: b"" }];
        let (state, memory) = load(&image(Class::Bits64, &0x20_0000_u32.to_le_bytes()), &modules).unwrap();
        let info = state.gprs.get(Gpr::Rbx);
        assert_eq!((dword_at(&memory, info), dword_at(&memory, info + 4)), (0x336e_c578, 1));
        assert_eq!(bytes_at(&memory, qword_at(&memory, info + 24), 4), b"a=b\0");
        assert_eq!(qword_at(&memory, info + 32), RSDP.0);
        assert_eq!(dword_at(&memory, info + 12), 2);
        let list = qword_at(&memory, info + 16);
        assert_eq!((qword_at(&memory, list), qword_at(&memory, list + 8)), (TOP - 0x2000, 4097));
        assert_eq!(bytes_at(&memory, TOP - 0x2000, 1), [5]);
        assert_eq!(bytes_at(&memory, qword_at(&memory, list + 16), 6), b"first\0");
        assert_eq!((qword_at(&memory, list + 32), qword_at(&memory, list + 48)), (TOP - 0x3000, 0));
        let map = qword_at(&memory, info + 40);
        assert_eq!(dword_at(&memory, info + 48), 3);
        assert_eq!((qword_at(&memory, map + 48), qword_at(&memory, map + 56)), (MIB, TOP - MIB));
        assert_eq!(dword_at(&memory, map + 24 + 16), 2);
    }

    #[test]
    fn a_kernel_without_the_note_or_with_a_wrong_one_is_refused() {
        let without = elf::file(Class::Bits64, 0, 2 * MIB, b"x", 0, &elf::note(b"GNU\0", 18, &[0; 4]));
        assert!(matches!(load(&without, &[]), Err(LoadError::Unsupported(text)) if text.contains("PVH")));
        for wrong in [&[1, 2, 3][..], &[0, 0, 0x20, 0, 1, 0, 0, 0], &[]] {
            assert!(matches!(load(&image(Class::Bits64, wrong), &[]), Err(LoadError::Malformed(_))));
        }
    }

    #[test]
    fn modules_that_do_not_fit_are_refused() {
        let large = vec![0; TOP as usize];
        let module = Module { bytes: &large, command_line: b"" };
        let image = image(Class::Bits32, &0x20_0000_u32.to_le_bytes());
        assert_eq!(load(&image, &[module]).err(), Some(LoadError::NoRoom { what: "modules", bytes: TOP }));
        let line = vec![b'x'; START_INFO_SIZE];
        let module = Module { bytes: &[], command_line: &line };
        assert!(matches!(load(&image, &[module]), Err(LoadError::Unsupported(_))));
    }
}
