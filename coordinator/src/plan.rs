//! What will run where and why, from the roster and the job's models; pure, and it runs nothing.
//!
//! A plan says which installs work at the same time and which add nothing, with the reason and the remedy. It is
//! the same code that the job uses to choose its models and to tell the scheduler who is whose rival, so the plan
//! cannot promise what the job does not do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde::Serialize;
use tropa_proto::{
    failure::Class,
    id::{AgentId, MachineId, hex},
    message::{EngineState, Fingerprint, Model},
    roster::{Install, Out, View},
};

use crate::{
    locks,
    machines::WarningRow,
    schedule::{self, ModelIndex},
};

/// A model as the job uses it: one name, one fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The full name with its tag.
    pub name: String,
    /// What makes it the same everywhere.
    pub fingerprint: Fingerprint,
    /// The trained context in tokens; 0 where no install says.
    pub context: u32,
}

/// What a job asks of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To chat or to complete.
    Completion,
    /// To embed.
    Embedding,
}

/// Says why no model can be chosen, and what there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// There is no install that works.
    #[error("no install answers")]
    NoInstall,
    /// The installs have no model that can do it.
    #[error("no install has a model that can {0}; get one with: ollama pull NAME")]
    NoModels(&'static str),
    /// There are several and none was named.
    #[error("which model? --model takes one of: {0}")]
    Several(String),
    /// Nobody has the one that was named.
    #[error(
        "model.missing: no install has the model {name}; take one of {there}, or get it: ollama pull {name}"
    )]
    Missing {
        /// What was asked for.
        name: String,
        /// What there is.
        there: String,
    },
    /// It is there and cannot do it.
    #[error("the model {name} cannot {what}")]
    Unable {
        /// What was asked for.
        name: String,
        /// What it cannot do.
        what: &'static str,
    },
    /// It runs in Ollama's cloud.
    #[error("the model {0} runs in Ollama's cloud: its prompts would leave the machine and no lane is used")]
    Remote(String),
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The version of this object.
    pub schema: &'static str,
    /// Items of the job.
    pub items: u64,
    /// The models, by name, with their fingerprints.
    pub models: BTreeMap<String, String>,
    /// The largest context in tokens that a request asks for; 0 where that is not known yet.
    pub num_ctx: u32,
    /// The contexts that requests ask for, rising: one unless what is asked is of very unequal length.
    pub contexts: Vec<u32>,
    /// Installs that answer, have a model of the job and can take part.
    pub installs: usize,
    /// Machines among them.
    pub machines: usize,
    /// Chunks that run at the same time.
    pub at_once: usize,
    /// Every install of the roster, in the order of its agent's id.
    pub rows: Vec<Row>,
    /// Devices that no common lock keeps from the work of another coordinator.
    pub warnings: Vec<WarningRow>,
    /// One sentence: how it runs and what would make it faster.
    pub summary: String,
}

/// One install in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its agent, in its short form.
    pub agent: String,
    /// The agent's name for people.
    pub label: String,
    /// Its machine, in its short form.
    pub machine: String,
    /// The devices that it occupies.
    pub lane: String,
    /// What it does in this job.
    pub part: Part,
    /// Why.
    pub why: String,
    /// What would change that; empty where nothing need.
    pub remedy: String,
}

/// What an install does in a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// It works, together with the others that do.
    Works,
    /// It stands in for an install with which it shares a device, and adds nothing.
    StandsIn,
    /// It gets no work.
    Out,
}

/// Chooses the model that a job uses where its items name none: the one that is loaded on most machines, else the
/// only one.
///
/// # Errors
/// Says which models there are when that does not decide.
pub fn default_model(view: &View, need: Need) -> Result<String, PinError> {
    if !view.installs.iter().any(|install| install.out.is_none()) {
        return Err(PinError::NoInstall);
    }
    let mut loaded: BTreeMap<&str, BTreeSet<MachineId>> = BTreeMap::new();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for (install, model) in models(view).filter(|(_, model)| able(model, need) && !model.remote) {
        names.insert(&model.name);
        if model.loaded.is_some() {
            loaded.entry(&model.name).or_default().insert(install.machine);
        }
    }
    // Most machines; then the first name.
    let most = loaded.iter().max_by_key(|(name, machines)| (machines.len(), std::cmp::Reverse(**name)));
    match (most, names.len()) {
        (Some((name, _)), _) => Ok((*name).to_owned()),
        (None, 0) => Err(PinError::NoModels(need.verb())),
        (None, 1) => Ok(names.into_iter().collect()),
        (None, _) => Err(PinError::Several(names.into_iter().collect::<Vec<_>>().join(", "))),
    }
}

/// Pins a model: of the fingerprints that go by this name the one that most machines have; then the smallest.
///
/// # Errors
/// When nobody has it, it cannot do what the job needs, or it runs in the cloud.
pub fn pin(view: &View, name: &str, need: Need) -> Result<Pinned, PinError> {
    let name = full_name(name);
    if is_cloud_name(&name) {
        return Err(PinError::Remote(name));
    }
    if !view.installs.iter().any(|install| install.out.is_none()) {
        return Err(PinError::NoInstall);
    }
    let named: Vec<_> = models(view).filter(|(_, model)| model.name.eq_ignore_ascii_case(&name)).collect();
    let there = || {
        let names: BTreeSet<&str> = models(view).map(|(_, model)| &*model.name).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    };
    if named.is_empty() {
        return Err(PinError::Missing { there: there(), name });
    }
    if named.iter().all(|(_, model)| model.remote) {
        return Err(PinError::Remote(name));
    }
    let mut votes: BTreeMap<Fingerprint, (BTreeSet<MachineId>, u32)> = BTreeMap::new();
    for (install, model) in named.iter().filter(|(_, model)| able_if_named(model, need) && !model.remote) {
        let vote = votes.entry(model.fingerprint).or_default();
        vote.0.insert(install.machine);
        vote.1 = vote.1.max(model.context);
    }
    let chosen =
        votes.iter().max_by_key(|(print, (machines, _))| (machines.len(), std::cmp::Reverse(**print)));
    let Some((fingerprint, (_, context))) = chosen else {
        return Err(PinError::Unable { name, what: need.verb() });
    };
    Ok(Pinned { name, fingerprint: *fingerprint, context: *context })
}

/// Tells the scheduler what the roster says: who can run which models of the job, and who is whose rival.
#[must_use]
pub fn installs(view: &View, models: &[Pinned]) -> Vec<schedule::Install> {
    let able = view.installs.iter().filter(|install| install.out.is_none());
    able.map(|install| {
        let having = |loaded: bool| {
            let held = (0..).zip(models).filter(|(_, pinned)| {
                find(install, pinned).is_some_and(|model| !loaded || model.loaded.is_some())
            });
            held.map(|(index, _)| ModelIndex(index)).collect()
        };
        schedule::Install {
            agent: install.agent,
            incarnation: install.incarnation,
            machine: install.machine,
            width: usize::from(install.width),
            models: having(false),
            warm: having(true),
            rivals: install.rivals.clone(),
            unguarded: unguarded(view, install),
        }
    })
    .collect()
}

/// The rivals that no kernel lock keeps apart from it: only this coordinator does.
fn unguarded(view: &View, install: &Install) -> BTreeSet<AgentId> {
    install.rivals.iter().copied().filter(|rival| !view.share_a_lock(install.agent, *rival)).collect()
}

/// Plans a job of so many items with these models, whose requests ask for these contexts, rising.
#[must_use]
pub fn plan(view: &View, items: u64, models: &[Pinned], contexts: &[u32]) -> Plan {
    let mut usable = installs(view, models);
    usable.retain(|install| models.is_empty() || !install.models.is_empty());
    let at_work = at_work(&usable);
    let rows: Vec<Row> = view.installs.iter().map(|install| row(view, install, models, &at_work)).collect();
    let machines: BTreeSet<MachineId> = usable.iter().map(|install| install.machine).collect();
    let at_once = usable.iter().filter(|i| at_work.contains(&i.agent)).map(|i| i.width.max(1)).sum();
    Plan {
        schema: "tropa.plan/1",
        items,
        models: models.iter().map(|model| (model.name.clone(), hex(&model.fingerprint))).collect(),
        num_ctx: contexts.last().copied().unwrap_or_default(),
        contexts: contexts.to_vec(),
        installs: usable.len(),
        machines: machines.len(),
        at_once,
        summary: summary(usable.len(), machines.len(), at_once, &rows),
        rows,
        warnings: locks::splits(view),
    }
}

/// The installs that work at the same time when all have work: in the scheduler's order, each that is no rival of
/// one before it.
#[must_use]
pub fn at_work(installs: &[schedule::Install]) -> BTreeSet<AgentId> {
    let mut order: Vec<_> = installs.iter().collect();
    order.sort_by_key(|install| (install.warm.is_empty(), install.agent));
    let mut chosen = BTreeSet::new();
    for install in order {
        if install.rivals.is_disjoint(&chosen) {
            chosen.insert(install.agent);
        }
    }
    chosen
}

/// A name as Ollama completes it: `llama3.2` means `llama3.2:latest`.
#[must_use]
pub fn full_name(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

impl Plan {
    /// Writes the plan for people, as `conventions.md` §4 shows.
    #[must_use]
    pub fn text(&self, why: bool) -> String {
        let mut text = String::new();
        let mut table = crate::table::Table::new(["INSTALL", "MACHINE", "LANE", "PART", "WHY"]);
        for row in &self.rows {
            let part = match row.part {
                Part::Works => "works",
                Part::StandsIn => "stands in",
                Part::Out => "out",
            };
            table.row([&format!("{} ({})", row.label, row.agent), &row.machine, &row.lane, part, &row.why]);
        }
        let _ = writeln!(text, "{table}");
        if why {
            for row in self.rows.iter().filter(|row| !row.remedy.is_empty()) {
                let label = crate::terminal::escaped(&row.label);
                let _ = writeln!(text, "{label}: {}", crate::terminal::escaped(&row.remedy));
            }
        }
        let contexts: Vec<String> = self.contexts.iter().map(u32::to_string).collect();
        let num_ctx =
            if contexts.is_empty() { String::new() } else { format!(", num_ctx {}", contexts.join(", ")) };
        for (name, fingerprint) in &self.models {
            let _ = writeln!(text, "model {name} ({}){num_ctx}", &fingerprint[..12]);
        }
        for warning in &self.warnings {
            let said = crate::terminal::escaped(&warning.text);
            let _ = writeln!(text, "warn    {}    {said}\n        {}", warning.code, warning.fix);
        }
        let _ = writeln!(text, "{} items. {}", self.items, self.summary);
        text
    }
}

impl Need {
    fn verb(self) -> &'static str {
        match self {
            Self::Completion => "chat",
            Self::Embedding => "embed",
        }
    }
}

impl Part {
    fn of(install: &Install, has_model: bool, at_work: &BTreeSet<AgentId>) -> Self {
        if install.out.is_some() || !has_model {
            Self::Out
        } else if at_work.contains(&install.agent) {
            Self::Works
        } else {
            Self::StandsIn
        }
    }
}

fn row(view: &View, install: &Install, models: &[Pinned], at_work: &BTreeSet<AgentId>) -> Row {
    let missing: Vec<&Pinned> = models.iter().filter(|pinned| find(install, pinned).is_none()).collect();
    let has_model = models.is_empty() || missing.len() < models.len();
    let part = Part::of(install, has_model, at_work);
    let (why, remedy) = match (&install.out, part) {
        (Some(out), _) => reason_out(out, &install.label),
        (None, Part::Out) => reason_no_model(install, &missing),
        (None, Part::Works) => ("own hardware".to_owned(), String::new()),
        (None, Part::StandsIn) => reason_shared(view, install, at_work),
    };
    Row {
        agent: install.agent.short(),
        label: install.label.clone(),
        machine: install.machine.short(),
        lane: install.lane.to_string(),
        part,
        why,
        remedy,
    }
}

/// Why an install gets no work, and what would change that.
#[must_use]
pub fn reason_out(out: &Out, label: &str) -> (String, String) {
    match out {
        Out::NotDescribed => {
            ("its agent has not yet said what it has".to_owned(), "wait a moment".to_owned())
        }
        Out::Unreachable => (
            "there is no connection to its agent".to_owned(),
            format!("is tropa-agent still running on {label}, and does the network reach it?"),
        ),
        Out::Cloned => (
            "two agents run with its key: its state directory was copied".to_owned(),
            format!(
                "wait a minute: the younger takes a new key; if it stays, remove the copied state on {label}"
            ),
        ),
        Out::TooMany => (
            "its machine has more agents than the 64 that one may have".to_owned(),
            format!("stop agents on {label} that are not needed"),
        ),
        Out::Draining => ("its agent is leaving".to_owned(), format!("start the agent on {label} again")),
        Out::Declared => (
            "its hardware is declared, not read".to_owned(),
            "in a testbed, pass --allow-declared; elsewhere start its agent without --evidence-root"
                .to_owned(),
        ),
        Out::Down(why) => {
            (format!("its Ollama does not answer: {why}"), format!("start Ollama on {label}: ollama serve"))
        }
        Out::TooOld(version) => (
            format!("its Ollama {version} is older than 0.12.6 and cuts prompts silently"),
            format!("update Ollama on {label}"),
        ),
        Out::NotOllama(what) => (
            format!("what answers there is not Ollama: {what}"),
            format!("give the agent on {label} the right --ollama"),
        ),
    }
}

fn reason_no_model(install: &Install, missing: &[&Pinned]) -> (String, String) {
    let Some(pinned) = missing.first() else { return (Class::NoModel.to_string(), String::new()) };
    let same_name = install.inventory.iter().flat_map(|inventory| inventory.models.iter());
    let differs = same_name.into_iter().find(|model| model.name.eq_ignore_ascii_case(&pinned.name));
    let remedy = format!("on {}: ollama pull {}", install.label, pinned.name);
    match differs {
        Some(other) => (
            format!(
                "model.differs: {} is {} here, the job pins {}",
                pinned.name,
                &hex(&other.fingerprint)[..6],
                &hex(&pinned.fingerprint)[..6]
            ),
            remedy,
        ),
        None => (format!("model.missing: {}", pinned.name), remedy),
    }
}

fn reason_shared(view: &View, install: &Install, at_work: &BTreeSet<AgentId>) -> (String, String) {
    let Some(holder) = install.rivals.intersection(at_work).next() else {
        return ("shares a device".to_owned(), String::new());
    };
    let name = view
        .installs
        .iter()
        .find(|other| other.agent == *holder)
        .map_or_else(String::new, |i| i.label.clone());
    (
        format!(
            "adds nothing beside {name} ({}): {}",
            holder.short(),
            view.why_together(install.agent, *holder)
        ),
        "an agent on another machine would make the job faster".to_owned(),
    )
}

fn summary(installs: usize, machines: usize, at_once: usize, rows: &[Row]) -> String {
    let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    let head = format!("{}, {}", plural(installs, "install"), plural(machines, "machine"));
    if at_once == 0 {
        return format!("{head}: nothing can run this job.");
    }
    let how = format!("{} at a time", plural(at_once, "chunk"));
    let stand_ins = rows.iter().filter(|row| row.part == Part::StandsIn).count();
    if stand_ins == 0 {
        return format!("{head}: {how}.");
    }
    let second = rows.iter().find(|row| row.part == Part::StandsIn).map_or("", |row| row.why.as_str());
    let reason = second.split_once(": ").map_or(second, |(_, reason)| reason);
    format!(
        "{head} ({reason}): {how}. {} nothing; an agent on another machine would.",
        if stand_ins == 1 { "One install adds".to_owned() } else { format!("{stand_ins} installs add") }
    )
}

fn models(view: &View) -> impl Iterator<Item = (&Install, &Model)> {
    let able = view.installs.iter().filter(|install| install.out.is_none());
    able.flat_map(|install| {
        let inventory = install.inventory.iter().filter(|inventory| inventory.engine == EngineState::Up);
        inventory.flat_map(|inventory| inventory.models.iter()).map(move |model| (install, model))
    })
}

/// The install's own entry of a pinned model. The name must be the same as well: it stands in the body, whose bytes
/// are sent unchanged.
fn find<'a>(install: &'a Install, pinned: &Pinned) -> Option<&'a Model> {
    let mut models = install.inventory.as_ref()?.models.iter();
    models.find(|model| {
        !model.remote
            && model.fingerprint == pinned.fingerprint
            && model.name.eq_ignore_ascii_case(&pinned.name)
    })
}

/// Any model that writes also embeds where a user asks it to, and nobody gets its vectors unasked.
fn able_if_named(model: &Model, need: Need) -> bool {
    able(model, need) || (need == Need::Embedding && model.completion)
}

fn able(model: &Model, need: Need) -> bool {
    match need {
        Need::Completion => model.completion,
        Need::Embedding => model.embedding,
    }
}

/// From 0.18.0 such names run remotely without being installed (`ollama-api.md` §5).
fn is_cloud_name(name: &str) -> bool {
    let tag = name.rsplit(':').next().unwrap_or(name).to_ascii_lowercase();
    tag == "cloud" || tag.ends_with("-cloud")
}
