//! What every loader's entry produces.

use crate::{PhysicalRange, cpio};
use arrayvec::{ArrayString, ArrayVec};
use core::fmt;

/// Most regions of a memory map that are taken; firmware maps have some dozens, UEFI ones up to a few hundred.
pub const MAX_REGIONS: usize = 512;

/// Most modules that are taken.
pub const MAX_MODULES: usize = 64;

/// Longest command line, in bytes.
pub const MAX_COMMAND_LINE: usize = 4096;

/// What a region of the firmware's memory map may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// RAM free to use.
    Usable,
    /// Not to be touched.
    Reserved,
    /// RAM that holds ACPI tables.
    AcpiTables,
    /// RAM that the firmware keeps across sleep.
    AcpiNonVolatile,
    /// RAM that the firmware found broken.
    Defective,
    /// RAM that holds what the loader brought (its own structures, modules, the image).
    Loader,
    /// A kind that the loader's protocol does not define; treated as reserved.
    Unknown(u32),
}

impl MemoryKind {
    /// The kind that an address-range type of ACPI means. ACPI 6.5, 15 "System Address Map Interfaces", table 15.2.
    pub const fn from_acpi(code: u32) -> Self {
        match code {
            1 => Self::Usable,
            2 => Self::Reserved,
            3 => Self::AcpiTables,
            4 => Self::AcpiNonVolatile,
            5 => Self::Defective,
            other => Self::Unknown(other),
        }
    }
}

/// One region of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Where.
    pub range: PhysicalRange,
    /// What for.
    pub kind: MemoryKind,
}

/// A file that the loader brought, in place.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// Its name; empty when the loader gave none.
    pub name: &'a str,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Where they are in physical memory.
    pub range: PhysicalRange,
}

/// Which loader started us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Xen's PVH entry, as `qemu -kernel` uses it.
    Pvh,
    /// Multiboot2, as GRUB has it.
    Multiboot2,
    /// Limine's own protocol.
    Limine,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pvh => "PVH",
            Self::Multiboot2 => "Multiboot2",
            Self::Limine => "Limine",
        })
    }
}

/// All that the loader told, checked.
pub struct BootInfo<'a> {
    /// Who told it.
    pub protocol: Protocol,
    /// The firmware's memory map in the order given; regions may overlap and need not be sorted.
    pub memory: ArrayVec<MemoryRegion, MAX_REGIONS>,
    /// The modules.
    pub modules: ArrayVec<Module<'a>, MAX_MODULES>,
    /// What the loader filled and must not be given away: each loaded file, an archive counting once, and its own
    /// information where `rsdp` points into that.
    pub occupied: ArrayVec<PhysicalRange, { MAX_MODULES + 1 }>,
    /// The command line, without the image's own name where the protocol puts that first.
    pub command_line: ArrayString<MAX_COMMAND_LINE>,
    /// Physical address of ACPI's RSDP (or of the loader's copy), where the loader knows it.
    pub rsdp: Option<u64>,
    /// Where the image itself lies, .bss included.
    pub image: PhysicalRange,
}

impl<'a> BootInfo<'a> {
    /// Nothing yet but who tells and where the image is.
    pub fn new(protocol: Protocol, image: PhysicalRange) -> Self {
        Self {
            protocol,
            memory: ArrayVec::new(),
            modules: ArrayVec::new(),
            occupied: ArrayVec::new(),
            command_line: ArrayString::new(),
            rsdp: None,
            image,
        }
    }

    /// The module called `name`.
    pub fn module(&self, name: &str) -> Option<&Module<'a>> {
        self.modules.iter().find(|module| module.name == name)
    }

    /// Adds a region; an empty one is left out.
    ///
    /// # Errors
    /// When it wraps, or when there are too many.
    pub(crate) fn add_region(&mut self, start: u64, length: u64, kind: MemoryKind) -> Result<(), BootError> {
        let range = PhysicalRange::new(start, length).ok_or(BootError::RegionWraps(start))?;
        if range.is_empty() {
            return Ok(());
        }
        self.memory.try_push(MemoryRegion { range, kind }).map_err(|_| BootError::TooManyRegions)
    }

    /// Adds a file that the loader brought to physical `address`: as the modules packed in it when it has no name and is
    /// a newc archive, else as one module.
    ///
    /// # Errors
    /// When there are too many, the archive is damaged, the name is not text, or it lies over the image.
    pub(crate) fn add_file(&mut self, name: &'a [u8], address: u64, bytes: &'a [u8]) -> Result<(), BootError> {
        let range = PhysicalRange::new(address, bytes.len() as u64).ok_or(BootError::ModuleOutOfReach(address))?;
        self.occupy(range)?;
        if name.is_empty() && cpio::is_archive(bytes) {
            for file in cpio::Entries::new(bytes) {
                let file = file?;
                self.add_module(file.name, address + file.offset, file.bytes)?;
            }
            return Ok(());
        }
        let name = core::str::from_utf8(name).map_err(|_| BootError::ModuleNameNotText)?;
        self.add_module(name, address, bytes)
    }

    /// Adds one module.
    fn add_module(&mut self, name: &'a str, address: u64, bytes: &'a [u8]) -> Result<(), BootError> {
        let range = PhysicalRange::new(address, bytes.len() as u64).ok_or(BootError::ModuleOutOfReach(address))?;
        self.modules.try_push(Module { name, bytes, range }).map_err(|_| BootError::TooManyModules)
    }

    /// Notes memory that the loader filled and that must stay.
    ///
    /// # Errors
    /// When there are too many, or it overlaps the image: a loader that did that has destroyed one of them.
    pub(crate) fn occupy(&mut self, range: PhysicalRange) -> Result<(), BootError> {
        if range.overlaps(self.image) {
            return Err(BootError::LoadedOverImage(range.start));
        }
        self.occupied.try_push(range).map_err(|_| BootError::TooManyModules)
    }

    /// Takes the command line.
    ///
    /// # Errors
    /// When it is too long or not text.
    pub(crate) fn set_command_line(&mut self, bytes: &[u8]) -> Result<(), BootError> {
        let text = core::str::from_utf8(bytes).map_err(|_| BootError::CommandLineNotText)?;
        self.command_line = ArrayString::from(text).map_err(|_| BootError::CommandLineTooLong)?;
        Ok(())
    }
}

/// Why what the loader handed over was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// Neither of the known loaders: its magic number.
    UnknownLoader(u32),
    /// Limine does not know the base revision of its protocol that is asked for.
    LoaderTooOld,
    /// The loader maps memory at this virtual address, not where it is looked for.
    MemoryElsewhere(u64),
    /// The information structure at this address cannot be reached or is cut short.
    InfoOutOfReach(u64),
    /// The structure's magic number is wrong.
    BadMagic(u32),
    /// The structure contradicts itself; which field.
    Malformed(&'static str),
    /// The loader gave no memory map.
    NoMemoryMap,
    /// A region that starts here passes the end of the address space.
    RegionWraps(u64),
    /// More than [`MAX_REGIONS`] regions.
    TooManyRegions,
    /// More than [`MAX_MODULES`] modules.
    TooManyModules,
    /// The module that starts here is not (all) in memory that can be reached.
    ModuleOutOfReach(u64),
    /// What the loader put here lies over the image.
    LoadedOverImage(u64),
    /// A module's name is not UTF-8.
    ModuleNameNotText,
    /// The module archive is damaged at this offset.
    DamagedArchive(u64),
    /// Longer than [`MAX_COMMAND_LINE`], or without an end.
    CommandLineTooLong,
    /// The command line is not UTF-8.
    CommandLineNotText,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownLoader(magic) => {
                write!(f, "started by an unknown loader (magic {magic:#x}); use PVH, Multiboot2 or Limine")
            }
            Self::LoaderTooOld => {
                f.write_str("Limine is too old for base revision 2 of its protocol; use Limine 8 or newer")
            }
            Self::MemoryElsewhere(at) => {
                write!(
                    f,
                    "Limine maps memory at {at:#x}; set randomise_hhdm_base: no and paging_mode: 4level in limine.conf"
                )
            }
            Self::InfoOutOfReach(at) => write!(f, "the loader's information at {at:#x} is cut short or not in memory"),
            Self::BadMagic(magic) => write!(f, "the loader's information has the wrong magic number {magic:#x}"),
            Self::Malformed(field) => write!(f, "the loader's information contradicts itself in {field}"),
            Self::NoMemoryMap => f.write_str("the loader gave no memory map; use a newer loader"),
            Self::RegionWraps(at) => {
                write!(f, "the memory map's region at {at:#x} passes the end of the address space")
            }
            Self::TooManyRegions => write!(f, "the memory map has more than {MAX_REGIONS} regions"),
            Self::TooManyModules => write!(f, "more than {MAX_MODULES} modules were loaded; load fewer"),
            Self::ModuleOutOfReach(at) => write!(f, "the module at {at:#x} is not in the first 4 GiB of memory"),
            Self::LoadedOverImage(at) => {
                write!(f, "the loader put something at {at:#x}, over the hypervisor; use another loader")
            }
            Self::ModuleNameNotText => f.write_str("a module's name is not UTF-8 text"),
            Self::DamagedArchive(at) => {
                write!(f, "the module archive (cpio, newc) is damaged at offset {at:#x}; pack it again")
            }
            Self::CommandLineTooLong => write!(f, "the command line is longer than {MAX_COMMAND_LINE} bytes"),
            Self::CommandLineNotText => f.write_str("the command line is not UTF-8 text"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> BootInfo<'static> {
        BootInfo::new(Protocol::Pvh, PhysicalRange { start: 0x1000, end: 0x2000 })
    }

    #[test]
    fn a_region_must_not_wrap_and_may_be_empty() {
        let mut info = empty();
        assert_eq!(info.add_region(u64::MAX - 1, 4, MemoryKind::Usable), Err(BootError::RegionWraps(u64::MAX - 1)));
        info.add_region(5, 0, MemoryKind::Usable).unwrap();
        assert!(info.memory.is_empty());
    }

    #[test]
    fn full_tables_are_errors() {
        let mut info = empty();
        for at in 0..MAX_REGIONS as u64 {
            info.add_region(at, 1, MemoryKind::Usable).unwrap();
        }
        assert_eq!(info.add_region(0, 1, MemoryKind::Usable), Err(BootError::TooManyRegions));
        for _ in 0..MAX_MODULES {
            info.add_module("m", 0, b"").unwrap();
        }
        assert_eq!(info.add_module("m", 0, b""), Err(BootError::TooManyModules));
    }

    #[test]
    fn a_module_over_the_image_is_refused() {
        let over = PhysicalRange { start: 0x1fff, end: 0x3000 };
        assert_eq!(empty().occupy(over), Err(BootError::LoadedOverImage(0x1fff)));
    }

    #[test]
    fn every_error_is_one_line() {
        for error in [
            BootError::UnknownLoader(1),
            BootError::LoaderTooOld,
            BootError::MemoryElsewhere(1),
            BootError::InfoOutOfReach(2),
            BootError::BadMagic(3),
            BootError::Malformed("x"),
            BootError::NoMemoryMap,
            BootError::RegionWraps(4),
            BootError::TooManyRegions,
            BootError::TooManyModules,
            BootError::ModuleOutOfReach(5),
            BootError::LoadedOverImage(6),
            BootError::ModuleNameNotText,
            BootError::DamagedArchive(7),
            BootError::CommandLineTooLong,
            BootError::CommandLineNotText,
        ] {
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains('\n'), "{text}");
        }
    }
}
