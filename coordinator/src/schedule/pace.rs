//! How fast one install runs one model, learned from what Ollama says of every answer.

use std::time::Duration;

use tropa_proto::message::Outcome;

/// A load takes longer than this; shorter ones are the engine's look at a loaded model (`ollama-api.md` §6).
const COLD: Duration = Duration::from_millis(200);

/// Weight of a new measurement.
const WEIGHT: f64 = 0.25;

/// What one attempt took, by the agent's clock and Ollama's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// From sending the request to its last line.
    pub wall: Duration,
    /// To the first line with text.
    pub first: Duration,
    /// Loading the model.
    pub load: Duration,
    /// Reading the prompt.
    pub prompt: Duration,
    /// Writing the answer.
    pub decode: Duration,
}

impl Sample {
    /// Reads it from a result.
    #[must_use]
    pub fn of(outcome: &Outcome) -> Self {
        Self {
            prompt_tokens: outcome.prompt_tokens,
            output_tokens: outcome.output_tokens,
            wall: Duration::from_micros(outcome.wall_us),
            first: Duration::from_micros(outcome.first_us),
            load: Duration::from_micros(outcome.load_us),
            prompt: Duration::from_micros(outcome.prompt_us),
            decode: Duration::from_micros(outcome.decode_us),
        }
    }

    /// It waited for its model to be loaded.
    #[must_use]
    pub fn was_cold(&self) -> bool {
        self.load >= COLD
    }
}

/// The speed of one install with one model. What reading a token costs is what it cost in this job, cached beginnings
/// included: that is what the next chunk will cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Seconds to read a token of a prompt.
    pub prompt_s: f64,
    /// Seconds to write a token; 0 where none was ever written.
    pub decode_s: f64,
    /// Seconds of a chunk that are neither.
    pub overhead_s: f64,
    /// Seconds of a whole chunk without loading.
    pub chunk_s: f64,
    /// Seconds to load the model; 0 where that was never seen.
    pub load_s: f64,
    /// Measurements, at least 1.
    pub samples: u32,
}

impl Pace {
    /// The first measurement.
    #[must_use]
    pub fn first(sample: &Sample) -> Self {
        let mut pace = Self::default();
        pace.learn(sample);
        pace
    }

    /// Another one: each counts a quarter.
    pub fn learn(&mut self, sample: &Sample) {
        let weight = if self.samples == 0 { 1.0 } else { WEIGHT };
        let learn = |old: &mut f64, new: f64| *old += (new - *old) * weight;
        let per_token =
            |time: Duration, tokens: u32| (tokens > 0).then(|| time.as_secs_f64() / f64::from(tokens));
        if let Some(prompt) = per_token(sample.prompt, sample.prompt_tokens) {
            learn(&mut self.prompt_s, prompt);
        }
        if let Some(decode) = per_token(sample.decode, sample.output_tokens) {
            learn(&mut self.decode_s, decode);
        }
        let chunk = sample.wall.saturating_sub(sample.load);
        learn(&mut self.overhead_s, chunk.saturating_sub(sample.prompt + sample.decode).as_secs_f64());
        learn(&mut self.chunk_s, chunk.as_secs_f64());
        if sample.was_cold() {
            let weight = if self.load_s == 0.0 { 1.0 } else { WEIGHT };
            self.load_s += (sample.load.as_secs_f64() - self.load_s) * weight;
        }
        self.samples = self.samples.saturating_add(1);
    }

    /// Seconds for a chunk of this size, its model loaded; with no size known, for a chunk as they were.
    #[must_use]
    pub fn seconds(&self, (prompt, output): (f64, f64)) -> f64 {
        if prompt == 0.0 && output == 0.0 {
            return self.chunk_s;
        }
        self.overhead_s + prompt * self.prompt_s + output * self.decode_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_twice_as_long_takes_twice_the_tokens_and_one_overhead() {
        let ms = Duration::from_millis;
        let sample = Sample {
            prompt_tokens: 100,
            output_tokens: 50,
            wall: ms(3610),
            load: ms(2000),
            prompt: ms(100),
            decode: ms(1500),
            first: ms(2110),
        };
        let pace = Pace::first(&sample);
        assert!((pace.seconds((100.0, 50.0)) - 1.61).abs() < 1e-9, "{pace:?}");
        assert!((pace.seconds((200.0, 100.0)) - 3.21).abs() < 1e-9, "{pace:?}");
        assert!((pace.load_s - 2.0).abs() < 1e-9);
    }
}
