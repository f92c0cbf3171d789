//! Guest loaders: what `qemu -kernel` does, for a guest that starts without firmware.
//!
//! [`load`] recognises the format of a [`Payload`], places it in guest memory beside its modules and command line, and
//! returns the state in which the boot processor starts. Formats: Linux bzImage ([`bzimage`]), Multiboot 1
//! ([`multiboot`]) and ELF with Xen's PVH note ([`pvh`]), tried in this order, which is QEMU's.
//!
//! Key types: [`Payload`], [`MemoryLayout`], [`LoadError`]. Neighbours: the machine's memory map and firmware tables make
//! the [`MemoryLayout`]; guest memory is [`memory::GuestMemory`]. Images are hostile input: whatever they say is checked
//! against the image's length and the map before anything is written. What is not done: decompression (a bzImage brings
//! its own), and real-mode entry (an image without a 32-bit entry is refused).

mod bytes;
pub mod bzimage;
mod elf;
pub mod multiboot;
mod placement;
pub mod pvh;
mod start;

use core::fmt;
use memory::{Gpa, GuestMemory, NotRam};
use vcpu::ArchState;

/// A file that goes with the kernel: an initrd, or a Multiboot module.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// Its content.
    pub bytes: &'a [u8],
    /// Its own command line; only Multiboot and PVH kernels see it.
    pub command_line: &'a [u8],
}

/// What is to be loaded.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// The kernel image.
    pub image: &'a [u8],
    /// Modules in order; a Linux kernel takes one, its initrd.
    pub modules: &'a [Module<'a>],
    /// The kernel's command line, without a terminating zero.
    pub command_line: &'a [u8],
}

/// What a range of the guest's memory map is for: the address-range types of ACPI 6.5, 15 "System Address Map Interfaces".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionKind {
    /// RAM that the guest may use.
    Usable = 1,
    /// Not to be used.
    Reserved = 2,
    /// RAM that holds ACPI tables.
    AcpiTables = 3,
    /// RAM that must be kept over sleep.
    AcpiNonVolatile = 4,
}

/// One range of the guest's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first byte.
    pub start: Gpa,
    /// Bytes in the range.
    pub len: u64,
    /// What it is for.
    pub kind: RegionKind,
}

impl Region {
    /// The first byte after it, at most 2^64 - 1.
    const fn end(&self) -> u64 {
        self.start.0.saturating_add(self.len)
    }
}

/// The guest's memory map as firmware would give it, and where its firmware tables begin.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLayout<'a> {
    /// Ranges in ascending order, without overlap. The loaders place things only in usable ones.
    pub regions: &'a [Region],
    /// The ACPI root pointer, where there is one.
    pub rsdp: Option<Gpa>,
}

/// Why a payload cannot be started. Each prints as one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// No loader knows the image.
    Unrecognised,
    /// The image ends inside the part named.
    Truncated(&'static str),
    /// The image contradicts itself or the format's manual; the text says how.
    Malformed(&'static str),
    /// A kernel that this loader could not start; the text says why and what to do.
    Unsupported(&'static str),
    /// A Multiboot image asks for features that nobody has defined.
    UnknownFeatures(u32),
    /// The command line is longer than the kernel takes.
    CommandLineTooLong {
        /// Its length in bytes.
        len: usize,
        /// What the kernel takes, in bytes.
        limit: usize,
    },
    /// More modules than the kernel takes.
    TooManyModules {
        /// How many there are.
        count: usize,
        /// How many the kernel takes.
        limit: usize,
    },
    /// No free RAM is large enough in the place where the part has to be.
    NoRoom {
        /// The part.
        what: &'static str,
        /// How many bytes it needs.
        bytes: u64,
    },
    /// A part wants to be at an address where the guest has no free RAM.
    NotFree {
        /// The first byte of the part.
        start: u64,
        /// How many bytes it has.
        bytes: u64,
    },
    /// The memory map calls something RAM that is none.
    NotRam(NotRam),
}

impl From<NotRam> for LoadError {
    fn from(error: NotRam) -> Self {
        Self::NotRam(error)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unrecognised => f.write_str("the kernel is neither a Linux bzImage nor a Multiboot or PVH image"),
            Self::Truncated(what) => write!(f, "the kernel image is cut short: it ends within its {what}"),
            Self::Malformed(how) => write!(f, "the kernel image is damaged: {how}"),
            Self::Unsupported(why) => f.write_str(why),
            Self::UnknownFeatures(flags) => {
                write!(f, "the Multiboot kernel demands unknown features (header flags {flags:#x})")
            }
            Self::CommandLineTooLong { len, limit } => {
                write!(f, "the kernel's command line has {len} bytes, but this kernel takes at most {limit}")
            }
            Self::TooManyModules { count, limit } => {
                write!(f, "there are {count} modules, but this kernel takes at most {limit}")
            }
            Self::NoRoom { what, bytes } => write!(
                f,
                "the guest has no {} KiB of free memory in one piece for the {what}: give it more memory",
                bytes.div_ceil(1024)
            ),
            Self::NotFree { start, bytes } => write!(
                f,
                "the kernel wants {bytes:#x} bytes at {start:#x}, where the guest has no free memory: give it more memory"
            ),
            Self::NotRam(error) => write!(f, "the guest's memory map is wrong: {error}"),
        }
    }
}

/// Loads `payload` into `memory` by whichever format it has, and returns where the boot processor starts.
///
/// # Errors
/// See [`LoadError`]. Guest memory may then hold parts of the payload.
pub fn load(
    payload: &Payload<'_>,
    layout: &MemoryLayout<'_>,
    memory: &impl GuestMemory,
) -> Result<ArchState, LoadError> {
    if bzimage::recognises(payload.image) {
        bzimage::load(payload, layout, memory)
    } else if multiboot::recognises(payload.image) {
        multiboot::load(payload, layout, memory)
    } else if elf::recognises(payload.image) {
        pvh::load(payload, layout, memory)
    } else {
        Err(LoadError::Unrecognised)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use memory::SparseMemory;

    pub(crate) const MIB: u64 = 1 << 20;
    pub(crate) const RSDP: Gpa = Gpa(0xf_0000);

    /// A PC's map with `top` bytes of memory, as the machine makes it.
    pub(crate) fn regions(top: u64) -> [Region; 3] {
        [
            Region { start: Gpa(0), len: 0x9_fc00, kind: RegionKind::Usable },
            Region { start: Gpa(0xf_0000), len: 0x1_0000, kind: RegionKind::Reserved },
            Region { start: Gpa(MIB), len: top - MIB, kind: RegionKind::Usable },
        ]
    }

    /// RAM behind [`regions`].
    pub(crate) fn ram(top: u64) -> SparseMemory {
        SparseMemory::new(&[(0, top)])
    }

    pub(crate) fn bytes_at(memory: &SparseMemory, at: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        memory.read(Gpa(at), &mut out).unwrap();
        out
    }

    pub(crate) fn dword_at(memory: &SparseMemory, at: u64) -> u32 {
        u32::from_le_bytes(bytes_at(memory, at, 4).try_into().unwrap())
    }

    pub(crate) fn qword_at(memory: &SparseMemory, at: u64) -> u64 {
        u64::from_le_bytes(bytes_at(memory, at, 8).try_into().unwrap())
    }

    use alloc::{string::ToString, vec, vec::Vec};

    #[test]
    fn an_image_of_no_known_format_is_refused_with_one_line() {
        let regions = regions(8 * MIB);
        let layout = MemoryLayout { regions: &regions, rsdp: None };
        for image in [&b""[..], b"\x7fEL", b"#!/bin/sh\n", &[0; 9000]] {
            let payload = Payload { image, modules: &[], command_line: b"" };
            assert_eq!(load(&payload, &layout, &ram(8 * MIB)), Err(LoadError::Unrecognised));
        }
        assert!(!LoadError::Unrecognised.to_string().contains('\n'));
    }
}
