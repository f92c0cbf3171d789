//! PUSH, POP, CALL and JMP whose operand or stack lies in device space.
//!
//! Manual: SDM 1 6.2 "Stacks"; SDM 2, PUSH, POP, CALL, JMP.

use super::access::{Operands, Place};
use super::execute::{Done, Execution};
use super::form::{Decoded, Operand};
use super::{Context, Reason, Stop};
use memory::Width;
use vcpu::{AccessKind, CodeSize, Exception, Gpr, SegmentName, Vcpu, cr4};

impl<C: Context> Execution<'_, C> {
    /// The size of the stack pointer: 64 bits, or as the stack segment's B flag says.
    fn stack_width(&self) -> Width {
        if self.code_size == CodeSize::Bits64 {
            Width::Qword
        } else if self.context.cpu().segment(SegmentName::Ss).attributes.big() {
            Width::Dword
        } else {
            Width::Word
        }
    }

    /// Where the stack pointer plus `by` points, and that stack pointer.
    fn stack_slot(&mut self, by: u64, width: Width, kind: AccessKind) -> Result<(Place, u64), Stop> {
        let pointer = self.context.cpu().gpr(Gpr::Rsp).wrapping_add(by) & self.stack_width().mask();
        let bytes = width.bytes() as u8;
        let linear = self.linear(SegmentName::Ss, pointer, bytes, kind)?;
        let place = self.locate(linear, bytes, kind, Operands::OneOfSeveral)?;
        Ok((place, pointer))
    }

    /// The explicit operand of an instruction that uses the stack too.
    fn beside_stack(&mut self, decoded: &Decoded, kind: AccessKind, rsp_ahead: u64) -> Result<Place, Stop> {
        let mut address = decoded.address;
        if address.base == Gpr::Rsp as u8 {
            address.displacement = address.displacement.wrapping_add(rsp_ahead);
        }
        let offset = self.effective(&address);
        let linear = self.linear(address.segment, offset, decoded.memory_bytes, kind)?;
        self.locate(linear, decoded.memory_bytes, kind, Operands::OneOfSeveral)
    }

    pub(super) fn push(&mut self, decoded: &Decoded) -> Result<(), Stop> {
        let width = decoded.width;
        let (slot, pointer) = self.stack_slot((width as u64).wrapping_neg(), width, AccessKind::Write)?;
        let value = match decoded.first {
            Operand::Memory => {
                let place = self.beside_stack(decoded, AccessKind::Read, 0)?;
                self.load(&place)
            }
            other => self.register_or_immediate(decoded, other),
        };
        self.store(&slot, value);
        self.set_gpr(Gpr::Rsp, self.stack_width(), pointer);
        Ok(())
    }

    /// A destination address with RSP in it is computed with the RSP after.
    pub(super) fn pop(&mut self, decoded: &Decoded) -> Result<(), Stop> {
        let width = decoded.width;
        let (slot, pointer) = self.stack_slot(0, width, AccessKind::Read)?;
        let after = pointer.wrapping_add(width as u64);
        if decoded.first == Operand::Memory {
            let place = self.beside_stack(decoded, AccessKind::Write, width as u64)?;
            let value = self.load(&slot);
            self.store(&place, value);
            self.set_gpr(Gpr::Rsp, self.stack_width(), after);
        } else {
            let value = self.load(&slot);
            self.set_gpr(Gpr::Rsp, self.stack_width(), after);
            self.set_register(decoded.first, width, value);
        }
        Ok(())
    }

    pub(super) fn call(&mut self, decoded: &Decoded) -> Result<Done, Stop> {
        // With shadow stacks a call writes a second stack, which the contract knows nothing of.
        if self.context.cpu().cr4() & cr4::CET != 0 {
            return Err(Stop::Refused(Reason::NotImplemented));
        }
        let width = decoded.width;
        let (slot, pointer) = self.stack_slot((width as u64).wrapping_neg(), width, AccessKind::Write)?;
        let target = self.branch_target(decoded)?;
        let behind = self.code_size.advance(self.rip, decoded.length.bytes().into());
        self.store(&slot, behind);
        self.set_gpr(Gpr::Rsp, self.stack_width(), pointer);
        Ok(Done::Jump(target))
    }

    pub(super) fn jump(&mut self, decoded: &Decoded) -> Result<Done, Stop> {
        self.branch_target(decoded).map(Done::Jump)
    }

    /// Reads the target and checks that it can be executed.
    fn branch_target(&mut self, decoded: &Decoded) -> Result<u64, Stop> {
        let place = self.beside_stack(decoded, AccessKind::Read, 0)?;
        let target = self.load(&place) & decoded.width.mask();
        let cpu = self.context.cpu();
        let reachable = match self.code_size {
            CodeSize::Bits64 => super::address::is_canonical(cpu, target),
            CodeSize::Bits32 | CodeSize::Bits16 => target <= cpu.segment(SegmentName::Cs).limit.into(),
        };
        if reachable { Ok(target) } else { Err(Stop::Fault(Exception::general_protection(0))) }
    }
}
