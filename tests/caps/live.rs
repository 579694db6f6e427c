//! Rows that need a peer: a node on loopback, and raw connections or another node that come to it.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    time::Duration,
};

use tokio::{net::TcpSocket, runtime::Runtime, sync::mpsc, time::timeout};
use tropa_proto::{
    chunk_stream::{HELLO_CAP, WorkError, WorkStream},
    codec::CodecError,
    id::{AgentId, Incarnation},
    mesh::{Mesh, MeshConfig, MeshEvent, PENDING, PER_ADDRESS, STREAMS_PER_AGENT, greet_coordinator, start},
    message::{Hello, Role},
};

use super::{Fate, Row, row};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// What a dialler says first, and what the other side answers: the header of multistream-select.
const GREETING: &[u8] = b"\x13/multistream/1.0.0\n";

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("connections of one address before its handshake", PER_ADDRESS, Fate::Refused, |n| knocks(n, 1)),
        row("connections before their handshake", PENDING as usize, Fate::Refused, |n| knocks(n, 3)),
        row("`Hello`", HELLO_CAP, Fate::Refused, hello),
        row("work streams to one agent", STREAMS_PER_AGENT, Fate::Waits, streams),
    ]
}

struct Node {
    mesh: Mesh,
    events: mpsc::Receiver<MeshEvent>,
}

impl Node {
    async fn start(role: Role, peers: &[SocketAddr]) -> Self {
        let mut key = [0; 32];
        rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty()).unwrap();
        let config = MeshConfig { peers: peers.to_vec(), ..MeshConfig::loopback(key, role) };
        let (mesh, events) = start(config).await.unwrap();
        Self { mesh, events }
    }

    fn address(&self) -> SocketAddr {
        self.mesh.listening()[0]
    }

    async fn until<T>(&mut self, mut found: impl FnMut(MeshEvent) -> Option<T>) -> T {
        let wait = async {
            loop {
                if let Some(found) = found(self.events.recv().await.unwrap()) {
                    return found;
                }
            }
        };
        timeout(LIMIT, wait).await.unwrap()
    }

    async fn incoming(&mut self) -> WorkStream {
        self.until(|event| if let MeshEvent::Incoming(_, stream) = event { Some(stream) } else { None }).await
    }
}

/// An agent, and a coordinator that is connected to it.
async fn pair() -> (Node, Node, AgentId) {
    let agent = Node::start(Role::Agent, &[]).await;
    let mut coordinator = Node::start(Role::Coordinator, &[agent.address()]).await;
    let id =
        coordinator.until(|event| if let MeshEvent::Connected(id) = event { Some(id) } else { None }).await;
    (agent, coordinator, id)
}

/// The last of so many connections that say nothing, from as many addresses in turn.
fn knocks(count: usize, addresses: usize) -> Fate {
    Runtime::new().unwrap().block_on(async {
        let node = Node::start(Role::Agent, &[]).await;
        let mut held = Vec::new();
        for number in 0..count {
            let from = [127, 0, 0, u8::try_from(number % addresses + 1).unwrap()];
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from((from, 0))).unwrap();
            held.push(socket.connect(node.address()).await.unwrap());
        }
        let mut last = held.pop().unwrap().into_std().unwrap();
        // Waiting for the answer must not stop the node, which runs on the other threads.
        tokio::task::block_in_place(|| {
            last.set_nonblocking(false).unwrap();
            last.set_read_timeout(Some(LIMIT)).unwrap();
            let mut answer = [0; GREETING.len()];
            let answered = last.write_all(GREETING).and_then(|()| last.read_exact(&mut answer));
            if answered.is_ok() && answer == GREETING { Fate::Taken } else { Fate::Refused }
        })
    })
}

/// A first frame of so many bytes: what is within the cap is read, and then found to be none.
fn hello(bytes: usize) -> Fate {
    Runtime::new().unwrap().block_on(async {
        let (mut agent, coordinator, id) = pair().await;
        let (_reader, mut writer) = coordinator.mesh.open(id).await.unwrap().split();
        let header = u32::try_from(bytes).unwrap().to_be_bytes();
        writer.send_raw(&[header.as_slice(), &vec![1; bytes]].concat()).await.unwrap();
        let mine = Hello { incarnation: Incarnation(1), role: Role::Agent };
        let mut stream = agent.incoming().await;
        match timeout(LIMIT, greet_coordinator(&mut stream, mine)).await.unwrap() {
            Err(WorkError::Codec(CodecError::TooLarge { .. })) => Fate::Refused,
            Err(WorkError::Codec(_)) => Fate::Taken,
            other => panic!("{other:?}"),
        }
    })
}

/// The last of so many streams to one agent.
fn streams(count: usize) -> Fate {
    Runtime::new().unwrap().block_on(async {
        let (mut agent, coordinator, id) = pair().await;
        let mut held = Vec::new();
        for _ in 1..count {
            held.push((
                timeout(LIMIT, coordinator.mesh.open(id)).await.unwrap().unwrap(),
                agent.incoming().await,
            ));
        }
        let mut last = std::pin::pin!(coordinator.mesh.open(id));
        // Who waits is not answered before another is dropped, and then at once.
        tokio::select! {
            biased;
            opened = &mut last => {
                opened.unwrap();
                Fate::Taken
            }
            _stream = agent.incoming(), if count <= STREAMS_PER_AGENT => {
                timeout(LIMIT, last).await.unwrap().unwrap();
                Fate::Taken
            }
            () = std::future::ready(()), if count > STREAMS_PER_AGENT => {
                held.pop();
                timeout(LIMIT, last).await.unwrap().unwrap();
                Fate::Waits
            }
        }
    })
}
