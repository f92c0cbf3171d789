//! What is injected into a device: time, interrupt lines, byte streams, and the messages between interrupt controllers.
//!
//! `machine` implements these over the mailboxes of its vCPUs and `kernel`'s host services; tests implement them with
//! recording fakes. Locks are taken in one order only: device, then interrupt controller; a wire's callee never calls
//! back into its caller.

/// Guest time in nanoseconds since the virtual machine was made. It does not run while the VM is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Nanoseconds in one second.
    pub const PER_SECOND: u64 = 1_000_000_000;

    /// This moment plus `nanos`, held at the end of time.
    #[inline]
    pub const fn saturating_add(self, nanos: u64) -> Nanos {
        Nanos(self.0.saturating_add(nanos))
    }

    /// Nanoseconds since `earlier`, 0 if that lies ahead.
    #[inline]
    pub const fn since(self, earlier: Nanos) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// How many periods of a clock of `hertz` have passed by this moment, rounded down, modulo 2^64.
    #[inline]
    pub const fn ticks(self, hertz: u64) -> u64 {
        (self.0 as u128 * hertz as u128 / Self::PER_SECOND as u128) as u64
    }

    /// The first moment at which [`Nanos::ticks`] of that clock gives `ticks`, held at the end of time.
    #[inline]
    pub const fn of_ticks(ticks: u64, hertz: u64) -> Nanos {
        let nanos = (ticks as u128 * Self::PER_SECOND as u128).div_ceil(hertz as u128);
        Nanos(if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 })
    }
}

/// Guest time. Never goes backwards.
pub trait Clock: Send + Sync {
    /// The present moment.
    fn now(&self) -> Nanos;
}

/// A wire from a device to the interrupt controllers. Setting the level it has already is harmless.
pub trait IrqLine: Send + Sync {
    /// Drives the wire: true for asserted.
    fn set(&self, asserted: bool);
}

/// Where a device's output bytes go: the far end of a serial line, a debug console.
pub trait ByteSink: Send + Sync {
    /// Takes one byte. Never blocks; what cannot be kept is dropped.
    fn put(&self, byte: u8);
}

/// Where a device's input bytes come from.
pub trait ByteSource: Send + Sync {
    /// The next byte, if one is there.
    fn take(&self) -> Option<u8>;
}

/// What the guest asked of the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Reset everything and start from firmware or loader again.
    Reset,
    /// ACPI S5, soft off.
    Off,
    /// A write of this value to the opt-in debug-exit port.
    DebugExit(u32),
}

/// Takes power events. They act after the instruction that caused them completes.
pub trait PowerSink: Send + Sync {
    /// Notes the event.
    fn request(&self, event: PowerEvent);
}

/// SDM 3A 11.6.1 "Interrupt Command Register (ICR)", delivery mode; also IOAPIC redirection entries and MSI data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeliveryMode {
    /// Deliver the vector to all destinations.
    Fixed = 0,
    /// Deliver the vector to the destination with the lowest priority.
    LowestPriority = 1,
    /// System management interrupt.
    Smi = 2,
    /// Non-maskable interrupt.
    Nmi = 4,
    /// INIT request.
    Init = 5,
    /// Start-up IPI; the vector is the page to start at.
    StartUp = 6,
    /// The vector comes from the 8259 pair.
    ExtInt = 7,
}

impl DeliveryMode {
    /// The mode that the three bits encode; 3 is reserved.
    pub const fn from_bits(bits: u32) -> Option<DeliveryMode> {
        match bits & 7 {
            0 => Some(DeliveryMode::Fixed),
            1 => Some(DeliveryMode::LowestPriority),
            2 => Some(DeliveryMode::Smi),
            4 => Some(DeliveryMode::Nmi),
            5 => Some(DeliveryMode::Init),
            6 => Some(DeliveryMode::StartUp),
            7 => Some(DeliveryMode::ExtInt),
            _ => None,
        }
    }
}

/// How a message's destination is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationMode {
    /// A local APIC id.
    Physical,
    /// A set of logical ids, SDM 3A 11.6.2 "Determining IPI Destination".
    Logical,
}

/// Edge or level, as the local APIC's TMR records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerMode {
    /// One interrupt per edge; EOI is not broadcast.
    Edge,
    /// Repeats until the line is released; EOI is broadcast to the IOAPICs.
    Level,
}

/// One message on the interrupt bus, from an IOAPIC, an MSI write, a HPET or another local APIC's ICR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptMessage {
    /// The destination: 8 bits from IOAPIC and MSI, 32 from an x2APIC's ICR. 0xff (0xffff_ffff) is everybody.
    pub destination: u32,
    /// How `destination` is to be read.
    pub destination_mode: DestinationMode,
    /// What to deliver.
    pub delivery: DeliveryMode,
    /// The vector, or the start-up page.
    pub vector: u8,
    /// Edge or level.
    pub trigger: TriggerMode,
}

/// Takes interrupt messages: the bus between IOAPIC, MSI sources and the local APICs.
pub trait MessageSink: Send + Sync {
    /// Delivers `message` to the local APICs that it addresses. True if one of them took it.
    fn deliver(&self, message: &InterruptMessage) -> bool;
}

/// Learns that a level-triggered vector was ended: the IOAPICs.
pub trait EoiSink: Send + Sync {
    /// EOI broadcast of `vector`.
    fn eoi(&self, vector: u8);
}

/// What a local APIC tells its processor. Implemented over the vCPU's mailbox; callable from any CPU.
pub trait CpuSignals: Send + Sync {
    /// Something that may be deliverable changed: a new IRR bit, a lower TPR or PPR, the 8259's INTR line.
    fn interrupt_pending(&self);
    /// One NMI.
    fn nmi(&self);
    /// INIT.
    fn init(&self);
    /// Start-up IPI; acts only after INIT. `page` is the start address divided by 4096.
    fn start_up(&self, page: u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_moments_are_inverse() {
        for hertz in [1_193_182, 3_579_545, 32_768, 10_000_000, 1_000_000_000] {
            for ticks in [0, 1, 2, 65_535, 1 << 32, 123_456_789_012] {
                let moment = Nanos::of_ticks(ticks, hertz);
                assert_eq!(moment.ticks(hertz), ticks, "{ticks} ticks of {hertz} Hz");
                if ticks > 0 {
                    assert_eq!(Nanos(moment.0 - 1).ticks(hertz), ticks - 1);
                }
            }
        }
        assert_eq!(Nanos::of_ticks(u64::MAX, 1), Nanos(u64::MAX));
    }
}
