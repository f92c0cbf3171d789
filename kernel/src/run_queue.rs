//! Which task of one CPU runs next.
//!
//! Key types: [`Task`], polled for a slice at a time on the CPU's one stack; [`Poll`], its answer; [`Waker`], what others
//! hold to end its sleep; [`RunQueue`], which shares the CPU by weight. Pure: time comes in as an argument. Neighbour:
//! `scheduler` (bare metal) runs it.
//!
//! The task that has had the least time for its weight runs next. One that slept is not paid for its sleep by more than a
//! slice, so that it gets the CPU soon but cannot keep it.

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

/// Ends a task's sleep; cheap to clone, from any CPU and from interrupt handlers.
#[derive(Clone)]
pub struct Waker(Arc<WakerState>);

struct WakerState {
    woken: AtomicBool,
    /// The CPU whose queue has the task.
    cpu: AtomicU32,
    kick: fn(u32),
}

impl Waker {
    /// One that wakes nobody until it is given to a queue with its task. `kick` gets the CPU with the given number to
    /// look at its queue; it may be called needlessly and for the CPU it runs on.
    pub fn new(kick: fn(u32)) -> Self {
        Self(Arc::new(WakerState { woken: AtomicBool::new(false), cpu: AtomicU32::new(0), kick }))
    }

    /// Whether it was woken since last asked.
    fn take(&self) -> bool {
        self.0.woken.swap(false, Ordering::Acquire)
    }

    fn is_set(&self) -> bool {
        self.0.woken.load(Ordering::Acquire)
    }
}

impl Wake for Waker {
    /// Makes the task run soon. If it is running, it is kicked and polled once more before it sleeps.
    fn wake(&self) {
        if !self.0.woken.swap(true, Ordering::AcqRel) {
            (self.0.kick)(self.0.cpu.load(Ordering::Acquire));
        }
    }
}

/// Nanoseconds a task runs while others are ready.
pub const SLICE: u64 = 5_000_000;

/// The usual weight; a task of twice that gets twice the time.
pub const USUAL_WEIGHT: u32 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Blocked { until: Option<u64> },
}

struct Entry {
    name: &'static str,
    task: Option<Box<dyn Task>>,
    waker: Waker,
    role: Role,
    weight: u32,
    state: State,
    /// Time had, scaled by weight.
    spent: u64,
}

/// The tasks of one CPU.
pub struct RunQueue {
    cpu: u32,
    entries: Vec<Entry>,
}

/// A task taken out of its queue to be polled.
pub struct Turn {
    index: usize,
    /// The task.
    pub task: Box<dyn Task>,
}

impl RunQueue {
    /// No task, on CPU number `cpu`.
    pub const fn new(cpu: u32) -> Self {
        Self { cpu, entries: Vec::new() }
    }

    /// Adds a task that is ready. `weight` 0 counts as 1.
    pub fn add(&mut self, name: &'static str, role: Role, weight: u32, task: Box<dyn Task>, waker: Waker) {
        let spent = self.least_spent().unwrap_or(0);
        let weight = weight.max(1);
        waker.0.cpu.store(self.cpu, Ordering::Release);
        self.entries.push(Entry { name, task: Some(task), waker, role, weight, state: State::Ready, spent });
    }

    /// The task to poll at `now`, if one is ready.
    pub fn pick(&mut self, now: u64) -> Option<Turn> {
        self.wake_due(now);
        let index = self.ready().min_by_key(|&(index, entry)| (entry.spent, index))?.0;
        let entry = &mut self.entries[index];
        // Whatever woke it before this poll, the poll will see.
        entry.waker.take();
        let task = entry.task.take()?;
        Some(Turn { index, task })
    }

    /// Puts a task back that ran for `ran` nanoseconds and answered `poll`. Returns the task when it is finished, so
    /// that it is dropped outside of any lock.
    pub fn put_back(&mut self, turn: Turn, ran: u64, poll: Poll) -> Option<Box<dyn Task>> {
        let entry = &mut self.entries[turn.index];
        entry.spent = entry.spent.saturating_add(scaled(ran, entry.weight));
        entry.state = match poll {
            Poll::Yield => State::Ready,
            Poll::Blocked { until } => State::Blocked { until },
            Poll::Finished => {
                self.entries.remove(turn.index);
                return Some(turn.task);
            }
        };
        entry.task = Some(turn.task);
        None
    }

    /// Whether another task than the one taken out could run at `now`.
    pub fn others_ready(&self, now: u64) -> bool {
        self.entries.iter().any(|entry| {
            entry.task.is_some()
                && match entry.state {
                    State::Ready => true,
                    State::Blocked { until } => entry.waker.is_set() || until.is_some_and(|until| until <= now),
                }
        })
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

    /// Whether some task that the scheduler waits for is left.
    pub fn has_work(&self) -> bool {
        self.entries.iter().any(|entry| entry.role == Role::Work)
    }

    /// The names of all tasks.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.entries.iter().map(|entry| entry.name)
    }

    fn ready(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.entries.iter().enumerate().filter(|(_, entry)| entry.state == State::Ready && entry.task.is_some())
    }

    fn least_spent(&self) -> Option<u64> {
        self.ready().map(|(_, entry)| entry.spent).min()
    }

    /// Makes ready whoever was woken or whose time has come.
    fn wake_due(&mut self, now: u64) {
        let floor = self.least_spent();
        for entry in &mut self.entries {
            if let State::Blocked { until } = entry.state
                && (entry.waker.take() || until.is_some_and(|until| until <= now))
            {
                entry.state = State::Ready;
                if let Some(floor) = floor {
                    entry.spent = entry.spent.max(floor.saturating_sub(scaled(SLICE, entry.weight)));
                }
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

        fn add(&mut self, name: &'static str, weight: u32) -> Waker {
            let waker = Waker::new(|_| {});
            self.queue.add(name, Role::Work, weight, Box::new(Scripted(name, self.log.clone())), waker.clone());
            waker
        }

        /// Polls the next task, lets it run for `ran` and answer `poll`.
        fn step(&mut self, ran: u64, poll: Poll) -> Option<&'static str> {
            let mut turn = self.queue.pick(self.now)?;
            turn.task.poll();
            self.now += ran;
            self.queue.put_back(turn, ran, poll);
            self.log.lock().unwrap().last().copied()
        }
    }

    #[test]
    fn time_is_shared_by_weight() {
        let mut bed = Bed::new();
        bed.add("light", USUAL_WEIGHT);
        bed.add("heavy", USUAL_WEIGHT * 3);
        for _ in 0..400 {
            bed.step(SLICE, Poll::Yield);
        }
        let light = bed.log.lock().unwrap().iter().filter(|name| **name == "light").count();
        assert!((99..=101).contains(&light), "{light} of 400");
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
        let turn = bed.queue.pick(0).unwrap();
        waker.wake();
        bed.queue.put_back(turn, 1, Poll::Blocked { until: None });
        assert!(bed.queue.others_ready(0));
        assert_eq!(bed.step(1, Poll::Blocked { until: None }), Some("a"));
        assert_eq!(bed.step(1, Poll::Yield), None);
    }

    #[test]
    fn the_cpu_that_has_the_task_is_kicked_once() {
        static KICKED: AtomicU32 = AtomicU32::new(0);
        let mut queue = RunQueue::new(3);
        let waker = Waker::new(|cpu| {
            KICKED.fetch_add(cpu, Ordering::SeqCst);
        });
        let task = Box::new(Scripted("a", Arc::default()));
        queue.add("a", Role::Work, USUAL_WEIGHT, task, waker.clone());
        waker.wake();
        waker.wake();
        assert_eq!(KICKED.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn sleep_earns_no_more_than_a_slice() {
        let mut bed = Bed::new();
        let sleeper = bed.add("sleeper", USUAL_WEIGHT);
        bed.add("worker", USUAL_WEIGHT);
        assert_eq!(bed.step(1, Poll::Blocked { until: None }), Some("sleeper"));
        for _ in 0..100 {
            assert_eq!(bed.step(SLICE, Poll::Yield), Some("worker"));
        }
        sleeper.wake();
        let ran: Vec<_> = (0..6).filter_map(|_| bed.step(SLICE, Poll::Yield)).collect();
        assert_eq!(ran[0], "sleeper", "it is served at once");
        assert!(ran[1..3].contains(&"worker"), "but does not keep the CPU: {ran:?}");
    }

    #[test]
    fn finished_tasks_go_and_services_are_not_waited_for() {
        let mut bed = Bed::new();
        let service = Box::new(Scripted("service", bed.log.clone()));
        bed.queue.add("service", Role::Service, USUAL_WEIGHT, service, Waker::new(|_| {}));
        assert!(!bed.queue.has_work());
        bed.add("work", USUAL_WEIGHT);
        assert!(bed.queue.has_work());
        assert_eq!(bed.queue.names().collect::<Vec<_>>(), ["service", "work"]);
        assert_eq!(bed.step(1, Poll::Blocked { until: None }), Some("service"));
        assert_eq!(bed.step(1, Poll::Finished), Some("work"));
        assert!(!bed.queue.has_work());
    }
}
