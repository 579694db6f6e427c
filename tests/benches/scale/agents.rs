//! Real agents in one process, and one coordinator that joins them.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tropa_agent::{
    Agent, Config, device_lock::LockPlaces, evidence::Root, ollama::OllamaUrl, policy::Policy,
    runtime_dir::RuntimePlaces,
};
use tropa_coordinator::{
    args::{Global, When},
    assemble::passing_key,
    clock::Clock,
    members::Members,
    settings::Settings,
};
use tropa_tests::{harness::declare, ollama_double::Double};

use super::{kib, number};

/// After that what is missing does not come any more.
const LIMIT: Duration = Duration::from_secs(120);

/// How long after the start news still spreads: the echoes of the first announcement and two roster pulls.
const SETTLING: Duration = Duration::from_secs(20);

/// Ticks of a process's CPU time in a second, on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

pub(crate) const HEAD: &str = "agents  start s  all known s  all ready s  grouping ms  MiB/agent  at rest: B/s each  CPU % each  sockets";

/// One size.
pub(crate) fn measure(count: u32, seconds: u64) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(mesh(count, Duration::from_secs(seconds)))
}

async fn mesh(count: u32, rest: Duration) -> Result<Value> {
    let dir = tempfile::Builder::new().prefix("tropa-scale").tempdir().context("making a directory")?;
    // All agents have an engine of their own to them: only its answers matter.
    let engine = Double::builder().version("0.24.0").model("tiny:latest").instant().lenient().start().await;
    let empty = kib("VmRSS:")?;
    let clock = Clock::start();
    let mut agents: Vec<Running> = Vec::new();
    for number in 0..count {
        let seed = agents.first().map(|first| first.address);
        agents.push(Running::start(&dir, number, engine.addr(), seed).await?);
    }
    let start = clock.now();
    tokio::time::sleep(SETTLING).await;
    let (bytes, ticks, resting) = (on_the_wire()?, ticks()?, clock.now());
    tokio::time::sleep(rest).await;
    let watched = (clock.now() - resting).as_secs_f64();
    let (bytes, ticks) = (on_the_wire()? - bytes, self::ticks()? - ticks);
    let memory = kib("VmRSS:")?.saturating_sub(empty);
    let sockets = fs::read_dir("/proc/self/fd").context("counting sockets")?.count();

    let joining = join(&dir, agents[0].address, count).await?;
    for agent in agents {
        agent.stop().await;
    }
    let each = |total: f64| total / f64::from(count);
    Ok(json!({
        "agents": count, "start_s": start.as_secs_f64(), "memory_kib_each": each(memory as f64),
        "rest_s": watched, "bytes_per_s_each": each(bytes as f64) / watched,
        "cpu_percent_each": each(ticks) / TICKS / watched * 100.0, "sockets": sockets,
        "known": joining.known, "known_s": joining.known_s, "ready": joining.ready, "ready_s": joining.ready_s,
        "machines": joining.machines, "grouping_ms": joining.grouping.as_secs_f64() * 1e3,
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
        "{:>6} {:>8.2} {:>12} {:>12} {:>12.2} {:>10.2} {:>18.0} {:>11.2} {:>8}",
        row["agents"],
        number(row, "start_s"),
        by("known_s", "known"),
        by("ready_s", "ready"),
        number(row, "grouping_ms"),
        number(row, "memory_kib_each") / 1024.0,
        number(row, "bytes_per_s_each") - engine,
        number(row, "cpu_percent_each"),
        row["sockets"],
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
}

/// Joins through one agent, until all are known, connected and have said what they have.
#[expect(clippy::disallowed_methods, reason = "a benchmark is the driver that owns the clock")]
async fn join(dir: &TempDir, seed: SocketAddr, count: u32) -> Result<Joining> {
    let settings = settings(dir, seed)?;
    let clock = Clock::start();
    let key = passing_key().map_err(|failed| failed.error)?;
    let mut members = Members::join(&settings, key, clock).await.map_err(|failed| failed.error)?;
    let mut seen =
        Joining { known: 0, known_s: None, ready: 0, ready_s: None, machines: 0, grouping: Duration::ZERO };
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
    members.leave().await;
    ensure!(seen.known > 0, "no agent was heard");
    Ok(seen)
}

fn settings(dir: &TempDir, seed: SocketAddr) -> Result<Settings> {
    let global = Global {
        allow_declared: true,
        progress: When::Never,
        quiet: true,
        runtime_dir: Some(dir.path().join("run")),
        ..Global::default()
    };
    let mut settings = Settings::resolve(&global).map_err(|failed| failed.error)?;
    // Nothing of the user's own is read or written, the mesh of the user least of all.
    settings.state = dir.path().join("state");
    settings.peers = vec![seed.to_string()];
    settings.secret = None;
    settings.mdns = false;
    Ok(settings)
}

/// An agent at work in this process.
struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(dir: &TempDir, number: u32, engine: SocketAddr, seed: Option<SocketAddr>) -> Result<Self> {
        let at = |name: &str| dir.path().join(format!("{name}-{number}"));
        let root = at("host");
        hardware(&root, number)?;
        let config = Config {
            ollama: OllamaUrl::parse(&format!("http://{engine}"), false)?,
            policy: Policy::default(),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            peers: seed.iter().map(ToString::to_string).collect(),
            secret: None,
            mdns: false,
            lane: None,
            log: None,
            label: format!("host-{number}"),
            width: 1,
            machine: None,
            root: Root::declared(root),
            lock_dir: LockPlaces { system: at("lanes"), user: None }.choose(),
            // Each a list of its own: they shall not find each other there.
            runtime: Some(RuntimePlaces::new(vec![at("run").join("agents")])),
            state: at("state"),
            memory: None,
        };
        let agent = Agent::start(config).await.with_context(|| format!("starting agent {number}"))?;
        let address = agent.address();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let _ = agent.run(async { drop(stopped.await) }).await;
        });
        Ok(Self { address, stop, task })
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
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

/// CPU time of this process so far, in ticks.
fn ticks() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat").context("reading the own CPU time")?;
    // After the name in brackets, user and system time are the twelfth and thirteenth field.
    let (_, rest) = stat.rsplit_once(") ").context("a line of /proc")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let field = |at: usize| fields.get(at).context("a field of /proc")?.parse::<f64>().context("a number");
    Ok(field(11)? + field(12)?)
}
