//! Fusion: evidence → kernels → machines, with reasons and warnings. Pure: no clock, no map order, no input or
//! output.
//!
//! There is no machine id to compute. Typed evidence is collected and judged at two levels: which agents are one
//! *kernel* (`kernels.rs`: live tests, boot ids, boot epochs), and which kernels are one *machine* (`judge.rs`: rules
//! of the operator, hard negatives, log odds; `machines.rs`: joining with cannot-link). Unknown is a result: pairs
//! that nothing decides, and pairs that contradict themselves, are *excluded*, which means scheduled exactly as if
//! the two were one machine. Evidence that is missing or contradictory counts less hardware, never more.
//!
//! Only pairs that share a value, a fact or a rule are judged in advance; the relation of strangers is computed when
//! somebody asks for it. So fusion stays near linear in the number of agents. The rules are those of `identity.md`
//! §5, §6, §7, §13 and §14; all its numbers are judgement (§18) and stand in one table, `score.rs`.

mod candidates;
mod groups;
mod judge;
mod kernels;
mod live_tests;
mod machines;
mod notices;
mod pool;
mod relate;
mod rivals;
mod score;
mod warnings;
mod why;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use self::{kernels::Kernels, machines::Machines, world::World};
pub use self::{
    score::{BOUNDS, Bounds, Line},
    warnings::{Code, Warning},
    why::{Reason, Why},
};
use crate::{
    device::{Lane, Place, conflict},
    epoch::EpochTrack,
    evidence::Evidence,
    id::{AgentId, MachineId},
};

/// Version of the rules and of every number in them; logged with each verdict.
pub const RULES_VERSION: u16 = 1;

/// An agent that is present.
#[derive(Clone, Debug)]
pub struct Member {
    /// Who it is, for tie-breaks and results.
    pub id: AgentId,
    /// The key that it runs with; two members with one key are copies of one state directory.
    pub key: AgentId,
    /// What it could read. An agent that declares its evidence and is not to be believed is passed with
    /// [`Evidence::empty`].
    pub evidence: Arc<Evidence>,
    /// Its boot epochs.
    pub epoch: EpochTrack,
    /// When it was heard first, by any clock that is common to all members.
    pub first_heard: Duration,
    /// When it was heard last.
    pub last_heard: Duration,
    /// Its machine changed more than three times in ten minutes: it is held apart and excluded with everyone.
    pub flapping: bool,
}

/// How a live test or a measurement came out; one that could not decide is not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Test {
    /// The two are one kernel.
    Pass,
    /// The two are two kernels.
    Fail,
}

/// How interference came out: by the active probe, or in production.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interference {
    /// One slows the other.
    Positive,
    /// Neither slows the other, measured with enough power to say so.
    Negative,
}

/// A clock offset between two agents: the best of several exchanges of four timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClockOffset {
    /// The offset in nanoseconds; its sign says nothing here.
    pub offset_ns: i64,
    /// The round trip in nanoseconds.
    pub rtt_ns: u64,
}

/// What is known about two agents together. A proof stays valid until either side's incarnation or boot changes;
/// whoever keeps the facts drops them then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PairFacts {
    /// The best clock offset.
    pub clock: Option<ClockOffset>,
    /// A nonce came through a rendezvous that only one kernel can offer.
    pub rendezvous: bool,
    /// The counter sandwich.
    pub sandwich: Option<Test>,
    /// The file-descriptor beacon.
    pub beacon: Option<Test>,
    /// The peer's traffic arrives through loopback or a local virtual interface.
    pub local_peer: bool,
    /// The active interference probe.
    pub probe: Option<Interference>,
    /// The same from production.
    pub passive: Option<Interference>,
}

/// What the operator says about two agents; it speaks for their whole kernels and beats all evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// One machine.
    Same,
    /// Two machines.
    Distinct,
}

/// Everything that fusion looks at. The order of members changes nothing, nor which agent of a pair comes first.
///
/// `TROPA_MACHINE`, a rule too, is in the evidence. A member that comes twice counts once, facts and rules about
/// agents that are not present count nothing.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// The agents that are present.
    pub members: Vec<Member>,
    /// Facts by pair. Where a pair stands both ways round, the two are taken together.
    pub facts: BTreeMap<(AgentId, AgentId), PairFacts>,
    /// Rules by pair.
    pub rules: BTreeSet<(AgentId, AgentId, Rule)>,
}

/// What two agents are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One kernel.
    SameKernel,
    /// Two kernels of one machine.
    SameMachine,
    /// Not known, or contradictory: scheduled as if one machine.
    UnknownExclude,
    /// Two machines.
    Distinct,
}

/// How sure a relation is; higher is surer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Nothing decides.
    Low,
    /// The odds speak for it.
    Medium,
    /// Strong evidence, not tested.
    High,
    /// The operator says so.
    Operator,
    /// A live test passed.
    Proof,
}

/// The final relation of two agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Relation {
    /// What they are to each other.
    pub kind: Kind,
    /// How sure that is.
    pub confidence: Confidence,
}

/// One kernel of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its smallest agent id.
    pub id: AgentId,
    /// Its agents, sorted.
    pub agents: Vec<AgentId>,
    /// Positively bare metal.
    pub bare: bool,
}

/// One machine of the result. Nothing is summed over agents: host totals are the maximum of what they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its smallest agent id.
    pub id: MachineId,
    /// Its agents, sorted.
    pub agents: Vec<AgentId>,
    /// Its kernels, sorted.
    pub kernels: Vec<Kernel>,
    /// Logical processors of the host.
    pub host_cpus: u16,
    /// Physical cores of the host; 0 where it is not known.
    pub physical_cores: u16,
    /// Memory of the host in bytes; 0 where it is not known.
    pub memory: u64,
}

/// A live test that would settle something, for two agents of one operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TestToRun {
    /// Why it is worth running; the order is the order in which to run them.
    pub urgency: Urgency,
    /// Which test.
    pub test: LiveTest,
    /// The smaller agent id.
    pub a: AgentId,
    /// The larger agent id.
    pub b: AgentId,
}

/// How much hangs on a live test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// The evidence contradicts itself.
    Conflict,
    /// An id says same; a test would prove it.
    Confirm,
    /// Nothing decides, and something is in common.
    Related,
    /// Nothing decides and nothing is in common.
    Strangers,
}

/// The live tests (`identity.md` §9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LiveTest {
    /// A nonce over a name that only one kernel knows.
    Rendezvous,
    /// Four timestamps.
    ClockOffset,
    /// Counters of the kernel, read A, B, A.
    Sandwich,
    /// A number of file descriptors, held by A, seen by B.
    Beacon,
}

/// The result of a fusion.
#[derive(Clone, Debug)]
pub struct Fusion {
    world: World,
    kernels: Kernels,
    machines: Machines,
    result: Vec<Machine>,
    warnings: Vec<Warning>,
    tests: Vec<TestToRun>,
}

/// Decides which agents are one kernel, which kernels one machine, and which pairs are not independent.
#[must_use]
pub fn fuse(input: &Input) -> Fusion {
    let world = World::new(input);
    let mut warnings = warnings::Warnings::default();
    let kernels = Kernels::form(&world, &mut warnings);
    let machines = Machines::form(&world, &kernels, &mut warnings);
    let result = machines::describe(&world, &kernels, &machines);
    let tests = live_tests::proposed(&world, &kernels, &machines);
    Fusion { world, kernels, machines, result, warnings: warnings.finish(), tests }
}

impl Fusion {
    /// The machines, sorted by id: a partition of the agents.
    #[must_use]
    pub fn machines(&self) -> &[Machine] {
        &self.result
    }

    /// The warnings, most urgent first.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Adds a warning that comes from elsewhere than the evidence, unless one of its kind names these agents already.
    pub(crate) fn warn(&mut self, code: Code, agents: impl IntoIterator<Item = AgentId>) {
        let agents: BTreeSet<AgentId> = agents.into_iter().collect();
        let given =
            |warning: &Warning| warning.code == code && agents.iter().all(|a| warning.agents.contains(a));
        if !self.warnings.iter().any(given) {
            self.warnings.push(Warning { code, agents: agents.into_iter().collect() });
            self.warnings.sort();
        }
    }

    /// The live tests that would settle something, most urgent first; bounded.
    #[must_use]
    pub fn tests_to_run(&self) -> &[TestToRun] {
        &self.tests
    }

    /// The agents, sorted.
    pub fn agents(&self) -> impl Iterator<Item = AgentId> + '_ {
        self.world.agents.iter().map(|agent| agent.id)
    }

    /// Where an agent is; `None` for an agent that is not present.
    #[must_use]
    pub fn place(&self, agent: AgentId) -> Option<Place> {
        let at = self.world.index(agent)?;
        let kernel = self.kernels.of(at);
        Some(Place {
            machine: MachineId(self.kernels.id(&self.world, self.machines.first(kernel))),
            kernel: self.kernels.id(&self.world, kernel),
        })
    }

    /// The final relation of two agents; `None` where one is not present, or both are one agent.
    #[must_use]
    pub fn relation(&self, a: AgentId, b: AgentId) -> Option<Relation> {
        let (i, j) = self.pair(a, b)?;
        Some(self.machines.relation(&self.world, &self.kernels, i, j))
    }

    /// Two agents of different machines that must not be treated as independent: unknown, contradictory, or listing
    /// one GPU.
    #[must_use]
    pub fn excluded(&self, a: AgentId, b: AgentId) -> bool {
        self.pair(a, b).is_some_and(|(i, j)| self.machines.excluded(&self.world, &self.kernels, i, j))
    }

    /// All excluded pairs, smaller id first, sorted. Quadratic in the number of agents: for display and tests.
    #[must_use]
    pub fn excluded_pairs(&self) -> Vec<(AgentId, AgentId)> {
        let agents: Vec<AgentId> = self.agents().collect();
        let pairs =
            agents.iter().enumerate().flat_map(|(at, a)| agents[at + 1..].iter().map(move |b| (*a, *b)));
        pairs.filter(|(a, b)| self.excluded(*a, *b)).collect()
    }

    /// Two agents are scheduled as one machine: they are one, or they are an excluded pair. An agent that is not
    /// present is together with everyone.
    #[must_use]
    pub fn together(&self, a: AgentId, b: AgentId) -> bool {
        match (self.place(a), self.place(b)) {
            (Some(one), Some(other)) => one.machine == other.machine || self.excluded(a, b),
            (None, _) | (_, None) => true,
        }
    }

    /// Says whether work of two agents on these lanes may overlap in time: the answer that the scheduler needs.
    #[must_use]
    pub fn may_overlap(&self, a: (AgentId, &Lane), b: (AgentId, &Lane)) -> bool {
        // Most lanes conflict in any case or in none, and then nobody needs to know where the two are.
        let if_one_machine = conflict(a.1, b.1, true);
        !if_one_machine || (!conflict(a.1, b.1, false) && !self.together(a.0, b.0))
    }

    /// Whose work may not overlap with whose: for each lane the agents of which [`Fusion::may_overlap`] says no, in
    /// time that grows with the agents and their rivals and not with all pairs. Every lane is one of its agent's own
    /// place ([`Fusion::place`]); agents that are not present have no rivals.
    #[must_use]
    pub fn rivals(&self, lanes: &BTreeMap<AgentId, &Lane>) -> BTreeMap<AgentId, BTreeSet<AgentId>> {
        let by_number: Vec<Option<&Lane>> =
            self.world.agents.iter().map(|agent| lanes.get(&agent.id).copied()).collect();
        let rivals = rivals::rivals(&self.world, &self.kernels, &self.machines, &by_number);
        let id = |at: usize| self.world.agents[at].id;
        let all = rivals.into_iter().enumerate();
        all.map(|(at, rivals)| (id(at), rivals.into_iter().map(id).collect())).collect()
    }

    /// Why two agents are what they are to each other: every line that counted, with its number, and what could not
    /// be read.
    #[must_use]
    pub fn why(&self, a: AgentId, b: AgentId) -> Option<Why> {
        let (i, j) = self.pair(a, b)?;
        Some(why::explain(&self.world, &self.kernels, &self.machines, i, j))
    }

    fn pair(&self, a: AgentId, b: AgentId) -> Option<(usize, usize)> {
        let (i, j) = (self.world.index(a)?, self.world.index(b)?);
        (i != j).then_some((i.min(j), i.max(j)))
    }
}

#[cfg(test)]
mod tests;
