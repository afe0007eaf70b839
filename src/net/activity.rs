//! Tells an idle pair of streams from a peer that reads slowly. Pure: times and counts are
//! arguments.
//!
//! Our own writes say little about a slow reader: while megabytes wait in the kernel's send buffer,
//! none succeeds for minutes, although the peer reads all the time. So the bytes that the peer has
//! not acknowledged are sampled, and a change between two samples is activity.

use std::time::{Duration, Instant};

/// Samples per idle timeout: a slow reader that stops is given up late by at most this part of it.
const SAMPLES_PER_TIMEOUT: u32 = 8;

/// Bytes that the peers of a pair have not acknowledged; `None` where no such count is known.
pub type UnackedBytes = [Option<u64>; 2];

/// The last activity on one stream or on a pair of them.
#[derive(Debug, Clone, Copy)]
pub struct ActivityTracker {
    /// Time at which a byte was last moved, or seen to be acknowledged.
    pub last: Instant,
    sample: Option<UnackedSample>,
}

#[derive(Debug, Clone, Copy)]
struct UnackedSample {
    taken_at: Instant,
    /// [`ActivityTracker::last`] at that time: bytes that we moved since change the count as well,
    /// so they make the sample useless.
    last: Instant,
    unacked: UnackedBytes,
}

impl ActivityTracker {
    /// Starts with activity at `now`.
    pub const fn new(now: Instant) -> Self {
        Self {
            last: now,
            sample: None,
        }
    }

    /// Time of the next call of [`ActivityTracker::is_over`], for an idle timeout of `idle`.
    pub fn deadline(&self, idle: Duration) -> Instant {
        let over = self.last + idle;
        match self.sample() {
            // There is nothing a peer could acknowledge: no more samples are needed.
            Some(sample) if sample.unacked.iter().all(|count| count.unwrap_or(0) == 0) => over,
            Some(sample) => over.min(sample.taken_at + idle / SAMPLES_PER_TIMEOUT),
            None => self.last + idle / SAMPLES_PER_TIMEOUT,
        }
    }

    /// Takes a sample at the deadline; true if there was no activity for `idle`.
    pub fn is_over(&mut self, idle: Duration, unacked: UnackedBytes, now: Instant) -> bool {
        if self
            .sample()
            .is_some_and(|sample| sample.unacked != unacked)
        {
            self.last = now;
        }
        self.sample = Some(UnackedSample {
            taken_at: now,
            last: self.last,
            unacked,
        });
        now >= self.last + idle
    }

    /// The last sample, if no byte was moved since.
    fn sample(&self) -> Option<&UnackedSample> {
        self.sample
            .as_ref()
            .filter(|sample| sample.last == self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    const IDLE: Duration = Duration::from_secs(80);

    fn times() -> (Instant, impl Fn(u64) -> Instant) {
        let start = clock::now();
        (start, move |seconds| start + Duration::from_secs(seconds))
    }

    #[test]
    fn a_pair_on_which_nothing_moves_is_over_after_the_idle_time() {
        let (start, at) = times();
        let mut activity = ActivityTracker::new(start);
        assert_eq!(activity.deadline(IDLE), at(10));
        assert!(!activity.is_over(IDLE, [Some(0), None], at(10)));
        assert_eq!(activity.deadline(IDLE), at(80), "nothing can change");
        assert!(activity.is_over(IDLE, [Some(0), None], at(80)));
    }

    #[test]
    fn a_peer_that_acknowledges_bytes_is_not_idle_and_one_that_stops_is() {
        let (start, at) = times();
        let mut activity = ActivityTracker::new(start);
        let mut left = 1_000;
        for second in (10..=1_000).step_by(10) {
            assert_eq!(activity.deadline(IDLE), at(second));
            assert!(!activity.is_over(IDLE, [None, Some(left)], at(second)));
            left -= 1;
        }
        left += 1;
        for second in (1_010..1_080).step_by(10) {
            assert!(!activity.is_over(IDLE, [None, Some(left)], at(second)));
        }
        assert!(activity.is_over(IDLE, [None, Some(left)], at(1_080)));
    }

    #[test]
    fn bytes_that_were_moved_after_a_sample_are_not_counted_again() {
        let (start, at) = times();
        let mut activity = ActivityTracker::new(start);
        assert!(!activity.is_over(IDLE, [Some(0), Some(0)], at(10)));
        activity.last = at(15);
        assert_eq!(activity.deadline(IDLE), at(25));
        assert!(!activity.is_over(IDLE, [Some(0), Some(7)], at(25)));
        assert_eq!(activity.last, at(15));
        assert!(!activity.is_over(IDLE, [Some(0), Some(7)], at(35)));
        assert!(activity.is_over(IDLE, [Some(0), Some(7)], at(95)));
    }
}
