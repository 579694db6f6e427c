//! How far the job is, on stderr: one bar per machine on a terminal, a plain line every ten seconds elsewhere.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tropa_proto::{id::MachineId, roster::Machine, uid::ShownId};

use crate::{args::When, terminal::escaped, words::count};

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
    /// By machine, in the order of the ids that people see.
    pub machines: BTreeMap<ShownId, MachineProgress>,
}

/// What one machine does and has done.
#[derive(Clone, Debug, Default)]
pub struct MachineProgress {
    /// Its name for people, not yet escaped; with its short id where another machine has the same name.
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

impl Snapshot {
    /// Takes what machines are called now; what one did under another id is what it has done.
    pub fn name(&mut self, machines: &[Machine]) {
        let mut alike: BTreeMap<&str, usize> = BTreeMap::new();
        for machine in machines {
            *alike.entry(&machine.name).or_default() += 1;
        }
        for machine in machines {
            let id = machine.shown();
            let aliases = machine.aliases.iter().copied().map(ShownId::Uid);
            let in_roster = machine.agents.iter().map(|agent| ShownId::Roster(MachineId(*agent)));
            let mut own = self.machines.remove(&id).unwrap_or_default();
            for former in aliases.chain(in_roster).filter_map(|former| self.machines.remove(&former)) {
                (own.done, own.tokens) = (own.done + former.done, own.tokens + former.tokens);
            }
            own.name = match alike.get(machine.name.as_str()) {
                Some(2..) => format!("{} ({id})", machine.name),
                Some(_) | None => machine.name.clone(),
            };
            self.machines.insert(id, own);
        }
    }
}

/// Shows snapshots.
#[derive(Debug)]
pub struct Progress {
    kind: Kind,
    next: Duration,
}

#[derive(Debug)]
enum Kind {
    Bars { all: MultiProgress, total: ProgressBar, machines: BTreeMap<ShownId, ProgressBar> },
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
                machines.retain(|id, bar| {
                    let stays = snapshot.machines.contains_key(id);
                    if !stays {
                        all.remove(bar);
                    }
                    stays
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
        "{} of {} done, {} failed, {} at work, {rate:.1} tokens/s",
        snapshot.done,
        snapshot.total,
        snapshot.failed,
        count(busy, "machine"),
    )
}

#[cfg(test)]
mod tests {
    use tropa_proto::{id::AgentId, uid::MachineUid};

    use super::*;

    /// A machine with this uid, or none where it is 0.
    fn machine(own: u8, aliases: &[u8], agents: &[u8], name: &str) -> Machine {
        let uid = |n: u8| MachineUid { created_ms: u64::from(n), random: [n; 16] };
        let agents: Vec<AgentId> = agents.iter().map(|n| AgentId([*n; 32])).collect();
        Machine {
            id: MachineId(agents[0]),
            uid: (own > 0).then(|| uid(own)),
            aliases: aliases.iter().map(|n| uid(*n)).collect(),
            name: name.to_owned(),
            agents,
        }
    }

    fn lines(snapshot: &Snapshot) -> Vec<(&str, u64)> {
        snapshot.machines.values().map(|machine| (machine.name.as_str(), machine.done)).collect()
    }

    #[test]
    fn a_machine_has_one_line_whatever_it_was_called_before_and_two_of_one_name_have_their_ids() {
        let mut snapshot = Snapshot::default();
        snapshot.name(&[machine(0, &[], &[1], "den"), machine(2, &[], &[2], "den")]);
        for machine in snapshot.machines.values_mut() {
            machine.done = 3;
        }
        assert_eq!(lines(&snapshot), [("den (m-0202)", 3), ("den (m-0101)", 3)]);
        snapshot.name(&[machine(7, &[], &[0, 1], "attic"), machine(2, &[], &[2], "den")]);
        assert_eq!(lines(&snapshot), [("den", 3), ("attic", 3)], "it has a uid now, and another agent");
        snapshot.name(&[machine(2, &[7], &[0, 1, 2], "attic")]);
        assert_eq!(lines(&snapshot), [("attic", 6)], "the two are one");
    }
}
