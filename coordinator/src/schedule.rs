//! Decides which chunk runs where: `handle(event, now)` returns actions, and nothing here reads a clock or a socket.
//!
//! The rule of tropa lives in [`Schedule::free_places`]: an install gets work only while no *rival*, an install
//! whose lane shares a device with its own, holds any. There is no sequential and no parallel mode; both follow.
//! `check.rs` proves the rule again from scratch after every event, by code that did not make the decision.
//!
//! An attempt goes through `Recording` (its row is on its way to the disk), `Recorded`, `Sent`, and ends. One
//! attempt beyond the width is sent ahead, so that a lane never waits for the network; more are recorded ahead
//! where chunks are shorter than a sync of the disk.

mod budget;
mod check;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tropa_proto::{
    failure::{Class, Reason},
    id::{AgentId, AttemptId, ChunkIndex, Incarnation, JobId, MachineId},
    message::{Place, Refusal},
};

pub use budget::{History, Verdict};
pub use check::Violation;

/// A model of the job, by its place in the job's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelIndex(pub u16);

/// Attempts recorded ahead of need on one install, at most. At 0.3 ms a chunk and 8 ms a sync 27 are enough; more
/// only delays the moment when a slow install's share can go elsewhere.
const MAX_AHEAD: usize = 32;

/// After a restart, how long an attempt of the predecessor may wait for its agent to appear before it counts as
/// lost: three roster pulls (`libp2p.md` §3.4).
const ADOPTION_GRACE: Duration = Duration::from_secs(3);

/// First and longest pause of an install that refused as busy or failed twice in a row (`ollama-api.md` §4.1).
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// One install as the roster places it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// Its agent.
    pub agent: AgentId,
    /// The run of its agent.
    pub incarnation: Incarnation,
    /// Its machine.
    pub machine: MachineId,
    /// How many chunks it may work on at once, at least 1.
    pub width: usize,
    /// The models of the job that it has.
    pub models: BTreeSet<ModelIndex>,
    /// The model of the job that is loaded, which saves a load.
    pub warm: BTreeSet<ModelIndex>,
    /// The installs that share a device with it, itself not included. Symmetric over a roster.
    pub rivals: BTreeSet<AgentId>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The roster is now this, complete.
    Roster(Vec<Install>),
    /// The row of this attempt is on disk.
    Recorded(AttemptId),
    /// The agent has taken the attempt, or its place has changed.
    Accepted(AttemptId, Place),
    /// The agent has not taken it.
    Refused(AttemptId, Refusal),
    /// The engine has ended the attempt with a result, which is on its way to the disk.
    Finished(AttemptId),
    /// The attempt has ended without one.
    Failed(AttemptId, Reason),
    /// The stream of the attempt broke off, or its agent is gone.
    Lost(AttemptId),
    /// The chunk's result or failure is on disk.
    Committed(ChunkIndex),
    /// The journal cannot write (true) or can again (false).
    Paused(bool),
    /// Nothing new starts; what runs may end.
    Stop,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the row of this attempt, then say `Recorded`.
    Record(AttemptId, AgentId, Incarnation),
    /// Send `Run` to the agent.
    Send(AttemptId, AgentId),
    /// Send `Cancel` for it.
    Cancel(AttemptId, AgentId),
    /// Write that the attempt ended without a result.
    End(AttemptId, Class),
    /// Commit this as the chunk's typed failure.
    Fail(ChunkIndex, AttemptId, Class),
    /// Commit the result that `Finished` named.
    Commit(AttemptId),
    /// The result came too late: acknowledge it and drop it.
    Drop(AttemptId),
}

/// The state of a job's chunks and of the installs that work on them.
#[derive(Debug)]
pub struct Schedule {
    job: JobId,
    status: Vec<Status>,
    queues: BTreeMap<ModelIndex, VecDeque<ChunkIndex>>,
    /// Chunks that failed and may run again, with what has happened to them.
    retries: BTreeSet<ChunkIndex>,
    history: BTreeMap<ChunkIndex, History>,
    models: Vec<ModelIndex>,
    active: BTreeMap<AttemptId, Active>,
    orphans: BTreeMap<AttemptId, (AgentId, Incarnation)>,
    installs: BTreeMap<AgentId, Install>,
    standing: BTreeMap<AgentId, Standing>,
    /// Rivals that were both at work when the roster found them to be rivals.
    surprises: BTreeSet<(AgentId, AgentId)>,
    unfinished: usize,
    paused: bool,
    stopped: bool,
    record_time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Open,
    Finished,
    Closed,
}

#[derive(Clone, Debug)]
struct Active {
    agent: AgentId,
    stage: Stage,
    /// The agent says that it is at the engine.
    running: bool,
    /// It was sent by a predecessor of this coordinator.
    adopted: bool,
    since: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Recording,
    Recorded,
    Sent,
    Cancelling,
}

/// What the job has learned of one install.
#[derive(Clone, Debug, Default)]
struct Standing {
    failures_in_a_row: u32,
    pause_until: Duration,
    pauses: u32,
    /// It refused as another incarnation or as draining; the next roster may lift it.
    closed_for: Option<Incarnation>,
    without: BTreeSet<ModelIndex>,
    last_finish: Option<Duration>,
    /// Smoothed time between two results; zero until two have come.
    interval: Duration,
}

impl Schedule {
    /// Starts with chunks `0..models.len()`, each with its model; all are open.
    #[must_use]
    pub fn new(job: JobId, models: Vec<ModelIndex>) -> Self {
        let mut queues: BTreeMap<ModelIndex, VecDeque<ChunkIndex>> = BTreeMap::new();
        for (index, model) in (0..).zip(&models) {
            queues.entry(*model).or_default().push_back(ChunkIndex(index));
        }
        Self {
            job,
            status: vec![Status::Open; models.len()],
            queues,
            retries: BTreeSet::new(),
            history: BTreeMap::new(),
            unfinished: models.len(),
            models,
            active: BTreeMap::new(),
            orphans: BTreeMap::new(),
            installs: BTreeMap::new(),
            standing: BTreeMap::new(),
            surprises: BTreeSet::new(),
            paused: false,
            stopped: false,
            record_time: Duration::from_millis(8),
        }
    }

    /// Takes over what a predecessor left in the journal, before the first event: chunks that are closed, what
    /// has happened to others, and attempts whose end nobody has seen.
    pub fn resume(
        &mut self,
        closed: impl IntoIterator<Item = ChunkIndex>,
        history: BTreeMap<ChunkIndex, History>,
        open_attempts: BTreeMap<AttemptId, (AgentId, Incarnation)>,
    ) {
        for chunk in closed {
            if self.set(chunk, Status::Closed) {
                self.unfinished -= 1;
            }
        }
        self.history = history;
        self.orphans = open_attempts;
        let waiting: BTreeSet<ChunkIndex> = self.orphans.keys().map(|attempt| attempt.chunk).collect();
        let status = &self.status;
        for queue in self.queues.values_mut() {
            queue.retain(|chunk| status[chunk.0 as usize] == Status::Open && !waiting.contains(chunk));
        }
    }

    /// Takes an event and returns what follows from it, in the order in which it is to be done.
    ///
    /// # Panics
    /// In debug builds when the independent check finds that two rivals hold work: a bug of this file.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Roster(installs) => self.on_roster(installs, now, &mut actions),
            Event::Recorded(attempt) => self.on_recorded(attempt, now),
            Event::Accepted(attempt, place) => {
                if let Some(active) = self.active.get_mut(&attempt) {
                    active.running = place == Place::Running;
                }
            }
            Event::Tick => {}
            Event::Refused(attempt, refusal) => self.on_refused(attempt, &refusal, now, &mut actions),
            Event::Finished(attempt) => self.on_finished(attempt, now, &mut actions),
            Event::Failed(attempt, reason) => self.on_ended(attempt, reason.class(), now, &mut actions),
            Event::Lost(attempt) => self.on_ended(attempt, Class::Lost, now, &mut actions),
            Event::Committed(chunk) => {
                if self.set(chunk, Status::Closed) {
                    self.unfinished -= 1;
                }
            }
            Event::Paused(paused) => self.paused = paused,
            Event::Stop => self.stop(&mut actions),
        }
        self.give_up_orphans(now, &mut actions);
        self.dispatch(now, &mut actions);
        if cfg!(debug_assertions)
            && let Err(violation) = self.check()
        {
            panic!("the schedule broke its own rule: {violation}");
        }
        actions
    }

    /// When the next `Tick` is due, if time alone can change anything.
    #[must_use]
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        let pauses = self.standing.values().map(|standing| standing.pause_until);
        let adoption = (!self.orphans.is_empty()).then_some(ADOPTION_GRACE);
        pauses.chain(adoption).filter(|at| *at > now).min()
    }

    /// Every chunk's result or failure is on disk.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.unfinished == 0
    }

    /// Nothing runs and nothing is on its way to the disk.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.active.is_empty() && !self.status.contains(&Status::Finished)
    }

    /// Nothing runs, and the open chunks of these models have no install that could ever take them as the roster
    /// is now. Empty while anything runs, waits for a pause to end or may still be adopted.
    #[must_use]
    pub fn stuck(&self, now: Duration) -> BTreeSet<ModelIndex> {
        if !self.is_idle() || !self.orphans.is_empty() || self.paused || self.stopped {
            return BTreeSet::new();
        }
        let queued = self.queues.iter().filter(|(_, queue)| !queue.is_empty()).map(|(model, _)| *model);
        let retried = self.retries.iter().map(|chunk| self.model_of(*chunk));
        let wanted: BTreeSet<_> = queued.chain(retried).collect();
        let some_later = self.standing.values().any(|standing| standing.pause_until > now);
        wanted.into_iter().filter(|model| !some_later && self.eligible(*model).next().is_none()).collect()
    }

    /// The model of a chunk.
    #[must_use]
    pub fn model_of(&self, chunk: ChunkIndex) -> ModelIndex {
        self.models.get(chunk.0 as usize).copied().unwrap_or(ModelIndex(0))
    }

    // ---- events -----------------------------------------------------------------------------------------------

    fn on_roster(&mut self, installs: Vec<Install>, now: Duration, actions: &mut Vec<Action>) {
        self.installs = installs.into_iter().map(|install| (install.agent, install)).collect();
        let gone: Vec<AttemptId> = self
            .active
            .iter()
            .filter(|(_, active)| !self.installs.contains_key(&active.agent) && !active.occupies())
            .map(|(attempt, _)| *attempt)
            .collect();
        for attempt in gone {
            self.take_back(attempt, actions);
        }
        self.adopt(now, actions);
        self.part_new_rivals(actions);
    }

    fn on_recorded(&mut self, attempt: AttemptId, now: Duration) {
        if let Some(active) = self.active.get_mut(&attempt)
            && active.stage == Stage::Recording
        {
            active.stage = Stage::Recorded;
            self.record_time = smoothed(self.record_time, now.saturating_sub(active.since));
            active.since = now;
        }
    }

    fn on_refused(&mut self, attempt: AttemptId, refusal: &Refusal, now: Duration, actions: &mut Vec<Action>) {
        let Some((agent, adopted)) = self.active.get(&attempt).map(|active| (active.agent, active.adopted)) else {
            return;
        };
        let class = match refusal {
            // What a predecessor recorded ahead and never sent may find all places taken: that says nothing of the
            // install.
            Refusal::Busy { .. } if adopted => Class::Busy,
            Refusal::Busy { retry_ms } => {
                self.pause(agent, now, Duration::from_millis(u64::from(*retry_ms)));
                Class::Busy
            }
            Refusal::Draining(_) | Refusal::Stale(_) => {
                let incarnation = self.installs.get(&agent).map(|install| install.incarnation);
                self.standing.entry(agent).or_default().closed_for = incarnation;
                Class::Busy
            }
            Refusal::NoModel => Class::NoModel,
            Refusal::Denied(_) => Class::Denied,
        };
        self.on_ended(attempt, class, now, actions);
    }

    fn on_finished(&mut self, attempt: AttemptId, now: Duration, actions: &mut Vec<Action>) {
        if let Some(active) = self.active.remove(&attempt) {
            let standing = self.standing.entry(active.agent).or_default();
            standing.failures_in_a_row = 0;
            standing.pauses = 0;
            if let Some(last) = standing.last_finish.replace(now) {
                standing.interval = smoothed(standing.interval, now.saturating_sub(last));
            }
        }
        self.orphans.remove(&attempt);
        if self.status(attempt.chunk) == Some(Status::Open) {
            self.retries.remove(&attempt.chunk);
            self.set(attempt.chunk, Status::Finished);
            actions.push(Action::Commit(attempt));
            for (other, agent) in self.others_of(attempt) {
                actions.push(Action::Cancel(other, agent));
            }
        } else {
            actions.push(Action::Drop(attempt));
        }
    }

    /// An attempt is over without a result: what that says of the install, and what becomes of the chunk.
    fn on_ended(&mut self, attempt: AttemptId, class: Class, now: Duration, actions: &mut Vec<Action>) {
        let Some(active) = self.active.remove(&attempt) else { return };
        let agent = active.agent;
        // What we cancelled to part two rivals has not failed: it runs again.
        let ours = active.stage == Stage::Cancelling && class == Class::Cancelled;
        let class = if ours { Class::Superseded } else { class };
        actions.push(Action::End(attempt, class));
        self.judge_install(agent, self.model_of(attempt.chunk), class, now);
        if self.status(attempt.chunk) != Some(Status::Open) {
            return;
        }
        let machine = self.installs.get(&agent).map_or(MachineId(agent), |install| install.machine).short();
        let history = self.history.entry(attempt.chunk).or_default();
        match history.after(attempt.no, class, agent, &machine) {
            Verdict::Again => {
                self.retries.insert(attempt.chunk);
            }
            Verdict::Over(class) => {
                self.set(attempt.chunk, Status::Finished);
                actions.push(Action::Fail(attempt.chunk, attempt, class));
            }
        }
    }

    fn stop(&mut self, actions: &mut Vec<Action>) {
        self.stopped = true;
        let unsent: Vec<AttemptId> =
            self.active.iter().filter(|(_, active)| !active.occupies()).map(|(attempt, _)| *attempt).collect();
        for attempt in unsent {
            self.take_back(attempt, actions);
        }
    }

    // ---- decisions --------------------------------------------------------------------------------------------

    /// Sends what is recorded and records what may come next, install by install in the order of preference.
    fn dispatch(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.paused || self.stopped {
            return;
        }
        for agent in self.by_preference() {
            let mut places = self.free_places(&agent, now);
            let recorded: Vec<AttemptId> = self.staged(&agent, Stage::Recorded);
            for attempt in recorded.into_iter().take(places.send) {
                if let Some(active) = self.active.get_mut(&attempt) {
                    active.stage = Stage::Sent;
                    active.since = now;
                    actions.push(Action::Send(attempt, agent));
                }
            }
            while places.record > 0 {
                let Some(chunk) = self.take_chunk(&agent) else { break };
                let history = self.history.get(&chunk);
                let no = history.map_or(1, |history| history.last_no + 1);
                let attempt = AttemptId { job: self.job, chunk, no };
                let Some(install) = self.installs.get(&agent) else { break };
                actions.push(Action::Record(attempt, agent, install.incarnation));
                self.active.insert(attempt, Active { agent, stage: Stage::Recording, running: false, adopted: false, since: now });
                places.record -= 1;
            }
        }
    }

    /// How many attempts may be sent to this install and how many recorded for it: none while a rival holds work.
    fn free_places(&self, agent: &AgentId, now: Duration) -> Places {
        let none = Places { send: 0, record: 0 };
        let Some(install) = self.installs.get(agent) else { return none };
        let standing = self.standing.get(agent);
        if standing.is_some_and(|standing| {
            standing.pause_until > now || standing.closed_for == Some(install.incarnation)
        }) {
            return none;
        }
        let mut holders = self.active.values().map(|active| &active.agent).chain(self.orphans.values().map(|o| &o.0));
        if holders.any(|holder| install.rivals.contains(holder)) {
            return none;
        }
        let held = self.active.values().filter(|active| active.agent == *agent);
        let (occupied, all) = held.fold((0, 0), |(sent, all), active| {
            (sent + usize::from(active.occupies()), all + 1)
        });
        let send = (install.width + 1).saturating_sub(occupied);
        let ahead = standing.map_or(0, |standing| {
            let per_record = self.record_time.as_secs_f64() / standing.interval.as_secs_f64().max(1e-6);
            if standing.interval.is_zero() { 0 } else { (per_record * 2.0) as usize }
        });
        let record = (install.width + 1 + ahead.min(MAX_AHEAD)).saturating_sub(all);
        Places { send, record }
    }

    /// The next chunk for this install: retries first, then its warm models, then the model of the lowest chunk.
    fn take_chunk(&mut self, agent: &AgentId) -> Option<ChunkIndex> {
        let retry = self.retries.iter().copied().find(|chunk| self.may_retry(*chunk, agent));
        if let Some(chunk) = retry {
            self.retries.remove(&chunk);
            return Some(chunk);
        }
        let install = self.installs.get(agent)?;
        let without = self.standing.get(agent).map(|standing| &standing.without);
        let model = self
            .queues
            .iter()
            .filter(|(model, _)| install.models.contains(model))
            .filter(|(model, _)| without.is_none_or(|without| !without.contains(model)))
            .filter_map(|(model, queue)| Some((!install.warm.contains(model), *queue.front()?, *model)))
            .min()?
            .2;
        self.queues.get_mut(&model)?.pop_front()
    }

    /// A chunk that failed goes to other hardware, and back to the same only where there is no other.
    fn may_retry(&self, chunk: ChunkIndex, agent: &AgentId) -> bool {
        let model = self.model_of(chunk);
        let Some(history) = self.history.get(&chunk) else { return false };
        let mut eligible = self.eligible(model);
        let tried = |install: &Install| {
            history.failed_on.contains(&install.agent)
                || install.rivals.iter().any(|rival| history.failed_on.contains(rival))
        };
        let Some(install) = self.installs.get(agent) else { return false };
        let may = install.models.contains(&model) && self.eligible(model).any(|other| other.agent == *agent);
        may && (!tried(install) || eligible.all(tried))
    }

    /// The installs that have the model and have not been found to lack it or to be closed.
    fn eligible(&self, model: ModelIndex) -> impl Iterator<Item = &Install> {
        self.installs.values().filter(move |install| {
            install.models.contains(&model)
                && self.standing.get(&install.agent).is_none_or(|standing| {
                    !standing.without.contains(&model) && standing.closed_for != Some(install.incarnation)
                })
        })
    }

    /// Whoever holds work keeps its devices; then a warm model; then the faster; then the smaller id.
    fn by_preference(&self) -> Vec<AgentId> {
        let mut order: Vec<_> = self
            .installs
            .values()
            .map(|install| {
                let standing = self.standing.get(&install.agent);
                let holds = self.active.values().any(|active| active.agent == install.agent);
                let interval = standing.map_or(Duration::ZERO, |standing| standing.interval);
                (!holds, install.warm.is_empty(), interval, install.agent)
            })
            .collect();
        order.sort();
        order.into_iter().map(|(.., agent)| agent).collect()
    }

    // ---- what a failure says of an install --------------------------------------------------------------------

    fn judge_install(&mut self, agent: AgentId, model: ModelIndex, class: Class, now: Duration) {
        let standing = self.standing.entry(agent).or_default();
        match class {
            Class::NoModel | Class::Denied => {
                standing.without.insert(model);
            }
            Class::EngineDown | Class::LoadFailed => self.pause(agent, now, Duration::ZERO),
            Class::RunnerCrash | Class::EngineError | Class::Stalled | Class::Deadline => {
                standing.failures_in_a_row += 1;
                if standing.failures_in_a_row >= 2 {
                    self.pause(agent, now, Duration::ZERO);
                }
            }
            Class::Busy
            | Class::Lost
            | Class::Incomplete
            | Class::TooLong
            | Class::BadRequest
            | Class::ResultTooLarge
            | Class::Cancelled
            | Class::Superseded
            | Class::NeedFailed
            | Class::Poison
            | Class::Crashed => {}
        }
    }

    fn pause(&mut self, agent: AgentId, now: Duration, at_least: Duration) {
        let standing = self.standing.entry(agent).or_default();
        let doubled = PAUSE.0 * 2u32.saturating_pow(standing.pauses.min(6));
        standing.pause_until = now + doubled.max(at_least).min(PAUSE.1);
        standing.pauses += 1;
    }

    // ---- change of roster -------------------------------------------------------------------------------------

    /// Sends attempts of a predecessor again to the same run of the same agent, which answers with their state.
    fn adopt(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for (attempt, (agent, incarnation)) in self.orphans.clone() {
            let Some(install) = self.installs.get(&agent) else { continue };
            if self.active.values().any(|active| install.rivals.contains(&active.agent)) {
                continue;
            }
            let same_run = install.incarnation == incarnation;
            self.orphans.remove(&attempt);
            if same_run {
                self.active.insert(attempt, Active { agent, stage: Stage::Sent, running: false, adopted: true, since: now });
                actions.push(Action::Send(attempt, agent));
            } else {
                self.lose_orphan(attempt, agent, actions);
            }
        }
    }

    fn give_up_orphans(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if now >= ADOPTION_GRACE {
            for (attempt, (agent, _)) in std::mem::take(&mut self.orphans) {
                self.lose_orphan(attempt, agent, actions);
            }
        }
    }

    fn lose_orphan(&mut self, attempt: AttemptId, agent: AgentId, actions: &mut Vec<Action>) {
        self.active.insert(attempt, Active { agent, stage: Stage::Cancelling, running: false, adopted: true, since: Duration::ZERO });
        self.on_ended(attempt, Class::Lost, Duration::ZERO, actions);
    }

    /// Installs that turn out to share a device while both hold work: what has not started is taken back, and
    /// neither gets more until one has ended. What runs is let finish: hanging up frees no device at once.
    fn part_new_rivals(&mut self, actions: &mut Vec<Action>) {
        let holders: BTreeSet<AgentId> = self.active.values().map(|active| active.agent).collect();
        let occupying: BTreeSet<AgentId> =
            self.active.values().filter(|active| active.occupies()).map(|active| active.agent).collect();
        self.surprises.clear();
        let mut unsent = Vec::new();
        for agent in &holders {
            let Some(install) = self.installs.get(agent) else { continue };
            if install.rivals.is_disjoint(&holders) {
                continue;
            }
            unsent.extend(self.active.iter().filter(|(_, a)| a.agent == *agent && !a.occupies()).map(|(a, _)| *a));
            for rival in install.rivals.intersection(&occupying).filter(|rival| **rival > *agent) {
                self.surprises.insert((*agent, *rival));
            }
        }
        for attempt in unsent {
            self.take_back(attempt, actions);
        }
        for (_, later) in &self.surprises {
            for (attempt, active) in &mut self.active {
                if active.agent == *later && active.stage == Stage::Sent && !active.running {
                    active.stage = Stage::Cancelling;
                    actions.push(Action::Cancel(*attempt, *later));
                }
            }
        }
    }

    // ---- small parts ------------------------------------------------------------------------------------------

    /// Ends an attempt that was never sent; its chunk goes back to the front of its queue.
    fn take_back(&mut self, attempt: AttemptId, actions: &mut Vec<Action>) {
        if self.active.remove(&attempt).is_some() {
            actions.push(Action::End(attempt, Class::Superseded));
            self.history.entry(attempt.chunk).or_default().last_no = attempt.no;
            if self.status(attempt.chunk) == Some(Status::Open) {
                self.retries.insert(attempt.chunk);
            }
        }
    }

    fn others_of(&mut self, attempt: AttemptId) -> Vec<(AttemptId, AgentId)> {
        let others = self.active.iter_mut().filter(|(other, _)| other.chunk == attempt.chunk);
        others
            .map(|(other, active)| {
                active.stage = Stage::Cancelling;
                (*other, active.agent)
            })
            .collect()
    }

    fn staged(&self, agent: &AgentId, stage: Stage) -> Vec<AttemptId> {
        let staged = self.active.iter().filter(|(_, active)| active.agent == *agent && active.stage == stage);
        staged.map(|(attempt, _)| *attempt).collect()
    }

    fn status(&self, chunk: ChunkIndex) -> Option<Status> {
        self.status.get(chunk.0 as usize).copied()
    }

    /// Sets the status and says whether it changed.
    fn set(&mut self, chunk: ChunkIndex, status: Status) -> bool {
        self.status.get_mut(chunk.0 as usize).is_some_and(|slot| std::mem::replace(slot, status) != status)
    }
}

impl Active {
    /// The agent has it, or may have it.
    fn occupies(&self) -> bool {
        matches!(self.stage, Stage::Sent | Stage::Cancelling)
    }
}

struct Places {
    send: usize,
    record: usize,
}

/// Weighs the new measurement with a quarter; the first one counts whole.
fn smoothed(old: Duration, new: Duration) -> Duration {
    if old.is_zero() { new } else { (old * 3 + new) / 4 }
}
