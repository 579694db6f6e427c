//! Signed announcements: who has said what last, and may be believed.
//!
//! An announcement travels as a libp2p signed envelope, by gossip and in roster answers alike, so that second-hand
//! news is as good as first-hand. The ledger keeps the latest of each agent and, for as long as there is room, the
//! highest sequence number ever seen, over restarts too (`marks.rs`), so that nothing old comes back
//! (`security.md` §5.2).

#[cfg(test)]
pub(super) mod tests;

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

use super::{
    flood::{Frequency, Spoken},
    marks::Mark,
    offences::BAN,
    swarm::agent_of_key,
};
use crate::{
    bounded::{Blob, List},
    codec::{self, CodecError},
    id::AgentId,
    known::Known,
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
    /// This source floods the mesh over its own connection, and is to be shut out.
    Flood(AgentId),
}

/// The latest announcement of each agent.
#[derive(Debug)]
pub(super) struct Ledger {
    me: AgentId,
    own: Option<Own>,
    agents: BTreeMap<AgentId, Entry>,
    /// How many agents fit, this one included.
    room: usize,
    /// Something was heard since the marks were last asked for.
    is_changed: bool,
}

/// What this node says of itself.
#[derive(Debug)]
struct Own {
    seq: u64,
    envelope: Vec<u8>,
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
    /// How often it has spoken by gossip over its own connection, and how often others have brought its words.
    spoken: Frequency,
    relayed: Frequency,
    /// It has flooded the mesh: whoever brings its words until then is not listened to either.
    banned_until: Option<Instant>,
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
        let seq = announcement.seq;
        self.own = (announcement.state != AgentState::Leaving).then_some(Own { seq, envelope });
        let entry = self.agents.entry(self.me).or_insert_with(|| Entry::new(now));
        entry.seq = entry.seq.max(announcement.seq);
    }

    /// Weighs an envelope.
    ///
    /// News from the own key means that another process holds this key. What an agent hands over itself is news even
    /// under a number below one of an earlier life: it was set back to an older disk.
    pub(super) fn merge(&mut self, envelope: &[u8], Way { source, hand }: Way, now: Instant) -> Merged {
        if let Some(source) = source {
            match self.speaks(&source, hand == Some(source), now) {
                Spoken::InTurn => {}
                Spoken::TooOften => return Merged::Stale,
                Spoken::Flood => return Merged::Flood(source),
            }
        }
        if self.has(envelope) {
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

    /// Gives one page of what somebody does not know of the roster, own announcement included, in the order of agent
    /// ids.
    pub(super) fn page(&self, from: u32, known: &Known) -> Answer {
        let skip = usize::try_from(from).unwrap_or(usize::MAX);
        let mut rest = self.roster().filter(|(agent, seq, _)| !known.has(agent, *seq)).skip(skip);
        let envelopes = rest.by_ref().take(PAGE).map(|(.., envelope)| envelope.to_vec());
        let page = envelopes.filter_map(|envelope| Blob::new(envelope).ok()).collect();
        let more = rest.next().is_some();
        Answer::Roster { signed: List::cut(page).0, more }
    }

    /// Gives what it has of the roster, for a question.
    pub(super) fn known(&self, salt: u64) -> Known {
        let all: Vec<(AgentId, u64)> = self.roster().map(|(agent, seq, _)| (agent, seq)).collect();
        Known::of(salt, &all)
    }

    /// Everybody present, with the number and the envelope of the latest announcement, in the order of agent ids.
    fn roster(&self) -> impl Iterator<Item = (AgentId, u64, &[u8])> {
        let beyond = (Bound::Excluded(self.me), Bound::Unbounded);
        let own = self.own.as_ref().map(|own| (self.me, own.seq, &*own.envelope));
        let before = self.agents.range(..self.me).filter_map(present);
        before.chain(own).chain(self.agents.range(beyond).filter_map(present))
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
        self.own.as_ref().is_some_and(|own| own.envelope == envelope) || self.agents.values().any(is_it)
    }

    /// Counts a message of a source that is known. It is a flood where the source itself has sent it: nobody answers for
    /// what others bring.
    fn speaks(&mut self, source: &AgentId, itself: bool, now: Instant) -> Spoken {
        let Some(entry) = self.agents.get_mut(source) else { return Spoken::InTurn };
        if entry.banned_until.is_some_and(|until| now < until) {
            return Spoken::TooOften;
        }
        if !itself {
            return match entry.relayed.speaks(now) {
                Spoken::Flood => Spoken::TooOften,
                spoken @ (Spoken::InTurn | Spoken::TooOften) => spoken,
            };
        }
        let spoken = entry.spoken.speaks(now);
        if spoken == Spoken::Flood {
            (entry.spoken, entry.banned_until) = (Frequency::new(now), Some(now + BAN));
        }
        spoken
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

fn present<'a>((agent, entry): (&AgentId, &'a Entry)) -> Option<(AgentId, u64, &'a [u8])> {
    entry.present.as_ref().map(|present| (*agent, entry.seq, &*present.envelope))
}

impl Entry {
    fn new(now: Instant) -> Self {
        let frequency = Frequency::new(now);
        Self {
            seq: 0,
            stored: false,
            present: None,
            spoken: frequency,
            relayed: frequency,
            banned_until: None,
        }
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
