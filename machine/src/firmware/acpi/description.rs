//! The machine as the tables describe it.

use alloc::vec::Vec;

/// A range of memory addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first address.
    pub start: u64,
    /// Bytes, at least 1.
    pub size: u64,
}

impl Window {
    /// The last address.
    pub const fn last(self) -> u64 {
        self.start + (self.size - 1)
    }
}

/// A 16550 on the ISA bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// First of eight ports.
    pub port: u16,
    /// ISA interrupt, 0 to 15.
    pub irq: u8,
}

/// The event timer block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hpet {
    /// Where its registers lie.
    pub base: u64,
    /// Lower half of its General Capabilities and ID Register.
    pub block_id: u32,
}

/// What the tables describe. Processors have the APIC ids and ACPI UIDs 0, 1, 2 ...
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How many processors, at least 1.
    pub processors: u32,
    /// Where the local APICs' registers lie.
    pub lapic_base: u32,
    /// The IOAPIC's id.
    pub ioapic_id: u8,
    /// Where its registers lie; it has the global system interrupts from 0 on, 24 of them.
    pub ioapic_base: u32,
    /// The HPET, if there is one.
    pub hpet: Option<Hpet>,
    /// Enhanced PCI configuration space, 1 MiB for each bus from 0 on.
    pub ecam: Window,
    /// Memory below 4 GiB in which PCI BARs may lie; no RAM, nothing else.
    pub pci_memory: Window,
    /// The same above 4 GiB.
    pub pci_memory_high: Option<Window>,
    /// First port of the power management block.
    pub pm_base: u16,
    /// 24 or 32.
    pub pm_timer_bits: u8,
    /// The system control interrupt.
    pub sci: u8,
    /// The serial ports, at most four.
    pub serial: Vec<SerialPort>,
    /// Whether there is a VGA-compatible display.
    pub vga: bool,
}

impl Layout {
    pub(super) fn last_bus(&self) -> u8 {
        let buses = (self.ecam.size >> 20).clamp(1, 256);
        (buses - 1) as u8
    }
}
