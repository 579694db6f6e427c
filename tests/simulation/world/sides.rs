//! What a coordinator does: its scheduler, its disk, its connections and streams, as `run.rs` has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_agent::admission::Key;
use tropa_coordinator::{
    liveness::Input,
    schedule::{Action, Event, Install as Listed, ModelIndex},
};
use tropa_proto::{
    failure::Class,
    id::{AttemptId, EngineRun, MachineId},
    proof::{Bug, planted},
};

use super::{
    super::{
        coordinator::{Step, Up},
        install::{Arrival, agent, install_of},
    },
    HELLO, Happened, SIDES, Said, Stream, What, World, peer, side_id,
};

/// How long the roster remembers an agent that is out of reach.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(35);

/// How often a full disk is tried again (`reliability.md` §7.5).
const RETRY: Duration = Duration::from_secs(5);

impl World {
    pub(super) fn start_side(&mut self, side: usize) {
        if self.sides[side].up.is_some() {
            return;
        }
        let seed = self.random.next();
        let entry = &mut self.sides[side];
        let now = entry.clock.shows(self.now);
        entry.up = Some(Up::start(entry.job, &entry.disk, entry.chunks, seed, now));
        for install in 0..self.installs.len() {
            self.connect(side, install);
        }
        self.roster(side);
    }

    /// The connection is of no use any more, which the coordinator notices within so many milliseconds, if nothing
    /// repairs it before.
    pub(super) fn disconnect(&mut self, side: usize, install: usize, within: u64) {
        let (link, wait) = (self.sides[side].links[install].number, self.random.ms(0, within));
        self.after(wait, What::Gone { side, install, link });
    }

    pub(super) fn connect(&mut self, side: usize, install: usize) {
        if self.works(side, install) {
            self.lose_connection(side, install);
            let link = &mut self.sides[side].links[install];
            link.number += 1;
            link.believed = true;
            self.roster(side);
            self.alive(side, Input::Connected(agent(install)));
        }
    }

    fn works(&self, side: usize, install: usize) -> bool {
        let agent = &self.installs[install];
        let there = self.sides[side].up.is_some() && !self.sides[side].stopped;
        agent.up && !agent.stopped && there && self.sides[side].links[install].is_heard()
    }

    pub(super) fn notice(&mut self, side: usize, install: usize, number: u64) {
        let link = &self.sides[side].links[install];
        if link.number == number && link.believed {
            self.lose_connection(side, install);
            self.roster(side);
            let life = self.sides[side].life;
            self.after(FORGOTTEN_AFTER, What::Roster { side, life });
            self.connect(side, install);
        }
    }

    pub(super) fn lose_connection(&mut self, side: usize, install: usize) {
        let now = self.now;
        let job = self.sides[side].job;
        let link = &mut self.sides[side].links[install];
        if std::mem::take(&mut link.believed) {
            link.left_at = Some(now);
            let lost = self.streams.iter().filter(|(_, s)| s.install == install && s.attempt.job == job);
            for stream in lost.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.break_off(side, stream);
            }
            self.control_breaks(side, install);
        }
    }

    pub(super) fn roster(&mut self, side: usize) {
        let links = &self.sides[side].links;
        let known = |install: &usize| {
            let link = &links[*install];
            link.believed || link.left_at.is_some_and(|left| self.now < left + FORGOTTEN_AFTER)
        };
        let all = || 0..self.installs.len();
        let place = |install: usize| &self.installs[install].place;
        let listed = all().filter(|install| links[*install].believed).map(|install| {
            let shares = |other: &usize| *other != install && place(*other).shares(place(install));
            let rivals: Vec<usize> = all().filter(known).filter(shares).collect();
            let apart = rivals.iter().copied().filter(|other| place(*other).kernel != place(install).kernel);
            let models =
                if self.installs[install].model { BTreeSet::from([ModelIndex(0)]) } else { BTreeSet::new() };
            Listed {
                agent: agent(install),
                incarnation: self.installs[install].incarnation,
                // Engines go on when their agents do not.
                engine: EngineRun(1),
                machine: MachineId(agent(usize::from(place(install).devices[0]))),
                width: place(install).width,
                models,
                largest: Default::default(),
                shut: false,
                warm: BTreeSet::new(),
                loads: BTreeMap::new(),
                unguarded: apart.map(agent).collect(),
                gpu_lanes: None,
                unplaced: Default::default(),
                rivals: rivals.iter().copied().map(agent).collect(),
            }
        });
        let listed = listed.collect();
        self.tell(side, Event::Roster(listed));
    }

    pub(super) fn side_tick(&mut self, side: usize, life: u64) {
        let entry = &mut self.sides[side];
        if entry.life != life {
            return;
        }
        if let Some(up) = &mut entry.up
            && up.tick_at.is_some_and(|at| at <= self.now)
        {
            up.tick_at = None;
            self.judge_lives(side);
            self.tell(side, Event::Tick);
        }
    }

    /// Sees to it that the coordinator turns when something is due.
    pub(super) fn plan_tick(&mut self, side: usize) {
        let entry = &mut self.sides[side];
        let Some(up) = &mut entry.up else { return };
        let now = entry.clock.shows(self.now) - up.started;
        let deadlines = [up.schedule.next_deadline(now), up.liveness.next_deadline()];
        if let Some(at) = deadlines.into_iter().flatten().min() {
            let at = entry.clock.world(up.started + at).max(self.now);
            if up.tick_at.is_none_or(|tick| at < tick || tick < self.now) {
                up.tick_at = Some(at);
                let life = entry.life;
                self.at(at, What::SideTick { side, life });
            }
        }
    }

    pub(super) fn tell(&mut self, side: usize, event: Event) {
        let entry = &mut self.sides[side];
        let Some(up) = &mut entry.up else { return };
        let now = entry.clock.shows(self.now) - up.started;
        let reason =
            if let Event::Failed(attempt, reason) = &event { Some((*attempt, *reason)) } else { None };
        let actions = up.schedule.handle(event, now);
        for action in actions {
            match action {
                Action::Unguarded(agent, rivals) => self.submit(side, Step::Unguarded(agent, rivals)),
                Action::Record(attempt, agent, run) => self.submit(side, Step::Attempt(attempt, agent, run)),
                Action::Send(attempt, agent) => {
                    let run = self.installs[install_of(agent)].incarnation;
                    self.open_stream(side, attempt, install_of(agent), |stream, key| {
                        Arrival::Run(stream, key, run)
                    });
                }
                Action::Recall(attempt, agent) => {
                    self.open_stream(side, attempt, install_of(agent), Arrival::Cancel);
                }
                Action::Fetch(attempt, agent) => {
                    self.open_stream(side, attempt, install_of(agent), Arrival::Fetch);
                }
                Action::Reattach(agent) => self.ask(side, agent),
                Action::Cancel(attempt, _) => self.order(side, attempt, Arrival::Cancel),
                Action::TakeBack(attempt, _) => self.order(side, attempt, Arrival::TakeBack),
                Action::End(attempt, class) => {
                    let reason = reason.filter(|(failed, _)| *failed == attempt).map(|(_, reason)| reason);
                    self.submit(side, Step::Ended(attempt, class, reason));
                }
                Action::Fail(_, attempt, class) => self.submit(side, Step::Failed(attempt, class)),
                Action::Fill(_) | Action::FailNeed(..) => panic!("these chunks need no others: {action:?}"),
                Action::Commit(attempt) => {
                    if planted(Bug::AckBeforeCommit) {
                        self.acknowledge(side, attempt);
                    }
                    self.submit(side, Step::Result(attempt));
                }
                Action::Drop(attempt) => self.submit(side, Step::Ended(attempt, Class::Superseded, None)),
            }
        }
        self.plan_tick(side);
    }

    /// Hands a row to the one thread that writes, which syncs in order.
    fn submit(&mut self, side: usize, step: Step) {
        let wait = self.random.ms(1, 10);
        let entry = &mut self.sides[side];
        let after = entry.pending.back().map_or(self.now, |(at, _)| (*at).max(self.now));
        entry.pending.push_back((after + wait, step));
        let life = entry.life;
        self.at(after + wait, What::Synced { side, life });
    }

    /// Everything that is due is synced, unless the disk is full: then it is tried again.
    pub(super) fn sync(&mut self, side: usize, life: u64) {
        if self.sides[side].life != life {
            return;
        }
        if self.sides[side].full {
            if !std::mem::replace(&mut self.sides[side].paused, true) {
                self.tell(side, Event::Paused(true));
                self.after(RETRY, What::Retry { side, life });
            }
            return;
        }
        // Nothing is written before the steps that found no room.
        if !self.sides[side].paused {
            self.flush(side, life);
        }
    }

    /// The disk was full some seconds ago.
    pub(super) fn retry(&mut self, side: usize, life: u64) {
        if self.sides[side].life != life {
            return;
        }
        if self.sides[side].full {
            return self.after(RETRY, What::Retry { side, life });
        }
        self.flush(side, life);
        self.sides[side].paused = false;
        self.tell(side, Event::Paused(false));
    }

    fn flush(&mut self, side: usize, life: u64) {
        while let Some((at, _)) = self.sides[side].pending.front()
            && *at <= self.now
            && let Some((_, step)) = self.sides[side].pending.pop_front()
        {
            self.write(side, &step);
            // The thread that wrote it tells the loop; the process may die in between.
            let wait = self.random.ms(0, 2);
            self.after(wait, What::Reported { side, life, step });
        }
    }

    /// A row is on disk.
    pub(super) fn write(&mut self, side: usize, step: &Step) {
        let first = self.sides[side].disk.write(step);
        let by = SIDES + peer(side);
        match step {
            Step::Attempt(attempt, ..) => self.tell_history(by, Happened::Record(*attempt)),
            Step::Ended(attempt, class, _) => self.tell_history(by, Happened::Ended(*attempt, *class)),
            Step::Result(attempt) if first || planted(Bug::NoKeyAtCommit) => {
                self.tell_history(by, Happened::Commit(*attempt, None));
            }
            Step::Failed(attempt, class) if first => {
                self.tell_history(by, Happened::Commit(*attempt, Some(*class)));
            }
            Step::Result(_) | Step::Failed(..) | Step::Unguarded(..) => {}
        }
    }

    pub(super) fn reported(&mut self, side: usize, life: u64, step: &Step) {
        if self.sides[side].life != life {
            return;
        }
        match step {
            Step::Attempt(attempt, ..) => self.tell(side, Event::Recorded(*attempt)),
            Step::Unguarded(..) => {}
            Step::Ended(attempt, ..) => self.acknowledge(side, *attempt),
            Step::Result(attempt) | Step::Failed(attempt, _) => {
                self.acknowledge(side, *attempt);
                self.tell(side, Event::Committed(attempt.chunk));
            }
        }
    }

    fn acknowledge(&mut self, side: usize, attempt: AttemptId) {
        if self.by_attempt.contains_key(&attempt) {
            self.tell_history(SIDES + peer(side), Happened::Ack(attempt));
        }
        self.order(side, attempt, |_, key| Arrival::Ack(key));
    }

    fn open_stream(
        &mut self,
        side: usize,
        attempt: AttemptId,
        install: usize,
        first: impl Fn(u64, Key) -> Arrival,
    ) {
        self.count += 1;
        let (id, link) = (self.count, self.sides[side].links[install].number);
        let last_at = self.now;
        self.streams.insert(id, Stream { install, attempt, link, heard: false, last_at });
        self.by_attempt.insert(attempt, id);
        self.tell_history(SIDES + peer(side), Happened::Send(attempt));
        self.begins_to_wait(SIDES + peer(side), id, HELLO);
        self.order(side, attempt, first);
        self.after(HELLO, What::NoHello { side, stream: id });
        self.alive(side, Input::Wanted(agent(install)));
    }

    fn order(&mut self, side: usize, attempt: AttemptId, make: impl Fn(u64, Key) -> Arrival) {
        let Some(id) = self.by_attempt.get(&attempt).copied() else { return };
        let Some(stream) = self.streams.get(&id) else { return };
        let (install, number) = (stream.install, stream.link);
        let link = &self.sides[side].links[install];
        if self.installs[install].up && link.cuts == 0 && link.number == number {
            self.post_to_agent(side, id, install, make(id, (side_id(side), attempt)));
        }
    }

    pub(super) fn break_off(&mut self, side: usize, id: u64) {
        if let Some(stream) = self.streams.remove(&id) {
            if self.by_attempt.get(&stream.attempt) == Some(&id) {
                self.by_attempt.remove(&stream.attempt);
            }
            self.heard(side, id);
            self.tell(side, Event::Detached(stream.attempt));
        }
    }

    /// The wait for the agent's hello is over.
    fn heard(&mut self, side: usize, id: u64) {
        self.tell_history(SIDES + peer(side), Happened::Waited(id));
    }

    pub(super) fn hear(&mut self, side: usize, id: u64, said: Said) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let link = &self.sides[side].links[stream.install];
        if link.number != stream.link || !link.is_heard() {
            return;
        }
        let first = !std::mem::replace(&mut stream.heard, true);
        let (attempt, install) = (stream.attempt, stream.install);
        if first {
            self.heard(side, id);
        }
        self.alive(side, Input::Heard(agent(install)));
        match said {
            Said::Hello => {}
            Said::Accepted(place) => self.tell(side, Event::Accepted(attempt, place)),
            Said::Refused(refusal) => {
                self.streams.remove(&id);
                self.tell(side, Event::Refused(attempt, refusal));
            }
            Said::Failed(reason) => self.tell(side, Event::Failed(attempt, reason)),
            Said::Done => self.tell(side, Event::Finished(attempt)),
        }
        self.idle(side, install);
    }
}
