//! `tropa machines`: which installs are here, which of them are the same hardware, and why.
//!
//! [`Report`] is what `--json` prints; `machines/text.rs` writes the same for people, and `machines/sentence.rs` says
//! it in one sentence.

pub(crate) mod engines;
mod scores;
mod sentence;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod widths;

use std::collections::BTreeSet;

use serde::Serialize;
use tropa_proto::{
    evidence::{Attribution, Evidence, Hypervisor},
    fuse::{Fusion, Kind, RULES_VERSION, Why},
    id::AgentId,
    message::EngineState,
    roster::{Install, Machine, View},
    uid::MachineUid,
};

use crate::{
    live::{self, LiveTests},
    locks,
    plan::{at_work, installs, permitted, reason_out},
    rules::RulesReport,
};

pub use scores::{ScoreRow, ScoreTable};
pub(crate) use sentence::machines as counted;

/// Pairs that a report explains, at most: with more agents the table stays readable and `--json` stays small. Same
/// hardware comes first, then unknown, then distinct; each kind has a quarter for itself.
const MAX_PAIRS: usize = 200;

/// The object that `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of this object.
    pub schema: &'static str,
    /// The version of the rules of identity and of every score in them.
    pub rules_version: u16,
    /// How many installs there are.
    pub installs: usize,
    /// The machines, in the order of their ids.
    pub machines: Vec<MachineRow>,
    /// Installs that may work at the same time.
    pub at_once: usize,
    /// What is known of pairs of agents, the most informative first.
    pub relations: Vec<RelationRow>,
    /// Pairs that are not among them.
    pub relations_left_out: usize,
    /// What each line of evidence is worth, by which the `score` of a relation can be checked; `null` without `--why`.
    pub scores: Option<ScoreTable>,
    /// What the evidence warns of, and devices that no common lock keeps.
    pub warnings: Vec<WarningRow>,
    /// The operator's rules and how they fare; `null` where there are none.
    pub rules: Option<RulesReport>,
    /// What it comes to, in a sentence or two.
    pub summary: String,
}

/// One machine.
#[derive(Clone, Debug, Serialize)]
pub struct MachineRow {
    /// Its id, in its short form: of its uid, or where it has none, of its agent with the smallest id.
    pub id: String,
    /// Its lasting name, kept by its agents; `null` where another machine claims it with more right.
    pub uid: Option<String>,
    /// Names that forward to this machine.
    pub aliases: Vec<String>,
    /// Their short forms: ids that plans and results of earlier may show.
    pub former_ids: Vec<String>,
    /// Its name for people.
    pub name: String,
    /// Kernels on it.
    pub kernels: usize,
    /// Logical processors of the host; 0 where it is not known.
    pub cpus: u16,
    /// Physical cores of the host; 0 where it is not known.
    pub cores: u16,
    /// Installs on GPUs that may be busy on it at once, since they share its processors; `null` where none works on one.
    pub gpu_lanes: Option<usize>,
    /// Bytes of memory of the host; 0 where it is not known.
    pub memory: u64,
    /// Installs that may work on it at the same time.
    pub at_once: usize,
    /// Why it is one machine and not another, in a few words.
    pub why: String,
    /// Its hardware was declared by an operator and not read.
    pub declared: bool,
    /// Its installs.
    pub agents: Vec<AgentRow>,
}

/// One install.
#[derive(Clone, Debug, Serialize)]
pub struct AgentRow {
    /// Its agent, in its short form.
    pub id: String,
    /// The agent's name for people.
    pub label: String,
    /// The devices that it occupies while it works.
    pub lane: String,
    /// How it is known which devices those are.
    pub attribution: &'static str,
    /// Chunks that it may work on at once.
    pub width: u16,
    /// `declared`, `measured` by a job of this user, or `not measured` yet.
    pub width_from: &'static str,
    /// `until Ollama is restarted` where it was measured: what it holds for; else empty.
    pub width_until: &'static str,
    /// Ollama's version; empty where it does not answer.
    pub version: String,
    /// Another number is another process of Ollama; 0: its agent has seen none.
    pub process: u32,
    /// Its models; a star marks those that are loaded.
    pub models: Vec<String>,
    /// Its GPUs, by name.
    pub gpus: Vec<String>,
    /// What its policy permits, in a few words each; empty: everything.
    pub permits: Vec<String>,
    /// Why it gets no work; empty where it does.
    pub out: String,
    /// What would change that.
    pub remedy: String,
    /// Signals that could not be read, with the reason.
    pub unreadable: Vec<String>,
}

/// What two agents are to each other.
#[derive(Clone, Debug, Serialize)]
pub struct RelationRow {
    /// The two agents, in their short form.
    pub agents: [String; 2],
    /// Their names for people.
    pub labels: [String; 2],
    /// `same kernel`, `same machine`, `unknown` or `distinct`.
    pub relation: String,
    /// `proof`, `operator`, `high`, `medium` or `low`.
    pub confidence: String,
    /// The sum of the scored lines in log10 odds, where it came to scoring.
    pub score: Option<f64>,
    /// Every line that counted, with its number where it has one.
    pub reasons: Vec<String>,
    /// What could not be read and might have counted.
    pub unreadable: Vec<String>,
    /// The live tests of the pair, or why there are none.
    pub live_tests: Vec<String>,
}

/// A warning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WarningRow {
    /// Its stable code.
    pub code: &'static str,
    /// The agents that it concerns, by label.
    pub agents: Vec<String>,
    /// What is the matter.
    pub text: String,
    /// What to do.
    pub fix: &'static str,
    /// It is information only.
    pub information: bool,
}

impl Report {
    /// Reads a report off the roster.
    #[must_use]
    pub fn of(view: &View) -> Self {
        Self::with(view, &LiveTests::default(), None)
    }

    /// Reads a report off the roster, with what live tests found and how the operator's rules fare.
    #[must_use]
    pub fn with(view: &View, live_tests: &LiveTests, rules: Option<RulesReport>) -> Self {
        let working = at_work(&installs(view, &[]));
        let machines: Vec<MachineRow> =
            view.machines.iter().map(|machine| machine_row(view, machine, &working)).collect();
        let fusion = view.fusion.as_ref();
        let (relations, pairs) =
            fusion.map_or_else(Default::default, |fusion| relations(view, fusion, live_tests));
        Self {
            schema: "tropa.machines/1",
            rules_version: RULES_VERSION,
            installs: view.installs.len(),
            at_once: working.len(),
            relations_left_out: pairs - relations.len(),
            relations,
            scores: None,
            warnings: fusion.map_or_else(Vec::new, |fusion| warnings(view, fusion)),
            rules,
            summary: sentence::of(view, &working),
            machines,
        }
    }

    /// Adds the table by which relations were scored.
    pub fn add_scores(&mut self) {
        self.scores = Some(ScoreTable::now());
    }
}

/// Tenths of log10 odds as they are printed.
fn odds(tenths: i32) -> f64 {
    f64::from(tenths) / 10.0
}

fn machine_row(view: &View, machine: &Machine, working: &BTreeSet<AgentId>) -> MachineRow {
    let members: Vec<&Install> = machine.agents.iter().filter_map(|agent| view.install(*agent)).collect();
    let described = view
        .fusion
        .as_ref()
        .and_then(|fusion| fusion.machines().iter().find(|described| described.id == machine.id));
    MachineRow {
        id: machine.shown().to_string(),
        uid: machine.uid.map(|uid| uid.to_string()),
        aliases: machine.aliases.iter().map(ToString::to_string).collect(),
        former_ids: machine.aliases.iter().map(MachineUid::short).collect(),
        name: machine.name.clone(),
        kernels: described.map_or(1, |described| described.kernels.len()),
        cpus: described.map_or(0, |described| described.host_cpus),
        cores: described.map_or(0, |described| described.physical_cores),
        gpu_lanes: members.iter().find_map(|install| view.gpu_lanes(install)),
        memory: described.map_or(0, |described| described.memory),
        at_once: members.iter().filter(|install| working.contains(&install.agent)).count(),
        why: why_one(view, machine, working),
        declared: members.iter().any(|install| install.evidence.declared),
        agents: members.into_iter().map(agent_row).collect(),
    }
}

/// Why this is one machine, or why it is not another one; of a machine that has no work, what it may be one with.
fn why_one(view: &View, machine: &Machine, working: &BTreeSet<AgentId>) -> String {
    let Some(fusion) = &view.fusion else { return String::new() };
    if let [first, second, ..] = machine.agents.as_slice() {
        return view.why_together(*first, *second);
    }
    let Some(me) = machine.agents.first() else { return String::new() };
    let others = view.installs.iter().filter(|other| other.agent != *me);
    let works = working.contains(me);
    let mut nearest: Option<((bool, bool), &Install)> = None;
    for other in others {
        let Some(relation) = fusion.relation(*me, other.agent) else { continue };
        // Unknown costs capacity, but only who has no work pays for it, and to who has.
        let order = ((relation.kind == Kind::Distinct) != works, !working.contains(&other.agent));
        if nearest.is_none_or(|(before, _)| order < before) {
            nearest = Some((order, other));
        }
    }
    match nearest {
        None => "the only agent".to_owned(),
        Some((_, other)) if fusion.relation(*me, other.agent).is_some_and(|r| r.kind == Kind::Distinct) => {
            view.why_together(*me, other.agent)
        }
        Some((_, other)) => {
            format!("not known to be apart from {}: counted as one machine with it", other.label)
        }
    }
}

fn agent_row(install: &Install) -> AgentRow {
    let (out, remedy) =
        install.out.as_ref().map_or_else(Default::default, |out| reason_out(out, &install.label));
    let inventory = install.inventory.as_deref();
    let models = inventory.into_iter().flat_map(|inventory| inventory.models.iter());
    AgentRow {
        id: install.agent.short(),
        label: install.label.clone(),
        lane: install.lane.to_string(),
        attribution: attribution(&install.evidence),
        width: install.width.max(1),
        width_from: if install.width == 0 { "not measured" } else { "declared" },
        width_until: "",
        version: inventory
            .filter(|inventory| inventory.engine == EngineState::Up)
            .map_or_else(String::new, |inventory| inventory.version.to_string()),
        process: install.engine.0,
        models: models
            .map(|model| format!("{}{}", &*model.name, if model.loaded.is_some() { "*" } else { "" }))
            .collect(),
        permits: inventory.map_or_else(Vec::new, |inventory| permitted(&inventory.permit)),
        gpus: install.evidence.gpus.iter().map(|gpu| gpu.name.to_string()).collect(),
        out,
        remedy,
        unreadable: unreadable(&install.evidence),
    }
}

fn attribution(evidence: &Evidence) -> &'static str {
    match evidence.lane.method {
        Attribution::Operator => "the operator said so",
        Attribution::Process => "by process",
        Attribution::DrmFd => "by open device",
        Attribution::ServerLog => "by server log",
        Attribution::Environment => "by environment",
        Attribution::VramStep => "by memory step",
        Attribution::Everything if evidence.gpus.is_empty() => "no GPU",
        Attribution::Everything => "not known, all reserved",
    }
}

/// The signals that matter most and could not be read, with the reason.
fn unreadable(evidence: &Evidence) -> Vec<String> {
    let signals = [
        ("boot id", evidence.boot_id.why_not()),
        ("machine-id", evidence.machine_id.why_not()),
        ("SMBIOS UUID", evidence.product_uuid.why_not()),
        ("CPU model", evidence.cpu_model.why_not()),
    ];
    let mut list: Vec<String> =
        signals.into_iter().filter_map(|(name, why)| Some(format!("{name} {}", why?))).collect();
    if evidence.hypervisor == Hypervisor::Unknown {
        list.push("bare metal or not: unknown".to_owned());
    }
    list
}

/// The most informative pairs, and how many there are.
fn relations(view: &View, fusion: &Fusion, live_tests: &LiveTests) -> (Vec<RelationRow>, usize) {
    let mut pairs: Vec<(Kind, &Install, &Install)> = Vec::new();
    for (at, a) in view.installs.iter().enumerate() {
        for b in &view.installs[at + 1..] {
            if let Some(relation) = fusion.relation(a.agent, b.agent) {
                pairs.push((relation.kind, a, b));
            }
        }
    }
    let count = pairs.len();
    pairs.sort_by_key(|(kind, a, b)| (*kind, a.agent, b.agent));
    let pairs = spread(pairs, MAX_PAIRS, |(kind, ..)| *kind);
    let rows = pairs.into_iter().filter_map(|(_, a, b)| {
        let row = relation_row(view, a, b, &fusion.why(a.agent, b.agent)?);
        Some(RelationRow { live_tests: live::notes(view, live_tests, a, b), ..row })
    });
    (rows.collect(), count)
}

/// Takes at most so many of a list that is sorted by kind, a quarter of them for each kind before any kind gets more,
/// so that none hides the others; the order stays.
fn spread<T, K: PartialEq>(list: Vec<T>, most: usize, kind: impl Fn(&T) -> K) -> Vec<T> {
    let mut kinds: Vec<(K, usize)> = Vec::new();
    for item in &list {
        match kinds.last_mut() {
            Some((last, count)) if *last == kind(item) => *count += 1,
            Some(_) | None => kinds.push((kind(item), 1)),
        }
    }
    let share = most / 4;
    let mut left = most.saturating_sub(kinds.iter().map(|(_, count)| (*count).min(share)).sum());
    for (_, count) in &mut kinds {
        let more = count.saturating_sub(share).min(left);
        (*count, left) = ((*count).min(share) + more, left - more);
    }
    let mut kinds = kinds.into_iter();
    let mut now: Option<(K, usize)> = None;
    let mut kept = Vec::new();
    for item in list {
        if now.as_ref().is_none_or(|(last, _)| *last != kind(&item)) {
            now = kinds.next();
        }
        if let Some((_, room)) = now.as_mut().filter(|(_, room)| *room > 0) {
            *room -= 1;
            kept.push(item);
        }
    }
    kept
}

fn relation_row(view: &View, a: &Install, b: &Install, why: &Why) -> RelationRow {
    let label =
        |agent: AgentId| view.install(agent).map_or_else(|| agent.short(), |install| install.label.clone());
    RelationRow {
        agents: [a.agent.short(), b.agent.short()],
        labels: [a.label.clone(), b.label.clone()],
        relation: why.relation.kind.to_string(),
        confidence: why.relation.confidence.to_string(),
        score: why.score.map(odds),
        reasons: why.reasons.iter().map(ToString::to_string).collect(),
        unreadable: why
            .unreadable
            .iter()
            .map(|(agent, signal, reason)| format!("{}: {signal} {reason}", label(*agent)))
            .collect(),
        live_tests: Vec::new(),
    }
}

fn warnings(view: &View, fusion: &Fusion) -> Vec<WarningRow> {
    let label =
        |agent: &AgentId| view.install(*agent).map_or_else(|| agent.short(), |install| install.label.clone());
    let rows = fusion.warnings().iter().map(|warning| WarningRow {
        code: warning.code.text(),
        agents: warning.agents.iter().map(label).collect(),
        text: said(&warning.text(label), warning.code.fix()),
        fix: warning.code.fix(),
        information: warning.code.is_information(),
    });
    rows.chain(locks::splits(view)).chain(engines::findings(view, |_| true)).collect()
}

/// A warning's text ends with what to do, which has its own place here.
fn said(text: &str, fix: &str) -> String {
    let text = text.strip_suffix(fix).map_or(text, |text| text.trim_end_matches(". Fix: "));
    text.to_owned()
}
