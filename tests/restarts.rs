//! Ollama starts anew beside an agent that goes on: what was measured of one process does not hold for the next.

use std::net::SocketAddr;

use serde_json::Value;
use tropa_tests::{
    harness::{Hardware, Running, World, wait_until},
    real_ollama::RealOllama,
    skipped,
};

use crate::jobs::{said, world};

/// What `tropa machines` says of the one install.
fn row(world: &World) -> (Value, Value) {
    let output = world.run(&["machines", "--json"]).unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    (report["machines"][0]["agents"][0].clone(), report["warnings"].clone())
}

/// What a measured width holds for.
const UNTIL: &str = "until Ollama is restarted";

fn serialises(warnings: &Value) -> bool {
    warnings.as_array().unwrap().iter().any(|warning| warning["code"] == "lane.width")
}

/// Asserts that the install is known to take one request at a time, and for how long that holds.
fn is_measured(world: &World) {
    let (agent, warnings) = row(world);
    assert_eq!((&agent["width_from"], &agent["width_until"]), (&"measured".into(), &UNTIL.into()), "{agent}");
    assert!(serialises(&warnings), "{warnings}");
}

/// Waits until nothing is known of the width.
fn is_forgotten(world: &World) {
    wait_until("the restart is noticed", || row(world).0["width_from"] == "not measured").unwrap();
    assert!(!serialises(&row(world).1));
}

/// So many wait for long enough that an install is tried at two at once, also where no two chunks take the same time.
const MANY: usize = 120;

fn prompts(world: &World, count: usize) -> String {
    let text: String = (0..count).map(|n| format!("{n}: one load per llama\n")).collect();
    world.file("prompts.txt", &text).unwrap().to_str().unwrap().to_owned()
}

/// An engine with so many slots; answers of 20 tokens take 40 ms.
fn engine(world: &World, name: &str, slots: &str, listen: &str) -> Running {
    let more = ["--name", name, "--num-parallel", slots, "--tokens", "20", "--listen", listen];
    world.double("cpu", &more).unwrap()
}

/// The most requests that were at an engine together.
fn at_once(world: &World, name: &str) -> usize {
    let witness = world.witness().unwrap();
    let work: Vec<_> = witness.timeline().iter().filter(|work| work.install == name).collect();
    let beside = |start| work.iter().filter(|work| work.start_ns <= start && start < work.end_ns).count();
    work.iter().map(|one| beside(one.start_ns)).max().unwrap_or(0)
}

fn works(world: &World, input: &str, more: &[&str]) {
    let output = world.run(&[&["run", input], more].concat()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

/// A measured width outlives the agent where the kernel shows which socket listens, and ends with the engine.
#[test]
fn a_measured_width_holds_until_ollama_is_restarted_and_for_a_restarted_agent() {
    let world = world();
    let mut one = engine(&world, "one slot", "1", "127.0.0.1:0");
    let (address, input) = (one.address, prompts(&world, MANY));
    let start_agent = || world.agent("den", address, Hardware::This, &[]).unwrap();
    let mut agent = start_agent();
    works(&world, &input, &[]);
    is_measured(&world);
    let why = world.run(&["machines", "--why"]).unwrap();
    assert!(said(&why).contains(&format!("1 at once (measured, {UNTIL})")), "{}", said(&why));

    if cfg!(target_os = "linux") {
        agent.terminate().unwrap();
        agent = start_agent();
        wait_until("the agent is there again", || !row(&world).0.is_null()).unwrap();
        is_measured(&world);
    }

    one.kill();
    let _four = engine(&world, "four slots", "4", &address.to_string());
    is_forgotten(&world);
    works(&world, &input, &[]);
    assert!(at_once(&world, "four slots") >= 2, "nothing wider was tried");
    assert!(!serialises(&row(&world).1));
    drop(agent);
}

/// Without a look at the kernel's sockets: the evidence of a declared machine has none.
#[test]
fn an_ollama_that_is_restarted_with_more_slots_is_measured_again_within_the_job() {
    let world = world();
    let mut one = engine(&world, "one slot", "1", "127.0.0.1:0");
    let address: SocketAddr = one.address;
    let _agent = world.agent("den", address, Hardware::Declared(1), &[]).unwrap();
    let input = prompts(&world, MANY);
    let run = ["run", &input, "--allow-declared"];
    let mut job = world.tropa(&run).stdout(std::process::Stdio::null()).spawn().unwrap();
    // By then it is known that one waits for the other.
    let answered = || world.witness().is_ok_and(|seen| seen.timeline().len() >= 40);
    wait_until("the install has answered forty times", answered).unwrap();
    one.kill();
    let _four = engine(&world, "four slots", "4", &address.to_string());
    assert!(job.wait().unwrap().success());
    assert_eq!(at_once(&world, "one slot"), 1);
    assert!(at_once(&world, "four slots") >= 2, "nothing wider was tried");
}

#[test]
fn a_real_ollama_is_another_process_when_it_was_restarted_and_the_same_one_for_another_agent() {
    if let Err(reason) = RealOllama::find() {
        return skipped(&reason);
    }
    let models = tempfile::tempdir().unwrap();
    let one = RealOllama::start(models.path(), &[]).unwrap();
    let world = world();
    let process = || row(&world).0["process"].as_u64().filter(|process| *process != 0);
    let mut agent = world.agent("den", one.addr(), Hardware::This, &[]).unwrap();
    let first = process();
    assert!(first.is_some());
    if cfg!(target_os = "linux") {
        agent.terminate().unwrap();
        agent = world.agent("den", one.addr(), Hardware::This, &[]).unwrap();
        assert_eq!(process(), first);
    }
    let _two = one.restarted(models.path(), &[]).unwrap();
    wait_until("the restart is noticed", || process().is_some_and(|second| Some(second) != first)).unwrap();
    drop(agent);
}
