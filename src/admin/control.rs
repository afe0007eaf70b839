//! Requests from the admin API to the control thread, and their results.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};

use crate::pool::{Backend, OperatorState, Pool};

/// Request to the control thread.
#[derive(Debug)]
pub enum ControlRequest {
    /// Reloads the configuration and sends the outcome back.
    Reload(oneshot::Sender<ReloadOutcome>),
    /// Changes the overrides of a backend.
    Override(OverrideRequest),
}

/// Change of a backend's overrides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverrideChange {
    /// Sets a state.
    State(OperatorState),
    /// Sets a weight, 0..=256.
    Weight(u16),
    /// Ends all overrides.
    Ready,
}

/// Request to change the overrides of a backend.
#[derive(Debug)]
pub struct OverrideRequest {
    /// The name of the pool.
    pub pool: String,
    /// The name or the address of the backend.
    pub backend: String,
    /// The change.
    pub change: OverrideChange,
    /// The operator.
    pub by: String,
    /// Text of the operator: one line.
    pub note: Option<String>,
    /// Time after which the override ends by itself.
    pub duration: Option<Duration>,
    /// Receives the outcome.
    pub outcome: oneshot::Sender<Result<OverrideReport, UnknownBackendError>>,
}

/// Report of a change that is in force.
#[derive(Debug)]
pub struct OverrideReport {
    /// The backend; `None` if it is in no configuration, and had an override from before.
    pub backend: Option<(Arc<Pool>, Arc<Backend>)>,
    /// Result of the write to the state directory: an error is its text.
    pub saved: oneshot::Receiver<Result<(), String>>,
}

/// A name that no pool, or no backend of the pool, has. `Display` has a hint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnknownBackendError(pub String);

/// Sending side of the control thread's requests.
pub type ControlHandle = mpsc::Sender<ControlRequest>;

/// Result of a reload.
pub type ReloadOutcome = Result<ReloadReport, ReloadError>;

/// Report of a reload that succeeded.
#[derive(Debug, Clone)]
pub struct ReloadReport {
    /// One line per change.
    pub changes: Vec<String>,
    /// The warnings as `balancer check` prints them; empty without any.
    pub rendered: String,
    /// The warnings as `balancer check --json` prints them.
    pub warnings: serde_json::Value,
}

/// Failure of a reload that changed nothing.
///
/// The problems are text already, because this layer only passes them on: it has no source.
#[derive(Debug, Clone)]
pub struct ReloadError {
    /// The problems as `balancer check` prints them.
    pub rendered: String,
    /// The problems as `balancer check --json` prints them.
    pub json: serde_json::Value,
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rendered.trim_end())
    }
}

impl Error for ReloadError {}
