//! Giving a job up, and deleting it: what others than its coordinator may do to a job.
//!
//! Whoever wants a running job to stop puts a mark into its directory; its coordinator looks for it and stops in good
//! order. No signal is sent, so nothing that has taken over a process id, and nothing in another container, can be
//! hit; and the mark outlives a coordinator that dies before it has looked.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{Error, Journal, directory};

/// The mark in the directory of a job that is to be cancelled.
const MARK: &str = "cancel";

/// What it says where the coordinator is not to wait for what runs.
const AT_ONCE: &str = "at once\n";

/// Marks are a few bytes long; more is not ours.
const MAX_MARK: u64 = 64;

/// What is put behind the id of a job while its directory is deleted: such a name is no job.
const PURGED: &str = ".purged";

/// How a job is to be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cancel {
    /// What runs ends, and its results are kept.
    Gently,
    /// What runs is called off at the agents.
    AtOnce,
}

/// Puts the mark into the directory of a job. The stronger of two marks stays.
///
/// # Errors
/// When it cannot be written.
pub fn ask_to_cancel(dir: &Path, how: Cancel) -> Result<(), Error> {
    if asked(dir).is_some_and(|before| before >= how) {
        return Ok(());
    }
    let path = dir.join(MARK);
    let text = if how == Cancel::AtOnce { AT_ONCE } else { "" };
    let beside = dir.join("cancel.tmp");
    let mut file = directory::private()
        .create(true)
        .truncate(true)
        .open(&beside)
        .map_err(|e| Error::io("create", &beside, e))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|e| Error::io("write", &beside, e))?;
    fs::rename(&beside, &path).map_err(|e| Error::io("rename to", &path, e))
}

/// Deletes the job in this directory and gives the bytes that were freed.
///
/// The directory is renamed first, so that a job is there as a whole or not at all; what an earlier deletion left
/// behind when it was killed goes too.
///
/// # Errors
/// [`Error::Locked`] while a coordinator holds the job; else when a file cannot be deleted.
pub fn purge(dir: &Path) -> Result<u64, Error> {
    let _lock = directory::Lock::take(dir)?;
    let gone = beside(dir);
    if gone.exists() {
        fs::remove_dir_all(&gone).map_err(|e| Error::io("delete", &gone, e))?;
    }
    fs::rename(dir, &gone).map_err(|e| Error::io("rename", dir, e))?;
    let bytes = size(&gone);
    fs::remove_dir_all(&gone).map_err(|e| Error::io("delete", &gone, e))?;
    Ok(bytes)
}

/// Deletes what purges that were killed have left under the directory of jobs. Best effort: the next one tries again.
pub fn sweep(jobs: &Path) {
    for entry in fs::read_dir(jobs).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(PURGED) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Journal {
    /// Says whether somebody wants the job cancelled, and how.
    #[must_use]
    pub fn cancel_asked(&self) -> Option<Cancel> {
        asked(self.dir())
    }

    /// Takes the mark away: the job is cancelled, or goes on.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear_cancel(&self) -> Result<(), Error> {
        let path = self.dir().join(MARK);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

pub(super) fn asked(dir: &Path) -> Option<Cancel> {
    let path = dir.join(MARK);
    let length = fs::symlink_metadata(&path).ok()?.len();
    if length == 0 || length > MAX_MARK {
        return Some(Cancel::Gently);
    }
    let at_once = fs::read(&path).is_ok_and(|text| text == AT_ONCE.as_bytes());
    Some(if at_once { Cancel::AtOnce } else { Cancel::Gently })
}

fn beside(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(PURGED);
    PathBuf::from(name)
}

/// Bytes of the files of a job: its directory holds no others.
fn size(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}
