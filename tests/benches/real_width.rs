//! Tokens a second of one real install with `OLLAMA_NUM_PARALLEL=4`, at fixed widths and at the one that a job finds
//! itself, its search included.
//!
//! `cargo bench -p tropa-tests --bench real_width [-- CHUNKS [REPEATS]]`; needs what the tests of real Ollama need, and
//! says `skipped` without it. Every run has an agent of its own, so none remembers what another found. With what it does by
//! itself, 200 chunks and 3 rounds of the four, it takes about six minutes on two cores that nobody else uses; what else
//! runs there changes the figures, since an engine's threads wait for each other.

use std::{
    collections::BTreeMap,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tropa_tests::{
    harness::{Hardware, Programs, World, results},
    real_ollama::RealOllama,
    skipped,
};

/// Chunks of the job that loads the model and warms everything; it is not counted.
const WARMING: usize = 8;

/// Tokens of an answer: enough that writing it outweighs what lies between two chunks.
const TOKENS: u32 = 48;

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let (chunks, repeats) = (numbers.next().unwrap_or(200), numbers.next().unwrap_or(3));
    if let Err(reason) = RealOllama::find() {
        skipped(&reason);
        return Ok(());
    }
    let models = tempfile::tempdir()?;
    let install = RealOllama::start(models.path(), &[("OLLAMA_NUM_PARALLEL", "4")])?;
    install.create("tiny")?;
    let world = World::new(Programs {
        tropa: env!("CARGO_BIN_EXE_tropa-under-test").into(),
        agent: env!("CARGO_BIN_EXE_tropa-agent-under-test").into(),
        double: env!("CARGO_BIN_EXE_ollama-double").into(),
    })?;
    let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    run_at("1", "warm", &world, &install, WARMING)?;
    for repeat in 1..=repeats {
        for width in ["1", "2", "4", "found"] {
            let rate = run_at(width, &format!("w{width}-{repeat}"), &world, &install, chunks)?;
            say(width, rate, &measured(&world)?);
            rates.entry(width).or_default().push(rate);
        }
    }
    tell(&rates);
    Ok(())
}

/// Runs a job of so many chunks at an agent that declares this width, or finds it, and gives its tokens a second.
fn run_at(width: &str, label: &str, world: &World, install: &RealOllama, chunks: usize) -> Result<f64> {
    let prompts: Vec<String> = (0..chunks).map(|n| format!("{n:06}: one load per llama")).collect();
    let input = world.file("prompts.txt", &prompts.join("\n"))?;
    let input = input.to_str().context("a path")?;
    let max = TOKENS.to_string();
    let run = ["run", input, "-m", "tiny", "--max-tokens", &max, "--num-ctx", "1024", "--seed", "1"];
    let fixed = ["--width", width];
    let more: &[&str] = if width == "found" { &[] } else { &fixed };
    let mut agent = world.agent(label, install.addr(), Hardware::This, more)?;
    let rate = rate(world, &run, chunks)?;
    agent.terminate()?;
    Ok(rate)
}

/// Runs the job and gives its tokens a second from the first attempt to the end of the last.
fn rate(world: &World, run: &[&str], chunks: usize) -> Result<f64> {
    let start = now();
    let output = world.tropa(run).stderr(Stdio::piped()).output()?;
    let command = start.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the job failed: {said}");
    let rows = results(&String::from_utf8_lossy(&output.stdout))?;
    ensure!(rows.len() == chunks && rows.iter().all(|row| row["error"].is_null()), "not all whole: {said}");
    let tokens: u64 = rows.iter().filter_map(|row| row["tropa"]["output_tokens"].as_u64()).sum();
    Ok(tokens as f64 / span(world)?.min(command).as_secs_f64())
}

/// The time of the newest job between its first and its last attempt, as its journal tells it.
fn span(world: &World) -> Result<Duration> {
    let jobs = world.path("home/.local/state/tropa/jobs");
    let all = std::fs::read_dir(jobs)?.collect::<std::io::Result<Vec<_>>>()?;
    let newest = all.iter().max_by_key(|job| job.metadata().and_then(|meta| meta.modified()).ok());
    let journal = rusqlite::Connection::open(newest.context("a job")?.path().join("journal.db"))?;
    let ms: i64 =
        journal.query_row("SELECT max(ended_ms) - min(sent_ms) FROM attempt", [], |row| row.get(0))?;
    Ok(Duration::from_millis(u64::try_from(ms)?))
}

/// The width that was measured last, as the file of speeds tells it.
fn measured(world: &World) -> Result<String> {
    let text = std::fs::read(world.path("home/.local/state/tropa/speeds"))?;
    let speeds: serde_json::Value = serde_json::from_slice(&text)?;
    let all = speeds["speeds"].as_array().context("speeds")?;
    let newest = all.iter().max_by_key(|speed| speed["at_ms"].as_u64()).context("a speed")?;
    Ok(newest["width"]["at_once"].to_string())
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn say(width: &str, rate: f64, measured: &str) {
    let found = if width == "found" { format!("    width {measured}") } else { String::new() };
    println!("width {width:<8}{rate:>8.1} tokens/s{found}");
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn tell(rates: &BTreeMap<&str, Vec<f64>>) {
    let median = |width: &str| {
        let mut all = rates.get(width).cloned().unwrap_or_default();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    let best = ["1", "2", "4"].into_iter().map(median).fold(0.0, f64::max);
    let found = median("found");
    println!(
        "medians: width 1 {:.1}, 2 {:.1}, 4 {:.1}, found {found:.1} tokens/s; found over the best {:.3} (aim 0.97)",
        median("1"),
        median("2"),
        median("4"),
        found / best
    );
}

#[expect(clippy::disallowed_methods, reason = "a benchmark owns its clock")]
fn now() -> Instant {
    Instant::now()
}
