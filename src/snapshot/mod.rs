//! One generation of the configuration as the data plane sees it, and the few things all threads
//! share.
//!
//! A [`Snapshot`] is immutable and swapped whole. State that outlives a reload (health, counters,
//! in-flight counts) sits behind `Arc`s that the next generation adopts by name. See
//! ARCHITECTURE.md, "Reload".

mod daemon;
mod listener;
mod pool_table;
mod rate_limits;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
    time::Instant,
};

use self::rate_limits::GenerationRateLimits;
pub use self::{
    daemon::{Daemon, ReloadStatus, WorkerStatus},
    listener::{Listener, ListenerService, ListenerState},
    pool_table::PoolTable,
};
use crate::{
    base::{
        rate::{ClientRateLimit, RateBuckets},
        socket_key::SocketKey,
    },
    config::model::{BackendConfig, Config, ListenerConfig, PoolConfig},
    pool::{OverrideKey, OverrideTable, Pool, PoolState},
    route::Router,
    telemetry::{
        access_log::AccessLog,
        metrics::{PerThread, PoolSlot},
    },
};

/// One generation.
#[derive(Debug)]
pub struct Snapshot {
    /// 1 for the configuration at start, one more for each successful reload.
    pub generation: u64,
    /// One more for each snapshot, also for one that only has other members in a pool.
    pub revision: u64,
    /// The checked file.
    pub config: Arc<Config>,
    /// In the order of the file; indexes agree with [`Config::listeners`].
    pub listeners: Arc<[Arc<Listener>]>,
    listener_by_socket: Arc<HashMap<SocketKey, usize>>,
    /// In the order of the file; indexes agree with [`Config::pools`].
    pub pools: PoolTable,
    rate_limits: Arc<GenerationRateLimits>,
    /// Finds the route of a request; indexes agree with [`Config::routes`].
    pub router: Arc<Router>,
    /// Counts requests that reached no pool: without a route, redirected, malformed.
    pub unrouted: Arc<PerThread<PoolSlot>>,
    /// Writes the access log by this generation's rules.
    pub access_log: Arc<AccessLog>,
    departed: Arc<DepartedStates>,
}

/// Returns the members of a pool: what its names and other sources stand for now.
pub type MembersOf<'a> = dyn Fn(&PoolConfig) -> Vec<BackendConfig> + 'a;

/// State of listeners and pools that left the configuration while something of them is under way,
/// by name: counters and limits go on if the name comes back.
#[derive(Debug, Default)]
struct DepartedStates {
    listeners: HashMap<Arc<str>, Weak<ListenerState>>,
    pools: HashMap<Arc<str>, Weak<PoolState>>,
}

impl DepartedStates {
    /// The states that `config` lacks: of `previous`, and those that had left before it.
    fn new(config: &Config, previous: Option<&Snapshot>) -> Self {
        let Some(old) = previous else {
            return Self::default();
        };
        let mut this = Self {
            listeners: old.departed.listeners.clone(),
            pools: old.departed.pools.clone(),
        };
        for one in old.listeners.iter() {
            let state = Arc::downgrade(&one.state);
            this.listeners.insert(Arc::clone(&one.config.name), state);
        }
        for one in &old.pools {
            let state = Arc::downgrade(&one.state);
            this.pools.insert(Arc::clone(&one.name), state);
        }
        for one in &config.listeners {
            this.listeners.remove(&one.name);
        }
        for one in &config.pools {
            this.pools.remove(&one.name);
        }
        // Unused names would accumulate over many reloads.
        this.listeners.retain(|_, state| state.strong_count() > 0);
        this.pools.retain(|_, state| state.strong_count() > 0);
        this
    }
}

impl Snapshot {
    /// Builds a generation from a checked configuration, adopting the state of the one before. The
    /// backends are those that the configuration writes out.
    pub fn build(
        config: Arc<Config>,
        previous: Option<&Self>,
        access_log: AccessLog,
        now: Instant,
    ) -> Self {
        Self::build_with(
            config,
            previous,
            access_log,
            &|pool| pool.backends.clone(),
            now,
        )
    }

    /// Builds a generation like [`Snapshot::build`], with the members that `members_of` returns for
    /// pools whose configuration does not write them out.
    pub fn build_with(
        config: Arc<Config>,
        previous: Option<&Self>,
        access_log: AccessLog,
        members_of: &MembersOf<'_>,
        now: Instant,
    ) -> Self {
        let old_rates = previous.map(|old| &*old.rate_limits);
        let by_socket = listeners_by_socket(&config, previous.map(|old| &*old.config));
        Self {
            generation: previous.map_or(1, |old| old.generation + 1),
            revision: previous.map_or(1, |old| old.revision + 1),
            listeners: build_listeners(&config, previous).into(),
            listener_by_socket: Arc::new(by_socket),
            pools: build_pools(&config, previous, members_of, now),
            rate_limits: Arc::new(GenerationRateLimits::new(&config, old_rates, now)),
            router: Arc::new(Router::new(&config)),
            unrouted: previous.map_or_else(Arc::default, |old| Arc::clone(&old.unrouted)),
            access_log: Arc::new(access_log),
            departed: Arc::new(DepartedStates::new(&config, previous)),
            config,
        }
    }

    /// Builds the same generation with other members in the pool at `index`; `None` if there is no
    /// such pool. All other parts are shared, so the cost is that of the one pool.
    pub fn with_members(
        &self,
        index: usize,
        members: &[BackendConfig],
        now: Instant,
    ) -> Option<Self> {
        let old = self.pools.get(index)?;
        let pool = Pool::of_members(&old.config, members, Some(old), now);
        Some(Self {
            generation: self.generation,
            revision: self.revision + 1,
            listeners: Arc::clone(&self.listeners),
            listener_by_socket: Arc::clone(&self.listener_by_socket),
            pools: self.pools.with(index, Arc::new(pool)),
            rate_limits: Arc::clone(&self.rate_limits),
            router: Arc::clone(&self.router),
            unrouted: Arc::clone(&self.unrouted),
            access_log: Arc::clone(&self.access_log),
            departed: Arc::clone(&self.departed),
            config: Arc::clone(&self.config),
        })
    }

    /// The listener that serves connections of `socket`, as an index into
    /// [`listeners`](Self::listeners).
    pub fn listener_index(&self, socket: &SocketKey) -> Option<usize> {
        self.listener_by_socket.get(socket).copied()
    }

    /// The listener that serves connections of `socket`.
    pub fn listener_at(&self, socket: &SocketKey) -> Option<&Arc<Listener>> {
        let listener = self.listeners.get(self.listener_index(socket)?);
        debug_assert!(listener.is_some(), "an index beyond the listeners");
        listener
    }

    /// The limit for a request that `listener` got and `route` takes, with the buckets; both are
    /// indexes of this generation.
    pub fn rate_limit(
        &self,
        listener: usize,
        route: Option<usize>,
    ) -> Option<(&RateBuckets, &ClientRateLimit)> {
        self.rate_limits.find(listener, route)
    }

    /// Puts the operator's overrides in force for pools and backends that are new, and takes those
    /// that came back into service; called right before the swap to this generation.
    pub fn restore(&self, overrides: &OverrideTable) {
        for pool in &self.pools {
            pool.apply_overrides(overrides);
            pool.restore();
        }
    }

    /// All backends by the names that overrides have for them.
    pub fn override_keys(&self) -> HashSet<OverrideKey> {
        let backends = self.pools.iter().flat_map(|pool| {
            let backends = pool.backends.iter();
            backends.map(|one| OverrideKey::new(&pool.name, &one.config.address))
        });
        backends.collect()
    }

    /// The pool of this name.
    pub fn find_pool(&self, name: &str) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| *pool.name == *name)
    }

    /// Marks the pools and backends that `next` lacks as removed; called after the swap.
    pub fn retire(&self, next: &Self) {
        for pool in &self.pools {
            let mut others = next.pools.iter();
            let successor = others.find(|other| other.name == pool.name);
            pool.retire(successor.map(|other| &**other));
        }
    }
}

fn build_listeners(config: &Config, previous: Option<&Snapshot>) -> Vec<Arc<Listener>> {
    let build = |listener: &ListenerConfig| {
        let mut old = previous.iter().flat_map(|old| old.listeners.iter());
        let old = old.find(|old| old.config.name == listener.name);
        let departed = || previous?.departed.listeners.get(&listener.name)?.upgrade();
        Arc::new(Listener::new(
            listener,
            old.map(|old| &**old),
            old.map_or_else(departed, |_| None),
        ))
    };
    config.listeners.iter().map(build).collect()
}

fn build_pools(
    config: &Config,
    previous: Option<&Snapshot>,
    members_of: &MembersOf<'_>,
    now: Instant,
) -> PoolTable {
    let old_pools: HashMap<&str, &Pool> = previous
        .iter()
        .flat_map(|old| old.pools.iter())
        .map(|pool| (&*pool.name, &**pool))
        .collect();
    let pools = config.pools.iter().map(|pool| {
        let old = old_pools.get(&*pool.name).copied();
        let departed = || previous?.departed.pools.get(&pool.name)?.upgrade();
        let members = if pool.is_dynamic() {
            Cow::Owned(members_of(pool))
        } else {
            Cow::Borrowed(&*pool.backends)
        };
        Arc::new(match old.map_or_else(departed, |_| None) {
            Some(state) => Pool::returned(pool, &members, state, now),
            None => Pool::of_members(pool, &members, old, now),
        })
    });
    pools.collect()
}

/// The listeners by socket, as indexes. A socket that a listener has left still leads to it while
/// it speaks the same protocol: connections that were in the queue, or have just sent a request,
/// are served.
fn listeners_by_socket(config: &Config, before: Option<&Config>) -> HashMap<SocketKey, usize> {
    let mut by_socket = HashMap::new();
    for old in before.iter().flat_map(|before| &before.listeners) {
        let same = |new: &ListenerConfig| new.name == old.name && new.protocol == old.protocol;
        if let Some(index) = config.listeners.iter().position(same) {
            by_socket.extend(old.sockets().map(|socket| (socket, index)));
        }
    }
    for (index, listener) in config.listeners.iter().enumerate() {
        by_socket.extend(listener.sockets().map(|socket| (socket, index)));
    }
    by_socket
}
