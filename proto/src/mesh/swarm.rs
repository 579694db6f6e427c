//! What the swarm is made of: transport, protocols and their limits.
//!
//! TCP, Noise with the prologue of the mesh, yamux; nothing else, since QUIC would go past the prologue
//! (`libp2p.md` §5). The constants are those of `libp2p.md` §8, below the caps of `security.md` §5.2 and §6.

use std::{net::SocketAddr, time::Duration};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, Transport as _, connection_limits,
    core::upgrade::Version,
    gossipsub::{
        self, IdentTopic, MessageAuthenticity, PeerScoreParams, PeerScoreThresholds, TopicHash,
        TopicScoreParams, ValidationMode, WhitelistSubscriptionFilter,
    },
    identify,
    identity::{Keypair, PublicKey, ed25519},
    mdns,
    multiaddr::Protocol,
    noise, ping, request_response,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, yamux,
};

use super::{
    MeshError,
    door::{Door, House},
    question::QuestionCodec,
};
use crate::{chunk_stream, chunk_stream::behaviour as work, id::AgentId, message::Role, secret::mesh_name};

/// Gossip about who is there. A name of the mesh follows, so that two meshes never mix even when misconfigured.
const TOPIC: &str = "tropa/announce/1/";

const QUESTIONS: StreamProtocol = StreamProtocol::new("/tropa/question/1");

/// Connections per peer. `security.md` §6 says 2; with both taken by a mutual dial and both dead without knowing
/// it, a peer that comes back would wait out the ping, so there is a third.
pub const PER_PEER: u32 = 3;

/// Connections that are not through their handshake yet, in each direction (`security.md` §6).
pub const PENDING: u32 = 32;

/// Connections of an agent (`security.md` §6).
pub const ESTABLISHED_AGENT: u32 = 256;

/// Connections of a coordinator, who needs one to each of 1,024 members (`security.md` §6).
pub const ESTABLISHED_COORDINATOR: u32 = 1_100;

/// Streams of one connection that may negotiate at once (`security.md` §6).
const NEGOTIATING: usize = 32;

/// How long a connection that nobody uses is kept: gossip uses all of them, so this is only a backstop.
const IDLE: Duration = Duration::from_secs(600);

/// A peer that is silent for this long is asked whether it lives, and has as long again to answer. Together with
/// libp2p's free first failure a black hole is noticed after 21 to 25 s.
const PING: Duration = Duration::from_secs(5);

/// How long a dial and its handshake may take: the network may lose a packet or two of it.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// An announcement is 1 KiB and its envelope less than 200 bytes; 16 KiB leave room for gossipsub's own.
const GOSSIP_MESSAGE: usize = 16 << 10;

/// How long a question may take: the largest answer, 4 MiB, over a slow network.
const QUESTION_LIMIT: Duration = Duration::from_secs(10);

/// How often mDNS asks the network, since one lost answer must not hide a peer for five minutes, its default.
const MDNS_QUERY: Duration = Duration::from_secs(15);

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    // Those that deny come first.
    pub(super) door: Door,
    limits: connection_limits::Behaviour,
    ping: ping::Behaviour,
    identify: identify::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) gossip: Gossip,
    pub(super) questions: request_response::Behaviour<QuestionCodec>,
    pub(super) work: work::Behaviour,
}

type Gossip = gossipsub::Behaviour<gossipsub::IdentityTransform, WhitelistSubscriptionFilter>;

/// Puts a swarm together; it listens and dials nothing yet.
pub(super) fn build(
    key: &Keypair,
    prologue: &[u8; 32],
    role: Role,
    with_mdns: bool,
    house: House,
) -> Result<(Swarm<Behaviour>, IdentTopic), MeshError> {
    let stack = |what: String| MeshError::Stack(what);
    let topic = IdentTopic::new(format!("{TOPIC}{}", mesh_name(prologue)));
    let noise = noise::Config::new(key).map_err(|e| stack(e.to_string()))?.with_prologue(prologue.to_vec());
    let transport = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        // Whoever comes has as long as for a `Hello`: a stranger must not hold a place for longer.
        .inbound_timeout(chunk_stream::HELLO_LIMIT)
        .outbound_timeout(HANDSHAKE)
        .boxed();
    let behaviour = Behaviour {
        door: Door::new(house),
        limits: connection_limits::Behaviour::new(limits(role)),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING).with_timeout(PING)),
        identify: identify::Behaviour::new(
            identify::Config::new("/tropa/1".to_owned(), key.public())
                .with_agent_version(super::PROGRAM.to_owned())
                .with_push_listen_addr_updates(true)
                .with_cache_size(256),
        ),
        mdns: Toggle::from(mdns(key, with_mdns)),
        gossip: gossip(key, topic.hash()).map_err(stack)?,
        questions: request_response::Behaviour::with_codec(
            QuestionCodec,
            [(QUESTIONS, request_response::ProtocolSupport::Full)],
            request_response::Config::default()
                .with_request_timeout(QUESTION_LIMIT)
                .with_max_concurrent_streams(super::STREAMS_PER_AGENT),
        ),
        work: work::Behaviour::default(),
    };
    let config = libp2p::swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(IDLE)
        .with_max_negotiating_inbound_streams(NEGOTIATING);
    let mut swarm = Swarm::new(transport, behaviour, key.public().to_peer_id(), config);
    swarm.behaviour_mut().gossip.subscribe(&topic).map_err(|e| stack(e.to_string()))?;
    Ok((swarm, topic))
}

/// Gives how many connections a node may have.
pub(super) fn places(role: Role) -> u32 {
    match role {
        Role::Agent => ESTABLISHED_AGENT,
        Role::Coordinator => ESTABLISHED_COORDINATOR,
    }
}

fn limits(role: Role) -> connection_limits::ConnectionLimits {
    connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(PENDING))
        .with_max_pending_outgoing(Some(PENDING))
        .with_max_established(Some(places(role)))
        .with_max_established_per_peer(Some(PER_PEER))
}

fn mdns(key: &Keypair, wanted: bool) -> Option<mdns::tokio::Behaviour> {
    let config = mdns::Config { query_interval: MDNS_QUERY, ..mdns::Config::default() };
    let started = wanted.then(|| mdns::tokio::Behaviour::new(config, key.public().to_peer_id()))?;
    started
        .inspect_err(|error| tracing::warn!(%error, "mDNS did not start; peers are found by --peer only"))
        .ok()
}

fn gossip(key: &Keypair, topic: TopicHash) -> Result<Gossip, String> {
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .heartbeat_interval(Duration::from_secs(1))
        // The default of 5 s would let the first announcements go nowhere.
        .heartbeat_initial_delay(Duration::from_millis(200))
        .mesh_n(6)
        .mesh_n_low(5)
        .mesh_n_high(12)
        .mesh_outbound_min(2)
        .flood_publish(true)
        .max_transmit_size(GOSSIP_MESSAGE)
        .max_publish_messages(64)
        .duplicate_cache_time(Duration::from_secs(120))
        .build()
        .map_err(|error| error.to_string())?;
    let mut gossip = gossipsub::Behaviour::new_with_subscription_filter(
        MessageAuthenticity::Signed(key.clone()),
        config,
        WhitelistSubscriptionFilter([topic.clone()].into_iter().collect()),
    )?;
    // Only invalid messages and bad behaviour count: homes have one subnet, and a quiet peer is no bad one.
    let mut scores = PeerScoreParams { ip_colocation_factor_weight: 0.0, ..PeerScoreParams::default() };
    scores.topics.insert(
        topic,
        TopicScoreParams {
            topic_weight: 1.0,
            time_in_mesh_weight: 0.0,
            first_message_deliveries_weight: 0.0,
            mesh_message_deliveries_weight: 0.0,
            mesh_failure_penalty_weight: 0.0,
            invalid_message_deliveries_weight: -10.0,
            invalid_message_deliveries_decay: 0.9,
            ..TopicScoreParams::default()
        },
    );
    let thresholds = PeerScoreThresholds {
        gossip_threshold: -50.0,
        publish_threshold: -100.0,
        graylist_threshold: -200.0,
        accept_px_threshold: 0.0,
        opportunistic_graft_threshold: 0.0,
    };
    gossip.with_peer_score(scores, thresholds)?;
    Ok(gossip)
}

/// Gives the `PeerId` of an agent; `None` where its id is no point of the curve, and so nobody's key.
pub(super) fn peer_of(agent: &AgentId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(&agent.0).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// Gives the agent of a `PeerId`, which holds the key itself; `None` where that is no Ed25519 key.
pub(super) fn agent_of(peer: &PeerId) -> Option<AgentId> {
    const IDENTITY: u64 = 0;
    let hash = peer.as_ref();
    if hash.code() != IDENTITY {
        return None;
    }
    agent_of_key(PublicKey::try_decode_protobuf(hash.digest()).ok()?)
}

/// Gives the agent that a key names; `None` where it is no Ed25519 key.
pub(super) fn agent_of_key(key: PublicKey) -> Option<AgentId> {
    key.try_into_ed25519().ok().map(|key| AgentId(key.to_bytes()))
}

pub(super) fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

/// Gives the address of a plain TCP endpoint; `None` for all others.
pub(super) fn socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => std::net::IpAddr::V6(ip),
        Some(_) | None => return None,
    };
    let Some(Protocol::Tcp(port)) = parts.next() else { return None };
    matches!(parts.next(), None | Some(Protocol::P2p(_))).then(|| SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use libp2p::{
        core::{ConnectedPoint, Endpoint, transport::PortUse},
        swarm::{ConnectionId, FromSwarm, behaviour::ConnectionEstablished},
    };

    use super::*;

    #[test]
    fn an_agent_and_its_peer_id_are_the_same_key() {
        let key = Keypair::generate_ed25519();
        let peer = key.public().to_peer_id();
        let agent = agent_of(&peer).unwrap();
        assert_eq!(Some(agent), agent_of_key(key.public()));
        assert_eq!(peer_of(&agent), Some(peer));
    }

    #[test]
    fn an_address_survives_libp2p_and_nothing_but_tcp_is_one() {
        for text in ["127.0.0.1:11634", "[::1]:1", "[fe80::1]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(socket(&multiaddr(address)), Some(address));
        }
        for text in ["/ip4/1.2.3.4/udp/1/quic-v1", "/dns4/a.example/tcp/1", "/ip4/1.2.3.4/tcp/1/ws"] {
            assert_eq!(socket(&text.parse().unwrap()), None, "{text}");
        }
    }

    fn next_id() -> ConnectionId {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        ConnectionId::new_unchecked(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }

    /// How many connections are taken one after the other, before the first that is not.
    fn taken(role: Role, peer: impl Fn() -> PeerId) -> usize {
        let mut limits = connection_limits::Behaviour::new(limits(role));
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        let endpoint = ConnectedPoint::Dialer {
            address: address.clone(),
            role_override: Endpoint::Dialer,
            port_use: PortUse::Reuse,
        };
        let next = || {
            let (peer_id, connection_id) = (peer(), next_id());
            limits
                .handle_established_outbound_connection(
                    connection_id,
                    peer_id,
                    &address,
                    Endpoint::Dialer,
                    PortUse::Reuse,
                )
                .ok()?;
            limits.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint: &endpoint,
                failed_addresses: &[],
                other_established: 0,
            }));
            Some(())
        };
        std::iter::from_fn(next).take(2_000).count()
    }

    #[test]
    fn as_many_connections_are_taken_as_the_caps_say_and_not_one_more() {
        let one = PeerId::random();
        assert_eq!(taken(Role::Agent, || one), PER_PEER as usize);
        assert_eq!(taken(Role::Agent, PeerId::random), ESTABLISHED_AGENT as usize);
        assert_eq!(taken(Role::Coordinator, PeerId::random), ESTABLISHED_COORDINATOR as usize);
        let mut limits = connection_limits::Behaviour::new(limits(Role::Agent));
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        for (number, taken) in [(PENDING, true), (1, false)] {
            for _ in 0..number {
                let id = next_id();
                assert_eq!(limits.handle_pending_inbound_connection(id, &address, &address).is_ok(), taken);
                let out = limits.handle_pending_outbound_connection(id, None, &[], Endpoint::Dialer);
                assert_eq!(out.is_ok(), taken);
            }
        }
    }
}
