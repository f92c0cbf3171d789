//! Registers of the PC16550D, under the datasheet's names.

use bitflags::bitflags;

/// Transmit FIFO and receive FIFO depth.
pub const FIFO_DEPTH: usize = 16;

/// Register offsets; DLAB and the direction choose between those that share one.
pub mod offset {
    /// Receiver buffer (read), transmitter holding (write), divisor latch low (DLAB).
    pub const RBR_THR_DLL: u64 = 0;
    /// Interrupt enable, divisor latch high (DLAB).
    pub const IER_DLM: u64 = 1;
    /// Interrupt identification (read), FIFO control (write).
    pub const IIR_FCR: u64 = 2;
    /// Line control.
    pub const LCR: u64 = 3;
    /// Modem control.
    pub const MCR: u64 = 4;
    /// Line status.
    pub const LSR: u64 = 5;
    /// Modem status.
    pub const MSR: u64 = 6;
    /// Scratch.
    pub const SCR: u64 = 7;
}

bitflags! {
    /// 8.7 "Interrupt Enable Register".
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ier: u8 {
        /// Received data available, and character time-out in FIFO mode.
        const ERBFI = 1 << 0;
        /// Transmitter holding register empty.
        const ETBEI = 1 << 1;
        /// Receiver line status.
        const ELSI = 1 << 2;
        /// Modem status.
        const EDSSI = 1 << 3;
    }

    /// 8.5 "FIFO Control Register", without the trigger level.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Fcr: u8 {
        /// Enables both FIFOs; must be set for the other bits to act.
        const FIFO_ENABLE = 1 << 0;
        /// Clears the receive FIFO.
        const RCVR_FIFO_RESET = 1 << 1;
        /// Clears the transmit FIFO.
        const XMIT_FIFO_RESET = 1 << 2;
        /// DMA mode; has no pins on a PC.
        const DMA_MODE_SELECT = 1 << 3;
    }

    /// 8.1 "Line Control Register".
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Lcr: u8 {
        /// Word length, bit 0.
        const WLS0 = 1 << 0;
        /// Word length, bit 1.
        const WLS1 = 1 << 1;
        /// Stop bits.
        const STB = 1 << 2;
        /// Parity enable.
        const PEN = 1 << 3;
        /// Even parity.
        const EPS = 1 << 4;
        /// Stick parity.
        const STICK_PARITY = 1 << 5;
        /// Holds the output in the spacing state.
        const SET_BREAK = 1 << 6;
        /// Divisor latch access.
        const DLAB = 1 << 7;
    }

    /// 8.8 "Modem Control Register".
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Mcr: u8 {
        /// Data terminal ready.
        const DTR = 1 << 0;
        /// Request to send.
        const RTS = 1 << 1;
        /// User output 1; not connected on a PC.
        const OUT1 = 1 << 2;
        /// User output 2; on a PC it gates the interrupt line.
        const OUT2 = 1 << 3;
        /// Loopback for diagnosis.
        const LOOP = 1 << 4;
    }

    /// 8.4 "Line Status Register".
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Lsr: u8 {
        /// Data ready.
        const DR = 1 << 0;
        /// Overrun error.
        const OE = 1 << 1;
        /// Parity error.
        const PE = 1 << 2;
        /// Framing error.
        const FE = 1 << 3;
        /// Break interrupt.
        const BI = 1 << 4;
        /// Transmitter holding register empty.
        const THRE = 1 << 5;
        /// Transmitter empty.
        const TEMT = 1 << 6;
        /// An error is somewhere in the receive FIFO.
        const ERROR_IN_FIFO = 1 << 7;
    }

    /// 8.9 "Modem Status Register".
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Msr: u8 {
        /// CTS changed.
        const DCTS = 1 << 0;
        /// DSR changed.
        const DDSR = 1 << 1;
        /// RI fell.
        const TERI = 1 << 2;
        /// DCD changed.
        const DDCD = 1 << 3;
        /// Clear to send.
        const CTS = 1 << 4;
        /// Data set ready.
        const DSR = 1 << 5;
        /// Ring indicator.
        const RI = 1 << 6;
        /// Data carrier detect.
        const DCD = 1 << 7;
    }
}

/// 8.6 "Interrupt Identification Register", Table IV, highest priority first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Iid {
    /// Overrun, parity, framing error or break.
    ReceiverLineStatus = 0b0110,
    /// The receive FIFO reached its trigger level.
    ReceivedDataAvailable = 0b0100,
    /// The receive FIFO holds characters that nobody fetched.
    CharacterTimeout = 0b1100,
    /// The transmitter holding register is empty.
    TransmitterHoldingRegisterEmpty = 0b0010,
    /// A modem input changed.
    ModemStatus = 0b0000,
    /// Nothing is pending.
    None = 0b0001,
}

/// IIR bits 6 and 7, set while the FIFOs are enabled.
pub const IIR_FIFOS_ENABLED: u8 = 0xc0;

/// The receive trigger level that bits 6 and 7 of the FCR choose.
pub const fn trigger_level(fcr: u8) -> usize {
    match fcr >> 6 {
        0 => 1,
        1 => 4,
        2 => 8,
        _ => 14,
    }
}
