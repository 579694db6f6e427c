//! Answers in the shapes of OpenAI's endpoints, for those who asked in them.

use serde_json::{Map, Value, json};

use crate::{
    job::{Origin, Shape},
    journal::{DoneRow, Item, Job},
};

/// Makes the body of a response from Ollama's reply.
pub(super) fn body(
    job: &Job,
    item: &Item,
    origin: &Origin,
    done: &DoneRow,
    mut reply: Map<String, Value>,
) -> Value {
    let id = format!("{}-{}", job.id.short(), item.index);
    let created = job.created_ms / 1000;
    let (prompt, output) = (u64::from(done.prompt_tokens), u64::from(done.output_tokens));
    let usage =
        json!({"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output});
    match origin.shape {
        Shape::ChatCompletion => {
            let mut message = reply.shift_remove("message").unwrap_or_default();
            let calls = message["tool_calls"].take();
            let mut answer = json!({"role": "assistant", "content": message["content"].take()});
            if message["thinking"].as_str().is_some_and(|text| !text.is_empty()) {
                answer["reasoning"] = message["thinking"].take();
            }
            let calls = calls.as_array().map_or(&[][..], Vec::as_slice);
            if !calls.is_empty() {
                answer["tool_calls"] =
                    calls.iter().enumerate().map(|(at, call)| tool_call(&id, at, call)).collect();
            }
            let logprobs =
                reply.shift_remove("logprobs").map_or(Value::Null, |content| json!({"content": content}));
            let finish = if calls.is_empty() { finish(done) } else { "tool_calls" };
            json!({
                "id": format!("chatcmpl-{id}"), "object": "chat.completion", "created": created, "model": item.model,
                "choices": [{"index": 0, "message": answer, "logprobs": logprobs, "finish_reason": finish}],
                "usage": usage,
            })
        }
        Shape::TextCompletion => json!({
            "id": format!("cmpl-{id}"), "object": "text_completion", "created": created, "model": item.model,
            "choices": [{
                "text": reply.shift_remove("response"), "index": 0, "logprobs": null, "finish_reason": finish(done),
            }],
            "usage": usage,
        }),
        Shape::EmbeddingList => {
            let vectors = match reply.shift_remove("embeddings") {
                Some(Value::Array(vectors)) => vectors,
                Some(_) | None => Vec::new(),
            };
            let data: Vec<_> = vectors
                .into_iter()
                .enumerate()
                .map(|(index, vector)| json!({"object": "embedding", "index": index, "embedding": vector}))
                .collect();
            let usage = json!({"prompt_tokens": prompt, "total_tokens": prompt});
            json!({"object": "list", "data": data, "model": item.model, "usage": usage})
        }
        Shape::Native | Shape::Text | Shape::Vectors => {
            // The whole conversation as numbers, which nobody asked for.
            reply.shift_remove("context");
            Value::Object(reply)
        }
    }
}

fn finish(done: &DoneRow) -> &'static str {
    if done.done_reason == "length" { "length" } else { "stop" }
}

/// Turns a call of Ollama's into one of OpenAI's, whose arguments are text.
fn tool_call(id: &str, at: usize, call: &Value) -> Value {
    let own = call["id"].as_str().map_or_else(|| format!("call_{id}-{at}"), ToOwned::to_owned);
    let arguments = match &call["function"]["arguments"] {
        Value::String(text) => text.clone(),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            other.to_string()
        }
    };
    json!({
        "id": own, "index": at, "type": "function",
        "function": {"name": call["function"]["name"], "arguments": arguments},
    })
}
