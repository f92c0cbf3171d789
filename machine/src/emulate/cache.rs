//! Digested instructions, kept by code size and bytes.
//!
//! Key type: [`Cache`]. RIP only chooses the slot; what counts is that the code size and every byte of the instruction are
//! those that were decoded, so that a hit never depends on what was at RIP before. The size is fixed, a newer instruction
//! takes the place of an older one. Instructions without semantics here are kept too: their length is asked for.

use super::digest::{self, DecodeError};
use super::fetch::Fetched;
use super::form::Decoded;
use super::{Context, Reason, Stop};
use alloc::boxed::Box;
use alloc::vec;
use vcpu::CodeSize;

/// Slots; a power of two. A kernel has some dozens of places that access devices often.
const SLOTS: usize = 256;

/// The ones in the first `n` bytes of a word.
const FIRST_BYTES: [u128; 16] = {
    let mut masks = [0; 16];
    let mut count = 1;
    while count < masks.len() {
        masks[count] = u128::MAX >> (128 - 8 * count);
        count += 1;
    }
    masks
};

#[derive(Clone, Copy)]
struct Slot {
    /// The instruction's bytes; zero behind its length.
    key: u128,
    /// `None`: the slot is empty.
    code_size: Option<CodeSize>,
    decoded: Decoded,
}

/// A direct-mapped cache of digested instructions.
pub(super) struct Cache {
    slots: Box<[Slot; SLOTS]>,
}

impl Cache {
    /// An empty cache; the only allocation.
    pub fn new() -> Cache {
        let empty = Slot { key: 0, code_size: None, decoded: Decoded::nothing() };
        let slots: Box<[Slot]> = vec![empty; SLOTS].into_boxed_slice();
        match slots.try_into() {
            Ok(slots) => Cache { slots },
            Err(_) => unreachable!("the vector was made with SLOTS elements"),
        }
    }

    /// The instruction in digested form, if it is here.
    #[inline(always)]
    pub fn find(&self, fetched: &Fetched) -> Option<&Decoded> {
        let slot = &self.slots[slot_of(fetched.rip())];
        slot.holds(fetched).then_some(&slot.decoded)
    }

    /// The instruction at RIP in digested form; more bytes are fetched if it needs them.
    ///
    /// # Errors
    /// Those of fetching, or [`Reason::Undecodable`].
    pub fn decode<C: Context>(&mut self, context: &C, fetched: &mut Fetched) -> Result<&Decoded, Stop> {
        let index = slot_of(fetched.rip());
        if !self.slots[index].holds(fetched) {
            self.fill(index, context, fetched)?;
        }
        Ok(&self.slots[index].decoded)
    }

    #[cold]
    #[inline(never)]
    fn fill<C: Context>(&mut self, index: usize, context: &C, fetched: &mut Fetched) -> Result<(), Stop> {
        let decoded = loop {
            let (bytes, count) = fetched.copy();
            match digest::decode(fetched.code_size(), bytes.get(..usize::from(count)).unwrap_or(&bytes)) {
                Ok(decoded) => break decoded,
                // Each extension leaves more bytes or fails, and there are two pages at most.
                Err(DecodeError::MoreBytes) => fetched.extend(context)?,
                Err(DecodeError::Invalid) => return Err(Stop::Refused(Reason::Undecodable)),
            }
        };
        let mask = FIRST_BYTES[usize::from(decoded.length.bytes() & 15)];
        self.slots[index] = Slot { key: fetched.word() & mask, code_size: Some(fetched.code_size()), decoded };
        Ok(())
    }
}

impl Slot {
    #[inline(always)]
    fn holds(&self, fetched: &Fetched) -> bool {
        let length = self.decoded.length.bytes();
        self.code_size == Some(fetched.code_size())
            && length <= fetched.count()
            && fetched.word() & FIRST_BYTES[usize::from(length & 15)] == self.key
    }
}

/// The slot for an instruction at `rip`; always below [`SLOTS`].
#[inline]
fn slot_of(rip: u64) -> usize {
    (rip ^ rip >> 9) as usize & (SLOTS - 1)
}
