//! Address-space identifiers of one host CPU: who has which, and when translations must be dropped.
//!
//! Manual: AMD APM volume 2 (24593, revision 3.42), 15.16 "TLB Control". Key types: [`AsidPool`] of a CPU and the [`Asid`]
//! that a vCPU holds there. Neighbours: `lib` asks at load and when a flush is due, and puts the answer into the VMCB.
//!
//! An ASID belongs to one vCPU within a generation. When the numbers run out, a new generation begins: all translations of
//! the CPU are dropped at the next entry, and every vCPU takes a new number when it is loaded again. No test bed keeps
//! translations across entries, so this is pure and checked against a model.

/// A vCPU's number on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asid {
    /// 1 or more.
    pub number: u32,
    generation: u64,
}

/// What the next VMRUN has to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing.
    Nothing,
    /// Everything that the CPU holds for any ASID.
    All,
}

/// The numbers of one host CPU.
#[derive(Debug)]
pub struct AsidPool {
    /// The first number that does not exist.
    end: u32,
    next: u32,
    generation: u64,
    /// A new generation has begun and no VMRUN has dropped the old one's translations yet.
    flush_due: bool,
}

impl AsidPool {
    /// Numbers `1..end`; `end` is 2 or more. The first use drops what firmware may have left.
    pub const fn new(end: u32) -> AsidPool {
        AsidPool { end, next: 1, generation: 1, flush_due: true }
    }

    /// The number for a vCPU that held `current` on this CPU when it was here last.
    pub fn assign(&mut self, current: Option<Asid>) -> Asid {
        match current {
            Some(asid) if asid.generation == self.generation => asid,
            _ => self.renew(),
        }
    }

    /// A number under which the CPU holds no translations, once [`AsidPool::due`] is obeyed.
    pub fn renew(&mut self) -> Asid {
        if self.next >= self.end {
            self.next = 1;
            self.generation = self.generation.wrapping_add(1);
            self.flush_due = true;
        }
        let asid = Asid { number: self.next, generation: self.generation };
        self.next += 1;
        asid
    }

    /// What the next VMRUN on this CPU must drop, whichever vCPU it enters.
    pub const fn due(&self) -> Flush {
        if self.flush_due { Flush::All } else { Flush::Nothing }
    }

    /// A VMRUN that dropped everything has happened.
    pub const fn flushed(&mut self) {
        self.flush_due = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    #[test]
    fn a_number_is_kept_until_the_generation_ends() {
        let mut pool = AsidPool::new(3);
        assert_eq!(pool.due(), Flush::All, "what firmware left is dropped");
        let a = pool.assign(None);
        pool.flushed();
        let b = pool.assign(None);
        assert_eq!((a.number, b.number), (1, 2));
        assert_eq!((pool.assign(Some(a)), pool.due()), (a, Flush::Nothing));
        let c = pool.assign(None);
        assert_eq!((c.number, pool.due()), (1, Flush::All));
        assert_ne!(pool.assign(Some(b)), b, "the old generation's numbers are worth nothing");
    }

    #[test]
    fn a_flush_stays_due_until_an_entry_has_done_it() {
        let mut pool = AsidPool::new(2);
        let _loaded_but_never_run = pool.assign(None);
        let _next = pool.assign(None);
        assert_eq!(pool.due(), Flush::All);
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// The vCPU is loaded, and runs or not.
        Run(u8, bool),
        /// The vCPU's translations become invalid; it has to take a new number.
        Invalidate(u8),
    }

    proptest! {
        /// A CPU that really keeps translations by ASID: an entry must never find another vCPU's, nor its own old ones.
        #[test]
        fn no_vcpu_meets_stale_translations(
            end in 2u32..6,
            steps in proptest::collection::vec(prop_oneof![
                (0u8..8, any::<bool>()).prop_map(|(vcpu, runs)| Step::Run(vcpu, runs)),
                (0u8..8).prop_map(Step::Invalidate),
            ], 1..200),
        ) {
            let mut pool = AsidPool::new(end);
            let mut held: BTreeMap<u8, Asid> = BTreeMap::new();
            // What the firmware left: every ASID holds something foreign. The value is (vCPU, version of its tables).
            let mut tlb: BTreeMap<u32, (u8, u32)> = (0..end).map(|asid| (asid, (255, 0))).collect();
            let mut version = [0u32; 8];
            for step in steps {
                match step {
                    Step::Run(vcpu, runs) => {
                        let asid = pool.assign(held.get(&vcpu).copied());
                        held.insert(vcpu, asid);
                        prop_assert!(asid.number >= 1 && asid.number < end);
                        if runs {
                            if pool.due() == Flush::All {
                                tlb.clear();
                                pool.flushed();
                            }
                            let mine = (vcpu, version[usize::from(vcpu)]);
                            prop_assert_eq!(*tlb.entry(asid.number).or_insert(mine), mine);
                        }
                    }
                    Step::Invalidate(vcpu) => {
                        version[usize::from(vcpu)] += 1;
                        held.insert(vcpu, pool.renew());
                    }
                }
            }
        }
    }
}
