//! How long an attempt may take, phase by phase (`reliability.md` §4, `ollama-api.md` §7).

use serde::{Deserialize, de::IgnoredAny};
use tropa_proto::proof;

use crate::schedule::Pace;

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

/// Reading a prompt at fewer tokens a second than this is a stall, or at fewer than half of the install's own speed
/// where that is known to be slower (`ollama-api.md` §7). A faster one is not held to its speed: what is learned of
/// prompts counts beginnings that it had read before, and the next prompt may have none.
const FLOOR_PROMPT_RATE: f64 = 10.0;

/// Writing an answer at fewer tokens a second is a stall, where the install's own speed is not known
/// (`reliability.md` §4).
const FLOOR_DECODE_RATE: f64 = 1.0;

/// Of the speed that is known, the part below which it is a stall (`reliability.md` §4).
const OF_KNOWN: f64 = 0.5;

/// No install is so slow, in tokens a second; what one says of itself prolongs its own attempts, and not for ever.
const SLOWEST: f64 = 0.01;

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
    /// Computes the limits of a body for Ollama; `warm`: its model is loaded where it goes; `pace`: what is known of how
    /// fast that install is with the model.
    #[must_use]
    pub fn of(body: &[u8], warm: bool, pace: Option<&Pace>) -> Self {
        // The body is ours; one that cannot be read gets the limits of one that asks for nothing.
        let asked: Asked = serde_json::from_slice(body).unwrap_or_default();
        let floors = Floors::of(pace);
        let prompt = body.len() as u64 / BYTES_PER_TOKEN;
        let first = if warm { FIRST_WARM_MS } else { FIRST_COLD_MS };
        let first_token_ms = first + millis(prompt, floors.prompt);
        let parsed = asked.tools.is_some() || asked.format.is_some();
        let answer = asked.options.num_predict.unwrap_or(0).min(1_000_000);
        let decode = millis(2 * answer, floors.decode);
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

/// Tokens a second below which an install has stalled.
struct Floors {
    prompt: f64,
    decode: f64,
}

impl Floors {
    fn of(pace: Option<&Pace>) -> Self {
        // A speed of which nothing was seen is 0 seconds a token.
        let known = |seconds: fn(&Pace) -> f64| {
            let seconds = pace.map(seconds).filter(|seconds| *seconds > 0.0)?;
            Some((OF_KNOWN / seconds).max(SLOWEST))
        };
        Self {
            prompt: known(|pace| pace.prompt_s).unwrap_or(FLOOR_PROMPT_RATE).min(FLOOR_PROMPT_RATE),
            decode: known(|pace| pace.decode_s).unwrap_or(FLOOR_DECODE_RATE),
        }
    }
}

/// How long so many tokens take at so many a second, in milliseconds.
fn millis(tokens: u64, rate: f64) -> u64 {
    (tokens as f64 * 1000.0 / rate) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An install that reads and writes so many tokens a second.
    fn pace(prompt: f64, decode: f64) -> Pace {
        Pace { prompt_s: 1.0 / prompt, decode_s: 1.0 / decode, samples: 1, ..Pace::default() }
    }

    #[test]
    fn an_answer_is_late_at_half_the_speed_that_is_known_and_at_one_token_a_second_where_none_is() {
        let body = br#"{"options":{"num_predict":4000}}"#;
        let decode = |pace: Option<&Pace>| {
            let limits = Limits::of(body, true, pace);
            (limits.deadline_ms - limits.first_token_ms) / 1000
        };
        assert_eq!(decode(None), 8_000);
        assert_eq!(decode(Some(&Pace::default())), 8_000, "nothing was ever written");
        assert_eq!(decode(Some(&pace(100.0, 4.0))), 4_000, "half of 4 a second");
        assert_eq!(decode(Some(&pace(100.0, 0.5))), 32_000, "a slow machine has its time");
        let fast = Limits::of(body, true, Some(&pace(100.0, 400.0)));
        assert_eq!(fast.deadline_ms, MIN_DEADLINE_MS, "but never less than a quarter of an hour");
        assert_eq!(decode(Some(&pace(100.0, 1e-9))), 800_000, "what an install says of itself is bounded");
    }

    #[test]
    fn a_slow_install_has_longer_to_read_a_prompt_and_a_fast_one_no_less_than_one_of_which_nothing_is_known()
    {
        let body = vec![b'x'; 30_000];
        let first = |pace: Option<&Pace>| Limits::of(&body, true, pace).first_token_ms - FIRST_WARM_MS;
        assert_eq!(first(None), 1_000_000);
        assert_eq!(first(Some(&pace(4.0, 1.0))), 5_000_000);
        assert_eq!(first(Some(&pace(5_000.0, 50.0))), 1_000_000);
    }

    #[test]
    fn who_waits_inside_the_engine_for_others_is_no_stall() {
        let alone = Limits::of(b"{}", true, None);
        assert_eq!(alone.beside(1), alone);
        assert!(alone.beside(2).first_token_ms >= 2 * alone.first_token_ms);
        assert!(alone.beside(4).deadline_ms >= 4 * alone.deadline_ms);
    }

    #[test]
    fn a_cold_start_is_waited_for_longer_than_ollama_waits_itself() {
        assert!(Limits::of(b"{}", false, None).first_token_ms > 300_000);
        assert!(Limits::of(b"{}", true, None).first_token_ms < 300_000);
    }

    #[test]
    fn a_schema_may_hold_lines_back_and_a_long_answer_takes_its_time() {
        let plain = Limits::of(br#"{"options":{"num_predict":16}}"#, true, None);
        let schema = Limits::of(br#"{"format":"json","options":{"num_predict":4096}}"#, true, None);
        assert!(schema.idle_ms > plain.idle_ms);
        assert!(schema.deadline_ms > plain.deadline_ms);
    }
}
