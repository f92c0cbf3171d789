//! The host's RAM: which of it is free, and where the direct map shows it.
//!
//! Owns the one [`Frames`]. Everything given out through [`pointer`] was allocated here.

#![allow(unsafe_code)] // Physical memory as pointers, through the direct map.

use crate::frames::{Bookkeeping, FRAME_SIZE, FrameSize, Frames};
use crate::layout::DIRECT_MAP;
use crate::lock::Lock;
use crate::memory_map;
use boot::{BootInfo, MemoryKind, PhysicalRange};
use core::arch::asm;
use core::ptr::NonNull;

/// The host's frames, with their bookkeeping in the direct map.
pub type HostFrames = Frames<&'static mut [u64], &'static mut [u16]>;

static FRAMES: Lock<Option<HostFrames>> = Lock::new(None);

/// Why there is no allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory(pub &'static str);

/// Takes over all RAM that the firmware calls usable and nobody occupies. Runs under the early page tables: whatever it
/// touches lies below what those map.
///
/// # Errors
/// When there is no room for the bookkeeping.
pub fn init(boot: &BootInfo<'_>) -> Result<(), NoMemory> {
    let usable = || boot.memory.iter().filter(|region| region.kind == MemoryKind::Usable).map(|region| region.range);
    let top = usable().map(|range| range.end).max().unwrap_or(0).min(crate::layout::ORDERED_SPAN);
    let need = Bookkeeping::for_memory_below(top);
    let place = memory_map::place_for(boot, need.bytes()).ok_or(NoMemory(
        "no free memory below 4 GiB for the frame allocator; the hypervisor needs 64 MiB at least",
    ))?;
    let words = (DIRECT_MAP + place.start) as *mut u64;
    // SAFETY: the place is usable RAM below what the early tables map, free of whatever the loader left, and kept out of
    // the allocator; its start is a page's, hence aligned.
    let bitmap = unsafe { core::slice::from_raw_parts_mut(words, need.words) };
    let counts = words.wrapping_add(need.words).cast::<u16>();
    // SAFETY: as above; the place is large enough for both.
    let counts = unsafe { core::slice::from_raw_parts_mut(counts, need.counts) };
    let mut frames = Frames::new(bitmap, counts);
    usable().for_each(|range| frames.add(range));
    let others = boot.memory.iter().filter(|region| region.kind != MemoryKind::Usable);
    others.for_each(|region| frames.reserve(region.range));
    memory_map::taken(boot).for_each(|range| frames.reserve(range));
    frames.reserve(place);
    *FRAMES.lock() = Some(frames);
    Ok(())
}

/// Runs `with` on the allocator.
///
/// # Panics
/// Before [`init`].
pub fn with_frames<R>(with: impl FnOnce(&mut HostFrames) -> R) -> R {
    with(FRAMES.lock().as_mut().expect("RAM is set up before it is used"))
}

/// One zeroed frame.
pub fn allocate_zeroed_frame() -> Option<u64> {
    let frame = with_frames(|frames| frames.allocate(FrameSize::Small))?;
    zero(PhysicalRange { start: frame, end: frame + FRAME_SIZE });
    Some(frame)
}

/// `bytes` of zeroed memory in a row, aligned to `alignment`.
pub fn allocate_zeroed(bytes: u64, alignment: u64) -> Option<PhysicalRange> {
    let range = with_frames(|frames| frames.allocate_contiguous(bytes, alignment))?;
    zero(range);
    Some(range)
}

/// Gives frames back.
pub fn free(range: PhysicalRange) {
    with_frames(|frames| frames.free(range));
}

/// Clears frames that the caller owns.
pub fn zero(range: PhysicalRange) {
    let start = pointer(range.start).as_ptr();
    let words = range.length() / 8;
    // A string store is what CPUs and emulators are quickest at; gigabytes are cleared by this.
    // SAFETY: only allocated frames are handed to this, and the direct map has all of them writable.
    unsafe {
        asm!("rep stosq", inout("rcx") words => _, inout("rdi") start => _, in("rax") 0, options(nostack, preserves_flags));
    }
}

/// Where the direct map shows physical `address`. Good for allocated frames and what the loader left; elsewhere a use of
/// the pointer faults.
pub fn pointer(address: u64) -> NonNull<u8> {
    NonNull::new((DIRECT_MAP + address) as *mut u8).unwrap_or(NonNull::dangling())
}

/// The physical address of what `pointer` points to in the direct map (frames and the heap).
///
/// # Panics
/// If it points elsewhere.
pub fn physical_of(pointer: NonNull<u8>) -> u64 {
    let address = pointer.as_ptr() as u64;
    assert!(
        (DIRECT_MAP..DIRECT_MAP + crate::layout::ORDERED_SPAN).contains(&address),
        "only the direct map has a known physical address"
    );
    address - DIRECT_MAP
}
