//! Where an input that can be read only once is kept until its chunks are in the journal: for this user alone, and
//! never longer than a command that could still need it.
//!
//! Every command has a directory of its own below `<state>/incoming`, locked while the command lives. The kernel
//! frees the lock however the command ends, so the next command knows what was left behind, and removes it.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};
use tropa_proto::id::JobId;

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
        DirBuilder::new().recursive(true).mode(0o700).create(all)?;
        // Held while a place is made or removed: nobody removes one that is not locked yet.
        let turn = File::open(all)?;
        flock(&turn, FlockOperation::LockExclusive)?;
        for entry in fs::read_dir(all)?.take(MAX_LOOKED_AT) {
            let left = entry?.path();
            if is_abandoned(&left) {
                // Best effort: the next command tries again.
                let _ = fs::remove_dir_all(&left);
            }
        }
        DirBuilder::new().mode(0o700).create(&dir)?;
        let lock = File::open(&dir)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
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

fn is_abandoned(dir: &Path) -> bool {
    let Ok(place) = File::open(dir) else { return false };
    place.metadata().is_ok_and(|meta| meta.is_dir())
        && flock(&place, FlockOperation::NonBlockingLockExclusive).is_ok()
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
