//! The pair of 8259A.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| gearshift_fuzz::chips::pic(script));
