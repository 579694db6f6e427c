//! Attempts that are over, in the order in which they may be forgotten.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{Admission, KNOWN_AFTER_ACK, Key, MAX_KNOWN, state::State};

/// What may be forgotten. It may name attempts that have been forgotten, or acknowledged, since.
#[derive(Debug, Default)]
pub(super) struct Past {
    acknowledged: VecDeque<(Instant, Key)>,
    without_result: VecDeque<Key>,
}

impl Past {
    /// The attempt is acknowledged: nobody asks for it any more.
    pub(super) fn acknowledged(&mut self, key: Key, now: Instant) {
        self.acknowledged.push_back((now, key));
        bounded(&mut self.acknowledged);
    }

    /// The attempt has failed or was refused, and whoever sent it may still ask how.
    pub(super) fn without_result(&mut self, key: Key) {
        self.without_result.push_back(key);
        bounded(&mut self.without_result);
    }

    /// Takes out one whose time is over.
    pub(super) fn over(&mut self, now: Instant) -> Option<Key> {
        self.acknowledged.pop_front_if(|(at, _)| now >= *at + KNOWN_AFTER_ACK).map(|(_, key)| key)
    }

    /// Takes out the one to forget first where room is needed.
    pub(super) fn next(&mut self) -> Option<Key> {
        self.acknowledged.pop_front().map(|(_, key)| key).or_else(|| self.without_result.pop_front())
    }
}

impl Admission {
    pub(super) fn forget_what_is_over(&mut self, now: Instant) {
        while let Some(key) = self.past.over(now) {
            self.forget_past(key);
        }
    }

    /// Says whether one more attempt can be remembered; forgets what is in its way and may be.
    pub(super) fn can_remember(&mut self) -> bool {
        while self.known.len() >= MAX_KNOWN {
            let Some(key) = self.past.next() else { return false };
            self.forget_past(key);
        }
        true
    }

    /// Forgets an attempt that may be: since its turn came up it may have been executed anew.
    fn forget_past(&mut self, key: Key) {
        if matches!(self.known.get(&key), Some(State::Acknowledged | State::Failed(_) | State::Refused(_))) {
            self.forget(key);
        }
    }
}

/// Twice as many as are known: one that failed is named again when it is acknowledged.
fn bounded<T>(list: &mut VecDeque<T>) {
    if list.len() > 2 * MAX_KNOWN {
        list.pop_front();
    }
}
