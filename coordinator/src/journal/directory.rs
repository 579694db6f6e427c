//! The directory of one job: who may see it, who holds it, and where it must not lie.
//!
//! One directory per job (0700) with `journal.db`, `key` and `lock` (0600). The key is the job's, not the user's:
//! a coordinator that resumes comes back as the same peer, and two coordinators of one user never share one.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tropa_proto::system::{self, FileSystem, Lockable};

use super::Error;

/// Free space below which no job starts, whatever it expects to write (`reliability.md` §7.3).
pub const MIN_FREE: u64 = 64 << 20;

/// Tries to get the lock, 20 ms apart: `tropa jobs` holds it for microseconds while it asks who has it.
const LOCK_TRIES: u32 = 10;

/// The lock of one job's directory; the kernel frees it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Lockable,
}

pub(super) fn database(dir: &Path) -> PathBuf {
    dir.join("journal.db")
}

/// Makes the directory of a new job with its key, and an empty database file; takes the lock.
pub(super) fn create(dir: &Path) -> Result<Lock, Error> {
    let parent = parent(dir);
    system::directories(0o700)
        .recursive(true)
        .create(parent)
        .map_err(|e| Error::io("make the directory of jobs", parent, e))?;
    refuse_network(parent)?;
    system::directories(0o700).create(dir).map_err(|e| Error::io("make the directory of the job", dir, e))?;
    let lock = Lock::take(dir)?;
    let mut seed = [0_u8; 32];
    getrandom::fill(&mut seed).map_err(|e| Error::io("make the key of the job", dir, io::Error::other(e)))?;
    let path = dir.join("key");
    let mut file = private().create_new(true).open(&path).map_err(|e| Error::io("create", &path, e))?;
    file.write_all(&seed).and_then(|()| file.sync_all()).map_err(|e| Error::io("write", &path, e))?;
    let path = database(dir);
    private().create_new(true).open(&path).map_err(|e| Error::io("create", &path, e))?;
    Ok(lock)
}

/// Makes the names of a new job durable: its directory and the one above.
pub(super) fn sync(dir: &Path) -> Result<(), Error> {
    for path in [dir, parent(dir)] {
        system::sync_directory(path).map_err(|e| Error::io("sync", path, e))?;
    }
    Ok(())
}

/// Reads the seed of the job's Ed25519 key.
pub(super) fn key(dir: &Path) -> Result<[u8; 32], Error> {
    let path = dir.join("key");
    let mut seed = [0; 32];
    let mut file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    file.read_exact(&mut seed).map_err(|e| Error::io("read", &path, e))?;
    Ok(seed)
}

/// Opens a file that only its owner can read, created where it is missing, never through a link.
pub(super) fn private() -> OpenOptions {
    let mut options = system::files(0o600);
    options.read(true).write(true);
    options
}

/// Refuses a directory on a network file system: WAL needs memory shared between all openers, which two hosts do not
/// have. FUSE is not refused: most of it is local.
///
/// # Errors
/// [`Error::Network`] with its name, or what went wrong in asking.
pub fn refuse_network(dir: &Path) -> Result<(), Error> {
    match system::file_system(dir).map_err(|e| Error::io("look at the file system of", dir, e))? {
        FileSystem::Network(name) => Err(Error::Network { name }),
        FileSystem::Local | FileSystem::Passing | FileSystem::Fuse => Ok(()),
    }
}

/// Checks that the file system of `dir` has room for `bytes` and at least [`MIN_FREE`].
///
/// `bytes` is the input and twice the expected output. The caller may leave the check out, to see a disk fill.
///
/// # Errors
/// [`Error::NoSpace`] with both figures, or what went wrong in asking.
pub fn require_space(dir: &Path, bytes: u64) -> Result<(), Error> {
    let dir = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(dir);
    let free = system::free_space(dir).map_err(|e| Error::io("ask for free space in", dir, e))?;
    let need = bytes.max(MIN_FREE);
    match free {
        Some(free) if free < need => Err(Error::NoSpace { free, need }),
        Some(_) | None => Ok(()),
    }
}

impl Lock {
    /// Takes the lock of a job and writes this process into it.
    ///
    /// # Errors
    /// [`Error::Locked`] with what the holder wrote.
    pub(super) fn take(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("lock");
        let file = private()
            .create(true)
            .truncate(false)
            .open(&path)
            .and_then(|file| Lockable::new(file, &path))
            .map_err(|e| Error::io("open the lock of the job", &path, e))?;
        let mut tries = 1;
        while !file.try_lock(system::Lock::Exclusive).map_err(|e| Error::io("lock", &path, e))? {
            if tries == LOCK_TRIES {
                return Err(Error::Locked { holder: holder(file.file()) });
            }
            tries += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        let text = format!("pid {} started {}\n", std::process::id(), started());
        let mut inside = file.file();
        inside
            .set_len(0)
            .and_then(|()| inside.rewind())
            .and_then(|()| inside.write_all(text.as_bytes()))
            .map_err(|e| Error::io("write", &path, e))?;
        Ok(Self { _file: file })
    }

    /// Tells whether a live process holds the lock of the job.
    pub(super) fn is_held(dir: &Path) -> bool {
        Self::held(dir).is_some()
    }

    /// What the live process says of itself that holds the lock of the job.
    pub(super) fn holder(dir: &Path) -> Option<String> {
        Self::held(dir).map(|file| holder(file.file()))
    }

    /// The file, where a live process has it locked.
    fn held(dir: &Path) -> Option<Lockable> {
        let path = dir.join("lock");
        let file = File::open(&path).and_then(|file| Lockable::new(file, &path)).ok()?;
        matches!(file.try_lock(system::Lock::Shared), Ok(false)).then_some(file)
    }
}

fn parent(dir: &Path) -> &Path {
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads what the holder of a lock says about itself, for people only.
fn holder(file: &File) -> String {
    let mut text = String::new();
    // 128 bytes hold two numbers and a label; the file is not trusted to be ours.
    let read = file.take(128).read_to_string(&mut text);
    let text = text.trim();
    if read.is_ok() && !text.is_empty() {
        text.escape_debug().to_string()
    } else {
        "another process".to_owned()
    }
}

/// Gives the start time of this process in clock ticks since boot, which tells it from a later one of its pid.
fn started() -> String {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command in parentheses may hold spaces; field 22 is the twentieth after it.
    stat.rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(19))
        .map_or_else(|| "unknown".to_owned(), ToOwned::to_owned)
}
