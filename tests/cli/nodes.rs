//! `tropa nodes check`: a list of addresses against the mesh.

use std::fs;

use serde_json::{Value, json};
use tropa_tests::harness::Hardware;

use super::{ends_with, run};
use crate::jobs::{said, world};

#[test]
fn of_two_entries_on_one_machine_one_stays_and_one_without_an_agent_goes() {
    let world = world();
    let doubles = ["cpu", "cpu", "far"].map(|device| world.double(device, &[]).unwrap());
    let [one, two, far] = doubles.each_ref().map(|double| double.address);
    let _one = world.agent("one", one, Hardware::Declared(1), &[]).unwrap();
    let _two = world.agent("two", two, Hardware::Declared(1), &[]).unwrap();
    let _far = world.agent("far", far, Hardware::Declared(2), &[]).unwrap();
    let text = format!(
        "{{\"nodes\":[\n{{\"url\":\"http://{one}\",\"name\":\"first\",\"priority\":5}},\n\
         {{\"url\":\"http://localhost:{}\"}},\n{{\"url\":\"http://{far}\"}},\n\
         {{\"url\":\"http://127.0.0.1:1\",\"name\":\"nobody\"}}]}}",
        two.port()
    );
    let file = world.file("nodes.json", &text).unwrap().to_str().unwrap().to_owned();
    let checked = run(&world, &["nodes", "check", &file, "--allow-declared", "--json"]);
    ends_with(&checked, 0, &[]);
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let verdicts: Vec<&Value> =
        report["entries"].as_array().unwrap().iter().map(|entry| &entry["verdict"]).collect();
    assert_eq!(verdicts, ["keep", "same_hardware", "keep", "unknown"], "{}", said(&checked));
    assert_eq!((&report["machines"], &report["usable"]), (&json!(2), &json!(2)));
    let why = report["entries"][1]["why"].as_str().unwrap();
    assert!(why.contains("line 2") && why.contains("boot"), "{why}");
    let cleaned = json!({"nodes": [
        {"url": format!("http://{one}"), "name": "first", "priority": 5},
        {"url": format!("http://{far}")},
    ]});
    assert_eq!(report["cleaned"], cleaned);

    let told = run(&world, &["nodes", "check", &file, "--allow-declared"]);
    ends_with(&told, 0, &["same hardware", "line 5: start one on this machine: tropa-agent", "2 machines"]);
    assert_eq!(serde_json::from_slice::<Value>(&told.stdout).unwrap(), cleaned, "stdout is the file");
    assert_eq!(fs::read_to_string(&file).unwrap(), text, "the file itself is never changed");

    let other = world.path("cleaned.json").to_str().unwrap().to_owned();
    let written = run(&world, &["nodes", "check", &file, "--allow-declared", "-o", &other]);
    ends_with(&written, 0, &[]);
    assert!(written.stdout.is_empty());
    assert_eq!(serde_json::from_slice::<Value>(&fs::read(&other).unwrap()).unwrap(), cleaned);
    for there in [&other, &file] {
        ends_with(&run(&world, &["nodes", "check", &file, "-o", there]), 74, &[there, "must not exist"]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), text);

    let nobody = world.file("nobody.json", "{\"nodes\":[{\"url\":\"http://127.0.0.1:1\"}]}").unwrap();
    let none = run(&world, &["nodes", "check", nobody.to_str().unwrap()]);
    ends_with(&none, 4, &["unknown", "not usable"]);
    let wrong = world.file("wrong.json", "{\"nodes\":[\n{\"url\":\"http://a:1\",\n\"weight\":1}]}").unwrap();
    ends_with(
        &run(&world, &["nodes", "check", wrong.to_str().unwrap()]),
        65,
        &["wrong.json", "line 3", "weight"],
    );
    ends_with(&run(&world, &["nodes", "check", "nowhere.json"]), 65, &["nowhere.json"]);
}
