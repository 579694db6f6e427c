//! Which pairs of agents have to be looked at to form the kernels: those that share an id, and those about which
//! something is known.
//!
//! All pairs of a kernel share its ids, which is quadratic where a thousand agents are one kernel. But agents that
//! are connected by such pairs and agree in everything (one boot id or none, epochs that are equal, no test, rule or
//! flapping against any of them) are one kernel whatever the order in which they are joined, and their pairs lead to
//! no other agent. Of those, each agent's first pairs are enough.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    groups::Groups,
    relate::{Verdict, relate},
    world::{Agent, World},
};
use crate::{
    epoch::{EQUAL_WITHIN_NS, EpochComparison, EpochTrack},
    evidence::Tag,
};

/// The pairs to look at.
#[derive(Clone, Debug)]
pub(super) struct Candidates {
    /// All pairs that may be one kernel or in conflict, sorted; of agents that agree in everything only the pairs with
    /// their first, those about which something is known, and for each agent the first that no passed test connects
    /// it with.
    pub(super) pairs: Vec<(usize, usize)>,
    /// Agents that agree in everything with all that they are connected with: nothing can be against joining two of
    /// them.
    pub(super) agreed: Vec<bool>,
}

/// Finds the pairs to look at.
pub(super) fn candidates(world: &World) -> Candidates {
    let mut pairs: Vec<(usize, usize)> = world.pairs().map(|(i, j, _)| (i, j)).collect();
    let buckets = shared_ids(world);
    let epochs = epochs(world);
    let connected = connected(world, &pairs, &buckets, &epochs);
    let mut known: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
    for &(i, j) in &pairs {
        known.entry(connected.of(i)).or_default().push((i, j));
    }
    let mut agreed = vec![false; world.agents.len()];
    for members in connected.all().filter(|members| members.len() > 2) {
        let known = known.get(&members[0]).map_or(&[][..], Vec::as_slice);
        if agree(world, members, known) {
            members.iter().for_each(|member| agreed[*member] = true);
            first_pairs(world, members, known, &mut pairs);
        }
    }
    for members in buckets.iter().filter(|members| !agreed[members[0]]) {
        for (at, &i) in members.iter().enumerate() {
            pairs.extend(members[at + 1..].iter().map(|&j| (i, j)));
        }
    }
    for (at, &(epoch, i)) in epochs.iter().enumerate().filter(|(_, (_, i))| !agreed[*i]) {
        let near = epochs[at + 1..].iter().take_while(|(other, _)| other.abs_diff(epoch) <= EQUAL_WITHIN_NS);
        // Those of one boot are pairs already.
        let boot = world.agents[i].boot;
        let new = |j: usize| j != i && (boot.is_none() || world.agents[j].boot != boot);
        pairs.extend(near.filter(|(_, j)| new(*j)).map(|&(_, j)| (i.min(j), i.max(j))));
    }
    pairs.sort_unstable();
    pairs.dedup();
    Candidates { pairs, agreed }
}

/// The agents that have each id of a kernel, where more than one has it.
fn shared_ids(world: &World) -> Vec<Vec<usize>> {
    let mut by_id: BTreeMap<(u8, Tag), Vec<usize>> = BTreeMap::new();
    for (at, agent) in world.agents.iter().enumerate() {
        for (kind, id) in [(0, agent.boot), (1, agent.platform), (2, agent.guid)] {
            if let Some(id) = id {
                by_id.entry((kind, id)).or_default().push(at);
            }
        }
    }
    by_id.into_values().filter(|members| members.len() > 1).collect()
}

/// Every epoch that an agent has shown, sorted.
fn epochs(world: &World) -> Vec<(i64, usize)> {
    let of = |(at, agent): (usize, &Agent)| agent.epoch.epochs().map(|epoch| (epoch, at)).collect::<Vec<_>>();
    let mut epochs: Vec<(i64, usize)> = world.agents.iter().enumerate().flat_map(of).collect();
    epochs.sort_unstable();
    epochs.dedup();
    epochs
}

/// The agents that any pairs connect, over however many others.
fn connected(
    world: &World,
    known: &[(usize, usize)],
    buckets: &[Vec<usize>],
    epochs: &[(i64, usize)],
) -> Groups {
    let mut connected = Groups::singletons(world.agents.len());
    known.iter().for_each(|(i, j)| connected.join(*i, *j));
    for members in buckets {
        members.iter().for_each(|member| connected.join(members[0], *member));
    }
    for next in epochs.windows(2) {
        if next[0].0.abs_diff(next[1].0) <= EQUAL_WITHIN_NS {
            connected.join(next[0].1, next[1].1);
        }
    }
    connected
}

/// Every pair of these agents is one kernel by itself, and no rule is against any. Says no where it cannot be told
/// without looking at all pairs.
fn agree(world: &World, members: &[usize], known: &[(usize, usize)]) -> bool {
    let agents = || members.iter().map(|member| &world.agents[*member]);
    let boots: BTreeSet<Tag> = agents().filter_map(|agent| agent.boot).collect();
    let rules: BTreeSet<Tag> = agents().filter_map(|agent| agent.rule).collect();
    if boots.len() > 1 || rules.len() > 1 || agents().any(|agent| agent.flapping) {
        return false;
    }
    let ids_agree = match EpochTrack::agreement(agents().map(|agent| &agent.epoch)) {
        Some(EpochComparison::Equal) => true,
        Some(EpochComparison::NotComparable) => agents().all(|agent| agent.boot.is_some()),
        Some(EpochComparison::Different) | None => false,
    };
    let same = |i, j| matches!(relate(world, i, j).verdict, Verdict::Same { .. });
    ids_agree && known.iter().all(|(i, j)| same(*i, *j) && !world.between(*i, *j).distinct)
}

/// Each agent with the first of all, and with the first before it that no passed test connects it with.
fn first_pairs(world: &World, members: &[usize], known: &[(usize, usize)], pairs: &mut Vec<(usize, usize)>) {
    let mut proofs = Groups::singletons(members.len());
    for &(i, j) in known {
        if let (Ok(one), Ok(other)) = (members.binary_search(&i), members.binary_search(&j))
            && relate(world, i, j).verdict == (Verdict::Same { proof: true })
        {
            proofs.join(one, other);
        }
    }
    let with_first = |at: &usize| proofs.of(*at) == proofs.of(0);
    let other = (1..members.len()).find(|at| !with_first(at));
    for at in 1..members.len() {
        let before = other.filter(|other| with_first(&at) && *other < at);
        pairs.extend([Some(0), before].into_iter().flatten().map(|before| (members[before], members[at])));
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        evidence::{Evidence, Os, Reading},
        fuse::{
            Input, Member, PairFacts, Rule, Test, kernels::Kernels, live_tests, machines::Machines,
            warnings::Warnings,
        },
        id::AgentId,
    };

    /// What was formed of a world: kernels, proofs, refusals, conflicts, warnings and the tests to run.
    fn formed(world: &World, candidates: Candidates) -> impl PartialEq + std::fmt::Debug {
        let mut warnings = Warnings::default();
        let kernels = Kernels::of_pairs(world, candidates, &mut warnings);
        let machines = Machines::form(world, &kernels, &mut warnings);
        let n = world.agents.len();
        let proven: BTreeSet<(usize, usize)> = (0..n)
            .flat_map(|i| (0..n).map(move |j| (i, j)))
            .filter(|(i, j)| kernels.proven(*i, *j))
            .collect();
        let tests = live_tests::proposed(world, &kernels, &machines);
        (kernels.all, proven, kernels.refused, kernels.conflicts, warnings.finish(), tests)
    }

    fn member(at: u8, boot: u8, epochs: &[(u8, i64)], other: u8) -> Member {
        let mut evidence = Evidence::empty(Os::Linux);
        evidence.boot_id = match boot {
            0..=3 => Reading::Value(Tag([1; 16])),
            4 => Reading::Value(Tag([2; 16])),
            _ => Reading::Absent,
        };
        evidence.machine_rule =
            [(1, 3), (2, 3), (3, 4)].iter().find(|rule| rule.0 == other).map(|rule| Tag([rule.1; 16]));
        let mut epoch = EpochTrack::unknown();
        for (seconds, ns) in epochs {
            epoch.observe(&Reading::Value(*ns), Duration::from_secs(u64::from(*seconds)));
        }
        Member {
            id: AgentId([at; 32]),
            key: AgentId([at; 32]),
            evidence: Arc::new(evidence),
            epoch,
            first_heard: Duration::ZERO,
            last_heard: Duration::from_secs(1),
            flapping: other == 4,
        }
    }

    /// Two to seven agents that are one kernel more often than not.
    fn worlds() -> impl Strategy<Value = World> {
        let epoch = || prop_oneof![8 => 0_i64..1_500, 1 => 0_i64..4_000, 1 => Just(1_000_000)];
        let epochs = prop::collection::vec((0_u8..60, epoch()), 0..3);
        let agent = (0_u8..7, epochs, 0_u8..14);
        let fact = (0_u8..7, 0_u8..7, 0_u8..12);
        (prop::collection::vec(agent, 2..8), prop::collection::vec(fact, 0..5)).prop_map(|(agents, facts)| {
            let members = (1..).zip(&agents).map(|(at, (boot, epochs, other))| {
                let mut epochs = epochs.clone();
                epochs.sort_unstable();
                member(at, *boot, &epochs, *other)
            });
            let mut input = Input { members: members.collect(), ..Input::default() };
            for (a, b, kind) in facts {
                let (a, b) = (AgentId([a + 1; 32]), AgentId([b + 1; 32]));
                let mut facts = PairFacts::default();
                match kind {
                    0..=4 => facts.sandwich = Some(Test::Pass),
                    5 | 6 => facts.rendezvous = true,
                    7 => facts.sandwich = Some(Test::Fail),
                    8 => _ = input.rules.insert((a, b, Rule::Distinct)),
                    9 => _ = input.rules.insert((a, b, Rule::Same)),
                    _ => facts.local_peer = true,
                }
                input.facts.insert((a, b), facts);
            }
            World::new(&input)
        })
    }

    fn all_pairs(world: &World) -> Candidates {
        let n = world.agents.len();
        let pairs = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
        let shares = |i: usize, j: usize| {
            let (one, other) = (&world.agents[i], &world.agents[j]);
            let near = |a: i64| other.epoch.epochs().any(|b| a.abs_diff(b) <= EQUAL_WITHIN_NS);
            (one.boot.is_some() && one.boot == other.boot) || one.epoch.epochs().any(near)
        };
        let known: BTreeSet<(usize, usize)> = world.pairs().map(|(i, j, _)| (i, j)).collect();
        let pairs = pairs.filter(|(i, j)| known.contains(&(*i, *j)) || shares(*i, *j)).collect();
        Candidates { pairs, agreed: vec![false; n] }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

        #[test]
        fn the_pairs_that_are_left_out_change_nothing(world in worlds()) {
            prop_assert_eq!(formed(&world, candidates(&world)), formed(&world, all_pairs(&world)));
        }
    }

    #[test]
    fn a_thousand_agents_of_one_kernel_need_a_few_thousand_pairs() {
        let members = (0..1_000_u16).map(|at| {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&at.to_be_bytes());
            Member { id: AgentId(id), ..member(0, u8::from(at % 2 == 0) * 6, &[(1, i64::from(at % 7))], 0) }
        });
        let mut input = Input { members: members.collect(), ..Input::default() };
        let tested = PairFacts { sandwich: Some(Test::Pass), ..PairFacts::default() };
        let ids: Vec<AgentId> = input.members.iter().map(|member| member.id).collect();
        input.facts.extend(ids[1..].iter().map(|id| ((ids[0], *id), tested)));
        assert!(candidates(&World::new(&input)).pairs.len() < 3_000);
    }
}
