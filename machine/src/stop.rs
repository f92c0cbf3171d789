//! Why a virtual machine cannot go on, in words that its user understands.

use crate::emulate::{Reason, Unsupported};
use core::fmt;
use memory::Gpa;
use vcpu::{EntryFailure, RawExit};

/// The reason that a machine was stopped. It is this guest's end only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The processor refused the guest's state.
    EntryRefused(EntryFailure),
    /// Triple fault: an exception could not be delivered, nor the double fault that followed.
    TripleFault,
    /// An exit that this version does not handle.
    UnsupportedExit(RawExit),
    /// A task switch by hardware, which this version does not emulate.
    TaskSwitch,
    /// An instruction that would have to be emulated, and cannot be.
    Instruction {
        /// Which, and why.
        unsupported: Unsupported,
        /// The device address that it was about to access.
        gpa: Option<Gpa>,
    },
    /// The length of the instruction that exited cannot be found.
    Length(Reason),
    /// An instruction is tried again and again and gets nowhere.
    NoProgress {
        /// The device address that the exits are about, if they are about one.
        gpa: Option<Gpa>,
    },
    /// The guest executes code where there is no memory.
    FetchOutsideMemory(Gpa),
    /// The processor delivers an event through device space: its frame, the IDT or a descriptor table lies there.
    DeliveryIntoDevice(Gpa),
    /// A second-level fault on memory that is mapped: the backend and the machine disagree.
    UnexpectedFault(Gpa),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::EntryRefused(failure) => write!(f, "{failure}"),
            Stop::TripleFault => f.write_str("triple fault: an exception and its double fault could not be delivered"),
            Stop::UnsupportedExit(raw) => {
                write!(f, "unsupported exit {:#x} (info {:#x}, {:#x})", raw.code, raw.info1, raw.info2)
            }
            Stop::TaskSwitch => f.write_str("hardware task switches are not emulated"),
            Stop::Instruction { unsupported, gpa: Some(gpa) } => {
                write!(f, "an instruction that accesses the device at {gpa} cannot be emulated: {}", unsupported.reason)
            }
            Stop::Instruction { unsupported, gpa: None } => {
                write!(f, "an instruction cannot be emulated: {}", unsupported.reason)
            }
            Stop::Length(reason) => write!(f, "the length of an instruction cannot be found: {reason}"),
            Stop::NoProgress { gpa: Some(gpa) } => write!(
                f,
                "an instruction gets nowhere: accesses to {gpa}, where there is no memory, exit over and over, and either what \
                 it needs keeps changing or it is not the instruction that makes them but the delivery of an event"
            ),
            Stop::NoProgress { gpa: None } => f.write_str(
                "an instruction gets nowhere: it exits over and over, and what is in memory at RIP is another one",
            ),
            Stop::FetchOutsideMemory(gpa) => write!(f, "instruction fetch at {gpa}, where there is no memory"),
            Stop::DeliveryIntoDevice(gpa) => {
                write!(
                    f,
                    "event delivery into device space: the stack, IDT or GDT lies at {gpa}, where there is no memory"
                )
            }
            Stop::UnexpectedFault(gpa) => write!(f, "second-level fault at {gpa}, which is mapped"),
        }
    }
}
