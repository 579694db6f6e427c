//! Who holds which attempts now, counted by install, so that a decision looks at one install and its rivals only.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_proto::id::{AgentId, AttemptId, Incarnation};

use super::{Install, cores::Crews};

/// Over how long an attempt is judged by what it does at present: agents tell of tokens four times a second, and an
/// engine may be held up for a moment.
const LATELY: Duration = Duration::from_secs(1);

/// Where an attempt is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its row is on its way to the disk.
    Recording,
    /// Its row is on disk.
    Recorded,
    /// The agent has it, or may have it.
    Sent,
    /// The same, and it has been told to stop.
    Cancelling,
    /// The engine has ended it; the agent reads which model ran.
    Checking,
}

/// An attempt that has not ended.
#[derive(Clone, Debug)]
pub(super) struct Active {
    pub(super) agent: AgentId,
    /// The run of the agent that it is meant for.
    pub(super) incarnation: Incarnation,
    pub(super) stage: Stage,
    /// The agent says that it is at the engine.
    pub(super) running: bool,
    /// Since when.
    pub(super) running_since: Option<Duration>,
    /// Tokens that it has written so far, as the agent says now and then.
    pub(super) tokens: u32,
    /// Two earlier moments with what it had written by then, the older first: what it did lately is judged from there.
    pub(super) marks: [Option<(Duration, u32)>; 2],
    /// It was sent by a predecessor of this coordinator.
    pub(super) adopted: bool,
    /// Its stream broke off, and the agent has not been asked yet.
    pub(super) detached: bool,
    pub(super) since: Duration,
}

/// All attempts that have not ended.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    active: BTreeMap<AttemptId, Active>,
    /// Those that take a place, or will.
    by_agent: BTreeMap<AgentId, BTreeSet<AttemptId>>,
    /// How many the agents still check, where any.
    checking: BTreeMap<AgentId, usize>,
    /// How many GPU lanes of each machine are busy.
    crews: Crews,
}

impl Active {
    /// A new one, whose row is on its way to the disk.
    pub(super) fn recording(agent: AgentId, incarnation: Incarnation, since: Duration) -> Self {
        Self {
            agent,
            incarnation,
            stage: Stage::Recording,
            running: false,
            running_since: None,
            tokens: 0,
            marks: [None; 2],
            adopted: false,
            detached: false,
            since,
        }
    }

    /// One of a predecessor, taken over as it is.
    pub(super) fn adopted(agent: AgentId, incarnation: Incarnation, since: Duration) -> Self {
        Self {
            stage: Stage::Sent,
            adopted: true,
            detached: true,
            ..Self::recording(agent, incarnation, since)
        }
    }

    /// The agent says how many tokens it has written.
    pub(super) fn wrote(&mut self, count: u32, now: Duration) {
        self.tokens = self.tokens.max(count);
        if self.marks[1].is_none_or(|(at, _)| now >= at + LATELY) {
            self.marks = [self.marks[1], Some((now, self.tokens))];
        }
    }

    /// Seconds for a token lately, over [`LATELY`] or a little more; `None` where it has not written for so long.
    pub(super) fn lately(&self, now: Duration) -> Option<f64> {
        let [older, newer] = self.marks;
        let (at, tokens) = newer.filter(|(at, _)| now >= *at + LATELY).or(older)?;
        let written = self.tokens.saturating_sub(tokens).max(1);
        Some(now.saturating_sub(at).as_secs_f64() / f64::from(written))
    }

    /// It takes a place at the agent, or may take one.
    pub(super) fn occupies(&self) -> bool {
        matches!(self.stage, Stage::Sent | Stage::Cancelling)
    }

    /// It has never left this coordinator.
    pub(super) fn is_unsent(&self) -> bool {
        matches!(self.stage, Stage::Recording | Stage::Recorded)
    }
}

impl Holdings {
    pub(super) fn insert(&mut self, attempt: AttemptId, active: Active) {
        let held = self.by_agent.entry(active.agent).or_default();
        if held.is_empty() {
            self.crews.began(&active.agent);
        }
        held.insert(attempt);
        self.active.insert(attempt, active);
    }

    /// Takes in a new roster: which installs work on GPUs, of which machines.
    pub(super) fn renew<'a>(&mut self, installs: impl Iterator<Item = &'a Install>) {
        // Both lie side by side, and the one is counted from the other.
        let Self { by_agent, crews, .. } = self;
        crews.renew(installs, by_agent.keys());
    }

    /// The GPU lanes, and how many of them are busy.
    pub(super) fn crews(&self) -> &Crews {
        &self.crews
    }

    pub(super) fn remove(&mut self, attempt: &AttemptId) -> Option<Active> {
        let active = self.active.remove(attempt)?;
        if active.stage == Stage::Checking {
            self.checked(active.agent);
        }
        self.give_place_back(attempt, active.agent);
        Some(active)
    }

    /// The engine has ended it: it takes no place any more. Says whose place that was.
    pub(super) fn release(&mut self, attempt: &AttemptId) -> Option<AgentId> {
        let active = self.active.get_mut(attempt)?;
        let agent = active.agent;
        if active.stage != Stage::Checking {
            (active.stage, active.running) = (Stage::Checking, false);
            *self.checking.entry(agent).or_default() += 1;
            self.give_place_back(attempt, agent);
        }
        Some(agent)
    }

    fn checked(&mut self, agent: AgentId) {
        if let Some(count) = self.checking.get_mut(&agent) {
            *count -= 1;
            if *count == 0 {
                self.checking.remove(&agent);
            }
        }
    }

    /// Whether this agent has, or may have, anything whose end is awaited.
    pub(super) fn awaits(&self, agent: &AgentId) -> bool {
        self.checking.contains_key(agent) || self.of(agent).any(|(_, active)| active.occupies())
    }

    fn give_place_back(&mut self, attempt: &AttemptId, agent: AgentId) {
        if let Some(held) = self.by_agent.get_mut(&agent) {
            held.remove(attempt);
            if held.is_empty() {
                self.by_agent.remove(&agent);
                self.crews.ended(&agent);
            }
        }
    }

    pub(super) fn get(&self, attempt: &AttemptId) -> Option<&Active> {
        self.active.get(attempt)
    }

    /// To change its stage; its agent stays.
    pub(super) fn get_mut(&mut self, attempt: &AttemptId) -> Option<&mut Active> {
        self.active.get_mut(attempt)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&AttemptId, &Active)> {
        self.active.iter()
    }

    /// Those of one install that take a place, in order.
    pub(super) fn of(&self, agent: &AgentId) -> impl Iterator<Item = (&AttemptId, &Active)> {
        let held = self.by_agent.get(agent).into_iter().flatten();
        held.filter_map(|attempt| Some((attempt, self.active.get(attempt)?)))
    }

    /// Whether this install holds anything that takes a place.
    pub(super) fn holds(&self, agent: &AgentId) -> bool {
        self.by_agent.contains_key(agent)
    }

    /// The installs that hold anything that takes a place, in order.
    pub(super) fn holders(&self) -> impl Iterator<Item = &AgentId> {
        self.by_agent.keys()
    }

    /// The attempts of one chunk: numbers rise within it.
    pub(super) fn of_chunk(&self, attempt: AttemptId) -> impl Iterator<Item = AttemptId> {
        let range = AttemptId { no: 0, ..attempt }..=AttemptId { no: u32::MAX, ..attempt };
        self.active.range(range).map(|(attempt, _)| *attempt)
    }
}
