//! State of one worker thread: its view of the generation in force, random numbers, connections,
//! free buffers.
//!
//! Nothing here is shared with another thread, so nothing here needs a lock.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Cache};

use super::{
    connections::ClientConnections,
    h2_connections::SharedH2Connections,
    http::buffers::{ExchangeBuffers, KeptCapacity},
    idle::IdleConnections,
};
use crate::{
    base::{
        clock,
        rng::Random,
        wake_signal::{UntilRaised, WakeSignal},
    },
    snapshot::{Daemon, Snapshot},
};

/// The generation that a task works with. The outer count is changed by its own thread only: one
/// atomic count for all threads would move between their caches with each request.
pub type Generation = Rc<Arc<Snapshot>>;

/// A cached view of the daemon's snapshot, and the same wrapped for this thread.
struct CurrentGeneration {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    generation: Generation,
}

/// Free buffers kept, each of about 3 KiB after an exchange with small bodies: enough for the
/// exchanges of a busy moment.
const MAX_FREE_BUFFERS: usize = 1024;
/// Free buffers that may have the capacity of large bodies: up to 400 KiB each.
const MAX_LARGE_FREE_BUFFERS: usize = 64;
/// Connections over the limit that get a response at a time; more are reset.
const MAX_ANSWERED_REFUSALS: usize = 64;

/// The poll of a task by [`Worker::in_turn`], if there is one, and the time if it was read in it.
#[derive(Clone, Copy)]
enum TurnClock {
    Outside,
    Begun,
    At(Instant),
}

/// State of one worker.
pub struct Worker {
    /// State shared by all threads.
    pub daemon: Arc<Daemon>,
    /// Random numbers.
    pub random: RefCell<Random>,
    /// Idle HTTP/1 connections to backends.
    pub idle: RefCell<IdleConnections>,
    /// HTTP/2 connections to backends.
    pub(super) h2_connections: SharedH2Connections,
    /// Client connections.
    pub connections: Rc<ClientConnections>,
    current: RefCell<CurrentGeneration>,
    #[expect(
        clippy::vec_box,
        reason = "an exchange takes the box, not the half kilobyte in it"
    )]
    free_buffers: RefCell<Vec<Box<ExchangeBuffers>>>,
    date: RefCell<(u64, String)>,
    turn: Cell<TurnClock>,
    cut: Rc<WakeSignal>,
    /// Connections that linger after their last response, so that the client can read it.
    pub(super) lingering: Cell<usize>,
}

impl Worker {
    /// State of a new worker; called on its own thread.
    pub fn new(daemon: Arc<Daemon>) -> Self {
        let mut cache = Cache::new(Arc::clone(&daemon.snapshot));
        let generation = Rc::new(Arc::clone(cache.load()));
        Self {
            daemon,
            random: RefCell::new(Random::from_system()),
            idle: RefCell::default(),
            h2_connections: Rc::default(),
            connections: Rc::default(),
            current: RefCell::new(CurrentGeneration { cache, generation }),
            free_buffers: RefCell::default(),
            date: RefCell::default(),
            turn: Cell::new(TurnClock::Outside),
            cut: Rc::default(),
            lingering: Cell::new(0),
        }
    }

    /// Ends sessions and tunnels: the drain is over.
    pub fn cut(&self) {
        self.cut.raise();
    }

    /// Ready when sessions and tunnels have to end.
    pub(super) fn until_cut(&self) -> UntilRaised<Rc<WakeSignal>> {
        UntilRaised::new(Rc::clone(&self.cut), |cut| cut, 0)
    }

    /// The generation in force.
    pub fn generation(&self) -> Generation {
        let CurrentGeneration { cache, generation } = &mut *self.current.borrow_mut();
        let current = cache.load();
        if !Arc::ptr_eq(current, generation) {
            *generation = Rc::new(Arc::clone(current));
        }
        Rc::clone(generation)
    }

    /// Runs one poll of a task as a turn, in which the clock is read once: nothing waits in it, so
    /// microseconds pass at most.
    pub(super) fn in_turn<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.turn.set(TurnClock::Begun);
        let polled = poll();
        self.turn.set(TurnClock::Outside);
        polled
    }

    /// The time; within a turn it is read once.
    pub(super) fn now(&self) -> Instant {
        match self.turn.get() {
            TurnClock::Outside => clock::now(),
            TurnClock::Begun => {
                let now = clock::now();
                self.turn.set(TurnClock::At(now));
                now
            }
            TurnClock::At(now) => now,
        }
    }

    /// Time since `then`.
    pub(super) fn elapsed_since(&self, then: Instant) -> Duration {
        self.now().saturating_duration_since(then)
    }

    /// Takes buffers for an exchange.
    pub(super) fn take_buffers(&self) -> Box<ExchangeBuffers> {
        self.free_buffers.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives the buffers of an exchange back.
    pub(super) fn give_back_buffers(&self, mut buffers: Box<ExchangeBuffers>) {
        let mut kept = self.free_buffers.borrow_mut();
        if kept.len() < MAX_FREE_BUFFERS {
            buffers.clear(if kept.len() < MAX_LARGE_FREE_BUFFERS {
                KeptCapacity::Bodies
            } else {
                KeptCapacity::Heads
            });
            kept.push(buffers);
        }
    }

    /// Number of free buffers.
    #[cfg(test)]
    pub(super) fn free_buffers(&self) -> usize {
        self.free_buffers.borrow().len()
    }

    /// Calls `use_it` with the value of a `Date` field, RFC 9110 section 5.6.7. Formatted once a
    /// second: doing it for each response would be a visible part of a small one.
    pub(super) fn with_date<T>(&self, use_it: impl FnOnce(&str) -> T) -> T {
        let now = clock::unix_now();
        let (second, text) = &mut *self.date.borrow_mut();
        if *second != now.as_secs() {
            *second = now.as_secs();
            *text = httpdate::fmt_http_date(std::time::UNIX_EPOCH + now);
        }
        use_it(text)
    }

    /// Number of connections up to which one over a limit gets a response instead of a reset: under
    /// a flood, refusals must stay cheap.
    pub(super) fn max_answered_connections(&self) -> usize {
        self.daemon.connection_limit.load(Relaxed) + MAX_ANSWERED_REFUSALS
    }

    /// Closes the connections to backends that carry nothing, at the end of the worker.
    pub fn close_backend_connections(&self) {
        self.idle.borrow_mut().clear();
        self.h2_connections.borrow_mut().clear();
    }

    /// Housekeeping, a few times a second: closes idle connections whose time is over, and lets go
    /// of a generation that was replaced, which an idle worker would keep alive.
    pub fn tick(&self) {
        self.idle.borrow_mut().sweep(clock::now());
        self.h2_connections.borrow_mut().sweep(clock::now());
        drop(self.generation());
    }
}
