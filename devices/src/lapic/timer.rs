//! The timer of a local APIC: when it runs out, and what is left of it.
//!
//! It counts a 1 GHz clock, as QEMU's does, so that one undivided count is one nanosecond and the divisors are shifts.

use super::spec::TimerMode;
use crate::Nanos;

/// Periods shorter than this are delivered together, so that no guest can keep the host's alarms busy. In nanoseconds.
const SHORTEST_PERIOD: u64 = 10_000;

/// The countdown. Only the owning vCPU touches it.
pub(super) struct Timer {
    /// When the count under way reaches zero; `None` while it is stopped.
    pub(super) end: Option<Nanos>,
    /// What IA32_TSC_DEADLINE holds while armed.
    pub(super) tsc_deadline: u64,
    /// log2 of the divisor.
    pub(super) shift: u32,
}

/// Whether the count had reached zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lapse {
    Running,
    RanOut,
}

impl Timer {
    pub(super) const fn new() -> Timer {
        Timer { end: None, tsc_deadline: 0, shift: 1 }
    }

    /// Nanoseconds that `count` takes.
    #[inline]
    fn nanos(&self, count: u32) -> u64 {
        u64::from(count) << self.shift
    }

    /// Starts from `count`; 0 stops.
    pub(super) fn start(&mut self, count: u32, now: Nanos) {
        self.end = (count != 0).then(|| now.saturating_add(self.nanos(count)));
    }

    pub(super) fn stop(&mut self) {
        self.end = None;
        self.tsc_deadline = 0;
    }

    /// Lets everything that is due at `now` happen. Any number of missed periods is one.
    pub(super) fn settle(&mut self, mode: TimerMode, initial: u32, now: Nanos) -> Lapse {
        let Some(end) = self.end.filter(|&end| end <= now) else { return Lapse::Running };
        self.tsc_deadline = 0;
        self.end = (mode == TimerMode::Periodic && initial != 0).then(|| {
            let period = self.nanos(initial);
            let earliest = if period < SHORTEST_PERIOD { now.saturating_add(SHORTEST_PERIOD) } else { now };
            let periods = (earliest.since(end) / period).saturating_add(1);
            end.saturating_add(periods.saturating_mul(period))
        });
        Lapse::RanOut
    }

    /// The current count, in which a period that ended unnoticed has begun anew.
    pub(super) fn current(&self, mode: TimerMode, initial: u32, now: Nanos) -> u32 {
        let Some(end) = self.end.filter(|_| mode != TimerMode::TscDeadline) else { return 0 };
        let mut left = end.since(now);
        if mode == TimerMode::Periodic && initial != 0 {
            let period = self.nanos(initial);
            if left == 0 {
                left = period - now.since(end) % period;
            } else if left > period && period < SHORTEST_PERIOD {
                // The end was put off past the shortest period.
                left = (left - 1) % period + 1;
            }
        }
        let unit = (1 << self.shift) - 1;
        u32::try_from(left.saturating_add(unit) >> self.shift).unwrap_or(u32::MAX)
    }

    /// Goes on with what is left, under a new divisor. Call after [`Timer::settle`].
    pub(super) fn set_shift(&mut self, shift: u32, mode: TimerMode, initial: u32, now: Nanos) {
        let counts = self.end.is_some() && mode != TimerMode::TscDeadline;
        let left = self.current(mode, initial, now);
        self.shift = shift;
        if counts {
            self.start(left, now);
        }
    }
}
