//! The log line of a transition: one for each, whoever caused it (a check, a failed request, the end of a sentence).

use super::{StateTransition, health::HealthState};

impl StateTransition {
    /// Writes the line: a warning when the backend goes out of service, else information.
    pub fn log(&self) {
        let Self {
            pool,
            backend,
            from,
            to,
            cause,
        } = self;
        if matches!(to, HealthState::Down | HealthState::Ejected) {
            tracing::warn!(target: "health", %pool, %backend, %from, %to, %cause, "backend is {to}");
        } else {
            tracing::info!(target: "health", %pool, %backend, %from, %to, %cause, "backend is {to}");
        }
    }
}
