//! The directories that are written to: there, closed to others where they must be, and with room.

use std::path::{Path, PathBuf};

use tropa_proto::system::{self, Access};

use super::{
    Here,
    finding::{Finding, quoted},
};
use crate::{
    journal,
    words::{count, with_source},
};

/// Files and directories that are looked at, at most: thousands of jobs.
const MAX_SEEN: usize = 100_000;

/// The state directory and all below it: jobs with their prompts, keys, what was learned. Nobody else may read any of
/// it, and this user may write to it.
pub(super) fn state(here: &Here) -> Vec<Finding> {
    let state = &here.chosen.places.state;
    let shown = state.display();
    let Ok(found) = std::fs::symlink_metadata(state) else {
        return vec![may_be_made(state)];
    };
    let found = if found.is_symlink() { std::fs::metadata(state).unwrap_or(found) } else { found };
    if !found.is_dir() {
        let what = format!("{shown} is not a directory");
        return vec![Finding::fail("state.place", what).fix(format!("mv {0} {0}.old", quoted(state)))];
    }
    let closed = Closed::below(state);
    let mut findings = Vec::new();
    if let Some(first) = closed.foreign.first() {
        let what = format!("{} below {shown} belong to another user", count(closed.foreign.len(), "path"));
        let fix = format!("sudo chown -R \"$(id -u)\" {}", quoted(state));
        let finding = Finding::fail("state.foreign", what);
        findings.push(finding.because(format!("among them {}", first.display())).fix(fix));
    }
    if let Some(first) = closed.open.first() {
        let what = format!("others on this machine may open {shown}, where prompts, answers and keys are");
        let more = closed.open.len() - 1;
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let why = format!("{}{more} may be opened by others than this user", first.display());
        let fix = format!("chmod -R go= {}", quoted(state));
        findings.push(Finding::fail("state.open", what).because(why).fix(fix));
    }
    if let Err(error) = system::may_make_files(state) {
        let what = format!("nothing can be written to {shown}: {error}");
        let why = "no job can be submitted or go on";
        findings
            .push(Finding::fail("state.place", what).because(why).fix(format!("ls -ld {}", quoted(state))));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("state.place", format!("{shown}, for this user only")));
    }
    findings
}

/// A directory that the first job makes.
fn may_be_made(place: &Path) -> Finding {
    let shown = place.display();
    let above = place.ancestors().find(|above| above.is_dir()).unwrap_or(place);
    match system::may_make_files(above) {
        Ok(()) => Finding::ok("state.place", format!("{shown} is made by the first job")),
        Err(error) => {
            let what = format!("{shown} is not there and cannot be made: {error}");
            let fix = "set XDG_STATE_HOME to a directory of this user";
            Finding::fail("state.place", what).because("no job can be submitted").fix(fix)
        }
    }
}

/// What others may open, and what is another's; in the order in which directories are read by name.
#[derive(Debug, Default)]
struct Closed {
    open: Vec<PathBuf>,
    foreign: Vec<PathBuf>,
}

impl Closed {
    fn below(root: &Path) -> Self {
        let mut closed = Self::default();
        let mut left = vec![root.to_owned()];
        let mut seen = 0;
        while let Some(path) = left.pop() {
            seen += 1;
            // The root may be a link, which is the user's choice; nothing below it is followed.
            let found = if seen == 1 { std::fs::metadata(&path) } else { std::fs::symlink_metadata(&path) };
            let Ok(found) = found else { continue };
            if found.is_symlink() || seen > MAX_SEEN {
                continue;
            }
            if let Access::Bits { owner, mode } = system::access(&path, &found) {
                if system::user().is_some_and(|user| user != owner) {
                    closed.foreign.push(path.clone());
                } else if mode & 0o077 != 0 {
                    closed.open.push(path.clone());
                }
            }
            if found.is_dir() {
                let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
                let mut entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
                // The last is looked at first.
                entries.sort_unstable_by(|a, b| b.cmp(a));
                left.extend(entries);
            }
        }
        closed
    }
}

/// Where the agents of this machine are listed: not by anybody who likes.
pub(super) fn runtime(here: &Here) -> Vec<Finding> {
    let untrusted = here.chosen.runtime.untrusted();
    if untrusted.is_empty() {
        let places = here.chosen.runtime.places();
        let places: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
        return vec![Finding::ok(
            "runtime.place",
            format!("agents of this machine are looked for in {}", places.join(", ")),
        )];
    }
    let finding = |place: PathBuf| {
        let what = format!("agents that are listed in {} are not found", place.display());
        let why = "it belongs to somebody else, or anybody may write to it, so what it says is not believed";
        let fix = format!("sudo chmod o-w {0}; where it is another user's: sudo rm -r {0}", quoted(&place));
        Finding::warn("runtime.place", what).because(why).fix(fix)
    };
    untrusted.into_iter().map(finding).collect()
}

/// Where agents lock devices: without such a place nothing keeps two coordinators off one device.
pub(super) fn locks(here: &Here) -> Vec<Finding> {
    let system = &here.chosen.locks.system;
    match here.chosen.locks.would_choose() {
        Ok(place) if place == *system => {
            vec![Finding::ok(
                "lane.lock",
                format!("devices are locked in {}, for all users", place.display()),
            )]
        }
        Ok(place) => {
            let what = format!("devices are locked in {}, for the agents of this user", place.display());
            vec![Finding::ok("lane.lock", what)]
        }
        Err(error) => {
            let what = format!("there is no place for the locks of devices: {}", with_source(&error));
            let why = "work of two coordinators may overlap on one device, unless the agents were told another place";
            let fix = format!("sudo install -d -m 2770 -g \"$(id -gn)\" {}", quoted(system));
            vec![Finding::warn("lane.lock", what).because(why).fix(fix)]
        }
    }
}

/// Whether jobs can be kept where they lie: on a disk of this machine, with room.
pub(super) fn room(here: &Here) -> Vec<Finding> {
    let jobs = here.chosen.places.state.join("jobs");
    let place = jobs.ancestors().find(|place| place.is_dir()).unwrap_or(&jobs);
    let elsewhere =
        "XDG_STATE_HOME=DIRECTORY on a disk of this machine; or make room: tropa jobs purge --done";
    let local = journal::refuse_network(place).err().map(|error| {
        Finding::fail("journal.place", error.to_string()).fix("set XDG_STATE_HOME to a local directory")
    });
    let low = journal::require_space(place, 0).err().map(|error| {
        if let journal::Error::NoSpace { free, need } = error {
            let (free, need) = (free >> 20, need >> 20);
            let what = format!("{free} MiB are free where jobs are kept, and none starts below {need}");
            return Finding::fail("disk.low", what).fix(elsewhere);
        }
        Finding::warn("disk.low", format!("how much room there is cannot be told: {error}"))
    });
    let fine =
        || Finding::ok("disk.low", "jobs are kept on a disk of this machine, and there is room for more");
    let found: Vec<Finding> = local.into_iter().chain(low).collect();
    if found.is_empty() { vec![fine()] } else { found }
}
