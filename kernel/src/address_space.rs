//! The host's one address space: built once, shared by all CPUs, added to while devices are found.
//!
//! Every page of the image has its segment's permissions, all other RAM is readable and writable, nothing is both
//! writable and executable, and RAM that holds the image is mapped nowhere else.

#![allow(unsafe_code)] // Page tables through the direct map, CR3, linker symbols.

use crate::frames::{FRAME_SIZE, FrameSize};
use crate::layout::{DEVICES, DIRECT_MAP, FIRMWARE, ORDERED_SPAN};
use crate::lock::Lock;
use crate::paging::{AddressSpace, ENTRIES, MapError, Permissions, Tables};
use crate::{memory_map, ram};
use boot::{BootInfo, PhysicalRange};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use raw_cpuid::CpuId;
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;

static SPACE: Lock<Option<AddressSpace<HostTables>>> = Lock::new(None);

/// Tables in frames of the host's RAM.
struct HostTables;

impl HostTables {
    fn entry(table: u64, index: usize) -> &'static AtomicU64 {
        assert!(index < ENTRIES, "a table has 512 entries");
        let pointer = ram::pointer(table).cast::<AtomicU64>().as_ptr().wrapping_add(index);
        // SAFETY: `table` is a frame that `allocate` took and that is never given back; the CPU writes it too, hence
        // atomic.
        unsafe { &*pointer }
    }
}

impl Tables for HostTables {
    fn allocate(&mut self) -> Option<u64> {
        ram::allocate_zeroed_frame()
    }
    fn get(&self, table: u64, index: usize) -> u64 {
        Self::entry(table, index).load(Ordering::Relaxed)
    }
    fn set(&mut self, table: u64, index: usize, value: u64) {
        Self::entry(table, index).store(value, Ordering::Relaxed);
    }
}

unsafe extern "C" {
    static __image_start: u8;
    static __text_start: u8;
    static __data_start: u8;
    static __image_end: u8;
}

/// Builds the address space and switches to it.
///
/// # Errors
/// When memory does not suffice.
///
/// # Panics
/// When a frame for a table lies above what the early page tables map.
pub fn init(boot: &BootInfo<'_>) -> Result<(), MapError> {
    let huge = CpuId::new().get_extended_processor_and_feature_identifiers().is_some_and(|id| id.has_1gib_pages());
    let largest = if huge { FrameSize::Huge } else { FrameSize::Large };
    let mut space = AddressSpace::new(HostTables, largest).ok_or(MapError::OutOfMemory)?;
    for range in memory_map::direct_map(boot) {
        space.map(DIRECT_MAP + range.start, range.start, range.length(), Permissions::ReadWrite)?;
    }
    let parts = [
        (&raw const __image_start, &raw const __text_start, Permissions::ReadOnly),
        (&raw const __text_start, &raw const __data_start, Permissions::ReadExecute),
        (&raw const __data_start, &raw const __image_end, Permissions::ReadWrite),
    ];
    let image = &raw const __image_start as u64;
    for (start, end, permissions) in parts {
        let (start, end) = (start as u64, end as u64);
        space.map(start, boot.image.start + (start - image), end - start, permissions)?;
    }
    let root = space.root();
    *SPACE.lock() = Some(space);
    switch_to(root);
    Ok(())
}

/// Makes `root` the page tables of this CPU.
fn switch_to(root: u64) {
    let frame = PhysFrame::containing_address(PhysAddr::new(root));
    // SAFETY: the new tables map the image, its stack and all RAM where the old ones have them.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

/// Maps device registers at physical `address`, uncached. Asked again for what is mapped, it gives the same place.
///
/// # Errors
/// When memory for tables is used up, or the address is beyond all reach.
pub fn map_device(address: u64, length: u64) -> Result<NonNull<u8>, MapError> {
    map_ordered(DEVICES, address, length, Permissions::Device)
}

/// Maps what firmware left at physical `address`, read-only.
///
/// # Errors
/// As [`map_device`].
pub fn map_firmware(address: u64, length: u64) -> Result<NonNull<u8>, MapError> {
    map_ordered(FIRMWARE, address, length, Permissions::ReadOnly)
}

/// Maps one frame at `virtual_address`, readable and writable: stacks.
///
/// # Errors
/// When memory is used up or something is mapped there.
pub fn map_frame(virtual_address: u64, frame: u64) -> Result<(), MapError> {
    with_space(|space| space.map(virtual_address, frame, FRAME_SIZE, Permissions::ReadWrite))
}

/// What a virtual address is mapped to.
pub fn translate(virtual_address: u64) -> Option<(u64, Permissions)> {
    with_space(|space| space.translate(virtual_address))
}

/// Physical address of the root page table.
pub fn root() -> u64 {
    with_space(|space| space.root())
}

/// Entry `index` of the root page table.
pub fn root_entry(index: usize) -> u64 {
    HostTables::entry(root(), index).load(Ordering::Relaxed)
}

/// Whether `virtual_address` is mapped; false too while somebody else is changing the tables. For code that runs after a
/// fault and must not wait.
pub fn is_mapped(virtual_address: u64) -> bool {
    let space = SPACE.try_lock();
    space.is_some_and(|space| space.as_ref().is_some_and(|space| space.translate(virtual_address).is_some()))
}

fn map_ordered(base: u64, address: u64, length: u64, permissions: Permissions) -> Result<NonNull<u8>, MapError> {
    let range = PhysicalRange::new(address, length).ok_or(MapError::BadRange)?;
    if range.end > ORDERED_SPAN {
        return Err(MapError::BadRange);
    }
    with_space(|space| {
        let mut page = address & !(FRAME_SIZE - 1);
        while page < range.end {
            if space.translate(base + page).is_none() {
                space.map(base + page, page, FRAME_SIZE, permissions)?;
            }
            page += FRAME_SIZE;
        }
        NonNull::new((base + address) as *mut u8).ok_or(MapError::BadRange)
    })
}

fn with_space<R>(with: impl FnOnce(&mut AddressSpace<HostTables>) -> R) -> R {
    with(SPACE.lock().as_mut().expect("the address space is built before it is used"))
}
