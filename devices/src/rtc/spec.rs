//! Registers of the MC146818A, under the datasheet's names, and the PC's use of the RAM behind them.

use bitflags::bitflags;

/// Addresses in the RAM.
pub mod address {
    /// Seconds.
    pub const SECONDS: u8 = 0x00;
    /// Seconds alarm.
    pub const SECONDS_ALARM: u8 = 0x01;
    /// Minutes.
    pub const MINUTES: u8 = 0x02;
    /// Minutes alarm.
    pub const MINUTES_ALARM: u8 = 0x03;
    /// Hours.
    pub const HOURS: u8 = 0x04;
    /// Hours alarm.
    pub const HOURS_ALARM: u8 = 0x05;
    /// Day of the week, 1 is Sunday.
    pub const DAY_OF_WEEK: u8 = 0x06;
    /// Day of the month.
    pub const DAY_OF_MONTH: u8 = 0x07;
    /// Month.
    pub const MONTH: u8 = 0x08;
    /// Year of the century.
    pub const YEAR: u8 = 0x09;
    /// Register A.
    pub const A: u8 = 0x0a;
    /// Register B.
    pub const B: u8 = 0x0b;
    /// Register C.
    pub const C: u8 = 0x0c;
    /// Register D.
    pub const D: u8 = 0x0d;
    /// PC: equipment.
    pub const EQUIPMENT: u8 = 0x14;
    /// PC: base memory in KiB, 16 bits.
    pub const BASE_MEMORY: u8 = 0x15;
    /// PC: memory above 1 MiB in KiB, 16 bits.
    pub const EXTENDED_MEMORY: u8 = 0x17;
    /// PC: memory above 1 MiB in KiB as found by POST, 16 bits.
    pub const EXTENDED_MEMORY_FOUND: u8 = 0x30;
    /// PC: century.
    pub const CENTURY: u8 = 0x32;
    /// q35: memory from 16 MiB to 4 GiB in units of 64 KiB, 16 bits.
    pub const MEMORY_ABOVE_16M: u8 = 0x34;
    /// q35: memory above 4 GiB in units of 64 KiB, 24 bits.
    pub const MEMORY_ABOVE_4G: u8 = 0x5b;
    /// q35: processors less one.
    pub const PROCESSORS: u8 = 0x5f;
}

/// Register A: update in progress, read-only.
pub const UIP: u8 = 1 << 7;
/// Register A: divider, three bits.
pub const DV_SHIFT: u8 = 4;
/// Register A: DV values from here on hold the divider in reset.
pub const DV_RESET: u8 = 6;
/// Register A: rate selection.
pub const RS: u8 = 0x0f;
/// Register A as firmware leaves it: 32.768 kHz, 976.562 us.
pub const A_DEFAULT: u8 = 0x26;

bitflags! {
    /// Register B.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct B: u8 {
        /// Daylight saving.
        const DSE = 1 << 0;
        /// 24 hours; else 12 with PM in bit 7.
        const HOURS_24 = 1 << 1;
        /// Binary; else BCD.
        const DM = 1 << 2;
        /// Square wave.
        const SQWE = 1 << 3;
        /// Update-ended interrupt.
        const UIE = 1 << 4;
        /// Alarm interrupt.
        const AIE = 1 << 5;
        /// Periodic interrupt.
        const PIE = 1 << 6;
        /// Stops the updates, for setting the time.
        const SET = 1 << 7;
    }

    /// Register C.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct C: u8 {
        /// An update ended.
        const UF = 1 << 4;
        /// The alarm's time came.
        const AF = 1 << 5;
        /// A period ended.
        const PF = 1 << 6;
        /// One of the above is set and enabled.
        const IRQF = 1 << 7;
    }
}

/// Register D: the battery is good.
pub const VRT: u8 = 1 << 7;
/// An alarm byte with both upper bits set matches anything.
pub const DONT_CARE: u8 = 0xc0;
/// Hours: PM, in 12-hour mode.
pub const PM: u8 = 1 << 7;
/// UIP rises this long before the update, t_BUC.
pub const UIP_NANOS: u64 = 244_000;
/// The divider chain's input.
pub const CRYSTAL_HERTZ: u64 = 32_768;

/// Cycles of the crystal between two periodic interrupts, datasheet table 5; `None` for rate 0.
pub const fn period(rate: u8) -> Option<u64> {
    match rate & RS {
        0 => None,
        rate @ (1 | 2) => Some(1 << (rate + 6)),
        rate => Some(1 << (rate - 1)),
    }
}
