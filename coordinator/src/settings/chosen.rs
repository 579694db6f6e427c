//! Which value each setting has and where it came from, before anything is opened: flag, variable, file named by
//! `--config` or the user's, system file, default, in this order (`conventions.md` §3).

use std::path::PathBuf;

use anyhow::Context as _;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};
use serde_json::Value;
use tropa_agent::{
    args::{lock_places, runtime_places},
    device_lock::LockPlaces,
    places::Places,
    runtime_dir::RuntimePlaces,
};

use super::{
    JobDefaults, WAIT,
    file::{ConfigFile, File, FileError, read_all},
};
use crate::{
    args::{Global, Origin, Typed, When},
    exit::{Exit, Failed, OrExit as _},
    rules::Book,
};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It was typed.
    Flag,
    /// This variable of the environment says it.
    Variable(String),
    /// The file that `--config` names says it.
    NamedFile(PathBuf),
    /// The user's file says it.
    UserFile(PathBuf),
    /// The system's file says it.
    SystemFile(PathBuf),
    /// Nothing does.
    Default,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Its name: the long flag, behind `job.` where a file says it in that table.
    pub name: &'static str,
    /// What counts; `null`: nothing. Of a text of the user's only how long it is.
    pub value: Value,
    /// Where it came from.
    #[serde(flatten)]
    pub source: Source,
}

/// What was chosen, and where each value came from.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Agents to dial, as `HOST:PORT`.
    pub peers: Vec<String>,
    /// The file of the mesh secret: the one that was named, else one that is in its usual place; `None`: there is none.
    pub secret_file: Option<PathBuf>,
    /// Look for agents by multicast DNS.
    pub mdns: bool,
    /// The address of the Ollama of this machine, where somebody says it.
    pub ollama: Option<Address>,
    /// Seconds that a command waits for agents; not yet looked at.
    pub wait: f64,
    /// What the files say of jobs.
    pub job: JobDefaults,
    /// The operator's rules: those of the strongest file that has any.
    pub rules: Book,
    /// Where files of the user are.
    pub places: Places,
    /// Where the agents of this machine are listed.
    pub runtime: RuntimePlaces,
    /// Where the device locks of this machine may be.
    pub locks: LockPlaces,
    /// The files that were read, the strongest first.
    pub files: Vec<ConfigFile>,
    /// Every setting.
    pub settings: Vec<Setting>,
}

/// The address of an Ollama as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// As `--ollama` takes it.
    Named(String),
    /// As Ollama's own variable `OLLAMA_HOST` has it.
    Host(String),
}

impl Chosen {
    /// Chooses; says beside it which files cannot be used, as if they were not there. `job`: what was typed of jobs.
    ///
    /// # Errors
    /// With [`Exit::Usage`] where there is no home directory.
    pub fn of(global: &Global, job: &JobDefaults) -> Result<(Self, Vec<FileError>), Failed> {
        let places = Places::of_user().context("finding the home directory").or_exit(Exit::Usage)?;
        let (files, wrong) = read_all(global.config.as_deref(), &places);
        let host = std::env::var("OLLAMA_HOST").ok().filter(|host| !host.is_empty());
        Ok((Self::among(global, job, places, files, host), wrong))
    }

    pub(crate) fn among(
        global: &Global,
        job: &JobDefaults,
        places: Places,
        files: Vec<ConfigFile>,
        host: Option<String>,
    ) -> Self {
        let mut choose = Chooser { typed: &global.typed, files: &files, settings: Vec::new() };
        let typed = Some(global.peer.clone()).filter(|peers| !peers.is_empty());
        let peers = choose.value("peer", typed, |said| Some(said.peer.clone()).filter(|all| !all.is_empty()));
        let secret_file = choose.or(
            "mesh-secret-file",
            global.mesh_secret_file.clone(),
            |said| said.mesh_secret_file.clone(),
            || places.find("mesh.secret"),
        );
        let mdns = choose.value("mdns", global.no_mdns.then_some(false), |said| said.mdns).unwrap_or(true);
        let mdns = mdns && secret_file.is_some();
        choose.counts("mdns", mdns);
        let ollama = choose.value("ollama", global.ollama.clone(), |said| said.ollama.clone());
        let ollama = match (ollama, host) {
            (Some(url), _) => Some(Address::Named(url)),
            (None, Some(host)) => {
                choose.comes("ollama", &host, Source::Variable("OLLAMA_HOST".to_owned()));
                Some(Address::Host(host))
            }
            (None, None) => None,
        };
        let wait = choose.or("wait", global.wait, |said| said.wait, || Some(WAIT.as_secs_f64()));
        let job = JobDefaults {
            model: choose.value("job.model", job.model.clone(), |said| said.job.model.clone()),
            max_tokens: choose.value("job.max-tokens", job.max_tokens, |said| said.job.max_tokens),
            num_ctx: choose.value("job.num-ctx", job.num_ctx, |said| said.job.num_ctx),
            system: choose.value("job.system", job.system.clone(), |said| said.job.system.clone()),
            temperature: choose.value("job.temperature", job.temperature, |said| said.job.temperature),
        };
        if let Some(system) = &job.system {
            // It is a prompt.
            choose.counts("job.system", format!("{} bytes", system.len()));
        }
        let with_rules = files.iter().find(|file| !file.rules.is_empty());
        let rules = with_rules.map_or_else(Book::default, |file| file.rules.clone());
        choose.note("rule", rules.len(), with_rules.map_or(Source::Default, |file| file.source.clone()));
        choose.only_typed(global);
        choose.directories(&places);
        Self {
            peers: peers.unwrap_or_default(),
            secret_file,
            mdns,
            ollama,
            wait: wait.unwrap_or_default(),
            job,
            rules,
            runtime: runtime_places(global.runtime_dir.as_deref()),
            locks: lock_places(),
            settings: choose.settings,
            places,
            files,
        }
    }
}

/// Chooses values and notes each.
struct Chooser<'a> {
    typed: &'a Typed,
    files: &'a [ConfigFile],
    settings: Vec<Setting>,
}

impl Chooser<'_> {
    /// What was typed or a variable says, else what the strongest file says that does.
    fn value<T: Serialize>(
        &mut self,
        name: &'static str,
        typed: Option<T>,
        said: impl Fn(&File) -> Option<T>,
    ) -> Option<T> {
        self.or(name, typed, said, || None)
    }

    /// As [`Chooser::value`], else the default.
    fn or<T: Serialize>(
        &mut self,
        name: &'static str,
        typed: Option<T>,
        said: impl Fn(&File) -> Option<T>,
        default: impl FnOnce() -> Option<T>,
    ) -> Option<T> {
        let from_file = || self.files.iter().find_map(|file| Some((said(&file.said)?, file.source.clone())));
        let (value, source) = match typed.map(|value| (value, self.origin(name))).or_else(from_file) {
            Some((value, source)) => (Some(value), source),
            None => (default(), Source::Default),
        };
        self.note(name, &value, source);
        value
    }

    /// Where a value came from that was not in a file.
    fn origin(&self, name: &str) -> Source {
        let id = name.trim_start_matches("job.").replace('-', "_");
        match self.typed.origin(&id) {
            Some(Origin::Variable) => Source::Variable(format!("TROPA_{}", id.to_uppercase())),
            Some(Origin::Flag) | None => Source::Flag,
        }
    }

    fn note(&mut self, name: &'static str, value: impl Serialize, source: Source) {
        // What is noted here has no map with keys that are no texts, and nothing else fails.
        let value = serde_json::to_value(value).unwrap_or_default();
        self.settings.push(Setting { name, value, source });
    }

    /// Notes that something else counts than what was chosen.
    fn counts(&mut self, name: &str, value: impl Into<Value>) {
        if let Some(setting) = self.settings.iter_mut().find(|setting| setting.name == name) {
            setting.value = value.into();
        }
    }

    fn comes(&mut self, name: &str, value: &str, from: Source) {
        self.counts(name, value);
        if let Some(setting) = self.settings.iter_mut().find(|setting| setting.name == name) {
            setting.source = from;
        }
    }

    /// Notes what no file may say.
    fn only_typed(&mut self, global: &Global) {
        let when = |when: When| match when {
            When::Auto => "auto",
            When::Always => "always",
            When::Never => "never",
        };
        let switch = |name, on: bool| (name, Value::from(on), on);
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let given = |id: &str| self.typed.origin(id).is_some();
        let rows = [
            ("config", Value::from(path(&global.config)), global.config.is_some()),
            ("runtime-dir", Value::from(path(&global.runtime_dir)), global.runtime_dir.is_some()),
            switch("allow-declared", global.allow_declared),
            ("backups", Value::from(!global.no_backups), global.no_backups),
            switch("json", global.json),
            ("progress", Value::from(when(global.progress)), given("progress")),
            ("color", Value::from(when(global.color)), given("color")),
            switch("quiet", global.quiet),
            ("verbose", Value::from(global.verbose), global.verbose > 0),
        ];
        for (name, value, given) in rows {
            let source = if given { self.origin(name) } else { Source::Default };
            self.note(name, value, source);
        }
    }

    /// Notes where files are, which the system's variables say.
    fn directories(&mut self, places: &Places) {
        let rows = [
            ("config directory", &places.config, "XDG_CONFIG_HOME"),
            ("state directory", &places.state, "XDG_STATE_HOME"),
        ];
        for (name, path, variable) in rows {
            let set = std::env::var_os(variable).filter(|set| !set.is_empty());
            let set = set.is_some_and(|set| path.starts_with(set));
            let source = if set { Source::Variable(variable.to_owned()) } else { Source::Default };
            self.note(name, path, source);
        }
    }
}

impl Source {
    /// What kind of place it is, in the words of the documentation.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Variable(_) => "variable",
            Self::NamedFile(_) => "--config file",
            Self::UserFile(_) => "user file",
            Self::SystemFile(_) => "system file",
            Self::Default => "default",
        }
    }
}

/// `source`, the name of its kind, and `from`, the variable or the file, else `null`.
impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let from = match self {
            Self::Variable(name) => Some(name.clone()),
            Self::NamedFile(path) | Self::UserFile(path) | Self::SystemFile(path) => {
                Some(path.display().to_string())
            }
            Self::Flag | Self::Default => None,
        };
        let mut fields = serializer.serialize_struct("Source", 2)?;
        fields.serialize_field("source", self.name())?;
        fields.serialize_field("from", &from)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests;
