//! The agent beside one install: reports its hardware, executes chunks, and never schedules.
//!
//! `evidence` reads the hardware, `ollama` speaks to the engine, `execute` runs attempts under the locks of
//! `device_lock`, `serve` answers coordinators. [`Agent`] is the loop that holds them together: it takes stock of
//! the install, announces what changed, and leaves in good order.

pub mod admission;
mod announcing;
pub mod args;
mod clock;
pub mod device_lock;
mod engine_run;
pub mod evidence;
pub mod execute;
pub mod exposure;
pub mod hours;
mod joining;
mod live_test;
pub mod machine;
pub mod occupation;
pub mod ollama;
mod opening;
pub mod outbox;
pub mod places;
pub mod policy;
mod program;
mod renewal;
pub mod runtime_dir;
mod serve;
pub mod signals;
pub mod state;
pub(crate) mod stock;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tropa_proto::{
    bounded::Text,
    evidence::Core,
    hush::Hush,
    id::{AgentId, Incarnation},
    mesh::{Mesh, MeshError, MeshEvent},
    message::{AgentState, Announcement, Answer, Hello, Question, Role},
    secret::MeshSecret,
};

use crate::{
    announcing::announce_here,
    clock::now,
    device_lock::DeviceLocks,
    engine_run::{Engine, Naming},
    evidence::{BootClock, LaneSpec, Root},
    execute::{Executor, Guests, Load, Orders},
    exposure::Exposure,
    joining::Joining,
    live_test::LiveTests,
    machine::{Here, Machine},
    ollama::{Ollama, OllamaUrl},
    opening::Opening,
    policy::Policy,
    runtime_dir::{Presence, RuntimePlaces},
    state::State,
    stock::Stock,
};

pub use crate::program::main;

/// The port of an agent; another one where it is taken (`design.md`, Commands).
pub const PORT: u16 = 11_634;

/// The longest period between two announcements (`reliability.md` §4).
const LONGEST_PERIOD: Duration = Duration::from_secs(600);

/// How long what runs may go on when the agent is asked to leave (`conventions.md` §3).
const LEAVES_WITHIN: Duration = Duration::from_secs(30);

/// How long an agent that has said goodbye still answers: orders cross the goodbye on their way.
const REFUSES_FOR: Duration = Duration::from_millis(300);

/// Members that are counted for the period of announcements; the cap of a mesh (`security.md` §6).
const MAX_MEMBERS: usize = 1024;

/// What will happen.
#[derive(Debug)]
pub struct Config {
    /// The install.
    pub ollama: OllamaUrl,
    /// What the operator permits of the install.
    pub policy: Policy,
    /// Where to listen; empty: the usual port, or another where it is taken.
    pub listen: Vec<SocketAddr>,
    /// Members to dial, as `HOST:PORT`.
    pub peers: Vec<String>,
    /// The mesh; none: loopback only.
    pub secret: Option<MeshSecret>,
    /// Show presence by multicast DNS.
    pub mdns: bool,
    /// The devices of the install as the operator names them; none: found out.
    pub lane: Option<LaneSpec>,
    /// The log of the install's server as the operator names it; none: found out.
    pub log: Option<String>,
    /// The name for people.
    pub label: String,
    /// How many chunks the install may work on at once; 0: what coordinators measure.
    pub width: u16,
    /// The operator's name of the machine.
    pub machine: Option<String>,
    /// Where the hardware is read from.
    pub root: Root,
    /// Where the device locks are; none: nothing on this host excludes other agents.
    pub lock_dir: Option<PathBuf>,
    /// Where the agents of this machine are listed; none: this one is not.
    pub runtime: Option<RuntimePlaces>,
    /// Where the key is kept.
    pub state: PathBuf,
    /// Bytes in memory from which on nobody new is taken in; none: the process is somebody else's.
    pub memory: Option<u64>,
}

/// Says why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The key or the counter of announcements cannot be kept.
    #[error("opening the agent's state failed")]
    State(#[from] state::StateError),
    /// The client of the engine cannot be made.
    #[error("preparing to speak to Ollama failed")]
    Ollama(#[from] ollama::ClientError),
    /// A socket cannot be opened.
    #[error("joining the mesh failed")]
    Mesh(#[from] MeshError),
    /// A peer's name is not known.
    #[error("--peer {peer} is not HOST:PORT, or not known")]
    Peer {
        /// What was typed.
        peer: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The operating system has no random bytes to give.
    #[error("getting random bytes failed")]
    Random(#[from] getrandom::Error),
}

/// An agent that listens; [`Agent::run`] makes it work.
#[derive(Debug)]
pub struct Agent {
    mesh: Mesh,
    events: mpsc::Receiver<MeshEvent>,
    state: State,
    machine: Machine,
    /// What is kept outlives a restart, or the operator has named the machine.
    durable: bool,
    started: Instant,
    joining: Joining,
    runtime: Option<RuntimePlaces>,
    install_port: u16,
    /// Since when another, older agent is known to run with this key: a new one is taken as soon as nothing runs.
    renewing: Option<Instant>,
    incarnation: Incarnation,
    config_label: String,
    width: u16,
    policy: Policy,
    exposure: Exposure,
    boot_clock: BootClock,
    locks: Option<Arc<DeviceLocks>>,
    stock: Stock,
    orders: Orders,
    live_tests: LiveTests,
    engine: watch::Receiver<Engine>,
    load: watch::Receiver<Load>,
    guests: watch::Receiver<Guests>,
    stop: CancellationToken,
    opening: Opening,
    executing: JoinHandle<()>,
    presence: Option<Presence>,
    members: BTreeSet<AgentId>,
    /// Warnings about addresses that do not answer.
    hush: Hush<SocketAddr>,
    phase: AgentState,
}

impl Agent {
    /// Reads the hardware, takes stock of the install, joins the mesh, and announces itself.
    ///
    /// # Errors
    /// When its state is not its own, a socket cannot be opened, or a peer is not known. An install that does not
    /// answer is no error: the agent says so in its announcements.
    pub async fn start(config: Config) -> Result<Self, AgentError> {
        let peers = resolve(&config.peers).await?;
        let incarnation = Incarnation::started(since_1970())?;
        let ollama = Arc::new(Ollama::with_policy(config.ollama.clone(), config.policy.clone())?);
        // Before anything is asked of it: what is learned holds for the process that answers now.
        let engine = engine_run::watch(Arc::clone(&ollama), Naming::new(&config)).await;
        let stock = Stock::take(&config, Arc::clone(&ollama)).await;
        let (host, port) = config.ollama.host_and_port();
        let mut state = State::open(&config.state, &host, port, stock.facts())?;
        // A record that came here with its key knows the old one.
        let found = state.parent().filter(|_| state.has_moved()).unwrap_or_else(|| state.id());
        if config.runtime.as_ref().is_some_and(|places| places.list().iter().any(|p| p.agent == state.id())) {
            tracing::warn!(
                "identity.clone: another agent of this machine runs with this key, the state directory was copied; taking a new key"
            );
            state.mint(stock.facts())?;
        } else if state.has_moved() {
            tracing::warn!(
                "identity.clone: this state was made on other hardware; the agent has taken a new key"
            );
        }
        let durable = config.machine.is_some() || state::lasts(state.directory());
        let keys = [state.id(), found];
        let here = Here { keys: &keys, facts: stock.facts(), durable, since_1970: since_1970() };
        let machine = Machine::open(state.directory(), &here)?;
        let joining = Joining {
            secret: config.secret.clone(),
            listen: config.listen.clone(),
            mdns: config.mdns,
            peers,
            memory: config.memory,
        };
        let (mesh, events) = joining.join(&state).await?;
        let devices = stock.occupation();
        let locks = open_locks(&config, &devices.anywhere, &config.label);
        let settings = execute::Settings { incarnation, width: config.width, locks: locks.clone(), devices };
        let exposure = Exposure::new(config.root.clone(), Arc::clone(&ollama));
        let (executor, orders) = Executor::new(settings, ollama);
        let stop = CancellationToken::new();
        let executing = tokio::spawn(executor.run(stop.clone()));
        let presence = announce_here(config.runtime.as_ref(), port, &mesh);
        Ok(Self {
            engine,
            load: orders.load(),
            guests: orders.guests(),
            mesh,
            events,
            state,
            machine,
            durable,
            started: now(),
            joining,
            runtime: config.runtime,
            install_port: port,
            renewing: None,
            incarnation,
            config_label: config.label,
            width: config.width,
            live_tests: LiveTests::new(config.root.clone(), incarnation),
            policy: config.policy,
            exposure,
            boot_clock: BootClock::of(&config.root),
            locks,
            stock,
            orders,
            opening: Opening::new(),
            stop,
            executing,
            presence,
            members: BTreeSet::new(),
            hush: Hush::default(),
            phase: AgentState::Ready,
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> AgentId {
        self.mesh.me()
    }

    /// Where programs of this machine reach it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        let listening = self.mesh.listening();
        let local = listening.iter().find(|address| address.ip().is_loopback());
        local.or(listening.first()).copied().unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)))
    }

    /// Works until `shutdown` completes; then takes nothing new, lets what runs end for at most 30 s, and leaves.
    ///
    /// # Errors
    /// When it cannot keep its counter of announcements.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut next_announcement = now();
        let mut ill = false;
        loop {
            if self.may_renew() {
                self.renew().await?;
                next_announcement = now();
            }
            if self.look_at_hours().await {
                next_announcement = now();
            }
            if next_announcement <= now() {
                next_announcement = now() + self.announce().await?;
            }
            let turn = next_announcement.min(self.renews_at()).min(self.opening.next);
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                event = self.events.recv() => match event {
                    Some(MeshEvent::Announced { from, announcement }) if from == self.mesh.me() => {
                        if self.heard_itself(&announcement)? {
                            next_announcement = now();
                        }
                    }
                    Some(event) => {
                        if let MeshEvent::Announced { from, announcement } = &event
                            && self.heard_of_machine(*from, announcement)?
                        {
                            next_announcement = now();
                        }
                        self.on_event(event).await;
                    }
                    None => break,
                },
                changed = self.stock.taken() => {
                    if changed {
                        next_announcement = now();
                        self.look_at_machine()?;
                    }
                    // That nothing has changed is news where a model was being loaded. An executor that has ended has
                    // nothing to occupy.
                    let _ = self.orders.occupy(self.stock.occupation()).await;
                }
                Ok(()) = self.load.changed() => {
                    let load = *self.load.borrow_and_update();
                    if std::mem::replace(&mut ill, load.ill) != load.ill {
                        next_announcement = now();
                    }
                    self.stock.watch(load);
                }
                Ok(()) = self.engine.changed() => {
                    let Engine { up, .. } = *self.engine.borrow_and_update();
                    self.stock.engine_changed(up);
                    if up {
                        next_announcement = now();
                    }
                }
                Ok(()) = self.guests.changed() => self.welcome(),
                () = sleep_until(turn) => {}
            }
        }
        self.leave().await
    }

    /// Takes in what another agent says of its machine; says whether this one's has another name now.
    fn heard_of_machine(&mut self, from: AgentId, other: &Announcement) -> Result<bool, AgentError> {
        let epoch = self.boot_clock.sample();
        let core = Core::new(&self.stock.description().evidence, epoch);
        let mine = (self.id(), self.incarnation, &core);
        let at = now().duration_since(self.started);
        Ok(self.machine.heard(mine, from, other, at, since_1970())?)
    }

    /// Takes in what is seen of the machine now: other hardware, or another key.
    fn look_at_machine(&mut self) -> Result<(), AgentError> {
        let (keys, facts) = ([self.state.id()], self.stock.facts());
        let here = Here { keys: &keys, facts, durable: self.durable, since_1970: since_1970() };
        Ok(self.machine.see(&here)?)
    }

    /// Tells the mesh whose work and results are here.
    pub(crate) fn welcome(&mut self) {
        let Guests { peers, bytes } = self.guests.borrow_and_update().clone();
        self.mesh.holds(peers, bytes);
    }

    async fn on_event(&mut self, event: MeshEvent) {
        match event {
            // Only while the agent leaves: who keeps the key matters no more.
            MeshEvent::Announced { from, .. } if from == self.mesh.me() => {}
            MeshEvent::Announced { from, announcement } => {
                if announcement.state == AgentState::Leaving {
                    self.members.remove(&from);
                } else if self.members.len() < MAX_MEMBERS {
                    self.members.insert(from);
                }
            }
            MeshEvent::Incoming(from, stream) => {
                let hello = Hello { incarnation: self.incarnation, role: Role::Agent };
                tokio::spawn(serve::serve(from, stream, hello, self.orders.clone()));
            }
            MeshEvent::Asked { ticket, question: Question::LiveTest { id, step }, .. } => {
                self.live_tests.take(&self.mesh, ticket, (id, step), &self.members);
            }
            MeshEvent::Asked { ticket, at, .. } => {
                let mut description = Box::new(self.stock.description().clone());
                let denial = self.policy.denies_sender(at);
                description.denied = denial.map_or_else(Text::default, |denial| denial.text());
                self.mesh.answer(ticket, Answer::Description(description)).await;
            }
            MeshEvent::DialFailed { address, why } => {
                if let Some(more) = self.hush.warns(&address, now().into_std()) {
                    tracing::warn!(%address, ?why, more, "a peer cannot be reached");
                }
            }
            MeshEvent::Connected(_) | MeshEvent::Disconnected(_) | MeshEvent::Listening(_) => {}
        }
    }

    async fn leave(mut self) -> Result<(), AgentError> {
        self.phase = AgentState::Draining;
        if self.orders.drain("the agent is leaving").await.is_ok() {
            self.announce().await?;
            let _ = timeout(LEAVES_WITHIN, self.work_off()).await;
        }
        self.phase = AgentState::Leaving;
        self.announce().await?;
        // What was sent before that was heard is refused in words, and so not taken for lost.
        let _ = timeout(REFUSES_FOR, self.serve_on()).await;
        drop(self.presence.take());
        self.stop.cancel();
        let _ = self.executing.await;
        self.mesh.shutdown().await;
        Ok(())
    }

    /// Serves until the mesh ends.
    async fn serve_on(&mut self) {
        while let Some(event) = self.events.recv().await {
            self.on_event(event).await;
        }
    }

    /// Serves until nothing runs and every result has been handed over.
    async fn work_off(&mut self) {
        while {
            let load = *self.load.borrow_and_update();
            load.running + load.checking + load.waiting_results > 0
        } {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.on_event(event).await,
                    None => return,
                },
                changed = self.load.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// The host's name, for a label.
#[must_use]
pub fn host_name() -> String {
    sysinfo::System::host_name().unwrap_or_else(|_| "agent".to_owned())
}

async fn resolve(peers: &[String]) -> Result<Vec<SocketAddr>, AgentError> {
    let mut addresses = Vec::new();
    for peer in peers {
        let found = tokio::net::lookup_host(peer).await;
        addresses.extend(found.map_err(|source| AgentError::Peer { peer: peer.clone(), source })?);
    }
    Ok(addresses)
}

fn open_locks(
    config: &Config,
    devices: &BTreeSet<device_lock::DeviceName>,
    label: &str,
) -> Option<Arc<DeviceLocks>> {
    let directory = config.lock_dir.as_ref()?;
    match DeviceLocks::open(directory, devices.clone(), label) {
        Ok(locks) => Some(Arc::new(locks)),
        Err(error) => {
            tracing::warn!(%error, directory = %directory.display(), "no device locks: several coordinators may overlap here");
            None
        }
    }
}

/// The wall clock, from 1970.
#[expect(clippy::disallowed_methods, reason = "the start of a program; only incarnations are made of it")]
fn since_1970() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
