//! Journals for tests that write into them without a mesh.

use std::path::Path;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::Receiver;
use tropa_coordinator::journal::{
    Committed, Done, Draft, Effect, Error, Journal, Kind, NewChunk, Step, Token, Writer,
};
use tropa_proto::{
    bounded::Text,
    id::{AgentId, ChunkIndex, Incarnation, JobId, MachineId},
    message::{Endpoint, Outcome},
};

/// Makes a journal with so many chunks.
pub(crate) fn journal(dir: &Path, chunks: u32) -> (Journal, JobId) {
    let id = JobId([0xb1; 16]);
    let mut draft = Draft::create(dir, id).unwrap();
    draft
        .insert((0..chunks).map(|n| {
            let body = format!(r#"{{"model":"m:1b","n":{n}}}"#).into_bytes();
            Ok::<_, Error>(NewChunk {
                endpoint: Endpoint::Chat,
                model: "m:1b".to_owned(),
                body,
                origin: "{}".to_owned(),
                needs: std::collections::BTreeSet::new(),
                shown: true,
            })
        }))
        .unwrap();
    (draft.finish(Kind::Run, b"{}".to_vec(), 0).unwrap(), id)
}

/// The row of an attempt.
pub(crate) fn attempt(chunk: u32, no: u32) -> Step {
    let agent = AgentId([1; 32]);
    Step::Attempt {
        chunk: ChunkIndex(chunk),
        no,
        agent,
        incarnation: Incarnation(1),
        machine: MachineId(agent),
        lane: "dram".to_owned(),
        now_ms: 0,
    }
}

/// What the result of a chunk says, by its attempt.
pub(crate) fn body(chunk: u32, no: u32) -> Vec<u8> {
    format!(r#"{{"message":{{"content":"chunk {chunk} by {no}"}},"done":true}}"#).into_bytes()
}

/// A result.
pub(crate) fn result(chunk: u32, no: u32) -> Step {
    let body = body(chunk, no);
    let outcome = Outcome {
        bytes: u32::try_from(body.len()).unwrap(),
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
    let done = Box::new(Done { fingerprint: [0; 32], outcome, body });
    Step::Result { chunk: ChunkIndex(chunk), no, done, now_ms: 0 }
}

/// Submits steps and waits until all are durable; what became of each, in order.
pub(crate) fn drive(
    writer: &Writer,
    reports: &mut Receiver<Committed>,
    steps: impl IntoIterator<Item = Step>,
) -> Vec<Effect> {
    let mut waiting = 0;
    for step in steps {
        writer.submit(Token(0), step).unwrap();
        waiting += 1;
    }
    let mut effects = Vec::new();
    while effects.len() < waiting {
        match reports.blocking_recv().unwrap() {
            Committed::Steps(steps) => effects.extend(steps.into_iter().map(|(_, effect)| effect)),
            other @ (Committed::DiskFull | Committed::Resumed | Committed::Fatal(_)) => panic!("{other:?}"),
        }
    }
    effects
}
