//! Extended page tables: guest-physical to host-physical.
//!
//! Manual: Intel SDM 3C (December 2024, 325462-086), 29.3 "The Extended Page Table Mechanism (EPT)". Key types:
//! [`ExtendedTables`], which is the [`vcpu::SecondLevel`] of VMX, made by [`extended_tables`], and [`ExtendedFormat`], its
//! entries and pointer. Neighbours: `vcpu::tables` has the walks, `region` the memory. Making a mapping where none was
//! needs no flush: SDM 3C 29.4.3.4 "Guidelines for Use of the INVEPT Instruction".

use crate::capability::{Capability, Features};
use vcpu::memory::Gpa;
use vcpu::tables::{self, ADDRESS, EntryFormat, Level, TableMemory, Tables};
use vcpu::{Hpa, MemoryType, Permissions};

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
/// Memory type write-back, bits 5:3. The guest's PAT still counts, as it does on AMD.
const WRITE_BACK: u64 = 6 << 3;
/// Memory type uncacheable, whatever the guest's PAT says (bit 6).
const UNCACHEABLE: u64 = 1 << 6;

/// The EPT pointer's memory type for the tables themselves: write-back.
const POINTER_WRITE_BACK: u64 = 6;
/// The EPT pointer's walk length less one.
const POINTER_FOUR_LEVELS: u64 = 3 << 3;
/// The EPT pointer's enable bit of accessed and dirty flags.
const POINTER_ACCESSED_DIRTY: u64 = 1 << 6;

/// Entries of the kind that VMX walks, and what the EPT pointer says about them.
pub struct ExtendedFormat {
    /// Whether a page may be executable and not readable.
    execute_only: bool,
    /// Whether the processor sets accessed and dirty flags.
    accessed_dirty: bool,
}

/// One virtual machine's extended page tables.
pub type ExtendedTables<M> = Tables<M, ExtendedFormat>;

/// Without mappings, on a root table that is zeroed and owned by `memory` already, for a processor with this capability.
pub fn extended_tables<M: TableMemory>(memory: M, root: Hpa, capability: &Capability) -> ExtendedTables<M> {
    let largest = match () {
        () if capability.has(Features::GIANT_PAGES) => Level::GIANT,
        () if capability.has(Features::LARGE_PAGES) => Level::LARGE,
        () => Level::SMALL,
    };
    Tables::new(memory, root, ExtendedFormat::of(capability), largest, capability.physical_bits)
}

/// Where `gpa` lies by the tables of an EPT pointer; `None` where nothing readable is mapped. `read` gives an entry of a
/// table.
pub fn walk(pointer: u64, gpa: Gpa, read: impl Fn(Hpa, usize) -> u64) -> Option<Hpa> {
    tables::walk::<ExtendedFormat>(root_table(pointer), gpa, read)
}

/// The address of the root table in an EPT pointer.
pub const fn root_table(pointer: u64) -> Hpa {
    Hpa(pointer & ADDRESS)
}

impl ExtendedFormat {
    fn of(capability: &Capability) -> ExtendedFormat {
        ExtendedFormat {
            execute_only: capability.has(Features::EXECUTE_ONLY),
            accessed_dirty: capability.has(Features::ACCESSED_DIRTY),
        }
    }
}

impl EntryFormat for ExtendedFormat {
    const PRESENT: u64 = READ | WRITE | EXECUTE;
    const TABLE: u64 = READ | WRITE | EXECUTE;

    fn leaf(&self, permissions: Permissions, kind: MemoryType) -> u64 {
        let mut flags = match kind {
            MemoryType::WriteBack => WRITE_BACK,
            MemoryType::Uncacheable => UNCACHEABLE,
        };
        if permissions.contains(Permissions::EXECUTE) {
            flags |= EXECUTE;
        }
        // SDM 3C 29.3.3.1 "EPT Misconfigurations": what can be written has to be readable, and so has what can only be
        // executed where the processor knows no execute-only pages.
        if permissions.contains(Permissions::WRITE) {
            flags |= READ | WRITE;
        }
        if permissions.contains(Permissions::READ) || !self.execute_only {
            flags |= READ;
        }
        flags
    }

    fn permissions(entry: u64) -> Permissions {
        let mut permissions = Permissions::empty();
        permissions.set(Permissions::READ, entry & READ != 0);
        permissions.set(Permissions::WRITE, entry & WRITE != 0);
        permissions.set(Permissions::EXECUTE, entry & EXECUTE != 0);
        permissions
    }

    fn pointer(&self) -> u64 {
        let accessed_dirty = if self.accessed_dirty { POINTER_ACCESSED_DIRTY } else { 0 };
        POINTER_WRITE_BACK | POINTER_FOUR_LEVELS | accessed_dirty
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::tests::ARRANDALE;

    const RICH: ExtendedFormat = ExtendedFormat { execute_only: true, accessed_dirty: true };

    #[test]
    fn entries_have_the_bits_of_the_manual() {
        assert_eq!(RICH.leaf(Permissions::all(), MemoryType::WriteBack), 0x37, "write-back, RWX");
        assert_eq!(RICH.leaf(Permissions::READ, MemoryType::Uncacheable), 0x41, "ignore PAT, type 0, R");
        assert_eq!(ExtendedFormat::TABLE, 7);
    }

    #[test]
    fn the_pointer_tells_levels_type_and_flags() {
        assert_eq!(RICH.pointer(), 0x5e);
        assert_eq!(root_table(0x10_0000 | RICH.pointer()), Hpa(0x10_0000));
        let plain = ExtendedFormat::of(&ARRANDALE.capability().unwrap());
        assert_eq!(plain.pointer(), 0x1e, "no accessed and dirty flags");
    }

    #[test]
    fn no_entry_is_a_misconfiguration() {
        for execute_only in [false, true] {
            let format = ExtendedFormat { execute_only, ..RICH };
            for permissions in [Permissions::WRITE, Permissions::EXECUTE, Permissions::WRITE | Permissions::EXECUTE] {
                let given = ExtendedFormat::permissions(format.leaf(permissions, MemoryType::WriteBack));
                assert!(given.contains(permissions));
                let readable = permissions.contains(Permissions::WRITE) || !execute_only;
                assert_eq!(given.contains(Permissions::READ), readable, "{permissions:?}");
            }
        }
    }
}
