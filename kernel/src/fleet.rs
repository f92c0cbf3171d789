//! All virtual machines of this host: starts them, stops them, takes their memory back, and ends the host with the last.
//!
//! Key type: [`Fleet`], one host task that owns the machines and carries out what the monitor and the control line ask for.
//! It works in pieces of a few milliseconds, so that machines that run hardly notice. Neighbours: `vm` makes one machine,
//! `console` has their consoles, `monitor` reads commands.
//!
//! The host ends when the last running machine has ended by itself, and when it is asked to. A machine that was stopped by
//! command can be started again, so the host waits for that.

use crate::definitions::Definition;
use crate::monitor::{self, Command, LineEditor, Typed};
use crate::run_queue::{Poll, Task, Waker};
use crate::shutdown::Outcome;
use crate::time::MILLISECOND;
use crate::vm::{Construction, End, Ending, KINDS, Plan, Progress, RunningVm};
use crate::{clock, console, control, cpu, heap, journal, percpu, ram};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use devices::ByteSource;
use devices::rtc::WallTime;
use log::info;
use machine::direct_boot::DirectBoot;
use machine::report::Report;
use vcpu::ExitKind;

/// Makes a machine on the backend that was picked.
pub type Maker = Box<dyn Fn(Plan) -> Result<Box<dyn Construction>, String> + Send>;

/// Lines of the log that the monitor shows.
const LOG_LINES: usize = 20;
/// How long is waited for the tasks of a machine that has ended to go, in nanoseconds.
const TASKS_GO: u64 = MILLISECOND / 4;

/// A machine of this host, whether it runs or not.
struct Slot {
    definition: Definition,
    boot: DirectBoot<'static>,
    state: State,
    starts: u32,
    /// How it ended last.
    last: Last,
    /// What it did in all its runs that have ended.
    past: Progress,
}

enum State {
    Off,
    /// Its memory is being cleared, its kernel loaded.
    Making(Box<dyn Construction>),
    /// The flag: it was stopped by command.
    Running(Arc<dyn RunningVm>, bool),
    /// It has ended and its memory is being cleared.
    Clearing(Arc<dyn RunningVm>),
}

enum Last {
    Nothing,
    PoweredOff,
    DebugExit(u32),
    Stopped(Box<Report>),
    /// It could not be started, or not restarted.
    Failed,
}

/// All machines.
pub struct Fleet {
    make: Maker,
    slots: Vec<Slot>,
    /// Seconds since 1970 when the host's clock was at 0.
    wall_start: u64,
    waker: Waker,
    /// The machines that start with the host have been.
    begun: bool,
    /// The last machine was stopped by command: another may be started.
    stays: bool,
    /// No machine is to run any more.
    closing: bool,
    /// The statistics have been written.
    told: bool,
    editor: LineEditor,
    /// What becomes of the host's run; the worst so far.
    outcome: Arc<crate::lock::Lock<Outcome>>,
}

impl Fleet {
    /// Machines as defined, each with its modules, none running. `wall_start` is the time in seconds since 1970 when the
    /// host's clock was at 0; `outcome` gets what becomes of the run.
    pub fn new(
        make: Maker,
        machines: Vec<(Definition, DirectBoot<'static>)>,
        wall_start: u64,
        waker: Waker,
        outcome: Arc<crate::lock::Lock<Outcome>>,
    ) -> Self {
        let slot = |(definition, boot)| Slot {
            definition,
            boot,
            state: State::Off,
            starts: 0,
            last: Last::Nothing,
            past: Progress::NONE,
        };
        let slots = machines.into_iter().map(slot).collect();
        let editor = LineEditor::default();
        Self { make, slots, wall_start, waker, begun: false, stays: false, closing: false, told: false, editor, outcome }
    }
}

impl Task for Fleet {
    fn poll(&mut self) -> Poll {
        if !self.begun {
            self.begin();
        }
        self.listen();
        let mut next = Poll::Blocked { until: None };
        for number in 0..self.slots.len() {
            match self.advance(number) {
                Poll::Blocked { until: None } | Poll::Finished => {}
                Poll::Yield => next = Poll::Yield,
                until if next != Poll::Yield => next = until,
                _ => {}
            }
        }
        let runs = |slot: &Slot| matches!(slot.state, State::Making(_) | State::Running(..));
        if !self.slots.iter().any(runs) && !self.stays {
            self.closing = true;
        }
        if self.closing && !self.told && !self.slots.iter().any(runs) {
            self.told = true;
            journal::print(format_args!("STATS {}\n", Statistics(self)));
        }
        if self.told && self.slots.iter().all(|slot| matches!(slot.state, State::Off)) {
            return Poll::Finished;
        }
        next
    }
}

impl Fleet {
    /// Starts the machines that start with the host.
    fn begin(&mut self) {
        self.begun = true;
        let _ = write!(console::of(0), "Gearshift's monitor; 'help' lists what there is.\n{}", monitor::PROMPT);
        self.stays = !self.slots.iter().any(|slot| slot.definition.autostart);
        for number in 0..self.slots.len() {
            if self.slots[number].definition.autostart
                && let Err(problem) = self.start(number)
            {
                self.failed(number, &problem);
                worsen(&self.outcome, Outcome::UserError);
            }
        }
        if self.stays {
            console::notice(format_args!("no machine is started with the host; Ctrl-A m opens the monitor"));
        } else if self.slots.len() > 1 {
            console::notice(format_args!("{} machines; Ctrl-A h tells the keys", self.slots.len()));
            if let Some(first) = self.slots.iter().position(|slot| slot.definition.autostart && slot.definition.console) {
                console::focus(first + 1);
            }
        }
    }

    /// Reserves a machine's memory; the rest follows in pieces.
    fn start(&mut self, number: usize) -> Result<(), String> {
        let slot = &mut self.slots[number];
        let definition = &slot.definition;
        let now = clock::now();
        let plan = Plan {
            name: Arc::from(definition.name.as_str()),
            memory: definition.memory,
            vcpus: definition.vcpus,
            weight: definition.weight,
            boot: slot.boot,
            debug_exit: definition.debug_exit,
            trace: definition.trace,
            hyperv: definition.hyperv,
            wall_time: WallTime {
                seconds: self.wall_start + now / 1_000_000_000,
                nanos: (now % 1_000_000_000) as u32,
            },
            console: console::of(number + 1),
            keeper: self.waker.clone(),
        };
        slot.state = State::Making((self.make)(plan)?);
        self.stays = false;
        Ok(())
    }

    /// Does a machine's next piece of work.
    fn advance(&mut self, number: usize) -> Poll {
        let slot = &mut self.slots[number];
        match &mut slot.state {
            State::Off => Poll::Blocked { until: None },
            State::Making(construction) => {
                match construction.advance() {
                    Ok(None) => {}
                    Ok(Some(vm)) => {
                        slot.starts += 1;
                        slot.state = State::Running(vm, false);
                        self.log_start(number);
                    }
                    Err(problem) => {
                        slot.state = State::Off;
                        // Who starts one by command sees that it failed; the host's run is none the worse.
                        if slot.definition.autostart && slot.starts == 0 {
                            worsen(&self.outcome, Outcome::UserError);
                        }
                        self.failed(number, &problem);
                    }
                }
                Poll::Yield
            }
            State::Running(vm, by_command) => {
                let Some(ending) = vm.take_ending() else { return Poll::Blocked { until: None } };
                let (vm, by_command) = (vm.clone(), *by_command);
                slot.state = State::Clearing(vm);
                self.ended(number, ending);
                self.stays = by_command;
                Poll::Yield
            }
            State::Clearing(vm) => {
                // The scheduler may still be dropping its tasks.
                if Arc::strong_count(vm) > 1 {
                    return Poll::Blocked { until: Some(clock::now() + TASKS_GO) };
                }
                if vm.clear_some() {
                    slot.state = State::Off;
                    info!("{}: its memory is free", slot.definition.name);
                }
                Poll::Yield
            }
        }
    }

    fn log_start(&self, number: usize) {
        let Definition { name, memory, vcpus, .. } = &self.slots[number].definition;
        let own = self.own_memory() >> 10;
        info!("{name}: the guest starts with {} MiB and {vcpus} vCPU(s); the hypervisor has {own} KiB for itself", memory >> 20);
    }

    /// Bytes of RAM that no machine has and that are not free.
    fn own_memory(&self) -> u64 {
        let used = ram::with_frames(|frames| frames.total_bytes() - frames.free_bytes());
        let machines: u64 = self
            .slots
            .iter()
            .map(|slot| match &slot.state {
                State::Off => 0,
                State::Making(_) => slot.definition.memory,
                State::Running(vm, _) | State::Clearing(vm) => slot.definition.memory + vm.progress().overhead,
            })
            .sum();
        used.saturating_sub(machines)
    }

    /// A machine could not be started.
    fn failed(&mut self, number: usize, problem: &str) {
        let slot = &mut self.slots[number];
        slot.last = Last::Failed;
        log::error!("{}: {problem}", slot.definition.name);
        self.show(number, format_args!("could not be started"));
    }

    /// Notes how a machine ended and what it did.
    fn ended(&mut self, number: usize, Ending { end, progress }: Ending) {
        let slot = &mut self.slots[number];
        let name = slot.definition.name.as_str();
        console::of(number + 1).listen(None);
        slot.past = sum(&slot.past, &progress);
        slot.last = match end {
            End::PoweredOff => {
                info!("{name}: the guest was powered off");
                Last::PoweredOff
            }
            End::DebugExit(value) => {
                info!("{name}: the guest wrote {value:#x} to its debug-exit port");
                Last::DebugExit(value)
            }
            End::Stopped(report) => {
                log::error!("{name}: the guest was stopped: {}", report.reason);
                journal::print(format_args!("REPORT BEGIN {name}\n{report}REPORT END\nREPORT JSON {}\n", report.json(name)));
                worsen(&self.outcome, Outcome::Stopped);
                Last::Stopped(report)
            }
            End::NotRestarted(reason) => {
                log::error!("{name}: the guest could not restart: {reason}");
                worsen(&self.outcome, Outcome::Stopped);
                Last::Failed
            }
        };
        let last = self.slots[number].last.word();
        self.show(number, format_args!("{last}"));
    }

    /// Tells on the serial line what became of a machine, where there are others.
    fn show(&self, number: usize, what: fmt::Arguments<'_>) {
        if self.slots.len() > 1 {
            console::notice(format_args!("{}: {what}", self.slots[number].definition.name));
        }
    }

    /// Takes what was typed at the monitor and sent on the control line.
    fn listen(&mut self) {
        while let Some(line) = control::take_line() {
            info!("control line: {line}");
            // A writer that never fails.
            let _ = self.carry_out(&line, &mut Log);
        }
        let mut screen = console::of(0);
        while let Some(byte) = screen.take() {
            let typed = self.editor.feed(byte);
            let _ = match typed {
                Typed::Shown(byte) => screen.write_char(char::from(byte)),
                Typed::RubbedOut => screen.write_str("\x08 \x08"),
                Typed::GivenUp => write!(screen, "\n{}", monitor::PROMPT),
                Typed::Nothing => Ok(()),
                Typed::Complete => {
                    let line = self.editor.take();
                    screen
                        .write_char('\n')
                        .and_then(|()| self.carry_out(&line, &mut screen))
                        .and_then(|()| screen.write_str(monitor::PROMPT))
                }
            };
        }
        while let Some(key) = console::take_command() {
            console::notice(format_args!("Ctrl-A {} is unknown; Ctrl-A h tells the keys", key.escape_ascii()));
        }
    }

    fn carry_out(&mut self, line: &str, out: &mut dyn Write) -> fmt::Result {
        let command = match Command::parse(line) {
            Ok(command) => command,
            Err(error) => return writeln!(out, "{error}"),
        };
        match command {
            Command::Nothing => Ok(()),
            Command::Help => out.write_str(monitor::HELP),
            Command::List => self.list(out),
            Command::Stats => self.statistics(out),
            Command::Log => out.write_str(&journal::last_lines(LOG_LINES)),
            Command::Memory => {
                let frames = ram::with_frames(|frames| frames.free_bytes());
                let heap = heap::usage();
                let heap = (heap.size - heap.used) as u64;
                writeln!(out, "MEMORY free={} frames={frames} heap={heap}", frames + heap)
            }
            Command::Quit => {
                self.quit();
                Ok(())
            }
            Command::Start(name) | Command::Stop(name) | Command::Report(name) | Command::Focus(name) => {
                match self.slots.iter().position(|slot| slot.definition.name == name) {
                    Some(number) => self.carry_out_on(command, number, out),
                    None => writeln!(out, "there is no machine '{name}'; 'list' shows them"),
                }
            }
        }
    }

    /// Carries out a command that is about one machine.
    fn carry_out_on(&mut self, command: Command<'_>, number: usize, out: &mut dyn Write) -> fmt::Result {
        let slot = &mut self.slots[number];
        match (command, &mut slot.state) {
            (Command::Start(_), State::Off) if !self.closing => match self.start(number) {
                Ok(()) => Ok(()),
                Err(problem) => {
                    self.failed(number, &problem);
                    writeln!(out, "{problem}")
                }
            },
            (Command::Start(name), state) => writeln!(out, "{name} cannot be started: it is {}", state.word()),
            (Command::Stop(_), State::Running(vm, by_command)) => {
                *by_command = true;
                vm.cut_power();
                Ok(())
            }
            (Command::Stop(_), State::Making(_)) => {
                slot.state = State::Off;
                self.stays = true;
                Ok(())
            }
            (Command::Stop(name), state) => writeln!(out, "{name} cannot be stopped: it is {}", state.word()),
            (Command::Focus(name), _) if !console::focus(number + 1) => writeln!(out, "{name} has no console"),
            (Command::Report(name), _) => match &slot.last {
                Last::Stopped(report) => write!(out, "{report}"),
                _ => writeln!(out, "{name} left no report: it was not stopped"),
            },
            _ => Ok(()),
        }
    }

    /// Ends all machines; the host ends when they have.
    fn quit(&mut self) {
        self.closing = true;
        for slot in &mut self.slots {
            match &slot.state {
                State::Running(vm, _) => vm.cut_power(),
                State::Making(_) => slot.state = State::Off,
                State::Off | State::Clearing(_) => {}
            }
        }
    }

    fn list(&self, out: &mut dyn Write) -> fmt::Result {
        for (number, slot) in (1..).zip(&self.slots) {
            let Definition { name, memory, vcpus, weight, .. } = &slot.definition;
            let state = slot.state.word();
            write!(out, "{number} {name:<24} {state:<8} {:>6} MiB {vcpus:>2} vCPU(s) weight {weight}", memory >> 20)?;
            match &slot.last {
                Last::Nothing => writeln!(out)?,
                last => writeln!(out, ", last {}", last.word())?,
            }
        }
        Ok(())
    }

    fn statistics(&self, out: &mut dyn Write) -> fmt::Result {
        for slot in &self.slots {
            let progress = slot.progress();
            let exits: u64 = progress.exits.iter().sum();
            let milliseconds = |time: u64| time / MILLISECOND;
            let (ran, used) = (milliseconds(progress.run_time), milliseconds(progress.cpu_time));
            writeln!(out, "{:<24} ran {ran} ms, used {used} ms of CPU, {exits} exits", slot.definition.name)?;
            let counted = ExitKind::ALL.iter().zip(progress.exits).filter(|(_, count)| *count > 0);
            for (kind, count) in counted {
                writeln!(out, "  {:<20} {count:>12}", kind.name())?;
            }
        }
        let now = clock::now();
        for cpu in percpu::all() {
            let (idle, interrupts) = (cpu.idle_time(now), cpu.interrupts());
            let percent = u128::from(idle) * 100 / u128::from(now.max(1));
            write!(out, "CPU {}: idle {} ms ({percent} %), {interrupts} interrupts", cpu.number, idle / MILLISECOND)?;
            let running = cpu.queue.lock().running().map(String::from);
            match running {
                Some(task) => writeln!(out, ", runs {task}")?,
                None => writeln!(out)?,
            }
        }
        Ok(())
    }
}

impl State {
    fn word(&self) -> &'static str {
        match self {
            State::Off => "off",
            State::Making(_) => "starting",
            State::Running(_, false) => "running",
            State::Running(_, true) => "stopping",
            State::Clearing(_) => "ending",
        }
    }
}

impl Last {
    fn word(&self) -> &'static str {
        match self {
            Last::Nothing => "never started",
            Last::PoweredOff => "powered off",
            Last::DebugExit(_) => "ended by its debug-exit port",
            Last::Stopped(_) => "stopped with a report",
            Last::Failed => "could not be started",
        }
    }

    /// For the statistics.
    fn key(&self) -> &'static str {
        match self {
            Last::Nothing => "never_started",
            Last::PoweredOff => "powered_off",
            Last::DebugExit(_) => "debug_exit",
            Last::Stopped(_) => "stopped",
            Last::Failed => "failed",
        }
    }
}

impl Slot {
    /// What it did in all its runs.
    fn progress(&self) -> Progress {
        match &self.state {
            State::Running(vm, _) => sum(&self.past, &vm.progress()),
            _ => self.past,
        }
    }
}

/// Both together; the overhead is the larger one's, for they did not have it at the same time.
fn sum(one: &Progress, other: &Progress) -> Progress {
    Progress {
        exits: core::array::from_fn(|kind| one.exits[kind] + other.exits[kind]),
        run_time: one.run_time + other.run_time,
        cpu_time: one.cpu_time + other.cpu_time,
        overhead: one.overhead.max(other.overhead),
    }
}

/// Notes an outcome if it is worse than what is noted.
fn worsen(noted: &crate::lock::Lock<Outcome>, outcome: Outcome) {
    let rank = |outcome: Outcome| match outcome {
        Outcome::PoweredOff => 0,
        Outcome::UserError => 1,
        Outcome::Stopped => 2,
        Outcome::Panic => 3,
    };
    let mut noted = noted.lock();
    if rank(outcome) > rank(*noted) {
        *noted = outcome;
    }
}

/// Answers on the control line are lines of the log as they are.
struct Log;

impl Write for Log {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        journal::print(format_args!("{text}"));
        Ok(())
    }
}

/// The statistics as one JSON object: of all machines together, and of each.
struct Statistics<'a>(&'a Fleet);

impl fmt::Display for Statistics<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fleet = self.0;
        let mut all = Progress::NONE;
        let mut overhead = 0;
        for slot in &fleet.slots {
            let progress = slot.progress();
            all = sum(&all, &progress);
            overhead += progress.overhead;
        }
        // Machines ran side by side: the longest run counts.
        let longest = fleet.slots.iter().map(|slot| slot.progress().run_time).max().unwrap_or(0);
        write!(f, "{{\"exits\":{}", Exits(&all.exits))?;
        write!(
            f,
            ",\"run_time_ns\":{longest},\"instructions\":{},\"hypervisor_memory_bytes\":{},\"vm_memory_bytes\":{overhead},\"cpus\":[",
            cpu::rdtsc(),
            fleet.own_memory()
        )?;
        let now = clock::now();
        for cpu in percpu::all() {
            let comma = if cpu.number == 0 { "" } else { "," };
            let (idle, interrupts) = (cpu.idle_time(now), cpu.interrupts());
            write!(f, "{comma}{{\"idle_ns\":{idle},\"interrupts\":{interrupts}}}")?;
        }
        f.write_str("],\"vms\":[")?;
        for (number, slot) in fleet.slots.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let progress = slot.progress();
            write!(
                f,
                "{comma}{{\"name\":\"{}\",\"end\":\"{}\",\"starts\":{},\"exits\":{},\"run_time_ns\":{},\"cpu_time_ns\":{},\"vm_memory_bytes\":{}",
                slot.definition.name,
                slot.last.key(),
                slot.starts,
                Exits(&progress.exits),
                progress.run_time,
                progress.cpu_time,
                progress.overhead
            )?;
            if let Last::DebugExit(value) = slot.last {
                write!(f, ",\"debug_exit\":{value}")?;
            }
            f.write_str("}")?;
        }
        f.write_str("]}")
    }
}

/// Exits by kind as a JSON object; kinds that did not occur are left out.
struct Exits<'a>(&'a [u64; KINDS]);

impl fmt::Display for Exits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = ExitKind::ALL.iter().zip(self.0).filter(|(_, count)| **count > 0);
        f.write_str("{")?;
        for (number, (kind, count)) in counted.enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}\"{}\":{count}", kind.name())?;
        }
        f.write_str("}")
    }
}
