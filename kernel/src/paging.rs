//! The host's page tables: how they are built, whatever memory holds them.
//!
//! Key types: [`AddressSpace`], which maps ranges with the largest pages that fit; [`Tables`], the memory it writes to;
//! [`Permissions`], of which no value is writable and executable. Neighbours: `address_space` (bare metal) owns the one
//! real instance. Guests' second-level tables are not made here but in the backends.
//!
//! Pins Intel SDM Volume 3A, 4.5 "4-Level Paging and 5-Level Paging" (325384-083); AMD's APM Volume 2, 5.3 has the same
//! layout. Nothing is ever unmapped or made less permissive, so that no CPU's TLB can hold what the tables no longer say:
//! there is no shoot-down because there is nothing to shoot.

use crate::frames::FrameSize;
use bitflags::bitflags;

/// Entries of one table.
pub const ENTRIES: usize = 512;

bitflags! {
    /// Bits of an entry. SDM 3A tables 4-15 to 4-20.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Bits: u64 {
        const PRESENT = 1 << 0;
        const WRITABLE = 1 << 1;
        const WRITE_THROUGH = 1 << 3;
        const CACHE_DISABLE = 1 << 4;
        const ACCESSED = 1 << 5;
        const DIRTY = 1 << 6;
        /// A page, not a table; in tables above the lowest.
        const PAGE_SIZE = 1 << 7;
        const NO_EXECUTE = 1 << 63;
    }
}

/// Physical address bits of an entry.
const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

/// What may be done to a page. Writable and executable at once does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permissions {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
    /// Read and execute.
    ReadExecute,
    /// Device registers: read and write, uncached (PAT entry 3, UC, as the reset value has it. SDM 3A 12.12.4).
    Device,
}

impl Permissions {
    fn bits(self) -> Bits {
        // Accessed and dirty from the start: the CPU need not write them.
        let common = Bits::PRESENT | Bits::ACCESSED | Bits::DIRTY;
        common
            | match self {
                Self::ReadOnly => Bits::NO_EXECUTE,
                Self::ReadWrite => Bits::WRITABLE | Bits::NO_EXECUTE,
                Self::ReadExecute => Bits::empty(),
                Self::Device => Bits::WRITABLE | Bits::NO_EXECUTE | Bits::CACHE_DISABLE | Bits::WRITE_THROUGH,
            }
    }

    fn of(bits: Bits) -> Self {
        match (bits.contains(Bits::CACHE_DISABLE), bits.contains(Bits::WRITABLE), bits.contains(Bits::NO_EXECUTE)) {
            (true, ..) => Self::Device,
            (false, true, _) => Self::ReadWrite,
            (false, false, true) => Self::ReadOnly,
            (false, false, false) => Self::ReadExecute,
        }
    }
}

/// Memory for page tables, by physical address.
pub trait Tables {
    /// A zeroed table, or `None` when memory is used up.
    fn allocate(&mut self) -> Option<u64>;
    /// Entry `index`, below [`ENTRIES`], of the table at `table`.
    fn get(&self, table: u64, index: usize) -> u64;
    /// Sets that entry.
    fn set(&mut self, table: u64, index: usize, value: u64);
}

/// Why a range could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No memory for a table.
    OutOfMemory,
    /// The virtual address, physical address or length is not a multiple of 4 KiB, or the range wraps.
    BadRange,
    /// Something is mapped at this virtual address already.
    Taken(u64),
}

/// A virtual address space of four levels.
pub struct AddressSpace<T> {
    tables: T,
    root: u64,
    largest: FrameSize,
}

impl<T: Tables> AddressSpace<T> {
    /// An empty address space that uses pages up to `largest`, or `None` without memory for its root.
    pub fn new(mut tables: T, largest: FrameSize) -> Option<Self> {
        let root = tables.allocate()?;
        Some(Self { tables, root, largest })
    }

    /// Physical address of the root table, for CR3.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Maps `length` bytes at `virtual_address` to `physical`.
    ///
    /// # Errors
    /// See [`MapError`]; what was mapped before the error stays mapped.
    pub fn map(
        &mut self,
        virtual_address: u64,
        physical: u64,
        length: u64,
        permissions: Permissions,
    ) -> Result<(), MapError> {
        let small = FrameSize::Small.bytes();
        if (virtual_address | physical | length) & (small - 1) != 0
            || virtual_address.checked_add(length.saturating_sub(1)).is_none()
            || physical.checked_add(length).is_none_or(|end| end > ADDRESS_MASK)
        {
            return Err(MapError::BadRange);
        }
        let mut done = 0;
        while done < length {
            let (at, to) = (virtual_address.wrapping_add(done), physical + done);
            let size = self.fitting(at, to, length - done);
            self.map_page(at, to, size, permissions)?;
            done += size.bytes();
        }
        Ok(())
    }

    /// The physical address and permissions that `virtual_address` is mapped to.
    pub fn translate(&self, virtual_address: u64) -> Option<(u64, Permissions)> {
        let mut table = self.root;
        for level in (0..4).rev() {
            let entry = self.tables.get(table, index(virtual_address, level));
            let bits = Bits::from_bits_truncate(entry);
            if !bits.contains(Bits::PRESENT) {
                return None;
            }
            if level == 0 || bits.contains(Bits::PAGE_SIZE) {
                let offset = virtual_address & (span(level) - 1);
                return Some((entry & ADDRESS_MASK & !(span(level) - 1) | offset, Permissions::of(bits)));
            }
            table = entry & ADDRESS_MASK;
        }
        None
    }

    /// The largest page that both addresses are aligned for and `rest` fills.
    fn fitting(&self, virtual_address: u64, physical: u64, rest: u64) -> FrameSize {
        let fits = |size: FrameSize| {
            size.bytes() <= self.largest.bytes()
                && (virtual_address | physical) & (size.bytes() - 1) == 0
                && rest >= size.bytes()
        };
        [FrameSize::Huge, FrameSize::Large].into_iter().find(|&size| fits(size)).unwrap_or(FrameSize::Small)
    }

    fn map_page(
        &mut self,
        virtual_address: u64,
        physical: u64,
        size: FrameSize,
        permissions: Permissions,
    ) -> Result<(), MapError> {
        let (leaf_level, page_bit) = match size {
            FrameSize::Small => (0, Bits::empty()),
            FrameSize::Large => (1, Bits::PAGE_SIZE),
            FrameSize::Huge => (2, Bits::PAGE_SIZE),
        };
        let mut table = self.root;
        for level in (leaf_level + 1..4).rev() {
            let index = index(virtual_address, level);
            let entry = Bits::from_bits_retain(self.tables.get(table, index));
            if !entry.contains(Bits::PRESENT) {
                let below = self.tables.allocate().ok_or(MapError::OutOfMemory)?;
                let flags = Bits::PRESENT | Bits::WRITABLE | Bits::ACCESSED;
                self.tables.set(table, index, below | flags.bits());
                table = below;
            } else if entry.contains(Bits::PAGE_SIZE) {
                return Err(MapError::Taken(virtual_address));
            } else {
                table = entry.bits() & ADDRESS_MASK;
            }
        }
        let index = index(virtual_address, leaf_level);
        if self.tables.get(table, index) & Bits::PRESENT.bits() != 0 {
            return Err(MapError::Taken(virtual_address));
        }
        self.tables.set(table, index, physical | (permissions.bits() | page_bit).bits());
        Ok(())
    }
}

/// Bytes that one entry of a table at `level` (0 the lowest) covers.
const fn span(level: u32) -> u64 {
    1 << (12 + 9 * level)
}

/// Which entry of a table at `level` covers `virtual_address`.
const fn index(virtual_address: u64, level: u32) -> usize {
    (virtual_address >> (12 + 9 * level)) as usize & (ENTRIES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB4: u64 = 4096;
    const MIB2: u64 = 2 << 20;
    const GIB: u64 = 1 << 30;
    const HIGH: u64 = 0xffff_8000_0000_0000;

    /// Tables in a vector; the physical address is the index times 4096.
    struct FakeTables {
        tables: Vec<[u64; ENTRIES]>,
        limit: usize,
    }

    impl Tables for FakeTables {
        fn allocate(&mut self) -> Option<u64> {
            (self.tables.len() < self.limit).then(|| {
                self.tables.push([0; ENTRIES]);
                self.tables.len() as u64 * 4096
            })
        }
        fn get(&self, table: u64, index: usize) -> u64 {
            self.tables[table as usize / 4096 - 1][index]
        }
        fn set(&mut self, table: u64, index: usize, value: u64) {
            self.tables[table as usize / 4096 - 1][index] = value;
        }
    }

    fn space(limit: usize, largest: FrameSize) -> AddressSpace<FakeTables> {
        AddressSpace::new(FakeTables { tables: Vec::new(), limit }, largest).unwrap()
    }

    #[test]
    fn the_largest_fitting_pages_are_used() {
        let mut space = space(100, FrameSize::Huge);
        // 4 KiB below 1 GiB, one GiB, 2 MiB, 4 KiB.
        let start = GIB - KIB4;
        space.map(HIGH + start, start, KIB4 + GIB + MIB2 + KIB4, Permissions::ReadWrite).unwrap();
        // Root, one third level, two second levels (first and third GiB), two lowest levels.
        assert_eq!(space.tables.tables.len(), 6);
        for offset in [start, GIB, GIB + 5, 2 * GIB - 1, 2 * GIB, 2 * GIB + MIB2 + KIB4 - 1] {
            assert_eq!(space.translate(HIGH + offset), Some((offset, Permissions::ReadWrite)), "{offset:#x}");
        }
        for offset in [0, start - 1, 2 * GIB + MIB2 + KIB4] {
            assert_eq!(space.translate(HIGH + offset), None, "{offset:#x}");
        }
    }

    #[test]
    fn pages_are_no_larger_than_the_cpu_has() {
        let mut space = space(100, FrameSize::Large);
        space.map(HIGH, 0, GIB, Permissions::ReadWrite).unwrap();
        assert_eq!(space.tables.tables.len(), 3);
        let entry = space.tables.get(3 * 4096, 511);
        assert_eq!(entry & ADDRESS_MASK, GIB - MIB2);
        assert_ne!(entry & 1 << 7, 0);
    }

    #[test]
    fn misaligned_physical_addresses_get_small_pages() {
        let mut space = space(100, FrameSize::Huge);
        space.map(HIGH, KIB4, MIB2, Permissions::ReadOnly).unwrap();
        assert_eq!(space.translate(HIGH + MIB2 - 1), Some((MIB2 + KIB4 - 1, Permissions::ReadOnly)));
        assert_eq!(space.tables.tables.len(), 4);
    }

    #[test]
    fn permissions_are_what_the_manual_says() {
        let mut space = space(100, FrameSize::Huge);
        let no_execute = 1u64 << 63;
        for (page, permissions, writable, executable, uncached) in [
            (0, Permissions::ReadOnly, false, false, false),
            (1, Permissions::ReadWrite, true, false, false),
            (2, Permissions::ReadExecute, false, true, false),
            (3, Permissions::Device, true, false, true),
        ] {
            space.map(HIGH + page * KIB4, page * KIB4, KIB4, permissions).unwrap();
            let entry = space.tables.get(4 * 4096, page as usize);
            assert_eq!(entry & 2 != 0, writable);
            assert_eq!(entry & no_execute == 0, executable);
            assert_eq!(entry & 0x18 == 0x18, uncached);
            assert_eq!(space.translate(HIGH + page * KIB4), Some((page * KIB4, permissions)));
        }
    }

    #[test]
    fn nothing_is_mapped_twice() {
        let mut space = space(100, FrameSize::Huge);
        space.map(HIGH, 0, GIB, Permissions::ReadWrite).unwrap();
        assert_eq!(
            space.map(HIGH + MIB2, MIB2, KIB4, Permissions::ReadExecute),
            Err(MapError::Taken(HIGH + MIB2)),
            "a small page under a huge one"
        );
        space.map(HIGH + GIB, GIB, KIB4, Permissions::ReadOnly).unwrap();
        assert_eq!(
            space.map(HIGH + GIB, GIB, GIB, Permissions::ReadWrite),
            Err(MapError::Taken(HIGH + GIB)),
            "a huge page over a table"
        );
    }

    #[test]
    fn bad_ranges_and_missing_memory_are_errors() {
        let mut space = space(3, FrameSize::Huge);
        assert_eq!(space.map(HIGH + 1, 0, KIB4, Permissions::ReadOnly), Err(MapError::BadRange));
        assert_eq!(space.map(HIGH, 1, KIB4, Permissions::ReadOnly), Err(MapError::BadRange));
        assert_eq!(space.map(HIGH, 0, 1, Permissions::ReadOnly), Err(MapError::BadRange));
        assert_eq!(space.map(0xffff_ffff_ffff_f000, 0, 2 * KIB4, Permissions::ReadOnly), Err(MapError::BadRange));
        assert_eq!(space.map(HIGH, 1 << 52, KIB4, Permissions::ReadOnly), Err(MapError::BadRange));
        assert_eq!(space.map(HIGH, 0, KIB4, Permissions::ReadOnly), Err(MapError::OutOfMemory));
        let mut enough = super::tests::space(4, FrameSize::Huge);
        assert_eq!(enough.map(0xffff_ffff_ffff_f000, 0, KIB4, Permissions::ReadOnly), Ok(()), "the very last page");
    }
}
