//! The digested form of an instruction: what execution needs of it and nothing else.
//!
//! Key type: [`Decoded`], small and plain, made by `digest` and kept in the cache. It depends on the code size and the
//! bytes alone, not on where they stood.

use super::length::Exiting;
use memory::Width;
use vcpu::{Length, SegmentName};

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoded {
    pub operation: Operation,
    pub length: Length,
    /// LOCK, or an exchange with memory, which is locked always.
    pub locked: bool,
    pub repeat: Repeat,
    /// The size of the operation; of the register where the memory operand is narrower.
    pub width: Width,
    /// Bytes of the memory operand: 0 to 32.
    pub memory_bytes: u8,
    pub first: Operand,
    pub second: Operand,
    pub third: Operand,
    pub address: AddressForm,
    /// The immediate operand, sign-extended.
    pub immediate: u64,
}

impl Decoded {
    /// What an empty cache slot holds.
    pub const fn nothing() -> Decoded {
        let Some(length) = Length::new(1) else { unreachable!() };
        Decoded {
            operation: Operation::Unrelated,
            length,
            locked: false,
            repeat: Repeat::Once,
            width: Width::Byte,
            memory_bytes: 0,
            first: Operand::None,
            second: Operand::None,
            third: Operand::None,
            address: AddressForm::none(),
            immediate: 0,
        }
    }
}

/// Where an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    None,
    /// A general-purpose register by number, its low part.
    Gpr(u8),
    /// AH, CH, DH or BH: bits 15:8 of the register with this number.
    HighByte(u8),
    /// The memory operand that `address` describes.
    Memory,
    /// `immediate`.
    Immediate,
    /// A segment register's selector.
    Segment(SegmentName),
    /// XMM or YMM by number.
    Vector(u8),
}

/// How an effective address is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressForm {
    pub segment: SegmentName,
    /// A register's number, [`NO_REGISTER`] or [`RIP`].
    pub base: u8,
    /// A register's number or [`NO_REGISTER`].
    pub index: u8,
    /// The index counts 1 << `scale` times.
    pub scale: u8,
    /// The ones of the address size: 16, 32 or 64 bits.
    pub mask: u64,
    /// With [`RIP`], from the instruction's first byte on.
    pub displacement: u64,
}

/// No register takes part.
pub(super) const NO_REGISTER: u8 = 16;
/// RIP is the base.
pub(super) const RIP: u8 = 17;

impl AddressForm {
    pub const fn none() -> AddressForm {
        AddressForm {
            segment: SegmentName::Ds,
            base: NO_REGISTER,
            index: NO_REGISTER,
            scale: 0,
            mask: u64::MAX,
            displacement: 0,
        }
    }
}

/// REP prefixes of string instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    Once,
    /// REP; with CMPS and SCAS also while ZF is set.
    WhileEqual,
    /// REPNE: with CMPS and SCAS while ZF is clear, else as REP.
    WhileUnequal,
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// MOV, MOVNTI, also from a segment register to memory.
    Move,
    MoveZeroExtended,
    MoveSignExtended,
    /// MOVBE.
    MoveSwapped,
    /// CMOVcc.
    MoveIf(Condition),
    /// SETcc.
    SetIf(Condition),
    Binary(Binary),
    Compare,
    Test,
    Unary(Unary),
    BitTest(BitTest),
    Shift(Shift),
    /// SHLD and SHRD.
    DoubleShift(Direction),
    Exchange,
    ExchangeAdd,
    CompareExchange,
    /// CMPXCHG8B and CMPXCHG16B.
    CompareExchangePair,
    Multiply(Multiply),
    Divide(Signedness),
    Count(Count),
    Push,
    Pop,
    Call,
    Jump,
    String(StringOperation),
    /// XLAT.
    TableLookup,
    VectorLoad(VectorForm),
    VectorStore(VectorForm),
    /// MASKMOVDQU.
    MaskedStore(VectorForm),
    /// CLFLUSH and its like: a read's rights, nothing read.
    FlushLine,
    /// PREFETCH and multi-byte NOP: the operand is not accessed.
    Hint,
    /// An instruction that exits by itself, known for its length.
    Exiting(Exiting),
    /// It accesses no memory: it cannot be what caused an exit by an access.
    Unrelated,
    /// It accesses memory in a way that is not implemented.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Increment,
    Decrement,
    Not,
    Negate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BitTest {
    Only,
    Set,
    Reset,
    Complement,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shift {
    RotateLeft,
    RotateRight,
    RotateCarryLeft,
    RotateCarryRight,
    Left,
    Right,
    ArithmeticRight,
    /// RORX, SHLX, SHRX, SARX: no flags; `first` is a register.
    FlaglessRotateRight,
    FlaglessLeft,
    FlaglessRight,
    FlaglessArithmeticRight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Left,
    Right,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signedness {
    Unsigned,
    Signed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Multiply {
    /// MUL and IMUL with one operand: into rDX:rAX.
    Wide(Signedness),
    /// IMUL with two or three operands.
    Truncated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    /// BSF.
    ScanForward,
    /// BSR.
    ScanReverse,
    /// POPCNT.
    Ones,
    /// TZCNT.
    TrailingZeros,
    /// LZCNT.
    LeadingZeros,
}

/// The condition of Jcc, CMOVcc and SETcc by its number in opcodes, SDM 2D appendix B.1.4.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition(pub u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StringOperation {
    Move,
    Store,
    Load,
    Compare,
    Scan,
    Input,
    Output,
}

/// How a vector register takes part in a load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VectorForm {
    /// VEX-encoded: clears what it does not write, and needs XCR0.
    pub vex: bool,
    /// The first byte of the register that is loaded or stored: 0 or 8.
    pub offset: u8,
    /// A load keeps the rest of the low 16 bytes (MOVLPS and its like), of the second operand with VEX.
    pub merges: bool,
    /// Misaligned operands raise #GP.
    pub aligned: bool,
    /// A broadcast: the loaded bytes fill the register, of this many bytes; else 0.
    pub fill: u8,
}
