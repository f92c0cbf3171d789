//! One instruction for the emulator: any bytes, any state, any page tables; and the walk of those tables.

use crate::guest::{self, CODE, Ram, SharedRam};
use crate::heap::without_allocating;
use crate::input::Input;
use machine::emulate::{Context, Emulator, Exiting, Outcome, PagingLimits, Privilege, Stop, translate};
use machine::report::paging::{End, Walk, instruction};
use memory::{Gpa, GuestMemory, Width};
use std::cell::Cell;
use vcpu::{AccessKind, CodeSize, Exception, MemoryAccess, PortString, ScriptedVcpu, Vcpu};

/// Most device accesses of one call, a chunk of a repeated string instruction included.
const MOST_ACCESSES: u32 = 20_000;

/// The machine around the instruction.
struct Bench {
    vcpu: ScriptedVcpu,
    ram: SharedRam,
    limits: PagingLimits,
    accesses: u32,
    patience: Cell<u32>,
    answer: u64,
}

impl Bench {
    fn accessed(&mut self, gpa: Gpa, bytes: usize) {
        assert!(matches!(bytes, 1 | 2 | 4 | 8) && gpa.0.is_multiple_of(bytes as u64), "{bytes} bytes at {gpa}");
        assert!(!self.ram.is_ram(gpa, bytes as u64), "{gpa} is RAM, not a device");
        self.count();
    }

    fn count(&mut self) {
        self.accesses += 1;
        assert!(self.accesses <= MOST_ACCESSES, "one call accessed devices {MOST_ACCESSES} times");
        self.answer = self.answer.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    }
}

impl Context for Bench {
    type Cpu = ScriptedVcpu;
    type Memory = SharedRam;

    fn cpu(&self) -> &ScriptedVcpu {
        &self.vcpu
    }
    fn cpu_mut(&mut self) -> &mut ScriptedVcpu {
        &mut self.vcpu
    }
    fn memory(&self) -> &SharedRam {
        &self.ram
    }
    fn paging_limits(&self) -> PagingLimits {
        self.limits
    }
    fn fetch_outside_ram(&self, gpa: Gpa, into: &mut [u8]) -> bool {
        into.fill(0xa4);
        gpa.0 >> 12 == 0xf_ffff
    }
    fn device_read(&mut self, gpa: Gpa, into: &mut [u8]) {
        self.accessed(gpa, into.len());
        into.copy_from_slice(&self.answer.to_le_bytes()[..into.len()]);
    }
    fn device_write(&mut self, gpa: Gpa, from: &[u8]) {
        self.accessed(gpa, from.len());
    }
    fn port_read(&mut self, _port: u16, width: Width) -> u32 {
        assert!(width <= Width::Dword);
        self.count();
        self.answer as u32
    }
    fn port_write(&mut self, _port: u16, width: Width, _value: u32) {
        assert!(width <= Width::Dword);
        self.count();
    }
    fn should_pause(&self) -> bool {
        self.patience.set(self.patience.get().saturating_sub(1));
        self.patience.get() == 0
    }
}

/// Whether the bytes may be an instruction that can end with a fault in the middle of its work.
fn may_be_a_string(code: &[u8]) -> bool {
    code.iter().any(|byte| matches!(byte, 0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf))
}

/// RAM as it was at first, and what the script's first byte says of the processor.
fn prepare(script: &mut Input) -> (SharedRam, u8, PagingLimits) {
    let ram = Ram::shared();
    ram.restore();
    let how = script.u8();
    (ram, how, PagingLimits { physical_address_bits: 36 + (how >> 4), gigabyte_pages: how & 8 != 0 })
}

/// Writes into RAM what the script says.
fn scribble(script: &mut Input, ram: &SharedRam) {
    while script.flag() && !script.is_empty() {
        guest::write_ram(script, ram);
    }
}

/// Executes an instruction up to four times, with the same emulator, as the guest runs on.
pub fn play(script: &[u8]) {
    let mut script = Input::new(script);
    let (ram, how, limits) = prepare(&mut script);
    let state = guest::state(&mut script);
    let mut code = [0x90; 16];
    code.copy_from_slice(&script.array::<16>());
    assert_eq!(ram.write(Gpa(CODE), &code), Ok(()));
    let gpa = Gpa(guest::address(&mut script));
    scribble(&mut script, &ram);
    let patience = Cell::new(u32::from(script.u16()).wrapping_sub(1));
    let mut bench = Bench { vcpu: guest::vcpu(state), ram, limits, accesses: 0, patience, answer: script.u64() };
    let mut emulator = Emulator::new();
    for _ in 0..4 {
        let before = bench.vcpu.state.clone();
        let code = instruction(&before, &bench.ram);
        bench.accesses = 0;
        let outcome = without_allocating(|| run(&mut emulator, &mut bench, &code, how, gpa));
        match outcome {
            Outcome::Complete(length) => {
                let next = bench.vcpu.code_size().advance(bench.vcpu.rip(), length.bytes().into());
                assert!(length.bytes() <= 15 && bench.vcpu.rip() == before.rip, "only the backend moves RIP");
                bench.vcpu.state.rip = next;
            }
            Outcome::Jump(target) => bench.vcpu.state.rip = target,
            Outcome::Again => {}
            Outcome::Fault(_) | Outcome::Unsupported(_) => {
                if !code.is_empty() && !may_be_a_string(&code) {
                    assert_eq!(bench.vcpu.state, before, "an instruction that faults has had no effect");
                }
                break;
            }
        }
    }
}

fn run(emulator: &mut Emulator, bench: &mut Bench, code: &[u8], how: u8, gpa: Gpa) -> Outcome {
    let kind = match how & 3 {
        0 => AccessKind::Read,
        _ => AccessKind::Write,
    };
    match how & 7 {
        0..=2 => emulator.instruction(bench),
        3 => emulator.port_string(bench, &PortString { port: gpa.0 as u16, width: Width::Byte, access: kind }),
        4 => match emulator.length(bench, Exiting::Cpuid) {
            Ok(length) => Outcome::Complete(length),
            Err(_) => Outcome::Again,
        },
        // The machine hands over no access to RAM.
        _ if bench.ram.is_ram(gpa, 1) => emulator.instruction(bench),
        _ => {
            // What the processor hands over where it has decode assists: the bytes that are in memory.
            let mut bytes = ([0; 15], 0);
            if how & 7 == 5 {
                bytes.1 = code.len() as u8;
                bytes.0[..code.len()].copy_from_slice(code);
            }
            let (in_page_walk, during_event_delivery) = (how & 7 == 6, false);
            emulator.access(bench, &MemoryAccess { gpa, kind, in_page_walk, during_event_delivery, bytes })
        }
    }
}

/// Translates addresses by the emulator's walk and by the report's, which was written apart from it: where the one finds a
/// page, so does the other, and what is not present faults.
pub fn walk(script: &[u8]) {
    let mut script = Input::new(script);
    let (ram, _, limits) = prepare(&mut script);
    let state = guest::state(&mut script);
    scribble(&mut script, &ram);
    let mut bench = Bench { vcpu: guest::vcpu(state), ram, limits, accesses: 0, patience: Cell::new(1), answer: 0 };
    while !script.is_empty() {
        let choice = script.u8();
        let mut linear = guest::address(&mut script);
        if bench.vcpu.code_size() != CodeSize::Bits64 {
            linear &= 0xffff_ffff;
        }
        let kind = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch][usize::from(choice % 3)];
        let privilege = [Privilege::User, Privilege::Supervisor, Privilege::Implicit][usize::from(choice / 3 % 3)];
        let shown = Walk::new(&bench.vcpu.state, &bench.ram, "linear", linear).end;
        if shown == End::NotCanonical {
            // The caller's to refuse.
            continue;
        }
        let found = without_allocating(|| translate(&bench, linear, kind, privilege));
        match (found, shown) {
            (Ok(gpa), End::Ram(other) | End::Device(other)) => {
                assert_eq!(gpa.0, other, "{linear:#x}");
                assert!(bench.ram.is_ram(gpa, 1) == (shown == End::Ram(other)));
            }
            (Err(Stop::Fault(exception)), _) => assert_eq!(exception.vector(), Exception::PF, "{linear:#x}"),
            (Err(Stop::Refused(_)), End::Ram(_) | End::Device(_)) => {}
            (Err(Stop::Refused(_)), End::TableOutsideRam) => {}
            (found, shown) => panic!("{linear:#x}: {found:?}, but the report says {shown:?}"),
        }
        if choice & 0x80 != 0 {
            guest::write_ram(&mut script, &bench.ram);
        }
        let alignment = if choice & 0x40 != 0 { vcpu::rflags::AC } else { 0 };
        bench.vcpu.set_rflags(bench.vcpu.rflags() ^ alignment);
    }
}
