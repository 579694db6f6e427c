//! Who may work at this install, and in which order: a pure function of events and time.
//!
//! The install holds at most *width* attempts, whoever sent them, and beside them one next attempt for each
//! coordinator, which lies ready so that the install never waits for the network. Nothing starts unless the locks
//! of the lane's devices are held and whatever may still run from before has been settled. The driver
//! (`execute.rs`) performs the actions; nothing here reads a clock, opens a file or sends a byte.
//!
//! An attempt belongs to the agent id that sent it: the same number from another peer is another attempt, so
//! nobody can cancel, read or acknowledge what is not his. Every attempt of this incarnation stays known, so that
//! a `Run` that comes twice is executed once (`reliability.md` §3).

mod event;
mod health;
mod intake;
mod lane;
mod lease;
mod past;
mod queue;
mod rate;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;
use tropa_proto::{
    bounded::{Content, Text},
    failure::Reason,
    id::{AgentId, AttemptId, ChunkIndex, Incarnation, JobId},
    message::{Failure, Place, Refusal},
    permit::{Denial, Rule},
};

pub use self::{
    event::{Action, Event, Holding, Key, Unfit},
    lease::LEASE,
};
use self::{
    health::Health,
    lease::Leases,
    past::Past,
    rate::Rate,
    state::{Lane, State},
};

/// Attempts that stay known: a day of work at one a second, and some 20 MiB at most. Beyond it what is acknowledged is
/// forgotten first and then what has failed, the earliest first; a result that waits never is: the next `Run` is refused
/// instead (`security.md` §6).
pub const MAX_KNOWN: usize = 65_536;

/// How long an attempt stays known after its `Ack`: longer than any `Run` is under way (`security.md` §6).
pub const KNOWN_AFTER_ACK: Duration = Duration::from_secs(600);

/// Attempts that may wait here, of all coordinators: each brings a body of up to 1 MiB (`security.md` §6).
pub const MAX_WAITING: usize = 64;

/// Jobs of one coordinator that may have something open here at once (`security.md` §6).
pub const MAX_JOBS: usize = 8;

/// Attempts whose digest is still being checked. While so many wait, the engine is not answering its control
/// calls, and nothing new starts.
const MAX_CHECKING: usize = 256;

/// How long an install keeps its lane while somebody else waits for it (`reliability.md` §8.2), and how long one
/// coordinator's runner options stay when another wants different ones, which reload the model (§8.3).
pub const TURN: Duration = Duration::from_secs(60);

/// How long the locks are kept with nothing to do: a coordinator's next order is on its way.
pub const LINGER: Duration = Duration::from_millis(20);

/// How often a lane that is past its turn looks whether somebody waits.
const LOOK: Duration = Duration::from_secs(1);

/// When a coordinator that found all places taken may ask again: a quarter of the shortest usual chunk.
const RETRY_MS: u32 = 250;

/// The state of admission at one install.
#[derive(Debug)]
pub struct Admission {
    incarnation: Incarnation,
    /// What the operator declared, else as much as coordinators may measure.
    width: usize,
    known: BTreeMap<Key, State>,
    /// Those known that wait for something: for a place, for their end, or for their `Ack`.
    held: BTreeSet<Key>,
    leases: Leases,
    /// What may be forgotten, and in which order.
    past: Past,
    queues: BTreeMap<AgentId, VecDeque<AttemptId>>,
    running: BTreeSet<Key>,
    checking: usize,
    /// Attempts that need all devices of the install, since nobody knows where their models will be loaded.
    unplaced: BTreeSet<Key>,
    /// The lane was asked for, or is held, with all devices of the install.
    all_devices: bool,
    lane: Lane,
    /// Something has to be settled as soon as the lane is not settling already.
    unsettled: bool,
    health: Health,
    draining: Option<String>,
    /// The rule by which nothing is taken at present.
    shut: Option<Denial>,
    rate: Rate,
    /// Who was served last, and whose runner options have the turn since when.
    last: Option<AgentId>,
    turn: Option<(String, Instant)>,
    turn_lasts: Duration,
}

impl Admission {
    /// Makes the admission of an install that nothing runs at. A width of 0 counts as 1.
    #[must_use]
    pub fn new(incarnation: Incarnation, width: usize) -> Self {
        Self {
            incarnation,
            width: width.max(1),
            known: BTreeMap::new(),
            held: BTreeSet::new(),
            leases: Leases::default(),
            past: Past::default(),
            queues: BTreeMap::new(),
            running: BTreeSet::new(),
            checking: 0,
            unplaced: BTreeSet::new(),
            all_devices: false,
            lane: Lane::Free,
            unsettled: false,
            health: Health::default(),
            draining: None,
            shut: None,
            rate: Rate::default(),
            last: None,
            turn: None,
            turn_lasts: TURN,
        }
    }

    /// Makes turns last so long instead of [`TURN`].
    #[must_use]
    pub fn with_turns_of(self, turn_lasts: Duration) -> Self {
        Self { turn_lasts, ..self }
    }

    /// Lets so many attempts start in an hour; 0: any.
    #[must_use]
    pub fn with_rate(self, most: u32) -> Self {
        Self { rate: Rate::new(most), ..self }
    }

    /// Says when attempts may start again, where as many have started as may in an hour.
    #[must_use]
    pub fn used_up_until(&self, now: Instant) -> Option<Instant> {
        self.rate.used_up_until(now)
    }

    /// Says which attempts need all devices of the install instead of those of what is loaded: their models are not
    /// loaded, and may be loaded anywhere. Without this call all are content with the lane as it is taken.
    pub fn place(&mut self, unplaced: BTreeSet<Key>) {
        self.unplaced = unplaced;
    }

    /// Says whether the lane that is asked for or held takes all devices of the install.
    #[must_use]
    pub fn takes_all(&self) -> bool {
        self.all_devices
    }

    /// Gives how many attempts are at the engine.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Gives how many attempts wait for a place.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }

    /// Gives how many attempts have ended at the engine and are still being checked.
    #[must_use]
    pub fn checking(&self) -> usize {
        self.checking
    }

    /// Says whether the engine has failed with two chunks one after the other, and has written no token since.
    #[must_use]
    pub fn is_ill(&self) -> bool {
        !self.health.is_well()
    }

    /// Says whether something is being settled.
    #[must_use]
    pub fn is_settling(&self) -> bool {
        matches!(self.lane, Lane::Settling { .. })
    }

    /// Says whether the attempt is known, so that its body need not be read again.
    #[must_use]
    pub fn knows(&self, key: &Key) -> bool {
        self.known.contains_key(key)
    }

    /// Says whether the attempt is taken in and has not ended.
    #[must_use]
    pub fn is_open(&self, key: &Key) -> bool {
        matches!(self.known.get(key), Some(State::Queued(_) | State::Running { .. } | State::Checking))
    }

    /// Gives what is held of one job of one sender, in order: what has not ended and what waits for its `Ack`.
    pub fn held(&self, peer: AgentId, job: JobId) -> impl Iterator<Item = Holding> {
        let first = AttemptId { job, chunk: ChunkIndex(0), no: 0 };
        let last = AttemptId { job, chunk: ChunkIndex(u32::MAX), no: u32::MAX };
        self.held.range((peer, first)..=(peer, last)).filter_map(|key| {
            let attempt = key.1;
            match self.known.get(key)? {
                State::Queued(_) => Some(Holding::Open { attempt, running: false }),
                State::Running { .. } => Some(Holding::Open { attempt, running: true }),
                State::Checking => Some(Holding::Open { attempt, running: false }),
                State::Done | State::Failed(_) => Some(Holding::Ended(attempt)),
                State::Refused(_) | State::Acknowledged => None,
            }
        })
    }

    /// Gives the time of the next [`Event::Tick`] that matters.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.lane_deadline().into_iter().chain(self.leases.next_end()).chain(self.health.rests_until()).min()
    }

    /// Takes an event in and says what is to be done about it.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut taken_in = None;
        self.forget_what_is_over(now);
        self.health.rested(now);
        if let Some((peer, job)) = event.sender() {
            self.leases.heard(peer, job, now);
        }
        match event {
            Event::Run { key, incarnation, runner, at_once, room } => {
                self.run(key, incarnation, runner.map(|runner| (runner, at_once)), room, now, &mut actions);
                taken_in = actions.is_empty().then_some(key);
            }
            Event::Cancel(key) => self.cancel(key, &mut actions),
            Event::TakeBack(key) => match self.known.get(&key) {
                Some(state @ State::Running { .. }) => actions.push(self.present(key, state)),
                Some(_) | None => self.cancel(key, &mut actions),
            },
            Event::Ack(key) => self.acknowledge(key, now, &mut actions),
            Event::Fetch(key) => actions.push(match self.known.get(&key) {
                Some(state) if *state != State::Acknowledged => self.present(key, state),
                Some(_) | None => Action::Refuse(key, Refusal::Unknown),
            }),
            Event::Renew(..) => {}
            Event::LaneBlocked(_) if !matches!(self.lane, Lane::Asked { .. }) => {}
            Event::LaneBlocked(holder) => {
                let place = Place::Waiting(Text::cut(&holder));
                self.lane = Lane::Asked { holder: Some(holder) };
                self.tell_queued(&place, &mut actions);
            }
            Event::LaneHeld { .. } if !matches!(self.lane, Lane::Asked { .. }) => {}
            Event::LaneHeld { dirty } => {
                self.lane = Lane::Held { since: now, idle: None, look: now + self.turn_lasts };
                self.unsettled |= dirty;
            }
            Event::LaneFailed(why) => {
                self.lane = Lane::Free;
                self.health.put_off();
                self.give_back(&Refusal::Draining(Text::cut(&why)), &mut actions);
            }
            Event::Settled => {
                if let Lane::Settling { since } = self.lane {
                    self.lane = Lane::Held { since, idle: None, look: (since + self.turn_lasts).max(now) };
                }
            }
            Event::NotStarted(key, why) => {
                self.running.remove(&key);
                self.refuse(key, Refusal::Draining(Text::cut(&why)), &mut actions);
                // The locks are not what they were; with new ones the next attempt may fare better.
                if let Lane::Held { since, .. } = self.lane {
                    self.lane = Lane::Yielding { since };
                }
            }
            Event::Ended { key, may_run } => {
                if self.running.remove(&key) {
                    self.checking += 1;
                    self.known.insert(key, State::Checking);
                    if !may_run {
                        actions.push(Action::Accept(key, Place::Checking));
                    }
                }
                self.unsettled |= may_run;
            }
            Event::Finished(key, failure) => self.finished(key, failure, &mut actions),
            Event::Broke { key, may_run, failure } => {
                if self.running.remove(&key) {
                    self.checking += 1;
                    self.known.insert(key, State::Checking);
                }
                self.unsettled |= may_run;
                self.finished(key, Some(failure), &mut actions);
            }
            Event::Probed { works, may_run } => {
                self.health.probed(works, now);
                self.unsettled |= may_run;
            }
            Event::Expired(key) => {
                if self.known.get(&key) == Some(&State::Done) {
                    let failure = failure(Reason::Cancelled, "the result was kept for its time and given up");
                    self.known.insert(key, State::Failed(Box::new(failure)));
                    self.past.without_result(key);
                }
            }
            Event::Drain(why) => {
                self.give_back(&Refusal::Draining(Text::cut(&why)), &mut actions);
                self.draining = Some(why);
            }
            Event::Shut(denial) => {
                if let Some(denial) = &denial {
                    self.give_back(&Refusal::Denied(denial.text()), &mut actions);
                }
                self.shut = denial;
            }
            Event::Placed { someone_waits } => self.placed(someone_waits),
            Event::Tick { someone_waits, displaced } => self.tick(someone_waits, displaced, now),
        }
        self.drop_orphaned(now, &mut actions);
        self.move_on(now, &mut actions);
        // One that started at once has been told so; one that waits is told now.
        if let Some(key) = taken_in
            && matches!(self.known.get(&key), Some(State::Queued(_)))
        {
            actions.push(Action::Accept(key, self.place_of_queued()));
        }
        actions
    }

    /// An attempt is over: its result is in the outbox, or this is why there is none.
    fn finished(&mut self, key: Key, failure: Option<Failure>, actions: &mut Vec<Action>) {
        if self.known.get(&key) != Some(&State::Checking) {
            return;
        }
        self.checking -= 1;
        // Whoever waits wants the engine to be probed; without anybody it has time.
        if self.health.ended(&key, failure.as_ref())
            && self.queued() > 0
            && let Some(refusal) = self.health.refusal()
        {
            self.give_back(&refusal, actions);
        }
        match failure {
            None => {
                self.end(key, State::Done);
                actions.push(Action::Deliver(key));
            }
            Some(failure) => self.fail(key, failure, actions),
        }
    }

    /// Says where a known attempt is.
    fn present(&self, key: Key, state: &State) -> Action {
        match state {
            State::Queued(_) => Action::Accept(key, self.place_of_queued()),
            State::Running { .. } => Action::Accept(key, Place::Running),
            State::Checking => Action::Accept(key, Place::Checking),
            State::Done => Action::Deliver(key),
            State::Failed(failure) => Action::Fail(key, failure.as_ref().clone()),
            State::Refused(refusal) => Action::Refuse(key, refusal.as_ref().clone()),
            State::Acknowledged => Action::Fail(key, failure(Reason::Cancelled, "it was acknowledged")),
        }
    }

    /// What has not started and belongs to a coordinator that has been silent is given up: it may start again
    /// without having been executed. What runs goes on, what has ended waits (`reliability.md` §4).
    fn drop_orphaned(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.leases.is_empty() {
            return;
        }
        let queues = &self.queues;
        let queued = |peer: &AgentId, job: &JobId| {
            queues.get(peer).is_some_and(|queue| queue.iter().any(|attempt| attempt.job == *job))
        };
        for (peer, job) in self.leases.expire(now, queued) {
            let of_job = self.queued_keys().into_iter().filter(|key| (key.0, key.1.job) == (peer, job));
            for key in of_job.collect::<Vec<_>>() {
                self.unqueue(key);
                self.forget(key);
                actions.push(Action::Refuse(key, Refusal::Unknown));
            }
        }
    }

    fn forget(&mut self, key: Key) {
        self.known.remove(&key);
        self.held.remove(&key);
    }

    fn cancel(&mut self, key: Key, actions: &mut Vec<Action>) {
        match self.known.get(&key) {
            Some(State::Queued(_)) => {
                self.unqueue(key);
                self.fail(key, failure(Reason::Cancelled, "cancelled before it started"), actions);
            }
            Some(State::Running { .. }) => actions.push(Action::HangUp(key)),
            Some(State::Done) => actions.push(Action::Deliver(key)),
            Some(State::Failed(failure)) => actions.push(Action::Fail(key, failure.as_ref().clone())),
            Some(State::Refused(refusal)) => actions.push(Action::Refuse(key, refusal.as_ref().clone())),
            Some(State::Checking | State::Acknowledged) => {}
            // Kept, so that a `Run` which arrives after its `Cancel` does not start.
            None => self.fail(key, failure(Reason::Cancelled, "cancelled before it arrived"), actions),
        }
    }

    fn acknowledge(&mut self, key: Key, now: Instant, actions: &mut Vec<Action>) {
        let state = self.known.get(&key);
        let discards = state == Some(&State::Done);
        let is_over = discards || matches!(state, Some(State::Failed(_) | State::Refused(_)));
        // One that is not known is kept, so that its `Run`, coming late, does not start what its coordinator counts as
        // ended.
        let keeps = state.is_none() && self.can_remember();
        if !is_over && !keeps {
            return;
        }
        self.known.insert(key, State::Acknowledged);
        self.held.remove(&key);
        self.past.acknowledged(key, now);
        actions.extend(discards.then_some(Action::Discard(key)));
    }

    fn start(&mut self, key: Key, now: Instant, actions: &mut Vec<Action>) {
        self.unqueue(key);
        let Some(State::Queued(queued)) = self.known.remove(&key) else { return };
        let waited = queued.waits.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let goes_on = self
            .turn
            .as_ref()
            .is_some_and(|(runner, since)| *runner == queued.runner && now < *since + self.turn_lasts);
        if !goes_on {
            self.turn = Some((queued.runner.clone(), now));
        }
        self.last = Some(key.0);
        self.rate.starts(now);
        self.known.insert(key, State::Running { runner: queued.runner });
        self.running.insert(key);
        actions.push(Action::Accept(key, Place::Running));
        actions.push(Action::Start { key, waited });
    }

    fn fail(&mut self, key: Key, mut failure: Failure, actions: &mut Vec<Action>) {
        actions.push(Action::Fail(key, failure.clone()));
        // The whole text is told once; what stays for those who ask again must fit 65,536 times.
        failure.detail = Content::cut(&failure.detail[..failure.detail.floor_char_boundary(256)]);
        // Where there is no room for one that was unknown, whoever asks again hears it again.
        if self.knows(&key) || self.can_remember() {
            self.end(key, State::Failed(Box::new(failure)));
            self.past.without_result(key);
        }
    }

    /// Says that an attempt is not taken, or given back before it started. That is kept: a `Run` that the network
    /// doubled or held up must not start what its coordinator counts as ended.
    fn refuse(&mut self, key: Key, refusal: Refusal, actions: &mut Vec<Action>) {
        self.held.remove(&key);
        // What is denied for good is denied again whenever it comes, and not worth a place.
        let is_for_good =
            matches!(&refusal, Refusal::Denied(denial) if !Rule::of(denial).is_some_and(Rule::passes));
        if self.knows(&key) || (!is_for_good && self.can_remember()) {
            self.known.insert(key, State::Refused(Box::new(refusal.clone())));
            self.past.without_result(key);
        }
        actions.push(Action::Refuse(key, refusal));
    }

    /// Notes an end.
    fn end(&mut self, key: Key, state: State) {
        self.known.insert(key, state);
        self.held.insert(key);
    }
}

fn failure(reason: Reason, what: &str) -> Failure {
    Failure { reason, detail: Content::cut(what), ms: 0 }
}

#[cfg(test)]
mod tests;
