//! The port and memory buses: from an address to the device that claimed it.
//!
//! A [`Bus`] is built while the machine is made and then only read, so that an access takes no lock but the device's
//! own. Ports are found in a table, one byte a port; memory ranges by binary search. What nobody claims reads as all
//! ones. Ranges that are empty, overlap or run past the end of the bus are refused.

use crate::{Device, Nanos};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;

/// A device as the buses and the machine hold it: shared, locked for the length of one access.
pub type SharedDevice = Arc<Slot>;

/// Wraps `device` for claims on one or more buses.
pub fn share<D: Device + 'static>(device: Arc<Mutex<D>>) -> SharedDevice {
    Arc::new(Slot { device, deadline: AtomicU64::new(NO_DEADLINE) })
}

const NO_DEADLINE: u64 = u64::MAX;

/// A device and its last known deadline.
pub struct Slot {
    device: Arc<Mutex<dyn Device>>,
    deadline: AtomicU64,
}

impl Slot {
    /// The deadline as of the last access, expiry or reset.
    #[inline]
    pub fn deadline(&self) -> Option<Nanos> {
        match self.deadline.load(Ordering::Relaxed) {
            NO_DEADLINE => None,
            nanos => Some(Nanos(nanos)),
        }
    }

    /// Lets the device act on what is due at `now`.
    pub fn expire(&self, now: Nanos) {
        let _ = self.with(|device| device.expire(now));
    }

    /// Resets the device.
    pub fn reset(&self) {
        let _ = self.with(|device| device.reset());
    }

    #[inline]
    fn with(&self, act: impl FnOnce(&mut dyn Device)) -> Accessed {
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
    /// The device's offset of `start`.
    offset: u64,
    slot: SharedDevice,
}

/// A bus with claimed ranges.
pub struct Bus {
    /// Sorted by `start`, without overlap.
    claims: Vec<Claim>,
    /// For the port bus: which claim, plus one, owns each port. Empty for a memory bus.
    by_port: Box<[u8]>,
    end: u64,
}

/// Ports on an x86 I/O bus.
const PORTS: usize = 1 << 16;

impl Bus {
    /// An I/O port bus: 65,536 ports, at most 255 ranges, found by table.
    pub fn ports() -> Bus {
        Bus { claims: Vec::new(), by_port: vec![0; PORTS].into_boxed_slice(), end: PORTS as u64 - 1 }
    }

    /// A memory bus: all 64-bit addresses, found by binary search.
    pub fn memory() -> Bus {
        Bus { claims: Vec::new(), by_port: Box::default(), end: u64::MAX }
    }

    /// Gives `len` addresses from `start` to `slot`, which sees them from `offset` on.
    pub fn claim(&mut self, start: u64, len: u64, slot: &SharedDevice, offset: u64) -> Result<(), ClaimError> {
        let last = start.checked_add(len.checked_sub(1).ok_or(ClaimError::Empty)?).ok_or(ClaimError::PastEnd)?;
        if last > self.end {
            return Err(ClaimError::PastEnd);
        }
        if !self.by_port.is_empty() && self.claims.len() >= usize::from(u8::MAX) {
            return Err(ClaimError::Full);
        }
        let at = self.claims.partition_point(|claim| claim.start <= last);
        if at > 0 && self.claims.get(at - 1).is_some_and(|before| before.last >= start) {
            return Err(ClaimError::Overlap);
        }
        self.claims.insert(at, Claim { start, last, offset, slot: slot.clone() });
        self.index_ports();
        Ok(())
    }

    /// Takes back the range of `slot` that starts at `start`. True if there was one.
    pub fn release(&mut self, start: u64, slot: &SharedDevice) -> bool {
        let before = self.claims.len();
        self.claims.retain(|claim| claim.start != start || !Arc::ptr_eq(&claim.slot, slot));
        self.index_ports();
        self.claims.len() != before
    }

    fn index_ports(&mut self) {
        if self.by_port.is_empty() {
            return;
        }
        self.by_port.fill(0);
        for (claim, number) in self.claims.iter().zip(1u8..) {
            if let Some(ports) = self.by_port.get_mut(claim.start as usize..=claim.last as usize) {
                ports.fill(number);
            }
        }
    }

    #[inline]
    fn find(&self, address: u64) -> Option<&Claim> {
        if self.by_port.is_empty() {
            let at = self.claims.partition_point(|claim| claim.start <= address);
            self.claims.get(at.checked_sub(1)?).filter(|claim| claim.last >= address)
        } else {
            let number = *self.by_port.get(usize::try_from(address).ok()?)?;
            self.claims.get(usize::from(number).checked_sub(1)?)
        }
    }

    /// Whether some device claimed `address`.
    pub fn is_claimed(&self, address: u64) -> bool {
        self.find(address).is_some()
    }

    /// Reads `data.len()` bytes at `address`. An access that runs past its device's range is the device's to
    /// answer if it decodes such a size, as an aligned chip select would.
    #[inline]
    pub fn read(&self, address: u64, data: &mut [u8]) -> Accessed {
        match self.find(address) {
            Some(claim) => {
                let offset = claim.offset.wrapping_add(address - claim.start);
                claim.slot.with(|device| device.read(offset, data))
            }
            None => {
                data.fill(0xff);
                Accessed::Unclaimed
            }
        }
    }

    /// Writes `data` at `address`.
    #[inline]
    pub fn write(&self, address: u64, data: &[u8]) -> Accessed {
        match self.find(address) {
            Some(claim) => {
                let offset = claim.offset.wrapping_add(address - claim.start);
                claim.slot.with(|device| device.write(offset, data))
            }
            None => Accessed::Unclaimed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_released_range_is_open_bus_again() {
        let (_, slot) = recorder();
        let mut bus = Bus::ports();
        bus.claim(0x60, 1, &slot, 0).unwrap();
        bus.claim(0x64, 1, &slot, 4).unwrap();
        let (_, other) = recorder();
        assert!(!bus.release(0x60, &other), "another device's range stays");
        assert!(bus.release(0x60, &slot));
        assert!(!bus.release(0x60, &slot));
        assert!(!bus.is_claimed(0x60));
        assert!(bus.is_claimed(0x64));
    }
}
