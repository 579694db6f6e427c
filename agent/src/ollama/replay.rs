//! The engine's client against recorded installs, byte for byte and cut anywhere, and against broken ones.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tropa_proto::message::Endpoint;

use super::{
    raw_server::{Play, Server, chunk, end, json as whole, line, ndjson},
    request::tests::{chat, run},
    *,
};

const VERSIONS: [&str; 3] = ["0.12.6", "0.17.4", "0.24.0"];

fn fixture(version: &str, name: &str) -> (Value, Vec<u8>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/ollama");
    let bytes = std::fs::read(folder.join(version).join(format!("{name}.http"))).unwrap();
    let mark = b"\n-----8<----- response\n";
    let at = bytes.windows(mark.len()).position(|window| window == mark).unwrap();
    let request = &bytes[..at];
    let body =
        request.windows(4).position(|window| window == b"\r\n\r\n").map_or(&b""[..], |at| &request[at + 4..]);
    (serde_json::from_slice(body).unwrap_or(Value::Null), bytes[at + mark.len()..].to_vec())
}

/// A request as the agent would make it, with the context and the prompt of the recorded one.
fn request(endpoint: Endpoint, recorded: &Value) -> Request {
    let mut body = chat();
    for field in ["messages", "prompt", "input"] {
        if let Some(value) = recorded.get(field) {
            body[field] = value.clone();
        }
    }
    if body["prompt"] == json!("") || body.get("prompt").is_none() {
        body["prompt"] = json!("the llama");
    }
    if body.get("input").is_none() {
        body["input"] = json!("the llama");
    }
    let mut request = Request::check(run(endpoint, &body, 1), false).unwrap();
    request.limits.reconnect = Duration::ZERO;
    request
}

async fn attempt(server: &Server, request: &Request) -> Result<Completed, Unfinished> {
    let ollama = Ollama::new(server.url()).unwrap();
    ollama.exchange(request, &mut |_| (), &CancellationToken::new()).await
}

async fn played(endpoint: Endpoint, recorded: &Value, plays: Vec<Play>) -> Result<Value, Reason> {
    let server = Server::start(move |_, _| plays.clone()).await;
    let done = attempt(&server, &request(endpoint, recorded)).await;
    done.map(|done| serde_json::from_slice(&done.result).unwrap()).map_err(|error| error.failure.reason)
}

/// The answer again with its chunked body in chunks of another size, or `None` where it is not chunked.
fn rechunked(response: &[u8], size: usize) -> Option<Vec<u8>> {
    let at = response.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let (head, mut rest) = response.split_at(at);
    String::from_utf8_lossy(head).contains("chunked").then(|| {
        let mut body = Vec::new();
        loop {
            let end = rest.windows(2).position(|window| window == b"\r\n").unwrap();
            let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
            if length == 0 {
                break;
            }
            body.extend_from_slice(&rest[end + 2..end + 2 + length]);
            rest = &rest[end + 4 + length..];
        }
        let mut out = head.to_vec();
        for piece in body.chunks(size) {
            out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            out.extend_from_slice(piece);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\n\r\n");
        out
    })
}

#[tokio::test]
async fn every_recorded_exchange_is_named_the_same_however_it_is_cut() {
    use Endpoint::{Chat, Embed, Generate};
    let table: [(&str, Endpoint, Result<&str, Reason>); 18] = [
        ("chat_stream", Chat, Ok("length")),
        ("chat_whole", Chat, Ok("length")),
        ("generate_stream", Generate, Ok("length")),
        ("length_limited", Generate, Ok("length")),
        ("embed", Embed, Ok("")),
        ("generate_load", Generate, Err(Reason::Garbled)),
        ("too_long_stream", Chat, Err(Reason::TooLong)),
        ("too_long_whole", Chat, Err(Reason::TooLong)),
        ("too_long_embed", Embed, Err(Reason::TooLong)),
        ("model_missing", Chat, Err(Reason::ModelMissing)),
        ("model_missing_embed", Embed, Err(Reason::ModelMissing)),
        ("bad_option_type", Chat, Err(Reason::BadRequest)),
        ("bad_format_stream", Chat, Err(Reason::BadRequest)),
        ("unknown_path", Chat, Err(Reason::NotOllama)),
        ("wrong_method", Chat, Err(Reason::NotOllama)),
        ("foreign_origin", Chat, Err(Reason::Refused)),
        ("think_unsupported", Chat, Err(Reason::Unsupported)),
        ("runner_killed", Chat, Err(Reason::RunnerCrash)),
    ];
    for version in VERSIONS {
        for (name, endpoint, expected) in table.iter().cloned().chain([
            ("repeats_no_done", Generate, Err(Reason::Incomplete)),
            ("repeats_no_done_whole", Generate, Err(Reason::Incomplete)),
        ]) {
            let (recorded, response) = fixture(version, name);
            let endpoint = if recorded.get("prompt").is_some() { Generate } else { endpoint };
            let as_it_was = played(endpoint, &recorded, vec![Play::Bytes(response.clone())]).await;
            let reason = as_it_was.as_ref().map(|result| result["done_reason"].as_str().unwrap_or(""));
            assert_eq!(reason.map_err(|reason| *reason), expected, "{version} {name}");
            for size in 1..=7 {
                let cut = played(endpoint, &recorded, vec![Play::Pieces(response.clone(), size)]).await;
                assert_eq!(cut, as_it_was, "{version} {name} in writes of {size}");
                if let Some(response) = rechunked(&response, size) {
                    let cut = played(endpoint, &recorded, vec![Play::Bytes(response)]).await;
                    assert_eq!(cut, as_it_was, "{version} {name} in chunks of {size}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_streamed_answer_becomes_what_the_whole_answer_was() {
    for version in VERSIONS {
        let mut results = Vec::new();
        for name in ["chat_stream", "chat_whole"] {
            let (recorded, response) = fixture(version, name);
            let mut result = played(Endpoint::Chat, &recorded, vec![Play::Bytes(response)]).await.unwrap();
            let map = result.as_object_mut().unwrap();
            map.retain(|key, _| key != "created_at" && !key.ends_with("_duration"));
            results.push(result);
        }
        assert_eq!(results[0], results[1], "{version}");
        assert!(!results[0]["message"]["content"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_prompt_that_was_cut_by_default_is_caught_once_the_tokens_are_calibrated() {
    for version in VERSIONS {
        let (recorded, response) = fixture(version, "too_long_default_cut");
        let request = request(Endpoint::Chat, &recorded);
        let server = Server::start(move |_, _| vec![Play::Bytes(response.clone())]).await;
        let ollama = Ollama::new(server.url()).unwrap();
        // The model of the recordings has about one byte a token.
        ollama.ratios.lock().unwrap().insert("tiny:latest".to_owned(), 1.0);
        let failed = ollama.exchange(&request, &mut |_| (), &CancellationToken::new()).await.unwrap_err();
        assert_eq!(failed.failure.reason, Reason::PromptCut, "{version}");
    }
}

#[tokio::test]
async fn stock_is_taken_from_recorded_installs() {
    for version in VERSIONS {
        let server = Server::start(move |path, _| {
            let name = match path {
                "/api/version" => "version",
                "/api/tags" => "tags",
                "/api/ps" => "ps_loaded",
                "/api/status" => "status",
                "/api/show" => "show",
                other => panic!("{other}"),
            };
            vec![Play::Bytes(fixture(version, name).1)]
        })
        .await;
        let ollama = Ollama::new(server.url()).unwrap();
        let inventory = ollama.inventory().await;
        assert_eq!(inventory.engine, EngineState::Up, "{version}");
        let model = &inventory.models[0];
        assert_eq!((&*model.name, model.context, model.completion), ("tiny:latest", 2048, true));
        assert_eq!(model.loaded.unwrap().context, 256);
        assert!(!model.remote && model.fingerprint != model.digest);
        assert_eq!(ollama.cloud_disabled().await, if version == "0.12.6" { None } else { Some(false) });
        let again = ollama.inventory().await;
        assert_eq!(again, inventory);
        let shows = server.paths().iter().filter(|path| *path == "/api/show").count();
        assert_eq!(shows, 1, "what stands behind a digest is asked for once");
        ollama.is_another();
        assert_eq!(ollama.inventory().await, inventory);
        assert_eq!(ollama.inventory().await, inventory);
        let shows = server.paths().iter().filter(|path| *path == "/api/show").count();
        assert_eq!(shows, 2, "and once of another process");
    }
}

#[tokio::test]
async fn one_file_in_three_installs_is_one_model() {
    let mut fingerprints = Vec::new();
    for version in VERSIONS {
        let (_, response) = fixture(version, "show");
        let server = Server::start(move |_, _| vec![Play::Bytes(response.clone())]).await;
        let client = Client::new(server.url()).unwrap();
        fingerprints.push(inventory::facts(&client, "tiny:latest", [0; 32]).await.unwrap().fingerprint);
    }
    assert!(fingerprints.iter().all(|fingerprint| *fingerprint == fingerprints[0]));
}

fn said(text: &str) -> Play {
    line(&json!({"message": {"role": "assistant", "content": text}, "done": false}))
}

fn finished() -> Play {
    line(&json!({"message": {"content": ""}, "done": true, "done_reason": "stop"}))
}

#[tokio::test]
async fn a_connection_that_breaks_is_named_by_how_it_breaks() {
    let half = Play::Bytes(b"ff\r\n{\"message\":".to_vec());
    for (what, plays, reason) in [
        ("no byte", vec![], Reason::EngineDown),
        ("reset", vec![ndjson(), said("a"), Play::Reset], Reason::EngineDown),
        ("cut while the server lives", vec![ndjson(), said("a"), half.clone()], Reason::RunnerCrash),
        ("cut by its death", vec![ndjson(), said("a"), Play::Refuse, half], Reason::EngineDown),
        ("not HTTP", vec![Play::Bytes(b"SSH-2.0-x\r\n\r\n".to_vec())], Reason::NotOllama),
        (
            "empty",
            vec![Play::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec())],
            Reason::Incomplete,
        ),
        ("clean end", vec![ndjson(), said("a"), end()], Reason::Incomplete),
        ("bad UTF-8", vec![ndjson(), chunk(b"{\"message\":{\"content\":\"\xff\"}}\n")], Reason::Garbled),
        ("bad JSON", vec![ndjson(), chunk(b"{\"message\":\n")], Reason::Garbled),
    ] {
        let got = played(Endpoint::Chat, &Value::Null, plays).await;
        assert_eq!(got, Err(reason), "{what}");
    }
}

#[tokio::test]
async fn nothing_after_done_can_spoil_a_success() {
    let late = chunk(b"{\"error\":\"late\"}\nnot json\n");
    let got = played(Endpoint::Chat, &Value::Null, vec![ndjson(), said("a"), finished(), late, Play::Reset]);
    assert_eq!(got.await.unwrap()["message"]["content"], "a");
}

#[tokio::test]
async fn a_refused_connection_is_the_engines_absence() {
    let server = Server::start(|_, _| Vec::new()).await;
    let url = server.url();
    drop(server);
    let ollama = Ollama::new(url).unwrap();
    let request = request(Endpoint::Chat, &Value::Null);
    // The port is free as soon as the aborted task has run; until then the connection ends without a byte.
    let failed = ollama.exchange(&request, &mut |_| (), &CancellationToken::new()).await.unwrap_err();
    assert_eq!((failed.failure.reason, failed.may_run), (Reason::EngineDown, false));
    assert!(matches!(ollama.engine().await.0, EngineState::Down(_)));
}

#[tokio::test]
async fn silence_is_told_by_its_phase_and_a_drip_is_silence() {
    let never = || Play::Gate(Arc::new(Semaphore::new(0)));
    let short = Duration::from_millis(60);
    let long = Duration::from_secs(60);
    for (what, plays, first_line, idle, deadline, reason) in [
        ("before the head", vec![never()], short, long, long, Reason::Stalled),
        ("before a line", vec![ndjson(), never()], short, long, long, Reason::Stalled),
        ("between lines", vec![ndjson(), said("a"), never()], long, short, long, Reason::Stalled),
        (
            "bytes and no line",
            vec![
                Play::Bytes(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n{}\n".to_vec()),
                Play::Drip(Duration::from_millis(5)),
            ],
            long,
            short,
            long,
            Reason::Stalled,
        ),
        ("in all", vec![ndjson(), said("a"), never()], long, long, short, Reason::Deadline),
    ] {
        let server = Server::start(move |_, _| plays.clone()).await;
        let mut request = request(Endpoint::Chat, &Value::Null);
        request.limits = Limits { first_line, idle, deadline, reconnect: Duration::ZERO };
        let failed = attempt(&server, &request).await.unwrap_err();
        assert_eq!((failed.failure.reason, failed.may_run), (reason, true), "{what}");
    }
}

#[tokio::test]
async fn a_cancel_hangs_up_and_an_engines_own_cancel_is_an_error() {
    let server =
        Server::start(|_, _| vec![ndjson(), said("a"), Play::Gate(Arc::new(Semaphore::new(0)))]).await;
    let ollama = Ollama::new(server.url()).unwrap();
    let request = request(Endpoint::Chat, &Value::Null);
    let cancel = CancellationToken::new();
    let heard = cancel.clone();
    let failed = ollama.exchange(&request, &mut |_| heard.cancel(), &cancel).await.unwrap_err();
    assert_eq!((failed.failure.reason, failed.may_run), (Reason::Cancelled, true));
    let own = played(Endpoint::Chat, &Value::Null, whole(499, &json!({"error": "request canceled"}))).await;
    assert_eq!(own, Err(Reason::EngineError));
}

#[tokio::test]
async fn the_first_line_of_a_second_attempt_is_awaited_from_the_end_of_the_first() {
    let gate = Arc::new(Semaphore::new(0));
    let first = Arc::clone(&gate);
    let server = Server::start(move |_, body| {
        if body.windows(3).any(|window| window == b"one") {
            vec![ndjson(), said("a"), Play::Gate(Arc::clone(&first)), finished(), end()]
        } else {
            vec![ndjson(), Play::Gate(Arc::new(Semaphore::new(0)))]
        }
    })
    .await;
    let ollama = Ollama::new(server.url()).unwrap();
    let with = |text: &str, first_line: Duration| {
        let mut request = request(Endpoint::Chat, &json!({"messages": [{"role": "user", "content": text}]}));
        request.limits.first_line = first_line;
        request
    };
    let (one, two) = (with("one", Duration::from_secs(60)), with("two", Duration::from_millis(40)));
    let token = CancellationToken::new();
    let mut ignored = |_: Progress<'_>| ();
    let mut one = Box::pin(ollama.exchange(&one, &mut ignored, &token));
    let mut also_ignored = |_: Progress<'_>| ();
    assert!(futures::poll!(&mut one).is_pending(), "the first attempt takes its turn");
    let mut two = Box::pin(ollama.exchange(&two, &mut also_ignored, &token));
    let stalled_early = tokio::select! {
        _ = &mut one => panic!("the gate is closed"),
        _ = &mut two => true,
        () = tokio::time::sleep(Duration::from_millis(150)) => false,
    };
    assert!(!stalled_early, "the second attempt waits for the first without a limit");
    gate.add_permits(1);
    assert!(one.await.is_ok());
    assert_eq!(two.await.unwrap_err().failure.reason, Reason::Stalled);
}

/// An install with one model whose digest, file and place in memory the test decides.
fn install(
    state: &Arc<Mutex<(char, char, bool)>>,
) -> impl Fn(&str, &[u8]) -> Vec<Play> + Send + Sync + 'static {
    let state = Arc::clone(state);
    move |path, body| {
        let mut state = state.lock().unwrap();
        let digest = state.0.to_string().repeat(64);
        let row = json!({"name": "tiny:latest", "digest": digest, "size": 1, "context_length": 256});
        match path {
            "/api/tags" => whole(200, &json!({"models": [row]})),
            "/api/ps" => whole(200, &json!({"models": if state.2 { vec![row] } else { Vec::new() }})),
            "/api/show" => {
                let file = state.1.to_string().repeat(64);
                whole(200, &json!({"modelfile": format!("FROM /x/sha256-{file}\n"), "template": "t"}))
            }
            "/api/generate" => {
                assert!(String::from_utf8_lossy(body).contains("\"keep_alive\":0"));
                state.2 = false;
                whole(200, &json!({"done": true, "done_reason": "unload"}))
            }
            _ => vec![ndjson(), said("a"), finished(), end()],
        }
    }
}

#[tokio::test]
async fn a_changed_model_is_refused_before_and_caught_after_and_a_new_digest_alone_is_not_a_change() {
    let state = Arc::new(Mutex::new(('a', '1', true)));
    let server = Server::start(install(&state)).await;
    let ollama = Ollama::new(server.url()).unwrap();
    let pinned = ollama.inventory().await;
    assert!(matches!(pinned.engine, EngineState::NotOllama(_)), "the script answers no version");
    let tags = inventory::ask::<Tags>(&ollama.client, Call::Tags, None).await.unwrap();
    ollama.remember(&tags);
    let facts = ollama.facts("tiny:latest", [0xaa; 32]).await.unwrap();
    let mut request = request(Endpoint::Chat, &Value::Null);
    request.fingerprint = facts.fingerprint;
    let token = CancellationToken::new();

    let before = server.paths().len();
    let done = ollama.run(&request, &mut |_| (), &token).await.unwrap();
    assert_eq!(server.paths().len(), before + 1, "a known model costs no other request");
    assert_eq!(ollama.verify(&request, done.clone()).await.unwrap().outcome.digest, [0xaa; 32]);

    state.lock().unwrap().0 = 'b';
    let done = ollama.run(&request, &mut |_| (), &token).await.unwrap();
    assert_eq!(ollama.verify(&request, done.clone()).await.unwrap().outcome.digest, [0xbb; 32]);

    *state.lock().unwrap() = ('c', '2', true);
    let done = ollama.run(&request, &mut |_| (), &token).await.unwrap();
    assert_eq!(ollama.verify(&request, done).await.unwrap_err().reason, Reason::ModelChanged);
    let refused = ollama.run(&request, &mut |_| (), &token).await.unwrap_err();
    assert_eq!((refused.failure.reason, refused.may_run), (Reason::ModelChanged, false));
    assert_ne!(server.paths().last().unwrap(), "/api/chat", "the changed model was not asked");
}

#[tokio::test]
async fn one_answer_about_what_is_loaded_serves_all_that_ended_before_it() {
    let state = Arc::new(Mutex::new(('a', '1', true)));
    let server = Server::start(install(&state)).await;
    let ollama = Ollama::new(server.url()).unwrap();
    let facts = ollama.facts("tiny:latest", [0xaa; 32]).await.unwrap();
    let mut request = request(Endpoint::Chat, &Value::Null);
    request.fingerprint = facts.fingerprint;
    let done = ollama.run(&request, &mut |_| (), &CancellationToken::new()).await.unwrap();
    let all = (0..50).map(|_| ollama.verify(&request, done.clone()));
    assert!(futures::future::join_all(all).await.iter().all(Result::is_ok));
    assert_eq!(server.paths().iter().filter(|path| *path == "/api/ps").count(), 1);
}

#[tokio::test]
async fn settling_ends_when_the_model_is_closed_or_the_engine_is_gone() {
    let state = Arc::new(Mutex::new(('a', '1', true)));
    let server = Server::start(install(&state)).await;
    let ollama = Ollama::new(server.url()).unwrap();
    assert_eq!(ollama.settle("tiny", Duration::from_secs(20)).await, Settled::Idle);
    assert!(!state.lock().unwrap().2);

    let stuck = Server::start(|path, _| match path {
        "/api/ps" => whole(200, &json!({"models": [{"name": "tiny:latest"}]})),
        _ => whole(200, &json!({})),
    })
    .await;
    let ollama = Ollama::new(stuck.url()).unwrap();
    assert_eq!(ollama.settle("tiny", Duration::from_millis(100)).await, Settled::Unsettled);
    drop(stuck);
    assert_eq!(ollama.settle("tiny", Duration::from_secs(20)).await, Settled::Gone);
}
