//! Installs that share a device and no lock: only their coordinators keep them apart (`reliability.md` §8.3).
//!
//! With one coordinator that is enough. Two do not know of each other, and what one of them has running on the device
//! may overlap with what the other starts. On one kernel a common directory of locks mends it; between kernels nothing
//! does, so those are not findings.

use std::collections::{BTreeMap, BTreeSet};

use tropa_proto::{
    fuse::Kind,
    id::AgentId,
    roster::{Install, Machine, View},
};

use crate::machines::WarningRow;

/// The stable code of the finding.
const CODE: &str = "lane.lock_split";

/// What mends it.
const FIX: &str = "give their agents one directory of locks: --lane-lock-dir /run/tropa/lanes, and to a container -v /run/tropa:/run/tropa";

/// One finding for each machine with installs of one kernel that share a device and no lock file, in the order of the
/// machines.
#[must_use]
pub fn splits(view: &View) -> Vec<WarningRow> {
    let found = view.machines.iter().filter_map(|machine| Some(finding(view, &split(view, machine)?)));
    found.collect()
}

/// The agents of a machine that lack a common lock; `None` where there are none.
fn split(view: &View, machine: &Machine) -> Option<BTreeSet<AgentId>> {
    let members: Vec<&Install> = machine.agents.iter().filter_map(|agent| view.install(*agent)).collect();
    let mut alike: BTreeMap<&BTreeSet<[u8; 8]>, usize> = BTreeMap::new();
    members.iter().for_each(|install| *alike.entry(&install.locks).or_default() += 1);
    // The usual case, also with a thousand agents: all have the same files.
    if let (1, Some((locks, _))) = (alike.len(), alike.first_key_value())
        && (!locks.is_empty() || members.len() < 2)
    {
        return None;
    }
    let fusion = view.fusion.as_ref()?;
    let apart = |a: &Install, b: AgentId| {
        let one_kernel = || fusion.relation(a.agent, b).is_some_and(|found| found.kind == Kind::SameKernel);
        !view.share_a_lock(a.agent, b) && one_kernel()
    };
    let pairs = members.iter().flat_map(|a| a.rivals.iter().map(move |b| (*a, *b)));
    let lacking: BTreeSet<AgentId> =
        pairs.filter(|(a, b)| apart(a, *b)).flat_map(|(a, b)| [a.agent, b]).collect();
    (!lacking.is_empty()).then_some(lacking)
}

fn finding(view: &View, agents: &BTreeSet<AgentId>) -> WarningRow {
    let label = |agent: &AgentId| view.install(*agent).map_or_else(|| agent.short(), |i| i.label.clone());
    let agents: Vec<String> = agents.iter().map(label).collect();
    WarningRow {
        code: CODE,
        text: format!(
            "{} share a device and no lock: work of two coordinators on it may overlap",
            agents.join(", ")
        ),
        agents,
        fix: FIX,
        information: false,
    }
}

#[cfg(test)]
mod tests {
    use tropa_proto::{
        bounded::{List, Text},
        evidence::{Core, Evidence, Os, Reading, Tag},
        id::{EngineRun, Incarnation},
        message::{AgentState, Announcement},
        roster::Roster,
        uid::{MachineClaim, MachineUid},
    };

    use super::*;

    /// Agents by the number of their kernel and of their lock file; 0: none.
    fn found(agents: &[(u8, u8)]) -> Vec<Vec<String>> {
        let mut roster = Roster::new(false);
        for (n, (kernel, file)) in (1..).zip(agents) {
            let mut evidence = Evidence::empty(Os::Linux);
            evidence.boot_id = Reading::Value(Tag([*kernel; 16]));
            evidence.machine_id = Reading::Value(Tag([100 + *kernel; 16]));
            let id = AgentId([n; 32]);
            roster.connected(id, true);
            let locks = if *file == 0 { Vec::new() } else { vec![[*file; 8]] };
            let said = Announcement {
                incarnation: Incarnation(1),
                seq: 1,
                period_ms: 10_000,
                state: AgentState::Ready,
                label: Text::cut(&format!("a{n}")),
                core: Core::new(&evidence, Reading::Value(i64::from(*kernel) * 3_600_000_000_000)),
                sampled_ms_ago: 0,
                machine: MachineClaim::new(MachineUid { created_ms: 1, random: [*kernel; 16] }),
                locks: List::new(locks).unwrap(),
                width: 1,
                engine: EngineRun(1),
                bundle: Default::default(),
                inventory: Default::default(),
                addresses: List::default(),
            };
            roster.announced(id, said, std::time::Duration::ZERO);
        }
        splits(roster.view()).into_iter().map(|row| row.agents).collect()
    }

    #[test]
    fn who_shares_a_kernel_and_no_lock_is_named_and_who_shares_one_is_not() {
        assert_eq!(found(&[(1, 1), (1, 1)]), Vec::<Vec<String>>::new(), "one directory");
        assert_eq!(found(&[(1, 1), (2, 2)]), Vec::<Vec<String>>::new(), "two machines");
        assert_eq!(found(&[(1, 0)]), Vec::<Vec<String>>::new(), "nobody to share with");
        assert_eq!(found(&[(1, 1), (1, 2)]), [["a1", "a2"]], "two directories");
        assert_eq!(found(&[(1, 0), (1, 0), (2, 1)]), [["a1", "a2"]], "no directory");
        assert_eq!(found(&[(1, 1), (1, 1), (1, 2)]), [["a1", "a2", "a3"]], "one of three");
    }
}
