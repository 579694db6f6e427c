//! The scheduler against random worlds: installs with overlapping devices, failures, losses, changing rosters.
//!
//! The world keeps its own book of who holds which device; it never looks into the scheduler.

mod coming_back;
mod shared;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use tropa_coordinator::schedule::{Action, Event, Install, Kind, Largest, ModelIndex, Pace, Schedule, Work};
use tropa_proto::{
    bounded::Text,
    failure::{Class, Reason},
    id::{AgentId, AttemptId, ChunkIndex, EngineRun, Incarnation, JobId, MachineId},
    message::{Place, Refusal},
};

const JOB: JobId = JobId([9; 16]);

fn agent(n: usize) -> AgentId {
    AgentId([u8::try_from(n).expect("few agents") + 1; 32])
}

/// Installs by the devices that they occupy; two that share one are rivals.
fn roster(devices: &[BTreeSet<u8>], widths: &[usize]) -> Vec<Install> {
    let shares = |a: usize, b: usize| a != b && !devices[a].is_disjoint(&devices[b]);
    (0..devices.len())
        .map(|n| Install {
            agent: agent(n),
            incarnation: Incarnation(1),
            engine: EngineRun(1),
            machine: MachineId(agent(devices[n].first().copied().unwrap_or(0) as usize)),
            width: widths[n],
            models: BTreeSet::from([ModelIndex(0)]),
            largest: Largest::default(),
            shut: false,
            warm: BTreeSet::new(),
            loads: BTreeMap::new(),
            rivals: (0..devices.len()).filter(|other| shares(n, *other)).map(agent).collect(),
            unguarded: (0..devices.len()).filter(|other| shares(n, *other)).map(agent).collect(),
            gpu_lanes: None,
            unplaced: Default::default(),
        })
        .collect()
}

/// The world around the scheduler.
struct World {
    schedule: Schedule,
    devices: Vec<BTreeSet<u8>>,
    now: Duration,
    /// What each agent holds, in order; the first `width` run.
    held: BTreeMap<AgentId, Vec<AttemptId>>,
    /// What the engine has ended and the agent still checks.
    checking: Vec<AttemptId>,
    recording: Vec<AttemptId>,
    committing: Vec<ChunkIndex>,
    ended: BTreeMap<ChunkIndex, Result<(), Class>>,
    numbers: BTreeMap<ChunkIndex, u32>,
    /// No two installs that share a device may both hold work, unless a new roster said so only just now.
    excused: bool,
    /// So many installs may hold work at once.
    most: usize,
    /// Chunks of the second model, which is loaded nowhere, may be on any of these devices of their install.
    anywhere: Vec<BTreeSet<u8>>,
    models: Vec<ModelIndex>,
}

impl World {
    fn new(chunks: usize, devices: Vec<BTreeSet<u8>>, widths: &[usize]) -> Self {
        let installs = roster(&devices, widths);
        Self::of(vec![ModelIndex(0); chunks], devices, installs, usize::MAX)
    }

    fn seeded(self, seed: u64) -> Self {
        Self { schedule: self.schedule.with_seed(seed), ..self }
    }

    /// `devices` may be left out where nobody shares any.
    fn of(models: Vec<ModelIndex>, devices: Vec<BTreeSet<u8>>, installs: Vec<Install>, most: usize) -> Self {
        let mut world = Self {
            schedule: Schedule::new(JOB, models.clone()),
            now: Duration::ZERO,
            held: BTreeMap::new(),
            checking: Vec::new(),
            recording: Vec::new(),
            committing: Vec::new(),
            ended: BTreeMap::new(),
            numbers: BTreeMap::new(),
            excused: false,
            most,
            anywhere: Vec::new(),
            models,
            devices,
        };
        world.tell(Event::Roster(installs));
        world
    }

    fn tell(&mut self, event: Event) {
        self.now += Duration::from_micros(700);
        for action in self.schedule.handle(event, self.now) {
            match action {
                Action::Record(attempt, ..) => {
                    let last = self.numbers.insert(attempt.chunk, attempt.no).unwrap_or(0);
                    assert!(attempt.no > last, "numbers rise and are never reused: {attempt:?}");
                    self.recording.push(attempt);
                }
                Action::Send(attempt, agent) => self.held.entry(agent).or_default().push(attempt),
                Action::Cancel(..)
                | Action::TakeBack(..)
                | Action::End(..)
                | Action::Drop(_)
                | Action::Recall(..)
                | Action::Reattach(_)
                | Action::Fetch(..)
                | Action::Unguarded(..) => {}
                Action::Fill(_) | Action::FailNeed(..) => panic!("these chunks need no others: {action:?}"),
                Action::Commit(attempt) => self.close(attempt.chunk, Ok(())),
                Action::Fail(chunk, _, class) => self.close(chunk, Err(class)),
            }
        }
        self.schedule.check().expect("the independent check");
        if !self.excused {
            self.no_device_has_two_users();
        }
    }

    fn close(&mut self, chunk: ChunkIndex, how: Result<(), Class>) {
        assert!(self.ended.insert(chunk, how).is_none(), "chunk {} is committed once", chunk.0);
        self.committing.push(chunk);
    }

    fn no_device_has_two_users(&self) {
        let busy = self.held.values().filter(|held| !held.is_empty()).count();
        assert!(busy <= self.most, "{busy} GPU lanes of one machine hold work");
        let mut users: BTreeMap<u8, AgentId> = BTreeMap::new();
        for (n, devices) in self.devices.iter().enumerate() {
            let Some(held) = self.held.get(&agent(n)).filter(|held| !held.is_empty()) else { continue };
            let loads = held.iter().any(|attempt| self.models[attempt.chunk.0 as usize] == ModelIndex(1));
            let devices = self.anywhere.get(n).filter(|_| loads).unwrap_or(devices);
            for device in devices {
                let other = users.insert(*device, agent(n));
                assert!(other.is_none(), "device {device} is held by {other:?} and {:?}", agent(n));
            }
        }
    }

    fn take_held(&mut self, pick: usize) -> Option<AttemptId> {
        let busy: Vec<AgentId> =
            self.held.iter().filter(|(_, held)| !held.is_empty()).map(|(agent, _)| *agent).collect();
        let agent = *busy.get(pick % busy.len().max(1))?;
        Some(self.held.get_mut(&agent)?.remove(0))
    }

    /// Lets one random thing happen.
    fn step(&mut self, kind: u8, pick: usize, reason: Reason) {
        match kind {
            0..=3 if !self.recording.is_empty() => {
                let attempt = self.recording.remove(pick % self.recording.len());
                self.tell(Event::Recorded(attempt));
            }
            4..=5 if !self.committing.is_empty() => {
                let chunk = self.committing.remove(pick % self.committing.len());
                self.tell(Event::Committed(chunk));
            }
            6..=8 => {
                if let Some(attempt) = self.take_held(pick) {
                    self.tell(Event::Finished(attempt));
                }
            }
            9 => {
                if let Some(attempt) = self.take_held(pick) {
                    self.tell(Event::Failed(attempt, reason));
                }
            }
            10 => {
                if let Some(attempt) = self.take_held(pick) {
                    self.tell(Event::Lost(attempt));
                }
            }
            11 => {
                if let Some(attempt) = self.take_held(pick) {
                    self.tell(Event::Refused(attempt, Refusal::Busy { retry_ms: 10 }));
                }
            }
            12 | 13 => {
                if let Some(attempt) = self.take_held(pick) {
                    self.checking.push(attempt);
                    self.tell(Event::Accepted(attempt, Place::Checking));
                }
            }
            14 | 15 if !self.checking.is_empty() => {
                let attempt = self.checking.remove(pick % self.checking.len());
                let failed = pick.is_multiple_of(3);
                self.tell(if failed { Event::Failed(attempt, reason) } else { Event::Finished(attempt) });
            }
            _ => {
                self.now += Duration::from_millis(100);
                self.tell(Event::Tick);
            }
        }
    }

    /// Lets only good things happen until the job is done.
    fn run_out(&mut self) {
        for _ in 0..100_000 {
            if self.schedule.is_done() {
                return;
            }
            if let Some(attempt) = self.recording.pop() {
                self.tell(Event::Recorded(attempt));
            } else if let Some(chunk) = self.committing.pop() {
                self.tell(Event::Committed(chunk));
            } else if let Some(attempt) = self.checking.pop() {
                self.tell(Event::Finished(attempt));
            } else if let Some(attempt) = self.take_held(0) {
                self.tell(Event::Finished(attempt));
            } else {
                self.now = self.schedule.next_deadline(self.now).expect("something to wait for");
                self.tell(Event::Tick);
            }
        }
        panic!("the job does not end");
    }
}

fn any_reason() -> impl Strategy<Value = Reason> {
    prop::sample::select(vec![
        Reason::RunnerCrash,
        Reason::EngineDown,
        Reason::Incomplete,
        Reason::Stalled,
        Reason::TooLong,
        Reason::QueueFull,
        Reason::LoadFailed,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_device_ever_has_two_users_and_every_chunk_ends_once(
        devices in prop::collection::vec(prop::collection::btree_set(0u8..4, 1..3), 1..6),
        widths in prop::collection::vec(1usize..4, 6),
        chunks in 1usize..40,
        seed in any::<u64>(),
        steps in prop::collection::vec((0u8..18, any::<usize>(), any_reason()), 0..300),
    ) {
        let mut world = World::new(chunks, devices, &widths).seeded(seed);
        for (kind, pick, reason) in steps {
            world.step(kind, pick, reason);
        }
        world.run_out();
        prop_assert_eq!(world.ended.len(), chunks);
    }

    #[test]
    fn rivals_found_during_the_job_part_and_the_job_still_ends(
        before in prop::collection::vec(prop::collection::btree_set(0u8..6, 1..2), 2..5),
        chunks in 1usize..30,
        steps in prop::collection::vec((0u8..9, any::<usize>(), any_reason()), 0..60),
    ) {
        let widths = [1; 6];
        let mut world = World::new(chunks, before.clone(), &widths);
        for (kind, pick, reason) in steps {
            world.step(kind, pick, reason);
        }
        // Now it turns out that all of them are one device.
        world.devices = vec![BTreeSet::from([0]); before.len()];
        world.excused = true;
        let installs = roster(&world.devices, &widths);
        world.tell(Event::Roster(installs));
        world.run_out();
        prop_assert_eq!(world.ended.len(), chunks);
    }
}

#[test]
fn two_installs_on_one_device_run_one_at_a_time_and_on_two_devices_two_at_a_time() {
    for (devices, expected) in [([0, 0], 1), ([0, 1], 2)] {
        let devices = devices.map(|device| BTreeSet::from([device]));
        let mut world = World::new(10, devices.to_vec(), &[1, 1]);
        while let Some(attempt) = world.recording.pop() {
            world.tell(Event::Recorded(attempt));
        }
        assert_eq!(world.held.values().filter(|held| !held.is_empty()).count(), expected);
    }
}

#[test]
fn coordinators_that_find_an_install_busy_at_the_same_time_ask_again_at_different_times() {
    let asks_again = |seed| {
        let mut schedule = Schedule::new(JOB, vec![ModelIndex(0)]).with_seed(seed);
        schedule.handle(Event::Roster(roster(&[BTreeSet::from([0])], &[1])), Duration::ZERO);
        let attempt = AttemptId { job: JOB, chunk: ChunkIndex(0), no: 1 };
        schedule.handle(Event::Recorded(attempt), Duration::ZERO);
        schedule.handle(Event::Refused(attempt, Refusal::Busy { retry_ms: 0 }), Duration::ZERO);
        let mut millis = (1..=500).map(Duration::from_millis);
        let asks = |at: &Duration| !recorded_for(&schedule.handle(Event::Tick, *at)).is_empty();
        millis.find(asks).expect("it asks again within the first pause")
    };
    let times: BTreeSet<Duration> = (1..=20).map(|coordinator| asks_again(coordinator * 1_000)).collect();
    assert!(times.len() > 10, "{times:?}");
    assert_eq!(asks_again(7), asks_again(7), "the seed decides");
}

#[test]
fn a_shut_install_gets_nothing_until_it_opens_and_is_waited_for_only_where_there_is_no_other() {
    let roster = |shut: [bool; 2]| {
        let mut installs = roster(&[BTreeSet::from([0]), BTreeSet::from([1])], &[1, 1]);
        installs.iter_mut().zip(shut).for_each(|(install, shut)| install.shut = shut);
        installs
    };
    let mut schedule = Schedule::new(JOB, vec![ModelIndex(0); 3]);
    let actions = schedule.handle(Event::Roster(roster([true, true])), Duration::ZERO);
    assert!(recorded_for(&actions).is_empty(), "{actions:?}");
    assert!(schedule.stuck(Duration::ZERO).is_empty(), "it is waited for");
    let actions = schedule.handle(Event::Roster(roster([false, true])), Duration::ZERO);
    assert_eq!(recorded_for(&actions), [agent(0)].into());
    // It shuts before anything was sent: what was meant for it goes where it is open.
    let actions = schedule.handle(Event::Roster(roster([true, false])), Duration::ZERO);
    assert_eq!(recorded_for(&actions), [agent(1)].into());
    // What was denied by an hour that had not been heard of costs nothing and is asked for again.
    let attempt = AttemptId { job: JOB, chunk: ChunkIndex(0), no: 2 };
    schedule.handle(Event::Recorded(attempt), Duration::ZERO);
    let denied = Refusal::Denied(Text::cut("hours: it opens at six"));
    let actions = schedule.handle(Event::Refused(attempt, denied), Duration::ZERO);
    assert!(actions.contains(&Action::End(attempt, Class::Busy)), "{actions:?}");
    assert!(schedule.stuck(Duration::ZERO).is_empty());
    let actions = schedule.handle(Event::Tick, Duration::from_secs(31));
    assert!(!recorded_for(&actions).is_empty(), "{actions:?}");
}

#[test]
fn a_chunk_that_crashed_goes_to_other_hardware_before_it_comes_back() {
    let mut world = World::new(1, vec![BTreeSet::from([0]), BTreeSet::from([1])], &[1, 1]);
    let mut ran_on = Vec::new();
    for _ in 0..3 {
        while let Some(attempt) = world.recording.pop() {
            world.tell(Event::Recorded(attempt));
        }
        while world.held.values().all(Vec::is_empty) {
            world.now = world.schedule.next_deadline(world.now).expect("a pause ends");
            world.tell(Event::Tick);
            while let Some(attempt) = world.recording.pop() {
                world.tell(Event::Recorded(attempt));
            }
        }
        ran_on.push(*world.held.iter().find(|(_, held)| !held.is_empty()).expect("somebody holds it").0);
        let attempt = world.take_held(0).expect("it runs");
        world.tell(Event::Failed(attempt, Reason::RunnerCrash));
    }
    assert_ne!(ran_on[0], ran_on[1]);
    assert_eq!(world.ended[&ChunkIndex(0)], Err(Class::Poison));
}

#[test]
fn the_next_attempt_is_sent_ahead_so_that_the_lane_never_waits() {
    let mut world = World::new(3, vec![BTreeSet::from([0])], &[1]);
    while let Some(attempt) = world.recording.pop() {
        world.tell(Event::Recorded(attempt));
    }
    assert_eq!(world.held[&agent(0)].len(), 2);
}

#[test]
fn a_lane_is_free_as_soon_as_the_engine_is_whatever_is_still_checked() {
    let shared = vec![BTreeSet::from([0]), BTreeSet::from([0])];
    let mut world = World::new(5, shared, &[1, 1]);
    let mut ran = 0;
    while ran < 5 {
        while let Some(attempt) = world.recording.pop() {
            world.tell(Event::Recorded(attempt));
        }
        let attempt = world.take_held(0).expect("the lane never waits for a check");
        world.checking.push(attempt);
        world.tell(Event::Accepted(attempt, Place::Checking));
        ran += 1;
    }
    world.run_out();
}

#[test]
fn a_model_that_no_install_has_leaves_the_job_stuck_and_says_so() {
    let mut schedule = Schedule::new(JOB, vec![ModelIndex(1)]);
    let _ = schedule.handle(Event::Roster(roster(&[BTreeSet::from([0])], &[1])), Duration::ZERO);
    assert_eq!(schedule.stuck(Duration::ZERO), BTreeSet::from([Kind { model: ModelIndex(1), context: 0 }]));
}

/// Two installs on devices of their own; what they permit is the first's.
fn permitting(largest: Largest) -> Vec<Install> {
    let mut installs = roster(&[BTreeSet::from([0]), BTreeSet::from([1])], &[1, 1]);
    installs[0].largest = largest;
    installs
}

fn recorded_for(actions: &[Action]) -> BTreeSet<AgentId> {
    let by = |action: &Action| if let Action::Record(_, by, _) = action { Some(*by) } else { None };
    actions.iter().filter_map(by).collect()
}

#[test]
fn chunks_above_what_an_agent_permits_go_elsewhere_and_nowhere_where_all_deny_them() {
    let work = |context, output_tokens| Work { context, output_tokens, ..Work::default() };
    for (largest, permitted) in [
        (Largest { context: 4096, answer: 0 }, true),
        (Largest { context: 4095, answer: 0 }, false),
        (Largest { context: 0, answer: 200 }, true),
        (Largest { context: 0, answer: 199 }, false),
    ] {
        // The longest answer of a kind counts for all of it.
        let mut schedule = Schedule::of(JOB, vec![work(4096, 10), work(4096, 200), work(4096, 10)]);
        let actions = schedule.handle(Event::Roster(permitting(largest)), Duration::ZERO);
        assert_eq!(recorded_for(&actions).contains(&agent(0)), permitted, "{largest:?}");
        assert!(recorded_for(&actions).contains(&agent(1)));
        let mut alone = Schedule::of(JOB, vec![work(4096, 200)]);
        let first = permitting(largest).into_iter().take(1).collect();
        let _ = alone.handle(Event::Roster(first), Duration::ZERO);
        assert_eq!(alone.stuck(Duration::ZERO).is_empty(), permitted, "{largest:?}");
    }
}

#[test]
fn a_denial_that_was_not_foreseen_ends_with_the_run_of_the_agent() {
    let mut schedule = Schedule::new(JOB, vec![ModelIndex(0)]);
    let mut installs = roster(&[BTreeSet::from([0])], &[1]);
    let actions = schedule.handle(Event::Roster(installs.clone()), Duration::ZERO);
    let Some(Action::Record(attempt, ..)) = actions.first() else { panic!("{actions:?}") };
    let _ = schedule.handle(Event::Recorded(*attempt), Duration::ZERO);
    let denied = Refusal::Denied(Text::cut("images: pictures are not permitted"));
    let actions = schedule.handle(Event::Refused(*attempt, denied), Duration::ZERO);
    assert!(actions.contains(&Action::End(*attempt, Class::Denied)));
    assert!(recorded_for(&actions).is_empty());
    assert!(!schedule.stuck(Duration::ZERO).is_empty());
    // The same run, described anew, has the same policy; another run may have another.
    let actions = schedule.handle(Event::Roster(installs.clone()), Duration::from_secs(1));
    assert!(recorded_for(&actions).is_empty());
    installs[0].incarnation = Incarnation(2);
    let actions = schedule.handle(Event::Roster(installs), Duration::from_secs(2));
    assert_eq!(recorded_for(&actions), BTreeSet::from([agent(0)]));
}

/// A world in which everything that was recorded has been sent.
fn sent(chunks: usize, devices: &[u8]) -> World {
    let devices = devices.iter().map(|device| BTreeSet::from([*device])).collect();
    let mut world = World::new(chunks, devices, &[1, 1]);
    while let Some(attempt) = world.recording.pop() {
        world.tell(Event::Recorded(attempt));
    }
    world
}

#[test]
fn a_cancelled_attempt_that_nobody_here_cancelled_runs_again_and_fails_no_chunk() {
    let mut world = sent(1, &[0]);
    let attempt = world.take_held(0).expect("it runs");
    world.tell(Event::Failed(attempt, Reason::Cancelled));
    assert!(world.ended.is_empty(), "{:?}", world.ended);
    world.run_out();
    assert_eq!(world.ended[&ChunkIndex(0)], Ok(()));
}

#[test]
fn an_install_that_took_nothing_for_a_while_is_asked_again() {
    let mut world = sent(1, &[0]);
    let attempt = world.take_held(0).expect("it was sent");
    let why = Text::cut("the lock files were replaced");
    world.tell(Event::Refused(attempt, Refusal::Draining(why)));
    world.run_out();
    assert_eq!(world.ended[&ChunkIndex(0)], Ok(()));
}
