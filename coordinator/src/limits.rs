//! How long an attempt may take, phase by phase (`reliability.md` §4, `ollama-api.md` §7).

use serde::{Deserialize, de::IgnoredAny};
use tropa_proto::proof;

/// First line of an attempt whose model is loaded, in milliseconds.
const FIRST_WARM_MS: u64 = 60_000;

/// First line of an attempt that loads its model: Ollama's own error comes at 300 s and must arrive first.
const FIRST_COLD_MS: u64 = 330_000;

/// Between two lines.
const IDLE_MS: u64 = 60_000;

/// Between two lines where a parser may hold text back: tool calls, or a schema with thinking.
const IDLE_PARSED_MS: u64 = 300_000;

/// The shortest limit of a whole attempt.
const MIN_DEADLINE_MS: u64 = 15 * 60_000;

/// Reading a prompt at fewer tokens a second than this is a stall, where the install's own speed is not known.
const FLOOR_PROMPT_RATE: u64 = 10;

/// Writing an answer, likewise.
const FLOOR_DECODE_RATE: u64 = 1;

/// Bytes of a prompt that make a token, at least, before the model's own count is known (`ollama-api.md` §5).
const BYTES_PER_TOKEN: u64 = 3;

/// The limits of one attempt, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until the first line.
    pub first_token_ms: u64,
    /// Between two lines.
    pub idle_ms: u64,
    /// Of the whole attempt.
    pub deadline_ms: u64,
}

/// What of a body decides its limits.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    tools: Option<IgnoredAny>,
    format: Option<IgnoredAny>,
    options: Options,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Options {
    num_predict: Option<u64>,
}

impl Limits {
    /// Computes the limits of a body for Ollama; `warm`: its model is loaded where it goes.
    #[must_use]
    pub fn of(body: &[u8], warm: bool) -> Self {
        // The body is ours; one that cannot be read gets the limits of one that asks for nothing.
        let asked: Asked = serde_json::from_slice(body).unwrap_or_default();
        let prompt = body.len() as u64 / BYTES_PER_TOKEN;
        let first = if warm { FIRST_WARM_MS } else { FIRST_COLD_MS };
        let first_token_ms = first + prompt * 1000 / FLOOR_PROMPT_RATE;
        let parsed = asked.tools.is_some() || asked.format.is_some();
        let answer = asked.options.num_predict.unwrap_or(0).min(1_000_000);
        let decode = 2 * answer * 1000 / FLOOR_DECODE_RATE;
        let idle_ms = if parsed { IDLE_PARSED_MS } else { IDLE_MS };
        Self {
            first_token_ms: proof::number("TROPA_TEST_FIRST_MS").unwrap_or(first_token_ms),
            idle_ms: proof::number("TROPA_TEST_IDLE_MS").unwrap_or(idle_ms),
            deadline_ms: (first_token_ms + decode).max(MIN_DEADLINE_MS),
        }
    }

    /// The limits where so many requests are at the engine: it may work on them one after the other, and each then waits
    /// for those before it.
    #[must_use]
    pub fn beside(self, at_once: u16) -> Self {
        let times = u64::from(at_once.max(1));
        let first_token_ms =
            self.first_token_ms + (times - 1) * self.first_token_ms.max(self.deadline_ms / 4);
        Self { first_token_ms, idle_ms: self.idle_ms, deadline_ms: self.deadline_ms * times }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_inside_the_engine_for_others_is_no_stall() {
        let alone = Limits::of(b"{}", true);
        assert_eq!(alone.beside(1), alone);
        assert!(alone.beside(2).first_token_ms >= 2 * alone.first_token_ms);
        assert!(alone.beside(4).deadline_ms >= 4 * alone.deadline_ms);
    }

    #[test]
    fn a_cold_start_is_waited_for_longer_than_ollama_waits_itself() {
        assert!(Limits::of(b"{}", false).first_token_ms > 300_000);
        assert!(Limits::of(b"{}", true).first_token_ms < 300_000);
    }

    #[test]
    fn a_schema_may_hold_lines_back_and_a_long_answer_takes_its_time() {
        let plain = Limits::of(br#"{"options":{"num_predict":16}}"#, true);
        let schema = Limits::of(br#"{"format":"json","options":{"num_predict":4096}}"#, true);
        assert!(schema.idle_ms > plain.idle_ms);
        assert!(schema.deadline_ms > plain.deadline_ms);
    }
}
