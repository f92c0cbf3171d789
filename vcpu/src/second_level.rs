//! The second level of translation, from guest-physical to host-physical: NPT or EPT.

use crate::Hpa;
use core::fmt;
use memory::Gpa;

bitflags::bitflags! {
    /// What the guest may do with a mapping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Permissions: u8 {
        /// Data reads. NPT has no mapping without it.
        const READ = 1 << 0;
        /// Data writes.
        const WRITE = 1 << 1;
        /// Instruction fetches.
        const EXECUTE = 1 << 2;
    }
}

/// The memory type that the second level asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// RAM; the guest's PAT still counts where the vendor combines them.
    WriteBack,
    /// Device memory.
    Uncacheable,
}

/// Why a range could not be mapped or unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// An address or the size is not a multiple of 4 KiB, or the size is 0.
    Misaligned,
    /// The range reaches past what the second level can translate.
    PastEnd,
    /// Part of the range is mapped already.
    Overlap,
    /// No memory for tables. What was mapped before stays; part of the range may be mapped.
    OutOfMemory,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MapError::Misaligned => "a guest-physical range is not made of 4 KiB pages",
            MapError::PastEnd => "a guest-physical range reaches past what the processor can translate",
            MapError::Overlap => "a guest-physical range is mapped already",
            MapError::OutOfMemory => "there is no memory left for second-level page tables",
        })
    }
}

/// The second-level page tables of one virtual machine.
///
/// Mapping picks the largest pages that alignment and the processor allow. After [`SecondLevel::unmap`] the
/// caller has every vCPU of the VM run its flush before it uses the memory otherwise.
pub trait SecondLevel: Send {
    /// Maps `bytes` at `gpa` to `hpa`.
    fn map(
        &mut self,
        gpa: Gpa,
        hpa: Hpa,
        bytes: u64,
        permissions: Permissions,
        kind: MemoryType,
    ) -> Result<(), MapError>;
    /// Takes `bytes` at `gpa` out. Addresses that were not mapped are passed over; a large page at an edge is split.
    fn unmap(&mut self, gpa: Gpa, bytes: u64) -> Result<(), MapError>;
    /// Where `gpa` lies, and what the guest may do there.
    fn translate(&self, gpa: Gpa) -> Option<(Hpa, Permissions)>;
    /// What the hardware is given: nCR3 or the EPT pointer.
    fn root(&self) -> u64;
    /// Frees all tables. The structure is empty and unusable afterwards.
    fn free(&mut self);
}
