//! What the job has learned of one install: failures, pauses, models that it turned out to lack, its pace.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_proto::{
    failure::Class,
    id::{EngineRun, Incarnation},
    random::Random,
};

use super::{ModelIndex, pace::Pace, width::Search, work::Kind};

/// First and longest pause of an install that refused as busy or failed twice in a row (`ollama-api.md` §4.1,
/// `reliability.md` §5).
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What the job has learned of one install.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    failures_in_a_row: u32,
    pauses: u32,
    /// Nothing new before this time.
    pub(super) pause_until: Duration,
    /// It pauses because all our places there were taken.
    is_busy: bool,
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
    /// The run of its agent and the process of its Ollama, when the roster had it last.
    process: Option<(Incarnation, EngineRun)>,
    last_end: Option<Duration>,
    /// Smoothed time between two ends at the engine; zero until there were two.
    pub(super) interval: Duration,
    /// How fast it is with each model.
    pub(super) paces: BTreeMap<ModelIndex, Pace>,
    pub(super) widths: BTreeMap<ModelIndex, Search>,
    /// With which models this job has measured its pace itself.
    pub(super) measured: BTreeSet<ModelIndex>,
}

impl Standing {
    /// A result came.
    pub(super) fn finished(&mut self) {
        (self.failures_in_a_row, self.pauses) = (0, 0);
        (self.pause_until, self.closed_for) = (Duration::ZERO, None);
    }

    /// An attempt of ours has begun there, so the place in which it waited is free for another.
    pub(super) fn began(&mut self) {
        if std::mem::take(&mut self.is_busy) {
            self.pause_until = Duration::ZERO;
        }
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

    /// The roster has it: whether its Ollama may be another process than when the roster had it last. An agent that does
    /// not say is beside another one in each of its runs.
    pub(super) fn is_another_process(&mut self, incarnation: Incarnation, engine: EngineRun) -> bool {
        match self.process.replace((incarnation, engine)) {
            None => false,
            Some((run, EngineRun::UNKNOWN)) if engine == EngineRun::UNKNOWN => run != incarnation,
            Some((_, before)) => before != engine,
        }
    }

    /// It takes nothing for now: nothing new before the pause has ended.
    pub(super) fn close(&mut self, incarnation: Option<Incarnation>, now: Duration) {
        if self.pause_until <= now {
            self.pause(now);
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
            Class::EngineDown | Class::LoadFailed => self.pause(now),
            // Many attempts are lost with one agent: that is one loss.
            Class::Lost if self.pause_until <= now => self.pause(now),
            Class::RunnerCrash | Class::EngineError | Class::Stalled | Class::Deadline => {
                self.failures_in_a_row += 1;
                if self.failures_in_a_row >= 2 {
                    self.pause(now);
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

    /// All its places are taken: coordinators that ask for one place ask again at different times (full jitter), and
    /// none before the agent says.
    pub(super) fn busy(&mut self, now: Duration, at_least: Duration, random: &mut Random) {
        let pause = random.up_to(self.longer()).max(at_least);
        self.pause_until = now + pause.min(PAUSE.1);
        self.is_busy = true;
    }

    /// Nothing new for a while.
    fn pause(&mut self, now: Duration) {
        self.pause_until = now + self.longer();
        self.is_busy = false;
    }

    /// The next pause, twice the last until a result comes.
    fn longer(&mut self) -> Duration {
        let doubled = PAUSE.0 * 2u32.saturating_pow(self.pauses.min(6));
        self.pauses += 1;
        doubled.min(PAUSE.1)
    }
}

/// Weighs the new measurement with a quarter; the first one counts whole.
pub(super) fn smoothed(old: Duration, new: Duration) -> Duration {
    if old.is_zero() { new } else { (old * 3 + new) / 4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 20;

    #[test]
    fn a_busy_install_is_asked_again_at_random_within_pauses_that_double_up_to_half_a_minute() {
        for round in 0..8 {
            let longest = (PAUSE.0 * 2u32.pow(round)).min(PAUSE.1);
            let mut random = Random::new(SEED);
            let mut pause = |at_least| {
                let mut standing = Standing { pauses: round, ..Standing::default() };
                standing.busy(Duration::from_secs(9), at_least, &mut random);
                standing.pause_until - Duration::from_secs(9)
            };
            let all: Vec<Duration> = (0..100).map(|_| pause(Duration::ZERO)).collect();
            assert!(all.iter().all(|pause| *pause <= longest), "seed {SEED}, round {round}: {all:?}");
            let spread = all.iter().filter(|pause| **pause < longest / 2).count();
            assert!((30..70).contains(&spread), "seed {SEED}, round {round}: {spread} of 100 below the half");
            assert!(
                pause(Duration::from_millis(250)) >= Duration::from_millis(250),
                "the agent's word holds"
            );
            assert_eq!(pause(Duration::from_secs(3_600)), PAUSE.1, "within what is waited at most");
        }
    }

    #[test]
    fn another_process_is_seen_also_when_the_install_was_away_meanwhile_and_when_its_agent_does_not_say() {
        let is_another = |seen: &[(u64, u32)]| {
            let mut standing = Standing::default();
            let said: Vec<bool> = seen
                .iter()
                .map(|(run, engine)| standing.is_another_process(Incarnation(*run), EngineRun(*engine)))
                .collect();
            said.last().copied()
        };
        assert_eq!(is_another(&[(1, 7)]), Some(false), "nothing was learned of another");
        assert_eq!(is_another(&[(1, 7), (1, 8)]), Some(true));
        assert_eq!(is_another(&[(1, 7), (2, 7)]), Some(false), "its agent has started anew, and it has not");
        assert_eq!(is_another(&[(1, 0), (1, 0)]), Some(false));
        assert_eq!(is_another(&[(1, 0), (2, 0)]), Some(true));
        assert_eq!(is_another(&[(1, 7), (1, 0)]), Some(true));
    }

    #[test]
    fn the_pauses_of_failures_are_not_shortened() {
        let mut standing = Standing::default();
        for seconds in [0.5, 1.0, 2.0] {
            standing.failed(ModelIndex(0), Class::EngineDown, Duration::ZERO);
            assert_eq!(standing.pause_until, Duration::from_secs_f64(seconds));
        }
    }
}
