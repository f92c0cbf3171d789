use super::{Installed, Rtc, WallTime};
use crate::fakes::{ManualClock, RecordedLine};
use crate::{Device, Nanos};
use alloc::sync::Arc;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
/// Sunday, 2026-11-22 21:30:08.25
const WALL: WallTime = WallTime { seconds: 1_795_383_008, nanos: 250_000_000 };
const INSTALLED: Installed = Installed { ram_below_4g: 512 << 20, ram_above_4g: 3 << 30, processors: 4 };

const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const D: u8 = 0x0d;
const SET: u8 = 0x80;
const PIE: u8 = 0x40;
const AIE: u8 = 0x20;
const UIE: u8 = 0x10;
const BINARY: u8 = 0x04;
const H24: u8 = 0x02;

struct Chip {
    rtc: Rtc,
    clock: Arc<ManualClock>,
    line: Arc<RecordedLine>,
}

impl Chip {
    fn new() -> Chip {
        Chip::showing(WALL)
    }
    fn showing(wall: WallTime) -> Chip {
        let (clock, line) = (ManualClock::at(1_700_000_123), RecordedLine::new());
        let rtc = Rtc::new(clock.clone(), line.clone(), wall, INSTALLED);
        Chip { rtc, clock, line }
    }
    fn get(&mut self, index: u8) -> u8 {
        let mut byte = [0];
        let port = if index < 0x80 { 0 } else { 2 };
        self.rtc.write(port, &[index & 0x7f]);
        self.rtc.read(port + 1, &mut byte);
        byte[0]
    }
    fn put(&mut self, index: u8, value: u8) {
        let port = if index < 0x80 { 0 } else { 2 };
        self.rtc.write(port, &[index & 0x7f]);
        self.rtc.write(port + 1, &[value]);
    }
    /// Century, year, month, day, hours, minutes, seconds as they read.
    fn time(&mut self) -> [u8; 7] {
        [0x32, 9, 8, 7, 4, 2, 0].map(|index| self.get(index))
    }
    /// Lets time pass as the machine does, every deadline served at its moment. Returns how many there were.
    fn pass(&mut self, nanos: u64) -> usize {
        let end = Nanos(crate::Clock::now(&*self.clock).0 + nanos);
        let mut served = 0;
        while let Some(at) = self.rtc.deadline().filter(|at| *at <= end) {
            self.clock.set(at);
            self.rtc.expire(at);
            served += 1;
            assert!(served < 100_000, "deadlines do not end");
        }
        self.clock.set(end);
        served
    }
}

#[test]
fn the_wall_clock_is_shown_in_bcd_and_24_hours() {
    let mut chip = Chip::new();
    assert_eq!(chip.time(), [0x20, 0x26, 0x11, 0x22, 0x21, 0x30, 0x08]);
    assert_eq!(chip.get(6), 1, "Sunday");
    assert_eq!((chip.get(A), chip.get(B), chip.get(D)), (0x26, 0x02, 0x80));
}

#[test]
fn seconds_change_where_the_wall_clock_s_do() {
    let mut chip = Chip::new();
    chip.clock.advance(750_000_000 - 1);
    assert_eq!(chip.get(0), 0x08);
    chip.clock.advance(1);
    assert_eq!(chip.get(0), 0x09);
}

#[test]
fn time_carries_into_the_next_year_and_century() {
    // 1999-12-31 23:59:59
    let mut chip = Chip::showing(WallTime { seconds: 946_684_799, nanos: 0 });
    assert_eq!(chip.time(), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59]);
    chip.clock.advance(SECOND);
    assert_eq!(chip.time(), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
    assert_eq!(chip.get(6), 7, "a Saturday");
    chip.clock.advance(59 * 86_400 * SECOND);
    assert_eq!(chip.time(), [0x20, 0x00, 0x02, 0x29, 0x00, 0x00, 0x00]);
}

#[test]
fn binary_and_12_hour_modes_encode_the_next_update() {
    let mut chip = Chip::new();
    chip.put(B, BINARY);
    for (index, value) in [(4, 0x8c), (2, 59), (0, 59), (7, 28), (8, 2), (9, 24), (0x32, 20)] {
        chip.put(index, value);
    }
    assert_eq!(chip.get(4), 0x8c, "noon, as written");
    chip.clock.advance(SECOND);
    assert_eq!(chip.time(), [20, 24, 2, 28, 0x81, 0, 0], "1 PM");
    chip.clock.advance(11 * 3600 * SECOND);
    assert_eq!(chip.time(), [20, 24, 2, 29, 12, 0, 0], "midnight is 12 AM");
}

#[test]
fn setting_the_time_as_linux_does_starts_it_half_a_second_later() {
    let mut chip = Chip::new();
    chip.put(B, H24 | SET);
    chip.put(A, 0x76);
    for (index, value) in [(0x32, 0x20), (9, 0x30), (8, 0x01), (7, 0x02), (4, 0x03), (2, 0x04), (0, 0x05)] {
        chip.put(index, value);
    }
    chip.clock.advance(10 * SECOND);
    assert_eq!(chip.time(), [0x20, 0x30, 0x01, 0x02, 0x03, 0x04, 0x05], "stopped");
    chip.put(B, H24);
    chip.put(A, 0x26);
    chip.clock.advance(SECOND / 2 - 1);
    assert_eq!(chip.get(0), 0x05);
    chip.clock.advance(1);
    assert_eq!(chip.get(0), 0x06);
}

#[test]
fn uip_shows_for_244_us_before_an_update() {
    let mut chip = Chip::showing(WallTime { seconds: 0, nanos: 0 });
    chip.clock.advance(SECOND - 244_001);
    assert_eq!(chip.get(A) & 0x80, 0);
    chip.clock.advance(1);
    assert_eq!(chip.get(A) & 0x80, 0x80);
    chip.clock.advance(244_000);
    assert_eq!(chip.get(A) & 0x80, 0);
    chip.put(B, H24 | SET);
    chip.clock.advance(SECOND - 1000);
    assert_eq!(chip.get(A) & 0x80, 0, "no updates while SET");
}

#[test]
fn without_enabled_interrupts_there_is_no_deadline_but_flags_are_set() {
    let mut chip = Chip::new();
    assert_eq!(chip.rtc.deadline(), None);
    chip.clock.advance(SECOND);
    assert_eq!(chip.get(C), 0x50, "UF and PF without IRQF");
    assert_eq!(chip.get(C), 0x00, "reading cleared them");
    assert!(!chip.line.is_high());
}

#[test]
fn the_update_interrupt_comes_every_second_once_register_c_was_read() {
    let mut chip = Chip::new();
    chip.put(B, H24 | UIE);
    for _ in 0..3 {
        assert_eq!(chip.pass(SECOND), 1);
        assert!(chip.line.is_high());
        assert_eq!(chip.rtc.deadline(), None, "waits for register C");
        assert_eq!(chip.get(C) & 0x90, 0x90);
        assert!(!chip.line.is_high());
    }
    assert_eq!(chip.line.rising_edges(), 3);
}

#[test]
fn periodic_interrupts_come_at_the_selected_rate() {
    for (rate, hertz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        let mut chip = Chip::new();
        chip.put(A, 0x20 | rate);
        chip.put(B, H24 | PIE);
        let end = crate::Clock::now(&*chip.clock).0 + SECOND;
        let mut count = 0;
        while let Some(at) = chip.rtc.deadline().filter(|at| at.0 <= end) {
            chip.clock.set(at);
            chip.rtc.expire(at);
            assert_eq!(chip.get(C) & 0xc0, 0xc0);
            count += 1;
        }
        assert_eq!(count, hertz, "rate {rate}");
    }
}

#[test]
fn rate_zero_and_a_divider_in_reset_have_no_periods() {
    let mut chip = Chip::new();
    chip.put(B, H24 | PIE | UIE);
    chip.put(A, 0x70);
    assert_eq!(chip.rtc.deadline(), None);
    chip.put(A, 0x76);
    assert_eq!(chip.rtc.deadline(), None);
    chip.get(C);
    chip.clock.advance(SECOND);
    assert_eq!(chip.get(C), 0);
}

#[test]
fn the_alarm_comes_at_its_time_even_past_midnight() {
    let mut chip = Chip::new();
    for (index, value) in [(5, 0x21), (3, 0x30), (1, 0x07)] {
        chip.put(index, value);
    }
    chip.put(B, H24 | AIE);
    assert_eq!(chip.pass(86_398 * SECOND), 0);
    assert_eq!(chip.pass(SECOND), 1, "a day less one second");
    assert!(chip.line.is_high());
    assert_eq!(chip.get(0), 0x07);
    assert_eq!(chip.get(C) & 0xa0, 0xa0);
}

#[test]
fn alarm_bytes_with_both_upper_bits_match_anything() {
    let mut chip = Chip::new();
    for (index, value) in [(5, 0xff), (3, 0xc0), (1, 0x15)] {
        chip.put(index, value);
    }
    chip.put(B, H24 | AIE);
    let mut count = 0;
    for _ in 0..600 {
        chip.pass(SECOND);
        count += usize::from(chip.get(C) & 0x20 != 0);
    }
    assert_eq!(count, 10, "once a minute");
}

#[test]
fn an_alarm_that_no_time_matches_never_comes() {
    let mut chip = Chip::new();
    chip.put(1, 0x75);
    chip.put(B, H24 | AIE);
    assert_eq!(chip.rtc.deadline(), None);
    chip.clock.advance(200_000 * SECOND);
    assert_eq!(chip.get(C) & 0x20, 0);
}

#[test]
fn the_rising_set_bit_clears_uie() {
    let mut chip = Chip::new();
    chip.put(B, H24 | UIE | SET);
    assert_eq!(chip.get(B), H24 | SET);
}

#[test]
fn both_banks_of_ram_keep_their_bytes_through_reset() {
    let mut chip = Chip::new();
    chip.put(0x40, 0x12);
    chip.put(0xc0, 0x34);
    chip.put(B, H24 | UIE | PIE);
    chip.pass(2 * SECOND);
    assert!(chip.line.is_high());
    chip.rtc.reset();
    assert!(!chip.line.is_high());
    assert_eq!((chip.get(0x40), chip.get(0xc0), chip.get(B), chip.get(C)), (0x12, 0x34, H24, 0));
    assert_eq!(chip.get(0), 0x10, "time goes on");
}

#[test]
fn memory_sizes_are_where_firmware_looks() {
    let mut chip = Chip::new();
    let word = |chip: &mut Chip, index| u16::from_le_bytes([chip.get(index), chip.get(index + 1)]);
    assert_eq!(word(&mut chip, 0x15), 640);
    assert_eq!(word(&mut chip, 0x17), 0xffff, "more than 64 MiB");
    assert_eq!(word(&mut chip, 0x34), (512 - 16) * 16);
    assert_eq!([chip.get(0x5b), chip.get(0x5c), chip.get(0x5d)], [0x00, 0xc0, 0x00]);
    assert_eq!(chip.get(0x5f), 3);
}

#[test]
fn the_nmi_mask_is_bit_7_of_the_index() {
    let mut chip = Chip::new();
    chip.rtc.write(0, &[0x8f]);
    assert!(chip.rtc.is_nmi_masked());
    chip.rtc.write(1, &[0x0a]);
    assert_eq!(chip.get(0x0f), 0x0a);
    assert!(!chip.rtc.is_nmi_masked());
}

#[test]
fn the_index_ports_read_all_ones() {
    let mut chip = Chip::new();
    let mut data = [0; 5];
    chip.rtc.read(0, &mut data);
    assert_eq!((data[0], data[2], data[4]), (0xff, 0xff, 0xff));
}

#[test]
fn setting_the_wall_clock_corrects_the_time() {
    let mut chip = Chip::new();
    chip.clock.advance(100 * SECOND);
    chip.rtc.set_time(WallTime { seconds: 0, nanos: 999_000_000 });
    assert_eq!(chip.time(), [0x19, 0x70, 0x01, 0x01, 0, 0, 0]);
    chip.clock.advance(1_000_000);
    assert_eq!(chip.get(0), 1);
}

proptest! {
    #[test]
    fn any_access_is_harmless_and_deadlines_end(
        accesses in proptest::collection::vec((any::<bool>(),
            prop_oneof![(Just(0u64), 0u8..0x0e), (Just(0u64), any::<u8>()), (Just(1u64), any::<u8>()), (0u64..6, any::<u8>())],
            prop_oneof![0u64..2_000_000, 0u64..100_000 * SECOND]), 0..150),
        start in any::<u64>(),
    ) {
        let mut chip = Chip::new();
        chip.clock.set(Nanos(start / 2));
        chip.rtc.set_time(WallTime { seconds: start, nanos: start as u32 });
        for (write, (offset, value), nanos) in accesses {
            if write { chip.rtc.write(offset, &[value]) } else { chip.rtc.read(offset, &mut [value, 0]) }
            if let Some(at) = chip.rtc.deadline() {
                // Serving a deadline raises the line, so that nothing more is waited for with that cause.
                chip.clock.set(at.max(crate::Clock::now(&*chip.clock)));
                chip.rtc.expire(crate::Clock::now(&*chip.clock));
                prop_assert!(chip.line.is_high());
            }
            chip.clock.advance(nanos);
        }
    }

    #[test]
    fn the_time_reads_the_same_however_often_it_is_looked_at(steps in proptest::collection::vec(0u64..40_000 * SECOND, 1..40)) {
        let (mut often, mut once) = (Chip::new(), Chip::new());
        for step in &steps {
            often.clock.advance(*step);
            once.clock.advance(*step);
            often.get(0);
        }
        prop_assert_eq!(often.time(), once.time());
        prop_assert_eq!(often.get(6), once.get(6));
    }
}
