//! Registers of the local APIC, under the SDM's names.

use bitfield_struct::bitfield;

/// Offsets in the register page, SDM 3A table 11-1 "Local APIC Register Address Map".
pub mod offset {
    /// Local APIC ID.
    pub const ID: usize = 0x020;
    /// Version.
    pub const VERSION: usize = 0x030;
    /// Task priority.
    pub const TPR: usize = 0x080;
    /// Processor priority.
    pub const PPR: usize = 0x0a0;
    /// End of interrupt.
    pub const EOI: usize = 0x0b0;
    /// Logical destination.
    pub const LDR: usize = 0x0d0;
    /// Destination format.
    pub const DFR: usize = 0x0e0;
    /// Spurious-interrupt vector.
    pub const SVR: usize = 0x0f0;
    /// In-service, first of eight words 16 bytes apart.
    pub const ISR: usize = 0x100;
    /// Trigger mode, first of eight words.
    pub const TMR: usize = 0x180;
    /// Interrupt request, first of eight words.
    pub const IRR: usize = 0x200;
    /// Error status.
    pub const ESR: usize = 0x280;
    /// Interrupt command, bits 31:0.
    pub const ICR_LOW: usize = 0x300;
    /// Interrupt command, bits 63:32.
    pub const ICR_HIGH: usize = 0x310;
    /// LVT timer.
    pub const LVT_TIMER: usize = 0x320;
    /// LVT thermal sensor.
    pub const LVT_THERMAL: usize = 0x330;
    /// LVT performance monitoring counters.
    pub const LVT_PERFORMANCE: usize = 0x340;
    /// LVT LINT0.
    pub const LVT_LINT0: usize = 0x350;
    /// LVT LINT1.
    pub const LVT_LINT1: usize = 0x360;
    /// LVT error.
    pub const LVT_ERROR: usize = 0x370;
    /// Timer initial count.
    pub const TIMER_INITIAL: usize = 0x380;
    /// Timer current count.
    pub const TIMER_CURRENT: usize = 0x390;
    /// Timer divide configuration.
    pub const TIMER_DIVIDE: usize = 0x3e0;
    /// SELF IPI, x2APIC mode only.
    pub const SELF_IPI: usize = 0x3f0;
    /// Bytes from one register to the next.
    pub const STRIDE: usize = 0x10;
    /// The end of the registers; the rest of the page is reserved.
    pub const END: usize = 0x400;
}

/// The six local vector table entries, in the order of their offsets.
pub const LVT_ENTRIES: [usize; 6] = [
    offset::LVT_TIMER,
    offset::LVT_THERMAL,
    offset::LVT_PERFORMANCE,
    offset::LVT_LINT0,
    offset::LVT_LINT1,
    offset::LVT_ERROR,
];

const fn register_bit(offset: usize) -> u64 {
    1 << (offset / offset::STRIDE)
}

const fn register_run(first: usize, count: usize) -> u64 {
    ((1 << count) - 1) << (first / offset::STRIDE)
}

/// Which registers exist in both modes and can be read, one bit each in the order of their offsets.
const READABLE_IN_BOTH: u64 = register_bit(offset::ID)
    | register_bit(offset::VERSION)
    | register_bit(offset::TPR)
    | register_bit(offset::PPR)
    | register_bit(offset::LDR)
    | register_bit(offset::SVR)
    | register_run(offset::ISR, 24)
    | register_bit(offset::ESR)
    | register_bit(offset::ICR_LOW)
    | register_run(offset::LVT_TIMER, 8)
    | register_bit(offset::TIMER_DIVIDE);

/// Registers that xAPIC mode decodes. EOI is write-only but reads as 0 without an error; so do the arbitration priority
/// (0x90) and remote read (0xc0) registers, which only older processors have.
pub const XAPIC_DECODED: u64 = READABLE_IN_BOTH
    | register_bit(0x090)
    | register_bit(0x0c0)
    | register_bit(offset::EOI)
    | register_bit(offset::DFR)
    | register_bit(offset::ICR_HIGH);

/// Registers that RDMSR reads in x2APIC mode, SDM 3A table 11-6 "Local APIC Register Address Map Supported by x2APIC".
pub const X2APIC_READABLE: u64 = READABLE_IN_BOTH;

/// First MSR of the x2APIC range.
pub const X2APIC_MSR_FIRST: u32 = 0x800;

/// IA32_APIC_BASE, SDM 3A 11.4.4 "Local APIC Status and Location".
pub mod apic_base {
    /// This is the bootstrap processor.
    pub const BSP: u64 = 1 << 8;
    /// x2APIC mode.
    pub const EXTD: u64 = 1 << 10;
    /// The local APIC is there at all.
    pub const EN: u64 = 1 << 11;
    /// Where the register page lies after reset.
    pub const DEFAULT_ADDRESS: u64 = 0xfee0_0000;
    /// Bits of the value below the address.
    pub const ADDRESS_SHIFT: u32 = 12;
}

/// Version register, SDM 3A 11.4.8 "Local APIC Version Register": an integrated APIC with six LVT entries.
pub const VERSION: u32 = 0x0005_0014;
/// Version register: EOI broadcasts can be suppressed.
pub const VERSION_EOI_SUPPRESSION: u32 = 1 << 24;

/// Spurious-interrupt vector register, SDM 3A 11.9 "Spurious Interrupt".
pub mod svr {
    /// The vector.
    pub const VECTOR: u32 = 0xff;
    /// APIC software enable.
    pub const ENABLE: u32 = 1 << 8;
    /// Focus processor checking; kept, means nothing since the P6.
    pub const FOCUS: u32 = 1 << 9;
    /// EOI-broadcast suppression.
    pub const EOI_SUPPRESSION: u32 = 1 << 12;
    /// After reset: disabled, vector 0xff.
    pub const RESET: u32 = 0xff;
}

/// Error status register, SDM 3A 11.5.3 "Error Handling".
pub mod esr {
    /// A message of ours had a vector below 16.
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    /// A message to us, or our own LVT, had a vector below 16.
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    /// An access to a register that is not there; xAPIC mode only.
    pub const ILLEGAL_REGISTER_ADDRESS: u32 = 1 << 7;
}

/// The lowest vector that an APIC delivers, SDM 3A 11.5.2 "Valid Interrupt Vectors".
pub const FIRST_VECTOR: u8 = 16;

/// What the timer does when the count is over, LVT timer bits 18:17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerMode {
    /// Stops.
    OneShot,
    /// Starts again from the initial count.
    Periodic,
    /// Compares the TSC with IA32_TSC_DEADLINE.
    TscDeadline,
    /// Encoding 3: nothing.
    Reserved,
}

impl TimerMode {
    const fn from_bits(bits: u8) -> TimerMode {
        match bits {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::Reserved,
        }
    }
    const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// A local vector table entry, SDM 3A figure 11-8 "Local Vector Table (LVT)".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Lvt {
    /// The vector, for fixed delivery.
    pub vector: u8,
    /// Delivery mode; not in the timer and error entries.
    #[bits(3)]
    pub delivery: u32,
    #[bits(1)]
    __: u8,
    /// Delivery status; a message is gone at once, so it is never set.
    pub delivery_status: bool,
    /// Pin polarity, LINT only; wires here carry "asserted", so it is kept and changes nothing.
    pub active_low: bool,
    /// A level-triggered LINT interrupt was accepted and not yet ended.
    pub remote_irr: bool,
    /// Trigger mode, LINT only.
    pub level: bool,
    /// Inhibits delivery.
    pub masked: bool,
    /// Timer only.
    #[bits(2)]
    pub timer_mode: TimerMode,
    #[bits(13)]
    __: u16,
}

impl Lvt {
    /// The mask bit.
    pub const MASKED: u32 = 1 << 16;
    /// Bits that software cannot write but may give: delivery status, remote IRR.
    pub const READ_ONLY: u32 = 1 << 12 | 1 << 14;
    /// Remote IRR.
    pub const REMOTE_IRR: u32 = 1 << 14;

    /// Bits that software can write in the entry at `offset`.
    pub const fn writable(offset: usize, tsc_deadline: bool) -> u32 {
        const VECTOR_AND_MASK: u32 = 0xff | Lvt::MASKED;
        const DELIVERY: u32 = 7 << 8;
        match offset {
            offset::LVT_TIMER => VECTOR_AND_MASK | 1 << 17 | (tsc_deadline as u32) << 18,
            offset::LVT_THERMAL | offset::LVT_PERFORMANCE => VECTOR_AND_MASK | DELIVERY,
            offset::LVT_LINT0 | offset::LVT_LINT1 => VECTOR_AND_MASK | DELIVERY | 1 << 13 | 1 << 15,
            _ => VECTOR_AND_MASK,
        }
    }
}

/// Destination shorthand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    /// The destination field counts.
    None,
    /// The sender.
    ToSelf,
    /// Everybody.
    AllIncludingSelf,
    /// Everybody else.
    AllExcludingSelf,
}

impl Shorthand {
    const fn from_bits(bits: u8) -> Shorthand {
        match bits {
            0 => Shorthand::None,
            1 => Shorthand::ToSelf,
            2 => Shorthand::AllIncludingSelf,
            _ => Shorthand::AllExcludingSelf,
        }
    }
    const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// Bits 31:0 of the interrupt command register, SDM 3A figure 11-12 "Interrupt Command Register (ICR)".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Icr {
    /// The vector, or the start-up page.
    pub vector: u8,
    /// Delivery mode.
    #[bits(3)]
    pub delivery: u32,
    /// Logical destination mode.
    pub logical: bool,
    /// Delivery status; a message is gone at once, so it is never set.
    pub delivery_status: bool,
    #[bits(1)]
    __: u8,
    /// Level: 0 for INIT level de-assert, else 1.
    pub assert: bool,
    /// Trigger mode.
    pub level: bool,
    #[bits(2)]
    __: u8,
    /// Destination shorthand.
    #[bits(2)]
    pub shorthand: Shorthand,
    #[bits(12)]
    __: u16,
}

impl Icr {
    /// Bits that software can write.
    pub const WRITABLE: u32 = 0x000c_cfff;
    /// Delivery status: read-only, gone in x2APIC mode.
    pub const DELIVERY_STATUS: u32 = 1 << 12;
}

/// Bits of the divide configuration register that exist.
pub const DIVIDE_BITS: u32 = 0b1011;

/// log2 of the divisor that the register chooses, SDM 3A figure 11-10 "Divide Configuration Register".
pub const fn divide_shift(register: u32) -> u32 {
    // 000 divides by 2, each step doubles, and 111 divides by 1.
    ((register & 3 | register >> 1 & 4) + 1) & 7
}

/// Destination format register: the bits below the model read as ones.
pub const DFR_ONES: u32 = 0x0fff_ffff;
/// Destination format register, bits 31:28: flat model.
pub const DFR_FLAT: u32 = 0xf;
/// Bits of the logical destination register that xAPIC mode has.
pub const LDR_XAPIC: u32 = 0xff00_0000;

/// The logical id that x2APIC mode derives, SDM 3A 11.12.10.2 "Deriving Logical x2APIC ID from the Local x2APIC ID".
pub const fn x2apic_logical_id(id: u32) -> u32 {
    (id & 0xffff0) << 12 | 1 << (id & 0xf)
}
