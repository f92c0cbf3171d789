//! Linux bzImages of boot protocols 2.00 to 2.15 and later, by their 64-bit entry where they have one, else by the 32-bit one.
//!
//! Manual: Linux `Documentation/arch/x86/boot.rst` ("The Real-Mode Kernel Header", "32-bit Boot Protocol", "64-bit Boot
//! Protocol") and `zero-page.rst`, of Linux 6.12. A kernel before protocol 2.00, and a zImage, which loads low, are refused.

use super::bytes::{Record, Source};
use super::placement::{COMMAND_LINE, FOUR_GIB, ONE_MIB, Room, ZERO_PAGE, write_command_line};
use super::{LoadError, MemoryLayout, Payload, start};
use memory::{Gpa, GuestMemory, PAGE_SIZE};
use vcpu::{ArchState, Gpr};

/// Offsets in the first sectors of the image, and, at the same place, in the zero page.
mod header {
    pub const START: u64 = 0x1f1;
    pub const SETUP_SECTS: u64 = 0x1f1;
    pub const BOOT_FLAG: u64 = 0x1fe;
    pub const JUMP_TARGET: u64 = 0x201;
    /// The jump's target counts from here.
    pub const MAGIC: u64 = 0x202;
    pub const VERSION: u64 = 0x206;
    pub const TYPE_OF_LOADER: u64 = 0x210;
    pub const LOADFLAGS: u64 = 0x211;
    pub const CODE32_START: u64 = 0x214;
    pub const RAMDISK_IMAGE: u64 = 0x218;
    pub const RAMDISK_SIZE: u64 = 0x21c;
    pub const CMD_LINE_PTR: u64 = 0x228;
    pub const INITRD_ADDR_MAX: u64 = 0x22c;
    pub const KERNEL_ALIGNMENT: u64 = 0x230;
    pub const RELOCATABLE: u64 = 0x234;
    pub const XLOADFLAGS: u64 = 0x236;
    pub const CMDLINE_SIZE: u64 = 0x238;
    pub const PREF_ADDRESS: u64 = 0x258;
    pub const INIT_SIZE: u64 = 0x260;
    /// The header may grow up to the memory map in the zero page.
    pub const LIMIT: u64 = 0x290;
}

/// Offsets in `struct boot_params` outside the setup header.
mod zero_page {
    pub const EXT_MEM_K: usize = 0x002;
    pub const OLD_CL_MAGIC: usize = 0x020;
    pub const OLD_CL_OFFSET: usize = 0x022;
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const ALT_MEM_K: usize = 0x1e0;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const E820_TABLE: usize = 0x2d0;
    /// `E820_MAX_ENTRIES_ZEROPAGE`.
    pub const E820_MAX_ENTRIES: usize = 128;
}

/// "HdrS".
const MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
const SECTOR: u64 = 512;
const DEFAULT_SETUP_SECTS: u64 = 4;
/// `LOADED_HIGH` of loadflags.
const LOADED_HIGH: u8 = 1 << 0;
/// `XLF_KERNEL_64` of xloadflags: the 64-bit entry at 0x200 is there.
const XLF_KERNEL_64: u16 = 1 << 0;
const ENTRY_64: u64 = 0x200;
/// Loader type "undefined": no id is assigned to Gearshift.
const TYPE_UNDEFINED: u8 = 0xff;
/// `OLD_CL_MAGIC`, for kernels before protocol 2.02.
const OLD_COMMAND_LINE_MAGIC: u16 = 0xa33f;
/// Where an image that cannot be relocated is loaded.
const FIXED_ADDRESS: u64 = ONE_MIB;
/// What kernels before 2.06 take of a command line.
const OLD_COMMAND_LINE_SIZE: u32 = 255;
/// Where an initrd may end at the latest before 2.03 let the kernel say.
const OLD_INITRD_ADDR_MAX: u32 = 0x37ff_ffff;
/// Before 2.10 a kernel does not say how much memory it needs to unpack itself; this many times its image has been enough
/// for every compressor in use then.
const OLD_UNPACKED_TIMES: u64 = 5;

/// What of the setup header decides how the kernel is loaded.
#[derive(Debug, PartialEq, Eq)]
struct Setup<'a> {
    version: u16,
    /// The header as it goes to the zero page, from [`header::START`].
    raw: &'a [u8],
    /// The protected-mode kernel.
    kernel: &'a [u8],
    has_64_bit_entry: bool,
    /// Alignment when it may be relocated.
    relocatable: Option<u64>,
    preferred: u64,
    /// Memory that it needs from its load address on before it reads the memory map.
    init_size: u64,
    command_line_limit: usize,
    /// The last byte that an initrd may use.
    initrd_max: u64,
}

/// Whether the image has a Linux setup header, of whatever version.
pub fn recognises(image: &[u8]) -> bool {
    Source(image).dword(header::MAGIC) == Some(MAGIC)
}

impl<'a> Setup<'a> {
    fn parse(image: &'a [u8]) -> Result<Self, LoadError> {
        let source = Source(image);
        let cut = || LoadError::Truncated("setup header");
        if source.dword(header::MAGIC).ok_or_else(cut)? != MAGIC {
            return Err(LoadError::Unrecognised);
        }
        if source.word(header::BOOT_FLAG).ok_or_else(cut)? != BOOT_FLAG {
            return Err(LoadError::Malformed("it has a Linux setup header but no boot sector signature"));
        }
        let version = source.word(header::VERSION).ok_or_else(cut)?;
        if version < 0x200 {
            return Err(LoadError::Unsupported(
                "the Linux kernel's boot protocol is older than 2.00: use Linux 1.3.73 or later",
            ));
        }
        if source.byte(header::LOADFLAGS).ok_or_else(cut)? & LOADED_HIGH == 0 {
            return Err(LoadError::Unsupported(
                "the Linux kernel is a zImage, which loads below 1 MiB: use its bzImage",
            ));
        }
        let end = header::MAGIC + u64::from(source.byte(header::JUMP_TARGET).ok_or_else(cut)?);
        let raw = source.bytes(header::START, end.min(header::LIMIT) - header::START).ok_or_else(cut)?;
        // A field exists if the version has it and the header is long enough to hold it.
        let has = |since: u16, offset: u64, len: u64| version >= since && offset + len <= end;
        let dword = |since: u16, offset: u64, otherwise: u32| {
            if has(since, offset, 4) { source.dword(offset).ok_or_else(cut) } else { Ok(otherwise) }
        };

        let sectors = match u64::from(source.byte(header::SETUP_SECTS).ok_or_else(cut)?) {
            0 => DEFAULT_SETUP_SECTS,
            stated => stated,
        };
        let setup_size = (sectors + 1) * SECTOR;
        let kernel = image.get(setup_size as usize..).ok_or(LoadError::Truncated("real-mode part"))?;
        if kernel.is_empty() {
            return Err(LoadError::Truncated("real-mode part"));
        }

        let xloadflags = if has(0x20c, header::XLOADFLAGS, 2) { source.word(header::XLOADFLAGS) } else { Some(0) };
        let has_64_bit_entry = xloadflags.ok_or_else(cut)? & XLF_KERNEL_64 != 0;
        if has_64_bit_entry && kernel.len() as u64 <= ENTRY_64 {
            return Err(LoadError::Truncated("64-bit entry"));
        }
        let relocatable = has(0x205, header::RELOCATABLE, 1) && source.byte(header::RELOCATABLE) != Some(0);
        let alignment = u64::from(dword(0x205, header::KERNEL_ALIGNMENT, 0)?);
        if relocatable && !alignment.is_power_of_two() {
            return Err(LoadError::Malformed("its kernel_alignment is no power of two"));
        }
        let preferred = if has(0x20a, header::PREF_ADDRESS, 8) {
            source.qword(header::PREF_ADDRESS).ok_or_else(cut)?
        } else {
            FIXED_ADDRESS
        };
        let unpacked = (kernel.len() as u64).saturating_mul(OLD_UNPACKED_TIMES);
        let init_size = match dword(0x20a, header::INIT_SIZE, 0)? {
            0 => unpacked,
            stated => u64::from(stated),
        };
        let command_line_limit = match dword(0x206, header::CMDLINE_SIZE, OLD_COMMAND_LINE_SIZE)? {
            0 => OLD_COMMAND_LINE_SIZE,
            stated => stated,
        };
        Ok(Self {
            version,
            raw,
            kernel,
            has_64_bit_entry,
            relocatable: relocatable.then_some(alignment.max(PAGE_SIZE)),
            preferred,
            init_size: init_size.max(kernel.len() as u64),
            command_line_limit: usize::try_from(command_line_limit).unwrap_or(usize::MAX),
            initrd_max: dword(0x203, header::INITRD_ADDR_MAX, OLD_INITRD_ADDR_MAX)?.into(),
        })
    }

    /// Takes the memory that the kernel runs in and returns where its image goes.
    fn place(&self, room: &mut Room<'_>) -> Result<u64, LoadError> {
        if let Some(alignment) = self.relocatable {
            let wanted = self.preferred;
            let fits = wanted >= ONE_MIB && wanted.is_multiple_of(alignment) && wanted < FOUR_GIB;
            if fits && room.is_free(wanted, self.init_size) {
                room.take(wanted, self.init_size)?;
                return Ok(wanted);
            }
            return Ok(room.take_lowest("kernel", self.init_size, ONE_MIB, FOUR_GIB, alignment)?.0);
        }
        // It moves itself to its preferred address, so the memory from here to the end of its stay there is its own.
        let end = self.preferred.max(FIXED_ADDRESS).saturating_add(self.init_size);
        room.take(FIXED_ADDRESS, end - FIXED_ADDRESS)?;
        Ok(FIXED_ADDRESS)
    }
}

/// Loads a bzImage. See [`super::load`].
///
/// # Errors
/// See [`LoadError`].
pub fn load(
    payload: &Payload<'_>,
    layout: &MemoryLayout<'_>,
    memory: &impl GuestMemory,
) -> Result<ArchState, LoadError> {
    let setup = Setup::parse(payload.image)?;
    let mut room = Room::new(layout)?;
    let at = setup.place(&mut room)?;
    let initrd = match payload.modules {
        [] => None,
        [one] => {
            Some((room.take_highest("initrd", one.bytes.len() as u64, (setup.initrd_max + 1).min(FOUR_GIB))?, one))
        }
        more => return Err(LoadError::TooManyModules { count: more.len(), limit: 1 }),
    };
    write_command_line(payload.command_line, setup.command_line_limit, memory)?;
    memory.write(Gpa(at), setup.kernel)?;
    let mut page = boot_params(&setup, at, layout)?;
    if let Some((place, module)) = initrd {
        memory.write(place, module.bytes)?;
        page.put(header::RAMDISK_IMAGE as usize, &(place.0 as u32).to_le_bytes());
        page.put(header::RAMDISK_SIZE as usize, &(module.bytes.len() as u32).to_le_bytes());
    }
    memory.write(Gpa(ZERO_PAGE), &page.0)?;
    let state =
        if setup.has_64_bit_entry { start::long64(at + ENTRY_64, memory)? } else { start::flat32(at as u32, memory)? };
    Ok(start::with(state, Gpr::Rsi, ZERO_PAGE))
}

/// The zero page but for the initrd.
fn boot_params(setup: &Setup<'_>, at: u64, layout: &MemoryLayout<'_>) -> Result<Record, LoadError> {
    let mut page = Record::zeroed(PAGE_SIZE as usize);
    page.put(header::START as usize, setup.raw);
    page.put(header::TYPE_OF_LOADER as usize, &[TYPE_UNDEFINED]);
    page.put(header::CODE32_START as usize, &(at as u32).to_le_bytes());
    page.put(header::RAMDISK_IMAGE as usize, &[0; 8]);
    if setup.version >= 0x202 {
        page.put(header::CMD_LINE_PTR as usize, &(COMMAND_LINE as u32).to_le_bytes());
    } else {
        page.put(zero_page::OLD_CL_MAGIC, &OLD_COMMAND_LINE_MAGIC.to_le_bytes());
        page.put(zero_page::OLD_CL_OFFSET, &((COMMAND_LINE - ZERO_PAGE) as u16).to_le_bytes());
    }
    if let Some(rsdp) = layout.rsdp {
        page.put(zero_page::ACPI_RSDP_ADDR, &rsdp.0.to_le_bytes());
    }
    let count = layout.regions.len();
    if count > zero_page::E820_MAX_ENTRIES {
        return Err(LoadError::Unsupported(
            "the guest's memory map has more than 128 ranges, which no zero page holds",
        ));
    }
    page.put(zero_page::E820_ENTRIES, &[count as u8]);
    for (index, region) in layout.regions.iter().enumerate() {
        let mut entry = Record::default();
        entry.qword(region.start.0).qword(region.len).dword(region.kind as u32);
        page.put(zero_page::E820_TABLE + index * entry.0.len(), &entry.0);
    }
    // Kernels that know no e820 take the memory above 1 MiB from these two, in KiB.
    let extended = layout.regions.iter().find(|region| region.start.0 == ONE_MIB).map_or(0, |region| region.len >> 10);
    page.put(zero_page::EXT_MEM_K, &(extended.min(0xffff) as u16).to_le_bytes());
    page.put(zero_page::ALT_MEM_K, &(extended.min(u32::MAX.into()) as u32).to_le_bytes());
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{MIB, RSDP, bytes_at, dword_at, qword_at, ram, regions};
    use super::super::{Module, Region, RegionKind};
    use super::*;
    use alloc::{vec, vec::Vec};
    use vcpu::{CodeSize, SegmentName};

    const TOP: u64 = 64 * MIB;

    /// A kernel image of protocol `version` with a header of full length.
    fn image(version: u16) -> Vec<u8> {
        let mut image = vec![0; 2 * 512];
        image.extend((0..0x3000_u32).map(|n| n as u8 ^ 0x5a));
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1fe, &[0x55, 0xaa]);
        put(0x200, &[0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &version.to_le_bytes());
        put(0x211, &[1]);
        put(0x214, &0x10_0000_u32.to_le_bytes());
        put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
        put(0x230, &0x20_0000_u32.to_le_bytes());
        put(0x234, &[1]);
        put(0x236, &[1, 0]);
        put(0x238, &2047_u32.to_le_bytes());
        put(0x258, &0x100_0000_u64.to_le_bytes());
        put(0x260, &0x80_0000_u32.to_le_bytes());
        image
    }

    fn started(
        image: &[u8],
        initrd: Option<&[u8]>,
        line: &[u8],
        top: u64,
    ) -> Result<(ArchState, memory::SparseMemory), LoadError> {
        let memory = ram(top);
        let regions = regions(top);
        let layout = MemoryLayout { regions: &regions, rsdp: Some(RSDP) };
        let modules: Vec<Module<'_>> = initrd.map(|bytes| Module { bytes, command_line: b"" }).into_iter().collect();
        let payload = Payload { image, modules: &modules, command_line: line };
        load(&payload, &layout, &memory).map(|state| (state, memory))
    }

    #[test]
    fn a_current_kernel_starts_at_its_64_bit_entry_at_the_preferred_address() {
        let (state, memory) = started(&image(0x20f), Some(&[7; 5000]), b"console=ttyS0", TOP).unwrap();
        assert_eq!(state.rip, 0x100_0200);
        assert_eq!(CodeSize::of(state.efer, state.segment(SegmentName::Cs).attributes), CodeSize::Bits64);
        assert_eq!(bytes_at(&memory, 0x100_0000, 3), [0x5a, 0x5b, 0x58]);
        let page = state.gprs.get(Gpr::Rsi);
        assert_eq!(bytes_at(&memory, page + 0x202, 4), b"HdrS");
        assert_eq!(bytes_at(&memory, page + 0x210, 1), [0xff]);
        let line = u64::from(dword_at(&memory, page + 0x228));
        assert_eq!(bytes_at(&memory, line, 14), b"console=ttyS0\0");
        assert_eq!(qword_at(&memory, page + 0x70), RSDP.0);
        let initrd = u64::from(dword_at(&memory, page + 0x218));
        assert_eq!((initrd, dword_at(&memory, page + 0x21c)), (TOP - 0x2000, 5000));
        assert_eq!(bytes_at(&memory, initrd + 4999, 2), [7, 0]);
        assert_eq!(bytes_at(&memory, page + 0x1e8, 1), [3]);
        assert_eq!(qword_at(&memory, page + 0x2d0 + 2 * 20), MIB);
        assert_eq!(qword_at(&memory, page + 0x2d0 + 2 * 20 + 8), TOP - MIB);
        assert_eq!(dword_at(&memory, page + 0x2d0 + 20 + 16), 2, "the second range is reserved");
    }

    #[test]
    fn a_kernel_without_the_64_bit_entry_starts_in_32_bit_mode() {
        let mut without = image(0x20f);
        without[0x236] = 0;
        for (image, at) in
            [(without, 0x100_0000), (image(0x20b), 0x100_0000), (image(0x205), 0x20_0000), (image(0x204), 0x10_0000)]
        {
            let (state, memory) = started(&image, None, b"", TOP).unwrap();
            assert_eq!(state.rip, at);
            assert_eq!(state.cr0 & 0x8000_0001, 1, "protection on, paging off");
            assert_eq!(dword_at(&memory, state.gprs.get(Gpr::Rsi) + 0x214), at as u32, "code32_start says where");
            assert_eq!(dword_at(&memory, state.gprs.get(Gpr::Rsi) + 0x218), 0, "no initrd");
        }
    }

    #[test]
    fn before_2_02_the_command_line_is_found_by_its_old_magic() {
        let (state, memory) = started(&image(0x201), Some(&[1]), b"root=/dev/ram", TOP).unwrap();
        let page = state.gprs.get(Gpr::Rsi);
        assert_eq!(page, 0x9_0000, "such kernels know no other place");
        assert_eq!(bytes_at(&memory, page + 0x20, 2), [0x3f, 0xa3]);
        let offset = u64::from(dword_at(&memory, page + 0x22) & 0xffff);
        assert_eq!(bytes_at(&memory, page + offset, 14), b"root=/dev/ram\0");
        assert_eq!(dword_at(&memory, page + 0x1e0), ((TOP - MIB) >> 10) as u32);
    }

    #[test]
    fn a_relocatable_kernel_goes_elsewhere_when_its_place_is_not_free() {
        let (state, _) = started(&image(0x20f), None, b"", 20 * MIB).unwrap();
        assert_eq!(state.rip, 0x20_0200, "the lowest aligned place");
        let mut fixed = image(0x20f);
        fixed[0x234] = 0;
        assert!(matches!(started(&fixed, None, b"", 20 * MIB), Err(LoadError::NotFree { .. })));
        assert_eq!(started(&fixed, None, b"", TOP).unwrap().0.rip, 0x10_0200);
    }

    #[test]
    fn the_initrd_keeps_below_its_limit_and_off_the_kernel() {
        let mut low = image(0x20f);
        low[0x22c..0x230].copy_from_slice(&(0x1ff_ffff_u32).to_le_bytes());
        let initrd = vec![1; MIB as usize];
        let place = |top, image: &[u8]| {
            let (state, memory) = started(image, Some(&initrd), b"", top)?;
            Ok::<_, LoadError>(u64::from(dword_at(&memory, state.gprs.get(Gpr::Rsi) + 0x218)))
        };
        assert_eq!(place(TOP, &low), Ok(31 * MIB));
        low[0x22c..0x230].copy_from_slice(&(0x10f_ffff_u32).to_le_bytes());
        assert_eq!(place(TOP, &low), Ok(15 * MIB), "the kernel takes 16 to 24 MiB");
        low[0x22c..0x230].copy_from_slice(&(0xf_ffff_u32).to_le_bytes());
        assert_eq!(place(TOP, &low), Err(LoadError::NoRoom { what: "initrd", bytes: MIB }));
    }

    #[test]
    fn each_wrong_header_has_its_own_error() {
        let change = |at: usize, bytes: &[u8]| {
            let mut image = image(0x20f);
            image[at..at + bytes.len()].copy_from_slice(bytes);
            started(&image, None, b"", TOP).map(|_| ())
        };
        assert_eq!(
            change(0x1fe, &[0, 0]),
            Err(LoadError::Malformed("it has a Linux setup header but no boot sector signature"))
        );
        assert!(matches!(change(0x206, &[0xff, 1]), Err(LoadError::Unsupported(text)) if text.contains("2.00")));
        assert!(matches!(change(0x211, &[0]), Err(LoadError::Unsupported(text)) if text.contains("zImage")));
        assert_eq!(change(0x230, &[3]), Err(LoadError::Malformed("its kernel_alignment is no power of two")));
        assert_eq!(change(0x1f1, &[200]), Err(LoadError::Truncated("real-mode part")));
        assert_eq!(change(0x260, &[0xff; 4]), Err(LoadError::NoRoom { what: "kernel", bytes: 0xffff_ffff }));
        assert_eq!(change(0x258, &[0xff; 8]), Ok(()), "an impossible preference is not followed");
        assert_eq!(change(0x202, b"Hdr?"), Err(LoadError::Unrecognised));
    }

    #[test]
    fn an_image_cut_anywhere_before_its_entry_is_refused() {
        let whole = image(0x20f);
        for len in 0..0x700 {
            let result = Setup::parse(&whole[..len]);
            assert_eq!(result.is_ok(), len > 0x400 + 0x200, "{len:#x}: {:?}", result.err());
        }
        assert!(matches!(started(&whole[..0x300], None, b"", 4 * MIB), Err(LoadError::Truncated(_))));
    }

    #[test]
    fn a_header_that_ends_early_has_no_later_fields() {
        let mut short = image(0x20f);
        short[0x201] = (0x236 - 0x202) as u8;
        let (state, _) = started(&short, None, b"", TOP).unwrap();
        assert_eq!(state.rip, 0x20_0000, "neither 64-bit entry nor preferred address");
    }

    #[test]
    fn the_command_line_is_limited_by_the_kernel() {
        assert!(started(&image(0x20f), None, &[b'a'; 2047], TOP).is_ok());
        let refused = LoadError::CommandLineTooLong { len: 2048, limit: 2047 };
        assert_eq!(started(&image(0x20f), None, &[b'a'; 2048], TOP).err(), Some(refused));
        let refused = LoadError::CommandLineTooLong { len: 256, limit: 255 };
        assert_eq!(started(&image(0x205), None, &[b'a'; 256], TOP).err(), Some(refused));
        let mut greedy = image(0x20f);
        greedy[0x238..0x23c].copy_from_slice(&[0xff; 4]);
        assert!(matches!(
            started(&greedy, None, &vec![b'a'; 1 << 20], TOP).err(),
            Some(LoadError::CommandLineTooLong { .. })
        ));
    }

    #[test]
    fn more_than_one_initrd_and_too_long_a_map_are_refused() {
        let module = Module { bytes: &[1], command_line: b"" };
        let image = image(0x20f);
        let payload = Payload { image: &image, modules: &[module; 2], command_line: b"" };
        let regions = regions(TOP);
        let layout = MemoryLayout { regions: &regions, rsdp: None };
        let refused = LoadError::TooManyModules { count: 2, limit: 1 };
        assert_eq!(load(&payload, &layout, &ram(TOP)), Err(refused));
        let mut long = regions.to_vec();
        long.extend((0..126).map(|n| Region { start: Gpa(TOP + n), len: 1, kind: RegionKind::Reserved }));
        let layout = MemoryLayout { regions: &long, rsdp: None };
        let payload = Payload { modules: &[], ..payload };
        assert!(matches!(load(&payload, &layout, &ram(TOP)), Err(LoadError::Unsupported(_))));
    }
}
