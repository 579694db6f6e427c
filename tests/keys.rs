//! A copied state directory: two agents with one key part by themselves, and nothing runs twice meanwhile.

use std::{collections::BTreeSet, path::Path, time::Duration};

use serde_json::Value;
use tropa_tests::harness::{Hardware, Running, World, copy_of_live, wait_until};

use crate::jobs::world;

/// What `tropa machines` shows.
#[derive(Debug)]
struct Shown {
    /// Label and id.
    agents: BTreeSet<(String, String)>,
    out: Vec<String>,
    machines: usize,
    warnings: Vec<String>,
}

fn shown(world: &World, more: &[&str]) -> Shown {
    let output = world.run(&[&["machines", "--json"], more].concat()).unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let machines = list(&report["machines"]);
    let rows: Vec<Value> = machines.iter().flat_map(|machine| list(&machine["agents"])).collect();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let warning = |row: &Value| format!("{} {}", text(row, "code"), text(row, "text"));
    Shown {
        agents: rows.iter().map(|row| (text(row, "label"), text(row, "id"))).collect(),
        out: rows.iter().map(|row| text(row, "out")).filter(|out| !out.is_empty()).collect(),
        machines: machines.len(),
        warnings: list(&report["warnings"]).iter().map(warning).collect(),
    }
}

/// Copies the state of a running agent for an agent beside another install: the directory in it is named after the
/// install's port.
fn copy_state(from: &Path, to: &Path, ollama: &Running) {
    copy_of_live(from, to).unwrap();
    let agents = to.join("agents");
    let only = std::fs::read_dir(&agents).unwrap().next().unwrap().unwrap().path();
    std::fs::rename(only, agents.join(ollama.address.port().to_string())).unwrap();
}

fn ids(shown: &Shown) -> BTreeSet<&str> {
    shown.agents.iter().map(|(_, id)| id.as_str()).collect()
}

#[test]
fn a_copy_of_the_state_of_an_agent_that_runs_here_takes_a_new_key_at_its_start() {
    let world = world();
    let doubles = [world.double("cpu", &[]).unwrap(), world.double("cpu", &[]).unwrap()];
    let _first = world.agent("first", doubles[0].address, Hardware::This, &[]).unwrap();
    let alone = shown(&world, &[]);
    copy_state(&world.path("state-first"), &world.path("state-copy"), &doubles[1]);
    let copy = world.agent("copy", doubles[1].address, Hardware::This, &[]).unwrap();
    let both = shown(&world, &[]);
    assert_eq!((ids(&both).len(), both.machines), (2, 1), "{both:?}");
    assert!(both.out.is_empty() && both.warnings.is_empty(), "{both:?}");
    assert!(both.agents.is_superset(&alone.agents), "who was there first keeps its id: {alone:?} {both:?}");
    let parent = world.path("state-copy/agents").join(doubles[1].address.port().to_string()).join("parent");
    let parent = format!("a-{}", &std::fs::read_to_string(parent).unwrap()[..4]);
    assert_eq!(ids(&alone), BTreeSet::from([parent.as_str()]), "{}", copy.log());
}

#[test]
fn two_agents_with_one_key_part_over_the_mesh_and_neither_gets_work_before() {
    let world = world();
    let doubles = [world.double("cpu", &[]).unwrap(), world.double("cpu", &[]).unwrap()];
    let first = world.agent("first", doubles[0].address, Hardware::This, &[]).unwrap();
    let alone = shown(&world, &[]);
    copy_state(&world.path("state-first"), &world.path("state-copy"), &doubles[1]);
    // In a runtime directory of its own, as in a container: only the mesh tells the two of each other.
    let apart = world.path("run-copy");
    let copy =
        world.agent("copy", doubles[1].address, Hardware::This, &["--runtime-dir", apart.to_str().unwrap()]);
    let copy = copy.unwrap();
    let peer = copy.address.to_string();

    let (mut doubtful, mut parted) = (Vec::new(), None);
    wait_until("two agents have two ids and both may work", || {
        let now = shown(&world, &["--peer", &peer]);
        let done = ids(&now).len() == 2 && now.out.is_empty();
        if done {
            parted = Some(now);
        } else {
            doubtful.push(now);
        }
        done
    })
    .map_err(|error| format!("{error}: {doubtful:#?}\n{}\n{}", first.log(), copy.log()))
    .unwrap();

    let parted = parted.unwrap();
    assert_eq!(parted.machines, 1);
    assert!(parted.agents.is_superset(&alone.agents), "the older keeps the key: {alone:?} {parted:?}");
    assert!(first.log().contains("keeps the key") && copy.log().contains("taking a new key"));
    let told = |shown: &Shown| {
        let named = |text: &String| {
            text.starts_with("CLONED_AGENT_KEY") && text.contains("first") && text.contains("copy")
        };
        shown.warnings.iter().any(named) && shown.out.len() == 2
    };
    assert!(doubtful.iter().any(told), "{doubtful:#?}");

    let input = world.file("prompts.txt", &"say something\n".repeat(6)).unwrap();
    let job = world.run(&["run", input.to_str().unwrap(), "--peer", &peer]).unwrap();
    assert_eq!(job.status.code(), Some(0));
    assert_eq!(world.witness().unwrap().overlap("cpu"), Duration::ZERO);
}
