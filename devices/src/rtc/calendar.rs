//! Dates and times of day, in the proleptic Gregorian calendar.

/// Seconds in a day.
pub const DAY: u64 = 86_400;

/// A date from the year 0 on. Values outside a calendar's are held to it by [`Date::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    pub year: u64,
    pub month: u64,
    pub day: u64,
}

impl Date {
    /// The nearest date there is, month by month and day by day.
    pub fn new(year: u64, month: u64, day: u64) -> Date {
        let month = month.clamp(1, 12);
        Date { year, month, day: day.clamp(1, days_in(year, month)) }
    }

    /// Days since 1 March of the year -400.
    fn number(self) -> u64 {
        // A year that starts in March has its leap day at its end.
        let year = self.year + 400 - u64::from(self.month < 3);
        let month = (self.month + 9) % 12;
        year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + self.day - 1
    }

    /// `days` later.
    pub fn plus(self, days: u64) -> Date {
        Date::of_number(self.number().saturating_add(days))
    }

    fn of_number(number: u64) -> Date {
        let (era, day_of_era) = (number / 146_097, number % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let (year, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
        Date { year: (era * 400 + year_of_era + year).saturating_sub(400), month, day }
    }

    /// The date `days` after 1 January 1970, and its day of the week, 1 for Sunday.
    pub fn since_1970(days: u64) -> (Date, u64) {
        (Date { year: 1970, month: 1, day: 1 }.plus(days), (days + 4) % 7 + 1)
    }
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_follow_each_other_through_the_calendar() {
        let mut date = Date { year: 1899, month: 12, day: 31 };
        for _ in 0..150_000 {
            let next = if date.day < days_in(date.year, date.month) {
                Date { day: date.day + 1, ..date }
            } else if date.month < 12 {
                Date { month: date.month + 1, day: 1, ..date }
            } else {
                Date { year: date.year + 1, month: 1, day: 1 }
            };
            assert_eq!(date.plus(1), next);
            date = next;
        }
    }

    #[test]
    fn known_dates() {
        assert_eq!(Date::since_1970(0), (Date { year: 1970, month: 1, day: 1 }, 5));
        assert_eq!(Date::since_1970(11_016), (Date { year: 2000, month: 2, day: 29 }, 3));
        assert_eq!(Date::since_1970(20_779), (Date { year: 2026, month: 11, day: 22 }, 1));
    }

    #[test]
    fn impossible_dates_are_held_to_the_calendar() {
        assert_eq!(Date::new(2023, 2, 31), Date { year: 2023, month: 2, day: 28 });
        assert_eq!(Date::new(0, 0, 0), Date { year: 0, month: 1, day: 1 });
        assert_eq!(Date::new(2023, 99, 99), Date { year: 2023, month: 12, day: 31 });
    }
}
