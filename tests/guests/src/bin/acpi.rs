//! Firmware tables as the guest finds them: checksums, lengths, the tables an operating system needs, and what they say.

#![no_std]
#![no_main]

use guest::report::{check, equal};
use guest::{acpi, apic, cpu, ioapic};

guest::guest!("acpi", run);

fn run() {
    let Some(root) = acpi::root_pointer() else {
        return check("root-pointer", false, format_args!("there is none"));
    };
    check("root-pointer-sums-up", acpi::sums_up(&root[..20]), format_args!("{root:x?}"));
    check("extended-root-pointer-sums-up", root.len() < 36 || acpi::sums_up(root), format_args!("{root:x?}"));
    for table in acpi::tables() {
        let name = core::str::from_utf8(&table[..4]).unwrap_or("????");
        check("table-sums-up", acpi::sums_up(table), format_args!("{name}"));
    }
    for signature in [b"FACP", b"APIC", b"HPET", b"MCFG"] {
        let name = core::str::from_utf8(signature).unwrap_or("????");
        check("table-is-there", acpi::find(signature).is_some(), format_args!("{name}"));
    }
    fixed();
    interrupts();
    timer_and_bus();
}

fn dword(table: &[u8], at: usize) -> u32 {
    table.get(at..at + 4).map_or(0, |bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// The FADT leads to the DSDT, the FACS and the PM registers.
fn fixed() {
    let Some(table) = acpi::find(b"FACP") else { return };
    let definition = acpi::table(dword(table, 40).into());
    equal("dsdt", (&definition[..4], acpi::sums_up(definition)), (&b"DSDT"[..], true));
    let control = acpi::memory(dword(table, 36).into(), 64);
    equal("facs", &control[..4], b"FACS");
    equal("facs-is-aligned", dword(table, 36) % 64, 0);
    equal("pm-timer-port", dword(table, 76), guest::clock::PORT.into());
    equal("pm1-event-port", dword(table, 56), 0x600);
    equal("pm1-control-port", dword(table, 64), 0x604);
    equal("sci", table[46], 9);
}

/// The MADT names this processor, the IOAPIC and the overrides that a PC has.
fn interrupts() {
    check("own-id-is-named", acpi::processors().any(|id| id == apic::id().into()), format_args!("{}", apic::id()));
    let Some(table) = acpi::find(b"APIC") else { return };
    equal("local-apic-address", u64::from(dword(table, 36)), apic::BASE);
    let mut rest = &table[44..];
    let (mut controllers, mut timer_override) = (0, false);
    while rest.len() >= 2 {
        let length = usize::from(rest[1]).clamp(2, rest.len());
        let entry = &rest[..length];
        match entry[0] {
            1 if length >= 12 => {
                controllers += 1;
                equal("ioapic-address", u64::from(dword(entry, 4)), ioapic::BASE);
                equal("ioapic-starts-at-zero", dword(entry, 8), 0);
            }
            2 if length >= 10 && entry[3] == 0 => timer_override = dword(entry, 4) == 2,
            _ => {}
        }
        rest = &rest[length..];
    }
    equal("one-ioapic", controllers, 1);
    equal("timer-on-pin-2", timer_override, true);
}

fn timer_and_bus() {
    if let Some(table) = acpi::find(b"HPET") {
        equal("hpet-address", u64::from(dword(table, 44)), guest::hpet::BASE);
        equal("hpet-block-id", dword(table, 36), cpu::mmio_read32(guest::hpet::BASE));
    }
    if let Some(table) = acpi::find(b"MCFG") {
        let base = u64::from(dword(table, 44));
        equal("ecam-shows-the-host-bridge", cpu::mmio_read32(base), 0x29c0_8086);
    }
}
