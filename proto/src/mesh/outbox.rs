//! Events on their way to the owner of the mesh, bounded without losing what must not be lost.

use std::collections::VecDeque;

use super::MeshEvent;

/// From here on, what can be spared is dropped: four times what the channel holds.
const CROWDED: usize = 1_024;

/// From here on the swarm is not polled: room for every member's announcement and for what cannot be spared.
const FULL: usize = 4_096;

/// A queue in which only the latest announcement of each agent waits.
#[derive(Debug, Default)]
pub(super) struct Outbox(VecDeque<MeshEvent>);

impl Outbox {
    /// Takes an event; gives it back where it was dropped.
    pub(super) fn push(&mut self, event: MeshEvent) -> Option<MeshEvent> {
        match &event {
            MeshEvent::Announced { from, .. } => {
                let author = *from;
                self.0.retain(|old| !matches!(old, MeshEvent::Announced { from, .. } if *from == author));
            }
            MeshEvent::DialFailed { .. } | MeshEvent::Listening(_) | MeshEvent::Asked { .. } => {
                if self.0.len() >= CROWDED {
                    return Some(event);
                }
            }
            MeshEvent::Connected(_) | MeshEvent::Disconnected(_) | MeshEvent::Incoming(..) => {}
        }
        self.0.push_back(event);
        None
    }

    pub(super) fn pop(&mut self) -> Option<MeshEvent> {
        self.0.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Must the swarm rest until the owner has read?
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= FULL
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::AgentId, mesh::DialFailure};

    fn failed(port: u16) -> MeshEvent {
        MeshEvent::DialFailed { address: ([127, 0, 0, 1], port).into(), why: DialFailure::Refused }
    }

    #[test]
    fn a_crowded_outbox_drops_what_can_be_spared_and_keeps_the_rest() {
        let mut outbox = Outbox::default();
        let dropped = (0..2_000).filter(|port| outbox.push(failed(*port)).is_some()).count();
        assert_eq!(dropped, 2_000 - CROWDED);
        while !outbox.is_full() {
            assert!(outbox.push(MeshEvent::Connected(AgentId([1; 32]))).is_none());
        }
        assert!(outbox.push(MeshEvent::Disconnected(AgentId([1; 32]))).is_none());
        let mut kept = std::iter::from_fn(|| outbox.pop());
        assert!(matches!(kept.next(), Some(MeshEvent::DialFailed { address, .. }) if address.port() == 0));
        assert!(matches!(kept.last(), Some(MeshEvent::Disconnected(_))));
    }
}
