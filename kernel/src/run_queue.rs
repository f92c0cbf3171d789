//! Which task of one CPU runs next.
//!
//! Key types: [`Task`], polled for a slice at a time on the CPU's one stack; [`Poll`], its answer; [`Waker`], what others
//! hold to end its sleep; [`RunQueue`], which shares the CPU by weight; [`Entry`], a task on its way from one CPU to
//! another. Pure: time comes in as an argument. Neighbour: `scheduler` (bare metal) runs it.
//!
//! The task that has had the least time for its weight runs next. The queue's own time is the highest that the least has
//! ever been: a task that comes new, from another CPU or from sleep is set against it, so that it gets the CPU soon but is
//! not paid for the time when it was not there by more than a slice.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use vcpu::Wake;

/// Something that runs on the host to completion of a slice and then returns.
pub trait Task: Send {
    /// Runs until it has nothing to do, its slice is over or it is finished.
    fn poll(&mut self) -> Poll;
}

/// What a task says when it gives the CPU back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// It waits for its waker or, if a time is given, for that time on the host's clock in nanoseconds.
    Blocked {
        /// The latest time to poll it again.
        until: Option<u64>,
    },
    /// It would go on.
    Yield,
    /// It will never be polled again.
    Finished,
}

/// Whether the scheduler waits for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The scheduler returns only when all of these are finished.
    Work,
    /// Serves others as long as they run.
    Service,
}

/// What a woken task was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// It waits on the CPU with this number, which may be halted or run another task.
    Waiting(u32),
    /// It runs on the CPU with this number.
    Running(u32),
}

/// Ends a task's sleep; cheap to clone, from any CPU and from interrupt handlers.
#[derive(Clone)]
pub struct Waker(Arc<WakerState>);

struct WakerState {
    woken: AtomicBool,
    /// The task is being polled.
    running: AtomicBool,
    /// The CPU whose queue has the task.
    cpu: AtomicU32,
    kick: fn(Woken),
}

impl Waker {
    /// One that wakes nobody until it is given to a queue with its task. `kick` gets a CPU to look at its queue, or its
    /// running task at whatever it was woken for; it may be called needlessly and for the CPU it runs on.
    pub fn new(kick: fn(Woken)) -> Self {
        let (woken, running) = (AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(WakerState { woken, running, cpu: AtomicU32::new(0), kick }))
    }

    /// Whether it was woken since last asked.
    fn take(&self) -> bool {
        self.0.woken.swap(false, Ordering::SeqCst)
    }

    fn is_set(&self) -> bool {
        self.0.woken.load(Ordering::SeqCst)
    }

    fn set_running(&self, running: bool) {
        self.0.running.store(running, Ordering::SeqCst);
    }
}

impl Wake for Waker {
    /// Makes the task run soon. If it is running, it is kicked and polled once more before it sleeps.
    ///
    /// A task that waits is kicked for the first time only: its CPU looks at it before it halts. One that runs is kicked
    /// each time, for it does not look by itself while it is in its guest.
    fn wake(&self) {
        let state = &*self.0;
        let before = state.woken.swap(true, Ordering::SeqCst);
        let cpu = state.cpu.load(Ordering::SeqCst);
        if state.running.load(Ordering::SeqCst) {
            (state.kick)(Woken::Running(cpu));
        } else if !before {
            (state.kick)(Woken::Waiting(cpu));
        }
    }
}

/// Nanoseconds a task runs while others are ready.
pub const SLICE: u64 = 5_000_000;

/// Nanoseconds a task runs before one that has become ready meanwhile.
pub const LEAST_RUN: u64 = 1_000_000;

/// The usual weight; a task of twice that gets twice the time.
pub const USUAL_WEIGHT: u32 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Blocked { until: Option<u64> },
}

/// A task and what its queue knows of it.
pub struct Entry {
    name: Box<str>,
    /// Nothing while it is being polled.
    task: Option<Box<dyn Task>>,
    waker: Waker,
    role: Role,
    weight: u32,
    state: State,
    /// Time had, scaled by weight; on its way between queues, how much that is ahead of the queue's own time.
    spent: u64,
}

impl Entry {
    /// A task that is ready. `weight` 0 counts as 1.
    pub fn new(name: &str, role: Role, weight: u32, task: Box<dyn Task>, waker: Waker) -> Self {
        let name = Box::from(name);
        Self { name, task: Some(task), waker, role, weight: weight.max(1), state: State::Ready, spent: 0 }
    }

    /// Whether the scheduler waits for it.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether it has been waiting for the CPU, its time set against the queue's.
    fn is_ready_since_before(&self) -> bool {
        self.state == State::Ready && self.task.is_some()
    }

    /// Whether it could be polled at `now`; not while it is.
    fn is_ready(&self, now: u64) -> bool {
        self.task.is_some()
            && match self.state {
                State::Ready => true,
                State::Blocked { until } => self.waker.is_set() || until.is_some_and(|until| until <= now),
            }
    }
}

/// The tasks of one CPU.
pub struct RunQueue {
    cpu: u32,
    entries: Vec<Entry>,
    /// The queue's own time: no ready task has had less.
    floor: u64,
}

impl RunQueue {
    /// No task, on CPU number `cpu`.
    pub const fn new(cpu: u32) -> Self {
        Self { cpu, entries: Vec::new(), floor: 0 }
    }

    /// Adds a task that is ready: a new one, or one that another queue gave away.
    pub fn add(&mut self, mut entry: Entry) {
        entry.spent = self.floor.saturating_add(entry.spent);
        entry.waker.0.cpu.store(self.cpu, Ordering::SeqCst);
        self.entries.push(entry);
    }

    /// The task to poll at `now`, if one is ready. It has to be put back before the next one is picked.
    pub fn pick(&mut self, now: u64) -> Option<Box<dyn Task>> {
        assert!(self.running_entry().is_none(), "one task at a time runs on a CPU");
        self.wake_due(now);
        let ready = self.entries.iter_mut().filter(|entry| entry.state == State::Ready);
        let entry = ready.min_by_key(|entry| entry.spent)?;
        entry.waker.set_running(true);
        // Whatever woke it before this poll, the poll will see.
        entry.waker.take();
        entry.task.take()
    }

    /// Puts the picked task back, which ran for `ran` nanoseconds and answered `poll`. Returns it when it is finished, so
    /// that it is dropped outside of any lock.
    pub fn put_back(&mut self, task: Box<dyn Task>, ran: u64, poll: Poll) -> Option<(Role, Box<dyn Task>)> {
        let index = self.running_entry();
        let index = index.expect("what is put back was picked");
        let entry = &mut self.entries[index];
        entry.spent = entry.spent.saturating_add(scaled(ran, entry.weight));
        entry.waker.set_running(false);
        entry.state = match poll {
            Poll::Yield => State::Ready,
            Poll::Blocked { until } => State::Blocked { until },
            Poll::Finished => {
                let entry = self.entries.swap_remove(index);
                return Some((entry.role, task));
            }
        };
        entry.task = Some(task);
        let ready = self.entries.iter().filter(|entry| entry.is_ready_since_before());
        self.floor = self.floor.max(ready.map(|entry| entry.spent).min().unwrap_or(0));
        None
    }

    /// Gives away a task that is ready at `now` and would have to wait here.
    pub fn give_away(&mut self, now: u64) -> Option<Entry> {
        let ready = self.entries.iter().filter(|entry| entry.is_ready(now)).count();
        if ready < 2 && self.running_entry().is_none() {
            return None;
        }
        let waiting = self.entries.iter().enumerate().filter(|(_, entry)| entry.is_ready(now));
        let (index, _) = waiting.min_by_key(|(_, entry)| entry.spent)?;
        let mut entry = self.entries.swap_remove(index);
        // Its waker stays set if it is: the poll that is due takes it.
        entry.state = State::Ready;
        entry.spent = entry.spent.saturating_sub(self.floor);
        Some(entry)
    }

    /// Whether another task than the picked one could run at `now`.
    pub fn others_ready(&self, now: u64) -> bool {
        self.entries.iter().any(|entry| entry.is_ready(now))
    }

    /// The earliest time that a blocked task waits for.
    pub fn next_deadline(&self) -> Option<u64> {
        self.entries
            .iter()
            .filter(|entry| entry.task.is_some())
            .filter_map(|entry| match entry.state {
                State::Blocked { until } => until,
                State::Ready => None,
            })
            .min()
    }

    /// What its tasks would take of a CPU if all were busy: the sum of their weights.
    pub fn load(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.weight)).sum()
    }

    /// The name of the task that is being polled.
    pub fn running(&self) -> Option<&str> {
        Some(&self.entries[self.running_entry()?].name)
    }

    /// The names of all tasks.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| &*entry.name)
    }

    fn running_entry(&self) -> Option<usize> {
        self.entries.iter().position(|entry| entry.task.is_none())
    }

    /// Makes ready whoever was woken or whose time has come.
    fn wake_due(&mut self, now: u64) {
        for entry in &mut self.entries {
            if entry.state != State::Ready && entry.is_ready(now) {
                entry.state = State::Ready;
                entry.spent = entry.spent.max(self.floor.saturating_sub(scaled(SLICE, entry.weight)));
            }
        }
    }
}

/// `nanoseconds` as they count against a task of `weight`. A task that ran at all pays at least 1, so that tasks which
/// return at once still take turns.
fn scaled(nanoseconds: u64, weight: u32) -> u64 {
    (nanoseconds.saturating_mul(u64::from(USUAL_WEIGHT)) / u64::from(weight)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Writes its name and answers what it is told to.
    struct Scripted(&'static str, Arc<Mutex<Vec<&'static str>>>);

    impl Task for Scripted {
        fn poll(&mut self) -> Poll {
            self.1.lock().unwrap().push(self.0);
            Poll::Yield
        }
    }

    struct Bed {
        queue: RunQueue,
        log: Arc<Mutex<Vec<&'static str>>>,
        now: u64,
    }

    impl Bed {
        fn new() -> Self {
            Self { queue: RunQueue::new(3), log: Arc::default(), now: 0 }
        }

        fn entry(&self, name: &'static str, weight: u32) -> (Entry, Waker) {
            let waker = Waker::new(|_| {});
            let task = Box::new(Scripted(name, self.log.clone()));
            (Entry::new(name, Role::Work, weight, task, waker.clone()), waker)
        }

        fn add(&mut self, name: &'static str, weight: u32) -> Waker {
            let (entry, waker) = self.entry(name, weight);
            self.queue.add(entry);
            waker
        }

        /// Polls the next task, lets it run for `ran` and answer `poll`.
        fn step(&mut self, ran: u64, poll: Poll) -> Option<&'static str> {
            let mut task = self.queue.pick(self.now)?;
            task.poll();
            self.now += ran;
            self.queue.put_back(task, ran, poll);
            self.log.lock().unwrap().last().copied()
        }

        /// How many of the next `steps` slices `name` gets while nobody sleeps.
        fn slices(&mut self, name: &str, steps: usize) -> usize {
            (0..steps).filter(|_| self.step(SLICE, Poll::Yield) == Some(name)).count()
        }
    }

    #[test]
    fn time_is_shared_by_weight() {
        let mut bed = Bed::new();
        bed.add("light", USUAL_WEIGHT);
        bed.add("heavy", USUAL_WEIGHT * 3);
        let light = bed.slices("light", 400);
        assert!((99..=101).contains(&light), "{light} of 400");
    }

    #[test]
    fn two_busy_tasks_alternate_and_neither_waits_longer_than_a_slice() {
        let mut bed = Bed::new();
        bed.add("a", USUAL_WEIGHT);
        bed.add("b", USUAL_WEIGHT);
        let turns: Vec<_> = (0..20).filter_map(|_| bed.step(SLICE, Poll::Yield)).collect();
        assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
    }

    #[test]
    fn one_that_overruns_its_slices_pays_for_it() {
        let mut bed = Bed::new();
        bed.add("greedy", USUAL_WEIGHT);
        bed.add("modest", USUAL_WEIGHT);
        let mut had = [0; 2];
        for _ in 0..100 {
            let mut task = bed.queue.pick(bed.now).unwrap();
            task.poll();
            let greedy = bed.log.lock().unwrap().last() == Some(&"greedy");
            let ran = if greedy { 4 * SLICE } else { SLICE };
            had[usize::from(greedy)] += ran;
            bed.now += ran;
            bed.queue.put_back(task, ran, Poll::Yield);
        }
        assert!(had[0].abs_diff(had[1]) <= 4 * SLICE, "{had:?}");
    }

    #[test]
    fn tasks_that_take_no_time_still_take_turns() {
        let mut bed = Bed::new();
        bed.add("a", 0);
        bed.add("b", u32::MAX);
        let ran: Vec<_> = (0..4).filter_map(|_| bed.step(0, Poll::Yield)).collect();
        assert!(ran.contains(&"a") && ran.contains(&"b"), "{ran:?}");
    }

    #[test]
    fn a_blocked_task_waits_for_its_time() {
        let mut bed = Bed::new();
        bed.add("a", USUAL_WEIGHT);
        assert_eq!(bed.step(10, Poll::Blocked { until: Some(100) }), Some("a"));
        assert_eq!(bed.queue.next_deadline(), Some(100));
        assert!(!bed.queue.others_ready(99));
        assert!(bed.queue.others_ready(100));
        bed.now = 99;
        assert_eq!(bed.step(0, Poll::Yield), None);
        bed.now = 100;
        assert_eq!(bed.step(0, Poll::Yield), Some("a"));
        assert_eq!(bed.queue.next_deadline(), None);
    }

    #[test]
    fn a_waker_ends_sleep_and_is_not_lost_while_running() {
        let mut bed = Bed::new();
        let waker = bed.add("a", USUAL_WEIGHT);
        assert_eq!(bed.step(1, Poll::Blocked { until: None }), Some("a"));
        assert_eq!(bed.step(1, Poll::Yield), None);
        waker.wake();
        // Woken again while it runs: it must be polled once more although it says it is blocked.
        let task = bed.queue.pick(0).unwrap();
        waker.wake();
        bed.queue.put_back(task, 1, Poll::Blocked { until: None });
        assert!(bed.queue.others_ready(0));
        assert_eq!(bed.step(1, Poll::Blocked { until: None }), Some("a"));
        assert_eq!(bed.step(1, Poll::Yield), None);
    }

    #[test]
    fn a_waiting_task_is_kicked_once_and_a_running_one_each_time() {
        static KICKS: Mutex<Vec<Woken>> = Mutex::new(Vec::new());
        let kicks = || core::mem::take(&mut *KICKS.lock().unwrap());
        let mut queue = RunQueue::new(3);
        let waker = Waker::new(|woken| KICKS.lock().unwrap().push(woken));
        queue.add(Entry::new("a", Role::Work, USUAL_WEIGHT, Box::new(Scripted("a", Arc::default())), waker.clone()));
        waker.wake();
        waker.wake();
        assert_eq!(kicks(), [Woken::Waiting(3)]);
        let task = queue.pick(0).unwrap();
        waker.wake();
        waker.wake();
        assert_eq!(kicks(), [Woken::Running(3), Woken::Running(3)]);
        queue.put_back(task, 1, Poll::Blocked { until: None });
        waker.wake();
        assert_eq!(kicks(), [], "it was woken before it slept, and will be polled");
        let mut other = RunQueue::new(7);
        queue.add(Entry::new("b", Role::Work, 1, Box::new(Scripted("b", Arc::default())), waker.clone()));
        other.add(queue.give_away(0).unwrap());
        let task = other.pick(0).unwrap();
        waker.wake();
        assert_eq!(kicks(), [Woken::Running(7)], "the waker follows its task");
        other.put_back(task, 1, Poll::Yield);
    }

    #[test]
    fn sleep_earns_no_more_than_a_slice() {
        let mut bed = Bed::new();
        let sleeper = bed.add("sleeper", USUAL_WEIGHT);
        bed.add("worker", USUAL_WEIGHT);
        assert_eq!(bed.step(1, Poll::Blocked { until: None }), Some("sleeper"));
        assert_eq!(bed.slices("worker", 100), 100);
        sleeper.wake();
        let ran: Vec<_> = (0..6).filter_map(|_| bed.step(SLICE, Poll::Yield)).collect();
        assert_eq!(ran[0], "sleeper", "it is served at once");
        assert!(ran[1..3].contains(&"worker"), "but does not keep the CPU: {ran:?}");
    }

    #[test]
    fn one_that_slept_alone_does_not_keep_the_other_out_when_that_one_wakes() {
        let mut bed = Bed::new();
        let first = bed.add("first", USUAL_WEIGHT);
        let second = bed.add("second", USUAL_WEIGHT);
        assert_eq!(bed.step(1, Poll::Blocked { until: None }), Some("first"));
        assert_eq!(bed.slices("second", 100), 100);
        assert_eq!(bed.step(1, Poll::Blocked { until: None }), Some("second"));
        first.wake();
        assert_eq!(bed.step(SLICE, Poll::Yield), Some("first"));
        second.wake();
        let turns = bed.slices("second", 10);
        assert!((4..=6).contains(&turns), "{turns} of 10");
    }

    #[test]
    fn a_late_comer_shares_from_now_on() {
        let mut bed = Bed::new();
        bed.add("old", USUAL_WEIGHT);
        assert_eq!(bed.slices("old", 1000), 1000);
        // It comes while the old one runs.
        let task = bed.queue.pick(bed.now).unwrap();
        bed.add("new", USUAL_WEIGHT);
        bed.queue.put_back(task, SLICE, Poll::Yield);
        let turns = bed.slices("new", 10);
        assert!((4..=6).contains(&turns), "{turns} of 10");
    }

    #[test]
    fn only_what_has_to_wait_is_given_away() {
        let mut bed = Bed::new();
        let sleeper = bed.add("a", USUAL_WEIGHT);
        assert!(bed.queue.give_away(0).is_none(), "it is about to run here");
        assert_eq!(bed.slices("a", 50), 50);
        bed.step(1, Poll::Blocked { until: None });
        bed.add("b", USUAL_WEIGHT);
        let task = bed.queue.pick(bed.now).unwrap();
        assert_eq!(bed.queue.running(), Some("b"));
        assert!(bed.queue.give_away(bed.now).is_none(), "the other one sleeps");
        sleeper.wake();
        let mut other = RunQueue::new(4);
        other.add(bed.queue.give_away(bed.now).unwrap());
        assert!(bed.queue.give_away(bed.now).is_none());
        bed.queue.put_back(task, 1, Poll::Yield);
        assert_eq!((bed.queue.names().collect::<Vec<_>>(), other.names().collect::<Vec<_>>()), (vec!["b"], vec!["a"]));
        let (newcomer, _) = bed.entry("c", USUAL_WEIGHT);
        other.add(newcomer);
        bed.queue = other;
        let turns = bed.slices("a", 10);
        assert!((4..=6).contains(&turns), "it brings no debt along: {turns} of 10");
    }

    #[test]
    fn finished_tasks_go() {
        let mut bed = Bed::new();
        bed.add("a", 100);
        bed.add("b", 200);
        assert_eq!(bed.queue.load(), 300);
        let mut roles = Vec::new();
        while let Some(task) = bed.queue.pick(0) {
            roles.extend(bed.queue.put_back(task, 1, Poll::Finished).map(|(role, _)| role));
        }
        assert_eq!((roles, bed.queue.load()), (vec![Role::Work; 2], 0));
        assert_eq!(bed.queue.running(), None);
    }
}
