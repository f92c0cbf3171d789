//! Exceptions and interrupts: one table of 256 gates, handlers by vector, and exceptions caught as values.
//!
//! A vector's handler is a plain function over the saved [`Frame`]. An exception without a handler is caught if it happens
//! inside [`attempt!`], and ends the guest with a failed check otherwise.

use crate::entry::CODE64;
use crate::report;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Exception vectors, SDM 3A 6.15 "Exception and Interrupt Reference".
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

/// What a gate saves: registers, then what the processor pushed.
#[repr(C)]
#[derive(Debug)]
#[allow(missing_docs)]
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
    /// 0 for vectors without one.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// An exception that [`attempt!`] caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught {
    /// Which exception.
    pub vector: u8,
    /// Its error code, 0 where it has none.
    pub error: u64,
    /// Where the faulting instruction is.
    pub rip: u64,
    /// CR2, for page faults; else 0.
    pub address: u64,
}

impl Caught {
    /// Vector and error code.
    pub fn kind(self) -> (u8, u64) {
        (self.vector, self.error)
    }
}

/// Where an exception continues; 0 outside [`attempt!`].
pub static RECOVERY: AtomicU64 = AtomicU64::new(0);
static WAS_CAUGHT: AtomicBool = AtomicBool::new(false);
static CAUGHT: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static HANDLERS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
static TAKEN: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// Executes assembly text with `asm!` operands and gives `Option<Caught>`: the exception it raised, if it raised one.
///
/// The text must leave the stack pointer where it was, and neither expect R11 to be kept.
#[macro_export]
macro_rules! attempt {
    ($code:literal $(, $($operand:tt)*)?) => {{
        ::core::arch::asm!(
            concat!("lea r11, [rip + 22f]\nmov qword ptr [rip + {recovery}], r11\n", $code, "\n22:\nmov qword ptr [rip + {recovery}], 0"),
            recovery = sym $crate::trap::RECOVERY,
            $($($operand)*,)?
            out("r11") _,
        );
        $crate::trap::take()
    }};
}

/// What the last [`attempt!`] caught; forgotten afterwards.
pub fn take() -> Option<Caught> {
    if !WAS_CAUGHT.swap(false, Ordering::SeqCst) {
        return None;
    }
    let [vector, error, rip, address] = [0, 1, 2, 3].map(|index: usize| CAUGHT[index].load(Ordering::SeqCst));
    Some(Caught { vector: vector as u8, error, rip, address })
}

/// Sets the handler of a vector.
pub fn on(vector: u8, handler: fn(&mut Frame)) {
    HANDLERS[usize::from(vector)].store(handler as usize as u64, Ordering::SeqCst);
}

/// Removes the handler of a vector.
pub fn off(vector: u8) {
    HANDLERS[usize::from(vector)].store(0, Ordering::SeqCst);
}

/// How often a vector was taken.
pub fn taken(vector: u8) -> u64 {
    TAKEN[usize::from(vector)].load(Ordering::SeqCst)
}

extern "C" fn dispatch(frame: &mut Frame) {
    let index = frame.vector as usize & 255;
    TAKEN[index].fetch_add(1, Ordering::SeqCst);
    let handler = HANDLERS[index].load(Ordering::SeqCst);
    if handler != 0 {
        // SAFETY: only `on` stores there, and only functions of this type.
        let handler: fn(&mut Frame) = unsafe { core::mem::transmute(handler as usize) };
        return handler(frame);
    }
    let recovery = RECOVERY.swap(0, Ordering::SeqCst);
    if index < 32 && recovery != 0 {
        let address = if frame.vector == vector::PF.into() { crate::cpu::read_cr2() } else { 0 };
        for (slot, value) in CAUGHT.iter().zip([frame.vector, frame.error, frame.rip, address]) {
            slot.store(value, Ordering::SeqCst);
        }
        WAS_CAUGHT.store(true, Ordering::SeqCst);
        frame.rip = recovery;
        return;
    }
    report::failed(
        "no-unexpected-trap",
        format_args!(
            "vector {:#x} error {:#x} rip {:#x} cr2 {:#x}",
            frame.vector,
            frame.error,
            frame.rip,
            crate::cpu::read_cr2()
        ),
    );
    report::finish()
}

global_asm!(
    r#"
    .text
    .balign 16
    .globl trap_gates
    # 256 gates of 16 bytes: push a zero where the processor pushes no error code, then the vector.
    trap_gates:
    .set trap_vector, 0
    .rept 256
        .balign 16
        .if (trap_vector == 8) || ((trap_vector >= 10) && (trap_vector <= 14)) || (trap_vector == 17) || (trap_vector == 21) || (trap_vector == 29) || (trap_vector == 30)
        .else
        push 0
        .endif
        push trap_vector
        jmp trap_common
        .set trap_vector, trap_vector + 1
    .endr
    .balign 16
    trap_common:
        # The gate pushed the vector below the error code.
        push rax
        push rbx
        push rcx
        push rdx
        push rsi
        push rdi
        push rbp
        push r8
        push r9
        push r10
        push r11
        push r12
        push r13
        push r14
        push r15
        cld
        mov rdi, rsp
        mov rbp, rsp
        and rsp, -16
        call {dispatch}
        mov rsp, rbp
        pop r15
        pop r14
        pop r13
        pop r12
        pop r11
        pop r10
        pop r9
        pop r8
        pop rbp
        pop rdi
        pop rsi
        pop rdx
        pop rcx
        pop rbx
        pop rax
        add rsp, 16
        iretq
    "#,
    dispatch = sym dispatch,
);

unsafe extern "C" {
    static trap_gates: [[u8; 16]; 256];
}

/// IDT entries as pairs of 64-bit words; SDM 3A 6.14.1 "64-Bit Mode IDT".
static TABLE: [[AtomicU64; 2]; 256] = [const { [const { AtomicU64::new(0) }; 2] }; 256];

const INTERRUPT_GATE: u64 = 0x8e;
/// DPL 3 in a gate's type byte.
const USER: u64 = 0x60;

/// Interrupt stack table entry number 1, whose stack no other vector uses.
const SEPARATE_STACK: u64 = 1;

fn set_gate(vector: u8, handler: u64, kind: u64, stack: u64) {
    let low = handler & 0xffff | u64::from(CODE64) << 16 | stack << 32 | kind << 40 | (handler >> 16 & 0xffff) << 48;
    let [first, second] = &TABLE[usize::from(vector)];
    second.store(handler >> 32, Ordering::SeqCst);
    first.store(low, Ordering::SeqCst);
}

/// The operand of LIDT.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Fills the table and loads IDTR.
pub(crate) fn load_table() {
    let gates = &raw const trap_gates as u64;
    for vector in 0..=255 {
        let stack = if matches!(vector, vector::NMI | vector::DF) { SEPARATE_STACK } else { 0 };
        let user = if matches!(vector, vector::BP | vector::OF) { USER } else { 0 };
        set_gate(vector, gates + u64::from(vector) * 16, INTERRUPT_GATE | user, stack);
    }
    reload_table();
}

/// Loads IDTR with this table again, after a test that changed it.
pub fn reload_table() {
    let pointer = Pointer { limit: 4095, base: TABLE.as_ptr() as u64 };
    // SAFETY: the table is static and complete.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer) };
}

/// Loads an IDTR without any gate: the next exception shuts the processor down.
pub fn empty_table() {
    let pointer = Pointer { limit: 0, base: 0 };
    // SAFETY: the caller wants what follows.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer) };
}

/// Lets `vector` go straight to the code at `handler`, which saves and ends as a gate's code has to.
pub fn direct(vector: u8, handler: u64) {
    set_gate(vector, handler, INTERRUPT_GATE, 0);
}

/// Makes the gate of `vector` not present.
pub fn remove_gate(vector: u8) {
    TABLE[usize::from(vector)][0].fetch_and(!(1 << 47), Ordering::SeqCst);
}

/// Makes the gate of `vector` what it was at first, for a vector without a stack of its own.
pub fn restore_gate(vector: u8) {
    direct(vector, &raw const trap_gates as u64 + u64::from(vector) * 16);
}

/// Lets user mode raise `vector`.
pub fn open_to_user(vector: u8) {
    set_gate(vector, &raw const trap_gates as u64 + u64::from(vector) * 16, INTERRUPT_GATE | USER, 0);
}
