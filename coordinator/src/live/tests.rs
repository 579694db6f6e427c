use std::time::Duration;

use tropa_proto::{
    bounded::{List, Text},
    evidence::{Core, Evidence, Hypervisor, HypervisorClass, Reading, Tag},
    fuse::{ClockOffset, Code, Kind, Test},
    id::EngineRun,
    message::{AgentState, Announcement, Counters, Description, EngineState, Inventory},
    permit::Permit,
    roster::Roster,
    uid::{MachineClaim, MachineUid},
};

use super::{report::named, *};

/// A kernel whose counters rise with every reading.
#[derive(Clone)]
struct Kernel {
    counts: [u64; 4],
    step: u64,
}

impl Kernel {
    fn read(&mut self) -> Counters {
        for count in &mut self.counts {
            *count += self.step;
        }
        let [ctxt, processes, pgfault, pgfree] = self.counts.map(Reading::Value);
        Counters { ctxt, processes, pgfault, pgfree }
    }
}

const BUSY: Kernel = Kernel { counts: [9_000_000, 40_000, 7_000_000, 8_000_000], step: 40 };

fn of_one(kernel: &mut Kernel) -> Vec<Round> {
    let round = |_| Round { before: kernel.read(), between: kernel.read(), after: kernel.read() };
    (0..3).map(round).collect()
}

fn of_two(a: &mut Kernel, b: &mut Kernel) -> Vec<Round> {
    (0..3).map(|_| Round { before: a.read(), between: b.read(), after: a.read() }).collect()
}

pub(super) fn agent(n: u8) -> AgentId {
    AgentId([n; 32])
}

pub(super) fn announcement(incarnation: u64, change: impl Fn(&mut Evidence)) -> Announcement {
    let mut evidence = Evidence::empty(Os::Linux);
    evidence.boot_id = Reading::Value(Tag([1; 16]));
    evidence.hypervisor = Hypervisor::Vm;
    change(&mut evidence);
    Announcement {
        incarnation: Incarnation(incarnation),
        seq: 1,
        period_ms: 10_000,
        state: AgentState::Ready,
        label: Text::cut("den"),
        core: Core::new(&evidence, Reading::Value(1_790_000_000_000_000_000)),
        sampled_ms_ago: 0,
        machine: MachineClaim::new(MachineUid { created_ms: 1, random: [1; 16] }),
        locks: List::default(),
        width: 1,
        engine: EngineRun(1),
        bundle: [0; 32],
        inventory: [0; 32],
        addresses: List::default(),
    }
}

/// Agents of one boot, all of them in their first run.
pub(super) fn roster(agents: impl IntoIterator<Item = u8>) -> Roster {
    let mut roster = Roster::new(false);
    for n in agents {
        roster.connected(agent(n), true);
        roster.announced(agent(n), announcement(1, |_| {}), Duration::ZERO);
    }
    roster
}

fn proof() -> Findings {
    let facts = PairFacts { rendezvous: true, ..PairFacts::default() };
    Findings { tests: vec![Tested::new("rendezvous", Outcome::Passed, "")], facts }
}

#[test]
fn one_kernel_passes_the_sandwich_with_every_reading_in_order() {
    let (tested, test) = sandwich(&of_one(&mut BUSY.clone()));
    assert_eq!((tested.outcome, test), (Outcome::Passed, Some(Test::Pass)), "{}", tested.detail);
    assert_eq!(tested.in_order, Some([12, 12]));
}

#[test]
fn snapshot_clones_claim_one_boot_and_are_told_apart_with_a_warning() {
    // One snapshot resumed twice: equal at first, then each lives its own life.
    let (mut a, mut b) = (BUSY, BUSY);
    b.counts = b.counts.map(|count| count + 5_000);
    let (tested, test) = sandwich(&of_two(&mut a, &mut b));
    assert_eq!((tested.outcome, test), (Outcome::Failed, Some(Test::Fail)), "{}", tested.detail);

    let mut roster = roster([1, 2]);
    let view = roster.view();
    assert_eq!(view.fusion.as_ref().unwrap().relation(agent(1), agent(2)).unwrap().kind, Kind::SameKernel);
    let mut live = LiveTests::default();
    let trial = live.start(view).remove(0);
    let facts = PairFacts { sandwich: test, ..PairFacts::default() };
    assert!(live.finished(view, &trial, Findings { tests: vec![tested], facts }));
    roster.set_facts(live.facts());
    let fusion = roster.view().fusion.as_ref().unwrap();
    assert_ne!(fusion.place(agent(1)).unwrap().kernel, fusion.place(agent(2)).unwrap().kernel);
    assert!(fusion.warnings().iter().any(|warning| warning.code == Code::SnapshotCloneOrSpoof));
    assert!(live.is_idle(roster.view()), "what is decided is not asked again");
}

#[test]
fn one_snapshot_resumed_twice_is_two_kernels_by_its_counters_or_its_clock_and_no_id_says_so() {
    const LAG_NS: i64 = 3_000_000_000;
    // Everything that a snapshot holds is equal: ids, boot epoch, processor, hypervisor.
    let resumed = |roster: &mut Roster, n: u8| {
        let announced = announcement(1, |evidence| {
            evidence.machine_id = Reading::Value(Tag([2; 16]));
            evidence.product_uuid = Reading::Value(Tag([3; 16]));
        });
        let evidence = Evidence::from_core(&announced.core);
        roster.connected(agent(n), true);
        roster.announced(agent(n), announced, Duration::ZERO);
        let denied = Text::default();
        let description = Description { evidence, former: None, inventory: inventory(), denied };
        roster.described(agent(n), ([0; 32], [0; 32]), description);
    };
    let (mut a, mut b) = (BUSY, BUSY);
    b.counts = b.counts.map(|count| count + 70_000);
    let exchange = |ahead_ns| Exchange {
        asked_ns: 0,
        received_ns: 100_000 + ahead_ns,
        sent_ns: 150_000 + ahead_ns,
        answered_ns: 250_000,
    };
    let run = || [vec![exchange(0)], vec![exchange(-LAG_NS)]];
    let (counted, by_counters) = sandwich(&of_two(&mut a, &mut b));
    let (timed, by_clock) = clocks(&[run(), run()]);
    assert_eq!((counted.outcome, timed.outcome), (Outcome::Failed, Outcome::Failed));
    for facts in [
        PairFacts { sandwich: by_counters, ..PairFacts::default() },
        PairFacts { clock: by_clock, ..PairFacts::default() },
    ] {
        let mut roster = Roster::new(false);
        resumed(&mut roster, 1);
        resumed(&mut roster, 2);
        let kernels = |roster: &mut Roster| {
            let fusion = roster.view().fusion.as_ref().unwrap();
            [1, 2].map(|n| fusion.place(agent(n)).unwrap().kernel)
        };
        let [one, other] = kernels(&mut roster);
        assert_eq!(one, other, "every id says so");
        let mut live = LiveTests::default();
        let trial = live.start(roster.view()).remove(0);
        assert!(live.finished(roster.view(), &trial, Findings { tests: Vec::new(), facts }));
        roster.set_facts(live.facts());
        let [one, other] = kernels(&mut roster);
        assert_ne!(one, other, "{facts:?}");
        let view = roster.view();
        let fusion = view.fusion.as_ref().unwrap();
        let told: Vec<Code> = fusion.warnings().iter().map(|warning| warning.code).collect();
        assert!(
            told.contains(&Code::SnapshotCloneOrSpoof) && told.contains(&Code::DuplicateVmUuid),
            "{told:?}"
        );
        assert!(fusion.together(agent(1), agent(2)), "they may be copies on one host, so they take turns");
    }
}

#[test]
fn counters_that_are_hidden_fast_or_backwards_decide_nothing() {
    let outcome = |rounds: &[Round]| sandwich(rounds).0.outcome;
    let hidden = |mut rounds: Vec<Round>, last: bool| {
        for round in &mut rounds {
            round.between.ctxt = Reading::Virtual(1);
            round.between.processes = Reading::Denied;
            if last {
                round.before.pgfree = Reading::Absent;
            }
        }
        rounds
    };
    // lxcfs hides /proc/stat and not /proc/vmstat: two counters are enough, one is not.
    assert_eq!(outcome(&hidden(of_one(&mut BUSY.clone()), false)), Outcome::Passed);
    assert_eq!(outcome(&hidden(of_one(&mut BUSY.clone()), true)), Outcome::Undecided);
    assert_eq!(outcome(&of_one(&mut Kernel { step: 500, ..BUSY })), Outcome::Undecided);
    assert_eq!(outcome(&of_one(&mut Kernel { counts: [0; 4], step: 0 })), Outcome::Passed);
    let mut backwards = of_one(&mut BUSY.clone());
    let round = &mut backwards[1];
    std::mem::swap(&mut round.before, &mut round.after);
    assert_eq!(outcome(&backwards), Outcome::Undecided);
    assert_eq!(outcome(&[]), Outcome::Undecided);
}

#[test]
fn another_kernel_is_seen_even_through_a_wide_window() {
    let mut young = Kernel { counts: [10; 4], step: 1 };
    let (tested, test) = sandwich(&of_two(&mut Kernel { step: 500, ..BUSY }, &mut young));
    assert_eq!((tested.outcome, test), (Outcome::Failed, Some(Test::Fail)), "{}", tested.detail);
}

#[test]
fn clocks_disprove_only_when_both_runs_do() {
    const MS: i64 = 1_000_000;
    let run = |ahead_ns: i64, there_ns: i64, back_ns: i64| {
        let exchange = |ahead_ns, slow| {
            let received_ns = 1_000 * MS + ahead_ns + there_ns * slow;
            Exchange {
                asked_ns: 1_000 * MS,
                received_ns,
                sent_ns: received_ns + MS,
                answered_ns: 1_000 * MS + there_ns * slow + MS + back_ns * slow,
            }
        };
        [vec![exchange(0, 3), exchange(0, 1)], vec![exchange(ahead_ns, 1), exchange(ahead_ns, 4)]]
    };
    let outcome = |runs: &[_]| clocks(runs).0.outcome;
    let apart = run(50 * MS, MS / 10, MS / 10);
    assert_eq!(outcome(&[apart.clone(), apart.clone()]), Outcome::Failed);
    let (tested, clock) = clocks(&[apart.clone(), apart.clone()]);
    assert_eq!(clock, Some(ClockOffset { offset_ns: -50 * MS, rtt_ns: 400_000 }), "{}", tested.detail);
    // A step of one clock between two runs, and a slow way back, are no other clock.
    assert_eq!(outcome(&[apart, run(0, MS / 10, MS / 10)]), Outcome::Undecided);
    assert_eq!(outcome(&[run(0, 0, 80 * MS), run(0, 0, 80 * MS)]), Outcome::Undecided);
    assert_eq!(clocks(&[[vec![], vec![]]]).1, None);
    let stepped = Exchange { asked_ns: 10, received_ns: 0, sent_ns: i64::MAX, answered_ns: 0 };
    assert_eq!(outcome(&[[vec![stepped], vec![stepped]]]), Outcome::Undecided);
}

#[test]
fn a_pair_is_tested_once_for_two_runs_and_again_after_a_restart() {
    let mut roster = roster([1, 2]);
    let mut live = LiveTests::default();
    let trials = live.start(roster.view());
    assert_eq!(trials.len(), 1);
    assert!(!trials[0].thorough, "nothing contradicts itself");
    assert!(live.start(roster.view()).is_empty() && !live.is_idle(roster.view()));
    let undecided = Findings::default();
    assert!(live.finished(roster.view(), &trials[0], undecided));
    roster.set_facts(live.facts());
    assert!(live.is_idle(roster.view()), "undecided is not asked again");

    assert!(live.finished(roster.view(), &trials[0], proof()));
    assert!(!live.saw(agent(2), Incarnation(1)));
    assert!(live.facts().contains_key(&(agent(1), agent(2))));
    assert!(live.saw(agent(2), Incarnation(7)), "what was proved of the last run is dropped");
    assert!(live.facts().is_empty());
    roster.announced(agent(2), announcement(7, |_| {}), Duration::from_secs(1));
    assert!(!live.finished(roster.view(), &trials[0], proof()), "an answer of the last run comes late");
    assert!(live.facts().is_empty());
    assert_eq!(live.start(roster.view())[0].incarnations, [Incarnation(1), Incarnation(7)]);
}

#[test]
fn a_proof_survives_a_later_trial_that_cannot_decide() {
    let mut roster = roster([1, 2]);
    let mut live = LiveTests::default();
    let trial = live.start(roster.view()).remove(0);
    live.finished(roster.view(), &trial, proof());
    live.finished(roster.view(), &trial, Findings::default());
    assert!(live.facts()[&(agent(1), agent(2))].rendezvous);
    assert!(live.forget(agent(1)) && live.facts().is_empty());
}

#[test]
fn a_crowd_is_tested_a_few_at_a_time_and_each_agent_once() {
    let mut roster = roster(1..=40);
    let mut live = LiveTests::default();
    let mut ran = Vec::new();
    loop {
        let trials = live.start(roster.view());
        if trials.is_empty() {
            break;
        }
        assert!(trials.len() <= AT_ONCE);
        for trial in trials {
            live.finished(roster.view(), &trial, proof());
            ran.push(trial.agents);
        }
        roster.set_facts(live.facts());
    }
    assert_eq!(ran.len(), 39, "one trial for each agent but the first: {ran:?}");
}

#[test]
fn a_cloud_s_machine_whose_traffic_stays_within_another_s_is_not_known_to_be_apart() {
    let mut roster = Roster::new(false);
    for n in [1, 2] {
        let mut announced = announcement(1, |evidence| evidence.boot_id = Reading::Value(Tag([n; 16])));
        announced.core.epoch_ns = Reading::Absent;
        let mut evidence = Evidence::from_core(&announced.core);
        evidence.hypervisor_class = HypervisorClass::Cloud;
        roster.connected(agent(n), true);
        roster.announced(agent(n), announced, Duration::ZERO);
        let description =
            Description { evidence, former: None, inventory: inventory(), denied: Text::default() };
        roster.described(agent(n), ([0; 32], [0; 32]), description);
    }
    let kind = |roster: &mut Roster| {
        roster.view().fusion.as_ref().unwrap().relation(agent(1), agent(2)).unwrap().kind
    };
    assert_eq!(kind(&mut roster), Kind::Distinct);
    let mut live = LiveTests::default();
    assert_eq!(live.inquire(roster.view(), Duration::ZERO).len(), 2);
    assert!(!live.has_inquired(roster.view()));
    assert!(live.told(agent(2), Incarnation(1), Some(&[agent(1)])), "one of the two is enough");
    live.told(agent(1), Incarnation(1), None);
    assert!(live.has_inquired(roster.view()));
    roster.set_facts(live.facts());
    assert_eq!(kind(&mut roster), Kind::UnknownExclude);
    let why = roster.view().fusion.as_ref().unwrap().why(agent(1), agent(2)).unwrap();
    let reasons: Vec<String> = why.reasons.iter().map(ToString::to_string).collect();
    assert!(reasons.iter().any(|reason| reason.contains("local interface")), "{reasons:?}");
    assert!(live.forget(agent(1)) && live.facts().is_empty());
}

fn inventory() -> Inventory {
    Inventory {
        engine: EngineState::Up,
        version: Text::default(),
        models: List::default(),
        cut: false,
        port: 0,
        permit: Permit::default(),
    }
}

#[test]
fn a_contradiction_is_tested_thoroughly_and_before_what_is_only_confirmed() {
    let mut roster = roster([1, 2, 3]);
    roster.connected(agent(4), true);
    // The same epoch on another boot id.
    let other = announcement(1, |evidence| evidence.boot_id = Reading::Value(Tag([9; 16])));
    roster.announced(agent(4), other, Duration::ZERO);
    let trials = LiveTests::default().start(roster.view());
    assert!(trials[0].thorough && trials[0].agents[1] == agent(4), "{trials:?}");
    assert!(trials.iter().any(|trial| !trial.thorough));
}

#[test]
fn declared_unconnected_and_foreign_agents_are_never_tested() {
    let mut roster = roster([1, 2]);
    roster.announced(agent(2), announcement(1, |evidence| evidence.declared = true), Duration::ZERO);
    let view = roster.view();
    assert!(LiveTests::default().is_idle(view));
    let why = Trial::of(view, agent(1), agent(2), true).unwrap_err();
    assert!(why.contains("declared"), "{why}");
    let notes = notes(view, &LiveTests::default(), &view.installs[0], &view.installs[1]);
    assert!(notes[0].contains("not tested live: the hardware of den is declared"), "{notes:?}");
    roster.announced(agent(4), announcement(1, |evidence| evidence.os = Os::Macos), Duration::ZERO);
    assert!(Trial::of(roster.view(), agent(1), agent(4), true).is_err());
    assert!(Trial::of(roster.view(), agent(1), agent(1), true).is_err());
    assert!(Trial::of(roster.view(), agent(1), agent(3), true).is_err());
}

#[test]
fn an_agent_is_named_by_label_or_by_the_beginning_of_its_id() {
    let mut roster = roster([0x11, 0x12, 0x21]);
    let mut far = announcement(1, |_| {});
    far.label = Text::cut("far");
    roster.announced(agent(0x21), far, Duration::ZERO);
    let view = roster.view();
    assert_eq!(named(view, "far"), Ok(agent(0x21)));
    assert_eq!(named(view, "a-2121"), Ok(agent(0x21)));
    assert_eq!(named(view, "12"), Ok(agent(0x12)));
    for (name, says) in
        [("1", "a-11111111"), ("den", "a-12121212"), ("near", "far (a-21212121)"), ("", "no agent")]
    {
        let why = named(view, name).unwrap_err();
        assert!(why.contains(says), "{name}: {why}");
    }
}

#[test]
fn a_judgement_shows_its_numbers() {
    let (tested, _) = sandwich(&of_one(&mut BUSY.clone()));
    assert!(tested.to_string().starts_with("counter sandwich passed (12/12 in order"), "{tested}");
}
