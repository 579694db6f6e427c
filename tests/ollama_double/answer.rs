//! What the answer to a request will be, decided before its first token; nothing here takes time.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::Settings;
use super::ask::{Ask, Kind};
use super::faults::Mode;
use super::model::{Model, Version};
use super::text::{Draw, pieces};

/// Tokens that a thinking model thinks.
const THOUGHTS: u64 = 8;

/// The most contexts that one answer can fill, as in Ollama.
const MAX_CONTEXTS: u64 = 10;

/// Equal tokens in a row that are sent; the next one ends the answer without `done`.
pub(crate) const MAX_EQUAL: usize = 31;

/// An answer, token by token.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) thinking: Vec<String>,
    pub(crate) content: Vec<String>,
    pub(crate) tool_call: Option<Value>,
    pub(crate) reason: &'static str,
}

/// How many tokens the answer may have at most.
pub(crate) fn room(ask: &Ask, version: &Version, context: u64, prompt: u64) -> u64 {
    let asked =
        ask.whole("num_predict").and_then(|count| u64::try_from(count).ok()).filter(|count| *count > 0);
    let most = asked.unwrap_or(u64::MAX).min(context * MAX_CONTEXTS);
    if ask.shift == Some(false) && version.at_least(0, 12, 6) {
        // A prompt that fills the context exactly still gets one token.
        return most.min((context + 1).saturating_sub(prompt).max(1));
    }
    most
}

impl Answer {
    /// Decides the answer; `room` is the most tokens that it may have.
    pub(crate) fn new(
        ask: &Ask,
        model: &Model,
        settings: &Settings,
        room: u64,
        mode: Option<Mode>,
        version: &Version,
    ) -> Self {
        let seed = ask.whole("seed").unwrap_or(0).to_le_bytes();
        let draw = Draw::new(&[model.digest.as_bytes(), settings.salt.as_bytes(), &ask.key, &seed]);
        let off = ask.think.as_ref().is_some_and(|think| think == &Value::Bool(false));
        let thinks = model.can("thinking") && version.at_least(0, 9, 0) && !off;
        let words =
            |from: u64, count: u64| (from..from + count).map(|nth| draw.word(nth)).collect::<Vec<_>>();
        if mode == Some(Mode::OnlyThinking) {
            let count = if room == u64::MAX { draw.length() } else { room.min(1000) };
            return Self {
                thinking: words(0, count),
                content: Vec::new(),
                tool_call: None,
                reason: "length",
            };
        }
        let mut thinking = if thinks { words(1_000_000, THOUGHTS) } else { Vec::new() };
        let cut = |text: &str| pieces(text, model.bytes_per_token);
        let prompt = ask.texts.last().map_or("", String::as_str);
        let reply = settings.replies.iter().find(|(part, _)| prompt.contains(part.as_str()));
        let mut tool_call = None;
        let mut content = if mode == Some(Mode::Repeats) {
            vec![" llama".to_owned(); MAX_EQUAL + 1]
        } else if let Some((_, text)) = reply {
            cut(text)
        } else if settings.echo {
            cut(prompt)
        } else if let Some(format) = &ask.format {
            let schema = if format.is_object() { format } else { &json!({"type": "object"}) };
            cut(&draw.example(schema).to_string())
        } else if let Some(tool) = ask.tools.first().filter(|_| ask.kind == Kind::Chat) {
            tool_call = Some(call_of(tool, &draw));
            Vec::new()
        } else {
            words(0, settings.tokens.unwrap_or_else(|| draw.length()))
        };
        stop(&mut content, ask);
        let natural = (thinking.len() + content.len()) as u64 + u64::from(tool_call.is_some());
        let left = usize::try_from(room).unwrap_or(usize::MAX);
        thinking.truncate(left);
        content.truncate(left - thinking.len());
        if natural > room {
            tool_call = None;
        }
        Self { thinking, content, tool_call, reason: if natural > room { "length" } else { "stop" } }
    }
}

/// Ends the content where one of the stop texts begins.
fn stop(content: &mut Vec<String>, ask: &Ask) {
    let stops = ask.options.get("stop").and_then(Value::as_array);
    let text = content.concat();
    let stops = stops.into_iter().flatten().filter_map(Value::as_str).filter(|stop| !stop.is_empty());
    let Some(mut left) = stops.filter_map(|stop| text.find(stop)).min() else { return };
    for piece in content.iter_mut() {
        let keep = left.min(piece.len());
        piece.truncate(keep);
        left -= keep;
    }
    content.retain(|piece| !piece.is_empty());
}

fn call_of(tool: &Value, draw: &Draw) -> Value {
    let function = tool.get("function").unwrap_or(&Value::Null);
    let arguments = draw.example(function.get("parameters").unwrap_or(&json!({"type": "object"})));
    let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
    json!({"id": format!("call_{:08x}", draw.number(0) as u32),
        "function": {"index": 0, "name": name, "arguments": arguments}})
}

/// One line of a stream, or a whole reply.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Line<'a> {
    pub(crate) model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remote_model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remote_host: Option<&'a str>,
    pub(crate) created_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<&'a str>,
    pub(crate) done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) done_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) context: Option<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logprobs: Option<Value>,
    #[serde(flatten)]
    pub(crate) metrics: Option<Metrics>,
}

#[derive(Debug, Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[&'a Value; 1]>,
}

/// Nanoseconds and counts; zeros are omitted.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Metrics {
    #[serde(skip_serializing_if = "is_zero")]
    total_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    load_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) prompt_eval_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    prompt_eval_duration: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) eval_count: u64,
    #[serde(skip_serializing_if = "is_zero")]
    eval_duration: u64,
}

impl Metrics {
    pub(crate) fn new(
        total: Duration,
        load: Duration,
        prompt: (u64, Duration),
        eval: (u64, Duration),
    ) -> Self {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self {
            total_duration: nanos(total),
            load_duration: nanos(load),
            prompt_eval_count: prompt.0,
            prompt_eval_duration: nanos(prompt.1),
            eval_count: eval.0,
            eval_duration: nanos(eval.1),
        }
    }
}

impl<'a> Line<'a> {
    /// A line with text, in the shape of its endpoint.
    pub(crate) fn new(kind: Kind, model: &'a str, created_at: &'a str, content: &'a str) -> Self {
        Self { model, created_at, ..Self::default() }.with(kind, content)
    }

    fn with(mut self, kind: Kind, content: &'a str) -> Self {
        match kind {
            Kind::Chat => {
                self.message = Some(Message { role: "assistant", content, thinking: None, tool_calls: None });
            }
            Kind::Generate | Kind::Embed => self.response = Some(content),
        }
        self
    }

    pub(crate) fn thinking(mut self, text: &'a str) -> Self {
        let text = Some(text).filter(|text| !text.is_empty());
        match &mut self.message {
            Some(message) => message.thinking = text,
            None => self.thinking = text,
        }
        self
    }

    pub(crate) fn tool_call(mut self, call: &'a Value) -> Self {
        if let Some(message) = &mut self.message {
            message.tool_calls = Some([call]);
        }
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        // Strings, numbers and booleans under string keys: there is nothing that could fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
