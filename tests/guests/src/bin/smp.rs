//! Several processors: start-up, interrupts between them, atomic operations, clocks; INIT and a second start.
//!
//! On a machine of one processor it checks that there is one.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use guest::apic::register;
use guest::clock::wait_for;
use guest::report::{check, equal};
use guest::trap::{self, taken, vector};
use guest::{acpi, apic, clock, cpu, paging, smp};

guest::guest!("smp", run);

const VECTOR: u8 = 0x61;
const BACK: u8 = 0x62;
const PATIENCE: u64 = 1_000_000;
const ADDITIONS: u64 = 20_000;

/// The id of each processor that was started, by its start.
static STARTED: [AtomicU32; smp::MOST] = [const { AtomicU32::new(u32::MAX) }; smp::MOST];

fn run() {
    apic::enable();
    let own = apic::id();
    let wanted = acpi::processors().count();
    check("madt-names-processors", wanted > 0, format_args!("{wanted}"));
    let logical = cpu::leaf(0xb, 1).ebx;
    if logical != 0 {
        equal("cpuid-agrees-with-madt", logical as usize, wanted);
    }
    let mut count = 0;
    for id in acpi::processors().filter(|id| *id != own.into()) {
        match smp::start(id as u8) {
            Some(index) => {
                STARTED[index].store(id, Ordering::SeqCst);
                count += 1;
            }
            None => check("processor-starts", false, format_args!("id {id}")),
        }
    }
    equal("all-start", count + 1, wanted);
    if count == 0 {
        return;
    }
    second_start_up(count);
    adding(count);
    interrupts(count, own);
    broadcast(count);
    clocks();
    timers();
    shoot_down();
    again(count);
}

fn id_of(index: usize) -> u8 {
    STARTED[index].load(Ordering::SeqCst) as u8
}

/// A start-up IPI to a running processor changes nothing.
fn second_start_up(count: usize) {
    smp::start_up(id_of(0));
    clock::wait_micros(10_000);
    equal("start-up-while-running-is-ignored", smp::arrivals() as usize, count);
}

static TOTAL: AtomicU64 = AtomicU64::new(0);

fn add() {
    for _ in 0..ADDITIONS {
        TOTAL.fetch_add(1, Ordering::SeqCst);
    }
}

fn adding(count: usize) {
    (0..count).for_each(|index| smp::start_work(index, add));
    add();
    let ended = (0..count).all(|index| smp::finished(index, 10 * PATIENCE));
    check("work-ends", ended, format_args!(""));
    equal("locked-additions", TOTAL.load(Ordering::SeqCst), ADDITIONS * (count as u64 + 1));
}

static WOKEN: AtomicU32 = AtomicU32::new(u32::MAX);
static ASLEEP: AtomicBool = AtomicBool::new(false);

/// Sleeps until an interrupt, then sends one back.
fn doze() {
    ASLEEP.store(true, Ordering::SeqCst);
    cpu::sleep();
}

fn interrupts(count: usize, own: u8) {
    static OWN: AtomicU32 = AtomicU32::new(0);
    OWN.store(own.into(), Ordering::SeqCst);
    trap::on(VECTOR, |_| {
        WOKEN.store(apic::id().into(), Ordering::SeqCst);
        apic::end();
        apic::send(OWN.load(Ordering::SeqCst) as u8, apic::ASSERT | u32::from(BACK));
    });
    trap::on(BACK, |_| apic::end());
    trap::on(vector::NMI, |_| WOKEN.store(apic::id().into(), Ordering::SeqCst));
    cpu::enable_interrupts();
    for index in 0..count {
        ASLEEP.store(false, Ordering::SeqCst);
        let before = taken(BACK);
        smp::start_work(index, doze);
        wait_for(PATIENCE, || ASLEEP.load(Ordering::SeqCst));
        // Time enough for HLT itself.
        clock::wait_micros(2000);
        apic::send(id_of(index), apic::ASSERT | u32::from(VECTOR));
        let woken = smp::finished(index, PATIENCE);
        check(
            "ipi-wakes-a-sleeper",
            woken && WOKEN.load(Ordering::SeqCst) == id_of(index).into(),
            format_args!("{index}"),
        );
        check("ipi-comes-back", wait_for(PATIENCE, || taken(BACK) > before), format_args!("{index}"));
        // An NMI to one that spins with interrupts off.
        WOKEN.store(u32::MAX, Ordering::SeqCst);
        apic::send(id_of(index), apic::ASSERT | apic::NMI);
        check(
            "nmi-reaches",
            wait_for(PATIENCE, || WOKEN.load(Ordering::SeqCst) == id_of(index).into()),
            format_args!("{index}"),
        );
    }
    cpu::disable_interrupts();
    // Five hundred round trips with one of them.
    static TURNS: AtomicU32 = AtomicU32::new(0);
    smp::start_work(0, || {
        cpu::enable_interrupts();
        while TURNS.load(Ordering::SeqCst) < 500 {
            cpu::pause();
        }
        cpu::disable_interrupts();
    });
    cpu::enable_interrupts();
    for _ in 0..500 {
        let before = taken(BACK);
        apic::send(id_of(0), apic::ASSERT | u32::from(VECTOR));
        if !wait_for(PATIENCE, || taken(BACK) > before) {
            break;
        }
        TURNS.fetch_add(1, Ordering::SeqCst);
    }
    cpu::disable_interrupts();
    equal("round-trips", TURNS.swap(500, Ordering::SeqCst), 500);
    smp::finished(0, PATIENCE);
}

static STAY: AtomicBool = AtomicBool::new(true);

fn listen() {
    cpu::enable_interrupts();
    while STAY.load(Ordering::SeqCst) {
        cpu::pause();
    }
    cpu::disable_interrupts();
}

fn broadcast(count: usize) {
    trap::on(VECTOR, |_| apic::end());
    (0..count).for_each(|index| smp::start_work(index, listen));
    let before = taken(VECTOR);
    apic::write(register::ICR_LOW, 3 << 18 | apic::ASSERT | u32::from(VECTOR));
    check(
        "broadcast-to-all-others",
        wait_for(PATIENCE, || taken(VECTOR) == before + count as u64),
        format_args!("{}", taken(VECTOR) - before),
    );
    apic::write(register::LDR, 0x8000_0000);
    let before = taken(VECTOR);
    apic::write(register::ICR_LOW, 2 << 18 | apic::ASSERT | u32::from(VECTOR));
    cpu::enable_interrupts();
    let all = wait_for(PATIENCE, || taken(VECTOR) == before + count as u64 + 1);
    cpu::disable_interrupts();
    check("broadcast-to-all", all, format_args!("{}", taken(VECTOR) - before));
    STAY.store(false, Ordering::SeqCst);
    (0..count).for_each(|index| {
        smp::finished(index, PATIENCE);
    });
}

static READ: AtomicU64 = AtomicU64::new(0);

/// The other processor's TSC lies between two reads here: the clocks are one clock.
fn clocks() {
    let mut out_of_order = 0;
    for _ in 0..50 {
        READ.store(0, Ordering::SeqCst);
        let before = cpu::tsc();
        smp::start_work(0, || READ.store(cpu::tsc(), Ordering::SeqCst));
        smp::finished(0, PATIENCE);
        let after = cpu::tsc();
        if !(before..=after).contains(&READ.load(Ordering::SeqCst)) {
            out_of_order += 1;
        }
    }
    equal("time-stamps-agree", out_of_order, 0);
}

/// The other processor's own timer interrupts it, not this one.
fn timers() {
    static HERE: AtomicU32 = AtomicU32::new(u32::MAX);
    trap::on(VECTOR, |_| {
        HERE.store(apic::id().into(), Ordering::SeqCst);
        apic::end();
    });
    smp::start_work(0, || {
        apic::write(register::TIMER_DIVIDE, apic::DIVIDE_BY_16);
        apic::write(register::LVT_TIMER, u32::from(VECTOR));
        apic::write(register::TIMER_INITIAL, 100_000);
        cpu::sleep();
    });
    let ended = smp::finished(0, 5 * PATIENCE);
    equal("own-timer", (ended, HERE.load(Ordering::SeqCst)), (true, id_of(0).into()));
}

/// A changed page-table entry is seen by the other processor once it has dropped its translation.
fn shoot_down() {
    static FIRST: paging::Page = paging::Page([1; 4096]);
    static SECOND: paging::Page = paging::Page([2; 4096]);
    static SEEN: AtomicU32 = AtomicU32::new(0);
    fn look() {
        cpu::invalidate(paging::window(9));
        // SAFETY: the window page is mapped to one of the two pages.
        SEEN.store(unsafe { (paging::window(9) as *const u8).read_volatile() }.into(), Ordering::SeqCst);
    }
    for (page, wanted) in [(&FIRST, 1), (&SECOND, 2), (&FIRST, 1)] {
        paging::set(9, &raw const *page as u64 | paging::PRESENT);
        smp::start_work(0, look);
        smp::finished(0, PATIENCE);
        equal("other-processor-sees-the-new-page", SEEN.load(Ordering::SeqCst), wanted);
    }
}

/// INIT stops a processor for good, and a start-up IPI starts it from the beginning.
fn again(count: usize) {
    static BEATS: AtomicU64 = AtomicU64::new(0);
    smp::start_work(0, || {
        loop {
            BEATS.fetch_add(1, Ordering::SeqCst);
        }
    });
    check("beats", wait_for(PATIENCE, || BEATS.load(Ordering::SeqCst) > 1000), format_args!(""));
    smp::init(id_of(0));
    clock::wait_micros(20_000);
    let stopped = BEATS.load(Ordering::SeqCst);
    clock::wait_micros(50_000);
    equal("init-stops", BEATS.load(Ordering::SeqCst) - stopped, 0);
    equal("init-alone-starts-nothing", smp::arrivals() as usize, count);
    smp::start_up(id_of(0));
    check(
        "starts-again",
        wait_for(PATIENCE, || smp::arrivals() as usize == count + 1),
        format_args!("{}", smp::arrivals()),
    );
}
