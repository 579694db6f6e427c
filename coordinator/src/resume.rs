//! Working on a job that is in the journal: to its end the first time, and again after a stop or a crash.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, anyhow};
use tropa_proto::{
    id::{AttemptId, ChunkIndex, unhex},
    message::Fingerprint,
};

use crate::{
    args::{OutputArgs, ResumeArgs},
    assemble::Assembly,
    clock::Clock,
    exit::{Exit, Failed, OrExit as _, Outcome},
    job,
    journal::{self, Journal, OpenAttempt, Size, State},
    plan::Pinned,
    progress::Progress,
    report::{Destination, Form, Output, Remarks, Summary},
    run::{End, Runner, Stuck},
    schedule::{Doubt, History, Left, ModelIndex, Schedule, Work},
    settings::Settings,
    speeds::Speeds,
    stdout::print_json,
    stop::Stop,
    submit::{OrCode as _, Spec, exit_of},
    words::count,
};

/// Why a job is worked on, for messages.
#[derive(Debug)]
pub(crate) struct Purpose {
    /// Where the results go.
    pub output: OutputArgs,
    /// As one text, and not as lines.
    pub text: bool,
    /// It was worked on before.
    pub resumed: bool,
    /// Failures that are tried again.
    pub failed_before: u32,
}

/// `tropa resume`.
///
/// # Errors
/// With [`Exit::Usage`] for a job that is not there, [`Exit::Busy`] for one at work, [`Exit::Input`] for an input
/// that is not the job's, and the codes of `tropa run`.
pub async fn resume(args: ResumeArgs, settings: &Settings, clock: Clock) -> Outcome {
    let mut stop = Stop::new()?;
    let id = journal::find(&settings.jobs(), &args.job).or_exit(Exit::Usage)?;
    let dir = settings.jobs().join(id.to_string());
    let mut journal = Journal::open(&dir).or_code()?;
    let spec: Spec = serde_json::from_slice(&journal.job().spec)
        .with_context(|| format!("reading what job {} was submitted with", id.short()))
        .or_exit(Exit::Io)?;
    if let Some(input) = &args.input {
        same_input(input, &spec)?;
    }
    reopen(&mut journal, args.cancelled)?;
    let failed_before = if args.failed { journal.retry_failed().or_code()? } else { 0 };
    let models = spec.models.iter().map(pinned).collect::<Result<_, _>>()?;
    // Who names a file now wants lines.
    let npy = spec.npy.filter(|_| args.output.output.is_none());
    let output = OutputArgs {
        output: args.output.output.or(spec.output),
        as_completed: args.output.as_completed || spec.as_completed,
    };
    let key = journal.key().or_code()?;
    let assembly = stop.cuts(Assembly::gather(settings, key, clock)).await?;
    // What `--json` asks for now wins.
    let purpose = Purpose { output, text: spec.text && !settings.json, resumed: true, failed_before };
    work_into(npy, assembly, journal, models, purpose, settings, clock, stop).await
}

/// Lets a cancelled job go on where the user says so.
fn reopen(journal: &mut Journal, cancelled: bool) -> Result<(), Failed> {
    if journal.job().state != State::Cancelled && journal.cancel_asked().is_none() {
        return Ok(());
    }
    let id = journal.job().id.short();
    if !cancelled {
        let why =
            format!("job {id} was cancelled; to go on with it all the same: tropa resume {id} --cancelled");
        return Err(Failed::new(Exit::Usage, why));
    }
    journal.clear_cancel().or_code()?;
    journal.set_state(State::Open).or_code()
}

/// Works on a job until it is done, stopped or stuck, and says how it went.
pub(crate) async fn work(
    assembly: Assembly,
    journal: Journal,
    models: Vec<Pinned>,
    purpose: Purpose,
    settings: &Settings,
    clock: Clock,
    stop: Stop,
) -> Outcome {
    work_into(None, assembly, journal, models, purpose, settings, clock, stop).await
}

/// The same, with all vectors of a job of embeddings into one array, where a file for it is named.
#[expect(clippy::too_many_arguments, reason = "what a job is made of, and each a type of its own")]
pub(crate) async fn work_into(
    npy: Option<PathBuf>,
    mut assembly: Assembly,
    journal: Journal,
    models: Vec<Pinned>,
    purpose: Purpose,
    settings: &Settings,
    clock: Clock,
    mut stop: Stop,
) -> Outcome {
    let started = clock.now();
    let mut progress = Progress::new(settings.progress, settings.quiet);
    let ended = async {
        let schedule = schedule(&journal, &models)?;
        let schedule = if settings.backups { schedule } else { schedule.without_backups() };
        let (speeds, damaged) = Speeds::open(&settings.state);
        if let Some(damaged) = damaged {
            progress.say(&damaged);
        }
        let destination = npy.clone().or_else(|| purpose.output.output.clone());
        let destination = destination.map_or(Destination::Stdout, Destination::File);
        let form = match (&npy, purpose.text) {
            (Some(_), _) => Form::Array,
            (None, true) => Form::Text,
            (None, false) => Form::Lines,
        };
        let mut output =
            Output::open(&journal, destination, form, purpose.output.as_completed).or_exit(Exit::Io)?;
        announce(&journal, &purpose, &progress, settings);
        let runner = Runner {
            members: &mut assembly.members,
            journal: &journal,
            models,
            output: &mut output,
            progress: &mut progress,
            clock,
            speeds,
            patience: settings.wait,
            only: None,
        };
        let end = runner.run(schedule, &mut stop).await?;
        Ok::<_, Failed>((end, output))
    };
    let ended = ended.await;
    assembly.finish().await;
    let (end, output) = ended.map_err(|failed| with_hint(failed, &journal))?;
    let to_file = purpose.output.output.is_some() || npy.is_some();
    let mut cancelled = false;
    let end = match end {
        End::Done => {
            output.finish(&journal).or_exit(Exit::Io)?;
            let summary = Summary::of(&journal, clock.now().saturating_sub(started)).or_code()?;
            let remarks = Remarks::of(&journal).or_code()?;
            show(&summary, &remarks, to_file, settings)?;
            Ok(if summary.has_failed() { Exit::SomeFailed } else { Exit::Done })
        }
        End::Stopped(_) | End::Cancelled | End::Stuck(_) => {
            // What is finished and due goes out; the rest comes with the next run.
            output.finish(&journal).or_exit(Exit::Io)?;
            cancelled = matches!(end, End::Cancelled);
            conclude(end, &journal)
        }
    };
    let mut journal = journal;
    if end.is_ok() || cancelled {
        journal.set_state(if cancelled { State::Cancelled } else { State::Done }).or_code()?;
        journal.clear_cancel().or_code()?;
    }
    end
}

fn conclude(end: End, journal: &Journal) -> Outcome {
    match end {
        End::Done => Ok(Exit::Done),
        End::Stopped(stopped) => {
            let id = journal.job().id.short();
            Err(anyhow!("stopped; what is done is kept; go on with: tropa resume {id}")).or_exit(stopped.exit)
        }
        End::Cancelled => {
            let id = journal.job().id.short();
            let error = anyhow!(
                "cancelled by `tropa cancel`; what is done is kept; to go on all the same: tropa resume {id} --cancelled"
            );
            Err(error).or_exit(Exit::Interrupted)
        }
        End::Stuck(Stuck { why, exit }) => {
            let id = journal.job().id.short();
            let error = anyhow!(
                "nothing here can run the rest of the job; what is done is kept\n{why}go on with: tropa resume {id}"
            );
            Err(error).or_exit(exit)
        }
    }
}

/// The last words: on stderr, and for programs on stdout where no results go there.
#[expect(clippy::print_stderr, reason = "messages go to stderr")]
fn show(summary: &Summary, remarks: &Remarks, to_file: bool, settings: &Settings) -> Result<(), Failed> {
    if settings.json {
        let mut told = summary.json();
        remarks.add_to(&mut told);
        if to_file {
            return print_json(&told);
        }
        eprintln!("{told}");
    } else if !settings.quiet {
        eprint!("{}{}", remarks.text(), summary.text());
    }
    Ok(())
}

fn announce(journal: &Journal, purpose: &Purpose, progress: &Progress, settings: &Settings) {
    if settings.quiet {
        return;
    }
    let job = journal.job();
    if purpose.resumed {
        let again = if purpose.failed_before > 0 {
            format!(", {} that failed run again", purpose.failed_before)
        } else {
            String::new()
        };
        progress.say(&format!("job {} goes on: {}{again}", job.id.short(), amount(job)));
    } else {
        progress.say(&format!("job {}: {}", job.id.short(), amount(job)));
    }
}

/// How much there is to do, in words.
fn amount(job: &journal::Job) -> String {
    let items = count(job.items, "item");
    if job.items == job.chunks { items } else { format!("{items} from {} chunks", job.chunks) }
}

fn with_hint(failed: Failed, journal: &Journal) -> Failed {
    let id = journal.job().id.short();
    Failed {
        exit: failed.exit,
        error: failed.error.context(format!("job {id} stopped; go on with: tropa resume {id}")),
    }
}

/// The state of the scheduler as the journal tells it.
pub(crate) fn schedule(journal: &Journal, models: &[Pinned]) -> Result<Schedule, Failed> {
    let (names, places) = journal.models().or_code()?;
    let pinned_as = |name: &String| {
        let at = models.iter().position(|pinned| pinned.name.eq_ignore_ascii_case(name));
        at.and_then(|at| u16::try_from(at).ok()).map(ModelIndex)
    };
    let index: Vec<ModelIndex> = names
        .iter()
        .map(|name| pinned_as(name).with_context(|| format!("the journal names no fingerprint for {name}")))
        .collect::<Result<_, _>>()
        .or_exit(Exit::Io)?;
    let work = |(place, size): (&u16, &Size)| Work {
        model: index.get(usize::from(*place)).copied().unwrap_or_default(),
        context: size.num_ctx,
        prompt_tokens: size.prompt_tokens,
        output_tokens: size.num_predict,
        prefix: size.prefix,
    };
    let sizes = journal.sizes().or_code()?;
    let works = places.iter().zip(&sizes).map(work);
    let id = journal.job().id;
    let mut schedule = Schedule::of(id, works.collect());
    let resume = journal.load().or_code()?;
    let closed = (0..journal.job().chunks).map(ChunkIndex).filter(|chunk| resume.finished.contains(*chunk));
    let mut history: BTreeMap<ChunkIndex, History> = BTreeMap::new();
    for (chunk, attempts) in &resume.attempts {
        let entry = history.entry(*chunk).or_default();
        for attempt in attempts {
            entry.last_no = entry.last_no.max(attempt.no);
            if let (true, Some(class)) = (attempt.this_round, attempt.class) {
                // What it says is kept in it: a chunk that was over, and is open, fails at once.
                let _ = entry.after(attempt.no, class, attempt.agent, &attempt.machine.short());
            }
        }
    }
    let named = |open: &OpenAttempt| AttemptId { job: id, chunk: open.chunk, no: open.no };
    let unfinished = resume.open.iter().filter(|open| !resume.finished.contains(open.chunk));
    let doubtful = resume.ended.iter().filter_map(|(ended, class, reason)| {
        Some((named(ended), ((ended.agent, ended.incarnation), Doubt::of(*class, *reason)?)))
    });
    let left = Left {
        open: unfinished.map(|open| (named(open), (open.agent, open.incarnation))).collect(),
        doubtful: doubtful.collect(),
        unguarded: resume.unguarded,
    };
    schedule.resume(closed, history, left);
    let needs = journal.needs().or_code()?;
    let failed = needs.on.values().flatten().copied().filter(|chunk| resume.finished.is_failed(*chunk));
    schedule.depend(needs.on.clone(), &needs.unfilled, failed.collect());
    Ok(schedule)
}

fn pinned(model: &crate::submit::SpecModel) -> Result<Pinned, Failed> {
    let fingerprint: Fingerprint = unhex(&model.fingerprint)
        .with_context(|| format!("the journal's fingerprint of {} is none", model.name))
        .or_exit(Exit::Io)?;
    Ok(Pinned { name: model.name.clone(), fingerprint, context: model.context, asks: BTreeMap::new() })
}

fn same_input(input: &std::path::Path, spec: &Spec) -> Result<(), Failed> {
    let hash = job::file_sha256(input)
        .map_err(|error| Failed { exit: exit_of(error.exit_code()), error: error.into() })?;
    let hash = tropa_proto::id::hex(&hash);
    if hash == spec.input_sha256 {
        return Ok(());
    }
    let error = anyhow!(
        "{} is not the input of this job: its SHA-256 is {}, the job's is {}; submit it as a new job",
        input.display(),
        &hash[..12],
        &spec.input_sha256[..12.min(spec.input_sha256.len())]
    );
    Err(error).or_exit(Exit::Input)
}
