//! A vCPU without a processor: the tests play VMRUN by changing the VMCB between `before_entry` and `after_exit`.

use super::*;
use crate::capability::tests::{matisse, qemu};
use crate::region::tests::{HeapFrames, host_cpu};
use crate::vmcb::ControlArea;
use alloc::vec;
use memory::RegisterPage;
use proptest::prelude::*;
use vcpu::memory::{self, Gpa};
use vcpu::{CpuidAnswer, MemoryType, Permissions, SecondLevel, cr4};

struct Bench {
    vcpu: SvmVcpu,
    tables: NestedTables<FrameTables>,
    page: Arc<RegisterPage>,
}

fn bench_on(capability: Capability) -> Bench {
    let frames: Arc<dyn FrameSource> = Arc::new(HeapFrames::default());
    let asids = capability.asids;
    let backend = Svm::new(capability);
    let tables = backend.second_level(&frames).unwrap();
    let page = Arc::new(RegisterPage::new());
    let apic = ApicBinding { page: page.clone(), physical: Hpa(0) };
    let config =
        VcpuConfig { number: 0, second_level_root: tables.root(), apic, signature: 0x0080_0f12, frames: &frames };
    let mut vcpu = backend.vcpu(config).unwrap();
    let cpu = host_cpu(&frames, asids);
    let asid = cpu.asids.lock().assign(None);
    vcpu.asid = Some(asid);
    vcpu.vmcb.control.asid = asid.number;
    vcpu.cpu = Some(Arc::new(cpu));
    Bench { vcpu, tables, page }
}

/// As on QEMU: next to no features.
fn bench() -> Bench {
    // The heap of the test, which stands for physical memory, lies above 40 bits.
    bench_on(Capability { physical_bits: 48, ..Capability::detect(&qemu, || 0).unwrap() })
}

/// As on Zen 2: next-RIP save, decode assists, flush by ASID.
fn rich_bench() -> Bench {
    bench_on(Capability::detect(&matisse, || 0).unwrap())
}

impl Bench {
    /// Enters, lets `guest` do something, exits with `code`.
    fn enter(&mut self, code: u32, guest: impl FnOnce(&mut Vmcb)) -> Option<Exit> {
        let tpr = match self.vcpu.before_entry() {
            Ok(tpr) => tpr,
            Err(result) => return Some(result.unwrap()),
        };
        let vmcb = &mut *self.vcpu.vmcb;
        // What #VMEXIT leaves behind unless the guest does otherwise.
        vmcb.control.exit_interrupt_info = EventWord::new();
        vmcb.control.event_injection = EventWord::new();
        vmcb.control.interrupt_state = InterruptState::new();
        vmcb.control.exit_code = code.into();
        guest(vmcb);
        let code = ExitCode(code);
        if self.vcpu.after_exit(code, tpr) {
            return None;
        }
        if is_ours(code) { self.vcpu.handle(code) } else { Some(decode(&self.vcpu.vmcb, &self.vcpu.gprs)) }
    }

    fn long_mode(mut self) -> Self {
        let mut state = ArchState::reset(0);
        state.cr0 = cr0::PE | cr0::PG | cr0::ET;
        state.cr4 = cr4::PAE;
        state.efer = efer::LME | efer::LMA;
        state.segments[SegmentName::Cs as usize] = Segment::flat_code64(8);
        state.segments[SegmentName::Ss as usize] = Segment::flat_data(16);
        state.rip = 0x1000;
        state.rflags = rflags::FIXED | rflags::IF;
        self.vcpu.set_state(&state);
        self
    }

    fn control(&mut self) -> &mut ControlArea {
        &mut self.vcpu.vmcb.control
    }
}

fn length(bytes: u8) -> Length {
    Length::new(bytes).unwrap()
}

const CPUID: u32 = 0x72;
const IRET: u32 = 0x74;
const VINTR: u32 = 0x64;
const DEBUG: u32 = 0x41;
const CR8_WRITE: u32 = 0x18;
const NMI: u32 = 0x61;
const HLT: u32 = 0x78;

#[test]
fn the_whole_state_goes_in_and_comes_out() {
    let mut bench = bench();
    assert_eq!(bench.vcpu.state(), ArchState::reset(0x0080_0f12));
    let mut state = ArchState::reset(7);
    for (number, segment) in state.segments.iter_mut().enumerate() {
        *segment = Segment::flat_data(number as u16 * 8);
        segment.base = number as u64 * 0x1000;
    }
    for register in Gpr::ALL {
        state.gprs.set(register, 0x1111_2222_3333_4400 + register as u64);
    }
    (state.rip, state.rflags) = (0xffff_8000_1234_5678, 0x246);
    (state.gdtr.base, state.gdtr.limit, state.idtr.base, state.idtr.limit) = (0x1000, 0x7f, 0x2000, 0xfff);
    (state.cr0, state.cr2, state.cr3, state.cr4) = (0x8000_0011, 0xdead, 0x5000, 0x20);
    (state.efer, state.xcr0) = (0xd01, 7);
    (state.dr, state.dr6, state.dr7) = ([1, 2, 3, 4], 0xffff_0ff1, 0x401);
    for (number, msr) in SystemMsr::ALL.into_iter().enumerate() {
        state.msrs.set(msr, 0x100 + number as u64);
    }
    bench.vcpu.set_state(&state);
    assert_eq!(bench.vcpu.state(), state);
    assert_eq!(bench.vcpu.vmcb.save.efer, 0x1d01, "SVME is set and hidden");
}

#[test]
fn privilege_follows_mode_and_stack_segment() {
    let mut bench = bench().long_mode();
    assert_eq!(bench.vcpu.cpl(), 0);
    let mut state = bench.vcpu.state();
    state.segments[SegmentName::Ss as usize].attributes.set_dpl(3);
    bench.vcpu.set_state(&state);
    assert_eq!(bench.vcpu.cpl(), 3);
    state.cr0 = cr0::ET;
    bench.vcpu.set_state(&state);
    assert_eq!(bench.vcpu.cpl(), 0, "real mode has no other level");
}

#[test]
fn cpuid_is_answered_in_registers_and_rip_moves() {
    let mut bench = bench().long_mode();
    bench.vcpu.set_gpr(Gpr::Rsp, 0x7000);
    let exit = bench.enter(CPUID, |vmcb| {
        assert_eq!(vmcb.save.rsp, 0x7000);
        vmcb.save.rax = 1;
        vmcb.save.rsp = 0x6ff8;
        vmcb.control.interrupt_state.set_shadow(true);
    });
    let Some(Exit::Cpuid(cpuid)) = exit else { panic!("{exit:?}") };
    assert_eq!((cpuid.leaf, bench.vcpu.gpr(Gpr::Rsp)), (1, 0x6ff8));
    assert_eq!(bench.vcpu.interrupt_window(), Window::Closed);
    let answer = CpuidAnswer { eax: 1, ebx: 2, ecx: 3, edx: 0xffff_ffff };
    bench.vcpu.set_gpr(Gpr::Rdx, u64::MAX);
    bench.vcpu.complete(cpuid.complete(length(2), answer));
    assert_eq!([Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|r| bench.vcpu.gpr(r)), [1, 2, 3, 0xffff_ffff]);
    assert_eq!(bench.vcpu.rip(), 0x1002);
    assert_eq!(bench.vcpu.interrupt_window(), Window::Open, "a completed instruction ends the shadow");
    bench.enter(HLT, |vmcb| assert_eq!(vmcb.save.rax, 1));
}

#[test]
fn a_saved_next_rip_gives_the_length() {
    let mut bench = rich_bench().long_mode();
    let exit = bench.enter(CPUID, |vmcb| vmcb.control.next_rip = 0x1003);
    let Some(Exit::Cpuid(cpuid)) = exit else { panic!("{exit:?}") };
    assert_eq!(cpuid.length, Some(length(3)));
}

#[test]
fn decode_assists_come_with_memory_accesses_only() {
    let mut bench = rich_bench().long_mode();
    let exit = bench.enter(0x400, |vmcb| {
        vmcb.control.exit_info_1 = 0x1_0000_0006;
        vmcb.control.exit_info_2 = 0xfee0_00b0;
        vmcb.control.instruction_length = 15;
        vmcb.control.instruction_bytes = *b"\x89\x04\x25\xb0\0\xe0\xfe\x90\x90\x90\x90\x90\x90\x90\x90";
    });
    let Some(Exit::MemoryAccess(access)) = exit else { panic!("{exit:?}") };
    assert_eq!((access.gpa, access.bytes.1, access.bytes.0[0]), (Gpa(0xfee0_00b0), 15, 0x89));
}

#[test]
fn port_values_merge_by_width() {
    for (io, value, expected) in [
        (0x03f8_0011, 0x1ff, 0x1122_3344_5566_77ff),
        (0x03f8_0021, 0x1_abcd, 0x1122_3344_5566_abcd),
        (0x03f8_0041, 0x9999_9999, 0x9999_9999),
    ] {
        let mut bench = bench().long_mode();
        let exit = bench.enter(0x7b, |vmcb| {
            vmcb.save.rax = 0x1122_3344_5566_7788;
            vmcb.control.exit_info_1 = io;
            vmcb.control.exit_info_2 = 0x1001;
        });
        let Some(Exit::PortRead(read)) = exit else { panic!("{exit:?}") };
        bench.vcpu.complete(read.complete(value));
        assert_eq!((bench.vcpu.gpr(Gpr::Rax), bench.vcpu.rip()), (expected, 0x1001));
    }
}

#[test]
fn msr_values_fill_edx_and_eax() {
    let mut bench = bench().long_mode();
    let Some(Exit::MsrRead(read)) = bench.enter(0x7c, |_| {}) else { panic!() };
    bench.vcpu.complete(read.complete(length(2), 0x1234_5678_9abc_def0));
    assert_eq!((bench.vcpu.gpr(Gpr::Rax), bench.vcpu.gpr(Gpr::Rdx)), (0x9abc_def0, 0x1234_5678));
}

#[test]
fn the_trap_flag_raises_debug_behind_an_instruction() {
    let mut bench = bench().long_mode();
    let flags = bench.vcpu.rflags();
    bench.vcpu.set_rflags(flags | rflags::TF | rflags::RF);
    let Some(Exit::Hlt(hlt)) = bench.enter(HLT, |_| {}) else { panic!() };
    bench.vcpu.complete(hlt.complete(length(1)));
    let state = bench.vcpu.state();
    assert_eq!((state.rip, state.dr6), (0x1001, 0xffff_4ff0));
    assert_eq!(state.rflags & rflags::RF, 0);
    assert_eq!(bench.control().event_injection.into_bits(), 0x8000_0301);
    assert_eq!(bench.vcpu.interrupt_window(), Window::Closed);
}

#[test]
fn an_exception_is_queued_with_its_code_and_address() {
    let mut bench = bench().long_mode();
    let Some(Exit::Hlt(hlt)) = bench.enter(HLT, |_| {}) else { panic!() };
    bench.vcpu.complete(hlt.inject(Exception::page_fault(6, 0xdead_b000)));
    assert_eq!(bench.control().event_injection.into_bits(), 0x6_8000_0b0e);
    assert_eq!((bench.vcpu.cr2(), bench.vcpu.rip()), (0xdead_b000, 0x1000));
}

#[test]
fn real_mode_exceptions_push_no_error_code() {
    let mut bench = bench();
    let Some(Exit::Hlt(hlt)) = bench.enter(HLT, |_| {}) else { panic!() };
    bench.vcpu.complete(hlt.inject(Exception::general_protection(0)));
    assert_eq!(bench.control().event_injection.into_bits(), 0x8000_030d);
}

#[test]
fn an_injected_debug_exception_clears_general_detect() {
    let mut bench = bench().long_mode();
    let mut state = bench.vcpu.state();
    state.dr7 |= 1 << 13;
    bench.vcpu.set_state(&state);
    let exit = bench.enter(DEBUG, |vmcb| vmcb.save.dr6 = 0xffff_2ff0);
    let Some(Exit::Exception(debug)) = exit else { panic!("{exit:?}") };
    assert_eq!(debug.exception, Exception::debug(1 << 13));
    let exception = debug.exception;
    bench.vcpu.complete(debug.inject(exception));
    let state = bench.vcpu.state();
    assert_eq!((state.dr6, state.dr7), (0xffff_2ff0, 0x400));
}

#[test]
fn faults_during_delivery_merge_up_to_a_triple_fault() {
    let mut bench = bench().long_mode();
    let nested_fault = |word: u64| {
        move |vmcb: &mut Vmcb| {
            vmcb.control.exit_interrupt_info = EventWord::from_bits(word);
            vmcb.control.exit_info_1 = 0x1_0000_0006;
        }
    };
    // #PF meets #PF: #DF.
    let Some(Exit::MemoryAccess(access)) = bench.enter(0x400, nested_fault(0x2_8000_0b0e)) else { panic!() };
    assert_eq!(bench.control().event_injection.into_bits(), 0x2_8000_0b0e, "queued again");
    bench.vcpu.complete(access.inject(Exception::page_fault(2, 0x9000)));
    assert_eq!(bench.control().event_injection.into_bits(), 0x8000_0b08);
    assert_eq!(bench.vcpu.cr2(), 0x9000);
    // #DF meets #PF: shutdown, without an entry.
    let Some(Exit::MemoryAccess(access)) = bench.enter(0x400, nested_fault(0x8000_0b08)) else { panic!() };
    bench.vcpu.complete(access.inject(Exception::page_fault(2, 0x9000)));
    assert_eq!(bench.vcpu.interrupt_window(), Window::Closed);
    assert_eq!(bench.vcpu.before_entry(), Err(Ok(Exit::Shutdown)));
    assert_eq!(bench.vcpu.before_entry(), Ok(0));
}

#[test]
fn interrupted_events_are_queued_again_and_software_ones_executed_again() {
    for (word, queued) in [
        (0x8000_0020, true),
        (0x8000_0202, true),
        (0x8000_0b0d, true),
        (0x8000_0301, true),
        (0x8000_0303, false),
        (0x8000_0304, false),
        (0x8000_0480, false),
    ] {
        let mut bench = bench().long_mode();
        bench.enter(0x400, |vmcb| vmcb.control.exit_interrupt_info = EventWord::from_bits(word));
        let expected = if queued { word } else { 0 };
        assert_eq!(bench.control().event_injection.into_bits(), expected, "{word:#x}");
        assert_eq!(bench.vcpu.rip(), 0x1000);
    }
}

#[test]
fn a_software_event_is_pushed_with_the_address_behind_it() {
    let event = Event::Software { vector: 0x80, length: 2, kind: SoftwareKind::Interrupt };
    let mut plain = bench().long_mode();
    plain.vcpu.inject(event);
    assert_eq!((plain.vcpu.rip(), plain.control().event_injection.into_bits()), (0x1002, 0x8000_0480));
    // Its delivery is interrupted: INT n is executed again.
    plain.enter(0x400, |vmcb| vmcb.control.exit_interrupt_info = EventWord::from_bits(0x8000_0480));
    assert_eq!((plain.vcpu.rip(), plain.control().event_injection.into_bits()), (0x1000, 0));
    let mut rich = rich_bench().long_mode();
    rich.vcpu.inject(event);
    assert_eq!((rich.vcpu.rip(), rich.control().next_rip), (0x1000, 0x1002));
}

#[test]
fn tpr_goes_both_ways_and_keeps_low_bits_that_the_guest_did_not_touch() {
    let mut bench = bench().long_mode();
    bench.page.store(0x80, 0x35);
    bench.enter(HLT, |vmcb| assert_eq!(vmcb.control.interrupt_control.tpr(), 3));
    assert_eq!(bench.page.load(0x80), 0x35);
    bench.enter(HLT, |vmcb| vmcb.control.interrupt_control.set_tpr(0xd));
    assert_eq!(bench.page.load(0x80), 0xd0);
}

#[test]
fn an_interrupt_window_is_a_virtual_interrupt_of_the_vectors_class() {
    let mut bench = bench().long_mode();
    bench.vcpu.request_interrupt_window(Some(0x61));
    let control = bench.control();
    assert!(control.interrupt_control.irq() && control.intercept_3.vintr());
    assert_eq!(control.interrupt_control.priority(), 6);
    assert_eq!(bench.enter(VINTR, |_| {}), Some(Exit::InterruptWindow));
    let control = bench.control();
    assert!(!control.interrupt_control.irq() && !control.intercept_3.vintr());
    assert!(control.interrupt_control.masking());
}

#[test]
fn a_processor_that_lets_equal_priority_through_is_learned() {
    let mut bench = bench().long_mode();
    bench.page.store(0x80, 0x60);
    bench.vcpu.request_interrupt_window(Some(0x61));
    assert_eq!(bench.enter(VINTR, |_| {}), None, "class 6 is not above TPR 6");
    assert_eq!(bench.control().interrupt_control.priority(), 5);
    assert!(bench.control().interrupt_control.irq());
    assert_eq!(bench.enter(VINTR, |vmcb| vmcb.control.interrupt_control.set_tpr(5)), Some(Exit::InterruptWindow));
    bench.vcpu.request_interrupt_window(Some(0x21));
    assert_eq!(bench.control().interrupt_control.priority(), 1);
}

#[test]
fn a_cr8_write_beside_a_pending_window_is_stepped_over_where_decode_assists_are_missing() {
    let mut bench = bench().long_mode();
    bench.vcpu.request_interrupt_window(Some(0x61));
    let exit = bench.enter(CR8_WRITE, |vmcb| assert_eq!(vmcb.control.intercept_cr_writes, 1 << 8));
    assert_eq!(exit, None);
    let exit = bench.enter(DEBUG, |vmcb| {
        assert!(!vmcb.control.interrupt_control.irq(), "no virtual interrupt is pending at the write");
        assert_eq!(vmcb.control.intercept_cr_writes, 0);
        assert_ne!(vmcb.save.rflags & rflags::TF, 0);
        vmcb.control.interrupt_control.set_tpr(2);
        (vmcb.save.rip, vmcb.save.dr6) = (0x1004, vmcb.save.dr6 | 1 << 14);
    });
    assert_eq!((exit, bench.page.load(0x80)), (None, 0x20));
    let exit = bench.enter(VINTR, |vmcb| {
        assert!(vmcb.control.interrupt_control.irq());
        assert_eq!((vmcb.save.rflags & rflags::TF, vmcb.save.dr6), (0, 0xffff_0ff0));
    });
    assert_eq!(exit, Some(Exit::InterruptWindow));
    assert_eq!(bench.control().intercept_cr_writes, 0);
    let mut rich = rich_bench();
    rich.vcpu.request_interrupt_window(Some(0x61));
    assert_eq!(rich.control().intercept_cr_writes, 0);
}

#[test]
fn nmis_are_blocked_until_iret_has_been_stepped_over() {
    let mut bench = bench().long_mode();
    bench.vcpu.inject(Event::Nmi);
    assert_eq!(bench.control().event_injection.into_bits(), 0x8000_0202);
    bench.enter(HLT, |vmcb| assert!(vmcb.control.intercept_3.iret()));
    assert_eq!(bench.vcpu.nmi_window(), Window::Closed);
    bench.vcpu.request_nmi_window(true);
    assert_eq!(bench.enter(IRET, |vmcb| assert_eq!(vmcb.save.rflags & rflags::TF, 0)), None);
    // The IRET, with TF borrowed; it pops flags without TF and the #DB behind it exits.
    let exit = bench.enter(DEBUG, |vmcb| {
        assert_ne!(vmcb.save.rflags & rflags::TF, 0);
        assert!(!vmcb.control.intercept_3.iret());
        (vmcb.save.rip, vmcb.save.rflags, vmcb.save.dr6) = (0x2000, 0x202, vmcb.save.dr6 | 1 << 14);
    });
    assert_eq!(exit, None, "the guest does not see the step");
    assert_eq!(bench.vcpu.before_entry(), Err(Ok(Exit::NmiWindow)));
    let state = bench.vcpu.state();
    assert_eq!((state.rflags, state.dr6), (0x202, 0xffff_0ff0));
    assert_eq!(bench.vcpu.nmi_window(), Window::Open);
}

#[test]
fn nmi_blocking_ends_without_a_step_when_nobody_waits() {
    let mut bench = bench().long_mode();
    bench.vcpu.inject(Event::Nmi);
    assert_eq!(bench.enter(IRET, |_| {}), None);
    bench.enter(NMI, |_| {});
    assert_eq!(bench.vcpu.nmi_window(), Window::Closed, "RIP still stands at IRET");
    bench.enter(HLT, |vmcb| vmcb.save.rip = 0x2000);
    assert_eq!(bench.vcpu.nmi_window(), Window::Open);
}

#[test]
fn an_exit_inside_a_step_gives_the_trap_flag_back() {
    let mut bench = bench().long_mode();
    bench.control().interrupt_state.set_shadow(true);
    bench.vcpu.request_nmi_window(true);
    let exit = bench.enter(CPUID, |vmcb| {
        assert_ne!(vmcb.save.rflags & rflags::TF, 0, "a step out of the shadow");
        vmcb.control.interrupt_state.set_shadow(true);
    });
    assert!(matches!(exit, Some(Exit::Cpuid(_))));
    assert_eq!(bench.vcpu.rflags() & rflags::TF, 0);
}

#[test]
fn a_breakpoint_that_a_step_meets_is_the_guests() {
    let mut bench = bench().long_mode();
    bench.control().interrupt_state.set_shadow(true);
    bench.vcpu.request_nmi_window(true);
    let exit = bench.enter(DEBUG, |vmcb| vmcb.save.dr6 |= 1 << 14 | 1 << 2);
    let Some(Exit::Exception(debug)) = exit else { panic!("{exit:?}") };
    assert_eq!(debug.exception, Exception::debug(1 << 2));
}

#[test]
fn virtual_nmis_need_no_help() {
    let mut capability = Capability::detect(&matisse, || 0).unwrap();
    capability.features.insert(Features::VIRTUAL_NMI);
    let mut bench = bench_on(capability).long_mode();
    assert!(bench.control().interrupt_control.nmi_enable());
    bench.vcpu.inject(Event::Nmi);
    assert!(bench.control().interrupt_control.nmi_pending() && !bench.control().event_injection.valid());
    assert_eq!(bench.vcpu.nmi_window(), Window::Closed);
    bench.enter(HLT, |vmcb| vmcb.control.interrupt_control.set_nmi_pending(false));
    assert_eq!(bench.vcpu.nmi_window(), Window::Open);
}

#[test]
fn paging_changes_drop_translations() {
    let mut plain = bench().long_mode();
    plain.enter(HLT, |vmcb| assert_eq!(vmcb.control.tlb_control, TlbControl::FLUSH_ALL, "the first on this CPU"));
    let before = plain.control().asid;
    assert_eq!(plain.control().tlb_control, TlbControl::NOTHING);
    plain.vcpu.set_cr3(0x5000);
    plain.enter(HLT, |vmcb| assert_eq!(vmcb.control.tlb_control, TlbControl::NOTHING));
    assert_ne!(plain.control().asid, before, "a fresh ASID instead of a flush");
    let mut rich = rich_bench().long_mode();
    rich.enter(HLT, |_| {});
    rich.vcpu.set_cr4(cr4::PAE | cr4::PGE);
    rich.enter(HLT, |vmcb| assert_eq!(vmcb.control.tlb_control, TlbControl::FLUSH_ASID));
    rich.enter(HLT, |vmcb| assert_eq!(vmcb.control.tlb_control, TlbControl::NOTHING));
}

#[test]
fn unmapped_memory_is_flushed_before_the_next_entry() {
    let mut bench = rich_bench().long_mode();
    bench.tables.map(Gpa(0), Hpa(0), 0x20_0000, Permissions::all(), MemoryType::WriteBack).unwrap();
    bench.enter(HLT, |_| {});
    bench.enter(HLT, |vmcb| assert_eq!(vmcb.control.tlb_control, TlbControl::NOTHING));
    bench.tables.unmap(Gpa(0), 0x1000).unwrap();
    bench.enter(HLT, |vmcb| assert_eq!(vmcb.control.tlb_control, TlbControl::FLUSH_ASID));
}

#[test]
fn long_mode_activity_follows_paging() {
    let mut bench = bench();
    bench.vcpu.set_efer(efer::LME | efer::NXE);
    assert_eq!(bench.vcpu.efer(), efer::LME | efer::NXE);
    bench.vcpu.set_cr0(cr0::PE | cr0::PG);
    assert_ne!(bench.vcpu.efer() & efer::LMA, 0);
    bench.vcpu.set_cr0(cr0::PE);
    assert_eq!(bench.vcpu.efer() & efer::LMA, 0);
}

#[test]
fn a_bad_state_is_refused_by_name_and_stays() {
    let mut bench = bench().long_mode();
    bench.vcpu.set_cr4(cr4::PGE);
    for _ in 0..2 {
        let Err(Err(failure)) = bench.vcpu.before_entry() else { panic!("a state that VMRUN refuses") };
        assert_eq!(failure.violated, Some("EFER.LME and CR0.PG are set with CR4.PAE clear"));
        assert_eq!((failure.raw.code, bench.vcpu.cr4()), (0xffff_ffff, cr4::PGE));
    }
    bench.vcpu.set_cr4(cr4::PAE);
    assert_eq!(bench.vcpu.before_entry(), Ok(0));
}

#[test]
fn what_the_backend_builds_passes_the_checks_of_vmrun() {
    let limits = Limits { physical_bits: 52, asids: 16 };
    assert_eq!(checks::violated(&bench().vcpu.vmcb, limits), None);
    assert_eq!(checks::violated(&bench().long_mode().vcpu.vmcb, limits), None);
}

/// Each group of VMCB fields as bytes, by clean bit: APM 2 15.15.3.
fn groups(vmcb: &Vmcb) -> [(CleanBits, Vec<u64>); 10] {
    let (c, s) = (&vmcb.control, &vmcb.save);
    let segment = |s: &VmcbSegment| [u64::from(s.selector) << 16 | u64::from(s.attributes), s.limit.into(), s.base];
    let segments = [&s.es, &s.cs, &s.ss, &s.ds].into_iter().flat_map(segment).chain([s.cpl.into()]).collect();
    let tables = [&s.gdtr, &s.idtr].into_iter().flat_map(|t| [t.base, t.limit.into()]).collect();
    let intercepts = [
        c.intercept_exceptions.into(),
        c.intercept_cr_writes.into(),
        c.intercept_3.into_bits().into(),
        c.intercept_4.into_bits().into(),
        c.tsc_offset,
    ];
    [
        (CleanBits::INTERCEPTS, intercepts.to_vec()),
        (CleanBits::PERMISSION_MAPS, [c.iopm_base, c.msrpm_base].to_vec()),
        (CleanBits::ASID, [c.asid.into()].to_vec()),
        (CleanBits::INTERRUPT, [c.interrupt_control.into_bits()].to_vec()),
        (CleanBits::NESTED_PAGING, [c.nested_cr3, s.guest_pat].to_vec()),
        (CleanBits::CONTROL_REGISTERS, [s.cr0, s.cr3, s.cr4, s.efer].to_vec()),
        (CleanBits::DEBUG_REGISTERS, [s.dr6, s.dr7].to_vec()),
        (CleanBits::TABLES, tables),
        (CleanBits::SEGMENTS, segments),
        (CleanBits::CR2, [s.cr2].to_vec()),
    ]
}

#[derive(Clone, Debug)]
enum Change {
    Cr0(u64),
    Cr3(u64),
    Cr4(u64),
    Efer(u64),
    Msr(u8, u64),
    Tsc(u64),
    Raise(u8, u64),
    Interrupt(u8),
    Window(Option<u8>),
    NmiWindow(bool),
    Nmi,
    State(u64),
    Tpr(u32),
    Exit(u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        any::<bool>().prop_map(|wp| Change::Cr0(cr0::PE | cr0::PG | cr0::ET | if wp { cr0::WP } else { 0 })),
        any::<u32>().prop_map(|root| Change::Cr3(root.into())),
        any::<bool>().prop_map(|pge| Change::Cr4(cr4::PAE | if pge { cr4::PGE } else { 0 })),
        any::<bool>().prop_map(|nx| Change::Efer(efer::LME | efer::LMA | if nx { efer::NXE } else { 0 })),
        (0u8..11, any::<bool>()).prop_map(|(msr, odd)| Change::Msr(msr, if odd { 0x0706 } else { 0x0607 })),
        any::<u64>().prop_map(Change::Tsc),
        (0u8..32, any::<u64>()).prop_map(|(vector, payload)| Change::Raise(vector, payload)),
        any::<u8>().prop_map(Change::Interrupt),
        any::<Option<u8>>().prop_map(Change::Window),
        any::<bool>().prop_map(Change::NmiWindow),
        Just(Change::Nmi),
        any::<u64>().prop_map(Change::State),
        any::<u32>().prop_map(Change::Tpr),
        (0u8..6).prop_map(Change::Exit),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A processor that really keeps what is called clean: it must never run with anything else than the VMCB says.
    #[test]
    fn nothing_that_changed_is_called_clean(flush_by_asid: bool, changes in proptest::collection::vec(change(), 1..60)) {
        let mut capability = Capability::detect(&matisse, || 0).unwrap();
        capability.features.set(Features::FLUSH_BY_ASID, flush_by_asid);
        let mut bench = bench_on(capability).long_mode();
        let mut cached = groups(&bench.vcpu.vmcb);
        for change in changes {
            let vcpu = &mut bench.vcpu;
            match change {
                Change::Cr0(value) => vcpu.set_cr0(value),
                Change::Cr3(value) => vcpu.set_cr3(value),
                Change::Cr4(value) => vcpu.set_cr4(value),
                Change::Efer(value) => vcpu.set_efer(value),
                Change::Msr(number, value) => vcpu.set_system_msr(SystemMsr::ALL[usize::from(number)], value),
                Change::Tsc(value) => vcpu.set_tsc_offset(value),
                Change::Raise(vector, payload) => {
                    if let Some(exception) = Exception::from_vector(vector, None, payload) {
                        vcpu.raise(exception);
                    }
                }
                Change::Interrupt(vector) => vcpu.inject(Event::Interrupt(vector)),
                Change::Window(vector) => vcpu.request_interrupt_window(vector),
                Change::NmiWindow(wanted) => vcpu.request_nmi_window(wanted),
                Change::Nmi => vcpu.inject(Event::Nmi),
                Change::State(rip) => {
                    let mut state = vcpu.state();
                    (state.rip, state.cr2, state.dr6, state.gdtr.base) = (rip, rip, rip & 0xffff, rip);
                    vcpu.set_state(&state);
                }
                Change::Tpr(value) => bench.page.store(0x80, value & 0xff),
                Change::Exit(which) => {
                    let Ok(tpr) = bench.vcpu.before_entry() else { continue };
                    let clean = bench.vcpu.vmcb.control.clean;
                    for ((bit, kept), (_, now)) in cached.iter_mut().zip(groups(&bench.vcpu.vmcb)) {
                        if !clean.contains(*bit) {
                            *kept = now;
                        } else {
                            prop_assert_eq!(&*kept, &now, "{:?} changed behind its clean bit", bit);
                        }
                    }
                    // The guest runs and changes its own state, which the processor knows.
                    let vmcb = &mut *bench.vcpu.vmcb;
                    vmcb.save.rip = vmcb.save.rip.wrapping_add(1);
                    vmcb.save.cr3 ^= 0x1000;
                    vmcb.save.dr6 ^= 1;
                    cached = groups(vmcb);
                    let code = ExitCode([CPUID, IRET, VINTR, DEBUG, HLT, CR8_WRITE][usize::from(which)]);
                    if !bench.vcpu.after_exit(code, tpr) {
                        let _ = bench.vcpu.handle(code);
                    }
                }
            }
        }
    }
}
