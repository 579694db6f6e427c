//! A member that breaks the rules of gossip, and what becomes of what it says.

use std::time::Duration;

use futures::{AsyncReadExt as _, FutureExt as _, StreamExt as _};
use libp2p::{
    Swarm,
    core::SignedEnvelope,
    gossipsub::{self, IdentTopic},
    identity::Keypair,
    swarm::SwarmEvent,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    Mesh, MeshConfig, MeshEvent, STREAMS_PER_AGENT, WorkStream,
    door::House,
    gossip::tests::{announcement, envelope},
    start,
    swarm::{Behaviour, BehaviourEvent, agent_of_key, build, multiaddr, peer_of},
};
use crate::{
    id::AgentId,
    message::{AgentState, Role},
    secret::public_prologue,
};

/// A swarm of the right mesh that says whatever a test wants.
struct Intruder {
    swarm: Swarm<Behaviour>,
    topic: IdentTopic,
    key: Keypair,
}

impl Intruder {
    /// Joins by one peer, and waits until that listens to gossip.
    async fn join(peer: &Mesh) -> Self {
        let key = Keypair::generate_ed25519();
        let house = House { places: 256, memory: None, guests: std::sync::Arc::default(), resident: || None };
        let (mut swarm, topic) = build(&key, &public_prologue(), Role::Agent, false, house).unwrap();
        swarm.dial(multiaddr(peer.listening()[0])).unwrap();
        loop {
            let event = swarm.select_next_some().await;
            if let SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Subscribed { .. })) = event
            {
                return Self { swarm, topic, key };
            }
        }
    }

    fn say(&mut self, bytes: Vec<u8>) {
        self.swarm.behaviour_mut().gossip.publish(self.topic.hash(), bytes).unwrap();
    }

    fn id(&self) -> AgentId {
        agent_of_key(self.key.public()).unwrap()
    }

    /// Keeps the swarm going until an event of interest comes from elsewhere.
    async fn meanwhile<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::pin!(other);
        let limit = tokio::time::sleep(Duration::from_secs(30));
        tokio::pin!(limit);
        loop {
            tokio::select! {
                found = &mut other => return found,
                _event = self.swarm.select_next_some() => {}
                () = &mut limit => panic!("nothing came within 30 s"),
            }
        }
    }
}

/// Reads events until an announcement has this number, and gives all announcements so far.
async fn announced_until(events: &mut mpsc::Receiver<MeshEvent>, seq: u64) -> Vec<(AgentId, u64)> {
    let mut all = Vec::new();
    while all.last().is_none_or(|(_, last)| *last != seq) {
        if let MeshEvent::Announced { from, announcement } = events.recv().await.unwrap() {
            all.push((from, announcement.seq));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_intruder_makes_up_reaches_neither_the_owner_nor_a_third_node() {
    let (near, mut near_events) = start(MeshConfig::loopback([1; 32], Role::Agent)).await.unwrap();
    let mut config = MeshConfig::loopback([2; 32], Role::Agent);
    config.peers = near.listening();
    let (_far, mut far_events) = start(config).await.unwrap();
    let mut intruder = Intruder::join(&near).await;
    let victim = Keypair::generate_ed25519();
    let honest = announcement(1, 7, AgentState::Ready);
    intruder.say(b"no envelope".to_vec());
    // Somebody else's words, relayed as one's own.
    intruder.say(envelope(&victim, &honest));
    // Somebody else's words with another ending.
    let mut touched = envelope(&victim, &honest);
    *touched.last_mut().unwrap() ^= 1;
    intruder.say(touched);
    // A signature that was made for something else.
    let stray = SignedEnvelope::new(&intruder.key, "elsewhere".to_owned(), b"/x".to_vec(), vec![1]).unwrap();
    intruder.say(stray.into_protobuf_encoding());
    // And then its own announcement, which is its right, twice, and an older one.
    let own = intruder.key.clone();
    for seq in [5, 5, 4, 6] {
        intruder.say(envelope(&own, &announcement(1, seq, AgentState::Ready)));
    }
    let id = intruder.id();
    let (near, far) = intruder
        .meanwhile(async {
            (announced_until(&mut near_events, 6).await, announced_until(&mut far_events, 6).await)
        })
        .await;
    assert_eq!(near, [(id, 5), (id, 6)]);
    // A third node may have missed the first one while the mesh formed.
    assert!(far == near || far == [(id, 6)], "{far:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_streams_of_a_connection_are_served_as_many_wait_and_more_are_reset() {
    let (near, mut events) = start(MeshConfig::loopback([1; 32], Role::Agent)).await.unwrap();
    let mut intruder = Intruder::join(&near).await;
    let peer = peer_of(&near.me()).unwrap();
    // Past the gate that an honest node holds itself to.
    let all = 2 * STREAMS_PER_AGENT + 2;
    let opened = (0..all).map(|_| {
        let (reply, opened) = oneshot::channel();
        intruder.swarm.behaviour_mut().work.open(peer, reply);
        opened
    });
    let opened: Vec<_> = opened.collect();
    let mut streams = intruder.meanwhile(futures::future::join_all(opened)).await;
    let mut streams: Vec<_> = streams.drain(..).filter_map(|opened| opened.ok()?.ok()).collect();
    let mut arrived = Vec::new();
    intruder
        .meanwhile(async {
            while arrived.len() < STREAMS_PER_AGENT {
                arrived.extend(incoming(events.recv().await));
            }
        })
        .await;
    // Those beyond are reset: reading ends, where it otherwise waits.
    let reset = intruder
        .meanwhile(async {
            loop {
                let reads = streams.iter_mut().map(|stream| {
                    let mut byte = [0];
                    stream.read(&mut byte).now_or_never().is_some()
                });
                let reset = reads.filter(|ended| *ended).count();
                if reset + all - streams.len() >= 2 {
                    return reset + all - streams.len();
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
    assert_eq!(reset, 2);
    assert!(events.try_recv().is_err(), "the sixty-fifth waits");
    arrived.pop();
    let next = intruder.meanwhile(async { incoming(events.recv().await) }).await;
    assert!(next.is_some(), "and is served when another is over");
}

fn incoming(event: Option<MeshEvent>) -> Option<WorkStream> {
    if let Some(MeshEvent::Incoming(_, stream)) = event { Some(stream) } else { None }
}
