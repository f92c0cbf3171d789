//! Registers of the HPET, under the specification's names.

/// Offsets of the registers, 64 bits each.
pub mod offset {
    /// General capabilities and ID.
    pub const GCAP_ID: u64 = 0x00;
    /// General configuration.
    pub const GEN_CONF: u64 = 0x10;
    /// General interrupt status.
    pub const GINTR_STA: u64 = 0x20;
    /// Main counter value.
    pub const MAIN_CNT: u64 = 0xf0;
    /// First timer's registers.
    pub const TIMERS: u64 = 0x100;
    /// From one timer's registers to the next one's.
    pub const STRIDE: u64 = 0x20;
    /// Within a timer: configuration and capability.
    pub const TIM_CONF: u64 = 0x00;
    /// Within a timer: comparator value.
    pub const TIM_COMP: u64 = 0x08;
    /// Within a timer: FSB interrupt route, value below address.
    pub const TIM_FSB: u64 = 0x10;
}

/// How many timers.
pub const TIMERS: usize = 3;
/// Nanoseconds of one tick.
pub const TICK_NANOS: u64 = 10;
/// COUNTER_CLK_PERIOD in femtoseconds, VENDOR_ID of Intel, LEG_RT_CAP, COUNT_SIZE_CAP, the last timer's number, revision 1.
pub const CAPABILITIES: u64 =
    (TICK_NANOS * 1_000_000) << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS as u64 - 1) << 8 | 1;

/// GEN_CONF: the main counter runs.
pub const ENABLE_CNF: u64 = 1 << 0;
/// GEN_CONF: timers 0 and 1 replace the 8254 and the real-time clock.
pub const LEG_RT_CNF: u64 = 1 << 1;

/// Tn_CONF: level-triggered.
pub const INT_TYPE_CNF: u64 = 1 << 1;
/// Tn_CONF: the timer interrupts.
pub const INT_ENB_CNF: u64 = 1 << 2;
/// Tn_CONF: periodic.
pub const TYPE_CNF: u64 = 1 << 3;
/// Tn_CONF: can be periodic.
pub const PER_INT_CAP: u64 = 1 << 4;
/// Tn_CONF: has 64 bits.
pub const SIZE_CAP: u64 = 1 << 5;
/// Tn_CONF: the next write of the comparator sets it, not only the period.
pub const VAL_SET_CNF: u64 = 1 << 6;
/// Tn_CONF: forced to 32 bits.
pub const MODE32_CNF: u64 = 1 << 8;
/// Tn_CONF: where INT_ROUTE_CNF starts, five bits.
pub const INT_ROUTE_SHIFT: u32 = 9;
/// Tn_CONF: interrupts are messages.
pub const FSB_EN_CNF: u64 = 1 << 14;
/// Tn_CONF: interrupts can be messages.
pub const FSB_INT_DEL_CAP: u64 = 1 << 15;
/// Tn_CONF: the IOAPIC pins that a timer can drive, as on q35: 2, 8, 16 to 23.
pub const INT_ROUTE_CAP: u64 = 0x00ff_0104;
/// Tn_CONF: the bits that software writes.
pub const TIM_WRITABLE: u64 =
    INT_TYPE_CNF | INT_ENB_CNF | TYPE_CNF | VAL_SET_CNF | MODE32_CNF | 0x1f << INT_ROUTE_SHIFT | FSB_EN_CNF;
