//! Guest RAM for host tests: safe, shared between threads, any set of ranges.

use crate::{Gpa, GuestMemory, NotRam, Width};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// One range of RAM, in 64-bit words.
struct Range {
    start: u64,
    words: Vec<AtomicU64>,
}

impl Range {
    fn len(&self) -> u64 {
        self.words.len() as u64 * 8
    }
}

/// RAM at chosen guest-physical ranges, for tests on the host.
///
/// Each word is atomic, so that concurrent use is as defined as it is on hardware; it is not built for speed.
pub struct SparseMemory {
    ranges: Vec<Range>,
}

impl SparseMemory {
    /// Zeroed RAM at each `(start, bytes)`.
    ///
    /// # Panics
    /// If a start or size is not a multiple of 8, or two ranges touch the same byte: a mistake of the test.
    pub fn new(ranges: &[(u64, u64)]) -> Self {
        let mut made: Vec<Range> = Vec::new();
        for &(start, bytes) in ranges {
            assert!(start.is_multiple_of(8) && bytes.is_multiple_of(8), "RAM ranges are multiples of 8 bytes");
            assert!(
                made.iter().all(|r| start + bytes <= r.start || r.start + r.len() <= start),
                "RAM ranges do not overlap"
            );
            made.push(Range { start, words: (0..bytes / 8).map(|_| AtomicU64::new(0)).collect() });
        }
        Self { ranges: made }
    }

    /// The word that holds `gpa`, and the bit at which that byte starts in it.
    fn word(&self, gpa: u64) -> Option<(&AtomicU64, u32)> {
        let range = self.ranges.iter().find(|r| gpa >= r.start && gpa - r.start < r.len())?;
        let offset = gpa - range.start;
        let word = range.words.get((offset / 8) as usize)?;
        Some((word, (offset % 8) as u32 * 8))
    }

    /// The word and bit of a naturally aligned value.
    fn aligned(&self, gpa: Gpa, width: Width) -> Result<(&AtomicU64, u32), NotRam> {
        let refused = NotRam { gpa, len: width.bytes() };
        if !gpa.0.is_multiple_of(width.bytes() as u64) {
            return Err(refused);
        }
        self.word(gpa.0).ok_or(refused)
    }
}

impl GuestMemory for SparseMemory {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), NotRam> {
        if !self.is_ram(gpa, into.len() as u64) {
            return Err(NotRam { gpa, len: into.len() });
        }
        for (index, byte) in into.iter_mut().enumerate() {
            if let Some((word, bit)) = self.word(gpa.0 + index as u64) {
                *byte = (word.load(Ordering::SeqCst) >> bit) as u8;
            }
        }
        Ok(())
    }

    fn write(&self, gpa: Gpa, from: &[u8]) -> Result<(), NotRam> {
        if !self.is_ram(gpa, from.len() as u64) {
            return Err(NotRam { gpa, len: from.len() });
        }
        for (index, &byte) in from.iter().enumerate() {
            if let Some((word, bit)) = self.word(gpa.0 + index as u64) {
                let replace = |old: u64| Some(old & !(0xff << bit) | u64::from(byte) << bit);
                let _ = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, replace);
            }
        }
        Ok(())
    }

    fn load(&self, gpa: Gpa, width: Width) -> Result<u64, NotRam> {
        let (word, bit) = self.aligned(gpa, width)?;
        Ok(word.load(Ordering::SeqCst) >> bit & width.mask())
    }

    fn store(&self, gpa: Gpa, width: Width, value: u64) -> Result<(), NotRam> {
        let (word, bit) = self.aligned(gpa, width)?;
        let replace = |old: u64| Some(old & !(width.mask() << bit) | (value & width.mask()) << bit);
        let _ = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, replace);
        Ok(())
    }

    fn compare_exchange(&self, gpa: Gpa, width: Width, current: u64, new: u64) -> Result<Result<u64, u64>, NotRam> {
        let (word, bit) = self.aligned(gpa, width)?;
        let mut seen = word.load(Ordering::SeqCst);
        loop {
            let found = seen >> bit & width.mask();
            if found != current & width.mask() {
                return Ok(Err(found));
            }
            let next = seen & !(width.mask() << bit) | (new & width.mask()) << bit;
            match word.compare_exchange(seen, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(Ok(found)),
                Err(other) => seen = other,
            }
        }
    }

    fn is_ram(&self, gpa: Gpa, len: u64) -> bool {
        let mut at = gpa.0;
        let Some(end) = at.checked_add(len) else { return false };
        while at < end {
            match self.ranges.iter().find(|r| at >= r.start && at - r.start < r.len()) {
                Some(range) => at = range.start + range.len(),
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_cross_adjacent_ranges_and_stop_at_holes() {
        let ram = SparseMemory::new(&[(0x1000, 0x1000), (0x2000, 0x10)]);
        ram.write(Gpa(0x1ffe), &[1, 2, 3, 4]).unwrap();
        let mut out = [0; 4];
        ram.read(Gpa(0x1ffe), &mut out).unwrap();
        assert_eq!(out, [1, 2, 3, 4]);
        assert_eq!(ram.write(Gpa(0x200e), &[9; 4]), Err(NotRam { gpa: Gpa(0x200e), len: 4 }));
        assert_eq!(ram.load(Gpa(0x200e), Width::Word), Ok(0), "a refused write leaves nothing behind");
        assert!(!ram.is_ram(Gpa(u64::MAX), 2));
        assert_eq!(ram.read(Gpa(u64::MAX), &mut []), Ok(()), "nothing is everywhere");
        assert_eq!(ram.write(Gpa(u64::MAX), &[]), Ok(()));
    }

    #[test]
    fn atomics_want_natural_alignment_and_touch_only_their_bytes() {
        let ram = SparseMemory::new(&[(0, 16)]);
        ram.store(Gpa(0), Width::Qword, u64::MAX).unwrap();
        ram.store(Gpa(2), Width::Word, 0x1234).unwrap();
        assert_eq!(ram.load(Gpa(0), Width::Qword), Ok(0xffff_ffff_1234_ffff));
        assert_eq!(ram.compare_exchange(Gpa(2), Width::Word, 0x1234, 1), Ok(Ok(0x1234)));
        assert_eq!(ram.compare_exchange(Gpa(2), Width::Word, 0x1234, 2), Ok(Err(1)));
        assert!(ram.load(Gpa(1), Width::Word).is_err());
    }

    #[test]
    fn fill_is_all_or_nothing() {
        let ram = SparseMemory::new(&[(0, 1024)]);
        ram.fill(Gpa(8), 0xa5, 600).unwrap();
        assert_eq!(ram.load(Gpa(600), Width::Qword), Ok(0xa5a5_a5a5_a5a5_a5a5));
        assert_eq!(ram.load(Gpa(608), Width::Byte), Ok(0));
        assert!(ram.fill(Gpa(1000), 1, 100).is_err());
        assert_eq!(ram.load(Gpa(1000), Width::Qword), Ok(0));
    }
}
