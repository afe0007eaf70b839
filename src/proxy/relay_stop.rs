//! Early end of a relay, of a TCP session or a tunnel: at the drain timeout, or because its backend
//! went down.

use std::{cell::Cell, future::Future, pin::pin};

use super::reasons;
use crate::{net::copy::RelayError, pool::BackendLease, reason::Reason};

/// Cause of an early end.
#[derive(Debug, Default)]
pub(super) struct RelayStop {
    by_backend: Cell<bool>,
}

impl RelayStop {
    /// Ready when `drain` is, or when the backend of `lease` went down and its pool ends sessions
    /// then (`health_check.on_down`).
    pub(super) async fn wait(&self, drain: impl Future<Output = ()>, lease: &BackendLease) {
        let mut until_down = lease.until_down();
        tokio::select! {
            biased;
            () = pin!(drain) => {}
            () = &mut until_down => self.by_backend.set(true),
        }
    }

    /// Reason of a relay that was cut.
    pub(super) fn reason(&self, cut: RelayError) -> Reason {
        match cut {
            RelayError::Stopped if self.by_backend.get() => Reason::BackendDown,
            other => reasons::of_relay(other),
        }
    }
}
