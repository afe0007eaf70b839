//! The minimum rate of a request body before the response begins: at least [`MIN_BYTES_PER_WINDOW`] bytes, or all that is left, in each
//! window of `timeouts.body_idle`. A byte now and then does not hold an exchange for ever.
//!
//! A new window begins with every [`MIN_BYTES_PER_WINDOW`] bytes, and only time in which the client is waited for counts: what a backend
//! takes is not its fault. Pure: times and counts are arguments, and are given when something has moved, not for every byte.

use std::time::{Duration, Instant};

/// Bytes a client must move in a window.
const MIN_BYTES_PER_WINDOW: u64 = 1 << 10;

/// The pace of a client that sends.
#[derive(Debug, Default)]
pub(super) struct MinRate {
    /// What it had moved when the window began.
    mark: u64,
    /// Time of the window before `since`.
    spent: Duration,
    /// Since when it is waited for, if it is.
    since: Option<Instant>,
}

impl MinRate {
    /// Notes that `moved` bytes have been moved in all, and whether the client is waited for from `now` on.
    pub(super) fn update(&mut self, waits: bool, moved: u64, now: Instant) {
        let since = self.since.take();
        if moved.saturating_sub(self.mark) >= MIN_BYTES_PER_WINDOW {
            (self.mark, self.spent) = (moved, Duration::ZERO);
        } else if let Some(since) = since {
            self.spent += now.saturating_duration_since(since);
        }
        self.since = waits.then_some(now);
    }

    /// Notes that the client is not waited for, at a time nobody has looked at.
    pub(super) fn pause(&mut self) {
        self.since = None;
    }

    /// When the window is over; `None` while the client is not waited for, or with no window.
    pub(super) fn deadline(&self, window: Option<Duration>) -> Option<Instant> {
        Some(self.since? + window?.saturating_sub(self.spent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const WINDOW: Option<Duration> = Some(Duration::from_secs(30));

    /// Gives the instant some seconds after the start.
    fn times() -> impl Fn(u64) -> Instant {
        let start = clock::now();
        move |seconds| start + Duration::from_secs(seconds)
    }

    #[test]
    fn dripping_does_not_move_the_deadline_and_a_kibibyte_does() {
        let (mut min_rate, at) = (MinRate::default(), times());
        assert_eq!(min_rate.deadline(WINDOW), None, "nobody waits");
        min_rate.update(true, 100, at(0));
        for second in 1..25 {
            min_rate.update(true, 100 + second, at(second));
            assert_eq!(min_rate.deadline(WINDOW), Some(at(30)), "second {second}");
        }
        min_rate.update(true, 1_023, at(25));
        assert_eq!(min_rate.deadline(WINDOW), Some(at(30)));
        min_rate.update(true, 1_024, at(26));
        assert_eq!(min_rate.deadline(WINDOW), Some(at(56)));
        assert_eq!(min_rate.deadline(None), None);
    }

    #[test]
    fn only_the_time_in_which_the_client_is_waited_for_counts() {
        let (mut min_rate, at) = (MinRate::default(), times());
        min_rate.update(true, 0, at(0));
        min_rate.update(false, 10, at(20));
        assert_eq!(min_rate.deadline(WINDOW), None);
        min_rate.update(false, 10, at(500));
        min_rate.update(true, 10, at(1_000));
        assert_eq!(min_rate.deadline(WINDOW), Some(at(1_010)), "20 s are spent");
        min_rate.pause();
        min_rate.update(true, 10, at(2_000));
        assert_eq!(min_rate.deadline(WINDOW), Some(at(2_010)));
    }
}
