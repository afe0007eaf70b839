//! The state of one backend as a pure state machine: checks, ejections and removal go in, changes
//! of state come out.
//!
//! It knows neither the pool (`ejection` decides if an ejection is allowed) nor threads (`backend`
//! holds the lock). Time is an argument; the wall clock is read only for display.
//!
//! Four facts make the state: the verdict of the checks (never checked, up, down), a running
//! ejection, a state set by the operator, and removal from the configuration. Precedence: removed >
//! maintenance > draining > down > ejected > up.
//!
//! | verdict | no ejection | ejection running |
//! |---|---|---|
//! | unknown | checking | ejected |
//! | up | up | ejected |
//! | down | down | down |
//!
//! The first check decides alone, either way, so that a start takes one interval and not `rise` of
//! them. After that `rise` and `fall` count. When the time of an ejection is over, a trial request
//! (`trial.rs`) ends it or begins the next one. It ends earlier when `rise` checks in a row have
//! passed that began after the ejection did. Checks and ejection go on behind a state of the
//! operator, and hold when that ends.

use std::time::{Duration, Instant};

use super::{
    check_history::{CheckHistory, CheckTiming},
    overrides::{BackendOverrides, OperatorState},
};
use crate::base::clock;

/// State of a backend, as named in metrics, the log and on the status page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum HealthState {
    /// Never checked yet: gets traffic only while no checked backend is up.
    Checking,
    /// Gets traffic.
    Up,
    /// The checks failed.
    Down,
    /// Taken out by failures of real traffic, until a trial request after its time or its checks
    /// have passed.
    Ejected,
    /// Gets no new work and finishes what it has.
    Draining,
    /// Switched off by the operator: no work at all.
    Maintenance,
    /// No longer in the configuration; finishes what it has.
    Removed,
}

impl HealthState {
    /// Every state, in the order of [`HealthState::index`].
    pub const ALL: [Self; 7] = [
        Self::Checking,
        Self::Up,
        Self::Down,
        Self::Ejected,
        Self::Draining,
        Self::Maintenance,
        Self::Removed,
    ];

    /// Number of states.
    pub const COUNT: usize = Self::ALL.len();

    /// Position in [`HealthState::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Checking => "checking",
            Self::Up => "up",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
            Self::Removed => "removed",
        }
    }

    /// True if the backend may get new work: checked and up, or not checked yet.
    pub const fn may_take_traffic(self) -> bool {
        matches!(self, Self::Up | Self::Checking)
    }

    /// The state of a backend for which the operator has set `state`.
    const fn set_by_operator(state: OperatorState) -> Self {
        match state {
            OperatorState::Draining => Self::Draining,
            OperatorState::Maintenance => Self::Maintenance,
        }
    }

    /// Returns the state at `index`, which must come from [`HealthState::index`].
    pub(crate) fn from_index(index: u8) -> Self {
        let state = Self::ALL.get(usize::from(index)).copied();
        debug_assert!(state.is_some(), "no state {index}");
        // Removed is the safe one: it gets no traffic.
        state.unwrap_or(Self::Removed)
    }
}

impl std::fmt::Display for HealthState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Verdict of the active checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CheckVerdict {
    Unknown,
    Up,
    Down,
}

/// Progress of an ejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EjectionPhase {
    /// Not ejected.
    None,
    /// Out for the time of the ejection.
    Out {
        /// Its end.
        until: Instant,
    },
    /// The time is over, and a trial request has to pass.
    Trial {
        /// End of the time.
        since: Instant,
    },
}

/// A change of state with its cause. From ejected to ejected: the next ejection has begun, or a
/// trial is next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateChange {
    pub(crate) from: HealthState,
    pub(crate) to: HealthState,
    pub(crate) cause: String,
    /// A trial is next.
    pub(crate) is_trial: bool,
}

/// Numbers of checks in a row that change the verdict.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckThresholds {
    pub(crate) rise: u32,
    pub(crate) fall: u32,
}

/// The state machine. `BackendState::view` copies its fields for the status page.
#[derive(Debug)]
pub(crate) struct BackendHealth {
    verdict: CheckVerdict,
    /// The backend was out of the configuration since the last check: the next one decides alone.
    verdict_is_old: bool,
    removed: bool,
    /// Set by the operator.
    pub(crate) overrides: BackendOverrides,
    pub(crate) ejection: EjectionPhase,
    /// Changes with each begin and end of an ejection.
    pub(crate) ejection_number: u32,
    /// The trial that was last seen on its way, and since when.
    pub(crate) trial_seen: Option<(u64, Instant)>,
    /// Start of the last ejection.
    ejected_at: Instant,
    /// Good checks in a row that began after `ejected_at`.
    pub(crate) good_since_ejection: u32,
    /// Ejections that are remembered: each doubles the duration of the next one.
    pub(crate) ejection_count: u32,
    pub(crate) good_in_a_row: u32,
    pub(crate) bad_in_a_row: u32,
    pub(crate) state: HealthState,
    pub(crate) since: Instant,
    pub(crate) since_unix: Duration,
    pub(crate) cause: String,
    /// A check has passed since the backend is known.
    pub(crate) has_passed: bool,
    /// The last checks.
    pub(super) history: CheckHistory,
    /// The local error that prevented the check after the last one.
    pub(crate) check_not_made: Option<String>,
}

impl BackendHealth {
    /// Health of a new backend. Without `checks` there is nothing to wait for: it is up at once.
    pub(crate) fn new(checks: bool, now: Instant) -> Self {
        let (verdict, state, cause) = if checks {
            (
                CheckVerdict::Unknown,
                HealthState::Checking,
                "not checked yet",
            )
        } else {
            (
                CheckVerdict::Up,
                HealthState::Up,
                "the pool has no health check",
            )
        };
        Self {
            verdict,
            verdict_is_old: false,
            removed: false,
            overrides: BackendOverrides::default(),
            ejection: EjectionPhase::None,
            ejection_number: 0,
            trial_seen: None,
            ejected_at: now,
            good_since_ejection: 0,
            ejection_count: 0,
            good_in_a_row: 0,
            bad_in_a_row: 0,
            state,
            since: now,
            since_unix: clock::unix_now(),
            cause: cause.to_owned(),
            has_passed: false,
            history: CheckHistory::default(),
            check_not_made: None,
        }
    }

    /// Takes the result of an active check with its times.
    pub(crate) fn checked(
        &mut self,
        result: Result<(), String>,
        timing: CheckTiming,
        thresholds: CheckThresholds,
        now: Instant,
    ) -> Option<StateChange> {
        let (good, bad) = match &result {
            Ok(()) => (self.good_in_a_row.saturating_add(1), 0),
            Err(_) => (0, self.bad_in_a_row.saturating_add(1)),
        };
        (self.good_in_a_row, self.bad_in_a_row) = (good, bad);
        self.update_verdict(result.is_ok(), thresholds);
        // A check that began before the ejection may have seen the backend as it was then.
        self.good_since_ejection = match result {
            Ok(()) if now.checked_sub(timing.took) < Some(self.ejected_at) => 0,
            Ok(()) => self.good_since_ejection.saturating_add(1),
            Err(_) => 0,
        };
        let mut cause = match &result {
            Ok(()) => in_a_row(good, "passed"),
            Err(error) => format!("{}: {error}", in_a_row(bad, "failed")),
        };
        // Checks end an ejection early: they prove a repair sooner than the backoff does.
        if self.is_ejected() && self.good_since_ejection >= thresholds.rise {
            self.clear_ejection();
            if self.state == HealthState::Ejected {
                cause = in_a_row(self.good_since_ejection, "passed") + " since the ejection";
            }
        }
        self.has_passed |= result.is_ok();
        self.history.push(clock::unix_now(), result, timing);
        self.check_not_made = None;
        self.settle(now, cause)
    }

    /// Applies one result to the verdict. Callers have updated the streaks.
    fn update_verdict(&mut self, is_good: bool, thresholds: CheckThresholds) {
        let verdict = if std::mem::take(&mut self.verdict_is_old) {
            CheckVerdict::Unknown
        } else {
            self.verdict
        };
        self.verdict = match (verdict, is_good) {
            (CheckVerdict::Unknown, true) => CheckVerdict::Up,
            (CheckVerdict::Unknown, false) => CheckVerdict::Down,
            (CheckVerdict::Down, true) if self.good_in_a_row >= thresholds.rise => CheckVerdict::Up,
            (CheckVerdict::Up, false) if self.bad_in_a_row >= thresholds.fall => CheckVerdict::Down,
            (verdict, _) => verdict,
        };
    }

    /// Records that a check could not be made. That says nothing about the backend.
    pub(crate) fn check_not_made(&mut self, error: String) {
        self.check_not_made = Some(error);
    }

    /// Takes the backend out until `until`, also one whose ejection is running.
    pub(crate) fn eject(
        &mut self,
        until: Instant,
        now: Instant,
        cause: String,
    ) -> Option<StateChange> {
        self.ejection = EjectionPhase::Out { until };
        self.ejection_number = self.ejection_number.wrapping_add(1);
        (self.ejected_at, self.good_since_ejection) = (now, 0);
        self.ejection_count = self.ejection_count.saturating_add(1);
        if self.state != HealthState::Ejected {
            return self.settle(now, cause);
        }
        self.cause.clone_from(&cause);
        Some(self.still_ejected(cause))
    }

    /// Makes a trial due if the time of the ejection is over.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<StateChange> {
        let EjectionPhase::Out { until } = self.ejection else {
            return None;
        };
        if until > now {
            return None;
        }
        self.ejection = EjectionPhase::Trial { since: until };
        let cause = "the ejection is over, the next request is a trial";
        (self.state == HealthState::Ejected).then(|| self.still_ejected(cause.to_owned()))
    }

    /// Ends the ejection, because a request has shown that the backend serves again.
    pub(crate) fn trial_passed(&mut self, now: Instant) -> Option<StateChange> {
        self.clear_ejection();
        self.settle(now, "the trial request succeeded".to_owned())
    }

    /// Ends the ejection, because the pool no longer ejects.
    pub(crate) fn end_ejection(&mut self, now: Instant) -> Option<StateChange> {
        self.clear_ejection();
        self.settle(now, "the pool does not eject any more".to_owned())
    }

    fn clear_ejection(&mut self) {
        if self.is_ejected() {
            self.ejection = EjectionPhase::None;
            self.ejection_number = self.ejection_number.wrapping_add(1);
        }
    }

    /// True while an ejection is running, also behind a state that goes before it.
    fn is_ejected(&self) -> bool {
        self.ejection != EjectionPhase::None
    }

    /// True if a trial request decides about the state.
    pub(crate) fn is_on_trial(&self) -> bool {
        self.state == HealthState::Ejected && matches!(self.ejection, EjectionPhase::Trial { .. })
    }

    fn still_ejected(&self, cause: String) -> StateChange {
        StateChange {
            from: self.state,
            to: self.state,
            cause,
            is_trial: matches!(self.ejection, EjectionPhase::Trial { .. }),
        }
    }

    /// Drops the verdict, because the pool no longer has a health check: nothing would ever clear a
    /// bad one.
    pub(crate) fn end_checks(&mut self, now: Instant) -> Option<StateChange> {
        (self.verdict, self.verdict_is_old) = (CheckVerdict::Up, false);
        (self.good_in_a_row, self.bad_in_a_row) = (0, 0);
        self.good_since_ejection = 0;
        self.settle(now, "the pool has no health check".to_owned())
    }

    /// Marks the backend as removed from the configuration.
    pub(crate) fn remove(&mut self, now: Instant) -> Option<StateChange> {
        self.removed = true;
        self.settle(now, "no longer in the configuration".to_owned())
    }

    /// Marks the backend as back in the configuration. The old verdict holds until the next check.
    pub(crate) fn restore(&mut self, now: Instant) -> Option<StateChange> {
        if !std::mem::replace(&mut self.removed, false) {
            return None;
        }
        self.verdict_is_old = true;
        self.settle(now, "back in the configuration".to_owned())
    }

    /// Replaces the overrides. `cause` is for a state that the backend returns to.
    pub(crate) fn set_overrides(
        &mut self,
        overrides: BackendOverrides,
        cause: &str,
        now: Instant,
    ) -> Option<StateChange> {
        self.overrides = overrides;
        if let Some(state) = &self.overrides.state {
            let cause = state.cause();
            if self.state == HealthState::set_by_operator(state.value) {
                self.cause.clone_from(&cause);
            }
            return self.settle(now, cause);
        }
        let last = self.history.last();
        let error = last.as_ref().map(|check| &check.result);
        let cause = match error {
            Some(Err(error)) if self.failed_checks() => {
                format!("{cause}; the last check failed: {error}")
            }
            _ => cause.to_owned(),
        };
        self.settle(now, cause)
    }

    /// True if the verdict of the checks is down.
    pub(crate) fn failed_checks(&self) -> bool {
        self.verdict == CheckVerdict::Down
    }

    /// Derives the state from the four facts; see the table above.
    fn derived(&self) -> HealthState {
        if self.removed {
            return HealthState::Removed;
        }
        if let Some(state) = &self.overrides.state {
            return HealthState::set_by_operator(state.value);
        }
        match (self.verdict, self.is_ejected()) {
            (CheckVerdict::Down, _) => HealthState::Down,
            (_, true) => HealthState::Ejected,
            (CheckVerdict::Up, false) => HealthState::Up,
            (CheckVerdict::Unknown, false) => HealthState::Checking,
        }
    }

    /// Moves to the derived state and returns the change, if it is one.
    fn settle(&mut self, now: Instant, cause: String) -> Option<StateChange> {
        let (from, to) = (self.state, self.derived());
        if from == to {
            return None;
        }
        self.state = to;
        self.since = now;
        self.since_unix = clock::unix_now();
        self.cause.clone_from(&cause);
        Some(StateChange {
            from,
            to,
            cause,
            is_trial: false,
        })
    }
}

/// Text for a streak of `count` checks.
fn in_a_row(count: u32, what: &str) -> String {
    if count == 1 {
        format!("the check {what}")
    } else {
        format!("{count} checks in a row {what}")
    }
}
