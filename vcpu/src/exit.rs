//! Exits as owned values, and the answers that only they can make.
//!
//! A request such as [`PortRead`] is taken apart by the machine and consumed by one of its methods, each of which makes a
//! [`Resume`]. Only a backend reads a [`Resume`], writes the registers that it names and moves RIP.

use crate::Exception;
use core::fmt;
use memory::{Gpa, Width};

/// The length of the instruction that caused an exit: 1 to 15 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length(u8);

impl Length {
    /// A length of 1 to 15 bytes; `None` for any other number, which no instruction has.
    #[inline]
    pub const fn new(bytes: u8) -> Option<Length> {
        if bytes.wrapping_sub(1) < 15 { Some(Length(bytes)) } else { None }
    }

    /// From one instruction pointer to the next, if that is the length of an instruction. Only the low halves count: the
    /// instruction pointer of 32-bit code wraps at 4 GiB.
    #[inline]
    pub const fn between(rip: u64, next: u64) -> Option<Length> {
        let bytes = (next as u32).wrapping_sub(rip as u32);
        if bytes.wrapping_sub(1) < 15 { Some(Length(bytes as u8)) } else { None }
    }

    /// How many bytes.
    #[inline]
    pub const fn bytes(self) -> u8 {
        self.0
    }
}

/// What the backend does before it enters the guest again. Made by requests, and by [`Resume::enter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume(Answer);

/// The content of a [`Resume`], for backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// Enter where the guest stands; an instruction that exited runs again.
    Enter,
    /// The instruction is complete: move RIP past it, clear the interrupt shadow, honour TF.
    Advance(Length),
    /// As [`Answer::Advance`], after writing the low `width` bytes of RAX (a doubleword clears the upper half).
    PortValue(Length, Width, u32),
    /// As [`Answer::Advance`], after writing EAX, EBX, ECX and EDX, upper halves cleared.
    Cpuid(Length, CpuidAnswer),
    /// As [`Answer::Advance`], after writing EDX:EAX, upper halves cleared.
    MsrValue(Length, u64),
    /// As [`Answer::Advance`], but RIP becomes this: a call or jump was executed in software.
    Jump(u64),
    /// Raise the exception; RIP stays at the instruction.
    Inject(Exception),
}

impl Resume {
    /// Enter where the guest stands: the first entry, and after exits that interrupted no instruction.
    #[inline]
    pub const fn enter() -> Resume {
        Resume(Answer::Enter)
    }

    /// What to do, for backends.
    #[inline]
    pub const fn answer(&self) -> &Answer {
        &self.0
    }
}

/// Gives a request the two endings that every interrupted instruction can have.
macro_rules! refusable {
    ($($request:ty),*) => {$(
        impl $request {
            /// The instruction raises `exception` instead of completing.
            #[inline]
            pub const fn inject(self, exception: Exception) -> Resume {
                Resume(Answer::Inject(exception))
            }

            /// The instruction is executed again: what made it exit has been dealt with.
            #[inline]
            pub const fn retry(self) -> Resume {
                Resume(Answer::Enter)
            }
        }
    )*};
}

refusable!(
    PortRead,
    PortWrite,
    PortString,
    MemoryAccess,
    Cpuid,
    MsrRead,
    MsrWrite,
    Xsetbv,
    ControlWrite,
    Hypercall,
    Instruction,
    NestedInstruction,
    ExceptionExit
);

/// Why the guest stopped running.
///
/// With a tag of its own, numbered as [`ExitKind`] is: what most exits carry is then read from where the backend wrote it.
#[derive(Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// IN.
    PortRead(PortRead),
    /// OUT.
    PortWrite(PortWrite),
    /// INS or OUTS, with or without REP.
    PortString(PortString),
    /// A guest-physical address that the second level does not map, or not for this access.
    MemoryAccess(MemoryAccess),
    /// CPUID.
    Cpuid(Cpuid),
    /// RDMSR of an MSR that exits.
    MsrRead(MsrRead),
    /// WRMSR of an MSR that exits.
    MsrWrite(MsrWrite),
    /// XSETBV.
    Xsetbv(Xsetbv),
    /// A write to a control register that the machine has to check.
    ControlWrite(ControlWrite),
    /// HLT.
    Hlt(Instruction),
    /// PAUSE in a spin loop.
    Pause(Instruction),
    /// INVD.
    Invd(Instruction),
    /// WBINVD or WBNOINVD.
    Wbinvd(Instruction),
    /// RDPMC.
    Rdpmc(Instruction),
    /// RDTSCP that exits, where the hardware offers no other way.
    Rdtscp(Instruction),
    /// MONITOR or MONITORX.
    Monitor(Instruction),
    /// MWAIT or MWAITX.
    Mwait(Instruction),
    /// INVPCID that exits.
    Invpcid(Instruction),
    /// RSM outside system management mode.
    Rsm(Instruction),
    /// VMCALL or VMMCALL, whichever the vendor has.
    Hypercall(Hypercall),
    /// Any other instruction of VMX, SVM or SMX.
    NestedInstruction(NestedInstruction),
    /// An intercepted exception. It has not been delivered.
    Exception(ExceptionExit),
    /// A task switch through a task gate or TSS.
    TaskSwitch(RawExit),
    /// The guest can take an interrupt now, as [`crate::Vcpu::request_interrupt_window`] asked.
    InterruptWindow,
    /// The guest can take an NMI now.
    NmiWindow,
    /// A physical interrupt arrived; the host has handled it.
    HostInterrupt,
    /// A physical NMI arrived; the host has handled it.
    HostNmi,
    /// The bound that [`crate::Vcpu::set_run_limit`] set has passed.
    RunLimit,
    /// APIC-register virtualization: the guest wrote a register of the APIC page; the instruction is complete.
    ApicWrite(ApicWrite),
    /// Virtual-interrupt delivery: the guest ended a vector that is in the EOI-exit bitmap; the instruction is complete.
    EoiInduced(EoiInduced),
    /// Triple fault or, on AMD, another shutdown.
    Shutdown,
    /// A physical INIT, SMI or machine check was signalled.
    HostSignal(RawExit),
    /// The processor has a reason that this backend does not know or did not ask for.
    Unsupported(RawExit),
}

/// A processor's exit code with its two information words, uninterpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RawExit {
    /// VMX: basic exit reason; SVM: EXITCODE.
    pub code: u64,
    /// VMX: exit qualification; SVM: EXITINFO1.
    pub info1: u64,
    /// VMX: guest-physical address; SVM: EXITINFO2.
    pub info2: u64,
}

/// IN: a read of `width` bytes from `port` into AL, AX or EAX.
#[derive(Debug, PartialEq, Eq)]
pub struct PortRead {
    /// The I/O port.
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub width: Width,
    length: Length,
}

impl PortRead {
    /// As a backend decoded it.
    pub const fn new(port: u16, width: Width, length: Length) -> Self {
        Self { port, width, length }
    }

    /// The port answered `value`, of which the low `width` bytes count.
    #[inline]
    pub const fn complete(self, value: u32) -> Resume {
        Resume(Answer::PortValue(self.length, self.width, value))
    }
}

/// OUT: a write of `value` to `port`.
#[derive(Debug, PartialEq, Eq)]
pub struct PortWrite {
    /// The I/O port.
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub width: Width,
    /// The low `width` bytes of EAX; the rest is zero.
    pub value: u32,
    length: Length,
}

impl PortWrite {
    /// As a backend decoded it.
    pub const fn new(port: u16, width: Width, value: u32, length: Length) -> Self {
        Self { port, width, value: value & width.mask() as u32, length }
    }

    /// The write has been done.
    #[inline]
    pub const fn complete(self) -> Resume {
        Resume(Answer::Advance(self.length))
    }
}

/// INS or OUTS. The machine decodes and executes the instruction itself; these are what the hardware says about it.
#[derive(Debug, PartialEq, Eq)]
pub struct PortString {
    /// The I/O port.
    pub port: u16,
    /// 1, 2 or 4 bytes an element.
    pub width: Width,
    /// Whether guest memory is read (OUTS) or written (INS).
    pub access: AccessKind,
}

impl PortString {
    /// All elements have been moved and the registers updated.
    #[inline]
    pub const fn complete(self, length: Length) -> Resume {
        Resume(Answer::Advance(length))
    }

    /// Some elements have been moved and the registers updated; the instruction goes on at `target`, where it is.
    #[inline]
    pub const fn jump(self, target: u64) -> Resume {
        Resume(Answer::Jump(target))
    }
}

/// What an access does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// Data read.
    Read,
    /// Data write, or read and write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// An EPT violation, EPT misconfiguration or nested page fault.
#[derive(Debug, PartialEq, Eq)]
pub struct MemoryAccess {
    /// Where, in guest-physical memory.
    pub gpa: Gpa,
    /// What the guest tried there.
    pub kind: AccessKind,
    /// True when the processor was walking the guest's own page tables.
    pub in_page_walk: bool,
    /// True when the processor was delivering an event: its frame, the IDT or a descriptor table lies there, and no instruction at
    /// RIP made the access. The backend has queued the event again.
    pub during_event_delivery: bool,
    /// Instruction bytes that the hardware delivered (SVM decode assists), and how many of them count; 0 for none.
    pub bytes: ([u8; 15], u8),
}

impl MemoryAccess {
    /// The instruction has been executed in software, registers and memory included.
    #[inline]
    pub const fn complete(self, length: Length) -> Resume {
        Resume(Answer::Advance(length))
    }

    /// The instruction has been executed in software and goes on at `target`.
    #[inline]
    pub const fn jump(self, target: u64) -> Resume {
        Resume(Answer::Jump(target))
    }
}

/// CPUID with its inputs.
#[derive(Debug, PartialEq, Eq)]
pub struct Cpuid {
    /// EAX.
    pub leaf: u32,
    /// ECX.
    pub subleaf: u32,
    /// The instruction's length where the hardware says it.
    pub length: Option<Length>,
}

/// What CPUID leaves in EAX, EBX, ECX and EDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct CpuidAnswer {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

impl Cpuid {
    /// The instruction, `length` bytes long, returned `answer`.
    #[inline]
    pub const fn complete(self, length: Length, answer: CpuidAnswer) -> Resume {
        Resume(Answer::Cpuid(length, answer))
    }
}

/// RDMSR.
#[derive(Debug, PartialEq, Eq)]
pub struct MsrRead {
    /// ECX.
    pub msr: u32,
    /// The instruction's length where the hardware says it.
    pub length: Option<Length>,
}

impl MsrRead {
    /// The MSR holds `value`.
    #[inline]
    pub const fn complete(self, length: Length, value: u64) -> Resume {
        Resume(Answer::MsrValue(length, value))
    }
}

/// WRMSR.
#[derive(Debug, PartialEq, Eq)]
pub struct MsrWrite {
    /// ECX.
    pub msr: u32,
    /// EDX:EAX.
    pub value: u64,
    /// The instruction's length where the hardware says it.
    pub length: Option<Length>,
}

/// XSETBV.
#[derive(Debug, PartialEq, Eq)]
pub struct Xsetbv {
    /// ECX: the extended control register's number.
    pub register: u32,
    /// EDX:EAX.
    pub value: u64,
    /// The instruction's length where the hardware says it.
    pub length: Option<Length>,
}

/// Which control register a [`ControlWrite`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlRegister {
    /// CR0, by MOV or LMSW; CLTS is a write too.
    Cr0,
    /// CR3.
    Cr3,
    /// CR4.
    Cr4,
    /// CR8.
    Cr8,
}

/// A write to a control register. The value is the whole register that the guest asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct ControlWrite {
    /// Which one.
    pub register: ControlRegister,
    /// The new value as the guest wants to see it.
    pub value: u64,
    /// The instruction's length where the hardware says it.
    pub length: Option<Length>,
}

/// VMCALL or VMMCALL. Its number and arguments are in registers, by the convention of the interface.
#[derive(Debug, PartialEq, Eq)]
pub struct Hypercall {
    /// The instruction's length where the hardware says it.
    pub length: Option<Length>,
}

/// An instruction that exits and has no operands of interest beyond registers.
#[derive(Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The instruction's length where the hardware says it.
    pub length: Option<Length>,
}

/// Gives a request a plain completion.
macro_rules! completable {
    ($($request:ty),*) => {$(
        impl $request {
            /// The instruction, `length` bytes long, is complete.
            #[inline]
            pub const fn complete(self, length: Length) -> Resume {
                Resume(Answer::Advance(length))
            }
        }
    )*};
}

completable!(MsrWrite, Xsetbv, ControlWrite, Hypercall, Instruction);

/// A request whose answer needs the instruction's length, which some hardware does not give.
pub trait NeedsLength {
    /// The length as the hardware gave it.
    fn length(&self) -> Option<Length>;
    /// The instruction raises `exception` instead of completing.
    fn refuse(self, exception: Exception) -> Resume;
}

macro_rules! needs_length {
    ($($request:ty),*) => {$(
        impl NeedsLength for $request {
            #[inline]
            fn length(&self) -> Option<Length> {
                self.length
            }
            #[inline]
            fn refuse(self, exception: Exception) -> Resume {
                self.inject(exception)
            }
        }
    )*};
}

needs_length!(Cpuid, MsrRead, MsrWrite, Xsetbv, ControlWrite, Hypercall, Instruction);

/// An instruction of VMX, SVM or SMX other than the hypercall; the guest has none of these.
#[derive(Debug, PartialEq, Eq)]
pub struct NestedInstruction {
    /// The exit code, for the report.
    pub code: u64,
}

/// An exception that the backend intercepts.
#[derive(Debug, PartialEq, Eq)]
pub struct ExceptionExit {
    /// What happened, complete with error code and payload: `inject` it to let the guest have it.
    pub exception: Exception,
}

/// A write to a virtualized APIC register, already in the page.
#[derive(Debug, PartialEq, Eq)]
pub struct ApicWrite {
    /// The register's offset in the APIC page.
    pub offset: u16,
}

/// An EOI of a vector whose end the IOAPIC has to know.
#[derive(Debug, PartialEq, Eq)]
pub struct EoiInduced {
    /// The vector that ended.
    pub vector: u8,
}

/// The hardware refused to enter the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryFailure {
    /// VMX: VM-instruction error or exit reason with bit 31; SVM: VMEXIT_INVALID.
    pub raw: RawExit,
    /// The check that the state violates, in words, where the backend found it.
    pub violated: Option<&'static str>,
}

impl fmt::Display for EntryFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VM entry refused (code {:#x}, {:#x}): ", self.raw.code, self.raw.info1)?;
        f.write_str(self.violated.unwrap_or("no known check is violated"))
    }
}

macro_rules! exit_kinds {
    ($($kind:ident = $name:literal),* $(,)?) => {
        /// The kind of an exit, for statistics and the flight recorder.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum ExitKind { $($kind),* }

        impl ExitKind {
            /// All kinds, in the order of their numbers.
            pub const ALL: &[ExitKind] = &[$(ExitKind::$kind),*];

            /// The name in statistics: lower case, words joined by underscores.
            pub const fn name(self) -> &'static str {
                match self { $(ExitKind::$kind => $name),* }
            }
        }
    };
}

exit_kinds! {
    PortRead = "port_read",
    PortWrite = "port_write",
    PortString = "port_string",
    MemoryAccess = "memory_access",
    Cpuid = "cpuid",
    MsrRead = "msr_read",
    MsrWrite = "msr_write",
    Xsetbv = "xsetbv",
    ControlWrite = "control_write",
    Hlt = "hlt",
    Pause = "pause",
    Invd = "invd",
    Wbinvd = "wbinvd",
    Rdpmc = "rdpmc",
    Rdtscp = "rdtscp",
    Monitor = "monitor",
    Mwait = "mwait",
    Invpcid = "invpcid",
    Rsm = "rsm",
    Hypercall = "hypercall",
    NestedInstruction = "nested_instruction",
    Exception = "exception",
    TaskSwitch = "task_switch",
    InterruptWindow = "interrupt_window",
    NmiWindow = "nmi_window",
    HostInterrupt = "host_interrupt",
    HostNmi = "host_nmi",
    RunLimit = "run_limit",
    ApicWrite = "apic_write",
    EoiInduced = "eoi_induced",
    Shutdown = "shutdown",
    HostSignal = "host_signal",
    Unsupported = "unsupported",
}

impl Exit {
    /// The kind alone.
    #[inline]
    pub const fn kind(&self) -> ExitKind {
        match self {
            Exit::PortRead(_) => ExitKind::PortRead,
            Exit::PortWrite(_) => ExitKind::PortWrite,
            Exit::PortString(_) => ExitKind::PortString,
            Exit::MemoryAccess(_) => ExitKind::MemoryAccess,
            Exit::Cpuid(_) => ExitKind::Cpuid,
            Exit::MsrRead(_) => ExitKind::MsrRead,
            Exit::MsrWrite(_) => ExitKind::MsrWrite,
            Exit::Xsetbv(_) => ExitKind::Xsetbv,
            Exit::ControlWrite(_) => ExitKind::ControlWrite,
            Exit::Hlt(_) => ExitKind::Hlt,
            Exit::Pause(_) => ExitKind::Pause,
            Exit::Invd(_) => ExitKind::Invd,
            Exit::Wbinvd(_) => ExitKind::Wbinvd,
            Exit::Rdpmc(_) => ExitKind::Rdpmc,
            Exit::Rdtscp(_) => ExitKind::Rdtscp,
            Exit::Monitor(_) => ExitKind::Monitor,
            Exit::Mwait(_) => ExitKind::Mwait,
            Exit::Invpcid(_) => ExitKind::Invpcid,
            Exit::Rsm(_) => ExitKind::Rsm,
            Exit::Hypercall(_) => ExitKind::Hypercall,
            Exit::NestedInstruction(_) => ExitKind::NestedInstruction,
            Exit::Exception(_) => ExitKind::Exception,
            Exit::TaskSwitch(_) => ExitKind::TaskSwitch,
            Exit::InterruptWindow => ExitKind::InterruptWindow,
            Exit::NmiWindow => ExitKind::NmiWindow,
            Exit::HostInterrupt => ExitKind::HostInterrupt,
            Exit::HostNmi => ExitKind::HostNmi,
            Exit::RunLimit => ExitKind::RunLimit,
            Exit::ApicWrite(_) => ExitKind::ApicWrite,
            Exit::EoiInduced(_) => ExitKind::EoiInduced,
            Exit::Shutdown => ExitKind::Shutdown,
            Exit::HostSignal(_) => ExitKind::HostSignal,
            Exit::Unsupported(_) => ExitKind::Unsupported,
        }
    }

    /// Address, port or code, and value: what the flight recorder and the parity test keep beside the kind.
    pub fn details(&self) -> (u64, u64) {
        match self {
            Exit::PortRead(request) => (request.port.into(), request.width.bytes() as u64),
            Exit::PortWrite(request) => (request.port.into(), request.value.into()),
            Exit::PortString(request) => (request.port.into(), request.width.bytes() as u64),
            Exit::MemoryAccess(request) => (request.gpa.0, request.kind as u64),
            Exit::Cpuid(request) => (request.leaf.into(), request.subleaf.into()),
            Exit::MsrRead(request) => (request.msr.into(), 0),
            Exit::MsrWrite(request) => (request.msr.into(), request.value),
            Exit::Xsetbv(request) => (request.register.into(), request.value),
            Exit::ControlWrite(request) => (request.register as u64, request.value),
            Exit::NestedInstruction(request) => (request.code, 0),
            Exit::Exception(request) => {
                (request.exception.vector().into(), request.exception.error_code().unwrap_or(0).into())
            }
            Exit::ApicWrite(request) => (request.offset.into(), 0),
            Exit::EoiInduced(request) => (request.vector.into(), 0),
            Exit::TaskSwitch(raw) | Exit::HostSignal(raw) | Exit::Unsupported(raw) => (raw.code, raw.info1),
            _ => (0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_makes_its_own_answer() {
        let two = Length::new(2).unwrap();
        let read = PortRead::new(0x3fd, Width::Byte, two);
        assert_eq!(*read.complete(0x60).answer(), Answer::PortValue(two, Width::Byte, 0x60));
        let write = PortWrite::new(0x80, Width::Byte, 0xffff_ff12, two);
        assert_eq!(write.value, 0x12);
        assert_eq!(*write.complete().answer(), Answer::Advance(two));
        let refused = MsrRead { msr: 0x10, length: None }.inject(Exception::general_protection(0));
        assert_eq!(*refused.answer(), Answer::Inject(Exception::general_protection(0)));
    }

    #[test]
    fn no_instruction_is_empty_or_longer_than_15_bytes() {
        assert_eq!(Length::new(0), None);
        assert_eq!(Length::new(16), None);
        assert_eq!(Length::new(15).map(Length::bytes), Some(15));
        assert_eq!(Length::new(255), None);
        assert_eq!(Length::between(0x1000, 0x1000), None);
        assert_eq!(Length::between(0xffff_ffff, 1), Length::new(2));
        assert_eq!(Length::between(0x1000, 0x1010), None);
        assert_eq!(Length::between(0x1000, 0xfff), None);
    }

    #[test]
    fn kinds_are_numbered_in_order_and_named_once() {
        for (number, kind) in ExitKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, number);
            assert_eq!(ExitKind::ALL.iter().filter(|other| other.name() == kind.name()).count(), 1);
        }
    }
}
