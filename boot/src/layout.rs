//! Where things lie in the address space before and after the kernel builds its own tables.
//!
//! The early tables that the 32-bit entries make and the kernel's own agree on these, so that a reference made through
//! one stays good under the other. Linux's and the loaders' choices do not matter here; Limine hands over tables of its
//! own, and its entry reads through its own offset.

/// Virtual address of the image's base: symbol addresses minus this are physical for the 32-bit entries, which know
/// where they were loaded.
pub const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;

/// Virtual address at which all RAM is mapped in order.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;

/// Bytes of physical memory, from 0, that the early page tables map at 0, at [`DIRECT_MAP`] and, the first GiB of it,
/// at [`IMAGE_BASE`].
pub const EARLY_MAPPED: u64 = 4 << 30;

/// Bytes of the stack that the boot CPU runs on until it has one with a guard page.
pub const BOOT_STACK_SIZE: usize = 128 << 10;
