//! The jobs of this user: their journals are sound, and those that were left half-way are named.

use super::{
    Here,
    finding::{Finding, named, quoted},
};
use crate::{
    journal::{self, Error, JobState, JobSummary, State},
    words::{count, with_source},
};

/// Every job. All pages of every journal are read, however large it is.
pub(super) fn check(here: &Here) -> Vec<Finding> {
    let jobs = here.chosen.places.state.join("jobs");
    let list = match journal::list(&jobs) {
        Ok(list) => list,
        Err(error) => {
            let what = format!("the jobs cannot be listed: {}", with_source(&error));
            return vec![Finding::fail("journal.unreadable", what).fix(format!("ls -ld {}", quoted(&jobs)))];
        }
    };
    let mut findings: Vec<Finding> = list.iter().filter_map(unsound).collect();
    if findings.is_empty() {
        let what = match list.len() {
            0 => "there are no jobs".to_owned(),
            some => format!(
                "{}, every page of {} sound",
                count(some, "job"),
                if some == 1 { "it" } else { "them" }
            ),
        };
        findings.push(Finding::ok("journal.sound", what));
    }
    findings.extend(list.iter().filter_map(unfinished));
    findings.extend(at_work(&list));
    findings
}

/// A journal that cannot be gone on with.
fn unsound(job: &JobSummary) -> Option<Finding> {
    let id = job.id.short();
    let error = journal::examine(&job.dir).err()?;
    let purge = format!("tropa jobs purge {id} --yes");
    match &error {
        // Its input comes in, or it has been deleted meanwhile.
        Error::Incomplete if job.running => None,
        Error::Io { .. } | Error::Sql { .. } if !job.dir.exists() => None,
        Error::Incomplete => {
            let what = format!("the input of job {id} never arrived as a whole");
            Some(Finding::warn("journal.incomplete", what).because("submit it again").fix(purge))
        }
        Error::NotAJournal { .. } => {
            let what = format!("job {id} was made by another version of tropa: {error}");
            let why = "it can be gone on with by that version only";
            Some(Finding::warn("journal.version", what).because(why).fix(purge))
        }
        Error::Damaged(_) => {
            let what = format!("job {id}: {error}");
            let why = "what it holds may be lost; submit the job again";
            let fix = format!("mv {0} {0}.damaged", quoted(&job.dir));
            Some(Finding::fail("journal.damaged", what).because(why).fix(fix))
        }
        Error::Locked { .. }
        | Error::Pragma { .. }
        | Error::Network { .. }
        | Error::NoSpace { .. }
        | Error::TooMany
        | Error::TooLarge { .. }
        | Error::Io { .. }
        | Error::Sql { .. } => {
            let what = format!("the journal of job {id} cannot be read: {}", with_source(&error));
            Some(Finding::fail("journal.unreadable", what).fix(format!("ls -la {}", quoted(&job.dir))))
        }
    }
}

/// A job that nobody works on and that is not over.
fn unfinished(job: &JobSummary) -> Option<Finding> {
    let JobState::Whole { kind, state: State::Open, items, done, failed, .. } = &job.state else {
        return None;
    };
    if job.running || job.cancelling {
        return None;
    }
    let id = job.id.short();
    let failed = if *failed == 0 { String::new() } else { format!(" and {failed} failed") };
    let what =
        format!("job {id} ({}) is not finished: {done} of {items} items are done{failed}", kind.name());
    Some(Finding::warn("job.unfinished", what).fix(format!("tropa resume {id}")))
}

/// The jobs that a coordinator works on now.
fn at_work(list: &[JobSummary]) -> Option<Finding> {
    let running: Vec<String> = list
        .iter()
        .filter(|job| job.running)
        .map(|job| match journal::holder(&job.dir) {
            Some(holder) => format!("{} ({holder})", job.id.short()),
            None => job.id.short(),
        })
        .collect();
    let named = named(running.iter().map(String::as_str));
    (!running.is_empty()).then(|| Finding::ok("job.running", format!("at work: {named}")))
}
