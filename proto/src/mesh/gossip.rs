//! Signed announcements: who has said what last, and may be believed.
//!
//! An announcement travels as a libp2p signed envelope, by gossip and in roster answers alike, so that second-hand
//! news is as good as first-hand. The ledger keeps the latest of each agent and, for as long as there is room, the
//! highest sequence number ever seen, over restarts too (`marks.rs`), so that nothing old comes back
//! (`security.md` §5.2).

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::Bound,
    time::{Duration, Instant},
};

use libp2p::{
    core::SignedEnvelope,
    identity::{Keypair, SigningError},
};

use super::{marks::Mark, swarm::agent_of_key};
use crate::{
    bounded::{Blob, List},
    codec::{self, CodecError},
    id::AgentId,
    message::{AgentState, Announcement, Answer},
};

/// What is signed for; a signature for anything else is none for an announcement.
const DOMAIN: &str = "tropa-announcement-1";
const PAYLOAD_TYPE: &[u8] = b"/tropa/announcement/1";

/// Agents that a mesh may have (`security.md` §6).
pub const MEMBERS: usize = 1_024;

/// Entries of one page of a roster answer: the bound of its field.
const PAGE: usize = 512;

/// Half periods of silence after which an agent is gone: 3.5 periods (`reliability.md` §4).
const SILENCE: u32 = 7;

/// Messages of one source by gossip: 4 a second, in bursts of 20 (`security.md` §5.2).
const EVERY: Duration = Duration::from_millis(250);
const BURST: u32 = 20;

/// A source that says more than that for a minute on end is not listened to for ten (`security.md` §5.2).
const FLOOD: Duration = Duration::from_secs(60);
const BAN: Duration = Duration::from_secs(600);

/// What is ignored of a flood is a minute of it only while it does not pause: a second without being too frequent, four
/// times what one message costs, ends it.
const PAUSE: Duration = Duration::from_secs(1);

/// What became of an envelope.
#[derive(Debug)]
pub(super) enum Merged {
    /// It is the latest of its agent.
    News(AgentId, Box<Announcement>),
    /// It is known, older, too frequent, or of another version: no ill will.
    Stale,
    /// There is no room for another agent.
    Full,
    /// Nobody honest sends this; says why.
    Forged(&'static str),
}

/// The latest announcement of each agent.
#[derive(Debug)]
pub(super) struct Ledger {
    me: AgentId,
    own: Option<Vec<u8>>,
    agents: BTreeMap<AgentId, Entry>,
    /// How many agents fit, this one included.
    room: usize,
    /// Something was heard since the marks were last asked for.
    is_changed: bool,
}

/// How an envelope came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Way {
    /// Who is said to have written it, where that is known: gossip names its source.
    pub(super) source: Option<AgentId>,
    /// Who handed it over on a connection, which its key has opened just now: nobody replays its own words.
    pub(super) hand: Option<AgentId>,
}

#[derive(Debug)]
struct Entry {
    /// The highest number seen. It rises over restarts too, so it alone tells new from old.
    seq: u64,
    /// Nothing was heard in this life; the number is of an earlier one.
    stored: bool,
    /// What the agent said, while it counts as present.
    present: Option<Present>,
    /// When the messages so far are paid for, at one per [`EVERY`].
    paid: Instant,
    flood: Option<Flood>,
    banned_until: Option<Instant>,
}

/// A source is too frequent: since when, and when it last was.
#[derive(Clone, Copy, Debug)]
struct Flood {
    since: Instant,
    last: Instant,
}

#[derive(Debug)]
struct Present {
    envelope: Vec<u8>,
    addresses: Vec<SocketAddr>,
    gone_at: Instant,
}

impl Ledger {
    /// Starts with nobody present, and with the marks of an earlier life.
    pub(super) fn new(me: AgentId, marks: BTreeMap<AgentId, u64>, now: Instant) -> Self {
        let entry = |seq| Entry { seq, stored: true, ..Entry::new(now) };
        // Its own numbers are kept elsewhere, and another holder of its key is to be heard.
        let others = marks.into_iter().filter(|(agent, _)| *agent != me).take(MEMBERS);
        let agents = others.map(|(agent, seq)| (agent, entry(seq))).collect();
        Self { me, own: None, agents, room: MEMBERS, is_changed: false }
    }

    /// Gives how far the numbers of all others have gone, if anything was heard since this was last asked.
    pub(super) fn marks(&mut self) -> Option<BTreeMap<AgentId, Mark>> {
        let others = self.agents.iter().filter(|(agent, _)| **agent != self.me);
        let mark = |entry: &Entry| Mark { seq: entry.seq, heard: !entry.stored };
        std::mem::take(&mut self.is_changed)
            .then(|| others.map(|(agent, entry)| (*agent, mark(entry))).collect())
    }

    /// Takes what this node says of itself; a leaving node is no longer named to others.
    pub(super) fn say(&mut self, announcement: &Announcement, envelope: Vec<u8>, now: Instant) {
        self.own = (announcement.state != AgentState::Leaving).then_some(envelope);
        let entry = self.agents.entry(self.me).or_insert_with(|| Entry::new(now));
        entry.seq = entry.seq.max(announcement.seq);
    }

    /// Weighs an envelope.
    ///
    /// News from the own key means that another process holds this key. What an agent hands over itself is news even
    /// under a number below one of an earlier life: it was set back to an older disk.
    pub(super) fn merge(&mut self, envelope: &[u8], Way { source, hand }: Way, now: Instant) -> Merged {
        if source.is_some_and(|source| self.too_often(&source, now)) || self.has(envelope) {
            return Merged::Stale;
        }
        let Ok(opened) = SignedEnvelope::from_protobuf_encoding(envelope) else {
            return Merged::Forged("no envelope");
        };
        let Ok((payload, key)) = opened.payload_and_signing_key(DOMAIN.to_owned(), PAYLOAD_TYPE) else {
            return Merged::Forged("the signature does not fit");
        };
        let Some(agent) = agent_of_key(key.clone()) else {
            return Merged::Forged("signed with another kind of key");
        };
        if source.is_some_and(|source| source != agent) {
            return Merged::Forged("signed by another than its source");
        }
        let announcement: Announcement = match codec::decode(payload) {
            Ok(announcement) => announcement,
            Err(CodecError::Version { .. }) => return Merged::Stale,
            Err(_) => return Merged::Forged("signed and no announcement"),
        };
        let known = self.agents.get(&agent);
        let set_back = |entry: &Entry| entry.stored && hand == Some(agent);
        if known.is_some_and(|entry| announcement.seq <= entry.seq && !set_back(entry)) {
            return Merged::Stale;
        }
        if known.is_none() && !self.make_room() {
            return Merged::Full;
        }
        let present = (announcement.state != AgentState::Leaving).then(|| Present {
            envelope: envelope.to_vec(),
            addresses: announcement.addresses.to_vec(),
            gone_at: now + Duration::from_millis(u64::from(announcement.period_ms)) * SILENCE / 2,
        });
        let entry = self.agents.entry(agent).or_insert_with(|| Entry::new(now));
        (entry.seq, entry.stored) = (announcement.seq, false);
        entry.present = present;
        self.is_changed = true;
        Merged::News(agent, Box::new(announcement))
    }

    /// Forgets what the silent have said, and names them. Their numbers stay.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<AgentId> {
        let silent = |present: &mut Present| present.gone_at <= now;
        self.agents
            .iter_mut()
            .filter_map(|(agent, entry)| entry.present.take_if(silent).map(|_| *agent))
            .collect()
    }

    /// Gives one page of the roster, own announcement included, in the order of agent ids.
    pub(super) fn page(&self, from: u32) -> Answer {
        let skip = usize::try_from(from).unwrap_or(usize::MAX);
        let beyond = (Bound::Excluded(self.me), Bound::Unbounded);
        let signed = |(_, entry): (_, &Entry)| entry.present.as_ref().map(|p| p.envelope.clone());
        let all = self.agents.range(..self.me).filter_map(signed).chain(self.own.clone());
        let mut rest = all.chain(self.agents.range(beyond).filter_map(signed)).skip(skip);
        let page = rest.by_ref().take(PAGE).filter_map(|envelope| Blob::new(envelope).ok()).collect();
        let more = rest.next().is_some();
        Answer::Roster { signed: List::cut(page).0, more }
    }

    /// Gives the addresses at which a present agent listens, as it said.
    pub(super) fn addresses(&self, agent: &AgentId) -> &[SocketAddr] {
        self.agents
            .get(agent)
            .and_then(|entry| entry.present.as_ref())
            .map_or(&[], |present| &*present.addresses)
    }

    /// Says whether an agent has announced itself and is still there.
    pub(super) fn is_present(&self, agent: &AgentId) -> bool {
        self.agents.get(agent).is_some_and(|entry| entry.present.is_some())
    }

    /// Counts the agents that are present, this one not included.
    pub(super) fn present(&self) -> usize {
        self.agents.iter().filter(|(agent, entry)| **agent != self.me && entry.present.is_some()).count()
    }

    /// Spares the signature of what is known already, which is most of every roster page.
    fn has(&self, envelope: &[u8]) -> bool {
        let is_it = |entry: &Entry| entry.present.as_ref().is_some_and(|p| p.envelope == envelope);
        self.own.as_deref() == Some(envelope) || self.agents.values().any(is_it)
    }

    fn too_often(&mut self, agent: &AgentId, now: Instant) -> bool {
        let Some(entry) = self.agents.get_mut(agent) else { return false };
        if entry.banned_until.is_some_and(|until| now < until) {
            return true;
        }
        if entry.paid > now + EVERY * BURST {
            let going_on = entry.flood.filter(|flood| now.saturating_duration_since(flood.last) < PAUSE);
            let since = going_on.map_or(now, |flood| flood.since);
            entry.flood = Some(Flood { since, last: now });
            if now.saturating_duration_since(since) >= FLOOD {
                tracing::warn!(
                    peer = agent.short(),
                    "a peer floods the mesh and is not listened to for 10 min"
                );
                (entry.flood, entry.banned_until) = (None, Some(now + BAN));
            }
            return true;
        }
        entry.paid = entry.paid.max(now) + EVERY;
        false
    }

    /// Where there are too many agents, one that is gone is forgotten with its number.
    fn make_room(&mut self) -> bool {
        if self.agents.len() < self.room {
            return true;
        }
        let gone = self.agents.iter().find(|(agent, e)| e.present.is_none() && **agent != self.me);
        let Some(gone) = gone.map(|(agent, _)| *agent) else { return false };
        self.agents.remove(&gone).is_some()
    }
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self { seq: 0, stored: false, present: None, paid: now, flood: None, banned_until: None }
    }
}

/// Says why an announcement cannot be published.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("signing failed")]
    Key(#[from] SigningError),
}

/// Wraps an announcement in an envelope that its key has signed.
pub(super) fn sign(key: &Keypair, announcement: &Announcement) -> Result<Vec<u8>, SignError> {
    let payload = codec::encode(announcement)?;
    let envelope = SignedEnvelope::new(key, DOMAIN.to_owned(), PAYLOAD_TYPE.to_vec(), payload)?;
    Ok(envelope.into_protobuf_encoding())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        bounded::Text,
        evidence::{Core, Hypervisor, Os, Reading},
        id::Incarnation,
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
            },
            sampled_ms_ago: 0,
            machine: MachineClaim::new(MachineUid { created_ms: 1, random: [1; 16] }),
            locks: List::default(),
            width: 1,
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
    }

    #[expect(clippy::disallowed_methods, reason = "an Instant has no other source; only differences matter")]
    fn scene() -> Scene {
        let key = Keypair::generate_ed25519();
        let agent = agent_of_key(key.public()).unwrap();
        let now = Instant::now();
        Scene { ledger: Ledger::new(AgentId([0; 32]), BTreeMap::new(), now), key, agent, now }
    }

    impl Scene {
        fn hear(&mut self, incarnation: u64, seq: u64, state: AgentState) -> Merged {
            let envelope = sign(&self.key, &announcement(incarnation, seq, state)).unwrap();
            self.ledger.merge(&envelope, Way::default(), self.now)
        }

        fn page(&self) -> usize {
            let Answer::Roster { signed, more: false } = self.ledger.page(0) else { panic!() };
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

    #[test]
    fn who_floods_for_a_minute_is_not_listened_to_for_ten() {
        let mut scene = scene();
        let mut seq = 0;
        let mut flood = |seconds: u32, from: Instant| {
            let mut heard = 0;
            for tenth in 0..seconds * 10 {
                seq += 1;
                let envelope = sign(&scene.key, &announcement(1, seq, AgentState::Ready)).unwrap();
                let at = from + Duration::from_millis(100) * tenth;
                let merged = scene.ledger.merge(&envelope, by(scene.agent), at);
                heard += u32::from(matches!(merged, Merged::News(..)));
            }
            heard
        };
        let start = scene.now;
        // Ten a second: four are heard, and for one second less than a minute after its burst that goes on.
        assert!(flood(59, start) > 200);
        let paused = start + Duration::from_secs(120);
        assert!(flood(80, paused) > 200);
        let banned = paused + Duration::from_secs(81);
        assert_eq!(flood(10, banned), 0);
        assert_eq!(flood(1, banned + BAN - Duration::from_secs(30)), 0);
        assert!(flood(1, banned + BAN) > 0);
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
        let Answer::Roster { signed: first, more: true } = scene.ledger.page(0) else { panic!() };
        let Answer::Roster { signed: rest, more: false } = scene.ledger.page(512) else { panic!() };
        assert_eq!((first.len(), rest.len()), (512, 1));
        let found = first.iter().chain(rest.iter()).map(|blob| blob.to_vec()).collect();
        assert_eq!(expected, found);
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
}
