//! What may be done with jobs: looking at one, giving it up, deleting it.

use std::{fs, path::PathBuf, process::Output};

use serde_json::{Value, json};
use tropa_tests::harness::{Hardware, World, wait_until};

use super::{at_work, done, ends_with, job, start};
use crate::jobs::{said, world};

/// Runs a command to its end, beside a job that may be at work.
fn run(world: &World, arguments: &[&str]) -> Output {
    world.run(arguments).unwrap()
}

fn json_of(world: &World, arguments: &[&str]) -> Value {
    let output = run(world, arguments);
    ends_with(&output, 0, &[]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)))
}

fn id(world: &World) -> String {
    job(world)["id"].as_str().unwrap()[..6].to_owned()
}

fn directories(world: &World) -> Vec<PathBuf> {
    let jobs = fs::read_dir(world.path("home/.local/state/tropa/jobs")).into_iter().flatten();
    jobs.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn cancelling_a_running_job_lets_what_runs_end_and_keeps_what_is_done() {
    let (world, _running) = at_work("300");
    let at_work = start(&world, 8);
    wait_until("two items are done", || done(&world) >= 2).unwrap();
    let id = id(&world);
    let cancelled = json_of(&world, &["cancel", &id, "--wait", "60", "--json"]);
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    let output = at_work.end();
    ends_with(&output, 130, &["cancelled", &format!("tropa resume {id} --cancelled")]);
    assert_eq!(job(&world)["state"], "cancelled");
    let kept = done(&world);
    assert!((2..8).contains(&kept), "{kept}");
    let witness = world.witness().unwrap();
    assert_eq!((witness.unfinished(), witness.timeline().len() as u64), (0, kept), "what ran was waited for");

    ends_with(&run(&world, &["resume", &id]), 64, &["was cancelled", "--cancelled"]);
    assert_eq!(world.witness().unwrap().timeline().len() as u64, kept, "nothing ran");
    ends_with(&run(&world, &["resume", &id, "--cancelled"]), 0, &[]);
    assert_eq!((done(&world), &job(&world)["state"]), (8, &json!("done")));
    let again = json_of(&world, &["cancel", &id, "--json"]);
    assert_eq!(again["state"], "done", "a job that is done cannot be given up any more");
    assert_eq!(job(&world)["state"], "done");
}

#[test]
fn cancelling_now_hangs_up_on_the_engine() {
    let (world, _running) = at_work("60000");
    let at_work = start(&world, 2);
    wait_until("the engine works", || world.witness().unwrap().unfinished() == 1).unwrap();
    let id = id(&world);
    let asked = json_of(&world, &["cancel", &id, "--wait", "0", "--json"]);
    assert_eq!(asked["state"], "cancelling");
    assert_eq!(job(&world)["state"], "cancelling");
    let cancelled = json_of(&world, &["cancel", &id, "--now", "--wait", "60", "--json"]);
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    ends_with(&at_work.end(), 130, &["cancelled"]);
    let shown = json_of(&world, &["jobs", "show", &id, "--json"]);
    assert_eq!((&shown["done"], &shown["failed"]), (&json!(0), &json!(0)), "given up is not failed: {shown}");
    assert_eq!(shown["attempts_by_class"]["superseded"], shown["attempts"], "{shown}");
}

#[test]
fn a_job_whose_coordinator_died_can_be_cancelled_and_its_mark_outlives_it() {
    let (world, _running) = at_work("60000");
    let mut at_work = start(&world, 2);
    wait_until("the engine works", || world.witness().unwrap().unfinished() == 1).unwrap();
    let id = id(&world);
    // A coordinator that cannot look: the mark stays, and counts when it is gone.
    at_work.signal(rustix::process::Signal::STOP);
    assert_eq!(json_of(&world, &["cancel", &id, "--wait", "0", "--json"])["state"], "cancelling");
    at_work.child.kill().unwrap();
    at_work.child.wait().unwrap();
    assert_eq!(job(&world)["state"], "cancelled");
    ends_with(&run(&world, &["resume", &id]), 64, &["was cancelled"]);
    assert_eq!(json_of(&world, &["cancel", &id, "--json"])["state"], "cancelled");
    ends_with(&run(&world, &["cancel", "ffffff"]), 64, &["ffffff", "tropa jobs"]);
}

#[test]
fn a_job_is_shown_with_its_outcomes_and_a_chunk_with_its_attempts() {
    let world = world();
    let double = world.double("cpu", &["--tokens", "4"]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    let lines = "{\"id\":\"a\",\"prompt\":\"hello\"}\n\
                 {\"id\":\"b\",\"prompt\":\"hello\",\"options\":{\"top_k\":\"x\"}}\n";
    let input = world.file("items.jsonl", lines).unwrap();
    ends_with(&run(&world, &["run", input.to_str().unwrap()]), 2, &[]);
    let id = id(&world);
    let shown = json_of(&world, &["jobs", "show", &id, "--json"]);
    assert_eq!(shown["schema"], "tropa.jobs.show/1");
    assert_eq!((&shown["chunks"], &shown["done"]), (&json!(2), &json!(1)), "{shown}");
    assert_eq!(shown["failed_by_class"], json!({"bad_request": 1}));
    assert_eq!(shown["next"][0], format!("tropa resume {id} --failed"));
    assert_eq!((&shown["waiting"], &shown["handed_out"]), (&json!(0), &json!(0)));
    assert_eq!(shown["machines"][0]["name"], "den", "machines have their names after the job too: {shown}");

    let chunk = json_of(&world, &["jobs", "show", &id, "--chunk", "0", "--json"]);
    let attempt = &chunk["attempts"][0];
    assert_eq!(
        (&chunk["id"], &chunk["state"], &attempt["class"]),
        (&json!("a"), &json!("done"), &json!("done"))
    );
    let times = ["recorded_ms", "started_ms", "ended_ms"].map(|key| attempt[key].as_u64().unwrap());
    assert!(times.is_sorted() && times[0] > 0, "{chunk}");
    assert_eq!(attempt["agent"], "den");
    let text = run(&world, &["jobs", "show", &id, "--chunk", "1"]);
    ends_with(&text, 0, &[]);
    for named in ["item b of line 2", "bad_request", "top_k"] {
        assert!(said(&text).contains(named), "{}", said(&text));
    }
    ends_with(&run(&world, &["jobs", "show", &id, "--chunk", "2"]), 64, &["chunks 0 to 1"]);
    ends_with(&run(&world, &["jobs", "show", "nope"]), 64, &["nope"]);
}

#[test]
fn purging_deletes_what_is_done_asks_for_what_is_not_and_never_touches_what_runs() {
    let (world, _running) = at_work("300");
    let finished = world.file("one.txt", "a llama\n").unwrap();
    ends_with(&run(&world, &["run", finished.to_str().unwrap()]), 0, &[]);
    let first = id(&world);
    let at_work = start(&world, 8);
    wait_until("the second job is at work", || directories(&world).len() == 2).unwrap();
    let second = || {
        let listed = json_of(&world, &["jobs", "--json"]);
        let second = listed["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .find(|job| !job["id"].as_str().unwrap().starts_with(&first));
        second.unwrap().clone()
    };
    wait_until("the second job runs", || second()["state"] == "running" && second()["done"] != 0).unwrap();
    let id = second()["id"].as_str().unwrap()[..6].to_owned();
    ends_with(&run(&world, &["jobs", "purge", &id, "--yes"]), 75, &["runs", &format!("tropa cancel {id}")]);
    at_work.signal(rustix::process::Signal::INT);
    ends_with(&at_work.end(), 130, &[]);

    let refused = run(&world, &["jobs", "purge", &first, &id]);
    ends_with(&refused, 64, &["not finished", "--yes"]);
    assert_eq!(directories(&world).len(), 2, "nothing was deleted before the answer");
    let old = json_of(&world, &["jobs", "purge", "--older-than", "1d", "--json"]);
    assert_eq!(old["purged"], json!([]));
    let purged = json_of(&world, &["jobs", "purge", "--done", "--json"]);
    assert!(purged["purged"][0].as_str().unwrap().starts_with(&first), "{purged}");
    assert_eq!(directories(&world).len(), 1);
    ends_with(&run(&world, &["jobs", "purge", &id, "--yes"]), 0, &[]);
    assert_eq!(directories(&world), Vec::<PathBuf>::new());
    ends_with(&run(&world, &["jobs", "purge"]), 64, &["--done"]);
    ends_with(&run(&world, &["jobs", "purge", "--older-than", "1w"]), 64, &["1w", "30d"]);
}
