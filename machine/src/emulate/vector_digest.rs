//! Digests SSE and AVX loads and stores; a part of `digest`.

use super::form::{Decoded, Operand, Operation, VectorForm};
use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind};

/// What kind of load or store a mnemonic is.
#[derive(Clone, Copy)]
enum Kind {
    /// Loads clear the rest of the register, stores take its low bytes.
    Plain,
    /// As Plain; a misaligned operand raises #GP.
    Aligned,
    /// The low or high 8 bytes, the others of XMM stay.
    Half(u8),
    /// The loaded bytes fill the register.
    Broadcast,
    /// 16 bytes of YMM, by immediate.
    Extract,
    Masked,
}

/// The operation of an instruction with a memory operand, if it is a vector load or store.
pub(super) fn operation(instruction: &Instruction, decoded: &mut Decoded) -> Operation {
    use Mnemonic as M;
    let kind = match instruction.mnemonic() {
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu | M::Movd | M::Movq | M::Movss | M::Movsd => Kind::Plain,
        M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Vlddqu | M::Vmovd | M::Vmovq | M::Vmovss | M::Vmovsd => Kind::Plain,
        M::Movntss | M::Movntsd => Kind::Plain,
        M::Movaps | M::Movapd | M::Movdqa | M::Movntdq | M::Movntdqa | M::Movntps | M::Movntpd => Kind::Aligned,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntdq | M::Vmovntdqa | M::Vmovntps | M::Vmovntpd => Kind::Aligned,
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd => Kind::Half(0),
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd => Kind::Half(8),
        M::Movddup => Kind::Broadcast,
        M::Vmovddup if decoded.memory_bytes == 8 => Kind::Broadcast,
        M::Vbroadcastss | M::Vbroadcastsd | M::Vbroadcastf128 | M::Vbroadcasti128 => Kind::Broadcast,
        M::Vpbroadcastb | M::Vpbroadcastw | M::Vpbroadcastd | M::Vpbroadcastq => Kind::Broadcast,
        M::Vextractf128 | M::Vextracti128 => Kind::Extract,
        M::Maskmovdqu | M::Vmaskmovdqu => Kind::Masked,
        _ => return Operation::Unknown,
    };
    let vex = match instruction.encoding() {
        EncodingKind::Legacy => false,
        EncodingKind::VEX => true,
        _ => return Operation::Unknown,
    };
    let mut form = VectorForm { vex, offset: 0, merges: false, aligned: false, fill: 0 };
    let stores = decoded.first == Operand::Memory;
    match kind {
        Kind::Plain => {}
        Kind::Aligned => form.aligned = true,
        Kind::Half(offset) => {
            form.offset = offset;
            form.merges = !stores;
        }
        Kind::Broadcast => form.fill = instruction.op0_register().size() as u8,
        Kind::Extract => form.offset = 16 * (decoded.immediate as u8 & 1),
        Kind::Masked => {
            decoded.memory_bytes = 16;
            return if instruction.op_kind(0) == OpKind::Memory {
                Operation::Unknown
            } else {
                Operation::MaskedStore(form)
            };
        }
    }
    let of_vector = |operand: Operand| matches!(operand, Operand::Vector(_));
    if !(1..=32).contains(&decoded.memory_bytes) {
        return Operation::Unknown;
    }
    if stores && of_vector(decoded.second) {
        Operation::VectorStore(form)
    } else if of_vector(decoded.first) {
        Operation::VectorLoad(form)
    } else {
        Operation::Unknown
    }
}
