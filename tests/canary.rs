//! Prompts and answers stay where they belong: in the journal, in the input and in the output (`security.md` §7, S4).
//!
//! A job carries a random marker in every prompt, and the engine answers with the prompt; single prompts also meet
//! every class of failure, whose texts quote them. Logs are at their highest level. Whatever any program of the world
//! leaves behind, and what the kernel shows of it while it runs, is searched for the marker, plain and encoded.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde_json::Value;
use tropa_proto::{
    bounded::Blob,
    failure::{Class, Reason},
    message::{Endpoint, Run, ToAgent},
};
use tropa_tests::harness::{Hardware, World, results, wait_until};

use crate::jobs::{said, world};

/// How an engine fails, and the class that the item then has. Every class that an engine can cause is here, but those
/// that need minutes (`stalled`, `deadline`, `engine_down`, `result_too_large`) and those that are no item's failure
/// (`busy`, `denied`, `lost`).
const FAILURES: [(&str, &str); 9] = [
    ("crash", "runner_crash"),
    ("error_line:after=2", "runner_crash"),
    ("oom:after=2", "load_failed"),
    ("empty_500", "engine_error"),
    ("bad_json", "engine_error"),
    ("no_done:after=2", "incomplete"),
    ("nested_400", "too_long"),
    ("option_500", "bad_request"),
    ("load_oom", "load_failed"),
];

/// Text that nothing else contains.
fn marker() -> String {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    format!("canary{}", tropa_proto::id::hex(&bytes)).chars().take(32).collect()
}

/// The marker as it may be hidden: plain, in hexadecimal, in base64 at each of its three places, with JSON's escapes.
fn disguises(marker: &str) -> Vec<Vec<u8>> {
    let bytes = marker.as_bytes();
    let hex = tropa_proto::id::hex(bytes);
    let escaped: String = bytes.iter().map(|byte| format!("\\u{byte:04x}")).collect();
    let mut all =
        vec![bytes.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes(), escaped.into_bytes()];
    for shift in 0..3 {
        let skipped = (3 - shift) % 3;
        all.push(base64(&bytes[skipped..bytes.len() - (bytes.len() - skipped) % 3]));
    }
    all
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = |three: &[u8]| {
        let number = three.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
        [18, 12, 6, 0].map(|shift| DIGITS[number >> shift & 63])
    };
    bytes.chunks_exact(3).flat_map(digits).collect()
}

fn holds(content: &[u8], disguises: &[Vec<u8>]) -> bool {
    disguises.iter().any(|hidden| content.windows(hidden.len()).any(|window| window == hidden))
}

/// All files below a directory.
fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            Ok(_) | Err(_) => {}
        }
    }
}

/// Command lines and environments of all processes that show the marker, until told to stop.
fn watch_processes(disguises: &[Vec<u8>], stop: &AtomicBool) -> (u64, BTreeSet<String>) {
    let (mut looks, mut found) = (0, BTreeSet::new());
    while !stop.load(Ordering::Relaxed) {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            for name in ["cmdline", "environ"] {
                let content = fs::read(entry.path().join(name)).unwrap_or_default();
                looks += 1;
                if holds(&content, disguises) {
                    found.insert(format!("{} {}", name, String::from_utf8_lossy(&content)));
                }
            }
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    (looks, found)
}

#[test]
fn the_search_finds_every_disguise() {
    let marker = marker();
    let disguises = disguises(&marker);
    for before in ["", "x", "xy", "xyz"] {
        let text = format!("{before}{marker}");
        assert!(holds(text.as_bytes(), &disguises));
        let padded = format!("{text}{}", "=".repeat((3 - text.len() % 3) % 3));
        assert!(holds(&base64(padded.as_bytes()), &disguises), "{before}");
    }
    assert!(holds(tropa_proto::id::hex(marker.as_bytes()).as_bytes(), &disguises));
    assert!(!holds(b"a llama carries one load", &disguises));
}

#[test]
fn a_canary_in_prompt_and_answer_is_found_in_journal_and_output_only() {
    let marker = marker();
    let disguises = disguises(&marker);
    let world = world();
    // The doubles read from the prompts what to do, so that nothing of it is on their command lines.
    let obeying = ["--echo", "--marks"];
    let doubles = [world.double("cpu1", &obeying).unwrap(), world.double("cpu2", &obeying).unwrap()];
    let mut agents = Vec::new();
    for (number, double) in (1..).zip(&doubles) {
        let agent =
            world.agent(&format!("den{number}"), double.address, Hardware::Declared(number), &["-vvv"]);
        agents.push(agent.unwrap());
    }
    let fine = (0..4).map(|n| format!("tell me of {marker} number {n}\n"));
    let failing = FAILURES.iter().map(|(fault, _)| format!("[[{fault}]] and {marker}\n"));
    let quoted = format!("[[error_first_line:text=cannot work on {marker}]] and {marker}\n");
    let text: String = fine.chain(failing).chain([quoted]).collect();
    let input = world.file("prompts.txt", &text).unwrap();

    let stop = AtomicBool::new(false);
    let (output, looks, seen) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch_processes(&disguises, &stop));
        let out = world.path("out.jsonl");
        let output = world.run(&[
            "run",
            input.to_str().unwrap(),
            "--allow-declared",
            "-vvv",
            "-o",
            out.to_str().unwrap(),
        ]);
        stop.store(true, Ordering::Relaxed);
        let (looks, seen) = watcher.join().unwrap();
        (output.unwrap(), looks, seen)
    });
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    what_was_asked_for_happened(&world, &marker);
    assert!(looks > 100, "only {looks} looks at processes");
    assert_eq!(seen, BTreeSet::new());
    assert!(!holds(&output.stderr, &disguises), "{}", said(&output));
    assert!(!holds(&output.stdout, &disguises), "{}", said(&output));
    assert!(agents.iter().all(|agent| !agent.log().is_empty()), "the logs say nothing");

    let mut all = Vec::new();
    files(&world.path(""), &mut all);
    let allowed = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        path == input || name.starts_with("out.jsonl") || name.starts_with("journal.db")
    };
    let leaks: Vec<&PathBuf> =
        all.iter().filter(|path| !allowed(path) && holds(&fs::read(path).unwrap(), &disguises)).collect();
    assert_eq!(leaks, Vec::<&PathBuf>::new());
    let kept = all.iter().filter(|path| allowed(path) && holds(&fs::read(path).unwrap(), &disguises)).count();
    assert!(kept >= 3, "input, output and journal hold it");
    println!(
        "S4: {} files, {looks} looks at processes, {} classes of failure: the canary is in {kept} allowed files, and in 0 others",
        all.len(),
        FAILURES.iter().map(|(_, class)| class).collect::<BTreeSet<_>>().len(),
    );
}

/// The failures were those that were asked for, and the answers hold the marker.
fn what_was_asked_for_happened(world: &World, marker: &str) {
    let rows = results(&fs::read_to_string(world.path("out.jsonl")).unwrap()).unwrap();
    let answered = rows.iter().filter(|row| row["text"].as_str().is_some_and(|text| text.contains(marker)));
    assert!(answered.count() >= 4);
    let mut missing = Vec::new();
    for (number, (fault, class)) in FAILURES.iter().enumerate() {
        let row = &rows[4 + number];
        let mut classes: Vec<&Value> = row["tropa"]["attempts"].as_array().unwrap().iter().collect();
        classes.retain(|attempt| attempt["class"] == **class);
        if classes.is_empty() {
            missing.push(format!("{fault}: {}", row["tropa"]));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// A core of either program would hold prompts, answers and keys.
#[cfg(target_os = "linux")]
#[test]
fn a_crash_of_either_program_writes_no_core() {
    let world = world();
    let double = world.double("cpu1", &[]).unwrap();
    let agent = world.agent("den", double.address, Hardware::Declared(1), &[]).unwrap();
    // It waits for prompts on stdin until that is closed.
    let mut waiting = world.tropa(&["run", "-", "--allow-declared"]);
    waiting.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut waiting = waiting.stderr(std::process::Stdio::null()).spawn().unwrap();
    for (program, pid) in [("tropa-agent", agent.pid()), ("tropa", waiting.id())] {
        let no_core = || {
            let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
            core.split_whitespace().take(2).eq(["0", "0"])
        };
        wait_until(&format!("{program} has no core"), no_core).unwrap();
    }
    waiting.kill().unwrap();
    waiting.wait().unwrap();
}

/// What a log line or a panic may show of the types that carry prompts and answers.
#[test]
fn no_type_that_carries_a_prompt_shows_it() {
    let marker = marker();
    let run = Run {
        attempt: tropa_proto::id::AttemptId {
            job: tropa_proto::id::JobId([1; 16]),
            chunk: tropa_proto::id::ChunkIndex(0),
            no: 1,
        },
        incarnation: tropa_proto::id::Incarnation(1),
        endpoint: Endpoint::Chat,
        model: tropa_proto::bounded::Text::cut("m"),
        fingerprint: [0; 32],
        deadline_ms: 900_000,
        first_token_ms: 60_000,
        idle_ms: 60_000,
        show_text: false,
        at_once: 1,
        body: Blob::new(marker.clone().into_bytes()).unwrap(),
    };
    let failure = tropa_proto::message::Failure {
        reason: Reason::EngineError,
        detail: tropa_proto::bounded::Content::cut(&marker),
        ms: 1,
    };
    assert_eq!(failure.reason.class(), Class::EngineError);
    let tokens = tropa_proto::message::FromAgent::Tokens {
        attempt: run.attempt,
        count: 1,
        text: tropa_proto::bounded::Content::cut(&marker),
    };
    let frame = tropa_proto::message::FromAgent::Body(Blob::new(marker.clone().into_bytes()).unwrap());
    let shown = [
        format!("{run:?}"),
        format!("{:?}", ToAgent::Run(Box::new(run.clone()))),
        format!("{:?}", tropa_proto::message::FromAgent::Failed(run.attempt, failure.clone())),
        format!("{failure:?}"),
        format!("{tokens:?}"),
        format!("{frame:?}"),
    ];
    for text in shown {
        assert!(!holds(text.as_bytes(), &disguises(&marker)), "{text}");
    }
}
