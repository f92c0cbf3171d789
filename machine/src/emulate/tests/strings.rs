//! String instructions: chunks, faults in the middle, ports and their permission.

use super::*;
use vcpu::rflags;

fn port_string(bench: &mut Bench, port: u16, access: AccessKind) -> Outcome {
    let mut emulator = bench.emulator.take().unwrap();
    let outcome = emulator.port_string(bench, &PortString { port, width: Width::Word, access });
    bench.emulator = Some(emulator);
    outcome
}

#[test]
fn a_fault_in_the_middle_keeps_what_was_done() {
    let mut bench = Bench::long_small();
    bench.poke64(SMALL_PAGES + (DATA / 0x1000 + 1) * 8, 0);
    bench.set(Gpr::Rsi, DEVICE).set(Gpr::Rdi, DATA + 0xff0).set(Gpr::Rcx, 10);
    assert_eq!(bench.code(&[0xf3, 0xa5]).run(), page_fault(2, DATA + 0x1000));
    assert_eq!((bench.gpr(Gpr::Rsi), bench.gpr(Gpr::Rdi), bench.gpr(Gpr::Rcx)), (DEVICE + 16, DATA + 0x1000, 6));
    assert_eq!(bench.reads.len(), 4, "the device is not read for an element that cannot be stored");
}

#[test]
fn long_repeats_are_cut_into_chunks() {
    let mut bench = Bench::long();
    bench.set(Gpr::Rdi, DEVICE).set(Gpr::Rcx, 1 << 40).code(&[0xf3, 0xab]);
    let again = Outcome::Jump(bench.vcpu.rip());
    assert_eq!(bench.run(), again);
    let done = bench.writes.len() as u64;
    assert!((1..=4096).contains(&done));
    assert_eq!(bench.gpr(Gpr::Rcx), (1 << 40) - done);
    assert_eq!(bench.gpr(Gpr::Rdi), DEVICE + 4 * done);
}

#[test]
fn short_addresses_use_short_registers() {
    let mut bench = Bench::long();
    let high = 7 << 32;
    bench.set(Gpr::Rdi, DEVICE | high).set(Gpr::Rcx, 2 | high).set(Gpr::Rax, 0x55);
    assert_eq!(bench.code(&[0x67, 0xf3, 0xaa]).run(), complete(3));
    assert_eq!((bench.gpr(Gpr::Rdi), bench.gpr(Gpr::Rcx)), (DEVICE + 2, 0));
    bench.vcpu.state.rflags |= rflags::DF;
    assert_eq!(bench.set(Gpr::Rdi, DEVICE).code(&[0xaa]).run(), complete(1));
    assert_eq!(bench.gpr(Gpr::Rdi), DEVICE - 1);
}

#[test]
fn the_source_segment_can_be_overridden_and_the_destination_cannot() {
    let mut bench = Bench::flat32();
    for (name, base) in [(SegmentName::Ds, 0x1_0000), (SegmentName::Fs, 0x2_0000), (SegmentName::Es, 0x3_0000)] {
        bench.vcpu.state.segments[name as usize] = segment(0xc093, base, u32::MAX);
    }
    bench.poke64(0x1_0000, 1).poke64(0x2_0000, 2).set(Gpr::Rsi, 0).set(Gpr::Rdi, 0);
    assert_eq!(bench.code(&[0x64, 0xa4]).run(), complete(2));
    assert_eq!(bench.peek(0x3_0000), 2);
}

#[test]
fn ports_are_read_into_and_written_from_memory() {
    let mut bench = Bench::flat32();
    bench.set(Gpr::Rdx, 0x1f0).set(Gpr::Rdi, DATA).set(Gpr::Rcx, 3);
    assert_eq!(port_string(bench.code(&[0xf3, 0x66, 0x6d]), 0x1f0, AccessKind::Write), complete(3));
    assert_eq!(bench.port_reads, [(0x1f0, Width::Word); 3]);
    assert_eq!(bench.peek(DATA), 0x2211_2211_2211);
    bench.set(Gpr::Rsi, DATA + 1).set(Gpr::Rcx, 2);
    assert_eq!(port_string(bench.code(&[0xf3, 0x66, 0x6f]), 0x1f0, AccessKind::Read), complete(3));
    assert_eq!(bench.port_writes, [(0x1f0, Width::Word, 0x1122); 2]);
    assert_eq!(bench.gpr(Gpr::Rsi), DATA + 5);
}

#[test]
fn a_port_is_not_read_for_an_element_that_cannot_be_stored() {
    let mut bench = Bench::long_small();
    bench.poke64(SMALL_PAGES + (DATA / 0x1000) * 8, 0).set(Gpr::Rdi, DATA).set(Gpr::Rdx, 0x60);
    assert_eq!(port_string(bench.code(&[0x6c]), 0x60, AccessKind::Write), page_fault(2, DATA));
    assert!(bench.port_reads.is_empty());
}

#[test]
fn only_the_port_that_the_hardware_allowed_is_touched_for_a_user() {
    let mut bench = Bench::long().user();
    bench.set(Gpr::Rdi, DATA).set(Gpr::Rdx, 0x60).code(&[0x6c]);
    bench.poke64(DATA, 0);
    assert_eq!(port_string(&mut bench, 0x3f8, AccessKind::Write), Outcome::Again, "another port by now");
    assert_eq!(bench.access(DATA, AccessKind::Write), Outcome::Again, "a memory access turned into INS");
    assert!(bench.port_reads.is_empty());
    assert_eq!(port_string(&mut bench, 0x60, AccessKind::Write), complete(1));
    bench.vcpu.state.rflags |= rflags::IOPL;
    assert_eq!(bench.access(DATA, AccessKind::Write), complete(1), "IOPL 3 allows every port");
}
