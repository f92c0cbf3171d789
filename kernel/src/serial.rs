//! The host's serial ports: COM1 for the guest's console, COM2 for the log.

#![allow(unsafe_code)] // Port access through `uart_16550`.

use crate::lock::Lock;
use core::sync::atomic::{AtomicBool, Ordering};
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{FifoTriggerLevel, IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};

/// A 16550 at an I/O port.
pub type Port = Uart16550<PioBackend>;

const COM1: u16 = 0x3f8;
const COM2: u16 = 0x2f8;

/// The console's port, if there is one.
pub static CONSOLE: Lock<Option<Port>> = Lock::new(None);
/// The log's own port, if there is one.
static LOG: Lock<Option<Port>> = Lock::new(None);
/// Whether log lines go to the console's port.
static SHARED: AtomicBool = AtomicBool::new(false);

/// Longest wait for a full transmitter, in tries: a port that is stuck must not stop the host.
const PATIENCE: u32 = 1_000_000;

/// Finds the ports and sets them to 115200 8N1, without interrupts.
pub fn init() {
    let log = open(COM2);
    SHARED.store(log.is_none(), Ordering::Relaxed);
    *LOG.lock() = log;
    *CONSOLE.lock() = open(COM1);
}

fn open(base: u16) -> Option<Port> {
    // SAFETY: on a PC these ports are a 16550's or nobody's; `init` makes sure that one answers.
    let mut port = unsafe { Port::new_port(base) }.ok()?;
    let config = Config {
        baud_rate: BaudRate::Baud115200,
        fifo_trigger_level: Some(FifoTriggerLevel::One),
        ..Config::DEFAULT
    };
    port.init(config).ok()?;
    Some(port)
}

/// Whether somebody else writes to the console's port too: the log, on a host with one port.
pub fn console_is_shared() -> bool {
    SHARED.load(Ordering::Relaxed)
}

/// Whether the log has a port of its own.
pub fn has_log_port() -> bool {
    LOG.lock().is_some()
}

/// Lets the log's own port interrupt when something arrives. False without such a port.
pub fn listen_on_log() -> bool {
    LOG.lock().as_mut().map(|port| port.enable_interrupts(IER::DATA_READY)).is_some()
}

/// Hands out all that arrived at the log's own port, and leaves no cause of its interrupt pending.
pub fn receive_from_log(mut each: impl FnMut(u8)) {
    /// Rounds until a line that never falls silent is left for the next interrupt.
    const ROUNDS: usize = 256;
    if let Some(port) = LOG.lock().as_mut() {
        for _ in 0..ROUNDS {
            while let Ok(byte) = port.try_receive_byte() {
                each(byte);
            }
            if !port.isr().has_pending_interrupt() {
                break;
            }
        }
    }
}

/// Writes to the log's port.
pub fn write_log(text: &[u8]) {
    let port = if SHARED.load(Ordering::Relaxed) { &CONSOLE } else { &LOG };
    if let Some(port) = port.lock().as_mut() {
        write(port, text);
    }
}

/// Writes to the log's port even if somebody holds it: for a host that is going down.
pub fn write_log_urgently(text: &[u8]) {
    let (port, base) = if SHARED.load(Ordering::Relaxed) { (&CONSOLE, COM1) } else { (&LOG, COM2) };
    if let Some(mut port) = port.try_lock() {
        if let Some(port) = port.as_mut() {
            write(port, text);
        }
        return;
    }
    // SAFETY: whoever holds the port will not go on; it was set up before.
    if let Ok(mut port) = unsafe { Port::new_port(base) } {
        write(&mut port, text);
    }
}

/// Waits until both ports have sent everything, if they move at all: before the machine is switched off.
pub fn drain() {
    for port in [&CONSOLE, &LOG] {
        if let Some(mut port) = port.try_lock()
            && let Some(port) = port.as_mut()
        {
            let mut waited = 0;
            while !port.lsr().contains(LSR::TRANSMITTER_EMPTY) && waited < PATIENCE {
                waited += 1;
            }
        }
    }
}

/// Writes all of `text`, with a carriage return before each line feed.
fn write(port: &mut Port, text: &[u8]) {
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(line) => {
                send(port, line);
                send(port, b"\r\n");
            }
            None => send(port, line),
        }
    }
}

fn send(port: &mut Port, mut bytes: &[u8]) {
    let mut waited = 0;
    while !bytes.is_empty() && waited < PATIENCE {
        match port.send_bytes(bytes) {
            0 => {
                waited += 1;
                core::hint::spin_loop();
            }
            sent => {
                bytes = bytes.get(sent..).unwrap_or(&[]);
                waited = 0;
            }
        }
    }
}
