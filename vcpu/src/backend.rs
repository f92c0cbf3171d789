//! What `kernel` needs of a vendor before vCPUs run: enabling a CPU, and making vCPUs and second-level tables.

use crate::{GuestSpeculation, SecondLevel, Vcpu};
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;
use memory::RegisterPage;

/// A host-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hpa(pub u64);

impl fmt::Display for Hpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The host has no frames left for this owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfFrames;

/// Host memory by whole frames of 4 KiB, out of the arena of one VM or of the host itself.
pub trait FrameSource: Send + Sync {
    /// `count` zeroed frames in a row; their first address is a multiple of 4 KiB.
    fn allocate(&self, count: usize) -> Result<Hpa, OutOfFrames>;
    /// Gives frames back. They must have come from this source and be in no use.
    fn free(&self, first: Hpa, count: usize);
    /// Where the host can touch the frame. Valid while it is allocated.
    fn pointer(&self, frame: Hpa) -> NonNull<u8>;
    /// The physical address of host data that lives in the direct map, such as an `Arc`'s content.
    fn physical(&self, data: NonNull<u8>) -> Hpa;
}

/// The page that holds a vCPU's local APIC registers, and where the hardware finds it.
#[derive(Clone)]
pub struct ApicBinding {
    /// Registers at the offsets of SDM 3A "Local APIC Register Address Map".
    pub page: Arc<RegisterPage>,
    /// The page's physical address.
    pub physical: Hpa,
}

/// What a vCPU is made of.
pub struct VcpuConfig<'a> {
    /// Its number in the VM, from 0.
    pub number: u32,
    /// Root of the VM's second-level tables, from [`SecondLevel::root`].
    pub second_level_root: u64,
    /// Its local APIC's page.
    pub apic: ApicBinding,
    /// The processor signature (CPUID 1 EAX) that reset and INIT leave in EDX.
    pub signature: u32,
    /// Where its control structures come from.
    pub frames: &'a Arc<dyn FrameSource>,
}

/// Why something could not be made; one line that says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateError(pub String);

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<OutOfFrames> for CreateError {
    fn from(_: OutOfFrames) -> Self {
        CreateError(String::from(
            "not enough memory for a vCPU's control structures; give the host more or the VM less",
        ))
    }
}

/// Guest-visible instructions that depend on a backend's controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFeatures {
    /// RDTSCP and RDPID run in the guest, with TSC_AUX switched.
    pub rdtscp: bool,
    /// INVPCID runs in the guest.
    pub invpcid: bool,
    /// What guests have against leaks by speculation.
    pub speculation: GuestSpeculation,
}

/// One vendor's hardware virtualization on this host, found usable. Shared by all host CPUs.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Its vCPUs.
    type Vcpu: Vcpu + 'static;
    /// Its second-level tables.
    type SecondLevel: SecondLevel + 'static;

    /// "VMX" or "SVM".
    const NAME: &'static str;

    /// Switches virtualization on for the CPU that calls this, with `frames` for its per-CPU region.
    ///
    /// # Errors
    /// The CPU refuses, for example because firmware locked it off.
    fn enable(&self, frames: &Arc<dyn FrameSource>) -> Result<(), CreateError>;

    /// What guests can execute of what the processor has.
    fn guest_features(&self) -> GuestFeatures;

    /// Empty second-level tables for a new VM.
    fn second_level(&self, frames: &Arc<dyn FrameSource>) -> Result<Self::SecondLevel, CreateError>;

    /// A vCPU in the reset state, not resident anywhere.
    fn vcpu(&self, config: VcpuConfig<'_>) -> Result<Self::Vcpu, CreateError>;
}
