//! The `tropa` command: joins the mesh, finds out which installs are distinct hardware, and runs jobs there.
//!
//! `members` keeps the roster, `job` makes chunks of inputs, `plan` says what will run where, `schedule` decides
//! (pure), `run` is the loop, `journal` the durable record, `report` what comes out.

pub mod account;
pub mod args;
pub mod assemble;
pub mod attempt;
pub mod bench;
pub mod clock;
mod control;
pub mod doctor;
pub mod embed;
pub mod exit;
pub mod generated;
pub mod incoming;
pub mod job;
pub mod jobs;
pub mod journal;
pub mod limits;
pub mod live;
pub mod liveness;
pub mod locks;
pub mod machines;
pub mod map;
pub mod members;
pub mod mesh_file;
pub mod nodes;
pub mod own_agent;
pub mod plan;
pub mod progress;
pub mod recipe;
pub mod report;
pub mod resume;
pub mod rules;
pub mod run;
pub mod schedule;
pub mod settings;
pub mod speeds;
pub mod stdout;
pub mod stop;
pub mod submit;
pub mod table;
pub mod terminal;
mod words;
pub(crate) mod work_stream;

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::{
    args::{Args, Command, Global, NodesCommand, When},
    clock::Clock,
    exit::{Exit, Failed, OrExit as _, Outcome},
    settings::Settings,
};

/// Runs the command that was typed, to its end.
#[must_use]
pub fn main() -> ExitCode {
    tropa_proto::crash::tells_nothing();
    let clock = Clock::start();
    let args = match Args::read() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    log(&args.global);
    match execute(args, clock) {
        Ok(exit) => exit.into(),
        Err(failed) => complain(&failed),
    }
}

fn execute(args: Args, clock: Clock) -> Outcome {
    // One thread, beside that of the journal: two would wake each other several times a chunk, and every wake on a
    // machine whose engine works on all cores takes one from it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.or_exit(Exit::Io)?;
    let outcome = runtime.block_on(async {
        let global = &args.global;
        let settings = || Settings::resolve(global);
        match args.command {
            Command::Run(args) => submit::run(args, &settings()?, clock).await,
            Command::Map(args) => map::map(args, &settings()?, clock).await,
            Command::Embed(args) => embed::embed(args, &settings()?, clock).await,
            Command::Plan(args) => submit::plan(args, &settings()?, clock).await,
            Command::Write(args) => submit::texts::write(args, &settings()?, clock).await,
            Command::Panel(args) => submit::texts::panel(args, &settings()?, clock).await,
            Command::Machines(args) => assemble::machines(&args, &settings()?, clock).await,
            Command::Jobs(args) => jobs::jobs(args.command, &settings()?, clock),
            Command::Report(args) => account::report(&args, &settings()?),
            Command::Cancel(args) => jobs::cancel(&args, &settings()?, clock).await,
            Command::Resume(args) => resume::resume(args, &settings()?, clock).await,
            Command::Nodes(NodesCommand::Check(args)) => nodes::check(&args, &settings()?, clock).await,
            Command::Bench(args) => bench::bench(args, &settings()?, clock).await,
            Command::Doctor(args) => doctor::doctor(&args, global, clock).await,
            Command::Mesh(command) => mesh_file::mesh(command, &settings()?),
            Command::Completions { shell } => generated::completions(shell),
            Command::Man => generated::man(),
        }
    });
    // Whoever stopped the command while it read stdin does not wait for the next line.
    runtime.shutdown_background();
    outcome
}

/// Help and version are what was asked for; anything else about the arguments is wrong usage.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe is no reason for another message.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() }
}

#[expect(clippy::print_stderr, reason = "messages go to stderr")]
fn complain(failed: &Failed) -> ExitCode {
    // The chain of sources, outermost action first; text from peers and engines is escaped.
    let text = format!("{:#}", failed.error);
    for (at, line) in text.lines().enumerate() {
        eprintln!("{}{}", if at == 0 { "tropa: " } else { "" }, terminal::escaped(line));
    }
    failed.exit.into()
}

fn log(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter =
        EnvFilter::new(format!("error,tropa_coordinator={level},tropa_agent={level},tropa_proto={level}"));
    let colour = match global.color {
        When::Always => true,
        When::Never => false,
        When::Auto => {
            use std::io::IsTerminal as _;
            let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
            let forced = set("CLICOLOR_FORCE") && std::env::var_os("CLICOLOR_FORCE") != Some("0".into());
            !set("NO_COLOR") && (forced || std::io::stderr().is_terminal())
        }
    };
    // A second call, in a test, changes nothing.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .try_init();
}
