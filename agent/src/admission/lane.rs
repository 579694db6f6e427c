//! The lane: when its devices are asked for, settled, used and given back.

use tokio::time::Instant;
use tropa_proto::{
    message::Place,
    proof::{Bug, planted},
};

use super::{
    Action, Admission, Key, LINGER, LOOK, MAX_CHECKING,
    state::{Lane, State},
};

impl Admission {
    pub(super) fn lane_deadline(&self) -> Option<Instant> {
        match &self.lane {
            Lane::Held { idle: Some(idle), .. } => Some(*idle + LINGER),
            Lane::Held { look, .. } => Some(*look),
            Lane::Free | Lane::Asked { .. } | Lane::Settling { .. } | Lane::Yielding { .. } => None,
        }
    }

    pub(super) fn tick(&mut self, someone_waits: bool, displaced: bool, now: Instant) {
        let Lane::Held { since, look, .. } = &mut self.lane else { return };
        if displaced || (now >= *since + self.turn_lasts && someone_waits) {
            self.lane = Lane::Yielding { since: *since };
        } else if now >= *look {
            *look = now + LOOK;
        }
    }

    /// What is loaded has changed: devices that were kept from others until a model had its place go back.
    pub(super) fn placed(&mut self, someone_waits: bool) {
        if let Lane::Held { since, .. } = self.lane
            && someone_waits
            && self.all_devices
            && !self.needs_all()
        {
            self.lane = Lane::Yielding { since };
        }
    }

    /// Says whether something that waits or runs may be on any device of the install.
    fn needs_all(&self) -> bool {
        let open = |key: &Key| matches!(self.known.get(key), Some(State::Queued(_) | State::Running { .. }));
        self.unplaced.iter().any(open)
    }

    /// Starts what may start, and asks for, settles or gives back the lane as that needs.
    pub(super) fn move_on(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.unsettled &= !planted(Bug::NoSettling);
        if self.unsettled
            && let Lane::Held { since, .. } | Lane::Yielding { since } = self.lane
        {
            self.unsettled = false;
            self.lane = Lane::Settling { since };
            self.mark_waiting(now);
            actions.push(Action::Settle);
            self.tell_queued(&Place::Settling, actions);
        }
        if matches!(self.lane, Lane::Held { .. }) && self.health.is_well() {
            while self.running.len() < self.width && self.checking < MAX_CHECKING {
                let Some(key) = self.choose(now) else { break };
                if self.unplaced.contains(&key)
                    && !self.all_devices
                    && let Lane::Held { since, .. } = self.lane
                {
                    // Locks are taken all at once and in one order: what is held goes back first.
                    self.lane = Lane::Yielding { since };
                    break;
                }
                self.start(key, now, actions);
            }
        }
        let probes = self.health.wants_probe() && self.draining.is_none();
        if matches!(self.lane, Lane::Held { .. }) && probes && self.running.is_empty() {
            self.health.begin();
            actions.push(Action::Probe);
        }
        let wanted = self.queued() > 0 || probes;
        let quiet = self.running.is_empty() && !self.health.is_probing();
        match &mut self.lane {
            Lane::Held { idle, .. } if quiet && !wanted => match idle {
                None => *idle = Some(now),
                Some(since) if now >= *since + LINGER => {
                    self.lane = Lane::Free;
                    actions.push(Action::Release);
                }
                Some(_) => {}
            },
            Lane::Held { idle, .. } => *idle = None,
            Lane::Yielding { .. } if quiet => {
                self.lane = Lane::Free;
                actions.push(Action::Release);
            }
            // A wait that nobody wants any more is given up, so that others do not wait behind it.
            Lane::Asked { .. } if !wanted => {
                self.lane = Lane::Free;
                actions.push(Action::Release);
            }
            Lane::Free | Lane::Asked { .. } | Lane::Settling { .. } | Lane::Yielding { .. } => {}
        }
        if self.lane == Lane::Free && wanted {
            self.lane = Lane::Asked { holder: None };
            // A probe may load its model anywhere too.
            self.all_devices = self.needs_all() || probes;
            self.mark_waiting(now);
            actions.push(Action::Acquire);
        }
    }
}
