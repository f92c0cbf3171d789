//! ACPI fixed hardware: the power management block of the ICH9.
//!
//! Manuals: Intel ICH9 datasheet 316972-004, 13.8 "Power Management Registers"; ACPI 6.4, 4.8 "ACPI Register Model".
//!
//! [`AcpiPm`] decodes 128 ports from PMBASE and, at [`AcpiPm::APM`], the two advanced power management ports. It has the
//! PM1 events with their SCI, the PM timer with its overflow deadline, 64 general purpose events, and soft off.
//! A guest cannot reach system management mode: SMI_EN reads as if firmware had set it up and locked it.
//! The block does not know where it lies; [`crate::pci::Lpc`] tells that to the owner of the buses.
//!
//! Not here: S1 to S4, throttling, the TCO watchdog.

mod spec;
#[cfg(test)]
mod tests;

use crate::{Clock, Device, IrqLine, Nanos, PowerEvent, PowerSink};
use alloc::sync::Arc;
use spec::{APMC_EN, Pm1, Pm1Cnt, SLP_EN, SLP_TYP_SHIFT, TIMER_HERTZ, offset};

/// How wide the PM timer is; the FADT's TMR_VAL_EXT flag says it to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerWidth {
    /// 24 bits, as q35 has it. Overflows every 2.34 s.
    Bits24 = 24,
    /// 32 bits. Overflows every 600 s.
    Bits32 = 32,
}

/// How the guest gets from legacy mode, in which events would raise SMIs, to ACPI mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiMode {
    /// SCI_EN is always set; the FADT gives no SMI command port.
    Always,
    /// The machine starts in legacy mode; [`AcpiPm::ENABLE`] and [`AcpiPm::DISABLE`], written to APM_CNT, change it.
    ByCommand,
}

/// PM1 events that can be enabled.
const EVENTS: Pm1 = Pm1::TMR.union(Pm1::GBL).union(Pm1::PWRBTN).union(Pm1::RTC);

/// The power management block.
pub struct AcpiPm {
    clock: Arc<dyn Clock>,
    sci: Arc<dyn IrqLine>,
    power: Arc<dyn PowerSink>,
    width: TimerWidth,
    mode: AcpiMode,
    sci_is_high: bool,
    status: Pm1,
    enable: Pm1,
    control: Pm1Cnt,
    /// The timer's count, unbounded, at which its top bit changes next and sets TMR_STS.
    overflow_at: u64,
    gpe_status: u64,
    gpe_enable: u64,
    apm: [u8; 2],
}

impl AcpiPm {
    /// Offset of the device at which APM_CNT (port 0xb2) and APM_STS (0xb3) lie.
    pub const APM: u64 = 0x100;
    /// Written to APM_CNT, turns ACPI mode on ([`AcpiMode::ByCommand`]).
    pub const ENABLE: u8 = 2;
    /// Written to APM_CNT, turns ACPI mode off.
    pub const DISABLE: u8 = 3;
    /// The SLP_TYP value that means soft off (S5), as q35's `\_S5` has it and SeaBIOS and OVMF write it.
    pub const SLP_TYP_S5: u8 = 0;
    /// The value that a real ICH9 has for S5; taken too.
    const SLP_TYP_S5_ICH9: u8 = 7;

    /// The block as after reset. Events raise `sci`, soft off goes to `power`.
    pub fn new(
        clock: Arc<dyn Clock>,
        sci: Arc<dyn IrqLine>,
        power: Arc<dyn PowerSink>,
        width: TimerWidth,
        mode: AcpiMode,
    ) -> AcpiPm {
        let mut pm = AcpiPm {
            clock,
            sci,
            power,
            width,
            mode,
            sci_is_high: false,
            status: Pm1::empty(),
            enable: Pm1::empty(),
            control: Pm1Cnt::empty(),
            overflow_at: 0,
            gpe_status: 0,
            gpe_enable: 0,
            apm: [0; 2],
        };
        pm.set_reset_state();
        pm
    }

    /// The user presses the power button: the guest is asked to shut down.
    pub fn press_power_button(&mut self) {
        self.status |= Pm1::PWRBTN;
        self.update_sci();
    }

    /// Raises general purpose event `number`, 0 to 63.
    pub fn raise_event(&mut self, number: u8) {
        assert!(number < 64, "there are 64 general purpose events");
        self.gpe_status |= 1 << number;
        self.update_sci();
    }

    /// Whether the guest runs in ACPI mode, so that [`AcpiPm::press_power_button`] can reach it.
    pub fn is_acpi_mode(&self) -> bool {
        self.control.contains(Pm1Cnt::SCI_EN)
    }

    fn ticks(&self, now: Nanos) -> u64 {
        now.ticks(TIMER_HERTZ)
    }

    /// Ticks between two changes of the timer's top bit.
    fn half_period(&self) -> u64 {
        1 << (self.width as u64 - 1)
    }

    fn timer(&self) -> u32 {
        let mask = match self.width {
            TimerWidth::Bits24 => 0xff_ffff,
            TimerWidth::Bits32 => u32::MAX,
        };
        self.ticks(self.clock.now()) as u32 & mask
    }

    /// Sets TMR_STS if the top bit changed since it was last cleared.
    fn catch_up(&mut self, now: Nanos) {
        if !self.status.contains(Pm1::TMR) && self.ticks(now) >= self.overflow_at {
            self.status |= Pm1::TMR;
        }
    }

    fn watch_next_overflow(&mut self, now: Nanos) {
        let half = self.half_period();
        self.overflow_at = (self.ticks(now) / half + 1).saturating_mul(half);
    }

    fn update_sci(&mut self) {
        let pm1 = self.status.intersects(self.enable & EVENTS);
        let gpe = self.gpe_status & self.gpe_enable != 0;
        let high = self.is_acpi_mode() && (pm1 || gpe);
        if high != self.sci_is_high {
            self.sci_is_high = high;
            self.sci.set(high);
        }
    }

    fn set_reset_state(&mut self) {
        self.status = Pm1::empty();
        self.enable = Pm1::empty();
        self.control = match self.mode {
            AcpiMode::Always => Pm1Cnt::SCI_EN,
            AcpiMode::ByCommand => Pm1Cnt::empty(),
        };
        self.gpe_status = 0;
        self.gpe_enable = 0;
        self.apm = [0; 2];
        self.watch_next_overflow(self.clock.now());
        self.update_sci();
    }

    fn set_control(&mut self, value: u32) {
        self.control = Pm1Cnt::from_bits_truncate(value);
        if self.mode == AcpiMode::Always {
            self.control |= Pm1Cnt::SCI_EN;
        }
        self.update_sci();
        if value & SLP_EN != 0 {
            let kind = (value >> SLP_TYP_SHIFT & 7) as u8;
            // The other sleep states are not offered by the DSDT; asking for them does nothing.
            if kind == AcpiPm::SLP_TYP_S5 || kind == AcpiPm::SLP_TYP_S5_ICH9 {
                self.power.request(PowerEvent::Off);
            }
        }
    }

    fn command(&mut self, value: u8) {
        if self.mode == AcpiMode::ByCommand {
            match value {
                AcpiPm::ENABLE => self.control |= Pm1Cnt::SCI_EN,
                AcpiPm::DISABLE => self.control -= Pm1Cnt::SCI_EN,
                _ => {}
            }
            self.update_sci();
        }
    }

    /// The eight registers at `offset`, a multiple of 8, for accesses of any width.
    fn quad(&mut self, offset: u64) -> u64 {
        match offset {
            offset::PM1_STS => {
                self.catch_up(self.clock.now());
                u64::from(self.status.bits())
                    | u64::from(self.enable.bits()) << 16
                    | u64::from(self.control.bits()) << 32
            }
            offset::PM1_TMR => u64::from(self.timer()),
            offset::GPE0_STS => self.gpe_status,
            offset::GPE0_EN => self.gpe_enable,
            offset::SMI_EN => u64::from(APMC_EN),
            AcpiPm::APM => u64::from(u16::from_le_bytes(self.apm)) | !0xffff,
            inside if inside < offset::END => 0,
            _ => !0,
        }
    }

    /// Writes the bytes of `value` that `mask` selects to the eight registers at `offset`.
    fn write_quad(&mut self, offset: u64, value: u64, mask: u64) {
        match offset {
            offset::PM1_STS => {
                let now = self.clock.now();
                self.catch_up(now);
                let cleared = Pm1::from_bits_truncate((value & mask) as u16);
                if cleared.contains(Pm1::TMR) && self.status.contains(Pm1::TMR) {
                    self.watch_next_overflow(now);
                }
                self.status -= cleared;
                if mask >> 16 & 0xffff != 0 {
                    let merged = merge(u64::from(self.enable.bits()) << 16, value, mask) >> 16;
                    self.enable = Pm1::from_bits_truncate(merged as u16) & (EVENTS | Pm1::PCIEXPWAK);
                }
                self.update_sci();
                if mask >> 32 != 0 {
                    self.set_control((merge(u64::from(self.control.bits()) << 32, value, mask) >> 32) as u32);
                }
            }
            offset::GPE0_STS => {
                self.gpe_status &= !(value & mask);
                self.update_sci();
            }
            offset::GPE0_EN => {
                self.gpe_enable = merge(self.gpe_enable, value, mask);
                self.update_sci();
            }
            AcpiPm::APM => {
                let [command, status, ..] = merge(u64::from(u16::from_le_bytes(self.apm)), value, mask).to_le_bytes();
                self.apm = [command, status];
                if mask & 0xff != 0 {
                    self.command(command);
                }
            }
            _ => {}
        }
    }
}

const fn merge(old: u64, new: u64, mask: u64) -> u64 {
    old & !mask | new & mask
}

impl Device for AcpiPm {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == offset::PM1_TMR && data.len() == 4 {
            data.copy_from_slice(&self.timer().to_le_bytes());
            return;
        }
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.wrapping_add(done as u64);
            let skip = (at & 7) as usize;
            let bytes = self.quad(at & !7).to_le_bytes();
            for (byte, from) in rest.iter_mut().zip(bytes.iter().skip(skip)) {
                *byte = *from;
            }
            done += 8 - skip;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.wrapping_add(done as u64);
            let skip = (at & 7) as usize;
            let (mut value, mut mask) = ([0; 8], [0; 8]);
            for ((byte, bits), from) in value.iter_mut().zip(&mut mask).skip(skip).zip(rest) {
                (*byte, *bits) = (*from, 0xff);
            }
            self.write_quad(at & !7, u64::from_le_bytes(value), u64::from_le_bytes(mask));
            done += 8 - skip;
        }
    }

    /// The timer's next overflow, while it would raise the SCI.
    fn deadline(&self) -> Option<Nanos> {
        let watched = self.enable.contains(Pm1::TMR) && !self.status.contains(Pm1::TMR);
        watched.then(|| Nanos::of_ticks(self.overflow_at, TIMER_HERTZ))
    }

    fn expire(&mut self, now: Nanos) {
        self.catch_up(now);
        self.update_sci();
    }

    /// The timer counts on.
    fn reset(&mut self) {
        self.set_reset_state();
    }
}
