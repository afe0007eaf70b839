//! Cost of finding a route with 1, 1,000 and 10,000 hosts, and with 1,000 prefixes on one host.

use balancer::{
    config::model::{Config, HostMatch, ListenerConfig, PathMatch, RouteConfig},
    route::Router,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

fn configuration(routes: Vec<RouteConfig>) -> Config {
    Config {
        listeners: vec![ListenerConfig::named("web")],
        routes,
        ..Config::default()
    }
}

fn route(host: String, path: String) -> RouteConfig {
    RouteConfig {
        hosts: vec![HostMatch::Exact(host)],
        path: PathMatch::Prefix(path),
        ..RouteConfig::named("route")
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
