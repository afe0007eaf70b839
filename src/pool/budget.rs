//! The retry budget of a pool: retries may be a share of the requests, and always 10 a second, so that a dead pool is
//! not hit by a multiple of its traffic. Process-wide and exact: no interleaving of threads spends a token twice.
//!
//! Every request earns `share` of a token, every second earns ten. What is not spent fades with a time constant of
//! 10 s, so no quiet or busy time can save more than 10 s of earnings. A new pool starts with the 100 tokens that
//! quiet seconds would have earned it.

use std::{
    sync::{
        OnceLock,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    time::Instant,
};

use crate::telemetry::metrics::{Count, PerThread};

/// Tokens earned by time alone, per second.
const PER_SECOND: f64 = 10.0;
/// Seconds over which savings fade.
const WINDOW: f64 = 10.0;

/// Tokens for retries. See the head of this file.
#[derive(Debug)]
pub struct RetryBudget {
    requests: PerThread<Count>,
    /// Requests whose share is in the balance.
    settled_requests: AtomicU64,
    /// Nanoseconds since `start` up to which the balance is settled.
    settled_nanos: AtomicU64,
    start: OnceLock<Instant>,
    /// Bits of an `f64`: never negative.
    balance: AtomicU64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            requests: PerThread::default(),
            settled_requests: AtomicU64::new(0),
            settled_nanos: AtomicU64::new(0),
            start: OnceLock::new(),
            balance: AtomicU64::new((PER_SECOND * WINDOW).to_bits()),
        }
    }
}

impl RetryBudget {
    /// Counts a request, on the calling thread's own slot.
    #[inline]
    pub fn request(&self) {
        self.requests.mine().add(1);
    }

    /// Takes the token for one retry, if there is one. `share` is 0.0..=1.0 of the requests.
    pub fn try_spend(&self, share: f64, now: Instant) -> bool {
        let earned = self.settle(share, now);
        self.balance
            .try_update(AcqRel, Acquire, |bits| {
                let balance = f64::from_bits(bits) * earned.kept + earned.tokens;
                Some(
                    if balance >= 1.0 {
                        balance - 1.0
                    } else {
                        balance
                    }
                    .to_bits(),
                )
            })
            .is_ok_and(|bits| f64::from_bits(bits) * earned.kept + earned.tokens >= 1.0)
    }

    /// What was earned since the last call; each request and each nanosecond is handed to one caller only.
    fn settle(&self, share: f64, now: Instant) -> Earned {
        let requests = self.requests.sum(|count| count);
        let new = requests.saturating_sub(self.settled_requests.fetch_max(requests, Relaxed));
        let start = *self.start.get_or_init(|| now);
        let nanos = now.saturating_duration_since(start).as_nanos() as u64;
        let before = self.settled_nanos.fetch_max(nanos, Relaxed);
        let seconds = nanos.saturating_sub(before) as f64 / 1e9;
        if seconds <= 0.0 {
            return Earned {
                kept: 1.0,
                tokens: new as f64 * share,
            };
        }
        let kept = (-seconds / WINDOW).exp();
        // The earnings came evenly over the time, so the older part of them has faded already.
        let faded = (1.0 - kept) * WINDOW / seconds;
        Earned {
            kept,
            tokens: (new as f64 * share + seconds * PER_SECOND) * faded,
        }
    }
}

struct Earned {
    /// The part of the old balance that is left.
    kept: f64,
    tokens: f64,
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread, time::Duration};

    use super::*;
    use crate::base::clock;

    /// `per_second` failing requests a second, each retried as often as the budget allows, at most twice.
    fn all_fail(budget: &RetryBudget, per_second: u32, seconds: u32, from: Instant) -> u32 {
        let mut retries = 0;
        for number in 0..per_second * seconds {
            let now = from + Duration::from_secs(1) * number / per_second;
            budget.request();
            retries += u32::from(budget.try_spend(0.2, now));
            retries += u32::from(budget.try_spend(0.2, now));
        }
        retries
    }

    /// How many retries are possible at this instant.
    fn savings(budget: &RetryBudget, share: f64, now: Instant) -> u32 {
        (0..100_000)
            .take_while(|_| budget.try_spend(share, now))
            .count() as u32
    }

    #[test]
    fn when_everything_fails_retries_stay_in_the_budget() {
        for (per_second, seconds) in [(1, 100), (50, 20), (1_000, 60), (5_000, 3)] {
            let retries = all_fail(&RetryBudget::default(), per_second, seconds, clock::now());
            let requests = per_second * seconds;
            let most = (requests / 5 + 100 + 10 * seconds).min(requests * 2);
            assert!(retries <= most, "{retries} > {most} at {per_second}/s");
            assert!(
                retries >= (most - 100).min(requests * 2 - 100),
                "{retries} of {most}"
            );
        }
    }

    #[test]
    fn neither_a_quiet_nor_a_busy_hour_saves_more_than_ten_seconds() {
        let (budget, start) = (RetryBudget::default(), clock::now());
        assert_eq!(savings(&budget, 0.2, start), 100);
        let later = start + Duration::from_hours(1);
        assert_eq!(savings(&budget, 0.2, later), 100);
        for second in 0..3_600 {
            for _ in 0..1_000 {
                budget.request();
            }
            if second % 60 == 0 {
                budget.try_spend(0.2, later + Duration::from_secs(second));
            }
        }
        let saved = savings(&budget, 0.2, later + Duration::from_hours(1));
        assert!((1_900..=2_100).contains(&saved), "{saved}");
    }

    #[test]
    fn a_smaller_share_after_a_reload_counts_for_new_requests_only() {
        let (budget, now) = (RetryBudget::default(), clock::now());
        (0..1_000).for_each(|_| budget.request());
        assert_eq!(savings(&budget, 0.5, now), 600);
        (0..1_000).for_each(|_| budget.request());
        assert_eq!(savings(&budget, 0.1, now), 100);
    }

    #[test]
    fn threads_spend_every_token_once() {
        let (budget, now, start) = (RetryBudget::default(), clock::now(), Barrier::new(4));
        (0..500).for_each(|_| budget.request());
        let spent: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        (0..1_000).filter(|_| budget.try_spend(0.2, now)).count()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(spent, 200);
    }
}
