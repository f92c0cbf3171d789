//! The port and memory buses: from an address to the device that claimed it.
//!
//! Most ranges are claimed while the machine is made and stay: they are found without a lock, ports in a table, one byte a
//! port, memory by binary search. Ranges that the guest can move (PCI windows) are placed and withdrawn later, under a lock
//! that only an access to one of them, or to nothing, meets. What nobody claims reads as all ones. Ranges that are empty,
//! overlap or run past the end of the bus are refused.

use crate::{Device, Nanos};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use spin::{Mutex, RwLock};

/// A device as the buses and the machine hold it: shared, locked for the length of one access.
pub type SharedDevice = Arc<dyn Attached>;

/// Wraps `device` for claims on one or more buses.
pub fn share<D: Device + 'static>(device: Arc<Mutex<D>>) -> SharedDevice {
    Arc::new(Slot { device, deadline: AtomicU64::new(NO_DEADLINE) })
}

const NO_DEADLINE: u64 = u64::MAX;

/// What a bus and the machine do with a device of any kind; made by [`share`].
pub trait Attached: Send + Sync {
    /// [`Device::read`].
    fn read(&self, offset: u64, data: &mut [u8]) -> Accessed;

    /// [`Device::write`].
    fn write(&self, offset: u64, data: &[u8]) -> Accessed;

    /// The deadline as of the last access, expiry or reset.
    fn deadline(&self) -> Option<Nanos>;

    /// Lets the device act on what is due at `now`.
    fn expire(&self, now: Nanos);

    /// Resets the device.
    fn reset(&self);
}

/// A device and its last known deadline.
struct Slot<D> {
    device: Arc<Mutex<D>>,
    deadline: AtomicU64,
}

impl<D: Device> Slot<D> {
    #[inline(always)]
    fn with(&self, act: impl FnOnce(&mut D)) -> Accessed {
        let mut device = self.device.lock();
        act(&mut *device);
        let deadline = device.deadline().map_or(NO_DEADLINE, |at| at.0);
        // Stored under the device's lock, so the last writer is the last one that saw the device.
        if deadline == self.deadline.load(Ordering::Relaxed) {
            Accessed::Done
        } else {
            self.deadline.store(deadline, Ordering::Relaxed);
            Accessed::DeadlineChanged
        }
    }
}

impl<D: Device> Attached for Slot<D> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Accessed {
        self.with(|device| device.read(offset, data))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Accessed {
        self.with(|device| device.write(offset, data))
    }

    fn deadline(&self) -> Option<Nanos> {
        match self.deadline.load(Ordering::Relaxed) {
            NO_DEADLINE => None,
            nanos => Some(Nanos(nanos)),
        }
    }

    fn expire(&self, now: Nanos) {
        let _ = self.with(|device| device.expire(now));
    }

    fn reset(&self) {
        let _ = self.with(|device| device.reset());
    }
}

/// What an access left for its caller to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Accessed {
    /// Nothing.
    Done,
    /// The device's deadline is another one now; alarms have to be set anew.
    DeadlineChanged,
    /// Nobody claimed the address: the data of a read is all ones, a write is lost.
    Unclaimed,
}

/// Why a range could not be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// The range has no byte.
    Empty,
    /// The range ends past the end of the bus.
    PastEnd,
    /// A byte of the range belongs to another device.
    Overlap,
    /// The bus holds as many ranges as it can.
    Full,
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClaimError::Empty => "the range is empty",
            ClaimError::PastEnd => "the range ends past the end of the bus",
            ClaimError::Overlap => "the range overlaps one that is claimed already",
            ClaimError::Full => "the bus holds as many ranges as it can",
        })
    }
}

struct Claim {
    start: u64,
    /// The last byte, inclusive, so that a range may end at the end of the bus.
    last: u64,
    /// What to add to an address, modulo 2^64, for the device's offset.
    shift: u64,
    slot: SharedDevice,
}

impl Claim {
    #[inline]
    fn read(&self, address: u64, data: &mut [u8]) -> Accessed {
        self.slot.read(address.wrapping_add(self.shift), data)
    }

    #[inline]
    fn write(&self, address: u64, data: &[u8]) -> Accessed {
        self.slot.write(address.wrapping_add(self.shift), data)
    }
}

/// Claims in order of their start, without overlap.
struct Claims(Vec<Claim>);

impl Claims {
    #[inline]
    fn find(&self, address: u64) -> Option<&Claim> {
        let behind = self.0.partition_point(|claim| claim.start <= address);
        self.0.get(behind.checked_sub(1)?).filter(|claim| claim.last >= address)
    }

    fn meets(&self, start: u64, last: u64) -> bool {
        let behind = self.0.partition_point(|claim| claim.start <= last);
        behind.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|claim| claim.last >= start)
    }

    fn insert(&mut self, claim: Claim) {
        let at = self.0.partition_point(|other| other.start < claim.start);
        self.0.insert(at, claim);
    }
}

/// A bus with claimed ranges.
pub struct Bus {
    fixed: Claims,
    moving: RwLock<Claims>,
    /// For the port bus: who owns each port. Empty for a memory bus.
    owners: Box<[AtomicU8]>,
    end: u64,
}

/// Ports on an x86 I/O bus.
const PORTS: usize = 1 << 16;

/// How many ranges may be placed at a time. Room for them is made with the bus, for a guest moves them.
const MOVING: usize = 64;

/// Entries of a port bus's table: nobody's port, a port of a moving range; any other number less one is the index of a fixed
/// claim.
const NOBODY: u8 = 0;
const SOMEBODY_MOVING: u8 = u8::MAX;
/// The most fixed claims that a port's table entry can tell apart.
const MOST_FIXED_PORT_CLAIMS: usize = 254;

impl Bus {
    /// An I/O port bus: 65,536 ports, at most 254 fixed ranges.
    pub fn ports() -> Bus {
        Bus::new((0..PORTS).map(|_| AtomicU8::new(NOBODY)).collect(), PORTS as u64 - 1)
    }

    /// A memory bus: all 64-bit addresses.
    pub fn memory() -> Bus {
        Bus::new(Box::default(), u64::MAX)
    }

    fn new(owners: Box<[AtomicU8]>, end: u64) -> Bus {
        let moving = RwLock::new(Claims(Vec::with_capacity(MOVING)));
        Bus { fixed: Claims(Vec::new()), moving, owners, end }
    }

    /// Gives `len` addresses from `start` to `slot` for good, which sees them from `offset` on.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub fn claim(&mut self, start: u64, len: u64, slot: &SharedDevice, offset: u64) -> Result<(), ClaimError> {
        let last = self.last_of(start, len)?;
        if !self.owners.is_empty() && self.fixed.0.len() >= MOST_FIXED_PORT_CLAIMS {
            return Err(ClaimError::Full);
        }
        if self.fixed.meets(start, last) || self.moving.get_mut().meets(start, last) {
            return Err(ClaimError::Overlap);
        }
        self.fixed.insert(Claim { start, last, shift: offset.wrapping_sub(start), slot: slot.clone() });
        for (claim, number) in self.fixed.0.iter().zip(1..) {
            self.set_owner(claim.start, claim.last, number);
        }
        Ok(())
    }

    /// Gives `len` addresses from `start` to `slot`, which sees them from 0 on, until they are withdrawn.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub fn place(&self, start: u64, len: u64, slot: &SharedDevice) -> Result<(), ClaimError> {
        let last = self.last_of(start, len)?;
        let mut moving = self.moving.write();
        if moving.0.len() >= MOVING {
            return Err(ClaimError::Full);
        }
        if self.fixed.meets(start, last) || moving.meets(start, last) {
            return Err(ClaimError::Overlap);
        }
        moving.insert(Claim { start, last, shift: start.wrapping_neg(), slot: slot.clone() });
        self.set_owner(start, last, SOMEBODY_MOVING);
        Ok(())
    }

    /// Takes back the range of `slot` that was placed at `start`. True if there was one.
    pub fn withdraw(&self, start: u64, slot: &SharedDevice) -> bool {
        let mut moving = self.moving.write();
        let is_it = |claim: &Claim| claim.start == start && Arc::ptr_eq(&claim.slot, slot);
        let Some(at) = moving.0.iter().position(is_it) else { return false };
        let claim = moving.0.remove(at);
        self.set_owner(claim.start, claim.last, NOBODY);
        true
    }

    fn last_of(&self, start: u64, len: u64) -> Result<u64, ClaimError> {
        let last = start.checked_add(len.checked_sub(1).ok_or(ClaimError::Empty)?).ok_or(ClaimError::PastEnd)?;
        if last > self.end { Err(ClaimError::PastEnd) } else { Ok(last) }
    }

    /// Marks ports in the table; nothing on a memory bus.
    fn set_owner(&self, start: u64, last: u64, owner: u8) {
        for entry in self.owners.get(start as usize..=last as usize).into_iter().flatten() {
            entry.store(owner, Ordering::Relaxed);
        }
    }

    /// The fixed claim with `address`, or why there is none.
    #[inline]
    fn find(&self, address: u64) -> Found<'_> {
        let fixed = if self.owners.is_empty() {
            self.fixed.find(address)
        } else {
            match self.owners.get(address as usize).map_or(NOBODY, |owner| owner.load(Ordering::Relaxed)) {
                NOBODY => return Found::Nobody,
                number => self.fixed.0.get(usize::from(number) - 1),
            }
        };
        fixed.map_or(Found::Moving, Found::Fixed)
    }

    /// Whether some device claimed `address`.
    pub fn is_claimed(&self, address: u64) -> bool {
        match self.find(address) {
            Found::Fixed(_) => true,
            Found::Moving => self.moving.read().find(address).is_some(),
            Found::Nobody => false,
        }
    }

    /// Reads `data.len()` bytes at `address`. An access that runs past its device's range is the device's to
    /// answer if it decodes such a size, as an aligned chip select would.
    #[inline]
    pub fn read(&self, address: u64, data: &mut [u8]) -> Accessed {
        match self.find(address) {
            Found::Fixed(claim) => claim.read(address, data),
            Found::Moving => self.read_moving(address, data),
            Found::Nobody => {
                data.fill(0xff);
                Accessed::Unclaimed
            }
        }
    }

    /// Writes `data` at `address`.
    #[inline]
    pub fn write(&self, address: u64, data: &[u8]) -> Accessed {
        match self.find(address) {
            Found::Fixed(claim) => claim.write(address, data),
            Found::Moving => self.write_moving(address, data),
            Found::Nobody => Accessed::Unclaimed,
        }
    }

    #[inline(never)]
    fn read_moving(&self, address: u64, data: &mut [u8]) -> Accessed {
        match self.moving.read().find(address) {
            Some(claim) => claim.read(address, data),
            None => {
                data.fill(0xff);
                Accessed::Unclaimed
            }
        }
    }

    #[inline(never)]
    fn write_moving(&self, address: u64, data: &[u8]) -> Accessed {
        self.moving.read().find(address).map_or(Accessed::Unclaimed, |claim| claim.write(address, data))
    }
}

/// Where an address may be found.
enum Found<'a> {
    Fixed(&'a Claim),
    /// Among the moving ranges, or nowhere.
    Moving,
    Nobody,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    /// Remembers the last write; reads give the low byte of the offset; its deadline is the last byte written.
    #[derive(Default)]
    struct Recorder {
        written: Option<(u64, Vec<u8>)>,
    }

    impl Device for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.written = Some((offset, data.to_vec()));
        }
        fn deadline(&self) -> Option<Nanos> {
            self.written.as_ref().and_then(|(_, bytes)| bytes.last()).map(|&b| Nanos(b.into()))
        }
        fn reset(&mut self) {
            self.written = None;
        }
    }

    fn recorder() -> (Arc<Mutex<Recorder>>, SharedDevice) {
        let device = Arc::new(Mutex::new(Recorder::default()));
        (device.clone(), share(device))
    }

    #[test]
    fn both_buses_find_the_claimed_range_and_pass_the_device_offset() {
        for mut bus in [Bus::ports(), Bus::memory()] {
            let (device, slot) = recorder();
            bus.claim(0x20, 2, &slot, 0).unwrap();
            bus.claim(0xa0, 2, &slot, 2).unwrap();
            let mut byte = [0];
            assert_eq!(bus.read(0xa1, &mut byte), Accessed::Done);
            assert_eq!(byte, [3]);
            assert_eq!(bus.write(0x21, &[7]), Accessed::DeadlineChanged);
            assert_eq!(device.lock().written, Some((1, vec![7])));
            assert_eq!(slot.deadline(), Some(Nanos(7)));
            assert_eq!(bus.write(0x20, &[7]), Accessed::Done, "the same deadline again");
            slot.reset();
            assert_eq!(slot.deadline(), None);
        }
    }

    #[test]
    fn unclaimed_reads_are_all_ones() {
        for bus in [Bus::ports(), Bus::memory()] {
            let mut data = [0; 4];
            assert_eq!(bus.read(0x80, &mut data), Accessed::Unclaimed);
            assert_eq!(data, [0xff; 4]);
            assert_eq!(bus.write(u64::MAX, &data), Accessed::Unclaimed);
        }
    }

    #[test]
    fn bad_ranges_are_refused() {
        let (_, slot) = recorder();
        let mut ports = Bus::ports();
        assert_eq!(ports.claim(5, 0, &slot, 0), Err(ClaimError::Empty));
        assert_eq!(ports.claim(0xffff, 2, &slot, 0), Err(ClaimError::PastEnd));
        assert_eq!(ports.claim(0xffff, 1, &slot, 0), Ok(()));
        let mut memory = Bus::memory();
        assert_eq!(memory.claim(u64::MAX, 2, &slot, 0), Err(ClaimError::PastEnd));
        memory.claim(0x1000, 0x1000, &slot, 0).unwrap();
        for (start, len) in [(0xfff, 2), (0x1fff, 1), (0x1200, 4), (0, 0x10000)] {
            assert_eq!(memory.claim(start, len, &slot, 0), Err(ClaimError::Overlap), "{start:#x}+{len:#x}");
        }
        memory.claim(0, 0x1000, &slot, 0).unwrap();
        memory.claim(0x2000, 1, &slot, 0).unwrap();
    }

    #[test]
    fn a_withdrawn_range_is_open_bus_again_and_can_be_placed_elsewhere() {
        for mut bus in [Bus::ports(), Bus::memory()] {
            let (_, fixed) = recorder();
            let (_, slot) = recorder();
            let (_, other) = recorder();
            let mut byte = [0];
            bus.claim(0x64, 1, &fixed, 4).unwrap();
            bus.place(0x1060, 4, &slot).unwrap();
            assert_eq!((bus.read(0x1062, &mut byte), byte), (Accessed::Done, [2]));
            assert_eq!(bus.write(0x1062, &[9]), Accessed::DeadlineChanged);
            assert!(!bus.withdraw(0x1060, &other), "another device's range stays");
            assert!(bus.withdraw(0x1060, &slot));
            assert!(!bus.withdraw(0x1060, &slot));
            assert!(!bus.is_claimed(0x1060));
            assert_eq!((bus.read(0x1062, &mut byte), byte), (Accessed::Unclaimed, [0xff]));
            assert_eq!(bus.write(0x1062, &[9]), Accessed::Unclaimed);
            bus.place(0x60, 4, &slot).unwrap();
            assert_eq!((bus.read(0x63, &mut byte), byte), (Accessed::Done, [3]));
            assert_eq!((bus.read(0x64, &mut byte), byte), (Accessed::Done, [4]), "the fixed neighbour is still there");
        }
    }

    #[test]
    fn a_placed_range_overlaps_nothing_and_there_is_an_end_to_them() {
        for mut bus in [Bus::ports(), Bus::memory()] {
            let (_, slot) = recorder();
            bus.claim(0x64, 1, &slot, 0).unwrap();
            assert_eq!(bus.place(0x60, 8, &slot), Err(ClaimError::Overlap));
            assert_eq!(bus.place(0x60, 0, &slot), Err(ClaimError::Empty));
            assert_eq!(bus.place(u64::MAX, 2, &slot), Err(ClaimError::PastEnd));
            for start in (0x1000..).step_by(4).take(MOVING) {
                assert_eq!(bus.place(start, 4, &slot), Ok(()));
            }
            assert_eq!(bus.place(0x2000, 4, &slot), Err(ClaimError::Full));
            assert_eq!(bus.claim(0x1003, 4, &slot, 0), Err(ClaimError::Overlap));
            assert!(bus.withdraw(0x1004, &slot));
            assert_eq!(bus.place(0x1003, 4, &slot), Err(ClaimError::Overlap));
            assert_eq!(bus.place(0x1004, 2, &slot), Ok(()));
        }
    }
}
