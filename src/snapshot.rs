//! One generation of the configuration as the data plane sees it, and the few things all threads share.
//!
//! A [`Snapshot`] is immutable and swapped whole; what must live on over a reload (health, counters, in-flight counts)
//! sits behind `Arc`s that the next generation adopts by name. See ARCHITECTURE.md, "Reload".

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use crate::{
    base::{
        address::BindAddress,
        clock,
        log_limit::LogLimit,
        rate::{ClientRateLimit, RateBuckets},
        rng::Random,
    },
    config::model::{self, Config, RateLimitConfig},
    net::tls::ServerTls,
    pool::{Pool, PoolState},
    route::{Router, ServerNames},
    telemetry::{
        access_log::AccessLog,
        metrics::{ListenerSlot, PerThread, PoolSlot},
    },
};

/// One generation.
#[derive(Debug)]
pub struct Snapshot {
    /// 1 for the configuration at start, one more for each successful reload.
    pub generation: u64,
    /// The checked file.
    pub config: Arc<Config>,
    /// In the order of the file; indexes agree with [`Config::listeners`].
    pub listeners: Vec<Arc<Listener>>,
    /// Which listener accepts on an address; also on one it had in the generation before, for what was queued there.
    pub binds: HashMap<BindAddress, usize>,
    /// In the order of the file; indexes agree with [`Config::pools`].
    pub pools: Vec<Arc<Pool>>,
    /// Which requests are limited to a rate.
    rates: RateLimits,
    /// Finds the route of a request; indexes agree with [`Config::routes`].
    pub router: Router,
    /// Counts what never reached a pool: requests without a route, redirects, malformed requests.
    pub unrouted: Arc<PerThread<PoolSlot>>,
    /// Writes the access log by this generation's rules.
    pub access_log: AccessLog,
    departed: DepartedStates,
}

/// What has left the configuration while something of it is under way, by name: it is the same when it comes back.
#[derive(Debug, Default)]
struct DepartedStates {
    listeners: HashMap<Arc<str>, Weak<ListenerState>>,
    pools: HashMap<Arc<str>, Weak<PoolState>>,
}

impl DepartedStates {
    /// What `config` has no more of `previous`, and what had departed before.
    fn new(config: &Config, previous: Option<&Snapshot>) -> Self {
        let Some(old) = previous else {
            return Self::default();
        };
        let mut this = Self {
            listeners: old.departed.listeners.clone(),
            pools: old.departed.pools.clone(),
        };
        for one in &old.listeners {
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
        this.listeners.retain(|_, state| state.strong_count() > 0);
        this.pools.retain(|_, state| state.strong_count() > 0);
        this
    }
}

/// The rate limits of a generation, by listener and route.
#[derive(Debug, Default)]
struct RateLimits {
    listeners: Vec<Option<ClientRateLimit>>,
    routes: Vec<RouteRate>,
    /// Made with the first limit, and handed on: a limit of the same name, rate and burst finds its buckets again.
    buckets: Option<Arc<RateBuckets>>,
}

/// What a route says of the rate of its requests.
#[derive(Debug)]
enum RouteRate {
    Listeners,
    Unlimited,
    Own(ClientRateLimit),
}

/// A listener of one generation.
#[derive(Debug)]
pub struct Listener {
    /// From the file.
    pub config: model::ListenerConfig,
    /// Lives on over reloads.
    pub state: Arc<ListenerState>,
    /// From `tls`; lives on over reloads that change nothing of it, with the keys of its tickets.
    pub tls: Option<Arc<ServerTls>>,
    /// From `sni`: connections say first which server they want.
    pub names: Option<ServerNames>,
}

/// What a listener keeps over reloads; the key is its name.
#[derive(Debug, Default)]
pub struct ListenerState {
    /// Its counters.
    pub metrics: PerThread<ListenerSlot>,
    /// Open connections, for `limits.connections`.
    pub active: AtomicUsize,
    /// Open connections by client, for `limits.connections_per_client`; entries at 0 are removed.
    pub clients: Mutex<HashMap<IpAddr, usize>>,
    /// Limits how often clients' certificates that are not trusted are logged.
    pub certificate_log: LogLimit,
}

impl Snapshot {
    /// Builds a generation from a checked configuration, adopting what lives on from the one before.
    pub fn build(
        config: Arc<Config>,
        previous: Option<&Self>,
        access_log: AccessLog,
        now: Instant,
    ) -> Self {
        let old_listener = |name: &str| {
            previous.and_then(|old| {
                old.listeners
                    .iter()
                    .find(|listener| *listener.config.name == *name)
            })
        };
        let listeners: Vec<_> = config
            .listeners
            .iter()
            .map(|listener| {
                let old = old_listener(&listener.name);
                Arc::new(Listener {
                    config: listener.clone(),
                    state: old
                        .map(|old| Arc::clone(&old.state))
                        .or_else(|| previous?.departed.listeners.get(&listener.name)?.upgrade())
                        .unwrap_or_default(),
                    tls: server_tls(listener, old.map(|old| &**old)),
                    names: ServerNames::new(&listener.sni),
                })
            })
            .collect();
        let old_pools: HashMap<&str, &Arc<Pool>> = previous
            .iter()
            .flat_map(|old| old.pools.iter())
            .map(|pool| (&*pool.name, pool))
            .collect();
        let pools = config
            .pools
            .iter()
            .map(|pool| {
                let old = old_pools.get(&*pool.name).map(|old| &***old);
                let departed = || previous?.departed.pools.get(&pool.name)?.upgrade();
                Arc::new(match old.map_or_else(departed, |_| None) {
                    Some(state) => Pool::returned(pool, state, now),
                    None => Pool::new(pool, old, now),
                })
            })
            .collect();
        let binds = binds(&config, previous.map(|old| &*old.config));
        Self {
            generation: previous.map_or(1, |old| old.generation + 1),
            router: Router::new(&config),
            rates: RateLimits::new(&config, previous.map(|old| &old.rates), now),
            listeners,
            binds,
            pools,
            unrouted: previous.map_or_else(Arc::default, |old| Arc::clone(&old.unrouted)),
            access_log,
            departed: DepartedStates::new(&config, previous),
            config,
        }
    }

    /// The limit for a request that `listener` got and `route` takes, with the buckets; both are indexes.
    pub fn rate_limit(
        &self,
        listener: usize,
        route: Option<usize>,
    ) -> Option<(&RateBuckets, &ClientRateLimit)> {
        let buckets = self.rates.buckets.as_deref()?;
        let limit = match route.and_then(|route| self.rates.routes.get(route)) {
            Some(RouteRate::Own(limit)) => limit,
            Some(RouteRate::Unlimited) => return None,
            Some(RouteRate::Listeners) | None => self.rates.listeners.get(listener)?.as_ref()?,
        };
        Some((buckets, limit))
    }

    /// Takes into service what is back from before; called right before the swap to this generation.
    pub fn restore(&self) {
        self.pools.iter().for_each(|pool| pool.restore());
    }

    /// Marks what this generation had and `next` has no more; called after the swap.
    pub fn retire(&self, next: &Self) {
        for pool in &self.pools {
            pool.retire(
                next.pools
                    .iter()
                    .find(|other| other.name == pool.name)
                    .map(|other| &**other),
            );
        }
    }
}

fn server_tls(listener: &model::ListenerConfig, old: Option<&Listener>) -> Option<Arc<ServerTls>> {
    let tls = listener.tls.as_ref()?;
    let same = old.filter(|old| old.config.tls.as_ref() == Some(tls));
    let kept = same.and_then(|old| old.tls.clone());
    Some(kept.unwrap_or_else(|| Arc::new(ServerTls::new(tls))))
}

impl RateLimits {
    /// A listener's limit is known by its name. A route has none, so its limit is known by what it matches, wherever it
    /// stands in the list.
    fn new(config: &Config, previous: Option<&Self>, now: Instant) -> Self {
        let limit = |name: &str, rule: &RateLimitConfig| {
            ClientRateLimit::new(name, rule.per_client, rule.burst)
        };
        let of_listener = |listener: &model::ListenerConfig| {
            let name = format!("listener {}", listener.name);
            Some(limit(&name, listener.rate_limit.as_ref()?))
        };
        let of_route = |route: &model::RouteConfig| {
            let rule = match &route.rate_limit {
                None => return RouteRate::Listeners,
                Some(None) => return RouteRate::Unlimited,
                Some(Some(rule)) => rule,
            };
            let conditions = (&route.hosts, &route.path, &route.methods, &route.headers);
            let listeners: Vec<_> = route
                .listeners
                .iter()
                .filter_map(|index| Some(&config.listeners.get(*index)?.name))
                .collect();
            let name = format!("route {listeners:?} {conditions:?}");
            RouteRate::Own(limit(&name, rule))
        };
        let listeners: Vec<_> = config.listeners.iter().map(of_listener).collect();
        let routes: Vec<_> = config.routes.iter().map(of_route).collect();
        let is_own = |route: &RouteRate| matches!(route, RouteRate::Own(_));
        let any = listeners.iter().any(Option::is_some) || routes.iter().any(is_own);
        let buckets = any.then(|| {
            let kept = previous.and_then(|old| old.buckets.clone());
            kept.unwrap_or_else(|| Arc::new(RateBuckets::new(now, &mut Random::from_system())))
        });
        Self {
            listeners,
            routes,
            buckets,
        }
    }
}

/// The listeners by address. An address that a listener has left still leads to it while it speaks the same protocol:
/// connections that were in the queue, or have just sent a request, are served.
fn binds(config: &Config, before: Option<&Config>) -> HashMap<BindAddress, usize> {
    let mut binds = HashMap::new();
    for old in before.iter().flat_map(|before| &before.listeners) {
        let same =
            |new: &model::ListenerConfig| new.name == old.name && new.protocol == old.protocol;
        if let Some(index) = config.listeners.iter().position(same) {
            binds.extend(old.binds.iter().map(|bind| (bind.clone(), index)));
        }
    }
    for (index, listener) in config.listeners.iter().enumerate() {
        binds.extend(listener.binds.iter().map(|bind| (bind.clone(), index)));
    }
    binds
}

/// What the last reload did, for `balancer status` and the metrics.
#[derive(Debug, Clone, Default)]
pub struct ReloadStatus {
    /// Whether the last load of the file succeeded.
    pub ok: bool,
    /// When the last successful one was, since the Unix epoch.
    pub success_unix: Duration,
    /// When the last one was, since the Unix epoch.
    pub last_unix: Duration,
    /// Successful ones after the start.
    pub succeeded: u64,
    /// Failed ones.
    pub failed: u64,
    /// One line per change of the last successful one, or the rendered problems of a failed one.
    pub message: String,
}

/// What a worker tells about itself.
#[derive(Debug, Default)]
pub struct WorkerStatus {
    /// Raised by the worker's own timer; the watchdog looks whether it moves.
    pub heartbeat: AtomicU64,
    /// CPU time of the worker's thread in microseconds, as of its last heartbeat.
    pub busy_micros: AtomicU64,
}

/// What all threads share: the current generation and a few process-wide numbers.
#[derive(Debug)]
pub struct Daemon {
    /// The current generation; swapped by a reload only.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// True from the first generation in service until the drain begins.
    pub ready: AtomicBool,
    /// True once the drain has begun.
    pub draining: AtomicBool,
    /// Open client connections of all listeners.
    pub connections: AtomicUsize,
    /// Highest number of client connections: `max_connections`.
    pub connection_limit: AtomicUsize,
    /// One per worker.
    pub workers: Vec<WorkerStatus>,
    /// The last reload.
    pub reload: Mutex<ReloadStatus>,
    /// When the process began.
    pub started: Instant,
}

impl Daemon {
    /// The state at start, with the first generation.
    pub fn new(snapshot: Snapshot, workers: usize, connection_limit: usize) -> Self {
        let unix = clock::unix_now();
        Self {
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            connection_limit: AtomicUsize::new(connection_limit),
            workers: (0..workers).map(|_| WorkerStatus::default()).collect(),
            reload: Mutex::new(ReloadStatus {
                ok: true,
                success_unix: unix,
                last_unix: unix,
                ..ReloadStatus::default()
            }),
            started: clock::now(),
        }
    }

    /// A copy of the last reload's result.
    pub fn reload_status(&self) -> ReloadStatus {
        self.reload
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// `/readyz`: in service and not draining.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed) && !self.draining.load(Relaxed)
    }
}
