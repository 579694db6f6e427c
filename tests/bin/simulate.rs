//! Runs seeds of the simulation and says what broke: `simulate --seeds N [--first SEED]`.
//!
//! Prints the seeds that broke a rule, and for the first of them what is left of its faults when those that do not
//! matter are left out; then events a second. Exit status: 0 nothing broke, 1 something did.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use clap::Parser;
use tropa_tests::simulation::{Run, Scenario, run, shrink};

/// Names the first seed that broke a rule together with the commit: both reproduce the run.
#[derive(Debug, Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
}

#[expect(clippy::print_stdout, reason = "what the program is for")]
fn main() -> ExitCode {
    let Args { seeds, first } = Args::parse();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    // A panic of a run is reported as its violation; its own message would only be in between.
    std::panic::set_hook(Box::new(|_| ()));
    let begin = now();
    let next = AtomicU64::new(0);
    let mut runs: Vec<(u64, Run)> = std::thread::scope(|scope| {
        let work = || {
            let mut runs = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= seeds {
                    return runs;
                }
                let seed = first + number;
                runs.push((seed, run(seed, &Scenario::of(seed))));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    let took = begin.elapsed().as_secs_f64();
    runs.sort_by_key(|(seed, _)| *seed);

    let broken: Vec<&(u64, Run)> = runs.iter().filter(|(_, run)| !run.violations.is_empty()).collect();
    for (seed, run) in broken.iter().take(20) {
        println!("seed {seed}: {}", run.violations[0]);
    }
    if let Some((seed, _)) = broken.first() {
        println!("the first was seed {seed} at commit {}", commit());
        if let Some(shrunk) = shrink(*seed, &Scenario::of(*seed)) {
            let network = if shrunk.network { " on a bad network" } else { "" };
            println!("with {} faults{network} it still breaks {}:", shrunk.faults.len(), shrunk.violation);
            shrunk.faults.iter().for_each(|fault| println!("  {fault}"));
        }
    }
    let sum = |of: fn(&Run) -> u64| runs.iter().map(|(_, run)| of(run)).sum::<u64>();
    let events = sum(|run| run.events);
    println!(
        "{} seeds, {} violations, {} chunks done, {} failed, {} executions, {} acknowledged, {} faults",
        runs.len(),
        broken.len(),
        sum(|run| run.done as u64),
        sum(|run| run.failed.len() as u64),
        sum(|run| run.executions),
        sum(|run| run.forgotten),
        sum(|run| run.faults as u64),
    );
    println!("{events} events in {took:.1} s, {:.0} events/s", events as f64 / took.max(1e-9));
    ExitCode::from(u8::from(!broken.is_empty()))
}

#[expect(clippy::disallowed_methods, reason = "measures itself")]
fn now() -> Instant {
    Instant::now()
}

fn commit() -> String {
    let asked = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    asked.map_or_else(|_| "unknown".to_owned(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}
