//! The present connections, and which of them to close where there are too many (pure).
//!
//! An agent whose address is handed around with `--peer` is dialled by everybody who starts. Once they have its
//! roster they hold connections to others, and those to it serve nobody: at the cap they would only keep newcomers and
//! coordinators out. So it closes the oldest of them, and whoever is closed on finds the next member from its roster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use libp2p::swarm::ConnectionId;

use super::dial::Present;
use crate::{bounded::Text, id::AgentId};

/// Members that an agent lets dial it and stay: half of the connections that it may have (`security.md` §6), so that
/// there is room for all who come within [`STAY`], and ten times what a member of a large mesh has of its own.
const CALLERS: usize = 128;

/// How long a member that dialled stays at least: long enough for the first rosters and for dials to other members.
const STAY: Duration = Duration::from_secs(5);

/// Bytes of what a peer calls its program: a name and a version.
const MAX_PROGRAM: usize = 64;

/// The present connections, and who is there.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Everybody with a connection, and since when.
    pub(super) connected: BTreeMap<AgentId, Instant>,
    pub(super) dialled: BTreeMap<ConnectionId, AgentId>,
    /// Who is at the other end of each connection, and where.
    pub(super) ends: BTreeMap<ConnectionId, (AgentId, IpAddr)>,
    /// Which program everybody with a connection says that it is.
    pub(super) programs: BTreeMap<AgentId, Text<MAX_PROGRAM>>,
    pub(super) agents: usize,
}

impl Links {
    /// Where the other end of a connection is; `None` where it is gone.
    pub(super) fn at(&self, connection: ConnectionId) -> Option<IpAddr> {
        self.ends.get(&connection).map(|(_, address)| *address)
    }

    /// Names whom to close on: of the members that have dialled this node the longest present, where there are more
    /// than [`CALLERS`]. Who is no member is a coordinator, or new, and is left.
    pub(super) fn surplus(&self, is_member: impl Fn(&AgentId) -> bool, now: Instant) -> Vec<AgentId> {
        if self.connected.len() <= CALLERS {
            return Vec::new();
        }
        let own: BTreeSet<&AgentId> = self.dialled.values().collect();
        let mut callers: Vec<(Instant, AgentId)> = self
            .connected
            .iter()
            .filter(|(agent, _)| !own.contains(agent) && is_member(agent))
            .map(|(agent, since)| (*since, *agent))
            .collect();
        callers.sort_unstable();
        let surplus = callers.len().saturating_sub(CALLERS);
        let long = |(since, _): &&(Instant, AgentId)| now.saturating_duration_since(*since) >= STAY;
        callers.iter().take(surplus).filter(long).map(|(_, agent)| *agent).collect()
    }
}

impl Present for Links {
    fn connected(&self, agent: &AgentId) -> bool {
        self.connected.contains_key(agent)
    }
    fn outgoing(&self) -> usize {
        self.dialled.len()
    }
    fn agents(&self) -> usize {
        self.agents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(number: usize) -> AgentId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&(number as u64).to_be_bytes());
        AgentId(id)
    }

    #[expect(clippy::disallowed_methods, reason = "an Instant has no other source; only differences matter")]
    fn crowd(callers: usize) -> (Links, Instant) {
        let start = Instant::now();
        let since = |number: usize| start + Duration::from_millis(u64::try_from(number).unwrap());
        let connected = (0..callers).map(|number| (agent(number), since(number))).collect();
        (Links { connected, ..Links::default() }, start)
    }

    #[test]
    fn the_longest_present_callers_leave_where_there_are_too_many() {
        let (links, start) = crowd(CALLERS + 3);
        assert_eq!(links.surplus(|_| true, start), [], "all have come just now");
        let oldest = [agent(0), agent(1), agent(2)];
        assert_eq!(links.surplus(|_| true, start + STAY * 2), oldest);
        assert_eq!(crowd(CALLERS).0.surplus(|_| true, start + STAY * 2), []);
    }

    #[test]
    fn whom_this_node_dialled_and_who_is_no_member_stays() {
        let (mut links, start) = crowd(CALLERS + 3);
        links.dialled.insert(ConnectionId::new_unchecked(1), agent(0));
        assert_eq!(links.surplus(|id| *id != agent(1), start + STAY * 2), [agent(2)]);
        assert_eq!(links.surplus(|_| false, start + STAY * 2), [], "coordinators keep no agent's place");
    }
}
