//! The I/O interrupt controller: 24 pins to messages on the interrupt bus.
//!
//! Manuals: Intel 82093AA "I/O Advanced Programmable Interrupt Controller (IOAPIC)", order 290566-001, May 1996; ICH9
//! datasheet, order 316972-004, 13.5 "I/O Advanced Programmable Interrupt Controller", for version 0x20 and its EOI register.
//!
//! [`IoApic`] takes pins by [`IoApic::set_pin`], sends by a [`MessageSink`] and learns the end of level-triggered
//! interrupts as an [`EoiSink`] (through its mutex) or by its EOI register. While a level-triggered pin stays asserted it
//! sends again after each end. An edge on a masked pin is lost, as the 82093AA says.
//!
//! Not here: which device drives which pin, and SMI.

mod spec;
#[cfg(test)]
mod tests;

use crate::{DeliveryMode, DestinationMode, Device, EoiSink, InterruptMessage, MessageSink, TriggerMode};
use alloc::sync::Arc;
pub use spec::PINS;
use spec::{ID_BITS, Redirection, VERSION, index, offset};
use spin::Mutex;

/// An IOAPIC.
pub struct IoApic {
    messages: Arc<dyn MessageSink>,
    select: u8,
    id: u32,
    entries: [Redirection; PINS],
    /// Asserted pins, one bit each.
    asserted: u32,
    /// Pins with remote IRR set, one bit each, so that an EOI need not look at all.
    unended: u32,
}

impl IoApic {
    /// Bytes of its page, of which three registers are decoded.
    pub const LEN: u64 = 0x1000;

    /// An IOAPIC after reset that sends to `messages`.
    pub fn new(messages: Arc<dyn MessageSink>) -> IoApic {
        IoApic { messages, select: 0, id: 0, entries: [Redirection::RESET; PINS], asserted: 0, unended: 0 }
    }

    /// Drives `pin`; a pin that is not there is not connected. Setting the level that it has is harmless.
    pub fn set_pin(&mut self, pin: u32, asserted: bool) {
        let pin = pin as usize;
        let Some(&entry) = self.entries.get(pin) else { return };
        let bit = 1 << pin;
        let was = self.asserted & bit != 0;
        if !asserted {
            self.asserted &= !bit;
            if let Some(entry) = self.entries.get_mut(pin) {
                entry.set_delivery_status(false);
            }
        } else if !was {
            self.asserted |= bit;
            if is_level(entry) {
                self.service_level(pin);
            } else if !entry.masked() {
                self.send(entry);
            }
        }
    }

    /// EOI of `vector`, from a local APIC or the EOI register.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        let mut pins = self.unended;
        while pins != 0 {
            let pin = pins.trailing_zeros() as usize;
            pins &= pins - 1;
            let Some(entry) = self.entries.get_mut(pin) else { return };
            if entry.vector() == vector {
                entry.set_remote_irr(false);
                self.unended &= !(1 << pin);
                self.service_level(pin);
            }
        }
    }

    /// Sends for a level-triggered pin that is asserted and whose last message has ended.
    fn service_level(&mut self, pin: usize) {
        let Some(&entry) = self.entries.get(pin) else { return };
        if entry.masked() || entry.remote_irr() || !is_level(entry) || self.asserted >> pin & 1 == 0 {
            return;
        }
        let accepted = self.send(entry);
        if let Some(entry) = self.entries.get_mut(pin) {
            entry.set_remote_irr(accepted);
            entry.set_delivery_status(!accepted);
        }
        self.unended |= u32::from(accepted) << pin;
    }

    fn send(&self, entry: Redirection) -> bool {
        let Some(delivery) = delivery_of(entry) else { return false };
        let message = InterruptMessage {
            destination: entry.destination().into(),
            destination_mode: if entry.logical() { DestinationMode::Logical } else { DestinationMode::Physical },
            delivery,
            vector: entry.vector(),
            trigger: if is_level(entry) { TriggerMode::Level } else { TriggerMode::Edge },
        };
        self.messages.deliver(&message)
    }

    #[inline]
    fn register(&self) -> u32 {
        match self.select {
            index::IOAPICID | index::IOAPICARB => self.id,
            index::IOAPICVER => VERSION,
            select => match self.entries.get(entry_of(select)) {
                Some(entry) => (entry.into_bits() >> (32 * u32::from(select & 1))) as u32,
                None => u32::MAX,
            },
        }
    }

    fn set_register(&mut self, value: u32) {
        match self.select {
            index::IOAPICID => self.id = value & ID_BITS,
            index::IOAPICVER | index::IOAPICARB => {}
            select => {
                let pin = entry_of(select);
                let Some(entry) = self.entries.get_mut(pin) else { return };
                let shift = 32 * u32::from(select & 1);
                let written = Redirection::WRITABLE & 0xffff_ffff << shift;
                let bits = entry.into_bits() & !written | u64::from(value) << shift & written;
                *entry = Redirection::from_bits(bits);
                if !is_level(*entry) {
                    // Going to edge ends what was under way; software without the EOI register relies on it.
                    entry.set_remote_irr(false);
                    entry.set_delivery_status(false);
                    self.unended &= !(1 << pin);
                }
                self.service_level(pin);
            }
        }
    }
}

/// The table entry that an index means; out of range for the indices that have none.
#[inline]
fn entry_of(select: u8) -> usize {
    match select.checked_sub(index::IOREDTBL) {
        Some(half) => usize::from(half >> 1),
        None => usize::MAX,
    }
}

/// The delivery mode, without those that the IOAPIC reserves.
fn delivery_of(entry: Redirection) -> Option<DeliveryMode> {
    DeliveryMode::from_bits(entry.delivery()).filter(|&mode| mode != DeliveryMode::StartUp)
}

/// Whether the pin is treated as a level: SMI, NMI, INIT and ExtINT are edges, whatever the entry says (3.2.4, DELMOD).
#[inline]
fn is_level(entry: Redirection) -> bool {
    entry.level() && matches!(delivery_of(entry), Some(DeliveryMode::Fixed | DeliveryMode::LowestPriority))
}

/// IOREGSEL is one byte wide. IOWIN is a register of 32 bits: narrower reads get its low part, narrower writes do nothing.
impl Device for IoApic {
    #[inline]
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            offset::IOREGSEL => self.select.into(),
            offset::IOWIN => self.register(),
            _ => 0,
        };
        data.fill(0);
        for (byte, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = from;
        }
    }

    #[inline]
    fn write(&mut self, offset: u64, data: &[u8]) {
        let whole = data.first_chunk().map(|&bytes| u32::from_le_bytes(bytes));
        match (offset, data.first(), whole) {
            (offset::IOREGSEL, Some(&select), _) => self.select = select,
            (offset::IOWIN, _, Some(value)) => self.set_register(value),
            (offset::EOI, _, Some(value)) => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }

    /// The pins keep the levels that others drive.
    fn reset(&mut self) {
        self.select = 0;
        self.id = 0;
        self.entries = [Redirection::RESET; PINS];
        self.unended = 0;
    }
}

impl EoiSink for Mutex<IoApic> {
    fn eoi(&self, vector: u8) {
        self.lock().end_of_interrupt(vector);
    }
}
