//! The lasting names of the machines that fusion found, from what their agents claim.
//!
//! A machine is called by the oldest uid among its agents; the others forward to it. One uid is never two machines:
//! where two that fusion keeps apart claim one, the one with more of the hardware it was made with has it, and the
//! other goes by its next uid, or by none. If the two are distinct, an image with an agent's state in it was copied
//! (`identity.md` §11).

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    fuse::{Code, Confidence, Fusion, Kind, Machine},
    id::{AgentId, Incarnation},
    uid::{Before, Change, Hold, MachineClaim, MachineUid},
};

/// What agents claim, and in which run.
type Claims = BTreeMap<AgentId, (Incarnation, MachineClaim)>;

/// What a machine is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// Its lasting name, if it has one of its own.
    pub(super) uid: Option<MachineUid>,
    /// Names that forward to it.
    pub(super) aliases: BTreeSet<MachineUid>,
}

/// Who claims a uid: by machine, its place in the fusion's order, the best claim and who makes it.
type Holders = BTreeMap<MachineUid, BTreeMap<usize, (Hold, AgentId)>>;

/// Names the machines of a fusion, in its order, and adds to it what the claims warn of.
pub(super) fn name(fusion: &mut Fusion, claims: &Claims) -> Vec<Named> {
    let holders = holders(fusion.machines(), claims);
    let named =
        fusion.machines().iter().enumerate().map(|(at, machine)| named(at, machine, claims, &holders));
    let named = named.collect();
    for (code, agents) in warnings(fusion, claims, &holders) {
        fusion.warn(code, agents);
    }
    named
}

fn holders(machines: &[Machine], claims: &Claims) -> Holders {
    let mut holders = Holders::new();
    for (at, machine) in machines.iter().enumerate() {
        for (agent, (run, claim)) in claims_of(machine, claims) {
            let best = holders.entry(claim.uid).or_default().entry(at).or_insert((claim.hold(run), agent));
            *best = (*best).max((claim.hold(run), agent));
        }
    }
    holders
}

fn named(at: usize, machine: &Machine, claims: &Claims, holders: &Holders) -> Named {
    let keeps = |uid: &MachineUid| {
        holders
            .get(uid)
            .and_then(|of| of.iter().max_by_key(|(_, hold)| **hold))
            .is_some_and(|(by, _)| *by == at)
    };
    let mut aliases = BTreeSet::new();
    for (_, (_, claim)) in claims_of(machine, claims) {
        aliases.insert(claim.uid);
        if let Before::Alias(before) = claim.before {
            aliases.insert(before);
        }
    }
    aliases.retain(|uid| keeps(uid) || !holders.contains_key(uid));
    let uid = aliases.iter().copied().find(|uid| holders.contains_key(uid));
    aliases.retain(|alias| Some(*alias) != uid);
    Named { uid, aliases }
}

fn warnings(fusion: &Fusion, claims: &Claims, holders: &Holders) -> Vec<(Code, BTreeSet<AgentId>)> {
    let mut found = Vec::new();
    for of in holders.values().filter(|of| of.len() > 1) {
        let best = of.values().max().map(|(_, agent)| *agent);
        let apart = |agent: &AgentId| {
            // A rule of the operator copies nothing.
            best.and_then(|best| fusion.relation(best, *agent))
                .is_some_and(|found| found.kind == Kind::Distinct && found.confidence != Confidence::Operator)
        };
        let copies: BTreeSet<AgentId> = of.values().map(|(_, agent)| *agent).filter(apart).collect();
        if !copies.is_empty() {
            found.push((Code::ClonedImage, copies.into_iter().chain(best).collect()));
        }
    }
    for (agent, (_, claim)) in claims {
        if let Before::CopyOf(uid) = claim.before {
            let of = holders.get(&uid).into_iter().flat_map(BTreeMap::values).map(|(_, agent)| *agent);
            found.push((Code::ClonedImage, of.chain([*agent]).collect()));
        }
    }
    for machine in fusion.machines() {
        let changed = |change| {
            let of = claims_of(machine, claims).filter(move |(_, (_, claim))| claim.change == change);
            of.map(|(agent, _)| agent).collect::<BTreeSet<_>>()
        };
        found.push((Code::HardwareChanged, changed(Change::HardwareChanged)));
        found.push((Code::OsMovedToOtherHardware, changed(Change::Moved)));
        for kernel in &machine.kernels {
            let claim = |agent: &AgentId| claims.get(agent).map(|(_, claim)| claim.durable);
            // Who carries the name for its whole kernel spares the others.
            if !kernel.agents.iter().any(|agent| claim(agent) == Some(true)) {
                let losing = kernel.agents.iter().copied().filter(|agent| claim(agent) == Some(false));
                found.push((Code::NoDurableAnchor, losing.collect()));
            }
        }
    }
    found.retain(|(_, agents)| !agents.is_empty());
    found
}

fn claims_of<'a>(
    machine: &'a Machine,
    claims: &'a Claims,
) -> impl Iterator<Item = (AgentId, (Incarnation, MachineClaim))> + 'a {
    machine.agents.iter().filter_map(|agent| Some((*agent, *claims.get(agent)?)))
}
