//! `tropa embed`: texts in, vectors out, several texts in one request and the requests spread over machines.

use tropa_proto::id::JobId;

use crate::{
    args::{EmbedArgs, JobArgs},
    assemble::Assembly,
    clock::Clock,
    exit::{Exit, Failed, OrExit as _, Outcome},
    incoming::Incoming,
    job::{self, BATCH_TOKENS, BatchSize},
    journal::{Draft, Journal, Kind, require_space},
    plan,
    resume::{Purpose, work_into},
    settings::Settings,
    stop::Stop,
    submit::{OrCode as _, choose, exit_of, options, prepare, say_skipped, spec},
};

/// `tropa embed`.
///
/// # Errors
/// As `tropa run`; with [`Exit::NothingCanRun`] where no install has a model that can embed.
pub async fn embed(args: EmbedArgs, settings: &Settings, clock: Clock) -> Outcome {
    let mut asked = JobArgs {
        kind: args.kind,
        model: args.model,
        num_ctx: args.num_ctx,
        template: args.template,
        id_column: args.id_column,
        ..JobArgs::default()
    };
    settings.job.fill(&mut asked);
    let mut wanted = options(&asked);
    (wanted.embed, wanted.dimensions) = (true, args.dimensions);
    let mut stop = Stop::new()?;
    let id = JobId::random().or_exit(Exit::Io)?;
    let incoming = Incoming::open(&settings.state, id)?;
    let prepared = stop.cuts(prepare(&args.input, wanted, incoming.copy())).await?;
    say_skipped(&prepared, settings);
    let dir = settings.jobs().join(id.to_string());
    let draft = Draft::create(&dir, id).or_code()?;
    let key = draft.key().or_code()?;
    let mut assembly = stop.cuts(Assembly::gather(settings, key, clock)).await?;
    let (default, models) = match choose(&mut assembly, &prepared, &asked) {
        Ok(chosen) => chosen,
        Err(failed) => {
            assembly.finish().await;
            return Err(failed);
        }
    };
    require_space(&dir, prepared.disk_bytes()).or_code()?;
    let spec = spec(&prepared, &default, &models, &args.output, args.npy.as_deref())?;
    let lanes = plan::at_work(&plan::installs(assembly.members.view(), &models)).len();
    let size = BatchSize::spread(prepared.items(), lanes, args.batch.map_or(BATCH_TOKENS, u64::from));
    let journal = take_in(draft, prepared, default, size, spec, clock).await?;
    let purpose = Purpose { output: args.output, text: false, resumed: false, failed_before: 0 };
    work_into(args.npy, assembly, journal, models, purpose, settings, clock, stop).await
}

/// Writes all batches into the journal; nothing runs before the last is there.
async fn take_in(
    mut draft: Draft,
    prepared: job::Prepared,
    default: String,
    size: BatchSize,
    spec: Vec<u8>,
    clock: Clock,
) -> Result<Journal, Failed> {
    let writing = tokio::task::spawn_blocking(move || {
        draft.insert::<job::Error>(prepared.batches(&default, size)?)?;
        Ok::<_, job::Error>(draft.finish(Kind::Embed, spec, clock.wall_ms())?)
    });
    let journal = writing.await.or_exit(Exit::Io)?;
    journal.map_err(|error| Failed { exit: exit_of(error.exit_code()), error: error.into() })
}
