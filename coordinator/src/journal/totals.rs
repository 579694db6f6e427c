//! What a job came to, counted by the database without reading a single result.

use std::collections::BTreeMap;

use tropa_proto::uid::ShownId;

use super::{Error, Journal, Kind, read};

/// What a job came to so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Items with a result.
    pub done: u32,
    /// Items that failed, by class.
    pub failed: BTreeMap<String, u32>,
    /// Chunks with a result that are no items: they only feed some.
    pub inner_done: u32,
    /// Such chunks that failed, by class.
    pub inner_failed: BTreeMap<String, u32>,
    /// Tokens of the prompts of results.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub output_tokens: u64,
    /// Results that ended at their limit of tokens.
    pub truncated: u32,
    /// Attempts that were started beyond the first of their chunk, refusals left out.
    pub repeated: u32,
    /// What each machine brought, by the id that people see.
    pub machines: BTreeMap<ShownId, Share>,
}

/// What one machine brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Results, those of inner chunks too.
    pub items: u32,
    /// Tokens of their answers.
    pub output_tokens: u64,
}

/// A chunk counts as one.
const ONE: &str = "1";

/// How many of the user's items a row of `chunk`, named `c`, holds, in SQL: those of a batch stand in its origin.
pub(super) fn items_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Embed => {
            "CASE WHEN json_valid(c.origin) THEN coalesce(json_array_length(c.origin, '$.parts'), 1) ELSE 1 END"
        }
        Kind::Run | Kind::Map | Kind::Write | Kind::Panel => ONE,
    }
}

impl Journal {
    /// Counts what the job came to so far, by chunks.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn totals(&self) -> Result<Totals, Error> {
        self.count(ONE)
    }

    /// Counts what the job came to so far, by the user's items: in a job of embeddings a chunk holds several.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn item_totals(&self) -> Result<Totals, Error> {
        self.count(items_of(self.job().kind))
    }

    /// How many items the user handed in.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn item_count(&self) -> Result<u32, Error> {
        let sql = format!(
            "SELECT coalesce(sum({}), 0) FROM chunk c WHERE c.item IS NOT NULL",
            items_of(self.job().kind)
        );
        let counted = self.parts.conn.query_row(&sql, [], |row| row.get(0));
        counted.map_err(|e| Error::sql("count the items", e))
    }

    fn count(&self, weight: &str) -> Result<Totals, Error> {
        let sql = |e| Error::sql("count the results", e);
        let conn = &self.parts.conn;
        let mut totals = Totals::default();
        let mut query = conn
            .prepare(&format!(
                "SELECT r.kind = 'done', coalesce(r.class, ''), coalesce(m.uid, a.machine), sum({weight}), coalesce(sum(r.prompt_tokens), 0),
                        coalesce(sum(r.output_tokens), 0), count(*) FILTER (WHERE r.done_reason = 'length'),
                        c.item IS NOT NULL
                 FROM result r JOIN chunk c ON c.idx = r.idx
                 LEFT JOIN attempt a ON a.idx = r.idx AND a.no = r.no
                 LEFT JOIN machine m ON m.agent = a.agent GROUP BY 1, 2, 3, 8",
            ))
            .map_err(sql)?;
        let mut rows = query.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let count: u32 = row.get(3).map_err(sql)?;
            let shown: bool = row.get(7).map_err(sql)?;
            if !row.get::<_, bool>(0).map_err(sql)? {
                let failed = if shown { &mut totals.failed } else { &mut totals.inner_failed };
                *failed.entry(row.get(1).map_err(sql)?).or_default() += count;
                continue;
            }
            let output_tokens = row.get::<_, i64>(5).map_err(sql)?.cast_unsigned();
            *(if shown { &mut totals.done } else { &mut totals.inner_done }) += count;
            totals.prompt_tokens += row.get::<_, i64>(4).map_err(sql)?.cast_unsigned();
            totals.output_tokens += output_tokens;
            totals.truncated += row.get::<_, u32>(6).map_err(sql)?;
            // A result names its attempt: a machine is always there.
            let share = totals.machines.entry(read::shown(row, 2)?).or_default();
            share.items += count;
            share.output_tokens += output_tokens;
        }
        totals.repeated = conn
            .query_row(
                "SELECT count(*) - count(DISTINCT idx) FROM attempt
                 WHERE class IS NULL OR class NOT IN ('busy', 'no_model', 'denied')",
                [],
                |row| row.get(0),
            )
            .map_err(sql)?;
        Ok(totals)
    }
}
