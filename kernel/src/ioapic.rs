//! The host's IOAPICs: all masked, but for what a driver asks for.
//!
//! Pins Intel 82093AA datasheet (290566-001), 3.0 "Register Description".

#![allow(unsafe_code)] // Device registers.

use crate::acpi::{IoApic, MAX_IO_APICS, Platform, Polarity, Trigger};
use crate::address_space;
use crate::lock::Lock;
use crate::paging::MapError;
use arrayvec::ArrayVec;
use core::ptr::NonNull;

/// Offsets of the two registers in memory, and indices behind them.
const SELECT: usize = 0x00;
const WINDOW: usize = 0x10;
const VERSION: u32 = 0x01;
const REDIRECTION: u32 = 0x10;

/// Redirection-entry bits.
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const ACTIVE_LOW: u32 = 1 << 13;

struct Chip {
    registers: NonNull<u8>,
    first_gsi: u32,
    inputs: u32,
}

// SAFETY: device registers are the same from every CPU; the lock around the chips keeps index and data together.
unsafe impl Send for Chip {}

static CHIPS: Lock<ArrayVec<Chip, MAX_IO_APICS>> = Lock::new(ArrayVec::new_const());

impl Chip {
    fn pointer(&self, offset: usize) -> *mut u32 {
        // SAFETY: a page of registers is mapped.
        unsafe { self.registers.add(offset) }.cast::<u32>().as_ptr()
    }

    fn select(&self, index: u32) {
        // SAFETY: the index register takes any index.
        unsafe { self.pointer(SELECT).write_volatile(index) };
    }

    fn read(&self, index: u32) -> u32 {
        self.select(index);
        // SAFETY: reading has no side effect.
        unsafe { self.pointer(WINDOW).read_volatile() }
    }

    fn write(&self, index: u32, value: u32) {
        self.select(index);
        // SAFETY: callers write redirection entries only, to vectors that have handlers.
        unsafe { self.pointer(WINDOW).write_volatile(value) };
    }
}

/// Maps all IOAPICs and masks all their inputs.
///
/// # Errors
/// When registers cannot be mapped.
pub fn init(found: &[IoApic]) -> Result<(), MapError> {
    let mut chips = CHIPS.lock();
    for io_apic in found.iter().take(MAX_IO_APICS) {
        let registers = address_space::map_device(u64::from(io_apic.address), 32)?;
        let mut chip = Chip { registers, first_gsi: io_apic.first_gsi, inputs: 0 };
        chip.inputs = (chip.read(VERSION) >> 16 & 0xff) + 1;
        for input in 0..chip.inputs {
            chip.write(REDIRECTION + 2 * input, MASKED);
        }
        chips.push(chip);
    }
    Ok(())
}

/// Sends the ISA interrupt `irq` to `vector` of the CPU with the local APIC `destination`. Returns whether some IOAPIC
/// has it.
pub fn route_isa(platform: &Platform, irq: u8, vector: u8, destination: u32) -> bool {
    let source = platform.isa_source(irq);
    let chips = CHIPS.lock();
    let Some(chip) = chips.iter().find(|chip| (chip.first_gsi..chip.first_gsi + chip.inputs).contains(&source.gsi))
    else {
        return false;
    };
    let mut low = u32::from(vector);
    if source.polarity == Polarity::Low {
        low |= ACTIVE_LOW;
    }
    if source.trigger == Trigger::Level {
        low |= LEVEL;
    }
    let entry = REDIRECTION + 2 * (source.gsi - chip.first_gsi);
    chip.write(entry, MASKED);
    chip.write(entry + 1, destination << 24);
    chip.write(entry, low);
    true
}
