//! What becomes of attempts when the way to their agent breaks and opens again: nothing that an agent still has runs
//! twice, and nothing is given up before the agent was asked or is dead.
//!
//! An attempt whose stream broke off is *detached*: it keeps its place and its devices. When the agent says what it
//! holds, a detached attempt that is named is listened to again. One that is not named never arrived, or was given
//! back before it started, so the same attempt is sent again: the agent starts each number once.

use std::{collections::BTreeSet, time::Duration};

use tropa_proto::{
    failure::Class,
    id::{AgentId, AttemptId, Incarnation},
};

use super::{
    Action, Doubt, Schedule, Status,
    holdings::{Active, Stage},
};

/// What an agent says that it holds of this job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reattached {
    /// The agent.
    pub agent: AgentId,
    /// This run of it.
    pub incarnation: Incarnation,
    /// Attempts that have not ended there.
    pub open: BTreeSet<AttemptId>,
    /// Attempts that have ended and wait for their acknowledgement.
    pub ended: BTreeSet<AttemptId>,
    /// Nothing was left out.
    pub whole: bool,
}

impl Schedule {
    /// Whether anything is awaited of this agent, so that its silence means something.
    #[must_use]
    pub fn awaits(&self, agent: &AgentId) -> bool {
        self.holdings.awaits(agent) || self.misses(agent)
    }

    pub(super) fn on_detached(&mut self, attempt: AttemptId, now: Duration, actions: &mut Vec<Action>) {
        match self.holdings.get_mut(&attempt) {
            Some(active) if !active.is_unsent() => {
                active.detached = true;
                actions.push(Action::Reattach(active.agent));
            }
            Some(_) => {}
            // It was being recalled: it is asked for again.
            None => {
                self.heard(attempt, Some(Doubt::Lost), now);
            }
        }
    }

    pub(super) fn on_alive(&mut self, agent: AgentId) {
        self.away.remove(&agent);
        self.woken.insert(agent);
    }

    pub(super) fn on_dead(&mut self, agent: AgentId, now: Duration, actions: &mut Vec<Action>) {
        self.away.insert(agent);
        let held = self.holdings.iter().filter(|(_, active)| active.agent == agent);
        let held: Vec<(AttemptId, bool)> =
            held.map(|(attempt, active)| (*attempt, active.is_unsent())).collect();
        for (attempt, unsent) in held {
            if unsent {
                self.take_back(attempt, actions);
            } else {
                self.on_ended(attempt, (Class::Lost, None), now, actions);
            }
        }
    }

    pub(super) fn on_reattached(&mut self, said: &Reattached, now: Duration, actions: &mut Vec<Action>) {
        let Reattached { agent, incarnation, .. } = *said;
        let held = self.holdings.iter().filter(|(_, active)| active.agent == agent && !active.is_unsent());
        let held: Vec<(AttemptId, Active)> =
            held.map(|(attempt, active)| (*attempt, active.clone())).collect();
        for (attempt, active) in held {
            if active.incarnation != incarnation {
                self.on_ended(attempt, (Class::Lost, None), now, actions);
            } else if active.detached {
                self.attach(attempt, &active, said, now, actions);
            }
        }
        for attempt in self.missing_of(agent, incarnation).collect::<Vec<_>>() {
            if said.open.contains(&attempt) && self.may_take_back(attempt, agent) {
                self.missing.remove(&attempt);
                self.retries.remove(&attempt.chunk);
                let active = Active { detached: false, ..Active::adopted(agent, incarnation, now) };
                self.hold(attempt, active);
                actions.push(Action::Fetch(attempt, agent));
            } else if let Some(missing) = self.missing.get_mut(&attempt) {
                missing.recall_at = Some(now);
            }
        }
        self.away.remove(&agent);
        self.wake_all();
    }

    /// A detached attempt of the run that answers: listened to, sent again, or cancelled again.
    fn attach(
        &mut self,
        attempt: AttemptId,
        active: &Active,
        said: &Reattached,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let named = said.open.contains(&attempt) || said.ended.contains(&attempt);
        if let Some(held) = self.holdings.get_mut(&attempt) {
            (held.detached, held.since) = (false, now);
            // It is not asked back a second time: whoever is idle then decides anew.
            if held.stage == Stage::Returning {
                held.stage = Stage::Sent;
            }
        }
        actions.push(match active.stage {
            Stage::Cancelling => Action::Recall(attempt, active.agent),
            Stage::Sent | Stage::Returning if !named && said.whole => Action::Send(attempt, active.agent),
            Stage::Sent | Stage::Returning | Stage::Checking | Stage::Recording | Stage::Recorded => {
                Action::Fetch(attempt, active.agent)
            }
        });
    }

    /// A lost attempt turns out to run, and its chunk waits for another: no other is needed.
    fn may_take_back(&self, attempt: AttemptId, agent: AgentId) -> bool {
        let kind = self.work(attempt.chunk).kind();
        let rivals_hold = self
            .installs
            .get(&agent)
            .is_none_or(|install| self.is_kept_off(install, Some(kind), |other| self.holdings.holds(other)));
        self.status(attempt.chunk) == Some(Status::Open)
            && self.retries.contains(&attempt.chunk)
            && !rivals_hold
    }
}
