//! Whether a client that is waited for moves fast enough: at least [`LEAST`] bytes, or all that is left, in each window of
//! `timeouts.body_idle`. A byte now and then does not hold an exchange for ever.
//!
//! A window begins anew with every [`LEAST`] bytes, and only time in which the client is waited for counts: what a backend
//! takes is not its fault. Pure: times and counts are arguments, and are given when something has moved, not for every byte.

use std::time::{Duration, Instant};

/// Bytes a client must move in a window.
const LEAST: u64 = 1 << 10;
/// The part of a window after which it is asked for the first time what a reader's system has acknowledged.
const FIRST_LOOK: u32 = 8;

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
    /// Notes that `moved` bytes have been moved in all, and whether the client is waited for from `now` on. True if a window
    /// begins.
    pub(super) fn note(&mut self, waits: bool, moved: u64, now: Instant) -> bool {
        let since = self.since.take();
        let begins = moved.saturating_sub(self.mark) >= LEAST;
        if begins {
            (self.mark, self.spent) = (moved, Duration::ZERO);
        } else if let Some(since) = since {
            self.spent += now.saturating_duration_since(since);
        }
        self.since = waits.then_some(now);
        begins
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

/// The pace of a client that reads. What we could write says little about it: behind a large send buffer an honest slow
/// reader makes room for nothing for a long time. So before one is given up, what its system has acknowledged counts.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pace: Pace,
    /// Acknowledged bytes were asked for in this window.
    looked: bool,
    /// They were so many then, if the system says.
    acked: Option<u64>,
}

impl Reader {
    /// As [`Pace::note`], of bytes written.
    pub(super) fn note(&mut self, waits: bool, written: u64, now: Instant) {
        if self.pace.note(waits, written, now) {
            self.looked = false;
        }
    }

    /// When to ask [`Reader::is_slow`]; `None` while the client is not waited for.
    pub(super) fn deadline(&self, window: Option<Duration>) -> Option<Instant> {
        let part = if self.looked { 1 } else { FIRST_LOOK };
        self.pace.deadline(window.map(|window| window / part))
    }

    /// The deadline has passed: true if the client is to be given up. `acked` is the number of bytes acknowledged so far.
    pub(super) fn is_slow(&mut self, acked: Option<u64>, now: Instant) -> bool {
        if !std::mem::replace(&mut self.looked, true) {
            self.acked = acked;
            return false;
        }
        let taken = match (self.acked, acked) {
            (Some(before), Some(acked)) => acked.saturating_sub(before),
            _ => 0,
        };
        if taken < LEAST {
            return true;
        }
        self.acked = acked;
        (self.pace.spent, self.pace.since) = (Duration::ZERO, Some(now));
        false
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

    #[test]
    fn a_reader_behind_a_large_buffer_is_judged_by_what_it_acknowledges() {
        let (mut reader, at) = (Reader::default(), times());
        reader.note(true, 4 << 20, at(0));
        let look = |reader: &Reader, second: u64| {
            assert_eq!(reader.deadline(WINDOW), Some(at(second)));
        };
        assert_eq!(
            reader.deadline(WINDOW),
            Some(at(0) + Duration::from_millis(3_750))
        );
        assert!(!reader.is_slow(Some(10_000), at(4)));
        look(&reader, 30);
        assert!(!reader.is_slow(Some(11_024), at(30)), "it reads");
        look(&reader, 60);
        assert!(reader.is_slow(Some(12_047), at(60)), "a byte too little");
    }

    #[test]
    fn where_the_system_does_not_say_what_was_written_counts() {
        let (mut reader, at) = (Reader::default(), times());
        reader.note(true, 4 << 20, at(0));
        assert!(!reader.is_slow(None, at(4)));
        reader.note(true, 5 << 20, at(20));
        assert_eq!(
            reader.deadline(WINDOW),
            Some(at(20) + Duration::from_millis(3_750))
        );
        assert!(!reader.is_slow(None, at(24)));
        assert!(reader.is_slow(None, at(50)));
    }
}
