//! Pools and their backends: the states, the choice of a backend for a request, and the effect of
//! failures and checks. Pure: no sockets, no tasks; time is an argument.
//!
//! A [`Pool`] is one generation, made by each reload. [`PoolState`] and [`BackendState`] live on.
//! Requests of an old generation still report to the states after a reload, so every change of a
//! state refreshes all living generations.
//!
//! Hot: [`Pool::pick`] (`pick.rs`), [`Pool::record_success`], dropping a [`BackendLease`].
//! Everything else takes the pool's lock and is rare.

mod backend;
mod budget;
mod check_history;
mod ejection;
mod eligible;
mod failure_rate;
#[cfg(test)]
pub(crate) mod fixture;
mod generation;
mod health;
mod lease;
mod operator;
mod overrides;
mod pick;
mod policy;
mod queue;
mod resolved;
mod response_time;
#[cfg(test)]
mod simulation;
mod slow_start;
mod state;
mod sticky;
#[cfg(test)]
mod tests;
mod transition;
mod trial;
mod waiting;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

pub use self::{
    backend::{Backend, BackendState, HealthView},
    budget::RetryBudget,
    check_history::{CheckPhases, CheckRecord, CheckTiming, MAX_KEPT_CHECKS},
    health::HealthState,
    lease::{BackendLease, UntilDown},
    overrides::{
        BackendOverrides, EndedOverride, OperatorOverride, OperatorState, OverrideEnd, OverrideKey,
        OverrideTable,
    },
    pick::PickRequest,
    queue::{QueuePlace, QueueStatus},
    resolved::ResolvedAddresses,
    state::PoolState,
    sticky::StickyTable,
    transition::StateTransition,
    trial::TrialPhase,
};
use self::{
    eligible::EligibilityRules,
    generation::{PoolGeneration, living, may_eject, may_stay_ejected, refresh_all},
    health::{CheckThresholds, StateChange},
    trial::TrialTicket,
};
use crate::{
    base::{address::BackendAddress, clock},
    config::model::{self, BalancingPolicy, OnDown},
    reason::Reason,
};

/// The next [`Backend::transport_epoch`].
static NEXT_TRANSPORT_EPOCH: AtomicU64 = AtomicU64::new(0);

/// Time for which the response to a trial is watched after its head.
const TRIAL_RESPONSE_TIME: Duration = Duration::from_secs(1);
/// Time for a trial without `timeouts.response`.
const MAX_TRIAL_TIME: Duration = Duration::from_mins(1);

/// A pool in one generation of the configuration.
#[derive(Debug)]
pub struct Pool {
    /// The key in the file.
    pub name: Arc<str>,
    /// Its configuration.
    pub config: model::PoolConfig,
    /// Backends in the order of the file; `Backend::index` is the position.
    pub backends: Vec<Arc<Backend>>,
    /// State that lives on across reloads.
    pub state: Arc<PoolState>,
    /// Ids of its backends in the cookies of clients; `None` without `sticky`.
    pub sticky: Option<StickyTable>,
    generation: Arc<PoolGeneration>,
}

impl Pool {
    /// Makes a new generation, which adopts the states of `previous` by address.
    ///
    /// It changes none of them, because an error later in the reload throws it away again. When it
    /// is in force, `previous.retire(Some(&new))` must follow.
    pub fn new(config: &model::PoolConfig, previous: Option<&Self>, now: Instant) -> Self {
        Self::of_members(config, &config.backends, previous, now)
    }

    /// Makes a new generation like [`Pool::new`], with `members` for its backends: what names and
    /// other sources of `config` stand for.
    pub fn of_members(
        config: &model::PoolConfig,
        members: &[model::BackendConfig],
        previous: Option<&Self>,
        now: Instant,
    ) -> Self {
        let state = previous.map_or_else(
            || Arc::new(PoolState::new(now)),
            |previous| Arc::clone(&previous.state),
        );
        Self::build(config, members, state, previous, now)
    }

    /// Makes a pool that returns to the configuration while old exchanges still use it. Like
    /// [`Pool::new`] it changes nothing.
    pub fn returned(
        config: &model::PoolConfig,
        members: &[model::BackendConfig],
        state: Arc<PoolState>,
        now: Instant,
    ) -> Self {
        Self::build(config, members, state, None, now)
    }

    fn build(
        config: &model::PoolConfig,
        members: &[model::BackendConfig],
        state: Arc<PoolState>,
        previous: Option<&Self>,
        now: Instant,
    ) -> Self {
        let backends = Self::build_backends(config, members, &state, previous, now);
        let rules = EligibilityRules {
            policy: config.policy,
            hash_balance: config.hash_balance,
            slow_start: config.slow_start,
            checks: config.health_check.is_some(),
            when_all_down: config.when_all_down,
            is_orphaned: false,
            queues: config.queue > 0,
        };
        let generation =
            state.add_generation(backends.clone(), rules, config.ejection.clone(), now);
        let sticky = config.sticky.as_ref().and_then(|sticky| {
            // `check --probe` serves no requests, and has no secret.
            let secret = sticky.secret.as_ref()?;
            Some(StickyTable::new(&config.name, sticky, secret, &backends))
        });
        Self {
            name: Arc::clone(&config.name),
            config: config.clone(),
            sticky,
            backends,
            state,
            generation,
        }
    }

    /// Makes the backends, with the state that is known for each address. Those that are as they
    /// were are shared with `previous`.
    fn build_backends(
        config: &model::PoolConfig,
        members: &[model::BackendConfig],
        state: &PoolState,
        previous: Option<&Self>,
        now: Instant,
    ) -> Vec<Arc<Backend>> {
        let departed = state.departed();
        let staying = previous.iter().flat_map(|previous| &previous.backends);
        let staying = staying.map(|backend| &backend.state);
        // Of two at one address the map keeps the later one: that of the previous generation.
        let known: HashMap<_, _> = departed
            .iter()
            .chain(staying.filter(|state| !state.is_removed()))
            .map(|state| (&state.address, state))
            .collect();
        let epochs = Self::kept_epochs(config, previous);
        let checks = config.health_check.is_some();
        let joined = previous.is_some_and(|previous| previous.is_joined_by(members));
        let build = |(index, backend): (usize, &model::BackendConfig)| {
            let adopted = known.get(&backend.address).map(|state| Arc::clone(state));
            let fresh = || {
                Arc::new(BackendState::new(
                    &config.name,
                    &backend.address,
                    checks,
                    joined,
                    &state.waiting,
                    now,
                ))
            };
            let state = adopted.unwrap_or_else(fresh);
            let limit = limit(backend.max_connections, config.connections_per_backend);
            let transport_epoch = epochs
                .get(&backend.address)
                .filter(|(tls, _)| **tls == backend.tls)
                .map_or_else(
                    || NEXT_TRANSPORT_EPOCH.fetch_add(1, Relaxed),
                    |(_, epoch)| *epoch,
                );
            let unchanged = previous
                .and_then(|previous| previous.backends.get(index))
                .filter(|known| {
                    known.config == *backend
                        && known.limit == limit
                        && known.transport_epoch == transport_epoch
                        && Arc::ptr_eq(&known.state, &state)
                });
            if let Some(unchanged) = unchanged {
                return Arc::clone(unchanged);
            }
            Arc::new(Backend {
                index,
                config: backend.clone(),
                limit,
                transport_epoch,
                state,
            })
        };
        members.iter().enumerate().map(build).collect()
    }

    /// True if backends that are new in `members`, which come after this generation, are added to
    /// others in service. Those that stand for an entry of the first generation are not, however
    /// late its first answer comes.
    fn is_joined_by(&self, members: &[model::BackendConfig]) -> bool {
        let is_left = |one: &Backend| !members.iter().any(|new| new.address == one.state.address);
        let is_first_answer =
            |one: &Arc<Backend>| one.config.is_group() && !one.state.has_joined() && is_left(one);
        self.backends.iter().any(|one| !one.config.is_group())
            && !self.backends.iter().any(is_first_answer)
    }

    /// The transport epochs of `previous` by address, with the `tls` that each was made for. None
    /// if the pool's own transport has changed.
    fn kept_epochs<'a>(
        config: &model::PoolConfig,
        previous: Option<&'a Self>,
    ) -> HashMap<&'a BackendAddress, (&'a model::TlsOverride, u64)> {
        let same = previous.filter(|previous| {
            let old = &previous.config;
            old.protocol == config.protocol && old.tls == config.tls
        });
        let backends = same.iter().flat_map(|previous| &previous.backends);
        backends
            .map(|backend| {
                let made = (&backend.config.tls, backend.transport_epoch);
                (&backend.config.address, made)
            })
            .collect()
    }

    /// Takes backends back into service that had left the configuration. Called right before this
    /// generation comes into force, when nothing can fail any more.
    pub fn restore(&self) {
        self.state.queue.restore(&self.generation);
        let is_back = |backend: &&Arc<Backend>| backend.state.is_removed();
        if !self.backends.iter().any(|backend| is_back(&backend)) {
            return;
        }
        let now = clock::now();
        let generations = self.state.lock();
        for backend in self.backends.iter().filter(is_back) {
            backend.state.change(|health| health.restore(now));
            if self.config.health_check.is_none() {
                backend.state.change(|health| health.end_checks(now));
            }
            if !self.may_ever_eject() {
                backend.state.change(|health| health.end_ejection(now));
            }
        }
        self.state.refresh_all(&generations, now);
    }

    /// Retires this generation after `next` came into force; `None`: the pool is gone.
    ///
    /// Backends that left become removed. Where `next` has no health check, bad verdicts are
    /// dropped; where it never ejects, all ejections end.
    pub fn retire(&self, next: Option<&Self>) {
        let now = clock::now();
        let generations = self.state.lock();
        self.generation.retired.store(true, Release);
        if let Some(next) = next {
            self.state.queue.serve_by(&next.generation);
        } else {
            living(&generations).for_each(|one| one.orphaned.store(true, Release));
        }
        let staying: HashSet<_> = next
            .iter()
            .flat_map(|next| &next.backends)
            .map(|backend| Arc::as_ptr(&backend.state))
            .collect();
        let ends_checks = next.is_some_and(|next| next.config.health_check.is_none());
        let ejects = next.is_some_and(Self::may_ever_eject);
        for backend in &self.backends {
            if !staying.contains(&Arc::as_ptr(&backend.state)) {
                backend.state.change(|health| health.remove(now));
                self.state.add_departed(&backend.state);
                continue;
            }
            if ends_checks {
                backend.state.change(|health| health.end_checks(now));
            }
            if !ejects && let Some(change) = backend.state.change(|health| health.end_ejection(now))
            {
                self.transition(backend, change).log();
            }
        }
        self.state.refresh_all(&generations, now);
    }

    /// Sets the position of the next pick. A new pool starts at 0, its first backend; a random
    /// start keeps many balancers that restart together from all picking the same one.
    pub fn start_at(&self, position: usize) {
        self.state.cursor.store(position, Relaxed);
    }

    fn may_ever_eject(&self) -> bool {
        let ejection = self.config.ejection.as_ref();
        ejection.is_some_and(|ejection| ejection.max_ejected > 0.0)
    }

    /// Positions in this pool of the backends at `positions` of `other`, without those that left.
    pub fn positions_of(&self, other: &Self, positions: &[usize]) -> Vec<usize> {
        let states = positions.iter().filter_map(|at| other.backends.get(*at));
        states
            .filter_map(|known| {
                let mut own = self.backends.iter();
                own.position(|backend| Arc::ptr_eq(&backend.state, &known.state))
            })
            .collect()
    }

    /// Records a success of real traffic: the streak of failures ends, and so does the ejection if
    /// this was its trial. One relaxed load in the common case.
    #[inline]
    pub fn record_success(&self, lease: &BackendLease, now: Instant) -> Option<StateTransition> {
        lease.state.clear_failures();
        if self.counts_outcomes() {
            lease.state.outcomes.add(self.state.second(now), false);
        }
        self.pass_trial(lease, lease.trial()?, now)
    }

    /// Records the time to the first byte of a response (of a session: the time to connect), for
    /// `least_time`.
    #[inline]
    pub fn record_response_time(&self, backend: &Backend, took: Duration, now: Instant) {
        if self.config.policy == BalancingPolicy::LeastTime {
            backend.state.response_time.record(took, now);
        }
    }

    /// Records a failure of real traffic. It counts if the reason is the backend's fault, and may
    /// eject it; only one caller gets the transition.
    ///
    /// If the guard forbids the ejection, every further `failures` in a row ask again, and the
    /// failure rate once a second.
    pub fn record_failure(
        &self,
        lease: &BackendLease,
        reason: Reason,
        now: Instant,
    ) -> Option<StateTransition> {
        if !reason.is_backend_fault() {
            return None;
        }
        let ejection = self.config.ejection.as_ref()?;
        let state = &lease.state;
        if let Some(ticket) = lease.trial()
            && state.trial.is_of_ejection(ticket)
        {
            return self.fail_trial(lease, ticket, reason, now);
        }
        let streak = state.add_failure();
        // Multiples only: a backend that fails thousands of requests must not lock for each of
        // them.
        let is_asked_by_streak = streak.is_multiple_of(ejection.failures.max(1));
        let is_asked_by_rate = ejection.failure_rate.is_some_and(|rate| {
            let second = self.state.second(now);
            state.outcomes.add(second, true);
            let counts = state.outcomes.counts(second);
            counts.is_at_least(rate, ejection.min_requests) && state.outcomes.may_ask(second)
        });
        if !is_asked_by_streak && !is_asked_by_rate {
            return None;
        }
        self.eject(lease, ejection, reason, now)
    }

    /// True if a response with this status is a failure of the backend, by `ejection.status`.
    #[inline]
    pub fn is_failure_status(&self, status: u16) -> bool {
        status >= 500
            && self
                .config
                .ejection
                .as_ref()
                .is_some_and(|ejection| ejection.counts_status(status))
    }

    fn counts_outcomes(&self) -> bool {
        let ejection = self.config.ejection.as_ref();
        ejection.is_some_and(|ejection| ejection.failure_rate.is_some())
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
        // A success or another thread's ejection may precede the lock.
        let cause = self.cause_of_ejection(backend, ejection, reason, now)?;
        if !backend.state.state().may_take_traffic() || !may_eject(&generations, backend) {
            return None;
        }
        let change = backend.state.change(|health| {
            let is_forgiven = ejection::is_forgiven(ejection, health.since, now);
            if is_forgiven {
                health.ejection_count = 0;
            }
            let duration = ejection::ejection_duration(ejection, health.ejection_count);
            health.eject(
                now + duration,
                now,
                format!("{cause}, out for {duration:?}"),
            )
        })?;
        Some(self.finish_ejection(&generations, backend, change, reason, now))
    }

    /// Returns the cause of an ejection, if there are still failures enough for one.
    fn cause_of_ejection(
        &self,
        backend: &Backend,
        ejection: &model::EjectionConfig,
        reason: Reason,
        now: Instant,
    ) -> Option<String> {
        let streak = backend.state.failures_in_a_row();
        if streak >= ejection.failures {
            return Some(format!("{reason} {streak} times in a row"));
        }
        let counts = backend.state.outcomes.counts(self.state.second(now));
        let is_reached = ejection
            .failure_rate
            .is_some_and(|rate| counts.is_at_least(rate, ejection.min_requests));
        let (failed, total) = (counts.failed, counts.total);
        is_reached.then(|| format!("{failed} of {total} requests failed in 10s, at last {reason}"))
    }

    /// Ends an ejection whose trial has succeeded.
    #[cold]
    fn pass_trial(
        &self,
        backend: &Backend,
        ticket: TrialTicket,
        now: Instant,
    ) -> Option<StateTransition> {
        let generations = self.state.lock();
        let is_open = backend.state.state() == HealthState::Ejected
            && backend.state.trial.is_of_ejection(ticket);
        if !is_open {
            return None;
        }
        let change = backend.state.change(|health| health.trial_passed(now))?;
        self.state.metrics.mine().trials_passed.add(1);
        self.state.refresh_all(&generations, now);
        Some(self.transition(backend, change))
    }

    /// Begins the next ejection of a backend whose trial has failed, twice as long as the last one.
    /// If no other backend is available, it goes on getting requests.
    #[cold]
    fn fail_trial(
        &self,
        backend: &Backend,
        ticket: TrialTicket,
        reason: Reason,
        now: Instant,
    ) -> Option<StateTransition> {
        let ejection = self.config.ejection.as_ref()?;
        let generations = self.state.lock();
        let state = &backend.state;
        let is_open = state.state() == HealthState::Ejected && state.trial.is_of_ejection(ticket);
        if !is_open || !may_stay_ejected(&generations, backend) {
            return None;
        }
        let change = state.change(|health| {
            let duration = ejection::ejection_duration(ejection, health.ejection_count);
            let cause = format!("the trial request failed: {reason}, out for {duration:?}");
            health.eject(now + duration, now, cause)
        })?;
        self.state.metrics.mine().trials_failed.add(1);
        Some(self.finish_ejection(&generations, backend, change, reason, now))
    }

    fn finish_ejection(
        &self,
        generations: &[Weak<PoolGeneration>],
        backend: &Backend,
        change: StateChange,
        reason: Reason,
        now: Instant,
    ) -> StateTransition {
        backend.state.clear_failures();
        backend.state.outcomes.clear();
        backend.state.metrics.mine().ejections.add(reason);
        self.state.refresh_all(generations, now);
        self.transition(backend, change)
    }

    /// Records and counts the result of an active check with its times. Only the control thread
    /// may call this.
    pub fn record_check(
        &self,
        backend: &Backend,
        result: Result<(), String>,
        timing: impl Into<CheckTiming>,
        now: Instant,
    ) -> Option<StateTransition> {
        let timing = timing.into();
        let check = self.config.health_check.as_ref()?;
        let metrics = backend.state.metrics.mine();
        let count = if result.is_ok() {
            &metrics.checks_ok
        } else {
            &metrics.checks_failed
        };
        count.add(1);
        let micros = timing.took.as_micros() as u64;
        metrics.check_duration_micros.set(micros);
        let thresholds = CheckThresholds {
            rise: check.rise,
            fall: check.fall,
        };
        let generations = self.state.lock();
        let mut goes_down = false;
        let change = backend.state.change(|health| {
            let was_down = health.failed_checks();
            let change = health.checked(result, timing, thresholds, now);
            goes_down = health.failed_checks() && !was_down;
            change
        });
        if let Some(change) = &change {
            self.state.refresh_after(&generations, backend, change, now);
        }
        // Also of one that the operator drains, whose state stays as it is.
        if goes_down && check.on_down == OnDown::Close {
            backend.state.down.raise();
        }
        change.map(|change| self.transition(backend, change))
    }

    /// Records a check that a local error prevented: no descriptor, port or memory. It is counted
    /// and shown, and changes no verdict and no streak. Only the control thread may call this.
    pub fn record_check_not_made(&self, backend: &Backend, error: String) {
        backend.state.metrics.mine().checks_local_error.add(1);
        backend.state.change(|health| {
            health.check_not_made(error);
            None
        });
    }

    /// Makes trials due where the time of an ejection is over, looks at trials on their way, raises
    /// the weights of backends in slow start, and refreshes a large pool after coalesced
    /// transitions. Two atomic loads if there is nothing to do, so it may be called often.
    pub fn expire(&self, now: Instant) -> Vec<StateTransition> {
        let is_ramp_due = self.generation.is_ramp_due(now);
        if !self.state.has_expired(now) && !is_ramp_due {
            return Vec::new();
        }
        let generations = self.state.lock();
        let ended: Vec<_> = self
            .backends
            .iter()
            .filter_map(|backend| {
                let change = backend.state.change(|health| health.expire(now));
                let change = change.or_else(|| self.review_trial(backend, now))?;
                Some(self.transition(backend, change))
            })
            .collect();
        self.state.update_next_expiry(&generations, now);
        if self.state.take_pending_refresh() || is_ramp_due || !ended.is_empty() {
            refresh_all(&generations, now);
        } else if self.state.has_trials() {
            // One of those who wait may be the trial by now, or the next one.
            self.generation.serve_waiting();
        }
        ended
    }

    /// Looks at a trial on its way. One whose response has been coming for a while has passed: its
    /// rest may take hours. One that gets no response although there was time for it is held up by
    /// its client: the next request is the next trial.
    fn review_trial(&self, backend: &Backend, now: Instant) -> Option<StateChange> {
        let trial = &backend.state.trial;
        let value = trial.value();
        let phase = trial.phase();
        if !phase.is_claimed() || backend.state.state() != HealthState::Ejected {
            return None;
        }
        let since = backend.state.trial_unchanged_since(value, now);
        let age = now.saturating_duration_since(since);
        if phase == TrialPhase::Responding && age >= TRIAL_RESPONSE_TIME {
            self.state.metrics.mine().trials_passed.add(1);
            return backend.state.change(|health| health.trial_passed(now));
        }
        let timeouts = &self.config.timeouts;
        let response = timeouts.response.unwrap_or(MAX_TRIAL_TIME);
        if phase == TrialPhase::Running && age >= timeouts.connect.saturating_add(response) {
            trial.free(value);
        }
        None
    }

    /// Rebuilds the eligible set. Every change of state does this by itself.
    pub fn refresh(&self) {
        let _lock = self.state.lock();
        self.generation.refresh(clock::now());
        self.generation.serve_waiting();
    }

    /// Percent of its weight that a backend in slow start has at `now`; `None`: the whole.
    pub fn ramp_percent(&self, backend: &Backend, now: Instant) -> Option<u8> {
        slow_start::percent(backend, self.config.slow_start, now)
    }

    /// Number of backends in each state, by [`HealthState::index`].
    pub fn counts(&self) -> [usize; HealthState::COUNT] {
        let mut counts = [0; HealthState::COUNT];
        for backend in &self.backends {
            let state = backend.state.state();
            debug_assert!(state.index() < counts.len(), "{state}");
            if let Some(count) = counts.get_mut(state.index()) {
                *count += 1;
            }
        }
        counts
    }

    fn transition(&self, backend: &Backend, change: StateChange) -> StateTransition {
        StateTransition::new(&self.name, &backend.config.name, change)
    }
}

/// The smaller of a backend's own limit and the pool's.
fn limit(own: Option<usize>, pools: Option<usize>) -> usize {
    own.unwrap_or(usize::MAX).min(pools.unwrap_or(usize::MAX))
}
