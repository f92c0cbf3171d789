//! The contract between a virtual processor and the machine around it.
//!
//! Key types: the trait [`Vcpu`], an [`Exit`] as an owned value whose requests are the only makers of their answers,
//! [`Resume`] (such an answer), [`ArchState`] (the whole architectural state as one value), [`Mailbox`] (all that other
//! CPUs may do to a vCPU), [`Backend`] and [`SecondLevel`] (what `kernel` needs to make and map a virtual machine), and
//! [`ScriptedVcpu`], the fake for host tests. Neighbours: `vmx` and `svm` implement it, `machine` drives it, `kernel`
//! picks one backend at boot. Nothing here knows a vendor.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod arch;
mod backend;
mod contract;
mod event;
mod exit;
mod mailbox;
mod scripted;
mod second_level;
pub mod speculation;
pub mod tables;
pub mod vector_area;

pub use arch::{
    ArchState, CodeSize, DescriptorTable, Gpr, Gprs, Segment, SegmentAttributes, SegmentName, SystemMsr, SystemMsrs,
    cr0, cr4, efer, rflags,
};
pub use backend::{ApicBinding, Backend, CreateError, FrameSource, GuestFeatures, Hpa, OutOfFrames, VcpuConfig};
pub use contract::{InterruptDelivery, Vcpu, Window};
pub use event::{Event, Exception, Merged, SoftwareKind, merge};
pub use exit::{
    AccessKind, Answer, ApicWrite, ControlRegister, ControlWrite, Cpuid, CpuidAnswer, EntryFailure, EoiInduced,
    ExceptionExit, Exit, ExitKind, Hypercall, Instruction, Length, MemoryAccess, MsrRead, MsrWrite, NeedsLength,
    NestedInstruction, PortRead, PortString, PortWrite, RawExit, Resume, Xsetbv,
};
pub use mailbox::{Mailbox, Post, Wake};
/// The vocabulary of guest memory, for the backends, whose only neighbour is this crate.
pub use memory;
pub use scripted::ScriptedVcpu;
pub use second_level::{MapError, MemoryType, Permissions, SecondLevel};
pub use speculation::{Defences, Exposures, GuestSpeculation, LastResident, Speculation};
