//! Stacks with a guard page below, so that an overflow is a page fault (or, on its own stack, a double fault) and not a
//! silent corruption.

use crate::address_space;
use crate::frames::FRAME_SIZE;
use crate::layout::STACKS;
use crate::paging::MapError;
use crate::ram;
use core::sync::atomic::{AtomicU64, Ordering};

/// Where the next stack's guard page goes.
static NEXT: AtomicU64 = AtomicU64::new(STACKS);

/// A new stack of `bytes`, a multiple of 4 KiB: its top, 16-byte aligned. It is never given back.
///
/// # Errors
/// When memory is used up.
pub fn allocate(bytes: u64) -> Result<u64, MapError> {
    let bottom = NEXT.fetch_add(FRAME_SIZE + bytes, Ordering::Relaxed) + FRAME_SIZE;
    for page in (bottom..bottom + bytes).step_by(FRAME_SIZE as usize) {
        let frame = ram::allocate_zeroed_frame().ok_or(MapError::OutOfMemory)?;
        address_space::map_frame(page, frame)?;
    }
    Ok(bottom + bytes)
}

/// Whether `address` may be in a stack: for walking one after a fault.
pub fn holds(address: u64) -> bool {
    (STACKS..NEXT.load(Ordering::Relaxed)).contains(&address) && address_space::is_mapped(address)
}
