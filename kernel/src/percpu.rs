//! What each host CPU has of its own, found by GS base.
//!
//! Key types: [`PerCpu`], [`current`]. A guest's GS base is never live while host code runs: the backends restore the
//! host's with the rest of the host state before Rust goes on.

#![allow(unsafe_code)] // GS base.

use crate::acpi::MAX_CPUS;
use crate::alarms::Alarms;
use crate::lock::Lock;
use crate::run_queue::RunQueue;
use alloc::boxed::Box;
use arrayvec::ArrayVec;
use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    /// When the running task's slice ends, in nanoseconds; `u64::MAX` when nobody waits for it.
    pub slice_end: AtomicU64,
    /// Nanoseconds spent halted.
    pub idle_time: AtomicU64,
    interrupts: AtomicU64,
}

const _: () = assert!(offset_of!(PerCpu, this) == 0);

/// Whether any CPU has its data: before that there is only the boot CPU.
static READY: AtomicBool = AtomicBool::new(false);

/// All CPUs that are up, by number.
static ALL: Lock<ArrayVec<&'static PerCpu, MAX_CPUS>> = Lock::new(ArrayVec::new_const());

/// Gives this CPU its data, and the next number.
///
/// # Panics
/// When there are more CPUs than [`MAX_CPUS`].
pub fn init(apic_id: u32) {
    let mut all = ALL.lock();
    let number = all.len() as u32;
    let data: &'static PerCpu = Box::leak(Box::new(PerCpu {
        this: AtomicU64::new(0),
        number,
        apic_id,
        alarms: Lock::new(Alarms::new()),
        queue: Lock::new(RunQueue::new(number)),
        slice_end: AtomicU64::new(u64::MAX),
        idle_time: AtomicU64::new(0),
        interrupts: AtomicU64::new(0),
    }));
    let address = core::ptr::from_ref(data) as u64;
    data.this.store(address, Ordering::Relaxed);
    GsBase::write(VirtAddr::new(address));
    all.push(data);
    READY.store(true, Ordering::Release);
}

/// The CPU with this number, if it is up.
pub fn by_number(number: u32) -> Option<&'static PerCpu> {
    ALL.lock().get(number as usize).copied()
}

/// How many CPUs are up.
pub fn count() -> usize {
    ALL.lock().len()
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
    // SAFETY: GS base points to a `PerCpu`, whose first word is its address.
    unsafe { asm!("mov {}, gs:[0]", out(reg) address, options(nostack, preserves_flags, readonly, pure)) };
    // SAFETY: the data was leaked, is shared only by its atomics and locks, and lives for good.
    Some(unsafe { &*address })
}

/// This CPU's number.
pub fn number() -> u32 {
    try_current().map_or(0, |cpu| cpu.number)
}

impl PerCpu {
    /// Notes that it took an interrupt.
    pub fn count_interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// How many interrupts it took.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }
}
