//! Which agents are one kernel (`identity.md` §5).
//!
//! A live test that passed is a proof and joins at once. Ids join where nothing separates the two groups. What ids
//! and tests say against each other is a conflict, which is unknown and not a choice.

use std::collections::BTreeSet;

use super::{
    Code,
    candidates::{Candidates, candidates},
    groups::Groups,
    relate::{KernelRelation, Verdict, relate},
    warnings::Warnings,
    world::World,
};
use crate::id::AgentId;

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
    /// The pairs that were looked at: those that share an id of the kernel, or about which something is known, but for
    /// what [`candidates`] leaves out; sorted.
    pub(super) related: Vec<(usize, usize, KernelRelation)>,
}

impl Kernels {
    /// Forms the kernels: by proofs, then by ids, in the order of (smaller, larger) agent id.
    pub(super) fn form(world: &World, warnings: &mut Warnings) -> Self {
        Self::of_pairs(world, candidates(world), warnings)
    }

    /// Forms the kernels by looking at these pairs.
    pub(super) fn of_pairs(world: &World, candidates: Candidates, warnings: &mut Warnings) -> Self {
        let Candidates { pairs, agreed } = candidates;
        let n = world.agents.len();
        let mut kernels = Self {
            groups: Groups::singletons(n),
            proofs: Groups::singletons(n),
            of: Vec::new(),
            all: Vec::new(),
            refused: BTreeSet::new(),
            conflicts: BTreeSet::new(),
            related: Vec::new(),
        };
        let related: Vec<(usize, usize, KernelRelation)> =
            pairs.into_iter().map(|(i, j)| (i, j, relate(world, i, j))).collect();
        for (i, j, relation) in &related {
            kernels.note(world, *i, *j, relation, warnings);
        }
        let same = |proof| {
            let wanted = Verdict::Same { proof };
            related.iter().filter(move |(_, _, relation)| relation.verdict == wanted)
        };
        for &(i, j, _) in same(true) {
            if agreed[i] {
                kernels.groups.join(i, j);
            } else {
                kernels.join_by_proof(world, i, j, warnings);
            }
        }
        kernels.proofs = kernels.groups.clone();
        for &(i, j, _) in same(false) {
            if agreed[i] {
                kernels.groups.join(i, j);
            } else {
                kernels.join_by_id(world, i, j, warnings);
            }
        }
        kernels.number(n);
        kernels.related = related;
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
