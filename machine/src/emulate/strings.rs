//! MOVS, STOS, LODS, CMPS, SCAS, INS and OUTS, alone or repeated.
//!
//! A repeated instruction runs in chunks of [`CHUNK`] elements, less when something waits for the vCPU, and of one under
//! TF. Registers are up to date after each element, so that a fault or a pause in the middle is what the manual says: the
//! instruction continues when it is entered again. A chunk ends as a jump to the instruction itself does: interrupts are
//! taken between elements, an interrupt shadow lasts for the first one, and single steps stop after each.
//!
//! Manual: SDM 1 7.3.9 "String Operations"; SDM 2B, REP; SDM 1 19.5 "Protected-Mode I/O".

use super::access::{Operands, Place};
use super::arithmetic;
use super::execute::{Done, Execution};
use super::form::{Decoded, Repeat, StringOperation};
use super::{Cause, Context, Reason, Stop};
use memory::Width;
use vcpu::{AccessKind, Gpr, SegmentName, Vcpu, rflags};

/// The most elements that one exit moves.
const CHUNK: u32 = 1024;

impl<C: Context> Execution<'_, C> {
    pub(super) fn string(&mut self, decoded: &Decoded, operation: StringOperation) -> Result<Done, Stop> {
        if matches!(operation, StringOperation::Input | StringOperation::Output) {
            self.check_port()?;
        }
        if decoded.repeat == Repeat::Once {
            self.element(decoded, operation)?;
            return Ok(Done::Complete);
        }
        let mask = decoded.address.mask;
        for _ in 0..CHUNK {
            let count = self.context.cpu().gpr(Gpr::Rcx) & mask;
            if count == 0 {
                return Ok(Done::Complete);
            }
            self.element(decoded, operation)?;
            self.set_gpr(Gpr::Rcx, address_width(mask), count - 1);
            if count == 1 {
                return Ok(Done::Complete);
            }
            if matches!(operation, StringOperation::Compare | StringOperation::Scan) {
                let equal = self.context.cpu().rflags() & rflags::ZF != 0;
                if equal != (decoded.repeat == Repeat::WhileEqual) {
                    return Ok(Done::Complete);
                }
            }
            if self.context.should_pause() || self.context.cpu().rflags() & rflags::TF != 0 {
                break;
            }
        }
        Ok(Done::Jump(self.rip))
    }

    /// The hardware has checked the permission of the port that exited. Any other port only comes up when the instruction
    /// was changed meanwhile; then the hardware shall look at it, unless the privilege level allows every port.
    fn check_port(&self) -> Result<(), Stop> {
        let cpu = self.context.cpu();
        let port = cpu.gpr(Gpr::Rdx) as u16;
        let iopl = (cpu.rflags() & rflags::IOPL) >> rflags::IOPL.trailing_zeros();
        let any = cpu.rflags() & rflags::VM == 0 && u64::from(cpu.cpl()) <= iopl;
        match self.cause {
            Some(Cause::Port(allowed)) if allowed == port => Ok(()),
            _ if any => Ok(()),
            Some(_) => Err(Stop::Again),
            None => Err(Stop::Refused(Reason::NotImplemented)),
        }
    }

    /// One element: locate all, then read, then write, then move the index registers.
    fn element(&mut self, decoded: &Decoded, operation: StringOperation) -> Result<(), Stop> {
        let width = decoded.width;
        match operation {
            StringOperation::Move => {
                let to = self.destination(decoded, AccessKind::Write)?;
                let from = self.source(decoded)?;
                let value = self.load(&from);
                self.store(&to, value);
            }
            StringOperation::Store => {
                let to = self.destination(decoded, AccessKind::Write)?;
                let value = self.context.cpu().gpr(Gpr::Rax) & width.mask();
                self.store(&to, value);
            }
            StringOperation::Load => {
                let from = self.source(decoded)?;
                let value = self.load(&from);
                self.set_gpr(Gpr::Rax, width, value);
            }
            StringOperation::Compare => {
                let from = self.source(decoded)?;
                let to = self.destination(decoded, AccessKind::Read)?;
                let (first, second) = (self.load(&from), self.load(&to));
                self.set_flags(&arithmetic::subtract(width, first, second, false));
            }
            StringOperation::Scan => {
                let to = self.destination(decoded, AccessKind::Read)?;
                let first = self.context.cpu().gpr(Gpr::Rax) & width.mask();
                let second = self.load(&to);
                self.set_flags(&arithmetic::subtract(width, first, second, false));
            }
            StringOperation::Input => {
                let to = self.destination(decoded, AccessKind::Write)?;
                let port = self.context.cpu().gpr(Gpr::Rdx) as u16;
                let value = self.context.port_read(port, width);
                self.store(&to, value.into());
            }
            StringOperation::Output => {
                let from = self.source(decoded)?;
                let value = self.load(&from) as u32;
                let port = self.context.cpu().gpr(Gpr::Rdx) as u16;
                self.context.port_write(port, width, value);
            }
        }
        if !matches!(operation, StringOperation::Store | StringOperation::Scan | StringOperation::Input) {
            self.advance(Gpr::Rsi, decoded);
        }
        if !matches!(operation, StringOperation::Load | StringOperation::Output) {
            self.advance(Gpr::Rdi, decoded);
        }
        Ok(())
    }

    /// seg:rSI; the segment can be overridden.
    fn source(&mut self, decoded: &Decoded) -> Result<Place, Stop> {
        self.string_operand(decoded, decoded.address.segment, Gpr::Rsi, AccessKind::Read)
    }

    /// ES:rDI, always.
    fn destination(&mut self, decoded: &Decoded, kind: AccessKind) -> Result<Place, Stop> {
        self.string_operand(decoded, SegmentName::Es, Gpr::Rdi, kind)
    }

    fn string_operand(
        &mut self,
        decoded: &Decoded,
        segment: SegmentName,
        register: Gpr,
        kind: AccessKind,
    ) -> Result<Place, Stop> {
        let offset = self.context.cpu().gpr(register) & decoded.address.mask;
        let bytes = decoded.memory_bytes;
        let linear = self.linear(segment, offset, bytes, kind)?;
        self.locate(linear, bytes, kind, Operands::OneOfSeveral)
    }

    fn advance(&mut self, register: Gpr, decoded: &Decoded) {
        let step = decoded.width as u64;
        let cpu = self.context.cpu();
        let step = if cpu.rflags() & rflags::DF != 0 { step.wrapping_neg() } else { step };
        let moved = cpu.gpr(register).wrapping_add(step);
        self.set_gpr(register, address_width(decoded.address.mask), moved);
    }
}

/// The width of the registers that an address size uses.
fn address_width(mask: u64) -> Width {
    match mask {
        0xffff => Width::Word,
        0xffff_ffff => Width::Dword,
        _ => Width::Qword,
    }
}
