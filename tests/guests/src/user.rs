//! Running code at privilege level 3.

use crate::entry::{USER_CODE64, USER_DATA};
use crate::trap::{self, Frame};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

/// The vector by which user code comes back.
const RETURN: u8 = 0x80;

static KERNEL_STACK: AtomicU64 = AtomicU64::new(0);

#[repr(C, align(16))]
struct Stack([u8; 0x2000]);
static mut STACK: Stack = Stack([0; 0x2000]);

global_asm!(
    r#"
    .text
    # rdi = code, rsi = stack, rdx = flags. Comes back through user_leave.
    user_enter:
        push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
        mov [rip + {kernel_stack}], rsp
        push {data}
        push rsi
        push rdx
        push {code}
        push rdi
        iretq
    # Where the return gate's frame is sent, at level 0 on the stack that user_enter left.
    user_leave:
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        ret
    # What user code falls back to when it returns.
    user_done:
        int {gate}
    "#,
    kernel_stack = sym KERNEL_STACK,
    data = const USER_DATA,
    code = const USER_CODE64,
    gate = const RETURN,
);

unsafe extern "C" {
    fn user_enter(code: u64, stack: u64, flags: u64);
    static user_leave: u8;
    static user_done: u8;
}

fn leave(frame: &mut Frame) {
    frame.rip = &raw const user_leave as u64;
    frame.cs = crate::entry::CODE64.into();
    frame.ss = crate::entry::DATA.into();
    frame.rflags = 2;
    frame.rsp = KERNEL_STACK.load(Ordering::SeqCst);
}

/// Calls `code` at privilege level 3 with `flags` in RFLAGS, and returns when it returns. Interrupts are off afterwards.
pub fn call(code: extern "C" fn(), flags: u64) {
    trap::open_to_user(RETURN);
    trap::on(RETURN, leave);
    let stack = &raw mut STACK as u64 + 0x2000 - 8;
    // SAFETY: the stack is used by nobody else; its top holds the return address that ends user mode.
    unsafe {
        *(stack as *mut u64) = &raw const user_done as u64;
        user_enter(code as usize as u64, stack, flags | 2);
        asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) u32::from(crate::entry::DATA));
    }
}
