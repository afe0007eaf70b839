//! The only place that reads a clock, so that tests can run in virtual time.
//!
//! Deadlines and durations use [`now`], which is monotonic: a change of the system time must not
//! end timeouts. Only logs and metrics use [`unix_now`].

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Returns the monotonic time; under `tokio::time::pause` the virtual time of the runtime.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one reader of the clock"
)]
#[inline]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Returns the time since the Unix epoch; zero if the system clock is before it.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one reader of the clock"
)]
pub fn unix_now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
