//! Tells an idle pair of streams from a peer that reads slowly.
//!
//! What we could write says little about a slow reader: behind a large send buffer it makes room for nothing for a long
//! time. So before a stream counts as idle, the bytes that its peer has not acknowledged are looked at, and a change
//! between two looks is activity. Pure: times and counts are arguments.

use std::time::{Duration, Instant};

/// Looks in one idle time: a slow reader that stops is given up by this part of it late.
const LOOKS: u32 = 8;

/// Bytes written to either stream of a pair that its peer has not acknowledged; `None` where that says nothing.
pub type UnackedBytes = [Option<u64>; 2];

/// The last activity on one stream or on a pair of them.
#[derive(Debug, Clone, Copy)]
pub struct ActivityTracker {
    /// When a byte was last moved, or seen to be acknowledged.
    pub last: Instant,
    look: Option<Look>,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    /// [`ActivityTracker::last`] at that time: bytes that were moved since make the look worthless.
    last: Instant,
    unacked: UnackedBytes,
}

impl ActivityTracker {
    /// Activity at `now`.
    pub const fn new(now: Instant) -> Self {
        Self {
            last: now,
            look: None,
        }
    }

    /// When to ask [`ActivityTracker::is_over`], for an idle time of `idle`.
    pub fn deadline(&self, idle: Duration) -> Instant {
        let over = self.last + idle;
        match self.look() {
            // Nothing is left that a peer could acknowledge.
            Some(look) if look.unacked.iter().all(|count| count.unwrap_or(0) == 0) => over,
            Some(look) => over.min(look.at + idle / LOOKS),
            None => self.last + idle / LOOKS,
        }
    }

    /// The deadline has passed: true if there was no activity for `idle`. `unacked` is that of each stream at `now`.
    pub fn is_over(&mut self, idle: Duration, unacked: UnackedBytes, now: Instant) -> bool {
        if self.look().is_some_and(|look| look.unacked != unacked) {
            self.last = now;
        }
        self.look = Some(Look {
            at: now,
            last: self.last,
            unacked,
        });
        now >= self.last + idle
    }

    fn look(&self) -> Option<&Look> {
        self.look.as_ref().filter(|look| look.last == self.last)
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
    fn bytes_that_were_moved_after_a_look_are_not_counted_again() {
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
