//! Attempts that were lost while their agent had them: they may still run, on devices that others want.
//!
//! The chunk does not wait: it runs again at once. The devices do. Where a rival cannot share a kernel lock with the
//! lost one's agent, only this coordinator keeps the two apart (`reliability.md` §8.3), so the rival gets nothing
//! until the agent is back and has said that the attempt is over, has been restarted, or the attempt's time is up.
//! When the agent is back the attempt is recalled: a `Cancel` is answered with its result, which is taken if it is
//! the first, or with its end.

use std::{collections::BTreeSet, time::Duration};

use tropa_proto::{
    failure::{Class, Reason},
    id::{AgentId, AttemptId, Incarnation},
};

use super::{Action, Install, Schedule, holdings::Active};

/// How long a lost attempt may run unseen: the least deadline of an attempt (`reliability.md` §4). After it the
/// devices open without proof, as a lane does after the settle ceiling.
const ORPHAN_LIMIT: Duration = Duration::from_secs(15 * 60);

/// How long a request that its agent hung up on may still compute: reading a prompt to its end was measured to take
/// up to 28 s (`reliability.md` §8.4). Before that the agent's next attempt at the engine proves it over.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// When an agent that is there but did not answer is asked again: as long as its hello may take.
const RECALL_AGAIN: Duration = Duration::from_secs(5);

/// An attempt whose agent had it when it was lost.
#[derive(Clone, Debug)]
pub(super) struct Missing {
    pub(super) agent: AgentId,
    pub(super) incarnation: Incarnation,
    until: Duration,
    kind: Kind,
    /// When to ask for it, if its agent is there; `None` while an answer is awaited.
    pub(super) recall_at: Option<Duration>,
}

/// Why an attempt that has ended may still run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// Nobody has heard its end.
    Lost,
    /// Its agent hung up, and the engine may go on.
    HungUp,
}

impl Doubt {
    /// Says whether and why an attempt that ended so may still run.
    #[must_use]
    pub fn of(class: Class, reason: Option<Reason>) -> Option<Self> {
        match (class, reason) {
            (_, Some(reason)) if reason.hangs_up() => Some(Self::HungUp),
            (Class::Lost, _) => Some(Self::Lost),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It may run.
    Running,
    /// The engine had ended it: only its result is wanted.
    Ended,
    /// Its agent has hung up on it, or was killed: the engine may go on.
    Settling,
}

impl Schedule {
    /// The attempt was lost after it had been sent.
    pub(super) fn miss(&mut self, attempt: AttemptId, active: &Active, now: Duration) {
        let (agent, incarnation) = (active.agent, active.incarnation);
        let kind = if active.occupies() { Kind::Running } else { Kind::Ended };
        let (until, recall_at) = (now + ORPHAN_LIMIT, Some(now));
        let missing = Missing { agent, incarnation, until, kind, recall_at };
        self.missing.insert(attempt, missing);
    }

    /// The attempt failed with an end at the agent, and its request may still compute at the engine.
    pub(super) fn unsettled(&mut self, attempt: AttemptId, active: &Active, now: Duration) {
        let (agent, incarnation, until) = (active.agent, active.incarnation, now + SETTLES_WITHIN);
        let missing = Missing { agent, incarnation, until, kind: Kind::Settling, recall_at: None };
        self.missing.insert(attempt, missing);
    }

    /// An attempt of a predecessor may still run; since when is not known, so from now on.
    pub(super) fn doubt(
        &mut self,
        attempt: AttemptId,
        (agent, incarnation): (AgentId, Incarnation),
        doubt: Doubt,
    ) {
        let (kind, until, recall_at) = match doubt {
            Doubt::Lost => (Kind::Running, ORPHAN_LIMIT, Some(Duration::ZERO)),
            Doubt::HungUp => (Kind::Settling, SETTLES_WITHIN, None),
        };
        self.missing.insert(attempt, Missing { agent, incarnation, until, kind, recall_at });
    }

    /// The agent has an attempt at the engine, which it starts only when everything before it is settled.
    pub(super) fn settled(&mut self, agent: AgentId) {
        let before = self.missing.len();
        self.missing.retain(|_, missing| missing.agent != agent || missing.kind != Kind::Settling);
        if self.missing.len() < before {
            self.wake_all();
        }
    }

    /// What of this run of the agent was lost and may still bring a result, in order.
    pub(super) fn missing_of(
        &self,
        agent: AgentId,
        incarnation: Incarnation,
    ) -> impl Iterator<Item = AttemptId> {
        let of_it = self.missing.iter().filter(move |(_, missing)| {
            (missing.agent, missing.incarnation) == (agent, incarnation) && missing.kind != Kind::Settling
        });
        of_it.map(|(attempt, _)| *attempt)
    }

    /// A missing attempt has ended, so far with this doubt; says whether it was one. A lost answer is asked for again.
    pub(super) fn heard(&mut self, attempt: AttemptId, doubt: Option<Doubt>, now: Duration) -> bool {
        let Some(missing) = self.missing.get_mut(&attempt) else { return false };
        match doubt {
            Some(Doubt::Lost) => missing.recall_at = Some(now + RECALL_AGAIN),
            Some(Doubt::HungUp) if missing.kind == Kind::Running => {
                (missing.kind, missing.until) = (Kind::Settling, now + SETTLES_WITHIN);
            }
            Some(Doubt::HungUp) | None => {
                self.missing.remove(&attempt);
                self.wake_all();
            }
        }
        true
    }

    /// The roster has changed: agents that were gone and are back are asked at once.
    pub(super) fn returned(&mut self, back: &BTreeSet<AgentId>, now: Duration) {
        for missing in self.missing.values_mut().filter(|missing| back.contains(&missing.agent)) {
            missing.recall_at = missing.recall_at.map(|_| now);
        }
    }

    /// Recalls what is due, and gives up what has had its time. What belongs to an earlier run of its agent cannot be
    /// asked for, and its engine may go on for a while: an agent that was killed has proved nothing.
    pub(super) fn recall(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.missing.is_empty() {
            return;
        }
        let before = self.missing.len();
        for missing in self.missing.values_mut() {
            let another_run = |install: &Install| install.incarnation != missing.incarnation;
            if self.installs.get(&missing.agent).is_some_and(another_run) && missing.kind == Kind::Running {
                missing.kind = Kind::Settling;
                missing.until = missing.until.min(now + SETTLES_WITHIN);
                missing.recall_at = None;
            }
        }
        let installs = &self.installs;
        self.missing.retain(|_, missing| {
            let same_run = installs.get(&missing.agent).is_none_or(|i| i.incarnation == missing.incarnation);
            (same_run || missing.kind == Kind::Settling) && missing.until > now
        });
        if self.missing.len() < before {
            self.wake_all();
        }
        for (attempt, missing) in &mut self.missing {
            let there = self.installs.contains_key(&missing.agent) && !self.away.contains(&missing.agent);
            if missing.recall_at.is_some_and(|at| at <= now) && there {
                missing.recall_at = None;
                actions.push(Action::Recall(*attempt, missing.agent));
            }
        }
    }

    /// When time alone changes something for a missing attempt.
    pub(super) fn missing_ends(&self) -> impl Iterator<Item = Duration> {
        let recalls = self.missing.values().filter(|missing| self.installs.contains_key(&missing.agent));
        self.missing
            .values()
            .map(|missing| missing.until)
            .chain(recalls.filter_map(|missing| missing.recall_at))
    }

    /// Whether the end of a missing attempt of this agent is awaited.
    pub(super) fn misses(&self, agent: &AgentId) -> bool {
        self.missing.values().any(|missing| missing.agent == *agent && missing.kind != Kind::Settling)
    }

    /// The unguarded rivals of installs have changed.
    pub(super) fn note_lockless(&mut self) {
        let shares = |(agent, rivals): (&AgentId, &BTreeSet<AgentId>)| (!rivals.is_empty()).then_some(*agent);
        let some = self.unguarded.iter().filter_map(shares);
        self.lockless = some.chain(self.unguarded.values().flatten().copied()).collect();
    }

    /// Whether an attempt that is missing, or a predecessor's, may still run on a device of this install, with no lock
    /// between the two.
    pub(super) fn may_be_in_use(&self, agent: &AgentId) -> bool {
        if !self.lockless.contains(agent) {
            return false;
        }
        // Each saw only those rivals who were there when it was last seen itself.
        let unguarded = |of: &AgentId, rival: &AgentId| {
            self.unguarded.get(of).is_some_and(|rivals| rivals.contains(rival))
        };
        let apart =
            |holder: &AgentId| holder != agent && (unguarded(holder, agent) || unguarded(agent, holder));
        let lost = self.missing.values().filter(|missing| missing.kind != Kind::Ended);
        lost.map(|missing| &missing.agent).chain(self.orphans.values().map(|(holder, _)| holder)).any(apart)
    }
}
