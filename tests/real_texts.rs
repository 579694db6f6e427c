//! Long texts and panels on a real Ollama, from the command to the engine and back.

use serde_json::{Value, json};
use tempfile::TempDir;
use tropa_tests::{harness::World, real_ollama::RealOllama, skipped};

use crate::jobs::{said, world};

/// The tiny model counts a token a letter and was trained for 2048: the prompts fit, and answers are short.
const ROOM: [&str; 4] = ["--num-ctx", "2048", "--max-tokens", "24"];

fn install() -> Result<(TempDir, RealOllama), String> {
    RealOllama::find()?;
    let models = tempfile::tempdir().unwrap();
    let install = RealOllama::start(models.path(), &[]).unwrap();
    install.create("tiny").unwrap();
    Ok((models, install))
}

/// Runs a command to its end: what it wrote, and the lines of the same job.
fn run(world: &World, url: &str, arguments: &[&str]) -> (String, Vec<Value>, Value) {
    let all = [arguments, &ROOM, &["--ollama", url]].concat();
    let output = world.run(&all).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let listed: Value = serde_json::from_slice(&world.run(&["jobs", "--json"]).unwrap().stdout).unwrap();
    let id = listed["jobs"].as_array().unwrap().last().unwrap()["id"].as_str().unwrap();
    let lines = world.run(&["resume", id, "--json", "--ollama", url]).unwrap();
    let rows = tropa_tests::harness::results(&String::from_utf8_lossy(&lines.stdout)).unwrap();
    let err = String::from_utf8_lossy(&lines.stderr).into_owned();
    (text, rows, serde_json::from_str(err.lines().last().unwrap()).unwrap())
}

fn names(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["id"].as_str().unwrap()).collect()
}

#[test]
fn a_real_install_writes_a_text_in_parts_with_a_synthesis() {
    let (_models, install) = match install() {
        Ok(found) => found,
        Err(reason) => return skipped(&reason),
    };
    let world = world();
    let write = ["write", "Llamas", "--parts", "3"];
    let (text, rows, summary) = run(&world, &install.url(), &write);
    assert_eq!(names(&rows), ["part 1 of 3", "part 2 of 3", "part 3 of 3", "synthesis"]);
    assert!(text.starts_with("# Llamas\n\n"), "{text}");
    for row in &rows {
        let part = row["text"].as_str().unwrap();
        assert!(!part.trim().is_empty() && text.contains(part.trim()), "{part:?} in {text:?}");
        assert_eq!(row["tropa"]["output_tokens"], 24, "{row}");
    }
    // Each part read the first, and the synthesis all of them, a token a letter.
    let read = |at: usize| rows[at]["tropa"]["prompt_tokens"].as_u64().unwrap();
    assert!(read(1) > read(0) && read(3) > read(0), "{rows:?}");
    // The tiny model never stops by itself, and that is said.
    let findings = summary["findings"].as_array().unwrap();
    let cut = findings.iter().filter(|finding| finding["code"] == "text.cut").count();
    assert_eq!(cut, 4, "{summary}");
}

#[test]
fn a_real_install_holds_a_panel_and_a_vote() {
    let (_models, install) = match install() {
        Ok(found) => found,
        Err(reason) => return skipped(&reason),
    };
    let world = world();
    let (text, rows, _) = run(&world, &install.url(), &["panel", "Why?", "--critics", "2"]);
    assert_eq!(names(&rows), ["researcher", "critic 1", "critic 2", "editor"]);
    assert_eq!(text.trim(), rows[3]["text"].as_str().unwrap().trim());
    assert!(rows.iter().all(|row| row["error"].is_null()), "{rows:?}");

    let (_, rows, summary) =
        run(&world, &install.url(), &["panel", "Why?", "--brainstorm", "2", "--vote", "2"]);
    assert_eq!(names(&rows), ["idea 1", "idea 2", "voter 1", "voter 2"]);
    let tally = &summary["votes"][0];
    let votes: u64 = tally["counts"].as_array().unwrap().iter().filter_map(Value::as_u64).sum();
    let abstentions: u64 = tally["abstentions"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!((votes + abstentions, &tally["open"]), (2, &json!(0)), "{summary}");
    // The engine keeps to the form, so each vote begins as one; it is read only where it is whole.
    let form = |row: &Value| row["text"].as_str().unwrap().trim_start().starts_with('{');
    assert!(rows[2..].iter().all(form), "{rows:?}");
}
