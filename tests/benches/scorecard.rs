//! The scorecard of `reliability.md` §10, as far as its figures can be measured by one command:
//! `cargo bench -p tropa-tests --bench scorecard [-- SEEDS]`.
//!
//! The simulated figures are measured here, with the decisions of this build. Those of real programs are taken from
//! what the tests print, which are run for it in their own build: a release build has neither failpoints nor planted
//! bugs. A figure without a number says why; nothing is copied from an earlier run.

use std::{
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use tropa_proto::proof::Bug;
use tropa_tests::simulation::{Run, Scenario, run};

/// Seeds where none are asked for: about 10⁵ chunks, in some minutes on two cores.
const SEEDS: u64 = 2_500;

/// Tests whose lines are figures.
const TESTS: [&str; 4] = ["crash::", "evil::", "canary::", "planted::"];

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn main() {
    let seeds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(SEEDS);
    println!("{}", environment());
    println!("| id | figure | measured | target |\n| --- | --- | --- | --- |");
    let begin = now();
    let runs = simulate(seeds);
    let took = begin.elapsed().as_secs_f64();
    simulated(&runs, took);
    let tested = tests();
    real(&tested);
    println!(
        "\nR3 to R10 belong to the fault suite, R13 to `failure_modes`, R14 to `--bench journal` and `--bench lane`; S2, S3 without a figure above and S5 are not measured here."
    );
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn row(id: &str, figure: &str, measured: &str, target: &str) {
    println!("| {id} | {figure} | {measured} | {target} |");
}

fn simulate(seeds: u64) -> Vec<Run> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let work = || {
            let mut runs = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return runs;
                }
                runs.push(run(seed, &Scenario::of(seed)));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    })
}

fn simulated(runs: &[Run], took: f64) {
    let broken = |rules: &[u8]| {
        runs.iter().flat_map(|run| &run.violations).filter(|found| rules.contains(&found.rule)).count()
    };
    let sum = |of: fn(&Run) -> u64| runs.iter().map(of).sum::<u64>();
    let chunks = sum(|run| run.done as u64 + run.failed.len() as u64);
    let lost = format!("{} / {} of {chunks} simulated chunks", broken(&[4, 5]), broken(&[3]));
    row("R1", "results lost / doubled commits", &lost, "0 / 0 of 10⁶ simulated");
    let overlap = format!("{} in {} executions (simulated)", broken(&[1]), sum(|run| run.executions));
    row("R2", "overlaps of two installs on a device", &overlap, "0 with lock");
    let seeds = runs.iter().filter(|run| !run.violations.is_empty()).count();
    let speed = sum(|run| run.events) as f64 / took.max(1e-9);
    let all = format!("{} seeds, {seeds} violations, {speed:.0} events/s", runs.len());
    row("R12", "simulated seeds, violations", &all, "100,000 a night, 0");
}

/// What the tests print, line by line; `None` when they cannot be run.
fn tests() -> Option<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--locked", "-p", "tropa-tests", "--test", "main", "--"]).args(TESTS);
    let output = command.args(["--nocapture", "--test-threads=2"]).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn real(tested: &Option<String>) {
    let Some(text) = tested else {
        return row("R11", "SIGKILL rounds", "not measured: the tests did not run", "1,000 a side");
    };
    let lines = |start: &str| {
        let found: Vec<&str> =
            text.lines().filter_map(|line| line.split_once(start).map(|(_, rest)| rest.trim())).collect();
        if found.is_empty() {
            "not measured: its test failed or was skipped".to_owned()
        } else {
            found.join("; ")
        }
    };
    row("R11", "SIGKILL rounds, coordinator", &lines("CC1 coordinator:"), "1,000 a side, clean");
    row("R11", "SIGKILL rounds, agent", &lines("CC1 agent:"), "1,000 a side, clean");
    row("–", "every step of §7.4 (CC2)", &lines("CC2:"), "history clean");
    row("–", "sync before acknowledgement (CC3)", &lines("CC3:"), "100 %");
    row("S1", "stranger (F21)", &lines("F21 stranger:"), "0 taken; < 10 ms");
    row(
        "S3",
        "memory under flood (F27, F28)",
        &[lines("F27 connects:"), lines("F28 flood:")].join("; "),
        "128 MiB",
    );
    row("S4", "canary outside its places", &lines("S4:"), "0");
    let caught = |bug: &Bug| text.contains(&format!("planted_bug_{}_is_caught ... ok", bug.name()));
    let killed = Bug::ALL.iter().filter(|bug| caught(bug)).count();
    row("S6", "planted bugs killed", &format!("{killed} of {}", Bug::ALL.len()), "100 %");
}

fn environment() -> String {
    let asked = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        output.map_or_else(|_| "?".to_owned(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "commit {}, {} with {cores} cores\n",
        asked("git", &["rev-parse", "--short", "HEAD"]),
        asked("uname", &["-srm"])
    )
}

#[expect(clippy::disallowed_methods, reason = "a benchmark owns its clock")]
fn now() -> Instant {
    Instant::now()
}
