//! What tests and other benches print when they are run.

use std::process::Command;

/// How often the rows of the fault suite are run whose figure is a time: each run takes half a minute.
const TIMES: usize = 3;

/// Rows whose figure is a time.
const TIMED: [&str; 3] =
    ["faults::agents::fault_f01", "faults::agents::fault_f03", "faults::agents::fault_f04_a_frozen"];

/// Rows that are run once.
const ONCE: [&str; 3] =
    ["faults::agents::fault_f20", "faults::engines::fault_f29", "faults::coordinators::fault_f19"];

/// Tests whose lines or names are figures.
const PROOFS: [&str; 7] =
    ["crash::cc1", "crash::cc2", "crash::cc3", "canary::", "planted::", "failure_modes::", "evil::fault_f2"];

/// Text that was printed; `None` when nothing could be run.
#[derive(Debug)]
pub(crate) struct Printed {
    text: Option<String>,
    times: usize,
}

impl Printed {
    /// The fault suite, in parts.
    pub(crate) fn faults() -> Self {
        // One after the other: a figure that is a time wants the machine for itself.
        let timed = (0..TIMES).map(|_| tests(&TIMED, 1));
        let text = timed.chain([tests(&ONCE, 1)]).collect::<Option<Vec<_>>>().map(|texts| texts.concat());
        Self { text, times: TIMES }
    }

    /// Tests of crashes, peers, content and planted bugs.
    pub(crate) fn proofs() -> Self {
        Self { text: tests(&PROOFS, 2), times: 1 }
    }

    /// The bench of the journal.
    pub(crate) fn journal() -> Self {
        Self { text: cargo(&["bench", "--bench", "journal"]), times: 1 }
    }

    /// Parts of the bench of a lane.
    pub(crate) fn lane() -> Self {
        Self { text: cargo(&["bench", "--bench", "lane", "--", "rate", "agent", "--short"]), times: 1 }
    }

    /// How often it was run.
    pub(crate) fn times(&self) -> String {
        if self.times == 1 { "1 run".to_owned() } else { format!("up to {} runs", self.times) }
    }

    /// What follows this beginning in the lines that have it; alike ones once.
    pub(crate) fn lines(&self, start: &str) -> String {
        let text = self.text.as_deref().unwrap_or_default();
        let mut found: Vec<&str> =
            text.lines().filter_map(|line| line.split_once(start).map(|(_, rest)| rest)).collect();
        found.dedup();
        if found.is_empty() {
            return "not measured: it failed or was skipped".to_owned();
        }
        let trimmed = |rest: &&str| rest.trim().trim_start_matches([',', ':']).trim().replace('|', "/");
        found.iter().map(trimmed).collect::<Vec<_>>().join("; ")
    }

    /// Whether a text was printed.
    pub(crate) fn holds(&self, what: &str) -> bool {
        self.text.as_deref().is_some_and(|text| text.contains(what))
    }

    /// How many of the tests below a path passed.
    pub(crate) fn passed(&self, path: &str) -> String {
        let text = self.text.as_deref().unwrap_or_default();
        let ended = |word: &str| {
            let is = |line: &&str| line.starts_with(&format!("test {path}")) && line.ends_with(word);
            text.lines().filter(is).count()
        };
        let (ok, failed) = (ended("ok"), ended("FAILED"));
        format!("{ok} of {}", ok + failed)
    }
}

fn tests(filters: &[&str], threads: usize) -> Option<String> {
    let threads = format!("--test-threads={threads}");
    cargo(&[&["test", "--test", "main", "--"], filters, &["--nocapture", &threads]].concat())
}

fn cargo(arguments: &[&str]) -> Option<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let (verb, rest) = arguments.split_first()?;
    let mut command = Command::new(cargo);
    command.args([verb, "--locked", "-p", "tropa-tests"]);
    if verb == &"bench" && cfg!(debug_assertions) {
        // A trial of this command asks for no build that it is not itself.
        command.args(["--profile", "dev"]);
    }
    command.args(rest);
    let output = command.output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
