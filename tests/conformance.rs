//! Shapes and rules of an install, asserted of the double and, where there is one, of a real Ollama.
//!
//! The same function judges both, so that a double that drifts from the real thing fails here and not in
//! production. It asserts what `ollama-api.md` says about codes, texts, fields and waits, never the wording of an
//! answer. Without a real Ollama the second half says that it was skipped.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tropa_agent::ollama::{Ollama, OllamaUrl, Request, Settled, full_name};
use tropa_proto::{
    bounded::{Blob, Text},
    failure::Reason,
    id::{AttemptId, ChunkIndex, Incarnation, JobId},
    message::{Endpoint, EngineState, Fingerprint, Run},
};
use tropa_tests::{
    ollama_double::{Double, Model},
    real_ollama::RealOllama,
    skipped,
};

const MODEL: &str = "tiny:latest";

/// A load on a busy machine with one core takes seconds; more than this is a fault.
const SOON: Duration = Duration::from_secs(120);

#[tokio::test]
async fn the_double_conforms_in_every_version_that_was_recorded_and_in_the_present_one() {
    for version in ["0.12.6", "0.17.4", "0.24.0", "0.33.0"] {
        let model = Model::new(MODEL).context(2048).capabilities(&["completion"]);
        let double =
            Double::builder().version(version).model(model).decode_us(2_000).tokens(64).start().await;
        conforms(&double.url()).await;
        assert_eq!(double.forbidden(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_ollama_conforms() {
    if let Err(reason) = RealOllama::find() {
        return skipped(&reason);
    }
    let models = tempfile::tempdir().unwrap();
    let ollama = RealOllama::start(models.path(), &[]).unwrap();
    ollama.create("tiny").unwrap();
    conforms(&ollama.url()).await;
}

async fn conforms(url: &str) {
    let ollama = Ollama::new(OllamaUrl::parse(url, false).unwrap()).unwrap();
    codes_and_texts(url).await;
    let fingerprint = stock(&ollama).await;
    loading(&ollama, url).await;
    chats(&ollama, fingerprint).await;
    embeddings(&ollama, fingerprint).await;
    a_hang_up_can_be_settled(&ollama, url, fingerprint).await;
}

/// One reply, read to the end of the connection.
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Reply {
    fn error(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap();
        body["error"].as_str().unwrap().to_owned()
    }

    fn kind(&self) -> &str {
        self.headers.get("content-type").map_or("", String::as_str)
    }
}

async fn ask(url: &str, method: &str, path: &str, extra: &str, body: Option<&Value>) -> Reply {
    let address = url.strip_prefix("http://").unwrap();
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         {extra}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    timeout(SOON, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let headers = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    let headers: BTreeMap<_, _> =
        headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    let chunked = headers.get("transfer-encoding").is_some_and(|how| how == "chunked");
    let body = if chunked { unchunked(body) } else { body.to_owned() };
    Reply { status, headers, body }
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&after[..size]);
        rest = after[size..].strip_prefix("\r\n").unwrap();
    }
    body
}

fn chat() -> Value {
    json!({
        "model": MODEL, "messages": [{"role": "user", "content": "one load per llama"}], "stream": true,
        "options": {"num_ctx": 256, "num_predict": 6, "seed": 1, "temperature": 0.0},
        "truncate": false, "shift": false, "keep_alive": "600s", "think": false,
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut body = chat();
    match field.split_once('.') {
        Some((outer, inner)) => body[outer][inner] = value,
        None => body[field] = value,
    }
    body
}

async fn codes_and_texts(url: &str) {
    let post = async |path: &str, body: Value| ask(url, "POST", path, "", Some(&body)).await;
    let root = ask(url, "GET", "/", "", None).await;
    assert_eq!((root.status, root.body.as_str()), (200, "Ollama is running"));
    let unknown = ask(url, "GET", "/api/nothing", "", None).await;
    assert_eq!((unknown.status, unknown.body.as_str()), (404, "404 page not found"));
    let method = ask(url, "GET", "/api/chat", "", None).await;
    assert_eq!((method.status, method.body.as_str()), (405, "405 method not allowed"));
    assert!(unknown.kind().starts_with("text/plain") && method.kind().starts_with("text/plain"));
    let foreign = ask(url, "GET", "/api/version", "Origin: http://evil.example\r\n", None).await;
    assert_eq!((foreign.status, foreign.body.as_str()), (403, ""));

    let missing = post("/api/chat", with("model", json!("nope:latest"))).await;
    assert_eq!(missing.status, 404);
    assert!(missing.error().contains("not found"), "{}", missing.body);
    let missing = post("/api/embed", json!({"model": "nope:latest", "input": "x"})).await;
    assert_eq!(missing.status, 404);
    assert!(missing.error().contains("try pulling it first"), "{}", missing.body);
    let option = post("/api/chat", with("options.temperature", json!("hot"))).await;
    assert_eq!(option.status, 500);
    assert!(option.error().contains("must be of type"), "{}", option.body);
    let thinking = post("/api/chat", with("think", json!(true))).await;
    assert_eq!(thinking.status, 400);
    assert!(thinking.error().contains("does not support thinking"), "{}", thinking.body);

    let stream = post("/api/chat", chat()).await;
    assert_eq!((stream.status, stream.kind()), (200, "application/x-ndjson"));
    let lines: Vec<Value> = stream.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, before) = lines.split_last().unwrap();
    assert!(before.iter().all(|line| line["done"] == false && line["message"]["role"] == "assistant"));
    assert_eq!((&last["done"], &last["model"]), (&json!(true), &json!(MODEL)));
    for number in ["total_duration", "prompt_eval_count", "eval_count", "eval_duration"] {
        assert!(last[number].as_u64().is_some_and(|value| value > 0), "{number}: {last}");
    }
    let whole = post("/api/chat", with("stream", json!(false))).await;
    assert!(whole.kind().starts_with("application/json"), "{}", whole.kind());
    let whole: Value = serde_json::from_str(&whole.body).unwrap();
    assert!(whole["done"] == true && whole["message"]["content"].is_string(), "{whole}");
}

async fn stock(ollama: &Ollama) -> Fingerprint {
    let inventory = ollama.inventory().await;
    assert_eq!(inventory.engine, EngineState::Up, "{}", inventory.version);
    let model = inventory.models.iter().find(|model| full_name(&model.name) == MODEL).unwrap();
    assert!(model.completion && !model.remote && model.context > 0 && model.size > 0, "{model:?}");
    assert!(model.fingerprint != [0; 32] && model.digest != [0; 32]);
    assert_eq!(
        ollama.pin("TINY").await.unwrap(),
        model.fingerprint,
        "names have no case and `latest` is implied"
    );
    model.fingerprint
}

async fn loading(ollama: &Ollama, url: &str) {
    assert_eq!(ollama.settle(MODEL, SOON).await, Settled::Idle);
    let loaded = async || {
        let inventory = ollama.inventory().await;
        inventory.models.iter().find(|model| full_name(&model.name) == MODEL).and_then(|model| model.loaded)
    };
    assert_eq!(loaded().await, None, "an empty prompt with keep_alive 0 unloads");
    let load = json!({"model": MODEL, "prompt": "", "keep_alive": "600s", "options": {"num_ctx": 256}});
    let reply = ask(url, "POST", "/api/generate", "", Some(&load)).await;
    let object: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!((&object["done"], &object["done_reason"]), (&json!(true), &json!("load")), "{object}");
    assert!(loaded().await.is_some_and(|loaded| loaded.context == 256 && loaded.size > 0));
}

fn request(endpoint: Endpoint, fingerprint: Fingerprint, body: &Value) -> Request {
    let run = Run {
        attempt: AttemptId { job: JobId([1; 16]), chunk: ChunkIndex(0), no: 1 },
        incarnation: Incarnation(1),
        endpoint,
        model: Text::cut(MODEL),
        fingerprint,
        deadline_ms: 300_000,
        first_token_ms: 120_000,
        idle_ms: 120_000,
        show_text: false,
        at_once: 1,
        body: Blob::new(serde_json::to_vec(body).unwrap()).unwrap(),
    };
    Request::check(run, false).unwrap()
}

async fn chats(ollama: &Ollama, fingerprint: Fingerprint) {
    let token = CancellationToken::new();
    let run = async |endpoint: Endpoint, body: &Value| {
        let request = request(endpoint, fingerprint, body);
        let done = ollama.run(&request, &mut |_| (), &token).await.map_err(|error| error.failure)?;
        ollama.verify(&request, done).await
    };
    for endpoint in [Endpoint::Chat, Endpoint::Generate] {
        let done = run(endpoint, &with("prompt", json!("one load per llama"))).await.unwrap();
        assert_eq!((&*done.outcome.done_reason, done.outcome.output_tokens), ("length", 6), "{endpoint:?}");
        let outcome = &done.outcome;
        assert!(outcome.prompt_tokens > 0 && outcome.first_us > 0 && outcome.first_us <= outcome.wall_us);
        assert!(outcome.total_us > 0 && outcome.digest != [0; 32]);
        let result: Value = serde_json::from_slice(&done.result).unwrap();
        assert!(result.get("context").is_none(), "{result}");
    }
    // More than 256 tokens for any way of counting: a token has fewer than 32 bytes here.
    let long = with("messages", json!([{"role": "user", "content": "a llama ".repeat(1_024)}]));
    let failed = run(Endpoint::Chat, &long).await.unwrap_err();
    assert_eq!(failed.reason, Reason::TooLong, "{failed:?}");
    let other = request(Endpoint::Chat, [7; 32], &chat());
    let failed = ollama.run(&other, &mut |_| (), &token).await.unwrap_err();
    assert_eq!(failed.failure.reason, Reason::ModelChanged);
}

async fn embeddings(ollama: &Ollama, fingerprint: Fingerprint) {
    let body = json!({"model": MODEL, "input": ["alpaca", "llama"], "truncate": false, "keep_alive": "600s",
        "options": {"num_ctx": 256}});
    let request = request(Endpoint::Embed, fingerprint, &body);
    let done = ollama.run(&request, &mut |_| (), &CancellationToken::new()).await.unwrap();
    let result: Value = serde_json::from_slice(&done.result).unwrap();
    let vectors: Vec<Vec<f64>> = serde_json::from_value(result["embeddings"].clone()).unwrap();
    assert_eq!(vectors.len(), 2);
    for vector in vectors {
        let norm = vector.iter().map(|number| number * number).sum::<f64>().sqrt();
        assert!((norm - 1.0).abs() < 1e-3, "norm {norm}");
    }
}

async fn a_hang_up_can_be_settled(ollama: &Ollama, url: &str, fingerprint: Fingerprint) {
    let token = CancellationToken::new();
    let heard = token.clone();
    let endless = request(Endpoint::Chat, fingerprint, &with("options.num_predict", json!(200)));
    let failed = ollama.run(&endless, &mut |_| heard.cancel(), &token).await.unwrap_err();
    assert_eq!((failed.failure.reason, failed.may_run), (Reason::Cancelled, true));
    assert_eq!(ollama.settle(MODEL, SOON).await, Settled::Idle);
    let ps = ask(url, "GET", "/api/ps", "", None).await;
    let ps: Value = serde_json::from_str(&ps.body).unwrap();
    assert_eq!(ps["models"], json!([]), "what computed has been closed");
}
