//! The high precision event timer: one 64-bit counter of 10 ns and three comparators.
//!
//! Manual: Intel "IA-PC HPET (High Precision Event Timers) Specification", revision 1.0a, October 2004.
//!
//! A comparator matches when the counter has its value, not when it has passed it, as the specification says; a match that the
//! host could not deliver in time is delivered late, and periods missed meanwhile are one interrupt. With legacy
//! replacement timers 0 and 1 drive the wires of the 8254 and the real-time clock, and the `legacy` wire tells the owner to
//! cut these two off.
//!
//! Not here: who gates the 8254 and the clock. Message delivery (FSB) is there; whether it is shown is the owner's choice, since
//! QEMU's q35 does not show it.

mod spec;
#[cfg(test)]
mod tests;

use crate::{Clock, Device, InterruptMessage, IrqLine, MessageSink, Nanos};
use alloc::sync::Arc;
use spec::{
    CAPABILITIES, ENABLE_CNF, FSB_EN_CNF, FSB_INT_DEL_CAP, INT_ENB_CNF, INT_ROUTE_CAP, INT_ROUTE_SHIFT, INT_TYPE_CNF,
    LEG_RT_CNF, MODE32_CNF, PER_INT_CAP, SIZE_CAP, TICK_NANOS, TIM_WRITABLE, TIMERS, TYPE_CNF, VAL_SET_CNF, offset,
};

/// Pins of the IOAPIC that the timers are wired to.
pub const PINS: usize = 24;

/// What the timers drive.
pub struct HpetWires {
    /// The IOAPIC's pins.
    pub pins: [Arc<dyn IrqLine>; PINS],
    /// The 8254's and the real-time clock's wires, for timers 0 and 1 under legacy replacement.
    pub legacy_irqs: [Arc<dyn IrqLine>; 2],
    /// Asserted while legacy replacement is on.
    pub legacy: Arc<dyn IrqLine>,
    /// Where messages go; `None` hides that timers can send them.
    pub messages: Option<Arc<dyn MessageSink>>,
}

#[derive(Clone, Copy, Default)]
struct Timer {
    config: u64,
    comparator: u64,
    period: u64,
    fsb: u64,
    /// The counter's value, unbounded, at which the comparator matches next.
    due: Option<u64>,
}

impl Timer {
    fn is_periodic(&self) -> bool {
        self.config & TYPE_CNF != 0
    }

    fn is_level(&self) -> bool {
        self.config & INT_TYPE_CNF != 0
    }

    fn interrupts(&self) -> bool {
        self.config & INT_ENB_CNF != 0
    }

    /// The ones of values that the timer compares.
    fn mask(&self) -> u64 {
        if self.config & MODE32_CNF != 0 { u32::MAX.into() } else { u64::MAX }
    }

    /// Looks for the next match from `counter` on, this moment included.
    fn arm(&mut self, counter: u64) {
        self.due = counter.checked_add(self.comparator.wrapping_sub(counter) & self.mask());
    }

    /// After a match at or before `counter`: the next one lies behind it.
    fn rearm(&mut self, matched: u64, counter: u64) {
        let step = if self.is_periodic() && self.period & self.mask() != 0 {
            self.period & self.mask()
        } else {
            match self.mask().checked_add(1) {
                Some(round) => round,
                None => {
                    self.due = None;
                    return;
                }
            }
        };
        let missed = counter.saturating_sub(matched) / step;
        self.due =
            missed.checked_add(1).and_then(|steps| steps.checked_mul(step)).and_then(|far| matched.checked_add(far));
        if self.is_periodic()
            && let Some(due) = self.due
        {
            self.comparator = due & self.mask();
        }
    }
}

/// The timer block.
pub struct Hpet {
    clock: Arc<dyn Clock>,
    wires: HpetWires,
    config: u64,
    status: u64,
    timers: [Timer; TIMERS],
    /// The counter's value at `since`, or now while it is halted.
    counter: u64,
    since: Nanos,
}

impl Hpet {
    /// Bytes of registers.
    pub const LEN: u64 = 0x400;

    /// A block after reset: halted, counter 0.
    pub fn new(clock: Arc<dyn Clock>, wires: HpetWires) -> Hpet {
        let reset = Timer { comparator: u64::MAX, ..Timer::default() };
        Hpet { clock, wires, config: 0, status: 0, timers: [reset; TIMERS], counter: 0, since: Nanos(0) }
    }

    fn is_running(&self) -> bool {
        self.config & ENABLE_CNF != 0
    }

    #[inline]
    fn counter_at(&self, now: Nanos) -> u64 {
        if self.is_running() { self.counter.wrapping_add(now.since(self.since) / TICK_NANOS) } else { self.counter }
    }

    /// The moment at which the running counter has `value`.
    fn moment(&self, value: u64) -> Nanos {
        self.since.saturating_add(value.saturating_sub(self.counter).saturating_mul(TICK_NANOS))
    }

    /// Lets every comparator that has matched by `now` act.
    fn settle(&mut self, now: Nanos) {
        if !self.is_running() {
            return;
        }
        let counter = self.counter_at(now);
        for number in 0..TIMERS {
            let Some(timer) = self.timers.get_mut(number) else { continue };
            if let Some(due) = timer.due.filter(|due| *due <= counter) {
                timer.rearm(due, counter);
                self.matched(number);
            }
        }
    }

    fn matched(&mut self, number: usize) {
        let Some(timer) = self.timers.get(number).copied() else { return };
        if timer.is_level() {
            self.status |= 1 << number;
            self.drive(number);
        } else if timer.interrupts() {
            if timer.config & FSB_EN_CNF != 0 {
                self.send(&timer);
            } else {
                let line = self.line(number);
                line.set(true);
                line.set(false);
            }
        }
    }

    fn send(&self, timer: &Timer) {
        let message = InterruptMessage::from_msi(timer.fsb >> 32, timer.fsb as u32);
        if let (Some(messages), Some(message)) = (&self.wires.messages, message) {
            messages.deliver(&message);
        }
    }

    /// The wire that a timer drives as it is configured.
    fn line(&self, number: usize) -> &dyn IrqLine {
        if self.config & LEG_RT_CNF != 0
            && let Some(line) = self.wires.legacy_irqs.get(number)
        {
            return &**line;
        }
        let config = self.timers.get(number).map_or(0, |timer| timer.config);
        let pin = (config >> INT_ROUTE_SHIFT & 0x1f) as usize;
        // Routes that the capability does not name are not wired; pin 0 stands in for them, which nobody listens to.
        let wired = INT_ROUTE_CAP >> pin & 1 != 0;
        let [nowhere, ..] = &self.wires.pins;
        &**self.wires.pins.get(pin).filter(|_| wired).unwrap_or(nowhere)
    }

    /// Drives a level-triggered timer's wire as its status says.
    fn drive(&self, number: usize) {
        let Some(timer) = self.timers.get(number) else { return };
        if timer.is_level() && timer.config & FSB_EN_CNF == 0 {
            self.line(number).set(self.is_running() && timer.interrupts() && self.status >> number & 1 != 0);
        }
    }

    fn release(&self, number: usize) {
        if self.status >> number & 1 != 0 {
            self.line(number).set(false);
        }
    }

    fn read64(&self, register: u64, now: Nanos) -> u64 {
        match register {
            offset::GCAP_ID => CAPABILITIES,
            offset::GEN_CONF => self.config,
            offset::GINTR_STA => self.status,
            offset::MAIN_CNT => self.counter_at(now),
            _ => match self.timer(register) {
                Some((number, field)) => self.read_timer(number, field),
                None => 0,
            },
        }
    }

    fn timer(&self, register: u64) -> Option<(usize, u64)> {
        let within = register.checked_sub(offset::TIMERS)?;
        let number = usize::try_from(within / offset::STRIDE).ok().filter(|number| *number < TIMERS)?;
        Some((number, within % offset::STRIDE))
    }

    fn read_timer(&self, number: usize, field: u64) -> u64 {
        let Some(timer) = self.timers.get(number) else { return 0 };
        match field {
            offset::TIM_CONF => {
                let fsb = if self.wires.messages.is_some() { FSB_INT_DEL_CAP } else { 0 };
                timer.config | INT_ROUTE_CAP << 32 | PER_INT_CAP | SIZE_CAP | fsb
            }
            offset::TIM_COMP => timer.comparator & timer.mask(),
            offset::TIM_FSB => timer.fsb,
            _ => 0,
        }
    }

    /// Writes the bits of `mask` in the register at `register`.
    fn write64(&mut self, register: u64, value: u64, mask: u64, now: Nanos) {
        match register {
            offset::GEN_CONF => {
                let new = (self.config & !mask | value & mask) & (ENABLE_CNF | LEG_RT_CNF);
                self.configure(new, now);
            }
            offset::GINTR_STA => {
                for number in 0..TIMERS {
                    if value & mask & self.status & 1 << number != 0 {
                        self.release(number);
                        self.status &= !(1 << number);
                    }
                }
            }
            // Writes while the counter runs are undefined; they are taken, as hardware does.
            offset::MAIN_CNT => {
                self.counter = self.counter_at(now) & !mask | value & mask;
                self.since = now;
                self.arm_all();
            }
            _ => {
                if let Some((number, field)) = self.timer(register) {
                    self.write_timer(number, field, value, mask, now);
                }
            }
        }
    }

    fn configure(&mut self, new: u64, now: Nanos) {
        for number in 0..TIMERS {
            self.release(number);
        }
        self.counter = self.counter_at(now);
        self.since = now;
        self.config = new;
        self.wires.legacy.set(new & LEG_RT_CNF != 0);
        self.arm_all();
        for number in 0..TIMERS {
            self.drive(number);
        }
    }

    fn arm_all(&mut self) {
        let counter = self.counter;
        for timer in &mut self.timers {
            timer.arm(counter);
        }
    }

    fn write_timer(&mut self, number: usize, field: u64, value: u64, mask: u64, now: Nanos) {
        let counter = self.counter_at(now);
        self.release(number);
        let has_messages = self.wires.messages.is_some();
        let Some(timer) = self.timers.get_mut(number) else { return };
        match field {
            offset::TIM_CONF => {
                let writable = if has_messages { TIM_WRITABLE } else { TIM_WRITABLE & !FSB_EN_CNF };
                timer.config = (timer.config & !mask | value & mask) & writable;
                if timer.config & MODE32_CNF != 0 {
                    timer.comparator &= timer.mask();
                    timer.period &= timer.mask();
                }
                timer.arm(counter);
            }
            offset::TIM_COMP => {
                if !timer.is_periodic() || timer.config & VAL_SET_CNF != 0 {
                    timer.comparator = (timer.comparator & !mask | value & mask) & timer.mask();
                    timer.arm(counter);
                }
                if timer.is_periodic() {
                    timer.period = (timer.period & !mask | value & mask) & timer.mask();
                }
                timer.config &= !VAL_SET_CNF;
            }
            offset::TIM_FSB => timer.fsb = timer.fsb & !mask | value & mask,
            _ => {}
        }
        if !self.timers.get(number).is_some_and(Timer::is_level) {
            self.status &= !(1 << number);
        }
        self.drive(number);
        self.settle(now);
    }
}

/// The aligned register that an access of `len` bytes touches, and how far its low byte is shifted. Accesses are of 4 or 8
/// aligned bytes; 1 and 2 are taken too where they stay in a register.
fn split(offset: u64, len: usize) -> Option<(u64, u32)> {
    let within = offset & 7;
    (within + len as u64 <= 8).then_some((offset & !7, within as u32 * 8))
}

impl Device for Hpet {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let now = self.clock.now();
        let Some((register, shift)) = split(offset, data.len()) else {
            data.fill(0xff);
            return;
        };
        if register != offset::MAIN_CNT {
            self.settle(now);
        }
        let value = (self.read64(register, now) >> shift).to_le_bytes();
        for (to, from) in data.iter_mut().zip(value) {
            *to = from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some((register, shift)) = split(offset, data.len()) else { return };
        let now = self.clock.now();
        self.settle(now);
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let ones = u64::MAX.checked_shr(64 - data.len() as u32 * 8).unwrap_or(0);
        self.write64(register, u64::from_le_bytes(bytes) << shift, ones << shift, now);
    }

    fn deadline(&self) -> Option<Nanos> {
        if !self.is_running() {
            return None;
        }
        let next = self.timers.iter().filter(|timer| timer.interrupts()).filter_map(|timer| timer.due).min()?;
        Some(self.moment(next))
    }

    fn expire(&mut self, now: Nanos) {
        self.settle(now);
    }

    fn reset(&mut self) {
        for number in 0..TIMERS {
            self.release(number);
        }
        self.config = 0;
        self.status = 0;
        self.counter = 0;
        self.timers = [Timer { comparator: u64::MAX, ..Timer::default() }; TIMERS];
        self.wires.legacy.set(false);
    }
}
