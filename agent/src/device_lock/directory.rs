//! Where the lock files lie, and which directories are no place for them.

use std::path::{Path, PathBuf};

use tropa_proto::system::{self, Access, FileSystem};

use super::LockError;

/// The places for lock files, in the order of preference.
#[derive(Clone, Debug)]
pub struct LockPlaces {
    /// One for all users and containers of the host: `/run/tropa/lanes`, on Windows `%ProgramData%\tropa\lanes`.
    pub system: PathBuf,
    /// `$XDG_RUNTIME_DIR/tropa/lanes`, which excludes agents of one user only.
    pub user: Option<PathBuf>,
}

impl LockPlaces {
    /// Takes the usual places; `runtime` is what `XDG_RUNTIME_DIR` says.
    #[must_use]
    pub fn usual(runtime: Option<&Path>) -> Self {
        Self {
            system: system::run_directory().join("tropa/lanes"),
            user: runtime.map(|directory| directory.join("tropa/lanes")),
        }
    }

    /// Says which place [`LockPlaces::choose`] would take, and makes nothing.
    ///
    /// # Errors
    /// What is wrong with the last of the places, where none can be used.
    pub fn would_choose(&self) -> Result<PathBuf, LockError> {
        let mut found = may_be(&self.system);
        if let (Err(_), Some(user)) = (&found, &self.user) {
            found = may_be(user);
        }
        found
    }

    /// Takes the first place that can be used, and makes it where we may; `None` means that nothing on this host
    /// excludes other agents (`nolock`).
    #[must_use]
    pub fn choose(&self) -> Option<PathBuf> {
        let places = [(Some(&self.system), 0o2770), (self.user.as_ref(), 0o700)];
        places.into_iter().find_map(|(place, mode)| {
            let place = place?;
            match make(place, mode).and_then(|()| check(place)) {
                Ok(()) => Some(place.clone()),
                // Of two usual places one may be missing; one that the operator has named must not be.
                Err(error) if self.user.is_none() => {
                    tracing::warn!(%error, "no device locks: several coordinators may overlap here");
                    None
                }
                Err(error) => {
                    tracing::debug!(place = %place.display(), %error, "no place for lane locks");
                    None
                }
            }
        })
    }
}

/// Refuses a directory whose locks would exclude nobody, or which anybody may change.
///
/// FUSE is refused as a network is: what stands behind it may be another kernel's (virtual machines, Docker Desktop,
/// sshfs). Where nothing tells who may change a directory it is taken: a lock that somebody spoils costs time, and no
/// lock at all would cost more of it.
///
/// # Errors
/// When it is a link, not a directory, world-writable, somebody else's and not root's, not writable for us, or on
/// a network file system.
pub(super) fn check(directory: &Path) -> Result<(), LockError> {
    let io = |source| LockError::Io { what: "look at", path: directory.into(), source };
    let unfit = |what: String| Err(LockError::Unfit { path: directory.into(), what });
    let found = std::fs::symlink_metadata(directory).map_err(io)?;
    if !found.is_dir() {
        return unfit("not a directory".to_owned());
    }
    match system::access(directory, &found) {
        Access::Bits { mode, .. } if mode & 0o002 != 0 => {
            return unfit(format!("writable for everybody: chmod o-w {}", directory.display()));
        }
        // Group-shared directories of another user are the operator's choice; a private one of another is not ours.
        Access::Bits { owner, mode } if owner != 0 && Some(owner) != system::user() && mode & 0o020 == 0 => {
            return unfit(format!("owned by user {owner}"));
        }
        Access::Bits { .. } | Access::Profile | Access::Unknown => {}
    }
    system::may_make_files(directory).map_err(io)?;
    match system::file_system(directory).map_err(io)? {
        FileSystem::Local | FileSystem::Passing => Ok(()),
        FileSystem::Fuse => unfit(elsewhere("FUSE")),
        FileSystem::Network(name) => unfit(elsewhere(name)),
    }
}

/// A place that can be used, or made.
fn may_be(place: &Path) -> Result<PathBuf, LockError> {
    if std::fs::symlink_metadata(place).is_ok() {
        return check(place).map(|()| place.to_owned());
    }
    // Of what is above it at most one directory is made.
    let above = place.ancestors().skip(1).take(2).find(|above| above.is_dir()).unwrap_or(place);
    let io = |source| LockError::Io { what: "make", path: place.to_owned(), source };
    system::may_make_files(above).map_err(io).map(|()| place.to_owned())
}

fn elsewhere(name: &str) -> String {
    format!("on a network file system ({name}), whose locks other kernels do not see")
}

fn make(directory: &Path, mode: u32) -> Result<(), LockError> {
    if std::fs::symlink_metadata(directory).is_ok() {
        return Ok(());
    }
    let io = |source| LockError::Io { what: "make", path: directory.into(), source };
    if let Some(parent) = directory.parent().filter(|parent| !parent.exists()) {
        let parent_mode = if mode & 0o070 == 0 { 0o700 } else { 0o755 };
        system::directories(parent_mode).create(parent).map_err(io)?;
    }
    match system::directories(0o700).create(directory) {
        Ok(()) => {}
        // Another agent was faster.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(io(error)),
    }
    // The umask took bits away that the group needs.
    system::set_directory_mode(directory, mode).map_err(io)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn the_first_usable_place_is_made_and_taken() {
        let directory = tempfile::tempdir().unwrap();
        let system = directory.path().join("run/tropa/lanes");
        let user = directory.path().join("user/tropa/lanes");
        // `run` is missing: only one level is made, as a system directory would be there.
        std::fs::create_dir(directory.path().join("user")).unwrap();
        let places = LockPlaces { system: system.clone(), user: Some(user.clone()) };
        assert_eq!(places.would_choose().unwrap(), user);
        assert!(!user.exists(), "nothing is made");
        assert_eq!(places.choose(), Some(user.clone()));
        assert_eq!(user.metadata().unwrap().mode() & 0o7777, 0o700);
        std::fs::create_dir(directory.path().join("run")).unwrap();
        assert_eq!(places.choose(), Some(system.clone()));
        assert_eq!(system.metadata().unwrap().mode() & 0o7777, 0o2770);
        let nowhere = LockPlaces { system: directory.path().join("no/no/lanes"), user: None };
        assert_eq!(nowhere.choose(), None);
        assert!(matches!(nowhere.would_choose(), Err(LockError::Io { .. })));
    }

    #[test]
    fn a_directory_that_anybody_may_change_is_refused_with_the_command_that_mends_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = check(directory.path()).unwrap_err().to_string();
        assert!(error.contains("chmod o-w"), "{error}");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        assert!(matches!(check(&link), Err(LockError::Unfit { .. })));
    }
}
