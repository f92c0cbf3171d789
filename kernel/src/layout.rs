//! The host's virtual address space.
//!
//! | from | what |
//! |---|---|
//! | 0xffff_8000_0000_0000 | RAM in order, the image's own frames left out ([`DIRECT_MAP`]) |
//! | 0xffff_c000_0000_0000 | device registers in order, uncached ([`DEVICES`]) |
//! | 0xffff_c800_0000_0000 | what firmware left outside RAM, read-only ([`FIRMWARE`]) |
//! | 0xffff_d000_0000_0000 | stacks, a guard page below each ([`STACKS`]) |
//! | 0xffff_ffff_8000_0000 | the image |
//!
//! Nothing is mapped below these: a null pointer faults, in the host as in a guest's report.

/// All RAM, physical address 0 first. The same place as under the loader's early tables.
pub const DIRECT_MAP: u64 = boot::layout::DIRECT_MAP;
/// Device registers, physical address 0 first; mapped as they are asked for.
pub const DEVICES: u64 = 0xffff_c000_0000_0000;
/// Firmware tables outside of RAM, physical address 0 first; mapped as they are asked for.
pub const FIRMWARE: u64 = 0xffff_c800_0000_0000;
/// Stacks.
pub const STACKS: u64 = 0xffff_d000_0000_0000;

/// Bytes of physical memory that each of the ordered regions has room for: 8 TiB.
pub const ORDERED_SPAN: u64 = FIRMWARE - DEVICES;

/// Bytes of the stack that a host CPU runs everything on.
pub const STACK_SIZE: u64 = 128 << 10;
/// Bytes of each stack for NMI, double fault and machine check.
pub const FAULT_STACK_SIZE: u64 = 16 << 10;
