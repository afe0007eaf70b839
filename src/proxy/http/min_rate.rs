//! Minimum transfer rate of a client that sends a request body: at least 1 KiB, or all of the
//! rest, per `timeouts.body_idle`. A client that drips bytes must not hold an exchange for ever.
//!
//! Each [`MIN_BYTES_PER_WINDOW`] bytes begin a new window, and only time spent waiting for the
//! client counts: a slow backend is not its fault. Pure: times and counts are arguments.

use std::time::{Duration, Instant};

/// Bytes that a client must send within a window.
const MIN_BYTES_PER_WINDOW: u64 = 1 << 10;

/// The minimum rate of one request body.
#[derive(Debug, Default)]
pub(super) struct MinRate {
    /// Bytes received until the window began.
    window_start: u64,
    /// Time of the window used up before `since`.
    spent: Duration,
    /// Start of the current wait for the client.
    since: Option<Instant>,
}

impl MinRate {
    /// Takes the count of bytes received so far, and whether the client is waited for from `now`
    /// on. Called when bytes have moved, not for every byte.
    pub(super) fn update(&mut self, waits: bool, moved: u64, now: Instant) {
        let since = self.since.take();
        if moved.saturating_sub(self.window_start) >= MIN_BYTES_PER_WINDOW {
            (self.window_start, self.spent) = (moved, Duration::ZERO);
        } else if let Some(since) = since {
            self.spent += now.saturating_duration_since(since);
        }
        self.since = waits.then_some(now);
    }

    /// Ends the wait for the client, at a time that was not measured.
    pub(super) fn pause(&mut self) {
        self.since = None;
    }

    /// End of the window; `None` while the client is not waited for, or without a window.
    pub(super) fn deadline(&self, window: Option<Duration>) -> Option<Instant> {
        Some(self.since? + window?.saturating_sub(self.spent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const BODY_IDLE: Option<Duration> = Some(Duration::from_secs(30));

    /// Gives the instant some seconds after the start.
    fn times() -> impl Fn(u64) -> Instant {
        let start = clock::now();
        move |seconds| start + Duration::from_secs(seconds)
    }

    #[test]
    fn dripping_does_not_move_the_deadline_and_a_kibibyte_does() {
        let (mut min_rate, at) = (MinRate::default(), times());
        assert_eq!(min_rate.deadline(BODY_IDLE), None, "no wait yet");
        min_rate.update(true, 100, at(0));
        for second in 1..25 {
            min_rate.update(true, 100 + second, at(second));
            assert_eq!(
                min_rate.deadline(BODY_IDLE),
                Some(at(30)),
                "second {second}"
            );
        }
        min_rate.update(true, 1_023, at(25));
        assert_eq!(min_rate.deadline(BODY_IDLE), Some(at(30)));
        min_rate.update(true, 1_024, at(26));
        assert_eq!(min_rate.deadline(BODY_IDLE), Some(at(56)));
        assert_eq!(min_rate.deadline(None), None);
    }

    #[test]
    fn only_the_time_in_which_the_client_is_waited_for_counts() {
        let (mut min_rate, at) = (MinRate::default(), times());
        min_rate.update(true, 0, at(0));
        min_rate.update(false, 10, at(20));
        assert_eq!(min_rate.deadline(BODY_IDLE), None);
        min_rate.update(false, 10, at(500));
        min_rate.update(true, 10, at(1_000));
        assert_eq!(
            min_rate.deadline(BODY_IDLE),
            Some(at(1_010)),
            "20 s are used up"
        );
        min_rate.pause();
        min_rate.update(true, 10, at(2_000));
        assert_eq!(min_rate.deadline(BODY_IDLE), Some(at(2_010)));
    }
}
