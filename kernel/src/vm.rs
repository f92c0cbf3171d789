//! One virtual machine on this host: its memory, its second-level tables, its vCPUs as tasks, and how it ends.
//!
//! Key types: [`Plan`] (what the user asked for), [`launch`] (makes it and gives its vCPUs to the scheduler), [`Ending`]
//! (what [`take_ending`] gives when the scheduler has come back). Generic over the backend, which was picked once.
//! Neighbours: `machine` runs the guest, `scheduler` the tasks.
//!
//! A machine's vCPUs stop together: each one parks, and the last to park carries out the reset or the end.

use crate::alarms::Slot;
use crate::arena::Arena;
use crate::console::{self, Console};
use crate::guest_ram::GuestRam;
use crate::lock::Lock;
use crate::run_queue::{Poll, Role, Task, USUAL_WEIGHT, Waker};
use crate::{clock, guest_frames, scheduler};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use arrayvec::ArrayString;
use core::ptr::NonNull;
use devices::lapic::TscTime;
use devices::rtc::WallTime;
use devices::{ByteSink, Clock, Nanos, PowerEvent, PowerSink};
use log::info;
use machine::cpuid::Allowed;
use machine::direct_boot::{self, DirectBoot};
use machine::hyperv::Signature;
use machine::report::Report;
use machine::{HostFacts, Machine, MachineConfig, Outcome, Processor, Seat, Services, VcpuHost, layout};
use memory::{Gpa, RegisterPage};
use raw_cpuid::native_cpuid;
use vcpu::{
    ApicBinding, ArchState, Backend, CpuidAnswer, ExitKind, FrameSource, Hpa, Mailbox, MemoryType, Permissions, Post, SecondLevel, Vcpu, VcpuConfig,
    Wake,
};

/// What the user asked for.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Bytes of RAM, a multiple of 2 MiB.
    pub memory: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// What is started.
    pub boot: DirectBoot<'static>,
    /// Offer QEMU's debug-exit port.
    pub debug_exit: bool,
    /// Offer the Hyper-V interface.
    pub hyperv: bool,
    /// What the guest's real-time clock shows at first.
    pub wall_time: WallTime,
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

/// A machine that ended, and what it did.
#[derive(Clone, Debug)]
pub struct Ending {
    /// How.
    pub end: End,
    /// Exits by kind, of all vCPUs; kinds that did not occur are left out.
    pub exits: Vec<(&'static str, u64)>,
    /// Nanoseconds from launch to end.
    pub run_time: u64,
    /// Bytes of tables, vCPU structures and the like that the machine had beside its RAM.
    pub overhead: u64,
}

static ENDING: Lock<Option<Ending>> = Lock::new(None);

/// The ending of the machine that ran, once.
pub fn take_ending() -> Option<Ending> {
    ENDING.lock().take()
}

/// Asks every machine to end as if its power was cut.
pub fn power_off() {
    if let Some(cut) = CUT.lock().as_ref() {
        cut();
    }
}

static CUT: Lock<Option<Box<dyn Fn() + Send>>> = Lock::new(None);

/// What all vCPUs of one machine share on the host.
struct Shared<B: Backend> {
    machine: Arc<Machine<GuestRam>>,
    plan: Plan,
    wakers: Vec<Waker>,
    launched: u64,
    gate: Lock<Gate>,
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
    end: Option<End>,
    exits: [u64; ExitKind::ALL.len()],
    finished: u32,
}

impl Gate {
    const fn new() -> Gate {
        Gate { parked: 0, generation: 0, start: None, end: None, exits: [0; ExitKind::ALL.len()], finished: 0 }
    }
}

/// A vCPU as a task of this host.
struct VcpuTask<B: Backend> {
    processor: Processor<B::Vcpu, GuestRam>,
    shared: Arc<Shared<B>>,
    /// The generation in which it parked.
    parked: Option<u32>,
}

impl<B: Backend> Task for VcpuTask<B> {
    fn poll(&mut self) -> Poll {
        if let Some(generation) = self.parked
            && let Some(poll) = self.wait(generation)
        {
            return poll;
        }
        self.processor.vcpu.load();
        let outcome = self.processor.run();
        scheduler::set_alarm(Slot::Guest, None);
        self.processor.vcpu.unload();
        match outcome {
            Outcome::Blocked { until } => Poll::Blocked { until: until.map(|at| at.0.saturating_add(self.shared.launched)) },
            Outcome::Preempted => Poll::Yield,
            Outcome::Power(event) => self.park(match event {
                PowerEvent::Reset => None,
                PowerEvent::Off => Some(End::PoweredOff),
                PowerEvent::DebugExit(value) => Some(End::DebugExit(value)),
            }),
            Outcome::Stopped(stop) => {
                let report = Report::new(&stop, &mut self.processor);
                self.park(Some(End::Stopped(Box::new(report))))
            }
        }
    }
}

impl<B: Backend> VcpuTask<B> {
    /// Waits at the gate; `None` when the machine was restarted.
    fn wait(&mut self, generation: u32) -> Option<Poll> {
        let mut gate = self.shared.gate.lock();
        if gate.end.is_some() && gate.parked == self.shared.plan.vcpus {
            return Some(self.finish(&mut gate));
        }
        if gate.generation == generation {
            return Some(Poll::Blocked { until: None });
        }
        let start = if self.processor.core.number == 0 { gate.start.take() } else { None };
        drop(gate);
        self.parked = None;
        self.processor.reset(start.as_ref());
        None
    }

    /// Comes to the gate, with the reason if this vCPU knows one. The last to come opens it.
    fn park(&mut self, end: Option<End>) -> Poll {
        let mut gate = self.shared.gate.lock();
        self.parked = Some(gate.generation);
        gate.parked += 1;
        let better = matches!(end, Some(End::Stopped(_)));
        if end.is_some() && (gate.end.is_none() || better) {
            gate.end = end;
        }
        if gate.parked < self.shared.plan.vcpus {
            return Poll::Blocked { until: None };
        }
        if gate.end.is_none() {
            match self.shared.restart() {
                Ok(start) => {
                    gate.start = Some(start);
                    gate.generation += 1;
                    gate.parked = 0;
                }
                Err(reason) => gate.end = Some(End::NotRestarted(reason)),
            }
        }
        self.shared.wakers.iter().for_each(Wake::wake);
        drop(gate);
        Poll::Yield
    }

    /// Adds this vCPU's counts; the last one leaves the machine's ending.
    fn finish(&self, gate: &mut Gate) -> Poll {
        for kind in ExitKind::ALL {
            gate.exits[*kind as usize] += self.processor.core.recorder.count(*kind);
        }
        gate.finished += 1;
        if gate.finished == self.shared.plan.vcpus
            && let Some(end) = gate.end.take()
        {
            let counted = ExitKind::ALL.iter().map(|kind| (kind.name(), gate.exits[*kind as usize]));
            *ENDING.lock() = Some(Ending {
                end,
                exits: counted.filter(|(_, count)| *count > 0).collect(),
                run_time: clock::now().saturating_sub(self.shared.launched),
                overhead: self.shared.arena.usage().0,
            });
        }
        Poll::Finished
    }
}

impl<B: Backend> Shared<B> {
    /// Platform reset, and the kernel loaded anew.
    fn restart(&self) -> Result<ArchState, String> {
        self.machine.reset();
        info!("the guest restarts");
        direct_boot::prepare(&self.plan.boot, self.machine.config(), self.machine.ram()).map_err(|error| format!("{error}"))
    }
}

impl<B: Backend> Drop for Shared<B> {
    fn drop(&mut self) {
        self.second_level.lock().free();
    }
}

/// The host as one machine's processors and devices see it.
struct MachineHost {
    /// The host's time at the guest's time 0.
    launched: u64,
    tsc_hertz: u64,
}

impl Clock for MachineHost {
    #[inline]
    fn now(&self) -> Nanos {
        Nanos(clock::now().saturating_sub(self.launched))
    }
}

impl TscTime for MachineHost {
    fn moment(&self, tsc: u64) -> Nanos {
        Nanos::of_ticks(tsc, self.tsc_hertz)
    }
}

impl VcpuHost for MachineHost {
    fn now(&self) -> Nanos {
        Clock::now(self)
    }

    fn set_alarm(&self, until: Option<Nanos>) -> Option<u64> {
        scheduler::set_alarm(Slot::Guest, until.map(|at| at.0.saturating_add(self.launched)));
        scheduler::next_alarm().map(clock::tsc_at)
    }

    fn should_yield(&self) -> bool {
        scheduler::slice_is_over()
    }
}

/// Writes what the guest sends to its debug console into the log, line by line.
struct DebugLog(Lock<ArrayString<120>>);

impl ByteSink for DebugLog {
    fn put(&self, byte: u8) {
        let mut line = self.0.lock();
        let printable = byte == b' ' || byte.is_ascii_graphic();
        if (printable && line.try_push(char::from(byte)).is_err()) || byte == b'\n' {
            log::debug!("guest: {}", &*line);
            line.clear();
        }
    }
}

/// Makes the machine of `plan` and gives its vCPUs to the scheduler.
///
/// # Errors
/// One line that says what is wrong and what to do.
pub fn launch<B: Backend>(backend: &B, plan: Plan) -> Result<(), String> {
    let arena = Arena::new(Arena::size_for(plan.memory, plan.vcpus))
        .ok_or_else(|| String::from("not enough memory for the virtual machine's tables; give the host more"))?;
    let arena = Arc::new(arena);
    let frames: Arc<dyn FrameSource> = arena.clone();
    let ram = guest_frames::allocate(&layout::ram_ranges(plan.memory)).ok_or_else(|| {
        format!("not enough memory for a virtual machine of {} MiB; give it less or the host more", plan.memory >> 20)
    })?;
    let second_level = map_ram(backend, &frames, &ram)?;

    let launched = clock::now();
    let tsc_hertz = clock::hertz();
    let host = Arc::new(MachineHost { launched, tsc_hertz });
    let facts = HostFacts { cpuid: &host_cpuid, allowed: allowed(backend), tsc_hz: tsc_hertz };
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
        console_output: Arc::new(Console),
        console_input: Arc::new(Console),
        debug_output: Arc::new(DebugLog(Lock::new(ArrayString::new_const()))),
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
        plan,
        wakers: wakers.clone(),
        launched,
        gate: Lock::new(Gate::new()),
        second_level: Lock::new(second_level),
        arena,
    });
    for (number, (seat, waker)) in (0..).zip(seats.iter().zip(&wakers)) {
        let page = NonNull::from(&*seat.apic_page).cast();
        let apic = ApicBinding { page: seat.apic_page.clone(), physical: frames.physical(page) };
        let signature = (facts.cpuid)(1, 0).eax;
        let config = VcpuConfig { number, second_level_root: root, apic, signature, frames: &frames };
        let vcpu = backend.vcpu(config).map_err(|error| format!("{error}"))?;
        let mut processor = machine.processor(number, vcpu, &facts, host.clone());
        processor.reset(Some(&start).filter(|_| number == 0));
        let task = VcpuTask { processor, shared: shared.clone(), parked: None };
        scheduler::spawn("vcpu", Role::Work, USUAL_WEIGHT, Box::new(task), waker.clone());
    }
    let mailbox = seats.first().map(|seat| seat.mailbox.clone());
    console::listen(Box::new(move || mailbox.iter().for_each(|mailbox| mailbox.post(Post::DEVICES))));
    *CUT.lock() = Some(Box::new(move || machine.power().request(PowerEvent::Off)));
    Ok(())
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
        invariant_tsc: host_cpuid(0x8000_0007, 0).edx & INVARIANT_TSC != 0 || host_cpuid(1, 0).ecx & HYPERVISOR != 0,
    }
}
