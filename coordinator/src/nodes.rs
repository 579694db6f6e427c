//! `tropa nodes check`: reads a SynapticLlamas nodes file and says which of its entries are distinct hardware.
//!
//! An entry is an address, and an address says nothing of hardware. So each entry is led to the agent that stands
//! beside the install of that address (`nodes/matching.rs`), and what is the same hardware follows from the agents'
//! evidence alone. An entry without an agent is unknown: it counts as not usable. The cleaned file keeps one entry
//! for each lane that may work at the same time, in the order of the file.

mod file;
mod matching;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Read as _, Write as _},
    net::IpAddr,
    path::Path,
};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;
use tropa_proto::{
    id::AgentId,
    roster::{Install, View},
};

use self::{
    file::{Entry, Nodes},
    matching::{Found, Known, find},
};
use crate::{
    args::NodesCheckArgs,
    assemble::{Assembly, passing_key},
    clock::Clock,
    exit::{Exit, Failed, OrExit as _, Outcome},
    plan::reason_out,
    settings::Settings,
    stdout::{print, print_json},
    table::Table,
    terminal::escaped,
};

/// A nodes file holds a line or three per install; a mesh has at most 1,024 of them.
const MAX_FILE: u64 = 1 << 20;

/// What `--json` prints.
#[derive(Clone, Debug, Serialize)]
struct Report {
    schema: &'static str,
    entries: Vec<Row>,
    /// Machines that entries stand for, as far as they are known.
    machines: usize,
    /// Entries that may work at the same time.
    usable: usize,
    summary: String,
    /// The file with those entries and no others.
    cleaned: Value,
}

/// One entry of the file.
#[derive(Clone, Debug, Serialize)]
struct Row {
    line: usize,
    url: String,
    name: Option<String>,
    verdict: Verdict,
    /// Its agent, by label; absent where none is known.
    agent: Option<String>,
    /// The id of its machine, as `tropa machines` shows it.
    machine: Option<String>,
    machine_name: Option<String>,
    why: String,
    /// What would change that; empty where nothing need.
    remedy: String,
}

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// It stays.
    Keep,
    /// An entry before it is the same install.
    SameInstall,
    /// An entry before it shares a device with it.
    SameHardware,
    /// Its install can do no work now.
    Out,
    /// No agent is known to stand beside it.
    Unknown,
}

/// `tropa nodes check`: the findings on stderr, the cleaned file on stdout; with `--json` one object on stdout.
///
/// # Errors
/// With [`Exit::Input`] for a file that is no nodes file, naming the line; [`Exit::Io`] where the output exists or
/// cannot be written; the codes of joining a mesh. Ends with [`Exit::NothingCanRun`] where no entry is usable.
pub async fn check(args: &NodesCheckArgs, settings: &Settings, clock: Clock) -> Outcome {
    let nodes = read(&args.file)?;
    let mut output = args.output.as_deref().map(create).transpose()?;
    let checked = examine(&nodes, settings, clock).await;
    let written = checked.and_then(|report| {
        let cleaned = serde_json::to_string_pretty(&report.cleaned).or_exit(Exit::Io)? + "\n";
        if let (Some(file), Some(path)) = (&mut output, &args.output) {
            let put = file.write_all(cleaned.as_bytes()).and_then(|()| file.sync_all());
            put.with_context(|| format!("writing {}", path.display())).or_exit(Exit::Io)?;
        }
        if settings.json {
            print_json(&report)?;
        } else {
            say(&report);
            if output.is_none() {
                print(&cleaned)?;
            }
        }
        Ok(if report.usable == 0 { Exit::NothingCanRun } else { Exit::Done })
    });
    if let (Err(_), Some(path)) = (&written, &args.output) {
        // Best effort: an empty file of ours is of no use to anybody.
        let _ = std::fs::remove_file(path);
    }
    written
}

async fn examine(nodes: &Nodes, settings: &Settings, clock: Clock) -> Result<Report, Failed> {
    let addresses = matching::resolve(&nodes.entries).await;
    let mut assembly = Assembly::gather(settings, passing_key()?, clock).await?;
    // The agent that the command brings itself listens for this command only.
    let own = assembly.own.as_ref().map(|own| own.address());
    let here: BTreeSet<AgentId> = settings.runtime.list().into_iter().map(|present| present.agent).collect();
    assembly.members.settle(settings.wait).await;
    let known: Vec<Known> = assembly
        .members
        .installs_by_address()
        .map(|(agent, addresses, port)| Known {
            agent,
            here: here.contains(&agent) || own.is_some_and(|own| addresses.contains(&own)),
            addresses: addresses.iter().map(std::net::SocketAddr::ip).collect(),
            port,
        })
        .collect();
    let report = Report::of(nodes, &addresses, &known, assembly.members.view());
    assembly.finish().await;
    Ok(report)
}

fn read(path: &Path) -> Result<Nodes, Failed> {
    let reading = || format!("reading {}", path.display());
    let file = File::open(path).with_context(reading).or_exit(Exit::Input)?;
    let mut text = String::new();
    let taken = file.take(MAX_FILE + 1).read_to_string(&mut text);
    taken.with_context(reading).or_exit(Exit::Input)?;
    if text.len() as u64 > MAX_FILE {
        let why = format!("{} has more than {MAX_FILE} bytes: not a nodes file", path.display());
        return Err(Failed::new(Exit::Input, why));
    }
    file::parse(&text).with_context(|| path.display().to_string()).or_exit(Exit::Input)
}

/// Makes the output, which must not be there: a list that somebody wrote by hand is never lost.
fn create(path: &Path) -> Result<File, Failed> {
    let made = File::options().write(true).create_new(true).open(path);
    made.with_context(|| format!("making {}, which must not exist yet", path.display())).or_exit(Exit::Io)
}

impl Report {
    fn of(
        nodes: &Nodes,
        addresses: &BTreeMap<usize, Result<BTreeSet<IpAddr>, String>>,
        known: &[Known],
        view: &View,
    ) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        let mut taken: BTreeMap<AgentId, usize> = BTreeMap::new();
        let mut kept: BTreeMap<AgentId, usize> = BTreeMap::new();
        for entry in &nodes.entries {
            let row = match find(entry, &addresses[&entry.line], known) {
                Found::One(agent) => match view.install(agent) {
                    Some(install) => judge(entry, install, view, &mut taken, &mut kept),
                    None => {
                        unknown(entry, "its agent has just left".to_owned(), "run the check again".to_owned())
                    }
                },
                Found::None { why, remedy } => unknown(entry, why, remedy),
            };
            rows.push(row);
        }
        let machines: BTreeSet<&String> = rows.iter().filter_map(|row| row.machine.as_ref()).collect();
        let (machines, usable) = (machines.len(), kept.len());
        let lines: BTreeSet<usize> = kept.into_values().collect();
        Self {
            schema: "tropa.nodes/1",
            summary: summary(&rows, machines, usable),
            cleaned: nodes.only(&lines),
            entries: rows,
            machines,
            usable,
        }
    }
}

/// Judges an entry whose install is known, after those before it in the file.
fn judge(
    entry: &Entry,
    install: &Install,
    view: &View,
    taken: &mut BTreeMap<AgentId, usize>,
    kept: &mut BTreeMap<AgentId, usize>,
) -> Row {
    let machine = view.machine(install.machine);
    let row = |verdict, why: String, remedy: String| Row {
        line: entry.line,
        url: entry.url.clone(),
        name: entry.name.clone(),
        verdict,
        agent: Some(install.label.clone()),
        machine: machine.map(|machine| machine.shown().to_string()),
        machine_name: machine.map(|machine| machine.name.clone()),
        why,
        remedy,
    };
    if let Some(before) = taken.get(&install.agent) {
        let why = format!("the same install as line {before}, by another address");
        return row(Verdict::SameInstall, why, String::new());
    }
    taken.insert(install.agent, entry.line);
    if let Some(out) = &install.out {
        let (why, remedy) = reason_out(out, &install.label);
        return row(Verdict::Out, why, remedy);
    }
    if let Some((rival, line)) = kept.iter().find(|(agent, _)| install.rivals.contains(agent)) {
        let why = format!("the same hardware as line {line}: {}", view.why_together(install.agent, *rival));
        return row(Verdict::SameHardware, why, String::new());
    }
    kept.insert(install.agent, entry.line);
    let why =
        if install.evidence.declared { "hardware of its own, as declared" } else { "hardware of its own" };
    row(Verdict::Keep, why.to_owned(), String::new())
}

fn unknown(entry: &Entry, why: String, remedy: String) -> Row {
    Row {
        line: entry.line,
        url: entry.url.clone(),
        name: entry.name.clone(),
        verdict: Verdict::Unknown,
        agent: None,
        machine: None,
        machine_name: None,
        why,
        remedy,
    }
}

fn summary(rows: &[Row], machines: usize, usable: usize) -> String {
    let count = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    let many = |count: usize, word: &str| match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    };
    let entries = if rows.len() == 1 { "1 entry".to_owned() } else { format!("{} entries", rows.len()) };
    let mut text =
        format!("{entries}, {} known: {usable} may work at the same time.", many(machines, "machine"));
    let shared = count(Verdict::SameInstall) + count(Verdict::SameHardware);
    let unknown = count(Verdict::Unknown);
    if shared > 0 {
        text.push_str(&format!(" {shared} would only slow others down."));
    }
    if unknown > 0 {
        text.push_str(&format!(
            " {unknown} without an agent: nobody knows what hardware that is, so not usable."
        ));
    }
    text
}

/// Tells people: on stderr, since the file goes to stdout.
#[expect(clippy::print_stderr, reason = "messages go to stderr")]
fn say(report: &Report) {
    let mut table = Table::new(["LINE", "URL", "AGENT", "MACHINE", "VERDICT", "WHY"]);
    for row in &report.entries {
        let verdict = match row.verdict {
            Verdict::Keep => "keep",
            Verdict::SameInstall => "same install",
            Verdict::SameHardware => "same hardware",
            Verdict::Out => "out",
            Verdict::Unknown => "unknown",
        };
        let dash = "-".to_owned();
        let machine = row.machine_name.as_ref().zip(row.machine.as_ref());
        let machine = machine.map_or_else(|| dash.clone(), |(name, id)| format!("{name} ({id})"));
        table.row([
            &row.line.to_string(),
            &row.url,
            row.agent.as_ref().unwrap_or(&dash),
            &machine,
            verdict,
            &row.why,
        ]);
    }
    eprintln!("{table}\n");
    for row in report.entries.iter().filter(|row| !row.remedy.is_empty()) {
        eprintln!("line {}: {}", row.line, escaped(&row.remedy));
    }
    eprintln!("{}", report.summary);
}
