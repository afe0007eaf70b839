//! The share of failures among the last requests to a backend, over a sliding window of ten
//! seconds.
//!
//! The window is ten buckets of one second, each one word: the second it is of, the outcomes and
//! the failures in it. Any thread adds to it without a lock. Only pools with
//! `ejection.failure_rate` touch it.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

/// Length of the window in seconds, and number of its buckets.
const WINDOW_SECONDS: u64 = 10;
/// Bits of each count. A bucket that is full counts no more, which keeps its ratio.
const COUNT_BITS: u32 = 20;
/// Largest count of a bucket.
const MAX_COUNT: u64 = (1 << COUNT_BITS) - 1;
/// Bits of the second, which repeats after 194 days.
const SECOND_MASK: u64 = (1 << 24) - 1;

/// Outcomes of requests in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct OutcomeCounts {
    /// Successes and failures.
    pub(super) total: u64,
    pub(super) failed: u64,
}

impl OutcomeCounts {
    /// True if at least `share` of at least `min` outcomes are failures.
    pub(super) fn is_at_least(self, share: f64, min: u32) -> bool {
        // The small addend keeps 29 of 100 from being less than 29 %.
        self.total >= u64::from(min) && self.failed as f64 + 1e-9 >= self.total as f64 * share
    }
}

/// Outcomes of the last ten seconds. `Default` is empty.
#[derive(Debug, Default)]
pub(super) struct FailureWindow {
    buckets: [AtomicU64; WINDOW_SECONDS as usize],
    /// The last second in which the pool was asked to eject, plus one.
    last_ask: AtomicU64,
}

impl FailureWindow {
    /// Adds one outcome in `second`, counted from any fixed point.
    pub(super) fn add(&self, second: u64, is_failure: bool) {
        let Some(bucket) = self.buckets.get((second % WINDOW_SECONDS) as usize) else {
            return;
        };
        let add = |value: u64| {
            let (of, mut counts) = unpack(value);
            if of != second & SECOND_MASK {
                counts = OutcomeCounts::default();
            }
            if counts.total < MAX_COUNT {
                counts.total += 1;
                counts.failed += u64::from(is_failure);
            }
            Some(pack(second, counts))
        };
        // It cannot fail: each value gives a next one.
        let _ = bucket.try_update(Relaxed, Relaxed, add);
    }

    /// Outcomes of the ten seconds that end with `second`.
    pub(super) fn counts(&self, second: u64) -> OutcomeCounts {
        let mut sum = OutcomeCounts::default();
        for bucket in &self.buckets {
            let (of, counts) = unpack(bucket.load(Relaxed));
            if second.wrapping_sub(of) & SECOND_MASK < WINDOW_SECONDS {
                sum.total += counts.total;
                sum.failed += counts.failed;
            }
        }
        sum
    }

    /// True for the first caller in `second`: a backend that fails thousands of requests must not
    /// take the pool's lock for each of them.
    pub(super) fn may_ask(&self, second: u64) -> bool {
        self.last_ask.load(Relaxed) != second + 1
            && self.last_ask.swap(second + 1, AcqRel) != second + 1
    }

    /// Forgets all outcomes.
    pub(super) fn clear(&self) {
        // Loads first: pools without a failure rate write nothing here.
        for cell in self.buckets.iter().chain([&self.last_ask]) {
            if cell.load(Acquire) != 0 {
                cell.store(0, Relaxed);
            }
        }
    }
}

fn pack(second: u64, counts: OutcomeCounts) -> u64 {
    (second & SECOND_MASK) << (2 * COUNT_BITS) | counts.total << COUNT_BITS | counts.failed
}

fn unpack(value: u64) -> (u64, OutcomeCounts) {
    let counts = OutcomeCounts {
        total: value >> COUNT_BITS & MAX_COUNT,
        failed: value & MAX_COUNT,
    };
    (value >> (2 * COUNT_BITS), counts)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn counts(window: &FailureWindow, second: u64) -> (u64, u64) {
        let counts = window.counts(second);
        (counts.total, counts.failed)
    }

    #[test]
    fn outcomes_leave_the_window_after_ten_seconds() {
        let window = FailureWindow::default();
        for second in 0..30 {
            window.add(second, second % 2 == 0);
            window.add(second, false);
            let seconds = (second + 1).min(10);
            let failed = (second + 1)
                .saturating_sub(second.saturating_sub(9))
                .div_ceil(2);
            let (total, seen) = counts(&window, second);
            assert_eq!(total, 2 * seconds, "second {second}");
            assert!(
                seen.abs_diff(failed) <= 1,
                "second {second}: {seen} {failed}"
            );
        }
        assert_eq!(counts(&window, 38), (2, 0));
        assert_eq!(counts(&window, 39), (0, 0));
        window.clear();
        assert_eq!(counts(&window, 30), (0, 0));
    }

    #[test]
    fn a_bucket_that_is_full_keeps_its_ratio() {
        let window = FailureWindow::default();
        for number in 0..MAX_COUNT + 1000 {
            window.add(7, number % 4 == 0);
        }
        let (total, failed) = counts(&window, 7);
        assert_eq!((total, failed), (MAX_COUNT, MAX_COUNT.div_ceil(4)));
    }

    #[test]
    fn the_rate_needs_its_requests_and_is_exact() {
        for (failed, total, percent, min, is_reached) in [
            (10, 20, 50, 20, true),
            (9, 20, 50, 20, false),
            (19, 19, 50, 20, false),
            (29, 100, 29, 20, true),
            (28, 100, 29, 20, false),
            (1, 1, 100, 1, true),
            (999, 1000, 100, 1, false),
            (1, 1000, 1, 1, false),
        ] {
            let counts = OutcomeCounts { total, failed };
            let got = counts.is_at_least(f64::from(percent) / 100.0, min);
            assert_eq!(got, is_reached, "{failed} of {total} at {percent}%");
        }
    }

    #[test]
    fn no_outcome_of_another_thread_is_lost() {
        let window = FailureWindow::default();
        thread::scope(|scope| {
            for number in 0..4 {
                let window = &window;
                scope.spawn(move || (0..5000).for_each(|_| window.add(3, number == 0)));
            }
        });
        assert_eq!(counts(&window, 3), (20_000, 5000));
        assert!(window.may_ask(3));
        assert!(!window.may_ask(3));
        assert!(window.may_ask(4));
    }
}
