//! One exchange with the engine: send, read lines, three timers, one ear for the cancel.
//!
//! The clock starts with the first try to connect. The first line may take minutes, since it comes after loading
//! and reading the prompt; where earlier attempts of ours are at the same install its limit counts from the end
//! of the last of them. After it, silence is measured in complete lines, so a dripping connection is idle.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tropa_proto::{
    failure::Reason,
    message::{Endpoint, Failure, Outcome},
    proof::{Bug, planted},
};

use super::{
    classify,
    client::{Answer, Call, Client, Fault, Kind, MAX_ERROR},
    lines::Lines,
    request::Request,
    stream::{Broken, Ended, Fold, Rules, Step},
};
use crate::clock::now;

/// The first and the longest pause between two tries to connect (`reliability.md` §4).
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How long an error body may take; it is written at once by an install that lives.
const ERROR_BODY: Duration = Duration::from_secs(5);

/// A stream that ended in success. Its digest is not read yet; `Ollama::verify` does that.
#[derive(Clone)]
pub struct Completed {
    /// The result: what `stream:false` would have returned, as bytes of one JSON object.
    pub result: Bytes,
    /// What it brought; the digest is all zero until it is verified.
    pub outcome: Outcome,
    /// When the last line came.
    pub ended: Instant,
}

/// Without the content.
impl fmt::Debug for Completed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completed")
            .field("outcome", &self.outcome)
            .field("bytes", &self.result.len())
            .finish_non_exhaustive()
    }
}

/// A piece of progress: one line with text or thinking.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Lines with text or thinking so far.
    pub count: u32,
    /// The text of this line; empty while the model thinks.
    pub text: &'a str,
}

/// Who is at the engine: attempts get rising numbers, and everybody can wait until no lower one is left.
#[derive(Debug)]
pub(super) struct Ahead {
    running: Mutex<(u64, BTreeSet<u64>)>,
    lowest: watch::Sender<u64>,
}

/// One attempt's place; leaving the scope leaves the place.
struct Turn<'a> {
    ahead: &'a Ahead,
    number: u64,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { running: Mutex::default(), lowest: watch::Sender::new(0) }
    }
}

impl Ahead {
    fn enter(&self) -> Turn<'_> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.0 += 1;
        let number = running.0;
        running.1.insert(number);
        self.lowest.send_replace(running.1.first().copied().unwrap_or(number));
        Turn { ahead: self, number }
    }
}

impl Turn<'_> {
    /// Waits until no attempt that entered earlier is left.
    async fn first(&self) {
        let mut lowest = self.ahead.lowest.subscribe();
        // The sender lives as long as `self`, so the error cannot happen; the limit then simply runs at once.
        let _ = lowest.wait_for(|lowest| *lowest >= self.number).await;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut running = self.ahead.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.1.remove(&self.number);
        let next = running.0 + 1;
        self.ahead.lowest.send_replace(running.1.first().copied().unwrap_or(next));
    }
}

/// An attempt that ended without success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Why.
    pub failure: Failure,
    /// We hung up before the engine's own end, so the request may still run there: settle before the next one.
    pub may_run: bool,
}

/// Executes a request once.
pub(super) async fn run(
    client: &Client,
    ahead: &Ahead,
    rules: Rules,
    request: &Request,
    on_progress: &mut (dyn FnMut(Progress<'_>) + Send),
    cancel: &CancellationToken,
) -> Result<Completed, Unfinished> {
    let started = now();
    let turn = ahead.enter();
    let outcome = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Broken::new(Reason::Cancelled, "hung up on a cancel", "")),
        outcome = exchange(client, &turn, rules, request, started, on_progress) => outcome,
        () = sleep(request.limits.deadline) => {
            Err(Broken::new(Reason::Deadline, "the attempt took longer than its limit", ""))
        }
    };
    outcome.map_err(|broken| {
        let may_run = broken.reason.hangs_up();
        Unfinished { failure: failure(broken, started), may_run }
    })
}

/// Makes a failure out of what broke.
pub(super) fn failure(broken: Broken, started: Instant) -> Failure {
    let ms = u32::try_from(now().duration_since(started).as_millis()).unwrap_or(u32::MAX);
    Failure { reason: broken.reason, detail: classify::detail(broken.ours, &broken.engine).into(), ms }
}

async fn exchange(
    client: &Client,
    turn: &Turn<'_>,
    rules: Rules,
    request: &Request,
    started: Instant,
    on_progress: &mut (dyn FnMut(Progress<'_>) + Send),
) -> Result<Completed, Broken> {
    let limits = request.limits;
    let first_line = async {
        turn.first().await;
        sleep(limits.first_line).await;
    };
    tokio::pin!(first_line);
    let opened = tokio::select! {
        opened = connect(client, request, started) => opened?,
        () = &mut first_line => return Err(stalled("no first line in time")),
    };
    let mut answer = match opened {
        (answer, 200, Kind::Json | Kind::Absent) => answer,
        (answer, status, kind) => return Err(refusal(request.endpoint, answer, status, kind).await),
    };
    let mut fold = Fold::new(request, rules);
    let mut lines = Lines::default();
    let (mut count, mut first_us, mut last_line) = (0_u32, 0, None);
    loop {
        let chunk = match last_line {
            None => tokio::select! {
                chunk = answer.chunk() => chunk,
                () = &mut first_line => return Err(stalled("no first line in time")),
            },
            Some(at) => tokio::select! {
                chunk = answer.chunk() => chunk,
                () = sleep_until(at + limits.idle), if !planted(Bug::NoIdleTimeout) => return Err(stalled("no further line in time")),
            },
        };
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(fault) => return Err(lost(client, fault).await),
        };
        let end = chunk.is_none();
        if let Some(chunk) = chunk {
            lines.push(&chunk);
        }
        loop {
            let line = if end { lines.finish() } else { lines.next_line() };
            let line = line.map_err(|_| match request.endpoint {
                Endpoint::Embed => Broken::new(Reason::ResultTooLarge, "the vectors are above 8 MiB", ""),
                Endpoint::Chat | Endpoint::Generate => {
                    Broken::new(Reason::Garbled, "a line of the answer is above 8 MiB", "")
                }
            })?;
            let Some(line) = line else { break };
            let before = fold.content().len();
            let at = now();
            last_line = Some(at);
            match fold.line(&line).map_err(uncancelled)? {
                Step::More { text: false } => {}
                Step::More { text: true } => {
                    count = count.saturating_add(1);
                    if count == 1 {
                        first_us = micros(started, at);
                    }
                    on_progress(Progress { count, text: &fold.content()[before..] });
                }
                Step::Done(ended) => {
                    let Ended { result, mut outcome } = *ended;
                    outcome.wall_us = micros(started, at);
                    if request.endpoint != Endpoint::Embed {
                        outcome.first_us = if first_us == 0 { outcome.wall_us } else { first_us };
                    }
                    return Ok(Completed { result, outcome, ended: at });
                }
            }
        }
        if end
            && planted(Bug::MissingDoneIsSuccess)
            && let Step::Done(ended) = fold.finish("{}")?
        {
            let Ended { result, outcome } = *ended;
            return Ok(Completed { result, outcome, ended: now() });
        }
        if end {
            return Err(Broken::new(Reason::Incomplete, "the answer ended without done", ""));
        }
    }
}

/// Sends the request; a connection that is refused is tried again, since nothing was started.
async fn connect(
    client: &Client,
    request: &Request,
    started: Instant,
) -> Result<(Answer, u16, Kind), Broken> {
    let call = match request.endpoint {
        Endpoint::Chat => Call::Chat,
        Endpoint::Generate => Call::Generate,
        Endpoint::Embed => Call::Embed,
    };
    let mut pause = RETRY.0;
    loop {
        match client.open(call, Some(request.body.clone())).await {
            Ok(answer) => {
                let (status, kind) = (answer.status(), answer.kind());
                return Ok((answer, status, kind));
            }
            Err(Fault::Refused(_)) if now() + pause < started + request.limits.reconnect => {
                sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
            }
            Err(fault) => return Err(lost(client, fault).await),
        }
    }
}

/// Names an answer that is no stream.
async fn refusal(endpoint: Endpoint, answer: Answer, status: u16, kind: Kind) -> Broken {
    // A body that breaks off says no less than an empty one: the code is there.
    let body = match tokio::time::timeout(ERROR_BODY, answer.read(MAX_ERROR)).await {
        Ok(Ok((body, _))) => body,
        Ok(Err(_)) | Err(_) => Bytes::new(),
    };
    let (reason, text) = classify::by_answer(endpoint, status, kind, &body);
    let ours = if reason == Reason::NotOllama {
        "what answers is not Ollama"
    } else {
        "the engine refused the request"
    };
    uncancelled(Broken::new(reason, ours, format!("{status} {text}").trim_end()))
}

/// Names a connection that broke. A cut answer is the runner's fault while the server still takes connections.
async fn lost(client: &Client, fault: Fault) -> Broken {
    let reason = match fault {
        Fault::NotHttp(_) => Reason::NotOllama,
        Fault::Cut(_) if !client.refuses().await => Reason::RunnerCrash,
        Fault::Cut(_) | Fault::Refused(_) | Fault::Lost(_) | Fault::TimedOut | Fault::TooLarge => {
            Reason::EngineDown
        }
    };
    Broken::new(reason, "the exchange with the engine broke", fault.to_string())
}

/// A cancel of ours ends the exchange before its words arrive, so these words are the engine's own.
fn uncancelled(broken: Broken) -> Broken {
    if broken.reason == Reason::Cancelled { Broken { reason: Reason::EngineError, ..broken } } else { broken }
}

fn stalled(ours: &'static str) -> Broken {
    Broken::new(Reason::Stalled, ours, "")
}

fn micros(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.duration_since(from).as_micros()).unwrap_or(u64::MAX)
}
