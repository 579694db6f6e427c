//! Being stopped: by ^C once and twice, by SIGTERM, by a reader that went away, by a full disk. What is done is
//! kept, and `tropa resume` does the rest.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::process::Signal;
use serde_json::Value;
use tropa_tests::{
    harness::{World, results, wait_until},
    skipped,
};

use super::{Job, at_work, done, ends_with, job, run, start};
use crate::jobs::{said, world};

fn indices(stdout: &[u8]) -> Vec<u64> {
    let rows = results(&String::from_utf8_lossy(stdout)).unwrap();
    rows.iter().map(|row| row["tropa"]["index"].as_u64().unwrap()).collect()
}

fn engine_has_begun(world: &World, times: usize) {
    wait_until("the engine works", || world.witness().unwrap().timeline().len() >= times).unwrap();
}

#[test]
fn ctrl_c_lets_what_runs_finish_and_the_job_goes_on_later() {
    let (world, _running) = at_work("200");
    let at_work = start(&world, 8);
    wait_until("two items are done", || done(&world) >= 2).unwrap();
    at_work.signal(Signal::INT);
    let output = at_work.end();
    let id = job(&world)["id"].as_str().unwrap().to_owned();
    ends_with(&output, 130, &["tropa resume", &id[..6]]);
    let kept = indices(&output.stdout);
    assert!((2..8).contains(&kept.len()), "{}", said(&output));
    assert_eq!(kept, (0..kept.len() as u64).collect::<Vec<_>>(), "what is done is written, in order");
    assert_eq!(done(&world), kept.len() as u64, "what ran when it was stopped was waited for");
    let rest = run(&world, &["resume", &id]);
    ends_with(&rest, 0, &[]);
    assert_eq!(indices(&rest.stdout), (0..8).collect::<Vec<_>>());
    assert_eq!(world.witness().unwrap().timeline().len(), 8, "no item ran twice");
}

#[test]
fn ctrl_c_twice_does_not_wait() {
    let (world, _running) = at_work("30000");
    let at_work = start(&world, 2);
    engine_has_begun(&world, 1);
    at_work.signal(Signal::INT);
    wait_until("it says how", || at_work.err().contains("^C again")).unwrap();
    at_work.signal(Signal::INT);
    let output = at_work.end();
    ends_with(&output, 130, &["tropa resume"]);
    assert_eq!(world.witness().unwrap().unfinished(), 1, "the engine was not waited for");
}

#[test]
fn sigterm_has_its_own_code() {
    let (world, _running) = at_work("200");
    let at_work = start(&world, 8);
    wait_until("an item is done", || done(&world) >= 1).unwrap();
    at_work.signal(Signal::TERM);
    ends_with(&at_work.end(), 143, &["tropa resume"]);
}

#[test]
fn ctrl_c_before_there_is_a_job_leaves_nothing_behind() {
    let world = world();
    let incoming = world.path("home/.local/state/tropa/incoming");
    let places = || -> Vec<PathBuf> {
        let all = fs::read_dir(&incoming).into_iter().flatten();
        all.map(|place| place.unwrap().path().join("input")).collect()
    };
    let waiting = || {
        let mut command = world.tropa(&["run", "-"]);
        command.stdin(Stdio::piped());
        let reads = Job::start(&world, command);
        wait_until("it reads", || places().iter().any(|copy| copy.exists())).unwrap();
        reads
    };
    let reads = waiting();
    reads.signal(Signal::INT);
    ends_with(&reads.end(), 130, &["stopped"]);
    assert_eq!(places(), Vec::<PathBuf>::new());

    let mut killed = waiting();
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert_eq!(places().len(), 1, "kill -9 leaves the copy");
    ends_with(&super::run_with(&world, &["run", "-"], b""), 65, &[]);
    assert_eq!(places(), Vec::<PathBuf>::new(), "and the next command removes it");
    assert!(job(&world).is_null());
}

/// Runs a command whose stdout nobody reads.
fn unread(world: &World, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = world.tropa(arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (child.wait().unwrap().code(), err)
}

#[test]
fn a_reader_that_goes_away_ends_the_command_without_a_panic() {
    let (world, _running) = at_work("1");
    let input = world.file("prompts.txt", &"a llama\n".repeat(20)).unwrap();
    let (code, err) = unread(&world, &["run", input.to_str().unwrap()]);
    assert_eq!(code, Some(74), "{err}");
    assert!(err.contains("tropa resume") && !err.contains("panicked"), "{err}");
    let id = job(&world)["id"].as_str().unwrap().to_owned();
    let rest = run(&world, &["resume", &id]);
    ends_with(&rest, 0, &[]);
    assert_eq!(indices(&rest.stdout), (0..20).collect::<Vec<_>>());
    for arguments in [&["machines"][..], &["jobs", "--json"], &["completions", "zsh"], &["man"]] {
        let (code, err) = unread(&world, arguments);
        assert_eq!(code, Some(74), "{arguments:?}: {err}");
        assert!(!err.contains("panicked"), "{arguments:?}: {err}");
    }
}

/// `tropa`, with its state on a file system of this size that only it sees. Says why where that cannot be had.
fn on_small_disk(world: &World, size: &str, arguments: &[&str]) -> Result<Command, String> {
    let possible = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        return Err("no mount namespace can be made here, so no disk can be filled".to_owned());
    }
    let state = world.path("home/.local/state");
    fs::create_dir_all(&state).unwrap();
    let plain = world.tropa(arguments);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c"]);
    command.arg(format!("mount -t tmpfs -o size={size} tmpfs \"$1\" && shift && exec \"$@\""));
    command.arg("sh").arg(&state).arg(plain.get_program()).args(plain.get_args());
    command.env_clear();
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null());
    Ok(command)
}

/// Fills the disk of a process to the last byte and gives the file that did it.
fn fill(world: &World, process: &Job) -> PathBuf {
    let inside = world.path("home/.local/state/filler");
    let root = PathBuf::from(format!("/proc/{}/root", process.child.id()));
    let path = root.join(inside.strip_prefix("/").unwrap());
    let mut file = fs::File::create(&path).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![b'x'; size]).is_ok() {}
    }
    path
}

fn long_job(world: &World) -> String {
    let input = world.file("prompts.txt", &"a llama\n".repeat(30)).unwrap();
    input.to_str().unwrap().to_owned()
}

#[test]
fn a_full_disk_holds_the_job_up_until_there_is_space_again() {
    let (world, _running) = at_work("50");
    let command = match on_small_disk(&world, "80m", &["run", &long_job(&world)]) {
        Ok(command) => command,
        Err(reason) => return skipped(&reason),
    };
    let at_work = Job::start(&world, command);
    engine_has_begun(&world, 3);
    let filler = fill(&world, &at_work);
    wait_until("it says that the disk is full", || at_work.err().contains("disk.low")).unwrap();
    fs::remove_file(&filler).unwrap();
    let output = at_work.end();
    ends_with(&output, 0, &["disk.low", "space again"]);
    assert_eq!(indices(&output.stdout), (0..30).collect::<Vec<_>>());
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    assert!(rows.iter().all(|row: &Value| row["error"].is_null()), "{}", said(&output));
}

#[test]
fn a_job_on_a_full_disk_can_be_stopped_and_keeps_what_it_wrote() {
    let (world, _running) = at_work("50");
    let command = match on_small_disk(&world, "80m", &["run", &long_job(&world)]) {
        Ok(command) => command,
        Err(reason) => return skipped(&reason),
    };
    let at_work = Job::start(&world, command);
    engine_has_begun(&world, 3);
    fill(&world, &at_work);
    wait_until("it says that the disk is full", || at_work.err().contains("disk.low")).unwrap();
    at_work.signal(Signal::INT);
    wait_until("it says how", || at_work.err().contains("^C again")).unwrap();
    at_work.signal(Signal::INT);
    let output = at_work.end();
    ends_with(&output, 130, &["tropa resume"]);
    let kept = indices(&output.stdout);
    assert!(!kept.is_empty() && kept.is_sorted(), "{}", said(&output));
}

#[test]
fn a_disk_without_room_for_the_job_is_refused_before_it_starts() {
    let (world, _running) = at_work("1");
    let command = match on_small_disk(&world, "16m", &["run", &long_job(&world)]) {
        Ok(command) => command,
        Err(reason) => return skipped(&reason),
    };
    ends_with(&Job::start(&world, command).end(), 74, &["disk.low"]);
    assert!(world.witness().unwrap().timeline().is_empty());
}
