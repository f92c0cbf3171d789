//! How a run ends, told to whoever runs the host.
//!
//! Under QEMU the debug-exit port ends it with a status; under Bochs the word "Shutdown" does. On a PC neither is there,
//! and the CPU halts.

#![allow(unsafe_code)] // Port access.

use crate::cpu;
use crate::journal::Urgent;
use core::fmt::Write;
use x86_64::instructions::port::PortWriteOnly;

/// How it ended; the log's last line says it too. The values are `scripts/`' too; QEMU's status is twice the value plus 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Outcome {
    /// All virtual machines were powered off in order.
    PoweredOff = 0x10,
    /// A virtual machine was stopped with a report.
    Stopped = 0x11,
    /// The host panicked.
    Panic = 0x12,
    /// The user asked for something that cannot be had.
    UserError = 0x13,
}

/// QEMU's `isa-debug-exit,iobase=0x501,iosize=2`.
const DEBUG_EXIT: u16 = 0x501;
/// Bochs' port for the word.
const BOCHS_SHUTDOWN: u16 = 0x8900;

/// Ends the run.
pub fn end(outcome: Outcome) -> ! {
    // Panics come here too, with locks held by nobody who goes on.
    let _ = writeln!(Urgent, "ENDED {:#x}", outcome as u16);
    crate::console::flush();
    crate::serial::drain();
    // Bochs first: at the other port it has a VGA BIOS that panics.
    for letter in *b"Shutdown" {
        // SAFETY: nothing is left to be disturbed on this host.
        unsafe { PortWriteOnly::new(BOCHS_SHUTDOWN).write(letter) };
    }
    // SAFETY: as above.
    unsafe { PortWriteOnly::new(DEBUG_EXIT).write(outcome as u16) };
    cpu::halt_forever()
}
