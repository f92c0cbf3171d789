//! One target for each device model: how it is made, and what else happens to it than a guest's accesses.

use crate::input::Input;
use crate::registers::Subject;
use crate::wires::World;
use devices::acpi_pm::{AcpiMode, AcpiPm, TimerWidth};
use devices::debug_exit::DebugExit;
use devices::debugcon::DebugConsole;
use devices::hpet::{Hpet, HpetWires};
use devices::i8042::{I8042, KeyCode, KeyState, MouseButtons, MouseReport, SystemControl};
use devices::ioapic::IoApic;
use devices::lapic::{ApicBus, ApicFeatures, ApicPort, ApicWires, LocalApic, Role};
use devices::pci::{
    BarKind, ChipsetConfiguration, ConfigPorts, ConfigSize, ConfigSpace, DevFn, Ecam, Function, Identity, IntxRouter,
    Lpc, Mch, PciBus, SetUp,
};
use devices::pic::Pic;
use devices::pit::Pit;
use devices::rtc::{Installed, Rtc, WallTime};
use devices::uart::Uart;
use devices::{DeliveryMode, DestinationMode, Device, InterruptMessage, IrqLine, MessageSink, Nanos, TriggerMode};
use memory::RegisterPage;
use spin::Mutex;
use std::sync::Arc;

/// For devices to which nothing else happens.
fn no_event<D>(_device: &mut D, _script: &mut Input<'_>) {}

/// The 16550 UART.
pub fn uart(script: &[u8]) {
    let world = World::new();
    let device = Uart::new(world.clone(), world.clone(), world.clone());
    world.offer(40);
    let event = |uart: &mut Uart, script: &mut Input<'_>| match script.flag() {
        true => uart.receive_break(),
        false => uart.expire(Nanos(0)),
    };
    Subject { device, world, registers: Uart::PORTS, event }.play(script);
}

/// The 8254 with port 61h.
pub fn pit(script: &[u8]) {
    let world = World::new();
    let device = Pit::new(world.clone(), world.clone());
    Subject { device, world, registers: 5, event: no_event }.play(script);
}

/// The MC146818 and its RAM.
pub fn rtc(script: &[u8]) {
    let world = World::new();
    let installed = Installed { ram_below_4g: 1 << 30, ram_above_4g: 1 << 30, processors: 2 };
    let wall = WallTime { seconds: 951_782_399, nanos: 999_999_000 };
    let device = Rtc::new(world.clone(), world.clone(), wall, installed);
    let event = |rtc: &mut Rtc, script: &mut Input<'_>| {
        // What the host's clock can say: times up to the year 9999.
        rtc.set_time(WallTime { seconds: script.value() % 253_402_300_800, nanos: script.u32() % 1_000_000_000 });
    };
    Subject { device, world, registers: Rtc::PORTS, event }.play(script);
}

/// The pair of 8259A.
pub fn pic(script: &[u8]) {
    let world = World::new();
    let device = Pic::new(world.clone());
    let event = |pic: &mut Pic, script: &mut Input<'_>| match script.u8() {
        byte @ 0..192 => pic.set_irq(byte & 15, byte & 16 != 0),
        _ if pic.has_interrupt() => {
            pic.acknowledge();
        }
        _ => {
            assert!(matches!(pic.acknowledge() & 7, 7), "an acknowledge without a request is spurious: input 7");
        }
    };
    Subject { device, world, registers: 6, event }.play(script);
}

/// The IOAPIC.
pub fn ioapic(script: &[u8]) {
    let world = World::new();
    let device = IoApic::new(world.clone());
    let event = |ioapic: &mut IoApic, script: &mut Input<'_>| match script.u8() {
        byte @ 0..128 => ioapic.set_pin(u32::from(byte) % 26, byte & 64 != 0),
        byte => ioapic.end_of_interrupt(byte.wrapping_mul(2)),
    };
    Subject { device, world, registers: IoApic::LEN, event }.play(script);
}

/// The high precision event timers.
pub fn hpet(script: &[u8]) {
    let world = World::new();
    let wire = || -> Arc<dyn IrqLine> { world.clone() };
    let wires = HpetWires {
        pins: std::array::from_fn(|_| wire()),
        legacy_irqs: [wire(), wire()],
        legacy: wire(),
        messages: Some(world.clone()),
    };
    let device = Hpet::new(world.clone(), wires);
    Subject { device, world: world.clone(), registers: Hpet::LEN, event: no_event }.play(script);
}

/// Keyboard controller, keyboard and mouse.
pub fn i8042(script: &[u8]) {
    let world = World::new();
    let device = I8042::new(world.clone(), world.clone(), world.clone());
    let event = |controller: &mut I8042, script: &mut Input<'_>| match script.u8() & 3 {
        0 => {
            let key = script.one_of(&[KeyCode::Q, KeyCode::Pause, KeyCode::PrintScreen, KeyCode::F7]);
            controller.key(key, if script.flag() { KeyState::Pressed } else { KeyState::Released });
        }
        1 => {
            let bytes = script.array::<8>();
            controller.scan_codes(&bytes[..1 + script.below(8)]);
        }
        _ => controller.mouse(MouseReport {
            right: script.value() as i32,
            up: script.value() as i32,
            wheel: script.value() as i32,
            buttons: MouseButtons::from_bits_truncate(script.u8()),
        }),
    };
    Subject { device, world, registers: 5, event }.play(script);
}

/// The ACPI power management block.
pub fn acpi_pm(script: &[u8]) {
    let world = World::new();
    let (width, mode) = match script.first().is_some_and(|byte| byte & 1 != 0) {
        true => (TimerWidth::Bits24, AcpiMode::ByCommand),
        false => (TimerWidth::Bits32, AcpiMode::Always),
    };
    let device = AcpiPm::new(world.clone(), world.clone(), world.clone(), width, mode);
    let event = |pm: &mut AcpiPm, script: &mut Input<'_>| match script.u8() {
        number @ 0..64 => pm.raise_event(number),
        _ => pm.press_power_button(),
    };
    Subject { device, world, registers: AcpiPm::APM + 2, event }.play(script.get(1..).unwrap_or_default());
}

/// The ports of one register: debug console, debug exit, port 92h; and the chipset's read-only block.
struct Ports {
    console: DebugConsole,
    exit: DebugExit,
    control: SystemControl,
    chipset: ChipsetConfiguration,
}

impl Device for Ports {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match offset & 3 {
            0 => self.console.read(offset >> 2, data),
            1 => self.exit.read(offset >> 2, data),
            2 => self.control.read(offset >> 2, data),
            _ => self.chipset.read(offset >> 2, data),
        }
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        match offset & 3 {
            0 => self.console.write(offset >> 2, data),
            1 => self.exit.write(offset >> 2, data),
            2 => self.control.write(offset >> 2, data),
            _ => self.chipset.write(offset >> 2, data),
        }
    }
    fn reset(&mut self) {
        self.console.reset();
        self.exit.reset();
        self.control.reset();
        self.chipset.reset();
    }
}

/// The single ports.
pub fn ports(script: &[u8]) {
    let world = World::new();
    let device = Ports {
        console: DebugConsole::new(world.clone()),
        exit: DebugExit::new(world.clone()),
        control: SystemControl::new(world.clone()),
        chipset: ChipsetConfiguration::new(),
    };
    Subject { device, world, registers: 4 * 0x4000, event: no_event }.play(script);
}

/// Two local APICs on their bus, of which the guest's accesses reach the first: the register page at 0, MSRs from 1000h.
struct Apics {
    own: LocalApic,
    other: LocalApic,
    bus: Arc<ApicBus>,
}

const MSRS: u64 = 0x1000;
/// IA32_APIC_BASE, which has no place among the x2APIC's registers.
const BASE: u64 = 0x100;
/// IA32_TSC_DEADLINE, likewise.
const TSC_DEADLINE: u64 = 0x101;

impl Device for Apics {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match offset {
            0..MSRS => self.own.read(offset as usize, data),
            _ => match offset - MSRS {
                BASE => assert!(self.own.apic_base() & 0x2ff == 0, "reserved bits of IA32_APIC_BASE read as zero"),
                TSC_DEADLINE => {
                    self.own.tsc_deadline();
                }
                msr => {
                    let _ = self.own.read_msr(0x800 + (msr as u32 & 0xff));
                }
            },
        }
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(value);
        match offset {
            0..MSRS => self.own.write(offset as usize, data),
            _ => match offset - MSRS {
                BASE => {
                    let _ = self.own.set_apic_base(value);
                }
                TSC_DEADLINE => self.own.set_tsc_deadline(value),
                msr => {
                    let _ = self.own.write_msr(0x800 + (msr as u32 & 0xff), value);
                }
            },
        }
    }
    fn deadline(&self) -> Option<Nanos> {
        self.own.deadline()
    }
    fn expire(&mut self, now: Nanos) {
        self.own.expire(now);
    }
    fn reset(&mut self) {
        self.own.reset();
        self.other.reset();
    }
}

/// What others do to a local APIC, and what the machine does with it between exits.
fn apic_event(apics: &mut Apics, script: &mut Input<'_>) {
    match script.u8() & 15 {
        0..=3 => {
            if let Some(vector) = apics.own.highest_pending() {
                apics.own.acknowledge(vector);
                assert_ne!(apics.own.highest_pending(), Some(vector), "an acknowledged vector is not pending");
            }
        }
        4 => apics.own.eoi(),
        5 => apics.own.end_of_level(script.u8()),
        6 => apics.own.init(),
        7 => apics.own.set_task_priority(script.u8()),
        8 => apics.own.tsc_changed(),
        9 => apics.bus.pulse_lint1(),
        10 => {
            apics.bus.ports()[0].set_lint0(script.flag());
            if apics.own.accepts_ext_int() {
                apics.own.ext_int_acknowledged();
            }
        }
        11 => {
            let value = script.u32();
            let register = script.u16();
            apics.other.write(usize::from(register), &value.to_le_bytes());
        }
        12 => assert!(apics.own.level_vectors()[0] & 0xffff == 0, "vectors 0 to 15 cannot be in service"),
        _ => {
            let Some(delivery) = DeliveryMode::from_bits(script.u8().into()) else { return };
            let flags = script.u8();
            let message = InterruptMessage {
                destination: script.value() as u32,
                destination_mode: if flags & 1 != 0 { DestinationMode::Logical } else { DestinationMode::Physical },
                delivery,
                vector: script.u8(),
                trigger: if flags & 2 != 0 { TriggerMode::Level } else { TriggerMode::Edge },
            };
            apics.bus.deliver(&message);
        }
    }
}

/// The local APIC.
pub fn lapic(script: &[u8]) {
    let world = World::new();
    let choice = script.first().copied().unwrap_or_default();
    let port = |id| ApicPort::new(id, Arc::new(RegisterPage::new()), world.clone());
    let bus = ApicBus::new(vec![port(0), port(1)]);
    let wires = || ApicWires { bus: bus.clone(), eoi: world.clone(), clock: world.clone(), tsc: world.clone() };
    let features = ApicFeatures {
        x2apic: choice & 1 == 0,
        tsc_deadline: choice & 2 != 0,
        eoi_suppression: choice & 4 != 0,
        physical_bits: 40,
    };
    let device = Apics {
        own: LocalApic::new(bus.ports()[0].clone(), wires(), features, Role::Bootstrap),
        other: LocalApic::new(bus.ports()[1].clone(), wires(), features, Role::Application),
        bus: bus.clone(),
    };
    Subject { device, world: world.clone(), registers: MSRS + TSC_DEADLINE + 1, event: apic_event }
        .play(script.get(1..).unwrap_or_default());
}

/// A card with every kind of window, as storage and network cards have them.
struct Card(ConfigSpace);

impl Card {
    fn new() -> Card {
        let identity =
            Identity { vendor: 0x1af4, device: 0x1041, class: 0x02_0000, revision: 1, subsystem: (0x1af4, 0x40) };
        let mut config = ConfigSpace::new(ConfigSize::Extended, identity);
        config.add_bar(0, BarKind::Io, 32);
        config.add_bar(1, BarKind::Memory32, 4096);
        config.add_bar(2, BarKind::Memory64, 1 << 14);
        config.add_bar(4, BarKind::Memory64Prefetchable, 1 << 33);
        config.add_rom(1 << 16);
        config.add_capability(5, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0x71, 0, 0xfc, 0xff, 0xff, 0xff]);
        config.add_extended_capability(3, 1, &[0; 8], &[0xff; 4]);
        config.preset_interrupt_pin(1);
        Card(config)
    }
}

impl Function for Card {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
}

/// Configuration space: the ports at 0, ECAM from 1000h.
struct Configuration {
    ports: ConfigPorts,
    ecam: Ecam,
    bus: Arc<Mutex<PciBus>>,
    intx: Arc<dyn IrqLine>,
}

const ECAM: u64 = 0x1000;

impl Device for Configuration {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match offset.checked_sub(ECAM) {
            Some(offset) => self.ecam.read(spread(offset), data),
            None => self.ports.read(offset & 7, data),
        }
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        match offset.checked_sub(ECAM) {
            Some(offset) => self.ecam.write(spread(offset), data),
            None => self.ports.write(offset & 7, data),
        }
    }
    fn reset(&mut self) {
        self.ports.reset();
        self.ecam.reset();
    }
}

/// Where the functions are: bits 13:12 of an offset choose one of them, or nothing.
fn spread(offset: u64) -> u64 {
    const SLOTS: [u64; 4] = [0, 31 << 3, 2 << 3, 5 << 3];
    offset >> 14 << 20 | SLOTS[(offset >> 12 & 3) as usize] << 12 | offset & 0xfff
}

/// PCI configuration space with the chipset's functions, INTx routing and windows.
pub fn pci(script: &[u8]) {
    let world = World::new();
    let wire = || -> Arc<dyn IrqLine> { world.clone() };
    let router = IntxRouter::new(std::array::from_fn(|_| wire()), std::array::from_fn(|_| wire()));
    let bus = Arc::new(Mutex::new(PciBus::new()));
    {
        let mut bus = bus.lock();
        let mch = bus.insert(DevFn::new(0, 0), Arc::new(Mutex::new(Mch::new(SetUp::Done))));
        let lpc = bus.insert(DevFn::new(31, 0), Arc::new(Mutex::new(Lpc::new(SetUp::Done, router.clone()))));
        let card = bus.insert(DevFn::new(2, 0), Arc::new(Mutex::new(Card::new())));
        assert!(mch.is_ok() && lpc.is_ok() && card.is_ok());
    }
    let intx = router.line(2, 1);
    let device =
        Configuration { ports: ConfigPorts::new(bus.clone(), world.clone()), ecam: Ecam::new(bus.clone()), bus, intx };
    let event = |device: &mut Configuration, script: &mut Input<'_>| match script.u8() & 3 {
        0 => device.intx.set(script.flag()),
        _ => {
            let mut changes = 0;
            device.bus.lock().drain_changes(|_| changes += 1);
            assert!(changes <= 2 * 3 * 9, "each window of each function moves once at most");
        }
    };
    Subject { device, world: world.clone(), registers: ECAM + 0x6000, event }.play(script);
}
