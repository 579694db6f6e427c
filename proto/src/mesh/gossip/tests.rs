use super::*;
use crate::{
    bounded::Text,
    evidence::{Core, Hypervisor, Os, Reading, SaltName},
    id::{EngineRun, Incarnation},
    uid::{MachineClaim, MachineUid},
};

pub(in crate::mesh) fn envelope(key: &Keypair, announcement: &Announcement) -> Vec<u8> {
    sign(key, announcement).unwrap()
}

pub(in crate::mesh) fn announcement(incarnation: u64, seq: u64, state: AgentState) -> Announcement {
    Announcement {
        incarnation: Incarnation(incarnation),
        seq,
        period_ms: 10_000,
        state,
        label: Text::cut("a host"),
        core: Core {
            os: Os::Linux,
            hypervisor: Hypervisor::None,
            declared: false,
            time_namespace: false,
            boot_id: Reading::Absent,
            epoch_ns: Reading::Absent,
            machine_id: Reading::Absent,
            product_uuid: Reading::Absent,
            host_cpus: 2,
            memory: 1 << 30,
            gpus: List::default(),
            salt: SaltName::default(),
        },
        sampled_ms_ago: 0,
        machine: MachineClaim::new(MachineUid { created_ms: 1, random: [1; 16] }),
        locks: List::default(),
        width: 1,
        engine: EngineRun(1),
        bundle: [1; 32],
        inventory: [2; 32],
        addresses: List::default(),
    }
}

fn by(source: AgentId) -> Way {
    Way { source: Some(source), hand: None }
}

struct Scene {
    ledger: Ledger,
    key: Keypair,
    agent: AgentId,
    now: Instant,
    seq: u64,
}

#[expect(clippy::disallowed_methods, reason = "an Instant has no other source; only differences matter")]
fn scene() -> Scene {
    let key = Keypair::generate_ed25519();
    let agent = agent_of_key(key.public()).unwrap();
    let now = Instant::now();
    Scene { ledger: Ledger::new(AgentId([0; 32]), BTreeMap::new(), now), key, agent, now, seq: 0 }
}

impl Scene {
    fn hear(&mut self, incarnation: u64, seq: u64, state: AgentState) -> Merged {
        let envelope = sign(&self.key, &announcement(incarnation, seq, state)).unwrap();
        self.ledger.merge(&envelope, Way::default(), self.now)
    }

    fn page(&self) -> usize {
        let Answer::Roster { signed, more: false } = self.ledger.page(0, &Known::nothing()) else { panic!() };
        signed.len()
    }
}

#[test]
fn only_a_higher_number_is_news_whatever_the_incarnation() {
    let mut scene = scene();
    assert!(matches!(scene.hear(1, 5, AgentState::Ready), Merged::News(..)));
    for (incarnation, seq) in [(1, 5), (1, 4), (2, 5), (2, 4)] {
        assert!(matches!(scene.hear(incarnation, seq, AgentState::Ready), Merged::Stale));
    }
    assert!(matches!(scene.hear(1, 6, AgentState::Ready), Merged::News(..)));
    assert!(matches!(scene.hear(2, 7, AgentState::Ready), Merged::News(..)));
}

#[test]
fn an_envelope_that_was_touched_anywhere_is_not_believed() {
    let mut scene = scene();
    let envelope = sign(&scene.key, &announcement(1, 1, AgentState::Ready)).unwrap();
    for place in 0..envelope.len() {
        let mut touched = envelope.clone();
        touched[place] ^= 1;
        let merged = scene.ledger.merge(&touched, Way::default(), scene.now);
        assert!(matches!(merged, Merged::Forged(_)), "byte {place}: {merged:?}");
    }
    assert!(matches!(scene.ledger.merge(&envelope, Way::default(), scene.now), Merged::News(..)));
}

#[test]
fn an_envelope_signed_by_another_than_its_source_is_forged() {
    let mut scene = scene();
    let envelope = sign(&scene.key, &announcement(1, 1, AgentState::Ready)).unwrap();
    let merged = scene.ledger.merge(&envelope, by(AgentId([9; 32])), scene.now);
    assert!(matches!(merged, Merged::Forged(_)));
    assert!(matches!(scene.ledger.merge(&envelope, by(scene.agent), scene.now), Merged::News(..)));
}

#[test]
fn a_signature_for_another_purpose_is_none() {
    let mut scene = scene();
    let payload = codec::encode(&announcement(1, 1, AgentState::Ready)).unwrap();
    for (domain, kind) in [("another", PAYLOAD_TYPE), (DOMAIN, b"/another".as_slice())] {
        let envelope =
            SignedEnvelope::new(&scene.key, domain.to_owned(), kind.to_vec(), payload.clone()).unwrap();
        let merged = scene.ledger.merge(&envelope.into_protobuf_encoding(), Way::default(), scene.now);
        assert!(matches!(merged, Merged::Forged(_)));
    }
}

#[test]
fn who_has_left_does_not_come_back_by_old_news() {
    let mut scene = scene();
    scene.hear(1, 1, AgentState::Ready);
    let old = sign(&scene.key, &announcement(1, 2, AgentState::Ready)).unwrap();
    assert!(matches!(scene.hear(1, 3, AgentState::Leaving), Merged::News(..)));
    assert_eq!((scene.page(), scene.ledger.present()), (0, 0));
    assert!(matches!(scene.ledger.merge(&old, Way::default(), scene.now), Merged::Stale));
    assert_eq!(scene.page(), 0);
}

#[test]
fn an_agent_is_gone_after_three_and_a_half_periods_of_silence() {
    let mut scene = scene();
    scene.hear(1, 1, AgentState::Ready);
    assert_eq!(scene.ledger.expire(scene.now + Duration::from_millis(34_999)), []);
    assert_eq!(scene.ledger.expire(scene.now + Duration::from_millis(35_000)), [scene.agent]);
    assert_eq!(scene.page(), 0);
    assert!(matches!(scene.hear(1, 1, AgentState::Ready), Merged::Stale));
    assert!(matches!(scene.hear(1, 2, AgentState::Ready), Merged::News(..)));
}

#[test]
fn a_source_that_talks_too_much_is_not_listened_to_for_a_while() {
    let mut scene = scene();
    let mut talk = |seq, now| {
        let envelope = sign(&scene.key, &announcement(1, seq, AgentState::Ready)).unwrap();
        matches!(scene.ledger.merge(&envelope, by(scene.agent), now), Merged::News(..))
    };
    let heard = (1..=40).filter(|seq| talk(*seq, scene.now)).count();
    assert!((20..=22).contains(&heard), "{heard}");
    assert!(talk(41, scene.now + Duration::from_secs(1)));
}

/// Ten messages a second, each news if it is listened to: how many are, and at which second the flood is one.
fn flood(scene: &mut Scene, way: Way, seconds: u32, from: Instant) -> (u32, Option<u32>) {
    let (mut heard, mut flood) = (0, None);
    for tenth in 0..seconds * 10 {
        scene.seq += 1;
        let envelope = sign(&scene.key, &announcement(1, scene.seq, AgentState::Ready)).unwrap();
        let at = from + Duration::from_millis(100) * tenth;
        match scene.ledger.merge(&envelope, way, at) {
            Merged::News(..) => heard += 1,
            Merged::Flood(agent) if agent == scene.agent => flood = flood.or(Some(tenth / 10)),
            Merged::Flood(_) | Merged::Stale | Merged::Full | Merged::Forged(_) => {}
        }
    }
    (heard, flood)
}

#[test]
fn who_floods_for_a_minute_is_to_be_shut_out_and_nobody_is_listened_to_who_brings_his_words() {
    let mut scene = scene();
    let (start, agent) = (scene.now, scene.agent);
    let itself = Way { source: Some(agent), hand: Some(agent) };
    // Four a second are heard, and for one second less than a minute after its burst that goes on.
    let (heard, banned) = flood(&mut scene, itself, 59, start);
    assert!(heard > 200 && banned.is_none(), "{heard} {banned:?}");
    let paused = start + Duration::from_secs(120);
    let (_, banned) = flood(&mut scene, itself, 70, paused);
    // The burst lasts three seconds.
    let after = banned.filter(|second| (60..=64).contains(second)).expect("a flood");
    let banned = paused + Duration::from_secs(u64::from(after) + 7);
    for way in [itself, by(agent)] {
        assert_eq!(flood(&mut scene, way, 5, banned), (0, None));
    }
    let over = paused + Duration::from_secs(u64::from(after) + 1) + BAN;
    assert!(flood(&mut scene, itself, 1, over).0 > 0, "and then it begins anew");
}

#[test]
fn who_is_relayed_a_thousand_times_is_neither_silenced_nor_shut_out() {
    let mut scene = scene();
    let (start, agent) = (scene.now, scene.agent);
    let relay = Way { source: Some(agent), hand: Some(AgentId([9; 32])) };
    let (heard, banned) = flood(&mut scene, relay, 80, start);
    assert!(heard > 200 && banned.is_none(), "{heard} {banned:?}");
    let itself = Way { source: Some(agent), hand: Some(agent) };
    let (heard, banned) = flood(&mut scene, itself, 1, start + Duration::from_secs(79));
    assert_eq!((heard, banned), (10, None), "what it says itself is another matter");
}

#[test]
fn one_agent_more_than_fit_is_ignored_until_one_is_gone() {
    let mut scene = scene();
    let newcomer = |ledger: &mut Ledger, now| {
        let key = Keypair::generate_ed25519();
        ledger.merge(&sign(&key, &announcement(1, 1, AgentState::Ready)).unwrap(), Way::default(), now)
    };
    assert_eq!(scene.ledger.room, MEMBERS);
    scene.ledger.room = 3;
    for _ in 0..3 {
        assert!(matches!(newcomer(&mut scene.ledger, scene.now), Merged::News(..)));
    }
    assert!(matches!(newcomer(&mut scene.ledger, scene.now), Merged::Full));
    let later = scene.now + Duration::from_secs(60);
    assert_eq!(scene.ledger.expire(later).len(), 3);
    assert!(matches!(newcomer(&mut scene.ledger, later), Merged::News(..)));
}

#[test]
fn the_pages_of_a_roster_name_everybody_once_and_this_node_too() {
    let mut scene = scene();
    let mine = announcement(1, 1, AgentState::Ready);
    let own = Keypair::generate_ed25519();
    scene.ledger = Ledger::new(agent_of_key(own.public()).unwrap(), BTreeMap::new(), scene.now);
    scene.ledger.say(&mine, sign(&own, &mine).unwrap(), scene.now);
    let mut expected = std::collections::BTreeSet::from([sign(&own, &mine).unwrap()]);
    for _ in 0..PAGE {
        let key = Keypair::generate_ed25519();
        let envelope = sign(&key, &announcement(1, 1, AgentState::Ready)).unwrap();
        scene.ledger.merge(&envelope, Way::default(), scene.now);
        expected.insert(envelope);
    }
    let nothing = Known::nothing();
    let Answer::Roster { signed: first, more: true } = scene.ledger.page(0, &nothing) else { panic!() };
    let Answer::Roster { signed: rest, more: false } = scene.ledger.page(512, &nothing) else { panic!() };
    assert_eq!((first.len(), rest.len()), (512, 1));
    let found = first.iter().chain(rest.iter()).map(|blob| blob.to_vec()).collect();
    assert_eq!(expected, found);
}

#[test]
fn a_page_leaves_out_what_its_asker_knows_and_has_what_is_newer() {
    let mut scene = scene();
    let keys: Vec<Keypair> = (0..100).map(|_| Keypair::generate_ed25519()).collect();
    let say = |ledger: &mut Ledger, key: &Keypair, seq, now| {
        let envelope = sign(key, &announcement(1, seq, AgentState::Ready)).unwrap();
        assert!(matches!(ledger.merge(&envelope, Way::default(), now), Merged::News(..)));
        envelope
    };
    let mut asker = Ledger::new(AgentId([1; 32]), BTreeMap::new(), scene.now);
    for key in &keys {
        say(&mut scene.ledger, key, 5, scene.now);
        say(&mut asker, key, 5, scene.now);
    }
    let all = |ledger: &Ledger, known: &Known| {
        let Answer::Roster { signed, more: false } = ledger.page(0, known) else { panic!() };
        signed.iter().map(|blob| blob.to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(all(&scene.ledger, &asker.known(1)), Vec::<Vec<u8>>::new());
    let newer = say(&mut scene.ledger, &keys[7], 6, scene.now);
    let newcomer = say(&mut scene.ledger, &scene.key, 1, scene.now);
    // One in 300 looks known under one salt, and does not under another.
    let mut found: Vec<_> = (1..4).flat_map(|salt| all(&scene.ledger, &asker.known(salt))).collect();
    found.sort();
    found.dedup();
    let mut expected = vec![newer, newcomer];
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(all(&scene.ledger, &Known::nothing()).len(), 101);
}

#[test]
fn who_has_only_a_number_of_an_agent_from_before_a_restart_still_asks_for_its_announcement() {
    let mut scene = scene();
    scene.hear(1, 7, AgentState::Ready);
    let asker = Ledger::new(AgentId([1; 32]), BTreeMap::from([(scene.agent, 7)]), scene.now);
    let Answer::Roster { signed, .. } = scene.ledger.page(0, &asker.known(1)) else { panic!() };
    assert_eq!(signed.len(), 1);
}

#[test]
fn what_was_said_before_a_restart_is_news_only_from_its_author_himself() {
    let mut scene = scene();
    let old = sign(&scene.key, &announcement(1, 5, AgentState::Ready)).unwrap();
    scene.hear(1, 7, AgentState::Ready);
    let marks = scene.ledger.marks().unwrap();
    assert_eq!(marks, [(scene.agent, Mark { seq: 7, heard: true })].into());
    assert_eq!(scene.ledger.marks(), None, "nothing new to save");
    let stored: BTreeMap<_, _> = marks.into_iter().map(|(agent, mark)| (agent, mark.seq)).collect();
    let restarted = || Ledger::new(AgentId([0; 32]), stored.clone(), scene.now);
    let (other, author) = (Some(AgentId([9; 32])), Some(scene.agent));
    for way in [
        Way::default(),
        Way { source: author, hand: None },
        Way { source: author, hand: other },
        Way { source: None, hand: other },
    ] {
        assert!(matches!(restarted().merge(&old, way, scene.now), Merged::Stale), "{way:?}");
    }
    let mut ledger = restarted();
    assert_eq!(ledger.present(), 0, "a mark makes nobody present");
    let by_hand = Way { source: None, hand: author };
    assert!(matches!(ledger.merge(&old, by_hand, scene.now), Merged::News(..)));
    // From then on its numbers rise again.
    let older = sign(&scene.key, &announcement(1, 4, AgentState::Ready)).unwrap();
    assert!(matches!(ledger.merge(&older, by_hand, scene.now), Merged::Stale));
    assert_eq!(ledger.marks(), Some([(scene.agent, Mark { seq: 5, heard: true })].into()));
}

#[test]
fn marks_of_those_who_are_gone_make_room_and_the_own_is_none() {
    let mut scene = scene();
    let id = |number: u16| {
        let mut id = [7; 32];
        id[..2].copy_from_slice(&number.to_be_bytes());
        AgentId(id)
    };
    let me = AgentId([0; 32]);
    let marks = (0..u16::try_from(MEMBERS).unwrap()).map(|number| (id(number), 1)).chain([(me, 9)]);
    scene.ledger = Ledger::new(me, marks.collect(), scene.now);
    assert_eq!((scene.ledger.agents.len(), scene.ledger.agents.contains_key(&me)), (MEMBERS, false));
    assert!(matches!(scene.hear(1, 1, AgentState::Ready), Merged::News(..)));
    assert_eq!(scene.ledger.marks().unwrap().len(), MEMBERS);
}
