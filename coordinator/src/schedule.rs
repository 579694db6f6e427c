//! Decides which chunk runs where: `handle(event, now)` returns actions, and nothing here reads a clock or a socket.
//!
//! The rule of tropa lives in `Schedule::free_places` (`dispatch.rs`): an install gets work only while no *rival*, an
//! install whose lane shares a device with its own, holds any. There is no sequential and no parallel mode; both
//! follow. `check.rs` proves the rule again from scratch after every event, by code that did not make the decision.
//!
//! An attempt goes through `Recording` (its row is on its way to the disk), `Recorded`, `Sent`, and ends. One
//! attempt beyond the width is sent ahead, so that a lane never waits for the network; more are recorded ahead
//! where chunks are shorter than a sync of the disk.
//!
//! Among those who may work, chunks go where they are finished first (`forecast.rs`), by speeds that the answers tell
//! (`pace.rs`); an install works on as many at once as it gains from (`width.rs`); one that has nothing left helps those
//! that are late (`spare.rs`).

mod budget;
mod change;
mod check;
mod cores;
mod dispatch;
mod ended;
mod forecast;
mod holdings;
mod interface;
mod learned;
mod missing;
mod needs;
mod pace;
mod placing;
mod questions;
mod reattach;
mod seen;
mod spare;
mod standing;
mod waiting;
mod width;
mod work;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_proto::{
    failure::Class,
    id::{AgentId, AttemptId, ChunkIndex, Incarnation, JobId},
    message::Place,
    random::Random,
};

use self::{
    holdings::{Holdings, Stage},
    missing::Missing,
    needs::Needs,
    standing::{Standing, smoothed},
    waiting::Waiting,
    work::Sizes,
};

pub use self::{
    budget::{History, Verdict},
    change::Left,
    check::Violation,
    interface::{Action, Event, Install, Largest, ModelIndex, Unplaced},
    missing::Doubt,
    pace::{Pace, Sample},
    reattach::Reattached,
    width::Width,
    work::{Kind, Work},
};

/// Time of one synced commit before any has been measured: two syncs of an ordinary disk.
const RECORD_TIME: Duration = Duration::from_millis(8);

/// The state of a job's chunks and of the installs that work on them.
#[derive(Debug)]
pub struct Schedule {
    job: JobId,
    status: Vec<Status>,
    works: Vec<Work>,
    /// The longest answer that a chunk of each kind asks for, in tokens.
    longest: BTreeMap<Kind, u32>,
    /// Chunks that have not been tried.
    waiting: Waiting,
    /// Chunks that run again, and what has happened to chunks that were tried.
    retries: BTreeSet<ChunkIndex>,
    history: BTreeMap<ChunkIndex, History>,
    sizes: Sizes,
    /// How fast all installs are on the whole with each model.
    typical: BTreeMap<ModelIndex, Pace>,
    /// Draws the pauses of busy installs.
    random: Random,
    /// Chunks of the usual size that all installs finish in a second, as added up at this time.
    rate: f64,
    rate_at: Option<Duration>,
    /// How many installs were given each kind last.
    at_kind: BTreeMap<Kind, usize>,
    /// Installs with a free place that found nothing to take, and when they look again.
    idle: BTreeSet<AgentId>,
    look_at: Option<Duration>,
    backups: bool,
    holdings: Holdings,
    /// Attempts of a predecessor whose agent has not been seen.
    orphans: BTreeMap<AttemptId, (AgentId, Incarnation)>,
    /// Failures that a predecessor did not get to write.
    fails: Vec<(AttemptId, Class)>,
    /// Attempts that were lost and may still run.
    missing: BTreeMap<AttemptId, Missing>,
    /// Which chunks build on which.
    needs: Needs,
    installs: BTreeMap<AgentId, Install>,
    /// The unguarded rivals of every install that was ever seen: they stay rivals when its agent is out of reach.
    unguarded: BTreeMap<AgentId, BTreeSet<AgentId>>,
    /// Everybody who is or has an unguarded rival.
    lockless: BTreeSet<AgentId>,
    /// What is known of every install that was ever seen or heard of.
    standing: BTreeMap<AgentId, Standing>,
    /// Agents that are suspect or dead: nothing new goes there, and nothing is asked of them.
    away: BTreeSet<AgentId>,
    /// Rivals that were both at work when the roster found them to be rivals.
    surprises: BTreeSet<(AgentId, AgentId)>,
    /// Installs that something has changed for since the last dispatch.
    woken: BTreeSet<AgentId>,
    /// When the next pause of an install ends.
    wakes_at: Option<Duration>,
    unfinished: usize,
    finishing: usize,
    paused: bool,
    stopped: bool,
    record_time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// It waits, or is being tried.
    Open,
    /// Its result or failure is on its way to the disk.
    Finished,
    /// It is on disk.
    Closed,
}

impl Schedule {
    /// Starts with chunks `0..models.len()`, each with its model, of no known size; all are open.
    #[must_use]
    pub fn new(job: JobId, models: Vec<ModelIndex>) -> Self {
        Self::of(job, models.into_iter().map(|model| Work { model, ..Work::default() }).collect())
    }

    /// Starts with chunks `0..works.len()`; all are open.
    #[must_use]
    pub fn of(job: JobId, works: Vec<Work>) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = job.0;
        let mut waiting = Waiting::default();
        for (index, work) in (0..).zip(&works) {
            waiting.add((Reverse(0), ChunkIndex(index)), work);
        }
        let mut longest = BTreeMap::new();
        for work in &works {
            let most: &mut u32 = longest.entry(work.kind()).or_default();
            *most = work.output_tokens.max(*most);
        }
        Self {
            job,
            longest,
            status: vec![Status::Open; works.len()],
            waiting,
            sizes: Sizes::default(),
            typical: BTreeMap::new(),
            random: Random::new(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
            rate: f64::INFINITY,
            rate_at: None,
            at_kind: BTreeMap::new(),
            idle: BTreeSet::new(),
            look_at: None,
            backups: true,
            retries: BTreeSet::new(),
            history: BTreeMap::new(),
            unfinished: works.len(),
            finishing: 0,
            works,
            holdings: Holdings::default(),
            orphans: BTreeMap::new(),
            fails: Vec::new(),
            missing: BTreeMap::new(),
            needs: Needs::default(),
            unguarded: BTreeMap::new(),
            lockless: BTreeSet::new(),
            installs: BTreeMap::new(),
            standing: BTreeMap::new(),
            away: BTreeSet::new(),
            surprises: BTreeSet::new(),
            woken: BTreeSet::new(),
            wakes_at: None,
            paused: false,
            stopped: false,
            record_time: RECORD_TIME,
        }
    }

    /// Gives no backup attempts: what is late is waited for.
    #[must_use]
    pub fn without_backups(mut self) -> Self {
        self.backups = false;
        self
    }

    /// Draws its pauses from this seed instead of the job's own number.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.random = Random::new(seed);
        self
    }

    /// Takes an event and returns what follows from it, in the order in which it is to be done.
    ///
    /// # Panics
    /// In debug builds when the independent check finds that two rivals hold work: a bug of this module.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        for (attempt, class) in std::mem::take(&mut self.fails) {
            self.needs.fails(attempt.chunk);
            actions.push(Action::Fail(attempt.chunk, attempt, class));
        }
        match event {
            Event::Roster(installs) => self.on_roster(installs, now, &mut actions),
            Event::Recorded(attempt) => self.on_recorded(attempt, now),
            Event::Accepted(attempt, Place::Checking) => self.on_checking(attempt, now),
            Event::Accepted(attempt, place) => self.on_accepted(attempt, &place, now),
            Event::Refused(attempt, refusal) => self.on_refused(attempt, &refusal, now, &mut actions),
            Event::Tokens(attempt, count) => {
                if let Some(active) = self.holdings.get_mut(&attempt) {
                    active.wrote(count, now);
                }
            }
            Event::Measured(attempt, sample) => self.on_measured(attempt, &sample, now),
            Event::Remembered(agent, model, pace, width) => self.on_remembered((agent, model), pace, width),
            Event::Finished(attempt) => self.on_finished(attempt, now, &mut actions),
            Event::Failed(attempt, reason) => {
                self.on_ended(attempt, (reason.class(), Some(reason)), now, &mut actions);
            }
            Event::Lost(attempt) => self.on_ended(attempt, (Class::Lost, None), now, &mut actions),
            Event::Detached(attempt) => self.on_detached(attempt, now, &mut actions),
            Event::Suspect(agent) => {
                self.away.insert(agent);
            }
            Event::Alive(agent) => self.on_alive(agent),
            Event::Dead(agent) => self.on_dead(agent, now, &mut actions),
            Event::Reattached(said) => self.on_reattached(&said, now, &mut actions),
            Event::Committed(chunk) => {
                self.close(chunk);
                self.passed_on(chunk);
            }
            Event::Filled(chunk) => self.on_filled(chunk),
            Event::Unfit(chunk) => self.on_unfit(chunk),
            Event::Paused(paused) => {
                self.paused = paused;
                self.wake_all();
            }
            Event::Stop => self.stop(&mut actions),
            Event::CallOff => {
                self.stop(&mut actions);
                self.call_off(&mut actions);
            }
            Event::Tick => self.wake_all(),
        }
        self.give_up_orphans(now, &mut actions);
        self.follow_needs(&mut actions);
        self.recall(now, &mut actions);
        if self.wakes_at.is_some_and(|at| at <= now) {
            self.wakes_at = self.pauses_end(now);
            for standing in self.standing.values_mut().filter(|standing| standing.pause_until <= now) {
                standing.closed_for = None;
            }
            self.wake_all();
        }
        self.dispatch(now, &mut actions);
        if cfg!(debug_assertions)
            && let Err(violation) = self.check()
        {
            panic!("the schedule broke its own rule: {violation}");
        }
        actions
    }

    fn on_recorded(&mut self, attempt: AttemptId, now: Duration) {
        if let Some(active) = self.holdings.get_mut(&attempt)
            && active.stage == Stage::Recording
        {
            active.stage = Stage::Recorded;
            self.record_time = smoothed(self.record_time, now.saturating_sub(active.since));
            active.since = now;
            self.woken.insert(active.agent);
        }
    }

    fn on_accepted(&mut self, attempt: AttemptId, place: &Place, now: Duration) {
        let Some(active) = self.holdings.get_mut(&attempt) else { return };
        let ran = std::mem::replace(&mut active.running, *place == Place::Running);
        if active.running {
            active.running_since.get_or_insert(now);
            // It had begun before it could be given back.
            if active.stage == Stage::Returning {
                active.stage = Stage::Sent;
            }
            let agent = active.agent;
            if !ran {
                self.standing.entry(agent).or_default().began();
                self.woken.insert(agent);
            }
            self.settled(agent);
        }
    }

    /// The engine is done with it, so its place and its devices are free, whatever the check says.
    fn on_checking(&mut self, attempt: AttemptId, now: Duration) {
        if let Some(agent) = self.holdings.release(&attempt) {
            self.standing.entry(agent).or_default().paced(now);
            self.freed(agent);
        }
    }

    fn on_finished(&mut self, attempt: AttemptId, now: Duration, actions: &mut Vec<Action>) {
        if let Some(active) = self.holdings.remove(&attempt) {
            self.standing.entry(active.agent).or_default().finished();
            self.freed(active.agent);
        }
        self.orphans.remove(&attempt);
        self.heard(attempt, None, now);
        if self.status(attempt.chunk) == Some(Status::Open) {
            self.retries.remove(&attempt.chunk);
            self.finish(attempt.chunk);
            actions.push(Action::Commit(attempt));
            self.cancel_others(attempt, actions);
        } else {
            actions.push(Action::Drop(attempt));
        }
    }

    /// The chunk is decided: what else of it is on its way is of no use any more.
    fn cancel_others(&mut self, attempt: AttemptId, actions: &mut Vec<Action>) {
        let others: Vec<AttemptId> = self.holdings.of_chunk(attempt).collect();
        for other in others {
            match self.holdings.get_mut(&other) {
                Some(active) if active.is_unsent() => self.take_back(other, actions),
                Some(active) if matches!(active.stage, Stage::Sent | Stage::Returning) => {
                    active.stage = Stage::Cancelling;
                    actions.push(Action::Cancel(other, active.agent));
                }
                Some(_) | None => {}
            }
        }
    }

    fn stop(&mut self, actions: &mut Vec<Action>) {
        self.stopped = true;
        let unsent = self.holdings.iter().filter(|(_, active)| active.is_unsent());
        let unsent: Vec<AttemptId> = unsent.map(|(attempt, _)| *attempt).collect();
        for attempt in unsent {
            self.take_back(attempt, actions);
        }
    }

    /// Cancels all that was sent; its chunks wait again.
    fn call_off(&mut self, actions: &mut Vec<Action>) {
        let sent = self.holdings.iter().filter(|(_, active)| active.occupies());
        let sent: Vec<AttemptId> = sent.map(|(attempt, _)| *attempt).collect();
        for attempt in sent {
            if let Some(active) = self.holdings.get_mut(&attempt)
                && active.stage != Stage::Cancelling
            {
                active.stage = Stage::Cancelling;
                actions.push(Action::Cancel(attempt, active.agent));
            }
        }
    }

    /// This install holds one attempt fewer: it and its rivals may get something.
    fn freed(&mut self, agent: AgentId) {
        self.woken.insert(agent);
        let Some(install) = self.installs.get(&agent) else { return };
        if !install.unplaced.both.is_empty() && !self.loads(&agent) {
            self.woken.extend(&install.unplaced.both);
        }
        if !self.holdings.holds(&agent) {
            self.woken.extend(&install.rivals);
            self.woken.extend(self.holdings.crews().waited_for(&agent));
        }
    }

    fn wake_all(&mut self) {
        self.woken.extend(self.installs.keys());
    }

    fn finish(&mut self, chunk: ChunkIndex) {
        if let Some(status) = self.status.get_mut(chunk.0 as usize)
            && *status == Status::Open
        {
            *status = Status::Finished;
            self.finishing += 1;
        }
    }

    fn close(&mut self, chunk: ChunkIndex) {
        let Some(status) = self.status.get_mut(chunk.0 as usize) else { return };
        let before = std::mem::replace(status, Status::Closed);
        self.finishing -= usize::from(before == Status::Finished);
        self.unfinished -= usize::from(before != Status::Closed);
    }
}
