//! The chunks that wait and have never been tried, by what has to be loaded for them.
//!
//! An install stays with one kind until none of it waits, so it loads each kind once. Within a kind the first chunk
//! goes first, but for chunks that share a long prefix: they go where it was read last. Of those that others build on,
//! the ones with the longest chain behind them go before all that.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use tropa_proto::id::ChunkIndex;

use super::work::{Kind, Work};

/// Groups of one prefix that are looked through for one that nobody reads: enough for every lane of a large mesh.
const GROUPS: usize = 64;

/// Where a chunk stands in its line: the longer the chain of chunks that build on it, the earlier; then by number.
pub(super) type Rank = (Reverse<u32>, ChunkIndex);

/// All that wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting {
    lines: BTreeMap<Kind, Line>,
    total: Sum,
    /// Installs by the prefix that they read last.
    readers: BTreeMap<u32, usize>,
}

/// The chunks of one kind.
#[derive(Clone, Debug, Default)]
struct Line {
    chunks: BTreeSet<Rank>,
    by_prefix: BTreeMap<u32, BTreeSet<Rank>>,
    sum: Sum,
}

/// Chunks added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) chunks: u64,
    prompt: u64,
    output: u64,
}

impl Waiting {
    pub(super) fn add(&mut self, chunk: Rank, work: &Work) {
        let line = self.lines.entry(work.kind()).or_default();
        if line.chunks.insert(chunk) {
            if work.prefix != 0 {
                line.by_prefix.entry(work.prefix).or_default().insert(chunk);
            }
            line.sum.add(work);
            self.total.add(work);
        }
    }

    /// Takes a chunk out and says whether it waited.
    pub(super) fn remove(&mut self, chunk: Rank, work: &Work) -> bool {
        let Some(line) = self.lines.get_mut(&work.kind()) else { return false };
        if !line.chunks.remove(&chunk) {
            return false;
        }
        if let Some(group) = line.by_prefix.get_mut(&work.prefix) {
            group.remove(&chunk);
            if group.is_empty() {
                line.by_prefix.remove(&work.prefix);
            }
        }
        line.sum.remove(work);
        self.total.remove(work);
        if line.chunks.is_empty() {
            self.lines.remove(&work.kind());
        }
        true
    }

    /// The kinds of which some wait, in order, with how many.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (Kind, Sum)> {
        self.lines.iter().map(|(kind, line)| (*kind, line.sum))
    }

    /// How much waits in all.
    pub(super) fn total(&self) -> Sum {
        self.total
    }

    /// The first chunk of a kind.
    pub(super) fn first(&self, kind: Kind) -> Option<Rank> {
        self.lines.get(&kind)?.chunks.first().copied()
    }

    /// The next chunk of a kind for an install that read this prefix last: of those with the longest chain behind them
    /// one that shares it; else one whose prefix nobody else has read; else the first.
    pub(super) fn next(&self, kind: Kind, read_last: u32) -> Option<ChunkIndex> {
        let line = self.lines.get(&kind)?;
        let first = line.chunks.first().copied()?;
        let as_urgent = |group: &BTreeSet<Rank>| group.first().copied().filter(|rank| rank.0 == first.0);
        if let Some(same) = line.by_prefix.get(&read_last).and_then(as_urgent) {
            return Some(same.1);
        }
        let taken = |group: &BTreeSet<Rank>, prefix: u32| {
            self.readers.contains_key(&prefix) && group.contains(&first)
        };
        if line.by_prefix.iter().take(GROUPS).any(|(prefix, group)| taken(group, *prefix)) {
            let free = line.by_prefix.iter().take(GROUPS).filter(|(p, _)| !self.readers.contains_key(p));
            if let Some(free) = free.filter_map(|(_, group)| as_urgent(group)).min() {
                return Some(free.1);
            }
        }
        Some(first.1)
    }

    /// An install that read one prefix last reads another now.
    pub(super) fn reads(&mut self, before: u32, now: u32) {
        if let Some(count) = self.readers.get_mut(&before) {
            *count -= 1;
            if *count == 0 {
                self.readers.remove(&before);
            }
        }
        if now != 0 {
            *self.readers.entry(now).or_default() += 1;
        }
    }
}

impl Sum {
    fn add(&mut self, work: &Work) {
        self.chunks += 1;
        self.prompt += u64::from(work.prompt_tokens);
        self.output += u64::from(work.output_tokens);
    }

    fn remove(&mut self, work: &Work) {
        self.chunks -= 1;
        self.prompt -= u64::from(work.prompt_tokens);
        self.output -= u64::from(work.output_tokens);
    }

    /// A chunk of the mean size, of this model.
    pub(super) fn mean(&self, like: &Work) -> Work {
        let mean = |sum: u64| u32::try_from(sum / self.chunks.max(1)).unwrap_or(u32::MAX);
        Work { prompt_tokens: mean(self.prompt), output_tokens: mean(self.output), ..*like }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_prefix_goes_where_it_was_read_and_others_leave_it_alone() {
        let mut waiting = Waiting::default();
        for chunk in 0..6 {
            waiting.add((Reverse(0), ChunkIndex(chunk)), &Work { prefix: chunk % 2 + 1, ..Work::default() });
        }
        let kind = Work::default().kind();
        assert_eq!(waiting.next(kind, 0), Some(ChunkIndex(0)));
        waiting.reads(0, 1);
        assert_eq!(waiting.next(kind, 0), Some(ChunkIndex(1)), "prefix 1 is somebody else's");
        assert_eq!(waiting.next(kind, 1), Some(ChunkIndex(0)), "who read it goes on with it");
        waiting.reads(0, 2);
        assert_eq!(waiting.next(kind, 0), Some(ChunkIndex(0)), "all prefixes are read: the first chunk");
    }

    #[test]
    fn a_long_chain_behind_a_chunk_counts_more_than_a_prefix() {
        let mut waiting = Waiting::default();
        waiting.add((Reverse(2), ChunkIndex(0)), &Work { prefix: 1, ..Work::default() });
        waiting.add((Reverse(0), ChunkIndex(1)), &Work { prefix: 2, ..Work::default() });
        assert_eq!(waiting.next(Work::default().kind(), 2), Some(ChunkIndex(0)));
    }
}
