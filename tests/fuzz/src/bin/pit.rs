//! The 8254 and port 61h.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| gearshift_fuzz::chips::pit(script));
