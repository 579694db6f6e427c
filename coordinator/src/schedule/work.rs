//! How large a chunk is, and what of that the job's own answers have corrected.
//!
//! A chunk comes with two estimates: tokens of its prompt, guessed from its bytes, and tokens of its answer, which
//! `num_predict` bounds. Both are wrong by a factor that chunks of one job share: so many bytes a token, so much of
//! the limit used. Answers that are in tell the factors.

use std::collections::BTreeMap;

use super::ModelIndex;

/// What a chunk asks of an install.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Which model.
    pub model: ModelIndex,
    /// The context that its request asks for, in tokens: another value loads the model anew.
    pub context: u32,
    /// Estimated tokens of its prompt; 0 together with `output_tokens`: not known.
    pub prompt_tokens: u32,
    /// Tokens of its answer, at most.
    pub output_tokens: u32,
    /// Names the long beginning that it shares with others, such as a system prompt or a document; 0: none.
    pub prefix: u32,
}

/// What is loaded for a chunk: chunks of one kind run on one install without a reload between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// The model.
    pub model: ModelIndex,
    /// Its context in tokens.
    pub context: u32,
}

impl Work {
    /// What has to be loaded for it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind { model: self.model, context: self.context }
    }

    /// Says whether anything is known of its size.
    pub(super) fn is_sized(&self) -> bool {
        (self.prompt_tokens, self.output_tokens) != (0, 0)
    }
}

/// Steps of the share of `num_predict` that an answer used.
const SHARES: usize = 64;

/// What the answers of a job have told of its estimates.
#[derive(Clone, Debug, Default)]
pub(super) struct Sizes {
    /// True tokens of a prompt for each estimated one, smoothed, by model.
    prompts: BTreeMap<ModelIndex, f64>,
    /// How many answers used so many 64ths of their limit.
    shares: Vec<u32>,
    answers: u32,
    /// The median share of its limit that an answer uses; `None` before any is in.
    share: Option<f64>,
}

impl Sizes {
    /// A chunk has been answered with so many tokens of prompt and answer.
    pub(super) fn learn(&mut self, work: &Work, prompt: u32, output: u32) {
        if work.prompt_tokens > 0 && prompt > 0 {
            let ratio = (f64::from(prompt) / f64::from(work.prompt_tokens)).clamp(0.05, 20.0);
            self.prompts.entry(work.model).and_modify(|old| *old += (ratio - *old) / 4.0).or_insert(ratio);
        }
        if work.output_tokens > 0 {
            self.shares.resize(SHARES + 1, 0);
            let share = output.min(work.output_tokens) as usize * SHARES / work.output_tokens as usize;
            self.shares[share] += 1;
            self.answers += 1;
            self.share = self.median();
        }
    }

    /// Tokens of the prompt and of the answer that are expected of a chunk: the estimates times what they were
    /// wrong by, of answers the median; all of the limit before any is in.
    pub(super) fn expected(&self, work: &Work) -> (f64, f64) {
        let prompt = f64::from(work.prompt_tokens) * self.prompts.get(&work.model).unwrap_or(&1.0);
        (prompt, f64::from(work.output_tokens) * self.share.unwrap_or(1.0))
    }

    fn median(&self) -> Option<f64> {
        let mut below = 0;
        let share = self.shares.iter().position(|count| {
            below += count;
            *count > 0 && below * 2 >= self.answers
        });
        share.map(|share| (share as f64 + 0.5).min(SHARES as f64) / SHARES as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_follow_what_answers_were() {
        let work = Work { prompt_tokens: 100, output_tokens: 640, ..Work::default() };
        let mut sizes = Sizes::default();
        assert_eq!(sizes.expected(&work), (100.0, 640.0));
        for output in [64, 64, 640, 64, 70] {
            sizes.learn(&work, 80, output);
        }
        let (prompt, output) = sizes.expected(&work);
        assert!((prompt - 80.0).abs() < 0.1, "{prompt}");
        assert!((60.0..90.0).contains(&output), "the median is not moved by one long answer: {output}");
    }
}
