//! From bytes to the digested form, by iced-x86's decoder.
//!
//! Reads what the decoder found once and keeps what execution needs ([`Decoded`]). Instructions with a memory operand but
//! without semantics here become [`Operation::Unknown`], those that access no memory [`Operation::Unrelated`].
//!
//! Manual: SDM 2A chapter 2 "Instruction Format".

use super::form::{
    AddressForm, Binary, BitTest, Condition, Count, Decoded, Direction, Multiply, NO_REGISTER, Operand, Operation, RIP,
    Repeat, Shift, Signedness, StringOperation, Unary,
};
use super::length::Exiting;
use super::vector_digest;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use memory::Width;
use vcpu::{CodeSize, Length, SegmentName};

/// Why bytes do not make an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DecodeError {
    /// It goes on behind them.
    MoreBytes,
    /// They are none.
    Invalid,
}

/// Decodes and digests the instruction at the start of `bytes`.
pub(super) fn decode(code_size: CodeSize, bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let mut decoder = Decoder::new(code_size.bits(), bytes, DecoderOptions::NONE);
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => {}
        DecoderError::NoMoreBytes => return Err(DecodeError::MoreBytes),
        _ => return Err(DecodeError::Invalid),
    }
    let length = Length::new(instruction.len() as u8).ok_or(DecodeError::Invalid)?;
    Ok(digest(code_size, &instruction, length))
}

fn digest(code_size: CodeSize, instruction: &Instruction, length: Length) -> Decoded {
    let operand = |number: u32| operand(instruction, number);
    let (first, second, third) = (operand(0), operand(1), operand(2));
    let memory_bytes = instruction.memory_size().size().min(32) as u8;
    let mut decoded = Decoded {
        operation: Operation::Unknown,
        length,
        locked: instruction.has_lock_prefix(),
        repeat: Repeat::Once,
        width: Width::from_bytes(memory_bytes.into()).unwrap_or(Width::Byte),
        memory_bytes,
        first: first.unwrap_or(Operand::None),
        second: second.unwrap_or(Operand::None),
        third: third.unwrap_or(Operand::None),
        address: AddressForm::none(),
        immediate: immediate(instruction),
    };
    if let Some(exiting) = Exiting::of(instruction) {
        decoded.operation = Operation::Exiting(exiting);
        return decoded;
    }
    let Some(address) = address(code_size, instruction) else { return decoded };
    decoded.address = address;
    if instruction.is_string_instruction() {
        string(instruction, &mut decoded);
    } else if !has_memory_operand(instruction) {
        register_operation(instruction, &mut decoded);
    } else if first.is_some() && second.is_some() && third.is_some() {
        memory_operation(instruction, &mut decoded);
    }
    decoded
}

/// The form of an operand; `None` for registers that the vCPU contract or the emulator does not carry.
fn operand(instruction: &Instruction, number: u32) -> Option<Operand> {
    if number >= instruction.op_count() {
        return Some(Operand::None);
    }
    match instruction.op_kind(number) {
        OpKind::Register => register(instruction.op_register(number)),
        OpKind::Memory
        | OpKind::MemorySegSI
        | OpKind::MemorySegESI
        | OpKind::MemorySegRSI
        | OpKind::MemorySegDI
        | OpKind::MemorySegEDI
        | OpKind::MemorySegRDI
        | OpKind::MemoryESDI
        | OpKind::MemoryESEDI
        | OpKind::MemoryESRDI => Some(Operand::Memory),
        OpKind::Immediate8
        | OpKind::Immediate8_2nd
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Some(Operand::Immediate),
        OpKind::NearBranch16
        | OpKind::NearBranch32
        | OpKind::NearBranch64
        | OpKind::FarBranch16
        | OpKind::FarBranch32 => Some(Operand::None),
    }
}

fn register(register: Register) -> Option<Operand> {
    let number = register.number() as u8;
    if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) {
        return Some(Operand::HighByte(number & 3));
    }
    if register.is_gpr() {
        return Some(Operand::Gpr(gpr_number(register)));
    }
    if register.is_segment_register() {
        return SegmentName::ALL.get(usize::from(number)).map(|name| Operand::Segment(*name));
    }
    ((register.is_xmm() || register.is_ymm()) && number < 16).then_some(Operand::Vector(number))
}

/// The number of the whole register that `register` is part of.
fn gpr_number(register: Register) -> u8 {
    register.full_register().number() as u8 & 15
}

fn has_memory_operand(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|number| operand(instruction, number) == Some(Operand::Memory))
}

/// The immediate operand, sign-extended; of ENTER and its like the first.
fn immediate(instruction: &Instruction) -> u64 {
    (0..instruction.op_count())
        .find(|number| operand(instruction, *number) == Some(Operand::Immediate))
        .map_or(0, |number| instruction.immediate(number))
}

/// The address form of the memory operand; of string instructions, segment and address size alone. `None` for address
/// forms of several elements (VSIB).
fn address(code_size: CodeSize, instruction: &Instruction) -> Option<AddressForm> {
    let mut form = AddressForm::none();
    let kinds = || (0..instruction.op_count()).map(|number| instruction.op_kind(number));
    let base = instruction.memory_base();
    let index = instruction.memory_index();
    form.segment = segment(code_size, instruction, base);
    for kind in kinds() {
        match kind {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => form.mask = 0xffff,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => form.mask = 0xffff_ffff,
            _ => {}
        }
    }
    if !kinds().any(|kind| kind == OpKind::Memory) {
        if kinds().any(|kind| matches!(kind, OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI)) {
            form.base = vcpu::Gpr::Rdi as u8;
        }
        return Some(form);
    }
    if index.is_vector_register() {
        return None;
    }
    form.displacement = instruction.memory_displacement64();
    form.base = match base {
        Register::None => NO_REGISTER,
        Register::RIP | Register::EIP => RIP,
        other => gpr_number(other),
    };
    form.index = match index {
        // XLAT: AL is added when it is executed.
        Register::None | Register::AL => NO_REGISTER,
        other => gpr_number(other),
    };
    form.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    form.mask = match (base.size(), index.size(), instruction.memory_displ_size()) {
        (2, ..) | (0, 2, _) | (0, _, 2) => 0xffff,
        (4, ..) | (0, 4, _) | (0, _, 4) => 0xffff_ffff,
        (0, 0 | 1, _) if code_size == CodeSize::Bits16 => 0xffff,
        (0, 0 | 1, _) if code_size == CodeSize::Bits32 => 0xffff_ffff,
        _ => u64::MAX,
    };
    Some(form)
}

/// The segment that applies: FS and GS by prefix everywhere, the others by prefix outside 64-bit mode, else SS for RSP and
/// RBP as base and DS for the rest.
fn segment(code_size: CodeSize, instruction: &Instruction, base: Register) -> SegmentName {
    let by_prefix = match instruction.segment_prefix() {
        Register::ES => Some(SegmentName::Es),
        Register::CS => Some(SegmentName::Cs),
        Register::SS => Some(SegmentName::Ss),
        Register::DS => Some(SegmentName::Ds),
        Register::FS => Some(SegmentName::Fs),
        Register::GS => Some(SegmentName::Gs),
        _ => None,
    };
    let counts =
        |name: &SegmentName| code_size != CodeSize::Bits64 || matches!(name, SegmentName::Fs | SegmentName::Gs);
    by_prefix.filter(counts).unwrap_or(match base.full_register() {
        Register::RSP | Register::RBP => SegmentName::Ss,
        _ => SegmentName::Ds,
    })
}

fn string(instruction: &Instruction, decoded: &mut Decoded) {
    decoded.operation = Operation::String(match instruction.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => StringOperation::Move,
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => StringOperation::Store,
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => StringOperation::Load,
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => StringOperation::Compare,
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => StringOperation::Scan,
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => StringOperation::Input,
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => StringOperation::Output,
        _ => return,
    });
    decoded.repeat = if instruction.has_repne_prefix() {
        Repeat::WhileUnequal
    } else if instruction.has_rep_prefix() {
        Repeat::WhileEqual
    } else {
        Repeat::Once
    };
}

/// Instructions with a memory operand.
fn memory_operation(instruction: &Instruction, decoded: &mut Decoded) {
    use Mnemonic as M;
    let operation = match instruction.mnemonic() {
        M::Mov if matches!(decoded.first, Operand::Segment(_)) => Operation::Unknown,
        M::Mov | M::Movnti | M::Movdiri => {
            if matches!(decoded.second, Operand::Segment(_)) {
                (decoded.width, decoded.memory_bytes) = (Width::Word, 2);
            }
            Operation::Move
        }
        M::Movzx => widen(instruction, decoded, Operation::MoveZeroExtended),
        M::Movsx | M::Movsxd => widen(instruction, decoded, Operation::MoveSignExtended),
        M::Movbe => Operation::MoveSwapped,
        M::Add => Operation::Binary(Binary::Add),
        M::Or => Operation::Binary(Binary::Or),
        M::Adc => Operation::Binary(Binary::Adc),
        M::Sbb => Operation::Binary(Binary::Sbb),
        M::And => Operation::Binary(Binary::And),
        M::Sub => Operation::Binary(Binary::Sub),
        M::Xor => Operation::Binary(Binary::Xor),
        M::Cmp => Operation::Compare,
        M::Test => Operation::Test,
        M::Inc => Operation::Unary(Unary::Increment),
        M::Dec => Operation::Unary(Unary::Decrement),
        M::Not => Operation::Unary(Unary::Not),
        M::Neg => Operation::Unary(Unary::Negate),
        M::Bt => Operation::BitTest(BitTest::Only),
        M::Bts => Operation::BitTest(BitTest::Set),
        M::Btr => Operation::BitTest(BitTest::Reset),
        M::Btc => Operation::BitTest(BitTest::Complement),
        M::Rol => Operation::Shift(Shift::RotateLeft),
        M::Ror => Operation::Shift(Shift::RotateRight),
        M::Rcl => Operation::Shift(Shift::RotateCarryLeft),
        M::Rcr => Operation::Shift(Shift::RotateCarryRight),
        M::Shl | M::Sal => Operation::Shift(Shift::Left),
        M::Shr => Operation::Shift(Shift::Right),
        M::Sar => Operation::Shift(Shift::ArithmeticRight),
        M::Rorx => Operation::Shift(Shift::FlaglessRotateRight),
        M::Shlx => Operation::Shift(Shift::FlaglessLeft),
        M::Shrx => Operation::Shift(Shift::FlaglessRight),
        M::Sarx => Operation::Shift(Shift::FlaglessArithmeticRight),
        M::Shld => Operation::DoubleShift(Direction::Left),
        M::Shrd => Operation::DoubleShift(Direction::Right),
        M::Xchg => {
            decoded.locked = true;
            Operation::Exchange
        }
        M::Xadd => Operation::ExchangeAdd,
        M::Cmpxchg => Operation::CompareExchange,
        M::Cmpxchg8b => half(decoded, Width::Dword),
        M::Cmpxchg16b => half(decoded, Width::Qword),
        M::Mul => Operation::Multiply(Multiply::Wide(Signedness::Unsigned)),
        M::Imul if decoded.second == Operand::None => Operation::Multiply(Multiply::Wide(Signedness::Signed)),
        M::Imul => Operation::Multiply(Multiply::Truncated),
        M::Div => Operation::Divide(Signedness::Unsigned),
        M::Idiv => Operation::Divide(Signedness::Signed),
        M::Bsf => Operation::Count(Count::ScanForward),
        M::Bsr => Operation::Count(Count::ScanReverse),
        M::Popcnt => Operation::Count(Count::Ones),
        M::Tzcnt => Operation::Count(Count::TrailingZeros),
        M::Lzcnt => Operation::Count(Count::LeadingZeros),
        M::Push => Operation::Push,
        M::Pop => Operation::Pop,
        M::Call if instruction.is_call_near_indirect() => Operation::Call,
        M::Jmp if instruction.is_jmp_near_indirect() => Operation::Jump,
        M::Xlatb => {
            decoded.memory_bytes = 1;
            Operation::TableLookup
        }
        M::Clflush | M::Clflushopt | M::Clwb => {
            decoded.memory_bytes = 1;
            Operation::FlushLine
        }
        M::Nop | M::Reservednop | M::Lea | M::Cldemote => Operation::Hint,
        M::Prefetch | M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 => Operation::Hint,
        M::Prefetchw | M::Prefetchwt1 => Operation::Hint,
        other => match condition(other) {
            Some((condition, Conditional::Move)) => Operation::MoveIf(condition),
            Some((condition, Conditional::Set)) => Operation::SetIf(condition),
            None => vector_digest::operation(instruction, decoded),
        },
    };
    decoded.operation = operation;
    // What works on memory in the word sizes must have one of them.
    let needs_width = !matches!(
        operation,
        Operation::Unknown
            | Operation::Hint
            | Operation::FlushLine
            | Operation::VectorLoad(_)
            | Operation::VectorStore(_)
            | Operation::MaskedStore(_)
            | Operation::CompareExchangePair
    );
    if needs_width && Width::from_bytes(decoded.memory_bytes.into()).is_none() {
        decoded.operation = Operation::Unknown;
    }
}

/// The operation's width is the destination register's.
fn widen(instruction: &Instruction, decoded: &mut Decoded, operation: Operation) -> Operation {
    match Width::from_bytes(instruction.op0_register().size()) {
        Some(width) => {
            decoded.width = width;
            operation
        }
        None => Operation::Unknown,
    }
}

fn half(decoded: &mut Decoded, width: Width) -> Operation {
    decoded.width = width;
    Operation::CompareExchangePair
}

/// Instructions without a memory operand: those that use the stack, a descriptor table or nothing.
fn register_operation(instruction: &Instruction, decoded: &mut Decoded) {
    let stack_bytes = instruction.stack_pointer_increment().unsigned_abs() as usize;
    decoded.operation = match (instruction.mnemonic(), Width::from_bytes(stack_bytes)) {
        (Mnemonic::Push, Some(width)) => {
            decoded.width = width;
            decoded.memory_bytes = width.bytes() as u8;
            Operation::Push
        }
        (Mnemonic::Pop, Some(width)) if !matches!(decoded.first, Operand::Segment(_)) => {
            decoded.width = width;
            decoded.memory_bytes = width.bytes() as u8;
            Operation::Pop
        }
        // These read a descriptor. INT n and INT3 read one too, but count as unrelated: kernels put INT3 over
        // instructions that other CPUs are just executing.
        (Mnemonic::Ltr | Mnemonic::Lldt | Mnemonic::Lar | Mnemonic::Lsl | Mnemonic::Verr | Mnemonic::Verw, _) => {
            Operation::Unknown
        }
        (Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 | Mnemonic::Into, _) => Operation::Unrelated,
        (Mnemonic::Mov, _) if matches!(decoded.first, Operand::Segment(_)) => Operation::Unknown,
        (Mnemonic::Jmp | Mnemonic::Call, _) if instruction.is_jmp_far() || instruction.is_call_far() => {
            Operation::Unknown
        }
        _ if instruction.is_stack_instruction() => Operation::Unknown,
        _ => Operation::Unrelated,
    };
}

/// Which instruction a condition belongs to.
enum Conditional {
    Move,
    Set,
}

/// CMOVcc and SETcc, by the number of their condition.
fn condition(mnemonic: Mnemonic) -> Option<(Condition, Conditional)> {
    use Mnemonic as M;
    const MOVES: [Mnemonic; 16] = [
        M::Cmovo,
        M::Cmovno,
        M::Cmovb,
        M::Cmovae,
        M::Cmove,
        M::Cmovne,
        M::Cmovbe,
        M::Cmova,
        M::Cmovs,
        M::Cmovns,
        M::Cmovp,
        M::Cmovnp,
        M::Cmovl,
        M::Cmovge,
        M::Cmovle,
        M::Cmovg,
    ];
    const SETS: [Mnemonic; 16] = [
        M::Seto,
        M::Setno,
        M::Setb,
        M::Setae,
        M::Sete,
        M::Setne,
        M::Setbe,
        M::Seta,
        M::Sets,
        M::Setns,
        M::Setp,
        M::Setnp,
        M::Setl,
        M::Setge,
        M::Setle,
        M::Setg,
    ];
    let find = |list: &[Mnemonic]| list.iter().position(|other| *other == mnemonic).map(|at| Condition(at as u8));
    find(&MOVES)
        .map(|condition| (condition, Conditional::Move))
        .or_else(|| find(&SETS).map(|condition| (condition, Conditional::Set)))
}
