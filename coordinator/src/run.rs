//! The loop of a job: turns what happens into events for the scheduler, and its actions into effects.
//!
//! All waiting is here and all deciding is in `schedule.rs`. The order of steps is that of `reliability.md` §7.4:
//! an attempt is on disk before it is sent, a result is on disk before it is acknowledged. Commits run beside the
//! next chunk and cost the lane nothing.

mod alive;
mod effects;
mod learned;
mod naming;
mod reports;
mod standstill;
mod widths;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::sync::mpsc;
use tropa_proto::{
    failure::{Class, Reason},
    id::{AgentId, AttemptId, ChunkIndex, Incarnation},
    message::{Hello, Outcome, Role},
    uid::ShownId,
};

use self::{naming::Told, widths::Widths};
use crate::{
    attempt::{Attempt, Partial, Report, Streams},
    clock::Clock,
    control::{Control, Saying},
    exit::{Exit, Failed, OrExit as _},
    journal::{Cancel, Committed, Journal, Step, Token, Writer},
    liveness::{Input, Liveness},
    members::{Change, Members},
    plan::{self, Denials, Pinned},
    progress::{MachineProgress, Progress, Snapshot},
    report::Output,
    schedule::{Event, Install, ModelIndex, Schedule},
    speeds::Speeds,
    stop::{Stop, Stopped},
};

/// The loop turns at least this often: bars move, silence is noticed.
const TURN: Duration = Duration::from_millis(250);

/// How often the numbers on the terminal change: faster than this nobody reads.
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// Reports of attempts that may wait for the loop; a few per lane, and progress is dropped first.
const REPORTS: usize = 1024;

/// What agents say on control streams; a beat each second of every agent, and the loop turns far more often.
const SAYINGS: usize = 1024;

/// How long the last acknowledgements may take to leave at the end: far more than a busy network needs.
const ACKS_WITHIN: Duration = Duration::from_secs(2);

/// How a job ended.
#[derive(Debug)]
pub enum End {
    /// Every chunk is on disk.
    Done,
    /// The user stopped it; what ran has ended or been left to its agent.
    Stopped(Stopped),
    /// The user gave it up; what ran has ended.
    Cancelled,
    /// No install can ever run what is left.
    Stuck(Stuck),
}

/// Why nothing can run what is left of a job.
#[derive(Debug)]
pub struct Stuck {
    /// Install by install; ends with a line break.
    pub why: String,
    /// [`Exit::NotAuthorised`] where whoever could run it denies it, else [`Exit::NothingCanRun`].
    pub exit: Exit,
}

/// A job at work.
#[derive(Debug)]
pub struct Runner<'a> {
    /// Who is there.
    pub members: &'a mut Members,
    /// The record of the job.
    pub journal: &'a Journal,
    /// The models of the job, in the order of their indices.
    pub models: Vec<Pinned>,
    /// Where results go.
    pub output: &'a mut Output,
    /// What the user sees meanwhile.
    pub progress: &'a mut Progress,
    /// The clock of the command.
    pub clock: Clock,
    /// How fast installs were in earlier jobs.
    pub speeds: Speeds,
    /// How long a job without any install that could run it waits for one.
    pub patience: Duration,
    /// The one agent that may work, for a measurement of it alone; absent: all.
    pub only: Option<AgentId>,
}

struct Loop<'a> {
    run: Runner<'a>,
    schedule: Schedule,
    writer: Writer,
    backlog: VecDeque<(Token, Step)>,
    tokens: BTreeMap<Token, After>,
    next_token: u64,
    reports: mpsc::Sender<(AttemptId, Report)>,
    streams: Streams,
    attempts: BTreeMap<AttemptId, Live>,
    /// Results whose stream broke off before they were whole.
    partials: BTreeMap<AttemptId, Partial>,
    liveness: Liveness,
    controls: BTreeMap<AgentId, Control>,
    next_control: u64,
    sayings: mpsc::Sender<Saying>,
    /// When the loop turned last, on the clock that counts a suspend, and how long it meant to wait then.
    turned: (Duration, Duration),
    results: BTreeMap<AttemptId, (Box<Outcome>, Vec<u8>)>,
    /// Why attempts failed, until the scheduler has judged them.
    details: BTreeMap<AttemptId, (Option<Reason>, String)>,
    /// What each agent said last when it did not bring a result, for a job that gets stuck.
    last_words: BTreeMap<AgentId, String>,
    /// What agents have denied in their present run.
    denials: Denials,
    installs: BTreeMap<AgentId, Install>,
    lanes: BTreeMap<AgentId, String>,
    /// The machines of agents, by the ids that people see.
    machines: BTreeMap<AgentId, ShownId>,
    snapshot: Snapshot,
    started: Duration,
    hello: Hello,
    stuck_since: Option<Duration>,
    /// What was last said of those who are waited for.
    waits_for: String,
    stopped: Option<Stopped>,
    cancelled: Option<Cancel>,
    /// What the journal was told of names.
    told: Told,
    /// The width of the vectors of a job of embeddings.
    widths: Widths,
    shown: Duration,
}

/// An attempt that has been sent.
struct Live {
    attempt: Attempt,
    agent: AgentId,
    tokens: u64,
    note: String,
}

/// What is to be done when a step is on disk.
enum After {
    Recorded(AttemptId),
    Ended(AttemptId, Class, Option<Attempt>),
    Closed {
        chunk: ChunkIndex,
        attempt: AttemptId,
        done: bool,
        tokens: u64,
        agent: Option<AgentId>,
    },
    /// The request of a chunk that builds on others.
    Filled(ChunkIndex),
    /// A failure that no attempt decided.
    Untried(ChunkIndex),
    Nothing,
}

impl Runner<'_> {
    /// Works on the job until it is done, stopped or stuck. What was committed before stays as it is.
    ///
    /// # Errors
    /// When the journal or the output cannot be written any more.
    pub async fn run(mut self, schedule: Schedule, stop: &mut Stop) -> Result<End, Failed> {
        for (index, pinned) in (0..).zip(&mut self.models) {
            pinned.asks = schedule.asks(ModelIndex(index));
        }
        let (writer, mut committed) = self.journal.writer().or_exit(Exit::Io)?;
        let (reports, mut reported) = mpsc::channel(REPORTS);
        let total = u64::from(self.journal.job().chunks);
        let hello = Hello { incarnation: Incarnation::random().or_exit(Exit::Io)?, role: Role::Coordinator };
        let streams = Streams::new(self.members.mesh().clone(), hello.clone(), reports.clone());
        let (sayings, mut said) = mpsc::channel(SAYINGS);
        let boot = self.clock.boot();
        let started = self.clock.now();
        let widths = Widths::of(self.journal, &schedule).or_exit(Exit::Io)?;
        let mut at_work = Loop {
            run: self,
            schedule,
            writer,
            backlog: VecDeque::new(),
            tokens: BTreeMap::new(),
            next_token: 0,
            reports,
            streams,
            attempts: BTreeMap::new(),
            partials: BTreeMap::new(),
            liveness: Liveness::new(hello.incarnation.0),
            controls: BTreeMap::new(),
            next_control: 0,
            sayings,
            turned: (boot, TURN),
            results: BTreeMap::new(),
            details: BTreeMap::new(),
            last_words: BTreeMap::new(),
            denials: Denials::new(),
            installs: BTreeMap::new(),
            lanes: BTreeMap::new(),
            machines: BTreeMap::new(),
            snapshot: Snapshot { total, ..Snapshot::default() },
            started,
            hello,
            stuck_since: None,
            waits_for: String::new(),
            stopped: None,
            cancelled: None,
            told: Told::default(),
            widths,
            shown: Duration::ZERO,
        };
        at_work.begin()?;
        let end = loop {
            if let Some(end) = at_work.end()? {
                break end;
            }
            let wait = at_work.next_turn();
            at_work.turned.1 = wait;
            tokio::select! {
                biased;
                Some((attempt, report)) = reported.recv() => at_work.on_report(attempt, report)?,
                Some((agent, number, said)) = said.recv() => at_work.on_said(agent, number, said)?,
                Some(event) = committed.recv() => at_work.on_committed(event)?,
                change = at_work.run.members.next() => at_work.on_change(&change)?,
                stopped = stop.next() => if let Some(end) = at_work.on_stop(stopped)? { break end },
                () = tokio::time::sleep(wait) => at_work.tell(Event::Tick)?,
            }
            at_work.turn()?;
        };
        at_work.keep_speeds();
        at_work.run.progress.finish();
        let Loop { writer, streams, .. } = at_work;
        // What is queued goes to the disk; its reports are of no use any more. Who is told to stop at once does not
        // wait for a disk that may be full.
        drop(committed);
        match end {
            End::Stopped(Stopped { at_once: true, .. }) => drop(writer),
            End::Done | End::Stopped(_) | End::Cancelled | End::Stuck(_) => {
                writer.finish();
                streams.finish(ACKS_WITHIN).await;
            }
        }
        Ok(end)
    }
}

impl Loop<'_> {
    fn begin(&mut self) -> Result<(), Failed> {
        let (done, failed) = self.run.output.counts();
        (self.snapshot.done, self.snapshot.failed) = (done, failed);
        self.on_change(&Change::Roster)
    }

    fn on_change(&mut self, change: &Change) -> Result<(), Failed> {
        match change {
            Change::Nothing => Ok(()),
            Change::Connected(agent) => {
                self.alive(Input::Connected(*agent))?;
                self.on_change(&Change::Roster)
            }
            Change::Roster => {
                let view = self.run.members.view();
                let mut installs = plan::installs(view, &self.run.models);
                installs.retain(|install| self.run.only.is_none_or(|only| only == install.agent));
                self.lanes = view.installs.iter().map(|i| (i.agent, i.lane.to_string())).collect();
                self.machines = view.installs.iter().map(|i| (i.agent, view.shown(i.machine))).collect();
                self.snapshot.name(&view.machines);
                for step in self.told.take(view) {
                    self.submit(step, After::Nothing);
                }
                let same = self.installs.len() == installs.len()
                    && installs.iter().all(|install| self.installs.get(&install.agent) == Some(install));
                if same {
                    return Ok(());
                }
                let new = installs.iter().map(|install| install.agent);
                let new: Vec<AgentId> = new.filter(|agent| !self.installs.contains_key(agent)).collect();
                self.denials.retain(|agent, _| {
                    let now = installs.iter().find(|install| install.agent == *agent);
                    now.map(|now| now.incarnation) == self.installs.get(agent).map(|known| known.incarnation)
                });
                self.installs = installs.iter().map(|install| (install.agent, install.clone())).collect();
                self.recall_speeds(&new)?;
                self.tell(Event::Roster(installs))
            }
        }
    }

    fn on_committed(&mut self, event: Committed) -> Result<(), Failed> {
        match event {
            Committed::Steps(steps) => {
                for (token, effect) in steps {
                    let after = self.tokens.remove(&token).unwrap_or(After::Nothing);
                    self.after(after, effect)?;
                }
                Ok(())
            }
            Committed::DiskFull => {
                let dir = self.run.journal.dir().display().to_string();
                self.run.progress.say(&format!(
                    "disk.low: no space for the journal in {dir}; nothing new starts until there is, nothing is lost"
                ));
                self.tell(Event::Paused(true))
            }
            Committed::Resumed => {
                self.run.progress.say("there is space again: going on");
                self.tell(Event::Paused(false))
            }
            Committed::Fatal(error) => Err(error).or_exit(Exit::Io),
        }
    }

    fn on_stop(&mut self, stopped: Stopped) -> Result<Option<End>, Failed> {
        if stopped.at_once {
            return Ok(Some(End::Stopped(stopped)));
        }
        self.stopped = Some(stopped);
        self.tell(Event::Stop)?;
        let running = self.attempts.len();
        if running > 0 {
            self.run.progress.say(&format!("stopping: {running} running, ^C again stops at once"));
        }
        Ok(None)
    }

    /// Somebody gave the job up with `tropa cancel`: nothing new starts, and what runs ends or is called off.
    fn on_cancel(&mut self, how: Cancel) -> Result<(), Failed> {
        if self.cancelled >= Some(how) {
            return Ok(());
        }
        if self.cancelled.replace(how).is_none() {
            self.run.progress.say(&format!("cancelled: {} running", self.attempts.len()));
        }
        self.tell(match how {
            Cancel::Gently => Event::Stop,
            Cancel::AtOnce => Event::CallOff,
        })
    }

    /// Keeps why an attempt failed.
    fn note(&mut self, attempt: AttemptId, reason: Option<Reason>, why: String) {
        if let Some(live) = self.attempts.get(&attempt) {
            self.last_words.insert(live.agent, why.clone());
        }
        self.details.insert(attempt, (reason, why));
    }

    fn end(&mut self) -> Result<Option<End>, Failed> {
        self.flush();
        let now = self.now();
        if self.schedule.is_done() && self.tokens.is_empty() && self.backlog.is_empty() {
            return Ok(Some(End::Done));
        }
        if self.cancelled.is_some() && self.schedule.is_idle() && self.tokens.is_empty() {
            return Ok(Some(End::Cancelled));
        }
        if let Some(stopped) = self.stopped
            && self.schedule.is_idle()
            && self.tokens.is_empty()
        {
            return Ok(Some(End::Stopped(stopped)));
        }
        let stuck = self.schedule.stuck(now);
        if stuck.is_empty() {
            self.stuck_since = None;
            self.say_what_opens();
            return Ok(None);
        }
        let since = *self.stuck_since.get_or_insert(now);
        if now.saturating_sub(since) < self.run.patience {
            return Ok(None);
        }
        Ok(Some(End::Stuck(self.why_stuck(&stuck))))
    }

    fn next_turn(&self) -> Duration {
        let now = self.now();
        let deadlines = [self.schedule.next_deadline(now), self.liveness.next_deadline()];
        let deadline = deadlines.into_iter().flatten().min().map_or(TURN, |at| at.saturating_sub(now));
        deadline.clamp(Duration::from_millis(1), TURN)
    }

    fn count(&mut self, done: bool, tokens: u64, agent: Option<AgentId>) {
        if done {
            self.snapshot.done += 1;
        } else {
            self.snapshot.failed += 1;
        }
        if let Some(machine) = agent.and_then(|agent| self.machines.get(&agent)) {
            let entry = self.snapshot.machines.entry(*machine).or_default();
            entry.done += 1;
            entry.tokens += tokens;
        }
    }

    /// What every turn does, whatever happened.
    fn turn(&mut self) -> Result<(), Failed> {
        self.judge()?;
        let now = self.now();
        if now.saturating_sub(self.shown) >= SHOW_EVERY {
            self.shown = now;
            self.show();
            if let Some(how) = self.run.journal.cancel_asked() {
                self.on_cancel(how)?;
            }
            let change = self.run.members.expire();
            self.on_change(&change)?;
        }
        Ok(())
    }

    fn show(&mut self) {
        for machine in self.snapshot.machines.values_mut() {
            (machine.holding, machine.tokens_running) = (0, 0);
            machine.note.clear();
        }
        for live in self.attempts.values() {
            let Some(machine) = self.machines.get(&live.agent) else { continue };
            let machine: &mut MachineProgress = self.snapshot.machines.entry(*machine).or_default();
            machine.holding += 1;
            machine.tokens_running += live.tokens;
            if !live.note.is_empty() {
                machine.note.clone_from(&live.note);
            }
        }
        self.run.progress.show(&self.snapshot, self.now());
    }

    fn now(&self) -> Duration {
        self.run.clock.now().saturating_sub(self.started)
    }
}
