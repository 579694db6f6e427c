//! Which agents are one kernel (`identity.md` §5).
//!
//! A live test that passed is a proof and joins at once. Ids join where nothing separates the two groups. What ids
//! and tests say against each other is a conflict, which is unknown and not a choice.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ClockOffset, Code, LiveTest, Test, TestToRun, Urgency,
    groups::Groups,
    warnings::Warnings,
    world::{Agent, World},
};
use crate::{
    epoch::{EQUAL_WITHIN_NS, EpochComparison},
    evidence::{Os, Tag},
    id::AgentId,
};

/// How far a clock offset may exceed half a round trip: scheduling of the two processes. Judgement.
const CLOCK_SLACK_NS: u64 = 1_000_000;

/// How many tests are proposed at once; the rest comes when these are done.
const MAX_TESTS: usize = 4096;

/// What two agents' kernels are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// One kernel.
    Same { proof: bool },
    /// Two kernels.
    Different { live: bool },
    /// Not known.
    Unknown { conflict: bool },
}

/// Which rule of §5 decided, for `--why`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Because {
    Rendezvous,
    BeaconPassed,
    BeaconFailed,
    SandwichAgainstClock,
    SandwichFailed,
    ClockDisproves,
    SandwichPassed,
    BootAgainstEpoch,
    BootEqual,
    EpochEqual,
    BootAndEpochEqual,
    BootDiffers,
    EpochDiffers,
    SystemDiffers,
    PlatformDiffers,
    PlatformEqual,
    WindowsEqual,
    NotBothAlive,
    Nothing,
}

/// The kernel relation of two agents.
#[derive(Clone, Copy, Debug)]
pub(super) struct KernelRelation {
    pub(super) verdict: Verdict,
    pub(super) because: Because,
    /// A live test separates two that claim one boot.
    snapshot: bool,
}

/// The kernels. They are numbered in the order of their smallest agents.
#[derive(Clone, Debug)]
pub(super) struct Kernels {
    groups: Groups,
    proofs: Groups,
    /// Kernel number by agent, and agents by kernel number.
    of: Vec<usize>,
    pub(super) all: Vec<Vec<usize>>,
    /// Agent pairs whose join was refused and that are excluded for it.
    pub(super) refused: BTreeSet<(usize, usize)>,
    /// Agent pairs in conflict: by `KERNEL_CONFLICT`, or refused.
    pub(super) conflicts: BTreeSet<(usize, usize)>,
    /// Agent pairs that are the same by themselves, in whatever kernels they came to be.
    pub(super) same: Vec<(usize, usize)>,
    /// Pairs that share an id of the kernel.
    candidates: Vec<(usize, usize)>,
}

impl Kernels {
    /// Forms the kernels: by proofs, then by ids, in the order of (smaller, larger) agent id.
    pub(super) fn form(world: &World, warnings: &mut Warnings) -> Self {
        let n = world.agents.len();
        let mut kernels = Self {
            groups: Groups::singletons(n),
            proofs: Groups::singletons(n),
            of: Vec::new(),
            all: Vec::new(),
            refused: BTreeSet::new(),
            conflicts: BTreeSet::new(),
            same: Vec::new(),
            candidates: candidates(world),
        };
        let related: Vec<(usize, usize, KernelRelation)> =
            kernels.candidates.iter().map(|&(i, j)| (i, j, relate(world, i, j))).collect();
        for (i, j, relation) in &related {
            kernels.note(world, *i, *j, relation, warnings);
        }
        let same = |proof| {
            let wanted = Verdict::Same { proof };
            related.iter().filter(move |(_, _, relation)| relation.verdict == wanted)
        };
        for (i, j, _) in same(true) {
            kernels.join_by_proof(world, *i, *j, warnings);
        }
        kernels.proofs = kernels.groups.clone();
        for (i, j, _) in same(false) {
            kernels.join_by_id(world, *i, *j, warnings);
        }
        kernels.same = same(true).chain(same(false)).map(|(i, j, _)| (*i, *j)).collect();
        kernels.number(n);
        kernels
    }

    /// The kernel of an agent.
    pub(super) fn of(&self, agent: usize) -> usize {
        self.of[agent]
    }

    /// The id of a kernel: its smallest agent.
    pub(super) fn id(&self, world: &World, kernel: usize) -> AgentId {
        world.agents[self.all[kernel][0]].id
    }

    /// Passed live tests connect the two.
    pub(super) fn proven(&self, i: usize, j: usize) -> bool {
        self.proofs.of(i) == self.proofs.of(j)
    }

    /// The live tests that would settle something.
    pub(super) fn tests(&self, world: &World) -> Vec<TestToRun> {
        let mut tests = BTreeSet::new();
        let mut confirmed = BTreeMap::new();
        for &(i, j) in &self.candidates {
            let relation = relate(world, i, j);
            match relation.verdict {
                Verdict::Unknown { conflict: true } if !self.proven(i, j) => {
                    let facts = world.between(i, j).facts;
                    let test = if facts.sandwich.is_none() { LiveTest::Sandwich } else { LiveTest::Beacon };
                    propose(&mut tests, world, (i, j), Urgency::Conflict, &[test]);
                }
                // One test for each agent, against one agent of the kernel that it seems to belong to: linear.
                Verdict::Same { proof: false } if !self.proven(i, j) && confirmed.insert(j, i).is_none() => {
                    propose(&mut tests, world, (i, j), Urgency::Confirm, &[LiveTest::Sandwich]);
                }
                Verdict::Same { .. } | Verdict::Different { .. } | Verdict::Unknown { .. } => {}
            }
        }
        let undecided = [LiveTest::Rendezvous, LiveTest::ClockOffset, LiveTest::Sandwich];
        for (a, one) in self.all.iter().enumerate() {
            for other in &self.all[a + 1..] {
                if tests.len() >= MAX_TESTS {
                    break;
                }
                let (i, j) = (one[0], other[0]);
                if relate(world, i, j).verdict == (Verdict::Unknown { conflict: false }) {
                    let related = shares_something(&world.agents[i], &world.agents[j]);
                    let urgency = if related { Urgency::Related } else { Urgency::Strangers };
                    propose(&mut tests, world, (i, j), urgency, &undecided);
                }
            }
        }
        tests.into_iter().take(MAX_TESTS).collect()
    }

    /// Keeps what a pair's own relation says, and warns of it.
    fn note(
        &mut self,
        world: &World,
        i: usize,
        j: usize,
        relation: &KernelRelation,
        warnings: &mut Warnings,
    ) {
        let (a, b) = (world.agents[i].id, world.agents[j].id);
        if relation.snapshot {
            warnings.pair(Code::SnapshotCloneOrSpoof, a, b);
        }
        if relation.verdict == (Verdict::Unknown { conflict: true }) {
            warnings.pair(Code::KernelConflict, a, b);
            self.conflicts.insert((i, j));
        }
    }

    fn join_by_proof(&mut self, world: &World, i: usize, j: usize, warnings: &mut Warnings) {
        let apart = self.groups.of(i) != self.groups.of(j);
        if apart && !world.held_apart(i, j) && !self.blocked_by_rule(world, i, j, warnings) {
            self.groups.join(i, j);
        }
    }

    fn join_by_id(&mut self, world: &World, i: usize, j: usize, warnings: &mut Warnings) {
        let joined = self.groups.of(i) == self.groups.of(j);
        if joined || world.held_apart(i, j) || self.blocked_by_rule(world, i, j, warnings) {
            return;
        }
        let different =
            |(a, b): (usize, usize)| matches!(relate(world, a, b).verdict, Verdict::Different { .. });
        let live =
            |(a, b): (usize, usize)| relate(world, a, b).verdict == (Verdict::Different { live: true });
        if !self.groups.across(i, j).any(different) {
            self.groups.join(i, j);
        } else if !self.proofs.across(i, j).any(live) {
            self.refuse(i, j);
            warnings.pair(Code::KernelConflict, world.agents[i].id, world.agents[j].id);
        }
        // Else the agent follows its proof group: ids are weaker than tests.
    }

    /// A rule `distinct` between any two members blocks a join. The pair that has the rule is simply not joined.
    fn blocked_by_rule(&mut self, world: &World, i: usize, j: usize, warnings: &mut Warnings) -> bool {
        let distinct = |(a, b): (usize, usize)| world.ruled_distinct(a, b) && !world.ruled_same(a, b);
        if distinct((i, j)) {
            return true;
        }
        let blocked = self.groups.across(i, j).any(distinct);
        if blocked {
            self.refuse(i, j);
            warnings.pair(Code::MergeRefusedConflict, world.agents[i].id, world.agents[j].id);
        }
        blocked
    }

    fn refuse(&mut self, i: usize, j: usize) {
        self.refused.insert((i, j));
        self.conflicts.insert((i, j));
    }

    fn number(&mut self, n: usize) {
        self.all = self.groups.all().map(<[usize]>::to_vec).collect();
        self.of = vec![0; n];
        for (number, members) in self.all.iter().enumerate() {
            for &member in members {
                self.of[member] = number;
            }
        }
    }
}

/// The kernel relation of two agents by themselves: the first rule that matches.
pub(super) fn relate(world: &World, i: usize, j: usize) -> KernelRelation {
    let (one, other) = (&world.agents[i], &world.agents[j]);
    let facts = world.between(i, j).facts;
    let boot = one.boot.zip(other.boot).map(|(one, other)| one == other);
    let epoch = match one.epoch.compare(&other.epoch) {
        EpochComparison::Equal => Some(true),
        EpochComparison::Different => Some(false),
        EpochComparison::NotComparable => None,
    };
    let says = |verdict, because| KernelRelation { verdict, because, snapshot: false };
    let separated = |because| KernelRelation {
        verdict: Verdict::Different { live: true },
        because,
        snapshot: boot == Some(true) || epoch == Some(true),
    };
    let (proof, high) = (Verdict::Same { proof: true }, Verdict::Same { proof: false });
    let (conflict, unknown) = (Verdict::Unknown { conflict: true }, Verdict::Unknown { conflict: false });
    let disproved = facts.clock.is_some_and(ClockOffset::disproves);

    if facts.rendezvous {
        return says(proof, Because::Rendezvous);
    }
    match facts.beacon {
        Some(Test::Pass) => return says(proof, Because::BeaconPassed),
        Some(Test::Fail) => return separated(Because::BeaconFailed),
        None => {}
    }
    match facts.sandwich {
        Some(Test::Pass) if disproved => return says(conflict, Because::SandwichAgainstClock),
        Some(Test::Pass) => return says(proof, Because::SandwichPassed),
        Some(Test::Fail) => return separated(Because::SandwichFailed),
        None if disproved => return separated(Because::ClockDisproves),
        None => {}
    }
    // What is only now seen to differ says nothing while the one may be the other after a reboot.
    let differs = |because| {
        if world.both_alive(i, j) {
            says(Verdict::Different { live: false }, because)
        } else {
            says(unknown, Because::NotBothAlive)
        }
    };
    match (boot, epoch) {
        (Some(true), Some(false)) | (Some(false), Some(true)) => {
            return says(conflict, Because::BootAgainstEpoch);
        }
        (Some(true), Some(true)) => return says(high, Because::BootAndEpochEqual),
        (Some(true), None) => return says(high, Because::BootEqual),
        (None, Some(true)) => return says(high, Because::EpochEqual),
        (Some(false), _) => return differs(Because::BootDiffers),
        (None, Some(false)) => return differs(Because::EpochDiffers),
        (None, None) => {}
    }
    if one.os != other.os {
        return differs(Because::SystemDiffers);
    }
    let equal = |pair: Option<(Tag, Tag)>| pair.is_some_and(|(one, other)| one == other);
    let bare = one.bare && other.bare;
    match one.platform.zip(other.platform) {
        Some((one, other)) if one != other => {
            return says(Verdict::Different { live: false }, Because::PlatformDiffers);
        }
        Some(_) if bare => return says(high, Because::PlatformEqual),
        Some(_) | None => {}
    }
    let windows = one.os == Os::Windows && bare;
    if windows && equal(one.guid.zip(other.guid)) && equal(one.smbios.zip(other.smbios)) {
        return says(high, Because::WindowsEqual);
    }
    says(unknown, Because::Nothing)
}

impl ClockOffset {
    /// The clocks are too far apart to be one.
    fn disproves(self) -> bool {
        u128::from(self.offset_ns.unsigned_abs()) * 2
            > u128::from(self.rtt_ns) + 2 * u128::from(CLOCK_SLACK_NS)
    }
}

impl Because {
    /// The reason in words.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Rendezvous => "rendezvous passed",
            Self::BeaconPassed => "file-descriptor beacon passed",
            Self::BeaconFailed => "file-descriptor beacon failed",
            Self::SandwichAgainstClock => "counter sandwich passed, yet the clocks differ",
            Self::SandwichFailed => "counter sandwich failed",
            Self::ClockDisproves => "clocks differ",
            Self::SandwichPassed => "counter sandwich passed",
            Self::BootAgainstEpoch => "boot id and boot epoch contradict each other",
            Self::BootEqual => "boot id equal",
            Self::EpochEqual => "boot epoch equal",
            Self::BootAndEpochEqual => "boot id and boot epoch equal",
            Self::BootDiffers => "boot ids differ",
            Self::EpochDiffers => "boot epochs differ",
            Self::SystemDiffers => "operating systems differ",
            Self::PlatformDiffers => "platform UUIDs differ",
            Self::PlatformEqual => "platform UUID equal, both bare metal",
            Self::WindowsEqual => "MachineGuid and SMBIOS UUID equal, both bare metal",
            Self::NotBothAlive => "not both heard since the other came: may be one before and after a reboot",
            Self::Nothing => "nothing decides whether they are one kernel",
        }
    }
}

/// All pairs that may be one kernel or in conflict: those with facts, and those that share an id. Sorted.
fn candidates(world: &World) -> Vec<(usize, usize)> {
    let mut pairs: BTreeSet<(usize, usize)> = world.pairs().map(|(i, j, _)| (i, j)).collect();
    let mut by_id: BTreeMap<(u8, Tag), Vec<usize>> = BTreeMap::new();
    let mut by_epoch: Vec<(i64, usize)> = Vec::new();
    for (at, agent) in world.agents.iter().enumerate() {
        for (kind, id) in [(0, agent.boot), (1, agent.platform), (2, agent.guid)] {
            if let Some(id) = id {
                by_id.entry((kind, id)).or_default().push(at);
            }
        }
        by_epoch.extend(agent.epoch.epochs().map(|epoch| (epoch, at)));
    }
    for members in by_id.values() {
        for (at, &i) in members.iter().enumerate() {
            pairs.extend(members[at + 1..].iter().map(|&j| (i, j)));
        }
    }
    by_epoch.sort_unstable();
    by_epoch.dedup();
    for (at, &(epoch, i)) in by_epoch.iter().enumerate() {
        let near =
            by_epoch[at + 1..].iter().take_while(|(other, _)| other.abs_diff(epoch) <= EQUAL_WITHIN_NS);
        pairs.extend(near.filter(|(_, j)| *j != i).map(|&(_, j)| (i.min(j), i.max(j))));
    }
    pairs.into_iter().collect()
}

fn shares_something(one: &Agent, other: &Agent) -> bool {
    let (mine, theirs) = (&one.evidence, &other.evidence);
    let equal = |one: Option<&Tag>, other: Option<&Tag>| one.is_some() && one == other;
    one.key == other.key
        || equal(mine.machine_id.value(), theirs.machine_id.value())
        || equal(one.guid.as_ref(), other.guid.as_ref())
        || equal(one.smbios.as_ref(), other.smbios.as_ref())
}

/// Proposes tests for a pair, where they can be run and have not been.
fn propose(
    tests: &mut BTreeSet<TestToRun>,
    world: &World,
    (i, j): (usize, usize),
    urgency: Urgency,
    wanted: &[LiveTest],
) {
    let (one, other) = (&world.agents[i], &world.agents[j]);
    if one.os != other.os || world.held_apart(i, j) {
        return;
    }
    let facts = world.between(i, j).facts;
    for &test in wanted {
        let done = match test {
            LiveTest::Rendezvous => facts.rendezvous,
            LiveTest::ClockOffset => facts.clock.is_some(),
            LiveTest::Sandwich => facts.sandwich.is_some(),
            LiveTest::Beacon => facts.beacon.is_some(),
        };
        if !done {
            tests.insert(TestToRun { urgency, test, a: one.id, b: other.id });
        }
    }
}
