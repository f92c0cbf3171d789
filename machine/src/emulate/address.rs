//! Effective and linear addresses: address forms, segmentation, canonicality.
//!
//! Manual: SDM 3A 6.3 to 6.5 "Limit Checking", "Type Checking"; SDM 1 3.3.7 "Address Calculations in 64-Bit Mode" and
//! 3.3.7.1 "Canonical Addressing".

use super::Context;
use super::execute::Execution;
use super::form::{AddressForm, NO_REGISTER, RIP};
use memory::Width;
use vcpu::{AccessKind, CodeSize, Exception, Gpr, SegmentAttributes, SegmentName, Vcpu, cr0, cr4, rflags};

/// Whether `linear` is canonical under the processor's linear-address width.
#[inline]
pub(super) fn is_canonical<V: Vcpu>(cpu: &V, linear: u64) -> bool {
    let fits = |bits: u32| (linear << (64 - bits)) as i64 >> (64 - bits) == linear as i64;
    fits(48) || (fits(57) && cpu.cr4() & cr4::LA57 != 0)
}

impl<C: Context> Execution<'_, C> {
    /// The offset within the segment, truncated to the address size.
    #[inline(always)]
    pub(super) fn effective(&self, form: &AddressForm) -> u64 {
        let cpu = self.context.cpu();
        let mut offset = form.displacement;
        if form.base < NO_REGISTER {
            offset = offset.wrapping_add(cpu.gpr(Gpr::from_number(form.base)));
        } else if form.base == RIP {
            offset = offset.wrapping_add(self.rip);
        }
        if form.index < NO_REGISTER {
            offset = offset.wrapping_add(cpu.gpr(Gpr::from_number(form.index)) << (form.scale & 3));
        }
        offset & form.mask
    }

    /// The linear address of `width` bytes at `offset` in `name` in the plain cases: canonical, or in a writable segment that
    /// grows upwards. `None` leaves the rest to [`Execution::linear`].
    #[inline(always)]
    pub(super) fn plain_linear(&self, name: SegmentName, offset: u64, width: Width) -> Option<u64> {
        let cpu = self.context.cpu();
        if self.code_size == CodeSize::Bits64 {
            let linear = match name {
                SegmentName::Fs | SegmentName::Gs => cpu.segment(name).base.wrapping_add(offset),
                _ => offset,
            };
            // The sign extension of 48 bits; an aligned operand has no end elsewhere.
            return ((linear << 16) as i64 >> 16 == linear as i64).then_some(linear);
        }
        let segment = cpu.segment(name);
        // Data, writable, not expand-down; usable.
        let plain =
            segment.attributes.into_bits() & (SegmentAttributes::new().with_unusable(true).into_bits() | 0xe) == 2;
        let last = offset.wrapping_add(width as u64 - 1);
        (plain && last <= segment.limit.into()).then(|| segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// The linear address of `bytes` (1 to 32) at `offset` in `name`, whose segment allows the access.
    ///
    /// # Errors
    /// #SS(0) for the stack segment, #GP(0) for others.
    #[inline]
    pub(super) fn linear(&self, name: SegmentName, offset: u64, bytes: u8, kind: AccessKind) -> Result<u64, Exception> {
        let refused = || match name {
            SegmentName::Ss => Exception::stack(0),
            _ => Exception::general_protection(0),
        };
        let behind = u64::from(bytes.wrapping_sub(1));
        let cpu = self.context.cpu();
        if self.code_size == CodeSize::Bits64 {
            let linear = match name {
                SegmentName::Fs | SegmentName::Gs => cpu.segment(name).base.wrapping_add(offset),
                _ => offset,
            };
            let last = linear.wrapping_add(behind);
            return if is_canonical(cpu, linear) && is_canonical(cpu, last) { Ok(linear) } else { Err(refused()) };
        }
        let segment = cpu.segment(name);
        let attributes = segment.attributes;
        let kind_bits = attributes.kind();
        let is_code = kind_bits & 8 != 0;
        if cpu.cr0() & cr0::PE != 0 && cpu.rflags() & rflags::VM == 0 {
            let allowed = match kind {
                AccessKind::Write => !is_code && kind_bits & 2 != 0,
                AccessKind::Read | AccessKind::Fetch => !is_code || kind_bits & 2 != 0,
            };
            if attributes.unusable() || !allowed {
                return Err(refused());
            }
        }
        let limit = u64::from(segment.limit);
        let last = offset.wrapping_add(behind);
        let inside = if kind_bits & 0xc == 4 {
            let end = if attributes.big() { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= end
        } else {
            last <= limit
        };
        if !inside {
            return Err(refused());
        }
        Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
    }
}
