//! `tropa doctor` before a mesh that is in order, and before each thing that is not.

use std::{os::unix::fs::PermissionsExt as _, process::Output};

use rustix::process::Signal;
use serde_json::{Value, json};
use tropa_tests::harness::{Hardware, World, wait_until};

use super::{at_work, done, ends_with, run, start, two_meshes};
use crate::jobs::{said, world};

/// No Ollama but those of the test.
const NO_OTHER: [&str; 2] = ["--ollama", "http://127.0.0.1:1"];

/// What the doctor says as JSON; it ends with this code.
#[track_caller]
fn doctor(world: &World, code: i32, more: &[&str]) -> Value {
    let output = run(world, &[&["doctor", "--json"], more].concat());
    ends_with(&output, code, &[]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], "tropa.doctor/1", "{}", said(&output));
    assert_eq!(report["fail"].as_u64().unwrap() > 0, code != 0, "{}", said(&output));
    report
}

/// The finding of this level and code.
#[track_caller]
fn finding<'a>(report: &'a Value, level: &str, code: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["level"] == level && finding["code"] == code);
    found.unwrap_or_else(|| panic!("no {level} {code} in {report:#}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_mesh_that_is_in_order_is_told_so() {
    let world = world();
    let doubles = [world.double("cpu1", &[]).unwrap(), world.double("cpu2", &[]).unwrap()];
    let _home = world.agent("home", doubles[0].address, Hardware::Declared(1), &[]).unwrap();
    let _office = world.agent("office", doubles[1].address, Hardware::Declared(2), &[]).unwrap();
    let with = [&NO_OTHER[..], &["--allow-declared"]].concat();
    let report = doctor(&world, 0, &with);
    let codes = ["mesh.agents", "mesh.capacity", "mesh.version", "agent.here", "ollama.answers"];
    for code in codes.into_iter().chain([
        "model.ready",
        "config.file",
        "config.value",
        "mesh.secret",
        "journal.sound",
    ]) {
        finding(&report, "ok", code);
    }
    assert_eq!(report["warn"], 0, "{report:#}");
    assert!(finding(&report, "ok", "mesh.agents")["what"].as_str().unwrap().contains("home, office"));
    let said = finding(&report, "ok", "model.ready")["what"].clone();
    assert!(said.as_str().unwrap().contains("tiny:latest runs on 2 installs, 2 at a time"), "{said}");

    let output = run(&world, &[&["doctor"], &with[..]].concat());
    ends_with(&output, 0, &[]);
    let text = text(&output);
    assert!(text.contains("ok      mesh.agents    2 agents answer: home, office\n"), "{text}");
    assert!(text.trim_end().ends_with(" ok") && text.contains("\n0 fail, 0 warn, "), "{text}");
}

#[test]
fn without_a_mesh_the_ollama_of_this_machine_decides() {
    let world = world();
    let report = doctor(&world, 4, &NO_OTHER);
    assert_eq!(finding(&report, "warn", "mesh.alone")["fix"], "tropa-agent");
    let silent = finding(&report, "fail", "ollama.unreachable");
    assert!(silent["fix"].as_str().unwrap().contains("ollama serve"), "{silent}");
    finding(&report, "fail", "mesh.capacity");

    let double = world.double("cpu", &[]).unwrap();
    let report = doctor(&world, 0, &["--ollama", &format!("http://{}", double.address)]);
    finding(&report, "warn", "mesh.alone");
    finding(&report, "ok", "mesh.capacity");

    // An agent was named, and one of our own is none in its place.
    let report = doctor(&world, 4, &["--peer", "127.0.0.1:1"]);
    let deaf = finding(&report, "fail", "mesh.unreachable");
    assert!(deaf["what"].as_str().unwrap().contains("127.0.0.1:1: connection refused"), "{deaf}");
}

#[test]
fn an_ollama_beside_the_mesh_and_a_model_that_nobody_has_are_told_of() {
    let world = world();
    let doubles = [world.double("cpu", &[]).unwrap(), world.double("cpu", &[]).unwrap()];
    let _agent = world.agent("den", doubles[0].address, Hardware::This, &[]).unwrap();
    let url = format!("http://{}", doubles[1].address);
    let report = doctor(&world, 0, &["--ollama", &url]);
    assert_eq!(finding(&report, "warn", "agent.missing")["fix"], format!("tropa-agent --ollama {url}"));
    let report = doctor(&world, 4, &[&NO_OTHER[..], &["--model", "nope"]].concat());
    let missing = finding(&report, "fail", "model.missing");
    assert!(missing["fix"].as_str().unwrap().contains("ollama pull nope"), "{missing}");
}

#[test]
fn a_configuration_with_an_unknown_key_is_named_with_its_line_and_all_else_is_looked_at() {
    let world = world();
    let config = world.file("config.toml", "wait = 3\nmodl = \"x\"\n").unwrap();
    let report = doctor(&world, 4, &["--config", config.to_str().unwrap()]);
    let wrong = finding(&report, "fail", "config.file");
    let what = wrong["what"].as_str().unwrap();
    assert!(what.contains("config.toml line 2") && what.contains("modl"), "{wrong}");
    assert!(wrong["fix"].as_str().unwrap().contains(" +2 "), "{wrong}");
    finding(&report, "ok", "journal.sound");
    let output = run(&world, &["doctor", "--config", config.to_str().unwrap()]);
    ends_with(&output, 4, &[]);
    assert!(text(&output).starts_with("fail    config.file    "), "{}", said(&output));
}

#[test]
fn every_setting_is_shown_with_where_it_came_from() {
    let mut world = world();
    let config =
        "wait = 1.5\nollama = \"127.0.0.1:1\"\n[job]\nmodel = \"big\"\nsystem = \"A secret wish.\"\n";
    let config = world.file("config.toml", config).unwrap();
    world.set_env("TROPA_MAX_TOKENS", "77");
    world.set_env("OLLAMA_HOST", "127.0.0.1:2");
    let report = doctor(&world, 4, &["--config", config.to_str().unwrap(), "--num-ctx", "4096"]);
    let setting = |name: &str| {
        let all = report["settings"].as_array().unwrap();
        let found = all.iter().find(|setting| setting["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {report:#}"))
    };
    let file = config.to_str().unwrap();
    for (name, value, source, from) in [
        ("wait", json!(1.5), "--config file", json!(file)),
        ("ollama", json!("127.0.0.1:1"), "--config file", json!(file)),
        ("job.model", json!("big"), "--config file", json!(file)),
        ("job.system", json!("14 bytes"), "--config file", json!(file)),
        ("job.num-ctx", json!(4096), "flag", json!(null)),
        ("job.max-tokens", json!(77), "variable", json!("TROPA_MAX_TOKENS")),
        ("peer", json!(null), "default", json!(null)),
        ("progress", json!("auto"), "default", json!(null)),
    ] {
        let expected = json!({"name": name, "value": value, "source": source, "from": from});
        assert_eq!(*setting(name), expected, "{report:#}");
    }
    assert_eq!(setting("runtime-dir")["source"], "variable");
    assert_eq!(report["files"], json!([file]));
    assert!(!report.to_string().contains("secret wish"), "a prompt is nobody's to see");
}

#[test]
fn a_state_directory_that_others_may_open_is_mended_by_the_command_that_is_told() {
    let (world, _running) = at_work("0");
    let job = start(&world, 1);
    ends_with(&job.end(), 0, &[]);
    doctor(&world, 0, &NO_OTHER);
    let jobs = world.path("home/.local/state/tropa/jobs");
    std::fs::set_permissions(&jobs, std::fs::Permissions::from_mode(0o755)).unwrap();
    let report = doctor(&world, 4, &NO_OTHER);
    let open = finding(&report, "fail", "state.open");
    assert!(open["why"].as_str().unwrap().contains("/jobs "), "{open}");
    let fix = open["fix"].as_str().unwrap();
    assert!(fix.starts_with("chmod "), "{open}");
    assert!(std::process::Command::new("sh").args(["-c", fix]).status().unwrap().success());
    doctor(&world, 0, &NO_OTHER);
}

#[test]
fn a_job_that_was_left_half_way_is_named_with_the_command_that_goes_on() {
    let (world, _running) = at_work("50");
    let job = start(&world, 120);
    wait_until("something is done", || done(&world) > 0).unwrap();
    let report = doctor(&world, 0, &NO_OTHER);
    assert!(finding(&report, "ok", "job.running")["what"].as_str().unwrap().contains("pid "), "{report:#}");
    job.signal(Signal::KILL);
    assert_eq!(job.end().status.code(), None);
    let report = doctor(&world, 0, &NO_OTHER);
    let open = finding(&report, "warn", "job.unfinished");
    let fix = open["fix"].as_str().unwrap();
    let resumed = run(&world, &fix.split(' ').skip(1).collect::<Vec<_>>());
    ends_with(&resumed, 0, &[]);
    let report = doctor(&world, 0, &NO_OTHER);
    assert!(!report.to_string().contains("job.unfinished"), "{report:#}");
}

#[test]
fn a_secret_that_is_open_or_another_ones_is_told_of_and_never_shown() {
    let world = world();
    let ([one, other], [agent, _double]) = two_meshes(&world);
    let secret = ["--mesh-secret-file", &one, "--no-mdns"];
    let right = doctor(&world, 0, &[&NO_OTHER[..], &secret].concat());
    finding(&right, "ok", "agent.here");
    // An agent whose hardware is declared does not tell the time.
    finding(&right, "ok", "clock.skew");

    let peer = agent.address.to_string();
    let wrong = [&NO_OTHER[..], &["--mesh-secret-file", &other, "--no-mdns", "--peer", &peer]].concat();
    let wrong = doctor(&world, 4, &wrong);
    let stranger = finding(&wrong, "fail", "mesh.secret");
    assert!(stranger["what"].as_str().unwrap().contains("another mesh"), "{stranger}");
    assert!(stranger["fix"].as_str().unwrap().contains("tropa mesh join"), "{stranger}");

    std::fs::set_permissions(&one, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = doctor(&world, 4, &[&NO_OTHER[..], &secret].concat());
    assert_eq!(finding(&open, "fail", "mesh.secret")["fix"], format!("chmod 600 {one}"));
    let digits = std::fs::read_to_string(&one).unwrap();
    for report in [right, wrong, open] {
        let report = report.to_string();
        assert!(digits.split_whitespace().all(|word| word.len() < 64 || !report.contains(word)));
    }
}
