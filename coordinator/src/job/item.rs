//! One item on its way to a body: what it says, what the job adds, and what Ollama must be told (`ollama-api.md`
//! §5).

use serde_json::{Map, Value, json};
use tropa_proto::message::{Endpoint, MAX_BODY};

use super::{DEFAULT_MAX_TOKENS, InputError, JobOptions, LARGEST_MAX_TOKENS, Shape, Think};

/// How long Ollama keeps the model after a request: above five minutes, and finite, so that a dead job leaves
/// nothing that lasts.
const KEEP_ALIVE: &str = "600s";

/// The options that make Ollama load a model anew (`ollama-api.md` §2.3).
pub(super) const LOAD_OPTIONS: [&str; 7] =
    ["num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"];

/// Tokens that a chat template may put around one message, generously.
pub(super) const TOKENS_PER_MESSAGE: u64 = 10;

/// Tokens of an image: vision models get at least as much context, whatever is asked (`ollama-api.md` §5).
const TOKENS_PER_IMAGE: u64 = 2048;

/// Bytes that `num_ctx` and a model's name may still add to a body that was measured without them.
pub(super) const BODY_RESERVE: usize = 512;

/// One item of an input.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    pub(super) line: u64,
    pub(super) id: String,
    pub(super) shape: Shape,
    pub(super) endpoint: Endpoint,
    pub(super) model: Option<String>,
    /// What is asked, under Ollama's names: `messages`, or `prompt`, or `input`, with `format`, `tools` and so on.
    pub(super) ask: Map<String, Value>,
    pub(super) options: Map<String, Value>,
    pub(super) think: Option<Think>,
    pub(super) metadata: Map<String, Value>,
}

impl Item {
    /// Makes a chat of one message from the user.
    pub(super) fn prompt(line: u64, id: String, prompt: String) -> Self {
        Self::new(line, id, Shape::Text, Endpoint::Chat)
            .ask("messages", json!([{"role": "user", "content": prompt}]))
    }

    pub(super) fn new(line: u64, id: String, shape: Shape, endpoint: Endpoint) -> Self {
        Self {
            line,
            id,
            shape,
            endpoint,
            model: None,
            ask: Map::new(),
            options: Map::new(),
            think: None,
            metadata: Map::new(),
        }
    }

    /// Its system prompt and the first of what is asked, each empty where there is none.
    pub(super) fn beginning(&self) -> (&str, &str) {
        let text = |key: &str| self.ask.get(key).and_then(Value::as_str).unwrap_or_default();
        let Some(Value::Array(messages)) = self.ask.get("messages") else {
            return (text("system"), text("prompt"));
        };
        let content = |system: bool| {
            let mut found = messages.iter().filter(|message| (message["role"] == "system") == system);
            found.next().and_then(|message| message["content"].as_str()).unwrap_or_default()
        };
        (content(true), content(false))
    }

    /// Adds something that is asked.
    pub(super) fn ask(mut self, key: &str, value: Value) -> Self {
        self.ask.insert(key.to_owned(), value);
        self
    }

    /// Adds what the job says and the item does not, and checks the whole.
    pub(super) fn complete(&mut self, job: &JobOptions) -> Result<(), InputError> {
        self.options.retain(|_, value| !value.is_null());
        if let Some(Value::Array(messages)) = self.ask.get_mut("messages") {
            // A message that only calls tools may come without words; Ollama wants the key.
            for message in messages.iter_mut().filter(|message| message["tool_calls"].is_array()) {
                if message["content"].is_null() {
                    message["content"] = "".into();
                }
            }
        }
        if self.endpoint != Endpoint::Embed {
            self.put_option("seed", job.seed.map(Value::from));
            self.put_option("temperature", job.temperature.map(Value::from));
            self.put_option("num_predict", Some(job.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS).into()));
            self.think = self.think.or(job.think).or(Some(Think::Off));
            if let Some(system) = &job.system {
                self.put_system(system);
            }
        }
        if matches!(self.shape, Shape::ChatCompletion | Shape::TextCompletion) {
            // What Ollama's own /v1 does, so that a job gives what the same lines give there.
            self.put_option("temperature", Some(json!(1.0)));
            self.put_option("top_p", Some(json!(1.0)));
        }
        self.check()
    }

    fn put_option(&mut self, key: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.options.entry(key).or_insert(value);
        }
    }

    fn put_system(&mut self, system: &str) {
        match self.endpoint {
            Endpoint::Chat => {
                if let Some(Value::Array(messages)) = self.ask.get_mut("messages")
                    && !messages.iter().any(|message| message["role"] == "system")
                {
                    messages.insert(0, json!({"role": "system", "content": system}));
                }
            }
            Endpoint::Generate => {
                self.ask.entry("system").or_insert_with(|| system.into());
            }
            Endpoint::Embed => {}
        }
    }

    fn check(&self) -> Result<(), InputError> {
        let line = self.line;
        self.check_ask()?;
        if let Some(model) = &self.model {
            check_model(line, model)?;
        }
        if self.endpoint != Endpoint::Embed {
            let predict = self.options.get("num_predict").and_then(Value::as_u64);
            if predict.is_none_or(|tokens| tokens == 0 || tokens > u64::from(LARGEST_MAX_TOKENS)) {
                let what = format!("the limit of tokens is not a number from 1 to {LARGEST_MAX_TOKENS}");
                return Err(InputError::at(line, what, "give a finite number, or leave it out"));
            }
        }
        if self
            .options
            .get("num_ctx")
            .is_some_and(|n| n.as_u64().is_none_or(|n| n == 0 || u32::try_from(n).is_err()))
        {
            return Err(InputError::at(
                line,
                "`num_ctx` is not a number of tokens",
                "leave it out, or use --num-ctx",
            ));
        }
        if self.options.get("seed").is_some_and(|seed| seed.as_i64().is_none()) {
            return Err(InputError::at(
                line,
                "`seed` is not a whole number",
                "give a whole number, or leave it out",
            ));
        }
        let len = self.body("", u32::MAX).len() + BODY_RESERVE;
        if len > MAX_BODY {
            let what = format!("a request of about {len} bytes, and at most {MAX_BODY} fit");
            return Err(InputError::at(line, what, "split it, or use `tropa map` for a long document"));
        }
        Ok(())
    }

    /// Refuses what means "load the model" to Ollama: an ask without content.
    fn check_ask(&self) -> Result<(), InputError> {
        let line = self.line;
        match self.endpoint {
            Endpoint::Chat => {
                let messages = self.ask.get("messages").and_then(Value::as_array);
                let messages = messages.filter(|list| !list.is_empty());
                let Some(messages) = messages else {
                    return Err(InputError::at(
                        line,
                        "`messages` is not a list with messages",
                        "add a message",
                    ));
                };
                for (place, message) in messages.iter().enumerate() {
                    check_message(message).map_err(|what| {
                        let what = format!("message {place} {what}");
                        InputError::at(
                            line,
                            what,
                            "write messages as {\"role\": \"user\", \"content\": \"…\"}",
                        )
                    })?;
                }
                let has_content = |message: &Value| {
                    message["content"].as_str().is_some_and(|text| !text.is_empty())
                        || message["images"].as_array().is_some_and(|images| !images.is_empty())
                };
                if !messages.iter().any(|message| message["role"] != "system" && has_content(message)) {
                    return Err(InputError::at(line, "the prompt is empty", "write one, or delete the item"));
                }
            }
            Endpoint::Generate => {
                if self.ask.get("prompt").and_then(Value::as_str).is_none_or(str::is_empty) {
                    return Err(InputError::at(line, "the prompt is empty", "write one, or delete the item"));
                }
            }
            Endpoint::Embed => {
                let full = |text: &Value| text.as_str().is_some_and(|text| !text.is_empty());
                let fine = match self.ask.get("input") {
                    Some(Value::Array(texts)) => !texts.is_empty() && texts.iter().all(full),
                    Some(text) => full(text),
                    None => false,
                };
                if self
                    .ask
                    .get("dimensions")
                    .is_some_and(|count| count.as_u64().is_none_or(|count| count == 0))
                {
                    return Err(InputError::at(line, "`dimensions` is not a number above 0", "leave it out"));
                }
                if !fine {
                    let what = "`input` is not a text or a list of texts, or one is empty";
                    return Err(InputError::at(line, what, "write texts with at least one character"));
                }
            }
        }
        Ok(())
    }

    /// Estimates the tokens of the prompt: bytes / 3 before the model has answered (`ollama-api.md` §5), and what
    /// templates and images add.
    pub(super) fn prompt_tokens(&self) -> u64 {
        let texts = |value: &Value| match value {
            Value::String(text) => text.len(),
            Value::Array(texts) => texts.iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0),
            other @ Value::Object(_) => other.to_string().len(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        };
        let mut bytes: usize = 0;
        let (mut messages, mut images) =
            (1, self.ask.get("images").and_then(Value::as_array).map_or(0, Vec::len));
        for (key, value) in &self.ask {
            match (key.as_str(), value) {
                ("images", _) => {}
                ("messages", Value::Array(list)) => {
                    messages += list.len();
                    for message in list {
                        bytes += ["content", "thinking", "tool_name"]
                            .iter()
                            .map(|key| texts(&message[key]))
                            .sum::<usize>();
                        bytes += message.get("tool_calls").map_or(0, |calls| calls.to_string().len());
                        images += message["images"].as_array().map_or(0, Vec::len);
                    }
                }
                ("tools", tools) => bytes += tools.to_string().len(),
                (_, value) => bytes += texts(value),
            }
        }
        (bytes as u64).div_ceil(3) + messages as u64 * TOKENS_PER_MESSAGE + images as u64 * TOKENS_PER_IMAGE
    }

    /// Tokens of the answer, at most; 0 for embeddings.
    pub(super) fn num_predict(&self) -> u32 {
        let predict = self.options.get("num_predict").and_then(Value::as_u64).unwrap_or(0);
        u32::try_from(predict).unwrap_or(LARGEST_MAX_TOKENS)
    }

    /// The context that the item needs, in tokens, before rounding.
    pub(super) fn context(&self) -> u64 {
        (self.prompt_tokens() * 115).div_ceil(100) + u64::from(self.num_predict()) + 64
    }

    /// Writes the body for Ollama. `model` stands in where the item names none.
    pub(super) fn body(&self, model: &str, num_ctx: u32) -> Vec<u8> {
        let mut body = Map::new();
        body.insert("model".to_owned(), full_name(self.model.as_deref().unwrap_or(model)).into());
        let generates = self.endpoint != Endpoint::Embed;
        if generates {
            body.insert("stream".to_owned(), true.into());
        }
        body.extend(self.ask.clone());
        if generates {
            body.insert("think".to_owned(), self.think.unwrap_or(Think::Off).value());
        }
        let mut options = self.options.clone();
        options.insert("num_ctx".to_owned(), num_ctx.into());
        body.insert("options".to_owned(), options.into());
        body.insert("truncate".to_owned(), false.into());
        if generates {
            body.insert("shift".to_owned(), false.into());
        }
        body.insert("keep_alive".to_owned(), KEEP_ALIVE.into());
        Value::Object(body).to_string().into_bytes()
    }
}

/// Gives the name of a model with its tag, `latest` where it has none.
#[must_use]
pub fn full_name(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if name.is_empty() || last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

pub(super) fn check_model(line: u64, model: &str) -> Result<(), InputError> {
    // 256 bytes are what the wire takes, `:latest` included.
    if model.is_empty() || model.len() > 248 || model.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(InputError::at(line, "`model` is not a name", "name a model as `ollama list` does"));
    }
    let tag = model.rsplit(':').next().unwrap_or_default().to_ascii_lowercase();
    if model.contains(':') && (tag == "cloud" || tag.ends_with("-cloud")) {
        return Err(InputError::at(line, "`model` runs in Ollama's cloud", "name a model that runs here"));
    }
    Ok(())
}

fn check_message(message: &Value) -> Result<(), &'static str> {
    if !message.is_object() {
        return Err("is not an object");
    }
    if message["role"].as_str().is_none_or(str::is_empty) {
        return Err("has no `role`");
    }
    match &message["content"] {
        Value::String(_) => {}
        Value::Null if message["tool_calls"].is_array() => {}
        Value::Null => return Err("has no `content`"),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            return Err("has a `content` that is no text");
        }
    }
    match &message["images"] {
        Value::Null => Ok(()),
        Value::Array(images) if images.iter().all(Value::is_string) => Ok(()),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            Err("has `images` that are not a list of base64 texts")
        }
    }
}
