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

/// Asserts that the width was measured, what it holds for, and whether the install is known to take one request at a
/// time.
fn is_measured(world: &World, serialises: bool) {
    let (agent, warnings) = row(world);
    assert_eq!((&agent["width_from"], &agent["width_until"]), (&"measured".into(), &UNTIL.into()), "{agent}");
    let finding = warnings.as_array().unwrap().iter().any(|warning| warning["code"] == "lane.width");
    assert_eq!(finding, serialises, "{warnings}");
}

const UNTIL: &str = "until Ollama is restarted";

/// Waits until nothing is known of the width.
fn is_forgotten(world: &World) {
    wait_until("the restart is noticed", || row(world).0["width_from"] == "not measured").unwrap();
}

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
    let (address, input) = (one.address, prompts(&world, 40));
    let start_agent = || world.agent("den", address, Hardware::This, &[]).unwrap();
    let mut agent = start_agent();
    works(&world, &input, &[]);
    is_measured(&world, true);
    let why = world.run(&["machines", "--why"]).unwrap();
    assert!(said(&why).contains(&format!("1 at once (measured, {UNTIL})")), "{}", said(&why));

    if cfg!(target_os = "linux") {
        agent.terminate().unwrap();
        agent = start_agent();
        wait_until("the agent is there again", || !row(&world).0.is_null()).unwrap();
        is_measured(&world, true);
    }

    one.kill();
    let _four = engine(&world, "four slots", "4", &address.to_string());
    is_forgotten(&world);
    works(&world, &input, &[]);
    assert!(at_once(&world, "four slots") >= 2, "nothing wider was tried");
    is_measured(&world, false);
    drop(agent);
}

/// Without a look at the kernel's sockets: the evidence of a declared machine has none.
#[test]
fn an_ollama_that_is_restarted_with_more_slots_is_measured_again_within_the_job() {
    let world = world();
    let mut one = engine(&world, "one slot", "1", "127.0.0.1:0");
    let address: SocketAddr = one.address;
    let _agent = world.agent("den", address, Hardware::Declared(1), &[]).unwrap();
    let input = prompts(&world, 160);
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
fn a_real_ollama_that_is_restarted_is_measured_again() {
    if let Err(reason) = RealOllama::find() {
        return skipped(&reason);
    }
    let models = tempfile::tempdir().unwrap();
    let one = RealOllama::start(models.path(), &[("OLLAMA_NUM_PARALLEL", "1")]).unwrap();
    one.create("tiny").unwrap();
    let world = world();
    let _agent = world.agent("den", one.addr(), Hardware::This, &[]).unwrap();
    let (input, more) = (prompts(&world, 40), ["--max-tokens", "24"]);
    works(&world, &input, &more);
    is_measured(&world, true);
    let _four = one.restarted(models.path(), &[("OLLAMA_NUM_PARALLEL", "4")]).unwrap();
    is_forgotten(&world);
    works(&world, &input, &more);
    is_measured(&world, false);
}
