//! What was typed, and what will happen: [`Args`] becomes a [`Config`] in one place, which alone reads the
//! environment.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::{Parser, Subcommand};
use tropa_proto::{
    bounded::{List, Text},
    mesh::AGENT_MEMORY,
    message::ModelName,
    permit::Permit,
    proof,
    secret::MeshSecret,
};

use crate::{
    Config,
    device_lock::LockPlaces,
    evidence::{LaneError, LaneSpec, Root},
    hours::{Hours, HoursError},
    ollama::{OllamaUrl, UrlError, begins_name, full_name, is_name},
    places::Places,
    policy::{Network, NetworkError, Policy},
    runtime_dir::RuntimePlaces,
};

/// The agent beside one Ollama install: reports its hardware and executes chunks; never schedules.
#[derive(Debug, Parser)]
#[command(name = "tropa-agent", version, max_term_width = 100, args_conflicts_with_subcommands = false)]
pub struct Args {
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The install [default: OLLAMA_HOST, else http://127.0.0.1:11434]
    #[arg(long, global = true, value_name = "URL", env = "TROPA_OLLAMA")]
    pub ollama: Option<String>,
    /// Listen here (repeatable) [default: port 11634, or another where it is taken; loopback without a secret]
    #[arg(long, value_name = "ADDR:PORT", env = "TROPA_LISTEN", value_delimiter = ',')]
    pub listen: Vec<SocketAddr>,
    /// Dial this member too (repeatable); needed where there is no multicast
    #[arg(long, value_name = "HOST:PORT", env = "TROPA_PEER", value_delimiter = ',')]
    pub peer: Vec<String>,
    /// The mesh secret [default: the user's or the system's mesh.secret, where there is one]
    #[arg(long, global = true, value_name = "FILE", env = "TROPA_MESH_SECRET_FILE")]
    pub mesh_secret_file: Option<PathBuf>,
    /// Do not show presence by multicast DNS
    #[arg(long)]
    pub no_mdns: bool,
    /// The devices that the install uses, such as dram or gpu:0 [default: found out]
    #[arg(long, global = true, value_name = "DEVICES", env = "TROPA_LANE")]
    pub lane: Option<String>,
    /// The log of Ollama, which names its GPUs [default: where the server writes it, if that can be read]
    #[arg(long, global = true, value_name = "FILE", env = "TROPA_OLLAMA_LOG")]
    pub ollama_log: Option<PathBuf>,
    /// A name for people [default: the host's name]
    #[arg(long, value_name = "NAME", env = "TROPA_LABEL")]
    pub label: Option<String>,
    /// Chunks that the install may work on at once: more than 1 only with OLLAMA_NUM_PARALLEL above 1 [default:
    /// measured]
    #[arg(long, value_name = "N", env = "TROPA_WIDTH", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub width: Option<u16>,
    /// A name of the machine: agents with one name are one machine, with different names different ones
    #[arg(long, global = true, value_name = "NAME", env = "TROPA_MACHINE")]
    pub machine: Option<String>,
    /// Read the hardware from this tree instead of the machine; believed only with `tropa --allow-declared`
    #[arg(long, global = true, value_name = "DIR", env = "TROPA_EVIDENCE_ROOT")]
    pub evidence_root: Option<PathBuf>,
    /// Where the device locks are [default: /run/tropa/lanes, else the user's runtime directory]
    #[arg(long, value_name = "DIR", env = "TROPA_LANE_LOCK_DIR")]
    pub lane_lock_dir: Option<PathBuf>,
    /// Where the coordinators of this machine find the agent [default: /run/tropa, else $XDG_RUNTIME_DIR/tropa]
    #[arg(long, global = true, value_name = "DIR", env = "TROPA_RUNTIME_DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// Where the agent keeps its key [default: $XDG_STATE_HOME/tropa]
    #[arg(long, value_name = "DIR", env = "TROPA_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Work with an Ollama that is not on this machine; the evidence may then not describe its hardware
    #[arg(long)]
    pub allow_remote_ollama: bool,
    /// Take an Ollama from 0.6.4 on, which cuts long prompts silently
    #[arg(long)]
    pub allow_old_ollama: bool,
    /// Let models run in Ollama's cloud: their prompts leave this machine
    #[arg(long)]
    pub allow_remote_models: bool,
    /// Run only this model (repeatable); one that ends in * stands for all that begin so [default: every model]
    #[arg(long, value_name = "NAME", env = "TROPA_ONLY_MODEL", value_delimiter = ',')]
    pub only_model: Vec<String>,
    /// Run nothing with a larger context, in tokens
    #[arg(long, value_name = "N", env = "TROPA_MAX_NUM_CTX", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_num_ctx: Option<u32>,
    /// Run nothing that may answer with more tokens
    #[arg(long, value_name = "N", env = "TROPA_MAX_NUM_PREDICT", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_num_predict: Option<u32>,
    /// Run only what comes from this network (repeatable), such as 127.0.0.0/8 [default: the whole mesh]
    #[arg(long, value_name = "ADDR[/BITS]", env = "TROPA_ONLY_FROM", value_delimiter = ',')]
    pub only_from: Vec<String>,
    /// Run something only between these times of day (repeatable), such as 22:00-06:00, in local time (TZ, else
    /// the host's; a container's is mostly UTC); what runs when they end is finished [default: all day]
    #[arg(long, value_name = "HH:MM-HH:MM", env = "TROPA_ONLY_HOURS", value_delimiter = ',')]
    pub only_hours: Vec<String>,
    /// Start no more chunks than this in an hour, for all coordinators together [default: any number]
    #[arg(long, value_name = "N", env = "TROPA_MAX_RATE", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_rate: Option<u32>,
    /// Take prompts with pictures, whose decoders have had more holes than those of text
    #[arg(long)]
    pub allow_images: bool,
    /// Log what happens to stderr; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// What to do instead of running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print what would be published, and what was not readable and why
    Evidence {
        /// Print the raw hardware ids too; they never leave the machine otherwise
        #[arg(long)]
        show_raw: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
        /// As root: write what only root can read where an agent without rights finds it, until the next boot
        #[arg(long, conflicts_with_all = ["show_raw", "json"])]
        privileged: bool,
    },
}

/// Says why the arguments cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// There is no home directory to keep state in.
    #[error("finding the home directory failed: set HOME, or pass --state-dir")]
    Home(#[source] etcetera::HomeDirError),
    /// The address of the install is not one.
    #[error("the address of Ollama, {0}, cannot be used")]
    Ollama(String, #[source] UrlError),
    /// An agent without a secret listens on loopback only.
    #[error(
        "--listen {0} needs a mesh secret: `tropa mesh new` makes one; without it an agent listens on loopback only"
    )]
    Exposed(SocketAddr),
    /// The devices of the install cannot be read.
    #[error("--lane cannot be used")]
    Lane(#[source] LaneError),
    /// The log of Ollama cannot be read where it was named.
    #[error("--ollama-log {0} cannot be used: {1}")]
    Log(PathBuf, String),
    /// A name of a model is none, or there are too many.
    #[error("--only-model {0} cannot be used: {1}")]
    OnlyModel(String, String),
    /// A network cannot be read.
    #[error("--only-from cannot be used")]
    OnlyFrom(#[source] NetworkError),
    /// A range of hours cannot be read.
    #[error("--only-hours cannot be used")]
    OnlyHours(#[source] HoursError),
    /// The secret cannot be read.
    #[error("reading the mesh secret failed")]
    Secret(#[source] tropa_proto::secret::SecretError),
}

/// Where the agents of this machine are listed: the named directory, else the usual places of this environment.
#[must_use]
pub fn runtime_places(named: Option<&Path>) -> RuntimePlaces {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match named {
        Some(directory) => RuntimePlaces::new(vec![directory.join("agents")]),
        None => RuntimePlaces::usual(runtime.as_deref(), &std::env::temp_dir()),
    }
}

/// Where the device locks of this environment may be.
#[must_use]
pub fn lock_places() -> LockPlaces {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    LockPlaces::usual(runtime.as_deref())
}

impl ArgsError {
    /// The exit code that it ends with (`conventions.md` §3).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Secret(_) => 77,
            Self::Home(_)
            | Self::Ollama(..)
            | Self::Exposed(_)
            | Self::Lane(_)
            | Self::Log(..)
            | Self::OnlyModel(..)
            | Self::OnlyFrom(_)
            | Self::OnlyHours(_) => 64,
        }
    }
}

impl Args {
    /// Turns what was typed into what will happen.
    ///
    /// # Errors
    /// Names the argument that cannot be followed, and the remedy.
    pub fn resolve(self) -> Result<Config, ArgsError> {
        let places = Places::of_user().map_err(ArgsError::Home)?;
        let secret = self.secret(&places)?;
        if let Some(exposed) =
            self.listen.iter().find(|address| secret.is_none() && !address.ip().is_loopback())
        {
            return Err(ArgsError::Exposed(*exposed));
        }
        let ollama = self.ollama_url()?;
        let policy = self.policy()?;
        let lane = self.lane.as_deref().map(str::parse::<LaneSpec>).transpose().map_err(ArgsError::Lane)?;
        let root = self.evidence_root.map_or_else(Root::live, Root::declared);
        let log = self.ollama_log.map(|path| log_below(&root, path)).transpose()?;
        let runtime = runtime_places(self.runtime_dir.as_deref());
        let lock_places = match self.lane_lock_dir {
            Some(directory) => LockPlaces { system: directory, user: None },
            None => lock_places(),
        };
        let state = self.state_dir.unwrap_or(places.state);
        Ok(Config {
            mdns: secret.is_some() && !self.no_mdns,
            ollama,
            policy,
            listen: self.listen,
            peers: self.peer,
            secret,
            lane,
            log,
            label: self.label.unwrap_or_else(crate::host_name),
            width: self.width.unwrap_or(0),
            machine: self.machine,
            root,
            lock_dir: lock_places.choose(),
            runtime: Some(runtime),
            state,
            memory: Some(proof::number("TROPA_TEST_MEMORY").unwrap_or(AGENT_MEMORY)),
        })
    }

    /// Finds the mesh secret: the named file, else the user's, else the system's, else none.
    fn secret(&self, places: &Places) -> Result<Option<MeshSecret>, ArgsError> {
        let file = match &self.mesh_secret_file {
            Some(path) => Some(path.clone()),
            None => places.find("mesh.secret"),
        };
        file.map(|path| MeshSecret::read(&path)).transpose().map_err(ArgsError::Secret)
    }

    fn policy(&self) -> Result<Policy, ArgsError> {
        let models: Vec<ModelName> =
            self.only_model.iter().map(|name| model_pattern(name)).collect::<Result<_, _>>()?;
        let many = |_| {
            let why = format!("there are more than {} of them", List::<ModelName, 64>::MAX);
            ArgsError::OnlyModel(self.only_model.join(","), why)
        };
        let hours = Hours::read(&self.only_hours).map_err(ArgsError::OnlyHours)?;
        let networks = self.only_from.iter().map(|network| network.parse::<Network>());
        Ok(Policy {
            allow_remote_models: self.allow_remote_models,
            allow_old: self.allow_old_ollama,
            permit: Permit {
                models: List::new(models).map_err(many)?,
                num_ctx: self.max_num_ctx.unwrap_or(0),
                num_predict: self.max_num_predict.unwrap_or(0),
                images: self.allow_images,
                hours: Text::cut(&hours.to_string()),
                rate: self.max_rate.unwrap_or(0),
                shut: None,
            },
            hours,
            only_from: networks.collect::<Result<_, _>>().map_err(ArgsError::OnlyFrom)?,
        })
    }

    fn ollama_url(&self) -> Result<OllamaUrl, ArgsError> {
        let refused = |text: &str| {
            let text = text.to_owned();
            move |source| ArgsError::Ollama(text, source)
        };
        let host = std::env::var("OLLAMA_HOST").ok().filter(|host| !host.is_empty());
        let url = match (&self.ollama, &host) {
            (Some(url), _) => OllamaUrl::parse(url, self.allow_remote_ollama).map_err(refused(url))?,
            (None, Some(host)) => {
                OllamaUrl::from_ollama_host(host, self.allow_remote_ollama).map_err(refused(host))?
            }
            (None, None) => OllamaUrl::default(),
        };
        Ok(url)
    }
}

/// The path of the log below the root, where there is a file that can be read.
fn log_below(root: &Root, path: PathBuf) -> Result<String, ArgsError> {
    let refused = |why: String| ArgsError::Log(path.clone(), why);
    let absolute = if root.is_declared() { Ok(path.clone()) } else { std::path::absolute(&path) };
    let absolute = absolute.map_err(|error| refused(error.to_string()))?;
    let text = absolute.to_str().ok_or_else(|| refused("its name is not UTF-8".to_owned()))?.to_owned();
    match root.regular(&text).why_not() {
        None => Ok(text),
        Some(why) => Err(refused(format!("{why}; name a file that this user may read"))),
    }
}

/// A model as a permit names it: completed as Ollama does, or up to its `*`.
fn model_pattern(name: &str) -> Result<ModelName, ArgsError> {
    let refused = |why: &str| ArgsError::OnlyModel(name.to_owned(), why.to_owned());
    let (bare, is_beginning) = name.strip_suffix('*').map_or((name, false), |bare| (bare, true));
    if bare.contains('*') {
        return Err(refused("a * stands at the end only"));
    }
    if !(if is_beginning { begins_name(bare) } else { is_name(bare) }) {
        return Err(refused("it is not a name as `ollama list` shows them"));
    }
    let full = if is_beginning { name.to_lowercase() } else { full_name(name) };
    ModelName::new(full).map_err(|_| refused("it is longer than any name of a model"))
}
