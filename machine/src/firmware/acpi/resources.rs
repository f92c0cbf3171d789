//! Resource descriptors that the table crate lacks, ACPI 6.3 6.4 "Resource Data Types for ACPI".

use acpi_tables::{Aml, AmlSink};

/// 6.4.2.1 "IRQ Descriptor", two bytes: one ISA interrupt, edge-triggered, active high, exclusive.
pub(super) struct Irq(pub u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << (self.0 & 15));
    }
}

/// 6.4.2.2 "DMA Descriptor": one channel, 8-bit transfers, compatibility timing, not a bus master.
pub(super) struct Dma(pub u8);

impl Aml for Dma {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x2a);
        sink.byte(1 << (self.0 & 7));
        sink.byte(0);
    }
}

/// 6.4.3.6 "Extended Interrupt Descriptor": level-triggered, active low, shared, as PCI interrupts are.
pub(super) struct PciInterrupts<'a>(pub &'a [u32]);

impl Aml for PciInterrupts<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const CONSUMER: u8 = 1 << 0;
        const ACTIVE_LOW: u8 = 1 << 2;
        const SHARED: u8 = 1 << 3;
        sink.byte(0x89);
        sink.word(2 + 4 * self.0.len() as u16);
        sink.byte(CONSUMER | ACTIVE_LOW | SHARED);
        sink.byte(self.0.len() as u8);
        for number in self.0 {
            sink.dword(*number);
        }
    }
}
