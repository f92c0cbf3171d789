use super::{AcpiMode, AcpiPm, TimerWidth};
use crate::fakes::{ManualClock, RecordedLine, RecordedPower};
use crate::{Device, Nanos, PowerEvent};
use alloc::sync::Arc;
use alloc::vec;
use proptest::prelude::*;

const PM1_STS: u64 = 0x00;
const PM1_EN: u64 = 0x02;
const PM1_CNT: u64 = 0x04;
const PM1_TMR: u64 = 0x08;
const GPE0_STS: u64 = 0x20;
const GPE0_EN: u64 = 0x28;
const SMI_EN: u64 = 0x30;
const HERTZ: u64 = 3_579_545;

struct Block {
    pm: AcpiPm,
    clock: Arc<ManualClock>,
    sci: Arc<RecordedLine>,
    power: Arc<RecordedPower>,
}

impl Block {
    fn new(width: TimerWidth, mode: AcpiMode) -> Block {
        let (clock, sci, power) = (ManualClock::at(0), RecordedLine::new(), RecordedPower::new());
        let pm = AcpiPm::new(clock.clone(), sci.clone(), power.clone(), width, mode);
        Block { pm, clock, sci, power }
    }
    fn in_acpi_mode() -> Block {
        Block::new(TimerWidth::Bits24, AcpiMode::Always)
    }
    fn inw(&mut self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.pm.read(offset, &mut data);
        u16::from_le_bytes(data)
    }
    fn inl(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.pm.read(offset, &mut data);
        u32::from_le_bytes(data)
    }
    fn outw(&mut self, offset: u64, value: u16) {
        self.pm.write(offset, &value.to_le_bytes());
    }
    fn expire(&mut self) {
        let at = self.pm.deadline().unwrap();
        self.clock.set(at);
        self.pm.expire(at);
    }
}

#[test]
fn the_timer_counts_at_its_frequency_and_wraps_at_its_width() {
    for (width, mask) in [(TimerWidth::Bits24, 0xff_ffff), (TimerWidth::Bits32, 0xffff_ffff)] {
        let mut block = Block::new(width, AcpiMode::Always);
        block.clock.set(Nanos(1_000_000_000));
        assert_eq!(block.inl(PM1_TMR), HERTZ as u32);
        block.clock.set(Nanos(2_000_000_000_000));
        assert_eq!(u64::from(block.inl(PM1_TMR)), (2000 * HERTZ) & mask);
    }
}

#[test]
fn the_timer_reads_the_same_by_bytes() {
    let mut block = Block::in_acpi_mode();
    block.clock.set(Nanos(123_456_789));
    let whole = block.inl(PM1_TMR).to_le_bytes();
    for (at, expected) in whole.iter().enumerate() {
        let mut byte = [0];
        block.pm.read(PM1_TMR + at as u64, &mut byte);
        assert_eq!(byte[0], *expected);
    }
}

#[test]
fn timer_overflow_sets_its_status_and_raises_sci_when_enabled() {
    let mut block = Block::in_acpi_mode();
    assert_eq!(block.pm.deadline(), None);
    block.outw(PM1_EN, 1);
    assert_eq!(block.pm.deadline(), Some(Nanos::of_ticks(1 << 23, HERTZ)));
    block.expire();
    assert!(block.sci.is_high());
    assert_eq!(block.inw(PM1_STS), 1);
    assert_eq!(block.inl(PM1_TMR), 1 << 23);
    assert_eq!(block.pm.deadline(), None, "nothing more to raise until it is cleared");
    block.outw(PM1_STS, 1);
    assert!(!block.sci.is_high());
    assert_eq!(block.pm.deadline(), Some(Nanos::of_ticks(2 << 23, HERTZ)));
}

#[test]
fn timer_status_is_there_for_pollers_too() {
    let mut block = Block::in_acpi_mode();
    block.clock.set(Nanos(10_000_000_000));
    assert_eq!(block.inw(PM1_STS), 1);
    block.outw(PM1_STS, 1);
    assert_eq!(block.inw(PM1_STS), 0);
    assert!(!block.sci.is_high());
}

#[test]
fn the_power_button_raises_sci_until_its_status_is_cleared() {
    let mut block = Block::in_acpi_mode();
    block.pm.press_power_button();
    assert!(!block.sci.is_high(), "not enabled");
    block.outw(PM1_EN, 0x0120);
    assert!(block.sci.is_high());
    assert_eq!(block.inw(PM1_STS), 0x0100);
    block.outw(PM1_STS, 0x0020);
    assert!(block.sci.is_high());
    block.pm.write(PM1_STS + 1, &[0x01]);
    assert!(!block.sci.is_high());
}

#[test]
fn general_purpose_events_raise_sci() {
    let mut block = Block::in_acpi_mode();
    block.pm.write(GPE0_EN, &[0x04, 0, 0, 0, 0, 0, 0, 0x80]);
    block.pm.raise_event(1);
    assert!(!block.sci.is_high());
    block.pm.raise_event(2);
    block.pm.raise_event(63);
    assert!(block.sci.is_high());
    assert_eq!((block.inl(GPE0_STS), block.inl(GPE0_STS + 4)), (0x6, 0x8000_0000));
    block.pm.write(GPE0_STS, &[0x04]);
    assert!(block.sci.is_high());
    block.pm.write(GPE0_STS + 7, &[0x80]);
    assert!(!block.sci.is_high());
    assert_eq!(block.inl(GPE0_STS), 0x2);
}

#[test]
fn soft_off_powers_down_by_words_or_double_words() {
    for value in [0x2000u32, 0x2001, 0x3c01] {
        let mut block = Block::in_acpi_mode();
        block.outw(PM1_CNT, value as u16);
        assert_eq!(block.power.events(), [PowerEvent::Off]);
        block.pm.write(PM1_CNT, &value.to_le_bytes());
        assert_eq!(block.power.events().len(), 2);
    }
}

#[test]
fn other_sleep_types_and_a_type_without_enable_do_nothing() {
    let mut block = Block::in_acpi_mode();
    for value in [0x1c01u16, 0x2401, 0x3401] {
        block.outw(PM1_CNT, value);
    }
    assert!(block.power.events().is_empty());
    assert_eq!(block.inw(PM1_CNT), 0x1401, "the type is kept, SLP_EN is not");
}

#[test]
fn acpi_mode_is_entered_by_command_when_it_is_not_fixed() {
    let mut block = Block::new(TimerWidth::Bits24, AcpiMode::ByCommand);
    block.outw(PM1_EN, 0x0100);
    block.pm.press_power_button();
    assert!(!block.sci.is_high());
    assert_eq!(block.inw(PM1_CNT) & 1, 0);
    block.pm.write(AcpiPm::APM, &[2]);
    assert!(block.sci.is_high());
    assert_eq!(block.inw(PM1_CNT) & 1, 1);
    block.pm.write(AcpiPm::APM, &[3]);
    assert!(!block.sci.is_high());
}

#[test]
fn fixed_acpi_mode_cannot_be_left() {
    let mut block = Block::in_acpi_mode();
    block.outw(PM1_CNT, 0);
    block.pm.write(AcpiPm::APM, &[3]);
    assert!(block.pm.is_acpi_mode());
    assert_eq!(block.inw(PM1_CNT), 1);
}

#[test]
fn firmware_finds_smm_set_up_already() {
    let mut block = Block::in_acpi_mode();
    block.pm.write(SMI_EN, &[0; 4]);
    assert_eq!(block.inl(SMI_EN), 0x20);
}

#[test]
fn the_apm_ports_keep_their_bytes() {
    let mut block = Block::in_acpi_mode();
    block.pm.write(AcpiPm::APM + 1, &[0x55]);
    block.pm.write(AcpiPm::APM, &[0x77]);
    assert_eq!(block.inw(AcpiPm::APM), 0x5577);
}

#[test]
fn what_is_not_decoded_reads_zero_inside_and_ones_outside() {
    let mut block = Block::in_acpi_mode();
    assert_eq!(block.inl(0x60), 0);
    assert_eq!(block.inl(0x80), !0);
}

#[test]
fn reset_clears_events_and_lowers_sci() {
    let mut block = Block::in_acpi_mode();
    block.clock.set(Nanos(5_000_000_000));
    block.outw(PM1_EN, 0x0101);
    block.pm.press_power_button();
    block.pm.reset();
    assert!(!block.sci.is_high());
    assert_eq!((block.inw(PM1_STS), block.inw(PM1_EN)), (0, 0));
    assert_eq!(block.pm.deadline(), None);
}

proptest! {
    #[test]
    fn any_access_is_harmless_and_deadlines_end(
        start in any::<u64>(),
        accesses in proptest::collection::vec((any::<bool>(), prop_oneof![0u64..0x40, Just(0x100u64), any::<u64>()],
            proptest::collection::vec(any::<u8>(), 1..9), 0u64..10_000_000_000), 0..100),
    ) {
        let mut block = Block::in_acpi_mode();
        block.clock.set(Nanos(start / 2));
        block.pm.reset();
        for (write, offset, mut bytes, nanos) in accesses {
            if write { block.pm.write(offset, &bytes) } else { block.pm.read(offset, &mut bytes) }
            block.clock.advance(nanos);
            // Each expiry at its deadline takes the deadline away or moves it on.
            if let Some(at) = block.pm.deadline() {
                block.pm.expire(at);
                prop_assert!(block.pm.deadline().is_none_or(|next| next > at));
            }
        }
    }

    #[test]
    fn a_write_by_bytes_is_the_same_as_a_wide_one(value in any::<[u8; 8]>(), base in prop_oneof![Just(0x20u64), Just(0x28)]) {
        let (mut wide, mut narrow) = (Block::in_acpi_mode(), Block::in_acpi_mode());
        for number in 0..64 {
            wide.pm.raise_event(number);
            narrow.pm.raise_event(number);
        }
        wide.pm.write(base, &value);
        for (at, byte) in value.iter().enumerate() {
            narrow.pm.write(base + at as u64, &[*byte]);
        }
        let read = |block: &mut Block| { let mut data = vec![0; 8]; block.pm.read(base, &mut data); data };
        prop_assert_eq!(read(&mut wide), read(&mut narrow));
        prop_assert_eq!(wide.sci.is_high(), narrow.sci.is_high());
    }
}
