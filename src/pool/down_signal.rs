//! Tells the sessions of a backend that it went down and that they are to end (`health_check.on_down: close`).
//!
//! It costs an exchange one relaxed load. A session or tunnel takes the lock twice: when it begins to wait and when it
//! ends; to look whether the backend went down meanwhile is an atomic load.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, Waker},
};

use super::BackendState;

/// Part of the state of a backend.
#[derive(Debug, Default)]
pub(super) struct DownSignal {
    /// How often it was given.
    count: AtomicU64,
    waiting: Mutex<DownWaiters>,
}

#[derive(Debug, Default)]
struct DownWaiters {
    wakers: HashMap<u64, Waker>,
    next: u64,
}

impl DownSignal {
    /// How often the signal was given.
    #[inline]
    pub(super) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Ends all that wait, and those that have picked the backend and do not wait yet.
    pub(super) fn give(&self) {
        let wakers = {
            let mut waiting = self.lock();
            self.count.fetch_add(1, Release);
            std::mem::take(&mut waiting.wakers)
        };
        wakers.into_values().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, DownWaiters> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ready when the backend goes down and its sessions are to end; never otherwise.
#[derive(Debug)]
pub struct UntilDown {
    state: Arc<BackendState>,
    /// Count of the signal when the session picked its backend.
    since: u64,
    /// Key and waker in [`DownWaiters`].
    registered: Option<(u64, Waker)>,
}

impl UntilDown {
    pub(super) fn new(state: Arc<BackendState>, since: u64) -> Self {
        Self {
            state,
            since,
            registered: None,
        }
    }
}

impl Future for UntilDown {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let signal = &this.state.down;
        if signal.count.load(Acquire) != this.since {
            return Poll::Ready(());
        }
        let known = this.registered.as_ref();
        if known.is_some_and(|(_, waker)| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        let mut waiting = signal.lock();
        // The signal may have been given since the look above.
        if signal.count.load(Acquire) != this.since {
            return Poll::Ready(());
        }
        let key = known.map_or(waiting.next, |(key, _)| *key);
        waiting.next += u64::from(known.is_none());
        waiting.wakers.insert(key, cx.waker().clone());
        drop(waiting);
        this.registered = Some((key, cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for UntilDown {
    fn drop(&mut self) {
        if let Some((key, _)) = &self.registered {
            self.state.down.lock().wakers.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::atomic::AtomicUsize, task::Wake};

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
        assert_eq!(state.down.lock().wakers.len(), 3);
        drop(left);
        assert_eq!(state.down.lock().wakers.len(), 2);
        state.down.give();
        assert_eq!(counter.0.load(Relaxed), 2);
        assert!(one.as_mut().poll(&mut cx).is_ready() && other.as_mut().poll(&mut cx).is_ready());
        assert!(
            pin!(early).poll(&mut cx).is_ready(),
            "picked before the signal"
        );
        assert!(pin!(until()).poll(&mut cx).is_pending(), "picked after it");
        assert!(state.down.lock().wakers.is_empty());
    }
}
