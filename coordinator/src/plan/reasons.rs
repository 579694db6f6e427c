//! Why an install has the part in a plan that it has, in words, and what would change that.

use std::collections::BTreeSet;

use tropa_proto::{
    failure::Class,
    id::{AgentId, hex},
    permit::Rule,
    roster::{Install, Out, View},
};

use super::Pinned;

/// What stands before whom an install would stand in for.
pub(super) const NOTHING: &str = "adds nothing beside ";

/// What stands before the rule of a policy.
pub(super) const DENIED: &str = "its agent's policy denies it: ";

/// Why an install gets no work, and what would change that.
#[must_use]
pub fn reason_out(out: &Out, label: &str) -> (String, String) {
    match out {
        Out::NotDescribed => (
            "its agent has not yet said what it has".to_owned(),
            format!("wait longer with --wait; if it stays so, restart tropa-agent on {label}"),
        ),
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
        Out::Denied(rule) => reason_denied(rule, label),
        Out::Shut(rule) => (format!("it takes nothing at present: {rule}"), reason_denied(rule, label).1),
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

/// By which rule a policy denies something, and what would change that.
pub(super) fn reason_denied(rule: &str, label: &str) -> (String, String) {
    let agent = |change: &str| format!("start the agent on {label} {change}");
    let remedy = match Rule::of(rule) {
        Some(Rule::Coordinator) => {
            agent("with a --only-from that holds this machine, or submit from one that it holds")
        }
        Some(Rule::Model) => {
            format!("name a permitted one with --model, or {}", agent("with another --only-model"))
        }
        Some(Rule::NumCtx) => {
            format!("ask for less with --num-ctx, or {}", agent("with a larger --max-num-ctx"))
        }
        Some(Rule::NumPredict) => {
            format!("ask for less with --max-tokens, or {}", agent("with a larger --max-num-predict"))
        }
        Some(Rule::Images) => agent("with --allow-images"),
        Some(Rule::Hours) => format!("wait, or {}", agent("with other --only-hours")),
        Some(Rule::Rate) => format!("wait, or {}", agent("with a larger --max-rate")),
        None => format!("ask whoever runs the agent on {label}"),
    };
    (format!("{DENIED}{rule}"), remedy)
}

pub(super) fn reason_no_model(install: &Install, missing: &[&Pinned]) -> (String, String) {
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

pub(super) fn reason_shared(view: &View, install: &Install, at_work: &BTreeSet<AgentId>) -> (String, String) {
    let faster = "an agent on another machine would make the job faster".to_owned();
    let Some(holder) = install.rivals.intersection(at_work).next() else {
        let loads = |other: &&AgentId| at_work.contains(other) && !view.share_a_lock(install.agent, **other);
        if let Some(other) = install.loads.both.iter().find(loads).and_then(|other| view.install(*other)) {
            let name = &other.label;
            return (
                format!(
                    "has a model to load, and may load it where {name} works, with no lock between the two"
                ),
                format!(
                    "pin the Ollamas of {} and {name} to GPUs of their own, or give their agents one lock directory",
                    install.label
                ),
            );
        }
        let busy = view.gpu_lanes(install).unwrap_or_default();
        let lanes = if busy == 1 { "one GPU lane".to_owned() } else { format!("{busy} GPU lanes") };
        return (format!("{NOTHING}{lanes} of its machine, whose processors feed no more"), faster);
    };
    let name = view
        .installs
        .iter()
        .find(|other| other.agent == *holder)
        .map_or_else(String::new, |i| i.label.clone());
    (format!("{NOTHING}{name} ({}): {}", holder.short(), view.why_together(install.agent, *holder)), faster)
}
