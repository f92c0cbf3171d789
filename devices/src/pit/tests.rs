use super::{EPOCH, Pit};
use crate::fakes::{ManualClock, RecordedLine};
use crate::{Device, Nanos};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

const CONTROL: u64 = 3;
const PORT61: u64 = 4;
const HERTZ: u64 = 1_193_182;

const OUT: u8 = 0x80;
const NULL: u8 = 0x40;

struct Board {
    pit: Pit,
    irq0: Arc<RecordedLine>,
    clock: Arc<ManualClock>,
    clocks: u64,
}

impl Board {
    fn new() -> Board {
        let (irq0, clock) = (RecordedLine::new(), ManualClock::at(0));
        let pit = Pit::new(clock.clone(), irq0.clone());
        Board { pit, irq0, clock, clocks: 0 }
    }
    /// Counter 2, GATE high, in mode `mode`, binary, two bytes.
    fn counter2(mode: u8, count: u16) -> Board {
        let mut board = Board::new();
        board.out(PORT61, 1);
        board.out(CONTROL, 0xb0 | mode << 1);
        board.count(2, count);
        board
    }
    fn out(&mut self, port: u64, value: u8) {
        self.pit.write(port, &[value]);
    }
    fn inp(&mut self, port: u64) -> u8 {
        let mut data = [0];
        self.pit.read(port, &mut data);
        data[0]
    }
    fn count(&mut self, counter: u64, value: u16) {
        for byte in value.to_le_bytes() {
            self.out(counter, byte);
        }
    }
    fn read_count(&mut self, counter: u64) -> u16 {
        u16::from_le_bytes([self.inp(counter), self.inp(counter)])
    }
    fn latched(&mut self, counter: u64) -> u16 {
        self.out(CONTROL, (counter as u8) << 6);
        self.read_count(counter)
    }
    fn status(&mut self, counter: u64) -> u8 {
        self.out(CONTROL, 0xe0 | 2 << counter);
        self.inp(counter)
    }
    fn out2(&mut self) -> bool {
        self.inp(PORT61) & 0x20 != 0
    }
    /// Moves to input clock `clocks` since the start and lets deadlines happen one after another.
    fn to(&mut self, clocks: u64) {
        self.clocks = clocks;
        let end = Nanos::of_ticks(clocks, HERTZ);
        while let Some(at) = self.pit.deadline().filter(|&at| at <= end) {
            self.clock.set(at);
            self.pit.expire(at);
        }
        self.clock.set(end);
    }
    fn after(&mut self, clocks: u64) {
        self.to(self.clocks + clocks);
    }
    /// Comes late: nothing expires on the way.
    fn late(&mut self, clocks: u64) {
        self.clocks = clocks;
        let end = Nanos::of_ticks(clocks, HERTZ);
        self.clock.set(end);
        self.pit.expire(end);
    }
    /// OUT of counter 2 for the next `clocks` clocks.
    fn wave(&mut self, clocks: usize) -> Vec<u8> {
        (0..clocks)
            .map(|_| {
                self.after(1);
                u8::from(self.out2())
            })
            .collect()
    }
}

#[test]
fn mode_0_raises_out_at_the_terminal_count_and_counts_on() {
    let mut board = Board::counter2(0, 4);
    assert!(!board.out2());
    assert_eq!(board.wave(8), [0, 0, 0, 0, 1, 1, 1, 1], "N + 1 clocks after the write");
    assert_eq!(board.latched(2), 0xfffd);
    board.out(2, 9);
    assert!(!board.out2(), "the first byte of a new count lowers OUT");
    board.out(2, 0);
    board.after(10);
    assert!(board.out2());
}

#[test]
fn mode_0_stops_while_gate_is_low() {
    let mut board = Board::counter2(0, 10);
    board.after(5);
    assert_eq!(board.latched(2), 6);
    board.out(PORT61, 0);
    board.after(100);
    assert_eq!(board.latched(2), 6);
    board.out(PORT61, 1);
    board.after(5);
    assert!(!board.out2());
    board.after(1);
    assert!(board.out2());
}

#[test]
fn mode_1_is_low_for_n_clocks_after_each_trigger() {
    let mut board = Board::counter2(1, 3);
    assert_eq!(board.wave(4), [1, 1, 1, 1], "no trigger yet");
    board.out(PORT61, 0);
    board.out(PORT61, 1);
    assert_eq!(board.wave(6), [0, 0, 0, 1, 1, 1]);
    board.out(PORT61, 0);
    board.out(PORT61, 1);
    board.after(2);
    board.out(PORT61, 0);
    board.out(PORT61, 1);
    assert_eq!(board.wave(5), [0, 0, 0, 1, 1], "it can be retriggered");
}

#[test]
fn mode_2_is_low_for_one_clock_in_n() {
    let mut board = Board::counter2(2, 3);
    assert!(board.out2());
    assert_eq!(board.wave(9), [1, 1, 0, 1, 1, 0, 1, 1, 0]);
    board.out(PORT61, 0);
    assert_eq!(board.wave(4), [1, 1, 1, 1], "a low GATE holds OUT high");
    board.out(PORT61, 1);
    assert_eq!(board.wave(6), [1, 1, 0, 1, 1, 0], "its rise starts a new cycle");
}

#[test]
fn mode_2_takes_a_new_count_at_the_end_of_the_cycle() {
    let mut board = Board::counter2(2, 5);
    board.after(2);
    board.count(2, 3);
    assert_eq!(board.wave(9), [1, 1, 0, 1, 1, 0, 1, 1, 0]);
    let mut board = Board::counter2(2, 0);
    board.after(1);
    assert_eq!(board.latched(2), 0, "65536");
    board.after(1);
    assert_eq!(board.latched(2), 0xffff);
}

#[test]
fn mode_3_is_a_square_wave() {
    let mut board = Board::counter2(3, 4);
    assert_eq!(board.wave(8), [1, 1, 0, 0, 1, 1, 0, 0]);
    let mut board = Board::counter2(3, 5);
    assert_eq!(board.wave(10), [1, 1, 1, 0, 0, 1, 1, 1, 0, 0]);
    let values: Vec<u16> = (0..5)
        .map(|_| {
            board.after(1);
            board.latched(2)
        })
        .collect();
    assert_eq!(values, [4, 2, 0, 4, 2]);
    board.out(PORT61, 0);
    assert!(board.out2());
}

#[test]
fn mode_3_takes_a_new_count_at_the_end_of_the_half_cycle() {
    let mut board = Board::counter2(3, 6);
    board.after(2);
    board.count(2, 4);
    assert_eq!(board.wave(8), [1, 0, 0, 1, 1, 0, 0, 1]);
    let mut board = Board::counter2(3, 6);
    board.after(5);
    board.count(2, 4);
    assert_eq!(board.wave(6), [0, 1, 1, 0, 0, 1]);
}

#[test]
fn mode_4_strobes_once_after_n_clocks() {
    let mut board = Board::counter2(4, 3);
    assert_eq!(board.wave(7), [1, 1, 1, 0, 1, 1, 1]);
    board.count(2, 2);
    assert_eq!(board.wave(5), [1, 1, 0, 1, 1]);
}

#[test]
fn mode_5_strobes_n_clocks_after_a_trigger() {
    let mut board = Board::counter2(5, 3);
    assert_eq!(board.wave(6), [1; 6]);
    board.out(PORT61, 0);
    board.out(PORT61, 1);
    assert_eq!(board.wave(6), [1, 1, 1, 0, 1, 1]);
}

#[test]
fn a_latch_holds_until_it_is_read_and_the_first_latch_wins() {
    let mut board = Board::counter2(0, 1000);
    board.after(1);
    board.out(CONTROL, 0x80);
    board.after(100);
    board.out(CONTROL, 0x80);
    assert_eq!(board.read_count(2), 1000);
    assert_eq!(board.read_count(2), 900, "unlatched: as it runs");
}

#[test]
fn read_back_latches_status_before_count_of_the_named_counters() {
    let mut board = Board::counter2(2, 0x1234);
    assert_eq!(board.status(2), OUT | NULL | 0x34);
    board.after(1);
    board.out(CONTROL, 0xc0 | 0x08);
    board.after(50);
    assert_eq!(board.inp(2), OUT | 0x34);
    assert_eq!(board.read_count(2), 0x1234);
    board.count(2, 0x4000);
    assert_eq!(board.status(2) & NULL, NULL, "it waits for the end of the cycle");
    board.after(0x1234);
    assert_eq!(board.status(2) & NULL, 0);
    board.out(CONTROL, 0xd0 | 0x02);
    assert_eq!(board.latched(2), 0x4000 - 50, "counter 2 was not named");
}

#[test]
fn byte_accesses_leave_the_other_half_zero() {
    let mut board = Board::new();
    board.out(PORT61, 1);
    board.out(CONTROL, 0x90);
    board.out(2, 0x42);
    board.after(1);
    assert_eq!(board.inp(2), 0x42);
    assert_eq!(board.inp(2), 0x42);
    board.out(CONTROL, 0xa0);
    board.out(2, 0x42);
    board.after(2);
    assert_eq!(board.inp(2), 0x41, "0x4200 less one");
}

#[test]
fn bcd_counts_decades() {
    let mut board = Board::new();
    board.out(PORT61, 1);
    board.out(CONTROL, 0xb1);
    board.count(2, 0x1000);
    board.after(2);
    assert_eq!(board.latched(2), 0x0999);
    board.after(1000);
    assert_eq!(board.latched(2), 0x9999);
    board.count(2, 0);
    board.after(2);
    assert_eq!(board.latched(2), 0x9999);
}

#[test]
fn counter_0_in_mode_2_interrupts_at_its_rate() {
    let mut board = Board::new();
    assert_eq!(board.pit.deadline(), None);
    board.out(CONTROL, 0x34);
    assert!(board.irq0.is_high(), "OUT is high by the control word");
    board.count(0, 11932);
    board.to(HERTZ);
    let ticks = board.irq0.rising_edges() - 1;
    assert_eq!(ticks, 99, "100 Hz, the first after one period and a clock");
    board.after(200);
    assert_eq!(board.irq0.rising_edges() - 1, 99 + 1);
}

#[test]
fn counter_0_interrupts_once_in_the_one_shot_modes() {
    for (control, high_before) in [(0x30, false), (0x38, true)] {
        let mut board = Board::new();
        board.out(CONTROL, control);
        board.count(0, 1000);
        assert_eq!(board.irq0.is_high(), high_before, "{control:#x}");
        let before = board.irq0.rising_edges();
        board.after(999);
        assert_eq!(board.irq0.rising_edges(), before);
        board.after(3);
        assert_eq!(board.irq0.rising_edges(), before + 1, "{control:#x}");
        board.after(200_000);
        assert_eq!(board.irq0.rising_edges(), before + 1, "{control:#x}");
        assert_eq!(board.pit.deadline(), None);
        board.count(0, 1000);
        board.after(1002);
        assert_eq!(board.irq0.rising_edges(), before + 2);
    }
}

#[test]
fn missed_periods_are_delivered_at_twice_the_rate() {
    let mut board = Board::new();
    board.out(CONTROL, 0x36);
    board.count(0, 1000);
    let start = board.irq0.rising_edges();
    board.late(5500);
    assert_eq!(board.irq0.rising_edges() - start, 1);
    board.to(8500);
    assert_eq!(board.irq0.rising_edges() - start, 6, "one late, three regular, two of four owed between them");
    board.to(20_500);
    assert_eq!(board.irq0.rising_edges() - start, 20);
}

#[test]
fn what_is_owed_is_bounded_and_dropped_by_a_new_control_word() {
    let mut board = Board::new();
    board.out(CONTROL, 0x34);
    board.count(0, 1000);
    board.late(1_000_000_000);
    let start = board.irq0.rising_edges();
    board.after(600_000);
    assert_eq!(board.irq0.rising_edges() - start, 600 + 600);
    board.after(10_000_000);
    assert_eq!(board.irq0.rising_edges() - start, 10_600 + 1000);
    board.late(2_000_000_000);
    board.out(CONTROL, 0x34);
    let start = board.irq0.rising_edges();
    board.count(0, 1000);
    board.after(10_500);
    assert_eq!(board.irq0.rising_edges() - start, 10);
}

#[test]
fn very_short_periods_are_delivered_together() {
    let mut board = Board::new();
    board.out(CONTROL, 0x34);
    board.count(0, 1);
    board.to(HERTZ / 100);
    assert!(board.irq0.rising_edges() < 600);
    assert!(board.irq0.rising_edges() > 400);
}

#[test]
fn latching_counter_0_leaves_its_interrupt_alone() {
    let mut board = Board::new();
    board.out(CONTROL, 0x36);
    board.count(0, 1000);
    board.after(1001);
    let edges = board.irq0.rising_edges();
    board.after(700);
    board.latched(0);
    assert!(board.irq0.is_high());
    assert_eq!(board.irq0.rising_edges(), edges);
}

#[test]
fn port_61_shows_gate_speaker_refresh_and_out() {
    let mut board = Board::new();
    board.out(PORT61, 0xff);
    assert_eq!(board.inp(PORT61) & !0x10, 0x2f);
    let mut toggles = 0;
    let mut before = board.inp(PORT61) & 0x10;
    for _ in 0..180 {
        board.after(1);
        let now = board.inp(PORT61) & 0x10;
        toggles += u32::from(now != before);
        before = now;
    }
    assert_eq!(toggles, 10, "every 15 microseconds");
}

#[test]
fn linux_quick_calibration_sees_the_msb_fall_steadily() {
    let mut board = Board::new();
    board.out(PORT61, 1);
    board.out(CONTROL, 0xb0);
    board.out(2, 0xff);
    board.out(2, 0xff);
    board.inp(2);
    board.inp(2);
    board.after(1);
    for expected in (0xf0..=0xfe).rev() {
        board.after(256);
        board.inp(2);
        assert_eq!(board.inp(2), expected);
    }
}

#[test]
fn wide_accesses_are_byte_cycles_that_do_not_reach_port_61() {
    let mut board = Board::new();
    board.pit.write(CONTROL, &[0x34, 0x0f]);
    assert_eq!(board.inp(PORT61) & 0x0f, 0);
    let mut data = [0; 2];
    board.pit.read(PORT61, &mut data);
    assert_eq!(data[1], 0xff);
    board.pit.read(CONTROL, &mut data);
    assert_eq!(data, [0, 0xff]);
}

#[test]
fn reset_stops_everything() {
    let mut board = Board::new();
    board.out(CONTROL, 0x34);
    board.count(0, 1000);
    board.pit.reset();
    assert!(!board.irq0.is_high());
    assert_eq!(board.pit.deadline(), None);
    let edges = board.irq0.rising_edges();
    board.after(10_000);
    assert_eq!(board.irq0.rising_edges(), edges);
}

proptest! {
    /// Whatever is written: no panic, and after expiry the next deadline lies ahead.
    #[test]
    fn hostile_accesses_do_no_harm(
        acts in proptest::collection::vec((0u8..4, prop_oneof![0u64..5, any::<u64>()],
            proptest::collection::vec(any::<u8>(), 0..9), prop_oneof![0u64..200_000, any::<u64>()]), 0..200),
    ) {
        let mut board = Board::new();
        let mut now = 0u64;
        for (what, offset, data, nanos) in acts {
            match what {
                0 => board.pit.read(offset, &mut vec![0; data.len()]),
                1 => board.pit.write(offset, &data),
                2 => board.pit.write(CONTROL, &data),
                _ => {
                    now = now.saturating_add(nanos);
                    board.clock.set(Nanos(now));
                    board.pit.expire(Nanos(now));
                    prop_assert!(board.pit.deadline().is_none_or(|at| at.0 > now || now == u64::MAX));
                }
            }
        }
    }

    /// OUT and the next rise agree: OUT is low one clock before it and high at it, with no rise between.
    #[test]
    fn the_next_rise_is_where_out_rises(mode in 0u8..6, first in 2u16..40, second in 2u16..40, at in 0u64..60) {
        let mut board = Board::counter2(mode, first);
        board.after(at);
        board.count(2, second);
        let now = board.clocks + EPOCH;
        let counter = &mut board.pit.counters[2];
        let expected = counter.next_rise(now);
        let mut before = counter.out(now);
        let mut found = None;
        for clock in now + 1..now + 200 {
            counter.settle(clock);
            let out = counter.out(clock);
            if out && !before {
                found = Some(clock);
                break;
            }
            before = out;
        }
        prop_assert_eq!(expected, found);
    }
}
