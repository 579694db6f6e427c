//! What the agent says of itself: to the mesh, again each period, and to the programs of this machine.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tropa_proto::{
    bounded::{List, Text},
    evidence::Core,
    mesh::Mesh,
    message::{AgentState, Announcement, EngineState},
};

use crate::{
    Agent, AgentError, LONGEST_PERIOD,
    runtime_dir::{Presence, Present, RuntimePlaces},
};

/// The shortest period between two announcements (`reliability.md` §4).
const SHORTEST_PERIOD: Duration = Duration::from_secs(10);

impl Agent {
    /// Says that the agent is there, and returns when the next announcement is due.
    pub(crate) async fn announce(&mut self) -> Result<Duration, AgentError> {
        let period = period(self.members.len() + 1)?;
        let epoch = self.boot_clock.sample();
        let locks = self.locks.as_ref().and_then(|locks| locks.ids().ok()).unwrap_or_default();
        let (bundle, inventory) = self.stock.hashes();
        let listening = self.mesh.listening();
        let is_up = self.stock.description().inventory.engine == EngineState::Up;
        self.exposure.look(is_up, &listening);
        let announcement = Announcement {
            incarnation: self.incarnation,
            seq: self.state.next_seq()?,
            period_ms: u32::try_from(period.as_millis()).unwrap_or(u32::MAX),
            state: state(self.phase, self.load.borrow().ill),
            label: Text::cut(&self.config_label),
            core: Core::new(&self.stock.description().evidence, epoch),
            sampled_ms_ago: 0,
            machine: self.machine.claim(),
            locks: List::cut(locks).0,
            width: self.width,
            engine: self.engine.borrow().run,
            bundle,
            inventory,
            addresses: List::cut(reachable(listening)).0,
        };
        if let Err(error) = self.mesh.publish(announcement).await {
            tracing::warn!(%error, "an announcement was not sent");
        }
        if let Some(presence) = &mut self.presence
            && let Err(error) = presence.refresh()
        {
            tracing::warn!(%error, "coordinators of this machine must name this agent with --peer");
        }
        Ok(period)
    }
}

/// What is said of an agent in this phase whose engine is or is not ill.
fn state(phase: AgentState, ill: bool) -> AgentState {
    if phase == AgentState::Ready && ill { AgentState::Ill } else { phase }
}

/// Half a second per member, so that a mesh of any size gossips the same amount; ± 10 %, so that agents which
/// started together do not speak together (`reliability.md` §4).
fn period(members: usize) -> Result<Duration, getrandom::Error> {
    let even = Duration::from_millis(500).saturating_mul(u32::try_from(members).unwrap_or(u32::MAX));
    let even = even.clamp(SHORTEST_PERIOD, LONGEST_PERIOD);
    let chance = f64::from(getrandom::u32()?) / f64::from(u32::MAX);
    Ok(even.mul_f64(0.9 + 0.2 * chance))
}

/// The addresses that others can dial: this machine's own only where there is no other, link-local ones never, since
/// they mean nothing without an interface.
fn reachable(listening: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let dialable = |address: &SocketAddr| match address.ip() {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_unicast_link_local(),
    };
    let (own, others): (Vec<_>, Vec<_>) =
        listening.into_iter().filter(dialable).partition(|address| address.ip().is_loopback());
    if others.is_empty() { own } else { others }
}

pub(crate) fn announce_here(runtime: Option<&RuntimePlaces>, port: u16, mesh: &Mesh) -> Option<Presence> {
    let listening = mesh.listening();
    let local = listening.iter().find(|address| address.ip().is_loopback()).or(listening.first())?;
    let present = Present { agent: mesh.me(), address: *local, pid: std::process::id(), port };
    match runtime?.announce(present) {
        Ok(presence) => Some(presence),
        Err(error) => {
            tracing::warn!(%error, "coordinators of this machine must name this agent with --peer");
            None
        }
    }
}
