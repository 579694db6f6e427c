//! `tropa bench` from the outside: what it measures on one machine and on two, what it says it cannot measure, and
//! what it refuses. Times of doubles are no measurement of anything; what is asserted is the shape.

use std::{collections::BTreeSet, net::SocketAddr};

use serde_json::Value;
use tropa_tests::harness::{Hardware, Running, World};

use crate::jobs::{said, world};

/// A mesh of two installs with an agent beside each.
fn mesh(world: &World, devices: [&str; 2], hardware: [Hardware; 2]) -> (Vec<Running>, Vec<Running>) {
    let doubles = devices.map(|device| world.double(device, &["--tokens", "8"]).unwrap());
    let labels = ["den", "attic"];
    let agents = (0..2).map(|at| world.agent(labels[at], doubles[at].address, hardware[at], &[]).unwrap());
    let agents = agents.collect();
    (doubles.into(), agents)
}

fn direct(label: &str, install: SocketAddr) -> String {
    format!("{label}=http://{install}")
}

fn kinds(report: &Value) -> BTreeSet<String> {
    let set_ups = report["set_ups"].as_array().unwrap();
    set_ups.iter().map(|set_up| set_up["kind"].as_str().unwrap().to_owned()).collect()
}

/// The runs of the set-up of this kind.
fn runs(report: &Value, kind: &str) -> Vec<Value> {
    let set_ups = report["set_ups"].as_array().unwrap();
    let at = set_ups.iter().position(|set_up| set_up["kind"] == kind).unwrap();
    let all = report["runs"].as_array().unwrap();
    all.iter().filter(|run| run["set_up"] == at).cloned().collect()
}

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {}", said(output)))
}

/// The most attempts of a run that were at installs at one time.
fn most_at_once(run: &Value) -> usize {
    let attempts = run["attempts"].as_array().unwrap();
    let spans: Vec<(f64, f64)> =
        attempts.iter().map(|a| (a["start_ms"].as_f64().unwrap(), a["end_ms"].as_f64().unwrap())).collect();
    let during = |at: f64| spans.iter().filter(|(start, end)| *start <= at && at < *end).count();
    spans.iter().map(|(start, _)| during(*start)).max().unwrap_or(0)
}

#[test]
fn one_machine_is_compared_with_the_best_use_of_one_install_and_with_addresses() {
    let world = world();
    let (doubles, _agents) = mesh(&world, ["cpu", "cpu"], [Hardware::This; 2]);
    let raw = world.path("raw.json");
    let ways = [direct("den", doubles[0].address), direct("attic", doubles[1].address)];
    let output = world
        .run(&[
            "bench",
            "--rounds",
            "2",
            "-n",
            "6",
            "--widths",
            "2",
            "--max-tokens",
            "8",
            "--json",
            "--direct",
            &ways[0],
            "--direct",
            &ways[1],
            "-o",
            raw.to_str().unwrap(),
        ])
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report = json(&output);
    assert_eq!(report["schema"], "tropa.bench/1");
    assert_eq!((&report["machines"], &report["distinct"]), (&1.into(), &1.into()));
    let expected = ["one_at_a_time", "fixed", "by_address", "tropa"].map(str::to_owned);
    assert_eq!(kinds(&report), BTreeSet::from(expected));
    for kind in ["one_at_a_time", "fixed", "by_address", "tropa"] {
        let runs = runs(&report, kind);
        assert_eq!(runs.len(), 2, "{kind}");
        for run in runs {
            assert_eq!(run["answered"], 6, "{kind}: {run}");
            assert!(run["seconds"].as_f64().unwrap() > 0.0);
            let chunks: BTreeSet<u64> =
                run["attempts"].as_array().unwrap().iter().filter_map(|a| a["chunk"].as_u64()).collect();
            assert_eq!(chunks.len(), 6, "every prompt once: {run}");
        }
    }
    assert!(runs(&report, "by_address").iter().any(|run| most_at_once(run) == 2));
    assert!(runs(&report, "one_at_a_time").iter().all(|run| most_at_once(run) == 1));
    let aims = report["aims"].as_array().unwrap();
    assert_eq!(aims.len(), 1);
    assert_eq!(aims[0]["aim"], 1.02);
    assert_eq!(report["not_measured"].as_array().unwrap().len(), 0);
    // The raw data say the same, hold no prompt, and no job is left.
    let text = std::fs::read_to_string(&raw).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), report);
    assert!(!text.contains("sentences") && !text.contains("llama"), "a prompt in the raw data");
    let listed = json(&world.run(&["jobs", "--json"]).unwrap());
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 0);
}

#[test]
fn two_machines_are_compared_with_a_client_for_each() {
    let world = world();
    let (doubles, _agents) = mesh(&world, ["cpu1", "cpu2"], [Hardware::Declared(1), Hardware::Declared(2)]);
    let ways = [direct("den", doubles[0].address), direct("attic", doubles[1].address)];
    let output = world
        .run(&[
            "bench",
            "--allow-declared",
            "--rounds",
            "1",
            "-n",
            "6",
            "--widths",
            "2",
            "--max-tokens",
            "8",
            "--direct",
            &ways[0],
            "--direct",
            &ways[1],
            "--json",
        ])
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report = json(&output);
    assert_eq!((&report["machines"], &report["distinct"]), (&2.into(), &2.into()));
    let expected = ["one_at_a_time", "fixed", "clients", "tropa"].map(str::to_owned);
    assert_eq!(kinds(&report), BTreeSet::from(expected), "by address is the same as clients here");
    assert_eq!(report["aims"][0]["aim"], 0.97);
    let installs = |run: &Value| {
        let attempts = run["attempts"].as_array().unwrap().iter();
        attempts.filter_map(|attempt| attempt["install"].as_u64()).collect::<BTreeSet<_>>()
    };
    assert!(runs(&report, "clients").iter().all(|run| installs(run).len() == 2));
    assert!(runs(&report, "one_at_a_time").iter().all(|run| installs(run).len() == 1));
}

#[test]
fn what_needs_a_way_past_an_agent_is_named_and_not_invented() {
    let world = world();
    let (_doubles, _agents) = mesh(&world, ["cpu", "cpu"], [Hardware::This; 2]);
    let options = ["bench", "--rounds", "1", "-n", "4", "--widths", "4", "--max-tokens", "8"];
    let output = world.run(&[&options[..], &["--json"]].concat()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report = json(&output);
    assert_eq!(kinds(&report), BTreeSet::from(["one_at_a_time".to_owned(), "tropa".to_owned()]));
    assert_eq!(report["set_ups"][0]["way"], "agent");
    // Nobody went past the agents, so no two of them worked at the same time.
    assert!(world.witness().unwrap().overlap("cpu").is_zero());
    let not_measured = report["not_measured"].to_string();
    assert!(
        not_measured.contains("By address, 2 installs") && not_measured.contains("4 at once"),
        "{not_measured}"
    );
    let text = world.run(&options).unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("SET-UP") && text.contains("--direct den=URL"), "{text}");
    assert!(!text.contains("tropa never does that"), "it was not measured: {text}");
}

#[test]
fn a_bench_of_nothing_is_refused_before_anything_runs() {
    let world = world();
    let nobody = "http://127.0.0.1:9";
    let refused = |arguments: &[&str], code, named: &str| {
        let output = world.run(&[&["bench", "--wait", "0.2", "--rounds", "1"], arguments].concat()).unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(named), "{named} is not named: {said}");
        assert!(!said.contains("panicked"), "{said}");
    };
    refused(&["--ollama", nobody], 4, "no install answers");
    refused(&["--direct", "den"], 64, "not AGENT=URL");
    refused(&["--direct", "den=https://127.0.0.1"], 64, "https");
    refused(&["--prompts", "1"], 64, "2..");
    refused(&["/nowhere/prompts.txt"], 65, "/nowhere/prompts.txt");
    let one = world.file("one.txt", "only this\n").unwrap();
    refused(&[one.to_str().unwrap()], 65, "1 prompts");

    let double = world.double("cpu", &["--tokens", "8"]).unwrap();
    let other = world.double("cpu", &["--model", "other:1b"]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    refused(&["--direct", &direct("attic", double.address)], 64, "there are den");
    refused(&["--direct", "den=http://127.0.0.1:9"], 4, "--direct den");
    refused(&["--direct", &direct("den", other.address)], 4, "--direct den");
    let raw = world.path("no/such/raw.json");
    refused(&["-o", raw.to_str().unwrap()], 74, "raw.json");
    assert!(world.witness().unwrap().timeline().is_empty(), "something ran");
}

#[test]
fn chart_and_figures_of_the_page_are_what_the_raw_data_give() {
    let benches = concat!(env!("CARGO_MANIFEST_DIR"), "/benches");
    if !std::path::Path::new(benches).join("results/bench-shared.json").exists() {
        tropa_tests::skipped("no raw data: tests/benches/bench.sh makes them");
        return;
    }
    for script in ["chart.py", "table.py"] {
        let script = format!("{benches}/{script}");
        let Ok(checked) = std::process::Command::new("python3").args(["-B", &script, "--check"]).output()
        else {
            tropa_tests::skipped("there is no python3");
            return;
        };
        assert!(checked.status.success(), "{}", said(&checked));
    }
}
