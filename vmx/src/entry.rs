//! The way into the guest and back: two naked functions that decide nothing.
//!
//! Key type: [`Context`], the memory behind the registers that VMX does not switch. Neighbours: `vmcs.rs` writes the address
//! of an [`Arrival`] into HOST_RIP; `lib.rs` calls [`enter`] and reads what the exit left. A refused entry comes back as
//! a value.
//!
//! Unsafe because it is assembly that trades one processor state for another.
//!
//! Manual: Intel SDM 3C (December 2024, 325462-086), chapters 27 "VM Entries" and 28 "VM Exits".
#![allow(unsafe_code)]

use crate::field::HOST_RSP;
use core::arch::naked_asm;
use core::mem::offset_of;
use vcpu::{Gpr, Gprs};

/// Guest registers while the host runs, and the stack pointer that HOST_RSP holds.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// General-purpose registers. RSP's place is unused: the VMCS holds it.
    pub gprs: Gprs,
    /// What HOST_RSP was last set to; 0 when it must be written.
    pub host_rsp: u64,
}

const _: () = assert!(offset_of!(Context, gprs) == 0 && Gpr::R15.offset() == 120);

/// What [`enter`] returns: the guest has run and exited, or the processor refused the entry (a failed check of guest
/// state counts as an exit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Outcome {
    /// An exit; the VMCS tells which.
    Exited = 0,
    /// VMfailValid: the VM-instruction error field has the reason.
    FailValid = 1,
    /// VMfailInvalid: there is no current VMCS.
    FailInvalid = 2,
}

// The exit's way back leaves 0 behind by XOR.
const _: () = assert!(Outcome::Exited as u64 == 0);

/// Enters the guest of the current VMCS; returns with its exit.
///
/// 1. Live from Rust: RDI the context, SIL whether to VMRESUME (1) or VMLAUNCH (0).
/// 2. The host's callee-saved registers and the context go to the stack; the exit comes back to that very stack pointer.
/// 3. ZF decides between the two instructions; no MOV changes it.
/// 4. Falling through means that the entry failed: RSP still is the host's, all other registers are to be restored.
///
/// # Safety
/// A VMCS of this host is current, its HOST_RIP is an [`Arrival`] and its host state is this CPU's; interrupts are off.
#[unsafe(naked)]
pub unsafe extern "C" fn enter(context: &mut Context, resume: bool) -> Outcome {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "cmp rsp, [rdi + {host_rsp}]",
        "je 2f",
        "mov [rdi + {host_rsp}], rsp",
        "mov eax, {host_rsp_field}",
        "vmwrite rax, rsp",
        "2:",
        "test sil, sil",
        "mov rax, [rdi + {rax}]",
        "mov rcx, [rdi + {rcx}]",
        "mov rdx, [rdi + {rdx}]",
        "mov rbx, [rdi + {rbx}]",
        "mov rbp, [rdi + {rbp}]",
        "mov rsi, [rdi + {rsi}]",
        "mov r8, [rdi + {r8}]",
        "mov r9, [rdi + {r9}]",
        "mov r10, [rdi + {r10}]",
        "mov r11, [rdi + {r11}]",
        "mov r12, [rdi + {r12}]",
        "mov r13, [rdi + {r13}]",
        "mov r14, [rdi + {r14}]",
        "mov r15, [rdi + {r15}]",
        "mov rdi, [rdi + {rdi}]",
        "jz 3f",
        "vmresume",
        "jmp 4f",
        "3:",
        "vmlaunch",
        "4:",
        "mov eax, {fail_valid}",
        "mov ecx, {fail_invalid}",
        "cmovc eax, ecx",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        host_rsp = const offset_of!(Context, host_rsp),
        host_rsp_field = const HOST_RSP.encoding(),
        fail_valid = const Outcome::FailValid as u64,
        fail_invalid = const Outcome::FailInvalid as u64,
        rax = const Gpr::Rax.offset(),
        rcx = const Gpr::Rcx.offset(),
        rdx = const Gpr::Rdx.offset(),
        rbx = const Gpr::Rbx.offset(),
        rbp = const Gpr::Rbp.offset(),
        rsi = const Gpr::Rsi.offset(),
        rdi = const Gpr::Rdi.offset(),
        r8 = const Gpr::R8.offset(),
        r9 = const Gpr::R9.offset(),
        r10 = const Gpr::R10.offset(),
        r11 = const Gpr::R11.offset(),
        r12 = const Gpr::R12.offset(),
        r13 = const Gpr::R13.offset(),
        r14 = const Gpr::R14.offset(),
        r15 = const Gpr::R15.offset(),
    )
}

/// One of the functions below.
pub type Arrival = unsafe extern "C" fn();

/// An arrival that executes `$defence` between the guest's registers and the first return of the host. All registers but RSP
/// are free there, interrupts are off, and the stack is the host's.
macro_rules! arrival {
    ($(#[$doc:meta])* $name:ident: $($defence:literal),*) => {
        $(#[$doc])*
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                "push rdi",
                "mov rdi, [rsp + 8]",
                "mov [rdi + {rax}], rax",
                "mov [rdi + {rcx}], rcx",
                "mov [rdi + {rdx}], rdx",
                "mov [rdi + {rbx}], rbx",
                "mov [rdi + {rbp}], rbp",
                "mov [rdi + {rsi}], rsi",
                "mov [rdi + {r8}], r8",
                "mov [rdi + {r9}], r9",
                "mov [rdi + {r10}], r10",
                "mov [rdi + {r11}], r11",
                "mov [rdi + {r12}], r12",
                "mov [rdi + {r13}], r13",
                "mov [rdi + {r14}], r14",
                "mov [rdi + {r15}], r15",
                "pop qword ptr [rdi + {rdi}]",
                $($defence,)*
                "xor eax, eax",
                "pop rdi",
                "pop r15",
                "pop r14",
                "pop r13",
                "pop r12",
                "pop rbx",
                "pop rbp",
                "ret",
                rax = const Gpr::Rax.offset(),
                rcx = const Gpr::Rcx.offset(),
                rdx = const Gpr::Rdx.offset(),
                rbx = const Gpr::Rbx.offset(),
                rbp = const Gpr::Rbp.offset(),
                rsi = const Gpr::Rsi.offset(),
                rdi = const Gpr::Rdi.offset(),
                r8 = const Gpr::R8.offset(),
                r9 = const Gpr::R9.offset(),
                r10 = const Gpr::R10.offset(),
                r11 = const Gpr::R11.offset(),
                r12 = const Gpr::R12.offset(),
                r13 = const Gpr::R13.offset(),
                r14 = const Gpr::R14.offset(),
                r15 = const Gpr::R15.offset(),
            )
        }
    };
}

arrival! {
    /// Where every exit arrives: HOST_RIP.
    ///
    /// 1. Live: RSP as [`enter`] left it, with the context on top; all other general-purpose registers are the guest's.
    /// 2. RFLAGS is 2: interrupts off, direction up. SDM 3C 28.5.3 "Loading Host RIP, RSP, RFLAGS, and SSP".
    /// 3. RDI goes to the stack for a moment, to reach the context.
    ///
    /// # Safety
    /// Only a VM exit may arrive here.
    arrive:
}

arrival! {
    /// As [`arrive`], for processors that let the guest's return addresses predict the host's: 32 calls fill the return stack
    /// with places where speculation waits. Intel "Retpoline: A Branch Target Injection Mitigation", "RSB stuffing".
    ///
    /// # Safety
    /// As for [`arrive`].
    arrive_refilling:
    "mov ecx, 16",
    "2:",
    "call 4f",
    "3:",
    "pause",
    "lfence",
    "jmp 3b",
    "4:",
    "call 6f",
    "5:",
    "pause",
    "lfence",
    "jmp 5b",
    "6:",
    "add rsp, 16",
    "dec ecx",
    "jnz 2b",
    "lfence"
}
