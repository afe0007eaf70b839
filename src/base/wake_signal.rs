//! A signal that sessions wait for beside their work: their backend is down, or the drain is over.
//!
//! A task takes the lock twice, when it begins to wait and when it ends. In between, a poll is one
//! atomic load, so it costs nothing to look at the signal with each message.

use std::{
    future::Future,
    pin::Pin,
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

/// One signal, which can be raised again and again.
#[derive(Debug, Default)]
pub struct WakeSignal {
    /// Number of times the signal was raised. A counter and not a flag, because its cause may have
    /// passed before a task looks.
    count: AtomicU64,
    /// The tasks that have waited since the signal was last raised.
    waiting: Mutex<Slab<Waker>>,
}

/// Entry of one waiting task.
#[derive(Debug)]
struct SignalEntry {
    /// Key in [`WakeSignal::waiting`], valid until the signal is raised.
    key: usize,
    /// Count of the signal when the entry was made.
    count: u64,
    waker: Waker,
}

impl WakeSignal {
    /// Number of times the signal was raised so far.
    #[inline]
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Wakes all tasks that wait. One that has read the count before and begins to wait after this
    /// completes at once.
    pub fn raise(&self) {
        let wakers = {
            // Counts under the lock: a task either sees the new count or is in the list.
            let mut waiting = self.lock();
            self.count.fetch_add(1, Release);
            std::mem::take(&mut *waiting)
        };
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Returns ready if the signal was raised since it stood at `seen`; registers `cx` otherwise.
    fn poll_raised(
        &self,
        seen: u64,
        registration: &mut Option<SignalEntry>,
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
        let entry = known.and_then(|known| waiting.get_mut(known.key).zip(Some(known.key)));
        let key = if let Some((entry, key)) = entry {
            entry.clone_from(&waker);
            key
        } else {
            waiting.insert(waker.clone())
        };
        drop(waiting);
        *registration = Some(SignalEntry {
            key,
            count: seen,
            waker,
        });
        Poll::Pending
    }

    /// Removes the entry of a task that no longer waits.
    fn deregister(&self, entry: &SignalEntry) {
        let mut waiting = self.lock();
        // Entries made before the signal was raised are gone.
        if self.count.load(Relaxed) == entry.count {
            waiting.try_remove(entry.key);
        }
    }

    /// Number of tasks that wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A future that completes when a signal of `owner` is raised.
#[derive(Debug)]
pub struct UntilRaised<O> {
    owner: O,
    signal_of: fn(&O) -> &WakeSignal,
    /// Count of the signal from which on it is waited for.
    seen: u64,
    entry: Option<SignalEntry>,
}

impl<O> UntilRaised<O> {
    /// Waits until the signal of `owner` is raised, or completes at once if it was raised since its
    /// [`WakeSignal::count`] was `seen`.
    pub const fn new(owner: O, signal_of: fn(&O) -> &WakeSignal, seen: u64) -> Self {
        Self {
            owner,
            signal_of,
            seen,
            entry: None,
        }
    }
}

impl<O: Unpin> Future for UntilRaised<O> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        (this.signal_of)(&this.owner).poll_raised(this.seen, &mut this.entry, cx)
    }
}

impl<O> Drop for UntilRaised<O> {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            (self.signal_of)(&self.owner).deregister(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, atomic::AtomicBool},
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct WakeSeen(AtomicBool);

    impl Wake for WakeSeen {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    #[test]
    fn tasks_end_when_the_signal_is_raised_and_those_that_left_are_forgotten() {
        let signal = Arc::new(WakeSignal::default());
        let until = || UntilRaised::new(Arc::clone(&signal), |signal| signal, 0);
        let flags = [(); 2].map(|()| Arc::new(WakeSeen::default()));
        let wakers = flags.each_ref().map(|flag| Waker::from(Arc::clone(flag)));
        let poll = |wait: &mut UntilRaised<_>, waker: &Waker| {
            Pin::new(wait).poll(&mut Context::from_waker(waker))
        };
        let (mut stays, mut leaves) = (until(), until());
        for _ in 0..2 {
            assert!(poll(&mut stays, &wakers[0]).is_pending());
            assert!(poll(&mut leaves, &wakers[1]).is_pending());
        }
        assert_eq!(signal.waiting(), 2);
        drop(leaves);
        signal.raise();
        assert_eq!(
            flags.each_ref().map(|flag| flag.0.load(Relaxed)),
            [true, false]
        );
        assert!(poll(&mut stays, &wakers[0]).is_ready());
        assert!(poll(&mut until(), &wakers[1]).is_ready());
        drop(stays);
        assert_eq!(signal.waiting(), 0);
    }
}
