//! The loaders of guest kernels.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| gearshift_fuzz::images::load(script));
