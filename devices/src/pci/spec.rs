//! Bits of the configuration space, under the names of the PCI Local Bus Specification 3.0 and of Intel's datasheets for
//! the 3 Series MCH (316966-002) and the ICH9 (316972-004).

/// Type 0 configuration header, PCI 3.0 6.1 "Configuration Space Organization".
pub mod header {
    /// Vendor ID, 16 bits.
    pub const VENDOR_ID: u16 = 0x00;
    /// Device ID, 16 bits.
    pub const DEVICE_ID: u16 = 0x02;
    /// Command, 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u16 = 0x06;
    /// Revision ID, 8 bits.
    pub const REVISION_ID: u16 = 0x08;
    /// Class code, 24 bits.
    pub const CLASS_CODE: u16 = 0x09;
    /// Cache line size, 8 bits.
    pub const CACHE_LINE_SIZE: u16 = 0x0c;
    /// Latency timer, 8 bits.
    pub const LATENCY_TIMER: u16 = 0x0d;
    /// Header type, 8 bits.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// Six base address registers, 32 bits each.
    pub const BASE_ADDRESS: u16 = 0x10;
    /// Subsystem vendor ID, 16 bits.
    pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
    /// Subsystem ID, 16 bits.
    pub const SUBSYSTEM_ID: u16 = 0x2e;
    /// Expansion ROM base address, 32 bits.
    pub const EXPANSION_ROM: u16 = 0x30;
    /// Capabilities pointer, 8 bits.
    pub const CAPABILITIES_POINTER: u16 = 0x34;
    /// Interrupt line, 8 bits.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin, 8 bits.
    pub const INTERRUPT_PIN: u16 = 0x3d;
    /// First byte after the header.
    pub const END: u16 = 0x40;

    /// Command: decode I/O space.
    pub const COMMAND_IO: u16 = 1 << 0;
    /// Command: decode memory space.
    pub const COMMAND_MEMORY: u16 = 1 << 1;
    /// Command: bus master.
    pub const COMMAND_MASTER: u16 = 1 << 2;
    /// Command: parity error response.
    pub const COMMAND_PARITY: u16 = 1 << 6;
    /// Command: SERR# enable.
    pub const COMMAND_SERR: u16 = 1 << 8;
    /// Command: interrupt disable (INTx).
    pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
    /// Status: a capabilities list is there.
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;
    /// Status: the error bits, all cleared by writing one.
    pub const STATUS_ERRORS: u16 = 0xf900;
    /// Header type: the device has more than one function.
    pub const MULTI_FUNCTION: u8 = 1 << 7;
    /// BAR bit 0: I/O space.
    pub const BAR_IO: u32 = 1 << 0;
    /// BAR bits 2:1: 64-bit memory.
    pub const BAR_MEMORY_64: u32 = 2 << 1;
    /// BAR bit 3: prefetchable.
    pub const BAR_PREFETCHABLE: u32 = 1 << 3;
    /// Expansion ROM enable.
    pub const ROM_ENABLE: u32 = 1 << 0;
}

/// The configuration ports, PCI 3.0 3.2.2.3.2 "Software Generation of Configuration Transactions".
pub mod ports {
    /// CONFIG_ADDRESS, a double word.
    pub const CONFIG_ADDRESS: u64 = 0;
    /// RST_CNT, a byte inside CONFIG_ADDRESS's double word (ICH9 13.7.5 "Reset Control Register").
    pub const RST_CNT: u64 = 1;
    /// CONFIG_DATA, four bytes.
    pub const CONFIG_DATA: u64 = 4;
    /// CONFIG_ADDRESS: enable.
    pub const ENABLE: u32 = 1 << 31;
    /// CONFIG_ADDRESS: bits that can be set.
    pub const ADDRESS_MASK: u32 = 0x80ff_fffc;
    /// RST_CNT: system reset (hard), kept.
    pub const SYS_RST: u8 = 1 << 1;
    /// RST_CNT: reset CPU, the trigger.
    pub const RST_CPU: u8 = 1 << 2;
    /// RST_CNT: full reset, kept.
    pub const FULL_RST: u8 = 1 << 3;
}

/// 3 Series MCH, device 0, 5.1 "DRAM Controller (D0:F0)".
pub mod mch {
    /// Device ID of the 82G33, which q35 machines show.
    pub const DEVICE_ID: u16 = 0x29c0;
    /// PCI Express register range base address, 64 bits.
    pub const PCIEXBAR: u16 = 0x60;
    /// PCIEXBAREN.
    pub const PCIEXBAR_ENABLE: u64 = 1 << 0;
    /// Base, length and enable bits that can be set.
    pub const PCIEXBAR_MASK: u64 = 0x0000_000f_fc00_0007;
    /// Seven programmable attribute maps, 8 bits each.
    pub const PAM0: u16 = 0x90;
    /// Read and write enable of the upper and of the lower segment.
    pub const PAM_MASK: u8 = 0x33;
    /// PAM0 has the upper half only (0xf0000-0xfffff).
    pub const PAM0_MASK: u8 = 0x30;
    /// System management RAM control.
    pub const SMRAM: u16 = 0x9d;
    /// SMRAM: D_LCK, makes the register read-only.
    pub const SMRAM_D_LCK: u8 = 1 << 4;
    /// SMRAM: D_OPEN, D_CLS, D_LCK, G_SMRAME.
    pub const SMRAM_MASK: u8 = 0x78;
    /// SMRAM: C_BASE_SEG, read-only.
    pub const SMRAM_C_BASE_SEG: u8 = 0x02;
    /// Extended SMRAM control.
    pub const ESMRAMC: u16 = 0x9e;
    /// ESMRAMC after reset: the cache bits read as ones.
    pub const ESMRAMC_DEFAULT: u8 = 0x38;
}

/// ICH9 LPC interface bridge, 13.1 "PCI Configuration Registers (LPC I/F - D31:F0)".
pub mod lpc {
    /// Device ID of the ICH9 (82801IB).
    pub const DEVICE_ID: u16 = 0x2918;
    /// ACPI base address, 32 bits.
    pub const PMBASE: u16 = 0x40;
    /// PMBASE: address bits.
    pub const PMBASE_MASK: u32 = 0xff80;
    /// ACPI control, 8 bits.
    pub const ACPI_CNTL: u16 = 0x44;
    /// ACPI_CNTL: decode PMBASE.
    pub const ACPI_EN: u8 = 1 << 7;
    /// ACPI_CNTL: ACPI_EN and SCI_IRQ_SEL.
    pub const ACPI_CNTL_MASK: u8 = 0x87;
    /// GPIO base address, 32 bits; fixed at 0, for there are no GPIOs.
    pub const GPIOBASE: u16 = 0x48;
    /// PIRQA to PIRQD routing, 8 bits each.
    pub const PIRQA_ROUT: u16 = 0x60;
    /// Serial IRQ control.
    pub const SIRQ_CNTL: u16 = 0x64;
    /// SIRQ_CNTL after reset.
    pub const SIRQ_CNTL_DEFAULT: u8 = 0x10;
    /// PIRQE to PIRQH routing, 8 bits each.
    pub const PIRQE_ROUT: u16 = 0x68;
    /// PIRQ routing: not routed to the 8259s.
    pub const IRQEN: u8 = 1 << 7;
    /// PIRQ routing: the bits that can be set.
    pub const PIRQ_MASK: u8 = 0x8f;
    /// I/O decode ranges, 16 bits.
    pub const LPC_IO_DEC: u16 = 0x80;
    /// LPC interface enables, 16 bits.
    pub const LPC_EN: u16 = 0x82;
    /// Four generic I/O decode ranges, 32 bits each.
    pub const GEN1_DEC: u16 = 0x84;
    /// General power management configuration 1, 16 bits.
    pub const GEN_PMCON_1: u16 = 0xa0;
    /// General power management configuration 2, 8 bits.
    pub const GEN_PMCON_2: u16 = 0xa2;
    /// General power management configuration 3, 8 bits.
    pub const GEN_PMCON_3: u16 = 0xa4;
    /// GPI routing control, 32 bits.
    pub const GPIO_ROUT: u16 = 0xb8;
    /// BIOS control, 8 bits.
    pub const BIOS_CNTL: u16 = 0xdc;
    /// Root complex base address, 32 bits.
    pub const RCBA: u16 = 0xf0;
    /// RCBA: enable.
    pub const RCBA_ENABLE: u32 = 1 << 0;
    /// RCBA: address bits.
    pub const RCBA_MASK: u32 = 0xffff_c000;

    /// Chipset configuration registers, 10.1: device interrupt routes, 16 bits each, D31IR down to D25IR.
    pub const D31IR: u64 = 0x3140;
    /// One past the last interrupt route.
    pub const DIR_END: u64 = 0x3154;
    /// An interrupt route after reset: INTA to PIRQA ... INTD to PIRQD.
    pub const DIR_DEFAULT: u16 = 0x3210;
    /// General control and status, 32 bits.
    pub const GCS: u64 = 0x3410;
    /// GCS: No Reboot; strapped on, so that the watchdog is off.
    pub const GCS_NO_REBOOT: u32 = 1 << 5;
}
