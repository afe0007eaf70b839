//! What operators and monitoring talk to: `/metrics`, `/livez`, `/readyz` on `metrics.bind`, the JSON API on `admin.bind`.
//!
//! Runs on the control thread only, reads what the data plane left in counters and states, and changes nothing itself:
//! a reload is asked for over [`ControlRequest`]. Read next: `api.rs` and `scrape.rs`.

mod api;
pub mod families;
mod http;
mod metrics;
mod process;
mod scrape;
mod series;
mod status;
#[cfg(test)]
mod testing;

use tokio::sync::{mpsc, oneshot};

pub use self::{
    api::{AdminListener, serve_admin},
    metrics::serve_metrics,
};

/// What the API asks of the control thread.
#[derive(Debug)]
pub enum ControlRequest {
    /// Load the configuration again and say what came of it.
    Reload(oneshot::Sender<ReloadOutcome>),
}

/// Where the API sends what it asks for.
pub type ControlHandle = mpsc::Sender<ControlRequest>;

/// What changed, or why everything stayed as it was.
pub type ReloadOutcome = Result<ReloadReport, ReloadError>;

/// A reload that succeeded.
#[derive(Debug, Clone)]
pub struct ReloadReport {
    /// One line per change.
    pub changes: Vec<String>,
    /// The warnings as `balancer check` prints them; empty without any.
    pub rendered: String,
    /// The warnings as `balancer check --json` prints them.
    pub warnings: serde_json::Value,
}

/// A reload that changed nothing.
#[derive(Debug, Clone)]
pub struct ReloadError {
    /// The problems as `balancer check` prints them.
    pub rendered: String,
    /// The problems as `balancer check --json` prints them.
    pub json: serde_json::Value,
}
