//! Guest-physical memory: addresses, widths and the one way to touch it.
//!
//! Key types: [`Gpa`], [`Width`], the trait [`GuestMemory`] (copy in, copy out, atomic load, store and
//! compare-exchange) and [`RegisterPage`], a 4 KiB page that hardware and several CPUs use at once.
//! Neighbours: `kernel` implements [`GuestMemory`] over the direct map, [`SparseMemory`] implements it for host
//! tests; `vcpu` and `devices` use it.
//!
//! There is never a slice of guest memory: other vCPUs and devices write it meanwhile. Whoever needs a structure
//! copies it once and checks the copy.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod register_page;
mod sparse;

pub use register_page::RegisterPage;
pub use sparse::SparseMemory;

use core::fmt;

/// Bytes in the smallest page that x86 translates.
pub const PAGE_SIZE: u64 = 4096;

/// A guest-physical address: what the guest's own page tables produce and the second level translates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The address `bytes` further on, or `None` past the end of the 64-bit space.
    #[inline]
    pub const fn checked_add(self, bytes: u64) -> Option<Gpa> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Gpa(sum)),
            None => None,
        }
    }

    /// The address `bytes` further on, modulo 2^64.
    #[inline]
    pub const fn wrapping_add(self, bytes: u64) -> Gpa {
        Gpa(self.0.wrapping_add(bytes))
    }

    /// The start of the 4 KiB page that holds this address.
    #[inline]
    pub const fn page(self) -> Gpa {
        Gpa(self.0 & !(PAGE_SIZE - 1))
    }

    /// The offset within the 4 KiB page, `0..4096`.
    #[inline]
    pub const fn page_offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
}

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpa({:#x})", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The size of one access, in the manuals' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Width {
    /// 1 byte.
    Byte = 1,
    /// 2 bytes.
    Word = 2,
    /// 4 bytes.
    Dword = 4,
    /// 8 bytes.
    Qword = 8,
}

impl Width {
    /// The size in bytes: 1, 2, 4 or 8.
    #[inline]
    pub const fn bytes(self) -> usize {
        self as usize
    }

    /// The width that is `bytes` long; `None` for any other number than 1, 2, 4, 8.
    #[inline]
    pub const fn from_bytes(bytes: usize) -> Option<Width> {
        match bytes {
            1 => Some(Width::Byte),
            2 => Some(Width::Word),
            4 => Some(Width::Dword),
            8 => Some(Width::Qword),
            _ => None,
        }
    }

    /// The ones that a value of this width can have.
    #[inline]
    pub const fn mask(self) -> u64 {
        match self {
            Width::Byte => 0xff,
            Width::Word => 0xffff,
            Width::Dword => 0xffff_ffff,
            Width::Qword => u64::MAX,
        }
    }
}

/// Why guest memory could not be accessed: some byte of the range is not RAM of this guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRam {
    /// The first address asked for.
    pub gpa: Gpa,
    /// How many bytes were asked for.
    pub len: usize,
}

impl fmt::Display for NotRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at guest-physical {} are not all RAM", self.len, self.gpa)
    }
}

/// The RAM of one guest, shared by its vCPUs and devices.
///
/// Every access is checked; none of them hands out a reference. Copies are made byte by byte or in larger pieces,
/// without a promise of atomicity. The atomic operations want natural alignment, as the hardware's page-walk does;
/// a misaligned one is answered with [`NotRam`].
pub trait GuestMemory {
    /// Copies RAM at `gpa` into `into`. On an error nothing that matters has been written to `into`.
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), NotRam>;

    /// Copies `from` to RAM at `gpa`. On an error no byte has been written.
    fn write(&self, gpa: Gpa, from: &[u8]) -> Result<(), NotRam>;

    /// Reads a naturally aligned value in one piece, zero-extended.
    fn load(&self, gpa: Gpa, width: Width) -> Result<u64, NotRam>;

    /// Writes the low part of `value` to a naturally aligned place in one piece.
    fn store(&self, gpa: Gpa, width: Width, value: u64) -> Result<(), NotRam>;

    /// Replaces `current` by `new` at a naturally aligned place as one locked operation (sequentially consistent).
    /// `Ok(Ok(current))` when it did, `Ok(Err(found))` when another value stood there.
    fn compare_exchange(&self, gpa: Gpa, width: Width, current: u64, new: u64) -> Result<Result<u64, u64>, NotRam>;

    /// Whether all of `len` bytes at `gpa` are RAM. True for `len` 0.
    fn is_ram(&self, gpa: Gpa, len: u64) -> bool;

    /// Sets `len` bytes at `gpa` to `value`. On an error no byte has been written.
    fn fill(&self, gpa: Gpa, value: u8, len: u64) -> Result<(), NotRam> {
        if !self.is_ram(gpa, len) {
            return Err(NotRam { gpa, len: usize::try_from(len).unwrap_or(usize::MAX) });
        }
        let piece = [value; 256];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(piece.len() as u64);
            self.write(gpa.wrapping_add(done), &piece[..now as usize])?;
            done += now;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpa_splits_into_page_and_offset() {
        let gpa = Gpa(0x1234_5678);
        assert_eq!(gpa.page(), Gpa(0x1234_5000));
        assert_eq!(gpa.page_offset(), 0x678);
        assert_eq!(Gpa(u64::MAX).checked_add(1), None);
    }

    #[test]
    fn width_knows_its_bytes_and_mask() {
        for (bytes, width, mask) in [
            (1, Width::Byte, 0xff),
            (2, Width::Word, 0xffff),
            (4, Width::Dword, 0xffff_ffff),
            (8, Width::Qword, u64::MAX),
        ] {
            assert_eq!(Width::from_bytes(bytes), Some(width));
            assert_eq!(width.bytes(), bytes);
            assert_eq!(width.mask(), mask);
        }
        assert_eq!(Width::from_bytes(3), None);
    }
}
