//! The state of one backend as a pure machine: checks, sentences and removal go in, changes of state come out.
//!
//! Knows neither the pool (whether an ejection is allowed is decided in `ejection`) nor threads (`backend` holds the
//! lock). Time comes in as an argument; the wall clock is read only to be shown.
//!
//! Three facts make the state: what the checks say (never checked, up, down), whether a sentence of passive ejection
//! is running, and whether the backend has left the configuration. Removal beats everything, a bad verdict beats a
//! sentence, a sentence beats a good verdict:
//!
//! | checks say | no sentence | sentence running |
//! |---|---|---|
//! | nothing yet | checking | ejected |
//! | up | up | ejected |
//! | down | down | down |
//!
//! A backend that was never seen good needs one check only, either way; after that `rise` and `fall` count. An
//! ejection ends with its time, or earlier, when `rise` checks in a row have passed that began after the ejection did.

use std::time::{Duration, Instant};

use crate::base::clock;

/// What a backend is doing: the words of the metrics, the log and the status page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum HealthState {
    /// Never checked yet: gets traffic only while no checked backend is up.
    Checking,
    /// Gets traffic.
    Up,
    /// The checks failed.
    Down,
    /// Taken out by failures of real traffic, until its time is over or its checks have passed.
    Ejected,
    /// Gets no new work and finishes what it has.
    Draining,
    /// Switched off by the operator.
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

    /// How many states there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Position in [`HealthState::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The word in lower case.
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

    /// True where the backend may get new work: checked and up, or not checked yet.
    pub const fn may_take_traffic(self) -> bool {
        matches!(self, Self::Up | Self::Checking)
    }

    pub(crate) fn from_index(index: u8) -> Self {
        Self::ALL
            .get(usize::from(index))
            .copied()
            .unwrap_or(Self::Removed)
    }
}

impl std::fmt::Display for HealthState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The last active check of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastCheck {
    /// When it ended, since the Unix epoch.
    pub at: Duration,
    /// `Err` says what was wrong.
    pub result: Result<(), String>,
    /// How long it took.
    pub took: Duration,
}

/// What the active checks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CheckVerdict {
    Unknown,
    Up,
    Down,
}

/// A change of state with its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateChange {
    pub(crate) from: HealthState,
    pub(crate) to: HealthState,
    pub(crate) cause: String,
}

/// How many checks in a row change the verdict.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckThresholds {
    pub(crate) rise: u32,
    pub(crate) fall: u32,
}

/// The machine. Its fields are read by the status page through `BackendState::view`.
#[derive(Debug)]
pub(crate) struct BackendHealth {
    verdict: CheckVerdict,
    /// It was out of the configuration since the last check: the next one decides alone.
    verdict_is_old: bool,
    removed: bool,
    /// End of the running sentence.
    pub(crate) sentence: Option<Instant>,
    /// Start of the last ejection.
    ejected_at: Instant,
    /// Good checks in a row that began after `ejected_at`.
    pub(crate) good_since_ejection: u32,
    /// How many sentences are remembered: the next one is doubled this often.
    pub(crate) step: u32,
    pub(crate) good_in_a_row: u32,
    pub(crate) bad_in_a_row: u32,
    pub(crate) state: HealthState,
    pub(crate) since: Instant,
    pub(crate) since_unix: Duration,
    pub(crate) cause: String,
    pub(crate) last_check: Option<LastCheck>,
    /// Why the check after `last_check` could not be made.
    pub(crate) check_not_made: Option<String>,
}

impl BackendHealth {
    /// A backend nobody has seen yet. Without checks (`checks` false) there is nothing to wait for: it is up at once.
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
            sentence: None,
            ejected_at: now,
            good_since_ejection: 0,
            step: 0,
            good_in_a_row: 0,
            bad_in_a_row: 0,
            state,
            since: now,
            since_unix: clock::unix_now(),
            cause: cause.to_owned(),
            last_check: None,
            check_not_made: None,
        }
    }

    /// The result of an active check.
    pub(crate) fn checked(
        &mut self,
        result: Result<(), String>,
        took: Duration,
        thresholds: CheckThresholds,
        now: Instant,
    ) -> Option<StateChange> {
        let (good, bad) = match &result {
            Ok(()) => (self.good_in_a_row.saturating_add(1), 0),
            Err(_) => (0, self.bad_in_a_row.saturating_add(1)),
        };
        (self.good_in_a_row, self.bad_in_a_row) = (good, bad);
        let verdict = if std::mem::take(&mut self.verdict_is_old) {
            CheckVerdict::Unknown
        } else {
            self.verdict
        };
        self.verdict = match (verdict, result.is_ok()) {
            (CheckVerdict::Unknown, true) => CheckVerdict::Up,
            (CheckVerdict::Unknown, false) => CheckVerdict::Down,
            (CheckVerdict::Down, true) if good >= thresholds.rise => CheckVerdict::Up,
            (CheckVerdict::Up, false) if bad >= thresholds.fall => CheckVerdict::Down,
            (verdict, _) => verdict,
        };
        // A check that was under way at the ejection may have seen the time before it.
        self.good_since_ejection = match result {
            Ok(()) if now.checked_sub(took) < Some(self.ejected_at) => 0,
            Ok(()) => self.good_since_ejection.saturating_add(1),
            Err(_) => 0,
        };
        let mut cause = match &result {
            Ok(()) => in_a_row(good, "passed"),
            Err(error) => format!("{}: {error}", in_a_row(bad, "failed")),
        };
        if self.sentence.is_some() && self.good_since_ejection >= thresholds.rise {
            self.sentence = None;
            if self.state == HealthState::Ejected {
                cause = in_a_row(self.good_since_ejection, "passed") + " since the ejection";
            }
        }
        self.last_check = Some(LastCheck {
            at: clock::unix_now(),
            result,
            took,
        });
        self.check_not_made = None;
        self.settle(now, cause)
    }

    /// A check could not be made: that says nothing of the backend.
    pub(crate) fn not_checked(&mut self, error: String) -> Option<StateChange> {
        self.check_not_made = Some(error);
        None
    }

    /// Takes the backend out until `until`.
    pub(crate) fn eject(
        &mut self,
        until: Instant,
        now: Instant,
        cause: String,
    ) -> Option<StateChange> {
        self.sentence = Some(until);
        (self.ejected_at, self.good_since_ejection) = (now, 0);
        self.step = self.step.saturating_add(1);
        self.settle(now, cause)
    }

    /// Ends the sentence if it is over: the verdict of the checks holds again.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<StateChange> {
        if self.sentence.is_none_or(|until| until > now) {
            return None;
        }
        self.sentence = None;
        self.settle(now, "the ejection is over".to_owned())
    }

    /// Ends the ejection: the pool does not eject any more.
    pub(crate) fn free(&mut self, now: Instant) -> Option<StateChange> {
        self.sentence = None;
        self.settle(now, "the pool does not eject any more".to_owned())
    }

    /// The pool has no health check any more: nothing will ever clear a bad verdict, so it falls.
    pub(crate) fn unchecked(&mut self, now: Instant) -> Option<StateChange> {
        self.verdict = CheckVerdict::Up;
        (self.good_in_a_row, self.bad_in_a_row) = (0, 0);
        self.settle(now, "the pool has no health check".to_owned())
    }

    /// The backend has left the configuration.
    pub(crate) fn remove(&mut self, now: Instant) -> Option<StateChange> {
        self.removed = true;
        self.settle(now, "no longer in the configuration".to_owned())
    }

    /// The backend is back in the configuration: what was known of it holds until the next check.
    pub(crate) fn restore(&mut self, now: Instant) -> Option<StateChange> {
        if !std::mem::replace(&mut self.removed, false) {
            return None;
        }
        self.verdict_is_old = true;
        self.settle(now, "back in the configuration".to_owned())
    }

    /// The checks say that it is down.
    pub(crate) fn failed_checks(&self) -> bool {
        self.verdict == CheckVerdict::Down
    }

    fn derived(&self) -> HealthState {
        match (self.removed, self.verdict, self.sentence) {
            (true, _, _) => HealthState::Removed,
            (_, CheckVerdict::Down, _) => HealthState::Down,
            (_, _, Some(_)) => HealthState::Ejected,
            (_, CheckVerdict::Up, None) => HealthState::Up,
            (_, CheckVerdict::Unknown, None) => HealthState::Checking,
        }
    }

    fn settle(&mut self, now: Instant, cause: String) -> Option<StateChange> {
        let (from, to) = (self.state, self.derived());
        if from == to {
            return None;
        }
        self.state = to;
        self.since = now;
        self.since_unix = clock::unix_now();
        self.cause.clone_from(&cause);
        Some(StateChange { from, to, cause })
    }
}

fn in_a_row(count: u32, what: &str) -> String {
    if count == 1 {
        format!("the check {what}")
    } else {
        format!("{count} checks in a row {what}")
    }
}
