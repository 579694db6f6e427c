//! `tropa-agent` as a program: what was typed, the signals that stop it, what it prints and the code that it ends with.

use std::{io, process::ExitCode};

use clap::Parser as _;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    Agent, AgentError, Config,
    args::{self, Args, Command},
    signals::Signals,
    stock,
};

/// Runs `tropa-agent` to its end.
#[must_use]
pub fn main() -> ExitCode {
    tropa_proto::crash::tells_nothing();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // A closed pipe is no reason for another message.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    log(args.verbose);
    match execute_args(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, error)) => {
            complain(&error);
            ExitCode::from(code)
        }
    }
}

fn execute_args(args: Args) -> Result<(), (u8, anyhow::Error)> {
    let usage = |error: args::ArgsError| (error.exit_code(), anyhow::Error::new(error));
    if let Some(Command::Evidence { show_raw, json, privileged }) = args.command {
        let config = args.resolve().map_err(usage)?;
        if privileged {
            let refused = |error: io::Error| {
                let code = if error.kind() == io::ErrorKind::PermissionDenied { 77 } else { 74 };
                (code, anyhow::Error::new(error).context("writing what only root can read failed"))
            };
            let file = stock::save_privileged(&config).map_err(refused)?;
            return print(&format!("wrote {}", file.display())).map_err(|error| (74, error.into()));
        }
        let shown = runtime().and_then(|runtime| {
            runtime.block_on(stock::show(&config, show_raw, json)).map_err(io::Error::other)
        });
        return shown.and_then(|text| print(&text)).map_err(|error| (74, error.into()));
    }
    let config = args.resolve().map_err(usage)?;
    let runtime = runtime().map_err(|error| (74, error.into()))?;
    runtime.block_on(serve_until_stopped(config)).map_err(|error| (74, error.into()))
}

/// One thread: an agent must cost next to nothing beside an engine that works.
fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn serve_until_stopped(config: Config) -> Result<(), AgentError> {
    let agent = Agent::start(config).await?;
    // Before the line below: who has read it may ask the agent to stop, and is not to end it with work in hand.
    let signals = Signals::new();
    // The line that scripts wait for; a closed stdout is no reason to stop.
    let _ = print(&format!("listening {}", agent.address()));
    let stop = CancellationToken::new();
    let Ok(mut signals) = signals else {
        return agent.run(std::future::pending()).await;
    };
    let asked = stop.clone();
    let running = agent.run(async move { asked.cancelled().await });
    let mut running = std::pin::pin!(running);
    loop {
        tokio::select! {
            ended = &mut running => return ended,
            _ = signals.next() => {}
        }
        if stop.is_cancelled() {
            // The second time: do not wait for what runs.
            return Ok(());
        }
        stop.cancel();
    }
}

fn print(text: &str) -> io::Result<()> {
    use io::Write as _;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush())
}

#[expect(clippy::print_stderr, reason = "messages go to stderr")]
fn complain(error: &anyhow::Error) {
    eprintln!("tropa-agent: {error:#}");
}

fn log(verbose: u8) {
    let level = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let filter = EnvFilter::new(format!("error,tropa_agent={level},tropa_proto={level}"));
    // A second call, in a test, changes nothing.
    use io::IsTerminal as _;
    let ansi =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(ansi).try_init();
}
