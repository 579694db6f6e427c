//! Numbers that follow from a seed: no secrets, only different from program to program and the same in every
//! repetition of a test.

use std::time::Duration;

/// xorshift64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from any number.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Zero would stay zero for ever.
        Self(seed | 1)
    }

    /// A time above zero and up to this one, to the microsecond: full jitter.
    pub fn up_to(&mut self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.number() % micros + 1)
    }

    /// Any number above zero.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_above_zero_and_up_to_the_longest_and_spread_evenly() {
        let longest = Duration::from_secs(30);
        for seed in [0, 1, u64::MAX] {
            let mut random = Random::new(seed);
            let all: Vec<Duration> = (0..1_000).map(|_| random.up_to(longest)).collect();
            assert!(all.iter().all(|time| !time.is_zero() && *time <= longest), "seed {seed}");
            let below = all.iter().filter(|time| **time < longest / 2).count();
            assert!((400..600).contains(&below), "seed {seed}: {below} of 1000 in the lower half");
        }
        assert!(!Random::new(7).up_to(Duration::ZERO).is_zero());
    }
}
