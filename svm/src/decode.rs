//! From what the processor reported to an [`Exit`], without side effects.
//!
//! Manual: AMD APM volume 2 (24593, revision 3.42), 15.10 to 15.14, 15.25.6 and appendix C. #VMEXIT itself gathers an exit's
//! facts into a plain struct, the VMCB, so [`decode`] reads from there what the reason needs, and nothing else. Neighbours:
//! `lib` calls it, `vcpu` has the result's types. What the backend deals with itself (IRET for NMI blocking, a refused
//! entry) never comes here; a code that nobody asked for becomes [`Exit::Unsupported`].

use crate::vmcb::{ControlArea, ExitCode, IoInfo, NestedFaultInfo, SaveArea, Vmcb};
use vcpu::memory::Gpa;
use vcpu::{
    AccessKind, Cpuid, Exception, ExceptionExit, Exit, Gpr, Gprs, Hypercall, Instruction, Length, MemoryAccess,
    MsrRead, MsrWrite, NestedInstruction, PortRead, PortString, PortWrite, RawExit, Xsetbv,
};

/// Bits of DR6 that say why a #DB was raised: B0-B3, BD, BS, BT. APM 2 13.1.1.3 "Debug-Status Register (DR6)".
pub const DEBUG_REASONS: u64 = 0xe00f;

/// The view of an exit that decoding has.
#[derive(Clone, Copy)]
struct Facts<'a> {
    control: &'a ControlArea,
    save: &'a SaveArea,
    gprs: &'a Gprs,
}

impl Facts<'_> {
    /// EXITCODE, EXITINFO1, EXITINFO2.
    fn raw(self) -> RawExit {
        RawExit { code: self.control.exit().0.into(), info1: self.control.exit_info_1, info2: self.control.exit_info_2 }
    }

    fn unsupported(self) -> Exit {
        Exit::Unsupported(self.raw())
    }

    /// ECX.
    #[inline]
    fn ecx(self) -> u32 {
        self.gprs.get(Gpr::Rcx) as u32
    }

    /// EDX:EAX.
    #[inline]
    fn pair(self) -> u64 {
        self.gprs.get(Gpr::Rdx) << 32 | self.save.rax & 0xffff_ffff
    }

    /// The length from RIP to `next`, if that is the length of an instruction.
    #[inline]
    fn length_to(self, next: u64) -> Option<Length> {
        Length::between(self.save.rip, next)
    }

    /// The instruction's length, where the processor saves the next RIP; the field stays 0 elsewhere.
    #[inline]
    fn length(self) -> Option<Length> {
        match self.control.next_rip {
            0 => None,
            next => self.length_to(next),
        }
    }

    #[inline]
    fn instruction(self) -> Instruction {
        Instruction { length: self.length() }
    }
}

/// What the exit means.
///
/// Not inlined: the result is written in place instead of being taken apart and put together byte by byte.
#[inline(never)]
pub fn decode(vmcb: &Vmcb, gprs: &Gprs) -> Exit {
    let exit = Facts { control: &vmcb.control, save: &vmcb.save, gprs };
    match exit.control.exit() {
        ExitCode::IOIO => port(exit),
        ExitCode::NESTED_PAGE_FAULT => memory_access(exit),
        ExitCode::CPUID => {
            Exit::Cpuid(Cpuid { leaf: exit.save.rax as u32, subleaf: exit.ecx(), length: exit.length() })
        }
        ExitCode::MSR => msr(exit),
        ExitCode::HLT => Exit::Hlt(exit.instruction()),
        ExitCode::INTR => Exit::HostInterrupt,
        ExitCode::VINTR => Exit::InterruptWindow,
        ExitCode::VMMCALL => Exit::Hypercall(Hypercall { length: exit.length() }),
        ExitCode::NMI => Exit::HostNmi,
        ExitCode::PAUSE => Exit::Pause(exit.instruction()),
        ExitCode::INVD => Exit::Invd(exit.instruction()),
        ExitCode::WBINVD => Exit::Wbinvd(exit.instruction()),
        ExitCode::RDPMC => Exit::Rdpmc(exit.instruction()),
        ExitCode::RDTSCP => Exit::Rdtscp(exit.instruction()),
        ExitCode::MONITOR => Exit::Monitor(exit.instruction()),
        ExitCode::MWAIT | ExitCode::MWAIT_ARMED => Exit::Mwait(exit.instruction()),
        ExitCode::INVPCID => Exit::Invpcid(exit.instruction()),
        ExitCode::RSM => Exit::Rsm(exit.instruction()),
        ExitCode::XSETBV => Exit::Xsetbv(Xsetbv { register: exit.ecx(), value: exit.pair(), length: exit.length() }),
        ExitCode::VMRUN
        | ExitCode::VMLOAD
        | ExitCode::VMSAVE
        | ExitCode::STGI
        | ExitCode::CLGI
        | ExitCode::SKINIT
        | ExitCode::INVLPGA
        | ExitCode::RDPRU
        | ExitCode::INVLPGB
        | ExitCode::INVLPGB_ILLEGAL
        | ExitCode::MCOMMIT
        | ExitCode::TLBSYNC => Exit::NestedInstruction(NestedInstruction { code: exit.control.exit().0.into() }),
        ExitCode::TASK_SWITCH => Exit::TaskSwitch(exit.raw()),
        ExitCode::SHUTDOWN => Exit::Shutdown,
        ExitCode::SMI | ExitCode::INIT | ExitCode::MACHINE_CHECK => Exit::HostSignal(exit.raw()),
        code if code.0 >= ExitCode::EXCEPTION.0 && code.0 <= ExitCode::LAST_EXCEPTION.0 => exception(exit, code),
        _ => exit.unsupported(),
    }
}

/// APM 2 15.10.2 "IN and OUT Behavior": EXITINFO2 is the RIP of the next instruction, on all processors.
#[inline]
fn port(exit: Facts<'_>) -> Exit {
    let info = IoInfo::from_bits(exit.control.exit_info_1 as u32);
    let Some(width) = info.width() else { return exit.unsupported() };
    if info.string() {
        let access = if info.input() { AccessKind::Write } else { AccessKind::Read };
        return Exit::PortString(PortString { port: info.port(), width, access });
    }
    let Some(length) = exit.length_to(exit.control.exit_info_2) else { return exit.unsupported() };
    if info.input() {
        Exit::PortRead(PortRead::new(info.port(), width, length))
    } else {
        Exit::PortWrite(PortWrite::new(info.port(), width, exit.save.rax as u32, length))
    }
}

/// APM 2 15.25.6 "Nested versus Guest Page Faults, Fault Ordering".
#[inline]
fn memory_access(exit: Facts<'_>) -> Exit {
    let info = NestedFaultInfo::from_bits(exit.control.exit_info_1);
    let kind = if info.fetch() {
        AccessKind::Fetch
    } else if info.write() {
        AccessKind::Write
    } else {
        AccessKind::Read
    };
    Exit::MemoryAccess(MemoryAccess {
        gpa: Gpa(exit.control.exit_info_2),
        kind,
        in_page_walk: info.table_walk(),
        during_event_delivery: exit.control.exit_interrupt_info.valid(),
        bytes: (exit.control.instruction_bytes, exit.control.instruction_length.min(15)),
    })
}

/// APM 2 15.11 "MSR Intercepts": EXITINFO1 is 0 for RDMSR, 1 for WRMSR.
#[inline]
fn msr(exit: Facts<'_>) -> Exit {
    let msr = exit.ecx();
    if exit.control.exit_info_1 & 1 == 0 {
        Exit::MsrRead(MsrRead { msr, length: exit.length() })
    } else {
        Exit::MsrWrite(MsrWrite { msr, value: exit.pair(), length: exit.length() })
    }
}

/// APM 2 15.12 "Exception Intercepts": EXITINFO1 is the error code, EXITINFO2 the address of a page fault.
fn exception(exit: Facts<'_>, code: ExitCode) -> Exit {
    let vector = (code.0 - ExitCode::EXCEPTION.0) as u8;
    let error_code = match vector {
        Exception::DF
        | Exception::TS
        | Exception::NP
        | Exception::SS
        | Exception::GP
        | Exception::PF
        | Exception::AC => Some(exit.control.exit_info_1 as u32),
        _ => None,
    };
    let payload = match vector {
        Exception::DB => exit.save.dr6 & DEBUG_REASONS,
        Exception::PF => exit.control.exit_info_2,
        _ => 0,
    };
    match Exception::from_vector(vector, error_code, payload) {
        Some(exception) => Exit::Exception(ExceptionExit { exception }),
        None => exit.unsupported(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Frame;
    use crate::region::tests::HeapFrames;
    use crate::vmcb::EventWord;
    use alloc::sync::Arc;
    use proptest::prelude::*;
    use vcpu::memory::Width;
    use vcpu::{Answer, FrameSource, Resume};

    /// An exit at RIP 1000h, all registers 0.
    struct Report {
        vmcb: Vmcb,
        gprs: Gprs,
    }

    impl Report {
        fn decode(&self) -> Exit {
            decode(&self.vmcb, &self.gprs)
        }
    }

    fn report(code: u64, info1: u64, info2: u64) -> Report {
        let frames: Arc<dyn FrameSource> = Arc::new(HeapFrames::default());
        let mut vmcb = (*Frame::<Vmcb>::new(&frames).unwrap()).clone();
        (vmcb.control.exit_code, vmcb.control.exit_info_1, vmcb.control.exit_info_2) = (code, info1, info2);
        vmcb.save.rip = 0x1000;
        Report { vmcb, gprs: Gprs::default() }
    }

    fn length_of(resume: Resume) -> u8 {
        match *resume.answer() {
            Answer::Advance(length) | Answer::PortValue(length, ..) => length.bytes(),
            ref other => panic!("{other:?} has no length"),
        }
    }

    #[test]
    fn out_of_a_byte_as_qemu_reports_it() {
        // OUT 0x3f8, AL at 0x1000: SZ8, A32, port in the upper half; EXITINFO2 behind the two bytes.
        let mut exit = report(0x7b, 0x03f8_0110, 0x1002);
        exit.vmcb.save.rax = 0xffff_ff41;
        let Exit::PortWrite(write) = exit.decode() else { panic!() };
        assert_eq!((write.port, write.width, write.value), (0x3f8, Width::Byte, 0x41));
        assert_eq!(length_of(write.complete()), 2);
    }

    #[test]
    fn in_of_each_width() {
        for (size, width) in [(0x10, Width::Byte), (0x20, Width::Word), (0x40, Width::Dword)] {
            let Exit::PortRead(read) = report(0x7b, 0xcfc_0001 | size, 0x1001).decode() else { panic!() };
            assert_eq!((read.port, read.width), (0xcfc, width));
        }
    }

    #[test]
    fn string_io_names_the_side_that_memory_is_on() {
        // REP INSB: IN, STR, REP, SZ8.
        let Exit::PortString(string) = report(0x7b, 0x01f0_001d, 0x1002).decode() else { panic!() };
        assert_eq!((string.port, string.width, string.access), (0x1f0, Width::Byte, AccessKind::Write));
        let Exit::PortString(string) = report(0x7b, 0x0402_0014, 0x1001).decode() else { panic!() };
        assert_eq!(string.access, AccessKind::Read);
    }

    #[test]
    fn io_without_a_width_or_a_length_is_not_guessed_at() {
        assert!(matches!(report(0x7b, 0x80_0001, 0x1001).decode(), Exit::Unsupported(_)));
        assert!(matches!(report(0x7b, 0x80_0011, 0x0fff).decode(), Exit::Unsupported(_)));
        assert!(matches!(report(0x7b, 0x80_0011, 0x1010).decode(), Exit::Unsupported(_)));
    }

    #[test]
    fn nested_page_faults() {
        for (info1, kind, walk) in [
            (0x1_0000_0004, AccessKind::Read, false),
            (0x1_0000_0006, AccessKind::Write, false),
            (0x1_0000_0014, AccessKind::Fetch, false),
            (0x2_0000_0006, AccessKind::Write, true),
        ] {
            let Exit::MemoryAccess(access) = report(0x400, info1, 0xfee0_00b0).decode() else { panic!() };
            assert_eq!((access.gpa, access.kind, access.in_page_walk), (Gpa(0xfee0_00b0), kind, walk));
        }
    }

    #[test]
    fn a_fault_of_event_delivery_is_told_apart_from_an_instructions() {
        let mut exit = report(0x400, 0x1_0000_0006, 0xfee0_00b0);
        let Exit::MemoryAccess(access) = exit.decode() else { panic!() };
        assert!(!access.during_event_delivery);
        exit.vmcb.control.exit_interrupt_info = EventWord::new().with_vector(0x30).with_valid(true);
        let Exit::MemoryAccess(access) = exit.decode() else { panic!() };
        assert!(access.during_event_delivery);
    }

    #[test]
    fn msrs_and_xsetbv_join_edx_and_eax() {
        let mut exit = report(0x7c, 1, 0);
        exit.vmcb.save.rax = 0xffff_ffff_0000_0d01;
        exit.gprs.set(Gpr::Rcx, 0xffff_ffff_c000_0080);
        exit.gprs.set(Gpr::Rdx, 0xaaaa_aaaa_0000_0002);
        exit.vmcb.control.next_rip = 0x1002;
        let value = 0x2_0000_0d01;
        let length = Length::new(2);
        assert_eq!(exit.decode(), Exit::MsrWrite(MsrWrite { msr: 0xc000_0080, value, length }));
        exit.vmcb.control.exit_info_1 = 0;
        assert_eq!(exit.decode(), Exit::MsrRead(MsrRead { msr: 0xc000_0080, length }));
        exit.vmcb.control.exit_code = 0x8d;
        exit.gprs.set(Gpr::Rcx, 0);
        assert_eq!(exit.decode(), Exit::Xsetbv(Xsetbv { register: 0, value, length }));
    }

    #[test]
    fn a_length_comes_only_from_a_saved_next_rip() {
        let mut exit = report(0x72, 0, 0);
        exit.vmcb.save.rax = 0x8000_0002;
        exit.gprs.set(Gpr::Rcx, 1);
        assert_eq!(exit.decode(), Exit::Cpuid(Cpuid { leaf: 0x8000_0002, subleaf: 1, length: None }));
        exit.vmcb.save.rip = 0xffff_ffff;
        exit.vmcb.control.next_rip = 0x1;
        let Exit::Cpuid(cpuid) = exit.decode() else { panic!() };
        assert_eq!(cpuid.length, Length::new(2), "32-bit code wraps at 4 GiB");
    }

    #[test]
    fn exceptions_carry_what_injecting_them_needs() {
        let mut exit = report(0x41, 0, 0);
        exit.vmcb.save.dr6 = 0xffff_4ff1;
        let expected = Exception::debug(0x4001);
        assert_eq!(exit.decode(), Exit::Exception(ExceptionExit { exception: expected }));
        assert_eq!(report(0x51, 0, 0).decode(), Exit::Exception(ExceptionExit { exception: Exception::alignment() }));
        assert_eq!(
            report(0x4e, 2, 0xdead_b000).decode(),
            Exit::Exception(ExceptionExit { exception: Exception::page_fault(2, 0xdead_b000) })
        );
        assert!(matches!(report(0x52, 0, 0).decode(), Exit::HostSignal(_)));
        assert!(matches!(report(0x42, 0, 0).decode(), Exit::Unsupported(_)), "vector 2 is no exception");
    }

    #[test]
    fn svm_instructions_are_nested_ones_and_vmmcall_is_not() {
        for code in [0x7a, 0x80, 0x82, 0x83, 0x84, 0x85, 0x86, 0x8e, 0xa0, 0xa1, 0xa3, 0xa4] {
            assert_eq!(report(code, 0, 0).decode(), Exit::NestedInstruction(NestedInstruction { code }));
        }
        assert_eq!(report(0x81, 0, 0).decode(), Exit::Hypercall(Hypercall { length: None }));
    }

    #[test]
    fn codes_are_compared_by_their_low_half() {
        assert_eq!(report(0xdead_beef_0000_0060, 0, 0).decode(), Exit::HostInterrupt);
    }

    #[test]
    fn what_was_not_asked_for_keeps_its_code() {
        let raw = RawExit { code: 0x7e, info1: 1, info2: 2 };
        assert_eq!(report(0x7e, 1, 2).decode(), Exit::Unsupported(raw));
        assert!(matches!(report(0x403, 0, 0).decode(), Exit::Unsupported(_)));
    }

    proptest! {
        #[test]
        fn no_report_panics(code in 0u64..0x410, info1: u64, info2: u64, rip: u64, next_rip: u64, count: u8) {
            let mut exit = report(code, info1, info2);
            (exit.vmcb.save.rip, exit.vmcb.control.next_rip) = (rip, next_rip);
            exit.vmcb.control.instruction_length = count;
            if let Exit::MemoryAccess(access) = exit.decode() {
                prop_assert!(access.bytes.1 <= 15);
            }
        }
    }
}
