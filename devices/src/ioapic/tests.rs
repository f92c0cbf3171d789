use super::IoApic;
use crate::fakes::RecordedMessages;
use crate::{DeliveryMode, DestinationMode, Device, EoiSink, InterruptMessage, TriggerMode};
use alloc::sync::Arc;
use alloc::vec;
use proptest::prelude::*;
use spin::Mutex;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const LEVEL: u32 = 0x8000;
const MASKED: u32 = 0x1_0000;
const REMOTE_IRR: u32 = 0x4000;
const PENDING: u32 = 0x1000;

struct Board {
    ioapic: IoApic,
    messages: Arc<RecordedMessages>,
}

impl Board {
    fn new() -> Board {
        let messages = RecordedMessages::new();
        Board { ioapic: IoApic::new(messages.clone()), messages }
    }
    fn set(&mut self, index: u8, value: u32) {
        self.ioapic.write(SELECT, &[index]);
        self.ioapic.write(WINDOW, &value.to_le_bytes());
    }
    fn get(&mut self, index: u8) -> u32 {
        let mut data = [0; 4];
        self.ioapic.write(SELECT, &[index]);
        self.ioapic.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }
    fn entry(&mut self, pin: u8, low: u32) {
        self.set(0x10 + 2 * pin, low);
    }
    fn low(&mut self, pin: u8) -> u32 {
        self.get(0x10 + 2 * pin)
    }
    fn sent(&self) -> usize {
        self.messages.taken().len()
    }
}

#[test]
fn reset_state_is_the_datasheets() {
    let mut board = Board::new();
    assert_eq!(board.get(0), 0);
    assert_eq!(board.get(1), 0x0017_0020);
    for index in (0x10..0x40).step_by(2) {
        assert_eq!((board.get(index), board.get(index + 1)), (MASKED, 0));
    }
    assert_eq!(board.get(0x40), 0xffff_ffff, "no such register");
}

#[test]
fn id_and_arbitration_id_are_four_bits() {
    let mut board = Board::new();
    board.set(0, 0xffff_ffff);
    assert_eq!(board.get(0), 0x0f00_0000);
    assert_eq!(board.get(2), 0x0f00_0000);
    board.set(1, 0);
    assert_eq!(board.get(1), 0x0017_0020);
}

#[test]
fn an_entry_becomes_a_message() {
    let mut board = Board::new();
    board.set(0x10 + 2 * 5 + 1, 0xa500_0000);
    board.entry(5, 0x0941);
    board.ioapic.set_pin(5, true);
    let expected = InterruptMessage {
        destination: 0xa5,
        destination_mode: DestinationMode::Logical,
        delivery: DeliveryMode::LowestPriority,
        vector: 0x41,
        trigger: TriggerMode::Edge,
    };
    assert_eq!(board.messages.taken(), [expected]);
    board.entry(6, LEVEL | 0x0042);
    board.ioapic.set_pin(6, true);
    let expected = InterruptMessage {
        destination: 0,
        destination_mode: DestinationMode::Physical,
        delivery: DeliveryMode::Fixed,
        vector: 0x42,
        trigger: TriggerMode::Level,
    };
    assert_eq!(board.messages.taken(), [expected]);
}

#[test]
fn each_edge_sends_once_and_none_is_kept_under_the_mask() {
    let mut board = Board::new();
    board.entry(4, 0x40);
    board.ioapic.set_pin(4, true);
    board.ioapic.set_pin(4, true);
    assert_eq!(board.sent(), 1);
    board.ioapic.set_pin(4, false);
    board.ioapic.set_pin(4, true);
    assert_eq!(board.sent(), 1);
    board.ioapic.set_pin(4, false);
    board.entry(4, MASKED | 0x40);
    board.ioapic.set_pin(4, true);
    board.entry(4, 0x40);
    assert_eq!(board.sent(), 0);
}

#[test]
fn a_level_sends_again_after_each_end_while_it_is_asserted() {
    let mut board = Board::new();
    board.entry(9, LEVEL | 0x51);
    board.ioapic.set_pin(9, true);
    assert_eq!(board.sent(), 1);
    assert_eq!(board.low(9), REMOTE_IRR | LEVEL | 0x51);
    board.ioapic.set_pin(9, false);
    board.ioapic.set_pin(9, true);
    assert_eq!(board.sent(), 0, "not before the end");
    board.ioapic.end_of_interrupt(0x50);
    assert_eq!(board.sent(), 0, "another vector");
    board.ioapic.end_of_interrupt(0x51);
    assert_eq!(board.sent(), 1);
    board.ioapic.set_pin(9, false);
    board.ioapic.end_of_interrupt(0x51);
    assert_eq!(board.sent(), 0);
    assert_eq!(board.low(9), LEVEL | 0x51);
}

#[test]
fn a_level_under_the_mask_sends_when_unmasked() {
    let mut board = Board::new();
    board.entry(9, MASKED | LEVEL | 0x51);
    board.ioapic.set_pin(9, true);
    assert_eq!(board.sent(), 0);
    board.entry(9, LEVEL | 0x51);
    assert_eq!(board.sent(), 1);
    board.entry(9, MASKED | LEVEL | 0x51);
    board.ioapic.end_of_interrupt(0x51);
    assert_eq!(board.sent(), 0);
    assert_eq!(board.low(9), MASKED | LEVEL | 0x51);
}

#[test]
fn pins_that_share_a_vector_end_together() {
    let mut board = Board::new();
    for pin in [16, 17] {
        board.entry(pin, LEVEL | 0x61);
        board.ioapic.set_pin(pin.into(), true);
    }
    assert_eq!(board.sent(), 2);
    board.ioapic.set_pin(16, false);
    board.ioapic.end_of_interrupt(0x61);
    assert_eq!(board.sent(), 1);
    assert_eq!(board.low(16), LEVEL | 0x61);
    assert_eq!(board.low(17), REMOTE_IRR | LEVEL | 0x61);
}

#[test]
fn a_level_that_nobody_accepts_is_pending() {
    let mut board = Board::new();
    board.messages.refuse(true);
    board.entry(9, LEVEL | 0x51);
    board.ioapic.set_pin(9, true);
    assert_eq!(board.low(9), PENDING | LEVEL | 0x51);
    board.messages.refuse(false);
    board.messages.taken();
    board.entry(9, LEVEL | 0x52);
    assert_eq!(board.sent(), 1);
    assert_eq!(board.low(9), REMOTE_IRR | LEVEL | 0x52);
}

#[test]
fn status_bits_are_read_only_and_edge_mode_clears_remote_irr() {
    let mut board = Board::new();
    board.entry(9, !MASKED & !0x700);
    assert_eq!(board.low(9), 0xa8ff);
    board.ioapic.set_pin(9, true);
    board.entry(9, LEVEL | MASKED | 0x51);
    assert_eq!(board.low(9), REMOTE_IRR | LEVEL | MASKED | 0x51);
    board.entry(9, MASKED | 0x51);
    assert_eq!(board.low(9), MASKED | 0x51);
    board.messages.taken();
    board.entry(9, LEVEL | 0x51);
    assert_eq!(board.sent(), 1);
}

#[test]
fn nmi_init_and_ext_int_are_edges_and_reserved_modes_are_nothing() {
    let mut board = Board::new();
    for (mode, delivery) in [(4, DeliveryMode::Nmi), (5, DeliveryMode::Init), (7, DeliveryMode::ExtInt)] {
        board.entry(0, LEVEL | mode << 8);
        board.ioapic.set_pin(0, true);
        let sent = board.messages.taken();
        assert_eq!(sent.len(), 1);
        assert_eq!((sent[0].delivery, sent[0].trigger), (delivery, TriggerMode::Edge));
        assert_eq!(board.low(0) & (REMOTE_IRR | PENDING), 0);
        board.ioapic.set_pin(0, false);
    }
    for mode in [3, 6] {
        board.entry(0, mode << 8);
        board.ioapic.set_pin(0, true);
        board.ioapic.set_pin(0, false);
    }
    assert_eq!(board.sent(), 0);
}

#[test]
fn the_eoi_register_and_the_broadcast_end_alike() {
    let mut board = Board::new();
    board.entry(9, LEVEL | 0x51);
    board.ioapic.set_pin(9, true);
    board.ioapic.set_pin(9, false);
    board.ioapic.write(EOI, &0xffff_ff51u32.to_le_bytes());
    assert_eq!(board.low(9), LEVEL | 0x51);
    board.ioapic.set_pin(9, true);
    board.ioapic.set_pin(9, false);
    let shared = Mutex::new(board.ioapic);
    shared.eoi(0x51);
    board.ioapic = shared.into_inner();
    assert_eq!(board.low(9), LEVEL | 0x51);
}

#[test]
fn the_window_is_32_bits_and_the_index_8() {
    let mut board = Board::new();
    board.ioapic.write(SELECT, &[0x12, 0xff, 0xff, 0xff]);
    board.ioapic.write(WINDOW, &[0x41]);
    board.ioapic.write(WINDOW, &[0x41, 0]);
    board.ioapic.write(WINDOW + 1, &[0x41, 0, 0, 0]);
    assert_eq!(board.low(1), MASKED);
    let mut low = [0; 2];
    board.ioapic.read(WINDOW, &mut low);
    assert_eq!(low, [0, 0]);
    board.entry(1, 0x2041);
    board.ioapic.read(WINDOW, &mut low);
    assert_eq!(low, [0x41, 0x20]);
    let mut wide = [0xee; 8];
    board.ioapic.read(SELECT, &mut wide);
    assert_eq!(wide, [0x12, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn reset_keeps_what_drives_the_pins() {
    let mut board = Board::new();
    board.ioapic.set_pin(9, true);
    board.set(0, 0x0100_0000);
    board.ioapic.reset();
    assert_eq!(board.get(0), 0);
    board.entry(9, LEVEL | 0x51);
    assert_eq!(board.sent(), 1);
}

#[test]
fn a_pin_that_is_not_there_is_not_connected() {
    let mut board = Board::new();
    board.ioapic.set_pin(24, true);
    board.ioapic.set_pin(u32::MAX, true);
    assert_eq!(board.sent(), 0);
}

proptest! {
    /// Whatever is written: no panic, and remote IRR stands exactly for unmasked or masked level entries that were accepted.
    #[test]
    fn hostile_accesses_do_no_harm(
        acts in proptest::collection::vec((0u8..5, prop_oneof![Just(0u64), Just(0x10), Just(0x40), any::<u64>()],
            proptest::collection::vec(any::<u8>(), 0..9), any::<u8>()), 0..200),
    ) {
        let mut board = Board::new();
        for (what, offset, data, number) in acts {
            match what {
                0 => board.ioapic.set_pin((number >> 1).into(), number & 1 != 0),
                1 => board.ioapic.read(offset, &mut vec![0; data.len()]),
                2 => board.ioapic.end_of_interrupt(number),
                3 => board.ioapic.write(offset, &data),
                _ => board.set(0x10 + number % 0x30, data.first().map_or(0, |&b| u32::from(b) << 9 | 0x51)),
            }
            for pin in 0..24 {
                let low = board.low(pin);
                prop_assert!(low & REMOTE_IRR == 0 || low & LEVEL != 0, "pin {}: {:#x}", pin, low);
            }
        }
    }
}
