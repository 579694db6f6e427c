//! The same prompts as a job through the mesh: journal, schedule and all, as `tropa run` works on it.
//!
//! The journal lies in the place of this command, which is removed at its end, so a measurement is no job that
//! somebody would resume. Its making is not counted, as little as the reading of the prompts by a plain client.

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Deserialize;
use tropa_proto::id::{AgentId, ChunkIndex, JobId};

use super::{direct::ms, report::Attempt};
use crate::{
    args::{OutputArgs, When},
    clock::Clock,
    exit::{Exit, Failed, OrExit as _},
    job::{self, Prepared},
    journal::{self, Draft, Journal, Kind},
    members::Members,
    plan::Pinned,
    progress::Progress,
    report::{Destination, Form, Output},
    resume,
    run::{End, Runner, Stuck},
    settings::Settings,
    speeds::Speeds,
    stop::Stop,
    submit::{self, OrCode as _, exit_of},
};

/// The prompts with their models.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) prepared: Prepared,
    pub(super) default: String,
    pub(super) models: Vec<Pinned>,
    /// Where the journals go.
    pub(super) dir: PathBuf,
}

/// Times of an attempt as the journal keeps them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metrics {
    wall_us: u64,
}

impl Work {
    /// Writes the prompts into a new journal.
    pub(super) fn journal(&self, clock: Clock) -> Result<Journal, Failed> {
        let id = JobId::random().or_exit(Exit::Io)?;
        let mut draft = Draft::create(&self.dir.join(id.to_string()), id).or_code()?;
        let wrong = |error: job::Error| Failed { exit: exit_of(error.exit_code()), error: error.into() };
        draft.insert(self.prepared.chunks(&self.default).map_err(wrong)?).map_err(wrong)?;
        let spec = submit::spec(&self.prepared, &self.default, &self.models, &OutputArgs::default(), None)?;
        draft.finish(Kind::Run, spec, clock.wall_ms()).or_code()
    }

    /// Works on all prompts through the mesh, or through one agent alone, and gives the wall time in
    /// seconds and every attempt, with the place that `place` gives its agent.
    ///
    /// # Errors
    /// When nothing can run it, or the command is stopped.
    pub(super) async fn through(
        &self,
        members: &mut Members,
        only: Option<AgentId>,
        place: impl Fn(AgentId) -> Option<usize>,
        (settings, clock, stop): (&Settings, Clock, &mut Stop),
    ) -> Result<(f64, Vec<Attempt>), Failed> {
        let journal = self.journal(clock)?;
        let schedule = resume::schedule(&journal, &self.models)?;
        let schedule = if settings.backups { schedule } else { schedule.without_backups() };
        let (speeds, _) = Speeds::open(&settings.state);
        let results = Destination::File(journal.dir().join("results.jsonl"));
        let mut output = Output::open(&journal, results, Form::Lines, false).or_exit(Exit::Io)?;
        let runner = Runner {
            members,
            journal: &journal,
            models: self.models.clone(),
            output: &mut output,
            progress: &mut Progress::new(When::Never, true),
            clock,
            speeds,
            patience: settings.wait,
            only,
        };
        let (begin, begin_ms) = (clock.now(), clock.wall_ms());
        let end = runner.run(schedule, stop).await?;
        let seconds = clock.now().saturating_sub(begin).as_secs_f64();
        match end {
            End::Done => {}
            End::Stopped(stopped) => return Err(Failed::new(stopped.exit, "stopped; nothing is kept")),
            End::Cancelled => return Err(Failed::new(Exit::Interrupted, "cancelled; nothing is kept")),
            End::Stuck(Stuck { why, exit }) => {
                let error = anyhow::anyhow!("nothing here can run the rest of the prompts\n{why}");
                return Err(error).or_exit(exit);
            }
        }
        let mut attempts = Vec::new();
        journal.each_attempt(None, |tried| attempts.push(attempt(&tried, begin_ms, &place))).or_code()?;
        let dir = journal.dir().to_owned();
        drop((output, journal));
        std::fs::remove_dir_all(&dir)
            .with_context(|| format!("removing {}", dir.display()))
            .or_exit(Exit::Io)?;
        Ok((seconds, attempts))
    }

    /// The bodies as they are sent, by chunk.
    pub(super) fn chunks(&self, journal: &Journal) -> Result<Vec<journal::Chunk>, Failed> {
        (0..journal.job().chunks).map(|index| journal.chunk(ChunkIndex(index)).or_code()).collect()
    }
}

fn attempt(tried: &journal::Attempted, begin_ms: u64, place: &impl Fn(AgentId) -> Option<usize>) -> Attempt {
    let since = |at: u64| at.saturating_sub(begin_ms) as f64;
    let start_ms = since(tried.started_ms.unwrap_or(tried.recorded_ms));
    let end_ms = tried.ended_ms.map_or(start_ms, since);
    let metrics =
        tried.won.as_ref().map(|won| serde_json::from_str::<Metrics>(&won.metrics).unwrap_or_default());
    let (prompt_tokens, output_tokens) =
        tried.won.as_ref().map_or((0, 0), |won| (won.prompt_tokens, won.output_tokens));
    Attempt {
        chunk: usize::try_from(tried.chunk.0).unwrap_or(usize::MAX),
        install: place(tried.agent),
        start_ms,
        end_ms,
        busy_ms: metrics.map_or(end_ms - start_ms, |m| ms(std::time::Duration::from_micros(m.wall_us))),
        prompt_tokens,
        output_tokens,
        outcome: match (&tried.won, &tried.class) {
            (Some(_), _) => "done".to_owned(),
            (None, Some(class)) if class == "done" => "late".to_owned(),
            (None, Some(class)) => tried.reason.clone().unwrap_or_else(|| class.clone()),
            (None, None) => "open".to_owned(),
        },
    }
}
