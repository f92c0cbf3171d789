//! A window of 512 small pages whose entries tests set as they like.
//!
//! It begins at [`WINDOW`], right above the identity map. Manual: SDM 3A 4.5 "4-Level Paging and 5-Level Paging".

use crate::{cpu, entry};
use core::sync::atomic::{AtomicU64, Ordering};

/// Linear address of the first window page.
pub const WINDOW: u64 = 1 << 32;
/// Entry bits.
pub const PRESENT: u64 = 1 << 0;
/// Writable.
pub const WRITABLE: u64 = 1 << 1;
/// Open to user mode.
pub const USER: u64 = 1 << 2;
/// Accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Dirty.
pub const DIRTY: u64 = 1 << 6;
/// Not executable.
pub const NO_EXECUTE: u64 = 1 << 63;

/// Page-fault error code bits, SDM 3A 4.7 "Page-Fault Exceptions".
pub mod fault {
    /// The page was present.
    pub const PRESENT: u64 = 1;
    /// A write.
    pub const WRITE: u64 = 2;
    /// In user mode.
    pub const USER: u64 = 4;
    /// A reserved bit was set in an entry.
    pub const RESERVED: u64 = 8;
    /// An instruction fetch.
    pub const FETCH: u64 = 16;
}

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

static LEVEL2: Table = Table([const { AtomicU64::new(0) }; 512]);
static LEVEL1: Table = Table([const { AtomicU64::new(0) }; 512]);

/// A page of memory for tests.
#[repr(C, align(4096))]
pub struct Page(pub [u8; 4096]);

fn link() {
    let level4 = entry::root_table() as *const AtomicU64;
    // SAFETY: the boot tables are identity-mapped and static; their entry 4 is unused before the first call.
    unsafe {
        let level3 = ((*level4).load(Ordering::Relaxed) & !0xfff) as *const AtomicU64;
        (*level3.add(4)).store(LEVEL2.0.as_ptr() as u64 | PRESENT | WRITABLE | USER, Ordering::SeqCst);
    }
    LEVEL2.0[0].store(LEVEL1.0.as_ptr() as u64 | PRESENT | WRITABLE | USER, Ordering::SeqCst);
}

/// The linear address of window page `index`, 0 to 511.
pub const fn window(index: usize) -> u64 {
    WINDOW + index as u64 * 4096
}

/// Sets the entry of window page `index`: a physical page with bits.
pub fn set(index: usize, value: u64) {
    link();
    LEVEL1.0[index].store(value, Ordering::SeqCst);
    cpu::invalidate(window(index));
}

/// The entry of window page `index`, with what the processor set in it.
pub fn get(index: usize) -> u64 {
    LEVEL1.0[index].load(Ordering::SeqCst)
}
