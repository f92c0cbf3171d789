//! Exits that reach ports and memory, and those that need the instruction decoded.

use crate::context::ExitContext;
use crate::emulate::{self, Context, Emulator, Exiting, Outcome};
use crate::processor::Processor;
use crate::run::Handled;
use crate::stop::Stop;
use memory::GuestMemory;
use vcpu::{AccessKind, Length, MemoryAccess, NeedsLength, PortRead, PortString, PortWrite, Resume, Vcpu};

impl<V: Vcpu, M: GuestMemory> Processor<V, M> {
    /// The emulator, and what it works on.
    #[inline]
    fn emulation(&mut self) -> (&mut Emulator, ExitContext<'_, V, M>) {
        let core = &mut self.core;
        let context = ExitContext {
            vcpu: &mut self.vcpu,
            machine: &core.machine,
            apic: &mut core.apic,
            mailbox: &core.mailbox,
            attention: &mut core.attention,
            number: core.number,
        };
        (&mut core.emulator, context)
    }

    /// The bytes at RIP and how many there are, for a report.
    pub(crate) fn current_instruction(&mut self) -> ([u8; 15], u8) {
        Emulator::current_bytes(&self.emulation().1)
    }

    pub(crate) fn port_read(&mut self, request: PortRead) -> Handled {
        let value = self.emulation().1.port_read(request.port, request.width);
        Ok(request.complete(value))
    }

    pub(crate) fn port_write(&mut self, request: PortWrite) -> Handled {
        self.emulation().1.port_write(request.port, request.width, request.value);
        Ok(request.complete())
    }

    pub(crate) fn port_string(&mut self, request: PortString) -> Handled {
        let (emulator, mut context) = self.emulation();
        match emulator.port_string(&mut context, &request) {
            Outcome::Complete(length) => Ok(request.complete(length)),
            // A string instruction has no target; what runs again decides anew.
            Outcome::Again | Outcome::Jump(_) => Ok(request.retry()),
            Outcome::Fault(exception) => Ok(request.inject(exception)),
            Outcome::Unsupported(unsupported) => Err(Stop::Instruction { unsupported, gpa: None }),
        }
    }

    pub(crate) fn memory_access(&mut self, request: MemoryAccess) -> Handled {
        let gpa = request.gpa;
        if self.core.machine.ram.is_ram(gpa, 1) {
            return Err(Stop::UnexpectedFault(gpa));
        }
        if request.kind == AccessKind::Fetch && !request.in_page_walk {
            return Err(Stop::FetchOutsideMemory(gpa));
        }
        let (emulator, mut context) = self.emulation();
        match emulator.access(&mut context, &request) {
            Outcome::Complete(length) => Ok(request.complete(length)),
            Outcome::Again => Ok(request.retry()),
            Outcome::Jump(target) => Ok(request.jump(target)),
            Outcome::Fault(exception) => Ok(request.inject(exception)),
            Outcome::Unsupported(unsupported) => Err(Stop::Instruction { unsupported, gpa: Some(gpa) }),
        }
    }

    /// Runs `handler` with the length of the instruction that made `request`: the hardware's, or else that of the
    /// instruction at RIP if it still is an `expected` one.
    #[inline(always)]
    pub(crate) fn with_length<R: NeedsLength>(
        &mut self,
        request: R,
        expected: Exiting,
        handler: impl FnOnce(&mut Self, R, Length) -> Handled,
    ) -> Handled {
        let length = match request.length().or_else(|| self.plain_length(expected)) {
            Some(length) => length,
            None => {
                let (emulator, mut context) = self.emulation();
                match emulator.length(&mut context, expected) {
                    Ok(length) => length,
                    Err(emulate::Stop::Fault(exception)) => return Ok(request.refuse(exception)),
                    Err(emulate::Stop::Again) => return Ok(Resume::enter()),
                    Err(emulate::Stop::Refused(reason)) => return Err(Stop::Length(reason)),
                }
            }
        };
        handler(self, request, length)
    }

    /// Without a request in it, so that there is one of it for all.
    #[inline(never)]
    fn plain_length(&mut self, expected: Exiting) -> Option<Length> {
        Emulator::plain_length(&self.emulation().1, expected)
    }
}
