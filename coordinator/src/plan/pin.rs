//! Which model a job uses: one name, one fingerprint, and that every install that takes part has it.

use std::collections::{BTreeMap, BTreeSet};

use tropa_proto::{
    id::MachineId,
    message::{EngineState, Fingerprint, Model},
    permit::{Asks, Permit},
    roster::{Install, Out, View},
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
    /// What its chunks ask, where it is known: contexts in tokens, and the longest answer at each.
    pub asks: BTreeMap<u32, u32>,
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
    /// It is there, and everybody who has it denies its use.
    #[error("every install that has the model {} denies it", .0.name)]
    Denied(Box<Pinned>),
    /// It runs in Ollama's cloud.
    #[error("the model {0} runs in Ollama's cloud: its prompts would leave the machine and no lane is used")]
    Remote(String),
}

/// The models that may be chosen among: of installs that work, those that may be used; or all, whatever a policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Among {
    Permitted,
    All,
}

/// Chooses the model that a job uses where its items name none: the one that is loaded on most machines, else the
/// only one. Models whose use is denied count only where nothing else is there.
///
/// # Errors
/// Says which models there are when that does not decide.
pub fn default_model(view: &View, need: Need) -> Result<String, PinError> {
    match default_among(view, need, Among::Permitted) {
        Err(error @ (PinError::NoInstall | PinError::NoModels(_))) => {
            default_among(view, need, Among::All).map_err(|_| error)
        }
        chosen => chosen,
    }
}

fn default_among(view: &View, need: Need, among: Among) -> Result<String, PinError> {
    if !view.installs.iter().any(|install| among.takes(install)) {
        return Err(PinError::NoInstall);
    }
    let mut loaded: BTreeMap<&str, BTreeSet<MachineId>> = BTreeMap::new();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for (install, model) in models(view, among).filter(|(_, model)| able(model, need) && !model.remote) {
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

/// Pins a model: of the fingerprints that go by this name and may be used, the one that most machines have; then the
/// smallest.
///
/// # Errors
/// When nobody has it, everybody denies it, it cannot do what the job needs, or it runs in the cloud.
pub fn pin(view: &View, name: &str, need: Need) -> Result<Pinned, PinError> {
    let name = full_name(name);
    if is_cloud_name(&name) {
        return Err(PinError::Remote(name));
    }
    pin_among(view, &name, need, Among::Permitted).map_err(|error| {
        if !matches!(error, PinError::NoInstall | PinError::Missing { .. }) {
            return error;
        }
        let denied = pin_among(view, &name, need, Among::All).ok();
        denied.map_or(error, |pinned| PinError::Denied(Box::new(pinned)))
    })
}

fn pin_among(view: &View, name: &str, need: Need, among: Among) -> Result<Pinned, PinError> {
    if !view.installs.iter().any(|install| among.takes(install)) {
        return Err(PinError::NoInstall);
    }
    let name = name.to_owned();
    let named: Vec<_> =
        models(view, among).filter(|(_, model)| model.name.eq_ignore_ascii_case(&name)).collect();
    let there = || {
        let names: BTreeSet<&str> = models(view, among).map(|(_, model)| &*model.name).collect();
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
    Ok(Pinned { name, fingerprint: *fingerprint, context: *context, asks: BTreeMap::new() })
}

/// A name as Ollama completes it: `llama3.2` means `llama3.2:latest`.
#[must_use]
pub fn full_name(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

impl Need {
    fn verb(self) -> &'static str {
        match self {
            Self::Completion => "chat",
            Self::Embedding => "embed",
        }
    }
}

impl Among {
    fn takes(self, install: &Install) -> bool {
        match &install.out {
            None | Some(Out::Shut(_)) => true,
            Some(Out::Denied(_)) => self == Self::All,
            Some(_) => false,
        }
    }
}

fn models(view: &View, among: Among) -> impl Iterator<Item = (&Install, &Model)> {
    let able = view.installs.iter().filter(move |install| among.takes(install));
    able.flat_map(move |install| {
        let inventory = install.inventory.iter().filter(|inventory| inventory.engine == EngineState::Up);
        let permitted = move |permit: &Permit, model: &Model| {
            let asks = Asks { model: &model.name, num_ctx: 0, num_predict: 0, images: false };
            among == Among::All || permit.denies(&asks).is_none()
        };
        let models = inventory
            .flat_map(|inventory| inventory.models.iter().map(move |model| (&inventory.permit, model)));
        models.filter(move |(permit, model)| permitted(permit, model)).map(move |(_, model)| (install, model))
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
