//! What was typed. `settings.rs` turns it into what will happen.

mod age;
mod bench;
mod doctor;
mod texts;
mod typed;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

pub use age::age;
pub use bench::BenchArgs;
pub use doctor::DoctorArgs;
pub use texts::{PanelArgs, TextLength, WriteArgs};
pub use typed::{Origin, Typed};

/// One load per llama: runs work on several Ollama installs at once only where they are distinct hardware.
#[derive(Debug, Parser)]
#[command(name = "tropa", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options that every command takes.
    #[command(flatten)]
    pub global: Global,
}

/// Options that every command takes.
#[derive(Debug, Default, ClapArgs)]
pub struct Global {
    /// Dial this agent too (repeatable); needed where there is no multicast
    #[arg(long, global = true, value_name = "HOST:PORT", env = "TROPA_PEER", value_delimiter = ',')]
    pub peer: Vec<String>,
    /// The mesh secret [default: the user's or the system's mesh.secret, where there is one]
    #[arg(long, global = true, value_name = "FILE", env = "TROPA_MESH_SECRET_FILE")]
    pub mesh_secret_file: Option<PathBuf>,
    /// Do not look for agents by multicast DNS
    #[arg(long, global = true)]
    pub no_mdns: bool,
    /// The Ollama to use where no agent answers [default: OLLAMA_HOST, else http://127.0.0.1:11434]
    #[arg(long, global = true, value_name = "URL", env = "TROPA_OLLAMA")]
    pub ollama: Option<String>,
    /// Believe hardware evidence that an operator declared (testbeds); shown as declared everywhere
    #[arg(long, global = true)]
    pub allow_declared: bool,
    /// Where the agents of this machine are found [default: /run/tropa, else $XDG_RUNTIME_DIR/tropa]
    #[arg(long, global = true, value_name = "DIR", env = "TROPA_RUNTIME_DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// Wait at most this long for the agents that should be there [default: 3]
    #[arg(long, global = true, value_name = "SECONDS", env = "TROPA_WAIT")]
    pub wait: Option<f64>,
    /// Read this configuration file instead of the user's
    #[arg(long, global = true, value_name = "FILE", env = "TROPA_CONFIG")]
    pub config: Option<PathBuf>,
    /// Wait for installs that are late at the end of a job instead of running their chunks on idle ones too
    #[arg(long, global = true)]
    pub no_backups: bool,
    /// Print one JSON object on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// Show progress on stderr: a bar on a terminal, a line every 10 s elsewhere
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", env = "TROPA_PROGRESS")]
    pub progress: When,
    /// Use colour; wins over NO_COLOR and CLICOLOR_FORCE
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", env = "TROPA_COLOR")]
    pub color: When,
    /// Print errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log what happens to stderr; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Where each argument came from
    #[arg(skip)]
    pub typed: Typed,
}

/// When to show something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a file of prompts, one chunk an item, and write the results in input order
    Run(RunArgs),
    /// Ask the same of every part of long documents and bring the answers together
    Map(MapArgs),
    /// Turn texts into vectors, several in one request, and write them in input order
    Embed(EmbedArgs),
    /// Say what would run where and why, and run nothing
    Plan(PlanArgs),
    /// Write a long text in parts: the first, then the others at once, then a synthesis
    Write(WriteArgs),
    /// Ask several roles one question: researcher, critics, editor, ideas, votes, or roles of your own
    Panel(PanelArgs),
    /// Show which installs are here and which of them are the same hardware
    Machines(MachinesArgs),
    /// List the jobs of this user, look at one, or delete some
    Jobs(JobsArgs),
    /// Say what a job came to: its machines, its time, its failures; --html as a page with a timeline
    Report(ReportArgs),
    /// Give a job up: nothing new starts, what is done is kept
    Cancel(CancelArgs),
    /// Go on with a job after a stop or a crash; nothing that is committed runs again
    Resume(ResumeArgs),
    /// Look at the list of nodes of another program
    #[command(subcommand)]
    Nodes(NodesCommand),
    /// Measure what this mesh gains: one install alone, all at once by address, and tropa, with the same prompts
    Bench(BenchArgs),
    /// Look whether everything is in order: settings, secret, directories, jobs, agents, installs; say what to do
    Doctor(DoctorArgs),
    /// Make or join a mesh of several machines
    #[command(subcommand)]
    Mesh(MeshCommand),
    /// Print completions for a shell
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Print the manual pages
    Man,
}

/// `tropa run`.
#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// What to run: a file, or - for stdin
    #[arg(value_name = "FILE")]
    pub input: PathBuf,
    /// How the input looks
    #[command(flatten)]
    pub job: JobArgs,
    /// Where the results go
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `tropa map`.
#[derive(Debug, ClapArgs)]
pub struct MapArgs {
    /// The documents: text, Markdown or PDF; or - for stdin
    #[arg(value_name = "DOC", required = true)]
    pub documents: Vec<PathBuf>,
    /// What is asked of every part [default: a summary]
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// How the answers about the parts are merged [default: into one answer that keeps marks such as [part 3]]
    #[arg(long, value_name = "TEXT")]
    pub merge: Option<String>,
    /// One answer about all documents, and not one for each
    #[arg(long)]
    pub together: bool,
    /// Tokens of a part [default: the whole document where it fits, else 2048]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(32..=1_000_000))]
    pub part_tokens: Option<u32>,
    /// Tokens of every answer, at most [default: 512]
    #[arg(long, value_name = "N", env = "TROPA_MAX_TOKENS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_tokens: Option<u32>,
    /// What is asked of the models
    #[command(flatten)]
    pub ask: AskArgs,
    /// Where the results go
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `tropa embed`.
#[derive(Debug, ClapArgs)]
pub struct EmbedArgs {
    /// The texts: a file, or - for stdin; one a line, JSONL with `input`, or CSV with --template
    #[arg(value_name = "FILE")]
    pub input: PathBuf,
    /// How the input looks: by suffix, else by the first item
    #[arg(long = "input", id = "kind", value_name = "KIND", default_value = "auto")]
    pub kind: InputKind,
    /// The model where an item names none [default: the one that is loaded and embeds, else the only one]
    #[arg(short, long, value_name = "NAME", env = "TROPA_MODEL")]
    pub model: Option<String>,
    /// Estimated tokens in one request; one text may have more [default: 8192]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub batch: Option<u32>,
    /// Numbers in a vector, where the model lets one choose
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub dimensions: Option<u32>,
    /// Context in tokens, one value for the job [default: as much as the longest text needs]
    #[arg(long, value_name = "N", env = "TROPA_NUM_CTX", value_parser = clap::value_parser!(u32).range(256..=16_777_216))]
    pub num_ctx: Option<u32>,
    /// Text made of each line or row: {{line}}, or {{column}} with CSV
    #[arg(long, value_name = "TEXT")]
    pub template: Option<String>,
    /// The column that names the rows of CSV [default: their line numbers]
    #[arg(long, value_name = "COLUMN")]
    pub id_column: Option<String>,
    /// Write all vectors to this file as a NumPy array of float32 instead of JSONL; rows that failed are NaN
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "as_completed"])]
    pub npy: Option<PathBuf>,
    /// Where the results go
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `tropa plan`.
#[derive(Debug, ClapArgs)]
pub struct PlanArgs {
    /// What would run
    #[arg(value_name = "FILE")]
    pub input: PathBuf,
    /// How the input looks
    #[command(flatten)]
    pub job: JobArgs,
    /// Say for every install why it takes part or does not
    #[arg(long)]
    pub why: bool,
}

/// What a job asks of the models.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct JobArgs {
    /// How the input looks: by suffix, else by the first item
    #[arg(long = "input", id = "kind", value_name = "KIND", default_value = "auto")]
    pub kind: InputKind,
    /// The model where an item names none [default: the one that is loaded, else the only one]
    #[arg(short, long, value_name = "NAME", env = "TROPA_MODEL")]
    pub model: Option<String>,
    /// Tokens of an answer, at most [default: 512]
    #[arg(long, value_name = "N", env = "TROPA_MAX_TOKENS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_tokens: Option<u32>,
    /// Context in tokens, one value for all [default: as much as the longest item needs; far shorter ones get less]
    #[arg(long, value_name = "N", env = "TROPA_NUM_CTX", value_parser = clap::value_parser!(u32).range(256..=16_777_216))]
    pub num_ctx: Option<u32>,
    /// System prompt where an item has none
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Prompt made of each line or row: {{line}}, or {{column}} with CSV
    #[arg(long, value_name = "TEXT")]
    pub template: Option<String>,
    /// The column that names the rows of CSV [default: their line numbers]
    #[arg(long, value_name = "COLUMN")]
    pub id_column: Option<String>,
    /// The url of batch items that have none
    #[arg(long, value_name = "PATH")]
    pub endpoint: Option<String>,
    /// Sampling temperature where an item has none
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Seed where an item has none; equal seeds do not promise equal text on different hardware
    #[arg(long, value_name = "N")]
    pub seed: Option<i64>,
    /// Let models think that can
    #[arg(long)]
    pub think: bool,
}

/// What a job whose chunks build on each other asks of the models.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct AskArgs {
    /// The model [default: the one that is loaded, else the only one]
    #[arg(short, long, value_name = "NAME", env = "TROPA_MODEL")]
    pub model: Option<String>,
    /// Context in tokens, one value for all [default: as much as the largest request needs; far smaller ones get less]
    #[arg(long, value_name = "N", env = "TROPA_NUM_CTX", value_parser = clap::value_parser!(u32).range(256..=16_777_216))]
    pub num_ctx: Option<u32>,
    /// System prompt of every request, before what the command itself says there
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Sampling temperature
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Seed of the first chunk, the next ones count on; equal seeds do not promise equal text on different hardware
    #[arg(long, value_name = "N")]
    pub seed: Option<i64>,
    /// Let models think that can
    #[arg(long)]
    pub think: bool,
    /// Say what would run where, and run nothing
    #[arg(long)]
    pub plan: bool,
    /// With --plan: say for every install why it takes part or does not
    #[arg(long, requires = "plan")]
    pub why: bool,
}

/// How an input looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum InputKind {
    /// By suffix, else by the first item.
    #[default]
    Auto,
    /// OpenAI Batch: objects with `body`.
    Batch,
    /// Objects with `prompt`, `messages` or `input`.
    Jsonl,
    /// A header, then rows; with `--template`.
    Csv,
    /// One prompt a line.
    Lines,
}

/// Where the results of a job go.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct OutputArgs {
    /// Write the results to this file, complete or not at all [default: stdout, as they come in order]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write each result as soon as it is committed; `tropa.index` tells its place
    #[arg(long)]
    pub as_completed: bool,
}

/// `tropa machines`.
#[derive(Debug, ClapArgs)]
pub struct MachinesArgs {
    /// Give the decisive evidence for every line
    #[arg(long)]
    pub why: bool,
    /// Run all live tests for two agents now, named by label or by the beginning of their ids
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with = "why")]
    pub test: Option<Vec<String>>,
}

/// `tropa jobs`.
#[derive(Debug, ClapArgs)]
pub struct JobsArgs {
    /// What to do with them; absent: list them
    #[command(subcommand)]
    pub command: Option<JobsCommand>,
}

/// What to do with jobs.
#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// Show where a job stands: its items by outcome, its attempts, its machines
    Show(ShowArgs),
    /// Delete jobs with all that they hold; what was written elsewhere stays
    Purge(PurgeArgs),
}

/// `tropa jobs show`.
#[derive(Debug, ClapArgs)]
pub struct ShowArgs {
    /// The job, or the beginning of its id
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Show the attempts of this chunk, counted from 0
    #[arg(long, value_name = "N")]
    pub chunk: Option<u32>,
}

/// `tropa jobs purge`.
#[derive(Debug, ClapArgs)]
pub struct PurgeArgs {
    /// The jobs, or the beginnings of their ids
    #[arg(value_name = "JOB")]
    pub jobs: Vec<String>,
    /// All jobs that are done
    #[arg(long, conflicts_with = "jobs")]
    pub done: bool,
    /// All jobs submitted longer ago than this: 30d, 12h, 90m; together with --done those that are both
    #[arg(long, value_name = "TIME", conflicts_with = "jobs", value_parser = age)]
    pub older_than: Option<Duration>,
    /// Delete jobs that are not finished too; those that run are never deleted
    #[arg(long)]
    pub yes: bool,
}

/// `tropa report`.
#[derive(Debug, ClapArgs)]
pub struct ReportArgs {
    /// The job, or the beginning of its id
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Write one self-contained page with a timeline of every device; no prompts, no answers
    #[arg(long, conflicts_with = "json")]
    pub html: bool,
    /// Write the page to this file [default: stdout]
    #[arg(short, long, value_name = "FILE", requires = "html")]
    pub output: Option<PathBuf>,
}

/// `tropa cancel`.
#[derive(Debug, ClapArgs)]
pub struct CancelArgs {
    /// The job, or the beginning of its id
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Call off what runs instead of letting it end
    #[arg(long)]
    pub now: bool,
}

/// `tropa resume`.
#[derive(Debug, ClapArgs)]
pub struct ResumeArgs {
    /// The job, or the beginning of its id
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Run the chunks again that have failed
    #[arg(long)]
    pub failed: bool,
    /// Go on although the job was cancelled
    #[arg(long)]
    pub cancelled: bool,
    /// Check that the job was made from this input
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Where the results go
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `tropa nodes`.
#[derive(Debug, Subcommand)]
pub enum NodesCommand {
    /// Say which entries of a SynapticLlamas nodes file are distinct hardware, and print the file with those only
    Check(NodesCheckArgs),
}

/// `tropa nodes check`.
#[derive(Debug, ClapArgs)]
pub struct NodesCheckArgs {
    /// The file: {"nodes": [{"url": "http://HOST:11434", "name": "…"}]}; it is never changed
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Write the cleaned file here instead of stdout; it must not exist yet
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `tropa mesh`.
#[derive(Debug, Subcommand)]
pub enum MeshCommand {
    /// Write a new mesh secret and say what to do on the next machine
    New {
        /// Where to [default: the user's mesh.secret]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Write a secret for the same mesh with a new salt for hardware ids, and the old one beside it for a while
    Resalt {
        /// The secret as it is
        #[arg(value_name = "OLD")]
        old: PathBuf,
        /// Where to write the new one
        #[arg(value_name = "NEW")]
        new: PathBuf,
    },
    /// Read a mesh secret from stdin and keep it
    Join {
        /// Where to [default: the user's mesh.secret]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Resolves `HOST:PORT`, one or more addresses.
///
/// # Errors
/// When the text is not of that form, or the name does not resolve; names the text.
pub async fn resolve(peer: &str) -> anyhow::Result<Vec<SocketAddr>> {
    use anyhow::Context as _;
    let found = tokio::net::lookup_host(peer)
        .await
        .with_context(|| format!("--peer {peer}: not HOST:PORT, or not known"))?;
    Ok(found.collect())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Args::command().debug_assert();
    }
}
