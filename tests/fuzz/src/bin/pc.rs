//! A whole PC.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| gearshift_fuzz::pc::play(script));
