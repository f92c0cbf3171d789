//! Fetching the bytes of the instruction at RIP.
//!
//! Key type: [`Fetched`]. Bytes come afresh at each exit: from what the hardware delivered with it, or through the code
//! segment and the guest's page tables. The second page of an instruction that may cross one is only touched when the
//! decoder asks for it, since the processor would not fault on it otherwise.

use super::walk::{Privilege, translate, translate_plain};
use super::{Context, Reason, Stop};
use memory::{Gpa, GuestMemory, PAGE_SIZE, Width};
use vcpu::{AccessKind, CodeSize, Exception, SegmentName, Vcpu};

/// The longest instruction, SDM 2A 2.3.11 "AVX Instruction Length" and vol. 3A 7.15, #GP.
pub(super) const LONGEST: u8 = 15;

/// Instruction bytes, and where they came from.
pub(super) struct Fetched {
    /// The bytes, first one lowest.
    word: u128,
    /// How many of them are the guest's, 1 to 15.
    count: u8,
    code_size: CodeSize,
    rip: u64,
}

impl Fetched {
    /// The bytes that came with the exit, of which the first `count` (1 to 15) are valid.
    pub fn from_hardware<C: Context>(context: &C, bytes: &[u8; 15], count: u8) -> Fetched {
        let mut wide = [0; 16];
        for (to, from) in wide.iter_mut().zip(bytes) {
            *to = *from;
        }
        let cpu = context.cpu();
        Fetched {
            word: u128::from_le_bytes(wide),
            count: count.min(LONGEST),
            code_size: cpu.code_size(),
            rip: cpu.rip(),
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

    /// Gets more bytes, because the decoder needs them: up to 15, from the next page too.
    ///
    /// # Errors
    /// What the processor would raise on fetching them; [`Reason::Undecodable`] when there are 15 already.
    #[cold]
    #[inline(never)]
    pub fn extend<C: Context>(&mut self, context: &C) -> Result<(), Stop> {
        if self.count >= LONGEST {
            return Err(Stop::Refused(Reason::Undecodable));
        }
        let (linear, left) = start(context, self.code_size, self.rip)?;
        let wanted = left.min(LONGEST.into());
        let in_page = wanted.min(PAGE_SIZE - linear % PAGE_SIZE);
        let privilege = Privilege::of(context.cpu().cpl());
        let mut bytes = [0; 16];
        let (head, tail) = bytes.split_at_mut(in_page as usize);
        if u64::from(self.count) < in_page {
            read(context, translate(context, linear, AccessKind::Fetch, privilege)?, head)?;
            self.count = in_page as u8;
        } else if in_page < wanted {
            let mut next = linear.wrapping_add(in_page);
            if self.code_size != CodeSize::Bits64 {
                next &= 0xffff_ffff;
            } else if !super::address::is_canonical(context.cpu(), next) {
                return Err(Stop::Fault(Exception::general_protection(0)));
            }
            // Both parts are fetched, so that they are of one time.
            read(context, translate(context, linear, AccessKind::Fetch, privilege)?, head)?;
            let gpa = translate(context, next, AccessKind::Fetch, privilege)?;
            if let Some(into) = tail.get_mut(..(wanted - in_page) as usize) {
                read(context, gpa, into)?;
            }
            self.count = wanted as u8;
        } else {
            // All that the code segment has is there, and the instruction goes on.
            return Err(Stop::Fault(Exception::general_protection(0)));
        }
        self.word = u128::from_le_bytes(bytes);
        Ok(())
    }
}

/// The linear address of RIP, and how many bytes the code segment has from there on.
fn start<C: Context>(context: &C, code_size: CodeSize, rip: u64) -> Result<(u64, u64), Stop> {
    if code_size == CodeSize::Bits64 {
        return Ok((rip, u64::MAX));
    }
    let code = context.cpu().segment(SegmentName::Cs);
    match u64::from(code.limit).checked_sub(rip) {
        Some(behind) => Ok((code.base.wrapping_add(rip) & 0xffff_ffff, behind + 1)),
        None => Err(Stop::Fault(Exception::general_protection(0))),
    }
}

/// Reads the bytes at RIP in the plain cases: 9 to 15 of them, in RAM, away from the ends of page and segment, by two
/// aligned loads. `None` leaves the rest, faults included, to [`fetch`].
#[inline(always)]
pub(super) fn fetch_plain<C: Context>(context: &C) -> Option<Fetched> {
    let cpu = context.cpu();
    let (code_size, rip) = (cpu.code_size(), cpu.rip());
    let gpa = plain_start(context, code_size, rip)?;
    let skip = gpa.0 % 8;
    let aligned = gpa.0 - skip;
    if aligned % PAGE_SIZE > PAGE_SIZE - 16 {
        return None;
    }
    let first = context.memory().load(Gpa(aligned), Width::Qword).ok()?;
    let second = context.memory().load(Gpa(aligned.wrapping_add(8)), Width::Qword).ok()?;
    let word = (u128::from(first) | u128::from(second) << 64) >> (skip * 8);
    Some(Fetched { word, count: (16 - skip as u8).min(LONGEST), code_size, rip })
}

/// The first four bytes at RIP, first one lowest, in the plain cases: in RAM, in one page, away from the end of the
/// segment. They need not all be of one instruction.
#[inline(always)]
pub(super) fn first_bytes<C: Context>(context: &C) -> Option<u32> {
    let cpu = context.cpu();
    let gpa = plain_start(context, cpu.code_size(), cpu.rip())?;
    let skip = gpa.0 % 8;
    let word = context.memory().load(Gpa(gpa.0 - skip), Width::Qword).ok()?;
    if skip <= 4 {
        return Some((word >> (skip * 8)) as u32);
    }
    if gpa.page_offset() > PAGE_SIZE - 8 {
        return None;
    }
    let next = context.memory().load(Gpa((gpa.0 - skip).wrapping_add(8)), Width::Qword).ok()?;
    Some((word >> (skip * 8) | next << (64 - skip * 8)) as u32)
}

/// Where the bytes at RIP are, if the code segment and the page tables let 15 of them be fetched without further question.
#[inline(always)]
fn plain_start<C: Context>(context: &C, code_size: CodeSize, rip: u64) -> Option<Gpa> {
    let cpu = context.cpu();
    let linear = if code_size == CodeSize::Bits64 {
        rip
    } else {
        let code = cpu.segment(SegmentName::Cs);
        if rip.wrapping_add(LONGEST.into()) > code.limit.into() {
            return None;
        }
        code.base.wrapping_add(rip) & 0xffff_ffff
    };
    translate_plain(context, linear, AccessKind::Fetch, Privilege::of(cpu.cpl()))
}

/// Reads the bytes at RIP, up to 15, as far as the first page and the code segment reach.
///
/// # Errors
/// #GP(0) past the segment's limit, the page faults of a fetch, [`Reason::Code`] where there is nothing to fetch from.
#[cold]
#[inline(never)]
pub(super) fn fetch<C: Context>(context: &C) -> Result<Fetched, Stop> {
    let cpu = context.cpu();
    let mut fetched = Fetched { word: 0, count: 0, code_size: cpu.code_size(), rip: cpu.rip() };
    fetched.extend(context)?;
    Ok(fetched)
}

fn read<C: Context>(context: &C, gpa: Gpa, into: &mut [u8]) -> Result<(), Stop> {
    if context.memory().read(gpa, into).is_ok() || context.fetch_outside_ram(gpa, into) {
        Ok(())
    } else {
        Err(Stop::Refused(Reason::Code(gpa)))
    }
}
