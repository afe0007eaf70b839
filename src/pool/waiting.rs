//! The number of requests that wait for a backend of a pool, as the hot path sees it.
//!
//! Each pick and each end of a request loads it, and does more only if it is above 0. The
//! queue itself (`queue.rs`) is above the backends, which reach it through [`ServeWaiting`].

use std::{
    fmt::Debug,
    sync::{
        Weak,
        atomic::{
            AtomicUsize,
            Ordering::{Relaxed, SeqCst},
            fence,
        },
    },
};

use crate::base::address::BackendAddress;

/// The queue as those see it that make room for the requests in it.
pub(crate) trait ServeWaiting: Debug + Send + Sync {
    /// Serves after one less is in flight on the backend at `address`, which was at `index` of the
    /// generation that picked it.
    fn serve_released(&self, index: usize, address: &BackendAddress);

    /// Serves after the eligible backends have changed.
    fn serve_refreshed(&self);
}

/// Number of requests that wait for a backend of one pool, over all generations. On cache lines of
/// its own: it is read by each request and hardly ever written.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct WaitingCount {
    count: AtomicUsize,
    /// `None`: nothing ever waits.
    queue: Option<Weak<dyn ServeWaiting>>,
}

impl WaitingCount {
    /// The count of `queue`.
    pub(super) fn new(queue: Weak<dyn ServeWaiting>) -> Self {
        Self {
            count: AtomicUsize::new(0),
            queue: Some(queue),
        }
    }

    /// The count of a backend outside of all pools, for which nothing waits.
    #[cfg(feature = "etcd")]
    pub(super) fn of_no_pool() -> Self {
        Self {
            count: AtomicUsize::new(0),
            queue: None,
        }
    }

    /// Number of requests that wait now.
    #[inline]
    pub(super) fn get(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Adds a request that is about to try once more. What it sees afterwards is at least as new as
    /// the last change whose maker has not seen it.
    pub(super) fn add(&self) {
        self.count.fetch_add(1, SeqCst);
        fence(SeqCst);
    }

    /// Removes a request that was served or has left.
    pub(super) fn sub(&self, number: usize) {
        let before = self.count.fetch_sub(number, Relaxed);
        debug_assert!(before >= number, "more left than had entered");
    }

    /// True if a request may wait for a change that was made with sequential consistency.
    #[inline]
    pub(super) fn is_any_after_change(&self) -> bool {
        self.count.load(SeqCst) > 0
    }

    /// Serves after a release; see [`ServeWaiting`].
    #[cold]
    pub(super) fn serve_released(&self, index: usize, address: &BackendAddress) {
        if let Some(queue) = self.queue.as_ref().and_then(Weak::upgrade) {
            queue.serve_released(index, address);
        }
    }

    /// Serves after a change of the eligible backends, if a request waits.
    pub(super) fn serve_refreshed(&self) {
        fence(SeqCst);
        if self.is_any_after_change()
            && let Some(queue) = self.queue.as_ref().and_then(Weak::upgrade)
        {
            queue.serve_refreshed();
        }
    }
}
