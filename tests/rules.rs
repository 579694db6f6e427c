//! The operator's rules over a mesh of real programs: the configuration file, `TROPA_MACHINE`, and what
//! `tropa machines` says of them (`identity.md` §13).

use std::process::Output;

use serde_json::Value;
use tropa_tests::harness::{Hardware, Running, World};

use crate::jobs::{said, world};

/// Two agents with a double each; the second of them on this hardware.
fn two(world: &World, hardware: [Hardware; 2], machines: [&str; 2]) -> Vec<Running> {
    let mut running = Vec::new();
    for (at, label) in ["one", "two"].into_iter().enumerate() {
        let double = world.double(&format!("cpu-{at}"), &[]).unwrap();
        let machine = ["--machine", machines[at]];
        let more: &[&str] = if machines[at].is_empty() { &[] } else { &machine };
        running.push(world.agent(label, double.address, hardware[at], more).unwrap());
        running.push(double);
    }
    running
}

fn machines(world: &World, more: &[&str]) -> (Output, Value) {
    let arguments = ["machines", "--json", "--allow-declared", "--wait", "10"];
    let output = world.run(&[&arguments[..], more].concat()).unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, report)
}

fn count(report: &Value) -> usize {
    report["machines"].as_array().map_or(0, Vec::len)
}

fn warns(report: &Value, code: &str) -> bool {
    report["warnings"].as_array().unwrap().iter().any(|warning| warning["code"] == code)
}

#[test]
fn a_rule_distinct_makes_two_machines_of_one_kernel_and_the_proof_against_it_is_shown() {
    let world = world();
    let _agents = two(&world, [Hardware::This; 2], [""; 2]);
    let rules = "[[rule]]\ndistinct = [\"one\", \"two\"]\n\n[[rule]]\nsame = [\"one\", \"nobody\"]\n\n\
                 [[rule]]\nname = { agent = \"two\", name = \"under the desk\" }\n";
    let file = world.file("config.toml", rules).unwrap();
    let file = file.to_str().unwrap();

    let (output, report) = machines(&world, &["--config", file]);
    assert_eq!(count(&report), 2, "{}", said(&output));
    assert_eq!(report["at_once"], 2, "{}", said(&output));
    assert!(warns(&report, "OVERRIDE_CONTRADICTS_PROOF"), "{}", said(&output));
    assert_eq!(report["relations"][0]["confidence"], "operator", "{}", said(&output));
    let names: Vec<&Value> = report["machines"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
    assert!(names.iter().any(|name| **name == "under the desk"), "{}", said(&output));
    let rules = &report["rules"];
    assert!(rules["age_s"].as_u64().is_some_and(|age| age < 600), "{rules}");
    let states: Vec<&str> =
        rules["rules"].as_array().unwrap().iter().map(|rule| rule["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["followed", "waits", "followed"], "{rules}");
    assert_eq!(rules["rules"][1]["line"], 4, "{rules}");
    assert_eq!(rules["version"].as_str().map(str::len), Some(16), "{rules}");
    assert!(report["scores"].is_null());
    let (_, why) = machines(&world, &["--config", file, "--why"]);
    assert_eq!(why["scores"]["version"], why["rules_version"], "{why}");
    assert_eq!(why["rules"]["version"], rules["version"]);

    let text = world.run(&["machines", "--config", file]).unwrap();
    let shown = said(&text);
    for part in ["OVERRIDE_CONTRADICTS_PROOF", "nobody here is called nobody", "distinct one two", "changed "]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    let (output, report) = machines(&world, &[]);
    assert_eq!((count(&report), report["at_once"].as_u64()), (1, Some(1)), "{}", said(&output));
}

#[test]
fn a_rule_same_makes_one_machine_of_two_and_both_at_once_contradict() {
    let world = world();
    let _agents = two(&world, [Hardware::Declared(1), Hardware::Declared(2)], [""; 2]);
    let (output, report) = machines(&world, &[]);
    assert_eq!(count(&report), 2, "{}", said(&output));

    let same = "[[rule]]\nsame = [\"one\", \"two\"]\n";
    let file = world.file("same.toml", same).unwrap();
    let (output, report) = machines(&world, &["--config", file.to_str().unwrap()]);
    assert_eq!((count(&report), report["at_once"].as_u64()), (1, Some(1)), "{}", said(&output));
    assert!(warns(&report, "OVERRIDE_CONTRADICTS_PROOF"), "both are bare metal: {}", said(&output));

    let file = world.file("both.toml", &format!("{same}[[rule]]\ndistinct = [\"one\", \"two\"]\n")).unwrap();
    let (output, report) = machines(&world, &["--config", file.to_str().unwrap()]);
    assert_eq!(count(&report), 1, "{}", said(&output));
    assert!(warns(&report, "RULES_CONTRADICT"), "{}", said(&output));
}

#[test]
fn an_unknown_rule_is_refused_with_its_line() {
    let world = world();
    let file = world.file("config.toml", "wait = 1\n\n[[rule]]\nsane = [\"one\", \"two\"]\n").unwrap();
    let (output, _) = machines(&world, &["--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    let shown = said(&output);
    assert!(shown.contains("sane") && (shown.contains("line 4") || shown.contains("line 3")), "{shown}");
}

#[test]
fn different_names_of_machines_split_one_kernel() {
    let world = world();
    let _agents = two(&world, [Hardware::This; 2], ["rack-1", "rack-2"]);
    let (output, report) = machines(&world, &[]);
    assert_eq!((count(&report), report["at_once"].as_u64()), (2, Some(2)), "{}", said(&output));
    assert!(warns(&report, "OVERRIDE_CONTRADICTS_PROOF"), "{}", said(&output));
}

#[test]
fn one_name_of_a_machine_joins_two_declared_hosts() {
    let world = world();
    let _agents = two(&world, [Hardware::Declared(1), Hardware::Declared(2)], ["rack-1"; 2]);
    let (output, report) = machines(&world, &[]);
    assert_eq!((count(&report), report["at_once"].as_u64()), (1, Some(1)), "{}", said(&output));
}
