//! The definitions of the virtual machines.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| gearshift_fuzz::handover::vms_toml(script));
