//! What the host's ACPI tables say: CPUs, interrupt controllers, timers, PCI configuration space.
//!
//! Key type: [`Platform`], read once at boot through the `acpi` crate. How tables are reached is the handler's business
//! (`firmware` on bare metal, plain pointers in tests). Only MADT, FADT, HPET and MCFG are read; no AML is run.
//!
//! Pins ACPI 6.5.

#![allow(unsafe_code)] // A table's bytes, checked before the crate walks them.

use acpi::address::{AddressSpace, GenericAddress};
use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::mcfg::Mcfg;
use acpi::{AcpiHandler, AcpiTables, HpetInfo, PhysicalMapping};
use arrayvec::ArrayVec;
use core::fmt;

/// Most IOAPICs that are used.
pub const MAX_IO_APICS: usize = 16;
/// Most host CPUs that are used.
pub const MAX_CPUS: usize = 256;

/// A host CPU that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCpu {
    /// Its local APIC's identifier.
    pub apic_id: u32,
}

/// An IOAPIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Physical address of its registers.
    pub address: u32,
    /// The global system interrupt of its first input.
    pub first_gsi: u32,
}

/// When a line is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    /// High.
    High,
    /// Low.
    Low,
}

/// What makes an interrupt of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Becoming active.
    Edge,
    /// Being active.
    Level,
}

/// Where an ISA interrupt arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaSource {
    /// Its number on the ISA bus.
    pub irq: u8,
    /// The global system interrupt.
    pub gsi: u32,
    /// When the line is active.
    pub polarity: Polarity,
    /// What makes an interrupt.
    pub trigger: Trigger,
}

/// Where the PM timer's register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmTimerPlace {
    /// An I/O port.
    Port(u16),
    /// A physical address.
    Memory(u64),
}

/// The PM timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// Its register.
    pub place: PmTimerPlace,
    /// All ones that a count can have: 24 or 32 bits.
    pub mask: u64,
}

/// A range of PCI buses whose configuration space is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciRange {
    /// Physical address of the first bus's configuration space.
    pub base: u64,
    /// The segment group.
    pub segment: u16,
    /// The first bus.
    pub first_bus: u8,
    /// The last bus.
    pub last_bus: u8,
}

/// What there is beside RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// CPUs that firmware enabled, in MADT's order.
    pub cpus: ArrayVec<HostCpu, MAX_CPUS>,
    /// IOAPICs.
    pub io_apics: ArrayVec<IoApic, MAX_IO_APICS>,
    /// ISA interrupts that do not arrive where ISA has them.
    pub overrides: ArrayVec<IsaSource, 16>,
    /// The PM timer.
    pub pm_timer: Option<PmTimer>,
    /// Physical address of the HPET.
    pub hpet: Option<u64>,
    /// The register of the real-time clock that holds the century.
    pub century: Option<u8>,
    /// PCI configuration spaces in memory.
    pub pci: ArrayVec<PciRange, 8>,
}

/// Why the tables cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiProblem {
    /// There are none.
    Missing,
    /// There is no MADT.
    NoMadt,
    /// The MADT's entries do not fit in it.
    BadMadt,
}

impl fmt::Display for AcpiProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "no ACPI tables were found; switch ACPI on in the firmware's set-up",
            Self::NoMadt => "the firmware's ACPI tables have no MADT; switch the APIC on in the firmware's set-up",
            Self::BadMadt => "the firmware's ACPI MADT is damaged",
        })
    }
}

/// MADT flags of a local APIC: usable now. ACPI 6.5, table 5.22.
const CPU_ENABLED: u32 = 1;
/// Interrupt source override flags, 2 bits each. ACPI 6.5, table 5.26 "MPS INTI Flags".
const POLARITY_LOW: u16 = 3;
const TRIGGER_LEVEL: u16 = 3;

impl Platform {
    /// Reads the tables.
    ///
    /// # Errors
    /// When there is no usable MADT; whatever else is missing is simply not there.
    pub fn read<H: AcpiHandler>(tables: &AcpiTables<H>) -> Result<Self, AcpiProblem> {
        let mut platform = Self::default();
        let madt = tables.find_table::<Madt>().map_err(|_| AcpiProblem::NoMadt)?;
        platform.read_madt(&madt)?;
        if let Ok(fadt) = tables.find_table::<Fadt>() {
            let wide = { fadt.flags }.pm_timer_is_32_bit();
            platform.century = Some(fadt.century).filter(|&register| register != 0);
            platform.pm_timer = fadt.pm_timer_block().ok().flatten().and_then(|block| pm_timer(block, wide));
        }
        platform.hpet = HpetInfo::new(tables).ok().map(|hpet| hpet.base_address as u64);
        if let Ok(mcfg) = tables.find_table::<Mcfg>() {
            let ranges = mcfg.entries().iter().map(|entry| PciRange {
                base: entry.base_address,
                segment: entry.pci_segment_group,
                first_bus: entry.bus_number_start,
                last_bus: entry.bus_number_end,
            });
            platform.pci.extend(ranges.take(platform.pci.capacity()));
        }
        Ok(platform)
    }

    /// Where ISA interrupt `irq` arrives.
    pub fn isa_source(&self, irq: u8) -> IsaSource {
        let usual = IsaSource { irq, gsi: u32::from(irq), polarity: Polarity::High, trigger: Trigger::Edge };
        self.overrides.iter().find(|source| source.irq == irq).copied().unwrap_or(usual)
    }

    fn read_madt<H: AcpiHandler>(&mut self, madt: &PhysicalMapping<H, Madt>) -> Result<(), AcpiProblem> {
        let start = madt.virtual_start().cast::<u8>().as_ptr();
        // SAFETY: the mapping has the whole table, whose length and checksum were found right.
        let bytes = unsafe { core::slice::from_raw_parts(start, madt.region_length()) };
        if !entries_fit(bytes.get(size_of::<Madt>()..).unwrap_or(&[])) {
            return Err(AcpiProblem::BadMadt);
        }
        for entry in madt.get().entries() {
            match entry {
                MadtEntry::LocalApic(cpu) => self.add_cpu(u32::from(cpu.apic_id), cpu.flags),
                MadtEntry::LocalX2Apic(cpu) => self.add_cpu(cpu.x2apic_id, cpu.flags),
                MadtEntry::IoApic(found) => {
                    let chip = IoApic { address: found.io_apic_address, first_gsi: found.global_system_interrupt_base };
                    // More than there is room for are left unused.
                    let _ = self.io_apics.try_push(chip);
                }
                MadtEntry::InterruptSourceOverride(source) => {
                    let flags = source.flags;
                    let source = IsaSource {
                        irq: source.irq,
                        gsi: source.global_system_interrupt,
                        polarity: if flags & 3 == POLARITY_LOW { Polarity::Low } else { Polarity::High },
                        trigger: if flags >> 2 & 3 == TRIGGER_LEVEL { Trigger::Level } else { Trigger::Edge },
                    };
                    // ISA has 16 interrupts; more overrides than that contradict each other.
                    let _ = self.overrides.try_push(source);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn add_cpu(&mut self, apic_id: u32, flags: u32) {
        let known = self.cpus.iter().any(|cpu| cpu.apic_id == apic_id);
        if flags & CPU_ENABLED != 0 && !known {
            // More than there is room for are left halted, as firmware left them.
            let _ = self.cpus.try_push(HostCpu { apic_id });
        }
    }
}

/// Whether the entries, each of a type, a length and a body, fill the table exactly. The `acpi` crate trusts that.
fn entries_fit(mut entries: &[u8]) -> bool {
    // Lengths of the types that are read: local APIC, IOAPIC, override, local x2APIC.
    let least = |kind| match kind {
        0 => 8,
        1 => 12,
        2 => 10,
        9 => 16,
        _ => 2,
    };
    while let [kind, length, ..] = *entries {
        if usize::from(length) < least(kind) {
            return false;
        }
        let Some(rest) = entries.get(usize::from(length)..) else { return false };
        entries = rest;
    }
    entries.is_empty()
}

fn pm_timer(block: GenericAddress, wide: bool) -> Option<PmTimer> {
    let place = match block.address_space {
        AddressSpace::SystemIo => PmTimerPlace::Port(u16::try_from(block.address).ok().filter(|&port| port != 0)?),
        AddressSpace::SystemMemory => PmTimerPlace::Memory(Some(block.address).filter(|&address| address != 0)?),
        _ => return None,
    };
    Some(PmTimer { place, mask: if wide { 0xffff_ffff } else { 0xff_ffff } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::ptr::NonNull;

    /// Tables at their own addresses.
    #[derive(Clone, Debug)]
    struct Plain;

    impl AcpiHandler for Plain {
        unsafe fn map_physical_region<T>(&self, address: usize, size: usize) -> PhysicalMapping<Self, T> {
            let pointer = NonNull::new(address as *mut T).unwrap();
            // SAFETY: the tests pass addresses of leaked tables.
            unsafe { PhysicalMapping::new(address, pointer, size, size, Plain) }
        }
        fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
    }

    fn fix_sum(bytes: &mut [u8], at: usize) {
        bytes[at] = 0;
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[at] = sum.wrapping_neg();
    }

    fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> &'static [u8] {
        let mut bytes = signature.to_vec();
        bytes.extend((36 + body.len() as u32).to_le_bytes());
        bytes.extend([revision, 0]);
        bytes.extend(*b"TESTERTESTTABLE");
        bytes.resize(36, b' ');
        bytes.extend(body);
        fix_sum(&mut bytes, 9);
        bytes.leak()
    }

    fn tables(list: &[&'static [u8]]) -> AcpiTables<Plain> {
        let pointers: Vec<u8> = list.iter().flat_map(|table| (table.as_ptr() as u64).to_le_bytes()).collect();
        let xsdt = table(b"XSDT", 1, &pointers);
        let mut rsdp = b"RSD PTR \0TESTER\x02\0\0\0\0".to_vec();
        rsdp.extend(36u32.to_le_bytes());
        rsdp.extend((xsdt.as_ptr() as u64).to_le_bytes());
        rsdp.extend([0; 4]);
        fix_sum(&mut rsdp, 8);
        // SAFETY: the structure and all it points to are leaked and right.
        unsafe { AcpiTables::from_rsdp(Plain, rsdp.leak().as_ptr() as usize) }.unwrap()
    }

    fn madt(entries: &[&[u8]]) -> &'static [u8] {
        table(b"APIC", 3, &[&[0, 0, 0xe0, 0xfe, 1, 0, 0, 0], &entries.concat()[..]].concat())
    }

    const CPU0: &[u8] = &[0, 8, 0, 0, 1, 0, 0, 0];
    const CPU1: &[u8] = &[0, 8, 1, 2, 1, 0, 0, 0];
    const CPU_OFF: &[u8] = &[0, 8, 2, 4, 0, 0, 0, 0];
    const X2CPU: &[u8] = &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0];
    const X2CPU1: &[u8] = &[9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
    const IO_APIC: &[u8] = &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 24, 0, 0, 0];
    const TIMER: &[u8] = &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0];
    const SCI: &[u8] = &[2, 10, 0, 9, 9, 0, 0, 0, 0x0f, 0];
    const NMI_LINE: &[u8] = &[4, 6, 0xff, 0, 0, 1];

    #[test]
    fn the_madt_is_understood() {
        let found = tables(&[madt(&[CPU0, CPU1, CPU_OFF, X2CPU, X2CPU1, IO_APIC, TIMER, SCI, NMI_LINE])]);
        let platform = Platform::read(&found).unwrap();
        let ids: Vec<_> = platform.cpus.iter().map(|cpu| cpu.apic_id).collect();
        assert_eq!(ids, [0, 2, 0x100], "each CPU once, disabled ones not at all");
        assert_eq!(platform.io_apics[..], [IoApic { address: 0xfec0_0000, first_gsi: 24 }]);
        assert_eq!(platform.isa_source(0).gsi, 2);
        let sci = IsaSource { irq: 9, gsi: 9, polarity: Polarity::Low, trigger: Trigger::Level };
        assert_eq!(platform.isa_source(9), sci);
        let com1 = IsaSource { irq: 4, gsi: 4, polarity: Polarity::High, trigger: Trigger::Edge };
        assert_eq!(platform.isa_source(4), com1);
        assert_eq!((platform.pm_timer, platform.hpet), (None, None));
    }

    #[test]
    fn a_damaged_madt_is_refused() {
        for entries in [&[0u8, 0][..], &[0, 8, 1], &[0], &[0, 7, 0, 0, 0, 0, 0], &[9, 8, 0, 0, 0, 0, 0, 0], &[0x80, 1]]
        {
            assert_eq!(Platform::read(&tables(&[madt(&[entries])])), Err(AcpiProblem::BadMadt), "{entries:?}");
        }
        assert_eq!(Platform::read(&tables(&[])), Err(AcpiProblem::NoMadt));
    }

    #[test]
    fn timers_and_pci_are_found() {
        let mut fadt = [0u8; 244 - 36];
        fadt[76 - 36..][..4].copy_from_slice(&0x608u32.to_le_bytes());
        fadt[91 - 36] = 4;
        fadt[108 - 36] = 0x32;
        fadt[112 - 36..][..4].copy_from_slice(&(1u32 << 8).to_le_bytes());
        let mut hpet = vec![1, 0xa2, 0x86, 0x80, 0, 64, 0, 0];
        hpet.extend(0xfed0_0000u64.to_le_bytes());
        hpet.extend([0, 0, 0, 0]);
        let mut mcfg = vec![0; 8];
        mcfg.extend(0xb000_0000u64.to_le_bytes());
        mcfg.extend([0, 0, 0, 0xff, 0, 0, 0, 0]);
        let found =
            tables(&[madt(&[CPU0]), table(b"FACP", 3, &fadt), table(b"HPET", 1, &hpet), table(b"MCFG", 1, &mcfg)]);
        let platform = Platform::read(&found).unwrap();
        let timer = PmTimer { place: PmTimerPlace::Port(0x608), mask: 0xffff_ffff };
        assert_eq!(platform.pm_timer, Some(timer));
        assert_eq!(platform.hpet, Some(0xfed0_0000));
        assert_eq!(platform.century, Some(0x32));
        assert_eq!(platform.pci[..], [PciRange { base: 0xb000_0000, segment: 0, first_bus: 0, last_bus: 0xff }]);
    }
}
