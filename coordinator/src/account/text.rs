//! The account in a terminal.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{Account, percent, span_of};
use crate::{table::Table, terminal::escaped};

/// Attempts without a result that a terminal shows; the page and `--json` show more.
const TROUBLES: usize = 10;

impl Account {
    /// Tells the account to people. No speed-up: that takes a measured baseline of the same work.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "job {}: {}, submitted {} UTC, {}\n{} of {} items done",
            &self.job[..6],
            self.kind,
            self.created,
            self.state,
            self.done,
            self.items
        );
        if self.failed > 0 {
            let _ = write!(text, ", {} failed ({})", self.failed, classes(&self.failed_by_class));
        }
        if self.inner_done > 0 {
            let _ = write!(text, ", from {} chunks before them", self.inner_done);
        }
        if self.attempts == 0 {
            text.push_str("; nothing has run");
            return text;
        }
        let _ = write!(
            text,
            " in {}, {} of it at work; {} prompt and {} output tokens",
            span_of(self.last_ms.saturating_sub(self.first_ms)),
            span_of(self.at_work_ms),
            self.prompt_tokens,
            self.output_tokens
        );
        if let Some(rate) = self.tokens_per_s {
            let _ = write!(text, ", {rate:.1} tokens/s");
        }
        let _ = write!(text, "\n{} attempts ({})", self.attempts, classes(&self.attempts_by_class));
        if self.truncated > 0 {
            let _ = write!(text, "; {} answers cut at --max-tokens", self.truncated);
        }
        let mut machines = Table::new([
            "MACHINE", "ID", "RESULTS", "SHARE", "TOKENS", "AT WORK", "LOADING", "WAITING", "TOKENS/S",
        ]);
        for row in &self.machines {
            machines.row([
                &row.name,
                &row.id,
                &row.items.to_string(),
                &format!("{} %", self.share(row)),
                &row.output_tokens.to_string(),
                &span_of(row.engine_ms),
                &span_of(row.load_ms),
                &span_of(row.wait_ms),
                &row.decode_tokens_per_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")),
            ]);
        }
        let mut devices = Table::new(["DEVICE", "OF", "ATTEMPTS", "BUSY", "OF THE JOB"]);
        for row in &self.devices {
            devices.row([
                &row.device,
                &row.machine_name,
                &row.attempts.to_string(),
                &span_of(row.busy_ms),
                &format!("{} %", percent(row.busy_ms, self.last_ms.saturating_sub(self.first_ms))),
            ]);
        }
        let _ = write!(text, "\n\n{machines}\n\n{devices}");
        if !self.troubles.is_empty() {
            let mut table = Table::new(["CHUNK", "ATTEMPT", "MACHINE", "CLASS", "REASON", "RAN"]);
            for trouble in self.troubles.iter().take(TROUBLES) {
                table.row([
                    &trouble.chunk.to_string(),
                    &trouble.no.to_string(),
                    &trouble.machine_name,
                    &trouble.class,
                    trouble.reason.as_deref().unwrap_or("-"),
                    &trouble.ran_ms.map_or_else(|| "-".to_owned(), span_of),
                ]);
            }
            let _ = write!(text, "\n\n{table}");
            let more = self.troubles.len().saturating_sub(TROUBLES) as u64 + self.troubles_left_out;
            if more > 0 {
                let _ = write!(text, "\nand {more} more");
            }
        }
        text
    }
}

/// Counts by class in words, escaped for a terminal.
fn classes<T: std::fmt::Display>(counts: &BTreeMap<String, T>) -> String {
    counts.iter().map(|(class, count)| format!("{count} {}", escaped(class))).collect::<Vec<_>>().join(", ")
}
