//! One way in for every job whose chunks build on each other: `tropa map`, `tropa write`, `tropa panel`.
//!
//! A command says what it asks and how its graph is built; everything else is the same for all: the mesh, the
//! models, the contexts, the journal, the work, and the text or the lines at the end. The graph is built when the
//! model is known, since what fits a request depends on it, and never from who else is there, so that the same job
//! asks the same things on one machine and on ten.

use std::collections::BTreeMap;

use anyhow::anyhow;
use serde::Serialize;
use serde_json::Value;
use tropa_proto::id::JobId;

use super::{OrCode as _, Spec, count::Count, exit_of, refusal};
use crate::{
    args::{AskArgs, OutputArgs},
    assemble::{Assembly, passing_key},
    clock::Clock,
    exit::{Exit, Failed, OrExit as _, Outcome},
    incoming::Incoming,
    job::{self, Density, JobOptions, Measured, Think, graph::Graph},
    journal::{Draft, Journal, Kind, require_space},
    plan::{self, Asked, Need, PinError, Pinned, Plan},
    resume::{Purpose, work},
    settings::Settings,
    speeds::Speeds,
    stdout::{print, print_json},
    stop::Stop,
    words::count,
};

/// The most context that a graph is built for where the user gives none, in tokens. Models are trained for more, and
/// the memory of an ordinary machine does not hold it.
pub const USUAL_CONTEXT: u32 = 8192;

/// What a command asks, beside its graph.
#[derive(Debug)]
pub struct GraphJob {
    /// What kind of job.
    pub kind: Kind,
    /// What was asked, for the journal; an object.
    pub spec: Value,
    /// SHA-256 of the input's own bytes, to recognise it.
    pub input_sha256: [u8; 32],
    /// What it asks of the models.
    pub ask: AskArgs,
    /// Where the results go.
    pub output: OutputArgs,
}

/// What a graph can be built with.
#[derive(Clone, Debug)]
pub struct Room {
    /// The model of nodes that name none; `None` where none was named and there are several.
    pub model: Option<Pinned>,
    /// Tokens that the prompt and the answer of one request may have together: `--num-ctx`, else what the model was
    /// trained for and no more than [`USUAL_CONTEXT`].
    pub context: u32,
    /// How the model counts text.
    pub density: Density,
}

/// A plan of a job whose chunks build on each other.
#[derive(Debug, Serialize)]
struct GraphPlan {
    #[serde(flatten)]
    plan: Plan,
    /// Chunks of the job.
    chunks: usize,
    /// How many chunks must run one after the other at least.
    depth: usize,
    /// Estimated tokens of all prompts, at worst.
    prompt_tokens: u64,
    /// Tokens of all answers, at most.
    output_tokens: u64,
    /// The chunk that needs most context.
    largest: String,
}

/// Submits the job and works on it to its end, or says what would happen where `--plan` asks for that.
///
/// # Errors
/// With the codes of `conventions.md` §3; what was committed stays in the journal.
pub async fn run(
    job: GraphJob,
    build: impl FnOnce(&Room) -> Result<Graph, Failed>,
    settings: &Settings,
    clock: Clock,
) -> Outcome {
    run_counted(job, |_| Vec::new(), build, settings, clock).await
}

/// As [`run`]; before the graph is built, the model reads samples of the texts that `texts` names, so that the room
/// says how it counts. The job then has the whole context of the room, with which the model is loaded by then. A plan
/// runs nothing, so it goes by the usual estimate.
///
/// # Errors
/// As [`run`].
pub(crate) async fn run_counted<'a>(
    mut job: GraphJob,
    texts: impl FnOnce(&Room) -> Vec<&'a str>,
    build: impl FnOnce(&Room) -> Result<Graph, Failed>,
    settings: &Settings,
    clock: Clock,
) -> Outcome {
    settings.job.fill_ask(&mut job.ask);
    let text = !settings.json;
    if text && job.output.as_completed {
        return Err(anyhow!("--as-completed writes lines: it needs --json")).or_exit(Exit::Usage);
    }
    let mut stop = Stop::new()?;
    let id = JobId::random().or_exit(Exit::Io)?;
    let dir = settings.jobs().join(id.to_string());
    let draft = if job.ask.plan { None } else { Some(Draft::create(&dir, id).or_code()?) };
    let key = draft.as_ref().map_or_else(passing_key, |draft| draft.key().or_code())?;
    let mut assembly = stop.cuts(Assembly::gather(settings, key, clock)).await?;
    let prepared = async {
        let (default, mut room) = room(&mut assembly, &job)?;
        let texts = if job.ask.plan { Vec::new() } else { texts(&room) };
        let mut context = 0;
        if let Some(model) = room.model.as_ref().filter(|_| !texts.is_empty()) {
            let incoming = Incoming::open(&settings.state, id)?;
            context = room.context;
            let count = Count { dir: &incoming.passing(), model, context };
            let counted = count.run(&texts, &mut assembly, settings, clock, &mut stop).await?;
            room.density = counted.unwrap_or_default();
        }
        let graph = build(&room)?;
        prepare(&mut assembly, &job, graph, default, room.density, context)
    };
    let prepared = match prepared.await {
        Ok(prepared) => prepared,
        Err(failed) => {
            assembly.finish().await;
            return Err(failed);
        }
    };
    let Some(draft) = draft else {
        let mut plan = prepared.plan(&mut assembly);
        let speeds = Speeds::open(&settings.state).0;
        plan.plan.estimate(assembly.members.view(), &prepared.models, &speeds, plan.asked());
        assembly.finish().await;
        return show(&plan, job.ask.why, settings);
    };
    require_space(&dir, prepared.measured.disk_bytes()).or_code()?;
    say_how(&prepared, &mut assembly, settings);
    let spec = Spec::new(job.spec.to_string(), job.input_sha256, &prepared.models, &job.output, text)?;
    let models = prepared.models.clone();
    let journal = take_in(draft, job.kind, prepared, spec, clock).await?;
    let purpose = Purpose { output: job.output, text, resumed: false, failed_before: 0 };
    work(assembly, journal, models, purpose, settings, clock, stop).await
}

/// Says how many chunks will run at a time and why, and what more machines would do for this job.
#[expect(clippy::print_stderr, reason = "messages go to stderr")]
fn say_how(prepared: &Prepared, assembly: &mut Assembly, settings: &Settings) {
    let plan = prepared.plan(assembly);
    if settings.quiet || plan.chunks == 1 {
        return;
    }
    let width = prepared.measured.graph().width();
    let alone = if plan.plan.at_once == 1 && width > 1 {
        format!(
            " So its {} chunks run one after the other; on more machines up to {width} of them would run at once.",
            plan.chunks
        )
    } else {
        String::new()
    };
    eprintln!("{}{alone}", crate::terminal::escaped(&plan.plan.summary));
}

/// A graph with its models.
struct Prepared {
    measured: Measured,
    default: String,
    models: Vec<Pinned>,
}

/// The model where nodes name none, or why there is none, and what a graph can be built with.
fn room(assembly: &mut Assembly, job: &GraphJob) -> Result<(Result<Pinned, PinError>, Room), Failed> {
    let own = assembly.own.is_some();
    let view = assembly.members.view();
    let need = Need::Completion;
    let default = match &job.ask.model {
        Some(name) => Ok(plan::pin(view, name, need).map_err(|error| refusal(&error, view, own))?),
        None => plan::default_model(view, need).and_then(|name| plan::pin(view, &name, need)),
    };
    let trained = default.as_ref().map_or(0, |model| model.context);
    let usual = if trained == 0 { USUAL_CONTEXT } else { trained.min(USUAL_CONTEXT) };
    let context = job.ask.num_ctx.unwrap_or(usual);
    let room = Room { model: default.clone().ok(), context, density: Density::default() };
    Ok((default, room))
}

/// Pins the models of a graph and checks that it fits them.
fn prepare(
    assembly: &mut Assembly,
    job: &GraphJob,
    graph: Graph,
    default: Result<Pinned, PinError>,
    density: Density,
    context: u32,
) -> Result<Prepared, Failed> {
    let own = assembly.own.is_some();
    let view = assembly.members.view();
    let refuse = |error: PinError| refusal(&error, view, own);
    let mut measured = Measured::new(graph, options(&job.ask), density)
        .map_err(|error| Failed { exit: exit_of(error.exit_code()), error: error.into() })?;
    measured.widen(context);
    let mut names = measured.models().clone();
    let default = match default {
        Ok(model) => model.name,
        Err(error) if measured.without_model() > 0 => return Err(refuse(error)),
        Err(_) => String::new(),
    };
    if measured.without_model() > 0 {
        names.insert(default.clone());
    }
    let pinned = names.iter().map(|name| plan::pin(view, name, Need::Completion));
    let models: Vec<Pinned> = pinned.collect::<Result<_, _>>().map_err(refuse)?;
    for model in models.iter().filter(|model| model.context > 0) {
        measured.cap(model.context);
    }
    for model in &models {
        if model.context > 0 && measured.num_ctx() > model.context {
            let error = anyhow!(
                "model.too_small: {} needs a context of {} tokens, {} was trained for {}; lower --max-tokens, shorten \
                 what is asked, or choose another model",
                measured.largest(),
                measured.num_ctx(),
                model.name,
                model.context
            );
            return Err(error).or_exit(Exit::NothingCanRun);
        }
    }
    let longest = measured.graph().nodes().iter().map(|node| node.num_predict).max().unwrap_or(0);
    let asks: BTreeMap<u32, u32> = measured.contexts().iter().map(|context| (*context, longest)).collect();
    let models = models.into_iter().map(|model| Pinned { asks: asks.clone(), ..model }).collect();
    Ok(Prepared { measured, default, models })
}

impl Prepared {
    fn plan(&self, assembly: &mut Assembly) -> GraphPlan {
        let graph = self.measured.graph();
        let items = graph.nodes().iter().filter(|node| node.shown).count();
        let contexts = self.measured.contexts();
        let plan = plan::plan(assembly.members.view(), items as u64, &self.models, &contexts);
        GraphPlan {
            plan,
            chunks: graph.nodes().len(),
            depth: graph.depth(),
            prompt_tokens: self.measured.prompt_tokens(),
            output_tokens: self.measured.output_tokens(),
            largest: self.measured.largest().to_owned(),
        }
    }
}

impl GraphPlan {
    fn asked(&self) -> Asked {
        Asked {
            chunks: self.chunks as u64,
            depth: self.depth as u64,
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
        }
    }
}

fn show(plan: &GraphPlan, why: bool, settings: &Settings) -> Outcome {
    if settings.json {
        print_json(plan)?;
    } else {
        print(&format!(
            "{}{}, {} one after the other at least; at most about {} prompt and {} output tokens; {} needs \
             most context.\n",
            plan.plan.text(why),
            count(plan.chunks, "chunk"),
            plan.depth,
            plan.prompt_tokens,
            plan.output_tokens,
            crate::terminal::escaped(&plan.largest)
        ))?;
    }
    Ok(plan.plan.exit())
}

/// What a job asks of the models; a node's own words win.
fn options(ask: &AskArgs) -> JobOptions {
    JobOptions {
        num_ctx: ask.num_ctx,
        think: ask.think.then_some(Think::On),
        seed: ask.seed,
        temperature: ask.temperature,
        system: ask.system.clone(),
        ..JobOptions::default()
    }
}

/// Writes all chunks into the journal; nothing runs before the last is there.
async fn take_in(
    mut draft: Draft,
    kind: Kind,
    prepared: Prepared,
    spec: Spec,
    clock: Clock,
) -> Result<Journal, Failed> {
    let spec = spec.bytes()?;
    let writing = tokio::task::spawn_blocking(move || {
        draft.insert::<job::Error>(prepared.measured.chunks(&prepared.default))?;
        Ok::<_, job::Error>(draft.finish(kind, spec, clock.wall_ms())?)
    });
    let journal = writing.await.or_exit(Exit::Io)?;
    journal.map_err(|error| Failed { exit: exit_of(error.exit_code()), error: error.into() })
}
