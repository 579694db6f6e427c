use std::{path::PathBuf, time::Duration};

use tropa_proto::id::JobId;

use super::{
    purge::{Verdict, fits, verdict},
    state_of,
};
use crate::journal::{JobState, JobSummary, Kind, State};

fn job(state: JobState) -> JobSummary {
    JobSummary { id: JobId([1; 16]), dir: PathBuf::new(), state, running: false, cancelling: false }
}

fn whole(state: State) -> JobState {
    JobState::Whole { kind: Kind::Run, state, created_ms: 1_000, chunks: 2, items: 2, done: 1, failed: 0 }
}

#[test]
fn what_is_not_finished_is_deleted_only_on_demand_and_what_runs_never() {
    for (state, expected) in [
        (whole(State::Done), Verdict::Purge),
        (whole(State::Cancelled), Verdict::Purge),
        (JobState::Incomplete, Verdict::Purge),
        (whole(State::Open), Verdict::Ask),
        (JobState::Unreadable("why".to_owned()), Verdict::Ask),
    ] {
        assert_eq!(verdict(&job(state.clone())), expected, "{state:?}");
        let running = JobSummary { running: true, ..job(state) };
        assert_eq!(verdict(&running), Verdict::Running);
    }
}

#[test]
fn done_and_older_than_choose_what_is_both() {
    let (done, open) = (job(whole(State::Done)), job(whole(State::Open)));
    let lost = job(JobState::Unreadable(String::new()));
    let day = Some(Duration::from_secs(86_400));
    let tomorrow = 1_000 + 86_400_001;
    assert!(fits(&done, true, None, 0) && !fits(&open, true, None, 0) && !fits(&lost, true, None, 0));
    assert!(fits(&done, false, day, tomorrow) && fits(&open, false, day, tomorrow));
    assert!(!fits(&done, false, day, tomorrow - 1), "just a day is not longer than a day");
    assert!(!fits(&lost, false, day, tomorrow), "nobody knows how old it is");
    assert!(fits(&done, true, day, tomorrow) && !fits(&open, true, day, tomorrow));
}

#[test]
fn a_mark_counts_until_the_job_is_over() {
    assert_eq!(state_of(State::Open, true, true), "cancelling");
    assert_eq!(state_of(State::Open, false, true), "cancelled");
    assert_eq!(state_of(State::Done, false, true), "done");
    assert_eq!(state_of(State::Open, true, false), "running");
}
