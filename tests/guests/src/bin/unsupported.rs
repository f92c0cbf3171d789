//! What a machine cannot do for a guest, one case a run (`case=<name>`): the exception that the manual names, or the machine stops
//! with a report. It never goes on as if nothing had happened, and the host never stops.
//!
//! Cases that end the machine print `GOING <case>` last; a line `CHECK <case> FAIL` after that means that they went on.

#![no_std]
#![no_main]

use core::arch::asm;
use guest::report::{self, check, equal};
use guest::trap::vector;
use guest::{apic, attempt, cpu, entry, paging, port, trap};

guest::guest!("unsupported", run);

/// Physical memory that no device and no RAM answers.
const NOWHERE: u64 = 0xfe00_0000;

fn run() {
    let case = entry::option("case").unwrap_or("harmless");
    match case {
        "harmless" => harmless(),
        // No emulator of a device access has a reason to know these.
        "mmio-instruction" => ends(case, || unsafe { asm!("fild dword ptr [{}]", in(reg) apic::BASE + 0x20) }),
        "mmio-fetch" => ends(case, || unsafe { asm!("call {}", in(reg) apic::BASE) }),
        "nowhere-fetch" => ends(case, || unsafe { asm!("call {}", in(reg) NOWHERE) }),
        "page-tables-nowhere" => ends(case, || cpu::write_cr3(NOWHERE)),
        "page-tables-in-device" => ends(case, || cpu::write_cr3(apic::BASE)),
        "triple-fault" => ends(case, || {
            trap::empty_table();
            unsafe { asm!("ud2") }
        }),
        "cli-hlt" => ends(case, || {
            cpu::disable_interrupts();
            cpu::halt();
        }),
        other => report::failed("known-case", format_args!("{other}")),
    }
}

/// Does what has to end the machine.
fn ends(case: &str, act: impl Fn()) {
    report::line(format_args!("GOING {case}"));
    act();
    report::failed(case, format_args!("the guest went on"));
}

/// What has an answer of its own.
fn harmless() {
    equal("unknown-msr", cpu::read_msr(0xdead_0000).err().map(|c| c.kind()), Some((vector::GP, 0)));
    equal("unknown-port", port::read32(0x2e0), u32::MAX);
    equal("unknown-memory", cpu::mmio_read32(NOWHERE), u32::MAX);
    // SAFETY: the exception is caught.
    let caught = unsafe { attempt!("vmmcall", in("rax") 0x1234_5678_u64) };
    equal("unknown-hypercall", caught.map(|c| c.kind()), Some((vector::UD, 0)));
    // SAFETY: as above.
    let caught = unsafe { attempt!("rdpmc", in("ecx") 99, out("eax") _, out("edx") _) };
    equal("unknown-counter", caught.map(|c| c.kind()), Some((vector::GP, 0)));
    // Past the guest's memory, through a mapping: all ones, and writes are lost.
    let bits = cpu::leaf(0x8000_0008, 0).eax & 0xff;
    paging::set(5, (1 << (bits - 1)) | paging::PRESENT | paging::WRITABLE);
    let at = paging::window(5);
    check("far-memory", cpu::mmio_read32(at) == u32::MAX, format_args!("{:#x}", cpu::mmio_read32(at)));
    cpu::mmio_write32(at, 1);
    equal("far-memory-write-is-lost", cpu::mmio_read32(at), u32::MAX);
}
