//! The date and time that a PC's real-time clock shows, as seconds since 1970. Pure: `rtc` reads the registers.
//!
//! Pins the MC146818A datasheet, "Time, Calendar, and Alarm Locations"; registers beside it as PCs have them.

/// The clock's registers, read while no update was going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Register 0.
    pub seconds: u8,
    /// Register 2.
    pub minutes: u8,
    /// Register 4; bit 7 is PM in 12-hour mode.
    pub hours: u8,
    /// Register 7.
    pub day: u8,
    /// Register 8.
    pub month: u8,
    /// Register 9, of the century.
    pub year: u8,
    /// The register that FADT names, if it names one.
    pub century: Option<u8>,
    /// Register B: binary mode and 24-hour mode.
    pub status_b: u8,
}

/// Register B: numbers are binary, not BCD; hours go to 23.
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
const PM: u8 = 1 << 7;

impl Registers {
    /// Seconds since 1 January 1970, or `None` when a register holds what no clock shows.
    pub fn seconds_since_1970(&self) -> Option<u64> {
        let hours = self.number(self.hours & !PM)?;
        let hours = match (self.status_b & HOURS_24 != 0, self.hours & PM != 0) {
            (true, _) => self.number(self.hours)?,
            (false, pm) if (1..=12).contains(&hours) => hours % 12 + if pm { 12 } else { 0 },
            (false, _) => return None,
        };
        let century = match self.century {
            Some(century) => Some(self.number(century)?).filter(|century| (19..=29).contains(century)),
            None => None,
        };
        let year = century.unwrap_or(20) * 100 + self.number(self.year)?;
        let (month, day) = (self.number(self.month)?, self.number(self.day)?);
        let (minutes, seconds) = (self.number(self.minutes)?, self.number(self.seconds)?);
        let sane = year >= 1970
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hours < 24
            && minutes < 60
            && seconds < 60;
        sane.then(|| days_since_1970(year, month, day) * 86_400 + hours * 3600 + minutes * 60 + seconds)
    }

    fn number(&self, register: u8) -> Option<u64> {
        if self.status_b & BINARY != 0 {
            return Some(register.into());
        }
        let (tens, ones) = (register >> 4, register & 0xf);
        (tens < 10 && ones < 10).then(|| u64::from(tens * 10 + ones))
    }
}

/// Days from 1 January 1970 to a date of the Gregorian calendar, `year` at least 1970.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March: the leap day is the last one then.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    /// The same sum for 1 January 1970.
    const EPOCH: u64 = 719_468;
    days - EPOCH
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCD_24: u8 = 0x02;

    fn at(year: u8, month: u8, day: u8, hours: u8, century: Option<u8>, status_b: u8) -> Option<u64> {
        Registers { seconds: 0x05, minutes: 0x04, hours, day, month, year, century, status_b }.seconds_since_1970()
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(at(0x00, 0x01, 0x01, 0x00, Some(0x20), BCD_24), Some(946_684_800 + 245));
        assert_eq!(at(0x26, 0x03, 0x01, 0x23, None, BCD_24), Some(1_772_406_000 + 245));
        assert_eq!(at(0x70, 0x01, 0x01, 0x00, Some(0x19), BCD_24), Some(245));
        assert_eq!(at(0x24, 0x02, 0x29, 0x00, Some(0x20), BCD_24), Some(1_709_164_800 + 245));
        assert_eq!(at(24, 2, 29, 0, Some(20), 0x06), Some(1_709_164_800 + 245), "binary");
        assert_eq!(at(0x24, 0x02, 0x29, 0x00, Some(0xff), 0x06), at(0x24, 2, 0x29, 0, None, 6));
    }

    #[test]
    fn twelve_hour_clocks_are_understood() {
        let day = at(0x24, 0x02, 0x29, 0x00, None, BCD_24).unwrap();
        for (register, hours) in [(0x12, 0), (0x01, 1), (0x11, 11), (0x92, 12), (0x81, 13), (0x91, 23)] {
            assert_eq!(at(0x24, 0x02, 0x29, register, None, 0), Some(day + hours * 3600), "{register:#x}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(at(0x24, 0x13, 0x01, 0, None, BCD_24), None);
        assert_eq!(at(0x24, 0x00, 0x01, 0, None, BCD_24), None);
        assert_eq!(at(0x24, 0x01, 0x00, 0, None, BCD_24), None);
        assert_eq!(at(0x24, 0x01, 0x01, 0x24, None, BCD_24), None);
        assert_eq!(at(0x2a, 0x01, 0x01, 0, None, BCD_24), None, "no BCD digit");
        assert_eq!(at(0x24, 0x01, 0x01, 0x00, None, 0), None, "12-hour clocks have no hour 0");
        assert_eq!(at(0xff, 0xff, 0xff, 0xff, Some(0xff), 0xff), None, "no clock at all");
    }
}
