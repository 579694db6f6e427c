//! Who is there now: announcements, descriptions and silence become agents, kernels, machines and lanes.
//!
//! Pure: every call brings the time, as a duration since the reader's own start. [`Roster::view`] is computed
//! anew only when something changed; it is what a coordinator plans and schedules with.

mod loads;
mod naming;
mod rules;
mod runs;
mod salts;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use sha2::{Digest as _, Sha256};

pub use self::{
    rules::Rules,
    view::{Install, LoadRivals, Machine, Out, View},
};
use self::{
    runs::{Run, Runs},
    salts::Published,
};
use crate::{
    codec::{Message, encode},
    epoch::{EpochTrack, EpochWatch},
    evidence::{Evidence, SaltName},
    fuse::{Code, Fusion, Input, Member, PairFacts, fuse},
    id::{AgentId, Incarnation},
    message::{AgentState, Announcement, Description, EngineState, Inventory},
    uid::MachineClaim,
};

/// An agent that has been silent for this many of its own periods is gone: three lost announcements and a late
/// one are a death, one lost announcement is not (`reliability.md` §4).
const SILENT_PERIODS: f64 = 3.5;

/// Agents of one mesh (`security.md` §6); beyond it the newest are ignored.
pub const MAX_AGENTS: usize = 1024;

/// Agents of one machine (`security.md` §6): the newest beyond get no work.
pub const MAX_ON_ONE_MACHINE: usize = 64;

/// The hashes of an announcement: of the evidence bundle and of the inventory.
pub type Hashes = ([u8; 32], [u8; 32]);

/// The agents of a mesh as one reader knows them.
#[derive(Debug, Default)]
pub struct Roster {
    accept_declared: bool,
    entries: BTreeMap<AgentId, Entry>,
    /// Everybody with a direct connection, heard or not.
    connections: BTreeSet<AgentId>,
    epochs: EpochWatch,
    facts: BTreeMap<(AgentId, AgentId), PairFacts>,
    rules: Rules,
    view: Option<View>,
}

#[derive(Debug)]
struct Entry {
    announcement: Announcement,
    heard: Duration,
    first_heard: Duration,
    published: Published,
    inventory: Option<Arc<Inventory>>,
    /// The rule by which this coordinator may submit nothing there; empty: none.
    denied: String,
    described: Option<Hashes>,
    runs: Runs,
}

impl Roster {
    /// Starts with nobody. Declared evidence is believed only with `accept_declared`.
    #[must_use]
    pub fn new(accept_declared: bool) -> Self {
        Self { accept_declared, ..Self::default() }
    }

    /// Takes an announcement that the mesh has found to be genuine and newer than the last of its agent.
    ///
    /// Another incarnation is a restart, and nothing that the former one said or showed counts any more; or it is
    /// a second agent with the same key, and then neither gets work.
    pub fn announced(&mut self, agent: AgentId, announcement: Announcement, now: Duration) {
        if announcement.state == AgentState::Leaving {
            self.forget(agent);
            return;
        }
        let known = self.entries.contains_key(&agent);
        if !known && self.entries.len() >= MAX_AGENTS {
            return;
        }
        let sampled = now.saturating_sub(Duration::from_millis(u64::from(announcement.sampled_ms_ago)));
        let connected = self.connections.contains(&agent);
        let restarted = |entry: &&mut Entry| entry.announcement.incarnation != announcement.incarnation;
        if let Some(entry) = self.entries.get_mut(&agent).filter(restarted) {
            self.epochs.forget(agent);
            entry.turn_over(&announcement, now);
        }
        self.epochs.observe(agent, &announcement.core.epoch_ns, sampled);
        self.view = None;
        match self.entries.get_mut(&agent) {
            Some(entry) => {
                entry.heard = now;
                entry.announcement = announcement;
                entry.runs.spoke(connected);
            }
            None => {
                let mut runs = Runs::default();
                runs.spoke(connected);
                let entry = Entry {
                    heard: now,
                    first_heard: now,
                    published: Published::new(Evidence::from_core(&announcement.core), None),
                    inventory: None,
                    denied: String::new(),
                    described: None,
                    announcement,
                    runs,
                };
                self.entries.insert(agent, entry);
            }
        }
    }

    /// Takes what stands behind the hashes of an announcement, together with the hashes that were asked for.
    pub fn described(&mut self, agent: AgentId, hashes: Hashes, description: Description) {
        if let Some(entry) = self.entries.get_mut(&agent) {
            entry.published = Published::new(description.evidence, description.former);
            entry.inventory = Some(Arc::new(description.inventory));
            entry.denied = description.denied.to_string();
            entry.described = Some(hashes);
            self.view = None;
        }
    }

    /// The agents whose description is missing or no longer the announced one, with the hashes to ask for.
    #[must_use]
    pub fn undescribed(&self) -> Vec<(AgentId, Hashes)> {
        let wanted = self.entries.iter().filter_map(|(agent, entry)| {
            let hashes = (entry.announcement.bundle, entry.announcement.inventory);
            (entry.described != Some(hashes)).then_some((*agent, hashes))
        });
        wanted.collect()
    }

    /// Notes whether there is a direct connection: an agent with one is judged by that and not by silence.
    pub fn connected(&mut self, agent: AgentId, connected: bool) {
        let changed =
            if connected { self.connections.insert(agent) } else { self.connections.remove(&agent) };
        if changed {
            self.view = None;
        }
        if let Some(entry) = self.entries.get_mut(&agent).filter(|_| !connected) {
            entry.runs.unlinked();
        }
    }

    /// Takes an agent out.
    pub fn forget(&mut self, agent: AgentId) {
        if self.entries.remove(&agent).is_some() {
            self.epochs.forget(agent);
            self.view = None;
        }
    }

    /// Takes out who has been silent for too long, and says who that was.
    pub fn expire(&mut self, now: Duration) -> Vec<AgentId> {
        let silent: Vec<AgentId> =
            self.entries.keys().copied().filter(|agent| self.dies_at(agent) <= now).collect();
        for agent in &silent {
            self.forget(*agent);
        }
        for entry in self.entries.values_mut() {
            if entry.runs.expire(now) {
                self.view = None;
            }
        }
        silent
    }

    /// When the next agent expires, if nothing is heard of it.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let runs = self.entries.values().filter_map(|entry| entry.runs.next_deadline());
        self.entries.keys().map(|agent| self.dies_at(agent)).chain(runs).min()
    }

    /// Whether this agent is there.
    #[must_use]
    pub fn knows(&self, agent: AgentId) -> bool {
        self.entries.contains_key(&agent)
    }

    /// How many agents there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nobody is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether anything has changed since the last [`Roster::view`].
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.view.is_none()
    }

    /// The roster, grouped by its evidence.
    pub fn view(&mut self) -> &View {
        if self.view.is_none() {
            self.view = Some(self.group());
        }
        self.view.get_or_insert_with(View::default)
    }

    /// Takes what live tests found about pairs, in place of what they had found before.
    pub fn set_facts(&mut self, facts: BTreeMap<(AgentId, AgentId), PairFacts>) {
        self.facts = facts;
        self.view = None;
    }

    /// Takes the operator's rules, in place of earlier ones; says whether anything changed.
    pub fn set_rules(&mut self, rules: Rules) -> bool {
        let changed = self.rules != rules;
        if changed {
            self.rules = rules;
            self.view = None;
        }
        changed
    }

    /// The agents that are here with their labels, and their evidence once it has been described: what rules are
    /// resolved against. The evidence is the agent's own, before any rule.
    pub fn known(&self) -> impl Iterator<Item = (AgentId, &str, Option<&Evidence>)> {
        let salt = self.salt();
        self.entries.iter().map(move |(agent, entry)| {
            let described = entry.described.is_some().then(|| entry.published.nearest(salt));
            (*agent, &*entry.announcement.label, described)
        })
    }

    /// The agents that have been described: where each can be dialled, and the port of its install on its own host; 0
    /// where that is elsewhere. Decides nothing about sameness: it leads an address that a user wrote to an agent.
    pub fn installs_by_address(&self) -> impl Iterator<Item = (AgentId, &[SocketAddr], u16)> {
        self.entries.iter().filter_map(|(agent, entry)| {
            let port = entry.inventory.as_ref()?.port;
            Some((*agent, &*entry.announcement.addresses, port))
        })
    }

    /// The salt under which the identifiers are compared.
    fn salt(&self) -> SaltName {
        salts::common(self.entries.values().map(|entry| &entry.published))
    }

    fn group(&self) -> View {
        let salt = self.salt();
        let members = self.entries.iter().map(|(agent, entry)| Member {
            id: *agent,
            key: *agent,
            evidence: if self.believes(entry) {
                self.rules.applied(*agent, &entry.published.under(salt))
            } else {
                Arc::new(Evidence::empty(entry.announcement.core.os))
            },
            epoch: self.epochs.track(*agent),
            first_heard: entry.first_heard,
            last_heard: self.alive_at(agent, entry),
            flapping: false,
        });
        let runs = self.runs().map(|(agent, run)| Member {
            id: run.id(agent),
            key: agent,
            evidence: if self.accept_declared || !run.announcement.core.declared {
                self.rules.applied(run.id(agent), &run.published().under(salt))
            } else {
                Arc::new(Evidence::empty(run.announcement.core.os))
            },
            epoch: EpochTrack::unknown(),
            first_heard: run.first_heard,
            last_heard: run.heard,
            flapping: false,
        });
        let members = members.chain(runs).collect();
        let mut fusion = fuse(&Input { members, facts: self.facts.clone(), rules: self.rules.pairs.clone() });
        let mut installs: Vec<Install> = self
            .entries
            .iter()
            .filter_map(|(agent, entry)| self.install(*agent, entry, salt, &fusion))
            .collect();
        installs.extend(self.runs().filter_map(|(agent, run)| run_install(run.id(agent), run, &fusion)));
        installs.sort_by_key(|install| install.agent);
        for (agent, entry) in &self.entries {
            let rivals = entry.runs.rivals();
            if !rivals.is_empty() {
                fusion.warn(Code::ClonedAgentKey, rivals.iter().map(|run| run.id(*agent)).chain([*agent]));
            }
        }
        let crowded = self.crowded(&fusion);
        for install in &mut installs {
            if crowded.contains(&install.agent) && install.out != Some(Out::Cloned) {
                install.out = Some(Out::TooMany);
            }
        }
        if !crowded.is_empty() {
            fusion.warn(Code::TooManyAgents, crowded);
        }
        let unsalted = self.entries.iter().filter(|(_, entry)| entry.described.is_some());
        let unsalted: Vec<AgentId> =
            unsalted.filter(|(_, entry)| !entry.published.has(salt)).map(|(agent, _)| *agent).collect();
        if !unsalted.is_empty() {
            fusion.warn(Code::OtherIdSalt, unsalted);
        }
        let lanes = installs.iter().map(|install| (install.agent, &install.lane)).collect();
        let mut rivals = fusion.rivals(&lanes);
        for install in &mut installs {
            install.rivals = rivals.remove(&install.agent).unwrap_or_default();
        }
        let mut loads = loads::rivals(&installs, &fusion);
        for install in &mut installs {
            install.loads = loads.remove(&install.agent).unwrap_or_default();
        }
        let names = naming::name(&mut fusion, &self.claims());
        let machines = fusion.machines().iter().zip(names).map(|(machine, named)| Machine {
            id: machine.id,
            uid: named.uid,
            aliases: named.aliases,
            name: self.rules.name(&machine.agents).unwrap_or_else(|| self.label(machine.id.0)),
            agents: machine.agents.clone(),
        });
        View { machines: machines.collect(), installs, fusion: Some(fusion) }
    }

    /// The agents beyond the bound of their machine: those that were heard last, of two that were heard at once the one
    /// with the larger id.
    fn crowded(&self, fusion: &Fusion) -> BTreeSet<AgentId> {
        let since = |agent: &AgentId| self.entries.get(agent).map(|entry| entry.first_heard);
        let mut crowded = BTreeSet::new();
        for machine in fusion.machines().iter().filter(|machine| machine.agents.len() > MAX_ON_ONE_MACHINE) {
            let mut agents: Vec<_> = machine.agents.iter().map(|agent| (since(agent), *agent)).collect();
            agents.sort_unstable();
            crowded.extend(agents.into_iter().skip(MAX_ON_ONE_MACHINE).map(|(_, agent)| agent));
        }
        crowded
    }

    /// What everybody says of the machine that it is on, with the run that says it.
    fn claims(&self) -> BTreeMap<AgentId, (Incarnation, MachineClaim)> {
        let claim = |of: &Announcement| (of.incarnation, of.machine);
        let entries = self.entries.iter().map(|(agent, entry)| (*agent, claim(&entry.announcement)));
        entries.chain(self.runs().map(|(agent, run)| (run.id(agent), claim(&run.announcement)))).collect()
    }

    fn install(&self, agent: AgentId, entry: &Entry, salt: SaltName, fusion: &Fusion) -> Option<Install> {
        let place = fusion.place(agent)?;
        let evidence = self.rules.applied(agent, &entry.published.under(salt));
        Some(Install {
            agent,
            incarnation: entry.announcement.incarnation,
            engine: entry.announcement.engine,
            label: entry.announcement.label.to_string(),
            machine: place.machine,
            lane: loads::lane(place, &evidence, entry.inventory.as_deref()),
            anywhere: loads::anywhere(place, &evidence, entry.inventory.as_deref()),
            width: entry.announcement.width,
            inventory: entry.inventory.clone(),
            evidence,
            rivals: BTreeSet::new(),
            loads: LoadRivals::default(),
            locks: entry.announcement.locks.iter().copied().collect(),
            ill: entry.announcement.state == AgentState::Ill,
            out: self.out(&agent, entry),
        })
    }

    /// The runs of doubtful keys other than the one that spoke last.
    fn runs(&self) -> impl Iterator<Item = (AgentId, &Run)> {
        self.entries.iter().flat_map(|(agent, entry)| entry.runs.rivals().iter().map(|run| (*agent, run)))
    }

    fn out(&self, agent: &AgentId, entry: &Entry) -> Option<Out> {
        if !entry.runs.rivals().is_empty() {
            return Some(Out::Cloned);
        }
        match entry.announcement.state {
            // Whether an ill engine works again is found out when somebody has work.
            AgentState::Ready | AgentState::Ill => {}
            AgentState::Draining | AgentState::Leaving => return Some(Out::Draining),
        }
        if !self.believes(entry) {
            return Some(Out::Declared);
        }
        let Some(inventory) = &entry.inventory else { return Some(Out::NotDescribed) };
        if !self.connections.contains(agent) {
            return Some(Out::Unreachable);
        }
        match &inventory.engine {
            EngineState::Up if !entry.denied.is_empty() => Some(Out::Denied(entry.denied.clone())),
            EngineState::Up => inventory.permit.shut().map(|denial| Out::Shut(denial.to_string())),
            EngineState::Down(why) => Some(Out::Down(why.to_string())),
            EngineState::TooOld => Some(Out::TooOld(inventory.version.to_string())),
            EngineState::NotOllama(what) => Some(Out::NotOllama(what.to_string())),
        }
    }

    fn believes(&self, entry: &Entry) -> bool {
        self.accept_declared || !(entry.announcement.core.declared || entry.published.own().declared)
    }

    /// Until when the agent is known to have been alive: with a direct connection, until now, since the end of a
    /// process ends its connections within 100 ms (`libp2p.md` §0).
    fn alive_at(&self, agent: &AgentId, entry: &Entry) -> Duration {
        if self.connections.contains(agent) { Duration::MAX } else { entry.heard }
    }

    fn dies_at(&self, agent: &AgentId) -> Duration {
        match self.entries.get(agent) {
            Some(entry) if !self.connections.contains(agent) => {
                let period = Duration::from_millis(u64::from(entry.announcement.period_ms));
                entry.heard + period.mul_f64(SILENT_PERIODS)
            }
            Some(_) | None => Duration::MAX,
        }
    }

    fn label(&self, agent: AgentId) -> String {
        let announcement = match self.entries.get(&agent) {
            Some(entry) => Some(&entry.announcement),
            None => self.runs().find(|(key, run)| run.id(*key) == agent).map(|(_, run)| &run.announcement),
        };
        announcement.map_or_else(|| agent.short(), |announcement| announcement.label.to_string())
    }
}

impl Entry {
    /// Forgets what the former incarnation has shown, and remembers that it was there.
    fn turn_over(&mut self, announcement: &Announcement, now: Duration) {
        let before =
            Run { announcement: self.announcement.clone(), heard: self.heard, first_heard: self.first_heard };
        self.first_heard = self.runs.changed(before, announcement.incarnation).unwrap_or(now);
        self.published = Published::new(Evidence::from_core(&announcement.core), None);
        (self.inventory, self.described) = (None, None);
    }
}

/// How a run other than the one that spoke last shows: there, and without work.
fn run_install(id: AgentId, run: &Run, fusion: &Fusion) -> Option<Install> {
    let evidence = Arc::new(Evidence::from_core(&run.announcement.core));
    let place = fusion.place(id)?;
    Some(Install {
        agent: id,
        incarnation: run.announcement.incarnation,
        engine: run.announcement.engine,
        label: run.announcement.label.to_string(),
        machine: place.machine,
        lane: loads::lane(place, &evidence, None),
        anywhere: loads::anywhere(place, &evidence, None),
        width: run.announcement.width,
        inventory: None,
        evidence,
        rivals: BTreeSet::new(),
        loads: LoadRivals::default(),
        locks: run.announcement.locks.iter().copied().collect(),
        ill: false,
        out: Some(Out::Cloned),
    })
}

impl Description {
    /// The hashes under which it is announced.
    #[must_use]
    pub fn hashes(&self) -> Hashes {
        let evidence = bytes(&self.evidence);
        let former = self.former.as_deref().map(bytes).unwrap_or_default();
        let bundle = Sha256::new().chain_update(evidence).chain_update(former).finalize().into();
        (bundle, Sha256::digest(bytes(&self.inventory)).into())
    }
}

/// What is hashed of a message. What cannot be encoded cannot be sent either; its hash only has to change with it.
fn bytes<M: Message>(message: &M) -> Vec<u8> {
    encode(message).unwrap_or_else(|error| error.to_string().into_bytes())
}
