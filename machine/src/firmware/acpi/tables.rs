//! Tables as blobs with notes of what has to be filled in once their addresses are known.

use alloc::vec::Vec;
use core::fmt;

/// Which of the two pieces that are placed apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blob {
    /// The RSDP, which the guest searches for below 1 MiB.
    Rsdp,
    /// All other tables.
    Tables,
}

/// A field that holds an offset into [`Blob::Tables`] and wants that blob's address added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Where the field is.
    pub blob: Blob,
    /// Its offset there.
    pub offset: usize,
    /// Its size in bytes, 4 or 8.
    pub size: usize,
}

/// A byte that makes the bytes of a range add up to 0; to be computed after all pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Where the range is.
    pub blob: Blob,
    /// The byte's offset.
    pub offset: usize,
    /// The range's first offset.
    pub start: usize,
    /// The range's length.
    pub len: usize,
}

/// ACPI tables that have no address yet.
#[derive(Clone, Debug)]
pub struct Tables {
    rsdp: Vec<u8>,
    tables: Vec<u8>,
    pointers: Vec<Pointer>,
    checksums: Vec<Checksum>,
}

/// Tables that are ready to be copied to guest memory.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Guest-physical address of the RSDP.
    pub rsdp_at: u64,
    /// The RSDP.
    pub rsdp: Vec<u8>,
    /// Guest-physical address of the other tables.
    pub tables_at: u64,
    /// The other tables; their memory is ACPI reclaim memory.
    pub tables: Vec<u8>,
}

/// Why tables cannot lie where they were to be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacementError {
    /// ACPI 6.3 5.2.5.1 "Finding the RSDP on IA-PC Systems": 16-byte aligned within 0xe0000-0xfffff.
    RsdpNotFindable(u64),
    /// The tables have to be page-aligned and end below 4 GiB.
    TablesOutOfReach(u64),
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlacementError::RsdpNotFindable(at) => {
                write!(f, "the RSDP has to be 16-byte aligned within 0xe0000-0xfffff, not at {at:#x}")
            }
            PlacementError::TablesOutOfReach(at) => {
                write!(f, "the ACPI tables have to be page-aligned and end below 4 GiB, not at {at:#x}")
            }
        }
    }
}

impl Tables {
    /// Alignment that the tables need.
    pub const ALIGNMENT: u64 = 4096;

    /// Bytes that the tables need, all but the RSDP, rounded up to [`Tables::ALIGNMENT`].
    pub fn reserved(&self) -> u64 {
        (self.tables.len() as u64).next_multiple_of(Tables::ALIGNMENT)
    }

    /// The bytes of a blob as they are before placement.
    pub fn blob(&self, blob: Blob) -> &[u8] {
        match blob {
            Blob::Rsdp => &self.rsdp,
            Blob::Tables => &self.tables,
        }
    }

    /// All pointer fields.
    pub fn pointers(&self) -> &[Pointer] {
        &self.pointers
    }

    /// All checksums, in the order in which they have to be computed.
    pub fn checksums(&self) -> &[Checksum] {
        &self.checksums
    }

    /// The tables as they are with the RSDP at `rsdp_at` and the rest at `tables_at`.
    pub fn place(&self, rsdp_at: u64, tables_at: u64) -> Result<Placed, PlacementError> {
        let findable = rsdp_at.is_multiple_of(16) && (0xe_0000..=0x10_0000 - self.rsdp.len() as u64).contains(&rsdp_at);
        if !findable {
            return Err(PlacementError::RsdpNotFindable(rsdp_at));
        }
        let reachable = tables_at.is_multiple_of(Tables::ALIGNMENT)
            && tables_at.checked_add(self.reserved()).is_some_and(|end| end <= 1 << 32);
        if !reachable {
            return Err(PlacementError::TablesOutOfReach(tables_at));
        }
        let mut placed = Placed { rsdp_at, rsdp: self.rsdp.clone(), tables_at, tables: self.tables.clone() };
        for pointer in &self.pointers {
            let field = &mut placed.blob(pointer.blob)[pointer.offset..pointer.offset + pointer.size];
            let mut value = [0; 8];
            value[..field.len()].copy_from_slice(field);
            let address = u64::from_le_bytes(value) + tables_at;
            field.copy_from_slice(&address.to_le_bytes()[..field.len()]);
        }
        for checksum in &self.checksums {
            let bytes = placed.blob(checksum.blob);
            bytes[checksum.offset] = 0;
            let sum = bytes[checksum.start..checksum.start + checksum.len]
                .iter()
                .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            bytes[checksum.offset] = sum.wrapping_neg();
        }
        Ok(placed)
    }
}

impl Placed {
    fn blob(&mut self, blob: Blob) -> &mut [u8] {
        match blob {
            Blob::Rsdp => &mut self.rsdp,
            Blob::Tables => &mut self.tables,
        }
    }

    /// The pieces to copy: each with its guest-physical address.
    pub fn pieces(&self) -> [(u64, &[u8]); 2] {
        [(self.rsdp_at, &self.rsdp), (self.tables_at, &self.tables)]
    }
}

/// RSDP fields, ACPI 6.3 table 5-27: the checksum of the first 20 bytes, the XSDT's address, the checksum of all.
const RSDP_CHECKSUM: usize = 8;
const RSDP_V1_LEN: usize = 20;
const RSDP_XSDT: usize = 24;
const RSDP_EXTENDED_CHECKSUM: usize = 32;
/// The checksum in the header that most tables share, table 5-28.
const HEADER_CHECKSUM: usize = 9;

/// Collects tables behind each other.
#[derive(Default)]
pub(super) struct TableBuilder {
    tables: Vec<u8>,
    pointers: Vec<Pointer>,
    checksums: Vec<Checksum>,
}

impl TableBuilder {
    /// Appends a table at a multiple of `alignment` and gives its offset.
    pub(super) fn add(&mut self, alignment: usize, table: &[u8]) -> usize {
        let offset = self.tables.len().next_multiple_of(alignment);
        self.tables.resize(offset, 0);
        self.tables.extend_from_slice(table);
        offset
    }

    /// Appends a table with the common header.
    pub(super) fn add_checked(&mut self, table: &[u8]) -> usize {
        let start = self.add(16, table);
        self.checksums.push(Checksum { blob: Blob::Tables, offset: start + HEADER_CHECKSUM, start, len: table.len() });
        start
    }

    /// Makes the field of `size` bytes at `offset` point to the table at `target`.
    pub(super) fn point(&mut self, offset: usize, size: usize, target: usize) {
        self.tables[offset..offset + size].copy_from_slice(&(target as u64).to_le_bytes()[..size]);
        self.pointers.push(Pointer { blob: Blob::Tables, offset, size });
    }

    /// Adds the RSDP, which points to the table at `xsdt`.
    pub(super) fn finish(mut self, rsdp: &[u8], xsdt: usize) -> Tables {
        let mut rsdp = rsdp.to_vec();
        rsdp[RSDP_XSDT..RSDP_XSDT + 8].copy_from_slice(&(xsdt as u64).to_le_bytes());
        self.pointers.push(Pointer { blob: Blob::Rsdp, offset: RSDP_XSDT, size: 8 });
        // The short checksum first: the long one covers it.
        self.checksums.push(Checksum { blob: Blob::Rsdp, offset: RSDP_CHECKSUM, start: 0, len: RSDP_V1_LEN });
        self.checksums.push(Checksum { blob: Blob::Rsdp, offset: RSDP_EXTENDED_CHECKSUM, start: 0, len: rsdp.len() });
        Tables { rsdp, tables: self.tables, pointers: self.pointers, checksums: self.checksums }
    }
}
