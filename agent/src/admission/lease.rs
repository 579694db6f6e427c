//! How long what has not started waits for a coordinator of which nothing is heard.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;
use tropa_proto::id::{AgentId, JobId};

/// A job whose coordinator sends nothing for so long is orphaned: three `Renew`s that did not come
/// (`reliability.md` §4).
pub const LEASE: Duration = Duration::from_secs(15);

/// The jobs that have something queued, and when their coordinators were heard last. As many as may have something
/// queued, so bounded with the queues.
#[derive(Debug, Default)]
pub(super) struct Leases(BTreeMap<(AgentId, JobId), Instant>);

impl Leases {
    /// Something of the job is queued from now on.
    pub(super) fn begin(&mut self, peer: AgentId, job: JobId, now: Instant) {
        self.0.insert((peer, job), now);
    }

    /// The coordinator of the job has said something. Changes nothing where nothing is queued.
    pub(super) fn heard(&mut self, peer: AgentId, job: JobId, now: Instant) {
        if let Some(heard) = self.0.get_mut(&(peer, job)) {
            *heard = now;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out the jobs that have nothing queued any more, and gives those whose lease has ended.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        queued: impl Fn(&AgentId, &JobId) -> bool,
    ) -> Vec<(AgentId, JobId)> {
        let mut ended = Vec::new();
        self.0.retain(|(peer, job), heard| {
            let (held, over) = (queued(peer, job), now >= *heard + LEASE);
            if held && over {
                ended.push((*peer, *job));
            }
            held && !over
        });
        ended
    }

    /// When the next lease ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.0.values().map(|heard| *heard + LEASE).min()
    }
}
