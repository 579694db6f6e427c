//! An Ollama install that is none, as a process: for tests of several processes, containers and hosts.
//!
//! Prints `listening <address>` on standard output when it answers, and before that `control <address>` where a
//! control listener was asked for. Ends on SIGTERM and SIGINT after running requests have ended, 2 seconds at
//! most.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tropa_tests::ollama_double::{Device, Double, Model, Profile};

/// How long running requests may go on after SIGTERM; whoever stops it wants it gone.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, Parser)]
#[command(
    name = "ollama-double",
    disable_version_flag = true,
    about = "A double of an Ollama install, for tests"
)]
struct Args {
    /// Address of the API
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Opens a control listener: POST and DELETE /faults, GET /counts, GET /requests, POST /kill
    #[arg(long)]
    control: Option<SocketAddr>,
    /// A model: NAME, or NAME,size=BYTES,ctx=TOKENS,caps=completion+thinking,digest=HEX
    #[arg(long = "model", value_name = "NAME[,KEY=VALUE]", value_parser = model)]
    models: Vec<Model>,
    /// The version that it says and whose shapes it has
    #[arg(long, default_value = "0.33.0")]
    version: String,
    /// Its name in time lines; one by chance otherwise
    #[arg(long)]
    name: Option<String>,
    /// How long a load takes
    #[arg(long, default_value_t = 0)]
    load_ms: u64,
    /// What every prompt costs besides its tokens
    #[arg(long, default_value_t = 0)]
    first_ms: u64,
    /// Reading one token of a prompt
    #[arg(long, default_value_t = 20)]
    prefill_us: u64,
    /// Making one token
    #[arg(long, default_value_t = 2000)]
    decode_us: u64,
    /// How far single times vary, in percent
    #[arg(long, default_value_t = 0)]
    jitter: u64,
    /// Decides jitter and the probability of faults
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Slots of one loaded model
    #[arg(long, default_value_t = 1)]
    num_parallel: usize,
    /// Requests that may wait for a load
    #[arg(long, default_value_t = 512)]
    max_queue: usize,
    /// Bytes of video memory
    #[arg(long, default_value_t = 0)]
    vram: u64,
    /// A device that it works on
    #[arg(long = "device", value_name = "NAME")]
    devices: Vec<String>,
    /// What installs on one device cost each other: oversubscribed, time_sliced or fair
    #[arg(long, default_value = "oversubscribed")]
    profile: Profile,
    /// Directory through which processes share devices, and in which the time line is written
    #[arg(long)]
    device_dir: Option<PathBuf>,
    /// A fault: `mode[:key=value,..][@condition,..][*times]`
    #[arg(long = "fault", value_name = "RULE")]
    faults: Vec<String>,
    /// Reads faults from prompts: `[[rule]]`
    #[arg(long)]
    marks: bool,
    /// Makes its texts differ from those of other doubles
    #[arg(long, default_value = "")]
    salt: String,
    /// Answers with the prompt
    #[arg(long)]
    echo: bool,
    /// Real work in so many threads instead of sleeping
    #[arg(long, value_name = "THREADS", default_value_t = 0)]
    burn: usize,
    /// Length of every answer in tokens
    #[arg(long)]
    tokens: Option<u64>,
    /// No time for anything and answers of one token: for benchmarks
    #[arg(long)]
    instant: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let double = start(args).await?;
    say(&double)?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.context("wait for SIGINT")?,
    }
    // Whatever still runs then is cut off by the end of the process.
    let _ = tokio::time::timeout(GRACE, double.stop()).await;
    Ok(())
}

async fn start(args: Args) -> Result<Double> {
    let mut builder = Double::builder()
        .listen(args.listen)
        .version(&args.version)
        .load_ms(args.load_ms)
        .first_ms(args.first_ms)
        .prefill_us(args.prefill_us)
        .decode_us(args.decode_us)
        .jitter(args.jitter)
        .seed(args.seed)
        .num_parallel(args.num_parallel)
        .max_queue(args.max_queue)
        .vram(args.vram)
        .salt(&args.salt)
        .echo(args.echo)
        .burn(args.burn)
        .lenient();
    if args.instant {
        builder = builder.instant();
    }
    if let Some(tokens) = args.tokens {
        builder = builder.tokens(tokens);
    }
    for model in args.models {
        builder = builder.model(model);
    }
    for device in &args.devices {
        builder = builder.device(match &args.device_dir {
            None => Device::new(device, args.profile),
            Some(dir) => Device::between_processes(device, args.profile, dir)
                .with_context(|| format!("make the device directory {}", dir.display()))?,
        });
    }
    for fault in &args.faults {
        builder = builder.fault(fault);
    }
    if args.marks {
        builder = builder.marks();
    }
    if let Some(addr) = args.control {
        builder = builder.control(addr);
    }
    let name = match args.name {
        Some(name) => name,
        None => chance_name()?,
    };
    builder.name(&name).try_start().await.context("start the double")
}

/// A name by chance: two network namespaces can have one address, and two containers one process number.
fn chance_name() -> Result<String> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("draw a name")?;
    Ok(format!("double-{:08x}", u32::from_le_bytes(bytes)))
}

#[expect(clippy::print_stdout, reason = "the line that tells the starter where it listens")]
fn say(double: &Double) -> Result<()> {
    if let Some(control) = double.control_addr() {
        println!("control {control}");
    }
    println!("listening {}", double.addr());
    std::io::stdout().flush().context("say where it listens")
}

fn model(text: &str) -> Result<Model> {
    let mut parts = text.split(',');
    let mut model = Model::new(parts.next().unwrap_or_default());
    for part in parts {
        let (key, value) = part.split_once('=').with_context(|| format!("`{part}` is not KEY=VALUE"))?;
        let number = || value.parse().with_context(|| format!("`{value}` is not a number"));
        model = match key {
            "size" => model.size(number()?),
            "ctx" => model.context(number()?),
            "digest" => model.digest(value),
            "weights" => model.weights(value),
            "caps" => model.capabilities(&value.split('+').collect::<Vec<_>>()),
            _ => bail!("`{key}` is no key of a model: size, ctx, digest, weights, caps"),
        };
    }
    Ok(model)
}
