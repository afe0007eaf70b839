//! The signal that a backend went down and its sessions must end (`health_check.on_down: close`).
//!
//! Exchanges only pick a backend and never wait for the signal: it costs them one relaxed load. A
//! session or tunnel takes the lock twice, when it begins to wait and when it ends. In between, a
//! poll is one atomic load.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, Waker},
};

/// The down signal of one backend.
#[derive(Debug, Default)]
pub(super) struct DownSignal {
    /// Number of times the signal was raised. A counter and not a flag, because the backend may
    /// come up again before a session looks.
    count: AtomicU64,
    waiters: Mutex<DownWaiters>,
}

#[derive(Debug, Default)]
struct DownWaiters {
    wakers: HashMap<u64, Waker>,
    next_key: u64,
}

/// Entry of one waiting session.
#[derive(Debug)]
pub(super) struct DownRegistration {
    /// Key in [`DownWaiters`].
    key: u64,
    waker: Waker,
}

impl DownSignal {
    /// Number of times the signal was raised so far.
    #[inline]
    pub(super) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Ends all sessions that wait, and those that have picked the backend and do not wait yet.
    pub(super) fn raise(&self) {
        let wakers = {
            // Counts under the lock: a session either sees the new count or is in the map.
            let mut waiters = self.lock();
            self.count.fetch_add(1, Release);
            std::mem::take(&mut waiters.wakers)
        };
        wakers.into_values().for_each(Waker::wake);
    }

    /// Returns ready if the signal was raised since it stood at `seen`; registers `cx` otherwise.
    pub(super) fn poll_raised(
        &self,
        seen: u64,
        registration: &mut Option<DownRegistration>,
        cx: &Context<'_>,
    ) -> Poll<()> {
        if self.count.load(Acquire) != seen {
            return Poll::Ready(());
        }
        let known = registration.as_ref();
        if known.is_some_and(|known| known.waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        let mut waiters = self.lock();
        // The signal may have been raised between the first load and the lock.
        if self.count.load(Acquire) != seen {
            return Poll::Ready(());
        }
        let key = known.map_or(waiters.next_key, |known| known.key);
        waiters.next_key += u64::from(known.is_none());
        waiters.wakers.insert(key, cx.waker().clone());
        drop(waiters);
        let waker = cx.waker().clone();
        *registration = Some(DownRegistration { key, waker });
        Poll::Pending
    }

    /// Removes the entry of a session that no longer waits.
    pub(super) fn deregister(&self, registration: &DownRegistration) {
        self.lock().wakers.remove(&registration.key);
    }

    /// Number of sessions that wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().wakers.len()
    }

    fn lock(&self) -> MutexGuard<'_, DownWaiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
