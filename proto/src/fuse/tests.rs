//! What the truth tables do not show: who is alive, rules by `TROPA_MACHINE`, flapping, tests to run, reasons.

use super::*;
use crate::{
    bounded::List,
    evidence::{Attribution, Gpu, GpuKind, Hypervisor, Os, Reading, Tag},
};

fn id(number: u8) -> AgentId {
    AgentId([number; 32])
}

/// A bare Linux machine with a boot id.
fn agent(number: u8, boot: u8) -> (Member, Evidence) {
    let mut evidence = Evidence::empty(Os::Linux);
    evidence.hypervisor = Hypervisor::None;
    evidence.boot_id = Reading::Value(Tag([boot; 16]));
    let member = Member {
        id: id(number),
        key: id(number),
        evidence: Arc::new(evidence.clone()),
        epoch: EpochTrack::unknown(),
        first_heard: Duration::ZERO,
        last_heard: Duration::from_secs(1),
        flapping: false,
    };
    (member, evidence)
}

fn with(agent: (Member, Evidence), change: impl FnOnce(&mut Evidence)) -> Member {
    let (mut member, mut evidence) = agent;
    change(&mut evidence);
    member.evidence = Arc::new(evidence);
    member
}

fn fused(members: Vec<Member>) -> Fusion {
    fuse(&Input { members, ..Input::default() })
}

fn kind(fusion: &Fusion, a: u8, b: u8) -> Kind {
    fusion.relation(id(a), id(b)).unwrap().kind
}

fn codes(fusion: &Fusion) -> Vec<Code> {
    fusion.warnings().iter().map(|warning| warning.code).collect()
}

#[test]
fn a_reboot_does_not_look_like_a_clone_until_both_are_heard_again() {
    let machine_id = |evidence: &mut Evidence| evidence.machine_id = Reading::Value(Tag([9; 16]));
    let before = with(agent(1, 1), machine_id);
    let mut after = with(agent(2, 2), machine_id);
    after.first_heard = Duration::from_secs(5);
    after.last_heard = Duration::from_secs(5);
    let fusion = fused(vec![before.clone(), after.clone()]);
    assert_eq!(kind(&fusion, 1, 2), Kind::UnknownExclude);
    assert_eq!(codes(&fusion), []);

    let heard_again = Member { last_heard: Duration::from_secs(6), ..before };
    after.last_heard = Duration::from_secs(6);
    let fusion = fused(vec![heard_again, after]);
    assert_eq!(kind(&fusion, 1, 2), Kind::Distinct);
    assert_eq!(codes(&fusion), [Code::ClonedImage]);
}

#[test]
fn equal_values_of_tropa_machine_mean_same_and_different_ones_distinct() {
    let guest = |number, host: Option<u8>| {
        with(agent(number, number), |evidence| {
            evidence.hypervisor = Hypervisor::Vm;
            evidence.machine_rule = host.map(|host| Tag([host; 16]));
        })
    };
    let fusion = fused(vec![guest(1, Some(1)), guest(2, Some(1)), guest(3, Some(2)), guest(4, None)]);
    let relation = fusion.relation(id(1), id(2)).unwrap();
    assert_eq!((relation.kind, relation.confidence), (Kind::SameMachine, Confidence::Operator));
    assert_eq!(kind(&fusion, 1, 3), Kind::Distinct);
    assert_eq!(kind(&fusion, 2, 3), Kind::Distinct);
    assert_eq!(kind(&fusion, 1, 4), Kind::UnknownExclude);
}

#[test]
fn two_values_of_tropa_machine_split_even_a_kernel_and_say_so() {
    let ruled =
        |number, host| with(agent(number, 1), |evidence| evidence.machine_rule = Some(Tag([host; 16])));
    let fusion = fused(vec![ruled(1, 1), ruled(2, 2)]);
    assert_eq!(kind(&fusion, 1, 2), Kind::Distinct);
    assert_eq!(codes(&fusion), [Code::OverrideContradictsProof]);
}

#[test]
fn a_refused_join_excludes_its_own_pair_and_leaves_the_ruled_one_alone() {
    let (a, b, c) = (agent(1, 1).0, agent(2, 1).0, agent(3, 1).0);
    let rules = BTreeSet::from([(id(1), id(3), Rule::Distinct)]);
    let fusion = fuse(&Input { members: vec![a, b, c], rules, ..Input::default() });
    assert_eq!(kind(&fusion, 1, 2), Kind::SameKernel);
    assert_eq!(kind(&fusion, 1, 3), Kind::Distinct);
    assert_eq!(fusion.excluded_pairs(), [(id(2), id(3))]);
    assert!(codes(&fusion).contains(&Code::MergeRefusedConflict));
}

#[test]
fn an_agent_that_flaps_is_held_apart_and_together_with_everyone() {
    let mut flapping = agent(2, 1).0;
    flapping.flapping = true;
    let fusion = fused(vec![agent(1, 1).0, flapping, agent(3, 3).0]);
    assert_eq!(fusion.machines().len(), 3);
    assert!(fusion.together(id(1), id(2)) && fusion.together(id(2), id(3)));
    assert_eq!(codes(&fusion), [Code::IdentityFlapping]);
}

#[test]
fn an_agent_that_is_not_present_is_together_with_everyone() {
    let fusion = fused(vec![agent(1, 1).0, agent(2, 2).0]);
    assert!(!fusion.together(id(1), id(2)));
    assert!(fusion.together(id(1), id(7)));
    assert_eq!(fusion.relation(id(1), id(7)), None);
    assert_eq!(fusion.relation(id(1), id(1)), None);
}

#[test]
fn one_sandwich_for_each_agent_confirms_a_kernel() {
    let fusion = fused((1..=5).map(|number| agent(number, 1).0).collect());
    let tests: Vec<_> = fusion.tests_to_run().iter().map(|test| (test.a, test.b, test.test)).collect();
    assert_eq!(tests, (2..=5).map(|number| (id(1), id(number), LiveTest::Sandwich)).collect::<Vec<_>>());
}

#[test]
fn a_conflict_asks_for_the_sandwich_and_then_for_the_beacon() {
    let epoch = |seconds: i64| {
        EpochTrack::settled(&Reading::Value(1_790_000_000_000_000_000 + seconds * 1_000_000_000))
    };
    let (mut a, mut b) = (agent(1, 1).0, agent(2, 1).0);
    (a.epoch, b.epoch) = (epoch(0), epoch(5));
    let mut input = Input { members: vec![a, b], ..Input::default() };
    assert_eq!(fuse(&input).tests_to_run()[0].test, LiveTest::Sandwich);
    let far = ClockOffset { offset_ns: 9_000_000, rtt_ns: 0 };
    let facts = PairFacts { sandwich: Some(Test::Pass), clock: Some(far), ..PairFacts::default() };
    input.facts.insert((id(2), id(1)), facts);
    let fusion = fuse(&input);
    assert_eq!(fusion.tests_to_run()[0].test, LiveTest::Beacon);
    assert!(codes(&fusion).contains(&Code::KernelConflict));
}

#[test]
fn no_live_test_is_proposed_between_two_operating_systems() {
    let windows = with(agent(2, 2), |evidence| {
        evidence.os = Os::Windows;
        evidence.boot_id = Reading::Absent;
    });
    let linux = with(agent(1, 1), |evidence| evidence.boot_id = Reading::Absent);
    assert_eq!(fused(vec![linux, windows]).tests_to_run(), []);
}

#[test]
fn the_reasons_name_every_line_with_its_number_and_what_was_not_readable() {
    let gpu = |evidence: &mut Evidence| {
        evidence.hypervisor = Hypervisor::Vm;
        evidence.product_uuid = Reading::Denied;
        let gpu = Gpu {
            vendor: crate::bounded::Text::default(),
            name: crate::bounded::Text::default(),
            uuid: Some(Tag([5; 16])),
            kind: GpuKind::Full,
            pci: None,
            memory: 0,
            uma: false,
        };
        evidence.gpus = List::cut(vec![gpu]).0;
    };
    let fusion = fused(vec![with(agent(1, 1), gpu), with(agent(2, 2), gpu)]);
    let why = fusion.why(id(1), id(2)).unwrap();
    assert_eq!(why.to_string(), "same machine (high, +3.7): boot ids differ, prior −0.3, same GPU +4.0");
    assert_eq!(why.unreadable[0], (id(1), "SMBIOS UUID", "denied".to_owned()));
}

#[test]
fn an_inherited_relation_names_the_pair_that_carries_it() {
    let host = with(agent(1, 1), |evidence| {
        evidence.hosts_vms = Reading::Value(List::cut(vec![Tag([7; 16])]).0);
    });
    let guest = with(agent(2, 2), |evidence| {
        evidence.hypervisor = Hypervisor::Vm;
        evidence.product_uuid = Reading::Value(Tag([7; 16]));
    });
    let fusion = fused(vec![host, guest, agent(3, 3).0]);
    let why = fusion.why(id(2), id(3)).unwrap();
    assert_eq!((why.relation.kind, why.relation.confidence), (Kind::Distinct, Confidence::High));
    assert_eq!(why.inherited_from, Some((id(1), id(3))));
}

#[test]
fn several_gpus_without_attribution_are_all_reserved_and_say_so() {
    let lane = |places: Vec<u16>, method| {
        with(agent(1, 1), move |evidence| {
            evidence.lane.gpus = List::cut(places).0;
            evidence.lane.method = method;
        })
    };
    assert_eq!(codes(&fused(vec![lane(vec![0, 1], Attribution::Everything)])), [Code::DeviceUnattributed]);
    assert_eq!(codes(&fused(vec![lane(vec![0], Attribution::Everything)])), []);
    assert_eq!(codes(&fused(vec![lane(vec![0, 1], Attribution::Operator)])), []);
}

#[test]
fn facts_about_agents_that_are_gone_count_nothing() {
    let facts = PairFacts { rendezvous: true, ..PairFacts::default() };
    let input = Input {
        members: vec![agent(1, 1).0],
        facts: BTreeMap::from([((id(1), id(2)), facts), ((id(1), id(1)), facts)]),
        rules: BTreeSet::from([(id(1), id(3), Rule::Same)]),
    };
    let fusion = fuse(&input);
    assert_eq!(fusion.machines().len(), 1);
    assert_eq!(fusion.warnings(), []);
}

#[test]
fn nothing_fuses_to_nothing() {
    assert_eq!(fused(Vec::new()).machines(), []);
}
