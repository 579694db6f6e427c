//! The account as one page: complete in itself, without scripts, and forbidden by its own policy to load anything.

use std::fmt::Write as _;

use super::{Account, percent, span_of, timeline};
use crate::{jobs::second, terminal::escaped};

const STYLE: &str = include_str!("page.css");

impl Account {
    /// Writes the page.
    pub(super) fn page(&self) -> String {
        let title = format!("tropa job {}", &self.job[..6]);
        let mut body = format!("<h1>{title}</h1>\n<p>{}</p>\n", escape(&self.headline()));
        body.push_str(&self.figures());
        if self.attempts > 0 {
            let _ = write!(
                body,
                "<h2>Who worked when</h2>\n<p>One row per device, from {} UTC on. {}</p>\n{}\n{}",
                second(self.first_ms),
                if self.devices.iter().any(|row| !row.pieces.is_empty()) {
                    "There are too many attempts to draw each: the darker, the busier."
                } else {
                    "Point at a bar to read its figures."
                },
                timeline::svg(self),
                LEGEND
            );
            body.push_str(&self.machines_table());
            body.push_str(&self.devices_table());
            body.push_str(&self.outcomes());
            body.push_str(&self.troubles_table());
        }
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
             <body>\n<main>\n{body}</main>\n</body>\n</html>\n"
        )
    }

    fn headline(&self) -> String {
        let models = if self.models.is_empty() {
            String::new()
        } else {
            format!(" with {}", self.models.join(" and "))
        };
        format!("{}{models}, submitted {} UTC, {}", self.kind, self.created, self.state)
    }

    fn figures(&self) -> String {
        let rate = self.tokens_per_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
        let figures = [
            (format!("{} of {}", self.done, self.items), "items done"),
            (self.failed.to_string(), "items failed"),
            (self.inner_done.to_string(), "chunks before them"),
            (span_of(self.last_ms.saturating_sub(self.first_ms)), "from first to last"),
            (span_of(self.at_work_ms), "at work"),
            (self.output_tokens.to_string(), "output tokens"),
            (rate, "tokens a second at work"),
            (self.repeated_attempts.to_string(), "attempts repeated"),
            (self.truncated.to_string(), "answers cut at their limit"),
        ];
        let cells = figures.iter().map(|(figure, what)| format!("<div><b>{figure}</b>{what}</div>\n"));
        format!("<div class=\"figures\">\n{}</div>\n", cells.collect::<String>())
    }

    fn machines_table(&self) -> String {
        let heads = [
            "Machine",
            "Id",
            "Results",
            "Share",
            "Output tokens",
            "At work",
            "Loading",
            "Reading",
            "Writing",
            "Waiting",
            "Tokens/s",
        ];
        let rows = self.machines.iter().map(|row| {
            vec![
                row.name.clone(),
                row.id.clone(),
                row.items.to_string(),
                format!("{} %", self.share(row)),
                row.output_tokens.to_string(),
                span_of(row.engine_ms),
                span_of(row.load_ms),
                span_of(row.prompt_ms),
                span_of(row.decode_ms),
                span_of(row.wait_ms),
                row.decode_tokens_per_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")),
            ]
        });
        table("Machines", &heads, rows)
    }

    fn devices_table(&self) -> String {
        let whole = self.last_ms.saturating_sub(self.first_ms);
        let rows = self.devices.iter().map(|row| {
            vec![
                row.device.clone(),
                row.machine_name.clone(),
                row.attempts.to_string(),
                span_of(row.busy_ms),
                format!("{} %", percent(row.busy_ms, whole)),
            ]
        });
        table("Devices", &["Device", "Machine", "Attempts", "Busy", "Of the job"], rows)
    }

    fn outcomes(&self) -> String {
        let items = std::iter::once(("done".to_owned(), self.done));
        let items = items.chain(self.failed_by_class.iter().map(|(class, count)| (class.clone(), *count)));
        let rows = items.map(|(class, count)| vec![class, count.to_string()]);
        let attempts =
            self.attempts_by_class.iter().map(|(class, count)| vec![class.clone(), count.to_string()]);
        table("Items by outcome", &["Outcome", "Items"], rows)
            + &table("Attempts by outcome", &["Outcome", "Attempts"], attempts)
    }

    fn troubles_table(&self) -> String {
        if self.troubles.is_empty() {
            return String::new();
        }
        let rows = self.troubles.iter().map(|trouble| {
            vec![
                trouble.chunk.to_string(),
                trouble.no.to_string(),
                trouble.machine_name.clone(),
                trouble.class.clone(),
                trouble.reason.clone().unwrap_or_default(),
                trouble.ran_ms.map_or_else(|| "did not begin".to_owned(), span_of),
            ]
        });
        let mut text = table(
            "Attempts without a result",
            &["Chunk", "Attempt", "Machine", "Class", "Reason", "Ran"],
            rows,
        );
        if self.troubles_left_out > 0 {
            let _ = writeln!(text, "<p>and {} more</p>", self.troubles_left_out);
        }
        text
    }
}

const LEGEND: &str = "<p class=\"legend\"><i class=\"won\"></i>brought the result <i class=\"load\"></i>loading \
    <i class=\"prompt\"></i>reading the prompt <i class=\"failed\"></i>failed <i class=\"dropped\"></i>called off \
    or late <i class=\"open\"></i>under way <i class=\"wait\"></i>waiting</p>\n";

fn table(caption: &str, heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let heads: String = heads.iter().map(|head| format!("<th>{head}</th>")).collect();
    let mut text = format!("<h2>{caption}</h2>\n<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n");
    for row in rows {
        let cells: String = row.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        let _ = writeln!(text, "<tr>{cells}</tr>");
    }
    text.push_str("</tbody>\n</table>\n");
    text
}

/// Makes a text of others harmless in HTML and SVG, inside elements and attributes, and in its direction of reading.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in escaped(text).to_string().chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}
