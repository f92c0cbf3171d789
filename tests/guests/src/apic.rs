//! The local APIC in xAPIC mode. Manual: Intel SDM (December 2024) 3A, chapter 11 "Advanced Programmable Interrupt Controller".

use crate::cpu;

/// Where its registers are after reset.
pub const BASE: u64 = 0xfee0_0000;
/// IA32_APIC_BASE.
pub const BASE_MSR: u32 = 0x1b;

/// Register offsets, SDM 3A table 11-1 "Local APIC Register Address Map".
#[allow(missing_docs)]
pub mod register {
    pub const ID: u64 = 0x20;
    pub const VERSION: u64 = 0x30;
    pub const TPR: u64 = 0x80;
    pub const PPR: u64 = 0xa0;
    pub const EOI: u64 = 0xb0;
    pub const LDR: u64 = 0xd0;
    pub const DFR: u64 = 0xe0;
    pub const SVR: u64 = 0xf0;
    pub const ISR: u64 = 0x100;
    pub const IRR: u64 = 0x200;
    pub const ESR: u64 = 0x280;
    pub const ICR_LOW: u64 = 0x300;
    pub const ICR_HIGH: u64 = 0x310;
    pub const LVT_TIMER: u64 = 0x320;
    pub const LVT_LINT0: u64 = 0x350;
    pub const LVT_LINT1: u64 = 0x360;
    pub const LVT_ERROR: u64 = 0x370;
    pub const TIMER_INITIAL: u64 = 0x380;
    pub const TIMER_CURRENT: u64 = 0x390;
    pub const TIMER_DIVIDE: u64 = 0x3e0;
}

/// LVT and ICR bits.
pub const MASKED: u32 = 1 << 16;
/// LVT: periodic timer.
pub const PERIODIC: u32 = 1 << 17;
/// LVT and ICR: NMI delivery.
pub const NMI: u32 = 4 << 8;
/// LVT: the legacy controllers deliver here.
pub const EXTINT: u32 = 7 << 8;
/// ICR: to this processor alone.
pub const SELF: u32 = 1 << 18;
/// ICR: level asserted, wanted for everything but the deassert of INIT.
pub const ASSERT: u32 = 1 << 14;
/// ICR: not yet sent.
pub const PENDING: u32 = 1 << 12;
/// The divide register's code for 16.
pub const DIVIDE_BY_16: u32 = 3;
/// Its code for 1.
pub const DIVIDE_BY_1: u32 = 0xb;

/// The vector that spurious interrupts get here.
pub const SPURIOUS: u8 = 0xff;

/// Reads a register.
pub fn read(offset: u64) -> u32 {
    cpu::mmio_read32(BASE + offset)
}

/// Writes a register.
pub fn write(offset: u64, value: u32) {
    cpu::mmio_write32(BASE + offset, value);
}

/// Software-enables the APIC with all of the local vector table masked and the task priority 0.
pub fn enable() {
    write(register::TPR, 0);
    write(register::SVR, 0x100 | u32::from(SPURIOUS));
    for lvt in [register::LVT_TIMER, register::LVT_LINT0, register::LVT_LINT1, register::LVT_ERROR] {
        write(lvt, MASKED | 0xfe);
    }
}

/// This processor's id.
pub fn id() -> u8 {
    (read(register::ID) >> 24) as u8
}

/// Ends the interrupt in service.
pub fn end() {
    write(register::EOI, 0);
}

/// Sends `command` (vector, mode, shorthand) to this processor itself.
pub fn send_self(command: u32) {
    write(register::ICR_LOW, SELF | ASSERT | command);
}

/// Sends `command` to the processor `id`, and waits until it is out.
pub fn send(id: u8, command: u32) {
    write(register::ICR_HIGH, u32::from(id) << 24);
    write(register::ICR_LOW, command);
    while read(register::ICR_LOW) & PENDING != 0 {
        cpu::pause();
    }
}

/// Whether bit `vector` is set in the 256-bit register at `offset` (ISR or IRR).
pub fn bit(offset: u64, vector: u8) -> bool {
    read(offset + u64::from(vector / 32) * 16) >> (vector % 32) & 1 != 0
}
