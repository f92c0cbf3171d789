//! One of two guests on one processor: spins for ever with interrupts off, or measures what the other one costs it.
//!
//! The command line says which: `role=spin`; `role=run` looks at the TSC all the time and tells how long it was away;
//! `role=nap` sleeps and tells how late it was woken. `millis=` is how long is measured; with `then=spin` it spins afterwards, else it ends.

#![no_std]
#![no_main]

use guest::apic::register;
use guest::report::{equal, line};
use guest::{apic, clock, cpu, entry, ioapic, trap};

guest::guest!("neighbour", run);

const VECTOR: u8 = 0x61;
/// Microseconds until the other one is surely there.
const SETTLE: u64 = 200_000;
/// Microseconds between two looks at the TSC that are more than an exit: the processor ran something else.
const AWAY: u64 = 300;
/// Length of a nap in microseconds.
const NAP: u64 = 3_000;

fn run() {
    let role = entry::option("role").unwrap_or("");
    let micros = entry::option("millis").and_then(|text| text.parse().ok()).unwrap_or(300_u64) * 1000;
    match role {
        "spin" => spin(),
        "run" => watch(micros),
        "nap" => nap(micros),
        other => equal("role", other, "spin, run or nap"),
    }
    if entry::option("then") == Some("spin") {
        spin();
    }
}

fn spin() -> ! {
    cpu::disable_interrupts();
    line(format_args!("SPINNING"));
    loop {
        core::hint::spin_loop();
    }
}

/// Never gives the processor up, and looks how often and for how long it is taken away.
fn watch(micros: u64) {
    clock::wait_micros(SETTLE);
    let away = clock::tsc_of_micros(AWAY);
    let (start, length) = (cpu::tsc(), clock::tsc_of_micros(micros));
    let (mut last, mut longest, mut total, mut times) = (start, 0, 0, 0);
    while last - start < length {
        let now = cpu::tsc();
        if now - last > away {
            longest = longest.max(now - last);
            total += now - last;
            times += 1;
        }
        last = now;
    }
    let microseconds = |ticks: u64| ticks * 1000 / clock::tsc_of_micros(1000);
    let (longest, total, all) = (microseconds(longest), microseconds(total), microseconds(last - start));
    line(format_args!("AWAY times={times} longest={longest} total={total} of={all}"));
}

/// Sleeps by the APIC's timer, and looks how late it is woken.
fn nap(micros: u64) {
    apic::enable();
    ioapic::mask_all();
    trap::on(VECTOR, |_| apic::end());
    let rate = lapic_rate();
    apic::write(register::LVT_TIMER, u32::from(VECTOR));
    clock::wait_micros(SETTLE);
    let length = clock::tsc_of_micros(NAP);
    let (mut longest, mut total) = (0, 0);
    let naps = micros / NAP;
    for _ in 0..naps {
        let start = cpu::tsc();
        apic::write(register::TIMER_INITIAL, (rate * NAP / 1_000_000) as u32);
        cpu::sleep();
        let late = (cpu::tsc() - start).saturating_sub(length);
        longest = longest.max(late);
        total += late;
    }
    let microseconds = |ticks: u64| ticks * 1000 / clock::tsc_of_micros(1000);
    line(format_args!("LATE times={naps} longest={} total={}", microseconds(longest), microseconds(total)));
}

/// Counts per second of the APIC timer, divided by 16, measured by the PM timer's rate of the TSC.
fn lapic_rate() -> u64 {
    apic::write(register::TIMER_DIVIDE, apic::DIVIDE_BY_16);
    let second = clock::tsc_of_micros(1_000_000);
    apic::write(register::TIMER_INITIAL, u32::MAX);
    let (from, start) = (apic::read(register::TIMER_CURRENT), cpu::tsc());
    clock::wait_micros(20_000);
    let (passed, ticks) = (from - apic::read(register::TIMER_CURRENT), cpu::tsc() - start);
    u64::from(passed) * second / ticks
}
