//! The image: the kernel's library behind the loaders' entries.

#![no_std]
#![no_main]
#![allow(unsafe_code)] // The symbol that `boot::entry` calls.

use boot::{BootError, BootInfo};

/// From `boot::entry`, on the boot stack and the early page tables.
#[unsafe(no_mangle)]
extern "Rust" fn gearshift_main(boot: Result<BootInfo<'static>, BootError>) -> ! {
    kernel::start::start(boot)
}
