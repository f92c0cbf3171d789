//! The forms that drivers use on device registers, lengths, and the cache.

use super::*;
use vcpu::rflags::{CF, ZF};

#[test]
fn moves_reach_the_device_in_one_access_of_their_size() {
    let mut bench = Bench::flat32();
    bench.set(Gpr::Rbx, DEVICE).set(Gpr::Rax, u64::MAX);
    assert_eq!(bench.code(&[0x8b, 0x43, 0x30]).access(DEVICE + 0x30, AccessKind::Read), complete(3));
    assert_eq!(bench.gpr(Gpr::Rax), 0x4433_2211, "mov eax,[ebx+30h]");
    assert_eq!(bench.code(&[0x89, 0x83, 0xb0, 0, 0, 0]).access(DEVICE + 0xb0, AccessKind::Write), complete(6));
    assert_eq!(bench.writes, [(DEVICE + 0xb0, alloc::vec![0x11, 0x22, 0x33, 0x44])]);
    assert_eq!(bench.code(&[0xa0, 0x20, 0, 0xe0, 0xfe]).run(), complete(5));
    assert_eq!(bench.gpr(Gpr::Rax), 0x4433_2211, "mov al,[moffs]");
    assert_eq!(bench.code(&[0xc6, 0x03, 0x7f]).run(), complete(3));
    assert_eq!(bench.writes[1], (DEVICE, alloc::vec![0x7f]), "mov byte [ebx],7fh");
    assert_eq!(bench.reads, [(DEVICE + 0x30, 4), (DEVICE + 0x20, 1)]);
}

#[test]
fn narrow_destinations_keep_the_rest_of_the_register_and_doublewords_clear_it() {
    let mut bench = Bench::long();
    bench.set(Gpr::Rbx, DEVICE).set(Gpr::Rax, u64::MAX).set(Gpr::R9, u64::MAX).set(Gpr::Rcx, u64::MAX);
    assert_eq!(bench.code(&[0x66, 0x8b, 0x03]).run(), complete(3));
    assert_eq!(bench.gpr(Gpr::Rax), 0xffff_ffff_ffff_2211, "mov ax,[rbx]");
    assert_eq!(bench.code(&[0x44, 0x8b, 0x0b]).run(), complete(3));
    assert_eq!(bench.gpr(Gpr::R9), 0x4433_2211, "mov r9d,[rbx]");
    assert_eq!(bench.code(&[0x8a, 0x2b]).run(), complete(2));
    assert_eq!(bench.gpr(Gpr::Rcx), 0xffff_ffff_ffff_11ff, "mov ch,[rbx]");
    bench.answer = 0x80;
    assert_eq!(bench.code(&[0x48, 0x0f, 0xbe, 0x03]).run(), complete(4));
    assert_eq!(bench.gpr(Gpr::Rax), 0xffff_ffff_ffff_ff80, "movsx rax,byte [rbx]");
    assert_eq!(bench.code(&[0x0f, 0xb6, 0x03]).run(), complete(3));
    assert_eq!(bench.gpr(Gpr::Rax), 0x80, "movzx eax,byte [rbx]");
}

#[test]
fn read_modify_write_reads_once_writes_once_and_sets_flags() {
    let mut bench = Bench::flat32();
    bench.set(Gpr::Rbx, DEVICE).set(Gpr::Rax, 0xff);
    bench.answer = 0x0f;
    assert_eq!(bench.code(&[0x81, 0x23, 0xf0, 0, 0, 0]).access(DEVICE, AccessKind::Read), complete(6));
    assert_eq!(bench.writes, [(DEVICE, alloc::vec![0, 0, 0, 0])], "and dword [ebx],0f0h");
    assert_eq!(bench.vcpu.state.rflags & ZF, ZF);
    assert_eq!(bench.code(&[0x87, 0x03]).run(), complete(2));
    assert_eq!(bench.gpr(Gpr::Rax), 0x0f, "xchg [ebx],eax");
    assert_eq!(bench.writes[1], (DEVICE, alloc::vec![0xff, 0, 0, 0]));
    assert_eq!(bench.reads.len(), 2);
    assert_eq!(bench.code(&[0x83, 0x3b, 0x10]).run(), complete(3));
    assert_eq!(bench.vcpu.state.rflags & (CF | ZF), CF, "cmp dword [ebx],10h");
    assert_eq!(bench.writes.len(), 2, "CMP does not write");
}

#[test]
fn repeated_strings_move_between_ram_and_device_and_pause() {
    let mut bench = Bench::flat32();
    bench.set(Gpr::Rsi, DATA).set(Gpr::Rdi, DEVICE).set(Gpr::Rcx, 3);
    bench.poke(DATA, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(bench.code(&[0xf3, 0xa5]).run(), complete(2));
    assert_eq!(bench.writes.last(), Some(&(DEVICE + 8, alloc::vec![9, 10, 11, 12])));
    assert_eq!((bench.gpr(Gpr::Rsi), bench.gpr(Gpr::Rdi), bench.gpr(Gpr::Rcx)), (DATA + 12, DEVICE + 12, 0));
    bench.set(Gpr::Rdi, DEVICE).set(Gpr::Rcx, 10).patience.set(4);
    let again = Outcome::Jump(bench.vcpu.rip());
    assert_eq!(bench.code(&[0xf3, 0xaa]).run(), again);
    assert_eq!((bench.gpr(Gpr::Rdi), bench.gpr(Gpr::Rcx)), (DEVICE + 4, 6));
}

#[test]
fn an_exit_says_where_only_for_the_operand_that_fits() {
    let mut bench = Bench::flat32();
    bench.set(Gpr::Rbx, DATA + 0x10).poke(DATA + 0x10, &[0xaa; 4]);
    assert_eq!(bench.code(&[0x8b, 0x03]).access(DEVICE + 0x20, AccessKind::Read), complete(2));
    assert_eq!(bench.gpr(Gpr::Rax), 0xaaaa_aaaa, "another page offset is another address");
    assert_eq!(bench.code(&[0x89, 0x03]).access(DEVICE + 0x10, AccessKind::Read), complete(2));
    assert!(bench.writes.is_empty(), "a read's rights do not allow a write");
}

#[test]
fn lengths_come_from_the_bytes_and_never_from_a_guess() {
    let mut bench = Bench::long();
    let length = |bytes| Ok(Length::new(bytes).unwrap());
    for (code, expected, bytes) in [
        (&[0x0f, 0xa2][..], Exiting::Cpuid, 2),
        (&[0x0f, 0x32], Exiting::Rdmsr, 2),
        (&[0x66, 0x0f, 0x30], Exiting::Wrmsr, 3),
        (&[0xf4], Exiting::Hlt, 1),
        (&[0xf3, 0x90], Exiting::Pause, 2),
        (&[0x0f, 0x08], Exiting::Invd, 2),
        (&[0xf3, 0x0f, 0x09], Exiting::Wbinvd, 3),
        (&[0x0f, 0x01, 0xd9], Exiting::Hypercall, 3),
        (&[0x0f, 0x01, 0xc1], Exiting::Hypercall, 3),
        (&[0x0f, 0x01, 0xd1], Exiting::Xsetbv, 3),
        (&[0x44, 0x0f, 0x22, 0xc0], Exiting::ControlWrite, 4),
        (&[0x0f, 0x06], Exiting::ControlWrite, 2),
        (&[0x0f, 0x01, 0x34, 0x25, 0, 0, 0, 0], Exiting::ControlWrite, 8),
    ] {
        bench.code(code);
        assert_eq!(bench.length(expected), length(bytes), "{code:x?}");
    }
    bench.code(&[0x90]);
    assert_eq!(bench.length(Exiting::Cpuid), Err(Stop::Again));
}

#[test]
fn a_cached_instruction_is_not_used_for_other_bytes_or_another_code_size() {
    let mut bench = Bench::long();
    bench.set(Gpr::Rbx, DEVICE);
    assert_eq!(bench.code(&[0x8b, 0x43, 0x10, 0x90]).run(), complete(3));
    assert_eq!(bench.code(&[0x8b, 0x43, 0x20, 0x90]).run(), complete(3));
    assert_eq!(bench.reads, [(DEVICE + 0x10, 4), (DEVICE + 0x20, 4)]);
    // 48h is a REX prefix in 64-bit code and DEC EAX in 32-bit code.
    assert_eq!(bench.code(&[0x48, 0x8b, 0x03]).run(), complete(3));
    let mut state = bench.vcpu.state.clone();
    state.segments[SegmentName::Cs as usize] = Segment::flat_code32(8);
    bench.vcpu.state = state;
    assert_eq!(bench.run(), Outcome::Again, "DEC EAX accesses nothing");
}

#[test]
fn instructions_without_semantics_are_refused_with_their_bytes() {
    let mut bench = Bench::long();
    bench.set(Gpr::Rbx, DEVICE);
    let Outcome::Unsupported(unsupported) = bench.code(&[0xd9, 0x03]).run() else { panic!("fld is not emulated") };
    assert_eq!(unsupported.reason, Reason::NotImplemented);
    assert_eq!(unsupported.bytes[..2], [0xd9, 0x03]);
    assert!(bench.reads.is_empty());
    let Outcome::Unsupported(unsupported) = bench.code(&[0x06]).run() else { panic!("no instruction") };
    assert_eq!(unsupported.reason, Reason::Undecodable);
}
