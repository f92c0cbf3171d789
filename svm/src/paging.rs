//! Nested page tables: guest-physical to host-physical.
//!
//! Manual: AMD APM volume 2 (24593, revision 3.42), 15.25 "Nested Paging" and 5.3 "Long-Mode Page Translation". Key types:
//! [`NestedTables`], which is the [`vcpu::SecondLevel`] of SVM, made by [`nested_tables`], and [`NestedFormat`], its entries.
//! Neighbours: `vcpu::tables` has the walks, `region` the memory.
//!
//! Tables have four levels, as the host's paging that VMRUN applies to them. Every entry has U set, for all guest accesses
//! count as user accesses here.

use vcpu::tables::{EntryFormat, Level, TableMemory, Tables};
use vcpu::{Hpa, MemoryType, Permissions};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// PWT and PCD choose entry 3 of the host's PAT, which is uncacheable after reset and stays so.
const UNCACHEABLE: u64 = 1 << 3 | 1 << 4;
const NO_EXECUTE: u64 = 1 << 63;

/// Entries as the host's own page tables have them.
pub struct NestedFormat;

/// One virtual machine's nested page tables.
pub type NestedTables<M> = Tables<M, NestedFormat>;

/// Without mappings, on a root table that is zeroed and owned by `memory` already. `giant_pages`: the processor has 1 GiB
/// pages. `physical_bits`: its width of physical addresses.
pub fn nested_tables<M: TableMemory>(memory: M, root: Hpa, giant_pages: bool, physical_bits: u32) -> NestedTables<M> {
    let largest = if giant_pages { Level::GIANT } else { Level::LARGE };
    Tables::new(memory, root, NestedFormat, largest, physical_bits)
}

impl EntryFormat for NestedFormat {
    const PRESENT: u64 = PRESENT;
    const TABLE: u64 = PRESENT | WRITE | USER;

    fn leaf(&self, permissions: Permissions, kind: MemoryType) -> u64 {
        let mut flags = PRESENT | USER;
        if permissions.contains(Permissions::WRITE) {
            flags |= WRITE;
        }
        if !permissions.contains(Permissions::EXECUTE) {
            flags |= NO_EXECUTE;
        }
        if kind == MemoryType::Uncacheable {
            flags |= UNCACHEABLE;
        }
        flags
    }

    fn permissions(entry: u64) -> Permissions {
        let mut permissions = Permissions::READ;
        permissions.set(Permissions::WRITE, entry & WRITE != 0);
        permissions.set(Permissions::EXECUTE, entry & NO_EXECUTE == 0);
        permissions
    }

    /// nCR3 is the root's address alone.
    fn pointer(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_bits_of_the_manual() {
        let leaf = |permissions, kind| NestedFormat.leaf(permissions, kind);
        assert_eq!(leaf(Permissions::all(), MemoryType::WriteBack), 7, "U, W, P");
        assert_eq!(leaf(Permissions::READ, MemoryType::Uncacheable), 1 << 63 | 0x1d, "NX, PCD, PWT, U, P");
        assert_eq!(NestedFormat::TABLE, 7);
        assert_eq!(NestedFormat.pointer(), 0);
    }

    #[test]
    fn what_is_granted_is_read_back() {
        for permissions in [Permissions::READ, Permissions::READ | Permissions::WRITE, Permissions::all()] {
            let entry = NestedFormat.leaf(permissions, MemoryType::WriteBack);
            assert_eq!(NestedFormat::permissions(entry), permissions);
        }
        let writable = NestedFormat.leaf(Permissions::WRITE, MemoryType::WriteBack);
        assert!(NestedFormat::permissions(writable).contains(Permissions::READ), "there is no mapping without it");
    }
}
