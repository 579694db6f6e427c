//! Which installs work at the same time when all have work: the scheduler's rule, for plans and reports (pure).

use std::collections::{BTreeMap, BTreeSet};

use tropa_proto::id::{AgentId, MachineId};

use crate::schedule::Install;

/// The installs that work at the same time when all have work, in the scheduler's order.
#[must_use]
pub fn at_work(installs: &[Install]) -> BTreeSet<AgentId> {
    let mut order: Vec<_> = installs.iter().filter(|install| !install.shut).collect();
    order.sort_by_key(|install| (install.warm.is_empty(), install.agent));
    let mut together = Together::default();
    order.into_iter().for_each(|install| _ = together.admit(install));
    together.agents
}

/// Installs that may all be busy at one time.
#[derive(Debug, Default)]
pub struct Together {
    agents: BTreeSet<AgentId>,
    /// Those among them that must load a model first.
    loading: BTreeSet<AgentId>,
    gpu_lanes: BTreeMap<MachineId, usize>,
}

impl Together {
    /// Takes one more, if it is no rival of one before it, will not load its model where one of them may be without a
    /// lock between the two, and its machine has processors for another GPU lane; says whether it was taken.
    pub fn admit(&mut self, install: &Install) -> bool {
        let lanes = self.gpu_lanes.get(&install.machine).copied().unwrap_or(0);
        let crowded = install.gpu_lanes.is_some_and(|most| lanes >= most);
        let unplaced = &install.unplaced;
        let loads = !install.models.is_empty() && unplaced.loaded.is_empty();
        let meets = if loads {
            !unplaced.here.is_disjoint(&self.agents) || !unplaced.both.is_disjoint(&self.loading)
        } else {
            !unplaced.there.is_disjoint(&self.loading)
        };
        if crowded || meets || !install.rivals.is_disjoint(&self.agents) {
            return false;
        }
        if install.gpu_lanes.is_some() {
            self.gpu_lanes.insert(install.machine, lanes + 1);
        }
        if loads {
            self.loading.insert(install.agent);
        }
        self.agents.insert(install.agent)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tropa_proto::id::{EngineRun, Incarnation};

    use super::*;
    use crate::schedule::{Largest, ModelIndex, Unplaced};

    /// Installs of one machine, each on a GPU of its own, of which these have the job's model loaded.
    fn gpus(loaded: [bool; 3], most: usize) -> Vec<Install> {
        let agent = |n: u8| AgentId([n; 32]);
        let install = |(n, loaded): (u8, bool)| {
            let others = || (0..3).filter(|other| *other != n).map(agent).collect();
            let model = ModelIndex(0);
            let contexts = if loaded { BTreeMap::from([(model, (2048, 2048))]) } else { BTreeMap::new() };
            Install {
                agent: agent(n),
                incarnation: Incarnation(1),
                engine: EngineRun(1),
                machine: MachineId(agent(0)),
                width: 1,
                models: [model].into(),
                largest: Largest::default(),
                shut: false,
                warm: if loaded { [model].into() } else { BTreeSet::new() },
                loads: BTreeMap::new(),
                rivals: BTreeSet::new(),
                unguarded: others(),
                gpu_lanes: Some(most),
                unplaced: Unplaced { loaded: contexts, here: others(), there: others(), both: others() },
            }
        };
        (0..).zip(loaded).map(install).collect()
    }

    #[test]
    fn as_many_gpu_lanes_work_as_the_processors_feed() {
        assert_eq!([1, 2, 3].map(|most| at_work(&gpus([true; 3], most)).len()), [1, 2, 3]);
    }

    #[test]
    fn who_must_load_its_model_where_others_work_does_not_work_beside_them() {
        assert_eq!(at_work(&gpus([true, false, true], 3)).len(), 2);
        assert_eq!(at_work(&gpus([false; 3], 3)).len(), 1, "one load at a time");
        let mut guarded = gpus([true, false, true], 3);
        guarded.iter_mut().for_each(|install| {
            let loaded = std::mem::take(&mut install.unplaced.loaded);
            install.unplaced = Unplaced { loaded, ..Unplaced::default() };
        });
        assert_eq!(at_work(&guarded).len(), 3, "a lock keeps them apart for as long as the load takes");
    }
}
