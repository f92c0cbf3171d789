//! What the guest is told about its machine by tables in memory, as firmware would leave them.
//!
//! * [`acpi`] builds the ACPI tables from a plain description of the machine.
//! * [`smbios`] builds the SMBIOS tables.
//! * [`bios_data`] leaves what programs without firmware read below 1 MiB.

pub mod acpi;
pub mod bios_data;
pub mod smbios;
