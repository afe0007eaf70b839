//! State of a pool that reloads hand on, keyed by the pool's name.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use super::{
    backend::{Backend, BackendState},
    budget::RetryBudget,
    eligible::EligibilityRules,
    generation::{PoolGeneration, living, refresh_all},
    health::{EjectionPhase, StateChange},
    queue::BackendQueue,
    waiting::WaitingCount,
};
use crate::{
    config::model,
    telemetry::metrics::{PerThread, PoolSlot},
};

/// Pools with more backends than this coalesce refreshes: one takes more than some tens of
/// microseconds there.
const LARGE_POOL_BACKENDS: usize = 256;
/// Coalescing time of `up` transitions in large pools.
const UP_COALESCE: Duration = Duration::from_millis(20);
/// Interval at which trials on their way are looked at.
const TRIAL_REVIEW_INTERVAL: Duration = Duration::from_millis(250);

/// State of a pool that outlives one generation of the configuration.
#[derive(Debug)]
pub struct PoolState {
    /// Its counters.
    pub metrics: PerThread<PoolSlot>,
    /// Tokens for retries.
    pub budget: RetryBudget,
    /// Requests that wait for a backend.
    pub(super) queue: Arc<BackendQueue>,
    /// Their number.
    pub(super) waiting: Arc<WaitingCount>,
    /// Number of picks so far; the policies take turns by it.
    pub(super) cursor: AtomicUsize,
    /// Nanoseconds after `start` at which `expire` has work: the next ejection ends, a trial may
    /// take too long, or coalesced transitions are due. `u64::MAX` is never.
    next_expiry: AtomicU64,
    /// A backend waits for its trial.
    has_trials: AtomicBool,
    start: Instant,
    /// Nanoseconds after `start` of the last refresh that a good check caused.
    last_refresh: AtomicU64,
    /// Coalesced transitions are pending.
    refresh_pending: AtomicBool,
    /// Generations to refresh. This lock serialises all changes of state in the pool.
    generations: Mutex<Vec<Weak<PoolGeneration>>>,
    /// Backends that have left the configuration and may still serve something.
    departed: Mutex<Vec<Weak<BackendState>>>,
}

impl PoolState {
    pub(super) fn new(now: Instant) -> Self {
        let queue = BackendQueue::new();
        Self {
            metrics: PerThread::default(),
            waiting: Arc::clone(queue.count()),
            queue,
            budget: RetryBudget::default(),
            cursor: AtomicUsize::new(0),
            next_expiry: AtomicU64::new(u64::MAX),
            has_trials: AtomicBool::new(false),
            last_refresh: AtomicU64::new(0),
            refresh_pending: AtomicBool::new(false),
            start: now,
            generations: Mutex::new(Vec::new()),
            departed: Mutex::default(),
        }
    }

    /// Backends that have left the configuration and still serve something, the oldest first.
    pub(super) fn departed(&self) -> Vec<Arc<BackendState>> {
        let departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        let living = departed.iter().filter_map(Weak::upgrade);
        living.filter(|state| state.in_flight() > 0).collect()
    }

    /// Remembers a backend that has left the configuration.
    pub(super) fn add_departed(&self, state: &Arc<BackendState>) {
        let this = Arc::downgrade(state);
        let mut departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        departed.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&this));
        departed.push(this);
    }

    /// Locks the state changes of the pool.
    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Weak<PoolGeneration>>> {
        self.generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a generation and lists it under one lock, so that it misses no change of state.
    pub(super) fn add_generation(
        &self,
        backends: Vec<Arc<Backend>>,
        rules: EligibilityRules,
        ejection: Option<model::EjectionConfig>,
        now: Instant,
    ) -> Arc<PoolGeneration> {
        let mut generations = self.lock();
        let generation = Arc::new(PoolGeneration::new(
            backends,
            rules,
            ejection,
            now,
            Arc::clone(&self.waiting),
        ));
        generations.retain(|old| old.strong_count() > 0);
        generations.push(Arc::downgrade(&generation));
        generation
    }

    /// Refreshes the generations after a check changed a state.
    ///
    /// When thousands of backends come up one after the other, as at start, a refresh for each
    /// would cost the square of their number: those that only join others are let in together.
    pub(super) fn refresh_after(
        &self,
        generations: &[Weak<PoolGeneration>],
        backend: &Backend,
        change: &StateChange,
        now: Instant,
    ) {
        let living: Vec<_> = living(generations).collect();
        if living
            .iter()
            .all(|one| one.is_unaffected_by(backend, change))
        {
            // A client may wait for this backend alone.
            if let Some(any) = living.first() {
                any.serve_waiting();
            }
            return;
        }
        let coalesce = UP_COALESCE.as_nanos() as u64;
        let due = self.last_refresh.load(Relaxed).saturating_add(coalesce);
        let is_large = living
            .iter()
            .any(|one| one.backends().len() > LARGE_POOL_BACKENDS);
        // A backend that goes down is taken out at once, in pools of any size.
        let can_wait = living.iter().all(|one| one.is_joined_by(backend, change));
        if is_large && can_wait && self.nanos(now) < due {
            self.refresh_pending.store(true, Release);
            self.next_expiry.fetch_min(due, AcqRel);
            return;
        }
        self.last_refresh.store(self.nanos(now), Relaxed);
        self.refresh_pending.store(false, Release);
        refresh_all(generations, now);
    }

    /// True if a backend waits for its trial, so that the next request may be it.
    #[inline]
    pub fn has_trials(&self) -> bool {
        self.has_trials.load(Relaxed)
    }

    /// Number of the second, for the failure rate.
    pub(super) fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs()
    }

    /// True if an ejection ends by `now` or coalesced transitions are due.
    pub(super) fn has_expired(&self, now: Instant) -> bool {
        self.nanos(now) >= self.next_expiry.load(Acquire)
    }

    /// Returns and clears the mark that coalesced transitions are pending.
    pub(super) fn take_pending_refresh(&self) -> bool {
        self.refresh_pending.swap(false, AcqRel)
    }

    /// Takes up changes of states, ejections or weights: the next expiry, and the eligible sets of
    /// all living generations.
    pub(super) fn refresh_all(&self, generations: &[Weak<PoolGeneration>], now: Instant) {
        self.update_next_expiry(generations, now);
        refresh_all(generations, now);
    }

    /// Sets the next expiry to the first end of an ejection or review of a trial among the backends
    /// of all `generations`: an old one may not have the backend that is next.
    pub(super) fn update_next_expiry(&self, generations: &[Weak<PoolGeneration>], now: Instant) {
        let (mut next, mut has_trials) = (u64::MAX, false);
        for generation in living(generations) {
            let members = generation.backends().iter();
            for backend in members.filter(|one| !one.state.is_removed()) {
                let at = match backend.state.ejection() {
                    EjectionPhase::None => continue,
                    EjectionPhase::Out { until } => until,
                    EjectionPhase::Trial { .. } => {
                        has_trials = true;
                        now + TRIAL_REVIEW_INTERVAL
                    }
                };
                next = next.min(self.nanos(at));
            }
        }
        self.has_trials.store(has_trials, Relaxed);
        self.next_expiry.store(next, Release);
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_nanos() as u64
    }
}
