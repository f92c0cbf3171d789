//! The alarms of one CPU: what it must be woken for, and when.
//!
//! Key types: [`Alarms`], one deadline per [`Slot`], and [`Change`], what the one hardware timer has to be told. Pure;
//! `clock` owns the time and `apic` the timer. Deadlines are nanoseconds of the host's clock.

/// Who wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Slot {
    /// The running task's time slice ends.
    Slice,
    /// A blocked task's deadline.
    Wake,
    /// A device of the guest that is running.
    Guest,
}

const SLOTS: usize = 3;

/// What the hardware timer has to be told after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: it is set to the right deadline.
    None,
    /// Fire at this time.
    Set(u64),
    /// Do not fire.
    Stop,
}

/// The deadlines of one CPU.
#[derive(Debug, Default)]
pub struct Alarms {
    deadlines: [Option<u64>; SLOTS],
    /// What the hardware timer is set to.
    set: Option<u64>,
}

impl Alarms {
    /// No alarm.
    pub const fn new() -> Self {
        Self { deadlines: [None; SLOTS], set: None }
    }

    /// Sets or clears the deadline of `slot`.
    #[must_use]
    pub fn set(&mut self, slot: Slot, deadline: Option<u64>) -> Change {
        self.deadlines[slot as usize] = deadline;
        self.update()
    }

    /// The hardware timer fired at `now`: deadlines that have come are cleared.
    #[must_use]
    pub fn fired(&mut self, now: u64) -> Change {
        for deadline in &mut self.deadlines {
            *deadline = deadline.filter(|&deadline| deadline > now);
        }
        self.set = None;
        self.update()
    }

    /// The next deadline.
    pub fn next(&self) -> Option<u64> {
        self.deadlines.iter().flatten().min().copied()
    }

    fn update(&mut self) -> Change {
        let next = self.next();
        if next == self.set {
            return Change::None;
        }
        self.set = next;
        match next {
            Some(deadline) => Change::Set(deadline),
            None => Change::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_deadline_is_the_timers() {
        let mut alarms = Alarms::new();
        assert_eq!(alarms.set(Slot::Wake, Some(100)), Change::Set(100));
        assert_eq!(alarms.set(Slot::Slice, Some(200)), Change::None);
        assert_eq!(alarms.set(Slot::Guest, Some(50)), Change::Set(50));
        assert_eq!(alarms.next(), Some(50));
        assert_eq!(alarms.set(Slot::Guest, None), Change::Set(100));
        assert_eq!(alarms.set(Slot::Wake, None), Change::Set(200));
        assert_eq!(alarms.set(Slot::Slice, None), Change::Stop);
        assert_eq!(alarms.set(Slot::Slice, None), Change::None);
    }

    #[test]
    fn a_fired_timer_is_set_again_for_the_rest() {
        let mut alarms = Alarms::new();
        assert_eq!(alarms.set(Slot::Guest, Some(10)), Change::Set(10));
        assert_eq!(alarms.set(Slot::Wake, Some(20)), Change::None);
        assert_eq!(alarms.fired(10), Change::Set(20));
        assert_eq!(alarms.fired(19), Change::Set(20), "it fired early: the timer is told again");
        assert_eq!(alarms.fired(25), Change::None, "nothing is left and nothing is set");
        assert_eq!(alarms.next(), None);
    }
}
