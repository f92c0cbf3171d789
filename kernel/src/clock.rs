//! The host's one clock: nanoseconds since it was started, by the TSC.
//!
//! [`now`] is a read of the TSC, a subtraction, a multiplication and a shift. Alarms are set against this clock.

use crate::acpi::Platform;
use crate::calibrate::{self, Reference};
use crate::cpu::{self, Missing};
use crate::references::{Hpet, IntervalTimer, PowerManagementTimer};
use crate::time::Scale;
use core::sync::atomic::{AtomicU64, Ordering};
use devices::{Clock, Nanos};

static SCALE: spin::Once<Scale> = spin::Once::new();
/// The TSC at nanosecond 0.
static START: AtomicU64 = AtomicU64::new(0);

/// Milliseconds that the TSC is measured for.
const MEASURED_FOR: u64 = 40;

/// What the TSC was measured against.
#[derive(Clone, Copy, Debug)]
pub struct Calibration {
    /// The counter's name.
    pub reference: &'static str,
    /// The TSC's frequency.
    pub hertz: u64,
}

/// Measures the TSC against the PM timer, else the HPET, else the 8254, and starts the clock.
///
/// # Errors
/// When none of them counts.
pub fn init(platform: &Platform) -> Result<Calibration, Missing> {
    START.store(cpu::rdtsc(), Ordering::Relaxed);
    let calibration = platform
        .pm_timer
        .as_ref()
        .and_then(PowerManagementTimer::new)
        .and_then(measure)
        .or_else(|| platform.hpet.and_then(Hpet::new).and_then(measure))
        .or_else(|| measure(IntervalTimer::new()))
        .ok_or(Missing("a timer to measure the TSC with (PM timer, HPET or 8254)"))?;
    let scale = Scale::from_hertz(calibration.hertz).ok_or(Missing("a TSC that counts at a usable frequency"))?;
    SCALE.call_once(|| scale);
    Ok(calibration)
}

fn measure(mut reference: impl Reference) -> Option<Calibration> {
    let hertz = calibrate::measure(&mut reference, MEASURED_FOR, cpu::rdtsc)?;
    Some(Calibration { reference: reference.name(), hertz })
}

/// The TSC's ratio to nanoseconds.
///
/// # Panics
/// Before [`init`].
pub fn scale() -> Scale {
    *SCALE.get().expect("the clock is started before it is used")
}

/// The TSC's frequency.
///
/// # Panics
/// Before [`init`].
pub fn hertz() -> u64 {
    scale().hertz()
}

/// Nanoseconds since the clock was started; 0 before that.
#[inline]
pub fn now() -> u64 {
    at(cpu::rdtsc())
}

/// Nanoseconds since the clock was started when the TSC is or was `tsc`; 0 before that.
#[inline]
pub fn at(tsc: u64) -> u64 {
    match SCALE.get() {
        Some(scale) => scale.nanoseconds(tsc.wrapping_sub(START.load(Ordering::Relaxed))),
        None => 0,
    }
}

/// What the TSC will be at `nanoseconds` of the clock.
#[inline]
pub fn tsc_at(nanoseconds: u64) -> u64 {
    START.load(Ordering::Relaxed).saturating_add(scale().ticks(nanoseconds))
}

/// The host's clock as devices want it.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostClock;

impl Clock for HostClock {
    fn now(&self) -> Nanos {
        Nanos(now())
    }
}
