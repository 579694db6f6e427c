//! The coordinator of the simulation: the real scheduler, a disk that syncs late, and what survives a kill.

use std::{collections::BTreeMap, time::Duration};

use tropa_coordinator::{
    liveness::Liveness,
    schedule::{History, ModelIndex, Schedule},
};
use tropa_proto::{
    failure::Class,
    id::{AgentId, AttemptId, ChunkIndex, Incarnation, JobId},
};

/// The job.
pub(super) const JOB: JobId = JobId([9; 16]);

/// One row of the journal on its way to the disk.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Attempt(AttemptId, AgentId, Incarnation),
    Ended(AttemptId, Class),
    Result(AttemptId),
    Failed(AttemptId, Class),
}

/// What is on disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    attempts: BTreeMap<AttemptId, (AgentId, Incarnation, Option<Class>)>,
    results: BTreeMap<ChunkIndex, bool>,
}

/// A control stream as the coordinator holds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Control {
    pub(super) number: u64,
    /// Which connection it is on.
    pub(super) link: u64,
}

/// One life of the coordinator.
#[derive(Debug)]
pub(super) struct Coordinator {
    pub(super) schedule: Schedule,
    pub(super) liveness: Liveness,
    /// The control stream to each install that has one, by number, and whether the agent has answered on it.
    pub(super) controls: BTreeMap<usize, Control>,
    /// Which life this is: what belongs to an earlier one is gone.
    pub(super) life: u64,
    pub(super) started: Duration,
}

impl Disk {
    /// Writes a row and says whether it is the first of its chunk, as the journal does.
    pub(super) fn write(&mut self, step: &Step) -> bool {
        match step {
            Step::Attempt(attempt, agent, incarnation) => {
                let range = AttemptId { no: 0, ..*attempt }..=AttemptId { no: u32::MAX, ..*attempt };
                let last = self.attempts.range(range).next_back().map_or(0, |(last, _)| last.no);
                assert_eq!(attempt.no, last + 1, "attempts are numbered without a gap: {attempt:?}");
                self.attempts.insert(*attempt, (*agent, *incarnation, None));
                true
            }
            Step::Ended(attempt, class) => {
                let row = self.attempts.get_mut(attempt).expect("an attempt ends after it was recorded");
                row.2.get_or_insert(*class);
                true
            }
            Step::Result(attempt) | Step::Failed(attempt, _) => {
                assert!(self.attempts.contains_key(attempt), "no result of an attempt that was never issued");
                let first = !self.results.contains_key(&attempt.chunk);
                self.results.entry(attempt.chunk).or_insert(matches!(step, Step::Result(_)));
                if let (Step::Result(_), Some(row)) = (step, self.attempts.get_mut(attempt)) {
                    // A result closes its attempt; its class no longer matters, for its chunk is closed.
                    row.2.get_or_insert(Class::Superseded);
                }
                first
            }
        }
    }

    /// Says whether an end of the attempt is on disk.
    pub(super) fn knows_end(&self, attempt: &AttemptId) -> bool {
        self.results.contains_key(&attempt.chunk)
            || self.attempts.get(attempt).is_some_and(|(.., class)| class.is_some())
    }
}

impl Coordinator {
    /// Starts with what is on disk, as `resume.rs` does.
    pub(super) fn start(disk: &Disk, chunks: usize, life: u64, now: Duration) -> Self {
        let mut schedule = Schedule::new(JOB, vec![ModelIndex(0); chunks]);
        let mut history: BTreeMap<ChunkIndex, History> = BTreeMap::new();
        let mut open = BTreeMap::new();
        let unfinished =
            disk.attempts.iter().filter(|(attempt, _)| !disk.results.contains_key(&attempt.chunk));
        for (attempt, (agent, incarnation, class)) in unfinished {
            let entry = history.entry(attempt.chunk).or_default();
            entry.last_no = entry.last_no.max(attempt.no);
            match class {
                Some(class) => {
                    let _ = entry.after(attempt.no, *class, *agent, &agent.short());
                }
                None => {
                    open.insert(*attempt, (*agent, *incarnation));
                }
            }
        }
        schedule.resume(disk.results.keys().copied(), history, open);
        let (liveness, controls) = (Liveness::new(life), BTreeMap::new());
        Self { schedule, liveness, controls, life, started: now }
    }
}
