//! The double's clocks. Everything that takes time is counted on tokio's clock, so that a test with a paused
//! clock sees exact times; what several processes must compare is counted on `CLOCK_MONOTONIC`, which is one per
//! kernel; and dates in replies start from the wall clock once and then follow tokio's.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Days in the 400 years after which the Gregorian calendar repeats.
const DAYS_PER_ERA: u64 = 146_097;

/// What Ollama adds for "forever": the longest Go duration, so that such dates lie near the year 2318.
pub(crate) const FOREVER: Duration = Duration::from_nanos(i64::MAX as u64);

/// The time on tokio's clock.
#[expect(clippy::disallowed_methods, reason = "the double is a driver and owns its clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Nanoseconds on `CLOCK_MONOTONIC`, comparable between all processes of one kernel.
pub(crate) fn monotonic_ns() -> u64 {
    nanos(ClockId::Monotonic)
}

fn nanos(id: ClockId) -> u64 {
    let time = clock_gettime(id);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Gives dates: the wall clock at the start plus what tokio's clock has counted since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Calendar {
    epoch: Duration,
    started: Instant,
}

impl Calendar {
    pub(crate) fn new() -> Self {
        Self { epoch: Duration::from_nanos(nanos(ClockId::Realtime)), started: now() }
    }

    /// Time since 1970 at `at`.
    pub(crate) fn since_1970(&self, at: Instant) -> Duration {
        self.epoch + at.saturating_duration_since(self.started)
    }
}

/// RFC 3339 with nanoseconds, trailing zeros dropped as Go does.
pub(crate) fn rfc3339(since_1970: Duration) -> String {
    let (year, month, day) = date(since_1970.as_secs() / 86_400);
    let (hour, minute, second) = time_of_day(since_1970.as_secs());
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    let fraction = format!(".{:09}", since_1970.subsec_nanos());
    text.push_str(fraction.trim_end_matches('0').trim_end_matches('.'));
    text.push('Z');
    text
}

/// The `Date` header of HTTP.
pub(crate) fn http_date(since_1970: Duration) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = since_1970.as_secs() / 86_400;
    let (year, month, day) = date(days);
    let (hour, minute, second) = time_of_day(since_1970.as_secs());
    let weekday = DAYS[(days % 7) as usize];
    let name = MONTHS[(month - 1) as usize];
    format!("{weekday}, {day:02} {name} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

fn time_of_day(seconds: u64) -> (u64, u64, u64) {
    (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// Year, month and day of the `days`-th day after 1970-01-01, counted in years that begin in March.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, in_era) = (shifted / DAYS_PER_ERA, shifted % DAYS_PER_ERA);
    let year = (in_era - in_era / 1_460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * year + year / 4 - year / 100);
    let month = (5 * in_year + 2) / 153;
    let day = in_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_in_leap_years_and_centuries() {
        assert_eq!(rfc3339(Duration::ZERO), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(Duration::new(951_782_400, 120)), "2000-02-29T00:00:00.00000012Z");
        assert_eq!(rfc3339(Duration::from_secs(4_107_542_400)), "2100-03-01T00:00:00Z");
        assert_eq!(http_date(Duration::from_secs(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
