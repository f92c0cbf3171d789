//! Finding room: which guest addresses are free for the parts of a payload.
//!
//! The loaders keep what they make themselves (tables, command line, start information) in a fixed area of conventional
//! memory, [`AREA`], laid out here so that no two parts can meet.

use super::{LoadError, MemoryLayout, RegionKind};
use core::ops::Range;
use memory::{Gpa, GuestMemory, PAGE_SIZE};

/// End of what a 32-bit pointer reaches.
pub(super) const FOUR_GIB: u64 = 1 << 32;
/// Where extended memory starts; kernels and modules go above it.
pub(super) const ONE_MIB: u64 = 1 << 20;

/// The loaders' own area of conventional memory.
pub(super) const AREA: Range<u64> = 0x8_0000..0x9_a000;
/// Global descriptor table for the entry state.
pub(super) const GDT: u64 = 0x8_0000;
/// Page tables for the 64-bit entry: one page of level 4, one of level 3, four of level 2.
pub(super) const PAGE_TABLES: u64 = 0x8_1000;
/// Start information of PVH and Multiboot, with its lists and module command lines.
pub(super) const START_INFO: u64 = 0x8_8000;
/// Bytes at [`START_INFO`].
pub(super) const START_INFO_SIZE: usize = 0x8000;
/// Linux's boot parameters. Kernels before protocol 2.02 look for the command line relative to this very address.
pub(super) const ZERO_PAGE: u64 = 0x9_0000;
/// The kernel's command line.
pub(super) const COMMAND_LINE: u64 = 0x9_1000;
/// Bytes at [`COMMAND_LINE`], the terminating zero included.
pub(super) const COMMAND_LINE_SIZE: usize = (AREA.end - COMMAND_LINE) as usize;

/// Whether two ranges share a byte.
fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// A guest's free memory, minus what has been placed.
pub(super) struct Room<'a> {
    layout: &'a MemoryLayout<'a>,
    /// Ranges in use, in no order. A payload has a handful.
    taken: alloc::vec::Vec<Range<u64>>,
}

impl<'a> Room<'a> {
    /// All usable memory but the loaders' own area, which has to be usable itself.
    pub fn new(layout: &'a MemoryLayout<'a>) -> Result<Self, LoadError> {
        let room = Self { layout, taken: alloc::vec::Vec::new() };
        if !room.usable(&AREA) {
            return Err(LoadError::NoRoom { what: "loader's tables", bytes: AREA.end - AREA.start });
        }
        Ok(Self { layout, taken: alloc::vec![AREA] })
    }

    /// Whether one usable region holds all of `range`.
    fn usable(&self, range: &Range<u64>) -> bool {
        let mut regions = self.layout.regions.iter().filter(|region| region.kind == RegionKind::Usable);
        regions.any(|region| region.start.0 <= range.start && range.end <= region.end())
    }

    /// Takes `bytes` at `start`, where the image wants to be.
    pub fn take(&mut self, start: u64, bytes: u64) -> Result<(), LoadError> {
        let refused = LoadError::NotFree { start, bytes };
        let range = start..start.checked_add(bytes).ok_or(refused)?;
        if !self.usable(&range) || self.taken.iter().any(|other| overlap(other, &range)) {
            return Err(refused);
        }
        self.taken.push(range);
        Ok(())
    }

    /// Whether [`Room::take`] would succeed.
    pub fn is_free(&self, start: u64, bytes: u64) -> bool {
        start.checked_add(bytes).is_some_and(|end| {
            self.usable(&(start..end)) && !self.taken.iter().any(|other| overlap(other, &(start..end)))
        })
    }

    /// Takes the highest free page-aligned place for `bytes` above 1 MiB whose end is at most `limit`.
    pub fn take_highest(&mut self, what: &'static str, bytes: u64, limit: u64) -> Result<Gpa, LoadError> {
        let none = LoadError::NoRoom { what, bytes };
        let mut best = None;
        for region in self.layout.regions.iter().filter(|region| region.kind == RegionKind::Usable) {
            let lowest = region.start.0.max(ONE_MIB);
            // Only the region's end and the starts of what is taken can end a highest placement.
            let ends = self.taken.iter().map(|taken| taken.start).chain([region.end()]);
            for end in ends.map(|end| end.min(limit).min(region.end())) {
                let Some(start) = end.checked_sub(bytes).map(|start| Gpa(start).page().0) else { continue };
                if start >= lowest && self.is_free(start, bytes) {
                    best = best.max(Some(start));
                }
            }
        }
        let start = best.ok_or(none)?;
        self.take(start, bytes)?;
        Ok(Gpa(start))
    }

    /// Takes the lowest free place for `bytes` at or above `from` and below `limit`, aligned to `alignment`, a power of two.
    pub fn take_lowest(
        &mut self,
        what: &'static str,
        bytes: u64,
        from: u64,
        limit: u64,
        alignment: u64,
    ) -> Result<Gpa, LoadError> {
        let none = LoadError::NoRoom { what, bytes };
        let mut best: Option<u64> = None;
        for region in self.layout.regions.iter().filter(|region| region.kind == RegionKind::Usable) {
            let starts = self.taken.iter().map(|taken| taken.end).chain([region.start.0, from]);
            for start in starts.map(|start| start.max(from).max(region.start.0)) {
                let Some(start) = start.checked_next_multiple_of(alignment) else { continue };
                let fits = start.checked_add(bytes).is_some_and(|end| end <= limit);
                if fits && self.is_free(start, bytes) && best.is_none_or(|best| start < best) {
                    best = Some(start);
                }
            }
        }
        let start = best.ok_or(none)?;
        self.take(start, bytes)?;
        Ok(Gpa(start))
    }
}

/// Writes `command_line` with a terminating zero to its place. `limit` is what the kernel takes, without the zero.
pub(super) fn write_command_line(
    command_line: &[u8],
    limit: usize,
    memory: &impl GuestMemory,
) -> Result<(), LoadError> {
    let limit = limit.min(COMMAND_LINE_SIZE - 1);
    if command_line.len() > limit {
        return Err(LoadError::CommandLineTooLong { len: command_line.len(), limit });
    }
    if command_line.contains(&0) {
        return Err(LoadError::Unsupported("the kernel's command line contains a zero byte"));
    }
    memory.fill(Gpa(COMMAND_LINE), 0, command_line.len() as u64 + 1)?;
    Ok(memory.write(Gpa(COMMAND_LINE), command_line)?)
}

const _: () = assert!(PAGE_TABLES + 6 * PAGE_SIZE <= START_INFO);
const _: () = assert!(START_INFO + START_INFO_SIZE as u64 <= ZERO_PAGE && ZERO_PAGE + PAGE_SIZE <= COMMAND_LINE);

#[cfg(test)]
mod tests {
    use super::super::tests::{MIB, regions};
    use super::*;

    #[test]
    fn the_highest_place_is_below_the_limit_and_beside_what_is_taken() {
        let regions = regions(64 * MIB);
        let layout = MemoryLayout { regions: &regions, rsdp: None };
        let mut room = Room::new(&layout).unwrap();
        room.take(16 * MIB, 40 * MIB).unwrap();
        assert_eq!(room.take_highest("x", 0x1001, FOUR_GIB), Ok(Gpa(64 * MIB - 0x2000)));
        assert_eq!(room.take_highest("x", 7 * MIB, FOUR_GIB), Ok(Gpa(57 * MIB - 0x2000)));
        assert_eq!(room.take_highest("x", 7 * MIB, FOUR_GIB), Ok(Gpa(9 * MIB)), "below what is taken");
        assert_eq!(room.take_highest("x", 9 * MIB, FOUR_GIB), Err(LoadError::NoRoom { what: "x", bytes: 9 * MIB }));
        assert_eq!(room.take_highest("x", MIB, 3 * MIB), Ok(Gpa(2 * MIB)), "the limit counts");
    }

    #[test]
    fn the_lowest_place_is_aligned_and_free() {
        let regions = regions(64 * MIB);
        let layout = MemoryLayout { regions: &regions, rsdp: None };
        let mut room = Room::new(&layout).unwrap();
        room.take(MIB, 0x123).unwrap();
        assert_eq!(room.take_lowest("x", MIB, MIB, FOUR_GIB, 4096), Ok(Gpa(MIB + 0x1000)));
        assert_eq!(room.take_lowest("x", MIB, 0, FOUR_GIB, 2 * MIB), Ok(Gpa(4 * MIB)));
        assert!(room.take_lowest("x", 63 * MIB, 0, FOUR_GIB, 4096).is_err());
    }

    #[test]
    fn nothing_is_taken_twice_or_outside_usable_memory() {
        let regions = regions(8 * MIB);
        let layout = MemoryLayout { regions: &regions, rsdp: None };
        let mut room = Room::new(&layout).unwrap();
        for (start, bytes) in
            [(0xf_0000, 16), (0x9_f000, 0x1000), (8 * MIB - 1, 2), (u64::MAX, 2), (AREA.start, 1), (AREA.end - 1, 1)]
        {
            assert_eq!(room.take(start, bytes), Err(LoadError::NotFree { start, bytes }));
        }
        room.take(2 * MIB, MIB).unwrap();
        assert!(room.take(3 * MIB - 1, 1).is_err());
        assert!(room.take(3 * MIB, 1).is_ok());
    }

    #[test]
    fn a_map_without_conventional_memory_has_no_room() {
        let layout = MemoryLayout { regions: &regions(8 * MIB)[2..], rsdp: None };
        assert!(matches!(Room::new(&layout), Err(LoadError::NoRoom { .. })));
    }
}
