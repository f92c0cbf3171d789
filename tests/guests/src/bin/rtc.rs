//! The real-time clock: time, update cycle, periodic and update-ended interrupts.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};
use guest::clock::{self, wait_for, wait_for_device};
use guest::report::{check, close, equal};
use guest::trap::{self, taken};
use guest::{apic, cpu, ioapic, pic, rtc};

guest::guest!("rtc", run);

const VECTOR: u8 = 0x61;

fn run() {
    apic::enable();
    ioapic::mask_all();
    pic::initialise(0x30);
    real_time_clock();
}

fn binary(value: u8) -> u64 {
    if rtc::read(rtc::B) & 4 != 0 { value.into() } else { u64::from(value >> 4) * 10 + u64::from(value & 15) }
}

fn real_time_clock() {
    check("rtc-valid", rtc::read(rtc::D) & 0x80 != 0, format_args!("{:#x}", rtc::read(rtc::D)));
    for (what, index, range) in
        [("rtc-second", 0, 0..60), ("rtc-minute", 2, 0..60), ("rtc-day", 7, 1..32), ("rtc-month", 8, 1..13)]
    {
        let value = binary(rtc::read(index));
        check(what, range.contains(&value), format_args!("{value}"));
    }
    let in_progress = || rtc::read(rtc::A) & 0x80 != 0;
    check("rtc-update-in-progress", wait_for_device(4_200_000, in_progress), format_args!("never seen"));
    check("rtc-update-ends", wait_for_device(100_000, || !in_progress()), format_args!("never ends"));
    let second = rtc::read(0);
    check(
        "rtc-second-changes",
        wait_for_device(1_500_000, || rtc::read(0) != second),
        format_args!("stays at {second:#x}"),
    );
    // 1024 Hz on line 8, through the IOAPIC.
    static FLAGS: AtomicU64 = AtomicU64::new(0);
    trap::on(VECTOR, |_| {
        FLAGS.fetch_or(rtc::read(rtc::C).into(), Ordering::SeqCst);
        apic::end();
    });
    ioapic::set_entry(8, u64::from(apic::id()) << 56 | u64::from(VECTOR));
    let before_b = rtc::read(rtc::B);
    rtc::write(rtc::A, 0x26);
    rtc::read(rtc::C);
    cpu::enable_interrupts();
    rtc::write(rtc::B, before_b | 0x40);
    close("rtc-periodic-1024-hz", 307, || {
        let before = taken(VECTOR);
        clock::wait_micros(300_000);
        taken(VECTOR) - before
    });
    rtc::write(rtc::B, before_b);
    equal("rtc-flags", FLAGS.load(Ordering::SeqCst) & 0xc0, 0xc0);
    // The update-ended interrupt, once a second.
    FLAGS.store(0, Ordering::SeqCst);
    rtc::read(rtc::C);
    rtc::write(rtc::B, before_b | 0x10);
    check(
        "rtc-update-ended",
        wait_for(2_500_000, || FLAGS.load(Ordering::SeqCst) & 0x90 == 0x90),
        format_args!("{FLAGS:?}"),
    );
    rtc::write(rtc::B, before_b);
    cpu::disable_interrupts();
    ioapic::mask_all();
}
