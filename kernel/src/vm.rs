//! One virtual machine on this host: its memory, its second-level tables, its vCPUs as tasks, and how it ends.
//!
//! Key types: [`Plan`] (what is asked for), [`Construction`] (a machine being made, a piece at a time), [`RunningVm`] (a
//! machine whose vCPUs the scheduler has, whatever its backend), [`Ending`]. Generic over the backend, which was picked once.
//! Neighbours: `fleet` owns all machines, `machine` runs the guest, `scheduler` the tasks.
//!
//! A machine's vCPUs stop together: each one parks, and the last to park carries out the reset or the end. After a reset
//! each vCPU resets itself, and none runs before all have: the bootstrap processor must not find the others as they were.

use crate::alarms::Slot;
use crate::arena::Arena;
use crate::console::Console;
use crate::guest_ram::GuestRam;
use crate::lock::Lock;
use crate::run_queue::{Poll, Role, SLICE, Task, Waker};
use crate::time::MILLISECOND;
use crate::{clock, cpu, guest_frames, journal, scheduler};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use arrayvec::ArrayString;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use devices::rtc::WallTime;
use devices::{ByteSink, Clock, Nanos, PowerEvent, PowerSink};
use log::info;
use machine::cpuid::Allowed;
use machine::direct_boot::{self, DirectBoot};
use machine::hyperv::Signature;
use machine::report::Report;
use machine::trace::Trace;
use machine::tsc::HostTsc;
use machine::{HostFacts, Machine, MachineConfig, Outcome, Processor, Seat, Services, VcpuHost, layout};
use memory::{Gpa, RegisterPage};
use raw_cpuid::native_cpuid;
use vcpu::{
    ApicBinding, ArchState, Backend, CpuidAnswer, ExitKind, FrameSource, Hpa, Mailbox, MemoryType, Permissions, Post, SecondLevel, Vcpu, VcpuConfig,
    Wake,
};

/// What is asked for.
#[derive(Clone)]
pub struct Plan {
    /// What the machine is called.
    pub name: Arc<str>,
    /// Bytes of RAM, a multiple of 2 MiB.
    pub memory: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// The share of a CPU that each of them gets.
    pub weight: u32,
    /// What is started.
    pub boot: DirectBoot<'static>,
    /// Offer QEMU's debug-exit port.
    pub debug_exit: bool,
    /// Log the exits of each vCPU in order when the machine has ended.
    pub trace: bool,
    /// Offer the Hyper-V interface.
    pub hyperv: bool,
    /// What the guest's real-time clock shows at first.
    pub wall_time: WallTime,
    /// Its first serial port.
    pub console: Console,
    /// Woken when it has ended.
    pub keeper: Waker,
}

/// How a machine ended.
#[derive(Clone, Debug)]
pub enum End {
    /// Powered off by the guest, or by the host's user.
    PoweredOff,
    /// The guest wrote this to the debug-exit port.
    DebugExit(u32),
    /// It could not go on.
    Stopped(Box<Report>),
    /// A restart failed, with the reason.
    NotRestarted(String),
}

/// What a machine did.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Exits by kind, of all vCPUs.
    pub exits: [u64; KINDS],
    /// Nanoseconds since it was launched.
    pub run_time: u64,
    /// Nanoseconds of CPUs that it used, its exits' handling included.
    pub cpu_time: u64,
    /// Bytes of tables, vCPU structures and the like that it has beside its RAM.
    pub overhead: u64,
}

impl Progress {
    /// Nothing yet.
    pub const NONE: Progress = Progress { exits: [0; KINDS], run_time: 0, cpu_time: 0, overhead: 0 };
}

/// How many kinds of exits there are.
pub const KINDS: usize = ExitKind::ALL.len();

/// A machine that ended, and what it did.
#[derive(Clone, Debug)]
pub struct Ending {
    /// How.
    pub end: End,
    /// What it did.
    pub progress: Progress,
}

/// A machine being made. It has all the memory that it will need.
pub trait Construction: Send {
    /// Does the next piece of work, of a few milliseconds. Gives the machine when it runs.
    ///
    /// # Errors
    /// One line that says what is wrong and what to do.
    fn advance(&mut self) -> Result<Option<Arc<dyn RunningVm>>, String>;
}

/// A machine whose vCPUs have been given to the scheduler.
pub trait RunningVm: Send + Sync {
    /// Asks it to end as if its power was cut.
    fn cut_power(&self);
    /// Its ending, once.
    fn take_ending(&self) -> Option<Ending>;
    /// What it did so far; some of it up to a quarter of a second ago.
    fn progress(&self) -> Progress;
    /// Clears a piece of its RAM after it has ended; true when all of it is clear.
    fn clear_some(&self) -> bool;
}

/// How much RAM is cleared at a time: some milliseconds at most.
const PIECE: u64 = 4 << 20;
/// What a machine and each of its vCPUs take of the host's heap at most, in bytes.
const HEAP_FOR_MACHINE: usize = 512 << 10;
const HEAP_FOR_VCPU: usize = 256 << 10;
/// How often a vCPU tells what it did, in nanoseconds.
const TELL_EVERY: u64 = 250 * MILLISECOND;
/// A restart within so many nanoseconds of the one before is not told, lest a guest floods the log.
const TELL_RESTART_EVERY: u64 = 1000 * MILLISECOND;

/// What all vCPUs of one machine share on the host.
struct Shared<B: Backend> {
    machine: Arc<Machine<GuestRam>>,
    plan: Plan,
    wakers: Vec<Waker>,
    launched: u64,
    gate: Lock<Gate>,
    /// The power was cut from outside: a restart that is under way comes to nothing.
    cut: AtomicBool,
    /// When it was restarted last.
    restarted_at: AtomicU64,
    exits: [AtomicU64; KINDS],
    cpu_time: AtomicU64,
    /// Kept for their memory: the tables that the hardware walks, and the arena behind them and the vCPUs.
    second_level: Lock<B::SecondLevel>,
    arena: Arc<Arena>,
}

/// Where vCPUs wait for each other.
struct Gate {
    parked: u32,
    /// Counts restarts.
    generation: u32,
    /// Where the bootstrap processor starts after a restart.
    start: Option<ArchState>,
    /// How many have reset themselves since.
    ready: u32,
    end: Option<End>,
    finished: u32,
    ending: Option<Ending>,
}

impl Gate {
    const fn new() -> Gate {
        Gate { parked: 0, generation: 0, start: None, ready: 0, end: None, finished: 0, ending: None }
    }
}

/// A vCPU as a task of this host.
struct VcpuTask<B: Backend> {
    processor: Processor<B::Vcpu, GuestRam>,
    shared: Arc<Shared<B>>,
    parking: Parking,
    /// What it last told of its exits, and when.
    told: [u64; KINDS],
    told_at: u64,
    /// Where its exits are noted, if that was asked for.
    tracing: Option<Tracing>,
}

/// Whether a vCPU waits at the gate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parking {
    /// It runs.
    No,
    /// It parked in this generation.
    Parked(u32),
    /// The machine was restarted, this vCPU has reset itself, and waits for the others to do so.
    Reset,
}

impl<B: Backend> Task for VcpuTask<B> {
    fn poll(&mut self) -> Poll {
        if self.parking != Parking::No
            && let Some(poll) = self.wait()
        {
            return poll;
        }
        let begun = clock::now();
        self.processor.vcpu.load();
        let outcome = if self.tracing.is_some() { self.run_traced() } else { self.processor.run() };
        scheduler::set_alarm(Slot::Guest, None);
        self.processor.vcpu.unload();
        self.account(begun);
        match outcome {
            Outcome::Blocked { until } => Poll::Blocked { until: until.map(|at| at.0.saturating_add(self.shared.launched)) },
            Outcome::Preempted => Poll::Yield,
            Outcome::Power(event) => self.park(match event {
                PowerEvent::Reset => None,
                PowerEvent::Off => Some(End::PoweredOff),
                PowerEvent::DebugExit(value) => Some(End::DebugExit(value)),
            }),
            Outcome::Stopped(stop) => {
                let report = Report::new(&stop, &self.processor);
                self.park(Some(End::Stopped(Box::new(report))))
            }
        }
    }
}

impl<B: Backend> VcpuTask<B> {
    /// As the processor's own `run`, exit by exit, each of which is noted.
    fn run_traced(&mut self) -> Outcome {
        loop {
            let outcome = self.processor.run();
            let recorder = &self.processor.core.recorder;
            if let (Some(tracing), Some(exit)) = (&mut self.tracing, recorder.newest())
                && tracing.noted != recorder.total()
            {
                tracing.noted = recorder.total();
                tracing.trace.note(exit);
            }
            if !matches!(outcome, Outcome::Preempted) || scheduler::slice_is_over() {
                return outcome;
            }
        }
    }

    /// Waits at the gate; `None` when the machine was restarted.
    fn wait(&mut self) -> Option<Poll> {
        let vcpus = self.shared.plan.vcpus;
        let mut gate = self.shared.gate.lock();
        if let Parking::Parked(generation) = self.parking {
            if gate.end.is_some() && gate.parked == vcpus {
                return Some(self.finish(&mut gate));
            }
            if gate.generation == generation {
                return Some(Poll::Blocked { until: None });
            }
            let start = if self.processor.core.number == 0 { gate.start.take() } else { None };
            drop(gate);
            self.parking = Parking::Reset;
            self.processor.reset(start.as_ref());
            gate = self.shared.gate.lock();
            gate.ready += 1;
            if gate.ready == vcpus {
                self.shared.wakers.iter().for_each(Wake::wake);
            }
        }
        if gate.ready < vcpus {
            return Some(Poll::Blocked { until: None });
        }
        drop(gate);
        self.parking = Parking::No;
        if self.shared.cut.load(Ordering::SeqCst) {
            // The machine's reset has forgotten that.
            self.shared.machine.power().request(PowerEvent::Off);
        }
        None
    }

    /// Comes to the gate, with the reason if this vCPU knows one. The last to come opens it.
    fn park(&mut self, end: Option<End>) -> Poll {
        let mut gate = self.shared.gate.lock();
        self.parking = Parking::Parked(gate.generation);
        gate.parked += 1;
        let better = matches!(end, Some(End::Stopped(_)));
        if end.is_some() && (gate.end.is_none() || better) {
            gate.end = end;
        }
        if gate.parked < self.shared.plan.vcpus {
            return Poll::Blocked { until: None };
        }
        if gate.end.is_none() {
            // All others wait, and none goes on before the generation changes.
            drop(gate);
            let restarted = self.shared.restart();
            gate = self.shared.gate.lock();
            match restarted {
                Ok(start) => {
                    gate.start = Some(start);
                    gate.generation += 1;
                    gate.parked = 0;
                    gate.ready = 0;
                }
                Err(end) => gate.end = Some(end),
            }
        }
        self.shared.wakers.iter().for_each(Wake::wake);
        drop(gate);
        Poll::Yield
    }

    /// Each one adds what it knows to a report; the last one leaves the machine's ending.
    fn finish(&self, gate: &mut Gate) -> Poll {
        if let Some(End::Stopped(report)) = &mut gate.end {
            report.add(&self.processor);
        }
        if let Some(tracing) = &self.tracing {
            log_trace(self.processor.core.number, &tracing.trace);
        }
        gate.finished += 1;
        if gate.finished == self.shared.plan.vcpus
            && let Some(end) = gate.end.take()
        {
            gate.ending = Some(Ending { end, progress: self.shared.progress() });
            self.shared.plan.keeper.wake();
        }
        Poll::Finished
    }

    /// Notes the time since `begun`, and the exits where that is due or the vCPU is about to stop.
    fn account(&mut self, begun: u64) {
        let now = clock::now();
        self.shared.cpu_time.fetch_add(now.saturating_sub(begun), Ordering::Relaxed);
        let stopping = self.shared.machine.power().event().is_some();
        if stopping || now.saturating_sub(self.told_at) >= TELL_EVERY {
            self.told_at = now;
            for (kind, (told, all)) in ExitKind::ALL.iter().zip(self.told.iter_mut().zip(&self.shared.exits)) {
                let count = self.processor.core.recorder.count(*kind);
                all.fetch_add(count.wrapping_sub(*told), Ordering::Relaxed);
                *told = count;
            }
        }
    }
}

impl<B: Backend> Shared<B> {
    /// Platform reset, and the kernel loaded anew.
    fn restart(&self) -> Result<ArchState, End> {
        self.machine.reset();
        let now = clock::now();
        let told = self.restarted_at.swap(now, Ordering::SeqCst);
        if told == 0 || now.saturating_sub(told) >= TELL_RESTART_EVERY {
            info!("{}: the guest restarts", self.plan.name);
        }
        let started = direct_boot::prepare(&self.plan.boot, self.machine.config(), self.machine.ram());
        if self.cut.load(Ordering::SeqCst) {
            return Err(End::PoweredOff);
        }
        started.map_err(|error| End::NotRestarted(format!("{error}")))
    }
}

impl<B: Backend> RunningVm for Shared<B> {
    fn cut_power(&self) {
        self.cut.store(true, Ordering::SeqCst);
        self.machine.power().request(PowerEvent::Off);
    }

    fn take_ending(&self) -> Option<Ending> {
        self.gate.lock().ending.take()
    }

    fn progress(&self) -> Progress {
        Progress {
            exits: core::array::from_fn(|kind| self.exits[kind].load(Ordering::Relaxed)),
            run_time: clock::now().saturating_sub(self.launched),
            cpu_time: self.cpu_time.load(Ordering::Relaxed),
            overhead: self.arena.usage().0,
        }
    }

    fn clear_some(&self) -> bool {
        self.machine.ram().clear_some(PIECE)
    }
}

impl<B: Backend> Drop for Shared<B> {
    fn drop(&mut self) {
        self.second_level.lock().free();
    }
}

/// A vCPU's exits in order, and how many of them have been noted.
struct Tracing {
    trace: Trace,
    noted: u64,
}

/// The host of a vCPU that is traced: it takes its CPU back after each exit. Nothing else in the way of an exit knows of that.
struct SteppingHost {
    inner: Arc<MachineHost>,
    /// The vCPU's own, by which it is made to ask whether to yield.
    mailbox: Arc<Mailbox>,
    /// It has entered since it asked last.
    entered: AtomicBool,
}

impl VcpuHost for SteppingHost {
    fn now(&self) -> Nanos {
        VcpuHost::now(&*self.inner)
    }

    fn set_alarm(&self, until: Option<Nanos>) -> Option<u64> {
        self.inner.set_alarm(until)
    }

    fn should_yield(&self) -> bool {
        self.mailbox.post(Post::DEVICES);
        self.entered.fetch_not(Ordering::Relaxed)
    }
}

/// The host as one machine's processors and devices see it.
struct MachineHost {
    /// The host's time at the guest's time 0.
    launched: u64,
}

impl Clock for MachineHost {
    #[inline]
    fn now(&self) -> Nanos {
        Nanos(clock::now().saturating_sub(self.launched))
    }
}

impl HostTsc for MachineHost {
    fn now(&self) -> (u64, Nanos) {
        let tsc = cpu::rdtsc();
        (tsc, Nanos(clock::at(tsc).saturating_sub(self.launched)))
    }

    fn span(&self, ticks: u64) -> u64 {
        Nanos::of_ticks(ticks, clock::hertz()).0
    }
}

impl VcpuHost for MachineHost {
    fn now(&self) -> Nanos {
        Clock::now(self)
    }

    fn set_alarm(&self, until: Option<Nanos>) -> Option<u64> {
        scheduler::set_alarm(Slot::Guest, until.map(|at| at.0.saturating_add(self.launched)));
        // Where an interrupt for the host does not end a run at once, its slice does.
        let slice = clock::now() + SLICE;
        Some(clock::tsc_at(scheduler::next_alarm().map_or(slice, |next| next.min(slice))))
    }

    fn should_yield(&self) -> bool {
        scheduler::slice_is_over()
    }
}

/// Writes what the guest sends to its debug console into the log, line by line.
struct DebugLog {
    name: Arc<str>,
    line: Lock<ArrayString<120>>,
}

impl ByteSink for DebugLog {
    fn put(&self, byte: u8) {
        let mut line = self.line.lock();
        let printable = byte == b' ' || byte.is_ascii_graphic();
        if (printable && line.try_push(char::from(byte)).is_err()) || byte == b'\n' {
            log::debug!("{}: {}", self.name, &*line);
            line.clear();
        }
    }
}

/// A machine that has its memory, which is being cleared.
struct Reserved<B: Backend> {
    backend: &'static B,
    plan: Plan,
    arena: Arc<Arena>,
    /// Taken when it is all clear.
    ram: Option<GuestRam>,
    /// Holds the place on the heap for what is made when the RAM is clear.
    room: Vec<u8>,
}

/// Reserves the memory of the machine of `plan`.
///
/// # Errors
/// One line that says what is wrong and what to do.
pub fn reserve<B: Backend>(backend: &'static B, plan: Plan) -> Result<Box<dyn Construction>, String> {
    let mut room = Vec::new();
    room.try_reserve_exact(HEAP_FOR_MACHINE + plan.vcpus as usize * HEAP_FOR_VCPU).map_err(|_| {
        format!("no room for a virtual machine of {} vCPU(s) in the hypervisor's own heap; stop another one or give the host more memory", plan.vcpus)
    })?;
    let arena = Arena::new(Arena::size_for(plan.memory, plan.vcpus))
        .ok_or_else(|| String::from("not enough memory for the virtual machine's tables; give the host more"))?;
    let ram = guest_frames::allocate(&layout::ram_ranges(plan.memory)).ok_or_else(|| {
        format!("not enough memory for a virtual machine of {} MiB; give it less or the host more", plan.memory >> 20)
    })?;
    Ok(Box::new(Reserved { backend, plan, arena: Arc::new(arena), ram: Some(ram), room }))
}

impl<B: Backend> Construction for Reserved<B> {
    fn advance(&mut self) -> Result<Option<Arc<dyn RunningVm>>, String> {
        match self.ram.take() {
            Some(ram) if ram.clear_some(PIECE) => {
                self.room = Vec::new();
                self.launch(ram).map(Some)
            }
            unfinished => {
                self.ram = unfinished;
                Ok(None)
            }
        }
    }
}

impl<B: Backend> Reserved<B> {
    /// Makes the machine and gives its vCPUs to the scheduler.
    fn launch(&self, ram: GuestRam) -> Result<Arc<dyn RunningVm>, String> {
        let (backend, plan) = (self.backend, &self.plan);
        let frames: Arc<dyn FrameSource> = self.arena.clone();
        ram.hand_over();
        let second_level = map_ram(backend, &frames, &ram)?;

        let launched = clock::now();
        let host = Arc::new(MachineHost { launched });
        let facts = HostFacts { cpuid: &host_cpuid, allowed: allowed(backend), tsc_hz: clock::hertz() };
        let wakers: Vec<_> = (0..plan.vcpus).map(|_| scheduler::waker()).collect();
        let seats: Vec<_> = wakers
            .iter()
            .map(|waker| Seat {
                apic_page: Arc::new(RegisterPage::new()),
                mailbox: Arc::new(Mailbox::new(Arc::new(waker.clone()))),
            })
            .collect();
        let services = Services {
            clock: host.clone(),
            tsc: host.clone(),
            console_output: Arc::new(plan.console),
            console_input: Arc::new(plan.console),
            debug_output: Arc::new(DebugLog { name: plan.name.clone(), line: Lock::new(ArrayString::new_const()) }),
        };
        let config = MachineConfig {
            memory: plan.memory,
            vcpus: plan.vcpus,
            hyperv: plan.hyperv.then_some(Signature::Microsoft),
            debug_exit: plan.debug_exit,
            wall_time: plan.wall_time,
        };
        let start = direct_boot::prepare(&plan.boot, &config, &ram).map_err(|error| format!("{error}"))?;
        let machine = Machine::build(config, &facts, ram, &seats, services).map_err(|error| format!("{error}"))?;
        let machine = Arc::new(machine);

        let root = second_level.root();
        let shared = Arc::new(Shared::<B> {
            machine: machine.clone(),
            plan: plan.clone(),
            wakers: wakers.clone(),
            launched,
            gate: Lock::new(Gate::new()),
            cut: AtomicBool::new(false),
            restarted_at: AtomicU64::new(0),
            exits: [const { AtomicU64::new(0) }; KINDS],
            cpu_time: AtomicU64::new(0),
            second_level: Lock::new(second_level),
            arena: self.arena.clone(),
        });
        let mut tasks = Vec::new();
        for (number, seat) in (0..).zip(&seats) {
            let page = NonNull::from(&*seat.apic_page).cast();
            let apic = ApicBinding { page: seat.apic_page.clone(), physical: frames.physical(page) };
            let signature = (facts.cpuid)(1, 0).eax;
            let config = VcpuConfig { number, second_level_root: root, apic, signature, frames: &frames };
            let vcpu = backend.vcpu(config).map_err(|error| format!("{error}"))?;
            let seen: Arc<dyn VcpuHost> = if plan.trace {
                let (inner, mailbox) = (host.clone(), seat.mailbox.clone());
                Arc::new(SteppingHost { inner, mailbox, entered: AtomicBool::new(false) })
            } else {
                host.clone()
            };
            let mut processor = machine.processor(number, vcpu, &facts, seen);
            processor.reset(Some(&start).filter(|_| number == 0));
            let (shared, told) = (shared.clone(), [0; KINDS]);
            let tracing = plan.trace.then(|| Tracing { trace: Trace::default(), noted: 0 });
            tasks.push(VcpuTask { processor, shared, parking: Parking::No, told, told_at: launched, tracing });
        }
        let mailbox = seats.first().map(|seat| seat.mailbox.clone());
        plan.console.listen(Some(Box::new(move || mailbox.iter().for_each(|mailbox| mailbox.post(Post::DEVICES)))));
        for (task, waker) in tasks.into_iter().zip(wakers) {
            let name = format!("{}, vCPU {}", plan.name, task.processor.core.number);
            scheduler::spawn(&name, Role::Work, plan.weight, Box::new(task), waker);
        }
        Ok(shared)
    }
}

/// Logs a vCPU's exits in order, one run a line, between two lines that name it.
fn log_trace(vcpu: u32, trace: &Trace) {
    journal::print(format_args!("TRACE BEGIN vcpu {vcpu} hash {:#018x} lost {}\n", trace.hash(), trace.lost()));
    trace.runs().for_each(|run| journal::print(format_args!("TRACE {run}\n")));
    journal::print(format_args!("TRACE END\n"));
}

/// Second-level tables that map all of `ram`.
fn map_ram<B: Backend>(backend: &B, frames: &Arc<dyn FrameSource>, ram: &GuestRam) -> Result<B::SecondLevel, String> {
    let mut second_level = backend.second_level(frames).map_err(|error| format!("{error}"))?;
    for extent in ram.extents() {
        let (gpa, hpa) = (Gpa(extent.gpa), Hpa(extent.physical));
        second_level
            .map(gpa, hpa, extent.length, Permissions::all(), MemoryType::WriteBack)
            .map_err(|error| format!("{error}"))?;
    }
    Ok(second_level)
}

/// CPUID as the physical processor answers it; leaves that it does not have read as zero.
fn host_cpuid(leaf: u32, subleaf: u32) -> CpuidAnswer {
    let highest = native_cpuid::cpuid_count(leaf & 0xf000_0000, 0).eax;
    if leaf > highest {
        return CpuidAnswer::default();
    }
    let answer = native_cpuid::cpuid_count(leaf, subleaf);
    CpuidAnswer { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx }
}

/// What guests may be told beside the host's CPUID. The host's own clock is the TSC, so where it is not invariant by CPUID it
/// is at least in fact: a virtual TSC, under another hypervisor, runs at one rate.
fn allowed<B: Backend>(backend: &B) -> Allowed {
    const INVARIANT_TSC: u32 = 1 << 8;
    const HYPERVISOR: u32 = 1 << 31;
    let features = backend.guest_features();
    Allowed {
        rdtscp: features.rdtscp,
        invpcid: features.invpcid,
        speculation: features.speculation,
        invariant_tsc: host_cpuid(0x8000_0007, 0).edx & INVARIANT_TSC != 0 || host_cpuid(1, 0).ecx & HYPERVISOR != 0,
    }
}
