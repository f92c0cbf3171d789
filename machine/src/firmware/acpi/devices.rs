//! The devices on the ISA bus, behind the LPC bridge.

use super::Layout;
use super::resources::{Dma, Irq};
use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Name, Path, ResourceTemplate};
use alloc::boxed::Box;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// One device with fixed resources.
struct Fixed {
    name: &'static str,
    hid: &'static str,
    resources: Vec<Box<dyn Aml>>,
}

fn io(port: u16, len: u8) -> Box<dyn Aml> {
    Box::new(IO::new(port, port, 1, len))
}

fn irq(number: u8) -> Box<dyn Aml> {
    Box::new(Irq(number))
}

/// Appends the ISA devices' AML to `sink`.
pub(super) fn append(layout: &Layout, sink: &mut Vec<u8>) {
    let fixed = [
        Fixed { name: "PIC_", hid: "PNP0000", resources: vec![io(0x20, 2), io(0xa0, 2), io(0x4d0, 2), irq(2)] },
        Fixed { name: "PIT_", hid: "PNP0100", resources: vec![io(0x40, 4), irq(0)] },
        Fixed {
            name: "DMAC",
            hid: "PNP0200",
            resources: vec![io(0x00, 0x10), io(0x81, 0x0f), io(0xc0, 0x20), Box::new(Dma(4))],
        },
        Fixed { name: "SPKR", hid: "PNP0800", resources: vec![io(0x61, 1)] },
        Fixed { name: "RTC_", hid: "PNP0B00", resources: vec![io(0x70, 4), irq(8)] },
        Fixed { name: "KBD_", hid: "PNP0303", resources: vec![io(0x60, 1), io(0x64, 1), irq(1)] },
        Fixed { name: "MOU_", hid: "PNP0F13", resources: vec![irq(12)] },
    ];
    for device in fixed {
        let resources = device.resources.iter().map(|resource| &**resource).collect();
        Device::new(
            Path::new(device.name),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new(device.hid)),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
            ],
        )
        .to_aml_bytes(sink);
    }
    for (serial, number) in layout.serial.iter().zip(1u8..=4) {
        Device::new(
            Path::new(&format!("COM{number}")),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &number),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&IO::new(serial.port, serial.port, 1, 8), &Irq(serial.irq)]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}
