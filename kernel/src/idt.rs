//! Interrupts and exceptions of the host: the table, the stubs, and who handles what.
//!
//! An exception in host code is a broken invariant and ends in a panic with the registers. Interrupts are taken only while
//! idle, between two tasks and in the window after an interrupt exit, never in the middle of host code; NMI alone can come
//! at any time: it counts, and stops the CPU if another one's panic has sent it.
//!
//! Pins Intel SDM Volume 3A, 7.14 "Exception and Interrupt Handling in 64-bit Mode" (325384-083).

#![allow(unsafe_code)] // Naked stubs and LIDT.

use crate::gdt::{CODE_SELECTOR, FaultStack};
use crate::lock::Lock;
use crate::{apic, percpu, scheduler};
use arrayvec::ArrayVec;
use core::arch::naked_asm;
use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

/// Vectors of interrupts. Exceptions have 0 to 31.
pub mod vector {
    /// First of the legacy interrupts: where the masked 8259 pair's spurious ones go.
    pub const LEGACY: u8 = 0x20;
    /// First of the devices' vectors.
    pub const DEVICE: u8 = 0x30;
    /// The local APIC timer.
    pub const ALARM: u8 = 0xf0;
    /// Another CPU wants this one to look at its queue.
    pub const KICK: u8 = 0xf1;
    /// A local APIC error.
    pub const APIC_ERROR: u8 = 0xfe;
    /// Spurious; its low four bits are ones, as old local APICs want.
    pub const SPURIOUS: u8 = 0xff;
}

/// How many devices can have a vector.
const DEVICES: usize = 16;

/// Exceptions by vector. SDM 3A table 7-1.
const NMI: u64 = 2;
const BREAKPOINT: u64 = 3;
const DOUBLE_FAULT: u64 = 8;
const MACHINE_CHECK: u64 = 18;
const EXCEPTIONS: [&str; 32] = [
    "#DE divide error",
    "#DB debug",
    "NMI",
    "#BP breakpoint",
    "#OF overflow",
    "#BR bound range exceeded",
    "#UD invalid opcode",
    "#NM device not available",
    "#DF double fault",
    "coprocessor segment overrun",
    "#TS invalid TSS",
    "#NP segment not present",
    "#SS stack-segment fault",
    "#GP general protection",
    "#PF page fault",
    "exception 15",
    "#MF x87 error",
    "#AC alignment check",
    "#MC machine check",
    "#XM SIMD error",
    "#VE virtualization exception",
    "#CP control protection",
    "exception 22",
    "exception 23",
    "exception 24",
    "exception 25",
    "exception 26",
    "exception 27",
    "#HV hypervisor injection",
    "#VC VMM communication",
    "#SX security",
    "exception 31",
];

/// Vectors below 32 for which the CPU pushes an error code: 8, 10 to 14, 17, 21, 29, 30.
const WITH_ERROR_CODE: u32 = 0x6022_7d00;

/// What the stubs leave on the stack: registers in the order pushed last to first, then what the CPU pushed.
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)] // Registers under their own names.
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const _: () = assert!(offset_of!(Frame, vector) == 15 * 8 && size_of::<Frame>() == 22 * 8);

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = EXCEPTIONS.get(self.vector as usize).copied().unwrap_or("interrupt");
        writeln!(f, "{name} (vector {}), error code {:#x}", self.vector, self.error_code)?;
        writeln!(f, "  rip {:016x}  rflags {:08x}  cs {:04x}  ss {:04x}", self.rip, self.rflags, self.cs, self.ss)?;
        writeln!(f, "  rax {:016x}  rbx {:016x}  rcx {:016x}  rdx {:016x}", self.rax, self.rbx, self.rcx, self.rdx)?;
        writeln!(f, "  rsi {:016x}  rdi {:016x}  rbp {:016x}  rsp {:016x}", self.rsi, self.rdi, self.rbp, self.rsp)?;
        writeln!(f, "  r8  {:016x}  r9  {:016x}  r10 {:016x}  r11 {:016x}", self.r8, self.r9, self.r10, self.r11)?;
        write!(f, "  r12 {:016x}  r13 {:016x}  r14 {:016x}  r15 {:016x}", self.r12, self.r13, self.r14, self.r15)
    }
}

/// A gate of the table. SDM 3A figure 7-8.
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    offset_low: u16,
    selector: u16,
    stack: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    _reserved: u32,
}

const _: () = assert!(size_of::<Gate>() == 16 && offset_of!(Gate, offset_high) == 8);

/// Present, ring 0, 64-bit interrupt gate.
const INTERRUPT_GATE: u8 = 0x8e;

static TABLE: spin::Once<[Gate; 256]> = spin::Once::new();

/// Bytes of each stub.
const STUB_SIZE: u64 = 16;

/// Loads the table on this CPU. Vectors with a stack of their own work once `gdt::init` has run.
pub fn init() {
    let table = TABLE.call_once(|| {
        core::array::from_fn(|vector| {
            let offset = stubs as *const () as u64 + vector as u64 * STUB_SIZE;
            let stack = match vector as u64 {
                NMI => FaultStack::Nmi as u8,
                DOUBLE_FAULT => FaultStack::DoubleFault as u8,
                MACHINE_CHECK => FaultStack::MachineCheck as u8,
                _ => 0,
            };
            Gate {
                offset_low: offset as u16,
                selector: CODE_SELECTOR,
                stack,
                kind: INTERRUPT_GATE,
                offset_middle: (offset >> 16) as u16,
                offset_high: (offset >> 32) as u32,
                _reserved: 0,
            }
        })
    });
    let pointer = DescriptorTablePointer {
        limit: (size_of::<[Gate; 256]>() - 1) as u16,
        base: VirtAddr::new(table.as_ptr() as u64),
    };
    // SAFETY: the table is complete and lives for good.
    unsafe { lidt(&pointer) };
}

/// 256 stubs of 16 bytes: each pushes an error code of 0 where the CPU pushes none, and its vector.
///
/// # Safety
/// For the CPU only.
#[unsafe(naked)]
#[unsafe(link_section = ".text.stubs")]
unsafe extern "C" fn stubs() {
    naked_asm!(
        ".balign 16",
        ".set .Lvector, 0",
        ".rept 256",
        ".balign 16",
        ".if (.Lvector > 31) || ((({codes} >> .Lvector) & 1) == 0)",
        "pushq $0",
        ".endif",
        "pushq $.Lvector",
        "jmp {common}",
        ".set .Lvector, .Lvector + 1",
        ".endr",
        codes = const WITH_ERROR_CODE,
        common = sym common,
        options(att_syntax)
    )
}

/// What all stubs share.
///
/// 1. On the stack: vector, error code, and the CPU's five words, pushed from a multiple of 16; with the 15 registers that
///    makes 22 words, a multiple of 16 again, as the call wants it.
/// 2. Everything that Rust may change is saved; the target has no vector registers to save.
///
/// # Safety
/// For the stubs only.
#[unsafe(naked)]
unsafe extern "C" fn common() {
    naked_asm!(
        "pushq %rax",
        "pushq %rbx",
        "pushq %rcx",
        "pushq %rdx",
        "pushq %rsi",
        "pushq %rdi",
        "pushq %rbp",
        "pushq %r8",
        "pushq %r9",
        "pushq %r10",
        "pushq %r11",
        "pushq %r12",
        "pushq %r13",
        "pushq %r14",
        "pushq %r15",
        "cld",
        "movq %rsp, %rdi",
        "call {handle}",
        "popq %r15",
        "popq %r14",
        "popq %r13",
        "popq %r12",
        "popq %r11",
        "popq %r10",
        "popq %r9",
        "popq %r8",
        "popq %rbp",
        "popq %rdi",
        "popq %rsi",
        "popq %rdx",
        "popq %rcx",
        "popq %rbx",
        "popq %rax",
        "addq $16, %rsp",
        "iretq",
        handle = sym handle,
        options(att_syntax)
    )
}

/// Handlers of device interrupts, by vector from [`vector::DEVICE`].
static DEVICE_HANDLERS: Lock<ArrayVec<fn(), DEVICES>> = Lock::new(ArrayVec::new_const());

/// Whether a breakpoint is expected: the self-test's.
static EXPECT_BREAKPOINT: AtomicBool = AtomicBool::new(false);
static NMIS: AtomicU64 = AtomicU64::new(0);
static STRAY: AtomicU64 = AtomicU64::new(0);

/// Gives `handler` a vector. It runs with interrupts off while the CPU is idle or has just left a guest, and must be
/// short.
///
/// # Panics
/// When all are given away.
pub fn add_device_handler(handler: fn()) -> u8 {
    let mut handlers = DEVICE_HANDLERS.lock();
    handlers.push(handler);
    vector::DEVICE + (handlers.len() - 1) as u8
}

/// How many NMIs this host has had, and interrupts that nobody wanted.
pub fn odd_interrupts() -> (u64, u64) {
    (NMIS.load(Ordering::Relaxed), STRAY.load(Ordering::Relaxed))
}

/// Runs a breakpoint through the table and tells whether it came back.
pub fn self_test() -> bool {
    EXPECT_BREAKPOINT.store(true, Ordering::SeqCst);
    x86_64::instructions::interrupts::int3();
    !EXPECT_BREAKPOINT.load(Ordering::SeqCst)
}

/// From `common`: every interrupt and exception.
extern "C" fn handle(frame: &mut Frame) {
    match frame.vector {
        NMI => {
            NMIS.fetch_add(1, Ordering::Relaxed);
            crate::panic::stop_if_asked(frame);
        }
        BREAKPOINT if EXPECT_BREAKPOINT.swap(false, Ordering::SeqCst) => {}
        exception @ 0..32 => {
            let fault_address = (exception == 14).then(x86_64::registers::control::Cr2::read_raw);
            crate::panic::host_exception(frame, fault_address)
        }
        number => interrupt(number as u8),
    }
}

/// An external interrupt.
fn interrupt(number: u8) {
    percpu::current().count_interrupt();
    match number {
        vector::ALARM => {
            apic::end_of_interrupt();
            scheduler::alarm_fired();
        }
        vector::KICK => {
            apic::end_of_interrupt();
            scheduler::kicked();
        }
        vector::APIC_ERROR => {
            apic::end_of_interrupt();
            log::warn!("local APIC error {:#x}", apic::take_error());
        }
        // Neither a spurious interrupt nor one of the masked 8259 pair is acknowledged.
        vector::SPURIOUS | vector::LEGACY..vector::DEVICE => {
            STRAY.fetch_add(1, Ordering::Relaxed);
        }
        number => {
            let handler = DEVICE_HANDLERS.lock().get(usize::from(number - vector::DEVICE)).copied();
            match handler {
                Some(handler) => handler(),
                None => {
                    STRAY.fetch_add(1, Ordering::Relaxed);
                }
            }
            apic::end_of_interrupt();
        }
    }
}
