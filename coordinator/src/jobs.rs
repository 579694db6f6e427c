//! `tropa jobs` and `tropa cancel`: what there is, where it stands, giving it up and deleting it.
//!
//! All but `cancel` and `purge` only read, beside a coordinator that may be at work.

mod cancel;
mod purge;
mod show;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use serde::Serialize;

pub use self::cancel::cancel;
use crate::{
    args::JobsCommand,
    clock::Clock,
    exit::{Exit, Outcome},
    journal::{self, JobState, State},
    settings::Settings,
    stdout::{print, print_json},
    submit::OrCode as _,
    table::Table,
};

/// `tropa jobs`, with what follows.
///
/// # Errors
/// With [`Exit::Usage`] for a job that is not there, [`Exit::Busy`] for one at work that is to be deleted,
/// [`Exit::Io`] for what cannot be read or deleted.
pub fn jobs(command: Option<JobsCommand>, settings: &Settings, clock: Clock) -> Outcome {
    match command {
        None => list(settings),
        Some(JobsCommand::Show(args)) => show::show(&args, settings),
        Some(JobsCommand::Purge(args)) => purge::purge(&args, settings, clock),
    }
}

fn list(settings: &Settings) -> Outcome {
    let list = journal::list(&settings.jobs()).or_code()?;
    let rows: Vec<JobRow> = list.iter().map(JobRow::of).collect();
    if settings.json {
        print_json(&JobList { schema: "tropa.jobs/1", jobs: rows })?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(["JOB", "KIND", "CREATED", "DONE", "FAILED", "ITEMS", "STATE"]);
    for row in &rows {
        table.row([
            &row.id[..6],
            &row.kind,
            &row.created,
            &row.done.to_string(),
            &row.failed.to_string(),
            &row.items.to_string(),
            &row.state,
        ]);
    }
    print(&table.to_string())?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct JobList {
    schema: &'static str,
    jobs: Vec<JobRow>,
}

#[derive(Debug, Serialize)]
struct JobRow {
    id: String,
    kind: String,
    created: String,
    done: u32,
    failed: u32,
    items: u32,
    state: String,
}

impl JobRow {
    fn of(job: &journal::JobSummary) -> Self {
        let id = job.id.to_string();
        let nothing = |state: String| Self {
            id: job.id.to_string(),
            kind: "-".to_owned(),
            created: "-".to_owned(),
            done: 0,
            failed: 0,
            items: 0,
            state,
        };
        match &job.state {
            JobState::Whole { kind, state, created_ms, done, failed, items, .. } => Self {
                id,
                kind: kind.name().to_owned(),
                created: date(*created_ms),
                done: *done,
                failed: *failed,
                items: *items,
                state: state_of(*state, job.running, job.cancelling).to_owned(),
            },
            JobState::Incomplete if job.running => nothing("reading its input".to_owned()),
            JobState::Incomplete => nothing("its input never arrived: submit it again".to_owned()),
            JobState::Unreadable(why) => nothing(format!("unreadable: {why}")),
        }
    }
}

/// Where a job stands, in one word or two.
pub(crate) fn state_of(state: State, running: bool, cancelling: bool) -> &'static str {
    match (state, running, cancelling) {
        (State::Done, ..) => state.name(),
        (State::Open, true, true) => "cancelling",
        (State::Open, true, false) => "running",
        (State::Open, false, true) | (State::Cancelled, ..) => State::Cancelled.name(),
        (State::Open, false, false) => state.name(),
    }
}

/// Shows a time of the wall clock, in UTC.
pub(crate) fn date(ms: u64) -> String {
    shown(ms, "%Y-%m-%d %H:%M")
}

/// Shows a time of the wall clock with its seconds, in UTC.
pub(crate) fn second(ms: u64) -> String {
    shown(ms, "%Y-%m-%d %H:%M:%S")
}

fn shown(ms: u64, format: &str) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| "-".to_owned(), |at| at.strftime(format).to_string())
}
