//! The minimum rate of a request body before the response begins: at least [`LEAST`] bytes, or all that is left, in each
//! window of `timeouts.body_idle`. A byte now and then does not hold an exchange for ever.
//!
//! A new window begins with every [`LEAST`] bytes, and only time in which the client is waited for counts: what a backend
//! takes is not its fault. Pure: times and counts are arguments, and are given when something has moved, not for every byte.

use std::time::{Duration, Instant};

/// Bytes a client must move in a window.
const LEAST: u64 = 1 << 10;

/// The pace of a client that sends.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// What it had moved when the window began.
    mark: u64,
    /// Time of the window before `since`.
    spent: Duration,
    /// Since when it is waited for, if it is.
    since: Option<Instant>,
}

impl Pace {
    /// Notes that `moved` bytes have been moved in all, and whether the client is waited for from `now` on.
    pub(super) fn note(&mut self, waits: bool, moved: u64, now: Instant) {
        let since = self.since.take();
        if moved.saturating_sub(self.mark) >= LEAST {
            (self.mark, self.spent) = (moved, Duration::ZERO);
        } else if let Some(since) = since {
            self.spent += now.saturating_duration_since(since);
        }
        self.since = waits.then_some(now);
    }

    /// Notes that the client is not waited for, at a time nobody has looked at.
    pub(super) fn rest(&mut self) {
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
        let (mut pace, at) = (Pace::default(), times());
        assert_eq!(pace.deadline(WINDOW), None, "nobody waits");
        pace.note(true, 100, at(0));
        for second in 1..25 {
            pace.note(true, 100 + second, at(second));
            assert_eq!(pace.deadline(WINDOW), Some(at(30)), "second {second}");
        }
        pace.note(true, 1_023, at(25));
        assert_eq!(pace.deadline(WINDOW), Some(at(30)));
        pace.note(true, 1_024, at(26));
        assert_eq!(pace.deadline(WINDOW), Some(at(56)));
        assert_eq!(pace.deadline(None), None);
    }

    #[test]
    fn only_the_time_in_which_the_client_is_waited_for_counts() {
        let (mut pace, at) = (Pace::default(), times());
        pace.note(true, 0, at(0));
        pace.note(false, 10, at(20));
        assert_eq!(pace.deadline(WINDOW), None);
        pace.note(false, 10, at(500));
        pace.note(true, 10, at(1_000));
        assert_eq!(pace.deadline(WINDOW), Some(at(1_010)), "20 s are spent");
        pace.rest();
        pace.note(true, 10, at(2_000));
        assert_eq!(pace.deadline(WINDOW), Some(at(2_010)));
    }
}
