//! The lane: when its devices are asked for, settled, used and given back.

use tokio::time::Instant;
use tropa_proto::{
    message::Place,
    proof::{Bug, planted},
};

use super::{Action, Admission, LINGER, LOOK, MAX_CHECKING, state::Lane};

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
            self.mark_waiting(now);
            actions.push(Action::Acquire);
        }
    }
}
