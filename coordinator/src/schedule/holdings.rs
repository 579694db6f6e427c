//! Who holds which attempts now, counted by install, so that a decision looks at one install and its rivals only.

use std::{collections::BTreeMap, time::Duration};

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
    /// The same, and it has been asked back, should it not have started.
    Returning,
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

/// All attempts that have not ended, each with the install that holds it.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// Who holds it.
    holders: BTreeMap<AttemptId, AgentId>,
    /// What they hold, of all that hold any.
    held: BTreeMap<AgentId, Held>,
    /// How many GPU lanes of each machine are busy.
    crews: Crews,
}

/// What one install holds, in order.
#[derive(Debug, Default)]
struct Held {
    /// What takes a place, or will.
    placed: Vec<(AttemptId, Active)>,
    /// What its agent still checks.
    checking: Vec<(AttemptId, Active)>,
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
        matches!(self.stage, Stage::Sent | Stage::Returning | Stage::Cancelling)
    }

    /// It has never left this coordinator.
    pub(super) fn is_unsent(&self) -> bool {
        matches!(self.stage, Stage::Recording | Stage::Recorded)
    }
}

impl Held {
    fn lists(&self) -> [&Vec<(AttemptId, Active)>; 2] {
        [&self.placed, &self.checking]
    }

    fn get(&self, attempt: &AttemptId) -> Option<&Active> {
        self.lists().into_iter().find_map(|list| Some(&list[find(list, attempt).ok()?].1))
    }

    fn get_mut(&mut self, attempt: &AttemptId) -> Option<&mut Active> {
        let lists = [&mut self.placed, &mut self.checking];
        lists.into_iter().find_map(|list| {
            let at = find(list, attempt).ok()?;
            Some(&mut list[at].1)
        })
    }
}

impl Holdings {
    pub(super) fn insert(&mut self, attempt: AttemptId, active: Active) {
        self.holders.insert(attempt, active.agent);
        let placed = &mut self.held.entry(active.agent).or_default().placed;
        if placed.is_empty() {
            self.crews.began(&active.agent);
        }
        put(placed, attempt, active);
    }

    /// Takes in a new roster: which installs work on GPUs, of which machines.
    pub(super) fn renew<'a>(&mut self, installs: impl Iterator<Item = &'a Install>) {
        // Both lie side by side, and the one is counted from the other.
        let Self { held, crews, .. } = self;
        crews.renew(installs, with_places(held).map(|(agent, _)| agent));
    }

    /// The GPU lanes, and how many of them are busy.
    pub(super) fn crews(&self) -> &Crews {
        &self.crews
    }

    pub(super) fn remove(&mut self, attempt: &AttemptId) -> Option<Active> {
        let agent = self.holders.remove(attempt)?;
        let active = self.give_place_back(attempt, agent).or_else(|| {
            let checking = &mut self.held.get_mut(&agent)?.checking;
            Some(checking.remove(find(checking, attempt).ok()?).1)
        });
        if self.held.get(&agent).is_some_and(|held| held.lists().iter().all(|list| list.is_empty())) {
            self.held.remove(&agent);
        }
        active
    }

    /// The engine has ended it: it takes no place any more. Says whose place that was.
    pub(super) fn release(&mut self, attempt: &AttemptId) -> Option<AgentId> {
        let agent = *self.holders.get(attempt)?;
        if let Some(mut active) = self.give_place_back(attempt, agent) {
            (active.stage, active.running) = (Stage::Checking, false);
            put(&mut self.held.entry(agent).or_default().checking, *attempt, active);
        }
        Some(agent)
    }

    /// Whether this agent has, or may have, anything whose end is awaited.
    pub(super) fn awaits(&self, agent: &AgentId) -> bool {
        let checks = self.held.get(agent).is_some_and(|held| !held.checking.is_empty());
        checks || self.of(agent).iter().any(|(_, active)| active.occupies())
    }

    fn give_place_back(&mut self, attempt: &AttemptId, agent: AgentId) -> Option<Active> {
        let placed = &mut self.held.get_mut(&agent)?.placed;
        let (_, active) = placed.remove(find(placed, attempt).ok()?);
        if placed.is_empty() {
            self.crews.ended(&agent);
        }
        Some(active)
    }

    pub(super) fn get(&self, attempt: &AttemptId) -> Option<&Active> {
        self.held.get(self.holders.get(attempt)?)?.get(attempt)
    }

    /// To change its stage; its agent stays.
    pub(super) fn get_mut(&mut self, attempt: &AttemptId) -> Option<&mut Active> {
        self.held.get_mut(self.holders.get(attempt)?)?.get_mut(attempt)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&AttemptId, &Active)> {
        self.holders
            .iter()
            .filter_map(|(attempt, agent)| Some((attempt, self.held.get(agent)?.get(attempt)?)))
    }

    /// Those that take a place, or will, in order of the installs that hold them.
    pub(super) fn by_agent(&self) -> impl Iterator<Item = (&AgentId, &[(AttemptId, Active)])> {
        with_places(&self.held)
    }

    /// Those of one install that take a place, or will, in order.
    pub(super) fn of(&self, agent: &AgentId) -> &[(AttemptId, Active)] {
        self.held.get(agent).map_or(&[], |held| &held.placed)
    }

    /// Whether this install holds anything that takes a place.
    pub(super) fn holds(&self, agent: &AgentId) -> bool {
        !self.of(agent).is_empty()
    }

    /// The attempts of one chunk: numbers rise within it.
    pub(super) fn of_chunk(&self, attempt: AttemptId) -> impl Iterator<Item = AttemptId> {
        let range = AttemptId { no: 0, ..attempt }..=AttemptId { no: u32::MAX, ..attempt };
        self.holders.range(range).map(|(attempt, _)| *attempt)
    }

    /// An attempt that is not where it is looked for, if there is one: there must be none.
    pub(super) fn astray(&self) -> Option<AttemptId> {
        let mut there = BTreeMap::new();
        for (agent, held) in &self.held {
            for (list, checks) in [(&held.placed, false), (&held.checking, true)] {
                for (attempt, active) in list {
                    let fits = active.agent == *agent && (active.stage == Stage::Checking) == checks;
                    let found = find(list, attempt).is_ok() && there.insert(*attempt, *agent).is_none();
                    if !fits || !found {
                        return Some(*attempt);
                    }
                }
            }
        }
        let lost = self.holders.iter().find(|(attempt, agent)| there.get(attempt) != Some(agent));
        let unknown = || there.keys().find(|attempt| !self.holders.contains_key(attempt));
        lost.map(|(attempt, _)| attempt).or_else(unknown).copied()
    }
}

/// All who hold anything that takes a place, with that.
fn with_places(held: &BTreeMap<AgentId, Held>) -> impl Iterator<Item = (&AgentId, &[(AttemptId, Active)])> {
    held.iter().map(|(agent, held)| (agent, &held.placed[..])).filter(|(_, placed)| !placed.is_empty())
}

fn find(list: &[(AttemptId, Active)], attempt: &AttemptId) -> Result<usize, usize> {
    list.binary_search_by(|(other, _)| other.cmp(attempt))
}

fn put(list: &mut Vec<(AttemptId, Active)>, attempt: AttemptId, active: Active) {
    match find(list, &attempt) {
        Ok(at) => list[at].1 = active,
        Err(at) => list.insert(at, (attempt, active)),
    }
}
