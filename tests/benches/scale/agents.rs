//! Real agents, each a program of its own, and a coordinator that joins them.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};
use tropa_coordinator::{
    args::{Global, When},
    assemble::passing_key,
    clock::Clock,
    members::Members,
    settings::Settings,
};
use tropa_proto::{
    id::AgentId,
    known::Known,
    message::{Answer, Question},
};
use tropa_tests::{
    harness::{Programs, Running, World, declare},
    ollama_double::Double,
};

use super::{kib, number, period};

/// After that what is missing does not come any more.
const LIMIT: Duration = Duration::from_secs(120);

/// How long after the start news still spreads: the echoes of the first announcement and two roster pulls.
const SETTLING: Duration = Duration::from_secs(30);

/// Ticks of a process's CPU time in a second, on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

pub(crate) const HEAD: &str = "agents  start s  known s  ready s  least known  tropa machines s  MiB  an agent: MiB  CPU s to join  KiB to join  at rest: B/s  CPU %";

/// One size.
pub(crate) fn measure(count: u32, seconds: u64) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // A shorter look would see by chance many that speak, or none.
    runtime.block_on(mesh(count, Duration::from_secs(seconds).max(period(count))))
}

async fn mesh(count: u32, rest: Duration) -> Result<Value> {
    let world = World::new(Programs {
        tropa: env!("CARGO_BIN_EXE_tropa-under-test").into(),
        agent: env!("CARGO_BIN_EXE_tropa-agent-under-test").into(),
        double: env!("CARGO_BIN_EXE_ollama-double").into(),
    })?;
    // All agents have an engine of their own to them: only its answers matter.
    let engine = Double::builder().version("0.24.0").model("tiny:latest").instant().lenient().start().await;
    let clock = Clock::start();
    let mut agents: Vec<Running> = Vec::new();
    for number in 0..count {
        let seed = agents.first().map(|first| first.address);
        agents.push(start(&world, number, engine.addr(), seed)?);
    }
    let start = clock.now();
    let joining = join(&world, agents[0].address, count).await?;
    tokio::time::sleep((start + SETTLING).saturating_sub(clock.now())).await;

    let (carried, joined, resting) = (on_the_wire()?, ticks(&agents)?, clock.now());
    tokio::time::sleep(rest).await;
    let watched = (clock.now() - resting).as_secs_f64();
    let (bytes, ticks) = (on_the_wire()? - carried, ticks(&agents)? - joined);
    let mut memory: Vec<u64> =
        agents.iter().map(|agent| kib(agent.pid(), "VmRSS:")).collect::<Result<_>>()?;
    memory.sort_unstable();

    let command = machines(&world, agents[0].address)?;
    let each = |total: f64| total / f64::from(count);
    Ok(json!({
        "agents": count, "start_s": start.as_secs_f64(),
        "known": joining.known, "known_s": joining.known_s, "ready": joining.ready, "ready_s": joining.ready_s,
        "machines": joining.machines, "grouping_ms": joining.grouping.as_secs_f64() * 1e3,
        "least_known": joining.least_known,
        "command_s": command.seconds, "command_machines": command.machines, "command_kib": command.memory,
        "agent_kib": memory[memory.len() / 2], "agent_kib_most": memory[memory.len() - 1],
        "joining_cpu_s_each": each(joined) / TICKS, "joining_bytes_each": each((carried - joining.asked_bytes) as f64),
        "rest_s": watched,
        "bytes_per_s_each": each(bytes as f64) / watched, "cpu_percent_each": each(ticks) / TICKS / watched * 100.0,
    }))
}

pub(crate) fn line(row: &Value, alone: Option<&Value>) -> String {
    if let Some(failed) = row["failed"].as_str() {
        return format!("{:>6}  did not come about: {failed}", row["agents"]);
    }
    let engine = alone.map_or(0.0, |alone| number(alone, "bytes_per_s_each"));
    let by = |seconds: &str, reached: &str| match (row[reached].as_u64(), row["agents"].as_u64()) {
        (reached, all) if reached == all => format!("{:.2}", number(row, seconds)),
        (reached, _) => format!("{} only", reached.unwrap_or_default()),
    };
    format!(
        "{:>6} {:>8.2} {:>8} {:>8} {:>12} {:>17} {:>4.0} {:>14.1} {:>14.2} {:>12.0} {:>13.0} {:>6.2}",
        row["agents"],
        number(row, "start_s"),
        by("known_s", "known"),
        by("ready_s", "ready"),
        row["least_known"],
        by("command_s", "command_machines"),
        number(row, "command_kib") / 1024.0,
        number(row, "agent_kib") / 1024.0,
        number(row, "joining_cpu_s_each"),
        (number(row, "joining_bytes_each") - alone.map_or(0.0, |alone| number(alone, "joining_bytes_each")))
            / 1024.0,
        number(row, "bytes_per_s_each") - engine,
        number(row, "cpu_percent_each"),
    )
}

/// What a coordinator saw that joined.
struct Joining {
    known: usize,
    known_s: Option<f64>,
    ready: usize,
    ready_s: Option<f64>,
    machines: usize,
    grouping: Duration,
    /// How many agents those know that know the fewest, themselves included.
    least_known: usize,
    /// Bytes that asking for that took: no agent does so.
    asked_bytes: u64,
}

/// Joins through one agent, until all are known, connected and have said what they have.
#[expect(clippy::disallowed_methods, reason = "a benchmark is the driver that owns the clock")]
async fn join(world: &World, seed: SocketAddr, count: u32) -> Result<Joining> {
    let settings = settings(world, seed)?;
    let clock = Clock::start();
    let key = passing_key().map_err(|failed| failed.error)?;
    let mut members = Members::join(&settings, key, clock).await.map_err(|failed| failed.error)?;
    let mut seen = Joining {
        known: 0,
        known_s: None,
        ready: 0,
        ready_s: None,
        machines: 0,
        grouping: Duration::ZERO,
        least_known: 0,
        asked_bytes: 0,
    };
    while seen.ready < count as usize && clock.now() < LIMIT {
        // Nothing more comes: what has come by then counts.
        let _ = timeout(Duration::from_millis(250), members.next()).await;
        let started = Instant::now();
        let view = members.view();
        seen.known = view.installs.len();
        seen.ready = view.installs.iter().filter(|install| install.out.is_none()).count();
        seen.machines = view.machines.len();
        seen.grouping = seen.grouping.max(started.elapsed());
        let now = clock.now().as_secs_f64();
        if seen.known == count as usize {
            seen.known_s.get_or_insert(now);
        }
        if seen.ready == count as usize {
            seen.ready_s.get_or_insert(now);
        }
    }
    ensure!(seen.known > 0, "no agent was heard: {:?}", members.failures());
    let carried = on_the_wire()?;
    seen.least_known = least_known(&mut members).await?;
    seen.asked_bytes = on_the_wire()? - carried;
    members.leave().await;
    Ok(seen)
}

/// Asks all agents for their rosters, and gives the length of the shortest.
async fn least_known(members: &mut Members) -> Result<usize> {
    let agents: Vec<AgentId> = members.view().installs.iter().map(|install| install.agent).collect();
    let mut asking = JoinSet::new();
    for agent in agents {
        let mesh = members.mesh().clone();
        asking.spawn(async move {
            let mut known = 0;
            loop {
                let from = u32::try_from(known)?;
                let page = mesh.ask(agent, Question::Roster { from, known: Known::nothing() }).await?;
                let Answer::Roster { signed, more } = page else { anyhow::bail!("no roster") };
                known += signed.len();
                if !more {
                    return Ok(known);
                }
            }
        });
    }
    let mut least = usize::MAX;
    while let Some(known) = tokio::select! {
        known = asking.join_next() => known,
        // The swarm's events want to be read.
        () = async { loop { members.next().await; } } => None,
    } {
        least = least.min(known.context("asking for a roster")??);
    }
    Ok(least)
}

fn settings(world: &World, seed: SocketAddr) -> Result<Settings> {
    let global = Global {
        allow_declared: true,
        progress: When::Never,
        quiet: true,
        runtime_dir: Some(world.path("nobody")),
        ..Global::default()
    };
    let mut settings = Settings::resolve(&global).map_err(|failed| failed.error)?;
    // Nothing of the user's own is read or written, the mesh of the user least of all.
    settings.state = world.path("state");
    settings.peers = vec![seed.to_string()];
    settings.secret = None;
    settings.mdns = false;
    Ok(settings)
}

/// What `tropa machines` took.
struct Command {
    seconds: f64,
    machines: usize,
    /// The most memory that it had, in KiB.
    memory: u64,
}

/// Runs `tropa machines` on the mesh, as a user does who knows one agent.
#[expect(clippy::disallowed_methods, reason = "a benchmark is the driver that owns the clock")]
fn machines(world: &World, seed: SocketAddr) -> Result<Command> {
    let (seed, nobody) = (seed.to_string(), world.path("nobody").display().to_string());
    let printed = world.path("machines.json");
    let mut command =
        world.tropa(&["machines", "--json", "--allow-declared", "--peer", &seed, "--runtime-dir", &nobody]);
    command.stdout(fs::File::create(&printed)?).stderr(Stdio::inherit());
    let begin = Instant::now();
    let mut child = command.spawn().context("running tropa machines")?;
    let mut memory = 0;
    while child.try_wait()?.is_none() {
        // It may have ended since: then the last figure stands.
        memory = kib(child.id(), "VmHWM:").unwrap_or(memory);
        std::thread::sleep(Duration::from_millis(2));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let report: Value = serde_json::from_slice(&fs::read(&printed)?).context("reading tropa machines")?;
    let machines = report["machines"].as_array().context("no machines")?.len();
    Ok(Command { seconds, machines, memory })
}

/// Starts an agent on a machine of its own: nothing but the mesh leads from one to another.
fn start(world: &World, number: u32, engine: SocketAddr, seed: Option<SocketAddr>) -> Result<Running> {
    let at = |name: &str| world.path(&format!("{name}-{number}")).display().to_string();
    let (root, lanes, run) = (at("host"), at("lanes"), at("run"));
    hardware(Path::new(&root), number)?;
    let seed = seed.map(|seed| seed.to_string());
    let mut arguments =
        vec!["--evidence-root", &root, "--lane-lock-dir", &lanes, "--runtime-dir", &run, "--no-mdns"];
    arguments.extend(seed.iter().flat_map(|seed| ["--peer", seed]));
    world.agent_on(&format!("host-{number}"), engine, &arguments)
}

/// A declared machine of any number: `declare` has 256.
fn hardware(root: &Path, number: u32) -> Result<()> {
    declare(root, 0)?;
    let id = format!("{:08x}", number + 1).repeat(4);
    let uuid = format!("{}-{}-4{}-8{}-{}", &id[..8], &id[8..12], &id[13..16], &id[17..20], &id[20..32]);
    for (file, content) in [
        ("proc/sys/kernel/random/boot_id", uuid.clone()),
        ("etc/machine-id", id),
        ("sys/class/dmi/id/product_uuid", uuid),
        ("tropa/epoch_ns", (1_790_000_000_000_000_000_i64 + i64::from(number) * 1_000_000_000).to_string()),
    ] {
        fs::write(root.join(file), format!("{content}\n")).with_context(|| format!("writing {file}"))?;
    }
    Ok(())
}

/// Bytes that loopback has carried, headers included, each once.
fn on_the_wire() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/net/dev").context("reading the counters of loopback")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("no loopback")?;
    line.split_whitespace().next().context("no counter")?.parse().context("a number of bytes")
}

/// CPU time of all agents so far, in ticks.
fn ticks(agents: &[Running]) -> Result<f64> {
    let of = |agent: &Running| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).context("reading CPU time")?;
        // After the name in brackets, user and system time are the twelfth and thirteenth field.
        let (_, rest) = stat.rsplit_once(") ").context("a line of /proc")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let field =
            |at: usize| fields.get(at).context("a field of /proc")?.parse::<f64>().context("a number");
        Ok(field(11)? + field(12)?)
    };
    agents.iter().map(of).sum()
}
