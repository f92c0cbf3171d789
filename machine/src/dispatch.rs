//! Every exit to its handler: one exhaustive match, and the handlers that need no device model of their own.
//!
//! A handler ends in one of: complete, inject, retry, stop. Manuals: SDM 3C chapter 28 "VM Exits"; APM 2 chapter 15
//! "Secure Virtual Machine". Neighbours: [`crate::access`] handles ports and memory, [`crate::registers`] handles MSRs and
//! control registers.

use crate::emulate::Exiting;
use crate::hyperv;
use crate::processor::{Activity, Processor};
use crate::run::Handled;
use crate::stop::Stop;
use memory::GuestMemory;
use vcpu::{
    ApicWrite, Cpuid, EoiInduced, Exception, ExceptionExit, Exit, Gpr, Hypercall, Instruction, Length, RawExit, Resume,
    Vcpu,
};

impl<V: Vcpu, M: GuestMemory> Processor<V, M> {
    /// Handles one exit.
    pub(crate) fn dispatch(&mut self, exit: Exit) -> Handled {
        match exit {
            Exit::PortRead(request) => self.port_read(request),
            Exit::PortWrite(request) => self.port_write(request),
            Exit::PortString(request) => self.port_string(request),
            Exit::MemoryAccess(request) => self.memory_access(request),
            Exit::Cpuid(request) => self.with_length(request, Exiting::Cpuid, Self::cpuid),
            Exit::MsrRead(request) => self.with_length(request, Exiting::Rdmsr, Self::msr_read),
            Exit::MsrWrite(request) => self.with_length(request, Exiting::Wrmsr, Self::msr_write),
            Exit::Xsetbv(request) => self.with_length(request, Exiting::Xsetbv, Self::xsetbv),
            Exit::ControlWrite(request) => self.with_length(request, Exiting::ControlWrite, Self::control_write),
            Exit::Hlt(request) => self.with_length(request, Exiting::Hlt, Self::hlt),
            Exit::Pause(request) => self.with_length(request, Exiting::Pause, Self::pause),
            Exit::Invd(request) => self.with_length(request, Exiting::Invd, Self::cache_flush),
            Exit::Wbinvd(request) => self.with_length(request, Exiting::Wbinvd, Self::cache_flush),
            Exit::Rdpmc(request) => Ok(request.inject(Exception::general_protection(0))),
            Exit::Rdtscp(request) => Ok(request.inject(Exception::undefined())),
            Exit::Monitor(request) => Ok(request.inject(Exception::undefined())),
            Exit::Mwait(request) => Ok(request.inject(Exception::undefined())),
            Exit::Invpcid(request) => Ok(request.inject(Exception::undefined())),
            Exit::Rsm(request) => Ok(request.inject(Exception::undefined())),
            Exit::Hypercall(request) => self.hypercall(request),
            Exit::NestedInstruction(request) => Ok(request.inject(Exception::undefined())),
            Exit::Exception(request) => self.exception(request),
            Exit::TaskSwitch(raw) => self.task_switch(raw),
            Exit::InterruptWindow => self.look_again(),
            Exit::NmiWindow => self.look_again(),
            Exit::HostInterrupt => self.look_again(),
            Exit::HostNmi => self.look_again(),
            Exit::RunLimit => self.look_again(),
            Exit::ApicWrite(request) => self.apic_write(request),
            Exit::EoiInduced(request) => self.eoi_induced(request),
            Exit::Shutdown => Err(Stop::TripleFault),
            Exit::HostSignal(raw) => self.host_signal(raw),
            Exit::Unsupported(raw) => Err(Stop::UnsupportedExit(raw)),
        }
    }

    fn cpuid(&mut self, request: Cpuid, length: Length) -> Handled {
        let dynamic = self.core.dynamic(&self.vcpu);
        let answer = self.core.cpuid.answer(request.leaf, request.subleaf, &dynamic);
        Ok(request.complete(length, answer))
    }

    fn hlt(&mut self, request: Instruction, length: Length) -> Handled {
        self.core.activity = Activity::Halted;
        self.core.attention = true;
        Ok(request.complete(length))
    }

    /// A spinning vCPU waits for another one; let the scheduler look whether that one wants the CPU.
    fn pause(&mut self, request: Instruction, length: Length) -> Handled {
        self.core.attention = true;
        Ok(request.complete(length))
    }

    /// INVD, WBINVD, WBNOINVD: the guest's memory is coherent and write-back, and no device is assigned, so there is nothing
    /// that a flush could change. INVD that loses data is never wanted.
    fn cache_flush(&mut self, request: Instruction, length: Length) -> Handled {
        Ok(request.complete(length))
    }

    /// TLFS 3 "Hypercall Interface": only through the enabled interface and from CPL 0; no call code is offered, so each is
    /// unknown.
    fn hypercall(&mut self, request: Hypercall) -> Handled {
        if self.vcpu.cpl() != 0 || !self.core.machine.hypercalls_enabled() {
            return Ok(request.inject(Exception::undefined()));
        }
        self.with_length(request, Exiting::Hypercall, |processor, request, length| {
            processor.vcpu.set_gpr(Gpr::Rax, hyperv::INVALID_HYPERCALL_CODE);
            Ok(request.complete(length))
        })
    }

    /// #DB and #AC are intercepted so that their delivery cannot loop in the processor for ever; the guest gets them.
    fn exception(&mut self, request: ExceptionExit) -> Handled {
        let exception = request.exception;
        Ok(request.inject(exception))
    }

    fn task_switch(&mut self, _raw: RawExit) -> Handled {
        Err(Stop::TaskSwitch)
    }

    fn look_again(&mut self) -> Handled {
        self.core.attention = true;
        Ok(Resume::enter())
    }

    fn apic_write(&mut self, request: ApicWrite) -> Handled {
        let register = usize::from(request.offset);
        let value = self.core.apic.port().page().load(register);
        self.core.apic.write32(register, value);
        self.core.attention = true;
        Ok(Resume::enter())
    }

    fn eoi_induced(&mut self, request: EoiInduced) -> Handled {
        self.core.apic.end_of_level(request.vector);
        self.core.attention = true;
        Ok(Resume::enter())
    }

    /// A machine check, SMI or INIT of the host: its own handlers have run.
    fn host_signal(&mut self, _raw: RawExit) -> Handled {
        self.look_again()
    }
}
