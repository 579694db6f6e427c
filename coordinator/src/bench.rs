//! `tropa bench`: what this mesh gains, measured on it, with the same prompts for everybody.
//!
//! The set-ups take turns, each round in another order, after one pass that loads and warms everything. What a tool
//! would get that counts addresses cannot be measured through the agents, whose locks keep installs that share
//! hardware apart; no agent has a switch that would let a coordinator past them, since whoever may submit work could
//! then use it. So that is measured past the agents, by plain clients, and only for installs that the user names
//! with their addresses (`direct.rs`); an install that is not named is measured through its agent where that says
//! the same. `installs.rs` has who takes part, `job.rs` is the way through the mesh, `report.rs` works out what it
//! comes to.

mod direct;
mod installs;
mod job;
mod prompts;
mod raw;
pub mod report;
mod spread;
mod turns;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Cursor,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tropa_agent::ollama::{OllamaUrl, Request, UrlError};
use tropa_proto::id::{AgentId, JobId, hex};

use self::{
    direct::{Client, send},
    installs::{Candidate, candidates, reach, requests},
    job::Work,
    raw::{Raw, environment, load_average, processor_time, stolen},
    report::{Attempt, Kind, Report, Run, SetUp, Way},
    turns::{has_turn, order},
};
use crate::{
    args::BenchArgs,
    assemble::{Assembly, passing_key},
    clock::Clock,
    exit::{Exit, Failed, OrExit as _, Outcome},
    incoming::Incoming,
    job::Input,
    members::Members,
    plan::Together,
    progress::Progress,
    settings::Settings,
    stdout::{print, print_json},
    stop::Stop,
    submit,
};

pub use self::prompts::PROMPTS;

/// Built-in prompts, unless told otherwise: some for each of several installs.
const USUAL_PROMPTS: u32 = 12;

/// Tokens of an answer, unless told otherwise: enough that writing outweighs the request.
const USUAL_TOKENS: u32 = 64;

/// Items of a file that are taken: their bodies are held in memory, and every round sends them several times.
const MAX_ITEMS: u32 = 1000;

/// Prompts that each install is tried with to find the best.
const TRIED: usize = 6;

/// A measurement at work.
struct Bench<'a> {
    members: &'a mut Members,
    work: Work,
    candidates: Vec<Candidate>,
    requests: Arc<[Request]>,
    limit: Duration,
    settings: &'a Settings,
    clock: Clock,
    stop: Stop,
    progress: Progress,
}

/// `tropa bench`.
///
/// # Errors
/// [`Exit::Usage`] for an agent that is not there or an address that is none, [`Exit::Input`] for prompts that
/// cannot be used, [`Exit::NothingCanRun`] where no install can run them or a named address is not that install.
pub async fn bench(mut args: BenchArgs, settings: &Settings, clock: Clock) -> Outcome {
    settings.job.fill(&mut args.job);
    args.job.max_tokens.get_or_insert(USUAL_TOKENS);
    // Equal lengths for everybody.
    args.job.seed.get_or_insert(1);
    let mut stop = Stop::new()?;
    let urls = args.direct.iter().map(|(agent, url)| Ok((agent.as_str(), OllamaUrl::parse(url, true)?)));
    let urls: Vec<(&str, OllamaUrl)> =
        urls.collect::<Result<_, UrlError>>().context("--direct").or_exit(Exit::Usage)?;
    let raw = args.output.as_deref().map(Raw::create).transpose()?;
    let incoming = Incoming::open(&settings.state, JobId::random().or_exit(Exit::Io)?)?;
    let prepared = stop.cuts(prepare(&args, incoming.copy())).await?;
    let mut assembly = stop.cuts(Assembly::gather(settings, passing_key()?, clock)).await?;
    let measured = async {
        stop.cuts(async {
            assembly.members.settle(settings.wait).await;
            Ok(())
        })
        .await?;
        let (default, models) = submit::choose(&mut assembly, &prepared, &args.job)?;
        let own = assembly.own.is_some();
        let mut candidates = candidates(assembly.members.view(), &models)?;
        reach(&mut candidates, &urls, own, &models, settings).await?;
        let dir = incoming.copy().with_file_name("jobs");
        let work = Work { prepared, default, models, dir };
        let requests = requests(&work, clock)?;
        let bench = Bench {
            members: &mut assembly.members,
            work,
            candidates,
            requests,
            limit: Duration::from_secs(args.limit),
            settings,
            clock,
            stop,
            progress: Progress::new(settings.progress, settings.quiet),
        };
        bench.measure(&args).await
    };
    let measured = measured.await;
    assembly.finish().await;
    let report = measured?;
    if let Some(raw) = raw {
        raw.write(&report)?;
    }
    if settings.json {
        print_json(&report)?;
    } else {
        print(&report.text())?;
    }
    Ok(if report.is_sound() { Exit::Done } else { Exit::SomeFailed })
}

/// Reads the prompts.
async fn prepare(args: &BenchArgs, copy: PathBuf) -> Result<crate::job::Prepared, Failed> {
    let prepared = match &args.input {
        Some(input) => submit::prepare(input, submit::options(&args.job), copy).await?,
        None => {
            let lines = prompts::lines(args.prompts.unwrap_or(USUAL_PROMPTS));
            let options = submit::options(&args.job);
            crate::job::prepare(Input::Stream(&mut Cursor::new(lines)), &copy, options)
                .or_exit(Exit::Input)?
        }
    };
    let items = prepared.items();
    if !(2..=MAX_ITEMS).contains(&items) {
        let why = format!("{items} prompts: a measurement takes 2 to {MAX_ITEMS}");
        return Err(Failed::new(Exit::Input, why));
    }
    if prepared.embeds() {
        return Err(Failed::new(
            Exit::Input,
            "embeddings are not measured; give prompts that are answered in words",
        ));
    }
    Ok(prepared)
}

impl Bench<'_> {
    async fn measure(mut self, args: &BenchArgs) -> Result<Report, Failed> {
        let started_ms = self.clock.wall_ms();
        self.warm().await?;
        self.try_each().await?;
        let (mut set_ups, not_measured) = self.set_ups(&args.widths);
        let distinct = self.distinct();
        let (mut runs, mut spent, mut measured) =
            (Vec::new(), vec![0.0; set_ups.len()], vec![0; set_ups.len()]);
        for round in 1..=args.rounds {
            for at in order(set_ups.len(), round) {
                if !has_turn(&spent, measured[at], at) {
                    continue;
                }
                self.say(&format!("round {round} of {}: {}", args.rounds, set_ups[at].name));
                let run = self.run(&set_ups[at], at, round).await?;
                spent[at] += run.seconds;
                measured[at] += 1;
                runs.push(run);
            }
        }
        for set_up in &mut set_ups {
            set_up.installs.sort_unstable();
            set_up.installs.dedup();
        }
        let machines: BTreeSet<_> = self.candidates.iter().map(|c| c.install.machine).collect();
        let mut report = Report {
            schema: "tropa.bench/1",
            started_ms,
            environment: environment(),
            models: self
                .work
                .models
                .iter()
                .map(|m| (m.name.clone(), hex(&m.fingerprint)))
                .collect::<BTreeMap<_, _>>(),
            prompts: self.requests.len(),
            max_tokens: args.job.max_tokens.unwrap_or(USUAL_TOKENS),
            num_ctx: self.work.prepared.num_ctx(),
            rounds: args.rounds,
            installs: self.candidates.iter().map(|candidate| candidate.place.clone()).collect(),
            machines: machines.len(),
            distinct: distinct.len(),
            set_ups,
            not_measured,
            figures: Vec::new(),
            aims: Vec::new(),
            runs,
        };
        report.conclude();
        Ok(report)
    }

    /// Loads the models everywhere, and lets tropa learn what it learns in any job.
    async fn warm(&mut self) -> Result<(), Failed> {
        self.say("loading and warming");
        for at in 0..self.candidates.len() {
            self.alone(at, 2).await?;
        }
        self.through(None).await.map(drop)
    }

    /// Tries each install alone for a moment; where there is only one, it is the best.
    async fn try_each(&mut self) -> Result<(), Failed> {
        if self.candidates.len() == 1 {
            return Ok(());
        }
        for at in 0..self.candidates.len() {
            self.say(&format!("trying {} alone", self.candidates[at].place.label));
            self.candidates[at].tried = self.alone(at, TRIED).await?;
        }
        Ok(())
    }

    /// Runs some prompts on one install, past its agent where there is a way, and gives the seconds per prompt.
    async fn alone(&mut self, at: usize, count: usize) -> Result<f64, Failed> {
        match self.candidates[at].direct.clone() {
            Some(engine) => {
                let some: Arc<[Request]> = self.requests.iter().take(count).cloned().collect();
                let (seconds, attempts) = self.direct(&[(at, engine)], &some).await?;
                if let Some(bad) = attempts.iter().find(|attempt| attempt.outcome != "done") {
                    let label = &self.candidates[at].place.label;
                    let why = format!("{label} does not answer a prompt on its own: {}", bad.outcome);
                    return Err(Failed::new(Exit::NothingCanRun, why));
                }
                Ok(seconds / some.len() as f64)
            }
            None => {
                let (seconds, _) = self.through(Some(self.candidates[at].install.agent)).await?;
                Ok(seconds / self.requests.len() as f64)
            }
        }
    }

    /// The installs that may work at the same time, the fastest first.
    fn distinct(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.candidates.len()).collect();
        order.sort_by(|a, b| {
            let [one, two] = [a, b].map(|at| &self.candidates[*at]);
            one.tried.total_cmp(&two.tried).then(one.install.agent.cmp(&two.install.agent))
        });
        let mut together = Together::default();
        order.retain(|at| together.admit(&self.candidates[*at].install));
        order
    }

    /// What can be measured here, and what cannot and why.
    fn set_ups(&self, widths: &[u16]) -> (Vec<SetUp>, Vec<String>) {
        let distinct = self.distinct();
        let Some(&best) = distinct.first() else { return (Vec::new(), Vec::new()) };
        let label = |at: usize| self.candidates[at].place.label.as_str();
        let reached = |at: &usize| self.candidates[*at].direct.is_some();
        let all: Vec<usize> = (0..self.candidates.len()).collect();
        let mut not_measured = Vec::new();
        let way = if reached(&best) { Way::Direct } else { Way::Agent };
        let through = if way == Way::Agent { ", through its agent" } else { "" };
        let mut set_ups = vec![SetUp {
            name: format!("One at a time, {}{through}", label(best)),
            kind: Kind::OneAtATime,
            way,
            installs: vec![best],
            at_once: 1,
        }];
        let widths: BTreeSet<usize> = widths.iter().map(|width| usize::from(*width)).collect();
        for width in widths {
            if way == Way::Direct {
                set_ups.push(SetUp {
                    name: format!("{width} at once, {}", label(best)),
                    kind: Kind::Fixed,
                    way,
                    installs: vec![best; width],
                    at_once: width,
                });
            } else {
                not_measured.push(format!("{width} at once: {}", self.no_way(&[best])));
            }
        }
        let mut clients = |name: String, kind, installs: &[usize]| {
            let missing: Vec<usize> = installs.iter().copied().filter(|at| !reached(at)).collect();
            if missing.is_empty() {
                let (installs, at_once) = (installs.to_vec(), installs.len());
                set_ups.push(SetUp { name, kind, way: Way::Direct, installs, at_once });
            } else {
                not_measured.push(format!("{name}: {}", self.no_way(&missing)));
            }
        };
        if all.len() > distinct.len() {
            clients(format!("By address, {} installs", all.len()), Kind::ByAddress, &all);
        }
        if distinct.len() > 1 {
            clients(format!("{} independent clients", distinct.len()), Kind::Clients, &distinct);
        }
        let at_once = distinct.iter().map(|at| self.candidates[*at].install.width).sum();
        set_ups.push(SetUp {
            name: "tropa".into(),
            kind: Kind::Tropa,
            way: Way::Mesh,
            installs: all,
            at_once,
        });
        (set_ups, not_measured)
    }

    fn no_way(&self, installs: &[usize]) -> String {
        let labels: Vec<&str> = installs.iter().map(|at| self.candidates[*at].place.label.as_str()).collect();
        let flags: Vec<String> = labels.iter().map(|label| format!("--direct {label}=URL")).collect();
        format!("needs a way past the agent of {}: {}", labels.join(", "), flags.join(" "))
    }

    /// Measures a set-up once.
    async fn run(&mut self, set_up: &SetUp, at: usize, round: u32) -> Result<Run, Failed> {
        let (load_average, before) = (load_average(), processor_time());
        let (seconds, attempts) = match set_up.way {
            Way::Direct => {
                let way = |at: &usize| Some((*at, self.candidates[*at].direct.clone()?));
                let clients: Vec<Client> = set_up.installs.iter().filter_map(way).collect();
                let requests = Arc::clone(&self.requests);
                self.direct(&clients, &requests).await?
            }
            Way::Agent => {
                let agent = set_up.installs.first().map(|at| self.candidates[*at].install.agent);
                self.through(agent).await?
            }
            Way::Mesh => self.through(None).await?,
        };
        let answered: BTreeSet<usize> = attempts
            .iter()
            .filter(|attempt| attempt.outcome == "done")
            .map(|attempt| attempt.chunk)
            .collect();
        Ok(Run {
            set_up: at,
            round,
            seconds,
            answered: answered.len(),
            output_tokens: attempts.iter().map(|attempt| u64::from(attempt.output_tokens)).sum(),
            at_once: attempts.iter().map(|attempt| attempt.busy_ms).sum::<f64>() / 1e3 / seconds,
            load_average,
            stolen: stolen(before, processor_time()),
            attempts,
        })
    }

    /// Sends requests past the agents; meanwhile the mesh is listened to, so that nobody takes us for gone.
    async fn direct(
        &mut self,
        clients: &[Client],
        requests: &Arc<[Request]>,
    ) -> Result<(f64, Vec<Attempt>), Failed> {
        let begin = self.clock.now();
        let sending = send(clients, requests, self.limit, self.clock);
        tokio::pin!(sending);
        loop {
            tokio::select! {
                attempts = &mut sending => {
                    return Ok((self.clock.now().saturating_sub(begin).as_secs_f64(), attempts?));
                }
                _ = self.members.next() => {}
                stopped = self.stop.next() => return Err(Failed::new(stopped.exit, "stopped; nothing is kept")),
            }
        }
    }

    async fn through(&mut self, only: Option<AgentId>) -> Result<(f64, Vec<Attempt>), Failed> {
        let places: BTreeMap<AgentId, usize> =
            self.candidates.iter().enumerate().map(|(at, candidate)| (candidate.install.agent, at)).collect();
        let place = |agent| places.get(&agent).copied();
        self.work.through(self.members, only, place, (self.settings, self.clock, &mut self.stop)).await
    }

    fn say(&self, what: &str) {
        self.progress.say(what);
    }
}
