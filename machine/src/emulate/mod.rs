//! The instruction emulator: executes in software what the hardware could not finish.
//!
//! It runs for accesses to device space (MMIO), for string port I/O, and tells the length of an instruction where the
//! hardware does not. Instructions are decoded by iced-x86 once, digested into a small form ([`form`]) and kept in a
//! [`cache`] keyed by code size and instruction bytes; the bytes are fetched afresh at each exit ([`fetch`]), through the
//! guest's own page tables ([`walk`]). Addresses pass segmentation ([`address`]), accesses pass paging and end in RAM or at
//! a device ([`access`]); [`execute`] and its siblings hold the semantics. What is not implemented ends as
//! [`Outcome::Unsupported`] with the bytes, never as a guess.
//!
//! Key types: [`Emulator`] (one a vCPU, owns the cache), [`Context`] (what it works on), [`Outcome`], [`Stop`].
//! Neighbours: the exit dispatch of this crate calls it and implements [`Context`] over the vCPU, guest memory and buses.
//! It does not move RIP and raises nothing: both are the answer's business. Nothing here allocates after
//! [`Emulator::new`] and [`warm_up`], and all loops are bounded.
//!
//! Manuals: Intel SDM (December 2024, 325462-086) volumes 1, 2 and 3A; AMD APM volumes 2 (24593, 3.42) and 3 (24594).

mod access;
mod address;
mod arithmetic;
mod cache;
mod digest;
mod disassemble;
mod execute;
mod fetch;
mod form;
mod length;
mod operands;
mod stack;
mod strings;
#[cfg(test)]
mod tests;
mod vector_digest;
mod vectors;
mod walk;

pub use disassemble::disassemble;
pub use length::{Encoding, Exiting};
pub use walk::{PagingLimits, Privilege, translate};

use cache::Cache;
use execute::{Done, Execution};
use fetch::Fetched;
use memory::{Gpa, GuestMemory, Width};
use vcpu::{Exception, Length, MemoryAccess, PortString, Vcpu};

/// What the emulator works on: one vCPU, the memory of its machine, and the devices behind.
pub trait Context {
    /// The vCPU whose instruction is emulated.
    type Cpu: Vcpu;
    /// The guest's RAM.
    type Memory: GuestMemory + ?Sized;

    /// The vCPU's registers.
    fn cpu(&self) -> &Self::Cpu;
    /// The vCPU's registers, to be written.
    fn cpu_mut(&mut self) -> &mut Self::Cpu;
    /// The guest's RAM.
    fn memory(&self) -> &Self::Memory;
    /// What CPUID tells the guest about page tables.
    fn paging_limits(&self) -> PagingLimits;
    /// Instruction bytes at an address that is not RAM: firmware in ROM or flash. False where there is no such thing;
    /// devices are not asked.
    fn fetch_outside_ram(&self, gpa: Gpa, into: &mut [u8]) -> bool;
    /// Reads 1, 2, 4 or 8 naturally aligned bytes of device space; what nobody claims reads as all ones.
    fn device_read(&mut self, gpa: Gpa, into: &mut [u8]);
    /// Writes 1, 2, 4 or 8 naturally aligned bytes of device space.
    fn device_write(&mut self, gpa: Gpa, from: &[u8]);
    /// IN of 1, 2 or 4 bytes.
    fn port_read(&mut self, port: u16, width: Width) -> u32;
    /// OUT of 1, 2 or 4 bytes.
    fn port_write(&mut self, port: u16, width: Width, value: u32);
    /// Whether a repeated string instruction should pause here: an interrupt or other work waits for this vCPU.
    fn should_pause(&self) -> bool;
}

/// How an instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// It is complete; RIP moves past it.
    Complete(Length),
    /// Enter the guest again with RIP where it is: the bytes at RIP are another instruction by now.
    Again,
    /// A call or jump through device memory is complete, or a part of a repeated string instruction; RIP becomes this.
    Jump(u64),
    /// It raises this exception and has had no other effect, but for the finished elements of a repeated string
    /// instruction.
    Fault(Exception),
    /// It cannot be emulated; the machine stops with a report.
    Unsupported(Unsupported),
}

/// An instruction that could not be emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Why.
    pub reason: Reason,
    /// Its bytes as they were fetched.
    pub bytes: [u8; 15],
    /// How many of `bytes` count, 0 to 15.
    pub count: u8,
}

/// Why an instruction cannot be emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The bytes are no instruction that the decoder knows.
    Undecodable,
    /// The emulator has no semantics for this instruction.
    NotImplemented,
    /// A page-table entry of the guest lies outside its RAM.
    PageTable(Gpa),
    /// The instruction lies neither in RAM nor in ROM.
    Code(Gpa),
    /// The page has a protection key, whose rights register the vCPU contract does not carry.
    ProtectionKey,
    /// A locked operation on RAM that crosses an 8-byte boundary, or is wider than 8 bytes.
    SplitLock(Gpa),
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Reason::Undecodable => f.write_str("the bytes are no known instruction"),
            Reason::NotImplemented => f.write_str("the instruction is not implemented by the emulator"),
            Reason::PageTable(gpa) => write!(f, "a guest page-table entry at {gpa} is not in RAM"),
            Reason::Code(gpa) => write!(f, "the instruction at guest-physical {gpa} is neither in RAM nor in ROM"),
            Reason::ProtectionKey => f.write_str("the page has a protection key"),
            Reason::SplitLock(gpa) => write!(f, "a locked operation at {gpa} crosses 8 bytes of RAM"),
        }
    }
}

/// Why something could not be done: the early end of a walk, a fetch or an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest gets this exception.
    Fault(Exception),
    /// Enter the guest again; another CPU changed under us what was being used.
    Again,
    /// It cannot be emulated.
    Refused(Reason),
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Stop::Fault(exception)
    }
}

/// The emulator of one vCPU.
pub struct Emulator {
    cache: Cache,
}

/// What an exit is known to be about; it narrows what the instruction at RIP may do.
#[derive(Clone, Copy)]
enum Cause {
    /// An access to this address, which the hardware has translated and allowed.
    Access(Gpa, vcpu::AccessKind),
    /// INS or OUTS, whose port permission the hardware has checked.
    Port(u16),
}

impl Emulator {
    /// An emulator with an empty cache. Allocates, and [`warm_up`]s the decoder; everything after does neither.
    pub fn new() -> Emulator {
        warm_up();
        Emulator { cache: Cache::new() }
    }

    /// Executes the instruction that made `access`.
    #[inline]
    pub fn access<C: Context>(&mut self, context: &mut C, access: &MemoryAccess) -> Outcome {
        // The address of an access within the walk is that of a table entry, not of an operand.
        let cause = (!access.in_page_walk).then_some(Cause::Access(access.gpa, access.kind));
        let fetched = match access.bytes {
            (bytes, count @ 1..) => Fetched::from_hardware(context, &bytes, count),
            _ => match fetch::fetch_plain(context) {
                Some(fetched) => fetched,
                None => return self.emulate_at_rip(context, cause),
            },
        };
        // What most exits are: a move that is in the cache, to or from the address that the exit names.
        if let Some(decoded) = self.cache.find(&fetched)
            && Execution::new(context, fetched.code_size(), fetched.rip(), cause).run_plain_move(decoded)
        {
            return Outcome::Complete(decoded.length);
        }
        self.emulate(context, fetched, cause)
    }

    /// Executes the INS or OUTS that made `request`, up to a bounded number of elements.
    pub fn port_string<C: Context>(&mut self, context: &mut C, request: &PortString) -> Outcome {
        self.emulate_at_rip(context, Some(Cause::Port(request.port)))
    }

    /// Executes the instruction at RIP, of whose exit nothing is known.
    pub fn instruction<C: Context>(&mut self, context: &mut C) -> Outcome {
        self.emulate_at_rip(context, None)
    }

    #[inline(never)]
    fn emulate_at_rip<C: Context>(&mut self, context: &mut C, cause: Option<Cause>) -> Outcome {
        match fetch::fetch_plain(context).map_or_else(|| fetch::fetch(context), Ok) {
            Ok(fetched) => self.emulate(context, fetched, cause),
            Err(stop) => Outcome::of(stop, None),
        }
    }

    #[inline(never)]
    fn emulate<C: Context>(&mut self, context: &mut C, mut fetched: Fetched, cause: Option<Cause>) -> Outcome {
        let decoded = match self.cache.decode(context, &mut fetched) {
            Ok(decoded) => decoded,
            Err(stop) => return Outcome::of(stop, Some(&fetched)),
        };
        match Execution::new(context, fetched.code_size(), fetched.rip(), cause).run(decoded) {
            Ok(Done::Complete) => Outcome::Complete(decoded.length),
            Ok(Done::Again) => Outcome::Again,
            Ok(Done::Jump(target)) => Outcome::Jump(target),
            Err(stop) => Outcome::of(stop, Some(&fetched)),
        }
    }
}

impl Default for Emulator {
    fn default() -> Self {
        Self::new()
    }
}

impl Outcome {
    #[cold]
    fn of(stop: Stop, fetched: Option<&Fetched>) -> Outcome {
        match stop {
            Stop::Fault(exception) => Outcome::Fault(exception),
            Stop::Again => Outcome::Again,
            Stop::Refused(reason) => {
                let (bytes, count) = fetched.map_or(([0; 15], 0), Fetched::copy);
                Outcome::Unsupported(Unsupported { reason, bytes, count })
            }
        }
    }
}

/// Makes the decoder build its tables, which allocates about 185 KB once for all emulators.
pub fn warm_up() {
    // Any instruction will do; CPUID.
    core::hint::black_box(digest::decode(vcpu::CodeSize::Bits64, &[0x0f, 0xa2]).is_ok());
}
