//! OpenAI Batch lines, run on Ollama's native endpoints (`conventions.md` §1).
//!
//! What has no counterpart is refused with its line and never ignored, but for keys that steer only how an answer
//! is carried or booked: these come back under `metadata`.

use serde_json::{Map, Value, json};
use tropa_proto::message::Endpoint;

use super::{InputError, Shape, Think, item::Item};

/// Keys of a body that change nothing about the answer.
const CARRIED: [&str; 7] =
    ["stream", "stream_options", "user", "store", "metadata", "service_tier", "safety_identifier"];

/// What the job decides alone; a native body that says it is overruled.
const OURS: [&str; 4] = ["stream", "truncate", "shift", "keep_alive"];

/// Makes the item of one batch line. `default_url` stands in where the line has none.
pub(super) fn item(
    line: u64,
    mut object: Map<String, Value>,
    default_url: Option<&str>,
) -> Result<Item, InputError> {
    let Some(Value::String(id)) = object.shift_remove("custom_id") else {
        return Err(InputError::at(line, "no `custom_id`, or it is no text", "give each line its own"));
    };
    if object.shift_remove("method").is_some_and(|method| method != "POST") {
        return Err(InputError::at(line, "`method` is not POST", "write POST, or leave it out"));
    }
    let url = match object.shift_remove("url") {
        Some(Value::String(url)) => url,
        Some(_) => return Err(InputError::at(line, "`url` is no text", "write it as text")),
        None => match default_url {
            Some(url) => url.to_owned(),
            None => return Err(InputError::at(line, "no `url`", "add one, or use --endpoint")),
        },
    };
    let Some(Value::Object(body)) = object.shift_remove("body") else {
        return Err(InputError::at(line, "no `body`, or it is no object", "write the request under `body`"));
    };
    let (shape, endpoint) = match url.as_str() {
        "/v1/chat/completions" => (Shape::ChatCompletion, Endpoint::Chat),
        "/v1/completions" => (Shape::TextCompletion, Endpoint::Generate),
        "/v1/embeddings" => (Shape::EmbeddingList, Endpoint::Embed),
        "/api/chat" => (Shape::Native, Endpoint::Chat),
        "/api/generate" => (Shape::Native, Endpoint::Generate),
        "/api/embed" => (Shape::Native, Endpoint::Embed),
        _ => {
            let known = "use /v1/chat/completions, /v1/completions, /v1/embeddings, /api/chat, /api/generate or /api/embed";
            return Err(InputError::at(line, "an unknown `url`", known));
        }
    };
    let mut item = Item::new(line, id, shape, endpoint);
    item.metadata = object;
    let mut no_tools = false;
    for (key, value) in body {
        let taken = match shape {
            Shape::Native => native(&mut item, &key, value),
            Shape::Text
            | Shape::Vectors
            | Shape::ChatCompletion
            | Shape::TextCompletion
            | Shape::EmbeddingList => openai(&mut item, &key, value, &mut no_tools),
        };
        taken.map_err(|what| {
            let what = format!("`{}` {what}", key.escape_debug());
            InputError::at(line, what, "take it out of `body`, or change it")
        })?;
    }
    if no_tools {
        item.ask.shift_remove("tools");
    }
    // Ollama counts `max_completion_tokens` first; `openai` keeps it under a name that is none of Ollama's.
    if let Some(tokens) = item.options.shift_remove("max_completion_tokens") {
        item.options.insert("num_predict".to_owned(), tokens);
    }
    Ok(item)
}

fn openai(item: &mut Item, key: &str, value: Value, no_tools: &mut bool) -> Result<(), &'static str> {
    if CARRIED.contains(&key) {
        item.metadata.insert(key.to_owned(), value);
        return Ok(());
    }
    if value.is_null() {
        return Ok(());
    }
    let embeds = item.endpoint == Endpoint::Embed;
    match (key, value) {
        ("model", Value::String(model)) => item.model = Some(model),
        ("input", value) if embeds => put(item, "input", value),
        ("dimensions", value) if embeds && value.is_u64() => put(item, "dimensions", value),
        ("encoding_format", Value::String(format)) if embeds && format == "float" => {}
        ("encoding_format", _) if embeds => return Err("is not \"float\""),
        (_, _) if embeds => return Err("has no counterpart for embeddings"),
        ("messages", Value::Array(messages)) if item.endpoint == Endpoint::Chat => {
            let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
            put(item, "messages", messages.into());
        }
        ("prompt", value) if item.endpoint == Endpoint::Generate => match value {
            Value::Array(mut prompts) if prompts.len() == 1 => put(item, "prompt", prompts.remove(0)),
            Value::String(_) => put(item, "prompt", value),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                return Err("is not one text; give each prompt a line of its own");
            }
        },
        ("suffix", value @ Value::String(_)) if item.endpoint == Endpoint::Generate => {
            put(item, "suffix", value)
        }
        ("max_completion_tokens", value) => {
            _ = item.options.insert("max_completion_tokens".to_owned(), value)
        }
        ("max_tokens", value) => _ = item.options.insert("num_predict".to_owned(), value),
        ("temperature" | "top_p" | "presence_penalty" | "frequency_penalty", value) if value.is_number() => {
            item.options.insert(key.to_owned(), value);
        }
        ("seed", value) if value.is_i64() => _ = item.options.insert(key.to_owned(), value),
        ("stop", Value::String(stop)) => _ = item.options.insert(key.to_owned(), json!([stop])),
        ("stop", Value::Array(stops)) if stops.iter().all(Value::is_string) => {
            item.options.insert(key.to_owned(), stops.into());
        }
        ("logprobs", value @ Value::Bool(_)) if item.endpoint == Endpoint::Chat => put(item, key, value),
        ("top_logprobs", value) if value.is_u64() => put(item, key, value),
        ("tools", Value::Array(tools)) if tools.iter().all(Value::is_object) => put(item, key, tools.into()),
        ("tool_choice", Value::String(choice)) if choice == "auto" => {}
        ("tool_choice", Value::String(choice)) if choice == "none" => *no_tools = true,
        ("tool_choice", _) => return Err("is neither \"auto\" nor \"none\""),
        ("response_format", format) => response_format(item, &format)?,
        ("reasoning_effort", Value::String(effort)) => {
            item.think = Some(match effort.as_str() {
                "none" => Think::Off,
                "minimal" | "low" => Think::Low,
                "medium" => Think::Medium,
                "high" => Think::High,
                "xhigh" | "max" => Think::Max,
                _ => return Err("is no known level"),
            });
        }
        ("n" | "best_of", value) if value == 1 => {}
        ("n" | "best_of", _) => return Err("is above 1; write the line several times"),
        ("echo", Value::Bool(false)) => {}
        ("logit_bias", Value::Object(bias)) if bias.is_empty() => {}
        _ => return Err("has no counterpart in Ollama, or the wrong type"),
    }
    Ok(())
}

fn response_format(item: &mut Item, format: &Value) -> Result<(), &'static str> {
    match format["type"].as_str() {
        Some("text") => {}
        Some("json_object") => put(item, "format", "json".into()),
        Some("json_schema") => {
            let schema = &format["json_schema"]["schema"];
            if !schema.is_object() {
                return Err("has no schema");
            }
            put(item, "format", schema.clone());
        }
        _ => return Err("has an unknown type"),
    }
    Ok(())
}

/// Turns a message of `/v1` into one of Ollama's.
fn message(message: Value) -> Result<Value, &'static str> {
    let Value::Object(mut from) = message else { return Err("holds something that is no object") };
    let mut to = Map::new();
    let role = match from.shift_remove("role") {
        Some(Value::String(role)) if role == "developer" => "system".into(),
        Some(role @ Value::String(_)) => role,
        _ => return Err("holds a message without `role`"),
    };
    to.insert("role".to_owned(), role);
    match from.shift_remove("content") {
        Some(Value::Array(parts)) => {
            let (mut texts, mut images) = (Vec::new(), Vec::new());
            for part in parts {
                match part["type"].as_str() {
                    Some("text") => {
                        texts.push(part["text"].as_str().ok_or("holds a text part without text")?.to_owned())
                    }
                    Some("image_url") => images.push(image(&part["image_url"])?),
                    _ => return Err("holds a part that is neither text nor image"),
                }
            }
            to.insert("content".to_owned(), texts.join("\n").into());
            if !images.is_empty() {
                to.insert("images".to_owned(), images.into());
            }
        }
        Some(Value::Null) | None => _ = to.insert("content".to_owned(), "".into()),
        Some(text) => _ = to.insert("content".to_owned(), text),
    }
    for (key, value) in from {
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            ("tool_calls", Value::Array(calls)) => {
                let calls = calls.iter().map(tool_call).collect::<Result<Vec<_>, _>>()?;
                to.insert(key, calls.into());
            }
            ("tool_call_id", value) => _ = to.insert(key, value),
            ("name", value) if to["role"] == "tool" => _ = to.insert("tool_name".to_owned(), value),
            ("reasoning" | "reasoning_content", value @ Value::String(_)) => {
                _ = to.insert("thinking".to_owned(), value)
            }
            // Who said it, and what OpenAI's own answers carry back: Ollama's templates have no place for them.
            ("name" | "refusal" | "annotations", _) => {}
            _ => return Err("holds a message with a key that has no counterpart"),
        }
    }
    Ok(to.into())
}

/// Gives the base64 text of an image that is written into its URL.
fn image(image: &Value) -> Result<Value, &'static str> {
    let url = image["url"].as_str().or(image.as_str()).ok_or("holds an image without `url`")?;
    let data = url.strip_prefix("data:").and_then(|data| data.split_once(";base64,"));
    data.map(|(_, data)| data.into()).ok_or("holds an image by address; write it as data:image/png;base64,…")
}

/// Turns the arguments of a call from text into the object that Ollama wants.
fn tool_call(call: &Value) -> Result<Value, &'static str> {
    let mut call = call.clone();
    if let Some(text) = call["function"]["arguments"].as_str() {
        let arguments: Map<String, Value> =
            serde_json::from_str(text).map_err(|_| "holds a tool call whose arguments are no JSON object")?;
        call["function"]["arguments"] = arguments.into();
    }
    Ok(call)
}

fn native(item: &mut Item, key: &str, value: Value) -> Result<(), &'static str> {
    if CARRIED.contains(&key) || OURS.contains(&key) {
        item.metadata.insert(key.to_owned(), value);
        return Ok(());
    }
    match (key, value) {
        (_, Value::Null) => {}
        ("model", Value::String(model)) => item.model = Some(model),
        ("model", _) => return Err("is no text"),
        ("options", Value::Object(options)) => item.options = options,
        ("options", _) => return Err("is no object"),
        ("think", value) => item.think = Some(Think::from_value(&value).ok_or("is no boolean and no level")?),
        ("system" | "prompt" | "suffix" | "template", value) if !value.is_string() => {
            let _ = value;
            return Err("is no text");
        }
        (_, value) if allowed(item.endpoint).contains(&key) => put(item, key, value),
        _ => return Err("is no key of this endpoint"),
    }
    Ok(())
}

fn allowed(endpoint: Endpoint) -> &'static [&'static str] {
    match endpoint {
        Endpoint::Chat => &["messages", "format", "tools", "logprobs", "top_logprobs"],
        Endpoint::Generate => {
            &["prompt", "system", "suffix", "template", "raw", "images", "format", "logprobs", "top_logprobs"]
        }
        Endpoint::Embed => &["input", "dimensions"],
    }
}

fn put(item: &mut Item, key: &str, value: Value) {
    item.ask.insert(key.to_owned(), value);
}
