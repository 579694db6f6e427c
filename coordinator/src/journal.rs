//! The durable record of a job: what was asked, who tried, and the one result or failure of every item.
//!
//! Execution is at least once, commit is exactly once: the primary key of `result` admits one row per chunk, and
//! the first to arrive stays. An attempt is written before it is sent, so a result of an attempt that was never
//! issued breaks a foreign key. Input bodies are written before the first chunk runs, so resuming needs no input
//! file; the row in `job` is written last of all, so a crash while the input comes in leaves a journal that says
//! so and cannot be resumed (`reliability.md` §7).
//!
//! A [`Draft`] takes the input and becomes a [`Journal`]. The journal reads, from any place and lazily: bodies
//! stay on disk until they are sent or exported. All that happens during a run is written by the one [`Writer`].

mod apply;
mod directory;
mod draft;
mod error;
mod examine;
mod fill;
mod finished;
mod jobs;
mod read;
mod removal;
mod schema;
mod sizes;
mod step;
mod timeline;
mod totals;
mod writer;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, TransactionBehavior};
use sha2::{Digest as _, Sha256};
use tropa_proto::{
    id::{ChunkIndex, JobId},
    message::Endpoint,
};

pub use directory::{MIN_FREE, refuse_network, require_space};
pub use draft::Draft;
pub use error::Error;
pub use examine::{examine, holder};
pub use fill::{Filled, Head, Needs};
pub use finished::Finished;
pub use jobs::{FindError, JobState, JobSummary, find, list, summary};
pub use read::{AttemptRow, Chunk, Decided, DoneRow, FailedRow, Item, OpenAttempt, PastAttempt, Resume};
pub use removal::{Cancel, ask_to_cancel, purge, sweep};
pub use sizes::Size;
pub use step::{Done, Effect, Step, Token};
pub use timeline::{Attempted, Names, Won};
pub use totals::{Share, Totals};
pub use writer::{Committed, QUEUE, RETRY, Writer};

/// What kind of job a journal records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Independent items.
    Run,
    /// A long document.
    Map,
    /// A long text.
    Write,
    /// Several models on one question.
    Panel,
    /// Embeddings.
    Embed,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Not finished: it can be resumed.
    Open,
    /// Every chunk has its result or failure.
    Done,
    /// The user gave it up.
    Cancelled,
}

/// One chunk on its way into the journal.
#[derive(Clone, Debug)]
pub struct NewChunk {
    /// Which endpoint of Ollama.
    pub endpoint: Endpoint,
    /// The model's name as the body says it.
    pub model: String,
    /// The JSON body for Ollama, at most [`tropa_proto::message::MAX_BODY`] bytes: final where the chunk needs no
    /// other, else the recipe of one, with holes for the answers of those that it needs ([`crate::recipe`]).
    pub body: Vec<u8>,
    /// The chunks whose answers fill its holes; each comes before it. Exactly those that the recipe names.
    pub needs: BTreeSet<ChunkIndex>,
    /// It is an item of the output; otherwise only other chunks read its answer.
    pub shown: bool,
    /// What the export needs to know about the item, as JSON; opaque to the journal.
    pub origin: String,
}

/// What the journal says about its job.
#[derive(Clone, Debug)]
pub struct Job {
    /// The job.
    pub id: JobId,
    /// What kind of job.
    pub kind: Kind,
    /// What the user asked for, as canonical JSON.
    pub spec: Vec<u8>,
    /// SHA-256 over the hashes of all chunks in order.
    pub input_sha256: [u8; 32],
    /// When it was submitted, in milliseconds of the wall clock since 1970. Shown, decides nothing.
    pub created_ms: u64,
    /// Where it stands.
    pub state: State,
    /// How many chunks it has.
    pub chunks: u32,
    /// How many of them are items of the output; the others only feed them.
    pub items: u32,
}

/// A journal that holds the whole input of its job.
#[derive(Debug)]
pub struct Journal {
    parts: Parts,
    job: Job,
}

#[derive(Debug)]
struct Parts {
    conn: Connection,
    dir: PathBuf,
    /// Held until the journal is dropped; `None` for a reader beside a live coordinator.
    lock: Option<directory::Lock>,
}

impl Journal {
    /// Opens the journal of a job for a coordinator: takes the lock, checks the file, reads the job.
    ///
    /// # Errors
    /// [`Error::Locked`] while another process holds the job, [`Error::Incomplete`] when its input never arrived
    /// as a whole, [`Error::Damaged`] and [`Error::NotAJournal`] for a file that cannot be trusted.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let file = directory::database(dir);
        file.metadata().map_err(|e| Error::io("find the journal", &file, e))?;
        refuse_network(dir)?;
        let lock = directory::Lock::take(dir)?;
        let conn = schema::open(&file)?;
        Self::of(Parts { conn, dir: dir.to_owned(), lock: Some(lock) })
    }

    /// Opens the journal of a job for reading only, beside a coordinator that may be at work.
    ///
    /// # Errors
    /// As [`Journal::open`], without [`Error::Locked`].
    pub fn open_read_only(dir: &Path) -> Result<Self, Error> {
        let conn = schema::open_read_only(&directory::database(dir))?;
        Self::of(Parts { conn, dir: dir.to_owned(), lock: None })
    }

    fn of(parts: Parts) -> Result<Self, Error> {
        let job = read::job(&parts.conn)?.ok_or(Error::Incomplete)?;
        Ok(Self { parts, job })
    }

    /// What the journal says about its job, as of its opening.
    #[must_use]
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The directory of the job.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.parts.dir
    }

    /// Reads the seed of the Ed25519 key that the job's coordinators go by.
    ///
    /// # Errors
    /// When the file is missing or shorter than 32 bytes.
    pub fn key(&self) -> Result<[u8; 32], Error> {
        directory::key(&self.parts.dir)
    }

    /// Starts the one thread that writes, on a connection of its own.
    ///
    /// # Errors
    /// When the connection or the thread cannot be made, or the journal is open for reading only.
    pub fn writer(&self) -> Result<(Writer, tokio::sync::mpsc::Receiver<Committed>), Error> {
        if self.parts.lock.is_none() {
            return Err(Error::Locked { holder: "this process only reads".to_owned() });
        }
        Writer::start(schema::connect(&directory::database(&self.parts.dir))?, RETRY)
    }

    /// Forgets all failures and gives their chunks a new budget, in one transaction; the job is open again.
    ///
    /// Returns how many there were. Not to be called while a [`Writer`] of this journal runs.
    ///
    /// # Errors
    /// When the write fails; nothing has changed then.
    pub fn retry_failed(&mut self) -> Result<u32, Error> {
        let doing = "give failed chunks a new budget";
        let tx = self
            .parts
            .conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|e| Error::sql(doing, e))?;
        let run = |sql| tx.execute(sql, []).map_err(|e| Error::sql(doing, e));
        run(
            "UPDATE chunk SET round = round + 1 WHERE idx IN (SELECT idx FROM result WHERE kind = 'failed')",
        )?;
        let failed = run("DELETE FROM result WHERE kind = 'failed'")?;
        run("UPDATE job SET state = 'open'")?;
        tx.commit().map_err(|e| Error::sql(doing, e))?;
        self.job.state = State::Open;
        Ok(u32::try_from(failed).unwrap_or(u32::MAX))
    }

    /// Writes where the job stands. Not to be called while a [`Writer`] of this journal runs.
    ///
    /// # Errors
    /// When the write fails.
    pub fn set_state(&mut self, state: State) -> Result<(), Error> {
        self.parts
            .conn
            .execute("UPDATE job SET state = ?1", [state.name()])
            .map_err(|e| Error::sql("write the state of the job", e))?;
        self.job.state = state;
        Ok(())
    }
}

impl Kind {
    const ALL: [Self; 5] = [Self::Run, Self::Map, Self::Write, Self::Panel, Self::Embed];

    /// The name in the journal and in `tropa jobs`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Map => "map",
            Self::Write => "write",
            Self::Panel => "panel",
            Self::Embed => "embed",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl State {
    /// The name in the journal and in `tropa jobs`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Open, Self::Done, Self::Cancelled].into_iter().find(|state| state.name() == name)
    }
}

/// Gives the hash of a chunk: SHA-256 over its endpoint and its body, which holds model, options and prompt.
fn chunk_hash(endpoint: Endpoint, body: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"tropa.chunk/1\0");
    hash.update(endpoint_name(endpoint));
    hash.update(b"\0");
    hash.update(body);
    hash.finalize().into()
}

/// Gives the hash of a chunk that builds on others: over its endpoint, the chunks that it needs, and its recipe.
fn recipe_hash(endpoint: Endpoint, needs: &BTreeSet<ChunkIndex>, recipe: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"tropa.recipe/1\0");
    hash.update(endpoint_name(endpoint));
    hash.update(b"\0");
    hash.update(u32::try_from(needs.len()).unwrap_or(u32::MAX).to_le_bytes());
    for ChunkIndex(on) in needs {
        hash.update(on.to_le_bytes());
    }
    hash.update(recipe);
    hash.finalize().into()
}

/// Gives the hash that stands beside a result: over its chunk and its body, so that a row that damage has moved to
/// another chunk is noticed.
fn result_hash(chunk: u32, body: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"tropa.result/1\0");
    hash.update(chunk.to_le_bytes());
    hash.update(body);
    hash.finalize().into()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn endpoint_name(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "chat",
        Endpoint::Generate => "generate",
        Endpoint::Embed => "embed",
    }
}

fn endpoint_from_name(name: &str) -> Option<Endpoint> {
    [Endpoint::Chat, Endpoint::Generate, Endpoint::Embed].into_iter().find(|e| endpoint_name(*e) == name)
}

#[cfg(test)]
mod tests;
