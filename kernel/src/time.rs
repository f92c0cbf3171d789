//! Time arithmetic: ticks of a counter to nanoseconds and back, in integers.
//!
//! Key type: [`Scale`]. Neighbours: `clock` reads the TSC and applies it; `calibrate` finds the frequency; alarms go the
//! other way. One multiplication and one shift each, no division; overflow saturates only after centuries.

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;
/// Nanoseconds in a millisecond.
pub const MILLISECOND: u64 = 1_000_000;

/// Bits behind the binary point of both factors.
const SHIFT: u32 = 32;

/// The ratio between the ticks of a counter and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    hertz: u64,
    /// Nanoseconds per tick, times 2^32.
    nanoseconds_per_tick: u64,
    /// Ticks per nanosecond, times 2^32.
    ticks_per_nanosecond: u64,
}

impl Scale {
    /// For a counter of `hertz`, or `None` outside 1 kHz to 1 THz, where the factors would lose their precision.
    pub const fn from_hertz(hertz: u64) -> Option<Self> {
        if hertz < 1_000 || hertz > 1_000_000_000_000 {
            return None;
        }
        Some(Self {
            hertz,
            nanoseconds_per_tick: divide_rounded((SECOND as u128) << SHIFT, hertz as u128),
            ticks_per_nanosecond: divide_rounded((hertz as u128) << SHIFT, SECOND as u128),
        })
    }

    /// The counter's frequency.
    pub const fn hertz(self) -> u64 {
        self.hertz
    }

    /// How long `ticks` take, rounded down.
    #[inline]
    pub const fn nanoseconds(self, ticks: u64) -> u64 {
        ((ticks as u128 * self.nanoseconds_per_tick as u128) >> SHIFT) as u64
    }

    /// How many ticks `nanoseconds` take, rounded up, so that an alarm is never early by it; saturating.
    #[inline]
    pub const fn ticks(self, nanoseconds: u64) -> u64 {
        let scaled = (nanoseconds as u128 * self.ticks_per_nanosecond as u128 + ((1 << SHIFT) - 1)) >> SHIFT;
        if scaled > u64::MAX as u128 { u64::MAX } else { scaled as u64 }
    }
}

/// `dividend / divisor` to the nearest.
const fn divide_rounded(dividend: u128, divisor: u128) -> u64 {
    ((dividend + divisor / 2) / divisor) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gigahertz_is_one_to_one() {
        let scale = Scale::from_hertz(SECOND).unwrap();
        assert_eq!(scale.nanoseconds(123_456_789), 123_456_789);
        assert_eq!(scale.ticks(123_456_789), 123_456_789);
    }

    #[test]
    fn a_day_is_right() {
        for hertz in [1_000_000, 50_000_000, 1_193_182, 2_399_998_761, 3_700_000_000, 5_800_000_001] {
            let scale = Scale::from_hertz(hertz).unwrap();
            assert_eq!(scale.hertz(), hertz);
            let day = 86_400 * SECOND;
            let measured = scale.nanoseconds(86_400 * hertz);
            assert!(measured.abs_diff(day) < MILLISECOND, "{hertz}: {measured}");
            let ticks = scale.ticks(day);
            assert!(ticks.abs_diff(86_400 * hertz) <= 86_400 * hertz / 1_000_000, "{hertz}: {ticks}");
        }
    }

    #[test]
    fn ticks_are_never_too_few() {
        let scale = Scale::from_hertz(1_193_182).unwrap();
        for nanoseconds in [1, 837, 838, 839, 1_000_000] {
            assert!(u128::from(scale.ticks(nanoseconds)) * u128::from(SECOND) >= u128::from(nanoseconds) * 1_193_182);
        }
    }

    #[test]
    fn nonsense_is_refused_and_large_values_saturate() {
        assert_eq!(Scale::from_hertz(0), None);
        assert_eq!(Scale::from_hertz(u64::MAX), None);
        assert_eq!(Scale::from_hertz(1_000_000_000_000).unwrap().ticks(u64::MAX), u64::MAX);
        assert!(Scale::from_hertz(1_000).unwrap().nanoseconds(u64::MAX) > 0);
    }
}
