//! The libp2p side of work streams: opens them, and lets none that arrives be lost.
//!
//! Inbound streams travel as ordinary events of the behaviour, held back by the swarm when its owner is slow, and
//! never through a channel that can be full: libp2p-stream drops streams silently under bursts (`libp2p.md` §4).
//! An outbound open is a request to the handler of one connection and is answered through a oneshot.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures::task::AtomicWaker;
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished},
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::sync::oneshot;

use super::Place;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/tropa/work/1");

/// Work streams of one connection that are served at once: as many as the other side opens at a time
/// ([`crate::mesh::STREAMS_PER_AGENT`]), each with 256 KiB of yamux's buffers at most (`security.md` §6).
const SERVED: usize = crate::mesh::STREAMS_PER_AGENT;

/// Streams that wait for a place: the other side may have dropped its ends and opened as many anew before ours are
/// dropped. More are reset; with the other protocols' streams that stays below the 512 at which yamux ends the whole
/// connection.
const WAITING: usize = SERVED;

/// Says why a stream was not opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    NotConnected,
    /// The host answers, and nobody listens there.
    Refused,
    Unsupported,
    Timeout,
    Io(io::Error),
}

pub(crate) type Opened = Result<Stream, OpenError>;

/// A stream that a peer has opened.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) peer: PeerId,
    pub(crate) connection: ConnectionId,
    pub(crate) stream: Stream,
    pub(crate) place: Place,
}

/// Asks a handler for a stream.
#[derive(Debug)]
pub(crate) struct Open(oneshot::Sender<Opened>);

#[derive(Default)]
pub(crate) struct Behaviour {
    connections: BTreeMap<PeerId, Vec<ConnectionId>>,
    events: VecDeque<ToSwarm<Inbound, Open>>,
    waker: Option<Waker>,
}

impl Behaviour {
    /// Opens a stream on the newest connection: an older one may be dead without knowing it.
    pub(crate) fn open(&mut self, peer: PeerId, reply: oneshot::Sender<Opened>) {
        let Some(connection) = self.connections.get(&peer).and_then(|all| all.last()) else {
            let _ = reply.send(Err(OpenError::NotConnected));
            return;
        };
        self.events.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(*connection),
            event: Open(reply),
        });
        wake(&mut self.waker);
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Inbound;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "connections are all that matters here")]
    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { peer_id, connection_id, .. }) => {
                self.connections.entry(peer_id).or_default().push(connection_id);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                if let Some(all) = self.connections.get_mut(&peer_id) {
                    all.retain(|connection| *connection != connection_id);
                    if all.is_empty() {
                        self.connections.remove(&peer_id);
                    }
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        (stream, seat): THandlerOutEvent<Self>,
    ) {
        let inbound = Inbound { peer, connection, stream, place: Arc::new(seat) };
        self.events.push_back(ToSwarm::GenerateEvent(inbound));
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        next_or_wait(&mut self.events, &mut self.waker, context)
    }
}

/// One connection's streams.
#[derive(Default)]
pub(crate) struct Handler {
    wanted: VecDeque<oneshot::Sender<Opened>>,
    arrived: VecDeque<Stream>,
    seats: Arc<Seats>,
    has_warned: bool,
    waker: Option<Waker>,
}

/// The places of the streams that are served.
#[derive(Debug, Default)]
struct Seats {
    taken: AtomicUsize,
    /// Who is to hear that one is free.
    waker: AtomicWaker,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat(Arc<Seats>);

impl Seats {
    fn take(self: &Arc<Self>) -> Option<Seat> {
        // Only the handler takes places, so between the two nobody else does.
        let free = self.taken.load(Ordering::Acquire) < SERVED;
        free.then(|| {
            self.taken.fetch_add(1, Ordering::AcqRel);
            Seat(Arc::clone(self))
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.waker.wake();
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = (Stream, Seat);
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Opened>;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn on_behaviour_event(&mut self, Open(reply): Open) {
        self.wanted.push_back(reply);
        wake(&mut self.waker);
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        if !self.arrived.is_empty() {
            // First, so that a place that becomes free meanwhile is not overlooked.
            self.seats.waker.register(context.waker());
            if let Some(seat) = self.seats.take()
                && let Some(stream) = self.arrived.pop_front()
            {
                return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour((stream, seat)));
            }
        }
        while let Some(reply) = self.wanted.pop_front() {
            if !reply.is_closed() {
                let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), reply);
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest says nothing about streams")]
    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), Self::OutboundOpenInfo>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. }) => {
                if self.arrived.len() < WAITING {
                    self.arrived.push_back(stream);
                } else if !self.has_warned {
                    // Dropping resets it, and those that follow without another word.
                    self.has_warned = true;
                    tracing::warn!(bound = SERVED + WAITING, "a peer opens too many work streams");
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                // Where nobody waits any more the stream is dropped, which tells the other side.
                let _ = info.send(Ok(protocol));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let _ = info.send(Err(match error {
                    StreamUpgradeError::Timeout => OpenError::Timeout,
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    StreamUpgradeError::Io(source) => OpenError::Io(source),
                    StreamUpgradeError::Apply(never) => match never {},
                }));
            }
            _ => {}
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn next_or_wait<T>(queue: &mut VecDeque<T>, waker: &mut Option<Waker>, context: &Context<'_>) -> Poll<T> {
    match queue.pop_front() {
        Some(event) => Poll::Ready(event),
        None => {
            *waker = Some(context.waker().clone());
            Poll::Pending
        }
    }
}
