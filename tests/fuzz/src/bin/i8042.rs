//! Keyboard controller, keyboard and mouse.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| gearshift_fuzz::chips::i8042(script));
