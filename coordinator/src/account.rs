//! `tropa report`: what a job came to, where its time went, and which device worked when.
//!
//! An `Account` is gathered from the journal in one pass over the attempts in the order in which they ran, in memory
//! that does not grow with the job: what is many is counted, and beyond `MAX_SPANS` the timeline shows how busy each
//! device was instead of every attempt. `account/text.rs` tells it in a terminal, `account/page.rs` as a page with
//! the drawing of `account/timeline.rs`. Prompts, answers and the words of engines are in none of them.

mod page;
#[cfg(test)]
mod tests;
mod text;
mod timeline;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Write as _,
    path::Path,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tropa_proto::uid::ShownId;

use crate::{
    args::ReportArgs,
    exit::{Exit, Failed, OrExit as _, Outcome},
    jobs::{date, state_of},
    journal::{self, Attempted, Error, Journal, Names, Totals},
    settings::Settings,
    stdout::{print, print_json},
    submit::{OrCode as _, Spec},
};

/// Attempts that are drawn one by one: a browser shows as many shapes at once without delay.
const MAX_SPANS: u64 = 4_000;

/// Pieces into which the time of a longer job is cut: about one for every second pixel of the drawing.
const PIECES: u64 = 500;

/// Attempts without a result that are listed; all are counted.
const MAX_TROUBLES: usize = 50;

/// What a job came to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Account {
    schema: &'static str,
    job: String,
    kind: &'static str,
    state: &'static str,
    created: String,
    models: Vec<String>,
    items: u32,
    done: u32,
    failed: u32,
    failed_by_class: BTreeMap<String, u32>,
    /// Chunks that are no items and only feed some.
    inner_done: u32,
    inner_failed_by_class: BTreeMap<String, u32>,
    prompt_tokens: u64,
    output_tokens: u64,
    truncated: u32,
    attempts: u64,
    attempts_by_class: BTreeMap<String, u64>,
    repeated_attempts: u32,
    /// When the first attempt was recorded and the last one ended, in milliseconds since 1970.
    first_ms: u64,
    last_ms: u64,
    /// Time in which at least one engine worked.
    at_work_ms: u64,
    /// Tokens of all answers a second of that time; `null` where nothing worked.
    tokens_per_s: Option<f64>,
    machines: Vec<MachineRow>,
    devices: Vec<DeviceRow>,
    /// Attempts that brought no result, the first of them.
    troubles: Vec<Trouble>,
    troubles_left_out: u64,
}

/// What one machine did.
#[derive(Clone, Debug, Default, Serialize)]
struct MachineRow {
    /// Its id, as `tropa machines` shows it.
    id: String,
    name: String,
    /// Results, those of inner chunks too.
    items: u32,
    output_tokens: u64,
    attempts: u64,
    /// Time in which its engines worked, each for itself.
    engine_ms: u64,
    /// Of that: loading models, reading prompts, writing answers, as Ollama told it.
    load_ms: u64,
    prompt_ms: u64,
    decode_ms: u64,
    /// Time for which attempts waited at the agent for the device.
    wait_ms: u64,
    /// Tokens a second while answers were written.
    decode_tokens_per_s: Option<f64>,
}

/// What one device did.
#[derive(Clone, Debug, Serialize)]
struct DeviceRow {
    /// The id of its machine.
    machine: String,
    machine_name: String,
    device: String,
    attempts: u64,
    /// Time in which an engine worked on it.
    busy_ms: u64,
    #[serde(skip)]
    spans: Vec<Span>,
    /// Milliseconds of work in each piece of the job's time, where there are too many spans.
    #[serde(skip)]
    pieces: Vec<u64>,
    #[serde(skip)]
    busy_until: u64,
}

/// One attempt on one device. Times in milliseconds from the start of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    chunk: u32,
    no: u32,
    agent: String,
    recorded: u64,
    start: u64,
    end: u64,
    load: u64,
    prompt: u64,
    outcome: How,
    class: String,
    tokens: u32,
}

/// How an attempt ended, as far as the drawing tells it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Won,
    Failed,
    /// Another attempt won, or it was called off.
    Dropped,
    /// Nobody knows yet.
    Open,
}

/// An attempt without a result.
#[derive(Clone, Debug, Serialize)]
struct Trouble {
    chunk: u32,
    no: u32,
    /// The id of the machine.
    machine: String,
    machine_name: String,
    class: String,
    reason: Option<String>,
    /// From its beginning at the engine to its end; `null` where it did not get there.
    ran_ms: Option<u64>,
}

/// What the journal keeps of the times of a result.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Times {
    wait_ms: u64,
    wall_us: u64,
    load_us: u64,
    prompt_us: u64,
    decode_us: u64,
}

/// `tropa report`.
///
/// # Errors
/// With [`Exit::Usage`] for a job that is not there, [`Exit::Io`] for a file that cannot be written, and the codes of
/// a journal that cannot be read.
pub fn report(args: &ReportArgs, settings: &Settings) -> Outcome {
    let id = journal::find(&settings.jobs(), &args.job).or_exit(Exit::Usage)?;
    let summary = journal::summary(&settings.jobs(), id);
    let journal = Journal::open_read_only(&summary.dir).or_code()?;
    let state = state_of(journal.job().state, summary.running, summary.cancelling);
    let account = Account::of(&journal, state).or_code()?;
    match (&args.output, args.html, settings.json) {
        (Some(file), ..) => write(file, &account.page())?,
        (None, true, _) => print(&account.page())?,
        (None, false, true) => print_json(&account)?,
        (None, false, false) => print(&account.text())?,
    }
    Ok(Exit::Done)
}

/// Writes a file that appears as a whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), Failed> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = Path::new(&name);
    let written = File::create(beside)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(beside, path));
    if written.is_err() {
        // Best effort: the reason that is told is the first one.
        let _ = std::fs::remove_file(beside);
    }
    written.with_context(|| format!("writing {}", path.display())).or_exit(Exit::Io)
}

impl Account {
    /// Gathers the account of a job that may be at work.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub(crate) fn of(journal: &Journal, state: &'static str) -> Result<Self, Error> {
        let (job, totals, names) = (journal.job(), journal.item_totals()?, journal.names()?);
        let (first_ms, last_ms, attempts) = journal.extent()?;
        let spec: Option<Spec> = serde_json::from_slice(&job.spec).ok();
        let mut gathering = Gathering {
            names: &names,
            first: first_ms,
            last: last_ms,
            width: (last_ms.saturating_sub(first_ms)).div_ceil(PIECES).max(1),
            each: attempts <= MAX_SPANS,
            machines: machines(&totals, &names),
            devices: BTreeMap::new(),
            by_class: BTreeMap::new(),
            at_work: (0, first_ms),
            troubles: Vec::new(),
            trouble_count: 0,
        };
        journal.each_attempt_in_time(|attempt| gathering.take(&attempt))?;
        let at_work_ms = gathering.at_work.0;
        for row in gathering.machines.values_mut() {
            row.decode_tokens_per_s = rate(row.output_tokens, row.decode_ms);
        }
        Ok(Self {
            schema: "tropa.report/1",
            job: job.id.to_string(),
            kind: job.kind.name(),
            state,
            created: date(job.created_ms),
            models: spec.map_or_else(Vec::new, |spec| spec.models.into_iter().map(|m| m.name).collect()),
            items: journal.item_count()?,
            inner_done: totals.inner_done,
            inner_failed_by_class: totals.inner_failed,
            done: totals.done,
            failed: totals.failed.values().sum(),
            failed_by_class: totals.failed,
            prompt_tokens: totals.prompt_tokens,
            output_tokens: totals.output_tokens,
            truncated: totals.truncated,
            attempts,
            attempts_by_class: gathering.by_class,
            repeated_attempts: totals.repeated,
            first_ms,
            last_ms,
            at_work_ms,
            tokens_per_s: rate(totals.output_tokens, at_work_ms),
            machines: gathering.machines.into_values().collect(),
            devices: gathering.devices.into_values().collect(),
            troubles_left_out: gathering.trouble_count - gathering.troubles.len() as u64,
            troubles: gathering.troubles,
        })
    }
}

impl Account {
    /// A machine's share of all results in percent.
    fn share(&self, row: &MachineRow) -> u64 {
        percent(row.items.into(), (self.done + self.inner_done).into())
    }
}

/// The one pass over the attempts.
struct Gathering<'a> {
    names: &'a Names,
    first: u64,
    last: u64,
    /// Milliseconds of a piece.
    width: u64,
    each: bool,
    machines: BTreeMap<ShownId, MachineRow>,
    devices: BTreeMap<(ShownId, String), DeviceRow>,
    by_class: BTreeMap<String, u64>,
    /// Time at work so far, and until when it is counted.
    at_work: (u64, u64),
    troubles: Vec<Trouble>,
    trouble_count: u64,
}

impl Gathering<'_> {
    fn take(&mut self, attempt: &Attempted) {
        let class = attempt.class.clone().unwrap_or_else(|| "under way".to_owned());
        *self.by_class.entry(class.clone()).or_default() += 1;
        let times = attempt.won.as_ref().map(|won| serde_json::from_str(&won.metrics).unwrap_or_default());
        let ran = ran(attempt, times.as_ref(), self.last);
        self.count(attempt, times.as_ref(), ran);
        let how = how(attempt);
        if how == How::Failed {
            self.trouble_count += 1;
            if self.troubles.len() < MAX_TROUBLES {
                self.troubles.push(Trouble {
                    chunk: attempt.chunk.0,
                    no: attempt.no,
                    machine: attempt.machine.to_string(),
                    machine_name: self.names.machine(attempt.machine),
                    class: class.clone(),
                    reason: attempt.reason.clone(),
                    ran_ms: ran.map(|(start, end)| end - start),
                });
            }
        }
        let Some((start, end)) = ran else { return };
        let from = start.max(self.at_work.1);
        self.at_work = (self.at_work.0 + end.saturating_sub(from), self.at_work.1.max(end));
        let times = times.unwrap_or_default();
        let span = Span {
            chunk: attempt.chunk.0,
            no: attempt.no,
            agent: self.names.agent(attempt.agent),
            recorded: attempt.recorded_ms.saturating_sub(self.first),
            start: start.saturating_sub(self.first),
            end: end.saturating_sub(self.first),
            load: times.load_us / 1000,
            prompt: times.prompt_us / 1000,
            outcome: how,
            class,
            tokens: attempt.won.as_ref().map_or(0, |won| won.output_tokens),
        };
        let devices: BTreeSet<&str> = attempt.lane.split(',').collect();
        for device in devices {
            let name = if device.is_empty() { "not known" } else { device };
            let key = (attempt.machine, name.to_owned());
            let row = self.devices.entry(key).or_insert_with(|| DeviceRow {
                machine: attempt.machine.to_string(),
                machine_name: self.names.machine(attempt.machine),
                device: name.to_owned(),
                attempts: 0,
                busy_ms: 0,
                spans: Vec::new(),
                pieces: if self.each { Vec::new() } else { vec![0; PIECES as usize] },
                busy_until: 0,
            });
            row.take(&span, self.each, self.width);
        }
    }

    fn count(&mut self, attempt: &Attempted, times: Option<&Times>, ran: Option<(u64, u64)>) {
        let row = self.machines.entry(attempt.machine).or_insert_with(|| MachineRow {
            id: attempt.machine.to_string(),
            name: self.names.machine_beside_id(attempt.machine),
            ..MachineRow::default()
        });
        row.attempts += 1;
        row.engine_ms += ran.map_or(0, |(start, end)| end - start);
        if let Some(times) = times {
            row.load_ms += times.load_us / 1000;
            row.prompt_ms += times.prompt_us / 1000;
            row.decode_ms += times.decode_us / 1000;
            row.wait_ms += times.wait_ms;
        }
    }
}

impl DeviceRow {
    fn take(&mut self, span: &Span, each: bool, width: u64) {
        self.attempts += 1;
        self.busy_ms += span.end.saturating_sub(span.start.max(self.busy_until));
        self.busy_until = self.busy_until.max(span.end);
        if each {
            self.spans.push(span.clone());
            return;
        }
        for at in span.start / width..=span.end / width {
            // The very end of the job lies on the border of a piece that would be the next.
            let at = at.min(PIECES - 1);
            let (from, to) = (at * width, (at + 1) * width);
            if let Some(piece) = usize::try_from(at).ok().and_then(|at| self.pieces.get_mut(at)) {
                *piece += span.end.min(to).saturating_sub(span.start.max(from));
            }
        }
    }
}

/// From when to when the engine worked on an attempt, in milliseconds since 1970; `None` where it never got there.
/// What has not ended is shown up to `last`.
fn ran(attempt: &Attempted, times: Option<&Times>, last: u64) -> Option<(u64, u64)> {
    let end = attempt.ended_ms;
    let told = times.map(|times| times.wall_us / 1000).filter(|wall| *wall > 0);
    // Where the agent's word of the beginning was lost with a coordinator, its own figure of the time is left.
    let start = attempt.started_ms.or_else(|| Some(end?.saturating_sub(told?)))?;
    Some((start, end.unwrap_or(last).max(start)))
}

fn how(attempt: &Attempted) -> How {
    match (attempt.class.as_deref(), &attempt.won) {
        (None, _) => How::Open,
        (_, Some(_)) | (Some("done"), _) => How::Won,
        (Some("superseded" | "cancelled" | "busy"), None) => How::Dropped,
        (Some(_), None) => How::Failed,
    }
}

fn machines(totals: &Totals, names: &Names) -> BTreeMap<ShownId, MachineRow> {
    let rows = totals.machines.iter().map(|(machine, share)| {
        let row = MachineRow {
            id: machine.to_string(),
            name: names.machine_beside_id(*machine),
            items: share.items,
            output_tokens: share.output_tokens,
            ..MachineRow::default()
        };
        (*machine, row)
    });
    rows.collect()
}

/// Tokens a second with one digit behind the point; `None` where no time has passed.
fn rate(tokens: u64, ms: u64) -> Option<f64> {
    (ms > 0).then(|| (tokens as f64 * 10_000.0 / ms as f64).round() / 10.0)
}

/// Shows milliseconds as `310 ms`, `4.2 s`, `2m 10s` or `3h 5m`.
fn span_of(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{:.1} s", ms as f64 / 1000.0),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A part of a whole in whole percent, rounded down, so that 99.9 % is never shown as all.
fn percent(part: u64, whole: u64) -> u64 {
    part * 100 / whole.max(1)
}
