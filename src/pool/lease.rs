//! Leases: one unit of work on a backend, counted in flight from the pick until it is dropped.

use std::{ops::Deref, sync::Arc};

use super::{
    Pool,
    backend::{Backend, BackendState},
    health::HealthState,
    trial::TrialTicket,
};
use crate::base::wake_signal::UntilRaised;

/// One exchange or session on a backend. A guard, so that no early return can leak the count.
#[derive(Debug)]
pub struct BackendLease {
    backend: Arc<Backend>,
    /// Count of the down signal at the pick.
    down_count: u64,
    /// Set if the outcome decides about the ejection of the backend.
    trial: Option<TrialTicket>,
}

impl BackendLease {
    /// Wraps a backend on which the caller has just claimed one in flight.
    pub(crate) fn claimed(backend: Arc<Backend>) -> Self {
        let down_count = backend.state.down.count();
        Self {
            backend,
            down_count,
            trial: None,
        }
    }

    /// Wraps a backend whose trial the caller has claimed, beside one in flight.
    pub(super) fn on_trial(backend: Arc<Backend>, ticket: TrialTicket) -> Self {
        let mut lease = Self::claimed(backend);
        lease.trial = Some(ticket);
        lease
    }

    /// Lets the outcome decide about the ejection, beside those of other requests.
    #[cold]
    pub(super) fn join_trial(mut self) -> Self {
        if self.backend.state.state() == HealthState::Ejected {
            self.trial = self.backend.state.trial.join();
        }
        self
    }

    pub(super) fn trial(&self) -> Option<TrialTicket> {
        self.trial
    }

    /// True for the one trial request of an ejected backend.
    pub fn is_trial(&self) -> bool {
        self.trial.is_some_and(TrialTicket::is_exclusive)
    }

    /// Records the head of a good response. What follows it may take hours, so a trial is not held
    /// up by it.
    #[inline]
    pub fn record_response(&self) {
        if let Some(ticket) = self.trial {
            self.backend.state.trial.respond(ticket);
        }
    }

    /// Completes when the backend has gone down since the pick and its pool ends sessions then.
    pub fn until_down(&self) -> UntilDown {
        until_down(&self.backend.state, self.down_count)
    }

    /// The same lease as one of `pool`, of which another generation may have given it; `None` if
    /// the backend is not in `pool`.
    #[must_use]
    pub fn moved_to(mut self, pool: &Pool) -> Option<Self> {
        let is_same = |other: &&Arc<Backend>| Arc::ptr_eq(&other.state, &self.backend.state);
        let same_place = pool.backends.get(self.backend.index).filter(is_same);
        let backend = same_place.or_else(|| pool.backends.iter().find(is_same))?;
        let backend = Arc::clone(backend);
        self.backend = backend;
        Some(self)
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Deref for BackendLease {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.backend
    }
}

impl Drop for BackendLease {
    fn drop(&mut self) {
        let state = &self.backend.state;
        // The trial comes first: a request that waits and sees the slot free must find it too.
        if let Some(ticket) = self.trial {
            state.trial.give_back(ticket);
        }
        if state.release() {
            let index = self.backend.index;
            state.waiting.serve_released(index, &state.address);
        }
    }
}

fn until_down(state: &Arc<BackendState>, down_count: u64) -> UntilDown {
    UntilRaised::new(Arc::clone(state), |state| &state.down, down_count)
}

/// A future that completes when the backend goes down and its sessions must end; otherwise never.
pub type UntilDown = UntilRaised<Arc<BackendState>>;

#[cfg(test)]
mod tests {
    use std::{
        future::Future as _,
        pin::{Pin, pin},
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        task::{Context, Wake, Waker},
    };

    use super::*;
    use crate::{config::model::BalancingPolicy, pool::fixture::unchecked_pool};

    #[derive(Default)]
    struct WakeCounter(AtomicUsize);

    impl Wake for WakeCounter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn all_who_wait_are_woken_once_and_none_stays_behind() {
        let pool = unchecked_pool(&[1], BalancingPolicy::RoundRobin);
        let state = &pool.backends[0].state;
        let counter = Arc::new(WakeCounter::default());
        let waker = Waker::from(Arc::clone(&counter));
        let mut cx = Context::from_waker(&waker);
        let until = || until_down(state, state.down.count());
        let early = until();
        let (mut one, mut other) = (pin!(until()), pin!(until()));
        for _ in 0..3 {
            assert!(one.as_mut().poll(&mut cx).is_pending());
            assert!(other.as_mut().poll(&mut cx).is_pending());
        }
        let mut left = until();
        assert!(Pin::new(&mut left).poll(&mut cx).is_pending());
        assert_eq!(state.down.waiting(), 3);
        drop(left);
        assert_eq!(state.down.waiting(), 2);
        state.down.raise();
        assert_eq!(counter.0.load(Relaxed), 2);
        assert!(one.as_mut().poll(&mut cx).is_ready() && other.as_mut().poll(&mut cx).is_ready());
        assert!(
            pin!(early).poll(&mut cx).is_ready(),
            "picked before the signal"
        );
        assert!(pin!(until()).poll(&mut cx).is_pending(), "picked after it");
        assert_eq!(state.down.waiting(), 0);
    }
}
