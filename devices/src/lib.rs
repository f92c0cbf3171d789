//! Device models of the PC that a guest sees, and the buses they sit on.
//!
//! Key types: [`Device`] (a register file with injected wires), [`Bus`] (finds the device of an address),
//! [`Clock`], [`IrqLine`] and [`InterruptMessage`] (what is injected). Neighbours: `machine` builds the PC out of
//! these and translates exits into accesses. This crate never sees a vCPU, an exit or a vendor.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod bus;
mod device;
#[cfg(test)]
mod fakes;
mod msi;
mod wires;

pub mod acpi_pm;
pub mod debug_exit;
pub mod debugcon;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod lapic;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod rtc;
pub mod uart;

pub use bus::{Accessed, Attached, Bus, ClaimError, SharedDevice, share};
pub use device::Device;
pub use wires::{
    ByteSink, ByteSource, Clock, CpuSignals, DeliveryMode, DestinationMode, EoiSink, InterruptMessage, IrqLine,
    MessageSink, Nanos, PowerEvent, PowerSink, TriggerMode,
};
