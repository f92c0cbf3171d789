//! Writes all the memory that it is told to take, reads it back and says how much was right.
//!
//! `memory-pattern MIB`: a freestanding static Linux program, so that a guest's initramfs needs no libraries for it. Every
//! 64-bit word gets a value made from its number, so that two places that are one, or a page that is lost, show. Prints
//! `PATTERN n MiB written and read back` with status 0, or `PATTERN WRONG ...` with status 1.
//!
//! Source: System V ABI AMD64 supplement, "Process Initialization" and, for Linux, appendix A.2 "Calling conventions".

#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};
use core::ffi::CStr;
use core::panic::PanicInfo;

/// System call numbers and flags of Linux on x86-64.
const WRITE: usize = 1;
const MMAP: usize = 9;
const EXIT: usize = 60;
const READ_AND_WRITE: usize = 3;
const PRIVATE_ANONYMOUS: usize = 0x22;
/// `mmap` fails with a value from here on.
const FIRST_ERROR: usize = usize::MAX - 4095;

const WORDS_PER_MIB: usize = (1 << 20) / 8;

/// The kernel enters here with the number of arguments and their pointers on the stack.
///
/// # Safety
/// For the kernel only.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("mov rdi, [rsp]", "lea rsi, [rsp + 8]", "and rsp, -16", "call {main}", "ud2", main = sym main)
}

/// # Safety
/// The arguments are right for the call.
unsafe fn system_call(number: usize, arguments: [usize; 6]) -> usize {
    let mut result = number;
    // SAFETY: the caller's promise; the kernel changes nothing of ours but RAX, RCX and R11.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") arguments[0], in("rsi") arguments[1], in("rdx") arguments[2],
             in("r10") arguments[3], in("r8") arguments[4], in("r9") arguments[5], out("rcx") _, out("r11") _);
    }
    result
}

fn print(text: &[u8]) {
    // SAFETY: the bytes are there.
    unsafe { system_call(WRITE, [1, text.as_ptr() as usize, text.len(), 0, 0, 0]) };
}

fn print_number(mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return print(&digits[at..]);
        }
    }
}

fn exit(status: usize) -> ! {
    // SAFETY: it does not return.
    unsafe { system_call(EXIT, [status, 0, 0, 0, 0, 0]) };
    loop {}
}

/// The value of a word: no two words of a few TiB have the same.
fn pattern(number: usize) -> u64 {
    (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5a5a_a5a5_0f0f_f0f0
}

/// The MiB to take: the first argument.
fn wanted(count: usize, arguments: *const *const u8) -> Option<usize> {
    if count != 2 {
        return None;
    }
    // SAFETY: the kernel gives that many pointers to strings.
    let pointer = unsafe { *arguments.add(1) };
    // SAFETY: as above.
    let text = unsafe { CStr::from_ptr(pointer.cast()) };
    text.to_str().ok()?.parse().ok()
}

extern "C" fn main(count: usize, arguments: *const *const u8) -> ! {
    let Some(mebibytes) = wanted(count, arguments).filter(|&mebibytes| mebibytes > 0) else {
        print(b"PATTERN WRONG usage: memory-pattern MIB\n");
        exit(2);
    };
    let bytes = mebibytes << 20;
    // SAFETY: a new mapping, nobody else's.
    let place = unsafe { system_call(MMAP, [0, bytes, READ_AND_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]) };
    if place >= FIRST_ERROR {
        print(b"PATTERN WRONG no such mapping\n");
        exit(2);
    }
    // SAFETY: the mapping has that many words, and begins as zeros.
    let words = unsafe { core::slice::from_raw_parts_mut(place as *mut u64, mebibytes * WORDS_PER_MIB) };
    for (number, word) in words.iter_mut().enumerate() {
        *word = pattern(number);
    }
    // What follows must come from memory.
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", in(reg) words.as_mut_ptr()) };
    let wrong = words.iter().enumerate().filter(|&(number, &word)| word != pattern(number)).count();
    if wrong > 0 {
        print(b"PATTERN WRONG words: ");
        print_number(wrong as u64);
        print(b"\n");
        exit(1);
    }
    print(b"PATTERN ");
    print_number(mebibytes as u64);
    print(b" MiB written and read back\n");
    exit(0)
}

#[panic_handler]
fn panicked(_: &PanicInfo<'_>) -> ! {
    print(b"PATTERN WRONG panic\n");
    exit(2)
}
