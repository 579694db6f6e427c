//! The configuration files: the one that is named or else the user's, and below it the system's, which says what the
//! first leaves open.

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Deserialize;
use toml::Spanned;
use tropa_agent::places::Places;

use super::{JobDefaults, Source};
use crate::rules::{Book, Said, line_at};

/// The name of a configuration file in its directory.
const NAME: &str = "config.toml";

/// A configuration file larger than this is not one.
const MAX_CONFIG: u64 = 1 << 20;

/// One configuration file that was read.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Which of the files it is.
    pub source: Source,
    /// What it says.
    pub(super) said: File,
    /// Its rules.
    pub(super) rules: Book,
}

/// What a configuration file may say.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) peer: Vec<String>,
    pub(super) mesh_secret_file: Option<PathBuf>,
    pub(super) mdns: Option<bool>,
    pub(super) ollama: Option<String>,
    pub(super) wait: Option<f64>,
    pub(super) job: JobDefaults,
    rule: Vec<Spanned<Said>>,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large to be one.
    #[error("{} has {size} bytes: not a configuration file", path.display())]
    Large {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// What it says is not TOML, has an unknown key, or a value that cannot be.
    #[error("{}: {whole}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1, where the reader tells.
        line: Option<u32>,
        /// What is wrong, and for an unknown key which there are.
        what: String,
        /// The same with the line itself.
        whole: String,
    },
}

impl FileError {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Read { path, .. } | Self::Large { path, .. } | Self::Invalid { path, .. } => path,
        }
    }
}

/// Reads the files that count, the strongest first, and says which of them cannot be used.
pub(super) fn read_all(named: Option<&Path>, places: &Places) -> (Vec<ConfigFile>, Vec<FileError>) {
    let user = Some(places.config.join(NAME)).filter(|path| path.exists());
    let first = match named {
        Some(path) => Some((path.to_owned(), Source::NamedFile(path.to_owned()))),
        None => user.map(|path| (path.clone(), Source::UserFile(path))),
    };
    let system = places.system.as_ref().map(|place| place.join(NAME));
    let system = system.filter(|path| path.exists() && Some(path.as_path()) != named);
    let (mut files, mut wrong) = (Vec::new(), Vec::new());
    for (path, source) in first.into_iter().chain(system.map(|path| (path.clone(), Source::SystemFile(path))))
    {
        match read(path, source) {
            Ok(file) => files.push(file),
            Err(error) => wrong.push(error),
        }
    }
    (files, wrong)
}

/// Reads one file; the rules come apart, with their lines and the time when the file was changed.
fn read(path: PathBuf, source: Source) -> Result<ConfigFile, FileError> {
    let failed = |source| FileError::Read { path: path.clone(), source };
    let metadata = std::fs::metadata(&path).map_err(failed)?;
    if metadata.len() > MAX_CONFIG {
        return Err(FileError::Large { size: metadata.len(), path });
    }
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let mut said: File = toml::from_str(&text).map_err(|error| FileError::Invalid {
        path: path.clone(),
        line: error.span().map(|span| line_at(&text, span.start)),
        what: error.message().to_owned(),
        // The reader's own words show the line, the key and what is allowed there.
        whole: error.to_string(),
    })?;
    let changed = metadata.modified().ok().map(since_1970_ms);
    let rules = Book::new(std::mem::take(&mut said.rule), &text, path.clone(), changed)
        .map_err(|what| FileError::Invalid { path: path.clone(), line: None, whole: what.clone(), what })?;
    Ok(ConfigFile { path, source, said, rules })
}

fn since_1970_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(directory: &Path) -> Places {
        let [config, system] = ["user", "system"].map(|name| directory.join(name));
        for place in [&config, &system] {
            std::fs::create_dir(place).unwrap();
        }
        Places { config, state: directory.join("state"), system: Some(system) }
    }

    #[test]
    fn the_named_file_takes_the_place_of_the_users_and_the_systems_is_below_either() {
        let directory = tempfile::tempdir().unwrap();
        let places = places(directory.path());
        let named = directory.path().join("named.toml");
        for path in [&named, &places.config.join(NAME), &places.system.clone().unwrap().join(NAME)] {
            std::fs::write(path, "wait = 1\n").unwrap();
        }
        let kinds = |named: Option<&Path>| {
            let (files, wrong) = read_all(named, &places);
            assert!(wrong.is_empty(), "{wrong:?}");
            files.into_iter().map(|file| file.source.name()).collect::<Vec<_>>()
        };
        assert_eq!(kinds(None), ["user file", "system file"]);
        assert_eq!(kinds(Some(&named)), ["--config file", "system file"]);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_with_its_line_and_the_others_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let places = places(directory.path());
        std::fs::write(places.config.join(NAME), "wait = 3\nmodl = \"x\"\n").unwrap();
        std::fs::write(places.system.clone().unwrap().join(NAME), "wait = 1\n").unwrap();
        let (files, wrong) = read_all(None, &places);
        assert_eq!(files.len(), 1);
        let [FileError::Invalid { line: Some(2), what, .. }] = &wrong[..] else { panic!("{wrong:?}") };
        assert!(what.contains("modl"), "{what}");
        let (_, wrong) = read_all(Some(Path::new("/nonexistent/config.toml")), &places);
        assert!(matches!(&wrong[..], [FileError::Read { .. }]), "{wrong:?}");
    }
}
