//! From what the processor says of an exit to [`Exit`], and between events and their VMCS words.
//!
//! Manual: Intel SDM 3C and 3D (December 2024, 325462-086), 25.9 "VM-Exit Information Fields", 28.2 "Recording VM-Exit
//! Information and Updating VM-entry Control Fields", 25.8.3 "VM-Entry Controls for Event Injection" and appendix C "VMX
//! Basic Exit Reasons". Key types: [`Reason`], an open newtype; [`Needs`], which fields a reason makes valid; [`Gathered`],
//! those fields as plain data; [`Interruption`] and [`EntryEvent`]. Neighbours: `lib` gathers and calls [`decode`]. Nothing
//! here touches the processor, and no value that a guest chose can make it panic.

use bitfield_struct::bitfield;
use vcpu::memory::{Gpa, Width};
use vcpu::{
    AccessKind, ApicWrite, ControlRegister, ControlWrite, Cpuid, EoiInduced, Event, Exception, ExceptionExit, Exit,
    Gpr, Gprs, Hypercall, Instruction, Length, MemoryAccess, MsrRead, MsrWrite, NestedInstruction, PortRead,
    PortString, PortWrite, RawExit, SoftwareKind, Xsetbv,
};

/// A basic exit reason, SDM 3D appendix C. Numbers that nobody has named stay what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Reason(pub u16);

#[allow(missing_docs)]
impl Reason {
    pub const EXCEPTION_OR_NMI: Reason = Reason(0);
    pub const EXTERNAL_INTERRUPT: Reason = Reason(1);
    pub const TRIPLE_FAULT: Reason = Reason(2);
    pub const INIT: Reason = Reason(3);
    pub const START_UP_IPI: Reason = Reason(4);
    pub const IO_SMI: Reason = Reason(5);
    pub const OTHER_SMI: Reason = Reason(6);
    pub const INTERRUPT_WINDOW: Reason = Reason(7);
    pub const NMI_WINDOW: Reason = Reason(8);
    pub const TASK_SWITCH: Reason = Reason(9);
    pub const CPUID: Reason = Reason(10);
    pub const GETSEC: Reason = Reason(11);
    pub const HLT: Reason = Reason(12);
    pub const INVD: Reason = Reason(13);
    pub const RDPMC: Reason = Reason(15);
    pub const RSM: Reason = Reason(17);
    pub const VMCALL: Reason = Reason(18);
    pub const VMCLEAR: Reason = Reason(19);
    pub const VMXON: Reason = Reason(27);
    pub const CONTROL_REGISTER: Reason = Reason(28);
    pub const IO: Reason = Reason(30);
    pub const RDMSR: Reason = Reason(31);
    pub const WRMSR: Reason = Reason(32);
    pub const INVALID_GUEST_STATE: Reason = Reason(33);
    pub const MSR_LOADING: Reason = Reason(34);
    pub const MWAIT: Reason = Reason(36);
    pub const MONITOR: Reason = Reason(39);
    pub const PAUSE: Reason = Reason(40);
    pub const MACHINE_CHECK: Reason = Reason(41);
    pub const TPR_BELOW_THRESHOLD: Reason = Reason(43);
    pub const APIC_ACCESS: Reason = Reason(44);
    pub const VIRTUALIZED_EOI: Reason = Reason(45);
    pub const EPT_VIOLATION: Reason = Reason(48);
    pub const EPT_MISCONFIGURATION: Reason = Reason(49);
    pub const INVEPT: Reason = Reason(50);
    pub const RDTSCP: Reason = Reason(51);
    pub const PREEMPTION_TIMER: Reason = Reason(52);
    pub const INVVPID: Reason = Reason(53);
    pub const WBINVD: Reason = Reason(54);
    pub const XSETBV: Reason = Reason(55);
    pub const APIC_WRITE: Reason = Reason(56);
    pub const INVPCID: Reason = Reason(58);
    pub const VMFUNC: Reason = Reason(59);
    pub const ENCLS: Reason = Reason(60);
}

bitflags::bitflags! {
    /// What has to be read for an exit to be decoded.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Needs: u8 {
        /// The instruction's length.
        const LENGTH = 1 << 0;
        /// The exit qualification.
        const QUALIFICATION = 1 << 1;
        /// The guest-physical address.
        const ADDRESS = 1 << 2;
        /// The interruption information with its error code.
        const INTERRUPTION = 1 << 3;
        /// The IDT-vectoring information: the exit may have interrupted an event's delivery.
        const VECTORING = 1 << 4;
        /// RSP, CR0 and the code size, for operands.
        const OPERANDS = 1 << 5;
        /// The backend itself has something to do: a host's event to take, a window to close.
        const ATTENTION = 1 << 6;
    }
}

impl Needs {
    /// What only rare exits need.
    pub const RARE: Needs = Needs::INTERRUPTION.union(Needs::OPERANDS).union(Needs::ATTENTION);
    /// Unknown exits need all that a report can show.
    const REPORT: Needs = Needs::LENGTH.union(Needs::QUALIFICATION).union(Needs::ADDRESS);
}

const REASONS: usize = 70;

const fn fill(needs: &mut [Needs; REASONS], reasons: &[Reason], with: Needs) {
    let mut i = 0;
    while i < reasons.len() {
        needs[reasons[i].0 as usize] = with;
        i += 1;
    }
}

/// What each reason needs.
const NEEDS: [Needs; REASONS] = {
    let mut needs = [Needs::REPORT; REASONS];
    let nothing = [Reason::TRIPLE_FAULT, Reason::INIT, Reason::START_UP_IPI, Reason::IO_SMI, Reason::OTHER_SMI];
    let windows = [
        Reason::EXTERNAL_INTERRUPT,
        Reason::INTERRUPT_WINDOW,
        Reason::NMI_WINDOW,
        Reason::TPR_BELOW_THRESHOLD,
        Reason::PREEMPTION_TIMER,
    ];
    let instructions = [
        Reason::CPUID,
        Reason::HLT,
        Reason::INVD,
        Reason::RDPMC,
        Reason::RSM,
        Reason::VMCALL,
        Reason::RDMSR,
        Reason::WRMSR,
        Reason::MWAIT,
        Reason::MONITOR,
        Reason::PAUSE,
        Reason::RDTSCP,
        Reason::WBINVD,
        Reason::XSETBV,
        Reason::INVPCID,
    ];
    // The event whose delivery a task switch is stays for whoever executes the switch: it is not to be queued again.
    let qualified = [Reason::TASK_SWITCH, Reason::VIRTUALIZED_EOI, Reason::APIC_WRITE];
    let (length, qualification) = (Needs::LENGTH, Needs::QUALIFICATION);
    fill(&mut needs, &nothing, Needs::empty());
    fill(&mut needs, &windows, Needs::ATTENTION);
    fill(&mut needs, &instructions, length);
    fill(&mut needs, &qualified, qualification);
    fill(&mut needs, &[Reason::IO], length.union(qualification));
    fill(&mut needs, &[Reason::CONTROL_REGISTER], length.union(qualification).union(Needs::OPERANDS));
    fill(&mut needs, &[Reason::APIC_ACCESS], qualification.union(Needs::VECTORING));
    fill(&mut needs, &[Reason::EPT_VIOLATION], qualification.union(Needs::ADDRESS).union(Needs::VECTORING));
    fill(&mut needs, &[Reason::EPT_MISCONFIGURATION], Needs::ADDRESS.union(Needs::VECTORING));
    let exception = Needs::INTERRUPTION.union(qualification).union(Needs::VECTORING).union(Needs::ATTENTION);
    fill(&mut needs, &[Reason::EXCEPTION_OR_NMI], exception);
    needs
};

impl Reason {
    /// What an exit of this reason needs.
    #[inline]
    pub fn needs(self) -> Needs {
        NEEDS.get(usize::from(self.0)).copied().unwrap_or(Needs::REPORT)
    }
}

/// What the processor says of one exit. Fields that its reason does not [need](Needs) are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Gathered {
    /// The basic exit reason.
    pub reason: Reason,
    /// In bytes.
    pub length: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Guest-physical address.
    pub address: u64,
    /// Interruption information.
    pub interruption: Interruption,
    /// Its error code.
    pub error_code: u32,
    /// RSP, when an operand may be in it.
    pub rsp: u64,
    /// CR0 as the guest sees it, for LMSW.
    pub cr0: u64,
    /// Whether operands are 64 bits wide.
    pub wide: bool,
    /// Whether the exit interrupted the delivery of an event.
    pub delivering: bool,
}

/// The exit reason's flag for an entry that failed after the host's state was given up.
pub const ENTRY_FAILURE: u32 = 1 << 31;

/// Interruption-information words, SDM 3C 25.8.3, 25.9.2 and 25.9.3.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Interruption {
    /// Vector.
    pub vector: u8,
    /// One of the kinds below.
    #[bits(3)]
    pub kind: u8,
    /// An error code belongs to it.
    pub has_error_code: bool,
    /// On exits: IRET had just ended the blocking of NMIs, SDM 3C 28.2.3.
    pub nmi_unblocking: bool,
    #[bits(18)]
    __: u32,
    /// The rest counts.
    pub valid: bool,
}

/// Kinds of events in [`Interruption`].
mod kind {
    pub const EXTERNAL_INTERRUPT: u8 = 0;
    pub const NMI: u8 = 2;
    pub const HARDWARE_EXCEPTION: u8 = 3;
    pub const SOFTWARE_INTERRUPT: u8 = 4;
    pub const PRIVILEGED_SOFTWARE_EXCEPTION: u8 = 5;
    pub const SOFTWARE_EXCEPTION: u8 = 6;
}

/// An event as the VM-entry fields take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryEvent {
    /// VM-entry interruption information.
    pub interruption: Interruption,
    /// VM-entry exception error code; counts when the information says so.
    pub error_code: u32,
    /// VM-entry instruction length; counts for software events.
    pub length: u32,
}

impl EntryEvent {
    /// The words that deliver `event`. In real mode (`protected` false) there are no error codes: SDM 3C 27.2.1.3.
    pub fn encode(event: Event, protected: bool) -> EntryEvent {
        let (vector, kind, error_code, length) = match event {
            Event::Interrupt(vector) => (vector, kind::EXTERNAL_INTERRUPT, None, 0),
            Event::Nmi => (Exception::NMI, kind::NMI, None, 0),
            Event::Exception(exception) => {
                let error_code = exception.error_code().filter(|_| protected);
                (exception.vector(), kind::HARDWARE_EXCEPTION, error_code, 0)
            }
            Event::Software { vector, length, kind } => {
                let kind = match kind {
                    SoftwareKind::Interrupt => kind::SOFTWARE_INTERRUPT,
                    SoftwareKind::Exception => kind::SOFTWARE_EXCEPTION,
                    SoftwareKind::Privileged => kind::PRIVILEGED_SOFTWARE_EXCEPTION,
                };
                (vector, kind, None, length)
            }
        };
        let interruption = Interruption::new()
            .with_vector(vector)
            .with_kind(kind)
            .with_has_error_code(error_code.is_some())
            .with_valid(true);
        // Bits 31:16 of the error code must be zero: SDM 3C 27.2.1.3.
        EntryEvent { interruption, error_code: error_code.unwrap_or(0) & 0xffff, length: length.into() }
    }
}

/// The event that interruption or IDT-vectoring information tells of, to be delivered (again). `length` counts for
/// software events. A page fault has no payload here: CR2 holds its address already.
pub fn event(information: Interruption, error_code: u32, length: u32) -> Option<Event> {
    if !information.valid() {
        return None;
    }
    let vector = information.vector();
    let software = |kind| Some(Event::Software { vector, length: length.min(15) as u8, kind });
    match information.kind() {
        kind::EXTERNAL_INTERRUPT => Some(Event::Interrupt(vector)),
        kind::NMI => Some(Event::Nmi),
        kind::HARDWARE_EXCEPTION => {
            let error_code = information.has_error_code().then_some(error_code);
            Exception::from_vector(vector, error_code, 0).map(Event::Exception)
        }
        kind::SOFTWARE_INTERRUPT => software(SoftwareKind::Interrupt),
        kind::PRIVILEGED_SOFTWARE_EXCEPTION => software(SoftwareKind::Privileged),
        kind::SOFTWARE_EXCEPTION => software(SoftwareKind::Exception),
        _ => None,
    }
}

/// Whether NMIs are to be blocked again, because the exit undid an IRET that had unblocked them: SDM 3C 28.2.3
/// "Information About NMI Unblocking Due to IRET". Undefined, so false, when the exit interrupted an event's delivery or is
/// for a double fault.
pub fn undoes_nmi_unblocking(exit: &Gathered, vectoring: Interruption) -> bool {
    if vectoring.valid() {
        return false;
    }
    match exit.reason {
        Reason::EXCEPTION_OR_NMI => exit.interruption.nmi_unblocking() && exit.interruption.vector() != Exception::DF,
        Reason::EPT_VIOLATION => EptViolation::from_bits(exit.qualification).nmi_unblocking(),
        _ => false,
    }
}

/// Exit qualification of I/O instructions, SDM 3C table 28-5.
#[bitfield(u64)]
struct PortAccess {
    /// Bytes less one.
    #[bits(3)]
    size: u8,
    input: bool,
    string: bool,
    repeated: bool,
    immediate: bool,
    #[bits(9)]
    __: u16,
    port: u16,
    __: u32,
}

/// Exit qualification of control-register accesses, SDM 3C table 28-3.
#[bitfield(u64)]
struct ControlAccess {
    #[bits(4)]
    register: u8,
    #[bits(2)]
    kind: u8,
    from_memory: bool,
    __: bool,
    #[bits(4)]
    gpr: u8,
    #[bits(4)]
    __: u8,
    lmsw_source: u16,
    __: u32,
}

/// Exit qualification of EPT violations, SDM 3C table 28-7.
#[bitfield(u64)]
struct EptViolation {
    read: bool,
    write: bool,
    fetch: bool,
    #[bits(4)]
    __: u8,
    linear_valid: bool,
    /// The access is to the translation of the linear address, not to a paging structure.
    final_address: bool,
    #[bits(3)]
    __: u8,
    nmi_unblocking: bool,
    #[bits(51)]
    __: u64,
}

/// DR6 bits that the exit qualification of a debug exception has in DR6's places, SDM 3C table 28-1: B0 to B3, BD, BS.
const DEBUG_CAUSES: u64 = 0x600f;

/// Where the local APIC's registers lie after reset; guests that move them get no virtualized accesses.
pub const APIC_BASE: u64 = 0xfee0_0000;

fn raw(exit: &Gathered) -> RawExit {
    RawExit { code: exit.reason.0.into(), info1: exit.qualification, info2: exit.address }
}

/// What an exit means.
#[inline(always)]
pub fn decode(exit: &Gathered, gprs: &Gprs) -> Exit {
    let length = Length::new(exit.length.min(16) as u8);
    let low = |register: Gpr| gprs.get(register) as u32;
    match exit.reason {
        Reason::CPUID => Exit::Cpuid(Cpuid { leaf: low(Gpr::Rax), subleaf: low(Gpr::Rcx), length }),
        Reason::IO => port(exit, gprs, length),
        Reason::RDMSR => Exit::MsrRead(MsrRead { msr: low(Gpr::Rcx), length }),
        Reason::WRMSR => Exit::MsrWrite(MsrWrite { msr: low(Gpr::Rcx), value: pair(gprs), length }),
        Reason::EPT_VIOLATION => violation(exit),
        Reason::EXTERNAL_INTERRUPT => Exit::HostInterrupt,
        Reason::PREEMPTION_TIMER => Exit::RunLimit,
        Reason::INTERRUPT_WINDOW | Reason::TPR_BELOW_THRESHOLD => Exit::InterruptWindow,
        Reason::NMI_WINDOW => Exit::NmiWindow,
        Reason::HLT => Exit::Hlt(Instruction { length }),
        Reason::PAUSE => Exit::Pause(Instruction { length }),
        Reason::APIC_WRITE => Exit::ApicWrite(ApicWrite { offset: exit.qualification as u16 & 0xfff }),
        Reason::VIRTUALIZED_EOI => Exit::EoiInduced(EoiInduced { vector: exit.qualification as u8 }),
        Reason::APIC_ACCESS => apic_access(exit),
        Reason::CONTROL_REGISTER => control_register(exit, gprs, length),
        Reason::EXCEPTION_OR_NMI => exception(exit),
        Reason::XSETBV => Exit::Xsetbv(Xsetbv { register: low(Gpr::Rcx), value: pair(gprs), length }),
        Reason::VMCALL => Exit::Hypercall(Hypercall { length }),
        Reason::INVD => Exit::Invd(Instruction { length }),
        Reason::WBINVD => Exit::Wbinvd(Instruction { length }),
        Reason::RDPMC => Exit::Rdpmc(Instruction { length }),
        Reason::RDTSCP => Exit::Rdtscp(Instruction { length }),
        Reason::MONITOR => Exit::Monitor(Instruction { length }),
        Reason::MWAIT => Exit::Mwait(Instruction { length }),
        Reason::INVPCID => Exit::Invpcid(Instruction { length }),
        Reason::RSM => Exit::Rsm(Instruction { length }),
        Reason(code @ (19..=27 | 11 | 50 | 53 | 59 | 60)) => {
            Exit::NestedInstruction(NestedInstruction { code: code.into() })
        }
        Reason::TASK_SWITCH => Exit::TaskSwitch(raw(exit)),
        Reason::TRIPLE_FAULT => Exit::Shutdown,
        Reason::INIT | Reason::START_UP_IPI | Reason::IO_SMI | Reason::OTHER_SMI => Exit::HostSignal(raw(exit)),
        _ => Exit::Unsupported(raw(exit)),
    }
}

/// EDX:EAX.
#[inline]
fn pair(gprs: &Gprs) -> u64 {
    gprs.get(Gpr::Rdx) << 32 | gprs.get(Gpr::Rax) & 0xffff_ffff
}

#[inline]
fn port(exit: &Gathered, gprs: &Gprs, length: Option<Length>) -> Exit {
    let access = PortAccess::from_bits(exit.qualification);
    let (Some(width), Some(length)) = (Width::from_bytes(usize::from(access.size()) + 1), length) else {
        return Exit::Unsupported(raw(exit));
    };
    let port = access.port();
    if access.string() {
        let access = if access.input() { AccessKind::Write } else { AccessKind::Read };
        Exit::PortString(PortString { port, width, access })
    } else if access.input() {
        Exit::PortRead(PortRead::new(port, width, length))
    } else {
        Exit::PortWrite(PortWrite::new(port, width, gprs.get(Gpr::Rax) as u32, length))
    }
}

#[inline]
fn violation(exit: &Gathered) -> Exit {
    let violation = EptViolation::from_bits(exit.qualification);
    let kind = if violation.fetch() {
        AccessKind::Fetch
    } else if violation.write() {
        AccessKind::Write
    } else {
        AccessKind::Read
    };
    Exit::MemoryAccess(MemoryAccess {
        gpa: Gpa(exit.address),
        kind,
        in_page_walk: violation.linear_valid() && !violation.final_address(),
        during_event_delivery: exit.delivering,
        bytes: ([0; 15], 0),
    })
}

/// SDM 3C table 28-6 "Exit Qualification for APIC-Access VM Exits".
fn apic_access(exit: &Gathered) -> Exit {
    let (kind, by_instruction) = match exit.qualification >> 12 & 15 {
        0 => (AccessKind::Read, true),
        1 => (AccessKind::Write, true),
        2 => (AccessKind::Fetch, true),
        // During event delivery, by a linear or a physical address. What it was is not said; frames are written.
        3 | 10 => (AccessKind::Write, false),
        // By a physical address: no instruction that could be emulated.
        _ => return Exit::Unsupported(raw(exit)),
    };
    let gpa = Gpa(APIC_BASE | exit.qualification & 0xfff);
    let during_event_delivery = exit.delivering || !by_instruction;
    Exit::MemoryAccess(MemoryAccess { gpa, kind, in_page_walk: false, during_event_delivery, bytes: ([0; 15], 0) })
}

fn control_register(exit: &Gathered, gprs: &Gprs, length: Option<Length>) -> Exit {
    const MOV_TO: u8 = 0;
    const CLTS: u8 = 2;
    const LMSW: u8 = 3;
    let access = ControlAccess::from_bits(exit.qualification);
    let operand = match Gpr::from_number(access.gpr()) {
        Gpr::Rsp => exit.rsp,
        register => gprs.get(register),
    };
    let operand = if exit.wide { operand } else { operand & 0xffff_ffff };
    let (register, value) = match (access.kind(), access.register()) {
        (MOV_TO, 0) => (ControlRegister::Cr0, operand),
        (MOV_TO, 3) => (ControlRegister::Cr3, operand),
        (MOV_TO, 4) => (ControlRegister::Cr4, operand),
        (MOV_TO, 8) => (ControlRegister::Cr8, operand),
        (CLTS, _) => (ControlRegister::Cr0, exit.cr0 & !vcpu::cr0::TS),
        (LMSW, _) => {
            // LMSW writes PE, MP, EM and TS, and cannot clear PE: SDM 2A "LMSW".
            let source = u64::from(access.lmsw_source()) & 0xf;
            (ControlRegister::Cr0, exit.cr0 & !0xe | source)
        }
        _ => return Exit::Unsupported(raw(exit)),
    };
    Exit::ControlWrite(ControlWrite { register, value, length })
}

fn exception(exit: &Gathered) -> Exit {
    let information = exit.interruption;
    if information.kind() == kind::NMI {
        return Exit::HostNmi;
    }
    let error_code = information.has_error_code().then_some(exit.error_code);
    let payload = match information.vector() {
        Exception::DB => exit.qualification & DEBUG_CAUSES,
        Exception::PF => exit.qualification,
        _ => 0,
    };
    match Exception::from_vector(information.vector(), error_code, payload) {
        Some(exception) if exception.vector() == Exception::MC => Exit::HostSignal(RawExit {
            code: 0,
            info1: u64::from(information.into_bits()),
            info2: exit.error_code.into(),
        }),
        Some(exception) => Exit::Exception(ExceptionExit { exception }),
        None => Exit::Unsupported(raw(exit)),
    }
}

/// What a VM-instruction error number means, SDM 3C 31.4 "VM Instruction Error Numbers"; the ones that VMLAUNCH and VMRESUME
/// can give.
pub const fn instruction_error(number: u32) -> Option<&'static str> {
    Some(match number {
        4 => "VMLAUNCH with a VMCS that is not clear",
        5 => "VMRESUME with a VMCS that is not launched",
        6 => "VMRESUME after VMXOFF and VMXON",
        7 => "an invalid control field",
        8 => "an invalid host-state field",
        26 => "VM entry with events blocked by MOV SS",
        _ => return None,
    })
}

/// What an exit reason with [`ENTRY_FAILURE`] means, SDM 3C 27.8 "VM-Entry Failures During or After Loading Guest State".
pub const fn entry_failure(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::INVALID_GUEST_STATE => "an invalid guest-state field",
        Reason::MSR_LOADING => "an MSR that cannot be loaded",
        Reason::MACHINE_CHECK => "a machine check while the guest was being loaded",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(reason: Reason) -> Gathered {
        Gathered { reason, length: 2, ..Gathered::default() }
    }

    fn registers(values: &[(Gpr, u64)]) -> Gprs {
        let mut gprs = Gprs::default();
        for &(register, value) in values {
            gprs.set(register, value);
        }
        gprs
    }

    fn two() -> Option<Length> {
        Length::new(2)
    }

    #[test]
    fn cpuid_and_msrs_take_the_low_halves() {
        let gprs = registers(&[(Gpr::Rax, 0xffff_0000_0000_0001), (Gpr::Rcx, 0xaaaa_0000_0000_001b), (Gpr::Rdx, 7)]);
        let exit = decode(&gathered(Reason::CPUID), &gprs);
        assert_eq!(exit, Exit::Cpuid(Cpuid { leaf: 1, subleaf: 0x1b, length: two() }));
        let exit = decode(&gathered(Reason::RDMSR), &gprs);
        assert_eq!(exit, Exit::MsrRead(MsrRead { msr: 0x1b, length: two() }));
        let exit = decode(&gathered(Reason::WRMSR), &gprs);
        assert_eq!(exit, Exit::MsrWrite(MsrWrite { msr: 0x1b, value: 0x7_0000_0001, length: two() }));
    }

    #[test]
    fn ports_by_direction_width_and_string() {
        let gprs = registers(&[(Gpr::Rax, 0x1234_5678)]);
        let length = two().unwrap();
        for (qualification, expected) in [
            (0x03f8_0000, Exit::PortWrite(PortWrite::new(0x3f8, Width::Byte, 0x78, length))),
            (0x0cf8_0003, Exit::PortWrite(PortWrite::new(0xcf8, Width::Dword, 0x1234_5678, length))),
            (0x0060_0048, Exit::PortRead(PortRead::new(0x60, Width::Byte, length))),
            (0x0cfc_0009, Exit::PortRead(PortRead::new(0xcfc, Width::Word, length))),
            (0x01f0_0039, Exit::PortString(PortString { port: 0x1f0, width: Width::Word, access: AccessKind::Write })),
            (0x03f8_0010, Exit::PortString(PortString { port: 0x3f8, width: Width::Byte, access: AccessKind::Read })),
        ] {
            let exit = Gathered { qualification, ..gathered(Reason::IO) };
            assert_eq!(decode(&exit, &gprs), expected, "{qualification:#x}");
        }
        let odd = Gathered { qualification: 2, ..gathered(Reason::IO) };
        assert!(matches!(decode(&odd, &gprs), Exit::Unsupported(_)));
    }

    #[test]
    fn ept_violations_say_what_was_tried_and_who_walked() {
        for (qualification, kind, in_page_walk) in [
            (0x181, AccessKind::Read, false),
            (0x182, AccessKind::Write, false),
            (0x183, AccessKind::Write, false),
            (0x184, AccessKind::Fetch, false),
            (0x081, AccessKind::Read, true),
            (0x001, AccessKind::Read, false),
        ] {
            let exit = Gathered { qualification, address: 0xfec0_0010, ..gathered(Reason::EPT_VIOLATION) };
            let expected = MemoryAccess {
                gpa: Gpa(0xfec0_0010),
                kind,
                in_page_walk,
                during_event_delivery: false,
                bytes: ([0; 15], 0),
            };
            assert_eq!(decode(&exit, &Gprs::default()), Exit::MemoryAccess(expected), "{qualification:#x}");
        }
    }

    #[test]
    fn control_writes_carry_the_whole_value() {
        let gprs = registers(&[(Gpr::Rax, 0x1_8000_0011), (Gpr::R9, 0x20)]);
        let write = |qualification, wide| {
            let exit = Gathered { qualification, wide, rsp: 5, cr0: 0x18, ..gathered(Reason::CONTROL_REGISTER) };
            match decode(&exit, &gprs) {
                Exit::ControlWrite(write) => (write.register, write.value),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(write(0x000, true), (ControlRegister::Cr0, 0x1_8000_0011));
        assert_eq!(write(0x000, false), (ControlRegister::Cr0, 0x8000_0011));
        assert_eq!(write(0x904, true), (ControlRegister::Cr4, 0x20));
        assert_eq!(write(0x400, true), (ControlRegister::Cr0, 5), "RSP lies in the VMCS");
        assert_eq!(write(0x0001_0030, true), (ControlRegister::Cr0, 0x11), "LMSW sets PE and clears TS");
        assert_eq!(write(0x020, true), (ControlRegister::Cr0, 0x10), "CLTS");
        let read = Gathered { qualification: 0x13, ..gathered(Reason::CONTROL_REGISTER) };
        assert!(matches!(decode(&read, &gprs), Exit::Unsupported(_)));
    }

    #[test]
    fn exceptions_nmis_and_machine_checks_part() {
        let exit = |information: u32, qualification| {
            let gathered = Gathered {
                interruption: Interruption::from_bits(information),
                qualification,
                error_code: 4,
                ..gathered(Reason::EXCEPTION_OR_NMI)
            };
            decode(&gathered, &Gprs::default())
        };
        assert_eq!(exit(0x8000_0202, 0), Exit::HostNmi);
        let debug = Exit::Exception(ExceptionExit { exception: Exception::debug(0x4001) });
        assert_eq!(exit(0x8000_0301, 0x1_4001), debug);
        let alignment = Exception::from_vector(Exception::AC, Some(4), 0).unwrap();
        assert_eq!(exit(0x8000_0b11, 0), Exit::Exception(ExceptionExit { exception: alignment }));
        assert!(matches!(exit(0x8000_0312, 0), Exit::HostSignal(_)));
    }

    #[test]
    fn events_survive_the_way_through_the_vmcs() {
        for event_in in [
            Event::Interrupt(0x31),
            Event::Nmi,
            Event::Exception(Exception::undefined()),
            Event::Exception(Exception::general_protection(0x18)),
            Event::Software { vector: 0x80, length: 2, kind: SoftwareKind::Interrupt },
            Event::Software { vector: 3, length: 1, kind: SoftwareKind::Exception },
            Event::Software { vector: 1, length: 1, kind: SoftwareKind::Privileged },
        ] {
            let words = EntryEvent::encode(event_in, true);
            assert_eq!(event(words.interruption, words.error_code, words.length), Some(event_in));
        }
        assert_eq!(EntryEvent::encode(Event::Nmi, true).interruption.into_bits(), 0x8000_0202);
        let fault = Event::Exception(Exception::general_protection(0));
        assert_eq!(EntryEvent::encode(fault, true).interruption.into_bits(), 0x8000_0b0d);
        assert_eq!(EntryEvent::encode(fault, false).interruption.into_bits(), 0x8000_030d, "real mode");
        assert_eq!(event(Interruption::from_bits(0x0000_0b0d), 0, 0), None, "not valid");
        assert_eq!(event(Interruption::from_bits(0x8000_0700), 0, 0), None, "other event");
    }

    #[test]
    fn an_iret_that_is_undone_blocks_nmis_again() {
        let nothing = Interruption::new();
        let violation = Gathered { qualification: 1 << 12, ..gathered(Reason::EPT_VIOLATION) };
        assert!(undoes_nmi_unblocking(&violation, nothing));
        assert!(!undoes_nmi_unblocking(&violation, Interruption::from_bits(0x8000_0020)));
        assert!(!undoes_nmi_unblocking(&gathered(Reason::EPT_VIOLATION), nothing));
        let exception = |information| Gathered {
            interruption: Interruption::from_bits(information),
            ..gathered(Reason::EXCEPTION_OR_NMI)
        };
        assert!(undoes_nmi_unblocking(&exception(0x8000_1b11), nothing));
        assert!(!undoes_nmi_unblocking(&exception(0x8000_1b08), nothing));
        assert!(!undoes_nmi_unblocking(&gathered(Reason::IO), nothing));
    }

    #[test]
    fn vmx_and_smx_instructions_are_one_kind() {
        for code in (19..=27).chain([11, 50, 53]) {
            let exit = decode(&gathered(Reason(code)), &Gprs::default());
            assert_eq!(exit, Exit::NestedInstruction(NestedInstruction { code: code.into() }));
        }
        assert_eq!(decode(&gathered(Reason::VMCALL), &Gprs::default()), Exit::Hypercall(Hypercall { length: two() }));
    }

    #[test]
    fn accesses_of_event_delivery_are_told_apart_from_instructions() {
        let delivering = |exit: &Gathered| match decode(exit, &Gprs::default()) {
            Exit::MemoryAccess(access) => access.during_event_delivery,
            other => panic!("unexpected {other:?}"),
        };
        let violation = Gathered { qualification: 0x182, address: 0xfec0_0000, ..gathered(Reason::EPT_VIOLATION) };
        assert!(!delivering(&violation));
        assert!(delivering(&Gathered { delivering: true, ..violation }));
        for (access, expected) in [(0, false), (1, false), (2, false), (3, true), (10, true)] {
            let exit = Gathered { qualification: 0xb0 | access << 12, ..gathered(Reason::APIC_ACCESS) };
            assert_eq!(delivering(&exit), expected, "access type {access}");
        }
    }

    #[test]
    fn apic_accesses_are_memory_accesses() {
        let exit = Gathered { qualification: 0x1_0b0 & 0xfff | 1 << 12, ..gathered(Reason::APIC_ACCESS) };
        let expected = MemoryAccess {
            gpa: Gpa(0xfee0_00b0),
            kind: AccessKind::Write,
            in_page_walk: false,
            during_event_delivery: false,
            bytes: ([0; 15], 0),
        };
        assert_eq!(decode(&exit, &Gprs::default()), Exit::MemoryAccess(expected));
        let exit = Gathered { qualification: 0x300, ..gathered(Reason::APIC_WRITE) };
        assert_eq!(decode(&exit, &Gprs::default()), Exit::ApicWrite(ApicWrite { offset: 0x300 }));
    }

    #[test]
    fn no_exit_panics_and_unknown_ones_keep_their_numbers() {
        let gprs = registers(&[(Gpr::Rax, u64::MAX), (Gpr::Rcx, u64::MAX), (Gpr::Rdx, u64::MAX)]);
        for reason in 0..=u16::MAX {
            let _ = Reason(reason).needs();
            for words in [0, u64::MAX, 0x5555_5555_5555_5555] {
                let exit = Gathered {
                    reason: Reason(reason),
                    length: words as u32,
                    qualification: words,
                    address: words,
                    interruption: Interruption::from_bits(words as u32),
                    error_code: words as u32,
                    rsp: words,
                    cr0: words,
                    wide: words & 1 != 0,
                    delivering: words & 1 != 0,
                };
                let _ = decode(&exit, &gprs);
                let _ = undoes_nmi_unblocking(&exit, Interruption::new());
            }
        }
        let unknown = Gathered { qualification: 5, address: 6, ..gathered(Reason(99)) };
        let expected = RawExit { code: 99, info1: 5, info2: 6 };
        assert_eq!(decode(&unknown, &gprs), Exit::Unsupported(expected));
    }

    #[test]
    fn hot_reasons_need_no_more_than_they_use() {
        assert_eq!(Reason::CPUID.needs(), Needs::LENGTH);
        assert_eq!(Reason::PREEMPTION_TIMER.needs(), Needs::ATTENTION);
        assert_eq!(Reason(99).needs(), Needs::REPORT);
        assert_eq!(Reason::IO.needs(), Needs::LENGTH | Needs::QUALIFICATION);
        assert!(!Reason::EPT_VIOLATION.needs().contains(Needs::LENGTH));
    }
}
