//! Which kernels are one machine, and what is between two machines (`identity.md` §6 and §7).
//!
//! Joining with cannot-link: the surest pairs first; a join that would put two machines into one is refused, and
//! its pair is excluded. What is between two machines is one question with one answer for all their pairs.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use super::{
    Code, Confidence, Kernel, Kind, Machine, Relation,
    groups::Groups,
    judge::{Judge, Judged},
    kernels::Kernels,
    notices,
    warnings::Warnings,
    world::World,
};
use crate::{device::Device, evidence::Evidence, id::MachineId};

/// The score of an operator's rule: before every sum.
const RULED: i32 = 1000;

/// The machines, as groups of kernels.
#[derive(Clone, Debug)]
pub(super) struct Machines {
    pub(super) judge: Judge,
    groups: Groups,
    /// Kernel pairs that were joined directly, with the confidence of the join.
    joins: Vec<(usize, usize, Confidence)>,
    /// Kernel pairs whose join was refused.
    pub(super) refused: BTreeSet<(usize, usize)>,
}

/// What is between two machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// They are two machines: this pair of kernels says so with confidence high or operator.
    Distinct { by: (usize, usize), confidence: Confidence },
    /// This pair of kernels is unknown, so all are.
    Unknown { by: (usize, usize) },
    /// Every pair of kernels is distinct by itself.
    Open,
}

impl Machines {
    /// Joins kernels by score, highest first, ties by (smaller kernel id, larger).
    pub(super) fn form(world: &World, kernels: &Kernels, warnings: &mut Warnings) -> Self {
        let judge = Judge::new(world, kernels);
        let judged: BTreeMap<(usize, usize), Judged> = judge
            .candidates()
            .into_iter()
            .map(|(k, l)| ((k, l), judge.judge(world, kernels, k, l)))
            .collect();
        let mut machines = Self {
            judge,
            groups: Groups::singletons(kernels.all.len()),
            joins: Vec::new(),
            refused: BTreeSet::new(),
        };
        let mut wanted: Vec<(i32, usize, usize)> = judged
            .iter()
            .filter(|(_, judged)| judged.relation.kind == Kind::SameMachine)
            .map(|(&(k, l), judged)| (-judged.score.unwrap_or(RULED), k, l))
            .collect();
        wanted.sort_unstable();
        for (_, k, l) in wanted {
            let confidence = judged[&(k, l)].relation.confidence;
            if machines.groups.of(k) == machines.groups.of(l) {
                continue;
            }
            if machines.blocked(world, kernels, &judged, k, l, confidence) {
                machines.refused.insert((k, l));
                warnings.pair(Code::MergeRefusedConflict, kernels.id(world, k), kernels.id(world, l));
            } else {
                machines.groups.join(k, l);
                machines.joins.push((k, l, confidence));
            }
        }
        notices::give(world, kernels, &machines, &judged, warnings);
        machines
    }

    /// The first kernel of a kernel's machine.
    pub(super) fn first(&self, kernel: usize) -> usize {
        self.groups.of(kernel)
    }

    /// The kernels of a kernel's machine.
    pub(super) fn kernels_of(&self, kernel: usize) -> &[usize] {
        self.groups.members(kernel)
    }

    /// The final relation of two agents.
    pub(super) fn relation(&self, world: &World, kernels: &Kernels, i: usize, j: usize) -> Relation {
        let (k, l) = (kernels.of(i), kernels.of(j));
        let unknown = Relation { kind: Kind::UnknownExclude, confidence: Confidence::Low };
        if k == l {
            let confidence = if kernels.proven(i, j) { Confidence::Proof } else { Confidence::High };
            return Relation { kind: Kind::SameKernel, confidence };
        }
        let own = self.judge.judge(world, kernels, k, l);
        if self.first(k) == self.first(l) {
            let confidence = match own.relation.kind {
                Kind::SameMachine => own.relation.confidence,
                Kind::SameKernel | Kind::UnknownExclude | Kind::Distinct => {
                    self.weakest_join(k, l).map_or(Confidence::Low, |(_, _, confidence)| confidence)
                }
            };
            return Relation { kind: Kind::SameMachine, confidence };
        }
        if self.refused_or_measured(kernels, i, j, &own) {
            return unknown;
        }
        match self.gap(world, kernels, k, l) {
            Gap::Distinct { confidence, .. } => match own.relation.kind {
                Kind::Distinct => own.relation,
                Kind::SameKernel | Kind::SameMachine | Kind::UnknownExclude => {
                    Relation { kind: Kind::Distinct, confidence }
                }
            },
            Gap::Unknown { .. } => unknown,
            Gap::Open => own.relation,
        }
    }

    /// Two agents of different machines that are not independent.
    pub(super) fn excluded(&self, world: &World, kernels: &Kernels, i: usize, j: usize) -> bool {
        let (k, l) = (kernels.of(i), kernels.of(j));
        if self.first(k) == self.first(l) {
            return false;
        }
        let (one, other) = (&world.agents[i].gpus, &world.agents[j].gpus);
        let one_gpu =
            one.iter().any(|mine| other.iter().any(|theirs: &Device| mine.conflicts(theirs, false)));
        one_gpu || self.relation(world, kernels, i, j).kind == Kind::UnknownExclude
    }

    /// What is between the machines of two kernels.
    pub(super) fn gap(&self, world: &World, kernels: &Kernels, k: usize, l: usize) -> Gap {
        let mut gap = Gap::Open;
        for (k, l) in self.groups.across(k, l) {
            let own = self.judge.judge(world, kernels, k, l).relation;
            let better = match gap {
                Gap::Distinct { confidence, .. } => own.confidence > confidence,
                Gap::Unknown { .. } | Gap::Open => true,
            };
            if own.kind == Kind::Distinct && own.confidence >= Confidence::High {
                if better {
                    gap = Gap::Distinct { by: (k, l), confidence: own.confidence };
                }
            } else if own.kind != Kind::Distinct && gap == Gap::Open {
                gap = Gap::Unknown { by: (k, l) };
            }
        }
        gap
    }

    /// The weakest join on the way from one kernel to another of the same machine, nearest to `k` first.
    pub(super) fn weakest_join(&self, k: usize, l: usize) -> Option<(usize, usize, Confidence)> {
        // Joins form a tree, so there is one way: walk it from `k`, keeping the weakest join so far.
        let mut reached: BTreeMap<usize, Option<(usize, usize, Confidence)>> = BTreeMap::from([(k, None)]);
        let mut open = vec![k];
        while let Some(at) = open.pop() {
            let so_far = reached[&at];
            for join in self.joins.iter().filter(|join| join.0 == at || join.1 == at) {
                let next = if join.0 == at { join.1 } else { join.0 };
                let weakest = so_far.filter(|weakest| weakest.2 <= join.2).unwrap_or(*join);
                if let Entry::Vacant(place) = reached.entry(next) {
                    place.insert(Some(weakest));
                    open.push(next);
                }
            }
        }
        reached.get(&l).copied().flatten()
    }

    /// This pair itself is excluded, whatever is between the machines.
    pub(super) fn refused_or_measured(&self, kernels: &Kernels, i: usize, j: usize, own: &Judged) -> bool {
        let (k, l) = (kernels.of(i), kernels.of(j));
        own.measured
            || kernels.refused.contains(&(i.min(j), i.max(j)))
            || self.refused.contains(&(k.min(l), k.max(l)))
    }

    /// A join would put two kernels that are two machines into one. An operator's `same` gives way to an operator's
    /// `distinct` only.
    fn blocked(
        &self,
        world: &World,
        kernels: &Kernels,
        judged: &BTreeMap<(usize, usize), Judged>,
        k: usize,
        l: usize,
        confidence: Confidence,
    ) -> bool {
        self.groups.across(k, l).map(|(k, l)| (k.min(l), k.max(l))).any(|(k, l)| {
            if confidence == Confidence::Operator {
                return self.judge.rule(k, l) == Some(false);
            }
            let forbids = |own: &Judged| {
                let sure = own.relation.confidence >= Confidence::High;
                own.measured || (own.relation.kind == Kind::Distinct && sure)
            };
            match judged.get(&(k, l)) {
                Some(own) => forbids(own),
                None => forbids(&self.judge.judge(world, kernels, k, l)),
            }
        })
    }
}

/// The machines as they are shown.
pub(super) fn describe(world: &World, kernels: &Kernels, machines: &Machines) -> Vec<Machine> {
    let ids = |agents: &[usize]| agents.iter().map(|at| world.agents[*at].id).collect::<Vec<_>>();
    let machine = |group: &[usize]| {
        let mut agents: Vec<usize> =
            group.iter().flat_map(|kernel| kernels.all[*kernel].iter().copied()).collect();
        agents.sort_unstable();
        let most = |of: fn(&Evidence) -> u64| {
            agents.iter().map(|at| of(&world.agents[*at].evidence)).max().unwrap_or(0)
        };
        let count = |of| u16::try_from(most(of)).unwrap_or(u16::MAX);
        Machine {
            id: MachineId(kernels.id(world, group[0])),
            kernels: group
                .iter()
                .map(|&kernel| Kernel {
                    id: kernels.id(world, kernel),
                    agents: ids(&kernels.all[kernel]),
                    bare: machines.judge.pools[kernel].bare,
                })
                .collect(),
            host_cpus: count(|evidence| u64::from(evidence.cpus.host)),
            physical_cores: count(|evidence| u64::from(evidence.cpus.physical)),
            memory: most(|evidence| evidence.memory),
            agents: ids(&agents),
        }
    };
    machines.groups.all().map(machine).collect()
}
