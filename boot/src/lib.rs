//! Loader entry points and what they hand over.
//!
//! Each loader has one thin entry; all of them end in the same [`BootInfo`]: memory map, modules by name, command
//! line, RSDP and the image's own extent, read once and checked while it is read.
//!
//! * [`info`]: [`BootInfo`], its parts and [`BootError`].
//! * [`physical`]: [`PhysicalMemory`], how a parser reaches what the loader left in memory.
//! * [`pvh`]: `hvm_start_info` (`qemu -kernel`).
//! * [`multiboot2`]: the boot information of GRUB.
//! * [`limine`]: the responses of Limine.
//! * [`cpio`]: the newc archive that carries PVH's modules, used in place.
//! * [`trampoline`]: how the other processors get from their start-up IPI to 64-bit code.
//! * `entry` (bare metal only): the 32-bit entries, the early page tables and the jump into Rust.
//! * `limine_entry` (bare metal only): the requests to Limine and its 64-bit entry.
//!
//! Neighbours: only `kernel` uses this crate. It decides nothing about the memory it describes, allocates nothing and
//! keeps nothing of the loader's own structures but the modules' bytes.

#![cfg_attr(not(test), no_std)]

pub mod cpio;
pub mod info;
pub mod layout;
pub mod limine;
pub mod multiboot2;
pub mod physical;
pub mod pvh;
pub mod trampoline;

#[cfg(target_os = "none")]
pub mod entry;
#[cfg(target_os = "none")]
mod limine_entry;

pub use info::{BootError, BootInfo, MemoryKind, MemoryRegion, Module, Protocol};
pub use physical::{PhysicalMemory, PhysicalRange};
