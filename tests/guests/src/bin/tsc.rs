//! The time-stamp counter: RDTSC, RDTSCP, its MSR and TSC_ADJUST agree; CR4.TSD guards it.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};
use guest::cpu::{self, cpuid, leaf, read_msr, write_msr};
use guest::report::{check, equal};
use guest::trap::vector;
use guest::{attempt, clock, user};

guest::guest!("tsc", run);

const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;
/// More than any two reads lie apart, less than a tenth of a second on any machine.
const CLOSE: u64 = 50_000_000;
const FAR: u64 = 1 << 50;

fn run() {
    let (first, by_msr, second) = (cpu::tsc(), read_msr(TSC).unwrap_or(0), cpu::tsc());
    check(
        "msr-agrees-with-rdtsc",
        (first..=second).contains(&by_msr),
        format_args!("{first:#x} {by_msr:#x} {second:#x}"),
    );
    if leaf(0x8000_0001, 0).edx >> 27 & 1 != 0 {
        let (low, high): (u32, u32);
        // SAFETY: only reads.
        unsafe { core::arch::asm!("rdtscp", out("eax") low, out("edx") high, out("ecx") _) };
        let value = u64::from(high) << 32 | u64::from(low);
        check("rdtscp-agrees", value >= second && value - second < CLOSE, format_args!("{second:#x} {value:#x}"));
    }
    let upper: u64;
    // SAFETY: only reads.
    unsafe {
        core::arch::asm!("mov rax, -1", "mov rdx, -1", "rdtsc", "shr rax, 32", "shr rdx, 32", "or rax, rdx", out("rax") upper, out("rdx") _)
    };
    equal("rdtsc-clears-upper-halves", upper, 0);
    writes();
    adjust();
    disabled();
    let hypervisor = cpuid(1, 0).ecx >> 31 & 1 != 0;
    if !hypervisor || leaf(0x15, 0).ebx == 0 {
        return;
    }
    let stated = u64::from(leaf(0x15, 0).ecx) * u64::from(leaf(0x15, 0).ebx) / u64::from(leaf(0x15, 0).eax.max(1));
    let measured = clock::tsc_of_micros(1_000_000);
    check("leaf-15-rate", stated.abs_diff(measured) * 100 < measured, format_args!("{stated} {measured}"));
}

fn writes() {
    let before = cpu::tsc();
    equal("tsc-write-accepted", write_msr(TSC, before + FAR), Ok(()));
    let after = cpu::tsc();
    check("tsc-write-takes-effect", after.wrapping_sub(before + FAR) < CLOSE, format_args!("{before:#x} {after:#x}"));
    equal("tsc-write-zero", write_msr(TSC, 0), Ok(()));
    check("tsc-runs-from-zero", cpu::tsc() < CLOSE, format_args!("{:#x}", cpu::tsc()));
    let _ = write_msr(TSC, before);
}

/// Writing the TSC moves TSC_ADJUST by the same, and the other way round. SDM 3B 18.17.3 "Time-Stamp Counter Adjustment".
fn adjust() {
    if leaf(7, 0).ebx >> 1 & 1 == 0 {
        return;
    }
    let start = read_msr(TSC_ADJUST).unwrap_or(u64::MAX);
    let before = cpu::tsc();
    equal(
        "tsc-adjust-kept",
        (write_msr(TSC_ADJUST, start.wrapping_add(FAR)), read_msr(TSC_ADJUST)),
        (Ok(()), Ok(start.wrapping_add(FAR))),
    );
    let after = cpu::tsc();
    check(
        "tsc-adjust-moves-the-tsc",
        after.wrapping_sub(before.wrapping_add(FAR)) < CLOSE,
        format_args!("{before:#x} {after:#x}"),
    );
    let _ = write_msr(TSC, after.wrapping_sub(FAR));
    let moved = read_msr(TSC_ADJUST).unwrap_or(u64::MAX);
    check(
        "tsc-write-moves-adjust",
        moved.wrapping_sub(start).wrapping_add(CLOSE) < 2 * CLOSE,
        format_args!("{start:#x} {moved:#x}"),
    );
    let _ = write_msr(TSC_ADJUST, start);
}

static CAUGHT: AtomicU64 = AtomicU64::new(0);

extern "C" fn read_at_level_3() {
    // SAFETY: an exception is caught.
    let caught = unsafe { attempt!("rdtsc", out("eax") _, out("edx") _) };
    CAUGHT.store(caught.map_or(0, |c| u64::from(c.vector) << 32 | c.error), Ordering::SeqCst);
}

fn disabled() {
    user::call(read_at_level_3, 0);
    equal("user-rdtsc-allowed", CAUGHT.load(Ordering::SeqCst), 0);
    cpu::write_cr4(cpu::read_cr4() | cpu::CR4_TSD);
    user::call(read_at_level_3, 0);
    equal("user-rdtsc-refused-by-tsd", CAUGHT.load(Ordering::SeqCst), u64::from(vector::GP) << 32);
    cpu::write_cr4(cpu::read_cr4() & !cpu::CR4_TSD);
}
