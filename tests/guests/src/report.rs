//! What a guest says: the lines described at the crate's head.

use crate::{entry, power, serial::Com1};
use core::fmt::{self, Debug, Write};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static NAME: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));
static FAILED: AtomicBool = AtomicBool::new(false);

fn name() -> &'static str {
    let (start, len) = (NAME.0.load(Ordering::Relaxed), NAME.1.load(Ordering::Relaxed));
    if start == 0 {
        return "unnamed";
    }
    // SAFETY: `start` stored the parts of a static string.
    unsafe { core::str::from_utf8_unchecked(core::slice::from_raw_parts(start as *const u8, len)) }
}

/// Prints one line.
pub fn line(text: fmt::Arguments<'_>) {
    // Com1 never fails.
    let _ = writeln!(Com1, "{text}");
}

/// Begins the transcript.
pub fn start(name: &'static str) {
    NAME.1.store(name.len(), Ordering::Relaxed);
    NAME.0.store(name.as_ptr() as usize, Ordering::Relaxed);
    line(format_args!("GUEST {name} start"));
}

/// A check that held. `what` contains no spaces.
pub fn passed(what: &str) {
    line(format_args!("CHECK {what} ok"));
}

/// Whether the command line excuses a check: `without=name,name`. What the test bed under the machine gets wrong is named there.
pub fn excused(what: &str) -> bool {
    entry::option("without").is_some_and(|names| names.split(',').any(|name| name == what))
}

/// A check that did not hold, with what was seen instead.
pub fn failed(what: &str, details: fmt::Arguments<'_>) {
    if excused(what) {
        return line(format_args!("CHECK {what} excused"));
    }
    FAILED.store(true, Ordering::Relaxed);
    line(format_args!("CHECK {what} FAIL {details}"));
}

/// Checks a condition; `details` are printed if it does not hold.
pub fn check(what: &str, holds: bool, details: fmt::Arguments<'_>) {
    if holds { passed(what) } else { failed(what, details) }
}

/// Checks that two values are equal.
pub fn equal<T: PartialEq + Debug>(what: &str, seen: T, wanted: T) {
    check(what, seen == wanted, format_args!("{seen:x?}, wanted {wanted:x?}"));
}

/// Attempts of [`close`]; a host that takes the processor away for a moment spoils one.
const ATTEMPTS: usize = 5;

/// Checks that a measurement comes within one percent of `wanted`, in one of a few attempts.
pub fn close(what: &str, wanted: u64, measure: impl Fn() -> u64) {
    let near = |measured: u64| measured.abs_diff(wanted) * 100 <= wanted;
    let mut last = 0;
    for _ in 0..ATTEMPTS {
        last = measure();
        if near(last) {
            break;
        }
    }
    check(what, near(last), format_args!("{last}, wanted {wanted} within 1 %"));
}

/// Ends the transcript and the machine.
pub fn finish() -> ! {
    let failed = FAILED.load(Ordering::Relaxed);
    line(format_args!("RESULT {} {}", name(), if failed { "fail" } else { "pass" }));
    power::off(u8::from(failed))
}
