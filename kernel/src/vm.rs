//! One virtual machine on this host: its memory, its second-level tables, its vCPUs as tasks, and how it ends.
//!
//! Key types: [`Plan`] (what the user asked for), [`launch`] (makes it and gives its vCPUs to the scheduler), [`Ending`].
//! Generic over the backend, which was picked once. Neighbours: `machine` runs the guest, `scheduler` the tasks.

#![allow(unsafe_code)] // Residency of a vCPU on this CPU is the scheduler's promise.

use crate::alarms::Slot;
use crate::arena::Arena;
use crate::console::{self, Console};
use crate::guest_ram::GuestRam;
use crate::lock::Lock;
use crate::run_queue::{Poll, Role, Task, USUAL_WEIGHT, Waker};
use crate::shutdown::Outcome as HostOutcome;
use crate::{clock, cpu, guest_frames, journal, scheduler};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use devices::lapic::TscTime;
use devices::rtc::WallTime;
use devices::{ByteSink, Clock, Nanos, PowerEvent};
use log::{error, info, warn};
use machine::cpuid::Allowed;
use machine::direct_boot::{self, DirectBoot};
use machine::hyperv::Signature;
use machine::report::Report;
use machine::{HostFacts, Machine, MachineConfig, Outcome, Processor, Seat, Services, Stop, VcpuHost, layout};
use memory::{Gpa, RegisterPage};
use vcpu::{
    ApicBinding, Backend, CpuidAnswer, ExitKind, FrameSource, Hpa, Mailbox, MemoryType, Permissions, SecondLevel, Vcpu, VcpuConfig,
    Wake,
};

/// What the user asked for.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// Bytes of RAM.
    pub memory: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// What is started.
    pub boot: DirectBoot<'a>,
    /// Offer QEMU's debug-exit port.
    pub debug_exit: bool,
}

/// How a machine ended, and what it did.
pub struct Ending {
    /// For the host's exit status.
    pub outcome: HostOutcome,
    /// Exits by kind, of all vCPUs.
    pub exits: Vec<(&'static str, u64)>,
}

/// The ending of the machine that ran.
static ENDING: Lock<Option<Ending>> = Lock::new(None);
"""Placeholder"""
