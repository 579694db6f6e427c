//! Whose work may not overlap with whose, for all agents at once.
//!
//! The answer is that of [`Fusion::may_overlap`](super::Fusion::may_overlap) for every pair, and it is as large as the
//! rivals are many; but agents that have nothing to do with each other are not asked one by one. Two kernels that
//! share no value and about which nothing is known are to each other what their [`Kind`]s are: bare or guest, of which
//! processor model, with which ids at all. So machines are grouped by the kinds of their kernels, one pair answers for
//! each two groups, and only what is linked, or cannot be told by its kind, is asked by itself.

use std::collections::{BTreeMap, BTreeSet};

use super::{Kind as Related, kernels::Kernels, machines::Machines, pool::Pool, world::World};
use crate::{
    bounded::Text,
    device::{Device, Lane, conflict},
    evidence::{Os, Tag},
};

/// What a kernel's relation to another hangs on where the two have nothing in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    os: Os,
    has_boot: bool,
    has_platform: bool,
    bare: bool,
    known: bool,
    cloud: bool,
    has_rule: bool,
    has_ppin: bool,
    one_smbios: bool,
    windows: bool,
    has_guid: bool,
    has_wsl: bool,
    cpu_models: Vec<Text<64>>,
}

/// The agents with lanes, by machine, and what is asked about them.
struct Asking<'a> {
    world: &'a World,
    kernels: &'a Kernels,
    machines: &'a Machines,
    lanes: &'a [Option<&'a Lane>],
    /// Agents with lanes by the first kernel of their machine.
    agents: BTreeMap<usize, Vec<usize>>,
    /// In any order, and perhaps more than once.
    rivals: Vec<Vec<usize>>,
}

/// The rivals of each agent, by number, sorted; agents without a lane have none.
pub(super) fn rivals(
    world: &World,
    kernels: &Kernels,
    machines: &Machines,
    lanes: &[Option<&Lane>],
) -> Vec<Vec<usize>> {
    let mut agents: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in (0..lanes.len()).filter(|at| lanes[*at].is_some()) {
        agents.entry(machines.first(kernels.of(at))).or_default().push(at);
    }
    let rivals = vec![Vec::new(); lanes.len()];
    let mut asking = Asking { world, kernels, machines, lanes, agents, rivals };
    asking.within_machines();
    asking.over_gpus();
    asking.between_machines();
    for rivals in &mut asking.rivals {
        rivals.sort_unstable();
        rivals.dedup();
    }
    asking.rivals
}

impl Asking<'_> {
    fn within_machines(&mut self) {
        for agents in self.agents.values().cloned().collect::<Vec<_>>() {
            for (at, &i) in agents.iter().enumerate() {
                agents[at + 1..].iter().for_each(|&j| self.weigh(i, j, true));
            }
        }
    }

    /// GPU ids are compared over all machines.
    fn over_gpus(&mut self) {
        let mut users: BTreeMap<Tag, Vec<usize>> = BTreeMap::new();
        for (at, lane) in self.lanes.iter().enumerate() {
            for device in lane.iter().flat_map(|lane| lane.devices()) {
                let ids = match device {
                    Device::Gpu(id) => [Some(*id), None],
                    Device::Mig { slice, parent } => [Some(*parent), *slice],
                    Device::GpuAt { .. } | Device::Vgpu { .. } | Device::Dram { .. } => [None, None],
                };
                ids.into_iter().flatten().for_each(|id| users.entry(id).or_default().push(at));
            }
        }
        for users in users.values() {
            for (at, &i) in users.iter().enumerate() {
                users[at + 1..].iter().filter(|j| **j != i).for_each(|&j| self.weigh(i, j, false));
            }
        }
    }

    fn between_machines(&mut self) {
        let linked = self.linked();
        for &(x, y) in &linked {
            self.ask(x, y);
        }
        let mut alike: BTreeMap<BTreeSet<Kind>, Vec<usize>> = BTreeMap::new();
        let mut odd = BTreeSet::new();
        let everybody = self.world.agents.iter().map(|agent| agent.first_heard).max().unwrap_or_default();
        let is_alive = |at: &usize| self.world.agents[*at].last_heard > everybody;
        for &machine in self.agents.keys() {
            let kinds: Option<BTreeSet<Kind>> = self
                .machines
                .kernels_of(machine)
                .iter()
                .map(|&kernel| {
                    let agents = &self.kernels.all[kernel];
                    agents.iter().all(is_alive).then(|| self.kind(kernel)).flatten()
                })
                .collect();
            match kinds {
                Some(kinds) => alike.entry(kinds).or_default().push(machine),
                None => _ = odd.insert(machine),
            }
        }
        let all: Vec<usize> = self.agents.keys().copied().collect();
        for &x in &odd {
            for &y in all.iter().filter(|y| **y != x && (!odd.contains(y) || **y > x)) {
                if !linked.contains(&(x.min(y), x.max(y))) {
                    self.ask(x, y);
                }
            }
        }
        let groups: Vec<&Vec<usize>> = alike.values().collect();
        for (at, ones) in groups.iter().enumerate() {
            for others in &groups[at..] {
                self.between_groups(ones, others, &linked);
            }
        }
    }

    /// Two groups of machines of one kind each: the first pair that is not linked answers for all.
    fn between_groups(&mut self, ones: &[usize], others: &[usize], linked: &BTreeSet<(usize, usize)>) {
        let mut pairs = ones
            .iter()
            .flat_map(|x| others.iter().map(move |y| (*x, *y)))
            // Within one group each pair once.
            .filter(|(x, y)| x != y && (x < y || !std::ptr::eq(ones, others)))
            .map(|(x, y)| (x.min(y), x.max(y)))
            .filter(|pair| !linked.contains(pair))
            .peekable();
        let Some(&(x, y)) = pairs.peek() else { return };
        if !self.are_unknown(x, y) {
            return;
        }
        for (x, y) in pairs {
            let (ones, others) = (self.agents[&x].clone(), &self.agents[&y].clone());
            for i in ones {
                others.iter().for_each(|&j| self.weigh(i, j, true));
            }
        }
    }

    /// Asks about every pair of agents of two machines.
    fn ask(&mut self, x: usize, y: usize) {
        let (Some(ones), Some(others)) = (self.agents.get(&x).cloned(), self.agents.get(&y).cloned()) else {
            return;
        };
        for &i in &ones {
            for &j in &others {
                // Most lanes conflict in any case or in none, and then nobody needs to know where the two are.
                if self.conflict(i, j, true) {
                    let together = self.machines.excluded(self.world, self.kernels, i, j);
                    self.weigh(i, j, together);
                }
            }
        }
    }

    /// What is between two machines is not known: they are scheduled as one.
    fn are_unknown(&self, x: usize, y: usize) -> bool {
        let (i, j) = (self.kernels.all[x][0], self.kernels.all[y][0]);
        self.machines.relation(self.world, self.kernels, i, j).kind == Related::UnknownExclude
    }

    fn weigh(&mut self, i: usize, j: usize, together: bool) {
        if self.conflict(i, j, together) {
            self.rivals[i].push(j);
            self.rivals[j].push(i);
        }
    }

    fn conflict(&self, i: usize, j: usize, together: bool) -> bool {
        match (self.lanes[i], self.lanes[j]) {
            (Some(one), Some(other)) => conflict(one, other, together),
            (None, _) | (_, None) => false,
        }
    }

    /// The pairs of machines between which any value is shared or anything is known, by their first kernels.
    fn linked(&self) -> BTreeSet<(usize, usize)> {
        let judge = &self.machines.judge;
        let related = self.kernels.related.iter().map(|&(i, j, _)| (self.kernels.of(i), self.kernels.of(j)));
        let software: [fn(&Pool) -> &[Tag]; 2] = [|pool| &pool.machine_ids, |pool| &pool.guids];
        let copies = software.into_iter().flat_map(|values| judge.sharing(values));
        let pairs = judge.candidates().into_iter().chain(related).chain(copies);
        let pairs = pairs.map(|(k, l)| (self.machines.first(k), self.machines.first(l)));
        pairs.filter(|(x, y)| x != y).map(|(x, y)| (x.min(y), x.max(y))).collect()
    }

    /// The kind of a kernel; `None` for one whose relation to strangers hangs on its own values too.
    fn kind(&self, kernel: usize) -> Option<Kind> {
        let pool = &self.machines.judge.pools[kernel];
        let agents = || self.kernels.all[kernel].iter().map(|at| &self.world.agents[*at]);
        let os = agents().next()?.os;
        let has_boot = agents().any(|agent| agent.boot.is_some());
        // Without a boot id epochs decide.
        let by_value = !has_boot && agents().any(|agent| agent.epoch.epochs().next().is_some());
        if by_value || pool.flapping || agents().any(|agent| agent.os != os) {
            return None;
        }
        Some(Kind {
            os,
            has_boot,
            has_platform: agents().any(|agent| agent.platform.is_some()),
            bare: pool.bare,
            known: pool.known,
            cloud: pool.cloud,
            has_rule: !pool.rules.is_empty(),
            has_ppin: !pool.ppin.is_empty(),
            one_smbios: pool.smbios.len() == 1,
            windows: pool.windows,
            has_guid: !pool.guids.is_empty(),
            has_wsl: !pool.wsl.is_empty(),
            cpu_models: pool.cpu_models.clone(),
        })
    }
}
