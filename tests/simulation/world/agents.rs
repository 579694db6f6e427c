//! What happens beside the agents: their locks, their engines, and the reports that they send.

use std::time::Duration;

use tropa_agent::admission::{Action as Order, Event as Arrived, Key};
use tropa_proto::{
    bounded::Content,
    failure::Reason,
    message::Failure,
    proof::{Bug, planted},
};

use super::{
    super::{
        engine::{self, Course},
        install::Arrival,
    },
    Happened, Request, Said, What, World, peer, side_id, side_of,
};

/// Longer than any limit of an attempt here (15 min and the stall of its end).
const ATTEMPT: Duration = Duration::from_secs(20 * 60);

impl World {
    pub(super) fn arrive(&mut self, install: usize, life: u64, arrival: Arrival) {
        let agent = &mut self.installs[install];
        if agent.life != life || !agent.up {
            return;
        }
        if agent.stopped {
            agent.deferred.push(arrival);
            return;
        }
        let event = match arrival {
            Arrival::Own(event) => {
                if event == Arrived::Settled {
                    for record in std::mem::take(&mut self.installs[install].settles) {
                        self.records.remove(&record);
                    }
                }
                event
            }
            Arrival::Run(stream, key, incarnation) => {
                self.came_by(stream, install, key);
                let options = if self.scenario.profile.other_options { side_of(key.0) } else { 0 };
                Arrived::Run { key, incarnation, runner: Ok(format!("m{options}")), at_once: 64, room: true }
            }
            Arrival::Cancel(stream, key) => {
                self.came_by(stream, install, key);
                Arrived::Cancel(key)
            }
            Arrival::TakeBack(stream, key) => {
                self.came_by(stream, install, key);
                Arrived::TakeBack(key)
            }
            Arrival::Fetch(stream, key) => {
                self.came_by(stream, install, key);
                Arrived::Fetch(key)
            }
            Arrival::Renew(side) => Arrived::Renew(side_id(side), self.sides[side].job),
            Arrival::Reattach(side, number) => {
                self.reattach(install, side, number);
                Arrived::Renew(side_id(side), self.sides[side].job)
            }
            Arrival::Ack(key) => {
                self.tell_history(peer(install), Happened::Forget(key.1));
                Arrived::Ack(key)
            }
        };
        self.admit(install, event);
    }

    /// An order came by this stream: the agent says hello there, and what becomes of the attempt.
    fn came_by(&mut self, stream: u64, install: usize, key: Key) {
        if self.streams.contains_key(&stream) {
            self.installs[install].streams.insert(key, stream);
        }
        self.say(install, key, Said::Hello);
    }

    fn admit(&mut self, install: usize, event: Arrived) {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let at = self.origin + self.installs[install].clock.shows(self.now);
            for order in self.installs[install].admission.handle(event, at) {
                events.extend(self.perform(install, order));
            }
        }
        let agent = &mut self.installs[install];
        if let Some(at) = agent.admission.next_deadline() {
            let at = agent.clock.world(at - self.origin).max(self.now);
            if agent.tick_at.is_none_or(|tick| at < tick) {
                agent.tick_at = Some(at);
                let life = agent.life;
                self.at(at, What::AgentTick { install, life });
            }
        }
    }

    fn perform(&mut self, install: usize, order: Order) -> Option<Arrived> {
        match order {
            Order::Accept(key, place) => self.say(install, key, Said::Accepted(place)),
            Order::Refuse(key, refusal) => self.say(install, key, Said::Refused(refusal)),
            Order::Fail(key, failure) => self.say(install, key, Said::Failed(failure.reason)),
            Order::Deliver(key) => self.say(install, key, Said::Done),
            Order::Discard(key) => {
                self.installs[install].outbox.remove(&key);
            }
            Order::Start { key, .. } => self.start(install, key),
            Order::HangUp(key) => {
                let agent = &mut self.installs[install];
                if let Some(request) = agent.waits_for.remove(&key) {
                    self.orphan(request);
                    self.stops_waiting(install, key, request, true, Some(Reason::Cancelled));
                }
            }
            Order::Acquire => return Some(self.acquire(install)),
            Order::Release => self.release(install),
            Order::Probe => {
                let works = self.installs[install].ill.is_none();
                self.own(install, Duration::from_millis(50), Arrived::Probed { works, may_run: false });
            }
            Order::Settle => {
                let left: Vec<(usize, Key)> = self.left_behind(install).collect();
                let idle = left.iter().map(|(of, _)| self.installs[*of].idle_at).max().unwrap_or_default();
                self.installs[install].settles = left;
                let wait = idle.saturating_sub(self.now) + Duration::from_millis(10);
                self.own(install, wait, Arrived::Settled);
            }
        }
        None
    }

    fn own(&mut self, install: usize, wait: Duration, event: Arrived) {
        let life = self.installs[install].life;
        self.after(wait, What::ToAgent { install, life, arrival: Arrival::Own(event) });
    }

    fn say(&mut self, install: usize, key: Key, said: Said) {
        if let Some(stream) = self.installs[install].streams.get(&key).copied() {
            self.post_from_agent(side_of(key.0), stream, said);
        }
    }

    /// A request goes to the engine.
    fn start(&mut self, install: usize, key: Key) {
        let by = peer(install);
        self.tell_history(by, Happened::ExecStart(key.1, None));
        for device in self.installs[install].place.devices.clone() {
            self.tell_history(by, Happened::EngineStart { install: by, device: u32::from(device) });
        }
        self.records.insert((install, key));
        let poison = self.scenario.profile.poison;
        let faulty = self.scenario.profile.engines && self.is_bad();
        let course = if poison > 0 && key.1.chunk.0.is_multiple_of(poison) {
            let takes = self.random.ms(20, 1_500);
            engine::fails_with(&mut self.random, self.scenario.profile.poison_by, takes)
        } else if let Some(reason) = self.installs[install].ill {
            let takes = engine::answer(&mut self.random);
            engine::fails_with(&mut self.random, reason, takes)
        } else if self.installs[install].model {
            engine::course(&mut self.random, faulty)
        } else {
            let takes = self.random.ms(1, 20);
            Course { takes, fails: Some(Reason::ModelMissing), lingers: Duration::ZERO }
        };
        self.count += 1;
        let (request, life) = (self.count, self.installs[install].life);
        let Course { takes, fails, lingers } = course;
        self.requests.insert(request, Request { install, life, key, fails, lingers, orphan_until: None });
        self.installs[install].waits_for.insert(key, request);
        self.begins_to_wait(by, request, ATTEMPT);
        self.after(takes, What::EngineEnds { request });
    }

    /// Nobody waits for the request any more; the engine may.
    pub(super) fn orphan(&mut self, request: u64) {
        let lingers = engine::lingers(&mut self.random);
        let now = self.now;
        let Some(entry) = self.requests.get_mut(&request) else { return };
        entry.orphan_until = Some(now + lingers);
        let agent = &mut self.installs[entry.install];
        agent.idle_at = agent.idle_at.max(now + lingers);
        self.after(lingers, What::EngineEnds { request });
    }

    pub(super) fn engine_ends(&mut self, request: u64) {
        let Some(entry) = self.requests.get_mut(&request) else { return };
        let (install, key, fails, lingers) = (entry.install, entry.key, entry.fails, entry.lingers);
        let lives = self.installs[install].life == entry.life && self.installs[install].up;
        if let Some(until) = entry.orphan_until {
            // It ends when the engine notices, and not when it would have.
            if until <= self.now {
                self.requests.remove(&request);
                self.leaves_devices(install);
            }
            return;
        }
        let waited_for = self.installs[install].waits_for.get(&key) == Some(&request);
        if waited_for {
            self.installs[install].waits_for.remove(&key);
        }
        let may_run = fails.is_some_and(Reason::hangs_up);
        if may_run {
            entry.orphan_until = Some(self.now + lingers);
            let agent = &mut self.installs[install];
            agent.idle_at = agent.idle_at.max(self.now + lingers);
            self.after(lingers, What::EngineEnds { request });
        } else {
            self.requests.remove(&request);
            self.leaves_devices(install);
        }
        if lives && waited_for {
            self.stops_waiting(install, key, request, may_run, fails);
        }
    }

    fn leaves_devices(&mut self, install: usize) {
        let by = peer(install);
        for device in self.installs[install].place.devices.clone() {
            self.tell_history(by, Happened::EngineEnd { install: by, device: u32::from(device) });
        }
    }

    /// The agent's own task has ended: with a result, or with why not.
    fn stops_waiting(
        &mut self,
        install: usize,
        key: Key,
        request: u64,
        may_run: bool,
        fails: Option<Reason>,
    ) {
        self.tell_history(peer(install), Happened::ExecEnd(key.1));
        self.tell_history(peer(install), Happened::Waited(request));
        if !may_run {
            self.records.remove(&(install, key));
        }
        if let Some(failure) = fails.map(failure) {
            self.own(install, Duration::ZERO, Arrived::Broke { key, may_run, failure });
            return;
        }
        self.own(install, Duration::ZERO, Arrived::Ended { key, may_run });
        let checking = self.random.ms(0, 200);
        self.installs[install].outbox.insert(key);
        self.own(install, checking, Arrived::Finished(key, None));
    }

    /// Two installs want a device whose lock both see.
    pub(super) fn contend(&self, a: usize, b: usize) -> bool {
        let (a_place, b_place) = (&self.installs[a].place, &self.installs[b].place);
        a != b && a_place.kernel == b_place.kernel && a_place.shares(b_place)
    }

    fn acquire(&mut self, install: usize) -> Arrived {
        let holder = (0..self.installs.len())
            .find(|other| self.installs[*other].holds_locks && self.contend(*other, install));
        match holder.filter(|_| !planted(Bug::NoKernelLock)) {
            Some(holder) => {
                self.waiting.push(install);
                Arrived::LaneBlocked(format!("install {holder}"))
            }
            None => {
                self.installs[install].holds_locks = true;
                Arrived::LaneHeld { dirty: self.left_behind(install).next().is_some() }
            }
        }
    }

    /// Records in the lock files of what nobody waits for here: of others, of an earlier life, of what was hung up on.
    fn left_behind(&self, install: usize) -> impl Iterator<Item = (usize, Key)> {
        let waited_for =
            move |of: usize, key: &Key| of == install && self.installs[of].waits_for.contains_key(key);
        self.records
            .iter()
            .filter(move |(of, key)| (*of == install || self.contend(*of, install)) && !waited_for(*of, key))
            .copied()
    }

    pub(super) fn release(&mut self, install: usize) {
        self.installs[install].holds_locks = false;
        self.waiting.retain(|waiting| *waiting != install);
        for waiting in self.waiting.clone() {
            let held =
                (0..self.installs.len()).any(|o| self.installs[o].holds_locks && self.contend(o, waiting));
            if !held {
                self.waiting.retain(|other| *other != waiting);
                self.installs[waiting].holds_locks = true;
                let dirty = self.left_behind(waiting).next().is_some();
                self.own(waiting, Duration::ZERO, Arrived::LaneHeld { dirty });
            }
        }
    }
}

fn failure(reason: Reason) -> Failure {
    Failure { reason, detail: Content::default(), ms: 0 }
}
