//! The memory of one VM's control structures: second-level tables, vCPU regions. Reserved in one piece when the VM is
//! created, freed whole when it goes.
//!
//! Key type: [`Arena`], a [`FrameSource`]. Whoever wants more than the arena has gets an error, whatever the host has left.
//! The host's own per-CPU regions come from one too.

use crate::frames::{Bookkeeping, FRAME_SIZE, Frames};
use crate::lock::Lock;
use crate::ram;
use alloc::vec;
use alloc::vec::Vec;
use boot::PhysicalRange;
use core::ptr::NonNull;
use vcpu::{FrameSource, Hpa, OutOfFrames};

/// A range of host RAM given out in frames.
pub struct Arena {
    range: PhysicalRange,
    /// Which frames are free, counted from the range's start.
    frames: Lock<Frames<Vec<u64>, Vec<u16>>>,
}

impl Arena {
    /// Reserves `bytes`, rounded up to 2 MiB; `None` when the host has not that much in one piece.
    pub fn new(bytes: u64) -> Option<Self> {
        let size = bytes.next_multiple_of(2 << 20);
        let range = ram::with_frames(|frames| frames.allocate_contiguous(size, 2 << 20))?;
        let need = Bookkeeping::for_memory_below(size);
        let mut frames = Frames::new(vec![0; need.words], vec![0; need.counts]);
        frames.add(PhysicalRange { start: 0, end: size });
        Some(Self { range, frames: Lock::new(frames) })
    }

    /// What a VM with `memory` bytes of RAM and `vcpus` vCPUs needs: tables of 4 KiB pages for all of its RAM and the
    /// device space below 4 GiB, and 256 KiB for each vCPU.
    pub fn size_for(memory: u64, vcpus: u32) -> u64 {
        const FIXED: u64 = 1 << 20;
        const DEVICE_SPACE: u64 = 1 << 30;
        let tables = (memory + DEVICE_SPACE) / FRAME_SIZE * 8 * 513 / 512;
        FIXED + tables + u64::from(vcpus) * (256 << 10)
    }

    /// Bytes in use, and in all.
    pub fn usage(&self) -> (u64, u64) {
        let frames = self.frames.lock();
        (frames.total_bytes() - frames.free_bytes(), frames.total_bytes())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        ram::zero(self.range);
        ram::free(self.range);
    }
}

impl FrameSource for Arena {
    fn allocate(&self, count: usize) -> Result<Hpa, OutOfFrames> {
        let bytes = (count as u64).checked_mul(FRAME_SIZE).ok_or(OutOfFrames)?;
        let mut frames = self.frames.lock();
        let first = match count {
            1 => frames.allocate_below(u64::MAX),
            _ => frames.allocate_contiguous(bytes, FRAME_SIZE).map(|range| range.start),
        };
        drop(frames);
        let start = self.range.start + first.ok_or(OutOfFrames)?;
        ram::zero(PhysicalRange { start, end: start + bytes });
        Ok(Hpa(start))
    }

    fn free(&self, first: Hpa, count: usize) {
        let start = first.0 - self.range.start;
        self.frames.lock().free(PhysicalRange { start, end: start + count as u64 * FRAME_SIZE });
    }

    fn pointer(&self, frame: Hpa) -> NonNull<u8> {
        ram::pointer(frame.0)
    }

    fn physical(&self, data: NonNull<u8>) -> Hpa {
        Hpa(ram::physical_of(data))
    }
}
