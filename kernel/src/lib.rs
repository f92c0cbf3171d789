//! The bare-metal host: memory, CPUs, interrupts, time, scheduler, serial lines; and the virtual machines on top.
//!
//! Two kinds of modules. Pure ones decide and are tested on the development machine; those behind
//! `target_os = "none"` act on the hardware and contain what little `unsafe` there is.
//!
//! | pure | acts on |
//! |---|---|
//! | [`memory_map`], [`frames`], [`paging`] | `ram`, `address_space`, `stacks`, `heap` |
//! | [`time`], [`calibrate`], [`alarms`], [`wall`] | `clock`, `references`, `apic`, `rtc` |
//! | [`run_queue`] | `scheduler`, `percpu` |
//! | [`tsc_sync`] | `smp` |
//! | [`queue`], [`keys`], [`channel`], [`monitor`], [`guest_ram`] | `console`, `control`, `fleet`, `arena` |
//! | [`acpi`], [`options`], [`definitions`], [`ring`] | `firmware`, `ioapic`, `pic`, `serial`, `journal`, `panic`, `shutdown` |
//!
//! `start` puts them together. Neighbours: `boot` below; `machine`, a backend and `devices` above. The kernel knows no
//! guest: that is the machine's business.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod acpi;
pub mod alarms;
pub mod calibrate;
pub mod channel;
pub mod definitions;
pub mod frames;
pub mod guest_ram;
pub mod keys;
pub mod layout;
pub mod lock;
pub mod memory_map;
pub mod monitor;
pub mod options;
pub mod paging;
pub mod queue;
pub mod ring;
pub mod run_queue;
pub mod time;
pub mod tsc_sync;
pub mod wall;

/// The modules that act on the hardware.
macro_rules! bare_metal {
    ($($name:ident),* $(,)?) => { $(#[cfg(target_os = "none")] pub mod $name;)* };
}

bare_metal!(
    address_space,
    apic,
    arena,
    clock,
    console,
    control,
    cpu,
    detect,
    firmware,
    fleet,
    gdt,
    guest_frames,
    heap,
    idt,
    ioapic,
    journal,
    panic,
    percpu,
    pic,
    ram,
    references,
    rtc,
    scheduler,
    self_test,
    serial,
    shutdown,
    smp,
    stacks,
    start,
    vm,
);
