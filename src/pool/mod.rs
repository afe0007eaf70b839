//! Pools and their backends: who may take traffic, who gets the next request, what failures and checks lead to.
//! Pure: no sockets, no tasks; time comes in as an argument.
//!
//! A [`Pool`] is one generation, made by each reload. [`PoolState`] and [`BackendState`] live on. Requests of an old
//! generation still report to the states after a reload, so every change of a state refreshes all living generations.
//! Hot: [`Pool::pick`], [`Pool::succeeded`], dropping a [`BackendLease`]. All else takes the pool's lock and is rare.

pub mod backend;
pub mod budget;
mod down_signal;
mod ejection;
mod eligible;
#[cfg(test)]
pub(crate) mod fixture;
pub mod health;
mod policy;
#[cfg(test)]
mod tests;
mod transition;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

pub use self::{
    backend::{Backend, BackendLease, BackendState, HealthView, ResolvedAddresses},
    budget::RetryBudget,
    health::{HealthState, LastCheck},
};
use self::{
    ejection::PoolCounts,
    eligible::{EligibilityRules, EligibleSet},
    health::{CheckThresholds, StateChange},
    policy::{EligibleBackend, PickContext},
};
use crate::{
    base::{clock, rng::Random},
    config::model::{self, OnDown},
    reason::Reason,
    telemetry::metrics::{PerThread, PoolSlot},
};

/// Backends from which on a pool is large: its refresh takes longer than some tens of microseconds.
const LARGE: usize = 256;
/// Nanoseconds for which backends of a large pool that come up wait for each other: 20 ms.
const TOGETHER: u64 = 20_000_000;

/// The next [`Pool::transport_epoch`].
static NEXT_TRANSPORT_EPOCH: AtomicU64 = AtomicU64::new(0);

/// A pool in one generation of the configuration.
#[derive(Debug)]
pub struct Pool {
    /// The key in the file.
    pub name: Arc<str>,
    /// What the file says about it.
    pub config: model::PoolConfig,
    /// Changes when connections that were made before may not be used any more: another protocol, or other TLS. No two pools
    /// share one otherwise.
    pub transport_epoch: u64,
    /// In the order of the file; `Backend::index` is the position.
    pub backends: Vec<Arc<Backend>>,
    /// What lives on across reloads.
    pub state: Arc<PoolState>,
    generation: Arc<PoolGeneration>,
}

/// What is known about a pool whatever the configuration says: keyed by its name, handed on by reloads.
#[derive(Debug)]
pub struct PoolState {
    /// Its counters.
    pub metrics: PerThread<PoolSlot>,
    /// Tokens for retries.
    pub budget: RetryBudget,
    cursor: AtomicUsize,
    /// Nanoseconds after `start` when the next sentence ends; `u64::MAX` if nobody is ejected.
    next_expiry: AtomicU64,
    start: Instant,
    /// Nanoseconds after `start` of the last refresh that a good check caused.
    refreshed: AtomicU64,
    /// Rosters of large pools lack backends that have come up since; `next_expiry` says when they get them.
    behind: AtomicBool,
    /// The lock under which states change, and everyone who has to hear of it.
    generations: Mutex<Vec<Weak<PoolGeneration>>>,
    /// Backends that have left the configuration, as long as something of them is under way.
    departed: Mutex<Vec<Weak<BackendState>>>,
}

/// The part of a pool that changes of state have to reach, even while old and new generations live side by side.
#[derive(Debug)]
struct PoolGeneration {
    backends: Vec<Arc<Backend>>,
    rules: EligibilityRules,
    /// Passive ejection; `None` is none.
    ejection: Option<model::EjectionConfig>,
    /// A newer generation has taken over.
    retired: AtomicBool,
    /// The pool has left the configuration: exchanges that have begun may still use its backends.
    orphaned: AtomicBool,
    eligible: ArcSwap<EligibleSet>,
}

/// A change of a backend's state. `Display` is the line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateTransition {
    /// The pool's name.
    pub pool: Arc<str>,
    /// The backend's name.
    pub backend: Arc<str>,
    /// The state before.
    pub from: HealthState,
    /// The state now.
    pub to: HealthState,
    /// Why: one line without control characters of our own making; a check's error text is passed through.
    pub cause: String,
}

impl fmt::Display for StateTransition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "backend `{}` of pool `{}` is {} (was {}): {}",
            self.backend, self.pool, self.to, self.from, self.cause
        )
    }
}

impl Pool {
    /// A new generation. Adopts the states of `previous` by address and changes none of them, so it may be thrown away
    /// again; when it has taken over, `previous.retire(Some(&new))` has to follow.
    pub fn new(config: &model::PoolConfig, previous: Option<&Self>, now: Instant) -> Self {
        let state = previous.map_or_else(
            || Arc::new(PoolState::new(now)),
            |previous| Arc::clone(&previous.state),
        );
        Self::build(config, state, previous, now)
    }

    /// A pool that is back in the configuration while something of it is still under way. Like [`Pool::new`] it changes
    /// nothing.
    pub fn returned(config: &model::PoolConfig, state: Arc<PoolState>, now: Instant) -> Self {
        Self::build(config, state, None, now)
    }

    fn build(
        config: &model::PoolConfig,
        state: Arc<PoolState>,
        previous: Option<&Self>,
        now: Instant,
    ) -> Self {
        let departed = state.departed();
        let staying = previous.iter().flat_map(|previous| &previous.backends);
        let staying = staying.map(|backend| &backend.state);
        // Of two at one address the later one is taken: that of the generation before.
        let known: HashMap<_, _> = departed
            .iter()
            .chain(staying.filter(|state| !state.is_removed()))
            .map(|state| (&state.address, state))
            .collect();
        let checks = config.health_check.is_some();
        let backends: Vec<_> = config
            .backends
            .iter()
            .enumerate()
            .map(|(index, backend)| {
                let adopted = known.get(&backend.address).map(|state| Arc::clone(state));
                Arc::new(Backend {
                    index,
                    config: backend.clone(),
                    limit: limit(backend.max_connections, config.connections_per_backend),
                    state: adopted.unwrap_or_else(|| {
                        Arc::new(BackendState::new(
                            &config.name,
                            &backend.address,
                            checks,
                            now,
                        ))
                    }),
                })
            })
            .collect();
        let rules = EligibilityRules {
            policy: config.policy,
            checks,
            when_all_down: config.when_all_down,
            is_orphaned: false,
        };
        let generation = state.admit(backends.clone(), rules, config.ejection.clone());
        let same = previous.filter(|previous| {
            let old = &previous.config;
            old.protocol == config.protocol && old.tls == config.tls
        });
        let transport_epoch = same.map_or_else(
            || NEXT_TRANSPORT_EPOCH.fetch_add(1, Relaxed),
            |previous| previous.transport_epoch,
        );
        Self {
            name: Arc::clone(&config.name),
            transport_epoch,
            config: config.clone(),
            backends,
            state,
            generation,
        }
    }

    /// Takes backends of this generation into service that had left the configuration; the last thing before the swap.
    pub fn restore(&self) {
        let is_back = |backend: &&Arc<Backend>| backend.state.is_removed();
        if !self.backends.iter().any(|backend| is_back(&backend)) {
            return;
        }
        let now = clock::now();
        let generations = self.state.lock();
        for backend in self.backends.iter().filter(is_back) {
            backend.state.change(|health| health.restore(now));
            if self.config.health_check.is_none() {
                backend.state.change(|health| health.unchecked(now));
            }
            if !self.may_ever_eject() {
                backend.state.change(|health| health.free(now));
            }
        }
        self.state.note_expiry(&self.backends);
        refresh_all(&generations);
    }

    /// Follows the swap to `next` (`None`: the pool is gone): backends that left become removed, where `next` has no
    /// health check bad verdicts fall, and where it never ejects all ejections end.
    pub fn retire(&self, next: Option<&Self>) {
        let now = clock::now();
        let generations = self.state.lock();
        self.generation.retired.store(true, Release);
        let staying: HashSet<_> = next
            .iter()
            .flat_map(|next| &next.backends)
            .map(|backend| Arc::as_ptr(&backend.state))
            .collect();
        let unchecked = next.is_some_and(|next| next.config.health_check.is_none());
        let ejects = next.is_some_and(Self::may_ever_eject);
        if next.is_none() {
            let living = generations.iter().filter_map(Weak::upgrade);
            living.for_each(|one| one.orphaned.store(true, Release));
        }
        for backend in &self.backends {
            if !staying.contains(&Arc::as_ptr(&backend.state)) {
                backend.state.change(|health| health.remove(now));
                self.state.depart(&backend.state);
                continue;
            }
            if unchecked {
                backend.state.change(|health| health.unchecked(now));
            }
            if !ejects && let Some(change) = backend.state.change(|health| health.free(now)) {
                self.transition(backend, change).log();
            }
        }
        let in_force = next.map_or(&self.backends, |next| &next.backends);
        self.state.note_expiry(in_force);
        refresh_all(&generations);
    }

    /// Sets the turn that is next, any number; a new pool begins with turn 0, its first backend.
    pub fn start_at(&self, turn: usize) {
        self.state.cursor.store(turn, Relaxed);
    }

    fn may_ever_eject(&self) -> bool {
        let ejection = self.config.ejection.as_ref();
        ejection.is_some_and(|ejection| ejection.max_ejected > 0.0)
    }

    /// Picks a backend and counts it in flight. `tried` are `Backend::index`es of this pool: none of them is picked
    /// while another eligible one has room. When all of a tier were tried the next tier is asked; when there is none, they
    /// may be picked again.
    /// Errors: [`Reason::DestinationUnavailable`], [`Reason::ConnectionLimitReached`].
    #[inline]
    pub fn pick(&self, tried: &[usize], random: &mut Random) -> Result<BackendLease, Reason> {
        let eligible = self.generation.eligible.load();
        if eligible.candidates.is_empty() {
            return Err(Reason::DestinationUnavailable);
        }
        let mut turn = PickContext {
            candidates: &eligible.candidates,
            tried,
            cursor: &self.state.cursor,
            random,
        };
        let mut picked = eligible.picker.pick(&mut turn);
        if picked.is_none() && !tried.is_empty() {
            if let Some(backend) = self.pick_of_next_tier(&eligible, &mut turn) {
                return Ok(BackendLease::claimed(backend));
            }
            turn.tried = &[];
            picked = eligible.picker.pick(&mut turn);
        }
        picked
            .and_then(|position| eligible.candidates.get(position))
            .map(|backend| BackendLease::claimed(Arc::clone(backend)))
            .ok_or(Reason::ConnectionLimitReached)
    }

    /// The same beside `passed`, backends that are well and could not take this request: another one of their tier is
    /// picked, or one of them again; the next tier is not asked for their sake.
    #[inline]
    pub fn pick_beside(
        &self,
        passed: &[usize],
        tried: &[usize],
        random: &mut Random,
    ) -> Result<BackendLease, Reason> {
        if passed.is_empty() {
            return self.pick(tried, random);
        }
        let both = [passed, tried].concat();
        let eligible = self.generation.eligible.load();
        let mut turn = PickContext {
            candidates: &eligible.candidates,
            tried: &both,
            cursor: &self.state.cursor,
            random,
        };
        let is_empty = eligible.candidates.is_empty();
        let picked = (!is_empty)
            .then(|| eligible.picker.pick(&mut turn))
            .flatten();
        match picked.and_then(|position| eligible.candidates.get(position)) {
            Some(backend) => Ok(BackendLease::claimed(Arc::clone(backend))),
            None => self.pick(tried, random),
        }
    }

    /// Picks a backend of the tier behind that of `eligible`. `None` while one of `eligible` was not tried: it is full, and a
    /// full tier does not spill over.
    #[cold]
    fn pick_of_next_tier(
        &self,
        eligible: &EligibleSet,
        turn: &mut PickContext<'_>,
    ) -> Option<EligibleBackend> {
        let is_tried = |backend: &Arc<Backend>| turn.tried.contains(&backend.index);
        if !eligible.candidates.iter().all(is_tried) {
            return None;
        }
        let generation = &self.generation;
        let untried: Vec<_> = generation
            .backends
            .iter()
            .filter(|backend| !is_tried(backend))
            .map(Arc::clone)
            .collect();
        let next = EligibleSet::new(&untried, generation.rules);
        if !next.is_tier_behind(eligible) {
            return None;
        }
        let picked = next.picker.pick(&mut PickContext {
            candidates: &next.candidates,
            tried: &[],
            cursor: turn.cursor,
            random: turn.random,
        });
        picked.and_then(|position| next.candidates.get(position).map(Arc::clone))
    }

    /// Where the backends at `positions` of `other` are in this pool, those that are there.
    pub fn positions_of(&self, other: &Self, positions: &[usize]) -> Vec<usize> {
        let states = positions.iter().filter_map(|at| other.backends.get(*at));
        states
            .filter_map(|known| {
                let mut own = self.backends.iter();
                own.position(|backend| Arc::ptr_eq(&backend.state, &known.state))
            })
            .collect()
    }

    /// Real traffic succeeded: the streak of failures ends. One relaxed load in the common case.
    #[inline]
    pub fn succeeded(&self, backend: &Backend) {
        backend.state.clear_failures();
    }

    /// Real traffic failed. Counts where the reason blames the backend, and may eject it; the transition is given to
    /// one caller only. The attempt is renewed at every further `failures` in a row, should the guard have forbidden it.
    pub fn failed(
        &self,
        backend: &Backend,
        reason: Reason,
        now: Instant,
    ) -> Option<StateTransition> {
        if !reason.is_backend_fault() {
            return None;
        }
        let ejection = self.config.ejection.as_ref()?;
        let limit = ejection.failures.max(1);
        let streak = backend.state.add_failure();
        if !streak.is_multiple_of(limit) {
            return None;
        }
        self.eject(backend, ejection, reason, now)
    }

    #[cold]
    fn eject(
        &self,
        backend: &Backend,
        ejection: &model::EjectionConfig,
        reason: Reason,
        now: Instant,
    ) -> Option<StateTransition> {
        let generations = self.state.lock();
        let streak = backend.state.failures_in_a_row();
        // A success or another thread's ejection may have come in between.
        if streak < ejection.failures || !backend.state.state().may_take_traffic() {
            return None;
        }
        if !may_eject(&generations, backend) {
            return None;
        }
        let change = backend.state.change(|health| {
            let (step, length) = ejection::sentence(ejection, health.step, health.since, now);
            health.step = step;
            let cause = format!("{reason} {streak} times in a row, out for {length:?}");
            health.eject(now + length, now, cause)
        })?;
        backend.state.clear_failures();
        backend.state.metrics.mine().ejections.add(reason);
        self.state.note_expiry(&self.backends);
        refresh_all(&generations);
        Some(self.transition(backend, change))
    }

    /// The result of an active check; also counts it. Only the control thread may call this.
    pub fn checked(
        &self,
        backend: &Backend,
        result: Result<(), String>,
        took: Duration,
        now: Instant,
    ) -> Option<StateTransition> {
        let check = self.config.health_check.as_ref()?;
        let metrics = backend.state.metrics.mine();
        let count = if result.is_ok() {
            &metrics.checks_ok
        } else {
            &metrics.checks_failed
        };
        count.add(1);
        metrics.check_duration_micros.set(took.as_micros() as u64);
        let thresholds = CheckThresholds {
            rise: check.rise,
            fall: check.fall,
        };
        let generations = self.state.lock();
        let change = backend
            .state
            .change(|health| health.checked(result, took, thresholds, now))?;
        self.state.follow(&generations, backend, &change, now);
        if change.to == HealthState::Down && check.on_down == OnDown::Close {
            backend.state.down.give();
        }
        Some(self.transition(backend, change))
    }

    /// An active check could not be made for a lack of our own: descriptors, ports, memory. It is counted and shown, and
    /// changes no verdict and no streak. Only the control thread may call this.
    pub fn not_checked(&self, backend: &Backend, error: String) {
        backend.state.metrics.mine().checks_local_error.add(1);
        backend.state.change(|health| health.not_checked(error));
    }

    /// Ends the ejections whose time is over, and lets backends of large pools in that have just come up. One atomic load
    /// where there is nothing to do, so it may be called often: every 100 ms or faster.
    pub fn expire(&self, now: Instant) -> Vec<StateTransition> {
        if self.state.nanos(now) < self.state.next_expiry.load(Acquire) {
            return Vec::new();
        }
        let generations = self.state.lock();
        let ended: Vec<_> = self
            .backends
            .iter()
            .filter_map(|backend| {
                let change = backend.state.change(|health| health.expire(now))?;
                Some(self.transition(backend, change))
            })
            .collect();
        self.state.note_expiry(&self.backends);
        if self.state.behind.swap(false, AcqRel) || !ended.is_empty() {
            refresh_all(&generations);
        }
        ended
    }

    /// Works out again who may be picked. Every change of state does this by itself.
    pub fn refresh(&self) {
        let _lock = self.state.lock();
        self.generation.refresh();
    }

    /// How many backends are in each state, by [`HealthState::index`].
    pub fn counts(&self) -> [usize; HealthState::COUNT] {
        let mut counts = [0; HealthState::COUNT];
        for backend in &self.backends {
            if let Some(count) = counts.get_mut(backend.state.state().index()) {
                *count += 1;
            }
        }
        counts
    }

    fn transition(&self, backend: &Backend, change: StateChange) -> StateTransition {
        StateTransition {
            pool: Arc::clone(&self.name),
            backend: Arc::clone(&backend.config.name),
            from: change.from,
            to: change.to,
            cause: change.cause,
        }
    }
}

impl PoolState {
    fn new(now: Instant) -> Self {
        Self {
            metrics: PerThread::default(),
            budget: RetryBudget::default(),
            cursor: AtomicUsize::new(0),
            next_expiry: AtomicU64::new(u64::MAX),
            refreshed: AtomicU64::new(0),
            behind: AtomicBool::new(false),
            start: now,
            generations: Mutex::new(Vec::new()),
            departed: Mutex::default(),
        }
    }

    /// Backends that have left the configuration and still serve something, the oldest first.
    fn departed(&self) -> Vec<Arc<BackendState>> {
        let departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        let living = departed.iter().filter_map(Weak::upgrade);
        living.filter(|state| state.in_flight() > 0).collect()
    }

    fn depart(&self, state: &Arc<BackendState>) {
        let this = Arc::downgrade(state);
        let mut departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        departed.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&this));
        departed.push(this);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<PoolGeneration>>> {
        self.generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_nanos() as u64
    }

    /// Makes a generation and enters it into the list under one lock, so that it misses no change of state.
    fn admit(
        &self,
        backends: Vec<Arc<Backend>>,
        rules: EligibilityRules,
        ejection: Option<model::EjectionConfig>,
    ) -> Arc<PoolGeneration> {
        let mut generations = self.lock();
        let generation = Arc::new(PoolGeneration {
            eligible: ArcSwap::from_pointee(EligibleSet::new(&backends, rules)),
            backends,
            rules,
            ejection,
            retired: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
        });
        generations.retain(|old| old.strong_count() > 0);
        generations.push(Arc::downgrade(&generation));
        generation
    }

    /// Refreshes after a check changed a state. When thousands of backends come up one after the other, as at start,
    /// each refresh would cost as much as the pool is large: then those that come up are let in together.
    fn follow(
        &self,
        generations: &[Weak<PoolGeneration>],
        backend: &Backend,
        change: &StateChange,
        now: Instant,
    ) {
        let living: Vec<_> = generations.iter().filter_map(Weak::upgrade).collect();
        if living.iter().all(|one| one.is_indifferent(backend, change)) {
            return;
        }
        let due = self.refreshed.load(Relaxed).saturating_add(TOGETHER);
        let is_large = living.iter().any(|one| one.backends.len() > LARGE);
        let can_wait = living.iter().all(|one| one.has_peers_up(backend, change));
        if is_large && can_wait && self.nanos(now) < due {
            self.behind.store(true, Release);
            self.next_expiry.fetch_min(due, AcqRel);
            return;
        }
        self.refreshed.store(self.nanos(now), Relaxed);
        self.behind.store(false, Release);
        refresh_all(generations);
    }

    fn note_expiry(&self, backends: &[Arc<Backend>]) {
        let next = backends
            .iter()
            .filter_map(|backend| backend.state.sentence())
            .map(|until| self.nanos(until))
            .min();
        self.next_expiry.store(next.unwrap_or(u64::MAX), Release);
    }
}

impl PoolGeneration {
    fn refresh(&self) {
        let rules = EligibilityRules {
            is_orphaned: self.orphaned.load(Acquire),
            ..self.rules
        };
        self.eligible
            .store(Arc::new(EligibleSet::new(&self.backends, rules)));
    }

    fn is_indifferent(&self, backend: &Backend, change: &StateChange) -> bool {
        let eligible = self.eligible.load();
        eligible.is_indifferent(backend, change, self.rules)
    }

    /// True if the backend only joins others that are up already: nobody misses it for a moment.
    fn has_peers_up(&self, backend: &Backend, change: &StateChange) -> bool {
        let eligible = self.eligible.load();
        eligible.is_joined_by(backend, change, self.rules)
    }

    fn may_eject(&self) -> bool {
        let ejection = self.ejection.as_ref();
        ejection.is_some_and(|ejection| ejection::may_eject(self.counts(), ejection))
    }

    fn counts(&self) -> PoolCounts {
        let weighted = self.backends.iter().filter(|one| one.config.weight > 0);
        let (mut total, mut available) = (0, 0);
        for backend in weighted {
            total += 1;
            available += usize::from(backend.state.state().may_take_traffic());
        }
        PoolCounts { total, available }
    }
}

fn refresh_all(generations: &[Weak<PoolGeneration>]) {
    for generation in generations.iter().filter_map(Weak::upgrade) {
        generation.refresh();
    }
}

/// Asks every generation in force that has the backend, each by its own rules; one that has been replaced has no say.
fn may_eject(generations: &[Weak<PoolGeneration>], backend: &Backend) -> bool {
    let mut in_force = generations
        .iter()
        .filter_map(Weak::upgrade)
        .filter(|generation| !generation.retired.load(Acquire))
        .filter(|generation| {
            let mut members = generation.backends.iter();
            members.any(|member| Arc::ptr_eq(&member.state, &backend.state))
        })
        .peekable();
    in_force.peek().is_some() && in_force.all(|generation| generation.may_eject())
}

fn limit(own: Option<usize>, pools: Option<usize>) -> usize {
    own.unwrap_or(usize::MAX).min(pools.unwrap_or(usize::MAX))
}
