//! What a processor can say of an exit, and any state in the control structures: the decoders and the entry checks.

#![allow(unsafe_code)] // A control structure out of bytes.

use crate::heap::without_allocating;
use crate::input::Input;
use raw_cpuid::{CpuIdReader, CpuIdResult};
use std::cell::OnceCell;
use std::mem::MaybeUninit;
use svm::checks::Limits;
use svm::vmcb::Vmcb;
use vcpu::{ExitKind, Gpr, Gprs, Segment, SegmentAttributes};
use vmx::capability::Capability;
use vmx::checks::{ControlState, EntryState, GuestState, HostState};
use vmx::controls::{Entry, Exit, Pin, Primary, Secondary};
use vmx::decode::{EntryEvent, Gathered, Interruption, Reason};

fn gprs(script: &mut Input<'_>) -> Gprs {
    let mut gprs = Gprs::default();
    for register in [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::R9] {
        gprs.set(register, script.value());
    }
    gprs
}

fn check(exit: &vcpu::Exit) {
    assert!(ExitKind::ALL.contains(&exit.kind()));
    let _ = exit.details();
}

/// SVM: a VMCB in which the script puts bytes anywhere.
pub fn svm(script: &[u8]) {
    let mut script = Input::new(script);
    let mut block = Box::new(MaybeUninit::<Vmcb>::zeroed());
    let bytes: *mut u8 = block.as_mut_ptr().cast();
    let mut places = script.u8() & 31;
    while places > 0 {
        let at = usize::from(script.u16()) % (size_of::<Vmcb>() - 8);
        let value = script.value().to_le_bytes();
        // SAFETY: eight bytes that lie within the VMCB.
        unsafe { bytes.wrapping_add(at).copy_from(value.as_ptr(), 8) };
        places -= 1;
    }
    // SAFETY: every field of a VMCB is an integer, or a wrapper of one, for which any value will do.
    let vmcb = unsafe { block.assume_init_mut() };
    let kind = script.u8();
    vmcb.control.exit_code = if kind & 1 != 0 { script.value() } else { u64::from(script.u16()) % 0x404 };
    vmcb.control.exit_info_1 = script.value();
    vmcb.control.exit_info_2 = script.value();
    vmcb.control.next_rip = script.value();
    let gprs = gprs(&mut script);
    let limits = Limits { physical_bits: 36 + u32::from(kind >> 4), asids: 16 };
    without_allocating(|| {
        check(&svm::decode::decode(vmcb, &gprs));
        let _ = svm::checks::violated(vmcb, limits);
    });
}

/// The processor that the checks ask: Bochs's Haswell, as it describes itself.
#[derive(Clone)]
struct Haswell;

impl CpuIdReader for Haswell {
    fn cpuid2(&self, eax: u32, ecx: u32) -> CpuIdResult {
        let (eax, ebx, ecx, edx) = match (eax, ecx) {
            (0, _) => (0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
            (1, _) => (0x306c3, 0x0010_0800, 0x7fda_fbff, 0xbfeb_fbff),
            (7, 0) => (0, 0x27ab, 0, 0),
            (0xd, 0) => (7, 0x340, 0x340, 0),
            (0xd, 1) => (1, 0, 0, 0),
            (0x8000_0000, _) => (0x8000_0008, 0, 0, 0),
            (0x8000_0001, _) => (0, 0, 0x21, 0x2c10_0800),
            (0x8000_0008, _) => (0x3027, 0, 0, 0),
            _ => (0, 0, 0, 0),
        };
        CpuIdResult { eax, ebx, ecx, edx }
    }
}

/// Haswell's capability MSRs by number.
fn haswell_msr(msr: u32) -> u64 {
    match msr {
        0x3a => 5,
        0x480 => 0x00da_0400_0000_0012,
        0x48b => 0x0000_7fff_0000_0000,
        0x485 => 0x3004_81e5,
        0x486 => 0x8000_0021,
        0x487 => 0xffff_ffff,
        0x488 => 0x2000,
        0x489 => 0x0017_27ff,
        0x48c => 0x0000_0f01_0633_4141,
        0x48d => 0x0000_007f_0000_0016,
        0x48e => 0xfff9_fffe_0400_6172,
        0x48f => 0x007f_ffff_0003_6dfb,
        0x490 => 0x0000_ffff_0000_11fb,
        _ => 0,
    }
}

/// VMX: exit information of any kind.
pub fn vmx(script: &[u8]) {
    let mut script = Input::new(script);
    let exit = Gathered {
        reason: Reason(if script.flag() { script.u16() } else { u16::from(script.u8()) % 72 }),
        length: script.value() as u32,
        qualification: script.value(),
        address: script.value(),
        interruption: Interruption::from_bits(script.value() as u32),
        error_code: script.u32(),
        rsp: script.value(),
        cr0: script.value(),
        wide: script.flag(),
        delivering: false,
    };
    let gprs = gprs(&mut script);
    let vectoring = Interruption::from_bits(script.u32());
    without_allocating(|| {
        check(&vmx::decode::decode(&exit, &gprs));
        let _ = exit.reason.needs();
        let _ = vmx::decode::undoes_nmi_unblocking(&exit, vectoring);
        if let Some(event) = vmx::decode::event(vectoring, exit.error_code, exit.length) {
            for protected in [false, true] {
                let words = EntryEvent::encode(event, protected);
                assert!(words.interruption.valid() && words.length <= 15 && words.error_code <= 0xffff);
            }
        }
    });
}

fn segment(script: &mut Input<'_>) -> Segment {
    Segment {
        selector: script.u16(),
        attributes: SegmentAttributes::from_bits(script.u32()),
        limit: script.value() as u32,
        base: script.value(),
    }
}

/// VMX: the checks of an entry over any state.
pub fn vmx_checks(script: &[u8]) {
    thread_local! {
        static CAPABILITY: OnceCell<Capability> = const { OnceCell::new() };
    }
    let mut script = Input::new(script);
    let controls = ControlState {
        pin: Pin::from_bits_retain(script.u32() | 0x16),
        primary: Primary::from_bits_retain(script.u32() | 0x0400_6172),
        secondary: Secondary::from_bits_retain(script.u32()),
        exit: Exit::from_bits_retain(script.u32() | 0x3_6dfb),
        entry: Entry::from_bits_retain(script.u32() | 0x11fb),
        cr3_targets: script.u8().into(),
        msr_bitmap: script.value(),
        virtual_apic: script.value(),
        apic_access: script.value(),
        tpr_threshold: script.value() as u32,
        task_priority: script.u8(),
        ept_pointer: script.value(),
        vpid: script.u16(),
        interruption: Interruption::from_bits(script.u32()),
        error_code: script.u32(),
        instruction_length: script.u32(),
    };
    let host = HostState {
        cr0: script.value() | 0x8000_0021,
        cr3: script.value(),
        cr4: script.value() | 0x2020,
        efer: script.value(),
        pat: script.u64(),
        cs: script.u16(),
        tr: script.u16(),
        gdtr_base: script.value(),
        rip: script.value(),
        ..HostState::default()
    };
    let guest = GuestState {
        cr0: script.value(),
        cr3: script.value(),
        cr4: script.value(),
        efer: script.value(),
        pat: script.u64(),
        debugctl: script.value(),
        dr7: script.value(),
        rip: script.value(),
        rflags: script.value(),
        segments: std::array::from_fn(|_| segment(&mut script)),
        gdtr_base: script.value(),
        gdtr_limit: script.u32(),
        idtr_base: script.value(),
        idtr_limit: script.u32(),
        sysenter_esp: script.value(),
        sysenter_eip: script.value(),
        activity: script.u8().into(),
        interruptibility: script.u8().into(),
        pending_debug: script.value(),
        link_pointer: script.value(),
        pdptes: std::array::from_fn(|_| script.value()),
    };
    let state = EntryState { controls, host, guest };
    CAPABILITY.with(|capability| {
        let capability = capability.get_or_init(|| match Capability::detect(&Haswell, haswell_msr) {
            Ok(capability) => capability,
            Err(refusal) => panic!("{refusal}"),
        });
        without_allocating(|| {
            let _ = vmx::checks::violated(&state, capability);
        });
    });
}
