//! `tropa bench` on real Ollamas that are pinned to cores, with tools beside it that know addresses only.
//!
//! `tests/benches/bench.sh` makes the model and runs this; by hand it is
//! `cargo bench -p tropa-tests --bench tropa_bench [-- OUT_DIR [ROUNDS [PROMPTS [SET_UP]]]]` with the variables of
//! the tests of real Ollama, and `TROPA_BENCH_GGUF` for a model that keeps a core busy. Without an Ollama it says
//! `skipped`.
//!
//! Three set-ups of one machine with two cores: `shared`, two installs that both use both cores, which tropa counts as
//! one machine; `distinct`, one core for each install, and evidence declared for two machines, since two containers or
//! processes of one kernel are one to tropa; `batching`, one install with `OLLAMA_NUM_PARALLEL=4`, whose best width
//! tropa has to find. Each writes one file: what `tropa bench --json` says, and the baselines.

use std::{net::SocketAddr, path::PathBuf, process::Stdio, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tropa_tests::{
    harness::{Hardware, Programs, World},
    real_ollama::RealOllama,
    skipped,
    spread::{self, Way},
};

/// The context of all requests; that of `spread` too, so that nobody makes another reload the model.
const NUM_CTX: u32 = 1024;

/// Rounds of the tools that know addresses only: twenty times slower than the rest, so few of them take most of the
/// time, and their spread is no matter of percents.
const BASELINE_ROUNDS: u32 = 2;

/// A set-up.
struct SetUp {
    name: &'static str,
    installs: &'static [Place],
    /// The environment of the installs.
    environment: &'static [(&'static str, &'static str)],
    /// What the model's file says besides.
    parameters: &'static str,
    /// Tokens of an answer.
    tokens: u32,
    /// Prompts, at least.
    prompts: usize,
    /// It has one round for so many of the others: its prompts are as many more.
    a_round_for: u32,
}

/// Where an install is.
struct Place {
    label: &'static str,
    cores: &'static [usize],
    hardware: Hardware,
}

const SET_UPS: [SetUp; 3] = [
    SetUp {
        name: "shared",
        installs: &[
            Place { label: "den", cores: &[0, 1], hardware: Hardware::This },
            Place { label: "attic", cores: &[0, 1], hardware: Hardware::This },
        ],
        environment: &[],
        parameters: "",
        // A third of a second of the model that `bench.sh` makes, on one core.
        tokens: 48,
        prompts: 2,
        a_round_for: 1,
    },
    SetUp {
        name: "distinct",
        installs: &[
            Place { label: "den", cores: &[0], hardware: Hardware::Declared(1) },
            Place { label: "attic", cores: &[1], hardware: Hardware::Declared(2) },
        ],
        environment: &[],
        // Ollama counts the cores of the machine and not those that it may use; two threads on one core would wait
        // for each other.
        parameters: "PARAMETER num_thread 1\n",
        tokens: 48,
        prompts: 2,
        a_round_for: 1,
    },
    SetUp {
        name: "batching",
        installs: &[Place { label: "den", cores: &[0, 1], hardware: Hardware::This }],
        environment: &[("OLLAMA_NUM_PARALLEL", "4")],
        parameters: "",
        // As many chunks as tropa tries wider steps with, and so short that they do not take all day.
        tokens: 16,
        prompts: 96,
        a_round_for: 5,
    },
];

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let out = PathBuf::from(args.next().unwrap_or_else(|| "benches/results".to_owned()));
    let rounds = args.next().map_or(Ok(20), |text| text.parse()).context("ROUNDS")?;
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
    let (rounds, prompts) = (rounds.div_ceil(set_up.a_round_for), prompts.max(set_up.prompts));
    let models = tempfile::tempdir()?;
    let start = |place: &Place| RealOllama::start_on(place.cores, models.path(), set_up.environment);
    let installs: Vec<RealOllama> = set_up.installs.iter().map(start).collect::<Result<_>>()?;
    let found = RealOllama::find().map_err(anyhow::Error::msg)?;
    let gguf = std::env::var_os("TROPA_BENCH_GGUF").map_or(found.model, PathBuf::from);
    installs[0].create_with("bench", &gguf, set_up.parameters)?;
    let world = World::new(Programs {
        tropa: env!("CARGO_BIN_EXE_tropa-under-test").into(),
        agent: env!("CARGO_BIN_EXE_tropa-agent-under-test").into(),
        double: env!("CARGO_BIN_EXE_ollama-double").into(),
    })?;
    let mut agents = Vec::new();
    for (place, install) in set_up.installs.iter().zip(&installs) {
        agents.push(world.agent(place.label, install.addr(), place.hardware, &[])?);
    }
    let raw = world.path("raw.json");
    let mut command: Vec<String> =
        ["bench", "-m", "bench", "--allow-declared", "--progress", "never"].map(Into::into).into();
    for (place, install) in set_up.installs.iter().zip(&installs) {
        command.extend(["--direct".into(), format!("{}={}", place.label, install.url())]);
    }
    let numbers = [
        ("--rounds", rounds.to_string()),
        ("--prompts", prompts.to_string()),
        ("--max-tokens", set_up.tokens.to_string()),
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
    let addresses: Vec<SocketAddr> = installs.iter().map(RealOllama::addr).collect();
    let baselines = baselines(&addresses, set_up.tokens, rounds, prompts)?;
    let cores: Vec<&[usize]> = set_up.installs.iter().map(|place| place.cores).collect();
    Ok(json!({
        "schema": "tropa.bench-set-up/1", "set_up": set_up.name, "ollama": bench["installs"][0]["version"],
        "cores": cores, "environment": set_up.environment, "model_parameters": set_up.parameters, "bench": bench,
        "baselines": baselines,
    }))
}

/// A tool that knows addresses only.
struct Tool {
    name: &'static str,
    what: &'static str,
    by: By,
    /// It gets one install, and not all.
    one: bool,
}

enum By {
    /// Clients of our own that follow its rule.
    Rule(Way),
    /// GNU parallel and curl, so many slots.
    Parallel(usize),
}

const TOOLS: [Tool; 5] = [
    Tool {
        name: "one_install",
        what: "one at a time on one install",
        by: By::Rule(Way::Slots(1)),
        one: true,
    },
    Tool {
        name: "by_address",
        what: "every address counted, prompts dealt out",
        by: By::Rule(Way::ByAddress),
        one: false,
    },
    Tool {
        name: "unique_addresses",
        what: "unique addresses counted",
        by: By::Rule(Way::UniqueAddresses),
        one: false,
    },
    Tool {
        name: "parallel_hosts",
        what: "GNU parallel with both in its list",
        by: By::Parallel(2),
        one: false,
    },
    Tool { name: "parallel_j4", what: "GNU parallel -j4 on one install", by: By::Parallel(4), one: true },
];

/// The same number of answers of the same length as tools send for them that know addresses only.
fn baselines(installs: &[SocketAddr], tokens: u32, rounds: u32, prompts: usize) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let texts: Vec<String> =
        (0..prompts).map(|n| format!("{n:02}: what do people believe of llamas?")).collect();
    let parallel = spread::gnu_parallel_version();
    if parallel.is_none() {
        skipped("no GNU parallel, or no curl");
    }
    let can = |tool: &&Tool| parallel.is_some() || matches!(tool.by, By::Rule(_));
    let tools: Vec<&Tool> = TOOLS.iter().filter(|tool| tool.one || installs.len() > 1).filter(can).collect();
    let given = |tool: &Tool| if tool.one { &installs[..1] } else { installs };
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); tools.len()];
    for round in 0..=rounds.min(BASELINE_ROUNDS) {
        for (tool, seconds) in tools.iter().zip(&mut seconds) {
            // The first round warms.
            let texts = if round > 0 { &texts[..] } else { &texts[..texts.len().min(2)] };
            let installs = given(tool);
            let start = now();
            match tool.by {
                By::Rule(way) => {
                    runtime.block_on(spread::send(way, installs, "bench:latest", tokens, texts))?;
                }
                By::Parallel(slots) => {
                    let slots: Vec<SocketAddr> = installs.iter().copied().cycle().take(slots).collect();
                    spread::gnu_parallel(&slots, "bench:latest", tokens, texts)?;
                }
            }
            if round > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
    }
    let rows = tools.iter().zip(seconds).map(|(tool, seconds)| {
        let (way, by) = match tool.by {
            By::Rule(way) => (way, None),
            By::Parallel(slots) => (Way::Slots(slots), parallel.as_deref()),
        };
        let counted = spread::counted(way, given(tool));
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        say(&format!(
            "{}: {counted} counted, {:.2} s ({:.2} to {:.2})",
            tool.what,
            sorted[sorted.len() / 2],
            sorted[0],
            sorted[sorted.len() - 1]
        ));
        json!({"name": tool.name, "what": tool.what, "by": by, "machines_counted": counted, "seconds": seconds})
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
