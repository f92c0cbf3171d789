//! The hypervisor's own log: to a serial port of its own, and always to a ring that a crash dump prints.
//!
//! Backend of the `log` crate. A line has the seconds of the host's clock, the CPU, the level and the text. The port is
//! COM2; where there is none, COM1, which the console then shares.

use crate::lock::Lock;
use crate::ring::Ring;
use crate::{clock, console, percpu, serial};
use alloc::string::String;
use core::fmt::{self, Write};
use log::{LevelFilter, Log, Metadata, Record};

/// Bytes of the log that are kept.
const KEPT: usize = 64 << 10;

/// Held for a whole line, so that those of several CPUs do not mix.
static LINE: Lock<()> = Lock::new(());
static KEPT_LINES: Lock<Ring<KEPT>> = Lock::new(Ring::new());
static JOURNAL: Journal = Journal;

struct Journal;

/// Starts the log.
pub fn init() {
    if log::set_logger(&JOURNAL).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Log for Journal {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let microseconds = clock::now() / 1000;
        let (seconds, fraction) = (microseconds / 1_000_000, microseconds % 1_000_000);
        let (cpu, level) = (percpu::number(), record.level());
        let _line = LINE.lock();
        // A writer that never fails.
        let _ = writeln!(Everywhere, "[{seconds:5}.{fraction:06}] {cpu} {level:5} {}", record.args());
    }

    fn flush(&self) {}
}

/// Writes to the port and the ring.
struct Everywhere;

impl Write for Everywhere {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if let Some(mut kept) = KEPT_LINES.try_lock() {
            kept.push(text.as_bytes());
        }
        serial::write_log(text.as_bytes());
        if serial::console_is_shared() {
            // Who wanted to print to the port meanwhile found it taken.
            console::pump();
        }
        Ok(())
    }
}

/// Writes text as it is, without time and level: what scripts read.
pub fn print(text: fmt::Arguments<'_>) {
    let _line = LINE.lock();
    // The port takes everything.
    let _ = Everywhere.write_fmt(text);
}

/// Writes to the port alone, whoever holds it: for panics.
pub struct Urgent;

impl Write for Urgent {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        serial::write_log_urgently(text.as_bytes());
        Ok(())
    }
}

/// Prints the last `lines` lines of the log to the port, whoever holds it.
pub fn dump(lines: usize) {
    let Some(kept) = KEPT_LINES.try_lock() else {
        return serial::write_log_urgently(b"(the log is being written and cannot be printed)\n");
    };
    let (first, second) = kept.last_lines(lines);
    serial::write_log_urgently(first);
    serial::write_log_urgently(second);
}

/// The last `lines` lines of the log.
pub fn last_lines(lines: usize) -> String {
    let kept = KEPT_LINES.lock();
    let (first, second) = kept.last_lines(lines);
    let mut text = String::from_utf8_lossy(first).into_owned();
    text.push_str(&String::from_utf8_lossy(second));
    text
}
