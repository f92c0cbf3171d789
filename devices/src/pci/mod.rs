//! PCI: configuration space and the ways into it, the q35 host bridge and LPC bridge, INTx routing.
//!
//! Manuals: PCI Local Bus Specification 3.0; PCI Express Base Specification 3.0, 7.2.2 "PCI Express Enhanced Configuration
//! Access Mechanism"; Intel 316966-002 (3 Series MCH) and 316972-004 (ICH9).
//!
//! Key types: [`ConfigSpace`] (one function's registers with their write masks), [`Function`] (what sits at a
//! [`DevFn`]), [`PciBus`] (bus 0), [`ConfigPorts`] and [`Ecam`] (the two ways in), [`IntxRouter`]. A guest that moves a
//! window (a BAR, the ECAM, the power management ports) is noted in the [`PciBus`]; its owner sees
//! [`PciBus::changes_flag`] after an access and drains [`BarChange`]s to move its claims on the buses.
//!
//! Not here: bridges to other buses, hot plug, MSI.

mod config;
mod intx;
mod lpc;
mod mch;
mod ports;
mod spec;
#[cfg(test)]
mod tests;

pub use config::{AddressSpace, BarKind, ConfigSize, ConfigSpace, Identity, Window};
pub use intx::{IntxRouter, Pirq, isa_irq};
pub use lpc::{ChipsetConfiguration, Lpc, PM_PORTS, PMBASE, RCBA, RCRB_SIZE};
pub use mch::{ECAM_BASE, ECAM_SIZE, Mch};
pub use ports::{ConfigPorts, Ecam};

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use spec::header;
use spin::Mutex;

/// Vendor ID of Intel.
pub const INTEL: u16 = 0x8086;
/// Subsystem IDs of q35's chipset devices.
pub const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);

/// Who sets the chipset up after reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetUp {
    /// Firmware in the guest: the registers have their reset values.
    ByFirmware,
    /// Nobody, for the guest is loaded directly: the registers are as firmware leaves them.
    Done,
}

/// A function's place on bus 0: slot 0 to 31, function 0 to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DevFn(u8);

impl DevFn {
    /// Slot `device` (0 to 31) and function `function` (0 to 7).
    pub const fn new(device: u8, function: u8) -> DevFn {
        assert!(device < 32 && function < 8, "a bus has 32 slots of 8 functions");
        DevFn(device << 3 | function)
    }

    /// From the eight bits that configuration addresses carry.
    pub const fn from_bits(bits: u8) -> DevFn {
        DevFn(bits)
    }

    /// The slot.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// The function within the slot.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

impl fmt::Display for DevFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.device(), self.function())
    }
}

/// A PCI function, as the bus sees it.
///
/// A device with BARs is one type that implements this and [`crate::Device`]; the bus holds it by the same lock.
pub trait Function: Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Its configuration space, to change.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// A guest's configuration read. Functions with registers that change by themselves override it.
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// A guest's configuration write. Functions in which a write has effects override it.
    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.config_mut().write(offset, data);
    }

    /// Platform reset of the configuration space.
    fn config_reset(&mut self) {
        self.config_mut().reset();
    }

    /// What registers other than the BARs make the function decode now; `number` is below [`CHIPSET_WINDOWS`].
    fn chipset_window(&self, _number: usize) -> Option<Window> {
        None
    }
}

/// How many windows beside the BARs a function can have.
pub const CHIPSET_WINDOWS: usize = 2;
/// Six BARs, the expansion ROM, chipset windows.
const WINDOWS: usize = config::ROM_WINDOW + 1 + CHIPSET_WINDOWS;

/// Which of a function's windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowId {
    /// Base address register 0 to 5.
    Bar(u8),
    /// The expansion ROM.
    Rom,
    /// [`Function::chipset_window`].
    Chipset(u8),
}

impl WindowId {
    const fn of(index: usize) -> WindowId {
        match index {
            0..config::ROM_WINDOW => WindowId::Bar(index as u8),
            config::ROM_WINDOW => WindowId::Rom,
            _ => WindowId::Chipset((index - config::ROM_WINDOW - 1) as u8),
        }
    }
}

/// A window that appeared or went away. A window that moved does both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarChange {
    /// The function no longer decodes these addresses.
    Unmapped {
        /// The function.
        at: DevFn,
        /// Which window.
        id: WindowId,
        /// Where it was.
        window: Window,
    },
    /// The function decodes these addresses now.
    Mapped {
        /// The function.
        at: DevFn,
        /// Which window.
        id: WindowId,
        /// Where it is.
        window: Window,
    },
}

/// Two functions at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupied(pub DevFn);

impl fmt::Display for Occupied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PCI function {} is there already", self.0)
    }
}

struct Seat {
    at: DevFn,
    function: Arc<Mutex<dyn Function>>,
    /// The windows as the owner of the bus knows them.
    known: [Option<Window>; WINDOWS],
}

fn windows(function: &dyn Function) -> [Option<Window>; WINDOWS] {
    core::array::from_fn(|index| match WindowId::of(index) {
        WindowId::Bar(_) | WindowId::Rom => function.config().window(index),
        WindowId::Chipset(number) => function.chipset_window(usize::from(number)),
    })
}

/// Bus 0.
pub struct PciBus {
    /// For each devfn, which seat plus one; 0 for none.
    by_devfn: [u16; 256],
    seats: Vec<Seat>,
    changed: Arc<AtomicBool>,
}

impl Default for PciBus {
    fn default() -> PciBus {
        PciBus::new()
    }
}

impl PciBus {
    /// A bus without functions.
    pub fn new() -> PciBus {
        PciBus { by_devfn: [0; 256], seats: Vec::new(), changed: Arc::default() }
    }

    /// Puts `function` at `at`. Function 0 of a slot with several learns that it has company.
    pub fn insert(&mut self, at: DevFn, function: Arc<Mutex<dyn Function>>) -> Result<(), Occupied> {
        if self.seat(at).is_some() {
            return Err(Occupied(at));
        }
        if windows(&*function.lock()).iter().any(Option::is_some) {
            self.changed.store(true, Ordering::Relaxed);
        }
        self.seats.push(Seat { at, function, known: [None; WINDOWS] });
        self.by_devfn[usize::from(at.0)] = self.seats.len() as u16;
        let first = DevFn::new(at.device(), 0);
        let has_company = (1..8).any(|function| self.seat(DevFn::new(at.device(), function)).is_some());
        if let Some(seat) = self.seat(first).filter(|_| has_company) {
            let mut function = seat.function.lock();
            let config = function.config_mut();
            let kind = config.get8(header::HEADER_TYPE);
            config.preset8(header::HEADER_TYPE, kind | header::MULTI_FUNCTION);
        }
        Ok(())
    }

    fn seat(&self, at: DevFn) -> Option<&Seat> {
        let number = *self.by_devfn.get(usize::from(at.0))?;
        self.seats.get(usize::from(number).checked_sub(1)?)
    }

    /// A guest's configuration read. Nobody there: all ones.
    pub fn read(&mut self, at: DevFn, offset: u16, data: &mut [u8]) {
        match self.seat(at) {
            Some(seat) => seat.function.lock().config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A guest's configuration write.
    pub fn write(&mut self, at: DevFn, offset: u16, data: &[u8]) {
        if let Some(seat) = self.seat(at) {
            let mut function = seat.function.lock();
            function.config_write(offset, data);
            if windows(&*function) != seat.known {
                self.changed.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Platform reset of all configuration spaces.
    pub fn reset(&mut self) {
        for seat in &self.seats {
            seat.function.lock().config_reset();
        }
        self.changed.store(true, Ordering::Relaxed);
    }

    /// A flag that is set while [`PciBus::drain_changes`] may have something to tell; to be looked at after accesses
    /// without taking the bus's lock.
    pub fn changes_flag(&self) -> Arc<AtomicBool> {
        self.changed.clone()
    }

    /// Tells what the functions decode now that they did not at the last call, and the other way round. All windows
    /// that go are told before any that come, so that two can change places.
    pub fn drain_changes(&mut self, mut tell: impl FnMut(BarChange)) {
        if !self.changed.swap(false, Ordering::Relaxed) {
            return;
        }
        for seat in &mut self.seats {
            let now = windows(&*seat.function.lock());
            for (index, (known, now)) in seat.known.iter_mut().zip(now).enumerate() {
                if *known != now
                    && let Some(window) = known.take()
                {
                    tell(BarChange::Unmapped { at: seat.at, id: WindowId::of(index), window });
                }
            }
        }
        for seat in &mut self.seats {
            let now = windows(&*seat.function.lock());
            for (index, (known, now)) in seat.known.iter_mut().zip(now).enumerate() {
                if known.is_none()
                    && let Some(window) = now
                {
                    *known = Some(window);
                    tell(BarChange::Mapped { at: seat.at, id: WindowId::of(index), window });
                }
            }
        }
    }
}
