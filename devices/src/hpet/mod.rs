//! The high precision event timer: one 64-bit counter of 10 ns and three comparators.
//!
//! Manual: Intel "IA-PC HPET (High Precision Event Timers) Specification", revision 1.0a, October 2004.
//!
//! A comparator matches when the counter has its value, not when it has passed it, as the specification says; a match that the
//! host could not deliver in time is delivered late, and periods missed meanwhile are one interrupt. With legacy
//! replacement timers 0 and 1 drive the wires of the 8254 and the real-time clock, and the `legacy` wire tells the owner to
//! cut these two off. An edge on those two wires stays high until the next one, for the 8259 drops a request whose input falls;
//! on other pins it is a pulse. Periods below 10 microseconds are delivered together.
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

/// Matches of one periodic timer come at least this many ticks apart, so that no guest can keep the host's alarms busy.
const SHORTEST_PERIOD: u64 = 1000;

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

/// Where a timer's interrupt goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    /// The wire that timer 0 or 1 has under legacy replacement.
    Legacy(usize),
    /// A pin of the IOAPIC.
    Pin(usize),
    /// A message.
    Message,
    /// A pin that is not wired.
    Nowhere,
}

#[derive(Clone, Copy)]
struct Timer {
    config: u64,
    comparator: u64,
    period: u64,
    fsb: u64,
    /// The counter's position, which does not wrap, at which the comparator matches next.
    due: Option<u128>,
    /// The wire that this timer holds high.
    held: Option<Route>,
}

impl Timer {
    const RESET: Timer = Timer { config: 0, comparator: u64::MAX, period: 0, fsb: 0, due: None, held: None };

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

    /// Looks for the next match from `position` on, this moment included.
    fn arm(&mut self, position: u128) {
        let ahead = self.comparator.wrapping_sub(position as u64) & self.mask();
        self.due = Some(position.wrapping_add(ahead.into()));
    }

    /// Ticks between two matches.
    fn step(&self) -> u128 {
        let period = self.period & self.mask();
        if self.is_periodic() && period != 0 { period.into() } else { u128::from(self.mask()) + 1 }
    }

    /// After a match at or before `position`: the next one lies behind it.
    fn rearm(&mut self, matched: u128, position: u128) {
        let step = self.step();
        let earliest = if step < SHORTEST_PERIOD.into() { position + u128::from(SHORTEST_PERIOD) } else { position };
        let steps = earliest.saturating_sub(matched) / step + 1;
        let due = matched.wrapping_add(steps.wrapping_mul(step));
        self.due = Some(due);
        if self.is_periodic() {
            self.comparator = due as u64 & self.mask();
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
    deadline: Option<Nanos>,
}

impl Hpet {
    /// Bytes of registers.
    pub const LEN: u64 = 0x400;

    /// A block after reset: halted, counter 0.
    pub fn new(clock: Arc<dyn Clock>, wires: HpetWires) -> Hpet {
        Hpet {
            clock,
            wires,
            config: 0,
            status: 0,
            timers: [Timer::RESET; TIMERS],
            counter: 0,
            since: Nanos(0),
            deadline: None,
        }
    }

    fn is_running(&self) -> bool {
        self.config & ENABLE_CNF != 0
    }

    #[inline]
    fn counter_at(&self, now: Nanos) -> u64 {
        if self.is_running() { self.counter.wrapping_add(now.since(self.since) / TICK_NANOS) } else { self.counter }
    }

    /// The counter as if it had no end, so that a match before its wrap and one after it can be told apart.
    fn position_at(&self, now: Nanos) -> u128 {
        let passed = if self.is_running() { now.since(self.since) / TICK_NANOS } else { 0 };
        u128::from(self.counter) + u128::from(passed)
    }

    /// Lets every comparator that has matched by `now` act.
    fn settle(&mut self, now: Nanos) {
        if !self.is_running() {
            return;
        }
        let position = self.position_at(now);
        for number in 0..TIMERS {
            let Some(timer) = self.timers.get_mut(number) else { continue };
            if let Some(due) = timer.due.filter(|due| *due <= position) {
                timer.rearm(due, position);
                self.matched(number);
            }
        }
        self.plan();
    }

    /// Finds the next match that interrupts. Others are only seen by who reads registers, which settles them.
    fn plan(&mut self) {
        let next = self.timers.iter().filter(|timer| timer.interrupts()).filter_map(|timer| timer.due).min();
        // What lies behind the end of time never comes.
        self.deadline = next.filter(|_| self.is_running()).and_then(|due| {
            let ticks = u64::try_from(due.saturating_sub(self.counter.into())).ok()?;
            self.since.0.checked_add(ticks.checked_mul(TICK_NANOS)?).map(Nanos)
        });
    }

    fn matched(&mut self, number: usize) {
        let Some(timer) = self.timers.get(number).copied() else { return };
        let route = self.route(number);
        if timer.is_level() {
            self.status |= 1 << number;
        }
        match route {
            Route::Message if timer.interrupts() => self.send(&timer),
            _ if timer.is_level() => self.drive(number),
            Route::Legacy(_) if timer.interrupts() => {
                self.hold(number, None);
                self.hold(number, Some(route));
            }
            Route::Pin(_) if timer.interrupts() => {
                self.hold(number, Some(route));
                self.hold(number, None);
            }
            _ => {}
        }
    }

    fn send(&self, timer: &Timer) {
        let message = InterruptMessage::from_msi(timer.fsb >> 32, timer.fsb as u32);
        if let (Some(messages), Some(message)) = (&self.wires.messages, message) {
            messages.deliver(&message);
        }
    }

    /// Where the timer's interrupt goes as it is configured. Legacy replacement overrides the timer's own route.
    fn route(&self, number: usize) -> Route {
        let config = self.timers.get(number).map_or(0, |timer| timer.config);
        let pin = (config >> INT_ROUTE_SHIFT & 0x1f) as usize;
        if self.config & LEG_RT_CNF != 0 && number < self.wires.legacy_irqs.len() {
            Route::Legacy(number)
        } else if config & FSB_EN_CNF != 0 {
            Route::Message
        } else if INT_ROUTE_CAP >> pin & 1 != 0 {
            Route::Pin(pin)
        } else {
            Route::Nowhere
        }
    }

    /// Drives the timer's wire as its mode and status say; an edge that is held high stays while its route does.
    fn drive(&mut self, number: usize) {
        let Some(timer) = self.timers.get(number) else { return };
        let route = self.route(number);
        let wanted = if timer.is_level() { self.status >> number & 1 != 0 } else { timer.held == Some(route) };
        let wanted = wanted && timer.interrupts() && self.is_running();
        self.hold(number, Some(route).filter(|_| wanted));
    }

    /// Lets the timer hold `route` high and no other one. A wire that two timers hold is high until both let go.
    fn hold(&mut self, number: usize, route: Option<Route>) {
        let Some(timer) = self.timers.get_mut(number) else { return };
        let before = core::mem::replace(&mut timer.held, route);
        if before == route {
            return;
        }
        let is_held = |route| self.timers.iter().any(|timer| timer.held == Some(route));
        if let Some(before) = before.filter(|&before| !is_held(before)) {
            self.set_wire(before, false);
        }
        if let Some(route) = route {
            self.set_wire(route, true);
        }
    }

    fn set_wire(&self, route: Route, asserted: bool) {
        let line = match route {
            Route::Legacy(number) => self.wires.legacy_irqs.get(number),
            Route::Pin(pin) => self.wires.pins.get(pin),
            Route::Message | Route::Nowhere => None,
        };
        if let Some(line) = line {
            line.set(asserted);
        }
    }

    fn drive_all(&mut self) {
        for number in 0..TIMERS {
            self.drive(number);
        }
    }

    fn read64(&mut self, register: u64) -> u64 {
        match register {
            offset::GCAP_ID => CAPABILITIES,
            offset::GEN_CONF => self.config,
            offset::GINTR_STA => {
                self.settle(self.clock.now());
                self.status
            }
            _ => match timer_register(register) {
                Some((number, field)) => self.read_timer(number, field),
                None => 0,
            },
        }
    }

    fn read_timer(&mut self, number: usize, field: u64) -> u64 {
        if field == offset::TIM_COMP {
            self.settle(self.clock.now());
        }
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
                self.configure((self.config & !mask | value & mask) & (ENABLE_CNF | LEG_RT_CNF), now);
            }
            offset::GINTR_STA => {
                self.status &= !(value & mask);
                self.drive_all();
            }
            // Writes while the counter runs are undefined; they are taken, as hardware does.
            offset::MAIN_CNT => {
                self.counter = self.counter_at(now) & !mask | value & mask;
                self.since = now;
                self.arm_all();
            }
            _ => {
                if let Some((number, field)) = timer_register(register) {
                    self.write_timer(number, field, value, mask, now);
                }
            }
        }
    }

    fn configure(&mut self, new: u64, now: Nanos) {
        self.counter = self.counter_at(now);
        self.since = now;
        self.config = new;
        self.drive_all();
        self.wires.legacy.set(new & LEG_RT_CNF != 0);
        self.arm_all();
    }

    fn arm_all(&mut self) {
        for timer in &mut self.timers {
            timer.arm(self.counter.into());
        }
    }

    fn write_timer(&mut self, number: usize, field: u64, value: u64, mask: u64, now: Nanos) {
        let position = self.position_at(now);
        let has_messages = self.wires.messages.is_some();
        let Some(timer) = self.timers.get_mut(number) else { return };
        match field {
            offset::TIM_CONF => {
                let writable = if has_messages { TIM_WRITABLE } else { TIM_WRITABLE & !FSB_EN_CNF };
                timer.config = (timer.config & !mask | value & mask) & writable;
                timer.comparator &= timer.mask();
                timer.period &= timer.mask();
                timer.arm(position);
                if !timer.is_level() {
                    self.status &= !(1 << number);
                }
                self.drive(number);
            }
            offset::TIM_COMP => {
                let is_value = !timer.is_periodic() || timer.config & VAL_SET_CNF != 0;
                if is_value {
                    timer.comparator = (timer.comparator & !mask | value & mask) & timer.mask();
                }
                if timer.is_periodic() {
                    timer.period = (timer.period & !mask | value & mask) & timer.mask();
                }
                if is_value {
                    timer.arm(position);
                }
                timer.config &= !VAL_SET_CNF;
            }
            offset::TIM_FSB => timer.fsb = timer.fsb & !mask | value & mask,
            _ => {}
        }
    }
}

/// The timer and the register in it that lie at `register`.
fn timer_register(register: u64) -> Option<(usize, u64)> {
    let within = register.checked_sub(offset::TIMERS)?;
    let number = usize::try_from(within / offset::STRIDE).ok().filter(|number| *number < TIMERS)?;
    Some((number, within % offset::STRIDE))
}

/// The aligned register that an access of `len` bytes touches, and how far its low byte is shifted. Accesses are of 4 or 8
/// aligned bytes; 1 and 2 are taken too where they stay in a register.
#[inline]
fn split(offset: u64, len: usize) -> Option<(u64, u32)> {
    let within = offset & 7;
    (within + len as u64 <= 8).then_some((offset & !7, within as u32 * 8))
}

impl Device for Hpet {
    #[inline]
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let Some((register, shift)) = split(offset, data.len()) else {
            data.fill(0xff);
            return;
        };
        let value =
            if register == offset::MAIN_CNT { self.counter_at(self.clock.now()) } else { self.read64(register) };
        let bytes = (value >> shift).to_le_bytes();
        if let Ok(dword) = <&mut [u8; 4]>::try_from(&mut *data) {
            let [a, b, c, d, ..] = bytes;
            *dword = [a, b, c, d];
        } else {
            for (to, from) in data.iter_mut().zip(bytes) {
                *to = from;
            }
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
        self.settle(now);
        self.plan();
    }

    #[inline]
    fn deadline(&self) -> Option<Nanos> {
        self.deadline
    }

    fn expire(&mut self, now: Nanos) {
        self.settle(now);
    }

    fn reset(&mut self) {
        for number in 0..TIMERS {
            self.hold(number, None);
        }
        self.config = 0;
        self.status = 0;
        self.counter = 0;
        self.timers = [Timer::RESET; TIMERS];
        self.wires.legacy.set(false);
        self.plan();
    }
}
