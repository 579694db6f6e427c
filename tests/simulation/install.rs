//! An agent of the simulation: the real admission, and what its driver keeps for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_agent::admission::{Admission, Event, Key};
use tropa_proto::{
    failure::Reason,
    id::{AgentId, Incarnation},
};

use super::{clock::Clock, world::Place};

/// One install with its agent.
#[derive(Debug)]
pub(super) struct Install {
    pub(super) place: Place,
    pub(super) clock: Clock,
    pub(super) admission: Admission,
    pub(super) incarnation: Incarnation,
    /// Which life of the agent this is; what belongs to an earlier one is gone.
    pub(super) life: u64,
    pub(super) up: bool,
    /// SIGSTOP: what arrives waits.
    pub(super) stopped: bool,
    pub(super) deferred: Vec<Arrival>,
    /// The stream to which the reports of an attempt go.
    pub(super) streams: BTreeMap<Key, u64>,
    /// The control stream on which it beats, to each coordinator.
    pub(super) beats_on: BTreeMap<usize, u64>,
    pub(super) outbox: BTreeSet<Key>,
    /// The requests that the agent waits for, by their number at the engine.
    pub(super) waits_for: BTreeMap<Key, u64>,
    /// When what it left at the engine ends: the engine outlives its agent.
    pub(super) idle_at: Duration,
    pub(super) holds_locks: bool,
    /// The records that are being settled.
    pub(super) settles: Vec<(usize, Key)>,
    pub(super) tick_at: Option<Duration>,
    /// The model is there.
    pub(super) model: bool,
    /// Whatever starts fails like this.
    pub(super) ill: Option<Reason>,
}

/// What reaches the agent's loop.
#[derive(Clone, Debug)]
pub(super) enum Arrival {
    /// From its own tasks.
    Own(Event),
    /// From a coordinator, on a stream.
    Run(u64, Key, Incarnation),
    Cancel(u64, Key),
    TakeBack(u64, Key),
    Fetch(u64, Key),
    /// The coordinator lives.
    Renew(usize),
    /// It asks what is held, on a control stream of this number.
    Reattach(usize, u64),
    Ack(Key),
}

impl Install {
    pub(super) fn new(place: Place, clock: Clock) -> Self {
        Self {
            admission: Admission::new(Incarnation(1), place.width),
            place,
            clock,
            incarnation: Incarnation(1),
            life: 0,
            up: true,
            stopped: false,
            deferred: Vec::new(),
            streams: BTreeMap::new(),
            beats_on: BTreeMap::new(),
            outbox: BTreeSet::new(),
            waits_for: BTreeMap::new(),
            idle_at: Duration::ZERO,
            holds_locks: false,
            settles: Vec::new(),
            tick_at: None,
            model: true,
            ill: None,
        }
    }

    /// Starts again after a kill: nothing is remembered but who it is. Its engine has gone on meanwhile.
    pub(super) fn restart(&mut self) {
        let (life, incarnation) = (self.life + 1, Incarnation(self.incarnation.0 + 1));
        let admission = Admission::new(incarnation, self.place.width);
        let (idle_at, model, ill) = (self.idle_at, self.model, self.ill);
        *self = Self {
            life,
            incarnation,
            admission,
            idle_at,
            model,
            ill,
            ..Self::new(self.place.clone(), self.clock)
        };
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
