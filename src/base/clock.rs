//! The only place that reads a clock, so that tests can run in virtual time.
//!
//! Deadlines and durations use [`now`] (monotonic); only logs and metrics use [`unix_now`].

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic time. Under `tokio::time::pause` it is the virtual time of the runtime.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one reader of the clock"
)]
#[inline]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Time since the Unix epoch; zero if the system clock stands before it.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one reader of the clock"
)]
pub fn unix_now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
