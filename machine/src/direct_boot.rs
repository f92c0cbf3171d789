//! Starting a guest without firmware, as `qemu -kernel` does: firmware's tables, memory map and kernel go into RAM, and the
//! bootstrap processor begins at the kernel's entry.

use crate::firmware::acpi::{self, Layout, SerialPort, Window};
use crate::firmware::{bios_data, smbios};
use crate::layout::{self, gsi};
use crate::loader::{self, LoadError, MemoryLayout, Module, Payload, Region, RegionKind};
use crate::machine::MachineConfig;
use arrayvec::ArrayVec;
use core::fmt;
use memory::{Gpa, GuestMemory, NotRam};
use vcpu::ArchState;

/// Start of the extended BIOS data area, as SeaBIOS leaves it; base memory ends here.
const EBDA: u64 = 0x9_fc00;
/// Where the ACPI root pointer is put, in the BIOS area that is searched for it.
const RSDP: u64 = 0xf_0000;
/// Where the SMBIOS tables are put, behind it in the same area.
const SMBIOS: u64 = 0xf_0040;
/// General capabilities of the HPET, as [`devices::hpet`] shows them: what its ACPI table repeats.
const HPET_BLOCK_ID: u32 = 0x8086_a201;

/// What to start.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectBoot<'a> {
    /// The kernel image.
    pub kernel: &'a [u8],
    /// The initial RAM disk, or the one Multiboot module.
    pub initrd: Option<&'a [u8]>,
    /// The kernel's command line.
    pub command_line: &'a [u8],
}

/// Why a guest could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The kernel could not be loaded.
    Load(LoadError),
    /// The ACPI tables do not fit where they have to be.
    Tables(acpi::PlacementError),
    /// The SMBIOS tables do not fit where they have to be.
    Smbios(smbios::PlacementError),
    /// The machine's memory is smaller than its own tables need.
    Memory(NotRam),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Load(error) => write!(f, "{error}"),
            StartError::Tables(error) => write!(f, "the ACPI tables cannot be placed: {error}"),
            StartError::Smbios(error) => write!(f, "the SMBIOS tables cannot be placed: {error}"),
            StartError::Memory(error) => write!(f, "the guest has too little memory: {error}"),
        }
    }
}

/// What the ACPI tables say of this machine.
pub fn acpi_layout(config: &MachineConfig) -> Layout {
    Layout {
        processors: config.vcpus,
        lapic_base: layout::LAPIC_BASE as u32,
        ioapic_id: 0,
        ioapic_base: layout::IOAPIC_BASE as u32,
        hpet: Some(acpi::Hpet { base: layout::HPET_BASE, block_id: HPET_BLOCK_ID }),
        // Bus 0 alone, for there are no bridges: systems probe every bus that they are told of, by two port accesses a slot.
        ecam: Window { start: layout::ECAM_BASE, size: BUS_SIZE },
        pci_memory: Window { start: PCI_MEMORY, size: layout::IOAPIC_BASE - PCI_MEMORY },
        pci_memory_high: None,
        pm_base: layout::PM_BASE,
        pm_timer_bits: 32,
        sci: gsi::SCI as u8,
        serial: alloc::vec![SerialPort { port: layout::COM1, irq: gsi::COM1 as u8 }],
        vga: false,
    }
}

/// Bytes of enhanced configuration space for one bus.
const BUS_SIZE: u64 = 1 << 20;
/// What the SMBIOS tables say of this machine.
fn smbios_description(config: &MachineConfig) -> smbios::Description {
    let (low, high) = layout::ram_split(config.memory);
    smbios::Description {
        memory: [low].into_iter().chain(high).collect(),
        processors: config.vcpus,
        processor_id: 0,
        processor_mhz: 0,
        uuid: [0; 16],
    }
}

/// PCI BARs lie between ECAM and the IOAPIC.
const PCI_MEMORY: u64 = layout::ECAM_BASE + layout::ECAM_SIZE;

/// Puts tables and kernel into `ram`; the state in which the bootstrap processor starts.
///
/// # Errors
/// One line that says what is wrong with the kernel or the machine's size.
pub fn prepare(boot: &DirectBoot<'_>, config: &MachineConfig, ram: &impl GuestMemory) -> Result<ArchState, StartError> {
    let tables = acpi::build(&acpi_layout(config));
    let ((_, low), high) = layout::ram_split(config.memory);
    let tables_at = low.saturating_sub(tables.reserved()) & !(acpi::Tables::ALIGNMENT - 1);
    let placed = tables.place(RSDP, tables_at).map_err(StartError::Tables)?;
    for (at, bytes) in placed.pieces() {
        ram.write(Gpa(at), bytes).map_err(StartError::Memory)?;
    }
    let smbios = smbios::build(&smbios_description(config)).place(SMBIOS).map_err(StartError::Smbios)?;
    ram.write(Gpa(SMBIOS), &smbios).map_err(StartError::Memory)?;
    bios_data::write(ram, layout::COM1, EBDA).map_err(StartError::Memory)?;

    let region = |start: u64, end: u64, kind| Region { start: Gpa(start), len: end.saturating_sub(start), kind };
    let mut regions: ArrayVec<Region, 7> = ArrayVec::new();
    regions.push(region(0, EBDA, RegionKind::Usable));
    regions.push(region(EBDA, layout::VIDEO_WINDOW, RegionKind::Reserved));
    regions.push(region(RSDP, layout::HIGH_MEMORY, RegionKind::Reserved));
    regions.push(region(layout::HIGH_MEMORY, tables_at, RegionKind::Usable));
    regions.push(region(tables_at, low, RegionKind::AcpiTables));
    regions.push(region(layout::ECAM_BASE, layout::ECAM_BASE + layout::ECAM_SIZE, RegionKind::Reserved));
    if let Some((start, bytes)) = high {
        regions.push(region(start, start + bytes, RegionKind::Usable));
    }

    let module = boot.initrd.map(|bytes| Module { bytes, command_line: b"" });
    let payload = Payload { image: boot.kernel, modules: module.as_slice(), command_line: boot.command_line };
    let memory_layout = MemoryLayout { regions: &regions, rsdp: Some(Gpa(RSDP)) };
    loader::load(&payload, &memory_layout, ram).map_err(StartError::Load)
}
