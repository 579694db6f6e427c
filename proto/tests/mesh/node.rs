//! One node of a test's mesh, and pairs of them.

use std::{net::SocketAddr, time::Duration};

use tokio::{sync::mpsc, time::timeout};
use tropa_proto::{
    bounded::{Blob, List, Text},
    evidence::{Core, Hypervisor, Os, Reading, SaltName},
    id::{AgentId, AttemptId, ChunkIndex, EngineRun, Incarnation, JobId},
    mesh::{
        self, DialFailure, Mesh, MeshConfig, MeshEvent, WorkStream, agent_id, greet_agent, greet_coordinator,
    },
    message::{AgentState, Announcement, Endpoint, Hello, Role, Run, ToAgent},
    secret::MeshSecret,
    uid::{MachineClaim, MachineUid},
};

/// How long anything may take on a busy machine before the test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    pub(crate) mesh: Mesh,
    pub(crate) events: mpsc::Receiver<MeshEvent>,
}

impl Node {
    pub(crate) async fn start(role: Role, secret: Option<&MeshSecret>, peers: &[&Self]) -> Self {
        let mut key = [0; 32];
        getrandom::fill(&mut key).unwrap();
        Self::with_key(key, role, secret, peers).await
    }

    pub(crate) async fn with_key(
        key: [u8; 32],
        role: Role,
        secret: Option<&MeshSecret>,
        peers: &[&Self],
    ) -> Self {
        let mut config = MeshConfig::loopback(key, role);
        config.secret = secret.cloned();
        config.peers = peers.iter().map(|peer| peer.address()).collect();
        let (mesh, events) = mesh::start(config).await.unwrap();
        assert_eq!(mesh.me(), agent_id(&key));
        Self { mesh, events }
    }

    pub(crate) fn me(&self) -> AgentId {
        self.mesh.me()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.mesh.listening()[0]
    }

    pub(crate) async fn announce(&self, seq: u64) {
        self.mesh.publish(self.announcement(seq)).await.unwrap();
    }

    pub(crate) fn announcement(&self, seq: u64) -> Announcement {
        Announcement {
            incarnation: Incarnation(1),
            seq,
            period_ms: 10_000,
            state: AgentState::Ready,
            label: Text::cut("a host"),
            core: Core {
                os: Os::Linux,
                hypervisor: Hypervisor::None,
                declared: false,
                time_namespace: false,
                boot_id: Reading::Absent,
                epoch_ns: Reading::Absent,
                machine_id: Reading::Absent,
                product_uuid: Reading::Absent,
                host_cpus: 2,
                memory: 1 << 30,
                gpus: List::default(),
                salt: SaltName::default(),
            },
            sampled_ms_ago: 0,
            machine: MachineClaim::new(MachineUid { created_ms: 1, random: [1; 16] }),
            locks: List::default(),
            width: 1,
            engine: EngineRun(1),
            bundle: [1; 32],
            inventory: [2; 32],
            addresses: List::new(vec![self.address()]).unwrap(),
        }
    }

    /// Reads events until one is wanted.
    pub(crate) async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(MeshEvent) -> Option<T>) -> T {
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the mesh ended");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        };
        timeout(LIMIT, search).await.unwrap_or_else(|_| panic!("no {what} within {LIMIT:?}"))
    }

    pub(crate) async fn announced(&mut self, who: AgentId) -> Announcement {
        self.until("announcement", |event| match event {
            MeshEvent::Announced { from, announcement } if from == who => Some(*announcement),
            _ => None,
        })
        .await
    }

    pub(crate) async fn connected(&mut self, who: AgentId) {
        self.until("connection", |event| {
            matches!(event, MeshEvent::Connected(peer) if peer == who).then_some(())
        })
        .await;
    }

    pub(crate) async fn disconnected(&mut self, who: AgentId) {
        self.until("disconnection", |event| {
            matches!(event, MeshEvent::Disconnected(peer) if peer == who).then_some(())
        })
        .await;
    }

    pub(crate) async fn incoming(&mut self) -> WorkStream {
        self.until("work stream", |event| match event {
            MeshEvent::Incoming(_, stream) => Some(stream),
            _ => None,
        })
        .await
    }

    pub(crate) async fn dial_failed(&mut self) -> DialFailure {
        self.until("failed dial", |event| match event {
            MeshEvent::DialFailed { why, .. } => Some(why),
            _ => None,
        })
        .await
    }
}

pub(crate) fn hello(role: Role) -> Hello {
    Hello { incarnation: Incarnation(7), role }
}

/// An agent and a coordinator with one greeted work stream between them.
pub(crate) async fn pair() -> (Node, Node, WorkStream, WorkStream) {
    let mut agent = Node::start(Role::Agent, None, &[]).await;
    let mut coordinator = Node::start(Role::Coordinator, None, &[&agent]).await;
    coordinator.connected(agent.me()).await;
    let mut near = coordinator.mesh.open(agent.me()).await.unwrap();
    let (greeted, far) = tokio::join!(greet_agent(&mut near, hello(Role::Coordinator)), async {
        let mut far = agent.incoming().await;
        assert_eq!(greet_coordinator(&mut far, hello(Role::Agent)).await.unwrap(), hello(Role::Coordinator));
        far
    });
    assert_eq!(greeted.unwrap(), hello(Role::Agent));
    assert_eq!((near.peer(), far.peer()), (agent.me(), coordinator.me()));
    (agent, coordinator, near, far)
}

pub(crate) fn run_of(bytes: usize) -> ToAgent {
    ToAgent::Run(Box::new(Run {
        attempt: attempt(1),
        incarnation: Incarnation(7),
        endpoint: Endpoint::Chat,
        model: Text::cut("a-model:latest"),
        fingerprint: [3; 32],
        deadline_ms: 1,
        first_token_ms: 2,
        idle_ms: 3,
        show_text: false,
        at_once: 1,
        body: Blob::new(vec![0xab; bytes]).unwrap(),
    }))
}

pub(crate) fn attempt(no: u32) -> AttemptId {
    AttemptId { job: JobId([5; 16]), chunk: ChunkIndex(0), no }
}
