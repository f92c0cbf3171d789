//! The host's last words: what broke, where, on which CPU, and the last lines of the log.

#![allow(unsafe_code)] // A walk along frame pointers.

use crate::idt::Frame;
use crate::journal::{self, Urgent};
use crate::shutdown::{self, Outcome};
use crate::{cpu, percpu, stacks};
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

/// Lines of the log that are printed again.
const LOG_LINES: usize = 40;
/// Most callers that are printed.
const CALLERS: usize = 24;

static PANICKING: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    let mut out = Urgent;
    let _ = match info.location() {
        Some(place) => writeln!(
            out,
            "\nPANIC on CPU {} at {}:{}: {}",
            percpu::number(),
            place.file(),
            place.line(),
            info.message()
        ),
        None => writeln!(out, "\nPANIC on CPU {}: {}", percpu::number(), info.message()),
    };
    end(cpu::frame_pointer())
}

/// An exception in host code.
pub fn host_exception(frame: &Frame, fault_address: Option<u64>) -> ! {
    begin();
    let mut out = Urgent;
    let _ = writeln!(out, "\nPANIC on CPU {}: {frame}", percpu::number());
    if let Some(address) = fault_address {
        let _ = writeln!(out, "  at address {address:016x}");
    }
    let _ = writeln!(out, "  in {:016x}", frame.rip);
    end(frame.rbp)
}

/// A panic while panicking says nothing more.
fn begin() {
    x86_64::instructions::interrupts::disable();
    if PANICKING.swap(true, Ordering::SeqCst) {
        let _ = writeln!(Urgent, "PANIC again");
        shutdown::end(Outcome::Panic);
    }
}

fn end(frame_pointer: u64) -> ! {
    walk(frame_pointer);
    let _ = writeln!(Urgent, "last lines of the log:");
    journal::dump(LOG_LINES);
    shutdown::end(Outcome::Panic)
}

/// Prints return addresses along the frame pointers, as far as they stay within a stack.
fn walk(mut frame: u64) {
    for _ in 0..CALLERS {
        if !frame.is_multiple_of(8) || !stacks::holds(frame) || !stacks::holds(frame + 8) {
            break;
        }
        // SAFETY: the word is aligned and in a mapped stack.
        let next = unsafe { (frame as *const u64).read() };
        // SAFETY: as above.
        let caller = unsafe { ((frame + 8) as *const u64).read() };
        let _ = writeln!(Urgent, "  from {caller:016x}");
        if next <= frame {
            break;
        }
        frame = next;
    }
}
