//! Where configuration and state lie: the directories of the XDG specification on Linux and macOS, `%APPDATA%` and
//! `%LOCALAPPDATA%` on Windows (`conventions.md` §3).

use std::path::PathBuf;

#[cfg(windows)]
use etcetera::base_strategy::Windows as Strategy;
#[cfg(unix)]
use etcetera::base_strategy::Xdg as Strategy;
use etcetera::{BaseStrategy as _, HomeDirError};

/// The directories of tropa.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The user's configuration and mesh secret.
    pub config: PathBuf,
    /// Identities and jobs; not roamed from machine to machine.
    pub state: PathBuf,
    /// The configuration of all users of the machine. On Windows there is none: what lies in `%ProgramData%` may have
    /// been put there by any user.
    pub system: Option<PathBuf>,
}

impl Places {
    /// Takes those of this user.
    ///
    /// # Errors
    /// When there is no home directory.
    pub fn of_user() -> Result<Self, HomeDirError> {
        let places = Strategy::new()?;
        // What Windows calls a cache is the part of the profile that stays on its machine.
        let own = if cfg!(windows) { places.cache_dir() } else { places.data_dir() };
        Ok(Self {
            config: places.config_dir().join("tropa"),
            state: places.state_dir().unwrap_or(own).join("tropa"),
            system: (!cfg!(windows)).then(|| PathBuf::from("/etc/tropa")),
        })
    }

    /// Finds a file of the configuration: the user's, else the system's, else none.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let places = std::iter::once(&self.config).chain(&self.system);
        places.map(|place| place.join(name)).find(|path| path.exists())
    }
}
