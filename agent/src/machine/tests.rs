//! Claims about which machine this is, and about agents that come to one name.

use proptest::{
    collection::vec,
    prelude::{ProptestConfig, any},
    proptest,
};
use tropa_proto::{
    bounded::{List, Text},
    evidence::{Evidence, Os, Reading, Tag},
    id::EngineRun,
};

use super::*;
use crate::state::write_new;

fn uid(n: u8) -> MachineUid {
    MachineUid { created_ms: u64::from(n), random: [n; 16] }
}

fn agent(n: u8) -> AgentId {
    AgentId([n; 32])
}

fn fresh(n: u8) -> Record {
    Record::new(uid(n), Salt([n; 32]))
}

fn facts(board: Option<&str>, system: Option<&str>, boot: &str) -> Facts {
    let reading =
        |value: Option<&str>| value.map_or(Reading::Absent, |value| Reading::Value(value.to_owned()));
    Facts {
        product_uuid: reading(board),
        machine_id: reading(system),
        boot_id: reading(Some(boot)),
        ..Facts::empty(Os::Linux)
    }
}

fn here<'a>(keys: &'a [AgentId], facts: &'a Facts) -> Here<'a> {
    Here { keys, facts, durable: true, since_1970: Duration::from_millis(1_790_000_000_000) }
}

/// What an agent with this number on a machine with these facts knows at its first start.
fn first(n: u8, facts: &Facts) -> Known {
    Known::new(None, Vec::new(), fresh(n), &here(&[agent(n)], facts))
}

fn again(known: &Known, key: u8, facts: &Facts) -> Known {
    Known::new(Some(known.record().clone()), Vec::new(), fresh(200), &here(&[agent(key)], facts))
}

fn core(boot: u8) -> Core {
    let mut evidence = Evidence::empty(Os::Linux);
    evidence.boot_id = Reading::Value(Tag([boot; 16]));
    Core::new(&evidence, Reading::Absent)
}

fn said(known: &Known, boot: u8, incarnation: u64, seq: u64) -> Announcement {
    Announcement {
        incarnation: Incarnation(incarnation),
        seq,
        period_ms: 10_000,
        state: AgentState::Ready,
        label: Text::cut("den"),
        core: core(boot),
        sampled_ms_ago: 0,
        machine: known.claim(),
        locks: List::default(),
        width: 1,
        engine: EngineRun(1),
        bundle: [0; 32],
        inventory: [0; 32],
        addresses: List::default(),
    }
}

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_reboot_keeps_the_name_and_so_do_a_new_key_and_a_new_system() {
    let known = first(1, &facts(Some("u1"), Some("i1"), "b1"));
    assert_eq!((known.claim().uid, known.claim().hardware, known.claim().same_boot), (uid(1), 1, true));
    for (key, now) in [(1, facts(Some("u1"), Some("i1"), "b2")), (2, facts(Some("u1"), Some("i2"), "b2"))] {
        let known = again(&known, key, &now);
        let claim = known.claim();
        assert_eq!((claim.uid, claim.change, claim.same_boot), (uid(1), Change::None, false));
        assert!(again(&known, key, &now).claim().same_boot);
    }
}

#[test]
fn a_key_on_a_volume_is_enough_where_nothing_else_can_be_read() {
    let nothing = facts(None, None, "b1");
    let known = first(1, &nothing);
    assert_eq!(again(&known, 1, &facts(None, None, "b2")).claim().uid, uid(1));
    assert_eq!(again(&known, 2, &facts(None, None, "b2")).claim().uid, uid(200));
}

#[test]
fn state_that_came_with_a_disk_is_another_machine_and_says_so_until_the_original_is_heard() {
    let original = first(1, &facts(Some("u1"), Some("i1"), "b1"));
    // The agent has taken a new key; the old one is what the record knows.
    let (keys, other) = ([agent(2), agent(1)], facts(Some("u2"), Some("i1"), "b2"));
    let mut copy = Known::new(Some(original.record().clone()), Vec::new(), fresh(9), &here(&keys, &other));
    assert_eq!((copy.claim().uid, copy.claim().change), (uid(9), Change::Moved));
    let mine = core(2);
    let mine = (agent(2), Incarnation(5), &mine);
    assert_eq!(copy.heard(mine, agent(1), &said(&original, 1, 1, 1), at(0)), Heard::Nothing);
    assert_eq!(copy.heard(mine, agent(1), &said(&original, 1, 1, 2), at(10)), Heard::Changed);
    assert_eq!((copy.claim().before, copy.claim().change), (Before::CopyOf(uid(1)), Change::None));
}

#[test]
fn a_new_board_with_a_known_gpu_is_the_same_machine_with_new_parts() {
    let gpu = |uuid: &str, board: &str| {
        let mut facts = facts(Some(board), Some("i1"), "b1");
        facts.gpus = List::cut(vec![tropa_proto::evidence::Gpu {
            vendor: Text::default(),
            name: Text::default(),
            uuid: Some(uuid.to_owned()),
            kind: tropa_proto::evidence::GpuKind::Full,
            pci: None,
            memory: 0,
            uma: false,
        }])
        .0;
        facts
    };
    let known = first(1, &gpu("g1", "u1"));
    let swapped = again(&known, 1, &gpu("g2", "u1"));
    assert_eq!((swapped.claim().uid, swapped.claim().change), (uid(1), Change::HardwareChanged));
    // Known parts from then on.
    assert_eq!(again(&swapped, 1, &gpu("g2", "u1")).claim().change, Change::None);
    assert_eq!(again(&known, 1, &gpu("g1", "u2")).claim().change, Change::HardwareChanged);
}

#[test]
fn an_agent_without_a_record_takes_that_of_a_neighbour_whose_hardware_is_here() {
    let here_now = facts(Some("u1"), Some("i1"), "b1");
    let neighbour = first(3, &here_now);
    let elsewhere = first(1, &facts(Some("u7"), Some("i1"), "b1"));
    let records = vec![elsewhere.record().clone(), neighbour.record().clone()];
    let known = Known::new(None, records, fresh(9), &here(&[agent(9)], &here_now));
    assert_eq!(known.claim().uid, uid(3));
    let own = first(5, &here_now);
    let both = Known::new(
        Some(own.record().clone()),
        vec![neighbour.record().clone()],
        fresh(9),
        &here(&[agent(3)], &here_now),
    );
    assert_eq!((both.claim().uid, both.claim().before), (uid(3), Before::Alias(uid(5))));
}

#[test]
fn of_two_machines_with_one_name_the_one_with_less_right_gives_it_up_and_never_takes_it_again() {
    let nothing = facts(None, None, "b1");
    let mut original = first(1, &nothing);
    let mut copy = again(&original, 1, &facts(None, None, "b2"));
    let (one, two) = (core(1), core(2));
    let (ones, twos) = ((agent(1), Incarnation(9), &one), (agent(2), Incarnation(1), &two));
    for (seq, time) in [(1, 0), (2, 9)] {
        assert_eq!(
            copy.heard(twos, agent(1), &said(&original, 1, 9, seq), at(time)),
            Heard::Nothing,
            "too soon"
        );
    }
    // Said once and heard late is no sign of life.
    assert_eq!(copy.heard(twos, agent(1), &said(&original, 1, 9, 1), at(30)), Heard::Nothing);
    assert_eq!(copy.heard(twos, agent(1), &said(&original, 1, 9, 3), at(31)), Heard::Outclaimed);
    assert_eq!(original.heard(ones, agent(2), &said(&copy, 2, 1, 1), at(0)), Heard::Nothing);
    assert_eq!(original.heard(ones, agent(2), &said(&copy, 2, 1, 2), at(10)), Heard::Nothing, "keeps it");
    copy.give_up(uid(8));
    assert_eq!((copy.claim().uid, copy.claim().before), (uid(8), Before::CopyOf(uid(1))));
    // A neighbour of the copy that has not heard the original yet.
    let late = again(&original, 1, &facts(None, None, "b2"));
    assert_eq!(copy.heard(twos, agent(3), &said(&late, 2, 1, 1), at(40)), Heard::Nothing);
    assert_eq!(copy.claim().uid, uid(8));
}

#[test]
fn an_agent_of_the_boot_before_that_is_heard_late_takes_no_name_away() {
    let nothing = facts(None, None, "b1");
    let before = first(1, &nothing);
    let mut known = again(&before, 1, &facts(None, None, "b2"));
    let mine = core(2);
    let mine = (agent(1), Incarnation(9), &mine);
    // What it said last arrives in a burst, and then no more.
    for (seq, time) in [(7, 0), (8, 1)] {
        assert_eq!(known.heard(mine, agent(5), &said(&before, 1, 1, seq), at(time)), Heard::Nothing);
    }
    assert_eq!(known.claim().uid, uid(1));
}

#[test]
fn a_record_survives_its_file_and_a_damaged_one_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let known = first(1, &facts(Some("u1"), Some("i1"), "b1"));
    known.record().save(directory.path()).unwrap();
    assert_eq!(Record::load(directory.path()).unwrap().as_ref(), Some(known.record()));
    let text = std::fs::read_to_string(directory.path().join("machine")).unwrap();
    for raw in ["u1", "i1", "b1"] {
        assert!(!text.contains(&format!("\"{raw}\"")), "{text}");
    }
    for damaged in
        ["", "{}", &text[..text.len() / 2], &text.replacen("tropa.machine/1", "tropa.machine/9", 1)]
    {
        write_new(directory.path(), "machine", damaged.as_bytes()).unwrap();
        assert_eq!(Record::load(directory.path()).unwrap(), None, "{damaged}");
        assert_eq!(std::fs::read_to_string(directory.path().join("machine.damaged")).unwrap(), damaged);
        assert!(!directory.path().join("machine").exists());
    }
}

#[test]
fn a_record_forgets_what_it_saw_longest_ago_and_stays_below_the_bound_of_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut record = fresh(1);
    for n in 0..40_u64 {
        let mut facts = facts(Some(&format!("u{n}")), Some(&format!("i{n}")), &format!("b{n}"));
        let many =
            |kind: &str, count: u64| (0..count).map(|at| format!("{kind}{n}-{at}")).collect::<Vec<_>>();
        facts.ppin = Reading::Value(List::cut(many("p", 16)).0);
        facts.macs = Reading::Value(List::cut(many("m", 16)).0);
        facts.nvme = Reading::Value(List::cut(many("n", 32)).0);
        let seen = record.hashed(&[agent(u8::try_from(n).unwrap())], &facts);
        record.see(&seen, 1_790_000_000_000 + n);
        record.rename(uid(u8::try_from(n).unwrap() + 2));
        record.save(directory.path()).unwrap();
        let read = Record::load(directory.path()).unwrap().unwrap();
        assert_eq!(read, record);
        assert!(!read.anchors().boots.is_disjoint(&seen.boots));
        assert_eq!(seen.matches(&read.anchors(), false).outcome, Outcome::Rebind);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whoever hears whom, in whatever order and however often: when everybody has heard everybody's last words, all
    /// agents of a kernel have one name, the oldest that any of them had.
    #[test]
    fn agents_of_one_kernel_come_to_the_oldest_name_in_whatever_order_they_hear_each_other(
        boots in vec(1..=3_u8, 2..7),
        heard in vec((any::<proptest::sample::Index>(), any::<proptest::sample::Index>()), 0..40),
    ) {
        let mut agents: Vec<Known> = (10..).zip(&boots).map(|(n, _)| first(n, &facts(None, None, "b"))).collect();
        let mut seq = 0;
        let mut hear = |agents: &mut Vec<Known>, by: usize, of: usize| {
            seq += 1;
            let words = said(&agents[of], boots[of], 1, seq);
            let mine = core(boots[by]);
            let number = |at: usize| agent(u8::try_from(at).unwrap());
            agents[by].heard((number(by), Incarnation(1), &mine), number(of), &words, at(seq)) == Heard::Changed
        };
        for (by, of) in heard {
            let (by, of) = (by.index(boots.len()), of.index(boots.len()));
            if by != of {
                hear(&mut agents, by, of);
            }
        }
        // Who has another name says so to all, until nobody has.
        for round in 0.. {
            let mut changed = false;
            for by in 0..boots.len() {
                for of in (0..boots.len()).filter(|of| *of != by) {
                    changed |= hear(&mut agents, by, of);
                }
            }
            assert!(round < boots.len(), "they do not come to an end");
            if !changed {
                break;
            }
        }
        for (known, boot) in agents.iter().zip(&boots) {
            let oldest = (10..).zip(&boots).filter(|(_, of)| *of == boot).map(|(n, _)| uid(n)).min().unwrap();
            assert_eq!(known.claim().uid, oldest);
        }
    }
}
