extern crate std;

use super::*;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, println, process};

const RSDP_AT: u64 = 0xf_0000;
const TABLES_AT: u64 = 0x1fff_0000;

fn layout() -> Layout {
    Layout {
        processors: 2,
        lapic_base: 0xfee0_0000,
        ioapic_id: 0,
        ioapic_base: 0xfec0_0000,
        hpet: Some(Hpet { base: 0xfed0_0000, block_id: 0x8086_a201 }),
        ecam: Window { start: 0xb000_0000, size: 0x1000_0000 },
        pci_memory: Window { start: 0xc000_0000, size: 0x3ec0_0000 },
        pci_memory_high: Some(Window { start: 0x8_0000_0000, size: 0x4_0000_0000 }),
        pm_base: 0x600,
        pm_timer_bits: 24,
        sci: 9,
        serial: vec![SerialPort { port: 0x3f8, irq: 4 }, SerialPort { port: 0x2f8, irq: 3 }],
        vga: false,
    }
}

/// Guest memory as far as the tables fill it.
struct Memory(Placed);

impl Memory {
    fn of(layout: &Layout) -> Memory {
        Memory(build(layout).place(RSDP_AT, TABLES_AT).unwrap())
    }
    fn at(&self, address: u64, len: usize) -> &[u8] {
        for (start, bytes) in self.0.pieces() {
            if let Some(offset) = address.checked_sub(start).map(|offset| offset as usize)
                && offset < bytes.len()
            {
                return &bytes[offset..offset + len];
            }
        }
        panic!("{address:#x} is in no table");
    }
    fn number(&self, address: u64, len: usize) -> u64 {
        self.at(address, len).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
    /// A table by its address, its checksum verified.
    fn table(&self, address: u64) -> &[u8] {
        let table = self.at(address, self.number(address + 4, 4) as usize);
        assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(&table[..4]));
        table
    }
    /// The addresses in the XSDT, found as an operating system does.
    fn listed(&self) -> vec::Vec<u64> {
        assert_eq!(self.at(RSDP_AT, 8), b"RSD PTR ");
        assert_eq!(sum(self.at(RSDP_AT, 20)), 0);
        assert_eq!(sum(self.at(RSDP_AT, 36)), 0);
        let xsdt = self.number(RSDP_AT + 24, 8);
        let len = self.table(xsdt).len() as u64;
        (36..len).step_by(8).map(|offset| self.number(xsdt + offset, 8)).collect()
    }
    fn find(&self, signature: &[u8; 4]) -> Option<u64> {
        self.listed().into_iter().find(|address| self.at(*address, 4) == signature)
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn all_tables_are_found_from_the_rsdp_and_add_up() {
    let memory = Memory::of(&layout());
    let names: vec::Vec<_> =
        memory.listed().iter().map(|at| String::from_utf8_lossy(&memory.table(*at)[..4]).to_string()).collect();
    assert_eq!(names, ["FACP", "APIC", "HPET", "MCFG", "WAET"]);
    let fadt = memory.find(b"FACP").unwrap();
    let (dsdt, facs) = (memory.number(fadt + 40, 4), memory.number(fadt + 36, 4));
    assert_eq!(memory.number(fadt + 140, 8), dsdt);
    assert_eq!(&memory.table(dsdt)[..4], b"DSDT");
    assert_eq!(memory.at(facs, 4), b"FACS");
    assert_eq!((facs % 64, memory.number(facs + 4, 4)), (0, 64));
}

#[test]
fn the_fadt_describes_the_power_management_block() {
    let memory = Memory::of(&layout());
    let fadt = memory.find(b"FACP").unwrap();
    let field = |offset, len| memory.number(fadt + offset, len);
    assert_eq!(field(46, 2), 9, "SCI");
    assert_eq!((field(48, 4), field(52, 1)), (0, 0), "no SMI command port");
    assert_eq!((field(56, 4), field(88, 1)), (0x600, 4), "PM1a event");
    assert_eq!((field(64, 4), field(89, 1)), (0x604, 2), "PM1a control");
    assert_eq!((field(76, 4), field(91, 1)), (0x608, 4), "PM timer");
    assert_eq!((field(80, 4), field(92, 1)), (0x620, 16), "GPE0");
    assert_eq!(field(108, 1), 0x32, "century");
    assert_eq!(field(109, 2), 0b111, "legacy devices, 8042, no VGA");
    assert_eq!(field(112, 4) & (1 << 20), 0, "not hardware-reduced");
    assert_eq!((field(116, 1), field(120, 8), field(128, 1)), (1, 0xcf9, 6), "reset register");
    assert_eq!(field(112, 4) & (1 << 8), 0, "24-bit timer");
    let wide = Memory::of(&Layout { pm_timer_bits: 32, ..layout() });
    assert_eq!(wide.number(wide.find(b"FACP").unwrap() + 112, 4) & (1 << 8), 1 << 8);
}

#[test]
fn the_madt_lists_processors_ioapic_overrides_and_nmi() {
    let memory = Memory::of(&layout());
    let madt = memory.table(memory.find(b"APIC").unwrap());
    let expected: &[&[u8]] = &[
        &[0x00, 0x00, 0xe0, 0xfe, 1, 0, 0, 0],
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[1, 12, 0, 0, 0x00, 0x00, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0],
        &[4, 6, 0xff, 0, 0, 1],
    ];
    assert_eq!(&madt[36..], expected.concat());
}

#[test]
fn processors_whose_id_needs_it_have_x2apic_entries() {
    let memory = Memory::of(&Layout { processors: 257, ..layout() });
    let madt = memory.table(memory.find(b"APIC").unwrap());
    let (mut rest, mut kinds) = (&madt[44..], vec![]);
    while let [kind, len, ..] = *rest {
        if kind == 9 {
            assert_eq!(rest[4..8], rest[12..16], "the UID is the id");
        }
        kinds.push(kind);
        rest = &rest[usize::from(len)..];
    }
    let count = |kind| kinds.iter().filter(|other| **other == kind).count();
    assert_eq!((count(0), count(9), count(4), count(0x0a)), (255, 2, 1, 1));
}

#[test]
fn hpet_and_mcfg_say_where_their_registers_are() {
    let memory = Memory::of(&layout());
    let hpet = memory.find(b"HPET").unwrap();
    assert_eq!((memory.number(hpet + 36, 4), memory.number(hpet + 44, 8)), (0x8086_a201, 0xfed0_0000));
    let mcfg = memory.find(b"MCFG").unwrap();
    assert_eq!((memory.number(mcfg + 44, 8), memory.number(mcfg + 54, 2)), (0xb000_0000, 0xff00));
    assert_eq!(Memory::of(&Layout { hpet: None, ..layout() }).find(b"HPET"), None);
}

#[test]
fn the_loader_notes_give_the_same_tables_anywhere() {
    let tables = build(&layout());
    let placed = tables.place(0xe_0010, 0x7ff0_0000).unwrap();
    let moved = tables.place(0xe_0010, 0x1000_0000).unwrap();
    for pointer in tables.pointers() {
        let read = |placed: &Placed| {
            let bytes = if pointer.blob == Blob::Rsdp { &placed.rsdp } else { &placed.tables };
            bytes[pointer.offset..pointer.offset + pointer.size].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b))
        };
        assert_eq!(read(&placed) - 0x7ff0_0000, read(&moved) - 0x1000_0000);
    }
    assert_eq!(tables.pointers().len(), 9);
    assert!(tables.reserved() >= tables.blob(Blob::Tables).len() as u64);
}

#[test]
fn places_where_nobody_finds_the_tables_are_refused() {
    let tables = build(&layout());
    for rsdp in [0xd_fff0, 0xf_fff0, 0xf_0008] {
        assert_eq!(tables.place(rsdp, TABLES_AT).err(), Some(PlacementError::RsdpNotFindable(rsdp)));
    }
    for at in [0x1fff_0010, 0xffff_f000, u64::MAX - 0xfff] {
        assert_eq!(tables.place(RSDP_AT, at).err(), Some(PlacementError::TablesOutOfReach(at)));
    }
}

/// A folder for one test's files, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = env::temp_dir().join(format!("gearshift-{name}-{}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a tool of acpica-tools and gives what it said; `None`, with a note, if the tool is not installed.
fn acpica(tool: &str, folder: &Path, arguments: &[&str]) -> Option<String> {
    match Command::new(tool).args(arguments).current_dir(folder).output() {
        Ok(output) => Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()),
        Err(_) => {
            println!("SKIPPED: {tool} is not installed (acpica-tools)");
            None
        }
    }
}

/// All tables as files, named as their signatures.
fn write_tables(folder: &Path, layout: &Layout) -> vec::Vec<String> {
    let memory = Memory::of(layout);
    let mut listed = memory.listed();
    let fadt = memory.find(b"FACP").unwrap();
    listed.push(memory.number(fadt + 40, 4));
    let mut names = vec![];
    for at in listed {
        let table = memory.table(at);
        let name = String::from_utf8_lossy(&table[..4]).to_string();
        fs::write(folder.join(format!("{name}.aml")), table).unwrap();
        names.push(name);
    }
    fs::write(folder.join("FACS.aml"), memory.at(memory.number(fadt + 36, 4), 64)).unwrap();
    names.push("FACS".to_string());
    names
}

#[test]
fn iasl_finds_no_error_and_no_warning() {
    let scratch = Scratch::new("iasl");
    for processors in [1, 4] {
        let layout = Layout { processors, ..layout() };
        for name in write_tables(&scratch.0, &layout) {
            let Some(_) = acpica("iasl", &scratch.0, &["-d", &format!("{name}.aml")]) else { return };
            let said = acpica("iasl", &scratch.0, &["-p", "again", &format!("{name}.dsl")]).unwrap();
            assert!(said.contains("0 Errors, 0 Warnings"), "{name}:\n{said}");
        }
    }
}

#[test]
fn the_methods_run_in_an_interpreter() {
    let scratch = Scratch::new("acpiexec");
    write_tables(&scratch.0, &layout());
    let run = |command: &str| acpica("acpiexec", &scratch.0, &["-b", command, "DSDT.aml"]);
    for (command, expected) in [
        // Slot 31, INTD#: PIRQD. The other routing, by links, is too long for the tool's buffer.
        ("execute \\_PIC 1; execute \\_SB.PCI0._PRT", "[Integer] = 0000000000000013"),
        ("execute \\_SB.PCI0._CRS", "[Buffer]"),
        ("execute \\_SB.LNKA._SRS (89 06 00 0D 01 0B 00 00 00 79 00); execute \\_SB.LNKA._CRS", "0B 00 00 00 79"),
        ("execute \\_SB.LNKE._STA", "[Integer] = 000000000000000B"),
        // PCI's UUID, revision 1, all asked for: the answer says that hot plug was masked.
        (
            "execute \\_SB.PCI0._OSC (5B 4D DB 33 F7 1F 1C 40 96 57 74 41 C0 3D D7 66) 1 3 \
             (00 00 00 00 1F 00 00 00 FF 01 00 00)",
            "10 00 00 00 1F 00 00 00 3C 00 00 00",
        ),
        ("execute \\_S5_", "[Package]"),
    ] {
        let Some(said) = run(command) else { return };
        assert!(said.contains(expected), "{command} does not give {expected}:\n{said}");
        assert!(!said.contains("Error"), "{command}:\n{said}");
    }
}
