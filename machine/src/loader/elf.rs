//! ELF executables of both classes, little-endian: which bytes go where in physical memory, and their notes.
//!
//! Manual: System V ABI, "Object Files" (gABI 4.1, chapters 4 and 5). Sections are not read.

use super::LoadError;
use super::bytes::Source;
use super::placement::Room;
use memory::{Gpa, GuestMemory};

const MAGIC: &[u8] = b"\x7fELF";
/// EI_DATA: two's complement, little-endian.
const LITTLE_ENDIAN: u8 = 1;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// More program headers than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// Most notes that are looked through in one segment.
const MAX_NOTES: usize = 1024;

/// ELFCLASS32 or ELFCLASS64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// 32-bit structures, for i386.
    Bits32,
    /// 64-bit structures, for x86-64.
    Bits64,
}

/// A checked ELF header over the image.
#[derive(Clone, Copy)]
pub(super) struct Elf<'a> {
    source: Source<'a>,
    pub class: Class,
    pub entry: u64,
    table: u64,
    entry_size: u64,
    count: u16,
}

/// A program header.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    offset: u64,
    physical: u64,
    file_size: u64,
    memory_size: u64,
    alignment: u64,
}

/// Whether the image begins as an ELF file does.
pub(super) fn recognises(image: &[u8]) -> bool {
    image.starts_with(MAGIC)
}

impl<'a> Elf<'a> {
    /// Checks the header.
    pub fn parse(image: &'a [u8]) -> Result<Self, LoadError> {
        let source = Source(image);
        let cut = || LoadError::Truncated("ELF header");
        if !recognises(image) {
            return Err(LoadError::Unrecognised);
        }
        let class = match source.byte(4).ok_or_else(cut)? {
            1 => Class::Bits32,
            2 => Class::Bits64,
            _ => return Err(LoadError::Malformed("its ELF class is neither 32 nor 64 bits")),
        };
        if source.byte(5).ok_or_else(cut)? != LITTLE_ENDIAN {
            return Err(LoadError::Unsupported("the kernel is a big-endian ELF file, not one for x86"));
        }
        // e_machine is EM_386 or EM_X86_64; some 32-bit kernels for 64-bit processors mix the two.
        if !matches!(source.word(18).ok_or_else(cut)?, 3 | 62) {
            return Err(LoadError::Unsupported("the kernel is an ELF file for another processor than x86"));
        }
        let (entry, table, entry_size, count) = match class {
            Class::Bits32 => {
                (source.dword(24).map(u64::from), source.dword(28).map(u64::from), source.word(42), source.word(44))
            }
            Class::Bits64 => (source.qword(24), source.qword(32), source.word(54), source.word(56)),
        };
        let smallest = match class {
            Class::Bits32 => 32,
            Class::Bits64 => 56,
        };
        let entry_size = u64::from(entry_size.ok_or_else(cut)?);
        let count = count.ok_or_else(cut)?;
        if count == 0 || count > MAX_PROGRAM_HEADERS || entry_size < smallest {
            return Err(LoadError::Malformed("its ELF program header table has an impossible size"));
        }
        Ok(Self { source, class, entry: entry.ok_or_else(cut)?, table: table.ok_or_else(cut)?, entry_size, count })
    }

    fn segment(&self, index: u16) -> Result<Segment, LoadError> {
        let read = || {
            let at = self.table.checked_add(u64::from(index) * self.entry_size)?;
            let field = |offset: u64| at.checked_add(offset);
            let long = |offset| self.source.qword(field(offset)?);
            let short = |offset| self.source.dword(field(offset)?).map(u64::from);
            Some(match self.class {
                Class::Bits32 => Segment {
                    kind: self.source.dword(at)?,
                    offset: short(4)?,
                    physical: short(12)?,
                    file_size: short(16)?,
                    memory_size: short(20)?,
                    alignment: short(28)?,
                },
                Class::Bits64 => Segment {
                    kind: self.source.dword(at)?,
                    offset: long(8)?,
                    physical: long(24)?,
                    file_size: long(32)?,
                    memory_size: long(40)?,
                    alignment: long(48)?,
                },
            })
        };
        read().ok_or(LoadError::Truncated("ELF program headers"))
    }

    /// Takes the memory of all loadable segments and fills it: file contents, then zeroes.
    pub fn load(&self, room: &mut Room<'_>, memory: &impl GuestMemory) -> Result<(), LoadError> {
        let mut loaded = false;
        for index in 0..self.count {
            let segment = self.segment(index)?;
            if segment.kind != PT_LOAD || segment.memory_size == 0 {
                continue;
            }
            if segment.file_size > segment.memory_size {
                return Err(LoadError::Malformed("an ELF segment is larger in the file than in memory"));
            }
            let content =
                self.source.bytes(segment.offset, segment.file_size).ok_or(LoadError::Truncated("ELF segments"))?;
            room.take(segment.physical, segment.memory_size)?;
            memory.write(Gpa(segment.physical), content)?;
            let rest = Gpa(segment.physical.saturating_add(segment.file_size));
            memory.fill(rest, 0, segment.memory_size - segment.file_size)?;
            loaded = true;
        }
        if loaded { Ok(()) } else { Err(LoadError::Malformed("the ELF file has nothing to load")) }
    }

    /// The descriptor of the note `kind` of `owner` (its name with the terminating zero), if there is one.
    pub fn note(&self, owner: &[u8], kind: u32) -> Result<Option<&'a [u8]>, LoadError> {
        for index in 0..self.count {
            let segment = self.segment(index)?;
            if segment.kind != PT_NOTE {
                continue;
            }
            let notes =
                self.source.bytes(segment.offset, segment.file_size).ok_or(LoadError::Truncated("ELF notes"))?;
            // Notes are padded to 4 bytes, and to 8 in segments that ask for it.
            let padding = if segment.alignment == 8 { 8 } else { 4 };
            if let Some(found) = find_note(Source(notes), padding, owner, kind) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

fn find_note<'a>(notes: Source<'a>, padding: u64, owner: &[u8], kind: u32) -> Option<&'a [u8]> {
    let mut at = 0_u64;
    for _ in 0..MAX_NOTES {
        let name_size = u64::from(notes.dword(at)?);
        let size = u64::from(notes.dword(at.checked_add(4)?)?);
        let name_at = at.checked_add(12)?;
        let content_at = name_at.checked_add(name_size)?.checked_next_multiple_of(padding)?;
        if notes.dword(at.checked_add(8)?)? == kind && notes.bytes(name_at, name_size)? == owner {
            return notes.bytes(content_at, size);
        }
        at = content_at.checked_add(size)?.checked_next_multiple_of(padding)?;
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::MemoryLayout;
    use super::super::tests::{MIB, bytes_at, ram, regions};
    use super::*;
    use alloc::{vec, vec::Vec};

    /// An ELF file with one segment of `content` plus `extra` zero bytes at `physical`, and the bytes of a note segment.
    pub(crate) fn file(class: Class, entry: u64, physical: u64, content: &[u8], extra: u64, note: &[u8]) -> Vec<u8> {
        let (header, each) = if class == Class::Bits32 { (52, 32) } else { (64, 56) };
        let data_at = header + 2 * each;
        let note_at = data_at + content.len();
        let mut out = vec![0; data_at];
        out[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', if class == Class::Bits32 { 1 } else { 2 }, 1, 1]);
        out[16] = 2;
        out[18] = if class == Class::Bits32 { 3 } else { 62 };
        out[20] = 1;
        let mut put =
            |at: usize, value: u64, width: usize| out[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        if class == Class::Bits32 {
            for (at, value, width) in [(24, entry, 4), (28, 52, 4), (40, 52, 2), (42, 32, 2), (44, 2, 2)] {
                put(at, value, width);
            }
            let memory_size = content.len() as u64 + extra;
            for (at, value) in [
                (0, 1),
                (4, data_at as u64),
                (8, physical),
                (12, physical),
                (16, content.len() as u64),
                (20, memory_size),
            ] {
                put(52 + at, value, 4);
            }
            for (at, value) in [(0, 4), (4, note_at as u64), (16, note.len() as u64), (28, 4)] {
                put(84 + at, value, 4);
            }
        } else {
            for (at, value, width) in [(24, entry, 8), (32, 64, 8), (52, 64, 2), (54, 56, 2), (56, 2, 2)] {
                put(at, value, width);
            }
            put(64, 1, 4);
            let memory_size = content.len() as u64 + extra;
            for (at, value) in
                [(8, data_at as u64), (16, physical), (24, physical), (32, content.len() as u64), (40, memory_size)]
            {
                put(64 + at, value, 8);
            }
            put(120, 4, 4);
            for (at, value) in [(8, note_at as u64), (32, note.len() as u64), (48, 4)] {
                put(120 + at, value, 8);
            }
        }
        out.extend_from_slice(content);
        out.extend_from_slice(note);
        out
    }

    /// A note, padded to four bytes.
    pub(crate) fn note(owner: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for field in [owner.len() as u32, content.len() as u32, kind] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for part in [owner, content] {
            out.extend_from_slice(part);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    fn load(image: &[u8]) -> Result<memory::SparseMemory, LoadError> {
        let memory = ram(2 * MIB);
        memory.fill(Gpa(MIB), 0xcc, 64).unwrap();
        let regions = regions(2 * MIB);
        let layout = MemoryLayout { regions: &regions, rsdp: None };
        Elf::parse(image)?.load(&mut Room::new(&layout)?, &memory)?;
        Ok(memory)
    }

    #[test]
    fn segments_are_copied_and_their_rest_is_zeroed() {
        for class in [Class::Bits32, Class::Bits64] {
            let memory = load(&file(class, 0, MIB, b"code", 3, b"")).unwrap();
            assert_eq!(bytes_at(&memory, MIB, 8), b"code\0\0\0\xcc");
        }
    }

    #[test]
    fn a_note_is_found_behind_others() {
        let mut notes = note(b"GNU\0", 3, b"abc");
        notes.extend(note(b"Xen\0", 17, b"no"));
        notes.extend(note(b"Xen\0", 18, b"here"));
        for class in [Class::Bits32, Class::Bits64] {
            let image = file(class, 0, MIB, b"x", 0, &notes);
            let elf = Elf::parse(&image).unwrap();
            assert_eq!(elf.note(b"Xen\0", 18), Ok(Some(&b"here"[..])));
            assert_eq!(elf.note(b"Xen\0", 19), Ok(None));
        }
    }

    #[test]
    fn damaged_headers_are_refused() {
        let whole = file(Class::Bits64, 0, MIB, b"x", 0, b"");
        let change = |at: usize, value: u8| {
            let mut image = whole.clone();
            image[at] = value;
            load(&image).err().unwrap()
        };
        assert!(matches!(change(4, 3), LoadError::Malformed(_)));
        assert!(matches!(change(5, 2), LoadError::Unsupported(_)));
        assert!(matches!(change(18, 40), LoadError::Unsupported(_)));
        assert!(matches!(change(54, 1), LoadError::Malformed(_)));
        assert!(matches!(change(57, 200), LoadError::Malformed(_)));
        assert!(matches!(change(39, 0xff), LoadError::Truncated(_)), "program headers past the end of everything");
        assert!(matches!(change(64 + 15, 0xff), LoadError::Truncated(_)), "file offset past the end");
        assert!(matches!(change(64 + 32, 9), LoadError::Malformed(_)), "more in the file than in memory");
        assert!(matches!(change(64 + 31, 0xff), LoadError::NotFree { .. }), "outside memory");
        assert!(matches!(change(64 + 24 + 2, 0x08), LoadError::NotFree { .. }), "in the loader's own area");
        assert!(matches!(change(64, 0), LoadError::Malformed(_)), "nothing to load");
        for len in 0..whole.len() {
            assert!(load(&whole[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn note_sizes_that_lie_end_the_search() {
        for field in [0, 4] {
            let mut notes = note(b"Xen\0", 18, b"here");
            notes[field..field + 4].copy_from_slice(&[0xff; 4]);
            let image = file(Class::Bits64, 0, MIB, b"x", 0, &notes);
            assert_eq!(Elf::parse(&image).unwrap().note(b"Xen\0", 18), Ok(None));
        }
    }
}
