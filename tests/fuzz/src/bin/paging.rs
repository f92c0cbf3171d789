//! The walk of a guest's page tables.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| gearshift_fuzz::emulation::walk(script));
