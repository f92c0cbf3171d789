//! The 8254 interval timer of a PC, with port 0x61.
//!
//! Manuals: Intel 8254 "Programmable Interval Timer", order 231164-005, September 1993; ICH9 datasheet, order 316972-004,
//! 13.3 "Timer I/O Registers" and 13.7.1 for port 0x61.
//!
//! [`Pit`] computes counters from the clock when they are looked at; only counter 0 has a deadline, for its OUT is the
//! interrupt line IRQ 0. Its GATE and that of counter 1 are always high; counter 2's GATE and OUT are bits of port 0x61.
//!
//! Missed periods: when [`Device::expire`] comes late, the periods that it missed, up to [`MOST_OWED`] of them, are delivered
//! as extra interrupts between the regular ones, at twice the rate, so that systems that count ticks keep time.
//! Mode 3's falling edge in the middle of a period is not driven, so a tick that waits stays in the interrupt controller. Periods below
//! [`SHORTEST_PERIOD`] are delivered together and none is owed.
//!
//! Not here: sound, and refresh but for its toggle bit. Before it is programmed, nothing counts.

mod counter;
mod spec;
#[cfg(test)]
mod tests;

use crate::{Clock, Device, IrqLine, Nanos};
use alloc::sync::Arc;
use counter::Counter;
pub use spec::HERTZ;
use spec::{REFRESH_COUNTS, control, nmi_sc, offset, read_back};

/// The most periods of counter 0 that are delivered later.
pub const MOST_OWED: u64 = 1000;

/// Interrupts come at least this many clocks apart, about 20 microseconds.
pub const SHORTEST_PERIOD: u64 = 24;

/// What the clock shows when the machine is made, so that a counter's origin may lie a cycle before it.
const EPOCH: u64 = 1 << 17;

/// An 8254 and port 0x61.
pub struct Pit {
    clock: Arc<dyn Clock>,
    irq0: Arc<dyn IrqLine>,
    irq0_asserted: bool,
    counters: [Counter; 3],
    /// The writable bits of port 0x61.
    nmi_sc: u8,
    /// The clock at which OUT of counter 0 next rises.
    next_rise: Option<u64>,
    /// Missed periods of counter 0.
    owed: u64,
    /// When the next owed one is delivered.
    replay: u64,
    deadline: Option<Nanos>,
}

impl Pit {
    /// A timer that counts by `clock` and drives IRQ 0. The 8254's four ports are offsets 0 to 3, port 0x61 is offset 4.
    pub fn new(clock: Arc<dyn Clock>, irq0: Arc<dyn IrqLine>) -> Pit {
        Pit {
            clock,
            irq0,
            irq0_asserted: false,
            counters: UNPROGRAMMED,
            nmi_sc: 0,
            next_rise: None,
            owed: 0,
            replay: 0,
            deadline: None,
        }
    }

    fn clocks(&self) -> u64 {
        clocks_at(self.clock.now())
    }

    fn set_irq0(&mut self, asserted: bool) {
        if asserted != self.irq0_asserted {
            self.irq0_asserted = asserted;
            self.irq0.set(asserted);
        }
    }

    /// A rising edge of IRQ 0; the clock that OUT was low before is over.
    fn pulse(&mut self) {
        self.set_irq0(false);
        self.set_irq0(true);
    }

    /// Delivers what counter 0 has due by `now`.
    fn catch_up(&mut self, now: u64) {
        let Some(rise) = self.next_rise.filter(|&rise| rise <= now) else {
            if self.owed > 0 && self.replay <= now {
                self.owed -= 1;
                self.pulse();
                self.plan(now);
            }
            return;
        };
        let counter = &mut self.counters[0];
        counter.settle(now);
        if let Some(period) = counter.period().filter(|&period| period >= SHORTEST_PERIOD) {
            self.owed = self.owed.saturating_add((now - rise) / period).min(MOST_OWED);
        }
        self.pulse();
        self.plan(now);
    }

    /// Finds counter 0's next rise and sets the deadline.
    fn plan(&mut self, now: u64) {
        let counter = &self.counters[0];
        let period = counter.period().unwrap_or(u64::MAX);
        let from = if period < SHORTEST_PERIOD { now.saturating_add(SHORTEST_PERIOD - 1) } else { now };
        self.next_rise = counter.next_rise(from);
        if self.next_rise.is_none() {
            self.owed = 0;
        }
        let mut next = self.next_rise;
        if let Some(rise) = self.next_rise.filter(|_| self.owed > 0) {
            // In the middle between two rises, but not right after the last interrupt.
            let middle = rise.saturating_sub(period / 2);
            self.replay = if middle > now + period / 4 { middle } else { middle + period };
            next = Some(rise.min(self.replay));
        }
        self.deadline = next.map(|at| Nanos::of_ticks(at.saturating_sub(EPOCH), HERTZ));
    }

    fn read_byte(&mut self, offset: u64) -> u8 {
        match offset {
            0..offset::COUNTERS_END => {
                let now = self.clocks();
                self.counters[offset as usize].read(now)
            }
            offset::CONTROL => 0,
            offset::NMI_SC => self.read_nmi_sc(),
            _ => 0xff,
        }
    }

    fn read_nmi_sc(&mut self) -> u8 {
        let now = self.clocks();
        self.counters[2].settle(now);
        let out = if self.counters[2].out(now) { nmi_sc::TMR2_OUT_STS } else { 0 };
        let toggle = if !(now / REFRESH_COUNTS).is_multiple_of(2) { nmi_sc::REF_TOGGLE } else { 0 };
        self.nmi_sc | out | toggle
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        let now = self.clocks();
        self.catch_up(now);
        match offset {
            0 => {
                let counter = &mut self.counters[0];
                counter.write(value, now);
                if counter.period().is_none() {
                    // In modes 2 and 3 OUT does not follow the count at once.
                    let out = counter.out(now);
                    self.set_irq0(out);
                }
                self.plan(now);
            }
            1..offset::COUNTERS_END => self.counters[offset as usize].write(value, now),
            offset::CONTROL => self.write_control(value, now),
            offset::NMI_SC => {
                self.nmi_sc = value & nmi_sc::WRITABLE;
                self.counters[2].set_gate(value & nmi_sc::TIM_CNT2_EN != 0, now);
            }
            _ => {}
        }
    }

    fn write_control(&mut self, word: u8, now: u64) {
        let select = word >> control::SELECT_SHIFT;
        if select == control::READ_BACK {
            for (index, counter) in self.counters.iter_mut().enumerate() {
                if word & read_back::COUNTER_0 << index == 0 {
                    continue;
                }
                if word & read_back::NO_COUNT == 0 {
                    counter.latch_count(now);
                }
                if word & read_back::NO_STATUS == 0 {
                    counter.latch_status(now);
                }
            }
        } else if let Some(counter) = self.counters.get_mut(usize::from(select)) {
            if word >> control::RW_SHIFT & 3 == 0 {
                counter.latch_count(now);
                return;
            }
            counter.write_control(word);
            if select == 0 {
                let out = counter.out(now);
                self.set_irq0(out);
                self.plan(now);
            }
        }
    }
}

/// Three counters; only counter 2's GATE can be low.
const UNPROGRAMMED: [Counter; 3] = [Counter::new(true), Counter::new(true), Counter::new(false)];

fn clocks_at(now: Nanos) -> u64 {
    now.ticks(HERTZ) + EPOCH
}

/// The offset of byte `index` of an access at `offset`: the bridge makes byte cycles of it, which stay in one range of ports.
fn byte_offset(offset: u64, index: usize) -> u64 {
    let at = offset.saturating_add(index as u64);
    if at < offset::NMI_SC || index == 0 { at } else { u64::MAX }
}

impl Device for Pit {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.read_byte(byte_offset(offset, index));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (index, &byte) in data.iter().enumerate() {
            self.write_byte(byte_offset(offset, index), byte);
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        self.deadline
    }

    fn expire(&mut self, now: Nanos) {
        self.catch_up(clocks_at(now));
    }

    /// The 8254 has no reset pin; here it stops and forgets, so that no interrupt of the last system reaches the next.
    fn reset(&mut self) {
        self.counters = UNPROGRAMMED;
        self.nmi_sc = 0;
        self.set_irq0(false);
        self.plan(self.clocks());
    }
}
