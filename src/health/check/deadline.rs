//! The deadline of one probe.

use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::error::CheckError;

/// Deadline of a probe, with the timeout it comes from.
#[derive(Clone, Copy)]
pub(super) struct ProbeDeadline {
    pub(super) at: Instant,
    /// The configured timeout, for the cause.
    pub(super) timeout: Duration,
}

impl ProbeDeadline {
    /// Runs `probe` until the deadline.
    pub(super) async fn run(
        self,
        probe: impl Future<Output = Result<(), CheckError>>,
    ) -> Result<(), CheckError> {
        timeout_at(self.at.into(), probe)
            .await
            .unwrap_or(Err(CheckError::Timeout(self.timeout)))
    }
}
