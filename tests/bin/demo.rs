//! The first minute: what tropa is for, shown on this machine with nothing installed and nothing downloaded.
//!
//! Part one is a whole mesh on loopback: three agents, two of them on this machine and one declared to be another,
//! real libp2p, real evidence, a real journal, and doubles in the place of engines. Part two, where an Ollama
//! answers on this machine, sends one prompt the real way. `--json` prints one object instead.

use std::process::ExitCode;

use clap::Parser;
use tropa_tests::demo::{Options, run};

/// Shows what tropa does, in a few seconds, on this machine
#[derive(Debug, Parser)]
#[command(name = "demo", version)]
struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// What to ask the real Ollama, where one answers
    #[arg(long, value_name = "TEXT", default_value = "In one sentence: what is a llama?")]
    prompt: String,
    /// The real Ollama [default: OLLAMA_HOST, else http://127.0.0.1:11434]
    #[arg(long, value_name = "URL")]
    ollama: Option<String>,
    /// The model of the real Ollama [default: the one that is loaded, else the only one]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options { json: args.json, prompt: args.prompt, ollama: args.ollama, model: args.model };
    match run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "messages go to stderr")]
            let () = eprintln!("demo: {error:#}");
            ExitCode::from(74)
        }
    }
}
