//! The arguments of `tropa bench`.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::JobArgs;
use crate::bench::PROMPTS;

/// `tropa bench`.
#[derive(Debug, ClapArgs)]
#[command(after_help = NOTES)]
pub struct BenchArgs {
    /// What to ask: a file as `tropa run` takes it [default: built-in prompts]
    #[arg(value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// How many of the built-in prompts [default: 12]
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "input", value_parser = clap::value_parser!(u32).range(2..=i64::from(PROMPTS)))]
    pub prompts: Option<u32>,
    /// How often every set-up is measured, each time in another order
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub rounds: u32,
    /// Where the Ollama of an agent is reached from here, past the agent: its label or the beginning of its id, and
    /// an address (repeatable)
    #[arg(long, value_name = "AGENT=URL", value_parser = direct)]
    pub direct: Vec<(String, String)>,
    /// How many requests at once the best install is tried with, past its agent
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "2,4", value_parser = clap::value_parser!(u16).range(2..=64))]
    pub widths: Vec<u16>,
    /// A set-up that takes longer gets no further prompts; the time is then given as more than that
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub limit: u64,
    /// What is asked of the models
    #[command(flatten)]
    pub job: JobArgs,
    /// Write the raw data to this file as JSON: the environment, every run and every attempt, no prompts
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

const NOTES: &str = "\
Measures the same prompts on this mesh: on the best install alone, one at a time and several at once; on all installs at \
once, as tools do that count addresses; with one client for each install that is distinct hardware; and through tropa.

Agents never let two installs that share hardware work at the same time, so what tools do that count addresses is \
measured past the agents: only for installs that --direct names, and only here. Nobody else should use the installs \
meanwhile. A port forward will do: ssh -L 21434:127.0.0.1:11434 attic, then --direct attic=http://127.0.0.1:21434.";

/// Reads `AGENT=URL`.
fn direct(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((agent, url)) if !agent.is_empty() && !url.is_empty() => Ok((agent.to_owned(), url.to_owned())),
        Some(_) | None => Err("not AGENT=URL, such as attic=http://127.0.0.1:21434".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_past_an_agent_names_the_agent_and_the_address() {
        assert_eq!(
            direct("attic=http://127.0.0.1:1"),
            Ok(("attic".to_owned(), "http://127.0.0.1:1".to_owned()))
        );
        for wrong in ["", "attic", "=http://127.0.0.1:1", "attic="] {
            assert!(direct(wrong).is_err(), "{wrong}");
        }
    }
}
