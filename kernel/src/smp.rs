//! Brings up the other processors: each gets a stack, its per-CPU data and tables, is checked, set up by whoever needs
//! something on every CPU, and then runs tasks.
//!
//! Key type: [`SetUp`]. Neighbours: `boot::trampoline` is where a processor starts, `percpu` has its data, `scheduler` is
//! where it ends up.
//!
//! One processor at a time, so that each answer belongs to the one that was called. A processor that does not come, or
//! cannot be used, is left out and told about; the others go on without it. One that comes too late finds that nobody waits
//! for it and halts.
//!
//! Pins Intel SDM Volume 3A, 10.4 "Multiple-Processor (MP) Initialization" (325384-083).

#![allow(unsafe_code)] // The trampoline's page, page tables, and the first instructions of a processor.

use crate::acpi::Platform;
use crate::layout::STACK_SIZE;
use crate::lock::Lock;
use crate::percpu::PerCpu;
use crate::time::{MILLISECOND, SECOND};
use crate::tsc_sync::{Comparison, Reading, Skew};
use crate::{address_space, apic, clock, cpu, gdt, idt, memory_map, percpu, ram, scheduler, stacks};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use boot::BootInfo;
use boot::trampoline::{self, Arrival, Trampoline};
use core::arch::naked_asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use log::{info, warn};

/// What has to be done on every CPU before it runs tasks; an error is one line that says why it cannot be used.
pub type SetUp = dyn Fn() -> Result<(), String> + Send + Sync;

/// Between INIT and the first start-up IPI, and between the two of those. SDM 3A 10.4.4.1 "Typical BSP Initialization
/// Sequence".
const AFTER_INIT: u64 = 10 * MILLISECOND;
const AFTER_START_UP: u64 = MILLISECOND / 5;
/// How long a processor may take to come and to set itself up.
const PATIENCE: u64 = 5 * SECOND;
/// Readings of its time-stamp counter: so many at least, and more until one is as close as this many nanoseconds or time is
/// up.
const READINGS: u64 = 16;
const CLOSE: u64 = 2_000;
const READ_FOR: u64 = 50 * MILLISECOND;

/// A processor on its way.
struct Newcomer {
    data: &'static PerCpu,
    set_up: &'static SetUp,
    /// How far it is.
    stage: AtomicU32,
    /// Why it cannot be used, once it has failed.
    failure: Lock<String>,
    /// The number of the reading that is asked for, and of the one that was given, and the reading.
    asked: AtomicU64,
    answered: AtomicU64,
    reading: AtomicU64,
}

/// Stages of a newcomer.
const CALLED: u32 = 0;
const HERE: u32 = 1;
const READY: u32 = 2;
const ENROLLED: u32 = 3;
const FAILED: u32 = 4;
/// Nobody waits for it any more.
const GIVEN_UP: u32 = 5;

/// The four pages below 1 MiB that processors start in.
struct LowMemory {
    trampoline: Trampoline,
    page: NonNull<u8>,
    /// Physical address of a root page table: the host's, with the first 2 MiB also where they are.
    root: u64,
}

/// Offsets of the tables in low memory, behind the trampoline's page.
const ROOT: u64 = 0x1000;
const POINTERS: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const LOW_BYTES: u64 = 0x4000;
/// Present, writable; and a page of 2 MiB. SDM 3A tables 5-15 to 5-18.
const TABLE: u64 = 3;
const LARGE_PAGE: u64 = 0x83;
const ENTRIES: usize = 512;

/// Starts every processor of `platform` but the one that calls, has each do `set_up`, and logs who is up.
pub fn start(boot: &BootInfo<'_>, platform: &Platform, set_up: &'static SetUp) {
    let own = percpu::current();
    let mut tightest = 0;
    let mut synchronised = true;
    let others = platform.cpus.iter().filter(|found| found.apic_id != own.apic_id);
    for found in others {
        match start_one(boot, found.apic_id, set_up) {
            Ok((number, skew)) => match skew {
                Skew::Within(ticks) => tightest = tightest.max(ticks),
                Skew::Ahead(ticks) | Skew::Behind(ticks) => {
                    synchronised = false;
                    let word = if matches!(skew, Skew::Ahead(_)) { "ahead of" } else { "behind" };
                    let nanoseconds = clock::scale().nanoseconds(ticks);
                    warn!(
                        "the TSC of CPU {number} is {nanoseconds} ns or more {word} that of CPU 0: clocks of guests will jump"
                    );
                }
            },
            Err(reason) => warn!("the processor with APIC id {} is not used: {reason}", found.apic_id),
        }
    }
    let (up, all) = (percpu::count(), platform.cpus.len().max(1));
    if up > 1 && synchronised {
        info!("{up} of {all} CPUs are up; their TSCs agree to within {} ns", clock::scale().nanoseconds(tightest));
    } else {
        info!("{up} of {all} CPUs {} up", if up == 1 { "is" } else { "are" });
    }
}

/// Starts the processor with this APIC id: its number, and how its time-stamp counter differs.
fn start_one(boot: &BootInfo<'_>, apic_id: u32, set_up: &'static SetUp) -> Result<(u32, Skew), String> {
    const NO_MEMORY: &str = "no memory for its stack";
    if !apic::can_reach(apic_id) {
        return Err(String::from("without x2APIC it cannot be addressed"));
    }
    let stack = stacks::allocate(STACK_SIZE).map_err(|_| String::from(NO_MEMORY))?;
    // After the stack, so that the root has its part of the address space.
    let low = LowMemory::prepare(boot).ok_or_else(|| String::from("no usable memory below 640 KiB to start it in"))?;
    let newcomer: &'static Newcomer = Box::leak(Box::new(Newcomer {
        data: percpu::create(apic_id),
        set_up,
        stage: AtomicU32::new(CALLED),
        failure: Lock::new(String::new()),
        asked: AtomicU64::new(0),
        answered: AtomicU64::new(0),
        reading: AtomicU64::new(0),
    }));
    low.write(&Arrival {
        early_root: low.root as u32,
        entry: enter as *const () as u64,
        stack,
        argument: core::ptr::from_ref(newcomer) as u64,
        root: address_space::root(),
    });
    call(newcomer, low.trampoline.vector());
    let limit = clock::now() + PATIENCE;
    if !wait(limit, || newcomer.stage.load(Ordering::SeqCst) != CALLED)
        && newcomer.stage.compare_exchange(CALLED, GIVEN_UP, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    {
        apic::send_init(apic_id);
        return Err(String::from("it does not answer"));
    }
    if !wait(limit, || newcomer.stage.load(Ordering::SeqCst) > HERE) {
        apic::send_init(apic_id);
        return Err(String::from("it came but did not finish its set-up"));
    }
    if newcomer.stage.load(Ordering::SeqCst) == FAILED {
        apic::send_init(apic_id);
        return Err(core::mem::take(&mut *newcomer.failure.lock()));
    }
    let skew = compare(newcomer, limit).ok_or_else(|| String::from("it stopped answering"))?;
    percpu::enrol(newcomer.data);
    newcomer.stage.store(ENROLLED, Ordering::SeqCst);
    Ok((newcomer.data.number, skew))
}

/// INIT and two start-up IPIs; the second one only if the first had no effect.
fn call(newcomer: &Newcomer, page: u8) {
    let apic_id = newcomer.data.apic_id;
    apic::send_init(apic_id);
    wait(clock::now() + AFTER_INIT, || false);
    for _ in 0..2 {
        apic::send_start_up(apic_id, page);
        if wait(clock::now() + AFTER_START_UP, || newcomer.stage.load(Ordering::SeqCst) != CALLED) {
            break;
        }
    }
}

/// Waits until `done` or `limit` of the clock; whether it was done.
fn wait(limit: u64, mut done: impl FnMut() -> bool) -> bool {
    loop {
        if done() {
            return true;
        }
        if clock::now() >= limit {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Compares the time-stamp counters.
fn compare(newcomer: &Newcomer, limit: u64) -> Option<Skew> {
    let close = clock::scale().ticks(CLOSE);
    let enough = clock::now() + READ_FOR;
    let mut comparison = Comparison::new();
    for number in 1.. {
        let asked = cpu::rdtsc_in_order();
        newcomer.asked.store(number, Ordering::SeqCst);
        while newcomer.answered.load(Ordering::SeqCst) != number {
            if clock::now() >= limit {
                return None;
            }
            core::hint::spin_loop();
        }
        let answered = cpu::rdtsc_in_order();
        comparison.add(Reading { asked, other: newcomer.reading.load(Ordering::SeqCst), answered });
        if number >= READINGS && (comparison.closest() <= close || clock::now() >= enough) {
            break;
        }
    }
    Some(comparison.skew())
}

impl LowMemory {
    /// Finds the pages and makes the tables.
    fn prepare(boot: &BootInfo<'_>) -> Option<Self> {
        let place = memory_map::low_place(boot, LOW_BYTES, trampoline::LIMIT)?;
        let trampoline = Trampoline::at(place.start)?;
        // The pages must be in the direct map: what firmware calls usable is.
        address_space::translate(ram::pointer(place.start).as_ptr() as u64)?;
        ram::zero(place);
        let root = place.start + ROOT;
        for index in ENTRIES / 2..ENTRIES {
            set_entry(root, index, address_space::root_entry(index));
        }
        set_entry(root, 0, (place.start + POINTERS) | TABLE);
        set_entry(place.start + POINTERS, 0, (place.start + DIRECTORY) | TABLE);
        set_entry(place.start + DIRECTORY, 0, LARGE_PAGE);
        Some(Self { trampoline, page: ram::pointer(place.start), root })
    }

    fn write(&self, arrival: &Arrival) {
        let bytes = self.trampoline.fill(&trampoline::code(), arrival);
        // SAFETY: the page is usable RAM below 1 MiB, which the host gives to nobody else, and the direct map has it.
        unsafe { self.page.copy_from_nonoverlapping(NonNull::from(&bytes).cast(), bytes.len()) };
    }
}

/// Sets an entry of a page table in low memory.
fn set_entry(table: u64, index: usize, value: u64) {
    let table = ram::pointer(table).cast::<AtomicU64>();
    // SAFETY: each table is a page of the low memory that `prepare` has found, and has 512 entries.
    let entry = unsafe { table.add(index) };
    // SAFETY: as above; the CPU that is starting reads it too, hence atomic.
    unsafe { entry.as_ref() }.store(value, Ordering::SeqCst);
}

/// From the trampoline, on the new stack: RDI the newcomer, RCX the host's root page table.
///
/// # Safety
/// For the trampoline only.
#[unsafe(naked)]
unsafe extern "C" fn enter() -> ! {
    naked_asm!(
        "movq %rcx, %cr3",
        // The end of the chain of frame pointers.
        "xorl %ebp, %ebp",
        "call {arrive}",
        "ud2",
        arrive = sym arrive,
        options(att_syntax)
    )
}

/// A processor's first Rust.
extern "C" fn arrive(newcomer: &'static Newcomer) -> ! {
    percpu::adopt(newcomer.data);
    idt::init();
    if newcomer.stage.compare_exchange(CALLED, HERE, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        cpu::halt_forever();
    }
    if let Err(reason) = set_self_up(newcomer) {
        *newcomer.failure.lock() = reason;
        newcomer.stage.store(FAILED, Ordering::SeqCst);
        cpu::halt_forever();
    }
    newcomer.stage.store(READY, Ordering::SeqCst);
    let mut answered = 0;
    while newcomer.stage.load(Ordering::SeqCst) != ENROLLED {
        let asked = newcomer.asked.load(Ordering::SeqCst);
        if asked != answered {
            newcomer.reading.store(cpu::rdtsc_in_order(), Ordering::SeqCst);
            newcomer.answered.store(asked, Ordering::SeqCst);
            answered = asked;
        }
        core::hint::spin_loop();
    }
    scheduler::serve()
}

/// Everything that the boot CPU has done for itself.
fn set_self_up(newcomer: &Newcomer) -> Result<(), String> {
    const NO_MEMORY: &str = "no memory for its tables";
    cpu::prepare().map_err(|missing| format!("it lacks {}", missing.0))?;
    gdt::init().map_err(|_| String::from(NO_MEMORY))?;
    let apic_id = apic::init().map_err(|_| String::from(NO_MEMORY))?;
    if apic_id != newcomer.data.apic_id {
        return Err(format!("its local APIC says that its id is {apic_id}"));
    }
    apic::init_own_timer();
    (newcomer.set_up)()
}
