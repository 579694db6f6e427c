//! The warnings that the finished kernels and machines give (`identity.md` §6, §7 and §14). Those that arise while
//! joining, `KERNEL_CONFLICT` and `MERGE_REFUSED_CONFLICT` among them, are given there.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Code,
    judge::{Apart, Judged},
    kernels::Kernels,
    machines::Machines,
    pool::Pool,
    relate::Verdict,
    warnings::Warnings,
    world::World,
};
use crate::{
    evidence::{Attribution, Tag},
    id::AgentId,
};

/// Gives all of them. `judged` holds the kernel pairs about which something is known.
pub(super) fn give(
    world: &World,
    kernels: &Kernels,
    machines: &Machines,
    judged: &BTreeMap<(usize, usize), Judged>,
    warnings: &mut Warnings,
) {
    let mut notices = Notices { world, kernels, machines, warnings };
    notices.of_pairs(judged);
    notices.of_rules();
    notices.of_copies();
    notices.of_doubtful_claims();
    notices.of_gpus();
    notices.of_agents();
    notices.of_keys();
}

/// What the warnings are about, and where they go.
struct Notices<'a> {
    world: &'a World,
    kernels: &'a Kernels,
    machines: &'a Machines,
    warnings: &'a mut Warnings,
}

impl Notices<'_> {
    fn of_pairs(&mut self, judged: &BTreeMap<(usize, usize), Judged>) {
        for (&(k, l), own) in judged {
            let (a, b) = (self.kernels.id(self.world, k), self.kernels.id(self.world, l));
            let ruled_same = self.machines.judge.rule(k, l) == Some(true);
            let found = [
                (own.measured, Code::MeasuredSharing),
                (own.rules_contradict, Code::RulesContradict),
                (ruled_same && own.hard_negative.is_some(), Code::OverrideContradictsProof),
            ];
            for (_, code) in found.into_iter().filter(|(found, _)| *found) {
                self.warnings.pair(code, a, b);
            }
        }
    }

    fn of_rules(&mut self) {
        for &(i, j, relation) in &self.kernels.related {
            let (k, l) = (self.kernels.of(i), self.kernels.of(j));
            let same = k != l && matches!(relation.verdict, Verdict::Same { .. });
            if same && self.machines.judge.rule(k, l) == Some(false) {
                self.warnings.pair(Code::OverrideContradictsProof, self.id(i), self.id(j));
            }
        }
        for (i, j, between) in self.world.pairs() {
            let ruled = between.same || between.distinct;
            if ruled && self.world.ruled_same(i, j) && self.world.ruled_distinct(i, j) {
                self.warnings.pair(Code::RulesContradict, self.id(i), self.id(j));
            }
        }
    }

    /// Values in common of kernels that are two by a live test, by a difference, or by a hard negative: copies.
    fn of_copies(&mut self) {
        let judge = &self.machines.judge;
        let separate = |k: usize, l: usize| {
            let apart = judge.apart(self.world, self.kernels, k, l);
            k != l && (apart == Apart::Yes || judge.hard_negative(k, l, apart).is_some())
        };
        let both_bare = |k: usize, l: usize| judge.pools[k].bare && judge.pools[l].bare;
        let copies = |sharers: &[usize], copy: &dyn Fn(usize, usize) -> bool| -> Vec<usize> {
            sharers.iter().copied().filter(|k| sharers.iter().any(|l| copy(*k, *l))).collect()
        };
        let mut found: Vec<(Code, Values, Tag, Vec<usize>)> = Vec::new();
        let software: [Values; 2] = [|pool| &pool.machine_ids, |pool| &pool.guids];
        for values in software {
            for (value, sharers) in judge.buckets(values) {
                found.push((Code::ClonedImage, values, value, copies(&sharers, &separate)));
            }
        }
        let smbios: Values = |pool| &pool.smbios;
        for (value, sharers) in judge.buckets(smbios) {
            let boards = copies(&sharers, &|k, l| separate(k, l) && both_bare(k, l));
            let guests = copies(&sharers, &|k, l| separate(k, l) && !both_bare(k, l));
            found.push((Code::DuplicateSmbiosUuid, smbios, value, boards));
            found.push((Code::DuplicateVmUuid, smbios, value, guests));
        }
        let virtual_gpus: Values = |pool| &pool.vgpus;
        for (value, sharers) in judge.buckets(virtual_gpus) {
            found.push((Code::VgpuUuidDuplicate, virtual_gpus, value, sharers));
        }
        for (code, values, value, concerned) in found {
            self.carriers(code, values, value, &concerned);
        }
    }

    /// Claims that name an id which is not unique, where they count: between kernels that no rule and no hard
    /// negative decides.
    fn of_doubtful_claims(&mut self) {
        let judge = &self.machines.judge;
        let counts = |k: usize, l: usize| {
            let apart = || judge.apart(self.world, self.kernels, k, l);
            k != l && judge.rule(k, l).is_none() && judge.hard_negative(k, l, apart()).is_none()
        };
        let claimed = |by: &[usize], of: &[usize]| by.iter().any(|k| of.iter().any(|l| counts(*k, *l)));
        for (uuid, listers) in &judge.listed_by {
            let shown = judge.smbios_of.get(uuid).map_or(&[][..], Vec::as_slice);
            if (listers.len() > 1 || shown.len() > 1) && claimed(listers, shown) {
                self.carriers(Code::DuplicateVmUuid, |pool| &pool.hosts_vms, *uuid, listers);
                self.carriers(Code::DuplicateVmUuid, |pool| &pool.smbios, *uuid, shown);
            }
        }
        let naming = |guid: &Tag| -> Vec<usize> {
            let names = |pool: &Pool| pool.wsl.binary_search(guid).is_ok();
            (0..judge.pools.len()).filter(|k| names(&judge.pools[*k])).collect()
        };
        for (guid, owners) in judge.guid_of.iter().filter(|(_, owners)| owners.len() > 1) {
            if claimed(&naming(guid), owners) {
                self.carriers(Code::ClonedImage, |pool| &pool.guids, *guid, owners);
            }
        }
    }

    fn of_gpus(&mut self) {
        let physical: Values = |pool| &pool.gpus;
        for (gpu, listing) in self.machines.judge.buckets(physical) {
            let machines: BTreeSet<usize> = listing.iter().map(|k| self.machines.first(*k)).collect();
            if machines.len() > 1 {
                self.carriers(Code::GpuUuidConflict, physical, gpu, &listing);
            }
        }
    }

    fn of_agents(&mut self) {
        for agent in &self.world.agents {
            let lane = &agent.evidence.lane;
            let found = [
                (agent.evidence.boot_id.is_virtual(), Code::BootIdVirtualised),
                (agent.flapping, Code::IdentityFlapping),
                // One GPU needs no attribution: whatever is on a GPU is on this one.
                (lane.method == Attribution::Everything && lane.gpus.len() > 1, Code::DeviceUnattributed),
            ];
            for (_, code) in found.into_iter().filter(|(found, _)| *found) {
                self.warnings.add(code, &[], [agent.id]);
            }
        }
    }

    fn of_keys(&mut self) {
        let mut by_key: BTreeMap<AgentId, Vec<usize>> = BTreeMap::new();
        for (at, agent) in self.world.agents.iter().enumerate() {
            by_key.entry(agent.key).or_default().push(at);
        }
        for (key, agents) in by_key {
            let elsewhere =
                |i: usize, j: usize| self.kernels.of(i) != self.kernels.of(j) && self.world.both_alive(i, j);
            let copies: Vec<AgentId> = agents
                .iter()
                .filter(|i| agents.iter().any(|j| elsewhere(**i, *j)))
                .map(|i| self.id(*i))
                .collect();
            if !copies.is_empty() {
                self.warnings.add(Code::ClonedAgentKey, &key.0, copies);
            }
        }
    }

    /// Warns of a value, naming those agents of the kernels that show it.
    fn carriers(&mut self, code: Code, values: Values, value: Tag, concerned: &[usize]) {
        let shows = |at: &usize| values(&Pool::of(self.world, &[*at])).binary_search(&value).is_ok();
        let agents: Vec<AgentId> = concerned
            .iter()
            .flat_map(|kernel| self.kernels.all[*kernel].iter().filter(|at| shows(at)))
            .map(|at| self.id(*at))
            .collect();
        if !agents.is_empty() {
            self.warnings.add(code, &value.0, agents);
        }
    }

    fn id(&self, at: usize) -> AgentId {
        self.world.agents[at].id
    }
}

/// One kind of values of a kernel.
type Values = fn(&Pool) -> &[Tag];
