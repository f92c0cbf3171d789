use super::*;
use crate::fakes::{RecordedLine, RecordedPower};
use crate::{Device, IrqLine, PowerEvent};
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

const MCH_AT: DevFn = DevFn::new(0, 0);
const LPC_AT: DevFn = DevFn::new(31, 0);
const CARD_AT: DevFn = DevFn::new(3, 0);

struct Card {
    config: ConfigSpace,
}

impl Card {
    fn new() -> Card {
        let identity =
            Identity { vendor: 0x1234, device: 0x5678, class: 0x01_0601, revision: 9, subsystem: (0xaaaa, 0xbbbb) };
        let mut config = ConfigSpace::new(ConfigSize::Extended, identity);
        config.add_bar(0, BarKind::Memory32, 0x1000);
        config.add_bar(1, BarKind::Io, 0x20);
        config.add_bar(2, BarKind::Memory64Prefetchable, 0x1_0000_0000);
        config.add_rom(0x1_0000);
        config.preset_interrupt_pin(1);
        Card { config }
    }
}

impl Function for Card {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
}

struct Board {
    bus: Arc<Mutex<PciBus>>,
    ports: ConfigPorts,
    ecam: Ecam,
    power: Arc<RecordedPower>,
    router: Arc<IntxRouter>,
    gsi: Vec<Arc<RecordedLine>>,
    isa: Vec<Arc<RecordedLine>>,
}

fn lines<const N: usize>() -> (Vec<Arc<RecordedLine>>, [Arc<dyn IrqLine>; N]) {
    let recorded: Vec<_> = (0..N).map(|_| RecordedLine::new()).collect();
    let wires = core::array::from_fn(|index| recorded[index].clone() as Arc<dyn IrqLine>);
    (recorded, wires)
}

impl Board {
    fn new(set_up: SetUp) -> Board {
        let ((gsi, gsi_wires), (isa, isa_wires)) = (lines(), lines());
        let router = IntxRouter::new(gsi_wires, isa_wires);
        let mut bus = PciBus::new();
        bus.insert(MCH_AT, Arc::new(Mutex::new(Mch::new(set_up)))).unwrap();
        bus.insert(LPC_AT, Arc::new(Mutex::new(Lpc::new(set_up, router.clone())))).unwrap();
        bus.insert(CARD_AT, Arc::new(Mutex::new(Card::new()))).unwrap();
        let bus = Arc::new(Mutex::new(bus));
        let power = RecordedPower::new();
        let ports = ConfigPorts::new(bus.clone(), power.clone());
        Board { ecam: Ecam::new(bus.clone()), bus, ports, power, router, gsi, isa }
    }

    fn select(&mut self, at: DevFn, register: u32) {
        let address = 1 << 31 | u32::from(at.device()) << 11 | u32::from(at.function()) << 8 | register & 0xfc;
        self.ports.write(0, &address.to_le_bytes());
    }
    fn read(&mut self, at: DevFn, register: u32) -> u32 {
        self.select(at, register);
        let mut data = [0; 4];
        self.ports.read(4, &mut data);
        u32::from_le_bytes(data)
    }
    fn write(&mut self, at: DevFn, register: u32, value: u32) {
        self.select(at, register);
        self.ports.write(4, &value.to_le_bytes());
    }
    fn write8(&mut self, at: DevFn, register: u32, value: u8) {
        self.select(at, register);
        self.ports.write(4 + u64::from(register & 3), &[value]);
    }
    fn changes(&mut self) -> Vec<BarChange> {
        let mut all = vec![];
        self.bus.lock().drain_changes(|change| all.push(change));
        all
    }
}

#[test]
fn the_chipset_shows_q35_identities() {
    let mut board = Board::new(SetUp::ByFirmware);
    assert_eq!(board.read(MCH_AT, 0), 0x29c0_8086);
    assert_eq!(board.read(LPC_AT, 0), 0x2918_8086);
    assert_eq!(board.read(MCH_AT, 8) >> 8, 0x06_0000);
    assert_eq!(board.read(LPC_AT, 8) >> 8, 0x06_0100);
    assert_eq!(board.read(LPC_AT, 0x0c) >> 16 & 0xff, 0x80, "the LPC slot has several functions");
}

#[test]
fn functions_that_are_not_there_read_all_ones_and_take_writes_silently() {
    let mut board = Board::new(SetUp::ByFirmware);
    board.write(DevFn::new(9, 2), 4, 7);
    assert_eq!(board.read(DevFn::new(9, 2), 0), !0);
    board.ports.write(0, &0x8001_0000u32.to_le_bytes());
    let mut data = [0; 4];
    board.ports.read(4, &mut data);
    assert_eq!(data, [0xff; 4], "bus 1 does not exist");
    board.ecam.read(1 << 20, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn mechanism_one_is_probed_as_linux_does() {
    let mut board = Board::new(SetUp::ByFirmware);
    board.ports.write(3, &[0x01]);
    board.ports.write(0, &0x8000_0000u32.to_le_bytes());
    let mut data = [0; 4];
    board.ports.read(0, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_0000);
    board.ports.write(0, &0xffff_ffffu32.to_le_bytes());
    board.ports.read(0, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x80ff_fffc);
}

#[test]
fn a_disabled_address_reads_all_ones() {
    let mut board = Board::new(SetUp::ByFirmware);
    board.ports.write(0, &[0; 4]);
    let mut data = [0; 4];
    board.ports.read(4, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn bytes_and_words_of_the_data_port_reach_their_register() {
    let mut board = Board::new(SetUp::ByFirmware);
    board.select(CARD_AT, 0);
    let mut word = [0; 2];
    board.ports.read(6, &mut word);
    assert_eq!(word, [0x78, 0x56]);
    let mut byte = [0];
    board.ports.read(5, &mut byte);
    assert_eq!(byte, [0x12]);
    let mut beyond = [0; 2];
    board.ports.read(7, &mut beyond);
    assert_eq!(beyond, [0xff; 2], "out of the double word");
}

#[test]
fn the_reset_control_register_resets_on_its_trigger_bit() {
    let mut board = Board::new(SetUp::ByFirmware);
    board.ports.write(1, &[0x02]);
    assert!(board.power.events().is_empty());
    let mut byte = [0];
    board.ports.read(1, &mut byte);
    assert_eq!(byte, [0x02]);
    board.ports.write(1, &[0x06]);
    assert_eq!(board.power.events(), [PowerEvent::Reset]);
    board.ports.write(0, &0x8000_0600u32.to_le_bytes());
    assert_eq!(board.power.events().len(), 1, "a double word there is an address");
}

#[test]
fn ecam_and_ports_see_the_same_registers() {
    let mut board = Board::new(SetUp::ByFirmware);
    let card = u64::from(CARD_AT.device()) << 15;
    board.ecam.write(card + 0x3c, &[0x0b]);
    assert_eq!(board.read(CARD_AT, 0x3c) & 0xff, 0x0b);
    let mut data = [0; 4];
    board.ecam.read(card + 0x100, &mut data);
    assert_eq!(data, [0; 4], "extended space of an extended function");
    board.ecam.read(0x100, &mut data);
    assert_eq!(data, [0xff; 4], "extended space of a conventional function");
}

#[test]
fn read_only_bits_stay_and_error_bits_clear_by_ones() {
    let mut board = Board::new(SetUp::ByFirmware);
    board.write(CARD_AT, 0, 0);
    assert_eq!(board.read(CARD_AT, 0), 0x5678_1234);
    let card = Arc::new(Mutex::new(Card::new()));
    card.lock().config.store8(7, 0xf9);
    card.lock().config_write(6, &[0, 0x80]);
    assert_eq!(card.lock().config.get8(7), 0x79);
}

#[test]
fn bars_are_sized_by_writing_ones() {
    let mut board = Board::new(SetUp::ByFirmware);
    for register in [0x10, 0x14, 0x18, 0x1c, 0x20, 0x30] {
        board.write(CARD_AT, register, !0);
    }
    let sized = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x30].map(|register| board.read(CARD_AT, register));
    assert_eq!(sized, [0xffff_f000, 0xffff_ffe1, 0x0000_000c, 0xffff_ffff, 0, 0xffff_0001]);
}

#[test]
fn a_bar_is_mapped_when_decoding_is_on_and_moves_with_its_register() {
    let mut board = Board::new(SetUp::ByFirmware);
    board.write(CARD_AT, 0x10, 0xfeb0_0000);
    board.write(CARD_AT, 0x14, 0xc000);
    assert_eq!(board.changes(), []);
    board.write(CARD_AT, 4, 0x3);
    let memory = |base| Window { space: AddressSpace::Memory, base, size: 0x1000 };
    let io = Window { space: AddressSpace::Io, base: 0xc000, size: 0x20 };
    assert!(board.bus.lock().changes_flag().load(Ordering::Relaxed));
    assert_eq!(
        board.changes(),
        [
            BarChange::Mapped { at: CARD_AT, id: WindowId::Bar(0), window: memory(0xfeb0_0000) },
            BarChange::Mapped { at: CARD_AT, id: WindowId::Bar(1), window: io }
        ]
    );
    assert_eq!(board.changes(), []);
    board.write(CARD_AT, 0x10, 0xfec8_0000);
    assert_eq!(
        board.changes(),
        [
            BarChange::Unmapped { at: CARD_AT, id: WindowId::Bar(0), window: memory(0xfeb0_0000) },
            BarChange::Mapped { at: CARD_AT, id: WindowId::Bar(0), window: memory(0xfec8_0000) }
        ]
    );
    board.ports.reset();
    assert_eq!(board.changes().len(), 2, "reset unmaps both");
}

#[test]
fn a_bar_that_is_being_sized_decodes_nothing() {
    let mut board = Board::new(SetUp::ByFirmware);
    board.write(CARD_AT, 4, 0x3);
    board.write(CARD_AT, 0x10, !0);
    board.write(CARD_AT, 0x14, !0);
    board.write(CARD_AT, 0x18, !0);
    board.write(CARD_AT, 0x1c, !0);
    board.write(CARD_AT, 0x30, !0);
    assert_eq!(board.changes(), []);
    board.write(CARD_AT, 0x18, 0);
    board.write(CARD_AT, 0x1c, 0x10);
    let window = Window { space: AddressSpace::Memory, base: 0x10_0000_0000, size: 0x1_0000_0000 };
    assert_eq!(board.changes(), [BarChange::Mapped { at: CARD_AT, id: WindowId::Bar(2), window }]);
}

#[test]
fn capabilities_form_a_list() {
    let mut card = Card::new();
    let first = card.config.add_capability(0x05, &[0; 8], &[0x71]);
    let second = card.config.add_capability(0x10, &[2, 0, 0], &[]);
    assert_eq!((first, second), (0x40, 0x4c));
    assert_eq!(card.config.get8(0x34), 0x40);
    assert_eq!(card.config.get16(0x06) & 0x10, 0x10);
    assert_eq!((card.config.get16(0x40), card.config.get16(0x4c)), (0x4c05, 0x0010));
    card.config.write(0x42, &[0xff, 0xff]);
    assert_eq!(card.config.get16(0x42), 0x71);
    let aer = card.config.add_extended_capability(1, 2, &[0; 12], &[]);
    let serial = card.config.add_extended_capability(3, 1, &[0; 8], &[]);
    assert_eq!((aer, serial), (0x100, 0x110));
    assert_eq!((card.config.get32(0x100), card.config.get32(0x110)), (0x1102_0001, 0x0001_0003));
}

#[test]
fn two_functions_at_one_place_are_refused_and_company_is_shown() {
    let mut bus = PciBus::new();
    bus.insert(DevFn::new(4, 1), Arc::new(Mutex::new(Card::new()))).unwrap();
    let first = Arc::new(Mutex::new(Card::new()));
    bus.insert(DevFn::new(4, 0), first.clone()).unwrap();
    assert_eq!(first.lock().config.get8(0x0e), 0x80);
    assert_eq!(bus.insert(DevFn::new(4, 1), first).err(), Some(Occupied(DevFn::new(4, 1))));
}

#[test]
fn firmware_turns_the_ecam_window_on_and_can_move_it() {
    let mut board = Board::new(SetUp::ByFirmware);
    assert_eq!(board.changes(), []);
    board.write(MCH_AT, 0x64, 0);
    board.write(MCH_AT, 0x60, 0xe000_0001);
    let ecam = |base, size| Window { space: AddressSpace::Memory, base, size };
    let id = WindowId::Chipset(0);
    assert_eq!(board.changes(), [BarChange::Mapped { at: MCH_AT, id, window: ecam(0xe000_0000, 0x1000_0000) }]);
    board.write(MCH_AT, 0x60, 0xe400_0005);
    assert_eq!(
        board.changes(),
        [
            BarChange::Unmapped { at: MCH_AT, id, window: ecam(0xe000_0000, 0x1000_0000) },
            BarChange::Mapped { at: MCH_AT, id, window: ecam(0xe400_0000, 0x400_0000) }
        ]
    );
}

#[test]
fn a_machine_without_firmware_starts_with_the_windows_on() {
    let mut board = Board::new(SetUp::Done);
    let expected = [
        (MCH_AT, 0, Window { space: AddressSpace::Memory, base: 0xb000_0000, size: 0x1000_0000 }),
        (LPC_AT, 0, Window { space: AddressSpace::Io, base: 0x600, size: 128 }),
        (LPC_AT, 1, Window { space: AddressSpace::Memory, base: 0xfed1_c000, size: 0x4000 }),
    ]
    .map(|(at, number, window)| BarChange::Mapped { at, id: WindowId::Chipset(number), window });
    assert_eq!(board.changes(), expected);
    board.write(LPC_AT, 0x44, 0);
    assert_eq!(board.changes().len(), 1);
    board.ports.reset();
    assert_eq!(board.changes().len(), 1, "reset sets it up again");
}

#[test]
fn firmware_places_the_power_management_block() {
    let mut board = Board::new(SetUp::ByFirmware);
    assert_eq!(board.read(LPC_AT, 0x40), 1);
    board.write(LPC_AT, 0x40, 0x0601);
    board.write8(LPC_AT, 0x44, 0x80);
    let window = Window { space: AddressSpace::Io, base: 0x600, size: 128 };
    assert_eq!(board.changes(), [BarChange::Mapped { at: LPC_AT, id: WindowId::Chipset(0), window }]);
}

#[test]
fn the_shadow_follows_the_attribute_maps() {
    let mut mch = Mch::new(SetUp::ByFirmware);
    assert_eq!(mch.shadow(0xf0000), Some((false, false)));
    mch.config_write(0x90, &[0x30]);
    mch.config_write(0x92, &[0x21]);
    assert_eq!(mch.shadow(0xfffff), Some((true, true)));
    assert_eq!(mch.shadow(0xc8000), Some((true, false)), "lower half of PAM2");
    assert_eq!(mch.shadow(0xcc000), Some((false, true)), "upper half of PAM2");
    assert_eq!(mch.shadow(0xbffff), None);
    assert_eq!(mch.shadow(0x100000), None);
}

#[test]
fn smram_locks() {
    let mut mch = Mch::new(SetUp::ByFirmware);
    mch.config_write(0x9d, &[0x4a]);
    assert_eq!(mch.config().get8(0x9d), 0x4a);
    mch.config_write(0x9c, &[0, 0x1a, 0, 0]);
    mch.config_write(0x9d, &[0x00]);
    assert_eq!(mch.config().get8(0x9d), 0x1a);
}

#[test]
fn pins_swizzle_as_on_q35() {
    assert_eq!(Pirq::of(2, 1).number(), 6);
    assert_eq!(Pirq::of(3, 4).number(), 6);
    assert_eq!(Pirq::of(31, 1).number(), 0);
    assert_eq!(Pirq::of(31, 2).gsi(), 17);
    assert_eq!(Pirq::of(1, 1).gsi(), 21);
}

#[test]
fn shared_wires_are_joined_and_follow_the_route() {
    let mut board = Board::new(SetUp::Done);
    let (first, second) = (board.router.line(1, 1), board.router.line(5, 1));
    first.set(true);
    second.set(true);
    assert!(board.gsi[5].is_high() && board.isa[10].is_high(), "PIRQF");
    first.set(false);
    assert!(board.gsi[5].is_high());
    board.write8(LPC_AT, 0x69, 0x0b);
    assert!(!board.isa[10].is_high() && board.isa[11].is_high(), "the level moves with the route");
    board.write8(LPC_AT, 0x69, 0x80);
    assert!(!board.isa[11].is_high() && board.gsi[5].is_high(), "off for the 8259s only");
    second.set(false);
    assert!(!board.gsi[5].is_high());
}

#[test]
fn reserved_routes_go_nowhere() {
    for route in [0, 1, 2, 8, 13, 0x8a] {
        assert_eq!(isa_irq(route), None);
    }
    assert_eq!(isa_irq(0x0b), Some(11));
}

#[test]
fn the_chipset_registers_say_that_there_is_no_watchdog() {
    let mut registers = ChipsetConfiguration::new();
    let mut data = [0; 4];
    registers.read(0x3410, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x20);
    registers.read(0x3140, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x3210_3210);
    registers.read(0x4000, &mut data);
    assert_eq!(data, [0xff; 4]);
}

proptest! {
    #[test]
    fn any_access_is_harmless(
        accesses in proptest::collection::vec((0..3u8, any::<bool>(), prop_oneof![0u64..9, 0u64..0x10_0000, any::<u64>()],
            proptest::collection::vec(prop_oneof![Just(0x80u8), any::<u8>()], 1..9)), 0..200),
    ) {
        let mut board = Board::new(SetUp::ByFirmware);
        let mut registers = ChipsetConfiguration::new();
        for (way, write, offset, mut bytes) in accesses {
            let device: &mut dyn Device = match way {
                0 => &mut board.ports,
                1 => &mut board.ecam,
                _ => &mut registers,
            };
            if write { device.write(offset, &bytes) } else { device.read(offset, &mut bytes) }
            // What is told is consistent: nothing is mapped twice, nothing unmapped that was not there.
            board.changes();
        }
    }

    #[test]
    fn told_windows_always_match_the_registers(
        writes in proptest::collection::vec((prop_oneof![Just(0x04u32), Just(0x10), Just(0x14), Just(0x18), Just(0x1c), Just(0x30)],
            prop_oneof![Just(!0u32), Just(7), Just(0), any::<u32>()]), 0..60),
    ) {
        let mut board = Board::new(SetUp::ByFirmware);
        let mut mapped: Vec<(WindowId, Window)> = vec![];
        for (register, value) in writes {
            board.write(CARD_AT, register, value);
            for change in board.changes() {
                match change {
                    BarChange::Mapped { id, window, .. } => {
                        prop_assert!(mapped.iter().all(|(other, _)| *other != id));
                        prop_assert!(window.base != 0 && window.base.checked_add(window.size).is_some());
                        mapped.push((id, window));
                    }
                    BarChange::Unmapped { id, window, .. } => {
                        let before = mapped.len();
                        mapped.retain(|entry| *entry != (id, window));
                        prop_assert_eq!(mapped.len() + 1, before);
                    }
                }
            }
        }
    }
}
