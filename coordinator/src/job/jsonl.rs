//! Plain JSONL: one object a line with `prompt`, `messages` or `input`.

use serde_json::{Map, Value, json};
use tropa_proto::message::Endpoint;

use super::{InputError, Shape, Think, item::Item};

/// Reads one line as an object.
pub(super) fn object(line: u64, text: &str) -> Result<Map<String, Value>, InputError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => {
            Err(InputError::at(line, "not a JSON object", "write one object a line, or use --input lines"))
        }
        Err(error) => {
            // serde_json's text ends in a line that is always 1; only the column helps.
            let what = format!("not JSON at column {} ({:?} error)", error.column(), error.classify());
            Err(InputError::at(line, what, "write one JSON object a line, or use --input lines"))
        }
    }
}

/// Makes the item of one object. Unknown keys become metadata.
pub(super) fn item(line: u64, mut object: Map<String, Value>) -> Result<Item, InputError> {
    let asks: Vec<_> =
        ["prompt", "messages", "input"].into_iter().filter(|key| object.contains_key(*key)).collect();
    let [ask] = asks[..] else {
        let what = match asks[..] {
            [] => "none of `prompt`, `messages` and `input`".to_owned(),
            _ => format!("`{}` at once", asks.join("` and `")),
        };
        return Err(InputError::at(line, what, "give each item exactly one of them"));
    };
    let id = match object.shift_remove("id") {
        None | Some(Value::Null) => line.to_string(),
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) => id.to_string(),
        Some(_) => return Err(InputError::at(line, "`id` is no text and no number", "write it as text")),
    };
    let value = object.shift_remove(ask).unwrap_or_default();
    let mut item = match (ask, value) {
        ("prompt", Value::String(prompt)) => Item::prompt(line, id, prompt),
        ("prompt", _) => return Err(InputError::at(line, "`prompt` is no text", "write it as text")),
        ("messages", messages) => Item::new(line, id, Shape::Text, Endpoint::Chat).ask("messages", messages),
        (_, input) => Item::new(line, id, Shape::Vectors, Endpoint::Embed).ask("input", input),
    };
    let embeds = item.endpoint == Endpoint::Embed;
    for (key, value) in object {
        let known = take(&mut item, &key, &value).map_err(|what| {
            InputError::at(line, format!("`{key}` {what}"), "see `tropa run --help` for the keys of an item")
        })?;
        if known && embeds && !matches!(key.as_str(), "model" | "options") {
            let what = format!("`{key}` means nothing for an embedding");
            return Err(InputError::at(line, what, "leave it out"));
        }
        if !known {
            item.metadata.insert(key, value);
        }
    }
    Ok(item)
}

/// Takes a key that may stand beside the ask; `false` for one that means nothing to us.
fn take(item: &mut Item, key: &str, value: &Value) -> Result<bool, &'static str> {
    match (key, value) {
        ("model" | "system" | "options" | "format" | "think" | "tools", Value::Null) => {}
        ("model", Value::String(model)) => item.model = Some(model.clone()),
        ("model", _) => return Err("is no text"),
        ("system", Value::String(system)) => put_system(item, system)?,
        ("system", _) => return Err("is no text"),
        ("options", Value::Object(options)) => item.options = options.clone(),
        ("options", _) => return Err("is no object"),
        ("format", Value::Object(_)) => _ = item.ask.insert("format".to_owned(), value.clone()),
        ("format", Value::String(json)) if json == "json" => {
            _ = item.ask.insert("format".to_owned(), value.clone())
        }
        ("format", _) => return Err("is neither \"json\" nor a schema"),
        ("think", value) => item.think = Some(Think::from_value(value).ok_or("is no boolean and no level")?),
        ("tools", Value::Array(tools)) if tools.iter().all(Value::is_object) => {
            item.ask.insert("tools".to_owned(), value.clone());
        }
        ("tools", _) => return Err("is no list of objects"),
        _ => return Ok(false),
    }
    Ok(true)
}

fn put_system(item: &mut Item, system: &str) -> Result<(), &'static str> {
    if let Some(Value::Array(messages)) = item.ask.get_mut("messages") {
        if messages.iter().any(|message| message["role"] == "system") {
            return Err("stands beside a system message");
        }
        messages.insert(0, json!({"role": "system", "content": system}));
    }
    Ok(())
}
