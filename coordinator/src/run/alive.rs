//! Who is alive, as the loop learns it: control streams opened and closed, and what agents say on them.

use std::time::Duration;

use tropa_proto::{
    id::{AgentId, AttemptId, Incarnation, JobId},
    message::Held,
    proof,
};

use super::{Failed, Input, Loop};
use crate::{
    control::{Control, Said},
    liveness::Order,
    schedule::{Event, Reattached},
};

impl Loop<'_> {
    /// Takes in a sign of life, or of its lack.
    pub(super) fn alive(&mut self, input: Input) -> Result<(), Failed> {
        let now = self.now();
        let schedule = &self.schedule;
        let orders = self.liveness.handle(input, now, |agent| schedule.awaits(agent));
        self.obey(orders)
    }

    /// Asks an agent what it holds.
    pub(super) fn ask(&mut self, agent: AgentId) -> Result<(), Failed> {
        let now = self.now();
        let orders = self.liveness.ask(agent, now);
        self.obey(orders)
    }

    /// Judges who has been silent; before that, whether this program has slept.
    pub(super) fn judge(&mut self) -> Result<(), Failed> {
        let boot = self.run.clock.boot();
        let (before, planned) = std::mem::replace(&mut self.turned, (boot, Duration::ZERO));
        self.alive(Input::Turned { passed: boot.saturating_sub(before), planned })?;
        let now = self.now();
        let schedule = &self.schedule;
        let orders = self.liveness.due(now, |agent| schedule.awaits(agent));
        self.obey(orders)
    }

    pub(super) fn on_said(&mut self, agent: AgentId, number: u64, said: Said) -> Result<(), Failed> {
        if self.controls.get(&agent).is_none_or(|control| control.number != number) {
            return Ok(());
        }
        match said {
            Said::Attached(incarnation, held) => {
                self.alive(Input::Attached(agent))?;
                self.tell(Event::Reattached(reattached(agent, incarnation, &held)))
            }
            Said::Beat(held) => {
                for open in held.open.iter() {
                    let attempt = AttemptId { job: held.job, chunk: open.chunk, no: open.no };
                    if let Some(live) = self.attempts.get_mut(&attempt) {
                        live.tokens = live.tokens.max(u64::from(open.tokens));
                    }
                }
                self.alive(Input::Heard(agent))
            }
            Said::Broken { why, gone } => {
                tracing::info!(agent = agent.short(), why, "the control stream to an agent is gone");
                self.controls.remove(&agent);
                // Who said goodbye is not waited for.
                let gone = gone || !self.run.members.knows(agent);
                self.alive(Input::Broken { agent, gone })
            }
        }
    }

    fn obey(&mut self, orders: Vec<Order>) -> Result<(), Failed> {
        for order in orders {
            match order {
                Order::Open(agent) => self.open_control(agent),
                Order::Ask(agent) => {
                    if let Some(control) = self.controls.get(&agent) {
                        control.ask();
                    }
                }
                Order::Close(agent) => {
                    self.controls.remove(&agent);
                    let mesh = self.run.members.mesh().clone();
                    tokio::spawn(async move { mesh.close(agent).await });
                }
                Order::Renew(agent) => {
                    if let Some(control) = self.controls.get(&agent) {
                        control.renew();
                    }
                }
                Order::Suspect(agent) => {
                    tracing::info!(agent = agent.short(), "suspect: silent, or its connection is gone");
                    for (attempt, _) in self.attempts.iter().filter(|(_, live)| live.agent == agent) {
                        proof::event("suspect", attempt, agent.short());
                    }
                    self.tell(Event::Suspect(agent))?;
                }
                Order::Alive(agent) => self.tell(Event::Alive(agent))?,
                Order::Dead(agent) => {
                    tracing::warn!(agent = agent.short(), "dead: what it held runs elsewhere");
                    self.tell(Event::Dead(agent))?;
                }
            }
        }
        Ok(())
    }

    fn open_control(&mut self, agent: AgentId) {
        self.next_control += 1;
        let mesh = self.run.members.mesh().clone();
        let (job, number) = (self.run.journal.job().id, self.next_control);
        let control = Control::open(mesh, agent, self.hello.clone(), job, number, self.sayings.clone());
        self.controls.insert(agent, control);
    }
}

fn reattached(agent: AgentId, incarnation: Incarnation, held: &Held) -> Reattached {
    let job: JobId = held.job;
    let open = held.open.iter().map(|open| AttemptId { job, chunk: open.chunk, no: open.no });
    let ended = held.ended.iter().map(|(chunk, no)| AttemptId { job, chunk: *chunk, no: *no });
    Reattached { agent, incarnation, open: open.collect(), ended: ended.collect(), whole: held.whole }
}
