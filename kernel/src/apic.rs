//! The local APIC of each host CPU, by registers in memory (xAPIC) or MSRs (x2APIC), and its timer.
//!
//! x2APIC is used where the CPU has it. The timer runs in TSC-deadline mode where the CPU has that, else one-shot.
//!
//! Pins Intel SDM Volume 3A, chapter 12 "Advanced Programmable Interrupt Controller" (325384-083).

#![allow(unsafe_code)] // Device registers and MSRs.

use crate::calibrate::{self, Reference};
use crate::cpu::{self, msr};
use crate::idt::vector;
use crate::time::Scale;
use crate::{address_space, clock};
use core::fmt;
use core::ptr::NonNull;
use raw_cpuid::CpuId;

/// Registers by their offset in memory; the MSR is 0x800 + offset / 16. SDM 3A table 12-1, 12-6.
mod register {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TASK_PRIORITY: u32 = 0x80;
    pub const EOI: u32 = 0xb0;
    pub const SPURIOUS: u32 = 0xf0;
    pub const ERROR_STATUS: u32 = 0x280;
    pub const COMMAND_LOW: u32 = 0x300;
    pub const COMMAND_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
}

/// IA32_APIC_BASE. SDM 3A 12.4.4 "Local APIC Status and Location", 12.12.1 "Detecting and Enabling x2APIC Mode".
const BASE_ENABLED: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Spurious-interrupt vector register: software enable.
const SOFTWARE_ENABLED: u32 = 1 << 8;
/// Local vector table: mask, NMI delivery, TSC-deadline timer mode.
const MASKED: u32 = 1 << 16;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_INIT: u32 = 5 << 8;
const DELIVER_START_UP: u32 = 6 << 8;
const TSC_DEADLINE_MODE: u32 = 2 << 17;
/// Divide configuration: by 1.
const DIVIDE_BY_1: u32 = 0xb;
/// Interrupt command: pending (xAPIC only).
const COMMAND_PENDING: u32 = 1 << 12;
/// Interrupt command: level assert, as every command but INIT de-assert has it.
const COMMAND_ASSERT: u32 = 1 << 14;

/// How the registers are reached, the same on all CPUs.
static ACCESS: spin::Once<Access> = spin::Once::new();
/// How the timer is set, the same on all CPUs.
static TIMER: spin::Once<Timer> = spin::Once::new();

#[derive(Clone, Copy)]
enum Access {
    Memory(NonNull<u8>),
    Msr,
}

// SAFETY: the registers are each CPU's own, wherever the pointer is used.
unsafe impl Send for Access {}
// SAFETY: as above.
unsafe impl Sync for Access {}

#[derive(Clone, Copy, Debug)]
enum Timer {
    TscDeadline,
    OneShot(Scale),
}

impl Access {
    fn read(self, register: u32) -> u32 {
        match self {
            Self::Memory(base) => {
                // SAFETY: the 4 KiB of registers are mapped, uncached.
                let pointer = unsafe { base.add(register as usize) }.cast::<u32>();
                // SAFETY: as above; 32-bit reads of aligned registers are allowed.
                unsafe { pointer.read_volatile() }
            }
            // SAFETY: x2APIC mode is on, and all registers used here exist in it.
            Self::Msr => unsafe { cpu::rdmsr(msr::X2APIC + register / 16) as u32 },
        }
    }

    fn write(self, register: u32, value: u32) {
        match self {
            Self::Memory(base) => {
                // SAFETY: the 4 KiB of registers are mapped, uncached.
                let pointer = unsafe { base.add(register as usize) }.cast::<u32>();
                // SAFETY: as above; each caller writes what the register takes.
                unsafe { pointer.write_volatile(value) };
            }
            // SAFETY: x2APIC mode is on, and each caller writes what the register takes.
            Self::Msr => unsafe { cpu::wrmsr(msr::X2APIC + register / 16, u64::from(value)) },
        }
    }
}

fn access() -> Access {
    *ACCESS.get().expect("the local APIC is set up before it is used")
}

/// Switches this CPU's local APIC on, everything in it masked but NMI on LINT1, and returns its identifier.
///
/// # Errors
/// When its registers cannot be mapped.
pub fn init() -> Result<u32, crate::paging::MapError> {
    let has_x2apic = CpuId::new().get_feature_info().is_some_and(|features| features.has_x2apic());
    // SAFETY: every CPU with a local APIC has this register, and `cpu::prepare` has made sure of that.
    let base = unsafe { cpu::rdmsr(msr::APIC_BASE) };
    // Once in x2APIC mode, a CPU does not go back; firmware may have put it there.
    let access = if has_x2apic || base & BASE_X2APIC != 0 {
        // Not from disabled to x2APIC at once: SDM 3A 12.12.5 "x2APIC State Transitions".
        // SAFETY: the local APIC is switched on where it is.
        unsafe { cpu::wrmsr(msr::APIC_BASE, base | BASE_ENABLED) };
        // SAFETY: CPUID has x2APIC.
        unsafe { cpu::wrmsr(msr::APIC_BASE, base | BASE_ENABLED | BASE_X2APIC) };
        Access::Msr
    } else {
        // SAFETY: the local APIC is switched on where it is.
        unsafe { cpu::wrmsr(msr::APIC_BASE, base | BASE_ENABLED) };
        Access::Memory(address_space::map_device(base & BASE_ADDRESS, 4096)?)
    };
    let access = *ACCESS.call_once(|| access);
    access.write(register::LVT_TIMER, MASKED);
    access.write(register::LVT_LINT0, MASKED);
    access.write(register::LVT_LINT1, DELIVER_NMI);
    access.write(register::LVT_ERROR, u32::from(vector::APIC_ERROR));
    access.write(register::TASK_PRIORITY, 0);
    access.write(register::SPURIOUS, SOFTWARE_ENABLED | u32::from(vector::SPURIOUS));
    take_error();
    Ok(id())
}

/// This CPU's identifier.
pub fn id() -> u32 {
    match access() {
        Access::Memory(_) => access().read(register::ID) >> 24,
        Access::Msr => access().read(register::ID),
    }
}

/// For the log: how the registers are reached, and how the timer runs.
pub fn describe() -> impl fmt::Display {
    fmt::from_fn(|f| {
        let mode = match access() {
            Access::Memory(_) => "xAPIC",
            Access::Msr => "x2APIC",
        };
        let version = access().read(register::VERSION) & 0xff;
        write!(f, "{mode}, id {}, version {version:#x}, ", id())?;
        match TIMER.get() {
            Some(Timer::TscDeadline) => f.write_str("TSC-deadline timer"),
            Some(Timer::OneShot(scale)) => write!(f, "one-shot timer of {} Hz", scale.hertz()),
            None => f.write_str("timer not set up"),
        }
    })
}

/// Acknowledges the interrupt being handled.
pub fn end_of_interrupt() {
    access().write(register::EOI, 0);
}

/// The errors since last asked. SDM 3A 12.5.3 "Error Handling".
pub fn take_error() -> u32 {
    access().write(register::ERROR_STATUS, 0);
    access().read(register::ERROR_STATUS)
}

/// Sends the fixed interrupt `vector` to the CPU whose local APIC has `destination`.
pub fn send(destination: u32, vector: u8) {
    command(destination, u32::from(vector));
}

/// Sends an NMI to the CPU whose local APIC has `destination`.
pub fn send_nmi(destination: u32) {
    command(destination, DELIVER_NMI);
}

/// Sends INIT to the CPU whose local APIC has `destination`: it waits for a start-up IPI then.
pub fn send_init(destination: u32) {
    command(destination, DELIVER_INIT);
}

/// Starts the CPU whose local APIC has `destination` at the page with the number `page`, if it waits for that.
pub fn send_start_up(destination: u32, page: u8) {
    command(destination, DELIVER_START_UP | u32::from(page));
}

/// Whether the CPU whose local APIC has `destination` can be sent anything: 8-bit registers do not name all.
pub fn can_reach(destination: u32) -> bool {
    matches!(access(), Access::Msr) || destination < 0xff
}

/// Writes the interrupt command register. SDM 3A 12.6.1 "Interrupt Command Register (ICR)".
fn command(destination: u32, command: u32) {
    let command = COMMAND_ASSERT | command;
    match access() {
        Access::Msr => {
            // WRMSR to the x2APIC is not serializing: what the other CPU is to see must be written before.
            core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
            let value = u64::from(destination) << 32 | u64::from(command);
            // SAFETY: x2APIC mode is on; each caller sends what the other CPU has a handler for.
            unsafe { cpu::wrmsr(msr::X2APIC + register::COMMAND_LOW / 16, value) };
        }
        access => {
            while access.read(register::COMMAND_LOW) & COMMAND_PENDING != 0 {
                core::hint::spin_loop();
            }
            access.write(register::COMMAND_HIGH, destination << 24);
            access.write(register::COMMAND_LOW, command);
        }
    }
}

/// The TSC as a reference of known frequency.
struct Tsc(u64);

impl Reference for Tsc {
    fn name(&self) -> &'static str {
        "TSC"
    }
    fn hertz(&self) -> u64 {
        self.0
    }
    fn read(&mut self) -> u64 {
        cpu::rdtsc()
    }
    fn mask(&self) -> u64 {
        u64::MAX
    }
}

/// Milliseconds that the timer is measured for.
const MEASURED_FOR: u64 = 10;

/// Finds out how the CPUs' timers run, after the TSC's frequency is known, and sets this CPU's up.
///
/// # Errors
/// When the timer does not count.
pub fn init_timer() -> Result<(), crate::cpu::Missing> {
    let deadline = CpuId::new().get_feature_info().is_some_and(|features| features.has_tsc_deadline());
    let timer = if deadline { Timer::TscDeadline } else { Timer::OneShot(measure_timer()?) };
    TIMER.call_once(|| timer);
    init_own_timer();
    Ok(())
}

/// How fast the timer counts undivided.
fn measure_timer() -> Result<Scale, crate::cpu::Missing> {
    let access = access();
    access.write(register::TIMER_DIVIDE, DIVIDE_BY_1);
    access.write(register::LVT_TIMER, MASKED | u32::from(vector::ALARM));
    access.write(register::TIMER_INITIAL, u32::MAX);
    let counted = || u64::from(u32::MAX - access.read(register::TIMER_CURRENT));
    let hertz = calibrate::measure(&mut Tsc(clock::scale().hertz()), MEASURED_FOR, counted);
    access.write(register::TIMER_INITIAL, 0);
    hertz.and_then(Scale::from_hertz).ok_or(crate::cpu::Missing("a local APIC timer that counts"))
}

/// Sets this CPU's timer up as [`init_timer`] found that all run; does nothing before that.
pub fn init_own_timer() {
    let access = access();
    let mode = match TIMER.get() {
        Some(Timer::TscDeadline) => TSC_DEADLINE_MODE,
        Some(Timer::OneShot(_)) => {
            access.write(register::TIMER_DIVIDE, DIVIDE_BY_1);
            0
        }
        None => return,
    };
    access.write(register::LVT_TIMER, mode | u32::from(vector::ALARM));
    // SDM 3A 12.5.4.1 "TSC-Deadline Mode": the write of the mode must be done before that of the deadline.
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// Makes this CPU's timer interrupt at `deadline`, in nanoseconds of the clock, or at once if that has passed. A one-shot
/// timer may fire early where the time is longer than it can count.
pub fn set_timer(deadline: u64) {
    match TIMER.get() {
        Some(Timer::TscDeadline) => {
            // 0 would stop it.
            let tsc = clock::tsc_at(deadline).max(1);
            // SAFETY: CPUID has the TSC-deadline timer.
            unsafe { cpu::wrmsr(msr::TSC_DEADLINE, tsc) };
        }
        Some(Timer::OneShot(scale)) => {
            let ticks = scale.ticks(deadline.saturating_sub(clock::now()));
            access().write(register::TIMER_INITIAL, ticks.clamp(1, u64::from(u32::MAX)) as u32);
        }
        None => {}
    }
}

/// Stops this CPU's timer.
pub fn stop_timer() {
    match TIMER.get() {
        // SAFETY: CPUID has the TSC-deadline timer.
        Some(Timer::TscDeadline) => unsafe { cpu::wrmsr(msr::TSC_DEADLINE, 0) },
        Some(Timer::OneShot(_)) => access().write(register::TIMER_INITIAL, 0),
        None => {}
    }
}
