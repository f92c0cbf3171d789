//! The newc cpio archive, read in place.
//!
//! PVH passes one nameless module; `scripts/run` packs the named files into one archive. Format: cpio(5) "New ASCII
//! Format": a 110-byte header of `070701` (or `070702`, with a checksum that is not looked at) and thirteen 8-digit
//! hexadecimal fields, the name with its NUL, padding to 4, the data, padding to 4; ended by `TRAILER!!!`.
//!
//! Key type: [`Entries`]. Only regular files are modules; directories and the like are passed over.

use crate::BootError;

const MAGIC: &[u8] = b"070701";
const MAGIC_WITH_CHECKSUM: &[u8] = b"070702";
const HEADER_LENGTH: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";

/// Places of header fields, counted in 8-digit fields behind the magic number.
const FIELD_MODE: usize = 1;
const FIELD_FILE_SIZE: usize = 6;
const FIELD_NAME_SIZE: usize = 11;

/// `S_IFMT` and `S_IFREG` of inode(7).
const MODE_TYPE: u32 = 0o170000;
const MODE_REGULAR: u32 = 0o100000;

/// Whether `bytes` begin like a newc archive.
pub fn is_archive(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC) || bytes.starts_with(MAGIC_WITH_CHECKSUM)
}

/// One regular file of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name, a leading `./` taken off.
    pub name: &'a str,
    /// Offset of the data in the archive.
    pub offset: u64,
    /// The data.
    pub bytes: &'a [u8],
}

/// The regular files of an archive, in order. After an error the iteration is over.
pub struct Entries<'a> {
    archive: &'a [u8],
    next: Option<usize>,
}

impl<'a> Entries<'a> {
    /// Starts at the first header of `archive`.
    pub fn new(archive: &'a [u8]) -> Self {
        Self { archive, next: Some(0) }
    }

    /// Reads the entry at `at`: what it is, if a module, and where the next header is, if any.
    fn read(&self, at: usize) -> Option<(Option<Entry<'a>>, Option<usize>)> {
        let header = self.archive.get(at..at.checked_add(HEADER_LENGTH)?)?;
        if !is_archive(header) {
            return None;
        }
        let name_start = at.checked_add(HEADER_LENGTH)?;
        let name_size = usize::try_from(field(header, FIELD_NAME_SIZE)?).ok()?;
        let name_end = name_start.checked_add(name_size)?;
        let name = self.archive.get(name_start..name_end)?.strip_suffix(b"\0")?;
        if name == TRAILER {
            return Some((None, None));
        }
        let start = align(name_end)?;
        let end = start.checked_add(usize::try_from(field(header, FIELD_FILE_SIZE)?).ok()?)?;
        let bytes = self.archive.get(start..end)?;
        let next = Some(align(end)?);
        if field(header, FIELD_MODE)? & MODE_TYPE != MODE_REGULAR {
            return Some((None, next));
        }
        let name = core::str::from_utf8(name.strip_prefix(b"./").unwrap_or(name)).ok()?;
        Some((Some(Entry { name, offset: start as u64, bytes }), next))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, BootError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let at = self.next.take()?;
            let Some((entry, next)) = self.read(at) else {
                return Some(Err(BootError::DamagedArchive(at as u64)));
            };
            self.next = next;
            if let Some(entry) = entry {
                return Some(Ok(entry));
            }
        }
    }
}

/// The header's 8-digit field `index`, or `None` where a character is no hexadecimal digit.
fn field(header: &[u8], index: usize) -> Option<u32> {
    let start = MAGIC.len() + index * 8;
    header.get(start..start + 8)?.iter().try_fold(0u32, |value, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some(value << 4 | digit)
    })
}

/// `offset` rounded up to 4.
fn align(offset: usize) -> Option<usize> {
    Some(offset.checked_add(3)? & !3)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Appends one entry.
    pub fn append(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
        let mut fields = [0u32; 13];
        fields[FIELD_MODE] = mode;
        fields[FIELD_FILE_SIZE] = data.len() as u32;
        fields[FIELD_NAME_SIZE] = name.len() as u32 + 1;
        archive.extend_from_slice(b"070701");
        for value in fields {
            archive.extend_from_slice(format!("{value:08X}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }

    /// An archive of regular files.
    pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (name, data) in files {
            append(&mut archive, name, 0o100644, data);
        }
        append(&mut archive, "TRAILER!!!", 0, b"");
        archive
    }

    #[test]
    fn files_are_found_in_place() {
        let archive = archive(&[("kernel", b"12345"), ("./vm.cmdline", b"console=ttyS0"), ("empty", b"")]);
        let entries: Vec<_> = Entries::new(&archive).map(Result::unwrap).collect();
        assert_eq!(entries.len(), 3);
        assert_eq!((entries[0].name, entries[0].bytes), ("kernel", &b"12345"[..]));
        assert_eq!(&archive[entries[0].offset as usize..][..5], b"12345");
        assert_eq!((entries[1].name, entries[1].bytes), ("vm.cmdline", &b"console=ttyS0"[..]));
        assert_eq!((entries[2].name, entries[2].bytes), ("empty", &b""[..]));
    }

    #[test]
    fn directories_are_passed_over() {
        let mut archive = Vec::new();
        append(&mut archive, ".", 0o040755, b"");
        append(&mut archive, "a", 0o100600, b"x");
        append(&mut archive, "TRAILER!!!", 0, b"");
        let names: Vec<_> = Entries::new(&archive).map(|entry| entry.unwrap().name).collect();
        assert_eq!(names, ["a"]);
    }

    #[test]
    fn every_truncation_is_refused() {
        let archive = archive(&[("a", b"data"), ("b", b"more")]);
        // The trailer's padding is not needed.
        let needed = archive.len() - archive.iter().rev().take_while(|&&byte| byte == 0).count() + 1;
        for length in 0..needed {
            let last = Entries::new(&archive[..length]).last();
            assert!(matches!(last, Some(Err(BootError::DamagedArchive(_)))), "cut to {length}: {last:?}");
        }
        assert!(Entries::new(&archive[..needed]).all(|entry| entry.is_ok()));
    }

    #[test]
    fn hostile_fields_are_refused() {
        let good = archive(&[("a", b"data")]);
        for (index, digits) in
            [(FIELD_FILE_SIZE, b"FFFFFFFF"), (FIELD_NAME_SIZE, b"FFFFFFFF"), (FIELD_NAME_SIZE, b"00000000")]
        {
            let mut bad = good.clone();
            bad[6 + index * 8..][..8].copy_from_slice(digits);
            assert_eq!(Entries::new(&bad).next(), Some(Err(BootError::DamagedArchive(0))), "field {index}");
        }
        let mut bad = good.clone();
        bad[6 + FIELD_FILE_SIZE * 8] = b'+';
        assert_eq!(Entries::new(&bad).next(), Some(Err(BootError::DamagedArchive(0))));
        let mut bad = good;
        bad[HEADER_LENGTH] = 0xff;
        assert_eq!(Entries::new(&bad).next(), Some(Err(BootError::DamagedArchive(0))), "name not UTF-8");
    }

    #[test]
    fn arbitrary_changes_never_panic_and_always_end() {
        let good = archive(&[("kernel", b"0123456789abcdef"), ("initrd", b"zzz")]);
        for position in 0..good.len() {
            for value in [0, b'0', b'7', b'F', b'f', 0x80, 0xff] {
                let mut bad = good.clone();
                bad[position] = value;
                assert!(Entries::new(&bad).count() <= bad.len());
            }
        }
    }
}
