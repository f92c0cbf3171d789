//! What the guest is told about its machine by tables in memory, as firmware would leave them.
//!
//! [`acpi`] builds the ACPI tables from a plain description of the machine.

pub mod acpi;
