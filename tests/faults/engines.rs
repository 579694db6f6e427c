//! Rows whose fault is at an engine.

use rustix::process::Signal;
use serde_json::Value;

use super::{
    agents::{agent_at, open_at, sent_to},
    *,
};

/// Limits of a first and of a further line that a test can wait for.
const SHORT: [(&str, &str); 2] = [("TROPA_TEST_FIRST_MS", "5000"), ("TROPA_TEST_IDLE_MS", "5000")];

/// The same as a time.
const TIMEOUT: Duration = Duration::from_secs(5);

fn classes(row: &Value) -> Vec<&str> {
    row["tropa"]["attempts"].as_array().into_iter().flatten().filter_map(|a| a["class"].as_str()).collect()
}

/// The class of a chunk that failed.
fn failed(row: &Value) -> Option<&str> {
    row["error"]["code"].as_str().or_else(|| row["error"]["class"].as_str())
}

fn short(rig: &Rig, input: &std::path::Path) -> rig::Job {
    rig.run_to(input, "out", &[], &SHORT)
}

#[test]
fn fault_f05_a_frozen_engine_stalls_and_its_chunk_runs_elsewhere() {
    let Some(rig) = Rig::new(2) else { return };
    let doubles = [rig.double(1, SECOND), rig.double(2, SECOND)];
    let _agents = [rig.agent(1), rig.agent(2)];
    let mut job = short(&rig, &rig.prompts(12));
    until(rig::PATIENCE, "both work", || rig.book().of("exec_start").count() >= 2);
    let at = now();
    doubles[0].signal(Signal::STOP);
    until(rig::PATIENCE, "it stalls", || {
        rig.book().after(at, "ended", |line| line.more == "stalled").is_some()
    });
    let book = rig.book();
    let stalled = book.of("ended").find(|line| line.more == "stalled").cloned().unwrap();
    doubles[0].signal(Signal::CONT);
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(0), 12), "{}", job.log());
    let book = rig.book();
    let mut figures = book.figures(12, &rig.witness(), &DEVICES[..2]);
    figures.noticed = Some(stalled.at - at);
    figures.recovered =
        book.after(at, "exec_start", |line| line.chunk == stalled.chunk && line.no > stalled.no);
    figures.judge("F5 engine frozen");
    within("the run elsewhere", figures.recovered, TIMEOUT + Duration::from_secs(2));
}

#[test]
fn fault_f05_an_engine_that_stalls_with_two_chunks_writes_a_token_before_it_gets_work() {
    let Some(rig) = Rig::new(1) else { return };
    // Two chunks stall, and the first probe as well: its prompt alone has a full stop.
    let stalls = ["--fault", "stall@path=/api/chat*2", "--fault", "stall@path=/api/generate,prompt~.*1"];
    let _double = rig.double(1, &[&["--tokens", "4", "--decode-us", "5000"], &stalls[..]].concat());
    let _agent = rig.agent(1);
    let mut job = short(&rig, &rig.prompts(6));
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(0), 6), "{}", job.log());
    let book = rig.book();
    book.figures(6, &rig.witness(), &DEVICES[..1]).judge("F5 engine stalls twice");
    let at = |kind: &str| book.of(kind).map(|line| line.at).collect::<Vec<_>>();
    let probes: Vec<&str> = book.of("probe").map(|line| line.more.as_str()).collect();
    assert_eq!(probes, ["fails", "works"]);
    let (starts, works) = (at("exec_start"), at("probe")[1]);
    assert_eq!(starts.iter().filter(|start| **start < works).count(), 2, "two stalled, then nothing ran");
    assert!(starts.len() == 8 && rows.iter().all(|row| row["error"].is_null()), "{starts:?}");
}

#[test]
fn fault_f09_an_engine_that_restarts_in_mid_stream_is_tried_again() {
    let Some(rig) = Rig::new(1) else { return };
    let _double =
        rig.double(1, &["--tokens", "20", "--decode-us", "5000", "--fault", "restart:3000@nth=3*1"]);
    let _agent = rig.agent(1);
    let mut job = rig.run(&rig.prompts(6), &[]);
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(0), 6), "{}", job.log());
    let book = rig.book();
    let mut figures = book.figures(6, &rig.witness(), &DEVICES[..1]);
    let broke = book.of("ended").next().map(|line| (line.at, line.chunk));
    let (at, chunk) = broke.expect("an attempt broke off");
    figures.recovered = book.after(at, "commit", |line| line.chunk == chunk);
    figures.judge("F9 engine restarts");
    within("the chunk's result", figures.recovered, Duration::from_secs(6));
    assert!(rows.iter().all(|row| row["error"].is_null()), "no partial text became a result");
}

#[test]
fn fault_f10_no_failure_of_the_engine_becomes_content() {
    let Some(rig) = Rig::new(2) else { return };
    let _doubles = [rig.double(1, &["--marks"]), rig.double(2, &["--marks"])];
    let _agents = [rig.agent(1), rig.agent(2)];
    // Ends without `done`; errors inside a stream, where HTTP stays 200; 500 before and after the first token; lines
    // that are none.
    let modes = [
        ("no_done", "incomplete"),
        ("empty_200", "incomplete"),
        ("repeats", "incomplete"),
        ("error_line", "runner_crash"),
        ("cut_chunk", "runner_crash"),
        ("crash", "runner_crash"),
        ("oom", "load_failed"),
        ("error_first_line", "load_failed"),
        ("empty_500", "engine_error"),
        ("bad_json", "engine_error"),
        ("bad_utf8", "engine_error"),
    ];
    // A good one after each: an install where everything fails is paused, longer each time.
    let prompts: String =
        modes.iter().map(|(mode, _)| format!("a llama [[{mode}]]\nfine after {mode}\n")).collect();
    let mut job = rig.run(&rig.file("prompts.txt", &prompts), &[]);
    let (code, rows) = job.ends();
    assert_eq!(code, Some(2), "{}", job.log());
    let figures = rig.book().figures(2 * u32::try_from(modes.len()).unwrap(), &rig.witness(), &DEVICES[..2]);
    figures.judge("F10 ends without success");
    let commits = rig.book().of("commit").filter(|line| line.more == "done").count();
    assert_eq!(commits, modes.len(), "only the fine ones are content");
    for ((mode, class), row) in modes.iter().zip(rows.iter().step_by(2)) {
        assert!(row["text"].is_null() && !row["error"].is_null(), "{mode}: {row}");
        // An agent that had no place refused: nothing ran, so nothing was classified.
        let found: Vec<&str> = classes(row).into_iter().filter(|found| *found != "busy").collect();
        assert!(!found.is_empty() && found.iter().all(|found| found == class), "{mode} is {class}: {row}");
    }
}

#[test]
fn fault_f12_installs_without_the_model_get_no_work_and_none_at_all_is_said_at_once() {
    let Some(rig) = Rig::new(2) else { return };
    let _doubles = [rig.double(1, &["--model", "tiny:latest"]), rig.double(2, &["--model", "other:latest"])];
    let _agents = [rig.agent(1), rig.agent(2)];
    let mut job = rig.run(&rig.prompts(4), &["--model", "tiny:latest"]);
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(0), 4), "{}", job.log());
    assert!(rig.witness().installs("cpu2").is_empty(), "who lacks the model gets no work");
    let at = now();
    let mut job = rig.run(&rig.prompts(4), &["--model", "none:latest"]);
    let (code, _) = job.ends();
    let mut figures = rig.book().figures(4, &rig.witness(), &DEVICES[..2]);
    figures.noticed = Some(now() - at);
    figures.judge("F12 model missing");
    assert_eq!(code, Some(4), "{}", job.log());
    assert!(job.log().contains("tiny:latest"), "the table says what there is: {}", job.log());
    within("the refusal", figures.noticed, Duration::from_secs(5));
}

#[test]
fn fault_f13_another_model_under_the_same_tag_gets_no_work() {
    let Some(rig) = Rig::new(3) else { return };
    let other =
        ["--model", "tiny:latest,weights=00000000000000000000000000000000000000000000000000000000000000ff"];
    let _doubles = [rig.double(1, &[]), rig.double(2, &[]), rig.double(3, &other)];
    let _agents = [rig.agent(1), rig.agent(2), rig.agent(3)];
    let mut job = rig.run(&rig.prompts(12), &[]);
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(0), 12), "{}", job.log());
    let figures = rig.book().figures(12, &rig.witness(), &DEVICES[..3]);
    figures.judge("F13 same tag, other model");
    assert!(rig.witness().installs("cpu3").is_empty(), "only the model that most have is worked with");
    let prints: std::collections::BTreeSet<&str> =
        rows.iter().filter_map(|row| row["tropa"]["fingerprint"].as_str()).collect();
    assert_eq!(prints.len(), 1, "every result says of which model it is, and none is mixed: {prints:?}");
}

#[test]
fn fault_f29_a_chunk_that_always_crashes_the_runner_is_poison_and_harms_no_other() {
    let Some(rig) = Rig::new(2) else { return };
    let _doubles = [rig.double(1, &["--marks"]), rig.double(2, &["--marks"])];
    let _agents = [rig.agent(1), rig.agent(2)];
    let mut prompts: String = (0..11).map(|n| format!("prompt {n}\n")).collect();
    prompts.insert_str(0, "a llama [[crash]]\n");
    let mut job = rig.run(&rig.file("prompts.txt", &prompts), &[]);
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(2), 12), "{}", job.log());
    let book = rig.book();
    let mut figures = book.figures(12, &rig.witness(), &DEVICES[..2]);
    let crashed = book.of("exec_end").filter(|line| line.chunk == 0);
    // A lane has work again after each crash, while there is any.
    figures.recovered = crashed
        .filter_map(|crash| book.after(crash.at, "exec_start", |line| line.process == crash.process))
        .max();
    figures.judge("F29 poison (R: lane at work again)");
    within("the lane's next work", figures.recovered, Duration::from_secs(10));
    assert_eq!(failed(&rows[0]), Some("poison"), "{}", rows[0]);
    assert!(rows[1..].iter().all(|row| row["error"].is_null()), "the others are unaffected");
    assert!(book.of("exec_start").filter(|line| line.chunk == 0).count() <= 3, "three crashes at most");
}

#[test]
fn fault_f30_a_chunk_that_always_hangs_is_given_up_after_three_timeouts() {
    let Some(rig) = Rig::new(2) else { return };
    let _doubles = [rig.double(1, &["--marks"]), rig.double(2, &["--marks"])];
    let _agents = [rig.agent(1), rig.agent(2)];
    let mut prompts: String = (0..7).map(|n| format!("prompt {n}\n")).collect();
    prompts.insert_str(0, "a llama [[stall]]\n");
    let mut job = short(&rig, &rig.file("prompts.txt", &prompts));
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(2), 8), "{}", job.log());
    let book = rig.book();
    let mut figures = book.figures(8, &rig.witness(), &[]);
    let hangs = |kind| book.of(kind).filter(|line| line.chunk == 0).map(|line| line.at).collect::<Vec<_>>();
    let (starts, ends) = (hangs("exec_start"), hangs("exec_end"));
    let lane: Duration = starts.iter().zip(&ends).map(|(start, end)| *end - *start).sum();
    figures.noticed = Some(lane);
    figures.judge("F30 hanging chunk (D: lane time)");
    assert_eq!(failed(&rows[0]), Some("poison"), "{}", rows[0]);
    assert!(rows[1..].iter().all(|row| row["error"].is_null()), "the others are unaffected");
    assert!(starts.len() <= 3, "three timeouts at most");
    within("the lane time", Some(lane), 3 * TIMEOUT);
}

#[test]
fn fault_f33_what_was_hung_up_on_and_computes_on_is_waited_for() {
    let Some(rig) = Rig::new(1) else { return };
    // Two installs on one device, under one lock; whoever is hung up on computes on for ten seconds.
    let zombie = ["--tokens", "200", "--decode-us", "20000", "--fault", "zombie:10000"];
    let _doubles = [rig.double_on(1, 1, 11_434, &zombie), rig.double_on(1, 1, 11_435, &zombie)];
    let mut agents = [rig.agent_on(1, 1, 11_434), rig.agent_on(1, 1, 11_435)];
    let first = agent_at(&rig, 1, 11_434).expect("it is in the roster");
    // Half of the zombie's time for a first token: settling does not count against it.
    let mut job = short(&rig, &rig.prompts(4));
    let works = || rig.witness().timeline().iter().any(|work| !work.ended) && !open_at(&rig).is_empty();
    until(rig::PATIENCE, "one works", works);
    let hit = open_at(&rig)[0];
    let at = now();
    agents[usize::from(sent_to(&rig, hit) != first)].kill();
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(0), 4), "{}", job.log());
    let book = rig.book();
    let mut figures = book.figures(4, &rig.witness(), &DEVICES[..1]);
    figures.recovered = book.after(at, "exec_start", |line| line.chunk == hit.0);
    figures.judge("F33 zombie settled");
    let work = rig.witness();
    let orphan = work.timeline().iter().find(|work| Duration::from_nanos(work.start_ns) < at);
    let computed_on = orphan.is_some_and(|work| Duration::from_nanos(work.end_ns) > at);
    assert!(computed_on, "the request computed on after its agent was killed");
}
