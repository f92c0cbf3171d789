//! Guest images for the direct loaders.

use crate::input::Input;
use machine::loader::{self, MemoryLayout, Module, Payload, Region, RegionKind};
use memory::{Gpa, GuestMemory, NotRam, SparseMemory, Width};
use std::cell::Cell;

const MIB: u64 = 1 << 20;

/// Guest RAM that counts: an image of a few KiB must not make its loader write more than all RAM a few times over.
struct Counted {
    ram: SparseMemory,
    written: Cell<u64>,
}

impl Counted {
    fn count(&self, bytes: u64) {
        self.written.set(self.written.get() + bytes);
        assert!(self.written.get() <= 4 * TOP, "the loader writes over and over");
    }
}

/// Where RAM ends.
const TOP: u64 = 2 * MIB;

impl GuestMemory for Counted {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), NotRam> {
        self.ram.read(gpa, into)
    }
    fn write(&self, gpa: Gpa, from: &[u8]) -> Result<(), NotRam> {
        self.count(from.len() as u64);
        self.ram.write(gpa, from)
    }
    fn load(&self, gpa: Gpa, width: Width) -> Result<u64, NotRam> {
        self.ram.load(gpa, width)
    }
    fn store(&self, gpa: Gpa, width: Width, value: u64) -> Result<(), NotRam> {
        self.count(8);
        self.ram.store(gpa, width, value)
    }
    fn compare_exchange(&self, gpa: Gpa, width: Width, current: u64, new: u64) -> Result<Result<u64, u64>, NotRam> {
        self.count(8);
        self.ram.compare_exchange(gpa, width, current, new)
    }
    fn is_ram(&self, gpa: Gpa, len: u64) -> bool {
        self.ram.is_ram(gpa, len)
    }
    fn fill(&self, gpa: Gpa, _value: u8, len: u64) -> Result<(), NotRam> {
        // Not carried out: it is always RAM here or refused, and costs most of the time.
        if !self.is_ram(gpa, len) {
            return Err(NotRam { gpa, len: usize::try_from(len).unwrap_or(usize::MAX) });
        }
        self.count(len);
        Ok(())
    }
}

/// Loads an image with modules and a command line as the first bytes say.
pub fn load(script: &[u8]) {
    thread_local! {
        static RAM: Counted = Counted { ram: SparseMemory::new(&[(0, TOP)]), written: Cell::new(0) };
    }
    let mut script = Input::new(script);
    let shape = script.u8();
    let region = |start, end, kind| Region { start: Gpa(start), len: end - start, kind };
    let regions = [
        region(0, 0x9_fc00, RegionKind::Usable),
        region(0xf_0000, MIB, RegionKind::Reserved),
        region(MIB, TOP - 0x1_0000, RegionKind::Usable),
        region(TOP - 0x1_0000, TOP, RegionKind::AcpiTables),
    ];
    let layout = MemoryLayout { regions: &regions, rsdp: (shape & 1 != 0).then_some(Gpa(0xf_0000)) };
    let text = script.slice(64);
    let file = Module { bytes: script.slice(64), command_line: text };
    let modules = vec![file; usize::from(shape >> 1 & 3)];
    let long = vec![b'x'; usize::from(shape >> 3) * 100];
    let command_line = if shape & 0x80 != 0 { &long } else { text };
    let payload = Payload { image: script.rest(), modules: &modules, command_line };
    RAM.with(|ram| {
        ram.written.set(0);
        if let Err(error) = loader::load(&payload, &layout, ram) {
            assert!(!error.to_string().contains('\n'), "an error is one line");
        }
    });
}
