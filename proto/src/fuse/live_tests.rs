//! Which live tests would settle something (`identity.md` §9). They run over direct streams, driven by whoever owns
//! the streams; this only says what is worth asking, most urgent first.

use std::collections::BTreeSet;

use super::{
    Kind, LiveTest, TestToRun, Urgency,
    judge::Apart,
    kernels::Kernels,
    machines::Machines,
    relate::Verdict,
    world::{Agent, World},
};
use crate::evidence::Tag;

/// How many tests are proposed at once; the rest comes when these are done.
const MAX_TESTS: usize = 4096;

/// The live tests that would settle something.
pub(super) fn proposed(world: &World, kernels: &Kernels, machines: &Machines) -> Vec<TestToRun> {
    let mut tests = BTreeSet::new();
    within_kernels(world, kernels, &mut tests);
    between_kernels(world, kernels, machines, &mut tests);
    tests.into_iter().take(MAX_TESTS).collect()
}

/// What contradicts itself, and one confirmation for each agent, against one agent of the kernel that it seems to
/// belong to: linear.
fn within_kernels(world: &World, kernels: &Kernels, tests: &mut BTreeSet<TestToRun>) {
    let mut confirmed = vec![false; world.agents.len()];
    for &(i, j, relation) in &kernels.related {
        if kernels.proven(i, j) {
            continue;
        }
        match relation.verdict {
            Verdict::Unknown { conflict: true } => {
                let tried = world.between(i, j).facts.sandwich.is_some();
                let test = if tried { LiveTest::Beacon } else { LiveTest::Sandwich };
                propose(tests, world, (i, j), Urgency::Conflict, &[test]);
            }
            Verdict::Same { .. } if !std::mem::replace(&mut confirmed[j], true) => {
                propose(tests, world, (i, j), Urgency::Confirm, &[LiveTest::Sandwich]);
            }
            Verdict::Same { .. } | Verdict::Different { .. } | Verdict::Unknown { .. } => {}
        }
    }
}

/// What nothing decides, by one agent of each kernel. Two genuine boot ids always decide, so only kernels without
/// one are looked at.
fn between_kernels(world: &World, kernels: &Kernels, machines: &Machines, tests: &mut BTreeSet<TestToRun>) {
    let tests_of_pair = [LiveTest::Rendezvous, LiveTest::ClockOffset, LiveTest::Sandwich];
    let has_boot = |k: usize| kernels.all[k].iter().any(|at| world.agents[*at].boot.is_some());
    for k in (0..kernels.all.len()).filter(|k| !has_boot(*k)) {
        for l in (0..kernels.all.len()).filter(|l| *l > k || has_boot(*l)) {
            if tests.len() >= MAX_TESTS {
                return;
            }
            let judged = machines.judge.judge(world, kernels, k, l);
            if judged.apart == Apart::Unknown && judged.relation.kind != Kind::Distinct {
                let (i, j) = (kernels.all[k.min(l)][0], kernels.all[k.max(l)][0]);
                let related = shares_something(&world.agents[i], &world.agents[j]);
                let urgency = if related { Urgency::Related } else { Urgency::Strangers };
                propose(tests, world, (i, j), urgency, &tests_of_pair);
            }
        }
    }
}

fn shares_something(one: &Agent, other: &Agent) -> bool {
    let (mine, theirs) = (&one.evidence, &other.evidence);
    let equal = |one: Option<&Tag>, other: Option<&Tag>| one.is_some() && one == other;
    one.key == other.key
        || equal(mine.machine_id.value(), theirs.machine_id.value())
        || equal(one.guid.as_ref(), other.guid.as_ref())
        || equal(one.smbios.as_ref(), other.smbios.as_ref())
}

/// Proposes tests for a pair, where they can be run and have not been.
fn propose(
    tests: &mut BTreeSet<TestToRun>,
    world: &World,
    (i, j): (usize, usize),
    urgency: Urgency,
    wanted: &[LiveTest],
) {
    let (one, other) = (&world.agents[i], &world.agents[j]);
    if one.os != other.os || world.held_apart(i, j) {
        return;
    }
    let facts = world.between(i, j).facts;
    for &test in wanted {
        let done = match test {
            LiveTest::Rendezvous => facts.rendezvous,
            LiveTest::ClockOffset => facts.clock.is_some(),
            LiveTest::Sandwich => facts.sandwich.is_some(),
            LiveTest::Beacon => facts.beacon.is_some(),
        };
        if !done {
            tests.insert(TestToRun { urgency, test, a: one.id, b: other.id });
        }
    }
}
