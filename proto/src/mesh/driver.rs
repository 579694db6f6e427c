//! The one task that owns the swarm: it turns commands, the swarm's events and the passing of time into actions.
//!
//! The loop awaits in one place only. What an event means is decided synchronously, in `reaction.rs`; nothing
//! there waits, so nothing that a peer or a slow owner does stops the swarm.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use libp2p::{
    Swarm,
    gossipsub::IdentTopic,
    identity::Keypair,
    request_response::{InboundRequestId, OutboundRequestId, ResponseChannel},
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};

use super::{
    Command, MeshConfig, MeshError, MeshEvent,
    dial::{Dialer, Present as _, Target},
    door::{Guests, House},
    gossip::{Ledger, Way},
    links::Links,
    marks::Marks,
    news::{Pulls, Said},
    offences::{Complaints, Offences},
    outbox::Outbox,
    swarm::{self, Behaviour, multiaddr, peer_of},
};
use crate::{
    bounded::Blob,
    chunk_stream::behaviour::{OpenError, Opened},
    hush::Hush,
    id::AgentId,
    known::Known,
    message::{Answer, Question, Role},
    random::Random,
    secret::{MeshSecret, public_prologue},
    system,
};

/// The loop turns at least so often (`reliability.md` §4).
const TURN: Duration = Duration::from_secs(1);

/// How long a last announcement gets to reach the network.
const GOODBYE: Duration = Duration::from_millis(300);

/// How long connections get to close.
const CLOSING: Duration = Duration::from_millis(500);

/// Envelopes of rosters whose signatures are checked in one turn, about 2 ms of work.
const CHECKS: usize = 32;

/// Dials of addresses given by [`super::Mesh::dial`] at once.
const SINGLE_DIALS: usize = 64;

/// Who waits for a stream to an agent that is being dialled; no more than can be open.
const OPENS: usize = super::STREAMS_PER_AGENT;

/// The state of the mesh.
pub(super) struct Driver {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) outbox: Outbox,
    pub(super) ledger: Ledger,
    pub(super) offences: Offences,
    pub(super) complaints: Complaints,
    /// Since when incoming connections are in their handshake; as many as may be pending.
    pub(super) knocks: BTreeMap<ConnectionId, Instant>,
    /// Warnings about peers, by kind.
    pub(super) hush: Hush<(Option<AgentId>, &'static str)>,
    marks: Marks,
    pub(super) dialer: Dialer,
    pub(super) links: Links,
    pub(super) flights: BTreeMap<ConnectionId, Flight>,
    pub(super) opens: BTreeMap<AgentId, Vec<oneshot::Sender<Opened>>>,
    pub(super) questions: BTreeMap<OutboundRequestId, Asking>,
    pub(super) tickets: BTreeMap<u64, (InboundRequestId, ResponseChannel<Answer>)>,
    pub(super) next_ticket: u64,
    pub(super) pulls: Pulls,
    /// Roster envelopes whose signatures are still to be checked, with who handed them over.
    pub(super) unchecked: VecDeque<(AgentId, Blob<4096>)>,
    pub(super) listening: watch::Sender<Vec<SocketAddr>>,
    pub(super) role: Role,
    pub(super) key: Keypair,
    pub(super) topic: IdentTopic,
    pub(super) said: Said,
    pub(super) random: Random,
    me: AgentId,
}

/// A dial that is not decided yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    /// What the dialler wanted; `None` for a single dial.
    pub(super) target: Option<Target>,
    pub(super) address: SocketAddr,
}

/// A question that is not answered yet.
#[derive(Debug)]
pub(super) enum Asking {
    /// The owner asks.
    Owner(AgentId, oneshot::Sender<Result<Answer, MeshError>>),
    /// A page of a roster.
    Pull { agent: AgentId, from: u32, known: Known },
}

enum Next {
    GoOn,
    Leave(Option<oneshot::Sender<()>>),
}

#[expect(clippy::disallowed_methods, reason = "the driver owns the clock")]
pub(super) fn clock() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "gossipsub panics on such a clock, so it is looked at once")]
fn clock_is_before_1970() -> bool {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).is_err()
}

impl Driver {
    pub(super) async fn start(
        config: MeshConfig,
        listening: watch::Sender<Vec<SocketAddr>>,
        guests: Arc<Guests>,
        complaints: Complaints,
    ) -> Result<Self, MeshError> {
        if clock_is_before_1970() {
            return Err(MeshError::Clock);
        }
        if let (None, Some(exposed)) =
            (&config.secret, config.listen.iter().find(|address| !address.ip().is_loopback()))
        {
            return Err(MeshError::NeedsSecret(*exposed));
        }
        let key = super::keypair(&config.key);
        let me = super::agent_id(&config.key);
        let prologue = config.secret.as_ref().map_or_else(public_prologue, MeshSecret::prologue);
        let with_mdns = config.mdns && config.secret.is_some();
        let places = usize::try_from(swarm::places(config.role)).unwrap_or(usize::MAX);
        let house = House { places, memory: config.memory, guests, resident: system::resident };
        let (swarm, topic) = swarm::build(&key, &prologue, config.role, with_mdns, house)?;
        let now = clock();
        let (marks, known) = Marks::open(config.marks, now);
        let seed = getrandom::u64()?;
        let mut driver = Self {
            swarm,
            outbox: Outbox::default(),
            ledger: Ledger::new(me, known, now),
            offences: Offences::default(),
            complaints,
            knocks: BTreeMap::new(),
            hush: Hush::default(),
            marks,
            dialer: Dialer::new(me, config.role == Role::Coordinator, seed),
            links: Links::default(),
            flights: BTreeMap::new(),
            opens: BTreeMap::new(),
            questions: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            pulls: Pulls::new(now),
            unchecked: VecDeque::new(),
            listening,
            role: config.role,
            me,
            key,
            topic,
            said: Said::default(),
            random: Random::new(seed),
        };
        for address in &config.listen {
            driver.listen(*address).await?;
        }
        for peer in &config.peers {
            driver.dialer.keep(*peer, now);
        }
        Ok(driver)
    }

    pub(super) fn me(&self) -> AgentId {
        self.me
    }

    /// Runs until it is told to leave, or nobody is there to tell it anything or to be told.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<MeshEvent>,
    ) {
        let waiting = loop {
            let now = clock();
            self.act(now);
            let pause = self.next_deadline(now).saturating_duration_since(now);
            while let Some(place) = (!self.outbox.is_empty()).then(|| events.try_reserve().ok()).flatten() {
                if let Some(event) = self.outbox.pop() {
                    place.send(event);
                }
            }
            tokio::select! {
                room = events.reserve(), if !self.outbox.is_empty() => match room {
                    // The next turn fills it.
                    Ok(_place) => {}
                    Err(_owner_is_gone) => break None,
                },
                () = events.closed() => break None,
                command = commands.recv() => match command.map(|command| self.obey(command, clock())) {
                    Some(Next::GoOn) => {}
                    Some(Next::Leave(reply)) => break reply,
                    None => break None,
                },
                event = self.swarm.select_next_some(), if !self.outbox.is_full() => {
                    self.react(event, clock());
                }
                () = sleep(pause) => {}
            }
        };
        self.wind_down().await;
        // Whoever is told that the mesh has ended finds it so.
        drop((self, commands, events));
        if let Some(waiting) = waiting {
            // Whoever left may have stopped waiting.
            let _ = waiting.send(());
        }
    }

    /// Does what is due.
    fn act(&mut self, now: Instant) {
        self.links.agents = self.ledger.present();
        for agent in self.ledger.expire(now) {
            self.dialer.forget(&agent);
            self.swarm.behaviour_mut().door.went(&agent);
        }
        self.judge(now);
        for (hand, envelope) in self.unchecked.drain(..self.unchecked.len().min(CHECKS)).collect::<Vec<_>>() {
            self.hear(&envelope, Way { source: None, hand: Some(hand) }, now);
        }
        self.repeat(now);
        self.make_room(now);
        self.dial(now);
        self.pull(now);
        if self.marks.are_due(now)
            && let Some(marks) = self.ledger.marks()
        {
            self.marks.save(marks, now);
        }
    }

    /// Dials whom it is time to dial. Without memory to spare nobody is dialled that nobody asked for, but for the
    /// first.
    fn dial(&mut self, now: Instant) {
        let due = self.dialer.next_deadline(&self.links).is_some_and(|next| next <= now);
        if !due {
            return;
        }
        let crowded = !self.links.connected.is_empty() && self.swarm.behaviour().door.is_out_of_memory();
        for (target, addresses) in self.dialer.due(&self.links, now) {
            if crowded {
                tracing::debug!(?target, "not dialled: this process uses as much memory as it may");
                self.dialer.failed(&target, now);
            } else {
                self.launch(Some(target), &addresses, now);
            }
        }
    }

    /// Shuts out who has broken the rules too often, and lets in again whose time is over.
    fn judge(&mut self, now: Instant) {
        if self.offences.expire(now) {
            self.swarm.behaviour_mut().door.ban(self.offences.all_banned());
        }
        for agent in self.complaints.take() {
            if self.offences.note(agent, now) {
                self.shut_out(agent, "it broke the rules three times");
            }
        }
    }

    /// Closes the connections to a peer that [`Offences`] has shut out, and the door.
    pub(super) fn shut_out(&mut self, agent: AgentId, why: &'static str) {
        tracing::warn!(peer = agent.short(), why, "mesh.banned: a peer is shut out for 10 min");
        self.swarm.behaviour_mut().door.ban(self.offences.all_banned());
        if let Some(peer) = peer_of(&agent) {
            // Fails only when it is not connected.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    /// Closes connections that keep others out.
    fn make_room(&mut self, now: Instant) {
        if self.role == Role::Coordinator {
            return;
        }
        for peer in self.links.surplus(|agent| self.ledger.is_present(agent), now).iter().filter_map(peer_of)
        {
            // Fails only when it is not connected.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    fn next_deadline(&self, now: Instant) -> Instant {
        if !self.unchecked.is_empty() {
            return now;
        }
        [self.dialer.next_deadline(&self.links), self.pulls.times.first().copied()]
            .into_iter()
            .chain([self.said.echoes.first().copied(), Some(now + TURN)])
            .flatten()
            .min()
            .unwrap_or(now + TURN)
    }

    fn obey(&mut self, command: Command, now: Instant) -> Next {
        match command {
            Command::Publish(announcement, reply) => {
                let _ = reply.send(self.publish(&announcement, now));
            }
            #[cfg(feature = "planted")]
            Command::PublishRaw(bytes) => {
                // Gossip refuses what it has said before, and what is too large: that is its own rule.
                let _ = self.swarm.behaviour_mut().gossip.publish(self.topic.hash(), bytes);
            }
            Command::Ask(agent, question, reply) => self.ask(agent, question, reply),
            Command::Answer(ticket, answer) => {
                if let Some((_, channel)) = self.tickets.remove(&ticket.0) {
                    // Fails only when the asker is gone.
                    let _ = self.swarm.behaviour_mut().questions.send_response(channel, answer);
                }
            }
            Command::Open(agent, reply) => self.open(agent, reply, now),
            Command::Dial(address) => self.launch(None, &[address], now),
            Command::Close(agent) => {
                if let Some(peer) = peer_of(&agent) {
                    // Fails only when it is not connected.
                    let _ = self.swarm.disconnect_peer_id(peer);
                }
            }
            Command::Links(reply) => {
                let _ = reply.send(self.links.ends.values().copied().collect());
            }
            Command::Programs(reply) => {
                let programs = self.links.programs.iter();
                let _ = reply.send(programs.map(|(agent, program)| (*agent, program.to_string())).collect());
            }
            Command::Shutdown(reply) => return Next::Leave(Some(reply)),
        }
        Next::GoOn
    }

    fn ask(&mut self, agent: AgentId, question: Question, reply: oneshot::Sender<Result<Answer, MeshError>>) {
        let addresses = self.addresses(&agent);
        let Some(peer) = peer_of(&agent)
            .filter(|_| agent != self.me && (self.links.connected(&agent) || !addresses.is_empty()))
        else {
            let _ = reply.send(Err(MeshError::NotConnected(agent)));
            return;
        };
        let addresses = addresses.into_iter().map(multiaddr).collect();
        let id = self.swarm.behaviour_mut().questions.send_request_with_addresses(&peer, question, addresses);
        self.questions.insert(id, Asking::Owner(agent, reply));
    }

    fn open(&mut self, agent: AgentId, reply: oneshot::Sender<Opened>, now: Instant) {
        let refuse = |reply: oneshot::Sender<Opened>| {
            let _ = reply.send(Err(OpenError::NotConnected));
        };
        let Some(peer) = peer_of(&agent) else { return refuse(reply) };
        if self.links.connected(&agent) {
            return self.swarm.behaviour_mut().work.open(peer, reply);
        }
        let addresses = self.addresses(&agent);
        let waiting = self.opens.entry(agent).or_default();
        if addresses.is_empty() || waiting.len() >= OPENS {
            if waiting.is_empty() {
                self.opens.remove(&agent);
            }
            return refuse(reply);
        }
        waiting.push(reply);
        if waiting.len() == 1 {
            self.launch(Some(Target::Agent(agent)), &addresses, now);
        }
    }

    fn addresses(&self, agent: &AgentId) -> Vec<SocketAddr> {
        let mut all = self.ledger.addresses(agent).to_vec();
        all.extend(self.dialer.addresses(agent));
        let mut seen = BTreeSet::new();
        all.retain(|address| seen.insert(*address));
        all
    }

    /// Dials.
    fn launch(&mut self, target: Option<Target>, addresses: &[SocketAddr], now: Instant) {
        let Some(address) = addresses.first().copied() else { return };
        let flight = Flight { target, address };
        let expected = match target {
            Some(Target::Agent(agent)) => peer_of(&agent),
            Some(Target::Address(_)) | None => None,
        };
        if target.is_none()
            && self.flights.values().filter(|flight| flight.target.is_none()).count() >= SINGLE_DIALS
        {
            return self.crashed(flight, None, &DialError::Aborted, now);
        }
        // A port of its own for each dial: with the listener's, a peer that comes back quickly would meet the
        // remains of its former connection.
        let options = match expected {
            Some(peer) => DialOpts::peer_id(peer)
                .condition(PeerCondition::NotDialing)
                .addresses(addresses.iter().copied().map(multiaddr).collect())
                .allocate_new_port()
                .build(),
            None => DialOpts::unknown_peer_id().address(multiaddr(address)).allocate_new_port().build(),
        };
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.flights.insert(connection, flight);
            }
            Err(error) => self.crashed(flight, expected, &error, now),
        }
    }

    /// Lets the last announcement out, then closes everything.
    async fn wind_down(&mut self) {
        if let Some(marks) = self.ledger.marks() {
            // After the last one, which was of less.
            self.marks.finish().await;
            self.marks.save(marks, clock());
        }
        if self.said.ever && !self.links.connected.is_empty() {
            let goodbye = sleep(GOODBYE);
            tokio::pin!(goodbye);
            loop {
                tokio::select! {
                    event = self.swarm.select_next_some() => self.react(event, clock()),
                    () = &mut goodbye => break,
                }
            }
        }
        for (agent, _) in std::mem::take(&mut self.links.connected) {
            if let Some(peer) = peer_of(&agent) {
                let _ = self.swarm.disconnect_peer_id(peer);
            }
        }
        let closing = sleep(CLOSING);
        tokio::pin!(closing);
        while self.swarm.connected_peers().next().is_some() {
            tokio::select! {
                _event = self.swarm.select_next_some() => {}
                () = &mut closing => break,
            }
        }
        self.marks.finish().await;
    }
}
