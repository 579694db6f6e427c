//! The directory of one job: who may see it, who holds it, and where it must not lie.
//!
//! One directory per job (0700) with `journal.db`, `key` and `lock` (0600). The key is the job's, not the user's:
//! a coordinator that resumes comes back as the same peer, and two coordinators of one user never share one.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::Error;

/// Free space below which no job starts, whatever it expects to write (`reliability.md` §7.3).
pub const MIN_FREE: u64 = 64 << 20;

/// Tries to get the lock, 20 ms apart: `tropa jobs` holds it for microseconds while it asks who has it.
const LOCK_TRIES: u32 = 10;

/// File systems over a network, by the magic of `statfs`: WAL needs memory shared between all openers, which two
/// hosts do not have. FUSE is not among them: most of it is local.
#[cfg(target_os = "linux")]
const NETWORK: [(u32, &str); 13] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x7375_7245, "Coda"),
    (0x564c, "NCP"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x0116_1970, "GFS2"),
];

/// The lock of one job's directory; the kernel frees it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

pub(super) fn database(dir: &Path) -> PathBuf {
    dir.join("journal.db")
}

/// Makes the directory of a new job with its key, and an empty database file; takes the lock.
pub(super) fn create(dir: &Path) -> Result<Lock, Error> {
    let parent = parent(dir);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .map_err(|e| Error::io("make the directory of jobs", parent, e))?;
    refuse_network(parent)?;
    DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::io("make the directory of the job", dir, e))?;
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
        File::open(path).and_then(|file| file.sync_all()).map_err(|e| Error::io("sync", path, e))?;
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
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

/// Refuses a directory on a network file system.
pub(super) fn refuse_network(dir: &Path) -> Result<(), Error> {
    #[cfg(target_os = "linux")]
    {
        let found =
            rustix::fs::statfs(dir).map_err(|e| Error::io("look at the file system of", dir, e.into()))?;
        // The magic has 32 bits, in a field that is wider and signed on most platforms.
        let magic = (i128::from(found.f_type) & 0xffff_ffff) as u32;
        if let Some((_, name)) = NETWORK.iter().find(|(known, _)| *known == magic) {
            return Err(Error::Network { name });
        }
    }
    Ok(())
}

/// Checks that the file system of `dir` has room for `bytes` and at least [`MIN_FREE`].
///
/// `bytes` is the input and twice the expected output. The caller may leave the check out, to see a disk fill.
///
/// # Errors
/// [`Error::NoSpace`] with both figures, or what went wrong in asking.
pub fn require_space(dir: &Path, bytes: u64) -> Result<(), Error> {
    let dir = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(dir);
    let found = rustix::fs::statvfs(dir).map_err(|e| Error::io("ask for free space in", dir, e.into()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let need = bytes.max(MIN_FREE);
    if free < need { Err(Error::NoSpace { free, need }) } else { Ok(()) }
}

impl Lock {
    /// Takes the lock of a job and writes this process into it.
    ///
    /// # Errors
    /// [`Error::Locked`] with what the holder wrote.
    pub(super) fn take(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("lock");
        let mut file = private()
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io("open the lock of the job", &path, e))?;
        let mut tries = 1;
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(Error::io("lock", &path, error.into()));
            }
            if tries == LOCK_TRIES {
                return Err(Error::Locked { holder: holder(&mut file) });
            }
            tries += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        let text = format!("pid {} started {}\n", std::process::id(), started());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(|e| Error::io("write", &path, e))?;
        Ok(Self { _file: file })
    }

    /// Tells whether a live process holds the lock of the job.
    pub(super) fn is_held(dir: &Path) -> bool {
        let Ok(file) = File::open(dir.join("lock")) else { return false };
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }
}

fn parent(dir: &Path) -> &Path {
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads what the holder of a lock says about itself, for people only.
fn holder(file: &mut File) -> String {
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
