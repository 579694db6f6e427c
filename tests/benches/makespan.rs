//! How long jobs take over the least time in which these lanes could do them, and what an event costs the scheduler.
//!
//! The scheduler is the real one; lanes, network and disk are virtual (`tropa_tests::makespan`), so the figures of the
//! first parts do not depend on the machine that prints them. The lower bound is the better of all work by all speed
//! and the longest chunk on the fastest lane; loads, round trips and syncs are not in it.

use std::time::Duration;

use tropa_tests::makespan::{ChunkOf, LaneOf, Went, World, lower_bound};

#[expect(clippy::print_stdout, reason = "the output of a benchmark")]
fn main() {
    println!("makespan over the lower bound; lanes write 50 tokens/s for each unit of speed\n");
    println!(
        "{:<28}{:>8}{:>10}{:>12}{:>10}",
        "lanes, speeds unknown/known", "chunks", "aim", "unknown", "known"
    );
    let sets: [(&str, Vec<f64>); 7] = [
        ("2 equal", vec![1.0; 2]),
        ("4 equal", vec![1.0; 4]),
        ("8 equal", vec![1.0; 8]),
        ("16 equal", vec![1.0; 16]),
        ("8:4:1", vec![8.0, 4.0, 1.0]),
        ("8:8:4:4:2:2:1:1", vec![8.0, 8.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0]),
        ("10:1", vec![10.0, 1.0]),
    ];
    for (name, speeds) in &sets {
        for each in [30, 3] {
            let chunks = job(speeds.len() * each);
            let lanes = lanes(speeds);
            let (cold, known) = (ratio(&lanes, &chunks, false), ratio(&lanes, &chunks, true));
            let aim = match (each, name.ends_with("equal")) {
                (30, true) => "1.03",
                (30, false) => "1.05",
                _ => "-",
            };
            println!("{name:<28}{:>8}{aim:>10}{cold:>12.3}{known:>10.3}", chunks.len());
        }
    }
    stragglers();
    // `-- quick` leaves out what takes long in a debug build, which checks the schedule after every event.
    if !std::env::args().any(|arg| arg == "quick") {
        events();
    }
}

/// Chunks whose answers are of unequal length, 50 to 150 tokens of a limit of 200, always the same.
fn job(count: usize) -> Vec<ChunkOf> {
    let chunk = |n: usize| {
        let mut chunk = ChunkOf::of(200, 200);
        chunk.output = 50 + u32::try_from(n * 7919 % 101).unwrap_or(0);
        chunk
    };
    (0..count).map(chunk).collect()
}

fn lanes(speeds: &[f64]) -> Vec<LaneOf> {
    // Loaded already: the lower bound has no load in it either.
    speeds.iter().map(|speed| LaneOf { load: Duration::from_millis(1), ..LaneOf::of(50.0 * speed) }).collect()
}

fn ratio(lanes: &[LaneOf], chunks: &[ChunkOf], known: bool) -> f64 {
    let world = World::new(lanes, chunks);
    let went = if known { world.with_known_speeds().run() } else { world.run() };
    went.makespan.as_secs_f64() / lower_bound(lanes, chunks).as_secs_f64()
}

/// One of four lanes becomes ten times slower during the job. The bound knows from the start when that will be.
#[expect(clippy::print_stdout, reason = "the output of a benchmark")]
fn stragglers() {
    println!(
        "\none of four equal lanes becomes ten times slower; makespan over what the four could do then (aim 1.25)\n"
    );
    println!("{:<28}{:>8}{:>10}{:>12}{:>12}", "slow from", "chunks", "backups", "without", "extra runs");
    for each in [30, 10, 3] {
        let chunks = job(4 * each);
        let sound = lower_bound(&lanes(&[1.0; 4]), &chunks).as_secs_f64();
        for (name, at) in [("the start", 0.0), ("the middle", 0.5), ("near the end", 0.9)] {
            let at = sound * at;
            let mut lanes = lanes(&[1.0; 4]);
            lanes[1].slows = Some((Duration::from_secs_f64(at), 10.0));
            let with = World::new(&lanes, &chunks).run();
            let without = World::new(&lanes, &chunks).without_backups().run();
            // All four until then, three and a tenth afterwards.
            let bound = at + (sound - at) * 4.0 / 3.1;
            let over = |went: &Went| went.makespan.as_secs_f64() / bound;
            let extra = with.executions - chunks.len();
            println!("{name:<28}{:>8}{:>10.3}{:>12.3}{extra:>12}", chunks.len(), over(&with), over(&without));
        }
    }
}

/// What an event costs the scheduler where the job and the mesh are large.
#[expect(clippy::print_stdout, reason = "the output of a benchmark")]
fn events() {
    println!("\nprocessor time for an event in the pure core, world around it included (aim 20 us)\n");
    println!("{:<10}{:>10}{:>12}{:>12}{:>12}", "lanes", "chunks", "events", "us/event", "over bound");
    for (many, count) in [(10, 1_000), (100, 10_000), (1_000, 10_000), (1_000, 100_000)] {
        let speeds: Vec<f64> = (0..many).map(|n| [8.0, 4.0, 2.0, 1.0][n % 4]).collect();
        let (lanes, chunks) = (lanes(&speeds), job(count));
        let started = processor_time();
        let went = World::new(&lanes, &chunks).without_tokens().run();
        let each = (processor_time() - started).as_secs_f64() * 1e6 / went.events as f64;
        let over = went.makespan.as_secs_f64() / lower_bound(&lanes, &chunks).as_secs_f64();
        println!("{many:<10}{count:>10}{:>12}{each:>12.1}{over:>12.3}", went.events);
    }
}

/// Of this process so far: what else runs on the machine is not in it.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
