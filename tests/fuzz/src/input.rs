//! The fuzzer's bytes, read as values; when they run out, everything is 0.

use memory::Width;

/// A script of values.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Reads `bytes` from the first on.
    pub fn new(bytes: &'a [u8]) -> Self {
        Input(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rest.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let here = self.0.len().min(N);
        let (head, tail) = self.0.split_at(here);
        out[..here].copy_from_slice(head);
        self.0 = tail;
        out
    }

    /// At most `most` bytes, as many as the next byte says.
    pub fn slice(&mut self, most: usize) -> &'a [u8] {
        let wanted = usize::from(self.u8()).min(most).min(self.0.len());
        let (head, tail) = self.0.split_at(wanted);
        self.0 = tail;
        head
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A flag.
    pub fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number below `end`, which is 1 to 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.u8()) % end
    }

    /// One of `choices`.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// A number with few bits set or near a power of two more often than chance has it: four forms, by one byte.
    pub fn value(&mut self) -> u64 {
        let form = self.u8();
        match form & 3 {
            0 => self.u8().into(),
            1 => 1u64.rotate_left(u32::from(form) >> 2),
            2 => (1u64 << (form >> 2)).wrapping_sub(1).wrapping_add(u64::from(self.u8()) & 3),
            _ => self.u64(),
        }
    }

    /// One of the widths up to `most` bytes.
    pub fn width(&mut self, most: Width) -> Width {
        let all = [Width::Byte, Width::Word, Width::Dword, Width::Qword];
        let count = all.iter().filter(|width| **width <= most).count();
        all[self.below(count)]
    }
}
