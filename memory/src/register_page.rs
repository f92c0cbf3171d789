//! A 4 KiB page of 32-bit registers that hardware, the owning vCPU and other CPUs use at the same time.
//!
//! The local APIC keeps its state in one, at the offsets of SDM 3A "Local APIC Register Address Map", so that APICv
//! and AVIC can be pointed at it. This type knows no register; it only makes each 32-bit access atomic.

use core::sync::atomic::{AtomicU32, Ordering};

const WORDS: usize = 1024;

/// One page of atomically accessed 32-bit registers, 4 KiB aligned.
#[repr(C, align(4096))]
pub struct RegisterPage {
    words: [AtomicU32; WORDS],
}

const _: () = assert!(size_of::<RegisterPage>() == 4096);

impl RegisterPage {
    /// A page of zeroes.
    pub const fn new() -> Self {
        Self { words: [const { AtomicU32::new(0) }; WORDS] }
    }

    /// The register at byte `offset`, which is taken modulo the page and rounded down to a multiple of 4.
    #[inline]
    pub fn register(&self, offset: usize) -> &AtomicU32 {
        // The mask keeps the index below WORDS, so this cannot be out of bounds whatever the caller was told.
        &self.words[(offset >> 2) & (WORDS - 1)]
    }

    /// Reads the register at byte `offset`.
    #[inline]
    pub fn load(&self, offset: usize) -> u32 {
        self.register(offset).load(Ordering::Acquire)
    }

    /// Writes the register at byte `offset`.
    #[inline]
    pub fn store(&self, offset: usize, value: u32) {
        self.register(offset).store(value, Ordering::Release);
    }
}

impl Default for RegisterPage {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_name_separate_registers_and_wrap_at_the_page() {
        let page = RegisterPage::new();
        page.store(0x80, 7);
        page.store(0xffc, 9);
        assert_eq!(page.load(0x80), 7);
        assert_eq!(page.load(0x83), 7);
        assert_eq!(page.load(0x84), 0);
        assert_eq!(page.load(0x1ffc), 9);
    }
}
