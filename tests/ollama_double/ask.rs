//! What a client asks, read the way Ollama reads it: lenient about what it does not know, strict about the types
//! of what it does.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::clock::FOREVER;
use super::model::Version;

/// The three endpoints that work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Generate,
    Embed,
}

/// A request for work.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) kind: Kind,
    pub(crate) model: String,
    /// The texts that the model reads: one per message, or per input of an embedding.
    pub(crate) texts: Vec<String>,
    /// What the answer depends on besides model and seed.
    pub(crate) key: Vec<u8>,
    pub(crate) stream: bool,
    pub(crate) format: Option<Value>,
    pub(crate) options: Map<String, Value>,
    pub(crate) think: Option<Value>,
    pub(crate) truncate: Option<bool>,
    pub(crate) shift: Option<bool>,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) tools: Vec<Value>,
    pub(crate) dimensions: Option<usize>,
    pub(crate) logprobs: bool,
}

#[derive(Deserialize)]
struct Body {
    model: Option<String>,
    messages: Option<Vec<Value>>,
    prompt: Option<String>,
    system: Option<String>,
    input: Option<Value>,
    stream: Option<bool>,
    format: Option<Value>,
    options: Option<Map<String, Value>>,
    think: Option<Value>,
    truncate: Option<bool>,
    shift: Option<bool>,
    keep_alive: Option<Value>,
    tools: Option<Vec<Value>>,
    dimensions: Option<usize>,
    logprobs: Option<bool>,
}

impl Ask {
    /// Reads a body; the error is the text of a 400.
    pub(crate) fn read(kind: Kind, body: &[u8]) -> Result<Self, String> {
        if body.is_empty() {
            return Err("missing request body".to_owned());
        }
        let body: Body = serde_json::from_slice(body).map_err(|error| format!("json: {error}"))?;
        let model = body.model.filter(|name| !name.is_empty()).ok_or("model is required")?;
        let (texts, key) = match kind {
            Kind::Chat => {
                let messages = body.messages.unwrap_or_default();
                let content = |message: &Value| {
                    message.get("content").and_then(Value::as_str).unwrap_or_default().to_owned()
                };
                (messages.iter().map(content).collect(), serde_json::to_vec(&messages).unwrap_or_default())
            }
            Kind::Generate => {
                let prompt = body.prompt.unwrap_or_default();
                let system = body.system.filter(|text| !text.is_empty());
                let key = format!("{}\0{prompt}", system.as_deref().unwrap_or_default()).into_bytes();
                let texts =
                    if prompt.is_empty() { Vec::new() } else { system.into_iter().chain([prompt]).collect() };
                (texts, key)
            }
            Kind::Embed => (inputs(body.input)?, Vec::new()),
        };
        Ok(Self {
            kind,
            model,
            texts,
            key,
            stream: body.stream.unwrap_or(true) && kind != Kind::Embed,
            format: body.format.filter(|format| !format.is_null() && format.as_str() != Some("")),
            options: body.options.unwrap_or_default(),
            think: body.think.filter(|think| !think.is_null()),
            truncate: body.truncate,
            shift: body.shift,
            keep_alive: body.keep_alive.map(|value| keep_alive(&value)).transpose()?,
            tools: body.tools.unwrap_or_default(),
            dimensions: body.dimensions.filter(|count| *count > 0),
            logprobs: body.logprobs.unwrap_or(false),
        })
    }

    /// The prompt as conditions of faults see it.
    pub(crate) fn prompt(&self) -> String {
        self.texts.join("\n")
    }

    /// An option that is a number; Ollama cuts 1.7 down to 1.
    pub(crate) fn whole(&self, option: &str) -> Option<i64> {
        let value = self.options.get(option)?;
        value.as_i64().or_else(|| value.as_f64().map(|number| number as i64))
    }

    /// What is wrong with the type of an option, in Ollama's words.
    pub(crate) fn wrong_option(&self) -> Option<String> {
        self.options.iter().filter(|(_, value)| !value.is_null()).find_map(|(name, value)| {
            let kind = match name.as_str() {
                "num_ctx" | "num_batch" | "num_gpu" | "main_gpu" | "num_thread" | "draft_num_predict"
                | "num_predict" | "seed" | "top_k" | "repeat_last_n" | "num_keep" => "type integer",
                "temperature" | "top_p" | "min_p" | "typical_p" | "repeat_penalty" | "presence_penalty"
                | "frequency_penalty" => "type float32",
                "use_mmap" => "type boolean",
                "stop" => "type array",
                _ => return None,
            };
            let right = match kind {
                "type boolean" => value.is_boolean(),
                "type array" => {
                    let Some(list) = value.as_array() else {
                        return Some(format!("option \"{name}\" must be of {kind}"));
                    };
                    if !list.iter().all(Value::is_string) {
                        return Some(format!("option \"{name}\" must be of an array of strings"));
                    }
                    true
                }
                _ => value.is_number(),
            };
            (!right).then(|| format!("option \"{name}\" must be of {kind}"))
        })
    }

    /// What is wrong with `format`, in Ollama's words.
    pub(crate) fn wrong_format(&self) -> Option<String> {
        let format = self.format.as_ref()?;
        let fine = format.is_object() || format.as_str() == Some("json");
        (!fine).then(|| {
            let quoted = Value::String(format.to_string());
            format!("invalid format: {quoted}; expected \"json\" or a valid JSON Schema object")
        })
    }

    /// The options that a loaded model has to have, in one form.
    pub(crate) fn load_options(&self, version: &Version, context: u64) -> String {
        const NAMES: [&str; 6] =
            ["num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"];
        let mut form = format!("num_ctx={context}");
        for name in NAMES {
            if let Some(value) = self.options.get(name).filter(|value| !value.is_null()) {
                form.push_str(&format!(" {name}={value}"));
            }
        }
        if version.at_least(0, 30, 0) {
            form.push_str(&format!(" shift={}", self.shift.unwrap_or(true)));
        }
        form
    }
}

fn inputs(input: Option<Value>) -> Result<Vec<String>, String> {
    let invalid = || "invalid input type".to_owned();
    match input {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(if text.is_empty() { Vec::new() } else { vec![text] }),
        Some(Value::Array(list)) => {
            list.into_iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(invalid)).collect()
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => Err(invalid()),
    }
}

/// Seconds, or a duration as Go writes it; below zero is forever.
fn keep_alive(value: &Value) -> Result<Duration, String> {
    let seconds = |number: f64| {
        if number < 0.0 {
            FOREVER
        } else {
            Duration::try_from_secs_f64(number).unwrap_or(FOREVER).min(FOREVER)
        }
    };
    if let Some(number) = value.as_f64() {
        return Ok(seconds(number));
    }
    let text = value.as_str().ok_or_else(|| format!("invalid keep_alive: {value}"))?;
    go_duration(text).map(seconds).ok_or_else(|| format!("time: invalid duration \"{text}\""))
}

/// `"1h30m"`, `"600s"`, `"-1m"`, `"1.5h"`, in seconds.
fn go_duration(text: &str) -> Option<f64> {
    let (sign, mut rest) = text.strip_prefix('-').map_or((1.0, text), |rest| (-1.0, rest));
    if rest == "0" {
        return Some(0.0);
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        sum += number
            * match &rest[digits..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(sign * sum)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keep_alive_reads_seconds_and_go_durations() {
        let read = |value: Value| keep_alive(&value).map(|time| time.as_millis());
        assert_eq!(read(json!("1h30m")), Ok(5_400_000));
        assert_eq!(read(json!("600s")), Ok(600_000));
        assert_eq!(read(json!(0)), Ok(0));
        assert_eq!(read(json!(-1)), Ok(FOREVER.as_millis()));
        assert!(read(json!("soon")).is_err() && read(json!("")).is_err());
    }

    #[test]
    fn a_wrong_type_is_named_and_an_unknown_option_is_not() {
        let ask = |options: Value| {
            let body = json!({"model": "m", "messages": [], "options": options}).to_string();
            Ask::read(Kind::Chat, body.as_bytes()).unwrap()
        };
        let wrong = ask(json!({"temperature": "hot"})).wrong_option();
        assert_eq!(wrong.as_deref(), Some("option \"temperature\" must be of type float32"));
        assert_eq!(ask(json!({"nonsense": "x", "top_k": null, "seed": 1.7})).wrong_option(), None);
        assert_eq!(ask(json!({"seed": 1.7})).whole("seed"), Some(1));
    }
}
