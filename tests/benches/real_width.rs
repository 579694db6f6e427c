//! Tokens a second of one real install with `OLLAMA_NUM_PARALLEL=4`, at fixed widths and at the one that a job finds
//! itself, its search included.
//!
//! `tests/benches/bench.sh ROUNDS CHUNKS width` makes the model and runs this; by hand it is
//! `cargo bench -p tropa-tests --bench real_width [-- CHUNKS [ROUNDS]]` with the variables of the tests of real Ollama,
//! and `TROPA_BENCH_GGUF` for a model that keeps the processors busy: the tiny one does little but wake threads up, and
//! what is measured then is noise. Without an Ollama it says `skipped`. Every run has an agent of its own, so none
//! remembers what another found. A round is one run of each; it begins with another one each time, and what was found is
//! compared with the best fixed width of the same round, so that what changes on the machine from round to round is in
//! neither. 200 chunks and five rounds take about seven minutes on two cores that nobody else uses.

use std::{
    path::PathBuf,
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

/// Tokens of an answer: a run of 200 chunks takes twenty seconds with 66 million parameters on two cores.
const TOKENS: u32 = 16;

/// What a round compares: three fixed widths and what a job finds.
const WIDTHS: [&str; 4] = ["1", "2", "4", "found"];

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let (chunks, rounds) = (numbers.next().unwrap_or(200), numbers.next().unwrap_or(5));
    let tools = match RealOllama::find() {
        Ok(tools) => tools,
        Err(reason) => {
            skipped(&reason);
            return Ok(());
        }
    };
    let models = tempfile::tempdir()?;
    let install = RealOllama::start(models.path(), &[("OLLAMA_NUM_PARALLEL", "4")])?;
    install.create_from("bench", &std::env::var_os("TROPA_BENCH_GGUF").map_or(tools.model, PathBuf::from))?;
    let world = World::new(Programs {
        tropa: env!("CARGO_BIN_EXE_tropa-under-test").into(),
        agent: env!("CARGO_BIN_EXE_tropa-agent-under-test").into(),
        double: env!("CARGO_BIN_EXE_ollama-double").into(),
    })?;
    run_at("1", "warm", &world, &install, WARMING)?;
    let mut all: Vec<[f64; WIDTHS.len()]> = Vec::new();
    for round in 0..rounds {
        let mut rates = [0.0; WIDTHS.len()];
        for place in (0..WIDTHS.len()).map(|n| (n + round) % WIDTHS.len()) {
            let label = format!("w{}-{round}", WIDTHS[place]);
            rates[place] = run_at(WIDTHS[place], &label, &world, &install, chunks)?;
            say(WIDTHS[place], rates[place], &measured(&world)?);
        }
        say_ratio(&format!("round {}", round + 1), over_best(&rates));
        all.push(rates);
    }
    tell(&all);
    Ok(())
}

/// Runs a job of so many chunks at an agent that declares this width, or finds it, and gives its tokens a second.
fn run_at(width: &str, label: &str, world: &World, install: &RealOllama, chunks: usize) -> Result<f64> {
    let prompts: Vec<String> = (0..chunks).map(|n| format!("{n:06}: one load per llama")).collect();
    let input = world.file("prompts.txt", &prompts.join("\n"))?;
    let input = input.to_str().context("a path")?;
    let max = TOKENS.to_string();
    let run = ["run", input, "-m", "bench", "--max-tokens", &max, "--num-ctx", "1024", "--seed", "1"];
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
fn say_ratio(of: &str, ratio: f64) {
    println!("{of}: found over the best {ratio:.3}");
}

/// What was found over the best fixed width of the same round.
fn over_best(rates: &[f64; WIDTHS.len()]) -> f64 {
    let [fixed @ .., found] = rates;
    found / fixed.iter().copied().fold(f64::MIN_POSITIVE, f64::max)
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn tell(all: &[[f64; WIDTHS.len()]]) {
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let median = |values: &[f64]| values.get(values.len() / 2).copied().unwrap_or_default();
    for (place, width) in WIDTHS.iter().enumerate() {
        let rates = sorted(all.iter().map(|rates| rates[place]).collect());
        println!("median of width {width:<8}{:>8.1} tokens/s", median(&rates));
    }
    let ratios = sorted(all.iter().map(over_best).collect());
    if let [least, .., most] = ratios[..] {
        println!("from {least:.3} to {most:.3}");
    }
    say_ratio("median of the rounds (aim 0.97)", median(&ratios));
}

#[expect(clippy::disallowed_methods, reason = "a benchmark owns its clock")]
fn now() -> Instant {
    Instant::now()
}
