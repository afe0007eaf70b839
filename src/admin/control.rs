//! Requests from the admin API to the control thread, and their results.

use std::{error::Error, fmt};

use tokio::sync::{mpsc, oneshot};

/// Request to the control thread.
#[derive(Debug)]
pub enum ControlRequest {
    /// Reloads the configuration and sends the outcome back.
    Reload(oneshot::Sender<ReloadOutcome>),
}

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
