//! Exponential backoff: a pause that doubles from a first value up to a limit. Without jitter;
//! callers that share a peer add it.

use std::time::Duration;

/// Returns the pause after `step` doublings of `first`, never above `limit`.
pub fn doubled(first: Duration, step: u32, limit: Duration) -> Duration {
    first
        .saturating_mul(1_u32.checked_shl(step).unwrap_or(u32::MAX))
        .min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_and_stops_at_the_limit() {
        let wait = |step| doubled(Duration::from_secs(10), step, Duration::from_mins(5)).as_secs();
        assert_eq!(
            [
                wait(0),
                wait(1),
                wait(2),
                wait(4),
                wait(5),
                wait(40),
                wait(u32::MAX)
            ],
            [10, 20, 40, 160, 300, 300, 300]
        );
    }
}
