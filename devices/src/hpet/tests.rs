use super::{Hpet, HpetWires, PINS};
use crate::fakes::{ManualClock, RecordedLine, RecordedMessages};
use crate::{Device, IrqLine, Nanos};
use alloc::sync::Arc;
use alloc::vec::Vec;
use proptest::prelude::*;

const GEN_CONF: u64 = 0x10;
const STATUS: u64 = 0x20;
const COUNTER: u64 = 0xf0;
const T0: u64 = 0x100;
const T1: u64 = 0x120;
const T2: u64 = 0x140;
const LEVEL: u32 = 1 << 1;
const ENABLE: u32 = 1 << 2;
const PERIODIC: u32 = 1 << 3;
const SET: u32 = 1 << 6;
const BITS32: u32 = 1 << 8;
const PIN16: u32 = 16 << 9;
const FSB: u32 = 1 << 14;

struct Bench {
    clock: Arc<ManualClock>,
    pins: [Arc<RecordedLine>; PINS],
    irq0: Arc<RecordedLine>,
    legacy: Arc<RecordedLine>,
    messages: Arc<RecordedMessages>,
    hpet: Hpet,
}

impl Bench {
    fn new() -> Bench {
        let clock = ManualClock::at(0);
        let pins: [Arc<RecordedLine>; PINS] = core::array::from_fn(|_| RecordedLine::new());
        let (irq0, legacy) = (RecordedLine::new(), RecordedLine::new());
        let messages = Arc::new(RecordedMessages::default());
        let wires = HpetWires {
            pins: core::array::from_fn(|pin| pins[pin].clone() as Arc<dyn IrqLine>),
            legacy_irqs: [irq0.clone(), RecordedLine::new()],
            legacy: legacy.clone(),
            messages: Some(messages.clone()),
        };
        let hpet = Hpet::new(clock.clone(), wires);
        Bench { clock, pins, irq0, legacy, messages, hpet }
    }
    fn write(&mut self, offset: u64, value: u32) {
        self.hpet.write(offset, &value.to_le_bytes());
    }
    fn write64(&mut self, offset: u64, value: u64) {
        self.hpet.write(offset, &value.to_le_bytes());
    }
    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.hpet.read(offset, &mut data);
        u32::from_le_bytes(data)
    }
    fn read64(&mut self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.hpet.read(offset, &mut data);
        u64::from_le_bytes(data)
    }
    /// Moves time and lets the device act.
    fn at(&mut self, nanos: u64) {
        self.clock.set(Nanos(nanos));
        self.hpet.expire(Nanos(nanos));
    }
}

#[test]
fn capabilities_name_a_10_ns_counter_and_three_timers() {
    let mut bench = Bench::new();
    assert_eq!(bench.read64(0), 0x0098_9680_8086_a201);
    assert_eq!(bench.read(T0 + 4), 0x00ff_0104);
}

#[test]
fn the_counter_runs_while_enabled_and_can_be_set_while_halted() {
    let mut bench = Bench::new();
    bench.at(1000);
    assert_eq!(bench.read64(COUNTER), 0);
    bench.write64(COUNTER, 0xffff_fff0);
    bench.write(GEN_CONF, 1);
    bench.at(1000 + 10 * 0x20);
    assert_eq!(bench.read64(COUNTER), 0x1_0000_0010);
    assert_eq!(bench.read(COUNTER + 4), 1);
    bench.write(GEN_CONF, 0);
    bench.at(9_000_000);
    assert_eq!(bench.read64(COUNTER), 0x1_0000_0010);
}

#[test]
fn one_shot_edge_interrupts_once_at_its_value() {
    let mut bench = Bench::new();
    bench.write(GEN_CONF, 1);
    bench.write(T0, ENABLE | PIN16);
    bench.write64(T0 + 8, 100);
    assert_eq!(bench.hpet.deadline(), Some(Nanos(1000)));
    bench.at(999);
    assert_eq!(bench.pins[16].rising_edges(), 0);
    bench.at(1000);
    assert_eq!(bench.pins[16].rising_edges(), 1);
    bench.at(1_000_000_000);
    assert_eq!(bench.pins[16].rising_edges(), 1);
    assert_eq!(bench.hpet.deadline(), None);
}

#[test]
fn a_32_bit_timer_matches_again_when_the_counter_wraps() {
    let mut bench = Bench::new();
    bench.write(GEN_CONF, 1);
    bench.write(T0, ENABLE | PIN16 | BITS32);
    bench.write(T0 + 8, 5);
    bench.at(50);
    assert_eq!(bench.pins[16].rising_edges(), 1);
    assert_eq!(bench.hpet.deadline(), Some(Nanos(((1 << 32) + 5) * 10)));
}

#[test]
fn a_64_bit_timer_matches_before_and_after_the_counter_wraps() {
    let mut bench = Bench::new();
    bench.write64(COUNTER, u64::MAX - 9);
    bench.write(T0, ENABLE | PIN16);
    bench.write64(T0 + 8, u64::MAX - 4);
    bench.write(T1, ENABLE | PIN16);
    bench.write64(T1 + 8, 5);
    bench.write(GEN_CONF, 1);
    // 100 ticks later both have matched, and the next wrap is 5,800 years away.
    bench.at(1000);
    assert_eq!(bench.pins[16].rising_edges(), 2);
    assert_eq!(bench.read64(COUNTER), 90);
    assert_eq!(bench.hpet.deadline(), None);
}

#[test]
fn periodic_by_the_way_linux_sets_it() {
    let mut bench = Bench::new();
    bench.write(GEN_CONF, 1);
    bench.write(T0, ENABLE | PERIODIC | SET | BITS32 | PIN16);
    bench.write(T0 + 8, 10_000);
    bench.write(T0 + 8, 2500);
    let mut seen = Vec::new();
    for nanos in (0..=200_000).step_by(100) {
        let before = bench.pins[16].rising_edges();
        bench.at(nanos);
        if bench.pins[16].rising_edges() > before {
            seen.push(nanos);
        }
    }
    assert_eq!(seen, [100_000, 125_000, 150_000, 175_000, 200_000]);
    assert_eq!(bench.read(T0 + 8), 22_500, "the comparator shows the next match");
    bench.at(10_000_000);
    assert_eq!(bench.pins[16].rising_edges(), 6, "missed periods are one interrupt");
}

#[test]
fn level_interrupts_hold_until_the_status_is_cleared() {
    let mut bench = Bench::new();
    bench.write(GEN_CONF, 1);
    bench.write(T1, ENABLE | LEVEL | PIN16);
    bench.write64(T1 + 8, 10);
    bench.at(100);
    assert!(bench.pins[16].is_high());
    assert_eq!(bench.read(STATUS), 2);
    bench.write(STATUS, 1);
    assert!(bench.pins[16].is_high());
    bench.write(STATUS, 2);
    assert!(!bench.pins[16].is_high());
}

#[test]
fn legacy_replacement_takes_the_8254s_wire() {
    let mut bench = Bench::new();
    bench.write(GEN_CONF, 3);
    assert!(bench.legacy.is_high());
    bench.write(T0, ENABLE | PIN16);
    bench.write64(T0 + 8, 10);
    bench.at(100);
    assert_eq!((bench.irq0.rising_edges(), bench.pins[16].rising_edges()), (1, 0));
    assert!(bench.irq0.is_high(), "it stays for an 8259 that looks later");
    bench.write64(T0 + 8, 20);
    bench.at(200);
    assert_eq!(bench.irq0.rising_edges(), 2);
    bench.write(GEN_CONF, 1);
    assert!(!bench.legacy.is_high() && !bench.irq0.is_high());
}

#[test]
fn messages_carry_the_programmed_address_and_value() {
    let mut bench = Bench::new();
    bench.write(GEN_CONF, 1);
    bench.write64(T0 + 0x10, 0xfee0_1000 << 32 | 0x55);
    bench.write(T0, ENABLE | FSB);
    bench.write64(T0 + 8, 10);
    bench.at(100);
    let sent = bench.messages.taken();
    assert_eq!((sent.len(), sent[0].vector, sent[0].destination), (1, 0x55, 1));
}

#[test]
fn very_short_periods_are_delivered_together() {
    let mut bench = Bench::new();
    bench.write(GEN_CONF, 1);
    bench.write(T0, ENABLE | PERIODIC | SET | PIN16);
    bench.write64(T0 + 8, 7);
    bench.at(70);
    assert_eq!(bench.pins[16].rising_edges(), 1);
    let next = bench.hpet.deadline().unwrap();
    assert_eq!(next, Nanos((7 + 1001) * 10), "the first match 1000 ticks on");
}

#[test]
fn a_wire_that_two_timers_hold_falls_with_the_second() {
    let mut bench = Bench::new();
    bench.write(GEN_CONF, 1);
    for timer in [T1, T2] {
        bench.write(timer, ENABLE | LEVEL | PIN16);
        bench.write64(timer + 8, 10);
    }
    bench.at(100);
    bench.write(STATUS, 2);
    assert!(bench.pins[16].is_high());
    bench.write(STATUS, 4);
    assert!(!bench.pins[16].is_high());
}

#[test]
fn a_level_follows_its_enables_and_its_route() {
    let mut bench = Bench::new();
    bench.write(GEN_CONF, 1);
    bench.write(T1, LEVEL | PIN16);
    bench.write64(T1 + 8, 10);
    bench.clock.set(Nanos(100));
    assert_eq!(bench.read(STATUS), 2, "the status is kept without the interrupt");
    assert!(!bench.pins[16].is_high());
    bench.write(T1, ENABLE | LEVEL | PIN16);
    assert!(bench.pins[16].is_high());
    bench.write(T1, ENABLE | LEVEL | 17 << 9);
    assert!(!bench.pins[16].is_high() && bench.pins[17].is_high());
    bench.write(GEN_CONF, 0);
    assert!(!bench.pins[17].is_high());
    assert_eq!(bench.read(STATUS), 2);
    bench.write(GEN_CONF, 1);
    assert!(bench.pins[17].is_high());
}

#[test]
fn routes_that_are_not_wired_drive_nothing() {
    let mut bench = Bench::new();
    bench.write(GEN_CONF, 1);
    bench.write(T1, ENABLE | LEVEL | 5 << 9);
    bench.write64(T1 + 8, 10);
    bench.at(100);
    assert_eq!(bench.read(STATUS), 2);
    assert!(bench.pins.iter().all(|pin| !pin.is_high()));
}

#[test]
fn without_a_sink_messages_are_not_offered() {
    let mut bench = Bench::new();
    bench.write(T0, FSB);
    assert_eq!(bench.read(T0) & (FSB | 1 << 15), FSB | 1 << 15);
    let wires = HpetWires {
        pins: core::array::from_fn(|_| RecordedLine::new() as Arc<dyn IrqLine>),
        legacy_irqs: [RecordedLine::new(), RecordedLine::new()],
        legacy: RecordedLine::new(),
        messages: None,
    };
    bench.hpet = Hpet::new(bench.clock.clone(), wires);
    bench.write(T0, FSB);
    assert_eq!(bench.read(T0) & (FSB | 1 << 15), 0);
}

#[test]
fn halves_and_wholes_of_registers_agree() {
    let mut bench = Bench::new();
    bench.write(T2 + 8, 0x1111_2222);
    bench.write(T2 + 12, 0x3333_4444);
    assert_eq!(bench.read64(T2 + 8), 0x3333_4444_1111_2222);
    assert_eq!(bench.read(T2 + 12), 0x3333_4444);
    let mut crossing = [0; 8];
    bench.hpet.read(T2 + 12, &mut crossing);
    assert_eq!(crossing, [0xff; 8]);
    bench.write(T2, BITS32);
    assert_eq!(bench.read64(T2 + 8), 0x1111_2222);
    assert_eq!(bench.read64(0x160), 0, "there is no fourth timer");
}

#[test]
fn reset_stops_everything() {
    let mut bench = Bench::new();
    bench.write(GEN_CONF, 3);
    bench.write(T0, ENABLE | LEVEL);
    bench.write64(T0 + 8, 1);
    bench.at(100);
    bench.hpet.reset();
    assert_eq!((bench.read(GEN_CONF), bench.read(STATUS), bench.read64(COUNTER)), (0, 0, 0));
    assert!(!bench.irq0.is_high() && !bench.legacy.is_high());
    assert_eq!(bench.hpet.deadline(), None);
}

proptest! {
    /// Whatever is written: no panic, and after expiry the next deadline lies ahead.
    #[test]
    fn hostile_accesses_do_no_harm(accesses in proptest::collection::vec(
        (any::<bool>(), prop_oneof![0u64..0x180, any::<u64>()], 0usize..=8,
            prop_oneof![0u64..0x10000, any::<u64>()], prop_oneof![0u64..100_000, any::<u64>()]), 1..200)
    ) {
        let mut bench = Bench::new();
        let mut now = 0u64;
        for (is_write, offset, len, value, step) in accesses {
            now = now.saturating_add(step);
            bench.at(now);
            prop_assert!(bench.hpet.deadline().is_none_or(|at| at.0 > now || now == u64::MAX));
            let mut data = value.to_le_bytes();
            if is_write {
                bench.hpet.write(offset, &data[..len]);
            } else {
                bench.hpet.read(offset, &mut data[..len]);
            }
            prop_assert!(bench.hpet.deadline().is_none_or(|at| at.0 > now || now == u64::MAX));
        }
    }
}
