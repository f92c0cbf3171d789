//! Physical memory as a parser of loader structures sees it.

/// A range of physical memory: `start..end`, never wrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PhysicalRange {
    /// The first byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl PhysicalRange {
    /// `length` bytes from `start`, or `None` where that passes the end of the 64-bit space.
    pub const fn new(start: u64, length: u64) -> Option<Self> {
        match start.checked_add(length) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// The length in bytes.
    pub const fn length(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether it holds no byte.
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// Whether both hold some same byte.
    pub const fn overlaps(self, other: Self) -> bool {
        !self.is_empty() && !other.is_empty() && self.start < other.end && other.start < self.end
    }

    /// Whether every byte of `other` is in it.
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

/// Read access to what a loader left in memory.
///
/// A pointer found in a loader's structure is only ever followed through this: what is not mapped is refused instead of
/// faulting. The bytes stay put and unchanged for `'a`.
pub trait PhysicalMemory<'a> {
    /// The `length` bytes at physical `address`, or `None` if not all of them can be reached.
    fn bytes(&self, address: u64, length: u64) -> Option<&'a [u8]>;

    /// The NUL-terminated string at `address` without its NUL, of at most `limit` bytes; `None` when no NUL is found
    /// within that many bytes or memory ends before.
    fn string(&self, address: u64, limit: u64) -> Option<&'a [u8]> {
        // Byte by byte, for memory may end right behind a short string.
        for length in 0..=limit {
            let last = self.bytes(address.checked_add(length)?, 1)?;
            if last == [0] {
                return self.bytes(address, length);
            }
        }
        None
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use super::PhysicalMemory;

    /// Pieces of memory at chosen addresses.
    #[derive(Default)]
    pub struct FakeMemory {
        pieces: Vec<(u64, Vec<u8>)>,
    }

    impl FakeMemory {
        /// Adds a piece.
        pub fn with(mut self, address: u64, bytes: impl Into<Vec<u8>>) -> Self {
            self.pieces.push((address, bytes.into()));
            self
        }
    }

    impl<'a> PhysicalMemory<'a> for &'a FakeMemory {
        fn bytes(&self, address: u64, length: u64) -> Option<&'a [u8]> {
            self.pieces.iter().find_map(|(start, bytes)| {
                let from = usize::try_from(address.checked_sub(*start)?).ok()?;
                let to = from.checked_add(usize::try_from(length).ok()?)?;
                bytes.get(from..to)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{fake::FakeMemory, *};

    #[test]
    fn ranges_do_not_wrap() {
        assert_eq!(PhysicalRange::new(u64::MAX, 2), None);
        let range = PhysicalRange::new(0x1000, 0x1000).unwrap();
        assert_eq!(range.length(), 0x1000);
        assert!(range.overlaps(PhysicalRange { start: 0x1fff, end: 0x3000 }));
        assert!(!range.overlaps(PhysicalRange { start: 0x2000, end: 0x3000 }));
        assert!(!range.overlaps(PhysicalRange { start: 0x1800, end: 0x1800 }));
        assert!(range.contains(PhysicalRange { start: 0x1000, end: 0x2000 }));
        assert!(!range.contains(PhysicalRange { start: 0x0fff, end: 0x2000 }));
    }

    #[test]
    fn strings_end_at_their_nul() {
        let memory = FakeMemory::default().with(0x100, *b"abc\0def");
        let memory = &memory;
        assert_eq!(memory.string(0x100, 6), Some(&b"abc"[..]));
        assert_eq!(memory.string(0x100, 2), None, "longer than the limit");
        assert_eq!(memory.string(0x104, 100), None, "memory ends before the string does");
        assert_eq!(memory.string(0x100, 1 << 40), Some(&b"abc"[..]), "memory ends before the limit does");
        assert_eq!(memory.string(0x100, u64::MAX), Some(&b"abc"[..]));
        assert_eq!(memory.string(0x10, 10), None);
    }
}
