//! Fetching the bytes of the instruction at RIP.
//!
//! Key type: [`Fetched`]. Bytes come afresh at each exit: from what the hardware delivered with it, or through the code
//! segment and the guest's page tables. The second page of an instruction that may cross one is only touched when the
//! decoder asks for it, since the processor would not fault on it otherwise.

use super::walk::{Privilege, translate};
use super::{Context, Reason, Stop};
use memory::{Gpa, GuestMemory, PAGE_SIZE};
use vcpu::{AccessKind, CodeSize, Exception, SegmentName, Vcpu};

/// The longest instruction, SDM 2A 2.3.11 "AVX Instruction Length" and vol. 3A 7.15, #GP.
pub(super) const LONGEST: u8 = 15;

/// Instruction bytes, and where they came from.
pub(super) struct Fetched {
    /// The bytes, first one lowest.
    word: u128,
    /// How many of them are the guest's, 1 to 15.
    count: u8,
    /// How many more the code segment's limit and the page's end leave behind `count`.
    rest: Rest,
    code_size: CodeSize,
    rip: u64,
}

/// What stands behind the bytes that were fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Nothing that belongs to this instruction: 15 bytes are there.
    Full,
    /// Another page, at this linear address; so many bytes are missing to 15 or to the segment's limit.
    Page(u64, u8),
    /// The end of the code segment.
    Limit,
    /// The hardware delivered less than 15 bytes; the rest has to be fetched.
    Undelivered,
}

impl Fetched {
    /// The bytes that came with the exit, of which the first `count` (1 to 15) are valid.
    pub fn from_hardware<C: Context>(context: &C, bytes: &[u8; 15], count: u8) -> Fetched {
        let mut wide = [0; 16];
        for (to, from) in wide.iter_mut().zip(bytes) {
            *to = *from;
        }
        let count = count.min(LONGEST);
        Fetched {
            word: u128::from_le_bytes(wide),
            count,
            rest: if count == LONGEST { Rest::Full } else { Rest::Undelivered },
            code_size: context.cpu().code_size(),
            rip: context.cpu().rip(),
        }
    }

    /// All bytes as one number, first byte lowest. Bytes from [`Fetched::count`] on are of no meaning.
    #[inline]
    pub fn word(&self) -> u128 {
        self.word
    }

    /// How many bytes there are, 1 to 15.
    #[inline]
    pub fn count(&self) -> u8 {
        self.count
    }

    /// How the bytes decode.
    #[inline]
    pub fn code_size(&self) -> CodeSize {
        self.code_size
    }

    /// RIP, where the bytes were.
    #[inline]
    pub fn rip(&self) -> u64 {
        self.rip
    }

    /// The bytes for a report.
    pub fn copy(&self) -> ([u8; 15], u8) {
        let mut bytes = [0; 15];
        for (to, from) in bytes.iter_mut().zip(self.word.to_le_bytes()).take(self.count.into()) {
            *to = from;
        }
        (bytes, self.count)
    }

    /// Gets the bytes that follow, because the decoder needs them.
    ///
    /// # Errors
    /// What the processor would raise on fetching them; [`Reason::Undecodable`] when there are 15 already.
    #[cold]
    pub fn extend<C: Context>(&mut self, context: &C) -> Result<(), Stop> {
        match self.rest {
            Rest::Full => Err(Stop::Refused(Reason::Undecodable)),
            Rest::Limit => Err(Stop::Fault(Exception::general_protection(0))),
            Rest::Undelivered => {
                *self = fetch(context)?;
                Ok(())
            }
            Rest::Page(linear, missing) => {
                if self.code_size == CodeSize::Bits64 && !super::address::is_canonical(context.cpu(), linear) {
                    return Err(Stop::Fault(Exception::general_protection(0)));
                }
                let gpa = translate(context, linear, AccessKind::Fetch, Privilege::of(context.cpu().cpl()))?;
                let mut bytes = self.word.to_le_bytes();
                let start = usize::from(self.count);
                let end = start + usize::from(missing);
                if let Some(into) = bytes.get_mut(start..end) {
                    read(context, gpa, into)?;
                }
                self.word = u128::from_le_bytes(bytes);
                self.count = end as u8;
                self.rest = if self.count == LONGEST { Rest::Full } else { Rest::Limit };
                Ok(())
            }
        }
    }
}

/// Reads the bytes at RIP, up to 15, as far as the first page and the code segment reach.
///
/// # Errors
/// #GP(0) past the segment's limit, the page faults of a fetch, [`Reason::Code`] where there is nothing to fetch from.
#[inline]
pub(super) fn fetch<C: Context>(context: &C) -> Result<Fetched, Stop> {
    let cpu = context.cpu();
    let (code_size, rip) = (cpu.code_size(), cpu.rip());
    let (linear, left) = match code_size {
        CodeSize::Bits64 => (rip, u64::MAX),
        CodeSize::Bits32 | CodeSize::Bits16 => {
            let code = cpu.segment(SegmentName::Cs);
            let Some(behind) = u64::from(code.limit).checked_sub(rip) else {
                return Err(Stop::Fault(Exception::general_protection(0)));
            };
            (code.base.wrapping_add(rip) & 0xffff_ffff, behind + 1)
        }
    };
    let gpa = translate(context, linear, AccessKind::Fetch, Privilege::of(cpu.cpl()))?;
    let in_page = PAGE_SIZE - linear % PAGE_SIZE;
    let mut bytes = [0; 16];
    if in_page >= 16 && left >= LONGEST.into() {
        // The sixteenth byte is in the same page and of no meaning; a fixed size copies faster.
        read(context, gpa, &mut bytes)?;
        return Ok(Fetched { word: u128::from_le_bytes(bytes), count: LONGEST, rest: Rest::Full, code_size, rip });
    }
    let wanted = left.min(LONGEST.into()) as u8;
    let count = in_page.min(wanted.into()) as u8;
    if let Some(into) = bytes.get_mut(..usize::from(count)) {
        read(context, gpa, into)?;
    }
    let rest = if count < wanted {
        let mut next = linear.wrapping_add(count.into());
        if code_size != CodeSize::Bits64 {
            next &= 0xffff_ffff;
        }
        Rest::Page(next, wanted - count)
    } else if count == LONGEST {
        Rest::Full
    } else {
        Rest::Limit
    };
    Ok(Fetched { word: u128::from_le_bytes(bytes), count, rest, code_size, rip })
}

#[inline]
fn read<C: Context>(context: &C, gpa: Gpa, into: &mut [u8]) -> Result<(), Stop> {
    if context.memory().read(gpa, into).is_ok() || context.fetch_outside_ram(gpa, into) {
        Ok(())
    } else {
        Err(Stop::Refused(Reason::Code(gpa)))
    }
}
