//! Each defence taken away, and a check that must notice (`reliability.md` §9).
//!
//! Every check is run twice: with the program as it is it must pass, with the bug planted it must fail. So a mutant
//! that survives fails the build, and so does a check that cannot pass. The model of admission has its own five
//! mutants (`model/admission_model.py`); what is here runs the code itself.

use std::{
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tropa_agent::ollama::{Limits, Ollama, OllamaUrl, Request};
use tropa_coordinator::journal::Effect;
use tropa_proto::{
    bounded::{Blob, Text},
    failure::Reason,
    id::{AttemptId, ChunkIndex, Incarnation, JobId},
    message::{Endpoint, Run},
    proof::{self, Bug},
};
use tropa_tests::{
    harness::{Hardware, World, results},
    history::{self, Event, Expect, Violation, What},
    ollama_double::{Double, Model},
    simulation::{Kinds, Network, Place, Profile, Scenario, one_kernel, run},
    skipped,
};

use crate::{
    jobs::{said, world},
    journals,
};

/// Seeds of a simulated check: each mutant but the rarest is caught by the first few.
const SEEDS: u64 = 40;

/// What a check found to be wrong.
type Found = Result<(), String>;

/// The check passes as things are, and fails with the bug.
fn must_catch(bug: Bug, check: impl Fn(Option<Bug>) -> Found) {
    if !proof::COMPILED_IN {
        return skipped("a build without planted bugs");
    }
    let sound = check(None);
    assert_eq!(sound, Ok(()), "{}: without the bug nothing is wrong", bug.name());
    let found = check(Some(bug));
    assert!(found.is_err(), "{} was planted, and nothing was found", bug.name());
}

/// Plants a bug in this thread for as long as the check runs.
fn with<T>(bug: Option<Bug>, check: impl FnOnce() -> T) -> T {
    let _planted = bug.map(proof::plant);
    check()
}

/// Simulates seeds and gives the first rule that was broken, which must be this one.
fn simulated(bug: Option<Bug>, rule: u8, scenario: &Scenario) -> Found {
    with(bug, || {
        for seed in 0..SEEDS {
            if let Some(violation) = run(seed, scenario).violations.first() {
                assert_eq!(violation.rule, rule, "seed {seed}: {violation}");
                return Err(violation.to_string());
            }
        }
        Ok(())
    })
}

fn one_job(profile: Profile) -> Scenario {
    Scenario { places: one_kernel(), jobs: vec![30], profile }
}

fn until_a_minute() -> Profile {
    Profile { until: Duration::from_secs(60), ..Profile::none() }
}

#[test]
fn planted_bug_no_kernel_lock_is_caught() {
    let two = Scenario { places: one_kernel(), jobs: vec![20, 20], profile: Profile::none() };
    must_catch(Bug::NoKernelLock, |bug| simulated(bug, 1, &two));
}

#[test]
fn planted_bug_no_kernel_lock_is_caught_between_real_agents() {
    // Two coordinators that know one agent each, on one kernel and one device: only the agents' lock is between them.
    must_catch(Bug::NoKernelLock, |bug| {
        let world = planted_world(bug);
        let slow = ["--decode-us", "4000", "--tokens", "20"];
        let doubles = [world.double("cpu", &slow).unwrap(), world.double("cpu", &slow).unwrap()];
        let rooms = ["room-one", "room-two"].map(|room| world.path(room));
        let mut agents = Vec::new();
        for (double, room) in doubles.iter().zip(&rooms) {
            let (label, room) = (room.file_name().unwrap().to_str().unwrap(), room.to_str().unwrap());
            let more = ["--runtime-dir", room];
            agents.push(world.agent(label, double.address, Hardware::This, &more).unwrap());
        }
        let input = world.file("prompts.txt", &prompts(10)).unwrap();
        let jobs: Vec<Child> = rooms
            .iter()
            .map(|room| {
                let mut run = world.tropa(&["run", input.to_str().unwrap()]);
                run.env("TROPA_RUNTIME_DIR", room)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for mut job in jobs {
            assert_eq!(job.wait().unwrap().code(), Some(0));
        }
        let engines = history::of_engines(&world.witness().unwrap());
        broken(&history::judge(engines, Expect::default()).finish(), 1)
    });
}

#[test]
fn planted_bug_no_settling_is_caught() {
    let kinds = Kinds { agents: true, ..Kinds::NONE };
    let scenario = one_job(Profile { kinds, engines: true, ..until_a_minute() });
    must_catch(Bug::NoSettling, |bug| simulated(bug, 1, &scenario));
}

#[test]
fn planted_bug_ack_before_commit_is_caught() {
    must_catch(Bug::AckBeforeCommit, |bug| simulated(bug, 4, &one_job(Profile::none())));
}

#[test]
fn planted_bug_ack_before_commit_is_caught_in_the_history_of_real_programs() {
    must_catch(Bug::AckBeforeCommit, |bug| {
        let (world, output) = a_real_job(bug, &[]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        broken(
            &history::judge(real_history(&world), Expect { hellos: true, ..Expect::default() }).finish(),
            4,
        )
    });
}

#[test]
fn planted_bug_no_key_at_commit_is_caught() {
    // The journal writes in a thread of its own, so the check is a process of its own.
    must_catch(Bug::NoKeyAtCommit, |bug| {
        let mut check = Command::new(std::env::current_exe().unwrap());
        check.args(["--exact", "planted::of_two_results_of_a_chunk_the_first_stays"]);
        check.envs(bug.map(|bug| ("TROPA_PLANTED", bug.name())));
        let output = check.output().unwrap();
        assert!(said(&output).contains("running 1 test"), "{}", said(&output));
        if output.status.success() { Ok(()) } else { Err(said(&output)) }
    });
}

/// Two attempts of one chunk bring a result each, as after a partition.
#[test]
fn of_two_results_of_a_chunk_the_first_stays() {
    let temp = tempfile::tempdir().unwrap();
    let (journal, ids) = journals::journal(&temp.path().join("job"), 1);
    let (writer, mut reports) = journal.writer().unwrap();
    let both =
        [journals::attempt(0, 1), journals::attempt(0, 2), journals::result(0, 1), journals::result(0, 2)];
    let effects = journals::drive(&writer, &mut reports, both);
    writer.finish();
    let committed = [1, 2].into_iter().zip(&effects[2..]).filter(|(_, effect)| **effect == Effect::First);
    let events = committed.map(|(no, _)| {
        let attempt = AttemptId { job: ids, chunk: ChunkIndex(0), no };
        Event { at: u64::from(no), by: 0, what: What::Commit(attempt, None) }
    });
    let jobs = [(ids.0, 1)].into();
    let judged = history::judge(events.collect(), Expect { jobs, ..Expect::default() }).finish();
    assert_eq!(judged, []);
}

#[test]
fn planted_bug_run_not_idempotent_is_caught() {
    let scenario = one_job(Profile { network: Network::BAD, ..until_a_minute() });
    must_catch(Bug::RunNotIdempotent, |bug| simulated(bug, 2, &scenario));
}

#[test]
fn planted_bug_missing_done_is_success_is_caught() {
    must_catch(Bug::MissingDoneIsSuccess, |bug| with(bug, || attempt("no_done:after=3", Reason::Incomplete)));
}

#[test]
fn planted_bug_no_idle_timeout_is_caught() {
    must_catch(Bug::NoIdleTimeout, |bug| with(bug, || attempt("stall:after=3", Reason::Stalled)));
}

#[test]
fn planted_bug_requeue_before_reattach_is_caught() {
    // While the agents live, a killed coordinator runs nothing again; with one install nothing runs as a backup.
    let profile = Profile { kinds: Kinds::COORDINATORS, ..until_a_minute() };
    let scenario = Scenario { places: vec![Place::new(&[0], 0)], ..one_job(profile) };
    must_catch(Bug::RequeueBeforeReattach, |bug| {
        with(bug, || {
            for seed in 0..SEEDS {
                let run = run(seed, &scenario);
                if !run.violations.is_empty() || run.executions != 30 {
                    return Err(format!("seed {seed}: {run:?}"));
                }
            }
            Ok(())
        })
    });
}

#[test]
fn planted_bug_output_by_completion_is_caught() {
    must_catch(Bug::OutputByCompletion, |bug| {
        let (_world, output) = a_real_job(bug, &["--decode-us", "30000"]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let rows = results(&String::from_utf8_lossy(&output.stdout)).unwrap();
        let order = |row: &Value| u32::try_from(row["tropa"]["index"].as_u64().unwrap()).unwrap();
        let lines = rows.iter().zip(0..).map(|(row, at)| Event { at, by: 0, what: What::Output(order(row)) });
        broken(&history::judge(lines.collect(), Expect::default()).finish(), 6)
    });
}

#[test]
fn every_planted_bug_has_a_test_that_catches_it() {
    let here = include_str!("planted.rs");
    for bug in Bug::ALL {
        assert!(here.contains(&format!("fn planted_bug_{}_is_caught()", bug.name())), "{}", bug.name());
    }
}

#[test]
fn what_ships_asks_for_no_planted_bugs() {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    for package in ["tropa-coordinator", "tropa-agent"] {
        let mut tree = Command::new(env!("CARGO"));
        tree.args([
            "tree",
            "--offline",
            "--locked",
            "-p",
            package,
            "-e",
            "normal,features",
            "--manifest-path",
        ]);
        let tree = tree.arg(&manifest).output().unwrap();
        let text = String::from_utf8_lossy(&tree.stdout);
        assert!(text.contains("tropa-proto feature \"mesh\""), "{}", said(&tree));
        assert!(!text.contains("feature \"planted\""), "{package} asks for planted bugs");
    }
}

fn prompts(count: usize) -> String {
    (0..count).map(|n| format!("prompt {n} about a llama\n")).collect()
}

/// A world whose programs have the bug, and write down what they do.
fn planted_world(bug: Option<Bug>) -> World {
    let mut world = world();
    if let Some(bug) = bug {
        world.set_env("TROPA_PLANTED", bug.name());
    }
    world.set_env("TROPA_EVENTS", world.path("events").to_str().unwrap());
    world
}

/// A job over two machines, of which the first is as slow as asked for.
fn a_real_job(bug: Option<Bug>, slow: &[&str]) -> (World, Output) {
    let world = planted_world(bug);
    let doubles = [world.double("cpu1", slow).unwrap(), world.double("cpu2", &[]).unwrap()];
    let _home = world.agent("home", doubles[0].address, Hardware::Declared(1), &[]).unwrap();
    let _office = world.agent("office", doubles[1].address, Hardware::Declared(2), &[]).unwrap();
    let input = world.file("prompts.txt", &prompts(12)).unwrap();
    let output = world.run(&["run", input.to_str().unwrap(), "--allow-declared"]).unwrap();
    (world, output)
}

/// What the programs and the engines of a world did.
fn real_history(world: &World) -> Vec<Event> {
    let mut events = history::read(&std::fs::read_to_string(world.path("events")).unwrap()).unwrap();
    assert!(events.iter().any(|event| matches!(event.what, What::Commit(..))), "{events:?}");
    events.extend(history::of_engines(&world.witness().unwrap()));
    events
}

/// Nothing is broken, or it is this rule.
fn broken(violations: &[Violation], rule: u8) -> Found {
    match violations.first() {
        None => Ok(()),
        Some(first) => {
            assert!(violations.iter().all(|violation| violation.rule == rule), "{violations:#?}");
            Err(first.to_string())
        }
    }
}

/// One attempt at a double with this fault must fail for this reason, in time.
fn attempt(fault: &str, reason: Reason) -> Found {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let builder = Double::builder().model(Model::new("m:latest")).prefill_us(0).decode_us(200).tokens(48);
        let double = builder.start().await;
        let ollama = Ollama::new(OllamaUrl::parse(&double.url(), false).unwrap()).unwrap();
        let fingerprint = ollama.pin("m:latest").await.unwrap();
        double.inject(fault);
        let body = json!({
            "model": "m:latest", "messages": [{"role": "user", "content": "one load per llama"}],
            "stream": true, "options": {"num_ctx": 1024, "num_predict": 48, "seed": 1, "temperature": 0.0}, "truncate": false,
            "shift": false, "keep_alive": "600s", "think": false,
        });
        let run = Run {
            attempt: AttemptId { job: JobId([1; 16]), chunk: ChunkIndex(0), no: 1 },
            incarnation: Incarnation(1),
            endpoint: Endpoint::Chat,
            model: Text::cut("m:latest"),
            fingerprint,
            deadline_ms: 900_000,
            first_token_ms: 60_000,
            idle_ms: 60_000,
            show_text: false,
            at_once: 1,
            body: Blob::new(serde_json::to_vec(&body).unwrap()).unwrap(),
        };
        let idle = Duration::from_millis(300);
        let checked = Request::check(run, false).unwrap();
        let request = Request { limits: Limits { idle, ..checked.limits }, ..checked };
        let token = CancellationToken::new();
        let mut on_progress = |_: tropa_agent::ollama::Progress<'_>| ();
        let ran = ollama.run(&request, &mut on_progress, &token);
        match tokio::time::timeout(Duration::from_secs(10), ran).await {
            Err(_) => Err("it is waited for in vain".to_owned()),
            Ok(Ok(_)) => Err("it counts as a result".to_owned()),
            Ok(Err(unfinished)) if unfinished.failure.reason == reason => Ok(()),
            Ok(Err(unfinished)) => panic!("{unfinished:?}"),
        }
    })
}
