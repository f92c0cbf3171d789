//! Tests of the emulator on the host, over [`Bench`]: a scripted vCPU, sparse RAM and a recording device.

mod basics;

use super::*;
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
pub const RAM: u64 = 0x40_0000;

/// A machine of one vCPU for the emulator to work on.
pub struct Bench {
    pub vcpu: ScriptedVcpu,
    pub ram: SparseMemory,
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
            ram: SparseMemory::new(&[(0, RAM)]),
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
        let request = MemoryAccess { gpa: Gpa(gpa), kind, in_page_walk: false, bytes: ([0; 15], 0) };
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

/// #GP(0).
pub const GP: Outcome = Outcome::Fault(Exception::general_protection(0));
/// #SS(0).
pub const SS: Outcome = Outcome::Fault(Exception::stack(0));

/// A data segment with these attributes.
pub fn segment(attributes: u32, base: u64, limit: u32) -> Segment {
    Segment { selector: 24, attributes: SegmentAttributes::from_bits(attributes), limit, base }
}
