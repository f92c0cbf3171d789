//! Tables that translate guest-physical to host-physical addresses, in the format of either vendor.
//!
//! Key types: [`Tables`], a [`SecondLevel`] of four levels; [`EntryFormat`], what the vendors do differently; [`TableMemory`],
//! the little that it needs of the host. Neighbours: `svm` and `vmx` give formats and memory. It flushes nothing: it tells
//! [`TableMemory::translations_removed`], and each vCPU looks there before it enters.
//!
//! Both vendors' entries have their address in bits 51:12 and the mark of a large page in bit 7; accessed and dirty bits that the
//! processor sets are kept when a large page is split.

use crate::{Hpa, MapError, MemoryType, OutOfFrames, Permissions, SecondLevel};
use memory::{Gpa, PAGE_SIZE};

/// Entries in a table.
const ENTRIES: usize = 512;
/// The widest guest-physical address that four levels translate, in bits.
const WIDEST: u32 = 48;
/// A large page, above level 1.
const LARGE: u64 = 1 << 7;
/// An entry's address.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What a vendor's entries look like.
pub trait EntryFormat: Send {
    /// An entry without any of these bits is absent, whatever its others.
    const PRESENT: u64;
    /// The flags of an entry that points to a table: everything is allowed; the last level decides.
    const TABLE: u64;
    /// The flags of a page, but for the mark of a large one.
    fn leaf(&self, permissions: Permissions, kind: MemoryType) -> u64;
    /// What a page's entry allows.
    fn permissions(entry: u64) -> Permissions;
    /// What the hardware wants to know beside the root's address.
    fn pointer(&self) -> u64;
}

/// Memory for tables, and the word that is passed to vCPUs when translations go.
pub trait TableMemory: Send {
    /// A zeroed frame.
    fn allocate(&self) -> Result<Hpa, OutOfFrames>;
    /// Gives a frame back.
    fn free(&self, table: Hpa);
    /// Entry `index`, `0..512`, of a table.
    fn read(&self, table: Hpa, index: usize) -> u64;
    /// Replaces an entry in one store.
    fn write(&self, table: Hpa, index: usize, entry: u64);
    /// Translations that a processor may have cached are no longer true.
    fn translations_removed(&self);
}

/// A level of the tables: 1 holds 4 KiB pages, 2 holds 2 MiB pages, 3 holds 1 GiB pages, 4 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(u32);

impl Level {
    const ROOT: Level = Level(4);
    const LAST: Level = Level(1);
    /// Of 4 KiB pages.
    pub const SMALL: Level = Level(1);
    /// Of 2 MiB pages.
    pub const LARGE: Level = Level(2);
    /// Of 1 GiB pages.
    pub const GIANT: Level = Level(3);

    /// Bytes that one entry covers.
    const fn bytes(self) -> u64 {
        1 << (12 + 9 * (self.0 - 1))
    }

    /// The entry's number for an address.
    const fn index(self, gpa: u64) -> usize {
        (gpa >> (12 + 9 * (self.0 - 1))) as usize & (ENTRIES - 1)
    }

    const fn below(self) -> Level {
        Level(self.0 - 1)
    }
}

/// Whether an entry maps memory, rather than a table or nothing.
const fn is_leaf<F: EntryFormat>(entry: u64, level: Level) -> bool {
    entry & F::PRESENT != 0 && (level.0 == Level::LAST.0 || entry & LARGE != 0)
}

/// The entry below `root` that decides about `gpa`, and its level: a leaf, or an absent entry.
fn descend<F: EntryFormat>(root: Hpa, gpa: u64, read: impl Fn(Hpa, usize) -> u64) -> (u64, Level) {
    let mut table = root;
    let mut level = Level::ROOT;
    loop {
        let entry = read(table, level.index(gpa));
        if entry & F::PRESENT == 0 || is_leaf::<F>(entry, level) {
            return (entry, level);
        }
        table = Hpa(entry & ADDRESS);
        level = level.below();
    }
}

/// Where `gpa` lies by the tables below `root`; `None` where nothing readable is mapped. `read` gives an entry of a table.
pub fn walk<F: EntryFormat>(root: Hpa, gpa: Gpa, read: impl Fn(Hpa, usize) -> u64) -> Option<Hpa> {
    if gpa.0 >> WIDEST != 0 {
        return None;
    }
    let (entry, level) = descend::<F>(root, gpa.0, read);
    let readable = entry & F::PRESENT != 0 && F::permissions(entry).contains(Permissions::READ);
    readable.then_some(Hpa((entry & ADDRESS) + (gpa.0 & (level.bytes() - 1))))
}

/// The second-level tables of one virtual machine.
///
/// Tables that become empty are kept for reuse by the same virtual machine and given back only by [`SecondLevel::free`]:
/// until every vCPU has flushed, a processor may still walk through them. So a guest that moves a window about for ever
/// costs no more tables than its widest moment.
pub struct Tables<M: TableMemory, F: EntryFormat> {
    memory: M,
    format: F,
    root: Option<Hpa>,
    /// First of the empty tables; each one's entry 0 holds the address of the next, not present.
    spare: Option<Hpa>,
    /// Largest page, as a level.
    largest: Level,
    /// First address that cannot be translated.
    end: u64,
}

impl<M: TableMemory, F: EntryFormat> Tables<M, F> {
    /// No mappings, on a root table that is zeroed and owned by `memory` already. `largest` is the level of the largest pages
    /// that the processor has, `physical_bits` its width of physical addresses, which is also that of guest-physical ones.
    pub fn new(memory: M, root: Hpa, format: F, largest: Level, physical_bits: u32) -> Self {
        Self { memory, format, root: Some(root), spare: None, largest, end: 1 << physical_bits.min(WIDEST) }
    }

    fn checked_end(&self, gpa: Gpa, bytes: u64) -> Result<u64, MapError> {
        if bytes == 0 || !gpa.0.is_multiple_of(PAGE_SIZE) || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(MapError::Misaligned);
        }
        match gpa.0.checked_add(bytes) {
            Some(end) if end <= self.end => Ok(end),
            _ => Err(MapError::PastEnd),
        }
    }

    fn allocate(&mut self) -> Result<Hpa, MapError> {
        match self.spare {
            Some(table) => {
                let next = self.memory.read(table, 0);
                self.memory.write(table, 0, 0);
                self.spare = (next != 0).then_some(Hpa(next));
                Ok(table)
            }
            None => self.memory.allocate().map_err(|OutOfFrames| MapError::OutOfMemory),
        }
    }

    /// Keeps an empty table for later.
    fn retire(&mut self, table: Hpa) {
        self.memory.write(table, 0, self.spare.map_or(0, |next| next.0));
        self.spare = Some(table);
    }

    /// The entry that decides about `gpa`, and its level: a leaf, or an absent entry.
    fn walk(&self, gpa: u64) -> Option<(u64, Level)> {
        Some(descend::<F>(self.root?, gpa, |table, index| self.memory.read(table, index)))
    }

    /// Whether some page of the range is mapped.
    fn overlaps(&self, gpa: u64, end: u64) -> bool {
        let mut at = gpa;
        while at < end {
            let Some((entry, level)) = self.walk(at) else { return false };
            if entry & F::PRESENT != 0 {
                return true;
            }
            at = (at | (level.bytes() - 1)) + 1;
        }
        false
    }

    /// Writes one leaf at `level`, making the tables above it.
    fn map_one(&mut self, gpa: u64, leaf: u64, wanted: Level) -> Result<(), MapError> {
        let mut table = self.root.ok_or(MapError::OutOfMemory)?;
        let mut level = Level::ROOT;
        while level > wanted {
            let index = level.index(gpa);
            let entry = self.memory.read(table, index);
            table = if entry & F::PRESENT != 0 {
                Hpa(entry & ADDRESS)
            } else {
                let below = self.allocate()?;
                self.memory.write(table, index, below.0 | F::TABLE);
                below
            };
            level = level.below();
        }
        self.memory.write(table, level.index(gpa), leaf);
        Ok(())
    }

    /// The largest page that fits at these addresses and is free of a table in its place.
    fn page_level(&self, gpa: u64, hpa: u64, bytes: u64) -> Level {
        let mut level = self.largest;
        while level > Level::LAST {
            let size = level.bytes();
            let fits = (gpa | hpa).is_multiple_of(size) && bytes >= size;
            // An absent entry at this level or above; a table here, empty or not, is filled with smaller pages.
            if fits && self.walk(gpa).is_some_and(|(entry, found)| entry & F::PRESENT == 0 && found >= level) {
                return level;
            }
            level = level.below();
        }
        Level::LAST
    }

    /// Takes `gpa..end`, which lies under one table, out of it. True if the table is empty then.
    fn unmap_in(&mut self, table: Hpa, level: Level, gpa: u64, end: u64) -> Result<bool, MapError> {
        let mut at = gpa;
        while at < end {
            let index = level.index(at);
            let next = ((at | (level.bytes() - 1)) + 1).min(end);
            let entry = self.memory.read(table, index);
            if entry & F::PRESENT != 0 {
                let whole = at.is_multiple_of(level.bytes()) && next - at == level.bytes();
                if is_leaf::<F>(entry, level) && whole {
                    self.memory.write(table, index, 0);
                } else {
                    let below = if is_leaf::<F>(entry, level) {
                        self.split(table, index, level)?
                    } else {
                        Hpa(entry & ADDRESS)
                    };
                    if self.unmap_in(below, level.below(), at, next)? {
                        self.memory.write(table, index, 0);
                        self.retire(below);
                    }
                }
            }
            at = next;
        }
        Ok((0..ENTRIES).all(|index| self.memory.read(table, index) & F::PRESENT == 0))
    }

    /// Replaces the large page at `index` by a table of pages that map the same.
    fn split(&mut self, table: Hpa, index: usize, level: Level) -> Result<Hpa, MapError> {
        let below = self.allocate()?;
        let entry = self.memory.read(table, index);
        let smaller = level.below();
        let flags = if smaller == Level::LAST { entry & !ADDRESS & !LARGE } else { entry & !ADDRESS };
        for (number, slot) in (0..ENTRIES).enumerate() {
            let page = (entry & ADDRESS) + number as u64 * smaller.bytes();
            self.memory.write(below, slot, page | flags);
        }
        self.memory.write(table, index, below.0 | F::TABLE);
        Ok(below)
    }

    fn free_below(&self, table: Hpa, level: Level) {
        if level > Level::LAST {
            for index in 0..ENTRIES {
                let entry = self.memory.read(table, index);
                if entry & F::PRESENT != 0 && !is_leaf::<F>(entry, level) {
                    let below = Hpa(entry & ADDRESS);
                    self.free_below(below, level.below());
                    self.memory.free(below);
                }
            }
        }
    }
}

impl<M: TableMemory, F: EntryFormat> SecondLevel for Tables<M, F> {
    fn map(
        &mut self,
        gpa: Gpa,
        hpa: Hpa,
        bytes: u64,
        permissions: Permissions,
        kind: MemoryType,
    ) -> Result<(), MapError> {
        let end = self.checked_end(gpa, bytes)?;
        if !hpa.0.is_multiple_of(PAGE_SIZE) {
            return Err(MapError::Misaligned);
        }
        if hpa.0.checked_add(bytes).is_none_or(|end| end > ADDRESS + PAGE_SIZE) {
            return Err(MapError::PastEnd);
        }
        if self.overlaps(gpa.0, end) {
            return Err(MapError::Overlap);
        }
        let flags = self.format.leaf(permissions, kind);
        let mut done = 0;
        while done < bytes {
            let (at, to) = (gpa.0 + done, hpa.0 + done);
            let level = self.page_level(at, to, bytes - done);
            let large = if level > Level::LAST { LARGE } else { 0 };
            self.map_one(at, to | flags | large, level)?;
            done += level.bytes();
        }
        Ok(())
    }

    fn unmap(&mut self, gpa: Gpa, bytes: u64) -> Result<(), MapError> {
        let end = self.checked_end(gpa, bytes)?;
        let root = self.root.ok_or(MapError::OutOfMemory)?;
        let result = self.unmap_in(root, Level::ROOT, gpa.0, end);
        self.memory.translations_removed();
        result.map(|_| ())
    }

    fn translate(&self, gpa: Gpa) -> Option<(Hpa, Permissions)> {
        if gpa.0 >= self.end {
            return None;
        }
        let (entry, level) = self.walk(gpa.0)?;
        if entry & F::PRESENT == 0 {
            return None;
        }
        Some((Hpa((entry & ADDRESS) + (gpa.0 & (level.bytes() - 1))), F::permissions(entry)))
    }

    /// 0 after [`SecondLevel::free`].
    fn root(&self) -> u64 {
        self.root.map_or(0, |root| root.0 | self.format.pointer())
    }

    fn free(&mut self) {
        if let Some(root) = self.root.take() {
            self.free_below(root, Level::ROOT);
            self.memory.free(root);
        }
        while let Some(table) = self.spare {
            let next = self.memory.read(table, 0);
            self.spare = (next != 0).then_some(Hpa(next));
            self.memory.free(table);
        }
    }
}

impl<M: TableMemory, F: EntryFormat> Drop for Tables<M, F> {
    fn drop(&mut self) {
        self.free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::collections::BTreeMap;
    use alloc::sync::Arc;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use spin::Mutex;

    /// As simple as a format can be: the bits of page tables.
    struct Plain;

    impl EntryFormat for Plain {
        const PRESENT: u64 = 1;
        const TABLE: u64 = 7;
        fn leaf(&self, permissions: Permissions, kind: MemoryType) -> u64 {
            let mut flags = 5;
            if permissions.contains(Permissions::WRITE) {
                flags |= 2;
            }
            if !permissions.contains(Permissions::EXECUTE) {
                flags |= 1 << 63;
            }
            if kind == MemoryType::Uncacheable {
                flags |= 0x18;
            }
            flags
        }
        fn permissions(entry: u64) -> Permissions {
            let mut permissions = Permissions::READ;
            permissions.set(Permissions::WRITE, entry & 2 != 0);
            permissions.set(Permissions::EXECUTE, entry >> 63 == 0);
            permissions
        }
        fn pointer(&self) -> u64 {
            0
        }
    }

    const RWX: Permissions = Permissions::all();
    const RAM: MemoryType = MemoryType::WriteBack;
    const KIB4: u64 = 4 << 10;
    const MIB2: u64 = 2 << 20;
    const GIB: u64 = 1 << 30;
    const ROOT: Hpa = Hpa(0x10_0000);

    #[derive(Default)]
    struct Record {
        tables: BTreeMap<u64, Box<[u64; ENTRIES]>>,
        limit: usize,
        ever: u64,
        removals: usize,
    }

    /// Tables on the heap; remembers what was allocated, freed and told.
    #[derive(Clone)]
    struct Recording(Arc<Mutex<Record>>);

    impl Recording {
        fn tables(&self) -> usize {
            self.0.lock().tables.len()
        }
    }

    impl TableMemory for Recording {
        fn allocate(&self) -> Result<Hpa, OutOfFrames> {
            let mut record = self.0.lock();
            if record.tables.len() >= record.limit {
                return Err(OutOfFrames);
            }
            let at = ROOT.0 + record.ever * KIB4;
            record.ever += 1;
            record.tables.insert(at, Box::new([0; ENTRIES]));
            Ok(Hpa(at))
        }
        fn free(&self, table: Hpa) {
            assert!(self.0.lock().tables.remove(&table.0).is_some(), "freed once, and allocated before");
        }
        fn read(&self, table: Hpa, index: usize) -> u64 {
            self.0.lock().tables[&table.0][index]
        }
        fn write(&self, table: Hpa, index: usize, entry: u64) {
            self.0.lock().tables.get_mut(&table.0).unwrap()[index] = entry;
        }
        fn translations_removed(&self) {
            self.0.lock().removals += 1;
        }
    }

    fn made(limit: usize) -> (Tables<Recording, Plain>, Recording) {
        let recording = Recording(Arc::new(Mutex::new(Record { limit, ..Record::default() })));
        let root = recording.allocate().unwrap();
        (Tables::new(recording.clone(), root, Plain, Level::GIANT, 48), recording)
    }

    #[test]
    fn one_small_page_is_four_levels() {
        let (mut tables, recording) = made(64);
        tables.map(Gpa(0xfee0_0000), Hpa(0x1234_5000), KIB4, Permissions::READ, MemoryType::Uncacheable).unwrap();
        assert_eq!(recording.tables(), 4);
        let level3 = recording.read(ROOT, 0);
        assert_eq!(level3 & 0xfff, 7);
        let level2 = recording.read(Hpa(level3 & !0xfff), 3);
        let level1 = recording.read(Hpa(level2 & !0xfff), 0x1f7);
        assert_eq!(recording.read(Hpa(level1 & !0xfff), 0), 1 << 63 | 0x1234_501d);
        assert_eq!(tables.translate(Gpa(0xfee0_0123)), Some((Hpa(0x1234_5123), Permissions::READ)));
        assert_eq!(tables.translate(Gpa(0xfee0_1000)), None);
    }

    #[test]
    fn the_largest_page_that_fits_is_taken() {
        let (mut tables, recording) = made(64);
        tables.map(Gpa(0), Hpa(4 * GIB), 2 * GIB + MIB2 + KIB4, RWX, RAM).unwrap();
        // Root, level 3, one level 2 for the 2 MiB page, one level 1 for the last page.
        assert_eq!(recording.tables(), 4);
        let level3 = Hpa(recording.read(ROOT, 0) & ADDRESS);
        assert_eq!(recording.read(level3, 0), (4 * GIB) | 0x87);
        assert_eq!(tables.translate(Gpa(2 * GIB + MIB2)).unwrap().0, Hpa(6 * GIB + MIB2));
        assert_eq!(tables.translate(Gpa(2 * GIB + MIB2 + KIB4)), None);
    }

    #[test]
    fn no_giant_page_where_the_processor_has_none_or_the_frame_does_not_fit() {
        let recording = Recording(Arc::new(Mutex::new(Record { limit: 64, ..Record::default() })));
        let root = recording.allocate().unwrap();
        let mut tables = Tables::new(recording.clone(), root, Plain, Level::LARGE, 48);
        tables.map(Gpa(0), Hpa(0), GIB, RWX, RAM).unwrap();
        assert_eq!(recording.tables(), 3);
        let (mut tables, recording) = made(64);
        tables.map(Gpa(0), Hpa(MIB2), GIB, RWX, RAM).unwrap();
        assert_eq!(recording.tables(), 3, "the frame is aligned to 2 MiB only");
    }

    #[test]
    fn a_hole_splits_large_pages_and_keeps_accessed_and_dirty() {
        let (mut tables, recording) = made(64);
        tables.map(Gpa(0), Hpa(8 * GIB), GIB, RWX, RAM).unwrap();
        let level3 = Hpa(recording.read(ROOT, 0) & ADDRESS);
        recording.write(level3, 0, recording.read(level3, 0) | 0x60);
        tables.unmap(Gpa(0xa_0000), KIB4).unwrap();
        assert_eq!(recording.0.lock().removals, 1);
        assert_eq!(tables.translate(Gpa(0xa_0fff)), None);
        assert_eq!(tables.translate(Gpa(0x9_ffff)), Some((Hpa(8 * GIB + 0x9_ffff), RWX)));
        assert_eq!(tables.translate(Gpa(GIB - 1)), Some((Hpa(9 * GIB - 1), RWX)));
        let level2 = Hpa(recording.read(level3, 0) & ADDRESS);
        assert_eq!(recording.read(level2, 1), (8 * GIB + MIB2) | 0xe7);
        let level1 = Hpa(recording.read(level2, 0) & ADDRESS);
        assert_eq!(recording.read(level1, 1), (8 * GIB + KIB4) | 0x67);
    }

    #[test]
    fn wrong_ranges_are_refused_and_change_nothing() {
        let (mut tables, recording) = made(64);
        assert_eq!(tables.map(Gpa(1), Hpa(0), KIB4, RWX, RAM), Err(MapError::Misaligned));
        assert_eq!(tables.map(Gpa(0), Hpa(1), KIB4, RWX, RAM), Err(MapError::Misaligned));
        assert_eq!(tables.map(Gpa(0), Hpa(0), 0, RWX, RAM), Err(MapError::Misaligned));
        assert_eq!(tables.map(Gpa(1 << 48), Hpa(0), KIB4, RWX, RAM), Err(MapError::PastEnd));
        assert_eq!(tables.map(Gpa(!0xfff), Hpa(0), 2 * KIB4, RWX, RAM), Err(MapError::PastEnd));
        assert_eq!(tables.map(Gpa(0), Hpa(1 << 52), KIB4, RWX, RAM), Err(MapError::PastEnd));
        tables.map(Gpa(MIB2), Hpa(0), KIB4, RWX, RAM).unwrap();
        let before = recording.tables();
        assert_eq!(tables.map(Gpa(0), Hpa(0), GIB, RWX, RAM), Err(MapError::Overlap));
        assert_eq!(recording.tables(), before);
        assert_eq!(tables.translate(Gpa(0)), None);
        assert_eq!(tables.unmap(Gpa(0), 1), Err(MapError::Misaligned));
    }

    #[test]
    fn running_out_of_frames_is_an_error_and_everything_is_freed_in_the_end() {
        let (mut tables, recording) = made(3);
        assert_eq!(tables.map(Gpa(0), Hpa(0), KIB4, RWX, RAM), Err(MapError::OutOfMemory));
        // The tables made on the way stay; pages that fit into them need no more.
        tables.map(Gpa(0), Hpa(0), GIB, RWX, RAM).unwrap();
        tables.free();
        assert_eq!(recording.tables(), 0);
        assert_eq!((tables.root(), tables.translate(Gpa(0))), (0, None));
        assert_eq!(tables.map(Gpa(0), Hpa(0), KIB4, RWX, RAM), Err(MapError::OutOfMemory));
    }

    #[test]
    fn a_window_that_moves_for_ever_costs_no_more_tables() {
        let (mut tables, recording) = made(64);
        for place in 0..1000 {
            let gpa = Gpa(place * 512 * GIB % (1 << 47));
            tables.map(gpa, Hpa(MIB2 + KIB4), 8 * MIB2, RWX, RAM).unwrap();
            tables.unmap(gpa, 8 * MIB2).unwrap();
        }
        assert!(recording.tables() <= 12, "{}", recording.tables());
        drop(tables);
        assert_eq!(recording.tables(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Against a map of pages: after any sequence of maps and unmaps every page translates as the model says.
        #[test]
        fn behaves_as_a_map_of_pages(steps in proptest::collection::vec((any::<bool>(), 0u64..1536, 1u64..1100), 1..24)) {
            let (mut tables, recording) = made(4096);
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            for (number, (map, first, count)) in steps.into_iter().enumerate() {
                let pages: Vec<u64> = (first..first + count).collect();
                if map {
                    // Alternate between frames that allow large pages and frames that do not.
                    let frame = (number as u64 + 1) * 4096 + if number % 2 == 0 { first } else { 1 };
                    let result = tables.map(Gpa(first * KIB4), Hpa(frame * KIB4), count * KIB4, RWX, RAM);
                    if pages.iter().any(|page| model.contains_key(page)) {
                        prop_assert_eq!(result, Err(MapError::Overlap));
                    } else {
                        prop_assert_eq!(result, Ok(()));
                        model.extend(pages.iter().map(|page| (*page, frame + page - first)));
                    }
                } else {
                    tables.unmap(Gpa(first * KIB4), count * KIB4).unwrap();
                    pages.iter().for_each(|page| { model.remove(page); });
                }
            }
            for page in 0..2700 {
                let expected = model.get(&page).map(|frame| (Hpa(frame * KIB4 + 7), RWX));
                prop_assert_eq!(tables.translate(Gpa(page * KIB4 + 7)), expected);
            }
            tables.free();
            prop_assert_eq!(recording.tables(), 0);
        }
    }
}
