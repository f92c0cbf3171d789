//! Segmentation, canonical addresses and the code segment. Expectations are from SDM 3A chapter 6 and SDM 1 3.3.7.

use super::*;

/// mov eax,[ebx]
const READ: [u8; 2] = [0x8b, 0x03];
/// mov [ebx],eax
const WRITE: [u8; 2] = [0x89, 0x03];

fn with_data(attributes: u32, base: u64, limit: u32) -> Bench {
    let mut bench = Bench::flat32();
    bench.vcpu.state.segments[SegmentName::Ds as usize] = segment(attributes, base, limit);
    bench
}

#[test]
fn bases_are_added_modulo_4_gib() {
    let mut bench = with_data(0xc093, 0xffff_f000, u32::MAX);
    bench.set(Gpr::Rbx, DATA + 0x1000).poke(DATA, &[1, 2, 3, 4]);
    assert_eq!(bench.code(&READ).run(), complete(2));
    assert_eq!(bench.gpr(Gpr::Rax), 0x0403_0201);
}

#[test]
fn limits_count_to_the_last_byte() {
    let mut bench = with_data(0xc093, 0, DATA as u32 + 3);
    assert_eq!(bench.set(Gpr::Rbx, DATA).code(&READ).run(), complete(2));
    assert_eq!(bench.set(Gpr::Rbx, DATA + 1).run(), GP);
    assert_eq!(bench.set(Gpr::Rbx, u64::from(u32::MAX)).run(), GP);
}

#[test]
fn expand_down_segments_are_valid_above_the_limit() {
    let mut bench = with_data(0xc097, 0, DATA as u32 - 1);
    assert_eq!(bench.set(Gpr::Rbx, DATA).code(&READ).run(), complete(2));
    assert_eq!(bench.set(Gpr::Rbx, DATA - 1).run(), GP);
    assert_eq!(bench.set(Gpr::Rbx, 0xffff_fffd).run(), GP, "past 4 GiB");
    let mut small = with_data(0x0097, 0, 0xfff);
    assert_eq!(small.set(Gpr::Rbx, 0xfffc).code(&READ).run(), complete(2));
    assert_eq!(small.set(Gpr::Rbx, 0xfffd).run(), GP, "without B the end is 64 KiB");
}

#[test]
fn types_say_what_may_be_done() {
    for (attributes, readable, writable) in [
        (0xc093, true, true),
        (0xc091, true, false),
        (0xc09b, true, false),
        (0xc099, false, false),
        (0x1_0000, false, false),
    ] {
        let mut bench = with_data(attributes, 0, u32::MAX);
        bench.set(Gpr::Rbx, DATA);
        assert_eq!(bench.code(&READ).run(), if readable { complete(2) } else { GP }, "read, {attributes:#x}");
        assert_eq!(bench.code(&WRITE).run(), if writable { complete(2) } else { GP }, "write, {attributes:#x}");
    }
}

#[test]
fn the_stack_segment_raises_stack_faults() {
    let mut bench = Bench::flat32();
    bench.vcpu.state.segments[SegmentName::Ss as usize] = segment(0xc093, 0, 0xfff);
    assert_eq!(bench.set(Gpr::Rbp, DATA).code(&[0x8b, 0x45, 0]).run(), SS, "mov eax,[ebp]");
    assert_eq!(bench.code(&[0x3e, 0x8b, 0x45, 0]).run(), complete(4), "mov eax,ds:[ebp]");
    assert_eq!(bench.set(Gpr::Rbx, DATA).code(&[0x36, 0x8b, 0x03]).run(), SS, "mov eax,ss:[ebx]");
    assert_eq!(bench.set(Gpr::Rsp, 2).code(&[0xff, 0x33]).run(), SS, "push dword [ebx]");
    assert_eq!(bench.gpr(Gpr::Rsp), 2);
}

#[test]
fn real_mode_offsets_end_at_64_kib_and_wrap_there() {
    let mut bench = Bench::real();
    bench.vcpu.state.segments[SegmentName::Ds as usize] = Segment::real_mode(0x1000);
    bench.poke(0x1_0004, &[7]);
    assert_eq!(bench.set(Gpr::Rbx, 0xfff0).code(&[0x8a, 0x47, 0x14]).run(), complete(3), "mov al,[bx+14h]");
    assert_eq!(bench.gpr(Gpr::Rax), 7);
    assert_eq!(bench.set(Gpr::Rbx, 0xffff).code(&[0x8b, 0x07]).run(), GP, "mov ax,[bx]");
    assert_eq!(bench.set(Gpr::Rbx, 0x1_0000).code(&[0x67, 0x8b, 0x03]).run(), GP, "mov ax,[ebx]");
}

#[test]
fn only_fs_and_gs_have_bases_in_64_bit_mode() {
    let mut bench = Bench::long();
    for name in [SegmentName::Ds, SegmentName::Fs] {
        bench.vcpu.state.segments[name as usize] = segment(0xc093, 0x100, 0);
    }
    bench.poke64(DATA, 1).poke64(DATA + 0x100, 2).set(Gpr::Rbx, DATA);
    assert_eq!(bench.code(&[0x3e, 0x8b, 0x03]).run(), complete(3));
    assert_eq!(bench.gpr(Gpr::Rax), 1, "mov eax,ds:[rbx]");
    assert_eq!(bench.code(&[0x64, 0x8b, 0x03]).run(), complete(3));
    assert_eq!(bench.gpr(Gpr::Rax), 2, "mov eax,fs:[rbx]");
}

#[test]
fn addresses_that_are_not_canonical_fault() {
    let mut bench = Bench::long();
    assert_eq!(bench.set(Gpr::Rbx, 1 << 47).code(&READ).run(), GP);
    assert_eq!(bench.set(Gpr::Rbx, (1 << 47) - 2).run(), GP, "the last byte counts");
    assert_eq!(bench.set(Gpr::Rbp, 1 << 63).code(&[0x8b, 0x45, 0]).run(), SS, "mov eax,[rbp]");
    assert_eq!(bench.set(Gpr::Rbx, 1 << 47).code(&[0x36, 0x8b, 0x03]).run(), GP, "an SS prefix is ignored");
}

#[test]
fn fetches_stop_at_the_code_segments_limit() {
    let mut bench = Bench::flat32();
    bench.vcpu.state.segments[SegmentName::Cs as usize].limit = CODE as u32 + 1;
    bench.set(Gpr::Rbx, DEVICE);
    assert_eq!(bench.code(&READ).run(), complete(2));
    assert_eq!(bench.code(&[0x8b, 0x43, 0x10]).run(), GP, "its last byte is past the limit");
    bench.vcpu.state.segments[SegmentName::Cs as usize].limit = CODE as u32 - 1;
    assert_eq!(bench.run(), GP);
}

#[test]
fn fetches_touch_the_next_page_only_when_the_instruction_does() {
    let mut bench = Bench::long_small();
    bench.set(Gpr::Rbx, DEVICE).vcpu.state.rip = CODE + 0xffe;
    let next = SMALL_PAGES + (CODE / 0x1000 + 1) * 8;
    bench.poke64(next, 0);
    assert_eq!(bench.code(&READ).run(), complete(2));
    bench.poke(CODE + 0xffe, &[0x8b, 0x43]);
    assert_eq!(bench.run(), page_fault(16, CODE + 0x1000));
    assert_eq!(bench.length(Exiting::Cpuid), Err(Stop::Fault(Exception::page_fault(16, CODE + 0x1000))));
    bench.poke64(next, 0x9000 | 0x67).poke(0x9000, &[0x30]);
    assert_eq!(bench.run(), complete(3));
    assert_eq!(bench.reads.last(), Some(&(DEVICE + 0x30, 4)), "the second page lies elsewhere");
}

#[test]
fn code_outside_memory_is_refused() {
    let mut bench = Bench::flat32();
    bench.vcpu.state.rip = DEVICE;
    let Outcome::Unsupported(unsupported) = bench.run() else { panic!("there is no code") };
    assert_eq!(unsupported.reason, Reason::Code(Gpa(DEVICE)));
}
