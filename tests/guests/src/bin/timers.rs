//! Timers: each one runs, and all agree with the PM timer within a percent.

#![no_std]
#![no_main]

use guest::apic::register;
use guest::clock::{self, wait_for, wait_for_device};
use guest::report::{check, close, equal};
use guest::trap::{self, taken};
use guest::{apic, cpu, hpet, ioapic, pic, pit, port};

guest::guest!("timers", run);

const VECTOR: u8 = 0x61;
const PATIENCE: u64 = 2_000_000;
/// How long rates are compared: long against the time that one read takes on a slow machine.
const SPAN: u64 = 200_000;

fn run() {
    apic::enable();
    ioapic::mask_all();
    pic::initialise(0x30);
    trap::on(VECTOR, |_| apic::end());
    pm_timer();
    channel_2();
    pit_modes();
    lapic_timer();
    hpet_timer();
    rates();
}

fn pm_timer() {
    let start = clock::now();
    check("pm-timer-runs", (0..10_000).any(|_| clock::now() != start), format_args!("stands at {start:#x}"));
    let mut backwards = 0;
    let mut last = clock::now();
    for _ in 0..1000 {
        let now = clock::now();
        if now.wrapping_sub(last) & 0xff_ffff > 0x80_0000 {
            backwards += 1;
        }
        last = now;
    }
    equal("pm-timer-never-goes-back", backwards, 0);
}

/// Channel 2 through port 0x61, as kernels calibrate: gate, mode 0, output.
fn channel_2() {
    const COUNT: u64 = 59_659; // 50 ms
    pit::gate_2(false);
    pit::program(2, 0, COUNT as u16);
    equal("channel-2-output-low", pit::output_2(), false);
    clock::wait_micros(1000);
    let held = pit::count(2);
    clock::wait_micros(1000);
    equal("channel-2-waits-for-its-gate", pit::count(2), held);
    close("channel-2-takes-50-ms", 50_000 * clock::FREQUENCY / 1_000_000, || {
        pit::gate_2(false);
        pit::gate_2(true);
        pit::program(2, 0, COUNT as u16);
        let start = clock::now();
        wait_for_device(PATIENCE, pit::output_2);
        clock::since(start).into()
    });
    equal("channel-2-output-high", pit::output_2(), true);
    pit::gate_2(false);
    let first = port::read8(pit::CONTROL_B) & 0x10;
    check(
        "refresh-bit-toggles",
        (0..100_000).any(|_| port::read8(pit::CONTROL_B) & 0x10 != first),
        format_args!("bit 4 of port 0x61 stands still"),
    );
}

fn pit_modes() {
    pit::program(0, 2, 10_000);
    clock::wait_micros(500);
    let (one, status) = (pit::count(0), pit::status(0));
    check("rate-generator-counts-below-its-start", (1..=10_000).contains(&one), format_args!("{one}"));
    equal("read-back-status", status & 0x3f, 0x34);
    pit::program(0, 3, 20_000);
    equal("read-back-square-wave", pit::status(0) & 0x3f, 0x36);
    close("pit-rate", pit::FREQUENCY / 10 / 100, || {
        // Ten milliseconds of a counter of one hundredth second and more.
        pit::program(0, 2, 0);
        let start = clock::now();
        let first = pit::count(0);
        clock::wait_micros(40_000);
        let passed = u64::from(first.wrapping_sub(pit::count(0)));
        let ticks = u64::from(clock::since(start));
        passed * (clock::FREQUENCY / 1000) / ticks.max(1)
    });
}

/// Counts per second of the local APIC timer, divided by 16.
fn lapic_rate() -> u64 {
    apic::write(register::LVT_TIMER, apic::MASKED | u32::from(VECTOR));
    apic::write(register::TIMER_DIVIDE, apic::DIVIDE_BY_16);
    apic::write(register::TIMER_INITIAL, u32::MAX);
    let (from, start) = (apic::read(register::TIMER_CURRENT), clock::now());
    clock::wait_micros(SPAN);
    let passed = from - apic::read(register::TIMER_CURRENT);
    u64::from(passed) * clock::FREQUENCY / u64::from(clock::since(start))
}

fn lapic_timer() {
    let rate = lapic_rate();
    check("lapic-timer-runs", rate > 100_000, format_args!("{rate} Hz"));
    equal("lapic-initial-count-kept", apic::read(register::TIMER_INITIAL), u32::MAX);
    cpu::enable_interrupts();
    // One-shot: once after 20 ms, then never.
    apic::write(register::TIMER_INITIAL, 0);
    apic::write(register::LVT_TIMER, u32::from(VECTOR));
    let before = taken(VECTOR);
    let shot = || {
        let before = taken(VECTOR);
        let start = clock::now();
        apic::write(register::TIMER_INITIAL, (rate / 50) as u32);
        wait_for(PATIENCE, || taken(VECTOR) > before);
        clock::since(start).into()
    };
    close("lapic-one-shot-after-20-ms", clock::FREQUENCY / 50, shot);
    check("lapic-one-shot-came", taken(VECTOR) > before, format_args!(""));
    let before = taken(VECTOR);
    clock::wait_micros(60_000);
    equal("lapic-one-shot-only-once", taken(VECTOR) - before, 0);
    equal("lapic-stands-at-zero", apic::read(register::TIMER_CURRENT), 0);
    // Periodic: 1000 times a second.
    apic::write(register::LVT_TIMER, apic::PERIODIC | u32::from(VECTOR));
    close("lapic-periodic-1000-hz", 300, || {
        apic::write(register::TIMER_INITIAL, (rate / 1000) as u32);
        let before = taken(VECTOR);
        clock::wait_micros(300_000);
        taken(VECTOR) - before
    });
    apic::write(register::LVT_TIMER, apic::PERIODIC | apic::MASKED | u32::from(VECTOR));
    let before = taken(VECTOR);
    clock::wait_micros(20_000);
    equal("lapic-masked-is-silent", taken(VECTOR) - before, 0);
    apic::write(register::TIMER_INITIAL, 0);
    cpu::disable_interrupts();
}

fn hpet_timer() {
    let capabilities = hpet::read(hpet::CAPABILITIES);
    let period = capabilities >> 32;
    check("hpet-period", period > 0 && period <= 100_000_000, format_args!("{period} fs"));
    check("hpet-has-three-timers", capabilities >> 8 & 0x1f >= 2, format_args!("{capabilities:#x}"));
    hpet::write(hpet::CONFIGURATION, 0);
    let stopped = hpet::read(hpet::COUNTER);
    clock::wait_micros(1000);
    equal("hpet-stands-when-off", hpet::read(hpet::COUNTER), stopped);
    hpet::write(hpet::COUNTER, 0x1_0000_0000);
    equal("hpet-counter-writable", hpet::read(hpet::COUNTER), 0x1_0000_0000);
    hpet::write(hpet::COUNTER, 0);
    hpet::run();
    // Timer 0, one-shot and edge-triggered, on the highest pin that it can have: pin 2 is the PIT's.
    let routing = (hpet::read(hpet::timer_configuration(0)) >> 32) as u32;
    let pin = 31 - routing.max(1).leading_zeros();
    ioapic::set_entry(pin, u64::from(apic::id()) << 56 | u64::from(VECTOR));
    cpu::enable_interrupts();
    close("hpet-one-shot-after-20-ms", clock::FREQUENCY / 50, || {
        let before = taken(VECTOR);
        let start = clock::now();
        hpet::write(hpet::comparator(0), hpet::read(hpet::COUNTER) + hpet::frequency() / 50);
        hpet::write(hpet::timer_configuration(0), 1 << 2 | u64::from(pin) << 9);
        wait_for(PATIENCE, || taken(VECTOR) > before);
        clock::since(start).into()
    });
    close("hpet-periodic-1000-hz", 300, || {
        let each = hpet::frequency() / 1000;
        // Periodic with the value-set bit: the comparator, then the period.
        hpet::write(hpet::timer_configuration(0), 1 << 2 | 1 << 3 | 1 << 6 | u64::from(pin) << 9);
        hpet::write(hpet::comparator(0), hpet::read(hpet::COUNTER) + each);
        hpet::write(hpet::comparator(0), each);
        let before = taken(VECTOR);
        clock::wait_micros(300_000);
        let count = taken(VECTOR) - before;
        hpet::write(hpet::timer_configuration(0), 0);
        count
    });
    cpu::disable_interrupts();
    ioapic::mask_all();
}

/// The same span by several clocks, and whether TSC and HPET go steadily.
fn rates() {
    let over = |read: &dyn Fn() -> u64| {
        let (from, start) = (read(), clock::now());
        clock::wait_micros(SPAN);
        let passed = read() - from;
        passed * clock::FREQUENCY / u64::from(clock::since(start))
    };
    close("hpet-rate", hpet::frequency() / 1000, || over(&|| hpet::read(hpet::COUNTER)) / 1000);
    let first = over(&cpu::tsc);
    close("tsc-rate-is-steady", first / 1000, || over(&cpu::tsc) / 1000);
    let first = lapic_rate();
    close("lapic-rate-is-steady", first / 1000, || lapic_rate() / 1000);
    let mut last = cpu::tsc();
    let backwards = (0..10_000).filter(|_| {
        let now = cpu::tsc();
        let back = now < last;
        last = now;
        back
    });
    equal("tsc-never-goes-back", backwards.count(), 0);
    let mut last = hpet::read(hpet::COUNTER);
    let backwards = (0..1000).filter(|_| {
        let now = hpet::read(hpet::COUNTER);
        let back = now < last;
        last = now;
        back
    });
    equal("hpet-never-goes-back", backwards.count(), 0);
}
