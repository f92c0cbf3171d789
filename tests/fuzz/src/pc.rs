//! A whole PC with two processors that exit for any reason, at any moment.

use crate::guest::{self, Ram, SharedRam, TOP};
use crate::heap::without_allocating;
use crate::input::Input;
use crate::wires::World;
use devices::{Clock, Nanos};
use machine::cpuid::Allowed;
use machine::hyperv::Signature;
use machine::report::Report;
use machine::{HostFacts, Machine, MachineConfig, Outcome, Processor, Seat, Services, VcpuHost};
use memory::{Gpa, RegisterPage, Width};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vcpu::{
    AccessKind, ApicWrite, ArchState, ControlRegister, ControlWrite, Cpuid, CpuidAnswer, EntryFailure, EoiInduced,
    Exception, ExceptionExit, Exit, GuestSpeculation, Hypercall, Instruction, Length, Mailbox, MemoryAccess, MsrRead,
    MsrWrite, NestedInstruction, PortRead, PortString, PortWrite, Post, RawExit, ScriptedVcpu, Vcpu, Wake, Xsetbv,
};

/// Guests have all of it.
const SPECULATION: GuestSpeculation =
    GuestSpeculation { spec_ctrl: 0x87, barrier: true, arch_capabilities: Some(0x2b) };

/// Steps of one script.
const MOST_STEPS: usize = 200;
/// Calls of wires to the host in one step.
const MOST_CALLS: u64 = 20_000;
/// How often a blocked processor may come back for the same moment.
const MOST_WAKES: u32 = 1100;

/// The host of the machine: its clock and streams, and a scheduler that gives so many looks before it wants its CPU back.
struct Host {
    world: Arc<World>,
    looks: AtomicU32,
}

impl VcpuHost for Host {
    fn now(&self) -> Nanos {
        self.world.now()
    }
    fn set_alarm(&self, until: Option<Nanos>) -> Option<u64> {
        until.map(|at| at.0)
    }
    fn should_yield(&self) -> bool {
        let left = self.looks.load(Ordering::Relaxed).saturating_sub(1);
        self.looks.store(left, Ordering::Relaxed);
        left == 0
    }
}

impl Wake for Host {
    fn wake(&self) {}
}

/// The host's CPUID: an AMD processor with what the policy looks at.
fn host_cpuid(leaf: u32, subleaf: u32) -> CpuidAnswer {
    let (eax, ebx, ecx, edx) = match (leaf, subleaf) {
        (0, _) => (0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
        (1, _) => (0x0080_0f12, 0x0001_0800, 0xf6f8_3203, 0x078b_fbff),
        (7, 0) => (0, 0x209c_01a9, 0, 0),
        (0xd, 0) => (7, 0x340, 0x340, 0),
        (0xd, 2) => (0x100, 0x240, 0, 0),
        (0x8000_0000, _) => (0x8000_001f, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
        (0x8000_0001, _) => (0x0080_0f12, 0, 0x0000_01f7, 0x2fd3_fbff),
        (0x8000_0008, _) => (0x3028, 0x1000, 0, 0),
        _ => (0, 0, 0, 0),
    };
    CpuidAnswer { eax, ebx, ecx, edx }
}

type Cpu = Processor<ScriptedVcpu, SharedRam>;

/// The PC under test.
struct Pc {
    world: Arc<World>,
    host: Arc<Host>,
    ram: SharedRam,
    machine: Arc<Machine<SharedRam>>,
    cpus: [Cpu; 2],
}

impl Pc {
    fn new(start: &ArchState) -> Pc {
        let world = World::new();
        let host = Arc::new(Host { world: world.clone(), looks: AtomicU32::new(0) });
        let ram = Ram::shared();
        ram.restore();
        let allowed = Allowed { rdtscp: true, invpcid: false, invariant_tsc: true, speculation: SPECULATION };
        let facts = HostFacts { cpuid: &host_cpuid, allowed, tsc_hz: 2_000_000_000 };
        let config = MachineConfig {
            memory: TOP,
            vcpus: 2,
            hyperv: Some(Signature::Microsoft),
            debug_exit: true,
            wall_time: devices::rtc::WallTime { seconds: 951_782_399, nanos: 0 },
        };
        let seat = |_| Seat { apic_page: Arc::new(RegisterPage::new()), mailbox: Arc::new(Mailbox::new(host.clone())) };
        let services = Services {
            clock: world.clone(),
            tsc: world.clone(),
            console_output: world.clone(),
            console_input: world.clone(),
            debug_output: world.clone(),
        };
        let machine = match Machine::build(config, &facts, ram.clone(), &[0, 1].map(seat), services) {
            Ok(machine) => Arc::new(machine),
            Err(error) => panic!("{error}"),
        };
        let cpus =
            [0, 1].map(|number| machine.processor(number, guest::vcpu(ArchState::reset(0)), &facts, host.clone()));
        let mut pc = Pc { world, host, ram, machine, cpus };
        pc.restart(start);
        pc
    }

    /// Platform reset.
    fn restart(&mut self, start: &ArchState) {
        self.machine.reset();
        for (number, cpu) in (0..).zip(&mut self.cpus) {
            cpu.reset(Some(start).filter(|_| number == 0));
            if let Some(mailbox) = self.machine.mailbox(number) {
                mailbox.take();
            }
        }
    }

    /// Lets a processor run until it has nothing to do, or has had `exit` and looked around once.
    fn run(&mut self, which: usize, exit: Result<Exit, EntryFailure>) {
        let cpu = &mut self.cpus[which];
        cpu.vcpu.exits.push_back(exit);
        for _ in 0..4 {
            cpu.vcpu.exits.push_back(Ok(Exit::HostInterrupt));
        }
        self.host.looks.store(2, Ordering::Relaxed);
        let outcome = without_allocating(|| cpu.run());
        assert!(self.world.take_calls() <= MOST_CALLS, "one exit used the host's wires {MOST_CALLS} times");
        match outcome {
            Outcome::Preempted | Outcome::Blocked { until: None } => {}
            Outcome::Blocked { until: Some(until) } => self.wait(which, until),
            Outcome::Power(_) => self.restart(&ArchState::reset(0x0080_0f12)),
            Outcome::Stopped(stop) => {
                let report = Report::new(&stop, cpu);
                assert!(!report.json("vm").to_string().contains('\n'), "the JSON report is one line");
                assert!(report.to_string().contains(&stop.to_string()), "the report says why");
                self.restart(&ArchState::reset(0x0080_0f12));
            }
        }
    }

    /// Nothing may be due for ever: a processor that is woken at its own deadline gets on.
    fn wait(&mut self, which: usize, until: Nanos) {
        if until.0 > crate::wires::END_OF_TIME {
            return;
        }
        self.world.set(until.0);
        let cpu = &mut self.cpus[which];
        for wake in 0.. {
            assert!(wake < MOST_WAKES, "the processor is woken for {until:?} over and over");
            self.host.looks.store(1, Ordering::Relaxed);
            match without_allocating(|| cpu.run()) {
                Outcome::Blocked { until: Some(next) } if next <= self.world.now() => {}
                _ => break,
            }
        }
        self.world.take_calls();
    }

    fn step(&mut self, script: &mut Input<'_>) {
        let kind = script.u8();
        let which = usize::from(kind >> 7);
        guest::forget(&mut self.cpus[which].vcpu, script);
        match kind & 15 {
            0..=9 => {
                let exit = exit(script);
                self.run(which, exit);
            }
            10 => self.cpus[which].vcpu.set_state(&guest::state(script)),
            11 => guest::write_ram(script, &self.ram),
            12 => self.world.advance(script.value()),
            13 => self.world.offer(script.u8()),
            14 => {
                let post = Post::from_bits_truncate(u32::from(script.u8())) - Post::STOP;
                if let Some(mailbox) = self.machine.mailbox(u32::from(kind >> 7)) {
                    mailbox.post(post);
                }
            }
            _ => {
                let cpu = &mut self.cpus[which];
                cpu.vcpu.set_tsc_offset(script.value());
                cpu.vcpu.set_rflags(script.u32().into());
            }
        }
    }
}

fn raw(script: &mut Input<'_>) -> RawExit {
    RawExit { code: script.u16().into(), info1: script.value(), info2: script.value() }
}

fn length(script: &mut Input<'_>) -> Option<Length> {
    Length::new(script.u8() & 15)
}

/// Ports at which there is something.
const PORTS: [u16; 24] = [
    0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x40, 0x43, 0x61, 0x70, 0x71, 0x3f8, 0x3f9, 0x3fc, 0x60, 0x64, 0x92, 0x402, 0xf4,
    0xb2, 0xcf8, 0xcf9, 0xcfc, 0x600, 0x604,
];

fn port(script: &mut Input<'_>) -> u16 {
    match script.u8() {
        index @ 0..200 => PORTS[usize::from(index) % PORTS.len()].wrapping_add(u16::from(index) / 100),
        _ => script.u16(),
    }
}

/// Numbers around which there are MSRs.
const MSRS: [u32; 12] =
    [0x1b, 0x10, 0x3b, 0x800, 0x830, 0x4000_0000, 0x4000_0020, 0x4000_0070, 0xc000_0080, 0xc001_0000, 0x200, 0x277];

fn msr(script: &mut Input<'_>) -> u32 {
    match script.u8() {
        index @ 0..240 => MSRS[usize::from(index) % MSRS.len()].wrapping_add(u32::from(script.u8() & 63)),
        _ => script.u32(),
    }
}

/// Any exit, or a refused entry.
fn exit(script: &mut Input<'_>) -> Result<Exit, EntryFailure> {
    let two = Length::new(2);
    Ok(match script.u8() % 36 {
        0..=3 => match length(script) {
            Some(length) => {
                Exit::PortWrite(PortWrite::new(port(script), script.width(Width::Dword), script.value() as u32, length))
            }
            None => Exit::PortRead(PortRead::new(
                port(script),
                script.width(Width::Dword),
                match two {
                    Some(length) => length,
                    None => return Ok(Exit::RunLimit),
                },
            )),
        },
        4 => {
            let access = if script.flag() { AccessKind::Read } else { AccessKind::Write };
            Exit::PortString(PortString { port: port(script), width: script.width(Width::Dword), access })
        }
        5..=8 => {
            let how = script.u8();
            let kind = match how & 7 {
                0 => AccessKind::Fetch,
                1..=3 => AccessKind::Read,
                _ => AccessKind::Write,
            };
            let bytes = if how & 8 != 0 { (script.array(), how >> 4) } else { ([0; 15], 0) };
            let gpa = Gpa(guest::address(script));
            Exit::MemoryAccess(MemoryAccess {
                gpa,
                kind,
                in_page_walk: how & 0x30 == 0x30,
                during_event_delivery: how & 0x40 != 0,
                bytes,
            })
        }
        9 => Exit::Cpuid(Cpuid { leaf: script.value() as u32, subleaf: script.value() as u32, length: length(script) }),
        10..=11 => Exit::MsrRead(MsrRead { msr: msr(script), length: length(script).or(two) }),
        12..=14 => Exit::MsrWrite(MsrWrite { msr: msr(script), value: script.value(), length: length(script).or(two) }),
        15 => Exit::Xsetbv(Xsetbv { register: script.u8().into(), value: script.value(), length: length(script) }),
        16..=17 => {
            let register = script.one_of(&[
                ControlRegister::Cr0,
                ControlRegister::Cr3,
                ControlRegister::Cr4,
                ControlRegister::Cr8,
            ]);
            Exit::ControlWrite(ControlWrite { register, value: script.value(), length: length(script) })
        }
        18 => Exit::Hlt(Instruction { length: length(script).or(two) }),
        19 => Exit::Pause(Instruction { length: length(script) }),
        20 => Exit::Invd(Instruction { length: length(script) }),
        21 => Exit::Wbinvd(Instruction { length: length(script) }),
        22 => Exit::Rdpmc(Instruction { length: length(script) }),
        23 => Exit::Monitor(Instruction { length: length(script) }),
        24 => Exit::Invpcid(Instruction { length: length(script) }),
        25 => Exit::Hypercall(Hypercall { length: length(script) }),
        26 => Exit::NestedInstruction(NestedInstruction { code: script.u16().into() }),
        27 => match Exception::from_vector(script.u8() & 31, Some(script.u32()), script.value()) {
            Some(exception) => Exit::Exception(ExceptionExit { exception }),
            None => Exit::HostNmi,
        },
        28 => Exit::TaskSwitch(raw(script)),
        29 => Exit::InterruptWindow,
        30 => Exit::NmiWindow,
        31 => Exit::ApicWrite(ApicWrite { offset: script.u16() & 0xfff }),
        32 => Exit::EoiInduced(EoiInduced { vector: script.u8() }),
        33 => Exit::HostSignal(raw(script)),
        34 => match script.u8() {
            0..64 => Exit::Unsupported(raw(script)),
            64..128 => Exit::Shutdown,
            128..192 => return Err(EntryFailure { raw: raw(script), violated: None }),
            _ => Exit::Rsm(Instruction { length: None }),
        },
        _ => Exit::RunLimit,
    })
}

/// Plays exits.
pub fn play(script: &[u8]) {
    let mut script = Input::new(script);
    let mut pc = Pc::new(&guest::state(&mut script));
    for _ in 0..MOST_STEPS {
        if script.is_empty() {
            break;
        }
        pc.step(&mut script);
    }
}
