//! What the swarm's events mean: each is turned into a change of state and events for the owner, without waiting.

use std::{net::SocketAddr, time::Instant};

use libp2p::{
    PeerId,
    gossipsub::{self, MessageAcceptance},
    identify, mdns, ping,
    request_response::{self, InboundFailure, OutboundFailure},
    swarm::{ConnectionId, DialError, ListenError, SwarmEvent},
};

use super::{
    DialFailure, MeshError, MeshEvent, Ticket,
    dial::{Present as _, Target},
    door::Refused,
    driver::{Asking, Driver, Flight},
    gossip::{MEMBERS, Merged, Way},
    question::is_offence,
    swarm::{BehaviourEvent, agent_of, socket},
};
use crate::{
    bounded::Text,
    chunk_stream::{
        WorkStream,
        behaviour::{Inbound, OpenError},
    },
    id::AgentId,
    message::{AgentState, Answer, Question, Role},
};

/// Questions of peers that wait for the owner's answer; more are answered with nothing.
const TICKETS: usize = 256;

type QuestionEvent = request_response::Event<Question, Answer>;

impl Driver {
    /// Takes in one event of the swarm.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "libp2p's events grow; the others change nothing here"
    )]
    pub(super) fn react(&mut self, event: SwarmEvent<BehaviourEvent>, now: Instant) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(event)) => self.on_gossip(event, now),
            SwarmEvent::Behaviour(BehaviourEvent::Questions(event)) => self.on_question(event),
            SwarmEvent::Behaviour(BehaviourEvent::Work(stream)) => self.on_stream(stream),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(event)) => self.on_mdns(event, now),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event {
                connection, result: Err(_), ..
            })) => {
                // libp2p only reports; a connection that does not answer is closed here, and dialled anew.
                self.swarm.close_connection(connection);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                ..
            })) => {
                if let Some(agent) = agent_of(&peer_id).filter(|agent| self.links.connected(agent)) {
                    self.links.programs.insert(agent, Text::cut(&info.agent_version));
                }
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                if let (Some(agent), Some(address)) =
                    (agent_of(&peer_id), socket(endpoint.get_remote_address()))
                {
                    self.links.ends.insert(connection_id, (agent, address.ip().to_canonical()));
                }
                self.on_connected(peer_id, connection_id, endpoint.is_dialer(), now);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, .. } => {
                self.links.ends.remove(&connection_id);
                self.on_closed(&peer_id, connection_id, num_established, now);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                match self.flights.remove(&connection_id) {
                    Some(flight) => self.crashed(flight, peer_id, &error, now),
                    None => self.nobody_home(peer_id.as_ref(), false),
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                if let Some(address) = socket(&address) {
                    self.listening.send_modify(|all| all.push(address));
                    self.tell(MeshEvent::Listening(address));
                }
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.listening.send_modify(|all| all.retain(|known| Some(*known) != socket(&address)));
            }
            SwarmEvent::ListenerClosed { reason: Err(error), .. } => {
                tracing::warn!(%error, "a listener closed");
            }
            SwarmEvent::IncomingConnection { connection_id, .. } => {
                self.knocks.insert(connection_id, now);
            }
            SwarmEvent::IncomingConnectionError { connection_id, error, .. } => {
                let knocked = self.knocks.remove(&connection_id);
                let took_us = knocked.map_or(0, |since| now.saturating_duration_since(since).as_micros());
                tracing::debug!(took_us, ?error, "a connection was not taken");
                self.warn_of_refusal(&error, now);
            }
            _ => {}
        }
    }

    /// Weighs an envelope from gossip (with its source) or from a roster, and tells the owner what is new.
    pub(super) fn hear(&mut self, envelope: &[u8], way: Way, now: Instant) -> MessageAcceptance {
        match self.ledger.merge(envelope, way, now) {
            Merged::News(from, announcement) => {
                if announcement.state == AgentState::Leaving {
                    self.dialer.forget(&from);
                    self.swarm.behaviour_mut().door.went(&from);
                } else {
                    self.swarm.behaviour_mut().door.came(from);
                    let addresses: Vec<SocketAddr> =
                        announcement.addresses.iter().copied().filter(can_be_dialled).collect();
                    self.dialer.announced(from, &addresses, now);
                }
                self.tell(MeshEvent::Announced { from, announcement });
                MessageAcceptance::Accept
            }
            Merged::Stale => MessageAcceptance::Ignore,
            Merged::Full => {
                if let Some(more) = self.hush.warns(&(None, "full"), now) {
                    tracing::warn!(
                        bound = MEMBERS,
                        more,
                        "mesh.full: the mesh has as many members as it may; a newer agent is ignored"
                    );
                }
                MessageAcceptance::Ignore
            }
            Merged::Flood(agent) => {
                if self.offences.shut_out(agent, now) {
                    self.shut_out(agent, "it has flooded the mesh for a minute");
                }
                MessageAcceptance::Ignore
            }
            Merged::Forged(why) => {
                if let Some(more) = self.hush.warns(&(way.hand, "forged"), now) {
                    tracing::warn!(why, ?way, more, "an announcement is not believed");
                }
                MessageAcceptance::Reject
            }
        }
    }

    /// Takes in that a dial failed.
    pub(super) fn crashed(
        &mut self,
        flight: Flight,
        expected: Option<PeerId>,
        error: &DialError,
        now: Instant,
    ) {
        let Flight { target, address } = flight;
        let why = match (error, &target) {
            // libp2p leaves out the addresses at which this node listens itself.
            (DialError::NoAddresses, Some(Target::Address(_)) | None) => DialFailure::Myself,
            _ => failure(error),
        };
        tracing::debug!(%address, ?target, %why, "dialling failed");
        if let Some(target) = &target {
            match why {
                DialFailure::Myself => self.dialer.is_me(target),
                DialFailure::WrongSecret
                | DialFailure::Refused
                | DialFailure::Timeout
                | DialFailure::Other(_) => self.dialer.failed(target, now),
            }
        }
        let already = matches!(error, DialError::DialPeerConditionFalse(_));
        if !already {
            self.nobody_home(expected.as_ref(), nobody_listens(error));
        }
        let of_interest = match &target {
            // What mDNS sees may be any program that speaks libp2p.
            Some(Target::Agent(agent)) => !self.ledger.addresses(agent).is_empty(),
            Some(Target::Address(_)) | None => true,
        };
        if of_interest && !already {
            self.tell(MeshEvent::DialFailed { address, why });
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event, now: Instant) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                let verdict = match message.source.as_ref().and_then(agent_of) {
                    Some(source) => {
                        let way = Way { source: Some(source), hand: agent_of(&propagation_source) };
                        self.hear(&message.data, way, now)
                    }
                    None => MessageAcceptance::Reject,
                };
                self.swarm.behaviour_mut().gossip.report_message_validation_result(
                    &message_id,
                    &propagation_source,
                    verdict,
                );
            }
            gossipsub::Event::Subscribed { .. } => self.repeat(now),
            gossipsub::Event::Unsubscribed { .. }
            | gossipsub::Event::GossipsubNotSupported { .. }
            | gossipsub::Event::SlowPeer { .. } => {}
        }
    }

    fn on_question(&mut self, event: QuestionEvent) {
        match event {
            QuestionEvent::Message { peer, connection_id, message } => match message {
                request_response::Message::Request { request_id, request, channel } => match request {
                    Question::Roster { from, known } => self.reply(channel, self.ledger.page(from, &known)),
                    Question::Describe | Question::LiveTest { .. } => {
                        self.asked((&peer, connection_id), request, request_id, channel)
                    }
                },
                request_response::Message::Response { request_id, response } => {
                    self.answered(request_id, response);
                }
            },
            QuestionEvent::OutboundFailure { peer, request_id, error, .. } => {
                if let OutboundFailure::Io(error) = &error {
                    self.weigh(&peer, error);
                }
                match self.questions.remove(&request_id) {
                    Some(Asking::Owner(agent, reply)) => {
                        let _ = reply.send(Err(unanswered(agent, &error)));
                    }
                    Some(Asking::Pull { agent, .. }) => {
                        self.pulls.flying -= 1;
                        tracing::debug!(?agent, %error, "no roster");
                    }
                    None => {}
                }
            }
            QuestionEvent::InboundFailure { peer, request_id, error, .. } => {
                if let InboundFailure::Io(error) = &error {
                    self.weigh(&peer, error);
                }
                self.tickets.retain(|_, (waiting, _)| *waiting != request_id);
            }
            QuestionEvent::ResponseSent { .. } => {}
        }
    }

    /// Says to the operator what a refusal that he can mend has to do with: places and memory.
    fn warn_of_refusal(&mut self, error: &ListenError, now: Instant) {
        let ListenError::Denied { cause } = error else { return };
        let Some(why) = cause.downcast_ref::<Refused>() else { return };
        let kind = match why {
            Refused::Kept => "places",
            Refused::Memory => "memory",
            Refused::Address | Refused::Banned => return,
        };
        if let Some(more) = self.hush.warns(&(None, kind), now) {
            tracing::warn!(%why, more, "mesh.refused: a connection was not taken");
        }
    }

    /// What is no question and no answer is an offence; that it did not arrive is none.
    fn weigh(&self, peer: &PeerId, error: &std::io::Error) {
        if let Some(agent) = agent_of(peer).filter(|_| is_offence(error)) {
            self.complaints.about(agent);
        }
    }

    fn asked(
        &mut self,
        (peer, connection): (&PeerId, ConnectionId),
        question: Question,
        id: request_response::InboundRequestId,
        channel: request_response::ResponseChannel<Answer>,
    ) {
        let Some(from) = agent_of(peer).filter(|_| self.role == Role::Agent && self.tickets.len() < TICKETS)
        else {
            return self.reply(channel, Answer::Nothing);
        };
        let (at, ticket) = (self.links.at(connection), Ticket(self.next_ticket));
        if self.outbox.push(MeshEvent::Asked { from, at, question, ticket }).is_some() {
            return self.reply(channel, Answer::Nothing);
        }
        self.next_ticket += 1;
        self.tickets.insert(ticket.0, (id, channel));
    }

    fn answered(&mut self, id: request_response::OutboundRequestId, answer: Answer) {
        match self.questions.remove(&id) {
            Some(Asking::Owner(_, reply)) => {
                let _ = reply.send(Ok(answer));
            }
            Some(Asking::Pull { agent, from, known }) => {
                self.pulls.flying -= 1;
                let Answer::Roster { signed, more } = answer else { return };
                let len = u32::try_from(signed.len()).unwrap_or(u32::MAX);
                self.unchecked.extend(signed.into_vec().into_iter().map(|envelope| (agent, envelope)));
                // Whoever has more pages than members makes them up.
                let next = from.saturating_add(len);
                if more && len > 0 && usize::try_from(next).is_ok_and(|next| next <= MEMBERS) {
                    self.pull_page(agent, next, known);
                }
            }
            None => {}
        }
    }

    fn reply(&mut self, channel: request_response::ResponseChannel<Answer>, answer: Answer) {
        // Fails only when the asker is gone.
        let _ = self.swarm.behaviour_mut().questions.send_response(channel, answer);
    }

    fn on_stream(&mut self, Inbound { peer, connection, stream, place }: Inbound) {
        if let Some(agent) = agent_of(&peer) {
            let at = self.links.at(connection);
            let stream = WorkStream::new(agent, at, stream, place, self.complaints.clone());
            self.tell(MeshEvent::Incoming(agent, stream));
        }
    }

    fn on_mdns(&mut self, event: mdns::Event, now: Instant) {
        match event {
            mdns::Event::Discovered(found) => {
                for (peer, address) in found {
                    if let (Some(agent), Some(address)) = (agent_of(&peer), socket(&address)) {
                        self.dialer.neighbour(agent, address, now);
                    }
                }
            }
            // Says nothing about those who announce themselves, nor about the connection.
            mdns::Event::Expired(gone) => {
                for agent in gone.iter().filter_map(|(peer, _)| agent_of(peer)) {
                    if self.ledger.addresses(&agent).is_empty() {
                        self.dialer.forget(&agent);
                    }
                }
            }
        }
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, dialled: bool, now: Instant) {
        let flight = self.flights.remove(&connection);
        self.knocks.remove(&connection);
        let Some(agent) = agent_of(&peer) else {
            // Another kind of key: nobody of ours.
            if let Some(target) = flight.and_then(|flight| flight.target) {
                self.dialer.failed(&target, now);
            }
            let _ = self.swarm.disconnect_peer_id(peer);
            return;
        };
        if let Some(target) = flight.and_then(|flight| flight.target) {
            self.dialer.landed(&target, agent);
        }
        if dialled {
            self.links.dialled.insert(connection, agent);
        }
        if !self.links.connected(&agent) {
            self.links.connected.insert(agent, now);
            self.tell(MeshEvent::Connected(agent));
            self.pull_from(agent, now);
        }
        for reply in self.opens.remove(&agent).unwrap_or_default() {
            self.swarm.behaviour_mut().work.open(peer, reply);
        }
    }

    fn on_closed(&mut self, peer: &PeerId, connection: ConnectionId, left: u32, now: Instant) {
        self.links.dialled.remove(&connection);
        if let Some(agent) = agent_of(peer).filter(|_| left == 0) {
            self.links.connected.remove(&agent);
            self.links.programs.remove(&agent);
            self.pulls.queue.remove(&agent);
            self.dialer.lost(&agent, &self.links, now);
            self.tell(MeshEvent::Disconnected(agent));
        }
    }

    /// Nobody answered where an agent should be: whoever waits for a stream to it waits in vain.
    fn nobody_home(&mut self, peer: Option<&PeerId>, refused: bool) {
        let agent = peer.and_then(agent_of).filter(|agent| !self.links.connected(agent));
        for reply in agent.and_then(|agent| self.opens.remove(&agent)).unwrap_or_default() {
            let _ = reply.send(Err(if refused { OpenError::Refused } else { OpenError::NotConnected }));
        }
    }

    fn tell(&mut self, event: MeshEvent) {
        if let Some(dropped) = self.outbox.push(event) {
            tracing::debug!(?dropped, "the owner does not read its events");
        }
    }
}

fn can_be_dialled(address: &SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

fn unanswered(agent: AgentId, error: &OutboundFailure) -> MeshError {
    match error {
        OutboundFailure::DialFailure => MeshError::NotConnected(agent),
        OutboundFailure::Timeout => MeshError::Timeout(agent),
        OutboundFailure::ConnectionClosed
        | OutboundFailure::UnsupportedProtocols
        | OutboundFailure::Io(_) => MeshError::Broken(agent, error.to_string()),
    }
}

/// Says whether every address was answered by a host on which nobody listens there.
fn nobody_listens(error: &DialError) -> bool {
    let DialError::Transport(all) = error else { return false };
    !all.is_empty() && all.iter().all(|(_, error)| format!("{error:?}").contains("ConnectionRefused"))
}

/// Sorts a dial error. libp2p wraps the cause in boxes without a common type, so its debug text is searched; of
/// several addresses the most telling failure counts.
fn failure(error: &DialError) -> DialFailure {
    match error {
        DialError::LocalPeerId { .. } => DialFailure::Myself,
        DialError::Transport(all) => {
            let text = format!("{all:?}");
            let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
            if says(&["Decrypt"]) {
                DialFailure::WrongSecret
            } else if says(&["ConnectionRefused"]) {
                DialFailure::Refused
            } else if says(&["Timeout", "TimedOut"]) {
                DialFailure::Timeout
            } else {
                DialFailure::Other(error.to_string().chars().take(300).collect())
            }
        }
        DialError::WrongPeerId { .. } => DialFailure::Other("another peer answered there".to_owned()),
        DialError::Denied { cause } => DialFailure::Other(
            cause
                .downcast_ref::<Refused>()
                .map_or("there are too many connections".to_owned(), Refused::to_string),
        ),
        DialError::Aborted => DialFailure::Other("too many dials at once".to_owned()),
        DialError::NoAddresses => DialFailure::Other("it names addresses of this node only".to_owned()),
        DialError::DialPeerConditionFalse(_) => DialFailure::Other("it is being dialled already".to_owned()),
    }
}
