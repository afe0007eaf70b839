//! The last checks of a backend, with the time that each phase took.
//!
//! Kept small: a configuration may have 10,000 backends.

use std::{collections::VecDeque, sync::Arc, time::Duration};

/// Checks that are kept of each backend.
pub const MAX_KEPT_CHECKS: usize = 16;

/// Times of a check, each from its start. `None`: the check had no such phase, or did not get so
/// far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckPhases {
    /// The name was resolved. Only `check --probe` resolves names within a check.
    pub resolved: Option<Duration>,
    /// The connection was established.
    pub connected: Option<Duration>,
    /// The TLS handshake was over.
    pub secured: Option<Duration>,
    /// The first byte of the answer was there.
    pub first_byte: Option<Duration>,
}

/// Duration of a check and its phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckTiming {
    /// The whole check.
    pub took: Duration,
    /// Its phases.
    pub phases: CheckPhases,
}

impl From<Duration> for CheckTiming {
    /// A check without phases.
    fn from(took: Duration) -> Self {
        Self {
            took,
            phases: CheckPhases::default(),
        }
    }
}

/// An active check of a backend that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckRecord {
    /// Its end, since the Unix epoch.
    pub at: Duration,
    /// `Err` is the cause of the failure.
    pub result: Result<(), Arc<str>>,
    /// Its times.
    pub timing: CheckTiming,
}

/// A check as it is kept.
#[derive(Debug)]
struct KeptCheck {
    at: Duration,
    cause: Option<Arc<str>>,
    /// Microseconds: the whole, then the phases.
    micros: [Option<u32>; 5],
}

impl KeptCheck {
    fn record(&self) -> CheckRecord {
        let time = |micros: u32| Duration::from_micros(u64::from(micros));
        let [took, resolved, connected, secured, first_byte] = self.micros;
        CheckRecord {
            at: self.at,
            result: self.cause.clone().map_or(Ok(()), Err),
            timing: CheckTiming {
                took: took.map_or(Duration::ZERO, time),
                phases: CheckPhases {
                    resolved: resolved.map(time),
                    connected: connected.map(time),
                    secured: secured.map(time),
                    first_byte: first_byte.map(time),
                },
            },
        }
    }
}

/// The last checks, the latest at the end.
#[derive(Debug, Default)]
pub(super) struct CheckHistory(VecDeque<KeptCheck>);

impl CheckHistory {
    /// Adds a check that ended at `at`; the oldest one goes.
    pub(super) fn push(&mut self, at: Duration, result: Result<(), String>, timing: CheckTiming) {
        if self.0.len() >= MAX_KEPT_CHECKS {
            self.0.pop_front();
        }
        // A backend that is down fails with one cause again and again: its text is kept once.
        let last = self.0.back().and_then(|kept| kept.cause.clone());
        let cause = result.err().map(|cause| {
            last.filter(|last| **last == *cause)
                .unwrap_or_else(|| cause.into())
        });
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let CheckTiming { took, phases } = timing;
        self.0.push_back(KeptCheck {
            at,
            cause,
            micros: [
                Some(micros(took)),
                phases.resolved.map(micros),
                phases.connected.map(micros),
                phases.secured.map(micros),
                phases.first_byte.map(micros),
            ],
        });
    }

    /// The latest check.
    pub(super) fn last(&self) -> Option<CheckRecord> {
        self.0.back().map(KeptCheck::record)
    }

    /// All of them, the latest first.
    pub(super) fn records(&self) -> Vec<CheckRecord> {
        self.0.iter().rev().map(KeptCheck::record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sixteen_are_kept_and_an_equal_cause_once() {
        let mut history = CheckHistory::default();
        assert_eq!(history.last(), None);
        for number in 0..20_u64 {
            let result = match number {
                0..=17 => Err("connection refused".to_owned()),
                18 => Ok(()),
                _ => Err("status 500".to_owned()),
            };
            let timing = CheckTiming {
                took: Duration::from_micros(number),
                phases: CheckPhases {
                    connected: Some(Duration::from_micros(3)),
                    ..CheckPhases::default()
                },
            };
            history.push(Duration::from_secs(number), result, timing);
        }
        let records = history.records();
        assert_eq!(records.len(), MAX_KEPT_CHECKS);
        assert_eq!(records[0].at, Duration::from_secs(19));
        assert_eq!(records[0].result, Err("status 500".into()));
        assert_eq!(records[0].timing.took, Duration::from_micros(19));
        let connected = records[0].timing.phases.connected;
        assert_eq!(connected, Some(Duration::from_micros(3)));
        assert_eq!(records[1].result, Ok(()));
        assert_eq!(records[15].at, Duration::from_secs(4));
        let cause = |number: usize| records[number].result.clone().unwrap_err();
        assert!(Arc::ptr_eq(&cause(2), &cause(15)));
        assert_eq!(history.last().as_ref(), records.first());
    }

    #[test]
    fn a_time_that_does_not_fit_is_the_longest_that_does() {
        let mut history = CheckHistory::default();
        history.push(Duration::ZERO, Ok(()), Duration::from_hours(2).into());
        let took = history.last().unwrap().timing.took;
        assert_eq!(took.as_micros(), u128::from(u32::MAX));
    }
}
