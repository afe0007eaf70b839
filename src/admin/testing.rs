//! A daemon without sockets for the tests of this floor.

use std::{sync::Arc, time::Duration};

use crate::{
    base::clock,
    config::model::{
        AccessFormat, AccessLog, Admin, Backend, CheckKind, Config, Drain, Ejection, ErrorFormat,
        Errors, Forwarded, HealthCheck, HttpLimits, Keepalive, Listener, ListenerLimits,
        ListenerProtocol, ListenerTimeouts, Log, LogFormat, LogOutput, LogWhen, Metrics,
        PerBackend, Policy, Pool, PoolTimeouts, SocketOptions, WhenAllDown,
    },
    reason::StatusProfile,
    snapshot::{Daemon, Snapshot},
    telemetry::access_log,
};

/// A configuration without listeners and pools.
pub(super) fn config() -> Config {
    Config {
        workers: None,
        max_connections: None,
        drain: Drain {
            delay: Duration::ZERO,
            timeout: Duration::from_secs(30),
        },
        admin: Admin {
            bind: None,
            token_file: None,
        },
        metrics: Metrics {
            bind: None,
            per_backend: PerBackend::Full,
        },
        log: Log {
            level: tracing::level_filters::LevelFilter::INFO,
            format: LogFormat::Auto,
        },
        access_log: AccessLog {
            output: LogOutput::None,
            format: AccessFormat::Json,
            when: LogWhen {
                min_status: 500,
                slower_than: None,
                sample: 0.0,
            },
            headers: Vec::new(),
        },
        trusted_proxies: Vec::new(),
        forwarded: Forwarded {
            x_forwarded: true,
            rfc7239: false,
            via: true,
            request_id: "X-Request-Id".to_owned(),
        },
        errors: Errors {
            status: StatusProfile::Unified,
            format: ErrorFormat::Json,
            pages: Vec::new(),
            overrides: Vec::new(),
        },
        listeners: Vec::new(),
        routes: Vec::new(),
        pools: Vec::new(),
    }
}

/// A listener on `127.0.0.1:PORT`; nothing is bound.
pub(super) fn listener(name: &str, protocol: ListenerProtocol, port: u16, pool: usize) -> Listener {
    Listener {
        name: Arc::from(name),
        binds: vec![format!("127.0.0.1:{port}").parse().unwrap()],
        protocol,
        pool: Some(pool),
        redirect: None,
        http: HttpLimits {
            max_headers: 100,
            max_header_size: 32 << 10,
        },
        timeouts: ListenerTimeouts {
            header: None,
            body_idle: None,
            keepalive: None,
        },
        limits: ListenerLimits {
            connections: None,
            connections_per_client: None,
            request_body: None,
        },
        allow: Vec::new(),
        deny: Vec::new(),
        socket: SocketOptions {
            backlog: 4_096,
            keepalive: None,
            fast_open: false,
        },
    }
}

/// A pool of `count` backends with TCP checks.
pub(super) fn pool(name: &str, count: usize) -> Pool {
    let backend = |index: usize| {
        let address = format!("10.0.{}.{}:80", index / 250, index % 250);
        Backend {
            address: address.parse().unwrap(),
            name: Arc::from(address),
            weight: 1,
            backup: false,
            max_connections: None,
        }
    };
    Pool {
        name: Arc::from(name),
        policy: Policy::RoundRobin,
        backends: (0..count).map(backend).collect(),
        health_check: Some(HealthCheck {
            kind: CheckKind::Tcp,
            port: None,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        }),
        ejection: Some(Ejection {
            failures: 5,
            eject_for: Duration::from_secs(10),
            max_eject_for: Duration::from_mins(5),
            max_ejected: 0.5,
        }),
        retries: None,
        timeouts: PoolTimeouts {
            connect: Duration::from_secs(3),
            response: None,
            idle: None,
            tcp_idle: None,
            total: None,
        },
        keepalive: Keepalive {
            idle_per_backend: 64,
            idle_timeout: Duration::from_secs(4),
            max_age: None,
            max_requests: None,
        },
        connections_per_backend: None,
        when_all_down: WhenAllDown::Reject,
    }
}

/// An http listener `web` on pool `app` (three backends) and a tcp listener `db` on pool `sql` (one backend).
pub(super) fn usual() -> Config {
    Config {
        listeners: vec![
            listener("web", ListenerProtocol::Http, 8080, 0),
            listener("db", ListenerProtocol::Tcp, 8081, 1),
        ],
        pools: vec![pool("app", 3), pool("sql", 1)],
        ..config()
    }
}

/// A generation of `config`.
pub(super) fn snapshot(config: Config, previous: Option<&Snapshot>) -> Snapshot {
    let log = access_log::AccessLog::new(&config.access_log, None);
    Snapshot::build(Arc::new(config), previous, log, clock::now())
}

/// A daemon with two workers in its first generation.
pub(super) fn daemon(config: Config) -> Arc<Daemon> {
    Arc::new(Daemon::new(snapshot(config, None), 2, 1_000))
}
