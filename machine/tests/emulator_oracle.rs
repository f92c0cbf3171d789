//! The emulator against an independent one: each line of `emulator.golden` says what Unicorn made of an instruction.
//!
//! `tests/oracle/emulator.py` writes the table and describes its lines. Every case runs twice: with its operands in
//! RAM, and with them at a device that keeps what is written to it.

use machine::emulate::{Context, Emulator, Outcome, PagingLimits};
use memory::{Gpa, GuestMemory, SparseMemory, Width};
use std::fmt::Write;
use vcpu::{ArchState, Gpr, ScriptedVcpu, Segment, SegmentName, Vcpu, cr0, cr4, efer};

const CODE: u64 = 0x1000;
const WINDOW: u64 = 0x4000;
const WINDOW_BYTES: usize = 256;
const TABLES: u64 = 0x10000;
/// CF, PF, AF, ZF, SF, DF, OF.
const FLAGS: u64 = 0xcd5;

/// Where the operands are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Operands {
    Ram,
    Device,
}

struct Guest {
    vcpu: ScriptedVcpu,
    ram: SparseMemory,
    device: [u8; WINDOW_BYTES],
    device_accesses: usize,
}

impl Context for Guest {
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
        PagingLimits { physical_address_bits: 40, gigabyte_pages: true }
    }
    fn fetch_outside_ram(&self, _gpa: Gpa, _into: &mut [u8]) -> bool {
        false
    }
    fn device_read(&mut self, gpa: Gpa, into: &mut [u8]) {
        self.device_accesses += 1;
        let at = (gpa.0 - WINDOW) as usize;
        into.copy_from_slice(&self.device[at..at + into.len()]);
    }
    fn device_write(&mut self, gpa: Gpa, from: &[u8]) {
        self.device_accesses += 1;
        let at = (gpa.0 - WINDOW) as usize;
        self.device[at..at + from.len()].copy_from_slice(from);
    }
    fn port_read(&mut self, _port: u16, _width: Width) -> u32 {
        panic!("no case reads ports")
    }
    fn port_write(&mut self, _port: u16, _width: Width, _value: u32) {
        panic!("no case writes ports")
    }
    fn should_pause(&self) -> bool {
        false
    }
}

impl Guest {
    fn window(&self, operands: Operands) -> [u8; WINDOW_BYTES] {
        match operands {
            Operands::Device => self.device,
            Operands::Ram => {
                let mut bytes = [0; WINDOW_BYTES];
                self.ram.read(Gpa(WINDOW), &mut bytes).unwrap();
                bytes
            }
        }
    }
}

struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// All that an instruction can change.
#[derive(Clone, Debug, PartialEq)]
struct State {
    gprs: [u64; 16],
    flags: u64,
    window: [u8; WINDOW_BYTES],
    xmms: [u128; 16],
    rip: u64,
}

impl State {
    /// What a seed gives, before anything is set on purpose.
    fn from_seed(seed: u64, mode: u32) -> State {
        let mut mix = SplitMix(seed);
        let count = if mode == 64 { 16 } else { 8 };
        let limit = if mode == 64 { u64::MAX } else { 0xffff_ffff };
        let mut gprs = std::array::from_fn(|_| mix.next() & limit);
        gprs[count..].fill(0);
        let flags = mix.next() & FLAGS;
        let mut window = [0; WINDOW_BYTES];
        for word in window.chunks_exact_mut(8) {
            word.copy_from_slice(&mix.next().to_le_bytes());
        }
        let mut xmms = std::array::from_fn(|_| u128::from(mix.next()) | u128::from(mix.next()) << 64);
        xmms[count..].fill(0);
        State { gprs, flags, window, xmms, rip: CODE }
    }

    /// Applies the assignments of a line.
    fn assign(&mut self, assignments: &str) {
        for assignment in assignments.split(',').filter(|text| *text != "-") {
            let (name, value) = assignment.split_once('=').unwrap();
            let number = || u64::from_str_radix(value, 16).unwrap();
            match name.split_at(1) {
                ("r", at) => self.gprs[at.parse::<usize>().unwrap()] = number(),
                ("x", at) => self.xmms[at.parse::<usize>().unwrap()] = u128::from_str_radix(value, 16).unwrap(),
                ("m", at) => {
                    let bytes = hex(value);
                    let at = usize::from_str_radix(at, 16).unwrap();
                    self.window[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                _ if name == "fl" => self.flags = number(),
                _ if name == "ip" => self.rip = number(),
                _ => panic!("unknown assignment {assignment}"),
            }
        }
    }

    /// How `self`, which is expected, differs from `other`.
    fn differences(&self, other: &State) -> String {
        let mut text = String::new();
        for number in 0..16 {
            let (expected, found) = (self.gprs[number], other.gprs[number]);
            if expected != found {
                write!(text, " r{number}={found:x} (not {expected:x})").unwrap();
            }
            let (expected, found) = (self.xmms[number], other.xmms[number]);
            if expected != found {
                write!(text, " x{number}={found:x} (not {expected:x})").unwrap();
            }
        }
        if self.flags != other.flags {
            write!(text, " fl={:x} (not {:x})", other.flags, self.flags).unwrap();
        }
        if self.rip != other.rip {
            write!(text, " ip={:x} (not {:x})", other.rip, self.rip).unwrap();
        }
        for (at, (expected, found)) in self.window.iter().zip(other.window).enumerate() {
            if *expected != found {
                write!(text, " m{at:x}={found:02x} (not {expected:02x})").unwrap();
            }
        }
        text
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn guest(mode: u32, code: &[u8], input: &State, operands: Operands) -> Guest {
    let mut state = ArchState::reset(0);
    state.cr4 = cr4::OSFXSR;
    match mode {
        16 => state.segments[SegmentName::Cs as usize] = Segment::real_mode(0),
        32 => {
            state.segments[..6].fill(Segment::flat_data(16));
            state.segments[SegmentName::Cs as usize] = Segment::flat_code32(8);
            state.cr0 = cr0::PE;
        }
        _ => {
            state.segments[..6].fill(Segment::flat_data(16));
            state.segments[SegmentName::Cs as usize] = Segment::flat_code64(8);
            state.cr0 = cr0::PE | cr0::PG;
            state.cr4 |= cr4::PAE;
            state.efer = efer::LME | efer::LMA;
            state.cr3 = TABLES;
        }
    }
    state.rip = CODE;
    state.gprs.0 = input.gprs;
    state.rflags = input.flags | 2;
    let ranges: &[(u64, u64)] = match operands {
        Operands::Ram => &[(0, 0x20000)],
        Operands::Device => &[(0, WINDOW), (WINDOW + 0x1000, 0x1b000)],
    };
    let ram = SparseMemory::new(ranges);
    ram.store(Gpa(TABLES), Width::Qword, (TABLES + 0x1000) | 0x27).unwrap();
    ram.store(Gpa(TABLES + 0x1000), Width::Qword, 0xe7).unwrap();
    ram.write(Gpa(CODE), code).unwrap();
    if operands == Operands::Ram {
        ram.write(Gpa(WINDOW), &input.window).unwrap();
    }
    let mut vcpu = ScriptedVcpu::new(state, []);
    for (register, value) in vcpu.vectors.iter_mut().zip(input.xmms) {
        register[..16].copy_from_slice(&value.to_le_bytes());
    }
    Guest { vcpu, ram, device: input.window, device_accesses: 0 }
}

/// Runs one line; an error names the difference.
fn check(line: &str, operands: Operands, emulator: &mut Emulator) -> Result<(), String> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [mode, code, seed, set, undefined, "|", changed] = fields[..] else { panic!("not a case: {line}") };
    let mode: u32 = mode.parse().unwrap();
    let code = hex(code);
    let undefined = u64::from_str_radix(undefined, 16).unwrap();
    let mut input = State::from_seed(u64::from_str_radix(seed, 16).unwrap(), mode);
    input.assign(set);
    let mut expected = input.clone();
    expected.rip = CODE + code.len() as u64;
    expected.assign(changed);
    expected.flags &= !undefined;

    let mut guest = guest(mode, &code, &input, operands);
    let rip = match emulator.instruction(&mut guest) {
        Outcome::Complete(length) => guest.vcpu.code_size().advance(CODE, length.bytes().into()),
        Outcome::Jump(target) => target,
        other => return Err(format!("{line}\n    {other:x?}")),
    };
    let found = State {
        gprs: Gpr::ALL.map(|register| guest.vcpu.gpr(register)),
        flags: guest.vcpu.rflags() & FLAGS & !undefined,
        window: guest.window(operands),
        xmms: guest.vcpu.vectors.map(|bytes| u128::from_le_bytes(bytes[..16].try_into().unwrap())),
        rip,
    };
    let differences = expected.differences(&found);
    if differences.is_empty() { Ok(()) } else { Err(format!("{line}\n   {differences}")) }
}

fn check_all(operands: Operands) {
    let table = include_str!("emulator.golden");
    let mut emulator = Emulator::new();
    let mut failures = Vec::new();
    for line in table.lines() {
        if let Err(failure) = check(line, operands, &mut emulator) {
            failures.push(failure);
        }
    }
    let shown = failures.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} cases of {} differ:\n{shown}", failures.len(), table.lines().count());
}

#[test]
fn instructions_on_ram_do_what_unicorn_does() {
    check_all(Operands::Ram);
}

#[test]
fn instructions_on_a_device_do_what_unicorn_does() {
    check_all(Operands::Device);
}
