//! What a job came to, for the end of it.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use crate::{
    journal::{Error, Journal, Names, Totals},
    terminal::escaped,
    words::count,
};

/// The last words about a job. Says no speed-up: that takes a measured baseline of the same work (invariant 5).
#[derive(Clone, Debug)]
pub struct Summary {
    job: String,
    items: u32,
    totals: Totals,
    names: Names,
    wall: Duration,
}

impl Summary {
    /// Counts a job. `wall` is how long this run of it took, by the caller's clock.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn of(journal: &Journal, wall: Duration) -> Result<Self, Error> {
        let job = journal.job();
        let (items, totals, names) = (journal.item_count()?, journal.item_totals()?, journal.names()?);
        Ok(Self { job: job.id.short(), items, totals, names, wall })
    }

    /// How many items have failed.
    #[must_use]
    pub fn failed(&self) -> u32 {
        self.totals.failed.values().sum()
    }

    /// Says whether any item, or any chunk that feeds one, has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        !self.totals.failed.is_empty() || !self.totals.inner_failed.is_empty()
    }

    /// Says whether every item has its result or failure.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.totals.done + self.failed() == self.items
    }

    /// Tells it to people, in a few lines.
    #[must_use]
    pub fn text(&self) -> String {
        let totals = &self.totals;
        let mut text = format!("job {}: {} of {} items done", self.job, totals.done, self.items);
        if !totals.failed.is_empty() {
            let _ = write!(text, ", {} failed ({})", self.failed(), by_class(&totals.failed));
        }
        if totals.inner_done > 0 {
            let _ = write!(text, ", from {} chunks before them", totals.inner_done);
        }
        if !totals.inner_failed.is_empty() {
            let count: u32 = totals.inner_failed.values().sum();
            let _ = write!(text, ", {count} of those failed ({})", by_class(&totals.inner_failed));
        }
        let _ = write!(
            text,
            " in {}; {} prompt and {} output tokens",
            duration(self.wall),
            totals.prompt_tokens,
            totals.output_tokens
        );
        if totals.repeated > 0 {
            let _ = write!(text, "; {}", count(totals.repeated, "repeated attempt"));
        }
        if totals.truncated > 0 {
            let _ = write!(text, "; {} cut at --max-tokens", totals.truncated);
        }
        text.push('\n');
        for (machine, share) in &totals.machines {
            // Shares are rounded down, so that 99.9 % is never shown as all.
            let done = (totals.done + totals.inner_done).max(1);
            let percent = u64::from(share.items) * 100 / u64::from(done);
            let _ = writeln!(
                text,
                "    {}    {} ({percent} %), {} output tokens",
                escaped(&self.names.machine(*machine)),
                count(share.items, if totals.inner_done > 0 { "chunk" } else { "item" }),
                share.output_tokens
            );
        }
        text
    }

    /// Tells it to programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let totals = &self.totals;
        let machines: Vec<_> = totals
            .machines
            .iter()
            .map(|(machine, share)| {
                json!({
                    "machine": machine.to_string(), "name": self.names.machine_beside_id(*machine),
                    "items": share.items, "output_tokens": share.output_tokens,
                })
            })
            .collect();
        json!({
            "schema": "tropa.summary/1", "job": self.job, "items": self.items, "done": totals.done,
            "failed": self.failed(), "failed_by_class": totals.failed,
            "wall_ms": u64::try_from(self.wall.as_millis()).unwrap_or(u64::MAX),
            "prompt_tokens": totals.prompt_tokens, "output_tokens": totals.output_tokens,
            "inner_done": totals.inner_done, "inner_failed_by_class": totals.inner_failed,
            "repeated_attempts": totals.repeated, "truncated": totals.truncated, "machines": machines,
        })
    }
}

fn by_class(failed: &BTreeMap<String, u32>) -> String {
    let classes = failed.iter().map(|(class, count)| format!("{count} {}", escaped(class)));
    classes.collect::<Vec<_>>().join(", ")
}

/// Shows a time as `0.4s`, `12s`, `2m 10s` or `3h 5m`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", time.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}
