//! All jobs of one user: the list, and one of them by the first digits of its id.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tropa_proto::id::JobId;

use super::{Error, Kind, State, directory, read, removal, schema, totals};

/// One line of `tropa jobs`.
#[derive(Clone, Debug)]
pub struct JobSummary {
    /// The job.
    pub id: JobId,
    /// Its directory.
    pub dir: PathBuf,
    /// What its journal says, or why it says nothing.
    pub state: JobState,
    /// Whether a live coordinator holds it.
    pub running: bool,
    /// Whether somebody has asked to cancel it and its coordinator has not come to it.
    pub cancelling: bool,
}

/// What the journal of a listed job says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// The input is complete.
    Whole {
        /// What kind of job.
        kind: Kind,
        /// Where it stands.
        state: State,
        /// When it was submitted, in milliseconds of the wall clock since 1970.
        created_ms: u64,
        /// How many chunks it has.
        chunks: u32,
        /// How many of them are items of the output.
        items: u32,
        /// How many items have a result.
        done: u32,
        /// How many items have a failure.
        failed: u32,
    },
    /// The input is coming in, or its coordinator died while it did.
    Incomplete,
    /// The journal cannot be read; says why.
    Unreadable(String),
}

/// Why no job is meant by a prefix.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No id begins so.
    #[error("no job begins with {prefix:?}; `tropa jobs` lists them")]
    None {
        /// What was typed.
        prefix: String,
    },
    /// Several ids begin so.
    #[error("{} jobs begin with {prefix:?}: {}", jobs.len(), jobs.iter().map(|job| job.to_string()).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// What was typed.
        prefix: String,
        /// The first ten that do, by id.
        jobs: Vec<JobId>,
    },
    /// The directory cannot be read.
    #[error(transparent)]
    Journal(#[from] Error),
}

/// Lists all jobs under `jobs`, oldest first, equal ones by id; those that cannot be read come first and say why.
///
/// # Errors
/// When the directory exists and cannot be read.
pub fn list(jobs: &Path) -> Result<Vec<JobSummary>, Error> {
    let mut list: Vec<_> = ids(jobs)?.into_iter().map(|id| summary(jobs, id)).collect();
    list.sort_by_key(|job| {
        let created = match job.state {
            JobState::Whole { created_ms, .. } => created_ms,
            JobState::Incomplete | JobState::Unreadable(_) => 0,
        };
        (created, job.id)
    });
    Ok(list)
}

/// Finds the one job under `jobs` whose id begins with the hexadecimal digits `prefix`, in either case.
///
/// # Errors
/// When none does, or several do, or the directory cannot be read.
pub fn find(jobs: &Path, prefix: &str) -> Result<JobId, FindError> {
    let digits = prefix.to_ascii_lowercase();
    let mut found: Vec<_> = ids(jobs)?
        .into_iter()
        .filter(|id| !digits.is_empty() && id.to_string().starts_with(&digits))
        .collect();
    match found.as_slice() {
        [] => Err(FindError::None { prefix: prefix.to_owned() }),
        [id] => Ok(*id),
        [_, _, ..] => {
            found.truncate(10);
            Err(FindError::Ambiguous { prefix: prefix.to_owned(), jobs: found })
        }
    }
}

/// Reads the ids from the names of directories; a name that is none is nobody's job. No directory: no jobs.
fn ids(jobs: &Path) -> Result<Vec<JobId>, Error> {
    let io = |e| Error::io("read the directory of jobs", jobs, e);
    let entries = match std::fs::read_dir(jobs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.map_err(io)?.file_name();
        ids.extend(name.to_str().and_then(|name| name.parse::<JobId>().ok()));
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Reads the line of one job that [`find`] has found.
#[must_use]
pub fn summary(jobs: &Path, id: JobId) -> JobSummary {
    let dir = jobs.join(id.to_string());
    let state = schema::open_read_only(&directory::database(&dir)).and_then(|conn| state(&conn));
    let state = state.unwrap_or_else(|error| JobState::Unreadable(error.to_string()));
    let running = directory::Lock::is_held(&dir);
    let cancelling = removal::asked(&dir).is_some();
    JobSummary { id, dir, state, running, cancelling }
}

fn state(conn: &Connection) -> Result<JobState, Error> {
    let Some(job) = read::job(conn)? else { return Ok(JobState::Incomplete) };
    let weight = totals::items_of(job.kind);
    let sql = format!(
        "SELECT coalesce(sum({weight}), 0), coalesce(sum({weight}) FILTER (WHERE r.kind = 'done'), 0),
                coalesce(sum({weight}) FILTER (WHERE r.kind = 'failed'), 0)
         FROM chunk c LEFT JOIN result r ON r.idx = c.idx WHERE c.item IS NOT NULL"
    );
    let (items, done, failed) = conn
        .query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .map_err(|e| Error::sql("count the results", e))?;
    Ok(JobState::Whole {
        kind: job.kind,
        state: job.state,
        created_ms: job.created_ms,
        chunks: job.chunks,
        items,
        done,
        failed,
    })
}
