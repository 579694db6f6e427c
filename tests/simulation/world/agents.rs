//! What happens beside the agents: their locks, their engines, and the reports that they send.

use std::time::Duration;

use tropa_agent::admission::{Action as Order, Event as Arrived, Key};
use tropa_proto::{bounded::Text, failure::Reason, id::AttemptId, message::Failure};

use super::{
    super::{coordinator::JOB, install::Arrival},
    COORDINATOR, Said, What, World,
};

/// How long what an agent says is on its way.
const LATENCY: Duration = Duration::from_millis(5);

/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);

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
            Arrival::Own(event) => event,
            Arrival::Run(stream, key, incarnation) => {
                agent.streams.insert(key, stream);
                self.say(install, key, Said::Hello);
                Arrived::Run { key, incarnation, runner: Ok("m".to_owned()), room: true }
            }
            Arrival::Cancel(stream, key) => {
                agent.streams.insert(key, stream);
                self.say(install, key, Said::Hello);
                Arrived::Cancel(key)
            }
            Arrival::Fetch(stream, key) => {
                agent.streams.insert(key, stream);
                self.say(install, key, Said::Hello);
                Arrived::Fetch(key)
            }
            Arrival::Renew => Arrived::Renew(COORDINATOR, JOB),
            Arrival::Reattach(number) => {
                if agent.beats_on != Some(number) {
                    agent.beats_on = Some(number);
                    self.after(BEAT, What::Beat { install, life, number });
                }
                self.attach(install, number);
                Arrived::Renew(COORDINATOR, JOB)
            }
            Arrival::Ack(key) => {
                assert!(self.disk.knows_end(&key.1), "{:?} is acknowledged before it is on disk", key.1);
                Arrived::Ack(key)
            }
        };
        self.admit(install, event);
    }

    /// Says on a control stream what is held.
    fn attach(&mut self, install: usize, number: u64) {
        let agent = &self.installs[install];
        let held = agent.admission.held(COORDINATOR, JOB).collect();
        let incarnation = agent.incarnation;
        self.after(LATENCY, What::Attached { install, number, incarnation, held });
    }

    pub(super) fn beat(&mut self, install: usize, life: u64, number: u64) {
        let agent = &self.installs[install];
        if agent.life != life || !agent.up || agent.beats_on != Some(number) {
            return;
        }
        // A stopped agent beats again when it goes on.
        if !agent.stopped && agent.admission.held(COORDINATOR, JOB).next().is_some() {
            self.after(LATENCY, What::Beaten { install, number });
        }
        self.after(BEAT, What::Beat { install, life, number });
    }

    fn admit(&mut self, install: usize, event: Arrived) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let at = self.origin + self.now;
            for order in self.installs[install].admission.handle(event, at) {
                events.extend(self.perform(install, order));
            }
        }
        let agent = &mut self.installs[install];
        if let Some(at) = agent.admission.next_deadline() {
            let at = (at - self.origin).max(self.now);
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
                if agent.engine.contains(&key.1) {
                    // What reads a prompt reads on to its end.
                    let ends = self.random.ms(10, 2000);
                    agent.idle_at = agent.idle_at.max(self.now + ends);
                    let life = agent.life;
                    self.after(ends, What::EngineEnds { install, life, attempt: key.1, hung_up: true });
                    self.own(install, Duration::ZERO, Arrived::Ended { key, may_run: true });
                    self.own(
                        install,
                        Duration::ZERO,
                        Arrived::Finished(key, Some(failure(Reason::Cancelled))),
                    );
                }
            }
            Order::Acquire => return Some(self.acquire(install)),
            Order::Release => self.release(install),
            Order::Settle => {
                let wait =
                    self.installs[install].idle_at.saturating_sub(self.now) + Duration::from_millis(10);
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
        let wait = LATENCY;
        if let Some(stream) = self.installs[install].streams.get(&key).copied() {
            self.after(wait, What::FromAgent { stream, said });
        }
    }

    fn start(&mut self, install: usize, key: Key) {
        let agent = &mut self.installs[install];
        assert!(agent.holds_locks, "an attempt starts without its locks");
        self.history.engine_starts(install, agent.place.devices, key.1, self.now);
        agent.engine.insert(key.1);
        let takes =
            if self.random.below(10) == 0 { self.random.ms(2000, 20_000) } else { self.random.ms(20, 1500) };
        let life = agent.life;
        self.after(takes, What::EngineEnds { install, life, attempt: key.1, hung_up: false });
    }

    pub(super) fn engine_ends(&mut self, install: usize, life: u64, attempt: AttemptId, hung_up: bool) {
        let agent = &mut self.installs[install];
        // One that was hung up on ends when it ends, and not when it would have.
        if agent.life != life || (!hung_up && agent.idle_at > self.now) || !agent.engine.remove(&attempt) {
            return;
        }
        self.history.engine_ends(install, agent.place.devices);
        if hung_up {
            return;
        }
        let key = (COORDINATOR, attempt);
        self.own(install, Duration::ZERO, Arrived::Ended { key, may_run: false });
        let fails = self.faults.engines && self.random.below(12) == 0;
        let reasons = [
            Reason::RunnerCrash,
            Reason::EngineDown,
            Reason::Incomplete,
            Reason::QueueFull,
            Reason::LoadFailed,
        ];
        let reason = reasons[usize::try_from(self.random.below(5)).unwrap_or(0)];
        if !fails {
            self.installs[install].outbox.insert(key);
        }
        let checking = self.random.ms(0, 200);
        self.own(install, checking, Arrived::Finished(key, fails.then(|| failure(reason))));
    }

    /// Two installs want a device whose lock both see.
    pub(super) fn contend(&self, a: usize, b: usize) -> bool {
        let (a_place, b_place) = (self.installs[a].place, self.installs[b].place);
        a != b
            && a_place.kernel == b_place.kernel
            && a_place.devices.iter().any(|d| b_place.devices.contains(d))
    }

    fn acquire(&mut self, install: usize) -> Arrived {
        let holder = (0..self.installs.len())
            .find(|other| self.installs[*other].holds_locks && self.contend(*other, install));
        match holder {
            Some(holder) => {
                self.waiting.push(install);
                Arrived::LaneBlocked(format!("install {holder}"))
            }
            None => {
                self.installs[install].holds_locks = true;
                Arrived::LaneHeld { dirty: self.random.below(4) == 0 }
            }
        }
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
                self.own(waiting, Duration::ZERO, Arrived::LaneHeld { dirty: true });
            }
        }
    }
}

fn failure(reason: Reason) -> Failure {
    Failure { reason, detail: Text::default(), ms: 0 }
}
