//! What will run where and why, from the roster and the job's models; pure, and it runs nothing.
//!
//! A plan says which installs work at the same time and which add nothing, with the reason and the remedy. It is
//! the same code that the job uses to choose its models and to tell the scheduler who is whose rival, so the plan
//! cannot promise what the job does not do.

mod cost;
mod pin;
mod reasons;
mod together;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use serde::Serialize;
use tropa_proto::{
    id::{AgentId, MachineId, hex},
    message::Model,
    permit::{Asks, Permit},
    roster::{Install, LoadRivals, Out, View},
};

use self::reasons::{DENIED, NOTHING, reason_denied, reason_no_model, reason_shared};
pub use self::{
    cost::{Asked, Cost},
    pin::{Need, PinError, Pinned, default_model, full_name, pin},
    reasons::reason_out,
    together::{Together, at_work},
};
use crate::{
    exit::Exit,
    locks,
    machines::{WarningRow, counted, engines},
    schedule::{self, Largest, ModelIndex, Unplaced},
    words::count,
};

/// What agents have denied by rules that they had not told, as they said it.
pub type Denials = BTreeMap<AgentId, String>;

/// A plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    /// What has to be loaded, and how long it takes.
    #[serde(flatten)]
    pub cost: Cost,
    /// Every install of the roster, in the order of its agent's id.
    pub rows: Vec<Row>,
    /// Devices that no common lock keeps from the work of another coordinator, and what the operators of the installs
    /// that can take part should mend or know of.
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
    /// The id of its machine, as `tropa machines` shows it.
    pub machine: String,
    /// The name of its machine for people.
    pub machine_name: String,
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
    /// Its agent takes nothing at present and will later: it works then.
    Shut,
    /// Its agent's policy denies the job.
    Denied,
    /// It gets no work.
    Out,
}

/// Tells the scheduler what the roster says: who can run which models of the job, and who is whose rival.
#[must_use]
pub fn installs(view: &View, models: &[Pinned]) -> Vec<schedule::Install> {
    let takes = |install: &&Install| matches!(install.out, None | Some(Out::Shut(_)));
    let able = view.installs.iter().filter(takes);
    able.map(|install| {
        let having = |loaded: bool| {
            let held = (0..).zip(models).filter(|(_, pinned)| {
                find(install, pinned).is_some_and(|model| !loaded || model.loaded.is_some())
                    && denial(install, pinned).is_none()
            });
            held.map(|(index, _)| ModelIndex(index)).collect()
        };
        schedule::Install {
            agent: install.agent,
            incarnation: install.incarnation,
            engine: install.engine,
            machine: install.machine,
            width: usize::from(install.width),
            models: having(false),
            largest: install.inventory.as_ref().map_or_else(Largest::default, |inventory| Largest {
                context: inventory.permit.num_ctx,
                answer: inventory.permit.num_predict,
            }),
            shut: install.out.is_some(),
            warm: having(true),
            loads: (0..)
                .map(ModelIndex)
                .zip(models)
                .filter_map(|(index, pinned)| Some((index, load_time(find(install, pinned)?.size))))
                .collect(),
            rivals: install.rivals.clone(),
            unguarded: unguarded(view, install, &(&install.rivals | &install.loads.both)),
            gpu_lanes: view.gpu_lanes(install),
            unplaced: unplaced(view, install, models),
        }
    })
    .collect()
}

/// How long a model of so many bytes may take to load where nobody has seen it: at a gigabyte a second, which disks that
/// engines are used with reach, and behind the quarter of a second that Ollama looks in (`ollama-api.md` §6).
fn load_time(bytes: u64) -> Duration {
    Duration::from_millis(250) + Duration::from_nanos(bytes)
}

/// Of these installs those that no kernel lock keeps apart from it: only this coordinator does.
fn unguarded(view: &View, install: &Install, of: &BTreeSet<AgentId>) -> BTreeSet<AgentId> {
    of.iter().copied().filter(|other| !view.share_a_lock(install.agent, *other)).collect()
}

/// How the models of the job are loaded at an install, and whom it meets where one has to be loaded first.
fn unplaced(view: &View, install: &Install, models: &[Pinned]) -> Unplaced {
    let loaded = (0..).map(ModelIndex).zip(models).filter_map(|(index, pinned)| {
        let model = find(install, pinned)?;
        Some((index, (model.loaded?.context, model.context)))
    });
    let LoadRivals { here, there, both } = &install.loads;
    Unplaced {
        loaded: loaded.collect(),
        here: unguarded(view, install, here),
        there: unguarded(view, install, there),
        both: unguarded(view, install, both),
    }
}

/// Plans a job of so many items with these models, whose requests ask for these contexts, rising.
#[must_use]
pub fn plan(view: &View, items: u64, models: &[Pinned], contexts: &[u32]) -> Plan {
    plan_without(view, items, models, contexts, &Denials::new())
}

/// Plans what is left of a job, without the agents that have denied it.
#[must_use]
pub fn plan_without(view: &View, items: u64, models: &[Pinned], contexts: &[u32], denials: &Denials) -> Plan {
    let mut usable = installs(view, models);
    usable.retain(|install| models.is_empty() || !install.models.is_empty());
    usable.retain(|install| !denials.contains_key(&install.agent));
    let at_work = at_work(&usable);
    let is_usable = |install: &Install| usable.iter().any(|usable| usable.agent == install.agent);
    let row = |install| row(view, install, models, &at_work, denials);
    let rows: Vec<Row> = view.installs.iter().map(row).collect();
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
        cost: Cost::default(),
        summary: summary(usable.len(), &counted(view, &machines), at_once, &rows),
        rows,
        warnings: locks::splits(view).into_iter().chain(engines::findings(view, is_usable)).collect(),
    }
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
                Part::Shut => "shut",
                Part::Denied => "denied",
                Part::Out => "out",
            };
            table.row([&row.install(), &row.on(), &row.lane, part, &row.why]);
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
        text.push_str(&self.cost_text());
        for warning in self.warnings.iter().filter(|warning| why || !warning.information) {
            let said = crate::terminal::escaped(&warning.text);
            let level = if warning.information { "note" } else { "warn" };
            let _ = writeln!(text, "{level}    {}    {said}\n        {}", warning.code, warning.fix);
        }
        let _ = writeln!(text, "{} items. {}", self.items, self.summary);
        text
    }

    /// How a command ends that runs nothing else: with [`Exit::NotAuthorised`] where the only installs that could do it
    /// deny it for good.
    #[must_use]
    pub fn exit(&self) -> Exit {
        if self.at_once > 0 || self.has(Part::Shut) {
            Exit::Done
        } else if self.is_denied() {
            Exit::NotAuthorised
        } else {
            Exit::NothingCanRun
        }
    }

    /// Nobody works or ever will, and whoever could denies it.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.at_once == 0 && self.has(Part::Denied) && !self.has(Part::Shut)
    }

    fn has(&self, part: Part) -> bool {
        self.rows.iter().any(|row| row.part == part)
    }

    /// Says why nothing can run: as the whole plan, or where all deny it, who denies it by which rule and what would
    /// change that.
    #[must_use]
    pub fn why_nothing(&self) -> String {
        if !self.is_denied() {
            return self.text(true);
        }
        let mut table = crate::table::Table::new(["MACHINE", "INSTALL", "RULE", "REMEDY"]);
        for row in self.rows.iter().filter(|row| row.part == Part::Denied) {
            table.row([&row.on(), &row.install(), row.why.trim_start_matches(DENIED), &row.remedy]);
        }
        format!("the policy of every agent that could run it denies it:\n{table}\n")
    }
}

impl Row {
    fn install(&self) -> String {
        format!("{} ({})", self.label, self.agent)
    }

    fn on(&self) -> String {
        format!("{} ({})", self.machine_name, self.machine)
    }
}

impl Part {
    fn of(install: &Install, has_model: bool, denied: bool, at_work: &BTreeSet<AgentId>) -> Self {
        if denied {
            Self::Denied
        } else if matches!(install.out, Some(Out::Shut(_))) && has_model {
            Self::Shut
        } else if install.out.is_some() || !has_model {
            Self::Out
        } else if at_work.contains(&install.agent) {
            Self::Works
        } else {
            Self::StandsIn
        }
    }
}

fn row(
    view: &View,
    install: &Install,
    models: &[Pinned],
    at_work: &BTreeSet<AgentId>,
    denials: &Denials,
) -> Row {
    let (had, missing): (Vec<&Pinned>, Vec<&Pinned>) =
        models.iter().partition(|pinned| find(install, pinned).is_some());
    let has_model = models.is_empty() || !had.is_empty();
    let rules: Vec<String> = had.iter().filter_map(|pinned| denial(install, pinned)).collect();
    let denied = match &install.out {
        Some(Out::Denied(rule)) if has_model => Some(rule),
        None | Some(Out::Shut(_)) if has_model => {
            denials.get(&install.agent).or(rules.first().filter(|_| rules.len() == had.len()))
        }
        Some(_) | None => None,
    };
    let part = Part::of(install, has_model, denied.is_some(), at_work);
    let (why, remedy) = match (denied, &install.out, part) {
        (Some(rule), ..) => reason_denied(rule, &install.label),
        (None, Some(Out::Shut(_)), Part::Out) => reason_no_model(install, &missing),
        (None, Some(out), _) => reason_out(out, &install.label),
        (None, None, Part::Out | Part::Denied | Part::Shut) => reason_no_model(install, &missing),
        (None, None, Part::Works) if install.evidence.declared => {
            ("own hardware, as declared".to_owned(), String::new())
        }
        (None, None, Part::Works) => ("own hardware".to_owned(), String::new()),
        (None, None, Part::StandsIn) => reason_shared(view, install, at_work),
    };
    Row {
        agent: install.agent.short(),
        label: install.label.clone(),
        machine: view.shown(install.machine).to_string(),
        machine_name: view.machine(install.machine).map_or_else(String::new, |machine| machine.name.clone()),
        lane: install.lane.to_string(),
        part,
        why,
        remedy,
    }
}

/// The rule by which an install denies every chunk of a model; of several sizes, that of the smallest.
fn denial(install: &Install, pinned: &Pinned) -> Option<String> {
    let permit = &install.inventory.as_ref()?.permit;
    let denies = |(num_ctx, num_predict)| {
        permit.denies(&Asks { model: &pinned.name, num_ctx, num_predict, images: false })
    };
    let mut sizes = pinned.asks.iter().map(|(num_ctx, longest)| (u64::from(*num_ctx), u64::from(*longest)));
    let first = denies(sizes.next().unwrap_or_default())?;
    sizes.all(|size| denies(size).is_some()).then(|| first.to_string())
}

/// What an install permits, in a few words each; empty where it permits everything.
#[must_use]
pub fn permitted(permit: &Permit) -> Vec<String> {
    let mut rules = Vec::new();
    if !permit.models.is_empty() {
        let models: Vec<&str> = permit.models.iter().map(|model| &**model).collect();
        rules.push(format!("only {}", models.join(", ")));
    }
    for (most, what) in [(permit.num_ctx, "num_ctx"), (permit.num_predict, "num_predict")] {
        if most > 0 {
            rules.push(format!("{what} at most {most}"));
        }
    }
    if !permit.hours.is_empty() {
        rules.push(format!("work at {}", &*permit.hours));
    }
    if permit.rate > 0 {
        rules.push(format!("{} chunks an hour", permit.rate));
    }
    if !permit.images {
        rules.push("no pictures".to_owned());
    }
    rules
}

fn summary(installs: usize, machines: &str, at_once: usize, rows: &[Row]) -> String {
    let head = format!("{}, {machines}", count(installs, "install"));
    if at_once == 0 {
        return match rows.iter().find(|row| row.part == Part::Shut) {
            Some(row) => format!("{head}: nothing runs before {} opens: {}.", row.label, row.why),
            None => format!("{head}: nothing can run this job."),
        };
    }
    let how = format!("{} at a time", count(at_once, "chunk"));
    let stand_ins: Vec<&Row> = rows.iter().filter(|row| row.part == Part::StandsIn).collect();
    let better = "an agent on another machine would";
    match stand_ins.as_slice() {
        [] => format!("{head}: {how}."),
        [one] if !one.why.starts_with(NOTHING) => {
            format!("{head}: {how}. {} {}: {}.", one.install(), one.why, one.remedy)
        }
        [one] => format!("{head}: {how}. {} {}; {better}.", one.install(), one.why),
        several => {
            let reasons = several.iter().filter_map(|row| Some(row.why.split_once(": ")?.1));
            let reasons: Vec<&str> = reasons.collect::<BTreeSet<_>>().into_iter().collect();
            let why = if let [reason] = reasons.as_slice() { format!(" ({reason})") } else { String::new() };
            format!("{head}: {how}. {} installs add nothing{why}; {better}.", several.len())
        }
    }
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
