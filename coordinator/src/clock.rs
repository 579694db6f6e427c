//! The only clock of the program: the driver reads it and passes the time on.

use std::time::{Duration, Instant, SystemTime};

/// Counts from the start of the command.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts at zero.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the driver owns the clock")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start, monotonic.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.elapsed()
    }

    /// Time on the clock that counts a suspend of the machine too, from a moment of its own: only differences mean
    /// anything.
    #[must_use]
    pub fn boot(&self) -> Duration {
        #[cfg(target_os = "linux")]
        {
            let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            Duration::new(at.tv_sec.unsigned_abs(), u32::try_from(at.tv_nsec).unwrap_or(0))
        }
        // Elsewhere a suspend shows in the connections alone.
        #[cfg(not(target_os = "linux"))]
        self.now()
    }

    /// The wall clock in milliseconds since 1970: shown, decides nothing. Zero before 1970.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the driver owns the clock")]
    pub fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// The wall clock in nanoseconds since 1970, to be compared with others'. Zero before 1970.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the driver owns the clock")]
    pub fn wall_ns() -> i64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }
}
