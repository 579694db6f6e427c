//! Who is alive: the real `Liveness` of a coordinator, its control streams, and the beats of the agents.

use std::time::Duration;

use tropa_agent::admission::Holding;
use tropa_coordinator::{
    liveness::{Input, Liveness, Order},
    schedule::{Event, Reattached, Schedule},
};
use tropa_proto::id::{AgentId, Incarnation};

use super::{
    super::{
        coordinator::Control,
        install::{Arrival, agent, install_of},
    },
    What, World, side_id,
};

/// How long a stream to an agent that takes it and says nothing is waited for.
const OPENS_WITHIN: Duration = Duration::from_secs(5);

/// How often a dial looks whether somebody is there: about as TCP sends its first packet again.
const DIAL: Duration = Duration::from_secs(1);

/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);

/// How long what an agent says is on its way.
const LATENCY: Duration = Duration::from_millis(5);

impl World {
    pub(super) fn alive(&mut self, side: usize, input: Input) {
        self.with_liveness(side, |liveness, schedule, now| {
            liveness.handle(input, now, |agent| schedule.awaits(agent))
        });
    }

    pub(super) fn ask(&mut self, side: usize, agent: AgentId) {
        self.with_liveness(side, |liveness, _, now| liveness.ask(agent, now));
    }

    pub(super) fn judge_lives(&mut self, side: usize) {
        self.with_liveness(side, |liveness, schedule, now| liveness.due(now, |agent| schedule.awaits(agent)));
    }

    fn with_liveness(
        &mut self,
        side: usize,
        act: impl FnOnce(&mut Liveness, &Schedule, Duration) -> Vec<Order>,
    ) {
        let entry = &mut self.sides[side];
        let Some(up) = &mut entry.up else { return };
        let now = entry.clock.shows(self.now) - up.started;
        let orders = act(&mut up.liveness, &up.schedule, now);
        self.obey(side, orders);
    }

    /// Nothing may be awaited of an agent any more.
    pub(super) fn idle(&mut self, side: usize, install: usize) {
        let up = self.sides[side].up.as_ref();
        if !up.is_some_and(|up| up.schedule.awaits(&agent(install))) {
            self.alive(side, Input::Idle(agent(install)));
        }
    }

    fn obey(&mut self, side: usize, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Open(agent) => self.open_control(side, install_of(agent)),
                Order::Ask(agent) => self.send_on_control(side, install_of(agent), Arrival::Reattach),
                Order::Close(agent) => {
                    let install = install_of(agent);
                    self.forget_control(side, install);
                    self.lose_connection(side, install);
                    self.roster(side);
                }
                Order::Renew(agent) => {
                    self.send_on_control(side, install_of(agent), |side, _| Arrival::Renew(side));
                }
                Order::Suspect(agent) => self.tell(side, Event::Suspect(agent)),
                Order::Alive(agent) => self.tell(side, Event::Alive(agent)),
                Order::Dead(agent) => self.tell(side, Event::Dead(agent)),
            }
        }
        self.plan_tick(side);
    }

    fn open_control(&mut self, side: usize, install: usize) {
        self.count += 1;
        let number = self.count;
        let entry = &mut self.sides[side];
        let (link, life) = (entry.links[install].number, entry.life);
        let Some(up) = &mut entry.up else { return };
        up.controls.insert(install, Control { number, link });
        let wait = self.random.ms(1, 30);
        self.after(wait, What::Control { side, life, install, number, patience: OPENS_WITHIN });
    }

    pub(super) fn control_arrives(
        &mut self,
        side: usize,
        life: u64,
        install: usize,
        number: u64,
        patience: Duration,
    ) {
        if self.sides[side].life != life || !self.is_control(side, install, number) {
            return;
        }
        let (up, stopped) = (self.installs[install].up, self.installs[install].stopped);
        let cut = !self.sides[side].links[install].is_heard();
        if !up && !cut {
            self.forget_control(side, install);
            return self.alive(side, Input::Broken { agent: agent(install), gone: true });
        }
        if stopped || cut {
            let patience = patience.saturating_sub(DIAL);
            if patience.is_zero() {
                self.forget_control(side, install);
                return self.alive(side, Input::Broken { agent: agent(install), gone: false });
            }
            return self.after(DIAL, What::Control { side, life, install, number, patience });
        }
        if !self.sides[side].links[install].believed {
            self.connect(side, install);
        }
        let link = self.sides[side].links[install].number;
        if let Some(up) = &mut self.sides[side].up {
            up.controls.insert(install, Control { number, link });
        }
        self.send_on_control(side, install, Arrival::Reattach);
    }

    fn send_on_control(&mut self, side: usize, install: usize, make: impl Fn(usize, u64) -> Arrival) {
        let Some(Control { number, link }) = self.control(side, install) else { return };
        let known = &self.sides[side].links[install];
        if self.installs[install].up && known.cuts == 0 && known.number == link {
            let life = self.installs[install].life;
            let wait = self.random.ms(1, 30);
            self.after(wait, What::ToAgent { install, life, arrival: make(side, number) });
        }
    }

    /// The agent hears that its coordinator asks what it holds, and beats from now on.
    pub(super) fn reattach(&mut self, install: usize, side: usize, number: u64) {
        let agent = &mut self.installs[install];
        let life = agent.life;
        if agent.beats_on.insert(side, number) != Some(number) {
            self.after(BEAT, What::Beat { install, life, side, number });
        }
        let agent = &self.installs[install];
        let held = agent.admission.held(side_id(side), self.sides[side].job).collect();
        let incarnation = agent.incarnation;
        self.after(LATENCY, What::Attached { side, install, number, incarnation, held });
    }

    pub(super) fn beat(&mut self, install: usize, life: u64, side: usize, number: u64) {
        let agent = &self.installs[install];
        if agent.life != life || !agent.up || agent.beats_on.get(&side) != Some(&number) {
            return;
        }
        // A stopped agent beats again when it goes on.
        let job = self.sides[side].job;
        if !agent.stopped && agent.admission.held(side_id(side), job).next().is_some() {
            self.after(LATENCY, What::Beaten { side, install, number });
        }
        self.after(BEAT, What::Beat { install, life, side, number });
    }

    pub(super) fn attached(
        &mut self,
        side: usize,
        install: usize,
        number: u64,
        incarnation: Incarnation,
        held: &[Holding],
    ) {
        if !self.can_be_heard(side, install, number) {
            return;
        }
        self.alive(side, Input::Attached(agent(install)));
        let open = held.iter().filter_map(|holding| match holding {
            Holding::Open { attempt, .. } => Some(*attempt),
            Holding::Ended(_) => None,
        });
        let ended = held.iter().filter_map(|holding| match holding {
            Holding::Ended(attempt) => Some(*attempt),
            Holding::Open { .. } => None,
        });
        let reattached = Reattached {
            agent: agent(install),
            incarnation,
            open: open.collect(),
            ended: ended.collect(),
            whole: true,
        };
        self.tell(side, Event::Reattached(reattached));
    }

    pub(super) fn beaten(&mut self, side: usize, install: usize, number: u64) {
        if self.can_be_heard(side, install, number) {
            self.alive(side, Input::Heard(agent(install)));
        }
    }

    /// The connection of the control stream is gone.
    pub(super) fn control_breaks(&mut self, side: usize, install: usize) {
        if self.forget_control(side, install) {
            self.alive(side, Input::Broken { agent: agent(install), gone: false });
        }
    }

    fn forget_control(&mut self, side: usize, install: usize) -> bool {
        self.sides[side].up.as_mut().is_some_and(|up| up.controls.remove(&install).is_some())
    }

    fn control(&self, side: usize, install: usize) -> Option<Control> {
        self.sides[side].up.as_ref()?.controls.get(&install).copied()
    }

    fn is_control(&self, side: usize, install: usize, number: u64) -> bool {
        self.control(side, install).is_some_and(|control| control.number == number)
    }

    fn can_be_heard(&self, side: usize, install: usize, number: u64) -> bool {
        let link = &self.sides[side].links[install];
        let current = |control: Control| control.number == number && control.link == link.number;
        self.control(side, install).is_some_and(current) && link.is_heard()
    }
}
