//! Which live tests would settle something (`identity.md` §9). They run over direct streams, driven by whoever owns
//! the streams; this only says what is worth asking, most urgent first.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    LiveTest, TestToRun, Urgency,
    kernels::Kernels,
    relate::{Verdict, relate},
    world::{Agent, World},
};
use crate::evidence::Tag;

/// How many tests are proposed at once; the rest comes when these are done.
const MAX_TESTS: usize = 4096;

/// The live tests that would settle something: one confirmation for each agent, and what is undecided between
/// kernels, by one agent of each.
pub(super) fn proposed(world: &World, kernels: &Kernels) -> Vec<TestToRun> {
    let mut tests = BTreeSet::new();
    let mut confirmed = BTreeMap::new();
    for &(i, j) in &kernels.candidates {
        let relation = relate(world, i, j);
        match relation.verdict {
            Verdict::Unknown { conflict: true } if !kernels.proven(i, j) => {
                let facts = world.between(i, j).facts;
                let test = if facts.sandwich.is_none() { LiveTest::Sandwich } else { LiveTest::Beacon };
                propose(&mut tests, world, (i, j), Urgency::Conflict, &[test]);
            }
            // One test for each agent, against one agent of the kernel that it seems to belong to: linear.
            Verdict::Same { proof: false } if !kernels.proven(i, j) && confirmed.insert(j, i).is_none() => {
                propose(&mut tests, world, (i, j), Urgency::Confirm, &[LiveTest::Sandwich]);
            }
            Verdict::Same { .. } | Verdict::Different { .. } | Verdict::Unknown { .. } => {}
        }
    }
    let undecided = [LiveTest::Rendezvous, LiveTest::ClockOffset, LiveTest::Sandwich];
    for (a, one) in kernels.all.iter().enumerate() {
        for other in &kernels.all[a + 1..] {
            if tests.len() >= MAX_TESTS {
                break;
            }
            let (i, j) = (one[0], other[0]);
            if relate(world, i, j).verdict == (Verdict::Unknown { conflict: false }) {
                let related = shares_something(&world.agents[i], &world.agents[j]);
                let urgency = if related { Urgency::Related } else { Urgency::Strangers };
                propose(&mut tests, world, (i, j), urgency, &undecided);
            }
        }
    }
    tests.into_iter().take(MAX_TESTS).collect()
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
