//! The host's own parts tried on the machine it runs on: `selftest` on the command line. Each check that fails panics;
//! `selftest=panic` and `selftest=stack` show what a broken host says.

#![allow(unsafe_code)] // Reads that the page tables are expected to allow.

use crate::options::SelfTest;
use crate::paging::Permissions;
use crate::run_queue::{Poll, Role, Task, USUAL_WEIGHT, Waker};
use crate::time::MILLISECOND;
use crate::{address_space, clock, console, guest_frames, idt, layout, percpu, ram, scheduler};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicU32, Ordering};
use devices::{ByteSink, ByteSource};
use log::info;
use vcpu::Wake;

/// Runs what is asked for. The two that break the host on purpose do not return.
pub fn run(which: SelfTest) {
    match which {
        SelfTest::All => all(),
        SelfTest::Console => echo(),
        SelfTest::Panic => panic!("asked for on the command line"),
        SelfTest::Stack => info!("the stack held {} frames", overflow(&[0; 64])),
    }
}

/// Sends back what is typed.
struct Echo;

impl Task for Echo {
    fn poll(&mut self) -> Poll {
        let console = console::of(0);
        while let Some(byte) = console.take() {
            console.put(byte);
        }
        match console::take_command() {
            Some(b'q') => Poll::Finished,
            _ => Poll::Blocked { until: None },
        }
    }
}

fn echo() {
    let waker = scheduler::waker();
    let listener = waker.clone();
    console::set_up(core::iter::empty(), 0);
    let mut console = console::of(0);
    console.listen(Some(Box::new(move || listener.wake())));
    let _ = writeln!(console, "echo; Ctrl-A q ends");
    scheduler::spawn("echo", Role::Work, USUAL_WEIGHT, Box::new(Echo), waker);
    let start = clock::now();
    scheduler::run();
    let cpu = percpu::current();
    let (idle, took) = (cpu.idle_time(clock::now()) / 1000, (clock::now() - start) / 1000);
    info!("echoed for {took} us, idle for {idle} us, {} interrupts", cpu.interrupts());
}

/// Calls itself until the stack ends.
#[inline(never)]
fn overflow(words: &[u64; 64]) -> u64 {
    let mut own = [words[0] + 1; 64];
    core::hint::black_box(&mut own);
    if own[0] == u64::MAX { 0 } else { overflow(&own) + own[1] }
}

/// All that should work.
fn all() {
    assert!(idt::self_test(), "a breakpoint comes back");
    address_space_is_split();
    frames_are_zeroed();
    tasks_sleep_and_wake();
    tasks_spread();
    info!("self-test passed");
}

/// Code is not writable, data not executable, and the image is not in the direct map.
fn address_space_is_split() {
    let permissions = |address: u64| address_space::translate(address).map(|found| found.1);
    assert_eq!(permissions(all as *const () as u64), Some(Permissions::ReadExecute), "code");
    static CONSTANT: [u8; 4] = *b"text";
    assert_eq!(permissions(CONSTANT.as_ptr() as u64), Some(Permissions::ReadOnly), "constants");
    static VARIABLE: AtomicU32 = AtomicU32::new(1);
    assert_eq!(permissions(VARIABLE.as_ptr() as u64), Some(Permissions::ReadWrite), "variables");
    let local = 0u8;
    let local = &raw const local as u64;
    assert_eq!(permissions(local), Some(Permissions::ReadWrite), "the stack");
    assert_eq!(permissions(layout::STACKS), None, "the guard page below the first stack");
    let code = address_space::translate(all as *const () as u64).map_or(0, |found| found.0);
    assert_eq!(permissions(layout::DIRECT_MAP + code), None, "code in the direct map");
    assert_eq!(permissions(0), None, "null");
}

fn frames_are_zeroed() {
    let before = ram::with_frames(|frames| frames.free_bytes());
    let range = ram::allocate_zeroed(3 << 20, 2 << 20).expect("there is memory");
    let pointer = ram::pointer(range.start).cast::<u64>();
    for word in 0..range.length() as usize / 8 {
        // SAFETY: within the range just allocated.
        let place = unsafe { pointer.add(word) };
        // SAFETY: as above; it was zeroed.
        assert_eq!(unsafe { place.read() }, 0, "memory is zeroed");
    }
    ram::free(range);
    guest_ram_is_found();
    assert_eq!(ram::with_frames(|frames| frames.free_bytes()), before, "memory comes back");
}

/// Half of the free memory for a guest, however it lies, and all of it given back.
fn guest_ram_is_found() {
    let half = (ram::with_frames(|frames| frames.free_bytes()) / 2) & !((2 << 20) - 1);
    let start = clock::now();
    let guest = guest_frames::allocate(&[(0, half)]).expect("half of the free memory can be had");
    assert!(guest.clear_some(u64::MAX), "all at once");
    assert_eq!(guest.size(), half);
    assert!(guest_frames::allocate(&[(0, 2 * half)]).is_none(), "more than there is cannot be had");
    let (pieces, took) = (guest.extents().len(), (clock::now() - start) / 1000);
    info!("guest RAM of {} MiB in {pieces} piece(s), zeroed in {took} us", half >> 20);
}

/// Sleeps a few times and counts.
struct Sleeper {
    times: u32,
    until: u64,
    woken_late: Arc<AtomicU32>,
}

/// Nanoseconds of each sleep, and how late a wake-up may be on a loaded emulator.
const SLEEP: u64 = 5 * MILLISECOND;
const TOO_LATE: u64 = 1_000 * MILLISECOND;

impl Task for Sleeper {
    fn poll(&mut self) -> Poll {
        let now = clock::now();
        assert!(now >= self.until, "nobody wakes early");
        if now > self.until + TOO_LATE {
            self.woken_late.fetch_add(1, Ordering::Relaxed);
        }
        if self.times == 0 {
            return Poll::Finished;
        }
        self.times -= 1;
        self.until = now + SLEEP;
        Poll::Blocked { until: Some(self.until) }
    }
}

/// Counts itself in until as many run at once as there are CPUs.
struct Meeting {
    running: Arc<AtomicU32>,
    cpus: Arc<AtomicU32>,
    here: bool,
}

impl Task for Meeting {
    fn poll(&mut self) -> Poll {
        if !core::mem::replace(&mut self.here, true) {
            self.cpus.fetch_or(1 << (percpu::number() % 32), Ordering::SeqCst);
            self.running.fetch_add(1, Ordering::SeqCst);
        }
        let end = clock::now() + TOO_LATE;
        while self.running.load(Ordering::SeqCst) < percpu::count() as u32 {
            if clock::now() > end {
                return Poll::Yield;
            }
            core::hint::spin_loop();
        }
        Poll::Finished
    }
}

/// Wakes the next one in a ring, on whatever CPU it is, and sleeps until its own turn.
struct Runner {
    next: Waker,
    /// Which one's turn it is.
    turn: Arc<AtomicU32>,
    number: u32,
    count: u32,
    laps: u32,
}

impl Task for Runner {
    fn poll(&mut self) -> Poll {
        if self.turn.load(Ordering::SeqCst) != self.number {
            return Poll::Blocked { until: None };
        }
        self.turn.store((self.number + 1) % self.count, Ordering::SeqCst);
        self.next.wake();
        self.laps -= 1;
        if self.laps == 0 { Poll::Finished } else { Poll::Blocked { until: None } }
    }
}

/// As many tasks as CPUs run at once, each on its own; and tasks on different CPUs wake each other without a loss.
fn tasks_spread() {
    let cpus = percpu::count() as u32;
    let (running, seen) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    for _ in 0..cpus {
        let task = Meeting { running: running.clone(), cpus: seen.clone(), here: false };
        scheduler::spawn("meeting", Role::Work, USUAL_WEIGHT, Box::new(task), scheduler::waker());
    }
    scheduler::run();
    assert_eq!(seen.load(Ordering::SeqCst).count_ones(), cpus.min(32), "every CPU runs one");

    const LAPS: u32 = 200;
    let start = clock::now();
    let turn = Arc::new(AtomicU32::new(0));
    let count = cpus + 1;
    let wakers: Vec<_> = (0..count).map(|_| scheduler::waker()).collect();
    for number in 0..count {
        let next = wakers[((number + 1) % count) as usize].clone();
        let task = Runner { next, turn: turn.clone(), number, count, laps: LAPS };
        scheduler::spawn("runner", Role::Work, USUAL_WEIGHT, Box::new(task), wakers[number as usize].clone());
    }
    scheduler::run();
    let took = clock::now() - start;
    info!("{} wake-ups among {count} tasks on {cpus} CPU(s) in {} us", LAPS * count, took / 1000);
}

fn tasks_sleep_and_wake() {
    let (start, interrupts) = (clock::now(), percpu::current().interrupts());
    let woken_late = Arc::new(AtomicU32::new(0));
    for times in [10, 7] {
        let task = Sleeper { times, until: start, woken_late: woken_late.clone() };
        scheduler::spawn("sleeper", Role::Work, USUAL_WEIGHT, Box::new(task), scheduler::waker());
    }
    scheduler::run();
    let (took, interrupts) = (clock::now() - start, percpu::current().interrupts() - interrupts);
    assert!(took >= 10 * SLEEP, "sleep takes its time");
    assert!(interrupts > 0, "the alarm interrupts");
    let late = woken_late.load(Ordering::Relaxed);
    info!("slept for {} us in {interrupts} interrupts, {late} late", took / 1000);
}
