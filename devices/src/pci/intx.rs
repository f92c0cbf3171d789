//! INTx: from a function's pin to PIRQA-PIRQH, and from there to the IOAPIC's inputs 16-23 and to the 8259 pair.
//!
//! ICH9 10.1 "Chipset Configuration Registers", D25IR-D31IR, and 13.1.17 "PIRQn_ROUT". The swizzle of the slots below
//! 25 is q35's, which SeaBIOS expects.

use super::spec::lpc;
use crate::IrqLine;
use alloc::sync::Arc;
use spin::Mutex;

/// One of the eight PCI interrupt wires of the ICH9: 0 is PIRQA, 7 is PIRQH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pirq(u8);

impl Pirq {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// The wire of `pin` (1 for INTA# to 4 for INTD#, counted modulo 4) of the device in slot `device` of bus 0.
    pub const fn of(device: u8, pin: u8) -> Pirq {
        let pin = pin.wrapping_sub(1) & 3;
        // The chipset's own devices go to PIRQA-D by pin, the others to PIRQE-H by pin and slot.
        if device >= 25 { Pirq(pin) } else { Pirq(4 + ((device & 3) + pin) % 4) }
    }

    /// 0 for PIRQA to 7 for PIRQH.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The global system interrupt, 16 to 23.
    pub const fn gsi(self) -> u32 {
        16 + self.0 as u32
    }
}

/// The IRQ that the value of a PIRQ routing register routes to on the 8259 pair. Disabled and reserved values go nowhere.
pub const fn isa_irq(route: u8) -> Option<u8> {
    match route & 0x0f {
        irq @ (3..=7 | 9..=12 | 14 | 15) if route & lpc::IRQEN == 0 => Some(irq),
        _ => None,
    }
}

struct Wires {
    /// For each PIRQ, which sources assert it.
    asserted: [u64; Pirq::COUNT],
    sources: [u32; Pirq::COUNT],
    routes: [u8; Pirq::COUNT],
}

/// Joins the INTx wires of all functions.
///
/// [`IntxRouter::line`] makes a function's wire; the LPC bridge sets the routes. It is safe to use from several vCPUs;
/// its lock is taken after a device's and before an interrupt controller's.
pub struct IntxRouter {
    ioapic: [Arc<dyn IrqLine>; Pirq::COUNT],
    isa: [Arc<dyn IrqLine>; 16],
    wires: Mutex<Wires>,
}

impl IntxRouter {
    /// A router that drives the IOAPIC inputs 16 to 23 and, by route, the ISA lines `isa`.
    pub fn new(ioapic: [Arc<dyn IrqLine>; Pirq::COUNT], isa: [Arc<dyn IrqLine>; 16]) -> Arc<IntxRouter> {
        let wires = Wires { asserted: [0; Pirq::COUNT], sources: [0; Pirq::COUNT], routes: [lpc::IRQEN; Pirq::COUNT] };
        Arc::new(IntxRouter { ioapic, isa, wires: Mutex::new(wires) })
    }

    /// The wire of `pin` (1 to 4) of the device in slot `device`. Each call makes one more source; at most 64 share a
    /// PIRQ.
    pub fn line(self: &Arc<Self>, device: u8, pin: u8) -> Arc<dyn IrqLine> {
        let pirq = Pirq::of(device, pin);
        let sources = &mut self.wires.lock().sources[usize::from(pirq.0)];
        assert!(*sources < u64::BITS, "too many devices on one PIRQ");
        let bit = 1 << *sources;
        *sources += 1;
        Arc::new(Source { router: self.clone(), pirq, bit })
    }

    /// Takes over what the PIRQn_ROUT registers say now.
    pub(super) fn set_routes(&self, routes: [u8; Pirq::COUNT]) {
        let mut wires = self.wires.lock();
        let before = wires.routes.map(isa_irq);
        wires.routes = routes;
        for irq in before.into_iter().flatten() {
            self.drive_isa(&wires, irq);
        }
        for irq in routes.into_iter().filter_map(isa_irq) {
            self.drive_isa(&wires, irq);
        }
    }

    fn drive_isa(&self, wires: &Wires, irq: u8) {
        let asserted =
            wires.routes.iter().zip(wires.asserted).any(|(route, by)| by != 0 && isa_irq(*route) == Some(irq));
        if let Some(line) = self.isa.get(usize::from(irq)) {
            line.set(asserted);
        }
    }

    fn set(&self, pirq: Pirq, bit: u64, asserted: bool) {
        let mut wires = self.wires.lock();
        let number = usize::from(pirq.0);
        let Some(by) = wires.asserted.get_mut(number) else { return };
        let was = *by != 0;
        *by = if asserted { *by | bit } else { *by & !bit };
        let is = *by != 0;
        if was == is {
            return;
        }
        if let Some(line) = self.ioapic.get(number) {
            line.set(is);
        }
        if let Some(irq) = wires.routes.get(number).copied().and_then(isa_irq) {
            self.drive_isa(&wires, irq);
        }
    }
}

struct Source {
    router: Arc<IntxRouter>,
    pirq: Pirq,
    bit: u64,
}

impl IrqLine for Source {
    fn set(&self, asserted: bool) {
        self.router.set(self.pirq, self.bit, asserted);
    }
}
