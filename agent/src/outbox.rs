//! Finished results, in memory, until the coordinator has committed them.
//!
//! A result leaves with the `Ack` of its sender. It is not on disk: a killed agent costs one repeated chunk and
//! no safety (`reliability.md` §7). When the outbox is full, new work is refused; nothing is dropped to make room.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;
use tropa_proto::{
    id::AgentId,
    message::{MAX_RESULT, Outcome},
};

use crate::admission::Key;

/// Bytes of results that are kept (`reliability.md` §4).
pub const MAX_BYTES: usize = 256 << 20;

/// How long a result waits for its coordinator, which may be a laptop (`reliability.md` §4).
pub const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// What one entry costs beside its result.
const OVERHEAD: usize = 512;

/// One finished attempt.
#[derive(Clone, PartialEq, Eq)]
pub struct Finished {
    /// What it brought.
    pub outcome: Outcome,
    /// The result itself, `outcome.bytes` long.
    pub result: Bytes,
}

/// Without the content.
impl fmt::Debug for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finished")
            .field("outcome", &self.outcome)
            .field("bytes", &self.result.len())
            .finish_non_exhaustive()
    }
}

/// The results that wait.
#[derive(Debug, Default)]
pub struct Outbox {
    entries: BTreeMap<Key, Finished>,
    /// By age; may name entries that are gone.
    order: VecDeque<(Instant, Key)>,
    /// How many results wait for each coordinator.
    of: BTreeMap<AgentId, usize>,
    bytes: usize,
}

impl Outbox {
    /// Says whether `more` further results of the largest size fit beside `ready` bytes that are on their way.
    ///
    /// Asked before an attempt is taken in, with all that are on their way, so that a result always finds its
    /// place.
    #[must_use]
    pub fn has_room_for(&self, more: usize, ready: usize) -> bool {
        let more = more.saturating_mul(MAX_RESULT + OVERHEAD);
        more.saturating_add(ready).saturating_add(self.bytes) <= MAX_BYTES
    }

    /// Takes a result in; the same attempt replaces its own.
    pub fn insert(&mut self, key: Key, finished: Finished, now: Instant) {
        self.remove(&key);
        self.bytes += finished.result.len() + OVERHEAD;
        *self.of.entry(key.0).or_default() += 1;
        self.entries.insert(key, finished);
        self.order.push_back((now, key));
        // Acknowledged results leave their place in the order; it must not grow with the work done.
        if self.order.len() > 2 * self.entries.len() + 64 {
            self.order.retain(|(_, key)| self.entries.contains_key(key));
        }
    }

    /// Gives a result.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Finished> {
        self.entries.get(key)
    }

    /// Forgets a result; forgetting twice is forgetting.
    pub fn remove(&mut self, key: &Key) {
        if let Some(finished) = self.entries.remove(key) {
            self.bytes -= finished.result.len() + OVERHEAD;
            if let Some(of) = self.of.get_mut(&key.0) {
                *of -= 1;
            }
            self.of.retain(|_, results| *results > 0);
        }
    }

    /// Removes and names what has waited longer than [`KEEP`].
    pub fn expire(&mut self, now: Instant) -> Vec<Key> {
        let mut expired = Vec::new();
        while let Some((at, key)) = self.order.front().copied()
            && now >= at + KEEP
        {
            self.order.pop_front();
            if self.entries.contains_key(&key) {
                self.remove(&key);
                expired.push(key);
            }
        }
        expired
    }

    /// Gives when [`Outbox::expire`] may next have something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.order.front().map(|(at, _)| *at + KEEP)
    }

    /// Gives how many results wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Gives what the results take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Names the coordinators whose results wait.
    pub fn peers(&self) -> impl Iterator<Item = AgentId> {
        self.of.keys().copied()
    }

    /// Says whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use tropa_proto::id::{AttemptId, ChunkIndex, JobId};

    use super::*;
    use crate::clock::now;

    fn key(no: u32) -> Key {
        (AgentId([1; 32]), AttemptId { job: JobId([2; 16]), chunk: ChunkIndex(0), no })
    }

    fn finished(bytes: usize) -> Finished {
        Finished { outcome: Outcome::default(), result: vec![0; bytes].into() }
    }

    #[test]
    fn room_counts_what_waits_and_what_may_still_come() {
        let mut outbox = Outbox::default();
        assert!(outbox.has_room_for(31, 0) && !outbox.has_room_for(32, 0), "each brings its own overhead");
        outbox.insert(key(1), finished(MAX_RESULT), now());
        assert!(outbox.has_room_for(30, 0) && !outbox.has_room_for(31, 0));
        outbox.insert(key(1), finished(MAX_RESULT), now());
        assert_eq!((outbox.len(), outbox.bytes()), (1, MAX_RESULT + OVERHEAD));
        assert_eq!(outbox.peers().collect::<Vec<_>>(), [AgentId([1; 32])]);
        outbox.remove(&key(1));
        outbox.remove(&key(1));
        assert_eq!((outbox.peers().next(), outbox.bytes()), (None, 0));
        assert!(outbox.is_empty() && outbox.has_room_for(31, 0));
    }

    #[test]
    fn a_result_is_given_up_after_a_day_and_not_before() {
        let (mut outbox, start) = (Outbox::default(), now());
        outbox.insert(key(1), finished(1), start);
        outbox.insert(key(2), finished(1), start + Duration::from_secs(1));
        assert!(outbox.expire(start + KEEP - Duration::from_secs(1)).is_empty());
        assert_eq!(outbox.expire(start + KEEP), [key(1)]);
        assert_eq!((outbox.len(), outbox.next_deadline()), (1, Some(start + Duration::from_secs(1) + KEEP)));
    }

    #[test]
    fn the_order_does_not_grow_with_the_work_done() {
        let (mut outbox, at) = (Outbox::default(), now());
        for no in 0..10_000 {
            outbox.insert(key(no), finished(1), at);
            outbox.remove(&key(no));
        }
        assert!(outbox.order.len() <= 66, "{}", outbox.order.len());
    }
}
