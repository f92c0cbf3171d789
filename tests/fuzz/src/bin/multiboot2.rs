//! Multiboot2's tags.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| gearshift_fuzz::handover::multiboot2(script));
