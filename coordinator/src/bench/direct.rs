//! Plain clients past the agents: what any tool would get from the same installs with the same bodies.
//!
//! Every client sends one request, waits for its end and takes the next prompt from a queue that all share, so that
//! a fast install gets more of them; tools that deal the prompts out beforehand do worse. Nothing here asks for a
//! lock, and two clients of installs that share hardware slow each other as they would for such a tool. The client
//! is that of the agent, so that nothing but tropa itself is between the two figures.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tropa_agent::ollama::{Ollama, Request};

use super::report::Attempt;
use crate::{
    clock::Clock,
    exit::{Exit, Failed, OrExit as _},
};

/// One client: the install that it sends to, by its place among the installs and its way there.
pub(super) type Client = (usize, Arc<Ollama>);

/// Sends the requests with these clients and gives every attempt with its times, by chunk. After the limit no client
/// takes another prompt; what runs ends.
///
/// # Errors
/// Never for what an install answers: that is in the attempt.
pub(super) async fn send(
    clients: &[Client],
    requests: &Arc<[Request]>,
    limit: Duration,
    clock: Clock,
) -> Result<Vec<Attempt>, Failed> {
    let next = Arc::new(AtomicUsize::new(0));
    let begin = clock.now();
    let mut tasks = JoinSet::new();
    for (install, engine) in clients {
        let (next, requests, engine, install) =
            (Arc::clone(&next), Arc::clone(requests), Arc::clone(engine), *install);
        tasks.spawn(async move {
            let mut attempts = Vec::new();
            while clock.now().saturating_sub(begin) < limit {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                let Some(request) = requests.get(chunk) else { break };
                attempts.push(ask(&engine, request, (chunk, install), begin, clock).await);
            }
            attempts
        });
    }
    let mut all = Vec::new();
    while let Some(attempts) = tasks.join_next().await {
        all.extend(attempts.context("a client of the measurement broke").or_exit(Exit::Io)?);
    }
    all.sort_by_key(|attempt| attempt.chunk);
    Ok(all)
}

/// Sends one request once.
async fn ask(
    engine: &Ollama,
    request: &Request,
    (chunk, install): (usize, usize),
    begin: Duration,
    clock: Clock,
) -> Attempt {
    let start = clock.now().saturating_sub(begin);
    let ended = engine.run(request, &mut |_| {}, &CancellationToken::new()).await;
    let end = clock.now().saturating_sub(begin);
    let mut attempt = Attempt {
        chunk,
        install: Some(install),
        start_ms: ms(start),
        end_ms: ms(end),
        busy_ms: ms(end.saturating_sub(start)),
        prompt_tokens: 0,
        output_tokens: 0,
        outcome: "done".to_owned(),
    };
    match ended {
        Ok(completed) => {
            attempt.prompt_tokens = completed.outcome.prompt_tokens;
            attempt.output_tokens = completed.outcome.output_tokens;
        }
        Err(unfinished) => attempt.outcome = unfinished.failure.reason.name().to_owned(),
    }
    attempt
}

/// Milliseconds with their fraction.
pub(super) fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
