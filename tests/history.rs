//! The history checker: judges what happened, event by event, for simulated and real runs alike.
//!
//! Every process of a test writes event lines (`tropa_proto::proof`), a simulation makes the same events in memory,
//! and the doubles' book tells what the engines did. One [`Judge`] reads them in the order of their times and knows
//! nothing of what either side believes. Its rules are the ten of `reliability.md` §9; a [`Violation`] names its rule.
//!
//! Above 350 lines because the rules stand in one file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use tropa_proto::{failure::Class, id::AttemptId};

use crate::ollama_double::Witness;

/// Attempts of one chunk in all, and by kind of failure (`reliability.md` §5).
const BUDGETS: Budgets = Budgets { all: 12, lost: 10, crashes: 3, incomplete: 2 };

#[derive(Clone, Copy, Debug)]
struct Budgets {
    all: u32,
    lost: u32,
    crashes: u32,
    incomplete: u32,
}

/// Somebody who acts: a process of a real run, a side of a simulated one.
pub type Peer = u32;

/// A chunk of a job.
pub type Chunk = ([u8; 16], u32);

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Microseconds on a clock that all share.
    pub at: u64,
    /// Who did it.
    pub by: Peer,
    /// What.
    pub what: What,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The row of an attempt is on disk.
    Record(AttemptId),
    /// A `Run` leaves its coordinator.
    Send(AttemptId),
    /// A peer said a valid `Hello` to this one.
    Hello(Peer),
    /// An agent hands an attempt of this coordinator to its engine.
    ExecStart(AttemptId, Option<Peer>),
    /// The engine's answer has ended, or the agent hung up.
    ExecEnd(AttemptId),
    /// A request begins to occupy a device.
    EngineStart {
        /// The install.
        install: u32,
        /// The device.
        device: u32,
    },
    /// A request, an orphan too, occupies the device no longer.
    EngineEnd {
        /// The install.
        install: u32,
        /// The device.
        device: u32,
    },
    /// A result has reached its coordinator, whole.
    Result(AttemptId),
    /// The end of an attempt without a result is on disk.
    Ended(AttemptId, Class),
    /// The result of the chunk (`None`) or its failure is on disk, by this attempt.
    Commit(AttemptId, Option<Class>),
    /// An acknowledgement leaves the coordinator.
    Ack(AttemptId),
    /// The agent has forgotten what was acknowledged.
    Forget(AttemptId),
    /// A line of the output was written.
    Output(u32),
    /// A wait begins that must end within so many microseconds.
    Wait(u64, u64),
    /// That wait has ended.
    Waited(u64),
    /// The process was killed; what it held is gone with it.
    Killed,
}

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule's number in `reliability.md` §9.
    pub rule: u8,
    /// When, in microseconds.
    pub at: u64,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} at {:.3} s: {}", self.rule, self.at as f64 / 1e6, self.what)
    }
}

/// What a history must satisfy beside the rules that always hold.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    /// The chunks of each job; every one must end.
    pub jobs: BTreeMap<[u8; 16], u32>,
    /// Requests that an install may hold at once, where that is not 1.
    pub widths: BTreeMap<u32, u32>,
    /// Coordinators that the agents' policy denies.
    pub denied: BTreeSet<Peer>,
    /// Agents hear a `Hello` from a coordinator before anything else, and it is in the history.
    pub hellos: bool,
}

/// Reads a history and finds what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    expect: Expect,
    /// Requests at a device, by install.
    users: BTreeMap<u32, BTreeMap<u32, u32>>,
    greeted: BTreeSet<(Peer, Peer)>,
    started: BTreeSet<AttemptId>,
    ended: BTreeMap<AttemptId, Class>,
    committed: BTreeMap<Chunk, (AttemptId, Option<Class>)>,
    spent: BTreeMap<Chunk, Spent>,
    output: Option<u32>,
    waits: BTreeMap<(Peer, u64), u64>,
    now: u64,
    executions: u64,
    forgotten: u64,
    violations: Vec<Violation>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    all: u32,
    lost: u32,
    crashes: u32,
    incomplete: u32,
}

/// The chunk of an attempt.
#[must_use]
pub fn chunk_of(attempt: &AttemptId) -> Chunk {
    (attempt.job.0, attempt.chunk.0)
}

impl Judge {
    /// Starts with nothing that has happened.
    #[must_use]
    pub fn new(expect: Expect) -> Self {
        Self { expect, ..Self::default() }
    }

    /// Takes the next event; times do not fall.
    pub fn take(&mut self, event: &Event) {
        self.now = self.now.max(event.at);
        self.overdue();
        match &event.what {
            What::EngineStart { install, device } => self.engine_starts(*install, *device),
            What::EngineEnd { install, device } => self.engine_ends(*install, *device),
            What::Hello(peer) => {
                self.greeted.insert((event.by, *peer));
            }
            What::ExecStart(attempt, from) => self.executes(event.by, *attempt, *from),
            What::Ended(attempt, class) => self.ends(*attempt, *class),
            What::Commit(attempt, class) => self.commits(*attempt, *class),
            What::Ack(attempt) => {
                let known =
                    self.committed.contains_key(&chunk_of(attempt)) || self.ended.contains_key(attempt);
                if !known {
                    self.wrong(4, format!("{attempt:?} is acknowledged before it is on disk"));
                }
            }
            What::Forget(attempt) => {
                self.forgotten += 1;
                let known =
                    self.committed.contains_key(&chunk_of(attempt)) || self.ended.contains_key(attempt);
                if !known {
                    self.wrong(4, format!("{attempt:?} is forgotten before it is on disk"));
                }
            }
            What::Output(index) => {
                if self.output.is_some_and(|last| *index <= last) {
                    self.wrong(6, format!("item {index} is written after item {:?}", self.output));
                }
                self.output = Some(*index);
            }
            What::Wait(name, limit) => {
                self.waits.insert((event.by, *name), event.at.saturating_add(*limit));
            }
            What::Waited(name) => {
                self.waits.remove(&(event.by, *name));
            }
            What::Killed => self.waits.retain(|(peer, _), _| *peer != event.by),
            What::Record(_) | What::Send(_) | What::ExecEnd(_) | What::Result(_) => {}
        }
    }

    /// Says that nothing more happens, and gives everything that was wrong.
    #[must_use]
    pub fn finish(mut self) -> Vec<Violation> {
        for (job, chunks) in std::mem::take(&mut self.expect.jobs) {
            let open: Vec<u32> =
                (0..chunks).filter(|chunk| !self.committed.contains_key(&(job, *chunk))).collect();
            if let Some(first) = open.first() {
                self.wrong(5, format!("{} chunks never ended, the first is {first}", open.len()));
            }
        }
        self.violations
    }

    /// What was wrong so far.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Chunks of a job that have a result or a failure.
    #[must_use]
    pub fn closed(&self, job: [u8; 16]) -> u32 {
        let all = self.committed.range((job, 0)..=(job, u32::MAX)).count();
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    /// Chunks that have a result.
    #[must_use]
    pub fn done(&self) -> usize {
        self.committed.values().filter(|(_, class)| class.is_none()).count()
    }

    /// How the chunks failed that have no result.
    pub fn failures(&self) -> impl Iterator<Item = (Chunk, Class)> {
        self.committed.iter().filter_map(|(chunk, (_, class))| Some((*chunk, (*class)?)))
    }

    /// Attempts that reached an engine.
    #[must_use]
    pub fn executions(&self) -> u64 {
        self.executions
    }

    /// Acknowledgements that reached an agent.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn wrong(&mut self, rule: u8, what: String) {
        self.violations.push(Violation { rule, at: self.now, what });
    }

    /// Rule 1: on a device only one install works, with no more requests than its width.
    fn engine_starts(&mut self, install: u32, device: u32) {
        let width = self.expect.widths.get(&install).copied().unwrap_or(1);
        let users = self.users.entry(device).or_default();
        let other = users.keys().copied().find(|other| *other != install);
        let count = users.entry(install).or_default();
        *count += 1;
        let count = *count;
        if let Some(other) = other {
            self.wrong(1, format!("installs {other} and {install} both work on device {device}"));
        }
        if count > width {
            self.wrong(1, format!("install {install} holds {count} requests, its width is {width}"));
        }
    }

    fn engine_ends(&mut self, install: u32, device: u32) {
        let Some(users) = self.users.get_mut(&device) else { return };
        if let Some(count) = users.get_mut(&install) {
            *count -= 1;
            if *count == 0 {
                users.remove(&install);
            }
        }
    }

    /// Rules 2, 7 and 8: once, for somebody who may, after a `Hello`.
    fn executes(&mut self, agent: Peer, attempt: AttemptId, from: Option<Peer>) {
        self.executions += 1;
        if !self.started.insert(attempt) {
            self.wrong(2, format!("{attempt:?} is executed twice"));
        }
        let Some(from) = from else { return };
        if self.expect.denied.contains(&from) {
            self.wrong(7, format!("{attempt:?} is executed for {from}, which is denied"));
        }
        if self.expect.hellos && !self.greeted.contains(&(agent, from)) {
            self.wrong(8, format!("{attempt:?} is executed for {from}, which said no hello"));
        }
    }

    /// Rule 9: budgets. The first end of an attempt counts.
    fn ends(&mut self, attempt: AttemptId, class: Class) {
        if self.ended.contains_key(&attempt) {
            return;
        }
        self.ended.insert(attempt, class);
        let spent = self.spent.entry(chunk_of(&attempt)).or_default();
        match class {
            Class::Lost | Class::EngineDown => {
                spent.all += 1;
                spent.lost += 1;
            }
            Class::LoadFailed
            | Class::RunnerCrash
            | Class::EngineError
            | Class::Stalled
            | Class::Deadline => {
                spent.all += 1;
                spent.crashes += 1;
            }
            Class::Incomplete => {
                spent.all += 1;
                spent.incomplete += 1;
            }
            Class::Busy
            | Class::NoModel
            | Class::Denied
            | Class::TooLong
            | Class::BadRequest
            | Class::ResultTooLarge
            | Class::Cancelled
            | Class::Superseded
            | Class::NeedFailed
            | Class::Poison
            | Class::Crashed => return,
        }
        let Spent { all, lost, crashes, incomplete } = *spent;
        for (what, count, limit) in [
            ("attempts", all, BUDGETS.all),
            ("losses", lost, BUDGETS.lost),
            ("crashes", crashes, BUDGETS.crashes),
            ("incomplete answers", incomplete, BUDGETS.incomplete),
        ] {
            if count > limit {
                self.wrong(9, format!("{attempt:?}: {count} {what} of one chunk, {limit} are allowed"));
            }
        }
    }

    /// Rules 3 and 5: one result or one failure, and a failure is something that the chunk did.
    fn commits(&mut self, attempt: AttemptId, class: Option<Class>) {
        let before = self.committed.insert(chunk_of(&attempt), (attempt, class));
        if let Some((earlier, _)) = before {
            self.wrong(
                3,
                format!("{attempt:?} is committed, and the chunk was committed by {earlier:?} before"),
            );
        }
        if let Some(class @ (Class::Cancelled | Class::Superseded | Class::Busy)) = class {
            self.wrong(5, format!("{attempt:?} failed as {class}, which is nothing that the chunk did"));
        }
    }

    /// Rule 10: every wait ends, by what was waited for or by its limit.
    fn overdue(&mut self) {
        let now = self.now;
        let late: Vec<(Peer, u64)> =
            self.waits.iter().filter(|(_, until)| **until < now).map(|(wait, _)| *wait).collect();
        for (peer, name) in late {
            self.waits.remove(&(peer, name));
            self.wrong(10, format!("{peer} still waits for {name} after its limit"));
        }
    }
}

/// Reads event lines of real programs, in any order; lines of other kinds are none of this checker's.
///
/// # Errors
/// Names the line that no program wrote.
pub fn read(text: &str) -> Result<Vec<Event>, String> {
    let mut events = Vec::new();
    for line in text.lines() {
        events.extend(parse(line).ok_or_else(|| format!("no event line: {line}"))?);
    }
    Ok(events)
}

/// One line; no event where its kind is none of the checker's.
fn parse(line: &str) -> Option<Option<Event>> {
    let mut words = line.split_whitespace();
    let at = words.next()?.parse().ok()?;
    let by = words.next()?.parse().ok()?;
    let kind = words.next()?;
    let mut attempt = || -> Option<AttemptId> {
        let mut parts = words.next()?.split('/');
        let job = parts.next()?.parse().ok()?;
        let chunk = tropa_proto::id::ChunkIndex(parts.next()?.parse().ok()?);
        Some(AttemptId { job, chunk, no: parts.next()?.parse().ok()? })
    };
    let what = match kind {
        "record" => What::Record(attempt()?),
        "send" => What::Send(attempt()?),
        "exec_start" => {
            let attempt = attempt()?;
            What::ExecStart(attempt, Some(words.next()?.parse().ok()?))
        }
        "hello" => What::Hello(words.next()?.parse().ok()?),
        "exec_end" => What::ExecEnd(attempt()?),
        "result" => What::Result(attempt()?),
        "ended" => {
            let attempt = attempt()?;
            What::Ended(attempt, Class::from_name(words.next()?)?)
        }
        "commit" => {
            let attempt = attempt()?;
            let class = match words.next()? {
                "done" => None,
                class => Some(Class::from_name(class)?),
            };
            What::Commit(attempt, class)
        }
        "ack" => What::Ack(attempt()?),
        "forget" => What::Forget(attempt()?),
        _ => return Some(None),
    };
    Some(Some(Event { at, by, what }))
}

/// What the engines did, from the doubles' book: installs and devices are numbered in the order of their names.
#[must_use]
pub fn of_engines(witness: &Witness) -> Vec<Event> {
    let work = witness.timeline();
    let number = |names: BTreeSet<&str>| -> BTreeMap<String, u32> {
        names.into_iter().map(str::to_owned).zip(0..).collect()
    };
    let installs = number(work.iter().map(|work| work.install.as_str()).collect());
    let devices = number(work.iter().map(|work| work.device.as_str()).collect());
    let mut events = Vec::new();
    for work in work {
        let (Some(install), Some(device)) = (installs.get(&work.install), devices.get(&work.device)) else {
            continue;
        };
        let (install, device) = (*install, *device);
        let event = |ns: u64, what| Event { at: ns / 1_000, by: install, what };
        events.push(event(work.start_ns, What::EngineStart { install, device }));
        events.push(event(work.end_ns, What::EngineEnd { install, device }));
    }
    events
}

/// Judges a whole history, whatever order it was read in: an end comes before a start of the same microsecond.
#[must_use]
pub fn judge(mut events: Vec<Event>, expect: Expect) -> Judge {
    let rank = |what: &What| u8::from(!matches!(what, What::EngineEnd { .. }));
    events.sort_by_key(|event| (event.at, rank(&event.what)));
    let mut judge = Judge::new(expect);
    events.iter().for_each(|event| judge.take(event));
    judge
}
