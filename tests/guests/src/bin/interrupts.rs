//! Interrupts: legacy controllers, IOAPIC, local APIC, NMI, shadows and priorities.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use guest::apic::register;
use guest::clock::{self, wait_for, wait_for_device};
use guest::report::{check, equal};
use guest::trap::{self, Frame, taken, vector};
use guest::{apic, cpu, ioapic, pic, pit, port};

guest::guest!("interrupts", run);

const PIC_BASE: u8 = 0x30;
const HIGH: u8 = 0x91;
const MIDDLE: u8 = 0x71;
const LOW: u8 = 0x51;
const PIN_VECTOR: u8 = 0x61;
const TICK: u64 = 10_000;
/// Long enough for every machine to deliver.
const PATIENCE: u64 = 500_000;

static ORDER: AtomicU64 = AtomicU64::new(0);
static RIP: AtomicU64 = AtomicU64::new(0);

/// Notes the vector in the order of arrival and ends it.
fn ordered(frame: &mut Frame) {
    let _ = ORDER.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |seen| Some(seen << 8 | frame.vector));
    RIP.store(frame.rip, Ordering::SeqCst);
    apic::end();
}

fn arrived() -> u64 {
    ORDER.swap(0, Ordering::SeqCst)
}

fn run() {
    legacy();
    apic::enable();
    self_ipi();
    shadows();
    priorities();
    nmi();
    pins();
    ext_int();
    masked_apic();
}

fn on_tick(frame: &mut Frame) {
    pic::end((frame.vector as u8).wrapping_sub(PIC_BASE));
}

/// PIC and PIT: masks, requests, in-service bits, end of interrupt, the spurious vector.
fn legacy() {
    pic::initialise(PIC_BASE);
    equal("pic-masks-kept", (pic::mask(0xa55a), pic::masks()).1, 0xa55a);
    pic::mask(0xffff);
    trap::on(PIC_BASE, on_tick);
    // The local APIC lets the controllers through as after reset: software-disabled, or LINT0 as ExtINT.
    apic::write(register::SVR, 0x1ff);
    apic::write(register::LVT_LINT0, apic::EXTINT);
    pit::program(0, 2, (pit::FREQUENCY / 1000) as u16);
    check(
        "pic-requests-while-masked",
        wait_for_device(PATIENCE, || pic::requests() & 1 != 0),
        format_args!("{:#x}", pic::requests()),
    );
    equal("no-tick-while-masked", taken(PIC_BASE), 0);
    pic::mask(0xfffe);
    clock::wait_micros(3 * TICK);
    equal("no-tick-with-interrupts-off", taken(PIC_BASE), 0);
    cpu::enable_interrupts();
    check("pit-ticks", wait_for(PATIENCE, || taken(PIC_BASE) >= 10), format_args!("{}", taken(PIC_BASE)));
    cpu::disable_interrupts();
    equal("nothing-in-service-afterwards", pic::in_service(), 0);
    // Without an end of interrupt, no further one of the same line comes.
    trap::on(PIC_BASE, |_| {});
    let before = taken(PIC_BASE);
    cpu::enable_interrupts();
    clock::wait_micros(5 * TICK);
    cpu::disable_interrupts();
    equal("one-tick-without-eoi", taken(PIC_BASE) - before, 1);
    equal("in-service-shown", pic::in_service() & 1, 1);
    pic::end(0);
    equal("in-service-ended", pic::in_service() & 1, 0);
    trap::on(PIC_BASE, on_tick);
    pic::mask(0xffff);
    apic::write(register::LVT_LINT0, apic::MASKED);
}

/// An interrupt to oneself arrives before the next instruction that could tell.
fn self_ipi() {
    for vector in [LOW, MIDDLE, HIGH] {
        trap::on(vector, ordered);
    }
    apic::send_self(LOW.into());
    equal("request-shown", apic::bit(register::IRR, LOW), true);
    cpu::enable_interrupts();
    equal("self-ipi-taken-at-once", arrived(), LOW.into());
    equal("request-gone", apic::bit(register::IRR, LOW), false);
    equal("nothing-in-service", apic::bit(register::ISR, LOW), false);
    apic::send_self(HIGH.into());
    equal("self-ipi-with-interrupts-on", arrived(), HIGH.into());
    apic::send(apic::id(), apic::ASSERT | u32::from(MIDDLE));
    equal("ipi-by-physical-id", arrived(), MIDDLE.into());
    apic::write(register::LDR, 0x0400_0000);
    apic::write(register::DFR, u32::MAX);
    apic::send(0x04, apic::ASSERT | 1 << 11 | u32::from(LOW));
    equal("ipi-by-logical-id", arrived(), LOW.into());
    apic::send(0x02, apic::ASSERT | 1 << 11 | u32::from(LOW));
    equal("ipi-to-another-logical-id", arrived(), 0);
    apic::write(register::ICR_LOW, 2 << 18 | apic::ASSERT | u32::from(LOW));
    equal("ipi-to-all", arrived(), LOW.into());
    apic::write(register::ICR_LOW, 3 << 18 | apic::ASSERT | u32::from(LOW));
    equal("ipi-to-all-but-self", arrived(), 0);
    for _ in 0..1000 {
        apic::send_self(LOW.into());
    }
    equal("a-thousand-self-ipis", taken(LOW) >= 1000, true);
    arrived();
    cpu::disable_interrupts();
}

/// STI, MOV SS and POP SS hold interrupts off for one instruction.
fn shadows() {
    let after: u64;
    apic::send_self(LOW.into());
    // SAFETY: the interrupt's handler returns; flags end cleared.
    unsafe { asm!("sti", "nop", "22:", "nop", "cli", "lea {}, [rip + 22b]", out(reg) after) };
    equal("sti-shadow", (arrived(), RIP.load(Ordering::SeqCst)), (LOW.into(), after));
    apic::send_self(LOW.into());
    // SAFETY: STI's shadow covers CLI, so nothing arrives.
    unsafe { asm!("sti", "cli", "nop", "nop") };
    equal("sti-cli-takes-nothing", arrived(), 0);
    // STI with interrupts already on has no shadow, and MOV SS has one by itself.
    let after: u64;
    // SAFETY: SS is loaded with what it holds.
    unsafe {
        asm!("mov {s:e}, ss", "sti", "mov ss, {s:e}", "nop", "22:", "nop", "cli", "lea {a}, [rip + 22b]", s = out(reg) _, a = out(reg) after);
    }
    let rip = RIP.load(Ordering::SeqCst);
    check("mov-ss-shadow", arrived() == LOW.into() && rip <= after, format_args!("{rip:#x} {after:#x}"));
    // The shadow also covers an instruction that a hypervisor executes.
    apic::send_self(LOW.into());
    let after: u64;
    // SAFETY: as above.
    unsafe {
        asm!("sti", "in al, 0x21", "22:", "nop", "cli", "lea {}, [rip + 22b]", out(reg) after, out("al") _);
    }
    equal("shadow-over-in", (arrived(), RIP.load(Ordering::SeqCst)), (LOW.into(), after));
    apic::send_self(LOW.into());
    // SAFETY: as above; HLT ends because the request waits already.
    unsafe { asm!("sti", "hlt", "cli") };
    equal("sti-hlt-wakes", arrived(), LOW.into());
    for code in ["popf"] {
        apic::send_self(LOW.into());
        // SAFETY: sets IF by POPFQ, which has no shadow, and clears it.
        unsafe { asm!("pushfq", "or qword ptr [rsp], 0x200", "popfq", "nop", "cli") };
        equal(if code == "popf" { "popf-opens" } else { "" }, arrived(), LOW.into());
    }
}

/// TPR and CR8 mask by priority class; the highest vector goes first; in-service vectors mask lower ones.
fn priorities() {
    apic::send_self(LOW.into());
    apic::send_self(HIGH.into());
    apic::send_self(MIDDLE.into());
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    equal("highest-first", arrived(), u64::from(HIGH) << 16 | u64::from(MIDDLE) << 8 | u64::from(LOW));
    apic::write(register::TPR, 0x70);
    equal("cr8-follows-tpr", cpu::read_cr8(), 7);
    equal("ppr-follows-tpr", apic::read(register::PPR), 0x70);
    for vector in [LOW, MIDDLE, HIGH] {
        apic::send_self(vector.into());
    }
    cpu::enable_interrupts();
    equal("tpr-masks-its-class-and-below", arrived(), HIGH.into());
    cpu::write_cr8(6);
    equal("lower-cr8-opens-at-once", arrived(), MIDDLE.into());
    equal("tpr-follows-cr8", apic::read(register::TPR), 0x60);
    cpu::write_cr8(0);
    equal("cr8-zero-opens-all", arrived(), LOW.into());
    cpu::write_cr8(15);
    apic::send_self(HIGH.into());
    equal("cr8-15-masks-all", arrived(), 0);
    apic::write(register::TPR, 0);
    equal("tpr-write-opens", arrived(), HIGH.into());
    cpu::disable_interrupts();
    // A low vector in service lets a higher one in, a high one masks a lower one until its end.
    trap::on(LOW, |_| {
        apic::send_self(HIGH.into());
        cpu::enable_interrupts();
        cpu::disable_interrupts();
        let _ = ORDER.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |seen| Some(seen << 8 | u64::from(LOW)));
        apic::end();
    });
    apic::send_self(LOW.into());
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    equal("higher-interrupts-lower", arrived(), u64::from(HIGH) << 8 | u64::from(LOW));
    trap::on(HIGH, |_| {
        apic::send_self(MIDDLE.into());
        cpu::enable_interrupts();
        cpu::disable_interrupts();
        let _ = ORDER.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |seen| Some(seen << 8 | u64::from(HIGH)));
        apic::end();
    });
    apic::send_self(HIGH.into());
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    equal("lower-waits-for-higher", arrived(), u64::from(HIGH) << 8 | u64::from(MIDDLE));
    trap::on(LOW, ordered);
    trap::on(HIGH, ordered);
}

/// An NMI arrives with interrupts off, and a second one waits for the first one's IRET.
fn nmi() {
    static DEPTH: AtomicU64 = AtomicU64::new(0);
    static DEEPEST: AtomicU64 = AtomicU64::new(0);
    trap::on(vector::NMI, |_| {
        let depth = DEPTH.fetch_add(1, Ordering::SeqCst) + 1;
        DEEPEST.fetch_max(depth, Ordering::SeqCst);
        if taken(vector::NMI) == 2 {
            apic::send_self(apic::NMI);
            cpu::pause();
        }
        DEPTH.fetch_sub(1, Ordering::SeqCst);
    });
    apic::send_self(apic::NMI);
    cpu::pause();
    equal("nmi-with-interrupts-off", taken(vector::NMI), 1);
    apic::send_self(apic::NMI);
    check(
        "nmi-held-until-iret",
        wait_for(PATIENCE, || taken(vector::NMI) == 3),
        format_args!("{}", taken(vector::NMI)),
    );
    equal("nmi-never-nested", DEEPEST.load(Ordering::SeqCst), 1);
    // LINT1 is not wired to anything here; NMIs from the local vector table come with an APIC timer in another test.
    trap::off(vector::NMI);
}

/// The IOAPIC's pin 2, which the PIT drives: edge, mask, the redirection entry's fields.
fn pins() {
    pic::mask(0xffff);
    ioapic::mask_all();
    check("ioapic-pins", ioapic::pins() == 24, format_args!("{}", ioapic::pins()));
    let entry = u64::from(apic::id()) << 56 | u64::from(PIN_VECTOR);
    ioapic::set_entry(2, entry | ioapic::MASKED);
    equal("redirection-kept", ioapic::entry(2), entry | ioapic::MASKED);
    trap::on(PIN_VECTOR, |_| apic::end());
    pit::program(0, 2, (pit::FREQUENCY / 1000) as u16);
    cpu::enable_interrupts();
    clock::wait_micros(3 * TICK);
    equal("masked-pin-is-silent", taken(PIN_VECTOR), 0);
    ioapic::set_entry(2, entry);
    check("ioapic-ticks", wait_for(PATIENCE, || taken(PIN_VECTOR) >= 10), format_args!("{}", taken(PIN_VECTOR)));
    ioapic::set_entry(2, entry | ioapic::MASKED);
    cpu::disable_interrupts();
    // Logical destination, and one that is nobody's.
    apic::write(register::LDR, 0x0100_0000);
    ioapic::set_entry(2, 1 << 56 | 1 << 11 | u64::from(PIN_VECTOR));
    let before = taken(PIN_VECTOR);
    cpu::enable_interrupts();
    check("logical-destination", wait_for(PATIENCE, || taken(PIN_VECTOR) > before), format_args!(""));
    ioapic::set_entry(2, 2 << 56 | 1 << 11 | u64::from(PIN_VECTOR));
    clock::wait_micros(TICK);
    let before = taken(PIN_VECTOR);
    clock::wait_micros(3 * TICK);
    equal("destination-of-nobody", taken(PIN_VECTOR) - before, 0);
    ioapic::mask_all();
    cpu::disable_interrupts();
    serial_line(u64::from(apic::id()) << 56);
}

/// COM1's transmitter interrupt: pin 4, level-sensitive here, with Remote IRR until the end of interrupt.
fn serial_line(destination: u64) {
    const ENABLE: u16 = 0x3f9;
    const IDENTIFY: u16 = 0x3fa;
    const MODEM: u16 = 0x3fc;
    static REMOTE: AtomicU64 = AtomicU64::new(0);
    trap::on(PIN_VECTOR, |_| {
        REMOTE.store(ioapic::entry(4) & ioapic::REMOTE_IRR, Ordering::SeqCst);
        port::read8(IDENTIFY);
        apic::end();
    });
    let before = taken(PIN_VECTOR);
    ioapic::set_entry(4, destination | ioapic::LEVEL | u64::from(PIN_VECTOR));
    port::write8(MODEM, 0x0b);
    cpu::enable_interrupts();
    port::write8(ENABLE, 2);
    let came = wait_for(PATIENCE, || taken(PIN_VECTOR) > before);
    port::write8(ENABLE, 0);
    cpu::disable_interrupts();
    check("uart-interrupt", came, format_args!("{}", taken(PIN_VECTOR)));
    equal("remote-irr-in-service", REMOTE.load(Ordering::SeqCst), ioapic::REMOTE_IRR);
    equal("remote-irr-after-eoi", ioapic::entry(4) & ioapic::REMOTE_IRR, 0);
    ioapic::mask_all();
}

/// The legacy controllers through LINT0 as ExtINT, with the APIC enabled.
fn ext_int() {
    apic::write(register::LVT_LINT0, apic::EXTINT);
    pic::initialise(PIC_BASE);
    trap::on(PIC_BASE, on_tick);
    let before = taken(PIC_BASE);
    pic::mask(0xfffe);
    cpu::enable_interrupts();
    let came = wait_for(PATIENCE, || taken(PIC_BASE) >= before + 5);
    check("extint-through-lint0", came, format_args!("{}", taken(PIC_BASE) - before));
    apic::write(register::LVT_LINT0, apic::EXTINT | apic::MASKED);
    clock::wait_micros(TICK);
    let before = taken(PIC_BASE);
    clock::wait_micros(3 * TICK);
    equal("masked-lint0-is-silent", taken(PIC_BASE) - before, 0);
    cpu::disable_interrupts();
    pic::mask(0xffff);
}

/// A software-disabled APIC sends and takes nothing, and masks its local vector table.
fn masked_apic() {
    apic::write(register::SVR, u32::from(apic::SPURIOUS));
    equal("lvt-masked-when-disabled", apic::read(register::LVT_TIMER) & apic::MASKED, apic::MASKED);
    apic::write(register::LVT_TIMER, u32::from(LOW));
    equal("lvt-stays-masked", apic::read(register::LVT_TIMER) & apic::MASKED, apic::MASKED);
    apic::enable();
    apic::send_self(LOW.into());
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    equal("enabled-again", arrived(), LOW.into());
    let version = apic::read(register::VERSION);
    check(
        "lapic-version",
        (0x10..=0x1f).contains(&(version & 0xff)) && version >> 16 & 0xff >= 3,
        format_args!("{version:#x}"),
    );
    // A vector below 16 is an error: bit 5, send illegal vector, or bit 6, received.
    apic::write(register::ESR, 0);
    apic::send_self(3);
    apic::write(register::ESR, 0);
    let errors = apic::read(register::ESR);
    check("illegal-vector-is-an-error", errors & 0x60 != 0, format_args!("{errors:#x}"));
}
