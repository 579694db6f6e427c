//! What each operating system does in its own way with files: who may open them, locks, names that last, the disk
//! below them. One interface; what a system cannot do or say is a value of it, so that a caller has to decide.
//!
//! Unix keeps an owner and permission bits. Windows keeps access lists, which nothing here reads: there a place is
//! private where it lies below the profile of its user, and of every other place it is not known who may open it.

#[cfg(unix)]
#[path = "system/unix.rs"]
mod platform;
#[cfg(windows)]
#[path = "system/windows.rs"]
mod platform;

use std::{
    fs::{DirBuilder, File, Metadata, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

pub use platform::Lockable;

/// Where programs of all users keep what they share until the next boot: `/run`, `/var/run` on macOS, `%ProgramData%` on
/// Windows, which keeps it longer.
#[must_use]
pub fn run_directory() -> PathBuf {
    platform::run_directory()
}

/// Who may open a file or a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The system keeps an owner and bits.
    Bits {
        /// The user that it belongs to.
        owner: u32,
        /// Permission bits, at most `0o7777`.
        mode: u32,
    },
    /// The system keeps access lists; it lies below the profile of this user, which is closed to others.
    Profile,
    /// The system keeps access lists; what they say of this place is not read.
    Unknown,
}

/// Tells who may open what a path names. `found` is what lies there; a link is not followed.
#[must_use]
pub fn access(path: &Path, found: &Metadata) -> Access {
    platform::access(path, found)
}

/// The number of the user that this process acts for, 0 for root; `None` where users have no numbers.
#[must_use]
pub fn user() -> Option<u32> {
    platform::user()
}

/// Says whether this process acts for root. Where there is none, nothing is kept for it alone.
#[must_use]
pub fn is_root() -> bool {
    user() == Some(0)
}

/// Makes directories with these permission bits, where the system has bits.
#[must_use]
pub fn directories(mode: u32) -> DirBuilder {
    platform::directories(mode)
}

/// Options that never follow a link to a file, never wait for the other end of a pipe, and give a file that they make
/// these permission bits, where the system has bits. They open nothing by themselves: add `read`, `write`, `create`.
#[must_use]
pub fn files(mode: u32) -> OpenOptions {
    platform::files(mode)
}

/// Gives what is open these permission bits, whatever the umask took away, where the system has bits.
///
/// # Errors
/// Those of the system.
pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    platform::set_mode(file, mode)
}

/// As [`set_mode`], of a directory.
///
/// # Errors
/// Those of the system.
pub fn set_directory_mode(directory: &Path, mode: u32) -> io::Result<()> {
    platform::set_directory_mode(directory, mode)
}

/// Tries whether this process may make files in a directory.
///
/// # Errors
/// That of the system which stands against it.
pub fn may_make_files(directory: &Path) -> io::Result<()> {
    platform::may_make_files(directory)
}

/// Makes the names in a directory last. On Windows this does nothing: no directory can be flushed there, and NTFS keeps
/// names in a journal of its own, so what was renamed within the last seconds may be undone by a power cut.
///
/// # Errors
/// Those of the system.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    platform::sync_directory(directory)
}

/// What tells a file from all others of this machine, while it exists: volume and number.
///
/// # Errors
/// Those of the system.
pub fn identity(file: &File) -> io::Result<(u64, u64)> {
    platform::identity(file)
}

/// Says whether a path still names the file that is open. A failure to find out is a no.
#[must_use]
pub fn is_same(file: &File, path: &Path) -> bool {
    let open = identity(file).ok();
    open.is_some() && open == platform::identity_of(path).ok()
}

/// In which way a lock excludes others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Nobody else has any lock.
    Exclusive,
    /// Others may have shared ones.
    Shared,
}

/// Takes a lock of the kernel's if it is free, and says whether it was. It goes when the file is closed, however the
/// process ends. On Windows an exclusive lock also keeps others from reading the file: see [`Lockable`]. A file has one
/// lock at a time: whether one can take the place of another is the system's.
///
/// # Errors
/// Those of the system; a file system may have no locks.
pub fn try_lock(file: &File, lock: Lock) -> io::Result<bool> {
    let tried = match lock {
        Lock::Exclusive => file.try_lock(),
        Lock::Shared => file.try_lock_shared(),
    };
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Waits for a lock, for as long as it takes.
///
/// # Errors
/// As [`try_lock`].
pub fn lock(file: &File, lock: Lock) -> io::Result<()> {
    loop {
        let locked = match lock {
            Lock::Exclusive => file.lock(),
            Lock::Shared => file.lock_shared(),
        };
        match locked {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Bytes that this user may still write to the file system of a path; `None` where the system does not say.
///
/// # Errors
/// Those of the system.
pub fn free_space(path: &Path) -> io::Result<Option<u64>> {
    platform::free_space(path)
}

/// What a file system is, as far as locks and lasting depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// A disk of this machine, or what cannot be told from one.
    Local,
    /// Gone with the container or with the next boot: overlayfs, tmpfs.
    Passing,
    /// Behind a process: most are local, some another machine's.
    Fuse,
    /// Another machine's, or another kernel's: its name for people.
    Network(&'static str),
}

/// Tells on which kind of file system a path lies.
///
/// # Errors
/// Those of the system.
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    platform::file_system(path)
}

/// Bytes that this process has in memory; `None` where the system does not say.
#[must_use]
pub fn resident() -> Option<u64> {
    platform::resident()
}

/// Asks for the memory of this process where no file shows it.
#[cfg(not(target_os = "linux"))]
fn asked_of_sysinfo() -> Option<u64> {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid};
    let own = get_current_pid().ok()?;
    let mut system = System::new().ok()?;
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[own]),
        true,
        ProcessRefreshKind::nothing().with_memory(),
    );
    system.process(own).map(sysinfo::Process::memory)
}

/// What tells one network namespace of this kernel from the others; 0 where there are none.
#[must_use]
pub fn network_namespace() -> u64 {
    platform::network_namespace()
}

/// Makes the kernel write no core of this process and of what it starts, where it writes any.
pub fn no_core() {
    platform::no_core();
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _};

    use super::*;

    #[test]
    fn a_lock_keeps_others_out_of_the_lock_and_not_out_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let open = || {
            let file = files(0o600).read(true).write(true).create(true).truncate(false).open(&path).unwrap();
            Lockable::new(file, &path).unwrap()
        };
        let (one, other) = (open(), open());
        assert!(one.try_lock(Lock::Shared).unwrap() && other.try_lock(Lock::Shared).unwrap());
        assert!(!open().try_lock(Lock::Exclusive).unwrap());
        drop((one, other));
        let one = open();
        assert!(one.try_lock(Lock::Exclusive).unwrap());
        fs::write(&path, "who").unwrap();
        let other = open();
        assert!(!other.try_lock(Lock::Shared).unwrap());
        let mut text = String::new();
        other.file().read_to_string(&mut text).unwrap();
        assert_eq!(text, "who");
        drop(one);
        other.lock(Lock::Exclusive).unwrap();
        drop(other);
        Lockable::remove(&path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_was_replaced_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let [path, beside] = ["file", "beside"].map(|name| directory.path().join(name));
        fs::write(&path, "").unwrap();
        let file = File::open(&path).unwrap();
        assert!(is_same(&file, &path));
        fs::write(&beside, "").unwrap();
        fs::rename(&beside, &path).unwrap();
        assert!(!is_same(&file, &path));
        fs::remove_file(&path).unwrap();
        assert!(!is_same(&file, &path));
    }

    #[test]
    fn a_file_that_is_locked_keeps_its_lock_and_is_the_same_under_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let [path, name] = ["beside", "file"].map(|name| directory.path().join(name));
        let file = files(0o644).read(true).write(true).create_new(true).open(&path).unwrap();
        let file = Lockable::new(file, &path).unwrap();
        assert!(file.try_lock(Lock::Exclusive).unwrap());
        Lockable::rename(&path, &name).unwrap();
        assert!(is_same(file.file(), &name) && !path.exists());
        let other = Lockable::new(files(0).read(true).open(&name).unwrap(), &name).unwrap();
        assert!(!other.try_lock(Lock::Shared).unwrap());
        drop(file);
        assert!(other.try_lock(Lock::Shared).unwrap());
    }

    #[test]
    fn there_is_room_on_the_disk_and_its_names_can_be_made_to_last() {
        let directory = tempfile::tempdir().unwrap();
        sync_directory(directory.path()).unwrap();
        assert!(free_space(directory.path()).unwrap().is_none_or(|bytes| bytes > 0));
        assert!(!matches!(file_system(directory.path()).unwrap(), FileSystem::Network(_)));
        assert!(free_space(&directory.path().join("missing")).is_err());
    }

    #[test]
    fn what_is_made_for_one_user_is_open_to_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("a/b");
        directories(0o700).recursive(true).create(&inner).unwrap();
        let path = inner.join("file");
        files(0o600).write(true).create_new(true).open(&path).unwrap();
        let of = |path: &Path| access(path, &fs::symlink_metadata(path).unwrap());
        match (of(&inner), of(&path)) {
            (Access::Bits { owner, mode: 0o700 }, Access::Bits { mode: 0o600, .. }) => {
                assert_eq!(Some(owner), user());
            }
            (Access::Profile, Access::Profile) => assert_eq!(user(), None),
            other => panic!("{other:?}"),
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_something_in_memory() {
        let before = resident().unwrap();
        let block = vec![1_u8; 32 << 20];
        assert!(resident().unwrap() >= before + (16 << 20), "{before}");
        drop(block);
    }
}
