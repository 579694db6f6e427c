//! Every attempt of a job with its times and its names: what reports are made of.

use std::collections::BTreeMap;

use rusqlite::Row;
use tropa_proto::{
    id::{AgentId, ChunkIndex},
    uid::ShownId,
};

use super::{Error, Journal, read};

/// One attempt. Times are the coordinator's wall clock in milliseconds since 1970: shown, they decide nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempted {
    /// The chunk.
    pub chunk: ChunkIndex,
    /// Its number.
    pub no: u32,
    /// Who had it.
    pub agent: AgentId,
    /// The machine of the agent, by the id that people see.
    pub machine: ShownId,
    /// The lane, as text: device names with commas.
    pub lane: String,
    /// When it was recorded, which is before it was sent.
    pub recorded_ms: u64,
    /// When its engine began, where the agent said so.
    pub started_ms: Option<u64>,
    /// When its end was known.
    pub ended_ms: Option<u64>,
    /// How it ended: `done`, a class, or `None` while nobody knows.
    pub class: Option<String>,
    /// What happened at the install.
    pub reason: Option<String>,
    /// The engine's words, which may quote a prompt: not for reports.
    pub detail: Option<String>,
    /// What it brought, where its result is the chunk's.
    pub won: Option<Won>,
}

/// What the deciding attempt of a result brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Won {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// Times of the attempt, as JSON.
    pub metrics: String,
}

/// What agents and machines were called when they worked on the job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Labels of agents.
    pub agents: BTreeMap<AgentId, String>,
    /// Names of machines.
    pub machines: BTreeMap<ShownId, String>,
}

impl Names {
    /// The name of an agent, else its short id.
    #[must_use]
    pub fn agent(&self, agent: AgentId) -> String {
        self.agents.get(&agent).cloned().unwrap_or_else(|| agent.short())
    }

    /// The name of a machine, with its short id where another has the same name; else its short id.
    #[must_use]
    pub fn machine(&self, machine: ShownId) -> String {
        let name = self.machine_beside_id(machine);
        let alike = self.machines.values().filter(|other| **other == name).count();
        if alike > 1 { format!("{name} ({machine})") } else { name }
    }

    /// The name of a machine, else its short id: for where the id stands beside it.
    #[must_use]
    pub fn machine_beside_id(&self, machine: ShownId) -> String {
        self.machines.get(&machine).cloned().unwrap_or_else(|| machine.to_string())
    }
}

impl Journal {
    /// Gives every attempt of the job, or of one chunk, by chunk and number.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn each_attempt(&self, of: Option<ChunkIndex>, mut each: impl FnMut(Attempted)) -> Result<(), Error> {
        let order = "WHERE ?1 IS NULL OR a.idx = ?1 ORDER BY a.idx, a.no";
        self.attempted(order, of.map(|chunk| chunk.0), &mut each)
    }

    /// Gives every attempt of the job in the order in which they began; those that never did, by when they were
    /// recorded.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn each_attempt_in_time(&self, mut each: impl FnMut(Attempted)) -> Result<(), Error> {
        let order = "WHERE ?1 IS NULL ORDER BY coalesce(a.started_ms, a.sent_ms), a.idx, a.no";
        self.attempted(order, None, &mut each)
    }

    /// When the first attempt was recorded, when the last that is known ended, and how many there are.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn extent(&self) -> Result<(u64, u64, u64), Error> {
        let sql = "SELECT coalesce(min(sent_ms), 0), coalesce(max(coalesce(ended_ms, started_ms, sent_ms)), 0), count(*)
                   FROM attempt";
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let (first, last, count): (i64, i64, i64) = self
            .parts
            .conn
            .query_row(sql, [], read)
            .map_err(|e| Error::sql("read the times of the job", e))?;
        let natural = |value| u64::try_from(value).unwrap_or_default();
        Ok((natural(first), natural(last), natural(count)))
    }

    fn attempted(&self, order: &str, of: Option<u32>, each: &mut dyn FnMut(Attempted)) -> Result<(), Error> {
        let sql = |e| Error::sql("read the attempts of the job", e);
        let text = format!(
            "SELECT a.idx, a.no, a.agent, coalesce(m.uid, a.machine), a.lane, a.sent_ms, a.started_ms, a.ended_ms, a.class,
                    a.reason, a.detail, r.prompt_tokens, r.output_tokens, r.metrics
             FROM attempt a LEFT JOIN machine m ON m.agent = a.agent
             LEFT JOIN result r ON r.idx = a.idx AND r.no = a.no AND r.kind = 'done' {order}"
        );
        let mut query = self.parts.conn.prepare_cached(&text).map_err(sql)?;
        let mut rows = query.query([of]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            each(attempted(row)?);
        }
        Ok(())
    }

    /// Reads what agents and machines were called.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn names(&self) -> Result<Names, Error> {
        let sql = |e| Error::sql("read the names of machines", e);
        let mut names = Names::default();
        let mut query =
            self.parts.conn.prepare("SELECT kind = 'machine', id, name FROM name").map_err(sql)?;
        let mut rows = query.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let name = row.get(2).map_err(sql)?;
            if row.get(0).map_err(sql)? {
                names.machines.insert(read::shown(row, 1)?, name);
            } else {
                names.agents.insert(read::agent(row, 1)?, name);
            }
        }
        Ok(names)
    }

    /// Says how many chunks have an attempt that has not ended and no result: they run, or lie ready at an agent.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn handed_out(&self) -> Result<u32, Error> {
        let sql = "SELECT count(DISTINCT a.idx) FROM attempt a WHERE a.class IS NULL
                   AND NOT EXISTS (SELECT 1 FROM result r WHERE r.idx = a.idx)";
        let counted = self.parts.conn.query_row(sql, [], |row| row.get(0));
        counted.map_err(|e| Error::sql("count what runs", e))
    }
}

fn attempted(row: &Row<'_>) -> Result<Attempted, Error> {
    let sql = |e| Error::sql("read an attempt", e);
    let time = |column| {
        let ms: Option<i64> = row.get(column).map_err(sql)?;
        Ok::<_, Error>(ms.and_then(|ms| u64::try_from(ms).ok()))
    };
    let metrics: Option<String> = row.get(13).map_err(sql)?;
    let won = match metrics {
        None => None,
        Some(metrics) => Some(Won {
            prompt_tokens: row.get::<_, Option<u32>>(11).map_err(sql)?.unwrap_or_default(),
            output_tokens: row.get::<_, Option<u32>>(12).map_err(sql)?.unwrap_or_default(),
            metrics,
        }),
    };
    Ok(Attempted {
        chunk: ChunkIndex(row.get(0).map_err(sql)?),
        no: row.get(1).map_err(sql)?,
        agent: read::agent(row, 2)?,
        machine: read::shown(row, 3)?,
        lane: row.get(4).map_err(sql)?,
        recorded_ms: time(5)?.unwrap_or_default(),
        started_ms: time(6)?,
        ended_ms: time(7)?,
        class: row.get(8).map_err(sql)?,
        reason: row.get(9).map_err(sql)?,
        detail: row.get(10).map_err(sql)?,
        won,
    })
}
