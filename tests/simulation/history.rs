//! The book of what really happened, and its judgement: it knows nothing of what either side believes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tropa_proto::{
    failure::Class,
    id::{AttemptId, ChunkIndex},
};

/// What happened so far.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Who computes on a device now: installs by number, each with its requests.
    users: BTreeMap<u8, BTreeMap<usize, u32>>,
    started: BTreeSet<AttemptId>,
    committed: BTreeMap<ChunkIndex, Result<AttemptId, Class>>,
}

impl History {
    /// A request starts at an engine: on none of its devices does another install compute.
    pub(super) fn engine_starts(
        &mut self,
        install: usize,
        devices: &[u8],
        attempt: AttemptId,
        now: Duration,
    ) {
        assert!(self.started.insert(attempt), "{now:?}: {attempt:?} is executed twice");
        for device in devices {
            let users = self.users.entry(*device).or_default();
            let others = users.keys().find(|other| **other != install);
            assert_eq!(
                others, None,
                "{now:?}: installs {install} and {others:?} both compute on device {device}"
            );
            *users.entry(install).or_default() += 1;
        }
    }

    /// A request has ended there.
    pub(super) fn engine_ends(&mut self, install: usize, devices: &[u8]) {
        for device in devices {
            let Some(users) = self.users.get_mut(device) else { continue };
            let Some(count) = users.get_mut(&install) else { continue };
            *count -= 1;
            if *count == 0 {
                users.remove(&install);
            }
        }
    }

    /// A chunk's result or failure is on disk: the first and only one.
    pub(super) fn commits(&mut self, chunk: ChunkIndex, how: Result<AttemptId, Class>) {
        let before = self.committed.insert(chunk, how);
        assert_eq!(before, None, "chunk {} is committed twice", chunk.0);
        if let Err(class) = how {
            let blamed = !matches!(class, Class::Cancelled | Class::Superseded | Class::Busy);
            assert!(blamed, "chunk {} failed as {class}, which is nothing that it did", chunk.0);
        }
    }

    /// How many chunks have a result.
    pub(super) fn done(&self) -> usize {
        self.committed.values().filter(|how| how.is_ok()).count()
    }

    /// How many chunks have a result or a failure.
    pub(super) fn ended(&self) -> usize {
        self.committed.len()
    }

    /// How many attempts reached an engine.
    pub(super) fn executions(&self) -> usize {
        self.started.len()
    }
}
