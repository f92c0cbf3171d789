//! The kernel's heap, for what is made when a CPU, VM or task is set up; nothing between an exit and the next entry
//! allocates.
//!
//! One range of the direct map, so that what lives in it has a physical address ([`crate::ram::physical_of`]).

#![allow(unsafe_code)] // The global allocator.

use crate::lock::Lock;
use boot::PhysicalRange;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};
use linked_list_allocator::Heap;

/// Bytes of the heap at least.
const LEAST: u64 = 8 << 20;
/// Bytes of the heap at most.
const MOST: u64 = 128 << 20;

/// Bytes of the heap of a host with `memory` bytes of RAM: one that can hold more machines has room for what they take.
pub fn size_for(memory: u64) -> u64 {
    (memory / 64).clamp(LEAST, MOST).next_multiple_of(4096)
}

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(Lock::new(State { heap: Heap::empty(), peak: 0 }));

struct KernelHeap(Lock<State>);

struct State {
    heap: Heap,
    peak: usize,
}

/// What the heap holds, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Now.
    pub used: usize,
    /// At most, ever.
    pub peak: usize,
    /// In all.
    pub size: usize,
}

/// Gives the heap its memory.
///
/// # Panics
/// When called twice.
pub fn init(range: PhysicalRange) {
    let mut state = HEAP.0.lock();
    assert_eq!(state.heap.size(), 0, "the heap gets its memory once");
    let start = crate::ram::pointer(range.start).as_ptr();
    // SAFETY: the frame allocator gave the range to nobody else, and the direct map has it writable for good.
    unsafe { state.heap.init(start, range.length() as usize) };
}

/// How full it is.
pub fn usage() -> Usage {
    let state = HEAP.0.lock();
    Usage { used: state.heap.used(), peak: state.peak, size: state.heap.size() }
}

// SAFETY: the list allocator hands out disjoint blocks of the requested layout from memory that only it manages.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut state = self.0.lock();
        let Ok(block) = state.heap.allocate_first_fit(layout) else { return null_mut() };
        state.peak = state.peak.max(state.heap.used());
        block.as_ptr()
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            let mut state = self.0.lock();
            // SAFETY: the block came from `alloc` with this layout: the caller's promise.
            unsafe { state.heap.deallocate(block, layout) };
        }
    }
}
