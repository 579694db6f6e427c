//! Each fault mode of the double gets its reason through the agent's own client: what an install does wrong, and
//! what we call it (`ollama-api.md` §8.4). One row or one test for each mode, and a test that none is missing.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tropa_agent::ollama::{Completed, Limits, Ollama, OllamaUrl, Request, Settled};
use tropa_proto::{
    bounded::{Blob, Text},
    failure::Reason,
    id::{AttemptId, ChunkIndex, Incarnation, JobId},
    message::{Endpoint, EngineState, Failure, Run},
};
use tropa_tests::ollama_double::{Builder, Device, Double, Mode, Model, Profile, Rule};

const MODEL: &str = "m:latest";

/// The client's limits where the test is about something else.
const PATIENT: Limits = Limits {
    first_line: Duration::from_secs(30),
    idle: Duration::from_secs(30),
    deadline: Duration::from_secs(60),
    reconnect: Duration::ZERO,
};

/// A double and the agent's client of it, with the model pinned before anything fails.
struct Bench {
    double: Double,
    ollama: Ollama,
    fingerprint: [u8; 32],
}

fn builder() -> Builder {
    let model = Model::new(MODEL).capabilities(&["completion", "tools", "thinking", "embedding"]);
    Double::builder().model(model).prefill_us(0).decode_us(200).tokens(48)
}

impl Bench {
    async fn start(builder: Builder, fault: Option<&str>) -> Self {
        let double = builder.start().await;
        let ollama = Ollama::new(OllamaUrl::parse(&double.url(), false).unwrap()).unwrap();
        let fingerprint = ollama.pin(MODEL).await.unwrap();
        if let Some(fault) = fault {
            double.inject(fault);
        }
        Self { double, ollama, fingerprint }
    }

    fn request(&self, endpoint: Endpoint, body: &Value, limits: Limits) -> Request {
        let run = Run {
            attempt: AttemptId { job: JobId([1; 16]), chunk: ChunkIndex(0), no: 1 },
            incarnation: Incarnation(1),
            endpoint,
            model: Text::cut(MODEL),
            fingerprint: self.fingerprint,
            deadline_ms: 60_000,
            first_token_ms: 30_000,
            idle_ms: 30_000,
            show_text: false,
            at_once: 1,
            body: Blob::new(serde_json::to_vec(body).unwrap()).unwrap(),
        };
        Request { limits, ..Request::check(run, false).unwrap() }
    }

    /// One attempt with everything around it, as the executor makes it.
    async fn attempt(&self, request: &Request) -> Result<Completed, Failure> {
        let token = CancellationToken::new();
        let done = self.ollama.run(request, &mut |_| (), &token).await.map_err(|error| error.failure)?;
        self.ollama.verify(request, done).await
    }

    async fn chat(&self) -> Result<Completed, Failure> {
        self.attempt(&self.request(Endpoint::Chat, &chat(), PATIENT)).await
    }
}

fn chat() -> Value {
    json!({
        "model": MODEL, "messages": [{"role": "user", "content": "one load per llama"}], "stream": true,
        "options": {"num_ctx": 1024, "num_predict": 48, "seed": 1, "temperature": 0.0},
        "truncate": false, "shift": false, "keep_alive": "600s", "think": false,
    })
}

fn embed() -> Value {
    json!({
        "model": MODEL, "input": ["alpaca", "llama"], "truncate": false, "keep_alive": "600s",
        "options": {"num_ctx": 1024},
    })
}

fn text(done: &Completed) -> String {
    let result: Value = serde_json::from_slice(&done.result).unwrap();
    result["message"]["content"].as_str().unwrap().to_owned()
}

/// Faults of one attempt and the reason that it must get.
const FAILS: &[(&str, Endpoint, Reason)] = &[
    ("queue_full", Endpoint::Chat, Reason::QueueFull),
    ("missing", Endpoint::Chat, Reason::ModelMissing),
    ("missing", Endpoint::Embed, Reason::ModelMissing),
    ("digest_changes:after=1", Endpoint::Chat, Reason::ModelChanged),
    ("remote_line", Endpoint::Chat, Reason::ModelRemote),
    ("load_stall:ms=10", Endpoint::Chat, Reason::LoadFailed),
    ("load_oom", Endpoint::Chat, Reason::OutOfMemory),
    ("oom:after=3", Endpoint::Chat, Reason::OutOfMemory),
    ("crash", Endpoint::Chat, Reason::RunnerCrash),
    ("crash", Endpoint::Embed, Reason::RunnerCrash),
    ("error_line:after=3", Endpoint::Chat, Reason::RunnerCrash),
    ("embed_400_crash", Endpoint::Embed, Reason::RunnerCrash),
    ("poison@prompt~llama", Endpoint::Chat, Reason::RunnerCrash),
    ("empty_500", Endpoint::Chat, Reason::EngineError),
    ("error_first_line", Endpoint::Chat, Reason::LoadFailed),
    ("error_first_line:text=CUDA error: out of memory", Endpoint::Chat, Reason::OutOfMemory),
    ("option_500", Endpoint::Chat, Reason::BadRequest),
    ("no_thinking", Endpoint::Chat, Reason::Unsupported),
    ("nested_400", Endpoint::Chat, Reason::TooLong),
    ("no_done:after=5", Endpoint::Chat, Reason::Incomplete),
    ("empty_200", Endpoint::Chat, Reason::Incomplete),
    ("repeats", Endpoint::Chat, Reason::Incomplete),
    ("reset:after=0", Endpoint::Chat, Reason::EngineDown),
    ("reset:after=3", Endpoint::Chat, Reason::EngineDown),
    ("reset", Endpoint::Embed, Reason::EngineDown),
    ("cut_chunk:after=3", Endpoint::Chat, Reason::RunnerCrash),
    ("restart:ms=300", Endpoint::Chat, Reason::EngineDown),
    ("bad_json", Endpoint::Chat, Reason::Garbled),
    ("bad_utf8", Endpoint::Chat, Reason::Garbled),
    ("huge_line", Endpoint::Chat, Reason::Garbled),
    ("load_reason", Endpoint::Chat, Reason::Garbled),
    ("bad_tool", Endpoint::Chat, Reason::BadOutput),
    ("embed_nan", Endpoint::Embed, Reason::BadOutput),
    ("embed_short", Endpoint::Embed, Reason::BadOutput),
    ("embed_dim", Endpoint::Embed, Reason::BadOutput),
    ("html@path=/api/chat", Endpoint::Chat, Reason::NotOllama),
    ("redirect@path=/api/chat", Endpoint::Chat, Reason::NotOllama),
    ("plain_404@path=/api/chat", Endpoint::Chat, Reason::NotOllama),
    ("status_401", Endpoint::Chat, Reason::ModelRemote),
    ("status_403@path=/api/chat", Endpoint::Chat, Reason::Refused),
];

/// Framing that is legal but awkward: the text must be the same.
const AWKWARD: &[&str] = &[
    "split:bytes=1",
    "split:bytes=3",
    "split_utf8",
    "one_packet",
    "no_last_newline",
    "crlf",
    "blank_lines",
    "final_text",
    "no_reason",
    "after_done",
];

/// Modes with a test of their own below.
const ALONE: &[&str] = &[
    "vanish",
    "digest_only_changes",
    "cloud_tag",
    "cuts_prompt",
    "stall",
    "stall_first",
    "drip",
    "endless",
    "load_slow",
    "only_thinking",
    "slow",
    "zombie",
    "foreign",
    "ps_waits",
    "tags_slow",
    "skew",
    "version",
];

fn mode(fault: &str) -> &str {
    fault.split([':', '@', '*']).next().unwrap()
}

#[test]
fn no_mode_is_without_a_test() {
    let tested: BTreeSet<&str> = FAILS
        .iter()
        .map(|row| mode(row.0))
        .chain(AWKWARD.iter().map(|fault| mode(fault)))
        .chain(ALONE.iter().copied())
        .collect();
    let all: BTreeSet<&str> = Mode::all().map(Mode::name).collect();
    assert_eq!(tested, all);
    for (fault, _, _) in FAILS {
        assert!(fault.parse::<Rule>().is_ok(), "{fault}");
    }
}

#[tokio::test]
async fn every_fault_gets_its_reason() {
    for (fault, endpoint, reason) in FAILS {
        let bench = Bench::start(builder(), Some(fault)).await;
        let body = if *endpoint == Endpoint::Embed { embed() } else { chat() };
        let got = bench.attempt(&bench.request(*endpoint, &body, PATIENT)).await;
        assert_eq!(got.map_err(|failure| failure.reason).err(), Some(*reason), "{fault}");
    }
}

#[tokio::test]
async fn legal_but_awkward_framing_changes_no_letter() {
    let plain = text(&Bench::start(builder(), None).await.chat().await.unwrap());
    assert!(plain.len() > 48);
    for fault in AWKWARD {
        let done = Bench::start(builder(), Some(fault)).await.chat().await;
        assert_eq!(
            done.map(|done| text(&done)).map_err(|failure| failure.reason),
            Ok(plain.clone()),
            "{fault}"
        );
    }
}

#[tokio::test]
async fn a_vanished_model_is_missing() {
    let bench = Bench::start(builder(), Some("vanish:after=1")).await;
    let first = bench.chat().await;
    let second = bench.chat().await.unwrap_err();
    assert_eq!(second.reason, Reason::ModelMissing);
    // The check after the first attempt may already find it gone: it was loaded when the model vanished.
    assert!(first.is_ok_and(|done| done.outcome.digest != [0; 32]));
}

#[tokio::test]
async fn another_digest_of_the_same_file_is_the_same_model() {
    let bench = Bench::start(builder(), Some("digest_only_changes:after=1")).await;
    let first = bench.chat().await.unwrap();
    let second = bench.chat().await.unwrap();
    assert_eq!(first.outcome.digest, second.outcome.digest, "both were read after the change");
}

#[tokio::test]
async fn a_model_that_the_list_marks_as_remote_is_never_sent_a_prompt() {
    let double = builder().fault("cloud_tag").start().await;
    let ollama = Ollama::new(OllamaUrl::parse(&double.url(), false).unwrap()).unwrap();
    assert!(ollama.inventory().await.models[0].remote);
    assert!(ollama.pin(MODEL).await.is_err());
    let bench = Bench { double, ollama, fingerprint: [0; 32] };
    assert_eq!(bench.chat().await.unwrap_err().reason, Reason::ModelRemote);
    assert!(
        bench
            .double
            .requests()
            .iter()
            .all(|request| request.path != "/api/chat" && request.path != "/api/show")
    );
}

#[tokio::test]
async fn a_cut_prompt_is_no_success() {
    for version in ["0.33.0", "0.24.0"] {
        let bench = Bench::start(builder().version(version), Some("cuts_prompt")).await;
        let mut body = chat();
        body["messages"][0]["content"] = json!("one load per llama ".repeat(500));
        let got = bench.attempt(&bench.request(Endpoint::Chat, &body, PATIENT)).await;
        assert_eq!(got.unwrap_err().reason, Reason::PromptCut, "{version}");
    }
}

#[tokio::test]
async fn silence_and_drips_are_stalls_and_an_endless_answer_meets_its_deadline() {
    let short = Duration::from_millis(250);
    for (fault, limits, reason) in [
        ("stall:after=3", Limits { idle: short, ..PATIENT }, Reason::Stalled),
        ("stall_first", Limits { first_line: short, ..PATIENT }, Reason::Stalled),
        ("drip:ms=20", Limits { first_line: short, idle: short, ..PATIENT }, Reason::Stalled),
        ("endless", Limits { deadline: short, ..PATIENT }, Reason::Deadline),
    ] {
        let bench = Bench::start(builder(), Some(fault)).await;
        let token = CancellationToken::new();
        let request = bench.request(Endpoint::Chat, &chat(), limits);
        let failed = bench.ollama.run(&request, &mut |_| (), &token).await.unwrap_err();
        assert_eq!((failed.failure.reason, failed.may_run), (reason, true), "{fault}");
        assert_eq!(bench.ollama.settle(MODEL, Duration::from_secs(20)).await, Settled::Idle, "{fault}");
    }
}

#[tokio::test]
async fn a_slow_load_is_no_failure_and_shows_in_the_figures() {
    let bench = Bench::start(builder(), Some("load_slow:ms=600*1")).await;
    let done = bench.chat().await.unwrap();
    assert!(done.outcome.load_us >= 500_000 && done.outcome.first_us >= 500_000, "{:?}", done.outcome);
}

#[tokio::test]
async fn thinking_that_spends_everything_is_marked() {
    let bench = Bench::start(builder(), Some("only_thinking")).await;
    let mut body = chat();
    body["think"] = json!(true);
    let done = bench.attempt(&bench.request(Endpoint::Chat, &body, PATIENT)).await.unwrap();
    assert!(done.outcome.reasoning_only);
    assert_eq!(&*done.outcome.done_reason, "length");
}

#[tokio::test]
async fn a_slow_engine_succeeds_and_its_slowness_can_be_seen() {
    let quick = Bench::start(builder().vram(8 << 30), None).await;
    let fast = quick.chat().await.unwrap();
    let bench = Bench::start(builder().vram(8 << 30), Some("slow:factor=10")).await;
    let slow = bench.chat().await.unwrap();
    assert!(slow.outcome.decode_us > 4 * fast.outcome.decode_us, "{:?} {:?}", slow.outcome, fast.outcome);
    assert_eq!(bench.ollama.inventory().await.models[0].loaded.unwrap().size_vram, 0);
}

#[tokio::test]
async fn a_zombie_holds_the_lane_until_it_is_settled() {
    let device = Device::new("cpu0", Profile::Oversubscribed);
    let bench = Bench::start(builder().device(&device), Some("zombie:ms=400*1")).await;
    let other = Bench::start(builder().device(&device), None).await;
    let token = CancellationToken::new();
    let heard = token.clone();
    let request = bench.request(Endpoint::Chat, &chat(), PATIENT);
    let failed = bench.ollama.run(&request, &mut |_| heard.cancel(), &token).await.unwrap_err();
    assert_eq!((failed.failure.reason, failed.may_run), (Reason::Cancelled, true));
    assert_eq!(bench.ollama.settle(MODEL, Duration::from_secs(20)).await, Settled::Idle);
    other.chat().await.unwrap();
    assert!(device.overlap().is_zero(), "the next install worked beside the zombie: {:?}", device.timeline());
}

#[tokio::test]
async fn a_foreign_user_makes_us_wait_and_nothing_worse() {
    let bench = Bench::start(builder(), Some("foreign:ms=300*1")).await;
    assert!(bench.chat().await.unwrap().outcome.wall_us >= 250_000);
}

#[tokio::test]
async fn late_control_calls_and_wrong_clocks_change_nothing() {
    let plain = text(&Bench::start(builder(), None).await.chat().await.unwrap());
    for fault in ["ps_waits", "tags_slow:ms=300", "skew:seconds=-1700000000", "skew:seconds=9000000000"] {
        let bench = Bench::start(builder(), Some(fault)).await;
        assert_eq!(text(&bench.chat().await.unwrap()), plain, "{fault}");
        let inventory = bench.ollama.inventory().await;
        assert_eq!((inventory.engine, inventory.models.len()), (EngineState::Up, 1), "{fault}");
    }
}

#[tokio::test]
async fn versions_are_judged() {
    for (version, state) in [
        ("0.6.4", EngineState::TooOld),
        ("0.12.5", EngineState::TooOld),
        ("0.20.0", EngineState::Up),
        ("0.0.0", EngineState::Up),
        ("0.33.0-rc2", EngineState::Up),
    ] {
        let bench = Bench::start(builder(), Some(&format!("version:{version}"))).await;
        let inventory = bench.ollama.inventory().await;
        assert_eq!((inventory.engine, &*inventory.version), (state, version));
        assert!(inventory.models[0].completion, "{version}");
    }
}

#[tokio::test]
async fn an_install_that_is_a_page_or_a_closed_door_is_told_as_such() {
    for fault in ["html", "redirect", "plain_404", "status_403"] {
        let bench = Bench::start(builder(), Some(fault)).await;
        let inventory = bench.ollama.inventory().await;
        assert!(matches!(inventory.engine, EngineState::NotOllama(_)), "{fault}: {:?}", inventory.engine);
    }
}
