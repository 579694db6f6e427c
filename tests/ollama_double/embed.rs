//! Embeddings: inputs one by one, vectors that depend on digest and text only.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::ask::Ask;
use super::attempt::Attempt;
use super::clock;
use super::faults::Mode;
use super::http::Out;
use super::record::Outcome;
use super::routes::{Call, QUEUE_FULL};
use super::text::{DIMENSIONS, embedding};
use super::work;

/// Answers `/api/embed`.
pub(crate) async fn embed(call: &mut Call<'_>, out: &mut Out, ask: &Ask) -> io::Result<Outcome> {
    let engine = Arc::clone(call.engine);
    let Some(model) = call.find(&ask.model) else {
        return call.no_model(out, ask).await;
    };
    if let Some(text) = ask.wrong_option() {
        return call.error(out, 500, &text).await;
    }
    if !model.embeds {
        let status = if call.version.at_least(0, 13, 0) { 501 } else { 500 };
        return call.error(out, status, "this model does not support embeddings").await;
    }
    let want = work::want(call, ask, &model);
    if let Some(text) = work::load_fault(call).await {
        return call.error(out, 500, text).await;
    }
    if call.is(Mode::Foreign) {
        work::foreign(&engine, &want, call.fault.as_ref()).await;
    }
    let Ok(mut attempt) = Attempt::begin(&engine, &want).await else {
        return call.error(out, 503, QUEUE_FULL).await;
    };
    let counts: Vec<u64> = ask.texts.iter().map(|text| model.count(text)).collect();
    if ask.truncate == Some(false) && counts.iter().any(|count| *count > attempt.context) {
        attempt.finish();
        let text = if call.version.at_least(0, 13, 0) {
            "the input length exceeds the context length"
        } else {
            "input exceeds maximum context length"
        };
        return call.error(out, 400, text).await;
    }
    if let Some(fault) = call.fault.as_ref() {
        work::before_reading(&mut attempt, fault).await;
    }
    let counted: u64 = counts.iter().map(|count| count.min(&attempt.context)).sum();
    let cost = engine.settings.prefill.saturating_mul(u32::try_from(counted).unwrap_or(u32::MAX));
    attempt.read(engine.settings.first + cost).await;
    if call.is(Mode::Crash) || call.is(Mode::Poison) || call.is(Mode::EmbedCrash) {
        attempt.crash();
        let late = call.version.at_least(0, 13, 0) || call.is(Mode::EmbedCrash);
        let text = "do embedding request: Post \"http://127.0.0.1:1/embedding\": EOF";
        return call.error(out, if late { 400 } else { 500 }, text).await;
    }
    if call.is(Mode::EmbedNan) {
        attempt.finish();
        return call.error(out, 500, "embedding contains NaN or Inf values").await;
    }
    let dimensions = ask.dimensions.unwrap_or(DIMENSIONS).min(DIMENSIONS);
    let vector = |text: &String| embedding(&model.digest, text, dimensions);
    let mut vectors: Vec<Vec<f32>> = ask.texts.iter().map(vector).collect();
    if call.is(Mode::EmbedShort) {
        vectors.pop();
    }
    if let Some(last) = vectors.last_mut().filter(|_| call.is(Mode::EmbedDim)) {
        last.pop();
    }
    let load = attempt.load;
    attempt.finish();
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut reply = json!({"model": ask.model, "embeddings": vectors});
    for (key, number) in [
        ("total_duration", nanos(clock::now() - call.received)),
        ("load_duration", nanos(load)),
        ("prompt_eval_count", counted),
    ] {
        if number > 0 {
            reply[key] = number.into();
        }
    }
    call.json(out, 200, reply.to_string().as_bytes()).await
}
