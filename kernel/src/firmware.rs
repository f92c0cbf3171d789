//! How the host reads its firmware's tables.

#![allow(unsafe_code)] // Physical memory, and the promises that the `acpi` crate asks for.

use crate::acpi::{AcpiProblem, Platform};
use crate::{address_space, layout, ram};
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};
use core::ptr::NonNull;

/// Reads the platform from the tables at physical `rsdp`, or from where a BIOS has them.
///
/// # Errors
/// When there are none or they are damaged.
pub fn read_platform(rsdp: Option<u64>) -> Result<Platform, AcpiProblem> {
    let tables = match rsdp {
        // SAFETY: the loader says that the RSDP is there; the handler maps whatever is asked for, read-only or as RAM.
        Some(address) => unsafe { AcpiTables::from_rsdp(FirmwareMemory, address as usize) },
        // SAFETY: the first MiB can be read on every PC.
        None => unsafe { AcpiTables::search_for_rsdp_bios(FirmwareMemory) },
    };
    Platform::read(&tables.map_err(|_| AcpiProblem::Missing)?)
}

/// Maps firmware's memory as it is asked for; nothing is unmapped, because addresses map to fixed places.
#[derive(Clone, Copy, Debug)]
struct FirmwareMemory;

impl AcpiHandler for FirmwareMemory {
    unsafe fn map_physical_region<T>(&self, address: usize, size: usize) -> PhysicalMapping<Self, T> {
        let start = address as u64;
        let last = start + (size.max(1) - 1) as u64;
        let in_ram = (start & !4095..=last)
            .step_by(4096)
            .all(|page| address_space::translate(layout::DIRECT_MAP + page).is_some());
        let pointer: NonNull<u8> = if in_ram {
            ram::pointer(start)
        } else {
            address_space::map_firmware(start, size as u64).expect("firmware's tables can be mapped")
        };
        // SAFETY: the whole range is mapped and stays so.
        unsafe { PhysicalMapping::new(address, pointer.cast(), size, size, *self) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}
