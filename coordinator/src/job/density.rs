//! How many tokens a text makes. Ollama has no way to ask, so it is an estimate until a model has counted.

/// Tokens for bytes of text: one for three until a model's own count is known (`ollama-api.md` §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Density {
    tokens: u64,
    bytes: u64,
}

impl Default for Density {
    fn default() -> Self {
        Self { tokens: 1, bytes: 3 }
    }
}

impl Density {
    /// A token for every byte, as models without a vocabulary have it.
    pub const DENSEST: Self = Self { tokens: 1, bytes: 1 };

    /// A token for eight bytes, which no model reaches with any language.
    pub const SPARSEST: Self = Self { tokens: 1, bytes: 8 };

    /// As a model counted a text of so many bytes; `None` where either is 0, or a byte would be more than two tokens,
    /// which no tokenizer does.
    #[must_use]
    pub fn counted(tokens: u64, bytes: u64) -> Option<Self> {
        (tokens > 0 && bytes > 0 && tokens <= bytes.saturating_mul(2)).then_some(Self { tokens, bytes })
    }

    /// The tokens of so many bytes, rounded up.
    #[must_use]
    pub fn tokens(self, bytes: u64) -> u64 {
        let tokens = u128::from(bytes) * u128::from(self.tokens);
        u64::try_from(tokens.div_ceil(u128::from(self.bytes))).unwrap_or(u64::MAX)
    }

    /// The bytes that make at most so many tokens.
    #[must_use]
    pub fn bytes(self, tokens: u64) -> u64 {
        let bytes = u128::from(tokens) * u128::from(self.bytes) / u128::from(self.tokens);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_fit_make_no_more_tokens_than_they_may() {
        for density in [Density::default(), Density::counted(7, 5).unwrap(), Density::counted(1, 9).unwrap()]
        {
            for tokens in [0, 1, 10, 999] {
                assert!(density.tokens(density.bytes(tokens)) <= tokens, "{density:?} {tokens}");
            }
        }
        assert_eq!(Density::default().tokens(10), 4);
        assert_eq!(Density::counted(0, 5), None);
        assert_eq!(Density::counted(11, 5), None);
        assert_eq!(Density::default().tokens(u64::MAX), u64::MAX / 3);
    }
}
