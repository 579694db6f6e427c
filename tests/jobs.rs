//! Jobs over a mesh of real programs: doubles, agents and coordinators, each a process of its own.

use std::{collections::BTreeSet, fs, process::Output, time::Duration};

use serde_json::Value;
use tropa_tests::harness::{Hardware, Programs, World, results, wait_until};

/// Where cargo put the programs.
pub(crate) fn world() -> World {
    World::new(Programs {
        tropa: env!("CARGO_BIN_EXE_tropa-under-test").into(),
        agent: env!("CARGO_BIN_EXE_tropa-agent-under-test").into(),
        double: env!("CARGO_BIN_EXE_ollama-double").into(),
    })
    .unwrap()
}

/// What a command printed, for a message.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "status {:?}\n{}\n{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn prompts(count: usize) -> String {
    (0..count).map(|n| format!("prompt {n} about a llama\n")).collect()
}

fn rows(output: &Output) -> Vec<Value> {
    results(&String::from_utf8_lossy(&output.stdout)).unwrap()
}

fn indices(rows: &[Value]) -> Vec<u64> {
    rows.iter().map(|row| row["tropa"]["index"].as_u64().unwrap()).collect()
}

fn machines_of(rows: &[Value]) -> BTreeSet<String> {
    rows.iter().map(|row| row["tropa"]["machine"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn two_agents_on_one_kernel_count_once_and_run_one_at_a_time() {
    let world = world();
    let doubles = [world.double("cpu", &[]).unwrap(), world.double("cpu", &[]).unwrap()];
    let _one = world.agent("one", doubles[0].address, Hardware::This, &[]).unwrap();
    let _two = world.agent("two", doubles[1].address, Hardware::This, &[]).unwrap();

    let machines = world.run(&["machines", "--json"]).unwrap();
    let report: Value = serde_json::from_slice(&machines.stdout).unwrap();
    assert_eq!(report["installs"], 2, "{}", said(&machines));
    assert_eq!(report["machines"].as_array().unwrap().len(), 1);
    assert_eq!(report["at_once"], 1);
    assert!(report["machines"][0]["why"].as_str().unwrap().contains("boot"), "{report}");

    let input = world.file("prompts.txt", &prompts(12)).unwrap();
    let output = world.run(&["run", input.to_str().unwrap()]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = rows(&output);
    assert_eq!(indices(&rows), (0..12).collect::<Vec<_>>());
    assert!(rows.iter().all(|row| row["error"].is_null() && !row["text"].as_str().unwrap().is_empty()));
    let witness = world.witness().unwrap();
    assert_eq!(witness.overlap("cpu"), Duration::ZERO, "two installs worked on one device at once");
}

#[test]
fn two_agents_with_distinct_evidence_run_two_at_a_time() {
    let world = world();
    let doubles = [world.double("cpu1", &[]).unwrap(), world.double("cpu2", &[]).unwrap()];
    let _home = world.agent("home", doubles[0].address, Hardware::Declared(1), &[]).unwrap();
    let _office = world.agent("office", doubles[1].address, Hardware::Declared(2), &[]).unwrap();

    let input = world.file("prompts.txt", &prompts(16)).unwrap();
    let plan = world.run(&["plan", input.to_str().unwrap(), "--allow-declared", "--json"]).unwrap();
    let plan_rows: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan_rows["at_once"], 2, "{}", said(&plan));
    assert_eq!(plan_rows["cold"].as_array().map(Vec::len), Some(2), "{plan_rows}");
    assert!(plan_rows["seconds_at_most"].is_null(), "nobody knows a speed yet: {plan_rows}");

    let output = world.run(&["run", input.to_str().unwrap(), "--allow-declared"]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = rows(&output);
    assert_eq!(indices(&rows), (0..16).collect::<Vec<_>>());
    assert_eq!(machines_of(&rows).len(), 2);
    let witness = world.witness().unwrap();
    assert!(witness.parallel() > Duration::ZERO, "the two machines never worked at the same time");
    assert_eq!(witness.overlap("cpu1") + witness.overlap("cpu2"), Duration::ZERO);

    // What the job has learned of speeds, the next plan tells.
    let plan = world.run(&["plan", input.to_str().unwrap(), "--allow-declared"]).unwrap();
    let text = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(text.contains("by the speeds that earlier jobs measured on 2 installs"), "{text}");
}

#[test]
fn declared_hardware_gets_no_work_unless_it_is_accepted() {
    let world = world();
    let double = world.double("cpu", &[]).unwrap();
    let _agent = world.agent("home", double.address, Hardware::Declared(1), &[]).unwrap();
    let input = world.file("prompts.txt", "hello\n").unwrap();
    let output = world.run(&["run", input.to_str().unwrap()]).unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("--allow-declared"), "{}", said(&output));
}

#[test]
fn one_install_needs_one_command() {
    let world = world();
    let double = world.double("cpu", &[]).unwrap();
    let input = world.file("prompts.txt", &prompts(3)).unwrap();
    let ollama = format!("http://{}", double.address);
    let output = world.run(&["run", input.to_str().unwrap(), "--ollama", &ollama]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(rows(&output).len(), 3);
}

#[test]
fn an_agent_that_dies_loses_its_chunks_to_another_machine() {
    let world = world();
    let slow = ["--decode-us", "40000"];
    let doubles = [world.double("cpu1", &slow).unwrap(), world.double("cpu2", &[]).unwrap()];
    let mut home = world.agent("home", doubles[0].address, Hardware::Declared(1), &[]).unwrap();
    let _office = world.agent("office", doubles[1].address, Hardware::Declared(2), &[]).unwrap();
    let input = world.file("prompts.txt", &prompts(10)).unwrap();
    let out = world.path("out.jsonl");
    let mut job = world
        .tropa(&["run", input.to_str().unwrap(), "--allow-declared", "-o", out.to_str().unwrap()])
        .spawn()
        .unwrap();
    wait_until("both machines work", || world.witness().is_ok_and(|witness| !witness.parallel().is_zero()))
        .unwrap();
    home.kill();
    assert_eq!(job.wait().unwrap().code(), Some(0));
    let rows = results(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(indices(&rows), (0..10).collect::<Vec<_>>());
    let repeated: Vec<&Value> =
        rows.iter().filter(|row| row["tropa"]["attempt"].as_u64() > Some(1)).collect();
    assert!(!repeated.is_empty(), "the chunk that ran on the dead agent ran again elsewhere");
    assert!(repeated.iter().any(|row| row["tropa"]["attempts"][0]["class"] == "lost"), "{repeated:?}");
}

#[test]
fn a_killed_coordinator_resumes_and_runs_no_committed_chunk_again() {
    let world = world();
    let double = world.double("cpu", &["--decode-us", "4000", "--tokens", "20"]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    let input = world.file("prompts.txt", &prompts(12)).unwrap();
    let mut job =
        world.tropa(&["run", input.to_str().unwrap()]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let done = || {
        let listed = world.run(&["jobs", "--json"]).unwrap();
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
        listed["jobs"][0]["done"].as_u64().unwrap_or(0)
    };
    wait_until("some results are committed", || done() >= 3).unwrap();
    job.kill().unwrap();
    job.wait().unwrap();
    let before = done();
    assert!((3..12).contains(&before), "{before} were committed when the coordinator died");

    let listed = world.run(&["jobs", "--json"]).unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let id = listed["jobs"][0]["id"].as_str().unwrap().to_owned();
    let output = world.run(&["resume", &id[..8]]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = rows(&output);
    assert_eq!(indices(&rows), (0..12).collect::<Vec<_>>());
    // The agent lived on, so even what was under way was adopted: every chunk ran exactly once.
    let attempts: Vec<u64> = rows.iter().map(|row| row["tropa"]["attempt"].as_u64().unwrap()).collect();
    assert!(attempts.iter().all(|attempt| *attempt == 1), "{attempts:?}");
    let witness = world.witness().unwrap();
    let runs = witness.timeline().iter().filter(|work| work.device == "cpu").count();
    assert_eq!(runs, 12, "the engine worked on each chunk once");
}

#[test]
fn a_job_is_locked_while_it_runs_and_an_agent_leaves_without_losing_work() {
    let world = world();
    let doubles =
        [world.double("cpu1", &["--decode-us", "20000"]).unwrap(), world.double("cpu2", &[]).unwrap()];
    let mut home = world.agent("home", doubles[0].address, Hardware::Declared(1), &[]).unwrap();
    let _office = world.agent("office", doubles[1].address, Hardware::Declared(2), &[]).unwrap();
    let input = world.file("prompts.txt", &prompts(8)).unwrap();
    let out = world.path("out.jsonl");
    let mut job = world
        .tropa(&["run", input.to_str().unwrap(), "--allow-declared", "-o", out.to_str().unwrap()])
        .spawn()
        .unwrap();
    wait_until("both machines work", || world.witness().is_ok_and(|w| !w.parallel().is_zero())).unwrap();
    let second = world.run(&["resume", "", "--allow-declared"]).unwrap();
    assert_eq!(second.status.code(), Some(64), "{}", said(&second));
    let listed: Value = serde_json::from_slice(&world.run(&["jobs", "--json"]).unwrap().stdout).unwrap();
    let id = listed["jobs"][0]["id"].as_str().unwrap().to_owned();
    let second = world.run(&["resume", &id, "--allow-declared"]).unwrap();
    assert_eq!(second.status.code(), Some(75), "{}", said(&second));
    assert_eq!(home.terminate().unwrap(), Some(0), "{}", home.log());
    assert_eq!(job.wait().unwrap().code(), Some(0));
    let rows = results(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(indices(&rows), (0..8).collect::<Vec<_>>());
    let lost = rows
        .iter()
        .flat_map(|row| row["tropa"]["attempts"].as_array().unwrap())
        .filter(|a| a["class"] == "lost");
    let lost: Vec<&Value> = lost.collect();
    assert_eq!(lost, Vec::<&Value>::new(), "what ran when the agent was asked to leave was handed over");
}
