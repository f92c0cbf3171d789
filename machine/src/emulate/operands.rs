//! Reading and writing the register, immediate and memory operands of an instruction.

use super::access::{Operands, Place};
use super::arithmetic::Computed;
use super::execute::Execution;
use super::form::{Decoded, Operand};
use super::{Context, Stop};
use memory::Width;
use vcpu::{AccessKind, Gpr, Vcpu};

impl<C: Context> Execution<'_, C> {
    /// Where the only memory operand lies.
    #[inline]
    pub(super) fn operand(&mut self, decoded: &Decoded, kind: AccessKind) -> Result<Place, Stop> {
        let offset = self.effective(&decoded.address);
        let linear = self.linear(decoded.address.segment, offset, decoded.memory_bytes, kind)?;
        self.locate(linear, decoded.memory_bytes, kind, Operands::Only)
    }

    /// The value of an operand that is no vector; of a memory operand, as many bytes as it has.
    #[inline]
    pub(super) fn value(&mut self, decoded: &Decoded, operand: Operand) -> Result<u64, Stop> {
        Ok(match operand {
            Operand::Memory => {
                let place = self.operand(decoded, AccessKind::Read)?;
                self.load(&place)
            }
            other => self.register_or_immediate(decoded, other),
        })
    }

    /// The value of an operand that is in no memory, in the operation's width.
    #[inline(always)]
    pub(super) fn register_or_immediate(&self, decoded: &Decoded, operand: Operand) -> u64 {
        let cpu = self.context.cpu();
        match operand {
            Operand::Gpr(number) => cpu.gpr(Gpr::from_number(number)) & decoded.width.mask(),
            Operand::HighByte(number) => cpu.gpr(Gpr::from_number(number)) >> 8 & 0xff,
            Operand::Immediate => decoded.immediate & decoded.width.mask(),
            Operand::Segment(name) => cpu.segment(name).selector.into(),
            Operand::None | Operand::Memory | Operand::Vector(_) => 0,
        }
    }

    /// Writes a register operand of `width`: 32 bits clear the upper half, 8 and 16 leave the rest.
    #[inline(always)]
    pub(super) fn set_register(&mut self, operand: Operand, width: Width, value: u64) {
        match operand {
            Operand::Gpr(number) => self.set_gpr(Gpr::from_number(number), width, value),
            Operand::HighByte(number) => {
                let register = Gpr::from_number(number);
                let old = self.context.cpu().gpr(register);
                self.context.cpu_mut().set_gpr(register, old & !0xff00 | (value & 0xff) << 8);
            }
            Operand::None | Operand::Memory | Operand::Immediate | Operand::Segment(_) | Operand::Vector(_) => {}
        }
    }

    /// Writes the low part of a general-purpose register as an instruction of `width` does.
    #[inline(always)]
    pub(super) fn set_gpr(&mut self, register: Gpr, width: Width, value: u64) {
        let value = match width {
            Width::Qword | Width::Dword => value & width.mask(),
            Width::Word | Width::Byte => self.context.cpu().gpr(register) & !width.mask() | value & width.mask(),
        };
        self.context.cpu_mut().set_gpr(register, value);
    }

    /// Writes the flags that a computation changed.
    #[inline]
    pub(super) fn set_flags(&mut self, computed: &Computed) {
        if computed.changed != 0 {
            let old = self.context.cpu().rflags();
            self.context.cpu_mut().set_rflags(computed.apply(old));
        }
    }
}
