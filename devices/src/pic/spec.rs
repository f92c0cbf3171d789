//! Registers of the 8259A pair, under the datasheets' names.

/// Offsets as `machine` claims them: the master at 0x20, the slave at 0xa0, the edge/level registers at 0x4d0.
pub mod offset {
    /// The command port of the first chip; each has two ports, and the edge/level registers follow.
    pub const MASTER: u64 = 0;
    /// The command port of the second chip.
    pub const SLAVE: u64 = 2;
    /// ELCR1 and ELCR2.
    pub const ELCR: u64 = 4;
    /// One past the last.
    pub const END: u64 = 6;
}

/// The master's input that the slave's output drives.
pub const CASCADE: u8 = 2;

/// ICW1, command port with bit 4 set.
pub mod icw1 {
    /// An ICW4 follows.
    pub const IC4: u8 = 1 << 0;
    /// No cascade: no ICW3 follows.
    pub const SNGL: u8 = 1 << 1;
    /// Marks an ICW1.
    pub const SELECT: u8 = 1 << 4;
}

/// ICW2, data port: bits 7:3 of the vectors.
pub const ICW2_BASE: u8 = 0xf8;

/// ICW4, data port.
pub mod icw4 {
    /// Automatic end of interrupt.
    pub const AEOI: u8 = 1 << 1;
    /// Special fully nested mode.
    pub const SFNM: u8 = 1 << 4;
}

/// OCW2, command port with bits 4 and 3 clear: rotate, specific level, end of interrupt in bits 7:5; the level in 2:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ocw2 {
    /// Stop rotating at automatic ends.
    StopRotatingOnAeoi,
    /// End the highest level in service.
    NonSpecificEoi,
    /// Nothing.
    NoOperation,
    /// End the named level.
    SpecificEoi,
    /// Rotate at automatic ends.
    RotateOnAeoi,
    /// End the highest level in service, which gets the lowest priority.
    RotateOnNonSpecificEoi,
    /// The named level gets the lowest priority.
    SetPriority,
    /// End the named level, which gets the lowest priority.
    RotateOnSpecificEoi,
}

impl Ocw2 {
    /// The command in bits 7:5.
    pub const fn from_bits(value: u8) -> Ocw2 {
        match value >> 5 {
            0 => Ocw2::StopRotatingOnAeoi,
            1 => Ocw2::NonSpecificEoi,
            2 => Ocw2::NoOperation,
            3 => Ocw2::SpecificEoi,
            4 => Ocw2::RotateOnAeoi,
            5 => Ocw2::RotateOnNonSpecificEoi,
            6 => Ocw2::SetPriority,
            _ => Ocw2::RotateOnSpecificEoi,
        }
    }
}

/// OCW3, command port with bit 4 clear and bit 3 set.
pub mod ocw3 {
    /// Read ISR rather than IRR, where [`RR`] is set.
    pub const RIS: u8 = 1 << 0;
    /// Read register command.
    pub const RR: u8 = 1 << 1;
    /// Poll command.
    pub const POLL: u8 = 1 << 2;
    /// Marks an OCW3.
    pub const SELECT: u8 = 1 << 3;
    /// Special mask mode on rather than off, where [`ESMM`] is set.
    pub const SMM: u8 = 1 << 5;
    /// Set special mask mode.
    pub const ESMM: u8 = 1 << 6;
}

/// What a poll reads when an input wants service, beside its number.
pub const POLL_PENDING: u8 = 1 << 7;

/// The input that a chip answers with when the request went away before the acknowledge.
pub const SPURIOUS: u8 = 7;

/// ELCR1: IRQ 0, 1 and 2 are always edge-triggered.
pub const ELCR1_WRITABLE: u8 = 0xf8;
/// ELCR2: IRQ 8 and 13 are always edge-triggered.
pub const ELCR2_WRITABLE: u8 = 0xde;
