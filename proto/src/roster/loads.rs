//! Who may meet whom on a device once models are loaded that are not loaded now (`identity.md` §8).
//!
//! An install with its models loaded works where they lie. A chunk of another model, or of another context, may go to
//! any device that the install may use, and nobody knows before it is there. So installs that are no rivals as they
//! stand become rivals while one of them, or both, works on such a chunk.

use std::collections::BTreeMap;

use super::{Install, LoadRivals};
use crate::{
    device::{Lane, Place},
    evidence::Evidence,
    fuse::Fusion,
    id::AgentId,
    message::Inventory,
};

/// Finds them for all installs, whose rivals are known; in time that grows with the agents and those whom they may meet.
pub(super) fn rivals(installs: &[Install], fusion: &Fusion) -> BTreeMap<AgentId, LoadRivals> {
    // Most installs may load a model nowhere but where they work.
    if installs.iter().all(|install| install.anywhere == install.lane) {
        return BTreeMap::new();
    }
    let lanes: BTreeMap<AgentId, &Lane> = installs.iter().map(|i| (i.agent, &i.lane)).collect();
    let wide: BTreeMap<AgentId, &Lane> = installs.iter().map(|i| (i.agent, &i.anywhere)).collect();
    let mut meeting = fusion.rivals(&wide);
    let found = installs.iter().map(|install| {
        let both = meeting.remove(&install.agent).unwrap_or_default();
        let mut loads = LoadRivals { both: &both - &install.rivals, ..LoadRivals::default() };
        for other in &loads.both {
            let (Some(lane), Some(anywhere)) = (lanes.get(other), wide.get(other)) else { continue };
            if !fusion.may_overlap((install.agent, &install.anywhere), (*other, lane)) {
                loads.here.insert(*other);
            }
            if !fusion.may_overlap((install.agent, &install.lane), (*other, anywhere)) {
                loads.there.insert(*other);
            }
        }
        (install.agent, loads)
    });
    found.collect()
}

/// What an install may occupy: as much as all its loaded models do, and everything claimed while none is loaded.
pub(super) fn lane(place: Place, evidence: &Evidence, inventory: Option<&Inventory>) -> Lane {
    let loaded = inventory.into_iter().flat_map(|inventory| inventory.models.iter()).filter_map(|m| m.loaded);
    let lanes = loaded.map(|loaded| Lane::occupied(place, evidence, Some(&loaded)));
    lanes.reduce(Lane::union).unwrap_or_else(|| Lane::occupied(place, evidence, None))
}

/// What an install may occupy once it loads another model, beside what it occupies already.
pub(super) fn anywhere(place: Place, evidence: &Evidence, inventory: Option<&Inventory>) -> Lane {
    lane(place, evidence, inventory).union(Lane::anywhere(place, evidence))
}
