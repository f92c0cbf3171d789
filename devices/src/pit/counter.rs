//! One counter of the 8254: what it holds and what OUT is at any moment, computed from when it was loaded.
//!
//! Moments are counts of the input clock. A count that is written is in the counting element one clock later.

use super::spec::{Access, Mode, control, status};

/// Where the counting element is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counting {
    /// Not loaded since the control word: OUT has its initial level.
    Idle,
    /// Loaded at this moment, which may be the next clock.
    Since(u64),
    /// GATE is low; this many clocks were counted.
    Stopped(u64),
}

/// A new count of mode 2 or 3, loaded when the present cycle or half-cycle ends.
#[derive(Clone, Copy)]
struct Reload {
    at: u64,
    count: u32,
    /// The half-cycle that begins then is mode 3's low one.
    starts_low: bool,
}

pub(super) struct Counter {
    /// The low six bits of the control word.
    control: u8,
    mode: Mode,
    access: Access,
    gate: bool,
    /// What software wrote last since the control word, 1 to 65,536.
    register: Option<u32>,
    /// What the counting element was loaded with.
    count: u32,
    counting: Counting,
    reload: Option<Reload>,
    /// The first byte of a two-byte write.
    first_byte: Option<u8>,
    /// The next byte of a two-byte read is the most significant one.
    reads_msb: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    /// Not programmed.
    pub(super) const fn new(gate: bool) -> Counter {
        const UNPROGRAMMED: u8 = 3 << control::RW_SHIFT | 3 << control::MODE_SHIFT;
        Counter {
            control: UNPROGRAMMED,
            mode: Mode::SquareWave,
            access: Access::Word,
            gate,
            register: None,
            count: MODULUS_BINARY,
            counting: Counting::Idle,
            reload: None,
            first_byte: None,
            reads_msb: false,
            latched_count: None,
            latched_status: None,
        }
    }

    fn is_bcd(&self) -> bool {
        self.control & control::BCD != 0
    }

    /// What the counting element counts through: 65,536, or 10,000 in BCD.
    fn modulus(&self) -> u32 {
        if self.is_bcd() { 10_000 } else { MODULUS_BINARY }
    }

    /// Clocks in one cycle of modes 2 and 3, if that is the mode and it runs.
    pub(super) fn period(&self) -> Option<u64> {
        match (self.mode, self.counting) {
            (Mode::RateGenerator | Mode::SquareWave, Counting::Since(_)) => Some(self.count.into()),
            _ => None,
        }
    }

    fn elapsed(&self, now: u64) -> u64 {
        match self.counting {
            Counting::Idle => 0,
            Counting::Since(origin) => now.saturating_sub(origin),
            Counting::Stopped(elapsed) => elapsed,
        }
    }

    /// Loads what mode 2 or 3 was given for the end of a cycle that is over.
    pub(super) fn settle(&mut self, now: u64) {
        if let Some(reload) = self.reload.filter(|reload| reload.at <= now) {
            self.reload = None;
            self.count = reload.count;
            let skipped = if reload.starts_low { high_half(reload.count) } else { 0 };
            self.counting = Counting::Since(reload.at.saturating_sub(skipped));
        }
    }

    /// The level of OUT. Call [`Counter::settle`] before.
    pub(super) fn out(&self, now: u64) -> bool {
        let (elapsed, count) = (self.elapsed(now), u64::from(self.count));
        let idle = self.counting == Counting::Idle;
        match self.mode {
            Mode::InterruptOnTerminalCount => !idle && elapsed >= count,
            Mode::HardwareRetriggerableOneShot => idle || elapsed >= count,
            Mode::RateGenerator => idle || !self.gate || elapsed % count != count - 1,
            Mode::SquareWave => idle || !self.gate || elapsed % count < high_half(self.count),
            Mode::SoftwareTriggeredStrobe | Mode::HardwareTriggeredStrobe => idle || elapsed != count,
        }
    }

    /// The moment after `now` at which OUT next rises by itself. Call [`Counter::settle`] before.
    pub(super) fn next_rise(&self, now: u64) -> Option<u64> {
        let Counting::Since(origin) = self.counting else { return None };
        let count = u64::from(self.count);
        let once = |at: u64| (at > now).then_some(at);
        match self.mode {
            Mode::InterruptOnTerminalCount | Mode::HardwareRetriggerableOneShot => once(origin + count),
            Mode::SoftwareTriggeredStrobe | Mode::HardwareTriggeredStrobe => once(origin + count + 1),
            Mode::RateGenerator | Mode::SquareWave => match self.reload {
                Some(Reload { at, count, starts_low: true }) => Some(at + u64::from(count) - high_half(count)),
                Some(Reload { at, .. }) => Some(at),
                None => Some(origin + (self.elapsed(now) / count + 1) * count),
            },
        }
    }

    /// What the counting element holds, as software reads it.
    fn value(&self, now: u64) -> u16 {
        let (elapsed, count) = (self.elapsed(now), u64::from(self.count));
        let modulus = u64::from(self.modulus());
        let value = match self.mode {
            Mode::RateGenerator => count - elapsed % count,
            Mode::SquareWave => {
                let (position, high) = (elapsed % count, high_half(self.count));
                let clocks = if position < high { position } else { position - high };
                // An odd count is loaded as the even one below it.
                (count & !1) - 2 * clocks
            }
            _ => (count + modulus - elapsed % modulus) % modulus,
        };
        let value = (value % modulus) as u16;
        if self.is_bcd() { to_bcd(value) } else { value }
    }

    fn status(&self, now: u64) -> u8 {
        let out = if self.out(now) { status::OUT } else { 0 };
        let null = if self.is_null(now) { status::NULL_COUNT } else { 0 };
        out | null | self.control
    }

    /// Whether the last control word or count has not reached the counting element.
    fn is_null(&self, now: u64) -> bool {
        let Some(register) = self.register else { return true };
        match self.counting {
            Counting::Idle => true,
            Counting::Since(origin) => now < origin || self.reload.is_some() || register != self.count,
            Counting::Stopped(_) => register != self.count,
        }
    }

    /// Takes a control word that selects this counter and is no latch command.
    pub(super) fn write_control(&mut self, word: u8) {
        let access = match word >> control::RW_SHIFT & 3 {
            1 => Access::Lsb,
            2 => Access::Msb,
            _ => Access::Word,
        };
        *self = Counter {
            control: word & 0x3f,
            mode: Mode::from_control(word),
            access,
            count: self.count,
            ..Counter::new(self.gate)
        };
    }

    /// Counter latch command; a count that is latched already stays.
    pub(super) fn latch_count(&mut self, now: u64) {
        self.settle(now);
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(now));
            self.reads_msb = false;
        }
    }

    /// Latches the status; one that is latched already stays.
    pub(super) fn latch_status(&mut self, now: u64) {
        self.settle(now);
        if self.latched_status.is_none() {
            self.latched_status = Some(self.status(now));
        }
    }

    /// Reads the counter's port: a latched status first, then a latched count, else the count as it runs.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        self.settle(now);
        let [lsb, msb] = self.latched_count.unwrap_or_else(|| self.value(now)).to_le_bytes();
        let is_last = self.access != Access::Word || self.reads_msb;
        let byte = match self.access {
            Access::Lsb => lsb,
            Access::Msb => msb,
            Access::Word if self.reads_msb => msb,
            Access::Word => lsb,
        };
        self.reads_msb = !is_last;
        if is_last {
            self.latched_count = None;
        }
        byte
    }

    /// Writes the counter's port.
    pub(super) fn write(&mut self, byte: u8, now: u64) {
        self.settle(now);
        let value = match (self.access, self.first_byte.take()) {
            (Access::Lsb, _) => u16::from(byte),
            (Access::Msb, _) => u16::from(byte) << 8,
            (Access::Word, Some(lsb)) => u16::from_le_bytes([lsb, byte]),
            (Access::Word, None) => {
                self.first_byte = Some(byte);
                if self.mode == Mode::InterruptOnTerminalCount {
                    // "Writing the first byte disables counting. OUT is set low immediately."
                    self.counting = Counting::Idle;
                }
                return;
            }
        };
        let value = if self.is_bcd() { from_bcd(value) } else { value.into() };
        let count = match (value, self.mode) {
            (0, _) => self.modulus(),
            // A count of 1 is illegal here; it behaves as the shortest legal one.
            (1, Mode::RateGenerator | Mode::SquareWave) => 2,
            (value, _) => value,
        };
        self.register = Some(count);
        self.take_count(count, now);
    }

    fn take_count(&mut self, count: u32, now: u64) {
        match self.mode {
            Mode::InterruptOnTerminalCount | Mode::SoftwareTriggeredStrobe => self.load(count, now),
            Mode::HardwareRetriggerableOneShot | Mode::HardwareTriggeredStrobe => {}
            Mode::RateGenerator | Mode::SquareWave => match self.counting {
                Counting::Since(origin) if origin <= now => {
                    self.reload = Some(self.reload_at_end(count, now - origin, now));
                }
                _ => self.load(count, now),
            },
        }
    }

    /// Loads on the next clock; a low GATE holds it there.
    fn load(&mut self, count: u32, now: u64) {
        self.count = count;
        self.reload = None;
        self.counting = if self.gate { Counting::Since(now + 1) } else { Counting::Stopped(0) };
    }

    fn reload_at_end(&self, count: u32, elapsed: u64, now: u64) -> Reload {
        let period = u64::from(self.count);
        let position = elapsed % period;
        let high = high_half(self.count);
        if self.mode == Mode::SquareWave && position < high {
            Reload { at: now + high - position, count, starts_low: true }
        } else {
            Reload { at: now + period - position, count, starts_low: false }
        }
    }

    /// Drives GATE.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        self.settle(now);
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        match self.mode {
            Mode::InterruptOnTerminalCount | Mode::SoftwareTriggeredStrobe => match self.counting {
                Counting::Since(_) if falls => self.counting = Counting::Stopped(self.elapsed(now)),
                Counting::Stopped(elapsed) if rises => {
                    // The same clock that takes GATE loads a count that waited.
                    self.counting = Counting::Since((now + u64::from(elapsed == 0)).saturating_sub(elapsed));
                }
                _ => {}
            },
            Mode::HardwareRetriggerableOneShot | Mode::HardwareTriggeredStrobe => {
                if let Some(count) = self.register.filter(|_| rises) {
                    self.load(count, now);
                }
            }
            Mode::RateGenerator | Mode::SquareWave => {
                if let Counting::Since(_) = self.counting
                    && falls
                {
                    self.counting = Counting::Stopped(self.elapsed(now));
                    self.reload = None;
                } else if let Some(count) = self.register.filter(|_| rises) {
                    self.load(count, now);
                }
            }
        }
    }
}

const MODULUS_BINARY: u32 = 1 << 16;

/// Clocks of mode 3's high half-cycle; the low one has the rest.
fn high_half(count: u32) -> u64 {
    u64::from(count).div_ceil(2)
}

/// The value of four decades; a digit above 9 counts as what it is.
fn from_bcd(value: u16) -> u32 {
    let digit = |shift: u32| u32::from(value >> shift & 0xf);
    (digit(0) + 10 * digit(4) + 100 * digit(8) + 1000 * digit(12)) % 10_000
}

/// Four decades of a value below 10,000.
fn to_bcd(value: u16) -> u16 {
    let digit = |unit: u16| value / unit % 10;
    digit(1) | digit(10) << 4 | digit(100) << 8 | digit(1000) << 12
}
