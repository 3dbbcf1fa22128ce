//! The one clock of a program, handed to whatever asks the time.
//!
//! A deployed program takes [`Clock::system`] in its `main`; a test brings its own and can let days pass
//! in no time, or two machines disagree about the date.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use comity_federation::Time;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Where the date comes from: deadlines, the journal's times and the validity of certificates all follow
/// the same one. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The operating system's.
    #[must_use]
    pub fn system() -> Self {
        Self::from_fn(SystemTime::now)
    }

    /// A clock that shows what `read` returns.
    #[must_use]
    pub fn from_fn(read: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// The instant, as the rules of a run see it; the epoch for a clock that stands before it.
    #[must_use]
    pub fn now(&self) -> Time {
        Time(u64::try_from(self.since_epoch().as_millis()).unwrap_or(u64::MAX))
    }

    /// The date, as certificates see it.
    #[must_use]
    pub fn date(&self) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + self.since_epoch()
    }

    fn since_epoch(&self) -> Duration {
        (self.0)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}

/// The instant as certificates see it; `None` beyond the calendar.
#[must_use]
pub fn calendar(at: Time) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000_000).ok()
}

/// The date of an instant, for people: `2026-03-01 09:30 UTC`.
#[must_use]
pub fn date_of(at: Time) -> String {
    calendar(at).map_or_else(
        || at.to_string(),
        |at| format!("{} {:02}:{:02} UTC", at.date(), at.hour(), at.minute()),
    )
}

/// An instant for a listing, to the millisecond: `2026-03-01T09:30:00.25Z` (RFC 3339).
#[must_use]
pub fn timestamp_of(at: Time) -> String {
    calendar(at).and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| at.to_string())
}

/// The instant of a date; the epoch for one before it.
#[must_use]
pub fn time_of(date: OffsetDateTime) -> Time {
    Time(u64::try_from(date.unix_timestamp_nanos() / 1_000_000).unwrap_or(0))
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.since_epoch()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_readings_are_of_one_instant() {
        let clock = Clock::from_fn(|| SystemTime::UNIX_EPOCH + Duration::from_millis(86_400_250));
        assert_eq!(clock.now(), Time(86_400_250));
        assert_eq!(clock.date().unix_timestamp(), 86_400);
        assert_eq!(clock.current_time().unwrap().as_secs(), 86_400);
        assert_eq!(date_of(clock.now()), "1970-01-02 00:00 UTC");
        assert_eq!(time_of(clock.date()), clock.now());
        let before = Clock::from_fn(|| SystemTime::UNIX_EPOCH - Duration::from_secs(5));
        assert_eq!(before.now(), Time(0));
        assert_eq!(timestamp_of(Time(250)), "1970-01-01T00:00:00.25Z");
    }
}
