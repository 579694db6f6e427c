//! What an agent's policy denies, with the real programs: nothing of it reaches an engine, the rule is shown before and
//! after, and where everybody denies a job it ends with the table and code 77.

use std::{collections::BTreeSet, fs, process::Output};

use serde_json::Value;
use tropa_tests::{
    harness::{Hardware, Running, World, results},
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
    ] {
        let output = world.agent_command(&[flag, value]).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{flag} {value}: {}", said(&output));
        assert!(stderr(&output).contains(expected), "{flag} {value}: {}", stderr(&output));
    }
}
