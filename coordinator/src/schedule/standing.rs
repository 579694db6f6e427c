//! What the job has learned of one install: failures, pauses, models that it turned out to lack, its pace.

use std::{collections::BTreeSet, time::Duration};

use tropa_proto::{failure::Class, id::Incarnation};

use super::{ModelIndex, work::Kind};

/// First and longest pause of an install that refused as busy or failed twice in a row (`ollama-api.md` §4.1).
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What the job has learned of one install.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    failures_in_a_row: u32,
    pauses: u32,
    /// Nothing new before this time.
    pub(super) pause_until: Duration,
    /// It refused as another incarnation or as draining; another incarnation in the roster, a result, or the end of
    /// the pause lifts it: locks that were wiped and an outbox that was full are mended by then.
    pub(super) closed_for: Option<Incarnation>,
    /// Models that it turned out not to have.
    without: BTreeSet<ModelIndex>,
    /// Models of which its agent has denied a chunk by a rule that it had not told; for its whole run, since only
    /// another one has another policy.
    denied: BTreeSet<ModelIndex>,
    /// What it was given last: its model is loaded with this context.
    pub(super) kind: Option<Kind>,
    /// The shared prefix that it read last; 0: none.
    pub(super) prefix: u32,
    last_end: Option<Duration>,
    /// Smoothed time between two ends at the engine; zero until there were two.
    pub(super) interval: Duration,
}

impl Standing {
    /// A result came.
    pub(super) fn finished(&mut self) {
        (self.failures_in_a_row, self.pauses) = (0, 0);
        (self.pause_until, self.closed_for) = (Duration::ZERO, None);
    }

    /// The install is there again after it was gone: what it was paused for may be over.
    pub(super) fn came_back(&mut self) {
        self.pause_until = Duration::ZERO;
    }

    /// Neither lacks the model nor denies it, as far as has been found.
    pub(super) fn takes(&self, model: ModelIndex) -> bool {
        !self.without.contains(&model) && !self.denied.contains(&model)
    }

    /// The roster describes the install anew: a model that is no longer listed may be listed again later, and
    /// another run of the agent may have another policy.
    pub(super) fn described(&mut self, models: &BTreeSet<ModelIndex>, same_run: bool) {
        self.without.retain(|model| same_run && models.contains(model));
        self.denied.retain(|_| same_run);
    }

    /// It takes nothing for now: nothing new before the pause has ended.
    pub(super) fn close(&mut self, incarnation: Option<Incarnation>, now: Duration) {
        if self.pause_until <= now {
            self.pause(now, Duration::ZERO);
        }
        self.closed_for = incarnation;
    }

    /// The engine has ended an attempt.
    pub(super) fn paced(&mut self, now: Duration) {
        if let Some(last) = self.last_end.replace(now) {
            self.interval = smoothed(self.interval, now.saturating_sub(last));
        }
    }

    /// An attempt ended without a result: what that says of the install (`ollama-api.md` §4.1).
    pub(super) fn failed(&mut self, model: ModelIndex, class: Class, now: Duration) {
        match class {
            Class::NoModel => _ = self.without.insert(model),
            Class::Denied => _ = self.denied.insert(model),
            Class::EngineDown | Class::LoadFailed => self.pause(now, Duration::ZERO),
            // Many attempts are lost with one agent: that is one loss.
            Class::Lost if self.pause_until <= now => self.pause(now, Duration::ZERO),
            Class::RunnerCrash | Class::EngineError | Class::Stalled | Class::Deadline => {
                self.failures_in_a_row += 1;
                if self.failures_in_a_row >= 2 {
                    self.pause(now, Duration::ZERO);
                }
            }
            Class::Busy
            | Class::Lost
            | Class::Incomplete
            | Class::TooLong
            | Class::BadRequest
            | Class::ResultTooLarge
            | Class::Cancelled
            | Class::Superseded
            | Class::NeedFailed
            | Class::Poison
            | Class::Crashed => {}
        }
    }

    /// Nothing new for a while, longer each time until a result comes.
    pub(super) fn pause(&mut self, now: Duration, at_least: Duration) {
        let doubled = PAUSE.0 * 2u32.saturating_pow(self.pauses.min(6));
        self.pause_until = now + doubled.max(at_least).min(PAUSE.1);
        self.pauses += 1;
    }
}

/// Weighs the new measurement with a quarter; the first one counts whole.
pub(super) fn smoothed(old: Duration, new: Duration) -> Duration {
    if old.is_zero() { new } else { (old * 3 + new) / 4 }
}
