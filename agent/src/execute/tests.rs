//! The executor over a played engine and real locks.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{sync::Semaphore, time::timeout};
use tropa_proto::{
    bounded::Blob,
    failure::Reason,
    id::{AgentId, Incarnation},
    message::{Endpoint, Outcome, Place, Refusal, Run},
};

use super::*;
use crate::device_lock::{DeviceLocks, DeviceName};
use crate::occupation::Occupation;
use crate::ollama::{
    raw_server::{Play, Server, end, json as whole, line, ndjson},
    sample::{chat, run},
};

const PEER: AgentId = AgentId([1; 32]);
const SOON: Duration = Duration::from_secs(20);

/// An install whose chats wait for a permit each, and which counts how many are there at once.
struct Install {
    server: Server,
    gate: Arc<Semaphore>,
    /// How often it was asked to close the model.
    closed: Arc<AtomicUsize>,
}

impl Install {
    async fn start() -> Self {
        let gate = Arc::new(Semaphore::new(0));
        let closed = Arc::new(AtomicUsize::new(0));
        let (inner_gate, inner_closed) = (Arc::clone(&gate), Arc::clone(&closed));
        let server = Server::start(move |path, body| {
            let row =
                json!({"name": "tiny:latest", "digest": "a".repeat(64), "size": 1, "context_length": 256});
            let loaded = inner_closed.load(Ordering::SeqCst) == 0;
            match path {
                "/api/tags" => whole(200, &json!({ "models": [row] })),
                "/api/ps" => whole(200, &json!({ "models": if loaded { vec![row] } else { Vec::new() } })),
                "/api/show" => {
                    whole(200, &json!({"modelfile": format!("FROM /m/sha256-{}", "b".repeat(64))}))
                }
                "/api/generate" => {
                    inner_closed.fetch_add(1, Ordering::SeqCst);
                    whole(200, &json!({"done": true, "done_reason": "unload"}))
                }
                _ => {
                    let body: Value = serde_json::from_slice(body).unwrap();
                    let text = body["messages"][0]["content"].clone();
                    let said = json!({"message": {"content": text}, "done": false});
                    let done = json!({"message": {"content": ""}, "done": true, "done_reason": "stop"});
                    vec![ndjson(), line(&said), Play::Gate(Arc::clone(&inner_gate)), line(&done), end()]
                }
            }
        })
        .await;
        Self { server, gate, closed }
    }

    fn chats(&self) -> usize {
        self.server.paths().iter().filter(|path| *path == "/api/chat").count()
    }

    /// An executor beside this install; the returned orders end it when they are dropped.
    async fn executor(&self, width: u16, locks: Option<Arc<DeviceLocks>>) -> (Orders, [u8; 32]) {
        let ollama = Arc::new(Ollama::new(self.server.url()).unwrap());
        let fingerprint = ollama.pin("tiny:latest").await.unwrap();
        let devices = Occupation::always(BTreeSet::from([DeviceName::Dram]));
        let settings = Settings { incarnation: Incarnation(7), width, locks, devices };
        let (executor, orders) = Executor::new(settings, ollama);
        tokio::spawn(executor.run(CancellationToken::new()));
        (orders, fingerprint)
    }
}

/// One sender's view of one attempt.
struct Stream {
    run: Run,
    sender: mpsc::Sender<FromAgent>,
    receiver: mpsc::Receiver<FromAgent>,
}

impl Stream {
    fn new(no: u32, text: &str, fingerprint: [u8; 32]) -> Self {
        let mut body = chat();
        body["messages"][0]["content"] = json!(text);
        let (sender, receiver) = mpsc::channel(16);
        Self { run: Run { fingerprint, ..run(Endpoint::Chat, &body, no) }, sender, receiver }
    }

    async fn send(&self, orders: &Orders) {
        orders.run((PEER, None), self.run.clone(), self.sender.clone()).await.unwrap();
    }

    async fn next(&mut self) -> FromAgent {
        timeout(SOON, self.receiver.recv()).await.unwrap().unwrap()
    }

    async fn until(&mut self, place: &Place) {
        while self.next().await != FromAgent::Accepted(self.run.attempt, place.clone()) {}
    }

    async fn result(&mut self) -> (Outcome, Value) {
        let outcome = loop {
            let frame = self.next().await;
            if let FromAgent::Done(attempt, outcome) = frame {
                assert_eq!(attempt, self.run.attempt);
                break *outcome;
            }
            assert!(matches!(frame, FromAgent::Accepted(..) | FromAgent::Tokens { .. }), "{frame:?}");
        };
        let mut body = Vec::new();
        while body.len() < usize::try_from(outcome.bytes).unwrap() {
            let FromAgent::Body(piece) = self.next().await else { panic!("no body") };
            body.extend_from_slice(&piece);
        }
        let sum: [u8; 32] = Sha256::digest(&body).into();
        assert_eq!(sum, outcome.sha256);
        (outcome, serde_json::from_slice(&body).unwrap())
    }

    async fn failure(&mut self) -> Failure {
        loop {
            let frame = self.next().await;
            if let FromAgent::Failed(_, failure) = frame {
                return failure;
            }
            assert!(matches!(frame, FromAgent::Accepted(..) | FromAgent::Tokens { .. }), "{frame:?}");
        }
    }
}

async fn load(orders: &Orders, wanted: impl FnMut(&Load) -> bool) {
    timeout(SOON, orders.load().wait_for(wanted)).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_attempt_brings_its_result_and_keeps_it_until_it_is_acknowledged() {
    let install = Install::start().await;
    let (orders, fingerprint) = install.executor(1, None).await;
    install.gate.add_permits(9);
    let mut stream = Stream::new(1, "hello", fingerprint);
    stream.send(&orders).await;
    let (outcome, result) = stream.result().await;
    assert_eq!((result["message"]["content"].as_str(), outcome.digest), (Some("hello"), [0xaa; 32]));
    let mut again = Stream::new(1, "hello", fingerprint);
    again.send(&orders).await;
    assert_eq!(again.result().await, (outcome, result));
    orders.ack(PEER, stream.run.attempt).await.unwrap();
    load(&orders, |load| load.waiting_results == 0).await;
    assert_eq!(install.chats(), 1, "the same order was executed once");
}

/// At an install of width 1: one attempt is at the engine, and another has been sent.
async fn one_runs_and_one_is_next(install: &Install) -> (Orders, [u8; 32], [Stream; 2]) {
    let (orders, fingerprint) = install.executor(1, None).await;
    let mut first = Stream::new(1, "one", fingerprint);
    first.send(&orders).await;
    first.until(&Place::Running).await;
    let second = Stream::new(2, "two", fingerprint);
    second.send(&orders).await;
    (orders, fingerprint, [first, second])
}

#[tokio::test]
async fn the_next_attempt_starts_when_the_first_ends_and_never_beside_it() {
    let install = Install::start().await;
    let (orders, fingerprint, [mut first, mut second]) = one_runs_and_one_is_next(&install).await;
    second.until(&Place::Next).await;
    let mut third = Stream::new(3, "three", fingerprint);
    third.send(&orders).await;
    assert!(matches!(third.next().await, FromAgent::Refused(_, Refusal::Busy { .. })));
    assert!(install.chats() <= 1);
    install.gate.add_permits(1);
    second.until(&Place::Running).await;
    assert_eq!(first.result().await.1["message"]["content"], "one");
    install.gate.add_permits(1);
    assert_eq!(second.result().await.1["message"]["content"], "two");
}

#[tokio::test]
async fn a_cancel_of_what_runs_is_settled_before_the_next_starts() {
    let install = Install::start().await;
    let (orders, _, [mut first, mut second]) = one_runs_and_one_is_next(&install).await;
    while install.chats() == 0 {
        tokio::task::yield_now().await;
    }
    orders.cancel(AgentId([9; 32]), first.run.attempt, mpsc::channel(8).0).await.unwrap();
    orders.cancel(PEER, first.run.attempt, first.sender.clone()).await.unwrap();
    assert_eq!(first.failure().await.reason, Reason::Cancelled);
    second.until(&Place::Settling).await;
    second.until(&Place::Running).await;
    assert_eq!(install.closed.load(Ordering::SeqCst), 1, "the model was closed in between");
    // The first chat may have taken a permit of the played engine or not; both have one.
    install.gate.add_permits(2);
    assert_eq!(second.result().await.1["message"]["content"], "two");
}

#[tokio::test]
async fn what_is_asked_back_is_given_back_unless_it_runs() {
    let install = Install::start().await;
    let (orders, _, [mut first, mut second]) = one_runs_and_one_is_next(&install).await;
    for stream in [&first, &second] {
        orders.take_back(PEER, stream.run.attempt, stream.sender.clone()).await.unwrap();
    }
    assert_eq!(second.failure().await.reason, Reason::Cancelled);
    first.until(&Place::Running).await;
    install.gate.add_permits(1);
    assert_eq!(first.result().await.1["message"]["content"], "one");
}

#[tokio::test]
async fn a_reader_that_goes_away_stops_nothing_and_finds_the_result_later() {
    let install = Install::start().await;
    let (orders, fingerprint) = install.executor(1, None).await;
    let stream = Stream::new(1, "one", fingerprint);
    stream.send(&orders).await;
    drop(stream);
    install.gate.add_permits(1);
    load(&orders, |load| load.waiting_results == 1).await;
    let mut again = Stream::new(1, "one", fingerprint);
    again.send(&orders).await;
    assert_eq!(again.result().await.1["message"]["content"], "one");
    let mut stranger = Stream::new(1, "one", fingerprint);
    orders.cancel(AgentId([9; 32]), stranger.run.attempt, stranger.sender.clone()).await.unwrap();
    assert_eq!(stranger.failure().await.reason, Reason::Cancelled, "unknown to anybody else");
}

#[tokio::test]
async fn a_large_result_reaches_a_slow_reader_whole() {
    let install = Install::start().await;
    let (orders, fingerprint) = install.executor(1, None).await;
    install.gate.add_permits(1);
    let text = "x".repeat(900_000);
    let mut stream = Stream::new(1, &text, fingerprint);
    (stream.sender, stream.receiver) = mpsc::channel(3);
    stream.send(&orders).await;
    load(&orders, |load| load.waiting_results == 1).await;
    assert_eq!(stream.result().await.1["message"]["content"].as_str().map(str::len), Some(text.len()));
}

#[tokio::test]
async fn a_wrong_body_and_a_stale_order_never_reach_the_engine() {
    let install = Install::start().await;
    let (orders, fingerprint) = install.executor(1, None).await;
    let mut wrong = Stream::new(1, "one", fingerprint);
    wrong.run.body = Blob::new(b"{}".to_vec()).unwrap();
    wrong.send(&orders).await;
    assert_eq!(wrong.failure().await.reason, Reason::BadRequest);
    let mut stale = Stream::new(2, "two", fingerprint);
    stale.run.incarnation = Incarnation(6);
    stale.send(&orders).await;
    assert_eq!(stale.next().await, FromAgent::Refused(stale.run.attempt, Refusal::Stale(Incarnation(7))));
    let mut other = Stream::new(3, "three", [9; 32]);
    other.send(&orders).await;
    assert_eq!(other.failure().await.reason, Reason::ModelChanged);
    orders.drain("stopping").await.unwrap();
    let mut late = Stream::new(4, "four", fingerprint);
    late.send(&orders).await;
    assert!(matches!(late.next().await, FromAgent::Refused(_, Refusal::Draining(_))));
    assert_eq!(install.chats(), 0);
}

#[tokio::test]
async fn beats_name_what_is_held_with_its_tokens_until_it_is_acknowledged() {
    let install = Install::start().await;
    let (orders, fingerprint) = install.executor(1, None).await;
    let mut stream = Stream::new(1, "one", fingerprint);
    let attempt = stream.run.attempt;
    stream.send(&orders).await;
    stream.until(&Place::Running).await;
    let (control, mut heard) = mpsc::channel(16);
    orders.reattach(PEER, attempt.job, control).await.unwrap();
    let FromAgent::Attached(held) = timeout(SOON, heard.recv()).await.unwrap().unwrap() else { panic!() };
    assert!(held.whole && held.ended.is_empty());
    assert_eq!((held.open[0].chunk, held.open[0].no, held.open[0].running), (attempt.chunk, 1, true));
    let mut before = 0;
    let mut beat = async || {
        let FromAgent::Beat(beat) = timeout(SOON, heard.recv()).await.unwrap().unwrap() else { panic!() };
        assert!(beat.seq > before);
        before = beat.seq;
        beat.held
    };
    while beat().await.open[0].tokens == 0 {}
    install.gate.add_permits(1);
    while beat().await.ended[..] != [(attempt.chunk, 1)] {}
    let (stranger, mut hears) = mpsc::channel(16);
    orders.reattach(AgentId([9; 32]), attempt.job, stranger).await.unwrap();
    let FromAgent::Attached(nothing) = timeout(SOON, hears.recv()).await.unwrap().unwrap() else { panic!() };
    assert!(nothing.open.is_empty() && nothing.ended.is_empty(), "only the sender of the run is told");
}

#[tokio::test]
async fn a_fetch_goes_on_with_a_result_where_its_reader_stopped() {
    let install = Install::start().await;
    let (orders, fingerprint) = install.executor(1, None).await;
    install.gate.add_permits(1);
    let mut stream = Stream::new(1, "one", fingerprint);
    stream.send(&orders).await;
    let (outcome, whole) = stream.result().await;
    let bytes = serde_json::to_vec(&whole).unwrap().len();
    let (again, mut rest) = mpsc::channel(16);
    orders.fetch(PEER, stream.run.attempt, outcome.bytes - 3, again).await.unwrap();
    assert_eq!(rest.recv().await, Some(FromAgent::Done(stream.run.attempt, Box::new(outcome))));
    let Some(FromAgent::Body(piece)) = rest.recv().await else { panic!("no body") };
    assert!(piece.len() == 3 && bytes > 3);
    let (thief, mut nothing) = mpsc::channel(16);
    orders.fetch(AgentId([9; 32]), stream.run.attempt, 0, thief).await.unwrap();
    assert_eq!(
        nothing.recv().await,
        Some(FromAgent::Refused(stream.run.attempt, Refusal::Unknown)),
        "a result is given to the sender of its run alone"
    );
}

fn locks(directory: &std::path::Path, label: &str) -> Arc<DeviceLocks> {
    Arc::new(DeviceLocks::open(directory, BTreeSet::from([DeviceName::Dram]), label).unwrap())
}

#[tokio::test]
async fn two_installs_on_one_device_never_work_at_the_same_time() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (Install::start().await, Install::start().await);
    let (orders_a, fingerprint) = a.executor(1, Some(locks(directory.path(), "first"))).await;
    let (orders_b, _) = b.executor(1, Some(locks(directory.path(), "second"))).await;
    let mut one = Stream::new(1, "one", fingerprint);
    one.send(&orders_a).await;
    one.until(&Place::Running).await;
    let mut two = Stream::new(2, "two", fingerprint);
    two.send(&orders_b).await;
    loop {
        if let FromAgent::Accepted(_, Place::Waiting(holder)) = two.next().await {
            assert!(holder.contains("first"), "{holder}");
            break;
        }
    }
    assert_eq!(b.chats(), 0);
    a.gate.add_permits(1);
    one.result().await;
    two.until(&Place::Running).await;
    b.gate.add_permits(1);
    assert!(two.result().await.0.wait_ms < 60_000);
}

#[tokio::test]
async fn a_model_that_is_not_loaded_waits_for_every_device_that_it_may_go_to() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (Install::start().await, Install::start().await);
    let (orders_a, fingerprint) = a.executor(1, Some(locks(directory.path(), "on the processors"))).await;
    let (orders_b, _) = b.executor(1, Some(locks(directory.path(), "on a GPU"))).await;
    // What B has loaded lies on its GPU; what it loads next may lie in the memory of the processors too.
    let gpu = DeviceName::Gpu("gpu-1".into());
    let mut occupation = Occupation::always(BTreeSet::from([DeviceName::Dram, gpu.clone()]));
    occupation.loaded = BTreeSet::from([gpu]);
    orders_b.occupy(occupation).await.unwrap();
    let mut one = Stream::new(1, "one", fingerprint);
    one.send(&orders_a).await;
    one.until(&Place::Running).await;
    let mut two = Stream::new(2, "two", fingerprint);
    two.send(&orders_b).await;
    while !matches!(two.next().await, FromAgent::Accepted(_, Place::Waiting(_))) {}
    assert_eq!(b.chats(), 0);
    a.gate.add_permits(1);
    one.result().await;
    two.until(&Place::Running).await;
    b.gate.add_permits(1);
    two.result().await;
}

#[tokio::test]
async fn a_load_is_told_at_once_and_what_was_seen_before_it_began_counts_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let install = Install::start().await;
    let (orders, fingerprint) = install.executor(1, Some(locks(directory.path(), "on a GPU"))).await;
    let gpu = DeviceName::Gpu("gpu-1".into());
    let (loaded, anywhere) = (BTreeSet::from([gpu.clone()]), BTreeSet::from([DeviceName::Dram, gpu]));
    let seen = |model: &str, as_of| Occupation::with(loaded.clone(), anywhere.clone(), model, as_of);
    orders.occupy(seen("another", 0)).await.unwrap();
    let mut one = Stream::new(1, "one", fingerprint);
    one.send(&orders).await;
    one.until(&Place::Running).await;
    let mut load = orders.load();
    timeout(SOON, load.wait_for(|load| load.loads == 1 && load.loading)).await.unwrap().unwrap();

    orders.occupy(seen("tiny", 0)).await.unwrap();
    let mut two = Stream::new(2, "two", fingerprint);
    two.send(&orders).await;
    two.next().await;
    assert!(load.borrow().loading, "a look from before the load does not tell where it went");
    orders.occupy(seen("tiny", 1)).await.unwrap();
    timeout(SOON, load.wait_for(|load| !load.loading)).await.unwrap().unwrap();
    install.gate.add_permits(2);
    one.result().await;
    two.result().await;
    assert_eq!(load.borrow().loads, 1, "the second ran where the model was");
}

#[tokio::test]
async fn what_a_dead_agent_left_at_the_engine_is_settled_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let install = Install::start().await;
    let ollama = Arc::new(Ollama::new(install.server.url()).unwrap());
    let fingerprint = ollama.pin("tiny:latest").await.unwrap();
    let devices = BTreeSet::from([DeviceName::Dram]);
    let settings = Settings {
        incarnation: Incarnation(7),
        width: 1,
        locks: Some(locks(directory.path(), "x")),
        devices: Occupation::always(devices),
    };
    let (executor, orders) = Executor::new(settings, ollama);
    let first_life = tokio::spawn(executor.run(CancellationToken::new()));
    let mut stream = Stream::new(1, "one", fingerprint);
    stream.send(&orders).await;
    stream.until(&Place::Running).await;
    first_life.abort();
    assert!(first_life.await.unwrap_err().is_cancelled());

    let (orders, _) = install.executor(1, Some(locks(directory.path(), "y"))).await;
    let mut stream = Stream::new(2, "two", fingerprint);
    stream.send(&orders).await;
    stream.until(&Place::Settling).await;
    stream.until(&Place::Running).await;
    assert_eq!(install.closed.load(Ordering::SeqCst), 1);
    install.gate.add_permits(2);
    stream.result().await;
}

#[tokio::test]
async fn nothing_starts_under_locks_that_were_wiped_and_the_next_order_gets_new_ones() {
    let directory = tempfile::tempdir().unwrap();
    let install = Install::start().await;
    let (orders, fingerprint) = install.executor(1, Some(locks(directory.path(), "x"))).await;
    let mut first = Stream::new(1, "one", fingerprint);
    first.send(&orders).await;
    first.until(&Place::Running).await;
    let mut second = Stream::new(2, "two", fingerprint);
    second.send(&orders).await;
    second.until(&Place::Next).await;
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    install.gate.add_permits(2);
    first.result().await;
    while !matches!(second.next().await, FromAgent::Refused(_, Refusal::Draining(_))) {}
    assert_eq!(install.chats(), 1);
    second.send(&orders).await;
    let again = second.next().await;
    assert!(
        matches!(again, FromAgent::Refused(_, Refusal::Draining(_))),
        "its coordinator makes another: {again:?}"
    );
    let mut third = Stream::new(3, "three", fingerprint);
    third.send(&orders).await;
    assert_eq!(third.result().await.1["message"]["content"], "three");
    assert_eq!(install.chats(), 2);
}

#[tokio::test]
async fn a_width_of_three_runs_three_and_one_waits() {
    let install = Install::start().await;
    let (orders, fingerprint) = install.executor(3, None).await;
    let mut streams: Vec<Stream> = (1..=4).map(|no| Stream::new(no, "x", fingerprint)).collect();
    for stream in &streams {
        stream.send(&orders).await;
    }
    for stream in &mut streams[..3] {
        stream.until(&Place::Running).await;
    }
    streams[3].until(&Place::Next).await;
    load(&orders, |load| (load.running, load.queued) == (3, 1)).await;
    install.gate.add_permits(4);
    for stream in &mut streams {
        stream.result().await;
    }
}
