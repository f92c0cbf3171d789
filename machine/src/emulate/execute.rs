//! Execution of one digested instruction: the dispatch, moves, and everything that reads and writes one operand.
//!
//! Key types: [`Execution`], the run of one instruction over a [`Context`]; [`Done`]. Strings, stack and vector
//! instructions have their own modules. Destinations are located for writing before sources are read from devices, and
//! flags and registers change last, so that a fault leaves no trace.
//!
//! Manual: SDM 2A to 2C, the instructions' "Operation".

use super::access::{Operands, Remembered};
use super::arithmetic::{self, Computed};
use super::form::{BitTest, Decoded, Multiply, NO_REGISTER, Operand, Operation, Shift, Signedness};
use super::{Cause, Context, Reason, Stop};
use memory::{PAGE_SIZE, Width};
use vcpu::rflags::{CF, ZF};
use vcpu::{AccessKind, CodeSize, Exception, Gpr, Vcpu};

/// How an instruction ended without a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// RIP moves past it.
    Complete,
    /// RIP stays.
    Again,
    /// RIP becomes this.
    Jump(u64),
}

/// One instruction being executed.
pub(super) struct Execution<'a, C: Context> {
    pub(super) context: &'a mut C,
    pub(super) code_size: CodeSize,
    pub(super) rip: u64,
    pub(super) cause: Option<Cause>,
    pub(super) read: Remembered,
    pub(super) written: Remembered,
}

impl<'a, C: Context> Execution<'a, C> {
    /// An instruction at `rip`.
    #[inline]
    pub(super) fn new(context: &'a mut C, code_size: CodeSize, rip: u64, cause: Option<Cause>) -> Self {
        Execution { context, code_size, rip, cause, read: Remembered::NOTHING, written: Remembered::NOTHING }
    }

    /// Executes an aligned move to or from the address that the exit names and allows. False if this is something else;
    /// nothing has happened then.
    #[inline(always)]
    pub(super) fn run_plain_move(&mut self, decoded: &Decoded) -> bool {
        if !matches!(decoded.operation, Operation::Move) {
            return false;
        }
        let Some(Cause::Access(gpa, allowed)) = self.cause else { return false };
        let offset = self.effective(&decoded.address);
        let Some(linear) = self.plain_linear(decoded.address.segment, offset, decoded.width) else { return false };
        if (linear ^ gpa.0) % PAGE_SIZE != 0 || gpa.0 & (decoded.width as u64 - 1) != 0 {
            return false;
        }
        if matches!(decoded.first, Operand::Memory) {
            if allowed != AccessKind::Write {
                return false;
            }
            let value = self.register_or_immediate(decoded, decoded.second);
            self.device_store(gpa, decoded.width, value);
        } else {
            if allowed == AccessKind::Fetch {
                return false;
            }
            let value = self.device_load(gpa, decoded.width);
            self.set_register(decoded.first, decoded.width, value);
        }
        true
    }

    fn move_value(&mut self, decoded: &Decoded) -> Result<(), Stop> {
        if decoded.first == Operand::Memory {
            let value = self.register_or_immediate(decoded, decoded.second);
            let place = self.operand(decoded, AccessKind::Write)?;
            self.store(&place, value);
        } else {
            let place = self.operand(decoded, AccessKind::Read)?;
            let value = self.load(&place);
            self.set_register(decoded.first, decoded.width, value);
        }
        Ok(())
    }

    /// Executes it.
    pub(super) fn run(&mut self, decoded: &Decoded) -> Result<Done, Stop> {
        match decoded.operation {
            Operation::Move => self.move_value(decoded)?,
            Operation::MoveZeroExtended => {
                let value = self.value(decoded, decoded.second)?;
                self.set_register(decoded.first, decoded.width, value);
            }
            Operation::MoveSignExtended => {
                let value = self.value(decoded, decoded.second)?;
                let value = sign_extended(decoded.memory_bytes, value);
                self.set_register(decoded.first, decoded.width, value);
            }
            Operation::MoveSwapped => self.move_swapped(decoded)?,
            Operation::MoveIf(condition) => {
                // The operand is read whatever the condition; a doubleword destination is always written.
                let value = self.value(decoded, decoded.second)?;
                let moved = arithmetic::holds(condition, self.context.cpu().rflags());
                let old = self.register_or_immediate(decoded, decoded.first);
                self.set_register(decoded.first, decoded.width, if moved { value } else { old });
            }
            Operation::SetIf(condition) => {
                let place = self.operand(decoded, AccessKind::Write)?;
                let value = arithmetic::holds(condition, self.context.cpu().rflags()).into();
                self.store(&place, value);
            }
            Operation::Binary(operation) => {
                let carry = self.carry();
                self.combine(decoded, |width, a, b| arithmetic::binary(operation, width, a, b, carry))?;
            }
            Operation::Compare => self.compare(decoded, |width, a, b| arithmetic::subtract(width, a, b, false))?,
            Operation::Test => self.compare(decoded, |width, a, b| arithmetic::logic(width, a & b))?,
            Operation::Unary(operation) => {
                self.combine(decoded, |width, a, _| arithmetic::unary(operation, width, a))?;
            }
            Operation::Shift(operation) => self.shift(decoded, operation)?,
            Operation::DoubleShift(direction) => {
                let count = self.shift_count(decoded, decoded.third);
                self.combine(decoded, |width, a, b| arithmetic::double_shift(direction, width, a, b, count))?;
            }
            Operation::BitTest(operation) => self.bit_test(decoded, operation)?,
            Operation::Exchange => self.exchange(decoded)?,
            Operation::ExchangeAdd => self.exchange_add(decoded)?,
            Operation::CompareExchange => self.compare_exchange(decoded)?,
            Operation::CompareExchangePair => self.compare_exchange_pair(decoded)?,
            Operation::Multiply(operation) => self.multiply(decoded, operation)?,
            Operation::Divide(signedness) => self.divide(decoded, signedness)?,
            Operation::Count(operation) => {
                let source = self.value(decoded, decoded.second)?;
                let (value, flags) = arithmetic::count(operation, decoded.width, source);
                if let Some(value) = value {
                    self.set_register(decoded.first, decoded.width, value);
                }
                self.set_flags(&flags);
            }
            Operation::TableLookup => {
                let index = self.context.cpu().gpr(Gpr::Rax) & 0xff;
                let offset = self.effective(&decoded.address).wrapping_add(index) & decoded.address.mask;
                let linear = self.linear(decoded.address.segment, offset, 1, AccessKind::Read)?;
                let place = self.locate(linear, 1, AccessKind::Read, Operands::Only)?;
                let value = self.load(&place);
                self.set_gpr(Gpr::Rax, Width::Byte, value);
            }
            Operation::FlushLine => {
                self.operand(decoded, AccessKind::Read)?;
            }
            Operation::Hint => {}
            Operation::Push => self.push(decoded)?,
            Operation::Pop => self.pop(decoded)?,
            Operation::Call => return self.call(decoded),
            Operation::Jump => return self.jump(decoded),
            Operation::String(operation) => return self.string(decoded, operation),
            Operation::VectorLoad(form) => self.vector_load(decoded, form)?,
            Operation::VectorStore(form) => self.vector_store(decoded, form)?,
            Operation::MaskedStore(form) => self.masked_store(decoded, form)?,
            // These do not access memory: since the exit another CPU has put them where the instruction was that did.
            Operation::Exiting(_) | Operation::Unrelated => return Ok(Done::Again),
            Operation::Unknown => return Err(Stop::Refused(Reason::NotImplemented)),
        }
        Ok(Done::Complete)
    }

    fn carry(&self) -> bool {
        self.context.cpu().rflags() & CF != 0
    }

    /// `first = f(first, second)` with flags, either of them in memory.
    fn combine(&mut self, decoded: &Decoded, f: impl Fn(Width, u64, u64) -> Computed) -> Result<(), Stop> {
        let width = decoded.width;
        let computed = if decoded.first == Operand::Memory {
            let second = self.register_or_immediate(decoded, decoded.second);
            let place = self.operand(decoded, AccessKind::Write)?;
            self.modify(&place, decoded.locked, |old| {
                let computed = f(width, old, second);
                (computed.value, computed)
            })?
        } else {
            let second = self.value(decoded, decoded.second)?;
            let first = self.register_or_immediate(decoded, decoded.first);
            let computed = f(width, first, second);
            self.set_register(decoded.first, width, computed.value);
            computed
        };
        self.set_flags(&computed);
        Ok(())
    }

    /// The flags of `f(first, second)` alone.
    fn compare(&mut self, decoded: &Decoded, f: impl Fn(Width, u64, u64) -> Computed) -> Result<(), Stop> {
        let first = self.value(decoded, decoded.first)?;
        let second = if decoded.second == Operand::Memory {
            self.value(decoded, decoded.second)?
        } else {
            self.register_or_immediate(decoded, decoded.second)
        };
        self.set_flags(&f(decoded.width, first, second));
        Ok(())
    }

    fn move_swapped(&mut self, decoded: &Decoded) -> Result<(), Stop> {
        let swap = |value: u64| value.swap_bytes() >> (64 - 8 * decoded.width.bytes() as u32);
        if decoded.first == Operand::Memory {
            let value = self.register_or_immediate(decoded, decoded.second);
            let place = self.operand(decoded, AccessKind::Write)?;
            self.store(&place, swap(value));
        } else {
            let value = self.value(decoded, decoded.second)?;
            self.set_register(decoded.first, decoded.width, swap(value));
        }
        Ok(())
    }

    /// A shift count: CL, an immediate, or with BMI2 a whole register.
    fn shift_count(&self, decoded: &Decoded, operand: Operand) -> u64 {
        match operand {
            Operand::Immediate => decoded.immediate & 0xff,
            other => self.register_or_immediate(decoded, other),
        }
    }

    fn shift(&mut self, decoded: &Decoded, operation: Shift) -> Result<(), Stop> {
        let carry = self.carry();
        if decoded.first == Operand::Memory {
            let count = self.shift_count(decoded, decoded.second);
            return self.combine(decoded, |width, a, _| arithmetic::shift(operation, width, a, count, carry));
        }
        let value = self.value(decoded, decoded.second)?;
        let count = self.shift_count(decoded, decoded.third);
        let computed = arithmetic::shift(operation, decoded.width, value, count, carry);
        self.set_register(decoded.first, decoded.width, computed.value);
        Ok(())
    }

    /// A bit offset in a register is signed and reaches past the operand, SDM 1 3.1.1.9 "Bit(BitBase, BitOffset)".
    fn bit_test(&mut self, decoded: &Decoded, operation: BitTest) -> Result<(), Stop> {
        let bits = decoded.width.bytes() as u32 * 8;
        let bit = self.register_or_immediate(decoded, decoded.second);
        let mut offset = self.effective(&decoded.address);
        if decoded.second != Operand::Immediate {
            let whole = (arithmetic::sign_extend(decoded.width, bit) as i64) >> bits.trailing_zeros();
            let moved = (whole as u64).wrapping_mul(decoded.width.bytes() as u64);
            offset = offset.wrapping_add(moved) & decoded.address.mask;
        }
        let kind = if operation == BitTest::Only { AccessKind::Read } else { AccessKind::Write };
        let linear = self.linear(decoded.address.segment, offset, decoded.memory_bytes, kind)?;
        let place = self.locate(linear, decoded.memory_bytes, kind, Operands::Only)?;
        let computed = if operation == BitTest::Only {
            arithmetic::bit_test(operation, decoded.width, self.load(&place), bit)
        } else {
            self.modify(&place, decoded.locked, |old| {
                let computed = arithmetic::bit_test(operation, decoded.width, old, bit);
                (computed.value, computed)
            })?
        };
        self.set_flags(&computed);
        Ok(())
    }

    /// XCHG, either operand in memory; always locked.
    fn exchange(&mut self, decoded: &Decoded) -> Result<(), Stop> {
        let register = if decoded.first == Operand::Memory { decoded.second } else { decoded.first };
        let value = self.register_or_immediate(decoded, register);
        let place = self.operand(decoded, AccessKind::Write)?;
        let old = self.modify(&place, true, |old| (value, old))?;
        self.set_register(register, decoded.width, old);
        Ok(())
    }

    fn exchange_add(&mut self, decoded: &Decoded) -> Result<(), Stop> {
        let value = self.register_or_immediate(decoded, decoded.second);
        let place = self.operand(decoded, AccessKind::Write)?;
        let (old, computed) = self.modify(&place, decoded.locked, |old| {
            let computed = arithmetic::add(decoded.width, old, value, false);
            (computed.value, (old, computed))
        })?;
        self.set_register(decoded.second, decoded.width, old);
        self.set_flags(&computed);
        Ok(())
    }

    fn compare_exchange(&mut self, decoded: &Decoded) -> Result<(), Stop> {
        let width = decoded.width;
        let expected = self.context.cpu().gpr(Gpr::Rax) & width.mask();
        let value = self.register_or_immediate(decoded, decoded.second);
        let place = self.operand(decoded, AccessKind::Write)?;
        // The destination is written in either case.
        let old = self.modify(&place, decoded.locked, |old| (if old == expected { value } else { old }, old))?;
        if old != expected {
            self.set_gpr(Gpr::Rax, width, old);
        }
        self.set_flags(&arithmetic::subtract(width, expected, old, false));
        Ok(())
    }

    fn compare_exchange_pair(&mut self, decoded: &Decoded) -> Result<(), Stop> {
        let half = decoded.width;
        let bits = half.bytes() as u32 * 8;
        let cpu = self.context.cpu();
        let low = |register| u128::from(cpu.gpr(register) & half.mask());
        let expected = low(Gpr::Rdx) << bits | low(Gpr::Rax);
        let value = low(Gpr::Rcx) << bits | low(Gpr::Rbx);
        let offset = self.effective(&decoded.address);
        let linear = self.linear(decoded.address.segment, offset, decoded.memory_bytes, AccessKind::Write)?;
        if half == Width::Qword && linear & 15 != 0 {
            return Err(Stop::Fault(Exception::general_protection(0)));
        }
        let place = self.locate(linear, decoded.memory_bytes, AccessKind::Write, Operands::Only)?;
        let old = if half == Width::Qword {
            if decoded.locked && self.is_ram(&place) {
                return Err(Stop::Refused(Reason::SplitLock(memory::Gpa(linear))));
            }
            let mut bytes = [0; 16];
            self.read_bytes(&place, &mut bytes);
            let old = u128::from_le_bytes(bytes);
            let written = if old == expected { value } else { old };
            self.write_bytes(&place, &written.to_le_bytes());
            old
        } else {
            self.modify(&place, decoded.locked, |old| {
                let written = if u128::from(old) == expected { value as u64 } else { old };
                (written, u128::from(old))
            })?
        };
        let equal = old == expected;
        if !equal {
            self.set_gpr(Gpr::Rax, half, old as u64);
            self.set_gpr(Gpr::Rdx, half, (old >> bits) as u64);
        }
        self.set_flags(&Computed { value: 0, flags: if equal { ZF } else { 0 }, changed: ZF });
        Ok(())
    }

    fn multiply(&mut self, decoded: &Decoded, operation: Multiply) -> Result<(), Stop> {
        let width = decoded.width;
        let computed = match operation {
            Multiply::Wide(signedness) => {
                let source = self.value(decoded, decoded.first)?;
                let accumulator = self.context.cpu().gpr(Gpr::Rax) & width.mask();
                let signed = signedness == Signedness::Signed;
                let (low, high, computed) = arithmetic::multiply(signed, width, accumulator, source);
                self.set_wide(width, low, high);
                computed
            }
            Multiply::Truncated => {
                let source = self.value(decoded, decoded.second)?;
                let factor = if decoded.third == Operand::None { decoded.first } else { decoded.third };
                let factor = self.register_or_immediate(decoded, factor);
                let (low, _, computed) = arithmetic::multiply(true, width, factor, source);
                self.set_register(decoded.first, width, low);
                computed
            }
        };
        self.set_flags(&computed);
        Ok(())
    }

    fn divide(&mut self, decoded: &Decoded, signedness: Signedness) -> Result<(), Stop> {
        let width = decoded.width;
        let divisor = self.value(decoded, decoded.first)?;
        let cpu = self.context.cpu();
        let low = cpu.gpr(Gpr::Rax) & width.mask();
        let high = match width {
            Width::Byte => cpu.gpr(Gpr::Rax) >> 8 & 0xff,
            _ => cpu.gpr(Gpr::Rdx) & width.mask(),
        };
        let signed = signedness == Signedness::Signed;
        match arithmetic::divide(signed, width, high, low, divisor) {
            Some((quotient, remainder)) => self.set_wide(width, quotient, remainder),
            None => return Err(Stop::Fault(Exception::divide())),
        }
        Ok(())
    }

    /// rDX:rAX, or AX for bytes.
    fn set_wide(&mut self, width: Width, low: u64, high: u64) {
        match width {
            Width::Byte => self.set_gpr(Gpr::Rax, Width::Word, high << 8 | low),
            _ => {
                self.set_gpr(Gpr::Rax, width, low);
                self.set_gpr(Gpr::Rdx, width, high);
            }
        }
    }
}

/// `value` of `bytes` bytes, sign-extended to 64 bits.
fn sign_extended(bytes: u8, value: u64) -> u64 {
    Width::from_bytes(bytes.into()).map_or(value, |width| arithmetic::sign_extend(width, value))
}

const _: () = assert!(NO_REGISTER as usize == Gpr::ALL.len());
