//! The hours in which an institution's machine may begin a round.

use std::fmt;

use crate::Time;

const MINUTES_A_DAY: u16 = 24 * 60;

/// From one time of day to another, every day, by a clock that is so many minutes ahead of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    /// Minute of the day from which on rounds begin.
    from: u16,
    /// First minute of the day in which none begins any more.
    to: u16,
    /// Minutes ahead of UTC.
    utc_offset: i16,
}

impl Hours {
    /// The hours from minute `from` to minute `to` of a day, past midnight where `to` is the smaller one.
    /// `None` unless both are minutes of a day, differ, and the offset is at most 18 hours.
    #[must_use]
    pub fn new(from: u16, to: u16, utc_offset: i16) -> Option<Self> {
        let fits = from < MINUTES_A_DAY && to < MINUTES_A_DAY && from != to;
        (fits && utc_offset.unsigned_abs() <= 18 * 60).then_some(Self { from, to, utc_offset })
    }

    /// Milliseconds since midnight by the institution's clock.
    fn of_day(self, now: Time) -> u64 {
        let day = i128::from(MINUTES_A_DAY) * 60_000;
        let local = i128::from(now.0) + i128::from(self.utc_offset) * 60_000;
        u64::try_from(local.rem_euclid(day)).expect("a remainder is less than a day")
    }

    /// Whether a round may begin at `now`.
    #[must_use]
    pub fn are_open(self, now: Time) -> bool {
        let minute = self.of_day(now) / 60_000;
        let (from, to) = (u64::from(self.from), u64::from(self.to));
        if from < to { (from..to).contains(&minute) } else { minute >= from || minute < to }
    }

    /// The first instant from `now` on at which a round may begin.
    #[must_use]
    pub fn next_open(self, now: Time) -> Time {
        if self.are_open(now) {
            return now;
        }
        let day = u64::from(MINUTES_A_DAY) * 60_000;
        let from = u64::from(self.from) * 60_000;
        Time(now.0.saturating_add((from + day - self.of_day(now)) % day))
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.utc_offset < 0 { '-' } else { '+' };
        let offset = self.utc_offset.unsigned_abs();
        write!(
            f,
            "{:02}:{:02} to {:02}:{:02} (UTC{sign}{:02}:{:02})",
            self.from / 60,
            self.from % 60,
            self.to / 60,
            self.to % 60,
            offset / 60,
            offset % 60
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Midnight UTC of a day in 2026.
    const MIDNIGHT: u64 = 1_767_225_600_000;
    const MINUTE: u64 = 60_000;

    #[test]
    fn hours_past_midnight_are_open_on_both_sides_of_it_and_next_tell_when() {
        let hours = Hours::new(20 * 60, 6 * 60, 7 * 60).unwrap();
        assert_eq!(hours.to_string(), "20:00 to 06:00 (UTC+07:00)");
        // 20:00 in Hanoi is 13:00 UTC.
        let at = |minutes: u64| Time(MIDNIGHT + minutes * MINUTE);
        for (minutes, open) in [
            (13 * 60 - 1, false),
            (13 * 60, true),
            (23 * 60 - 1, true),
            (23 * 60, false),
            (0, false),
            (12, false),
        ] {
            assert_eq!(hours.are_open(at(minutes)), open, "{minutes}");
            let next = if open { at(minutes) } else { at(13 * 60).max(at(minutes)) };
            let next = if minutes >= 23 * 60 { at(37 * 60) } else { next };
            assert_eq!(hours.next_open(at(minutes)), next, "{minutes}");
        }
    }

    #[test]
    fn hours_of_one_day_and_behind_utc() {
        let hours = Hours::new(9 * 60, 17 * 60 + 30, -(3 * 60 + 30)).unwrap();
        assert_eq!(hours.to_string(), "09:00 to 17:30 (UTC-03:30)");
        let at = |minutes: u64| Time(MIDNIGHT + minutes * MINUTE);
        assert!(hours.are_open(at(12 * 60 + 30)) && !hours.are_open(at(12 * 60 + 29)));
        assert!(hours.are_open(at(21 * 60 - 1)) && !hours.are_open(at(21 * 60)));
        assert!(Hours::new(0, 0, 0).is_none() && Hours::new(1440, 0, 0).is_none());
        assert!(Hours::new(0, 1, 1081).is_none());
        // The first hours of the epoch, behind UTC.
        assert!(!hours.are_open(Time(0)));
        assert_eq!(hours.next_open(Time(0)), Time((12 * 60 + 30) * MINUTE));
    }
}
