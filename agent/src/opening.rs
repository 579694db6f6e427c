//! Whether the install takes work now, by the hours and the quota of its policy: it shuts and opens by itself, and
//! says so.

use std::time::Duration;

use jiff::Zoned;
use tokio::time::Instant;
use tropa_proto::{
    bounded::Text,
    permit::{Rule, Shut},
    proof,
};

use crate::{Agent, clock::now, hours::Hours};

/// The wall clock is looked at at least so often: it may be set, and a suspend is no time to a timer.
const LOOK: Duration = Duration::from_secs(60);

/// What was found when the wall clock was looked at last.
#[derive(Debug)]
pub(crate) struct Opening {
    /// When the quota of this hour is there again, as it was when `shut` was said.
    used_up_until: Option<Instant>,
    shut: Option<Shut>,
    /// When to look again.
    pub(crate) next: Instant,
}

impl Opening {
    pub(crate) fn new() -> Self {
        Self { used_up_until: None, shut: None, next: now() }
    }

    /// Says why nothing is taken at this time. Hours come first: they open later.
    fn look(
        &mut self,
        hours: &Hours,
        used_up_until: Option<Instant>,
        (wall, now): (&Zoned, Instant),
    ) -> Option<Shut> {
        let changes = hours.changes(wall);
        let until = changes.as_ref().map_or(LOOK, |at| time_until(wall, at));
        let known = std::mem::replace(&mut self.used_up_until, used_up_until);
        // Where nothing is sent nobody counts anew, so the end of the hour is seen here.
        let used_up_until = used_up_until.filter(|at| *at > now);
        let again = used_up_until.map_or(until, |at| until.min(at.duration_since(now)));
        self.next = now + again.clamp(Duration::from_millis(1), look_every());
        self.shut = if hours.is_open(wall) {
            used_up_until.map(|at| match self.shut.take() {
                // Once said it stays: the time would be another by a second at each look.
                Some(said @ Shut::Rate(_)) if known == Some(at) => said,
                Some(_) | None => Shut::Rate(shown(&wall.saturating_add(at.saturating_duration_since(now)))),
            })
        } else {
            Some(Shut::Hours(changes.as_ref().map_or_else(Text::default, shown)))
        };
        self.shut.clone()
    }
}

impl Agent {
    /// Looks whether the install takes work now; says whether that is another answer than before.
    pub(crate) async fn look_at_hours(&mut self) -> bool {
        let used_up_until = self.load.borrow().used_up_until;
        let is_known = self.opening.used_up_until == used_up_until;
        let time = now();
        if is_known && time < self.opening.next {
            return false;
        }
        let shut = self.opening.look(&self.policy.hours, used_up_until, (&wall(), time));
        if !self.stock.shut(shut) {
            return false;
        }
        let denial = self.stock.description().inventory.permit.shut();
        match &denial {
            Some(denial) => tracing::info!(rule = %denial, "nothing is taken at present"),
            None => tracing::info!("work is taken again"),
        }
        // The quota is counted where attempts start; an executor that has ended takes nothing.
        let _ = self.orders.shut(denial.filter(|denial| denial.rule == Rule::Hours)).await;
        true
    }
}

fn look_every() -> Duration {
    proof::number("TROPA_TEST_HOURS_LOOK_MS").map_or(LOOK, Duration::from_millis)
}

/// The wall clock in local time; a test may put a file with another in its place, in seconds from 1970, in UTC.
fn wall() -> Zoned {
    let file = proof::text("TROPA_TEST_WALL_FILE").and_then(|path| std::fs::read_to_string(path).ok());
    let set = file.and_then(|text| jiff::Timestamp::from_second(text.trim().parse().ok()?).ok());
    match set {
        Some(time) => time.to_zoned(jiff::tz::TimeZone::UTC),
        None => Zoned::now(),
    }
}

fn time_until(from: &Zoned, to: &Zoned) -> Duration {
    Duration::try_from(from.duration_until(to)).unwrap_or(Duration::ZERO)
}

/// To the second, with the offset of the local time.
fn shown(time: &Zoned) -> Text<40> {
    Text::cut(&time.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string())
}

#[cfg(test)]
mod tests {
    use jiff::{civil::date, tz::TimeZone};

    use super::*;

    fn at(hour: i8, minute: i8) -> Zoned {
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        date(2026, 11, 28).at(hour, minute, 0, 0).to_zoned(zone).unwrap()
    }

    #[test]
    fn hours_shut_until_their_next_beginning_and_are_looked_at_again_then_or_in_a_minute() {
        let hours = Hours::read(&["22:00-06:00".to_owned()]).unwrap();
        let (mut opening, now) = (Opening::new(), now());
        let opens = Some(Shut::Hours(Text::cut("2026-11-28T22:00:00+01:00")));
        for (hour, minute, shut, next) in
            [(9, 0, &opens, LOOK), (21, 59, &opens, LOOK), (22, 0, &None, LOOK), (23, 0, &None, LOOK)]
        {
            assert_eq!(opening.look(&hours, None, (&at(hour, minute), now)), *shut, "{hour}:{minute}");
            assert_eq!(opening.next, now + next);
        }
        let almost = at(21, 59).saturating_add(Duration::from_secs(50));
        opening.look(&hours, None, (&almost, now));
        assert_eq!(opening.next, now + Duration::from_secs(10));
    }

    #[test]
    fn a_quota_that_is_used_up_shuts_until_its_hour_is_over_and_says_one_time() {
        let (mut opening, now) = (Opening::new(), now());
        let (until, hours) = (Some(now + Duration::from_secs(1_800)), Hours::default());
        let opens = Some(Shut::Rate(Text::cut("2026-11-28T09:30:00+01:00")));
        assert_eq!(opening.look(&hours, until, (&at(9, 0), now)), opens);
        let later = at(9, 1).saturating_add(Duration::from_secs(2));
        assert_eq!(opening.look(&hours, until, (&later, now + LOOK)), opens);
        let almost = at(9, 29).saturating_add(Duration::from_secs(50));
        assert_eq!(opening.look(&hours, until, (&almost, now + Duration::from_secs(1_790))), opens);
        assert_eq!(Some(opening.next), until);
        assert_eq!(
            opening.look(&hours, until, (&at(9, 30), until.unwrap())),
            None,
            "whoever counts has not said so"
        );
        let night = Hours::read(&["22:00-06:00".to_owned()]).unwrap();
        let shut = opening.look(&night, until, (&at(9, 0), now));
        assert_eq!(shut, Some(Shut::Hours(Text::cut("2026-11-28T22:00:00+01:00"))));
    }
}
