//! Where an input that can be read only once is kept until its chunks are in the journal: for this user alone, and
//! never longer than a command that could still need it.
//!
//! Every command has a directory of its own below `<state>/incoming`, and in it a file that is locked while the
//! command lives. The kernel frees the lock however the command ends, so the next command knows what was left behind,
//! and removes it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tropa_proto::{
    id::JobId,
    system::{self, Lock},
};

use crate::exit::{Exit, Failed, OrExit as _};

/// Directories that one command looks at: more than anybody's commands at once, and a bound on the time it takes.
const MAX_LOOKED_AT: usize = 1000;

/// The place of one command; removed with all that is in it when dropped.
#[derive(Debug)]
pub struct Incoming {
    dir: PathBuf,
    _lock: File,
}

impl Incoming {
    /// Makes the place of this command, and removes those that killed commands have left.
    ///
    /// # Errors
    /// With [`Exit::Io`] when no directory can be made there.
    pub fn open(state: &Path, id: JobId) -> Result<Self, Failed> {
        let all = state.join("incoming");
        let dir = all.join(id.to_string());
        Self::make(&all, dir).with_context(|| format!("making {}", all.display())).or_exit(Exit::Io)
    }

    fn make(all: &Path, dir: PathBuf) -> io::Result<Self> {
        system::directories(0o700).recursive(true).create(all)?;
        // Held while a place is made or removed: nobody removes one that is not locked yet.
        let turn = lock_file(&all.with_extension("lock"))?;
        system::lock(&turn, Lock::Exclusive)?;
        for entry in fs::read_dir(all)?.take(MAX_LOOKED_AT) {
            let left = entry?.path();
            if is_abandoned(&left) {
                // Best effort: the next command tries again.
                let _ = fs::remove_dir_all(&left);
            }
        }
        system::directories(0o700).create(&dir)?;
        let lock = lock_file(&dir.join("lock"))?;
        if !system::try_lock(&lock, Lock::Exclusive)? {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(Self { dir, _lock: lock })
    }

    /// Where the copy of the input goes.
    #[must_use]
    pub fn copy(&self) -> PathBuf {
        self.dir.join("input")
    }

    /// Where the journal of a job goes that is thrown away.
    #[must_use]
    pub fn passing(&self) -> PathBuf {
        self.dir.join("passing")
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Best effort: the next command tries again.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A directory that nobody holds. One without a lock is what is left of a removal.
fn is_abandoned(dir: &Path) -> bool {
    if !fs::symlink_metadata(dir).is_ok_and(|found| found.is_dir()) {
        return false;
    }
    match system::files(0).read(true).write(true).open(dir.join("lock")) {
        Ok(lock) => matches!(system::try_lock(&lock, Lock::Exclusive), Ok(true)),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn lock_file(path: &Path) -> io::Result<File> {
    system::files(0o600).read(true).write(true).create(true).truncate(false).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_command_left_is_removed_and_what_lives_is_not() {
        let state = tempfile::tempdir().unwrap();
        let left = state.path().join("incoming/left");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("input"), "prompts").unwrap();
        let first = Incoming::open(state.path(), JobId([1; 16])).unwrap();
        assert!(!left.exists());
        fs::write(first.copy(), "prompts").unwrap();
        let second = Incoming::open(state.path(), JobId([2; 16])).unwrap();
        assert!(first.copy().exists(), "the first command is still reading it");
        drop((first, second));
        assert_eq!(fs::read_dir(state.path().join("incoming")).unwrap().count(), 0);
    }
}
