//! `tropa jobs purge`: deletes jobs with their prompts, answers and keys. Erasing from flash memory is not promised.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use serde::Serialize;
use tropa_proto::id::JobId;

use crate::{
    args::PurgeArgs,
    clock::Clock,
    exit::{Exit, Failed, OrExit as _, Outcome},
    journal::{self, JobState, JobSummary, State},
    settings::Settings,
    stdout::{print, print_json},
    submit::OrCode as _,
};

/// What is done with a job that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes.
    Purge,
    /// It holds results that are not finished: it goes if the user says so.
    Ask,
    /// A coordinator works on it.
    Running,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    purged: Vec<String>,
    bytes: u64,
    /// Jobs that were chosen and are still there, with the reason.
    kept: BTreeMap<String, &'static str>,
}

/// `tropa jobs purge`.
///
/// # Errors
/// With [`Exit::Usage`] for a job that is not there, or is not finished and `--yes` does not say so, before any is
/// deleted; [`Exit::Busy`] for one that was named and runs; [`Exit::Io`] for files that cannot be deleted.
pub(super) fn purge(args: &PurgeArgs, settings: &Settings, clock: Clock) -> Outcome {
    let jobs = settings.jobs();
    if args.jobs.is_empty() && !args.done && args.older_than.is_none() {
        return Err(Failed::new(
            Exit::Usage,
            "which jobs? name them, or choose with --done or --older-than 30d",
        ));
    }
    journal::sweep(&jobs);
    let chosen = if args.jobs.is_empty() {
        let list = journal::list(&jobs).or_code()?;
        list.into_iter().filter(|job| fits(job, args.done, args.older_than, clock.wall_ms())).collect()
    } else {
        let ids = args.jobs.iter().map(|prefix| journal::find(&jobs, prefix));
        let ids: std::collections::BTreeSet<JobId> = ids.collect::<Result<_, _>>().or_exit(Exit::Usage)?;
        ids.into_iter().map(|id| journal::summary(&jobs, id)).collect::<Vec<_>>()
    };
    let running: Vec<&JobSummary> = chosen.iter().filter(|job| verdict(job) == Verdict::Running).collect();
    if let (Some(job), false) = (running.first(), args.jobs.is_empty()) {
        let id = job.id.short();
        let why = format!("job {id} runs, so it is not deleted; give it up first: tropa cancel {id}");
        return Err(Failed::new(Exit::Busy, why));
    }
    let open: Vec<String> =
        chosen.iter().filter(|job| verdict(job) == Verdict::Ask).map(|job| job.id.short()).collect();
    if !open.is_empty() && !args.yes {
        confirm(&open)?;
    }
    let mut report = Report { schema: "tropa.purge/1", purged: Vec::new(), bytes: 0, kept: BTreeMap::new() };
    for job in &chosen {
        match verdict(job) {
            Verdict::Running => _ = report.kept.insert(job.id.to_string(), "running"),
            Verdict::Purge | Verdict::Ask => match journal::purge(&job.dir) {
                Ok(bytes) => {
                    report.bytes += bytes;
                    report.purged.push(job.id.to_string());
                }
                // Somebody has resumed it meanwhile.
                Err(journal::Error::Locked { .. }) => {
                    report.kept.insert(job.id.to_string(), "running");
                }
                Err(error) => return Err(error).or_code(),
            },
        }
    }
    say(&report, settings)
}

/// Whether a job is chosen by `--done` and `--older-than`. One without a date is as old as nobody knows: not chosen
/// by age.
pub(super) fn fits(job: &JobSummary, done: bool, older_than: Option<Duration>, now_ms: u64) -> bool {
    let (state, created) = match job.state {
        JobState::Whole { state, created_ms, .. } => (Some(state), Some(created_ms)),
        JobState::Incomplete | JobState::Unreadable(_) => (None, None),
    };
    let old = older_than
        .is_none_or(|age| created.is_some_and(|ms| u128::from(now_ms.saturating_sub(ms)) > age.as_millis()));
    old && (!done || state == Some(State::Done))
}

pub(super) fn verdict(job: &JobSummary) -> Verdict {
    if job.running {
        return Verdict::Running;
    }
    match job.state {
        JobState::Whole { state: State::Done | State::Cancelled, .. } | JobState::Incomplete => {
            Verdict::Purge
        }
        JobState::Whole { state: State::Open, .. } if job.cancelling => Verdict::Purge,
        JobState::Whole { state: State::Open, .. } | JobState::Unreadable(_) => Verdict::Ask,
    }
}

/// Asks at a terminal; elsewhere only `--yes` answers.
#[expect(clippy::print_stderr, reason = "a question goes to stderr")]
fn confirm(open: &[String]) -> Result<(), Failed> {
    let what = if let [one] = open {
        format!("job {one} is not finished and could be resumed")
    } else {
        format!("{} jobs are not finished and could be resumed: {}", open.len(), open.join(", "))
    };
    if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
        eprint!("{what}. Delete? [y/N] ");
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        read.context("reading the answer").or_exit(Exit::Io)?;
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(());
        }
    }
    Err(Failed::new(Exit::Usage, format!("{what}; nothing was deleted; to delete all the same: --yes")))
}

fn say(report: &Report, settings: &Settings) -> Outcome {
    if settings.json {
        print_json(report)?;
        return Ok(Exit::Done);
    }
    let kept = if report.kept.is_empty() {
        String::new()
    } else {
        format!("; {} that run are kept", report.kept.len())
    };
    let (count, mib) = (report.purged.len(), report.bytes as f64 / f64::from(1 << 20));
    let jobs = if count == 1 { "job" } else { "jobs" };
    print(&format!("{count} {jobs} deleted, {mib:.1} MiB{kept}"))?;
    Ok(Exit::Done)
}
