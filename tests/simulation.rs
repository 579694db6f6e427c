//! The decisions of both sides against each other: the coordinator's `Schedule` and every agent's `Admission`, both
//! pure, in a world of virtual time where a seed decides everything else.
//!
//! The world owns the network (`world.rs`), the agents with their locks and engines (`install.rs`), the coordinator
//! with its disk (`coordinator.rs`) and the book of what really happened (`history.rs`), which judges. Faults come
//! until a moment of the seed's choice; from then on everything works, and the job must end.
//!
//! `TROPA_SEEDS=N` runs N seeds instead of the few of a quick run; a failure names its seed, and `TROPA_SEED=S` runs
//! that one alone.

mod coordinator;
mod history;
mod install;
mod world;

use std::{panic, time::Duration};

use self::world::{Faults, Place, World};

/// Seeds of a quick run: about a second for each test.
const SEEDS: u64 = 60;

fn each_seed(test: impl Fn(u64) + panic::RefUnwindSafe) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = match number("TROPA_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TROPA_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        if let Err(failure) = panic::catch_unwind(|| test(seed)) {
            tropa_seed_failed(seed);
            panic::resume_unwind(failure);
        }
    }
}

#[expect(clippy::print_stderr, reason = "the output of a test")]
fn tropa_seed_failed(seed: u64) {
    eprintln!("the seed was {seed}: TROPA_SEED={seed}");
}

/// Two installs on one device under one kernel lock, one beside them on its own.
fn one_kernel() -> Vec<Place> {
    vec![
        Place { devices: &[0], kernel: 0 },
        Place { devices: &[0], kernel: 0 },
        Place { devices: &[1], kernel: 1 },
    ]
}

/// Two virtual machines on one device, with no lock between them, and one machine on its own.
fn two_kernels() -> Vec<Place> {
    vec![
        Place { devices: &[0], kernel: 0 },
        Place { devices: &[0], kernel: 1 },
        Place { devices: &[1], kernel: 2 },
    ]
}

#[test]
fn without_faults_every_chunk_is_done_and_tried_once() {
    each_seed(|seed| {
        let mut world = World::new(seed, two_kernels(), 30, Faults::none());
        world.run_to_the_end();
        assert_eq!(world.history.done(), 30);
        assert_eq!(world.history.executions(), 30);
    });
}

#[test]
fn killed_stopped_and_unreachable_agents_lose_nothing_and_share_no_device() {
    each_seed(|seed| {
        let faults =
            Faults { until: Duration::from_secs(90), coordinator: false, agents: true, engines: true };
        World::new(seed, two_kernels(), 60, faults).run_to_the_end();
    });
}

#[test]
fn a_killed_coordinator_among_killed_agents_goes_on_and_commits_once() {
    each_seed(|seed| {
        let faults =
            Faults { until: Duration::from_secs(90), coordinator: true, agents: true, engines: true };
        World::new(seed, one_kernel(), 60, faults).run_to_the_end();
    });
}

#[test]
fn a_chunk_fails_for_what_the_engine_did_and_never_because_it_was_cancelled_or_killed() {
    each_seed(|seed| {
        let faults =
            Faults { until: Duration::from_secs(60), coordinator: true, agents: false, engines: false };
        let mut world = World::new(seed, one_kernel(), 40, faults);
        world.run_to_the_end();
        assert_eq!(world.history.done(), 40);
    });
}
