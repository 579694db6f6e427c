//! Chunks that build on others: which they need, and their requests made of the answers in the journal.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::OptionalExtension as _;
use serde::Deserialize;
use tropa_proto::{failure::Class, id::ChunkIndex, message::MAX_BODY};

use super::{Error, Journal, endpoint_from_name, recipe_hash, result_hash};
use crate::recipe::{self, FillError};

/// Which chunks build on which, and how far their requests are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// For every chunk that builds on others: those.
    pub on: BTreeMap<ChunkIndex, BTreeSet<ChunkIndex>>,
    /// Those of them whose requests are not written yet.
    pub unfilled: BTreeSet<ChunkIndex>,
}

/// A chunk without its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The name of its endpoint: `chat`, `generate`, `embed`.
    pub endpoint: String,
    /// The model's name as the body says it.
    pub model: String,
    /// What the job noted about it, as JSON.
    pub origin: String,
    /// The size of its request; `None` while it waits for answers that it builds on.
    pub request_bytes: Option<u32>,
}

/// What the answers make of a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The body for Ollama, final.
    Body(Vec<u8>),
    /// No request comes of it: the chunk has failed, as this, and why.
    Failed(Class, String),
}

impl Journal {
    /// Reads which chunks build on which; nothing for a job of independent items.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn needs(&self) -> Result<Needs, Error> {
        let sql = |e| Error::sql("read which chunks build on which", e);
        let conn = &self.parts.conn;
        let mut needs = Needs::default();
        let mut query = conn.prepare("SELECT idx, on_idx FROM need ORDER BY idx, on_idx").map_err(sql)?;
        let mut rows = query.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let (chunk, on) = (ChunkIndex(row.get(0).map_err(sql)?), ChunkIndex(row.get(1).map_err(sql)?));
            needs.on.entry(chunk).or_default().insert(on);
        }
        if needs.on.is_empty() {
            return Ok(needs);
        }
        let mut query = conn.prepare("SELECT idx FROM chunk WHERE request IS NULL").map_err(sql)?;
        let unfilled = query.query_map([], |row| row.get(0).map(ChunkIndex)).map_err(sql)?;
        needs.unfilled = unfilled.collect::<Result<_, _>>().map_err(sql)?;
        Ok(needs)
    }

    /// Makes the request of a chunk that builds on others out of their answers. The same bytes whenever it is asked.
    ///
    /// # Errors
    /// When the journal cannot be read, a recipe or a result is not what came in, or a needed result is not there.
    pub fn fill(&self, chunk: ChunkIndex) -> Result<Filled, Error> {
        let recipe = self.recipe(chunk)?;
        let on = recipe::needs(&recipe).ok_or_else(|| malformed(chunk))?;
        let mut answers = BTreeMap::new();
        let mut bytes = 0;
        for need in on {
            let Some(text) = recipe::answer(&self.reply(need)?) else {
                let name = self.name_of(need)?;
                let why = format!("{name}, which it builds on, brought a result that is no answer");
                return Ok(Filled::Failed(Class::NeedFailed, why));
            };
            bytes += text.len();
            if bytes > MAX_BODY {
                return Ok(too_long(bytes));
            }
            answers.insert(need, text);
        }
        match recipe::fill(&recipe, &answers) {
            Ok(body) if body.len() > MAX_BODY => Ok(too_long(body.len())),
            Ok(body) => Ok(Filled::Body(body)),
            Err(error @ FillError::Empty) => Ok(Filled::Failed(Class::NeedFailed, error.to_string())),
            Err(FillError::Malformed | FillError::Missing(_)) => Err(malformed(chunk)),
        }
    }

    /// Says why a chunk cannot run because one that it needs has failed; names that one and its class.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn why_need_failed(&self, on: ChunkIndex) -> Result<String, Error> {
        let sql = |e| Error::sql("read a failure", e);
        let mut query = self
            .parts
            .conn
            .prepare_cached("SELECT class, detail FROM result WHERE idx = ?1 AND kind = 'failed'")
            .map_err(sql)?;
        let found: Option<(String, Option<String>)> =
            query.query_row([on.0], |row| Ok((row.get(0)?, row.get(1)?))).optional().map_err(sql)?;
        let (class, detail) = found.unwrap_or_default();
        let name = self.name_of(on)?;
        // Only our own words are passed on: others may quote a prompt.
        let further = detail.filter(|_| class == Class::NeedFailed.name());
        let further = further.map_or_else(String::new, |detail| format!(": {detail}"));
        Ok(format!("it builds on {name}, which has failed ({class}){further}"))
    }

    /// Reads what is known of a chunk without its request, which may not be there yet.
    ///
    /// # Errors
    /// When there is none, or the journal cannot be read.
    pub fn head(&self, chunk: ChunkIndex) -> Result<Head, Error> {
        let sql = |e| Error::sql("read a chunk", e);
        let mut query = self
            .parts
            .conn
            .prepare_cached("SELECT endpoint, model, origin, length(request) FROM chunk WHERE idx = ?1")
            .map_err(sql)?;
        let head = query.query_row([chunk.0], |row| {
            Ok(Head {
                endpoint: row.get(0)?,
                model: row.get(1)?,
                origin: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
                request_bytes: row.get(3)?,
            })
        });
        head.map_err(sql)
    }

    /// Reads the chunks that are items of the output, in the order of the output; `None` where all are.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn shown(&self) -> Result<Option<Vec<ChunkIndex>>, Error> {
        if self.job.items == self.job.chunks {
            return Ok(None);
        }
        let sql = |e| Error::sql("read which chunks are items", e);
        let conn = &self.parts.conn;
        let mut query =
            conn.prepare("SELECT idx FROM chunk WHERE item IS NOT NULL ORDER BY item").map_err(sql)?;
        let shown = query.query_map([], |row| row.get(0).map(ChunkIndex)).map_err(sql)?;
        Ok(Some(shown.collect::<Result<_, _>>().map_err(sql)?))
    }

    /// Reads a recipe and checks it, and the chunks that it needs, against its hash.
    fn recipe(&self, chunk: ChunkIndex) -> Result<Vec<u8>, Error> {
        let sql = |e| Error::sql("read a recipe", e);
        let conn = &self.parts.conn;
        let mut query = conn
            .prepare_cached("SELECT endpoint, recipe, hash FROM chunk WHERE idx = ?1 AND recipe IS NOT NULL")
            .map_err(sql)?;
        let (endpoint, recipe, hash): (String, Vec<u8>, [u8; 32]) =
            query.query_row([chunk.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).map_err(sql)?;
        let mut query = conn.prepare_cached("SELECT on_idx FROM need WHERE idx = ?1").map_err(sql)?;
        let needs = query.query_map([chunk.0], |row| row.get(0).map(ChunkIndex)).map_err(sql)?;
        let needs: BTreeSet<ChunkIndex> = needs.collect::<Result<_, _>>().map_err(sql)?;
        let whole = endpoint_from_name(&endpoint)
            .is_some_and(|endpoint| recipe_hash(endpoint, &needs, &recipe) == hash);
        if whole { Ok(recipe) } else { Err(malformed(chunk)) }
    }

    /// Reads what the engine returned for a chunk.
    fn reply(&self, chunk: ChunkIndex) -> Result<Vec<u8>, Error> {
        let sql = |e| Error::sql("read a result", e);
        let mut query = self
            .parts
            .conn
            .prepare_cached("SELECT body, sha256 FROM result WHERE idx = ?1 AND kind = 'done'")
            .map_err(sql)?;
        let (body, sha): (Vec<u8>, [u8; 32]) =
            query.query_row([chunk.0], |row| Ok((row.get(0)?, row.get(1)?))).map_err(sql)?;
        if sha == result_hash(chunk.0, &body) {
            Ok(body)
        } else {
            Err(Error::Damaged(format!("the result of chunk {} does not have its hash", chunk.0)))
        }
    }

    /// What a chunk is called; its number where it has no name.
    fn name_of(&self, chunk: ChunkIndex) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Named {
            id: String,
        }
        let sql = |e| Error::sql("read what a chunk is called", e);
        let mut query =
            self.parts.conn.prepare_cached("SELECT origin FROM chunk WHERE idx = ?1").map_err(sql)?;
        let origin: Option<String> =
            query.query_row([chunk.0], |row| row.get(0)).optional().map_err(sql)?.flatten();
        let named = origin.and_then(|origin| serde_json::from_str::<Named>(&origin).ok());
        Ok(named.map_or_else(|| format!("chunk {}", chunk.0), |named| named.id))
    }
}

fn too_long(bytes: usize) -> Filled {
    let why = format!(
        "with the answers that it builds on it is a request of {bytes} bytes, and at most {MAX_BODY} fit"
    );
    Filled::Failed(Class::TooLong, why)
}

fn malformed(chunk: ChunkIndex) -> Error {
    Error::Damaged(format!("the recipe of chunk {} is not what came in", chunk.0))
}
