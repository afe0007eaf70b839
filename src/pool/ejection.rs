//! Passive ejection: the duration of the next ejection, and the panic guard that limits how much of
//! a pool may be out. Pure arithmetic.
//!
//! The guard counts backends that are out by checks, by ejection and by the operator together, as
//! the pool would be after the ejection. Otherwise each could take out half and leave nothing.
//! It counts every backend with a weight above 0 in the file, backups included, because a backup
//! can take over.
//! - The last backend that may take traffic is never ejected, so a pool of one never ejects.
//! - `model::EjectionConfig::allowed_out` says how many may be out.

use std::time::{Duration, Instant};

use crate::{base::backoff, config::model};

/// Numbers of a pool before an ejection; backends whose weight is 0 in the file and in force do not
/// count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolCounts {
    /// All backends.
    pub(crate) total: usize,
    /// Backends that may take traffic, including the one to be ejected.
    pub(crate) available: usize,
}

/// True if one available backend of such a pool may be ejected.
pub(crate) fn may_eject(counts: PoolCounts, ejection: &model::EjectionConfig) -> bool {
    debug_assert!(counts.available <= counts.total, "{counts:?}");
    let out_after = (counts.total + 1).saturating_sub(counts.available);
    counts.available >= 2 && out_after <= ejection.allowed_out(counts.total)
}

/// Duration of the next ejection. Each of the `ejections` before it doubles the duration, because a
/// backend that fails again right away is not repaired.
pub(crate) fn ejection_duration(config: &model::EjectionConfig, ejections: u32) -> Duration {
    backoff::doubled(config.eject_for, ejections, config.max_eject_for)
}

/// True if earlier ejections no longer count for a backend in a good state since `since`.
pub(crate) fn is_forgiven(config: &model::EjectionConfig, since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= config.max_eject_for
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
