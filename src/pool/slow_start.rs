//! Slow start: a backend that has recovered or was added gets a share that grows with time.
//!
//! The weight grows from 10 % to 100 % of its value over the configured time. Weights are integers,
//! so while one backend ramps all are multiplied by 100.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{backend::Backend, policy::EligibleBackend};

/// Share of the weight at the begin of a ramp, in percent.
const FIRST_PERCENT: u64 = 10;
/// Weights are renewed this many times in a ramp, as far as the bounds allow.
const RAMP_STEPS: u32 = 64;
/// Bounds of the time from one renewal to the next.
const RAMP_STEP_BOUNDS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Eligible backends with their weights at one time.
pub(super) struct WeightedBackends {
    pub(super) candidates: Box<[EligibleBackend]>,
    /// Time at which the weights change; `None` while none ramps.
    pub(super) next_ramp: Option<Instant>,
}

/// Gives the backends their weights at `now`, with `slow_start` as configured.
pub(super) fn weighted(
    backends: &[&Arc<Backend>],
    slow_start: Option<Duration>,
    now: Instant,
) -> WeightedBackends {
    // One alone gets everything anyway.
    let slow_start = slow_start.filter(|_| backends.len() > 1);
    let percent = |backend: &Backend| percent(backend, slow_start, now);
    let is_ramping = backends.iter().any(|one| percent(one).is_some());
    let candidate = |backend: &&Arc<Backend>| {
        let percent = percent(backend).unwrap_or(100);
        let weight = u32::from(backend.weight());
        EligibleBackend {
            backend: Arc::clone(backend),
            weight: if is_ramping {
                weight * u32::from(percent)
            } else {
                weight
            },
            percent,
        }
    };
    let step = slow_start.unwrap_or_default() / RAMP_STEPS;
    WeightedBackends {
        candidates: backends.iter().map(candidate).collect(),
        next_ramp: is_ramping.then(|| now + step.clamp(RAMP_STEP_BOUNDS.0, RAMP_STEP_BOUNDS.1)),
    }
}

/// Percent of its weight that `backend` has at `now`; `None`: the whole.
pub(super) fn percent(backend: &Backend, slow_start: Option<Duration>, now: Instant) -> Option<u8> {
    let began = backend.state.ramp_began()?;
    ramp_percent(now.saturating_duration_since(began), slow_start?)
}

/// Percent of the weight `since` the begin of the ramp; `None` when it is over.
fn ramp_percent(since: Duration, slow_start: Duration) -> Option<u8> {
    if since >= slow_start {
        return None;
    }
    let grown =
        since.as_millis() as u64 * (100 - FIRST_PERCENT) / (slow_start.as_millis() as u64).max(1);
    Some((FIRST_PERCENT + grown) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_grows_from_a_tenth_to_the_whole() {
        let percent = |millis| ramp_percent(Duration::from_millis(millis), Duration::from_secs(10));
        assert_eq!(percent(0), Some(10));
        assert_eq!(percent(5_000), Some(55));
        assert_eq!(percent(9_999), Some(99));
        assert_eq!(percent(10_000), None);
    }
}
