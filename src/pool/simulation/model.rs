//! The model of one backend: its history, and the state that follows from it.

use std::time::{Duration, Instant};

use crate::{
    base::backoff,
    config::model,
    pool::{Backend, HealthState, OperatorState, Pool},
};

/// Entry in the history of checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckNote {
    /// A result, and if the check began after the last ejection did.
    Result { passed: bool, is_later: bool },
    /// The backend was out of the configuration: the next result decides alone.
    Absence,
}

/// An ejection of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ModelEjection {
    /// Tells it from others of the backend.
    pub(super) number: u32,
    pub(super) until: Instant,
    /// Its time has been found to be over.
    pub(super) is_over: bool,
}

/// Model of a backend.
#[derive(Debug)]
pub(super) struct BackendModel {
    /// The pool had no check when the history began: it is up without a result.
    is_up_unchecked: bool,
    checks: Vec<CheckNote>,
    pub(super) is_present: bool,
    /// Set by the operator.
    pub(super) operator: Option<OperatorState>,
    /// Set by the operator.
    pub(super) weight: Option<u16>,
    pub(super) ejection: Option<ModelEjection>,
    ejected_at: Option<Instant>,
    /// Ejections that are remembered.
    ejection_count: u32,
    number: u32,
    /// Failures in a row.
    pub(super) streak: u32,
    /// Second and failure of each outcome.
    outcomes: Vec<(u64, bool)>,
    last_ask: Option<u64>,
    /// It has been out of service and came back: slow start begins then.
    pub(super) recovered: bool,
}

impl BackendModel {
    pub(super) fn new(has_checks: bool) -> Self {
        Self {
            is_up_unchecked: !has_checks,
            checks: Vec::new(),
            is_present: true,
            operator: None,
            weight: None,
            ejection: None,
            ejected_at: None,
            ejection_count: 0,
            number: 0,
            streak: 0,
            outcomes: Vec::new(),
            last_ask: None,
            recovered: false,
        }
    }

    /// The verdict: that of the last result that decided. A result decides if it is the first one,
    /// or the last of enough in a row.
    fn verdict(&self, rise: u32, fall: u32) -> HealthState {
        let decides = |at: usize| {
            let CheckNote::Result { passed, .. } = self.checks[at] else {
                return None;
            };
            let results = || {
                let notes = self.checks[..=at].iter().rev();
                notes.filter(|note| **note != CheckNote::Absence)
            };
            let is_same = |note: &&CheckNote| matches!(note, CheckNote::Result { passed: p, .. } if *p == passed);
            let in_a_row = results().take_while(is_same).count() as u32;
            let needed = if passed { rise } else { fall };
            let is_first = results().count() == 1 && !self.is_up_unchecked;
            let is_after_absence = at > 0 && self.checks[at - 1] == CheckNote::Absence;
            (is_first || is_after_absence || in_a_row >= needed).then_some(passed)
        };
        match (0..self.checks.len()).rev().find_map(decides) {
            Some(true) => HealthState::Up,
            Some(false) => HealthState::Down,
            None if self.is_up_unchecked => HealthState::Up,
            None => HealthState::Checking,
        }
    }

    /// The state, by precedence.
    pub(super) fn state(&self, rise: u32, fall: u32) -> HealthState {
        if !self.is_present {
            return HealthState::Removed;
        }
        match (self.operator, self.verdict(rise, fall)) {
            (Some(OperatorState::Draining), _) => HealthState::Draining,
            (Some(OperatorState::Maintenance), _) => HealthState::Maintenance,
            (_, HealthState::Down) => HealthState::Down,
            _ if self.ejection.is_some() => HealthState::Ejected,
            (_, verdict) => verdict,
        }
    }

    /// Adds a result of a check that began at `began`. Good ones that began after the ejection end
    /// it.
    pub(super) fn checked(&mut self, passed: bool, began: Instant, rise: u32) {
        let is_later = self.ejected_at.is_none_or(|at| began >= at);
        self.checks.push(CheckNote::Result { passed, is_later });
        let results = self.checks.iter().rev();
        let results = results.filter(|note| **note != CheckNote::Absence);
        let is_good = |note: &&CheckNote| {
            matches!(
                note,
                CheckNote::Result {
                    passed: true,
                    is_later: true
                }
            )
        };
        if results.take_while(is_good).count() as u32 >= rise {
            self.ejection = None;
        }
    }

    /// The pool no longer has a health check.
    pub(super) fn end_checks(&mut self) {
        self.checks.clear();
        self.is_up_unchecked = true;
    }

    pub(super) fn leave(&mut self) {
        self.is_present = false;
    }

    pub(super) fn return_to_service(&mut self) {
        self.is_present = true;
        self.checks.push(CheckNote::Absence);
    }

    /// Adds an outcome in `second`, and forgets those that are too old.
    pub(super) fn add_outcome(&mut self, second: u64, is_failure: bool) {
        self.outcomes.push((second, is_failure));
        self.outcomes.retain(|(at, _)| at + 10 > second);
    }

    fn is_rate_reached(&self, config: &model::EjectionConfig, second: u64) -> bool {
        let Some(rate) = config.failure_rate else {
            return false;
        };
        let recent = || self.outcomes.iter().filter(|(at, _)| at + 10 > second);
        let failed = recent().filter(|(_, is_failure)| *is_failure).count();
        // In tenths, as the plans have it.
        let tenths = (rate * 10.0).round() as usize;
        recent().count() >= config.min_requests as usize && failed * 10 >= recent().count() * tenths
    }

    /// Adds a failure, and says if there are enough of them for the pool to be asked.
    pub(super) fn failed(&mut self, config: &model::EjectionConfig, second: u64) -> bool {
        self.streak += 1;
        let mut asks = self.streak.is_multiple_of(config.failures);
        if config.failure_rate.is_some() {
            self.add_outcome(second, true);
            if self.is_rate_reached(config, second) && self.last_ask != Some(second) {
                self.last_ask = Some(second);
                asks = true;
            }
        }
        asks && (self.streak >= config.failures || self.is_rate_reached(config, second))
    }

    pub(super) fn forget_failures(&mut self) {
        self.streak = 0;
        self.outcomes.clear();
        self.last_ask = None;
    }

    /// Begins an ejection; `good_since` is the begin of the state before, if it was a good one.
    pub(super) fn eject(
        &mut self,
        config: &model::EjectionConfig,
        good_since: Option<Instant>,
        now: Instant,
    ) {
        if good_since
            .is_some_and(|since| now.saturating_duration_since(since) >= config.max_eject_for)
        {
            self.ejection_count = 0;
        }
        let duration: Duration =
            backoff::doubled(config.eject_for, self.ejection_count, config.max_eject_for);
        self.ejection_count += 1;
        self.number += 1;
        self.ejection = Some(ModelEjection {
            number: self.number,
            until: now + duration,
            is_over: false,
        });
        self.ejected_at = Some(now);
        // Results from before no longer count for its end.
        for note in &mut self.checks {
            if let CheckNote::Result { is_later, .. } = note {
                *is_later = false;
            }
        }
        self.forget_failures();
    }
}

/// Backends that may be out of `total` at `percent` of a pool.
fn allowed_out(total: usize, percent: usize) -> usize {
    match (total, percent) {
        (0 | 1, _) | (_, 0) => 0,
        (2 | 3, _) => (total * percent / 100).max(1),
        _ => total * percent / 100,
    }
}

/// True if the guard lets `backend` of the pool in force be ejected.
pub(super) fn guard_allows(pool: &Pool, backend: &Backend, percent: usize) -> bool {
    let mut weighted = pool.backends.iter().filter(|one| one.weight() > 0);
    let is_member = weighted.any(|one| one.state.address == backend.state.address);
    let counts = |one: &&std::sync::Arc<Backend>| one.weight() > 0 || one.config.weight > 0;
    let total = pool.backends.iter().filter(counts).count();
    let available = available(pool);
    let out = total - available;
    is_member
        && pool.config.ejection.is_some()
        && available > 1
        && out < allowed_out(total, percent)
}

/// Number of backends that serve or could at once.
pub(super) fn available(pool: &Pool) -> usize {
    let weighted = pool.backends.iter().filter(|one| one.weight() > 0);
    let serves = |one: &&std::sync::Arc<Backend>| {
        let state = one.state.state();
        let ignores_checks = pool.config.health_check.is_none();
        state.may_take_traffic() || ignores_checks && state == HealthState::Down
    };
    weighted.filter(serves).count()
}
