//! `tropa map` over a mesh of real programs: long documents in parts, merged by a tree.

use std::{collections::BTreeSet, fs, process::Stdio, time::Duration};

use serde_json::Value;
use tropa_tests::harness::{Hardware, World, results, wait_until};

use crate::jobs::{said, world};

/// A Markdown document of so many sections, each a few hundred bytes.
fn document(sections: usize) -> String {
    let body = "The llama carries salt over the pass, and the drover counts the loads at every bridge. ";
    (1..=sections).map(|n| format!("## Section {n}\n\n{n}: {}\n\n", body.repeat(4))).collect()
}

fn path(world: &World, name: &str, text: &str) -> String {
    world.file(name, text).unwrap().to_str().unwrap().to_owned()
}

/// What the journal says of the first job, inner chunks included.
fn shown(world: &World) -> Value {
    let listed: Value =
        serde_json::from_slice(&world.run(&["jobs", "--json"]).unwrap().stdout).unwrap_or_default();
    let Some(id) = listed["jobs"][0]["id"].as_str() else { return Value::Null };
    serde_json::from_slice(&world.run(&["jobs", "show", id, "--json"]).unwrap().stdout).unwrap_or_default()
}

const SMALL_PARTS: [&str; 4] = ["--part-tokens", "400", "--max-tokens", "60"];

#[test]
fn a_long_document_asks_the_same_on_one_machine_and_on_two() {
    let mut answers = BTreeSet::new();
    for machines in 1..=2_u8 {
        let world = world();
        let document = path(&world, "salt.md", &document(30));
        // Slow enough that loading the model on a second machine is worth it: a load is taken for 3 s.
        let slow = ["--decode-us", "20000"];
        let doubles: Vec<_> =
            (1..=machines).map(|n| world.double(&format!("cpu{n}"), &slow).unwrap()).collect();
        let agents = doubles.iter().zip(1..).map(|(double, n)| {
            world.agent(&format!("m{n}"), double.address, Hardware::Declared(n), &[]).unwrap()
        });
        let _agents: Vec<_> = agents.collect();
        let arguments = ["map", &document, "--allow-declared", "--json", "--prompt", "What is carried?"];
        let output = world.run(&[&arguments[..], &SMALL_PARTS].concat()).unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
        assert_eq!(rows.len(), 1, "one document, one line: {}", said(&output));
        assert_eq!(rows[0]["id"], document.as_str());
        let parts = rows[0]["metadata"]["parts"].as_array().unwrap();
        assert!(parts.len() > 5, "{parts:?}");
        assert_eq!(parts[0]["heading"], "Section 1");
        assert!(parts.iter().all(|part| part["lines"][0].as_u64() <= part["lines"][1].as_u64()));
        let show = shown(&world);
        assert_eq!(
            (&show["kind"], &show["state"], &show["items"]),
            (&"map".into(), &"done".into(), &1.into())
        );
        assert_eq!(show["chunks"].as_u64(), Some(parts.len() as u64 + 1), "the parts and one merge: {show}");
        let witness = world.witness().unwrap();
        assert_eq!(witness.parallel() > Duration::ZERO, machines == 2, "{machines} machines");
        // The double's words depend on all that was asked, so the last answer depends on every request of the job.
        answers.insert(rows[0]["text"].as_str().unwrap().to_owned());
    }
    assert_eq!(answers.len(), 1, "the plan changed what was asked: {answers:?}");
}

#[test]
fn a_killed_coordinator_goes_on_in_the_middle_of_the_tree_and_asks_nothing_twice() {
    let world = world();
    let double = world.double("cpu", &["--decode-us", "2000", "--tokens", "20"]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    let document = path(&world, "salt.md", &document(40));
    let out = world.path("out.md").to_str().unwrap().to_owned();
    // Merges of at most a few answers: a tree of several levels.
    let arguments =
        ["map", &document, "-o", &out, "--num-ctx", "1024", "--part-tokens", "400", "--max-tokens", "150"];
    let mut job = world.tropa(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("some chunks are committed", || shown(&world)["done"].as_u64().unwrap_or(0) >= 4).unwrap();
    job.kill().unwrap();
    job.wait().unwrap();
    let before = shown(&world);
    assert!(before["done"].as_u64() < before["chunks"].as_u64(), "it was over before it was killed");
    assert!(!fs::exists(&out).unwrap(), "a text appears whole or not at all");

    let id = before["job"].as_str().unwrap().to_owned();
    let output = world.run(&["resume", &id]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let after = shown(&world);
    assert_eq!(after["attempts_by_class"], serde_json::json!({"done": after["chunks"]}), "{after}");
    let text = fs::read_to_string(&out).unwrap();
    assert!(text.contains("* [part 1] ") && text.contains(": Section 1\n"), "{text}");

    // The same job without an interruption gives the same text.
    let again = world.path("again.md").to_str().unwrap().to_owned();
    let mut arguments = arguments;
    arguments[3] = &again;
    let output = world.run(&arguments).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(text, fs::read_to_string(&again).unwrap());
}

#[test]
fn a_part_that_fails_fails_its_document_by_name_and_no_other_and_both_run_again() {
    let world = world();
    let double = world.double("cpu", &["--fault", "nested_400@prompt~poison*2"]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    // Once for the sample that is counted, which stops nothing, and once for the part.
    let bad = path(&world, "bad.md", &format!("{}\n\nA poison.\n", document(12)));
    let good = path(&world, "good.md", &document(12));
    let out = world.path("out.jsonl").to_str().unwrap().to_owned();
    let arguments = ["map", &bad, &good, "--json", "-o", &out];
    let output = world.run(&[&arguments[..], &SMALL_PARTS].concat()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let rows = results(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!((&rows[0]["error"]["code"], &rows[1]["error"]), (&"need_failed".into(), &Value::Null));
    let message = rows[0]["error"]["message"].as_str().unwrap();
    assert!(
        message.starts_with(&format!("it builds on {bad} part ")) && message.contains("too_long"),
        "{message}"
    );
    assert!(fs::read_to_string(format!("{out}.errors.jsonl")).unwrap().contains("need_failed"));

    let id = shown(&world)["job"].as_str().unwrap().to_owned();
    let output = world.run(&["resume", &id, "--failed", "--json"]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = results(&fs::read_to_string(&out).unwrap()).unwrap();
    assert!(rows.iter().all(|row| row["error"].is_null()), "{rows:?}");
}

#[test]
fn what_cannot_be_mapped_is_refused_before_anything_runs() {
    let world = world();
    let double = world.double("cpu", &["--model", "tiny:latest,ctx=1024"]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    let fine = path(&world, "fine.md", &document(20));
    fs::write(world.path("bytes.txt"), b"one\ntwo \xff").unwrap();
    let bytes = world.path("bytes.txt").to_str().unwrap().to_owned();
    let empty = path(&world, "empty.md", "\n \n");
    let pdf = path(&world, "paper.pdf", "%PDF-1.7\n");
    let none = world.path("none.md").to_str().unwrap().to_owned();
    let long = "why ".repeat(1000);
    let cases: [(&[&str], i32, &[&str]); 9] = [
        (&["map", &bytes], 65, &["line 2: ", "bytes.txt", "byte 8 is 0xff", "iconv"]),
        (&["map", &empty], 65, &["empty.md", "no text", "leave it out"]),
        (&["map", &none], 65, &["none.md", "cannot open"]),
        (&["map", &fine, &fine], 65, &["named twice"]),
        (&["map", &fine, "--prompt", " "], 65, &["--prompt is empty"]),
        (
            &["map", &fine, "--prompt", &long],
            4,
            &["leaves 0", "tiny:latest was trained for 1024", "--prompt"],
        ),
        (&["map", &fine, "--num-ctx", "600"], 65, &["a context of 600 tokens", "raise --num-ctx"]),
        (&["map", &fine, "--as-completed"], 64, &["--json"]),
        (&["map"], 64, &["DOC"]),
    ];
    for (arguments, code, named) in cases {
        let output = world.run(arguments).unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        for name in named {
            assert!(said.contains(name), "{name} is not named: {said}");
        }
    }
    let mut command = world.tropa(&["map", &pdf]);
    let output = command.env("PATH", world.path("empty")).output().unwrap();
    assert_eq!(output.status.code(), Some(65), "{}", said(&output));
    assert!(
        said(&output).contains("no pdftotext here") && said(&output).contains("poppler"),
        "{}",
        said(&output)
    );
    let witness = world.witness().unwrap();
    assert!(witness.timeline().is_empty(), "nothing ran");
    assert_eq!(shown(&world), Value::Null, "no job was left behind");
}

#[test]
fn a_pdf_goes_through_pdftotext_and_only_its_path_does() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = world();
    let double = world.double("cpu", &["--echo"]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    let tools = world.path("tools");
    fs::create_dir(&tools).unwrap();
    let script = "#!/bin/sh\necho \"$@\" > \"$(dirname \"$0\")/arguments\"\necho 'Salt and copper.'\n";
    fs::write(tools.join("pdftotext"), script).unwrap();
    fs::set_permissions(tools.join("pdftotext"), fs::Permissions::from_mode(0o755)).unwrap();
    let pdf = path(&world, "paper.pdf", "%PDF-1.7\n");
    let mut command = world.tropa(&["map", &pdf, "--prompt", "secret question"]);
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
    let output = command.env("PATH", path).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("copper"), "{}", said(&output));
    let arguments = fs::read_to_string(tools.join("arguments")).unwrap();
    assert_eq!(arguments, format!("-q -enc UTF-8 {pdf} -\n"));
}

#[test]
fn a_plan_says_what_would_run_and_runs_nothing() {
    let world = world();
    let double = world.double("cpu", &[]).unwrap();
    let _agent = world.agent("den", double.address, Hardware::This, &[]).unwrap();
    let document = path(&world, "salt.md", &document(30));
    let output = world.run(&[&["map", &document, "--plan", "--json"], &SMALL_PARTS[..]].concat()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&plan["depth"], &plan["items"], &plan["at_once"]),
        (&2.into(), &1.into(), &1.into()),
        "{plan}"
    );
    assert!(plan["chunks"].as_u64() > Some(5) && plan["num_ctx"].as_u64() >= Some(1024), "{plan}");
    let output = world.run(&[&["map", &document, "--plan"], &SMALL_PARTS[..]].concat()).unwrap();
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("2 one after the other at least"),
        "{}",
        said(&output)
    );
    assert!(world.witness().unwrap().timeline().is_empty(), "nothing ran");
}
