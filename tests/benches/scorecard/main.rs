//! The scorecard of `reliability.md` §10 as a table: `cargo bench -p tropa-tests --bench scorecard [-- SEEDS]`.
//!
//! Every row of the first release has its figure, how often it was taken, and its target. Simulated figures are taken
//! here, with the decisions of this build (`simulated`); times of whole programs of this build here as well
//! (`measured.rs`); what needs event lines, failpoints or planted bugs is read from what the tests and the other benches
//! print, which are run for it in their own builds (`printed.rs`). A figure that could not be taken says so; nothing is
//! copied from an earlier run.

mod measured;
mod printed;

use std::{
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use tropa_proto::proof::Bug;
use tropa_tests::simulation::{Run, Scenario, run};

use self::printed::Printed;

/// Seeds where none are asked for: about 10⁵ chunks.
const SEEDS: u64 = 2_500;

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn main() {
    let seeds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(SEEDS);
    println!("{}", environment());
    println!("| id | figure | measured | of | target |\n| --- | --- | --- | --- | --- |");
    let begin = now();
    let runs = simulate(seeds);
    let took = begin.elapsed().as_secs_f64();
    simulated(&runs, took);
    measured::restart();
    measured::false_deaths();
    faults(&Printed::faults());
    proofs(&Printed::proofs());
    speeds(&Printed::journal(), &Printed::lane());
    for (id, figure, target, why) in LATER {
        row(id, figure, "–", why, target);
    }
    println!("\ntook {:.0} s", begin.elapsed().as_secs_f64());
}

/// Rows of which this command takes no figure, with the reason.
const LATER: [(&str, &str, &str, &str); 4] = [
    ("R7", "makespan with a 10 × straggler", "≤ 1.25 ×", "row 11 comes later; see `--bench makespan`"),
    ("R8", "makespan, 1 of 4 agents killed every 10 s", "≤ 1.10 ×", "row 2 comes later"),
    ("S2", "fuzz crashes per wire type, 5 min", "0", "nightly, later"),
    ("S5", "advisories beyond the waivers", "0", "`.ci/run`: cargo-deny, waivers, floors"),
];

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn row(id: &str, figure: &str, measured: &str, of: &str, target: &str) {
    println!("| {id} | {figure} | {measured} | {of} | {target} |");
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
    let lost = format!("{} / {}", broken(&[4, 5]), broken(&[3]));
    row("R1", "results lost / doubled commits", &lost, &format!("{chunks} simulated chunks"), "0 / 0 of 10⁶");
    let of = format!("{} simulated executions", sum(|run| run.executions));
    row("R2", "overlaps of two installs on a device", &broken(&[1]).to_string(), &of, "0 with lock");
    let seeds = runs.iter().filter(|run| !run.violations.is_empty()).count();
    let speed = sum(|run| run.events) as f64 / took.max(1e-9);
    let found = format!("{seeds}, {speed:.0} events/s");
    row(
        "R12",
        "violations in simulated seeds",
        &found,
        &format!("{} seeds", runs.len()),
        "0 of 100,000 a night",
    );
}

/// Rows that the fault suite measures.
fn faults(printed: &Printed) {
    for (id, figure, line, target) in [
        ("R3, R4", "agent killed: noticed (D), elsewhere (R)", "F1 agent killed", "D 0.5 s, R 2 s"),
        ("R3, R4", "silent partition: noticed, elsewhere", "F3 host off", "D 8 s, R 10 s"),
        ("R3, R4", "agent frozen: suspect, elsewhere", "F4 agent frozen", "D 4 s, R 10 s"),
        ("R2", "two agents on one hardware, one killed", "F20 two agents, one hardware", "O 0"),
        ("R2", "two coordinators, one lock directory", "F20 two network namespaces", "O 0"),
        ("R2", "no common lock, two coordinators", "F20 two mount namespaces, no common lock, two", "shown"),
        ("R9", "cost of a poison chunk (W + 1 crashes)", "F29 poison", "≤ 3 crashes"),
        ("R10", "two coordinators: share, longest wait", "F19 two coordinators", "50 ± 10 %, ≤ 2 chunks"),
    ] {
        row(id, figure, &printed.lines(line), &printed.times(), target);
    }
}

/// Rows that tests of crashes, peers, content and planted bugs prove.
fn proofs(printed: &Printed) {
    let times = printed.times();
    for (id, figure, line, target) in [
        ("R11", "SIGKILL rounds, coordinator", "CC1 coordinator:", "1,000 a side, clean"),
        ("R11", "SIGKILL rounds, agent", "CC1 agent:", "1,000 a side, clean"),
        ("–", "a fault at every step of §7.4", "CC2:", "history clean"),
        ("–", "sync before acknowledgement", "CC3:", "100 %"),
        ("S1", "stranger: from the accept to the close", "F21 at the agent", "< 10 ms"),
        ("S1", "stranger: taken", "F21 stranger:", "0 taken"),
        ("S3", "memory under many connections", "F27 connects:", "128 MiB"),
        ("S3", "memory under a member's flood", "F28 flood:", "128 MiB"),
        ("S4", "canary outside its places", "S4:", "0"),
    ] {
        row(id, figure, &printed.lines(line), &times, target);
    }
    let modes = printed.passed("failure_modes::");
    row("R13", "tests of Ollama's failure modes that pass", &modes, &times, "all");
    let caught = |bug: &Bug| printed.holds(&format!("planted_bug_{}_is_caught ... ok", bug.name()));
    let killed = Bug::ALL.iter().filter(|bug| caught(bug)).count();
    row("S6", "planted bugs killed", &format!("{killed} of {}", Bug::ALL.len()), &times, "100 %");
}

fn speeds(journal: &Printed, lane: &Printed) {
    for (figure, line, target) in
        [("commits one by one", "single", "–"), ("commits, grouped", "grouped, end", "≥ 5,000/s")]
    {
        row("R14", figure, &journal.lines(line), &journal.times(), target);
    }
    row(
        "R14",
        "whole chunks, journal on, one lane",
        &lane.lines("whole chunks, 1 lane(s)"),
        &lane.times(),
        "≥ 2,000/s",
    );
    row("R14", "whole chunks, two lanes", &lane.lines("whole chunks, 2 lane(s)"), &lane.times(), "≥ 2,000/s");
    row("S3", "memory of the agent, idle", &lane.lines("agent, idle"), &lane.times(), "≤ 40 MiB");
}

fn environment() -> String {
    let asked = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        output.map_or_else(|_| "?".to_owned(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "commit {}, {} build, {} with {cores} cores ({}), load at the start {}\n",
        asked("git", &["describe", "--always", "--dirty"]),
        if cfg!(debug_assertions) { "debug" } else { "release" },
        asked("uname", &["-srm"]),
        model.map_or("?", |(_, model)| model),
        load.split(' ').next().unwrap_or("?"),
    )
}

#[expect(clippy::disallowed_methods, reason = "a benchmark owns its clock")]
fn now() -> Instant {
    Instant::now()
}
