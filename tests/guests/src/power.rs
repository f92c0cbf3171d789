//! Ending the machine.

use crate::{cpu, port};

/// PM1a_CNT of a q35 machine: PMBASE 0x600 plus 4.
const PM1_CONTROL: u16 = 0x604;
/// SLP_EN with SLP_TYP 0, which is S5 on q35.
const SLEEP_S5: u16 = 1 << 13;
/// isa-debug-exit, where there is one.
const DEBUG_EXIT: u16 = 0xf4;

/// Turns of an empty loop after which the machine is taken not to power off.
const PATIENCE: u32 = 50_000_000;

/// Powers off through ACPI; if the machine stays, ends it through the debug-exit port with `code`, or halts for good.
pub fn off(code: u8) -> ! {
    cpu::disable_interrupts();
    port::write16(PM1_CONTROL, SLEEP_S5);
    // A machine may take a moment to notice, and needs no clock that works for this.
    for turn in 0..PATIENCE {
        core::hint::black_box(turn);
    }
    port::write8(DEBUG_EXIT, code);
    loop {
        cpu::halt();
    }
}

/// ICH9 reset control.
const RESET_CONTROL: u16 = 0xcf9;

/// Hard reset through port 0xCF9.
pub fn reset() {
    port::write8(RESET_CONTROL, 0x02);
    port::write8(RESET_CONTROL, 0x06);
}
