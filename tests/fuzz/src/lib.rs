//! Fuzz targets on the code that runs in the kernel.
//!
//! Each program in `src/bin` hands libFuzzer's bytes to one function here. The bytes are a script ([`input`]): accesses,
//! events and the passing of time for a device ([`registers`], [`chips`]), exits for a whole PC ([`pc`]), an instruction
//! with its processor state for the emulator ([`emulation`]), an image for the loaders ([`images`]), what a boot loader or user
//! hands to the host's parsers ([`handover`]), what a processor reported for the decoders and entry checks ([`exits`]),
//! accesses to guest RAM ([`ram`]).
//!
//! What every target demands: no panic (overflow checks and debug assertions are on), no end later than libFuzzer's time
//! limit, and no allocation where a guest's exit is handled ([`heap`]). Targets add their own invariants.
//! `scripts/test --fuzz SECONDS` builds and runs them over the inputs kept in `seeds/`.

pub mod chips;
pub mod emulation;
pub mod exits;
pub mod guest;
pub mod handover;
pub mod heap;
pub mod images;
pub mod input;
pub mod pc;
pub mod ram;
pub mod registers;
pub mod wires;
