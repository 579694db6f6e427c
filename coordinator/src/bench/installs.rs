//! Which installs take part, and the ways past their agents that the user has named.

use std::sync::Arc;

use anyhow::Context as _;
use tropa_agent::ollama::{Ollama, OllamaUrl, Request};
use tropa_proto::{
    bounded::{Blob, Text},
    id::{AttemptId, Incarnation},
    message,
    roster::View,
};

use super::{job::Work, report::Place};
use crate::{
    clock::Clock,
    exit::{Exit, Failed, OrExit as _},
    limits::Limits,
    plan::{self, Pinned},
    schedule,
    settings::Settings,
};

/// An install that takes part.
pub(super) struct Candidate {
    pub(super) install: schedule::Install,
    pub(super) place: Place,
    /// The way past its agent.
    pub(super) direct: Option<Arc<Ollama>>,
    /// Time of the trial.
    pub(super) tried: f64,
}

/// The installs that have every model, in the order of their agents.
pub(super) fn candidates(view: &View, models: &[Pinned]) -> Result<Vec<Candidate>, Failed> {
    let is_able = |install: &schedule::Install| !install.shut && install.models.len() == models.len();
    let able = plan::installs(view, models).into_iter().filter(is_able);
    let made = able.filter_map(|install| {
        let shown = view.installs.iter().find(|shown| shown.agent == install.agent)?;
        let place = Place {
            agent: install.agent.short(),
            label: shown.label.clone(),
            machine: view.shown(install.machine).to_string(),
            machine_name: view
                .machine(install.machine)
                .map_or_else(String::new, |machine| machine.name.clone()),
            lane: shown.lane.to_string(),
            version: shown
                .inventory
                .as_ref()
                .map_or_else(String::new, |inventory| inventory.version.to_string()),
            width: install.width,
            direct: false,
        };
        Some(Candidate { install, place, direct: None, tried: f64::INFINITY })
    });
    let made: Vec<Candidate> = made.collect();
    if made.is_empty() {
        return Err(Failed::new(Exit::NothingCanRun, "no install has all models of these prompts"));
    }
    Ok(made)
}

/// Opens the ways past the agents, and makes sure that they lead to installs with the same models.
pub(super) async fn reach(
    candidates: &mut [Candidate],
    urls: &[(&str, OllamaUrl)],
    own: bool,
    models: &[Pinned],
    settings: &Settings,
) -> Result<(), Failed> {
    let mut ways: Vec<(usize, OllamaUrl)> = Vec::new();
    if own && let [_] = candidates {
        // The agent of this command is beside the install that the settings name.
        ways.push((0, settings.ollama.clone()));
    }
    for (name, url) in urls {
        let named = |c: &Candidate| c.place.label == *name || c.place.agent.starts_with(name);
        let found: Vec<usize> = (0..candidates.len()).filter(|at| named(&candidates[*at])).collect();
        let [at] = found[..] else {
            let labels: Vec<&str> = candidates.iter().map(|c| c.place.label.as_str()).collect();
            let how_many = if found.is_empty() { "no agent" } else { "more than one agent" };
            let why = format!(
                "--direct {name}: {how_many} of that name can run this; there are {}",
                labels.join(", ")
            );
            return Err(Failed::new(Exit::Usage, why));
        };
        ways.push((at, url.clone()));
    }
    for (at, url) in ways {
        let label = candidates[at].place.label.clone();
        let engine = Ollama::new(url).or_exit(Exit::Io)?;
        for model in models {
            let pinned = engine.pin(&model.name).await;
            let pinned = pinned
                .with_context(|| format!("--direct {label}: asking that address for {} failed", model.name))
                .or_exit(Exit::NothingCanRun)?;
            if pinned != model.fingerprint {
                let why =
                    format!("--direct {label}: what that address calls {} is another model", model.name);
                return Err(Failed::new(Exit::NothingCanRun, why));
            }
        }
        candidates[at].direct = Some(Arc::new(engine));
        candidates[at].place.direct = true;
    }
    Ok(())
}

/// The bodies of all prompts as a plain client sends them: the bytes that an agent would.
pub(super) fn requests(work: &Work, clock: Clock) -> Result<Arc<[Request]>, Failed> {
    let journal = work.journal(clock)?;
    let job = journal.job().id;
    let mut requests = Vec::new();
    for chunk in work.chunks(&journal)? {
        let limits = Limits::of(&chunk.body, false, None);
        let pinned = work.models.iter().find(|pinned| pinned.name.eq_ignore_ascii_case(&chunk.model));
        let run = message::Run {
            attempt: AttemptId { job, chunk: chunk.index, no: 1 },
            incarnation: Incarnation(0),
            endpoint: chunk.endpoint,
            model: Text::cut(&chunk.model),
            fingerprint: pinned.map_or([0; 32], |pinned| pinned.fingerprint),
            deadline_ms: limits.deadline_ms,
            first_token_ms: limits.first_token_ms,
            idle_ms: limits.idle_ms,
            show_text: false,
            at_once: 0,
            body: Blob::new(chunk.body).or_exit(Exit::Input)?,
        };
        let checked = Request::check(run, false);
        requests.push(checked.map_err(|failure| Failed::new(Exit::Input, failure.detail.to_string()))?);
    }
    Ok(requests.into())
}
