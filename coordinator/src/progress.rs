//! How far the job is, on stderr: one bar per machine on a terminal, a plain line every ten seconds elsewhere.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tropa_proto::id::MachineId;

use crate::{args::When, terminal::escaped};

/// How often a pipe gets a line (`conventions.md` §3).
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How far the job is.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Items in all.
    pub total: u64,
    /// Items with a committed result.
    pub done: u64,
    /// Items with a committed failure.
    pub failed: u64,
    /// By machine, in the order of ids.
    pub machines: BTreeMap<MachineId, MachineProgress>,
}

/// What one machine does and has done.
#[derive(Clone, Debug, Default)]
pub struct MachineProgress {
    /// Its name for people, not yet escaped.
    pub name: String,
    /// Items committed from here.
    pub done: u64,
    /// Attempts that it holds now.
    pub holding: usize,
    /// Tokens of finished answers.
    pub tokens: u64,
    /// Tokens of answers that are being written.
    pub tokens_running: u64,
    /// What holds it up, if something does.
    pub note: String,
}

/// Shows snapshots.
#[derive(Debug)]
pub struct Progress {
    kind: Kind,
    next: Duration,
}

#[derive(Debug)]
enum Kind {
    Bars { all: MultiProgress, total: ProgressBar, machines: BTreeMap<MachineId, ProgressBar> },
    Lines,
    Silent,
}

impl Progress {
    /// Chooses bars, lines or silence for this stderr.
    #[must_use]
    pub fn new(when: When, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let kind = match (when, quiet, terminal) {
            (When::Never, ..) | (_, true, _) => Kind::Silent,
            (When::Auto | When::Always, false, true) => bars(),
            (When::Auto | When::Always, false, false) => Kind::Lines,
        };
        Self { kind, next: LINE_EVERY }
    }

    /// Shows the snapshot if it is time to.
    #[expect(clippy::print_stderr, reason = "progress goes to stderr")]
    pub fn show(&mut self, snapshot: &Snapshot, now: Duration) {
        match &mut self.kind {
            Kind::Silent => {}
            Kind::Lines => {
                if now >= self.next {
                    self.next = now + LINE_EVERY;
                    eprintln!("{}", line(snapshot, now));
                }
            }
            Kind::Bars { all, total, machines } => {
                total.set_length(snapshot.total);
                total.set_position(snapshot.done + snapshot.failed);
                total.set_message(if snapshot.failed > 0 {
                    format!("{} failed", snapshot.failed)
                } else {
                    String::new()
                });
                for (id, machine) in &snapshot.machines {
                    let bar = machines
                        .entry(*id)
                        .or_insert_with(|| all.add(ProgressBar::new_spinner().with_style(style("  {msg}"))));
                    bar.set_message(machine_line(machine, now));
                }
            }
        }
    }

    /// Prints a message without tearing the bars.
    #[expect(clippy::print_stderr, reason = "messages go to stderr")]
    pub fn say(&self, message: &str) {
        match &self.kind {
            Kind::Bars { all, .. } => {
                // A terminal that went away is no reason to stop.
                let _ = all.println(message);
            }
            Kind::Lines | Kind::Silent => eprintln!("{message}"),
        }
    }

    /// Takes the bars away.
    pub fn finish(&self) {
        if let Kind::Bars { all, .. } = &self.kind {
            let _ = all.clear();
        }
    }
}

fn bars() -> Kind {
    let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8));
    let total = all.add(ProgressBar::new(0).with_style(style("{bar:30} {pos}/{len} {elapsed} {msg}")));
    Kind::Bars { all, total, machines: BTreeMap::new() }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn machine_line(machine: &MachineProgress, now: Duration) -> String {
    let tokens = machine.tokens + machine.tokens_running;
    let rate = tokens as f64 / now.as_secs_f64().max(1.0);
    let note =
        if machine.note.is_empty() { String::new() } else { format!("    {}", escaped(&machine.note)) };
    format!("{:<16} {:>6} done    {rate:>7.1} tokens/s{note}", escaped(&machine.name), machine.done)
}

fn line(snapshot: &Snapshot, now: Duration) -> String {
    let busy = snapshot.machines.values().filter(|machine| machine.holding > 0).count();
    let tokens: u64 = snapshot.machines.values().map(|machine| machine.tokens + machine.tokens_running).sum();
    let rate = tokens as f64 / now.as_secs_f64().max(1.0);
    format!(
        "{} of {} done, {} failed, {busy} machine{} at work, {rate:.1} tokens/s",
        snapshot.done,
        snapshot.total,
        snapshot.failed,
        if busy == 1 { "" } else { "s" },
    )
}
