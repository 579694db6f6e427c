//! The members of the mesh: who answers, who does not and why, and what program each is.

use std::collections::{BTreeMap, BTreeSet};

use tropa_proto::mesh::{DialFailure, PROGRAM};

use super::{
    Seen,
    finding::{Finding, named},
};
use crate::{
    assemble::{TAKE_IN, describe},
    exit::Failed,
    words::count,
};

/// The mesh could not be joined at all.
pub(super) fn not_joined(failed: &Failed) -> Finding {
    let fix = "mend what the findings above say; else: tropa doctor -vv";
    Finding::fail("mesh.joined", format!("{:#}", failed.error)).because("the mesh was not looked at").fix(fix)
}

/// Who answers, and who should and does not.
pub(super) fn reached(seen: &Seen) -> Vec<Finding> {
    let mut findings: Vec<Finding> = strangers(seen).into_iter().chain(deaf(seen)).collect();
    if seen.own {
        let what = "no agent answers, so jobs run on the Ollama of this machine alone, by an agent inside the command";
        let why = match (seen.has_secret, seen.multicast) {
            (true, true) => {
                "agents were looked for on this machine and by multicast; elsewhere name one with --peer"
            }
            (true, false) => "agents were looked for on this machine; elsewhere name one with --peer",
            (false, _) => "agents were looked for on this machine only, since there is no mesh secret",
        };
        findings.push(Finding::warn("mesh.alone", what).because(why).fix("tropa-agent"));
    } else if seen.view.installs.is_empty() {
        let what = "no agent answers, so nothing can run";
        findings.push(Finding::fail("mesh.alone", what).fix("beside each Ollama: tropa-agent"));
    } else {
        let mut labels: Vec<&str> = seen.view.installs.iter().map(|install| install.label.as_str()).collect();
        labels.sort_unstable();
        let labels = named(labels);
        let answer = if seen.view.installs.len() == 1 { "answers" } else { "answer" };
        let what = format!("{} {answer}: {labels}", count(seen.view.installs.len(), "agent"));
        findings.push(Finding::ok("mesh.agents", what));
    }
    findings
}

/// Who speaks our protocol under another secret. Beside agents that answer, one that was not named may well be of the
/// mesh of somebody else.
fn strangers(seen: &Seen) -> Vec<Finding> {
    let wrong = seen.failures.iter().filter(|(_, why)| **why == DialFailure::WrongSecret);
    wrong
        .map(|(address, _)| {
            let what = format!("the agent at {address} is in another mesh");
            let why = "its mesh secret is another one, or it speaks another version of the protocol";
            let fix = format!(
                "on its machine: {TAKE_IN}; or here, with a copy of its file: --mesh-secret-file FILE"
            );
            let wanted = seen.named.contains_key(address) || seen.view.installs.is_empty();
            let finding =
                if wanted { Finding::fail("mesh.secret", what) } else { Finding::warn("mesh.secret", what) };
            finding.because(why).fix(fix)
        })
        .collect()
}

/// Whom `--peer` names and who does not answer: nobody at any address of a name.
fn deaf(seen: &Seen) -> Vec<Finding> {
    let mut reasons: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut listens: BTreeMap<&str, String> = BTreeMap::new();
    let mut heard: BTreeSet<&str> = BTreeSet::new();
    for (address, peer) in &seen.named {
        let there = if address.ip().is_loopback() {
            format!("tropa-agent --listen {address}")
        } else {
            let everywhere = if address.is_ipv6() { "[::]" } else { "0.0.0.0" };
            format!("there: tropa-agent --listen {everywhere}:{}", address.port())
        };
        listens.insert(peer, there);
        match seen.failures.get(address) {
            // It is told of as a stranger, or is this command.
            Some(DialFailure::WrongSecret | DialFailure::Myself) => _ = heard.insert(peer),
            Some(why) => _ = reasons.entry(peer).or_default().insert(describe(why)),
            None if seen.linked.contains(&address.ip().to_canonical()) => _ = heard.insert(peer),
            None => _ = reasons.entry(peer).or_default().insert(describe(&DialFailure::Timeout)),
        }
    }
    let deaf = reasons.into_iter().filter(|(peer, _)| !heard.contains(peer));
    deaf.map(|(peer, reasons)| {
        let reasons: Vec<String> = reasons.into_iter().collect();
        let what = format!("no agent answers at {peer}: {}", reasons.join(", "));
        let why = "is tropa-agent running there, and does it listen on that address?";
        let finding = if seen.view.installs.is_empty() {
            Finding::fail("mesh.unreachable", what)
        } else {
            Finding::warn("mesh.unreachable", what)
        };
        finding.because(why).fix(listens.remove(peer).unwrap_or_default())
    })
    .collect()
}

/// The agents of this very machine: in the mesh, or why not.
pub(super) fn here(seen: &Seen) -> Vec<Finding> {
    let stranger = |address| seen.failures.get(address) == Some(&DialFailure::WrongSecret);
    let (members, others): (Vec<_>, Vec<_>) =
        seen.present.iter().partition(|present| seen.view.install(present.agent).is_some());
    let silent = others.into_iter().filter(|present| !stranger(&present.address)).map(|present| {
        let what = format!("the agent with process {} runs on this machine and does not answer", present.pid);
        let why = seen.failures.get(&present.address).map_or_else(String::new, describe);
        Finding::warn("agent.silent", what)
            .because(why)
            .fix("start it again: tropa-agent; wait longer: --wait 10")
    });
    let beside = members.iter().map(|present| {
        let label = seen.label(present.agent);
        match present.port {
            0 => format!("{label} beside an Ollama elsewhere"),
            port => format!("{label} beside the Ollama at port {port}"),
        }
    });
    let mut beside: Vec<String> = beside.collect();
    beside.sort_unstable();
    let fine = (!beside.is_empty()).then(|| {
        let what = format!("on this machine: {}", named(beside.iter().map(String::as_str)));
        Finding::ok("agent.here", what)
    });
    silent.chain(fine).collect()
}

/// Which versions of the program there are: those of one protocol understand each other, and a fix may be in one only.
pub(super) fn programs(seen: &Seen) -> Vec<Finding> {
    let of_agents = seen.programs.iter().filter(|(agent, _)| seen.view.install(**agent).is_some());
    let others: Vec<String> = of_agents
        .clone()
        .filter(|(_, program)| *program != PROGRAM)
        .map(|(agent, program)| format!("{} is {program}", seen.label(*agent)))
        .collect();
    if !others.is_empty() {
        let what =
            format!("not everybody has the same version: {}", named(others.iter().map(String::as_str)));
        let why = format!("this is {PROGRAM}");
        let fix = "install one version of tropa and tropa-agent everywhere, and restart the agents";
        return vec![Finding::warn("mesh.version", what).because(why).fix(fix)];
    }
    let known = of_agents.count();
    let fine =
        || Finding::ok("mesh.version", format!("{} of this version, {PROGRAM}", count(known, "agent")));
    if known == 0 { Vec::new() } else { vec![fine()] }
}
