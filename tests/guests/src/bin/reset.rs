//! Resets by port 0xCF9 and by the keyboard controller: each starts the machine anew, and the clock's RAM survives.
//!
//! The stage is kept in CMOS RAM. `only=cf9|i8042|triple` makes just that reset; a triple fault is for machines that answer it with one.

#![no_std]
#![no_main]

use core::arch::asm;
use guest::apic::{self, register};
use guest::report::{self, check, equal};
use guest::{cpu, entry, hpet, ioapic, pic, port, power, rtc, trap};

guest::guest!("reset", run);

/// Free bytes of CMOS RAM.
const MAGIC_AT: u8 = 0x72;
const STAGE_AT: u8 = 0x73;
const MAGIC: u8 = 0xc7;

static mut IN_MEMORY: u32 = 0x1234_5678;

fn run() {
    if rtc::read(MAGIC_AT) != MAGIC {
        rtc::write(MAGIC_AT, MAGIC);
        rtc::write(STAGE_AT, 0);
    } else {
        fresh();
    }
    let stage = rtc::read(STAGE_AT);
    rtc::write(STAGE_AT, stage + 1);
    let ways = ["cf9", "i8042"];
    let next = match entry::option("only") {
        Some(only) => (stage == 0).then_some(only),
        None => ways.get(usize::from(stage)).copied(),
    };
    let Some(way) = next else {
        rtc::write(MAGIC_AT, 0);
        return report::passed("all-resets");
    };
    report::passed(way);
    stain();
    match way {
        "cf9" => power::reset(),
        "i8042" => port::write8(0x64, 0xfe),
        _ => triple_fault(),
    }
    // A reset may take effect a moment later.
    for turn in 0..200_000_000_u64 {
        core::hint::black_box(turn);
    }
    report::failed("machine-was-reset", format_args!("{way} had no effect"));
    rtc::write(MAGIC_AT, 0);
}

/// Leaves traces that a reset has to remove.
fn stain() {
    // SAFETY: one processor, no concurrency.
    unsafe { (&raw mut IN_MEMORY).write_volatile(0xdead_beef) };
    apic::enable();
    apic::write(register::TPR, 0x20);
    apic::write(register::TIMER_INITIAL, 0x1000_0000);
    ioapic::set_entry(5, 0x61);
    hpet::run();
    pic::initialise(0x30);
    port::write8(0x3ff, 0x5a);
    let _ = cpu::write_msr(0xc000_0082, 0x1234_5678);
}

/// What a machine that was just reset looks like.
fn fresh() {
    // SAFETY: as above.
    equal("memory-as-loaded", unsafe { (&raw const IN_MEMORY).read_volatile() }, 0x1234_5678);
    equal("task-priority-cleared", apic::read(register::TPR), 0);
    equal("lapic-timer-stopped", apic::read(register::TIMER_INITIAL), 0);
    equal("redirection-masked", ioapic::entry(5) & ioapic::MASKED, ioapic::MASKED);
    equal("msr-cleared", cpu::read_msr(0xc000_0082), Ok(0));
    check("time-stamp-counter-runs", cpu::tsc() != cpu::tsc(), format_args!(""));
}

fn triple_fault() {
    trap::empty_table();
    // SAFETY: with no gate at all, #UD becomes #DF becomes a shutdown.
    unsafe { asm!("ud2") };
}
