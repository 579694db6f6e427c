//! `tropa jobs show`: where a job stands, and what became of one chunk.

use std::collections::BTreeMap;

use serde::Serialize;
use tropa_proto::{id::ChunkIndex, uid::ShownId};

use super::{date, second, state_of};
use crate::{
    args::ShowArgs,
    exit::{Exit, Failed, OrExit as _, Outcome},
    job::Origin,
    journal::{self, Attempted, Journal, Names, Totals},
    settings::Settings,
    stdout::{print, print_json},
    submit::{OrCode as _, Spec},
    table::Table,
    terminal::escaped,
};

/// Attempts under way that are listed; more are only counted.
const LISTED: usize = 40;

/// What `--json` prints of a job.
#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    job: String,
    kind: &'static str,
    state: &'static str,
    created: String,
    output: Option<String>,
    models: Vec<String>,
    chunks: u32,
    /// How many of the chunks are items of the output.
    items: u32,
    done: u32,
    failed: u32,
    failed_by_class: BTreeMap<String, u32>,
    /// At an agent, or about to be.
    handed_out: u32,
    waiting: u32,
    prompt_tokens: u64,
    output_tokens: u64,
    truncated: u32,
    attempts: u64,
    attempts_by_class: BTreeMap<String, u64>,
    repeated_attempts: u32,
    machines: Vec<Share>,
    under_way: Vec<AttemptRow>,
    under_way_left_out: usize,
    next: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Share {
    /// The id of the machine, as `tropa machines` shows it.
    machine: String,
    name: String,
    items: u32,
    output_tokens: u64,
}

/// What `--json` prints of a chunk.
#[derive(Debug, Serialize)]
struct ChunkReport {
    schema: &'static str,
    job: String,
    chunk: u32,
    id: Option<String>,
    line: Option<u64>,
    model: String,
    endpoint: String,
    body_bytes: Option<u32>,
    state: &'static str,
    attempts: Vec<AttemptRow>,
}

#[derive(Clone, Debug, Serialize)]
struct AttemptRow {
    chunk: u32,
    no: u32,
    /// The id of the machine.
    machine: String,
    machine_name: String,
    agent: String,
    lane: String,
    recorded_ms: u64,
    started_ms: Option<u64>,
    ended_ms: Option<u64>,
    class: Option<String>,
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// `tropa jobs show`.
///
/// # Errors
/// With [`Exit::Usage`] for a job or a chunk that is not there, and the codes of a journal that cannot be read.
pub(super) fn show(args: &ShowArgs, settings: &Settings) -> Outcome {
    let id = journal::find(&settings.jobs(), &args.job).or_exit(Exit::Usage)?;
    let summary = journal::summary(&settings.jobs(), id);
    let journal = Journal::open_read_only(&summary.dir).or_code()?;
    let names = journal.names().or_code()?;
    match args.chunk {
        Some(chunk) => {
            let report = chunk_report(&journal, &names, chunk)?;
            if settings.json { print_json(&report)? } else { print(&chunk_text(&report))? }
        }
        None => {
            let report = report(&journal, &names, (summary.running, summary.cancelling)).or_code()?;
            if settings.json { print_json(&report)? } else { print(&text(&report))? }
        }
    }
    Ok(Exit::Done)
}

fn report(
    journal: &Journal,
    names: &Names,
    (running, cancelling): (bool, bool),
) -> Result<Report, journal::Error> {
    let job = journal.job();
    let totals = journal.totals()?;
    let spec: Option<Spec> = serde_json::from_slice(&job.spec).ok();
    let mut by_class: BTreeMap<String, u64> = BTreeMap::new();
    let (mut under_way, mut left_out) = (Vec::new(), 0);
    journal.each_attempt(None, |attempt| {
        let class = attempt.class.clone().unwrap_or_else(|| "under way".to_owned());
        *by_class.entry(class).or_default() += 1;
        if attempt.class.is_none() {
            if under_way.len() < LISTED {
                under_way.push(row(attempt, names, false));
            } else {
                left_out += 1;
            }
        }
    })?;
    let done = totals.done + totals.inner_done;
    let mut failed_by_class = totals.failed.clone();
    for (class, count) in &totals.inner_failed {
        *failed_by_class.entry(class.clone()).or_default() += count;
    }
    let failed = failed_by_class.values().sum();
    let handed_out = journal.handed_out()?;
    let state = state_of(job.state, running, cancelling);
    Ok(Report {
        schema: "tropa.jobs.show/1",
        job: job.id.to_string(),
        kind: job.kind.name(),
        state,
        created: date(job.created_ms),
        next: next(&job.id.short(), state, failed),
        output: spec.as_ref().and_then(|spec| spec.output.as_ref()).map(|path| path.display().to_string()),
        models: spec.map_or_else(Vec::new, |spec| spec.models.into_iter().map(|model| model.name).collect()),
        chunks: job.chunks,
        items: journal.item_count()?,
        done,
        failed,
        handed_out,
        waiting: job.chunks.saturating_sub(done + failed + handed_out),
        prompt_tokens: totals.prompt_tokens,
        output_tokens: totals.output_tokens,
        truncated: totals.truncated,
        attempts: by_class.values().sum(),
        attempts_by_class: by_class,
        repeated_attempts: totals.repeated,
        machines: shares(&totals, names),
        failed_by_class,
        under_way,
        under_way_left_out: left_out,
    })
}

fn shares(totals: &Totals, names: &Names) -> Vec<Share> {
    let share = |(machine, share): (&ShownId, &journal::Share)| Share {
        machine: machine.to_string(),
        name: names.machine_beside_id(*machine),
        items: share.items,
        output_tokens: share.output_tokens,
    };
    totals.machines.iter().map(share).collect()
}

/// The commands that make sense next.
fn next(id: &str, state: &str, failed: u32) -> Vec<String> {
    let mut next = Vec::new();
    match state {
        "running" => next.push(format!("tropa cancel {id}")),
        "open" => next.push(format!("tropa resume {id}")),
        "cancelled" => next.push(format!("tropa resume {id} --cancelled")),
        _ => {}
    }
    if failed > 0 && matches!(state, "done" | "open") {
        next.push(format!("tropa resume {id} --failed"));
    }
    if state == "done" {
        next.push(format!("tropa report {id}"));
    }
    next
}

fn row(attempt: Attempted, names: &Names, with_detail: bool) -> AttemptRow {
    AttemptRow {
        chunk: attempt.chunk.0,
        no: attempt.no,
        machine: attempt.machine.to_string(),
        machine_name: names.machine(attempt.machine),
        agent: names.agent(attempt.agent),
        lane: attempt.lane,
        recorded_ms: attempt.recorded_ms,
        started_ms: attempt.started_ms,
        ended_ms: attempt.ended_ms,
        class: attempt.class,
        reason: attempt.reason,
        detail: attempt.detail.filter(|detail| with_detail && !detail.is_empty()),
    }
}

fn chunk_report(journal: &Journal, names: &Names, index: u32) -> Result<ChunkReport, Failed> {
    let job = journal.job();
    if index >= job.chunks {
        let last = job.chunks.saturating_sub(1);
        let why = format!("--chunk {index}: job {} has chunks 0 to {last}", job.id.short());
        return Err(Failed::new(Exit::Usage, why));
    }
    let (at, chunk) = (ChunkIndex(index), journal.head(ChunkIndex(index)).or_code()?);
    let origin: Option<Origin> = serde_json::from_str(&chunk.origin).ok();
    let mut attempts = Vec::new();
    journal.each_attempt(Some(at), |attempt| attempts.push(row(attempt, names, true))).or_code()?;
    let finished = journal.load().or_code()?.finished;
    let state = match (finished.contains(at), finished.is_failed(at)) {
        (true, true) => "failed",
        (true, false) => "done",
        (false, _) if attempts.iter().any(|attempt| attempt.class.is_none()) => "handed out",
        (false, _) if chunk.request_bytes.is_none() => "waiting for the answers that it builds on",
        (false, _) => "waiting",
    };
    Ok(ChunkReport {
        schema: "tropa.jobs.chunk/1",
        job: job.id.to_string(),
        chunk: index,
        id: origin.as_ref().map(|origin| origin.id.clone()),
        line: origin.map(|origin| origin.line),
        model: chunk.model,
        endpoint: format!("/api/{}", chunk.endpoint),
        body_bytes: chunk.request_bytes,
        state,
        attempts,
    })
}

fn text(report: &Report) -> String {
    let mut lines = vec![format!(
        "job {}: {}, {}, submitted {} UTC, {}",
        &report.job[..6],
        report.kind,
        report.models.iter().map(|name| escaped(name).to_string()).collect::<Vec<_>>().join(" and "),
        report.created,
        report.state
    )];
    let what = if report.items == report.chunks { "items" } else { "chunks" };
    let mut items = format!("{} of {} {what} done", report.done, report.chunks);
    if report.failed > 0 {
        items.push_str(&format!(", {} failed ({})", report.failed, classes(&report.failed_by_class)));
    }
    for (count, what) in [(report.handed_out, "handed out"), (report.waiting, "waiting")] {
        if count > 0 {
            items.push_str(&format!(", {count} {what}"));
        }
    }
    lines.push(items);
    if report.attempts > 0 {
        lines.push(format!(
            "{} attempts ({}); {} prompt and {} output tokens",
            report.attempts,
            classes(&report.attempts_by_class),
            report.prompt_tokens,
            report.output_tokens
        ));
    }
    if report.truncated > 0 {
        lines.push(format!("{} answers were cut at --max-tokens", report.truncated));
    }
    if let Some(output) = &report.output {
        lines.push(format!("results go to {}", escaped(output)));
    }
    if !report.machines.is_empty() {
        let mut table = Table::new(["MACHINE", "ID", "ITEMS", "OUTPUT TOKENS"]);
        for share in &report.machines {
            table.row([
                &share.name,
                &share.machine,
                &share.items.to_string(),
                &share.output_tokens.to_string(),
            ]);
        }
        lines.extend([String::new(), table.to_string()]);
    }
    if !report.under_way.is_empty() {
        lines.extend([String::new(), attempts(&report.under_way)]);
        if report.under_way_left_out > 0 {
            lines.push(format!("and {} more", report.under_way_left_out));
        }
    }
    if !report.next.is_empty() {
        lines.extend([String::new(), format!("next: {}", report.next.join("    "))]);
    }
    lines.join("\n")
}

fn chunk_text(report: &ChunkReport) -> String {
    let bytes = report.body_bytes.map_or_else(String::new, |bytes| format!(", {bytes} bytes"));
    let mut lines = vec![format!(
        "chunk {} of job {}: {}, {} at {}{bytes}",
        report.chunk,
        &report.job[..6],
        report.state,
        escaped(&report.model),
        report.endpoint
    )];
    if let (Some(id), Some(line)) = (&report.id, report.line) {
        let line = if line == 0 { String::new() } else { format!(" of line {line}") };
        lines.push(format!("item {}{line}", escaped(id)));
    }
    if report.attempts.is_empty() {
        lines.push("no attempt yet".to_owned());
        return lines.join("\n");
    }
    lines.extend([String::new(), attempts(&report.attempts)]);
    for attempt in &report.attempts {
        if let Some(detail) = &attempt.detail {
            lines.push(format!("attempt {}: {}", attempt.no, escaped(detail)));
        }
    }
    lines.join("\n")
}

fn attempts(rows: &[AttemptRow]) -> String {
    let mut table =
        Table::new(["CHUNK", "ATTEMPT", "MACHINE", "AGENT", "LANE", "RECORDED", "WAITED", "RAN", "OUTCOME"]);
    for row in rows {
        let waited = row.started_ms.map(|at| at.saturating_sub(row.recorded_ms));
        let ran = row.ended_ms.zip(row.started_ms).map(|(end, start)| end.saturating_sub(start));
        let outcome = match (&row.class, &row.reason) {
            (None, _) => "under way".to_owned(),
            (Some(class), Some(reason)) if class != reason => format!("{class} ({reason})"),
            (Some(class), _) => class.clone(),
        };
        table.row([
            &row.chunk.to_string(),
            &row.no.to_string(),
            &row.machine_name,
            &row.agent,
            &row.lane,
            &second(row.recorded_ms),
            &milliseconds(waited),
            &milliseconds(ran),
            &outcome,
        ]);
    }
    table.to_string()
}

fn milliseconds(time: Option<u64>) -> String {
    time.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"))
}

fn classes<T: std::fmt::Display>(counts: &BTreeMap<String, T>) -> String {
    counts.iter().map(|(class, count)| format!("{count} {}", escaped(class))).collect::<Vec<_>>().join(", ")
}
