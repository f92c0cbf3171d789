//! The switch into the guest and back.
//!
//! Manual: AMD APM volume 2 (24593, revision 3.42), 15.5 "VMRUN Instruction", 15.6 "#VMEXIT", 15.17 "Global Interrupt Flag,
//! STGI and CLGI Instructions", 15.21.1 "Virtual Interrupts". Neighbour: `lib` calls [`enter`] and reads the VMCB. It decides
//! nothing; a refused entry comes back like any exit. The two stubs differ in one step; which of them a processor needs is data,
//! [`vcpu::Defences`].
//!
//! This file may be unsafe because it is the assembly that runs the guest.
#![allow(unsafe_code)]

use crate::vmcb::Vmcb;
use core::arch::naked_asm;
use vcpu::{Gpr, Gprs};

/// One of the stubs below.
pub type Enter = unsafe extern "sysv64" fn(gprs: *mut Gprs, vmcb_physical: u64, host_physical: u64, vmcb: *mut Vmcb);

/// A stub that executes `$defence` between the guest's registers and the first return of the host. RCX is free there, nothing
/// interrupts, and the stack is the host's.
macro_rules! stub {
    ($(#[$doc:meta])* $name:ident: $($defence:literal),*) => {
        $(#[$doc])*
        #[unsafe(naked)]
        pub unsafe extern "sysv64" fn $name(gprs: *mut Gprs, vmcb_physical: u64, host_physical: u64, vmcb: *mut Vmcb) {
            naked_asm!(
                "push rbp",
                "push rbx",
                "push r12",
                "push r13",
                "push r14",
                "push r15",
                "push rdi",
                "push rdx",
                "mov rax, rsi",
                "clgi",
                "sti",
                "vmload rax",
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
                "vmrun rax",
                "vmsave rax",
                "pop rax",
                "vmload rax",
                "pop rax",
                "mov [rax + {rcx}], rcx",
                "mov [rax + {rdx}], rdx",
                "mov [rax + {rbx}], rbx",
                "mov [rax + {rbp}], rbp",
                "mov [rax + {rsi}], rsi",
                "mov [rax + {rdi}], rdi",
                "mov [rax + {r8}], r8",
                "mov [rax + {r9}], r9",
                "mov [rax + {r10}], r10",
                "mov [rax + {r11}], r11",
                "mov [rax + {r12}], r12",
                "mov [rax + {r13}], r13",
                "mov [rax + {r14}], r14",
                "mov [rax + {r15}], r15",
                $($defence,)*
                "cli",
                "stgi",
                "pop r15",
                "pop r14",
                "pop r13",
                "pop r12",
                "pop rbx",
                "pop rbp",
                "ret",
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

stub! {
    /// Runs the guest until its next exit. The status is EXITCODE in the VMCB: VMRUN has no other.
    ///
    /// Live on the way:
    /// 1. RDI `gprs`, RSI `vmcb_physical`, RDX `host_physical`; host state, IF = 0, GIF = 1. RCX, `vmcb`, is there to tell the
    ///    compiler that the VMCB changes.
    /// 2. Host registers that the ABI preserves, and the two values that are needed later, lie on the stack.
    /// 3. From CLGI to STGI nothing is taken but what VMRUN lets through. IF is set before VMRUN: with V_INTR_MASKING it is the
    ///    host's IF that lets physical interrupts end the guest's run.
    /// 4. Guest registers but RAX and RSP, which the VMCB holds; RAX is the VMCB's address before VMRUN and after.
    /// 5. The host's FS, GS, TR, LDTR and system-call MSRs come back by VMLOAD, all else by #VMEXIT.
    /// 6. IF is cleared before STGI: pending interrupts stay pending, a pending NMI is taken right after STGI.
    ///
    /// # Safety
    /// * Ring 0, IF = 0, GIF = 1, EFER.SVME set, VM_HSAVE_PA holds a page of this CPU.
    /// * `vmcb_physical` is the address of `*vmcb`, which intercepts what keeps the guest in, and whose nested page tables map
    ///   only memory of the guest.
    /// * `host_physical` is a VMCB that VMSAVE wrote on this CPU.
    /// * The host keeps nothing in vector and debug registers.
    enter:
}

stub! {
    /// As [`enter`], for processors that let the guest's return addresses predict the host's: 32 calls fill the return stack
    /// with places where speculation waits. AMD "Software Techniques for Managing Speculation", mitigation V2-3.
    ///
    /// # Safety
    /// As for [`enter`].
    enter_refilling:
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
