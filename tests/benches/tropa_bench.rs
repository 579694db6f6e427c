//! `tropa bench` on real Ollamas that are pinned to cores, with tools beside it that know addresses only.
//!
//! `tests/benches/bench.sh` makes the model and runs this; by hand it is
//! `cargo bench -p tropa-tests --bench tropa_bench [-- OUT_DIR [ROUNDS [PROMPTS [SET_UP]]]]` with the variables of
//! the tests of real Ollama, and `TROPA_BENCH_GGUF` for a model that keeps a core busy. Without an Ollama it says `skipped`.
//!
//! Two set-ups of one machine with two cores: `shared`, two installs that both use both cores, which tropa counts as
//! one machine; `distinct`, one core for each install, and evidence declared for two machines, since two containers or
//! processes of one kernel are one to tropa. Each writes one file: what `tropa bench --json` says, and the baselines.

use std::{net::SocketAddr, path::PathBuf, process::Stdio, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tropa_tests::{
    harness::{Hardware, Programs, World},
    real_ollama::RealOllama,
    skipped,
    spread::{self, Way},
};

/// Tokens of an answer: a third of a second of the model that `bench.sh` makes, on one core.
const TOKENS: u32 = 48;

/// The context of all requests; that of `spread` too, so that nobody makes another reload the model.
const NUM_CTX: u32 = 1024;

/// Rounds of the tools that know addresses only: twenty times slower than the rest, so few of them take most of the
/// time, and their spread is no matter of percents.
const BASELINE_ROUNDS: u32 = 3;

/// A set-up.
struct SetUp {
    name: &'static str,
    /// The cores of each install.
    cores: [&'static [usize]; 2],
    hardware: [Hardware; 2],
    /// What the model's file says besides.
    parameters: &'static str,
}

const SET_UPS: [SetUp; 2] = [
    SetUp {
        name: "shared",
        cores: [&[0, 1], &[0, 1]],
        hardware: [Hardware::This, Hardware::This],
        parameters: "",
    },
    SetUp {
        name: "distinct",
        cores: [&[0], &[1]],
        hardware: [Hardware::Declared(1), Hardware::Declared(2)],
        // Ollama counts the cores of the machine and not those that it may use; two threads on one core would wait
        // for each other.
        parameters: "PARAMETER num_thread 1\n",
    },
];

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let out = PathBuf::from(args.next().unwrap_or_else(|| "benches/results".to_owned()));
    let rounds = args.next().map_or(Ok(5), |text| text.parse()).context("ROUNDS")?;
    let prompts = args.next().map_or(Ok(8), |text| text.parse()).context("PROMPTS")?;
    let only = args.next();
    if let Err(reason) = RealOllama::find() {
        skipped(&reason);
        return Ok(());
    }
    let cores = std::thread::available_parallelism()?.get();
    if cores < 2 {
        skipped("one core cannot be shared out");
        return Ok(());
    }
    for set_up in SET_UPS.iter().filter(|set_up| only.as_deref().is_none_or(|only| only == set_up.name)) {
        let measured = measure(set_up, rounds, prompts)?;
        let path = out.join(format!("bench-{}.json", set_up.name));
        std::fs::write(&path, serde_json::to_string_pretty(&measured)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
        say(&format!("raw data: {}\n", path.display()));
    }
    Ok(())
}

fn measure(set_up: &SetUp, rounds: u32, prompts: usize) -> Result<Value> {
    let models = tempfile::tempdir()?;
    let [one, two] = set_up.cores.map(|cores| RealOllama::start_on(cores, models.path(), &[]));
    let installs = [one?, two?];
    let found = RealOllama::find().map_err(anyhow::Error::msg)?;
    let gguf = std::env::var_os("TROPA_BENCH_GGUF").map_or(found.model, PathBuf::from);
    installs[0].create_with("bench", &gguf, set_up.parameters)?;
    let world = World::new(Programs {
        tropa: env!("CARGO_BIN_EXE_tropa-under-test").into(),
        agent: env!("CARGO_BIN_EXE_tropa-agent-under-test").into(),
        double: env!("CARGO_BIN_EXE_ollama-double").into(),
    })?;
    let labels = ["den", "attic"];
    let mut agents = Vec::new();
    for ((label, install), hardware) in labels.iter().zip(&installs).zip(set_up.hardware) {
        agents.push(world.agent(label, install.addr(), hardware, &[])?);
    }
    let raw = world.path("raw.json");
    let mut command: Vec<String> =
        ["bench", "-m", "bench", "--allow-declared", "--progress", "never"].map(Into::into).into();
    for (label, install) in labels.iter().zip(&installs) {
        command.extend(["--direct".into(), format!("{label}={}", install.url())]);
    }
    let numbers = [
        ("--rounds", rounds.to_string()),
        ("--prompts", prompts.to_string()),
        ("--max-tokens", TOKENS.to_string()),
        ("--num-ctx", NUM_CTX.to_string()),
        ("--limit", "60".to_owned()),
        ("-o", raw.display().to_string()),
    ];
    command.extend(numbers.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let output = world.tropa(&command).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tropa bench failed: {said}");
    say(&format!("{}\n{}", set_up.name, String::from_utf8_lossy(&output.stdout)));
    let bench: Value = serde_json::from_slice(&std::fs::read(&raw)?)?;
    let addresses = installs.each_ref().map(RealOllama::addr);
    let baselines = baselines(addresses, rounds, prompts)?;
    Ok(json!({
        "schema": "tropa.bench-set-up/1", "set_up": set_up.name, "ollama": bench["installs"][0]["version"],
        "cores": set_up.cores, "model_parameters": set_up.parameters, "bench": bench, "baselines": baselines,
    }))
}

/// The same number of answers of the same length as tools send for them that know addresses only.
fn baselines(installs: [SocketAddr; 2], rounds: u32, prompts: usize) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let texts: Vec<String> =
        (0..prompts).map(|n| format!("{n:02}: what do people believe of llamas?")).collect();
    let ways = [
        ("one_install", "one at a time on one install", Way::Slots(1)),
        ("by_address", "every address counted, prompts dealt out", Way::ByAddress),
        ("unique_addresses", "unique addresses counted", Way::UniqueAddresses),
        ("parallel_hosts", "as GNU parallel with both in its list", Way::Slots(2)),
        ("parallel_j4", "as GNU parallel -j4 on one install", Way::Slots(4)),
    ];
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    for round in 0..=rounds.min(BASELINE_ROUNDS) {
        for (at, (name, _, way)) in ways.iter().enumerate() {
            let only = matches!(*name, "one_install" | "parallel_j4");
            let installs = if only { &installs[..1] } else { &installs[..] };
            // The first round warms.
            let texts = if round > 0 { &texts[..] } else { &texts[..texts.len().min(2)] };
            let start = now();
            runtime.block_on(spread::send(*way, installs, "bench:latest", TOKENS, texts))?;
            if round > 0 {
                seconds[at].push(start.elapsed().as_secs_f64());
            }
        }
    }
    let rows = ways.iter().zip(seconds).map(|((name, what, way), seconds)| {
        let only = matches!(*name, "one_install" | "parallel_j4");
        let counted = if only { 1 } else { spread::counted(*way, &installs) };
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        say(&format!(
            "{what}: {counted} counted, {:.2} s ({:.2} to {:.2})",
            sorted[sorted.len() / 2],
            sorted[0],
            sorted[sorted.len() - 1]
        ));
        json!({"name": name, "what": what, "machines_counted": counted, "seconds": seconds})
    });
    Ok(rows.collect())
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::disallowed_methods, reason = "a benchmark owns its clock")]
fn now() -> Instant {
    Instant::now()
}
