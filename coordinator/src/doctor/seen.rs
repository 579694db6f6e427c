//! The mesh as this command meets it: gathered once, and then only read by the checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{task::JoinSet, time::timeout};
use tropa_agent::{exposure::open_to_others, ollama::Ollama, runtime_dir::Present};
use tropa_proto::{
    id::AgentId,
    mesh::{DialFailure, Mesh},
    message::EngineState,
    roster::View,
};

use crate::{
    args::resolve,
    assemble::{Assembly, passing_key},
    clock::Clock,
    exit::{Exit, Failed, OrExit as _},
    live::ask_clock,
    machines::Report,
    members::Members,
    settings::{Chosen, JobDefaults, Settings},
    speeds::Speeds,
};

/// Agents whose clock is asked for at once; the others are asked as these answer.
const CLOCKS: usize = 32;

/// How long agents may take to say which program they are: it is the first thing that they say.
const SAID_WITHIN: Duration = Duration::from_secs(1);

/// Between two looks whether all have.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What is there.
#[derive(Debug)]
pub(super) struct Seen {
    /// The roster.
    pub(super) view: View,
    /// The same as `tropa machines` tells it, with its warnings and the rules.
    pub(super) machines: Report,
    /// The agent is one of this command, since no other answered.
    pub(super) own: bool,
    /// The command has a mesh secret.
    pub(super) has_secret: bool,
    /// Agents were looked for by multicast.
    pub(super) multicast: bool,
    /// Each address that `--peer` names, by what was written.
    pub(super) named: BTreeMap<SocketAddr, String>,
    /// The addresses that could not be reached, and why.
    pub(super) failures: BTreeMap<SocketAddr, DialFailure>,
    /// Where somebody is at the other end.
    pub(super) linked: BTreeSet<IpAddr>,
    /// The agents that say that they run on this machine.
    pub(super) present: Vec<Present>,
    /// Which program each agent is.
    pub(super) programs: BTreeMap<AgentId, String>,
    /// How far the clock of each agent is ahead of this machine's, in nanoseconds; who does not tell is not there.
    pub(super) clocks: BTreeMap<AgentId, i128>,
    /// The address and the version of the Ollama of the settings, where it answers and no agent is beside it.
    pub(super) beside: Option<(String, String)>,
    /// The ports of the Ollamas of this machine, each with how many addresses that others may reach accept connections.
    pub(super) exposed: BTreeMap<u16, usize>,
    /// What the settings say of jobs.
    pub(super) job: JobDefaults,
    /// What became of the file of learned speeds, where it could not be read.
    pub(super) damaged_speeds: Option<String>,
}

impl Seen {
    /// Joins the mesh, waits for whoever should be there, asks, and leaves.
    ///
    /// # Errors
    /// As [`Assembly::look`], and where the address of an agent is none.
    pub(super) async fn look(settings: &Settings, chosen: &Chosen, clock: Clock) -> Result<Self, Failed> {
        let mut named = BTreeMap::new();
        for peer in &settings.peers {
            let addresses = resolve(peer).await.or_exit(Exit::Usage)?;
            named.extend(addresses.into_iter().map(|address| (address, peer.clone())));
        }
        let present = settings.runtime.list();
        let mut assembly = Assembly::look(settings, passing_key()?, clock).await?;
        assembly.members.settle(settings.wait).await;
        let own = assembly.own.is_some();
        let mesh = assembly.members.mesh().clone();
        let rules = assembly.members.rules();
        let failures = assembly.members.failures().clone();
        let (view, tests) = assembly.members.view_and_tests();
        let (view, mut machines) = (view.clone(), Report::with(view, tests, rules));
        let (speeds, damaged_speeds) = Speeds::open(&settings.state);
        machines.add_widths(&view, &speeds);
        let linked = mesh.links().await.into_iter().map(|(_, address)| address).collect();
        let clocks = clocks(&mesh, &view).await;
        let programs = programs(&mut assembly.members, &view).await;
        drop(mesh);
        assembly.finish().await;
        let beside = if own { None } else { beside(settings, &present).await };
        let answers = beside.is_some() || (own && machines.at_once > 0);
        let exposed = exposed(settings, &present, answers).await;
        Ok(Self {
            view,
            machines,
            own,
            has_secret: settings.secret.is_some(),
            multicast: settings.mdns,
            named,
            failures,
            linked,
            present,
            programs,
            clocks,
            beside,
            exposed,
            job: chosen.job.clone(),
            damaged_speeds,
        })
    }

    /// The name of an agent for people.
    pub(super) fn label(&self, agent: AgentId) -> String {
        self.view.install(agent).map_or_else(|| agent.short(), |install| install.label.clone())
    }
}

/// Which program each agent is: peers say it by themselves as soon as they are connected.
async fn programs(members: &mut Members, view: &View) -> BTreeMap<AgentId, String> {
    let mut programs = BTreeMap::new();
    let all = async {
        loop {
            programs = members.mesh().programs().await;
            if view.installs.iter().all(|install| programs.contains_key(&install.agent)) {
                return;
            }
            // A look now and then is the end of the time.
            let _ = timeout(LOOK_EVERY, members.next()).await;
        }
    };
    // Who has not said it by then is left out.
    let _ = timeout(SAID_WITHIN, all).await;
    programs
}

async fn clocks(mesh: &Mesh, view: &View) -> BTreeMap<AgentId, i128> {
    let mut clocks = BTreeMap::new();
    let mut asked = JoinSet::new();
    for install in &view.installs {
        if asked.len() >= CLOCKS {
            clocks.extend(asked.join_next().await.and_then(Result::ok).flatten());
        }
        let (mesh, agent, run) = (mesh.clone(), install.agent, install.incarnation);
        asked.spawn(async move { ask_clock(&mesh, agent, run).await.map(|offset| (agent, offset)) });
    }
    while let Some(answered) = asked.join_next().await {
        // A panic of the task has been printed.
        clocks.extend(answered.ok().flatten());
    }
    clocks
}

/// The Ollama of the settings, where it answers on this machine and none of the agents here is beside it.
async fn beside(settings: &Settings, present: &[Present]) -> Option<(String, String)> {
    let (_, port) = settings.ollama.host_and_port();
    if !settings.ollama.is_loopback() || present.iter().any(|present| present.port == port) {
        return None;
    }
    let ollama = Ollama::new(settings.ollama.clone()).ok()?;
    let (engine, version) = ollama.engine().await;
    (engine == EngineState::Up).then(|| (settings.ollama.to_string(), version))
}

/// Tries the port of each Ollama of this machine on the addresses that others may reach.
async fn exposed(settings: &Settings, present: &[Present], with_named: bool) -> BTreeMap<u16, usize> {
    let mut ports: BTreeSet<u16> = present.iter().map(|present| present.port).collect();
    if with_named && settings.ollama.is_loopback() {
        ports.insert(settings.ollama.host_and_port().1);
    }
    // An install on another host has none here.
    ports.remove(&0);
    let mut exposed = BTreeMap::new();
    for port in ports {
        exposed.insert(port, open_to_others(port).await.len());
    }
    exposed
}
