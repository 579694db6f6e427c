//! Where the lock files lie, and which directories are no place for them.

use std::{
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, AtFlags, CWD};

use super::LockError;

/// File systems whose locks another host or another kernel may not see, by the magic number of `statfs`.
///
/// FUSE and 9p are among them because what stands behind them is another kernel's (virtual machines, Docker
/// Desktop, sshfs). Numbers from `linux/magic.h` and from the file systems' own headers.
const NETWORK: [(u32, &str); 15] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xfe53_4d42, "SMB2"),
    (0xff53_4d42, "CIFS"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9p"),
    (0x5346_414f, "AFS"),
    (0x7375_7245, "Coda"),
    (0x00c3_6400, "Ceph"),
    (0x564c, "NCP"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
];

/// The places for lock files, in the order of preference.
#[derive(Clone, Debug)]
pub struct LockPlaces {
    /// One for all users and containers of the host: `/run/tropa/lanes`.
    pub system: PathBuf,
    /// `$XDG_RUNTIME_DIR/tropa/lanes`, which excludes agents of one user only.
    pub user: Option<PathBuf>,
}

impl LockPlaces {
    /// Takes the usual places; `runtime` is what `XDG_RUNTIME_DIR` says.
    #[must_use]
    pub fn usual(runtime: Option<&Path>) -> Self {
        let run = if cfg!(target_os = "macos") { "/var/run" } else { "/run" };
        Self {
            system: Path::new(run).join("tropa/lanes"),
            user: runtime.map(|directory| directory.join("tropa/lanes")),
        }
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
    if found.mode() & 0o002 != 0 {
        return unfit(format!("writable for everybody: chmod o-w {}", directory.display()));
    }
    let own = rustix::process::geteuid().as_raw();
    // Group-shared directories of another user are the operator's choice; a private one of another is not ours.
    if found.uid() != 0 && found.uid() != own && found.mode() & 0o020 == 0 {
        return unfit(format!("owned by user {}", found.uid()));
    }
    rustix::fs::accessat(CWD, directory, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|errno| io(errno.into()))?;
    let magic = rustix::fs::statfs(directory).map_err(|errno| io(errno.into()))?.f_type;
    // The type of the field differs between platforms; the numbers fit in 32 bits.
    match network(magic as u32) {
        Some(name) => {
            unfit(format!("on a network file system ({name}), whose locks other kernels do not see"))
        }
        None => Ok(()),
    }
}

fn network(magic: u32) -> Option<&'static str> {
    NETWORK.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name)
}

fn make(directory: &Path, mode: u32) -> Result<(), LockError> {
    if std::fs::symlink_metadata(directory).is_ok() {
        return Ok(());
    }
    let io = |source| LockError::Io { what: "make", path: directory.into(), source };
    if let Some(parent) = directory.parent().filter(|parent| !parent.exists()) {
        let parent_mode = if mode & 0o070 == 0 { 0o700 } else { 0o755 };
        std::fs::DirBuilder::new().mode(parent_mode).create(parent).map_err(io)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        // Another agent was faster.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(io(error)),
    }
    // The umask took bits away that the group needs.
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode)).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_usable_place_is_made_and_taken() {
        let directory = tempfile::tempdir().unwrap();
        let system = directory.path().join("run/tropa/lanes");
        let user = directory.path().join("user/tropa/lanes");
        // `run` is missing: only one level is made, as a system directory would be there.
        std::fs::create_dir(directory.path().join("user")).unwrap();
        let places = LockPlaces { system: system.clone(), user: Some(user.clone()) };
        assert_eq!(places.choose(), Some(user.clone()));
        assert_eq!(user.metadata().unwrap().mode() & 0o7777, 0o700);
        std::fs::create_dir(directory.path().join("run")).unwrap();
        assert_eq!(places.choose(), Some(system.clone()));
        assert_eq!(system.metadata().unwrap().mode() & 0o7777, 0o2770);
        let nowhere = LockPlaces { system: directory.path().join("no/no/lanes"), user: None };
        assert_eq!(nowhere.choose(), None);
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

    #[test]
    fn file_systems_of_other_kernels_are_known_by_their_magic() {
        assert_eq!(network(0x6969), Some("NFS"));
        assert_eq!(network(0xff53_4d42), Some("CIFS"));
        assert_eq!(network(0x0102_1994), None, "tmpfs");
        assert_eq!(network(0xef53), None, "ext4");
    }
}
