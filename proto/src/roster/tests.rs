//! Claims about who is there and who is whose rival.

use super::*;
use crate::{
    bounded::{List, Text},
    evidence::{Attribution, Core, Facts, Gpu, GpuKind, Key, LaneClaim, Os, Reading, Salt, Tag},
    id::{EngineRun, Incarnation},
    message::{Loaded, Model},
    permit::Permit,
    uid::{Before, Change, MachineClaim, MachineUid, ShownId},
};

fn announcement(boot: u8, seq: u64) -> Announcement {
    let mut evidence = Evidence::empty(Os::Linux);
    evidence.boot_id = Reading::Value(Tag([boot; 16]));
    evidence.hypervisor = crate::evidence::Hypervisor::None;
    Announcement {
        incarnation: Incarnation(1),
        seq,
        period_ms: 10_000,
        state: AgentState::Ready,
        label: Text::cut("den"),
        core: Core::new(&evidence, Reading::Absent),
        sampled_ms_ago: 0,
        machine: MachineClaim::new(uid(boot)),
        locks: List::default(),
        width: 1,
        engine: EngineRun(1),
        bundle: [0; 32],
        inventory: [0; 32],
        addresses: List::default(),
    }
}

/// An engine that answers and has these models.
fn inventory(models: Vec<Model>) -> Inventory {
    Inventory {
        engine: EngineState::Up,
        version: Text::cut("0.24.0"),
        models: List::cut(models).0,
        cut: false,
        port: 11434,
        permit: Permit::default(),
    }
}

/// One for each number; the greater, the younger.
fn uid(n: u8) -> MachineUid {
    MachineUid { created_ms: u64::from(n), random: [n; 16] }
}

fn agent(n: u8) -> AgentId {
    AgentId([n; 32])
}

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn two_agents_on_one_kernel_are_rivals_and_on_two_kernels_are_not() {
    for (boots, rivals) in [([1, 1], 1), ([1, 2], 0)] {
        let mut roster = Roster::new(false);
        roster.announced(agent(1), announcement(boots[0], 1), at(0));
        roster.announced(agent(2), announcement(boots[1], 1), at(0));
        roster.connected(agent(1), true);
        roster.connected(agent(2), true);
        let view = roster.view();
        assert_eq!(view.installs[0].rivals.len(), rivals, "{boots:?}");
        assert_eq!(view.machines.len(), 2 - rivals);
    }
}

#[test]
fn silence_for_three_and_a_half_periods_is_a_death_unless_there_is_a_connection() {
    let mut roster = Roster::new(false);
    roster.announced(agent(1), announcement(1, 1), at(0));
    roster.announced(agent(2), announcement(2, 1), at(0));
    roster.connected(agent(2), true);
    assert_eq!(roster.expire(at(34)), []);
    assert_eq!(roster.next_deadline(), Some(at(35)));
    assert_eq!(roster.expire(at(35)), [agent(1)]);
    assert_eq!(roster.len(), 1);
}

#[test]
fn an_agent_that_leaves_is_gone_at_once() {
    let mut roster = Roster::new(false);
    roster.announced(agent(1), announcement(1, 1), at(0));
    let last = Announcement { state: AgentState::Leaving, ..announcement(1, 2) };
    roster.announced(agent(1), last, at(1));
    assert!(roster.is_empty());
}

#[test]
fn an_agent_gets_work_only_while_there_is_a_connection_to_it_and_it_has_said_what_it_has() {
    let mut roster = Roster::new(false);
    roster.connected(agent(1), true);
    roster.announced(agent(1), announcement(1, 1), at(0));
    assert_eq!(roster.view().installs[0].out, Some(Out::NotDescribed));
    let inventory = inventory(Vec::new());
    let (hashes, evidence) = (([0; 32], [0; 32]), Evidence::empty(Os::Linux));
    assert_eq!(roster.undescribed(), [(agent(1), hashes)]);
    roster.described(
        agent(1),
        hashes,
        Description { evidence, former: None, inventory, denied: Text::default() },
    );
    assert_eq!((roster.view().installs[0].out.clone(), roster.view().installs[0].ill), (None, false));
    for (seq, state, out, ill) in [
        (2, AgentState::Ill, None, true),
        (3, AgentState::Draining, Some(Out::Draining), false),
        (4, AgentState::Ready, None, false),
    ] {
        roster.announced(agent(1), Announcement { state, ..announcement(1, seq) }, at(0));
        let install = &roster.view().installs[0];
        assert_eq!((&install.out, install.ill), (&out, ill), "an ill engine is found well by work");
    }
    roster.connected(agent(1), false);
    assert_eq!(roster.view().installs[0].out, Some(Out::Unreachable));
}

#[test]
fn declared_evidence_gets_no_work_unless_it_is_accepted() {
    for accepted in [false, true] {
        let mut declared = announcement(1, 1);
        declared.core.declared = true;
        let mut roster = Roster::new(accepted);
        roster.connected(agent(1), true);
        roster.announced(agent(1), declared, at(0));
        assert_eq!(roster.view().installs[0].out == Some(Out::Declared), !accepted);
    }
}

fn run(incarnation: u64, boot: u8, seq: u64, label: &str) -> Announcement {
    Announcement { incarnation: Incarnation(incarnation), label: Text::cut(label), ..announcement(boot, seq) }
}

fn clone_warning(roster: &mut Roster) -> Option<String> {
    let view = roster.view();
    let name = |agent: &AgentId| view.install(*agent).unwrap().label.clone();
    let warnings = view.fusion.as_ref().unwrap().warnings();
    let found: Vec<_> = warnings.iter().filter(|warning| warning.code == Code::ClonedAgentKey).collect();
    assert!(found.len() <= 1, "{found:?}");
    found.first().map(|warning| warning.text(name))
}

#[test]
fn a_restart_is_no_copy() {
    for connected in [false, true] {
        let mut roster = Roster::new(false);
        roster.connected(agent(1), connected);
        roster.announced(agent(1), run(1, 1, 1, "den"), at(0));
        roster.connected(agent(1), false);
        roster.connected(agent(1), connected);
        roster.announced(agent(1), run(2, 1, 1025, "den"), at(1));
        assert_ne!(roster.view().installs[0].out, Some(Out::Cloned));
        assert_eq!(clone_warning(&mut roster), None);
        assert_eq!(roster.view().installs.len(), 1);
    }
}

#[test]
fn an_incarnation_that_comes_back_is_a_copy_and_neither_gets_work_until_one_is_silent() {
    for boots in [[1, 1], [1, 2]] {
        let mut roster = Roster::new(false);
        roster.announced(agent(1), run(1, boots[0], 1, "den"), at(0));
        roster.announced(agent(1), run(2, boots[1], 1025, "copy"), at(1));
        assert_eq!(clone_warning(&mut roster), None);
        roster.announced(agent(1), run(1, boots[0], 2049, "den"), at(2));
        assert!(roster.view().installs.iter().all(|install| install.out == Some(Out::Cloned)));
        assert_eq!(roster.view().installs.len(), 2);
        let text = clone_warning(&mut roster).unwrap();
        assert!(text.contains("den") && text.contains("copy"), "{text}");
        roster.announced(agent(1), run(1, boots[0], 2050, "den"), at(12));
        roster.expire(at(35));
        assert!(clone_warning(&mut roster).is_some());
        assert_eq!(roster.next_deadline(), Some(at(36)));
        roster.expire(at(36));
        assert_eq!(clone_warning(&mut roster), None);
        assert_ne!(roster.view().installs[0].out, Some(Out::Cloned));
        assert_eq!(roster.view().installs.len(), 1);
    }
}

#[test]
fn another_incarnation_over_a_connection_that_never_broke_is_a_copy() {
    let mut roster = Roster::new(false);
    roster.connected(agent(1), true);
    roster.announced(agent(1), run(1, 1, 1, "den"), at(0));
    roster.announced(agent(1), run(2, 1, 1025, "copy"), at(1));
    assert_eq!(roster.view().installs.iter().filter(|i| i.out == Some(Out::Cloned)).count(), 2);
    assert!(clone_warning(&mut roster).is_some());
}

#[test]
fn a_new_incarnation_is_asked_anew_what_it_has() {
    let mut roster = Roster::new(false);
    roster.announced(agent(1), run(1, 1, 1, "den"), at(0));
    let inventory = Inventory {
        engine: EngineState::Up,
        version: Text::cut("1"),
        models: List::default(),
        cut: false,
        port: 0,
        permit: Permit::default(),
    };
    let description = Description {
        evidence: Evidence::empty(Os::Linux),
        former: None,
        inventory,
        denied: Text::default(),
    };
    roster.described(agent(1), ([0; 32], [0; 32]), description);
    assert_eq!(roster.undescribed(), []);
    roster.announced(agent(1), run(2, 1, 2, "den"), at(1));
    assert_eq!(roster.undescribed(), [(agent(1), ([0; 32], [0; 32]))]);
}

#[test]
fn copies_beyond_the_bound_are_not_kept() {
    let mut roster = Roster::new(false);
    roster.connected(agent(1), true);
    for n in 0..20 {
        roster.announced(agent(1), run(n, 1, n, "den"), at(n));
    }
    assert_eq!(roster.view().installs.len(), 4);
}

#[test]
fn the_mesh_takes_no_more_agents_than_its_bound_and_keeps_the_first() {
    let mut roster = Roster::new(false);
    for n in 0..=MAX_AGENTS {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&u16::try_from(n).unwrap().to_be_bytes());
        roster.announced(AgentId(id), announcement(1, 1), at(0));
    }
    assert_eq!(roster.len(), MAX_AGENTS);
    assert!(roster.entries.contains_key(&AgentId([0; 32])));
}

#[test]
fn two_agents_of_one_kernel_share_a_lock_only_if_they_name_one_lock_file() {
    for (files, shared) in [([1, 1], true), ([1, 2], false), ([0, 0], false)] {
        let mut roster = Roster::new(false);
        for (n, file) in (1..).zip(files) {
            let locks = if file == 0 { Vec::new() } else { vec![[file; 8], [90 + n; 8]] };
            let locks = List::new(locks).unwrap();
            roster.announced(agent(n), Announcement { locks, ..announcement(1, 1) }, at(0));
        }
        assert_eq!(roster.view().share_a_lock(agent(1), agent(2)), shared, "{files:?}");
    }
}

/// A roster of agents 1, 2, …, each with the number of its boot, its incarnation and what it claims.
fn claimed(agents: &[(u8, u64, MachineClaim)]) -> Roster {
    let mut roster = Roster::new(false);
    for (n, (boot, incarnation, machine)) in (1..).zip(agents) {
        let announcement =
            Announcement { machine: *machine, ..run(*incarnation, *boot, 1, &format!("a{n}")) };
        roster.announced(agent(n), announcement, at(0));
        roster.connected(agent(n), true);
    }
    roster
}

fn codes(view: &View) -> Vec<(Code, Vec<AgentId>)> {
    let warnings = view.fusion.as_ref().unwrap().warnings();
    warnings.iter().map(|warning| (warning.code, warning.agents.clone())).collect()
}

#[test]
fn a_machine_goes_by_the_oldest_uid_of_its_agents_and_the_others_forward() {
    let claim = |n| MachineClaim::new(uid(n));
    let adopted = MachineClaim { before: Before::Alias(uid(7)), ..claim(3) };
    let mut roster = claimed(&[(1, 1, claim(5)), (1, 1, adopted), (2, 1, claim(4))]);
    let view = roster.view();
    assert_eq!(view.machines[0].uid, Some(uid(3)));
    assert_eq!(view.machines[0].aliases, BTreeSet::from([uid(5), uid(7)]));
    assert_eq!(view.machines[0].shown().to_string(), "m-0303");
    assert_eq!((view.machines[1].uid, view.machines[1].aliases.len()), (Some(uid(4)), 0));
    assert_eq!(view.machine(view.machines[1].id).unwrap().uid, Some(uid(4)));
    assert_eq!(codes(view), []);
}

#[test]
fn one_uid_on_two_machines_stays_with_the_better_claim_and_is_warned_of() {
    let claim = |hardware| MachineClaim { hardware, ..MachineClaim::new(uid(3)) };
    for (hardware, runs, keeps) in
        [([2, 1], [9, 1], 0), ([1, 2], [1, 9], 1), ([1, 1], [1, 9], 0), ([1, 1], [9, 1], 1)]
    {
        let mut roster = claimed(&[(1, runs[0], claim(hardware[0])), (2, runs[1], claim(hardware[1]))]);
        let view = roster.view();
        assert_eq!(view.machines[keeps].uid, Some(uid(3)));
        assert_eq!(view.machines[1 - keeps].uid, None, "{hardware:?} {runs:?}");
        let id = view.machines[1 - keeps].id;
        assert_eq!(view.shown(id), ShownId::Roster(id), "its agent's, where it has no name of its own");
        assert_eq!(codes(view), [(Code::ClonedImage, vec![agent(1), agent(2)])]);
    }
}

#[test]
fn a_machine_that_lost_a_uid_to_another_goes_by_its_next_one() {
    let [weak, strong] = [0, 1].map(|hardware| MachineClaim { hardware, ..MachineClaim::new(uid(3)) });
    let mut roster = claimed(&[(1, 1, weak), (1, 1, MachineClaim::new(uid(6))), (2, 1, strong)]);
    let view = roster.view();
    assert_eq!((view.machines[0].uid, view.machines[1].uid), (Some(uid(6)), Some(uid(3))));
    assert!(view.machines[0].aliases.is_empty(), "the name of another machine does not forward here");
}

#[test]
fn what_a_record_tells_of_its_machine_is_a_warning() {
    let claim = MachineClaim::new(uid(1));
    let changed = MachineClaim { change: Change::HardwareChanged, ..claim };
    let moved = MachineClaim { change: Change::Moved, ..MachineClaim::new(uid(2)) };
    let copy = MachineClaim { before: Before::CopyOf(uid(1)), ..MachineClaim::new(uid(3)) };
    let mut roster = claimed(&[(1, 1, changed), (1, 1, changed), (2, 1, moved), (3, 1, copy)]);
    assert_eq!(
        codes(roster.view()),
        [
            (Code::ClonedImage, vec![agent(2), agent(4)]),
            (Code::HardwareChanged, vec![agent(1), agent(2)]),
            (Code::OsMovedToOtherHardware, vec![agent(3)]),
        ]
    );
}

#[test]
fn a_name_that_nothing_keeps_is_warned_of_unless_a_neighbour_on_the_kernel_keeps_it() {
    let lost = MachineClaim { durable: false, ..MachineClaim::new(uid(1)) };
    let mut alone = claimed(&[(1, 1, lost), (2, 1, MachineClaim::new(uid(2)))]);
    assert_eq!(codes(alone.view()), [(Code::NoDurableAnchor, vec![agent(1)])]);
    let mut carried = claimed(&[(1, 1, lost), (1, 1, MachineClaim::new(uid(1)))]);
    assert_eq!(codes(carried.view()), []);
}

#[test]
fn of_more_than_sixty_four_agents_of_one_machine_the_newest_get_no_work() {
    let many = u8::try_from(MAX_ON_ONE_MACHINE).unwrap();
    for more in 0..=1 {
        let mut roster = Roster::new(false);
        // The agent that is heard last has the smallest id.
        for n in (1..=many + more).rev() {
            roster.announced(agent(n), announcement(1, 1), at(u64::from(many + more - n)));
        }
        roster.announced(agent(200), announcement(2, 1), at(500));
        let view = roster.view();
        let out: Vec<_> =
            view.installs.iter().filter(|i| i.out == Some(Out::TooMany)).map(|i| i.agent).collect();
        assert_eq!(out, vec![agent(1); usize::from(more)]);
        let warned = view.fusion.as_ref().unwrap().warnings().iter().any(|w| w.code == Code::TooManyAgents);
        assert_eq!(warned, more > 0);
    }
}

#[test]
fn of_more_than_1024_agents_the_newest_are_ignored() {
    let mut roster = Roster::new(false);
    let id = |n: usize| {
        let mut id = [7; 32];
        id[..2].copy_from_slice(&u16::try_from(n).unwrap().to_be_bytes());
        AgentId(id)
    };
    for n in 0..=MAX_AGENTS {
        roster.announced(id(n), announcement(1, 1), at(0));
    }
    assert_eq!(roster.len(), MAX_AGENTS);
    assert!(roster.knows(id(MAX_AGENTS - 1)) && !roster.knows(id(MAX_AGENTS)));
}

/// Describes an agent of kernel `boot` that has these salts, the present one first.
fn salted(roster: &mut Roster, n: u8, boot: u8, salts: &[u8]) {
    let mut facts = Facts::empty(Os::Linux);
    facts.boot_id = Reading::Value(format!("boot {boot}"));
    let keyed = |salt: &u8| facts.keyed(&Key::new(&Salt([*salt; 32])));
    let evidence = keyed(&salts[0]);
    let former = salts.get(1).map(|salt| Box::new(keyed(salt)));
    let core = Core::new(&evidence, Reading::Absent);
    roster.connected(agent(n), true);
    roster.announced(agent(n), Announcement { core, ..announcement(boot, 1) }, at(0));
    let inventory = inventory(Vec::new());
    let denied = Text::default();
    roster.described(agent(n), ([0; 32], [0; 32]), Description { evidence, former, inventory, denied });
}

/// How many machines there are, and whom the others cannot be compared with.
fn counted(roster: &mut Roster) -> (usize, Vec<AgentId>) {
    let view = roster.view();
    let warnings = view.fusion.as_ref().map(|fusion| fusion.warnings()).unwrap_or_default();
    let told = warnings.iter().find(|warning| warning.code == Code::OtherIdSalt);
    (view.machines.len(), told.map(|warning| warning.agents.clone()).unwrap_or_default())
}

#[test]
fn a_mesh_replaces_its_salt_agent_by_agent_and_one_kernel_stays_one_machine() {
    const OLD: u8 = 1;
    const NEW: u8 = 2;
    let mut roster = Roster::new(false);
    for n in 1..=4 {
        salted(&mut roster, n, 1, &[OLD]);
    }
    // First each gets the new one beside the old, then each loses the old.
    for salts in [&[NEW, OLD][..], &[NEW]] {
        for n in 1..=4 {
            assert_eq!(counted(&mut roster), (1, vec![]));
            salted(&mut roster, n, 1, salts);
        }
    }
    assert_eq!(counted(&mut roster), (1, vec![]));
}

#[test]
fn agents_without_a_salt_in_common_are_not_taken_for_two_machines_and_are_named() {
    let mut roster = Roster::new(false);
    salted(&mut roster, 1, 1, &[1]);
    salted(&mut roster, 2, 1, &[1]);
    salted(&mut roster, 3, 1, &[2]);
    assert_eq!(counted(&mut roster), (2, vec![agent(3)]));
    let view = roster.view();
    assert!(view.fusion.as_ref().unwrap().excluded(agent(1), agent(3)), "nothing tells them apart");
    assert_eq!(view.install(agent(3)).unwrap().rivals.len(), 2);
    let why = view.install(agent(3)).unwrap().evidence.boot_id.why_not();
    assert_eq!(why.as_deref(), Some("rejected (keyed with another id-salt)"));
}

/// Two installs of one kernel with two GPUs, each at work on its own; what each may load another model on.
fn two_gpus(anywhere: [&[u16]; 2]) -> Vec<Install> {
    let mut roster = Roster::new(false);
    for (n, anywhere) in (1u8..).zip(anywhere) {
        let gpu = |id: u8| Gpu {
            vendor: Text::cut("nvidia"),
            name: Text::default(),
            uuid: Some(Tag([id; 16])),
            kind: GpuKind::Full,
            pci: None,
            memory: 0,
            uma: false,
        };
        let mut evidence = Evidence::from_core(&announcement(1, 1).core);
        evidence.gpus = List::cut(vec![gpu(1), gpu(2)]).0;
        let claim = |gpus: Vec<u16>, dram| LaneClaim {
            gpus: List::cut(gpus).0,
            dram,
            numa_nodes: List::default(),
            method: Attribution::Process,
        };
        evidence.lane = claim(vec![u16::from(n) - 1], false);
        evidence.anywhere = claim(anywhere.to_vec(), true);
        let model = Model {
            name: Text::cut("tiny:latest"),
            digest: [1; 32],
            fingerprint: [1; 32],
            size: 1,
            context: 2048,
            completion: true,
            embedding: false,
            thinking: false,
            tools: false,
            remote: false,
            loaded: Some(Loaded { size: 5, size_vram: 5, context: 2048 }),
        };
        let inventory = inventory(vec![model]);
        roster.connected(agent(n), true);
        roster.announced(agent(n), announcement(1, 1), at(0));
        let denied = Text::default();
        let description = Description { evidence, former: None, inventory, denied };
        roster.described(agent(n), ([0; 32], [0; 32]), description);
    }
    roster.view().installs.clone()
}

#[test]
fn installs_that_work_on_their_own_gpus_meet_where_one_loads_another_model() {
    let other = BTreeSet::from([agent(2)]);
    let [one, _] = two_gpus([&[0, 1], &[0, 1]]).try_into().unwrap();
    assert_eq!(
        (one.lane.to_string(), one.anywhere.to_string()),
        ("gpu:0101".into(), "gpu:0101,gpu:0202,dram".into())
    );
    assert!(one.rivals.is_empty());
    assert_eq!((&one.loads.here, &one.loads.there, &one.loads.both), (&other, &other, &other));
    let [one, _] = two_gpus([&[0], &[1]]).try_into().unwrap();
    assert!(one.loads.here.is_empty() && one.loads.there.is_empty(), "each is pinned to its own");
    assert_eq!(one.loads.both, other, "both may spill into memory");
    let [one, two] = two_gpus([&[0, 1], &[1]]).try_into().unwrap();
    assert_eq!((one.loads.here.len(), one.loads.there.len()), (1, 0));
    assert_eq!((two.loads.here.len(), two.loads.there.len()), (0, 1));
}
