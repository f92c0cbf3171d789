//! Faults leave no trace: what was located but not written, pages crossed, alignment, locks.

use super::*;
use std::thread;
use vcpu::rflags::{self, CF, ZF};

#[test]
fn a_write_across_pages_writes_nothing_when_the_second_faults() {
    let mut bench = Bench::long_small();
    bench.poke64(SMALL_PAGES + (DATA / 0x1000 + 1) * 8, 0).set(Gpr::Rbx, DATA + 0xffe).set(Gpr::Rax, u64::MAX);
    assert_eq!(bench.code(&[0x89, 0x03]).run(), page_fault(2, DATA + 0x1000));
    assert_eq!(bench.peek(DATA + 0xff8), 0);
}

#[test]
fn an_access_across_pages_reaches_both_ends() {
    let mut bench = Bench::long_small();
    bench.poke64(SMALL_PAGES + (DATA / 0x1000 + 1) * 8, DEVICE & !0xfff | 0x67);
    bench.set(Gpr::Rbx, DATA + 0xffd).poke(DATA + 0xffd, &[0xaa, 0xbb, 0xcc]);
    assert_eq!(bench.code(&[0x8b, 0x03]).run(), complete(2));
    assert_eq!(bench.gpr(Gpr::Rax), 0x11cc_bbaa);
    assert_eq!(bench.reads, [(DEVICE, 1)]);
    bench.set(Gpr::Rax, 0x0403_0201);
    assert_eq!(bench.code(&[0x89, 0x03]).run(), complete(2));
    assert_eq!(bench.writes, [(DEVICE, alloc::vec![4])]);
    assert_eq!(bench.peek(DATA + 0xff8) >> 40, 0x03_0201);
}

#[test]
fn unaligned_device_accesses_are_split_into_aligned_ones() {
    let mut bench = Bench::flat32();
    bench.set(Gpr::Rbx, DEVICE + 1);
    assert_eq!(bench.code(&[0x8b, 0x03]).run(), complete(2));
    assert_eq!(bench.reads, [(DEVICE + 1, 1), (DEVICE + 2, 2), (DEVICE + 4, 1)]);
    assert_eq!(bench.gpr(Gpr::Rax), 0x1122_1111);
}

#[test]
fn misaligned_user_accesses_raise_ac_when_asked_for() {
    let mut bench = Bench::long().user();
    bench.set(Gpr::Rbx, DEVICE + 2).code(&[0x8b, 0x03]);
    assert_eq!(bench.run(), complete(2));
    bench.vcpu.state.cr0 |= cr0::AM;
    bench.vcpu.state.rflags |= rflags::AC;
    assert_eq!(bench.run(), Outcome::Fault(Exception::alignment()));
    assert_eq!(bench.set(Gpr::Rbx, DEVICE + 4).run(), complete(2));
}

#[test]
fn read_modify_write_wants_the_right_to_write_before_it_reads() {
    let mut bench = Bench::long();
    bench.vcpu.state.cr0 |= cr0::WP;
    let gigabyte = TABLES + 0x1000 + (DEVICE >> 30) * 8;
    let read_only = bench.peek(gigabyte) & !2;
    bench.poke64(gigabyte, read_only).set(Gpr::Rbx, DEVICE);
    // Even where the exit was a read: its rights do not cover the write.
    assert_eq!(bench.code(&[0xff, 0x03]).access(DEVICE, AccessKind::Read), page_fault(3, DEVICE));
    assert!(bench.reads.is_empty());
}

#[test]
fn compare_exchange_writes_the_device_in_either_case() {
    let mut bench = Bench::long();
    bench.set(Gpr::Rbx, DEVICE).set(Gpr::Rax, 5).set(Gpr::Rcx, 9);
    bench.answer = 5;
    assert_eq!(bench.code(&[0xf0, 0x0f, 0xb1, 0x0b]).run(), complete(4));
    assert_eq!(bench.vcpu.state.rflags & ZF, ZF);
    bench.answer = 6;
    assert_eq!(bench.run(), complete(4));
    assert_eq!(bench.vcpu.state.rflags & (ZF | CF), CF);
    assert_eq!(bench.gpr(Gpr::Rax), 6);
    assert_eq!(bench.writes, [(DEVICE, alloc::vec![9, 0, 0, 0]), (DEVICE, alloc::vec![6, 0, 0, 0])]);
}

#[test]
fn locks_that_cannot_be_kept_are_refused() {
    let mut bench = Bench::long();
    let split = |outcome, gpa| {
        assert!(
            matches!(outcome, Outcome::Unsupported(Unsupported { reason: Reason::SplitLock(at), .. }) if at == Gpa(gpa))
        );
    };
    bench.set(Gpr::Rbx, DATA + 6);
    split(bench.code(&[0xf0, 0xff, 0x03]).run(), DATA + 6);
    assert_eq!(bench.code(&[0xff, 0x03]).run(), complete(2), "without LOCK it is allowed to tear");
    bench.set(Gpr::Rbx, DATA);
    split(bench.code(&[0xf0, 0x48, 0x0f, 0xc7, 0x0b]).run(), DATA);
    bench.set(Gpr::Rbx, DATA + 8);
    assert_eq!(bench.code(&[0xf0, 0x48, 0x0f, 0xc7, 0x0b]).run(), GP, "cmpxchg16b wants 16-byte alignment");
}

#[test]
fn locked_operations_are_atomic_against_other_cpus() {
    const ROUNDS: u64 = 3000;
    let bench = Bench::flat32();
    let ram = bench.ram.clone();
    ram.write(Gpa(CODE), &[0xf0, 0x83, 0x03, 0x01]).unwrap();
    let count = |ram: Arc<SparseMemory>| {
        let mut bench = Bench::flat32();
        bench.ram = ram;
        bench.set(Gpr::Rbx, DATA + 4);
        let mut done = 0;
        // Under contention an attempt may give up, to be entered again.
        while done < ROUNDS {
            done += u64::from(bench.run() == complete(4));
        }
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            let ram = ram.clone();
            scope.spawn(move || count(ram));
        }
    });
    assert_eq!(bench.peek(DATA), (2 * ROUNDS) << 32);
}

#[test]
fn divisions_that_overflow_raise_de() {
    let mut bench = Bench::flat32();
    bench.set(Gpr::Rbx, DEVICE).set(Gpr::Rdx, 7).code(&[0xf7, 0x33]);
    bench.answer = 0;
    assert_eq!(bench.run(), Outcome::Fault(Exception::divide()));
    bench.answer = 7;
    assert_eq!(bench.run(), Outcome::Fault(Exception::divide()), "the quotient needs 33 bits");
    bench.answer = 8;
    assert_eq!(bench.run(), complete(2));
}

#[test]
fn jumps_check_their_target() {
    let mut bench = Bench::long();
    bench.set(Gpr::Rbx, DEVICE).set(Gpr::Rsp, DATA + 0x100);
    bench.answer = 0x1234;
    assert_eq!(bench.code(&[0xff, 0x13]).run(), Outcome::Jump(0x1234));
    assert_eq!((bench.gpr(Gpr::Rsp), bench.peek(DATA + 0xf8)), (DATA + 0xf8, CODE + 2));
    bench.answer = 1 << 50;
    assert_eq!(bench.run(), GP);
    assert_eq!(bench.gpr(Gpr::Rsp), DATA + 0xf8);
}

#[test]
fn an_instruction_that_another_cpu_replaced_is_left_to_the_hardware() {
    let mut bench = Bench::long();
    for code in [&[0x90][..], &[0xcc], &[0x01, 0xd8], &[0x0f, 0xa2], &[0xf4]] {
        assert_eq!(bench.code(code).access(DEVICE, AccessKind::Read), Outcome::Again, "{code:x?}");
    }
    assert!(bench.reads.is_empty());
}
