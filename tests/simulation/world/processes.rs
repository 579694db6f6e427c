//! Processes that are killed, stopped and started again, links that are cut, disks that are full.

use std::time::Duration;

use tropa_agent::admission::Event as Arrived;
use tropa_coordinator::liveness::Input;

use super::{
    super::{faults::Fault, install::Arrival},
    Happened, SIDES, World, peer,
};

/// The coordinator's loop turns so often.
const TURN: Duration = Duration::from_millis(250);

impl World {
    pub(super) fn fault_begins(&mut self, fault: Fault) {
        match fault {
            Fault::KillAgent(install) => self.kill_agent(install),
            Fault::StopAgent(install) => {
                if self.installs[install].up && !self.installs[install].stopped {
                    self.installs[install].stopped = true;
                    self.disconnect_all(install, 25_000);
                }
            }
            Fault::Leave(install) => {
                let life = self.installs[install].life;
                self.arrive(install, life, Arrival::Own(Arrived::Drain("it is to end".to_owned())));
            }
            Fault::Mute(side, install) => {
                self.sides[side].links[install].mutes += 1;
                self.disconnect(side, install, 25_000);
            }
            Fault::Ill(install, reason) => self.installs[install].ill = Some(reason),
            Fault::Cut(side, install) => {
                self.sides[side].links[install].cuts += 1;
                self.disconnect(side, install, 25_000);
            }
            Fault::KillSide(side) => self.kill_side(side),
            Fault::StopSide(side) => {
                let now = self.now;
                let entry = &mut self.sides[side];
                if entry.up.is_some() && !entry.stopped {
                    (entry.stopped, entry.stopped_at) = (true, now);
                }
            }
            Fault::DiskFull(side) => self.sides[side].full = true,
            Fault::ModelGone(install) => {
                self.installs[install].model = false;
                self.rosters();
            }
        }
    }

    pub(super) fn fault_ends(&mut self, fault: Fault) {
        match fault {
            Fault::KillAgent(install) | Fault::Leave(install) => {
                if matches!(fault, Fault::Leave(_)) {
                    self.kill_agent(install);
                }
                if !self.installs[install].up {
                    self.installs[install].restart();
                    self.connect_all(install);
                }
            }
            Fault::StopAgent(install) => {
                if std::mem::take(&mut self.installs[install].stopped) {
                    let life = self.installs[install].life;
                    for arrival in std::mem::take(&mut self.installs[install].deferred) {
                        self.arrive(install, life, arrival);
                    }
                    self.connect_all(install);
                }
            }
            Fault::Mute(side, install) => {
                self.sides[side].links[install].mutes -= 1;
                self.connect(side, install);
            }
            Fault::Ill(install, _) => self.installs[install].ill = None,
            Fault::Cut(side, install) => {
                self.sides[side].links[install].cuts -= 1;
                self.connect(side, install);
            }
            Fault::KillSide(side) => self.start_side(side),
            Fault::StopSide(side) => {
                if std::mem::take(&mut self.sides[side].stopped) {
                    // The first thing that it notices is how long it was away.
                    let passed = self.now - self.sides[side].stopped_at + TURN;
                    self.alive(side, Input::Turned { passed, planned: TURN });
                    for what in std::mem::take(&mut self.sides[side].deferred) {
                        self.at(self.now, what);
                    }
                    for install in 0..self.installs.len() {
                        if !self.sides[side].links[install].believed {
                            self.connect(side, install);
                        }
                    }
                }
            }
            Fault::DiskFull(side) => self.sides[side].full = false,
            Fault::ModelGone(install) => {
                self.installs[install].model = true;
                self.rosters();
            }
        }
    }

    /// The kernel closes its connections and frees its locks; the engine notices in its own time.
    fn kill_agent(&mut self, install: usize) {
        if !std::mem::take(&mut self.installs[install].up) {
            return;
        }
        self.tell_history(peer(install), Happened::Killed);
        for request in std::mem::take(&mut self.installs[install].waits_for).into_values() {
            self.orphan(request);
        }
        let agent = &mut self.installs[install];
        (agent.life, agent.stopped, agent.tick_at) = (agent.life + 1, false, None);
        agent.deferred.clear();
        self.release(install);
        self.disconnect_all(install, 50);
    }

    /// What was synced is on disk; of what was written, as much as the system had taken.
    fn kill_side(&mut self, side: usize) {
        if self.sides[side].up.take().is_none() {
            return;
        }
        self.tell_history(SIDES + peer(side), Happened::Killed);
        let entry = &mut self.sides[side];
        (entry.stopped, entry.paused) = (false, false);
        entry.life += 1;
        entry.deferred.clear();
        let pending = std::mem::take(&mut entry.pending);
        let kept = if entry.full { 0 } else { self.random.index(pending.len() + 1) };
        for (_, step) in pending.into_iter().take(kept) {
            self.write(side, &step);
        }
        let job = self.sides[side].job;
        self.streams.retain(|_, stream| stream.attempt.job != job);
        self.by_attempt.retain(|attempt, _| attempt.job != job);
        self.sides[side].links.iter_mut().for_each(|link| (link.believed, link.left_at) = (false, None));
    }

    fn disconnect_all(&mut self, install: usize, within: u64) {
        (0..self.sides.len()).for_each(|side| self.disconnect(side, install, within));
    }

    fn connect_all(&mut self, install: usize) {
        (0..self.sides.len()).for_each(|side| self.connect(side, install));
    }

    fn rosters(&mut self) {
        for side in 0..self.sides.len() {
            // What it says of itself travels by gossip and is fetched.
            let (life, wait) = (self.sides[side].life, self.random.ms(5, 1_000));
            self.after(wait, super::What::Roster { side, life });
        }
    }
}
