//! The control line: commands that whoever runs the host sends on the log's port, one a line.
//!
//! The interrupt only keeps bytes; a host task takes whole lines with [`take_line`] and carries them out.

use crate::lock::Lock;
use crate::queue::Queue;
use crate::run_queue::Waker;
use crate::{acpi, idt, ioapic, serial};
use arrayvec::ArrayString;
use vcpu::Wake;

/// ISA interrupt of COM2.
const IRQ: u8 = 3;
/// Bytes that are kept until the task takes them, and the longest line.
const INPUT: usize = 1024;
const LONGEST: usize = 120;

static STATE: Lock<State> = Lock::new(State { input: Queue::new(), line: ArrayString::new_const(), listener: None });

struct State {
    input: Queue<INPUT>,
    line: Line,
    listener: Option<Waker>,
}

/// A command as it arrived.
pub type Line = ArrayString<LONGEST>;

/// Lets the log's port interrupt the CPU with the local APIC `destination`. False on a host without such a port.
pub fn init(platform: &acpi::Platform, destination: u32) -> bool {
    let vector = idt::add_device_handler(interrupt);
    serial::has_log_port() && ioapic::route_isa(platform, IRQ, vector, destination) && serial::listen_on_log()
}

/// Sets who is woken when a line may be complete.
pub fn listen(listener: Waker) {
    let before = STATE.lock().listener.replace(listener);
    drop(before);
}

/// The next whole line, without its end. What is too long for a command is cut off, other bytes than ASCII text are left out.
pub fn take_line() -> Option<Line> {
    let mut state = STATE.lock();
    while let Some(byte) = state.input.pop() {
        match byte {
            b'\n' => return Some(core::mem::take(&mut state.line)),
            b' '..=b'~' => {
                let _ = state.line.try_push(char::from(byte));
            }
            _ => {}
        }
    }
    None
}

/// COM2's interrupt.
fn interrupt() {
    let mut state = STATE.lock();
    let mut complete = false;
    serial::receive_from_log(|byte| {
        complete |= byte == b'\n';
        // A sender that does not wait for what it asked for loses the rest.
        state.input.push(byte);
    });
    if complete && let Some(listener) = &state.listener {
        listener.wake();
    }
}
