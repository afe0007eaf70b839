//! One backend: what lives on across reloads ([`BackendState`]), what belongs to one configuration ([`Backend`]) and
//! one unit of work on it ([`BackendLease`]).
//!
//! The hot path touches `in_flight` and the failure streak, plain atomics. Everything else stands behind a mutex that
//! only checks, ejections and the status page take. Which changes are allowed is decided in the pool (`super`).

use std::{
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU8, AtomicU32, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{
    down_signal::{DownSignal, UntilDown},
    health::{BackendHealth, HealthState, LastCheck, StateChange},
};
use crate::{
    base::{address::BackendAddress, log_limit::LogLimit},
    config::model,
    telemetry::metrics::{BackendSlot, PerThread},
};

/// What is known about a backend whatever the configuration says: keyed by pool name and address, handed on by reloads.
#[derive(Debug)]
pub struct BackendState {
    /// The name of its pool.
    pub pool: Arc<str>,
    /// Where it is.
    pub address: BackendAddress,
    /// Its counters.
    pub metrics: PerThread<BackendSlot>,
    /// Where to connect to: for an IP address always that one, for a name what the control thread resolved last (empty
    /// until then), for a unix socket empty.
    pub resolved: ArcSwap<ResolvedAddresses>,
    /// Limits how often certificates that are not trusted are logged.
    pub certificate_log: LogLimit,
    in_flight: AtomicUsize,
    pub(super) down: DownSignal,
    /// Twice the failures in a row, and 1 if the backend has refused requests on a new connection since its last success.
    streak: AtomicU32,
    /// Copy of the health's state, for reading without the lock.
    state: AtomicU8,
    health: Mutex<BackendHealth>,
}

/// The addresses of a backend, and the one that accepted a connection last.
#[derive(Debug, Default)]
pub struct ResolvedAddresses {
    /// In ascending order, IPv4 first.
    addresses: Vec<SocketAddr>,
    /// Position in `addresses`.
    preferred: AtomicUsize,
}

impl ResolvedAddresses {
    /// `addresses` in ascending order; the preferred one is that of `previous` if it is still among them, else the first.
    pub fn new(mut addresses: Vec<SocketAddr>, previous: Option<&Self>) -> Self {
        addresses.sort_unstable();
        addresses.dedup();
        let kept = previous.and_then(|previous| {
            let preferred = previous.in_order().next()?;
            addresses.iter().position(|address| *address == preferred)
        });
        Self {
            addresses,
            preferred: AtomicUsize::new(kept.unwrap_or(0)),
        }
    }

    /// The same addresses at another port.
    #[must_use]
    pub fn at_port(&self, port: u16) -> Self {
        let mut addresses = self.addresses.clone();
        for address in &mut addresses {
            address.set_port(port);
        }
        Self {
            addresses,
            preferred: AtomicUsize::new(self.preferred.load(Relaxed)),
        }
    }

    /// All of them, in ascending order.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// All of them, beginning with the one that accepted last.
    pub fn in_order(&self) -> impl Iterator<Item = SocketAddr> {
        let preferred = self.preferred.load(Relaxed).min(self.addresses.len());
        let (before, from) = self.addresses.split_at(preferred);
        from.iter().chain(before).copied()
    }

    /// Notes that `address` has accepted a connection.
    pub fn prefer(&self, address: SocketAddr) {
        let place = self.addresses.iter().position(|one| *one == address);
        if let Some(place) = place.filter(|place| *place != self.preferred.load(Relaxed)) {
            self.preferred.store(place, Relaxed);
        }
    }
}

/// What the status page shows of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthView {
    /// The state now.
    pub state: HealthState,
    /// Since when, for durations.
    pub since: Instant,
    /// Since when, since the Unix epoch.
    pub since_unix: Duration,
    /// Why: one line.
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
    /// End of the running ejection.
    pub ejected_until: Option<Instant>,
    /// The last active check; `None` before the first.
    pub last_check: Option<LastCheck>,
    /// Why the check after it could not be made: a lack of our own.
    pub check_not_made: Option<String>,
}

impl BackendState {
    /// A backend nobody has seen yet; `checks` says whether the pool has a health check.
    pub(crate) fn new(
        pool: &Arc<str>,
        address: &BackendAddress,
        checks: bool,
        now: Instant,
    ) -> Self {
        let resolved = match address {
            BackendAddress::Ip(ip) => vec![*ip],
            BackendAddress::Name { .. } | BackendAddress::Unix(_) => Vec::new(),
        };
        let health = BackendHealth::new(checks, now);
        Self {
            pool: Arc::clone(pool),
            address: address.clone(),
            metrics: PerThread::default(),
            resolved: ArcSwap::from_pointee(ResolvedAddresses::new(resolved, None)),
            certificate_log: LogLimit::default(),
            in_flight: AtomicUsize::new(0),
            down: DownSignal::default(),
            streak: AtomicU32::new(0),
            state: AtomicU8::new(health.state as u8),
            health: Mutex::new(health),
        }
    }

    /// Exchanges or sessions it is serving, over all threads and generations.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// The state now: one atomic load.
    #[inline]
    pub fn state(&self) -> HealthState {
        HealthState::from_index(self.state.load(Acquire))
    }

    /// True once the backend has left the configuration: its idle connections are to be closed.
    pub fn is_removed(&self) -> bool {
        self.state() == HealthState::Removed
    }

    /// True for a backend given by name: what it resolves to may change.
    pub fn is_name(&self) -> bool {
        matches!(self.address, BackendAddress::Name { .. })
    }

    /// False if the backend's name no longer resolves to `peer`; true where that cannot be or is not known.
    pub fn resolves_to(&self, peer: Option<SocketAddr>) -> bool {
        !self.is_name() || peer.is_none_or(|peer| self.resolved.load().addresses().contains(&peer))
    }

    /// False once idle connections to it are to be closed: it has left the configuration, or its checks say that it is
    /// down.
    pub fn keeps_idle(&self) -> bool {
        !matches!(self.state(), HealthState::Removed | HealthState::Down)
    }

    /// Everything the status page shows.
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
            ejected_until: health.sentence,
            last_check: health.last_check.clone(),
            check_not_made: health.check_not_made.clone(),
        }
    }

    /// Counts one more in flight unless `limit` are already; exact whatever other threads do.
    #[inline]
    pub(crate) fn claim(&self, limit: usize) -> bool {
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

    #[inline]
    fn release(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    pub(crate) fn failures_in_a_row(&self) -> u32 {
        self.streak.load(Relaxed) / 2
    }

    /// Notes a connection on which the backend took no request. False for the first one since a success: what ends in order,
    /// or has just begun, may do so once.
    pub fn refuses_again(&self) -> bool {
        self.streak.fetch_or(1, AcqRel) % 2 == 1
    }

    /// Adds a failure and gives the new length of the streak.
    pub(crate) fn add_failure(&self) -> u32 {
        self.streak.fetch_add(2, AcqRel) / 2 + 1
    }

    /// Ends the streak of failures; one relaxed load where there is none.
    #[inline]
    pub(crate) fn clear_failures(&self) {
        if self.streak.load(Relaxed) != 0 {
            self.streak.store(0, Release);
        }
    }

    /// Runs `event` on the health machine and makes the new state visible. Callers hold the pool's lock.
    pub(crate) fn change(
        &self,
        event: impl FnOnce(&mut BackendHealth) -> Option<StateChange>,
    ) -> Option<StateChange> {
        let mut health = self.lock();
        let change = event(&mut health);
        if let Some(change) = &change {
            self.state.store(change.to as u8, Release);
            if change.to.may_take_traffic() {
                self.clear_failures();
            }
        }
        change
    }

    /// The end of its running sentence.
    pub(crate) fn sentence(&self) -> Option<Instant> {
        self.lock().sentence
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
    /// What the file says about it.
    pub config: model::BackendConfig,
    /// Exchanges or sessions at a time: the smaller of its own limit and the pool's; `usize::MAX` is none.
    pub limit: usize,
    /// What lives on across reloads.
    pub state: Arc<BackendState>,
}

/// One exchange or session on a backend: counted in flight until dropped.
#[derive(Debug)]
pub struct BackendLease {
    backend: Arc<Backend>,
    /// Count of its down signal.
    downs: u64,
}

impl BackendLease {
    /// Wraps a backend on which the caller has just claimed one in flight.
    pub(crate) fn claimed(backend: Arc<Backend>) -> Self {
        let downs = backend.state.down.count();
        Self { backend, downs }
    }

    /// Ready when the backend has gone down since it was picked and its pool ends sessions then.
    pub fn until_down(&self) -> UntilDown {
        UntilDown::new(Arc::clone(&self.backend.state), self.downs)
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Deref for BackendLease {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.backend
    }
}

impl Drop for BackendLease {
    fn drop(&mut self) {
        self.backend.state.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_accepted_last_is_first_as_long_as_it_is_listed() {
        let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
        let order = |resolved: &ResolvedAddresses| resolved.in_order().collect::<Vec<_>>();
        let resolved =
            ResolvedAddresses::new(vec![address(3), address(1), address(2), address(1)], None);
        assert_eq!(order(&resolved), [address(1), address(2), address(3)]);
        resolved.prefer(address(2));
        assert_eq!(order(&resolved), [address(2), address(3), address(1)]);
        let elsewhere = resolved.at_port(81);
        assert_eq!(
            elsewhere.in_order().next().unwrap().to_string(),
            "10.0.0.2:81"
        );
        let more =
            ResolvedAddresses::new(vec![address(9), address(2), address(0)], Some(&resolved));
        assert_eq!(order(&more), [address(2), address(9), address(0)]);
        let without = ResolvedAddresses::new(vec![address(9), address(3)], Some(&more));
        assert_eq!(order(&without), [address(3), address(9)]);
        let none = ResolvedAddresses::new(Vec::new(), Some(&without));
        assert_eq!(order(&none), []);
        assert_eq!(
            order(&ResolvedAddresses::new(vec![address(1)], Some(&none))),
            [address(1)]
        );
    }
}
