//! Default values of omitted keys and sections. A test compares them with the texts in `schema`.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tracing::level_filters::LevelFilter;

use super::model::{
    AccessFormat, AccessLogConfig, AdminConfig, BackendConfig, BackendProtocol, BalancingPolicy,
    CheckKind, Config, DrainConfig, EjectionConfig, ErrorFormat, ErrorsConfig, ForwardedConfig,
    HashSource, HeaderEdits, HealthCheckConfig, HttpCheckConfig, KeepaliveConfig, ListenerConfig,
    ListenerHttpConfig, ListenerLimitsConfig, ListenerProtocol, ListenerTimeoutsConfig, LogConfig,
    LogFormat, LogOutput, LogWhenConfig, MetricsConfig, OnDown, PathMatch, PerBackend, PoolConfig,
    PoolTimeoutsConfig, PostgresCheckConfig, PostgresTarget, ResolveMode, RespondConfig,
    RetriesConfig, RetryConditions, RewriteConfig, RouteAction, RouteConfig, SameSite,
    SecureCookie, SocketConfig, StickyConfig, TimeoutOverrides, TlsOverride, TrustedProxiesConfig,
    WhenAllDown,
};
use crate::{base::address::BackendAddress, reason::StatusProfile};

/// Default user of mysql and postgres checks.
pub(super) const CHECK_USER: &str = "balancer";

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: None,
            max_connections: None,
            drain: DrainConfig::default(),
            admin: AdminConfig {
                bind: None,
                token_file: None,
            },
            metrics: MetricsConfig::default(),
            log: LogConfig::default(),
            access_log: AccessLogConfig::default(),
            trusted_proxies: TrustedProxiesConfig::default(),
            resolvers: Vec::new(),
            forwarded: ForwardedConfig::default(),
            errors: ErrorsConfig::default(),
            listeners: Vec::new(),
            routes: Vec::new(),
            pools: Vec::new(),
        }
    }
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            timeout: secs(30),
        }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            bind: Some(SocketAddr::from(([127, 0, 0, 1], 9900))),
            per_backend: PerBackend::Full,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: LevelFilter::INFO,
            format: LogFormat::Auto,
        }
    }
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        Self {
            output: LogOutput::Stdout,
            format: AccessFormat::Json,
            when: LogWhenConfig::default(),
            headers: Vec::new(),
        }
    }
}

impl Default for LogWhenConfig {
    fn default() -> Self {
        Self {
            min_status: 500,
            slower_than: None,
            sample: 0.0,
        }
    }
}

impl Default for ForwardedConfig {
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

impl Default for RespondConfig {
    fn default() -> Self {
        Self {
            status: 200,
            body: String::new(),
            content_type: "text/plain; charset=utf-8".to_owned(),
            headers: Vec::new(),
        }
    }
}

impl Default for ErrorsConfig {
    fn default() -> Self {
        Self {
            status: StatusProfile::Unified,
            format: ErrorFormat::Json,
            pages: Vec::new(),
            overrides: Vec::new(),
        }
    }
}

impl ListenerConfig {
    /// A listener with its name and defaults; `binds` is still empty.
    #[must_use]
    pub fn named(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            binds: Vec::new(),
            protocol: ListenerProtocol::default(),
            pool: None,
            sni: BTreeMap::new(),
            redirect: None,
            http: ListenerHttpConfig::default(),
            timeouts: ListenerTimeoutsConfig::default(),
            limits: ListenerLimitsConfig::default(),
            rate_limit: None,
            accept_proxy: None,
            allow: Vec::new(),
            deny: Vec::new(),
            socket: SocketConfig::default(),
            tls: None,
        }
    }
}

impl Default for ListenerHttpConfig {
    fn default() -> Self {
        Self {
            max_headers: 100,
            max_header_size: 32 << 10,
            h2c: true,
            h2_max_streams: 100,
        }
    }
}

impl Default for ListenerTimeoutsConfig {
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
impl Default for ListenerLimitsConfig {
    fn default() -> Self {
        Self {
            connections: None,
            connections_per_client: None,
            request_body: None,
        }
    }
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self {
            backlog: 4096,
            keepalive: Some(secs(60)),
            fast_open: false,
        }
    }
}

impl RouteConfig {
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
            rewrite: RewriteConfig::default(),
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
            timeouts: TimeoutOverrides::default(),
            retries: None,
            rate_limit: None,
            allow: Vec::new(),
        }
    }
}

impl PoolConfig {
    /// A pool with its name and defaults; `backends` is still empty.
    #[must_use]
    pub fn named(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            policy: BalancingPolicy::default(),
            hash: HashSource::default(),
            hash_balance: None,
            slow_start: None,
            backends: Vec::new(),
            discover: None,
            health_check: Some(HealthCheckConfig::default()),
            ejection: Some(EjectionConfig::default()),
            retries: Some(RetriesConfig::default()),
            timeouts: PoolTimeoutsConfig::default(),
            keepalive: KeepaliveConfig::default(),
            tls: None,
            protocol: BackendProtocol::default(),
            send_proxy: None,
            connections_per_backend: None,
            queue: 1_000,
            queue_timeout: Duration::from_secs(5),
            streams_per_connection: 100,
            sticky: None,
            when_all_down: WhenAllDown::default(),
        }
    }
}

impl BackendConfig {
    /// A backend with defaults, named by its address.
    #[must_use]
    pub fn at(address: BackendAddress) -> Self {
        Self {
            name: address.to_string().into(),
            address,
            weight: 1,
            backup: 0,
            max_connections: None,
            check_port: None,
            tls: TlsOverride::default(),
            resolve: ResolveMode::default(),
        }
    }
}

impl StickyConfig {
    /// Sticky sessions by the cookie of this name.
    #[must_use]
    pub fn named(cookie: impl Into<String>) -> Self {
        Self {
            cookie: cookie.into(),
            ttl: None,
            secure: SecureCookie::default(),
            same_site: SameSite::default(),
            http_only: true,
            path: "/".to_owned(),
            secret: None,
        }
    }
}

impl Default for HealthCheckConfig {
    fn default() -> Self {
        Self {
            kind: CheckKind::Tcp,
            port: None,
            tls: TlsOverride::default(),
            interval: secs(2),
            interval_down: None,
            interval_starting: None,
            timeout: secs(1),
            rise: 2,
            fall: 3,
            on_down: OnDown::default(),
        }
    }
}

impl Default for HttpCheckConfig {
    fn default() -> Self {
        Self {
            path: "/".to_owned(),
            method: "GET".to_owned(),
            host: None,
            headers: Vec::new(),
            expect: vec![(200, 399)],
            expect_headers: Vec::new(),
            body: None,
        }
    }
}

impl Default for PostgresCheckConfig {
    fn default() -> Self {
        Self {
            user: CHECK_USER.to_owned(),
            database: None,
            password: None,
            target: PostgresTarget::default(),
        }
    }
}

impl Default for EjectionConfig {
    fn default() -> Self {
        Self {
            failures: 5,
            eject_for: secs(10),
            max_eject_for: secs(300),
            max_ejected: 0.5,
            failure_rate: None,
            min_requests: 20,
            status: Vec::new(),
        }
    }
}

impl Default for RetriesConfig {
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

impl Default for PoolTimeoutsConfig {
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

impl Default for KeepaliveConfig {
    fn default() -> Self {
        Self {
            idle_per_backend: 64,
            idle_timeout: secs(4),
            max_age: Some(secs(600)),
            max_requests: None,
        }
    }
}
