//! What a new roster changes: attempts of a predecessor that may be adopted, and rivals that nobody knew of.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_proto::{
    failure::Class,
    id::{AgentId, AttemptId, ChunkIndex, Incarnation},
    proof::{Bug, planted},
};

use super::{
    Action, Doubt, History, Install, Schedule, Status,
    holdings::{Active, Stage},
};

/// After a restart, how long an attempt of the predecessor may wait for its agent to appear before it counts as
/// lost: three roster pulls (`libp2p.md` §3.4).
const ADOPTION_GRACE: Duration = Duration::from_secs(3);

/// What a predecessor left in the journal of attempts that may still run.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// Attempts whose end nobody has seen, of chunks that are open, with the runs of the agents that had them.
    pub open: BTreeMap<AttemptId, (AgentId, Incarnation)>,
    /// Attempts that ended without proof that the engine is done with them: lost, or hung up on.
    pub doubtful: BTreeMap<AttemptId, ((AgentId, Incarnation), Doubt)>,
    /// The unguarded rivals of agents ([`Install::unguarded`]): where the holder of a device is out of reach, this alone
    /// keeps a rival from it.
    pub unguarded: BTreeMap<AgentId, BTreeSet<AgentId>>,
}

impl Schedule {
    /// Takes over what a predecessor left in the journal, before the first event: chunks that are closed, what
    /// has happened to others, and attempts that may still run.
    pub fn resume(
        &mut self,
        closed: impl IntoIterator<Item = ChunkIndex>,
        history: BTreeMap<ChunkIndex, History>,
        left: Left,
    ) {
        for chunk in closed {
            self.close(chunk);
        }
        for (chunk, history) in &history {
            if let (Some((no, class)), Some(Status::Open)) = (history.over(), self.status(*chunk)) {
                self.finish(*chunk);
                self.fails.push((AttemptId { job: self.job, chunk: *chunk, no }, class));
            }
        }
        self.history = history;
        if !planted(Bug::RequeueBeforeReattach) {
            self.orphans = left.open;
        }
        self.unguarded = left.unguarded;
        self.note_lockless();
        for (attempt, (holder, doubt)) in left.doubtful {
            self.doubt(attempt, holder, doubt);
        }
        let waiting: BTreeSet<ChunkIndex> = self.orphans.keys().map(|attempt| attempt.chunk).collect();
        for (index, work) in (0..).map(ChunkIndex).zip(&self.works) {
            if self.status(index) != Some(Status::Open) || waiting.contains(&index) {
                self.waiting.remove(self.needs.rank(index), work);
            }
        }
    }

    pub(super) fn on_roster(&mut self, installs: Vec<Install>, now: Duration, actions: &mut Vec<Action>) {
        let installs = installs.into_iter().map(|install| (install.agent, install)).collect();
        let before: BTreeMap<AgentId, Install> = std::mem::replace(&mut self.installs, installs);
        self.holdings.renew(self.installs.values());
        self.woken.extend(self.installs.keys());
        let mut back = BTreeSet::new();
        for install in self.installs.values() {
            // Of those who are away nothing is known but what was.
            let rivals = self.unguarded.entry(install.agent).or_default();
            let known = rivals.clone();
            rivals.retain(|rival| !self.installs.contains_key(rival));
            rivals.extend(&install.unguarded);
            if known != *rivals {
                actions.push(Action::Unguarded(install.agent, rivals.clone()));
            }
            let standing = self.standing.entry(install.agent).or_default();
            let known = before.get(&install.agent);
            if standing.is_another_process(install.incarnation, install.engine) {
                // It may have other slots, and has read nothing.
                standing.widths.clear();
                self.waiting.reads(std::mem::take(&mut standing.prefix), 0);
            }
            standing.described(
                &install.models,
                known.is_none_or(|known| known.incarnation == install.incarnation),
            );
            if known.is_none() {
                standing.came_back();
                back.insert(install.agent);
            } else if known.is_some_and(|known| known.shut && !install.shut) {
                standing.came_back();
            }
        }
        self.note_lockless();
        self.returned(&back, now);
        let takes = |active: &Active| {
            let install = self.installs.get(&active.agent);
            install.is_some_and(|install| !install.shut && install.incarnation == active.incarnation)
        };
        let gone = self.holdings.iter().filter(|(_, active)| active.is_unsent() && !takes(active));
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
            for (attempt, (agent, incarnation)) in std::mem::take(&mut self.orphans) {
                self.lose_orphan(attempt, agent, incarnation, now, actions);
            }
            self.wake_all();
        }
    }

    /// Takes over the attempts of a predecessor that the same run of the same agent may have, and asks it.
    fn adopt(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for (attempt, (agent, incarnation)) in self.orphans.clone() {
            let Some(install) = self.installs.get(&agent) else { continue };
            let kind = self.work(attempt.chunk).kind();
            if self.is_kept_off(install, Some(kind), |other| self.holdings.holds(other)) {
                continue;
            }
            let same_run = install.incarnation == incarnation;
            self.orphans.remove(&attempt);
            if same_run {
                let active = Active::adopted(agent, incarnation, now);
                self.hold(attempt, active);
                actions.push(Action::Reattach(agent));
            } else {
                self.lose_orphan(attempt, agent, incarnation, now, actions);
            }
        }
    }

    fn lose_orphan(
        &mut self,
        attempt: AttemptId,
        agent: AgentId,
        incarnation: Incarnation,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        self.holdings.insert(attempt, Active::adopted(agent, incarnation, now));
        self.on_ended(attempt, (Class::Lost, None), now, actions);
    }

    /// Installs that turn out to share a device while both hold work, or the processors of their machine with more lanes
    /// than those serve: what has not started is taken back, and neither gets more until one has ended. What runs is
    /// let finish: hanging up frees no device at once.
    fn part_new_rivals(&mut self, actions: &mut Vec<Action>) {
        let holders: BTreeSet<AgentId> = self.holdings.by_agent().map(|(agent, _)| *agent).collect();
        let occupying: BTreeSet<AgentId> = self
            .holdings
            .iter()
            .filter(|(_, active)| active.occupies())
            .map(|(_, active)| active.agent)
            .collect();
        let mut surprises = BTreeSet::new();
        let mut unsent = Vec::new();
        for agent in &holders {
            let Some(install) = self.installs.get(agent) else { continue };
            let rivals: BTreeSet<AgentId> = self.colliding(install, &holders).collect();
            if rivals.is_empty() && !self.holdings.crews().is_over(agent) {
                continue;
            }
            let held = self.holdings.of(agent).iter().filter(|(_, active)| active.is_unsent());
            unsent.extend(held.map(|(attempt, _)| *attempt));
            let later = rivals.intersection(&occupying).filter(|rival| **rival > *agent);
            if occupying.contains(agent) {
                surprises.extend(later.map(|rival| (*agent, *rival)));
            }
        }
        self.surprises = surprises;
        for attempt in unsent {
            self.take_back(attempt, actions);
        }
        // What lies ready would start beside the other's work: always the later one's, and the earlier one's where the
        // later is at the engine.
        let running = |agent: &AgentId| self.holdings.of(agent).iter().any(|(_, active)| active.running);
        let pairs = self.surprises.iter();
        let part: BTreeSet<AgentId> = pairs
            .flat_map(|(earlier, later)| [Some(*later), running(later).then_some(*earlier)])
            .flatten()
            .collect();
        for agent in part {
            let waiting =
                self.holdings.of(&agent).iter().filter(|(_, a)| a.stage == Stage::Sent && !a.running);
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
