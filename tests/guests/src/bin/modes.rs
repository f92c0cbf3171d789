//! Exits from every processor mode: real, unreal, 16-bit and 32-bit protected, each kind of paging, compatibility mode.
//!
//! In each mode the guest reads a port, executes CPUID, and reads and writes the local APIC where it can be reached.

#![no_std]
#![no_main]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};
use guest::apic::{self, register};
use guest::report::equal;
use guest::{cpu, modes, pic};

guest::guest!("modes", run);

/// Where the 16-bit code runs: conventional memory, which nothing else of this program uses.
const LOW: u64 = 0x8000;

#[repr(C, align(4096))]
struct Table([AtomicU32; 1024]);
static DIRECTORY: Table = Table([const { AtomicU32::new(0) }; 1024]);
static PAGES: Table = Table([const { AtomicU32::new(0) }; 1024]);
static PAE_TOP: Table = Table([const { AtomicU32::new(0) }; 1024]);
static PAE_MIDDLE: [Table; 4] = [const { Table([const { AtomicU32::new(0) }; 1024]) }; 4];

/// What the code below takes and gives: CR3, CR4 bits, the APIC's linear address; then CPUID(0).EBX, port 0x21, APIC id.
#[unsafe(no_mangle)]
static MODES_SLOTS: [AtomicU32; 8] = [const { AtomicU32::new(0) }; 8];

global_asm!(
    r#"
    .text
    .code32
    # Probes the machine in 32-bit code: [MODES_SLOTS + 8] is the APIC's address.
    modes_probe32:
        push ebx
        xor eax, eax
        cpuid
        mov dword ptr [MODES_SLOTS + 12], ebx
        xor eax, eax
        in al, 0x21
        mov dword ptr [MODES_SLOTS + 16], eax
        mov ecx, dword ptr [MODES_SLOTS + 8]
        mov eax, dword ptr [ecx + 0x20]
        mov dword ptr [MODES_SLOTS + 20], eax
        mov dword ptr [ecx + 0x380], 0x13572468
        pop ebx
        ret
    .globl modes_flat
    modes_flat:
        call modes_probe32
        ret
    # With paging: CR3 and CR4 from the slots, everything restored afterwards.
    .globl modes_paged
    modes_paged:
        mov eax, cr3
        push eax
        mov eax, cr4
        push eax
        mov eax, dword ptr [MODES_SLOTS + 4]
        mov cr4, eax
        mov eax, dword ptr [MODES_SLOTS]
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        call modes_probe32
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        pop eax
        mov cr4, eax
        pop eax
        mov cr3, eax
        ret
    # To real mode and back: the 16-bit code was copied to 0x8000. The stack stays below 64 KiB for it.
    .globl modes_real
    modes_real:
        sidt [modes_idt32]
        lidt [modes_idt_real]
        mov dword ptr [modes_esp], esp
        push 0x20
        push 0x8000
        retf
    .globl modes_back
    modes_back:
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov fs, eax
        mov gs, eax
        mov esp, dword ptr [modes_esp]
        lidt [modes_idt32]
        ret

    .code16
    # Starts in 16-bit protected mode with base 0; results go to 0x7000.
    .globl modes_low_start
    modes_low_start:
        .byte 0xeb, 2           # jump over the handler's address, at 0x8002
        .word modes_low_handler - modes_low_start + 0x8000
        mov ax, 0x10
        mov fs, ax              # 4 GiB limit, kept over the switch to real mode
        mov ax, 0x28
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0x7000
        xor eax, eax
        cpuid
        mov dword ptr [0x7000], ebx
        xor eax, eax
        in al, 0x21
        mov dword ptr [0x7004], eax
        mov edi, 0xfee00000
        mov eax, dword ptr fs:[edi + 0x20]
        mov dword ptr [0x7008], eax
        mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        .byte 0xea              # far jump to 0:real
        .word modes_low_real - modes_low_start + 0x8000
        .word 0
    modes_low_real:
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0x7000
        xor eax, eax
        cpuid
        mov dword ptr [0x700c], ebx
        xor eax, eax
        in al, 0x21
        mov dword ptr [0x7010], eax
        mov edi, 0xfee00000
        mov eax, dword ptr fs:[edi + 0x20]
        mov dword ptr [0x7014], eax
        # A software interrupt through the vector table at 0, then the local APIC's timer with HLT.
        mov ax, word ptr [0x8002]
        mov word ptr [0x60 * 4], ax
        mov word ptr [0x60 * 4 + 2], 0
        mov dword ptr [0x7018], 0
        int 0x60
        mov dword ptr fs:[edi + 0x300], 0x44060
        sti
        nop
        cli
        # String output to COM1's scratch register, from DS:SI.
        mov byte ptr [0x7020], 0x41
        mov byte ptr [0x7021], 0x42
        mov si, 0x7020
        mov cx, 2
        mov dx, 0x3ff
        cld
        rep outsb
        xor eax, eax
        in al, dx
        mov dword ptr [0x701c], eax
        mov eax, cr0
        or al, 1
        mov cr0, eax
        .byte 0x66, 0xea        # far jump to 18:modes_back
        .long modes_back
        .word 0x18
    modes_low_handler:
        inc dword ptr [0x7018]
        mov dword ptr fs:[edi + 0xb0], 0
        iret
    .globl modes_low_end
    modes_low_end:

    .code64
    # Compatibility mode: 32-bit code under 4-level paging.
    .globl modes_compatibility
    modes_compatibility:
        push rbx
        push rbp
        mov [rip + modes_rsp], rsp
        mov esp, offset modes_stack_top
        push 0x18
        lea rax, [rip + modes_compatible]
        push rax
        retfq
    .code32
    modes_compatible:
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        call modes_probe32
        push 0x08
        mov eax, offset modes_long_again
        push eax
        retf
    .code64
    modes_long_again:
        mov rsp, [rip + modes_rsp]
        pop rbp
        pop rbx
        ret

    .data
    .balign 8
    modes_idt_real:
        .word 0x3ff
        .long 0
    .bss
    .balign 16
    modes_idt32: .zero 16
    modes_esp: .zero 8
    modes_rsp: .zero 8
    .zero 0x1000
    modes_stack_top:
    "#
);

unsafe extern "C" {
    static modes_flat: u8;
    static modes_paged: u8;
    static modes_real: u8;
    static modes_low_start: u8;
    static modes_low_end: u8;
    fn modes_compatibility();
}

fn slot(index: usize) -> u32 {
    MODES_SLOTS[index].load(Ordering::SeqCst)
}

/// Runs `go` with the APIC at linear `address` and compares what it saw with what 64-bit code sees.
fn probe(what: [&str; 4], address: u64, go: impl Fn()) {
    apic::write(register::TIMER_INITIAL, 0);
    for slot in &MODES_SLOTS[3..6] {
        slot.store(0xcccc_cccc, Ordering::SeqCst);
    }
    MODES_SLOTS[2].store(address as u32, Ordering::SeqCst);
    go();
    equal(what[0], slot(3), cpu::cpuid(0, 0).ebx);
    equal(what[1], slot(4), 0xfb);
    equal(what[2], slot(5), apic::read(register::ID));
    equal(what[3], apic::read(register::TIMER_INITIAL), 0x1357_2468);
}

fn run() {
    apic::enable();
    pic::initialise(0x30);
    pic::mask(0xfffb);
    apic::write(register::LVT_TIMER, apic::MASKED | 0x61);
    // SAFETY: here and below, the assembly above ends as its caller expects.
    probe(["flat-cpuid", "flat-in", "flat-mmio-read", "flat-mmio-write"], apic::BASE, || unsafe {
        modes::call_flat32(&raw const modes_flat as u64);
    });
    compatibility();
    two_level();
    pae();
    low();
}

fn compatibility() {
    probe(
        ["compatibility-cpuid", "compatibility-in", "compatibility-mmio-read", "compatibility-mmio-write"],
        apic::BASE,
        || unsafe { modes_compatibility() },
    );
}

/// 32-bit paging: everything by 4 MiB pages, the APIC once by a large and once by a small page.
fn two_level() {
    const LARGE: u32 = 0x83;
    for (index, entry) in DIRECTORY.0.iter().enumerate() {
        entry.store((index as u32) << 22 | LARGE, Ordering::SeqCst);
    }
    DIRECTORY.0[0x300].store(0xfec0_0000 | LARGE, Ordering::SeqCst);
    DIRECTORY.0[0x301].store(PAGES.0.as_ptr() as u32 | 3, Ordering::SeqCst);
    PAGES.0[5].store(apic::BASE as u32 | 3, Ordering::SeqCst);
    MODES_SLOTS[0].store(DIRECTORY.0.as_ptr() as u32, Ordering::SeqCst);
    MODES_SLOTS[1].store(0x610, Ordering::SeqCst); // PSE, OSFXSR, OSXMMEXCPT
    let go = || unsafe {
        modes::call_flat32(&raw const modes_paged as u64);
    };
    probe(["pse-cpuid", "pse-in", "pse-large-mmio-read", "pse-large-mmio-write"], 0xc020_0000, go);
    probe(["pse-small-cpuid", "pse-small-in", "pse-small-mmio-read", "pse-small-mmio-write"], 0xc040_5000, go);
    equal("pse-small-accessed-and-dirty", PAGES.0[5].load(Ordering::SeqCst) & 0x60, 0x60);
}

/// PAE paging in 32-bit mode.
fn pae() {
    for (quarter, table) in PAE_MIDDLE.iter().enumerate() {
        PAE_TOP.0[quarter * 2].store(table.0.as_ptr() as u32 | 1, Ordering::SeqCst);
        for index in 0..512 {
            table.0[index * 2].store(((quarter * 512 + index) << 21) as u32 | 0x83, Ordering::SeqCst);
        }
    }
    PAE_MIDDLE[3].0[0].store(apic::BASE as u32 | 0x83, Ordering::SeqCst);
    MODES_SLOTS[0].store(PAE_TOP.0.as_ptr() as u32, Ordering::SeqCst);
    MODES_SLOTS[1].store(0x620, Ordering::SeqCst); // PAE, OSFXSR, OSXMMEXCPT
    probe(["pae-cpuid", "pae-in", "pae-mmio-read", "pae-mmio-write"], 0xc000_0000, || unsafe {
        modes::call_flat32(&raw const modes_paged as u64);
    });
}

/// 16-bit protected mode, real mode, and real mode with a segment of 4 GiB.
fn low() {
    let (start, end) = (&raw const modes_low_start, &raw const modes_low_end);
    // SAFETY: conventional memory is free, and the code is copied whole.
    unsafe {
        core::ptr::copy_nonoverlapping(start, LOW as *mut u8, end as usize - start as usize);
        modes::call_flat32(&raw const modes_real as u64);
    }
    // SAFETY: the 16-bit code left its results there.
    let result = |offset: u64| unsafe { ((0x7000 + offset) as *const u32).read_volatile() };
    equal("protected16-cpuid", result(0), cpu::cpuid(0, 0).ebx);
    equal("protected16-in", result(4), 0xfb);
    equal("protected16-mmio-read", result(8), apic::read(register::ID));
    equal("real-cpuid", result(12), cpu::cpuid(0, 0).ebx);
    equal("real-in", result(16), 0xfb);
    equal("unreal-mmio-read", result(20), apic::read(register::ID));
    equal("real-interrupts", result(24), 2);
    equal("real-outsb", result(28), 0x42);
}
