//! Chunks that build on the answers of others: when they may run, and what becomes of them when one has failed.
//!
//! A chunk enters its queue when all that it needs is done on disk and its own request, with their answers in it,
//! is on disk as well. Of chunks that may run, the one with the longest chain of others behind it goes first. Where
//! one that it needs has failed, it fails too, and so does all that builds on it.

use std::collections::{BTreeMap, BTreeSet};

use tropa_proto::id::ChunkIndex;

use super::{Action, Schedule, Status};

/// Which chunks build on which, and what they still wait for.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// For every chunk that builds on others: those, all of them.
    on: BTreeMap<ChunkIndex, BTreeSet<ChunkIndex>>,
    /// The same, without those that are done.
    waiting: BTreeMap<ChunkIndex, BTreeSet<ChunkIndex>>,
    /// For every chunk that others build on: those.
    wanted_by: BTreeMap<ChunkIndex, Vec<ChunkIndex>>,
    /// The length of the longest chain behind a chunk; absent: nothing builds on it.
    chain: BTreeMap<ChunkIndex, u32>,
    /// Chunks whose requests can be made now.
    to_fill: BTreeSet<ChunkIndex>,
    /// Chunks whose requests are on their way to the disk.
    filling: BTreeSet<ChunkIndex>,
    /// Chunks that have failed, on disk or on the way there.
    failed: BTreeSet<ChunkIndex>,
    /// Chunks that fail because of another: each with that one.
    doomed: BTreeMap<ChunkIndex, ChunkIndex>,
}

impl Needs {
    /// Everything that the chunk builds on.
    pub(super) fn of(&self, chunk: ChunkIndex) -> impl Iterator<Item = ChunkIndex> {
        self.on.get(&chunk).into_iter().flatten().copied()
    }

    pub(super) fn has_failed(&self, chunk: ChunkIndex) -> bool {
        self.failed.contains(&chunk)
    }

    /// The chunk has failed, or is about to on disk.
    pub(super) fn fails(&mut self, chunk: ChunkIndex) {
        self.failed.insert(chunk);
    }

    /// Some request is on its way to the disk.
    pub(super) fn is_filling(&self) -> bool {
        !self.filling.is_empty() || !self.to_fill.is_empty()
    }

    /// Longest chain behind it first, then by number: where a chunk stands in its queue.
    fn place(&self, chunk: ChunkIndex) -> (std::cmp::Reverse<u32>, ChunkIndex) {
        (std::cmp::Reverse(self.chain.get(&chunk).copied().unwrap_or(0)), chunk)
    }
}

impl Schedule {
    /// Says which chunks build on which, after [`Schedule::resume`] and before the first event: `on` has for each
    /// chunk those that it needs, all before it; `unfilled` are the chunks whose requests are not on disk yet;
    /// `failed` those that are closed with a failure.
    pub fn depend(
        &mut self,
        on: BTreeMap<ChunkIndex, BTreeSet<ChunkIndex>>,
        unfilled: &BTreeSet<ChunkIndex>,
        failed: BTreeSet<ChunkIndex>,
    ) {
        if on.is_empty() {
            return;
        }
        self.needs = Needs { failed, ..Needs::default() };
        for (chunk, needed) in on.iter().rev() {
            let behind = self.needs.chain.get(chunk).copied().unwrap_or(0) + 1;
            for one in needed {
                let chain = self.needs.chain.entry(*one).or_default();
                *chain = behind.max(*chain);
            }
        }
        for (chunk, needed) in &on {
            for one in needed {
                self.needs.wanted_by.entry(*one).or_default().push(*chunk);
            }
            if self.status(*chunk) != Some(Status::Open) {
                continue;
            }
            if let Some(culprit) = needed.iter().find(|one| self.needs.failed.contains(*one)) {
                self.needs.doomed.insert(*chunk, *culprit);
            }
            let open = needed.iter().copied().filter(|one| self.status(*one) != Some(Status::Closed));
            let open: BTreeSet<ChunkIndex> = open.collect();
            if !open.is_empty() || unfilled.contains(chunk) {
                if open.is_empty() && !self.needs.doomed.contains_key(chunk) {
                    self.needs.to_fill.insert(*chunk);
                }
                self.needs.waiting.insert(*chunk, open);
            }
        }
        self.needs.on = on;
        let needs = &self.needs;
        for queue in self.queues.values_mut() {
            queue.retain(|chunk| !needs.waiting.contains_key(chunk) && !needs.doomed.contains_key(chunk));
            queue.make_contiguous().sort_unstable_by_key(|chunk| needs.place(*chunk));
        }
    }

    /// The chunk is closed on disk: what builds on it may go on, or has failed with it.
    pub(super) fn passed_on(&mut self, chunk: ChunkIndex) {
        let Some(behind) = self.needs.wanted_by.remove(&chunk) else { return };
        let failed = self.needs.failed.contains(&chunk);
        for one in behind {
            if failed {
                self.needs.doomed.entry(one).or_insert(chunk);
            }
            let Some(waiting) = self.needs.waiting.get_mut(&one) else { continue };
            waiting.remove(&chunk);
            if waiting.is_empty() && !self.needs.doomed.contains_key(&one) {
                self.needs.to_fill.insert(one);
            }
        }
    }

    /// The request of the chunk is on disk: it waits for an install like any other.
    pub(super) fn on_filled(&mut self, chunk: ChunkIndex) {
        if !self.needs.filling.remove(&chunk) || self.status(chunk) != Some(Status::Open) {
            return;
        }
        self.needs.waiting.remove(&chunk);
        let model = self.model_of(chunk);
        let needs = &self.needs;
        let queue = self.queues.entry(model).or_default();
        let place = queue.partition_point(|other| needs.place(*other) < needs.place(chunk));
        queue.insert(place, chunk);
        self.wake_all();
    }

    /// No request comes of the answers: the chunk's failure is on its way to the disk.
    pub(super) fn on_unfit(&mut self, chunk: ChunkIndex) {
        self.needs.filling.remove(&chunk);
        self.needs.waiting.remove(&chunk);
        self.needs.fails(chunk);
        self.finish(chunk);
    }

    /// Makes the requests that can be made, and fails what cannot run any more.
    pub(super) fn follow_needs(&mut self, actions: &mut Vec<Action>) {
        for chunk in std::mem::take(&mut self.needs.to_fill) {
            if self.status(chunk) == Some(Status::Open) {
                self.needs.filling.insert(chunk);
                actions.push(Action::Fill(chunk));
            }
        }
        for (chunk, culprit) in std::mem::take(&mut self.needs.doomed) {
            if self.status(chunk) == Some(Status::Open) {
                self.needs.waiting.remove(&chunk);
                self.needs.fails(chunk);
                self.finish(chunk);
                actions.push(Action::FailNeed(chunk, culprit));
            }
        }
    }
}
