//! Leases: one unit of work on a backend, counted in flight from the pick until it is dropped.

use std::{
    future::Future,
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    backend::{Backend, BackendState},
    down_signal::DownRegistration,
};

/// One exchange or session on a backend. A guard, so that no early return can leak the count.
#[derive(Debug)]
pub struct BackendLease {
    backend: Arc<Backend>,
    /// Count of the down signal at the pick.
    down_count: u64,
}

impl BackendLease {
    /// Wraps a backend on which the caller has just claimed one in flight.
    pub(crate) fn claimed(backend: Arc<Backend>) -> Self {
        let down_count = backend.state.down.count();
        Self {
            backend,
            down_count,
        }
    }

    /// Completes when the backend has gone down since the pick and its pool ends sessions then.
    pub fn until_down(&self) -> UntilDown {
        UntilDown::new(Arc::clone(&self.backend.state), self.down_count)
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
        self.backend.state.release();
    }
}

/// A future that completes when the backend goes down and its sessions must end; otherwise never.
#[derive(Debug)]
pub struct UntilDown {
    state: Arc<BackendState>,
    /// Count of the signal when the session picked its backend.
    down_count: u64,
    registration: Option<DownRegistration>,
}

impl UntilDown {
    fn new(state: Arc<BackendState>, down_count: u64) -> Self {
        Self {
            state,
            down_count,
            registration: None,
        }
    }
}

impl Future for UntilDown {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let signal = &this.state.down;
        signal.poll_raised(this.down_count, &mut this.registration, cx)
    }
}

impl Drop for UntilDown {
    fn drop(&mut self) {
        if let Some(registration) = &self.registration {
            self.state.down.deregister(registration);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        task::{Wake, Waker},
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
        let until = || UntilDown::new(Arc::clone(state), state.down.count());
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
