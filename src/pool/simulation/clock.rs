//! The clock of a simulation: the pool reads it too, so that both see one time.

use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use crate::base::clock;

/// A clock that stands still but for [`SimulatedClock::advance`].
pub(super) struct SimulatedClock(Runtime);

impl SimulatedClock {
    pub(super) fn new() -> Self {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build();
        Self(runtime.unwrap())
    }

    /// Runs with `clock::now` as the time of this clock.
    pub(super) fn run<T>(&self, simulated: impl FnOnce() -> T) -> T {
        let _entered = self.0.enter();
        simulated()
    }

    pub(super) fn now(&self) -> Instant {
        self.run(clock::now)
    }

    pub(super) fn advance(&self, time: Duration) {
        self.0.block_on(tokio::time::advance(time));
    }
}
