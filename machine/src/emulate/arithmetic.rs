//! Results and flags of the integer instructions, as pure functions.
//!
//! Key type: [`Computed`]. Operands are zero-extended values of the given width; results are too. Flags that the manual
//! leaves undefined keep their value unless silicon is known to agree on another one.
//!
//! Manual: SDM 2, the instructions' "Flags Affected" and "Operation"; SDM 1 3.4.3.1 "Status Flags".

use super::form::{Binary, BitTest, Condition, Count, Direction, Shift, Unary};
use memory::Width;
use vcpu::rflags::{AF, CF, OF, PF, SF, ZF};

/// The six status flags.
pub(super) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// A result with the flags that go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Computed {
    pub value: u64,
    /// New values of the flags in `changed`; zero elsewhere.
    pub flags: u64,
    /// Which flags change.
    pub changed: u64,
}

impl Computed {
    /// `rflags` after the instruction.
    #[inline]
    pub fn apply(&self, rflags: u64) -> u64 {
        rflags & !self.changed | self.flags
    }
}

const fn bits(width: Width) -> u32 {
    width.bytes() as u32 * 8
}

const fn top(width: Width, value: u64) -> bool {
    value >> (bits(width) - 1) & 1 != 0
}

const fn flag(set: bool, flag: u64) -> u64 {
    if set { flag } else { 0 }
}

/// SF, ZF and PF of a result.
fn sign_zero_parity(width: Width, value: u64) -> u64 {
    // Bit n of the constant: whether n has an even number of ones.
    let folded = (value ^ value >> 4) & 0xf;
    flag(0x9669 >> folded & 1 != 0, PF) | flag(value == 0, ZF) | flag(top(width, value), SF)
}

/// `a + b + carry`.
pub(super) fn add(width: Width, a: u64, b: u64, carry: bool) -> Computed {
    let value = a.wrapping_add(b).wrapping_add(carry.into()) & width.mask();
    let carries = a & b | (a | b) & !value;
    let flags = sign_zero_parity(width, value)
        | flag(top(width, carries & width.mask()), CF)
        | flag((a ^ b ^ value) & 0x10 != 0, AF)
        | flag(top(width, (a ^ value) & (b ^ value)), OF);
    Computed { value, flags, changed: STATUS }
}

/// `a - b - borrow`.
pub(super) fn subtract(width: Width, a: u64, b: u64, borrow: bool) -> Computed {
    let value = a.wrapping_sub(b).wrapping_sub(borrow.into()) & width.mask();
    let borrows = !a & b | (!a | b) & value;
    let flags = sign_zero_parity(width, value)
        | flag(top(width, borrows & width.mask()), CF)
        | flag((a ^ b ^ value) & 0x10 != 0, AF)
        | flag(top(width, (a ^ b) & (a ^ value)), OF);
    Computed { value, flags, changed: STATUS }
}

/// The flags of AND, OR, XOR and TEST: CF and OF clear, AF undefined and clear on silicon.
pub(super) fn logic(width: Width, value: u64) -> Computed {
    Computed { value, flags: sign_zero_parity(width, value), changed: STATUS }
}

/// ADD to XOR; `carry` is CF before.
pub(super) fn binary(operation: Binary, width: Width, a: u64, b: u64, carry: bool) -> Computed {
    match operation {
        Binary::Add => add(width, a, b, false),
        Binary::Adc => add(width, a, b, carry),
        Binary::Sub => subtract(width, a, b, false),
        Binary::Sbb => subtract(width, a, b, carry),
        Binary::And => logic(width, a & b),
        Binary::Or => logic(width, a | b),
        Binary::Xor => logic(width, a ^ b),
    }
}

/// INC, DEC (which leave CF), NEG, NOT (which leaves all).
pub(super) fn unary(operation: Unary, width: Width, a: u64) -> Computed {
    let keep_carry = |mut computed: Computed| {
        computed.changed &= !CF;
        computed.flags &= !CF;
        computed
    };
    match operation {
        Unary::Increment => keep_carry(add(width, a, 1, false)),
        Unary::Decrement => keep_carry(subtract(width, a, 1, false)),
        Unary::Negate => subtract(width, 0, a, false),
        Unary::Not => Computed { value: !a & width.mask(), flags: 0, changed: 0 },
    }
}

/// BT, BTS, BTR, BTC of bit `offset` modulo the width; only CF changes.
pub(super) fn bit_test(operation: BitTest, width: Width, a: u64, offset: u64) -> Computed {
    let bit = 1u64 << (offset & u64::from(bits(width) - 1));
    let value = match operation {
        BitTest::Only => a,
        BitTest::Set => a | bit,
        BitTest::Reset => a & !bit,
        BitTest::Complement => a ^ bit,
    };
    Computed { value, flags: flag(a & bit != 0, CF), changed: CF }
}

/// `value` sign-extended from `width` to 64 bits.
pub(super) const fn sign_extend(width: Width, value: u64) -> u64 {
    let unused = 64 - bits(width);
    ((value << unused) as i64 >> unused) as u64
}

/// `a >> count` for any count.
const fn right(a: u64, count: u32) -> u64 {
    if count < 64 { a >> count } else { 0 }
}

/// `a << count` for any count.
const fn left(a: u64, count: u32) -> u64 {
    if count < 64 { a << count } else { 0 }
}

/// Rotates and shifts by `count`, which is masked here; `carry` is CF before.
pub(super) fn shift(operation: Shift, width: Width, a: u64, count: u64, carry: bool) -> Computed {
    let bits = bits(width);
    let mask = width.mask();
    let count = (count & if bits == 64 { 0x3f } else { 0x1f }) as u32;
    if count == 0 {
        return Computed { value: a, flags: 0, changed: 0 };
    }
    let rotate = |turn: u32| (left(a, turn) | right(a, bits - turn)) & mask;
    let shifted = |value: u64, carry: bool, overflow: bool| Computed {
        value,
        flags: sign_zero_parity(width, value) | flag(carry, CF) | flag(overflow, OF),
        changed: STATUS & !AF,
    };
    let rotated = |value: u64, carry: bool, overflow: bool| Computed {
        value,
        flags: flag(carry, CF) | flag(overflow, OF),
        changed: CF | OF,
    };
    let flagless = |value: u64| Computed { value, flags: 0, changed: 0 };
    let arithmetic = || ((sign_extend(width, a) as i64) >> count.min(63)) as u64 & mask;
    match operation {
        Shift::Left => {
            let value = left(a, count) & mask;
            let out = count <= bits && right(a, bits - count) & 1 != 0;
            shifted(value, out, top(width, value) != out)
        }
        Shift::Right => shifted(right(a, count), right(a, count - 1) & 1 != 0, top(width, a)),
        Shift::ArithmeticRight => {
            let out = (sign_extend(width, a) as i64) >> (count - 1).min(63) & 1 != 0;
            shifted(arithmetic(), out, false)
        }
        Shift::RotateLeft => {
            let value = rotate(count % bits);
            rotated(value, value & 1 != 0, top(width, value) != (value & 1 != 0))
        }
        Shift::RotateRight => {
            let value = rotate((bits - count % bits) % bits);
            rotated(value, top(width, value), top(width, value) != top(width, value << 1 & mask))
        }
        Shift::RotateCarryLeft | Shift::RotateCarryRight => {
            let turn = count % (bits + 1);
            // As a left rotation of the bits + 1 bits CF:a.
            let turn = if operation == Shift::RotateCarryLeft { turn } else { (bits + 1 - turn) % (bits + 1) };
            let whole = u128::from(a) | u128::from(carry) << bits;
            let turned = whole << turn | whole >> (bits + 1 - turn);
            let value = turned as u64 & mask;
            let out = turned >> bits & 1 != 0;
            let overflow = if operation == Shift::RotateCarryLeft {
                top(width, value) != out
            } else {
                top(width, value) != top(width, value << 1 & mask)
            };
            rotated(value, out, overflow)
        }
        Shift::FlaglessLeft => flagless(left(a, count) & mask),
        Shift::FlaglessRight => flagless(right(a, count)),
        Shift::FlaglessArithmeticRight => flagless(arithmetic()),
        Shift::FlaglessRotateRight => flagless(rotate((bits - count % bits) % bits)),
    }
}

/// SHLD and SHRD of `a` by `count` with bits from `b`. A count beyond 16 of a word is undefined; it shifts `a` in again.
pub(super) fn double_shift(direction: Direction, width: Width, a: u64, b: u64, count: u64) -> Computed {
    let bits = bits(width);
    let count = (count & if bits == 64 { 0x3f } else { 0x1f }) as u32;
    if count == 0 {
        return Computed { value: a, flags: 0, changed: 0 };
    }
    let (wide, narrow) = (u128::from(a), u128::from(b));
    let (value, out) = match direction {
        Direction::Left if count <= bits => {
            let joined = wide << bits | narrow;
            ((joined >> (bits - count)) as u64, wide >> (bits - count) & 1)
        }
        Direction::Left => {
            let joined = narrow << bits | wide;
            ((joined >> (2 * bits - count)) as u64, narrow >> (2 * bits - count) & 1)
        }
        Direction::Right if count <= bits => {
            let joined = narrow << bits | wide;
            ((joined >> count) as u64, wide >> (count - 1) & 1)
        }
        Direction::Right => {
            let joined = wide << bits | narrow;
            ((joined >> (count - bits)) as u64, narrow >> (count - bits - 1) & 1)
        }
    };
    let value = value & width.mask();
    let overflow = top(width, value) != top(width, a);
    Computed {
        value,
        flags: sign_zero_parity(width, value) | flag(out != 0, CF) | flag(overflow, OF),
        changed: STATUS & !AF,
    }
}

/// BSF, BSR, POPCNT, TZCNT and LZCNT. `None`: BSF or BSR of zero, which leaves its destination alone and sets ZF.
pub(super) fn count(operation: Count, width: Width, a: u64) -> (Option<u64>, Computed) {
    let bits = bits(width);
    let zero = flag(a == 0, ZF);
    let leading = u64::from(a.leading_zeros() - (64 - bits));
    let trailing = u64::from(a.trailing_zeros().min(bits));
    let scan = |value: u64| ((a != 0).then_some(value), Computed { value, flags: zero, changed: ZF });
    let counted = |value: u64| {
        let flags = flag(value == u64::from(bits), CF) | flag(value == 0, ZF);
        (Some(value), Computed { value, flags, changed: CF | ZF })
    };
    match operation {
        Count::ScanForward => scan(trailing),
        Count::ScanReverse => scan(63u64.wrapping_sub(a.leading_zeros().into())),
        Count::Ones => {
            let value = a.count_ones().into();
            (Some(value), Computed { value, flags: zero, changed: STATUS })
        }
        Count::TrailingZeros => counted(trailing),
        Count::LeadingZeros => counted(leading),
    }
}

/// The double-width product, low and high part, and whether the high part is more than an extension of the low one.
pub(super) fn multiply(signed: bool, width: Width, a: u64, b: u64) -> (u64, u64, Computed) {
    let bits = bits(width);
    let mask = width.mask();
    let (low, high, significant) = if signed {
        let product = i128::from(sign_extend(width, a) as i64) * i128::from(sign_extend(width, b) as i64);
        let low = product as u64 & mask;
        (low, (product >> bits) as u64 & mask, i128::from(sign_extend(width, low) as i64) != product)
    } else {
        let product = u128::from(a) * u128::from(b);
        let high = (product >> bits) as u64 & mask;
        (product as u64 & mask, high, high != 0)
    };
    let flags = if significant { CF | OF } else { 0 };
    // SF, ZF, AF and PF are undefined; they stay.
    (low, high, Computed { value: low, flags, changed: CF | OF })
}

/// Quotient and remainder of `high:low / divisor`; `None` is #DE.
pub(super) fn divide(signed: bool, width: Width, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    let bits = bits(width);
    let mask = width.mask();
    let dividend = u128::from(high) << bits | u128::from(low);
    if signed {
        let unused = 128 - 2 * bits;
        let dividend = (dividend << unused) as i128 >> unused;
        let divisor = i128::from(sign_extend(width, divisor) as i64);
        let quotient = dividend.checked_div(divisor)?;
        let remainder = dividend.checked_rem(divisor)?;
        let fits = i128::from(sign_extend(width, quotient as u64 & mask) as i64) == quotient;
        fits.then_some((quotient as u64 & mask, remainder as u64 & mask))
    } else {
        let quotient = dividend.checked_div(divisor.into())?;
        let remainder = dividend.checked_rem(divisor.into())?;
        (quotient <= mask.into()).then_some((quotient as u64, remainder as u64))
    }
}

/// Whether a condition holds, SDM 2D B.1.4.7: even numbers test, odd ones are their opposites.
pub(super) fn holds(condition: Condition, rflags: u64) -> bool {
    let is = |flag: u64| rflags & flag != 0;
    let base = match condition.0 >> 1 & 7 {
        0 => is(OF),
        1 => is(CF),
        2 => is(ZF),
        3 => is(CF) || is(ZF),
        4 => is(SF),
        5 => is(PF),
        6 => is(SF) != is(OF),
        _ => is(ZF) || is(SF) != is(OF),
    };
    base != (condition.0 & 1 != 0)
}
