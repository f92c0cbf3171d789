//! Virtual-processor identifiers: which vCPU has which.
//!
//! Manual: Intel SDM 3C (December 2024, 325462-086), 29.1 "Virtual Processor Identifiers (VPIDs)". Key type: [`VpidPool`] of the
//! whole host. Neighbour: `lib` takes one for each vCPU and gives it back with the vCPU. A number may be used again at once:
//! a vCPU drops what a CPU holds under its number whenever it comes to a CPU where it was not the last time.

/// How many identifiers there are; 0 is the host's own.
const VPIDS: usize = 1 << 16;

/// The identifiers of the host, one bit each.
pub struct VpidPool {
    taken: [u64; VPIDS / 64],
}

impl VpidPool {
    /// All but 0 are free.
    pub const fn new() -> VpidPool {
        let mut taken = [0; VPIDS / 64];
        taken[0] = 1;
        VpidPool { taken }
    }

    /// The lowest free number, 1 to 65535; `None` when all are taken.
    pub fn take(&mut self) -> Option<u16> {
        let (word, bits) = self.taken.iter_mut().enumerate().find(|(_, bits)| **bits != u64::MAX)?;
        let bit = bits.trailing_ones();
        *bits |= 1 << bit;
        Some((word * 64) as u16 + bit as u16)
    }

    /// Gives a number back.
    pub fn give(&mut self, vpid: u16) {
        assert!(vpid != 0, "0 is the host's");
        self.taken[usize::from(vpid) / 64] &= !(1 << (vpid % 64));
    }
}

impl Default for VpidPool {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_number_but_0_is_given_once() {
        let mut pool = VpidPool::new();
        let mut all: Vec<u16> = core::iter::from_fn(|| pool.take()).collect();
        assert_eq!(all.len(), VPIDS - 1);
        all.sort_unstable();
        all.dedup();
        assert_eq!((all.len(), all[0]), (VPIDS - 1, 1));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn a_number_that_was_given_back_is_given_again() {
        let mut pool = VpidPool::new();
        let numbers = [pool.take(), pool.take(), pool.take()];
        assert_eq!(numbers, [Some(1), Some(2), Some(3)]);
        pool.give(2);
        assert_eq!((pool.take(), pool.take()), (Some(2), Some(4)));
    }
}
