//! The host's last words: what broke, where, on which CPU, what the other CPUs did, and the last lines of the log.
//!
//! The CPU that panics stops the others by NMI, which no state of a CPU holds off but another NMI, and prints where each
//! one stood and what it ran.

#![allow(unsafe_code)] // A walk along frame pointers.

use crate::idt::Frame;
use crate::journal::{self, Urgent};
use crate::shutdown::{self, Outcome};
use crate::{apic, clock, cpu, percpu, stacks};
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

/// Lines of the log that are printed again.
const LOG_LINES: usize = 40;
/// Most callers that are printed.
const CALLERS: usize = 24;

/// How long the panicking CPU waits until the others have stopped, in nanoseconds.
const PATIENCE: u64 = 1_000_000_000;

/// The CPU that panics, by number.
static PANICKING: AtomicU32 = AtomicU32::new(NOBODY);
const NOBODY: u32 = u32::MAX;

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

/// A panic while panicking says nothing more; one on another CPU waits there for its NMI.
fn begin() {
    x86_64::instructions::interrupts::disable();
    let own = percpu::number();
    match PANICKING.compare_exchange(NOBODY, own, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => stop_others(own),
        Err(first) if first == own => {
            let _ = writeln!(Urgent, "PANIC again");
            shutdown::end(Outcome::Panic);
        }
        Err(_) => cpu::halt_forever(),
    }
}

/// Sends each other CPU an NMI, and waits a while until all have stopped.
fn stop_others(own: u32) {
    let others = || percpu::all().filter(move |other| other.number != own);
    others().for_each(|other| apic::send_nmi(other.apic_id));
    let end = clock::now() + PATIENCE;
    while clock::now() < end && !others().all(|other| other.stopped.load(Ordering::SeqCst)) {
        core::hint::spin_loop();
    }
}

/// Called for each NMI: stops this CPU for good if another one panics.
pub fn stop_if_asked(frame: &Frame) {
    let first = PANICKING.load(Ordering::SeqCst);
    if first == NOBODY || first == percpu::number() {
        return;
    }
    if let Some(cpu) = percpu::try_current() {
        for (place, value) in cpu.stopped_at.iter().zip([frame.rip, frame.rbp]) {
            place.store(value, Ordering::Relaxed);
        }
        cpu.stopped.store(true, Ordering::SeqCst);
    }
    cpu::halt_forever()
}

/// Prints where the other CPUs stood.
fn tell_others() {
    let own = PANICKING.load(Ordering::SeqCst);
    for other in percpu::all().filter(|other| other.number != own) {
        let queue = other.queue.try_lock();
        let task = match &queue {
            Some(queue) => queue.running().unwrap_or("no task"),
            None => "its scheduler",
        };
        if !other.stopped.load(Ordering::SeqCst) {
            let _ = writeln!(Urgent, "CPU {} does not answer; it ran {task}", other.number);
            continue;
        }
        let [rip, rbp] = [0, 1].map(|index| other.stopped_at[index].load(Ordering::Relaxed));
        let _ = writeln!(Urgent, "CPU {} ran {task}; stopped in {rip:016x}", other.number);
        walk(rbp);
    }
}

fn end(frame_pointer: u64) -> ! {
    walk(frame_pointer);
    tell_others();
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
