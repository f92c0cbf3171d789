//! AMD's exits and entry checks.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| gearshift_fuzz::exits::svm(script));
