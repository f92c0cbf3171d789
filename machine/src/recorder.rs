//! What one vCPU did: counts by kind of exit, and the last exits. Always on.

use vcpu::{Exit, ExitKind};

/// How many exits are remembered.
pub const DEPTH: usize = 256;

/// One remembered exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its kind.
    pub kind: ExitKind,
    /// RIP at the exit.
    pub rip: u64,
    /// Address, port, leaf or code; [`Exit::details`].
    pub what: u64,
    /// Value or width; [`Exit::details`].
    pub value: u64,
}

/// The flight recorder and statistics of one vCPU.
pub struct Recorder {
    counts: [u64; ExitKind::ALL.len()],
    entries: [Entry; DEPTH],
    /// Exits so far; the newest entry is at `total - 1` modulo [`DEPTH`].
    total: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        let nothing = Entry { kind: ExitKind::Unsupported, rip: 0, what: 0, value: 0 };
        Recorder { counts: [0; ExitKind::ALL.len()], entries: [nothing; DEPTH], total: 0 }
    }
}

impl Recorder {
    /// Notes an exit at `rip`.
    #[inline]
    pub fn note(&mut self, exit: &Exit, rip: u64) {
        let kind = exit.kind();
        let (what, value) = exit.details();
        // Both indexes are in range by construction: kinds number the counts, the modulus the entries.
        self.counts[kind as usize] = self.counts[kind as usize].wrapping_add(1);
        self.entries[(self.total % DEPTH as u64) as usize] = Entry { kind, rip, what, value };
        self.total = self.total.wrapping_add(1);
    }

    /// Exits so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Exits of one kind so far.
    pub fn count(&self, kind: ExitKind) -> u64 {
        self.counts[kind as usize]
    }

    /// The exit that was noted last.
    pub fn newest(&self) -> Option<&Entry> {
        let newest = self.total.checked_sub(1)?;
        self.entries.get((newest % DEPTH as u64) as usize)
    }

    /// The last exits, oldest first, at most [`DEPTH`].
    pub fn last(&self) -> impl Iterator<Item = &Entry> {
        let kept = self.total.min(DEPTH as u64);
        (self.total - kept..self.total).filter_map(|number| self.entries.get((number % DEPTH as u64) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vcpu::{Length, PortRead};

    #[test]
    fn counts_and_keeps_the_newest() {
        let mut recorder = Recorder::default();
        assert_eq!(recorder.last().count(), 0);
        for rip in 0..300 {
            let exit = Exit::PortRead(PortRead::new(0x21, memory::Width::Byte, Length::new(2).unwrap()));
            recorder.note(&exit, rip);
        }
        recorder.note(&Exit::Shutdown, 300);
        assert_eq!(recorder.total(), 301);
        assert_eq!(recorder.count(ExitKind::PortRead), 300);
        assert_eq!(recorder.count(ExitKind::Shutdown), 1);
        let last: alloc::vec::Vec<_> = recorder.last().collect();
        assert_eq!(last.len(), DEPTH);
        assert_eq!((last[0].rip, last[0].what, last[0].value), (45, 0x21, 1));
        assert_eq!(last[DEPTH - 1].kind, ExitKind::Shutdown);
    }
}
