//! What the operator says of agents that are here; it beats all evidence (`identity.md` §13).
//!
//! Rules that name agents by label or by the beginning of an id are resolved by whoever keeps them; here all are ids.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    evidence::{Evidence, Ignore, LaneClaim},
    fuse::Rule,
    id::AgentId,
};

/// The operator's rules, resolved. What is said about absent agents counts nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Pairs that are one machine, or two.
    pub pairs: BTreeSet<(AgentId, AgentId, Rule)>,
    /// Identifiers that count nowhere.
    pub ignore: Vec<Ignore>,
    /// The devices of an install, in place of what its agent found; places are those of its evidence.
    pub lanes: BTreeMap<AgentId, LaneClaim>,
    /// Names for the machines of these agents; of several on one machine the smallest agent's counts.
    pub names: BTreeMap<AgentId, String>,
}

impl Rules {
    /// The evidence of an agent as the rules let it count.
    pub(super) fn applied(&self, agent: AgentId, evidence: &Arc<Evidence>) -> Arc<Evidence> {
        let lane = self.lanes.get(&agent);
        if self.ignore.is_empty() && lane.is_none() {
            return Arc::clone(evidence);
        }
        let mut counted = evidence.ignoring(&self.ignore);
        if let Some(lane) = lane {
            counted.lane.clone_from(lane);
            counted.anywhere.clone_from(lane);
        }
        Arc::new(counted)
    }

    /// The name of a machine with these agents, sorted, if a rule gives one.
    pub(super) fn name(&self, agents: &[AgentId]) -> Option<String> {
        agents.iter().find_map(|agent| self.names.get(agent).cloned())
    }
}
