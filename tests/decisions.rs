//! What the scheduler decides, as text: jobs in a virtual world whose orders are written down, so that a change of
//! scheduling behaviour shows as a difference in `tests/decisions/`. `TROPA_BLESS=1` rewrites the files on purpose.
//!
//! Beside the text each test asserts what it is about, by numbers that the world counts and the scheduler does not see.

use std::{path::Path, time::Duration};

use proptest::prelude::*;
use tropa_coordinator::schedule::{ModelIndex, Work};
use tropa_tests::makespan::{ChunkOf, LaneOf, Weather, Went, World, lower_bound};

/// Compares the orders of a job with the file of this name.
fn same_as(name: &str, went: &Went) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("decisions").join(name).with_extension("txt");
    let text = went.orders.join("\n") + "\n";
    if std::env::var_os("TROPA_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "the decisions differ from {}:\n{text}", path.display());
}

fn lanes(speeds: &[f64]) -> Vec<LaneOf> {
    speeds.iter().map(|speed| LaneOf::of(50.0 * speed)).collect()
}

fn chunks(count: usize) -> Vec<ChunkOf> {
    vec![ChunkOf::of(200, 100); count]
}

#[test]
fn a_slow_lane_gets_nothing_that_a_fast_one_finishes_sooner() {
    let went = World::new(&lanes(&[8.0, 4.0, 1.0]), &chunks(9)).with_known_speeds().with_orders().run();
    assert_eq!(went.done[2], 0, "{went:?}");
    same_as("slow_lane", &went);
}

#[test]
fn a_slow_lane_works_where_much_waits() {
    let went = World::new(&lanes(&[8.0, 4.0, 1.0]), &chunks(90)).with_known_speeds().run();
    assert!((5..=8).contains(&went.done[2]), "a thirteenth of the work is its share: {:?}", went.done);
}

#[test]
fn what_lies_ready_at_a_busy_lane_runs_on_an_idle_one() {
    let mut three = chunks(3);
    // The first is long, and nobody knows it.
    three[0].output = 400;
    three.iter_mut().for_each(|chunk| chunk.work.output_tokens = 400);
    let went = World::new(&lanes(&[1.0, 1.0]), &three).with_known_speeds().with_orders().run();
    assert_eq!(went.done, [1, 2]);
    same_as("taken_back", &went);
}

#[test]
fn what_is_late_at_the_end_gets_one_backup_and_the_loser_is_cancelled() {
    let mut two = lanes(&[1.0, 1.0]);
    two[1].slows = Some((Duration::from_secs(5), 10.0));
    let job = chunks(6);
    let with = World::new(&two, &job).with_orders().run();
    let without = World::new(&two, &job).without_backups().run();
    assert_eq!(with.executions, job.len() + 1, "one more attempt and no other");
    assert!(with.makespan.as_secs_f64() * 1.3 < without.makespan.as_secs_f64(), "{with:?} {without:?}");
    assert_eq!(without.executions, job.len());
    same_as("backup", &with);
}

#[test]
fn an_answer_that_is_half_written_when_its_lane_becomes_slow_gets_a_backup() {
    let mut two = lanes(&[1.0, 1.0]);
    two.iter_mut().for_each(|lane| lane.load = Duration::from_millis(1));
    two[1].slows = Some((Duration::from_millis(1500), 10.0));
    let with = World::new(&two, &chunks(2)).with_known_speeds().run();
    let without = World::new(&two, &chunks(2)).with_known_speeds().without_backups().run();
    assert_eq!(with.executions, 3);
    assert!(with.makespan.as_secs_f64() * 2.0 < without.makespan.as_secs_f64(), "{with:?} {without:?}");
}

#[test]
fn chunks_over_one_document_go_where_it_was_read() {
    let mut eight = chunks(8);
    for (n, chunk) in (0..).zip(&mut eight) {
        chunk.work.prefix = 1 + n % 2;
    }
    let went = World::new(&lanes(&[1.0, 1.0]), &eight).with_orders().run();
    for lane in 0..2 {
        let read = went.history.iter().filter(|(_, on, _)| *on == lane);
        let mut read: Vec<u32> = read.map(|(.., chunk)| eight[chunk.0 as usize].work.prefix).collect();
        read.dedup();
        assert_eq!(read.len(), 1, "lane {lane} read {read:?}");
    }
    same_as("prefixes", &went);
}

#[test]
fn a_lane_loads_each_class_of_context_once_and_the_longest_first() {
    let mut job = chunks(30);
    for (n, chunk) in job.iter_mut().enumerate() {
        chunk.work.context = if n % 10 == 9 { 8192 } else { 1024 };
    }
    let went = World::new(&lanes(&[1.0, 1.0]), &job).with_orders().run();
    assert!(went.loads.iter().all(|loads| *loads <= 2), "{:?}", went.loads);
    same_as("classes", &went);
}

#[test]
fn two_models_are_shared_out_instead_of_swapped() {
    let mut job = chunks(20);
    for (n, chunk) in (0..).zip(&mut job) {
        chunk.work = Work { model: ModelIndex(n % 2), ..chunk.work };
    }
    let went = World::new(&lanes(&[1.0, 1.0]), &job).run();
    assert_eq!(went.loads, [1, 1]);
}

#[test]
fn the_width_that_an_install_gains_from_is_found_and_kept() {
    let mut lane = LaneOf::of(50.0);
    (lane.width, lane.curve) = (0, vec![1.0, 1.1, 1.4, 1.7]);
    let went = World::new(&[lane.clone()], &chunks(200)).with_orders().run();
    let at_once = |orders: &[String]| {
        orders.iter().rev().find_map(|order| order.split(" of ").nth(1).map(str::to_owned))
    };
    assert_eq!(at_once(&went.orders).as_deref(), Some("4"), "it has four slots");
    let over = went.makespan.as_secs_f64() / lower_bound(&[lane.clone()], &chunks(200)).as_secs_f64();
    assert!(over < 1.09, "with its search the job takes {over} of the time at the best width");
    // The same install with one slot.
    (lane.width, lane.curve) = (0, vec![1.0]);
    let went = World::new(&[lane], &chunks(60)).with_orders().run();
    assert_eq!(at_once(&went.orders).as_deref(), Some("1"));
    assert!(went.orders.iter().filter(|order| order.ends_with(" of 2")).count() < 12, "it is found soon");
}

#[test]
fn an_install_that_starts_anew_is_measured_anew_within_the_job() {
    let at_once = |restarts| {
        let lane = LaneOf { width: 0, restarts, ..LaneOf::of(50.0) };
        let went = World::new(&[lane], &chunks(120)).with_orders().run();
        let sends = went.orders.iter().filter_map(|order| order.split(" of ").nth(1)?.parse::<u32>().ok());
        sends.collect::<Vec<_>>()
    };
    let middle = Duration::from_secs(150);
    // One slot, and then four.
    let sends = at_once(Some((middle, vec![1.0, 1.7, 2.5, 3.0])));
    assert_eq!((sends[40], sends.last()), (1, Some(&4)), "{sends:?}");
    // One slot, and then one.
    let sends = at_once(Some((middle, vec![1.0])));
    assert_eq!((sends[40], sends.last()), (1, Some(&1)), "{sends:?}");
    assert!(sends[60..].contains(&2), "another process may have other slots: {sends:?}");
    assert!(!at_once(None)[40..].contains(&2), "and one is not asked twice");
}

/// What jobs of 200 chunks do on an install of four slots that finds its width, over what they do at the best fixed
/// one in the same weather; from the worst of them to the best.
fn found_over_best(curve: &[f64], weather: impl Fn(u64) -> Weather) -> Vec<f64> {
    let at = |width: usize, seed: u64| {
        let (load, weather) = (Duration::from_millis(1), Some(weather(seed)));
        let lane = LaneOf { width, curve: curve.to_vec(), load, weather, ..LaneOf::of(160.0) };
        World::new(&[lane], &[ChunkOf::of(30, 48); 200]).without_tokens().run().makespan.as_secs_f64()
    };
    let best = |seed| [1, 2, 4].map(|width| at(width, seed)).into_iter().fold(f64::INFINITY, f64::min);
    let mut all: Vec<f64> = (0..16).map(|seed| best(seed) / at(0, seed)).collect();
    all.sort_by(f64::total_cmp);
    all
}

#[test]
fn a_width_that_is_found_pays_for_its_search_within_a_job() {
    // What has been measured of real installs, one whose curve has a dip, and one that gains nothing.
    for curve in [[1.0, 1.1, 1.4, 1.7], [1.0, 1.2, 1.3, 1.4], [1.0, 0.95, 0.97, 1.25], [1.0, 0.9, 0.8, 0.7]] {
        let calm = found_over_best(&curve, Weather::calm);
        assert!(calm[8] >= 0.97 && calm[0] >= 0.95, "{curve:?}, nothing else on the machine: {calm:.3?}");
        let rough = found_over_best(&curve, Weather::rough);
        assert!(rough[8] >= 0.90 && rough[0] >= 0.75, "{curve:?}, a restless machine: {rough:.3?}");
    }
}

/// The least makespan of few chunks on few lanes, by trying every assignment; shares nothing with the scheduler.
fn best_of_all(lanes: &[LaneOf], chunks: &[ChunkOf], loaded: &mut [f64]) -> f64 {
    let Some((chunk, rest)) = chunks.split_first() else {
        return loaded.iter().copied().fold(0.0, f64::max);
    };
    let mut best = f64::INFINITY;
    for lane in 0..lanes.len() {
        let seconds = chunk.seconds(&lanes[lane]);
        loaded[lane] += seconds;
        best = best.min(best_of_all(lanes, rest, loaded));
        loaded[lane] -= seconds;
    }
    best
}

#[test]
fn the_makespan_is_near_the_least_of_all_assignments() {
    let (mut sum, mut worst, mut worlds) = (0.0, 0.0_f64, 0);
    let mut random = 1_u64;
    let mut next = |below: u64| {
        // Knuth's generator: the same worlds in every run.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for _ in 0..120 {
        let speeds: Vec<f64> =
            (0..2 + next(2)).map(|_| [1.0, 1.0, 2.0, 4.0, 8.0][next(5) as usize]).collect();
        let mut lanes = lanes(&speeds);
        lanes.iter_mut().for_each(|lane| lane.load = Duration::from_millis(1));
        let job: Vec<ChunkOf> = (0..1 + next(8)).map(|_| ChunkOf::of(100, 40 + next(120) as u32)).collect();
        let best = best_of_all(&lanes, &job, &mut vec![0.0; lanes.len()]);
        let went = World::new(&lanes, &job).with_known_speeds().run();
        let over = went.makespan.as_secs_f64() / best;
        assert!(over > 0.999, "the oracle is no bound: {over} for {speeds:?} {job:?}");
        (sum, worst, worlds) = (sum + over, worst.max(over), worlds + 1);
    }
    let mean = sum / f64::from(worlds);
    assert!(mean < 1.15 && worst < 1.8, "over the least makespan: mean {mean:.3}, worst {worst:.3}");
}

/// A chunk of any size and kind; of one in eight nothing is known.
fn any_chunk() -> impl Strategy<Value = ChunkOf> {
    (20u32..500, 10u32..300, 0u16..2, 0u32..3, 0u8..8).prop_map(|(prompt, output, model, prefix, known)| {
        let mut chunk = if known > 0 { ChunkOf::of(prompt, output) } else { ChunkOf::of(0, 0) };
        (chunk.work.model, chunk.work.prefix) = (ModelIndex(model), prefix);
        ChunkOf { output: output / 2 + 5, ..chunk }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    /// That each waits for another, the world itself finds: a job that is not done and waits for nothing. Jobs are short,
    /// since it is at their ends that one leaves a chunk to another.
    #[test]
    fn every_job_ends_with_one_result_a_chunk_however_unequal_its_chunks_and_lanes_are(
        speeds in proptest::collection::vec(0usize..5, 1..7),
        chunks in proptest::collection::vec(any_chunk(), 1..8),
        known in any::<bool>(),
        width in 0usize..3,
    ) {
        let mut lanes = lanes(&speeds.iter().map(|speed| [8.0, 4.0, 2.0, 1.0, 0.5][*speed]).collect::<Vec<_>>());
        lanes.iter_mut().for_each(|lane| lane.width = width);
        let world = World::new(&lanes, &chunks);
        let went = if known { world.with_known_speeds().run() } else { world.run() };
        prop_assert_eq!(went.done.iter().sum::<usize>(), chunks.len());
    }
}
