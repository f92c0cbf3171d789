//! MSRs: those that a PC's software relies on, values that are kept, and #GP for what is not there.

#![no_std]
#![no_main]

use guest::attempt;
use guest::cpu::{self, cpuid, leaf, read_msr, write_msr};
use guest::report::{check, equal};
use guest::trap::vector;
use guest::{apic, report};

guest::guest!("msr", run);

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
const PAT: u32 = 0x277;
const MTRR_CAP: u32 = 0xfe;
const MTRR_DEFAULT: u32 = 0x2ff;
const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;
const GP0: (u8, u64) = (vector::GP, 0);

/// Reading has to raise #GP(0).
fn read_refused(what: &str, msr: u32) {
    match read_msr(msr) {
        Err(caught) => equal(what, caught.kind(), GP0),
        Ok(value) => report::failed(what, format_args!("{msr:#x} reads {value:#x}")),
    }
}

/// Writing has to raise #GP(0).
fn write_refused(what: &str, msr: u32, value: u64) {
    match write_msr(msr, value) {
        Err(caught) => equal(what, caught.kind(), GP0),
        Ok(()) => report::failed(what, format_args!("{msr:#x} took {value:#x}")),
    }
}

/// A value is kept, and the one before is restored.
fn kept(what: &str, msr: u32, value: u64) {
    let before = read_msr(msr);
    let written = write_msr(msr, value);
    let after = read_msr(msr);
    check(what, written.is_ok() && after == Ok(value), format_args!("{msr:#x}: {written:x?}, {after:x?}"));
    if let Ok(before) = before {
        let _ = write_msr(msr, before);
    }
}

fn run() {
    upper_halves();
    for (what, msr, value) in [
        ("star-kept", STAR, 0x0023_0010_1122_3344),
        ("lstar-kept", LSTAR, 0xffff_8000_1234_5678),
        ("cstar-kept", CSTAR, 0x1234_5678),
        ("sfmask-kept", SFMASK, 0x4_7700),
        ("fs-base-kept", FS_BASE, 0x7fff_1234_5678),
        ("gs-base-kept", GS_BASE, 0xffff_9000_0000_0000),
        ("kernel-gs-base-kept", KERNEL_GS_BASE, 0xffff_a000_0000_1000),
        ("sysenter-cs-kept", 0x174, 0x10),
        ("sysenter-esp-kept", 0x175, 0x1234_5000),
        ("sysenter-eip-kept", 0x176, 0x1234_6000),
        ("pat-kept", PAT, 0x0007_0106_0007_0406),
    ] {
        kept(what, msr, value);
    }
    check("microcode-level-reads", read_msr(0x8b).is_ok(), format_args!("{:x?}", read_msr(0x8b)));
    if leaf(0x8000_0001, 0).edx & 1 << 27 != 0 {
        kept("tsc-aux-kept", TSC_AUX, 0x1234_5678);
        rdtscp();
    }
    for (what, msr) in [
        ("unknown-low-read", 0x1234),
        ("unknown-high-read", 0xc000_1234),
        ("unknown-amd-read", 0xc001_1fff),
        ("unknown-huge-read", 0xffff_ffff),
        ("unknown-synthetic-read", 0x4000_01ff),
        ("kvm-clock-read", 0x4b56_4d01),
        ("vmx-basic-read", 0x480),
        ("x2apic-off-read", 0x802),
    ] {
        read_refused(what, msr);
    }
    for (what, msr, value) in [
        ("unknown-low-write", 0x1234, 0),
        ("unknown-high-write", 0xc000_1234, 0),
        ("unknown-huge-write", 0xffff_ffff, 0),
        ("lstar-not-canonical", LSTAR, NON_CANONICAL),
        ("kernel-gs-base-not-canonical", KERNEL_GS_BASE, NON_CANONICAL),
        ("fs-base-not-canonical", FS_BASE, NON_CANONICAL),
        ("pat-reserved-type-2", PAT, 0x0007_0406_0007_0402),
        ("pat-reserved-bits", PAT, 0x0807_0406_0007_0406),
        ("efer-reserved-bit", cpu::EFER, read_msr(cpu::EFER).unwrap_or(0) | 1 << 1),
        ("efer-reserved-high-bit", cpu::EFER, read_msr(cpu::EFER).unwrap_or(0) | 1 << 40),
        ("efer-svme-refused", cpu::EFER, read_msr(cpu::EFER).unwrap_or(0) | 1 << 12),
        ("efer-lme-while-paging", cpu::EFER, read_msr(cpu::EFER).unwrap_or(0) & !(1 << 8)),
        ("apic-base-reserved-bit", apic::BASE_MSR, read_msr(apic::BASE_MSR).unwrap_or(0) | 1 << 9),
        ("apic-base-high-bit", apic::BASE_MSR, read_msr(apic::BASE_MSR).unwrap_or(0) | 1 << 60),
        ("mtrr-cap-is-read-only", MTRR_CAP, 0),
        ("mtrr-default-bad-type", MTRR_DEFAULT, 0xc02),
        ("mtrr-fixed-bad-type", 0x250, 2),
        ("x2apic-off-write", 0x80b, 0),
    ] {
        write_refused(what, msr, value);
    }
    efer();
    mtrr();
    virtualization();
    let base = read_msr(apic::BASE_MSR).unwrap_or(0);
    equal("apic-base", base & !0xfff | base & 0xd00, apic::BASE | 0x900);
}

/// RDMSR clears the upper halves and leaves the rest alone; WRMSR takes only ECX, EDX and EAX.
fn upper_halves() {
    let (rax, rdx): (u64, u64);
    // SAFETY: reads an MSR that every processor has.
    let caught = unsafe {
        attempt!("rdmsr", inout("rcx") 0xdead_beef_0000_001b_u64 => _, inout("rax") u64::MAX => rax, inout("rdx") u64::MAX => rdx)
    };
    equal("rdmsr-takes-ecx-alone", caught, None);
    equal("rdmsr-clears-upper-halves", (rax >> 32, rdx >> 32), (0, 0));
    // SAFETY: writes a base that nothing uses.
    let caught = unsafe {
        attempt!("wrmsr", in("rcx") 0xdead_beef_c000_0102_u64, in("rax") 0x1234_5678_0000_2000_u64, in("rdx") 0xffff_ffff_0000_0001_u64)
    };
    equal("wrmsr-takes-low-halves", (caught, read_msr(KERNEL_GS_BASE)), (None, Ok(0x1_0000_2000)));
}

fn rdtscp() {
    let _ = write_msr(TSC_AUX, 77);
    let aux: u32;
    // SAFETY: only reads.
    let caught = unsafe { attempt!("rdtscp", out("eax") _, out("edx") _, out("ecx") aux) };
    equal("rdtscp-returns-tsc-aux", (caught, aux), (None, 77));
}

fn efer() {
    let before = read_msr(cpu::EFER).unwrap_or(0);
    equal("efer-long-mode", before & 0x500, 0x500);
    for (what, bit) in [("efer-sce-kept", cpu::EFER_SCE), ("efer-nxe-kept", cpu::EFER_NXE)] {
        equal(what, (write_msr(cpu::EFER, before | bit), read_msr(cpu::EFER)), (Ok(()), Ok(before | bit)));
    }
    // LMA is read-only: clearing it in the value changes nothing.
    equal("efer-lma-write-ignored", (write_msr(cpu::EFER, before & !0x400), read_msr(cpu::EFER)), (Ok(()), Ok(before)));
}

fn mtrr() {
    if cpuid(1, 0).edx & 1 << 12 == 0 {
        return;
    }
    let capabilities = read_msr(MTRR_CAP).unwrap_or(0);
    let count = capabilities & 0xff;
    check("mtrr-count", (1..=16).contains(&count), format_args!("{count}"));
    let mask = (1_u64 << (leaf(0x8000_0008, 0).eax & 0xff)) - 1;
    kept("mtrr-variable-base-kept", 0x200, 0xc000_0000);
    kept("mtrr-variable-mask-kept", 0x201, mask & 0xffff_ffff_c000_0800);
    kept("mtrr-fixed-kept", 0x250, 0x0606_0606_0606_0606);
    kept("mtrr-fixed-4k-kept", 0x26f, 0x0505_0505_0505_0505);
    kept("mtrr-default-kept", MTRR_DEFAULT, 0xc06);
    read_refused("mtrr-past-the-last", 0x200 + 2 * count as u32 + if count > 8 { 0x100 } else { 0 });
}

/// Nested virtualization is not offered, and locked off where an MSR says so.
fn virtualization() {
    if cpu::is_amd() {
        match read_msr(0xc001_0114) {
            // LOCK and SVMDIS, APM 2 15.30.1 "VM_CR MSR".
            Ok(value) => equal("vm-cr-locked-off", value & 0x18, 0x18),
            Err(caught) => equal("vm-cr-locked-off", caught.kind(), GP0),
        }
        read_refused("no-host-save-area", 0xc001_0117);
    } else {
        match read_msr(0x3a) {
            // Locked, VMX neither inside nor outside SMX. SDM 4 table 2-2.
            Ok(value) => equal("feature-control-locked-off", value & 7, 1),
            Err(caught) => equal("feature-control-locked-off", caught.kind(), GP0),
        }
        write_refused("feature-control-stays", 0x3a, 5);
    }
}
