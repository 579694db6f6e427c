//! The real scheduler on lanes of any speed, in virtual time: how long a job takes, and what was done to get there.
//!
//! A lane serves its attempts as an engine with slots does: those within the slots share its speed, the others wait
//! inside it. Messages take a round trip and rows a sync, as on a good network and an ordinary disk. Nothing is random:
//! a world is its description.

mod lane;
mod weather;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use tropa_coordinator::schedule::{
    Action, Event, Install, Largest, ModelIndex, Pace, Sample, Schedule, Work,
};
use tropa_proto::{
    failure::Reason,
    id::{AgentId, AttemptId, ChunkIndex, Incarnation, JobId, MachineId},
    message::Place,
};

pub use self::weather::Weather;

use self::lane::{Ends, Lane};

/// Between coordinator and agent, one way.
const ONE_WAY: Duration = Duration::from_micros(250);

/// A row on its way to the disk.
const SYNC: Duration = Duration::from_millis(4);

/// How often an agent tells of tokens.
const TOKENS_EVERY: Duration = Duration::from_millis(250);

/// A request that was hung up on holds the engine so much longer.
const SETTLES: Duration = Duration::from_millis(200);

/// One install of the world.
#[derive(Clone, Debug)]
pub struct LaneOf {
    /// Tokens that it writes in a second, alone.
    pub decode: f64,
    /// Tokens that it reads in a second.
    pub prompt: f64,
    /// Loading a model.
    pub load: Duration,
    /// What it does in all with so many at once, as a factor of one alone: from 1 on, as many as it has slots.
    pub curve: Vec<f64>,
    /// The width that its operator declared; 0: none.
    pub width: usize,
    /// From this moment on it is so many times slower.
    pub slows: Option<(Duration, f64)>,
    /// What else happens on its machine.
    pub weather: Option<Weather>,
    /// At this moment its engine starts anew, with this curve.
    pub restarts: Option<(Duration, Vec<f64>)>,
}

/// One chunk of the world.
#[derive(Clone, Copy, Debug)]
pub struct ChunkOf {
    /// What the job says of it.
    pub work: Work,
    /// Tokens of its true answer.
    pub output: u32,
}

/// How a job went.
#[derive(Clone, Debug, Default)]
pub struct Went {
    /// From the first event to the last result.
    pub makespan: Duration,
    /// Attempts that reached an engine.
    pub executions: usize,
    /// By lane: chunks whose result was taken.
    pub done: Vec<usize>,
    /// By lane: loads.
    pub loads: Vec<usize>,
    /// Events that the scheduler took.
    pub events: u64,
    /// What the scheduler ordered, where that is written down.
    pub orders: Vec<String>,
    /// When each result was taken, and by which lane.
    pub history: Vec<(Duration, usize, ChunkIndex)>,
}

impl LaneOf {
    /// A lane that writes so many tokens a second, reads ten times as many and has one slot.
    #[must_use]
    pub fn of(decode: f64) -> Self {
        let load = Duration::from_secs(2);
        Self {
            decode,
            prompt: decode * 10.0,
            load,
            curve: vec![1.0],
            width: 1,
            slows: None,
            weather: None,
            restarts: None,
        }
    }
}

impl ChunkOf {
    /// A chunk with a prompt and an answer of so many tokens, which are known.
    #[must_use]
    pub fn of(prompt_tokens: u32, output: u32) -> Self {
        Self { work: Work { prompt_tokens, output_tokens: output, ..Work::default() }, output }
    }

    /// Seconds that it takes on a lane, alone and loaded.
    #[must_use]
    pub fn seconds(&self, lane: &LaneOf) -> f64 {
        f64::from(self.work.prompt_tokens) / lane.prompt + f64::from(self.output) / lane.decode
    }
}

/// The least time in which these lanes can do these chunks: all work by all speed, or the longest chunk on the fastest.
#[must_use]
pub fn lower_bound(lanes: &[LaneOf], chunks: &[ChunkOf]) -> Duration {
    let best = |lane: &LaneOf| lane.curve.iter().copied().fold(1.0, f64::max);
    // Every chunk costs a lane in proportion to its speed, since all read as much faster as they write.
    let unit = LaneOf::of(1.0);
    let work: f64 = chunks.iter().map(|chunk| chunk.seconds(&unit)).sum();
    let speed: f64 = lanes.iter().map(|lane| lane.decode * best(lane)).sum();
    let fastest = |chunk: &ChunkOf| lanes.iter().map(|l| chunk.seconds(l)).fold(f64::INFINITY, f64::min);
    let longest = chunks.iter().map(fastest).fold(0.0, f64::max);
    Duration::from_secs_f64((work / speed).max(longest))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Recorded(AttemptId),
    Committed(ChunkIndex),
    Arrives(usize, AttemptId, u16),
    Cancels(usize, AttemptId),
    TakesBack(usize, AttemptId),
    Running(AttemptId),
    Next(AttemptId),
    Ends(usize, u64),
    Finished(usize, AttemptId),
    Cancelled(AttemptId),
    Tokens(usize),
    Told(AttemptId, u32),
    Restarts(usize),
    Wakes(Duration),
}

/// A world on its way.
#[derive(Debug)]
pub struct World {
    schedule: Schedule,
    lanes: Vec<Lane>,
    chunks: Vec<ChunkOf>,
    agenda: BinaryHeap<Reverse<(Duration, u64, What)>>,
    number: u64,
    now: Duration,
    samples: BTreeMap<AttemptId, Sample>,
    went: Went,
    wakes_at: Option<Duration>,
    tells_tokens: bool,
    keeps_orders: bool,
}

/// The agent of the lane with this number.
///
/// # Panics
/// When there are more than 65,535 lanes.
#[must_use]
pub fn agent(lane: usize) -> AgentId {
    let [high, low] = u16::try_from(lane + 1).expect("few lanes").to_be_bytes();
    let mut id = [0; 32];
    (id[0], id[1]) = (high, low);
    AgentId(id)
}

impl World {
    /// Makes a world in which nothing has happened. Each lane is a machine of its own.
    #[must_use]
    pub fn new(lanes: &[LaneOf], chunks: &[ChunkOf]) -> Self {
        let works = chunks.iter().map(|chunk| chunk.work).collect();
        Self {
            schedule: Schedule::of(JobId([9; 16]), works),
            went: Went { done: vec![0; lanes.len()], loads: vec![0; lanes.len()], ..Went::default() },
            lanes: lanes.iter().cloned().map(Lane::new).collect(),
            chunks: chunks.to_vec(),
            agenda: BinaryHeap::new(),
            number: 0,
            now: Duration::ZERO,
            samples: BTreeMap::new(),
            wakes_at: None,
            tells_tokens: true,
            keeps_orders: false,
        }
    }

    /// Gives no backup attempts.
    #[must_use]
    pub fn without_backups(mut self) -> Self {
        self.schedule = self.schedule.without_backups();
        self
    }

    /// The agents say nothing of tokens: fewer events, for worlds where no attempt is late.
    #[must_use]
    pub fn without_tokens(mut self) -> Self {
        self.tells_tokens = false;
        self
    }

    /// Writes down what the scheduler orders.
    #[must_use]
    pub fn with_orders(mut self) -> Self {
        self.keeps_orders = true;
        self
    }

    /// An earlier job has shown how fast every lane is.
    #[must_use]
    pub fn with_known_speeds(mut self) -> Self {
        for lane in 0..self.lanes.len() {
            let of = &self.lanes[lane].of;
            let (prompt_s, decode_s) = (1.0 / of.prompt, 1.0 / of.decode);
            let load_s = of.load.as_secs_f64();
            let pace = Pace { prompt_s, decode_s, load_s, samples: 1, ..Pace::default() };
            self.tell(Event::Remembered(agent(lane), ModelIndex(0), pace, None));
        }
        self
    }

    /// Runs the job to its end.
    ///
    /// # Panics
    /// When it does not end, or the scheduler breaks its rule or records what it takes back at once.
    #[must_use]
    pub fn run(mut self) -> Went {
        for lane in 0..self.lanes.len() {
            if let Some((at, _)) = self.lanes[lane].of.restarts {
                self.at(at, What::Restarts(lane));
            }
        }
        self.tell(Event::Roster(self.roster()));
        while !self.schedule.is_done() {
            let Reverse((at, _, what)) =
                self.agenda.pop().expect("a job that is not done waits for something");
            self.now = at;
            self.happens(what);
            let limit = 1_000_000 + 1_000 * self.chunks.len() as u64;
            assert!(self.number < limit, "the job goes on for ever: {:?}", self.went);
        }
        self.went.loads = self.lanes.iter().map(|lane| lane.loads).collect();
        self.went
    }

    fn roster(&self) -> Vec<Install> {
        let models: BTreeSet<ModelIndex> = self.chunks.iter().map(|chunk| chunk.work.model).collect();
        let install = |(n, lane): (usize, &Lane)| Install {
            agent: agent(n),
            incarnation: Incarnation(1),
            engine: lane.engine,
            machine: MachineId(agent(n)),
            width: lane.of.width,
            models: models.clone(),
            largest: Largest::default(),
            shut: false,
            warm: BTreeSet::new(),
            loads: BTreeMap::new(),
            rivals: BTreeSet::new(),
            unguarded: BTreeSet::new(),
            gpu_lanes: None,
            unplaced: Default::default(),
        };
        self.lanes.iter().enumerate().map(install).collect()
    }

    fn happens(&mut self, what: What) {
        match what {
            What::Recorded(attempt) => self.tell(Event::Recorded(attempt)),
            What::Committed(chunk) => self.tell(Event::Committed(chunk)),
            What::Arrives(lane, attempt, at_once) => {
                let chunk = self.chunks[attempt.chunk.0 as usize];
                self.lanes[lane].arrives(attempt, chunk, at_once);
                if !self.start(lane) {
                    self.after(ONE_WAY, What::Next(attempt));
                }
            }
            What::TakesBack(lane, attempt) => {
                if self.lanes[lane].is_running(attempt) {
                    self.after(ONE_WAY, What::Running(attempt));
                } else {
                    self.happens(What::Cancels(lane, attempt));
                }
            }
            What::Cancels(lane, attempt) => match self.lanes[lane].cancel(attempt, self.now) {
                lane::Cancelled::Unknown => {}
                lane::Cancelled::Queued => self.after(ONE_WAY, What::Cancelled(attempt)),
                lane::Cancelled::Running => {
                    self.after(ONE_WAY, What::Cancelled(attempt));
                    self.lanes[lane].blocked_until = self.now + SETTLES;
                    self.start(lane);
                }
            },
            What::Running(attempt) => self.tell(Event::Accepted(attempt, Place::Running)),
            What::Next(attempt) => self.tell(Event::Accepted(attempt, Place::Next)),
            What::Ends(lane, version) => {
                if !self.lanes[lane].is(version) {
                    return;
                }
                if let Some(Ends { attempt, sample }) = self.lanes[lane].ends(self.now) {
                    self.samples.insert(attempt, sample);
                    self.after(ONE_WAY, What::Finished(lane, attempt));
                }
                self.start(lane);
            }
            What::Finished(lane, attempt) => {
                let sample = self.samples.remove(&attempt).expect("it ended");
                self.tell(Event::Measured(attempt, sample));
                self.finished(lane, attempt);
            }
            What::Cancelled(attempt) => self.tell(Event::Failed(attempt, Reason::Cancelled)),
            What::Tokens(lane) => {
                for (attempt, count) in self.lanes[lane].written(self.now) {
                    self.after(ONE_WAY, What::Told(attempt, count));
                }
                if self.lanes[lane].is_busy() {
                    self.after(TOKENS_EVERY, What::Tokens(lane));
                } else {
                    self.lanes[lane].telling = false;
                }
            }
            What::Told(attempt, count) => self.tell(Event::Tokens(attempt, count)),
            What::Restarts(lane) => {
                self.lanes[lane].restart(self.now);
                self.tell(Event::Roster(self.roster()));
                self.start(lane);
            }
            What::Wakes(at) => {
                if self.wakes_at == Some(at) {
                    self.wakes_at = None;
                    self.tell(Event::Tick);
                }
            }
        }
    }

    fn finished(&mut self, lane: usize, attempt: AttemptId) {
        let before = self.went.history.len();
        self.tell_finished(lane, attempt);
        if self.went.history.len() > before {
            self.went.done[lane] += 1;
        }
    }

    fn tell_finished(&mut self, lane: usize, attempt: AttemptId) {
        let actions = self.handle(Event::Finished(attempt));
        if actions.contains(&Action::Commit(attempt)) {
            self.went.history.push((self.now, lane, attempt.chunk));
            self.went.makespan = self.now;
        }
        self.perform(actions);
    }

    /// Starts what the lane can start now.
    fn start(&mut self, lane: usize) -> bool {
        let started = self.lanes[lane].start(self.now);
        for attempt in &started {
            self.went.executions += 1;
            self.after(ONE_WAY, What::Running(*attempt));
        }
        if let Some((at, version)) = self.lanes[lane].next_end(self.now) {
            self.at(at, What::Ends(lane, version));
        }
        if self.tells_tokens && self.lanes[lane].is_busy() && !self.lanes[lane].telling {
            self.lanes[lane].telling = true;
            self.after(TOKENS_EVERY, What::Tokens(lane));
        }
        !started.is_empty()
    }

    fn tell(&mut self, event: Event) {
        let actions = self.handle(event);
        self.perform(actions);
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.went.events += 1;
        self.schedule.handle(event, self.now)
    }

    fn perform(&mut self, actions: Vec<Action>) {
        self.check_once(&actions);
        let lane_of = |agent: AgentId| usize::from(u16::from_be_bytes([agent.0[0], agent.0[1]])) - 1;
        for action in actions {
            match action {
                Action::Record(attempt, ..) => self.after(SYNC, What::Recorded(attempt)),
                Action::Send(attempt, agent) => {
                    let at_once = self.schedule.at_once(attempt);
                    self.note("send", attempt, &format!(" to lane {}, 1 of {at_once}", lane_of(agent)));
                    self.after(ONE_WAY, What::Arrives(lane_of(agent), attempt, at_once));
                }
                Action::Cancel(attempt, agent) => {
                    self.note("cancel", attempt, &format!(" at lane {}", lane_of(agent)));
                    self.after(ONE_WAY, What::Cancels(lane_of(agent), attempt));
                }
                Action::TakeBack(attempt, agent) => {
                    self.note("return", attempt, &format!(" from lane {}", lane_of(agent)));
                    self.after(ONE_WAY, What::TakesBack(lane_of(agent), attempt));
                }
                Action::Commit(attempt) => {
                    self.note("commit", attempt, "");
                    self.after(SYNC, What::Committed(attempt.chunk));
                }
                Action::End(attempt, class) => self.note("end", attempt, &format!(", {class}")),
                Action::Drop(attempt) => self.note("drop", attempt, ""),
                Action::Fail(..)
                | Action::FailNeed(..)
                | Action::Fill(_)
                | Action::Recall(..)
                | Action::Reattach(_)
                | Action::Unguarded(..)
                | Action::Fetch(..) => {
                    panic!("nothing fails here: {action:?}")
                }
            }
        }
        if let Some(at) = self.schedule.next_deadline(self.now)
            && self.wakes_at.is_none_or(|wakes| at < wakes)
        {
            self.wakes_at = Some(at);
            self.at(at, What::Wakes(at));
        }
    }

    /// Nothing is given to one lane and taken back for another in one breath: the row would be written for nothing.
    fn check_once(&self, actions: &[Action]) {
        for action in actions {
            if let Action::Record(attempt, ..) = action {
                let ends = |action: &Action| matches!(action, Action::End(ended, _) if ended == attempt);
                assert!(!actions.iter().any(ends), "{attempt:?} is recorded to be taken back");
            }
        }
    }

    fn note(&mut self, what: &str, attempt: AttemptId, more: &str) {
        if self.keeps_orders {
            let (now, chunk, no) = (self.now.as_secs_f64(), attempt.chunk.0, attempt.no);
            self.went.orders.push(format!("{now:>8.2} s    {what:<7} chunk {chunk}, attempt {no}{more}"));
        }
    }

    fn after(&mut self, delay: Duration, what: What) {
        self.at(self.now + delay, what);
    }

    fn at(&mut self, at: Duration, what: What) {
        self.number += 1;
        self.agenda.push(Reverse((at, self.number, what)));
    }
}
