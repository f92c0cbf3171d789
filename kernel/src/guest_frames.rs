//! Host frames for a guest's RAM: in pieces as large as can be had. [`GuestRam`] has them zeroed before use and after.

#![allow(unsafe_code)] // The promise that the frames are the guest's.

use crate::guest_ram::{Extent, GuestRam, Owner};
use crate::ram;
use alloc::vec::Vec;
use boot::PhysicalRange;

/// The piece that is tried first where it fits, and the least one; second-level tables map each at once.
const HUGE: u64 = 1 << 30;
const LARGE: u64 = 2 << 20;

/// RAM at each `(guest-physical start, bytes)`, ascending, in whole pages. Ranges that share a piece of 2 MiB share it in the
/// host too, so that a hole between them costs no large page elsewhere. Not cleared yet. `None` when the host has not that
/// much; nothing is kept then.
///
/// # Panics
/// If a range is not made of pages, or two overlap.
pub fn allocate(ranges: &[(u64, u64)]) -> Option<GuestRam> {
    let mut pieces = Vec::new();
    let mut done = 0;
    for &(start, bytes) in ranges {
        assert!((start | bytes).is_multiple_of(4096), "guest RAM is made of pages");
        let first = done.max(start & !(LARGE - 1));
        let end = (start + bytes).next_multiple_of(LARGE);
        if end > first && !take(&mut pieces, first, end - first) {
            pieces.iter().for_each(free);
            return None;
        }
        done = done.max(end);
    }
    let mut extents = Vec::new();
    for piece in &pieces {
        cut(piece, ranges, &mut extents);
    }
    Some(GuestRam::new(extents, Owner { clear, free }))
}

/// Appends the parts of `piece` that lie in `ranges`; frees the others.
fn cut(piece: &Extent, ranges: &[(u64, u64)], extents: &mut Vec<Extent>) {
    let mut at = piece.gpa;
    let end = piece.gpa + piece.length;
    for &(start, bytes) in ranges {
        let (from, to) = (start.max(at), (start + bytes).min(end));
        if from >= to {
            continue;
        }
        free_part(piece, at, from);
        extents.push(part(piece, from, to));
        at = to;
    }
    free_part(piece, at, end);
}

/// The extent from `from` to `to` of `piece`.
fn part(piece: &Extent, from: u64, to: u64) -> Extent {
    let physical = piece.physical + (from - piece.gpa);
    // SAFETY: a part of an extent that `take` made, which is given up for its parts.
    unsafe { Extent::new(from, physical, to - from, ram::pointer(physical)) }
}

fn free_part(piece: &Extent, from: u64, to: u64) {
    if from < to {
        free(&part(piece, from, to));
    }
}

/// Appends pieces for `bytes` from `start`. False when the host has no more.
fn take(extents: &mut Vec<Extent>, start: u64, bytes: u64) -> bool {
    let mut done = 0;
    // The host has no piece larger than this.
    let mut limit = HUGE;
    while done < bytes {
        let (gpa, rest) = (start + done, bytes - done);
        let whole = limit == HUGE && rest >= HUGE && gpa.is_multiple_of(HUGE);
        let (size, alignment) = if whole { (HUGE, HUGE) } else { (rest.min(limit), LARGE) };
        match ram::with_frames(|frames| frames.allocate_contiguous(size, alignment)) {
            Some(range) => {
                let host = ram::pointer(range.start);
                // SAFETY: the frames were just allocated for this; the direct map has them as long as they are not freed,
                // which `free` does when the guest is gone.
                extents.push(unsafe { Extent::new(gpa, range.start, size, host) });
                done += size;
            }
            None if size > LARGE => limit = (size / 2).next_multiple_of(LARGE),
            None => return false,
        }
    }
    true
}

fn range(extent: &Extent) -> PhysicalRange {
    PhysicalRange { start: extent.physical, end: extent.physical + extent.length }
}

fn clear(extent: &Extent) {
    ram::zero(range(extent));
}

fn free(extent: &Extent) {
    ram::free(range(extent));
}
