//! The guest's console on the host's COM1: bytes out through the transmitter's FIFO, bytes in by interrupt, and Ctrl-A as
//! the escape to the monitor.
//!
//! Key type: [`Console`]. Output that the port cannot take at once is kept in a queue, which the transmitter's interrupt
//! empties; when that is full, the oldest part of the problem is on the other side, and bytes are dropped. Nothing waits.

#![allow(unsafe_code)] // The UART's data register.

use crate::idt;
use crate::keys::{Key, Keys};
use crate::lock::Lock;
use crate::queue::Queue;
use crate::serial::{self, CONSOLE, Port};
use crate::{acpi, ioapic};
use alloc::boxed::Box;
use devices::{ByteSink, ByteSource};
use uart_16550::backend::Backend;
use uart_16550::spec::registers::{IER, LSR, offsets};

/// ISA interrupt of COM1.
const IRQ: u8 = 4;
/// What the transmitter's FIFO takes when it is empty.
const FIFO: u32 = 16;
/// Bytes of output and of input that are kept.
const OUTPUT: usize = 64 << 10;
const INPUT: usize = 4 << 10;

static STATE: Lock<State> = Lock::new(State {
    output: Queue::new(),
    input: Queue::new(),
    commands: Queue::new(),
    keys: Keys::new(),
    credit: 0,
    dropped: 0,
    listener: None,
});

/// Who is told about input.
pub type Listener = Box<dyn Fn() + Send + Sync>;

struct State {
    output: Queue<OUTPUT>,
    input: Queue<INPUT>,
    /// Keys typed behind Ctrl-A.
    commands: Queue<16>,
    keys: Keys,
    /// Bytes that the transmitter takes without being asked.
    credit: u32,
    dropped: u64,
    listener: Option<Listener>,
}

/// The console's two directions, as the guest's UART wants them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Console;

/// Lets COM1 interrupt the CPU with the local APIC `destination`. Returns whether there is a console.
pub fn init(platform: &acpi::Platform, destination: u32) -> bool {
    let vector = idt::add_device_handler(interrupt);
    if let Some(port) = CONSOLE.lock().as_mut() {
        if !ioapic::route_isa(platform, IRQ, vector, destination) {
            return false;
        }
        port.enable_interrupts(IER::DATA_READY);
        return true;
    }
    false
}

/// Sets who is told, from the interrupt, that there is input or a command.
pub fn listen(listener: Listener) {
    let before = STATE.lock().listener.replace(listener);
    drop(before);
}

/// The next key typed behind Ctrl-A, for the monitor.
pub fn take_command() -> Option<u8> {
    STATE.lock().commands.pop()
}

/// Whether there is input.
pub fn has_input() -> bool {
    !STATE.lock().input.is_empty()
}

/// Bytes of output that were dropped because the other side did not take them.
pub fn dropped() -> u64 {
    STATE.lock().dropped
}

/// Sends what is kept, waiting for the port: at the end of a run. Gives up on a port that does not move.
pub fn flush() {
    const PATIENCE: u32 = 1_000_000;
    // A host that broke may have left them locked.
    let (Some(mut state), Some(mut port)) = (STATE.try_lock(), CONSOLE.try_lock()) else { return };
    let Some(port) = port.as_mut() else { return };
    let mut waited = 0;
    while !state.output.is_empty() && waited < PATIENCE {
        waited = if state.transmit(port) { 0 } else { waited + 1 };
    }
}

impl ByteSink for Console {
    fn put(&self, byte: u8) {
        let mut state = STATE.lock();
        let mut port = CONSOLE.lock();
        let Some(port) = port.as_mut() else { return };
        if !state.output.push(byte) {
            state.dropped = state.dropped.saturating_add(1);
        }
        state.transmit(port);
        if !state.output.is_empty() {
            port.enable_interrupts(IER::THR_EMPTY);
        }
    }
}

impl ByteSource for Console {
    fn take(&self) -> Option<u8> {
        STATE.lock().input.pop()
    }
}

impl State {
    /// Hands the transmitter what it takes. Returns whether that was anything.
    fn transmit(&mut self, port: &mut Port) -> bool {
        let mut sent = false;
        while !self.output.is_empty() {
            if self.credit == 0 {
                if !port.lsr().contains(LSR::THR_EMPTY) {
                    break;
                }
                self.credit = if serial::console_is_shared() { 1 } else { FIFO };
            }
            let Some(byte) = self.output.pop() else { break };
            // SAFETY: the data register of our own port; the transmitter has room.
            unsafe { port.backend_mut().write(offsets::DATA as u8, byte) };
            self.credit -= 1;
            sent = true;
        }
        sent
    }

    /// Takes a byte from the line. Returns whether somebody should be told.
    fn receive(&mut self, byte: u8) -> bool {
        match self.keys.feed(byte) {
            Some(Key::Guest(byte)) => self.input.push(byte),
            Some(Key::Command(byte)) => self.commands.push(byte),
            None => false,
        }
    }
}

/// COM1's interrupt: takes all input, refills the transmitter, and leaves no cause pending, for the line is
/// edge-triggered.
fn interrupt() {
    /// Rounds until a line that never falls silent is left for the next interrupt.
    const ROUNDS: usize = 256;
    let mut state = STATE.lock();
    let mut news = false;
    if let Some(port) = CONSOLE.lock().as_mut() {
        for _ in 0..ROUNDS {
            while let Ok(byte) = port.try_receive_byte() {
                news |= state.receive(byte);
            }
            state.transmit(port);
            if state.output.is_empty() {
                port.disable_interrupts(IER::THR_EMPTY);
            }
            if !port.isr().has_pending_interrupt() {
                break;
            }
        }
    }
    if news && let Some(listener) = &state.listener {
        listener();
    }
}
