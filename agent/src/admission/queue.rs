//! What waits at this install: whose turn it is, who finds a place, and what those that wait are told.

use std::collections::{BTreeSet, VecDeque};

use tokio::time::Instant;
use tropa_proto::{
    bounded::Text,
    id::{AgentId, JobId},
    message::{Place, Refusal},
};

use super::{
    Action, Admission, Key, MAX_JOBS, MAX_WAITING,
    state::{Lane, State},
};

impl Admission {
    /// Chooses the next attempt: coordinators in turn, after the one served last, in the order of their ids.
    ///
    /// While a turn lasts, one with the same runner options goes first. One with other options starts only when
    /// nothing runs, because it makes Ollama load anew; and one whose coordinator wants fewer at the engine starts only
    /// when so few run. Nobody passes it meanwhile.
    pub(super) fn choose(&self, now: Instant) -> Option<Key> {
        let after = self.queues.iter().filter(|(peer, _)| Some(**peer) > self.last);
        let before = self.queues.iter().filter(|(peer, _)| Some(**peer) <= self.last);
        let heads = after.chain(before).filter_map(|(peer, queue)| Some((*peer, *queue.front()?)));
        let heads: Vec<(Key, &str)> = heads.filter_map(|key| Some((key, self.runner_of(&key)?))).collect();
        let same = self.turn.as_ref().and_then(|(runner, since)| {
            let lasts = now < *since + self.turn_lasts;
            heads.iter().find(|(_, wanted)| lasts && wanted == runner)
        });
        let (key, wanted) = same.or(heads.first())?;
        let fits = self.running.iter().all(|key| self.runner_of(key) == Some(*wanted));
        (fits && self.running.len() < self.at_once_of(key)).then_some(*key)
    }

    /// How many at once a coordinator wants is what it said last: what waits of the same job and runner follows, so that
    /// one sent before the width grew holds nobody up.
    pub(super) fn follow_newest(&mut self, (peer, attempt): &Key, runner: &str, at_once: usize) {
        for waiting in self.queues.get(peer).into_iter().flatten().filter(|one| one.job == attempt.job) {
            if let Some(State::Queued(queued)) = self.known.get_mut(&(*peer, *waiting))
                && queued.runner == runner
            {
                queued.at_once = at_once;
            }
        }
    }

    pub(super) fn at_once_of(&self, key: &Key) -> usize {
        match self.known.get(key) {
            Some(State::Queued(queued)) => queued.at_once,
            Some(
                State::Running { .. }
                | State::Checking
                | State::Done
                | State::Failed(_)
                | State::Refused(_)
                | State::Acknowledged,
            )
            | None => 0,
        }
    }

    pub(super) fn runner_of(&self, key: &Key) -> Option<&str> {
        match self.known.get(key)? {
            State::Queued(queued) => Some(&queued.runner),
            State::Running { runner } => Some(runner),
            State::Checking | State::Done | State::Failed(_) | State::Refused(_) | State::Acknowledged => {
                None
            }
        }
    }

    /// Says whether an attempt finds a place: its peer's next, or one that becomes a running one as soon as the
    /// devices are ours; and whether so many may wait, of so many jobs.
    pub(super) fn has_place(&self, (peer, attempt): &Key, at_once: usize) -> bool {
        let held = self.queues.get(peer).map_or(0, VecDeque::len);
        let free_at_engine = self.width.min(at_once).saturating_sub(self.running.len());
        let jobs = self.open_jobs(*peer);
        held < 1 + free_at_engine
            && self.queued() < MAX_WAITING
            && (jobs.len() < MAX_JOBS || jobs.contains(&attempt.job))
    }

    /// The jobs of a coordinator of which something waits or runs.
    fn open_jobs(&self, peer: AgentId) -> BTreeSet<JobId> {
        let waiting = self.queues.get(&peer).into_iter().flatten();
        let running = self.running.iter().filter(|key| key.0 == peer).map(|(_, attempt)| attempt);
        waiting.chain(running).map(|attempt| attempt.job).collect()
    }

    pub(super) fn place_of_queued(&self) -> Place {
        match &self.lane {
            Lane::Asked { holder: Some(holder) } => Place::Waiting(Text::cut(holder)),
            Lane::Settling { .. } => Place::Settling,
            Lane::Free | Lane::Asked { holder: None } | Lane::Held { .. } | Lane::Yielding { .. } => {
                Place::Next
            }
        }
    }

    pub(super) fn tell_queued(&self, place: &Place, actions: &mut Vec<Action>) {
        for key in self.queued_keys() {
            actions.push(Action::Accept(key, place.clone()));
        }
    }

    pub(super) fn mark_waiting(&mut self, now: Instant) {
        for key in self.queued_keys() {
            if let Some(State::Queued(queued)) = self.known.get_mut(&key) {
                queued.waits.get_or_insert(now);
            }
        }
    }

    /// Gives everything that has not started back to its coordinator.
    pub(super) fn give_back(&mut self, why: &Refusal, actions: &mut Vec<Action>) {
        for key in self.queued_keys() {
            self.unqueue(key);
            self.refuse(key, why.clone(), actions);
        }
    }

    pub(super) fn queued_keys(&self) -> Vec<Key> {
        self.queues.iter().flat_map(|(peer, queue)| queue.iter().map(|attempt| (*peer, *attempt))).collect()
    }

    pub(super) fn unqueue(&mut self, key: Key) {
        if let Some(queue) = self.queues.get_mut(&key.0) {
            queue.retain(|attempt| *attempt != key.1);
            if queue.is_empty() {
                self.queues.remove(&key.0);
            }
        }
    }
}
