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
    /// Runs the guest until its next exit, and handles that.
    ///
    /// The exit is taken apart where the backend wrote it: passed on to another function it would first be copied whole.
    #[inline(always)]
    pub(crate) fn step(&mut self) -> Handled {
        let left = self.vcpu.run();
        if let Ok(exit) = &left {
            self.core.recorder.note(exit, self.vcpu.rip());
        }
        match left {
            Err(failure) => Err(Stop::EntryRefused(failure)),
            Ok(Exit::PortRead(request)) => self.port_read(request),
            Ok(Exit::PortWrite(request)) => self.port_write(request),
            Ok(Exit::PortString(request)) => self.port_string(request),
            Ok(Exit::MemoryAccess(request)) => self.memory_access(request),
            Ok(Exit::Cpuid(request)) => self.with_length(request, Exiting::Cpuid, Self::cpuid),
            Ok(Exit::MsrRead(request)) => self.with_length(request, Exiting::Rdmsr, Self::msr_read),
            Ok(Exit::MsrWrite(request)) => self.with_length(request, Exiting::Wrmsr, Self::msr_write),
            Ok(Exit::Xsetbv(request)) => self.with_length(request, Exiting::Xsetbv, Self::xsetbv),
            Ok(Exit::ControlWrite(request)) => self.with_length(request, Exiting::ControlWrite, Self::control_write),
            Ok(Exit::Hlt(request)) => self.with_length(request, Exiting::Hlt, Self::hlt),
            Ok(Exit::Pause(request)) => self.with_length(request, Exiting::Pause, Self::pause),
            Ok(Exit::Invd(request)) => self.with_length(request, Exiting::Invd, Self::cache_flush),
            Ok(Exit::Wbinvd(request)) => self.with_length(request, Exiting::Wbinvd, Self::cache_flush),
            Ok(Exit::Rdpmc(request)) => Ok(request.inject(Exception::general_protection(0))),
            Ok(Exit::Rdtscp(request)) => Ok(request.inject(Exception::undefined())),
            Ok(Exit::Monitor(request)) => Ok(request.inject(Exception::undefined())),
            Ok(Exit::Mwait(request)) => Ok(request.inject(Exception::undefined())),
            Ok(Exit::Invpcid(request)) => Ok(request.inject(Exception::undefined())),
            Ok(Exit::Rsm(request)) => Ok(request.inject(Exception::undefined())),
            Ok(Exit::Hypercall(request)) => self.hypercall(request),
            Ok(Exit::NestedInstruction(request)) => Ok(request.inject(Exception::undefined())),
            Ok(Exit::Exception(request)) => self.exception(request),
            Ok(Exit::TaskSwitch(raw)) => self.task_switch(raw),
            Ok(Exit::InterruptWindow) => self.look_again(),
            Ok(Exit::NmiWindow) => self.look_again(),
            Ok(Exit::HostInterrupt) => self.host_event(),
            Ok(Exit::HostNmi) => self.host_event(),
            Ok(Exit::RunLimit) => self.host_event(),
            Ok(Exit::ApicWrite(request)) => self.apic_write(request),
            Ok(Exit::EoiInduced(request)) => self.eoi_induced(request),
            Ok(Exit::Shutdown) => Err(Stop::TripleFault),
            Ok(Exit::HostSignal(raw)) => self.host_signal(raw),
            Ok(Exit::Unsupported(raw)) => Err(Stop::UnsupportedExit(raw)),
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

    /// The host wanted its CPU, so that its alarms may be others now; or the bound has passed. The next run needs a new one.
    fn host_event(&mut self) -> Handled {
        self.core.armed = None;
        self.look_again()
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
