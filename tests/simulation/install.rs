//! An agent of the simulation: the real admission, and what its driver keeps for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_agent::admission::{Admission, Event, Key};
use tropa_proto::id::{AgentId, AttemptId, Incarnation};

use super::world::Place;

/// One install with its agent.
#[derive(Debug)]
pub(super) struct Install {
    pub(super) place: Place,
    pub(super) admission: Admission,
    pub(super) incarnation: Incarnation,
    /// Which life of the agent this is; what belongs to an earlier one is gone.
    pub(super) life: u64,
    pub(super) up: bool,
    /// SIGSTOP: what arrives waits.
    pub(super) stopped: bool,
    pub(super) deferred: Vec<Arrival>,
    /// Where the reports of an attempt go.
    pub(super) streams: BTreeMap<Key, u64>,
    /// The control stream on which it beats.
    pub(super) beats_on: Option<u64>,
    pub(super) outbox: BTreeSet<Key>,
    /// Requests at the engine.
    pub(super) engine: BTreeSet<AttemptId>,
    /// When the last request that was hung up on ends.
    pub(super) idle_at: Duration,
    pub(super) holds_locks: bool,
    pub(super) tick_at: Option<Duration>,
}

/// What reaches the agent's loop.
#[derive(Clone, Debug)]
pub(super) enum Arrival {
    /// From its own tasks.
    Own(Event),
    /// From the coordinator, on a stream.
    Run(u64, Key, Incarnation),
    Cancel(u64, Key),
    Fetch(u64, Key),
    Renew,
    /// A control stream of this number.
    Reattach(u64),
    Ack(Key),
}

impl Arrival {
    pub(super) fn run(stream: u64, key: Key, incarnation: Incarnation) -> Self {
        Self::Run(stream, key, incarnation)
    }
}

impl Install {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            admission: Admission::new(Incarnation(1), 1),
            incarnation: Incarnation(1),
            life: 0,
            up: true,
            stopped: false,
            deferred: Vec::new(),
            streams: BTreeMap::new(),
            beats_on: None,
            outbox: BTreeSet::new(),
            engine: BTreeSet::new(),
            idle_at: Duration::ZERO,
            holds_locks: false,
            tick_at: None,
        }
    }

    /// Starts again after a kill: nothing is remembered but who it is.
    pub(super) fn restart(&mut self) {
        let (life, incarnation) = (self.life + 1, Incarnation(self.incarnation.0 + 1));
        let admission = Admission::new(incarnation, 1);
        *self = Self { life, incarnation, admission, ..Self::new(self.place) };
    }
}

/// The id of the agent of an install.
pub(super) fn agent(install: usize) -> AgentId {
    AgentId([u8::try_from(install).expect("few installs") + 1; 32])
}

/// The install of an agent.
pub(super) fn install_of(agent: AgentId) -> usize {
    usize::from(agent.0[0]) - 1
}
