//! The installs: whether they answer and may be used, who reaches them past their agents, and what they come to.

use std::collections::{BTreeMap, BTreeSet};

use tropa_proto::roster::{Install, Out};

use super::{
    Seen,
    finding::{Finding, named},
};
use crate::{
    machines::{RelationRow, WarningRow},
    plan::reason_out,
    words::count,
};

/// What it comes to: how many chunks at a time, and what would make it more.
pub(super) fn capacity(seen: &Seen) -> Vec<Finding> {
    let waits = seen.view.installs.iter().any(|install| matches!(install.out, Some(Out::Shut(_))));
    if seen.machines.at_once > 0 || waits {
        vec![Finding::ok("mesh.capacity", seen.machines.summary.clone())]
    } else if seen.view.installs.is_empty() {
        // It is told of with the agents.
        Vec::new()
    } else {
        let what =
            format!("nothing can run: of {} none can work", count(seen.view.installs.len(), "install"));
        vec![Finding::fail("mesh.capacity", what).fix("tropa machines --why")]
    }
}

/// Each install that gets no work, with the reason; and the versions of those that do.
pub(super) fn answer(seen: &Seen) -> Vec<Finding> {
    let out =
        seen.view.installs.iter().filter_map(|install| Some(without_work(install, install.out.as_ref()?)));
    let mut findings: Vec<Finding> = out.collect();
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    for install in seen.view.installs.iter().filter(|install| install.out.is_none() && !install.ill) {
        if let Some(inventory) = &install.inventory {
            *versions.entry(&inventory.version).or_default() += 1;
        }
    }
    let installs: usize = versions.values().sum();
    if installs > 0 {
        let versions: Vec<String> = versions
            .into_iter()
            .map(
                |(version, of)| if of == installs { version.to_owned() } else { format!("{version} ({of})") },
            )
            .collect();
        let answer = if installs == 1 { "answers" } else { "answer" };
        let what = format!(
            "{} {answer}: Ollama {}",
            count(installs, "install"),
            named(versions.iter().map(String::as_str))
        );
        findings.push(Finding::ok("ollama.answers", what));
    }
    findings
}

/// Why an install gets no work. What somebody has to mend fails; what passes by itself, or what its operator wants, is
/// worth a look.
fn without_work(install: &Install, out: &Out) -> Finding {
    let (reason, remedy) = reason_out(out, &install.label);
    let what = format!("{} gets no work: {reason}", install.label);
    let finding = match out {
        Out::Down(_) | Out::NotOllama(_) => Finding::fail("ollama.unreachable", what),
        Out::TooOld(_) => Finding::fail("ollama.too_old", what),
        Out::TooMany => Finding::warn("machine.full", what),
        Out::NotDescribed | Out::Unreachable => Finding::warn("agent.silent", what),
        Out::Draining => Finding::warn("agent.leaving", what),
        Out::Cloned => Finding::warn("identity.clone", what),
        Out::Declared => Finding::warn("identity.declared", what),
        Out::Denied(_) => Finding::warn("policy.denied", what),
        Out::Shut(_) => Finding::ok("policy.shut", what),
    };
    finding.fix(remedy)
}

/// An Ollama of this machine that takes no part.
pub(super) fn without_agent(seen: &Seen) -> Vec<Finding> {
    let Some((url, version)) = &seen.beside else { return Vec::new() };
    let what = format!("the Ollama {version} at {url} has no agent beside it, so it takes no part");
    vec![Finding::warn("agent.missing", what).fix(format!("tropa-agent --ollama {url}"))]
}

/// An Ollama of this machine that others reach past its agent; an agent's log says where.
pub(super) fn exposed(seen: &Seen) -> Vec<Finding> {
    let (open, shut): (Vec<_>, Vec<_>) = seen.exposed.iter().partition(|(_, addresses)| **addresses > 0);
    let mut findings: Vec<Finding> = open
        .into_iter()
        .map(|(port, addresses)| {
            let on = if *addresses == 1 { "an address".to_owned() } else { format!("{addresses} addresses") };
            let what = format!(
                "the Ollama at port {port} of this machine accepts connections on {on} beyond loopback"
            );
            let why =
                "whoever reaches it uses it, its models and its files without tropa and without a password";
            let fix = format!("OLLAMA_HOST=127.0.0.1:{port} ollama serve");
            Finding::warn("ollama.exposed", what).because(why).fix(fix)
        })
        .collect();
    if findings.is_empty() && !shut.is_empty() {
        let ports: Vec<String> = shut.into_iter().map(|(port, _)| port.to_string()).collect();
        let ports = named(ports.iter().map(String::as_str));
        let what = format!("on this machine nobody reaches Ollama from outside (port {ports})");
        findings.push(Finding::ok("ollama.exposed", what));
    }
    findings
}

/// A GPU that the kernel shows, and models that lie in main memory all the same.
pub(super) fn unused_gpus(seen: &Seen) -> Vec<Finding> {
    let unused = seen.view.installs.iter().filter(|install| {
        let loaded = install.inventory.iter().flat_map(|inventory| inventory.models.iter());
        let mut loaded = loaded.filter_map(|model| model.loaded).filter(|loaded| loaded.size > 0).peekable();
        !install.evidence.gpus.is_empty()
            && loaded.peek().is_some()
            && loaded.all(|loaded| loaded.size_vram == 0)
    });
    unused
        .map(|install| {
            let gpus: BTreeSet<String> = install.evidence.gpus.iter().map(|gpu| gpu.name.to_string()).collect();
            let gpus: Vec<&str> = gpus.iter().map(String::as_str).collect();
            let what = format!("{} has models loaded, and none of them on its GPU ({})", install.label, named(gpus));
            let why = "Ollama could not use the GPU: a driver that is missing or too old, or a container without it";
            let fix = format!("on {}: ollama ps; what the log of ollama serve says of GPUs when it starts", install.label);
            Finding::warn("gpu.unused", what).because(why).fix(fix)
        })
        .collect()
}

/// What `tropa machines` warns of, what is not known to be apart, and learned speeds that were lost.
pub(super) fn warnings(seen: &Seen) -> Vec<Finding> {
    let mut findings: Vec<Finding> = seen.machines.warnings.iter().map(|row| explained(seen, row)).collect();
    let unknown = seen.machines.relations.iter().filter(|relation| relation.relation == "unknown");
    let unknown: BTreeSet<&str> =
        unknown.flat_map(|relation| relation.labels.iter().map(String::as_str)).collect();
    if !unknown.is_empty() {
        let what = format!("{} are not known to be apart: counted as less hardware", named(unknown));
        let why = "the evidence that would tell could not be read, or says both: tropa machines --why";
        let fix =
            "beside each agent TROPA_MACHINE=name-of-its-host, or a rule `same` or `distinct` in config.toml";
        findings.push(Finding::warn("identity.weak", what).because(why).fix(fix));
    }
    if seen.machines.warnings.iter().all(|warning| warning.information) && unknown_is_empty(seen) {
        let what = "nothing contradicts itself in who is which machine";
        findings.extend((!seen.view.installs.is_empty()).then(|| Finding::ok("identity.sound", what)));
    }
    findings.extend(seen.damaged_speeds.as_ref().map(|what| Finding::warn("speeds.damaged", what.clone())));
    findings
}

/// A warning, and where elsewhere it sends its reader here, the evidence.
fn explained(seen: &Seen, row: &WarningRow) -> Finding {
    let finding = Finding::from(row);
    if !row.fix.contains("tropa doctor") {
        return finding;
    }
    let about = |relation: &&RelationRow| relation.labels.iter().all(|label| row.agents.contains(label));
    let reasons = seen.machines.relations.iter().filter(about).flat_map(|relation| relation.reasons.iter());
    let reasons: BTreeSet<&str> = reasons.map(String::as_str).collect();
    let fix = "wait a minute; if it stays, a rule `same` or `distinct` in config.toml settles it; tropa machines --why";
    finding.because(named(reasons)).fix(fix)
}

fn unknown_is_empty(seen: &Seen) -> bool {
    seen.machines.relations.iter().all(|relation| relation.relation != "unknown")
}
