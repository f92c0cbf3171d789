//! The hypervisor's command line.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| gearshift_fuzz::handover::options(script));
