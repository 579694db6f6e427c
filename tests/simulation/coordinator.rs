//! A coordinator of the simulation: the real scheduler, a disk that syncs late, and what survives a kill.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tropa_coordinator::{
    liveness::Liveness,
    schedule::{Doubt, History, Left, ModelIndex, Schedule},
};
use tropa_proto::{
    failure::{Class, Reason},
    id::{AgentId, AttemptId, ChunkIndex, Incarnation, JobId},
};

use super::{clock::Clock, world::What};

/// One row of the journal on its way to the disk.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Unguarded(AgentId, BTreeSet<AgentId>),
    Attempt(AttemptId, AgentId, Incarnation),
    Ended(AttemptId, Class, Option<Reason>),
    Result(AttemptId),
    Failed(AttemptId, Class),
}

/// How an attempt ended.
type End = (Class, Option<Reason>);

/// What is on disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    attempts: BTreeMap<AttemptId, (AgentId, Incarnation, Option<End>)>,
    /// Which agents no lock keeps from the devices of which.
    unguarded: BTreeMap<AgentId, BTreeSet<AgentId>>,
    results: BTreeMap<ChunkIndex, bool>,
}

/// A connection to an agent.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    /// A later connection has another number.
    pub(super) number: u64,
    pub(super) cuts: u32,
    /// How often what the agent says is kept from the coordinator.
    pub(super) mutes: u32,
    /// The coordinator believes that it is there.
    pub(super) believed: bool,
    /// When this life of the coordinator last believed that.
    pub(super) left_at: Option<Duration>,
}

impl Link {
    /// What the agent says arrives.
    pub(super) fn is_heard(&self) -> bool {
        self.cuts == 0 && self.mutes == 0
    }
}

/// A coordinator with its job, its disk and its connections.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) job: JobId,
    pub(super) chunks: u32,
    pub(super) clock: Clock,
    pub(super) links: Vec<Link>,
    pub(super) disk: Disk,
    /// Written and not yet synced, in order.
    pub(super) pending: VecDeque<(Duration, Step)>,
    pub(super) full: bool,
    /// The scheduler has been told that the disk is full.
    pub(super) paused: bool,
    pub(super) life: u64,
    pub(super) up: Option<Up>,
    /// SIGSTOP: what happens to it waits.
    pub(super) stopped: bool,
    pub(super) stopped_at: Duration,
    pub(super) deferred: Vec<What>,
}

/// A control stream as its coordinator holds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Control {
    pub(super) number: u64,
    /// Which connection it is on.
    pub(super) link: u64,
}

/// One life of a coordinator.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) schedule: Schedule,
    pub(super) liveness: Liveness,
    /// The control streams, by install.
    pub(super) controls: BTreeMap<usize, Control>,
    /// On its own clock.
    pub(super) started: Duration,
    pub(super) tick_at: Option<Duration>,
}

impl Disk {
    /// Writes a row and says whether it is the first of its kind, as the journal does.
    ///
    /// # Panics
    /// When a row breaks a rule of the journal.
    pub(super) fn write(&mut self, step: &Step) -> bool {
        match step {
            Step::Unguarded(agent, rivals) => {
                self.unguarded.insert(*agent, rivals.clone());
                true
            }
            Step::Attempt(attempt, agent, incarnation) => {
                let range = AttemptId { no: 0, ..*attempt }..=AttemptId { no: u32::MAX, ..*attempt };
                let last = self.attempts.range(range).next_back().map_or(0, |(last, _)| last.no);
                assert_eq!(attempt.no, last + 1, "attempts are numbered without a gap: {attempt:?}");
                self.attempts.insert(*attempt, (*agent, *incarnation, None));
                true
            }
            Step::Ended(attempt, class, reason) => {
                let row = self.attempts.get_mut(attempt).expect("an attempt ends after it was recorded");
                let first = row.2.is_none();
                row.2.get_or_insert((*class, *reason));
                first
            }
            Step::Result(attempt) | Step::Failed(attempt, _) => {
                assert!(self.attempts.contains_key(attempt), "no result of an attempt that was never issued");
                let first = !self.results.contains_key(&attempt.chunk);
                self.results.entry(attempt.chunk).or_insert(matches!(step, Step::Result(_)));
                if let (Step::Result(_), Some(row)) = (step, self.attempts.get_mut(attempt)) {
                    // A result closes its attempt; its class no longer matters, for its chunk is closed.
                    row.2.get_or_insert((Class::Superseded, None));
                }
                first
            }
        }
    }
}

impl Up {
    /// Starts with what is on disk, as `resume.rs` does.
    pub(super) fn start(job: JobId, disk: &Disk, chunks: u32, seed: u64, now: Duration) -> Self {
        let mut schedule = Schedule::new(job, vec![ModelIndex(0); chunks as usize]).with_seed(seed);
        let mut history: BTreeMap<ChunkIndex, History> = BTreeMap::new();
        let mut left = Left { unguarded: disk.unguarded.clone(), ..Left::default() };
        for (attempt, (agent, incarnation, ended)) in &disk.attempts {
            let apart = disk.unguarded.get(agent).is_some_and(|rivals| !rivals.is_empty());
            let doubt = ended.and_then(|(class, reason)| Doubt::of(class, reason)).filter(|_| apart);
            left.doubtful.extend(doubt.map(|doubt| (*attempt, ((*agent, *incarnation), doubt))));
        }
        let unfinished =
            disk.attempts.iter().filter(|(attempt, _)| !disk.results.contains_key(&attempt.chunk));
        for (attempt, (agent, incarnation, class)) in unfinished {
            let entry = history.entry(attempt.chunk).or_default();
            entry.last_no = entry.last_no.max(attempt.no);
            match class {
                Some((class, _)) => {
                    // What it says is kept in it.
                    let _ = entry.after(attempt.no, *class, *agent, &agent.short());
                }
                None => {
                    left.open.insert(*attempt, (*agent, *incarnation));
                }
            }
        }
        schedule.resume(disk.results.keys().copied(), history, left);
        let (liveness, controls) = (Liveness::new(seed), BTreeMap::new());
        Self { schedule, liveness, controls, started: now, tick_at: None }
    }
}
