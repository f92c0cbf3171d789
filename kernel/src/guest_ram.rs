//! The RAM of one guest: host frames, seen through the direct map.
//!
//! Key types: [`GuestRam`], which implements [`GuestMemory`], and its [`Extent`]s, which the second-level tables map.
//! There is never a reference to guest memory, only relaxed atomic accesses, for vCPUs write it meanwhile. Pure but for
//! the pointers: tests run it over ordinary memory.

#![allow(unsafe_code)] // Guest memory by pointer.

use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use memory::{Gpa, GuestMemory, NotRam, Width};

/// A range of guest-physical memory in one range of host memory.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The first guest-physical address, a multiple of 4 KiB.
    pub gpa: u64,
    /// The first host-physical address, a multiple of 4 KiB.
    pub physical: u64,
    /// Bytes, a multiple of 4 KiB.
    pub length: u64,
    host: NonNull<u8>,
}

impl Extent {
    /// Guest RAM from `gpa`, in host memory from `physical`, which the host sees at `host`.
    ///
    /// # Safety
    /// The `length` bytes at `host` are readable and writable as long as the extent is used, aligned to 4 KiB, and accessed
    /// only by the guest, atomics and those who know that both happen.
    ///
    /// # Panics
    /// If something is not made of whole pages, or wraps.
    pub unsafe fn new(gpa: u64, physical: u64, length: u64, host: NonNull<u8>) -> Self {
        assert!((gpa | physical | length | host.as_ptr() as u64).is_multiple_of(4096), "guest RAM is made of pages");
        assert!(gpa.checked_add(length).is_some(), "guest RAM does not wrap");
        Self { gpa, physical, length, host }
    }

    /// Where the host sees the byte `offset` into the extent.
    fn pointer(&self, offset: u64) -> *mut u8 {
        self.host.as_ptr().wrapping_add(offset as usize)
    }
}

/// What the host does with a guest's memory.
#[derive(Clone, Copy)]
pub struct Owner {
    /// Sets an extent, or a part of one, to zero.
    pub clear: fn(&Extent),
    /// Takes an extent's memory back.
    pub free: fn(&Extent),
}

/// All RAM of a guest. Cleared by its host before the guest runs, and after: in pieces by [`GuestRam::clear_some`], and at the
/// latest when it is dropped. What one guest wrote, nobody else reads.
pub struct GuestRam {
    /// Sorted, not overlapping.
    extents: Vec<Extent>,
    /// The same, the largest first, for that is where most accesses go.
    by_size: Vec<Extent>,
    owner: Owner,
    /// Bytes known to be zero, counted through the extents.
    clear: AtomicU64,
    /// A guest had it.
    used: AtomicBool,
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        if self.used.load(Ordering::Relaxed) {
            self.clear_some(u64::MAX);
        }
        self.extents.iter().for_each(self.owner.free);
    }
}

// SAFETY: the memory is accessed only by atomics, from any CPU.
unsafe impl Send for GuestRam {}
// SAFETY: as above.
unsafe impl Sync for GuestRam {}

/// A part of an access that lies in one extent.
struct Piece {
    host: *mut u8,
    length: usize,
}

impl GuestRam {
    /// RAM made of `extents`, with whatever contents, which go back to `owner` in the end.
    ///
    /// # Panics
    /// If two overlap.
    pub fn new(mut extents: Vec<Extent>, owner: Owner) -> Self {
        extents.sort_unstable_by_key(|extent| extent.gpa);
        for pair in extents.windows(2) {
            assert!(pair[0].gpa + pair[0].length <= pair[1].gpa, "guest RAM does not overlap");
        }
        let mut by_size = extents.clone();
        by_size.sort_unstable_by_key(|extent| core::cmp::Reverse(extent.length));
        Self { extents, by_size, owner, clear: AtomicU64::new(0), used: AtomicBool::new(false) }
    }

    /// Clears up to `bytes` more, in whole pages. True when all of the RAM is clear. To be called while no guest has it.
    pub fn clear_some(&self, bytes: u64) -> bool {
        let from = self.clear.load(Ordering::Relaxed);
        let to = from.saturating_add(bytes.saturating_add(4095) & !4095).min(self.size());
        let mut start = 0;
        for extent in &self.extents {
            let (first, last) = (from.max(start), to.min(start + extent.length));
            if first < last {
                let offset = first - start;
                (self.owner.clear)(&Extent {
                    gpa: extent.gpa + offset,
                    physical: extent.physical + offset,
                    length: last - first,
                    host: NonNull::new(extent.pointer(offset)).unwrap_or(extent.host),
                });
            }
            start += extent.length;
        }
        self.clear.store(to, Ordering::Relaxed);
        to == self.size()
    }

    /// A guest gets it: nothing is known to be clear any more.
    pub fn hand_over(&self) {
        self.clear.store(0, Ordering::Relaxed);
        self.used.store(true, Ordering::Relaxed);
    }

    /// The extents, by rising address.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }

    /// The first part of `length` bytes at `gpa` that one extent holds.
    #[inline]
    fn piece(&self, gpa: u64, length: usize) -> Option<Piece> {
        self.by_size.iter().find_map(|extent| {
            let offset = gpa.checked_sub(extent.gpa)?;
            let rest = extent.length.checked_sub(offset).filter(|&rest| rest > 0)?;
            let length = usize::try_from(rest).unwrap_or(usize::MAX).min(length);
            Some(Piece { host: extent.pointer(offset), length })
        })
    }

    /// Calls `each` with the pieces of `length` bytes at `gpa` and their offsets. All are RAM, or none is visited.
    #[inline]
    fn pieces(&self, gpa: Gpa, length: usize, mut each: impl FnMut(usize, Piece)) -> Result<(), NotRam> {
        let failed = NotRam { gpa, len: length };
        let first = match self.piece(gpa.0, length) {
            Some(piece) if piece.length == length => {
                each(0, piece);
                return Ok(());
            }
            Some(piece) => piece,
            None if length == 0 => return Ok(()),
            None => return Err(failed),
        };
        if !self.is_ram(gpa, length as u64) {
            return Err(failed);
        }
        let mut done = first.length;
        each(0, first);
        while done < length {
            let piece = self.piece(gpa.0.wrapping_add(done as u64), length - done).ok_or(failed)?;
            let taken = piece.length;
            each(done, piece);
            done += taken;
        }
        Ok(())
    }

    /// A naturally aligned value that lies in one extent, as extents are made of pages.
    #[inline]
    fn aligned(&self, gpa: Gpa, width: Width) -> Result<*mut u8, NotRam> {
        let failed = NotRam { gpa, len: width.bytes() };
        if gpa.0 & (width.bytes() as u64 - 1) != 0 {
            return Err(failed);
        }
        self.piece(gpa.0, width.bytes()).map(|piece| piece.host).ok_or(failed)
    }
}

/// Runs an operation on the atomic integer of `width` at `pointer`, with values as `u64`.
macro_rules! with_atomic {
    ($pointer:expr, $width:expr, $name:ident => $body:expr) => {
        match $width {
            Width::Byte => {
                // SAFETY: `aligned` checked that the value is in guest RAM, which lives as long as `self`.
                let $name = unsafe { AtomicU8::from_ptr($pointer) };
                $body
            }
            Width::Word => {
                // SAFETY: as above, and that it is aligned.
                let $name = unsafe { AtomicU16::from_ptr($pointer.cast()) };
                $body
            }
            Width::Dword => {
                // SAFETY: as above.
                let $name = unsafe { AtomicU32::from_ptr($pointer.cast()) };
                $body
            }
            Width::Qword => {
                // SAFETY: as above.
                let $name = unsafe { AtomicU64::from_ptr($pointer.cast()) };
                $body
            }
        }
    };
}

impl GuestMemory for GuestRam {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), NotRam> {
        self.pieces(gpa, into.len(), |offset, piece| {
            if let Some(part) = into.get_mut(offset..offset + piece.length) {
                copy_out(piece.host, part);
            }
        })
    }

    fn write(&self, gpa: Gpa, from: &[u8]) -> Result<(), NotRam> {
        self.pieces(gpa, from.len(), |offset, piece| {
            if let Some(part) = from.get(offset..offset + piece.length) {
                copy_in(piece.host, part);
            }
        })
    }

    #[allow(clippy::useless_conversion)] // For one of the four widths only.
    #[inline]
    fn load(&self, gpa: Gpa, width: Width) -> Result<u64, NotRam> {
        let pointer = self.aligned(gpa, width)?;
        Ok(with_atomic!(pointer, width, place => place.load(Ordering::Acquire).into()))
    }

    #[inline]
    fn store(&self, gpa: Gpa, width: Width, value: u64) -> Result<(), NotRam> {
        let pointer = self.aligned(gpa, width)?;
        with_atomic!(pointer, width, place => place.store(value as _, Ordering::Release));
        Ok(())
    }

    #[allow(clippy::useless_conversion)] // As above.
    fn compare_exchange(&self, gpa: Gpa, width: Width, current: u64, new: u64) -> Result<Result<u64, u64>, NotRam> {
        let pointer = self.aligned(gpa, width)?;
        let order = Ordering::SeqCst;
        Ok(with_atomic!(pointer, width, place => {
            place.compare_exchange(current as _, new as _, order, order).map(u64::from).map_err(u64::from)
        }))
    }

    fn is_ram(&self, gpa: Gpa, len: u64) -> bool {
        let (mut at, mut rest) = (gpa.0, len);
        while rest > 0 {
            let Some(piece) = self.piece(at, usize::try_from(rest).unwrap_or(usize::MAX)) else { return false };
            rest -= piece.length as u64;
            at = at.wrapping_add(piece.length as u64);
        }
        true
    }

    fn fill(&self, gpa: Gpa, value: u8, len: u64) -> Result<(), NotRam> {
        let length = usize::try_from(len).map_err(|_| NotRam { gpa, len: usize::MAX })?;
        self.pieces(gpa, length, |_, piece| fill(piece.host, value, piece.length))
    }
}

/// The atomic byte at `pointer + offset`.
///
/// # Safety
/// It is guest RAM.
#[inline]
unsafe fn byte<'a>(pointer: *mut u8, offset: usize) -> &'a AtomicU8 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU8::from_ptr(pointer.wrapping_add(offset)) }
}

/// The atomic word at `pointer + offset`.
///
/// # Safety
/// It is guest RAM and aligned.
#[inline]
unsafe fn word<'a>(pointer: *mut u8, offset: usize) -> &'a AtomicU64 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU64::from_ptr(pointer.wrapping_add(offset).cast()) }
}

/// How many of `length` bytes from `pointer` lie before the first aligned word.
#[inline]
fn head(pointer: *mut u8, length: usize) -> usize {
    ((pointer as usize).wrapping_neg() % 8).min(length)
}

/// Copies guest RAM from `pointer`, in aligned words as far as possible.
fn copy_out(pointer: *mut u8, into: &mut [u8]) {
    let (first, rest) = into.split_at_mut(head(pointer, into.len()));
    for (offset, byte_out) in first.iter_mut().enumerate() {
        // SAFETY: within the piece that `pieces` found to be guest RAM.
        *byte_out = unsafe { byte(pointer, offset) }.load(Ordering::Relaxed);
    }
    let mut offset = first.len();
    let mut words = rest.chunks_exact_mut(8);
    for bytes in &mut words {
        // SAFETY: as above, and aligned behind the head.
        bytes.copy_from_slice(&unsafe { word(pointer, offset) }.load(Ordering::Relaxed).to_le_bytes());
        offset += 8;
    }
    for (tail, byte_out) in words.into_remainder().iter_mut().enumerate() {
        // SAFETY: as above.
        *byte_out = unsafe { byte(pointer, offset + tail) }.load(Ordering::Relaxed);
    }
}

/// Copies `from` to guest RAM at `pointer`, in aligned words as far as possible.
fn copy_in(pointer: *mut u8, from: &[u8]) {
    let (first, rest) = from.split_at(head(pointer, from.len()));
    for (offset, value) in first.iter().enumerate() {
        // SAFETY: within the piece that `pieces` found to be guest RAM.
        unsafe { byte(pointer, offset) }.store(*value, Ordering::Relaxed);
    }
    let mut offset = first.len();
    let (words, last) = rest.as_chunks::<8>();
    for bytes in words {
        // SAFETY: as above, and aligned behind the head.
        unsafe { word(pointer, offset) }.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        offset += 8;
    }
    for (tail, value) in last.iter().enumerate() {
        // SAFETY: as above.
        unsafe { byte(pointer, offset + tail) }.store(*value, Ordering::Relaxed);
    }
}

/// Sets `length` bytes of guest RAM at `pointer`.
fn fill(pointer: *mut u8, value: u8, length: usize) {
    let mut offset = 0;
    let words = u64::from_le_bytes([value; 8]);
    while offset < length {
        if (pointer as usize + offset).is_multiple_of(8) && length - offset >= 8 {
            // SAFETY: within the piece that `pieces` found to be guest RAM, and aligned.
            unsafe { word(pointer, offset) }.store(words, Ordering::Relaxed);
            offset += 8;
        } else {
            // SAFETY: within that piece.
            unsafe { byte(pointer, offset) }.store(value, Ordering::Relaxed);
            offset += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    /// Pages for a test; never freed, like the frames of a running guest.
    fn extent(gpa: u64, pages: u64) -> Extent {
        #[derive(Clone)]
        #[repr(align(4096))]
        struct Page(#[allow(dead_code)] [u8; 4096]);
        let memory = vec![Page([0; 4096]); pages as usize].leak();
        let host = NonNull::from(memory).cast::<u8>();
        // SAFETY: the memory is leaked and used by nobody else.
        unsafe { Extent::new(gpa, 0x1000_0000 + gpa, pages * PAGE, host) }
    }

    /// Two pages at 0, two right behind them in other memory, one at 1 MiB.
    fn ram() -> GuestRam {
        let owner = Owner { clear: |extent| super::fill(extent.pointer(0), 0, extent.length as usize), free: |_| {} };
        GuestRam::new(vec![extent(1 << 20, 1), extent(0, 2), extent(2 * PAGE, 2)], owner)
    }

    #[test]
    fn all_of_it_is_cleared_in_pieces() {
        let ram = ram();
        let holes = |value| {
            let mut found = Vec::new();
            for gpa in [0, PAGE - 1, PAGE, 2 * PAGE, 4 * PAGE - 1, 1 << 20, (1 << 20) + PAGE - 1] {
                let mut byte = [0];
                ram.read(Gpa(gpa), &mut byte).unwrap();
                found.push(byte[0] == value);
            }
            found
        };
        ram.fill(Gpa(0), 7, 4 * PAGE).unwrap();
        ram.fill(Gpa(1 << 20), 7, PAGE).unwrap();
        ram.hand_over();
        assert!(!ram.clear_some(PAGE));
        assert_eq!(holes(7), [false, false, true, true, true, true, true]);
        assert!(!ram.clear_some(2 * PAGE + 1), "whole pages");
        assert_eq!(holes(7), [false, false, false, false, false, true, true]);
        assert!(ram.clear_some(u64::MAX));
        assert_eq!(holes(0), [true; 7]);
        ram.fill(Gpa(0), 7, PAGE).unwrap();
        assert!(ram.clear_some(PAGE), "it is believed to be clear until it is handed over");
        ram.hand_over();
        assert!(ram.clear_some(u64::MAX) && holes(0) == [true; 7]);
    }

    #[test]
    fn copies_of_every_alignment_come_back() {
        let ram = ram();
        for start in 0..20u64 {
            for length in 0..40usize {
                let data: Vec<u8> = (0..length as u8).map(|value| value ^ 0x5a ^ start as u8).collect();
                ram.fill(Gpa(0), 0xee, 100).unwrap();
                ram.write(Gpa(start), &data).unwrap();
                let mut back = vec![0; length];
                ram.read(Gpa(start), &mut back).unwrap();
                assert_eq!(back, data, "{length} at {start}");
                let mut around = [0; 100];
                ram.read(Gpa(0), &mut around).unwrap();
                assert!(around[..start as usize].iter().all(|&value| value == 0xee));
                assert!(around[start as usize + length..].iter().all(|&value| value == 0xee));
            }
        }
    }

    #[test]
    fn accesses_cross_extents_but_not_holes() {
        let ram = ram();
        let at = Gpa(2 * PAGE - 3);
        ram.write(at, b"across").unwrap();
        let mut back = [0; 6];
        ram.read(at, &mut back).unwrap();
        assert_eq!(&back, b"across");
        assert!(ram.is_ram(Gpa(0), 4 * PAGE));
        assert!(!ram.is_ram(Gpa(0), 4 * PAGE + 1));
        let edge = Gpa(4 * PAGE - 2);
        assert_eq!(ram.write(edge, b"xyz"), Err(NotRam { gpa: edge, len: 3 }));
        ram.read(edge, &mut back[..2]).unwrap();
        assert_eq!(back[..2], [0, 0], "a failed write writes nothing");
        assert!(ram.read(Gpa(u64::MAX), &mut back).is_err());
        assert!(ram.read(Gpa((1 << 20) - 1), &mut back).is_err());
        assert!(ram.read(Gpa(77 << 30), &mut []).is_ok());
        assert!(!ram.is_ram(Gpa(0), u64::MAX));
    }

    #[test]
    fn aligned_values_are_whole() {
        let ram = ram();
        for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
            let at = Gpa(64);
            ram.store(at, Width::Qword, u64::MAX).unwrap();
            ram.store(at, width, 0x1122_3344_5566_7788).unwrap();
            let low = 0x1122_3344_5566_7788 & width.mask();
            assert_eq!(ram.load(at, width), Ok(low));
            assert_eq!(ram.load(at, Width::Qword), Ok(low | !width.mask()), "no more than {width:?} is written");
            assert_eq!(ram.compare_exchange(at, width, low, 5), Ok(Ok(low)));
            assert_eq!(ram.compare_exchange(at, width, low, 6), Ok(Err(5)));
            assert_eq!(ram.load(at, width), Ok(5));
            let crooked = Gpa(1);
            assert_eq!(ram.load(crooked, width).is_ok(), width == Width::Byte);
            assert!(ram.load(Gpa(4 * PAGE), width).is_err());
        }
    }

    #[test]
    fn fill_sets_exactly_what_it_should() {
        let ram = ram();
        ram.fill(Gpa(3), 0xab, 2 * PAGE).unwrap();
        assert_eq!(ram.load(Gpa(2), Width::Byte), Ok(0));
        assert_eq!(ram.load(Gpa(3), Width::Byte), Ok(0xab));
        assert_eq!(ram.load(Gpa(2 * PAGE + 2), Width::Byte), Ok(0xab));
        assert_eq!(ram.load(Gpa(2 * PAGE + 3), Width::Byte), Ok(0));
        assert!(ram.fill(Gpa(0), 1, 4 * PAGE + 1).is_err());
        assert!(ram.fill(Gpa(0), 1, u64::MAX).is_err());
    }

    #[test]
    fn extents_are_sorted_and_counted() {
        let ram = ram();
        assert_eq!(ram.size(), 5 * PAGE);
        let starts: Vec<_> = ram.extents().iter().map(|extent| extent.gpa).collect();
        assert_eq!(starts, [0, 2 * PAGE, 1 << 20]);
    }

    #[test]
    fn every_extent_is_released_once() {
        use std::sync::Mutex;
        static RELEASED: Mutex<Vec<u64>> = Mutex::new(Vec::new());
        let extents = vec![extent(PAGE, 1), extent(0, 1)];
        let free: fn(&Extent) = |extent| RELEASED.lock().unwrap().push(extent.gpa);
        drop(GuestRam::new(extents, Owner { clear: |_| panic!("no guest had it"), free }));
        assert_eq!(*RELEASED.lock().unwrap(), [0, PAGE]);
    }

    #[test]
    #[should_panic(expected = "does not overlap")]
    fn overlapping_extents_are_a_broken_invariant() {
        GuestRam::new(vec![extent(0, 2), extent(PAGE, 1)], Owner { clear: |_| {}, free: |_| {} });
    }
}
