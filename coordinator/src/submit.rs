//! `tropa run` and `tropa plan`: from an input to a job at work.
//!
//! Jobs whose chunks build on each other come in through [`graph`].

mod count;
pub mod graph;
pub mod texts;

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tropa_proto::{id::JobId, roster::View};

use crate::{
    args::{InputKind, JobArgs, OutputArgs, PlanArgs, RunArgs},
    assemble::{Assembly, passing_key},
    clock::Clock,
    exit::{Exit, Failed, OrExit as _, Outcome},
    incoming::Incoming,
    job::{self, Format, Input, JobOptions, Prepared, Think},
    journal::{Draft, Journal, Kind, require_space},
    plan::{self, Asked, Need, PinError, Pinned},
    resume::{Purpose, work},
    settings::Settings,
    speeds::Speeds,
    stdout::{print, print_json},
    stop::Stop,
    words::count,
};

/// What a job was submitted with; the journal keeps it as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// What was asked of the input and the models.
    pub job: Box<RawValue>,
    /// The input's own hash, to recognise it.
    pub input_sha256: String,
    /// The models, in the order of the journal, with their fingerprints in hexadecimal digits.
    pub models: Vec<SpecModel>,
    /// Where the results go; absent: stdout.
    pub output: Option<PathBuf>,
    /// Each as soon as it is committed.
    pub as_completed: bool,
    /// As one text for people, and not as lines.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub text: bool,
    /// The array of vectors, in place of the lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub npy: Option<PathBuf>,
}

/// A pinned model in a [`Spec`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SpecModel {
    /// Its full name.
    pub name: String,
    /// Its fingerprint.
    pub fingerprint: String,
    /// Its trained context; 0: not known.
    pub context: u32,
}

/// `tropa run`.
///
/// # Errors
/// With the codes of `conventions.md` §3; what was committed stays in the journal.
pub async fn run(mut args: RunArgs, settings: &Settings, clock: Clock) -> Outcome {
    settings.job.fill(&mut args.job);
    let mut stop = Stop::new()?;
    let id = JobId::random().or_exit(Exit::Io)?;
    let incoming = Incoming::open(&settings.state, id)?;
    let prepared = stop.cuts(prepare(&args.input, options(&args.job), incoming.copy())).await?;
    say_skipped(&prepared, settings);
    let dir = settings.jobs().join(id.to_string());
    let draft = Draft::create(&dir, id).or_code()?;
    let key = draft.key().or_code()?;
    let mut assembly = stop.cuts(Assembly::gather(settings, key, clock)).await?;
    let chosen = choose(&mut assembly, &prepared, &args.job);
    let (default, models) = match chosen {
        Ok(chosen) => chosen,
        Err(failed) => {
            assembly.finish().await;
            return Err(failed);
        }
    };
    require_space(&dir, prepared.disk_bytes()).or_code()?;
    let spec = spec(&prepared, &default, &models, &args.output, None)?;
    let journal = take_in(draft, prepared, default, spec, clock).await?;
    let purpose = Purpose { output: args.output, text: false, resumed: false, failed_before: 0 };
    work(assembly, journal, models, purpose, settings, clock, stop).await
}

/// `tropa plan`.
///
/// # Errors
/// As [`run`], before anything is submitted.
pub async fn plan(mut args: PlanArgs, settings: &Settings, clock: Clock) -> Outcome {
    settings.job.fill(&mut args.job);
    let id = JobId::random().or_exit(Exit::Io)?;
    let incoming = Incoming::open(&settings.state, id)?;
    let prepared = prepare(&args.input, options(&args.job), incoming.copy()).await?;
    say_skipped(&prepared, settings);
    let mut assembly = Assembly::gather(settings, passing_key()?, clock).await?;
    let outcome = choose(&mut assembly, &prepared, &args.job).map(|(_, mut models)| {
        for model in &mut models {
            model.asks = prepared.contexts().iter().map(|context| (*context, prepared.longest())).collect();
        }
        let view = assembly.members.view();
        let mut plan = plan::plan(view, u64::from(prepared.items()), &models, prepared.contexts());
        let asked = Asked {
            chunks: u64::from(prepared.items()),
            depth: 1,
            prompt_tokens: prepared.prompt_tokens(),
            output_tokens: prepared.output_tokens(),
        };
        plan.estimate(view, &models, &Speeds::open(&settings.state).0, asked);
        plan
    });
    assembly.finish().await;
    let plan = outcome?;
    if settings.json {
        print_json(&plan)?
    } else {
        print(&plan.text(args.why))?
    }
    Ok(plan.exit())
}

/// Reads the input once: every item is checked and measured before anything starts.
pub(crate) async fn prepare(input: &Path, options: JobOptions, copy: PathBuf) -> Result<Prepared, Failed> {
    let input = input.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        let prepared = if input.as_os_str() == "-" {
            job::prepare(Input::Stream(&mut std::io::stdin().lock()), &copy, options)
        } else {
            job::prepare(Input::File(&input), &copy, options)
        };
        prepared.map_err(|error| {
            let exit = exit_of(error.exit_code());
            // The other errors name the file themselves.
            let what = matches!(error, job::Error::Input(_)).then(|| input.display().to_string());
            let error = anyhow::Error::from(error);
            Failed { exit, error: what.into_iter().fold(error, anyhow::Error::context) }
        })
    });
    reading.await.or_exit(Exit::Io)?
}

pub(crate) fn options(args: &JobArgs) -> JobOptions {
    JobOptions {
        format: match args.kind {
            InputKind::Auto => Format::Auto,
            InputKind::Batch => Format::Batch,
            InputKind::Jsonl => Format::Jsonl,
            InputKind::Csv => Format::Csv,
            InputKind::Lines => Format::Lines,
        },
        max_tokens: args.max_tokens,
        num_ctx: args.num_ctx,
        think: args.think.then_some(Think::On),
        seed: args.seed,
        temperature: args.temperature,
        system: args.system.clone(),
        template: args.template.clone(),
        id_column: args.id_column.clone(),
        endpoint: args.endpoint.clone(),
        embed: false,
        dimensions: None,
    }
}

/// Pins every model of the job: those that items name, and the default where some name none.
pub(crate) fn choose(
    assembly: &mut Assembly,
    prepared: &Prepared,
    args: &JobArgs,
) -> Result<(String, Vec<Pinned>), Failed> {
    let own = assembly.own.is_some();
    let view = assembly.members.view();
    let refuse = |error| refusal(&error, view, own);
    let need = if prepared.embeds() { Need::Embedding } else { Need::Completion };
    let default = match &args.model {
        Some(name) => job::full_name(name),
        None if prepared.without_model() > 0 => plan::default_model(view, need).map_err(refuse)?,
        None => String::new(),
    };
    let mut names = prepared.models().clone();
    if prepared.without_model() > 0 {
        names.insert(default.clone());
    }
    let models: Vec<Pinned> =
        names.iter().map(|name| plan::pin(view, name, need)).collect::<Result<_, _>>().map_err(refuse)?;
    for model in &models {
        if model.context > 0 && prepared.num_ctx() > model.context {
            let error = anyhow!(
                "model.too_small: the longest item needs a context of {} tokens, {} was trained for {}; shorten it, \
                 lower --max-tokens, or choose another model",
                prepared.num_ctx(),
                model.name,
                model.context
            );
            return Err(error).or_exit(Exit::NothingCanRun);
        }
    }
    Ok((default, models))
}

/// Says why no model can be pinned, and what there is.
fn refusal(error: &PinError, view: &View, own: bool) -> Failed {
    if let PinError::Denied(pinned) = error {
        let why = plan::plan(view, 0, std::slice::from_ref(&**pinned), &[]).why_nothing();
        return Failed { exit: Exit::NotAuthorised, error: anyhow!("{error}\n{why}") };
    }
    let why = plan::plan(view, 0, &[], &[]);
    let nobody = *error == PinError::NoInstall;
    let mut text = error.to_string();
    if nobody && own {
        text.push_str(": start Ollama with `ollama serve`, or name one with --ollama");
    }
    if nobody && !why.rows.is_empty() {
        text = format!("{text}\n{}", why.text(true));
    }
    Failed { exit: Exit::NothingCanRun, error: anyhow!(text) }
}

pub(crate) fn spec(
    prepared: &Prepared,
    default: &str,
    models: &[Pinned],
    output: &OutputArgs,
    npy: Option<&Path>,
) -> Result<Vec<u8>, Failed> {
    let job = String::from_utf8(prepared.spec(default)).or_exit(Exit::Io)?;
    let npy = npy.map(std::path::absolute).transpose().or_exit(Exit::Io)?;
    Spec { npy, ..Spec::new(job, prepared.sha256(), models, output, false)? }.bytes()
}

impl Spec {
    /// Describes a job: `job` is what was asked, as JSON.
    fn new(
        job: String,
        input_sha256: [u8; 32],
        models: &[Pinned],
        output: &OutputArgs,
        text: bool,
    ) -> Result<Self, Failed> {
        let model = |model: &Pinned| SpecModel {
            name: model.name.clone(),
            fingerprint: tropa_proto::id::hex(&model.fingerprint),
            context: model.context,
        };
        Ok(Self {
            job: RawValue::from_string(job).or_exit(Exit::Io)?,
            input_sha256: tropa_proto::id::hex(&input_sha256),
            models: models.iter().map(model).collect(),
            output: output.output.as_ref().map(std::path::absolute).transpose().or_exit(Exit::Io)?,
            as_completed: output.as_completed,
            text,
            npy: None,
        })
    }

    fn bytes(&self) -> Result<Vec<u8>, Failed> {
        serde_json::to_vec(self).or_exit(Exit::Io)
    }
}

/// Writes all chunks into the journal; nothing runs before the last is there.
async fn take_in(
    mut draft: Draft,
    prepared: Prepared,
    default: String,
    spec: Vec<u8>,
    clock: Clock,
) -> Result<Journal, Failed> {
    let writing = tokio::task::spawn_blocking(move || {
        let chunks = prepared.chunks(&default)?;
        draft.insert::<job::Error>(chunks)?;
        Ok::<_, job::Error>(draft.finish(Kind::Run, spec, clock.wall_ms())?)
    });
    let journal = writing.await.or_exit(Exit::Io)?;
    journal.map_err(|error| Failed { exit: exit_of(error.exit_code()), error: error.into() })
}

#[expect(clippy::print_stderr, reason = "messages go to stderr")]
pub(crate) fn say_skipped(prepared: &Prepared, settings: &Settings) {
    let skipped = prepared.blank_lines();
    if skipped > 0 && !settings.quiet {
        eprintln!("skipped {}", count(skipped, "blank line"));
    }
}

/// The exit code that an error of the job or the journal names.
pub(crate) fn exit_of(code: u8) -> Exit {
    match code {
        64 => Exit::Usage,
        65 => Exit::Input,
        75 => Exit::Busy,
        _ => Exit::Io,
    }
}

/// Gives an error of the journal the code that it names.
pub(crate) trait OrCode<T> {
    /// Ends with that code if it is an error.
    fn or_code(self) -> Result<T, Failed>;
}

impl<T> OrCode<T> for Result<T, crate::journal::Error> {
    fn or_code(self) -> Result<T, Failed> {
        self.map_err(|error| Failed { exit: exit_of(error.exit_code()), error: error.into() })
    }
}
