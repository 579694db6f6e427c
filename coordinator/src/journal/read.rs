//! Reading a journal: where a job stands, and one chunk or item at a time.
//!
//! What a coordinator keeps in memory is two bits per chunk and the attempts of chunks that are not finished;
//! bodies are read when they are sent or exported, and checked against their hashes then.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use rusqlite::{Connection, OptionalExtension as _, Row};
use tropa_proto::{
    failure::{Class, Reason},
    id::{AgentId, ChunkIndex, Incarnation, JobId, MachineId, hex},
    message::Endpoint,
    uid::ShownId,
};

use super::{
    Error, Finished, Job, Journal, Kind, State, chunk_hash, endpoint_from_name, result_hash, sha256,
};

/// Where a job stands: enough to go on with it.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    /// Which chunks are finished.
    pub finished: Finished,
    /// The attempts of every chunk that has some and is not finished, by number. The next attempt of a chunk is
    /// the last one here plus 1, or 1.
    pub attempts: BTreeMap<ChunkIndex, Vec<PastAttempt>>,
    /// Attempts without an end, of finished chunks too: somebody may still be at work on them, or hold a result.
    pub open: Vec<OpenAttempt>,
    /// Attempts that ended without a result at an agent that is in `unguarded`.
    pub ended: Vec<(OpenAttempt, Class, Option<Reason>)>,
    /// The agents that no kernel lock keeps from the devices of an agent, by that agent.
    pub unguarded: BTreeMap<AgentId, BTreeSet<AgentId>>,
}

/// An attempt of a chunk that is not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastAttempt {
    /// Its number.
    pub no: u32,
    /// Whether it counts against the present budget.
    pub this_round: bool,
    /// Who had it.
    pub agent: AgentId,
    /// The machine that the agent was counted to, in the roster of then.
    pub machine: MachineId,
    /// How it ended; `None` while nobody knows.
    pub class: Option<Class>,
}

/// An attempt as it was given to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenAttempt {
    /// The chunk.
    pub chunk: ChunkIndex,
    /// Its number.
    pub no: u32,
    /// Who had it.
    pub agent: AgentId,
    /// The run of the agent that it was meant for.
    pub incarnation: Incarnation,
    /// The machine that the agent was counted to, in the roster of then.
    pub machine: MachineId,
    /// The lane, as text.
    pub lane: String,
}

/// One chunk as it is sent.
#[derive(Clone)]
pub struct Chunk {
    /// Which one.
    pub index: ChunkIndex,
    /// Which endpoint of Ollama.
    pub endpoint: Endpoint,
    /// The model's name as the body says it.
    pub model: String,
    /// The JSON body for Ollama.
    pub body: Vec<u8>,
    /// What the job noted about the item, as JSON.
    pub origin: String,
}

/// Without the content.
impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk")
            .field("index", &self.index)
            .field("endpoint", &self.endpoint)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// One item as it is exported.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its place in the output.
    pub index: u32,
    /// The model's name as the body says it.
    pub model: String,
    /// What the job noted about the item, as JSON.
    pub origin: String,
    /// The one result or failure.
    pub decided: Decided,
    /// All attempts, by number.
    pub attempts: Vec<AttemptRow>,
}

/// How an item ended.
#[derive(Clone, Debug)]
pub enum Decided {
    /// With a result.
    Done(Box<DoneRow>),
    /// With a typed failure.
    Failed(FailedRow),
}

/// A committed result.
#[derive(Clone)]
pub struct DoneRow {
    /// The attempt that brought it.
    pub no: u32,
    /// The pinned model, in hex.
    pub fingerprint: String,
    /// The digest that ran, in hex.
    pub digest: String,
    /// `stop`, `length`, or what else the engine said.
    pub done_reason: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// Times of the attempt, as JSON.
    pub metrics: String,
    /// What the engine returned, as JSON.
    pub body: Vec<u8>,
}

/// Without the content.
impl fmt::Debug for DoneRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DoneRow")
            .field("no", &self.no)
            .field("done_reason", &self.done_reason)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// A committed failure.
#[derive(Clone, Debug)]
pub struct FailedRow {
    /// The attempt that decided it, where one did.
    pub no: Option<u32>,
    /// The class.
    pub class: String,
    /// What to tell the user.
    pub detail: String,
}

/// An attempt as it is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRow {
    /// Its number.
    pub no: u32,
    /// Who had it.
    pub agent: AgentId,
    /// The machine of the agent, by the id that people see.
    pub machine: ShownId,
    /// The lane, as text.
    pub lane: String,
    /// How it ended: `done`, a class, or `None` while nobody knows.
    pub class: Option<String>,
    /// What happened at the install.
    pub reason: Option<String>,
    /// The first words of the error.
    pub detail: Option<String>,
    /// From sending to the end, in milliseconds of the coordinator's wall clock; 0 while nobody knows.
    pub ms: u64,
}

impl Journal {
    /// Reads where the job stands.
    ///
    /// # Errors
    /// When the journal cannot be read, or says what it cannot have been told.
    pub fn load(&self) -> Result<Resume, Error> {
        let conn = &self.parts.conn;
        let doing = "read where the job stands";
        let sql = |e| Error::sql(doing, e);
        let mut resume = Resume::default();
        let mut rows = conn.prepare("SELECT idx, kind = 'done' FROM result").map_err(sql)?;
        let mut rows = rows.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let (index, done): (u32, bool) = (row.get(0).map_err(sql)?, row.get(1).map_err(sql)?);
            resume.finished.insert(ChunkIndex(index), done);
        }
        let mut rows = conn.prepare("SELECT agent, rival FROM unguarded").map_err(sql)?;
        let mut rows = rows.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            resume.unguarded.entry(agent(row, 0)?).or_default().insert(agent(row, 1)?);
        }
        let mut rows = conn
            .prepare(
                "SELECT a.idx, a.no, a.agent, a.incarnation, a.machine, a.lane, a.class, a.round = c.round, a.reason
                 FROM attempt a JOIN chunk c ON c.idx = a.idx
                 WHERE a.class IS NULL OR a.agent IN (SELECT agent FROM unguarded) OR NOT EXISTS (SELECT 1 FROM result r WHERE r.idx = a.idx)
                 ORDER BY a.idx, a.no",
            )
            .map_err(sql)?;
        let mut rows = rows.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let chunk = ChunkIndex(row.get(0).map_err(sql)?);
            let (no, agent) = (row.get(1).map_err(sql)?, agent(row, 2)?);
            let (machine, class): (_, Option<String>) = (machine(row, 4)?, row.get(6).map_err(sql)?);
            let class = class
                .map(|name| Class::from_name(&name).ok_or_else(|| Error::Damaged(format!("class {name:?}"))));
            let class = class.transpose()?;
            if class.is_none() || resume.unguarded.contains_key(&agent) {
                let incarnation: i64 = row.get(3).map_err(sql)?;
                let incarnation = Incarnation(incarnation.cast_unsigned());
                let lane = row.get(5).map_err(sql)?;
                let attempt = OpenAttempt { chunk, no, agent, incarnation, machine, lane };
                match class {
                    Some(class) => resume.ended.push((attempt, class, reason(row, 8)?)),
                    None => resume.open.push(attempt),
                }
            }
            if !resume.finished.contains(chunk) {
                let this_round = row.get(7).map_err(sql)?;
                let past = PastAttempt { no, this_round, agent, machine, class };
                resume.attempts.entry(chunk).or_default().push(past);
            }
        }
        Ok(resume)
    }

    /// Reads which model every chunk asks for: the names, sorted, and for each chunk the place of its own.
    ///
    /// # Errors
    /// When the journal cannot be read, or names more than 65,536 models.
    pub fn models(&self) -> Result<(Vec<String>, Vec<u16>), Error> {
        let sql = |e| Error::sql("read the models of the job", e);
        let conn = &self.parts.conn;
        let mut query = conn.prepare("SELECT DISTINCT model FROM chunk ORDER BY model").map_err(sql)?;
        let names: Vec<String> =
            query.query_map([], |row| row.get(0)).map_err(sql)?.collect::<Result<_, _>>().map_err(sql)?;
        let mut query = conn.prepare("SELECT model FROM chunk ORDER BY idx").map_err(sql)?;
        let mut rows = query.query([]).map_err(sql)?;
        let mut places = Vec::new();
        while let Some(row) = rows.next().map_err(sql)? {
            let name = row.get_ref(0).map_err(sql)?.as_str().unwrap_or_default();
            let place = names.partition_point(|known| known.as_str() < name);
            places.push(u16::try_from(place).map_err(|_| Error::TooMany)?);
        }
        Ok((names, places))
    }

    /// Reads one chunk to send it.
    ///
    /// # Errors
    /// When there is none, its body is not what came in or not what its recipe and the answers give, or it still
    /// waits for some.
    pub fn chunk(&self, index: ChunkIndex) -> Result<Chunk, Error> {
        let sql = |e| Error::sql("read a chunk", e);
        let mut query = self
            .parts
            .conn
            .prepare_cached(
                "SELECT endpoint, model, request, hash, origin, recipe IS NOT NULL FROM chunk WHERE idx = ?1",
            )
            .map_err(sql)?;
        type Row = (String, String, Option<Vec<u8>>, [u8; 32], Option<String>, bool);
        let (endpoint, model, body, hash, origin, builds_on_others): Row = query
            .query_row([index.0], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
            })
            .map_err(sql)?;
        let endpoint =
            endpoint_from_name(&endpoint).ok_or_else(|| Error::Damaged(format!("endpoint {endpoint:?}")))?;
        let body = body.ok_or_else(|| Error::Damaged(format!("chunk {} has no request yet", index.0)))?;
        let whole = if builds_on_others {
            matches!(self.fill(index)?, super::Filled::Body(filled) if filled == body)
        } else {
            chunk_hash(endpoint, &body) == hash
        };
        if !whole {
            return Err(Error::Damaged(format!("the request of chunk {} does not have its hash", index.0)));
        }
        Ok(Chunk { index, endpoint, model, body, origin: origin.unwrap_or_default() })
    }

    /// Says whether the chunk is finished with a failure.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn is_failed(&self, chunk: ChunkIndex) -> Result<bool, Error> {
        let sql = |e| Error::sql("read a result", e);
        let mut query = self
            .parts
            .conn
            .prepare_cached("SELECT kind = 'failed' FROM result WHERE idx = ?1")
            .map_err(sql)?;
        Ok(query.query_row([chunk.0], |row| row.get(0)).optional().map_err(sql)?.unwrap_or(false))
    }

    /// Reads one item to export it; `None` while it is not finished.
    ///
    /// # Errors
    /// When the journal cannot be read, or a result is not what was committed.
    pub fn item(&self, index: u32) -> Result<Option<Item>, Error> {
        let sql = |e| Error::sql("read a result", e);
        let mut query = self
            .parts
            .conn
            .prepare_cached(
                "SELECT c.idx, c.model, c.origin, r.kind, r.no, r.class, r.model_fingerprint, r.model_digest,
                        r.done_reason, r.prompt_tokens, r.output_tokens, r.metrics, r.detail, r.sha256, r.body,
                        (SELECT item FROM chunk NOT INDEXED WHERE idx = c.idx)
                 FROM chunk c JOIN result r ON r.idx = c.idx WHERE c.item = ?1",
            )
            .map_err(sql)?;
        let found = query
            .query_row([index], |row| {
                let head: (u32, String, Option<String>, Option<u32>) =
                    (row.get(0)?, row.get(1)?, row.get(2)?, row.get(15)?);
                if row.get_ref(3)?.as_str()? == "failed" {
                    let class = row.get(5)?;
                    let detail = row.get::<_, Option<String>>(12)?.unwrap_or_default();
                    return Ok((head, Decided::Failed(FailedRow { no: row.get(4)?, class, detail }), None));
                }
                let sha: Option<[u8; 32]> = row.get(13)?;
                let done = DoneRow {
                    no: row.get::<_, Option<u32>>(4)?.unwrap_or_default(),
                    fingerprint: row.get(6)?,
                    digest: row.get(7)?,
                    done_reason: row.get(8)?,
                    prompt_tokens: row.get(9)?,
                    output_tokens: row.get(10)?,
                    metrics: row.get(11)?,
                    body: row.get(14)?,
                };
                Ok((head, Decided::Done(Box::new(done)), sha))
            })
            .optional()
            .map_err(sql)?;
        let Some(((chunk, model, origin, own), decided, sha)) = found else {
            return self.is_hidden(index).map(|()| None);
        };
        if own != Some(index) {
            // The index led here, and the row itself says otherwise; the quick check does not compare the two.
            return Err(Error::Damaged(format!("the index of items leads from {index} to another item")));
        }
        if let Decided::Done(done) = &decided
            && sha != Some(result_hash(chunk, &done.body))
        {
            return Err(Error::Damaged(format!("the result of item {index} does not have its hash")));
        }
        let attempts = self.attempts(ChunkIndex(chunk))?;
        Ok(Some(Item { index, model, origin: origin.unwrap_or_default(), decided, attempts }))
    }

    /// Makes sure that an item which the index of items does not lead to is really not finished: it reads all rows,
    /// which happens to items that are not finished and to damaged files only.
    fn is_hidden(&self, index: u32) -> Result<(), Error> {
        let sql = "SELECT EXISTS (SELECT 1 FROM chunk c NOT INDEXED JOIN result r ON r.idx = c.idx WHERE c.item = ?1)";
        let hidden = self.parts.conn.query_row(sql, [index], |row| row.get(0));
        if hidden.map_err(|e| Error::sql("look for a result", e))? {
            return Err(Error::Damaged(format!("the index of items does not lead to item {index}")));
        }
        Ok(())
    }

    fn attempts(&self, index: ChunkIndex) -> Result<Vec<AttemptRow>, Error> {
        let sql = |e| Error::sql("read the attempts of a chunk", e);
        let mut query = self
            .parts
            .conn
            .prepare_cached(
                "SELECT no, a.agent, coalesce(m.uid, a.machine), lane, class, reason, detail,
                        max(0, coalesce(ended_ms - sent_ms, 0))
                 FROM attempt a LEFT JOIN machine m ON m.agent = a.agent WHERE idx = ?1 ORDER BY no",
            )
            .map_err(sql)?;
        let mut rows = query.query([index.0]).map_err(sql)?;
        let mut attempts = Vec::new();
        while let Some(row) = rows.next().map_err(sql)? {
            attempts.push(AttemptRow {
                no: row.get(0).map_err(sql)?,
                agent: agent(row, 1)?,
                machine: shown(row, 2)?,
                lane: row.get(3).map_err(sql)?,
                class: row.get(4).map_err(sql)?,
                reason: row.get(5).map_err(sql)?,
                detail: row.get(6).map_err(sql)?,
                ms: row.get::<_, i64>(7).map_err(sql)?.cast_unsigned(),
            });
        }
        Ok(attempts)
    }
}

/// Reads the one row of `job`; `None` while the input is not complete.
pub(super) fn job(conn: &Connection) -> Result<Option<Job>, Error> {
    let sql = |e| Error::sql("read the job", e);
    let found = conn
        .query_row(
            "SELECT id, kind, spec, spec_sha256, input_sha256, created_ms, state,
                    (SELECT coalesce(max(idx) + 1, 0) FROM chunk),
                    (SELECT coalesce(max(item) + 1, 0) FROM chunk) FROM job",
            [],
            |row| {
                let names: (String, String, [u8; 32]) = (row.get(1)?, row.get(6)?, row.get(3)?);
                let job = Job {
                    id: JobId(row.get(0)?),
                    kind: Kind::Run,
                    spec: row.get(2)?,
                    input_sha256: row.get(4)?,
                    created_ms: row.get::<_, i64>(5)?.cast_unsigned(),
                    state: State::Open,
                    chunks: row.get(7)?,
                    items: row.get(8)?,
                };
                Ok((job, names))
            },
        )
        .optional()
        .map_err(sql)?;
    let Some((mut job, (kind, state, hash))) = found else { return Ok(None) };
    job.kind = Kind::from_name(&kind).ok_or_else(|| Error::Damaged(format!("kind {kind:?}")))?;
    job.state = State::from_name(&state).ok_or_else(|| Error::Damaged(format!("state {state:?}")))?;
    if sha256(&job.spec) != hash {
        return Err(Error::Damaged(format!("the spec does not have its hash {}", hex(&hash))));
    }
    Ok(Some(job))
}

pub(super) fn agent(row: &Row<'_>, column: usize) -> Result<AgentId, Error> {
    row.get(column).map(AgentId).map_err(|e| Error::sql("read who had an attempt", e))
}

fn reason(row: &Row<'_>, column: usize) -> Result<Option<Reason>, Error> {
    let name: Option<String> = row.get(column).map_err(|e| Error::sql("read why an attempt ended", e))?;
    let reason = name.map(|name| {
        let known = Reason::ALL.into_iter().find(|reason| reason.name() == name);
        known.ok_or_else(|| Error::Damaged(format!("reason {name:?}")))
    });
    reason.transpose()
}

fn machine(row: &Row<'_>, column: usize) -> Result<MachineId, Error> {
    agent(row, column).map(MachineId)
}

/// Reads the id of a machine that people see: `coalesce(machine.uid, attempt.machine)`, or that of a name.
pub(super) fn shown(row: &Row<'_>, column: usize) -> Result<ShownId, Error> {
    let sql = |e| Error::sql("read the id of a machine", e);
    let bytes = row.get_ref(column).map_err(sql)?.as_blob().map_err(|e| sql(e.into()))?;
    ShownId::from_bytes(bytes)
        .ok_or_else(|| Error::Damaged(format!("a machine's id of {} bytes", bytes.len())))
}
