//! The interrupt bus: messages to the local APICs that they address.

use super::port::ApicPort;
use super::spec::{FIRST_VECTOR, Icr, Shorthand, esr};
use crate::{DeliveryMode, DestinationMode, InterruptMessage, IrqLine, MessageSink, TriggerMode};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

/// Routes messages between IOAPIC, MSI sources and local APICs. Takes no lock; a delivery walks each port at most once.
///
/// Lowest-priority arbitration: the APIC with the lowest processor priority wins; among equals the search starts at the
/// port `vector` modulo their number, so that one vector stays on one processor and different vectors spread, as chipsets with
/// vector hashing do it.
pub struct ApicBus {
    ports: Box<[Arc<ApicPort>]>,
    /// Position in `ports` of each APIC id, or [`NO_PORT`].
    by_id: Box<[u16]>,
}

const NO_PORT: u16 = u16::MAX;
/// Bounds the table from ids to ports.
const HIGHEST_ID: u32 = 0xfff;
/// The all-ones destination of 8-bit messages.
const BROADCAST_8: u32 = 0xff;
/// The all-ones destination of x2APIC messages.
const BROADCAST_32: u32 = u32::MAX;

/// A message's destination as its sender meant it.
#[derive(Clone, Copy)]
struct Destination {
    value: u32,
    mode: DestinationMode,
    is_broadcast: bool,
}

const EVERYBODY: Destination = Destination { value: 0, mode: DestinationMode::Physical, is_broadcast: true };

impl ApicBus {
    /// A bus with these ports.
    ///
    /// # Panics
    /// Two ports have one id, or an id is above 4095: the machine was built wrongly.
    pub fn new(ports: Vec<Arc<ApicPort>>) -> Arc<ApicBus> {
        let highest = ports.iter().map(|port| port.id()).max().unwrap_or(0);
        assert!(highest <= HIGHEST_ID, "APIC id {highest} is above {HIGHEST_ID}");
        let mut by_id = vec![NO_PORT; highest as usize + 1].into_boxed_slice();
        for (position, port) in ports.iter().enumerate() {
            let place = &mut by_id[port.id() as usize];
            assert!(*place == NO_PORT, "two APICs have the id {}", port.id());
            *place = position as u16;
        }
        Arc::new(ApicBus { ports: ports.into_boxed_slice(), by_id })
    }

    /// The ports, in the order given to [`ApicBus::new`].
    pub fn ports(&self) -> &[Arc<ApicPort>] {
        &self.ports
    }

    /// The wire from the 8259 pair's INTR to LINT0 of every processor.
    pub fn lint0(self: &Arc<Self>) -> Arc<dyn IrqLine> {
        Arc::new(Lint0(self.clone()))
    }

    /// The wire from the board's NMI to LINT1 of every processor; a rising edge is one NMI.
    pub fn pulse_lint1(&self) {
        for port in &self.ports {
            port.pulse_lint1();
        }
    }

    /// Sends what was written to `sender`'s interrupt command register. In x2APIC mode only 32 ones are a broadcast.
    #[inline]
    pub(super) fn command(&self, sender: &ApicPort, icr: Icr, destination: u32, is_x2apic: bool) {
        let Some(delivery) = DeliveryMode::from_bits(icr.delivery()) else { return };
        let vector = icr.vector();
        match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if vector < FIRST_VECTOR => {
                sender.error(esr::SEND_ILLEGAL_VECTOR);
                return;
            }
            // INIT level de-assert, "not supported in the Pentium 4 and Xeon": it only set arbitration ids.
            DeliveryMode::Init if icr.level() && !icr.assert() => return,
            DeliveryMode::ExtInt => return,
            _ => {}
        }
        match icr.shorthand() {
            Shorthand::None => {
                let mode = if icr.logical() { DestinationMode::Logical } else { DestinationMode::Physical };
                let is_broadcast = destination == if is_x2apic { BROADCAST_32 } else { BROADCAST_8 };
                let destination = Destination { value: destination, mode, is_broadcast };
                self.route(destination, delivery, vector, TriggerMode::Edge, None);
            }
            Shorthand::ToSelf => {
                // Table 11-3 "Valid Combinations" calls all but fixed invalid; NMI does no harm and is what was meant.
                if matches!(delivery, DeliveryMode::Fixed | DeliveryMode::LowestPriority | DeliveryMode::Nmi) {
                    sender.accept(delivery, vector, TriggerMode::Edge);
                }
            }
            Shorthand::AllIncludingSelf => {
                if matches!(delivery, DeliveryMode::Fixed | DeliveryMode::LowestPriority | DeliveryMode::Nmi) {
                    self.route(EVERYBODY, delivery, vector, TriggerMode::Edge, None);
                }
            }
            Shorthand::AllExcludingSelf => {
                self.route(EVERYBODY, delivery, vector, TriggerMode::Edge, Some(sender.id()));
            }
        }
    }

    #[inline]
    fn route(
        &self,
        to: Destination,
        delivery: DeliveryMode,
        vector: u8,
        trigger: TriggerMode,
        except: Option<u32>,
    ) -> bool {
        if to.mode == DestinationMode::Physical && !to.is_broadcast {
            let port = self.port(to.value);
            return port.is_some_and(|port| {
                port.is_addressed(to.value, to.mode, false) && port.accept(delivery, vector, trigger)
            });
        }
        let addressed =
            |port: &&Arc<ApicPort>| port.is_addressed(to.value, to.mode, to.is_broadcast) && except != Some(port.id());
        if delivery == DeliveryMode::LowestPriority {
            let start = usize::from(vector).checked_rem(self.ports.len()).unwrap_or(0);
            let (before, from) = self.ports.split_at(start);
            let winner = from
                .iter()
                .chain(before)
                .filter(addressed)
                .filter(|port| port.takes_vectors())
                .min_by_key(|port| port.priority());
            return winner.is_some_and(|port| port.accept(delivery, vector, trigger));
        }
        let mut taken = false;
        for port in self.ports.iter().filter(addressed) {
            taken |= port.accept(delivery, vector, trigger);
        }
        taken
    }

    #[inline]
    fn port(&self, id: u32) -> Option<&Arc<ApicPort>> {
        let position = *self.by_id.get(usize::try_from(id).ok()?)?;
        self.ports.get(usize::from(position))
    }
}

impl MessageSink for ApicBus {
    fn deliver(&self, message: &InterruptMessage) -> bool {
        let destination = Destination {
            value: message.destination,
            mode: message.destination_mode,
            is_broadcast: matches!(message.destination, BROADCAST_8 | BROADCAST_32),
        };
        self.route(destination, message.delivery, message.vector, message.trigger, None)
    }
}

struct Lint0(Arc<ApicBus>);

impl IrqLine for Lint0 {
    fn set(&self, asserted: bool) {
        for port in &self.0.ports {
            port.set_lint0(asserted);
        }
    }
}
