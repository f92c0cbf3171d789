//! Every exit handler, on a whole PC with a scripted vCPU.

use crate::hyperv::Signature;
use crate::machine::{HostFacts, Machine, MachineConfig, Services};
use crate::pc::Seat;
use crate::processor::{Outcome, Processor, VcpuHost};
use crate::stop::Stop;
use crate::tsc::HostTsc;
use alloc::collections::VecDeque;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use devices::rtc::WallTime;
use devices::{ByteSink, ByteSource, Clock, Nanos, PowerEvent};
use memory::{Gpa, GuestMemory, RegisterPage, SparseMemory, Width};
use spin::Mutex;
use vcpu::{
    AccessKind, Answer, ArchState, ControlRegister, ControlWrite, Cpuid, CpuidAnswer, EntryFailure, Event, Exception,
    ExceptionExit, Exit, Gpr, GuestSpeculation, Hypercall, Instruction, InterruptDelivery, Length, Mailbox,
    MemoryAccess, MsrRead, MsrWrite, NestedInstruction, PortRead, PortString, PortWrite, Post, RawExit, ScriptedVcpu,
    Segment, SegmentName, Vcpu, Wake, Window, Xsetbv, cr0, cr4, efer, rflags,
};

/// Where the test program stands.
const CODE: u64 = 0x1000;

#[derive(Default)]
struct Host {
    now: AtomicU64,
    alarm: Mutex<Option<Nanos>>,
    wants_cpu: AtomicBool,
    /// How often a limit was asked for.
    limits: AtomicU64,
    output: Mutex<Vec<u8>>,
    input: Mutex<VecDeque<u8>>,
}

impl Clock for Host {
    fn now(&self) -> Nanos {
        Nanos(self.now.load(Ordering::SeqCst))
    }
}
impl VcpuHost for Host {
    fn now(&self) -> Nanos {
        Clock::now(self)
    }
    fn set_alarm(&self, until: Option<Nanos>) -> Option<u64> {
        *self.alarm.lock() = until;
        self.limits.fetch_add(1, Ordering::SeqCst);
        until.map(|at| at.0)
    }
    fn should_yield(&self) -> bool {
        self.wants_cpu.load(Ordering::SeqCst)
    }
}
impl HostTsc for Host {
    fn now(&self) -> (u64, Nanos) {
        let now = self.now.load(Ordering::SeqCst);
        (now, Nanos(now))
    }
    fn span(&self, ticks: u64) -> u64 {
        ticks
    }
}
impl ByteSink for Host {
    fn put(&self, byte: u8) {
        self.output.lock().push(byte);
    }
}
impl ByteSource for Host {
    fn take(&self) -> Option<u8> {
        self.input.lock().pop_front()
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

/// Guests have SPEC_CTRL with three bits, and the barrier.
const SPECULATION: GuestSpeculation = GuestSpeculation { spec_ctrl: 7, barrier: true, arch_capabilities: None };

/// A 32-bit flat guest at [`CODE`] on a PC of 16 MiB.
struct Bench {
    host: Arc<Host>,
    machine: Arc<Machine<SparseMemory>>,
    processor: Processor<ScriptedVcpu, SparseMemory>,
}

impl Bench {
    fn new() -> Bench {
        let host = Arc::new(Host::default());
        let allowed =
            crate::cpuid::Allowed { rdtscp: true, invpcid: false, invariant_tsc: true, speculation: SPECULATION };
        let facts = HostFacts { cpuid: &host_cpuid, allowed, tsc_hz: 2_000_000_000 };
        let config = MachineConfig {
            memory: 16 << 20,
            vcpus: 1,
            hyperv: Some(Signature::Microsoft),
            debug_exit: true,
            wall_time: WallTime { seconds: 0, nanos: 0 },
        };
        let seat = Seat { apic_page: Arc::new(RegisterPage::new()), mailbox: Arc::new(Mailbox::new(host.clone())) };
        let services = Services {
            clock: host.clone(),
            tsc: host.clone(),
            console_output: host.clone(),
            console_input: host.clone(),
            debug_output: host.clone(),
        };
        let ram = SparseMemory::new(&[(0, 16 << 20)]);
        let machine = Arc::new(Machine::build(config, &facts, ram, &[seat], services).unwrap());
        let vcpu = ScriptedVcpu::new(ArchState::reset(0), []);
        let mut processor = machine.processor(0, vcpu, &facts, host.clone());
        let mut state = ArchState::reset(0);
        state.cr0 = cr0::PE | cr0::ET;
        state.rip = CODE;
        state.segments[SegmentName::Cs as usize] = Segment::flat_code32(8);
        for data in [SegmentName::Ds, SegmentName::Es, SegmentName::Ss] {
            state.segments[data as usize] = Segment::flat_data(16);
        }
        processor.reset(Some(&state));
        Bench { host, machine, processor }
    }

    fn code(&self, bytes: &[u8]) {
        self.machine.ram().write(Gpa(CODE), bytes).unwrap();
    }

    /// Plays `exits`, then a triple fault, and gives the answers.
    fn play(&mut self, exits: impl IntoIterator<Item = Exit>) -> Vec<Answer> {
        self.processor.vcpu.exits = exits.into_iter().map(Ok).collect();
        self.processor.vcpu.resumes.clear();
        match self.processor.run() {
            Outcome::Stopped(Stop::TripleFault) => {}
            other => panic!("unexpected {other:?}"),
        }
        self.machine.power().clear();
        let _ = self.machine.mailbox(0).unwrap().take();
        self.processor.vcpu.resumes.iter().map(|resume| *resume.answer()).collect()
    }

    /// Plays one exit and gives its answer.
    fn answer(&mut self, exit: Exit) -> Answer {
        self.play([exit])[0]
    }
}

fn length(bytes: u8) -> Length {
    Length::new(bytes).unwrap()
}

const GP: Answer = Answer::Inject(Exception::general_protection(0));
const UD: Answer = Answer::Inject(Exception::undefined());

fn rdmsr(msr: u32) -> Exit {
    Exit::MsrRead(MsrRead { msr, length: Length::new(2) })
}

fn wrmsr(msr: u32, value: u64) -> Exit {
    Exit::MsrWrite(MsrWrite { msr, value, length: Length::new(2) })
}

fn plain() -> Instruction {
    Instruction { length: Length::new(1) }
}

#[test]
fn port_reads_and_writes_reach_their_device() {
    let mut bench = Bench::new();
    let status = bench.answer(Exit::PortRead(PortRead::new(0x3fd, Width::Byte, length(1))));
    assert_eq!(status, Answer::PortValue(length(1), Width::Byte, 0x60));
    let written = bench.answer(Exit::PortWrite(PortWrite::new(0x3f8, Width::Byte, b'x'.into(), length(1))));
    assert_eq!(written, Answer::Advance(length(1)));
    assert_eq!(*bench.host.output.lock(), b"x");
}

#[test]
fn speculation_registers_take_what_the_guest_was_told_of() {
    let mut bench = Bench::new();
    assert_eq!(bench.answer(wrmsr(0x48, 5)), Answer::Advance(length(2)));
    assert_eq!(bench.answer(rdmsr(0x48)), Answer::MsrValue(length(2), 5));
    assert_eq!(bench.answer(wrmsr(0x48, 8)), GP);
    assert_eq!(bench.answer(wrmsr(0x49, 1)), Answer::Advance(length(2)));
    assert_eq!(bench.answer(wrmsr(0x49, 2)), GP);
    assert_eq!(bench.answer(rdmsr(0x49)), GP, "it cannot be read");
    assert_eq!(bench.answer(rdmsr(0x10a)), GP, "not on AMD");
}

#[test]
fn an_unclaimed_port_reads_all_ones_and_swallows_writes() {
    let mut bench = Bench::new();
    for (width, ones) in [(Width::Byte, 0xff), (Width::Word, 0xffff), (Width::Dword, u32::MAX)] {
        let read = bench.answer(Exit::PortRead(PortRead::new(0x80, width, length(2))));
        assert_eq!(read, Answer::PortValue(length(2), width, ones));
    }
    let written = bench.answer(Exit::PortWrite(PortWrite::new(0x80, Width::Byte, 1, length(2))));
    assert_eq!(written, Answer::Advance(length(2)));
}

#[test]
fn string_output_is_executed_from_memory() {
    let mut bench = Bench::new();
    bench.code(&[0xf3, 0x6e]); // rep outsb
    bench.machine.ram().write(Gpa(0x3000), b"hello").unwrap();
    for (register, value) in [(Gpr::Rcx, 5), (Gpr::Rsi, 0x3000), (Gpr::Rdx, 0x3f8)] {
        bench.processor.vcpu.set_gpr(register, value);
    }
    let exit = PortString { port: 0x3f8, width: Width::Byte, access: AccessKind::Read };
    assert_eq!(bench.answer(Exit::PortString(exit)), Answer::Advance(length(2)));
    assert_eq!(*bench.host.output.lock(), b"hello");
    assert_eq!(bench.processor.vcpu.gpr(Gpr::Rcx), 0);
}

#[test]
fn a_part_of_a_repeated_instruction_ends_as_an_instruction() {
    let mut bench = Bench::new();
    bench.code(&[0xf3, 0x6e]); // rep outsb
    let rip = bench.processor.vcpu.rip();
    for (register, value) in [(Gpr::Rcx, 1 << 30), (Gpr::Rsi, 0x3000), (Gpr::Rdx, 0x80)] {
        bench.processor.vcpu.set_gpr(register, value);
    }
    let exit = || Exit::PortString(PortString { port: 0x80, width: Width::Byte, access: AccessKind::Read });
    assert_eq!(bench.answer(exit()), Answer::Jump(rip), "an interrupt shadow does not outlast it");
    assert!(bench.processor.vcpu.gpr(Gpr::Rcx) > 1);
    bench.processor.vcpu.set_gpr(Gpr::Rcx, 3);
    bench.processor.vcpu.set_rflags(2 | rflags::TF);
    assert_eq!(
        bench.play([exit(), exit(), exit()]),
        [Answer::Jump(rip), Answer::Jump(rip), Answer::Advance(length(2))]
    );
}

#[test]
fn an_mmio_read_is_emulated() {
    let mut bench = Bench::new();
    bench.code(&[0xa1, 0x30, 0x00, 0xe0, 0xfe]); // mov eax, [0xfee00030]
    let access = MemoryAccess {
        gpa: Gpa(0xfee0_0030),
        kind: AccessKind::Read,
        in_page_walk: false,
        during_event_delivery: false,
        bytes: ([0; 15], 0),
    };
    assert_eq!(bench.answer(Exit::MemoryAccess(access)), Answer::Advance(length(5)));
    assert_eq!(bench.processor.vcpu.gpr(Gpr::Rax) & 0xff, 0x14, "the local APIC's version");
}

#[test]
fn an_mmio_instruction_that_cannot_be_emulated_stops_the_machine() {
    let mut bench = Bench::new();
    bench.code(&[0x0f, 0xae, 0x05, 0, 0, 0xd0, 0xfe]); // fxsave [0xfed00000]
    let access = MemoryAccess {
        gpa: Gpa(0xfed0_0000),
        kind: AccessKind::Write,
        in_page_walk: false,
        during_event_delivery: false,
        bytes: ([0; 15], 0),
    };
    bench.processor.vcpu.exits = [Ok(Exit::MemoryAccess(access))].into();
    match bench.processor.run() {
        Outcome::Stopped(stop @ Stop::Instruction { .. }) => {
            let report = crate::report::Report::new(&stop, &bench.processor);
            assert!(report.processors[0].instruction.contains("fxsave"), "{report}");
            assert_eq!(report.processors[0].bytes.len(), 7);
            assert!(report.to_string().contains("last exit: memory_access"), "{report}");
            let json = report.json("a\"b").to_string();
            assert!(json.starts_with("{\"machine\":\"a\\\"b\",\"reason\":"), "{json}");
            let exit = "{\"kind\":\"memory_access\",\"rip\":\"0x1000\",\"gpa\":\"0xfed00000\",\"access\":\"write\"}";
            assert!(json.contains(exit), "{json}");
            assert!(json.contains("\"paging\":{\"mode\":\"none\","), "{json}");
        }
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn a_refused_entry_is_reported_with_the_violated_check() {
    let mut bench = Bench::new();
    let raw = RawExit { code: u64::MAX, info1: 1, info2: 2 };
    bench.processor.vcpu.exits = [Err(EntryFailure { raw, violated: Some("CR0.NW is set with CR0.CD clear") })].into();
    let Outcome::Stopped(stop) = bench.processor.run() else { panic!("it was refused") };
    let report = crate::report::Report::new(&stop, &bench.processor);
    assert!(report.to_string().contains("violated check: CR0.NW is set with CR0.CD clear\n"), "{report}");
    let json = report.json("vm").to_string();
    let raw = "\"raw\":{\"code\":\"0xffffffffffffffff\",\"info1\":\"0x1\",\"info2\":\"0x2\"}";
    assert!(json.contains("\"violated\":\"CR0.NW is set with CR0.CD clear\"") && json.contains(raw), "{json}");
}

/// An access to a device, made by an instruction that makes none: the delivery of an event through tables in a device.
fn access_of_nobody() -> Exit {
    Exit::MemoryAccess(MemoryAccess {
        gpa: Gpa(0xfed0_0000),
        kind: AccessKind::Read,
        in_page_walk: false,
        during_event_delivery: false,
        bytes: ([0; 15], 0),
    })
}

#[test]
fn an_access_that_gets_nowhere_stops_the_machine() {
    let mut bench = Bench::new();
    bench.code(&[0x90; 4]);
    let interrupted = |number| if number % 3 == 0 { Exit::HostInterrupt } else { access_of_nobody() };
    bench.processor.vcpu.exits = (0..200).map(interrupted).map(Ok).collect();
    match bench.processor.run() {
        Outcome::Stopped(stop @ Stop::NoProgress { gpa: Some(Gpa(0xfed0_0000)) }) => {
            assert_eq!(bench.processor.core.recorder.count(vcpu::ExitKind::MemoryAccess), 65, "{stop}");
        }
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn what_completes_something_in_between_goes_on() {
    let mut bench = Bench::new();
    bench.code(&[0x90; 64]);
    let exits = (1..1000).map(|number| match number % 60 {
        0 => Exit::PortWrite(PortWrite::new(0x80, Width::Byte, 0, length(1))),
        _ => access_of_nobody(),
    });
    assert_eq!(bench.play(exits).len(), 999);
}

#[test]
fn a_long_string_instruction_goes_on() {
    let mut bench = Bench::new();
    bench.code(&[0xf3, 0xaa]); // rep stosb
    for (register, value) in [(Gpr::Rcx, 100_000), (Gpr::Rdi, 0xfed1_0000)] {
        bench.processor.vcpu.set_gpr(register, value);
    }
    let answers = bench.play((0..98).map(|_| access_of_nobody()));
    assert_eq!(answers.last(), Some(&Answer::Advance(length(2))));
    assert_eq!(bench.processor.vcpu.gpr(Gpr::Rcx), 0);
}

#[test]
fn a_fault_on_ram_and_a_fetch_from_nowhere_stop_the_machine() {
    for (gpa, kind) in [(0x2000, AccessKind::Write), (0xfed0_0000, AccessKind::Fetch)] {
        let mut bench = Bench::new();
        let access = MemoryAccess {
            gpa: Gpa(gpa),
            kind,
            in_page_walk: false,
            during_event_delivery: false,
            bytes: ([0; 15], 0),
        };
        bench.processor.vcpu.exits = [Ok(Exit::MemoryAccess(access))].into();
        let outcome = bench.processor.run();
        assert!(
            matches!(outcome, Outcome::Stopped(Stop::UnexpectedFault(at) | Stop::FetchOutsideMemory(at)) if at == Gpa(gpa)),
            "{outcome:?}"
        );
    }
}

#[test]
fn an_event_delivered_through_device_space_stops_the_machine() {
    let mut bench = Bench::new();
    bench.code(&[0xa3, 0x30, 0x00, 0xd0, 0xfe]); // mov [0xfed00030], eax: innocent
    let access = MemoryAccess {
        gpa: Gpa(0xfed0_0ff8),
        kind: AccessKind::Write,
        in_page_walk: false,
        during_event_delivery: true,
        bytes: ([0; 15], 0),
    };
    bench.processor.vcpu.exits = [Ok(Exit::MemoryAccess(access))].into();
    match bench.processor.run() {
        Outcome::Stopped(stop @ Stop::DeliveryIntoDevice(Gpa(0xfed0_0ff8))) => {
            assert!(stop.to_string().starts_with("event delivery into device space"));
        }
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn cpuid_answers_with_and_without_a_length() {
    let mut bench = Bench::new();
    bench.code(&[0x0f, 0xa2]);
    for given in [Length::new(2), None] {
        let answer = bench.answer(Exit::Cpuid(Cpuid { leaf: 0x4000_0001, subleaf: 0, length: given }));
        assert_eq!(answer, Answer::Cpuid(length(2), CpuidAnswer { eax: 0x3123_7648, ..Default::default() }));
        bench.processor.vcpu.state.rip = CODE;
    }
}

#[test]
fn an_instruction_that_was_rewritten_meanwhile_runs_again() {
    let mut bench = Bench::new();
    bench.code(&[0x90, 0x90]);
    let answer = bench.answer(Exit::Cpuid(Cpuid { leaf: 0, subleaf: 0, length: None }));
    assert_eq!(answer, Answer::Enter);
}

#[test]
fn msrs_answer_or_fault() {
    let mut bench = Bench::new();
    assert_eq!(bench.answer(rdmsr(0x1b)), Answer::MsrValue(length(2), 0xfee0_0900));
    assert_eq!(bench.answer(rdmsr(0x4000_0022)), Answer::MsrValue(length(2), 2_000_000_000));
    assert_eq!(bench.answer(rdmsr(0xc001_0114)), Answer::MsrValue(length(2), 0x18));
    assert_eq!(bench.answer(rdmsr(0xdead_beef)), GP);
    assert_eq!(bench.answer(wrmsr(0xdead_beef, 0)), GP);
    assert_eq!(bench.answer(wrmsr(0xc001_0114, 0)), GP);
    assert_eq!(bench.answer(wrmsr(0x277, 0x0202)), GP);
    assert_eq!(bench.answer(wrmsr(0x277, 0x0606)), Answer::Advance(length(2)));
    assert_eq!(bench.answer(rdmsr(0x277)), Answer::MsrValue(length(2), 0x0606));
}

#[test]
fn tsc_and_tsc_adjust_move_together() {
    let mut bench = Bench::new();
    bench.processor.vcpu.host_tsc = 1000;
    bench.play([wrmsr(0x10, 5000)]);
    assert_eq!(bench.answer(rdmsr(0x3b)), Answer::MsrValue(length(2), 4000));
    bench.play([wrmsr(0x3b, 0)]);
    assert_eq!(bench.processor.vcpu.tsc(), 1000);
}

#[test]
fn a_tsc_deadline_follows_the_processors_own_counter() {
    let mut bench = Bench::new();
    bench.host.now.store(1000, Ordering::SeqCst);
    bench.processor.vcpu.host_tsc = 1000;
    bench.play([wrmsr(0x1b, 0xfee0_0d00), wrmsr(0x80f, 0x1ff), wrmsr(0x832, 2 << 17 | 0x40)]);
    bench.play([wrmsr(0x10, 50_000), wrmsr(0x6e0, 50_300)]);
    assert_eq!(bench.processor.core.apic.deadline(), Some(Nanos(1300)));
    bench.play([wrmsr(0x3b, 49_100)]);
    assert_eq!(bench.processor.core.apic.deadline(), Some(Nanos(1200)), "a counter moved on reaches it earlier");
}

#[test]
fn efer_and_control_registers_follow_the_rules() {
    let mut bench = Bench::new();
    assert_eq!(bench.answer(wrmsr(0xc000_0080, efer::SVME)), GP);
    assert_eq!(bench.answer(wrmsr(0xc000_0080, efer::LME | efer::NXE)), Answer::Advance(length(2)));
    assert_eq!(bench.processor.vcpu.efer(), efer::LME | efer::NXE);
    let write = |register, value| Exit::ControlWrite(ControlWrite { register, value, length: Length::new(3) });
    assert_eq!(bench.answer(write(ControlRegister::Cr4, cr4::VMXE)), GP);
    assert_eq!(bench.answer(write(ControlRegister::Cr4, cr4::PAE)), Answer::Advance(length(3)));
    assert_eq!(bench.processor.vcpu.cr4(), cr4::PAE);
    assert_eq!(bench.answer(write(ControlRegister::Cr0, cr0::PG)), GP);
    assert_eq!(bench.answer(write(ControlRegister::Cr3, 0x5000)), Answer::Advance(length(3)));
    assert_eq!(bench.answer(write(ControlRegister::Cr8, 5)), Answer::Advance(length(3)));
    assert_eq!(bench.processor.core.apic.task_priority(), 0x50);
    assert_eq!(bench.answer(write(ControlRegister::Cr8, 16)), GP);
}

#[test]
fn xsetbv_needs_osxsave_and_a_valid_value() {
    let mut bench = Bench::new();
    let xsetbv = |register, value| Exit::Xsetbv(Xsetbv { register, value, length: Length::new(3) });
    assert_eq!(bench.answer(xsetbv(0, 7)), UD);
    bench.processor.vcpu.set_cr4(cr4::OSXSAVE);
    assert_eq!(bench.answer(xsetbv(0, 7)), Answer::Advance(length(3)));
    assert_eq!(bench.processor.vcpu.xcr0(), 7);
    assert_eq!(bench.answer(xsetbv(0, 6)), GP);
    assert_eq!(bench.answer(xsetbv(1, 1)), GP);
}

#[test]
fn hlt_blocks_until_the_timer_and_then_takes_its_interrupt() {
    let mut bench = Bench::new();
    bench.play([
        wrmsr(0x1b, 0xfee0_0d00),
        wrmsr(0x832, 0x40),   // LVT timer: one-shot, vector 40h
        wrmsr(0x83e, 0xb),    // divide by 1
        wrmsr(0x838, 10_000), // initial count
    ]);
    bench.processor.vcpu.exits = [Ok(Exit::Hlt(plain()))].into();
    match bench.processor.run() {
        Outcome::Blocked { until } => assert_eq!(until, Some(Nanos(10_000))),
        other => panic!("unexpected {other:?}"),
    }
    bench.host.now.store(10_000, Ordering::SeqCst);
    bench.play([]);
    assert_eq!(bench.processor.vcpu.injected, [Event::Interrupt(0x40)]);
}

#[test]
fn hlt_with_interrupts_off_stays_blocked_but_wakes_by_nmi() {
    let mut bench = Bench::new();
    bench.processor.vcpu.interrupts = Window::Closed;
    bench.processor.vcpu.exits = [Ok(Exit::Hlt(plain()))].into();
    assert!(matches!(bench.processor.run(), Outcome::Blocked { .. }));
    bench.machine.mailbox(0).unwrap().post(Post::NMI);
    bench.play([]);
    assert_eq!(bench.processor.vcpu.injected, [Event::Nmi]);
}

#[test]
fn a_closed_window_is_asked_for_and_used_when_it_opens() {
    let mut bench = Bench::new();
    bench.play([wrmsr(0x1b, 0xfee0_0d00), wrmsr(0x80f, 0x1ff)]);
    bench.processor.vcpu.interrupts = Window::Closed;
    bench.play([wrmsr(0x83f, 0x55), Exit::Pause(plain())]);
    assert_eq!(bench.processor.vcpu.requested_window, Some(0x55));
    assert!(bench.processor.vcpu.injected.is_empty());
    bench.processor.vcpu.interrupts = Window::Open;
    bench.play([Exit::InterruptWindow, Exit::Pause(plain())]);
    assert_eq!(bench.processor.vcpu.injected, [Event::Interrupt(0x55)]);
    assert_eq!(bench.processor.vcpu.requested_window, None);
}

#[test]
fn an_interrupt_that_the_task_priority_holds_back_has_its_window_asked_for() {
    let mut bench = Bench::new();
    bench.play([wrmsr(0x1b, 0xfee0_0d00), wrmsr(0x80f, 0x1ff), wrmsr(0x808, 0x50), wrmsr(0x83f, 0x55)]);
    assert_eq!(bench.processor.vcpu.requested_window, Some(0x55), "CR8 is lowered without an exit");
    assert!(bench.processor.vcpu.injected.is_empty());
    bench.play([wrmsr(0x808, 0x40), Exit::Pause(plain())]);
    assert_eq!(bench.processor.vcpu.injected, [Event::Interrupt(0x55)]);
    assert_eq!(bench.processor.vcpu.requested_window, None);
}

#[test]
fn the_8259_pair_interrupts_through_lint0() {
    let mut bench = Bench::new();
    let out = |port, value| Exit::PortWrite(PortWrite::new(port, Width::Byte, value, length(2)));
    // ICW1-4 for both, vectors 20h and 28h, everything but IRQ4 masked; then the UART's transmitter-empty interrupt.
    bench.play([
        out(0x20, 0x11),
        out(0x21, 0x20),
        out(0x21, 0x04),
        out(0x21, 0x01),
        out(0xa0, 0x11),
        out(0xa1, 0x28),
        out(0xa1, 0x02),
        out(0xa1, 0x01),
        out(0x21, 0xef),
        out(0xa1, 0xff),
        out(0x3fc, 0x08),
        out(0x3f9, 0x02),
        Exit::Pause(plain()),
    ]);
    assert_eq!(bench.processor.vcpu.injected, [Event::Interrupt(0x24)]);
}

#[test]
fn a_spinning_guest_gives_its_cpu_back_when_asked() {
    let mut bench = Bench::new();
    bench.host.wants_cpu.store(true, Ordering::SeqCst);
    assert!(matches!(bench.processor.run(), Outcome::Preempted));
}

#[test]
fn cache_flushes_complete_and_missing_instructions_fault() {
    let mut bench = Bench::new();
    assert_eq!(bench.answer(Exit::Wbinvd(plain())), Answer::Advance(length(1)));
    assert_eq!(bench.answer(Exit::Invd(plain())), Answer::Advance(length(1)));
    assert_eq!(bench.answer(Exit::Pause(plain())), Answer::Advance(length(1)));
    assert_eq!(bench.answer(Exit::Rdpmc(plain())), GP);
    for exit in [
        Exit::Rdtscp(plain()),
        Exit::Monitor(plain()),
        Exit::Mwait(plain()),
        Exit::Invpcid(plain()),
        Exit::Rsm(plain()),
        Exit::NestedInstruction(NestedInstruction { code: 0x80 }),
        Exit::Hypercall(Hypercall { length: Length::new(3) }),
    ] {
        let name = exit.kind();
        assert_eq!(bench.answer(exit), UD, "{name:?}");
    }
}

#[test]
fn a_hypercall_needs_the_interface_and_has_no_known_code() {
    let mut bench = Bench::new();
    bench.play([wrmsr(0x4000_0000, 1), wrmsr(0x4000_0001, 0x5001)]);
    let call = || Exit::Hypercall(Hypercall { length: Length::new(3) });
    assert_eq!(bench.answer(call()), Answer::Advance(length(3)));
    assert_eq!(bench.processor.vcpu.gpr(Gpr::Rax), 2);
    assert_eq!(bench.machine.ram().load(Gpa(0x5000), Width::Dword), Ok(0xc3d9_010f));
    let mut user = Segment::flat_data(0x23);
    user.attributes.set_dpl(3);
    bench.processor.vcpu.state.segments[SegmentName::Ss as usize] = user;
    assert_eq!(bench.answer(call()), UD);
}

#[test]
fn intercepted_exceptions_go_to_the_guest() {
    let mut bench = Bench::new();
    for exception in [Exception::debug(1 << 14), Exception::alignment()] {
        let answer = bench.answer(Exit::Exception(ExceptionExit { exception }));
        assert_eq!(answer, Answer::Inject(exception));
    }
}

#[test]
fn host_exits_only_look_again() {
    let mut bench = Bench::new();
    for exit in
        [Exit::HostInterrupt, Exit::HostNmi, Exit::RunLimit, Exit::NmiWindow, Exit::HostSignal(RawExit::default())]
    {
        assert_eq!(bench.answer(exit), Answer::Enter);
    }
}

#[test]
fn each_run_has_a_new_limit() {
    let mut bench = Bench::new();
    bench.processor.vcpu.exits = [Ok(Exit::InterruptWindow), Ok(Exit::InterruptWindow), Ok(Exit::Shutdown)].into();
    bench.processor.run();
    assert_eq!(bench.host.limits.load(Ordering::SeqCst), 1, "nothing new to wait for");
    bench.processor.vcpu.exits = [Ok(Exit::RunLimit), Ok(Exit::HostInterrupt), Ok(Exit::Shutdown)].into();
    bench.machine.power().clear();
    bench.processor.run();
    let limits = bench.host.limits.load(Ordering::SeqCst);
    assert_eq!(limits, 4, "one for the run, one after each that has passed or that the host has cut short");
}

#[test]
fn what_cannot_go_on_stops_with_its_reason() {
    let raw = RawExit { code: 0x7ff, info1: 1, info2: 2 };
    for (exit, expected) in [
        (Ok(Exit::Unsupported(raw)), Stop::UnsupportedExit(raw)),
        (Ok(Exit::TaskSwitch(raw)), Stop::TaskSwitch),
        (Ok(Exit::Shutdown), Stop::TripleFault),
        (
            Err(EntryFailure { raw, violated: Some("EFER.SVME is zero") }),
            Stop::EntryRefused(EntryFailure { raw, violated: Some("EFER.SVME is zero") }),
        ),
    ] {
        let mut bench = Bench::new();
        bench.processor.vcpu.exits = [exit].into();
        match bench.processor.run() {
            Outcome::Stopped(stop) => assert_eq!(stop, expected),
            other => panic!("unexpected {other:?}"),
        }
        assert_eq!(bench.machine.power().event(), Some(PowerEvent::Off), "other vCPUs stop too");
    }
}

#[test]
fn power_requests_come_back_to_the_owner() {
    for (port, value, expected) in
        [(0xcf9, 0x06, PowerEvent::Reset), (0x604, 0x2000, PowerEvent::Off), (0xf4, 0x21, PowerEvent::DebugExit(0x21))]
    {
        let mut bench = Bench::new();
        let width = if value > 0xff { Width::Word } else { Width::Byte };
        bench.processor.vcpu.exits = [Ok(Exit::PortWrite(PortWrite::new(port, width, value, length(1))))].into();
        match bench.processor.run() {
            Outcome::Power(event) => assert_eq!(event, expected),
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[test]
fn init_and_start_up_restart_an_application_processor_only() {
    let mut bench = Bench::new();
    bench.processor.core.number = 1;
    bench.machine.mailbox(0).unwrap().post(Post::INIT);
    assert!(matches!(bench.processor.run(), Outcome::Blocked { .. }));
    bench.machine.mailbox(0).unwrap().post_start_up(0x9a);
    bench.play([]);
    assert_eq!(bench.processor.vcpu.state.segment(SegmentName::Cs).base, 0x9a000);
    assert_eq!(bench.processor.vcpu.rip(), 0);
    bench.machine.mailbox(0).unwrap().post_start_up(0x11);
    bench.play([]);
    assert_eq!(bench.processor.vcpu.state.segment(SegmentName::Cs).base, 0x9a000, "a running processor ignores it");
}

#[test]
fn hardware_delivery_is_only_told_that_something_changed() {
    let mut bench = Bench::new();
    bench.processor.vcpu.delivery = InterruptDelivery::Hardware;
    bench.play([wrmsr(0x1b, 0xfee0_0d00), wrmsr(0x80f, 0x1ff), wrmsr(0x83f, 0x55), Exit::Pause(plain())]);
    assert!(bench.processor.vcpu.injected.is_empty());
    assert!(bench.processor.vcpu.evaluations > 0);
}

#[test]
fn console_input_reaches_the_uart() {
    let mut bench = Bench::new();
    bench.host.input.lock().push_back(b'k');
    bench.machine.console_has_input();
    let read = bench.answer(Exit::PortRead(PortRead::new(0x3f8, Width::Byte, length(1))));
    assert_eq!(read, Answer::PortValue(length(1), Width::Byte, b'k'.into()));
}

#[test]
fn exits_are_counted_and_remembered() {
    let mut bench = Bench::new();
    bench.play([rdmsr(0x1b), Exit::Pause(plain())]);
    assert_eq!(bench.processor.core.recorder.count(vcpu::ExitKind::MsrRead), 1);
    let kinds: Vec<_> = bench.processor.core.recorder.last().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [vcpu::ExitKind::MsrRead, vcpu::ExitKind::Pause, vcpu::ExitKind::Shutdown]);
}
