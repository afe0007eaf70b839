//! What finding a route costs with 1, 1,000 and 10,000 hosts, and with 1,000 prefixes on one host.

use std::time::Duration;

use balancer::{
    config::model::{
        AccessFormat, AccessLog, Admin, Config, Drain, ErrorFormat, Errors, Forwarded, HeaderEdits,
        HostMatch, HttpLimits, Listener, ListenerLimits, ListenerProtocol, ListenerTimeouts, Log,
        LogFormat, LogOutput, LogWhen, Metrics, PathMatch, PerBackend, Route, RouteAction,
        SocketOptions, TimeoutOverrides,
    },
    reason::StatusProfile,
    route::Router,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

fn listener() -> Listener {
    Listener {
        name: "web".into(),
        binds: Vec::new(),
        protocol: ListenerProtocol::Http,
        pool: None,
        redirect: None,
        http: HttpLimits {
            max_headers: 100,
            max_header_size: 32_768,
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
            backlog: 1,
            keepalive: None,
            fast_open: false,
        },
    }
}

fn configuration(routes: Vec<Route>) -> Config {
    Config {
        workers: None,
        max_connections: None,
        drain: Drain {
            delay: Duration::ZERO,
            timeout: Duration::ZERO,
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
            request_id: String::new(),
        },
        errors: Errors {
            status: StatusProfile::Unified,
            format: ErrorFormat::Json,
            pages: Vec::new(),
            overrides: Vec::new(),
        },
        listeners: vec![listener()],
        routes,
        pools: Vec::new(),
    }
}

fn route(host: String, path: String) -> Route {
    Route {
        name: "route".into(),
        listeners: Vec::new(),
        hosts: vec![HostMatch::Exact(host)],
        path: PathMatch::Prefix(path),
        methods: Vec::new(),
        headers: Vec::new(),
        action: RouteAction::Pool(0),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        timeouts: TimeoutOverrides::default(),
        retries: None,
        allow: Vec::new(),
    }
}

fn find(router: &Router, host: &str) -> Option<usize> {
    let path = b"/api/v7/users/12345/orders?page=3";
    let found = router.find(0, host.as_bytes(), path, b"GET", &|_, _| false);
    found.ok().flatten()
}

fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for count in [1, 1_000, 10_000] {
        let hosts = (0..count).map(|n| route(format!("host{n}.example.com"), "/api".to_owned()));
        let router = Router::new(&configuration(hosts.collect()));
        let host = format!("host{}.example.com:8080", count / 2);
        assert_eq!(find(&router, &host), Some(count / 2));
        group.bench_function(BenchmarkId::new("hosts", count), |bencher| {
            bencher.iter(|| find(&router, &host));
        });
    }
    let prefixes = (0..1_000).map(|n| route("example.com".to_owned(), format!("/api/v{n}")));
    let router = Router::new(&configuration(prefixes.collect()));
    assert_eq!(find(&router, "example.com"), Some(7));
    group.bench_function(BenchmarkId::new("prefixes", 1_000), |bencher| {
        bencher.iter(|| find(&router, "example.com"));
    });
    group.finish();
}

criterion_group!(benches, routes);
criterion_main!(benches);
