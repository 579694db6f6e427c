//! What will happen, made of what was typed, the environment, the configuration file and the defaults, in this
//! order of precedence; the only place that reads the environment (`conventions.md` §3).

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow};
use serde::Deserialize;
use toml::Spanned;
use tropa_agent::{
    args::{lock_places, runtime_places},
    device_lock::LockPlaces,
    ollama::OllamaUrl,
    places::Places,
    runtime_dir::RuntimePlaces,
};
use tropa_proto::secret::MeshSecret;

use crate::{
    args::{AskArgs, Global, JobArgs, When},
    exit::{Exit, Failed, OrExit as _},
    rules::{Book, Said},
};

/// How long a command waits for agents that should be there, unless told otherwise: three roster pulls.
const WAIT: Duration = Duration::from_secs(3);

/// A configuration file larger than this is not one.
const MAX_CONFIG: u64 = 1 << 20;

/// What every command knows.
#[derive(Debug)]
pub struct Settings {
    /// Agents to dial, as `HOST:PORT`.
    pub peers: Vec<String>,
    /// The mesh that the command joins; none: loopback only.
    pub secret: Option<MeshSecret>,
    /// Look for agents by multicast DNS; only ever with a secret.
    pub mdns: bool,
    /// The Ollama to use where no agent answers.
    pub ollama: OllamaUrl,
    /// Believe evidence that an operator declared.
    pub allow_declared: bool,
    /// Where the agents of this machine are listed.
    pub runtime: RuntimePlaces,
    /// Where the device locks of this machine may be, for an agent of our own.
    pub locks: LockPlaces,
    /// Wait at most this long for agents that should be there.
    pub wait: Duration,
    /// Idle installs run what is late elsewhere.
    pub backups: bool,
    /// One JSON object on stdout.
    pub json: bool,
    /// When to show progress.
    pub progress: When,
    /// Errors only.
    pub quiet: bool,
    /// Where jobs and identities are kept, `$XDG_STATE_HOME/tropa`.
    pub state: PathBuf,
    /// Where the user's configuration and secret are, `$XDG_CONFIG_HOME/tropa`.
    pub config: PathBuf,
    /// What the configuration file says of jobs.
    pub job: JobDefaults,
    /// What the configuration file says of agents and their machines.
    pub rules: Book,
}

/// What the configuration file may say of jobs; a flag wins.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct JobDefaults {
    model: Option<String>,
    max_tokens: Option<u32>,
    num_ctx: Option<u32>,
    system: Option<String>,
    temperature: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    peer: Vec<String>,
    mesh_secret_file: Option<PathBuf>,
    mdns: Option<bool>,
    ollama: Option<String>,
    wait: Option<f64>,
    job: JobDefaults,
    rule: Vec<Spanned<Said>>,
}

impl Settings {
    /// Resolves everything, or names what is wrong and how to mend it.
    ///
    /// # Errors
    /// With [`Exit::Usage`] for a value out of range or an unknown key, [`Exit::Io`] for a file that cannot be
    /// read, [`Exit::NotAuthorised`] for a secret that others can read.
    pub fn resolve(global: &Global) -> Result<Self, Failed> {
        let places = Places::of_user().context("finding the home directory").or_exit(Exit::Usage)?;
        let (file, rules) = File::read(global.config.as_deref(), &places)?;
        let secret =
            find_secret(global.mesh_secret_file.as_ref().or(file.mesh_secret_file.as_ref()), &places)?;
        let ollama = ollama(global.ollama.as_ref().or(file.ollama.as_ref()))?;
        let wait = match global.wait.or(file.wait) {
            None => WAIT,
            Some(seconds) => Duration::try_from_secs_f64(seconds)
                .with_context(|| format!("--wait {seconds}: not a number of seconds"))
                .or_exit(Exit::Usage)?,
        };
        Ok(Self {
            peers: if global.peer.is_empty() { file.peer } else { global.peer.clone() },
            mdns: secret.is_some() && !global.no_mdns && file.mdns.unwrap_or(true),
            secret,
            ollama,
            allow_declared: global.allow_declared,
            runtime: runtime_places(global.runtime_dir.as_deref()),
            locks: lock_places(),
            wait,
            backups: !global.no_backups,
            json: global.json,
            progress: global.progress,
            quiet: global.quiet,
            state: places.state,
            config: places.config,
            job: file.job,
            rules,
        })
    }

    /// Where the user's mesh secret is kept.
    #[must_use]
    pub fn secret_file(&self) -> PathBuf {
        self.config.join("mesh.secret")
    }

    /// Where the jobs are kept, one directory each.
    #[must_use]
    pub fn jobs(&self) -> PathBuf {
        self.state.join("jobs")
    }
}

impl JobDefaults {
    /// Fills in what was not typed.
    pub fn fill(&self, args: &mut JobArgs) {
        args.model = args.model.take().or_else(|| self.model.clone());
        args.max_tokens = args.max_tokens.or(self.max_tokens);
        args.num_ctx = args.num_ctx.or(self.num_ctx);
        args.system = args.system.take().or_else(|| self.system.clone());
        args.temperature = args.temperature.or(self.temperature);
    }

    /// Tokens of an answer, at most, where the configuration says.
    #[must_use]
    pub fn max_tokens(&self) -> Option<u32> {
        self.max_tokens
    }

    /// Fills in what was not typed. Limits of tokens are each command's own.
    pub fn fill_ask(&self, args: &mut AskArgs) {
        args.model = args.model.take().or_else(|| self.model.clone());
        args.num_ctx = args.num_ctx.or(self.num_ctx);
        args.system = args.system.take().or_else(|| self.system.clone());
        args.temperature = args.temperature.or(self.temperature);
    }
}

impl File {
    /// Reads the file that was named, else the user's, else the system's, else nothing; the rules come apart, with
    /// their lines and the time when the file was changed.
    fn read(named: Option<&Path>, places: &Places) -> Result<(Self, Book), Failed> {
        let Some(path) = named.map(Path::to_owned).or_else(|| places.find("config.toml")) else {
            return Ok((Self::default(), Book::default()));
        };
        let metadata = std::fs::metadata(&path);
        let metadata =
            metadata.with_context(|| format!("reading {}", path.display())).or_exit(Exit::Usage)?;
        let size = metadata.len();
        if size > MAX_CONFIG {
            let message = format!("{} has {size} bytes: not a configuration file", path.display());
            return Err(Failed::new(Exit::Usage, message));
        }
        let text = std::fs::read_to_string(&path);
        let text = text.with_context(|| format!("reading {}", path.display())).or_exit(Exit::Usage)?;
        // The error of the TOML reader shows the line, the key and what is allowed there.
        let read = toml::from_str(&text).map_err(|error| anyhow!("{}: {error}", path.display()));
        let mut file: Self = read.or_exit(Exit::Usage)?;
        let changed = metadata.modified().ok().map(since_1970_ms);
        let rules = Book::new(std::mem::take(&mut file.rule), &text, path.clone(), changed);
        let rules = rules.map_err(|why| anyhow!("{}: {why}", path.display())).or_exit(Exit::Usage)?;
        Ok((file, rules))
    }
}

fn since_1970_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn find_secret(named: Option<&PathBuf>, places: &Places) -> Result<Option<MeshSecret>, Failed> {
    let found = named.cloned().or_else(|| places.find("mesh.secret"));
    found.map(|path| MeshSecret::read(&path)).transpose().or_exit(Exit::NotAuthorised)
}

fn ollama(named: Option<&String>) -> Result<OllamaUrl, Failed> {
    if let Some(url) = named {
        return OllamaUrl::parse(url, false).with_context(|| format!("--ollama {url}")).or_exit(Exit::Usage);
    }
    match std::env::var("OLLAMA_HOST") {
        Ok(host) if !host.is_empty() => OllamaUrl::from_ollama_host(&host, false)
            .with_context(|| format!("OLLAMA_HOST={host}"))
            .or_exit(Exit::Usage),
        Ok(_) | Err(_) => Ok(OllamaUrl::default()),
    }
}
