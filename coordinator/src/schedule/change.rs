//! What a new roster changes: attempts of a predecessor that may be adopted, and rivals that nobody knew of.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_proto::{
    failure::Class,
    id::{AgentId, AttemptId, ChunkIndex, Incarnation},
};

use super::{
    Action, History, Install, Schedule, Status,
    holdings::{Active, Stage},
};

/// After a restart, how long an attempt of the predecessor may wait for its agent to appear before it counts as
/// lost: three roster pulls (`libp2p.md` §3.4).
const ADOPTION_GRACE: Duration = Duration::from_secs(3);

impl Schedule {
    /// Takes over what a predecessor left in the journal, before the first event: chunks that are closed, what
    /// has happened to others, and attempts whose end nobody has seen.
    pub fn resume(
        &mut self,
        closed: impl IntoIterator<Item = ChunkIndex>,
        history: BTreeMap<ChunkIndex, History>,
        open_attempts: BTreeMap<AttemptId, (AgentId, Incarnation)>,
    ) {
        for chunk in closed {
            self.close(chunk);
        }
        self.history = history;
        self.orphans = open_attempts;
        let waiting: BTreeSet<ChunkIndex> = self.orphans.keys().map(|attempt| attempt.chunk).collect();
        let status = &self.status;
        for queue in self.queues.values_mut() {
            queue.retain(|chunk| status[chunk.0 as usize] == Status::Open && !waiting.contains(chunk));
        }
    }

    pub(super) fn on_roster(&mut self, installs: Vec<Install>, now: Duration, actions: &mut Vec<Action>) {
        self.installs = installs.into_iter().map(|install| (install.agent, install)).collect();
        self.woken.extend(self.installs.keys());
        let gone = self
            .holdings
            .iter()
            .filter(|(_, active)| !self.installs.contains_key(&active.agent) && active.is_unsent());
        let gone: Vec<AttemptId> = gone.map(|(attempt, _)| *attempt).collect();
        for attempt in gone {
            self.take_back(attempt, actions);
        }
        self.adopt(now, actions);
        self.part_new_rivals(actions);
    }

    /// When orphans are given up, if there are any.
    pub(super) fn adoption_ends(&self) -> Option<Duration> {
        (!self.orphans.is_empty()).then_some(ADOPTION_GRACE)
    }

    /// Whether this install may still hold an attempt of a predecessor.
    pub(super) fn orphaned(&self, agent: &AgentId) -> bool {
        self.orphans.values().any(|(holder, _)| holder == agent)
    }

    pub(super) fn give_up_orphans(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if now >= ADOPTION_GRACE && !self.orphans.is_empty() {
            for (attempt, (agent, _)) in std::mem::take(&mut self.orphans) {
                self.lose_orphan(attempt, agent, actions);
            }
            self.wake_all();
        }
    }

    /// Sends attempts of a predecessor again to the same run of the same agent, which answers with their state.
    fn adopt(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for (attempt, (agent, incarnation)) in self.orphans.clone() {
            let Some(install) = self.installs.get(&agent) else { continue };
            if install.rivals.iter().any(|rival| self.holdings.holds(rival)) {
                continue;
            }
            let same_run = install.incarnation == incarnation;
            self.orphans.remove(&attempt);
            if same_run {
                let active = Active { agent, stage: Stage::Sent, running: false, adopted: true, since: now };
                self.holdings.insert(attempt, active);
                actions.push(Action::Send(attempt, agent));
            } else {
                self.lose_orphan(attempt, agent, actions);
            }
        }
    }

    fn lose_orphan(&mut self, attempt: AttemptId, agent: AgentId, actions: &mut Vec<Action>) {
        let since = Duration::ZERO;
        let active = Active { agent, stage: Stage::Sent, running: false, adopted: true, since };
        self.holdings.insert(attempt, active);
        self.on_ended(attempt, Class::Lost, since, actions);
    }

    /// Installs that turn out to share a device while both hold work: what has not started is taken back, and
    /// neither gets more until one has ended. What runs is let finish: hanging up frees no device at once.
    fn part_new_rivals(&mut self, actions: &mut Vec<Action>) {
        let holders: BTreeSet<AgentId> = self.holdings.holders().copied().collect();
        let occupying: BTreeSet<AgentId> = self
            .holdings
            .iter()
            .filter(|(_, active)| active.occupies())
            .map(|(_, active)| active.agent)
            .collect();
        self.surprises.clear();
        let mut unsent = Vec::new();
        for agent in &holders {
            let Some(install) = self.installs.get(agent) else { continue };
            if install.rivals.is_disjoint(&holders) {
                continue;
            }
            let held = self.holdings.of(agent).filter(|(_, active)| active.is_unsent());
            unsent.extend(held.map(|(attempt, _)| *attempt));
            let later = install.rivals.intersection(&occupying).filter(|rival| **rival > *agent);
            if occupying.contains(agent) {
                self.surprises.extend(later.map(|rival| (*agent, *rival)));
            }
        }
        for attempt in unsent {
            self.take_back(attempt, actions);
        }
        let later: BTreeSet<AgentId> = self.surprises.iter().map(|(_, later)| *later).collect();
        for agent in later {
            let waiting = self.holdings.of(&agent).filter(|(_, a)| a.stage == Stage::Sent && !a.running);
            let waiting: Vec<AttemptId> = waiting.map(|(attempt, _)| *attempt).collect();
            for attempt in waiting {
                if let Some(active) = self.holdings.get_mut(&attempt) {
                    active.stage = Stage::Cancelling;
                    actions.push(Action::Cancel(attempt, agent));
                }
            }
        }
    }
}
