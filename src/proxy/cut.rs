//! The signal that the drain is over: sessions and tunnels of a worker must end.
//!
//! Known to one thread only, so that it costs a session no lock: one look at a flag in each poll.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use slab::Slab;

/// The signal of one worker.
#[derive(Debug, Default)]
pub(super) struct CutSignal {
    is_raised: Cell<bool>,
    waiting: RefCell<Slab<Waker>>,
}

impl CutSignal {
    /// Ends all sessions and tunnels, also those that begin later.
    pub(super) fn raise(&self) {
        self.is_raised.set(true);
        let wakers: Vec<_> = self
            .waiting
            .borrow()
            .iter()
            .map(|(_, waker)| waker.clone())
            .collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Ready when the signal is raised.
    pub(super) fn until_raised(self: &Rc<Self>) -> UntilCut {
        UntilCut {
            signal: Rc::clone(self),
            registration: None,
        }
    }
}

/// A future that completes when sessions and tunnels have to end.
#[derive(Debug)]
pub(super) struct UntilCut {
    signal: Rc<CutSignal>,
    /// Key of our entry, and the waker in it.
    registration: Option<(usize, Waker)>,
}

impl Future for UntilCut {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.signal.is_raised.get() {
            return Poll::Ready(());
        }
        let known = this.registration.as_ref();
        if known.is_none_or(|(_, waker)| !waker.will_wake(cx.waker())) {
            this.deregister();
            let key = this.signal.waiting.borrow_mut().insert(cx.waker().clone());
            this.registration = Some((key, cx.waker().clone()));
        }
        Poll::Pending
    }
}

impl UntilCut {
    fn deregister(&mut self) {
        if let Some((key, _)) = self.registration.take() {
            let waker = self.signal.waiting.borrow_mut().try_remove(key);
            debug_assert!(waker.is_some(), "an entry stays until its session ends");
        }
    }
}

impl Drop for UntilCut {
    fn drop(&mut self) {
        self.deregister();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::Relaxed},
        },
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
    fn sessions_end_when_the_signal_is_raised_and_those_that_left_are_forgotten() {
        let signal = Rc::new(CutSignal::default());
        let flags = [(); 2].map(|()| Arc::new(WakeSeen::default()));
        let wakers = flags.each_ref().map(|flag| Waker::from(Arc::clone(flag)));
        let poll = |wait: &mut UntilCut, waker: &Waker| {
            Pin::new(wait).poll(&mut Context::from_waker(waker))
        };
        let mut stays = signal.until_raised();
        let mut leaves = signal.until_raised();
        for _ in 0..2 {
            assert!(poll(&mut stays, &wakers[0]).is_pending());
            assert!(poll(&mut leaves, &wakers[1]).is_pending());
        }
        assert_eq!(signal.waiting.borrow().len(), 2);
        drop(leaves);
        signal.raise();
        assert_eq!(
            flags.each_ref().map(|flag| flag.0.load(Relaxed)),
            [true, false]
        );
        assert!(poll(&mut stays, &wakers[0]).is_ready());
        assert!(poll(&mut signal.until_raised(), &wakers[1]).is_ready());
        drop(stays);
        assert!(signal.waiting.borrow().is_empty());
    }
}
