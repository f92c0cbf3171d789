//! ACPI power management.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| gearshift_fuzz::chips::acpi_pm(script));
