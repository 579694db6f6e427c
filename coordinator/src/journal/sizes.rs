//! How large every chunk is, as the job noted when it took the input in: what the scheduler plans with.

use super::{Error, Journal};

/// The size of one chunk; all 0 where the job noted nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// The context that its body asks for, in tokens.
    pub num_ctx: u32,
    /// Estimated tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens of its answer, at most.
    pub num_predict: u32,
    /// Names the long beginning that its prompt shares with others; 0: none.
    pub prefix: u32,
}

impl Journal {
    /// Reads the sizes of all chunks, in order.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn sizes(&self) -> Result<Vec<Size>, Error> {
        let sql = |e| Error::sql("read how large the chunks are", e);
        let mut query = self
            .parts
            .conn
            .prepare(
                "SELECT origin ->> 'num_ctx', origin ->> 'prompt_tokens', origin ->> 'num_predict',
                        origin ->> 'prefix' FROM chunk ORDER BY idx",
            )
            .map_err(sql)?;
        let mut rows = query.query([]).map_err(sql)?;
        let mut sizes = Vec::new();
        while let Some(row) = rows.next().map_err(sql)? {
            // An estimate: what is no number counts as not known.
            let number = |column| row.get::<_, Option<u32>>(column).ok().flatten().unwrap_or(0);
            sizes.push(Size {
                num_ctx: number(0),
                prompt_tokens: number(1),
                num_predict: number(2),
                prefix: number(3),
            });
        }
        Ok(sizes)
    }
}
