//! One backend: the part that lives on across reloads ([`BackendState`]) and the part of one
//! configuration ([`Backend`]).
//!
//! The hot path touches only `in_flight` and the failure streak, both plain atomics. Everything
//! else is behind a mutex that only checks, ejections and the status page take. The pool decides
//! which changes of state are allowed.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
        },
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{
    check_history::CheckRecord,
    failure_rate::FailureWindow,
    health::{BackendHealth, EjectionPhase, HealthState, StateChange},
    overrides::BackendOverrides,
    resolved::ResolvedAddresses,
    response_time::ResponseTime,
    trial::{TrialPhase, TrialSlot},
    waiting::WaitingCount,
};
use crate::{
    base::{
        address::BackendAddress,
        log_limit::LogLimit,
        wake_signal::{UntilRaised, WakeSignal},
    },
    config::model,
    telemetry::metrics::{BackendSlot, PerThread},
};

/// State of a backend that reloads hand on, by pool name and address.
#[derive(Debug)]
pub struct BackendState {
    /// The name of its pool.
    pub pool: Arc<str>,
    /// Its address as configured.
    pub address: BackendAddress,
    /// Its counters.
    pub metrics: PerThread<BackendSlot>,
    /// Addresses to connect to: the IP address itself; for a name the last resolution by the
    /// control thread, empty before the first; empty for a unix socket.
    pub resolved: ArcSwap<ResolvedAddresses>,
    /// Raised after each look-up of its name, good or bad.
    pub looked_up: WakeSignal,
    /// Rate limit of the log lines about untrusted certificates.
    pub certificate_log: LogLimit,
    in_flight: AtomicUsize,
    /// Requests that wait for a backend of its pool.
    pub(super) waiting: Arc<WaitingCount>,
    pub(super) down: WakeSignal,
    /// Twice the failures in a row, plus 1 if the backend has refused requests on a new connection
    /// since its last success. One word, so that a success clears both with one store.
    streak: AtomicU32,
    /// Average response time, for `least_time`.
    pub(crate) response_time: ResponseTime,
    /// Nanoseconds from `created` to the begin of the last ramp of slow start; `u64::MAX`: none.
    ramp_began: AtomicU64,
    created: Instant,
    /// Others of the pool were in service already when this backend was added.
    joined: bool,
    /// Right to the trial request after an ejection.
    pub(super) trial: TrialSlot,
    /// Outcomes for `ejection.failure_rate`.
    pub(super) outcomes: FailureWindow,
    /// Weight set by the operator; above `u16::MAX`: none, the file's holds.
    weight_override: AtomicU32,
    /// Copy of `health.state`, for reading without the lock.
    state: AtomicU8,
    health: Mutex<BackendHealth>,
}

/// Snapshot of a backend's health for the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthView {
    /// The state now.
    pub state: HealthState,
    /// Start of the state, for durations.
    pub since: Instant,
    /// Start of the state, since the Unix epoch.
    pub since_unix: Duration,
    /// Cause of the state in one line.
    pub cause: String,
    /// The checks say that it is down; it may be out for other reasons too.
    pub failed_checks: bool,
    /// Good checks in a row that began after the last ejection.
    pub good_since_ejection: u32,
    /// Good checks in a row.
    pub good_in_a_row: u32,
    /// Bad checks in a row.
    pub bad_in_a_row: u32,
    /// Failures of traffic in a row.
    pub failures_in_a_row: u32,
    /// End of the running ejection, if its time is not over.
    pub ejected_until: Option<Instant>,
    /// Progress of the trial after an ejection.
    pub trial: TrialPhase,
    /// The last active check; `None` before the first.
    pub last_check: Option<CheckRecord>,
    /// The local error that prevented the check after `last_check`.
    pub check_not_made: Option<String>,
    /// Set by the operator.
    pub overrides: BackendOverrides,
}

impl BackendState {
    /// State of a server outside of all pools: something to connect to, called `name` in the log.
    #[cfg(feature = "etcd")]
    pub(crate) fn outside_pools(name: &str, address: &BackendAddress, now: Instant) -> Self {
        let waiting = Arc::new(WaitingCount::of_no_pool());
        Self::new(&name.into(), address, false, false, &waiting, now)
    }

    /// State of a new backend; `checks` says if the pool has a health check, and `joined` if others
    /// of the pool are in service already.
    pub(crate) fn new(
        pool: &Arc<str>,
        address: &BackendAddress,
        checks: bool,
        joined: bool,
        waiting: &Arc<WaitingCount>,
        now: Instant,
    ) -> Self {
        let resolved = match address {
            BackendAddress::Ip(address) | BackendAddress::Resolved { address, .. } => {
                vec![*address]
            }
            BackendAddress::Name { .. } | BackendAddress::Service(_) | BackendAddress::Unix(_) => {
                Vec::new()
            }
        };
        let health = BackendHealth::new(checks, now);
        Self {
            pool: Arc::clone(pool),
            address: address.clone(),
            metrics: PerThread::default(),
            resolved: ArcSwap::from_pointee(ResolvedAddresses::new(resolved, None)),
            looked_up: WakeSignal::default(),
            certificate_log: LogLimit::default(),
            in_flight: AtomicUsize::new(0),
            waiting: Arc::clone(waiting),
            down: WakeSignal::default(),
            streak: AtomicU32::new(0),
            response_time: ResponseTime::new(now),
            // One that is in service at once ramps from now on.
            ramp_began: AtomicU64::new(if joined && !checks { 0 } else { u64::MAX }),
            created: now,
            joined,
            trial: TrialSlot::default(),
            outcomes: FailureWindow::default(),
            weight_override: AtomicU32::new(u32::MAX),
            state: AtomicU8::new(health.state as u8),
            health: Mutex::new(health),
        }
    }

    /// Number of exchanges and sessions in flight, over all threads and generations.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// The state now: one atomic load.
    #[inline]
    pub fn state(&self) -> HealthState {
        HealthState::from_index(self.state.load(Acquire))
    }

    /// True once the backend has left the configuration.
    pub fn is_removed(&self) -> bool {
        self.state() == HealthState::Removed
    }

    /// True if others of the pool were in service when this backend was added.
    pub(super) const fn has_joined(&self) -> bool {
        self.joined
    }

    /// True for a backend given by name, whose addresses may change.
    pub fn is_name(&self) -> bool {
        self.address.is_name()
    }

    /// The end of the first look-up of the backend's name. `None` if there was one, or if it has no
    /// name.
    pub fn until_looked_up(this: &Arc<Self>) -> Option<UntilRaised<Arc<Self>>> {
        let waits = this.is_name() && this.looked_up.count() == 0;
        waits.then(|| UntilRaised::new(Arc::clone(this), |state| &state.looked_up, 0))
    }

    /// False if the backend's name no longer resolves to `peer`. Kept connections to such an
    /// address must not be reused: the address may belong to another service by now.
    pub fn resolves_to(&self, peer: Option<SocketAddr>) -> bool {
        !self.is_name() || peer.is_none_or(|peer| self.resolved.load().addresses().contains(&peer))
    }

    /// False once idle connections to it must be closed: it is removed or in maintenance, or its
    /// checks fail.
    pub fn keeps_idle(&self) -> bool {
        use HealthState::{Down, Maintenance, Removed};
        !matches!(self.state(), Removed | Maintenance | Down)
    }

    /// Snapshot for the status page.
    pub fn view(&self) -> HealthView {
        let health = self.lock();
        HealthView {
            state: health.state,
            since: health.since,
            since_unix: health.since_unix,
            cause: health.cause.clone(),
            failed_checks: health.failed_checks(),
            good_since_ejection: health.good_since_ejection,
            good_in_a_row: health.good_in_a_row,
            bad_in_a_row: health.bad_in_a_row,
            failures_in_a_row: self.failures_in_a_row(),
            ejected_until: match health.ejection {
                EjectionPhase::Out { until } => Some(until),
                EjectionPhase::None | EjectionPhase::Trial { .. } => None,
            },
            trial: if health.is_on_trial() {
                self.trial.phase()
            } else {
                TrialPhase::None
            },
            last_check: health.history.last(),
            check_not_made: health.check_not_made.clone(),
            overrides: health.overrides.clone(),
        }
    }

    /// The last checks, the latest first.
    pub fn checks(&self) -> Vec<CheckRecord> {
        self.lock().history.records()
    }

    /// True if a check has passed since the backend is known.
    pub fn has_passed(&self) -> bool {
        self.lock().has_passed
    }

    /// True if the checks say that it is down; it may be out for other reasons too.
    pub fn failed_checks(&self) -> bool {
        self.lock().failed_checks()
    }

    /// Counts one more in flight unless `limit` is reached. Exact under concurrent claims.
    #[inline]
    pub(crate) fn claim(&self, limit: usize) -> bool {
        // Without a limit, which is the default, an addition is cheaper than compare-and-swap.
        if limit == usize::MAX {
            self.in_flight.fetch_add(1, Relaxed);
            return true;
        }
        self.in_flight
            .try_update(Relaxed, Relaxed, |load| (load < limit).then_some(load + 1))
            .is_ok()
    }

    /// Counts one more in flight only if there are still exactly `load`.
    #[inline]
    pub(crate) fn claim_at(&self, load: usize) -> bool {
        self.in_flight
            .compare_exchange(load, load + 1, Relaxed, Relaxed)
            .is_ok()
    }

    /// Counts one less in flight. Returns true if a request may be waiting for that.
    ///
    /// The subtraction comes before the look at the count: a request that begins to wait adds
    /// itself before it tries once more, so one of the two sees the other. On x86 this costs no
    /// more than a relaxed subtraction.
    #[inline]
    pub(super) fn release(&self) -> bool {
        let before = self.in_flight.fetch_sub(1, SeqCst);
        debug_assert!(before > 0, "a release without a claim");
        self.waiting.is_any_after_change()
    }

    pub(crate) fn failures_in_a_row(&self) -> u32 {
        self.streak.load(Relaxed) / 2
    }

    /// Records a connection on which the backend accepted no request. False for the first one since
    /// a success: a connection that is shutting down in order may refuse once.
    pub fn refuses_again(&self) -> bool {
        self.streak.fetch_or(1, AcqRel) % 2 == 1
    }

    /// Adds a failure and returns the new length of the streak.
    pub(crate) fn add_failure(&self) -> u32 {
        self.streak.fetch_add(2, AcqRel) / 2 + 1
    }

    /// Ends the streak of failures. Loads first: a store by every request would bounce the cache
    /// line between workers.
    #[inline]
    pub(crate) fn clear_failures(&self) {
        if self.streak.load(Relaxed) != 0 {
            self.streak.store(0, Release);
        }
    }

    /// Applies `event` to the health machine and publishes the new state. Callers hold the pool's
    /// lock, so that the states of a pool change one at a time.
    pub(crate) fn change(
        &self,
        event: impl FnOnce(&mut BackendHealth) -> Option<StateChange>,
    ) -> Option<StateChange> {
        let mut health = self.lock();
        let change = event(&mut health);
        if let Some(change) = &change {
            self.state.store(change.to as u8, Release);
            // Failures from before must not eject a backend that has just come back.
            if change.to.may_take_traffic() {
                self.clear_failures();
                self.outcomes.clear();
            }
            // At the first start of a pool there is nothing to ramp.
            let ramps = change.from != HealthState::Checking || self.joined;
            if change.to == HealthState::Up && ramps {
                let began = health.since.saturating_duration_since(self.created);
                self.ramp_began.store(began.as_nanos() as u64, Release);
            }
        }
        let is_due = health.is_on_trial();
        self.trial.follow(health.ejection_number, is_due);
        change
    }

    /// Begin of the last ramp of slow start: it has recovered or was added then.
    pub(crate) fn ramp_began(&self) -> Option<Instant> {
        let nanos = self.ramp_began.load(Acquire);
        (nanos != u64::MAX).then(|| self.created + Duration::from_nanos(nanos))
    }

    /// The average time to the first byte that `least_time` goes by; `None` without a response so
    /// far, or with another policy.
    pub fn average_response(&self, now: Instant) -> Option<Duration> {
        let nanos = self.response_time.nanos_at(now)?;
        Some(Duration::from_nanos(nanos as u64))
    }

    /// Replaces the overrides of the operator. Callers hold the pool's lock, and refresh.
    pub(super) fn set_overrides(
        &self,
        overrides: BackendOverrides,
        cause: &str,
        now: Instant,
    ) -> Option<StateChange> {
        let weight = overrides.weight.as_ref().map(|one| u32::from(one.value));
        self.weight_override
            .store(weight.unwrap_or(u32::MAX), Relaxed);
        self.change(|health| health.set_overrides(overrides, cause, now))
    }

    /// True if the operator's overrides are these.
    pub(super) fn has_overrides(&self, overrides: &BackendOverrides) -> bool {
        self.lock().overrides == *overrides
    }

    /// True if the operator has set a state, even if the backend is removed.
    pub(super) fn is_taken_out(&self) -> bool {
        self.lock().overrides.state.is_some()
    }

    /// Progress of the ejection.
    pub(super) fn ejection(&self) -> EjectionPhase {
        self.lock().ejection
    }

    /// Time since which `value` is that of the trial's slot, as far as the calls of this know.
    pub(super) fn trial_unchanged_since(&self, value: u64, now: Instant) -> Instant {
        let mut health = self.lock();
        match health.trial_seen {
            Some((seen, since)) if seen == value => since,
            _ => {
                health.trial_seen = Some((value, now));
                now
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BackendHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A backend in one generation of the configuration.
#[derive(Debug)]
pub struct Backend {
    /// Position in `Pool::backends`.
    pub index: usize,
    /// Its configuration.
    pub config: model::BackendConfig,
    /// Maximum of exchanges and sessions in flight: the smaller of its own limit and the pool's;
    /// `usize::MAX` is none.
    pub limit: usize,
    /// Identifies protocol and TLS settings: kept connections of another epoch must not be reused.
    /// No two backends share one.
    pub transport_epoch: u64,
    /// State that lives on across reloads.
    pub state: Arc<BackendState>,
}

impl Backend {
    /// TLS of the connections to it, in a pool with `config`.
    #[inline]
    pub fn tls<'a>(&'a self, config: &'a model::PoolConfig) -> Option<&'a model::PoolTlsConfig> {
        self.config.tls.resolve(config.tls.as_ref())
    }

    /// The weight in force, 0..=256: the operator's, else that of the file.
    pub fn weight(&self) -> u16 {
        let own = self.state.weight_override.load(Relaxed);
        u16::try_from(own).unwrap_or(self.config.weight)
    }
}
