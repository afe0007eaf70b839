//! `pools.NAME`.

use std::{sync::Arc, time::Duration};

use super::{
    DiscoverConfig, HealthCheckConfig, PoolTlsConfig, ProxyVersion, ResolveMode, StickyConfig,
    TlsOverride,
};
use crate::base::address::BackendAddress;

/// `pools.NAME.protocol`: what is spoken with the backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendProtocol {
    /// HTTP/1.1, plain or under TLS.
    #[default]
    Http1,
    /// HTTP/2 under TLS, agreed on by ALPN.
    H2,
    /// HTTP/2 without TLS, by prior knowledge (RFC 9113 section 3.3).
    H2c,
}

impl BackendProtocol {
    /// HTTP/2, either way.
    pub const fn is_h2(self) -> bool {
        matches!(self, Self::H2 | Self::H2c)
    }
}

/// `pools.NAME`.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolConfig {
    /// The key in the file.
    pub name: Arc<str>,
    /// Default round_robin.
    pub policy: BalancingPolicy,
    /// `hash`: what `policy: hash` goes by. Default the client's address.
    pub hash: HashSource,
    /// `hash_balance`: most that a backend may have in flight, in percent of its share, 101 to
    /// 1000. Default none.
    pub hash_balance: Option<u32>,
    /// `slow_start`: time in which the weight of a backend that has recovered or was added grows
    /// from 10 % to the whole. Default none.
    pub slow_start: Option<Duration>,
    /// As written; addresses are unique within a pool. At least one without `discover`. Names are
    /// resolved in `discovery/`.
    pub backends: Vec<BackendConfig>,
    /// `discover`: further backends.
    pub discover: Option<DiscoverConfig>,
    /// `None` is `none`. Default: TCP.
    pub health_check: Option<HealthCheckConfig>,
    /// `None` is `none`.
    pub ejection: Option<EjectionConfig>,
    /// `None` is `none`.
    pub retries: Option<RetriesConfig>,
    /// `timeouts`.
    pub timeouts: PoolTimeoutsConfig,
    /// `keepalive`.
    pub keepalive: KeepaliveConfig,
    /// Protocol that http listeners speak with the backends. Default http1.
    pub protocol: BackendProtocol,
    /// `send_proxy`: every connection to a backend begins with a PROXY header of this version.
    /// Default none.
    pub send_proxy: Option<ProxyVersion>,
    /// `limits.connections_per_backend`. Default none.
    pub connections_per_backend: Option<usize>,
    /// `limits.queue`: exchanges and sessions that wait while all backends are full; 0 is none.
    /// Default 1000.
    pub queue: usize,
    /// `limits.queue_timeout`: longest wait. Default 5s.
    pub queue_timeout: Duration,
    /// `limits.streams_per_connection`: exchanges at a time on one HTTP/2 connection to a backend.
    /// 1 to 1000, default 100.
    pub streams_per_connection: usize,
    /// `sticky`: a cookie keeps each client on one backend. Default none.
    pub sticky: Option<StickyConfig>,
    /// Default reject.
    pub when_all_down: WhenAllDown,
    /// `tls` to the backends; none: plain.
    pub tls: Option<PoolTlsConfig>,
}

impl PoolConfig {
    /// True if its members are not those that `backends` writes out: they are discovered, or names
    /// stand for them.
    pub fn is_dynamic(&self) -> bool {
        self.discover.is_some() || self.backends.iter().any(BackendConfig::is_group)
    }
}

impl BackendConfig {
    /// True if it stands for any number of backends: those that the DNS lists for its name.
    pub fn is_group(&self) -> bool {
        match self.address {
            BackendAddress::Name { .. } => self.resolve == ResolveMode::Each,
            BackendAddress::Service(_) => true,
            BackendAddress::Ip(_) | BackendAddress::Resolved { .. } | BackendAddress::Unix(_) => {
                false
            }
        }
    }
}

/// `pools.NAME.policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BalancingPolicy {
    /// In turn, smooth by weight.
    #[default]
    RoundRobin,
    /// Fewest exchanges or sessions in flight for its weight.
    LeastConnections,
    /// The less loaded of two drawn by weight.
    RandomTwo,
    /// Shortest expected time to the first byte.
    LeastTime,
    /// The same backend for the same part of the request, see [`HashSource`].
    Hash,
    /// The first in the order of the file that has capacity.
    First,
}

/// `pools.NAME.hash`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HashSource {
    /// The client's IP address.
    #[default]
    ClientIp,
    /// The path as sent.
    Path,
    /// The path with the query, as sent.
    Uri,
    /// Every value of the header of this name, in lower case.
    Header(String),
    /// The first cookie of this name.
    Cookie(String),
    /// The first query parameter of this name, not decoded.
    Query(String),
}

/// One of `pools.NAME.backends`.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendConfig {
    /// Its address.
    pub address: BackendAddress,
    /// Name in metrics and logs. Default: the address.
    pub name: Arc<str>,
    /// 0..=256. Default 1; 0 gets no new work.
    pub weight: u16,
    /// Its tier, 0..=9; the lowest tier with a backend that may take traffic gets it. Default 0: no
    /// backup.
    pub backup: u8,
    /// Exchanges or sessions at a time; the smaller of this and the pool's limit holds.
    pub max_connections: Option<usize>,
    /// Port for its checks; goes before `health_check.port`.
    pub check_port: Option<u16>,
    /// `tls` of this backend alone. Default: that of the pool.
    pub tls: TlsOverride,
    /// Of a name: if each of its addresses is a backend. Default each.
    pub resolve: ResolveMode,
}

/// `pools.NAME.ejection`.
#[derive(Debug, Clone, PartialEq)]
pub struct EjectionConfig {
    /// Failures in a row. Default 5.
    pub failures: u32,
    /// First ejection duration, doubled each time. Default 10s.
    pub eject_for: Duration,
    /// Longest ejection duration. Default 5m.
    pub max_eject_for: Duration,
    /// Share of the pool that may be out at once, 0.0..=1.0. Default 0.5.
    pub max_ejected: f64,
    /// Share of failures in ten seconds that ejects, above 0.0. Default none.
    pub failure_rate: Option<f64>,
    /// Requests in ten seconds that `failure_rate` needs. Default 20.
    pub min_requests: u32,
    /// Ranges of 5xx statuses that are failures. Default none.
    pub status: Vec<(u16, u16)>,
}

impl EjectionConfig {
    /// True if a response with this status is a failure.
    #[inline]
    pub fn counts_status(&self, status: u16) -> bool {
        let mut ranges = self.status.iter();
        ranges.any(|(low, high)| (*low..=*high).contains(&status))
    }

    /// Backends that may be out at once, of `total` with a weight above 0: the share, rounded down;
    /// of two or three one at least, unless the share is 0; the only one never.
    pub fn allowed_out(&self, total: usize) -> usize {
        if total < 2 || self.max_ejected <= 0.0 {
            return 0;
        }
        // The small addend keeps 29 % of 100 from becoming 28: 0.29 * 100.0 is a little less than
        // 29.
        let share = (total as f64 * self.max_ejected + 1e-9).floor() as usize;
        share.max(usize::from(total <= 3))
    }
}

/// `retries`.
#[derive(Debug, Clone, PartialEq)]
pub struct RetriesConfig {
    /// Further attempts after the first. Default 2.
    pub attempts: u32,
    /// Retries as a share of requests. Default 0.2, at least 10 a second.
    pub budget: f64,
    /// Failures that are retried.
    pub conditions: RetryConditions,
    /// Methods for which conditions other than a failed connect hold. Default: the idempotent ones
    /// of RFC 9110 section 9.2.2.
    pub methods: Vec<String>,
}

/// One word of `retries.conditions`, see [`RetryConditions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryCondition {
    /// [`RetryConditions::connect`].
    Connect,
    /// [`RetryConditions::stale`].
    Stale,
    /// [`RetryConditions::terminated`].
    Terminated,
    /// [`RetryConditions::timeout`].
    Timeout,
    /// [`RetryConditions::invalid`].
    Invalid,
}

/// `retries.conditions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryConditions {
    /// `connect`: refused, unreachable, timed out; for every method. Default true.
    pub connect: bool,
    /// `stale`: a keepalive connection that was closed before it took the request; for every
    /// method. Default true.
    pub stale: bool,
    /// `terminated`: closed or reset before a whole response head. Default true.
    pub terminated: bool,
    /// `timeout`: no response head in time. Default false: a slow backend gets no second load.
    pub timeout: bool,
    /// `invalid`: a response that is not valid HTTP. Default true.
    pub invalid: bool,
}

/// `pools.NAME.timeouts`; `None` is `none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolTimeoutsConfig {
    /// Default 3s; cannot be none.
    pub connect: Duration,
    /// From the sent request to the whole response head. Default 60s.
    pub response: Option<Duration>,
    /// Between two parts of a response (default 60s).
    pub idle: Option<Duration>,
    /// Silence of a TCP session or of a tunnel (default 1h, or `idle` when that is given).
    pub tcp_idle: Option<Duration>,
    /// For the whole exchange with all its attempts. Default none.
    pub total: Option<Duration>,
}

/// `routes[].timeouts`: `Some` where the route says something.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimeoutOverrides {
    /// As in [`PoolTimeoutsConfig`].
    pub connect: Option<Duration>,
    /// As in [`PoolTimeoutsConfig`].
    pub response: Option<Option<Duration>>,
    /// As in [`PoolTimeoutsConfig`]; sets `tcp_idle` too.
    pub idle: Option<Option<Duration>>,
    /// As in [`PoolTimeoutsConfig`].
    pub total: Option<Option<Duration>>,
}

/// `pools.NAME.keepalive`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepaliveConfig {
    /// Idle connections per backend and worker; 0 closes each after its exchange. Default 64.
    pub idle_per_backend: usize,
    /// Default 4s: below the usual server's 5s.
    pub idle_timeout: Duration,
    /// Default 10m.
    pub max_age: Option<Duration>,
    /// Default none.
    pub max_requests: Option<u64>,
}

/// `pools.NAME.when_all_down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenAllDown {
    /// 502 with `destination_unavailable`.
    #[default]
    Reject,
    /// Every backend that is not draining or in maintenance gets traffic.
    FailOpen,
}
