//! Figures of whole programs of this build.

use std::{
    fs,
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use tropa_tests::harness::{Hardware, Programs, Running, World, wait_until};

use super::row;

/// Chunks of the job whose coordinator is killed (R5).
const CHUNKS: usize = 10_000;

/// How often it is killed.
const KILLS: usize = 3;

/// Seconds for which every core is busy (R6); an hour would be the row's.
const BUSY_SECONDS: usize = 60;

/// R5: a coordinator of a long job is killed, and starts again.
pub(crate) fn restart() {
    let (found, of) = match restarted() {
        Ok(found) => (found, format!("{KILLS} kills in a job of {CHUNKS}")),
        Err(why) => (format!("not measured: {why:#}"), String::new()),
    };
    row("R5", "coordinator restart → dispatching, executions too many", &found, &of, "≤ 3 s, 0");
}

/// R6: beats on a machine where every core is busy.
pub(crate) fn false_deaths() {
    let (found, of) = match deaths() {
        Ok(found) => (found.to_string(), format!("{BUSY_SECONDS} s, two agents at work, all cores busy")),
        Err(why) => (format!("not measured: {why:#}"), String::new()),
    };
    row("R6", "false deaths under load", &found, &of, "0 in 1 h");
}

fn restarted() -> Result<String> {
    let world = world()?;
    let _mesh = mesh(&world, 1, &["--instant"])?;
    let mut job = run(&world, CHUNKS)?;
    let seen = || world.witness().map_or(0, |witness| witness.timeline().len());
    let mut longest = Duration::ZERO;
    for kill in 1..=KILLS {
        let some = kill * CHUNKS / (KILLS + 1);
        wait_until("some of it is done", || seen() >= some)?;
        job.kill()?;
        job.wait()?;
        let id = id(&world)?;
        let (begin, before) = (now(), seen());
        job = spawn(&world, &["resume", &id])?;
        wait_until("it dispatches", || seen() > before)?;
        let witness = world.witness()?;
        let first = witness.timeline().get(before).context("work after the restart")?;
        longest = longest.max(Duration::from_nanos(first.start_ns).saturating_sub(begin));
    }
    ensure!(job.wait()?.success(), "the job failed: {}", log(&world));
    let again = seen().saturating_sub(CHUNKS);
    Ok(format!("{:.2} s at most, {again}", longest.as_secs_f64()))
}

fn deaths() -> Result<usize> {
    let world = world()?;
    let _mesh = mesh(&world, 2, &["--tokens", "50", "--decode-us", "20000"])?;
    let over = AtomicBool::new(false);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        // A chunk takes a second, and two run at once.
        let done = run(&world, 2 * BUSY_SECONDS).and_then(|mut job| Ok(job.wait()?.success()));
        over.store(true, Ordering::Relaxed);
        ensure!(done?, "the job failed: {}", log(&world));
        Ok(log(&world).matches("dead: what it held runs elsewhere").count())
    })
}

fn world() -> Result<World> {
    World::new(Programs {
        tropa: env!("CARGO_BIN_EXE_tropa-under-test").into(),
        agent: env!("CARGO_BIN_EXE_tropa-agent-under-test").into(),
        double: env!("CARGO_BIN_EXE_ollama-double").into(),
    })
}

fn mesh(world: &World, lanes: u8, manners: &[&str]) -> Result<Vec<Running>> {
    let mut running = Vec::new();
    for lane in 1..=lanes {
        let double = world.double(&format!("cpu{lane}"), manners)?;
        running.push(world.agent(&format!("m{lane}"), double.address, Hardware::Declared(lane), &[])?);
        running.push(double);
    }
    Ok(running)
}

fn run(world: &World, chunks: usize) -> Result<Child> {
    let text: String = (0..chunks).map(|n| format!("prompt {n} about a llama\n")).collect();
    let input = world.file("prompts.txt", &text)?;
    spawn(world, &["run", input.to_str().context("a path")?])
}

fn spawn(world: &World, what: &[&str]) -> Result<Child> {
    let out = world.path("out.jsonl");
    let stderr = fs::OpenOptions::new().create(true).append(true).open(world.path("job.log"))?;
    let mut command = world.tropa(what);
    command.arg("-o").arg(out).args(["--allow-declared", "--progress", "never", "-v"]);
    Ok(command.stdout(Stdio::null()).stderr(stderr).spawn()?)
}

fn log(world: &World) -> String {
    fs::read_to_string(world.path("job.log")).unwrap_or_default()
}

/// The id of the only job.
fn id(world: &World) -> Result<String> {
    let output = world.run(&["jobs", "--json"])?;
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(listed["jobs"][0]["id"].as_str().context("a job")?.to_owned())
}

/// The clock of the doubles' book.
fn now() -> Duration {
    let at = clock_gettime(ClockId::Monotonic);
    Duration::new(at.tv_sec.unsigned_abs(), u32::try_from(at.tv_nsec).unwrap_or(0))
}
