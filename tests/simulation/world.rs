//! Virtual time and the network: what is on its way, and whom it reaches. A seed decides all.

mod agents;
mod alive;
mod processes;
mod sides;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tropa_agent::admission::{Event as Arrived, Holding, Key};
use tropa_proto::{
    failure::Reason,
    id::{AgentId, AttemptId, Incarnation, JobId, hex},
    message::{Place as At, Refusal},
};

use super::{
    Run, Scenario,
    clock::Clock,
    coordinator::{Side, Step},
    faults::Planned,
    install::{Arrival, Install},
    random::Random,
};
use crate::history::{Event, Expect, Judge, Peer, Violation, What as Happened};

/// A job ends within this time after the last fault: the longest wait of the scheduler, and the work.
const ENDS_WITHIN: Duration = Duration::from_secs(60 * 60);

/// A stream on which nothing is heard for so long is given up.
const HELLO: Duration = Duration::from_secs(5);

/// Longest time that a process is stopped, and a clock's error: what a limit of the programs may last from outside.
const STOPPED: Duration = Duration::from_secs(70);

/// Coordinators count from here in the history; installs from 0.
const SIDES: Peer = 100;

/// Where an install is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its devices.
    pub devices: Vec<u8>,
    /// The kernel whose locks its agent sees.
    pub kernel: u8,
    /// Requests that it holds at once.
    pub width: usize,
}

impl Place {
    /// An install of width 1.
    #[must_use]
    pub fn new(devices: &[u8], kernel: u8) -> Self {
        Self { devices: devices.to_vec(), kernel, width: 1 }
    }

    pub(super) fn shares(&self, other: &Self) -> bool {
        self.devices.iter().any(|device| other.devices.contains(device))
    }
}

/// What an agent says on a stream.
#[derive(Clone, Debug)]
pub(super) enum Said {
    Hello,
    Accepted(At),
    Refused(Refusal),
    Failed(Reason),
    Done,
}

/// What will happen.
#[derive(Clone, Debug)]
pub(super) enum What {
    ToAgent {
        install: usize,
        life: u64,
        arrival: Arrival,
    },
    AgentTick {
        install: usize,
        life: u64,
    },
    EngineEnds {
        request: u64,
    },
    FromAgent {
        side: usize,
        stream: u64,
        said: Said,
    },
    NoHello {
        side: usize,
        stream: u64,
    },
    Reset {
        side: usize,
        stream: u64,
    },
    Gone {
        side: usize,
        install: usize,
        link: u64,
    },
    /// A control stream reaches the agent, or does not.
    Control {
        side: usize,
        life: u64,
        install: usize,
        number: u64,
        patience: Duration,
    },
    Attached {
        side: usize,
        install: usize,
        number: u64,
        incarnation: Incarnation,
        held: Vec<Holding>,
    },
    Beat {
        install: usize,
        life: u64,
        side: usize,
        number: u64,
    },
    Beaten {
        side: usize,
        install: usize,
        number: u64,
    },
    Synced {
        side: usize,
        life: u64,
    },
    Retry {
        side: usize,
        life: u64,
    },
    Reported {
        side: usize,
        life: u64,
        step: Step,
    },
    SideTick {
        side: usize,
        life: u64,
    },
    Roster {
        side: usize,
        life: u64,
    },
    Begins(usize),
    Ends(usize),
}

/// A stream as its coordinator holds it.
#[derive(Debug)]
pub(super) struct Stream {
    install: usize,
    attempt: AttemptId,
    /// Which connection it is on.
    link: u64,
    heard: bool,
    /// What comes later on it comes after this.
    last_at: Duration,
}

/// A request at an engine.
#[derive(Debug)]
pub(super) struct Request {
    install: usize,
    /// Which life of the agent sent it.
    life: u64,
    key: Key,
    /// Why there will be no result.
    fails: Option<Reason>,
    lingers: Duration,
    /// Nobody waits for it any more, and this is when it ends.
    orphan_until: Option<Duration>,
}

/// The whole simulation.
pub(super) struct World {
    random: Random,
    origin: Instant,
    now: Duration,
    coming: BTreeMap<(Duration, u64), What>,
    count: u64,
    scenario: Scenario,
    plan: Vec<Planned>,
    /// From when on nothing goes wrong any more.
    quiet: Duration,
    installs: Vec<Install>,
    sides: Vec<Side>,
    streams: BTreeMap<u64, Stream>,
    by_attempt: BTreeMap<AttemptId, u64>,
    requests: BTreeMap<u64, Request>,
    /// Settle records in the lock files: whose install, which attempt.
    records: BTreeSet<(usize, Key)>,
    /// Waiting for the locks of a kernel, the first first.
    waiting: Vec<usize>,
    judge: Judge,
    /// What happened, where somebody wants to look at it afterwards.
    kept: Option<Vec<Event>>,
    hash: Sha256,
    events: u64,
}

/// Who a coordinator is to the agents.
pub(super) fn side_id(side: usize) -> AgentId {
    AgentId([200 + u8::try_from(side).expect("few coordinators"); 32])
}

/// Which coordinator that is.
pub(super) fn side_of(id: AgentId) -> usize {
    usize::from(id.0[0]) - 200
}

fn peer(number: usize) -> Peer {
    Peer::try_from(number).expect("few peers")
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "an origin: only differences to it are used")]
    pub(super) fn new(seed: u64, scenario: Scenario, plan: Vec<Planned>) -> Self {
        let mut random = Random(seed);
        let mut clock = || if scenario.profile.clocks { Clock::off(&mut random) } else { Clock::TRUE };
        let installs: Vec<Install> =
            scenario.places.iter().map(|place| Install::new(place.clone(), clock())).collect();
        let links = vec![Default::default(); installs.len()];
        let sides: Vec<Side> = (0..)
            .zip(&scenario.jobs)
            .map(|(number, chunks)| Side {
                job: JobId([number + 1; 16]),
                chunks: *chunks,
                clock: clock(),
                links: links.clone(),
                disk: Default::default(),
                pending: Default::default(),
                full: false,
                paused: false,
                life: 0,
                up: None,
                stopped: false,
                stopped_at: Duration::ZERO,
                deferred: Vec::new(),
            })
            .collect();
        let widths = (0..).zip(&scenario.places).filter_map(|(install, place)| {
            Some((install, u32::try_from(place.width).ok()?)).filter(|(_, width)| *width > 1)
        });
        let expect = Expect {
            jobs: sides.iter().map(|side| (side.job.0, side.chunks)).collect(),
            widths: widths.collect(),
            ..Expect::default()
        };
        let last = plan.iter().map(|planned| planned.until).max().unwrap_or_default();
        let mut world = Self {
            random,
            origin: Instant::now(),
            now: Duration::ZERO,
            coming: BTreeMap::new(),
            count: 0,
            quiet: last.max(scenario.profile.until),
            installs,
            sides,
            streams: BTreeMap::new(),
            by_attempt: BTreeMap::new(),
            requests: BTreeMap::new(),
            records: BTreeSet::new(),
            waiting: Vec::new(),
            judge: Judge::new(expect),
            kept: None,
            hash: Sha256::new(),
            events: 0,
            scenario,
            plan,
        };
        for number in 0..world.plan.len() {
            let Planned { fault, from, until } = world.plan[number];
            // What is wrong from the beginning is so before anybody starts.
            if from.is_zero() {
                world.fault_begins(fault);
            } else {
                world.at(from, What::Begins(number));
            }
            world.at(until, What::Ends(number));
        }
        for side in 0..world.sides.len() {
            world.start_side(side);
        }
        world
    }

    /// The same, and keeps what happened.
    pub(super) fn run_and_keep(mut self) -> (Run, Vec<Event>) {
        self.kept = Some(Vec::new());
        let run = self.go();
        (run, self.kept.unwrap_or_default())
    }

    /// Goes on until every chunk is on disk, or a rule is broken.
    pub(super) fn run(mut self) -> Run {
        self.go()
    }

    fn go(&mut self) -> Run {
        let mut stuck = None;
        while self.open() > 0 && self.judge.violations().is_empty() {
            let next = self.coming.pop_first().filter(|((at, _), _)| *at < self.quiet + ENDS_WITHIN);
            let Some(((at, _), what)) = next else {
                stuck = Some(self.now);
                break;
            };
            self.now = at;
            self.events += 1;
            self.happen(what);
        }
        let (events, time, faults) = (self.events, self.now, self.plan.len());
        let (done, executions, forgotten) =
            (self.judge.done(), self.judge.executions(), self.judge.forgotten());
        let failed = self.judge.failures().map(|((_, chunk), class)| (chunk, class)).collect();
        let hash = hex(&std::mem::take(&mut self.hash).finalize());
        let mut violations = match (stuck, self.judge.violations()) {
            (None, [_, ..]) => self.judge.violations().to_vec(),
            (None | Some(_), _) => std::mem::take(&mut self.judge).finish(),
        };
        if let (Some(at), true) = (stuck, violations.is_empty()) {
            let at = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
            violations.push(Violation { rule: 10, at, what: "nothing will ever happen again".to_owned() });
        }
        Run { violations, hash, events, done, failed, executions, forgotten, faults, time }
    }

    fn open(&self) -> u32 {
        self.sides.iter().map(|side| side.chunks - self.judge.closed(side.job.0)).sum()
    }

    /// Something really happened.
    fn tell_history(&mut self, by: Peer, what: Happened) {
        let at = u64::try_from(self.now.as_micros()).unwrap_or(u64::MAX);
        let event = Event { at, by, what };
        self.hash.update(format!("{event:?}\n"));
        self.judge.take(&event);
        self.kept.iter_mut().for_each(|kept| kept.push(event.clone()));
    }

    /// A wait of a process begins; it ends within the limit, or later by as long as a process can be stopped.
    fn begins_to_wait(&mut self, by: Peer, name: u64, limit: Duration) {
        let micros = u64::try_from((limit + STOPPED).as_micros()).unwrap_or(u64::MAX);
        self.tell_history(by, Happened::Wait(name, micros));
    }

    fn at(&mut self, at: Duration, what: What) {
        self.count += 1;
        self.coming.insert((at.max(self.now), self.count), what);
    }

    fn after(&mut self, wait: Duration, what: What) {
        self.at(self.now + wait, what);
    }

    fn happen(&mut self, what: What) {
        if let Some(side) = stopped_with(&what)
            && self.sides[side].stopped
        {
            self.sides[side].deferred.push(what);
            return;
        }
        match what {
            What::ToAgent { install, life, arrival } => self.arrive(install, life, arrival),
            What::AgentTick { install, life } => {
                let agent = &mut self.installs[install];
                if agent.life == life && agent.tick_at == Some(self.now) {
                    agent.tick_at = None;
                    let someone_waits = self.waiting.iter().any(|other| self.contend(*other, install));
                    self.arrive(
                        install,
                        life,
                        Arrival::Own(Arrived::Tick { someone_waits, displaced: false }),
                    );
                }
            }
            What::EngineEnds { request } => self.engine_ends(request),
            What::FromAgent { side, stream, said } => self.hear(side, stream, said),
            What::NoHello { side, stream } => {
                if self.streams.get(&stream).is_some_and(|stream| !stream.heard) {
                    self.break_off(side, stream);
                }
            }
            What::Reset { side, stream } => self.break_off(side, stream),
            What::Gone { side, install, link } => self.notice(side, install, link),
            What::Control { side, life, install, number, patience } => {
                self.control_arrives(side, life, install, number, patience);
            }
            What::Attached { side, install, number, incarnation, held } => {
                self.attached(side, install, number, incarnation, &held);
            }
            What::Beat { install, life, side, number } => self.beat(install, life, side, number),
            What::Beaten { side, install, number } => self.beaten(side, install, number),
            What::Synced { side, life } => self.sync(side, life),
            What::Retry { side, life } => self.retry(side, life),
            What::Reported { side, life, step } => self.reported(side, life, &step),
            What::SideTick { side, life } => self.side_tick(side, life),
            What::Roster { side, life } => {
                if self.sides[side].life == life {
                    self.roster(side);
                }
            }
            What::Begins(number) => self.fault_begins(self.plan[number].fault),
            What::Ends(number) => self.fault_ends(self.plan[number].fault),
        }
    }

    /// Whether anything may still go wrong by chance.
    fn is_bad(&self) -> bool {
        self.now < self.scenario.profile.until
    }

    /// Puts a message to an agent on the network. The stream carries it once, late, twice, or breaks.
    fn post_to_agent(&mut self, side: usize, stream: u64, install: usize, arrival: Arrival) {
        let network = self.scenario.profile.network;
        let bad = self.is_bad();
        if bad && self.random.percent(network.loses) {
            let breaks = self.random.ms(0, 25_000);
            self.after(breaks, What::Reset { side, stream });
            return;
        }
        let life = self.installs[install].life;
        let late = bad && self.random.percent(network.delays);
        let wait = if late { self.random.ms(1, 60_000) } else { self.random.ms(1, 30) };
        if bad && self.random.percent(network.doubles) {
            let again = self.random.ms(1, 60_000);
            self.after(again, What::ToAgent { install, life, arrival: arrival.clone() });
        }
        self.after(wait, What::ToAgent { install, life, arrival });
    }

    /// The same for what an agent says; a stream keeps its order.
    fn post_from_agent(&mut self, side: usize, id: u64, said: Said) {
        let network = self.scenario.profile.network;
        let bad = self.is_bad();
        if bad && self.random.percent(network.loses) {
            let breaks = self.random.ms(0, 25_000);
            self.after(breaks, What::Reset { side, stream: id });
            return;
        }
        let late = bad && self.random.percent(network.delays);
        let wait = if late { self.random.ms(1, 60_000) } else { Duration::from_millis(5) };
        let twice = (bad && self.random.percent(network.doubles)).then(|| self.random.ms(1, 60_000));
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.last_at = stream.last_at.max(self.now + wait);
        let at = stream.last_at;
        self.at(at, What::FromAgent { side, stream: id, said: said.clone() });
        if let Some(again) = twice {
            self.at(at + again, What::FromAgent { side, stream: id, said });
        }
    }
}

/// The coordinator to which this happens, which does not notice while it is stopped.
fn stopped_with(what: &What) -> Option<usize> {
    match what {
        What::FromAgent { side, .. }
        | What::NoHello { side, .. }
        | What::Reset { side, .. }
        | What::Gone { side, .. }
        | What::Control { side, .. }
        | What::Attached { side, .. }
        | What::Beaten { side, .. }
        | What::Synced { side, .. }
        | What::Retry { side, .. }
        | What::Reported { side, .. }
        | What::SideTick { side, .. }
        | What::Roster { side, .. } => Some(*side),
        What::ToAgent { .. }
        | What::AgentTick { .. }
        | What::Beat { .. }
        | What::EngineEnds { .. }
        | What::Begins(_)
        | What::Ends(_) => None,
    }
}
