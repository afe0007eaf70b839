//! The checked configuration: plain data, every default filled in, every reference resolvable.
//!
//! Made only by `config::load`; everything above reads it and never the file. Defaults and ranges are those of
//! docs/configuration.md; a field says `None` where the file says `none`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

pub use super::tls::{
    ClientCaConfig, ListenerTlsConfig, LoadedCertificate, PoolTlsConfig, TlsVersion,
};
use crate::{
    base::{
        address::{BackendAddress, BindAddress},
        units::Rate,
    },
    reason::{Reason, StatusProfile},
};

/// A whole configuration file. `Default` is the file with no listeners, routes and pools.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Worker threads; `None` is `auto`: the usable cores.
    pub workers: Option<usize>,
    /// Client connections at a time; `None` is `auto`: from the open-file limit.
    pub max_connections: Option<usize>,
    /// How the daemon leaves.
    pub drain: DrainConfig,
    /// Where the admin API listens.
    pub admin: AdminConfig,
    /// Where the scrape listens.
    pub metrics: MetricsConfig,
    /// The daemon's own log, on standard error.
    pub log: LogConfig,
    /// One line per exchange or session.
    pub access_log: AccessLogConfig,
    /// Peers whose forwarded headers and request ids are believed.
    pub trusted_proxies: TrustedProxiesConfig,
    /// Which forwarding headers backends get.
    pub forwarded: ForwardedConfig,
    /// How our own answers look.
    pub errors: ErrorsConfig,
    /// In the order of the file.
    pub listeners: Vec<ListenerConfig>,
    /// In the order of the file.
    pub routes: Vec<RouteConfig>,
    /// In the order of the file.
    pub pools: Vec<PoolConfig>,
}

/// `trusted_proxies`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrustedProxiesConfig {
    /// Their addresses. Default none.
    pub from: Vec<IpNet>,
    /// Header in which they name the client's address. Default `None`: `X-Forwarded-For`.
    pub client_header: Option<String>,
}

/// `drain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainConfig {
    /// From SIGTERM (and `/readyz` 503) to the end of accepting. Default 0s.
    pub delay: Duration,
    /// From the end of accepting to cutting what is left. Default 30s.
    pub timeout: Duration,
}

/// `admin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Unix socket or loopback address; `None` is the default: `admin.sock` in the runtime directory.
    pub bind: Option<BindAddress>,
    /// File with the bearer token; compulsory when `bind` is an IP address.
    pub token_file: Option<PathBuf>,
}

impl AdminConfig {
    /// Where it listens; `default` is the path of its socket when the file does not say.
    pub fn address(&self, default: &Path) -> BindAddress {
        let default = || BindAddress::Unix(default.to_path_buf());
        self.bind.clone().unwrap_or_else(default)
    }
}

/// `metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Default 127.0.0.1:9900; `None` switches the scrape off.
    pub bind: Option<SocketAddr>,
    /// Which `balancer_backend_*` series there are. Default full.
    pub per_backend: PerBackend,
}

/// `metrics.per_backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PerBackend {
    /// All of them.
    #[default]
    Full,
    /// Only up, weight, state and last change.
    State,
    /// None of them.
    None,
}

/// `log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Default info.
    pub level: tracing::level_filters::LevelFilter,
    /// Default auto: text on a terminal, JSON elsewhere.
    pub format: LogFormat,
}

/// `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// `access_log`.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLogConfig {
    /// Default stdout.
    pub output: LogOutput,
    /// Default json.
    pub format: AccessFormat,
    /// Which exchanges are written. Default: status of 500 and more, or a reason.
    pub when: LogWhenConfig,
    /// Request headers to add, in lower case. Default none.
    pub headers: Vec<String>,
}

/// `access_log.output`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LogOutput {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, reopened on SIGUSR1.
    File(PathBuf),
    /// No access log.
    None,
}

/// `access_log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccessFormat {
    /// One flat JSON object a line.
    #[default]
    Json,
    /// The combined format of Apache and nginx.
    Combined,
}

/// `access_log.when`: a line is written when any of these holds, or when there is a reason.
#[derive(Debug, Clone, PartialEq)]
pub struct LogWhenConfig {
    /// Status at least this. Default 500.
    pub min_status: u16,
    /// Took longer than this.
    pub slower_than: Option<Duration>,
    /// This share of all others, 0.0..=1.0. Default 0.
    pub sample: f64,
}

/// `forwarded`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardedConfig {
    /// `X-Forwarded-For`, `-Proto`, `-Host`, `-Port`. Default true.
    pub x_forwarded: bool,
    /// Name of the header with the client's address; `None` is `none`. Default X-Real-IP.
    pub real_ip: Option<String>,
    /// `Forwarded`, RFC 7239. Default false.
    pub rfc7239: bool,
    /// `Via`, RFC 9110 section 7.6.3. Default true.
    pub via: bool,
    /// Name of the request id header. Default X-Request-Id.
    pub request_id: String,
}

/// `errors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorsConfig {
    /// Default unified.
    pub status: StatusProfile,
    /// Default json.
    pub format: ErrorFormat,
    /// `pages`: files `CODE.html` and `CODE.json` of that directory, read at load.
    pub pages: Vec<ErrorPage>,
    /// `override`: another status for a reason, 400..=599.
    pub overrides: Vec<(Reason, u16)>,
}

/// One file of `errors.pages`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorPage {
    /// The status it is for, 400..=599.
    pub status: u16,
    /// True for `CODE.html`, false for `CODE.json`.
    pub html: bool,
    /// The file's bytes, at most 64 KiB.
    pub body: Vec<u8>,
}

/// `errors.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ErrorFormat {
    /// Always JSON.
    #[default]
    Json,
    /// Always HTML.
    Html,
    /// HTML for clients whose `Accept` prefers it, JSON for all others.
    Auto,
}

/// `listeners.NAME`.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerConfig {
    /// The key in the file.
    pub name: Arc<str>,
    /// At least one; no two listeners share one.
    pub binds: Vec<BindAddress>,
    /// Default http.
    pub protocol: ListenerProtocol,
    /// Where unmatched traffic goes: index into [`Config::pools`].
    pub pool: Option<usize>,
    /// `sni`: the pools of TLS connections by the server name they ask for, as indexes into [`Config::pools`]. Their TLS is
    /// passed on as it is. Default empty: connections are not looked into.
    pub sni: BTreeMap<HostMatch, usize>,
    /// `redirect`: every request of this listener is redirected that no route takes which is `first` or names the listener.
    pub redirect: Option<RedirectConfig>,
    /// `http`.
    pub http: ListenerHttpConfig,
    /// `timeouts`.
    pub timeouts: ListenerTimeoutsConfig,
    /// `limits`.
    pub limits: ListenerLimitsConfig,
    /// `rate_limit`, for requests no route says otherwise of. Default none.
    pub rate_limit: Option<RateLimitConfig>,
    /// `accept_proxy`: connections begin with a PROXY header. Default none.
    pub accept_proxy: Option<AcceptProxyConfig>,
    /// Clients that may connect; empty is all.
    pub allow: Vec<IpNet>,
    /// Clients that may not; stronger than `allow`.
    pub deny: Vec<IpNet>,
    /// `socket`.
    pub socket: SocketConfig,
    /// `tls`; none: plain.
    pub tls: Option<ListenerTlsConfig>,
}

impl ListenerConfig {
    /// The pools that it names itself; one may occur several times.
    pub fn pools(&self) -> impl Iterator<Item = usize> {
        self.pool.into_iter().chain(self.sni.values().copied())
    }
}

/// `listeners.NAME.protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListenerProtocol {
    /// HTTP/1.0, HTTP/1.1 and HTTP/2.
    #[default]
    Http,
    /// A byte stream.
    Tcp,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

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

/// `listeners.NAME.accept_proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptProxyConfig {
    /// The version that must be used. Default `None`: any.
    pub version: Option<ProxyVersion>,
    /// Whose headers are believed; at least one. All others are refused.
    pub from: Vec<IpNet>,
}

/// `listeners.NAME.http`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerHttpConfig {
    /// Fields in a request head, 1..=256. Default 100.
    pub max_headers: usize,
    /// Bytes of a request head, 1 KiB..=256 KiB. Default 32 KiB.
    pub max_header_size: usize,
    /// HTTP/2 without TLS from clients that begin with it. Default true. RFC 9113 section 3.3.
    pub h2c: bool,
    /// Requests at a time on one HTTP/2 connection, 1..=1,000. Default 100.
    pub h2_max_streams: usize,
}

/// `listeners.NAME.timeouts`; `None` is `none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTimeoutsConfig {
    /// From the first byte of a request (or the accept) to the end of its head. Default 10s.
    pub header: Option<Duration>,
    /// In which a client sends 1 KiB of a request body before its response begins, or reads a byte of a response of ours.
    /// Default 30s.
    pub body_idle: Option<Duration>,
    /// Between a response and the next request. Default 75s.
    pub keepalive: Option<Duration>,
    /// From the accept to the end of the TLS handshake; with `sni` to the end of the ClientHello. Default 10s.
    pub tls: Option<Duration>,
}

/// `listeners.NAME.limits`; `None` is `none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerLimitsConfig {
    /// Connections at a time. Default: only `max_connections`.
    pub connections: Option<usize>,
    /// Connections at a time from one client address. Default none.
    pub connections_per_client: Option<usize>,
    /// Bytes of a request body. Default none.
    pub request_body: Option<u64>,
}

/// `rate_limit` of a listener or a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitConfig {
    /// Requests of one client address in the long run, 1/h..=1000000/s.
    pub per_client: Rate,
    /// Requests that may come at once, 1..=1000000. Default: those of one second, at least 1.
    pub burst: u32,
}

/// `listeners.NAME.socket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// Connections the kernel queues for us. Default 4096.
    pub backlog: u32,
    /// TCP keepalive probes after this idle time. Default 60s.
    pub keepalive: Option<Duration>,
    /// TCP Fast Open, RFC 7413. Default false.
    pub fast_open: bool,
}

/// A redirect, of a listener or a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectConfig {
    /// `https` or `{to: https, port, status}`: same host and target, other scheme.
    Https {
        /// Left out of the location when 443.
        port: u16,
        /// 301, 302, 303, 307 or 308. Default 308.
        status: u16,
    },
    /// `{to: TARGET, status}`: an absolute URL or a path, sent as it is.
    To {
        /// The value of `Location`.
        location: String,
        /// 301, 302, 303, 307 or 308. Default 308.
        status: u16,
    },
}

/// `routes[]`.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteConfig {
    /// What the log calls it: `routes[3]`.
    pub name: Arc<str>,
    /// `first`: goes before every route without it. Default false.
    pub first: bool,
    /// Indexes into [`Config::listeners`]; empty is every http listener.
    pub listeners: Vec<usize>,
    /// Host names; empty is any.
    pub hosts: Vec<HostMatch>,
    /// Default any.
    pub path: PathMatch,
    /// Methods, as sent; empty is any.
    pub methods: Vec<String>,
    /// Every one must hold.
    pub headers: Vec<HeaderMatch>,
    /// What happens to a request that matches.
    pub action: RouteAction,
    /// `rewrite`: the path and host that the backend gets.
    pub rewrite: RewriteConfig,
    /// `request_headers`, applied to what the backend gets.
    pub request_headers: HeaderEdits,
    /// `response_headers`, applied to what the client gets.
    pub response_headers: HeaderEdits,
    /// Overrides of the pool's `timeouts`; only the given ones.
    pub timeouts: TimeoutOverrides,
    /// Override of the pool's `retries`; `Some(None)` is `none`. With `split` see [`SplitShare::retries`].
    pub retries: Option<Option<RetriesConfig>>,
    /// Override of the listener's `rate_limit`; `Some(None)` is `none`.
    pub rate_limit: Option<Option<RateLimitConfig>>,
    /// Clients that may use the route; empty is all.
    pub allow: Vec<IpNet>,
}

impl RouteConfig {
    /// What the route says about the retries of a pool it sends requests to: `Some(None)` is `none`.
    pub fn retries_for(&self, pool: usize) -> Option<&Option<RetriesConfig>> {
        match &self.action {
            RouteAction::Split(shares) => shares
                .iter()
                .find(|share| share.pool == pool)?
                .retries
                .as_ref(),
            _ => self.retries.as_ref(),
        }
    }
}

/// One entry of `routes[].host` or `listeners.NAME.sni`, in lower case, without port and final dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostMatch {
    /// `api.example.com`.
    Exact(String),
    /// `*.example.com`, kept as `example.com`: any name below it, at any depth.
    Suffix(String),
}

/// `routes[].path`, `.path_exact`, `.path_regex`.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// No condition.
    Any,
    /// `/a/b`: this path and all below it, by whole segments. Without a final slash, except `/`.
    Prefix(String),
    /// The whole path.
    Exact(String),
    /// A regular expression that must match the whole path, see [`whole_path`].
    Regex(regex::Regex),
}

/// The pattern of `path_regex` made to match the whole path. `.` takes line feeds too: clients can send them escaped,
/// and a path must not get past an expression such as `/admin/.*` by one.
pub fn whole_path(pattern: &str) -> String {
    format!(r"\A(?s:{pattern})\z")
}

impl PartialEq for PathMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, Self::Any) => true,
            (Self::Prefix(a), Self::Prefix(b)) | (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// One entry of `routes[].headers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: String,
    /// The whole value; `None` (written `"*"`): it only has to be there.
    pub value: Option<String>,
}

impl HeaderMatch {
    /// True for a value of this field as sent. Fields of one hop (RFC 9110 section 7.6.1) are lists of words without
    /// case: one of the words is enough.
    pub fn holds(&self, sent: &[u8]) -> bool {
        let Some(wanted) = self.value.as_deref().map(str::as_bytes) else {
            return true;
        };
        let is_list = || {
            matches!(
                self.name.as_str(),
                "connection"
                    | "keep-alive"
                    | "proxy-connection"
                    | "te"
                    | "transfer-encoding"
                    | "upgrade"
            )
        };
        let is_wanted = |word: &[u8]| word.trim_ascii().eq_ignore_ascii_case(wanted);
        sent == wanted
            || is_list() && (is_wanted(sent) || sent.split(|byte| *byte == b',').any(is_wanted))
    }
}

/// What a route does.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteAction {
    /// Index into [`Config::pools`].
    Pool(usize),
    /// `split`: one of these pools for each request, by weight. Not empty, no pool twice, some weight over 0.
    Split(Vec<SplitShare>),
    /// An answer with `Location`.
    Redirect(RedirectConfig),
    /// A fixed answer.
    Respond(RespondConfig),
}

/// `routes[].respond`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RespondConfig {
    /// 200..=599. Default 200.
    pub status: u16,
    /// At most 64 KiB. Default empty.
    pub body: String,
    /// Media type of the body. Default `text/plain; charset=utf-8`.
    pub content_type: String,
    /// Further fields of the response, `Content-Type` not among them.
    pub headers: Vec<(String, String)>,
}

/// One entry of `routes[].split`.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitShare {
    /// Index into [`Config::pools`].
    pub pool: usize,
    /// 0..=256: its share of the sum of all. 0 gets nothing.
    pub weight: u16,
    /// The route's override of this pool's `retries`; `Some(None)` is `none`.
    pub retries: Option<Option<RetriesConfig>>,
}

/// `routes[].rewrite`. `Default` changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RewriteConfig {
    /// `path` or `strip_prefix`.
    pub path: PathRewrite,
    /// `host`: the Host that the backend gets, a name with or without a port. Default: the client's.
    pub host: Option<String>,
}

/// What becomes of the path of a request. Texts begin with `/` and hold only what a path may hold (RFC 3986), without
/// empty and dot segments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PathRewrite {
    /// It goes as it came.
    #[default]
    Keep,
    /// `strip_prefix`: these segments are taken off its beginning.
    Strip(String),
    /// `path`: replaces what the route's `path` matched, or all of what `path_exact` matched.
    Replace(String),
    /// `path` in a route with `path_regex`: replaces the whole path.
    Expand(Vec<PathPiece>),
}

/// A part of a path made from the groups of a regular expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathPiece {
    /// As it is.
    Text(String),
    /// The group with this number, 0 for the whole path; nothing if it took no part in the match.
    Group(usize),
}

/// `request_headers`, `response_headers`: first `remove`, then `set`, then `add`. Values have no control bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEdits {
    /// Replaces every field of the name.
    pub set: Vec<(String, String)>,
    /// Adds a field.
    pub add: Vec<(String, String)>,
    /// Names; a final `*` stands for the rest of a name. By that no field of the connection or the framing, `Host` or
    /// `Expect` is meant.
    pub remove: Vec<String>,
}

/// `pools.NAME`.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolConfig {
    /// The key in the file.
    pub name: Arc<str>,
    /// Default round_robin.
    pub policy: BalancingPolicy,
    /// At least one; addresses are unique within a pool.
    pub backends: Vec<BackendConfig>,
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
    /// What http listeners speak with the backends. Default http1.
    pub protocol: BackendProtocol,
    /// `send_proxy`: every connection to a backend begins with a PROXY header of this version. Default none.
    pub send_proxy: Option<ProxyVersion>,
    /// `limits.connections_per_backend`. Default none.
    pub connections_per_backend: Option<usize>,
    /// `limits.streams_per_connection`: exchanges at a time on one HTTP/2 connection to a backend. 1 to 1000, default 100.
    pub streams_per_connection: usize,
    /// Default reject.
    pub when_all_down: WhenAllDown,
    /// `tls` to the backends; none: plain.
    pub tls: Option<PoolTlsConfig>,
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
}

/// One of `pools.NAME.backends`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendConfig {
    /// Where it is.
    pub address: BackendAddress,
    /// What metrics and logs call it. Default: the address.
    pub name: Arc<str>,
    /// 0..=256. Default 1; 0 gets no new work.
    pub weight: u16,
    /// Its tier, 0..=9; the lowest tier with a backend that may take traffic gets it. Default 0: no backup.
    pub backup: u8,
    /// Exchanges or sessions at a time; the smaller of this and the pool's limit holds.
    pub max_connections: Option<usize>,
}

/// `pools.NAME.health_check`.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthCheckConfig {
    /// What is asked.
    pub kind: CheckKind,
    /// Another port than the backend's.
    pub port: Option<u16>,
    /// From one check to the next, jittered by 10 %. Default 2s.
    pub interval: Duration,
    /// For the whole check. Default 1s.
    pub timeout: Duration,
    /// Good checks in a row until up. Default 2.
    pub rise: u32,
    /// Bad checks in a row until down. Default 3.
    pub fall: u32,
    /// What becomes of the sessions and tunnels of a backend that goes down. Default keep.
    pub on_down: OnDown,
}

/// `health_check.on_down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDown {
    /// They go on.
    #[default]
    Keep,
    /// They are reset.
    Close,
}

/// `health_check.type`.
#[derive(Debug, Clone, PartialEq)]
pub enum CheckKind {
    /// The connection is accepted.
    Tcp,
    /// The answer has the expected status, and body if one is given.
    Http {
        /// Origin-form target.
        path: String,
        /// Default GET.
        method: String,
        /// `Host`; default: the backend's address.
        host: Option<String>,
        /// Inclusive ranges of status. Default 200-399.
        expect: Vec<(u16, u16)>,
        /// Must occur in the first 64 KiB of the body.
        body: Option<String>,
    },
    /// The health service of gRPC says SERVING.
    Grpc {
        /// The service that is asked for; empty is the server as a whole.
        service: String,
        /// `:authority`; default: the backend's address.
        host: Option<String>,
    },
}

/// `pools.NAME.ejection`.
#[derive(Debug, Clone, PartialEq)]
pub struct EjectionConfig {
    /// Failures in a row. Default 5.
    pub failures: u32,
    /// First sentence, doubled each time. Default 10s.
    pub eject_for: Duration,
    /// Longest sentence. Default 5m.
    pub max_eject_for: Duration,
    /// Share of the pool that may be out at once, 0.0..=1.0. Default 0.5.
    pub max_ejected: f64,
}

impl EjectionConfig {
    /// Backends that may be out at once, of `total` with a weight above 0: the share, rounded down; of two or three one
    /// at least, unless the share is 0; the only one never.
    pub fn allowed_out(&self, total: usize) -> usize {
        if total < 2 || self.max_ejected <= 0.0 {
            return 0;
        }
        // The small addend keeps 29 % of 100 from becoming 28: 0.29 * 100.0 is a little less than 29.
        let share = (total as f64 * self.max_ejected + 1e-9).floor() as usize;
        share.max(usize::from(total <= 3))
    }
}

/// `retries`.
#[derive(Debug, Clone, PartialEq)]
pub struct RetriesConfig {
    /// Further tries after the first. Default 2.
    pub attempts: u32,
    /// Retries as a share of requests. Default 0.2, at least 10 a second.
    pub budget: f64,
    /// Which failures.
    pub conditions: RetryConditions,
    /// Methods for which conditions other than a failed connect hold. Default: the idempotent ones of RFC 9110 section 9.2.2.
    pub methods: Vec<String>,
}

/// `retries.conditions`, a list of the words below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryConditions {
    /// `connect`: refused, unreachable, timed out; for every method. Default true.
    pub connect: bool,
    /// `stale`: a keepalive connection that was closed before it took the request; for every method. Default true.
    pub stale: bool,
    /// `terminated`: closed or reset before a whole response head. Default true.
    pub terminated: bool,
    /// `timeout`: no response head in time. Default false: a slow backend gets no second load.
    pub timeout: bool,
    /// `invalid`: an answer that is not valid HTTP. Default true.
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
    /// For the whole exchange with all its tries. Default none.
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
