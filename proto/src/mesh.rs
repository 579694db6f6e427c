//! The mesh: one libp2p swarm behind typed commands and events.
//!
//! [`start`] binds, and gives a handle and a stream of events. One task owns the swarm; it keeps connections to
//! everybody worth it, gossips this node's announcement, pulls rosters from those it meets (a late node knows
//! everybody within milliseconds instead of a period), and answers such pulls itself. What travels is decided in
//! [`crate::message`]; no type of libp2p leaves this module.
//!
//! "Connected" means that the peer holds the mesh secret and its key, and nothing more: a work stream begins with
//! `Hello` ([`greet_agent`], [`greet_coordinator`]).
//!
//! The mesh ends with [`Mesh::shutdown`], when the last handle is dropped, or when the receiver of events is.

mod dial;
mod door;
mod driver;
mod flood;
mod gossip;
#[cfg(test)]
mod intruder;
mod links;
mod listening;
mod marks;
mod news;
mod offences;
mod outbox;
mod question;
mod reaction;
mod swarm;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use libp2p::identity::Keypair;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};
use zeroize::Zeroizing;

use self::door::Guests;
pub(crate) use self::offences::Complaints;
pub use self::{
    door::{KEPT_FOR_MEMBERS, PER_ADDRESS},
    gossip::MEMBERS,
    offences::{BAN, OFFENCES},
    swarm::{ESTABLISHED_AGENT, ESTABLISHED_COORDINATOR, PENDING, PER_PEER},
};
pub use crate::chunk_stream::{
    FRAME_LIMIT, HELLO_LIMIT, WRITE_LIMIT, WorkError, WorkReader, WorkStream, WorkWriter, greet_agent,
    greet_coordinator,
};
use crate::{
    chunk_stream::behaviour::{OpenError, Opened},
    codec::CodecError,
    id::AgentId,
    message::{Announcement, Answer, Question, Role},
    secret::MeshSecret,
};

/// Work streams that one node holds open to one agent; more wait until one is dropped. An agent runs few attempts
/// at once, and yamux ends the whole connection at 512 streams (`libp2p.md` §4).
pub const STREAMS_PER_AGENT: usize = 64;

/// Events that wait in the channel; beyond, see [`MeshEvent`].
const EVENTS: usize = 256;

/// Commands that wait for the swarm; their senders wait too, so this is only slack.
const COMMANDS: usize = 64;

/// How long [`Mesh::ask`] waits: longer than libp2p's own limit of 10 s for one exchange and 10 s for a dial, so
/// that only a standstill of the swarm reaches it.
const ASK_LIMIT: Duration = Duration::from_secs(25);

/// Bytes in memory from which on an agent takes nobody new (`security.md` §6): with its results beside them it stays
/// below the 512 MiB at which its unit ends it.
pub const AGENT_MEMORY: u64 = 96 << 20;

/// Bytes in memory from which on a coordinator dials nobody more than it needs (`security.md` §6).
pub const COORDINATOR_MEMORY: u64 = 512 << 20;

/// What a node is on the mesh.
#[derive(Clone)]
pub struct MeshConfig {
    /// The seed of the Ed25519 key that the node is known by; [`agent_id`] gives the public half.
    pub key: [u8; 32],
    /// The secret of the mesh. Without one, everybody on this machine may connect, so only loopback addresses are
    /// listened on and mDNS stays off.
    pub secret: Option<MeshSecret>,
    /// Where to listen; port 0 takes a free one. Empty: nowhere.
    pub listen: Vec<SocketAddr>,
    /// An agent holds few connections in a large mesh; a coordinator wants one to every agent, and is asked
    /// nothing.
    pub role: Role,
    /// Find peers on the local network by multicast DNS, and be found.
    pub mdns: bool,
    /// Peers to stay connected to, with growing pauses of at most 30 s between attempts.
    pub peers: Vec<SocketAddr>,
    /// Bytes in memory from which on nobody new is taken in, and nobody more dialled than is asked for; only Linux says
    /// how many there are. `None`: no limit, since the process is somebody else's.
    pub memory: Option<u64>,
    /// The file in which the highest number of every announcement heard outlives this process; `None`: none does.
    pub marks: Option<PathBuf>,
}

/// What happens on the mesh.
///
/// The owner should read these soon. While it does not, announcements of one agent replace each other,
/// `DialFailed` and `Listening` are dropped once 1,024 events wait, `Asked` is answered with
/// [`Answer::Nothing`]; `Connected`, `Disconnected` and `Incoming` are never dropped: at 4,096 waiting events the
/// swarm rests, and peers feel it.
#[derive(Debug)]
pub enum MeshEvent {
    /// An agent said something newer than all before. Where `from` is this node itself, another process holds its
    /// key.
    Announced {
        /// Who said it; the signature was checked.
        from: AgentId,
        /// What it said.
        announcement: Box<Announcement>,
    },
    /// There is a first connection to this peer.
    Connected(AgentId),
    /// The last connection to this peer is gone.
    Disconnected(AgentId),
    /// A peer opened a work stream; nothing was read from it yet.
    Incoming(AgentId, WorkStream),
    /// A peer asks something that only the owner of the mesh knows: [`Question::Describe`], [`Question::LiveTest`].
    Asked {
        /// Who asks.
        from: AgentId,
        /// The address that the question came from; `None` where its connection is gone.
        at: Option<IpAddr>,
        /// What.
        question: Question,
        /// What [`Mesh::answer`] needs, within 10 s.
        ticket: Ticket,
    },
    /// Nobody useful answered at an address that was configured, announced, or given to [`Mesh::dial`]. Addresses
    /// other than the last are tried again.
    DialFailed {
        /// The address, the first of several.
        address: SocketAddr,
        /// Why.
        why: DialFailure,
    },
    /// The node listens at one more address.
    Listening(SocketAddr),
}

/// What a node calls its program before others: `tropa/` and the version.
pub const PROGRAM: &str = concat!("tropa/", env!("CARGO_PKG_VERSION"));

/// Names a question of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Why a dial failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialFailure {
    /// Something there speaks our protocol with another secret, or another protocol altogether.
    WrongSecret,
    /// Nobody listens there.
    Refused,
    /// Nobody answered in time.
    Timeout,
    /// This node itself listens there.
    Myself,
    /// Something else; says what.
    Other(String),
}

/// Says why the mesh did not do something.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The address cannot be listened on.
    #[error("listening on {addr} failed")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Without a secret only loopback addresses are allowed.
    #[error("listening on {0} needs a mesh secret: without one only loopback addresses are allowed")]
    NeedsSecret(SocketAddr),
    /// The clock says that it is before 1970, on which gossip would fail.
    #[error("the system clock is before 1970")]
    Clock,
    /// The operating system has no random bytes to give.
    #[error("getting random bytes failed")]
    Random(#[from] getrandom::Error),
    /// libp2p refuses its configuration; says why.
    #[error("setting up the network failed: {0}")]
    Stack(String),
    /// The message breaks its own rules.
    #[error(transparent)]
    Invalid(#[from] CodecError),
    /// There is no connection to this agent, and none could be made.
    #[error("{0:?} is not connected")]
    NotConnected(AgentId),
    /// There is no connection to this agent, and its host says that nobody listens there: it has ended.
    #[error("nobody listens any more where {0:?} was")]
    Refused(AgentId),
    /// The agent did not answer in time.
    #[error("{0:?} did not answer in time")]
    Timeout(AgentId),
    /// The agent broke off; says how.
    #[error("{0:?} broke off: {1}")]
    Broken(AgentId, String),
    /// The mesh has ended.
    #[error("the mesh has ended")]
    Ended,
}

/// A handle on the mesh; clones are cheap and equal.
#[derive(Clone, Debug)]
pub struct Mesh {
    me: AgentId,
    commands: mpsc::Sender<Command>,
    listening: watch::Receiver<Vec<SocketAddr>>,
    /// Who waits for a place among the work streams to an agent.
    gates: Arc<Mutex<BTreeMap<AgentId, Arc<Semaphore>>>>,
    guests: Arc<Guests>,
    complaints: Complaints,
}

/// What a handle asks of the task that owns the swarm.
#[derive(Debug)]
enum Command {
    Publish(Box<Announcement>, oneshot::Sender<Result<(), MeshError>>),
    /// Bytes for gossip as they are.
    #[cfg(feature = "planted")]
    PublishRaw(Vec<u8>),
    Ask(AgentId, Question, oneshot::Sender<Result<Answer, MeshError>>),
    Answer(Ticket, Answer),
    Open(AgentId, oneshot::Sender<Opened>),
    Dial(SocketAddr),
    Close(AgentId),
    Links(oneshot::Sender<Vec<(AgentId, IpAddr)>>),
    Programs(oneshot::Sender<BTreeMap<AgentId, String>>),
    Shutdown(oneshot::Sender<()>),
}

/// Gives the public name of an Ed25519 seed.
#[must_use]
pub fn agent_id(seed: &[u8; 32]) -> AgentId {
    swarm::agent_of_key(keypair(seed).public()).unwrap_or(AgentId([0; 32]))
}

fn keypair(seed: &[u8; 32]) -> Keypair {
    // Every 32 bytes are a seed, and libp2p overwrites the copy.
    let mut copy = Zeroizing::new(*seed);
    Keypair::ed25519_from_bytes(&mut copy[..]).expect("32 bytes are an Ed25519 seed")
}

/// Joins the mesh. Every address is bound when this returns; the swarm then runs in a task of its own.
///
/// # Errors
/// [`MeshError::Listen`] when an address is taken or not ours, [`MeshError::NeedsSecret`] for an address beyond
/// loopback without a secret; others when the system is not fit.
pub async fn start(config: MeshConfig) -> Result<(Mesh, mpsc::Receiver<MeshEvent>), MeshError> {
    let (commands, orders) = mpsc::channel(COMMANDS);
    let (events, received) = mpsc::channel(EVENTS);
    let (addresses, listening) = watch::channel(Vec::new());
    let (guests, complaints) = (Arc::default(), Complaints::default());
    let driver = driver::Driver::start(config, addresses, Arc::clone(&guests), complaints.clone()).await?;
    let me = driver.me();
    tokio::spawn(driver.run(orders, events));
    Ok((Mesh { me, commands, listening, gates: Arc::default(), guests, complaints }, received))
}

impl Mesh {
    /// Names this node.
    #[must_use]
    pub fn me(&self) -> AgentId {
        self.me
    }

    /// Gives the addresses at which this node listens at present; a wildcard shows as the addresses behind it.
    #[must_use]
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.listening.borrow().clone()
    }

    /// Says that this node is there: signs, keeps it for rosters, and gossips, now or as soon as somebody listens.
    /// The first one is repeated after 1 and 3 s, since messages get lost while a mesh forms.
    ///
    /// `seq` must rise with every announcement, over restarts too: others ignore one that does not.
    ///
    /// # Errors
    /// [`MeshError::Invalid`] when the announcement is too large or out of range.
    pub async fn publish(&self, announcement: Announcement) -> Result<(), MeshError> {
        let (reply, done) = oneshot::channel();
        self.command(Command::Publish(Box::new(announcement), reply)).await?;
        done.await.unwrap_or(Err(MeshError::Ended))
    }

    /// Gossips bytes as they are, signed as gossip, whatever they are. For the tests' peer that breaks the rules.
    ///
    /// # Errors
    /// When the mesh has ended.
    #[cfg(feature = "planted")]
    pub async fn publish_raw(&self, bytes: Vec<u8>) -> Result<(), MeshError> {
        self.command(Command::PublishRaw(bytes)).await
    }

    /// Asks a peer; dials it first where it is not connected and an address is known.
    ///
    /// # Errors
    /// [`MeshError::NotConnected`], [`MeshError::Timeout`] after at most 25 s, or [`MeshError::Broken`].
    pub async fn ask(&self, agent: AgentId, question: Question) -> Result<Answer, MeshError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Ask(agent, question, reply)).await?;
        match timeout(ASK_LIMIT, answer).await {
            Ok(answered) => answered.unwrap_or(Err(MeshError::Ended)),
            Err(_elapsed) => Err(MeshError::Timeout(agent)),
        }
    }

    /// Answers a question; does nothing where it is answered, or nobody waits for it any more.
    pub async fn answer(&self, ticket: Ticket, answer: Answer) {
        // An ended mesh has nobody who waits.
        let _ = self.command(Command::Answer(ticket, answer)).await;
    }

    /// Opens a work stream to an agent; dials it first where it is not connected and an address is known. Waits
    /// while [`STREAMS_PER_AGENT`] are open.
    ///
    /// # Errors
    /// [`MeshError::NotConnected`], at once where no address is known; [`MeshError::Refused`] when nobody listens at
    /// any; [`MeshError::Timeout`] or [`MeshError::Broken`] when the agent does not take the stream.
    pub async fn open(&self, agent: AgentId) -> Result<WorkStream, MeshError> {
        let place = self.gate(agent).acquire_owned().await.map_err(|_| MeshError::Ended)?;
        let (reply, opened) = oneshot::channel();
        self.command(Command::Open(agent, reply)).await?;
        match opened.await {
            Ok(Ok(stream)) => {
                Ok(WorkStream::new(agent, None, stream, Arc::new(place), self.complaints.clone()))
            }
            Ok(Err(OpenError::NotConnected)) => Err(MeshError::NotConnected(agent)),
            Ok(Err(OpenError::Refused)) => Err(MeshError::Refused(agent)),
            Ok(Err(OpenError::Timeout)) => Err(MeshError::Timeout(agent)),
            Ok(Err(OpenError::Unsupported)) => {
                Err(MeshError::Broken(agent, "it takes no work streams".to_owned()))
            }
            Ok(Err(OpenError::Io(error))) => Err(MeshError::Broken(agent, error.to_string())),
            Err(_closed) if self.commands.is_closed() => Err(MeshError::Ended),
            Err(_closed) => Err(MeshError::Broken(agent, "the connection was closed".to_owned())),
        }
    }

    /// Says whose work or results this node holds, and how many bytes of results; replaces what was said before. Such
    /// a peer finds a place when there are few, and however little memory is left; the bytes are not counted as memory.
    pub fn holds(&self, of: BTreeSet<AgentId>, bytes: u64) {
        self.guests.set(of, bytes);
    }

    /// Dials an address once; [`MeshEvent::Connected`] or [`MeshEvent::DialFailed`] follows.
    pub async fn dial(&self, address: SocketAddr) {
        let _ = self.command(Command::Dial(address)).await;
    }

    /// Closes all connections to a peer. One that is wanted, because it is configured or announced, is dialled
    /// again after a short pause, which heals what hangs.
    pub async fn close(&self, agent: AgentId) {
        let _ = self.command(Command::Close(agent)).await;
    }

    /// Gives where each connected peer is, connection by connection: what this node sees and tells nobody. Nothing where
    /// the mesh has ended.
    pub async fn links(&self) -> Vec<(AgentId, IpAddr)> {
        let (reply, links) = oneshot::channel();
        match self.command(Command::Links(reply)).await {
            Ok(()) => links.await.unwrap_or_default(),
            Err(_ended) => Vec::new(),
        }
    }

    /// Gives which program each connected peer says that it is, such as `tropa/0.1.0`; its own words, at most 64 bytes,
    /// which decide nothing. Nothing where the mesh has ended.
    pub async fn programs(&self) -> BTreeMap<AgentId, String> {
        let (reply, programs) = oneshot::channel();
        match self.command(Command::Programs(reply)).await {
            Ok(()) => programs.await.unwrap_or_default(),
            Err(_ended) => BTreeMap::new(),
        }
    }

    /// Leaves the mesh: waits for a last announcement to get out (at most 0.3 s), closes all connections, and
    /// returns when they are closed or after another 0.5 s.
    pub async fn shutdown(self) {
        let (reply, done) = oneshot::channel();
        if self.command(Command::Shutdown(reply)).await.is_ok() {
            let _ = done.await;
        }
    }

    async fn command(&self, command: Command) -> Result<(), MeshError> {
        self.commands.send(command).await.map_err(|_| MeshError::Ended)
    }

    fn gate(&self, agent: AgentId) -> Arc<Semaphore> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if gates.len() > MEMBERS {
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        }
        Arc::clone(gates.entry(agent).or_insert_with(|| Arc::new(Semaphore::new(STREAMS_PER_AGENT))))
    }
}

impl MeshConfig {
    /// Gives what an agent with this key on this machine needs: no secret, no peers, any free loopback port, nothing on
    /// disk.
    #[must_use]
    pub fn loopback(key: [u8; 32], role: Role) -> Self {
        let listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        Self { key, secret: None, listen, role, mdns: false, peers: Vec::new(), memory: None, marks: None }
    }
}

impl fmt::Debug for MeshConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key and the secret are nobody's to see.
        f.debug_struct("MeshConfig")
            .field("listen", &self.listen)
            .field("role", &self.role)
            .field("mdns", &self.mdns)
            .field("peers", &self.peers)
            .field("memory", &self.memory)
            .field("marks", &self.marks)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for DialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WrongSecret => "it is not in this mesh (different mesh secret)",
            Self::Refused => "nobody listens there",
            Self::Timeout => "nobody answered in time",
            Self::Myself => "that is this node itself",
            Self::Other(what) => what,
        })
    }
}
