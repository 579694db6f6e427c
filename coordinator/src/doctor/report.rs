//! All findings, for people and as JSON.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::finding::{Finding, Level};
use crate::{
    settings::{Chosen, Setting},
    terminal::escaped,
};

/// Findings of one level and code that are written out for people; `--json` has all.
const ALIKE: usize = 5;

/// The object that `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The version of this object.
    schema: &'static str,
    /// The version of this program.
    tropa: &'static str,
    /// How many findings are so.
    pub(super) fail: usize,
    pub(super) warn: usize,
    pub(super) ok: usize,
    /// The findings: first what fails, then what is worth a look, then what is in order; within each in the order of the
    /// checks.
    findings: Vec<Finding>,
    /// The configuration files that were read, the strongest first.
    files: Vec<String>,
    /// Every setting with its value and where it came from.
    settings: Vec<Setting>,
}

impl Report {
    /// Puts findings in order.
    pub(super) fn new(mut findings: Vec<Finding>, chosen: Chosen) -> Self {
        // Stable: within a level the order of the checks stays.
        findings.sort_by_key(|finding| finding.level);
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        Self {
            schema: "tropa.doctor/1",
            tropa: env!("CARGO_PKG_VERSION"),
            fail: count(Level::Fail),
            warn: count(Level::Warn),
            ok: count(Level::Ok),
            findings,
            files: chosen.files.iter().map(|file| file.path.display().to_string()).collect(),
            settings: chosen.settings,
        }
    }

    /// Writes it for people: a line for each finding, and below what is not in order why and what mends it.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut seen: BTreeMap<(Level, &str), usize> = BTreeMap::new();
        for finding in &self.findings {
            let alike = seen.entry((finding.level, finding.code)).or_default();
            *alike += 1;
            if *alike <= ALIKE {
                write(&mut text, finding);
            }
        }
        let hidden: usize = seen.values().map(|alike| alike.saturating_sub(ALIKE)).sum();
        if hidden > 0 {
            let _ = writeln!(text, "and {hidden} more of these kinds: tropa doctor --json");
        }
        let _ = writeln!(text, "\n{} fail, {} warn, {} ok", self.fail, self.warn, self.ok);
        text
    }
}

fn write(text: &mut String, finding: &Finding) {
    let level = match finding.level {
        Level::Fail => "fail",
        Level::Warn => "warn",
        Level::Ok => "ok  ",
    };
    let _ = writeln!(text, "{level}    {}    {}", finding.code, escaped(&finding.what));
    for line in [&finding.why, &finding.fix].into_iter().filter(|line| !line.is_empty()) {
        let _ = writeln!(text, "        {}", escaped(line));
    }
}
