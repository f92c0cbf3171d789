//! Registers of the 8254 and of port 0x61, under the datasheets' names.

/// What the counters count.
pub const HERTZ: u64 = 1_193_182;

/// Offsets as `machine` claims them: the 8254 at 0x40, the NMI status and control register at 0x61.
pub mod offset {
    /// One past the last counter's port.
    pub const COUNTERS_END: u64 = 3;
    /// The control word register; write-only.
    pub const CONTROL: u64 = 3;
    /// NMI status and control, port 0x61.
    pub const NMI_SC: u64 = 4;
}

/// Control word, 8254 figure 7 "Control Word Format".
pub mod control {
    /// Bits 7:6: which counter.
    pub const SELECT_SHIFT: u8 = 6;
    /// Counter select: read-back command.
    pub const READ_BACK: u8 = 3;
    /// Bits 5:4: how counts are read and written.
    pub const RW_SHIFT: u8 = 4;
    /// Bits 3:1: mode.
    pub const MODE_SHIFT: u8 = 1;
    /// Four decades rather than 16 bits.
    pub const BCD: u8 = 1 << 0;
}

/// Read-back command, 8254 figure 10 "Read-Back Command Format". The first two are active low.
pub mod read_back {
    /// Do not latch the count.
    pub const NO_COUNT: u8 = 1 << 5;
    /// Do not latch the status.
    pub const NO_STATUS: u8 = 1 << 4;
    /// The bit of counter 0; the others follow.
    pub const COUNTER_0: u8 = 1 << 1;
}

/// Status byte, 8254 figure 11 "Status Byte". The low six bits are the control word's.
pub mod status {
    /// The level of OUT.
    pub const OUT: u8 = 1 << 7;
    /// The count last written is not in the counting element yet.
    pub const NULL_COUNT: u8 = 1 << 6;
}

/// How a count is read and written: RW1 and RW0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Least significant byte only; the other one is 0.
    Lsb,
    /// Most significant byte only; the other one is 0.
    Msb,
    /// Least significant byte, then most significant byte.
    Word,
}

/// The six modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Mode 0.
    InterruptOnTerminalCount,
    /// Mode 1.
    HardwareRetriggerableOneShot,
    /// Mode 2.
    RateGenerator,
    /// Mode 3.
    SquareWave,
    /// Mode 4.
    SoftwareTriggeredStrobe,
    /// Mode 5.
    HardwareTriggeredStrobe,
}

impl Mode {
    /// The mode of bits 3:1 of a control word; the top bit does not count for modes 2 and 3.
    pub const fn from_control(control: u8) -> Mode {
        match control >> control::MODE_SHIFT & 7 {
            0 => Mode::InterruptOnTerminalCount,
            1 => Mode::HardwareRetriggerableOneShot,
            4 => Mode::SoftwareTriggeredStrobe,
            5 => Mode::HardwareTriggeredStrobe,
            2 | 6 => Mode::RateGenerator,
            _ => Mode::SquareWave,
        }
    }
}

/// NMI status and control register, ICH9 datasheet 13.7.1 "NMI_SC".
pub mod nmi_sc {
    /// GATE of counter 2.
    pub const TIM_CNT2_EN: u8 = 1 << 0;
    /// All bits that can be written: the above, speaker data enable and the two NMI enables.
    pub const WRITABLE: u8 = 0x0f;
    /// Toggles with each refresh request.
    pub const REF_TOGGLE: u8 = 1 << 4;
    /// OUT of counter 2.
    pub const TMR2_OUT_STS: u8 = 1 << 5;
}

/// Counts between refresh requests, 15 microseconds.
pub const REFRESH_COUNTS: u64 = 18;
