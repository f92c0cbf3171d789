//! The time-stamp counters of one machine's processors: one line for all, and what each is ahead of it.
//!
//! Key types: [`TscLine`], and [`ProcessorTsc`], by which a local APIC finds its TSC deadlines. A processor's counter is the host's plus the line's offset plus its own IA32_TSC_ADJUST, so that
//! processors whose IA32_TSC_ADJUST is equal show the same to the tick, whenever it was written.
//!
//! A guest that writes IA32_TIME_STAMP_COUNTER of one processor after the other, each with the value of that moment, wants
//! them equal, which no software can reach by itself: a write that comes within a second of what another processor's
//! counter would show, after that one was written, gets that one's offset. Two counters that a guest wants to differ by
//! less than a second it sets by IA32_TSC_ADJUST, which is taken as it is.
//!
//! Manual: SDM 3B 18.17.3 "Time-Stamp Counter Adjustment".

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};
use devices::Nanos;
use devices::lapic::TscTime;
use spin::Mutex;

/// The host's time-stamp counter, by which the guest's go.
pub trait HostTsc: Send + Sync {
    /// The counter, and guest time at that tick.
    fn now(&self) -> (u64, Nanos);
    /// How long `ticks` take, rounded up; saturating.
    fn span(&self, ticks: u64) -> u64;
}

/// One processor's counter, as its local APIC asks for it.
pub struct ProcessorTsc {
    host: Arc<dyn HostTsc>,
    /// What the counter is ahead of the host's.
    offset: AtomicU64,
}

impl ProcessorTsc {
    /// Goes as the host's does until it is told otherwise.
    pub fn new(host: Arc<dyn HostTsc>) -> Self {
        Self { host, offset: AtomicU64::new(0) }
    }

    /// The counter is so far ahead of the host's from now on.
    pub fn set_offset(&self, offset: u64) {
        self.offset.store(offset, Ordering::Relaxed);
    }
}

impl TscTime for ProcessorTsc {
    fn moment(&self, tsc: u64) -> Nanos {
        let (host, now) = self.host.now();
        let left = tsc.saturating_sub(host.wrapping_add(self.offset.load(Ordering::Relaxed)));
        if left == 0 { now } else { now.saturating_add(self.host.span(left)) }
    }
}

/// What the processors share.
#[derive(Debug)]
pub struct TscLine {
    hertz: u64,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// What the line is ahead of the host's counter; nothing before the first processor has been reset.
    offset: Option<u64>,
    /// The processor whose counter was written last, and the IA32_TSC_ADJUST that it got.
    written: Option<(u32, u64)>,
}

impl TscLine {
    /// For counters of `hertz`. They start from 0 when the first processor is reset.
    pub const fn new(hertz: u64) -> Self {
        Self { hertz, state: Mutex::new(State { offset: None, written: None }) }
    }

    /// Platform reset: all start anew.
    pub fn reset(&self) {
        *self.state.lock() = State::default();
    }

    /// What the counter of a processor with this IA32_TSC_ADJUST is ahead of the host's, which is at `host` now.
    pub fn offset(&self, adjust: u64, host: u64) -> u64 {
        let mut state = self.state.lock();
        state.offset.get_or_insert(host.wrapping_neg()).wrapping_add(adjust)
    }

    /// Processor `number` writes `value` to its counter while the host's is at `host`: its IA32_TSC_ADJUST from now on.
    pub fn write(&self, number: u32, value: u64, host: u64) -> u64 {
        let mut state = self.state.lock();
        let line = state.offset.get_or_insert(host.wrapping_neg()).wrapping_add(host);
        let exact = value.wrapping_sub(line);
        let adjust = match state.written {
            Some((other, adjust)) if other != number && self.is_near(exact, adjust) => adjust,
            _ => exact,
        };
        state.written = Some((number, adjust));
        adjust
    }

    fn is_near(&self, one: u64, other: u64) -> bool {
        (one.wrapping_sub(other) as i64).unsigned_abs() < self.hertz
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERTZ: u64 = 1_000_000;

    /// A microsecond a tick; time 0 was at tick 500.
    struct Host(u64);

    impl HostTsc for Host {
        fn now(&self) -> (u64, Nanos) {
            (self.0, Nanos((self.0 - 500) * 1000))
        }
        fn span(&self, ticks: u64) -> u64 {
            ticks.saturating_mul(1000)
        }
    }

    #[test]
    fn a_deadline_is_found_by_the_processors_own_counter() {
        let tsc = ProcessorTsc::new(Arc::new(Host(800)));
        assert_eq!(tsc.moment(900), Nanos(400_000));
        assert_eq!(tsc.moment(100), Nanos(300_000), "what is past is now");
        tsc.set_offset(800_u64.wrapping_neg());
        assert_eq!(tsc.moment(100), Nanos(400_000), "behind the host's");
        tsc.set_offset(u64::MAX - 2000);
        assert_eq!(tsc.moment(u64::MAX - 1000), Nanos(500_000), "at the end of its range");
        assert_eq!(tsc.moment(100), Nanos(300_000));
        tsc.set_offset(0);
        assert_eq!(tsc.moment(u64::MAX), Nanos(u64::MAX), "never");
    }

    fn line() -> TscLine {
        let line = TscLine::new(HERTZ);
        assert_eq!(line.offset(0, 5000).wrapping_add(5000), 0, "it starts from 0");
        line
    }

    #[test]
    fn processors_with_one_adjustment_show_one_time() {
        let line = line();
        assert_eq!(line.offset(0, 777_777), line.offset(0, 5000));
        assert_eq!(line.offset(40, 1), line.offset(40, 2));
        assert_eq!(line.offset(40, 0).wrapping_sub(line.offset(0, 0)), 40);
    }

    #[test]
    fn a_write_shows_what_was_written() {
        let line = line();
        let adjust = line.write(0, 1_000_000_000, 9000);
        assert_eq!(line.offset(adjust, 0).wrapping_add(9000), 1_000_000_000);
        let adjust = line.write(0, 3, 10_000);
        assert_eq!(line.offset(adjust, 0).wrapping_add(10_000), 3, "its own last write does not matter");
    }

    #[test]
    fn writes_to_one_processor_after_the_other_make_them_equal() {
        let line = line();
        let first = line.write(0, 0, 50_000);
        // The second one is told 0 too, half a second later.
        assert_eq!(line.write(1, 0, 50_000 + HERTZ / 2), first);
        // The third one is told what the first would show by now, or nearly.
        assert_eq!(line.write(2, HERTZ * 3 + 7, 50_000 + HERTZ * 3), first);
    }

    #[test]
    fn counters_that_are_to_differ_do() {
        let line = line();
        let first = line.write(0, 0, 50_000);
        let second = line.write(1, HERTZ * 60, 50_000);
        assert_eq!(second.wrapping_sub(first), HERTZ * 60);
    }

    #[test]
    fn a_reset_begins_anew() {
        let line = line();
        line.write(0, 0, 6000);
        line.reset();
        assert_eq!(line.offset(0, 70_000).wrapping_add(70_001), 1);
        assert_eq!(line.write(1, 100, 70_001), 99, "what was written before counts no more");
    }
}
