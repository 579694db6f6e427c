//! How many attempts may start in an hour: the operator's quota for all coordinators together.
//!
//! An hour begins with the first attempt that starts after the last one was over, so a full quota is there again at most
//! twice within any sixty minutes, and never more often. What has started counts, however it ends. An agent that starts
//! anew begins with a full one.

use std::time::Duration;

use tokio::time::Instant;

/// What is called an hour.
const HOUR: Duration = Duration::from_secs(3_600);

/// What has started in this hour.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// The quota; 0: there is none.
    most: u32,
    begun: Option<Instant>,
    started: u32,
}

impl Rate {
    pub(super) fn new(most: u32) -> Self {
        Self { most, ..Self::default() }
    }

    /// Says whether one more may be taken in beside so many that wait.
    pub(super) fn has_room(&self, waiting: usize, now: Instant) -> bool {
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        self.most == 0 || self.started_by(now).saturating_add(waiting) < self.most
    }

    /// Counts one that starts.
    pub(super) fn starts(&mut self, now: Instant) {
        if self.most == 0 {
            return;
        }
        self.started = self.started_by(now) + 1;
        if self.started == 1 {
            self.begun = Some(now);
        }
    }

    /// When more may start, where nothing may before.
    pub(super) fn used_up_until(&self, now: Instant) -> Option<Instant> {
        let used_up = self.most > 0 && self.started_by(now) >= self.most;
        self.ends().filter(|_| used_up)
    }

    fn started_by(&self, now: Instant) -> u32 {
        if self.ends().is_some_and(|ends| now < ends) { self.started } else { 0 }
    }

    fn ends(&self) -> Option<Instant> {
        self.begun.map(|begun| begun + HOUR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    #[test]
    fn an_hour_takes_what_is_permitted_and_the_next_begins_with_its_first() {
        let (mut rate, begin) = (Rate::new(3), now());
        let minutes = |minutes: u64| begin + Duration::from_secs(60 * minutes);
        assert!(rate.has_room(2, begin) && !rate.has_room(3, begin), "what waits will start");
        for minute in [0, 10, 50] {
            assert_eq!(rate.used_up_until(minutes(minute)), None);
            rate.starts(minutes(minute));
        }
        assert_eq!(rate.used_up_until(minutes(50)), Some(minutes(60)));
        assert!(!rate.has_room(0, minutes(59)));
        assert!(rate.has_room(2, minutes(60)));
        assert_eq!(rate.used_up_until(minutes(60)), None);
        rate.starts(minutes(90));
        assert!(rate.has_room(1, minutes(120)) && !rate.has_room(2, minutes(120)));
        assert!(rate.has_room(2, minutes(150)));
    }

    #[test]
    fn without_a_quota_nothing_is_counted() {
        let mut rate = Rate::default();
        for _ in 0..10 {
            rate.starts(now());
        }
        assert!(rate.has_room(usize::MAX, now()));
        assert_eq!(rate.used_up_until(now()), None);
    }
}
