//! A process's own clock: another origin than the world's, and up to 5 % faster or slower.

use std::time::Duration;

use super::random::Random;

/// How far the rate of a clock may be off, in parts per million (`reliability.md` §9).
const RATE: u64 = 50_000;

/// A monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    offset: Duration,
    per_million: u64,
}

impl Clock {
    /// The world's own.
    pub(super) const TRUE: Self = Self { offset: Duration::ZERO, per_million: 1_000_000 };

    /// One that is off.
    pub(super) fn off(random: &mut Random) -> Self {
        let per_million = 1_000_000 - RATE + random.below(2 * RATE + 1);
        Self { offset: Duration::from_secs(random.below(1_000_000)), per_million }
    }

    /// What it shows at a time of the world.
    pub(super) fn shows(&self, world: Duration) -> Duration {
        self.offset + scaled(world, self.per_million, 1_000_000)
    }

    /// The first time of the world at which it shows this, or later.
    pub(super) fn world(&self, shown: Duration) -> Duration {
        let mut world = scaled(shown.saturating_sub(self.offset), 1_000_000, self.per_million);
        while self.shows(world) < shown {
            world += Duration::from_nanos(1);
        }
        world
    }
}

fn scaled(time: Duration, by: u64, of: u64) -> Duration {
    let nanos = time.as_nanos() * u128::from(by) / u128::from(of);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
