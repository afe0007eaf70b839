//! Passive ejection: how long a sentence is, and whether one more backend may be taken out. Pure arithmetic.
//!
//! The guard counts active and passive together, as the pool would be after the ejection. `n` is every backend with a
//! weight above 0, backups included, because a backup can take over. Out is everyone of them who may not take traffic.
//! - the last backend that may take traffic is never ejected, so a pool of one never ejects;
//! - `model::EjectionConfig::allowed_out` says how many may be out.

use std::time::{Duration, Instant};

use crate::{base::backoff, config::model};

/// How a pool stands before an ejection; only backends with a weight above 0 count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolCounts {
    /// All of them.
    pub(crate) total: usize,
    /// Those that may take traffic, the one to be ejected included.
    pub(crate) available: usize,
}

/// True if one available backend of such a pool may be ejected.
pub(crate) fn may_eject(counts: PoolCounts, ejection: &model::EjectionConfig) -> bool {
    let out_after = (counts.total + 1).saturating_sub(counts.available);
    counts.available >= 2 && out_after <= ejection.allowed_out(counts.total)
}

/// The next sentence of a backend that served `step` of them and has been good since `since`; also the step it
/// counts from, which is 0 again after `max_eject_for` without trouble.
pub(crate) fn sentence(
    ejection: &model::EjectionConfig,
    step: u32,
    since: Instant,
    now: Instant,
) -> (u32, Duration) {
    let step = if now.saturating_duration_since(since) >= ejection.max_eject_for {
        0
    } else {
        step
    };
    let length = backoff::doubled(ejection.eject_for, step, ejection.max_eject_for);
    (step, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(percent: u32) -> model::EjectionConfig {
        model::EjectionConfig {
            max_ejected: f64::from(percent) / 100.0,
            ..model::EjectionConfig::default()
        }
    }

    #[test]
    fn the_share_is_rounded_down_and_one_of_two_or_three_may_go() {
        for (total, percent, allowed) in [
            (0, 100, 0),
            (1, 100, 0),
            (2, 0, 0),
            (2, 1, 1),
            (2, 50, 1),
            (3, 1, 1),
            (3, 50, 1),
            (3, 67, 2),
            (4, 24, 0),
            (4, 25, 1),
            (10, 9, 0),
            (10, 10, 1),
            (10, 19, 1),
            (10, 30, 3),
            (100, 29, 29),
            (10, 100, 10),
        ] {
            let got = share(percent).allowed_out(total);
            assert_eq!(got, allowed, "{total} at {percent}%");
        }
    }

    #[test]
    fn backends_out_for_any_cause_count_and_the_last_one_stays() {
        for (total, available, percent, may) in [
            (1, 1, 100, false),
            (2, 2, 50, true),
            (2, 1, 100, false),
            (3, 2, 50, false),
            (4, 3, 50, true),
            (4, 2, 50, false),
            (4, 2, 100, true),
            (4, 1, 100, false),
            (5, 5, 0, false),
        ] {
            let counts = PoolCounts { total, available };
            let got = may_eject(counts, &share(percent));
            assert_eq!(got, may, "{counts:?} at {percent}%");
        }
    }
}
