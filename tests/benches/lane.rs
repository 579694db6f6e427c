//! What stands between a job and its engine, measured on real processes with a double that costs nothing: the idle
//! gap of a lane, whole chunks a second, the start of a command, and the agent's and the coordinator's own needs.
//!
//! Figures are of simulated engines: they say what tropa costs, not how fast anything answers.
//! `cargo bench -p tropa-tests --bench lane [-- gap rate start agent memory] [-- --short]`; without names all of it.
//! The journal lies where temporary files do: `TMPDIR` on a real disk, else syncs cost nothing.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tropa_tests::{
    harness::{Hardware, Programs, Running, World, wait_until},
    ollama_double::Work,
};

/// Ticks of a process's CPU time in a second, on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

fn main() -> Result<()> {
    // Cargo passes a flag of its own harness.
    let named: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let short = named.iter().any(|arg| arg == "--short");
    let parts: Vec<&str> = named.iter().map(String::as_str).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    if wanted("gap") {
        gap(if short { 200 } else { 2_000 })?;
    }
    if wanted("rate") {
        for lanes in [1, 2] {
            rate(lanes, if short { 500 } else { 10_000 })?;
        }
    }
    if wanted("start") {
        start(if short { 3 } else { 20 })?;
    }
    if wanted("agent") {
        agent(if short { 3 } else { 20 })?;
    }
    if wanted("memory") {
        for prompts in if short { &[100, 1_000][..] } else { &[1_000, 10_000, 100_000] } {
            memory(*prompts)?;
        }
    }
    Ok(())
}

fn world() -> Result<World> {
    World::new(Programs {
        tropa: env!("CARGO_BIN_EXE_tropa-under-test").into(),
        agent: env!("CARGO_BIN_EXE_tropa-agent-under-test").into(),
        double: env!("CARGO_BIN_EXE_ollama-double").into(),
    })
}

/// A mesh of so many machines, each with a double of these manners.
fn mesh(world: &World, lanes: u8, manners: &[&str]) -> Result<Vec<Running>> {
    let mut running = Vec::new();
    for lane in 1..=lanes {
        let double = world.double(&format!("cpu{lane}"), manners)?;
        running.push(world.agent(&format!("m{lane}"), double.address, Hardware::Declared(lane), &[])?);
        running.push(double);
    }
    Ok(running)
}

/// Starts `tropa run` on so many short prompts.
fn job(world: &World, prompts: u32) -> Result<(Child, Instant)> {
    let text: String = (0..prompts).map(|n| format!("prompt {n} about a llama\n")).collect();
    let input = world.file("prompts.txt", &text)?;
    let out = world.path("out.jsonl");
    let (input, out) = (input.to_str().context("a path")?, out.to_str().context("a path")?);
    let log = fs::File::create(world.path("job.log"))?;
    let mut command = world.tropa(&["run", input, "-o", out, "--allow-declared", "-m", "tiny"]);
    let started = now();
    Ok((command.stdout(Stdio::null()).stderr(log).spawn()?, started))
}

/// Waits for the end of a job and checks that it did all of its work.
fn finish(world: &World, mut child: Child, prompts: u32) -> Result<()> {
    let status = child.wait()?;
    let log = fs::read_to_string(world.path("job.log")).unwrap_or_default();
    ensure!(status.success(), "the job failed: {log}");
    let lines = fs::read_to_string(world.path("out.jsonl"))?.lines().count();
    ensure!(lines == prompts as usize, "{lines} results of {prompts}: {log}");
    Ok(())
}

/// From the end of one chunk at the engine to the start of the next, as the double saw it.
fn gap(prompts: u32) -> Result<()> {
    for (name, manners) in
        [("5 ms", &["--first-ms", "5", "--decode-us", "0", "--tokens", "1"][..]), ("0 ms", &["--instant"])]
    {
        let world = world()?;
        let _mesh = mesh(&world, 1, manners)?;
        let (child, _) = job(&world, prompts)?;
        finish(&world, child, prompts)?;
        let witness = world.witness()?;
        let work: &[Work] = witness.timeline();
        ensure!(work.len() == prompts as usize, "the double saw {} chunks", work.len());
        let mut gaps: Vec<u64> =
            work.windows(2).map(|pair| pair[1].start_ns.saturating_sub(pair[0].end_ns)).collect();
        gaps.sort_unstable();
        let at = |percent: usize| gaps[(gaps.len() - 1) * percent / 100] as f64 / 1e6;
        say(
            &format!("idle gap, chunks of {name}"),
            &format!("p50 {:.3} ms, p99 {:.3} ms, most {:.3} ms of {}", at(50), at(99), at(100), gaps.len()),
            "1 ms",
        );
    }
    Ok(())
}

/// Whole chunks a second, journal on: between the first and the last chunk at the engines.
fn rate(lanes: u8, prompts: u32) -> Result<()> {
    let world = world()?;
    let _mesh = mesh(&world, lanes, &["--instant"])?;
    let (child, _) = job(&world, prompts)?;
    finish(&world, child, prompts)?;
    let witness = world.witness()?;
    let work = witness.timeline();
    let first = work.first().context("nothing ran")?.start_ns;
    let last = work.iter().map(|work| work.end_ns).max().context("nothing ran")?;
    let rate = f64::from(prompts) / ((last - first) as f64 / 1e9);
    say(
        &format!("whole chunks, {lanes} lane(s)"),
        &format!("{rate:.0} a second of {prompts}"),
        "2000 a second",
    );
    Ok(())
}

/// From the start of the command to the first request at the engine, on a mesh that is there.
fn start(times: usize) -> Result<()> {
    let world = world()?;
    let _mesh = mesh(&world, 1, &["--instant"])?;
    let mut took = Vec::new();
    for time in 0..=times {
        let before = world.witness()?.timeline().len();
        let (child, started) = job(&world, 1)?;
        // Read at one moment on both clocks.
        let (monotonic, then) = (monotonic_ns(), started.elapsed());
        finish(&world, child, 1)?;
        let witness = world.witness()?;
        let first = witness.timeline().get(before).context("nothing ran")?.start_ns;
        let spawned = monotonic - u64::try_from(then.as_nanos())?;
        // The first loads the model and the programs.
        if time > 0 {
            took.push(first.saturating_sub(spawned));
        }
    }
    took.sort_unstable();
    let (middle, most) = (took[took.len() / 2] as f64 / 1e9, took[took.len() - 1] as f64 / 1e9);
    say("command to first chunk", &format!("median {middle:.3} s, most {most:.3} s of {times}"), "0.3 s");
    Ok(())
}

/// What the agent needs, idle and while a chunk runs.
fn agent(seconds: u64) -> Result<()> {
    let world = world()?;
    // One answer that outlasts the measurement, a token every 20 ms.
    let double = world.double("cpu1", &["--decode-us", "20000", "--tokens", "4000"])?;
    let agent = world.agent("m1", double.address, Hardware::Declared(1), &[])?;
    let watch = |what: &str, aim: &str| -> Result<()> {
        let (before, start) = (ticks(agent.pid())?, now());
        pause(Duration::from_secs(seconds));
        let cpu = (ticks(agent.pid())? - before) / TICKS / start.elapsed().as_secs_f64() * 100.0;
        let rss = kib(agent.pid(), "VmRSS:")? as f64 / 1024.0;
        say(what, &format!("{rss:.1} MiB, {cpu:.2} % of a core in {seconds} s"), aim);
        Ok(())
    };
    watch("agent, idle", "15 MB, 0.1 %")?;
    let text = world.file("one.txt", "a llama\n")?;
    let one = ["run", text.to_str().context("a path")?, "--allow-declared", "--max-tokens", "4000"];
    let mut child = world.tropa(&one).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_until("the engine works", || world.witness().is_ok_and(|witness| !witness.timeline().is_empty()))?;
    watch("agent, a chunk runs", "15 MB, 0.5 %")?;
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// The coordinator's peak on jobs of this size, and how long the job takes to begin.
fn memory(prompts: u32) -> Result<()> {
    let world = world()?;
    let _mesh = mesh(&world, 1, &["--instant"])?;
    let (child, started) = job(&world, prompts)?;
    let pid = child.id();
    wait_until("the engine works", || started_at(&world).is_some())?;
    let (monotonic, then) = (monotonic_ns(), started.elapsed());
    let first = started_at(&world).context("nothing ran")?;
    let begins = (first + u64::try_from(then.as_nanos())?).saturating_sub(monotonic) as f64 / 1e9;
    let mut peak = 0;
    let mut over = false;
    while !over {
        match kib(pid, "VmHWM:") {
            Ok(kib) => peak = peak.max(kib),
            Err(_) => over = true,
        }
        pause(Duration::from_millis(5));
    }
    finish(&world, child, prompts)?;
    let size = fs::metadata(world.path("out.jsonl"))?.len() >> 20;
    say(
        &format!("job of {prompts}"),
        &format!(
            "peak {:.1} MiB, first chunk after {begins:.3} s, {size} MiB of results",
            peak as f64 / 1024.0
        ),
        "flat; at once",
    );
    Ok(())
}

/// When work began, by the first line of the doubles' book.
fn started_at(world: &World) -> Option<u64> {
    // The whole book of a long job is too much to read over and over.
    let mut head = String::new();
    let file = fs::File::open(world.path("devices").join("timeline.jsonl")).ok()?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(file), &mut head).ok()?;
    serde_json::from_str::<serde_json::Value>(&head).ok()?["at"].as_u64()
}

/// CPU time of a process so far, in ticks.
fn ticks(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the name in brackets, user and system time are the twelfth and thirteenth field.
    let (_, rest) = stat.rsplit_once(") ").context("a line of /proc")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let field = |at: usize| fields.get(at).context("a field of /proc")?.parse::<f64>().context("a number");
    Ok(field(11)? + field(12)?)
}

/// A line of the status of a process, in KiB. A process that has ended has none.
fn kib(pid: u32, key: &str) -> Result<u64> {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).context("it has ended")?;
    line.trim().trim_end_matches(" kB").parse().context("a number of KiB")
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn say(what: &str, measured: &str, aim: &str) {
    println!("{what:<28} {measured}    (aim {aim})");
}

fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark owns its clock")]
fn now() -> Instant {
    Instant::now()
}

fn pause(time: Duration) {
    std::thread::sleep(time);
}
