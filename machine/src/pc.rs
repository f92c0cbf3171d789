//! Builds the PC: every device, its place on the buses and its interrupt wiring, as QEMU's q35 has them.

use crate::control::ControlPolicy;
use crate::emulate::PagingLimits;
use crate::hyperv::{HypervConfig, Partition};
use crate::layout::{self, gsi};
use crate::machine::{HostFacts, Machine, MachineConfig, NEVER, Services, cpuid_table};
use crate::power::PowerLatch;
use crate::tsc::TscLine;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use devices::acpi_pm::{AcpiMode, AcpiPm, TimerWidth};
use devices::debug_exit::DebugExit;
use devices::debugcon::DebugConsole;
use devices::hpet::{Hpet, HpetWires};
use devices::i8042::{I8042, SystemControl};
use devices::ioapic::{IoApic, PINS};
use devices::lapic::{ApicBus, ApicPort, TIMER_HERTZ};
use devices::pci::{
    AddressSpace, BarChange, ChipsetConfiguration, ConfigPorts, DevFn, Ecam, IntxRouter, Lpc, Mch, PciBus, SetUp,
    WindowId,
};
use devices::pic::Pic;
use devices::pit::Pit;
use devices::rtc::{Installed, Rtc};
use devices::uart::Uart;
use devices::{Bus, ClaimError, CpuSignals, Device, EoiSink, IrqLine, SharedDevice, share};
use memory::{GuestMemory, RegisterPage};
use spin::Mutex;
use vcpu::{Mailbox, Post};

/// What one vCPU brings to the machine.
pub struct Seat {
    /// Its local APIC's page.
    pub apic_page: Arc<RegisterPage>,
    /// Its mailbox.
    pub mailbox: Arc<Mailbox>,
}

/// Why a machine could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// A device's range could not be claimed: the machine's own layout is wrong.
    Claim(&'static str, ClaimError),
    /// The number of vCPUs is 0 or not that of the seats.
    Vcpus,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Claim(device, error) => write!(f, "the {device} cannot be placed: {error}"),
            BuildError::Vcpus => f.write_str("a machine needs at least one vCPU"),
        }
    }
}

/// A local APIC's signals, as posts to its vCPU.
struct Signals(Arc<Mailbox>);

impl CpuSignals for Signals {
    #[inline]
    fn interrupt_pending(&self) {
        self.0.post(Post::INTERRUPT);
    }
    fn nmi(&self) {
        self.0.post(Post::NMI);
    }
    fn init(&self) {
        self.0.post(Post::INIT);
    }
    fn start_up(&self, page: u8) {
        self.0.post_start_up(page);
    }
}

/// The 8259 pair's INTR: a level that the bootstrap processor looks at, and LINT0 of every local APIC.
struct Intr {
    level: Arc<AtomicBool>,
    lint0: Arc<dyn IrqLine>,
}

impl IrqLine for Intr {
    fn set(&self, asserted: bool) {
        self.level.store(asserted, Ordering::Release);
        self.lint0.set(asserted);
    }
}

/// An ISA interrupt: a pin of the 8259 pair and a pin of the IOAPIC.
struct IsaLine {
    pic: Arc<Mutex<Pic>>,
    irq: u8,
    pin: GsiLine,
}

impl IrqLine for IsaLine {
    fn set(&self, asserted: bool) {
        self.pic.lock().set_irq(self.irq, asserted);
        self.pin.set(asserted);
    }
}

/// A pin of the 8259 pair alone: what the LPC bridge routes PCI interrupts to.
struct PicLine {
    pic: Arc<Mutex<Pic>>,
    irq: u8,
}

impl IrqLine for PicLine {
    fn set(&self, asserted: bool) {
        self.pic.lock().set_irq(self.irq, asserted);
    }
}

/// A pin of the IOAPIC alone: PCI interrupts in APIC mode, HPET timers.
///
/// Several wires may share a pin; it is asserted while any of them is.
struct GsiLine {
    pins: Arc<Pins>,
    pin: u32,
    /// This wire's bit among those of its pin.
    source: u32,
}

/// The IOAPIC with what drives each of its pins.
struct Pins {
    ioapic: Arc<Mutex<IoApic>>,
    /// The wires that assert each pin. Changed only under the IOAPIC's lock.
    asserted: [AtomicU32; PINS],
    /// How many wires each pin has.
    wires: [AtomicU32; PINS],
}

impl Pins {
    fn new(ioapic: Arc<Mutex<IoApic>>) -> Arc<Pins> {
        let zero = || core::array::from_fn(|_| AtomicU32::new(0));
        Arc::new(Pins { ioapic, asserted: zero(), wires: zero() })
    }

    /// One more wire to `pin`.
    fn wire(self: &Arc<Self>, pin: u32) -> GsiLine {
        let number = self.wires[pin as usize].fetch_add(1, Ordering::Relaxed);
        assert!(number < u32::BITS, "a pin has at most 32 wires");
        GsiLine { pins: self.clone(), pin, source: 1 << number }
    }
}

impl IrqLine for GsiLine {
    fn set(&self, asserted: bool) {
        let Some(drivers) = self.pins.asserted.get(self.pin as usize) else { return };
        let mut ioapic = self.pins.ioapic.lock();
        let before = drivers.load(Ordering::Relaxed);
        let after = if asserted { before | self.source } else { before & !self.source };
        drivers.store(after, Ordering::Relaxed);
        ioapic.set_pin(self.pin, after != 0);
    }
}

/// The IOAPIC as the local APICs' EOI broadcasts reach it.
struct IoApicEoi(Arc<Mutex<IoApic>>);

impl EoiSink for IoApicEoi {
    fn eoi(&self, vector: u8) {
        self.0.lock().end_of_interrupt(vector);
    }
}

/// The HPET's legacy replacement: while it is on, the 8254 and the real-time clock are cut off from their wires.
#[derive(Default)]
struct LegacyRoute(Arc<AtomicBool>);

impl LegacyRoute {
    /// `line`, for a device that is cut off by this route.
    fn gate(&self, line: Arc<dyn IrqLine>) -> Arc<dyn IrqLine> {
        Arc::new(Gated { line, is_cut: self.0.clone() })
    }
}

impl IrqLine for LegacyRoute {
    fn set(&self, asserted: bool) {
        self.0.store(asserted, Ordering::Release);
    }
}

struct Gated {
    line: Arc<dyn IrqLine>,
    is_cut: Arc<AtomicBool>,
}

impl IrqLine for Gated {
    fn set(&self, asserted: bool) {
        if !self.is_cut.load(Ordering::Acquire) {
            self.line.set(asserted);
        }
    }
}

/// Interrupt controllers and who drives their pins.
struct Board {
    pic: Arc<Mutex<Pic>>,
    pins: Arc<Pins>,
}

impl Board {
    /// The wire of ISA interrupt `irq`; 0 is the IOAPIC's pin 2.
    fn isa(&self, irq: u8) -> Arc<dyn IrqLine> {
        let pin = if irq == 0 { gsi::PIT } else { irq.into() };
        Arc::new(IsaLine { pic: self.pic.clone(), irq, pin: self.pins.wire(pin) })
    }

    fn pic_only(&self, irq: u8) -> Arc<dyn IrqLine> {
        Arc::new(PicLine { pic: self.pic.clone(), irq })
    }

    fn gsi(&self, pin: u32) -> Arc<dyn IrqLine> {
        Arc::new(self.pins.wire(pin))
    }
}

/// A device that a PCI function's window leads to, wherever the guest moves it.
pub(crate) struct Movable {
    at: DevFn,
    id: WindowId,
    slot: SharedDevice,
}

/// The buses while they are being filled.
struct Buses {
    ports: Bus,
    memory: Bus,
    devices: Vec<SharedDevice>,
}

impl Buses {
    /// Takes a device into the list of those that are reset and have deadlines.
    fn own<D: Device + 'static>(&mut self, device: D) -> SharedDevice {
        let slot = share(Arc::new(Mutex::new(device)));
        self.devices.push(slot.clone());
        slot
    }

    fn at_ports(
        &mut self,
        name: &'static str,
        slot: &SharedDevice,
        ranges: &[(u16, u64, u64)],
    ) -> Result<(), BuildError> {
        for &(first, count, offset) in ranges {
            let claimed = self.ports.claim(first.into(), count, slot, offset);
            claimed.map_err(|error| BuildError::Claim(name, error))?;
        }
        Ok(())
    }

    fn at_memory(&mut self, name: &'static str, slot: &SharedDevice, first: u64, bytes: u64) -> Result<(), BuildError> {
        self.memory.claim(first, bytes, slot, 0).map_err(|error| BuildError::Claim(name, error))
    }
}

/// Wraps a device that something else holds too.
fn shared<D: Device + 'static>(buses: &mut Buses, device: &Arc<Mutex<D>>) -> SharedDevice {
    let slot = share(device.clone());
    buses.devices.push(slot.clone());
    slot
}

impl<M: GuestMemory> Machine<M> {
    /// Builds the machine around `ram`.
    ///
    /// # Errors
    /// The configuration does not fit the seats, or the layout contradicts itself.
    pub fn build(
        config: MachineConfig,
        facts: &HostFacts<'_>,
        ram: M,
        seats: &[Seat],
        services: Services,
    ) -> Result<Machine<M>, BuildError> {
        if seats.is_empty() || seats.len() != config.vcpus as usize {
            return Err(BuildError::Vcpus);
        }
        let mailboxes: Vec<_> = seats.iter().map(|seat| seat.mailbox.clone()).collect();
        let power = Arc::new(PowerLatch::default());
        power.attach(mailboxes.clone());

        let port = |(seat, id): (&Seat, u32)| {
            ApicPort::new(id, seat.apic_page.clone(), Arc::new(Signals(seat.mailbox.clone())))
        };
        let apics = ApicBus::new(seats.iter().zip(0..).map(port).collect());
        let external = Arc::new(AtomicBool::new(false));
        let intr = Arc::new(Intr { level: external.clone(), lint0: apics.lint0() });
        let pic = Arc::new(Mutex::new(Pic::new(intr)));
        let ioapic = Arc::new(Mutex::new(IoApic::new(apics.clone())));
        let board = Board { pic: pic.clone(), pins: Pins::new(ioapic.clone()) };
        let clock = services.clock.clone();

        let mut buses = Buses { ports: Bus::ports(), memory: Bus::memory(), devices: Vec::new() };
        let slot = shared(&mut buses, &pic);
        buses.at_ports("8259 pair", &slot, &[(0x20, 2, 0), (0xa0, 2, 2), (0x4d0, 2, 4)])?;
        let slot = shared(&mut buses, &ioapic);
        buses.at_memory("IOAPIC", &slot, layout::IOAPIC_BASE, layout::IOAPIC_SIZE)?;

        let legacy = Arc::new(LegacyRoute::default());
        let timer_line = legacy.gate(board.isa(0));
        let rtc_line = legacy.gate(board.isa(gsi::RTC as u8));
        let pit = buses.own(Pit::new(clock.clone(), timer_line));
        buses.at_ports("8254", &pit, &[(0x40, 4, 0), (0x61, 1, 4)])?;
        let ((_, low), high) = layout::ram_split(config.memory);
        let installed =
            Installed { ram_below_4g: low, ram_above_4g: high.map_or(0, |(_, bytes)| bytes), processors: config.vcpus };
        let rtc = buses.own(Rtc::new(clock.clone(), rtc_line, config.wall_time, installed));
        buses.at_ports("real-time clock", &rtc, &[(0x70, Rtc::PORTS, 0)])?;
        let wires = HpetWires {
            pins: core::array::from_fn(|pin| board.gsi(pin as u32)),
            legacy_irqs: [board.isa(0), board.isa(gsi::RTC as u8)],
            legacy,
            messages: Some(apics.clone()),
        };
        let hpet = buses.own(Hpet::new(clock.clone(), wires));
        buses.at_memory("HPET", &hpet, layout::HPET_BASE, layout::HPET_SIZE)?;

        let (output, input) = (services.console_output.clone(), services.console_input.clone());
        let console = buses.own(Uart::new(board.isa(gsi::COM1 as u8), output, input));
        buses.at_ports("serial port", &console, &[(layout::COM1, Uart::PORTS, 0)])?;
        let keyboard = I8042::new(board.isa(gsi::KEYBOARD as u8), board.isa(gsi::MOUSE as u8), power.clone());
        let keyboard = buses.own(keyboard);
        buses.at_ports("keyboard controller", &keyboard, &[(0x60, 1, 0), (0x64, 1, 4)])?;
        let control = buses.own(SystemControl::new(power.clone()));
        buses.at_ports("port 92h", &control, &[(0x92, 1, 0)])?;
        let debug = buses.own(DebugConsole::new(services.debug_output.clone()));
        buses.at_ports("debug console", &debug, &[(layout::DEBUG_CONSOLE, 1, 0)])?;
        if config.debug_exit {
            let exit = buses.own(DebugExit::new(power.clone()));
            buses.at_ports("debug exit", &exit, &[(layout::DEBUG_EXIT, 4, 0)])?;
        }

        let sci = board.isa(gsi::SCI as u8);
        let pm = buses.own(AcpiPm::new(clock, sci, power.clone(), TimerWidth::Bits32, AcpiMode::Always));
        buses.at_ports("APM ports", &pm, &[(0xb2, 2, AcpiPm::APM)])?;
        let intx_ioapic = core::array::from_fn(|pirq| board.gsi(16 + pirq as u32));
        let intx = IntxRouter::new(intx_ioapic, core::array::from_fn(|irq| board.pic_only(irq as u8)));
        let pci = Arc::new(Mutex::new(PciBus::new()));
        let (mch_at, lpc_at) = (DevFn::new(0, 0), DevFn::new(31, 0));
        {
            let mut bus = pci.lock();
            let mch = bus.insert(mch_at, Arc::new(Mutex::new(Mch::new(SetUp::Done))));
            let lpc = bus.insert(lpc_at, Arc::new(Mutex::new(Lpc::new(SetUp::Done, intx))));
            mch.and(lpc).map_err(|_| BuildError::Claim("chipset", ClaimError::Overlap))?;
        }
        let config_ports = buses.own(ConfigPorts::new(pci.clone(), power.clone()));
        buses.at_ports("PCI configuration", &config_ports, &[(0xcf8, ConfigPorts::PORTS, 0)])?;
        let ecam = buses.own(Ecam::new(pci.clone()));
        let chipset = buses.own(ChipsetConfiguration::new());
        let movable = alloc::vec![
            Movable { at: mch_at, id: WindowId::Chipset(0), slot: ecam },
            Movable { at: lpc_at, id: WindowId::Chipset(0), slot: pm },
            Movable { at: lpc_at, id: WindowId::Chipset(1), slot: chipset },
        ];

        let hyperv_config = config.hyperv.map(|signature| HypervConfig {
            signature,
            tsc_hz: facts.tsc_hz,
            apic_hz: TIMER_HERTZ,
            invariant_tsc: facts.allowed.invariant_tsc,
            vcpus: config.vcpus,
        });
        let cpuid = cpuid_table(facts, &config, 0, hyperv_config.as_ref());
        let pci_changes = pci.lock().changes_flag();
        let machine = Machine {
            policy: ControlPolicy::new(&cpuid),
            paging_limits: PagingLimits {
                physical_address_bits: cpuid.physical_address_bits() as u8,
                gigabyte_pages: cpuid.has(0x8000_0001, |answer| answer.edx, 1 << 26),
            },
            config,
            ram,
            power,
            pic,
            external,
            ports: buses.ports,
            memory: buses.memory,
            devices: buses.devices,
            deadline: AtomicU64::new(NEVER),
            deadline_changed: AtomicBool::new(true),
            console,
            partition: hyperv_config.map(|config| Mutex::new(Partition::new(config))),
            hyperv_config,
            apics,
            eoi: Arc::new(IoApicEoi(ioapic)),
            mailboxes,
            services,
            tsc: TscLine::new(facts.tsc_hz),
            pci,
            pci_changes,
            movable,
        };
        machine.move_windows();
        Ok(machine)
    }

    /// Puts what PCI functions decode where the guest wants it now. A window over something that is there already stays
    /// unreachable until either moves: the open bus answers there before, and the older device after.
    #[cold]
    pub(crate) fn move_windows(&self) {
        let mut pci = self.pci.lock();
        pci.drain_changes(|change| {
            let (at, id, window, is_mapped) = match change {
                BarChange::Mapped { at, id, window } => (at, id, window, true),
                BarChange::Unmapped { at, id, window } => (at, id, window, false),
            };
            let Some(movable) = self.movable.iter().find(|movable| movable.at == at && movable.id == id) else {
                return;
            };
            let bus = match window.space {
                AddressSpace::Io => &self.ports,
                AddressSpace::Memory => &self.memory,
            };
            if is_mapped {
                if let Err(error) = bus.place(window.base, window.size, &movable.slot) {
                    log::debug!("PCI window of {at} at {:#x} is hidden: {error}", window.base);
                }
            } else {
                bus.withdraw(window.base, &movable.slot);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicUsize;
    use devices::{InterruptMessage, MessageSink};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl MessageSink for Count {
        fn deliver(&self, _message: &InterruptMessage) -> bool {
            self.0.fetch_add(1, Ordering::SeqCst);
            true
        }
    }

    #[test]
    fn a_shared_pin_stays_asserted_until_its_last_wire_is_released() {
        const LEVEL_VECTOR_40: u32 = 1 << 15 | 0x40;
        let messages = Arc::new(Count::default());
        let ioapic = Arc::new(Mutex::new(IoApic::new(messages.clone())));
        let pins = Pins::new(ioapic.clone());
        let (one, other) = (pins.wire(16), pins.wire(16));
        for (register, value) in [(0x00, 0x10 + 2 * 16), (0x10, LEVEL_VECTOR_40)] {
            ioapic.lock().write(register, &value.to_le_bytes());
        }
        one.set(true);
        other.set(true);
        one.set(false);
        assert_eq!(messages.0.load(Ordering::SeqCst), 1);
        ioapic.lock().end_of_interrupt(0x40);
        assert_eq!(messages.0.load(Ordering::SeqCst), 2, "the other wire still asserts the pin");
        other.set(false);
        ioapic.lock().end_of_interrupt(0x40);
        assert_eq!(messages.0.load(Ordering::SeqCst), 2);
    }
}
