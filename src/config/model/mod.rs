//! The checked configuration: plain data, every default filled in, every reference resolvable.
//!
//! Made only by `config::load`; everything above reads it and never the file. Defaults and ranges
//! are those of docs/configuration.md; a field says `None` where the file says `none`.

mod discovery;
mod health_check;
mod listener;
mod pool;
mod route;
mod sticky;
mod tls;
mod value_set;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;

pub use self::{
    discovery::*, health_check::*, listener::*, pool::*, route::*, sticky::*, tls::*,
    value_set::ValueSet,
};
use crate::{
    base::address::BindAddress,
    reason::{Reason, StatusProfile},
};

/// A whole configuration file. `Default` is the file with no listeners, routes and pools.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Worker threads; `None` is `auto`: the usable cores.
    pub workers: Option<usize>,
    /// Client connections at a time; `None` is `auto`: from the open-file limit.
    pub max_connections: Option<usize>,
    /// Graceful shutdown.
    pub drain: DrainConfig,
    /// The admin API.
    pub admin: AdminConfig,
    /// The metrics endpoint.
    pub metrics: MetricsConfig,
    /// The daemon's own log, on standard error.
    pub log: LogConfig,
    /// One line per exchange or session.
    pub access_log: AccessLogConfig,
    /// Peers whose forwarded headers and request ids are believed.
    pub trusted_proxies: TrustedProxiesConfig,
    /// DNS servers that names of backends are resolved with. Default: those of /etc/resolv.conf.
    pub resolvers: Vec<SocketAddr>,
    /// Forwarding headers for backends.
    pub forwarded: ForwardedConfig,
    /// Status and format of our own error responses.
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
    /// Unix socket or loopback address; `None` is the default: `admin.sock` in the runtime
    /// directory.
    pub bind: Option<BindAddress>,
    /// File with the bearer token; required when `bind` is an IP address.
    pub token_file: Option<PathBuf>,
}

impl AdminConfig {
    /// The address that it listens on; `default` is the path of its socket where the file names
    /// none.
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
    /// The `balancer_backend_*` series that there are. Default full.
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
    /// Filter of exchanges that are written. Default: status of 500 and more, or a reason.
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
