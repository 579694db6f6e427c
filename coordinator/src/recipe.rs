//! The body of a request that builds on answers which do not exist yet, and how it becomes final.
//!
//! A recipe is the body for Ollama as JSON, but that the content of a message may be a list of pieces: text, or a
//! hole `{"answer": 3}` for the answer of chunk 3, or `{"answer": 3, "tail": 200}` for its last 200 bytes, as
//! [`tail`] cuts them. Filling is a function of the recipe and those answers alone, so
//! that it may be done again after a crash and gives the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use tropa_proto::id::ChunkIndex;

use crate::job::graph::tail;

/// Why a recipe gives no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// It is not what this program writes.
    #[error("not a recipe")]
    Malformed,
    /// It has a hole for an answer that was not given.
    #[error("no answer of chunk {}", .0.0)]
    Missing(ChunkIndex),
    /// With the answers in it nothing is asked, which means "load the model" to Ollama.
    #[error("the answers that it builds on are empty")]
    Empty,
}

/// A piece of a message's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text that is known.
    Text(&'a str),
    /// The answer of this chunk.
    Answer(ChunkIndex),
    /// The end of the answer of this chunk, at most so many bytes.
    Tail(ChunkIndex, u32),
}

/// Writes the content of a message: a text where all of it is known, else a list of pieces.
#[must_use]
pub fn content(pieces: &[Piece<'_>]) -> Value {
    let known = pieces.iter().map(|piece| match piece {
        Piece::Text(text) => Some(*text),
        Piece::Answer(_) | Piece::Tail(..) => None,
    });
    if let Some(texts) = known.collect::<Option<Vec<_>>>() {
        return texts.concat().into();
    }
    let piece = |piece: &Piece<'_>| match piece {
        Piece::Text(text) => (*text).into(),
        Piece::Answer(on) => json!({"answer": on.0}),
        Piece::Tail(on, bytes) => json!({"answer": on.0, "tail": bytes}),
    };
    pieces.iter().map(piece).collect()
}

/// Names the chunks whose answers a recipe has holes for; `None` for what is no recipe.
#[must_use]
pub fn needs(recipe: &[u8]) -> Option<BTreeSet<ChunkIndex>> {
    let recipe: Map<String, Value> = serde_json::from_slice(recipe).ok()?;
    let messages = recipe.get("messages")?.as_array()?;
    let pieces = messages.iter().filter_map(|message| message["content"].as_array()).flatten();
    pieces.filter(|piece| !piece.is_string()).map(|piece| hole(piece).map(|(on, _)| on)).collect()
}

/// Fills the holes of a recipe. The result is the same bytes for the same arguments.
///
/// # Errors
/// When it is no recipe, an answer is missing, or nothing would be asked.
pub fn fill(recipe: &[u8], answers: &BTreeMap<ChunkIndex, String>) -> Result<Vec<u8>, FillError> {
    let mut body: Map<String, Value> = serde_json::from_slice(recipe).map_err(|_| FillError::Malformed)?;
    let messages = body.get_mut("messages").and_then(Value::as_array_mut).ok_or(FillError::Malformed)?;
    let mut asks = false;
    for message in messages {
        if let Some(pieces) = message["content"].as_array() {
            let mut text = String::new();
            for piece in pieces {
                match piece.as_str() {
                    Some(known) => text.push_str(known),
                    None => {
                        let (on, end) = hole(piece).ok_or(FillError::Malformed)?;
                        let answer = answers.get(&on).ok_or(FillError::Missing(on))?;
                        text.push_str(end.map_or(answer, |bytes| tail(answer, bytes)));
                    }
                }
            }
            message["content"] = text.into();
        }
        asks |=
            message["role"] != "system" && message["content"].as_str().is_some_and(|text| !text.is_empty());
    }
    if asks { Ok(Value::Object(body).to_string().into_bytes()) } else { Err(FillError::Empty) }
}

/// Reads the answer out of what the engine returned for a chat: its text, never its thinking. `None` for anything
/// else, which only a broken or hostile agent can bring.
#[must_use]
pub fn answer(reply: &[u8]) -> Option<String> {
    let mut reply: Map<String, Value> = serde_json::from_slice(reply).ok()?;
    match reply.get_mut("message")?.get_mut("content")?.take() {
        Value::String(text) => Some(text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Reads a hole: whose answer, and how much of its end where not all of it.
fn hole(piece: &Value) -> Option<(ChunkIndex, Option<u32>)> {
    let number = |key| piece.get(key)?.as_u64().and_then(|number| u32::try_from(number).ok());
    let end = if piece.get("tail").is_some() { Some(number("tail")?) } else { None };
    Some((ChunkIndex(number("answer")?), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(pieces: &[Piece<'_>]) -> Vec<u8> {
        json!({"model": "m:1", "messages": [
            {"role": "system", "content": "be brief"}, {"role": "user", "content": content(pieces)},
        ], "options": {"num_ctx": 1024}})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn holes_are_filled_in_their_places_and_nothing_else_changes() {
        let recipe = recipe(&[
            Piece::Text("one: "),
            Piece::Answer(ChunkIndex(4)),
            Piece::Text("; two: "),
            Piece::Answer(ChunkIndex(2)),
            Piece::Text("; end: "),
            Piece::Tail(ChunkIndex(4), 8),
        ]);
        assert_eq!(needs(&recipe), Some(BTreeSet::from([ChunkIndex(2), ChunkIndex(4)])));
        let hostile = "\"}]{\"answer\": 4}\u{0}\u{202e}";
        let answers = BTreeMap::from([
            (ChunkIndex(2), hostile.to_owned()),
            (ChunkIndex(4), "yes, a long answer".to_owned()),
        ]);
        let body = fill(&recipe, &answers).unwrap();
        assert_eq!(body, fill(&recipe, &answers).unwrap());
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            body["messages"][1]["content"],
            format!("one: yes, a long answer; two: {hostile}; end: answer")
        );
        assert_eq!((&body["model"], &body["options"]["num_ctx"]), (&"m:1".into(), &1024.into()));
    }

    #[test]
    fn a_recipe_that_gives_no_request_says_why() {
        let open = recipe(&[Piece::Answer(ChunkIndex(2))]);
        assert_eq!(fill(&open, &BTreeMap::new()), Err(FillError::Missing(ChunkIndex(2))));
        let empty = BTreeMap::from([(ChunkIndex(2), String::new())]);
        assert_eq!(fill(&open, &empty), Err(FillError::Empty));
        assert_eq!(fill(b"{\"messages\":[{\"content\":[1]}]}", &empty), Err(FillError::Malformed));
        assert_eq!(fill(b"[]", &empty), Err(FillError::Malformed));
        assert_eq!(needs(b"{\"messages\":[{\"content\":[{}]}]}"), None);
    }

    #[test]
    fn an_answer_is_the_text_and_not_the_thinking() {
        let reply = br#"{"message":{"role":"assistant","thinking":"hm","content":"four"}}"#;
        assert_eq!(answer(reply).as_deref(), Some("four"));
        for other in [&b"{}"[..], b"[]", b"{\"message\":{\"content\":4}}", b"{\"message\":4}", b"no"] {
            assert_eq!(answer(other), None);
        }
    }
}
