//! What a failure of the engine is called: by its text first, by the HTTP code second (`ollama-api.md` §4.2, §4.3).
//!
//! HTTP 500 may be the user's fault, and a 400 from `/api/embed` may be a crash, so the code alone says little.
//! The engine's text may itself be JSON, passed on from its inner runner, so the search looks inside it too.

use serde_json::Value;
use tropa_proto::{bounded::Text, failure::Reason, message::Endpoint};

use super::client::Kind;

/// Levels of JSON in JSON that are looked into: the outer object, the runner's, and one to spare.
const MAX_NESTING: usize = 3;

/// The texts, in order: the first row that matches wins.
const TEXTS: &[(&[&str], Reason)] = &[
    (&["maximum pending requests exceeded"], Reason::QueueFull),
    (&["try pulling it first"], Reason::ModelMissing),
    (
        &[
            "exceeds the available context",
            "exceed_context_size",
            "exceeds the context length",
            "prompt is longer than the context length",
            "exceeds maximum context",
        ],
        Reason::TooLong,
    ),
    (
        &[
            "out of memory",
            "out of device memory",
            "failed to allocate",
            "allocation failed",
            "not enough memory",
            "insufficient memory",
            "cudamalloc failed",
            "hipmalloc failed",
            "requires more system memory",
            "out_of_device_memory",
            "erroroutofmemory",
        ],
        Reason::OutOfMemory,
    ),
    (
        &[
            "timed out waiting for llama",
            "process has terminated",
            "may be incompatible with your version",
            "failed to load model",
            "error starting",
            "unable to load full model",
        ],
        Reason::LoadFailed,
    ),
    (
        &[
            "model runner has unexpectedly stopped",
            "an error was encountered while running the model",
            "no longer running",
            "error reading llama-server",
            "error unmarshalling llama",
            "error reading llm response",
            "error unmarshalling llm prediction",
            "llama-server chat error",
            "unexpected server status",
            "do embedding request",
        ],
        Reason::RunnerCrash,
    ),
    (&["invalid tool call arguments", "nan or inf", "empty embedding response"], Reason::BadOutput),
    (
        &[
            "must be of type",
            "must be of an array",
            "invalid format",
            "invalid think value",
            "missing request body",
            "model is required",
            "invalid model name",
            "raw mode does not support",
            "top_logprobs must be",
        ],
        Reason::BadRequest,
    ),
    (
        &[
            "does not support",
            "is not supported for this model",
            "this model only supports one image",
            "image generation models are not",
        ],
        Reason::Unsupported,
    ),
    (
        &["https://ollama.com", "this server cannot run this remote model", "remote model is unavailable"],
        Reason::ModelRemote,
    ),
    (&["request canceled"], Reason::Cancelled),
];

/// Names the failure that an error text alone shows, as in an error line of a stream.
pub(super) fn by_text(text: &str) -> Option<Reason> {
    let text = unfolded(text);
    TEXTS
        .iter()
        .find(|(needles, _)| needles.iter().any(|needle| text.contains(needle)))
        .map(|(_, reason)| *reason)
}

/// Names the failure that an answer other than a 200 stream shows, and gives the engine's text.
pub(super) fn by_answer(endpoint: Endpoint, status: u16, kind: Kind, body: &[u8]) -> (Reason, String) {
    let raw = String::from_utf8_lossy(body);
    let json = serde_json::from_slice::<Value>(body).ok().filter(Value::is_object);
    let text = match json.as_ref().and_then(|json| json.get("error")) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => raw.trim().to_owned(),
    };
    // Nobody but a proxy redirects, and a page that happens to hold one of our words is still a page.
    if (300..400).contains(&status) || matches!((status, kind), (200, Kind::Plain | Kind::Other)) {
        return (Reason::NotOllama, text);
    }
    if matches!(status, 404 | 405) && json.is_none() {
        return (Reason::NotOllama, text);
    }
    let signin = json.as_ref().is_some_and(|json| json.get("signin_url").is_some());
    if signin && unfolded(&text).contains("unauthorized") {
        return (Reason::ModelRemote, text);
    }
    let reason = by_text(&text).unwrap_or(match status {
        400 if endpoint == Endpoint::Embed => Reason::EngineError,
        400 => Reason::BadRequest,
        401 | 403 => Reason::Refused,
        404 => Reason::ModelMissing,
        429 | 503 => Reason::QueueFull,
        499 => Reason::Cancelled,
        _ => Reason::EngineError,
    });
    (reason, text)
}

/// Writes our words and, quoted and harmless for a terminal, the engine's, cut to what a failure may carry.
pub(super) fn detail(ours: &str, engine: &str) -> Text<2048> {
    if engine.is_empty() {
        return Text::cut(ours);
    }
    let mut text = format!("{ours}: \"");
    for character in engine.chars().take(2048) {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text.push('"');
    Text::cut(&text)
}

/// Gives the text in lower case, followed by every text inside it where it is JSON.
fn unfolded(text: &str) -> String {
    let mut out = text.to_lowercase();
    inside(text, MAX_NESTING, &mut out);
    out
}

fn inside(text: &str, depth: usize, out: &mut String) {
    if depth == 0 {
        return;
    }
    // The runner's object may follow words of the server.
    let Some(start) = text.find('{') else { return };
    let Some(Ok(json)) = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>().next()
    else {
        return;
    };
    let mut rest = vec![&json];
    while let Some(value) = rest.pop() {
        match value {
            Value::String(text) => {
                out.push('\n');
                out.push_str(&text.to_lowercase());
                inside(text, depth - 1, out);
            }
            Value::Array(values) => rest.extend(values),
            Value::Object(map) => rest.extend(map.values()),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, text: &str) -> Reason {
        let body = serde_json::to_vec(&serde_json::json!({ "error": text })).unwrap();
        by_answer(Endpoint::Chat, status, Kind::Json, &body).0
    }

    #[test]
    fn every_text_of_the_table_is_found_whatever_the_code_and_the_case() {
        for (needles, reason) in TEXTS {
            for needle in *needles {
                for status in [400, 500, 503] {
                    let text = format!("Prefix {} suffix", needle.to_uppercase());
                    assert_eq!(error(status, &text), *reason, "{needle}");
                }
                assert_eq!(by_text(needle), Some(*reason));
            }
        }
    }

    #[test]
    fn a_text_inside_json_inside_the_error_is_found() {
        let inner = r#"{"error":{"code":400,"message":"request (302 tokens) exceeds the available context size (256 tokens)"}}"#;
        assert_eq!(error(400, inner), Reason::TooLong);
        assert_eq!(error(500, &format!("llama said: {inner}")), Reason::TooLong);
        let escaped = r#"{"error":"out of\u0020memory"}"#;
        assert_eq!(error(500, escaped), Reason::OutOfMemory);
    }

    #[test]
    fn an_unknown_text_is_named_by_its_code() {
        for (status, reason) in [
            (400, Reason::BadRequest),
            (401, Reason::Refused),
            (403, Reason::Refused),
            (404, Reason::ModelMissing),
            (429, Reason::QueueFull),
            (499, Reason::Cancelled),
            (500, Reason::EngineError),
            (501, Reason::EngineError),
            (502, Reason::EngineError),
            (503, Reason::QueueFull),
        ] {
            assert_eq!(error(status, "words nobody knows"), reason, "{status}");
        }
    }

    #[test]
    fn a_400_from_embed_with_an_unknown_text_is_the_engines_fault() {
        let answer = |body: &[u8]| by_answer(Endpoint::Embed, 400, Kind::Json, body).0;
        assert_eq!(answer(br#"{"error":"EOF"}"#), Reason::EngineError);
        assert_eq!(answer(br#"{"error":"input exceeds maximum context length"}"#), Reason::TooLong);
    }

    #[test]
    fn what_is_not_ollama_is_told_by_type_and_not_by_words() {
        for (status, kind, body) in [
            (200, Kind::Other, "<html>out of memory</html>"),
            (200, Kind::Plain, "hello"),
            (307, Kind::Absent, ""),
            (404, Kind::Plain, "404 page not found"),
            (405, Kind::Plain, "405 method not allowed"),
        ] {
            assert_eq!(by_answer(Endpoint::Chat, status, kind, body.as_bytes()).0, Reason::NotOllama);
        }
    }

    #[test]
    fn signing_in_means_the_cloud_and_plain_401_means_refused() {
        let cloud = br#"{"error":"unauthorized","signin_url":"https://example.invalid"}"#;
        assert_eq!(by_answer(Endpoint::Chat, 401, Kind::Json, cloud).0, Reason::ModelRemote);
        assert_eq!(by_answer(Endpoint::Chat, 403, Kind::Absent, b"").0, Reason::Refused);
        assert_eq!(by_answer(Endpoint::Chat, 500, Kind::Absent, b"").0, Reason::EngineError);
    }

    #[test]
    fn details_quote_the_engine_and_show_no_control_characters() {
        let text = detail("the engine reported an error", "a\u{1b}[31m\nb");
        assert_eq!(&*text, "the engine reported an error: \"a\\u{1b}[31m\\nb\"");
        assert!(detail("x", &"é".repeat(9_000)).len() <= 2048);
    }
}
