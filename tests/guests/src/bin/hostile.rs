//! What a guest may try against its host, one case a run (`case=<name>`). The host has to live through each.
//!
//! A case that leaves the guest alive ends with `RESULT hostile pass`; it says nothing about values, only that the machine still
//! answers afterwards. A case that may cost the guest its machine prints `GOING <case>` before.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use guest::apic::register;
use guest::paging::{self, Page};
use guest::report::{self, check, equal};
use guest::trap::{self, Frame, vector};
use guest::{apic, attempt, clock, cpu, entry, hpet, ioapic, pic, pit, port, rtc, user};

guest::guest!("hostile", run);

const VECTOR: u8 = 0x61;
/// How long storms last.
const STORM: u64 = 200_000;
const EXTREMES: [u32; 6] = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, u32::MAX];

static mut MEMORY: [Page; 2] = [const { Page([0; 4096]) }; 2];

/// Name, work, and whether the guest may end by it.
type Case = (&'static str, fn(), bool);

static CASES: &[Case] = &[
    ("ports", ports, false),
    ("msrs", msrs, false),
    ("cpuid", cpuids, false),
    ("control-registers", control_registers, false),
    ("lapic", lapic, false),
    ("ioapic", io_apic, false),
    ("hpet", hpet_registers, false),
    ("pci", pci, false),
    ("pit", pit_registers, false),
    ("rtc", rtc_registers, false),
    ("timer-storm", timer_storm, false),
    ("ipi-storm", ipi_storm, false),
    ("nmi-storm", nmi_storm, false),
    ("pin-storm", pin_storm, true),
    ("crossing", crossing, false),
    ("split-lock", split_lock, true),
    ("string-over-devices", string_over_devices, false),
    ("string-past-memory", string_past_memory, false),
    ("endless-string", endless_string, false),
    ("beyond-maxphyaddr", beyond, false),
    ("vmx-and-svm", virtualization, false),
    ("spin", spin, false),
    ("log-flood", log_flood, false),
    ("debug-loop", debug_loop, true),
    ("alignment-loop", alignment_loop, true),
    ("exception-loop", exception_loop, true),
    ("page-fault-loop", page_fault_loop, true),
    ("stack-nowhere", stack_nowhere, true),
    ("gates-nowhere", gates_nowhere, true),
    ("descriptors-nowhere", descriptors_nowhere, true),
    ("task-switch", task_switch, true),
    ("device-as-stack", device_as_stack, true),
    ("device-as-gates", device_as_gates, true),
    ("cr3-nonsense", cr3_nonsense, true),
    ("halt-for-ever", halt_for_ever, true),
];

fn run() {
    apic::enable();
    ioapic::mask_all();
    pic::initialise(0x30);
    trap::on(VECTOR, |_| apic::end());
    trap::on(apic::SPURIOUS, |_| {});
    let wanted = entry::option("case").unwrap_or("all");
    let mut found = false;
    for (name, work, deadly) in CASES {
        if *name != wanted && (wanted != "all" || *deadly) {
            continue;
        }
        found = true;
        if *deadly {
            report::line(format_args!("GOING {name}"));
        }
        work();
        alive(name);
    }
    check("known-case", found, format_args!("{wanted}"));
}

/// Brings the machine back to something quiet and looks whether it still works.
fn alive(name: &str) {
    cpu::disable_interrupts();
    port::write8(0x70, 0);
    let _ = cpu::write_msr(apic::BASE_MSR, apic::BASE | 0x900);
    apic::enable();
    apic::write(register::TIMER_INITIAL, 0);
    ioapic::mask_all();
    hpet::write(hpet::CONFIGURATION, 0);
    (0..3).for_each(|timer| hpet::write(hpet::timer_configuration(timer), 0));
    pic::initialise(0x30);
    rtc::write(rtc::B, 2);
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    // What a case left in service.
    (0..16).for_each(|_| apic::end());
    apic::send_self(VECTOR.into());
    let before = trap::taken(VECTOR);
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    check(name, trap::taken(VECTOR) > before && cpu::cpuid(0, 0).eax > 0, format_args!("no interrupt afterwards"));
}

/// Ports that end or restart the machine, and those of the console this guest speaks through.
fn spared(number: u16) -> bool {
    matches!(number, 0xf4 | 0xcf9 | 0x64 | 0x92 | 0xb2 | 0xb3 | 0x3f8..=0x3ff | 0x600..=0x67f)
}

fn ports() {
    for number in (0..=u16::MAX).step_by(1).filter(|number| *number < 0x1000 || number % 61 == 0) {
        if !spared(number) {
            port::read8(number);
        }
        if !(number..=number.saturating_add(3)).any(spared) {
            port::read16(number);
            port::read32(number);
        }
    }
    for value in [0, 0x55, 0xff] {
        for number in (0..0x800).filter(|number| !spared(*number)) {
            port::write8(number, value);
        }
        for number in (0..0x800).filter(|number| !(*number..=number + 3).any(spared)) {
            port::write32(number, u32::from(value) * 0x0101_0101);
        }
    }
}

fn msrs() {
    for base in [0, 0x800, 0x4000_0000, 0x4b56_4d00, 0xc000_0000, 0xc000_0080, 0xc001_0000, 0xc001_1000] {
        for number in base..base + 0x300 {
            let Ok(value) = cpu::read_msr(number) else { continue };
            // Written back, and with every bit turned that no code here depends on.
            let _ = cpu::write_msr(number, value);
            if !matches!(number, cpu::EFER | apic::BASE_MSR | 0x4000_0000..=0x4000_0118) {
                let _ = cpu::write_msr(number, !value);
                let _ = cpu::write_msr(number, value);
            }
        }
    }
    for bit in 0..64 {
        let base = cpu::read_msr(apic::BASE_MSR).unwrap_or(0);
        if bit != 11 && bit != 10 {
            let _ = cpu::write_msr(apic::BASE_MSR, base ^ 1 << bit);
            let _ = cpu::write_msr(apic::BASE_MSR, apic::BASE | 0x900);
        }
    }
}

fn cpuids() {
    for leaf in (0..0x40).chain(0x4000_0000..0x4000_0020).chain(0x8000_0000..0x8000_0040).chain([
        u32::MAX,
        0x2000_0000,
        0xc000_0000,
    ]) {
        for subleaf in [0, 1, 2, 3, 62, 63, 0x8000_0000, u32::MAX] {
            cpu::cpuid(leaf, subleaf);
        }
    }
}

/// Each bit of CR0, CR4, CR8, DR6, DR7, EFER and XCR0 on its own, those left out without which the program cannot go on.
fn control_registers() {
    let (cr0, cr4) = (cpu::read_cr0(), cpu::read_cr4());
    let risky = report::excused("control-register-values");
    // DR7's bit 13 makes the next access to a debug register raise #DB, which clears the bit.
    trap::on(vector::DB, |_| cpu::write_dr6(0xffff_0ff0));
    for bit in 0..64 {
        // Bits 0 and 31 of CR0 and bit 5 of CR4 hold this program up.
        if !risky && !matches!(bit, 0 | 31) {
            // SAFETY: a refused value is caught, and others go back.
            unsafe { attempt!("mov cr0, {v}", v = in(reg) cr0 ^ 1 << bit) };
            cpu::write_cr0(cr0);
        }
        if !risky && bit != 5 {
            // SAFETY: as above.
            unsafe { attempt!("mov cr4, {v}", v = in(reg) cr4 ^ 1 << bit) };
            cpu::write_cr4(cr4);
        }
        // SAFETY: as above.
        unsafe {
            attempt!("mov cr8, {v}", v = in(reg) 1_u64 << bit);
            attempt!("mov dr6, {v}", v = in(reg) 1_u64 << bit);
            attempt!("mov dr7, {v}", v = in(reg) 1_u64 << bit & !0xff);
            attempt!("xsetbv", in("ecx") 0, in("eax") (1_u64 << bit) as u32 | 1, in("edx") ((1_u64 << bit) >> 32) as u32);
        }
        cpu::write_cr8(0);
        cpu::write_dr7(0x400);
        let efer = cpu::read_msr(cpu::EFER).unwrap_or(0);
        if !matches!(bit, 8 | 10) {
            let _ = cpu::write_msr(cpu::EFER, efer ^ 1 << bit);
            let _ = cpu::write_msr(cpu::EFER, efer);
        }
    }
    trap::off(vector::DB);
}

/// Every 32-bit place of a page of registers is read, and gets extreme values.
fn page_of_registers(base: u64, bytes: u64) {
    for offset in (0..bytes).step_by(4) {
        cpu::mmio_read32(base + offset);
        for value in EXTREMES {
            cpu::mmio_write32(base + offset, value);
        }
        cpu::mmio_read32(base + offset);
    }
}

fn lapic() {
    // Not ICR and self-IPI: INIT to oneself would end the program.
    for (from, to) in [(0, 0x300), (0x310, 0x3f0), (0x400, 0x1000)] {
        for offset in (from..to).step_by(4) {
            cpu::mmio_read32(apic::BASE + offset);
            for value in EXTREMES {
                // An LVT entry that delivers INIT does the same.
                cpu::mmio_write32(
                    apic::BASE + offset,
                    if (0x320..0x380).contains(&offset) { value & !0x700 | apic::MASKED } else { value },
                );
            }
        }
    }
    apic::write(register::TIMER_DIVIDE, apic::DIVIDE_BY_1);
    for lvt in [0x61, 0x61 | apic::PERIODIC, 0x61 | 2 << 17, 0x61 | 3 << 17] {
        for count in EXTREMES {
            apic::write(register::LVT_TIMER, lvt);
            apic::write(register::TIMER_INITIAL, count);
            cpu::enable_interrupts();
            clock::wait_micros(200);
            cpu::disable_interrupts();
        }
    }
}

fn io_apic() {
    for index in 0..=255 {
        for value in EXTREMES {
            ioapic::read(index);
            // No INIT, SMI or NMI to this processor: those delivery modes are tried with a destination of nobody.
            ioapic::write(index, if index >= 0x10 && index % 2 == 0 { value & !0x700 } else { value });
        }
    }
    page_of_registers(ioapic::BASE + 0x20, 0xfe0 / 4 * 4);
    for pin in 0..24 {
        for mode in 0..8 {
            ioapic::set_entry(pin, 0xee << 56 | mode << 8 | ioapic::LEVEL | u64::from(VECTOR));
        }
        ioapic::set_entry(pin, ioapic::MASKED);
    }
}

fn hpet_registers() {
    page_of_registers(hpet::BASE, 0x400);
    hpet::write(hpet::CONFIGURATION, 0);
    for timer in 0..3 {
        for configuration in [0x4, 0x8, 0x4c, 0x6, 0x14e, 0x404c, u64::MAX] {
            for value in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
                hpet::write(hpet::timer_configuration(timer), configuration);
                hpet::write(hpet::comparator(timer), value);
                hpet::write(hpet::comparator(timer), value);
                hpet::write(hpet::COUNTER, value.wrapping_sub(1));
                hpet::write(hpet::CONFIGURATION, 3);
                hpet::read(hpet::comparator(timer));
                cpu::enable_interrupts();
                clock::wait_micros(100);
                cpu::disable_interrupts();
                hpet::write(hpet::CONFIGURATION, 0);
            }
        }
    }
}

/// Configuration space by ports and by ECAM: every register of every function of bus 0 is turned over and put back.
fn pci() {
    for function in 0..256_u32 {
        for offset in (0..256_u32).step_by(4) {
            port::write32(0xcf8, 0x8000_0000 | function << 8 | offset);
            let before = port::read32(0xcfc);
            if before == u32::MAX && offset == 0 {
                break;
            }
            // The LPC bridge's PMBASE and ACPI control move the very ports that end this guest; they are put back at once.
            for value in EXTREMES {
                port::write32(0xcfc, value);
            }
            port::write32(0xcfc, before);
        }
    }
    for place in (0..0x10_0000_u64).step_by(0x404) {
        cpu::mmio_read32(0xb000_0000 + place);
    }
    cpu::mmio_read32(0xb000_0000 + 0xfff_fffc);
}

fn pit_registers() {
    for control in 0..=255 {
        port::write8(0x43, control);
        for channel in 0x40..0x43 {
            for value in [0, 1, 0xff] {
                port::write8(channel, value);
                port::read8(channel);
            }
        }
        port::write8(0x61, control);
        port::read8(0x61);
    }
    for mode in 0..6 {
        for count in [0, 1, 2, 3, u16::MAX] {
            pit::program(0, mode, count);
            pit::count(0);
        }
    }
    pit::program(0, 2, 0);
    port::write8(0x61, 0);
}

fn rtc_registers() {
    for index in 0..=255 {
        for value in [0, 0x7f, 0xff, 0x55] {
            rtc::write(index, value);
            rtc::read(index);
        }
    }
    // The fastest rate with every interrupt on.
    rtc::write(rtc::A, 0x21);
    rtc::write(rtc::B, 0x72);
    clock::wait_micros(20_000);
    rtc::read(rtc::C);
    rtc::write(rtc::A, 0x26);
    rtc::write(rtc::B, 2);
}

/// Timers at their fastest, all at once.
fn timer_storm() {
    pit::program(0, 2, 2);
    ioapic::set_entry(2, u64::from(apic::id()) << 56 | u64::from(VECTOR));
    apic::write(register::TIMER_DIVIDE, apic::DIVIDE_BY_1);
    apic::write(register::LVT_TIMER, apic::PERIODIC | u32::from(VECTOR));
    apic::write(register::TIMER_INITIAL, 1);
    hpet::write(hpet::CONFIGURATION, 0);
    hpet::write(hpet::COUNTER, 0);
    hpet::write(hpet::timer_configuration(0), 0x4c | 20 << 9);
    hpet::write(hpet::comparator(0), 1);
    hpet::write(hpet::comparator(0), 1);
    ioapic::set_entry(20, u64::from(apic::id()) << 56 | u64::from(VECTOR));
    hpet::run();
    cpu::enable_interrupts();
    storm();
    cpu::disable_interrupts();
    pit::program(0, 2, 0);
}

/// Lets a storm blow: the guest itself may get nowhere, so it is bounded by its own instructions and by time.
fn storm() {
    let length = clock::tsc_of_micros(STORM);
    let start = cpu::tsc();
    let mut turns = 0;
    while cpu::tsc().wrapping_sub(start) < length && turns < 100_000_u32 {
        turns += 1;
    }
}

fn ipi_storm() {
    for vector in 0x40..0xa0 {
        trap::on(vector, |_| apic::end());
    }
    cpu::enable_interrupts();
    for turn in 0..20_000_u32 {
        // To oneself by every shorthand, and without one to a logical destination.
        let logical = if turn % 4 == 0 { 0x800 } else { 0 };
        apic::write(register::ICR_LOW, (turn % 4) << 18 | apic::ASSERT | logical | (0x40 + turn % 0x60));
    }
    cpu::disable_interrupts();
}

fn nmi_storm() {
    trap::on(vector::NMI, |_| {});
    for _ in 0..20_000 {
        apic::send_self(apic::NMI);
    }
    trap::off(vector::NMI);
}

/// A level-triggered pin that nobody quiets: the guest handles interrupts and gets no further, as on a real machine.
fn pin_storm() {
    ioapic::set_entry(4, u64::from(apic::id()) << 56 | ioapic::LEVEL | u64::from(VECTOR));
    port::write8(0x3fc, 0x0b);
    port::write8(0x3f9, 2);
    cpu::enable_interrupts();
    storm();
    cpu::disable_interrupts();
    port::write8(0x3f9, 0);
    ioapic::mask_all();
}

/// Accesses that cross registers, pages, and from memory into devices and back.
fn crossing() {
    for base in [apic::BASE, ioapic::BASE, hpet::BASE, 0xb000_0000] {
        for offset in [1, 2, 3, 0xd, 0xff9, 0xffd, 0xffe, 0xfff] {
            let at = base + offset;
            // SAFETY: device registers are mapped; what is written goes nowhere but there.
            unsafe {
                asm!("mov rax, [{0}]", "mov eax, [{0}]", "mov ax, [{0}]", "mov al, [{0}]", in(reg) at, out("rax") _);
                asm!("movups xmm0, [{0}]", in(reg) at);
            }
        }
    }
    for at in device_between_memory() {
        // SAFETY: memory of this program and a device's page.
        unsafe {
            asm!("mov rax, [{0}]", "mov [{0}], rax", "add dword ptr [{0}], 1", in(reg) at, out("rax") _);
            asm!("movups xmm0, [{0}]", "movups [{0}], xmm0", in(reg) at);
        }
    }
}

/// A locked operation on the last bytes of a page of memory and the first of a device: no processor's bus does that to a device.
fn split_lock() {
    for at in device_between_memory() {
        // SAFETY: memory of this program and a device's page.
        unsafe { asm!("lock add dword ptr [{0}], 1", "xchg [{0}], eax", in(reg) at, out("rax") _) };
    }
}

/// A page of memory, a device's and another of memory, one behind the other: places 3 bytes before the device's start and its end.
fn device_between_memory() -> [u64; 2] {
    let memory = &raw mut MEMORY as u64;
    paging::set(20, memory | paging::PRESENT | paging::WRITABLE);
    paging::set(21, apic::BASE | paging::PRESENT | paging::WRITABLE);
    paging::set(22, (memory + 4096) | paging::PRESENT | paging::WRITABLE);
    [paging::window(21) - 3, paging::window(22) - 3]
}

fn string_over_devices() {
    let memory = &raw mut MEMORY as u64;
    for device in [apic::BASE + 0x400, ioapic::BASE + 0x20, hpet::BASE + 0x200, 0xfe00_0000] {
        // SAFETY: 512 doublewords in either direction between memory and reserved registers.
        unsafe {
            asm!("rep movsd", inout("rsi") device => _, inout("rdi") memory => _, inout("rcx") 256_u64 => _);
            asm!("rep movsd", inout("rsi") memory => _, inout("rdi") device => _, inout("rcx") 256_u64 => _);
            asm!("rep stosb", in("al") 0_u8, inout("rdi") device => _, inout("rcx") 700_u64 => _);
            asm!("repe cmpsb", inout("rsi") device => _, inout("rdi") memory => _, inout("rcx") 700_u64 => _);
            asm!("repne scasb", in("al") 0x77_u8, inout("rdi") device => _, inout("rcx") 700_u64 => _);
        }
    }
}

/// String I/O whose memory ends: in a page that is absent, in a device, and past all memory.
fn string_past_memory() {
    let memory = &raw mut MEMORY as u64;
    paging::set(30, memory | paging::PRESENT | paging::WRITABLE);
    for next in
        [0, apic::BASE | paging::PRESENT | paging::WRITABLE, 0xfd_0000_0000 | paging::PRESENT | paging::WRITABLE]
    {
        paging::set(31, next);
        let at = paging::window(31) - 8;
        // SAFETY: a fault is caught; everything else lands in memory of this program or in a device's reserved places.
        unsafe {
            attempt!("rep insb", in("dx") 0x80_u16, inout("rdi") at => _, inout("rcx") 16_u64 => _);
            attempt!("rep outsb", in("dx") 0x80_u16, inout("rsi") at => _, inout("rcx") 16_u64 => _);
            attempt!("rep insd", in("dx") 0xcfc_u16, inout("rdi") at + 2 => _, inout("rcx") 4_u64 => _);
        }
    }
}

/// A repeat count that would take for ever, ended by an interrupt's handler.
fn endless_string() {
    static ENTERED: AtomicU64 = AtomicU64::new(0);
    fn cut(frame: &mut Frame) {
        ENTERED.store(frame.rcx, Ordering::SeqCst);
        frame.rcx = 1;
        apic::end();
    }
    trap::on(VECTOR, cut);
    apic::write(register::TIMER_DIVIDE, apic::DIVIDE_BY_1);
    apic::write(register::LVT_TIMER, u32::from(VECTOR));
    apic::write(register::TIMER_INITIAL, 20_000_000);
    // SAFETY: OUTS reads mapped memory; the interrupt comes long before its end.
    unsafe {
        asm!("sti", "22:", "rep outsb", "cli", in("dx") 0x80_u16, inout("rsi") 0x10_0000_u64 => _, inout("rcx") 1_u64 << 40 => _);
    }
    let left = ENTERED.load(Ordering::SeqCst);
    check("repeat-was-interrupted", left > 1 && left < 1 << 40, format_args!("{left:#x}"));
    trap::on(VECTOR, |_| apic::end());
}

fn beyond() {
    let bits = cpu::leaf(0x8000_0008, 0).eax & 0xff;
    for bit in 32..bits {
        paging::set(40, 1 << bit | paging::PRESENT | paging::WRITABLE);
        // SAFETY: nothing is there.
        unsafe { attempt!("mov eax, [{a}]\nmov [{a}], eax", a = in(reg) paging::window(40), out("eax") _) };
    }
    // Reserved address bits fault; where the test bed does not see that, nothing may be there either.
    for bit in bits..52 {
        paging::set(40, 1 << bit | paging::PRESENT | paging::WRITABLE);
        // SAFETY: as above.
        unsafe { attempt!("mov eax, [{a}]", a = in(reg) paging::window(40), out("eax") _) };
    }
}

fn virtualization() {
    let memory = &raw mut MEMORY;
    for _ in 0..500 {
        // SAFETY: each raises an exception, which is caught.
        unsafe {
            attempt!("vmrun", in("rax") memory);
            attempt!("vmload", in("rax") memory);
            attempt!("vmsave", in("rax") memory);
            attempt!("stgi");
            attempt!("clgi");
            attempt!("skinit", in("eax") 0);
            attempt!("invlpga", in("rax") 0, in("ecx") u32::MAX);
            attempt!("vmmcall", in("rax") u64::MAX);
            attempt!("vmcall", in("rax") u64::MAX);
            attempt!("vmlaunch");
            attempt!("vmresume");
            attempt!("vmxoff");
            attempt!("vmread rax, rax", out("rax") _);
            attempt!("getsec", in("eax") 0);
            attempt!("rsm");
            attempt!("wbinvd");
            attempt!("invd");
            attempt!("monitor", in("rax") memory, in("ecx") 0, in("edx") 0);
            attempt!("rdpmc", in("ecx") 0, out("eax") _, out("edx") _);
        }
    }
}

/// Two tenths of a second with interrupts off and not one exit.
fn spin() {
    clock::wait_micros(STORM);
}

/// What a careless host would log a line for, ten thousand times.
fn log_flood() {
    for turn in 0..10_000_u32 {
        let _ = cpu::read_msr(0x1234_0000 + turn);
        port::write8(0x2e0, turn as u8);
        cpu::mmio_read32(0xfe00_0000 + u64::from(turn % 1000) * 4);
    }
    equal("still-here", port::read8(0x2e0), 0xff);
}

/// #DB whose own delivery meets a data breakpoint on its stack (CVE-2015-8104).
fn debug_loop() {
    let stack: u64;
    // SAFETY: reads the stack pointer.
    unsafe { asm!("mov {}, rsp", out(reg) stack) };
    trap::on(vector::DB, |frame| {
        cpu::write_dr6(0xffff_0ff0);
        if trap::taken(vector::DB) > 1000 {
            cpu::write_dr7(0x400);
        }
        frame.rflags |= 1 << 16;
    });
    for depth in 0..64 {
        cpu::write_dr0((stack & !0xf) - 8 * depth);
        cpu::write_dr7(0x400 | 1 | 0b1011 << 16);
        // SAFETY: the handler returns.
        unsafe { asm!("int3", options(nomem)) };
        cpu::write_dr7(0x400);
    }
    trap::off(vector::DB);
}

extern "C" fn misaligned_at_level_3() {
    // SAFETY: MEMORY is open to level 3; #AC's handler puts an end to it.
    unsafe { attempt!("mov eax, [{a} + 1]", a = in(reg) &raw const MEMORY, out("eax") _) };
}

/// #AC again and again (CVE-2015-5307).
fn alignment_loop() {
    cpu::write_cr0(cpu::read_cr0() | cpu::CR0_AM);
    for _ in 0..1000 {
        user::call(misaligned_at_level_3, 1 << 18);
    }
    cpu::write_cr0(cpu::read_cr0() & !cpu::CR0_AM);
}

/// #UD whose handler is #UD: for ever, until the stack is used up and the processor shuts down.
fn exception_loop() {
    trap::direct(vector::UD, ud2 as *const () as u64);
    ud2();
}

extern "C" fn ud2() {
    // SAFETY: the exception is the purpose.
    unsafe { asm!("ud2") };
}

/// Page faults whose handler lies in an absent page.
fn page_fault_loop() {
    paging::set(50, 0);
    trap::direct(vector::PF, paging::window(50));
    // SAFETY: the fault is the purpose.
    unsafe { asm!("mov al, [{}]", in(reg) paging::window(50), out("al") _) };
}

fn stack_nowhere() {
    // SAFETY: what follows is the purpose.
    unsafe { asm!("mov rsp, {}", "push rax", "int3", in(reg) 0xfe00_0800_u64, options(noreturn)) };
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

fn load_gates(base: u64) {
    let pointer = Pointer { limit: 4095, base };
    // SAFETY: what follows is the purpose.
    unsafe { asm!("lidt [{}]", "int3", in(reg) &raw const pointer) };
}

fn gates_nowhere() {
    load_gates(0xfe00_0000);
}

fn device_as_gates() {
    load_gates(apic::BASE);
}

fn descriptors_nowhere() {
    let pointer = Pointer { limit: 0xffff, base: 0xfe00_0000 };
    // SAFETY: what follows is the purpose.
    unsafe { asm!("lgdt [{}]", "mov ds, {s:e}", "int3", in(reg) &raw const pointer, s = in(reg) 0x10) };
}

core::arch::global_asm!(
    r#"
    .text
    .code32
    .globl hostile_task
    hostile_task:
        mov ax, 0x40
        ltr ax
        .byte 0xea              # far jump to 40:0
        .long 0
        .word 0x40
        ret
    .code64
    "#
);

/// A far jump to a task state segment, in 32-bit mode, where that switches tasks.
fn task_switch() {
    unsafe extern "C" {
        static hostile_task: u8;
    }
    // SAFETY: what follows is the purpose.
    unsafe { guest::modes::call_flat32(&raw const hostile_task as u64) };
}

fn device_as_stack() {
    // SAFETY: what follows is the purpose.
    unsafe {
        asm!("mov rsp, {}", "push rax", "pop rax", "call 22f", "22:", "int3", "ud2", in(reg) apic::BASE + 0x3a0, options(noreturn))
    };
}

fn cr3_nonsense() {
    cpu::write_cr3(0x000f_ffff_ffff_f000);
}

fn halt_for_ever() {
    cpu::disable_interrupts();
    cpu::halt();
}
