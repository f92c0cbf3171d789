//! Tests of the emulator on the host, over [`Bench`]: a scripted vCPU, sparse RAM and a recording device.

extern crate std;

mod basics;
mod faults;
mod fuzz;
mod paging;
mod segments;
mod strings;
mod vectors;

use super::*;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use memory::SparseMemory;
use vcpu::{AccessKind, ArchState, Gpr, ScriptedVcpu, Segment, SegmentAttributes, SegmentName, cr0, cr4, efer};

/// Where device space begins; everything from here on is a device.
pub const DEVICE: u64 = 0xfee0_0000;
/// Where the instruction is put.
pub const CODE: u64 = 0x1000;
/// RAM for operands.
pub const DATA: u64 = 0x4000;
/// The bytes of RAM, from 0.
pub const RAM: u64 = 0x20_0000;

/// A machine of one vCPU for the emulator to work on.
pub struct Bench {
    pub vcpu: ScriptedVcpu,
    pub ram: Arc<SparseMemory>,
    /// What the device answers: this value's low bytes, at any address.
    pub answer: u64,
    /// Every device access: address, bytes; written data is recorded, read data is the answer.
    pub reads: Vec<(u64, usize)>,
    pub writes: Vec<(u64, Vec<u8>)>,
    pub port_reads: Vec<(u16, Width)>,
    pub port_writes: Vec<(u16, Width, u32)>,
    pub limits: PagingLimits,
    /// How many elements pass before a repeated string pauses.
    pub patience: Cell<u32>,
    pub emulator: Option<Emulator>,
}

impl Context for Bench {
    type Cpu = ScriptedVcpu;
    type Memory = SparseMemory;

    fn cpu(&self) -> &ScriptedVcpu {
        &self.vcpu
    }
    fn cpu_mut(&mut self) -> &mut ScriptedVcpu {
        &mut self.vcpu
    }
    fn memory(&self) -> &SparseMemory {
        &self.ram
    }
    fn paging_limits(&self) -> PagingLimits {
        self.limits
    }
    fn fetch_outside_ram(&self, _gpa: Gpa, _into: &mut [u8]) -> bool {
        false
    }
    fn device_read(&mut self, gpa: Gpa, into: &mut [u8]) {
        assert!(matches!(into.len(), 1 | 2 | 4 | 8) && gpa.0.is_multiple_of(into.len() as u64));
        self.reads.push((gpa.0, into.len()));
        into.copy_from_slice(&self.answer.to_le_bytes()[..into.len()]);
    }
    fn device_write(&mut self, gpa: Gpa, from: &[u8]) {
        assert!(matches!(from.len(), 1 | 2 | 4 | 8) && gpa.0.is_multiple_of(from.len() as u64));
        self.writes.push((gpa.0, from.to_vec()));
    }
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        self.port_reads.push((port, width));
        self.answer as u32
    }
    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.port_writes.push((port, width, value));
    }
    fn should_pause(&self) -> bool {
        self.patience.set(self.patience.get().saturating_sub(1));
        self.patience.get() == 0
    }
}

impl Bench {
    fn new(state: ArchState) -> Bench {
        Bench {
            vcpu: ScriptedVcpu::new(state, []),
            ram: Arc::new(SparseMemory::new(&[(0, RAM)])),
            answer: 0x8877_6655_4433_2211,
            reads: Vec::new(),
            writes: Vec::new(),
            port_reads: Vec::new(),
            port_writes: Vec::new(),
            limits: PagingLimits { physical_address_bits: 40, gigabyte_pages: true },
            patience: Cell::new(u32::MAX),
            emulator: Some(Emulator::new()),
        }
    }

    /// 64-bit mode at CPL 0, paging on with identity-mapped gigabyte pages for the low 512 GiB.
    pub fn long() -> Bench {
        let mut state = flat(Segment::flat_code64(8));
        state.cr0 |= cr0::PG;
        state.cr4 |= cr4::PAE;
        state.efer = efer::LME | efer::LMA | efer::NXE;
        state.cr3 = TABLES;
        let bench = Bench::new(state);
        bench.ram.store(Gpa(TABLES), Width::Qword, (TABLES + 0x1000) | ALL_RIGHTS).unwrap();
        for gigabyte in 0..512u64 {
            let at = Gpa(TABLES + 0x1000 + gigabyte * 8);
            bench.ram.store(at, Width::Qword, gigabyte << 30 | LARGE_LEAF).unwrap();
        }
        bench
    }

    /// Protected mode, flat 32-bit segments, CPL 0, no paging.
    pub fn flat32() -> Bench {
        Bench::new(flat(Segment::flat_code32(8)))
    }

    /// Real mode, all segments based at 0.
    pub fn real() -> Bench {
        let mut state = ArchState::reset(0);
        state.segments[SegmentName::Cs as usize] = Segment::real_mode(0);
        state.rip = CODE;
        Bench::new(state)
    }

    /// Protected mode with 32-bit paging: the low 8 MiB are identity-mapped by 4 KiB pages, device space by a 4 MiB page.
    pub fn paged32() -> Bench {
        let mut bench = Bench::flat32();
        bench.vcpu.state.cr0 |= cr0::PG | cr0::WP;
        bench.vcpu.state.cr4 |= cr4::PSE;
        bench.vcpu.state.cr3 = TABLES;
        for table in 0..2u64 {
            bench.poke32(TABLES + table * 4, (TABLES + 0x1000 + table * 0x1000) | ALL_RIGHTS);
        }
        for page in 0..2048u64 {
            bench.poke32(TABLES + 0x1000 + page * 4, page << 12 | 0x67);
        }
        bench.poke32(TABLES + (DEVICE >> 22) * 4, DEVICE & 0xffc0_0000 | LARGE_LEAF);
        bench
    }

    /// PAE paging: 4 KiB pages for the low 2 MiB, a 2 MiB page for device space.
    pub fn pae() -> Bench {
        let mut bench = Bench::flat32();
        bench.vcpu.state.cr0 |= cr0::PG | cr0::WP;
        bench.vcpu.state.cr4 |= cr4::PAE;
        bench.vcpu.state.efer = efer::NXE;
        bench.vcpu.state.cr3 = TABLES + 0x20;
        for quarter in 0..4u64 {
            bench.poke64(TABLES + 0x20 + quarter * 8, (TABLES + 0x1000 + quarter * 0x1000) | 1);
        }
        bench.poke64(TABLES + 0x1000, (TABLES + 0x8000) | ALL_RIGHTS);
        for page in 0..512u64 {
            bench.poke64(TABLES + 0x8000 + page * 8, page << 12 | 0x67);
        }
        bench.poke64(TABLES + 0x4000 + (DEVICE >> 21 & 0x1ff) * 8, DEVICE & !0x1f_ffff | LARGE_LEAF);
        bench
    }

    /// As [`Bench::long`], but the low 2 MiB are mapped by 4 KiB pages through [`SMALL_PAGES`].
    pub fn long_small() -> Bench {
        let mut bench = Bench::long();
        bench.vcpu.state.cr0 |= cr0::WP;
        bench.poke64(TABLES + 0x1000, (TABLES + 0x2000) | ALL_RIGHTS);
        bench.poke64(TABLES + 0x2000, SMALL_PAGES | ALL_RIGHTS);
        for page in 0..512u64 {
            bench.poke64(SMALL_PAGES + page * 8, page << 12 | 0x67);
        }
        bench
    }

    pub fn poke32(&mut self, at: u64, value: u64) -> &mut Bench {
        self.poke(at, &(value as u32).to_le_bytes())
    }

    pub fn poke64(&mut self, at: u64, value: u64) -> &mut Bench {
        self.poke(at, &value.to_le_bytes())
    }

    /// Moves to CPL 3.
    pub fn user(mut self) -> Bench {
        for name in [SegmentName::Cs, SegmentName::Ss] {
            let segment = &mut self.vcpu.state.segments[name as usize];
            segment.attributes = segment.attributes.with_dpl(3);
        }
        self
    }

    pub fn set(&mut self, register: Gpr, value: u64) -> &mut Bench {
        self.vcpu.state.gprs.set(register, value);
        self
    }

    pub fn gpr(&self, register: Gpr) -> u64 {
        self.vcpu.state.gprs.get(register)
    }

    pub fn poke(&mut self, at: u64, bytes: &[u8]) -> &mut Bench {
        self.ram.write(Gpa(at), bytes).unwrap();
        self
    }

    pub fn peek(&self, at: u64) -> u64 {
        self.ram.load(Gpa(at), Width::Qword).unwrap()
    }

    /// Puts `code` at RIP, which is taken as linear and physical.
    pub fn code(&mut self, code: &[u8]) -> &mut Bench {
        let rip = self.vcpu.state.rip;
        self.poke(rip, code)
    }

    /// Emulates the instruction at RIP as if its exit said nothing.
    pub fn run(&mut self) -> Outcome {
        let mut emulator = self.emulator.take().unwrap();
        let outcome = emulator.instruction(self);
        self.emulator = Some(emulator);
        outcome
    }

    /// Emulates the instruction at RIP as the answer to an exit on `gpa`.
    pub fn access(&mut self, gpa: u64, kind: AccessKind) -> Outcome {
        let mut emulator = self.emulator.take().unwrap();
        let request = MemoryAccess {
            gpa: Gpa(gpa),
            kind,
            in_page_walk: false,
            during_event_delivery: false,
            bytes: ([0; 15], 0),
        };
        let outcome = emulator.access(self, &request);
        self.emulator = Some(emulator);
        outcome
    }

    pub fn length(&mut self, expected: Exiting) -> Result<Length, Stop> {
        let mut emulator = self.emulator.take().unwrap();
        let length = emulator.length(self, expected);
        self.emulator = Some(emulator);
        length
    }
}

/// Where [`Bench::long`] has its tables: one page of PML4, one of directory pointers.
pub const TABLES: u64 = 0x10_0000;
/// The page table of [`Bench::long_small`].
pub const SMALL_PAGES: u64 = TABLES + 0x3000;
/// Present, writable, user, accessed.
pub const ALL_RIGHTS: u64 = 0x27;
/// The same, dirty, and a large page.
pub const LARGE_LEAF: u64 = 0xe7;

fn flat(code: Segment) -> ArchState {
    let mut state = ArchState::reset(0);
    state.segments[..6].fill(Segment::flat_data(16));
    state.segments[SegmentName::Cs as usize] = code;
    state.cr0 = cr0::PE | cr0::ET;
    state.cr4 = cr4::OSFXSR;
    state.rip = CODE;
    state
}

/// A complete instruction of `bytes`.
pub fn complete(bytes: u8) -> Outcome {
    Outcome::Complete(Length::new(bytes).unwrap())
}

/// #PF with this error code at this address.
pub fn page_fault(code: u32, address: u64) -> Outcome {
    Outcome::Fault(Exception::page_fault(code, address))
}

/// #GP(0).
pub const GP: Outcome = Outcome::Fault(Exception::general_protection(0));
/// #SS(0).
pub const SS: Outcome = Outcome::Fault(Exception::stack(0));

/// A data segment with these attributes.
pub fn segment(attributes: u32, base: u64, limit: u32) -> Segment {
    Segment { selector: 24, attributes: SegmentAttributes::from_bits(attributes), limit, base }
}
