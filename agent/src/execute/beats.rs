//! Signs of life: what is held of a job, told to its coordinator every second while there is anything.

use std::{collections::BTreeMap, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tropa_proto::{
    bounded::List,
    id::{AgentId, AttemptId, JobId},
    message::{Beat, FromAgent, Held, Open},
};

use crate::admission::Holding;

/// Between two beats (`reliability.md` §4).
const BEAT: Duration = Duration::from_secs(1);

/// Jobs that are told of: more than a mesh of people works on at once, and as many as may have something queued.
const MAX_JOBS: usize = 64;

/// Who hears of which job.
#[derive(Debug, Default)]
pub(super) struct Beats(BTreeMap<(AgentId, JobId), Listener>);

#[derive(Debug)]
struct Listener {
    reports: mpsc::Sender<FromAgent>,
    seq: u64,
    next: Instant,
}

impl Beats {
    /// Tells this channel of the job from now on, and no other. Beyond the bound nobody is told.
    pub(super) fn attach(
        &mut self,
        peer: AgentId,
        job: JobId,
        reports: mpsc::Sender<FromAgent>,
        now: Instant,
    ) {
        self.0.retain(|_, listener| !listener.reports.is_closed());
        if self.0.len() < MAX_JOBS || self.0.contains_key(&(peer, job)) {
            self.0.insert((peer, job), Listener { reports, seq: 0, next: now + BEAT });
        } else {
            tracing::warn!(bound = MAX_JOBS, "too many jobs want to hear from this agent");
        }
    }

    /// When the next beat is due.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.values().map(|listener| listener.next).min()
    }

    /// The jobs whose beat is due; those that nobody listens to any more are forgotten.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(AgentId, JobId)> {
        let due = self.0.iter().filter(|(_, listener)| listener.next <= now);
        let due: Vec<(AgentId, JobId)> = due.map(|(job, _)| *job).collect();
        for job in &due {
            if self.0.get(job).is_some_and(|listener| listener.reports.is_closed()) {
                self.0.remove(job);
            } else if let Some(listener) = self.0.get_mut(job) {
                listener.next = now + BEAT;
            }
        }
        due
    }

    /// Sends a beat, where anything is held and the reader is not behind: the next one says more.
    pub(super) fn beat(&mut self, peer: AgentId, job: JobId, held: Held) {
        if let Some(listener) = self.0.get_mut(&(peer, job))
            && (!held.open.is_empty() || !held.ended.is_empty())
        {
            listener.seq += 1;
            let _ = listener.reports.try_send(FromAgent::Beat(Box::new(Beat { seq: listener.seq, held })));
        }
    }
}

/// Puts what is held of a job into a message; what finds no room is left out, and that is said.
pub(super) fn held(
    job: JobId,
    holdings: impl Iterator<Item = Holding>,
    tokens: impl Fn(AttemptId) -> u32,
) -> Held {
    let (mut open, mut ended) = (Vec::new(), Vec::new());
    for holding in holdings {
        match holding {
            Holding::Open { attempt, running } => {
                let (chunk, no) = (attempt.chunk, attempt.no);
                open.push(Open { chunk, no, running, tokens: tokens(attempt) });
            }
            Holding::Ended(attempt) => ended.push((attempt.chunk, attempt.no)),
        }
    }
    let ((open, cut), (ended, cut_too)) = (List::cut(open), List::cut(ended));
    Held { job, open, ended, whole: !cut && !cut_too }
}
