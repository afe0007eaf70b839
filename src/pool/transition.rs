//! State transitions of backends and their log line. Checks, failed requests and the end of an
//! ejection all log through here, so that every transition has exactly one line.

use std::{fmt, sync::Arc};

use super::health::{HealthState, StateChange};

/// A change of a backend's state, or of its ejection: from ejected to ejected. `Display` is the
/// text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateTransition {
    /// The pool's name.
    pub pool: Arc<str>,
    /// The backend's name.
    pub backend: Arc<str>,
    /// The state before.
    pub from: HealthState,
    /// The state now.
    pub to: HealthState,
    /// The cause in one line. We add no control characters; the error text of a check is kept as
    /// it is.
    pub cause: String,
    /// The backend stays ejected, and a trial request is next.
    pub is_trial: bool,
}

impl StateTransition {
    pub(super) fn new(pool: &Arc<str>, backend: &Arc<str>, change: StateChange) -> Self {
        Self {
            pool: Arc::clone(pool),
            backend: Arc::clone(backend),
            from: change.from,
            to: change.to,
            cause: change.cause,
            is_trial: change.is_trial,
        }
    }

    /// Writes the log line: a warning when the backend goes out of service, else information.
    pub fn log(&self) {
        let Self {
            pool,
            backend,
            from,
            to,
            cause,
            ..
        } = self;
        if self.is_trial {
            tracing::info!(target: "health", %pool, %backend, %from, %to, %cause, "backend is on trial");
        } else if matches!(to, HealthState::Down | HealthState::Ejected) {
            tracing::warn!(target: "health", %pool, %backend, %from, %to, %cause, "backend is {to}");
        } else {
            tracing::info!(target: "health", %pool, %backend, %from, %to, %cause, "backend is {to}");
        }
    }
}

impl fmt::Display for StateTransition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "backend `{}` of pool `{}` is {} (was {}): {}",
            self.backend, self.pool, self.to, self.from, self.cause
        )
    }
}
