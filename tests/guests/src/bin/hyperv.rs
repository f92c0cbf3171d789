//! The Hyper-V interface: leaves, identity, hypercall page, reference time, frequencies, crash report.
//!
//! Source: Hypervisor Top Level Functional Specification 6.0b. Without the interface the guest says so and passes.

#![no_std]
#![no_main]

use guest::cpu::{self, cpuid, read_msr, write_msr};
use guest::paging::Page;
use guest::report::{self, check, close, equal};
use guest::trap::vector;
use guest::{attempt, clock};

guest::guest!("hyperv", run);

const GUEST_OS_ID: u32 = 0x4000_0000;
const HYPERCALL: u32 = 0x4000_0001;
const VP_INDEX: u32 = 0x4000_0002;
const TIME_REF_COUNT: u32 = 0x4000_0020;
const REFERENCE_TSC: u32 = 0x4000_0021;
const TSC_FREQUENCY: u32 = 0x4000_0022;
const APIC_FREQUENCY: u32 = 0x4000_0023;
const CRASH_P0: u32 = 0x4000_0100;
/// An open-source system, TLFS 3.13.
const IDENTITY: u64 = 0x8100_0000_0000_0001;
const GP0: (u8, u64) = (vector::GP, 0);

static mut CALL_PAGE: Page = Page([0; 4096]);
static mut TIME_PAGE: Page = Page([0; 4096]);

fn run() {
    if cpuid(1, 0).ecx >> 31 == 0 || cpuid(0x4000_0001, 0).eax != u32::from_le_bytes(*b"Hv#1") {
        return report::passed("no-interface");
    }
    leaves();
    hypercalls();
    time();
    refusals();
    crash();
}

fn leaves() {
    check("last-leaf", cpuid(0x4000_0000, 0).eax >= 0x4000_0005, format_args!("{:#x}", cpuid(0x4000_0000, 0).eax));
    let privileges = cpuid(0x4000_0003, 0);
    equal("hypercall-and-index-msrs", privileges.eax & 0x60, 0x60);
    equal("no-privileged-partition-flags", privileges.ebx & 0x314f, 0);
}

fn kind<T: Copy>(result: Result<T, guest::trap::Caught>) -> Option<(u8, u64)> {
    result.err().map(|caught| caught.kind())
}

fn hypercall(code: u64) -> (Option<guest::trap::Caught>, u64) {
    let mut result = u64::MAX;
    // SAFETY: the page holds the hypervisor's call sequence, which keeps the calling convention.
    let caught = unsafe {
        attempt!("call {page}", page = in(reg) &raw const CALL_PAGE, inout("rax") 0_u64 => result, inout("rcx") code => _, inout("rdx") 0_u64 => _,
            inout("r8") 0_u64 => _, out("r9") _, out("r10") _)
    };
    (caught, result)
}

fn hypercalls() {
    let page = &raw const CALL_PAGE as u64;
    equal("identity-after-reset", read_msr(GUEST_OS_ID), Ok(0));
    equal("hypercall-msr-after-reset", read_msr(HYPERCALL).map(|value| value & 1), Ok(0));
    let _ = write_msr(HYPERCALL, page | 1);
    equal("no-page-without-identity", read_msr(HYPERCALL).map(|value| value & 1), Ok(0));
    equal("identity-kept", (write_msr(GUEST_OS_ID, IDENTITY), read_msr(GUEST_OS_ID)), (Ok(()), Ok(IDENTITY)));
    equal("page-enabled", (write_msr(HYPERCALL, page | 1), read_msr(HYPERCALL)), (Ok(()), Ok(page | 1)));
    let (caught, result) = hypercall(0xfff);
    equal("unknown-hypercall", (caught, result & 0xffff), (None, 2));
    equal("vp-index", read_msr(VP_INDEX), Ok(0));
    let _ = write_msr(HYPERCALL, 0);
}

fn reference_time() -> u64 {
    read_msr(TIME_REF_COUNT).unwrap_or(0)
}

fn time() {
    let privileges = cpuid(0x4000_0003, 0);
    if privileges.eax & 2 != 0 {
        let first = reference_time();
        check("reference-time-runs", (0..1000).any(|_| reference_time() > first), format_args!("{first}"));
        close("reference-time-rate", 100_000, || {
            let (from, start) = (reference_time(), clock::now());
            clock::wait_micros(100_000);
            (reference_time() - from) * clock::FREQUENCY / 100 / u64::from(clock::since(start)).max(1)
        });
    }
    if privileges.eax & 1 << 9 != 0 {
        let page = &raw const TIME_PAGE as u64;
        equal("reference-page", (write_msr(REFERENCE_TSC, page | 1), read_msr(REFERENCE_TSC)), (Ok(()), Ok(page | 1)));
        // SAFETY: the hypervisor filled the page: sequence, then scale and offset.
        let (sequence, scale, offset) = unsafe {
            let words = page as *const u64;
            (words.cast::<u32>().read_volatile(), words.add(1).read_volatile(), words.add(2).read_volatile())
        };
        check("reference-page-valid", sequence != 0 && sequence != u32::MAX, format_args!("{sequence:#x}"));
        let by_page = || (u128::from(cpu::tsc()) * u128::from(scale) >> 64) as u64;
        let (before, by_msr, after) =
            (by_page().wrapping_add(offset), reference_time(), by_page().wrapping_add(offset));
        // One unit for rounding.
        check(
            "page-agrees-with-counter",
            before <= by_msr + 1 && by_msr <= after + 1,
            format_args!("{before} {by_msr} {after}"),
        );
        let _ = write_msr(REFERENCE_TSC, 0);
    }
    if privileges.eax & 1 << 11 != 0 {
        close("tsc-frequency", read_msr(TSC_FREQUENCY).unwrap_or(0) / 1000, || clock::tsc_of_micros(1000));
        check(
            "apic-frequency",
            read_msr(APIC_FREQUENCY).unwrap_or(0) > 1_000_000,
            format_args!("{:x?}", read_msr(APIC_FREQUENCY)),
        );
    }
}

fn refusals() {
    equal("vp-index-is-read-only", kind(write_msr(VP_INDEX, 0)), Some(GP0));
    equal("time-is-read-only", kind(write_msr(TIME_REF_COUNT, 0)), Some(GP0));
    equal("frequency-is-read-only", kind(write_msr(TSC_FREQUENCY, 0)), Some(GP0));
    equal("no-synthetic-timers", kind(read_msr(0x4000_00b0)), Some(GP0));
    equal("no-synic", kind(read_msr(0x4000_0080)), Some(GP0));
    let _ = write_msr(GUEST_OS_ID, IDENTITY);
    let outside = write_msr(HYPERCALL, 0x000f_ffff_ffff_f001);
    let enabled = read_msr(HYPERCALL).map(|value| value & 1);
    check(
        "page-outside-memory-is-refused",
        outside.is_err() || enabled == Ok(0),
        format_args!("{outside:x?} {enabled:x?}"),
    );
    let _ = write_msr(HYPERCALL, 0);
    let _ = write_msr(GUEST_OS_ID, 0);
    // Without the page the bare call instructions do not exist.
    // SAFETY: exceptions are caught.
    let (amd, intel) = unsafe {
        (attempt!("vmmcall", in("rax") 0, in("rcx") 0xfff), attempt!("vmcall", in("rax") 0, in("rcx") 0xfff))
    };
    equal(
        "no-call-without-page",
        (amd.map(|c| c.vector), intel.map(|c| c.vector)),
        (Some(vector::UD), Some(vector::UD)),
    );
}

fn crash() {
    if cpuid(0x4000_0003, 0).edx & 1 << 10 == 0 {
        return;
    }
    for number in 0..5 {
        let _ = write_msr(CRASH_P0 + number, 0x1000 + u64::from(number));
    }
    equal("crash-parameters-kept", read_msr(CRASH_P0 + 4), Ok(0x1004));
}
