//! Starting the other processors and giving them work.

use crate::{apic, clock, cpu, entry, trap};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The page that a start-up IPI names.
const PAGE: u8 = 9;
/// Most processors that are started.
pub const MOST: usize = 16;
/// ICR: INIT, and start-up.
const INIT: u32 = 5 << 8;
const START_UP: u32 = 6 << 8;

global_asm!(
    r#"
    .text
    .code16
    smp_low:
        .byte 0xeb, 6           # over the operand of LGDT
        .word 79
        .long boot_gdt
        cli
        mov ax, cs
        mov ds, ax
        lgdt [2]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        .byte 0x66, 0xea        # far jump to 18:smp_middle
        .long smp_middle
        .word 0x18
    smp_low_end:
    .code32
    smp_middle:
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov eax, cr4
        or eax, 0x620
        mov cr4, eax
        mov eax, offset boot_level4
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100
        wrmsr
        mov eax, 0x80010033
        mov cr0, eax
        push_far:
        mov esp, offset smp_bounce_top
        # Only one processor is started at a time, so this stack is shared.
        push 0x08
        mov eax, offset smp_high
        push eax
        retf
    .code64
    smp_high:
        mov eax, 1
        lock xadd [rip + {arrived}], eax
        mov edi, eax
        and eax, 15
        inc eax
        shl eax, 13
        lea rsp, [rip + smp_stacks]
        add rsp, rax
        fninit
        call {rust}
        ud2

    .bss
    .balign 16
    .zero 256
    smp_bounce_top:
    .balign 16
    smp_stacks: .zero 16 * 0x2000
    "#,
    arrived = sym ARRIVED,
    rust = sym arrive,
);

unsafe extern "C" {
    static smp_low: u8;
    static smp_low_end: u8;
}

/// How many starts there have been, of whichever processor.
static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// What each start's processor does next: a function's address, or 0.
static WORK: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
/// Local APIC ids by start.
static IDS: [AtomicU32; MOST] = [const { AtomicU32::new(u32::MAX) }; MOST];

extern "C" fn arrive(index: u32) -> ! {
    let index = index as usize & (MOST - 1);
    trap::reload_table();
    apic::enable();
    IDS[index].store(apic::id().into(), Ordering::SeqCst);
    loop {
        let work = WORK[index].load(Ordering::SeqCst);
        if work == 0 {
            cpu::pause();
            continue;
        }
        // SAFETY: only `start_work` stores there, and only functions of this type.
        let work: fn() = unsafe { core::mem::transmute(work as usize) };
        work();
        WORK[index].store(0, Ordering::SeqCst);
    }
}

/// How many starts there have been.
pub fn arrivals() -> u32 {
    ARRIVED.load(Ordering::SeqCst)
}

/// INIT alone: the processor waits for a start-up afterwards.
pub fn init(id: u8) {
    apic::send(id, apic::ASSERT | INIT);
}

/// The start-up IPI alone.
pub fn start_up(id: u8) {
    apic::send(id, apic::ASSERT | START_UP | u32::from(PAGE));
}

/// Starts the processor `id` as the SDM's 9.4.4 "MP Initialization Example" does; the number of its start, or `None`.
pub fn start(id: u8) -> Option<usize> {
    prepare();
    let before = arrivals();
    init(id);
    clock::wait_micros(10_000);
    start_up(id);
    clock::wait_micros(200);
    if arrivals() == before {
        start_up(id);
    }
    let index = before as usize & (MOST - 1);
    let there = clock::wait_for(500_000, || arrivals() > before && IDS[index].load(Ordering::SeqCst) == id.into());
    there.then_some(index)
}

/// Puts the real-mode code in place; several times does no harm.
pub fn prepare() {
    // NMI and double fault have a stack of their own in the one task state segment, which only the first processor has.
    trap::restore_gate(trap::vector::NMI);
    trap::restore_gate(trap::vector::DF);
    let (from, to) = (&raw const smp_low, &raw const smp_low_end);
    // SAFETY: conventional memory is free.
    unsafe { core::ptr::copy_nonoverlapping(from, (u64::from(PAGE) << 12) as *mut u8, to as usize - from as usize) };
}

/// Lets the processor of start `index` call `work`.
pub fn start_work(index: usize, work: fn()) {
    WORK[index].store(work as usize as u64, Ordering::SeqCst);
}

/// Waits for the end of its work; whether it ended within the time.
pub fn finished(index: usize, micros: u64) -> bool {
    clock::wait_for(micros, || WORK[index].load(Ordering::SeqCst) == 0)
}

/// The root of the page tables, for checks.
pub fn root() -> u64 {
    entry::root_table()
}
