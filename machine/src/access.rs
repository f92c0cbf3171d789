//! Exits that reach ports and memory, and those that need the instruction decoded.

use crate::context::ExitContext;
use crate::emulate::{self, Context, Emulator, Encoding, Exiting, Outcome};
use crate::processor::Processor;
use crate::run::Handled;
use crate::stop::Stop;
use memory::{Gpa, GuestMemory};
use vcpu::{
    AccessKind, ExitKind, Gpr, Length, MemoryAccess, NeedsLength, PortRead, PortString, PortWrite, Resume, Vcpu,
};

/// How often in a row an instruction is tried again that gets nowhere, before its machine is stopped.
const MOST_RETRIES: u32 = 64;

/// The instruction that is tried again and again, because what it needs changes under it or the exit was not its own.
#[derive(Clone, Copy, Default)]
pub(crate) struct Retries {
    rip: u64,
    /// The count of a repeated string instruction: it changes when that gets on.
    rcx: u64,
    gpa: Option<Gpa>,
    /// How many exits of the guest's own doing there had been.
    exits: u64,
    /// Attempts in a row.
    count: u32,
}

/// Kinds of exits that interrupt whatever the guest does and complete nothing.
const INTERRUPTIONS: [ExitKind; 5] =
    [ExitKind::InterruptWindow, ExitKind::NmiWindow, ExitKind::HostInterrupt, ExitKind::HostNmi, ExitKind::RunLimit];

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
            Outcome::Again => self.again(None).map(|()| request.retry()),
            Outcome::Jump(target) => Ok(request.jump(target)),
            Outcome::Fault(exception) => Ok(request.inject(exception)),
            Outcome::Unsupported(unsupported) => Err(Stop::Instruction { unsupported, gpa: None }),
        }
    }

    pub(crate) fn memory_access(&mut self, request: MemoryAccess) -> Handled {
        let gpa = request.gpa;
        if self.core.machine.ram.is_ram(gpa, 1) {
            return Err(Stop::UnexpectedFault(gpa));
        }
        if request.during_event_delivery {
            return Err(Stop::DeliveryIntoDevice(gpa));
        }
        if request.kind == AccessKind::Fetch && !request.in_page_walk {
            return Err(Stop::FetchOutsideMemory(gpa));
        }
        let (emulator, mut context) = self.emulation();
        match emulator.access(&mut context, &request) {
            Outcome::Complete(length) => Ok(request.complete(length)),
            Outcome::Again => self.again(Some(gpa)).map(|()| request.retry()),
            Outcome::Jump(target) => Ok(request.jump(target)),
            Outcome::Fault(exception) => Ok(request.inject(exception)),
            Outcome::Unsupported(unsupported) => Err(Stop::Instruction { unsupported, gpa: Some(gpa) }),
        }
    }

    /// The instruction at RIP, which exited for an access to `gpa`, has to run again.
    ///
    /// # Errors
    /// It did so too often, with nothing else completed in between.
    #[cold]
    #[inline(never)]
    fn again(&mut self, gpa: Option<Gpa>) -> Result<(), Stop> {
        let core = &mut self.core;
        let interruptions = INTERRUPTIONS.iter().map(|kind| core.recorder.count(*kind)).fold(0, u64::wrapping_add);
        let exits = core.recorder.total().wrapping_sub(interruptions);
        let (rip, rcx) = (self.vcpu.rip(), self.vcpu.gpr(Gpr::Rcx));
        let last = core.retries;
        let goes_on = (last.rip, last.rcx, last.gpa) == (rip, rcx, gpa) && exits == last.exits.wrapping_add(1);
        let count = if goes_on { last.count.saturating_add(1) } else { 1 };
        core.retries = Retries { rip, rcx, gpa, exits, count };
        if count > MOST_RETRIES { Err(Stop::NoProgress { gpa }) } else { Ok(()) }
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
        let length = match request.length().or_else(|| self.plain_length(expected.encoding()?)) {
            Some(length) => length,
            None => {
                let (emulator, mut context) = self.emulation();
                match emulator.length(&mut context, expected) {
                    Ok(length) => length,
                    Err(emulate::Stop::Fault(exception)) => return Ok(request.refuse(exception)),
                    Err(emulate::Stop::Again) => return self.again(None).map(|()| Resume::enter()),
                    Err(emulate::Stop::Refused(reason)) => return Err(Stop::Length(reason)),
                }
            }
        };
        handler(self, request, length)
    }

    /// Without a request in it, so that there is one of it for all.
    #[inline(never)]
    fn plain_length(&mut self, expected: Encoding) -> Option<Length> {
        Emulator::plain_length(&self.emulation().1, expected)
    }
}
