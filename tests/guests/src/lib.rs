//! The runtime of the tiny guests: freestanding programs that test the machine they run on and say so on COM1.
//!
//! Build all: `cargo build --release` in this folder. Each lands in `target/x86_64-unknown-none/release/<name>` (or in
//! `$CARGO_TARGET_DIR/x86_64-unknown-none/release/<name>`): a 64-bit ELF file with a PVH note.
//!
//! A guest begins in 32-bit flat mode at its PVH note and enters Rust in 64-bit mode, identity-mapped, with interrupts off
//! ([`entry`]). It prints, one line each,
//!
//! ```text
//! GUEST <name> start
//! CHECK <what> ok
//! CHECK <what> FAIL <details>
//! CHECK <what> excused
//! RESULT <name> pass|fail
//! ```
//!
//! ("excused" is a failure that the command line's `without=what,what` allows for) and powers off through ACPI, or through the debug-exit port where that does not work. Lines of passed checks hold
//! nothing measured, so that transcripts of two machines can be compared byte by byte. The same guest runs on plain QEMU, which is how
//! expectations are checked against another implementation:
//!
//! ```text
//! qemu-system-x86_64 -machine q35 -cpu max -display none -serial stdio -device isa-debug-exit,iobase=0xf4,iosize=4 -kernel FILE
//! ```
//!
//! Key parts: [`guest!`] defines a program, [`report`] prints, [`trap`] catches exceptions ([`attempt!`]) and takes interrupts,
//! [`cpu`] and [`port`] wrap instructions, the modules named after devices hold as much of a driver as tests need. What is not
//! here: memory management, and any knowledge of the hypervisor under test.

#![no_std]

pub mod acpi;
pub mod apic;
pub mod clock;
pub mod cpu;
pub mod entry;
pub mod hpet;
pub mod ioapic;
pub mod modes;
pub mod paging;
pub mod pic;
pub mod pit;
pub mod port;
pub mod power;
pub mod report;
pub mod rtc;
pub mod serial;
pub mod smp;
pub mod trap;
pub mod user;

/// Defines the guest `name`, whose checks are made by `run`.
#[macro_export]
macro_rules! guest {
    ($name:literal, $run:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn guest_main() -> ! {
            $crate::report::start($name);
            $run();
            $crate::report::finish()
        }
    };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    report::failed("no-panic", format_args!("{info}"));
    report::finish()
}
