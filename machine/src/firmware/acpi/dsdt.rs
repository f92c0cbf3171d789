//! DSDT: the PCI host bridge with its windows and interrupt routing, the LPC bridge with the ISA devices, the
//! processors, soft off.

use super::resources::PciInterrupts;
use super::{Layout, OEM_ID, OEM_REVISION, OEM_TABLE_ID, devices};
use ::devices::acpi_pm::AcpiPm;
use ::devices::pci::{Pirq, RCBA, RCRB_SIZE};
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Local, Memory32Fixed, Method, Name, NotEqual,
    ONE, OpRegion, OpRegionSpace, Or, Package, PackageBuilder, Path, ResourceTemplate, Return, Scope, Store, Uuid,
    ZERO,
};
use acpi_tables::sdt::Sdt;
use alloc::boxed::Box;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// The LPC bridge's address, slot 31 function 0.
const LPC_ADDRESS: u32 = 0x1f_0000;
/// Slots on a PCI bus.
const SLOTS: u8 = 32;
/// ISA interrupts that a link can be set to.
const LINK_CHOICES: [u32; 3] = [5, 10, 11];
/// Letters of the PIRQs.
const PIRQS: [char; Pirq::COUNT] = ['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H'];

/// The whole table.
pub(super) fn build(layout: &Layout) -> Vec<u8> {
    let mut aml = Vec::new();
    // \PICF: which interrupt model the operating system uses; 0 is the 8259s.
    Name::new(Path::new("PICF"), &ZERO).to_aml_bytes(&mut aml);
    Method::new(Path::new("_PIC"), 1, false, vec![&Store::new(&Path::new("PICF"), &Arg(0))]).to_aml_bytes(&mut aml);
    let sleep = AcpiPm::SLP_TYP_S5;
    Name::new(Path::new("_S5_"), &Package::new(vec![&sleep, &sleep, &ZERO, &ZERO])).to_aml_bytes(&mut aml);

    let mut system = Vec::new();
    system.extend(host_bridge(layout));
    reserved(layout, &mut system);
    hpet(layout, &mut system);
    for link in 0..PIRQS.len() {
        append_link(link, &mut system);
    }
    processors(layout, &mut system);
    aml.extend(Scope::raw(Path::new("\\_SB_"), system));

    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&aml);
    table.as_slice().to_vec()
}

/// A device whose body is AML already.
fn device(name: &str, body: Vec<u8>) -> Vec<u8> {
    let mut aml = Vec::new();
    Device::new(Path::new(name), vec![&Encoded(body)]).to_aml_bytes(&mut aml);
    aml
}

/// AML that is encoded already.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn host_bridge(layout: &Layout) -> Vec<u8> {
    let mut body = Vec::new();
    Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")).to_aml_bytes(&mut body);
    Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")).to_aml_bytes(&mut body);
    for name in ["_UID", "_SEG", "_BBN"] {
        Name::new(Path::new(name), &ZERO).to_aml_bytes(&mut body);
    }
    windows(layout, &mut body);
    operating_system_capabilities(&mut body);
    routing(&mut body);
    body.extend(lpc_bridge(layout));
    device("PCI0", body)
}

/// `_CRS`: what the bridge takes for itself (0xcf8) and what it passes on to the bus.
fn windows(layout: &Layout, body: &mut Vec<u8>) {
    let below = |window: super::Window| (window.start as u32, window.last() as u32);
    let (start, last) = below(layout.pci_memory);
    let mut resources: Vec<Box<dyn Aml>> = vec![
        Box::new(AddressSpace::new_bus_number(0u16, u16::from(layout.last_bus()))),
        Box::new(IO::new(0xcf8, 0xcf8, 1, 8)),
        Box::new(AddressSpace::new_io(0u16, 0xcf7, None)),
        Box::new(AddressSpace::new_io(0xd00u16, 0xffff, None)),
        Box::new(AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, 0xa_0000u32, 0xb_ffff, None)),
        Box::new(AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, last, None)),
    ];
    if let Some(high) = layout.pci_memory_high {
        let window = AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, high.start, high.last(), None);
        resources.push(Box::new(window));
    }
    let resources = resources.iter().map(|resource| &**resource).collect();
    Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)).to_aml_bytes(body);
}

/// `_OSC`, ACPI 6.3 6.2.11.3 "OSC Implementation Example for PCI Host Bridge Devices": the operating system may have
/// PME, AER, the capability structure and LTR; native hot plug it may not, for there is none.
fn operating_system_capabilities(body: &mut Vec<u8>) {
    const GRANTED: u8 = 0x3c;
    let (cdw1, cdw2, cdw3) = (Path::new("CDW1"), Path::new("CDW2"), Path::new("CDW3"));
    Method::new(
        Path::new("_OSC"),
        4,
        true,
        vec![
            &CreateDWordField::new(&cdw1, &Arg(3), &ZERO),
            &If::new(
                &Equal::new(&Arg(0), &Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766")),
                vec![
                    &CreateDWordField::new(&cdw2, &Arg(3), &4u8),
                    &CreateDWordField::new(&cdw3, &Arg(3), &8u8),
                    &And::new(&Local(0), &cdw3, &GRANTED),
                    // Unknown revision.
                    &If::new(&NotEqual::new(&Arg(1), &ONE), vec![&Or::new(&cdw1, &cdw1, &0x08u8)]),
                    // Something was masked.
                    &If::new(&NotEqual::new(&cdw3, &Local(0)), vec![&Or::new(&cdw1, &cdw1, &0x10u8)]),
                    &Store::new(&cdw3, &Local(0)),
                ],
            ),
            // Unknown UUID.
            &Else::new(vec![&Or::new(&cdw1, &cdw1, &0x04u8)]),
            &Return::new(&Arg(3)),
        ],
    )
    .to_aml_bytes(body);
}

/// `_PRT`: to the links with the 8259s, to the IOAPIC's inputs 16 to 23 otherwise.
fn routing(body: &mut Vec<u8>) {
    let (mut by_link, mut by_gsi) = (PackageBuilder::new(), PackageBuilder::new());
    for slot in 0..SLOTS {
        for pin in 0..4u8 {
            let address = u32::from(slot) << 16 | 0xffff;
            let pirq = Pirq::of(slot, pin + 1);
            let link = link_path(usize::from(pirq.number()));
            by_link.add_element(&Package::new(vec![&address, &pin, &link, &ZERO]));
            by_gsi.add_element(&Package::new(vec![&address, &pin, &ZERO, &pirq.gsi()]));
        }
    }
    Name::new(Path::new("PRTL"), &by_link).to_aml_bytes(body);
    Name::new(Path::new("PRTG"), &by_gsi).to_aml_bytes(body);
    Method::new(
        Path::new("_PRT"),
        0,
        false,
        vec![&If::new(&Path::new("PICF"), vec![&Return::new(&Path::new("PRTG"))]), &Return::new(&Path::new("PRTL"))],
    )
    .to_aml_bytes(body);
}

fn link_path(number: usize) -> Path {
    Path::new(&format!("\\_SB_.LNK{}", PIRQS[number]))
}

/// The LPC bridge: the PIRQ routing registers and the ISA devices.
fn lpc_bridge(layout: &Layout) -> Vec<u8> {
    let mut body = Vec::new();
    Name::new(Path::new("_ADR"), &LPC_ADDRESS).to_aml_bytes(&mut body);
    // PIRQ[n]_ROUT, ICH9 13.1.17: A to D at 0x60, E to H at 0x68.
    OpRegion::new(Path::new("PIRQ"), OpRegionSpace::PCIConfig, &0x60u8, &0x0cu8).to_aml_bytes(&mut body);
    let named = |letter: &char| FieldEntry::Named([b'P', b'R', b'Q', *letter as u8], 8);
    let mut fields: Vec<FieldEntry> = PIRQS[..4].iter().map(named).collect();
    fields.push(FieldEntry::Reserved(32));
    fields.extend(PIRQS[4..].iter().map(named));
    Field::new(Path::new("PIRQ"), FieldAccessType::Byte, FieldLockRule::NoLock, FieldUpdateRule::Preserve, fields)
        .to_aml_bytes(&mut body);
    devices::append(layout, &mut body);
    device("ISA_", body)
}

/// An interrupt link device over one routing register: bit 7 disables, bits 3:0 are the ISA interrupt.
fn append_link(number: usize, sink: &mut Vec<u8>) {
    let letter = PIRQS[number];
    let register = Path::new(&format!("\\_SB_.PCI0.ISA_.PRQ{letter}"));
    let uid = number as u8;
    let buffer = Path::new("BUF0");
    let irq = Path::new("IRQW");
    // Where the interrupt number is inside an extended interrupt descriptor.
    const NUMBER_OFFSET: u8 = 5;
    Device::new(
        Path::new(&format!("LNK{letter}")),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C0F")),
            &Name::new(Path::new("_UID"), &uid),
            &Name::new(Path::new("_PRS"), &ResourceTemplate::new(vec![&PciInterrupts(&LINK_CHOICES)])),
            &Method::new(
                Path::new("_STA"),
                0,
                false,
                vec![
                    &And::new(&Local(0), &register, &0x80u8),
                    &If::new(&Local(0), vec![&Return::new(&0x09u8)]),
                    &Return::new(&0x0bu8),
                ],
            ),
            &Method::new(Path::new("_DIS"), 0, false, vec![&Or::new(&register, &register, &0x80u8)]),
            &Method::new(
                Path::new("_CRS"),
                0,
                true,
                vec![
                    &Name::new(Path::new("BUF0"), &ResourceTemplate::new(vec![&PciInterrupts(&[0])])),
                    &CreateDWordField::new(&irq, &buffer, &NUMBER_OFFSET),
                    &And::new(&Local(0), &register, &0x80u8),
                    &If::new(&Equal::new(&Local(0), &ZERO), vec![&And::new(&irq, &register, &0x0fu8)]),
                    &Return::new(&buffer),
                ],
            ),
            &Method::new(
                Path::new("_SRS"),
                1,
                true,
                vec![&CreateDWordField::new(&irq, &Arg(0), &NUMBER_OFFSET), &Store::new(&register, &irq)],
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// Motherboard resources that no driver claims: ECAM (which Linux wants reserved here or in the e820 map), the power
/// management block, the chipset registers, the interrupt controllers.
fn reserved(layout: &Layout, sink: &mut Vec<u8>) {
    let pm = layout.pm_base;
    Device::new(
        Path::new("MBRS"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, layout.ecam.start as u32, layout.ecam.size as u32),
                    &Memory32Fixed::new(true, RCBA, RCRB_SIZE as u32),
                    &Memory32Fixed::new(true, layout.ioapic_base, 0x1000),
                    &Memory32Fixed::new(true, layout.lapic_base, 0x10_0000),
                    &IO::new(pm, pm, 1, 0x80),
                    &IO::new(0xb2, 0xb2, 1, 2),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

fn hpet(layout: &Layout, sink: &mut Vec<u8>) {
    if let Some(hpet) = &layout.hpet {
        Device::new(
            Path::new("HPET"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0103")),
                &Name::new(Path::new("_UID"), &ZERO),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&Memory32Fixed::new(true, hpet.base as u32, 0x400)]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// ACPI 6.3 8.4 "Declaring Processors": `_UID` is MADT's ACPI processor UID.
fn processors(layout: &Layout, sink: &mut Vec<u8>) {
    for number in 0..layout.processors {
        Device::new(
            Path::new(&format!("C{number:03X}")),
            vec![&Name::new(Path::new("_HID"), &"ACPI0007"), &Name::new(Path::new("_UID"), &number)],
        )
        .to_aml_bytes(sink);
    }
}
