//! Two runs of one key: a state directory was copied, and nobody can say which of the two an order would reach.
//!
//! A restart shows another incarnation too, so a change alone says nothing. It is a copy when an incarnation comes
//! back after another one, which a dead process never does; or when the incarnation changes while the connection
//! to the former stays, which the end of its process would have closed. Then neither run gets work, until all but
//! one have been silent for as long as the dead are; in the meantime the younger run takes a new key
//! (`identity.md` §12).

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::{SILENT_PERIODS, salts::Published};
use crate::{
    evidence::Evidence,
    id::{AgentId, Incarnation},
    message::Announcement,
};

/// Earlier runs that are kept: more copies of one directory than this are told apart no better.
const MAX_RUNS: usize = 3;

/// The runs of one key other than the one that spoke last.
#[derive(Debug, Default)]
pub(super) struct Runs {
    others: Vec<Run>,
    doubtful: bool,
    /// There is a connection, without a break since the run that spoke last was heard.
    linked: bool,
}

/// A run that has spoken.
#[derive(Debug)]
pub(super) struct Run {
    /// What it said last.
    pub(super) announcement: Announcement,
    pub(super) heard: Duration,
    pub(super) first_heard: Duration,
}

impl Runs {
    /// Takes in that another run spoke than before; gives when it was heard first, if it was.
    pub(super) fn changed(&mut self, before: Run, now: Incarnation) -> Option<Duration> {
        let back = self.others.iter().position(|run| run.announcement.incarnation == now);
        self.doubtful |= back.is_some() || self.linked;
        self.linked = false;
        let first_heard = back.map(|at| self.others.remove(at).first_heard);
        self.others.insert(0, before);
        self.others.truncate(MAX_RUNS);
        first_heard
    }

    /// Takes in whether there is a connection now that a run has spoken.
    pub(super) fn spoke(&mut self, connected: bool) {
        self.linked |= connected;
    }

    /// Takes in that the connection is gone.
    pub(super) fn unlinked(&mut self) {
        self.linked = false;
    }

    /// The other runs that may be alive, if it is not known whom an order would reach.
    pub(super) fn rivals(&self) -> &[Run] {
        if self.doubtful { &self.others } else { &[] }
    }

    /// Forgets who has been silent for too long; says whether that settled a doubt.
    pub(super) fn expire(&mut self, now: Duration) -> bool {
        self.others.retain(|run| now < run.dies_at());
        self.others.is_empty() && std::mem::take(&mut self.doubtful)
    }

    /// When the next of them counts as dead.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.others.iter().map(Run::dies_at).min()
    }
}

impl Run {
    /// An id of its own, for fusion and for display: no key has it, so nothing can be sent there.
    pub(super) fn id(&self, agent: AgentId) -> AgentId {
        let incarnation = self.announcement.incarnation.0.to_be_bytes();
        let hash = Sha256::new().chain_update(b"tropa-run-1").chain_update(agent.0).chain_update(incarnation);
        AgentId(hash.finalize().into())
    }

    /// What it has said of its hardware.
    pub(super) fn published(&self) -> Published {
        Published::new(Evidence::from_core(&self.announcement.core), None)
    }

    fn dies_at(&self) -> Duration {
        let period = Duration::from_millis(u64::from(self.announcement.period_ms));
        self.heard + period.mul_f64(SILENT_PERIODS)
    }
}
