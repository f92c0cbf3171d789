//! Registers of the IOAPIC, under the 82093AA's names.

use bitfield_struct::bitfield;

/// Memory-mapped offsets; ICH9 datasheet 13.5.1 "APIC Register Map".
pub mod offset {
    /// IOREGSEL: the index of the register behind IOWIN, 8 bits.
    pub const IOREGSEL: u64 = 0x00;
    /// IOWIN: 32 bits of that register.
    pub const IOWIN: u64 = 0x10;
    /// EOI, version 0x20 and later: the low byte written is an ended vector.
    pub const EOI: u64 = 0x40;
}

/// Indices behind IOREGSEL.
pub mod index {
    /// Identification.
    pub const IOAPICID: u8 = 0x00;
    /// Version.
    pub const IOAPICVER: u8 = 0x01;
    /// Arbitration id.
    pub const IOAPICARB: u8 = 0x02;
    /// The redirection table, two indices an entry.
    pub const IOREDTBL: u8 = 0x10;
}

/// Interrupt inputs.
pub const PINS: usize = 24;

/// Version 0x20, the one with an EOI register, and the highest entry.
pub const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// Bits 27:24 of the id register.
pub const ID_BITS: u32 = 0x0f00_0000;

/// 3.2.4 "IOREDTBL\[23:0\] - I/O Redirection Table Registers".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Redirection {
    /// INTVEC.
    pub vector: u8,
    /// DELMOD.
    #[bits(3)]
    pub delivery: u32,
    /// DESTMOD: logical.
    pub logical: bool,
    /// DELIVS: a level waits for an APIC to accept it.
    pub delivery_status: bool,
    /// INTPOL: active low. Wires here carry "asserted", so it is kept and changes nothing.
    pub active_low: bool,
    /// Remote IRR: a level-triggered message was accepted and not yet ended.
    pub remote_irr: bool,
    /// Trigger mode: level.
    pub level: bool,
    /// Interrupt mask.
    pub masked: bool,
    #[bits(39)]
    __: u64,
    /// Destination.
    pub destination: u8,
}

impl Redirection {
    /// After reset: masked.
    pub const RESET: Redirection = Redirection::new().with_masked(true);
    /// DELIVS and Remote IRR.
    pub const READ_ONLY: u64 = 1 << 12 | 1 << 14;
    /// All bits that exist and can be written.
    pub const WRITABLE: u64 = 0xff00_0000_0001_afff;
}
