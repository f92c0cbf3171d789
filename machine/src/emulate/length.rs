//! Lengths of instructions that exit by themselves, where the hardware does not tell.
//!
//! Key type: [`Exiting`]. The bytes at RIP are fetched and compared with the instruction that the exit names; with
//! prefixes or rare forms the decoder is asked. If another CPU has meanwhile put another instruction there, the answer is
//! [`Stop::Again`]: the guest is entered and what is there now decides.

use super::fetch;
use super::form::Operation;
use super::{Context, Emulator, Stop};
use iced_x86::{Instruction, Mnemonic, OpKind};
use vcpu::Length;

/// An instruction that exits by itself, or a group of them that exits for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exiting {
    /// CPUID.
    Cpuid,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// HLT.
    Hlt,
    /// PAUSE.
    Pause,
    /// INVD.
    Invd,
    /// WBINVD or WBNOINVD.
    Wbinvd,
    /// RDPMC.
    Rdpmc,
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// MONITOR or MONITORX.
    Monitor,
    /// MWAIT or MWAITX.
    Mwait,
    /// INVPCID.
    Invpcid,
    /// INVLPG.
    Invlpg,
    /// RSM.
    Rsm,
    /// VMMCALL or VMCALL.
    Hypercall,
    /// XSETBV.
    Xsetbv,
    /// MOV to a control register, CLTS or LMSW.
    ControlWrite,
}

/// The usual encoding of an instruction.
#[derive(Clone, Copy)]
pub struct Encoding {
    /// Its bytes, first one lowest.
    bytes: u32,
    /// How many, 1 to 4.
    length: Length,
}

impl Encoding {
    /// Whether `bytes`, first one lowest, begin with it.
    #[inline]
    const fn begins(self, bytes: u32) -> bool {
        (bytes ^ self.bytes) << (32 - 8 * self.length.bytes() as u32) == 0
    }
}

impl Exiting {
    /// What a decoded instruction is, if it is one of these.
    pub(super) fn of(instruction: &Instruction) -> Option<Exiting> {
        Some(match instruction.mnemonic() {
            Mnemonic::Cpuid => Exiting::Cpuid,
            Mnemonic::Rdmsr => Exiting::Rdmsr,
            Mnemonic::Wrmsr => Exiting::Wrmsr,
            Mnemonic::Hlt => Exiting::Hlt,
            Mnemonic::Pause => Exiting::Pause,
            Mnemonic::Invd => Exiting::Invd,
            Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => Exiting::Wbinvd,
            Mnemonic::Rdpmc => Exiting::Rdpmc,
            Mnemonic::Rdtsc => Exiting::Rdtsc,
            Mnemonic::Rdtscp => Exiting::Rdtscp,
            Mnemonic::Monitor | Mnemonic::Monitorx => Exiting::Monitor,
            Mnemonic::Mwait | Mnemonic::Mwaitx => Exiting::Mwait,
            Mnemonic::Invpcid => Exiting::Invpcid,
            Mnemonic::Invlpg => Exiting::Invlpg,
            Mnemonic::Rsm => Exiting::Rsm,
            Mnemonic::Vmmcall | Mnemonic::Vmcall => Exiting::Hypercall,
            Mnemonic::Xsetbv => Exiting::Xsetbv,
            Mnemonic::Clts | Mnemonic::Lmsw => Exiting::ControlWrite,
            Mnemonic::Mov if instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_cr() => {
                Exiting::ControlWrite
            }
            _ => return None,
        })
    }

    /// The usual encoding; `None` where the forms vary.
    #[inline]
    pub const fn encoding(self) -> Option<Encoding> {
        let (bytes, length) = match self {
            Exiting::Cpuid => (0xa2_0f, 2),
            Exiting::Rdmsr => (0x32_0f, 2),
            Exiting::Wrmsr => (0x30_0f, 2),
            Exiting::Hlt => (0xf4, 1),
            Exiting::Pause => (0x90_f3, 2),
            Exiting::Invd => (0x08_0f, 2),
            Exiting::Wbinvd => (0x09_0f, 2),
            Exiting::Rdpmc => (0x33_0f, 2),
            Exiting::Rdtsc => (0x31_0f, 2),
            Exiting::Rdtscp => (0xf9_01_0f, 3),
            Exiting::Monitor => (0xc8_01_0f, 3),
            Exiting::Mwait => (0xc9_01_0f, 3),
            Exiting::Rsm => (0xaa_0f, 2),
            Exiting::Hypercall => (0xd9_01_0f, 3),
            Exiting::Xsetbv => (0xd1_01_0f, 3),
            Exiting::Invpcid | Exiting::Invlpg | Exiting::ControlWrite => (0, 0),
        };
        match Length::new(length) {
            Some(length) => Some(Encoding { bytes, length }),
            None => None,
        }
    }
}

impl Emulator {
    /// The length of the instruction at RIP, which the exit said to be `expected`, where its usual encoding is there and easy
    /// to fetch. `None` leaves the rest to [`Emulator::length`].
    #[inline]
    pub fn plain_length<C: Context>(context: &C, expected: Encoding) -> Option<Length> {
        if expected.begins(fetch::first_bytes(context)?) { Some(expected.length) } else { None }
    }

    /// The length of the instruction at RIP, which the exit said to be `expected`.
    ///
    /// # Errors
    /// [`Stop::Again`] if another instruction is there by now; what a fetch can raise.
    #[cold]
    #[inline(never)]
    pub fn length<C: Context>(&mut self, context: &mut C, expected: Exiting) -> Result<Length, Stop> {
        let mut fetched = fetch::fetch(context)?;
        let decoded = self.cache.decode(context, &mut fetched)?;
        if decoded.operation == Operation::Exiting(expected) { Ok(decoded.length) } else { Err(Stop::Again) }
    }
}
