//! Live tests: two agents are asked to show that they are, or are not, one kernel (`identity.md` §9).
//!
//! Ids are copied easily, what a kernel does at this moment is not. [`LiveTests`] decides which pairs to test and
//! keeps what came of it; it is pure. `live/trial.rs` asks the agents, `live/judge.rs` judges the answers.
//!
//! A pair is tested once while both agents run: what was found holds for these two incarnations and is dropped when
//! one of them is gone. Tests run beside the work, a few at a time, and nobody waits for them. An agent whose
//! hardware is declared is never tested: it does run on this kernel, and would prove to be what its operator says
//! that it is not. Beside the tests agents are asked whose traffic arrives through their machine itself
//! (`live/neighbours.rs`).

mod judge;
mod neighbours;
mod report;
mod trial;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Serialize;
use tropa_proto::{
    evidence::Os,
    fuse::{LiveTest, PairFacts, TestToRun, Urgency},
    id::{AgentId, Incarnation},
    roster::{Install, Out, View},
};

use self::neighbours::Neighbours;
pub use self::{
    judge::{Exchange, Round, clocks, sandwich},
    report::{PairReport, notes, on_demand},
    trial::{ask_clock, ask_neighbours},
};

/// Pairs under test at once: an agent takes eight steps at a time, and the engine's machine has work to do.
const AT_ONCE: usize = 4;

/// Pairs whose results are kept: four per member of the largest mesh, where one per member is what is needed.
const MAX_PAIRS: usize = 4096;

/// How a live test came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The two are one kernel.
    Passed,
    /// The two are two kernels.
    Failed,
    /// It could not be told.
    Undecided,
}

/// One live test of one pair.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tested {
    /// `rendezvous`, `clock offset` or `counter sandwich`.
    pub test: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// What was seen, with its numbers, or why it could not be told.
    pub detail: String,
    /// Clock offset between the two, in nanoseconds: the smaller of two runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset_ns: Option<i64>,
    /// The round trip that bounds the offset, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_ns: Option<u64>,
    /// Counter readings of B between two of A, and how many there were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_order: Option<[u32; 2]>,
    /// The widest window, A₂ − A₁ against A₁, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub widest_percent: Option<f64>,
}

/// What the tests of one pair found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// Test by test, in the order in which they ran.
    pub tests: Vec<Tested>,
    /// The same for fusion.
    pub facts: PairFacts,
}

/// Two agents that are to be tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The agents, smaller id first.
    pub agents: [AgentId; 2],
    /// Their runs: answers of other runs count nothing.
    pub incarnations: [Incarnation; 2],
    /// Run every test, even where an earlier one has proved something.
    pub thorough: bool,
}

/// Which pairs are tested, and what was found; who has been asked about neighbours, and what was said.
#[derive(Debug, Default)]
pub struct LiveTests {
    records: BTreeMap<[AgentId; 2], Record>,
    running: BTreeSet<[AgentId; 2]>,
    neighbours: Neighbours,
}

#[derive(Debug)]
struct Record {
    incarnations: [Incarnation; 2],
    findings: Findings,
}

impl LiveTests {
    /// Takes the trials to start now, most urgent first; [`LiveTests::finished`] must follow for each.
    pub fn start(&mut self, view: &View) -> Vec<Trial> {
        let free = AT_ONCE.saturating_sub(self.running.len());
        let trials: Vec<Trial> = self.wanted(view).take(free).collect();
        self.running.extend(trials.iter().map(|trial| trial.agents));
        trials
    }

    /// Takes the agents to ask now whom they see beside them; [`LiveTests::told`] must follow for each.
    pub fn inquire(&mut self, view: &View, now: Duration) -> Vec<(AgentId, Incarnation)> {
        self.neighbours.due(view, now)
    }

    /// Nothing runs, and nothing is left to run.
    #[must_use]
    pub fn is_idle(&self, view: &View) -> bool {
        self.running.is_empty() && self.wanted(view).next().is_none()
    }

    /// Everybody who may be asked has been, and none of them is being asked.
    #[must_use]
    pub fn has_inquired(&self, view: &View) -> bool {
        self.neighbours.is_idle(view)
    }

    /// Takes whom a run of an agent sees beside it, nothing where it did not say; says whether fusion is to know.
    pub fn told(&mut self, agent: AgentId, incarnation: Incarnation, named: Option<&[AgentId]>) -> bool {
        self.neighbours.answered(agent, incarnation, named)
    }

    /// Takes what a trial found, unless one of its two runs has ended meanwhile; says whether it was taken. A proof
    /// of an earlier trial of the same two runs stays.
    pub fn finished(&mut self, view: &View, trial: &Trial, mut findings: Findings) -> bool {
        self.running.remove(&trial.agents);
        let runs = trial.agents.map(|agent| view.install(agent).map(|install| install.incarnation));
        if runs != trial.incarnations.map(Some) {
            return false;
        }
        // Records of ended runs are dropped when a new run is seen.
        if let Some(earlier) = self.records.get(&trial.agents) {
            let facts = &mut findings.facts;
            facts.rendezvous |= earlier.findings.facts.rendezvous;
            facts.sandwich = facts.sandwich.or(earlier.findings.facts.sandwich);
            facts.clock = facts.clock.or(earlier.findings.facts.clock);
        }
        self.records.insert(trial.agents, Record { incarnations: trial.incarnations, findings });
        true
    }

    /// Drops what does not hold for this run of an agent; says whether anything was dropped.
    pub fn saw(&mut self, agent: AgentId, incarnation: Incarnation) -> bool {
        let before = self.records.len();
        self.records.retain(|agents, record| {
            let run = agents.iter().zip(record.incarnations).find(|(of, _)| **of == agent);
            run.is_none_or(|(_, run)| run == incarnation)
        });
        self.neighbours.drop_but(agent, Some(incarnation)) || before != self.records.len()
    }

    /// Drops everything about an agent that has left for good; says whether there was anything.
    pub fn forget(&mut self, agent: AgentId) -> bool {
        let before = self.records.len();
        self.records.retain(|agents, _| !agents.contains(&agent));
        self.neighbours.drop_but(agent, None) || before != self.records.len()
    }

    /// What fusion is to know.
    #[must_use]
    pub fn facts(&self) -> BTreeMap<(AgentId, AgentId), PairFacts> {
        let mut facts =
            self.records.iter().map(|(&[a, b], record)| ((a, b), record.findings.facts)).collect();
        self.neighbours.add_to(&mut facts);
        facts
    }

    /// The tests of a pair, in either order; empty where it was not tested.
    #[must_use]
    pub fn of(&self, a: AgentId, b: AgentId) -> &[Tested] {
        self.records.get(&pair(a, b)).map_or(&[], |record| &record.findings.tests)
    }

    /// What the evidence calls for and nobody has tried with these two runs, most urgent first, each pair once.
    fn wanted<'a>(&'a self, view: &'a View) -> impl Iterator<Item = Trial> + 'a {
        let proposed = view.fusion.iter().flat_map(|fusion| fusion.tests_to_run());
        let mut seen = BTreeSet::new();
        let room = MAX_PAIRS.saturating_sub(self.records.len() + self.running.len());
        proposed
            .filter(|test| by_itself(test))
            .filter_map(|test| Trial::of(view, test.a, test.b, test.urgency == Urgency::Conflict).ok())
            .filter(|trial| !self.running.contains(&trial.agents))
            .filter(|trial| {
                let record = self.records.get(&trial.agents);
                record.is_none_or(|record| record.incarnations != trial.incarnations)
            })
            .filter(move |trial| seen.insert(trial.agents))
            .take(room)
    }
}

impl Trial {
    /// Makes a trial of two agents that are here.
    ///
    /// # Errors
    /// Says why the two cannot be tested.
    pub fn of(view: &View, a: AgentId, b: AgentId, thorough: bool) -> Result<Self, String> {
        let agents = pair(a, b);
        let [one, other] = agents.map(|agent| view.install(agent));
        let (Some(one), Some(other)) = (one, other) else { return Err("it is not here any more".to_owned()) };
        if one.agent == other.agent {
            return Err(format!("{} is one agent: name two", one.label));
        }
        for install in [one, other] {
            if let Some(why) = untestable(install) {
                return Err(why);
            }
        }
        if one.evidence.os != other.evidence.os {
            return Err(format!("{} and {} run different operating systems", one.label, other.label));
        }
        Ok(Self { agents, incarnations: [one.incarnation, other.incarnation], thorough })
    }
}

/// Says why an agent is never tested, where that is so.
fn untestable(install: &Install) -> Option<String> {
    let label = &install.label;
    if is_declared(install) {
        return Some(format!(
            "the hardware of {label} is declared, and a live test would see what it really runs on"
        ));
    }
    if install.evidence.os != Os::Linux {
        return Some(format!("{label} does not run Linux, where alone live tests are made"));
    }
    (install.out == Some(Out::Unreachable)).then(|| format!("{label} is not connected"))
}

/// The hardware of an agent is declared: by its bundle, or by an announcement that is newer than the bundle.
fn is_declared(install: &Install) -> bool {
    install.evidence.declared || install.out == Some(Out::Declared)
}

/// Tests that run without being asked for: the evidence contradicts itself, or an id says same. The rest is many
/// and would only find more to do at once, so it runs when somebody asks (`tropa machines --test A B`).
fn by_itself(test: &TestToRun) -> bool {
    let worth = matches!(test.urgency, Urgency::Conflict | Urgency::Confirm);
    // The beacon is not in this release (`identity.md` §10).
    worth && test.test != LiveTest::Beacon
}

fn pair(a: AgentId, b: AgentId) -> [AgentId; 2] {
    [a.min(b), a.max(b)]
}

#[cfg(test)]
mod tests;
