//! A rate limit for log lines about errors that a peer can cause as often as it likes. Without it
//! an attacker could fill the disk or hide other lines.
//!
//! Pure: time is an argument.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Minimum time between two messages of one limit.
const MIN_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Allows one message per `MIN_LOG_INTERVAL`, and counts the suppressed ones.
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<LogHistory>);

#[derive(Debug, Default)]
struct LogHistory {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogLimit {
    /// A limit without history; `const` for a `static`.
    pub const fn new() -> Self {
        Self(Mutex::new(LogHistory {
            last: None,
            suppressed: 0,
        }))
    }

    /// Returns the number of messages suppressed since the last one if a message may be logged at
    /// `now`, else `None`.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let mut history = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_soon = |last| now.saturating_duration_since(last) < MIN_LOG_INTERVAL;
        if history.last.is_some_and(is_soon) {
            history.suppressed += 1;
            return None;
        }
        history.last = Some(now);
        Some(std::mem::take(&mut history.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_in_ten_seconds_and_the_number_of_the_others() {
        let limit = LogLimit::default();
        let begin = crate::base::clock::now();
        let admit = |seconds| limit.admit(begin + Duration::from_secs(seconds));
        assert_eq!(admit(0), Some(0));
        assert_eq!([admit(1), admit(9)], [None, None]);
        assert_eq!(admit(10), Some(2));
        assert_eq!(admit(11), None);
        assert_eq!(admit(100), Some(1));
    }
}
