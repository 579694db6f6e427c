//! Who gets what next: the hard rule, then an order of preference that ends in the id.

use std::{collections::BTreeSet, time::Duration};

use tropa_proto::id::{AgentId, AttemptId, ChunkIndex};

use super::{
    Action, Install, ModelIndex, Schedule,
    holdings::{Active, Stage},
};

/// Attempts recorded ahead of need on one install, at most. At 0.3 ms a chunk and 8 ms a sync 27 are enough; more
/// only delays the moment when a slow install's share can go elsewhere.
const MAX_AHEAD: usize = 32;

struct Places {
    send: usize,
    record: usize,
}

impl Schedule {
    /// Sends what is recorded and records what may come next, for the installs that something has changed for.
    pub(super) fn dispatch(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.paused || self.stopped {
            return;
        }
        let woken = std::mem::take(&mut self.woken);
        for agent in self.by_preference(woken) {
            let mut places = self.free_places(&agent, now);
            if places.send > 0 {
                let recorded = self.holdings.of(&agent).filter(|(_, active)| active.stage == Stage::Recorded);
                let recorded: Vec<AttemptId> =
                    recorded.map(|(attempt, _)| *attempt).take(places.send).collect();
                for attempt in recorded {
                    if let Some(active) = self.holdings.get_mut(&attempt) {
                        (active.stage, active.since) = (Stage::Sent, now);
                        actions.push(Action::Send(attempt, agent));
                    }
                }
            }
            while places.record > 0 {
                let Some(chunk) = self.take_chunk(&agent) else { break };
                let Some(install) = self.installs.get(&agent) else { break };
                let no = self.history.get(&chunk).map_or(1, |history| history.last_no + 1);
                let attempt = AttemptId { job: self.job, chunk, no };
                let incarnation = install.incarnation;
                actions.push(Action::Record(attempt, agent, incarnation));
                let (stage, running, adopted) = (Stage::Recording, false, false);
                let active = Active { agent, incarnation, stage, running, adopted, since: now };
                self.holdings.insert(attempt, active);
                places.record -= 1;
            }
        }
    }

    /// How many attempts may be sent to this install and how many recorded for it. **The rule of tropa**: none while
    /// a rival, an install that shares a device with it, holds any, or may still run one that was lost.
    fn free_places(&self, agent: &AgentId, now: Duration) -> Places {
        let none = Places { send: 0, record: 0 };
        let Some(install) = self.installs.get(agent) else { return none };
        let standing = self.standing.get(agent);
        if standing.is_some_and(|standing| {
            standing.pause_until > now || standing.closed_for == Some(install.incarnation)
        }) {
            return none;
        }
        let taken = |rival: &AgentId| self.holdings.holds(rival) || self.orphaned(rival);
        if install.rivals.iter().any(taken) || self.may_be_in_use(agent) {
            return none;
        }
        let (occupied, all) = self
            .holdings
            .of(agent)
            .fold((0, 0), |(sent, all), (_, active)| (sent + usize::from(active.occupies()), all + 1));
        // One beyond the width lies ready at the agent, so that the lane never waits for the network.
        let depth = install.width + 1;
        let ahead = standing.map_or(0, |standing| {
            let syncs = self.record_time.as_secs_f64() / standing.interval.as_secs_f64().max(1e-6);
            if standing.interval.is_zero() { 0 } else { ((syncs * 2.0) as usize).min(MAX_AHEAD) }
        });
        Places { send: depth.saturating_sub(occupied), record: (depth + ahead).saturating_sub(all) }
    }

    /// The next chunk for this install: retries first, then its warm models, then the model of the lowest chunk.
    fn take_chunk(&mut self, agent: &AgentId) -> Option<ChunkIndex> {
        let retry = self.retries.iter().copied().find(|chunk| self.may_retry(*chunk, agent));
        if let Some(chunk) = retry {
            self.retries.remove(&chunk);
            return Some(chunk);
        }
        let install = self.installs.get(agent)?;
        let without = self.standing.get(agent).map(|standing| &standing.without);
        let queues = self.queues.iter().filter(|(model, _)| {
            install.models.contains(model) && without.is_none_or(|without| !without.contains(model))
        });
        let next = queues
            .filter_map(|(model, queue)| Some((!install.warm.contains(model), *queue.front()?, *model)));
        let (.., model) = next.min()?;
        self.queues.get_mut(&model)?.pop_front()
    }

    /// A chunk that failed goes to other hardware, and back to the same only where there is no other.
    fn may_retry(&self, chunk: ChunkIndex, agent: &AgentId) -> bool {
        let model = self.model_of(chunk);
        let (Some(history), Some(install)) = (self.history.get(&chunk), self.installs.get(agent)) else {
            return false;
        };
        let tried = |install: &Install| {
            history.failed_on.contains(&install.agent)
                || install.rivals.iter().any(|rival| history.failed_on.contains(rival))
        };
        self.is_eligible(install, model) && (!tried(install) || self.eligible(model).all(tried))
    }

    /// The installs that have the model and have not been found to lack it or to be closed.
    pub(super) fn eligible(&self, model: ModelIndex) -> impl Iterator<Item = &Install> {
        self.installs.values().filter(move |install| self.is_eligible(install, model))
    }

    fn is_eligible(&self, install: &Install, model: ModelIndex) -> bool {
        install.models.contains(&model)
            && self.standing.get(&install.agent).is_none_or(|standing| {
                !standing.without.contains(&model) && standing.closed_for != Some(install.incarnation)
            })
    }

    /// Whoever holds work keeps its devices; then a warm model; then the faster; then the smaller id.
    fn by_preference(&self, woken: BTreeSet<AgentId>) -> Vec<AgentId> {
        let mut order: Vec<_> = woken
            .into_iter()
            .filter_map(|agent| {
                let install = self.installs.get(&agent)?;
                let interval = self.standing.get(&agent).map_or(Duration::ZERO, |standing| standing.interval);
                Some((!self.holdings.holds(&agent), install.warm.is_empty(), interval, agent))
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(.., agent)| agent).collect()
    }
}
