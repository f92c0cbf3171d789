//! The pair of 8259A interrupt controllers of a PC, with the edge/level control registers.
//!
//! Manuals: Intel 8259A "Programmable Interrupt Controller", order 231468-003, December 1988; ICH9 datasheet, order
//! 316972-004, 13.4 "Interrupt Controller I/O Registers", for ELCR and what the chipset fixes (cascade at IR2, 8086 mode,
//! no buffered mode, LTIM replaced by ELCR).
//!
//! [`Pic`] takes sixteen inputs by [`Pic::set_irq`], drives INTR, and gives a vector by [`Pic::acknowledge`]. An
//! edge-triggered request goes away when its input falls before the acknowledge, as the datasheet has it; an acknowledge that
//! finds nothing gives the spurious vector, IRQ 7 or 15.
//!
//! Not here: MCS-80 mode, and who looks at INTR.

mod chip;
mod spec;
#[cfg(test)]
mod tests;

use crate::{Device, IrqLine};
use alloc::sync::Arc;
use chip::{Chip, PortRead};
use spec::{CASCADE, ELCR1_WRITABLE, ELCR2_WRITABLE, SPURIOUS, offset};

/// The two chips.
pub struct Pic {
    intr: Arc<dyn IrqLine>,
    intr_asserted: bool,
    master: Chip,
    slave: Chip,
}

impl Pic {
    /// A pair before its initialization, silent, that drives `intr`.
    pub fn new(intr: Arc<dyn IrqLine>) -> Pic {
        Pic {
            intr,
            intr_asserted: false,
            master: Chip::new(1 << CASCADE, ELCR1_WRITABLE),
            slave: Chip::new(0, ELCR2_WRITABLE),
        }
    }

    /// Drives input `irq`, 0 to 15. IRQ 2 is the cascade and no input of the board; it and larger numbers do nothing.
    pub fn set_irq(&mut self, irq: u8, asserted: bool) {
        match irq {
            CASCADE | 16.. => return,
            0..8 => self.master.set_line(irq, asserted),
            8..16 => self.slave.set_line(irq & 7, asserted),
        }
        self.update();
    }

    /// The level of INTR.
    #[inline]
    pub fn has_interrupt(&self) -> bool {
        self.intr_asserted
    }

    /// INTA: the vector to deliver. Its level is in service from now on, unless it is a spurious one.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.request() {
            Some(CASCADE) => {
                self.master.acknowledge(CASCADE);
                let input = self.slave.request();
                if let Some(input) = input {
                    self.slave.acknowledge(input);
                }
                self.drop_cascade();
                self.slave.vector(input.unwrap_or(SPURIOUS))
            }
            Some(input) => {
                self.master.acknowledge(input);
                self.master.vector(input)
            }
            None => self.master.vector(SPURIOUS),
        };
        self.update();
        vector
    }

    /// The slave's INT falls with each of its acknowledges, so that what it still has is a new edge to the master.
    fn drop_cascade(&mut self) {
        self.master.set_line(CASCADE, false);
    }

    fn update(&mut self) {
        self.master.set_line(CASCADE, self.slave.request().is_some());
        let asserted = self.master.request().is_some();
        if asserted != self.intr_asserted {
            self.intr_asserted = asserted;
            self.intr.set(asserted);
        }
    }

    #[inline]
    fn read_byte(&mut self, offset: u64) -> u8 {
        let is_data = offset & 1 != 0;
        match offset {
            offset::MASTER..offset::SLAVE => match self.master.read(is_data) {
                PortRead::Register(value) => value,
                PortRead::Poll => self.poll_master(),
            },
            offset::SLAVE..offset::ELCR => match self.slave.read(is_data) {
                PortRead::Register(value) => value,
                PortRead::Poll => self.poll_slave(),
            },
            offset::ELCR..offset::END => if is_data { &self.slave } else { &self.master }.elcr(),
            _ => 0xff,
        }
    }

    #[cold]
    #[inline(never)]
    fn poll_master(&mut self) -> u8 {
        let answer = self.master.poll();
        self.update();
        answer
    }

    #[cold]
    #[inline(never)]
    fn poll_slave(&mut self) -> u8 {
        let answer = self.slave.poll();
        self.drop_cascade();
        self.update();
        answer
    }

    #[cold]
    #[inline(never)]
    fn read_bytes(&mut self, offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.read_byte(byte_offset(offset, index));
        }
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        let is_data = offset & 1 != 0;
        let is_slave = offset & 2 != 0;
        match offset {
            offset::MASTER..offset::ELCR => {
                let chip = if is_slave { &mut self.slave } else { &mut self.master };
                if is_data { chip.write_data(value) } else { chip.write_command(value) }
            }
            offset::ELCR..offset::END => {
                if is_data { &mut self.slave } else { &mut self.master }.set_elcr(value);
            }
            _ => return,
        }
        self.update();
    }
}

/// The offset of byte `index` of an access at `offset`: the bridge makes byte cycles of it, which stay in one pair of ports.
fn byte_offset(offset: u64, index: usize) -> u64 {
    let at = offset.saturating_add(index as u64);
    if at >> 1 == offset >> 1 { at } else { u64::MAX }
}

impl Device for Pic {
    #[inline]
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match data {
            [byte] => *byte = self.read_byte(offset),
            _ => self.read_bytes(offset, data),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (index, &byte) in data.iter().enumerate() {
            self.write_byte(byte_offset(offset, index), byte);
        }
    }

    /// Back to the state before initialization; the inputs keep the levels that others drive.
    fn reset(&mut self) {
        self.master.reset();
        self.slave.reset();
        self.update();
    }
}
