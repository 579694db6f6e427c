//! One item as one line of JSON (`conventions.md` §2).

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tropa_proto::failure::{Class, Reason};

use super::batch;
use crate::{
    job::{Origin, Shape},
    journal::{AttemptRow, Decided, DoneRow, Item, Job},
};

/// What the journal keeps of the times of a result.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Metrics {
    reasoning_only: bool,
    wait_ms: u64,
    wall_us: u64,
    load_us: u64,
    prompt_us: u64,
    decode_us: u64,
}

/// What stands in the line of an item that has no usable answer.
struct Trouble {
    code: String,
    reason: String,
    message: String,
}

/// Makes the line of one finished item, without its line end.
///
/// Batch items give OpenAI's batch form, all others the short form. A result that is not what its endpoint
/// returns, which only a broken or hostile agent can bring, is told as `engine_error` and never as content.
#[must_use]
pub fn line(job: &Job, item: &Item) -> String {
    let origin = serde_json::from_str(&item.origin).unwrap_or_else(|_| unknown(item.index));
    let (answer, trouble) = match &item.decided {
        Decided::Done(done) => match reply(done, origin.shape) {
            Some(reply) => (Some((done.as_ref(), reply)), None),
            None => (None, Some(garbled())),
        },
        Decided::Failed(failed) => {
            let reason = item.attempts.iter().rev().find_map(|attempt| attempt.reason.clone());
            let message = Some(failed.detail.as_str()).filter(|text| !text.is_empty());
            let last = item.attempts.iter().rev().find_map(|attempt| attempt.detail.as_deref());
            let message = message.or(last).filter(|text| !text.is_empty()).unwrap_or(&failed.class);
            let (code, reason) = (failed.class.clone(), reason.unwrap_or_else(|| failed.class.clone()));
            (None, Some(Trouble { code, reason, message: message.to_owned() }))
        }
    };
    let tropa = tropa(job, item, &origin);
    let error =
        trouble.map_or(Value::Null, |t| json!({"code": t.code, "reason": t.reason, "message": t.message}));
    let line = match origin.shape {
        Shape::Text | Shape::Vectors => short(&origin, answer.map(|(_, reply)| reply), error, tropa),
        Shape::ChatCompletion | Shape::TextCompletion | Shape::EmbeddingList | Shape::Native => {
            let request = format!("{}_{}", job.id.short(), item.index);
            let response = answer.map_or(Value::Null, |(done, reply)| {
                let request_id = format!("{}-{}-{}", job.id.short(), item.index, done.no);
                json!({"status_code": 200, "request_id": request_id, "body": batch::body(job, item, &origin, done, reply)})
            });
            let mut line = json!({
                "id": format!("batch_req_{request}"), "custom_id": origin.id, "response": response, "error": error,
            });
            if !origin.metadata.is_empty() {
                line["metadata"] = Value::Object(origin.metadata);
            }
            line["tropa"] = tropa;
            line
        }
    };
    line.to_string()
}

/// Reads a result as what its shape needs; `None` for anything else.
fn reply(done: &DoneRow, shape: Shape) -> Option<Map<String, Value>> {
    let Ok(Value::Object(reply)) = serde_json::from_slice(&done.body) else { return None };
    let vectors = || reply.get("embeddings").is_some_and(Value::is_array);
    let content = || reply.get("message").is_some_and(|message| message["content"].is_string());
    let response = || reply.get("response").is_some_and(Value::is_string);
    let fits = match shape {
        Shape::Text | Shape::ChatCompletion => content(),
        Shape::TextCompletion => response(),
        Shape::Vectors | Shape::EmbeddingList => vectors(),
        Shape::Native => vectors() || content() || response(),
    };
    fits.then_some(reply)
}

fn short(origin: &Origin, reply: Option<Map<String, Value>>, error: Value, tropa: Value) -> Value {
    let mut line = json!({"id": origin.id});
    let mut reply = reply.unwrap_or_default();
    if origin.shape == Shape::Vectors {
        line["embeddings"] = reply.shift_remove("embeddings").unwrap_or_default();
    } else {
        let mut message = reply.shift_remove("message").unwrap_or_default();
        line["text"] = message["content"].take();
        for key in ["thinking", "tool_calls"] {
            if let Some(value) = message.get_mut(key).filter(|value| !value.is_null() && **value != "") {
                line[key] = value.take();
            }
        }
        if let Some(logprobs) = reply.shift_remove("logprobs") {
            line["logprobs"] = logprobs;
        }
    }
    line["error"] = error;
    line["metadata"] = Value::Object(origin.metadata.clone());
    line["tropa"] = tropa;
    line
}

/// Makes the object that tells how a result came about.
fn tropa(job: &Job, item: &Item, origin: &Origin) -> Value {
    let mut tropa = json!({"schema": "tropa.result/1", "job": job.id.short(), "index": item.index});
    let no = match &item.decided {
        Decided::Done(done) => Some(done.no),
        Decided::Failed(failed) => failed.no,
    };
    tropa["attempt"] = json!(no);
    if let Some(attempt) = item.attempts.iter().find(|attempt| Some(attempt.no) == no) {
        tropa["machine"] = attempt.machine.to_string().into();
        tropa["agent"] = attempt.agent.short().into();
        tropa["lane"] =
            attempt.lane.split(',').filter(|device| !device.is_empty()).collect::<Vec<_>>().into();
    }
    tropa["model"] = item.model.as_str().into();
    if let Decided::Done(done) = &item.decided {
        tropa["fingerprint"] = done.fingerprint.as_str().into();
        tropa["digest"] = done.digest.as_str().into();
    }
    tropa["num_ctx"] = origin.num_ctx.into();
    tropa["seed"] = json!(origin.seed);
    if let Decided::Done(done) = &item.decided {
        let metrics: Metrics = serde_json::from_str(&done.metrics).unwrap_or_default();
        tropa["done_reason"] = done.done_reason.as_str().into();
        tropa["truncated"] = (done.done_reason == "length").into();
        tropa["reasoning_only"] = metrics.reasoning_only.into();
        tropa["prompt_tokens"] = done.prompt_tokens.into();
        tropa["output_tokens"] = done.output_tokens.into();
        tropa["wait_ms"] = metrics.wait_ms.into();
        for (key, us) in [
            ("load_ms", metrics.load_us),
            ("prompt_ms", metrics.prompt_us),
            ("decode_ms", metrics.decode_us),
            ("wall_ms", metrics.wall_us),
        ] {
            tropa[key] = (us / 1000).into();
        }
        tropa["tokens_per_s"] = rate(done.output_tokens, metrics.decode_us);
    }
    // The deciding attempt of a result is told above; of a failure it is one among those that failed.
    let told = if matches!(item.decided, Decided::Done(_)) { no } else { None };
    tropa["attempts"] =
        item.attempts.iter().filter(|a| Some(a.no) != told).map(attempt).collect::<Vec<_>>().into();
    tropa
}

fn attempt(attempt: &AttemptRow) -> Value {
    json!({
        "no": attempt.no, "machine": attempt.machine.to_string(), "class": attempt.class,
        "reason": attempt.reason.as_ref().or(attempt.class.as_ref()), "ms": attempt.ms,
    })
}

/// Tokens a second with one digit behind the point; null where the time is not known.
fn rate(tokens: u32, decode_us: u64) -> Value {
    if decode_us == 0 {
        return Value::Null;
    }
    // A job's times are far below 2^53 microseconds, so nothing is lost.
    let rate = f64::from(tokens) * 1e6 / decode_us as f64;
    json!((rate * 10.0).round() / 10.0)
}

fn garbled() -> Trouble {
    Trouble {
        code: Class::EngineError.name().to_owned(),
        reason: Reason::Garbled.name().to_owned(),
        message: "the result is not what the endpoint returns".to_owned(),
    }
}

/// Stands in for an origin that cannot be read, so that the item still has its line.
pub(super) fn unknown(index: u32) -> Origin {
    Origin {
        id: index.to_string(),
        line: 0,
        stage: None,
        shape: Shape::Text,
        num_ctx: 0,
        seed: None,
        num_predict: 0,
        prompt_tokens: 0,
        prefix: 0,
        metadata: Map::new(),
    }
}
