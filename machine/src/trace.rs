//! The exits that one guest causes, in order, so that two backends can be compared by them. Off unless asked for.
//!
//! Key type: [`Trace`]. Neighbours: the host's task of a vCPU notes each exit in it; [`crate::recorder`] is what is always on.
//! Memory is bounded: repetitions are folded, and what does not fit is counted and still goes into the hash.
//!
//! Left out is what the host or the clock causes: host interrupts, run limits, windows.

use crate::recorder::Entry;
use alloc::vec::Vec;
use core::fmt;
use vcpu::ExitKind;

/// How many different exits in a row are kept.
pub const CAPACITY: usize = 16 * 1024;

/// Equal exits in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Their kind.
    pub kind: ExitKind,
    /// Address, port, leaf or code; [`vcpu::Exit::details`].
    pub what: u64,
    /// Value or width.
    pub value: u64,
    /// How many.
    pub times: u64,
}

/// A vCPU's exits in order.
#[derive(Clone, Debug)]
pub struct Trace {
    runs: Vec<Run>,
    /// The newest one, which may still be repeated.
    open: Option<Run>,
    lost: u64,
    hash: u64,
}

impl Default for Trace {
    fn default() -> Self {
        Trace { runs: Vec::with_capacity(CAPACITY), open: None, lost: 0, hash: FNV_BASIS }
    }
}

/// FNV-1a, 64 bits.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// `hash` with a run more.
fn hashed(hash: u64, run: &Run) -> u64 {
    let bytes = [run.kind as u64, run.what, run.value].into_iter().flat_map(u64::to_le_bytes);
    bytes.fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
}

/// Whether the guest causes such exits by what it executes.
const fn is_the_guests(kind: ExitKind) -> bool {
    !matches!(
        kind,
        ExitKind::HostInterrupt
            | ExitKind::HostNmi
            | ExitKind::HostSignal
            | ExitKind::RunLimit
            | ExitKind::InterruptWindow
            | ExitKind::NmiWindow
    )
}

impl Trace {
    /// Notes an exit.
    pub fn note(&mut self, exit: &Entry) {
        if !is_the_guests(exit.kind) {
            return;
        }
        let next = Run { kind: exit.kind, what: exit.what, value: exit.value, times: 1 };
        match &mut self.open {
            Some(open) if Run { times: 1, ..*open } == next => open.times = open.times.wrapping_add(1),
            _ => {
                self.close();
                self.open = Some(next);
            }
        }
    }

    /// Ends the newest run.
    fn close(&mut self) {
        let Some(run) = self.open.take() else { return };
        self.hash = hashed(self.hash, &run);
        if self.runs.len() < CAPACITY {
            self.runs.push(run);
        } else {
            self.lost = self.lost.wrapping_add(1);
        }
    }

    /// What was noted so far, oldest first.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().chain(&self.open)
    }

    /// Of kind, address and value of all runs, also of those that were not kept; their lengths, which polling changes, are left
    /// out.
    pub fn hash(&self) -> u64 {
        self.open.iter().fold(self.hash, hashed)
    }

    /// How many runs did not fit.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:#x} {:#x} {}", self.kind.name(), self.what, self.value, self.times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(kind: ExitKind, what: u64, value: u64) -> Entry {
        Entry { kind, rip: 0, what, value }
    }

    fn noted(exits: &[Entry]) -> Trace {
        let mut trace = Trace::default();
        exits.iter().for_each(|exit| trace.note(exit));
        trace
    }

    #[test]
    fn repetitions_are_folded_and_the_clocks_exits_left_out() {
        let poll = exit(ExitKind::PortRead, 0x3fd, 1);
        let put = exit(ExitKind::PortWrite, 0x3f8, 0x41);
        let trace = noted(&[poll, exit(ExitKind::HostInterrupt, 0, 0), poll, put, exit(ExitKind::RunLimit, 0, 0), put]);
        let shown: Vec<_> = trace.runs().map(|run| alloc::format!("{run}")).collect();
        assert_eq!(shown, ["port_read 0x3fd 0x1 2", "port_write 0x3f8 0x41 2"]);
    }

    #[test]
    fn the_hash_is_of_the_sequence_and_not_of_how_often_was_polled() {
        let (poll, put) = (exit(ExitKind::PortRead, 0x3fd, 1), exit(ExitKind::PortWrite, 0x3f8, 0x41));
        assert_eq!(noted(&[poll, put]).hash(), noted(&[poll, poll, put]).hash());
        assert_ne!(noted(&[poll, put]).hash(), noted(&[put, poll]).hash());
        assert_ne!(noted(&[put]).hash(), noted(&[exit(ExitKind::PortWrite, 0x3f8, 0x42)]).hash());
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut trace = Trace::default();
        for port in 0..CAPACITY as u64 + 3 {
            trace.note(&exit(ExitKind::PortRead, port, 1));
        }
        assert_eq!((trace.runs().count(), trace.lost()), (CAPACITY + 1, 2));
    }
}
