//! One PC made of vCPUs, memory, buses and devices.
//!
//! Key types: `Machine` (what all vCPUs of a VM share), `Processor` (one vCPU with its local APIC: the run loop and
//! the exit dispatch), `MachineConfig` and `HostFacts` (what it is made from). Neighbours: `kernel` makes machines and
//! runs their processors as tasks; `vmx` and `svm` are behind `vcpu`'s traits and not known here; `devices` holds the
//! models. Nothing here needs hardware: all of it is tested on the host with [`vcpu::ScriptedVcpu`].

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod emulate;
pub mod firmware;
pub mod loader;

mod access;
mod attend;
mod context;
pub mod control;
pub mod cpuid;
pub mod direct_boot;
mod dispatch;
pub mod hyperv;
pub mod layout;
mod machine;
pub mod msr;
mod pc;
mod power;
mod processor;
pub mod recorder;
mod registers;
pub mod report;
mod run;
mod stop;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod tsc;

pub use machine::{HostFacts, Machine, MachineConfig, Services};
pub use pc::{BuildError, Seat};
pub use power::PowerLatch;
pub use processor::{Outcome, Processor, VcpuHost};
pub use stop::Stop;
