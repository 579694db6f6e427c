//! How the mesh grows with its agents, and what gives way first.
//!
//! *In the cores*, the pure parts alone: what a roster of N costs to build, to group and to keep, and what the
//! scheduler needs for an event with N installs and ten chunks for each, and how often gossip sends an announcement. Up
//! to 10,000, far beyond the 1,024 agents that a mesh may have.
//!
//! *With real agents*, N programs with declared hardware of their own, in a network namespace of their own, so that all
//! bytes on its loopback are theirs. They know one address, that of the first, and find the others from there, as
//! agents with `--peer` do. A coordinator joins as soon as the last one listens, and `tropa machines` runs later. Engine
//! traffic is taken off by measuring one agent alone.
//!
//! `cargo bench -p tropa-tests --bench scale [-- cores|agents] [-- --most N] [-- --seconds S] [-- --out FILE]`. Each
//! size runs in a process of its own, so that memory is its own. Writes what it prints, with the surroundings of each
//! part, to `tests/benches/results/scale.json`; `tests/benches/table.py` makes the tables of BENCHMARKS.md of it.

mod agents;
mod cores;
mod gossip;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};

/// The version of the results.
const SCHEMA: &str = "tropa.scale/2";

/// Sizes in the cores.
const CORES: [u32; 5] = [10, 100, 300, 1_000, 10_000];

/// Sizes with real agents; the first is what an agent alone puts on the wire.
const AGENTS: [u32; 4] = [1, 10, 100, 300];

#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    /// Leave out larger sizes
    #[arg(long, global = true, default_value_t = 10_000)]
    most: u32,
    /// How long the agents are watched at rest, at least: never less than each takes to announce itself again
    #[arg(long, global = true, default_value_t = 30)]
    seconds: u64,
    /// Where the results go
    #[arg(long, global = true)]
    out: Option<PathBuf>,
    /// Cargo passes it
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
enum Part {
    /// The pure parts
    Cores,
    /// Real agents
    Agents,
    /// One size of the pure parts, as JSON
    #[command(hide = true)]
    OneCore { agents: u32, each: u32 },
    /// One size of real agents, as JSON
    #[command(hide = true)]
    OneMesh { agents: u32 },
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.part {
        Some(Part::OneCore { agents, each }) => return say(&cores::measure(agents, each)?.to_string()),
        Some(Part::OneMesh { agents }) => return say(&agents::measure(agents, args.seconds)?.to_string()),
        Some(Part::Cores | Part::Agents) | None => {}
    }
    let out = args.out.unwrap_or_else(|| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join("results").join("scale.json")
    });
    let mut results = earlier(&out);
    if args.part != Some(Part::Agents) {
        say(&format!("In the cores, best of a few.\n{}", cores::HEAD))?;
        let surroundings = surroundings()?;
        let mut rows = Vec::new();
        for each in [1, 4] {
            for agents in CORES.into_iter().filter(|agents| *agents <= args.most) {
                let row = child(&["one-core", &agents.to_string(), &each.to_string()], false)?;
                say(&cores::line(&row))?;
                rows.push(row);
            }
        }
        results["cores"] = json!({"surroundings": surroundings, "rows": rows});
    }
    if args.part != Some(Part::Cores) {
        say(&format!("\nReal agents, {} s at rest.\n{}", args.seconds, agents::HEAD))?;
        let surroundings = surroundings()?;
        let mut rows: Vec<Value> = Vec::new();
        let seconds = args.seconds.to_string();
        for count in AGENTS.into_iter().filter(|agents| *agents <= args.most) {
            // A size that does not come about is a result too: what gave way.
            let row = child(&["one-mesh", &count.to_string(), "--seconds", &seconds], true)
                .unwrap_or_else(|error| json!({"agents": count, "failed": format!("{error:#}")}));
            say(&agents::line(&row, rows.first()))?;
            rows.push(row);
        }
        results["agents"] = json!({"surroundings": surroundings, "rows": rows});
    }
    if let Some(folder) = out.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fs::write(&out, format!("{results:#}\n")).with_context(|| format!("writing {}", out.display()))?;
    say(&format!("\nwritten: {}", out.display()))
}

/// What the file has already: a run of one part leaves the other as it was.
fn earlier(file: &Path) -> Value {
    let read = fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    read.filter(|earlier: &Value| earlier["schema"] == SCHEMA).unwrap_or_else(|| json!({"schema": SCHEMA}))
}

/// Runs this program again for one size; `apart`: in a network namespace with nothing but loopback, and with as many
/// sockets as the system allows.
fn child(arguments: &[&str], apart: bool) -> Result<Value> {
    let me = std::env::current_exe().context("finding this program")?;
    let mut command = if apart {
        let mut command = Command::new("unshare");
        command.args(["--net", "--map-root-user", "--user", "--", "sh", "-c"]);
        command.arg("ip link set lo up && ulimit -n $(ulimit -Hn) && exec \"$0\" \"$@\"").arg(me);
        command
    } else {
        Command::new(me)
    };
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::piped());
    let done = command.output().context("starting a part of this program")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr).trim());
    serde_json::from_slice(&done.stdout).context("reading what a part measured")
}

/// What the figures depend on.
fn surroundings() -> Result<Value> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let first = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let said = |program: &str, arguments: &[&str]| {
        let done = Command::new(program).args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    };
    Ok(json!({
        "at": said("date", &["-u", "+%FT%TZ"]),
        "commit": said("git", &["rev-parse", "HEAD"]),
        "cpu": model.trim_start_matches(['\t', ':', ' ']),
        "cpus": std::thread::available_parallelism().context("counting processors")?.get(),
        "kernel": first("/proc/sys/kernel/osrelease"),
        // Above the number of processors: others were at work too.
        "load": first("/proc/loadavg"),
        "optimised": !cfg!(debug_assertions),
    }))
}

/// A line of `/proc/<process>/status`, in KiB.
fn kib(process: u32, key: &str) -> Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{process}/status")).context("reading the memory of a process")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).context("a line of /proc")?;
    line.trim().trim_end_matches(" kB").parse().context("a number of KiB")
}

/// How often each of so many agents announces itself: half a second for each, from 10 s to 10 min (`libp2p.md` §8).
fn period(agents: u32) -> Duration {
    (Duration::from_millis(500) * agents).clamp(Duration::from_secs(10), Duration::from_mins(10))
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or(f64::NAN)
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn say(text: &str) -> Result<()> {
    println!("{text}");
    std::io::Write::flush(&mut std::io::stdout()).context("writing")
}
