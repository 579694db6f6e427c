//! `tropa doctor`: looks whether everything is in order, and says what to do where it is not.
//!
//! A check is a small function from what it looks at to findings. Those of `HERE` need this machine only and run
//! whatever is wrong; those of `MESH` need a mesh to have been joined with the settings, as every other command does
//! it. A new check is a new line in one of the two lists.
//!
//! Nothing is mended here: whoever reads a finding does that. Like every command that joins a mesh, this one keeps how far
//! the numbers of agents have gone, and where nobody answers its own agent makes its key. No prompt, no secret and no raw
//! hardware id is printed.

mod clocks;
mod configuration;
mod finding;
mod installs;
mod jobs;
mod members;
mod models;
mod places;
mod report;
mod secret;
mod seen;
#[cfg(test)]
mod tests;

use self::{finding::Finding, report::Report, seen::Seen};
use crate::{
    args::{DoctorArgs, Global},
    clock::Clock,
    exit::{Exit, Failed, Outcome},
    settings::{Chosen, FileError, JobDefaults, Settings},
    stdout::{print, print_json},
};

/// What can be looked at without the mesh.
#[derive(Debug)]
struct Here {
    /// The settings, and where each came from.
    chosen: Chosen,
    /// Configuration files that cannot be used.
    wrong: Vec<FileError>,
    /// What the settings come to, or why they come to nothing.
    settings: Result<Settings, Failed>,
    /// The wall clock in milliseconds since 1970.
    now_ms: u64,
}

/// The checks of this machine, in the order in which they are told.
const HERE: [fn(&Here) -> Vec<Finding>; 8] = [
    configuration::files,
    configuration::values,
    secret::check,
    places::state,
    places::runtime,
    places::locks,
    places::room,
    jobs::check,
];

/// The checks of the mesh, in the order in which they are told.
const MESH: [fn(&Seen) -> Vec<Finding>; 12] = [
    members::reached,
    members::here,
    members::programs,
    clocks::check,
    configuration::rules,
    installs::capacity,
    installs::answer,
    installs::without_agent,
    installs::exposed,
    installs::unused_gpus,
    models::check,
    installs::warnings,
];

/// `tropa doctor`: waits at most `--wait` for the agents that should be there, and as long again for the live tests that
/// run by themselves.
///
/// Ends with [`Exit::NothingCanRun`] where a finding is `fail`.
///
/// # Errors
/// With [`Exit::Usage`] where there is no home directory, [`Exit::Io`] where stdout takes nothing. Whatever else is wrong
/// is a finding.
pub async fn doctor(args: &DoctorArgs, global: &Global, clock: Clock) -> Outcome {
    let (chosen, wrong) = Chosen::of(global, &JobDefaults::asked(args))?;
    let settings = Settings::open(&chosen, global);
    let here = Here { chosen, wrong, settings, now_ms: clock.wall_ms() };
    let mut findings: Vec<Finding> = HERE.iter().flat_map(|check| check(&here)).collect();
    if let (Ok(settings), []) = (&here.settings, &here.wrong[..]) {
        match Seen::look(settings, &here.chosen, clock).await {
            Ok(seen) => findings.extend(MESH.iter().flat_map(|check| check(&seen))),
            Err(failed) => findings.push(members::not_joined(&failed)),
        }
    }
    let report = Report::new(findings, here.chosen);
    if global.json {
        print_json(&report)?;
    } else {
        print(&report.text())?;
    }
    Ok(if report.fail > 0 { Exit::NothingCanRun } else { Exit::Done })
}
