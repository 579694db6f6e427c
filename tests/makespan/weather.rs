//! What else happens on the machine of a lane: its speed drifts, and now and then it is held up for a moment.
//!
//! The figures of [`Weather::calm`] and [`Weather::rough`] are those of real Ollamas of four slots on two cores, in
//! windows of 2.5 s at one width: with 66 million parameters 259 to 286 tokens/s, with 3 million 529 to 1,180.

use std::time::Duration;

use crate::simulation::random::Random;

/// Speed is drawn anew after this time.
const DRIFTS: Duration = Duration::from_millis(2500);

/// What holds a lane up holds it up for so long.
const HICCUP: Duration = Duration::from_millis(100);

/// The speed of a machine over time, always the same for one seed.
#[derive(Clone, Debug)]
pub struct Weather {
    seed: u64,
    /// The slowest over the fastest that it drifts to.
    drift: f64,
    /// How much of the time it is held up, of 1,000.
    held_up: u64,
}

/// It is so many times slower while it is held up.
const HELD_UP: f64 = 5.0;

impl Weather {
    /// A machine that does nothing else: within 12 %, and held up one moment in a hundred.
    #[must_use]
    pub fn calm(seed: u64) -> Self {
        Self { seed, drift: 1.12, held_up: 10 }
    }

    /// One on which threads wait for each other: up to twice as slow, and held up one moment in twelve.
    #[must_use]
    pub fn rough(seed: u64) -> Self {
        Self { seed, drift: 2.0, held_up: 80 }
    }

    /// How many times slower the lane is now.
    pub(super) fn slower(&self, now: Duration) -> f64 {
        let drift = self.random(0, now, DRIFTS).below(1000) as f64 / 999.0;
        let held_up = self.random(1, now, HICCUP).below(1000) < self.held_up;
        self.drift.powf(drift) * if held_up { HELD_UP } else { 1.0 }
    }

    /// When that may be another factor.
    pub(super) fn changes(&self, now: Duration) -> Duration {
        HICCUP * (number(now, HICCUP) + 1)
    }

    fn random(&self, what: u64, now: Duration, each: Duration) -> Random {
        Random(self.seed.wrapping_mul(0x9e37_79b9).wrapping_add(u64::from(number(now, each)) * 2 + what))
    }
}

/// Which piece of so long this is.
fn number(now: Duration, each: Duration) -> u32 {
    u32::try_from(now.as_nanos() / each.as_nanos()).unwrap_or(u32::MAX)
}
