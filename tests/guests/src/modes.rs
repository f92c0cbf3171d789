//! Running code in 32-bit flat mode, without paging: out of long mode and back.

use core::arch::global_asm;

global_asm!(
    r#"
    .text
    # edi = 32-bit code to call. Its result, EAX, is returned. Interrupts must be off.
    .code64
    flat32_call:
        push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
        mov ebx, edi
        sidt [rip + flat32_idt]
        # An exception among 32-bit code has no gate to go through: it shuts the processor down instead of running wild.
        lidt [rip + flat32_no_idt]
        mov [rip + flat32_stack], rsp
        mov esp, offset flat32_stack_top
        push 0x18
        lea rax, [rip + flat32_down]
        push rax
        retfq
    .code32
    flat32_down:
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        mov ecx, 0xc0000080
        rdmsr
        mov dword ptr [flat32_efer], eax
        and eax, ~0x100
        wrmsr
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        call ebx
        mov ebx, eax
        cli
        mov ecx, 0xc0000080
        rdmsr
        mov eax, dword ptr [flat32_efer]
        wrmsr
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        push 0x08
        mov eax, offset flat32_up
        push eax
        retf
    .code64
    flat32_up:
        mov rsp, [rip + flat32_stack]
        lidt [rip + flat32_idt]
        mov eax, ebx
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        ret

    .data
    flat32_no_idt: .zero 10
    .bss
    .balign 16
    flat32_stack: .zero 8
    flat32_efer: .zero 8
    flat32_idt: .zero 16
    .zero 0x2000
    flat32_stack_top:
    "#
);

unsafe extern "C" {
    fn flat32_call(code: u32) -> u32;
}

/// Calls the 32-bit code at `code` in flat protected mode without paging and returns its EAX.
///
/// # Safety
/// `code` is 32-bit code that ends with a near return, keeps EBP's caller state out of its assumptions, and takes no interrupt
/// unless it loads an IDT of 32-bit gates itself.
pub unsafe fn call_flat32(code: u64) -> u32 {
    // SAFETY: passed on to the caller. All guest code lies below 4 GiB.
    unsafe { flat32_call(code as u32) }
}
