//! Durable commits a second of the journal: one at a time, and grouped as a busy coordinator makes them; and how
//! long an input takes to come in.
//!
//! One commit at a time is the sync rate of the disk. Grouped ones must reach 5,000 a second (`reliability.md` §7.1).
//! The journal lies in the directory given as argument, else under the present one: a `tmpfs` would measure nothing.
//! `cargo bench -p tropa-tests --bench journal [-- DIR]`.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::Receiver;
use tropa_coordinator::journal::{
    Committed, Done, Draft, Error, Journal, Kind, NewChunk, Step, Token, Writer,
};
use tropa_proto::{
    bounded::Text,
    id::{AgentId, ChunkIndex, Incarnation, JobId, MachineId},
    message::{Endpoint, Outcome},
};

/// Chunks of the measured job: enough for several hundred transactions.
const CHUNKS: u32 = 10_000;

/// Commits that are waited for one by one: some seconds on a slow disk.
const SINGLE: u32 = 300;

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo passes flags of its own harness.
    let dir = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    let temp = tempfile::tempdir_in(dir)?;

    let start = now();
    let mut draft = Draft::create(&temp.path().join("job"), JobId([1; 16]))?;
    draft.insert((0..CHUNKS).map(chunk))?;
    let journal = draft.finish(Kind::Run, b"{}".to_vec(), 0)?;
    println!("input          {CHUNKS} chunks of 1 KiB in {:.3} s", start.elapsed().as_secs_f64());

    let (writer, mut reports) = journal.writer()?;
    let start = now();
    for index in 0..SINGLE {
        drive(&writer, &mut reports, [attempt(index)])?;
    }
    say("single", SINGLE, start.elapsed());

    let start = now();
    drive(&writer, &mut reports, (SINGLE..CHUNKS).map(attempt))?;
    say("grouped, start", CHUNKS - SINGLE, start.elapsed());

    let start = now();
    drive(&writer, &mut reports, (0..CHUNKS).map(result))?;
    say("grouped, end", CHUNKS, start.elapsed());
    writer.finish();

    let start = now();
    let dir = journal.dir().to_owned();
    drop(journal);
    let done = Journal::open(&dir)?.load()?.finished.done();
    println!("opening        {:.3} s with its check, {done} results", start.elapsed().as_secs_f64());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn say(what: &str, commits: u32, time: Duration) {
    println!("{what:<14} {:.0} commits/s", f64::from(commits) / time.as_secs_f64());
}

#[expect(clippy::disallowed_methods, reason = "a benchmark owns its clock")]
fn now() -> Instant {
    Instant::now()
}

/// Submits steps as fast as the queue takes them and waits until all are durable.
fn drive(
    writer: &Writer,
    reports: &mut Receiver<Committed>,
    steps: impl IntoIterator<Item = Step>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut waiting = 0;
    let mut take = |waiting: &mut usize| match reports.blocking_recv() {
        Some(Committed::Steps(steps)) => {
            *waiting -= steps.len();
            Ok(())
        }
        other => Err(format!("the writer ended: {other:?}")),
    };
    for step in steps {
        let mut step = Some(step);
        while let Some(refused) = step.take() {
            if let Err(full) = writer.submit(Token(0), refused) {
                step = Some(*full);
                take(&mut waiting)?;
            }
        }
        waiting += 1;
    }
    while waiting > 0 {
        take(&mut waiting)?;
    }
    Ok(())
}

fn chunk(index: u32) -> Result<NewChunk, Error> {
    let body = format!(r#"{{"model":"m:1b","n":{index},"text":"{}"}}"#, "x".repeat(1000)).into_bytes();
    Ok(NewChunk {
        endpoint: Endpoint::Chat,
        model: "m:1b".to_owned(),
        body,
        needs: std::collections::BTreeSet::new(),
        shown: true,
        origin: "{}".to_owned(),
    })
}

fn attempt(index: u32) -> Step {
    let agent = AgentId([1; 32]);
    Step::Attempt {
        chunk: ChunkIndex(index),
        no: 1,
        agent,
        incarnation: Incarnation(1),
        machine: MachineId(agent),
        lane: "dram".to_owned(),
        now_ms: 0,
    }
}

fn result(index: u32) -> Step {
    let body = vec![b'x'; 2048];
    let outcome = Outcome {
        bytes: 2048,
        sha256: Sha256::digest(&body).into(),
        digest: [0; 32],
        done_reason: Text::cut("stop"),
        prompt_tokens: 1,
        output_tokens: 1,
        reasoning_only: false,
        wait_ms: 0,
        wall_us: 1,
        first_us: 1,
        load_us: 1,
        prompt_us: 1,
        decode_us: 1,
        total_us: 1,
    };
    Step::Result {
        chunk: ChunkIndex(index),
        no: 1,
        done: Box::new(Done { fingerprint: [0; 32], outcome, body }),
        now_ms: 0,
    }
}
