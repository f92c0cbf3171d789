//! What the firmware's memory map means for the host. Pure; `ram` and `address_space` act on it.

use crate::frames::FRAME_SIZE;
use crate::layout::ORDERED_SPAN;
use arrayvec::ArrayVec;
use boot::{BootInfo, MemoryKind, PhysicalRange};

/// The first MiB is left alone: BIOS data, and what application processors start in ([`low_place`]).
const LOW_MEMORY: PhysicalRange = PhysicalRange { start: 0, end: 1 << 20 };

/// What is in use although the firmware's map calls it usable.
pub fn taken<'a>(boot: &'a BootInfo<'_>) -> impl Iterator<Item = PhysicalRange> + 'a {
    [LOW_MEMORY, boot.image].into_iter().chain(boot.occupied.iter().copied())
}

/// The lowest page-aligned place for `bytes` in usable RAM, below what the early tables map.
pub fn place_for(boot: &BootInfo<'_>, bytes: u64) -> Option<PhysicalRange> {
    let usable = boot.memory.iter().filter(|region| region.kind == MemoryKind::Usable);
    // A place begins where a region begins or ends, or where something taken ends.
    let starts = boot.memory.iter().flat_map(|region| [region.range.start, region.range.end]);
    let starts = starts.chain(taken(boot).map(|range| range.end));
    starts
        .filter_map(|start| start.checked_next_multiple_of(FRAME_SIZE))
        .filter_map(|start| PhysicalRange::new(start, bytes.next_multiple_of(FRAME_SIZE)))
        .filter(|place| place.end <= boot::layout::EARLY_MAPPED)
        .filter(|place| usable.clone().any(|region| region.range.contains(*place)))
        .filter(|place| !taken(boot).any(|range| range.overlaps(*place)))
        .filter(|place| {
            let mut others = boot.memory.iter().filter(|region| region.kind != MemoryKind::Usable);
            !others.any(|region| region.range.overlaps(*place))
        })
        .min()
}

/// The highest page-aligned place for `bytes` of usable RAM below `limit` that nothing occupies, for what application
/// processors start in: firmware's own data are at both ends of the first MiB, and its map leaves out the upper ones.
pub fn low_place(boot: &BootInfo<'_>, bytes: u64, limit: u64) -> Option<PhysicalRange> {
    let bytes = bytes.next_multiple_of(FRAME_SIZE);
    let usable = boot.memory.iter().filter(|region| region.kind == MemoryKind::Usable);
    // A place ends where a region ends or begins, or where something taken begins.
    let ends = boot.memory.iter().flat_map(|region| [region.range.start, region.range.end]);
    let ends = ends.chain(boot.occupied.iter().map(|range| range.start)).chain([limit]);
    ends.map(|end| end.min(limit) & !(FRAME_SIZE - 1))
        .filter_map(|end| PhysicalRange::new(end.checked_sub(bytes)?, bytes))
        .filter(|place| place.start >= FRAME_SIZE)
        .filter(|place| usable.clone().any(|region| region.range.contains(*place)))
        .filter(|place| !boot.occupied.iter().any(|range| range.overlaps(*place)))
        .filter(|place| {
            let mut others = boot.memory.iter().filter(|region| region.kind != MemoryKind::Usable);
            !others.any(|region| region.range.overlaps(*place))
        })
        .max()
}

/// RAM for the direct map: usable, ACPI's and the loader's, whole pages, each once, the image left out.
pub fn direct_map(boot: &BootInfo<'_>) -> ArrayVec<PhysicalRange, { boot::info::MAX_REGIONS + 1 }> {
    let is_ram = |kind| {
        matches!(kind, MemoryKind::Usable | MemoryKind::AcpiTables | MemoryKind::AcpiNonVolatile | MemoryKind::Loader)
    };
    let mut ranges: ArrayVec<PhysicalRange, { boot::info::MAX_REGIONS }> = boot
        .memory
        .iter()
        .filter(|region| is_ram(region.kind))
        .map(|region| PhysicalRange {
            start: region.range.start.checked_next_multiple_of(FRAME_SIZE).unwrap_or(u64::MAX),
            end: (region.range.end & !(FRAME_SIZE - 1)).min(ORDERED_SPAN),
        })
        .filter(|range| !range.is_empty())
        .collect();
    ranges.sort_unstable();
    let mut merged = ArrayVec::new();
    let mut reach = 0;
    for range in ranges {
        // Regions may overlap: what is below `reach` has been dealt with.
        let range = PhysicalRange { start: range.start.max(reach), end: range.end };
        reach = reach.max(range.end);
        for part in [
            PhysicalRange { start: range.start, end: range.end.min(boot.image.start) },
            PhysicalRange { start: range.start.max(boot.image.end), end: range.end },
        ] {
            if part.is_empty() {
                continue;
            }
            match merged.last_mut() {
                Some(PhysicalRange { end, .. }) if *end == part.start => *end = part.end,
                _ => merged.push(part),
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use boot::{MemoryRegion, Protocol};

    const MIB: u64 = 1 << 20;

    fn boot(regions: &[(u64, u64, MemoryKind)], occupied: &[(u64, u64)]) -> BootInfo<'static> {
        let mut info = BootInfo::new(Protocol::Pvh, PhysicalRange { start: 16 * MIB, end: 18 * MIB });
        for &(start, end, kind) in regions {
            info.memory.push(MemoryRegion { range: PhysicalRange { start, end }, kind });
        }
        info.occupied.extend(occupied.iter().map(|&(start, end)| PhysicalRange { start, end }));
        info
    }

    fn pairs(ranges: impl IntoIterator<Item = PhysicalRange>) -> Vec<(u64, u64)> {
        ranges.into_iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn the_direct_map_has_all_ram_once_but_the_image() {
        let info = boot(
            &[
                (0, 0x9fc00, MemoryKind::Usable),
                (0x9fc00, 0xa0000, MemoryKind::Reserved),
                (MIB, 100 * MIB, MemoryKind::Usable),
                (100 * MIB, 101 * MIB, MemoryKind::AcpiTables),
                (99 * MIB, 102 * MIB, MemoryKind::AcpiNonVolatile),
                (102 * MIB, 103 * MIB, MemoryKind::Reserved),
                (1 << 32, (1 << 32) + MIB + 5, MemoryKind::Usable),
                (1 << 62, (1 << 62) + MIB, MemoryKind::Usable),
            ],
            &[],
        );
        assert_eq!(
            pairs(direct_map(&info)),
            [(0, 0x9f000), (MIB, 16 * MIB), (18 * MIB, 102 * MIB), (1 << 32, (1 << 32) + MIB)]
        );
    }

    #[test]
    fn a_place_is_clear_of_everything() {
        let regions = [
            (0, 0x9fc00, MemoryKind::Usable),
            (MIB, 64 * MIB, MemoryKind::Usable),
            (20 * MIB, 21 * MIB, MemoryKind::Reserved),
        ];
        let place = |bytes, occupied: &[(u64, u64)]| pairs(place_for(&boot(&regions, occupied), bytes));
        assert_eq!(place(4096, &[]), [(MIB, MIB + 4096)]);
        assert_eq!(place(4096, &[(MIB, 2 * MIB + 1)]), [(2 * MIB + 4096, 2 * MIB + 8192)]);
        assert_eq!(place(15 * MIB, &[]), [(MIB, 16 * MIB)]);
        assert_eq!(place(16 * MIB, &[(40 * MIB, 41 * MIB)]), [(21 * MIB, 37 * MIB)]);
        assert_eq!(place(60 * MIB, &[]), []);
    }

    #[test]
    fn a_low_place_is_the_highest_that_nobody_has() {
        let regions = [
            (0, 0x9_fc00, MemoryKind::Usable),
            (0x9_fc00, 0xa_0000, MemoryKind::Reserved),
            (MIB, 64 * MIB, MemoryKind::Usable),
        ];
        let place = |occupied: &[(u64, u64)]| pairs(low_place(&boot(&regions, occupied), 0x4000, 0xa_0000));
        assert_eq!(place(&[]), [(0x9_b000, 0x9_f000)]);
        assert_eq!(place(&[(0x9_e800, 0x9_e900)]), [(0x9_a000, 0x9_e000)]);
        assert_eq!(place(&[(0x5000, 0x9_f000)]), [(0x1000, 0x5000)]);
        assert_eq!(place(&[(0x4fff, 0x9_f000)]), [], "page 0 is the BIOS's");
    }

    #[test]
    fn a_place_lies_below_what_the_early_tables_map() {
        let high = [(1 << 32, 1 << 33, MemoryKind::Usable)];
        assert_eq!(place_for(&boot(&high, &[]), 4096), None);
    }
}
