//! Both sides' decisions against each other in virtual time, for some seeds of every kind of scenario.
//!
//! `TROPA_SEEDS=N` runs N seeds instead of the few of a quick run; a failure names its seed, and `TROPA_SEED=S` runs
//! that one alone. `cargo run --release -p tropa-tests --bin simulate -- --seeds N` runs many.

mod rows;

use std::time::Duration;

use tropa_proto::failure::Class;
use tropa_tests::simulation::{
    Kinds, Network, Place, Profile, Run, Scenario, one_kernel, run, shrink, two_kernels,
};

/// Seeds of a quick run: some seconds for all tests.
const SEEDS: u64 = 60;

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("TROPA_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TROPA_SEEDS").unwrap_or(SEEDS),
    }
}

/// Runs each seed, and says which one broke what.
fn each_seed(scenario: impl Fn(u64) -> Scenario, test: impl Fn(&Run)) {
    for seed in seeds() {
        let scenario = scenario(seed);
        let run = run(seed, &scenario);
        if let Some(violation) = run.violations.first() {
            panic!("TROPA_SEED={seed}: {violation}\n{:#?}", shrink(seed, &scenario));
        }
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&run)));
        assert!(failed.is_ok(), "TROPA_SEED={seed}: {run:?}");
    }
}

#[test]
fn without_faults_every_chunk_is_done_and_next_to_nothing_runs_again() {
    let scenario = |_| Scenario { places: two_kernels(), jobs: vec![30], profile: Profile::none() };
    each_seed(scenario, |run| {
        assert_eq!(run.done, 30);
        // What is late at the end may run once more on an idle install.
        assert!((30..=32).contains(&run.executions));
    });
}

#[test]
fn killed_stopped_and_unreachable_agents_lose_nothing_and_share_no_device() {
    each_seed(
        |_| Scenario {
            places: two_kernels(),
            jobs: vec![60],
            profile: Profile { kinds: Kinds::AGENTS, ..Profile::all(Duration::from_secs(90)) },
        },
        |_| (),
    );
}

#[test]
fn a_killed_coordinator_among_killed_agents_goes_on_and_commits_once() {
    let kinds = Kinds { agents: true, ..Kinds::COORDINATORS };
    each_seed(
        |_| Scenario {
            places: one_kernel(),
            jobs: vec![60],
            profile: Profile { kinds, ..Profile::all(Duration::from_secs(90)) },
        },
        |_| (),
    );
}

#[test]
fn while_the_agents_live_a_killed_coordinator_runs_nothing_again() {
    let until = Duration::from_secs(60);
    let profile = Profile { until, kinds: Kinds::COORDINATORS, ..Profile::none() };
    each_seed(
        // With one install nothing runs as a backup.
        |_| Scenario { places: vec![Place::new(&[0], 0)], jobs: vec![40], profile },
        |run| assert_eq!((run.done, run.executions), (40, 40)),
    );
}

#[test]
fn a_network_that_doubles_delays_and_loses_makes_nothing_run_twice() {
    let until = Duration::from_secs(60);
    let profile = Profile { until, network: Network::BAD, ..Profile::none() };
    each_seed(
        |_| Scenario { places: one_kernel(), jobs: vec![20, 20], profile },
        |run| assert_eq!(run.done, 40),
    );
}

#[test]
fn a_chunk_that_crashes_every_runner_fails_alone_after_three_crashes() {
    let profile = Profile { poison: 10, ..Profile::none() };
    each_seed(
        |_| Scenario { places: two_kernels(), jobs: vec![30], profile },
        |run| {
            let chunks: Vec<u32> = run.failed.iter().map(|(chunk, _)| *chunk).collect();
            assert_eq!((run.done, chunks), (27, vec![0, 10, 20]));
            assert!(run.failed.iter().all(|(_, class)| matches!(class, Class::Poison | Class::Crashed)));
            assert!((27 + 3 * 3..=27 + 3 * 3 + 3).contains(&run.executions));
        },
    );
}

#[test]
fn every_scenario_keeps_every_rule() {
    each_seed(Scenario::of, |_| ());
}

#[test]
fn equal_seeds_make_equal_histories_and_other_seeds_others() {
    for seed in 0..16 {
        let scenario = Scenario::of(seed);
        let (one, two) = (run(seed, &scenario), run(seed, &scenario));
        assert_eq!(one, two, "seed {seed}");
        assert_ne!(one.hash, run(seed + 8, &scenario).hash, "seed {seed}");
    }
}
