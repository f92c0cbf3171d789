//! LPC bridge of the ICH9, device 00:1f.0: where the power management block and the chipset registers lie, and how the
//! PIRQs go to the 8259s.
//!
//! Manual: Intel I/O Controller Hub 9 (ICH9) Family Datasheet, 316972-004, chapters 10 and 13.
//!
//! The devices behind the bridge (8254, 8259, RTC, ACPI block) are their own modules; the owner of the [`super::PciBus`]
//! moves them when it reports that a window moved. The watchdog (TCO), GPIOs and the flash interface are not there.

use super::intx::{IntxRouter, Pirq};
use super::spec::{header, lpc};
use super::{AddressSpace, ConfigSize, ConfigSpace, Function, Identity, SetUp, Window};
use crate::Device;
use alloc::sync::Arc;

/// Where the power management ports lie on q35 once firmware set them up.
pub const PMBASE: u16 = 0x600;
/// Ports of the power management block.
pub const PM_PORTS: u64 = 128;
/// Where the chipset configuration registers lie on q35 once firmware set them up.
pub const RCBA: u32 = 0xfed1_c000;
/// Bytes of chipset configuration registers.
pub const RCRB_SIZE: u64 = 0x4000;
/// SeaBIOS' choice of ISA interrupts for PIRQA-D and again for PIRQE-H.
const ISA_IRQS: [u8; 4] = [10, 10, 11, 11];

/// The LPC bridge.
pub struct Lpc {
    config: ConfigSpace,
    router: Arc<IntxRouter>,
}

impl Lpc {
    /// The bridge as after reset. With [`SetUp::Done`] the power management block is on at [`PMBASE`], the chipset
    /// registers at [`RCBA`] and the PIRQs routed as SeaBIOS routes them.
    pub fn new(set_up: SetUp, router: Arc<IntxRouter>) -> Lpc {
        let mut config = ConfigSpace::new(
            ConfigSize::Conventional,
            Identity {
                vendor: super::INTEL,
                device: lpc::DEVICE_ID,
                class: 0x06_0100,
                revision: 0x02,
                subsystem: super::SUBSYSTEM,
            },
        );
        // 13.1.3: I/O, memory and bus master are hardwired on.
        config.preset16(header::COMMAND, header::COMMAND_IO | header::COMMAND_MEMORY | header::COMMAND_MASTER);
        config.allow_write(header::COMMAND, &(header::COMMAND_PARITY | header::COMMAND_SERR).to_le_bytes());
        config.preset16(header::STATUS, 0x0200);
        config.preset8(header::HEADER_TYPE, header::MULTI_FUNCTION);

        config.preset32(lpc::PMBASE, header::BAR_IO);
        config.allow_write(lpc::PMBASE, &lpc::PMBASE_MASK.to_le_bytes());
        config.allow_write(lpc::ACPI_CNTL, &[lpc::ACPI_CNTL_MASK]);
        config.preset32(lpc::GPIOBASE, header::BAR_IO);
        for pirq in 0..4 {
            config.preset8(lpc::PIRQA_ROUT + pirq, lpc::IRQEN);
            config.preset8(lpc::PIRQE_ROUT + pirq, lpc::IRQEN);
        }
        config.allow_write(lpc::PIRQA_ROUT, &[lpc::PIRQ_MASK; 4]);
        config.allow_write(lpc::PIRQE_ROUT, &[lpc::PIRQ_MASK; 4]);
        config.preset8(lpc::SIRQ_CNTL, lpc::SIRQ_CNTL_DEFAULT);
        config.allow_write(lpc::SIRQ_CNTL, &[0xff]);
        config.allow_write(lpc::LPC_IO_DEC, &[0x77, 0x13]);
        config.allow_write(lpc::LPC_EN, &[0x0f, 0x3f]);
        for range in 0..4 {
            config.allow_write(lpc::GEN1_DEC + 4 * range, &[0xfd, 0xff, 0xfc, 0x00]);
        }
        config.allow_write(lpc::GEN_PMCON_1, &[0xff, 0x07]);
        config.allow_write(lpc::GEN_PMCON_2, &[0xff]);
        config.allow_write(lpc::GEN_PMCON_3, &[0xff]);
        config.allow_write(lpc::GPIO_ROUT, &[0xff; 4]);
        config.allow_write(lpc::BIOS_CNTL, &[0x1f]);
        config.allow_write(lpc::RCBA, &(lpc::RCBA_MASK | lpc::RCBA_ENABLE).to_le_bytes());

        if set_up == SetUp::Done {
            config.preset32(lpc::PMBASE, u32::from(PMBASE) | header::BAR_IO);
            config.preset8(lpc::ACPI_CNTL, lpc::ACPI_EN);
            config.preset(lpc::PIRQA_ROUT, &ISA_IRQS);
            config.preset(lpc::PIRQE_ROUT, &ISA_IRQS);
            config.preset32(lpc::RCBA, RCBA | lpc::RCBA_ENABLE);
        }
        let lpc = Lpc { config, router };
        lpc.route();
        lpc
    }

    /// The IRQ that `pirq` raises on the 8259 pair, if any.
    pub fn isa_irq(&self, pirq: Pirq) -> Option<u8> {
        self.routes().get(usize::from(pirq.number())).copied().and_then(super::isa_irq)
    }

    fn routes(&self) -> [u8; Pirq::COUNT] {
        let [a, b, c, d] = self.config.get32(lpc::PIRQA_ROUT).to_le_bytes();
        let [e, f, g, h] = self.config.get32(lpc::PIRQE_ROUT).to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }

    fn route(&self) {
        self.router.set_routes(self.routes());
    }
}

impl Function for Lpc {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
        self.route();
    }

    fn config_reset(&mut self) {
        self.config.reset();
        self.route();
    }

    /// Window 0 is the power management block, window 1 the chipset configuration registers.
    fn chipset_window(&self, number: usize) -> Option<Window> {
        match number {
            0 if self.config.get8(lpc::ACPI_CNTL) & lpc::ACPI_EN != 0 => {
                let base = u64::from(self.config.get32(lpc::PMBASE) & lpc::PMBASE_MASK);
                (base != 0).then_some(Window { space: AddressSpace::Io, base, size: PM_PORTS })
            }
            1 if self.config.get32(lpc::RCBA) & lpc::RCBA_ENABLE != 0 => {
                let base = u64::from(self.config.get32(lpc::RCBA) & lpc::RCBA_MASK);
                (base != 0).then_some(Window { space: AddressSpace::Memory, base, size: RCRB_SIZE })
            }
            _ => None,
        }
    }
}

/// The chipset configuration registers, 16 KiB of memory at RCBA.
///
/// What is decoded: the interrupt routes of devices 25 to 31, fixed as [`Pirq::of`] has them, and GCS with No Reboot
/// strapped on, which tells drivers that there is no watchdog. The rest reads zero and takes no writes.
pub struct ChipsetConfiguration(());

impl ChipsetConfiguration {
    /// The registers.
    #[expect(clippy::new_without_default, reason = "devices are made by `new`")]
    pub fn new() -> ChipsetConfiguration {
        ChipsetConfiguration(())
    }
}

impl Device for ChipsetConfiguration {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let at = offset.wrapping_add(index as u64);
            *byte = match at {
                lpc::D31IR..lpc::DIR_END => lpc::DIR_DEFAULT.to_le_bytes()[(at & 1) as usize],
                lpc::GCS => lpc::GCS_NO_REBOOT as u8,
                ..RCRB_SIZE => 0,
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self) {}
}
