//! Who of those that hold work is alive: a pure function of signs of life, broken streams and time.
//!
//! The coordinator holds one control stream to every agent that it gave work to, on which the agent beats every
//! second. An agent that misses three beats is *suspect* and gets nothing new; after eight seconds, or when nobody
//! listens any more where it was, it is *dead*: its connection is closed, dialled anew, and what it held runs
//! elsewhere. When a stream to it opens again it says what it holds, and nothing of that runs twice. A coordinator
//! that is itself late judges later (Lifeguard, arXiv:1707.00788), and one that has slept judges nobody before it
//! has asked again.
//!
//! Every timer is a row of one table behind [`Liveness::next_deadline`] (`reliability.md` §4).

mod timers;

use std::{collections::BTreeMap, time::Duration};

use tropa_proto::{id::AgentId, random::Random};

use self::timers::{Timer, Timers};

/// Three beats missed (`reliability.md` §4).
const SUSPECT_AFTER: Duration = Duration::from_secs(3);

/// Silence that counts as death (`reliability.md` §4).
const DEAD_AFTER: Duration = Duration::from_secs(8);

/// Between two `Renew`s: three fit into the agent's lease of 15 s (`reliability.md` §4).
const RENEW: Duration = Duration::from_secs(5);

/// The loop turns four times a second; so long between two turns means that this program, or its machine, has slept
/// (`reliability.md` §4).
const SLEPT: Duration = Duration::from_secs(5);

/// How long a late turn makes this coordinator doubt itself: the time in which a death is judged, and a little.
const DOUBT: Duration = Duration::from_secs(10);

/// Pauses before a stream is opened again, shortened at random (full jitter), the last one for ever
/// (`reliability.md` §4).
const PAUSES_MS: [u64; 7] = [200, 500, 1_000, 2_000, 5_000, 10_000, 30_000];

/// The longest pause while the agent has something of this job: five seconds after a partition has healed its work
/// is to go on (`reliability.md` §6.2, row 6), and a dial takes some of them.
const LONGEST_WITH_WORK_MS: u64 = 1_000;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Something has been sent to the agent, or is to be asked of it.
    Wanted(AgentId),
    /// Nothing is awaited of it any more.
    Idle(AgentId),
    /// It has said something, on any stream.
    Heard(AgentId),
    /// Its control stream is open, and it has said what it holds.
    Attached(AgentId),
    /// Its control stream broke off, or did not open; `gone` where nobody listens any more, or it said goodbye.
    Broken {
        /// The agent.
        agent: AgentId,
        /// It has ended.
        gone: bool,
    },
    /// A connection to it is there.
    Connected(AgentId),
    /// The loop turns, after so long on the clock that counts a suspend, where it had meant to wait for so long.
    Turned {
        /// Since the last turn.
        passed: Duration,
        /// What was planned.
        planned: Duration,
    },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Open the control stream and ask what is held.
    Open(AgentId),
    /// Ask again on the stream that is open.
    Ask(AgentId),
    /// Drop the control stream and close every connection.
    Close(AgentId),
    /// Send `Renew`.
    Renew(AgentId),
    /// It gets nothing new.
    Suspect(AgentId),
    /// It was suspected wrongly.
    Alive(AgentId),
    /// What it holds is lost.
    Dead(AgentId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Closed,
    Opening,
    Attached,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Alive,
    Suspect,
    Dead,
}

#[derive(Debug)]
struct Life {
    link: Link,
    mood: Mood,
    heard: Duration,
    tries: usize,
}

/// What is believed of every agent that was given work. As many as there are members, which are bounded.
#[derive(Debug)]
pub struct Liveness {
    agents: BTreeMap<AgentId, Life>,
    timers: Timers,
    /// How late the own loop was at worst, and when.
    lag: (Duration, Duration),
    random: Random,
}

impl Liveness {
    /// Knows nobody. `seed` is any number that differs from coordinator to coordinator.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            agents: BTreeMap::new(),
            timers: Timers::default(),
            lag: (Duration::ZERO, Duration::ZERO),
            random: Random::new(seed),
        }
    }

    /// Takes in what has happened, and says what follows. `awaits` says whether the job awaits anything of an agent.
    pub fn handle(&mut self, input: Input, now: Duration, awaits: impl Fn(&AgentId) -> bool) -> Vec<Order> {
        let mut orders = Vec::new();
        match input {
            Input::Wanted(agent) => self.wanted(agent, now, &mut orders),
            Input::Idle(agent) => self.timers.clear(agent, Timer::Judge),
            Input::Heard(agent) => self.heard(agent, now, &mut orders),
            Input::Attached(agent) => self.attached(agent, now, &awaits),
            Input::Broken { agent, gone } => self.broken(agent, gone, now, &awaits, &mut orders),
            Input::Connected(agent) => {
                if self.agents.get(&agent).is_some_and(|life| life.link == Link::Closed) {
                    self.open(agent, &mut orders);
                }
            }
            Input::Turned { passed, planned } => {
                let late = passed.saturating_sub(planned);
                if late >= self.lag.0 || now > self.lag.1 + DOUBT {
                    self.lag = (late, now);
                }
                if passed > SLEPT {
                    self.slept(now, &mut orders);
                }
            }
        }
        orders
    }

    /// Does what is due.
    pub fn due(&mut self, now: Duration, awaits: impl Fn(&AgentId) -> bool) -> Vec<Order> {
        let mut orders = Vec::new();
        for (agent, timer) in self.timers.due(now) {
            match timer {
                Timer::Judge => self.judge(agent, now, &awaits, &mut orders),
                Timer::Open => {
                    if self.agents.get(&agent).is_some_and(|life| life.link == Link::Closed) {
                        self.open(agent, &mut orders);
                    }
                }
                Timer::Renew => {
                    if self.agents.get(&agent).is_some_and(|life| life.link == Link::Attached) {
                        self.timers.set(agent, Timer::Renew, now + RENEW);
                        if awaits(&agent) {
                            orders.push(Order::Renew(agent));
                        }
                    }
                }
            }
        }
        orders
    }

    /// When something is due next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.timers.next()
    }

    fn wanted(&mut self, agent: AgentId, now: Duration, orders: &mut Vec<Order>) {
        let life = self.agents.entry(agent).or_insert(Life {
            link: Link::Closed,
            mood: Mood::Alive,
            heard: now,
            tries: 0,
        });
        let (link, mood) = (life.link, life.mood);
        if !self.timers.is_set(agent, Timer::Judge) && mood != Mood::Dead {
            life.heard = now;
            let first = self.suspect_after(now);
            self.timers.set(agent, Timer::Judge, now + first);
        }
        if link == Link::Closed && !self.timers.is_set(agent, Timer::Open) {
            self.open(agent, orders);
        }
    }

    fn heard(&mut self, agent: AgentId, now: Duration, orders: &mut Vec<Order>) {
        let Some(life) = self.agents.get_mut(&agent) else { return };
        life.heard = now;
        if life.mood == Mood::Suspect && life.link == Link::Attached {
            life.mood = Mood::Alive;
            orders.push(Order::Alive(agent));
        }
    }

    fn attached(&mut self, agent: AgentId, now: Duration, awaits: &impl Fn(&AgentId) -> bool) {
        let Some(life) = self.agents.get_mut(&agent) else { return };
        (life.link, life.mood, life.heard, life.tries) = (Link::Attached, Mood::Alive, now, 0);
        self.timers.clear(agent, Timer::Open);
        self.timers.set(agent, Timer::Renew, now + RENEW);
        if awaits(&agent) {
            let first = self.suspect_after(now);
            self.timers.set(agent, Timer::Judge, now + first);
        }
    }

    fn broken(
        &mut self,
        agent: AgentId,
        gone: bool,
        now: Duration,
        awaits: &impl Fn(&AgentId) -> bool,
        orders: &mut Vec<Order>,
    ) {
        let Some(life) = self.agents.get_mut(&agent) else { return };
        let was_attached = life.link == Link::Attached;
        life.link = Link::Closed;
        self.timers.clear(agent, Timer::Renew);
        if life.mood == Mood::Alive {
            life.mood = Mood::Suspect;
            orders.push(Order::Suspect(agent));
        }
        if gone && life.mood != Mood::Dead {
            life.mood = Mood::Dead;
            self.timers.clear(agent, Timer::Judge);
            orders.push(Order::Dead(agent));
        }
        if was_attached && !gone {
            // A fresh connection heals in seconds, an old one in minutes.
            return self.open(agent, orders);
        }
        let tries = life.tries;
        life.tries += 1;
        let longest = PAUSES_MS[tries.min(PAUSES_MS.len() - 1)];
        let longest = if awaits(&agent) { longest.min(LONGEST_WITH_WORK_MS) } else { longest };
        let pause = self.random.up_to(Duration::from_millis(longest));
        self.timers.set(agent, Timer::Open, now + pause);
    }

    fn judge(
        &mut self,
        agent: AgentId,
        now: Duration,
        awaits: &impl Fn(&AgentId) -> bool,
        orders: &mut Vec<Order>,
    ) {
        let (suspect_after, dead_after) = (self.suspect_after(now), self.dead_after(now));
        let Some(life) = self.agents.get_mut(&agent) else { return };
        if life.mood == Mood::Dead || !awaits(&agent) {
            return;
        }
        if now >= life.heard + dead_after {
            (life.mood, life.link) = (Mood::Dead, Link::Closed);
            self.timers.clear(agent, Timer::Renew);
            orders.extend([Order::Close(agent), Order::Dead(agent)]);
            let soon = self.random.up_to(Duration::from_millis(PAUSES_MS[0]));
            self.timers.set(agent, Timer::Open, now + soon);
            return;
        }
        if now >= life.heard + suspect_after && life.mood == Mood::Alive {
            life.mood = Mood::Suspect;
            orders.push(Order::Suspect(agent));
        }
        let next = if life.mood == Mood::Alive { suspect_after } else { dead_after };
        self.timers.set(agent, Timer::Judge, life.heard + next);
    }

    /// Whatever was believed is old: every stream is opened anew, and the silence so far counts for nothing.
    fn slept(&mut self, now: Duration, orders: &mut Vec<Order>) {
        let known: Vec<AgentId> = self.agents.keys().copied().collect();
        for agent in known {
            let Some(life) = self.agents.get_mut(&agent) else { continue };
            life.heard = now;
            orders.push(Order::Close(agent));
            self.open(agent, orders);
        }
    }

    fn open(&mut self, agent: AgentId, orders: &mut Vec<Order>) {
        if let Some(life) = self.agents.get_mut(&agent) {
            life.link = Link::Opening;
            self.timers.clear(agent, Timer::Open);
            orders.push(Order::Open(agent));
        }
    }

    fn suspect_after(&self, now: Duration) -> Duration {
        SUSPECT_AFTER.mul_f64(self.doubt(now))
    }

    fn dead_after(&self, now: Duration) -> Duration {
        DEAD_AFTER.mul_f64(self.doubt(now))
    }

    /// How much longer others get because this loop is late itself: 1 to 3 times.
    fn doubt(&self, now: Duration) -> f64 {
        let (lag, at) = self.lag;
        if now > at + DOUBT { 1.0 } else { (1.0 + lag.as_secs_f64()).clamp(1.0, 3.0) }
    }

    /// Asks an agent what it holds: on its stream where that is open, else as soon as it opens.
    #[must_use]
    pub fn ask(&mut self, agent: AgentId, now: Duration) -> Vec<Order> {
        let mut orders = Vec::new();
        self.wanted(agent, now, &mut orders);
        if self.agents.get(&agent).is_some_and(|life| life.link == Link::Attached) {
            orders.push(Order::Ask(agent));
        }
        orders
    }
}

#[cfg(test)]
mod tests;
