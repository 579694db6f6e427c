//! The one place where the executing half of the agent reads the monotonic clock.
//!
//! Decisions (`admission.rs`, the fold of a stream) take the time as an argument; their drivers ask here. Time
//! comes from tokio, so a test with a paused clock sees its own time.

use std::time::SystemTime;

use tokio::time::Instant;

/// Gives the present time of tokio's clock.
#[expect(
    clippy::disallowed_methods,
    reason = "the drivers of this crate own the clock, and read it here only"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The wall clock in nanoseconds since 1970, 0 before.
#[expect(clippy::disallowed_methods, reason = "a live test compares clocks")]
pub(crate) fn wall_clock() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
