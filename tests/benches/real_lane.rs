//! What tropa adds to the wall time of a real install: one job through it against a plain loop of direct calls
//! with the same bodies, by turns, as a ratio with its spread.
//!
//! `cargo bench -p tropa-tests --bench real_lane [-- CHUNKS [REPEATS]]`; needs what the tests of real Ollama need,
//! and says `skipped` without it. The job's time is that between its first and last chunk at the install, so the
//! start of the command, which `lane` measures, is no part of it; the whole command is given beside it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tropa_tests::{
    harness::{Hardware, Programs, World, results},
    real_ollama::RealOllama,
    skipped,
};

/// Tokens of an answer: some ten milliseconds of work of the tiny model.
const TOKENS: u32 = 16;

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let (chunks, repeats) = (numbers.next().unwrap_or(200), numbers.next().unwrap_or(3));
    if let Err(reason) = RealOllama::find() {
        skipped(&reason);
        return Ok(());
    }
    let models = tempfile::tempdir()?;
    let install = RealOllama::start(models.path(), &[])?;
    install.create("tiny")?;
    let world = World::new(Programs {
        tropa: env!("CARGO_BIN_EXE_tropa-under-test").into(),
        agent: env!("CARGO_BIN_EXE_tropa-agent-under-test").into(),
        double: env!("CARGO_BIN_EXE_ollama-double").into(),
    })?;
    let _agent = world.agent("den", install.addr(), Hardware::This, &[])?;
    let prompts: Vec<String> = (0..chunks).map(|n| format!("{n:06}: one load per llama")).collect();
    let input = world.file("prompts.txt", &prompts.join("\n"))?;
    let input = input.to_str().context("a path")?;
    let max = TOKENS.to_string();
    let run = ["run", input, "-m", "tiny", "--max-tokens", &max, "--num-ctx", "1024", "--seed", "1"];

    // Loads the model with the context of both.
    through(&world, &run, chunks)?;
    direct(install.addr(), &prompts)?;
    let mut ratios = Vec::new();
    for _ in 0..repeats {
        let (job, command) = through(&world, &run, chunks)?;
        let plain = direct(install.addr(), &prompts)?;
        ratios.push(job.as_secs_f64() / plain.as_secs_f64());
        say(job, command, plain, chunks);
    }
    ratios.sort_by(f64::total_cmp);
    tell(&ratios);
    Ok(())
}

/// Runs the job and gives the time from the first attempt to the end of the last, and that of the whole command.
fn through(world: &World, run: &[&str], chunks: usize) -> Result<(Duration, Duration)> {
    let start = now();
    let output = world.tropa(run).stderr(Stdio::piped()).output()?;
    let command = start.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the job failed: {said}");
    let rows = results(&String::from_utf8_lossy(&output.stdout))?;
    let whole = |row: &Value| row["error"].is_null() && row["tropa"]["output_tokens"] == TOKENS;
    ensure!(rows.len() == chunks && rows.iter().all(whole), "not every answer is whole: {said}");
    Ok((span(world)?, command))
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

/// Sends the same bodies one after the other on one connection, as a plain loop would.
fn direct(install: SocketAddr, prompts: &[String]) -> Result<Duration> {
    let mut stream = TcpStream::connect(install)?;
    stream.set_nodelay(true)?;
    let start = now();
    for prompt in prompts {
        let body = serde_json::json!({
            "model": "tiny:latest", "messages": [{"role": "user", "content": prompt}], "stream": true,
            "truncate": false, "shift": false, "think": false, "keep_alive": "600s",
            "options": {"num_ctx": 1024, "num_predict": TOKENS, "seed": 1},
        })
        .to_string();
        let length = body.len();
        write!(
            stream,
            "POST /api/chat HTTP/1.1\r\nHost: {install}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = Vec::new();
        let mut buffer = [0; 16 << 10];
        while !answer.ends_with(b"0\r\n\r\n") {
            let count = stream.read(&mut buffer)?;
            ensure!(count > 0, "the install hung up");
            answer.extend_from_slice(&buffer[..count]);
        }
        ensure!(answer.windows(11).any(|part| part == b"\"done\":true"), "an answer was not whole");
    }
    Ok(start.elapsed())
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn say(job: Duration, command: Duration, plain: Duration, chunks: usize) {
    println!(
        "{chunks} chunks: through tropa {:.3} s (command {:.3} s), plain loop {:.3} s, ratio {:.3}",
        job.as_secs_f64(),
        command.as_secs_f64(),
        plain.as_secs_f64(),
        job.as_secs_f64() / plain.as_secs_f64()
    );
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn tell(ratios: &[f64]) {
    if let (Some(least), Some(most)) = (ratios.first(), ratios.last()) {
        let middle = ratios[ratios.len() / 2];
        println!("wall time against a plain loop: {middle:.3} ({least:.3} to {most:.3})    (aim 1.02)");
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark owns its clock")]
fn now() -> Instant {
    Instant::now()
}
