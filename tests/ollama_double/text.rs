//! What a model of the double "says": words drawn from SHA-256 of the digest, the conversation and the seed, so
//! that two doubles with one digest give one text and a test can compute it. Nothing here knows HTTP or time.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Numbers in an embedding, as in small real embedding models.
pub const DIMENSIONS: usize = 384;

/// How deep a schema is followed: deeper than any that people write by hand, shallow enough for any stack.
const MAX_SCHEMA_DEPTH: usize = 32;

/// The first word of every answer. It is not ASCII, so that every answer has a character that can be cut in two.
const FIRST_WORD: &str = "ñandú";

const WORDS: [&str; 64] = [
    "llama", "alpaca", "vicuña", "guanaco", "condor", "puma", "quinoa", "maize", "stone", "river", "bridge",
    "rope", "road", "summit", "valley", "snow", "wind", "rain", "night", "morning", "market", "wool",
    "thread", "loom", "colour", "drum", "flute", "song", "story", "fire", "bread", "salt", "water", "lake",
    "island", "boat", "star", "moon", "sun", "cloud", "path", "gate", "wall", "terrace", "field", "seed",
    "harvest", "basket", "copper", "silver", "gold", "clay", "feather", "leaf", "root", "branch", "mountain",
    "señal", "cóndor", "año", "camino", "carga", "tropa", "arriero",
];

/// A stream of bytes that depends on nothing but its key.
#[derive(Debug, Clone)]
pub(crate) struct Draw {
    key: [u8; 32],
}

impl Draw {
    /// A stream for these parts; parts are separated, so that moving a byte between two of them is another key.
    pub(crate) fn new(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self { key: hash.finalize().into() }
    }

    /// The number at `index`, spread over all of `u64`.
    pub(crate) fn number(&self, index: u64) -> u64 {
        let block: [u8; 32] =
            Sha256::new().chain_update(self.key).chain_update((index / 4).to_le_bytes()).finalize().into();
        let start = (index % 4) as usize * 8;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&block[start..start + 8]);
        u64::from_le_bytes(bytes)
    }

    /// How long a model talks when nobody stops it: 16 to 63 tokens.
    pub(crate) fn length(&self) -> u64 {
        16 + u64::from(self.key[0]) % 48
    }

    /// The word at `index`; all but the first begin with a space.
    pub(crate) fn word(&self, index: u64) -> String {
        if index == 0 {
            return FIRST_WORD.to_owned();
        }
        format!(" {}", WORDS[(self.number(index) % 64) as usize])
    }

    /// A value that satisfies the usual parts of a JSON schema: `const`, `enum`, `type`, `required`, `items`.
    pub(crate) fn example(&self, schema: &Value) -> Value {
        self.example_at(schema, 1, 0)
    }

    fn example_at(&self, schema: &Value, index: u64, depth: usize) -> Value {
        if depth > MAX_SCHEMA_DEPTH {
            return Value::Null;
        }
        let inner = |part: &Value, nth: usize| self.example_at(part, index * 31 + nth as u64 + 1, depth + 1);
        if let Some(fixed) = schema.get("const") {
            return fixed.clone();
        }
        if let Some(choices) = schema.get("enum").and_then(Value::as_array).filter(|list| !list.is_empty()) {
            return choices[(self.number(index) % choices.len() as u64) as usize].clone();
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            if let Some(first) = schema.get(key).and_then(|list| list.get(0)) {
                return inner(first, 0);
            }
        }
        let kind = match schema.get("type") {
            Some(Value::Array(kinds)) => kinds.first().and_then(Value::as_str),
            other => other.and_then(Value::as_str),
        };
        let kind = kind.unwrap_or(if schema.get("properties").is_some() { "object" } else { "string" });
        match kind {
            "object" => {
                let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
                let mut object = Map::new();
                for (nth, name) in required.iter().filter_map(Value::as_str).enumerate() {
                    let part = schema.get("properties").and_then(|all| all.get(name)).unwrap_or(&Value::Null);
                    object.insert(name.to_owned(), inner(part, nth));
                }
                Value::Object(object)
            }
            "array" => {
                let count = schema.get("minItems").and_then(Value::as_u64).unwrap_or(1).min(64) as usize;
                let part = schema.get("items").unwrap_or(&Value::Null);
                Value::Array((0..count).map(|nth| inner(part, nth)).collect())
            }
            "integer" | "number" => {
                let least = schema.get("minimum").and_then(Value::as_i64).unwrap_or(0);
                let most = schema.get("maximum").and_then(Value::as_i64).unwrap_or(least.saturating_add(99));
                let span = most.saturating_sub(least).max(0) as u64;
                Value::from(least.saturating_add((self.number(index) % span.saturating_add(1)) as i64))
            }
            "boolean" => Value::Bool(self.number(index).is_multiple_of(2)),
            "null" => Value::Null,
            _ => Value::String(self.word(index).trim().to_owned()),
        }
    }
}

/// Tokens of `bytes` bytes: one per `per_token` bytes begun.
pub(crate) fn tokens_in(bytes: usize, per_token: usize) -> u64 {
    bytes.div_ceil(per_token.max(1)) as u64
}

/// Cuts a text into tokens of about `per_token` bytes that end at characters; joined they are the text again.
pub(crate) fn pieces(text: &str, per_token: usize) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut piece = String::new();
    for letter in text.chars() {
        piece.push(letter);
        if piece.len() >= per_token {
            pieces.push(std::mem::take(&mut piece));
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

/// The embedding of a text: a vector of length 1 in `dimensions` numbers that depends on digest and text only.
pub(crate) fn embedding(digest: &str, text: &str, dimensions: usize) -> Vec<f32> {
    let draw = Draw::new(&[b"embedding", digest.as_bytes(), text.as_bytes()]);
    let raw: Vec<f64> =
        (0..dimensions).map(|nth| draw.number(nth as u64) as f64 / u64::MAX as f64 * 2.0 - 1.0).collect();
    let norm = raw.iter().map(|number| number * number).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    raw.iter().map(|number| (number / norm) as f32).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pieces_join_to_the_text_and_never_cut_a_character() {
        let text = "aé日本𝄞 und so weiter";
        assert_eq!(pieces(text, 4).concat(), text);
        assert_eq!(pieces("abcdefghi", 4), ["abcd", "efgh", "i"]);
    }

    #[test]
    fn an_embedding_has_length_one() {
        let vector = embedding("d", "the llama", DIMENSIONS);
        let norm: f32 = vector.iter().map(|number| number * number).sum();
        assert!((norm - 1.0).abs() < 1e-4, "norm {norm}");
    }

    #[test]
    fn an_example_has_every_required_property_in_order() {
        let schema = json!({"type": "object", "required": ["b", "a"],
            "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 3}, "b": {"enum": ["x"]}, "c": {}}});
        assert_eq!(Draw::new(&[]).example(&schema).to_string(), r#"{"b":"x","a":3}"#);
    }
}
