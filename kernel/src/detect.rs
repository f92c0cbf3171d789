//! What this computer can virtualize with: reads the hardware, lets the backends judge, and tells the user.

#![allow(unsafe_code)] // MSR reads.

use crate::cpu;
use core::fmt;
use log::info;
use raw_cpuid::{CpuId, CpuIdReaderNative};
use vcpu::Speculation;

/// The one backend that this host uses, with what its hardware has.
#[derive(Clone, Debug)]
pub enum Virtualization {
    /// AMD-V.
    Svm(svm::capability::Capability),
    /// Intel VT-x.
    Vmx(vmx::capability::Capability),
}

/// Why there is none; one line that says what is wrong and what to do.
#[derive(Clone, Copy, Debug)]
pub enum Refusal {
    /// AMD-V cannot be used.
    Svm(svm::capability::Refusal),
    /// VT-x cannot be used.
    Vmx(vmx::capability::Refusal),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Svm(refusal) => refusal.fmt(f),
            Self::Vmx(refusal) => refusal.fmt(f),
        }
    }
}

/// Chooses the backend by what the CPU has, not by its vendor: emulators mix them.
///
/// # Errors
/// Guests cannot run here.
pub fn detect() -> Result<Virtualization, Refusal> {
    let cpuid = CpuId::new();
    if cpuid.get_feature_info().is_some_and(|features| features.has_vmx()) {
        return vmx::capability::Capability::detect(&CpuIdReaderNative, read_msr)
            .map(Virtualization::Vmx)
            .map_err(Refusal::Vmx);
    }
    let intel = cpuid.get_vendor_info().is_some_and(|vendor| vendor.as_str() == "GenuineIntel");
    match svm::capability::Capability::detect(&CpuIdReaderNative, || read_msr(cpu::msr::VM_CR)) {
        Ok(capability) => Ok(Virtualization::Svm(capability)),
        Err(svm::capability::Refusal::NoSvm) if intel => Err(Refusal::Vmx(vmx::capability::Refusal::NoVmx)),
        Err(refusal) => Err(Refusal::Svm(refusal)),
    }
}

/// Logs the CPU and what it has, by name.
pub fn report(found: &Virtualization) {
    let cpuid = CpuId::new();
    let brand = cpuid.get_processor_brand_string();
    info!(
        "CPU: {}, {}",
        cpuid.get_vendor_info().as_ref().map_or("unknown vendor", |vendor| vendor.as_str()),
        brand.as_ref().map_or("no name", |brand| brand.as_str().trim())
    );
    match found {
        Virtualization::Svm(capability) => {
            info!("AMD-V, used: {}", List(|| capability.used()));
            info!("AMD-V, there but not used: {}", List(|| capability.unused()));
            info!("AMD-V, missing and done without: {}", List(|| capability.missing()));
            report_speculation(&capability.speculation);
        }
        Virtualization::Vmx(capability) => {
            info!("VT-x, used: {}", List(|| capability.used()));
            info!("VT-x, there but not used: {}", List(|| capability.unused()));
            info!("VT-x, missing and done without: {}", List(|| capability.missing()));
            report_speculation(&capability.speculation);
        }
    }
}

/// Logs what is done against leaks by speculation, and what stays open.
fn report_speculation(speculation: &Speculation) {
    info!("speculation, defences: {}", List(|| speculation.defences.names()));
    info!("speculation, open: {}", List(|| speculation.exposures.names()));
}

fn read_msr(number: u32) -> u64 {
    // SAFETY: the backends ask only for registers that CPUID and other capability registers say are there; reading
    // them has no effect.
    unsafe { cpu::rdmsr(number) }
}

/// Names separated by commas.
struct List<F>(F);

impl<F, I> fmt::Display for List<F>
where
    F: Fn() -> I,
    I: Iterator<Item = &'static str>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = (self.0)();
        match names.next() {
            None => return f.write_str("nothing"),
            Some(name) => f.write_str(name)?,
        }
        names.try_for_each(|name| write!(f, ", {name}"))
    }
}
