//! Every timer of liveness as a row of one table: what is due, and when the next one is.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_proto::id::AgentId;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Silence is judged.
    Judge,
    /// The stream is opened again.
    Open,
    /// The lease is renewed.
    Renew,
}

/// The table, by row and by time.
#[derive(Debug, Default)]
pub(super) struct Timers {
    rows: BTreeMap<(AgentId, Timer), Duration>,
    by_time: BTreeSet<(Duration, AgentId, Timer)>,
}

impl Timers {
    /// Sets a row; it had perhaps another time before.
    pub(super) fn set(&mut self, agent: AgentId, timer: Timer, at: Duration) {
        self.clear(agent, timer);
        self.rows.insert((agent, timer), at);
        self.by_time.insert((at, agent, timer));
    }

    pub(super) fn clear(&mut self, agent: AgentId, timer: Timer) {
        if let Some(at) = self.rows.remove(&(agent, timer)) {
            self.by_time.remove(&(at, agent, timer));
        }
    }

    pub(super) fn is_set(&self, agent: AgentId, timer: Timer) -> bool {
        self.rows.contains_key(&(agent, timer))
    }

    /// Takes the rows whose time has come, the earliest first.
    pub(super) fn due(&mut self, now: Duration) -> Vec<(AgentId, Timer)> {
        let due = self.by_time.iter().take_while(|(at, ..)| *at <= now);
        let due: Vec<(AgentId, Timer)> = due.map(|(_, agent, timer)| (*agent, *timer)).collect();
        for (agent, timer) in &due {
            self.clear(*agent, *timer);
        }
        due
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.by_time.first().map(|(at, ..)| *at)
    }
}
