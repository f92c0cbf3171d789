//! SSE and AVX loads and stores.
//!
//! MMX registers are not part of the vCPU contract; their instructions are refused when they are digested.
//!
//! Manual: SDM 2A 2.4 "AVX and SSE Instruction Exception Classification"; SDM 1 13.1 and 14.1 on availability.

use super::execute::Execution;
use super::form::{Decoded, Operand, VectorForm};
use super::{Context, Stop};
use vcpu::{AccessKind, Exception, Vcpu, cr0, cr4};

/// XCR0: SSE and AVX state.
const XCR0_SSE_AVX: u64 = 6;

impl<C: Context> Execution<'_, C> {
    /// #UD and #NM as the control registers say.
    fn check_vectors(&self, form: VectorForm) -> Result<(), Stop> {
        let cpu = self.context.cpu();
        let (cr0, cr4) = (cpu.cr0(), cpu.cr4());
        let usable = if form.vex {
            cr4 & cr4::OSXSAVE != 0 && cpu.xcr0() & XCR0_SSE_AVX == XCR0_SSE_AVX
        } else {
            cr0 & cr0::EM == 0 && cr4 & cr4::OSFXSR != 0
        };
        if !usable {
            return Err(Stop::Fault(Exception::undefined()));
        }
        if cr0 & cr0::TS != 0 {
            return Err(Stop::Fault(Exception::device_not_available()));
        }
        Ok(())
    }

    fn vector(&self, operand: Operand) -> [u8; 32] {
        match operand {
            Operand::Vector(number) => self.context.cpu().vector(number),
            _ => [0; 32],
        }
    }

    /// The linear address of the operand, aligned where the instruction wants that.
    fn check_operand_alignment(&self, decoded: &Decoded, form: VectorForm) -> Result<(), Stop> {
        let misaligned = |linear: u64| linear & u64::from(decoded.memory_bytes.wrapping_sub(1)) != 0;
        if form.aligned {
            let offset = self.effective(&decoded.address);
            let linear = self.linear(decoded.address.segment, offset, decoded.memory_bytes, AccessKind::Read)?;
            if misaligned(linear) {
                return Err(Stop::Fault(Exception::general_protection(0)));
            }
        }
        Ok(())
    }

    pub(super) fn vector_load(&mut self, decoded: &Decoded, form: VectorForm) -> Result<(), Stop> {
        self.check_vectors(form)?;
        self.check_operand_alignment(decoded, form)?;
        let place = self.operand(decoded, AccessKind::Read)?;
        let mut loaded = [0; 32];
        let bytes = usize::from(decoded.memory_bytes);
        if let Some(into) = loaded.get_mut(..bytes) {
            self.read_bytes(&place, into);
        }
        let mut value = [0; 32];
        if form.merges {
            let kept = if form.vex { decoded.second } else { decoded.first };
            for (to, from) in value.iter_mut().zip(self.vector(kept)).take(16) {
                *to = from;
            }
        }
        if form.fill == 0 {
            for (to, from) in value.iter_mut().skip(form.offset.into()).zip(loaded).take(bytes) {
                *to = from;
            }
        } else {
            let repeated = loaded.iter().take(bytes).cycle();
            for (to, from) in value.iter_mut().zip(repeated).take(form.fill.into()) {
                *to = *from;
            }
        }
        if let Operand::Vector(number) = decoded.first {
            let written = if form.vex { 32 } else { 16 };
            self.context.cpu_mut().set_vector(number, value, written);
        }
        Ok(())
    }

    pub(super) fn vector_store(&mut self, decoded: &Decoded, form: VectorForm) -> Result<(), Stop> {
        self.check_vectors(form)?;
        self.check_operand_alignment(decoded, form)?;
        let place = self.operand(decoded, AccessKind::Write)?;
        let value = self.vector(decoded.second);
        let start = usize::from(form.offset);
        if let Some(from) = value.get(start..start + usize::from(decoded.memory_bytes)) {
            self.write_bytes(&place, from);
        }
        Ok(())
    }

    /// MASKMOVDQU: bytes of the second operand whose byte in the third has its top bit set go to DS:rDI.
    pub(super) fn masked_store(&mut self, decoded: &Decoded, form: VectorForm) -> Result<(), Stop> {
        self.check_vectors(form)?;
        let (value, mask) = (self.vector(decoded.second), self.vector(decoded.third));
        let place = self.operand(decoded, AccessKind::Write)?;
        for (index, (byte, mask)) in (0u8..).zip(value.iter().zip(mask)).take(decoded.memory_bytes.into()) {
            if mask & 0x80 != 0 {
                self.store(&place.byte(index), (*byte).into());
            }
        }
        Ok(())
    }
}
