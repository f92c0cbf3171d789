//! The two ways into configuration space: the ports 0xcf8-0xcff, with the reset control register among them, and ECAM.

use super::spec::ports;
use super::{DevFn, PciBus};
use crate::{Device, PowerEvent, PowerSink};
use alloc::sync::Arc;
use spin::Mutex;

/// The bus, shared between the two ways in.
type SharedBus = Arc<Mutex<PciBus>>;

/// Ports 0xcf8 to 0xcff: CONFIG_ADDRESS, CONFIG_DATA, and RST_CNT at 0xcf9.
pub struct ConfigPorts {
    bus: SharedBus,
    power: Arc<dyn PowerSink>,
    address: u32,
    reset_control: u8,
}

impl ConfigPorts {
    /// How many ports.
    pub const PORTS: u64 = 8;

    /// The ports, leading to `bus`; a reset that the guest asks for goes to `power`.
    pub fn new(bus: SharedBus, power: Arc<dyn PowerSink>) -> ConfigPorts {
        ConfigPorts { bus, power, address: 0, reset_control: 0 }
    }

    /// Which register an access of `len` bytes to CONFIG_DATA plus `byte` means: none if the address is disabled, on
    /// another bus, or if the access runs out of the double word.
    fn target(&self, byte: u64, len: usize) -> Option<(DevFn, u16)> {
        let [register, devfn, bus, _] = self.address.to_le_bytes();
        let fits = byte.checked_add(len as u64)? <= 4;
        (self.address & ports::ENABLE != 0 && bus == 0 && fits)
            .then_some((DevFn::from_bits(devfn), u16::from(register) | byte as u16))
    }
}

impl Device for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, &mut *data) {
            (ports::CONFIG_ADDRESS, [_, _, _, _]) => data.copy_from_slice(&self.address.to_le_bytes()),
            (ports::RST_CNT, [byte]) => *byte = self.reset_control,
            (ports::CONFIG_DATA.., _) => match self.target(offset - ports::CONFIG_DATA, data.len()) {
                Some((at, register)) => self.bus.lock().read(at, register, data),
                None => data.fill(0xff),
            },
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (ports::CONFIG_ADDRESS, &[a, b, c, d]) => {
                self.address = u32::from_le_bytes([a, b, c, d]) & ports::ADDRESS_MASK;
            }
            (ports::RST_CNT, &[value]) => {
                self.reset_control = value & (ports::SYS_RST | ports::FULL_RST);
                if value & ports::RST_CPU != 0 {
                    self.power.request(PowerEvent::Reset);
                }
            }
            (ports::CONFIG_DATA.., _) => {
                if let Some((at, register)) = self.target(offset - ports::CONFIG_DATA, data.len()) {
                    self.bus.lock().write(at, register, data);
                }
            }
            _ => {}
        }
    }

    /// Resets the bus too.
    fn reset(&mut self) {
        self.address = 0;
        self.reset_control = 0;
        self.bus.lock().reset();
    }
}

/// Enhanced configuration access: 4 KiB of memory for each function.
pub struct Ecam {
    bus: SharedBus,
}

impl Ecam {
    /// The window, leading to `bus`.
    pub fn new(bus: SharedBus) -> Ecam {
        Ecam { bus }
    }

    /// PCIe 3.0 7.2.2: bus in bits 27:20, device and function in 19:12, register in 11:0.
    fn target(offset: u64) -> Option<(DevFn, u16)> {
        (offset >> 20 == 0).then_some((DevFn::from_bits((offset >> 12) as u8), offset as u16 & 0xfff))
    }
}

impl Device for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match Ecam::target(offset) {
            Some((at, register)) => self.bus.lock().read(at, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((at, register)) = Ecam::target(offset) {
            self.bus.lock().write(at, register, data);
        }
    }

    /// [`ConfigPorts`] resets the bus.
    fn reset(&mut self) {}
}
