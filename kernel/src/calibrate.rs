//! How fast a counter of unknown frequency runs, measured against one whose frequency is known.
//!
//! Key types: [`Reference`], a counter of known frequency (PM timer, HPET, PIT), and [`measure`]. Pure: reading the
//! hardware is behind closures and the trait. Neighbour: `clock` measures the TSC with it, `apic` the local APIC timer.
//!
//! A reading of the reference is taken between two readings of the counter and the tightest of a few is kept, so that
//! one reading that a host below us interrupted does not spoil the result.

/// A counter of known frequency that counts up.
pub trait Reference {
    /// For the log.
    fn name(&self) -> &'static str;
    /// Counts per second.
    fn hertz(&self) -> u64;
    /// Counts now, modulo `mask + 1`.
    fn read(&mut self) -> u64;
    /// All ones that a count can have.
    fn mask(&self) -> u64;
}

/// How often a reading is tried.
const TRIES: usize = 5;
/// How often the reference may be read without a change before it counts as dead.
const PATIENCE: u32 = 100_000;

/// A reading of both counters at one moment.
#[derive(Clone, Copy)]
struct Moment {
    counter: u64,
    reference: u64,
}

/// The frequency in Hz of the counter that `counter` reads, measured for `milliseconds` against `reference`; `None`
/// when either of them stands still.
///
/// The time must be shorter than the reference takes to wrap.
pub fn measure(reference: &mut impl Reference, milliseconds: u64, mut counter: impl FnMut() -> u64) -> Option<u64> {
    let mask = reference.mask();
    let wanted = reference.hertz() * milliseconds / 1000;
    let start = moment(reference, &mut counter);
    let mut last = start.reference;
    let mut unchanged = 0;
    loop {
        let now = reference.read();
        if now.wrapping_sub(start.reference) & mask >= wanted {
            break;
        }
        unchanged = if now == last { unchanged + 1 } else { 0 };
        if unchanged > PATIENCE {
            return None;
        }
        last = now;
    }
    let end = moment(reference, &mut counter);
    let passed = end.reference.wrapping_sub(start.reference) & mask;
    let counted = end.counter.wrapping_sub(start.counter);
    if passed == 0 || counted == 0 {
        return None;
    }
    let hertz = (u128::from(counted) * u128::from(reference.hertz()) + u128::from(passed) / 2) / u128::from(passed);
    u64::try_from(hertz).ok()
}

/// The tightest of a few readings.
fn moment(reference: &mut impl Reference, counter: &mut impl FnMut() -> u64) -> Moment {
    let mut best = Moment { counter: 0, reference: 0 };
    let mut tightest = u64::MAX;
    for _ in 0..TRIES {
        let before = counter();
        let reading = reference.read();
        let width = counter().wrapping_sub(before);
        if width < tightest {
            tightest = width;
            best = Moment { counter: before.wrapping_add(width / 2), reference: reading };
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    /// Time in picoseconds, moved on by every reading.
    #[derive(Clone)]
    struct FakeTime(Rc<Cell<u128>>);

    impl FakeTime {
        fn pass(&self, nanoseconds: u128) -> u128 {
            self.0.set(self.0.get() + nanoseconds * 1000);
            self.0.get()
        }
    }

    struct FakeReference {
        time: FakeTime,
        hertz: u64,
        mask: u64,
        slow_every: u32,
        readings: u32,
    }

    impl Reference for FakeReference {
        fn name(&self) -> &'static str {
            "fake"
        }
        fn hertz(&self) -> u64 {
            self.hertz
        }
        fn read(&mut self) -> u64 {
            self.readings += 1;
            // A host below takes the CPU away before now and then.
            let delay = if self.readings.is_multiple_of(self.slow_every) { 1_000_000 } else { 1_000 };
            let now = self.time.pass(delay);
            self.time.pass(500);
            (now * u128::from(self.hertz) / 1_000_000_000_000) as u64 & self.mask
        }
        fn mask(&self) -> u64 {
            self.mask
        }
    }

    fn measured(hertz: u64, reference: u64, mask: u64, start: u128, slow_every: u32) -> Option<u64> {
        let time = FakeTime(Rc::new(Cell::new(start)));
        let counter = time.clone();
        let mut reference = FakeReference { time, hertz: reference, mask, slow_every, readings: 0 };
        measure(&mut reference, 20, || (counter.pass(20) * u128::from(hertz) / 1_000_000_000_000) as u64)
    }

    #[test]
    fn a_frequency_is_found_within_a_hundred_parts_per_million() {
        for hertz in [50_000_000, 999_999_937, 2_400_000_000, 5_700_000_000] {
            for (reference, mask) in [(3_579_545, 0xff_ffff), (100_000_000, u64::MAX), (1_193_182, 0xffff)] {
                // 4.68 s is just before the 24-bit PM timer wraps.
                for start in [0, 4_680_000_000_000] {
                    let found = measured(hertz, reference, mask, start, 7).unwrap();
                    let error = u128::from(found.abs_diff(hertz)) * 1_000_000 / u128::from(hertz);
                    assert!(error < 100, "{hertz} by {reference} from {start}: {found}");
                }
            }
        }
    }

    #[test]
    fn dead_counters_are_noticed() {
        assert_eq!(measured(0, 3_579_545, 0xff_ffff, 0, 7), None);
        assert_eq!(measured(1_000_000, 3_579_545, 0, 0, 7), None, "a reference that stands still");
    }
}
