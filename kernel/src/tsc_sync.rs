//! Whether two CPUs' time-stamp counters agree: what a row of readings, one of them between two of the other, proves.
//!
//! Key types: [`Reading`], [`Comparison`], [`Skew`]. Pure; `smp` takes the readings while a CPU is brought up.
//!
//! A reading that was asked for after `asked` and answered before `answered` must lie between them if the counters agree.
//! One that does not proves how far they are apart at least; the tightest one says how closely they were compared.

/// A reading of another CPU's counter and two of one's own around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// One's own counter before the other one was asked.
    pub asked: u64,
    /// The other one's.
    pub other: u64,
    /// One's own counter after the answer.
    pub answered: u64,
}

/// How two counters differ, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skew {
    /// By no more than this.
    Within(u64),
    /// The other one is ahead by this at least.
    Ahead(u64),
    /// The other one is behind by this at least.
    Behind(u64),
}

/// What the readings so far prove.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    closest: u64,
    /// Of readings that contradict each other, which counters that run at different rates give, the grossest.
    worst: Option<(u64, Skew)>,
}

impl Comparison {
    /// Nothing read, nothing known.
    pub const fn new() -> Self {
        Self { closest: u64::MAX, worst: None }
    }

    /// Takes one more reading into account.
    pub fn add(&mut self, Reading { asked, other, answered }: Reading) {
        self.closest = self.closest.min(answered.saturating_sub(asked));
        let (ticks, skew) = if other < asked {
            (asked - other, Skew::Behind(asked - other))
        } else if other > answered {
            (other - answered, Skew::Ahead(other - answered))
        } else {
            return;
        };
        if self.worst.is_none_or(|(most, _)| ticks > most) {
            self.worst = Some((ticks, skew));
        }
    }

    /// How closely the counters have been compared, in ticks.
    pub const fn closest(&self) -> u64 {
        self.closest
    }

    /// How they differ.
    pub fn skew(&self) -> Skew {
        self.worst.map_or(Skew::Within(self.closest), |(_, skew)| skew)
    }
}

impl Default for Comparison {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings of a counter that is `offset` ahead, answered after different times.
    fn readings(offset: i64) -> impl Iterator<Item = Reading> {
        [(1000, 40, 60), (2000, 7, 5), (3000, 500, 2)].into_iter().map(move |(asked, there, back)| Reading {
            asked,
            other: (asked + there).saturating_add_signed(offset),
            answered: asked + there + back,
        })
    }

    fn skew_of(readings: impl IntoIterator<Item = Reading>) -> Skew {
        let mut comparison = Comparison::new();
        readings.into_iter().for_each(|reading| comparison.add(reading));
        comparison.skew()
    }

    #[test]
    fn counters_that_agree_are_known_to_within_the_shortest_way() {
        assert_eq!(skew_of(readings(0)), Skew::Within(12));
        assert_eq!(skew_of(readings(2)), Skew::Within(12), "less than what can be seen");
    }

    #[test]
    fn counters_that_differ_are_found_out_whichever_is_ahead() {
        assert_eq!(skew_of(readings(100)), Skew::Ahead(98));
        assert_eq!(skew_of(readings(-100)), Skew::Behind(93));
        assert_eq!(skew_of(readings(-900)), Skew::Behind(893));
    }

    #[test]
    fn one_bad_reading_is_enough() {
        let bad = Reading { asked: 5000, other: 4990, answered: 5010 };
        assert_eq!(skew_of(readings(0).chain([bad])), Skew::Behind(10));
    }

    #[test]
    fn nothing_read_is_nothing_known() {
        assert_eq!(skew_of([]), Skew::Within(u64::MAX));
    }
}
