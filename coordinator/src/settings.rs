//! What will happen, made of what was typed, the environment, the configuration files and the defaults, in this
//! order of precedence; the only place that reads the environment (`conventions.md` §3).
//!
//! [`Chosen`] says which value each setting has and where it came from; [`Settings::open`] reads and checks what the
//! values name.

mod chosen;
mod file;

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use serde::Deserialize;
use tropa_agent::{device_lock::LockPlaces, ollama::OllamaUrl, runtime_dir::RuntimePlaces};
use tropa_proto::secret::MeshSecret;

pub use self::{
    chosen::{Address, Chosen, Setting, Source},
    file::{ConfigFile, FileError},
};
use crate::{
    args::{AskArgs, DoctorArgs, Global, JobArgs, When},
    exit::{Exit, Failed, OrExit as _},
    rules::Book,
};

/// How long a command waits for agents that should be there, unless told otherwise: three roster pulls.
const WAIT: Duration = Duration::from_secs(3);

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
    /// What the configuration files say of jobs.
    pub job: JobDefaults,
    /// What the configuration files say of agents and their machines.
    pub rules: Book,
}

/// What a configuration file may say of jobs; a flag wins.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct JobDefaults {
    model: Option<String>,
    max_tokens: Option<u32>,
    num_ctx: Option<u32>,
    system: Option<String>,
    temperature: Option<f64>,
}

impl Settings {
    /// Resolves everything, or names what is wrong and how to mend it.
    ///
    /// # Errors
    /// With [`Exit::Usage`] for a file that cannot be used, an unknown key or a value out of range,
    /// [`Exit::NotAuthorised`] for a secret that others can read.
    pub fn resolve(global: &Global) -> Result<Self, Failed> {
        let (chosen, wrong) = Chosen::of(global, &JobDefaults::default())?;
        match wrong.into_iter().next() {
            Some(error) => Err(error).or_exit(Exit::Usage),
            None => Self::open(&chosen, global),
        }
    }

    /// Reads and checks what was chosen.
    ///
    /// # Errors
    /// As [`Settings::resolve`], but for the files, which have been read.
    pub fn open(chosen: &Chosen, global: &Global) -> Result<Self, Failed> {
        let secret = chosen.secret_file.as_deref().map(MeshSecret::read).transpose();
        let wait = Duration::try_from_secs_f64(chosen.wait)
            .with_context(|| format!("--wait {}: not a number of seconds", chosen.wait));
        Ok(Self {
            peers: chosen.peers.clone(),
            secret: secret.or_exit(Exit::NotAuthorised)?,
            mdns: chosen.mdns,
            ollama: ollama(chosen.ollama.as_ref())?,
            allow_declared: global.allow_declared,
            runtime: chosen.runtime.clone(),
            locks: chosen.locks.clone(),
            wait: wait.or_exit(Exit::Usage)?,
            backups: !global.no_backups,
            json: global.json,
            progress: global.progress,
            quiet: global.quiet,
            state: chosen.places.state.clone(),
            config: chosen.places.config.clone(),
            job: chosen.job.clone(),
            rules: chosen.rules.clone(),
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
    /// What was typed for a look at what a job would meet.
    #[must_use]
    pub fn asked(args: &DoctorArgs) -> Self {
        let (model, max_tokens, num_ctx) = (args.model.clone(), args.max_tokens, args.num_ctx);
        Self { model, max_tokens, num_ctx, ..Self::default() }
    }

    /// The model that jobs use, where it is said.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Context in tokens, where it is said.
    #[must_use]
    pub fn num_ctx(&self) -> Option<u32> {
        self.num_ctx
    }

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

fn ollama(address: Option<&Address>) -> Result<OllamaUrl, Failed> {
    match address {
        None => Ok(OllamaUrl::default()),
        Some(Address::Named(url)) => {
            OllamaUrl::parse(url, false).with_context(|| format!("--ollama {url}")).or_exit(Exit::Usage)
        }
        Some(Address::Host(host)) => OllamaUrl::from_ollama_host(host, false)
            .with_context(|| format!("OLLAMA_HOST={host}"))
            .or_exit(Exit::Usage),
    }
}
