//! How news spreads: the own announcement by gossip, everybody else's by pulling rosters.
//!
//! Gossip brings changes within a second, but a late node would wait a whole period for it; a roster pull brings
//! everything within milliseconds and repairs what gossip lost (`libp2p.md` §3). Whoever asks says what it knows, so
//! that only the rest travels.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use libp2p::gossipsub::PublishError;

use super::{
    MeshError,
    dial::Present as _,
    driver::{Asking, Driver},
    gossip::{self, SignError},
    swarm::peer_of,
};
use crate::{
    id::AgentId,
    known::Known,
    message::{Announcement, Question},
};

/// When the first announcement is said again: single early messages get lost while the mesh forms
/// (`libp2p.md` §3.4).
const ECHOES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// When, after the first connection, other peers are asked for their rosters (`libp2p.md` §3.4).
const EARLY_PULLS: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_millis(1_500), Duration::from_secs(3)];

/// How often one random peer is asked for its roster, which repairs whatever gossip lost.
const PULL_PERIOD: Duration = Duration::from_secs(15);

/// Roster pulls at once (`libp2p.md` §3.4).
const PULLS: usize = 3;

/// Whose roster to ask for, and when.
#[derive(Debug)]
pub(super) struct Pulls {
    /// These, as soon as there is room.
    pub(super) queue: BTreeSet<AgentId>,
    /// One at random, at these times.
    pub(super) times: BTreeSet<Instant>,
    pub(super) flying: usize,
}

/// What became of the own announcement.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) latest: Option<Vec<u8>>,
    /// Nobody listened yet.
    unheard: bool,
    pub(super) ever: bool,
    pub(super) echoes: BTreeSet<Instant>,
}

impl Pulls {
    pub(super) fn new(now: Instant) -> Self {
        Self { queue: BTreeSet::new(), times: [now + PULL_PERIOD].into(), flying: 0 }
    }
}

impl Driver {
    /// Signs what this node says of itself, keeps it for rosters and gossips it.
    pub(super) fn publish(&mut self, announcement: &Announcement, now: Instant) -> Result<(), MeshError> {
        let envelope = gossip::sign(&self.key, announcement).map_err(|error| match error {
            SignError::Codec(error) => MeshError::Invalid(error),
            SignError::Key(error) => MeshError::Stack(error.to_string()),
        })?;
        self.ledger.say(announcement, envelope.clone(), now);
        self.said.latest = Some(envelope);
        self.say(now);
        Ok(())
    }

    /// Gossips what was last published.
    fn say(&mut self, now: Instant) {
        let Some(envelope) = self.said.latest.clone() else { return };
        match self.swarm.behaviour_mut().gossip.publish(self.topic.hash(), envelope) {
            Ok(_) => {
                self.said.unheard = false;
                if !self.said.ever {
                    self.said.ever = true;
                    self.said.echoes = ECHOES.map(|later| now + later).into();
                }
            }
            Err(PublishError::NoPeersSubscribedToTopic | PublishError::AllQueuesFull(_)) => {
                self.said.unheard = true;
            }
            Err(
                error @ (PublishError::Duplicate
                | PublishError::SigningError(_)
                | PublishError::MessageTooLarge
                | PublishError::TransformFailed(_)),
            ) => {
                self.said.unheard = false;
                tracing::warn!(%error, "gossip refused an announcement");
            }
        }
    }

    /// Says again what nobody has heard yet, and the first announcement when its time has come.
    pub(super) fn repeat(&mut self, now: Instant) {
        let echoes = self.said.echoes.len();
        self.said.echoes.retain(|time| *time > now);
        if self.said.unheard || self.said.echoes.len() < echoes {
            self.say(now);
        }
    }

    /// Asks for the rosters that are due.
    pub(super) fn pull(&mut self, now: Instant) {
        while let Some(time) = self.pulls.times.first().copied().filter(|time| *time <= now) {
            self.pulls.times.remove(&time);
            if self.pulls.times.iter().all(|other| *other <= now) {
                self.pulls.times.insert(now + PULL_PERIOD);
            }
            if let Some(agent) = self.random_link() {
                self.pulls.queue.insert(agent);
            }
        }
        // What is not taken in yet would be asked for, and come, again.
        while self.pulls.flying < PULLS && self.unchecked.is_empty() {
            let Some(agent) = self.pulls.queue.pop_first() else { break };
            let salt = self.random.number();
            let known = self.ledger.known(salt);
            self.pull_page(agent, 0, known);
        }
    }

    /// Asks a connected peer for one page of what is not known of its roster.
    pub(super) fn pull_page(&mut self, agent: AgentId, from: u32, known: Known) {
        let Some(peer) = peer_of(&agent).filter(|_| self.links.connected(&agent)) else { return };
        let question = Question::Roster { from, known: known.clone() };
        let id = self.swarm.behaviour_mut().questions.send_request(&peer, question);
        self.questions.insert(id, Asking::Pull { agent, from, known });
        self.pulls.flying += 1;
    }

    /// Asks a new peer for its roster, and, where it is the first, others soon after.
    pub(super) fn pull_from(&mut self, agent: AgentId, now: Instant) {
        if self.links.connected.len() == 1 {
            self.pulls.times.extend(EARLY_PULLS.map(|later| now + later));
        }
        self.pulls.queue.insert(agent);
    }

    fn random_link(&mut self) -> Option<AgentId> {
        let random = self.random.number();
        let place = usize::try_from(random >> 33).ok()?.checked_rem(self.links.connected.len())?;
        self.links.connected.keys().nth(place).copied()
    }
}
