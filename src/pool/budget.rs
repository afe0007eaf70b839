//! The retry budget of a pool: retries may be a share of the requests, and always 10 a second. So a
//! dead pool is not hit by a multiple of its traffic, and a pool with little traffic can still
//! retry. Process-wide and exact: no interleaving of threads spends a token twice.
//!
//! Each request adds `share` of a token. Unused tokens of requests decay exponentially with a time
//! constant of 1 s (an exponentially weighted moving average of the request rate), so that a pool
//! that dies under load gets no more than its share at once. Time adds ten tokens a second, up to a
//! reserve of 100; a new pool starts with a full reserve.

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

/// Tokens added per second by time alone.
const RESERVE_TOKENS_PER_SECOND: f64 = 10.0;
/// Maximum of unused tokens added by time.
const MAX_RESERVE_TOKENS: f64 = 100.0;
/// Time constant of the decay of the requests' tokens, in seconds.
const DECAY_SECONDS: f64 = 1.0;

/// Token bucket for retries; see the head of this file.
#[derive(Debug)]
pub struct RetryBudget {
    requests: PerThread<MetricCell>,
    /// Number of requests whose share is in the balance.
    settled_requests: AtomicU64,
    /// Nanoseconds since `start` up to which the balance is settled.
    settled_nanos: AtomicU64,
    start: OnceLock<Instant>,
    /// Tokens added by requests. Bits of an `f64`: never negative.
    request_tokens: AtomicU64,
    /// Tokens added by time. Bits of an `f64`: never negative.
    reserve_tokens: AtomicU64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            requests: PerThread::default(),
            settled_requests: AtomicU64::new(0),
            settled_nanos: AtomicU64::new(0),
            start: OnceLock::new(),
            request_tokens: AtomicU64::new(0),
            reserve_tokens: AtomicU64::new(MAX_RESERVE_TOKENS.to_bits()),
        }
    }
}

impl RetryBudget {
    /// Counts a request in the calling thread's own slot. The tokens are computed by the next
    /// retry, so that a request shares no cache line with other threads.
    #[inline]
    pub fn request(&self) {
        self.requests.mine().add(1);
    }

    /// Takes the token for one retry, if there is one. `share` is the ratio of retries to requests.
    pub fn try_spend(&self, share: f64, now: Instant) -> bool {
        debug_assert!(share >= 0.0, "{share}");
        let earned = self.settle(share, now);
        let requests = |balance: f64| balance * earned.kept + earned.tokens;
        let reserve = |balance: f64| {
            (balance + earned.seconds * RESERVE_TOKENS_PER_SECOND).min(MAX_RESERVE_TOKENS)
        };
        // Both balances are updated, even if the first one has the token: the earnings are handed
        // out only once. The decaying tokens go first, the reserve keeps.
        let taken = take_token(&self.request_tokens, true, requests);
        take_token(&self.reserve_tokens, !taken, reserve) || taken
    }

    /// Computes the earnings since the last call; each request and each nanosecond is handed to one
    /// caller only.
    fn settle(&self, share: f64, now: Instant) -> EarnedTokens {
        let requests = self.requests.sum(|count| count);
        // `fetch_max` hands the difference to the one caller that moves the mark.
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
        let kept = (-seconds / DECAY_SECONDS).exp();
        // The requests came evenly over the interval, so the older of their tokens have decayed
        // too: the mean of exp(-t/τ) over it is (1 - exp(-s/τ)) · τ / s.
        let undecayed = (1.0 - kept) * DECAY_SECONDS / seconds;
        EarnedTokens {
            kept,
            tokens: earned * undecayed,
            seconds,
        }
    }
}

/// Replaces a balance by `settled` of it, less one token if one is wanted and there. True if it was
/// taken.
fn take_token(balance: &AtomicU64, wanted: bool, settled: impl Fn(f64) -> f64) -> bool {
    let has_token = |bits: u64| wanted && settled(f64::from_bits(bits)) >= 1.0;
    let before = balance.try_update(AcqRel, Acquire, |bits| {
        let taken = if has_token(bits) { 1.0 } else { 0.0 };
        Some((settled(f64::from_bits(bits)) - taken).to_bits())
    });
    before.is_ok_and(has_token)
}

/// Earnings between two settlements.
struct EarnedTokens {
    /// Remaining part of the old request tokens after their decay, 0.0..=1.0.
    kept: f64,
    /// New request tokens.
    tokens: f64,
    /// Length of the interval.
    seconds: f64,
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread, time::Duration};

    use super::*;
    use crate::base::clock;

    /// `per_second` failing requests a second, each retried as often as the budget allows, at most
    /// twice.
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

    /// Number of retries that are possible at this instant.
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
    fn a_busy_hour_saves_one_second_and_an_idle_one_the_reserve() {
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
