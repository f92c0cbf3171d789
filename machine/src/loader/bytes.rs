//! Little-endian reading and writing of untrusted structures by offset.

use alloc::vec::Vec;

/// Bytes read by offset; whatever lies outside is `None`.
#[derive(Clone, Copy)]
pub(super) struct Source<'a>(pub &'a [u8]);

impl<'a> Source<'a> {
    /// `len` bytes at `offset`.
    pub fn bytes(self, offset: u64, len: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        self.0.get(start..end)
    }

    fn array<const N: usize>(self, offset: u64) -> Option<[u8; N]> {
        self.bytes(offset, N as u64)?.try_into().ok()
    }

    /// The byte at `offset`.
    pub fn byte(self, offset: u64) -> Option<u8> {
        self.array(offset).map(u8::from_le_bytes)
    }

    /// The 16-bit value at `offset`.
    pub fn word(self, offset: u64) -> Option<u16> {
        self.array(offset).map(u16::from_le_bytes)
    }

    /// The 32-bit value at `offset`.
    pub fn dword(self, offset: u64) -> Option<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }

    /// The 64-bit value at `offset`.
    pub fn qword(self, offset: u64) -> Option<u64> {
        self.array(offset).map(u64::from_le_bytes)
    }
}

/// A structure under construction; it grows as its fields are put.
#[derive(Default)]
pub(super) struct Record(pub Vec<u8>);

impl Record {
    /// A structure of `len` zero bytes.
    pub fn zeroed(len: usize) -> Record {
        Record(alloc::vec![0; len])
    }

    /// Puts `field` at `offset`, with zeroes before it if the structure was shorter.
    pub fn put(&mut self, offset: usize, field: &[u8]) {
        let end = offset + field.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[offset..end].copy_from_slice(field);
    }

    /// Appends a 32-bit value.
    pub fn dword(&mut self, value: u32) -> &mut Record {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends a 64-bit value.
    pub fn qword(&mut self, value: u64) -> &mut Record {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_read_outside_the_bytes() {
        let source = Source(&[1, 2, 3, 4]);
        assert_eq!(source.word(2), Some(0x0403));
        assert_eq!(source.word(3), None);
        assert_eq!(source.bytes(u64::MAX, 2), None);
        assert_eq!(source.bytes(4, 0), Some(&[][..]));
    }

    #[test]
    fn a_field_put_past_the_end_lengthens_the_record() {
        let mut record = Record::zeroed(2);
        record.put(4, &[7]);
        record.dword(0x0102_0304);
        assert_eq!(record.0, [0, 0, 0, 0, 7, 4, 3, 2, 1]);
    }
}
