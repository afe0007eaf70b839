//! The signal that a backend went down and its sessions must end (`health_check.on_down: close`).
//!
//! Exchanges only pick a backend and never wait for the signal: it costs them one relaxed load. A
//! session or tunnel takes the lock twice, when it begins to wait and when it ends. In between, a
//! poll is one atomic load.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, Waker},
};

use slab::Slab;

/// The down signal of one backend.
#[derive(Debug, Default)]
pub(super) struct DownSignal {
    /// Number of times the signal was raised. A counter and not a flag, because the backend may
    /// come up again before a session looks.
    count: AtomicU64,
    /// The sessions that have waited since the signal was last raised.
    waiting: Mutex<Slab<Waker>>,
}

/// Entry of one waiting session.
#[derive(Debug)]
pub(super) struct DownRegistration {
    /// Key in [`DownSignal::waiting`], valid until the signal is raised.
    key: usize,
    /// Count of the signal when the entry was made.
    count: u64,
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
            // Counts under the lock: a session either sees the new count or is in the list.
            let mut waiting = self.lock();
            self.count.fetch_add(1, Release);
            std::mem::take(&mut *waiting)
        };
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
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
        let mut waiting = self.lock();
        // The signal may have been raised between the first load and the lock.
        if self.count.load(Acquire) != seen {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let key = match known.and_then(|known| waiting.get_mut(known.key).zip(Some(known.key))) {
            Some((entry, key)) => {
                entry.clone_from(&waker);
                key
            }
            None => waiting.insert(waker.clone()),
        };
        drop(waiting);
        *registration = Some(DownRegistration {
            key,
            count: seen,
            waker,
        });
        Poll::Pending
    }

    /// Removes the entry of a session that no longer waits.
    pub(super) fn deregister(&self, registration: &DownRegistration) {
        let mut waiting = self.lock();
        // Entries made before the signal was raised are gone.
        if self.count.load(Relaxed) == registration.count {
            waiting.try_remove(registration.key);
        }
    }

    /// Number of sessions that wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
