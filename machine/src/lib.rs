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
