//! What an agent's policy denies, with the real programs: nothing of it reaches an engine, the rule is shown before and
//! after, and where everybody denies a job it ends with the table and code 77.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    process::{Child, Output},
};

use serde_json::Value;
use tropa_tests::{
    harness::{Hardware, Running, World, results, wait_until},
    history::{self, Expect, What},
};

use crate::{
    evil::evil,
    jobs::{said, world},
};

/// A job of so many prompts, with these arguments.
fn run(world: &World, prompts: usize, more: &[&str]) -> Output {
    let text: String = (0..prompts).map(|n| format!("prompt {n} about a llama\n")).collect();
    let input = world.file("prompts.txt", &text).unwrap();
    world.run(&[&["run", input.to_str().unwrap(), "--allow-declared"], more].concat()).unwrap()
}

fn agent(world: &World, number: u8, more: &[&str]) -> [Running; 2] {
    let double = world.double(&format!("cpu{number}"), &["--tokens", "4", "--decode-us", "1000"]).unwrap();
    let label = format!("host-{number}");
    let agent = world.agent(&label, double.address, Hardware::Declared(number), more).unwrap();
    [double, agent]
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The job ended with the table of who denies it.
fn denied(output: &Output, rule: &str, remedy: &str) {
    assert_eq!(output.status.code(), Some(77), "{}", said(output));
    let text = stderr(output);
    for expected in ["MACHINE", "INSTALL", "RULE", "REMEDY", rule, remedy] {
        assert!(text.contains(expected), "{expected} is missing: {text}");
    }
}

#[test]
fn nothing_is_executed_for_a_coordinator_that_the_policy_denies() {
    let mut world = world();
    world.set_env("TROPA_EVENTS", world.path("events"));
    let [_double, here] = agent(&world, 1, &["--only-from", "192.0.2.0/24,2001:db8::/32"]);
    denied(&run(&world, 4, &[]), "coordinator: work from 127.0.0.1 is not permitted", "--only-from");
    // Whoever does not ask beforehand is refused all the same.
    let evil = evil(here.address, "orders", None, &["--seconds", "2"]).wait_with_output().unwrap();
    let tried: Value = serde_json::from_slice(&evil.stdout).unwrap_or_else(|_| panic!("{}", said(&evil)));
    assert!(tried["tried"].as_u64().unwrap() > 0 && tried["taken"] == 0, "{tried}");
    let events = history::read(&fs::read_to_string(world.path("events")).unwrap()).unwrap();
    let hello = |what: &What| if let What::Hello(peer) = what { Some(*peer) } else { None };
    let callers: BTreeSet<u32> = events.iter().filter_map(|event| hello(&event.what)).collect();
    assert!(!callers.is_empty(), "it said hello");
    let judged = history::judge(events, Expect { denied: callers, hellos: true, ..Expect::default() });
    assert_eq!(judged.executions(), 0);
    assert_eq!(judged.finish(), []);
    assert!(world.witness().unwrap().timeline().is_empty(), "nothing reached the engine");
}

#[test]
fn proper_orders_are_taken_where_no_policy_denies_them() {
    let world = world();
    let [_double, here] = agent(&world, 1, &["--only-from", "127.0.0.0/8"]);
    let evil = evil(here.address, "orders", None, &["--seconds", "2"]).wait_with_output().unwrap();
    let tried: Value = serde_json::from_slice(&evil.stdout).unwrap_or_else(|_| panic!("{}", said(&evil)));
    assert_eq!(tried["taken"], tried["tried"], "the test above refuses something");
}

#[test]
fn an_install_that_denies_the_size_gets_no_work_and_the_plan_says_the_rule() {
    let world = world();
    let _one = agent(&world, 1, &["--max-num-ctx", "2048"]);
    let _two = agent(&world, 2, &["--max-num-predict", "400"]);
    let sizes = ["--num-ctx", "4096", "--max-tokens", "100"];
    let output = run(&world, 6, &sizes);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(results(&String::from_utf8_lossy(&output.stdout)).unwrap().len(), 6);
    assert!(world.witness().unwrap().installs("cpu1").is_empty(), "it permits 2048 tokens of context");
    let input = world.path("prompts.txt");
    let arguments = [&["plan", input.to_str().unwrap(), "--allow-declared"], &sizes[..]].concat();
    let plan = world.run(&[&arguments[..], &["--json"]].concat()).unwrap();
    assert_eq!(plan.status.code(), Some(0), "{}", said(&plan));
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    let parts: Vec<(&str, &str)> = plan["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["part"].as_str().unwrap(), row["why"].as_str().unwrap()))
        .collect();
    let rule = "its agent's policy denies it: num_ctx: 4096 is asked, at most 2048 is permitted";
    assert!(parts.contains(&("denied", rule)) && parts.iter().any(|row| row.0 == "works"), "{parts:?}");
    let machines = world.run(&["machines", "--why", "--allow-declared"]).unwrap();
    let shown = String::from_utf8_lossy(&machines.stdout).into_owned();
    assert!(shown.contains("permits num_ctx at most 2048"), "{shown}");
    assert!(shown.contains("permits num_predict at most 400"), "{shown}");
    let both = run(&world, 2, &["--num-ctx", "4096", "--max-tokens", "500", "--wait", "1"]);
    denied(&both, "num_ctx: 4096 is asked, at most 2048 is permitted", "--max-num-ctx");
    denied(&both, "num_predict: 500 is asked, at most 400 is permitted", "--max-num-predict");
    let plan =
        ["plan", input.to_str().unwrap(), "--allow-declared", "--num-ctx", "4096", "--max-tokens", "500"];
    assert_eq!(world.run(&plan).unwrap().status.code(), Some(77), "a plan says so beforehand");
}

#[test]
fn a_model_that_everybody_denies_is_not_one_that_is_missing() {
    let world = world();
    let _one = agent(&world, 1, &["--only-model", "llama3.2,qwen3:*"]);
    let named = run(&world, 2, &["--model", "tiny"]);
    denied(&named, "model: tiny:latest is asked, permitted: llama3.2:latest, qwen3:*", "--only-model");
    denied(&run(&world, 2, &[]), "model: tiny:latest is asked", "--model");
    let missing = run(&world, 2, &["--model", "none"]);
    assert_eq!(missing.status.code(), Some(4), "{}", said(&missing));
    let _two = agent(&world, 2, &["--only-model", "Tiny"]);
    let output = run(&world, 4, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(world.witness().unwrap().installs("cpu1").is_empty(), "only the one that permits it works");
}

#[test]
fn pictures_are_denied_unless_they_are_allowed_and_a_denied_job_goes_on_where_they_are() {
    let world = world();
    let agents = agent(&world, 1, &[]);
    let picture = r#"{"messages":[{"role":"user","content":"what is it?","images":["AAAA"]}]}"#;
    let input = world.file("pictures.jsonl", &format!("{picture}\n{{\"prompt\":\"a llama\"}}\n")).unwrap();
    let input = input.to_str().unwrap();
    let output = world.run(&["run", input, "--allow-declared", "--wait", "1"]).unwrap();
    denied(&output, "images: pictures are not permitted", "--allow-images");
    drop(agents);
    let _agents = agent(&world, 1, &["--allow-images"]);
    let listed = world.run(&["jobs", "--json"]).unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let job = listed["jobs"][0]["id"].as_str().unwrap();
    let output = world.run(&["resume", job, "--allow-declared"]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    assert!(rows.len() == 2 && rows.iter().all(|row| row["error"].is_null()), "{}", said(&output));
}

/// A world in which agents have the wall clock that [`set_clock`] says, in UTC.
fn clocked() -> World {
    let mut world = world();
    world.set_env("TROPA_TEST_WALL_FILE", world.path("wall"));
    world.set_env("TROPA_TEST_HOURS_LOOK_MS", "50");
    world
}

/// Sets the agents' clock to this hour of 28 November 2026.
fn set_clock(world: &World, hour: u64) {
    const MIDNIGHT: u64 = 1_795_824_000;
    world.file("wall.new", &(MIDNIGHT + hour * 3_600).to_string()).unwrap();
    fs::rename(world.path("wall.new"), world.path("wall")).unwrap();
}

/// Starts a job, with what it says in `job.err` and what comes of it in `job.out`.
fn begin(world: &World, prompts: usize) -> Child {
    let text: String = (0..prompts).map(|n| format!("prompt {n} about a llama\n")).collect();
    let input = world.file("prompts.txt", &text).unwrap();
    let mut run = world.tropa(&["run", input.to_str().unwrap(), "--allow-declared"]);
    run.stdout(File::create(world.path("job.out")).unwrap());
    run.stderr(File::create(world.path("job.err")).unwrap()).spawn().unwrap()
}

fn said_so_far(world: &World) -> String {
    fs::read_to_string(world.path("job.err")).unwrap_or_default()
}

/// What a plan of one prompt says of each install: its part, why, and the exit code.
fn parts(world: &World) -> (BTreeMap<String, (String, String)>, Option<i32>) {
    let input = world.file("one.txt", "a llama\n").unwrap();
    let plan = world.run(&["plan", input.to_str().unwrap(), "--allow-declared", "--json"]).unwrap();
    let json: Value = serde_json::from_slice(&plan.stdout).unwrap_or_else(|_| panic!("{}", said(&plan)));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let rows = json["rows"].as_array().unwrap().iter();
    let parts = rows.map(|row| (text(&row["label"]), (text(&row["part"]), text(&row["why"]))));
    (parts.collect(), plan.status.code())
}

fn finished(world: &World, mut job: Child, prompts: usize) {
    let status = job.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{}", said_so_far(world));
    let rows = results(&fs::read_to_string(world.path("job.out")).unwrap()).unwrap();
    assert!(rows.len() == prompts && rows.iter().all(|row| row["error"].is_null()), "{rows:?}");
}

#[test]
fn a_job_waits_for_the_hours_of_an_install_and_the_plan_says_when_they_begin() {
    let world = clocked();
    set_clock(&world, 9);
    let _one = agent(&world, 1, &["--only-hours", "22:00-06:00"]);
    let rule = "it takes nothing at present: hours: it opens at 2026-11-28T22:00:00+00:00; its hours are 22:00-06:00";
    let shut = ("shut".to_owned(), rule.to_owned());
    assert_eq!(parts(&world), ([("host-1".to_owned(), shut.clone())].into(), Some(0)));
    let machines = world.run(&["machines", "--why", "--allow-declared"]).unwrap();
    let shown = String::from_utf8_lossy(&machines.stdout).into_owned();
    assert!(shown.contains("permits work at 22:00-06:00") && shown.contains(rule), "{shown}");
    let job = begin(&world, 4);
    wait_until("it says for whom it waits", || said_so_far(&world).contains("host-1: hours: it opens at"))
        .unwrap();
    assert!(world.witness().unwrap().timeline().is_empty(), "nothing runs before");
    set_clock(&world, 22);
    finished(&world, job, 4);
    let denied = said_so_far(&world);
    assert!(!denied.contains("REMEDY"), "{denied}");
    set_clock(&world, 30);
    wait_until("it is shut again", || parts(&world).0["host-1"].0 == "shut").unwrap();
}

#[test]
fn what_waits_where_hours_end_during_a_job_goes_to_whom_they_begin() {
    let world = clocked();
    set_clock(&world, 23);
    let _one = agent(&world, 1, &["--only-hours", "22:00-06:00"]);
    let _two = agent(&world, 2, &["--only-hours", "06:00-22:00"]);
    let job = begin(&world, 300);
    wait_until("one works", || world.witness().is_ok_and(|seen| !seen.timeline().is_empty())).unwrap();
    assert!(world.witness().unwrap().installs("cpu2").is_empty(), "the other is shut");
    set_clock(&world, 30);
    finished(&world, job, 300);
    assert!(!world.witness().unwrap().installs("cpu2").is_empty(), "and then it works");
    let (parts, _) = parts(&world);
    assert_eq!((&*parts["host-1"].0, &*parts["host-2"].0), ("shut", "works"));
}

#[test]
fn no_more_chunks_start_in_an_hour_than_the_operator_permits_whoever_sends_them() {
    let world = clocked();
    set_clock(&world, 9);
    let _one = agent(&world, 1, &["--max-rate", "3"]);
    let _two = agent(&world, 2, &["--only-hours", "22:00-06:00"]);
    assert_eq!(run(&world, 2, &[]).status.code(), Some(0));
    let job = begin(&world, 4);
    wait_until("it waits", || said_so_far(&world).contains("host-1: rate: it opens at 2026-11-28T")).unwrap();
    assert_eq!(world.witness().unwrap().timeline().len(), 3, "of two jobs");
    let why = parts(&world).0["host-1"].1.clone();
    assert!(why.ends_with("3 chunks an hour are permitted"), "{why}");
    set_clock(&world, 22);
    finished(&world, job, 4);
    let witness = world.witness().unwrap();
    assert_eq!((witness.timeline().len(), witness.installs("cpu2").len()), (6, 1), "the rest elsewhere");
}

#[test]
fn a_policy_that_cannot_be_followed_names_its_flag_and_starts_nothing() {
    let world = world();
    for (flag, value, expected) in [
        ("--only-from", "10.0.0.0/33", "10.0.0.0/33 is not ADDRESS or ADDRESS/BITS"),
        ("--only-from", "den", "den is not ADDRESS"),
        ("--only-model", "qwen*3", "a * stands at the end only"),
        ("--only-model", "", "it is not a name"),
        ("--only-model", "=", "it is not a name"),
        ("--only-model", "llama3.2:", "it is not a name"),
        ("--only-model", ":*", "it is not a name"),
        ("--max-num-ctx", "0", "--max-num-ctx"),
        ("--max-num-predict", "many", "--max-num-predict"),
        ("--only-hours", "22-6", "22-6 is not HH:MM-HH:MM, such as 22:00-06:00"),
        ("--only-hours", "06:00-06:00", "06:00-06:00 is a whole day or nothing"),
        ("--max-rate", "0", "--max-rate"),
    ] {
        let output = world.agent_command(&[flag, value]).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{flag} {value}: {}", said(&output));
        assert!(stderr(&output).contains(expected), "{flag} {value}: {}", stderr(&output));
    }
}
