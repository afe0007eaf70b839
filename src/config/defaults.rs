//! The defaults: what a section means that the file leaves out. The numbers are those of docs/configuration.md.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tracing::level_filters::LevelFilter;

use super::model::{
    AccessFormat, AccessLog, Admin, Backend, BackendProtocol, CheckKind, Config, Drain, Ejection,
    ErrorFormat, Errors, Forwarded, HeaderEdits, HealthCheck, HttpLimits, Keepalive, Listener,
    ListenerLimits, ListenerProtocol, ListenerTimeouts, Log, LogFormat, LogOutput, LogWhen,
    Metrics, OnDown, PathMatch, PerBackend, Policy, Pool, PoolTimeouts, Respond, Retries,
    RetryConditions, Rewrite, Route, RouteAction, SocketOptions, TimeoutOverrides, TrustedProxies,
    WhenAllDown,
};
use crate::{base::address::BackendAddress, reason::StatusProfile};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: None,
            max_connections: None,
            drain: Drain::default(),
            admin: Admin {
                bind: None,
                token_file: None,
            },
            metrics: Metrics::default(),
            log: Log::default(),
            access_log: AccessLog::default(),
            trusted_proxies: TrustedProxies::default(),
            forwarded: Forwarded::default(),
            errors: Errors::default(),
            listeners: Vec::new(),
            routes: Vec::new(),
            pools: Vec::new(),
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            timeout: secs(30),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            bind: Some(SocketAddr::from(([127, 0, 0, 1], 9900))),
            per_backend: PerBackend::Full,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: LevelFilter::INFO,
            format: LogFormat::Auto,
        }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            output: LogOutput::Stdout,
            format: AccessFormat::Json,
            when: LogWhen::default(),
            headers: Vec::new(),
        }
    }
}

impl Default for LogWhen {
    fn default() -> Self {
        Self {
            min_status: 500,
            slower_than: None,
            sample: 0.0,
        }
    }
}

impl Default for Forwarded {
    fn default() -> Self {
        Self {
            x_forwarded: true,
            real_ip: Some("X-Real-IP".to_owned()),
            rfc7239: false,
            via: true,
            request_id: "X-Request-Id".to_owned(),
        }
    }
}

impl Default for Respond {
    fn default() -> Self {
        Self {
            status: 200,
            body: String::new(),
            content_type: "text/plain; charset=utf-8".to_owned(),
            headers: Vec::new(),
        }
    }
}

impl Default for Errors {
    fn default() -> Self {
        Self {
            status: StatusProfile::Unified,
            format: ErrorFormat::Json,
            pages: Vec::new(),
            overrides: Vec::new(),
        }
    }
}

impl Listener {
    /// A listener that says nothing but its name: what it must have beyond that is still to be given.
    #[must_use]
    pub fn named(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            binds: Vec::new(),
            protocol: ListenerProtocol::default(),
            pool: None,
            sni: BTreeMap::new(),
            redirect: None,
            http: HttpLimits::default(),
            timeouts: ListenerTimeouts::default(),
            limits: ListenerLimits::default(),
            rate_limit: None,
            accept_proxy: None,
            allow: Vec::new(),
            deny: Vec::new(),
            socket: SocketOptions::default(),
            tls: None,
        }
    }
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            max_headers: 100,
            max_header_size: 32 << 10,
            h2c: true,
            h2_max_streams: 100,
        }
    }
}

impl Default for ListenerTimeouts {
    fn default() -> Self {
        Self {
            header: Some(secs(10)),
            body_idle: Some(secs(30)),
            keepalive: Some(secs(75)),
            tls: Some(secs(10)),
        }
    }
}

#[expect(clippy::derivable_impls, reason = "all defaults stand in this file")]
impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            connections: None,
            connections_per_client: None,
            request_body: None,
        }
    }
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            backlog: 4096,
            keepalive: Some(secs(60)),
            fast_open: false,
        }
    }
}

impl Route {
    /// A route for every request, to the first pool until `action` says otherwise.
    #[must_use]
    pub fn named(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            first: false,
            listeners: Vec::new(),
            hosts: Vec::new(),
            path: PathMatch::Any,
            methods: Vec::new(),
            headers: Vec::new(),
            action: RouteAction::Pool(0),
            rewrite: Rewrite::default(),
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
            timeouts: TimeoutOverrides::default(),
            retries: None,
            rate_limit: None,
            allow: Vec::new(),
        }
    }
}

impl Pool {
    /// A pool that says nothing but its name: its backends are still to be given.
    #[must_use]
    pub fn named(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            policy: Policy::default(),
            backends: Vec::new(),
            health_check: Some(HealthCheck::default()),
            ejection: Some(Ejection::default()),
            retries: Some(Retries::default()),
            timeouts: PoolTimeouts::default(),
            keepalive: Keepalive::default(),
            tls: None,
            protocol: BackendProtocol::default(),
            send_proxy: None,
            connections_per_backend: None,
            streams_per_connection: 100,
            when_all_down: WhenAllDown::default(),
        }
    }
}

impl Backend {
    /// A backend that says nothing but its address, and is called by it.
    #[must_use]
    pub fn at(address: BackendAddress) -> Self {
        Self {
            name: address.to_string().into(),
            address,
            weight: 1,
            backup: 0,
            max_connections: None,
        }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            kind: CheckKind::Tcp,
            port: None,
            interval: secs(2),
            timeout: secs(1),
            rise: 2,
            fall: 3,
            on_down: OnDown::default(),
        }
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            failures: 5,
            eject_for: secs(10),
            max_eject_for: secs(300),
            max_ejected: 0.5,
        }
    }
}

impl Default for Retries {
    fn default() -> Self {
        // The idempotent methods of RFC 9110 section 9.2.2.
        let methods = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];
        Self {
            attempts: 2,
            budget: 0.2,
            conditions: RetryConditions::default(),
            methods: methods.map(str::to_owned).to_vec(),
        }
    }
}

impl Default for RetryConditions {
    fn default() -> Self {
        Self {
            connect: true,
            stale: true,
            terminated: true,
            timeout: false,
            invalid: true,
        }
    }
}

impl Default for PoolTimeouts {
    fn default() -> Self {
        Self {
            connect: secs(3),
            response: Some(secs(60)),
            idle: Some(secs(60)),
            tcp_idle: Some(secs(3600)),
            total: None,
        }
    }
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            idle_per_backend: 64,
            idle_timeout: secs(4),
            max_age: Some(secs(600)),
            max_requests: None,
        }
    }
}
