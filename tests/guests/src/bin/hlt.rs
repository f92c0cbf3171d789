//! HLT: waking by a timer, by an interrupt that waits already, by an NMI, and sleeping without a busy host in between.

#![no_std]
#![no_main]

use core::arch::asm;
use guest::apic::register;
use guest::clock;
use guest::report::{check, close, equal};
use guest::trap::{self, taken, vector};
use guest::{apic, cpu, ioapic};

guest::guest!("hlt", run);

const VECTOR: u8 = 0x61;

fn run() {
    apic::enable();
    ioapic::mask_all();
    trap::on(VECTOR, |_| apic::end());
    let rate = lapic_rate();
    apic::write(register::LVT_TIMER, u32::from(VECTOR));
    let nap = |parts: u64| {
        let (before, start) = (taken(VECTOR), clock::now());
        apic::write(register::TIMER_INITIAL, (rate / parts) as u32);
        cpu::sleep();
        (taken(VECTOR) - before, u64::from(clock::since(start)))
    };
    equal("woken-by-the-timer", nap(100).0, 1);
    close("slept-20-ms", clock::FREQUENCY / 50, || nap(50).1);
    let naps = (0..200).map(|_| nap(10_000).0).sum::<u64>();
    equal("woken-200-times", naps, 200);
    // A request that waits before STI; HLT wakes at once.
    apic::send_self(VECTOR.into());
    let before = taken(VECTOR);
    cpu::sleep();
    equal("woken-by-a-waiting-request", taken(VECTOR) - before, 1);
    // After the handler, execution goes on behind HLT, once.
    let mut passes = 0_u64;
    apic::write(register::TIMER_INITIAL, (rate / 1000) as u32);
    // SAFETY: the timer's interrupt wakes the processor.
    unsafe { asm!("sti", "hlt", "inc {}", "cli", inout(reg) passes) };
    equal("goes-on-behind-hlt", passes, 1);
    nmi(rate);
    ticks(rate);
}

/// Counts per second of the APIC timer, divided by 16.
fn lapic_rate() -> u64 {
    apic::write(register::TIMER_DIVIDE, apic::DIVIDE_BY_16);
    apic::write(register::TIMER_INITIAL, u32::MAX);
    let (from, start) = (apic::read(register::TIMER_CURRENT), clock::now());
    clock::wait_micros(50_000);
    let passed = from - apic::read(register::TIMER_CURRENT);
    u64::from(passed) * clock::FREQUENCY / u64::from(clock::since(start))
}

/// With interrupts off a timer's interrupt stays a request, and an NMI comes all the same.
fn nmi(rate: u64) {
    trap::on(vector::NMI, |_| {});
    apic::send_self(apic::NMI);
    equal("nmi-taken", taken(vector::NMI), 1);
    apic::write(register::TIMER_INITIAL, (rate / 1000) as u32);
    clock::wait_micros(5000);
    equal("request-waits-with-interrupts-off", apic::bit(register::IRR, VECTOR), true);
    let before = taken(VECTOR);
    cpu::sleep();
    equal("taken-when-allowed", taken(VECTOR) - before, 1);
}

/// A tick of 1000 Hz with HLT between: no tick is lost over 300 ms, seen from the PM timer.
fn ticks(rate: u64) {
    apic::write(register::LVT_TIMER, apic::PERIODIC | u32::from(VECTOR));
    close("ticks-while-halting", 300, || {
        let (before, start) = (taken(VECTOR), clock::now());
        apic::write(register::TIMER_INITIAL, (rate / 1000) as u32);
        while clock::since(start) < clock::of_micros(300_000) {
            cpu::sleep();
        }
        apic::write(register::TIMER_INITIAL, 0);
        taken(VECTOR) - before
    });
    check("no-request-left-over", !apic::bit(register::ISR, VECTOR), format_args!("in service"));
}
