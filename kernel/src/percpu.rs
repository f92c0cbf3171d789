//! What each host CPU has of its own, found by GS base.
//!
//! Key types: [`PerCpu`], [`current`]. The boot CPU makes the data of each; a CPU is [`enrol`]led, and so found by others,
//! once it can be sent interrupts. A guest's GS base is never live while host code runs: the backends restore the host's
//! with the rest of the host state before Rust goes on.

#![allow(unsafe_code)] // GS base.

use crate::acpi::MAX_CPUS;
use crate::alarms::Alarms;
use crate::lock::Lock;
use crate::run_queue::RunQueue;
use alloc::boxed::Box;
use core::arch::asm;
use core::mem::offset_of;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

/// One host CPU.
#[repr(C)]
pub struct PerCpu {
    /// Its own address, so that one load through GS gives a reference.
    this: AtomicU64,
    /// Its number, from 0 in the order the CPUs came up.
    pub number: u32,
    /// Its local APIC's identifier.
    pub apic_id: u32,
    /// Its alarms.
    pub alarms: Lock<Alarms>,
    /// Its tasks.
    pub queue: Lock<RunQueue>,
    /// When the running task got the CPU, in nanoseconds.
    pub slice_start: AtomicU64,
    /// When the running task's slice ends, in nanoseconds; `u64::MAX` while none runs.
    pub slice_end: AtomicU64,
    /// It halts, or is about to, and would take work from others.
    pub idle: AtomicBool,
    /// Nanoseconds spent in halts that are over, and since when it is in one; 0 if it is not.
    idle_time: AtomicU64,
    idle_since: AtomicU64,
    interrupts: AtomicU64,
    /// Where a panic of the host stopped it: RIP and RBP, and then that it did.
    pub stopped_at: [AtomicU64; 2],
    /// It has stopped for a panic.
    pub stopped: AtomicBool,
}

const _: () = assert!(offset_of!(PerCpu, this) == 0);

/// Whether any CPU has its data: before that there is only the boot CPU.
static READY: AtomicBool = AtomicBool::new(false);

/// All CPUs that are up, by number.
static ALL: [AtomicPtr<PerCpu>; MAX_CPUS] = [const { AtomicPtr::new(null_mut()) }; MAX_CPUS];
/// How many of them are set.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Gives the boot CPU its data, and makes it number 0.
pub fn init(apic_id: u32) {
    let data = create(apic_id);
    adopt(data);
    enrol(data);
    READY.store(true, Ordering::Release);
}

/// Data for a CPU that is about to be started. It has the number that it will be enrolled under.
pub fn create(apic_id: u32) -> &'static PerCpu {
    let number = count() as u32;
    let data = Box::leak(Box::new(PerCpu {
        this: AtomicU64::new(0),
        number,
        apic_id,
        alarms: Lock::new(Alarms::new()),
        queue: Lock::new(RunQueue::new(number)),
        slice_start: AtomicU64::new(0),
        slice_end: AtomicU64::new(u64::MAX),
        idle: AtomicBool::new(false),
        idle_time: AtomicU64::new(0),
        idle_since: AtomicU64::new(0),
        interrupts: AtomicU64::new(0),
        stopped_at: [const { AtomicU64::new(0) }; 2],
        stopped: AtomicBool::new(false),
    }));
    data.this.store(core::ptr::from_ref(data) as u64, Ordering::Relaxed);
    data
}

/// Makes `data` this CPU's.
pub fn adopt(data: &'static PerCpu) {
    GsBase::write(VirtAddr::new(core::ptr::from_ref(data) as u64));
}

/// Lets others find the CPU. One at a time: only the boot CPU does this.
///
/// # Panics
/// When its number is taken, or there are more CPUs than [`MAX_CPUS`].
pub fn enrol(data: &'static PerCpu) {
    let number = COUNT.load(Ordering::Relaxed);
    assert_eq!(data.number as usize, number, "CPUs are enrolled in the order of their numbers");
    ALL[number].store(core::ptr::from_ref(data).cast_mut(), Ordering::Release);
    COUNT.store(number + 1, Ordering::Release);
}

/// The CPU with this number, if it is up.
pub fn by_number(number: u32) -> Option<&'static PerCpu> {
    let pointer = ALL.get(number as usize)?.load(Ordering::Acquire);
    // SAFETY: null, or data that `enrol` was given: leaked, shared only by its atomics and locks.
    unsafe { pointer.as_ref() }
}

/// How many CPUs are up.
pub fn count() -> usize {
    COUNT.load(Ordering::Acquire)
}

/// All CPUs that are up.
pub fn all() -> impl Iterator<Item = &'static PerCpu> {
    (0..count() as u32).filter_map(by_number)
}

/// This CPU's data.
///
/// # Panics
/// Before [`init`].
#[inline]
pub fn current() -> &'static PerCpu {
    try_current().expect("per-CPU data is there before it is used")
}

/// This CPU's data, or `None` early in the boot.
#[inline]
pub fn try_current() -> Option<&'static PerCpu> {
    if !READY.load(Ordering::Acquire) {
        return None;
    }
    let address: *const PerCpu;
    // SAFETY: GS base points to a `PerCpu`, whose first word is its address: no CPU runs anything before `adopt`.
    unsafe { asm!("mov {}, gs:[0]", out(reg) address, options(nostack, preserves_flags, readonly, pure)) };
    // SAFETY: the data was leaked, is shared only by its atomics and locks, and lives for good.
    Some(unsafe { &*address })
}

/// This CPU's number.
pub fn number() -> u32 {
    try_current().map_or(0, |cpu| cpu.number)
}

impl PerCpu {
    /// Notes that it halts at `now`.
    pub fn halts(&self, now: u64) {
        self.idle_since.store(now.max(1), Ordering::Relaxed);
    }

    /// Notes that it goes on at `now`.
    pub fn goes_on(&self, now: u64) {
        let since = self.idle_since.swap(0, Ordering::Relaxed);
        self.idle_time.fetch_add(now.saturating_sub(since), Ordering::Relaxed);
    }

    /// Nanoseconds spent halted until `now`.
    pub fn idle_time(&self, now: u64) -> u64 {
        // In this order a halt that ends meanwhile is left out once, and never counted twice.
        let over = self.idle_time.load(Ordering::Relaxed);
        match self.idle_since.load(Ordering::Relaxed) {
            0 => over,
            since => over + now.saturating_sub(since),
        }
    }

    /// Notes that it took an interrupt.
    pub fn count_interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// How many interrupts it took.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }
}
