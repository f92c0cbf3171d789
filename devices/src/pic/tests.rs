use super::Pic;
use crate::Device;
use crate::fakes::RecordedLine;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

const CMD1: u64 = 0;
const DATA1: u64 = 1;
const CMD2: u64 = 2;
const DATA2: u64 = 3;
const ELCR1: u64 = 4;
const ELCR2: u64 = 5;

const EOI: u8 = 0x20;
const SPECIFIC_EOI: u8 = 0x60;
const READ_IRR: u8 = 0x0a;
const READ_ISR: u8 = 0x0b;
const POLL: u8 = 0x0c;

struct Board {
    pic: Pic,
    intr: Arc<RecordedLine>,
}

impl Board {
    fn silent() -> Board {
        let intr = RecordedLine::new();
        Board { pic: Pic::new(intr.clone()), intr }
    }
    /// As Linux sets it up, nothing masked: vectors 0x30 and 0x38.
    fn with_icw4(master: u8, slave: u8) -> Board {
        let mut board = Board::silent();
        for value in [(CMD1, 0x11), (DATA1, 0x30), (DATA1, 4), (DATA1, master)] {
            board.out(value.0, value.1);
        }
        for value in [(CMD2, 0x11), (DATA2, 0x38), (DATA2, 2), (DATA2, slave)] {
            board.out(value.0, value.1);
        }
        board
    }
    fn ready() -> Board {
        Board::with_icw4(1, 1)
    }
    fn out(&mut self, port: u64, value: u8) {
        self.pic.write(port, &[value]);
    }
    fn inp(&mut self, port: u64) -> u8 {
        let mut data = [0];
        self.pic.read(port, &mut data);
        data[0]
    }
    fn isr(&mut self, command: u64) -> u8 {
        self.out(command, READ_ISR);
        self.inp(command)
    }
    fn irr(&mut self, command: u64) -> u8 {
        self.out(command, READ_IRR);
        self.inp(command)
    }
    fn raise(&mut self, irq: u8) {
        self.pic.set_irq(irq, true);
    }
    fn pulse(&mut self, irq: u8) {
        self.pic.set_irq(irq, false);
        self.pic.set_irq(irq, true);
    }
    /// What the processor does with IF set.
    fn take(&mut self) -> Option<u8> {
        assert_eq!(self.pic.has_interrupt(), self.intr.is_high());
        self.pic.has_interrupt().then(|| self.pic.acknowledge())
    }
}

#[test]
fn vectors_come_from_icw2_of_each_chip() {
    let mut board = Board::ready();
    for (irq, vector) in [(0, 0x30), (1, 0x31), (7, 0x37), (8, 0x38), (15, 0x3f)] {
        board.raise(irq);
        assert_eq!(board.take(), Some(vector));
        board.out(CMD2, EOI);
        board.out(CMD1, EOI);
        board.pic.set_irq(irq, false);
    }
    assert_eq!(board.take(), None);
}

#[test]
fn before_initialization_the_pair_is_silent_but_its_mask_can_be_probed() {
    let mut board = Board::silent();
    board.raise(0);
    assert_eq!(board.take(), None);
    board.out(DATA1, 0xfb);
    assert_eq!(board.inp(DATA1), 0xfb);
}

#[test]
fn higher_levels_nest_and_lower_ones_wait() {
    let mut board = Board::ready();
    board.raise(5);
    assert_eq!(board.take(), Some(0x35));
    board.raise(6);
    board.raise(5);
    assert_eq!(board.take(), None);
    board.raise(1);
    assert_eq!(board.take(), Some(0x31));
    assert_eq!(board.isr(CMD1), 0x22);
    board.out(CMD1, EOI);
    assert_eq!(board.isr(CMD1), 0x20, "the highest ended first");
    board.out(CMD1, EOI);
    assert_eq!(board.take(), Some(0x36));
}

#[test]
fn the_slave_ranks_at_the_masters_input_2() {
    let mut board = Board::ready();
    board.raise(3);
    board.raise(14);
    board.raise(8);
    assert_eq!(board.take(), Some(0x38));
    assert_eq!((board.isr(CMD1), board.isr(CMD2)), (0x04, 0x01));
    assert_eq!(board.take(), None, "fully nested: the slave's input is in service");
    board.out(CMD2, EOI);
    assert_eq!(board.take(), None);
    board.out(CMD1, EOI);
    assert_eq!(board.take(), Some(0x3e));
    board.out(CMD2, EOI);
    board.out(CMD1, EOI);
    assert_eq!(board.take(), Some(0x33));
}

#[test]
fn special_fully_nested_mode_lets_a_higher_slave_level_through() {
    for (icw4, nested) in [(0x01, None), (0x11, Some(0x39))] {
        let mut board = Board::with_icw4(icw4, 1);
        board.raise(12);
        assert_eq!(board.take(), Some(0x3c));
        board.raise(9);
        board.raise(3);
        assert_eq!(board.take(), nested);
        assert_eq!(board.take(), None, "IRQ 3 ranks below the slave");
    }
}

#[test]
fn the_mask_hides_and_keeps_requests() {
    let mut board = Board::ready();
    board.out(DATA1, 0x10);
    board.raise(4);
    assert_eq!(board.take(), None);
    assert_eq!(board.irr(CMD1), 0x10);
    board.out(DATA1, 0);
    assert_eq!(board.take(), Some(0x34));
    assert_eq!(board.irr(CMD1), 0);
    board.out(DATA2, 0x5a);
    assert_eq!(board.inp(DATA2), 0x5a);
}

#[test]
fn an_edge_counts_once_and_only_while_its_input_stays_up() {
    let mut board = Board::ready();
    board.raise(4);
    assert_eq!(board.take(), Some(0x34));
    board.out(CMD1, EOI);
    assert_eq!(board.take(), None, "no new edge");
    board.pulse(4);
    assert!(board.pic.has_interrupt());
    board.pic.set_irq(4, false);
    assert!(!board.pic.has_interrupt());
    assert_eq!(board.irr(CMD1), 0);
}

#[test]
fn a_request_that_went_away_gives_the_spurious_vector_with_nothing_in_service() {
    let mut board = Board::ready();
    board.raise(4);
    board.pic.set_irq(4, false);
    assert_eq!(board.pic.acknowledge(), 0x37);
    assert_eq!(board.isr(CMD1), 0);
}

#[test]
fn a_spurious_slave_interrupt_leaves_the_master_in_service() {
    let mut board = Board::ready();
    board.out(ELCR2, 0x04);
    board.raise(10);
    board.out(DATA2, 0x00);
    // The master has latched the cascade edge; make the slave's request vanish in the same moment as the acknowledge.
    board.pic.slave.set_line(2, false);
    assert_eq!(board.pic.acknowledge(), 0x3f);
    assert_eq!((board.isr(CMD1), board.isr(CMD2)), (0x04, 0));
}

#[test]
fn a_level_repeats_until_it_is_released() {
    let mut board = Board::ready();
    board.out(ELCR2, 0x08);
    board.raise(11);
    for _ in 0..3 {
        assert_eq!(board.take(), Some(0x3b));
        assert_eq!(board.take(), None);
        board.out(CMD2, EOI);
        board.out(CMD1, EOI);
    }
    board.pic.set_irq(11, false);
    assert_eq!(board.take(), None);
}

#[test]
fn elcr_keeps_the_inputs_that_are_always_edges() {
    let mut board = Board::ready();
    board.out(ELCR1, 0xff);
    board.out(ELCR2, 0xff);
    assert_eq!((board.inp(ELCR1), board.inp(ELCR2)), (0xf8, 0xde));
    board.out(CMD1, 0x11);
    assert_eq!(board.inp(ELCR1), 0xf8, "initialization leaves it");
    board.pic.reset();
    assert_eq!((board.inp(ELCR1), board.inp(ELCR2)), (0, 0));
}

#[test]
fn automatic_eoi_leaves_nothing_in_service() {
    let mut board = Board::with_icw4(3, 3);
    for irq in [1, 8, 9] {
        board.raise(irq);
    }
    assert_eq!(board.take(), Some(0x31));
    assert_eq!(board.take(), Some(0x38));
    assert_eq!(board.take(), Some(0x39), "the slave's second request is an edge of its own");
    assert_eq!((board.isr(CMD1), board.isr(CMD2)), (0, 0));
}

#[test]
fn rotation_makes_the_ended_level_the_lowest() {
    let mut board = Board::ready();
    board.raise(3);
    board.raise(4);
    assert_eq!(board.take(), Some(0x33));
    board.out(CMD1, 0xa0);
    board.pulse(3);
    assert_eq!(board.take(), Some(0x34), "4 has the highest priority now");
    assert_eq!(board.take(), None);
    board.raise(6);
    board.out(CMD1, 0xe0 | 4);
    assert_eq!(board.take(), Some(0x36));
    board.out(CMD1, EOI);
    assert_eq!(board.take(), Some(0x33));
}

#[test]
fn priority_can_be_set_and_rotated_by_automatic_ends() {
    let mut board = Board::with_icw4(3, 3);
    board.out(CMD1, 0xc0 | 4);
    for irq in [1, 5, 6] {
        board.raise(irq);
    }
    assert_eq!(board.take(), Some(0x35));
    board.out(CMD1, 0x80);
    assert_eq!(board.take(), Some(0x36));
    board.raise(0);
    board.pulse(6);
    assert_eq!([board.take(), board.take(), board.take()], [Some(0x30), Some(0x31), Some(0x36)]);
    board.out(CMD1, 0x00);
    board.pulse(6);
    board.raise(7);
    assert_eq!([board.take(), board.take()], [Some(0x37), Some(0x36)]);
}

#[test]
fn special_mask_mode_lets_lower_levels_past_a_masked_one() {
    let mut board = Board::ready();
    board.raise(4);
    assert_eq!(board.take(), Some(0x34));
    board.raise(6);
    assert_eq!(board.take(), None);
    board.out(DATA1, 0x10);
    board.out(CMD1, 0x68);
    assert_eq!(board.take(), Some(0x36));
    board.out(CMD1, EOI);
    assert_eq!(board.isr(CMD1), 0x10, "a non-specific EOI skips the masked level");
    board.out(CMD1, SPECIFIC_EOI | 4);
    assert_eq!(board.isr(CMD1), 0);
    board.out(CMD1, 0x48);
    board.out(DATA1, 0);
    board.pulse(4);
    board.pulse(6);
    assert_eq!(board.take(), Some(0x34));
    board.out(DATA1, 0x10);
    assert_eq!(board.take(), None, "the mode is off again");
}

#[test]
fn a_poll_acknowledges_once() {
    let mut board = Board::ready();
    board.raise(5);
    board.out(CMD1, POLL);
    assert_eq!(board.inp(CMD1), 0x85);
    assert_eq!(board.isr(CMD1), 0x20);
    assert!(!board.pic.has_interrupt());
    board.out(CMD1, EOI);
    board.out(CMD1, POLL);
    assert_eq!(board.inp(CMD1), 0);
    board.raise(10);
    board.out(CMD1, POLL);
    assert_eq!(board.inp(DATA1), 0x82, "by either port");
    board.out(CMD2, POLL);
    assert_eq!(board.inp(CMD2), 0x82);
    assert_eq!((board.isr(CMD1), board.isr(CMD2)), (4, 4));
}

#[test]
fn initialization_forgets_edges_masks_and_service() {
    let mut board = Board::ready();
    board.raise(4);
    board.raise(1);
    board.take();
    board.out(DATA1, 0xff);
    for value in [(CMD1, 0x11), (DATA1, 0x50), (DATA1, 4), (DATA1, 1)] {
        assert_eq!(board.take(), None);
        board.out(value.0, value.1);
    }
    assert_eq!((board.inp(DATA1), board.isr(CMD1), board.irr(CMD1)), (0, 0, 0));
    board.pulse(4);
    assert_eq!(board.take(), Some(0x54));
}

#[test]
fn initialization_may_be_shorter() {
    let mut board = Board::silent();
    board.out(CMD1, 0x12);
    board.out(DATA1, 0x47);
    board.out(DATA1, 0x00);
    board.raise(1);
    assert_eq!(board.take(), Some(0x41), "single, without ICW4; low bits of ICW2 do not count");
    let mut board = Board::silent();
    for value in [(CMD1, 0x10), (DATA1, 0x48), (DATA1, 4), (DATA1, 0x01)] {
        board.out(value.0, value.1);
    }
    assert_eq!(board.inp(DATA1), 0x01, "that was OCW1");
}

#[test]
fn wide_accesses_are_byte_cycles_within_a_pair_of_ports() {
    let mut board = Board::ready();
    board.pic.write(CMD1, &[READ_ISR, 0x5a]);
    assert_eq!(board.inp(DATA1), 0x5a);
    let mut data = [0; 4];
    board.pic.read(CMD1, &mut data);
    assert_eq!(data, [0, 0x5a, 0xff, 0xff]);
}

#[test]
fn numbers_that_are_no_inputs_do_nothing() {
    let mut board = Board::ready();
    for irq in [2, 16, 255] {
        board.raise(irq);
    }
    assert_eq!(board.take(), None);
}

proptest! {
    /// Whatever is written: no panic, INTR is the level that is driven, and an acknowledge is of a chip's eight vectors.
    #[test]
    fn hostile_accesses_do_no_harm(
        acts in proptest::collection::vec((0u8..4, prop_oneof![0u64..8, any::<u64>()],
            proptest::collection::vec(any::<u8>(), 0..9)), 0..200),
    ) {
        let mut board = Board::ready();
        for (what, offset, data) in acts {
            match what {
                0 => board.pic.set_irq(offset as u8 & 31, data.len() & 1 != 0),
                1 => board.pic.read(offset, &mut vec![0; data.len()]),
                2 => board.pic.write(offset, &data),
                _ => {
                    let bases: Vec<u8> = vec![board.pic.master.vector(0), board.pic.slave.vector(0)];
                    let vector = board.pic.acknowledge();
                    prop_assert!(bases.contains(&(vector & 0xf8)));
                }
            }
            prop_assert_eq!(board.pic.has_interrupt(), board.intr.is_high());
            prop_assert_eq!(board.pic.has_interrupt(), board.pic.master.request().is_some());
        }
    }
}
