//! The report for people. It is the same size for 30 agents and for 1,000: what is many is counted, and `--json` has
//! all of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{AgentRow, MachineRow, RelationRow, Report, WarningRow, spread};
use crate::{
    rules::{RulesReport, Standing},
    table::Table,
    terminal::escaped,
    words::count,
};

/// Machines with a row of their own: what fits on a screen.
const ROWS: usize = 40;

/// Agents of one machine that are named.
const AGENTS: usize = 8;

/// Lanes of one machine that are named.
const LANES: usize = 4;

/// Pairs that are explained.
const PAIRS: usize = 40;

/// Warnings of one code that are written out.
const ALIKE: usize = 3;

/// Rules that are followed and listed; those that are not followed are always listed.
const RULES: usize = 20;

impl Report {
    /// Writes the report for people, machines in the order of their names; of many, those without work first.
    #[must_use]
    pub fn text(&self, why: bool) -> String {
        let mut text = String::new();
        if !self.machines.is_empty() {
            let mut machines: Vec<&MachineRow> = self.machines.iter().collect();
            // Where not all have a row, those without work have one first.
            let many = machines.len() > ROWS + 1;
            let order = |m: &&MachineRow| (many && m.at_once > 0, m.name.clone(), m.id.clone());
            machines.sort_by_cached_key(order);
            table(&mut text, &machines);
            if why {
                details(&mut text, &machines);
                self.pairs(&mut text);
            }
            self.findings(&mut text, why);
        }
        if let Some(rules) = &self.rules {
            list(&mut text, rules);
        }
        let gap = if text.is_empty() { "" } else { "\n" };
        let _ = writeln!(text, "{gap}{}", escaped(&self.summary));
        text
    }

    fn pairs(&self, text: &mut String) {
        if self.relations.is_empty() {
            return;
        }
        text.push('\n');
        let mut labels: BTreeMap<&str, usize> = BTreeMap::new();
        for agent in self.machines.iter().flat_map(|machine| &machine.agents) {
            *labels.entry(&agent.label).or_default() += 1;
        }
        // Agents of one host have one label.
        let name = |pair: &RelationRow, which: usize| match labels.get(pair.labels[which].as_str()) {
            Some(2..) => format!("{} ({})", pair.labels[which], pair.agents[which]),
            Some(_) | None => pair.labels[which].clone(),
        };
        let pairs: Vec<&RelationRow> = self.relations.iter().collect();
        for relation in spread(pairs, PAIRS, |pair| pair.relation.clone()) {
            let [a, b] = [0, 1].map(|which| name(relation, which));
            let score = relation.score.map_or_else(String::new, |score| format!(", {score:+.1}"));
            let _ = writeln!(
                text,
                "{} and {}: {} ({}{score}): {}",
                escaped(&a),
                escaped(&b),
                relation.relation,
                relation.confidence,
                escaped(&relation.reasons.join(", "))
            );
            for note in &relation.live_tests {
                let _ = writeln!(text, "    {}", escaped(note));
            }
        }
        let more = self.relations.len().saturating_sub(PAIRS) + self.relations_left_out;
        if more > 0 {
            let _ = writeln!(text, "and {}", count(more, "more pair"));
        }
    }

    /// Warnings, and with `--why` what is only information. Many of one code are counted.
    fn findings(&self, text: &mut String, why: bool) {
        let mut by_code: BTreeMap<(bool, &str), Vec<&WarningRow>> = BTreeMap::new();
        for warning in self.warnings.iter().filter(|warning| why || !warning.information) {
            by_code.entry((warning.information, warning.code)).or_default().push(warning);
        }
        for ((information, code), alike) in by_code {
            let level = if information { "note" } else { "warn" };
            let shown = if alike.len() > ALIKE + 1 { ALIKE } else { alike.len() };
            for warning in &alike[..shown] {
                let _ = writeln!(text, "\n{level}    {code}    {}", escaped(&warning.text));
            }
            if let rest @ [_, ..] = &alike[shown..] {
                let agents: BTreeSet<&String> = rest.iter().flat_map(|warning| &warning.agents).collect();
                let agents = count(agents.len(), "agent");
                let _ = writeln!(text, "        and {} more of this kind, about {agents}", rest.len());
            }
            let _ = writeln!(text, "        {}", alike[0].fix);
        }
    }
}

fn table(text: &mut String, machines: &[&MachineRow]) {
    let mut table = Table::new(["MACHINE", "ID", "AGENTS", "AT ONCE", "LANES", "WHY"]);
    let shown = if machines.len() > ROWS + 1 { ROWS } else { machines.len() };
    for machine in &machines[..shown] {
        let lanes: BTreeSet<&str> = machine.agents.iter().map(|agent| agent.lane.as_str()).collect();
        let mut named = lanes.iter().take(LANES).copied().collect::<Vec<_>>().join(" ");
        if lanes.len() > LANES {
            let _ = write!(named, " and {} more", lanes.len() - LANES);
        }
        // What keeps a machine from working says more than what makes it one.
        let out = machine.agents.iter().find(|agent| !agent.out.is_empty() && machine.at_once == 0);
        let declared = if machine.declared { "declared, not read; " } else { "" };
        let why = out
            .map_or_else(|| format!("{declared}{}", machine.why), |agent| format!("no work: {}", agent.out));
        let (agents, at_once) = (machine.agents.len().to_string(), machine.at_once.to_string());
        table.row([&machine.name, &machine.id, &agents, &at_once, &named, &why]);
    }
    if let rest @ [_, ..] = &machines[shown..] {
        let agents: usize = rest.iter().map(|machine| machine.agents.len()).sum();
        let at_once: usize = rest.iter().map(|machine| machine.at_once).sum();
        let name = format!("and {} more", rest.len());
        table.row([&name, "", &agents.to_string(), &at_once.to_string(), "", "see --json"]);
    }
    let _ = writeln!(text, "{table}");
}

fn details(text: &mut String, machines: &[&MachineRow]) {
    let shown = if machines.len() > ROWS + 1 { ROWS } else { machines.len() };
    for machine in &machines[..shown] {
        let _ = writeln!(
            text,
            "\nmachine {} \"{}\"    {}, {}{}{}{}",
            machine.id,
            escaped(&machine.name),
            count(machine.agents.len(), "agent"),
            count(machine.kernels, "kernel"),
            if machine.declared { ", declared, not read" } else { "" },
            if machine.uid.is_none() { ", without a name of its own" } else { "" },
            if machine.former_ids.is_empty() {
                String::new()
            } else {
                format!(", formerly {}", machine.former_ids.join(" "))
            }
        );
        let named = if machine.agents.len() > AGENTS + 1 { AGENTS } else { machine.agents.len() };
        for agent in &machine.agents[..named] {
            detail(text, agent);
        }
        let more = machine.agents.len() - named;
        if more > 0 {
            let _ = writeln!(text, "  and {more} more");
        }
    }
    if machines.len() > shown {
        let _ = writeln!(text, "\nand {}; all of it: --json", count(machines.len() - shown, "more machine"));
    }
}

fn detail(text: &mut String, agent: &AgentRow) {
    let version = if agent.version.is_empty() { "-" } else { &agent.version };
    let width = match (agent.width, agent.width_from, agent.width_until) {
        // One at a time is the rule, and needs a word only where it was found out.
        (1, _, "") => String::new(),
        (width, from, "") => format!("    {width} at once ({from})"),
        (width, from, until) => format!("    {width} at once ({from}, {until})"),
    };
    let line = format!(
        "  {} ({})    Ollama {}    lane {} ({}){width}    {}",
        escaped(&agent.label),
        agent.id,
        escaped(version),
        agent.lane,
        agent.attribution,
        escaped(&agent.models.join(" "))
    );
    let _ = writeln!(text, "{}", line.trim_end());
    // That pictures need a word of their own holds for every agent.
    if agent.permits.len() > 1 || agent.permits.iter().any(|rule| rule != "no pictures") {
        let _ = writeln!(text, "    permits {}", escaped(&agent.permits.join("; ")));
    }
    if !agent.out.is_empty() {
        let _ = writeln!(text, "    out: {}; {}", escaped(&agent.out), escaped(&agent.remedy));
    }
    if !agent.unreadable.is_empty() {
        let _ = writeln!(text, "    not readable: {}", escaped(&agent.unreadable.join(", ")));
    }
}

/// The rules with their age; those that are not followed first among what is left out.
fn list(text: &mut String, rules: &RulesReport) {
    let age = rules.age_s.map_or_else(|| "at an unknown time".to_owned(), |age| format!("{} ago", span(age)));
    let file = rules.file.display().to_string();
    let _ = writeln!(text, "\nrules of {}, version {}, changed {age}:", escaped(&file), rules.version);
    let mut followed = 0;
    for row in &rules.rules {
        let said = escaped(&row.rule);
        let line = row.line;
        let _ = match &row.standing {
            Standing::Followed => {
                followed += 1;
                if followed > RULES { Ok(()) } else { writeln!(text, "ok      line {line}    {said}") }
            }
            Standing::Waits(why) => {
                writeln!(text, "note    line {line}    {said}: waits, {}", escaped(why))
            }
            Standing::NotFollowed(why) => {
                writeln!(text, "warn    line {line}    {said}: not followed, {}", escaped(why))
            }
        };
    }
    if followed > RULES {
        let _ = writeln!(text, "and {} that are followed", count(followed - RULES, "more rule"));
    }
}

/// A time in the unit that people use for it.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => count(usize::try_from(seconds / 86_400).unwrap_or(usize::MAX), "day"),
    }
}
