//! From the loader's hands to the scheduler: the order in which the host is built.
//!
//! 1. CPU registers, serial ports, log, IDT: from here on whatever goes wrong says so.
//! 2. RAM, the host's own page tables, the heap, a stack with a guard page, GDT and TSS.
//! 3. ACPI, interrupt controllers, the clock, the timer.
//! 4. What the CPU can virtualize; then the virtual machine, run by the scheduler.

#![allow(unsafe_code)] // The change of stacks.

use crate::layout::STACK_SIZE;
use crate::acpi::Platform;
use crate::arena::Arena;
use crate::detect::Virtualization;
use crate::definitions::{self, COMMAND_LINE_MODULE, CommandLine, Definition};
use crate::options::Options;
use crate::fleet::Fleet;
use crate::lock::Lock;
use crate::run_queue::{Role, USUAL_WEIGHT};
use crate::shutdown::{self, Outcome};
use crate::{
    address_space, apic, clock, console, control, cpu, detect, firmware, gdt, heap, idt, ioapic, journal, percpu, pic, ram, rtc, scheduler, self_test, serial, smp, stacks, vm,
};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use boot::{BootError, BootInfo, Module};
use core::arch::naked_asm;
use core::fmt;
use log::info;
use machine::direct_boot::DirectBoot;
use vcpu::{Backend, FrameSource, Wake};

/// Builds the host and runs it. Called by the binary on the boot stack.
pub fn start(boot: Result<BootInfo<'static>, BootError>) -> ! {
    serial::init();
    journal::init();
    idt::init();
    info!("Gearshift {}", env!("CARGO_PKG_VERSION"));
    let boot = boot.unwrap_or_else(|error| refuse(error));
    cpu::prepare().unwrap_or_else(|missing| lacking(missing));
    report_boot(&boot);

    ram::init(&boot).unwrap_or_else(|error| refuse(error.0));
    address_space::init(&boot).unwrap_or_else(|_| refuse(TOO_LITTLE_MEMORY));
    let memory = ram::with_frames(|frames| frames.total_bytes());
    let heap = ram::allocate_zeroed(heap::size_for(memory), 4096).unwrap_or_else(|| refuse(TOO_LITTLE_MEMORY));
    heap::init(heap);
    let stack = stacks::allocate(STACK_SIZE).unwrap_or_else(|_| refuse(TOO_LITTLE_MEMORY));
    let boot: &'static BootInfo<'static> = alloc::boxed::Box::leak(alloc::boxed::Box::new(boot));
    // SAFETY: the new stack is mapped and nobody else's; nothing on the old one is used any more.
    unsafe { continue_on(stack, boot) }
}

const TOO_LITTLE_MEMORY: &str = "not enough memory for the hypervisor itself; give the host 64 MiB at least";

/// Ends the run with one line that says what is wrong and what to do.
pub fn refuse(reason: impl fmt::Display) -> ! {
    log::error!("{reason}");
    shutdown::end(Outcome::UserError)
}

/// Ends the run because this computer lacks something.
fn lacking(missing: cpu::Missing) -> ! {
    refuse(format_args!("this computer lacks {}", missing.0))
}

/// Calls [`on_own_stack`] with `boot` on the stack that ends at `stack`.
///
/// # Safety
/// The stack is mapped, and no reference into the old one is used afterwards.
#[unsafe(naked)]
unsafe extern "C" fn continue_on(stack: u64, boot: &'static BootInfo<'static>) -> ! {
    naked_asm!(
        "movq %rdi, %rsp",
        "movq %rsi, %rdi",
        // The end of the chain of frame pointers.
        "xorl %ebp, %ebp",
        "call {on_own_stack}",
        "ud2",
        on_own_stack = sym on_own_stack,
        options(att_syntax)
    )
}

/// The rest of the way, on the boot CPU's own stack.
extern "C" fn on_own_stack(boot: &'static BootInfo<'static>) -> ! {
    gdt::init().unwrap_or_else(|_| refuse(TOO_LITTLE_MEMORY));
    let (free, total) = ram::with_frames(|frames| (frames.free_bytes(), frames.total_bytes()));
    info!("memory: {} MiB free of {} MiB; page tables are the host's own, W^X", free >> 20, total >> 20);

    let platform = firmware::read_platform(boot.rsdp).unwrap_or_else(|problem| refuse(problem));
    info!(
        "ACPI: {} CPU(s), {} IOAPIC(s), PM timer {}, HPET {}, {} PCI range(s)",
        platform.cpus.len(),
        platform.io_apics.len(),
        if platform.pm_timer.is_some() { "yes" } else { "no" },
        if platform.hpet.is_some() { "yes" } else { "no" },
        platform.pci.len()
    );
    pic::silence();
    let apic_id = apic::init().unwrap_or_else(|_| refuse(TOO_LITTLE_MEMORY));
    percpu::init(apic_id);
    ioapic::init(&platform.io_apics).unwrap_or_else(|_| refuse(TOO_LITTLE_MEMORY));
    let calibration = clock::init(&platform).unwrap_or_else(|missing| lacking(missing));
    info!("TSC: {} Hz, measured against the {}", calibration.hertz, calibration.reference);
    apic::init_timer().unwrap_or_else(|missing| lacking(missing));
    info!("local APIC: {}", apic::describe());
    if !console::init(&platform, apic_id) {
        log::warn!("no serial port COM1: the guest's console goes nowhere");
    }
    if !control::init(&platform, apic_id) {
        log::warn!("no serial port COM2: no control line");
    }

    let wall_time = rtc::seconds_since_1970(platform.century);
    match wall_time {
        Some(seconds) => info!("real-time clock: {seconds} s since 1970"),
        None => log::warn!("the real-time clock shows no time"),
    }

    let options = Options::parse(&boot.command_line).unwrap_or_else(|error| refuse(error));
    if let Some(which) = options.self_test {
        smp::start(boot, &platform, &|| Ok(()));
        self_test::run(which);
        shutdown::end(Outcome::PoweredOff);
    }
    let virtualization = detect::detect().unwrap_or_else(|refusal| refuse(refusal));
    detect::report(&virtualization);
    let machines = definitions(&options, boot).unwrap_or_else(|problem| refuse(problem));
    let machines: Result<Vec<_>, String> =
        machines.into_iter().map(|machine| direct_boot(&machine, boot).map(|start| (machine, start))).collect();
    let machines = machines.unwrap_or_else(|problem| refuse(problem));
    let wall_start = wall_time.unwrap_or(0).saturating_sub(clock::now() / 1_000_000_000);
    match virtualization {
        Virtualization::Svm(capability) => run(svm::Svm::new(capability), boot, &platform, machines, wall_start),
        Virtualization::Vmx(capability) => {
            let vmx = vmx::Vmx::new(capability, vmx::controls::ApicVirtualization::Off);
            run(vmx.unwrap_or_else(|refusal| refuse(refusal)), boot, &platform, machines, wall_start)
        }
    }
}

/// The machines of this host: those of `vms.toml`, or the one of the command line.
fn definitions(options: &Options, boot: &BootInfo<'static>) -> Result<Vec<Definition>, String> {
    let file = boot.modules.iter().find(|module| module.name == definitions::MODULE);
    match (file, &options.machine) {
        (Some(_), Some(_)) => Err(format!(
            "there are machines in {} and on the command line; leave out the options vm.* or the file",
            definitions::MODULE
        )),
        (Some(file), None) => definitions::parse(file.bytes).map_err(|error| format!("{error}")),
        (None, Some(machine)) if !machine.kernel.is_empty() => Ok(vec![machine.clone()]),
        (None, _) => Err(format!(
            "no machine is described; name the guest's kernel by vm.kernel= or load a module {}",
            definitions::MODULE
        )),
    }
}

/// What a machine boots: its definition's names turned into modules.
fn direct_boot(machine: &Definition, boot: &BootInfo<'static>) -> Result<DirectBoot<'static>, String> {
    let module = |name: &str| {
        let found = boot.modules.iter().find(|module| module.name == name);
        found.map(|module| module.bytes).ok_or_else(|| format!("{}: there is no module '{name}'; load it too", machine.name))
    };
    let kernel = module(&machine.kernel)?;
    let initrd = machine.initrd.as_deref().map(module).transpose()?;
    let command_line = match &machine.append {
        CommandLine::Text(text) => text.clone().leak().as_bytes(),
        CommandLine::Module => module(COMMAND_LINE_MODULE).unwrap_or(b""),
    };
    Ok(DirectBoot { kernel, initrd, command_line })
}

/// Switches virtualization on, on all CPUs, runs the machines to their ends, and ends the host's run with the last.
fn run<B: Backend>(
    backend: B,
    boot: &BootInfo<'_>,
    platform: &Platform,
    machines: Vec<(Definition, DirectBoot<'static>)>,
    wall_start: u64,
) -> ! {
    let backend: &'static B = Box::leak(Box::new(backend));
    let arena = Arena::new(CPU_REGIONS).unwrap_or_else(|| refuse(TOO_LITTLE_MEMORY));
    let frames: Arc<dyn FrameSource> = Arc::new(arena);
    let enable = move || backend.enable(&frames).map_err(|error| format!("{error}"));
    enable().unwrap_or_else(|error| refuse(error));
    smp::start(boot, platform, Box::leak(Box::new(enable)));

    let first = machines.iter().position(|(machine, _)| machine.autostart && machine.console);
    let consoles = machines.iter().map(|(machine, _)| (machine.name.as_str(), machine.console));
    console::set_up(consoles, first.map_or(0, |first| first + 1));
    let waker = scheduler::waker();
    control::listen(waker.clone());
    let listener = waker.clone();
    console::of(0).listen(Some(Box::new(move || listener.wake())));
    let outcome = Arc::new(Lock::new(Outcome::PoweredOff));
    let make = Box::new(move |plan| vm::reserve(backend, plan));
    let fleet = Fleet::new(make, machines, wall_start, waker.clone(), outcome.clone());
    scheduler::spawn("fleet", Role::Work, USUAL_WEIGHT, Box::new(fleet), waker);
    scheduler::run();
    console::flush();
    let outcome = *outcome.lock();
    shutdown::end(outcome)
}

/// Memory for what a backend needs for each CPU.
const CPU_REGIONS: u64 = 2 << 20;

/// Logs what the loader told.
fn report_boot(boot: &BootInfo<'_>) {
    info!("booted by {}; image at {:#x}..{:#x}", boot.protocol, boot.image.start, boot.image.end);
    info!("command line: {}", boot.command_line);
    for region in &boot.memory {
        info!("memory {:#014x}..{:#014x} {:?}", region.range.start, region.range.end, region.kind);
    }
    for Module { name, bytes, range } in &boot.modules {
        info!("module '{name}': {} bytes at {:#x}", bytes.len(), range.start);
    }
}
