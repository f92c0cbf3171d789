//! Loads and stores through paging, ending in RAM or at a device.
//!
//! Key type: [`Place`], where an operand lies. It is located first, with all faults, and accessed after, so that a
//! fault never follows a device's side effect. Translations of the last page read and the last page written are
//! remembered while one instruction runs; the exit's own translation is used for the operand that it fits.

use super::execute::Execution;
use super::walk::{Privilege, translate};
use super::{Cause, Context, Reason, Stop};
use memory::{Gpa, GuestMemory, PAGE_SIZE, Width};
use vcpu::{AccessKind, CodeSize, Exception, Vcpu, cr0, rflags};

/// Where an operand of 1 to 32 bytes lies in guest-physical memory: in one page, or at the end of one and the start
/// of another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    gpa: Gpa,
    bytes: u8,
    /// How many of `bytes` lie at `gpa`; the others at `second`.
    head: u8,
    second: Gpa,
    /// The hardware said that this is no RAM.
    device: bool,
}

impl Place {
    /// The byte at `index`, which is less than the place's size.
    pub(super) fn byte(&self, index: u8) -> Place {
        let gpa = if index < self.head {
            self.gpa.wrapping_add(index.into())
        } else {
            self.second.wrapping_add(index.wrapping_sub(self.head).into())
        };
        Place { gpa, bytes: 1, head: 1, second: gpa, device: self.device }
    }
}

/// The last page that was translated for one kind of access.
#[derive(Clone, Copy)]
pub(super) struct Remembered {
    linear: u64,
    gpa: u64,
}

impl Remembered {
    /// No page has this address.
    pub const NOTHING: Remembered = Remembered { linear: u64::MAX, gpa: 0 };
}

/// Whether the exit's own translation may be that of an operand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operands {
    /// The instruction has no other memory operand.
    Only,
    /// It has several; the exit does not say which one it is about.
    OneOfSeveral,
}

/// How often a locked operation tries again because another CPU changed the value in between.
const ATTEMPTS: u32 = 64;

impl<C: Context> Execution<'_, C> {
    /// Finds `bytes` (1 to 32) at `linear` for an access of `kind`, and checks its rights in full.
    #[inline]
    pub(super) fn locate(
        &mut self,
        linear: u64,
        bytes: u8,
        kind: AccessKind,
        operands: Operands,
    ) -> Result<Place, Stop> {
        let offset = linear % PAGE_SIZE;
        if linear & u64::from(bytes.wrapping_sub(1)) != 0 {
            self.check_alignment()?;
        }
        let room = PAGE_SIZE - offset;
        if room >= bytes.into() {
            if operands == Operands::Only
                && let Some(Cause::Access(gpa, allowed)) = self.cause
                && gpa.page_offset() == offset
                && (allowed == kind || (allowed == AccessKind::Write && kind == AccessKind::Read))
            {
                return Ok(Place { gpa, bytes, head: bytes, second: gpa, device: true });
            }
            let gpa = self.translate(linear, kind)?;
            return Ok(Place { gpa, bytes, head: bytes, second: gpa, device: false });
        }
        let gpa = self.translate(linear, kind)?;
        let mut next = linear.wrapping_add(room);
        if self.code_size != CodeSize::Bits64 {
            next &= 0xffff_ffff;
        }
        let second = self.translate(next, kind)?;
        Ok(Place { gpa, bytes, head: room as u8, second, device: false })
    }

    /// #AC, SDM 3A 7.15: at CPL 3 with CR0.AM and EFLAGS.AC.
    #[cold]
    fn check_alignment(&self) -> Result<(), Stop> {
        let cpu = self.context.cpu();
        if cpu.cr0() & cr0::AM != 0 && cpu.rflags() & rflags::AC != 0 && cpu.cpl() == 3 {
            return Err(Stop::Fault(Exception::alignment()));
        }
        Ok(())
    }

    fn translate(&mut self, linear: u64, kind: AccessKind) -> Result<Gpa, Stop> {
        let offset = linear % PAGE_SIZE;
        let page = linear - offset;
        // What may be written may be read.
        if self.written.linear == page || (kind != AccessKind::Write && self.read.linear == page) {
            let found = if self.written.linear == page { self.written } else { self.read };
            return Ok(Gpa(found.gpa | offset));
        }
        let gpa = translate(self.context, linear, kind, Privilege::of(self.context.cpu().cpl()))?;
        let remembered = Remembered { linear: page, gpa: gpa.page().0 };
        match kind {
            AccessKind::Write => self.written = remembered,
            AccessKind::Read | AccessKind::Fetch => self.read = remembered,
        }
        Ok(gpa)
    }

    /// Reads 1, 2, 4 or 8 bytes, zero-extended.
    #[inline]
    pub(super) fn load(&mut self, place: &Place) -> u64 {
        if place.head == place.bytes
            && let Some(width) = Width::from_bytes(place.bytes.into())
            && place.gpa.0 & (width as u64 - 1) == 0
        {
            if !place.device
                && let Ok(value) = self.context.memory().load(place.gpa, width)
            {
                return value;
            }
            return self.device_load(place.gpa, width);
        }
        let mut bytes = [0; 8];
        if let Some(into) = bytes.get_mut(..place.bytes.into()) {
            self.read_bytes(place, into);
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes the low 1, 2, 4 or 8 bytes of `value`.
    #[inline]
    pub(super) fn store(&mut self, place: &Place, value: u64) {
        if place.head == place.bytes
            && let Some(width) = Width::from_bytes(place.bytes.into())
            && place.gpa.0 & (width as u64 - 1) == 0
        {
            if place.device || self.context.memory().store(place.gpa, width, value).is_err() {
                self.device_store(place.gpa, width, value);
            }
            return;
        }
        if let Some(from) = value.to_le_bytes().get(..place.bytes.into()) {
            self.write_bytes(place, from);
        }
    }

    /// Reads as many bytes as `place` has, or less if `into` is shorter.
    pub(super) fn read_bytes(&mut self, place: &Place, into: &mut [u8]) {
        let (head, tail) = into.split_at_mut(usize::from(place.head).min(into.len()));
        for (gpa, part) in [(place.gpa, head), (place.second, tail)] {
            if part.is_empty() || (!place.device && self.context.memory().read(gpa, part).is_ok()) {
                continue;
            }
            let mut done = 0;
            while let Some((at, width)) = next_piece(gpa, done, part.len()) {
                let value = self.device_load(at, width).to_le_bytes();
                for (to, from) in part.iter_mut().skip(done).zip(value).take(width.bytes()) {
                    *to = from;
                }
                done += width.bytes();
            }
        }
    }

    /// Writes `from`, which has as many bytes as `place` or less.
    pub(super) fn write_bytes(&mut self, place: &Place, from: &[u8]) {
        let (head, tail) = from.split_at(usize::from(place.head).min(from.len()));
        for (gpa, part) in [(place.gpa, head), (place.second, tail)] {
            if part.is_empty() || (!place.device && self.context.memory().write(gpa, part).is_ok()) {
                continue;
            }
            let mut done = 0;
            while let Some((at, width)) = next_piece(gpa, done, part.len()) {
                let mut value = [0; 8];
                for (to, from) in value.iter_mut().zip(part.iter().skip(done)).take(width.bytes()) {
                    *to = *from;
                }
                self.device_store(at, width, u64::from_le_bytes(value));
                done += width.bytes();
            }
        }
    }

    /// Replaces the 1, 2, 4 or 8 bytes at `place`, located for writing, by what `change` makes of them. Atomic against
    /// other vCPUs where all of it is RAM within 8 aligned bytes; there `change` may be called several times.
    ///
    /// # Errors
    /// [`Reason::SplitLock`] for a locked operation on RAM that is not within 8 aligned bytes; [`Stop::Again`] when other
    /// CPUs keep changing the value.
    pub(super) fn modify<T>(
        &mut self,
        place: &Place,
        locked: bool,
        mut change: impl FnMut(u64) -> (u64, T),
    ) -> Result<T, Stop> {
        let bits = u32::from(place.bytes) * 8;
        let offset = place.gpa.0 % 8;
        if !place.device && self.is_ram(place) {
            if offset + u64::from(place.bytes) <= 8 && place.head == place.bytes {
                // The aligned 8 bytes around it. RAM is made of pages, so they are RAM too.
                let around = Gpa(place.gpa.0 - offset);
                let shift = offset as u32 * 8;
                let ones = (u64::MAX >> (64 - bits.clamp(8, 64))) << shift;
                let refused = |_| Stop::Refused(Reason::SplitLock(place.gpa));
                let mut seen = self.context.memory().load(around, Width::Qword).map_err(refused)?;
                for _ in 0..ATTEMPTS {
                    let (value, result) = change((seen & ones) >> shift);
                    let next = seen & !ones | value << shift & ones;
                    let swapped = self.context.memory().compare_exchange(around, Width::Qword, seen, next);
                    match swapped.map_err(refused)? {
                        Ok(_) => return Ok(result),
                        Err(found) => seen = found,
                    }
                }
                return Err(Stop::Again);
            }
            if locked {
                return Err(Stop::Refused(Reason::SplitLock(place.gpa)));
            }
        }
        let (value, result) = change(self.load(place));
        self.store(place, value);
        Ok(result)
    }

    /// Whether any byte of `place` is RAM.
    pub(super) fn is_ram(&self, place: &Place) -> bool {
        let memory = self.context.memory();
        !place.device && (memory.is_ram(place.gpa, 1) || (place.head != place.bytes && memory.is_ram(place.second, 1)))
    }

    #[inline(always)]
    pub(super) fn device_load(&mut self, gpa: Gpa, width: Width) -> u64 {
        match width {
            Width::Byte => {
                let mut data = [0; 1];
                self.context.device_read(gpa, &mut data);
                data[0].into()
            }
            Width::Word => {
                let mut data = [0; 2];
                self.context.device_read(gpa, &mut data);
                u16::from_le_bytes(data).into()
            }
            Width::Dword => {
                let mut data = [0; 4];
                self.context.device_read(gpa, &mut data);
                u32::from_le_bytes(data).into()
            }
            Width::Qword => {
                let mut data = [0; 8];
                self.context.device_read(gpa, &mut data);
                u64::from_le_bytes(data)
            }
        }
    }

    #[inline(always)]
    pub(super) fn device_store(&mut self, gpa: Gpa, width: Width, value: u64) {
        match width {
            Width::Byte => self.context.device_write(gpa, &[value as u8]),
            Width::Word => self.context.device_write(gpa, &(value as u16).to_le_bytes()),
            Width::Dword => self.context.device_write(gpa, &(value as u32).to_le_bytes()),
            Width::Qword => self.context.device_write(gpa, &value.to_le_bytes()),
        }
    }
}

/// The next naturally aligned piece of `len` bytes at `gpa`, of which `done` are done: the widest that fits.
fn next_piece(gpa: Gpa, done: usize, len: usize) -> Option<(Gpa, Width)> {
    let left = len.checked_sub(done).filter(|left| *left > 0)?;
    let at = gpa.wrapping_add(done as u64);
    let width = [Width::Qword, Width::Dword, Width::Word]
        .into_iter()
        .find(|width| width.bytes() <= left && at.0.is_multiple_of(width.bytes() as u64))
        .unwrap_or(Width::Byte);
    Some((at, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_and_as_wide_as_they_can_be() {
        let pieces = |at: u64, len: usize| {
            let mut done = 0;
            let mut widths = alloc::vec::Vec::new();
            while let Some((gpa, width)) = next_piece(Gpa(at), done, len) {
                assert_eq!(gpa, Gpa(at + done as u64));
                widths.push(width.bytes());
                done += width.bytes();
            }
            widths
        };
        assert_eq!(pieces(0x1000, 16), [8, 8]);
        assert_eq!(pieces(0x1001, 4), [1, 2, 1]);
        assert_eq!(pieces(0x1006, 8), [2, 4, 2]);
        assert_eq!(pieces(0x1000, 0), []);
    }
}
