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
