//! The coordinator among the members of a mesh: joins it, keeps the roster, and asks each agent what it has.

mod inquiries;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use anyhow::Context as _;
use tokio::sync::mpsc;
use tropa_proto::{
    id::{AgentId, Incarnation},
    mesh::{self, COORDINATOR_MEMORY, DialFailure, Mesh, MeshConfig, MeshEvent},
    message::{AgentState, Answer, Description, Question, Role},
    roster::{Hashes, Roster, View},
};

use self::inquiries::Inquiries;
use crate::{
    args::resolve,
    clock::Clock,
    exit::{Exit, Failed, OrExit as _},
    live::{Findings, LiveTests, Trial, ask_neighbours},
    rules::{Book, RulesReport},
    settings::Settings,
};

/// With multicast, agents of a LAN answer within 20 ms (`libp2p.md` §3.1); so long a command waits for more of them
/// before it takes the roster as it is. Agents that come later join a running job.
const MULTICAST_SETTLES: Duration = Duration::from_millis(250);

/// What a description came back as, `None` when the agent did not answer.
type Described = (AgentId, Hashes, Option<Description>);

/// What a question beside the work has brought.
#[derive(Debug)]
enum Found {
    /// A trial has run.
    Tried(Trial, Findings),
    /// An agent has said whom it sees beside it; nothing where it has not.
    Neighbours(AgentId, Incarnation, Option<Vec<AgentId>>),
}

/// What has changed among the members.
#[derive(Debug)]
pub enum Change {
    /// Somebody came, left, or has other models or devices.
    Roster,
    /// There is a first connection to this agent; the roster may have changed.
    Connected(AgentId),
    /// Nothing that a job must know.
    Nothing,
}

/// The mesh, the roster, and what is under way between them.
#[derive(Debug)]
pub struct Members {
    mesh: Mesh,
    events: mpsc::Receiver<MeshEvent>,
    roster: Roster,
    clock: Clock,
    /// The operator's rules, which the roster follows as far as they speak of who is here.
    rules: Book,
    inquiries: Inquiries,
    answers: mpsc::Sender<Described>,
    answered: mpsc::Receiver<Described>,
    /// Agents that are present on this machine and have neither connected nor failed, by address.
    present: BTreeMap<SocketAddr, AgentId>,
    /// Addresses that were named and have neither connected nor failed.
    named: usize,
    /// Agents that have connected and not yet been heard: their announcement comes with the first roster.
    unheard: BTreeSet<AgentId>,
    failures: BTreeMap<SocketAddr, DialFailure>,
    multicast: bool,
    live: LiveTests,
    finds: mpsc::Sender<Found>,
    found: mpsc::Receiver<Found>,
    /// Everybody who should be here has been waited for; live tests may run beside the work.
    gathered: bool,
    /// The roster has changed since live tests were looked for.
    unlooked: bool,
}

impl Members {
    /// Joins the mesh of these settings under a key, and dials every agent that is present on this machine or named
    /// by `--peer`.
    ///
    /// # Errors
    /// When a name does not resolve, or no socket can be opened.
    pub async fn join(settings: &Settings, key: [u8; 32], clock: Clock) -> Result<Self, Failed> {
        let config = MeshConfig {
            key,
            secret: settings.secret.clone(),
            // A coordinator is asked nothing, so nobody need dial it.
            listen: Vec::new(),
            role: Role::Coordinator,
            mdns: settings.mdns,
            peers: Vec::new(),
            memory: Some(COORDINATOR_MEMORY),
            marks: Some(settings.state.join("marks")),
        };
        let (mesh, events) = mesh::start(config).await.context("joining the mesh").or_exit(Exit::Io)?;
        // As many descriptions as agents may be under way.
        let (answers, answered) = mpsc::channel(64);
        // More than are asked at once, so none of them waits.
        let (finds, found) = mpsc::channel(32);
        let mut members = Self {
            mesh,
            events,
            roster: Roster::new(settings.allow_declared),
            clock,
            rules: settings.rules.clone(),
            inquiries: Inquiries::default(),
            answers,
            answered,
            present: BTreeMap::new(),
            named: 0,
            unheard: BTreeSet::new(),
            failures: BTreeMap::new(),
            multicast: settings.mdns,
            live: LiveTests::default(),
            finds,
            found,
            gathered: false,
            unlooked: true,
        };
        for present in settings.runtime.list() {
            members.present.insert(present.address, present.agent);
            members.mesh.dial(present.address).await;
        }
        for peer in &settings.peers {
            for address in resolve(peer).await.or_exit(Exit::Usage)? {
                members.dial(address).await;
            }
        }
        Ok(members)
    }

    /// Dials an agent; [`Members::gather`] waits for it.
    pub async fn dial(&mut self, address: SocketAddr) {
        if !self.present.contains_key(&address) {
            self.named += 1;
            self.mesh.dial(address).await;
        }
    }

    /// The handle of the mesh, to open streams with.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The roster as it is now.
    pub fn view(&mut self) -> &View {
        self.roster.view()
    }

    /// The roster as it is now, and what live tests found.
    pub fn view_and_tests(&mut self) -> (&View, &LiveTests) {
        (self.roster.view(), &self.live)
    }

    /// The operator's rules and how they fare; `None` where there are none.
    #[must_use]
    pub fn rules(&self) -> Option<RulesReport> {
        self.rules.report(&self.roster.known().collect::<Vec<_>>(), self.clock.wall_ms())
    }

    /// The agent has announced itself and has neither left nor been silent for too long.
    #[must_use]
    pub fn knows(&self, agent: AgentId) -> bool {
        self.roster.knows(agent)
    }

    /// The agents that have said what they have: where each can be dialled, and the port of its install on its host; 0
    /// where that is elsewhere.
    pub fn installs_by_address(&self) -> impl Iterator<Item = (AgentId, &[SocketAddr], u16)> {
        self.roster.installs_by_address()
    }

    /// Nobody is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roster.is_empty()
    }

    /// The addresses that could not be reached, and why.
    #[must_use]
    pub fn failures(&self) -> &BTreeMap<SocketAddr, DialFailure> {
        &self.failures
    }

    /// Waits until something happens and takes it in. May be dropped at any time without losing anything.
    pub async fn next(&mut self) -> Change {
        self.test();
        let change = tokio::select! {
            event = self.events.recv() => match event {
                Some(event) => self.on_event(event).await,
                // The mesh task has ended, which it does only when the program ends.
                None => std::future::pending().await,
            },
            Some(described) = self.answered.recv() => self.on_described(described),
            Some(found) = self.found.recv() => match found {
                Found::Tried(trial, findings) => self.on_tried(&trial, findings),
                Found::Neighbours(agent, run, named) => self.on_neighbours(agent, run, named.as_deref()),
            },
        };
        if matches!(change, Change::Roster | Change::Connected(_)) {
            self.follow_rules();
            self.unlooked = true;
        }
        self.ask();
        change
    }

    /// Leaves the mesh.
    pub async fn leave(self) {
        self.mesh.shutdown().await;
    }

    /// Takes out who has been silent for too long.
    pub fn expire(&mut self) -> Change {
        if self.roster.expire(self.clock.now()).is_empty() {
            return Change::Nothing;
        }
        self.follow_rules();
        Change::Roster
    }

    /// Waits until everybody who should be there has been heard and described, at most so long.
    pub async fn gather(&mut self, at_most: Duration) {
        self.wait_for_all(at_most).await;
        self.gathered = true;
    }

    /// Waits until the live tests that run by themselves have run and everybody was asked, at most so long.
    pub async fn settle(&mut self, at_most: Duration) {
        let started = self.clock.now();
        while !self.live.is_idle(self.roster.view()) || !self.live.has_inquired(self.roster.view()) {
            let left = at_most.saturating_sub(self.clock.now().saturating_sub(started));
            if left.is_zero() {
                return;
            }
            // The end of the time is the end of the loop.
            let _ = tokio::time::timeout(left, self.next()).await;
        }
    }

    /// Runs a trial now and takes in what it finds.
    pub async fn examine(&mut self, trial: &Trial) {
        let findings = trial.run(&self.mesh).await;
        self.on_tried(trial, findings);
    }

    async fn wait_for_all(&mut self, at_most: Duration) {
        let started = self.clock.now();
        let settles = if self.multicast { MULTICAST_SETTLES } else { Duration::ZERO };
        let mut limit = at_most;
        while self.clock.now().saturating_sub(started) < limit {
            let now = self.clock.now();
            let reached = self.present.is_empty() && self.named == 0 && self.unheard.is_empty();
            let patience = self.patient_until(at_most / 2).saturating_sub(now);
            let settled = reached && patience.is_zero();
            if settled && !self.roster.is_empty() {
                // Everybody known is there; only multicast may bring more.
                limit = limit.min(settles);
            } else if settled && !self.multicast {
                return;
            }
            let left = limit.saturating_sub(now.saturating_sub(started));
            let left = if patience.is_zero() { left } else { left.min(patience) };
            // The end of the time is the end of the loop.
            let _ = tokio::time::timeout(left, self.next()).await;
        }
    }

    /// Until when to wait for descriptions. Once there is one, an agent that has been asked and says nothing for so long
    /// is not waited for: the others could work.
    fn patient_until(&self, patience: Duration) -> Duration {
        let patience =
            if self.roster.installs_by_address().next().is_some() { patience } else { Duration::MAX };
        self.inquiries.waits_until(&self.roster.undescribed(), patience)
    }

    async fn on_event(&mut self, event: MeshEvent) -> Change {
        match event {
            MeshEvent::Announced { from, announcement } => {
                self.unheard.remove(&from);
                let gone = if announcement.state == AgentState::Leaving {
                    self.live.forget(from)
                } else {
                    self.live.saw(from, announcement.incarnation)
                };
                if gone {
                    self.roster.set_facts(self.live.facts());
                }
                self.roster.announced(from, *announcement, self.clock.now());
                Change::Roster
            }
            MeshEvent::Connected(agent) => {
                self.inquiries.connected(agent);
                if !self.roster.knows(agent) {
                    self.unheard.insert(agent);
                }
                self.roster.connected(agent, true);
                let before = self.present.len();
                self.present.retain(|_, present| *present != agent);
                if self.present.len() == before {
                    self.named = self.named.saturating_sub(1);
                }
                Change::Connected(agent)
            }
            MeshEvent::Disconnected(agent) => {
                self.unheard.remove(&agent);
                self.roster.connected(agent, false);
                tracing::info!(agent = agent.short(), "the connection to an agent is gone");
                Change::Roster
            }
            MeshEvent::DialFailed { address, why } => {
                if self.present.remove(&address).is_none() {
                    self.named = self.named.saturating_sub(1);
                }
                self.failures.insert(address, why);
                Change::Nothing
            }
            MeshEvent::Asked { ticket, .. } => {
                self.mesh.answer(ticket, Answer::Nothing).await;
                Change::Nothing
            }
            // Nobody has work for a coordinator: dropping the stream closes it.
            MeshEvent::Incoming(..) | MeshEvent::Listening(_) => Change::Nothing,
        }
    }

    fn on_described(&mut self, (agent, hashes, description): Described) -> Change {
        self.inquiries.ended(agent);
        let Some(description) = description else { return Change::Nothing };
        if description.hashes() != hashes {
            // It has changed since, and an announcement of that is under way; or it is of another agent with this key.
            tracing::debug!(agent = agent.short(), "a description is not the announced one");
            return Change::Nothing;
        }
        self.roster.described(agent, hashes, description);
        Change::Roster
    }

    fn on_tried(&mut self, trial: &Trial, findings: Findings) -> Change {
        for tested in &findings.tests {
            let [a, b] = trial.agents.map(|agent| agent.short());
            tracing::info!(a, b, test = tested.test, outcome = tested.outcome.text(), "a live test has run");
        }
        if self.live.finished(self.roster.view(), trial, findings) {
            self.roster.set_facts(self.live.facts());
        }
        // In any case there is room for another trial.
        Change::Roster
    }

    fn on_neighbours(&mut self, agent: AgentId, run: Incarnation, named: Option<&[AgentId]>) -> Change {
        if self.live.told(agent, run, named) {
            self.roster.set_facts(self.live.facts());
        }
        // In any case there is room for another question.
        Change::Roster
    }

    /// Whom the rules name depends on who is here.
    fn follow_rules(&mut self) {
        if !self.rules.is_empty() {
            let (rules, _) = self.rules.resolve(&self.roster.known().collect::<Vec<_>>());
            self.roster.set_rules(rules);
        }
    }

    /// Starts the live tests that are worth running, and asks about neighbours, a few at a time, once everybody is
    /// there.
    fn test(&mut self) {
        if !self.gathered || !std::mem::take(&mut self.unlooked) {
            return;
        }
        for trial in self.live.start(self.roster.view()) {
            let (mesh, finds) = (self.mesh.clone(), self.finds.clone());
            tokio::spawn(async move {
                let findings = trial.run(&mesh).await;
                // A closed channel means that the command is over.
                let _ = finds.send(Found::Tried(trial, findings)).await;
            });
        }
        for (agent, run) in self.live.inquire(self.roster.view(), self.clock.now()) {
            let (mesh, finds) = (self.mesh.clone(), self.finds.clone());
            tokio::spawn(async move {
                let named = ask_neighbours(&mesh, agent, run).await;
                let _ = finds.send(Found::Neighbours(agent, run, named)).await;
            });
        }
    }

    /// Asks every agent whose description is missing and who is not being asked.
    fn ask(&mut self) {
        for (agent, hashes) in self.inquiries.due(self.roster.undescribed(), self.clock.now()) {
            let (mesh, answers) = (self.mesh.clone(), self.answers.clone());
            tokio::spawn(async move {
                let description = match mesh.ask(agent, Question::Describe).await {
                    Ok(Answer::Description(description)) => Some(*description),
                    Ok(Answer::Roster { .. } | Answer::Nothing | Answer::LiveTest { .. }) | Err(_) => None,
                };
                // A closed channel means that the command is over.
                let _ = answers.send((agent, hashes, description)).await;
            });
        }
    }
}
