//! The hours in which an install may be used, in the local time of its agent; pure.
//!
//! What an operator writes is a time of day as the clock on his wall shows it, so a night stays a night when the clocks
//! change: `22:00-06:00` is an hour shorter or longer then.

use std::{fmt, str::FromStr};

use jiff::{ToSpan as _, Zoned};

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// Ranges that may be named: more than a day has sensible ones, and as many as fit where they are shown.
const RANGES: usize = 8;

/// Days that are searched for the next change: two, and one more for a range that clocks have skipped.
const DAYS: i64 = 3;

/// Ranges of the day; none: all day.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hours(Vec<Range>);

/// From a minute of the day to before another; past midnight where that is no later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    from: u16,
    to: u16,
}

/// Says why hours cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoursError {
    /// A range is none.
    #[error("{0} is not HH:MM-HH:MM, such as 22:00-06:00")]
    Range(String),
    /// A range ends where it begins.
    #[error("{0} is a whole day or nothing; leave it out for all day")]
    Empty(String),
    /// There are too many.
    #[error("there are more than {RANGES} ranges")]
    Many,
}

impl Hours {
    /// Reads ranges such as `22:00-06:00`, one of which is to hold.
    ///
    /// # Errors
    /// Names the range that is none.
    pub fn read(ranges: &[String]) -> Result<Self, HoursError> {
        if ranges.len() > RANGES {
            return Err(HoursError::Many);
        }
        ranges.iter().map(|range| range.parse()).collect::<Result<_, _>>().map(Self)
    }

    /// Says whether the install may be used at this time.
    #[must_use]
    pub fn is_open(&self, at: &Zoned) -> bool {
        let minute = minute(at);
        self.0.is_empty() || self.0.iter().any(|range| range.contains(minute))
    }

    /// Gives the next time at which it is shut where it is open at this one, or the other way round; `None`: never.
    #[must_use]
    pub fn changes(&self, after: &Zoned) -> Option<Zoned> {
        let is_open = self.is_open(after);
        let ends = || self.0.iter().flat_map(|range| [range.from, range.to % DAY]);
        let days = (0..=DAYS).filter_map(|day| after.date().checked_add(day.days()).ok());
        let times = days.flat_map(|date| {
            ends().filter_map(move |minute| {
                let (hour, minute) = (i8::try_from(minute / 60).ok()?, i8::try_from(minute % 60).ok()?);
                date.at(hour, minute, 0, 0).to_zoned(after.time_zone().clone()).ok()
            })
        });
        times.filter(|time| time > after && self.is_open(time) != is_open).min()
    }
}

impl Range {
    fn contains(self, minute: u16) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

impl FromStr for Range {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        let wrong = || HoursError::Range(text.to_owned());
        let (from, to) = text.trim().split_once('-').ok_or_else(wrong)?;
        let (from, to) = (time_of_day(from).ok_or_else(wrong)?, time_of_day(to).ok_or_else(wrong)?);
        if from % DAY == to % DAY {
            return Err(HoursError::Empty(text.to_owned()));
        }
        if from == DAY { Err(wrong()) } else { Ok(Self { from, to }) }
    }
}

/// As they were typed, with commas between.
impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, Range { from, to }) in self.0.iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            write!(f, "{comma}{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)?;
        }
        Ok(())
    }
}

/// Minutes from midnight of `HH:MM`, at most 24:00.
fn time_of_day(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok());
    let hours = number(hours).flatten().filter(|hours| *hours <= 24)?;
    let minutes = number(minutes).flatten().filter(|number| *number < 60 && minutes.len() == 2)?;
    let all = hours * 60 + minutes;
    (all <= DAY).then_some(all)
}

fn minute(at: &Zoned) -> u16 {
    u16::from(at.hour().unsigned_abs()) * 60 + u16::from(at.minute().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use jiff::{civil::date, tz::TimeZone};

    use super::*;

    /// Central Europe: an hour is left out on 29 March 2026 at 2 and repeated on 25 October at 3.
    fn at(month: i8, day: i8, hour: i8, minute: i8) -> Zoned {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        date(2026, month, day).at(hour, minute, 0, 0).to_zoned(zone).unwrap()
    }

    fn hours(ranges: &[&str]) -> Hours {
        let ranges: Vec<String> = ranges.iter().map(|range| (*range).to_owned()).collect();
        Hours::read(&ranges).unwrap()
    }

    #[test]
    fn a_range_may_pass_midnight_and_ends_before_its_last_minute() {
        let night = hours(&["22:00-06:00", "12:30-13:00"]);
        for (hour, minute, open) in [
            (21, 59, false),
            (22, 0, true),
            (0, 0, true),
            (5, 59, true),
            (6, 0, false),
            (12, 30, true),
            (13, 0, false),
        ] {
            assert_eq!(night.is_open(&at(11, 28, hour, minute)), open, "{hour}:{minute}");
        }
        assert_eq!(night.to_string(), "22:00-06:00, 12:30-13:00");
        let evening = hours(&["18:00-24:00"]);
        assert!(evening.is_open(&at(11, 28, 23, 59)) && !evening.is_open(&at(11, 29, 0, 0)));
        assert!(Hours::default().is_open(&at(11, 28, 3, 0)));
    }

    #[test]
    fn the_next_change_is_the_next_end_at_which_something_changes() {
        let night = hours(&["22:00-06:00"]);
        assert_eq!(night.changes(&at(11, 28, 9, 0)), Some(at(11, 28, 22, 0)));
        assert_eq!(night.changes(&at(11, 28, 22, 0)), Some(at(11, 29, 6, 0)));
        assert_eq!(night.changes(&at(11, 29, 0, 0)), Some(at(11, 29, 6, 0)));
        let joined = hours(&["22:00-00:00", "00:00-06:00"]);
        assert_eq!(joined.changes(&at(11, 28, 23, 0)), Some(at(11, 29, 6, 0)), "midnight changes nothing");
        for always in [Hours::default(), hours(&["00:00-12:00", "12:00-24:00"])] {
            assert_eq!(always.changes(&at(11, 28, 9, 0)), None);
        }
    }

    #[test]
    fn where_clocks_change_the_hours_are_those_of_the_wall() {
        let night = hours(&["22:00-06:00"]);
        let length = |month, day: i8| {
            let opens = at(month, day, 22, 0);
            let shuts = night.changes(&opens).unwrap();
            assert_eq!(minute(&shuts), 6 * 60);
            opens.duration_until(&shuts).as_hours()
        };
        assert_eq!([length(3, 27), length(3, 28), length(10, 24)], [8, 7, 9]);
        // What the clocks skip is not there that night: the range opens when it is past.
        let skipped = hours(&["02:00-02:30"]);
        assert_eq!(skipped.changes(&at(3, 29, 1, 0)), Some(at(3, 30, 2, 0)));
    }

    #[test]
    fn what_is_no_range_is_named_with_one_that_is() {
        for text in
            ["", "22-6", "22:00", "22:0-06:00", "25:00-06:00", "24:30-01:00", "22:60-06:00", "-1:00-2:00"]
        {
            let error = Hours::read(&[text.to_owned()]).unwrap_err();
            assert!(error.to_string().contains("22:00-06:00"), "{text}: {error}");
        }
        for text in ["06:00-06:00", "00:00-24:00"] {
            assert_eq!(Hours::read(&[text.to_owned()]), Err(HoursError::Empty(text.to_owned())));
        }
        assert_eq!(Hours::read(&vec!["1:00-2:00".to_owned(); 9]), Err(HoursError::Many));
    }
}
