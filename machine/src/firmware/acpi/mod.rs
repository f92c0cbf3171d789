//! ACPI tables of the q35 machine.
//!
//! Specification: ACPI 6.3 (January 2019), chapters 5, 6 and 19; IA-PC HPET 1.0a, 3.2.4; PCI Firmware 3.2, 4.1.2 (MCFG);
//! Windows ACPI Emulated Devices Table 1.0 (WAET).
//!
//! [`build`] turns a [`Layout`] into [`Tables`]: RSDP, XSDT, FADT, FACS, DSDT, MADT, HPET, MCFG and WAET. They are
//! linked the way fw_cfg's `etc/table-loader` links them, by notes of which fields are pointers and which are
//! checksums; so [`Tables::place`] can put them into guest memory, and the same notes can be served to firmware.
//!
//! Neighbours: the loaders place the tables and reserve their memory in the e820 map; `layout` has the addresses.
//! Not here: SMBIOS (`smbios`), the tables that firmware adds by itself.

mod description;
mod devices;
mod dsdt;
mod resources;
mod tables;
#[cfg(test)]
mod tests;

pub use description::{Hpet, Layout, SerialPort, Window};
pub use tables::{Blob, Checksum, Placed, PlacementError, Pointer, Tables};

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::{GenericAddress, Sdt};
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, facs::FACS};
use alloc::vec::Vec;
use tables::TableBuilder;

const OEM_ID: [u8; 6] = *b"GRSHFT";
const OEM_TABLE_ID: [u8; 8] = *b"GEARSHFT";
const OEM_REVISION: u32 = 1;

/// Local APIC ids from here on do not fit MADT's short entries (ACPI 6.3 5.2.12.12).
const FIRST_X2APIC_ID: u32 = 255;
/// Index of the century in the CMOS RAM.
const RTC_CENTURY: u8 = 0x32;
/// The reset control register and the value that resets everything.
const RESET_PORT: u16 = 0xcf9;
const RESET_VALUE: u8 = 0x06;

/// FADT fields, by their offsets in ACPI 6.3 table 5-33.
mod fadt_offset {
    pub const FIRMWARE_CTRL: usize = 36;
    pub const DSDT: usize = 40;
    pub const X_DSDT: usize = 140;
}

/// Builds the tables of the machine that `layout` describes.
pub fn build(layout: &Layout) -> Tables {
    let mut builder = TableBuilder::default();
    // 5.2.10: the FACS is aligned to 64 bytes; it has no checksum.
    let facs = builder.add(64, &bytes(&FACS::new()));
    let dsdt = builder.add_checked(&dsdt::build(layout));
    let fadt = builder.add_checked(&bytes(&fadt(layout)));
    builder.point(fadt + fadt_offset::FIRMWARE_CTRL, 4, facs);
    builder.point(fadt + fadt_offset::DSDT, 4, dsdt);
    builder.point(fadt + fadt_offset::X_DSDT, 8, dsdt);

    let mut listed = alloc::vec![fadt, builder.add_checked(madt(layout).as_slice())];
    if let Some(hpet) = &layout.hpet {
        listed.push(builder.add_checked(hpet_table(hpet).as_slice()));
    }
    listed.push(builder.add_checked(&mcfg(layout)));
    listed.push(builder.add_checked(waet().as_slice()));

    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for _ in &listed {
        xsdt.add_entry(0);
    }
    let xsdt = builder.add_checked(&bytes(&xsdt));
    for (number, table) in listed.into_iter().enumerate() {
        builder.point(xsdt + 36 + 8 * number, 8, table);
    }
    builder.finish(&bytes(&Rsdp::new(OEM_ID, 0)), xsdt)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn ports(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, address.into())
}

/// 5.2.9 "Fixed ACPI Description Table", not hardware-reduced.
fn fadt(layout: &Layout) -> acpi_tables::fadt::FADT {
    let pm = layout.pm_base;
    let (timer, gpe0) = (pm + 8, pm + 0x20);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    fadt.fadt_minor_version = 3;
    fadt.sci_int = u16::from(layout.sci).into();
    // No SMI command port: the machine is in ACPI mode from the start.
    fadt.pm1a_evt_blk = u32::from(pm).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(pm + 4).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = u32::from(timer).into();
    fadt.pm_tmr_len = 4;
    fadt.gpe0_blk = u32::from(gpe0).into();
    fadt.gpe0_blk_len = 16;
    fadt.x_pm1a_evt_blk = ports(pm, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = ports(pm + 4, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = ports(timer, 32, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = ports(gpe0, 128, AccessSize::ByteAccess);
    // Latencies above 100 and 1000 us say that there is no C2 and no C3.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = RTC_CENTURY;
    // 5.2.9.3 "IA-PC Boot Architecture Flags": legacy devices, 8042, VGA not present.
    let mut boot = 1 | 1 << 1;
    if !layout.vga {
        boot |= 1 << 2;
    }
    fadt.iapc_boot_arch = boot.into();
    fadt.reset_reg = ports(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    fadt = fadt
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::UsePlatformClock);
    if layout.pm_timer_bits == 32 {
        fadt = fadt.flag(Flags::TmrValExt);
    }
    fadt.finalize()
}

/// 5.2.12 "Multiple APIC Description Table", revision 5 as goes with FADT 6.3.
fn madt(layout: &Layout) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 44, 5, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.write_u32(36, layout.lapic_base);
    // PCAT_COMPAT: there is a pair of 8259s.
    madt.write_u32(40, 1);
    const ENABLED: u32 = 1;
    for id in 0..layout.processors {
        match u8::try_from(id) {
            Ok(short) if id < FIRST_X2APIC_ID => {
                // 5.2.12.2 "Processor Local APIC Structure".
                madt.append_slice(&[0, 8, short, short]);
                madt.append_slice(&ENABLED.to_le_bytes());
            }
            _ => {
                // 5.2.12.12 "Processor Local x2APIC Structure".
                madt.append_slice(&[9, 16, 0, 0]);
                for field in [id, ENABLED, id] {
                    madt.append_slice(&field.to_le_bytes());
                }
            }
        }
    }
    // 5.2.12.3 "I/O APIC Structure", with all interrupts from 0 on.
    madt.append_slice(&[1, 12, layout.ioapic_id, 0]);
    madt.append_slice(&layout.ioapic_base.to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    // 5.2.12.5 "Interrupt Source Override Structure": the 8254 is at input 2; SCI is level-triggered, active high.
    const CONFORMING: u16 = 0;
    const LEVEL_HIGH: u16 = 0b1101;
    for (irq, gsi, flags) in [(0, 2, CONFORMING), (layout.sci, layout.sci, LEVEL_HIGH)] {
        madt.append_slice(&[2, 10, 0, irq]);
        madt.append_slice(&u32::from(gsi).to_le_bytes());
        madt.append_slice(&flags.to_le_bytes());
    }
    // 5.2.12.7 "Local APIC NMI Structure": LINT1 of all processors.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    if layout.processors > FIRST_X2APIC_ID {
        // 5.2.12.13 "Local x2APIC NMI Structure".
        madt.append_slice(&[0x0a, 12, 0, 0]);
        madt.append_slice(&u32::MAX.to_le_bytes());
        madt.append_slice(&[1, 0, 0, 0]);
    }
    madt
}

/// IA-PC HPET 1.0a 3.2.4 "The ACPI 2.0 HPET Description Table".
fn hpet_table(hpet: &Hpet) -> Sdt {
    let mut table = Sdt::new(*b"HPET", 56, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.write_u32(36, hpet.block_id);
    let address = GenericAddress {
        address_space_id: 0,
        register_bit_width: 64,
        register_bit_offset: 0,
        access_size: 0,
        address: hpet.base,
    };
    table.write(40, address);
    table
}

/// PCI Firmware 3.2 4.1.2 "MCFG Table Description".
fn mcfg(layout: &Layout) -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout.ecam.start, 0, 0, layout.last_bus());
    bytes(&mcfg)
}

/// WAET: one read of the PM timer is enough. The RTC does want register C read, so its bit stays clear.
fn waet() -> Sdt {
    const PM_TIMER_GOOD: u32 = 1 << 1;
    let mut waet = Sdt::new(*b"WAET", 40, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    waet.write_u32(36, PM_TIMER_GOOD);
    waet
}
