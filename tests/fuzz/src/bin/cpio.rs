//! The archive of modules.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| gearshift_fuzz::handover::archive(script));
