//! Registers of the ICH9 power management block, under the datasheet's names: 13.8.3 "Power Management I/O Registers".

use bitflags::bitflags;

/// Offsets from PMBASE.
pub mod offset {
    /// PM1 status, 16 bits; behind it PM1_EN (at 2, 16 bits) and PM1_CNT (at 4, 32 bits).
    pub const PM1_STS: u64 = 0x00;
    /// PM1 timer, 32 bits, read-only.
    pub const PM1_TMR: u64 = 0x08;
    /// General purpose event 0 status, 64 bits.
    pub const GPE0_STS: u64 = 0x20;
    /// General purpose event 0 enable, 64 bits.
    pub const GPE0_EN: u64 = 0x28;
    /// SMI control and enable, 32 bits; behind it SMI_STS (at 0x34, 32 bits).
    pub const SMI_EN: u64 = 0x30;
    /// One past the last port.
    pub const END: u64 = 0x80;
}

bitflags! {
    /// PM1_STS and, at the same places, PM1_EN.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Pm1: u16 {
        /// The timer's most significant bit changed.
        const TMR = 1 << 0;
        /// A bus master asked for the bus. Status only.
        const BM = 1 << 4;
        /// Firmware released the global lock.
        const GBL = 1 << 5;
        /// The power button was pressed.
        const PWRBTN = 1 << 8;
        /// The RTC raised IRQ8.
        const RTC = 1 << 10;
        /// PCI Express wake.
        const PCIEXPWAK = 1 << 14;
        /// The machine woke up. Status only.
        const WAK = 1 << 15;
    }

    /// PM1_CNT, the bits that are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Pm1Cnt: u32 {
        /// Events raise SCI, not SMI.
        const SCI_EN = 1 << 0;
        /// A bus master request wakes from C3.
        const BM_RLD = 1 << 1;
        /// Sleep type, three bits.
        const SLP_TYP = 7 << 10;
    }
}

/// PM1_CNT: go to sleep, write-only.
pub const SLP_EN: u32 = 1 << 13;
/// Where SLP_TYP starts.
pub const SLP_TYP_SHIFT: u32 = 10;
/// SMI_EN: a write to APM_CNT raises SMI. Firmware reads it to learn whether SMM is set up already.
pub const APMC_EN: u32 = 1 << 5;

/// The PM timer's frequency, ACPI 6.4 4.8.3.3 "Power Management Timer (PM_TMR)".
pub const TIMER_HERTZ: u64 = 3_579_545;
