//! What holds for every world, however its evidence contradicts itself: random worlds of 2 to 6 agents over so few
//! values that collisions are the rule (`identity.md` §17). `PROPTEST_CASES` sets how many worlds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proptest::{collection::vec, option, prelude::*, sample::select};
use tropa_proto::{
    bounded::{List, Text},
    device::Lane,
    epoch::EpochTrack,
    evidence::{Attribution, Evidence, Gpu, GpuKind, Hypervisor, HypervisorClass, Os, Reading, Tag},
    fuse::{ClockOffset, Code, Fusion, Input, Interference, Kind, Member, PairFacts, Rule, Test, fuse},
    id::AgentId,
};

/// Numbers stand for values; `member` turns them into evidence.
#[derive(Clone, Debug)]
struct Facts {
    os: Os,
    hypervisor: Hypervisor,
    class: HypervisorClass,
    boot: Option<(u8, bool)>,
    epoch: Option<u8>,
    time_namespace: bool,
    ids: [Option<u8>; 5],
    sets: [Option<u8>; 4],
    model: Option<u8>,
    gpus: Vec<(u8, u8)>,
    key: Option<u8>,
    machine_rule: Option<u8>,
}

type World = (Vec<Facts>, Vec<(usize, usize, PairFacts, Option<Rule>)>);

fn facts() -> impl Strategy<Value = Facts> {
    let rare = |strategy| option::weighted(0.15, strategy);
    let often = |strategy| option::weighted(0.7, strategy);
    let os = prop_oneof![6 => Just(Os::Linux), 2 => Just(Os::Windows), 1 => Just(Os::Macos)];
    let hypervisor = select(vec![
        Hypervisor::None,
        Hypervisor::None,
        Hypervisor::Root,
        Hypervisor::Vm,
        Hypervisor::Vm,
        Hypervisor::Unknown,
    ]);
    let class = select(vec![
        HypervisorClass::Homelab,
        HypervisorClass::Desktop,
        HypervisorClass::Cloud,
        HypervisorClass::Unknown,
    ]);
    let kernel = (
        option::weighted(0.7, (0_u8..3, prop::bool::weighted(0.2))),
        often(0_u8..3),
        prop::bool::weighted(0.1),
    );
    let ids = [0.4, 0.5, 0.2, 0.3, 0.2].map(|weight| option::weighted(weight, 0_u8..3));
    let sets = [0.2, 0.2, 0.2, 0.2].map(|weight| option::weighted(weight, 1_u8..8));
    let rest = (often(0_u8..2), vec((0_u8..3, 0_u8..3), 0..3), rare(0_u8..2), rare(0_u8..2));
    (os, hypervisor, class, kernel, ids, sets, rest).prop_map(
        |(
            os,
            hypervisor,
            class,
            (boot, epoch, time_namespace),
            ids,
            sets,
            (model, gpus, key, machine_rule),
        )| Facts {
            os,
            hypervisor,
            class,
            boot,
            epoch,
            time_namespace,
            ids,
            sets,
            model,
            gpus,
            key,
            machine_rule,
        },
    )
}

fn pair_facts() -> impl Strategy<Value = (PairFacts, Option<Rule>)> {
    let test = || option::weighted(0.15, select(vec![Test::Pass, Test::Fail]));
    let interference = || option::weighted(0.2, select(vec![Interference::Positive, Interference::Negative]));
    let rule = option::weighted(0.1, select(vec![Rule::Same, Rule::Distinct]));
    let clock = option::weighted(0.5, select(vec![50_000_i64, 50_000, 50_000, -9_000_000]));
    let flags = (prop::bool::weighted(0.05), prop::bool::weighted(0.1));
    (clock, flags, test(), test(), interference(), interference(), rule).prop_map(
        |(clock, (rendezvous, local_peer), sandwich, beacon, probe, passive, rule)| {
            let clock = clock.map(|offset_ns| ClockOffset { offset_ns, rtt_ns: 400_000 });
            (PairFacts { clock, rendezvous, sandwich, beacon, local_peer, probe, passive }, rule)
        },
    )
}

/// A world; about half of its pairs have facts.
fn world() -> impl Strategy<Value = World> {
    vec(facts(), 2..=6).prop_flat_map(|agents| {
        let n = agents.len();
        let pairs: Vec<(usize, usize)> = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).collect();
        let known = vec(option::weighted(0.5, pair_facts()), pairs.len());
        (Just(agents), known).prop_map(move |(agents, known)| {
            let known = pairs
                .iter()
                .zip(known)
                .filter_map(|(&(i, j), known)| known.map(|(facts, rule)| (i, j, facts, rule)));
            (agents, known.collect())
        })
    })
}

fn world_without_rules() -> impl Strategy<Value = World> {
    world().prop_map(|(mut agents, mut pairs)| {
        agents.iter_mut().for_each(|agent| agent.machine_rule = None);
        pairs.iter_mut().for_each(|pair| pair.3 = None);
        (agents, pairs)
    })
}

fn tag(kind: u8, value: u8) -> Tag {
    let mut tag = [kind; 16];
    tag[0] = value;
    Tag(tag)
}

fn id(number: usize) -> AgentId {
    AgentId([u8::try_from(number).unwrap(); 32])
}

fn reading(kind: u8, value: Option<u8>) -> Reading<Tag> {
    value.map_or(Reading::Absent, |value| Reading::Value(tag(kind, value)))
}

/// A set of the tags whose bit is set.
fn set<const MAX: usize>(kind: u8, bits: Option<u8>) -> Reading<List<Tag, MAX>> {
    let tags = |bits: u8| (0..3).filter(|bit| bits >> bit & 1 == 1).map(|bit| tag(kind, bit)).collect();
    bits.map_or(Reading::Absent, |bits| Reading::Value(List::cut(tags(bits)).0))
}

fn member(facts: &Facts, id: AgentId) -> Member {
    let mut evidence = Evidence::empty(facts.os);
    evidence.hypervisor = facts.hypervisor;
    evidence.hypervisor_class = facts.class;
    evidence.time_namespace = facts.time_namespace;
    evidence.boot_id = match facts.boot {
        Some((boot, true)) => Reading::Virtual(tag(1, boot)),
        Some((boot, false)) => Reading::Value(tag(1, boot)),
        None => Reading::Absent,
    };
    let [machine_id, product, platform, guid, wsl] = facts.ids;
    evidence.machine_id = reading(2, machine_id);
    evidence.product_uuid = reading(3, product);
    evidence.platform_uuid = reading(4, platform);
    evidence.machine_guid = reading(5, guid);
    evidence.wsl_host_guid = reading(5, wsl);
    let [ppin, macs, nvme, guests] = facts.sets;
    evidence.ppin = set(6, ppin);
    evidence.macs = set(7, macs);
    evidence.nvme = set(8, nvme);
    evidence.hosts_vms = set(3, guests);
    evidence.cpu_model =
        facts.model.map_or(Reading::Absent, |model| Reading::Value(Text::cut(&format!("Ryzen {model}900X"))));
    let gpu = |(value, kind): &(u8, u8)| {
        let (value, kind) = match kind {
            0 => (tag(9, *value), GpuKind::Full),
            1 => (tag(10, *value), GpuKind::Mig { parent: tag(9, *value / 2) }),
            _ => (tag(11, *value), GpuKind::Vgpu),
        };
        Gpu {
            vendor: Text::default(),
            name: Text::default(),
            uuid: Some(value),
            kind,
            pci: None,
            memory: 0,
            uma: false,
        }
    };
    evidence.gpus = List::cut(facts.gpus.iter().map(gpu).collect()).0;
    evidence.machine_rule = facts.machine_rule.map(|value| tag(12, value));
    let epoch = facts.epoch.map_or(Reading::Absent, |epoch| {
        Reading::Value(1_790_000_000_000_000_000 + i64::from(epoch) * 1_000_000_000)
    });
    Member {
        id,
        key: facts.key.map_or(id, |key| AgentId([200 + key; 32])),
        evidence: Arc::new(evidence),
        epoch: EpochTrack::settled(&epoch),
        first_heard: Duration::ZERO,
        last_heard: Duration::from_secs(1),
        flapping: false,
    }
}

/// The input of a world whose agent number `i` is called `names[i]`.
fn input(world: &World, names: &[usize]) -> Input {
    let mut input = Input::default();
    for (facts, name) in world.0.iter().zip(names) {
        input.members.push(member(facts, id(*name)));
    }
    for &(i, j, facts, rule) in &world.1 {
        let (a, b) = (id(names[i]), id(names[j]));
        input.facts.insert((a, b), facts);
        input.rules.extend(rule.map(|rule| (a, b, rule)));
    }
    input
}

fn plain(world: &World) -> Input {
    input(world, &(0..world.0.len()).collect::<Vec<_>>())
}

fn all_pairs(fusion: &Fusion) -> Vec<(AgentId, AgentId)> {
    let agents: Vec<AgentId> = fusion.agents().collect();
    agents.iter().flat_map(|a| agents.iter().filter(move |b| a < *b).map(move |b| (*a, *b))).collect()
}

/// Everything that a user can see of a result, as text.
fn shown(fusion: &Fusion) -> String {
    let relations: Vec<_> = all_pairs(fusion).into_iter().map(|(a, b)| fusion.why(a, b)).collect();
    format!(
        "{:?} {:?} {:?} {:?} {relations:?}",
        fusion.machines(),
        fusion.excluded_pairs(),
        fusion.warnings(),
        fusion.tests_to_run(),
    )
}

/// A larger world in which most agents have values of their own and nothing is known of most pairs.
fn strangers() -> impl Strategy<Value = World> {
    let agents = vec((facts(), prop::bool::weighted(0.8)), 4..=12);
    let known = vec((0_usize..12, 0_usize..12, pair_facts()), 0..3);
    (agents, known).prop_map(|(agents, known)| {
        let mut apart = 0;
        let agents: Vec<Facts> = agents
            .into_iter()
            .map(|(mut facts, own)| {
                if own {
                    apart += 3;
                    facts.boot = facts.boot.map(|(boot, _)| (boot + apart, false));
                    facts.epoch = facts.epoch.map(|epoch| epoch + apart);
                    facts.ids = facts.ids.map(|id| id.map(|id| id + apart));
                    facts.gpus.iter_mut().for_each(|gpu| gpu.0 += apart);
                    facts.machine_rule = facts.machine_rule.map(|rule| rule + apart);
                    facts.sets = [None; 4];
                    facts.key = None;
                }
                facts
            })
            .collect();
        let n = agents.len();
        let known = known.into_iter().filter(|(i, j, _)| i < j && *j < n);
        (agents, known.map(|(i, j, (facts, rule))| (i, j, facts, rule)).collect())
    })
}

/// Asks for all rivals at once and pair by pair. The numbers say when each agent was heard and what its lane is.
fn rivals_are_right(world: &World, lanes: &[(u64, u8)]) -> Result<(), TestCaseError> {
    let mut input = plain(world);
    for (member, (heard, kind)) in input.members.iter_mut().zip(lanes) {
        // Some came when others had not been heard for a while.
        member.first_heard = Duration::from_secs(u64::from(*heard == 1));
        member.last_heard = Duration::from_millis(if *heard == 2 { 500 } else { 2_000 });
        let evidence = Arc::make_mut(&mut member.evidence);
        evidence.lane.gpus = List::cut((0..).take(evidence.gpus.len()).collect()).0;
        evidence.lane.method = Attribution::Operator;
        evidence.lane.dram = kind & 1 == 1;
        if kind & 2 == 2 {
            evidence.lane.numa_nodes = List::cut(vec![u16::from(kind & 1)]).0;
        }
    }
    let fusion = fuse(&input);
    let lane = |member: &Member| Lane::occupied(fusion.place(member.id).unwrap(), &member.evidence, None);
    let lanes: BTreeMap<AgentId, Lane> = input.members.iter().map(|one| (one.id, lane(one))).collect();
    let found = fusion.rivals(&lanes.iter().map(|(agent, lane)| (*agent, lane)).collect());
    for (a, one) in &lanes {
        let others =
            lanes.iter().filter(|(b, other)| a != *b && !fusion.may_overlap((*a, one), (**b, other)));
        prop_assert_eq!(&found[a], &others.map(|(b, _)| *b).collect::<BTreeSet<_>>(), "{:?}", a);
    }
    Ok(())
}

fn settings() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn the_order_of_agents_and_pairs_and_which_is_a_change_nothing(world in world()) {
        let there = plain(&world);
        let mut back = there.clone();
        back.members.reverse();
        back.facts = there.facts.iter().map(|((a, b), facts)| ((*b, *a), *facts)).collect();
        back.rules = there.rules.iter().map(|(a, b, rule)| (*b, *a, *rule)).collect();
        prop_assert_eq!(shown(&fuse(&there)), shown(&fuse(&back)));
    }

    #[test]
    fn machines_are_a_partition_and_kernels_refine_it(world in world()) {
        let fusion = fuse(&plain(&world));
        let mut in_machines: Vec<AgentId> =
            fusion.machines().iter().flat_map(|machine| machine.agents.iter().copied()).collect();
        in_machines.sort();
        prop_assert_eq!(in_machines, fusion.agents().collect::<Vec<_>>());
        for machine in fusion.machines() {
            let mut in_kernels: Vec<AgentId> =
                machine.kernels.iter().flat_map(|kernel| kernel.agents.iter().copied()).collect();
            in_kernels.sort();
            prop_assert_eq!(&in_kernels, &machine.agents);
            for agent in &machine.agents {
                prop_assert_eq!(fusion.place(*agent).unwrap().machine, machine.id);
            }
        }
        for (a, b) in all_pairs(&fusion) {
            let kind = fusion.relation(a, b).unwrap().kind;
            let (one, other) = (fusion.place(a).unwrap(), fusion.place(b).unwrap());
            prop_assert_eq!(one.machine == other.machine, matches!(kind, Kind::SameKernel | Kind::SameMachine));
            prop_assert_eq!(one.kernel == other.kernel, kind == Kind::SameKernel);
            prop_assert_eq!(fusion.relation(a, b), fusion.relation(b, a));
            prop_assert_eq!(fusion.together(a, b), fusion.together(b, a));
        }
    }

    #[test]
    fn without_rules_a_passed_beacon_makes_one_machine(world in world_without_rules()) {
        let fusion = fuse(&plain(&world));
        for &(i, j, facts, _) in &world.1 {
            if facts.beacon == Some(Test::Pass) {
                prop_assert_eq!(fusion.relation(id(i), id(j)).unwrap().kind, Kind::SameKernel);
            }
        }
    }

    #[test]
    fn without_rules_agreeing_equal_ids_are_never_parallel_unless_a_test_separated_someone(
        world in world_without_rules(),
    ) {
        let separates = |facts: &PairFacts| {
            let far = facts.clock.is_some_and(|clock| clock.offset_ns.abs() > 1_200_000);
            facts.beacon == Some(Test::Fail) || facts.sandwich == Some(Test::Fail) || far
        };
        prop_assume!(!world.1.iter().any(|(_, _, facts, _)| separates(facts)));
        let fusion = fuse(&plain(&world));
        for (i, one) in world.0.iter().enumerate() {
            for (j, other) in world.0.iter().enumerate().skip(i + 1) {
                let genuine = |facts: &Facts| facts.boot.filter(|boot| !boot.1).map(|boot| boot.0);
                let epoch = |facts: &Facts| facts.epoch.filter(|_| !facts.time_namespace);
                let boot = genuine(one).zip(genuine(other)).map(|(one, other)| one == other);
                let epoch = epoch(one).zip(epoch(other)).map(|(one, other)| one == other);
                let agree = boot != Some(false) && epoch != Some(false) && (boot, epoch) != (None, None);
                if agree {
                    prop_assert!(fusion.together(id(i), id(j)), "{}", fusion.why(id(i), id(j)).unwrap());
                }
            }
        }
    }

    #[test]
    fn a_hard_negative_pair_is_in_one_machine_only_by_rule(world in world_without_rules()) {
        let input = plain(&world);
        let fusion = fuse(&input);
        let evidence: BTreeMap<AgentId, &Evidence> =
            input.members.iter().map(|member| (member.id, &*member.evidence)).collect();
        for machine in fusion.machines() {
            for (at, one) in machine.kernels.iter().enumerate() {
                for other in &machine.kernels[at + 1..] {
                    let pool = |agents: &[AgentId], of: fn(&Evidence) -> Vec<Tag>| -> BTreeSet<Tag> {
                        agents.iter().flat_map(|agent| of(evidence[agent])).collect()
                    };
                    let smbios = |agents: &[AgentId]| {
                        pool(agents, |evidence| evidence.product_uuid.value().copied().into_iter().collect())
                    };
                    let ppin = |agents: &[AgentId]| {
                        pool(agents, |evidence| evidence.ppin.value().map(|list| list.to_vec()).unwrap_or_default())
                    };
                    let (u, v) = (smbios(&one.agents), smbios(&other.agents));
                    let boards = one.bare && other.bare && u.len() == 1 && v.len() == 1 && u != v;
                    let (p, q) = (ppin(&one.agents), ppin(&other.agents));
                    let processors = !p.is_empty() && !q.is_empty() && p.is_disjoint(&q);
                    prop_assert!(!boards && !processors, "{one:?} {other:?}");
                    let why = fusion.why(one.id, other.id).unwrap();
                    let apart = why.reasons.iter().any(|reason| reason.text == "two kernels, both bare metal");
                    prop_assert!(!apart, "{why}");
                }
            }
        }
    }

    #[test]
    fn what_is_unknown_is_excluded(world in world()) {
        let fusion = fuse(&plain(&world));
        let excluded: BTreeSet<_> = fusion.excluded_pairs().into_iter().collect();
        for (a, b) in all_pairs(&fusion) {
            if fusion.relation(a, b).unwrap().kind == Kind::UnknownExclude {
                prop_assert!(excluded.contains(&(a, b)));
            }
        }
    }

    #[test]
    fn distinct_splits_unless_a_same_opposes(world in world()) {
        let same = world.1.iter().any(|(_, _, _, rule)| *rule == Some(Rule::Same));
        let declared: Vec<u8> = world.0.iter().filter_map(|facts| facts.machine_rule).collect();
        let equal = declared.iter().collect::<BTreeSet<_>>().len() < declared.len();
        prop_assume!(!same && !equal);
        let fusion = fuse(&plain(&world));
        for &(i, j, _, rule) in &world.1 {
            if rule == Some(Rule::Distinct) {
                let kind = fusion.relation(id(i), id(j)).unwrap().kind;
                prop_assert!(matches!(kind, Kind::Distinct | Kind::UnknownExclude), "{kind}");
            }
        }
    }

    #[test]
    fn a_positive_probe_never_frees_a_pair(world in world(), at in any::<prop::sample::Index>()) {
        let before = fuse(&plain(&world));
        let pairs = all_pairs(&before);
        let (a, b) = pairs[at.index(pairs.len())];
        let mut probed = plain(&world);
        probed.facts.entry((a, b)).or_default().probe = Some(Interference::Positive);
        let after = fuse(&probed);
        if before.together(a, b) {
            prop_assert!(after.together(a, b), "before {}, after {}", before.why(a, b).unwrap(), after.why(a, b).unwrap());
        }
    }

    #[test]
    fn an_agent_that_can_read_nothing_is_parallel_with_nobody(world in world_without_rules()) {
        let mut input = plain(&world);
        let nobody = id(99);
        let mut member = input.members[0].clone();
        member.id = nobody;
        member.key = nobody;
        member.evidence = Arc::new(Evidence::empty(member.evidence.os));
        member.epoch = EpochTrack::unknown();
        input.members.push(member);
        let fusion = fuse(&input);
        for other in fusion.agents().filter(|agent| *agent != nobody) {
            prop_assert!(fusion.together(nobody, other), "{}", fusion.why(nobody, other).unwrap());
        }
    }

    #[test]
    fn rivals_are_those_whose_work_may_not_overlap(world in world(), lanes in vec((0_u64..3, 0_u8..4), 6)) {
        rivals_are_right(&world, &lanes)?;
    }

    #[test]
    fn rivals_among_many_strangers_are_those_whose_work_may_not_overlap(
        world in strangers(),
        lanes in vec((prop_oneof![1 => Just(0_u64), 1 => 1_u64..3], 0_u8..4), 12),
    ) {
        rivals_are_right(&world, &lanes)?;
    }

    #[test]
    fn renaming_agents_renames_the_result(world in world(), turn in 1_usize..6, flip in any::<bool>()) {
        let n = world.0.len();
        let names: Vec<usize> = (0..n).map(|i| if flip { n - 1 - i } else { (i + turn) % n }).collect();
        let (before, after) = (fuse(&plain(&world)), fuse(&input(&world, &names)));
        let depends_on_names = |fusion: &Fusion| {
            fusion.warnings().iter().any(|warning| {
                warning.code == Code::SnapshotCloneOrSpoof || warning.code.text().ends_with("_CONFLICT")
            })
        };
        prop_assume!(!depends_on_names(&before) && !depends_on_names(&after));
        for i in 0..n {
            for j in i + 1..n {
                let (a, b) = (id(names[i]), id(names[j]));
                prop_assert_eq!(before.relation(id(i), id(j)), after.relation(a, b));
                prop_assert_eq!(before.together(id(i), id(j)), after.together(a, b));
            }
        }
        let codes = |fusion: &Fusion| fusion.warnings().iter().map(|warning| warning.code).collect::<BTreeSet<_>>();
        prop_assert_eq!(codes(&before), codes(&after));
    }
}
