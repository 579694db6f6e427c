//! Long texts and panels over a mesh of real programs: in order on one machine, at once on two, through a crash, and
//! with something that fails.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tropa_tests::{
    harness::{Hardware, Running, World, results, wait_until},
    ollama_double::Work,
};

use crate::jobs::{said, world};

/// A machine of its own, with an install and an agent. Its model is loaded: how long a load takes is not known to
/// anybody yet, and short chunks would rather wait for a machine that has it.
fn machine(world: &World, number: u8, more: &[&str]) -> [Running; 2] {
    let double = world.double(&format!("cpu{number}"), more).unwrap();
    let named = more.iter().skip_while(|word| **word != "--model").nth(1).unwrap_or(&"tiny:latest");
    load(double.address, named.split(',').next().unwrap());
    let label = format!("box{number}");
    let agent = world.agent(&label, double.address, Hardware::Declared(number), &[]).unwrap();
    [agent, double]
}

/// Has an install load a model, as an empty prompt does.
fn load(install: SocketAddr, model: &str) {
    let body = json!({"model": model, "prompt": ""}).to_string();
    let head = format!("POST /api/generate HTTP/1.1\r\nHost: {install}\r\nConnection: close\r\n");
    let mut stream = TcpStream::connect(install).unwrap();
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"done_reason\":\"load\""), "{answer}");
}

fn run(world: &World, arguments: &[&str]) -> Output {
    let all: Vec<&str> = arguments.iter().copied().chain(["--allow-declared"]).collect();
    world.run(&all).unwrap()
}

#[track_caller]
fn ends_with(output: &Output, code: i32, named: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!err.contains("panicked"), "{err}");
    for name in named {
        assert!(err.contains(name), "{name:?} is not named: {}", said(output));
    }
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn rows(output: &Output) -> Vec<Value> {
    results(&text(output)).unwrap()
}

fn last_job(world: &World) -> Value {
    let listed: Value = serde_json::from_slice(&world.run(&["jobs", "--json"]).unwrap().stdout).unwrap();
    listed["jobs"].as_array().unwrap().last().cloned().unwrap_or_default()
}

/// Every request of the last job, in the order of its chunks, with its prompts as they were sent.
fn requests(world: &World) -> Vec<Value> {
    let id = last_job(world)["id"].as_str().unwrap().to_owned();
    let file = world.path(&format!("home/.local/state/tropa/jobs/{id}/journal.db"));
    let journal = rusqlite::Connection::open(file).unwrap();
    let mut query = journal.prepare("SELECT request FROM chunk ORDER BY idx").unwrap();
    let bodies = query.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    bodies.map(|body| serde_json::from_slice(&body.unwrap()).unwrap()).collect()
}

/// What the witness saw from this piece of work on, by start.
fn seen(world: &World, from: usize) -> Vec<Work> {
    world.witness().unwrap().timeline()[from..].to_vec()
}

/// Asserts that this is one piece of work, then so many of which each had another beside it, then one more: the time of
/// the longest path where two machines share what is between.
#[track_caller]
fn at_once_between(work: &[Work], count: usize) {
    let [first, between @ .., last] = work else { panic!("{work:?}") };
    assert_eq!(between.len(), count, "{work:?}");
    assert!(between.iter().all(|one| first.end_ns <= one.start_ns), "the first is alone: {work:?}");
    assert!(between.iter().all(|one| one.end_ns <= last.start_ns), "the last is alone: {work:?}");
    let beside = |a: &Work| {
        between.iter().any(|b| a.device != b.device && a.start_ns < b.end_ns && b.start_ns < a.end_ns)
    };
    assert!(between.iter().all(beside), "two at a time: {work:?}");
}

#[test]
fn a_text_takes_its_longest_path_on_two_machines_and_asks_and_says_the_same_on_one() {
    let world = world();
    let pace = ["--decode-us", "10000", "--tokens", "30"];
    // An attempt beside one that is late would be a piece of work more.
    let write = ["write", "The roads of the Inca", "--parts", "5", "--no-backups"];
    let _one = machine(&world, 1, &pace);
    let alone = run(&world, &write);
    ends_with(
        &alone,
        0,
        &["1 install, 1 machine as declared: 1 chunk at a time", "6 chunks run one after the other"],
    );
    let [asked_alone, alone_text] = [json!(requests(&world)), text(&alone).into()];
    let work = seen(&world, 0);
    assert_eq!(work.len(), 6);
    assert!(work.windows(2).all(|pair| pair[0].end_ns <= pair[1].start_ns), "one after the other: {work:?}");

    let _two = machine(&world, 2, &pace);
    let both = run(&world, &write);
    ends_with(&both, 0, &["2 installs, 2 machines as declared: 2 chunks at a time"]);
    assert_eq!([json!(requests(&world)), text(&both).into()], [asked_alone, alone_text]);
    at_once_between(&seen(&world, 6), 4);

    let text = text(&both);
    assert!(text.starts_with("# The roads of the Inca\n\n## 1\n\n"), "{text}");
    let places: Vec<usize> = (1..=5).map(|no| text.find(&format!("## {no}\n")).unwrap()).collect();
    assert!(places.is_sorted() && text.rfind("\n---\n").unwrap() > places[4], "{text}");
}

#[test]
fn a_text_that_was_killed_is_the_same_text_when_it_is_resumed() {
    let world = world();
    let _one = machine(&world, 1, &["--decode-us", "4000", "--tokens", "20"]);
    let write = ["write", "A llama that is lost", "--type", "story", "--parts", "6", "--allow-declared"];
    let whole = world.run(&write).unwrap();
    ends_with(&whole, 0, &["a story ends with its last part"]);
    let asked = requests(&world);
    // A story is a chain: each part reads the end of the one before.
    let said_before = &rows(&run(&world, &["resume", last_job(&world)["id"].as_str().unwrap(), "--json"]))[0];
    let second = asked[1]["messages"][1]["content"].as_str().unwrap();
    assert!(second.contains(said_before["text"].as_str().unwrap()), "{second}");

    let before = last_job(&world)["id"].clone();
    let mut job = world.tropa(&write).stdout(Stdio::null()).spawn().unwrap();
    let at_work = || {
        let last = last_job(&world);
        last["id"] != before && last["done"].as_u64().unwrap() >= 2
    };
    wait_until("two parts are committed", at_work).unwrap();
    job.kill().unwrap();
    job.wait().unwrap();
    let id = last_job(&world)["id"].as_str().unwrap().to_owned();
    assert!(last_job(&world)["done"].as_u64().unwrap() < 6, "it was over before it was killed");
    let file = world.path("story.md");
    let resumed = run(&world, &["resume", &id, "-o", file.to_str().unwrap()]);
    ends_with(&resumed, 0, &[]);
    assert_eq!(fs::read_to_string(&file).unwrap(), text(&whole));
    assert_eq!(requests(&world), asked);
    let again = run(&world, &["resume", &id, "--json"]);
    let lines = rows(&again);
    let names: Vec<&str> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(names[0], "part 1 of 6");
    assert_eq!((names.len(), &lines[2]["metadata"]), (6, &json!({"part": 3})));
}

#[test]
fn a_part_that_fails_is_tried_elsewhere_and_named_where_it_fails_for_good() {
    let world = world();
    let poison = "poison@prompt~Write part 2 of 3";
    let _one = machine(&world, 1, &["--fault", poison]);
    let two = machine(&world, 2, &["--decode-us", "4000"]);
    // One machine cannot: another does it.
    let fine = run(&world, &["write", "llamas", "--parts", "3"]);
    ends_with(&fine, 0, &[]);
    assert!(!text(&fine).contains("missing"), "{}", said(&fine));
    drop(two);

    // No machine can.
    let _three = machine(&world, 3, &["--fault", poison]);
    let failed = run(&world, &["write", "alpacas", "--parts", "3"]);
    ends_with(&failed, 2, &["text.missing: part 2 has failed", "the synthesis has failed (need_failed)"]);
    let written = text(&failed);
    assert!(
        written.contains("## 1\n") && written.contains("## 3\n") && !written.contains("## 2\n"),
        "{written}"
    );
    assert!(written.contains("> **part 2 is missing** ("), "{written}");
    assert!(written.contains("> **synthesis is missing** (need_failed)"), "{written}");

    // Another machine comes, and only what failed runs again.
    let _four = machine(&world, 4, &[]);
    let before = world.witness().unwrap().timeline().len();
    let id = last_job(&world)["id"].as_str().unwrap().to_owned();
    let mended = run(&world, &["resume", &id, "--failed"]);
    ends_with(&mended, 0, &[]);
    let whole = text(&mended);
    let kept = |no: &str| written.split(no).nth(1).unwrap().split("\n\n").next().unwrap().to_owned();
    assert!(whole.contains(&kept("## 1\n")) && whole.contains(&kept("## 3\n")), "{written}\n{whole}");
    assert!(!whole.contains("missing") && whole.contains("## 2\n") && whole.contains("\n---\n"), "{whole}");
    assert!(world.witness().unwrap().timeline().len() >= before + 2, "part 2 and the synthesis ran");
}

#[test]
fn an_outline_comes_first_and_what_does_not_fit_is_said_before_anything_runs() {
    let world = world();
    let _one = machine(&world, 1, &["--model", "tiny:latest,ctx=2048"]);
    let write = ["write", "llamas", "--parts", "4", "--outline"];
    let planned = run(&world, &[&write[..], &["--plan"]].concat());
    ends_with(&planned, 0, &["no synthesis: with parts of full length"]);
    assert!(text(&planned).contains("5 chunks, 2 one after the other at least"), "{}", said(&planned));
    assert!(world.witness().unwrap().timeline().is_empty(), "a plan runs nothing");

    let small = run(&world, &[&write[..], &["--json", "--max-tokens", "150"]].concat());
    ends_with(&small, 0, &[]);
    let lines = rows(&small);
    let names: Vec<&str> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["outline", "part 1 of 4", "part 2 of 4", "part 3 of 4", "part 4 of 4", "synthesis"]);
    let outline = lines[0]["text"].as_str().unwrap();
    for request in &requests(&world)[1..5] {
        assert!(request["messages"][1]["content"].as_str().unwrap().contains(outline));
    }
    let large = run(&world, &["write", "llamas", "--parts", "4", "--max-tokens", "3000"]);
    ends_with(&large, 4, &["model.too_small", "--max-tokens", "2048"]);
    let listed: Value = serde_json::from_slice(&world.run(&["jobs", "--json"]).unwrap().stdout).unwrap();
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 1, "what was refused left nothing behind: {listed}");
}

#[test]
fn a_short_question_is_one_part_and_a_topic_comes_from_stdin() {
    let world = world();
    let _one = machine(&world, 1, &[]);
    let short = run(&world, &["write", "What is 2+2?"]);
    ends_with(&short, 0, &["one part: a short question"]);
    assert!(!text(&short).contains('#') && requests(&world).len() == 1, "{}", said(&short));

    let piped = |arguments: &[&str], input: &[u8]| {
        let mut command = world.tropa(arguments);
        command.arg("--allow-declared").stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = piped(&["write", "-", "--words", "300"], "Über Lamas\nund Alpakas\n".as_bytes());
    ends_with(&output, 0, &[]);
    let asked = requests(&world)[0]["messages"][1]["content"].as_str().unwrap().to_owned();
    assert!(asked.starts_with("The topic:\n\nÜber Lamas\nund Alpakas\n"), "{asked}");
    ends_with(&piped(&["write", "-"], b"fine\n\xff"), 65, &["line 2", "UTF-8", "iconv"]);
    ends_with(&piped(&["panel", "-"], b" \n"), 65, &["the question is empty"]);
    ends_with(&run(&world, &["write", ""]), 65, &["the topic is empty"]);
    ends_with(&run(&world, &["write", "x", "--type", "poem"]), 64, &["poem", "story"]);
    ends_with(&run(&world, &["write", "x", "--parts", "0"]), 64, &["--parts"]);
    ends_with(&run(&world, &["write", "x", "--words", "9", "--length", "long"]), 64, &["--length"]);
}

#[test]
fn a_panel_answers_at_once_what_does_not_wait_for_each_other() {
    let world = world();
    let pace = ["--decode-us", "10000", "--tokens", "30"];
    let _both = [machine(&world, 1, &pace), machine(&world, 2, &pace)];
    let ask = ["panel", "Why do llamas hum?", "--critics", "4", "--no-backups"];
    let panel = run(&world, &[&ask[..], &["--json"]].concat());
    ends_with(&panel, 0, &["2 installs, 2 machines as declared: 2 chunks at a time"]);
    let lines = rows(&panel);
    let names: Vec<&str> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["researcher", "critic 1", "critic 2", "critic 3", "critic 4", "editor"]);
    at_once_between(&seen(&world, 0), 4);

    let id = last_job(&world)["id"].as_str().unwrap().to_owned();
    let answer = run(&world, &ask);
    ends_with(&answer, 0, &[]);
    assert_eq!(text(&answer).trim(), lines[5]["text"].as_str().unwrap().trim(), "the editor's answer alone");
    let all = run(&world, &[&ask[..], &["--all"]].concat());
    assert!(text(&all).contains("## critic 2\n\n"), "{}", said(&all));
    assert_eq!(rows(&run(&world, &["resume", &id, "--json"])), lines);
}

#[test]
fn votes_are_counted_and_what_cannot_be_read_abstains() {
    let world = world();
    // The second voter thinks until its tokens are over and says nothing.
    let _one = machine(&world, 1, &["--fault", "only_thinking@prompt~Which of them,nth=2"]);
    let panel = run(&world, &["panel", "Why do llamas hum?", "--vote", "4"]);
    ends_with(&panel, 0, &["votes: idea 1: ", "; 1 counted as abstention (unreadable); "]);
    let id = last_job(&world)["id"].as_str().unwrap().to_owned();
    let again = run(&world, &["resume", &id, "--json"]);
    let err = String::from_utf8_lossy(&again.stderr).into_owned();
    let summary: Value = serde_json::from_str(err.lines().last().unwrap()).unwrap();
    let tally = &summary["votes"][0];
    assert_eq!((&tally["abstentions"]["unreadable"], &tally["open"]), (&json!(1), &json!(0)), "{err}");
    let counts: Vec<u64> = tally["counts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!((counts.len(), counts.iter().sum::<u64>()), (3, 3), "{tally}");
    let chosen = usize::try_from(tally["chosen"].as_u64().unwrap()).unwrap() - 1;
    assert_eq!(counts[chosen], *counts.iter().max().unwrap());
    let lines = rows(&again);
    assert_eq!(text(&panel).trim(), lines[chosen]["text"].as_str().unwrap().trim());
    // What the journal says is what the voters said: each saw the ideas in another order.
    let mut expected = [0; 3];
    for (voter, line) in lines[3..].iter().enumerate() {
        let vote = serde_json::from_str::<Value>(line["text"].as_str().unwrap()).unwrap_or_default();
        if let Some(number) = vote["vote"].as_u64() {
            expected[(usize::try_from(number).unwrap() - 1 + voter) % 3] += 1;
        }
    }
    assert_eq!(counts, expected);

    let _echo = machine(&world, 2, &["--echo", "--model", "parrot:latest"]);
    let nobody =
        run(&world, &["panel", "Why?", "--vote", "2", "--role-model", "voter=parrot", "--model", "tiny"]);
    ends_with(&nobody, 0, &["2 counted as abstention (unreadable); no answer is chosen"]);
    assert!(text(&nobody).starts_with("> **no answer was chosen**"), "{}", said(&nobody));
}

#[test]
fn a_panel_comes_from_a_file_and_what_is_wrong_with_it_is_named_before_anything_runs() {
    let world = world();
    let _one = machine(&world, 1, &["--model", "tiny:latest"]);
    let _two = machine(&world, 2, &["--model", "big:70b"]);
    let roles = "answer = \"editor\"\n\n[[role]]\nname = \"editor\"\nprompt = \"{{question}} {{answer:thinker}}\"\n\n\
                 [[role]]\nname = \"thinker\"\nmodel = \"big:70b\"\nrepeats = 2\nprompt = \"{{number}}: {{question}}\"\n";
    let file = world.file("roles.toml", roles).unwrap().to_str().unwrap().to_owned();
    let panel = run(&world, &["panel", "Why?", "--roles", &file, "--model", "tiny", "--seed", "7", "--json"]);
    ends_with(&panel, 0, &[]);
    let of = |key: &str| rows(&panel).iter().map(|line| line["tropa"][key].clone()).collect::<Vec<_>>();
    assert_eq!(of("model"), ["big:70b", "big:70b", "tiny:latest"]);
    assert_eq!(of("seed"), [7, 8, 9], "each has a seed of its own");
    let done = world.witness().unwrap().timeline().len();

    for (old, new, named) in [
        ("prompt =", "promt =", &["roles.toml", "line 5", "promt", "prompt"][..]),
        ("{{answer:thinker}}", "{{answer:thinkr}}", &["line 5", "thinkr", "editor, thinker"]),
        ("{{number}}", "{{answer:editor}}", &["editor needs thinker needs editor"]),
        ("repeats = 2", "repeats = 0", &["line 10", "`repeats` is 0", "1 to 64"]),
        ("{{question}} {{", "{{text}} {{", &["line 5", "{{text}}", "{{question}}"]),
    ] {
        fs::write(&file, roles.replacen(old, new, 1)).unwrap();
        ends_with(&run(&world, &["panel", "Why?", "--roles", &file]), 65, named);
    }
    fs::write(&file, b"[[role]]\nname = \"\xff\"").unwrap();
    ends_with(&run(&world, &["panel", "Why?", "--roles", &file]), 65, &["roles.toml", "line 2", "UTF-8"]);
    ends_with(&run(&world, &["panel", "Why?", "--roles", "nosuchfile"]), 65, &["nosuchfile"]);
    ends_with(&run(&world, &["panel", "Why?", "--roles", &file, "--vote", "2"]), 64, &["--roles"]);
    ends_with(&run(&world, &["panel", "Why?", "--role-model", "critik=tiny"]), 65, &["critik", "critic"]);
    ends_with(
        &run(&world, &["panel", "Why?", "--role-model", "critic=nope", "--model", "tiny"]),
        4,
        &["model.missing", "nope"],
    );
    assert_eq!(world.witness().unwrap().timeline().len(), done, "nothing ran");
}

#[test]
fn nobody_waits_for_a_voter_that_fails() {
    let world = world();
    let _one = machine(&world, 1, &["--fault", "poison@prompt~Which of them"]);
    let panel = run(&world, &["panel", "Why do llamas hum?", "--vote", "2"]);
    ends_with(&panel, 2, &["2 counted as abstention (failed)"]);
    assert!(world.witness().unwrap().overlap("cpu1") == Duration::ZERO);
}
