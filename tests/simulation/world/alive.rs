//! Who is alive: the real `Liveness` of the coordinator, its control streams, and the beats of the agents.

use std::time::Duration;

use tropa_agent::admission::Holding;
use tropa_coordinator::{
    liveness::{Input, Order},
    schedule::{Event, Reattached},
};
use tropa_proto::id::{AgentId, Incarnation};

use super::{
    super::{
        coordinator::Control,
        install::{Arrival, agent, install_of},
    },
    What, World,
};

/// How long a stream to an agent that takes it and says nothing is waited for.
const OPENS_WITHIN: Duration = Duration::from_secs(5);

/// How often a dial looks whether somebody is there: about as TCP sends its first packet again.
const DIAL: Duration = Duration::from_secs(1);

impl World {
    pub(super) fn alive(&mut self, input: Input) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let now = self.now - coordinator.started;
        let schedule = &coordinator.schedule;
        let orders = coordinator.liveness.handle(input, now, |agent| schedule.awaits(agent));
        self.obey(orders);
    }

    pub(super) fn ask(&mut self, agent: AgentId) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let orders = coordinator.liveness.ask(agent, self.now - coordinator.started);
        self.obey(orders);
    }

    pub(super) fn judge(&mut self) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let schedule = &coordinator.schedule;
        let now = self.now - coordinator.started;
        let orders = coordinator.liveness.due(now, |agent| schedule.awaits(agent));
        self.obey(orders);
    }

    /// Nothing may be awaited of an agent any more.
    pub(super) fn idle(&mut self, install: usize) {
        let awaits =
            self.coordinator.as_ref().is_some_and(|coordinator| coordinator.schedule.awaits(&agent(install)));
        if !awaits {
            self.alive(Input::Idle(agent(install)));
        }
    }

    /// Sees to it that the coordinator turns when something is due.
    pub(super) fn plan_tick(&mut self) {
        let Some(coordinator) = &self.coordinator else { return };
        let (life, started) = (coordinator.life, coordinator.started);
        let now = self.now - started;
        let deadlines = [coordinator.schedule.next_deadline(now), coordinator.liveness.next_deadline()];
        if let Some(at) = deadlines.into_iter().flatten().min() {
            let at = (started + at).max(self.now);
            if self.tick_at.is_none_or(|tick| at < tick) {
                self.tick_at = Some(at);
                self.at(at, What::CoordinatorTick { life });
            }
        }
    }

    fn obey(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Open(agent) => self.open_control(install_of(agent)),
                Order::Ask(agent) => self.send_on_control(install_of(agent), Arrival::Reattach),
                Order::Close(agent) => {
                    let install = install_of(agent);
                    self.forget_control(install);
                    self.lose_connection(install);
                    self.roster();
                }
                Order::Renew(agent) => self.send_on_control(install_of(agent), |_| Arrival::Renew),
                Order::Suspect(agent) => self.tell(Event::Suspect(agent)),
                Order::Alive(agent) => self.tell(Event::Alive(agent)),
                Order::Dead(agent) => self.tell(Event::Dead(agent)),
            }
        }
        self.plan_tick();
    }

    fn open_control(&mut self, install: usize) {
        self.count += 1;
        let number = self.count;
        let link = self.links[install].number;
        let Some(coordinator) = &mut self.coordinator else { return };
        coordinator.controls.insert(install, Control { number, link });
        let life = coordinator.life;
        let wait = self.random.ms(1, 30);
        self.after(wait, What::Control { life, install, number, patience: OPENS_WITHIN });
    }

    pub(super) fn control_arrives(&mut self, life: u64, install: usize, number: u64, patience: Duration) {
        if !self.is_life(life) || !self.is_control(install, number) {
            return;
        }
        let (up, stopped, cut) = {
            let agent = &self.installs[install];
            (agent.up, agent.stopped, self.links[install].cut)
        };
        if !up && !cut {
            self.forget_control(install);
            return self.alive(Input::Broken { agent: agent(install), gone: true });
        }
        if stopped || cut {
            let patience = patience.saturating_sub(DIAL);
            if patience.is_zero() {
                self.forget_control(install);
                return self.alive(Input::Broken { agent: agent(install), gone: false });
            }
            return self.after(DIAL, What::Control { life, install, number, patience });
        }
        if !self.links[install].believed {
            self.connect(install);
        }
        let link = self.links[install].number;
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.controls.insert(install, Control { number, link });
        }
        self.send_on_control(install, Arrival::Reattach);
    }

    fn send_on_control(&mut self, install: usize, make: impl Fn(u64) -> Arrival) {
        let control = self.coordinator.as_ref().and_then(|coordinator| coordinator.controls.get(&install));
        let Some(Control { number, link }) = control.copied() else { return };
        if self.installs[install].up && !self.links[install].cut && self.links[install].number == link {
            let life = self.installs[install].life;
            let wait = self.random.ms(1, 30);
            self.after(wait, What::ToAgent { install, life, arrival: make(number) });
        }
    }

    pub(super) fn attached(
        &mut self,
        install: usize,
        number: u64,
        incarnation: Incarnation,
        held: &[Holding],
    ) {
        if !self.can_be_heard(install, number) {
            return;
        }
        self.alive(Input::Attached(agent(install)));
        let open = held.iter().filter_map(|holding| match holding {
            Holding::Open { attempt, .. } => Some(*attempt),
            Holding::Ended(_) => None,
        });
        let ended = held.iter().filter_map(|holding| match holding {
            Holding::Ended(attempt) => Some(*attempt),
            Holding::Open { .. } => None,
        });
        self.tell(Event::Reattached(Reattached {
            agent: agent(install),
            incarnation,
            open: open.collect(),
            ended: ended.collect(),
            whole: true,
        }));
    }

    pub(super) fn beaten(&mut self, install: usize, number: u64) {
        if self.can_be_heard(install, number) {
            self.alive(Input::Heard(agent(install)));
        }
    }

    /// The connection of the control stream is gone.
    pub(super) fn control_breaks(&mut self, install: usize) {
        if self.forget_control(install) {
            self.alive(Input::Broken { agent: agent(install), gone: false });
        }
    }

    fn forget_control(&mut self, install: usize) -> bool {
        self.coordinator.as_mut().is_some_and(|coordinator| coordinator.controls.remove(&install).is_some())
    }

    fn is_control(&self, install: usize, number: u64) -> bool {
        let control = self.coordinator.as_ref().and_then(|coordinator| coordinator.controls.get(&install));
        control.is_some_and(|control| control.number == number)
    }

    fn can_be_heard(&self, install: usize, number: u64) -> bool {
        let control = self.coordinator.as_ref().and_then(|coordinator| coordinator.controls.get(&install));
        let current = control
            .is_some_and(|control| control.number == number && control.link == self.links[install].number);
        current && !self.links[install].cut
    }
}
