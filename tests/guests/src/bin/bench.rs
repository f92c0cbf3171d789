//! Round trips: the minimum of 1000 RDTSC differences around one operation, in 32-bit flat mode and in 64-bit mode with paging.
//!
//! Prints `BENCH <mode>.<operation> <minimum>`, beginning with the empty loop, whose figure is contained in all others. Meant
//! for a machine whose TSC counts instructions. An operation that raises an exception here (the other vendor's hypercall)
//! is left out. Options: `only=<operation>` measures one, `rounds=<n>` repeats the loop for exit counting.

#![no_std]
#![no_main]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};
use guest::cpu::{self, cpuid, write_msr};
use guest::paging::Page;
use guest::trap::Frame;
use guest::{apic, attempt, entry, hpet, modes, report, trap};

guest::guest!("bench", run);

/// The vector of the self-IPI.
const VECTOR: u8 = 0x51;

/// Defines an operation for both modes: set-up that runs once, then what is measured. In: nothing. May change EAX, EBX, ECX,
/// EDX; must keep ESI, EDI and EBP, where the loop keeps start, minimum and count.
macro_rules! operation {
    ($name:literal, $setup:literal, $code32:literal, $code64:literal) => {
        global_asm!(concat!(
            ".text\n.balign 64\n.globl bench32_",
            $name,
            "\n.code32\nbench32_",
            $name,
            ":\n",
            "push ebp\npush esi\npush edi\npush ebx\nmov edi, -1\nmov ebp, 1000\n",
            $setup,
            "\n22:\nrdtsc\nmov esi, eax\n",
            $code32,
            "\nrdtsc\nsub eax, esi\ncmp eax, edi\njae 23f\nmov edi, eax\n23:\ndec ebp\njnz 22b\n",
            "mov eax, edi\npop ebx\npop edi\npop esi\npop ebp\nret\n",
            ".balign 64\n.globl bench64_",
            $name,
            "\n.code64\nbench64_",
            $name,
            ":\n",
            "push rbp\npush rsi\npush rdi\npush rbx\nmov edi, -1\nmov ebp, 1000\n",
            $setup,
            "\n22:\nrdtsc\nmov esi, eax\n",
            $code64,
            "\nrdtsc\nsub eax, esi\ncmp eax, edi\njae 23f\nmov edi, eax\n23:\ndec ebp\njnz 22b\n",
            "mov eax, edi\npop rbx\npop rdi\npop rsi\npop rbp\nret\n",
        ),);
    };
}

operation!("empty", "", "", "");
operation!("cpuid", "", "xor eax, eax\ncpuid", "xor eax, eax\ncpuid");
// The call code is no hypercall's, so the answer is "invalid hypercall code".
operation!("vmcall", "", "mov ecx, 0xfff\nvmcall", "mov ecx, 0xfff\nvmcall");
operation!("vmmcall", "", "mov ecx, 0xfff\nvmmcall", "mov ecx, 0xfff\nvmmcall");
operation!("rdmsr_1b", "", "mov ecx, 0x1b\nrdmsr", "mov ecx, 0x1b\nrdmsr");
operation!("wbinvd", "", "wbinvd", "wbinvd");
operation!("in_21", "", "in al, 0x21", "in al, 0x21");
operation!("out_80", "", "xor eax, eax\nout 0x80, al", "xor eax, eax\nout 0x80, al");
operation!("in_3fd", "", "mov edx, 0x3fd\nin al, dx", "mov edx, 0x3fd\nin al, dx");
operation!("lapic_read", "mov ebx, 0xfee00020", "mov eax, [ebx]", "mov eax, [rbx]");
operation!("lapic_eoi", "mov ebx, 0xfee000b0", "mov dword ptr [ebx], 0", "mov dword ptr [rbx], 0");
operation!("ioapic_read", "mov ebx, 0xfec00010", "mov eax, [ebx]", "mov eax, [rbx]");
operation!("hpet_read", "mov ebx, 0xfed000f0", "mov eax, [ebx]", "mov eax, [rbx]");
// The handler ends the interrupt and sets ECX.
operation!(
    "self_ipi",
    "mov ebx, 0xfee00300\nsti",
    "xor ecx, ecx\nmov dword ptr [ebx], 0x44051\n24:\ntest ecx, ecx\njz 24b",
    "xor ecx, ecx\nmov dword ptr [rbx], 0x44051\n24:\ntest ecx, ecx\njz 24b"
);

global_asm!(
    r#"
    .text
    .balign 64
    .code64
    .globl bench64_handler
    bench64_handler:
        mov dword ptr [rbx - 0x250], 0
        inc ecx
        iretq
    .balign 64
    .code32
    .globl bench32_handler
    bench32_handler:
        mov dword ptr [ebx - 0x250], 0
        inc ecx
        iretd

    # Calls the measurement whose address is in bench32_target with an IDT of 32-bit gates.
    .globl bench32_with_idt
    bench32_with_idt:
        lidt [bench32_idt_pointer]
        call [bench32_target]
        ret
    .code64

    .data
    .balign 8
    .globl bench32_target
    bench32_target: .long 0
    bench32_idt_pointer:
        .word 256 * 8 - 1
        .long bench32_idt
    .bss
    .balign 16
    .globl bench32_idt
    bench32_idt: .zero 256 * 8
    "#
);

macro_rules! operations {
    ($($name:literal $flat:ident $paged:ident),* $(,)?) => {
        unsafe extern "C" {
            $(static $flat: u8; fn $paged() -> u32;)*
        }
        /// Name, 32-bit code, 64-bit code.
        fn table() -> impl Iterator<Item = (&'static str, u64, unsafe extern "C" fn() -> u32)> {
            [$(($name, &raw const $flat as u64, $paged as unsafe extern "C" fn() -> u32)),*].into_iter()
        }
    };
}

operations!(
    "empty" bench32_empty bench64_empty,
    "cpuid" bench32_cpuid bench64_cpuid,
    "vmcall" bench32_vmcall bench64_vmcall,
    "vmmcall" bench32_vmmcall bench64_vmmcall,
    "rdmsr_1b" bench32_rdmsr_1b bench64_rdmsr_1b,
    "wbinvd" bench32_wbinvd bench64_wbinvd,
    "in_21" bench32_in_21 bench64_in_21,
    "out_80" bench32_out_80 bench64_out_80,
    "in_3fd" bench32_in_3fd bench64_in_3fd,
    "lapic_read" bench32_lapic_read bench64_lapic_read,
    "lapic_eoi" bench32_lapic_eoi bench64_lapic_eoi,
    "ioapic_read" bench32_ioapic_read bench64_ioapic_read,
    "hpet_read" bench32_hpet_read bench64_hpet_read,
    "self_ipi" bench32_self_ipi bench64_self_ipi,
);

unsafe extern "C" {
    static bench32_handler: u8;
    static bench64_handler: u8;
    static bench32_with_idt: u8;
    static mut bench32_target: u32;
    static mut bench32_idt: [u64; 256];
}

static mut HYPERCALL_PAGE: Page = Page([0; 4096]);

/// Hyper-V's hypercall page makes the vendor's call instruction one.
fn enable_hypercalls() {
    const GUEST_OS_ID: u32 = 0x4000_0000;
    const HYPERCALL: u32 = 0x4000_0001;
    if cpuid(1, 0).ecx >> 31 != 0 && cpuid(0x4000_0001, 0).eax == u32::from_le_bytes(*b"Hv#1") {
        // An open-source system's identity, TLFS 3.13.
        let named = write_msr(GUEST_OS_ID, 0x8100_0000_0000_0000);
        let enabled = write_msr(HYPERCALL, &raw const HYPERCALL_PAGE as u64 | 1);
        report::check("hypercall-page", named.is_ok() && enabled.is_ok(), format_args!("{named:x?} {enabled:x?}"));
    }
}

/// Whether the operation exists here.
fn available(name: &str) -> bool {
    // SAFETY: an exception is caught; a hypercall of an invalid code changes only RAX.
    let refused = match name {
        "vmcall" => unsafe {
            attempt!("vmcall", inout("rax") 0_u64 => _, in("rcx") 0xfff_u64, in("rdx") 0, in("r8") 0)
        },
        "vmmcall" => unsafe {
            attempt!("vmmcall", inout("rax") 0_u64 => _, in("rcx") 0xfff_u64, in("rdx") 0, in("r8") 0)
        },
        _ => None,
    };
    refused.is_none()
}

fn flat32(code: u64) -> u32 {
    // SAFETY: the code is a measurement, which ends with RET; its only interrupt has a gate in the 32-bit table.
    unsafe {
        bench32_target = code as u32;
        let handler = &raw const bench32_handler as u64;
        // A 32-bit interrupt gate, SDM 3A 6.11 "IDT Descriptors".
        let gate = handler & 0xffff | u64::from(entry::CODE32) << 16 | 0x8e << 40 | (handler >> 16) << 48;
        let table = &raw mut bench32_idt;
        (*table)[usize::from(VECTOR)] = gate;
        modes::call_flat32(&raw const bench32_with_idt as u64)
    }
}

fn unexpected(_: &mut Frame) {
    apic::end();
}

fn run() {
    static ROUNDS: AtomicU64 = AtomicU64::new(1);
    if let Some(rounds) = entry::option("rounds").and_then(|text| text.parse().ok()) {
        ROUNDS.store(rounds, Ordering::Relaxed);
    }
    apic::enable();
    hpet::run();
    trap::on(apic::SPURIOUS, unexpected);
    trap::direct(VECTOR, &raw const bench64_handler as u64);
    enable_hypercalls();
    let only = entry::option("only");
    for mode in ["flat32", "paged64"] {
        for (name, flat, paged) in table() {
            if only.is_some_and(|only| only != name) || !available(name) {
                continue;
            }
            let measure = || {
                if mode == "flat32" {
                    flat32(flat)
                } else {
                    // SAFETY: the code keeps the calling convention's registers.
                    let minimum = unsafe { paged() };
                    cpu::disable_interrupts();
                    minimum
                }
            };
            let minimum = (0..ROUNDS.load(Ordering::Relaxed)).map(|_| measure()).min().unwrap_or(0);
            report::line(format_args!("BENCH {mode}.{name} {minimum}"));
        }
    }
    report::passed("all-measured");
}
