//! The times of a check: when each of its phases was over.

use std::{cell::Cell, time::Instant};

use crate::{
    base::clock,
    pool::{CheckPhases, CheckTiming},
};

/// Takes the times of one check.
pub(super) struct PhaseClock {
    began: Instant,
    phases: Cell<CheckPhases>,
}

impl PhaseClock {
    /// Starts now.
    pub(super) fn start() -> Self {
        Self {
            began: clock::now(),
            phases: Cell::default(),
        }
    }

    /// The start.
    pub(super) const fn began(&self) -> Instant {
        self.began
    }

    /// Notes that the connection is established.
    pub(super) fn connected(&self) {
        self.note(|phases| &mut phases.connected);
    }

    /// Notes that the TLS handshake is over.
    pub(super) fn secured(&self) {
        self.note(|phases| &mut phases.secured);
    }

    /// Notes that bytes of an answer are there.
    pub(super) fn received(&self) {
        self.note(|phases| &mut phases.first_byte);
    }

    /// Sets a phase, if it is not set yet.
    fn note(&self, phase: impl FnOnce(&mut CheckPhases) -> &mut Option<std::time::Duration>) {
        let mut phases = self.phases.get();
        let now = clock::now().saturating_duration_since(self.began);
        phase(&mut phases).get_or_insert(now);
        self.phases.set(phases);
    }

    /// The times of a check that is over now.
    pub(super) fn timing(&self) -> CheckTiming {
        CheckTiming {
            took: clock::now().saturating_duration_since(self.began),
            phases: self.phases.get(),
        }
    }
}
