//! What must stand in a body before it may reach an install (`ollama-api.md` §5).
//!
//! The coordinator writes the body and the agent sends its bytes unchanged. A body without the fields below would
//! be cut, run without end, reload the model or leave it loaded for ever, and most of that passes as success; so
//! it is refused here, before any HTTP.

use std::{collections::BTreeMap, fmt, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};
use tropa_proto::{
    failure::Reason,
    message::{Endpoint, Failure, Fingerprint, ModelName, Run},
    permit::Asks,
};

use super::{
    classify,
    shapes::{full_name, is_cloud_name},
};

/// The options that make Ollama load a model anew (`ollama-api.md` §2.3); `shift` is one of them since 0.30.
const LOAD_OPTIONS: [&str; 7] =
    ["num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"];

/// How long a refused connection is tried again within an attempt (`reliability.md` §4): a restart of Ollama is
/// not a lost agent.
const RECONNECT: Duration = Duration::from_secs(60);

/// The time limits of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until the first complete line; where earlier attempts of ours run on the install, from the end of the last.
    pub first_line: Duration,
    /// Between two complete lines; bytes do not count.
    pub idle: Duration,
    /// From start to end.
    pub deadline: Duration,
    /// How long a refused connection is tried again.
    pub reconnect: Duration,
}

/// A body that has passed, with what the checks around the attempt need of it.
#[derive(Clone)]
pub struct Request {
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// The model's name at this install.
    pub model: ModelName,
    /// The pinned model.
    pub fingerprint: Fingerprint,
    /// The body, byte for byte.
    pub body: Bytes,
    /// The limits.
    pub limits: Limits,
    /// The context that the body asks for, in tokens.
    pub num_ctx: u64,
    /// Tokens of the answer that the body asks for, at most; 0 for embeddings.
    pub num_predict: u64,
    /// The body carries pictures.
    pub images: bool,
    /// Bytes of prompt text, for the estimate of its tokens.
    pub prompt_bytes: u64,
    /// How many vectors an embedding must bring.
    pub inputs: usize,
    /// How long each vector must be, where the body says so.
    pub dimensions: Option<usize>,
    /// Model and load options in one text: two requests with equal ones need no reload between them.
    pub runner: String,
}

/// Without the content.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("endpoint", &self.endpoint)
            .field("limits", &self.limits)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Body {
    model: Option<String>,
    stream: Option<bool>,
    truncate: Option<bool>,
    shift: Option<bool>,
    think: Option<Value>,
    keep_alive: Option<Value>,
    #[serde(default)]
    options: Map<String, Value>,
    messages: Option<Vec<Message>>,
    prompt: Option<String>,
    system: Option<String>,
    input: Option<Input>,
    dimensions: Option<usize>,
    images: Option<Value>,
    #[serde(flatten)]
    more: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: String,
    images: Option<Value>,
    #[serde(flatten)]
    more: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
}

impl Request {
    /// Checks the body of a `Run` and takes it over.
    ///
    /// # Errors
    /// `bad_request` with the name of the first field that is missing or wrong, `model_remote` for the name of a
    /// cloud model unless `allow_remote_models` is set. Neither has caused any HTTP.
    pub fn check(run: Run, allow_remote_models: bool) -> Result<Self, Failure> {
        if is_cloud_name(&run.model) && !allow_remote_models {
            return Err(refused(Reason::ModelRemote, "the model's name means Ollama's cloud"));
        }
        let limits = Limits {
            first_line: Duration::from_millis(run.first_token_ms),
            idle: Duration::from_millis(run.idle_ms),
            deadline: Duration::from_millis(run.deadline_ms),
            reconnect: RECONNECT,
        };
        let Ok(body) = serde_json::from_slice::<Body>(&run.body) else {
            return Err(refused(Reason::BadRequest, "the body is not an object of the right types"));
        };
        let checked = read(&body, run.endpoint, &run.model);
        let (num_ctx, prompt_bytes, inputs) = checked.map_err(|what| refused(Reason::BadRequest, what))?;
        let mut runner = full_name(&run.model);
        for option in LOAD_OPTIONS {
            if let Some(value) = body.options.get(option).filter(|value| !value.is_null()) {
                runner.push_str(&format!(" {option}={value}"));
            }
        }
        if body.shift.is_none() {
            runner.push_str(" shift");
        }
        Ok(Self {
            endpoint: run.endpoint,
            model: run.model,
            fingerprint: run.fingerprint,
            body: Bytes::from(run.body.into_vec()),
            limits,
            num_ctx,
            num_predict: body.options.get("num_predict").and_then(Value::as_u64).unwrap_or(0),
            images: body.has_images(),
            prompt_bytes,
            inputs,
            dimensions: body.dimensions,
            runner,
        })
    }
}

impl Request {
    /// The least by which the same model, with the same options, shows that it works: one token, or one vector. `None`
    /// where the body is no object, which none is that was checked.
    #[must_use]
    pub fn probe(&self) -> Option<Self> {
        const KEPT: [&str; 7] = ["model", "stream", "truncate", "shift", "think", "keep_alive", "options"];
        let mut body: Map<String, Value> = serde_json::from_slice(&self.body).ok()?;
        body.retain(|field, _| KEPT.contains(&field.as_str()));
        let (endpoint, prompt, inputs) = match self.endpoint {
            Endpoint::Embed => (Endpoint::Embed, "input", 1),
            Endpoint::Chat | Endpoint::Generate => (Endpoint::Generate, "prompt", 0),
        };
        body.insert(prompt.to_owned(), ".".into());
        if let (Endpoint::Generate, Some(Value::Object(options))) = (endpoint, body.get_mut("options")) {
            options.insert("num_predict".to_owned(), 1.into());
        }
        let limits = Limits { deadline: self.limits.first_line + self.limits.idle, ..self.limits };
        Some(Self {
            endpoint,
            body: serde_json::to_vec(&body).ok()?.into(),
            limits,
            num_predict: u64::from(endpoint == Endpoint::Generate),
            images: false,
            prompt_bytes: 1,
            inputs,
            dimensions: None,
            ..self.clone()
        })
    }

    /// What it asks of the install, for the policy.
    #[must_use]
    pub fn asks(&self) -> Asks<'_> {
        Asks { model: &self.model, num_ctx: self.num_ctx, num_predict: self.num_predict, images: self.images }
    }
}

impl Body {
    /// Says whether Ollama reads the same fields as we do: it takes `Model` for `model`, whichever comes last, and
    /// letters beyond ASCII for those that they fold to.
    fn is_unmistakable(&self) -> bool {
        let lower =
            |key: &String| key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let messages = self.messages.iter().flatten().flat_map(|message| message.more.keys());
        self.more.keys().chain(messages).all(lower)
    }

    fn has_images(&self) -> bool {
        let some = |images: &Option<Value>| images.as_ref().is_some_and(|images| !is_empty(images));
        some(&self.images) || self.messages.iter().flatten().any(|message| some(&message.images))
    }
}

/// Says whether a list holds nothing; anything else than a list may be a picture.
fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// Gives the context, the bytes of prompt and the number of inputs, or names what is wrong.
fn read(body: &Body, endpoint: Endpoint, model: &str) -> Result<(u64, u64, usize), &'static str> {
    if !body.is_unmistakable() {
        return Err("a field is not in lower case");
    }
    match &body.model {
        Some(name) if full_name(name) == full_name(model) => {}
        Some(_) => return Err("the body names another model than the order"),
        None => return Err("the body names no model"),
    }
    if body.truncate != Some(false) {
        return Err("truncate is not false");
    }
    if !body.keep_alive.as_ref().is_some_and(is_positive_time) {
        return Err("keep_alive is not a time above 0");
    }
    let num_ctx = body.options.get("num_ctx").and_then(Value::as_u64).filter(|tokens| *tokens > 0);
    let num_ctx = num_ctx.ok_or("options.num_ctx is not a number above 0")?;
    if endpoint == Endpoint::Embed {
        let (bytes, inputs) = match &body.input {
            Some(Input::One(text)) if !text.is_empty() => (text.len(), 1),
            Some(Input::Many(texts)) if !texts.is_empty() && texts.iter().all(|text| !text.is_empty()) => {
                (texts.iter().map(String::len).sum(), texts.len())
            }
            Some(Input::One(_) | Input::Many(_)) | None => return Err("the input is empty"),
        };
        return Ok((num_ctx, bytes as u64, inputs));
    }
    if body.stream != Some(true) {
        return Err("stream is not true");
    }
    if body.shift != Some(false) {
        return Err("shift is not false");
    }
    if !matches!(body.think, Some(Value::Bool(_) | Value::String(_))) {
        return Err("think is not set");
    }
    if body.options.get("num_predict").and_then(Value::as_u64).is_none_or(|tokens| tokens == 0) {
        return Err("options.num_predict is not a number above 0");
    }
    let system = body.system.as_ref().map_or(0, String::len);
    let bytes = match (endpoint, &body.messages, &body.prompt) {
        (Endpoint::Chat, Some(messages), _) if !messages.is_empty() => {
            messages.iter().map(|message| message.content.len()).sum::<usize>()
        }
        (Endpoint::Chat, _, _) => return Err("there are no messages"),
        (_, _, Some(prompt)) if !prompt.is_empty() => prompt.len() + system,
        _ => return Err("the prompt is empty"),
    };
    Ok((num_ctx, bytes as u64, 0))
}

/// Says whether a `keep_alive` is above zero: a number of seconds, or a Go duration.
fn is_positive_time(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_f64().is_some_and(|seconds| seconds > 0.0),
        Value::String(text) => {
            text.starts_with(|c: char| c.is_ascii_digit()) && text.contains(|c| matches!(c, '1'..='9'))
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
    }
}

fn refused(reason: Reason, what: &str) -> Failure {
    Failure { reason, detail: classify::detail(what, "").into(), ms: 0 }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;
    use tropa_proto::{
        bounded::{Blob, Text},
        id::{AttemptId, ChunkIndex, Incarnation, JobId},
    };

    use super::*;

    pub(crate) fn chat() -> Value {
        json!({
            "model": "tiny:latest", "messages": [{"role": "user", "content": "the llama"}], "stream": true,
            "options": {"num_ctx": 256, "num_predict": 6, "seed": 1, "temperature": 0.0},
            "truncate": false, "shift": false, "keep_alive": "600s", "think": false,
        })
    }

    pub(crate) fn run(endpoint: Endpoint, body: &Value, no: u32) -> Run {
        Run {
            attempt: AttemptId { job: JobId([1; 16]), chunk: ChunkIndex(0), no },
            incarnation: Incarnation(7),
            endpoint,
            model: Text::cut("tiny:latest"),
            fingerprint: [0; 32],
            deadline_ms: 20_000,
            first_token_ms: 10_000,
            idle_ms: 10_000,
            show_text: false,
            at_once: 64,
            body: Blob::new(serde_json::to_vec(body).unwrap()).unwrap(),
        }
    }

    fn without(body: &Value, path: &str) -> Value {
        let mut body = body.clone();
        match path.split_once('.') {
            Some((outer, inner)) => body[outer].as_object_mut().unwrap().shift_remove(inner),
            None => body.as_object_mut().unwrap().shift_remove(path),
        };
        body
    }

    fn reason(endpoint: Endpoint, body: &Value) -> Option<Reason> {
        Request::check(run(endpoint, body, 1), false).err().map(|failure| failure.reason)
    }

    #[test]
    fn each_field_that_is_missing_refuses_the_body() {
        assert_eq!(reason(Endpoint::Chat, &chat()), None);
        for path in [
            "model",
            "messages",
            "stream",
            "options",
            "options.num_ctx",
            "options.num_predict",
            "truncate",
            "shift",
            "keep_alive",
            "think",
        ] {
            assert_eq!(reason(Endpoint::Chat, &without(&chat(), path)), Some(Reason::BadRequest), "{path}");
        }
        let embed = json!({"model": "tiny", "input": ["a", "b"], "truncate": false, "keep_alive": 300,
            "options": {"num_ctx": 256}});
        assert_eq!(reason(Endpoint::Embed, &embed), None);
        for path in ["model", "input", "truncate", "keep_alive", "options.num_ctx"] {
            assert_eq!(reason(Endpoint::Embed, &without(&embed, path)), Some(Reason::BadRequest), "{path}");
        }
    }

    #[test]
    fn a_field_that_would_change_the_install_or_load_only_is_refused() {
        for (field, value) in [
            ("keep_alive", json!(-1)),
            ("keep_alive", json!("-1s")),
            ("keep_alive", json!(0)),
            ("keep_alive", json!("0s")),
            ("truncate", json!(true)),
            ("shift", json!(true)),
            ("stream", json!(false)),
            ("messages", json!([])),
            ("model", json!("other")),
            ("think", json!(null)),
        ] {
            let mut body = chat();
            body[field] = value.clone();
            assert_eq!(reason(Endpoint::Chat, &body), Some(Reason::BadRequest), "{field}: {value}");
        }
    }

    #[test]
    fn a_field_that_ollama_reads_as_another_is_refused() {
        let sent = |text: String| {
            let run = Run { body: Blob::new(text.into_bytes()).unwrap(), ..run(Endpoint::Chat, &chat(), 1) };
            Request::check(run, false).err().map(|failure| failure.reason)
        };
        let body = chat().to_string();
        let (first, rest) = body.split_at(1);
        for field in
            [r#""Model":"other""#, r#""OPTIONS":{"num_ctx":99999}"#, r#""option\u017f":{}"#, r#""model":"x""#]
        {
            assert_eq!(sent(format!("{first}{field},{rest}")), Some(Reason::BadRequest), "{field}");
        }
        assert_eq!(sent(format!("{first}\"logprobs\":true,{rest}")), None);
        let mut body = chat();
        body["messages"][0]["Images"] = json!(["AAAA"]);
        assert_eq!(reason(Endpoint::Chat, &body), Some(Reason::BadRequest));
    }

    #[test]
    fn a_probe_is_one_token_or_one_vector_of_the_same_runner() {
        let embed = json!({"model": "tiny", "input": ["a", "b"], "truncate": false, "keep_alive": 300,
            "options": {"num_ctx": 256}});
        for (endpoint, body) in [(Endpoint::Chat, chat()), (Endpoint::Embed, embed)] {
            let request = Request::check(run(endpoint, &body, 1), false).unwrap();
            let probe = request.probe().unwrap();
            let probed: Value = serde_json::from_slice(&probe.body).unwrap();
            let order =
                Run { body: Blob::new(probe.body.to_vec()).unwrap(), ..run(probe.endpoint, &body, 1) };
            let read = Request::check(order, false).unwrap();
            assert_eq!((read.runner, read.inputs), (request.runner.clone(), probe.inputs));
            assert!(probed["messages"].is_null(), "nothing of the prompt is sent again: {probed}");
            assert_eq!(probed["options"]["num_ctx"], 256);
            assert!(endpoint == Endpoint::Embed || probed["options"]["num_predict"] == 1);
        }
    }

    #[test]
    fn a_request_says_what_it_asks_of_the_install() {
        let asks = |body: &Value| {
            let request = Request::check(run(Endpoint::Chat, body, 1), false).unwrap();
            let Asks { num_ctx, num_predict, images, .. } = request.asks();
            (num_ctx, num_predict, images)
        };
        let mut body = chat();
        assert_eq!(asks(&body), (256, 6, false));
        body["messages"][0]["images"] = json!([]);
        assert_eq!(asks(&body), (256, 6, false));
        body["messages"][0]["images"] = json!(["AAAA"]);
        assert_eq!(asks(&body), (256, 6, true));
    }

    #[test]
    fn a_cloud_name_is_refused_unless_it_is_allowed() {
        let mut body = chat();
        body["model"] = json!("big:120b-cloud");
        let run = || Run { model: Text::cut("big:120b-cloud"), ..run(Endpoint::Chat, &body, 1) };
        assert_eq!(Request::check(run(), false).unwrap_err().reason, Reason::ModelRemote);
        assert!(Request::check(run(), true).is_ok());
    }

    #[test]
    fn requests_of_one_runner_are_told_from_those_that_reload() {
        let key = |body: &Value| Request::check(run(Endpoint::Chat, body, 1), false).unwrap().runner;
        let mut other = chat();
        other["options"]["num_predict"] = json!(99);
        assert_eq!(key(&chat()), key(&other));
        other["options"]["num_ctx"] = json!(512);
        assert_ne!(key(&chat()), key(&other));
    }
}
