//! `tropa cancel`: gives a job up. A coordinator that runs it is asked to, and stops in good order.

use std::{path::Path, time::Duration};

use serde::Serialize;

use crate::{
    args::CancelArgs,
    clock::Clock,
    exit::{Exit, Failed, OrExit as _, Outcome},
    journal::{self, Cancel, Error, Journal, State},
    settings::Settings,
    stdout::{print, print_json},
    submit::OrCode as _,
};

/// Between two looks whether a coordinator has let go of the job.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    job: String,
    /// `cancelled`, `cancelling` while its coordinator still waits for what runs, `done` where it was over already.
    state: &'static str,
    done: u32,
    items: u32,
}

/// `tropa cancel`: waits at most `--wait` for a coordinator to stop. It stops without us too.
///
/// # Errors
/// With [`Exit::Usage`] for a job that is not there, and the codes of a journal that cannot be opened or written.
pub async fn cancel(args: &CancelArgs, settings: &Settings, clock: Clock) -> Outcome {
    let id = journal::find(&settings.jobs(), &args.job).or_exit(Exit::Usage)?;
    let dir = settings.jobs().join(id.to_string());
    let mut marked = false;
    let started = clock.now();
    let state = loop {
        match Journal::open(&dir) {
            Ok(journal) => break here(journal)?,
            Err(Error::Locked { .. }) => {}
            Err(error) => return Err(error).or_code(),
        }
        if !marked {
            let how = if args.now { Cancel::AtOnce } else { Cancel::Gently };
            journal::ask_to_cancel(&dir, how).or_code()?;
            marked = true;
        }
        if clock.now().saturating_sub(started) >= settings.wait {
            break "cancelling";
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    say(&dir, state, settings)
}

/// Cancels a job that nobody works on.
fn here(mut journal: Journal) -> Result<&'static str, Failed> {
    if journal.job().state == State::Open {
        journal.set_state(State::Cancelled).or_code()?;
    }
    journal.clear_cancel().or_code()?;
    Ok(journal.job().state.name())
}

fn say(dir: &Path, state: &'static str, settings: &Settings) -> Outcome {
    let journal = Journal::open_read_only(dir).or_code()?;
    let (job, totals) = (journal.job(), journal.totals().or_code()?);
    let (done, items, id) = (totals.done, job.chunks, job.id.short());
    if settings.json {
        let report = Report { schema: "tropa.cancel/1", job: job.id.to_string(), state, done, items };
        print_json(&report)?;
        return Ok(Exit::Done);
    }
    print(&match state {
        "done" => format!("job {id} is done already: {done} of {items} items"),
        "cancelling" => format!(
            "job {id} stops as soon as what runs has ended: {done} of {items} items are done; not to wait for it: \
             tropa cancel {id} --now"
        ),
        _ => format!(
            "job {id} is cancelled: {done} of {items} items are done and kept; to go on all the same: tropa resume \
             {id} --cancelled; to delete it: tropa jobs purge {id}"
        ),
    })?;
    Ok(Exit::Done)
}
