//! The response time of a backend as a moving average that follows peaks at once.
//!
//! A response slower than the average becomes the average; a faster one lowers it, the more the
//! longer ago the last one was. Without responses it decays, so that a backend that was slow is
//! asked again some time later. Threads may overwrite each other's update: one response more or
//! less changes little.

use std::{
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::{Duration, Instant},
};

/// Time in which the weight of an old response falls to 1/e.
const DECAY_TIME: Duration = Duration::from_secs(10);

/// Average time to the first byte of a response, for `least_time`.
#[derive(Debug)]
pub(crate) struct ResponseTime {
    /// In nanoseconds as `f64` bits; 0 bits: no response yet.
    average: AtomicU64,
    /// Nanoseconds from `start` to the last response.
    updated: AtomicU64,
    start: Instant,
}

impl ResponseTime {
    /// Without any response.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            average: AtomicU64::new(0),
            updated: AtomicU64::new(0),
            start: now,
        }
    }

    /// Takes a response into the average.
    pub(crate) fn record(&self, took: Duration, now: Instant) {
        let took = took.as_nanos() as f64;
        let average = match self.average(now) {
            Some(average) if took < average.decayed => {
                let kept = average.decayed / average.last;
                average.last.mul_add(kept, took * (1.0 - kept))
            }
            _ => took,
        };
        self.updated.store(self.nanos(now), Relaxed);
        self.average.store(average.max(1.0).to_bits(), Release);
    }

    /// The average in nanoseconds, decayed since the last response; `None` before the first.
    #[inline]
    pub(crate) fn nanos_at(&self, now: Instant) -> Option<f64> {
        self.average(now).map(|average| average.decayed)
    }

    fn average(&self, now: Instant) -> Option<DecayedAverage> {
        let bits = self.average.load(Acquire);
        if bits == 0 {
            return None;
        }
        let last = f64::from_bits(bits);
        let silent = self.nanos(now).saturating_sub(self.updated.load(Relaxed));
        let factor = (-(silent as f64) / DECAY_TIME.as_nanos() as f64).exp();
        Some(DecayedAverage {
            last,
            decayed: last * factor,
        })
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_nanos() as u64
    }
}

/// The average at the last response, and decayed since.
struct DecayedAverage {
    last: f64,
    decayed: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn average(time: &ResponseTime, now: Instant) -> f64 {
        (time.nanos_at(now).unwrap() / 1e6 * 10.0).round() / 10.0
    }

    #[test]
    fn a_peak_counts_at_once_and_a_recovery_slowly() {
        let now = clock::now();
        let time = ResponseTime::new(now);
        assert_eq!(time.nanos_at(now), None);
        time.record(millis(10), now);
        assert!((average(&time, now) - 10.0).abs() < 0.01);
        time.record(millis(500), now);
        assert!((average(&time, now) - 500.0).abs() < 0.01, "a peak");
        let later = now + millis(1_000);
        time.record(millis(10), later);
        let after = average(&time, later);
        assert!(
            (400.0..470.0).contains(&after),
            "{after}: 1 s weighs little"
        );
        let mut at = later;
        for _ in 0..600 {
            at += millis(100);
            time.record(millis(10), at);
        }
        let after = average(&time, at);
        assert!((10.0..12.0).contains(&after), "{after} after a minute");
    }

    #[test]
    fn a_backend_that_is_not_asked_is_forgiven() {
        let now = clock::now();
        let time = ResponseTime::new(now);
        time.record(millis(2_000), now);
        let after = average(&time, now + Duration::from_mins(1));
        assert!(after < 6.0, "{after}");
        time.record(millis(1_500), now + Duration::from_mins(1));
        let again = average(&time, now + Duration::from_mins(1));
        assert!((again - 1_500.0).abs() < 0.1, "{again}");
    }
}
