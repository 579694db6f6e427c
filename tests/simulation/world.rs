//! Virtual time, network and faults; above 500 lines because all of it changes one state. A seed decides all.
//!
//! What happens beside the agents, their locks and their engines, is in `agents.rs`.

mod agents;
mod alive;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;
use tropa_agent::admission::{Event as Arrived, Holding, Key};
use tropa_coordinator::{
    liveness::Input,
    schedule::{Action, Event, Install as Listed, ModelIndex},
};
use tropa_proto::{
    failure::{Class, Reason},
    id::{AgentId, AttemptId, Incarnation, MachineId},
    message::{Place as At, Refusal},
};

use super::{
    coordinator::{Coordinator, Disk, Step},
    history::History,
    install::{Arrival, Install, agent, install_of},
};

/// Who the coordinator is to the agents.
const COORDINATOR: AgentId = AgentId([200; 32]);

/// The job ends within this time after the last fault: the longest wait of the scheduler, and the work.
const ENDS_WITHIN: Duration = Duration::from_secs(60 * 60);

/// A stream on which nothing is heard for so long is given up.
const HELLO: Duration = Duration::from_secs(5);

/// How long the roster remembers an agent that is out of reach.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(35);

/// Where an install is: its devices, and the kernel whose locks its agent sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) devices: &'static [u8],
    pub(super) kernel: u8,
}

/// What goes wrong, and until when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    pub(super) until: Duration,
    pub(super) coordinator: bool,
    pub(super) agents: bool,
    pub(super) engines: bool,
}

impl Faults {
    pub(super) fn none() -> Self {
        Self { until: Duration::ZERO, coordinator: false, agents: false, engines: false }
    }
}

/// What an agent says on a stream.
#[derive(Clone, Debug)]
enum Said {
    Hello,
    Accepted(At),
    Refused(Refusal),
    Failed(Reason),
    Done,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillAgent(usize),
    StartAgent(usize),
    StopAgent(usize),
    ContinueAgent(usize),
    Cut(usize),
    Heal(usize),
    KillCoordinator,
    StartCoordinator,
}

#[derive(Clone, Debug)]
enum What {
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
        install: usize,
        life: u64,
        attempt: AttemptId,
        hung_up: bool,
    },
    FromAgent {
        stream: u64,
        said: Said,
    },
    NoHello {
        stream: u64,
    },
    Gone {
        install: usize,
        link: u64,
    },
    /// A control stream reaches the agent, or does not.
    Control {
        life: u64,
        install: usize,
        number: u64,
        patience: Duration,
    },
    Attached {
        install: usize,
        number: u64,
        incarnation: Incarnation,
        held: Vec<Holding>,
    },
    Beat {
        install: usize,
        life: u64,
        number: u64,
    },
    Beaten {
        install: usize,
        number: u64,
    },
    Synced {
        life: u64,
        step: Step,
    },
    CoordinatorTick {
        life: u64,
    },
    Roster {
        life: u64,
    },
    Fault(Fault),
}

/// A stream as the coordinator holds it.
#[derive(Debug)]
struct Stream {
    install: usize,
    attempt: AttemptId,
    /// Which connection it is on; a later one has another number.
    link: u64,
    heard: bool,
}

/// A connection between the coordinator and an agent.
#[derive(Debug, Default)]
struct Link {
    number: u64,
    cut: bool,
    /// The coordinator believes that it is there.
    believed: bool,
    left_at: Duration,
}

/// The whole simulation.
#[derive(Debug)]
pub(super) struct World {
    random: Random,
    origin: Instant,
    now: Duration,
    coming: BTreeMap<(Duration, u64), What>,
    count: u64,
    faults: Faults,
    chunks: usize,
    installs: Vec<Install>,
    links: Vec<Link>,
    streams: BTreeMap<u64, Stream>,
    by_attempt: BTreeMap<AttemptId, u64>,
    /// Waiting for the locks of a kernel, the first first.
    waiting: Vec<usize>,
    coordinator: Option<Coordinator>,
    lives: u64,
    disk: Disk,
    synced_at: Duration,
    tick_at: Option<Duration>,
    pub(super) history: History,
}

/// SplitMix64.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from * 1000 + self.below((to - from) * 1000))
    }
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "an origin: only differences to it are used")]
    pub(super) fn new(seed: u64, places: Vec<Place>, chunks: usize, faults: Faults) -> Self {
        let mut world = Self {
            random: Random(seed),
            origin: Instant::now(),
            now: Duration::ZERO,
            coming: BTreeMap::new(),
            count: 0,
            faults,
            chunks,
            links: places.iter().map(|_| Link::default()).collect(),
            installs: places.into_iter().map(Install::new).collect(),
            streams: BTreeMap::new(),
            by_attempt: BTreeMap::new(),
            waiting: Vec::new(),
            coordinator: None,
            lives: 0,
            disk: Disk::default(),
            synced_at: Duration::ZERO,
            tick_at: None,
            history: History::default(),
        };
        world.plan_faults();
        world.fault(Fault::StartCoordinator);
        world
    }

    /// Goes on until every chunk is on disk.
    pub(super) fn run_to_the_end(&mut self) {
        while self.history.ended() < self.chunks {
            let Some(((at, _), what)) = self.coming.pop_first() else {
                panic!("{:?}: nothing will ever happen again, and {} chunks are open", self.now, self.open())
            };
            self.now = at;
            assert!(
                at < self.faults.until + ENDS_WITHIN,
                "{at:?}: the job does not end: {} chunks are open",
                self.open()
            );
            self.happen(what);
        }
    }

    fn open(&self) -> usize {
        self.chunks - self.history.ended()
    }

    fn plan_faults(&mut self) {
        let mut at = Duration::from_millis(200);
        while self.faults.agents && at < self.faults.until {
            let install = usize::try_from(self.random.below(self.installs.len() as u64)).unwrap_or(0);
            let (begins, ends) = match self.random.below(3) {
                0 => (Fault::KillAgent(install), Fault::StartAgent(install)),
                1 => (Fault::StopAgent(install), Fault::ContinueAgent(install)),
                _ => (Fault::Cut(install), Fault::Heal(install)),
            };
            let lasts = if self.random.below(4) == 0 {
                self.random.ms(10_000, 60_000)
            } else {
                self.random.ms(10, 5000)
            };
            self.at(at, What::Fault(begins));
            self.at(at + lasts, What::Fault(ends));
            at += self.random.ms(100, 6000);
        }
        let mut at = self.random.ms(100, 3000);
        while self.faults.coordinator && at < self.faults.until {
            let back = at + self.random.ms(50, 5000);
            self.at(at, What::Fault(Fault::KillCoordinator));
            self.at(back, What::Fault(Fault::StartCoordinator));
            at = back + self.random.ms(20, 8000);
        }
    }

    fn at(&mut self, at: Duration, what: What) {
        self.count += 1;
        self.coming.insert((at.max(self.now), self.count), what);
    }

    fn after(&mut self, wait: Duration, what: What) {
        self.at(self.now + wait, what);
    }

    fn happen(&mut self, what: What) {
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
            What::EngineEnds { install, life, attempt, hung_up } => {
                self.engine_ends(install, life, attempt, hung_up)
            }
            What::FromAgent { stream, said } => self.hear(stream, said),
            What::NoHello { stream } => {
                if self.streams.get(&stream).is_some_and(|stream| !stream.heard) {
                    self.break_off(stream);
                }
            }
            What::Gone { install, link } => self.notice(install, link),
            What::Control { life, install, number, patience } => {
                self.control_arrives(life, install, number, patience)
            }
            What::Attached { install, number, incarnation, held } => {
                self.attached(install, number, incarnation, &held)
            }
            What::Beat { install, life, number } => self.beat(install, life, number),
            What::Beaten { install, number } => self.beaten(install, number),
            What::Synced { life, step } => self.synced(life, &step),
            What::CoordinatorTick { life } => {
                if self.is_life(life) && self.tick_at == Some(self.now) {
                    self.tick_at = None;
                    self.judge();
                    self.tell(Event::Tick);
                }
            }
            What::Roster { life } => {
                if self.is_life(life) {
                    self.roster();
                }
            }
            What::Fault(fault) => self.fault(fault),
        }
    }

    fn is_life(&self, life: u64) -> bool {
        self.coordinator.as_ref().is_some_and(|coordinator| coordinator.life == life)
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::KillAgent(install) => {
                let agent = &mut self.installs[install];
                if !std::mem::take(&mut agent.up) {
                    return;
                }
                // The kernel closes its connections: the engine stops, the locks are free.
                for _ in std::mem::take(&mut agent.engine) {
                    self.history.engine_ends(install, agent.place.devices);
                }
                (agent.life, agent.stopped) = (agent.life + 1, false);
                agent.deferred.clear();
                self.release(install);
                self.disconnect(install, 50);
            }
            Fault::StartAgent(install) => {
                if !self.installs[install].up {
                    self.installs[install].restart();
                    self.connect(install);
                }
            }
            Fault::StopAgent(install) => {
                if self.installs[install].up {
                    self.installs[install].stopped = true;
                    self.disconnect(install, 25_000);
                }
            }
            Fault::ContinueAgent(install) => {
                if std::mem::take(&mut self.installs[install].stopped) {
                    let life = self.installs[install].life;
                    for arrival in std::mem::take(&mut self.installs[install].deferred) {
                        self.arrive(install, life, arrival);
                    }
                    self.connect(install);
                }
            }
            Fault::Cut(install) => {
                self.links[install].cut = true;
                self.disconnect(install, 25_000);
            }
            Fault::Heal(install) => {
                self.links[install].cut = false;
                self.connect(install);
            }
            Fault::KillCoordinator => {
                self.coordinator = None;
                self.streams.clear();
                self.by_attempt.clear();
                self.links.iter_mut().for_each(|link| link.believed = false);
            }
            Fault::StartCoordinator => {
                if self.coordinator.is_none() {
                    self.lives += 1;
                    self.tick_at = None;
                    self.coordinator =
                        Some(Coordinator::start(&self.disk, self.chunks, self.lives, self.now));
                    for install in 0..self.installs.len() {
                        self.connect(install);
                    }
                    self.roster();
                }
            }
        }
    }

    /// The connection is of no use any more, which the coordinator notices within so many milliseconds, if nothing
    /// repairs it before.
    fn disconnect(&mut self, install: usize, within: u64) {
        let (link, wait) = (self.links[install].number, self.random.ms(0, within));
        self.after(wait, What::Gone { install, link });
    }

    fn connect(&mut self, install: usize) {
        if self.works(install) && self.coordinator.is_some() {
            self.lose_connection(install);
            self.links[install].number += 1;
            self.links[install].believed = true;
            self.roster();
            self.alive(Input::Connected(agent(install)));
        }
    }

    fn works(&self, install: usize) -> bool {
        let agent = &self.installs[install];
        agent.up && !agent.stopped && !self.links[install].cut
    }

    fn notice(&mut self, install: usize, number: u64) {
        if self.links[install].number == number && self.links[install].believed {
            self.lose_connection(install);
            self.roster();
            let life = self.lives;
            self.after(FORGOTTEN_AFTER, What::Roster { life });
            self.connect(install);
        }
    }

    fn lose_connection(&mut self, install: usize) {
        let now = self.now;
        let link = &mut self.links[install];
        if std::mem::take(&mut link.believed) {
            link.left_at = now;
            let lost = self.streams.iter().filter(|(_, stream)| stream.install == install).map(|(id, _)| *id);
            for stream in lost.collect::<Vec<_>>() {
                self.break_off(stream);
            }
            self.control_breaks(install);
        }
    }

    fn roster(&mut self) {
        let known = |install: &usize| {
            let link = &self.links[*install];
            link.believed || self.now < link.left_at + FORGOTTEN_AFTER
        };
        let all = || 0..self.installs.len();
        let place = |install: usize| self.installs[install].place;
        let listed = all().filter(|install| self.links[*install].believed).map(|install| {
            let shares = |other: &usize| {
                *other != install
                    && place(*other).devices.iter().any(|device| place(install).devices.contains(device))
            };
            let rivals: Vec<usize> = all().filter(known).filter(shares).collect();
            let apart = rivals.iter().copied().filter(|other| place(*other).kernel != place(install).kernel);
            Listed {
                agent: agent(install),
                incarnation: self.installs[install].incarnation,
                machine: MachineId(agent(usize::from(place(install).devices[0]))),
                width: 1,
                models: BTreeSet::from([ModelIndex(0)]),
                warm: BTreeSet::new(),
                unguarded: apart.map(agent).collect(),
                rivals: rivals.iter().copied().map(agent).collect(),
            }
        });
        let listed = listed.collect();
        self.tell(Event::Roster(listed));
    }

    fn tell(&mut self, event: Event) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let now = self.now - coordinator.started;
        let actions = coordinator.schedule.handle(event, now);
        for action in actions {
            match action {
                Action::Record(attempt, agent, run) => self.submit(Step::Attempt(attempt, agent, run)),
                Action::Send(attempt, agent) => self.open_stream(attempt, install_of(agent), Arrival::run),
                Action::Recall(attempt, agent) => {
                    self.open_stream(attempt, install_of(agent), |stream, key, _| {
                        Arrival::Cancel(stream, key)
                    })
                }
                Action::Fetch(attempt, agent) => {
                    self.open_stream(attempt, install_of(agent), |stream, key, _| Arrival::Fetch(stream, key))
                }
                Action::Reattach(agent) => self.ask(agent),
                Action::Cancel(attempt, _) => self.order(attempt, Arrival::Cancel),
                Action::End(attempt, class) => self.submit(Step::Ended(attempt, class)),
                Action::Fail(_, attempt, class) => self.submit(Step::Failed(attempt, class)),
                Action::Fill(_) | Action::FailNeed(..) => panic!("these chunks need no others: {action:?}"),
                Action::Commit(attempt) => self.submit(Step::Result(attempt)),
                Action::Drop(attempt) => self.submit(Step::Ended(attempt, Class::Superseded)),
            }
        }
        self.plan_tick();
    }

    fn submit(&mut self, step: Step) {
        // In order, like the one thread that writes.
        self.synced_at = self.synced_at.max(self.now) + self.random.ms(1, 10);
        let life = self.lives;
        self.at(self.synced_at, What::Synced { life, step });
    }

    fn synced(&mut self, life: u64, step: &Step) {
        if !self.is_life(life) {
            return;
        }
        let first = self.disk.write(step);
        match step {
            Step::Attempt(attempt, ..) => self.tell(Event::Recorded(*attempt)),
            Step::Ended(attempt, _) => self.order(*attempt, |_, key| Arrival::Ack(key)),
            Step::Result(attempt) | Step::Failed(attempt, _) => {
                if first {
                    let how = if let Step::Failed(_, class) = step { Err(*class) } else { Ok(*attempt) };
                    self.history.commits(attempt.chunk, how);
                }
                self.order(*attempt, |_, key| Arrival::Ack(key));
                self.tell(Event::Committed(attempt.chunk));
            }
        }
    }

    fn open_stream(
        &mut self,
        attempt: AttemptId,
        install: usize,
        first: impl Fn(u64, Key, Incarnation) -> Arrival,
    ) {
        self.count += 1;
        let (id, link) = (self.count, self.links[install].number);
        self.streams.insert(id, Stream { install, attempt, link, heard: false });
        self.by_attempt.insert(attempt, id);
        let incarnation = self.installs[install].incarnation;
        self.order(attempt, |stream, key| first(stream, key, incarnation));
        self.after(HELLO, What::NoHello { stream: id });
        self.alive(Input::Wanted(agent(install)));
    }

    fn order(&mut self, attempt: AttemptId, make: impl Fn(u64, Key) -> Arrival) {
        let Some(id) = self.by_attempt.get(&attempt).copied() else { return };
        let Some(stream) = self.streams.get(&id) else { return };
        let (install, link) = (stream.install, stream.link);
        if self.installs[install].up && !self.links[install].cut && self.links[install].number == link {
            let life = self.installs[install].life;
            let arrival = make(id, (COORDINATOR, attempt));
            let wait = self.random.ms(1, 30);
            self.after(wait, What::ToAgent { install, life, arrival });
        }
    }

    fn break_off(&mut self, id: u64) {
        if let Some(stream) = self.streams.remove(&id) {
            if self.by_attempt.get(&stream.attempt) == Some(&id) {
                self.by_attempt.remove(&stream.attempt);
            }
            self.tell(Event::Detached(stream.attempt));
        }
    }

    fn hear(&mut self, id: u64, said: Said) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if self.links[stream.install].number != stream.link || self.links[stream.install].cut {
            return;
        }
        stream.heard = true;
        let (attempt, install) = (stream.attempt, stream.install);
        self.alive(Input::Heard(agent(install)));
        match said {
            Said::Hello => {}
            Said::Accepted(place) => self.tell(Event::Accepted(attempt, place)),
            Said::Refused(refusal) => {
                self.streams.remove(&id);
                self.tell(Event::Refused(attempt, refusal));
            }
            Said::Failed(reason) => self.tell(Event::Failed(attempt, reason)),
            Said::Done => self.tell(Event::Finished(attempt)),
        }
        self.idle(install);
    }
}
