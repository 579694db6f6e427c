//! What a schedule can be asked: whether it is done, when it wants to hear of the time, and what cannot go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_proto::id::ChunkIndex;

use super::{Kind, ModelIndex, Schedule, Status, Work, standing::Standing};

impl Schedule {
    /// When the next `Tick` is due, if time alone can change anything.
    #[must_use]
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        let pauses = self.wakes_at.into_iter().chain(self.look_at);
        pauses.chain(self.adoption_ends()).chain(self.missing_ends()).filter(|at| *at > now).min()
    }

    /// Every chunk's result or failure is on disk.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.unfinished == 0
    }

    /// Nothing runs and nothing is on its way to the disk.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.holdings.is_empty() && self.finishing == 0 && !self.needs.is_filling()
    }

    /// What the chunks of a model ask: contexts in tokens, and the longest answer at each.
    #[must_use]
    pub fn asks(&self, model: ModelIndex) -> BTreeMap<u32, u32> {
        let of_model = self.longest.iter().filter(|(kind, _)| kind.model == model);
        of_model.map(|(kind, longest)| (kind.context, *longest)).collect()
    }

    /// Nothing runs, and the open chunks of these kinds have no install that could ever take them as the roster
    /// is now. Empty while anything runs, waits for a pause to end or may still be adopted.
    #[must_use]
    pub fn stuck(&self, now: Duration) -> BTreeSet<Kind> {
        if !self.is_idle() || !self.orphans.is_empty() || self.paused || self.stopped {
            return BTreeSet::new();
        }
        let queued = self.waiting.kinds().map(|(kind, _)| kind);
        let retried = self.retries.iter().map(|chunk| self.work(*chunk).kind());
        let wanted: BTreeSet<_> = queued.chain(retried).collect();
        let later = |standing: &Standing| standing.pause_until > now && standing.closed_for.is_none();
        let some_later = self.standing.values().any(later);
        wanted.into_iter().filter(|kind| !some_later && self.eligible(*kind).next().is_none()).collect()
    }

    /// The model of a chunk.
    #[must_use]
    pub fn model_of(&self, chunk: ChunkIndex) -> ModelIndex {
        self.work(chunk).model
    }

    /// What a chunk asks of an install.
    #[must_use]
    pub fn work(&self, chunk: ChunkIndex) -> Work {
        self.works.get(chunk.0 as usize).copied().unwrap_or_default()
    }

    pub(super) fn pauses_end(&self, now: Duration) -> Option<Duration> {
        self.standing.values().map(|standing| standing.pause_until).filter(|at| *at > now).min()
    }

    pub(super) fn status(&self, chunk: ChunkIndex) -> Option<Status> {
        self.status.get(chunk.0 as usize).copied()
    }
}
