//! Taking the input in: as many chunks as come, in memory that stays flat, and nothing usable until all are there.

use std::{fmt, path::Path};

use rusqlite::{TransactionBehavior, params};
use sha2::{Digest as _, Sha256};
use tropa_proto::{id::JobId, message::MAX_BODY};

use super::{
    Error, Job, Journal, Kind, NewChunk, Parts, State, chunk_hash, directory, endpoint_name, recipe_hash,
    schema, sha256,
};

/// Rows of one transaction while the input comes in: large enough that a sync costs nothing beside them.
pub(super) const ROWS_PER_COMMIT: u32 = 4096;

/// Bytes of bodies of one transaction while the input comes in; bounds the write-ahead log.
const BYTES_PER_COMMIT: usize = 16 << 20;

/// A journal that is taking in its input. Dropped before [`Draft::finish`], it removes its directory.
#[derive(Debug)]
pub struct Draft {
    // In a box of its own state so that `finish` can take it out and leave nothing to remove.
    open: Option<Parts>,
    id: JobId,
    chunks: u32,
    items: u32,
    input: Sha256Debug,
}

impl Draft {
    /// Makes the directory of a new job, its key and its empty journal, and takes its lock.
    ///
    /// `dir` is `<state directory>/jobs/<job id in hex>`; its parents are made where they are missing, for this
    /// user only.
    ///
    /// # Errors
    /// When the directory exists, cannot be made, or lies on a network file system.
    pub fn create(dir: &Path, id: JobId) -> Result<Self, Error> {
        let lock = directory::create(dir)?;
        let conn = schema::create(&directory::database(dir))?;
        let parts = Parts { conn, dir: dir.to_owned(), lock: Some(lock) };
        Ok(Self { open: Some(parts), id, chunks: 0, items: 0, input: Sha256Debug(Sha256::new()) })
    }

    /// Takes in chunks, in order, behind those that are there; memory stays flat however many come.
    ///
    /// # Errors
    /// The iterator's first error, or the journal's own. The draft is then good for nothing but being dropped.
    pub fn insert<E: From<Error>>(
        &mut self,
        chunks: impl IntoIterator<Item = Result<NewChunk, E>>,
    ) -> Result<(), E> {
        let Some(parts) = &mut self.open else { return Ok(()) };
        let doing = "write the input to the journal";
        let mut chunks = chunks.into_iter().peekable();
        while chunks.peek().is_some() {
            let tx = parts
                .conn
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(|e| Error::sql(doing, e))?;
            let mut row = tx
                .prepare_cached(
                    "INSERT INTO chunk (idx, item, hash, model, endpoint, request, recipe, origin)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                )
                .map_err(|e| Error::sql(doing, e))?;
            let mut edge = tx
                .prepare_cached("INSERT INTO need (idx, on_idx) VALUES (?1, ?2)")
                .map_err(|e| Error::sql(doing, e))?;
            let (mut rows, mut bytes) = (0, 0);
            while rows < ROWS_PER_COMMIT && bytes < BYTES_PER_COMMIT {
                let Some(chunk) = chunks.next() else { break };
                let chunk = chunk?;
                let index = self.chunks;
                if chunk.body.len() > MAX_BODY {
                    return Err(Error::TooLarge { index, len: chunk.body.len() }.into());
                }
                let (hash, request, recipe) = if chunk.needs.is_empty() {
                    (chunk_hash(chunk.endpoint, &chunk.body), Some(&chunk.body), None)
                } else {
                    (recipe_hash(chunk.endpoint, &chunk.needs, &chunk.body), None, Some(&chunk.body))
                };
                self.input.0.update(hash);
                let item = chunk.shown.then_some(self.items);
                row.execute(params![
                    index,
                    item,
                    hash,
                    chunk.model,
                    endpoint_name(chunk.endpoint),
                    request,
                    recipe,
                    chunk.origin
                ])
                .map_err(|e| Error::sql(doing, e))?;
                for on in &chunk.needs {
                    edge.execute(params![index, on.0]).map_err(|e| Error::sql(doing, e))?;
                }
                self.chunks = index.checked_add(1).ok_or(Error::TooMany)?;
                self.items += u32::from(chunk.shown);
                rows += 1 + u32::try_from(chunk.needs.len()).unwrap_or(u32::MAX);
                bytes += chunk.body.len() + chunk.origin.len();
            }
            drop((row, edge));
            tx.commit().map_err(|e| Error::sql(doing, e))?;
        }
        Ok(())
    }

    /// Says that the input is complete, makes all of it durable, and opens the job.
    ///
    /// `spec` is what the user asked for, as canonical JSON; `created_ms` is the wall clock, for show.
    ///
    /// # Errors
    /// When a write or a sync fails; the directory is then removed.
    pub fn finish(mut self, kind: Kind, spec: Vec<u8>, created_ms: u64) -> Result<Journal, Error> {
        let input_sha256: [u8; 32] = self.input.0.clone().finalize().into();
        let Some(parts) = &self.open else { return Err(Error::Incomplete) };
        directory::sync(&parts.dir)?;
        parts
            .conn
            .execute(
                "INSERT INTO job (one, id, kind, spec, spec_sha256, input_sha256, created_ms, state)
                 VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, 'open')",
                params![
                    self.id.0,
                    kind.name(),
                    spec,
                    sha256(&spec),
                    input_sha256,
                    i64::try_from(created_ms).unwrap_or(i64::MAX)
                ],
            )
            .map_err(|e| Error::sql("open the job", e))?;
        let job = Job {
            id: self.id,
            kind,
            spec,
            input_sha256,
            created_ms,
            state: State::Open,
            chunks: self.chunks,
            items: self.items,
        };
        match self.open.take() {
            Some(parts) => Ok(Journal { parts, job }),
            None => Err(Error::Incomplete),
        }
    }

    /// Reads the seed of the Ed25519 key that the job's coordinators go by.
    ///
    /// # Errors
    /// When the file is missing or shorter than 32 bytes.
    pub fn key(&self) -> Result<[u8; 32], Error> {
        self.open.as_ref().map_or(Err(Error::Incomplete), |parts| directory::key(&parts.dir))
    }

    /// How many chunks are in.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.chunks
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(Parts { conn, dir, lock }) = self.open.take() {
            drop(conn);
            // Best effort: what stays behind says "incomplete" and can be deleted by hand.
            let _ = std::fs::remove_dir_all(&dir);
            drop(lock);
        }
    }
}

/// A hash in progress, which has nothing to show.
struct Sha256Debug(Sha256);

impl fmt::Debug for Sha256Debug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sha256")
    }
}
