//! What a mesh comes to in a sentence or two: how many chunks at a time, what adds nothing, and what would.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use tropa_proto::{
    id::{AgentId, MachineId},
    roster::{Install, Machine, View},
};

use crate::{plan::reason_out, words::count};

/// Machines or installs that are named; the others are counted.
const NAMED: usize = 3;

/// Writes it. `working`: the installs that work at the same time when all have work.
pub(super) fn of(view: &View, working: &BTreeSet<AgentId>) -> String {
    if view.installs.is_empty() {
        return "no agent answers; start one beside each Ollama: tropa-agent".to_owned();
    }
    let works = |install: &&Install| working.contains(&install.agent);
    let chunks: usize =
        view.installs.iter().filter(works).map(|install| usize::from(install.width.max(1))).sum();
    let mut text = format!(
        "{}, {}: {} at a time.",
        count(view.installs.len(), "install"),
        machines(view, &view.machines.iter().map(|machine| machine.id).collect()),
        count(chunks, "chunk")
    );
    let spare = |install: &&Install| install.out.is_none() && !working.contains(&install.agent);
    let spares = |machine: &Machine| members(view, machine).filter(spare).count();
    let busy = |machine: &Machine| members(view, machine).any(|install| working.contains(&install.agent));
    let crowded: Vec<&Machine> =
        view.machines.iter().filter(|machine| busy(machine) && spares(machine) > 0).collect();
    let held: Vec<&Machine> =
        view.machines.iter().filter(|machine| !busy(machine) && spares(machine) > 0).collect();
    let more = crowded.iter().map(|machine| spares(machine)).sum::<usize>();
    match crowded.as_slice() {
        [] => {}
        [one] if more == 1 && one.agents.len() == 2 => {
            let _ = write!(text, " The second install on {} adds nothing;", one.name);
        }
        [one] => {
            let _ = write!(text, " {} on {} {};", count(more, "more install"), one.name, nothing(more));
        }
        several => {
            let names = named(several.iter().map(|machine| machine.name.as_str()));
            let (installs, verb) = (count(more, "more install"), nothing(more));
            let _ = write!(text, " {installs} on {} machines ({names}) {verb};", several.len());
        }
    }
    if !crowded.is_empty() {
        text.push_str(" an agent on another machine would.");
    } else if view.installs.len() == 1 {
        text.push_str(" An agent on another machine would add to it.");
    }
    if !held.is_empty() {
        let names = named(held.iter().map(|machine| machine.name.as_str()));
        let verb = if held.len() == 1 { "is" } else { "are" };
        let _ = write!(
            text,
            " {names} {verb} not known to be apart from machines that work, or share a device with them: \
             see --why."
        );
    }
    text.push_str(&idle(view));
    text
}

/// Counts machines, and says how many of them are there because an operator said so.
pub(crate) fn machines(view: &View, which: &BTreeSet<MachineId>) -> String {
    let is_declared = |install: &&Install| install.evidence.declared && which.contains(&install.machine);
    let declared: BTreeSet<MachineId> =
        view.installs.iter().filter(is_declared).map(|install| install.machine).collect();
    let counted = count(which.len(), "machine");
    match declared.len() {
        0 => counted,
        all if all == which.len() => format!("{counted} as declared"),
        some => format!("{counted} ({some} as declared)"),
    }
}

/// Who gets no work at all.
fn idle(view: &View) -> String {
    let out: Vec<&Install> = view.installs.iter().filter(|install| install.out.is_some()).collect();
    match out.as_slice() {
        [] => String::new(),
        [one] => {
            let why = one.out.as_ref().map_or_else(String::new, |out| reason_out(out, &one.label).0);
            format!(" {} gets no work: {why}.", one.label)
        }
        several => {
            let names = named(several.iter().map(|install| install.label.as_str()));
            format!(" {} get no work ({names}): see --why.", count(several.len(), "install"))
        }
    }
}

fn members<'a>(view: &'a View, machine: &'a Machine) -> impl Iterator<Item = &'a Install> {
    machine.agents.iter().filter_map(|agent| view.install(*agent))
}

fn nothing(count: usize) -> &'static str {
    if count == 1 { "adds nothing" } else { "add nothing" }
}

/// Some of them, in the order of their names, and how many more there are.
pub(super) fn named<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    let all: usize = counts.values().sum();
    let shown: usize = counts.values().take(NAMED).sum();
    let some = counts.iter().take(NAMED).map(|(name, count)| match count {
        1 => (*name).to_owned(),
        several => format!("{several} called {name}"),
    });
    let some = some.collect::<Vec<_>>().join(", ");
    if all > shown { format!("{some} and {} more", all - shown) } else { some }
}
