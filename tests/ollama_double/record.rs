//! What a double remembers: every request with its times and its outcome, how many ran at once, and what no
//! client of ours may ever do.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;

use super::clock;
use super::http::{Request, header};

/// Requests that are remembered. A test sends hundreds; a benchmark sends millions and asks only for counts.
const MAX_REQUESTS: usize = 16_384;

/// Bytes of a body that are remembered: all of any prompt in a test, not all of a flood.
const MAX_BODY: usize = 1024 * 1024;

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Running,
    /// A whole reply with this status, or a stream that was sent to its end.
    Answered(u16),
    /// The client hung up before the end.
    HungUp,
    /// The double broke the connection: a fault, a restart, or its end.
    Broken,
}

/// One request as the double saw it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Counts from 0 over the life of the double.
    pub number: u64,
    /// The method.
    pub method: String,
    /// The path as sent.
    pub path: String,
    /// Request line and headers as sent.
    pub head: Bytes,
    /// The body; at most its first mebibyte.
    pub body: Bytes,
    /// When it was read.
    pub received: Instant,
    /// When its first byte of reply was ready.
    pub first_byte: Option<Instant>,
    /// When it ended.
    pub ended: Option<Instant>,
    /// How it ended.
    pub outcome: Outcome,
    /// The fault that applied, by name.
    pub fault: Option<&'static str>,
}

impl Recorded {
    /// The value of a header, by name without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The body as JSON; null where it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Record {
    kept: Mutex<VecDeque<Recorded>>,
    next: AtomicU64,
    forbidden: Mutex<Vec<String>>,
    in_flight: AtomicUsize,
    max_in_flight: AtomicUsize,
    pub(crate) connections: AtomicU64,
}

impl Record {
    pub(crate) fn requests(&self) -> Vec<Recorded> {
        self.kept().iter().cloned().collect()
    }

    pub(crate) fn received(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    pub(crate) fn forbidden(&self) -> Vec<String> {
        self.forbidden.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn forbid(&self, what: String) {
        let mut list = self.forbidden.lock().unwrap_or_else(PoisonError::into_inner);
        // One is enough to fail a test; a hundred show a pattern.
        if list.len() < 100 {
            list.push(what);
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    pub(crate) fn max_in_flight(&self) -> usize {
        self.max_in_flight.load(Ordering::SeqCst)
    }

    /// Begins the record of a request; it counts as in flight when it is `work`.
    pub(crate) fn begin(self: &Arc<Self>, request: &Request, work: bool) -> Entry {
        let mut kept = self.kept();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let recorded = Recorded {
            number,
            method: request.method.clone(),
            path: request.path.clone(),
            head: request.head.clone(),
            body: request.body.slice(..request.body.len().min(MAX_BODY)),
            received: clock::now(),
            first_byte: None,
            ended: None,
            outcome: Outcome::Running,
            fault: None,
        };
        if kept.len() == MAX_REQUESTS {
            kept.pop_front();
        }
        kept.push_back(recorded);
        drop(kept);
        if work {
            let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
            self.max_in_flight.fetch_max(now, Ordering::SeqCst);
        }
        Entry { record: Arc::clone(self), number, flying: AtomicBool::new(work), outcome: None }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Recorded>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The record of one running request. Dropped without an outcome, the client has hung up.
#[derive(Debug)]
pub(crate) struct Entry {
    record: Arc<Record>,
    number: u64,
    flying: AtomicBool,
    outcome: Option<Outcome>,
}

impl Entry {
    /// Ends its being in flight: called before the last byte leaves, since the client may send its next request
    /// before we run again.
    pub(crate) fn land(&self) {
        if self.flying.swap(false, Ordering::SeqCst) {
            self.record.in_flight.fetch_sub(1, Ordering::SeqCst);
        }
    }

    pub(crate) fn first_byte(&self) {
        let now = clock::now();
        self.change(|recorded| {
            recorded.first_byte.get_or_insert(now);
        });
    }

    pub(crate) fn fault(&self, name: &'static str) {
        self.change(|recorded| recorded.fault = Some(name));
    }

    pub(crate) fn finish(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    fn change(&self, edit: impl FnOnce(&mut Recorded)) {
        let mut kept = self.record.kept();
        // Numbers are given in the order of the list.
        let first = kept.front().map_or(0, |recorded| recorded.number);
        let place = self.number.checked_sub(first).and_then(|place| usize::try_from(place).ok());
        if let Some(recorded) = place.and_then(|place| kept.get_mut(place)) {
            edit(recorded);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.land();
        let outcome = self.outcome.take().unwrap_or(Outcome::HungUp);
        let now = clock::now();
        self.change(|recorded| {
            recorded.ended = Some(now);
            recorded.outcome = outcome;
        });
    }
}
