//! Lines of one answer into one result, as `stream:false` would have returned it (`ollama-api.md` §3). No IO.
//!
//! Of every line the error is read first; the only success is a line with `done:true`; texts, thinking, tool
//! calls and log probabilities are joined in order and everything else comes from the last line. Whatever breaks
//! the rules of a stream is a failure and never becomes content.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use tropa_proto::{
    bounded::Text,
    failure::Reason,
    message::{Endpoint, MAX_RESULT, Outcome},
};

use super::{classify, request::Request};

/// A failure in words: the reason, what we were doing, what the engine said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) reason: Reason,
    pub(super) ours: &'static str,
    pub(super) engine: String,
}

impl Broken {
    pub(super) fn new(reason: Reason, ours: &'static str, engine: impl Into<String>) -> Self {
        Self { reason, ours, engine: engine.into() }
    }
}

/// What one line was.
#[derive(Debug)]
pub(super) enum Step {
    /// A line of the answer; says whether it held text or thinking.
    More {
        /// It did.
        text: bool,
    },
    /// The last line.
    Done(Box<Ended>),
}

/// The result and what the engine says about it. Times of our own clock are the driver's to fill in.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) result: Bytes,
    pub(super) outcome: Outcome,
}

/// What the fold must know beside the request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    /// Lines from Ollama's cloud are answers too.
    pub(super) allow_remote: bool,
    /// Bytes of prompt per token, where earlier answers of the model have shown it.
    pub(super) bytes_per_token: Option<f64>,
}

/// The answer so far.
#[derive(Debug)]
pub(super) struct Fold<'a> {
    request: &'a Request,
    rules: Rules,
    content: String,
    thinking: String,
    tool_calls: Vec<Value>,
    logprobs: Vec<Value>,
    /// Bytes of everything that was joined.
    size: usize,
}

#[derive(Deserialize)]
struct Line {
    error: Option<Value>,
    remote_host: Option<String>,
    remote_model: Option<String>,
    #[serde(default)]
    done: bool,
    message: Option<Message>,
    response: Option<String>,
    thinking: Option<String>,
    #[serde(default)]
    logprobs: Option<Vec<Value>>,
}

#[derive(Default, Deserialize)]
struct Message {
    content: Option<String>,
    thinking: Option<String>,
    tool_calls: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct Vectors {
    embeddings: Vec<Vec<f64>>,
}

impl<'a> Fold<'a> {
    pub(super) fn new(request: &'a Request, rules: Rules) -> Self {
        let (content, thinking) = (String::new(), String::new());
        let (tool_calls, logprobs) = (Vec::new(), Vec::new());
        Self { request, rules, content, thinking, tool_calls, logprobs, size: 0 }
    }

    /// Gives the text of the answer so far.
    pub(super) fn content(&self) -> &str {
        &self.content
    }

    /// Takes one complete line in.
    pub(super) fn line(&mut self, bytes: &[u8]) -> Result<Step, Broken> {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Err(Broken::new(Reason::Garbled, "the answer is not UTF-8", ""));
        };
        if self.request.endpoint == Endpoint::Embed {
            return self.vectors(text);
        }
        let Ok(line) = serde_json::from_str::<Line>(text) else { return Err(broken_line(text)) };
        if let Some(error) = line.error.filter(|error| !error.is_null()) {
            return Err(engine_error(&error));
        }
        let remote = |field: &Option<String>| field.as_deref().is_some_and(|text| !text.is_empty());
        if !self.rules.allow_remote && (remote(&line.remote_host) || remote(&line.remote_model)) {
            return Err(Broken::new(Reason::ModelRemote, "the model ran in Ollama's cloud", ""));
        }
        let message = line.message.unwrap_or_default();
        let (content, thinking) = match self.request.endpoint {
            Endpoint::Chat => (message.content, message.thinking),
            Endpoint::Generate | Endpoint::Embed => (line.response, line.thinking),
        };
        let (content, thinking) = (content.unwrap_or_default(), thinking.unwrap_or_default());
        let tool_calls = message.tool_calls.unwrap_or_default();
        let logprobs = line.logprobs.unwrap_or_default();
        self.size += content.len() + thinking.len() + written(&tool_calls) + written(&logprobs);
        if self.size > MAX_RESULT {
            return Err(too_large());
        }
        self.content.push_str(&content);
        self.thinking.push_str(&thinking);
        self.tool_calls.extend(tool_calls);
        self.logprobs.extend(logprobs);
        if line.done {
            return self.finish(text);
        }
        Ok(Step::More { text: !content.is_empty() || !thinking.is_empty() })
    }

    /// Makes the result out of the last line and what was joined before it.
    pub(super) fn finish(&mut self, last: &str) -> Result<Step, Broken> {
        let mut last: Map<String, Value> = serde_json::from_str(last).map_err(|_| broken_line(last))?;
        let done_reason = last.get("done_reason").and_then(Value::as_str).unwrap_or("stop").to_owned();
        if matches!(done_reason.as_str(), "load" | "unload") {
            let engine = format!("done_reason {done_reason}");
            return Err(Broken::new(
                Reason::Garbled,
                "the engine answered a prompt as if it were empty",
                engine,
            ));
        }
        let prompt_tokens = tokens(&last, "prompt_eval_count");
        if was_cut(self.request, self.rules, u64::from(prompt_tokens)) {
            let engine = format!("{prompt_tokens} tokens of the prompt counted");
            return Err(Broken::new(Reason::PromptCut, "the engine cut the prompt", engine));
        }
        let reasoning_only =
            self.content.is_empty() && !self.thinking.is_empty() && self.tool_calls.is_empty();
        let outcome = outcome(&last, &done_reason, reasoning_only);
        last.shift_remove("context");
        let content = Value::String(std::mem::take(&mut self.content));
        let thinking = Some(std::mem::take(&mut self.thinking)).filter(|text| !text.is_empty());
        let tool_calls = Some(std::mem::take(&mut self.tool_calls)).filter(|calls| !calls.is_empty());
        if self.request.endpoint == Endpoint::Chat {
            if !last.get("message").is_some_and(Value::is_object) {
                last.insert("message".to_owned(), serde_json::json!({ "role": "assistant" }));
            }
            if let Some(Value::Object(message)) = last.get_mut("message") {
                message.insert("content".to_owned(), content);
                if let Some(text) = thinking {
                    message.insert("thinking".to_owned(), Value::String(text));
                }
                if let Some(calls) = tool_calls {
                    message.insert("tool_calls".to_owned(), Value::Array(calls));
                }
            }
        } else {
            last.insert("response".to_owned(), content);
            if let Some(text) = thinking {
                last.insert("thinking".to_owned(), Value::String(text));
            }
        }
        if !self.logprobs.is_empty() {
            last.insert("logprobs".to_owned(), Value::Array(std::mem::take(&mut self.logprobs)));
        }
        let result = serde_json::to_vec(&last)
            .map_err(|error| Broken::new(Reason::Garbled, "writing the result failed", error.to_string()))?;
        ended(result.into(), outcome)
    }

    /// Checks the one object that an embedding answers and passes its bytes on as they are.
    fn vectors(&self, text: &str) -> Result<Step, Broken> {
        let map = match serde_json::from_str::<Map<String, Value>>(text) {
            Ok(map) => map,
            Err(_) if text.contains("NaN") || text.contains("Infinity") => {
                return Err(bad_vectors("a number of a vector is not finite"));
            }
            Err(_) => return Err(broken_line(text)),
        };
        if let Some(error) = map.get("error").filter(|error| !error.is_null()) {
            return Err(engine_error(error));
        }
        let Ok(Vectors { embeddings }) = serde_json::from_str::<Vectors>(text) else {
            return Err(bad_vectors("the vectors are not lists of numbers"));
        };
        if embeddings.len() != self.request.inputs {
            return Err(bad_vectors("the number of vectors is not that of the inputs"));
        }
        let length = self.request.dimensions.or(embeddings.first().map(Vec::len)).unwrap_or(0);
        if length == 0 || embeddings.iter().any(|vector| vector.len() != length) {
            return Err(bad_vectors("the vectors have not the length that they should have"));
        }
        if embeddings.iter().flatten().any(|number| !number.is_finite()) {
            return Err(bad_vectors("a number of a vector is not finite"));
        }
        ended(Bytes::copy_from_slice(text.trim().as_bytes()), outcome(&map, "stop", false))
    }
}

/// Says whether the server cut the prompt although it was told not to (`ollama-api.md` §5, check 3).
///
/// A cut prompt counts exactly `n`, or one of two values near `n / 2`. A prompt of such a length may be legal, so
/// the count must also be clearly below the estimate: by a fifth where the bytes per token of this model are
/// known, else by half of bytes / 3, which is six bytes a token and more than plain text has.
fn was_cut(request: &Request, rules: Rules, count: u64) -> bool {
    let n = request.num_ctx;
    let cut = [n, n - n.saturating_sub(4) / 2, n - n.saturating_sub(5) / 2];
    let bytes = request.prompt_bytes as f64;
    let plausible = match rules.bytes_per_token {
        Some(ratio) => bytes / ratio * 0.8,
        None => bytes / 6.0,
    };
    count > 0 && cut.contains(&count) && (count as f64) <= plausible
}

fn ended(result: Bytes, mut outcome: Outcome) -> Result<Step, Broken> {
    if result.len() > MAX_RESULT {
        return Err(too_large());
    }
    outcome.bytes = u32::try_from(result.len()).unwrap_or(u32::MAX);
    outcome.sha256 = Sha256::digest(&result).into();
    Ok(Step::Done(Box::new(Ended { result, outcome })))
}

fn outcome(last: &Map<String, Value>, done_reason: &str, reasoning_only: bool) -> Outcome {
    let micros = |key: &str| last.get(key).and_then(Value::as_u64).unwrap_or(0) / 1_000;
    Outcome {
        done_reason: Text::cut(done_reason),
        prompt_tokens: tokens(last, "prompt_eval_count"),
        output_tokens: tokens(last, "eval_count"),
        reasoning_only,
        load_us: micros("load_duration"),
        prompt_us: micros("prompt_eval_duration"),
        decode_us: micros("eval_duration"),
        total_us: micros("total_duration"),
        ..Outcome::default()
    }
}

fn tokens(last: &Map<String, Value>, key: &str) -> u32 {
    let count = last.get(key).and_then(Value::as_u64).unwrap_or(0);
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn written(values: &[Value]) -> usize {
    values.iter().map(|value| value.to_string().len()).sum()
}

/// Names what is wrong with a line that does not have the shape of one; an error in it still counts first.
fn broken_line(text: &str) -> Broken {
    let error =
        serde_json::from_str::<Map<String, Value>>(text).ok().and_then(|mut map| map.shift_remove("error"));
    match error {
        Some(error) if !error.is_null() => engine_error(&error),
        Some(_) | None => {
            Broken::new(Reason::Garbled, "a line of the answer is not the JSON that it should be", "")
        }
    }
}

fn engine_error(error: &Value) -> Broken {
    let text = error.as_str().map_or_else(|| error.to_string(), str::to_owned);
    let reason = classify::by_text(&text).unwrap_or(Reason::EngineError);
    Broken::new(reason, "the engine reported an error", text)
}

fn bad_vectors(what: &'static str) -> Broken {
    Broken::new(Reason::BadOutput, what, "")
}

fn too_large() -> Broken {
    Broken::new(Reason::ResultTooLarge, "the answer is above 8 MiB", "")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ollama::request::tests::{chat, run};

    fn request(endpoint: Endpoint, body: &Value) -> Request {
        Request::check(run(endpoint, body, 1), false).unwrap()
    }

    fn fold(request: &Request, lines: &[Value]) -> Result<Value, Reason> {
        let mut fold = Fold::new(request, Rules::default());
        for line in lines {
            match fold.line(line.to_string().as_bytes()).map_err(|broken| broken.reason)? {
                Step::More { .. } => {}
                Step::Done(ended) => return Ok(serde_json::from_slice(&ended.result).unwrap()),
            }
        }
        Err(Reason::Incomplete)
    }

    #[test]
    fn texts_thinking_and_calls_are_joined_and_the_rest_is_the_last_lines() {
        let call = |n: u32| json!({"function": {"index": n, "name": "f", "arguments": {"z": 1, "a": 2}}});
        let lines = [
            json!({"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": false}),
            json!({"message": {"role": "assistant", "content": "a", "tool_calls": [call(0)]}, "done": false}),
            json!({"model": "m", "message": {"role": "assistant", "content": "b", "tool_calls": [call(1)]},
                "done": true, "eval_count": 3}),
        ];
        let result = fold(&request(Endpoint::Chat, &chat()), &lines).unwrap();
        let expected = json!({"model": "m", "message": {"role": "assistant", "content": "ab",
            "tool_calls": [call(0), call(1)], "thinking": "hm"}, "done": true, "eval_count": 3});
        assert_eq!(result, expected);
        assert!(result.to_string().contains(r#"{"z":1,"a":2}"#), "the order of keys is the engine's");
    }

    #[test]
    fn the_context_of_generate_is_dropped_unread() {
        let mut body = chat();
        body["prompt"] = json!("the llama");
        let request = request(Endpoint::Generate, &body);
        let line = json!({"response": "x", "done": true, "context": [1, 2, 3]});
        assert_eq!(fold(&request, &[line]), Ok(json!({"response": "x", "done": true})));
    }

    #[test]
    fn an_error_counts_before_anything_else_on_its_line() {
        let request = request(Endpoint::Chat, &chat());
        for (line, reason) in [
            (json!({"error": "CUDA error: out of memory", "done": true}), Reason::OutOfMemory),
            (json!({"error": {"message": "new"}, "done": true}), Reason::EngineError),
            (json!({"error": "whatever", "message": 7, "done": "yes"}), Reason::EngineError),
            (json!({"remote_host": "https://x", "done": true}), Reason::ModelRemote),
            (json!({"done": true, "done_reason": "load"}), Reason::Garbled),
            (json!({"message": 7}), Reason::Garbled),
            (json!([1]), Reason::Garbled),
        ] {
            assert_eq!(fold(&request, std::slice::from_ref(&line)), Err(reason), "{line}");
        }
    }

    #[test]
    fn text_above_eight_mebibytes_is_refused_although_every_line_is_short() {
        let request = request(Endpoint::Chat, &chat());
        let line = json!({"message": {"content": "x".repeat(1 << 20)}, "done": false});
        assert_eq!(fold(&request, &vec![line; 9]), Err(Reason::ResultTooLarge));
    }

    #[test]
    fn a_prompt_is_called_cut_only_when_the_count_and_the_estimate_say_so() {
        let mut body = chat();
        body["messages"][0]["content"] = json!("x".repeat(4 * 256));
        let long = |count: u64, bytes: usize| {
            let mut body = body.clone();
            body["messages"][0]["content"] = json!("x".repeat(bytes));
            let line = json!({"message": {"content": "x"}, "done": true, "prompt_eval_count": count});
            fold(&request(Endpoint::Chat, &body), &[line]).err()
        };
        for count in [256, 130, 131] {
            assert_eq!(long(count, 4 * 600), Some(Reason::PromptCut), "{count}");
        }
        assert_eq!(long(256, 4 * 256), None, "exactly n tokens are legal");
        assert_eq!(long(129, 4 * 600), None, "another count is no sign of a cut");
        assert_eq!(long(130, 4 * 130), None, "nor is the count of a prompt of that length");
    }

    #[test]
    fn vectors_must_be_as_many_as_inputs_equally_long_and_finite() {
        let body = json!({"model": "tiny", "input": ["a", "b"], "truncate": false, "keep_alive": 300,
            "options": {"num_ctx": 256}});
        let request = request(Endpoint::Embed, &body);
        let good = json!({"embeddings": [[0.5, 1], [1, 2]]});
        assert_eq!(fold(&request, std::slice::from_ref(&good)), Ok(good));
        for bad in [
            json!({"embeddings": [[1.0]]}),
            json!({"embeddings": [[1.0], [1.0, 2.0]]}),
            json!({"embeddings": [[], []]}),
            json!({"embeddings": [[1.0], [null]]}),
            json!({}),
        ] {
            assert_eq!(fold(&request, std::slice::from_ref(&bad)), Err(Reason::BadOutput), "{bad}");
        }
        let nan = Fold::new(&request, Rules::default()).line(br#"{"embeddings":[[NaN],[1]]}"#).unwrap_err();
        assert_eq!(nan.reason, Reason::BadOutput);
    }
}
