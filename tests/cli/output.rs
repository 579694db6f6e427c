//! What scripts rely on: exit codes, what is on stdout, the schemas of objects, files of results and of failures.

use std::fs;

use serde_json::Value;
use tropa_tests::harness::{Hardware, results};

use super::{ends_with, job, run};
use crate::jobs::{said, world};

#[test]
fn help_version_completions_and_the_manual_are_no_errors() {
    let world = world();
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["run", "--help"],
        &["mesh", "new", "--help"],
        &["completions", "bash"],
        &["completions", "zsh"],
        &["completions", "fish"],
        &["completions", "powershell"],
        &["man"],
    ] {
        let output = run(&world, arguments);
        ends_with(&output, 0, &[]);
        assert!(output.stderr.is_empty() && !output.stdout.is_empty(), "{arguments:?}: {}", said(&output));
    }
    let man = run(&world, &["man"]);
    assert!(String::from_utf8_lossy(&man.stdout).contains("id\\-column"), "the pages of the commands too");
}

#[test]
fn objects_name_their_schema() {
    let world = world();
    let double = world.double("cpu", &[]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    let input = world.file("prompts.txt", "one\ntwo\n").unwrap();
    let (input, out) = (input.to_str().unwrap(), world.path("out.jsonl"));
    for (arguments, schema) in [
        (&["machines", "--json"][..], "tropa.machines/1"),
        (&["plan", input, "--json"], "tropa.plan/1"),
        (&["run", input, "--json", "-o", out.to_str().unwrap()], "tropa.summary/1"),
        (&["jobs", "--json"], "tropa.jobs/1"),
        (&["doctor", "--json"], "tropa.doctor/1"),
    ] {
        let output = run(&world, arguments);
        ends_with(&output, 0, &[]);
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(object["schema"], schema, "{}", said(&output));
    }
    let rows = results(&fs::read_to_string(&out).unwrap()).unwrap();
    assert!(rows.len() == 2 && rows.iter().all(|row| row["tropa"]["schema"] == "tropa.result/1"));
}

#[test]
fn items_that_fail_keep_their_place_and_run_again_when_asked() {
    let world = world();
    let double = world.double("cpu", &["--marks"]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    let input = world.file("prompts.txt", "one\ntwo [[option_500*1]]\nthree\n").unwrap();
    let out = world.path("out.jsonl");
    let errors = world.path("out.jsonl.errors.jsonl");
    let output = run(&world, &["run", input.to_str().unwrap(), "-o", out.to_str().unwrap()]);
    ends_with(&output, 2, &["1 failed"]);
    let rows = results(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(rows.len(), 3);
    assert!(rows[1]["text"].is_null() && rows[1]["error"]["code"].is_string(), "{}", rows[1]);
    let failed = results(&fs::read_to_string(&errors).unwrap()).unwrap();
    assert_eq!(failed, [rows[1].clone()]);

    let id = job(&world)["id"].as_str().unwrap().to_owned();
    let again = run(&world, &["resume", &id, "--failed"]);
    ends_with(&again, 0, &["goes on", "1 that failed run again"]);
    let rows = results(&fs::read_to_string(&out).unwrap()).unwrap();
    assert!(rows[1]["error"].is_null() && rows[1]["text"].is_string(), "{}", rows[1]);
    assert!(!errors.exists(), "a file of failures would be a lie now");
}

#[test]
fn results_come_as_they_are_completed_when_asked() {
    let world = world();
    let doubles = [world.double("cpu1", &["--first-ms", "600"]).unwrap(), world.double("cpu2", &[]).unwrap()];
    let _slow = world.agent("slow", doubles[0].address, Hardware::Declared(1), &[]).unwrap();
    let _fast = world.agent("fast", doubles[1].address, Hardware::Declared(2), &[]).unwrap();
    let input = world.file("prompts.txt", &"a llama\n".repeat(8)).unwrap();
    let output = run(&world, &["run", input.to_str().unwrap(), "--allow-declared", "--as-completed"]);
    ends_with(&output, 0, &[]);
    let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    let mut order: Vec<u64> = rows.iter().map(|row| row["tropa"]["index"].as_u64().unwrap()).collect();
    assert!(!order.is_sorted(), "the slow install's first item did not wait for its turn: {order:?}");
    order.sort_unstable();
    assert_eq!(order, (0..8).collect::<Vec<_>>());
}

#[test]
fn a_pipe_gets_plain_lines_of_progress() {
    let world = world();
    // More than eleven seconds of work: the first line comes after ten.
    let double = world.double("cpu", &["--first-ms", "1150", "--tokens", "2"]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    let input = world.file("prompts.txt", &"one\n".repeat(10)).unwrap();
    let output = run(&world, &["run", input.to_str().unwrap(), "-v"]);
    ends_with(&output, 0, &["of 10 done, 0 failed, 1 machine at work"]);
    assert!(!output.stderr.contains(&0x1b), "no escape codes in a pipe: {}", said(&output));
    let single = world.file("single.txt", "one\n").unwrap();
    let output = run(&world, &["run", single.to_str().unwrap(), "-q"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
}

#[test]
fn colour_obeys_the_flag_before_the_environment() {
    let world = world();
    let coloured = |color: &str, variable: &str| {
        // Nobody answers there, which is worth a line of the log.
        let mut command =
            world.tropa(&["machines", "-vv", "--ollama", "http://127.0.0.1:1", "--color", color]);
        command.env(variable, "1");
        let output = command.output().unwrap();
        assert!(!output.stderr.is_empty(), "nothing to be coloured: {}", said(&output));
        output.stderr.contains(&0x1b)
    };
    assert!(coloured("always", "NO_COLOR"));
    assert!(!coloured("never", "CLICOLOR_FORCE"));
    assert!(!coloured("auto", "NO_COLOR"));
    assert!(coloured("auto", "CLICOLOR_FORCE"));
}

#[test]
fn rows_go_by_a_column_and_batch_lines_by_the_endpoint() {
    let world = world();
    let double = world.double("cpu", &[]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    let rows = world.file("rows.csv", "name,town\nAna,Cusco\nLuz,Puno\n").unwrap();
    let template = ["--template", "Greet {{name}}", "--id-column", "town"];
    let output = run(&world, &[&["run", rows.to_str().unwrap()], &template[..]].concat());
    ends_with(&output, 0, &[]);
    let lines = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
    assert_eq!([&lines[0]["id"], &lines[1]["id"]], ["Cusco", "Puno"]);
    let item = "{\"custom_id\":\"r\",\"body\":{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}}\n";
    let batch = world.file("b.jsonl", item).unwrap();
    let output = run(&world, &["run", batch.to_str().unwrap(), "--endpoint", "/v1/chat/completions"]);
    ends_with(&output, 0, &[]);
    let line = &results(&String::from_utf8_lossy(&output.stdout)).unwrap()[0];
    assert_eq!(line["response"]["body"]["object"], "chat.completion");
    assert_eq!(line["custom_id"], "r");
}
