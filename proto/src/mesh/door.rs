//! The door: which connections are taken, before anything is read from them but their handshake (`security.md` §6).
//!
//! `connection_limits` counts connections; this counts what it cannot see: handshakes by address, places that are kept
//! for those who are known, the memory of the process, and peers that are shut out for a while. Nothing here reads a
//! clock; the driver says when a ban is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished, ListenFailure},
        dummy,
    },
};

use super::swarm::{agent_of, socket};
use crate::id::AgentId;

/// Connections from one address that are not through their handshake: half of all that may be pending, so that one
/// host cannot take every place, and as many as a host has agents that start at once. In a mesh of secrets the
/// handshake is what proves membership; a `Hello` on a work stream has its own limit of 5 s (`security.md` §6).
pub const PER_ADDRESS: usize = 16;

/// Of all places, those that only known members find free: agents that have announced themselves, and whoever's work
/// or results are held here (`security.md` §6).
pub const KEPT_FOR_MEMBERS: usize = 8;

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("{PER_ADDRESS} handshakes from its address are under way")]
    Address,
    #[error("the last {KEPT_FOR_MEMBERS} places are kept for known members")]
    Kept,
    #[error("this process uses as much memory as it may")]
    Memory,
    #[error("it has broken the rules and is shut out for a while")]
    Banned,
}

/// Whose work or results this node holds: they find a place however little memory is left.
#[derive(Debug, Default)]
pub(super) struct Guests(Mutex<(BTreeSet<AgentId>, u64)>);

impl Guests {
    /// Takes who they are, and the bytes of their results.
    pub(super) fn set(&self, agents: BTreeSet<AgentId>, bytes: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (agents, bytes);
    }

    fn has(&self, agent: &AgentId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.contains(agent)
    }

    fn bytes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// What the door is told once.
#[derive(Debug)]
pub(super) struct House {
    /// Connections in all.
    pub(super) places: usize,
    /// Bytes of memory from which on nobody new is taken; `None`: no such limit.
    pub(super) memory: Option<u64>,
    pub(super) guests: Arc<Guests>,
    /// Gives the bytes that this process has in memory, where that can be read.
    pub(super) resident: fn() -> Option<u64>,
}

/// The state of the door.
#[derive(Debug)]
pub(super) struct Door {
    house: House,
    /// Incoming connections that are not through their handshake.
    knocking: BTreeMap<ConnectionId, IpAddr>,
    inside: BTreeSet<ConnectionId>,
    members: BTreeSet<AgentId>,
    banned: BTreeSet<AgentId>,
}

impl Door {
    pub(super) fn new(house: House) -> Self {
        Self {
            house,
            knocking: BTreeMap::new(),
            inside: BTreeSet::new(),
            members: BTreeSet::new(),
            banned: BTreeSet::new(),
        }
    }

    /// An agent has announced itself; they are as many as the ledger knows.
    pub(super) fn came(&mut self, agent: AgentId) {
        self.members.insert(agent);
    }

    /// An agent is a known member no longer.
    pub(super) fn went(&mut self, agent: &AgentId) {
        self.members.remove(agent);
    }

    /// Shuts these out, and nobody else.
    pub(super) fn ban(&mut self, agents: BTreeSet<AgentId>) {
        self.banned = agents;
    }

    /// Says whether the process has as much in memory as it may, results that wait for their reader not counted.
    pub(super) fn is_out_of_memory(&self) -> bool {
        let Some(limit) = self.house.memory else { return false };
        (self.house.resident)().is_some_and(|bytes| bytes.saturating_sub(self.house.guests.bytes()) > limit)
    }

    fn knock(&self, address: IpAddr) -> Result<(), Refused> {
        let same = self.knocking.values().filter(|other| **other == address).count();
        if same >= PER_ADDRESS { Err(Refused::Address) } else { Ok(()) }
    }

    fn admit(&self, agent: Option<AgentId>, came_by_itself: bool) -> Result<(), Refused> {
        let is_guest = agent.is_some_and(|agent| self.house.guests.has(&agent));
        let is_member = is_guest || agent.is_some_and(|agent| self.members.contains(&agent));
        if agent.is_some_and(|agent| self.banned.contains(&agent)) {
            Err(Refused::Banned)
        } else if !is_member && self.inside.len() + KEPT_FOR_MEMBERS >= self.house.places {
            Err(Refused::Kept)
        } else if came_by_itself && !is_guest && self.is_out_of_memory() {
            Err(Refused::Memory)
        } else {
            Ok(())
        }
    }
}

impl NetworkBehaviour for Door {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        from: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        if let Some(from) = socket(from) {
            let address = from.ip().to_canonical();
            self.knock(address).map_err(ConnectionDenied::new)?;
            self.knocking.insert(connection, address);
        }
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.knocking.remove(&connection);
        self.admit(agent_of(&peer), true).map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        match peer.as_ref().and_then(agent_of) {
            Some(agent) if self.banned.contains(&agent) => Err(ConnectionDenied::new(Refused::Banned)),
            Some(_) | None => Ok(Vec::new()),
        }
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(agent_of(&peer), false).map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "connections are all that matters here")]
    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { connection_id, .. }) => {
                self.inside.insert(connection_id);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) => {
                self.inside.remove(&connection_id);
            }
            FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => {
                self.knocking.remove(&connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 96 << 20;
    const PLACES: usize = 20;

    fn door(resident: fn() -> Option<u64>) -> Door {
        let guests = Arc::default();
        Door::new(House { places: PLACES, memory: Some(LIMIT), guests, resident })
    }

    fn fill(door: &mut Door, connections: usize) {
        door.inside = (0..connections).map(ConnectionId::new_unchecked).collect();
    }

    #[test]
    fn one_address_has_sixteen_handshakes_and_another_is_not_held_up_by_them() {
        let mut door = door(|| None);
        let [one, other]: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        for number in 0..PER_ADDRESS {
            assert_eq!(door.knock(one), Ok(()), "{number}");
            door.knocking.insert(ConnectionId::new_unchecked(number), one);
        }
        assert_eq!(door.knock(one), Err(Refused::Address));
        assert_eq!(door.knock(other), Ok(()));
        door.knocking.remove(&ConnectionId::new_unchecked(3));
        assert_eq!(door.knock(one), Ok(()), "a place is free again when a handshake ends");
    }

    #[test]
    fn the_last_eight_places_are_for_members_and_guests() {
        let mut door = door(|| None);
        let [stranger, member, guest] = [1, 2, 3].map(|key| Some(AgentId([key; 32])));
        door.came(AgentId([2; 32]));
        door.house.guests.set([AgentId([3; 32])].into(), 0);
        fill(&mut door, PLACES - KEPT_FOR_MEMBERS - 1);
        assert_eq!(door.admit(stranger, true), Ok(()));
        for inside in [PLACES - KEPT_FOR_MEMBERS, PLACES - 1] {
            fill(&mut door, inside);
            assert_eq!(door.admit(stranger, true), Err(Refused::Kept));
            assert_eq!(door.admit(stranger, false), Err(Refused::Kept));
            assert_eq!((door.admit(member, true), door.admit(guest, true)), (Ok(()), Ok(())));
        }
        door.went(&AgentId([2; 32]));
        assert_eq!(door.admit(member, true), Err(Refused::Kept));
    }

    #[test]
    fn above_the_limit_of_memory_only_guests_come_in_and_what_is_kept_for_them_does_not_count() {
        let [stranger, guest] = [1, 3].map(|key| Some(AgentId([key; 32])));
        let guests = || BTreeSet::from([AgentId([3; 32])]);
        let at = door(|| Some(LIMIT));
        assert_eq!(at.admit(stranger, true), Ok(()));
        let above = door(|| Some(LIMIT + 1));
        assert_eq!(above.admit(stranger, true), Err(Refused::Memory));
        assert_eq!(above.admit(stranger, false), Ok(()), "who is dialled is wanted");
        above.house.guests.set(guests(), 0);
        assert_eq!((above.admit(guest, true), above.admit(stranger, true)), (Ok(()), Err(Refused::Memory)));
        above.house.guests.set(guests(), 1);
        assert_eq!(above.admit(stranger, true), Ok(()), "results that wait are not counted");
        assert!(!door(|| None).is_out_of_memory(), "where nothing can be read nothing is refused");
    }

    #[test]
    fn who_is_banned_comes_in_by_no_door() {
        let mut door = door(|| None);
        let agent = AgentId([1; 32]);
        door.came(agent);
        door.ban([agent].into());
        assert_eq!(door.admit(Some(agent), true), Err(Refused::Banned));
        assert_eq!(door.admit(Some(agent), false), Err(Refused::Banned));
        door.ban(BTreeSet::new());
        assert_eq!(door.admit(Some(agent), true), Ok(()));
    }
}
