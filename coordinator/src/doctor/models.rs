//! The models: the same everywhere, and what a job would meet.

use std::collections::{BTreeMap, BTreeSet};

use tropa_proto::{
    id::hex,
    message::{EngineState, Fingerprint},
};

use super::{
    Seen,
    finding::{Finding, named},
};
use crate::{
    job::DEFAULT_MAX_TOKENS,
    plan::{self, Need, Part, PinError, Pinned, default_model, full_name, pin},
    words::count,
};

/// A name that stands for one model here and another there; and whether a job with the model of the settings, or the one
/// that it would take, can run.
pub(super) fn check(seen: &Seen) -> Vec<Finding> {
    if seen.machines.at_once == 0 {
        return Vec::new();
    }
    let mut findings = differing(seen);
    findings.extend(match chosen(seen) {
        Ok(Some(pinned)) => ready(seen, &pinned),
        // There are several, and a job has to name one.
        Ok(None) => Vec::new(),
        Err(error) => vec![none(&error)],
    });
    findings
}

fn differing(seen: &Seen) -> Vec<Finding> {
    let mut names: BTreeMap<String, BTreeMap<Fingerprint, BTreeSet<&str>>> = BTreeMap::new();
    for install in &seen.view.installs {
        let up = install.inventory.iter().filter(|inventory| inventory.engine == EngineState::Up);
        for model in up.flat_map(|inventory| inventory.models.iter()).filter(|model| !model.remote) {
            let prints = names.entry(model.name.to_lowercase()).or_default();
            prints.entry(model.fingerprint).or_default().insert(&install.label);
        }
    }
    let differs = names.into_iter().filter(|(_, prints)| prints.len() > 1);
    differs
        .map(|(name, prints)| {
            let short = |print: &Fingerprint| hex(print)[..6].to_owned();
            let on = |(print, labels): (&Fingerprint, &BTreeSet<&str>)| {
                format!("{} on {}", short(print), named(labels.iter().copied()))
            };
            let where_which: Vec<String> = prints.iter().map(on).collect();
            let what = format!("{name} is not the same model everywhere: {}", where_which.join("; "));
            let finding = Finding::warn("model.differs", what);
            let by_need = [Need::Completion, Need::Embedding].into_iter();
            let Some(pinned) = by_need.filter_map(|need| pin(&seen.view, &name, need).ok()).next() else {
                return finding;
            };
            let others = prints.iter().filter(|(print, _)| **print != pinned.fingerprint);
            let others: BTreeSet<&str> = others.flat_map(|(_, labels)| labels.iter().copied()).collect();
            let others = named(others);
            let why = format!("jobs take {}, so {others} may take no part", short(&pinned.fingerprint));
            finding.because(why).fix(format!("on {others}: ollama pull {name}"))
        })
        .collect()
}

/// The model of the settings, or the one that a job would take; `None` where a job would have to name one.
fn chosen(seen: &Seen) -> Result<Option<Pinned>, PinError> {
    let (name, need) = match seen.job.model() {
        Some(name) => {
            // A model that embeds and does not chat is one too.
            let embeds = pin(&seen.view, name, Need::Completion).is_err()
                && pin(&seen.view, name, Need::Embedding).is_ok();
            (full_name(name), if embeds { Need::Embedding } else { Need::Completion })
        }
        None => match default_model(&seen.view, Need::Completion) {
            Ok(name) => (name, Need::Completion),
            Err(PinError::Several(_)) => return Ok(None),
            Err(error @ PinError::NoModels(_)) => match default_model(&seen.view, Need::Embedding) {
                Ok(name) => (name, Need::Embedding),
                Err(PinError::Several(_)) => return Ok(None),
                Err(_) => return Err(error),
            },
            Err(error) => return Err(error),
        },
    };
    match pin(&seen.view, &name, need) {
        Err(PinError::Denied(pinned)) => Ok(Some(*pinned)),
        pinned => pinned.map(Some),
    }
}

fn none(error: &PinError) -> Finding {
    let finding = Finding::fail("model.missing", error.to_string());
    match error {
        PinError::Missing { name, .. } => finding.fix(format!("beside an agent: ollama pull {name}")),
        PinError::NoModels(_) => finding.fix("beside an agent: ollama pull llama3.2:3b"),
        PinError::NoInstall
        | PinError::Several(_)
        | PinError::Unable { .. }
        | PinError::Denied(_)
        | PinError::Remote(_) => {
            finding.fix("name another with --model; tropa machines --why shows which there are")
        }
    }
}

/// What a job of one item with this model would meet.
fn ready(seen: &Seen, pinned: &Pinned) -> Vec<Finding> {
    let name = &pinned.name;
    let asked = seen.job.num_ctx().unwrap_or_default();
    let too_small = (pinned.context > 0 && asked > pinned.context).then(|| {
        let what = format!(
            "{name} was trained with a context of {} tokens, and {asked} are asked for",
            pinned.context
        );
        Finding::warn("model.too_small", what)
            .fix(format!("--num-ctx {}, or another --model", pinned.context))
    });
    let mut pinned = pinned.clone();
    pinned.asks = BTreeMap::from([(asked, seen.job.max_tokens().unwrap_or(DEFAULT_MAX_TOKENS))]);
    let plan = plan::plan(&seen.view, 1, &[pinned], &[asked]);
    let runs = if plan.at_once > 0 || plan.rows.iter().any(|row| row.part == Part::Shut) {
        let at_once =
            if plan.at_once == 0 { "later".to_owned() } else { format!("{} at a time", plan.at_once) };
        let what = format!("a job with {name} runs on {}, {at_once}", count(plan.installs, "install"));
        Finding::ok("model.ready", what)
    } else {
        let stands = plan.rows.iter().find(|row| row.part == Part::Denied).or(plan.rows.first());
        let (why, fix) = stands
            .map_or_else(Default::default, |row| (format!("{}: {}", row.label, row.why), row.remedy.clone()));
        Finding::fail("model.denied", format!("no install runs a job with {name}")).because(why).fix(fix)
    };
    too_small.into_iter().chain([runs]).collect()
}
