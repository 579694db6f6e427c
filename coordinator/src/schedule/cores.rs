//! The processors that the GPU lanes of one machine share: at most so many of them are busy at once (`identity.md` §8).
//!
//! A weight and no conflict: any of them may work, and who has begun goes on. The count is kept with what installs hold,
//! so that a decision costs the same on a machine of one GPU and of sixteen.

use std::collections::{BTreeMap, BTreeSet};

use tropa_proto::id::{AgentId, MachineId};

use super::Install;

/// The GPU lanes of all machines, and how many of each are busy.
#[derive(Debug, Default)]
pub(super) struct Crews {
    of: BTreeMap<AgentId, MachineId>,
    machines: BTreeMap<MachineId, Crew>,
}

/// The GPU lanes of one machine.
#[derive(Debug, Default)]
struct Crew {
    /// So many may be busy at once.
    most: usize,
    /// So many were when the roster last changed.
    found: usize,
    busy: usize,
    members: BTreeSet<AgentId>,
}

impl Crews {
    /// Takes in a new roster. Who holds work and is out of reach keeps its place: its GPU may be at work.
    pub(super) fn renew<'a, 'b>(
        &mut self,
        installs: impl Iterator<Item = &'a Install>,
        holders: impl Iterator<Item = &'b AgentId>,
    ) {
        let before = std::mem::take(&mut self.of);
        self.machines.clear();
        let mut listed = BTreeSet::new();
        for install in installs {
            listed.insert(install.agent);
            if let Some(most) = install.gpu_lanes {
                let crew = self.machines.entry(install.machine).or_default();
                crew.most = crew.most.max(most);
                crew.members.insert(install.agent);
                self.of.insert(install.agent, install.machine);
            }
        }
        for agent in holders {
            if let Some(machine) = before.get(agent).filter(|_| !listed.contains(agent)) {
                self.of.insert(*agent, *machine);
            }
            self.began(agent);
        }
        self.machines.values_mut().for_each(|crew| crew.found = crew.busy);
    }

    /// An install that held nothing holds something.
    pub(super) fn began(&mut self, agent: &AgentId) {
        if let Some(crew) = self.crew_mut(agent) {
            crew.busy += 1;
        }
    }

    /// An install holds nothing any more.
    pub(super) fn ended(&mut self, agent: &AgentId) {
        if let Some(crew) = self.crew_mut(agent) {
            crew.busy = crew.busy.saturating_sub(1);
        }
    }

    /// Whether an install gets nothing because of the GPU lanes of its machine that are busy: as many as may, itself
    /// counted if it is one of them.
    pub(super) fn keeps_off(&self, agent: &AgentId, is_busy: bool) -> bool {
        self.crew(agent).is_some_and(|crew| crew.busy - usize::from(is_busy).min(crew.busy) >= crew.most)
    }

    /// More GPU lanes of its machine are busy than may be: what was found at work goes on, and more does not begin.
    pub(super) fn is_over(&self, agent: &AgentId) -> bool {
        self.crew(agent).is_some_and(|crew| crew.busy > crew.most)
    }

    /// Those that may have waited for an install that has ended.
    pub(super) fn waited_for(&self, agent: &AgentId) -> impl Iterator<Item = &AgentId> {
        let crew =
            self.crew(agent).filter(|crew| crew.busy + 1 >= crew.most && crew.members.len() > crew.most);
        crew.into_iter().flat_map(|crew| &crew.members)
    }

    /// Whether an install is among the first of its machine by id, as many as may be busy at once; so is whoever shares
    /// no processors.
    pub(super) fn is_of_the_first(&self, agent: &AgentId) -> bool {
        let before = |crew: &Crew| crew.members.range(..agent).count();
        self.crew(agent).is_none_or(|crew| crew.members.len() <= crew.most || before(crew) < crew.most)
    }

    /// How many may be busy on a machine: as many as may, or as there were when the roster told of it.
    pub(super) fn allowed(&self, machine: &MachineId) -> usize {
        self.machines.get(machine).map_or(0, |crew| crew.most.max(crew.found))
    }

    fn crew(&self, agent: &AgentId) -> Option<&Crew> {
        self.machines.get(self.of.get(agent)?)
    }

    fn crew_mut(&mut self, agent: &AgentId) -> Option<&mut Crew> {
        self.machines.get_mut(self.of.get(agent)?)
    }
}
