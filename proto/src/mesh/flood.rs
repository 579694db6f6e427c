//! How often somebody may speak by gossip, and when that has become a flood (`security.md` §5.2).
//!
//! A source has one [`Frequency`] for what it says over its own connection and one for what others bring of it, so that
//! whoever relays old words of another a thousand times silences and frames nobody: only the first is ever judged.

use std::time::{Duration, Instant};

use crate::proof;

/// Messages of one source: 4 a second, in bursts of 20 (`security.md` §5.2).
const EVERY: Duration = Duration::from_millis(250);
const BURST: u32 = 20;

/// More than that for so long on end is a flood (`security.md` §5.2).
pub(super) const FLOOD: Duration = Duration::from_secs(60);

/// A flood is one only while it does not pause: a second without being too frequent, four times what one message costs,
/// ends it.
const PAUSE: Duration = Duration::from_secs(1);

/// How often somebody has spoken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frequency {
    /// When the messages so far are paid for, at one per [`EVERY`].
    paid: Instant,
    above: Option<Above>,
}

/// It was too often: since when, and when it last was.
#[derive(Clone, Copy, Debug)]
struct Above {
    since: Instant,
    last: Instant,
}

/// What one more message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    /// Within what may be said.
    InTurn,
    /// Too often: it is ignored.
    TooOften,
    /// Too often, without a pause, for as long as makes a flood.
    Flood,
}

impl Frequency {
    /// Starts with nothing said.
    pub(super) fn new(now: Instant) -> Self {
        Self { paid: now, above: None }
    }

    /// Counts one message.
    pub(super) fn speaks(&mut self, now: Instant) -> Spoken {
        if self.paid <= now + EVERY * BURST {
            self.paid = self.paid.max(now) + EVERY;
            return Spoken::InTurn;
        }
        let going_on = self.above.filter(|above| now.saturating_duration_since(above.last) < PAUSE);
        let since = going_on.map_or(now, |above| above.since);
        self.above = Some(Above { since, last: now });
        if now.saturating_duration_since(since) >= limit() { Spoken::Flood } else { Spoken::TooOften }
    }
}

fn limit() -> Duration {
    proof::number("TROPA_TEST_FLOOD_MS").map_or(FLOOD, Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENTH: Duration = Duration::from_millis(100);

    #[expect(clippy::disallowed_methods, reason = "an Instant has no other source; only differences matter")]
    fn start() -> (Frequency, Instant) {
        let now = Instant::now();
        (Frequency::new(now), now)
    }

    /// Ten messages a second; what each was.
    fn talk(frequency: &mut Frequency, from: Instant, seconds: u32) -> Vec<Spoken> {
        (0..seconds * 10).map(|tenth| frequency.speaks(from + TENTH * tenth)).collect()
    }

    #[test]
    fn twenty_at_once_and_four_a_second_are_in_turn() {
        let (mut frequency, now) = start();
        let in_turn = |spoken: &Spoken| *spoken == Spoken::InTurn;
        let burst = (0..40).map(|_| frequency.speaks(now)).filter(in_turn).count();
        assert!((20..=22).contains(&burst), "{burst}");
        let second = (0..40).map(|_| frequency.speaks(now + Duration::from_secs(1))).filter(in_turn).count();
        assert_eq!(second, 4);
        let mut quiet = start().0;
        let calm = (0..400).map(|n| quiet.speaks(now + EVERY * n)).collect::<Vec<_>>();
        assert!(calm.iter().all(in_turn), "four a second may go on for ever");
    }

    #[test]
    fn a_minute_above_is_a_flood_and_a_pause_of_a_second_ends_it() {
        let (mut frequency, now) = start();
        let heard = talk(&mut frequency, now, 59);
        assert!(!heard.contains(&Spoken::Flood) && heard.contains(&Spoken::TooOften));
        let paused = now + Duration::from_secs(60);
        assert!(!talk(&mut frequency, paused, 59).contains(&Spoken::Flood));
        let on_end = paused + Duration::from_secs(59);
        assert!(talk(&mut frequency, on_end, 5).contains(&Spoken::Flood));
    }
}
