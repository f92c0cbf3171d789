//! MC146818 real-time clock with the PC's CMOS RAM.
//!
//! Manual: Motorola MC146818A, "Real-Time Clock plus RAM (RTC)", 1984; ICH9 datasheet 316972-004, 13.6 "Real Time Clock
//! Registers"; the RAM's layout is q35's.
//!
//! [`Rtc`] decodes an index and a data port, and a second pair for the upper 128 bytes. Nothing ticks: the time is
//! brought up to date when somebody looks, and only enabled interrupts have deadlines. The bytes of the time stay as
//! written until the next update, as on the chip.
//!
//! Not here: daylight saving, the square wave, day and month alarms.

mod calendar;
mod spec;
#[cfg(test)]
mod tests;

use crate::{Clock, Device, IrqLine, Nanos};
use alloc::sync::Arc;
use calendar::{DAY, Date};
use spec::{A_DEFAULT, B, C, CRYSTAL_HERTZ, DONT_CARE, DV_RESET, DV_SHIFT, PM, UIP, UIP_NANOS, VRT, address, period};

/// A moment of wall-clock time, in the time zone that the guest is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallTime {
    /// Seconds since 1 January 1970.
    pub seconds: u64,
    /// Nanoseconds into the second.
    pub nanos: u32,
}

/// What firmware learns from the CMOS RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Bytes of RAM below 4 GiB.
    pub ram_below_4g: u64,
    /// Bytes of RAM above 4 GiB.
    pub ram_above_4g: u64,
    /// Processors, at least 1.
    pub processors: u32,
}

/// Bytes of RAM, both banks.
const SIZE: usize = 256;
/// Bytes in a bank.
const BANK: u8 = 128;

/// The clock.
pub struct Rtc {
    clock: Arc<dyn Clock>,
    line: Arc<dyn IrqLine>,
    line_is_high: bool,
    /// The index last written to each bank.
    index: [u8; 2],
    nmi_masked: bool,
    /// All bytes but the registers A to D, which have their own fields.
    ram: [u8; SIZE],
    a: u8,
    b: B,
    flags: C,
    /// Guest time plus this is the divider chain's time, whose whole seconds are updates.
    lead: u64,
    /// The divider's second up to which the time in `ram` is brought.
    second: u64,
    /// The divider's period up to which PF is brought.
    period: u64,
}

impl Rtc {
    /// Ports: index, data, and the same for the upper bank.
    pub const PORTS: u64 = 4;

    /// A clock that shows `now` at this moment of `clock`, in BCD and 24 hours, and raises IRQ8 by `line`.
    pub fn new(clock: Arc<dyn Clock>, line: Arc<dyn IrqLine>, now: WallTime, installed: Installed) -> Rtc {
        let mut rtc = Rtc {
            clock,
            line,
            line_is_high: false,
            index: [0; 2],
            nmi_masked: false,
            ram: [0; SIZE],
            a: A_DEFAULT,
            b: B::HOURS_24,
            flags: C::empty(),
            lead: 0,
            second: 0,
            period: 0,
        };
        rtc.describe(installed);
        rtc.set_time(now);
        rtc
    }

    /// Sets the time, as after a pause.
    pub fn set_time(&mut self, wall: WallTime) {
        let now = self.clock.now();
        self.align(now, u64::from(wall.nanos) % Nanos::PER_SECOND);
        let (date, day_of_week) = Date::since_1970(wall.seconds / DAY);
        self.put_time(wall.seconds % DAY, date, day_of_week);
    }

    /// Sets a byte of the RAM for firmware to find.
    pub fn preset(&mut self, index: u8, value: u8) {
        self.ram[usize::from(index)] = value;
    }

    /// Whether the guest masked NMIs by bit 7 of the index port.
    pub fn is_nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    fn describe(&mut self, installed: Installed) {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let mut put = |index: u8, value: u64, most: u64, len: usize| {
            for (at, byte) in value.min(most).to_le_bytes().iter().take(len).enumerate() {
                self.ram[usize::from(index) + at] = *byte;
            }
        };
        let below = installed.ram_below_4g;
        // A coprocessor and a pointing device.
        put(address::EQUIPMENT, 0x06, 0xff, 1);
        put(address::BASE_MEMORY, 640, 0xffff, 2);
        put(address::EXTENDED_MEMORY, below.saturating_sub(MIB) / KIB, 0xffff, 2);
        put(address::EXTENDED_MEMORY_FOUND, below.saturating_sub(MIB) / KIB, 0xffff, 2);
        put(address::MEMORY_ABOVE_16M, below.saturating_sub(16 * MIB) / (64 * KIB), 0xffff, 2);
        put(address::MEMORY_ABOVE_4G, installed.ram_above_4g / (64 * KIB), 0xff_ffff, 3);
        put(address::PROCESSORS, u64::from(installed.processors.saturating_sub(1)), 0xff, 1);
    }

    /// Nanoseconds of the divider chain.
    fn chain(&self, now: Nanos) -> Nanos {
        now.saturating_add(self.lead)
    }

    /// Makes the divider chain be `nanos` into a second at `now`; the time in RAM holds for that second.
    fn align(&mut self, now: Nanos, nanos: u64) {
        let into = now.0 % Nanos::PER_SECOND;
        self.lead = (nanos + Nanos::PER_SECOND - into) % Nanos::PER_SECOND;
        self.second = self.chain(now).0 / Nanos::PER_SECOND;
        self.period = self.period_of(now);
    }

    fn divider_runs(&self) -> bool {
        self.a >> DV_SHIFT & 7 < DV_RESET
    }

    fn updates_run(&self) -> bool {
        self.divider_runs() && !self.b.contains(B::SET)
    }

    fn period_of(&self, now: Nanos) -> u64 {
        period(self.a).map_or(0, |cycles| self.chain(now).ticks(CRYSTAL_HERTZ) / cycles)
    }

    /// Brings time and flags up to `now`.
    fn catch_up(&mut self, now: Nanos) {
        let period = self.period_of(now);
        if period != self.period {
            self.period = period;
            if self.divider_runs() {
                self.flags |= C::PF;
            }
        }
        let second = self.chain(now).0 / Nanos::PER_SECOND;
        let passed = second.saturating_sub(self.second);
        self.second = second;
        if passed == 0 || !self.updates_run() {
            return;
        }
        self.flags |= C::UF;
        if self.next_alarm().is_some_and(|seconds| seconds <= passed) {
            self.flags |= C::AF;
        }
        let total = self.time_of_day().saturating_add(passed);
        let days = total / DAY;
        let day_of_week = (self.decoded(address::DAY_OF_WEEK).saturating_sub(1) % 7 + days % 7) % 7 + 1;
        self.put_time(total % DAY, self.date().plus(days), day_of_week);
    }

    fn decode(&self, byte: u8) -> u64 {
        if self.b.contains(B::DM) { u64::from(byte) } else { u64::from(byte >> 4) * 10 + u64::from(byte & 0xf) }
    }

    fn encode(&self, value: u64) -> u8 {
        let value = value as u8;
        if self.b.contains(B::DM) { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decoded(&self, index: u8) -> u64 {
        self.decode(self.ram[usize::from(index)])
    }

    fn decode_hours(&self, byte: u8) -> u64 {
        if self.b.contains(B::HOURS_24) {
            return self.decode(byte);
        }
        let afternoon = if byte & PM != 0 { 12 } else { 0 };
        match self.decode(byte & !PM) {
            12 => afternoon,
            hour => hour + afternoon,
        }
    }

    fn encode_hours(&self, hours: u64) -> u8 {
        if self.b.contains(B::HOURS_24) {
            return self.encode(hours);
        }
        let hour = if hours.is_multiple_of(12) { 12 } else { hours % 12 };
        self.encode(hour) | if hours >= 12 { PM } else { 0 }
    }

    /// Seconds since midnight; bytes that are no time of day are held to one.
    fn time_of_day(&self) -> u64 {
        let hours = self.decode_hours(self.ram[usize::from(address::HOURS)]).min(23);
        let minutes = self.decoded(address::MINUTES).min(59);
        hours * 3600 + minutes * 60 + self.decoded(address::SECONDS).min(59)
    }

    fn date(&self) -> Date {
        let century = self.decoded(address::CENTURY).min(99);
        let year = century * 100 + self.decoded(address::YEAR).min(99);
        Date::new(year, self.decoded(address::MONTH), self.decoded(address::DAY_OF_MONTH))
    }

    fn put_time(&mut self, time: u64, date: Date, day_of_week: u64) {
        let bytes = [
            (address::SECONDS, self.encode(time % 60)),
            (address::MINUTES, self.encode(time / 60 % 60)),
            (address::HOURS, self.encode_hours(time / 3600)),
            (address::DAY_OF_WEEK, self.encode(day_of_week)),
            (address::DAY_OF_MONTH, self.encode(date.day)),
            (address::MONTH, self.encode(date.month)),
            (address::YEAR, self.encode(date.year % 100)),
            (address::CENTURY, self.encode(date.year / 100 % 100)),
        ];
        for (index, byte) in bytes {
            self.ram[usize::from(index)] = byte;
        }
    }

    /// Seconds from the time in RAM to the alarm's next match, 1 to 86,400; `None` if its bytes are no time of day.
    fn next_alarm(&self) -> Option<u64> {
        // The value to match, `None` for any; nothing at all if no time has such a value.
        let field = |index: u8, decode: &dyn Fn(u8) -> u64, end: u64| {
            let byte = self.ram[usize::from(index)];
            if byte >= DONT_CARE {
                return Some(None);
            }
            let value = decode(byte);
            (value < end).then_some(Some(value))
        };
        let seconds = field(address::SECONDS_ALARM, &|byte| self.decode(byte), 60)?;
        let minutes = field(address::MINUTES_ALARM, &|byte| self.decode(byte), 60)?;
        let hours = field(address::HOURS_ALARM, &|byte| self.decode_hours(byte), 24)?;
        let start = self.time_of_day();
        let mut at = start + 1;
        // Each step skips an hour, a minute or a second that does not match: at most 24 + 60 + 60 and the carries.
        loop {
            if hours.is_some_and(|hours| hours != at / 3600 % 24) {
                at = (at / 3600 + 1) * 3600;
            } else if minutes.is_some_and(|minutes| minutes != at / 60 % 60) {
                at = (at / 60 + 1) * 60;
            } else if seconds.is_some_and(|seconds| seconds != at % 60) {
                at += 1;
            } else {
                return Some(at - start);
            }
        }
    }

    fn enabled(&self) -> C {
        let pairs = [(B::PIE, C::PF), (B::AIE, C::AF), (B::UIE, C::UF)];
        pairs.iter().filter(|(enable, _)| self.b.contains(*enable)).map(|(_, flag)| *flag).collect()
    }

    fn update_line(&mut self) {
        let high = self.flags.intersects(self.enabled());
        if high != self.line_is_high {
            self.line_is_high = high;
            self.line.set(high);
        }
    }

    fn set_a(&mut self, value: u8, now: Nanos) {
        let ran = self.divider_runs();
        self.a = value & !UIP;
        self.period = self.period_of(now);
        if !ran && self.divider_runs() {
            // "Divider control": the first update comes half a second after the reset ends.
            self.align(now, Nanos::PER_SECOND / 2);
        }
    }

    fn set_b(&mut self, value: u8) {
        let rises = value & B::SET.bits() != 0 && !self.b.contains(B::SET);
        self.b = B::from_bits_retain(value);
        if rises {
            self.b -= B::UIE;
        }
    }

    fn read_byte(&mut self, index: u8) -> u8 {
        let now = self.clock.now();
        match index {
            address::A => {
                let left = Nanos::PER_SECOND - self.chain(now).0 % Nanos::PER_SECOND;
                let updating = self.updates_run() && left <= UIP_NANOS;
                self.a | if updating { UIP } else { 0 }
            }
            address::B => self.b.bits(),
            address::C => {
                self.catch_up(now);
                let requested = self.flags.intersects(self.enabled());
                let value = self.flags.bits() | if requested { C::IRQF.bits() } else { 0 };
                self.flags = C::empty();
                self.update_line();
                value
            }
            address::D => VRT,
            _ => {
                self.catch_up(now);
                self.update_line();
                self.ram[usize::from(index)]
            }
        }
    }

    fn write_byte(&mut self, index: u8, value: u8) {
        let now = self.clock.now();
        self.catch_up(now);
        match index {
            address::A => self.set_a(value, now),
            address::B => self.set_b(value),
            address::C | address::D => {}
            _ => self.ram[usize::from(index)] = value,
        }
        self.update_line();
    }
}

impl Device for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = match offset.wrapping_add(at as u64) {
                1 => self.read_byte(self.index[0]),
                3 => self.read_byte(self.index[1] | BANK),
                // The index ports are write-only.
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, value) in data.iter().enumerate() {
            match offset.wrapping_add(at as u64) {
                0 => {
                    self.index[0] = value & !BANK;
                    self.nmi_masked = value & BANK != 0;
                }
                1 => self.write_byte(self.index[0], *value),
                2 => self.index[1] = value & !BANK,
                3 => self.write_byte(self.index[1] | BANK, *value),
                _ => {}
            }
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        let wanted = self.enabled() - self.flags;
        let at_chain = |chain: u64| Nanos(chain.saturating_sub(self.lead));
        let second = |number: u64| at_chain(number.saturating_mul(Nanos::PER_SECOND));
        let update = (wanted.contains(C::UF) && self.updates_run()).then(|| second(self.second.saturating_add(1)));
        let alarm = (wanted.contains(C::AF) && self.updates_run())
            .then(|| self.next_alarm())
            .flatten()
            .map(|seconds| second(self.second.saturating_add(seconds)));
        let periodic = (wanted.contains(C::PF) && self.divider_runs())
            .then(|| period(self.a))
            .flatten()
            .map(|cycles| Nanos::of_ticks(self.period.saturating_add(1).saturating_mul(cycles), CRYSTAL_HERTZ))
            .map(|chain| at_chain(chain.0));
        [update, alarm, periodic].into_iter().flatten().min()
    }

    fn expire(&mut self, now: Nanos) {
        self.catch_up(now);
        self.update_line();
    }

    /// The RESET pin: interrupts off, flags clear; time, alarm and RAM stay.
    fn reset(&mut self) {
        self.catch_up(self.clock.now());
        self.b -= B::PIE | B::AIE | B::UIE | B::SQWE;
        self.flags = C::empty();
        self.nmi_masked = false;
        self.update_line();
    }
}
