//! The input in the form in which it is compared: sorted, indexed, genuine values only.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{Input, Interference, PairFacts, Rule, Test};
use crate::{
    device::Device,
    epoch::EpochTrack,
    evidence::{Evidence, GpuKind, Hypervisor, Os, Tag},
    id::AgentId,
};

/// One agent, with what identity may be read from.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) id: AgentId,
    pub(super) key: AgentId,
    pub(super) os: Os,
    pub(super) bare: bool,
    pub(super) boot: Option<Tag>,
    pub(super) epoch: EpochTrack,
    pub(super) platform: Option<Tag>,
    pub(super) guid: Option<Tag>,
    pub(super) smbios: Option<Tag>,
    pub(super) rule: Option<Tag>,
    pub(super) first_heard: Duration,
    pub(super) last_heard: Duration,
    pub(super) flapping: bool,
    /// GPUs and slices with ids: those that are compared over machines.
    pub(super) gpus: Vec<Device>,
    pub(super) evidence: Arc<Evidence>,
}

/// Facts and rules about one pair.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Between {
    pub(super) facts: PairFacts,
    pub(super) same: bool,
    pub(super) distinct: bool,
}

/// All agents by their ids, and all pairs about which something is known.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) agents: Vec<Agent>,
    /// Both ways round.
    between: Vec<BTreeMap<usize, Between>>,
}

impl World {
    pub(super) fn new(input: &Input) -> Self {
        let members: BTreeMap<AgentId, _> = input.members.iter().map(|member| (member.id, member)).collect();
        let agents: Vec<Agent> = members.values().map(|member| Agent::new(member)).collect();
        let mut world = Self { between: vec![BTreeMap::new(); agents.len()], agents };
        for (&(a, b), facts) in &input.facts {
            world.amend(a, b, |between| between.facts = between.facts.with(facts));
        }
        for &(a, b, rule) in &input.rules {
            world.amend(a, b, |between| match rule {
                Rule::Same => between.same = true,
                Rule::Distinct => between.distinct = true,
            });
        }
        world
    }

    /// The place of an agent.
    pub(super) fn index(&self, id: AgentId) -> Option<usize> {
        self.agents.binary_search_by(|agent| agent.id.cmp(&id)).ok()
    }

    /// What is known about a pair.
    pub(super) fn between(&self, i: usize, j: usize) -> Between {
        self.between[i].get(&j).copied().unwrap_or_default()
    }

    /// All pairs about which something is known, smaller first.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (usize, usize, &Between)> {
        let of = |i: usize| self.between[i].iter().map(move |(&j, between)| (i, j, between));
        (0..self.agents.len()).flat_map(of).filter(|(i, j, _)| i < j)
    }

    /// A rule says that the two are one machine; `TROPA_MACHINE` counts as one.
    pub(super) fn ruled_same(&self, i: usize, j: usize) -> bool {
        let (one, other) = (self.agents[i].rule, self.agents[j].rule);
        (one.is_some() && one == other) || self.between(i, j).same
    }

    /// A rule says that the two are two machines; `TROPA_MACHINE` counts as one.
    pub(super) fn ruled_distinct(&self, i: usize, j: usize) -> bool {
        let (one, other) = (self.agents[i].rule, self.agents[j].rule);
        (one.is_some() && other.is_some() && one != other) || self.between(i, j).distinct
    }

    /// Each has been heard after the other's first announcement; else a reboot would look like a clone.
    pub(super) fn both_alive(&self, i: usize, j: usize) -> bool {
        let (one, other) = (&self.agents[i], &self.agents[j]);
        one.last_heard > other.first_heard && other.last_heard > one.first_heard
    }

    /// One of the two changes its machine too often to be joined with anything.
    pub(super) fn held_apart(&self, i: usize, j: usize) -> bool {
        self.agents[i].flapping || self.agents[j].flapping
    }

    fn amend(&mut self, a: AgentId, b: AgentId, amend: impl Fn(&mut Between)) {
        let (Some(i), Some(j)) = (self.index(a), self.index(b)) else { return };
        if i != j {
            amend(self.between[i].entry(j).or_default());
            amend(self.between[j].entry(i).or_default());
        }
    }
}

impl Agent {
    fn new(member: &super::Member) -> Self {
        let evidence = &member.evidence;
        let epoch = if evidence.time_namespace { EpochTrack::unknown() } else { member.epoch.clone() };
        let global = |gpu: &crate::evidence::Gpu<Tag>| match (&gpu.kind, gpu.uuid) {
            (GpuKind::Full, Some(id)) => Some(Device::Gpu(id)),
            (GpuKind::Mig { parent }, slice) => Some(Device::Mig { slice, parent: *parent }),
            (GpuKind::Full, None) | (GpuKind::Vgpu, _) => None,
        };
        Self {
            id: member.id,
            key: member.key,
            os: evidence.os,
            bare: matches!(evidence.hypervisor, Hypervisor::None | Hypervisor::Root),
            boot: evidence.boot_id.value().copied(),
            epoch,
            platform: evidence.platform_uuid.value().copied(),
            guid: evidence.machine_guid.value().copied(),
            smbios: evidence.product_uuid.value().copied(),
            rule: evidence.machine_rule,
            first_heard: member.first_heard,
            last_heard: member.last_heard,
            flapping: member.flapping,
            gpus: evidence.gpus.iter().filter_map(global).collect::<BTreeSet<_>>().into_iter().collect(),
            evidence: Arc::clone(evidence),
        }
    }
}

impl PairFacts {
    /// Two reports about one pair: what either saw counts; where they measured different things, what shows sharing
    /// wins for interference and what separates for kernels, since a pass is only as good as its worst run.
    fn with(self, other: &Self) -> Self {
        let worse = |one: Option<Test>, other: Option<Test>| one.max(other);
        Self {
            clock: match (self.clock, other.clock) {
                (Some(one), Some(other)) => Some(if other.rtt_ns < one.rtt_ns { other } else { one }),
                (one, other) => one.or(other),
            },
            rendezvous: self.rendezvous || other.rendezvous,
            sandwich: worse(self.sandwich, other.sandwich),
            beacon: worse(self.beacon, other.beacon),
            local_peer: self.local_peer || other.local_peer,
            probe: positive_wins(self.probe, other.probe),
            passive: positive_wins(self.passive, other.passive),
        }
    }
}

/// If two agents measured different things, positive wins (`identity.md` §6).
pub(super) fn positive_wins(one: Option<Interference>, other: Option<Interference>) -> Option<Interference> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
