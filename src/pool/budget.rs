//! The retry budget of a pool: retries may be a share of the requests, and always 10 a second, so that a dead pool is
//! not hit by a multiple of its traffic. Process-wide and exact: no interleaving of threads spends a token twice.
//!
//! Every request earns `share` of a token; what is not spent fades with a time constant of 1 s, so that a pool that
//! dies under load gets no more than its share at once. Beside that every second earns ten tokens, of which a quiet pool
//! saves 100; a new pool starts with those.

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

use crate::telemetry::metrics::{MetricCell, PerThread};

/// Tokens earned by time alone, per second.
const PER_SECOND: f64 = 10.0;
/// Most tokens saved of those.
const RESERVE: f64 = 100.0;
/// Seconds over which the requests' tokens fade.
const WINDOW: f64 = 1.0;

/// Tokens for retries. See the head of this file.
#[derive(Debug)]
pub struct RetryBudget {
    requests: PerThread<MetricCell>,
    /// Requests whose share is in the balance.
    settled_requests: AtomicU64,
    /// Nanoseconds since `start` up to which the balance is settled.
    settled_nanos: AtomicU64,
    start: OnceLock<Instant>,
    /// Tokens that requests earned. Bits of an `f64`: never negative.
    shared: AtomicU64,
    /// Tokens that time earned. Bits of an `f64`: never negative.
    reserve: AtomicU64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            requests: PerThread::default(),
            settled_requests: AtomicU64::new(0),
            settled_nanos: AtomicU64::new(0),
            start: OnceLock::new(),
            shared: AtomicU64::new(0),
            reserve: AtomicU64::new(RESERVE.to_bits()),
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
        let shared = |balance: f64| balance * earned.kept + earned.tokens;
        let reserve = |balance: f64| (balance + earned.seconds * PER_SECOND).min(RESERVE);
        // Both are settled, whichever pays.
        let paid = spend(&self.shared, true, shared);
        spend(&self.reserve, !paid, reserve) || paid
    }

    /// What was earned since the last call; each request and each nanosecond is handed to one caller only.
    fn settle(&self, share: f64, now: Instant) -> EarnedTokens {
        let requests = self.requests.sum(|count| count);
        let new = requests.saturating_sub(self.settled_requests.fetch_max(requests, Relaxed));
        let start = *self.start.get_or_init(|| now);
        let nanos = now.saturating_duration_since(start).as_nanos() as u64;
        let before = self.settled_nanos.fetch_max(nanos, Relaxed);
        let seconds = nanos.saturating_sub(before) as f64 / 1e9;
        let earned = new as f64 * share;
        if seconds <= 0.0 {
            return EarnedTokens {
                kept: 1.0,
                tokens: earned,
                seconds,
            };
        }
        let kept = (-seconds / WINDOW).exp();
        // The earnings came evenly over the time, so the older part of them has faded already.
        let faded = (1.0 - kept) * WINDOW / seconds;
        EarnedTokens {
            kept,
            tokens: earned * faded,
            seconds,
        }
    }
}

/// Replaces a balance by what `settled` makes of it, less one token if one is wanted and there. True if it was taken.
fn spend(balance: &AtomicU64, wanted: bool, settled: impl Fn(f64) -> f64) -> bool {
    let pays = |bits: u64| wanted && settled(f64::from_bits(bits)) >= 1.0;
    let before = balance.try_update(AcqRel, Acquire, |bits| {
        let price = if pays(bits) { 1.0 } else { 0.0 };
        Some((settled(f64::from_bits(bits)) - price).to_bits())
    });
    before.is_ok_and(pays)
}

struct EarnedTokens {
    /// The part of the old tokens that is left.
    kept: f64,
    /// New ones, of requests.
    tokens: f64,
    /// Time since the last call.
    seconds: f64,
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
    fn a_busy_hour_saves_one_second_and_a_quiet_one_the_reserve() {
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
        assert!((290..=310).contains(&saved), "{saved}");
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
