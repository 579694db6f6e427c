//! What the multi-host testbed needs inside of its containers, whose image has no shell: waiting, forwarding,
//! baselines, and the witness's view. `tests/testbed/run` is its user.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tropa_tests::{
    ollama_double::Witness,
    spread::{self, Way},
    wire,
};

#[derive(Debug, Parser)]
#[command(name = "tropa-testbed", disable_version_flag = true, about = "Parts of the multi-host testbed")]
enum Args {
    /// Waits to be stopped: a container in which commands are executed
    Idle,
    /// Forwards connections, each pair `LISTEN=HOST:PORT`, until it is stopped
    Forward {
        #[arg(required = true, value_name = "LISTEN=TARGET")]
        pairs: Vec<String>,
        /// Write when chats run into the time line of this directory, as a double does
        #[arg(long, requires = "device")]
        device_dir: Option<PathBuf>,
        /// The device that they run on
        #[arg(long, requires = "device_dir")]
        device: Option<String>,
        /// The install that runs them
        #[arg(long, default_value = "install")]
        name: String,
    },
    /// Sends prompts as a tool does that knows addresses only, and says how many machines it counted
    Spread {
        #[command(subcommand)]
        way: Ways,
    },
    /// Prints what the witness in a directory saw
    Witness { dir: PathBuf },
}

#[derive(Debug, Subcommand)]
enum Ways {
    /// Every port is a machine
    ByAddress(Load),
    /// Every IP address is a machine
    UniqueAddresses(Load),
    /// So many at once, as GNU parallel
    Slots {
        #[arg(short)]
        jobs: usize,
        #[command(flatten)]
        load: Load,
    },
}

#[derive(Debug, clap::Args)]
struct Load {
    /// One prompt a line
    #[arg(long)]
    prompts: PathBuf,
    #[arg(long)]
    model: String,
    /// Tokens of an answer, at most
    #[arg(long, default_value_t = 512)]
    max_tokens: u32,
    /// The installs, `HOST:PORT`
    #[arg(required = true)]
    installs: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Args::parse() {
        Args::Idle => stopped().await,
        Args::Forward { pairs, device_dir, device, name } => {
            let began = match (device_dir, device) {
                (Some(dir), Some(device)) => noted(dir, device, name),
                _ => wire::blind(),
            };
            for pair in &pairs {
                let (listen, target) = pair.split_once('=').context("a pair is LISTEN=TARGET")?;
                let listen: SocketAddr = listen.parse().with_context(|| format!("reading {listen}"))?;
                wire::forward(listen, target, Arc::clone(&began))
                    .with_context(|| format!("listening on {listen}"))?;
            }
            stopped().await
        }
        Args::Spread { way } => {
            let (way, load) = match way {
                Ways::ByAddress(load) => (Way::ByAddress, load),
                Ways::UniqueAddresses(load) => (Way::UniqueAddresses, load),
                Ways::Slots { jobs, load } => (Way::Slots(jobs), load),
            };
            spread(way, &load).await
        }
        Args::Witness { dir } => say(&seen(&Witness::read(&dir).context("reading the time line")?)),
    }
}

async fn stopped() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("waiting for SIGINT"),
    }
}

/// An observer that writes into a time line. A line that cannot be written leaves the witness blind, so it is said.
fn noted(dir: PathBuf, device: String, name: String) -> wire::Began {
    let next = AtomicU64::new(0);
    Arc::new(move || {
        let work = format!("{name}-{}", next.fetch_add(1, Ordering::Relaxed));
        match Witness::begin(&dir, &device, &name, &work) {
            Ok(noted) => Box::new(noted),
            Err(error) => {
                complain(&error);
                Box::new(())
            }
        }
    })
}

#[expect(clippy::disallowed_methods, reason = "a baseline is timed by who runs it")]
async fn spread(way: Way, load: &Load) -> Result<()> {
    let text = std::fs::read_to_string(&load.prompts).context("reading the prompts")?;
    let prompts: Vec<String> = text.lines().filter(|line| !line.is_empty()).map(ToOwned::to_owned).collect();
    let installs =
        load.installs.iter().map(|install| spread::resolve(install)).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    spread::send(way, &installs, &load.model, load.max_tokens, &prompts).await?;
    say(&json!({
        "counted": spread::counted(way, &installs),
        "answers": prompts.len(),
        "seconds": begun.elapsed().as_secs_f64(),
    }))
}

fn seen(witness: &Witness) -> Value {
    let devices: std::collections::BTreeSet<&str> =
        witness.timeline().iter().map(|work| work.device.as_str()).collect();
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let by_install: std::collections::BTreeMap<&str, usize> =
        witness.timeline().iter().fold(std::collections::BTreeMap::new(), |mut counts, work| {
            *counts.entry(work.install.as_str()).or_default() += 1;
            counts
        });
    json!({
        "work": witness.timeline().len(),
        "unfinished": witness.unfinished(),
        "by_install": by_install,
        "at_once": witness.at_once(),
        "parallel_ms": millis(witness.parallel()),
        "overlap_ms": devices.iter().map(|device| (*device, millis(witness.overlap(device)))).collect::<std::collections::BTreeMap<_, _>>(),
    })
}

#[expect(clippy::print_stdout, reason = "what the command prints")]
fn say(value: &Value) -> Result<()> {
    println!("{value}");
    std::io::stdout().flush().context("writing")
}

#[expect(clippy::print_stderr, reason = "a blind witness must not pass unseen")]
fn complain(error: &std::io::Error) {
    eprintln!("tropa-testbed: noting work: {error}");
}
