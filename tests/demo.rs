//! What `cargo run --release --bin demo` shows: a mesh of three agents, and the same work done three ways.
//!
//! Everything is real but the engines, and it says so. The doubles slow each other as two engines on one machine
//! do (`ollama_double/devices.rs` has the figures and where they come from); tropa finds out by itself, from
//! evidence, that two of the three installs are one machine.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use tropa_agent::{
    Agent, Config, device_lock::LockPlaces, evidence::Root, ollama::OllamaUrl, policy::Policy,
    runtime_dir::RuntimePlaces,
};
use tropa_coordinator::{
    args::{Global, JobArgs, OutputArgs, RunArgs, When},
    assemble::{Assembly, passing_key},
    clock::Clock,
    exit::{Exit, Failed},
    machines::Report,
    settings::Settings,
    submit,
};

use crate::{
    harness::declare,
    ollama_double::{Device, Double, Profile, Span},
    spread::{self, Way},
};

/// The model of the doubles.
const MODEL: &str = "tiny:latest";

/// A dozen prompts of no importance.
const CHUNKS: usize = 12;

/// Tokens of each answer, and the time of one: a fifth of a second an answer.
const TOKENS: u64 = 40;
const TOKEN_US: u64 = 5_000;

/// Columns of the picture of who ran when.
const COLUMNS: usize = 60;

/// What was asked of the demo.
#[derive(Debug)]
pub struct Options {
    /// One JSON object instead of text.
    pub json: bool,
    /// What to ask the real Ollama.
    pub prompt: String,
    /// The real Ollama; none: the usual one.
    pub ollama: Option<String>,
    /// Its model; none: the one that is loaded, else the only one.
    pub model: Option<String>,
}

/// Runs the demo and prints what it saw.
///
/// # Errors
/// When a part of the mesh does not start or a job does not end well.
pub async fn run(options: Options) -> Result<()> {
    let say = Say { text: !options.json };
    let place = Place::new()?;
    say.line(
        "Three Ollama installs, with doubles in place of the engines: all times below are SIMULATED engines;",
    );
    say.line(
        "mesh, evidence, plan, journal and results are the real thing. Two installs are on this machine,",
    );
    say.line("the third is declared to be on another one.\n");

    let doubles = Doubles::start().await;
    let mut agents = Vec::new();
    for (label, double, far) in
        [("one", &doubles.one, false), ("two", &doubles.two, false), ("far", &doubles.far, true)]
    {
        agents.push(Running::start(&place, label, double.addr(), far).await?);
    }
    let report = roster(&place).await?;
    say.line(&report.text(true));

    let input = place.file("prompts.txt", &prompts())?;
    let sequential = timed(one_after_the_other(&doubles)).await?;
    let by_address = timed(spread_by_address(&doubles)).await?;
    let before = doubles.mark();
    let began = now();
    let out = place.path("answers.jsonl");
    let tropa = timed(job(&place, &input, &out, None, true)).await?;
    let (results, failed) = read_results(&out)?;
    let spans = doubles.since(before);
    let overlap = overlap(&spans);
    say.line("Who ran what when (each letter is a chunk, time goes to the right):\n");
    say.line(&picture(&spans, began, &doubles));
    say.line(&format!("{CHUNKS} prompts, {TOKENS} tokens each, on simulated engines:"));
    say.line(&format!("  one after the other, on one install    {:.1} s", sequential.as_secs_f64()));
    say.line(&format!("  spread by address, a third each        {:.1} s", by_address.as_secs_f64()));
    say.line(&format!("  tropa, one install a machine           {:.1} s", tropa.as_secs_f64()));
    say.line(&format!(
        "  time that two installs of one machine worked at once under tropa: {} ms\n",
        overlap.as_millis()
    ));
    for agent in agents {
        agent.stop().await;
    }

    let real = real(&options, &place, say).await?;
    if options.json {
        print(
            &json!({
                "schema": "tropa.demo/1",
                "installs": report.installs,
                "machines": report.machines.len(),
                "chunks": results.len(),
                "failed": failed,
                "overlap_ms": u64::try_from(overlap.as_millis()).unwrap_or(u64::MAX),
                "sequential_s": rounded(sequential),
                "by_address_s": rounded(by_address),
                "tropa_s": rounded(tropa),
                "real": real,
            })
            .to_string(),
        )?;
    }
    Ok(())
}

/// Everything that the demo writes, removed at its end.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tropa-demo").tempdir().context("making a directory")?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    fn runtime(&self) -> RuntimePlaces {
        RuntimePlaces::new(vec![self.path("run/agents")])
    }

    fn settings(&self, ollama: Option<&str>, declared: bool) -> Result<Settings> {
        let global = Global {
            ollama: ollama.map(ToOwned::to_owned),
            allow_declared: declared,
            progress: When::Never,
            quiet: true,
            runtime_dir: Some(self.path("run")),
            ..Global::default()
        };
        let mut settings = Settings::resolve(&global).map_err(sentence)?;
        // Nothing of the user's own is read or written, the mesh of the user least of all.
        settings.state = self.path("state");
        settings.peers = Vec::new();
        settings.secret = None;
        settings.mdns = false;
        settings.locks = LockPlaces { system: self.path("lanes"), user: None };
        Ok(settings)
    }
}

/// The three engines that are none.
struct Doubles {
    one: Double,
    two: Double,
    far: Double,
}

impl Doubles {
    async fn start() -> Self {
        let here = Device::new("this machine", Profile::Oversubscribed);
        let there = Device::new("another machine", Profile::Oversubscribed);
        let double = |name: &str, device: &Device| {
            Double::builder()
                .version("0.24.0")
                .model(MODEL)
                .name(name)
                .tokens(TOKENS)
                .decode_us(TOKEN_US)
                .device(device.clone())
                .start()
        };
        Self {
            one: double("one", &here).await,
            two: double("two", &here).await,
            far: double("far", &there).await,
        }
    }

    fn all(&self) -> [&Double; 3] {
        [&self.one, &self.two, &self.far]
    }

    fn mark(&self) -> usize {
        self.spans().len()
    }

    fn since(&self, mark: usize) -> Vec<Span> {
        self.spans().split_off(mark)
    }

    /// All work on both machines, by start.
    fn spans(&self) -> Vec<Span> {
        let mut spans = self.one.timeline();
        spans.extend(self.far.timeline());
        spans.sort_by_key(|span| span.start);
        spans
    }
}

/// An agent at work in this process.
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(place: &Place, label: &str, ollama: SocketAddr, far: bool) -> Result<Self> {
        let (root, locks) = if far {
            let root = place.path("another-machine");
            declare(&root, 7)?;
            (Root::declared(root), place.path("lanes-far"))
        } else {
            (Root::live(), place.path("lanes"))
        };
        let config = Config {
            ollama: OllamaUrl::parse(&format!("http://{ollama}"), false)?,
            policy: Policy::default(),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            peers: Vec::new(),
            secret: None,
            mdns: false,
            lane: None,
            log: None,
            label: label.to_owned(),
            width: 1,
            // Not every machine can be told by evidence from one that is only declared: a virtual machine might
            // run on it. So the operator of the demo says it, as one says it for a hypervisor's guests.
            machine: match label {
                "one" => Some("this machine".to_owned()),
                "far" => Some("another machine".to_owned()),
                _ => None,
            },
            root,
            lock_dir: LockPlaces { system: locks, user: None }.choose(),
            runtime: Some(place.runtime()),
            state: place.path("state"),
            memory: None,
        };
        let agent = Agent::start(config).await.with_context(|| format!("starting the agent {label}"))?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let _ = agent.run(async { drop(stopped.await) }).await;
        });
        Ok(Self { stop, task })
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

async fn roster(place: &Place) -> Result<Report> {
    let settings = place.settings(None, true)?;
    let key = passing_key().map_err(sentence)?;
    let mut assembly = Assembly::gather(&settings, key, Clock::start()).await.map_err(sentence)?;
    let report = Report::of(assembly.members.view());
    assembly.finish().await;
    Ok(report)
}

/// Runs a job through the coordinator's own code.
async fn job(
    place: &Place,
    input: &Path,
    out: &Path,
    ollama: Option<(&str, Option<&str>)>,
    declared: bool,
) -> Result<()> {
    let settings = place.settings(ollama.map(|(url, _)| url), declared)?;
    let args = RunArgs {
        input: input.to_owned(),
        job: JobArgs {
            model: ollama.and_then(|(_, model)| model.map(ToOwned::to_owned)),
            ..JobArgs::default()
        },
        output: OutputArgs { output: Some(out.to_owned()), ..OutputArgs::default() },
    };
    match submit::run(args, &settings, Clock::start()).await {
        Ok(Exit::Done) => Ok(()),
        Ok(other) => Err(anyhow!("the job ended with {other:?}")),
        Err(failed) => Err(sentence(failed)),
    }
}

async fn one_after_the_other(doubles: &Doubles) -> Result<()> {
    spread::send(Way::ByAddress, &[doubles.one.addr()], MODEL, 512, &lines()).await
}

/// What a tool does that takes every address for a machine: a third of the prompts to each, all at once.
async fn spread_by_address(doubles: &Doubles) -> Result<()> {
    spread::send(Way::ByAddress, &doubles.all().map(Double::addr), MODEL, 512, &lines()).await
}

fn lines() -> Vec<String> {
    prompts().lines().map(ToOwned::to_owned).collect()
}

/// One prompt through a real Ollama, where one answers; `null` where none does.
async fn real(options: &Options, place: &Place, say: Say) -> Result<Value> {
    let mut settings = place.settings(options.ollama.as_deref(), false)?;
    settings.runtime = RuntimePlaces::new(vec![place.path("run-real/agents")]);
    let key = passing_key().map_err(sentence)?;
    let mut assembly = Assembly::gather(&settings, key, Clock::start()).await.map_err(sentence)?;
    let report = Report::of(assembly.members.view());
    let answers = assembly.members.view().installs.iter().any(|install| install.out.is_none());
    assembly.finish().await;
    if !answers {
        say.line("No Ollama answers on this machine, so there is no second part. With one running, the same command");
        say.line("sends a prompt of yours the real way: cargo run --release --bin demo -- --prompt 'why is the sky blue?'");
        return Ok(Value::Null);
    }
    say.line("An Ollama answers on this machine. The real roster:\n");
    say.line(&report.text(false));
    let input = place.file("real.txt", &options.prompt.replace('\n', " "))?;
    let out = place.path("real.jsonl");
    let url = settings.ollama.to_string();
    job(place, &input, &out, Some((&url, options.model.as_deref())), false).await?;
    let (results, _) = read_results(&out)?;
    let result = results.first().context("the job has no result")?;
    let text = result["text"].as_str().unwrap_or_default();
    say.line(&format!("> {}\n", options.prompt));
    say.line(&tropa_coordinator::terminal::escaped(text).to_string());
    Ok(json!({
        "model": result["tropa"]["model"],
        "machines": report.machines.len(),
        "text_bytes": text.len(),
    }))
}

fn read_results(path: &Path) -> Result<(Vec<Value>, usize)> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let rows = crate::harness::results(&text)?;
    let failed = rows.iter().filter(|row| !row["error"].is_null()).count();
    Ok((rows, failed))
}

/// How long different installs worked at once on one machine.
fn overlap(spans: &[Span]) -> Duration {
    let mut total = Duration::ZERO;
    for (at, a) in spans.iter().enumerate() {
        for b in &spans[at + 1..] {
            if a.device == b.device && a.install != b.install {
                let (Some(a_end), Some(b_end)) = (a.end, b.end) else { continue };
                total += a_end.min(b_end).saturating_duration_since(a.start.max(b.start));
            }
        }
    }
    total
}

fn picture(spans: &[Span], began: Instant, doubles: &Doubles) -> String {
    let end = spans.iter().filter_map(|span| span.end).max().unwrap_or(began);
    let total = end.saturating_duration_since(began).as_secs_f64().max(1e-3);
    let column = |at: Instant| {
        let share = at.saturating_duration_since(began).as_secs_f64() / total;
        ((share * COLUMNS as f64) as usize).min(COLUMNS - 1)
    };
    let mut text = String::new();
    let mut letters = (b'a'..=b'z').map(char::from).cycle();
    let mut rows: Vec<(String, Vec<char>)> =
        doubles.all().iter().map(|double| (double.name().to_owned(), vec!['.'; COLUMNS])).collect();
    for span in spans {
        let letter = letters.next().unwrap_or('*');
        let Some((_, row)) = rows.iter_mut().find(|(name, _)| *name == span.install) else { continue };
        let last = column(span.end.unwrap_or(end));
        for cell in &mut row[column(span.start)..=last] {
            *cell = letter;
        }
    }
    for (name, row) in rows {
        let machine = if name == "far" { "another machine (declared)" } else { "this machine" };
        text.push_str(&format!("  {name:<4} {}  {machine}\n", row.into_iter().collect::<String>()));
    }
    text
}

fn prompts() -> String {
    (1..=CHUNKS).map(|n| format!("Tell me fact number {n} about llamas\n")).collect()
}

async fn timed(work: impl Future<Output = Result<()>>) -> Result<Duration> {
    let began = now();
    work.await?;
    Ok(began.elapsed())
}

#[expect(clippy::disallowed_methods, reason = "the demo measures, so it owns the clock")]
fn now() -> Instant {
    Instant::now()
}

fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

fn sentence(failed: Failed) -> anyhow::Error {
    failed.error
}

#[derive(Clone, Copy)]
struct Say {
    text: bool,
}

impl Say {
    fn line(self, text: &str) {
        if self.text {
            // A closed pipe ends the demo's use, not the demo.
            let _ = print(text);
        }
    }
}

fn print(text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).context("writing to stdout")
}
